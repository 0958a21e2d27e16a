import functools
import itertools
import re

import numpy as np
import pytest

from mmdiff_jax.data import (
  captioned_digits,
  datasets,
  derived,
  digits,
  digits_builder,
  rendering,
  sketched_digits,
)
from mmdiff_jax.errors import UserError

NAMES = tuple(modality.name for modality in sketched_digits.MODALITIES)
WORDS = {
  "thickness": captioned_digits.THICKNESSES,
  "slant": captioned_digits.SLANTS,
  "place": captioned_digits.PLACES,
}


def load(split="train", **options):
  return datasets.load("sketched_digits", split, **options)


@pytest.fixture
def data(handwriting):
  return load()


def tokens(*sentences):
  return rendering.tokens_of(sentences, sketched_digits.CAPTION_LENGTH)


def test_views_are_as_the_modalities_say(data, handwriting):
  assert tuple(data) == NAMES
  assert NAMES == ("digit", "sketch", "mask", "caption", "label", "thickness", "slant", "place")
  for modality in datasets.modalities("sketched_digits", of="mnist", part=[1, 2]):
    column = data[modality.name]
    batch = column[[5, 0, 5]]
    assert len(column) == len(handwriting["train"].labels)
    assert batch.shape == (3, *modality.shape)
    assert batch.dtype == (np.int32 if modality.num_classes else np.float32)
    assert column[:].min() >= 0 and column[:].max() <= modality.bounds[1]
    np.testing.assert_array_equal(batch[0], batch[2])
  np.testing.assert_array_equal(data["label"], handwriting["train"].labels)


def test_sketches_and_labels_are_of_the_pages(data):
  pages = data["digit"][:]
  np.testing.assert_allclose(data["sketch"][7], derived.sketch(pages[7]), atol=1e-6)
  form = captioned_digits.form_of(pages[..., 0])
  for name, values in form._asdict().items():
    np.testing.assert_array_equal(values, data[name])


def test_one_half_of_each_mask_is_hidden_and_the_rest_is_the_page(data):
  masks, ink = data["mask"][:], data["digit"][:][..., 0] > 0.5
  hidden = masks == sketched_digits.HIDDEN
  halves = np.zeros((4, 28, 28), bool)
  halves[0, :14] = halves[1, 14:] = halves[2, :, :14] = halves[3, :, 14:] = True
  which = (hidden[:, None] == halves).all((2, 3))
  np.testing.assert_array_equal(which.sum(1), 1)
  np.testing.assert_allclose(which.mean(0), 0.25, atol=0.06)
  np.testing.assert_array_equal((masks == sketched_digits.INK)[~hidden], ink[~hidden])
  np.testing.assert_array_equal((masks == sketched_digits.PAPER)[~hidden], ~ink[~hidden])


def test_captions_say_some_of_what_is_true(data):
  said = sketched_digits.parse_captions(data["caption"])
  for name, claim in said.items():
    told = claim >= 0
    np.testing.assert_array_equal(claim[told], data[name][told])
    worth = np.array([bool(word) for word in WORDS[name]])[data[name]] if name in WORDS else True
    share = told[np.broadcast_to(worth, told.shape)].mean()
    assert share == pytest.approx(0.7 if name == "label" else 0.6, abs=0.06)
  text = [rendering.text_of(row) for row in data["caption"]]
  assert all(
    line.endswith(" digit") == (label < 0) for line, label in zip(text, said["label"], strict=True)
  )
  spelt = [line.split()[-1] in rendering.NAMES for line in text if not line.endswith("digit")]
  assert np.mean(spelt) == pytest.approx(0.5, abs=0.06)
  for line in text:
    assert ("an " in line) == bool(re.search(r"\ban? (eight|8)$", line))


def test_what_is_said_of_is_what_is_worded(data, letter_by_letter):
  """All sentences there are, each in both spellings."""
  thickness, slant = ((None, *filter(None, words)) for words in list(WORDS.values())[:2])
  places = (None, *captioned_digits.PLACES)
  sentences, meant = [], []
  for t, s, p in itertools.product(thickness, slant, places):
    for name in ("digit", *rendering.NAMES, *map(str, range(10))):
      sentences.append(captioned_digits.sentence(p or "", (t or "", s or ""), name))
      label = -1
      if name != "digit":
        label = int(name) if name.isdigit() else rendering.NAMES.index(name)
      found = [
        -1 if word is None else words.index(word)
        for word, words in zip((t, s, p), WORDS.values(), strict=True)
      ]
      meant.append([label, *found])
  assert len(set(sentences)) == len(sentences) == 3 * 3 * 10 * 21
  said = sketched_digits.parse_captions(tokens(*sentences))
  assert tuple(said) == ("label", *WORDS)
  np.testing.assert_array_equal(np.stack(list(said.values()), 1), meant)
  assert {values.dtype for values in said.values()} == {np.dtype(np.int32)}
  assert max(map(len, sentences)) <= sketched_digits.CAPTION_LENGTH
  valid = datasets.valid("caption", "sketched_digits", of="digits")
  assert valid(data["caption"]).all()
  letter_by_letter(valid, sentences, sketched_digits.CAPTION_LENGTH)


