"""Modalities that are made of another one: sketches of images and partial masks, in NumPy."""

from jaxtyping import Float, Int
import numpy as np
from scipy import ndimage

# Luma of ITU-R BT.601, as JPEG's.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The weakest edge, as a step of grey, that is drawn in full; noise in a flat image stays faint.
_FAINTEST = 0.05


def sketch(
  image: Float[np.ndarray, "height width channels"],
  rng: np.random.Generator,
  *,
  sigma: float = 1.0,
) -> Float[np.ndarray, "height width 1"]:
  """An image's edges: the magnitude of Sobel's gradient of the smoothed grey image.

  The strongest edge is 1, whatever the contrast.

  Args:
    image: [height, width, 1 or 3] in [0, 1].
    rng: not used; all that derives takes one.
    sigma: deviation of the Gaussian that smooths, in pixels.

  Returns:
    float32 [height, width, 1] in [0, 1]; 1 is ink.
  """
  del rng
  grey = image @ _LUMA if image.shape[-1] == 3 else image[..., 0]
  smooth = ndimage.gaussian_filter(grey, sigma)
  slope = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
  # A step of height h between two pixels has the slope 4 h.
  return (slope / max(slope.max(), 4 * _FAINTEST)).astype(np.float32)[..., None]


def partial_mask(
  labels: Int[np.ndarray, "height width"], rng: np.random.Generator, *, keep: float = 0.5
) -> Int[np.ndarray, "height width"]:
  """A mask without some of its classes; where they were is class 0.

  Args:
    labels: [height, width] classes.
    rng: the source of the choice.
    keep: probability, for each class that is there, that it stays.

  Returns:
    [height, width], like `labels`.
  """
  # One draw for each class up to the highest: a class's fate depends on no other class.
  stays = rng.random(labels.max() + 1) < keep
  return np.where(stays[labels], labels, 0).astype(labels.dtype)
