"""Single-modal sources that data sets pair: MNIST, SVHN, spoken digits, pen digits.

Each function returns the items of a split and their classes, small enough for memory. Public sets
are read as `public` has them, under `data_dir`; a user's own files are under `manual_dir`, which
by default is that of tfds, `<data_dir>/downloads/manual`.
"""

from collections.abc import Callable
import hashlib
import os
import pathlib
from typing import Any, NamedTuple
import zlib

from jaxtyping import Int
import numpy as np

from mmdiff_jax.data import cache, pairing, public
from mmdiff_jax.errors import UserError

_TEST_RECORDINGS = 5


SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")  # Of the spoken digits.


# SHA-256 of the original files, which tfds's public builder has registered.
_SVHN_FILES = {
  "train": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
  "test": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


class Source(NamedTuple):
  """Items of one modality.

  Attributes:
    items: [n, ...] in a compact type, for random access.
    labels: their classes, from 0.
  """

  items: np.ndarray
  labels: Int[np.ndarray, " n"]


class Recordings(NamedTuple):
  """Spoken items.

  Attributes:
    items: [n, samples] int16.
    labels: their classes, from 0.
    speakers: int32, indices in `SPEAKERS`.
    places: their indices in the public set.
  """

  items: np.ndarray
  labels: Int[np.ndarray, " n"]
  speakers: Int[np.ndarray, " n"]
  places: Int[np.ndarray, " n"]


def read_part(
  read: Callable[..., Any], split: str, validation: float, *arguments: Any
) -> Source | Recordings:
  """Reads a split of a source, or the part of its training split that belongs to a split.

  Args:
    read: `mnist`, `svhn`, `spoken_digit` or `pendigits`.
    split: "train", "test" or "validation", which is held out of "train".
    validation: fraction of the items that is held out.
    *arguments: the arguments of `read` after the split.

  Raises:
    UserError: as `read`, and as `pairing.part_rows`.
  """
  source = read("train" if split == "validation" else split, *arguments)
  if split == "test" or not validation:
    return source
  rows = pairing.part_rows(split, source.labels, validation)
  return type(source)(*(column[rows] for column in source))


def mnist(split: str, data_dir: str | None = None, manual_dir: str | None = None) -> Source:
  """Handwritten digits, uint8 [n, 28, 28, 1], 255 is ink: 60,000 "train", 10,000 "test".

  Raises:
    UserError: the set is not prepared and cannot be, or is damaged.
  """
  return _images("mnist", split, data_dir, manual_dir)


def svhn(split: str, data_dir: str | None = None, manual_dir: str | None = None) -> Source:
  """House numbers cut to one digit, uint8 [n, 32, 32, 3]: 73,257 "train", 26,032 "test".

  The original files, `<manual_dir>/svhn/{train,test}_32x32.mat`, are read if they exist, otherwise
  tfds's `svhn_cropped`.

  Raises:
    UserError: the set is not prepared and cannot be, or a file is not the original one.
  """
  folder = public.manual(data_dir, manual_dir) / "svhn"
  if (path := folder / f"{split}_32x32.mat").is_file():

    def make() -> dict[str, np.ndarray]:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      if digest != _SVHN_FILES[split]:
        raise UserError(
          f"{path} is truncated or was altered: its SHA-256 is {digest} instead of "
          f"{_SVHN_FILES[split]}. Get it again from http://ufldl.stanford.edu/housenumbers."
        )
      source = svhn_mat(path)
      public.log_files("svhn", split, len(source.labels), [path])
      return source._asdict()

    return Source(**cache.arrays(f"svhn-{split}", [path, *public.states(path)], make))
  remedy = f" Or put the original files train_32x32.mat and test_32x32.mat into {folder}."
  return _images("svhn_cropped", split, data_dir, manual_dir, remedy)


def svhn_mat(path: str | os.PathLike[str]) -> Source:
  """Reads SVHN's format 2: `X` [32, 32, 3, n] and `y` [n, 1], in which 10 means the digit 0.

  Raises:
    UserError: the file is not of this format.
  """
  from scipy.io import loadmat, matlab

  try:
    content = loadmat(path, variable_names=("X", "y"))
    images, labels = content["X"], content["y"].ravel()
  except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
    raise UserError(f"{path} cannot be read as a .mat file with X and y: {error}") from error
  except (matlab.MatReadError, zlib.error) as error:
    raise UserError(f"{path} is truncated or was altered. Get it again: {error}") from error
  if images.shape != (32, 32, 3, len(labels)) or images.dtype != np.uint8:
    raise UserError(
      f"{path} holds X {images.dtype}{list(images.shape)} and {len(labels)} labels; SVHN's cropped "
      "digits (format 2) are X uint8[32, 32, 3, n] with n labels."
    )
  if not np.isin(labels, np.arange(1, 11)).all():
    raise UserError(f"{path} has labels other than 1 to 10 in y, where 10 means the digit 0.")
  return Source(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int32) % 10)


