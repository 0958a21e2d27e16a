"""How well masks agree with true ones, over a whole set of them at once."""

from jaxtyping import Float, Int
import numpy as np

Masks = Int[np.ndarray, "masks height width"]


def mean_iou(found: Masks, truth: Masks) -> float:
  """Mean over classes of intersection over union.

  Of a class all intersections are added up, and all unions, before one is divided by the other, as
  is usual for segmentation: a class that is rare in a mask is not noise there.

  Args:
    found: [masks, height, width], classes from 0.
    truth: likewise.

  Returns:
    The mean over the classes that are in either, in [0, 1].
  """
  counts = _confusion(found, truth)
  both = np.diag(counts)
  either = counts.sum(0) + counts.sum(1) - both
  return float(np.mean(both[either > 0] / either[either > 0]))


def pixel_accuracy(found: Masks, truth: Masks) -> float:
  """Share of pixels, of all masks, that have the true class; arguments as `mean_iou`."""
  return float(np.mean(np.asarray(found) == np.asarray(truth)))


def _confusion(found: Masks, truth: Masks) -> Float[np.ndarray, "classes classes"]:
  """Pixels of each true class (row) that were found to be of each class (column)."""
  found, truth = (np.asarray(masks).ravel().astype(np.int64) for masks in (found, truth))
  num_classes = 1 + max(found.max(), truth.max())
  pairs = np.bincount(num_classes * truth + found, minlength=num_classes**2)
  return pairs.reshape(num_classes, num_classes).astype(float)
