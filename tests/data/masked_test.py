import functools

import numpy as np
import pytest

from mmdiff_jax.data import datasets, digits_builder, masked
from mmdiff_jax.errors import UserError

OPTIONS = {"of": "mnist", "modality": "digit", "kinds": masked.KINDS, "hidden": 0.3}
ROWS = np.arange(600)


def visible(kind, hidden=0.25, size=(4, 6), split="train", rows=ROWS):
  return masked.masks(rows, split, (kind,), hidden, size)


def test_numbers_are_those_of_the_published_generator():
  """The first five of SplitMix64 from state 1234567, by which its implementations are tested."""
  numbers = masked.splitmix64(np.arange(5, dtype=np.uint64), 1234567)
  assert numbers.tolist() == [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
  ]


@pytest.mark.parametrize("hidden, count", [(0.25, 6), (0.5, 12), (0.01, 0), (0.03, 1), (0.96, 23)])
def test_random_masks_hide_a_fraction_to_the_nearest_pixel_anywhere(hidden, count):
  masks = visible("random", hidden)
  np.testing.assert_array_equal((~masks).sum((1, 2)), count)
  np.testing.assert_allclose((~masks).mean(0), count / 24, atol=0.08)
  if count == 12:
    assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) > 590
    # Pixels are hidden independently of each other, except that their number is fixed.
    hides = 1.0 - masks.reshape(len(masks), -1)
    together = hides.T @ hides / len(masks)
    np.testing.assert_allclose(together[~np.eye(24, dtype=bool)], 12 / 24 * 11 / 23, atol=0.09)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_half_masks_hide_one_of_the_four_halves(size):
  masks, counts = np.unique(visible("half", size=size), axis=0, return_counts=True)
  height, width = size
  halves = np.zeros((4, *size), bool)
  halves[0, : height // 2] = halves[1, height // 2 :] = True
  halves[2, :, : width // 2] = halves[3, :, width // 2 :] = True
  assert {half.tobytes() for half in masks} == {half.tobytes() for half in halves}
  np.testing.assert_allclose(counts / len(ROWS), 0.25, atol=0.06)


def test_complete_masks_hide_all():
  assert not visible("complete", hidden=1.0).any()


def test_masks_of_neighbouring_rows_are_independent():
  flat = visible("random", 0.5).reshape(len(ROWS), -1)
  for ours, theirs in ((flat[1:], flat[:-1]), (flat[1:, :-1], flat[:-1, 1:])):
    assert np.mean(ours == theirs) == pytest.approx(0.5, abs=0.03)


def test_half_does_not_depend_on_the_kind():
  masks = masked.masks(ROWS, "train", ("half", "complete"), 0.25, (4, 6))
  _, counts = np.unique(masks[masks.any((1, 2))], axis=0, return_counts=True)
  np.testing.assert_allclose(counts / counts.sum(), [0.25] * 4, atol=0.1)


def test_kinds_are_equally_likely():
  masks = masked.masks(ROWS, "train", masked.KINDS, 0.25, (4, 6))
  number = masks.sum((1, 2))
  fractions = [np.mean(number == count) for count in (18, 12, 0)]
  np.testing.assert_allclose(fractions, 1 / 3, atol=0.06)


def test_mask_depends_only_on_row_and_split():
  options = (masked.KINDS, 0.25, (4, 6))
  masks = masked.masks(ROWS, "train", *options)
  for rows in (ROWS[::-1], ROWS[7:8], ROWS[[5, 5, 599]], ROWS[:0]):
    np.testing.assert_array_equal(masked.masks(rows, "train", *options), masks[rows])
  other = masked.masks(ROWS, "test", *options)
  same = (other == masks).all((1, 2))
  # By chance kinds agree in a third of the rows, and then complete masks always, halves in one of
  # four, and random masks almost never.
  assert 0.05 < same.mean() < 0.25
  np.testing.assert_array_equal(masks, masked.masks(ROWS, "train", *options))


@pytest.mark.parametrize("split", ["train", "test"])
def test_hidden_pixels_are_mid_grey_and_all_else_is_the_other_data_set(handwriting, split):
  other = datasets.load("mnist", split)
  data = datasets.load("masked", split, **OPTIONS)
  modalities = datasets.modalities("masked", **OPTIONS)
  assert modalities[:-1] == datasets.modalities("mnist")
  assert (modalities[-1].name, modalities[-1].kind) == ("masked", "image")
  assert tuple(data) == tuple(m.name for m in modalities)
  for name in other:
    np.testing.assert_array_equal(data[name], other[name])
  digit, images = np.asarray(data["digit"]), data["masked"][:]
  assert images.shape == digit.shape and images.dtype == np.float32
  masks = masked.masks(np.arange(len(digit)), split, masked.KINDS, 0.3, (28, 28))[..., None]
  np.testing.assert_array_equal(images, np.where(masks, digit, masked.GREY))
  np.testing.assert_array_equal(data["masked"][[3, 1]], images[[3, 1]])
  np.testing.assert_array_equal(data["masked"][2], images[2])
  assert 2.0 * masked.GREY - 1.0 == 0.0


def test_colours_are_hidden_together(few_draws, monkeypatch):
  drawn = few_draws.builder_config
  monkeypatch.setattr(
    digits_builder, "Digits", functools.partial(digits_builder.Digits, config=drawn)
  )
  options = {"of": "digits", "modality": "scene", "kinds": ("random",), "hidden": 0.5}
  data = datasets.load("masked", "test", str(few_draws.data_path.parents[2]), **options)
  grey = (data["masked"][:] == masked.GREY).all(-1)
  np.testing.assert_array_equal(grey.sum((1, 2)), 128)
  assert (data["masked"][:] == data["scene"])[~grey].all()


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"of": "nothing"}, "no data set named 'nothing'"),
    ({"of": "folder"}, "'folder' does not take"),
    ({"modality": "page"}, "'page', which is not an image of .*'mnist'.*images are: digit"),
    ({"modality": "label"}, "'label', which is not an image"),
    ({"kinds": ()}, r"kinds is \(\); .*random, half, complete"),
    ({"kinds": ("random", "none")}, "kinds is .*'none'"),
    ({"kinds": "random"}, "kinds is 'random'; .*such as"),
    ({"hidden": 0.0}, "hide nothing.*'complete' hides all"),
    ({"hidden": 0.0005}, "of the 784 pixels of 'digit'.*hide nothing"),
    ({"hidden": 0.9999}, "hide all.*'complete' hides all"),
    ({"hidden": 1.5}, "hide all"),
    ({"hidden": -0.5}, "hide nothing"),
    ({"hidden": float("nan")}, "hidden is nan"),
  ],
)
def test_wrong_options_are_refused(handwriting, change, complaint):
  with pytest.raises(UserError, match=complaint):
    datasets.modalities("masked", **OPTIONS | change)
  with pytest.raises(UserError, match=complaint):
    datasets.load("masked", "train", **OPTIONS | change)


def test_fraction_is_not_checked_without_random_masks(handwriting):
  options = OPTIONS | {"kinds": ("half", "complete"), "hidden": 0.0}
  hidden = np.mean(datasets.load("masked", "test", **options)["masked"][:] == masked.GREY, (1, 2))
  assert set(np.unique(np.round(hidden, 1))) == {0.5, 1.0}
