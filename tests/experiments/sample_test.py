import json
import shutil

import ml_collections
import numpy as np
from PIL import Image
import pytest
from scipy.io import wavfile

from experiments import generation, sample
from mmdiff_jax.data import datasets, rendering
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base
from mmdiff_jax.modalities import mask_picture, Modality, trajectory_picture, video_picture
from mmdiff_jax.training import checkpoints


def run(command, workdir, out, *arguments):
  ended = command(sample, f"--workdir={workdir}", f"--out={out}", *arguments)
  assert ended.code == 0, ended.err
  return ended


def arrays(path):
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def test_generates_some_modalities_from_others(command, trained, small_data, tmp_path):
  ended = run(
    command, trained, tmp_path, "--given=tone", "--targets=caption,digit", "--num=3", "--guidance=2"
  )
  stem = "digit_caption_from_tone"
  names = {f"{stem}.png", f"{stem}.npz", f"{stem}_caption.txt"}
  assert {path.name for path in tmp_path.iterdir()} == names
  assert all(name in ended.out for name in names)
  samples = arrays(tmp_path / f"{stem}.npz")
  assert samples["digit"].shape == (3, 16, 16, 1)
  assert samples["digit"].dtype == np.float32
  # The given modalities are from the test split, unchanged.
  for row in samples["tone"]:
    assert np.any(np.all(row == small_data["test"]["tone"], axis=(1, 2)))
  lines = (tmp_path / f"{stem}_caption.txt").read_text().splitlines()
  assert lines == [rendering.text_of(x) for x in samples["caption"]]
  assert Image.open(tmp_path / f"{stem}.png").size[1] > 100


def test_generates_all_modalities_if_none_is_given(command, trained, tmp_path):
  run(command, trained, tmp_path, "--num=10", "--solver=heun", "--steps=3")
  rate, sound = wavfile.read(tmp_path / "joint_tone.wav")
  assert rate == 8000
  assert sound.dtype == np.int16
  assert len(sound) == 10 * (rendering.TONE.samples + 800)
  assert set(arrays(tmp_path / "joint.npz")) == {"digit", "tone", "caption"}


def test_writes_into_the_workdir_and_depends_on_the_seed(command, trained, tmp_path):
  digits = []
  for seed in (0, 0, 1):
    ended = command(
      sample, f"--workdir={trained}", "--given=tone,caption", "--num=2", f"--seed={seed}"
    )
    assert ended.code == 0, ended.err
    digits.append(arrays(trained / "samples" / "digit_from_tone_caption.npz")["digit"])
  np.testing.assert_array_equal(digits[0], digits[1])
  assert np.any(digits[0] != digits[2])


def test_generates_from_a_file_of_the_user(command, trained, small_data, tmp_path):
  given = {name: small_data["train"][name][:2] for name in ("tone", "caption")}
  np.savez(tmp_path / "given.npz", **given)
  run(command, trained, tmp_path, "--given=tone,caption", f"--given_npz={tmp_path / 'given.npz'}")
  samples = arrays(tmp_path / "digit_from_tone_caption.npz")
  for name, x in given.items():
    np.testing.assert_array_equal(samples[name], x)
  assert len(samples["digit"]) == 2


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--given=smell",), ("'smell'", "--given", "digit, tone, caption")),
    (("--targets=scene",), ("'scene'", "--targets", "digit, tone, caption")),
    (("--given=tone", "--targets=digit,tone"), ("tone: both given and a target",)),
    (("--given=tone", "--weights=tone=2"), ("has no --weights", "--experts")),
    (("--given=digit,tone,caption",), ("nothing is left to generate",)),
    (("--solver=magic",), ("no solver 'magic'", "dpmpp_2m")),
    (("--num=0",), ("num",)),
    (
      ("--given=tone", "--given_npz=nowhere.npz"),
      ("nowhere.npz cannot be read: there is no such file",),
    ),
    (("--given_npz=nowhere.npz",), ("needs --given",)),
  ],
)
def test_bad_arguments(command, trained, tmp_path, refused, arguments, words):
  refused(command(sample, f"--workdir={trained}", f"--out={tmp_path / 'out'}", *arguments), *words)
  assert not (tmp_path / "out").exists()


def test_workdir_without_a_run_is_refused(command, tmp_path, refused):
  refused(command(sample, f"--workdir={tmp_path / 'none'}"), "has no training run", "Train first")
  assert not (tmp_path / "none").exists()


def test_untrained_run_is_refused(command, trained, tmp_path, refused):
  shutil.copy(trained / "config.json", tmp_path)
  refused(command(sample, f"--workdir={tmp_path}"), "has not been trained", "Train it first")


