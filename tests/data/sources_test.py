import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy.io import savemat
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import resource

from mmdiff_jax import storage
from mmdiff_jax.data import digits, digits_builder, public, rendering, sources
from mmdiff_jax.errors import UserError


def _svhn(n=6, **change):
  rng = np.random.default_rng(0)
  content = {
    "X": rng.integers(0, 256, (32, 32, 3, n)).astype(np.uint8),
    "y": (np.arange(n) % 10 + 1)[:, None].astype(np.uint8),
  }
  return {**content, **change}


@pytest.fixture
def svhn_file(tmp_path, monkeypatch):
  """A small file at the path of SVHN's test digits, which counts as the original."""
  content = _svhn(12)
  path = tmp_path / "svhn" / "test_32x32.mat"
  path.parent.mkdir()
  savemat(path, content, do_compression=True)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(sources, "_SVHN_FILES", {"test": digest})
  return path, content


def test_svhn_in_its_original_layout(svhn_file, tmp_path):
  _, content = svhn_file
  items, labels = sources.svhn("test", manual_dir=str(tmp_path))
  np.testing.assert_array_equal(labels, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2])
  assert items.dtype == np.uint8 and items.flags["C_CONTIGUOUS"]
  np.testing.assert_array_equal(items[3], content["X"][..., 3])


def _damaged(intact):
  """Yields the bytes of a file cut or altered at several offsets, also at its ends."""
  size = len(intact)
  for keep in (0, 1, 100, size // 2, size - 1):
    yield intact[:keep]
  for i in (0, 4, 130, size // 3, size // 2, size - 70, size - 1):
    yield intact[:i] + bytes([intact[i] ^ 64]) + intact[i + 1 :]


def test_damaged_file_of_svhn_is_refused(svhn_file, tmp_path):
  path, _ = svhn_file
  for content in _damaged(path.read_bytes()):
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is truncated or was altered.*Get it again"):
      sources.svhn("test", manual_dir=str(tmp_path))


def test_truncated_mat_file_is_refused(svhn_file):
  path, _ = svhn_file
  intact = path.read_bytes()
  for keep in range(0, len(intact), 997):
    path.write_bytes(intact[:keep])
    with pytest.raises(UserError, match=str(path)):
      sources.svhn_mat(path)


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "6 labels"),
    ({"X": np.zeros((32, 32, 3, 6))}, "float64"),
    ({"y": np.zeros((6, 1))}, "labels other than 1 to 10"),
  ],
)
def test_svhn_file_with_other_contents_is_refused(tmp_path, change, complaint):
  savemat(tmp_path / "a.mat", _svhn(**change))
  with pytest.raises(UserError, match=complaint):
    sources.svhn_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("content", [b"", b"no matlab file at all" * 20])
def test_file_that_is_not_a_mat_file_is_refused(tmp_path, content):
  (tmp_path / "a.mat").write_bytes(content)
  with pytest.raises(UserError, match="a.mat (cannot be read|is truncated)"):
    sources.svhn_mat(tmp_path / "a.mat")
  savemat(tmp_path / "b.mat", {"X": np.zeros(3)})
  with pytest.raises(UserError, match="b.mat cannot be read"):
    sources.svhn_mat(tmp_path / "b.mat")


def _pens(folder, split, lines):
  (folder / "pendigits").mkdir(exist_ok=True)
  (folder / "pendigits" / f"pendigits.{split}").write_text(lines)


def test_pen_digits_are_points_in_order(tmp_path, monkeypatch):
  monkeypatch.setitem(public.PUBLIC, ("pendigits", "train"), public.PublicSplit(1, None))
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


def test_missing_pen_digits_are_named_with_their_source(tmp_path):
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


def test_error_for_a_missing_set_describes_how_to_get_it(tmp_path, monkeypatch):
  def offline(*args):
    raise OSError("no such host")

  monkeypatch.setattr(public.socket, "getaddrinfo", offline)
  for read, name in ((sources.mnist, "mnist"), (sources.svhn, "svhn_cropped")):
    with pytest.raises(UserError) as raised:
      read("train", str(tmp_path))
    message = str(raised.value)
    assert f"tfds build {name} --file_format=array_record" in message and str(tmp_path) in message
    assert "no such host" in message
  assert "train_32x32.mat" in message and str(tmp_path / "downloads" / "manual" / "svhn") in message


