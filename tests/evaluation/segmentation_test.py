import numpy as np
import pytest

from mmdiff_jax.evaluation import segmentation

TRUTH = np.array([[[0, 0], [0, 2]], [[2, 2], [0, 0]]])


def test_masks_that_agree():
  assert segmentation.mean_iou(TRUTH, TRUTH) == 1.0
  assert segmentation.pixel_accuracy(TRUTH, TRUTH) == 1.0


def test_totals_over_the_set_for_each_class_that_is_in_either():
  found = np.array([[[0, 0], [4, 2]], [[2, 0], [0, 0]]])
  # Class 0: 4 of 6 pixels. 2: 2 of 3. 4: 0 of 1. The means of each mask's own would be others.
  assert segmentation.mean_iou(found, TRUTH) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
  assert segmentation.mean_iou(TRUTH, found) == segmentation.mean_iou(found, TRUTH)
  assert segmentation.pixel_accuracy(found, TRUTH) == 6 / 8


def test_small_types_do_not_overflow():
  masks = np.full((1, 2, 2), 100, np.int8)
  assert segmentation.mean_iou(masks, masks) == 1.0
  assert segmentation.mean_iou(masks, masks - 1) == 0.0
