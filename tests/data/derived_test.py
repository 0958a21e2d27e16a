import numpy as np
from scipy import ndimage

from mmdiff_jax.data import derived


def _sketch(image, **options):
  return derived.sketch(image, np.random.default_rng(0), **options)


def _step(height=0.6, low=0.2, columns=32):
  image = np.full((16, columns, 3), low, np.float32)
  image[:, columns // 2 :] += height
  return image


def test_sketch_is_at_the_edge_and_has_the_expected_slope():
  ink = _sketch(_step(), sigma=1.0)[..., 0]
  np.testing.assert_allclose(ink, ink[:1].repeat(16, 0), atol=1e-6)
  # The smoothed edge is the integral of the Gaussian; its central difference adds two pixels.
  gauss = np.exp(-(np.arange(-4, 5) ** 2) / 2)
  expected = np.convolve(gauss / gauss.sum(), [1, 1])
  np.testing.assert_allclose(ink[0, 11:21], expected / expected.max(), atol=1e-5)
  assert ink.max() == 1.0 and ink[0, :10].max() < 1e-5


def test_strength_of_a_sketch_does_not_depend_on_the_contrast_and_is_zero_in_a_flat_image():
  strong, weak = _sketch(_step(0.6)), _sketch(_step(0.1))
  np.testing.assert_allclose(strong, weak, atol=1e-4)
  faint = _sketch(_step(0.01))
  assert 0 < faint.max() < 0.2
  assert _sketch(_step(0.0)).max() < 1e-5


def test_sketches_of_a_batch_are_the_sketches_of_its_images():
  batch = np.random.default_rng(0).random((2, 3, 16, 20, 3), np.float32)
  batch[0] *= 0.01  # The strongest edge differs between images.
  sketches = derived.sketch(batch)
  assert sketches.shape == (2, 3, 16, 20, 1) and sketches.dtype == np.float32
  np.testing.assert_allclose(sketches[0, 1], _sketch(batch[0, 1]), atol=1e-6)
  np.testing.assert_allclose(sketches[1, 2], _sketch(batch[1, 2]), atol=1e-6)


def test_slope_is_that_of_sobel():
  image = np.random.default_rng(0).random((16, 20, 1), np.float32)
  smooth = ndimage.gaussian_filter(image[..., 0], 0.7)
  slope = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
  np.testing.assert_allclose(_sketch(image, sigma=0.7)[..., 0], slope / slope.max(), atol=1e-6)


def test_sketch_of_a_colour_image_is_the_sketch_of_its_luma():
  colour = np.zeros((16, 16, 3), np.float32)
  colour[4:9, 3:12, 0] = 1.0
  colour[11:14, 5:9, 1] = 1.0
  grey = colour[..., :1] * np.float32(0.299) + colour[..., 1:2] * np.float32(0.587)
  np.testing.assert_allclose(_sketch(colour), _sketch(grey), atol=1e-6)
  turned = _sketch(colour.swapaxes(0, 1))
  np.testing.assert_allclose(turned, _sketch(colour).swapaxes(0, 1), atol=1e-6)


def test_partial_mask_drops_entire_classes_and_adds_none():
  labels = np.random.default_rng(0).integers(0, 6, (12, 12)).astype(np.int32)
  rng = np.random.default_rng(1)
  kept, together = np.zeros(6), 0
  for _ in range(400):
    part = derived.partial_mask(labels, rng, keep=0.3)
    assert part.dtype == np.int32
    for c in range(1, 6):
      is_kept = (part == c).any()
      np.testing.assert_array_equal(part == c, (labels == c) & is_kept)
      kept[c] += is_kept
    together += (part == 1).any() and (part == 2).any()
  np.testing.assert_allclose(kept[1:] / 400, 0.3, atol=0.09)  # Four standard errors.
  assert 12 < together < 60  # Classes are independent: 36 are expected.
  np.testing.assert_array_equal(derived.partial_mask(labels, rng, keep=1.0), labels)
  assert not derived.partial_mask(labels, rng, keep=0.0).any()
