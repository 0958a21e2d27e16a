import numpy as np

from mmdiff_jax.data import mnist


def test_examples_are_the_source_s(handwriting):
  for split in ("train", "test"):
    data = mnist.load(split)
    source = handwriting[split]
    np.testing.assert_array_equal(np.round(data["digit"][:] * 255), source.items)
    np.testing.assert_array_equal(data["label"], source.labels)
    for modality in mnist.MODALITIES:
      assert data[modality.name].shape[1:] == modality.shape
    assert data["digit"].dtype == np.float32
    assert data["label"].dtype == np.int32


def test_real_digits_are_as_many_as_published(prepared):
  data = mnist.load("test", prepared)
  assert len(data["label"]) == len(data["digit"]) == 10_000
  assert data["digit"][:16].max() <= 1
