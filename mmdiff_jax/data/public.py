"""Public data sets as tensorflow_datasets (tfds) prepares them, in ArrayRecord files.

Without a network, tfds also takes the files that it would download from a user's own folder. All
data are checked: ArrayRecord has a hash of each of its pieces, which detects damage, and this
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

from jaxtyping import Int
import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.data import array_files, datasets, progress
from mmdiff_jax.errors import UserError

_CHUNK = 1000  # records read at once


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
      use_tensorflow(f"Preparing {builder.name!r} needs TensorFlow; reading it later does not")
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
  log_files(builder.name, split, number, builder.info.splits[split].filepaths)


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
  kept = (array_files.kept_npz(path) or {}).get("label")
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
    array_files.write_npz(path, label=values)
  except OSError as error:
    _LOG.info("The labels cannot be kept and are read again each time: %s", _one_line(error))
  return values


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


def read_split(
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
  check_contents(name, split, examples, builder.data_path)
  return examples


def check_contents(
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


def use_tensorflow(purpose: str) -> None:
  """Raises UserError if TensorFlow is missing; keeps it from taking the accelerator's memory."""
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError(
      f"{purpose}: pip install tensorflow-cpu, or choose a data set that does not need it."
    )
  storage.quieten_tensorflow()
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")


def log_files(name: str, split: str, number: int, files: Sequence[str | os.PathLike[str]]) -> None:
  """Logs which files a split was read from, and their size."""
  size = sum(os.path.getsize(file) for file in files) / 1e6
  folder = os.path.dirname(files[0])
  _LOG.info("%s, %s: %s examples, %.1f MB in %s", name, split, f"{number:,}", size, folder)


def _one_line(error: Exception) -> str:
  text = f"{type(error).__name__}: {' '.join(str(error).split())}"
  return text if len(text) <= 400 else f"{text[:100]} ... {text[-300:]}"  # The cause comes last.
