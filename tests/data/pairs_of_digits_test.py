import collections
import functools
import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mmdiff_jax.data import (
  captioned_digits,
  datasets,
  digits,
  digits_builder,
  missing,
  moving_digits,
  pairing,
  pairs_of_digits,
  public,
  rendering,
  sketched_digits,
  sources,
)
from mmdiff_jax.errors import UserError

MAIN = ("caption", "digit", "speech", "video")
PRESENT = {"thickness": "digit", "slant": "digit", "heading": "video", "speaker": "speech"}
WORDS = {
  "thickness": captioned_digits.THICKNESSES,
  "slant": captioned_digits.SLANTS,
  "heading": tuple(moving_digits.HEADINGS),
  "speaker": sources.SPEAKERS,
}
COUNTS = {"train": 120, "test": 20}


def _load(of, folder, counts=COUNTS):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pairs_of_digits, "COUNTS", counts)
    return {
      split: datasets.load("pairs_of_digits", split, folder, of=of) for split in ("train", "test")
    }


@pytest.fixture(scope="module")
def few(few_draws):
  """The folder of `digits` with few draws, which are then all there are."""
  with pytest.MonkeyPatch.context() as patch:
    drawn = functools.partial(digits_builder.Digits, config=few_draws.builder_config)
    patch.setattr(digits_builder, "Digits", drawn)
    yield str(few_draws.data_path.parents[2])


@pytest.fixture(scope="module")
def embedded(few):
  return _load("digits", few)


@pytest.fixture(scope="module")
def real(prepared):
  """Real speech and, of MNIST, its tests alone: alternate ones are training and tests."""
  pytest.importorskip("tensorflow")
  items, labels = sources.mnist("test", prepared)
  half = {
    name: sources.Source(items[i::2], labels[i::2]) for i, name in enumerate(("train", "test"))
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sources, "mnist", lambda name, *_: half[name])
    return _load("mnist", prepared)


@pytest.fixture(scope="module")
def whole(prepared):
  pytest.importorskip("tensorflow")
  return _load("mnist", prepared)


@pytest.fixture(params=["embedded", "real", pytest.param("whole", marks=pytest.mark.slow)])
def data(request):
  """Both splits, of each source."""
  return request.getfixturevalue(request.param)


def _of(split):
  return "mnist" if "speaker" in split else "digits"


def _there(split, name):
  return split.get(f"{name}_present", np.ones(len(split["label"]), bool))


def _tokens(*sentences):
  return rendering.tokens_of(sentences, pairs_of_digits.CAPTION_LENGTH)


def test_views_are_as_the_modalities_say(data):
  of = _of(data["train"])
  known = datasets.modalities("pairs_of_digits", of=of)
  labels = ("label", "thickness", "slant", "heading", *(["speaker"] if of == "mnist" else []))
  assert tuple(modality.name for modality in known) == (*MAIN, *labels)
  assert [modality.kind for modality in known[:4]] == ["text", "image", "audio", "video"]
  for name, split in data.items():
    for modality in known:
      column = split[modality.name]
      batch = column[np.arange(200)]
      assert len(column) == 10 * COUNTS[name] * {"train": 4, "test": 1}[name]
      assert batch.shape == (200, *modality.shape)
      assert batch.dtype == (np.int32 if modality.num_classes else np.float32)
      assert batch.min() >= 0 and batch.max() <= modality.bounds[1]
      assert len(np.unique(batch.reshape(200, -1), axis=0)) > 1
    assert all(isinstance(split[main], pairing.Column) for main in MAIN[1:])


def test_training_knows_pairs_alone(data):
  train, test = data["train"], data["test"]
  masks = missing.masks(train, MAIN)
  np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 2)
  for number, names in enumerate(pairs_of_digits.PAIRS):
    rows = train["pair"] == number
    assert all(masks[name][rows].all() for name in names)
    np.testing.assert_array_equal(np.bincount(train["label"][rows]), np.full(10, COUNTS["train"]))
  for name in MAIN:
    shown = train[name][:].reshape(len(masks[name]), -1)
    np.testing.assert_array_equal(shown.any(1), masks[name])  # None of these is blank.
  for name, main in PRESENT.items():
    if name in train:
      np.testing.assert_array_equal(train[f"{name}_present"], masks[main])
      assert not train[name][~masks[main]].any()
  assert len(set(train["pair"][:20])) > 2  # They are mixed.
  assert not any("_present" in name for name in test)
  assert all(test[name][:].reshape(200, -1).any(1).all() for name in MAIN)
  np.testing.assert_array_equal(np.bincount(test["label"]), np.full(10, COUNTS["test"]))


