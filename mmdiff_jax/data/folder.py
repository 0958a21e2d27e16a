"""A user's own data: a folder with one subfolder per modality, whose files are matched by name.

    root/image/cat/001.jpg     root/caption/cat/001.txt     root/tone/cat/001.wav

The *stem* of a file is its path in the modality's folder without the suffix, here `cat/001`; files
with the same stem are one example. `root` may have one folder per split (`train/image/...`), or the
`place` of a modality names the split (`"{split}_photos"`); otherwise a hash of the stem separates
train from test.

*Specs*, plain values that a config can hold, describe what is read and how; `read` names one of the
functions at the end of this file, and the other values are its arguments:

    specs = {
      "image": {"read": "image", "size": (64, 64)},
      "caption": {"read": "text", "length": 128},
      "sketch": {"read": "sketch", "of": "image"},
    }
    data = open_folder(root, columns(specs), "train")
    data[0]["image"]  # Read now. As a source for Grain: grain.MapDataset.source(data).
    load("train", data_dir, root, columns=specs)  # Read once and kept on disk, for training.

`layouts` has the specs of some public data sets, in the layout in which they unpack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import os
import pathlib
import re
import tempfile
import time
from typing import Any, Literal
import zlib

import numpy as np

from mmdiff_jax import config_checks, storage
from mmdiff_jax.data import audio, datasets, derived, readers
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, mask_picture, Modality, video_picture

# Patterns of the files that belong to a modality, as `files` takes them.
IMAGES = r"(.*)\.(?:png|jpe?g)"
SOUNDS = r"(.*)\.(?:wav|flac)"
TEXTS = r"(.*)\.txt"
VIDEOS = r"(.*)\.gif|(?P<several>.*)/[^/]*\.(?:png|jpe?g)"

# What is read of each example, by stem: paths, captions, or the number and name of a class.
Sources = Mapping[str, Sequence[pathlib.Path] | Sequence[str] | tuple[int, str]]
Spec = Mapping[str, Any]

_CHUNK = 64  # Examples read by all threads before they are written.
_LINE_EVERY = 5.0  # Seconds between two lines of progress.
_BLOCK = 2**20  # Bytes of a file read at once for its checksum.

_LOG = logging.getLogger(__name__)  # Logs which files are used; silent unless it is enabled.


@dataclasses.dataclass(frozen=True)
class FolderModality:
  """A modality of a folder: where its files are and how they are read.

  Attributes:
    modality: the modality as a model input.
    place: its folder (or file) below the root; `{split}` in it stands for the split.
    find: the path of that folder -> the sources of all examples (paths, or captions), by stem.
    read: the sources of an example, generator -> its model input.
    extent: the sources of an example -> its height and width on disk, for modalities that must lie
      on others.
    of: for a derived modality, the name of the modality that `read` reads.
    derive: the model input of that modality, generator -> the model input of this one.
    given: for a derived modality, how it is read if a folder of it exists after all.
  """

  modality: Modality
  place: str
  find: Callable[[pathlib.Path], Sources]
  read: Callable[[Any, np.random.Generator], np.ndarray]
  extent: Callable[[Any], tuple[int, int]] | None = None
  of: str = ""
  derive: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
  given: "FolderModality | None" = None


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


def files(path: pathlib.Path, *, pattern: str) -> Sources:
  """Finds the files in a folder, at any depth, by stem; folders may be symbolic links.

  Args:
    path: the folder.
    pattern: regular expression of a file's path in it; the group that matches is the stem. An
      example may have several files, in natural order, only if that group is named `several`.
      Hidden files and files that do not match are ignored.

  Raises:
    UserError: there is no such folder or file, or two files are the same example.
  """
  if not path.is_dir():
    raise UserError(f"There is no folder {path}; each modality needs its own.")
  matches, single = {}, set()
  for relative in sorted(_walk(path), key=_natural):
    match = re.fullmatch(pattern, relative.as_posix(), re.IGNORECASE)
    if match and not any(part.startswith(".") for part in relative.parts):
      stem = match[match.lastindex]
      matches.setdefault(stem, []).append(path / relative)
      if match.lastgroup != "several":
        single.add(stem)
  if not matches:
    raise UserError(f"There is no file in {path} whose name matches the pattern {pattern}")
  for stem in single:
    if len(matches[stem]) > 1:
      raise UserError(
        f"{matches[stem][0]} and {matches[stem][1]} are the same example; remove one."
      )
  return matches


def _walk(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the files below a folder, relative to it; does not follow links to a parent folder."""
  for folder, folders, names in os.walk(path, followlinks=True):
    folder = pathlib.Path(folder)
    links = [name for name in folders if (folder / name).is_symlink()]
    for name in links:
      if folder.resolve().is_relative_to((folder / name).resolve()):
        folders.remove(name)
    yield from ((folder / name).relative_to(path) for name in names if (folder / name).is_file())


