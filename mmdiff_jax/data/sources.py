"""Single-modal sources that data sets pair: MNIST, SVHN, spoken digits, pen digits.

Each function returns the items of a split and their classes, small enough for memory. Public sets
are read as tensorflow_datasets (tfds) prepares them, in ArrayRecord files under `data_dir`; a
user's own files are under `manual_dir`, which by default is that of tfds,
`<data_dir>/downloads/manual`. Without a network, tfds also takes the files that it would download
from there.

All data are checked: ArrayRecord has a hash of each of its pieces, which detects damage, and this
module has the number of examples and a checksum of the contents of each public split.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import errno
import fnmatch
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import socket
from typing import Any, NamedTuple
import zlib

from jaxtyping import Int
import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.data import cache, datasets, pairing, progress, readers
from mmdiff_jax.errors import UserError

_CHUNK = 1000  # records read at once
_TEST_RECORDINGS = 5

SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")  # Of the spoken digits.

# Error texts that mean that the disk is full, a quota is used up or a file may not grow.
_NO_ROOM = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "Not enough disk space")

_LOG = logging.getLogger(__name__)  # Logs which files are read; silent unless it is enabled.

Reader = Callable[[Sequence[int]], list[dict[str, Any]]]  # The records at any indices.


class PublicSplit(NamedTuple):
  """The facts by which a public split is checked.

  Attributes:
    number: the number of its examples.
    digest: the checksum of its `contents`; None if it is unknown.
  """

  number: int
  digest: str | None


PUBLIC = {
  ("mnist", "train"): PublicSplit(
    60_000, "b2dfdce178abb7dd4df785df2550d87a19083401fa3796ff83a2ba394ff54cc9"
  ),
  ("mnist", "test"): PublicSplit(
    10_000, "6b1cffb2b16266d397f793118ed50489a8ef365856b39a2719c2f0607f9e1e3f"
  ),
  ("spoken_digit", "train"): PublicSplit(
    2_500, "dca357038a2497519f71a0e21548d886711ba1e882ed674d174ff972d2405890"
  ),
  ("svhn_cropped", "train"): PublicSplit(73_257, None),
  ("svhn_cropped", "test"): PublicSplit(26_032, None),
  ("pendigits", "train"): PublicSplit(
    7_494, "4be0cff5068b0b982907bcebc5e32a5ba6b365e42f4d83c83b7ac1cfd8b010b1"
  ),
  ("pendigits", "test"): PublicSplit(
    3_498, "ab7e432db5195c6faeaf51c8c18fbc45e4ae93a7c35bc4241aa97831a166f112"
  ),
  ("imagenet_resized/64x64", "train"): PublicSplit(1_281_167, None),
  ("imagenet_resized/64x64", "validation"): PublicSplit(50_000, None),
}

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
  folder = manual(data_dir, manual_dir) / "svhn"
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
      _log_files("svhn", split, len(source.labels), [path])
      return source._asdict()

    return Source(**cache.arrays(f"svhn-{split}", [path, *states(path)], make))
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
  _use_tensorflow("Spoken digits need TensorFlow, since tfds cannot read sounds without it")
  examples = _public("spoken_digit", "train", data_dir, manual_dir)
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
  path = manual(data_dir, manual_dir) / "pendigits" / f"pendigits.{suffix}"
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
  _check("pendigits", split, [{"row": row} for row in rows], path)
  _log_files("pendigits", split, len(rows), [path])
  return Source(points.reshape(-1, 8, 2).astype(np.uint8), labels.astype(np.int32))


def manual(data_dir: str | None, manual_dir: str | None) -> pathlib.Path:
  """Returns the folder of a user's own files."""
  if manual_dir is not None:
    return storage.on_disk(manual_dir, "The folder of your own files (manual_dir)")
  return datasets.prepared(data_dir) / "downloads" / "manual"


