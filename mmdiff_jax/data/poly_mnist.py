"""The data set `poly_mnist`: five different handwritings of a digit, each on its own background.

As in PolyMNIST (Sutter, Daunhawer and Vogt, 2021) a modality is MNIST on random crops of one photo,
in the negative of what lies under the ink, and nothing but the class is shared among the five. The
backgrounds are parts of scikit-learn's two photos, or a user's photos. An example is the indices of
five different digits of a class and the places of five crops; pictures are made when they are read.
"""

from collections.abc import Sequence
import functools
import pathlib

from jaxtyping import Float, Int, UInt8
import numpy as np

from mmdiff_jax.data import pairing, public, readers, sources
from mmdiff_jax.data.mnist import LABEL
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, Modality

SIZE = 28

# Examples of each class.
COUNTS = {"train": 6000, "test": 1000, "validation": 1000}

_SEED = 0
# Least mean distance of a crop from its negative: on mid-grey nobody could read.
_CONTRAST = 0.35

MODALITIES = (
  *(Modality(f"m{i}", "image", (SIZE, SIZE, 3), image_picture) for i in range(5)),
  LABEL,
)

# Sky, pagoda and trees of the first photo, petals and shadow of the second: rows, columns.
_PARTS = (
  (0, slice(0, 130), slice(340, 640)),
  (0, slice(150, 340), slice(100, 320)),
  (0, slice(300, 427), slice(370, 640)),
  (1, slice(100, 340), slice(190, 430)),
  (1, slice(0, 380), slice(450, 640)),
)


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
    manual_dir: folder in which `poly_mnist` may lie with photos of your own (`.jpg` or `.png`, the
      first five by name); None is tfds's `<data_dir>/downloads/manual`.
    validation: fraction of the digits that is held out of "train" for "validation".

  Returns:
    m0 to m4: float32 [n, 28, 28, 3] in [0, 1].
    label: int32 [n].

  Raises:
    UserError: MNIST is not there, or the photos will not do.
  """
  digits, labels = sources.read_part(sources.mnist, split, validation, data_dir, manual_dir)
  seed = (_SEED, pairing.SPLITS[split])
  index = pairing.group(labels, 5, COUNTS[split], seed=seed)
  rng = np.random.default_rng((*seed, 1))
  columns = {}
  for m, photo in enumerate(backgrounds(public.manual(data_dir, manual_dir) / "poly_mnist")):
    places = crop_places(photo)
    places = places[rng.integers(len(places), size=len(index))]
    columns[f"m{m}"] = Column(
      np.column_stack([index[:, m], places]), functools.partial(read, digits, photo)
    )
  return {**columns, "label": labels[index[:, 0]]}


def read(
  digits: UInt8[np.ndarray, "_ 28 28 1"],
  photo: UInt8[np.ndarray, "_ _ 3"],
  index: Int[np.ndarray, "n 3"],
) -> Float[np.ndarray, "n 28 28 3"]:
  """Digits on crops of a photo, in the negative under the ink; all in [0, 1].

  Args:
    digits: ink, 255 at its most.
    photo: the background.
    index: of each picture its digit, and row and column of the crop's upper left corner.
  """
  windows = np.lib.stride_tricks.sliding_window_view(photo, (SIZE, SIZE, 3))[:, :, 0]
  crops = windows[index[:, 1], index[:, 2]]
  ink = digits[index[:, 0], ..., 0]
  pictures = np.empty(crops.shape, np.float32)
  # Training waits for this. Whole numbers, a channel at a time, take a fifth of the time of float
  # products over a last axis of 3.
  for channel in range(3):
    crop = crops[..., channel]
    inked = np.multiply(crop, 255 - ink, dtype=np.uint16)
    inked += np.multiply(255 - crop, ink, dtype=np.uint16)
    np.divide(inked, np.float32(255**2), out=pictures[..., channel])
  return pictures


def crop_places(photo: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "places 2"]:
  """Upper left corners (row, column) of the crops on which one can read what is in the negative.

  At the least they are the tenth of all crops that has the most contrast.
  """
  contrast = np.abs(1 - photo / 127.5).mean(-1)
  # Sums over all windows, from the table of sums over all rectangles from the corner.
  table = np.pad(contrast, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
  sums = table[SIZE:, SIZE:] - table[:-SIZE, SIZE:] - table[SIZE:, :-SIZE] + table[:-SIZE, :-SIZE]
  mean = sums / SIZE**2
  return np.argwhere(mean >= min(_CONTRAST, np.quantile(mean, 0.9)))


def backgrounds(folder: pathlib.Path) -> Sequence[UInt8[np.ndarray, "_ _ 3"]]:
  """Five photos: those in the folder, or parts of scikit-learn's where there is no such folder.

  Raises:
    UserError: there are fewer than five, or one cannot be read or is smaller than a digit.
  """
  if not folder.is_dir():
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    return [np.ascontiguousarray(photos[i][rows, columns]) for i, rows, columns in _PARTS]
  suffixes = (".jpg", ".jpeg", ".png")
  paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file())[:5]
  if len(paths) < 5:
    raise UserError(f"{folder} has {len(paths)} photos (.jpg or .png); five are needed.")
  photos = []
  for path in paths:
    photos.append(readers.photo(path))
    if min(photos[-1].shape[:2]) < SIZE:
      raise UserError(f"The photo {path} is smaller than {SIZE} x {SIZE} pixels.")
  return photos