def _natural(path: pathlib.Path) -> list[tuple[int, str]]:
  """Returns a sort key that puts frame_2 before frame_10."""
  pieces = re.split(r"([0-9]+)", path.as_posix())
  return [(int(piece) if i % 2 else 0, piece) for i, piece in enumerate(pieces)]


# ---------------------------------------------------------------------------- kinds of modalities


def image(
  name: str,
  size: readers.Size,
  channels: int = 3,
  *,
  place: str = "",
  pattern: str = IMAGES,
  half: Literal["", "left", "right"] = "",
) -> FolderModality:
  """Images, as `readers.image` reads them, in the folder `place` (default: the modality's name)."""
  modality = Modality(name, "image", (*size, channels), image_picture)
  return FolderModality(
    modality,
    place or name,
    functools.partial(files, pattern=pattern),
    functools.partial(readers.image, size=size, channels=channels, half=half),
    functools.partial(readers.extent, half=half),
  )


def mask(
  name: str, size: readers.Size, num_classes: int, *, place: str = "", pattern: str = IMAGES
) -> FolderModality:
  """Label maps, as `readers.mask` reads them."""
  modality = Modality(name, "mask", size, mask_picture, num_classes=num_classes)
  find = functools.partial(files, pattern=pattern)
  read = functools.partial(readers.mask, size=size, num_classes=num_classes)
  return FolderModality(modality, place or name, find, read, readers.extent)


def parts(
  name: str, size: readers.Size, names: Sequence[str], *, place: str = "", pattern: str
) -> FolderModality:
  """Label maps from one black-and-white image per class, as `readers.parts` reads them.

  `pattern` has a group `several`; pixels that belong to no part are class 0.
  """
  modality = Modality(name, "mask", size, mask_picture, num_classes=len(names) + 1)
  find = functools.partial(files, pattern=pattern)
  read = functools.partial(readers.parts, size=size, names=tuple(names))
  return FolderModality(modality, place or name, find, read, readers.extent)


def sound(name: str, view: audio.LogMel, *, place: str = "") -> FolderModality:
  """Log-mel spectrograms, as `readers.sound` reads them."""
  show = functools.partial(audio.invert, view=view)
  shape = (view.frames, view.bands)
  modality = Modality(name, "audio", shape, show, sample_rate=view.sample_rate)
  read = functools.partial(readers.sound, view=view)
  return FolderModality(modality, place or name, functools.partial(files, pattern=SOUNDS), read)


def text(name: str, length: int, *, alphabet: str = "", place: str = "") -> FolderModality:
  """Captions, as `readers.text` reads them; one caption per file is drawn, fixed for all epochs."""
  show = functools.partial(readers.text_of, alphabet=alphabet)
  tokens = len(alphabet) or 256
  modality = Modality(name, "text", (length,), show, num_classes=tokens)
  read = functools.partial(readers.text, length=length, alphabet=alphabet)
  return FolderModality(modality, place or name, functools.partial(files, pattern=TEXTS), read)


def table(name: str, length: int, key: str, column: str, *, place: str) -> FolderModality:
  """Captions from the CSV file `place`: those in `column`, for the stem in the column `key`."""
  find = functools.partial(readers.table, key=key, column=column)
  return dataclasses.replace(text(name, length, place=place), find=find)


def video(
  name: str, frames: int, size: readers.Size, channels: int = 3, *, place: str = ""
) -> FolderModality:
  """Videos, each a GIF or a folder of frames, as `readers.video` reads them."""
  modality = Modality(name, "video", (frames, *size, channels), video_picture)
  read = functools.partial(readers.video, frames=frames, size=size, channels=channels)
  return FolderModality(modality, place or name, functools.partial(files, pattern=VIDEOS), read)


def label(name: str, of: FolderModality, num_classes: int) -> FolderModality:
  """Classes: the top-level folders that contain the files of another modality, sorted by name.

  `image/cat/001.jpg` has the class `cat`, which is 0 if no other name comes before it. Every split
  must have the same `num_classes` folders.
  """
  return FolderModality(
    Modality(name, "label", (), str, num_classes=num_classes),
    of.place,
    functools.partial(_classes, find=of.find, num_classes=num_classes),
    _class,
  )


