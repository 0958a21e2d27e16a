import subprocess
import sys

import numpy as np
import pytest
from scipy.io import savemat

from mmdiff_jax.data import sources
from mmdiff_jax.errors import UserError


def _svhn(n=6, **change):
  rng = np.random.default_rng(0)
  content = {
    "X": rng.integers(0, 256, (32, 32, 3, n)).astype(np.uint8),
    "y": (np.arange(n) % 10 + 1)[:, None].astype(np.uint8),
  }
  return {**content, **change}


def test_svhn_of_the_original_layout(tmp_path):
  content = _svhn(12)
  (tmp_path / "svhn").mkdir()
  savemat(tmp_path / "svhn" / "test_32x32.mat", content)
  items, labels = sources.svhn("test", manual_dir=str(tmp_path))
  np.testing.assert_array_equal(labels, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2])
  assert items.dtype == np.uint8 and items.flags["C_CONTIGUOUS"]
  np.testing.assert_array_equal(items[3], content["X"][..., 3])


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "6 labels"),
    ({"X": np.zeros((32, 32, 3, 6))}, "float64"),
    ({"y": np.zeros((6, 1))}, "labels other than 1 to 10"),
  ],
)
def test_svhn_file_that_is_another_one_is_refused(tmp_path, change, complaint):
  savemat(tmp_path / "a.mat", _svhn(**change))
  with pytest.raises(UserError, match=complaint):
    sources.svhn_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("content", [b"", b"no matlab file at all" * 20])
def test_file_that_is_no_mat_file_is_refused(tmp_path, content):
  (tmp_path / "a.mat").write_bytes(content)
  with pytest.raises(UserError, match="a.mat cannot be read"):
    sources.svhn_mat(tmp_path / "a.mat")
  savemat(tmp_path / "b.mat", {"X": np.zeros(3)})
  with pytest.raises(UserError, match="b.mat cannot be read"):
    sources.svhn_mat(tmp_path / "b.mat")


def _pens(folder, split, lines):
  (folder / "pendigits").mkdir(exist_ok=True)
  (folder / "pendigits" / f"pendigits.{split}").write_text(lines)


def test_pen_digits_are_points_in_order(tmp_path):
  _pens(tmp_path, "tra", " 0,100, " + ", ".join(map(str, range(14))) + ", 7\n")
  points, labels = sources.pendigits("train", manual_dir=str(tmp_path))
  assert points.shape == (1, 8, 2) and points.dtype == np.uint8
  np.testing.assert_array_equal(points[0, :3], [[0, 100], [0, 1], [2, 3]])
  np.testing.assert_array_equal(labels, [7])


@pytest.mark.parametrize(
  "lines, complaint",
  [
    ("1, 2, 3\n", "16 coordinates"),
    (", ".join(["101"] * 16) + ", 3\n", "from 0 to 100"),
    (", ".join(["10"] * 16) + ", 12\n", "digits other than 0 to 9"),
    ("x, y\n", "cannot be read as rows"),
  ],
)
def test_wrong_pen_digits_are_refused(tmp_path, lines, complaint):
  _pens(tmp_path, "tes", lines)
  with pytest.raises(UserError, match=complaint):
    sources.pendigits("test", manual_dir=str(tmp_path))


def test_missing_pen_digits_are_asked_for(tmp_path):
  with pytest.raises(UserError, match=rf"{tmp_path}.*pendigits.tra.*archive.ics.uci.edu"):
    sources.pendigits("train", data_dir=str(tmp_path))


def test_recordings_are_split_by_number_within_speaker_and_digit():
  names = [f"{d}_{who}_{i}.wav" for i in range(50) for who in ("ann", "bob") for d in range(10)]
  train, test = sources.split_recordings(names)
  assert len(train) == 900 and len(test) == 100
  assert sorted(np.concatenate([train, test])) == list(range(1000))
  assert {names[i].split("_")[2] for i in test} == {f"{i}.wav" for i in range(5)}
  assert len({tuple(names[i].split("_")[:2]) for i in test}) == 20


def test_clip_is_scaled_and_padded_or_cut():
  wave = np.array([0, 100, -200, 50])
  np.testing.assert_array_equal(
    sources.fit_clip(wave, 6), np.round(np.array([0, 0.5, -1, 0.25, 0, 0]) * 32767)
  )
  np.testing.assert_array_equal(sources.fit_clip(wave, 2), [0, 32767])
  np.testing.assert_array_equal(sources.fit_clip(np.zeros(3, int), 4), np.zeros(4))
  assert sources.fit_clip(np.array([-32768, 32767]), 2).min() == -32767


def test_set_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
  def offline(*args):
    raise OSError("no such host")

  monkeypatch.setattr(sources.socket, "getaddrinfo", offline)
  for read, name in ((sources.mnist, "mnist"), (sources.svhn, "svhn_cropped")):
    with pytest.raises(UserError) as raised:
      read("train", str(tmp_path))
    said = str(raised.value)
    assert f"tfds build {name} --file_format=array_record" in said and str(tmp_path) in said
    assert "no such host" in said
  assert "train_32x32.mat" in said and str(tmp_path / "downloads" / "manual" / "svhn") in said


def test_speech_without_tensorflow_says_so(monkeypatch):
  monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install tensorflow-cpu"):
    sources.spoken_digit("train", 100)


# ---------------------------------------------------------------------------- real data


def test_mnist_as_it_is(prepared):
  items, labels = sources.mnist("test", prepared)
  assert items.shape == (10_000, 28, 28, 1) and items.dtype == np.uint8 and items.max() == 255
  np.testing.assert_array_equal(
    np.bincount(labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  )


def test_mnist_does_not_need_tensorflow(prepared):
  program = (
    "import sys\nfrom mmdiff_jax.data import sources\n"
    f"sources.mnist('test', {prepared!r})\nassert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_subset_of_svhn_as_it_is(brought):
  items, labels = sources.svhn_mat(brought / "svhn_subset" / "train_32x32_first1083.mat")
  assert items.shape == (1083, 32, 32, 3) and set(labels) == set(range(10))
  assert 90 < items.mean() < 130


def test_pen_digits_as_they_are(brought):
  for split, size in (("train", 7494), ("test", 3498)):
    points, labels = sources.pendigits(split, manual_dir=str(brought))
    assert points.shape == (size, 8, 2)
    assert np.bincount(labels).min() > 300
    # A seven starts at the top left; y points upwards.
    start = points[labels == 7][:, 0].mean(0)
    assert start[0] < 30 and start[1] > 70
