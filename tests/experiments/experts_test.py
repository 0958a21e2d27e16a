import json
import sys

from absl import flags
from absl.testing import flagsaver
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import mcdm as config_lib
from experiments import evaluate, experts as experts_lib, sample, setup
from mmdiff_jax.data import datasets
from mmdiff_jax.training import checkpoints, trainer, workdir as workdir_lib

ROWS = 12


SPLITS = ("train", "test")
COLUMNS = {
  "mask": {"image", "mask", "partial_mask"},
  "text": {"image", "caption"},
}


def tiny(config):
  sizes = {"width": 8, "multipliers": (1,), "blocks": 1, "attention": (), "head_channels": 8}
  config.network.update(sizes | {"text_width": 4})
  config.process.num = 20
  config.sampling.steps = 2
  config.training.update({"steps": 4, "batch_size": 4, "learning_rate": 0.1, "warmup": 0})
  config.evaluation.update({"num": 8, "seeds": 1, "classifier_steps": 2})
  return config


def config_of(name, **changes):
  config = tiny(config_lib.get_config(name))
  config.data.of = "digits"
  config.update(changes)
  return config


def made_up(config):
  """Returns rows of the right shapes, with real captions."""
  rng = np.random.default_rng(0)
  modalities = datasets.modalities(**config.data.to_dict())
  data = {
    m.name: rng.integers(0, m.num_classes, (ROWS, *m.shape)).astype(np.int32)
    if m.num_classes
    else rng.uniform(size=(ROWS, *m.shape)).astype(np.float32)
    for m in modalities
  }
  real = datasets.load(**config.data.to_dict(), split="test")
  return data | {"caption": np.asarray(real["caption"][:ROWS]), "label": np.arange(ROWS) % 10}


# The fixture trains three experts.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Workdirs of tiny experts that were trained for a few steps, and their data."""
  folder = tmp_path_factory.mktemp("experts")
  data = made_up(config_of("all"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "tensorflow", None)  # It takes seconds to load.
    for name in ("unconditional", "all"):
      config = config_of(name)
      trainer.train(setup.build(config), config, folder / name, data, data)
  # These only need a config, which shows that they do not fit.
  for name, config in {
    "finer": config_of("sketch", process={"num": 30}),
    "eps": config_of("sketch", prediction="eps"),
  }.items():
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(config.to_json())
  return folder, data


@pytest.fixture(name="_made_up", autouse=True)
def _load(request, monkeypatch):
  if "runs" in request.fixturenames:
    data = request.getfixturevalue("runs")[1]
    monkeypatch.setattr(datasets, "load", lambda *args, **options: data)


def composed(runs, *experts):
  folder, _ = runs
  named = ",".join(f"{folder}/{expert}" for expert in experts)
  return [f"--unconditional={folder / 'unconditional'}", f"--experts={named}"]


def test_samples_of_a_composition(command, runs, tmp_path):
  flags = composed(runs, "all:sketch+mask", "all:caption")
  flags += ["--num=3", f"--out={tmp_path}"]
  samples = []
  for weights in ("1,1", "1,0.5:2"):
    ended = command(sample, *flags, f"--weights={weights}")
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "digit_from_sketch_mask_caption.npz") as file:
      assert file["digit"].shape == (3, 28, 28, 1)
      assert set(file) == {"digit", "sketch", "mask", "caption"}
      samples.append(file["digit"])
  assert np.abs(samples[0] - samples[1]).max() > 0
  # An expert whose condition is not given is left out.
  ended = command(sample, *flags, "--given=caption", "--corrector=1", "--steps=3")
  assert ended.code == 0, ended.err
  assert (tmp_path / "digit_from_caption.png").exists()


@pytest.mark.parametrize(("fractions", "expected"), [((0.1, 0.1), 0.1), ((0.1, 0.2), None)])
def test_examples_that_one_expert_was_trained_on_are_not_held_out(fractions, expected, monkeypatch):
  configs = {}
  for name, fraction in zip(("unconditional", "all"), fractions, strict=True):
    configs[name] = config_of(name)
    configs[name].data.validation = fraction
  monkeypatch.setattr(workdir_lib, "load_config", configs.get)
  monkeypatch.setattr(checkpoints, "load_params", lambda *_, **options: {})
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(unconditional=["unconditional"], experts=["all"]):
    config, *_ = experts_lib.load(ema=True)
  assert config.data.validation == expected


def test_measures_a_composition(command, runs, tmp_path):
  flags = [*composed(runs, "all:sketch", "all:caption"), "--corrector=1:2:0.1"]
  ended = command(evaluate, *flags, f"--out={tmp_path}")
  assert ended.code == 0, ended.err
  results = json.loads((tmp_path / "results.json").read_text())
  assert [entry["given"] for entry in results["conditional"]] == [
    ["sketch"], ["caption"], ["sketch", "caption"],
  ]  # fmt: skip
  # Two steps, and two leapfrog steps after the first, of one model or of three.
  assert [entry["evaluations"] for entry in results["conditional"]] == [4, 4, 12]
  assert results["settings"]["corrector"] == {"num": 1, "leapfrog": 2, "snr": 0.1}
  assert results["settings"]["composition"]["weights"] == ["1", "1"]
  assert "coherence" not in results["joint"]


