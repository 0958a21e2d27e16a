"""The data set `captioned_digits`: coloured MNIST digits anywhere on a page, and what one sees.

Each digit is made thinner or thicker, slanted, sized, coloured and placed by chance. The caption
names it and some of what can be seen: place, thickness, slant and colour. These are not taken from
the draw but measured on the finished picture, so that a caption is true of the picture it stands
by, and of a generated picture one can measure whether it is. What is measured is kept as labels.
"""

from collections.abc import Sequence
import functools
import re
from typing import NamedTuple

from jaxtyping import Float, Int, UInt8
import numpy as np

from mmdiff_jax.data import cache, pairing, progress, rendering, sources
from mmdiff_jax.data.mnist import LABEL
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.modalities import image_picture, Modality

SIZE = 32

# Examples of each class.
COUNTS = {"train": 6000, "test": 1000, "validation": 1000}

COLOURS = {
  "red": (1.0, 0.1, 0.1),
  "green": (0.1, 0.9, 0.1),
  "blue": (0.2, 0.35, 1.0),
  "yellow": (1.0, 0.9, 0.1),
  "pink": (1.0, 0.3, 0.85),
  "white": (0.95, 0.95, 0.95),
}
# In each, the one without a name is not worth a word.
THICKNESSES = ("thin", "", "thick")
SLANTS = ("left leaning", "", "right leaning")
PLACES = (
  *("at the top left", "at the top", "at the top right"),
  *("on the left", "in the middle", "on the right"),
  *("at the bottom left", "at the bottom", "at the bottom right"),
)
CAPTION_LENGTH = 54

_SEED = 0
_CHUNK = 100  # pictures drawn at once
_PALETTE = np.array(list(COLOURS.values()), np.float32)
# Where "thin", "" and "thick" meet, in pixels, and "left leaning", "" and "right leaning", in
# columns a row; left and right of the middle column of places, in pixels from the centre.
_THICKNESS_BOUNDS = (1.5, 2.3)
_SLANT_BOUNDS = (-0.3, 0.5)
_PLACE_BOUNDS = (-3.0, 3.0)


class Form(NamedTuple):
  """Visible properties of ink, each an int32 [n].

  Attributes:
    thickness: index into `THICKNESSES`.
    slant: index into `SLANTS`.
    place: index into `PLACES`.
  """

  thickness: Int[np.ndarray, " n"]
  slant: Int[np.ndarray, " n"]
  place: Int[np.ndarray, " n"]


class Attributes(NamedTuple):
  """Visible properties of pictures, each an int32 [n].

  Attributes:
    colour: index into the names of `COLOURS`.
    thickness: index into `THICKNESSES`.
    slant: index into `SLANTS`.
    place: index into `PLACES`.
  """

  colour: Int[np.ndarray, " n"]
  thickness: Int[np.ndarray, " n"]
  slant: Int[np.ndarray, " n"]
  place: Int[np.ndarray, " n"]


def _name(names: Sequence[str], label: np.ndarray | np.integer) -> str:
  return names[int(label)]


def _label(name: str, names: Sequence[str]) -> Modality:
  show = functools.partial(_name, names)
  return Modality(name, "label", (), show, num_classes=len(names))


FORM = (
  _label("thickness", ("thin", "medium", "thick")),
  _label("slant", ("left", "upright", "right")),
  _label("place", PLACES),
)

MODALITIES = (
  Modality("digit", "image", (SIZE, SIZE, 3), image_picture),
  rendering.caption(CAPTION_LENGTH),
  LABEL,
  _label("colour", tuple(COLOURS)),
  *FORM,
)

