"""A user's own data: a folder with one subfolder per modality, whose files are matched by name.

    root/image/cat/001.jpg     root/caption/cat/001.txt     root/tone/cat/001.wav

The *stem* of a file is its path in the modality's folder without the suffix, here `cat/001`; files
with the same stem are one example. `root` may have one folder per split (`train/image/...`), or the
`place` of a modality names the split (`"{split}_photos"`); otherwise a hash of the stem separates
train from test.

*Specs*, plain values that a config can hold, describe what is read and how; `read` names one of the
functions of `columns`, and the other values are its arguments:

    specs = {
      "image": {"read": "image", "size": (64, 64)},
      "caption": {"read": "text", "length": 128},
      "sketch": {"read": "sketch", "of": "image"},
    }
    data = open_folder(root, columns.parse(specs), "train")
    data[0]["image"]  # Read now. As a source for Grain: grain.MapDataset.source(data).
    load("train", data_dir, root, columns=specs)  # Read once and kept on disk, for training.

`layouts` has the specs of some public data sets, in the layout in which they unpack.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import tempfile
import time
from typing import Any
import zlib

import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.data import datasets
from mmdiff_jax.data.columns import FolderModality, parse, Sources, Spec
from mmdiff_jax.data.folder_checks import check_classes, check_disjoint
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality

_CHUNK = 64  # Examples read by all threads before they are written.


_LINE_EVERY = 5.0  # Seconds between two lines of progress.


_BLOCK = 2**20  # Bytes of a file read at once for its checksum.

_LOG = logging.getLogger(__name__)  # Logs which files are used; silent unless it is enabled.


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
  """A split of a folder: a sequence of examples, each read when it is asked for.

  An example is a dict of model inputs. Its random parts (the choice among several captions, the
  classes of a partial mask) depend only on `seed`, its index and the name of the modality; another
  seed, set by `dataclasses.replace`, draws them again.

  Attributes:
    columns: its modalities.
    sources: what is read, by modality and stem.
    stems: the stems of the examples, in order.
    masked: whether an example may lack modalities. If so, a missing modality is zeros, and there is
      a `NAME_present` (bool []) for each NAME.
    aligned: whether the images and masks of an example must have the same proportions on disk.
    seed: the seed of the random parts.
  """

  columns: tuple[FolderModality, ...]
  sources: Mapping[str, Sources]
  stems: tuple[str, ...]
  masked: bool = False
  aligned: bool = True
  seed: int = 0

  @property
  def modalities(self) -> tuple[Modality, ...]:
    """The modalities, in order."""
    return tuple(column.modality for column in self.columns)

  def __len__(self) -> int:
    return len(self.stems)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    index = range(len(self))[index]
    if self.aligned:
      self._check_proportions(self.stems[index])
    # A modality from which others are derived is read once.
    read = functools.cache(lambda reader, name, source: reader(source, self._rng(index, name)))
    example = {}
    for column in self.columns:
      name, shape = column.modality.name, column.modality.shape
      source = self.sources[name].get(self.stems[index])
      if source is None:
        example[name] = np.zeros(shape, np.int32 if column.modality.num_classes else np.float32)
      else:
        value = read(column.read, column.of or name, tuple(source))
        rng = self._rng(index, name)
        example[name] = column.derive(value, rng) if column.derive else value
      if self.masked:
        example[f"{name}_present"] = np.array(source is not None)
    return example

  def _rng(self, index: int, name: str) -> np.random.Generator:
    return np.random.default_rng((self.seed, index, zlib.crc32(name.encode())))

  def _check_proportions(self, stem: str) -> None:
    """Checks an example: images of different proportions, cut to one size, would not be aligned."""
    first = None
    for column in self.columns:
      source = self.sources[column.modality.name].get(stem)
      if source is None or column.extent is None:
        continue
      height, width = column.extent(source)
      if first is None:
        first = (source[0], height, width)
      # They may differ by the one pixel to which the size of a smaller copy was rounded.
      elif abs(width * first[1] - height * first[2]) > max(height, width, *first[1:]):
        raise UserError(
          f"{first[0]} ({first[1]} x {first[2]}, height x width) and {source[0]} ({height} x "
          f"{width}) belong to one example but have different proportions: cut to one size they "
          "would not be aligned. Crop them alike, or set aligned=False "
          "(--config.data.aligned=False) if they need not be aligned."
        )


def open_folder(
  root: str | os.PathLike[str],
  columns: Sequence[FolderModality],
  split: str,
  *,
  test_share: float = 0.1,
  together: str = ".*",
  incomplete: str = "refuse",
  aligned: bool = True,
  seed: int = 0,
) -> Folder:
  """Finds the examples of a split; no image, sound or text is read.

  Args:
    root: the folder.
    columns: its modalities.
    split: "train" or "test", or another one that the folder has.
    test_share: fraction of the examples in "test" if the folder has no splits.
    together: for such a folder, a regular expression of the start of a stem, which is hashed;
      examples that have it in common, such as the frames of one drive, go to the same split.
    incomplete: the treatment of an example that lacks a modality: "refuse" raises an error, "keep"
      keeps it (see `Folder.masked`), "drop" leaves it out.
    aligned: see `Folder.aligned`.
    seed: the seed of the random parts of examples.

  Raises:
    UserError: a folder is missing, the split is empty or incomplete, or two files are the same
      modality of one example.
  """
  if incomplete not in ("refuse", "keep", "drop"):
    raise UserError(f"incomplete is {incomplete!r}; it can be 'refuse', 'keep' or 'drop'.")
  root = storage.on_disk(root, "The folder of your own files")
  if not root.is_dir():
    raise UserError(f"The data folder {str(root)!r} does not exist.")
  base, hashed = _base(root, columns, split)
  if hashed and split not in ("train", "test"):
    raise UserError(f"{root} has no folder {split!r} and is split into 'train' and 'test' only.")
  data = _find(root, columns, split, test_share, together)
  sources, stems = data.sources, set(data.stems)
  if incomplete == "drop":
    stems = stems.intersection(*sources.values())
  for name in sources if incomplete == "refuse" else ():
    if missing := sorted(stems - sources[name].keys()):
      raise UserError(
        f"{len(missing)} of {len(stems)} examples in {base} have no {name!r}: "
        f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}. Add them, or open the folder "
        "with incomplete='keep' or 'drop'."
      )
  if not stems:
    raise UserError(
      f"The split {split!r} of {root} is empty: "
      + (
        f"no example has all of {', '.join(sources)}; the files of an example must have the same "
        "name apart from the suffix."
        if incomplete == "drop"
        else f"with test_share={test_share} no example is in it; add examples or change test_share."
      )
    )
  stems = tuple(sorted(stems))
  return dataclasses.replace(
    data, stems=stems, masked=incomplete == "keep", aligned=aligned, seed=seed
  )


def _find(
  root: pathlib.Path,
  columns: Sequence[FolderModality],
  split: str,
  test_share: float,
  together: str,
) -> Folder:
  """Finds everything that a split has, even if it is incomplete or empty."""
  base, hashed = _base(root, columns, split)
  columns = [c.given if c.given and _path(base, c.given, split).is_dir() else c for c in columns]
  # A derived modality has the files of another one.
  find = functools.cache(lambda finder, path: finder(path))
  sources = {c.modality.name: find(c.find, _path(base, c, split)) for c in columns}
  stems = set().union(*sources.values())
  if hashed:
    stems = {s for s in stems if (_uniform_hash(s, together) < test_share) == (split != "train")}
  return Folder(tuple(columns), sources, tuple(sorted(stems)))


def _base(
  root: pathlib.Path, columns: Sequence[FolderModality], split: str
) -> tuple[pathlib.Path, bool]:
  """Returns the folder of a split, and whether it has all splits, which a hash separates."""
  named = any("{split}" in column.place for column in columns)
  hashed = not named and not any((root / name).is_dir() for name in ("train", "test"))
  return (root if named or hashed else root / split), hashed


def _path(base: pathlib.Path, column: FolderModality, split: str) -> pathlib.Path:
  return base / column.place.replace("{split}", split)


def _uniform_hash(stem: str, together: str, digits: slice = slice(6)) -> float:
  """Returns a number in [0, 1) that depends only on the part of the stem that `together` matches.

  The numbers of disjoint slices `digits` of 6 bytes are independent.
  """
  try:
    match = re.match(together, stem)
  except re.error as error:
    raise UserError(
      f"together is {together!r}, which is not a regular expression: {error}."
    ) from error
  if match is None:
    raise UserError(f"together is {together!r}, which does not match the start of stem {stem!r}.")
  return int.from_bytes(hashlib.sha256(os.fsencode(match[0])).digest()[digits]) / 2**48


def modalities(columns: Mapping[str, Spec], **others: Any) -> tuple[Modality, ...]:
  """Returns the modalities that specs describe; `others` are the other options of `load`."""
  del others
  return tuple(column.modality for column in parse(columns))


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  columns: Mapping[str, Spec],
  test_split: str = "test",
  test_share: float = 0.1,
  together: str = ".*",
  incomplete: str = "refuse",
  aligned: bool = True,
  validation: float = 0.0,
) -> dict[str, np.ndarray | Column]:
  """Returns a whole split, in the order of the stems; rows are read from disk when indexed.

  All files are read once, so that an error in any of them is reported at the start; their model
  inputs are kept in `data_dir` and made again when a file or an option has changed.

  Args:
    split: "train", "test" or "validation".
    data_dir: folder in which the model inputs are kept, in `folder/`; None is the folder of tfds,
      see `datasets.prepared`.
    manual_dir: the folder.
    columns: specs, as `parse` takes them.
    test_split: the name that the split "test" has in the folder.
    test_share: this and the other options as `open_folder` takes them.
    together: which examples go to the same split.
    incomplete: the treatment of an example that lacks a modality.
    aligned: whether the images and masks of an example must have the same proportions.
    validation: fraction of the training examples that is held out for "validation", by a hash as
      for the test split.

  Returns:
    The model inputs of each modality, [n, ...], and with `incomplete="keep"` a `NAME_present`,
    bool [n].

  Raises:
    UserError: there is no folder, a file is missing or cannot be read, or the disk is full; or the
      splits have different classes, or an image, a sound or a video in common.
  """
  if manual_dir is None:
    raise UserError("The folder of your data is not set. Name it: --config.data.manual_dir=FOLDER.")
  # The same folder gives the same key, by whatever path it is named.
  root = pathlib.Path(os.path.abspath(storage.on_disk(manual_dir, "config.data.manual_dir")))
  folder_split, other_split = (test_split, "train") if split == "test" else ("train", test_split)
  parsed, split_options = parse(columns), {"test_share": test_share, "together": together}
  options = {**split_options, "incomplete": incomplete, "aligned": aligned}
  data = open_folder(root, parsed, folder_split, **options)
  base, _ = _base(root, parsed, other_split)
  other = None
  if folder_split != other_split and all(_path(base, c, other_split).exists() for c in parsed):
    other = _find(root, parsed, other_split, **split_options)
    check_classes(data, other, folder_split, other_split)
  source = {"root": str(root), "split": folder_split, "columns": columns, **options}
  source = json.dumps(source, indent=1, sort_keys=True)
  stamp = f"{source}\n{_stamp(data)}\n"
  parent = datasets.prepared(data_dir) / "folder"
  # Existing folders are never written again or deleted: other processes may be reading them.
  of_files, of_state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (source, stamp))
  key = f"{of_files}-{of_state}"
  try:
    path = _find_kept(parent, key, stamp)
    if path is None:
      for left in sorted(parent.glob(f"{key}*")):
        print(f"{left} was altered, so its files are read again. Delete it.", flush=True)
      for left in sorted(set(parent.glob(f"{of_files}-*")) - set(parent.glob(f"{key}*"))):
        _LOG.info("Made from files that have changed since; you can delete it: %s", left)
      for left in sorted(parent.glob("incomplete.*")):
        _LOG.info("Left by an interrupted run, or being written now; never used: %s", left)
      if other is not None:
        check_disjoint(data, other)
      path = _prepare(data, parent, key, stamp, f"{root} ({folder_split})")
    inputs = {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}
  except OSError as error:
    raise UserError(
      f"The data read from {root} cannot be kept in {parent}: {error}. Make room, or give "
      "another folder with --config.data.data_dir=FOLDER."
    ) from error
  if split == "test" or not validation:
    return inputs
  held_out = [_uniform_hash(stem, together, slice(6, 12)) < validation for stem in data.stems]
  rows = np.flatnonzero(np.array(held_out) == (split == "validation"))
  if not len(rows):
    raise UserError(
      f"The split {split!r} of {root} is empty with config.data.validation={validation:g}: add"
      " examples or change the fraction."
    )
  return {name: Column(rows, array.__getitem__) for name, array in inputs.items()}


def _stamp(data: Folder) -> str:
  """Returns a digest that changes when a file does."""
  digest = hashlib.sha256()
  for name, sources in sorted(data.sources.items()):
    for stem in data.stems:
      for source in sources.get(stem, ()):
        stat = source.stat() if isinstance(source, pathlib.Path) else None
        state = (stat.st_size, stat.st_mtime_ns) if stat else ()
        digest.update(repr((name, stem, str(source), *state)).encode())
  return digest.hexdigest()


def _find_kept(parent: pathlib.Path, key: str, stamp: str) -> pathlib.Path | None:
  """Returns the folder that holds undamaged model inputs with that stamp, or None."""
  # The first name is `key` itself; if that folder was altered, those with a suffix replace it.
  for path in sorted(parent.glob(f"{key}*"), reverse=True):
    source = path / "source"
    if source.is_file() and source.read_bytes() == (stamp + _sums(path)).encode():
      return path
  return None


def _sums(folder: pathlib.Path) -> str:
  """Returns the name, number of bytes and checksum of each array in a folder."""
  lines = []
  for path in sorted(folder.glob("*.npy")):
    crc = 0
    with path.open("rb") as file:
      while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    lines.append(f"{path.name} {path.stat().st_size} {crc:08x}\n")
  return "".join(lines)


def _prepare(data: Folder, parent: pathlib.Path, key: str, stamp: str, title: str) -> pathlib.Path:
  """Writes an NPY file for each key of an example; returns their folder.

  The folder appears only when it is complete. It is named `key`, or `key` and a suffix if that name
  is taken.
  """
  parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f"incomplete.{key}.", dir=parent) as temporary:
    path = pathlib.Path(temporary) / "views"
    path.mkdir()  # Unlike the temporary folder around it, other users may read it.
    began = last = time.monotonic()
    done = 0
    for examples in _chunks(data):
      for name in examples[0]:
        _append(path / f"{name}.npy", np.stack([x[name] for x in examples]), len(data))
      done += len(examples)
      if time.monotonic() - last > _LINE_EVERY:
        last = time.monotonic()
        left = round((last - began) * (len(data) - done) / done)
        print(
          f"Reading {title}: {done:,}/{len(data):,} examples, {left // 60}:{left % 60:02d} left",
          flush=True,
        )
    (path / "source").write_bytes((stamp + _sums(path)).encode())
    try:
      return path.rename(parent / key)
    except OSError:
      # Another process finished first, or the folder with that name was altered.
      if kept := _find_kept(parent, key, stamp):
        return kept
      return path.rename(parent / pathlib.Path(temporary).name.removeprefix("incomplete."))


def _chunks(data: Folder) -> Iterator[list[dict[str, np.ndarray]]]:
  """Yields all examples in order, a chunk at a time, read by several threads."""
  with futures.ThreadPoolExecutor() as pool:
    for start in range(0, len(data), _CHUNK):
      yield list(pool.map(data.__getitem__, range(len(data))[start : start + _CHUNK]))


def _append(path: pathlib.Path, rows: np.ndarray, total: int) -> None:
  """Appends rows to a file of `total`; on a full disk, a memory map would kill the process."""
  with path.open("ab") as file:
    if file.tell() == 0:
      descr = np.lib.format.dtype_to_descr(rows.dtype)
      header = {"descr": descr, "fortran_order": False, "shape": (total, *rows.shape[1:])}
      np.lib.format.write_array_header_1_0(file, header)
    file.write(rows.tobytes())