def open_builder(make: Callable[..., Any], name: str, data_dir: str | None) -> Any:
  """Opens the builder of a data set of tfds in ArrayRecord files, whether it is prepared or not.

  Args:
    make: makes the builder from `data_dir` and `file_format`.
    name: the data set.
    data_dir: folder of prepared data sets.

  Raises:
    UserError: the data set prepared there is damaged or in another file format.
  """
  from google.protobuf import json_format

  storage.quieten_tensorflow()
  try:
    return make(data_dir=data_dir, file_format="array_record")
  except (json_format.ParseError, ValueError, OSError) as error:
    folder = datasets.prepared(data_dir) / name
    raise UserError(
      f"The data set in {folder} cannot be opened ({_one_line(error)}): its dataset_info.json is "
      "truncated or was altered, or it was prepared in a file format other than array_record. "
      f"Delete {folder} and prepare it again."
    ) from error


def prepare(
  builder: Any,
  remedy: str,
  manual_dir: str | os.PathLike[str] | None = None,
  files: str = "*",
) -> None:
  """Prepares a data set of tfds on disk unless it exists; shows the progress.

  Tfds writes into a folder `incomplete.*` and renames it at the end, so that an interrupted one is
  never taken for a prepared one. If several processes prepare the same set at once, the first
  result is kept and all use it.

  Args:
    builder: tfds's builder.
    remedy: what to do when it cannot be prepared, for the message.
    manual_dir: folder that may contain files that tfds would download.
    files: a pattern of their names, for a builder of several sets that would download more.

  Raises:
    UserError: it cannot be prepared, or its folder is incomplete.
  """
  import tensorflow_datasets as tfds  # It takes seconds.

  folder = builder.data_path
  if not folder.exists():
    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
      _LOG.info(
        "Left by an interrupted run (you can delete it) or by one that is preparing: %s", left
      )
    _LOG.info("Preparing %s in %s", builder.name, folder)
    failures = (OSError, RuntimeError)
    if builder.url_infos:
      failures = Exception  # A download can fail with any exception.
      _use_tensorflow(f"Preparing {builder.name!r} needs TensorFlow; reading it later does not")
    missing = not _has_downloads(builder, manual_dir, files)
    try:
      if missing:
        # Without a network tfds would try for minutes before giving up.
        socket.getaddrinfo("tensorflow.org", 443)
      manual_dir = manual_dir and storage.expanded(manual_dir)
      config = tfds.download.DownloadConfig(manual_dir=manual_dir)
      builder.download_and_prepare(download_config=config)
    except failures as error:
      cause = _one_line(error)
      if builder.is_prepared():
        _LOG.info("Another process has prepared %s meanwhile: %s", folder, cause)
      elif any(text in cause for text in _NO_ROOM):
        raise UserError(
          f"There is no room in {folder.parent} to prepare the data set {builder.name!r} ({cause})."
          " Nothing of it was kept. Make room, or give a folder on another disk as data_dir."
        ) from error
      else:
        raise UserError(
          f"The data set {builder.name!r} is not prepared in {folder} and could not be ({cause}). "
          f"{remedy}"
        ) from error
  if not builder.is_prepared():
    raise UserError(
      f"{folder} is not a prepared data set: dataset_info.json or features.json is missing. Delete "
      "the folder, or copy the complete folder again."
    )
  # A builder that was made before another process prepared the set has no information on it yet.
  builder.info.read_from_directory(folder)


def _has_downloads(builder: Any, manual_dir: str | os.PathLike[str] | None, files: str) -> bool:
  """Returns whether all files to download are in the cache of tfds or in the user's folder."""
  from tensorflow_datasets.core.download import resource

  downloads = pathlib.Path(builder.data_dir_root, "downloads")
  folder = pathlib.Path(storage.expanded(manual_dir or downloads / "manual"))
  cached = {path.name for path in downloads.rglob("*")}
  return all(
    (folder / info.filename).is_file() or resource.get_dl_fname(url, info.checksum) in cached
    for url, info in _downloads(builder, files).items()
  )


def _downloads(builder: Any, files: str) -> dict[str, Any]:
  """Returns tfds's information on the files to download whose names match `files`, by URL."""
  infos = (builder.url_infos or {}).items()
  return {url: info for url, info in infos if fnmatch.fnmatch(info.filename, files)}


