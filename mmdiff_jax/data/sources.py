"""Single-modal sources that data sets pair: MNIST, SVHN, spoken digits, pen digits.

Each function gives the items of a split and their classes, small enough for memory. Public sets are
read as tensorflow_datasets (tfds) prepares them, in ArrayRecord files under `data_dir`; files that
a user brings lie under `manual_dir`, which is tfds's own `<data_dir>/downloads/manual` when None.
"""

from collections.abc import Iterator
import importlib.util
import os
import pathlib
import socket
from typing import Any, NamedTuple

from jaxtyping import Int
import numpy as np

from mmdiff_jax.data import pairing
from mmdiff_jax.errors import UserError

_PREPARED = "~/tensorflow_datasets"  # where tfds keeps what it prepares
_CHUNK = 1000  # records read at once
_TEST_RECORDINGS = 5


class Source(NamedTuple):
  """Items of one modality.

  Attributes:
    items: [n, ...] in a compact type, made for random access.
    labels: their classes, from 0.
  """

  items: np.ndarray
  labels: Int[np.ndarray, " n"]


def mnist(split: str, data_dir: str | None = None) -> Source:
  """Handwritten digits, uint8 [n, 28, 28, 1], 255 is ink: 60,000 "train", 10,000 "test".

  Raises:
    UserError: the set is neither prepared nor to be had.
  """
  return _images("mnist", split, data_dir)


def svhn(split: str, data_dir: str | None = None, manual_dir: str | None = None) -> Source:
  """House numbers cut to one digit, uint8 [n, 32, 32, 3]: 73,257 "train", 26,032 "test".

  The original's own files, `<manual_dir>/svhn/{train,test}_32x32.mat`, are read where they are
  there, otherwise tfds's `svhn_cropped`.

  Raises:
    UserError: the set is neither prepared nor to be had, or a file is not what it should be.
  """
  folder = manual(data_dir, manual_dir) / "svhn"
  if (path := folder / f"{split}_32x32.mat").is_file():
    return svhn_mat(path)
  own = f" Or put the original's files train_32x32.mat and test_32x32.mat into {folder}."
  return _images("svhn_cropped", split, data_dir, own)


def svhn_mat(path: str | os.PathLike[str]) -> Source:
  """A file of SVHN's format 2: `X` [32, 32, 3, n] and `y` [n, 1], in which 10 means the digit 0.

  Raises:
    UserError: the file is another one.
  """
  from scipy.io import loadmat, matlab

  try:
    content = loadmat(path, variable_names=("X", "y"))
    images, labels = content["X"], content["y"].ravel()
  except (OSError, ValueError, KeyError, NotImplementedError, matlab.MatReadError) as error:
    raise UserError(f"{path} cannot be read as a .mat file with X and y: {error}") from error
  if images.shape != (32, 32, 3, len(labels)) or images.dtype != np.uint8:
    raise UserError(
      f"{path} holds X {images.dtype}{list(images.shape)} and {len(labels)} labels; SVHN's cropped "
      "digits (format 2) are X uint8[32, 32, 3, n] with n labels."
    )
  if not np.isin(labels, np.arange(1, 11)).all():
    raise UserError(f"{path} has labels other than 1 to 10 in y, where 10 means the digit 0.")
  return Source(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int32) % 10)


def spoken_digit(split: str, samples: int, data_dir: str | None = None) -> Source:
  """Spoken digits at 8 kHz, int16 [n, samples]: 2,250 "train", 250 "test".

  The public set has one split. As its authors advise, the recordings 0 to 4 of each speaker and
  digit are for tests and 5 to 49 for training: both splits have all speakers and digits alike.
  Clips are scaled to full loudness, begin at once and are followed by silence or cut off.

  Args:
    split: "train" or "test".
    samples: length of a clip.
    data_dir: folder of prepared data sets.

  Raises:
    UserError: the set is neither prepared nor to be had, or TensorFlow, which tfds needs for
      sounds, is not installed.
  """
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError(
      "Spoken digits need TensorFlow, since tfds reads no sound without it: pip install "
      "tensorflow-cpu, or choose a data set without speech."
    )
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")  # It would take the accelerator's memory.
  records = [record for chunk in _records("spoken_digit", "train", data_dir) for record in chunk]
  names = [record["audio/filename"].decode() for record in records]
  train, test = split_recordings(names)
  own = {"train": train, "test": test}[split]
  clips = np.stack([fit_clip(records[i]["audio"], samples) for i in own])
  return Source(clips, np.array([records[i]["label"] for i in own], np.int32))