def test_speech_without_tensorflow_is_refused(monkeypatch):
  monkeypatch.setattr(public.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install tensorflow-cpu"):
    sources.spoken_digit("train", 100)


def test_checksum_of_contents_depends_on_all_but_the_order():
  examples = [
    {"image": np.arange(6, dtype=np.uint8).reshape(2, 3), "label": 7, "name": b"a"},
    {"image": np.arange(6, dtype=np.uint8).reshape(2, 3), "label": 6, "name": b"b"},
  ]
  first = public.contents(examples)
  assert public.contents(examples[::-1]) == first
  assert public.contents([{**e, "label": np.int64(e["label"])} for e in examples]) == first
  for change in ({"label": 8}, {"name": b"c"}, {"image": examples[0]["image"].T[::-1].T}):
    assert public.contents([{**examples[0], **change}, examples[1]]) != first
  assert public.contents(examples[:1]) != first
  swapped = [{**a, "label": b["label"]} for a, b in (examples, examples[::-1])]
  assert public.contents(swapped) != first


# ---------------------------------------------------------------------------- prepared files


def _copy(builder, folder):
  """Copies `few_draws` to another folder; returns its builder and its file of the split "test"."""
  shutil.copytree(builder.data_path, folder / builder.data_path.relative_to(builder.data_dir_root))
  config = builder.builder_config
  copy = digits_builder.Digits(data_dir=str(folder), config=config, file_format="array_record")
  return copy, pathlib.Path(copy.info.splits["test"].filepaths[0])


def _stacked(builder):
  parts = list(digits.read(builder, "test"))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_truncated_or_altered_prepared_file_is_named(few_draws, tmp_path):
  builder, path = _copy(few_draws, tmp_path)
  truth, intact = _stacked(builder), path.read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for cut in (0, 1, 1 << 16, len(intact) // 2, len(intact) - (1 << 16), len(intact) - 1):
    path.write_bytes(intact[:cut])
    with pytest.raises(UserError, match=rf"{path}.*truncated.*Delete {path.parent} and"):
      _stacked(builder)
  for i in rng.integers(len(intact), size=40):
    path.write_bytes(intact[:i] + bytes([intact[i] ^ 16]) + intact[i + 1 :])
    try:
      records = _stacked(builder)
    except UserError as error:
      assert str(path) in str(error) and "\n" not in str(error)
      refused += 1
    else:  # The altered byte was in the padding.
      for name, values in truth.items():
        np.testing.assert_array_equal(records[name], values)
  assert refused > 30
  path.unlink()
  with pytest.raises(UserError, match=str(path)):
    _stacked(builder)


def test_prepared_split_with_a_wrong_number_of_examples_is_refused(few_draws):
  with pytest.raises(UserError, match=r"has 360 examples.*'test'.*must be 361.*Delete"):
    next(public.records(few_draws, "test", 361))
  with pytest.raises(UserError, match=r"has 0 examples.*'validation'"):
    next(public.records(few_draws, "validation", 1))


def test_incomplete_copy_is_refused(few_draws, tmp_path):
  builder, path = _copy(few_draws, tmp_path)
  (path.parent / "dataset_info.json").unlink()
  with pytest.raises(
    UserError, match=rf"{path.parent} is not a prepared data set.*dataset_info.json"
  ):
    public.prepare(builder, "")


def test_first_result_of_several_that_prepare_at_once_is_used(tmp_path, monkeypatch, caplog):
  """The second is still preparing when the first is done, the third has not begun."""
  drawn = digits_builder.Drawn(train=1, test=1)
  first, second, third = (
    digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
    for _ in range(3)
  )
  captions = rendering.captions

  def overtaken(*args):
    monkeypatch.setattr(rendering, "captions", captions)
    public.prepare(first, "")
    return captions(*args)

  monkeypatch.setattr(rendering, "captions", overtaken)
  with caplog.at_level(logging.INFO, logger="mmdiff_jax.data"):
    public.prepare(second, "")
  assert "Another process has prepared" in caplog.text
  public.prepare(third, "")
  for builder in (first, second, third):
    assert len(_stacked(builder)["label"]) == 360
  assert [path.name for path in first.data_path.parent.iterdir()] == [first.data_path.name]


@pytest.mark.parametrize("change", [("array_record", "tfrecord"), ('"splits": [', "")])
def test_altered_dataset_info_is_refused(few_draws, tmp_path, change):
  builder, path = _copy(few_draws, tmp_path)
  info = path.with_name("dataset_info.json")
  info.write_text(info.read_text().replace(*change))
  make = functools.partial(digits_builder.Digits, config=builder.builder_config)
  with pytest.raises(UserError, match=rf"{tmp_path}/digits cannot be opened.*Delete"):
    public.open_builder(make, "digits", str(tmp_path))


def test_files_that_are_read_are_logged(few_draws, caplog):
  with caplog.at_level(logging.INFO, logger="mmdiff_jax.data"):
    _stacked(few_draws)
  assert "digits, test: 360 examples" in caplog.text and str(few_draws.data_path) in caplog.text


def test_full_disk_is_reported_and_nothing_is_kept(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(tfds.core.example_serializer.ExampleSerializer, "serialize_example", full)
  drawn = digits_builder.Drawn(train=1, test=1)
  builder = digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
  with pytest.raises(UserError, match=rf"no room in {builder.data_path.parent}.*data_dir"):
    public.prepare(builder, "")
  assert not list(builder.data_path.parent.iterdir())


_SMALL = """
import resource, sys
from mmdiff_jax.data import digits, digits_builder, public
from mmdiff_jax.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
drawn = digits_builder.Drawn(train=1, test=1)
builder = digits_builder.Digits(data_dir=sys.argv[1], config=drawn, file_format="array_record")
try:
  public.prepare(builder, "")
except UserError as error:
  sys.exit(f"UserError: {error}")
"""


@pytest.mark.parametrize("limit", [1000, 300_000, 3_000_000])
def test_files_that_cannot_grow_leave_nothing(tmp_path, limit):
  """As on a full disk: during the shuffle, in the file of the test split, in that of training."""
  program = [sys.executable, "-c", _SMALL, str(tmp_path), str(limit)]
  ended = subprocess.run(program, capture_output=True, text=True, timeout=120)
  assert "UserError: There is no room" in ended.stderr, ended.stderr
  assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("*info.json"))


# ---------------------------------------------------------------------------- real data


def test_real_mnist(prepared):
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


def test_real_subset_of_svhn(manual_folder):
  items, labels = sources.svhn_mat(manual_folder / "svhn_subset" / "train_32x32_first1083.mat")
  assert items.shape == (1083, 32, 32, 3) and set(labels) == set(range(10))
  assert 90 < items.mean() < 130


def test_real_pen_digits(manual_folder):
  for split, size in (("train", 7494), ("test", 3498)):
    points, labels = sources.pendigits(split, manual_dir=str(manual_folder))
    assert points.shape == (size, 8, 2)
    assert np.bincount(labels).min() > 300
    # A seven starts at the top left; y points upwards.
    start = points[labels == 7][:, 0].mean(0)
    assert start[0] < 30 and start[1] > 70


@pytest.fixture
def downloads(manual_folder, tmp_path):
  """Fills the download cache of a data folder with all files of a set, as tfds names them."""

  def fill(name):
    for url, info in tfds.builder_cls(name).url_infos.items():
      # The name under which tfds keeps a download with a registered checksum.
      cached = tmp_path / "downloads" / name / resource.get_dl_fname(url, info.checksum)
      cached.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(manual_folder / "downloads" / info.filename, cached)
      cached.chmod(0o644)
      facts = {"dataset_names": [name], "urls": [url], "original_fname": info.filename}
      cached.with_name(cached.name + ".INFO").write_text(json.dumps(facts))
    return tmp_path

  return fill


@pytest.fixture
def offline(monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError("no such host")

  monkeypatch.setattr(public.socket, "getaddrinfo", refuse)
  monkeypatch.setattr(public.socket.socket, "connect", refuse)


@pytest.mark.slow
@pytest.mark.parametrize("location", ["cache", "manual"])
def test_mnist_is_prepared_without_a_network(manual_folder, downloads, offline, location, tmp_path):
  """Reading checks the checksum of the contents, which is that of the set prepared elsewhere."""
  if location == "cache":
    items, _ = sources.mnist("test", str(downloads("mnist")))
  else:
    items, _ = sources.mnist("test", str(tmp_path), str(manual_folder / "downloads"))
  assert items.shape == (10_000, 28, 28, 1)
  assert sources.mnist("train", str(tmp_path)).items.shape == (60_000, 28, 28, 1)


@pytest.mark.slow
def test_speech_is_prepared_without_a_network(downloads, offline):
  pytest.importorskip("pydub")  # Tfds reads sound files with it.
  assert len(sources.spoken_digit("test", 100, str(downloads("spoken_digit"))).items) == 250


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_download_is_named(manual_folder, offline, tmp_path, damage):
  files = tmp_path / "downloads" / "manual"
  files.mkdir(parents=True)
  for path in (manual_folder / "downloads").glob("*-ubyte.gz"):
    shutil.copyfile(path, files / path.name)
  damaged = files / "train-labels-idx1-ubyte.gz"
  content = bytearray(damaged.read_bytes())
  content[1000] ^= 1
  damaged.write_bytes(content if damage == "altered" else content[:-9])
  with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz.*checksum"):
    sources.mnist("train", str(tmp_path))
  assert not list(tmp_path.rglob("*.array_record*"))


def test_altered_public_set_is_refused(prepared, monkeypatch, tmp_path):
  """The files are intact but have other contents."""
  monkeypatch.setattr(storage, "cache_dir", lambda: tmp_path)
  read = public.records

  def other(*args):
    for chunk in read(*args):
      yield [{**record, "image": record["image"] ^ (record["label"] == 3)} for record in chunk]

  monkeypatch.setattr(public, "records", other)
  with pytest.raises(UserError, match=r"mnist/3.0.1 is not the public 'mnist'.*checksum"):
    sources.mnist("test", prepared)


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_pen_digits_are_refused(manual_folder, tmp_path, damage):
  lines = (manual_folder / "pendigits" / "pendigits.tes").read_text().splitlines(keepends=True)
  if damage == "cut":
    lines = lines[:-1]
  else:
    lines[7] = lines[8]
  _pens(tmp_path, "tes", "".join(lines))
  words = {"cut": "3,497 examples", "altered": "checksum"}[damage]
  with pytest.raises(UserError, match=rf"pendigits.tes is not the public 'pendigits'.*{words}"):
    sources.pendigits("test", manual_dir=str(tmp_path))
