"""Items held out of the training split do not influence training, and make up all of validation."""

import functools

import numpy as np
import pytest

from mmdiff_jax.data import (
  cache,
  captioned_digits,
  datasets,
  digits_builder,
  moving_digits,
  pairing,
  pairs_of_digits,
  poly_mnist,
  public,
  sketched_digits,
  sources,
  spoken_mnist,
)
from mmdiff_jax.errors import UserError

FRACTION = 0.2
MASKED = {"of": "mnist", "modality": "digit", "kinds": ("half",), "hidden": 0.5}
SETS = {
  "mnist": ({}, ["digit"]),
  "mnist_svhn": ({}, ["mnist", "svhn"]),
  "poly_mnist": ({}, [f"m{i}" for i in range(5)]),
  "captioned_digits": ({}, ["digit"]),
  "moving_digits": ({}, ["digit", "video"]),
  "sketched_digits": ({"of": "mnist"}, ["digit", "sketch"]),
  "spoken_mnist": ({}, ["digit", "speech", "pen"]),
  "pairs_of_digits": ({"of": "mnist"}, ["digit", "speech", "video"]),
  "masked": (MASKED, ["digit", "masked"]),
}
PARTS = ("train", "validation")


@pytest.fixture
def training_splits(handwriting, monkeypatch):
  """Training splits by source, from which the data sets are made."""
  rng = np.random.default_rng(0)
  labels = (np.arange(200) % 10).astype(np.int32)
  clips = rng.integers(-9000, 9000, (200, spoken_mnist.SPEECH.samples)).astype(np.int16)
  source = {
    "mnist": handwriting["train"],
    "svhn": sources.Source(rng.integers(0, 256, (200, 32, 32, 3)).astype(np.uint8), labels),
    "spoken_digit": sources.Recordings(clips, labels, labels // 2, np.arange(200)),
    "pendigits": sources.Source(rng.integers(0, 101, (200, 8, 2)).astype(np.uint8), labels),
  }

  def read(name, split, *_):
    assert split == "train"
    return source[name]

  for name in source:
    monkeypatch.setattr(sources, name, functools.partial(read, name))
  monkeypatch.setattr(public, "prepared_state", lambda *_: ())
  monkeypatch.setattr(cache, "arrays", lambda name, inputs, make: make())
  counts = {"train": 15, "validation": 5}
  for module in (captioned_digits, moving_digits, pairs_of_digits, poly_mnist, spoken_mnist):
    monkeypatch.setattr(module, "COUNTS", counts)
  return source


def arrays(name, split, rows=200):
  data = datasets.load(name, split, validation=FRACTION, **SETS[name][0])
  return {column: np.asarray(x[:rows]) for column, x in data.items()}


@pytest.mark.parametrize("name", SETS)
def test_a_part_is_made_only_of_its_items(name, training_splits):
  """Changed items of a part change all its modalities, and none of the other part."""
  before = {split: arrays(name, split) for split in PARTS}
  for split, other in (PARTS, PARTS[::-1]):
    for source, data in list(training_splits.items()):
      items = data.items.copy()
      rows = pairing.part_rows(split, data.labels, FRACTION)
      items[rows] = np.flip(items[rows], axis=1)
      training_splits[source] = data._replace(items=items)
    after = arrays(name, split), arrays(name, other)
    for column in SETS[name][1]:
      assert (after[0][column] != before[split][column]).any(), column
    for column, x in after[1].items():
      np.testing.assert_array_equal(x, before[other][column], err_msg=column)
    before[split] = after[0]


@pytest.mark.parametrize("name", ["captioned_digits", "poly_mnist", "pairs_of_digits"])
def test_parts_draw_different_random_numbers(name, training_splits):
  """Rows with the same index in both parts do not share random captions, positions, ..."""
  train, validation = (arrays(name, split) for split in PARTS)
  for column in train.keys() & validation.keys():
    n = min(map(len, (train[column], validation[column])))
    assert (train[column][:n] != validation[column][:n]).any(), column


def test_parts_are_all_of_training_in_the_same_proportions(training_splits):
  images, labels = training_splits["mnist"]
  held_out, rest = (datasets.load("mnist", s, validation=FRACTION) for s in PARTS[::-1])
  every = datasets.load("mnist", "train")
  np.testing.assert_array_equal(every["label"], labels)
  np.testing.assert_array_equal(every["digit"][:], images / np.float32(255))
  expected = np.round(FRACTION * np.bincount(labels))
  np.testing.assert_array_equal(np.bincount(held_out["label"]), expected)
  np.testing.assert_array_equal(np.bincount(rest["label"]), np.bincount(labels) - expected)
  assert isinstance(rest["digit"], pairing.Column)
  rows = [pairing.part_rows(split, labels, FRACTION) for split in PARTS]
  np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(len(labels)))