def test_sentences_read_like_this():
  said = sketched_digits.parse_captions(
    tokens("at the top left a thick digit", "an 8", "on the right a thin right leaning two")
  )
  assert {name: values.tolist() for name, values in said.items()} == {
    "label": [-1, 8, 2],
    "thickness": [2, -1, 0],
    "slant": [-1, -1, 2],
    "place": [0, -1, 5],
  }


@pytest.mark.parametrize(
  "text", ["", "thick a three", "a three at the top", "a thick", "aaa 33", "an thick 3"]
)
def test_nothing_is_said_of_what_is_no_sentence(text):
  assert all(values == [-1] for values in sketched_digits.parse_captions(tokens(text)).values())


def test_parts_are_cut_out_of_the_whole(data, handwriting):
  parts = [load(part=(i, 3)) for i in range(3)]
  assert {len(part["label"]) for part in parts} == {299, 300}  # Of 899.
  for name in NAMES:
    joined = np.concatenate([part[name][:] for part in parts])
    np.testing.assert_array_equal(joined, data[name])
  whole, cut = load("test"), load("test", part=(1, 3))
  for name in NAMES:
    np.testing.assert_array_equal(cut[name], whole[name])


def test_splits_have_random_numbers_of_their_own(handwriting, monkeypatch):
  monkeypatch.setitem(handwriting, "test", handwriting["train"])
  train, test = load(), load("test")
  assert np.mean(train["place"] == test["place"]) < 0.2
  assert (train["caption"] == test["caption"]).all(1).mean() < 0.2


def test_no_handwriting_of_the_embedded_digits_is_in_two_parts(few_draws, monkeypatch):
  drawn = few_draws.builder_config
  monkeypatch.setattr(
    digits_builder, "Digits", functools.partial(digits_builder.Digits, config=drawn)
  )
  folder = str(few_draws.data_path.parents[2])
  records = list(digits.read(few_draws, "train"))
  written = np.concatenate([chunk["handwriting"] for chunk in records])
  parts = [load(data_dir=folder, of="digits", part=(i, 3)) for i in range(3)]
  own = [set(written[part["digit"].index]) for part in parts]
  assert sum(map(len, own)) == len(set.union(*own)) == 1437
  for part, mine in zip(parts, own, strict=True):
    assert len(part["label"]) == 2 * len(mine) == 2 * 479
  labels = np.concatenate([chunk["label"] for chunk in records])
  np.testing.assert_array_equal(parts[1]["label"], labels[parts[1]["digit"].index])
  # A handwriting is about as high as MNIST's, which is drawn at 11 to 14 pixels, and never cut.
  page = parts[0]["digit"][:][..., 0] > 0.5
  assert 11 <= np.median(page.any(2).sum(1)) <= 14
  with pytest.raises(UserError, match="'digits' has 1,437 handwritings. Take fewer parts"):
    load(data_dir=folder, of="digits", part=(1, 10**6))


def test_ink_moves_whole_and_keeps_off_the_rim():
  rng = np.random.default_rng(0)
  ink = np.zeros((900, 28, 28), np.uint8)
  for page in ink:
    height, width = rng.integers(1, 27, 2)
    top, left = rng.integers(1, 28 - height), rng.integers(1, 28 - width)
    page[top : top + height, left : left + width] = rng.integers(1, 256, (height, width))
  ink[:90] = 0
  ink[:90, 13:15, 13:15] = 9
  moved = sketched_digits._place(ink, rng)
  flat, after = np.sort(ink.reshape(900, -1)), np.sort(moved.reshape(900, -1))
  np.testing.assert_array_equal(flat, after)
  assert not (moved[:, [0, -1]].any() or moved[:, :, [0, -1]].any())
  # What has room goes to one of nine places, each as likely.
  corners = np.argwhere(moved[:90])[::4, 1:]
  assert {tuple(corner) for corner in corners} == set(itertools.product((7, 13, 19), repeat=2))


