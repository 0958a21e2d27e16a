"""How true images are to what was given of them: measures in [0, 1] of each image, in NumPy."""

from jaxtyping import Bool, Float
import numpy as np
from scipy import ndimage

from mmdiff_jax.data import derived

_NEAR = np.ones((1, 3, 3), bool)  # A pixel and its eight neighbours.


def edges(
  given: Float[np.ndarray, "n height width 1"], images: Float[np.ndarray, "n height width channels"]
) -> Float[np.ndarray, " n"]:
  """The F1 score of images' edges against given sketches, at a tolerance of one pixel.

  The edges are where a sketch is above 0.5. Precision is the share of an image's edge pixels that
  have a given one among themselves and their eight neighbours, recall the share of the given ones
  that have one of the image's. Without any edges in both it is 1, in one of them 0.

  Args:
    given: sketches as `derived.sketch` makes them.
    images: 1 or 3 channels in [0, 1].
  """
  wanted, found = given[..., 0] > 0.5, derived.sketch(images)[..., 0] > 0.5
  precision, recall = _near(found, wanted), _near(wanted, found)
  both = precision + recall
  f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
  return np.where(wanted.any((1, 2)) | found.any((1, 2)), f1, 1.0)


def _near(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """Share of our pixels that are next to one of theirs; 0 without any."""
  near = ours & ndimage.binary_dilation(theirs, _NEAR)
  return near.sum((1, 2)) / np.maximum(ours.sum((1, 2)), 1)


def overlap(
  given: Bool[np.ndarray, "n height width"],
  found: Bool[np.ndarray, "n height width"],
  where: Bool[np.ndarray, "n height width"],
) -> Float[np.ndarray, " n"]:
  """Intersection over union of two regions within a third; 1 where both are empty there.

  Args:
    given: the regions wanted.
    found: the regions of the images.
    where: what counts.
  """
  either = ((given | found) & where).sum((1, 2))
  both = (given & found & where).sum((1, 2))
  return np.where(either > 0, both / np.maximum(either, 1), 1.0)