def spoken_digit(
  split: str, samples: int, data_dir: str | None = None, manual_dir: str | None = None
) -> Recordings:
  """Spoken digits at 8 kHz, int16 [n, samples]: 2,250 "train", 250 "test".

  The public set has one split. As its authors advise, the recordings 0 to 4 of each speaker and
  digit are for tests and 5 to 49 for training, so that both splits have all speakers and digits
  equally often. Clips are scaled to full loudness, and padded with silence or cut off at the end.

  Args:
    split: "train" or "test".
    samples: length of a clip.
    data_dir: folder of prepared data sets.
    manual_dir: folder that may contain the file that tfds would download.

  Raises:
    UserError: the set is not prepared and cannot be, or is damaged, or TensorFlow, which tfds needs
      for sounds, is not installed.
  """
  public.use_tensorflow("Spoken digits need TensorFlow, since tfds cannot read sounds without it")
  examples = public.read_split("spoken_digit", "train", data_dir, manual_dir)
  names = [record["audio/filename"].decode() for record in examples]
  train, test = split_recordings(names)
  rows = {"train": train, "test": test}[split]
  return Recordings(
    np.stack([fit_clip(examples[i]["audio"], samples) for i in rows]),
    np.array([examples[i]["label"] for i in rows], np.int32),
    np.array([SPEAKERS.index(names[i].split("_")[1]) for i in rows], np.int32),
    rows,
  )


def split_recordings(
  names: list[str],
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
  """Returns indices of training and test recordings, in files named DIGIT_SPEAKER_NUMBER.wav."""
  number = np.array([int(pathlib.PurePath(name).stem.split("_")[-1]) for name in names])
  train = np.flatnonzero(number >= _TEST_RECORDINGS)
  test = np.flatnonzero(number < _TEST_RECORDINGS)
  return train, test


def fit_clip(wave: Int[np.ndarray, " _"], samples: int) -> Int[np.ndarray, " samples"]:
  """Returns a clip as int16 at full loudness, padded with silence or cut off to `samples`."""
  kept = wave[:samples].astype(np.float32)
  clip = np.zeros(samples, np.int16)
  clip[: len(kept)] = np.round(kept * (32767 / max(np.abs(kept).max(), 1)))
  return clip


def pendigits(split: str, data_dir: str | None = None, manual_dir: str | None = None) -> Source:
  """Pen digits of UCI, uint8 [n, 8, 2]: 7,494 "train" of 30 writers, 3,498 "test" of 14 others.

  Each item is eight points (x, y) along the path of the pen, from 0 to 100, y upwards.

  Raises:
    UserError: the file `<manual_dir>/pendigits/pendigits.{tra,tes}` is missing, damaged or not the
      public one.
  """
  suffix = {"train": "tra", "test": "tes"}[split]
  path = public.manual(data_dir, manual_dir) / "pendigits" / f"pendigits.{suffix}"
  if not path.is_file():
    raise UserError(
      f"The file of pen digits {path} does not exist. Put pendigits.tra and pendigits.tes from "
      "https://archive.ics.uci.edu/dataset/81 into that folder, or name its parent folder with "
      "manual_dir."
    )
  try:
    rows = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
  except ValueError as error:
    raise UserError(f"{path} cannot be read as rows of integers: {error}") from error
  points, labels = rows[:, :-1], rows[:, -1]
  if points.shape[1] != 16 or not ((points >= 0) & (points <= 100)).all():
    raise UserError(f"{path} must have 16 coordinates from 0 to 100 and the digit in each row.")
  if not np.isin(labels, np.arange(10)).all():
    raise UserError(f"{path} has digits other than 0 to 9 at the ends of its rows.")
  public.check_contents("pendigits", split, [{"row": row} for row in rows], path)
  public.log_files("pendigits", split, len(rows), [path])
  return Source(points.reshape(-1, 8, 2).astype(np.uint8), labels.astype(np.int32))


def _images(
  name: str, split: str, data_dir: str | None, manual_dir: str | None, remedy: str = ""
) -> Source:
  """Reads all images and labels of a split that tfds has."""

  def make() -> dict[str, np.ndarray]:
    examples = public.read_split(name, split, data_dir, manual_dir, remedy)
    images = np.stack([record["image"] for record in examples])
    return {"items": images, "labels": np.array([record["label"] for record in examples], np.int32)}

  state = public.prepared_state(name, data_dir, manual_dir, remedy)
  return Source(**cache.arrays(f"{name}-{split}", state, make))
