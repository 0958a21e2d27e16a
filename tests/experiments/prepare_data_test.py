import functools
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from scipy.io import wavfile

from configs import mld
from experiments import prepare_data
from mmdiff_jax.data import datasets, digits_builder, rendering
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, Modality, vector_picture

FILES = {"digit.png", "scene.png", "tone.png", "tone.wav", "caption.txt", "label.txt", "mask.png"}
FILES |= {"report.txt"}


@pytest.fixture
def few(monkeypatch):
  """`digits` with one draw of each digit image."""
  drawn = digits_builder.Drawn(train=1, test=1)
  monkeypatch.setattr(
    digits_builder, "Digits", functools.partial(digits_builder.Digits, config=drawn)
  )


def run(command, folder, *arguments):
  folder.mkdir(exist_ok=True)
  return command(
    prepare_data, "--dataset=digits", f"--data_dir={folder}", f"--out={folder / 'out'}", *arguments
  )


def state(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_prepares_prints_and_draws_only_once(command, few, tmp_path):
  ended = run(command, tmp_path)
  assert ended.code == 0, ended.err
  for words in (
    "Preparing digits in",
    "digits, train: 1,437 examples, checked",
    "digits, test: 360 examples, checked",
    "scene     image  16 x 16 x 3  float32",
    "Wrote the contact sheets",
  ):
    assert words in ended.out
  out = tmp_path / "out"
  assert {path.name for path in out.iterdir()} == FILES
  first = datasets.load("digits", "train", str(tmp_path))
  assert (out / "caption.txt").read_text().splitlines() == [
    rendering.text_of(x) for x in first["caption"][:64]
  ]
  assert (out / "label.txt").read_text().split() == [str(x) for x in first["label"][:64]]
  rate, sound = wavfile.read(out / "tone.wav")
  assert (rate, len(sound)) == (8000, 16 * (rendering.TONE.samples + 800))
  # The second example on the sheet is the second example.
  zoom, size = 4, rendering.SIZE
  sheet = np.asarray(Image.open(out / "scene.png"))[::zoom, ::zoom]
  tile = sheet[1 : 1 + size, size + 2 : 2 * size + 2]
  np.testing.assert_array_equal(tile, image_picture(first["scene"][1]))
  before = state(tmp_path)
  again = run(command, tmp_path)
  assert again.code == 0 and state(tmp_path) == before
  assert "Everything was prepared before" in again.out and "Preparing" not in again.out
  assert "digits, test: 360 examples, checked" in again.out


def test_damaged_file_is_named(command, few, tmp_path, refused):
  assert run(command, tmp_path).code == 0
  (path,) = tmp_path.rglob("*test.array_record*")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  refused(run(command, tmp_path), str(path), "truncated or was altered", "Delete")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--dataset=digit",), ("'digit'", "digits", "spoken_mnist")),
    (("--dataset=datasets",), ("'datasets'", "digits", "spoken_mnist")),
    (("--data_dir=nowhere",), ("nowhere", "does not exist")),
    (("--manual_dir=nowhere",), ("nowhere", "does not exist")),
    (("more",), ("'more'",)),
  ],
)
def test_bad_arguments(command, tmp_path, refused, arguments, words):
  refused(run(command, tmp_path, *arguments), *words)
  assert not list(tmp_path.iterdir())


def test_folder_with_other_files_is_not_changed(command, few, tmp_path, refused):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "thesis.txt").write_text("Mine.")
  refused(run(command, tmp_path), "other files in", "--out")
  assert not (tmp_path / "digits").exists()
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_report_of_another_data_set_is_not_changed(command, few, tmp_path, refused):
  (tmp_path / "out").mkdir()
  report = tmp_path / "out" / "report.txt"
  report.write_text("My report on digits.")
  refused(run(command, tmp_path), "other files in", "--out")
  assert report.read_text() == "My report on digits."