@pytest.fixture
def embedded(few_draws, monkeypatch):
  """The folder of `digits` with few draws."""
  drawn = functools.partial(digits_builder.Digits, config=few_draws.builder_config)
  monkeypatch.setattr(digits_builder, "Digits", drawn)
  # Cached, because reading takes seconds.
  monkeypatch.setattr(sketched_digits, "_digits", functools.cache(sketched_digits._digits))
  monkeypatch.setattr(pairs_of_digits, "COUNTS", {"train": 120, "validation": 20})
  return str(few_draws.data_path.parents[2])


def test_several_drawings_of_a_digit_image_are_in_one_part(embedded):
  """It is the same part in all data sets, also for scenes; this also holds for dial tones."""
  load = functools.partial(datasets.load, data_dir=embedded, validation=FRACTION)
  seen, numbers, tones = {}, {}, {}
  for split in PARTS:
    data = load("digits", split)
    pairs = load("pairs_of_digits", split, of="digits")
    _, labels, numbers[split] = sketched_digits.handwriting(
      "digits", split, embedded, None, FRACTION
    )
    columns = data["source_digit"], data["source_scene"], numbers[split]
    columns += pairs["source_digit"], pairs["source_video"]
    seen[split] = set(np.concatenate(columns)) - {-1}
    tones[split] = set(pairs["source_speech"]) - {-1}
    assert len(data["label"]) and tones[split]
  pages = load("sketched_digits", "validation", of="digits")
  np.testing.assert_array_equal(pages["label"], labels)
  assert not seen["train"] & seen["validation"]
  assert not tones["train"] & tones["validation"]
  both = np.concatenate(list(numbers.values()))
  expected = np.sort(sketched_digits.handwriting("digits", "train", embedded)[2])
  np.testing.assert_array_equal(np.sort(both), expected)
  assert len(numbers["validation"]) == pytest.approx(FRACTION * len(expected), rel=0.02)


@pytest.mark.parametrize("fraction", [None, 0.0])
def test_nothing_is_held_out_by_default(fraction):
  with pytest.raises(UserError, match=r"no split 'validation' unless config\.data\.validation"):
    datasets.load("mnist", "validation", validation=fraction)


@pytest.mark.parametrize(
  ("name", "fraction", "message"),
  [
    ("mnist", -0.1, r"config\.data\.validation is -0\.1; it must be"),
    ("mnist", 1.0, r"config\.data\.validation is 1\.0; it must be"),
    ("mnist", 0.001, r"holds 0 of the \d+ items of class 0"),
    ("mnist", 0.999, r"holds (\d+) of the \1 items of class 0"),
    ("represented", 0.1, "no part of the data set 'represented' can be held out"),
  ],
)
def test_invalid_fractions_are_refused(name, fraction, message, training_splits):
  options = {"of": "mnist", "file": "none", "size": 2} if name == "represented" else {}
  with pytest.raises(UserError, match=message):
    datasets.load(name, "train", validation=fraction, **options)