@pytest.mark.parametrize(
  ("experts", "more", "message"),
  [
    (("all", "all"), ["--weights=1"], "--weights has 1 value(s) (1) for 2 expert(s)"),
    (("all",), ["--weights=1,2"], "--weights has 2 value(s) (1, 2) for 1 expert(s)"),
    (("all",), ["--weights=much"], "--weights has 'much', which is not a finite number"),
    (("all",), ["--weights=nan"], "--weights has 'nan', which is not a finite number"),
    (("all",), ["--corrector=some"], "--corrector=some is not NUM"),
    (("all",), ["--corrector=1:0"], "--corrector=1:0 is not NUM"),
    (("all:sketch", "all:mask"), ["--corrector=1", "--weights=0.5:5,-2"], "snr 0.7 would diverge"),
    (
      ("all:sketch",),
      ["--corrector=1:1:1.5"],
      "Give an snr below 1.41, such as --corrector=1:1:0.71",
    ),
    (("all",), ["--shares=1,2"], "--shares has 2 value(s) for 1 unconditional"),
    (("all:none",), [], "/all has no condition 'none'"),
    (("unconditional",), [], "/unconditional has no conditions"),
    (("finer",), [], "/finer does not fit"),
    (("eps",), [], "the prediction is 'eps', and there 'v'"),
    (("nowhere",), [], "/nowhere"),
    (("all:sketch+mask",), ["--given=mask"], "cannot generate digit from mask"),
    (("all:sketch",), ["--guidance=2"], "--weights"),
    (("all:sketch",), ["--mode=informed"], "no --mode"),
    (("all:sketch",), ["--workdir=somewhere"], "not both"),
  ],
)
def test_invalid_compositions_are_refused(command, runs, tmp_path, experts, more, message):
  ended = command(sample, *composed(runs, *experts), f"--out={tmp_path}", *more)
  assert ended.code == 2
  assert message in ended.err


def test_without_an_unconditional_model(command, runs, tmp_path):
  folder, _ = runs
  experts = f"--experts={folder}/all:sketch,{folder}/all:caption"
  ended = command(sample, experts, "--weights=0.4,0.6", "--num=2", f"--out={tmp_path}")
  assert ended.code == 0, ended.err
  assert (tmp_path / "digit_from_sketch_caption.npz").exists()
  ended = command(sample, experts, f"--out={tmp_path}")
  assert ended.code == 2
  assert f"The experts {folder}/all need an unconditional model" in ended.err
  ended = command(evaluate, experts, "--weights=0.4,0.6", f"--out={tmp_path}")
  assert ended.code == 2
  assert "--unconditional=DIR" in ended.err


def test_weight_changes_from_its_first_number_at_t_1_to_its_second_at_t_0():
  weight = experts_lib._weight("0.5:2")
  assert [float(weight({"z": jnp.float32(t)})) for t in (1.0, 0.5, 0.0)] == [0.5, 1.25, 2.0]


def test_runs_named_twice_and_weights_without_experts_are_refused(command, runs, tmp_path):
  folder, _ = runs
  one = folder / "unconditional"
  ended = command(sample, f"--unconditional={one},{one}/", f"--out={tmp_path}")
  assert ended.code == 2
  assert "names a run twice" in ended.err
  ended = command(sample, f"--workdir={folder / 'all'}", "--weights=3", f"--out={tmp_path}")
  assert ended.code == 2
  assert "has no --weights" in ended.err


def test_missing_workdir_or_out_is_refused(command, runs):
  ended = command(sample)
  assert ended.code == 2
  assert "--workdir=DIR" in ended.err
  ended = command(evaluate, *composed(runs, "all:sketch"))
  assert ended.code == 2
  assert "--out=DIR" in ended.err


def test_samples_of_a_single_expert(command, runs, tmp_path):
  folder, _ = runs
  ended = command(
    sample, f"--workdir={folder / 'all'}", "--given=sketch", "--num=2", f"--out={tmp_path}"
  )
  assert ended.code == 0, ended.err
  assert (tmp_path / "digit_from_sketch.npz").exists()


def test_faces_in_a_folder(command, tmp_path, monkeypatch):
  """Each expert has its columns; together they are given the columns of all from one folder."""
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  rng = np.random.default_rng(0)
  folder = tmp_path / "faces"
  for name in ("CelebA-HQ-img", "text", "CelebAMask-HQ-mask-anno/0"):
    (folder / name).mkdir(parents=True)
  for i in range(24):
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "CelebA-HQ-img" / f"{i}.jpg")
    hair = Image.fromarray(np.uint8(255 * (pixels > 128)))
    hair.save(folder / "CelebAMask-HQ-mask-anno" / "0" / f"{i:05d}_hair.png")
    (folder / "text" / f"{i}.txt").write_text("black hair")
  runs = {}
  for name in ("mask", "text"):
    config = config_lib.get_config(f"faces_{name}")
    config.data.manual_dir = str(folder)
    for column in config.data.columns.values():
      if "size" in column:
        column["size"] = (16, 16)
    tiny(config)
    data = {split: datasets.load(**config.data.to_dict(), split=split) for split in SPLITS}
    trainer.train(setup.build(config), config, tmp_path / name, data["train"], data["test"])
    runs[name] = str(tmp_path / name)
    assert set(config.data.columns) == COLUMNS[name]
  flags = [f"--experts={runs['mask']},{runs['text']}", "--weights=0.5,0.5", "--num=2"]
  ended = command(sample, *flags, f"--out={tmp_path / 'out'}")
  assert ended.code == 0, ended.err
  with np.load(tmp_path / "out" / "image_from_partial_mask_caption.npz") as file:
    assert file["image"].shape == (2, 16, 16, 3)
    assert set(file) == {"image", "partial_mask", "caption"}