def _class(classes: tuple[int, str], rng: np.random.Generator) -> np.ndarray:
  del rng
  return np.array(classes[0], np.int32)


def _classes(path: pathlib.Path, *, find: Callable[[pathlib.Path], Sources], num_classes: int):
  stems = [stem for stem in find(path) if "/" in stem]
  names = sorted({stem.split("/")[0] for stem in stems})
  if len(names) != num_classes:
    raise UserError(
      f"The folder {path} has files in {len(names)} folders ({', '.join(names[:5])}"
      f"{', ...' * (len(names) > 5)}), but num_classes asks for {num_classes} classes, each a "
      "folder. Correct the folders or num_classes."
    )
  classes = {name: (number, name) for number, name in enumerate(names)}
  return {stem: classes[stem.split("/")[0]] for stem in stems}


def sketch(name: str, of: FolderModality, *, sigma: float = 1.0, place: str = "") -> FolderModality:
  """Sketches: grey images in the folder `place`, or made from images by `derived.sketch`."""
  _check_source(name, of, "image")
  given = image(name, of.modality.shape[:2], 1, place=place)
  return _derived(given, of, functools.partial(derived.sketch, sigma=sigma))


def partial_mask(
  name: str, of: FolderModality, *, keep: float = 0.5, place: str = ""
) -> FolderModality:
  """Partial masks: in the folder `place`, or made from masks by `derived.partial_mask`.

  The classes that it keeps are drawn once, fixed for all epochs.
  """
  _check_source(name, of, "mask")
  given = mask(name, of.modality.shape, of.modality.num_classes, place=place)
  return _derived(given, of, functools.partial(derived.partial_mask, keep=keep))


def _check_source(name: str, of: FolderModality, kind: str) -> None:
  if of.modality.kind != kind or of.derive:
    raise UserError(
      f"The modality {name!r} is derived from {of.modality.name!r}, which must be a modality of "
      f"kind {kind} that is read from files, not derived itself."
    )


def _derived(given: FolderModality, of: FolderModality, derive) -> FolderModality:
  """Returns the modality `given`, derived from the files of `of` unless it has a folder itself."""
  return dataclasses.replace(
    of, modality=given.modality, extent=None, of=of.modality.name, derive=derive, given=given
  )


_READ = {
  make.__name__: make
  for make in (image, mask, parts, sound, text, table, video, label, sketch, partial_mask)
}


# The valid values of options that are not integers from 1: option, check, description.
_OPTION_CHECKS = (
  ("channels", lambda x: x in (1, 3), "1 or 3"),
  ("half", lambda x: x in ("", "left", "right"), "'', 'left' or 'right'"),
  ("keep", lambda x: isinstance(x, (int, float)) and 0 <= x <= 1, "a number from 0 to 1"),
  ("sigma", lambda x: isinstance(x, (int, float)) and 0 <= x < np.inf, "a number, at least 0"),
  *(
    (key, lambda x: isinstance(x, str), "text")
    for key in ("place", "pattern", "alphabet", "key", "column")
  ),
  ("names", lambda x: isinstance(x, (list, tuple)) and set(map(type, x)) == {str}, "texts"),
)


def parse(columns: Any) -> tuple[FolderModality, ...]:
  """Makes the modalities that specs describe.

  Args:
    columns: spec of each modality, by its name, from a config, so all of it is checked: `read`, the
      name of one of the functions above, and that function's arguments, where `of` is the name of
      another modality and `view` the arguments of `audio.LogMel`.

  Raises:
    UserError: there is no such function, argument or modality, or a value is invalid.
  """
  for name, spec in _mapping("config.data.columns", columns).items():
    _mapping(f"config.data.columns.{name}", spec)
  parsed: dict[str, FolderModality] = {}

  def make(name: str) -> FolderModality:
    if name not in parsed:
      parsed[name] = _parse_column(name, columns, make)
    return parsed[name]

  return tuple(make(name) for name in columns)


