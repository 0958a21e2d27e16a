import jax
import numpy as np
import pytest

from mmdiff_jax.data import pairing
from mmdiff_jax.evaluation import classifiers
from mmdiff_jax.modalities import Modality

IMAGE = Modality("image", "image", (8, 8, 1), str)
TEXT = Modality("text", "text", (4,), str, num_classes=6)
SOUND = Modality("sound", "audio", (4, 5), str, sample_rate=100)
VIDEO = Modality("video", "video", (2, 8, 8, 1), str)
# A horizontal bar, a vertical bar and a block.
FIGURES = np.zeros((3, 3, 3, 1), np.float32)
FIGURES[0, 1], FIGURES[1, :, 1], FIGURES[2] = 1, 1, 1


def examples(modality, size, seed=0):
  """Returns examples of three classes that are easy to distinguish."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, size).astype(np.int32)
  if modality.kind == "text":
    x = rng.integers(0, 6, (size, 4)).astype(np.int32)
    x[:, 1] = labels
    return x, labels
  x = rng.uniform(0, 0.5, (size, *modality.shape)).astype(np.float32)
  if modality.kind == "video":
    # At a random position, which differs from frame to frame.
    x *= 0.2
    for i, frame in np.ndindex(size, 2):
      row, column = rng.integers(0, 6, 2)
      x[i, frame, row : row + 3, column : column + 3] += 0.9 * FIGURES[labels[i]]
    return x, labels
  for i, c in enumerate(labels):
    x[i, c] += 0.5
  return x, labels


@pytest.mark.parametrize(
  ("modality", "steps"),
  [(IMAGE, 40), (TEXT, 40), (SOUND, 40), pytest.param(VIDEO, 70, marks=pytest.mark.slow)],
)
def test_learns_what_is_easy(modality, steps):
  lines, key = [], jax.random.key(0)
  x, labels = examples(modality, 500)
  classifier = classifiers.fit(modality, x, labels, key, num_steps=steps, say=lines.append)
  test, truth = examples(modality, 200, seed=1)
  assert classifiers.accuracy({"it": classifier}, {"it": test}, truth)["it"] > 0.95
  assert f"{steps}/{steps}" in lines[-1]
  logits, features = classifier.apply(classifier.params, test)
  assert logits.shape == (200, 3)
  assert features.shape == (200, 256)
  # It shares no layers with the generators, which have LayerNorm and SiLU: its program contains no
  # reciprocal root and no logistic function.
  program = str(jax.make_jaxpr(classifier.apply)(classifier.params, test))
  assert "rsqrt" not in program
  assert "logistic" not in program


def test_classifying_in_parts_equals_classifying_at_once():
  """There is no dropout and no batch statistics: a row's class and features depend on it alone."""
  x, labels = examples(SOUND, 1001)
  classifier = classifiers.fit(SOUND, x, labels, jax.random.key(0), num_steps=5)
  classes, features = classifiers.classify(classifier, x)
  logits, at_once = classifier.apply(classifier.params, x)
  assert classes.shape == (1001,)
  np.testing.assert_array_equal(classes, np.argmax(logits, -1))
  np.testing.assert_allclose(features, at_once, atol=1e-5)
  expected = jax.nn.softmax(logits, axis=-1)
  np.testing.assert_allclose(classifiers.probabilities(classifier, x), expected, atol=1e-6)


def no_training(line):
  pytest.fail(f"trained again: {line}")


def get(folder, x, labels, say):
  return classifiers.load_or_fit(SOUND, x, labels, folder, num_steps=5, say=say)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("classifiers")
  return folder, get(folder, *examples(SOUND, 300), say=lambda line: None)


def test_trains_once_for_the_same_data(saved):
  folder, first = saved
  x, labels = examples(SOUND, 300)
  second = get(folder, x, labels, say=no_training)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  np.testing.assert_array_equal(
    classifiers.classify(first, x)[1], classifiers.classify(second, x)[1]
  )
  assert [path.name for path in folder.iterdir()] == ["sound.npz"]


def test_column_is_classified_as_the_array_that_it_represents(saved, monkeypatch):
  folder, first = saved
  x, labels = examples(SOUND, 300)
  index = np.arange(300)[::-1].copy()
  column = pairing.Column(index, x[::-1].__getitem__)
  monkeypatch.setattr(classifiers, "_CHUNK", 70)
  get(folder, column, labels, say=no_training)
  for ours, theirs in zip(
    classifiers.classify(first, column), classifiers.classify(first, x), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("change", ["data", "labels", "damage", "not a file of arrays"])
def test_trains_again_otherwise(saved, tmp_path, change):
  x, labels = examples(SOUND, 300)
  content = (saved[0] / "sound.npz").read_bytes()
  if change == "data":
    x[7, 0, 0] += 0.1
  elif change == "labels":
    labels = np.roll(labels, 1)
  elif change == "damage":
    content = content[:-200]
  else:
    content = b"no zip at all"
  (tmp_path / "sound.npz").write_bytes(content)
  lines = []
  get(tmp_path, x, labels, say=lines.append)
  assert lines
  get(tmp_path, x, labels, say=no_training)


def test_labels_are_their_own_classifiers(tmp_path):
  label = Modality("label", "label", (), str, num_classes=5)
  labels = np.array([3, 0, 4, 3], np.int32)
  classifier = classifiers.load_or_fit(label, labels, labels, tmp_path, say=no_training)
  classes, features = classifiers.classify(classifier, labels[::-1])
  np.testing.assert_array_equal(classes, labels[::-1])
  assert features.shape == (4, 0)
  np.testing.assert_array_equal(classifiers.probabilities(classifier, labels), np.eye(5)[labels])
  assert not list(tmp_path.iterdir())
