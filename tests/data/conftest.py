import os
import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mmdiff_jax.data import digits_builder, rendering, sources

_REAL = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def few_draws(tmp_path_factory):
  """`digits` with two draws of each training digit image and one of each test digit image."""
  drawn = digits_builder.Drawn(train=2, test=1)
  folder = str(tmp_path_factory.mktemp("prepared"))
  builder = digits_builder.Digits(data_dir=folder, config=drawn, file_format="array_record")
  builder.download_and_prepare()
  return builder


def _folder(path):
  if not path.is_dir():
    pytest.skip(f"no real data: {path} does not exist")
  return path


@pytest.fixture(scope="session")
def prepared():
  """The folder of public sets that tfds has prepared."""
  return str(_folder(pathlib.Path(os.environ.get("TFDS_DATA_DIR", _REAL / "tfds"))).resolve())


@pytest.fixture(scope="session")
def manual_folder():
  """The folder of a user's own files."""
  return _folder(_REAL)


@pytest.fixture
def letter_by_letter():
  """A check that a grammar has all given sentences, and no other that is one edit away."""

  def check(valid, sentences, length, rows=200):
    assert valid(rendering.tokens_of(sentences, length)).all()
    rng = np.random.default_rng(0)
    swapped = {"a": "an", "an": "a"}
    edited = [" ".join(swapped.get(word, word) for word in text.split()) for text in sentences]
    for sentence in rng.choice(sentences, rows):
      i, letter = rng.integers(len(sentence)), str(rng.choice(list(rendering.ALPHABET)))
      start, end = sentence[:i], sentence[i + 1 :]
      edited += [start + letter + end, start + end, (start + letter + sentence[i:])[-length:]]
      first, *rest = sentence.split()
      edited += ["", "e" + sentence[1:], " ".join(rest), " ".join([*rest, first])]
    edited = [text.strip()[:length] for text in edited]
    expected = np.isin(edited, sentences)
    assert expected.any()
    np.testing.assert_array_equal(valid(rendering.tokens_of(edited, length)), expected)

  return check


@pytest.fixture
def handwriting(monkeypatch):
  """Scikit-learn's digits in place of MNIST: they alternate between training and tests."""
  images = np.kron(load_digits().images, np.ones((1, 3, 3)))
  images = np.pad(np.round(images * (255 / 16)), ((0, 0), (2, 2), (2, 2)))[..., None]
  items, labels = images.astype(np.uint8), load_digits().target.astype(np.int32)
  split = {
    name: sources.Source(items[i::2], labels[i::2]) for i, name in enumerate(("train", "test"))
  }
  monkeypatch.setattr(sources, "mnist", lambda name, *_: split[name])
  return split