def test_ink_that_fills_the_page_stays():
  ink = np.full((20, 28, 28), 5, np.uint8)
  ink[:, 0, 0] = 200
  np.testing.assert_array_equal(sketched_digits._place(ink, np.random.default_rng(0)), ink)


def test_pages_of_mnist_are_whole_and_of_all_kinds(prepared):
  data = load("test", data_dir=prepared)
  for name, least in {"thickness": 0.15, "slant": 0.15, "place": 0.06}.items():
    share = np.bincount(data[name], minlength=len(WORDS[name])) / len(data[name])
    assert share.min() > least, (name, share)
  pages = data["digit"][:][..., 0]
  rim = pages[:, [0, -1]].any((1, 2)) | pages[:, :, [0, -1]].any((1, 2))
  assert rim.mean() < 0.001
  rows = np.arange(500)
  given = {name: data[name][rows] for name in NAMES[1:]}
  true = sketched_digits.adherence(given, data["digit"][rows], data["label"][rows])
  assert {np.nanmin(values) for values in true.values()} == {1.0}
  given = {name: np.roll(values, 1, axis=0) for name, values in given.items()}
  other = sketched_digits.adherence(given, data["digit"][rows], data["label"][rows])
  for name, most in {"sketch": 0.5, "mask": 0.2, "caption label": 0.2, "place": 0.2}.items():
    assert np.nanmean(other[name]) < most


def test_digits_are_drawn_within_the_page(prepared):
  items = datasets.load("mnist", "test", prepared)["digit"][:3000][..., 0]
  items = np.round(255 * items).astype(np.uint8)
  small, large = (
    captioned_digits.draw(items, np.random.default_rng(0), size=size, reach=0.0)
    for size in (28, 44)
  )
  np.testing.assert_array_equal(small, large[:, 8:-8, 8:-8])
  assert small.sum() == large.sum()


def test_adherence_is_with_what_was_given_alone(data):
  rows = np.arange(30)
  pages, labels = data["digit"][rows], data["label"][rows]
  given = {name: data[name][rows] for name in NAMES[1:]}
  found = sketched_digits.adherence(given, pages, (labels + (rows < 10)) % 10)
  said = sketched_digits.parse_captions(given["caption"])
  assert set(found) == {"sketch", "mask", *said, *(f"caption {name}" for name in said)}
  for name in ("sketch", "mask", *WORDS):
    np.testing.assert_array_equal(found[name], np.ones(30))
  np.testing.assert_array_equal(found["label"], rows >= 10)
  for name in said:
    told = said[name] >= 0
    np.testing.assert_array_equal(np.isnan(found[f"caption {name}"]), ~told)
    np.testing.assert_array_equal(found[f"caption {name}"][told], found[name][told])
  blank = sketched_digits.adherence({"mask": given["mask"]}, 0 * pages, labels)
  assert set(blank) == {"mask"}
  nothing = ~(given["mask"] == sketched_digits.INK).any((1, 2))
  np.testing.assert_array_equal(blank["mask"], nothing)
  assert 0 < nothing.sum() < 30
  # What is hidden may be anything.
  hidden = (given["mask"] == sketched_digits.HIDDEN)[..., None]
  inked = np.where(hidden, np.float32(1), pages)
  mask = sketched_digits.adherence({"mask": given["mask"]}, inked, labels)["mask"]
  np.testing.assert_array_equal(mask, np.ones(30))
  assert sketched_digits.adherence({}, pages, labels) == {}


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"of": "svhn"}, "of is 'svhn'; .*mnist or digits"),
    ({"part": (3, 3)}, r"part is \(3, 3\); .*\(0, 3\) for the first third"),
    ({"part": (-1, 3)}, r"part is \(-1, 3\)"),
    ({"part": (0, 0)}, r"part is \(0, 0\)"),
    ({"part": 3}, "part is 3;"),
    ({"part": (1,)}, r"part is \(1,\)"),
    ({"part": (0.0, 3)}, r"part is \(0.0, 3\)"),
    ({"part": "01"}, "part is '01'"),
  ],
)
def test_wrong_options_are_refused(handwriting, change, complaint):
  with pytest.raises(UserError, match=complaint):
    datasets.modalities("sketched_digits", **change)
  with pytest.raises(UserError, match=complaint):
    load(**change)