def test_no_instance_is_in_two_sets_of_pairs_nor_in_both_splits(data):
  train, test = data["train"], data["test"]
  own = {
    (split, number, name): set(array[f"source_{name}"][rows])
    for split, array in data.items()
    for number, rows in enumerate(
      array["pair"] == np.arange(4)[:, None] if split == "train" else [...]
    )
    for name in MAIN[1:]
  }
  absent = [key for key, numbers in own.items() if numbers == {-1}]
  for split, number, name in absent:
    assert split == "train" and name not in pairs_of_digits.PAIRS[number]
  sound = [numbers for key, numbers in own.items() if key[2] == "speech" and key not in absent]
  # Images and videos are of one source.
  ink = [numbers for key, numbers in own.items() if key[2] != "speech" and key not in absent]
  assert (len(sound), len(ink)) == (3, 5)
  for sets in (sound, ink):
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert min(map(len, sets)) > 50 and -1 not in set.union(*sets)
  for name in MAIN[1:]:
    shown = train[name].index[train[f"{name}_present"]]
    there = pairing.Column(shown, train[name].read)
    assert not len(pairing.shared(there, test[name]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_instances_are_those_of_these_numbers_and_of_the_class(few, monkeypatch, split):
  monkeypatch.setattr(pairs_of_digits, "draw", lambda ink, rng, **_: ink)
  found = _load("digits", few)[split]
  ink, labels, numbers = sketched_digits.handwriting("digits", split, few)
  np.testing.assert_array_equal(load_digits().target[numbers], labels)
  # Ink of a page, and of what of it a video shows, and whose it is.
  masses = {
    "digit": ink.sum((1, 2)) / 255,
    "video": ink[:, 2:26, 2:26].sum((1, 2)) / 255 / 4,
  }
  for name, mass in masses.items():
    rows = np.flatnonzero(found[f"source_{name}"] >= 0)
    shown = found[name][rows]
    shown = shown[:, 0] if name == "video" else shown
    for row, seen in zip(rows, shown.sum((1, 2, 3)), strict=True):
      own = numbers == found[f"source_{name}"][row]
      assert found["label"][row] == labels[own][0]
      assert np.abs(mass[own] - seen).min() < (0.5 if name == "video" else 1e-2)
  form = captioned_digits.form_of(found["digit"][:][..., 0])
  there = _there(found, "digit")
  for name in ("thickness", "slant"):
    np.testing.assert_array_equal(getattr(form, name)[there], found[name][there])
  tones = digits.load(split, few)
  rows = np.flatnonzero(found["source_speech"] >= 0)
  places = found["source_speech"][rows] - (2 * 1437 if split == "test" else 0)
  np.testing.assert_array_equal(found["speech"][rows], tones["tone"][places])
  np.testing.assert_array_equal(found["label"][rows], tones["label"][places])


def test_recordings_are_halved_within_each_speaker_and_digit(prepared, real):
  train, test = (sources.spoken_digit(split, 100, prepared) for split in ("train", "test"))
  builder = public.prepared("spoken_digit", prepared, None)
  names = [
    record["audio/filename"].decode()
    for chunk in public.records(builder, "train", 2500)
    for record in chunk
  ]
  said = {}
  for part in (train, test):
    for label, speaker, place in zip(*part[1:], strict=True):
      assert names[place].startswith(f"{label}_{sources.SPEAKERS[speaker]}_")
      said[place] = label, speaker
  assert not set(train.places) & set(test.places)
  used = {}
  for split in real.values():
    there = _there(split, "speech")
    columns = (split[name][there] for name in ("source_speech", "label", "speaker"))
    for place, *true in zip(*columns, strict=True):
      assert said[place] == tuple(true)
    for number in (1, 2) if "pair" in split else ():
      rows = split["pair"] == number
      used[number] = set(split["source_speech"][rows])
  # Of each speaker's 45 recordings of a digit one set has 23 and the other 22.
  for number, count in ((1, 23), (2, 22)):
    found = collections.Counter(said[place] for place in used[number])
    assert len(found) == 50 and set(found.values()) == {count}


def test_parts_keep_numbers_together_and_divide_each_stratum():
  numbers = np.repeat(np.arange(90), 4)
  strata = numbers % 7
  mixed = np.random.default_rng(0).permutation(len(numbers))
  found = pairs_of_digits._parts(numbers[mixed], strata[mixed], 3, np.random.default_rng(1))
  part = np.empty_like(found)
  part[mixed] = found
  assert (part.reshape(90, 4) == part[::4, None]).all()
  for stratum in range(7):
    share = np.bincount(part[strata == stratum], minlength=3) // 4
    assert share.max() - share.min() <= 1


def test_captions_say_what_is_true_of_one_other(data):
  for split in data.values():
    there = _there(split, "caption")
    said = pairs_of_digits.parse_captions(split["caption"][:])
    assert (said["label"] >= 0)[there].all() and not (said["label"] >= 0)[~there].any()
    about = np.zeros((len(there), 3), bool)
    for name, claim in said.items():
      told = claim >= 0
      if name not in split:
        assert not told.any()
        continue
      np.testing.assert_array_equal(claim[told], split[name][told])
      if name != "label":
        main = PRESENT[name]
        assert _there(split, main)[told].all()
        about[:, MAIN[1:].index(main)] |= told
    assert about.sum(1).max() == 1


def test_how_often_captions_say_something(data):
  train, test = data["train"], data["test"]
  prob = {"thickness": 0.5, "slant": 0.5, "heading": 0.7, "speaker": 0.5}
  for split, share in ((train, 1), (test, 1 / 3)):
    said = pairs_of_digits.parse_captions(split["caption"][:])
    for name, main in PRESENT.items():
      if name not in split:
        continue
      worth = np.array([bool(word) for word in WORDS[name]])[split[name]]
      told = (said[name] >= 0)[worth & _there(split, main) & _there(split, "caption")]
      assert told.mean() == pytest.approx(share * prob[name], abs=0.12), name
  lines = [rendering.text_of(row) for row in test["caption"]]
  figures = [any(character.isdigit() for character in line) for line in lines]
  assert np.mean(figures) == pytest.approx(0.5, abs=0.12)


def test_what_is_said_of_is_what_is_worded(embedded, letter_by_letter):
  """All sentences there are, each in both spellings."""
  sentences, meant = [], []
  names = [(word, i % 10) for i, word in enumerate((*rendering.NAMES, *map(str, range(10))))]
  forms = itertools.product((-1, 0, 2), (-1, 0, 2))
  for (name, label), (t, s) in itertools.product(names, forms):
    words = [w[i] if i >= 0 else "" for i, w in ((t, WORDS["thickness"]), (s, WORDS["slant"]))]
    sentences.append(captioned_digits.sentence("", words, name))
    meant.append([label, t, s, -1, -1])
  for name, label in names:
    article = "an" if label == 8 else "a"
    for i, word in enumerate(WORDS["heading"]):
      sentences.append(f"{article} {name} goes {word}")
      meant.append([label, -1, -1, i, -1])
    for i, word in enumerate(WORDS["speaker"]):
      sentences.append(f"{article} {name} said by {word}")
      meant.append([label, -1, -1, -1, i])
  assert len(set(sentences)) == len(sentences) == 20 * (9 + 8 + 5)
  said = pairs_of_digits.parse_captions(_tokens(*sentences))
  assert tuple(said) == ("label", *WORDS)
  np.testing.assert_array_equal(np.stack(list(said.values()), 1), meant)
  assert {values.dtype for values in said.values()} == {np.dtype(np.int32)}
  assert max(map(len, sentences)) == pairs_of_digits.CAPTION_LENGTH
  valid = datasets.valid("caption", "pairs_of_digits", of="digits")
  assert valid(embedded["test"]["caption"]).all()
  letter_by_letter(valid, sentences, pairs_of_digits.CAPTION_LENGTH)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "seven",
    "an seven",
    "a eight",
    "an thick eight",
    "a thick seven goes up",
    "a left leaning 3 goes up",
    "a thick 3 said by theo",
    "a 3 goes up said by theo",
    "a 3 goes",
    "a 33",
  ],
)
def test_nothing_is_said_of_what_is_no_sentence(text):
  assert all(values == [-1] for values in pairs_of_digits.parse_captions(_tokens(text)).values())