def test_other_sheets_are_drawn_again_and_other_files_are_kept(command, few, tmp_path, refused):
  assert run(command, tmp_path).code == 0
  out = tmp_path / "out"
  report = (out / "report.txt").read_text()
  (out / "report.txt").write_text(report.replace("1,437", "1,436"))
  (out / "digit.png").write_bytes(b"old")
  again = run(command, tmp_path)
  assert again.code == 0 and "Wrote the contact sheets" in again.out
  assert (out / "report.txt").read_text() == report and Image.open(out / "digit.png").size[0] > 64
  (out / "scene.png").unlink()
  assert "Wrote the contact sheets" in run(command, tmp_path).out
  assert {path.name for path in out.iterdir()} == FILES
  (out / "thesis.txt").write_text("Mine.")
  refused(run(command, tmp_path), "other files in", "--out")
  assert (out / "thesis.txt").read_text() == "Mine."


def _photos(root, count=40):
  rng = np.random.default_rng(0)
  for i in range(count):
    for name, kind in (("image", "png"), ("caption", "txt")):
      (root / name).mkdir(parents=True, exist_ok=True)
      path = root / name / f"{i}.{kind}"
      if kind == "txt":
        path.write_text("a photo")
      else:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
  return root


def test_presets_are_prepared_with_their_options(command, tmp_path):
  root = _photos(tmp_path / "photos")
  (tmp_path / "data").mkdir()
  ended = command(
    prepare_data,
    "--dataset=folder",
    f"--data_dir={tmp_path / 'data'}",
    f"--manual_dir={root}",
    f"--out={tmp_path / 'out'}",
  )
  assert ended.code == 0, ended.err
  assert "image     image  64 x 64 x 3" in ended.out and "Warning" not in ended.out
  assert {path.name for path in (tmp_path / "out").iterdir()} == {
    "image.png",
    "caption.txt",
    "report.txt",
  }


def test_every_preset_has_modalities_and_other_names_are_data_sets():
  for name in mld._PRESETS:
    assert datasets.modalities(**prepare_data.options(name))
  assert prepare_data.options("digits_long")["name"] == "digits"
  assert prepare_data.options("other") == {"name": "other"}


PAGE = Modality("page", "image", (2, 2, 1), image_picture)
NUMBER = Modality("number", "label", (), str, num_classes=3)


def arrays(pages=5, numbers=5):
  return {"page": np.zeros((pages, 2, 2, 1), np.float32), "number": np.zeros(numbers, np.int32)}


@pytest.mark.parametrize("sizes", [(0, 0), (5, 0), (5, 4)])
def test_empty_split_is_refused(sizes):
  with pytest.raises(UserError, match=f"'test'.*'toy'.*{sizes[0]}.*{sizes[1]}"):
    prepare_data.check("toy", "test", (PAGE, NUMBER), arrays(*sizes))


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"page": None}, "has no page"),
    ({"page": np.zeros((5, 2, 3, 1), np.float32)}, r"'page'.* of shape \(2, 3, 1\)"),
    ({"page": np.zeros((5, 2, 2, 1))}, "'page'.*float64.*float32"),
    ({"page": np.full((5, 2, 2, 1), 1.5, np.float32)}, "'page'.*to 1.5; .*from 0 to 1"),
    ({"page": np.full((5, 2, 2, 1), np.nan, np.float32)}, "'page'.*nan"),
    ({"number": np.full(5, 3, np.int32)}, "'number'.* to 3; .*from 0 to 2"),
  ],
)
def test_split_with_invalid_values_is_refused(change, complaint):
  values = {name: rows for name, rows in {**arrays(), **change}.items() if rows is not None}
  with pytest.raises(UserError, match=complaint):
    prepare_data.check("toy", "test", (PAGE, NUMBER), values)


def test_vectors_may_have_any_finite_values_and_are_drawn(tmp_path):
  vector = Modality("vector", "vector", (3,), vector_picture)
  rows = np.array([[-40.0, 0.0, 7.0], [0.5, 1.0, -1.0]], np.float32)
  report = prepare_data.check("toy", "test", (vector,), {"vector": rows})
  prepare_data.write(tmp_path / "sheets", (vector,), report.first, "All.\n")
  assert Image.open(tmp_path / "sheets" / "vector.png").size[0] > 64
  for value in (np.inf, -np.inf, np.nan):
    with pytest.raises(UserError, match="'vector'.*finite"):
      prepare_data.check("toy", "test", (vector,), {"vector": np.full((2, 3), value, np.float32)})