_GRAMMAR = re.compile(
  rf"(?:{rendering.one_of(PLACES)} )?{rendering.ARTICLE}(?:{rendering.one_of(THICKNESSES)} )?"
  rf"(?:{rendering.one_of(SLANTS)} )?(?:{rendering.one_of(COLOURS)} )?{rendering.DIGIT}"
)
VALID = {"caption": functools.partial(rendering.valid, grammar=_GRAMMAR)}


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """Returns a split, in random order, as many examples of each class.

  Args:
    split: "train" (60,000 examples), "test" or "validation" (10,000 each).
    data_dir: folder of prepared data sets, for MNIST; None is tfds's own.
    manual_dir: folder in which the files of MNIST may lie, where there is no internet.
    validation: fraction of the digits that is held out of "train" for "validation".

  Returns:
    digit: float32 [n, 32, 32, 3] in [0, 1], coloured ink on black.
    caption: int32 [n, CAPTION_LENGTH], indices into `rendering.ALPHABET`.
    label: int32 [n], the digit; colour, thickness, slant and place likewise, as `Attributes`.

  Raises:
    UserError: MNIST is not there.
  """
  digits, labels = sources.read_part(sources.mnist, split, validation, data_dir, manual_dir)
  seed = (_SEED, pairing.SPLITS[split])
  index = pairing.pair((labels,), COUNTS[split], seed=seed)[:, 0]
  drawn = cache.arrays(
    f"captioned_digits-{split}",
    (digits, labels, index, split),
    lambda: _drawn(digits, labels, index, split),
  )
  ink, colour = drawn.pop("ink"), drawn.pop("ink_colour")
  pictures = Column(np.arange(len(index)), lambda i: paint(ink[i], colour[i]))
  return {"digit": pictures, "caption": drawn.pop("caption"), "label": labels[index], **drawn}


def _drawn(
  digits: np.ndarray, labels: np.ndarray, index: np.ndarray, split: str
) -> dict[str, np.ndarray]:
  """Ink and its colours, uint8 [n, 32, 32] and [n, 3], captions, and `Attributes`."""
  rng = np.random.default_rng((_SEED, split == "test", 1))
  starts = range(0, len(index), _CHUNK)
  ink = np.concatenate(
    [
      draw(digits[index[i : i + _CHUNK], ..., 0], rng)
      for i in progress.report(f"Drawing captioned_digits ({split})", starts)
    ]
  )
  colour = _colours(len(index), rng)
  measured = [
    measure(paint(ink[i : i + _CHUNK], colour[i : i + _CHUNK]))
    for i in progress.report(f"Measuring captioned_digits ({split})", starts)
  ]
  seen = Attributes(*(np.concatenate(parts) for parts in zip(*measured, strict=True)))
  tokens = rendering.tokens_of(captions(labels[index], seen, rng), CAPTION_LENGTH)
  return {"ink": ink, "ink_colour": colour, "caption": tokens, **seen._asdict()}


def draw(
  digits: UInt8[np.ndarray, "n 28 28"],
  rng: np.random.Generator,
  *,
  size: int = SIZE,
  reach: float = 6.0,
) -> UInt8[np.ndarray, "n {size} {size}"]:
  """Draws digits on a page: thinner or thicker, slanted, smaller, somewhere.

  Args:
    digits: ink, 255 at its most.
    rng: the source of all that.
    size: the page's side, in pixels.
    reach: how far the outer ones of the nine places are from the page's centre, in pixels; a digit
      is up to a pixel from its place.

  Returns:
    Ink on the page, 255 at its most.
  """
  n = len(digits)
  # A weight below -0.5 would break thin strokes.
  chance = rng.uniform([-0.5, -0.6, 0.55], [1.0, 0.6, 0.7], (n, 3))
  weight, slant, scale = chance.astype(np.float32).T[..., None, None]
  offset = rng.integers(-1, 2, (n, 2)) * reach + rng.uniform(-1.0, 1.0, (n, 2))
  offset = offset.astype(np.float32)
  drawn = _reweigh(digits / np.float32(255), weight)
  # Output pixel -> digit's pixel: centre, shear, scale, centre.
  rows, columns = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
  rows = rows - offset[:, :1, None]
  columns = columns - offset[:, 1:, None] + slant * rows
  middle = (digits.shape[1] - 1) / 2
  page = rendering.bilinear(drawn, rows / scale + middle, columns / scale + middle)
  peak = page.max((1, 2), keepdims=True)
  return np.round(page * (255 / np.maximum(peak, 1e-6))).astype(np.uint8)