def test_headings_are_measured_on_videos(data):
  test = data["test"]
  videos = test["video"][:]
  np.testing.assert_array_equal(pairs_of_digits.heading_of(videos), test["heading"])
  assert set(test["heading"]) == set(range(8))
  # Where the ink is counts, not how much; what does not move has no heading.
  faded = videos * np.linspace(1, 0.5, 8, dtype=np.float32)[:, None, None, None]
  np.testing.assert_array_equal(pairs_of_digits.heading_of(faded), test["heading"])
  rng = np.random.default_rng(0)
  noisy = videos + rng.normal(0, 0.02, videos.shape)
  assert (pairs_of_digits.heading_of(noisy) == test["heading"]).mean() > 0.9
  for still in (videos[:, :1].repeat(8, 1), 0 * videos):
    assert (pairs_of_digits.heading_of(still) == -1).all()


def test_adherence_is_with_what_the_caption_says(embedded):
  split = embedded["train"]
  for number, (names, measured) in {
    0: (("digit", ["label", "thickness", "slant"])),
    1: (("speech", ["label"])),
    3: (("video", ["label", "heading"])),
  }.items():
    rows = np.flatnonzero(split["pair"] == number)
    given, x, label = {"caption": split["caption"][rows]}, split[names][rows], split["label"][rows]
    adherence = datasets.adherence(names, "pairs_of_digits", of="digits")
    true = adherence(given, x, label)
    assert list(true) == [f"caption {name}" for name in measured]
    said = pairs_of_digits.parse_captions(given["caption"])
    for name in measured:
      told = said[name] >= 0
      values = true[f"caption {name}"]
      assert told.any() and (values[told] == 1).all() and np.isnan(values[~told]).all()
    other = adherence(given, np.roll(x, 1, axis=0), (label + 1) % 10)
    assert np.nanmean(other["caption label"]) == 0
    for name in measured[1:]:
      assert np.nanmean(other[f"caption {name}"]) < 0.75
    assert adherence({"digit": 0 * x}, x, label) == {}