def test_tests_that_are_in_training_are_reported():
  train, test = arrays(), arrays()
  train["page"] = np.random.default_rng(0).random((5, 2, 2, 1))
  test["page"] = train["page"][[1, 3, 4]] + np.array([0, 1, 0])[:, None, None, None]
  warning = prepare_data.in_both((PAGE, NUMBER), train, test)
  assert warning.startswith("Warning: 2 of 3 test examples of 'page'") and "[0, 2]" in warning
  assert warning.count("Warning") == 1
  # Missing examples are zeros in both splits.
  test["page"] = train["page"] = np.zeros((5, 2, 2, 1))
  test["page_present"] = np.zeros(5, bool)
  assert not prepare_data.in_both((PAGE, NUMBER), train, test)


def test_few_examples_are_enough(tmp_path):
  report = prepare_data.check("toy", "test", (PAGE, NUMBER), arrays())
  assert report.number == 5
  prepare_data.write(tmp_path / "sheets", (PAGE, NUMBER), report.first, "All.\n")
  assert (tmp_path / "sheets" / "number.txt").read_text() == "0\n" * 5
  assert Image.open(tmp_path / "sheets" / "page.png").size[0] > 5 * 64


def test_missing_modalities_are_not_drawn(tmp_path):
  sound = Modality("sound", "audio", (2, 2), lambda x: np.full(100, x[0, 0]), sample_rate=1000)
  values = arrays() | {"page": np.ones((5, 2, 2, 1), np.float32)}
  values["sound"] = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 2, 2)
  present = np.array([True, False, False, True, False])
  values |= {"page_present": present, "number_present": present, "sound_present": present}
  report = prepare_data.check("toy", "train", (PAGE, NUMBER, sound), values)
  prepare_data.write(tmp_path, (PAGE, NUMBER, sound), report.first, "All.\n")
  assert (tmp_path / "number.txt").read_text() == "0\n\n\n0\n\n"
  sheet = np.asarray(Image.open(tmp_path / "page.png"))[::32, ::32, 0]
  np.testing.assert_array_equal(sheet[1, 1:15:3] > 0, present)
  _, wave = wavfile.read(tmp_path / "sound.wav")
  levels = np.round(values["sound"][present, 0, 0] * 32767)
  np.testing.assert_array_equal(wave[[50, 250]], levels)
  assert len(wave) == 400


def test_failed_sheet_leaves_nothing(tmp_path):
  def fail(x):
    raise OSError("No space left on device")

  broken = (PAGE, Modality("number", "label", (), fail, num_classes=3))
  with pytest.raises(UserError, match=r"cannot be written.*sheets.*No space left.*--out"):
    prepare_data.write(tmp_path / "sheets", broken, arrays(), "")
  assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, pathlib
import numpy as np
from experiments import prepare_data
from mmdiff_jax.modalities import image_picture, Modality
def kill(x): os.kill(os.getpid(), signal.SIGKILL)
page = Modality("page", "image", (2, 2, 1), image_picture)
number = Modality("number", "label", (), kill, num_classes=3)
first = {"page": np.zeros((5, 2, 2, 1), np.float32), "number": np.zeros(5, np.int32)}
prepare_data.write(pathlib.Path(sys.argv[1]), (page, number), first, "")
"""


def test_killed_sheets_leave_nothing(tmp_path):
  out = tmp_path / "sheets"
  root = pathlib.Path(__file__).parents[2]
  environment = {**os.environ, "PYTHONPATH": str(root)}
  ended = subprocess.run([sys.executable, "-c", KILLED, out], env=environment, timeout=120)
  assert ended.returncode < 0 and not out.exists()
  prepare_data.write(out, (PAGE, NUMBER), arrays(), "All.\n")
  assert {path.name for path in out.iterdir()} == {"page.png", "number.txt", "report.txt"}
