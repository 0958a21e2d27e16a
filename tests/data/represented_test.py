import numpy as np
import pytest

from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError

SIZE = 5


@pytest.fixture
def arrays(handwriting):
  """Representations of the digits in place of MNIST, whose last component never varies."""
  rng = np.random.default_rng(0)
  scale = np.array([10.0, 0.01, 1.0, 300.0, 0.0])
  number = {split: len(source.labels) for split, source in handwriting.items()}
  return {
    split: rng.normal(0.1, 1.0, (n, SIZE)) * scale + scale + 0.1 for split, n in number.items()
  }


def load(path, split="train", **options):
  return datasets.load("represented", split, of="mnist", file=str(path), **{"size": SIZE} | options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_representation_is_standardised_only_by_training(arrays, tmp_path, dtype):
  arrays["train"][:, 4], arrays["test"][:3, 4] = 0.1, 7.0
  arrays = {split: rows.astype(dtype) for split, rows in arrays.items()}
  np.savez(tmp_path / "a.npz", **arrays)
  exact = {split: rows.astype(np.float64) for split, rows in arrays.items()}
  mean, std = exact["train"].mean(0), exact["train"].std(0)
  for split in ("train", "test"):
    values = load(tmp_path / "a.npz", split)["representation"]
    assert values.dtype == np.float32 and values.shape == arrays[split].shape
    expected = (exact[split] - mean)[:, :4] / std[:4]
    np.testing.assert_allclose(values[:, :4], expected, atol=2e-5)
    # It is 0 even if it varies in the test split, which no network has seen in training.
    np.testing.assert_array_equal(values[:, 4], 0.0)
  train = load(tmp_path / "a.npz")["representation"][:, :4]
  np.testing.assert_allclose(train.mean(0), 0.0, atol=1e-4)
  np.testing.assert_allclose(train.std(0), 1.0, rtol=1e-4)


def test_all_other_modalities_are_from_the_other_data_set(arrays, tmp_path, monkeypatch):
  np.savez(tmp_path / "a.npz", **arrays)
  monkeypatch.setenv("HOME", str(tmp_path))
  data = load("~/a.npz", "test")
  other = datasets.load("mnist", "test")
  for name in other:
    np.testing.assert_array_equal(data[name], other[name])
  modalities = datasets.modalities("represented", of="mnist", file="~/a.npz", size=SIZE)
  assert modalities[:-1] == datasets.modalities("mnist")
  (last,) = modalities[-1:]
  assert (last.name, last.kind, last.shape) == ("representation", "vector", (SIZE,))
  assert tuple(data) == tuple(m.name for m in modalities)


@pytest.mark.parametrize(
  "change, complaint",
  [
    (lambda x: {"train": x[:-1]}, r"'train' of .*a.npz has 898 rows.*'mnist' has 899"),
    (lambda x: {"train": x[:, :4]}, "a representation of the wrong size: config.data.size is 5"),
    (lambda x: {"train": x[0]}, r"'train' of .*shape \(5,\)"),
    (lambda x: {"train": x.astype(int)}, "'train' of .*a.npz is int64.*float32"),
    (lambda x: {"train": x.astype(object)}, "a.npz cannot be read.*pickle"),
    (lambda x: {"train": np.where(x == x[3, 2], np.nan, x)}, "'train' of .*a.npz .*finite"),
    (lambda x: {"train": np.where(x == x[3, 2], np.inf, x)}, "'train' of .*a.npz .*finite"),
    (lambda x: {"train": np.where(x == x[3, 2], 1e300, x)}, "'train' of .*a.npz .*finite"),
    (lambda x: {"train": None}, "a.npz has no array 'train', only: test"),
  ],
)
def test_file_with_invalid_contents_is_refused(arrays, tmp_path, change, complaint):
  arrays |= change(arrays["train"])
  np.savez(tmp_path / "a.npz", **{name: x for name, x in arrays.items() if x is not None})
  with pytest.raises(UserError, match=complaint):
    load(tmp_path / "a.npz")


def test_test_split_is_checked_like_training(arrays, tmp_path):
  np.savez(tmp_path / "a.npz", train=arrays["train"], test=arrays["train"])
  with pytest.raises(UserError, match="'test' of .*a.npz has 899 rows.*898 examples"):
    load(tmp_path / "a.npz", "test")


def test_missing_and_damaged_files_are_named(arrays, tmp_path):
  with pytest.raises(
    UserError, match="a.npz cannot be read: it does not exist, or is not an NPZ file"
  ):
    load(tmp_path / "a.npz")
  np.savez(tmp_path / "a.npz", **arrays)
  intact = (tmp_path / "a.npz").read_bytes()
  for content in (intact[:-30], b"no zip", intact[:5000] + b"\0\1\2" + intact[5003:]):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="a.npz cannot be read"):
      load(tmp_path / "a.npz")


def test_feature_that_is_almost_never_on_is_clipped(arrays, tmp_path):
  arrays["train"][:, 1] = 0.0
  arrays["train"][7, 1] = 4.0
  np.savez(tmp_path / "a.npz", **arrays)
  values = load(tmp_path / "a.npz")["representation"]
  assert values[7, 1] == 5.0
  assert np.abs(values).max() == 5.0


def test_missing_file_name_is_refused():
  with pytest.raises(UserError, match="config.data.file is not set"):
    datasets.load("represented", "test", of="mnist", file=None, size=SIZE)
