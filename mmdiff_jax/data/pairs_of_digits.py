"""The data set `pairs_of_digits`: text, image, sound and video of digits, of which there are pairs.

An example for training has exactly two of four modalities: a caption, a handwritten digit, a spoken
one and a video of a digit that bounces about. There are four sets of such pairs, `PAIRS`, and no
instance of a source is in two of them: nothing but sentences links an image to a sound or a video.
Tests have all four modalities, of one class. A caption is of one of the others and true of it.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import NamedTuple

from jaxtyping import Float, Int, Num
import numpy as np

from mmdiff_jax.data import (
  digits,
  pairing,
  progress,
  rendering,
  sketched_digits,
  sources,
  spoken_mnist,
)
from mmdiff_jax.data.captioned_digits import draw, FORM, form_of, sentence, SLANTS, THICKNESSES
from mmdiff_jax.data.mnist import DIGIT, LABEL
from mmdiff_jax.data.moving_digits import bounce, film, FRAMES, HEADING, HEADINGS
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality, video_picture

SOURCES = sketched_digits.SOURCES
PAIRS = (("caption", "digit"), ("caption", "speech"), ("speech", "video"), ("caption", "video"))
SIZE = 20  # Pixels a side of a video.
CAPTION_LENGTH = 28

# Examples of each class: in each set of pairs, and in the tests.
COUNTS = {"train": 2000, "test": 200, "validation": 200}

# What is taken from sources for each set of examples, and from which part of its source: `digit`
# and `video` share one, the handwriting.
_SETS = {
  "train": ({"digit": 0}, {"speech": 0}, {"speech": 1, "video": 1}, {"video": 2}),
  "test": ({"digit": 0, "speech": 0, "video": 1},),
}
_PARTS = {"train": {"digit": 3, "speech": 2}, "test": {"digit": 2, "speech": 1}}
# Validation examples have all modalities, as those of the tests.
_SETS["validation"], _PARTS["validation"] = _SETS["test"], _PARTS["test"]

_SEED = 0
_CHUNK = 500  # Pages drawn at once.
_SPEEDS = (1, 2)  # Least and most of videos, in pixels a frame.
_RIM = 2  # Pixels at each side of a page that a video leaves out, before it is halved.

# What captions may say of what they are about, in which words, and how likely if there is one.
_ABOUT = {"digit": ("thickness", "slant"), "speech": ("speaker",), "video": ("heading",)}
_WORDS = {
  "thickness": THICKNESSES,
  "slant": SLANTS,
  "heading": tuple(HEADINGS),
  "speaker": sources.SPEAKERS,
}
_SAID = {"thickness": 0.5, "slant": 0.5, "heading": 0.7, "speaker": 0.5}


class _Instances(NamedTuple):
  """Instances of a source: their classes, their numbers in it, and each one's part of it."""

  labels: np.ndarray
  numbers: np.ndarray
  part: np.ndarray


def _either(name: str, words: tuple[str, ...]) -> str:
  return f"(?P<{name}>{'|'.join(filter(None, words))})"


_GRAMMAR = re.compile(
  rf"{rendering.ARTICLE}"
  rf"(?:{_either('thickness', THICKNESSES)} )?(?:{_either('slant', SLANTS)} )?"
  rf"{_either('label', (*rendering.NAMES, *map(str, range(10))))}"
  rf"(?(thickness)|(?(slant)|(?: goes {_either('heading', _WORDS['heading'])}"
  rf"| said by {_either('speaker', _WORDS['speaker'])})?))"
)


def _speaker(label: np.ndarray | np.integer) -> str:
  return sources.SPEAKERS[int(label)]


def _sound(modalities: tuple[Modality, ...]) -> Modality:
  (sound,) = (modality for modality in modalities if modality.kind == "audio")
  return dataclasses.replace(sound, name="speech")


_SOUNDS = {"mnist": _sound(spoken_mnist.MODALITIES), "digits": _sound(digits.MODALITIES)}