def _parse_column(name: str, columns: Mapping[str, Spec], make) -> FolderModality:
  where = f"config.data.columns.{name}"
  if not isinstance(name, str) or not name.isidentifier() or name.endswith("_present"):
    raise UserError(
      f"{where}: a modality's name must consist of letters, digits and underscores, and must not "
      "begin with a digit or end in '_present'."
    )
  options = dict(columns[name])
  read = options.pop("read", None)
  if not isinstance(read, str) or read not in _READ:
    raise UserError(f"{where}.read is {read!r}; it can be {', '.join(_READ)}.")
  if "of" in options:
    of = options["of"]
    if not isinstance(of, str) or of not in columns or "of" in columns[of]:
      names = ", ".join(other for other in columns if "of" not in columns[other])
      raise UserError(f"{where}.of is {of!r}; it can be one of the modalities {names or '(none)'}.")
    options["of"] = make(of)
  if "size" in options:
    if not isinstance(options["size"], (list, tuple)) or len(options["size"]) != 2:
      raise UserError(f"{where}.size is {options['size']}; it must be (height, width).")
    options["size"] = tuple(options["size"])
  for key in ("size", "channels", "frames", "length", "num_classes"):
    values = options.get(key, 1)
    for value in values if isinstance(values, tuple) else (values,):
      if not config_checks.SIZE.accepts(value):
        raise UserError(
          f"{where}.{key} is {values!r}; it must be {config_checks.SIZE.description}."
        )
  for key, accepts, description in _OPTION_CHECKS:
    if key in options and not accepts(options[key]):
      raise UserError(f"{where}.{key} is {options[key]!r}; it must be {description}.")
  try:
    if not re.compile(options.get("pattern", IMAGES)).groups:
      raise re.error("it has no group (in parentheses) for the stem")
  except re.error as error:
    raise UserError(f"{where}.pattern is {options['pattern']!r}: {error}.") from error
  if "view" in options:
    options["view"] = _call(
      f"{where}.view", audio.LogMel, **_mapping(f"{where}.view", options["view"])
    )
  return _call(where, _READ[read], name, **options)


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
  if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
    raise UserError(f"{where} is {value!r}; it must be a dict from option names to values.")
  return value


def _call(where: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
  signature = inspect.signature(function)
  try:
    signature.bind(*args, **options)
  except TypeError as error:
    names = ", ".join(list(signature.parameters)[len(args) :])
    raise UserError(f"{where}: {error}. The valid options are: {names}.") from error
  try:
    return function(*args, **options)
  except ValueError as error:
    raise UserError(f"{where}: {error}.") from error


# ---------------------------------------------------------------------------- as a data set


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
    _check_classes(data, other, folder_split, other_split)
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
        _check_disjoint(data, other)
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


def _check_classes(data: Folder, other: Folder, *splits: str) -> None:
  """Checks that both splits have the same classes, so that a class has one number."""
  for column in data.columns:
    if column.modality.kind == "label":
      name = column.modality.name
      ours, theirs = ({x[1] for x in part[name].values()} for part in (data.sources, other.sources))
      if ours != theirs:
        raise UserError(
          f"The splits differ in the classes of {name!r}: only {splits[0]!r} has "
          f"{_few(ours - theirs)}, only {splits[1]!r} has {_few(theirs - ours)}. A class is the "
          "index of its folder among all, so both splits need the same folders."
        )


def _few(names: Iterable[str]) -> str:
  names = sorted(names)
  return (", ".join(names[:5]) + ", ..." * (len(names) > 5)) or "no more"


def _check_disjoint(data: Folder, other: Folder) -> None:
  """Checks that no image, sound or video is in both splits; texts and masks may be equal."""
  for column in data.columns:
    name = column.modality.name
    if column.derive or column.modality.kind not in ("image", "audio", "video"):
      continue
    ours, theirs = (_by_size(each, name) for each in (data, other))
    for size in ours.keys() & theirs.keys():
      digests = {_digest(files): files[0] for files in theirs[size]}
      for files in ours[size]:
        if same := digests.get(_digest(files)):
          raise UserError(
            f"{files[0]} and {same} are the same {name!r} in both splits, bit for bit: the model "
            "would be tested on an example that it was trained on. Remove one of them."
          )


def _by_size(data: Folder, name: str) -> dict[tuple[int, ...], list[Sequence[pathlib.Path]]]:
  """Groups the files of examples by their sizes: only files of the same size can be equal."""
  groups = {}
  for stem in data.stems:
    if files := data.sources[name].get(stem):
      groups.setdefault(tuple(file.stat().st_size for file in files), []).append(files)
  return groups


def _digest(paths: Sequence[pathlib.Path]) -> bytes:
  digest = hashlib.sha256()
  for path in paths:
    with readers.reading(path):
      digest.update(path.read_bytes())
  return digest.digest()


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