def test_missing_data_folder_is_refused(command, trained, tmp_path, monkeypatch, refused):
  monkeypatch.undo()  # The real loader.
  workdir = shutil.copytree(trained, tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["data_dir"] = str(tmp_path / "nowhere")
  (workdir / "config.json").write_text(json.dumps(config))
  refused(command(sample, f"--workdir={workdir}", "--given=tone"), "nowhere", "does not exist")


def set_field(name, value):
  def edit(config):
    *sections, leaf = name.split(".")
    for section in sections:
      config = config[section]
    config[leaf] = value

  return edit


def drop_field(name):
  def edit(config):
    *sections, leaf = name.split(".")
    for section in sections:
      config = config[section]
    del config[leaf]

  return edit


@pytest.mark.parametrize(
  ("edit", "words"),
  [
    (set_field("score.network.width", 24), ("score.network.width was 16, now 24", "'config'")),
    (
      set_field("score.prediction", "eps"),
      ('score.prediction was "v", now "eps"', "no longer matches"),
    ),
    (set_field("score", 3), ("score.prediction was", "now not there")),
    (drop_field("autoencoder.tone.latent"), ("autoencoder.tone.latent was 12, now not there",)),
    (set_field("score.network.wdith", 16), ("score.network.wdith was not there, now 16",)),
    # Fields that weights do not depend on may be changed, but only to valid values.
    (drop_field("sampling"), ("no field 'sampling' beside", "meta item")),
    (drop_field("sampling.steps"), ("no field 'steps' beside", "solver")),
    (set_field("sampling", 3), ("config.sampling is 3; it must be a section",)),
    (set_field("sampling.solver", 3), ("config.sampling.solver is 3",)),
    (set_field("sampling.order", [["tome"]]), ("no modality 'tome' (config.sampling.order)",)),
    (set_field("parallel.kind", "jti"), ("config.parallel.kind is 'jti'",)),
  ],
)
def test_config_edited_by_hand_is_refused(command, trained, tmp_path, refused, edit, words):
  (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
  config = json.loads((trained / "config.json").read_text())
  edit(config)
  (tmp_path / "config.json").write_text(json.dumps(config))
  refused(command(sample, f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"), *words)
  assert not (tmp_path / "out").exists()


def test_file_that_is_not_a_config_is_refused(command, tmp_path, refused):
  (tmp_path / "config.json").write_text("[1]")
  refused(command(sample, f"--workdir={tmp_path}"), "config.json cannot be read", "contains a list")


def test_parameters_that_do_not_fit_are_refused(command, trained, tmp_path, refused, monkeypatch):
  """As with another version of the program, or if no checkpoint has its config."""
  monkeypatch.setattr(checkpoints, "metadata", lambda workdir: {})
  (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
  config = json.loads((trained / "config.json").read_text())
  config["score"]["network"]["width"] = 24
  (tmp_path / "config.json").write_text(json.dumps(config))
  refused(command(sample, f"--workdir={tmp_path}"), "do not fit", "config.json")


SOUND = Modality("sound", "audio", (2, 3), str, sample_rate=100)
WORDS = Modality("words", "text", (4,), str, num_classes=5)
GOOD = {"sound": np.full((3, 2, 3), 0.5), "words": np.full((3, 4), 4)}


def read(tmp_path, num=None, **changes):
  path = tmp_path / "given.npz"
  kept = {name: x for name, x in {**GOOD, **changes}.items() if x is not None}
  np.savez(path, **kept)
  return sample.read_given(str(path), [SOUND, WORDS], num)


def test_reads_arrays_in_the_types_of_the_model(tmp_path):
  inputs = read(tmp_path, num=3, other=np.zeros(7))
  assert {name: x.dtype for name, x in inputs.items()} == {"sound": np.float32, "words": np.int32}
  np.testing.assert_array_equal(inputs["sound"], GOOD["sound"])
  np.testing.assert_array_equal(inputs["words"], GOOD["words"])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"words": None}, "no array 'words', only: sound"),
    ({"sound": np.zeros((3, 3, 2))}, r"'sound'.*shape \(3, 3, 2\).*\(2, 3\)"),
    ({"sound": np.zeros((3, 2, 3), int)}, "'sound'.*is int64.*float32"),
    ({"words": np.full((3, 4), 5)}, "'words'.*from 0 to 4"),
    ({"sound": np.zeros((5, 2, 3))}, "'sound': 5, 'words': 3"),
    ({"num": 4}, "3 rows, but --num=4"),
    ({"sound": np.array([None, {}])}, "cannot be read.*pickle"),
  ],
)
def test_refuses_invalid_model_inputs(tmp_path, changes, words):
  with pytest.raises(UserError, match=words) as caught:
    read(tmp_path, **changes)
  assert "\n" not in str(caught.value)


def make_framework(*names, **changes):
  modalities = tuple(Modality(name, "text", (2,), str, num_classes=3) for name in names)
  return base.Framework(modalities, (), dict, dict, int, **changes)


def test_names_are_in_the_order_of_the_run():
  framework = make_framework("a", "b", "c")
  assert sample.check_names(framework, ["c", "a"], []) == (("a", "c"), ("b",))
  assert sample.check_names(framework, [], ["c", "b"]) == ((), ("b", "c"))
  assert sample.check_names(framework, [], []) == ((), ("a", "b", "c"))


def test_weights_of_prompts_are_given_by_name():
  config = ml_collections.ConfigDict({"framework": "codi", "modalities": ("a", "b")})
  config.sampling = {"weights": {}}
  assert generation._weights(config, ["b=2", "a=0.5"]) == {"a": 0.5, "b": 2.0}
  for texts, words in (
    (["b=much"], "'much', which is not a finite number"),
    (["2"], "as NAME=WEIGHT"),
  ):
    with pytest.raises(UserError, match=words):
      generation._weights(config, texts)
  with pytest.raises(UserError, match="'b=2'.*each once"):
    generation._weights(config, ["b=1", "b=2"])
  sample._check_weights({"a": 2.0}, ["a", "b"])
  with pytest.raises(UserError, match="--weights names a, but --given does not .b.*Leave it out"):
    sample._check_weights({"a": 2.0}, ["b"])


def test_regenerated_modalities_are_kept_beside_the_given_ones(tmp_path):
  framework = make_framework("a", "b", can_regenerate_given=True)
  given, targets = sample.check_names(framework, ["b", "a"], ["a"])
  assert (given, targets) == (("a", "b"), ("a",))
  with pytest.raises(UserError, match="a: both given and a target"):
    sample.check_names(make_framework("a", "b"), ["a"], ["a", "b"])
  values = {name: np.full((2, 2), i) for i, name in enumerate(given)}
  sample.write(tmp_path, "stem", framework.modalities, values, {"a": np.full((2, 2), 2)})
  values = {name: x[0, 0] for name, x in arrays(tmp_path / "stem.npz").items()}
  assert values == {"given_a": 0, "b": 1, "a": 2}


def test_writes_each_kind_in_a_format_for_people(tmp_path):
  kinds = (
    Modality("clip", "video", (4, 6, 6, 1), video_picture),
    Modality("parts", "mask", (6, 6), mask_picture, num_classes=3),
    Modality("pen", "trajectory", (8, 2), trajectory_picture),
    Modality("label", "label", (), lambda x: f"class {x}", num_classes=3),
  )
  rng = np.random.default_rng(0)
  samples = {
    m.name: rng.integers(3, size=(5, *m.shape))
    if m.num_classes
    else rng.uniform(size=(5, *m.shape))
    for m in kinds
  }
  paths = sample.write(tmp_path, "joint", kinds, {}, samples)
  assert [path.name for path in paths] == [
    "joint.png", "joint.npz", "joint_clip.gif", "joint_label.txt"
  ]  # fmt: skip
  assert Image.open(tmp_path / "joint_clip.gif").n_frames == 4
  assert (tmp_path / "joint_label.txt").read_text().splitlines() == [
    f"class {x}" for x in samples["label"]
  ]
  sheet = np.asarray(Image.open(tmp_path / "joint.png").convert("RGB"), int)
  # The colours of the mask; the ink of the pen is grey.
  assert np.any((sheet == mask_picture(np.array([[1]]))).all(-1))


def test_given_modalities_are_from_examples_that_have_them(monkeypatch):
  present = {
    "sound": np.array([True, False, True, False]),
    "words": np.array([True, True, False, False]),
  }
  test = {"sound": np.arange(4), "words": np.arange(4), "image": np.arange(4)}
  test |= {f"{name}_present": x for name, x in present.items()}
  monkeypatch.setattr(datasets, "load", lambda split: test)
  for given, rows in ((["sound"], {0, 2}), (["words", "sound"], {0}), (["image"], {0, 1, 2, 3})):
    values = sample._from_test_split(ml_collections.ConfigDict(), given, 9, 0)
    for name in given:
      assert len(values[name]) == 9 and set(values[name].tolist()) == rows
  present["words"][:] = False
  with pytest.raises(UserError, match="No example of the data has words"):
    sample._from_test_split(ml_collections.ConfigDict(), ["words"], 9, 0)
