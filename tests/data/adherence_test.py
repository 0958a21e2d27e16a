import numpy as np
import pytest

from mmdiff_jax.data import adherence, derived


def _step(column=12, size=24):
  """An image that is bright from a column on; its edge is that column and the one before it."""
  image = np.zeros((1, size, size, 1), np.float32)
  image[:, :, column:] = 1.0
  return image


def _lines(*columns, size=24):
  sketch = np.zeros((1, size, size, 1), np.float32)
  sketch[:, :, columns] = 0.6
  return sketch


def test_images_adhere_to_their_own_sketches():
  images = np.random.default_rng(0).random((5, 20, 28, 3), np.float32)
  np.testing.assert_array_equal(adherence.edges(derived.sketch(images), images), np.ones(5))


# The score counts columns of the edge and given columns that are within one column of each other.
@pytest.mark.parametrize("away, score", [(0, 1.0), (1, 1.0), (-1, 1.0), (2, 0.5), (3, 0.0)])
def test_edges_may_be_one_pixel_away(away, score):
  assert adherence.edges(_lines(11 + away, 12 + away), _step()) == pytest.approx([score])
  turned = (x.swapaxes(1, 2) for x in (_lines(11 + away, 12 + away), _step()))
  assert adherence.edges(*turned) == pytest.approx([score])


def test_one_pixel_away_is_along_the_diagonal_too():
  given = _lines()
  given[0, 5, 13] = given[0, 20, 14] = 1.0
  # Of the image's 48 edge pixels, the three next to the first given one count; of the given ones
  # only the first does.
  precision, recall = 3 / 48, 1 / 2
  expected = 2 * precision * recall / (precision + recall)
  assert adherence.edges(given, _step()) == pytest.approx([expected])


def test_score_is_the_harmonic_mean_of_precision_and_recall():
  assert adherence.edges(_lines(11, 12, 20), _step()) == pytest.approx([0.8])  # 1 and 2/3.
  both = np.maximum(_step(6) - _step(14), 0)  # Columns 5, 6, 13 and 14.
  assert adherence.edges(_lines(5, 6), both) == pytest.approx([2 / 3])  # 1/2 and 1.


def test_faint_lines_are_not_edges():
  assert adherence.edges(_lines(11, 12) * 0.5, _step()) == [0.0]


def test_image_without_edges_adheres_only_to_a_sketch_without_edges():
  nothing = np.zeros((1, 24, 24, 1), np.float32)
  given = np.concatenate([nothing, nothing, _lines(11, 12), _lines(11, 12)])
  images = np.concatenate([nothing, _step(), nothing, _step()])
  np.testing.assert_array_equal(adherence.edges(given, images), [1, 0, 0, 1])


def test_overlap_counts_only_the_pixels_of_where():
  given, generated, where = np.zeros((3, 4, 6, 6), bool)
  where[:, :3] = True
  given[0, :, 0:2] = generated[0, :, 1:4] = True  # One column of four.
  generated[1, :, 2] = True
  given[3, 4:] = generated[2, 5] = True  # Outside of `where`.
  generated[3, 0, 0] = given[3, 0, :2] = True
  np.testing.assert_allclose(adherence.overlap(given, generated, where), [1 / 4, 0, 1, 1 / 2])
