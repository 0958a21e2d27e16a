import jax
import numpy as np
import pytest

from mmdiff_jax.evaluation import classifiers
from mmdiff_jax.modalities import Modality

IMAGE = Modality("image", "image", (8, 8, 1), "gaussian", str)
TEXT = Modality("text", "text", (4,), "categorical", str, num_classes=6)
SOUND = Modality("sound", "audio", (4, 5), "gaussian", str, sample_rate=100)


def examples(modality, size, seed=0):
  """Three classes that a glance tells apart."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, size).astype(np.int32)
  if modality.kind == "text":
    x = rng.integers(0, 6, (size, 4)).astype(np.int32)
    x[:, 1] = labels
    return x, labels
  x = rng.uniform(0, 0.5, (size, *modality.shape)).astype(np.float32)
  for i, c in enumerate(labels):
    x[i, c] += 0.5
  return x, labels


@pytest.mark.parametrize("modality", [IMAGE, TEXT, SOUND], ids=lambda m: m.name)
def test_learns_what_is_easy(modality):
  lines = []
  x, labels = examples(modality, 500)
  found = classifiers.fit(modality, x, labels, jax.random.key(0), num_steps=60, say=lines.append)
  test, truth = examples(modality, 200, seed=1)
  assert classifiers.accuracy({"it": found}, {"it": test}, truth)["it"] > 0.95
  assert "60/60" in lines[-1]
  logits, features = found.apply(found.params, test)
  assert logits.shape == (200, 3)
  assert features.shape == (200, 256)
  assert features.min() >= 0  # After a ReLU.


def test_classifies_in_parts_as_at_once():
  """No dropout, no statistics of the batch: a row's class and features are its own."""
  x, labels = examples(SOUND, 1001)
  found = classifiers.fit(SOUND, x, labels, jax.random.key(0), num_steps=5)
  classes, features = classifiers.classify(found, x)
  logits, at_once = found.apply(found.params, x)
  assert classes.shape == (1001,)
  np.testing.assert_array_equal(classes, np.argmax(logits, -1))
  np.testing.assert_allclose(features, at_once, atol=1e-5)


def no_training(line):
  pytest.fail(f"trained again: {line}")


def get(folder, x, labels, say):
  return classifiers.load_or_fit(SOUND, x, labels, folder, num_steps=5, say=say)


def test_trains_once_for_the_same_data(tmp_path):
  x, labels = examples(SOUND, 300)
  first = get(tmp_path, x, labels, say=lambda line: None)
  second = get(tmp_path, x, labels, say=no_training)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  assert classifiers.classify(second, x)[1].shape == (300, 256)
  assert [path.name for path in tmp_path.iterdir()] == ["sound.npz"]


@pytest.mark.parametrize("change", ["data", "labels", "damage", "not a file of arrays"])
def test_trains_anew_otherwise(tmp_path, change):
  x, labels = examples(SOUND, 300)
  get(tmp_path, x, labels, say=lambda line: None)
  path = tmp_path / "sound.npz"
  if change == "data":
    x = x.copy()
    x[7, 0, 0] += 0.1
  elif change == "labels":
    labels = np.roll(labels, 1)
  elif change == "damage":
    path.write_bytes(path.read_bytes()[:-200])
  else:
    path.write_bytes(b"no zip at all")
  lines = []
  get(tmp_path, x, labels, say=lines.append)
  assert lines
  get(tmp_path, x, labels, say=no_training)


def test_shares_no_layers_with_the_generators():
  """Generators have LayerNorm and SiLU (rsqrt and logistic in their programs)."""
  for modality in (IMAGE, TEXT, SOUND):
    x, labels = examples(modality, 10)
    found = classifiers.fit(modality, x, labels, jax.random.key(0), num_steps=1)
    program = str(jax.make_jaxpr(found.apply)(found.params, x))
    assert "rsqrt" not in program
    assert "logistic" not in program
    assert "max" in program