def _reweigh(ink: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """Moves ink towards the most (weight 1) or the least (-1) of each pixel and its neighbours."""
  padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
  near = np.stack(
    [ink, padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
  )
  target = np.where(weight > 0, near.max(0), near.min(0))
  return ink + np.abs(weight) * (target - ink)


def _colours(n: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n 3"]:
  """Colours near those that have a name."""
  colour = _PALETTE[rng.integers(len(_PALETTE), size=n)] + rng.uniform(-0.1, 0.1, (n, 3))
  return np.round(255 * np.clip(colour, 0, 1)).astype(np.uint8)


def paint(
  ink: UInt8[np.ndarray, "n h w"], colour: UInt8[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n h w 3"]:
  """Ink in its colour on black, in [0, 1]."""
  ink, colour = ink / np.float32(255), colour / np.float32(255)
  pictures = np.empty((*ink.shape, 3), np.float32)
  for channel in range(3):  # A quarter of the time of one product over a last axis of 3.
    np.multiply(ink, colour[:, channel, None, None], out=pictures[..., channel])
  return pictures


def measure(pictures: Float[np.ndarray, "n h w 3"]) -> Attributes:
  """Returns the visible properties of pictures of coloured ink on black.

  The ink of a pixel is its strongest channel. The colour is the named one nearest to that of all
  ink together.

  Args:
    pictures: in [0, 1].
  """
  ink = np.maximum.reduce(np.moveaxis(pictures, -1, 0))  # Much faster than along a short axis.
  tint = pictures.sum((1, 2))
  tint = tint / np.maximum(tint.max(1, keepdims=True), 1e-6)
  distance = np.linalg.norm(tint[:, None] - _PALETTE / _PALETTE.max(1, keepdims=True), axis=-1)
  return Attributes(distance.argmin(1).astype(np.int32), *form_of(ink))


def form_of(ink: Float[np.ndarray, "n h w"]) -> Form:
  """Returns the visible properties of ink on a page.

  Thickness is twice the area of the ink over the length of its outline (its total variation), which
  for a long stripe is its width; slant is how far the ink's centre moves to the right with each row
  upwards; the place is that of the ink's centre.

  Args:
    ink: in [0, 1].
  """
  mass = np.maximum(ink.sum((1, 2)), 1e-6)
  framed = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
  down, right = np.diff(framed, axis=1)[:, :, :-1], np.diff(framed, axis=2)[:, :-1]
  thickness = 2 * mass / np.maximum(np.hypot(down, right).sum((1, 2)), 1e-6)
  rows, columns = np.mgrid[: ink.shape[1], : ink.shape[2]]
  centre_row = (ink * rows).sum((1, 2)) / mass - (ink.shape[1] - 1) / 2
  centre_column = (ink * columns).sum((1, 2)) / mass - (ink.shape[2] - 1) / 2
  place = 3 * np.digitize(centre_row, _PLACE_BOUNDS) + np.digitize(centre_column, _PLACE_BOUNDS)
  seen = (
    np.digitize(thickness, _THICKNESS_BOUNDS),
    np.digitize(rendering.slant_of(ink), _SLANT_BOUNDS),
    place,
  )
  return Form(*(part.astype(np.int32) for part in seen))


def captions(
  labels: Int[np.ndarray, " n"], seen: Attributes, rng: np.random.Generator
) -> list[str]:
  """A sentence for each picture; it names the digit and, of what can be seen, some.

  `sentence = [place] a [thickness] [slant] [colour] digit`, the digit a word or a figure, such as
  "at the top left a thick red seven".

  Args:
    labels: the digits.
    seen: what is true of the pictures.
    rng: draws which properties are mentioned.

  Returns:
    n strings of at most `CAPTION_LENGTH` characters out of `rendering.ALPHABET`.
  """
  sentences = []
  for label, *attributes in zip(labels, *seen, strict=True):
    names = zip((tuple(COLOURS), THICKNESSES, SLANTS, PLACES), attributes, strict=True)
    mentioned = rng.random(5) < 0.6
    colour, thickness, slant, place = (
      words[i] if mention else "" for (words, i), mention in zip(names, mentioned[:4], strict=True)
    )
    name = rendering.NAMES[label] if mentioned[4] else str(label)
    sentences.append(sentence(place, (thickness, slant, colour), name))
  return sentences


def sentence(place: str, properties: Sequence[str], name: str) -> str:
  """A caption of these words, those left out that are empty; `name` is the digit's."""
  properties = [word for word in properties if word]
  article = "an" if not properties and name in ("eight", "8") else "a"
  return " ".join([*([place] if place else []), article, *properties, name])