def modalities(*, of: str = "mnist") -> tuple[Modality, ...]:
  """The four, then labels; the embedded digits have no speakers. Argument and errors as `load`."""
  if of not in SOURCES:
    raise UserError(f"config.data.of is {of!r}; the digits are of {' or '.join(SOURCES)}.")
  caption = rendering.caption(CAPTION_LENGTH)
  video = Modality("video", "video", (FRAMES, SIZE, SIZE, 1), video_picture)
  speaker = Modality("speaker", "label", (), _speaker, num_classes=len(sources.SPEAKERS))
  labels = (LABEL, *FORM[:2], HEADING, *([speaker] if of == "mnist" else []))
  return caption, DIGIT, _SOUNDS[of], video, *labels


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  of: str = "mnist",
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """Returns a split, in random order, as many examples of each class.

  For training each set of pairs has 20,000 examples, 2,000 a class. With "mnist" a third of its
  handwriting, about 20,000 digits, is for each of the three sets with an image or a video, and half
  of each speaker's recordings of a digit, 1,150 and 1,100, for each of the two with sound, which
  are paired again and again. The embedded "digits" have about 480 handwritings in a third, each
  drawn 30 times, and about 21,500 dial tones in a half.

  Tests are 2,000 examples, 200 a class, out of the sources' test splits: with "mnist" of 250
  recordings and 10,000 digits, half of them for images and half for videos; with "digits", whose
  tests repeat more, of about 180 handwritings for images and 180 for videos, each drawn 3 times,
  and 1,080 dial tones. Validation examples are the same out of what is held out of training.

  Args:
    split: "train" (80,000 examples), "test" or "validation" (2,000 each).
    data_dir: folder of prepared data sets, for the sources.
    manual_dir: folder in which the files of the sources may lie, where there is no internet.
    of: the sources, "mnist" (MNIST and spoken digits) or "digits", which is embedded.
    validation: fraction of each source that is held out of "train" for "validation".

  Returns:
    caption: int32 [n, CAPTION_LENGTH], indices into `rendering.ALPHABET`.
    digit: float32 [n, 28, 28, 1] in [0, 1], 1 is ink, drawn thinner or thicker and slanted.
    speech: float32 [n, 32, 32], a log-mel spectrogram in [0, 1].
    video: float32 [n, 8, 20, 20, 1] in [0, 1], a digit of 12 pixels.
    label: int32 [n], the digit; thickness and slant of the image, as `captioned_digits.Form`;
      heading of the video, place in `HEADINGS`; speaker of the sound, place in `sources.SPEAKERS`,
      which "digits" does not have.
    source_digit, source_speech, source_video: int [n], number of the instance in its source, -1
      where the example has none. Tests have numbers of their own. Those of `digit` and `video` are
      of one source, the handwriting.
    For training also pair: int [n], place in `PAIRS`; and for each but `label` its NAME_present,
      bool [n]. What is not present is zeros.

  Raises:
    UserError: there is no such source, or it is not there.
  """
  all_modalities = modalities(of=of)
  rng = np.random.default_rng((_SEED, pairing.SPLITS[split]))
  pages, written, writing = sketched_digits.handwriting(of, split, data_dir, manual_dir, validation)
  heard, spoken, speakers, recording = sources.read_part(
    _SPEECH[of], split, validation, data_dir, manual_dir
  )
  ways = spoken * len(sources.SPEAKERS) + speakers
  parts = _PARTS[split]
  ink = _Instances(written, writing, _parts(writing, written, parts["digit"], rng))
  sound = _Instances(spoken, recording, _parts(recording, ways, parts["speech"], rng))
  instances = {"digit": ink, "speech": sound, "video": ink}
  pair, label, places = _examples(split, instances, rng)
  present = {name: index >= 0 for name, index in places.items()}

  columns = _digit(pages, places["digit"], rng) | _video(pages, places["video"], rng)
  columns |= {"speech": Column(places["speech"], _with_blank(heard).__getitem__), "label": label}
  if of == "mnist":
    columns["speaker"] = np.where(present["speech"], speakers[places["speech"]], 0)
  # What a caption is about is any of the others, as likely each.
  luck = [np.where(there, rng.random(len(pair)), -1.0) for there in present.values()]
  seen = {name: columns[name] for name in _WORDS if name in columns}
  sentences = captions(np.argmax(luck, axis=0), label, seen, rng)
  captioned = np.ones(len(pair), bool)
  if split == "train":
    captioned = np.array(["caption" in names for names in PAIRS])[pair]
  tokens = rendering.tokens_of(sentences, CAPTION_LENGTH)
  columns["caption"] = np.where(captioned[:, None], tokens, 0)

  data = {modality.name: columns[modality.name] for modality in all_modalities}
  for name, index in places.items():
    data[f"source_{name}"] = np.where(present[name], instances[name].numbers[index], -1)
  if split != "train":
    return data
  masks = {"caption": captioned, **present}
  masks |= {label: masks[name] for name, labels in _ABOUT.items() for label in labels}
  masks = {f"{name}_present": mask for name, mask in masks.items() if name in data}
  return data | {"pair": pair} | masks


