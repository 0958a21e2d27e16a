"""Modalities that are derived from another one: sketches and partial masks, in NumPy."""

from jaxtyping import Float, Int
import numpy as np
from scipy import ndimage

# The luma of ITU-R BT.601, as in JPEG.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The weakest edge, as a step of grey, that is drawn in full; noise in a flat image stays faint.
_FAINTEST = 0.05


def sketch(
  image: Float[np.ndarray, "*batch height width channels"],
  rng: np.random.Generator | None = None,
  *,
  sigma: float = 1.0,
) -> Float[np.ndarray, "*batch height width 1"]:
  """Returns an image's edges: the magnitude of the Sobel gradient of the smoothed grey image.

  The strongest edge is 1, whatever the contrast.

  Args:
    image: [..., height, width, 1 or 3] in [0, 1].
    rng: not used; all functions that derive a modality take one.
    sigma: standard deviation of the Gaussian that smooths, in pixels.

  Returns:
    float32 [..., height, width, 1] in [0, 1]; 1 is ink.
  """
  del rng
  grey = image @ _LUMA if image.shape[-1] == 3 else image[..., 0]
  smooth = ndimage.gaussian_filter(grey, sigma, axes=(-2, -1))
  slope = np.hypot(_sobel(smooth, along=-2, across=-1), _sobel(smooth, along=-1, across=-2))
  # A step of height h between two pixels has the slope 4 h.
  steepest = np.maximum(slope.max((-2, -1), keepdims=True), 4 * _FAINTEST)
  return (slope / steepest).astype(np.float32)[..., None]


def _sobel(grey: np.ndarray, along: int, across: int) -> np.ndarray:
  """Like SciPy's `sobel`, which would also smooth over the axes of a batch."""
  return ndimage.correlate1d(ndimage.correlate1d(grey, [-1, 0, 1], along), [1, 2, 1], across)


def partial_mask(
  labels: Int[np.ndarray, "height width"], rng: np.random.Generator, *, keep: float = 0.5
) -> Int[np.ndarray, "height width"]:
  """Returns a mask without some of its classes, which become class 0.

  Args:
    labels: [height, width] classes.
    rng: generator of the choice.
    keep: probability with which each class of the mask stays.

  Returns:
    [height, width], like `labels`.
  """
  # One draw for each class up to the highest: each class stays independently of the others.
  stays = rng.random(labels.max() + 1) < keep
  return np.where(stays[labels], labels, 0).astype(labels.dtype)
