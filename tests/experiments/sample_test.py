import json
import shutil

import numpy as np
from PIL import Image
import pytest
from scipy.io import wavfile

from experiments import sample
from mmdiff_jax.data import rendering
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality


def run(command, workdir, out, *arguments):
  ended = command(sample, f"--workdir={workdir}", f"--out={out}", *arguments)
  assert ended.code == 0, ended.err
  return ended


def arrays(path):
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def test_some_from_others(command, trained, small_data, tmp_path):
  ended = run(
    command, trained, tmp_path, "--given=tone", "--targets=caption,digit", "--num=3", "--guidance=2"
  )
  stem = "digit_caption_from_tone"
  names = {f"{stem}.png", f"{stem}.npz", f"{stem}_caption.txt"}
  assert {path.name for path in tmp_path.iterdir()} == names
  assert all(name in ended.out for name in names)
  found = arrays(tmp_path / f"{stem}.npz")
  assert found["digit"].shape == (3, 16, 16, 1)
  assert found["digit"].dtype == np.float32
  # What was given is from the test split, and untouched.
  for row in found["tone"]:
    assert np.any(np.all(row == small_data["test"]["tone"], axis=(1, 2)))
  lines = (tmp_path / f"{stem}_caption.txt").read_text().splitlines()
  assert lines == [rendering.text_of(x) for x in found["caption"]]
  assert Image.open(tmp_path / f"{stem}.png").size[1] > 100


def test_all_together_when_nothing_is_given(command, trained, tmp_path):
  run(command, trained, tmp_path, "--num=10", "--solver=heun", "--steps=3")
  rate, sound = wavfile.read(tmp_path / "joint_tone.wav")
  assert rate == 8000
  assert sound.dtype == np.int16
  assert len(sound) == 10 * (rendering.TONE.samples + 800)
  assert set(arrays(tmp_path / "joint.npz")) == {"digit", "tone", "caption"}


def test_writes_into_the_workdir_and_the_seed_decides(command, trained, tmp_path):
  digits = []
  for seed in (0, 0, 1):
    ended = command(
      sample, f"--workdir={trained}", "--given=tone,caption", "--num=2", f"--seed={seed}"
    )
    assert ended.code == 0, ended.err
    digits.append(arrays(trained / "samples" / "digit_from_tone_caption.npz")["digit"])
  np.testing.assert_array_equal(digits[0], digits[1])
  assert np.any(digits[0] != digits[2])


def test_what_the_user_gives(command, trained, small_data, tmp_path):
  given = {name: small_data["train"][name][:2] for name in ("tone", "caption")}
  np.savez(tmp_path / "given.npz", **given)
  run(command, trained, tmp_path, "--given=tone,caption", f"--given_npz={tmp_path / 'given.npz'}")
  found = arrays(tmp_path / "digit_from_tone_caption.npz")
  for name, x in given.items():
    np.testing.assert_array_equal(found[name], x)
  assert len(found["digit"]) == 2


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--given=smell",), ("'smell'", "--given", "digit, tone, caption")),
    (("--targets=scene",), ("'scene'", "--targets", "digit, tone, caption")),
    (("--given=tone", "--targets=digit,tone"), ("tone: both given and a target",)),
    (("--given=digit,tone,caption",), ("nothing is left to generate",)),
    (("--solver=magic",), ("no solver 'magic'", "dpmpp_2m")),
    (("--num=0",), ("num",)),
    (("--given=tone", "--given_npz=nowhere.npz"), ("no file nowhere.npz",)),
    (("--given_npz=nowhere.npz",), ("needs --given",)),
  ],
)
def test_bad_arguments(command, trained, tmp_path, refused, arguments, words):
  refused(command(sample, f"--workdir={trained}", f"--out={tmp_path / 'out'}", *arguments), *words)
  assert not (tmp_path / "out").exists()


def test_no_run_in_the_workdir(command, tmp_path, refused):
  refused(command(sample, f"--workdir={tmp_path / 'none'}"), "holds no training run", "Train first")
  assert not (tmp_path / "none").exists()