def test_adherence_of_captions_is_with_what_is_given(embedded):
  test = embedded["test"]
  adherence = datasets.adherence("caption", "pairs_of_digits")
  given = {name: test[name][:] for name in MAIN[1:]}
  true = adherence(given, test["caption"], test["label"])
  assert set(true) == {"digit thickness", "digit slant", "video heading"}
  assert all(np.nanmin(values) == 1 for values in true.values())
  assert adherence({"speech": given["speech"]}, test["caption"], test["label"]) == {}
  made = _tokens("a thick 3", "a thick 3", "three a", "an 8 goes up", "an 8 goes down")
  thick = int(np.flatnonzero(test["thickness"] == 2)[0])
  other = int(np.flatnonzero(test["thickness"] == 1)[0])
  up = int(np.flatnonzero(test["heading"] == 0)[0])
  given = {
    "digit": test["digit"][[thick, other, thick, thick, thick]],
    "video": test["video"][[up] * 5],
  }
  found = adherence(given, made, np.zeros(5, int))
  valid = datasets.valid("caption", "pairs_of_digits")
  np.testing.assert_array_equal(valid(made), [True, True, False, True, True])
  np.testing.assert_array_equal(found["digit thickness"], [1, 0, np.nan, np.nan, np.nan])
  np.testing.assert_array_equal(found["video heading"], [np.nan, np.nan, np.nan, 1, 0])


def test_other_sources_are_refused():
  for call in (datasets.modalities, functools.partial(datasets.load, split="train")):
    with pytest.raises(UserError, match="of is 'svhn'; .*mnist or digits"):
      call("pairs_of_digits", of="svhn")
