import functools
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from scipy.io import wavfile

from experiments import prepare_data
from mmdiff_jax.data import datasets, digits, rendering
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, Modality

FILES = {"digit.png", "scene.png", "tone.png", "tone.wav", "caption.txt", "label.txt", "report.txt"}


@pytest.fixture
def few(monkeypatch):
  """`digits` with one draw of each handwriting."""
  drawn = digits.Drawn(train=1, test=1)
  monkeypatch.setattr(digits, "Digits", functools.partial(digits.Digits, config=drawn))


def run(command, folder, *arguments):
  folder.mkdir(exist_ok=True)
  return command(
    prepare_data, "--dataset=digits", f"--data_dir={folder}", f"--out={folder / 'out'}", *arguments
  )


def state(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_prepares_prints_draws_and_does_nothing_the_second_time(command, few, tmp_path):
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
  assert "All was prepared before" in again.out and "Preparing" not in again.out
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
    (("--data_dir=nowhere",), ("nowhere", "does not exist")),
    (("--manual_dir=nowhere",), ("nowhere", "does not exist")),
    (("more",), ("'more'",)),
  ],
)
def test_bad_arguments(command, tmp_path, refused, arguments, words):
  refused(run(command, tmp_path, *arguments), *words)
  assert not list(tmp_path.iterdir())


def test_foreign_folder_is_left_alone(command, few, tmp_path, refused):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "thesis.txt").write_text("Mine.")
  refused(run(command, tmp_path), "other files in", "--out")
  assert not (tmp_path / "digits").exists()
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


PAGE = Modality("page", "image", (2, 2, 1), image_picture)
NUMBER = Modality("number", "label", (), str, num_classes=3)


def arrays(pages=5, numbers=5):
  return {"page": np.zeros((pages, 2, 2, 1), np.float32), "number": np.zeros(numbers, np.int32)}


@pytest.mark.parametrize("sizes", [(0, 0), (5, 0), (5, 4)])
def test_empty_split_is_refused(sizes):
  with pytest.raises(UserError, match=f"'test'.*'toy'.*{sizes[0]}.*{sizes[1]}"):
    prepare_data.check("toy", "test", (PAGE, NUMBER), arrays(*sizes))


def test_few_examples_will_do(tmp_path):
  found = prepare_data.check("toy", "test", (PAGE, NUMBER), arrays())
  assert found.number == 5
  prepare_data.write(tmp_path / "sheets", (PAGE, NUMBER), found.first, "All.\n")
  assert (tmp_path / "sheets" / "number.txt").read_text() == "0\n" * 5
  assert Image.open(tmp_path / "sheets" / "page.png").size[0] > 5 * 64


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


def test_killed_sheets_are_not_taken_for_whole(tmp_path):
  out = tmp_path / "sheets"
  root = pathlib.Path(__file__).parents[2]
  environment = {**os.environ, "PYTHONPATH": str(root)}
  ended = subprocess.run([sys.executable, "-c", KILLED, out], env=environment, timeout=120)
  assert ended.returncode < 0 and not out.exists()
  prepare_data.write(out, (PAGE, NUMBER), arrays(), "All.\n")
  assert {path.name for path in out.iterdir()} == {"page.png", "number.txt", "report.txt"}
