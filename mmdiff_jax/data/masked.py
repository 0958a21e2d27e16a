"""The data set `masked`: another data set, and one of its images with a part of it hidden.

Hidden pixels are mid-grey, 0.5, which is 0 for a network that reads images in [-1, 1]. The hidden
part is a property of the example: it depends only on the split and the example's row.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Int, UInt64
import numpy as np

from mmdiff_jax.data import datasets
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, Modality

KINDS = ("random", "half", "complete")
GREY = 0.5  # The value of hidden pixels.

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # Shift and factor of each round.
# Far apart in the single sequence of states.
_SEEDS = {"train": 0, "test": 2**63, "validation": 2**62}


def modalities(
  *, of: str, modality: str, kinds: Sequence[str], hidden: float
) -> tuple[Modality, ...]:
  """Returns the modalities of the other data set, and `masked`; arguments and errors as `load`."""
  others = datasets.modalities(of)
  images = {m.name: m for m in others if m.kind == "image"}
  if modality not in images:
    raise UserError(
      f"config.data.modality is {modality!r}, which is not an image of the data set {of!r}. Its"
      f" images are: {', '.join(images)}."
    )
  if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
    raise UserError(
      f"config.data.kinds is {kinds!r}; it must name one or more of {', '.join(KINDS)}, such as"
      " ('random', 'half')."
    )
  height, width, _ = shape = images[modality].shape
  pixels = height * width
  if "random" in kinds and not (0 < hidden < 1 and 0 < round(hidden * pixels) < pixels):
    raise UserError(
      f"config.data.hidden is {hidden}: of the {pixels} pixels of {modality!r} the random"
      f" masks would hide {'all' if hidden > 0.5 else 'nothing'}. Set a fraction between 0 and 1;"
      " the kind 'complete' hides all."
    )
  return *others, Modality("masked", "image", shape, image_picture)


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  of: str,
  modality: str,
  kinds: Sequence[str],
  hidden: float,
  validation: float = 0.0,
) -> dict[str, np.ndarray | Column]:
  """Loads a split of the other data set, in its order, with images that are masked when read.

  Args:
    split: "train", "test" or "validation".
    data_dir: folder of prepared data sets, for the other one.
    manual_dir: folder of your own files, for the other one.
    of: the other data set, which must not need options.
    modality: which of its images is masked.
    kinds: the kinds of masks, equally likely: "random" hides that many pixels anywhere, "half" the
      upper, lower, left or right half, "complete" all.
    hidden: fraction of pixels that random masks hide, to the nearest pixel.
    validation: fraction of the other data set that is held out of "train" for "validation".

  Returns:
    The model inputs of the other data set, and masked: float32 [n, height, width, channels] in
    [0, 1].

  Raises:
    UserError: there is no such data set, image or kind, or random masks would hide nothing or all.
  """
  *_, masked = modalities(of=of, modality=modality, kinds=kinds, hidden=hidden)
  data = datasets.load(of, split, data_dir, manual_dir, validation)
  image, size = data[modality], masked.shape[:2]

  def read(rows):
    visible = masks(rows, split, kinds, hidden, size)
    return np.where(visible[..., None], image[rows], np.float32(GREY))

  return data | {"masked": Column(np.arange(len(image)), read)}


def masks(
  rows: Int[np.ndarray, " n"],
  split: str,
  kinds: Sequence[str],
  hidden: float,
  size: tuple[int, int],
) -> Bool[np.ndarray, "n height width"]:
  """Returns which pixels of images are visible.

  Args:
    rows: indices of the examples in their split.
    split: "train", "test" or "validation", each of which has different masks.
    kinds: as for `load`.
    hidden: as for `load`.
    size: height and width.
  """
  height, width = size
  pixels = height * width
  # Of the random numbers of each row, the first draws the kind, the second the half and the others
  # the pixels.
  start = rows.astype(np.uint64)[:, None] * np.uint64(pixels + 2)
  kind, half = splitmix64(start + np.arange(2, dtype=np.uint64), _SEEDS[split]).T
  kind = np.array(kinds)[kind % np.uint64(len(kinds))]
  visible = np.zeros((len(rows), height, width), bool)

  if "random" in kinds:
    is_random = kind == "random"
    scores = splitmix64(start[is_random] + np.arange(2, pixels + 2, dtype=np.uint64), _SEEDS[split])
    # No two scores are equal: SplitMix64 has different numbers at different indices.
    count = round(hidden * pixels)
    least = np.partition(scores, count, axis=1)[:, count, None]
    visible[is_random] = (scores >= least).reshape(-1, height, width)

  upper = np.broadcast_to(np.arange(height)[:, None] < height // 2, size)
  left = np.broadcast_to(np.arange(width) < width // 2, size)
  halves = np.stack([upper, ~upper, left, ~left])
  is_half = kind == "half"
  visible[is_half] = halves[half[is_half] % np.uint64(4)]
  return visible


def splitmix64(indices: UInt64[np.ndarray, "..."], seed: int) -> UInt64[np.ndarray, "..."]:
  """Returns the numbers at given indices of the sequence of SplitMix64, uniform in 64 bits.

  Args:
    indices: indices from 0, in any order.
    seed: the state of the generator before the first number.
  """
  state = np.uint64(seed) + (indices + np.uint64(1)) * np.uint64(_GAMMA)
  for shift, factor in _MIX:
    state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
  return state ^ (state >> np.uint64(31))
