"""The data set `sketched_digits`: handwriting anywhere on a page, and what may be given of it.

Digits are made thinner or thicker, slanted, sized and placed by chance, as in `captioned_digits`
but grey. What may be given of a page is its sketch, what is on one half of it, a caption that may
leave out any of what it could say, even the digit, and the labels. `adherence` tells how true other
pages are to that.
"""

from collections.abc import Mapping
import functools
import re
from typing import Any

from jaxtyping import Float, Int, Num, UInt8
import numpy as np

from mmdiff_jax.data import (
  adherence as measures,
  cache,
  derived,
  digits,
  masked,
  pairing,
  progress,
  public,
  rendering,
  sources,
)
from mmdiff_jax.data.captioned_digits import (
  draw,
  FORM,
  Form,
  form_of,
  PLACES,
  sentence,
  SLANTS,
  THICKNESSES,
)
from mmdiff_jax.data.mnist import DIGIT, LABEL
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, mask_picture, Modality

SOURCES = ("mnist", "digits")
SIZE = 28
CAPTION_LENGTH = 48
PAPER, INK, HIDDEN = range(3)  # Classes of masks.

_SEED = 0
_CHUNK = 500  # Pages drawn at once.
_REACH = 6  # Pixels from the page's centre to the outer places.
# The handwritings of `digits` fill their page of 16 pixels, while MNIST's are 20 pixels high; and
# they are blurred: ink begins at one of these levels and is full at the other.
_ENLARGED = 1.4
_LEVELS = (0.4, 0.7)
# Chances that a caption says an attribute, and that it names the digit.
_SAID, _NAMED = 0.6, 0.7

_ANY = "digit"  # In the digit's place, where it is not named.
_WORDS = Form(thickness=THICKNESSES, slant=SLANTS, place=PLACES)
_GRAMMAR = re.compile(
  rf"((?P<place>{'|'.join(PLACES)}) )?{rendering.ARTICLE}"
  rf"((?P<thickness>{'|'.join(filter(None, THICKNESSES))}) )?"
  rf"((?P<slant>{'|'.join(filter(None, SLANTS))}) )?"
  rf"((?P<label>{'|'.join(rendering.NAMES)}|[0-9])|{_ANY})"
)

MODALITIES = (
  DIGIT,
  Modality("sketch", "image", (SIZE, SIZE, 1), image_picture),
  Modality("mask", "mask", (SIZE, SIZE), mask_picture, num_classes=3),
  rendering.caption(CAPTION_LENGTH),
  LABEL,
  *FORM,
)