def reader(builder: Any, split: str, number: int, skipped: Sequence[str] = ()) -> Reader:
  """Opens a prepared split for reading its records at any indices, from any number of threads.

  Args:
    builder: tfds's builder.
    split: the split.
    number: how many records it must have.
    skipped: features that stay encoded.

  Returns:
    The function `indices -> records`. It raises UserError if a file is missing or damaged.

  Raises:
    UserError: it has a different number of records, or cannot be opened.
  """
  import tensorflow_datasets as tfds

  folder = builder.data_path
  remedy = f"Delete {folder} and prepare it again."
  numbers = {name: info.num_examples for name, info in builder.info.splits.items()}
  if numbers.get(split) != number:
    raise UserError(
      f"{folder} has {numbers.get(split, 0):,} examples in its split {split!r}; there must be "
      f"{number:,}. {remedy}"
    )
  files = [str(file) for file in builder.info.splits[split].filepaths]
  described = files[0] if len(files) == 1 else f"One of the {len(files)} files such as {files[0]}"

  @contextlib.contextmanager
  def checked():
    try:
      yield
    except (RuntimeError, OSError, ValueError, IndexError) as error:
      raise UserError(
        f"{described} cannot be read: it is truncated or was altered ({_one_line(error)}). {remedy}"
      ) from error

  with checked():
    decoders = {name: tfds.decode.SkipDecoding() for name in skipped}
    source = builder.as_data_source(split, decoders=decoders or None)

  def read(indices: Sequence[int]) -> list[dict[str, Any]]:
    with checked():
      return source.__getitems__(indices)

  return read


def records(
  builder: Any, split: str, number: int, skipped: Sequence[str] = ()
) -> Iterator[list[dict[str, Any]]]:
  """Yields the records of a prepared split in chunks; arguments and errors as for `reader`."""
  read = reader(builder, split, number, skipped)
  for start in progress.report(f"Reading {builder.name} ({split})", range(0, number, _CHUNK)):
    yield read(range(start, min(start + _CHUNK, number)))
  _log_files(builder.name, split, number, builder.info.splits[split].filepaths)


def labels(builder: Any, split: str, number: int, num_classes: int) -> Int[np.ndarray, " n"]:
  """Returns the labels of a prepared split of images, in the order of the records.

  They are read from the records once, without decoding the images, and then kept beside these.

  Args:
    builder: tfds's builder, of records with an `image` and a `label`.
    split: the split.
    number: how many records it must have.
    num_classes: the number of classes; all labels must be below it.

  Raises:
    UserError: a label is out of range, or as for `reader`.
  """
  path = pathlib.Path(builder.data_path, f"labels_{split}.npz")
  kept = (readers.kept_npz(path) or {}).get("label")
  if kept is not None and kept.shape == (number,):
    return kept
  chunks = records(builder, split, number, ("image",))
  values = np.concatenate(
    [np.array([record["label"] for record in chunk], np.int32) for chunk in chunks]
  )
  if not ((values >= 0) & (values < num_classes)).all():
    raise UserError(
      f"{builder.data_path} has labels from {values.min()} to {values.max()} in its split "
      f"{split!r}; they must be 0 to {num_classes - 1}. Delete the folder and prepare it again."
    )
  try:
    readers.write_npz(path, label=values)
  except OSError as error:
    _LOG.info("The labels cannot be kept and are read again each time: %s", _one_line(error))
  return values


def _images(
  name: str, split: str, data_dir: str | None, manual_dir: str | None, remedy: str = ""
) -> Source:
  """Reads all images and labels of a split that tfds has."""

  def make() -> dict[str, np.ndarray]:
    examples = _public(name, split, data_dir, manual_dir, remedy)
    images = np.stack([record["image"] for record in examples])
    return {"items": images, "labels": np.array([record["label"] for record in examples], np.int32)}

  state = prepared_state(name, data_dir, manual_dir, remedy)
  return Source(**cache.arrays(f"{name}-{split}", state, make))


def prepared_state(
  name: str, data_dir: str | None, manual_dir: str | None, remedy: str = ""
) -> list[tuple[str, int, int]]:
  """Returns a list that changes when a file of a public set does; arguments as for `prepared`.

  If the set is prepared this does not import tfds, which is slow to import. It raises what
  `prepared` raises.
  """
  folder = datasets.prepared(data_dir) / name
  if not folder.is_dir():
    prepared(name, data_dir, manual_dir, remedy)
  return states(folder)


