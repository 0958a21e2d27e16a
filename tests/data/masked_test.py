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
  """The first five of SplitMix64 from the state 1234567, as its implementations are tested by."""
  found = masked.splitmix64(np.arange(5, dtype=np.uint64), 1234567)
  assert found.tolist() == [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
  ]


@pytest.mark.parametrize("hidden, count", [(0.25, 6), (0.5, 12), (0.01, 0), (0.03, 1), (0.96, 23)])
def test_random_masks_hide_a_share_to_the_nearest_pixel_anywhere(hidden, count):
  found = visible("random", hidden)
  np.testing.assert_array_equal((~found).sum((1, 2)), count)
  np.testing.assert_allclose((~found).mean(0), count / 24, atol=0.08)
  if count == 12:
    assert len(np.unique(found.reshape(len(found), -1), axis=0)) > 590
    # Whether one pixel is hidden says nothing of another, but that there are fewer left.
    hides = 1.0 - found.reshape(len(found), -1)
    together = hides.T @ hides / len(found)
    np.testing.assert_allclose(together[~np.eye(24, dtype=bool)], 12 / 24 * 11 / 23, atol=0.09)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_half_masks_hide_one_of_the_four_halves(size):
  found, times = np.unique(visible("half", size=size), axis=0, return_counts=True)
  height, width = size
  halves = np.zeros((4, *size), bool)
  halves[0, : height // 2] = halves[1, height // 2 :] = True
  halves[2, :, : width // 2] = halves[3, :, width // 2 :] = True
  assert {half.tobytes() for half in found} == {half.tobytes() for half in halves}
  np.testing.assert_allclose(times / len(ROWS), 0.25, atol=0.06)


def test_complete_masks_hide_all():
  assert not visible("complete", hidden=1.0).any()


def test_masks_of_neighbours_have_nothing_to_do_with_each_other():
  flat = visible("random", 0.5).reshape(len(ROWS), -1)
  for ours, theirs in ((flat[1:], flat[:-1]), (flat[1:, :-1], flat[:-1, 1:])):
    assert np.mean(ours == theirs) == pytest.approx(0.5, abs=0.03)


def test_kind_does_not_tell_which_half():
  found = masked.masks(ROWS, "train", ("half", "complete"), 0.25, (4, 6))
  _, times = np.unique(found[found.any((1, 2))], axis=0, return_counts=True)
  np.testing.assert_allclose(times / times.sum(), [0.25] * 4, atol=0.1)


def test_kinds_are_equally_likely():
  found = masked.masks(ROWS, "train", masked.KINDS, 0.25, (4, 6))
  number = found.sum((1, 2))
  shares = [np.mean(number == count) for count in (18, 12, 0)]
  np.testing.assert_allclose(shares, 1 / 3, atol=0.06)


def test_mask_is_the_row_s_and_the_split_s_however_rows_are_read():
  options = (masked.KINDS, 0.25, (4, 6))
  whole = masked.masks(ROWS, "train", *options)
  for rows in (ROWS[::-1], ROWS[7:8], ROWS[[5, 5, 599]], ROWS[:0]):
    np.testing.assert_array_equal(masked.masks(rows, "train", *options), whole[rows])
  other = masked.masks(ROWS, "test", *options)
  same = (other == whole).all((1, 2))
  # By chance: the kind a third, and then none, or one of four halves, or nearly never.
  assert 0.05 < same.mean() < 0.25
  np.testing.assert_array_equal(whole, masked.masks(ROWS, "train", *options))


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_hidden_is_mid_grey_and_all_else_is_the_other_data_set_s(handwriting, split):
  other = datasets.load("mnist", split)
  data = datasets.load("masked", split, **OPTIONS)
  modalities = datasets.modalities("masked", **OPTIONS)
  assert modalities[:-1] == datasets.modalities("mnist")
  assert (modalities[-1].name, modalities[-1].kind) == ("masked", "image")
  assert tuple(data) == tuple(m.name for m in modalities)
  for name in other:
    np.testing.assert_array_equal(data[name], other[name])
  digit, found = np.asarray(data["digit"]), data["masked"][:]
  assert found.shape == digit.shape and found.dtype == np.float32
  shown = masked.masks(np.arange(len(digit)), split, masked.KINDS, 0.3, (28, 28))[..., None]
  np.testing.assert_array_equal(found, np.where(shown, digit, masked.GREY))
  np.testing.assert_array_equal(data["masked"][[3, 1]], found[[3, 1]])
  np.testing.assert_array_equal(data["masked"][2], found[2])
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
    ({"of": "folder"}, "'folder' cannot have"),
    ({"modality": "page"}, "'page', which is no image of .*'mnist'.*images: digit"),
    ({"modality": "label"}, "'label', which is no image"),
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


def test_share_of_random_masks_is_free_where_there_are_none(handwriting):
  options = OPTIONS | {"kinds": ("half", "complete"), "hidden": 0.0}
  hidden = np.mean(datasets.load("masked", "test", **options)["masked"][:] == masked.GREY, (1, 2))
  assert set(np.unique(np.round(hidden, 1))) == {0.5, 1.0}
