import itertools
import re

import numpy as np
import pytest

from mmdiff_jax.data import captioned_digits, datasets, rendering

_WORDS = {
  "colour": tuple(captioned_digits.COLOURS),
  "thickness": captioned_digits.THICKNESSES,
  "slant": captioned_digits.SLANTS,
  "place": captioned_digits.PLACES,
}
_GRAMMAR = re.compile(
  rf"((?P<place>{'|'.join(captioned_digits.PLACES)}) )?(?P<article>an?) "
  r"((?P<thickness>thin|thick) )?((?P<slant>left leaning|right leaning) )?"
  rf"((?P<colour>{'|'.join(captioned_digits.COLOURS)}) )?"
  rf"(?P<digit>{'|'.join(rendering.NAMES)}|[0-9])"
)


@pytest.fixture
def data(handwriting, monkeypatch):
  monkeypatch.setattr(captioned_digits, "COUNTS", {"train": 80, "test": 20})
  return captioned_digits.load("train")


def _stripes(width, lean=0.0, size=97):
  """A white stripe of that width, `lean` columns to the right with each row upwards: [1, ...]."""
  rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
  across = np.abs(columns + lean * rows) / np.hypot(1, lean)
  ink = np.clip(width / 2 + 0.5 - across, 0, 1) * (np.abs(rows) < size / 3)
  return np.repeat(ink[None, ..., None], 3, -1).astype(np.float32)


def test_captions_are_true_of_the_pictures(data):
  seen = captioned_digits.measure(data["digit"][:])._asdict()
  said = [_GRAMMAR.fullmatch(rendering.text_of(tokens)) for tokens in data["caption"]]
  assert all(said)
  for name, words in _WORDS.items():
    named = [(match[name], words[i]) for match, i in zip(said, seen[name], strict=True)]
    assert all(claim == truth for claim, truth in named if claim)
    share = np.mean([claim is not None for claim, truth in named if truth])
    assert 0.5 < share < 0.7
  digits = [match["digit"] for match in said]
  labels = [int(d) if d.isdigit() else rendering.NAMES.index(d) for d in digits]
  assert labels == data["label"].tolist()
  for match in said:
    bare = not (match["thickness"] or match["slant"] or match["colour"])
    assert (match["article"] == "an") == (bare and match["digit"] in ("eight", "8"))


def test_grammar_is_that_of_the_captions(data, letter_by_letter):
  valid = datasets.valid("caption", "captioned_digits")
  assert valid(data["caption"]).all()
  properties = itertools.product(
    *(["", *filter(None, _WORDS[name])] for name in ("thickness", "slant", "colour"))
  )
  sentences = [
    captioned_digits.sentence(place, words, name)
    for words, place, name in itertools.product(
      properties, ("", *captioned_digits.PLACES), (*rendering.NAMES, *"0123456789")
    )
  ]
  assert len(set(sentences)) == len(sentences) == 3 * 3 * 7 * 10 * 20
  letter_by_letter(valid, sentences, captioned_digits.CAPTION_LENGTH)


def test_labels_are_what_is_measured_on_the_pictures(data):
  for name, values in captioned_digits.measure(data["digit"][:])._asdict().items():
    np.testing.assert_array_equal(values, data[name])
    assert values.dtype == np.int32


def test_each_attribute_is_now_this_now_that_on_real_digits(prepared):
  data = captioned_digits.load("test", prepared)
  for name, least in {"colour": 0.14, "thickness": 0.15, "slant": 0.15, "place": 0.08}.items():
    share = np.bincount(data[name], minlength=len(_WORDS[name])) / len(data[name])
    assert share.min() > least, (name, share)


@pytest.mark.parametrize("width, name", [(1.2, "thin"), (2.0, ""), (3.0, "thick")])
@pytest.mark.parametrize("lean", [0.0, 0.4])
def test_thickness_is_the_width_of_a_stripe_whatever_its_slant(width, name, lean):
  seen = captioned_digits.measure(_stripes(width, lean))
  assert captioned_digits.THICKNESSES[seen.thickness[0]] == name


@pytest.mark.parametrize("lean, name", [(-0.4, "left leaning"), (0.1, ""), (0.6, "right leaning")])
def test_slant_is_that_of_a_stripe(lean, name):
  seen = captioned_digits.measure(_stripes(2.0, lean))
  assert captioned_digits.SLANTS[seen.slant[0]] == name


def test_place_and_colour_of_a_dot():
  names = tuple(captioned_digits.COLOURS)
  for i, colour in enumerate(captioned_digits.COLOURS.values()):
    for place, words in enumerate(captioned_digits.PLACES):
      row, column = (6 + 9 * step for step in divmod(place, 3))
      picture = np.zeros((1, 32, 32, 3), np.float32)
      picture[0, row : row + 2, column : column + 2] = 0.5 * np.array(colour)  # Dim.
      seen = captioned_digits.measure(picture)
      assert names[seen.colour[0]] == names[i]
      assert captioned_digits.PLACES[seen.place[0]] == words


def test_nothing_to_see_is_no_error():
  nothing = captioned_digits.measure(np.zeros((2, 32, 32, 3), np.float32))
  np.testing.assert_array_equal(nothing.slant, [1, 1])  # Upright.


def test_drawn_digits_stay_whole_and_readable(handwriting):
  items = handwriting["train"].items[:500, ..., 0]
  pages = captioned_digits.draw(items, np.random.default_rng(0)) / 255.0
  assert (pages.max((1, 2)) == 1.0).all()
  edge = pages[:, 0].sum(1) + pages[:, -1].sum(1) + pages[:, :, 0].sum(1) + pages[:, :, -1].sum(1)
  assert (edge / pages.sum((1, 2)) > 0.02).mean() < 0.02  # Hardly any ink is cut off.
  # Fewer pixels than the original's, and never next to none.
  area = pages.sum((1, 2)) / (items / 255.0).sum((1, 2))
  assert area.min() > 0.1 and area.max() < 1.0


def test_views_are_as_the_modalities_say(data):
  assert tuple(data) == tuple(modality.name for modality in captioned_digits.MODALITIES)
  np.testing.assert_array_equal(np.bincount(data["label"]), np.full(10, 80))
  for modality in captioned_digits.MODALITIES:
    batch = data[modality.name][:6]
    assert batch.shape == (6, *modality.shape)
    assert batch.dtype == (np.int32 if modality.num_classes else np.float32)
    assert isinstance(modality.show(batch[0]), str) == (modality.kind != "image")
  assert data["digit"][:].max() <= 1 and data["digit"][:].min() == 0


def test_longest_caption_fits():
  seen = captioned_digits.Attributes(
    *(
      np.full(2000, max(range(len(words)), key=lambda i: len(words[i])), np.int32)
      for words in _WORDS.values()
    )
  )
  labels = np.full(2000, 3)
  said = captioned_digits.captions(labels, seen, np.random.default_rng(0))
  assert max(map(len, said)) == captioned_digits.CAPTION_LENGTH