def states(path: str | os.PathLike[str]) -> list[tuple[str, int, int]]:
  """Returns the name, size and time of change of a file, or of all files in a folder."""
  path, files = pathlib.Path(path), []
  for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
    with contextlib.suppress(OSError):  # Another process that is preparing the set may remove it.
      if file.is_file():
        stat = file.stat()
        files.append((file.name, stat.st_size, stat.st_mtime_ns))
  return files


def prepared(
  name: str,
  data_dir: str | None,
  manual_dir: str | None,
  remedy: str = "",
  files: str = "*",
) -> Any:
  """Returns the builder of a public set, which is prepared first if necessary.

  Args:
    name: its name in tfds.
    data_dir: folder of prepared data sets.
    manual_dir: folder that may contain files that tfds would download.
    remedy: what else to do when it cannot be prepared, for the message.
    files: a pattern of the names of those files, as `prepare` takes it.

  Raises:
    UserError: it is not prepared and cannot be, or its folder is incomplete.
  """
  import tensorflow_datasets as tfds

  builder = open_builder(functools.partial(tfds.builder, name), name, data_dir)
  folder = manual(data_dir, manual_dir)
  names = ", ".join(info.filename for info in _downloads(builder, files).values())
  prepare(
    builder,
    "On a machine with internet access run "
    f"`tfds build {name} --file_format=array_record --data_dir=FOLDER` "
    f"and give that folder as data_dir, or put the files {names} into {folder}.{remedy}",
    folder,
    files,
  )
  return builder


def _public(
  name: str, split: str, data_dir: str | None, manual_dir: str | None, remedy: str = ""
) -> list[dict[str, Any]]:
  """Reads and checks the records of a split of a public set, which is prepared if necessary.

  Raises:
    UserError: as for `prepared`, or it is damaged.
  """
  builder = prepared(name, data_dir, manual_dir, remedy)
  examples = [
    record for chunk in records(builder, split, PUBLIC[name, split].number) for record in chunk
  ]
  _check(name, split, examples, builder.data_path)
  return examples


def _check(
  name: str, split: str, examples: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> None:
  """Checks that examples, in whatever order, are those of a public split.

  Args:
    name: the public set.
    split: its split.
    examples: numbers, arrays of them and bytes, by name.
    path: the file or folder that they are from, for the message.

  Raises:
    UserError: the examples or their number differ.
  """
  number, digest = PUBLIC[name, split]
  wrong = f"{path} is not the public {name!r}: it was truncated or altered, or is another set."
  if len(examples) != number:
    raise UserError(
      f"{wrong} It has {len(examples):,} examples in the split {split!r}; there must be {number:,}."
      " Get it again."
    )
  if digest is not None and (actual := contents(examples)) != digest:
    raise UserError(
      f"{wrong} The contents of its split {split!r} have the checksum {actual}, which should be "
      f"{digest}. Delete it and get it again."
    )


def contents(examples: Iterable[Mapping[str, Any]]) -> str:
  """Returns a checksum of examples in any order: the SHA-256 of their sorted SHA-256 digests.

  Args:
    examples: numbers of at most 16 bits, arrays of them and bytes, by name.

  Returns:
    64 hexadecimal digits.
  """
  rows = []
  for example in examples:
    values = (value for _, value in sorted(example.items()))
    data = b"".join(v if isinstance(v, bytes) else np.asarray(v, "<i2").tobytes() for v in values)
    rows.append(hashlib.sha256(data).digest())
  return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def _use_tensorflow(purpose: str) -> None:
  """Raises UserError if TensorFlow is missing; keeps it from taking the accelerator's memory."""
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError(
      f"{purpose}: pip install tensorflow-cpu, or choose a data set that does not need it."
    )
  storage.quieten_tensorflow()
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")


def _log_files(name: str, split: str, number: int, files: Sequence[str | os.PathLike[str]]) -> None:
  size = sum(os.path.getsize(file) for file in files) / 1e6
  folder = os.path.dirname(files[0])
  _LOG.info("%s, %s: %s examples, %.1f MB in %s", name, split, f"{number:,}", size, folder)


def _one_line(error: Exception) -> str:
  text = f"{type(error).__name__}: {' '.join(str(error).split())}"
  return text if len(text) <= 400 else f"{text[:100]} ... {text[-300:]}"  # The cause comes last.