def _tones(split: str, data_dir: str | None, manual_dir: str | None) -> sources.Recordings:
  del manual_dir
  builder = digits.prepared(data_dir)
  arrays = digits.arrays(builder, split)
  number = len(arrays["label"])
  first = builder.number("train") if split == "test" else 0
  places, speakers = first + np.arange(number), np.zeros(number, np.int32)
  return sources.Recordings(arrays["tone"], arrays["label"], speakers, places)


# Log-mel float32 [n, 32, 32], digits, speakers and numbers in the source, none in both splits.
_SPEECH = {"mnist": spoken_mnist.speech, "digits": _tones}


def _parts(
  numbers: Int[np.ndarray, " n"],
  strata: Int[np.ndarray, " n"],
  count: int,
  rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
  """The part, of `count`, of each item; equal numbers are in one, and strata in all alike."""
  _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
  part = np.empty(len(first), int)
  for stratum in np.unique(strata):
    members = rng.permutation(np.flatnonzero(strata[first] == stratum))
    part[members] = np.arange(len(members)) % count
  return part[inverse]


def _examples(
  split: str, instances: Mapping[str, _Instances], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
  """Returns the set, class and instances of each example, -1 for an instance that it lacks."""
  rows, labels = [], []
  for number, taken in enumerate(_SETS[split]):
    members = [np.flatnonzero(instances[name].part == part) for name, part in taken.items()]
    classes = [instances[name].labels[items] for name, items in zip(taken, members, strict=True)]
    index = pairing.pair(classes, COUNTS[split], seed=(_SEED, pairing.SPLITS[split], number))
    labels.append(classes[0][index[:, 0]])
    places = {name: items[i] for name, items, i in zip(taken, members, index.T, strict=True)}
    none = np.full(len(index), -1)
    rows.append(np.stack([np.full(len(index), number)] + [places.get(x, none) for x in _ABOUT]))
  order = rng.permutation(sum(map(len, labels)))
  pair, *places = np.concatenate(rows, axis=1)[:, order]
  return pair, np.concatenate(labels)[order], dict(zip(_ABOUT, places, strict=True))


def _with_blank(items: Num[np.ndarray, "n ..."]) -> Num[np.ndarray, "_ ..."]:
  """Items and zeros after them, where the index -1 of what is not there leads to."""
  return np.concatenate([items, np.zeros_like(items[:1])])


def _digit(pages, index, rng) -> dict[str, Column | np.ndarray]:
  """Images of handwriting, where there is one, and what can be seen of them."""
  rows = np.flatnonzero(index >= 0)
  chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
  size = DIGIT.shape[0]
  drawn = [
    draw(pages[index[chunk]], rng, size=size, reach=0.0)
    for chunk in progress.report("Drawing pairs_of_digits", chunks)
  ]
  forms = [form_of(ink / np.float32(255)) for ink in drawn]
  drawn_row = np.full(len(index), -1)
  drawn_row[rows] = np.arange(len(rows))
  ink = _with_blank(np.concatenate(drawn))
  columns = {"digit": Column(drawn_row, lambda i: ink[i, ..., None] / np.float32(255))}
  for name in _ABOUT["digit"]:
    columns[name] = np.zeros(len(index), np.int32)
    columns[name][rows] = np.concatenate([getattr(form, name) for form in forms])
  return columns


def _video(pages, index, rng) -> dict[str, Column | np.ndarray]:
  """Videos of handwriting, where there is one, and their headings."""
  inner = pages[:, _RIM:-_RIM, _RIM:-_RIM]
  side = inner.shape[1] // 2
  small = inner.reshape(-1, side, 2, side, 2).mean((2, 4), np.float32).astype(np.uint8)
  small = _with_blank(small)
  places, heading = bounce(len(index), SIZE - side, rng, speeds=_SPEEDS)

  def read(i):
    return film(small[i[:, 0]], i[:, 1:].reshape(-1, FRAMES, 2), size=SIZE) / np.float32(255)

  joined = np.column_stack([index, places.reshape(len(index), -1)])
  return {"video": Column(joined, read), "heading": np.where(index >= 0, heading, 0)}


def captions(
  about: Int[np.ndarray, " n"],
  labels: Int[np.ndarray, " n"],
  seen: Mapping[str, Int[np.ndarray, " n"]],
  rng: np.random.Generator,
) -> list[str]:
  """A sentence for each example; it names the digit and may say more of what it is about.

  Of an image `a [thickness] [slant] digit`, of a sound `a digit [said by speaker]`, of a video
  `a digit [goes heading]`; the digit is a word or a figure.

  Args:
    about: 0 for an image, 1 for a sound, 2 for a video.
    labels: the digits.
    seen: what is true of the examples, out of thickness, slant, heading and speaker; what is not
      there is not said.
    rng: draws what is mentioned.

  Returns:
    n strings of at most `CAPTION_LENGTH` characters out of `rendering.ALPHABET`.
  """
  spelt = rng.random(len(labels)) < 0.5
  mentioned = {name: rng.random(len(labels)) < prob for name, prob in _SAID.items()}
  kinds = tuple(_ABOUT)
  sentences = []
  for i, label in enumerate(labels):
    words = dict.fromkeys(_WORDS, "")
    for name in _ABOUT[kinds[about[i]]]:
      if name in seen and mentioned[name][i]:
        words[name] = _WORDS[name][seen[name][i]]
    digit = rendering.NAMES[label] if spelt[i] else str(label)
    caption = sentence("", (words["thickness"], words["slant"]), digit)
    caption += f" goes {words['heading']}" if words["heading"] else ""
    caption += f" said by {words['speaker']}" if words["speaker"] else ""
    sentences.append(caption)
  return sentences


def parse_captions(tokens: Int[np.ndarray, "n length"]) -> dict[str, Int[np.ndarray, " n"]]:
  """Returns the attributes that captions mention, the inverse of `captions`.

  Args:
    tokens: captions; one that is not a sentence of this data set mentions nothing.

  Returns:
    label, thickness, slant, heading and speaker, each int32 [n]; -1 where it is not mentioned.
  """
  return rendering.parse_captions(tokens, _GRAMMAR, {"label": rendering.NAMES, **_WORDS})


def heading_of(video: Float[np.ndarray, "n frames h w 1"]) -> Int[np.ndarray, " n"]:
  """Returns where the ink of videos goes from the first frame to the second.

  Args:
    video: in [0, 1].

  Returns:
    int32, place in `HEADINGS`; -1 if the centre of the ink moves less than half a pixel along both
    axes. Between half a pixel and the slowest digit's there is room for what is not quite rigid.
  """
  ink = np.maximum(video[:, :2, ..., 0], 0)
  mass = np.maximum(ink.sum((2, 3)), 1e-6)
  height, width = ink.shape[2:]
  centres = np.stack([ink.sum(3) @ np.arange(height), ink.sum(2) @ np.arange(width)], -1)
  moves = np.diff(centres / mass[..., None], axis=1)[:, 0]
  signs = np.sign(moves) * (np.abs(moves) >= 0.5)
  same = (signs[:, None] == np.array(list(HEADINGS.values()))).all(2)
  return np.where(same.any(1), same.argmax(1), -1).astype(np.int32)


def _seen(name: str, x: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the measured attributes of images or videos that captions may mention."""
  if name == "digit":
    form = form_of(np.clip(x[..., 0], 0, 1))
    return {"thickness": form.thickness, "slant": form.slant}
  return {"heading": heading_of(x)} if name == "video" else {}


def adherence(
  main: str,
  given: Mapping[str, Num[np.ndarray, "n ..."]],
  generated: Num[np.ndarray, "n ..."],
  predicted: Int[np.ndarray, " n"],
) -> dict[str, Float[np.ndarray, " n"]]:
  """Returns the adherence of samples to what was given.

  Args:
    main: the modality generated: caption, digit, speech or video.
    given: the modalities that were given, in the model's view.
    generated: the samples.
    predicted: the digits that a classifier finds in them; not needed of captions.

  Returns:
    Each 1 where it is so and else 0, NaN where the caption does not say it. If a caption was given:
    "caption label", for images "caption thickness" and "caption slant", for videos "caption
    heading": the sample shows what it says. Who speaks is not measured. Of captions generated, if
    an image or a video was given, "digit thickness", "digit slant" and "video heading": the caption
    says what is true of that.
  """
  if main == "caption":
    mentioned = parse_captions(generated)
    measured = {
      f"{x} {name}": (name, true) for x in given for name, true in _seen(x, given[x]).items()
    }
  else:
    mentioned = parse_captions(given["caption"]) if "caption" in given else {}
    true = {"label": predicted, **_seen(main, generated)} if mentioned else {}
    measured = {f"caption {name}": (name, value) for name, value in true.items()}
  matches = {}
  for title, (name, value) in measured.items():
    matches[title] = np.where(mentioned[name] < 0, np.nan, mentioned[name] == value)
  return matches


ADHERENCE = {name: functools.partial(adherence, name) for name in ("caption", *_ABOUT)}
VALID = {"caption": functools.partial(rendering.valid, grammar=_GRAMMAR)}
