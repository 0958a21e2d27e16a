import json
import re
import shutil

from absl import flags
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
import pytest

from experiments import evaluate, generation
from mmdiff_jax import solvers
from mmdiff_jax.data import datasets
from mmdiff_jax.evaluation import coherence
from mmdiff_jax.evaluation.classifiers import Classifier
from mmdiff_jax.frameworks.base import Framework, Sampling
from mmdiff_jax.modalities import Modality


def test_measures_a_run(command, trained):
  ended = command(evaluate, f"--workdir={trained}", "--num=24")
  assert ended.code == 0, ended.err
  assert "7/7  tone, caption -> digit: 2 x 24 samples" in ended.out
  assert re.search(r"^\| from tone alone +\| .* ± ", ended.out, re.M)
  assert ended.out.strip().endswith(f"Picture: {trained / 'samples.png'}")
  assert Image.open(trained / "samples.png").size[0] > 500

  results = json.loads((trained / "results.json").read_text())
  settings = results["settings"]
  for name, value in {
    "num": 24,
    "seeds": [0, 1],
    "ema": True,
    "solver": "dpmpp_2m",
    "steps": 2,
    "guidance": 1.0,
    "order": [],
    "last_step": "mean, no fresh noise at time 0",
  }.items():
    assert settings[name] == value
  # The subset with a modality that this run has not is left out.
  assert list(results["joint"]["coherence"]) == ["digit+tone", "all 3"]
  assert [len(entry["given"]) for entry in results["conditional"]] == [1, 1, 1, 2, 2, 2]
  for entry in results["conditional"]:
    assert set(entry["given"]).isdisjoint(entry["targets"])
    assert len(entry["given"]) + len(entry["targets"]) == 3
    for found in entry["targets"].values():
      assert len(found["coherence"]["values"]) == 2
      assert found["frechet"]["mean"] > 0
  assert sum(results["joint"]["histogram"]["majority"]) == pytest.approx(1.0)
  assert set(results["classifier_accuracy"]) == {"digit", "tone", "caption"}
  assert results["seconds"] > 0
  text = (trained / "results.md").read_text()
  assert "| digit + caption" in text
  assert {path.name for path in (trained / "classifiers").iterdir()} == {
    "digit.npz",
    "tone.npz",
    "caption.npz",
  }


def test_data_without_classes_cannot_be_judged(command, trained, monkeypatch, refused):
  monkeypatch.setattr(datasets, "load", lambda **_: {"digit": np.zeros((2, 16, 16, 1))})
  refused(command(evaluate, f"--workdir={trained}"), "have no classes", "`label`")


def test_joint_only_shows_and_writes_nothing(command, trained):
  before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
  ended = command(evaluate, f"--workdir={trained}", "--num=8", "--joint_only")
  assert ended.code == 0, ended.err
  assert re.search(r"^\| joint all 3 +\| .* ± ", ended.out, re.M)
  assert "alone" not in ended.out
  assert {p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()} == before


# A framework that knows the classes: each modality is a one-hot vector of ten, and what is
# generated shows the class of what is given, but for `off`, which is always one further.
NAMES = ("a", "b", "off")


def shift(name):
  return 1 if name == "off" else 0


def oracle_sample(params, key, given, targets, num, sampling):
  del params, sampling
  label = jax.random.randint(key, (num,), 0, 10)
  for x in given.values():
    label = jnp.argmax(x, -1)
  return {name: jax.nn.one_hot((label + shift(name)) % 10, 10) for name in targets}


def oracle_data(size):
  labels = np.random.default_rng(size).integers(0, 10, size).astype(np.int32)
  return {"label": labels, **{name: np.eye(10, dtype=np.float32)[labels] for name in NAMES}}


@pytest.fixture
def oracle():
  config = ml_collections.ConfigDict(
    {
      "data": {"name": "oracle"},
      "sampling": {"solver": "heun"},
      "evaluation": {"subsets": (("a", "b"),)},
    }
  )
  framework = Framework(
    modalities=tuple(Modality(name, "image", (10,), str) for name in NAMES),
    stages=(),
    sample=oracle_sample,
    reconstruct=lambda params, data: {name: np.roll(x, 1, -1) for name, x in data.items()},
    evaluations=lambda given, targets, sampling: 100 * len(given) + len(targets),
  )
  sampling = Sampling(solvers.heun, 4)
  return generation.Trained(config, framework, {}, sampling, True)