def split_recordings(
  names: list[str],
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
  """Places of training and of test recordings among files named DIGIT_SPEAKER_NUMBER.wav."""
  number = np.array([int(pathlib.PurePath(name).stem.split("_")[-1]) for name in names])
  train = np.flatnonzero(number >= _TEST_RECORDINGS)
  test = np.flatnonzero(number < _TEST_RECORDINGS)
  pairing.check_apart("spoken_digit", train, test)
  return train, test


def fit_clip(wave: Int[np.ndarray, " _"], samples: int) -> Int[np.ndarray, " samples"]:
  """A clip as int16 of full loudness, followed by silence or cut off to `samples`."""
  kept = wave[:samples].astype(np.float32)
  clip = np.zeros(samples, np.int16)
  clip[: len(kept)] = np.round(kept * (32767 / max(np.abs(kept).max(), 1)))
  return clip


def pendigits(split: str, data_dir: str | None = None, manual_dir: str | None = None) -> Source:
  """Pen digits of UCI, uint8 [n, 8, 2]: 7,494 "train" of 30 writers, 3,498 "test" of 14 others.

  Eight points (x, y) along the way of the pen, from 0 to 100, y upwards.

  Raises:
    UserError: the file `<manual_dir>/pendigits/pendigits.{tra,tes}` is missing or another one.
  """
  suffix = {"train": "tra", "test": "tes"}[split]
  path = manual(data_dir, manual_dir) / "pendigits" / f"pendigits.{suffix}"
  if not path.is_file():
    raise UserError(
      f"The pen digits are not there: {path}. Put pendigits.tra and pendigits.tes of "
      "https://archive.ics.uci.edu/dataset/81 into that folder, or name the one above it with "
      "manual_dir."
    )
  try:
    rows = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
  except ValueError as error:
    raise UserError(f"{path} cannot be read as rows of whole numbers: {error}") from error
  points, labels = rows[:, :-1], rows[:, -1]
  if points.shape[1] != 16 or not ((points >= 0) & (points <= 100)).all():
    raise UserError(f"{path} must have 16 coordinates from 0 to 100 and the digit in each row.")
  if not np.isin(labels, np.arange(10)).all():
    raise UserError(f"{path} has digits other than 0 to 9 at the ends of its rows.")
  return Source(points.reshape(-1, 8, 2).astype(np.uint8), labels.astype(np.int32))


def manual(data_dir: str | None, manual_dir: str | None) -> pathlib.Path:
  """The folder of files that a user brings."""
  if manual_dir is not None:
    return pathlib.Path(manual_dir)
  return pathlib.Path(data_dir or _PREPARED).expanduser() / "downloads" / "manual"


def _images(name: str, split: str, data_dir: str | None, remedy: str = "") -> Source:
  """All images and labels of a split that tfds has."""
  images, labels = [], []
  for chunk in _records(name, split, data_dir, remedy):
    images += [record["image"] for record in chunk]
    labels += [record["label"] for record in chunk]
  return Source(np.stack(images), np.array(labels, np.int32))


def _records(
  name: str, split: str, data_dir: str | None, remedy: str = ""
) -> Iterator[list[dict[str, Any]]]:
  """Yields the records of a public set, some at a time; prepares it first where it is not there.

  Raises:
    UserError: it is not prepared and cannot be; the message ends with `remedy`.
  """
  import tensorflow_datasets as tfds  # It takes seconds.

  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  try:
    if not builder.is_prepared():
      # Without a network tfds would try for minutes before it gives up.
      socket.getaddrinfo("tensorflow.org", 443)
      builder.download_and_prepare()
  except Exception as error:  # Whatever a download can fail of.
    raise UserError(
      f"The data set {name!r} is not prepared in {data_dir or _PREPARED} and could not be "
      f"downloaded ({type(error).__name__}: {str(error)[:200]}). Where there is internet run `tfds "
      f"build {name} --file_format=array_record --data_dir=FOLDER`, and give that folder as "
      f"data_dir.{remedy}"
    ) from error
  source = builder.as_data_source(split)
  for start in range(0, len(source), _CHUNK):
    yield source.__getitems__(range(start, min(start + _CHUNK, len(source))))