def test_run_that_is_not_trained(command, trained, tmp_path, refused):
  shutil.copy(trained / "config.json", tmp_path)
  refused(command(sample, f"--workdir={tmp_path}"), "has not been trained", "Train it first")


def test_data_folder_that_is_not_there(command, trained, tmp_path, monkeypatch, refused):
  monkeypatch.undo()  # The real loader.
  workdir = shutil.copytree(trained, tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["data_dir"] = str(tmp_path / "nowhere")
  (workdir / "config.json").write_text(json.dumps(config))
  refused(command(sample, f"--workdir={workdir}", "--given=tone"), "nowhere", "does not exist")


SOUND = Modality("sound", "audio", (2, 3), str, sample_rate=100)
WORDS = Modality("words", "text", (4,), str, num_classes=5)
GOOD = {"sound": np.full((3, 2, 3), 0.5), "words": np.full((3, 4), 4)}


def read(tmp_path, num=None, **changes):
  path = tmp_path / "given.npz"
  kept = {name: x for name, x in {**GOOD, **changes}.items() if x is not None}
  np.savez(path, **kept)
  return sample.read_given(str(path), [SOUND, WORDS], num)


def test_reads_arrays_in_the_types_of_the_model(tmp_path):
  found = read(tmp_path, num=3, other=np.zeros(7))
  assert {name: x.dtype for name, x in found.items()} == {"sound": np.float32, "words": np.int32}
  np.testing.assert_array_equal(found["sound"], GOOD["sound"])
  np.testing.assert_array_equal(found["words"], GOOD["words"])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"words": None}, "no array 'words'.*it has: sound"),
    ({"sound": np.zeros((3, 3, 2))}, r"'sound'.*shape \(3, 3, 2\).*\(rows, 2, 3\)"),
    ({"sound": np.zeros((2, 3))}, r"'sound'.*shape \(2, 3\)"),
    ({"sound": np.zeros(())}, "'sound'.*shape"),
    ({"sound": np.zeros((0, 2, 3))}, "at least one row"),
    ({"sound": np.zeros((3, 2, 3), int)}, "'sound'.*type int64.*float"),
    ({"words": np.zeros((3, 4))}, "'words'.*type float64.*integers"),
    ({"words": np.full((3, 4), 5)}, "'words'.*integers below 5"),
    ({"words": np.full((3, 4), -1)}, "'words'.*integers below 5"),
    ({"sound": np.full((3, 2, 3), np.nan)}, r"'sound'.*numbers in \[0, 1\]"),
    ({"sound": np.full((3, 2, 3), 255.0)}, r"'sound'.*numbers in \[0, 1\]"),
    ({"sound": np.zeros((5, 2, 3))}, "sound 5, words 3"),
    ({"num": 4}, "the 4 wanted: sound 3, words 3"),
    ({"sound": np.array([None, {}])}, "cannot be read.*savez"),
  ],
)
def test_refuses_what_the_model_cannot_see(tmp_path, changes, words):
  with pytest.raises(UserError, match=words) as caught:
    read(tmp_path, **changes)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04cut"])
def test_refuses_files_that_are_no_npz(tmp_path, content):
  path = tmp_path / "given.npz"
  path.write_bytes(content)
  with pytest.raises(UserError, match="cannot be read"):
    sample.read_given(str(path), [SOUND], None)


def test_refuses_a_single_array(tmp_path):
  np.save(tmp_path / "one.npy", GOOD["sound"])
  with pytest.raises(UserError, match="cannot be read"):
    sample.read_given(str(tmp_path / "one.npy"), [SOUND], None)


def test_names_come_in_the_order_of_the_run():
  known = ("a", "b", "c")
  assert sample.check_names(known, ["c", "a"], []) == (("a", "c"), ("b",))
  assert sample.check_names(known, [], ["c", "b"]) == ((), ("b", "c"))
  assert sample.check_names(known, [], []) == ((), known)