def test_what_it_says_of_a_framework_that_is_known(oracle):
  judge = Classifier({}, lambda params, x: (x, x))
  lines = []
  results, panels = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    {"train": oracle_data(5000), "test": oracle_data(700)},
    [(), *coherence.proper_subsets(NAMES)],
    num=2001,
    seeds=(3, 4),
    say=lines.append,
  )
  assert results["classifier_accuracy"] == dict.fromkeys(NAMES, 1.0)
  assert results["reconstruction_accuracy"] == dict.fromkeys(NAMES, 0.0)
  assert results["joint"]["coherence"]["a+b"]["values"] == [1.0, 1.0]
  assert results["joint"]["coherence"]["all 3"]["mean"] == 0.0
  assert results["joint"]["evaluations"] == 3
  for entry in results["conditional"]:
    for target, found in entry["targets"].items():
      expected = 1.0 - shift(target)
      assert found["coherence"]["values"] == [expected, expected], (entry["given"], target)
      if expected:
        assert found["frechet"]["mean"] < 0.05
    assert entry["evaluations"] == 100 * len(entry["given"]) + 3 - len(entry["given"])
  assert results["joint"]["total_variation"]["a"]["mean"] < 0.05
  assert results["summary"]["a, b from each other"]["mean"] == 1.0
  assert results["summary"]["into off from any other one"]["mean"] == 0.0
  assert [panel.title for panel in panels] == [
    "Generated together",
    *(f"From {name}" for name in NAMES),
  ]
  assert "7/7" in lines[-1]
  assert lines[-1].endswith("0:00 left")


def test_frechet_distance_sees_classes_that_are_missing(oracle):
  def one_class(params, key, given, targets, num, sampling):
    return {name: jax.nn.one_hot(jnp.zeros(num, int), 10) for name in targets}

  oracle = oracle._replace(
    framework=Framework(
      oracle.framework.modalities, (), one_class, lambda params, data: data, lambda *_: 1
    )
  )
  judge = Classifier({}, lambda params, x: (x, x))
  data = oracle_data(500)
  results, _ = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    {"train": data, "test": data},
    [()],
    num=50,
    seeds=(0,),
    say=lambda line: None,
  )
  # All means are 1/10 but that of class 0: |m1 - m2|^2 is 0.9, and the covariance is 0 against 0.9.
  assert results["joint"]["frechet"]["a"]["mean"] == pytest.approx(1.8, abs=0.05)
  assert results["joint"]["total_variation"]["a"]["mean"] == pytest.approx(0.9, abs=0.03)
  assert results["frechet_of_training_split"]["a"] < 0.1


def copied(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "run")


def test_damaged_checkpoint(command, trained, tmp_path, refused):
  run = copied(trained, tmp_path)
  (largest, *_) = sorted(
    (path for path in (run / "checkpoints" / "score" / "2").rglob("*") if path.is_file()),
    key=lambda path: -path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  refused(command(evaluate, f"--workdir={run}"), "damaged", "Delete that folder")
  assert largest.exists()


def test_stage_without_a_checkpoint(command, trained, tmp_path, refused):
  run = copied(trained, tmp_path)
  shutil.rmtree(run / "checkpoints" / "score")
  refused(command(evaluate, f"--workdir={run}"), "'score' has not been trained", "Train it first")


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--solver=rk4", ("no solver 'rk4'", "heun")),
    ("--num=0", ("num",)),
    ("--seeds=none", ("seeds",)),
    ("--steps=-3", ("steps",)),
  ],
)
def test_bad_arguments(command, trained, refused, argument, words):
  refused(command(evaluate, f"--workdir={trained}", argument), *words)


def test_raw_parameters_are_those_of_the_last_stage_only(trained, monkeypatch):
  """Earlier stages were trained upon as running means."""
  asked = {}

  def load_stage(workdir, stage, *, ema):
    del workdir
    asked[stage] = ema
    return {}

  monkeypatch.setattr(generation.checkpoints, "load_stage", load_stage)
  with flagsaver.as_parsed(ema="false"):
    flags.FLAGS.mark_as_parsed()
    assert not generation.load(trained).ema
  assert asked == {f"autoencoder_{n}": True for n in ("digit", "tone", "caption")} | {
    "score": False
  }


def test_judges_what_is_there_alone(oracle):
  """Where a modality is missing its array holds something else."""
  judge = Classifier({}, lambda params, x: (x, x))
  data = {}
  for split, size in (("train", 500), ("test", 300)):
    data[split] = oracle_data(size)
    for k, name in enumerate(NAMES):
      mask = np.arange(size) % 4 != k
      data[split][name] = np.where(mask[:, None], data[split][name], np.nan).astype(np.float32)
      data[split][f"{name}_present"] = mask
  results, _ = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    data,
    [(), *coherence.proper_subsets(NAMES)],
    num=60,
    seeds=(0,),
    say=lambda _: None,
  )
  assert results["classifier_accuracy"] == dict.fromkeys(NAMES, 1.0)
  assert results["conditional"][0]["targets"]["b"]["coherence"]["mean"] == 1.0
  assert results["conditional"][0]["targets"]["b"]["frechet"]["mean"] < 0.3
  assert all(value < 0.3 for value in results["frechet_of_training_split"].values())
