import jax
import numpy as np
import pytest

from experiments import represent
from mmdiff_jax import noise
from mmdiff_jax.data import array_files, datasets, digits, represented
from mmdiff_jax.evaluation import classifiers


@pytest.fixture
def quick(small_data, monkeypatch):
  """`digits` of one draw, and a classifier of a few steps; returns the calls that train it."""
  calls = []
  fit = classifiers.fit

  def few(modality, x, labels, key, **options):
    calls.append((modality.name, len(x), key))
    return fit(modality, x, labels, key, num_steps=40, **options)

  monkeypatch.setattr(classifiers, "fit", few)
  monkeypatch.setattr(datasets, "load", lambda name, split, *folders: small_data[split])
  return calls


def run(command, out, *arguments):
  return command(represent, "--dataset=digits", "--modality=digit", f"--out={out}", *arguments)


def test_writes_features_of_both_splits_reproducibly(command, quick, small_data, tmp_path):
  ended = run(command, tmp_path / "a.npz")
  assert ended.code == 0, ended.err
  for words in ("classifier of digit: 40/40", " s left", "% of the tests", f"{tmp_path / 'a.npz'}"):
    assert words in ended.out
  first = (tmp_path / "a.npz").read_bytes()
  (name, examples, key) = quick[0]
  assert (name, examples) == ("digit", 1437)
  judge = noise.modality_key(jax.random.key(classifiers._SEED), "digit")
  assert not (jax.random.key_data(key) == jax.random.key_data(judge)).all()
  with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
    features = dict(file)
  assert [features[split].shape for split in ("train", "test")] == [(1437, 256), (360, 256)]
  # Features are in the order of the rows: close features have the same class.
  labels = {split: small_data[split]["label"] for split in features}
  means = [features["train"][labels["train"] == c].mean(0, np.float32) for c in range(10)]
  distance = np.linalg.norm(features["test"][:, None].astype(np.float32) - means, axis=-1)
  assert np.mean(distance.argmin(1) == labels["test"]) > 0.7
  assert run(command, tmp_path / "b.npz").code == 0
  assert (tmp_path / "b.npz").read_bytes() == first
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_data_set_reads_the_written_file(quick, small_data, tmp_path):
  (modality, *_) = digits.MODALITIES
  array_files.write_npz(tmp_path / "a.npz", **represent.represent(modality, small_data))
  data = represented.load("test", of="digits", file=str(tmp_path / "a.npz"), size=256)
  assert data["representation"].shape == (360, 256)
  assert 0.5 < data["representation"].std() < 1.5


@pytest.mark.parametrize(
  "arguments, words",
  [
    (("--modality=page",), ("'page'", "digit, scene, tone")),
    (("--dataset=digit",), ("'digit'", "data sets are")),
    (("--dataset=folder",), ("'folder'", "columns")),
    (("--out=nowhere/a.npz",), ("nowhere", "--out")),
  ],
)
def test_bad_arguments(command, quick, tmp_path, refused, arguments, words):
  refused(run(command, tmp_path / "a.npz", *arguments), *words)
  assert not quick and not list(tmp_path.iterdir())
