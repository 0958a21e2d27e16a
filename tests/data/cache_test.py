import multiprocessing

import numpy as np
import pytest

from mmdiff_jax import storage
from mmdiff_jax.data import (
  array_files,
  cache,
  captioned_digits,
  datasets,
  digits,
  progress,
  public,
  sketched_digits,
  sources,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """An empty folder for the cache."""
  monkeypatch.setattr(storage, "cache_dir", lambda: tmp_path / "cache")
  return tmp_path / "cache" / "data"


class Maker:
  """Computes arrays from one seed and counts its calls."""

  def __init__(self, seed=0):
    self.calls, self._rng_seed = 0, seed

  def __call__(self):
    self.calls += 1
    rng = np.random.default_rng(self._rng_seed)
    return {
      "x": rng.normal(size=(5, 3)).astype(np.float32),
      "turned": np.asfortranarray(rng.integers(0, 9, (4, 6))),
      "bytes": rng.integers(0, 256, 7).astype(np.uint8),
      "none": np.zeros((0, 2), bool),
    }


def check_equal(actual, expected):
  assert list(actual) == list(expected)
  for name, x in expected.items():
    y = actual[name]
    assert (x.dtype, x.shape, x.tobytes("A")) == (y.dtype, y.shape, y.tobytes("A")), name


def test_arrays_are_computed_once_and_are_the_same_bit_for_bit(folder):
  make = Maker()
  inputs = [np.arange(6), "train", ("mnist", 3)]
  for _ in range(3):
    check_equal(cache.arrays("name", inputs, make), Maker()())
  assert make.calls == 1
  assert [path.name for path in folder.iterdir()] == ["name.npz"]


@pytest.mark.parametrize(
  "other",
  [
    [np.arange(6)[::-1], "train"],
    [np.arange(6).reshape(2, 3), "train"],
    [np.arange(6, dtype=np.int32), "train"],
    [np.arange(6), "test"],
    [np.arange(6)],
  ],
)
def test_other_inputs_replace_the_file(folder, other):
  cache.arrays("name", [np.arange(6), "train"], Maker())
  check_equal(cache.arrays("name", other, Maker(1)), Maker(1)())
  assert len(list(folder.iterdir())) == 1
  make = Maker()
  cache.arrays("name", [np.arange(6), "train"], make)
  assert make.calls == 1


def test_other_code_or_packages_replace_the_file(monkeypatch):
  cache.arrays("name", [], Maker())
  cache._code.cache_clear()
  cache.arrays("name", [], make := Maker())
  assert make.calls == 0
  cache._code.cache_clear()
  monkeypatch.setattr(cache.metadata, "version", lambda package: "0.0")
  cache.arrays("name", [], make)
  assert make.calls == 1
  cache._code.cache_clear()


def test_damaged_file_is_replaced(folder):
  cache.arrays("name", [], Maker())
  path = folder / "name.npz"
  intact, truth = path.read_bytes(), Maker()()
  for i in range(0, len(intact), 3):
    path.write_bytes(intact[:i] + bytes([intact[i] ^ 1]) + intact[i + 1 :])
    stored = array_files.kept_npz(path)  # None, or the arrays that are not damaged.
    if stored and str(stored.pop("stamp", "")):
      check_equal(stored, {name: truth[name] for name in stored})
  end = intact.rfind(b"PK\x05\x06")  # The record that holds the number of members.
  altered = [intact[:i] + bytes([intact[i] ^ 1]) + intact[i + 1 :] for i in range(end, end + 22)]
  cut = [intact[:keep] for keep in (0, 1, 100, len(intact) // 2, len(intact) - 1)]
  for content in altered + cut:
    path.write_bytes(content)
    make = Maker()
    for _ in range(2):
      check_equal(cache.arrays("name", [], make), truth)
    assert make.calls <= 1


def test_arrays_that_cannot_be_kept_are_computed_each_time(folder, capsys):
  folder.parent.mkdir()
  folder.touch()  # A file in place of the folder.
  make = Maker()
  for _ in range(2):
    check_equal(cache.arrays("name", [], make), Maker()())
  assert make.calls == 2
  assert not any(capsys.readouterr())


def _alternate(cache_dir, first):
  storage.cache_dir = lambda: cache_dir
  for i in range(20):
    seed = (first + i) % 2
    check_equal(cache.arrays("name", [seed], Maker(seed)), Maker(seed)())


def test_processes_do_not_disturb_one_another(tmp_path, folder):
  context = multiprocessing.get_context("spawn")
  processes = [context.Process(target=_alternate, args=(tmp_path / "cache", i)) for i in range(2)]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
    assert process.exitcode == 0
  assert [path.name for path in folder.iterdir()] == ["name.npz"]


def _as_arrays(data):
  return {name: np.asarray(x) for name, x in data.items()}


def test_data_sets_are_drawn_once(handwriting, monkeypatch):
  monkeypatch.setitem(captioned_digits.COUNTS, "test", 20)
  read = {
    "captioned_digits": lambda: captioned_digits.load("test"),
    "sketched_digits": lambda: sketched_digits.load("test"),
  }
  first = {name: _as_arrays(load()) for name, load in read.items()}
  with monkeypatch.context() as patch:
    for module in (captioned_digits, sketched_digits):
      patch.delattr(module, "draw")
    for name, load in read.items():
      check_equal(_as_arrays(load()), first[name])
  # Other digit images are drawn again, even if they are as many.
  items, labels = handwriting["test"]
  handwriting["test"] = sources.Source(items[:, ::-1], labels)
  for name, load in read.items():
    assert not np.array_equal(_as_arrays(load())["digit"], first[name]["digit"])


def test_digits_are_decoded_once(few_draws, monkeypatch):
  first = digits.arrays(few_draws, "test")
  chunks = [digits.model_view(records) for records in digits.read(few_draws, "test")]
  monkeypatch.delattr(digits, "read")
  monkeypatch.setattr(digits, "prepared", lambda _: few_draws)
  check_equal(digits.arrays(few_draws, "test"), first)
  expected = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
  expected["source_digit"] = first["handwriting"]
  expected["source_scene"] = first["scene_handwriting"]
  check_equal(digits.load("test"), expected)


def test_public_sets_are_decoded_once_and_again_when_they_change(tmp_path, monkeypatch):
  folder = tmp_path / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "records").write_bytes(b"1")
  calls = []

  def read_split(name, split, *_):
    calls.append((name, split))
    return [{"image": np.full((2, 2, 1), len(calls), np.uint8), "label": 7}]

  monkeypatch.setattr(public, "read_split", read_split)
  assert [sources.mnist("test", str(tmp_path)).items.max() for _ in range(2)] == [1, 1]
  assert sources.mnist("train", str(tmp_path)).items.max() == 2
  (folder / "records").write_bytes(b"12")
  assert sources.mnist("test", str(tmp_path)).items.max() == 3
  (folder / "records").unlink()
  (folder.parent / "3.0.1").rmdir()
  (folder.parent).rmdir()
  monkeypatch.setattr(public, "prepared", lambda *_: calls.append("prepared"))
  assert sources.mnist("test", str(tmp_path)).items.max() == 5 and calls[3] == "prepared"


def test_reading_prints_the_data_set_and_the_progress(monkeypatch, capsys):
  with pytest.raises(StopIteration):
    monkeypatch.setattr(digits, "load", lambda *_: next(iter(())))
    datasets.load("digits", "test")
  assert capsys.readouterr().out == "Reading the data set digits (test)\n"
  now = iter([0.0, 0.0, 4.0, 8.0, 12.0, 16.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
  assert list(progress.report("Drawing", range(5))) == list(range(5))
  assert capsys.readouterr().out.splitlines() == [
    "Drawing: 40 %, 0:12 left",
    "Drawing: 80 %, 0:04 left",
  ]


def test_no_progress_is_printed_of_quick_tasks(capsys):
  assert list(progress.report("Drawing", [])) == []
  assert list(progress.report("Drawing", "ab")) == ["a", "b"]
  assert not capsys.readouterr().out