def modalities(*, of: str = "mnist", part: Any = (0, 1)) -> tuple[Modality, ...]:
  """All of the data set's, whatever the options; arguments and errors as `load`."""
  if of not in SOURCES:
    raise UserError(f"config.data.of is {of!r}; the handwriting is of {' or '.join(SOURCES)}.")
  is_pair = isinstance(part, (tuple, list)) and [type(x) for x in part] == [int, int]
  if not is_pair or not 0 <= part[0] < part[1]:
    raise UserError(
      f"config.data.part is {part!r}; it is the number of a part, from 0, and how many parts there"
      " are, such as (0, 3) for the first third. (0, 1) is all."
    )
  return MODALITIES


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  of: str = "mnist",
  part: Any = (0, 1),
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """A split, or a part of the training split, in the order of the handwriting's source.

  An example is the same in whichever part it is read.

  Args:
    split: "train", "test" or "validation".
    data_dir: folder of prepared data sets, for the source.
    manual_dir: folder in which the files of MNIST may lie, where there is no internet.
    of: the source, "mnist" (60,000 and 10,000 examples) or "digits", which is embedded (43,110 and
      1,080, 30 and 3 of each handwriting).
    part: `(index, count)`, which of how many parts of the training split; no handwriting is in two
      of them. The other splits are complete whatever the part is.
    validation: fraction of the handwritings that is held out of "train" for "validation".

  Returns:
    digit: float32 [n, 28, 28, 1] in [0, 1], 1 is ink.
    sketch: float32 [n, 28, 28, 1] in [0, 1], the page's edges, by `derived.sketch`.
    mask: int32 [n, 28, 28], where `PAPER`, where `INK`, and of which half of the page it is
      `HIDDEN`: the upper, lower, left or right one.
    caption: int32 [n, CAPTION_LENGTH], indices into `rendering.ALPHABET`.
    label: int32 [n], the digit; thickness, slant and place likewise, as `Form`.

  Raises:
    UserError: there is no such source or part, or the source is not there.
  """
  modalities(of=of, part=part)
  source_split = "train" if split == "validation" else split
  items, labels, writing = handwriting(of, source_split, data_dir, manual_dir)
  # All are drawn, so that what is random does not depend on the part.
  drawn = cache.arrays(
    f"sketched_digits-{of}-{source_split}",
    (items, labels, source_split),
    lambda: _drawn(items, labels, source_split),
  )
  ink = drawn["ink"]
  pages = Column(np.arange(len(ink)), lambda i: ink[i, ..., None] / np.float32(255))

  def mask(i):
    visible = masked.masks(i, source_split, ("half",), 0.5, (SIZE, SIZE))
    return np.where(visible, pages[i][..., 0] > 0.5, HIDDEN).astype(np.int32)

  index, count = part if split == "train" else (0, 1)
  unique, inverse = np.unique(writing, return_inverse=True)
  number = len(unique)
  rows = np.flatnonzero(inverse * count // number == index)
  rows = np.intersect1d(rows, pairing.part_rows(split, labels, validation, groups=writing))
  if not len(rows):
    raise UserError(
      f"config.data.part is {part!r}, but {of!r} has {number:,} handwritings. Take fewer parts."
    )
  arrays = {
    "caption": drawn["caption"],
    "label": labels,
    **{name: drawn[name] for name in Form._fields},
  }
  return {
    "digit": Column(rows, pages.read),
    "sketch": Column(rows, lambda i: derived.sketch(pages[i])),
    "mask": Column(rows, mask),
    **{name: column[rows] for name, column in arrays.items()},
  }


def _drawn(items: np.ndarray, labels: np.ndarray, split: str) -> dict[str, np.ndarray]:
  """Ink on pages, uint8 [n, 28, 28], what can be seen of them as in `Form`, and captions."""
  rng = np.random.default_rng((_SEED, split == "test"))
  chunks = progress.report(f"Drawing sketched_digits ({split})", _chunks(len(items)))
  ink, measured = [], []
  for chunk in chunks:
    ink.append(_place(draw(items[chunk], rng, size=SIZE, reach=0.0), rng))
    measured.append(form_of(ink[-1] / np.float32(255)))
  seen = Form(*(np.concatenate(parts) for parts in zip(*measured, strict=True)))
  tokens = rendering.tokens_of(captions(labels, seen, rng), CAPTION_LENGTH)
  return {"ink": np.concatenate(ink), "caption": tokens, **seen._asdict()}


def _chunks(number: int) -> list[slice]:
  return [slice(i, i + _CHUNK) for i in range(0, number, _CHUNK)]


def handwriting(
  of: str,
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  validation: float = 0.0,
) -> tuple[UInt8[np.ndarray, "n 28 28"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
  """Handwriting of MNIST's size, of one of `SOURCES`; arguments and errors as `load`.

  Returns:
    Ink, 255 at its most; the digits, int32; and numbers that tell whose handwriting it is, of which
    none is in both splits.
  """
  read = {"mnist": _mnist, "digits": _digits}[of]
  items, labels, writing = read("train" if split == "validation" else split, data_dir, manual_dir)
  if split == "test" or not validation:
    return items, labels, writing
  rows = pairing.part_rows(split, labels, validation, groups=writing)
  return items[rows], labels[rows], writing[rows]


def _mnist(split: str, data_dir: str | None, manual_dir: str | None):
  items, labels = sources.mnist(split, data_dir, manual_dir)
  first = public.PUBLIC["mnist", "train"].number if split == "test" else 0
  return items[..., 0], labels, first + np.arange(len(items))


def _digits(split: str, data_dir: str | None, manual_dir: str | None):
  del manual_dir
  arrays = digits.arrays(digits.prepared(data_dir), split)
  items, labels, writing = (arrays[name] for name in ("digit", "label", "handwriting"))
  enlarged = cache.arrays(f"digits_pages-{split}", [items], lambda: {"ink": _enlarged(items)})
  return enlarged["ink"], labels, writing


def _enlarged(items: UInt8[np.ndarray, "n h w 1"]) -> UInt8[np.ndarray, "n 28 28"]:
  """Pages of `digits` at MNIST's size and contrast."""
  # Place on MNIST's page -> place on that of `digits`.
  places = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
  places = places / np.float32(_ENLARGED) + (items.shape[1] - 1) / 2
  places = np.broadcast_to(places, (len(items), SIZE, SIZE))
  pages = [
    rendering.bilinear(
      items[chunk, ..., 0] / np.float32(255), places[chunk].swapaxes(1, 2), places[chunk]
    )
    for chunk in _chunks(len(items))
  ]
  low, high = _LEVELS
  ink = np.clip((np.concatenate(pages) - low) / (high - low), 0, 1)
  return np.round(255 * ink).astype(np.uint8)


def _place(ink: UInt8[np.ndarray, "n h w"], rng: np.random.Generator) -> UInt8[np.ndarray, "n h w"]:
  """Moves ink to one of nine places by whole pixels, as far as it keeps off the page's rim."""
  wanted = rng.integers(-1, 2, (len(ink), 2)) * _REACH
  there = [ink.any(2), ink.any(1)]
  # Rows or columns that are free before the ink and after it, but for the rim.
  before = np.stack([line.argmax(1) for line in there], 1) - 1
  after = np.stack([line[:, ::-1].argmax(1) for line in there], 1) - 1
  move = np.clip(wanted, -np.maximum(before, 0), np.maximum(after, 0))
  steps = np.arange(SIZE)
  rows = (steps - move[:, :1]) % SIZE  # What leaves on one side is blank.
  columns = (steps - move[:, 1:]) % SIZE
  return ink[np.arange(len(ink))[:, None, None], rows[:, :, None], columns[:, None]]


def captions(labels: Int[np.ndarray, " n"], seen: Form, rng: np.random.Generator) -> list[str]:
  """A sentence for each page; it says some of what can be seen, and may name the digit.

  `sentence = [place] a [thickness] [slant] digit`, the digit a word, a figure or "digit", such as
  "at the top left a thick digit".

  Args:
    labels: the digits.
    seen: what is true of the pages.
    rng: draws what is mentioned.

  Returns:
    n strings of at most `CAPTION_LENGTH` characters out of `rendering.ALPHABET`.
  """
  mentioned = rng.random((len(labels), 3)) < _SAID
  named, spelt = rng.random(len(labels)) < _NAMED, rng.random(len(labels)) < 0.5
  sentences = []
  for i, label in enumerate(labels):
    thickness, slant, place = (
      words[classes[i]] if mention else ""
      for words, classes, mention in zip(_WORDS, seen, mentioned[i], strict=True)
    )
    name = (rendering.NAMES[label] if spelt[i] else str(label)) if named[i] else _ANY
    sentences.append(sentence(place, (thickness, slant), name))
  return sentences


def parse_captions(tokens: Int[np.ndarray, "n length"]) -> dict[str, Int[np.ndarray, " n"]]:
  """Returns the attributes that captions mention, the inverse of `captions`.

  Args:
    tokens: captions; one that is not a sentence of this data set mentions nothing.

  Returns:
    label, thickness, slant and place, each int32 [n]; -1 where the caption does not mention it.
  """
  words = {"label": rendering.NAMES, **_WORDS._asdict()}
  return rendering.parse_captions(tokens, _GRAMMAR, words)


def adherence(
  given: Mapping[str, Num[np.ndarray, "n ..."]],
  images: Float[np.ndarray, "n 28 28 1"],
  predicted: Int[np.ndarray, " n"],
) -> dict[str, Float[np.ndarray, " n"]]:
  """Returns the adherence of pages to what was given of them.

  Args:
    given: the modalities that were given, in the model's view.
    images: the pages, in [0, 1].
    predicted: the digits that a classifier finds on them.

  Returns:
    Of what was given, each in [0, 1] for each page: sketch, by `edges`; mask, the intersection over
    union of ink where it is not hidden; and 1 where the page shows what was said, else 0: "caption
    label", "caption thickness", ... (NaN where the caption does not say it), label, thickness,
    slant and place.
  """
  scores = {}
  if "sketch" in given:
    scores["sketch"] = measures.edges(given["sketch"], images)
  if "mask" in given:
    mask = given["mask"]
    scores["mask"] = measures.overlap(mask == INK, images[..., 0] > 0.5, where=mask != HIDDEN)
  measured = {"label": predicted, **form_of(np.clip(images[..., 0], 0, 1))._asdict()}
  mentioned = parse_captions(given["caption"]) if "caption" in given else {}
  claims = {f"caption {name}": (value, name) for name, value in mentioned.items()}
  claims |= {name: (given[name], name) for name in measured if name in given}
  for title, (claim, name) in claims.items():
    scores[title] = np.where(claim < 0, np.nan, claim == measured[name])
  return scores


ADHERENCE = {"digit": adherence}
VALID = {"caption": functools.partial(rendering.valid, grammar=_GRAMMAR)}
