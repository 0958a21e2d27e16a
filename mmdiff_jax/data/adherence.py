"""Measures of the adherence of images to what was given, in [0, 1] for each image, in NumPy."""

from jaxtyping import Bool, Float
import numpy as np
from scipy import ndimage

from mmdiff_jax.data import derived

_NEAR = np.ones((1, 3, 3), bool)  # A pixel and its eight neighbours.


def edges(
  given: Float[np.ndarray, "n height width 1"], images: Float[np.ndarray, "n height width channels"]
) -> Float[np.ndarray, " n"]:
  """Returns the F1 score of images' edges against given sketches, with a tolerance of one pixel.

  The edges are the pixels at which a sketch is above 0.5. Precision is the fraction of an image's
  edge pixels that have a given edge pixel among themselves and their eight neighbours, recall the
  fraction of the given ones that have one of the image's. If neither has any edges the score is 1,
  if only one of them has none it is 0.

  Args:
    given: sketches as `derived.sketch` makes them.
    images: 1 or 3 channels in [0, 1].
  """
  target, drawn = given[..., 0] > 0.5, derived.sketch(images)[..., 0] > 0.5
  precision, recall = _near(drawn, target), _near(target, drawn)
  both = precision + recall
  f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
  return np.where(target.any((1, 2)) | drawn.any((1, 2)), f1, 1.0)


def _near(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """Returns the fraction of our pixels that are at or next to one of theirs; 0 without any."""
  near = ours & ndimage.binary_dilation(theirs, _NEAR)
  return near.sum((1, 2)) / np.maximum(ours.sum((1, 2)), 1)


def overlap(
  given: Bool[np.ndarray, "n height width"],
  generated: Bool[np.ndarray, "n height width"],
  where: Bool[np.ndarray, "n height width"],
) -> Float[np.ndarray, " n"]:
  """Returns the intersection over union of two regions within a third; 1 if both are empty there.

  Args:
    given: the regions that were given.
    generated: the regions of the generated images.
    where: the pixels that count.
  """
  either = ((given | generated) & where).sum((1, 2))
  both = (given & generated & where).sum((1, 2))
  return np.where(either > 0, both / np.maximum(either, 1), 1.0)
