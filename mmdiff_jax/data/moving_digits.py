"""The data set `moving_digits`: short videos of an MNIST digit that bounces about, and captions.

An example is another digit of the class as a still image, the video, a sentence that says where it
goes at first ("a three goes up and left"), and labels. A video is made when it is read, out of a
digit's index and its places.
"""

import functools
import re

from jaxtyping import Int, UInt8
import numpy as np

from mmdiff_jax.data import pairing, rendering, sources
from mmdiff_jax.data.mnist import DIGIT, LABEL
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.modalities import Modality, video_picture

SIZE = 32
FRAMES = 8

# Examples of each class.
COUNTS = {"train": 6000, "test": 1000, "validation": 1000}

# Signs of the first move, rows and columns.
HEADINGS = {
  "up": (-1, 0),
  "up and right": (-1, 1),
  "right": (0, 1),
  "down and right": (1, 1),
  "down": (1, 0),
  "down and left": (1, -1),
  "left": (0, -1),
  "up and left": (-1, -1),
}
CAPTION_LENGTH = 28

_SEED = 0
_SPEEDS = (2, 4)  # least and most, in pixels a frame


def _heading(label: np.ndarray | np.integer) -> str:
  return tuple(HEADINGS)[int(label)]


HEADING = Modality("heading", "label", (), _heading, num_classes=len(HEADINGS))

MODALITIES = (
  DIGIT,
  Modality("video", "video", (FRAMES, SIZE, SIZE, 1), video_picture),
  rendering.caption(CAPTION_LENGTH),
  LABEL,
  HEADING,
)

_GRAMMAR = re.compile(
  rf"{rendering.ARTICLE}{rendering.one_of(rendering.NAMES)} goes {rendering.one_of(HEADINGS)}"
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
    digit: float32 [n, 28, 28, 1] in [0, 1], 1 is ink.
    video: float32 [n, 8, 32, 32, 1] in [0, 1], of another digit of that class at half its size.
    caption: int32 [n, CAPTION_LENGTH], indices into `rendering.ALPHABET`.
    label: int32 [n]; heading: int32 [n], place in `HEADINGS`.

  Raises:
    UserError: MNIST is not there.
  """
  digits, labels = sources.read_part(sources.mnist, split, validation, data_dir, manual_dir)
  small = digits.reshape(-1, 14, 2, 14, 2).mean((2, 4), np.float32).astype(np.uint8)
  seed = (_SEED, pairing.SPLITS[split])
  index = pairing.group(labels, 2, COUNTS[split], seed=seed)
  places, heading = bounce(len(index), SIZE - small.shape[1], np.random.default_rng((*seed, 1)))
  named = labels[index[:, 0]]
  return {
    "digit": Column(index[:, 0], lambda i: digits[i] / np.float32(255)),
    "video": Column(
      np.column_stack([index[:, 1], places.reshape(len(index), -1)]),
      functools.partial(_read, small),
    ),
    "caption": rendering.tokens_of(captions(named, heading), CAPTION_LENGTH),
    "label": named,
    "heading": heading,
  }


def _read(small: np.ndarray, index: np.ndarray) -> np.ndarray:
  return film(small[index[:, 0]], index[:, 1:].reshape(-1, FRAMES, 2)) / np.float32(255)


def bounce(
  n: int, room: int, rng: np.random.Generator, *, speeds: tuple[int, int] = _SPEEDS
) -> tuple[Int[np.ndarray, "n frames 2"], Int[np.ndarray, " n"]]:
  """Ways of digits that go straight and bounce off the edges.

  Args:
    n: number of ways.
    room: how far a digit can go from its uppermost and leftmost place, in pixels.
    rng: the source of headings, speeds and starts.
    speeds: least and most, in pixels a frame along each axis; the most is at most `room`.

  Returns:
    Places (row, column) from 0 to `room` in each of `FRAMES` frames, and the headings. The first
    move is free of bounces, so that it has the heading's signs.
  """
  heading = rng.integers(len(HEADINGS), size=n)
  least, most = speeds
  move = np.array(list(HEADINGS.values()))[heading] * rng.integers(least, most + 1, size=(n, 2))
  start = rng.integers(np.maximum(0, -move), room - np.maximum(0, move) + 1)
  straight = start[:, None] + move[:, None] * np.arange(FRAMES)[:, None]
  # Off both edges the place is a triangle wave of the straight way.
  return room - np.abs(room - straight % (2 * room)), heading.astype(np.int32)


def film(
  digits: UInt8[np.ndarray, "n side side"],
  places: Int[np.ndarray, "n frames 2"],
  *,
  size: int = SIZE,
) -> UInt8[np.ndarray, "n frames {size} {size} 1"]:
  """Videos, `size` pixels a side, of digits at places (row, column) of upper left corners."""
  n, frames, _ = places.shape
  side = np.arange(digits.shape[1])
  video = np.zeros((n, frames, size, size, 1), np.uint8)
  rows = places[..., 0, None, None] + side[:, None]
  columns = places[..., 1, None, None] + side
  example = np.arange(n)[:, None, None, None]
  frame = np.arange(frames)[:, None, None]
  video[example, frame, rows, columns, 0] = digits[:, None]
  return video


def captions(labels: Int[np.ndarray, " n"], heading: Int[np.ndarray, " n"]) -> list[str]:
  """`a [digit] goes [heading]`, at most `CAPTION_LENGTH` characters."""
  headings = tuple(HEADINGS)
  return [
    f"{'an' if label == 8 else 'a'} {rendering.NAMES[label]} goes {headings[h]}"
    for label, h in zip(labels, heading, strict=True)
  ]
