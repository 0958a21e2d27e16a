"""A user's own data: a folder with one subfolder a modality, whose files are matched by name.

    root/image/cat/001.jpg     root/caption/cat/001.txt     root/tone/cat/001.wav

The *stem* of a file is its path in the modality's folder without the suffix, here `cat/001`; files
of one stem are one example. `root` may have the splits on top (`train/image/...`), or the place of
a modality names the split (`"{split}_photos"`); else a hash of the stem parts train from test.

What is read, and how, are *specs*, plain values that a config can hold; `read` names one of the
functions at the end of this file, and the rest are its arguments:

    specs = {
      "image": {"read": "image", "size": (64, 64)},
      "caption": {"read": "text", "length": 128},
      "sketch": {"read": "sketch", "of": "image"},
    }
    data = open_folder(root, columns(specs), "train")
    data[0]["image"]  # Read now. As a source for Grain: grain.MapDataset.source(data).
    load("train", data_dir, root, columns=specs)  # Read once, kept on disk: what models train on.

`layouts` has the specs of some public data sets as they unpack.
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

# Which files of a folder are a modality's, as `files` takes it.
IMAGES = r"(.*)\.(?:png|jpe?g)"
SOUNDS = r"(.*)\.(?:wav|flac)"
TEXTS = r"(.*)\.txt"
VIDEOS = r"(.*)\.gif|(?P<several>.*)/[^/]*\.(?:png|jpe?g)"

Found = Mapping[str, Sequence[pathlib.Path] | Sequence[str] | tuple[int, str]]
Spec = Mapping[str, Any]

_CHUNK = 64  # Examples read by all threads before they are written.
_LINE_EVERY = 5.0  # Seconds between two lines of progress.
_BLOCK = 2**20  # Bytes of a file read at once for its checksum.

_LOG = logging.getLogger(__name__)  # What is found where; silent unless somebody asks.


@dataclasses.dataclass(frozen=True)
class FolderModality:
  """A modality of a folder: where its files are and how they are read.

  Attributes:
    modality: the model's view.
    place: its folder (or file) below the root; `{split}` in it stands for the split.
    find: that folder -> what `read` needs of each example (paths, or captions), by stem.
    read: what it needs, generator -> the model's view of an example.
    extent: what `read` needs -> height and width of it on disk, where it lies on other modalities.
    of: where the modality is derived, the name of the one that `read` reads.
    derive: that one's view, generator -> the model's view.
    given: where the modality is derived, how it is read if there is a folder of it after all.
  """

  modality: Modality
  place: str
  find: Callable[[pathlib.Path], Found]
  read: Callable[[Any, np.random.Generator], np.ndarray]
  extent: Callable[[Any], tuple[int, int]] | None = None
  of: str = ""
  derive: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
  given: "FolderModality | None" = None


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
  """A split of a folder: a sequence of examples, each read when it is asked for.

  An example is a dict of the model's views. What is random in it (one of several captions, the
  classes of a partial mask) depends on `seed`, its index and the modality's name alone; another
  seed, by `dataclasses.replace`, draws anew.

  Attributes:
    columns: its modalities.
    found: what to read, by modality and stem.
    stems: of the examples, in order.
    masked: whether an example may lack modalities. If so, what lacks is zeros, and `NAME_present`
      (bool []) stands beside each NAME.
    aligned: whether the images and masks of an example must have the same proportions on disk.
    seed: of what is random.
  """

  columns: tuple[FolderModality, ...]
  found: Mapping[str, Found]
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
    # What others are derived of is read once.
    read = functools.cache(lambda reader, name, needed: reader(needed, self._rng(index, name)))
    example = {}
    for column in self.columns:
      name, shape = column.modality.name, column.modality.shape
      needed = self.found[name].get(self.stems[index])
      if needed is None:
        example[name] = np.zeros(shape, np.int32 if column.modality.num_classes else np.float32)
      else:
        source = read(column.read, column.of or name, tuple(needed))
        rng = self._rng(index, name)
        example[name] = column.derive(source, rng) if column.derive else source
      if self.masked:
        example[f"{name}_present"] = np.array(needed is not None)
    return example

  def _rng(self, index: int, name: str) -> np.random.Generator:
    return np.random.default_rng((self.seed, index, zlib.crc32(name.encode())))

  def _check_proportions(self, stem: str) -> None:
    """Of one example: cut to one size, images of other proportions would not lie on each other."""
    first = None
    for column in self.columns:
      needed = self.found[column.modality.name].get(stem)
      if needed is None or column.extent is None:
        continue
      height, width = column.extent(needed)
      if first is None:
        first = (needed[0], height, width)
      # They may differ by the pixel that a smaller copy was rounded by.
      elif abs(width * first[1] - height * first[2]) > max(height, width, *first[1:]):
        raise UserError(
          f"{first[0]} ({first[1]} x {first[2]}, height x width) and {needed[0]} ({height} x "
          f"{width}) are one example and have other proportions: cut to one size they would not "
          "lie on each other. Cut them alike, or set aligned=False (--config.data.aligned=False) "
          "if they need not."
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
    test_share: share of "test" where the folder has no splits.
    together: there, a regular expression of the start of a stem that is hashed; examples that have
      it in common, such as the frames of one drive, come into one split.
    incomplete: what becomes of an example that lacks a modality: "refuse" raises an error, "keep"
      keeps it (see `Folder.masked`), "drop" goes without it.
    aligned: see `Folder.aligned`.
    seed: of what is random.

  Raises:
    UserError: a folder is missing, the split is empty or incomplete, or two files are one example.
  """
  if incomplete not in ("refuse", "keep", "drop"):
    raise UserError(f"incomplete is {incomplete!r}; it can be 'refuse', 'keep' or 'drop'.")
  root = storage.on_disk(root, "The folder of your own files")
  if not root.is_dir():
    raise UserError(f"There is no folder {str(root)!r} with data.")
  base, hashed = _base(root, columns, split)
  if hashed and split not in ("train", "test"):
    raise UserError(f"{root} has no folder {split!r} and is split into 'train' and 'test' only.")
  data = _find(root, columns, split, test_share, together)
  found, stems = data.found, set(data.stems)
  if incomplete == "drop":
    stems = stems.intersection(*found.values())
  for name in found if incomplete == "refuse" else ():
    if lacking := sorted(stems - found[name].keys()):
      raise UserError(
        f"{len(lacking)} of {len(stems)} examples in {base} have no {name!r}: "
        f"{', '.join(lacking[:5])}{', ...' * (len(lacking) > 5)}. Add them, or open the folder "
        "with incomplete='keep' or 'drop'."
      )
  if not stems:
    raise UserError(
      f"The split {split!r} of {root} is empty: "
      + (
        f"no example has all of {', '.join(found)}; its files need one name but for the suffix."
        if incomplete == "drop"
        else f"with test_share={test_share} no example is in it; add examples or change the share."
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
  """All that there is of a split, be it incomplete or empty."""
  base, hashed = _base(root, columns, split)
  columns = [c.given if c.given and _here(base, c.given, split).is_dir() else c for c in columns]
  # A derived modality has the files of another one.
  find = functools.cache(lambda finder, path: finder(path))
  found = {c.modality.name: find(c.find, _here(base, c, split)) for c in columns}
  stems = set().union(*found.values())
  if hashed:
    stems = {s for s in stems if (_share(s, together) < test_share) == (split != "train")}
  return Folder(tuple(columns), found, tuple(sorted(stems)))


def _base(
  root: pathlib.Path, columns: Sequence[FolderModality], split: str
) -> tuple[pathlib.Path, bool]:
  """The folder with the places of a split, and whether it has all splits, parted by a hash."""
  named = any("{split}" in column.place for column in columns)
  hashed = not named and not any((root / name).is_dir() for name in ("train", "test"))
  return (root if named or hashed else root / split), hashed


def _here(base: pathlib.Path, column: FolderModality, split: str) -> pathlib.Path:
  return base / column.place.replace("{split}", split)


def _share(stem: str, together: str, digits: slice = slice(6)) -> float:
  """A number in [0, 1) that depends on nothing but the part of the stem that `together` matches.

  Numbers of disjoint `digits` of 6 bytes are independent.
  """
  try:
    match = re.match(together, stem)
  except re.error as error:
    raise UserError(f"together is {together!r}, no regular expression: {error}.") from error
  if match is None:
    raise UserError(f"together is {together!r}, which the stem {stem!r} does not begin with.")
  return int.from_bytes(hashlib.sha256(os.fsencode(match[0])).digest()[digits]) / 2**48


def files(path: pathlib.Path, *, pattern: str) -> Found:
  """The files in a folder, at any depth, by stem; folders may be symbolic links.

  Args:
    path: the folder.
    pattern: regular expression of a file's path in it; the group that matches is the stem. Only of
      a group named `several` an example may have several files, which then are in natural order.
      Files that do not match are left aside, and hidden ones.

  Raises:
    UserError: there is no such folder, no such file, or two files are one example.
  """
  if not path.is_dir():
    raise UserError(f"There is no folder {path}; each modality needs its own.")
  found, single = {}, set()
  for relative in sorted(_walk(path), key=_natural):
    match = re.fullmatch(pattern, relative.as_posix(), re.IGNORECASE)
    if match and not any(part.startswith(".") for part in relative.parts):
      stem = match[match.lastindex]
      found.setdefault(stem, []).append(path / relative)
      if match.lastgroup != "several":
        single.add(stem)
  if not found:
    raise UserError(f"There is no file in {path} whose name is as it must be here: {pattern}")
  for stem in single:
    if len(found[stem]) > 1:
      raise UserError(f"{found[stem][0]} and {found[stem][1]} are the same example; remove one.")
  return found


def _walk(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Files below a folder, relative to it; links to a folder that holds them would never end."""
  for here, names, own in os.walk(path, followlinks=True):
    here = pathlib.Path(here)
    links = [name for name in names if (here / name).is_symlink()]
    for name in links:
      if here.resolve().is_relative_to((here / name).resolve()):
        names.remove(name)
    yield from ((here / name).relative_to(path) for name in own if (here / name).is_file())


def _natural(path: pathlib.Path) -> list[tuple[int, str]]:
  """Sorts frame_2 before frame_10."""
  pieces = re.split(r"([0-9]+)", path.as_posix())
  return [(int(piece) if i % 2 else 0, piece) for i, piece in enumerate(pieces)]


# ---------------------------------------------------------------------------- what is read


def image(
  name: str,
  size: readers.Size,
  channels: int = 3,
  *,
  place: str = "",
  pattern: str = IMAGES,
  half: Literal["", "left", "right"] = "",
) -> FolderModality:
  """Images, as `readers.image` reads them, in the folder `place` (else in that of its name)."""
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
  """Label maps out of a black-and-white image a class, as `readers.parts` reads them.

  `pattern` has a group `several`; the class 0 is what is of no part.
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
  """Captions, as `readers.text` reads them; one of a file's is drawn, the same in each epoch."""
  show = functools.partial(readers.text_of, alphabet=alphabet)
  tokens = len(alphabet) or 256
  modality = Modality(name, "text", (length,), show, num_classes=tokens)
  read = functools.partial(readers.text, length=length, alphabet=alphabet)
  return FolderModality(modality, place or name, functools.partial(files, pattern=TEXTS), read)


def table(name: str, length: int, key: str, column: str, *, place: str) -> FolderModality:
  """Captions out of the CSV file `place`: those in `column`, of the stem in the column `key`."""
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
  """Classes: the first folders in which the files of another modality are, in order of names.

  `image/cat/001.jpg` is of the class `cat`, which is 0 if no other name comes before it. Every
  split must have the same `num_classes` folders.
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


def _classes(path: pathlib.Path, *, find: Callable[[pathlib.Path], Found], num_classes: int):
  stems = [stem for stem in find(path) if "/" in stem]
  names = sorted({stem.split("/")[0] for stem in stems})
  if len(names) != num_classes:
    raise UserError(
      f"The folder {path} has files in {len(names)} folders ({', '.join(names[:5])}"
      f"{', ...' * (len(names) > 5)}), but there are to be {num_classes} classes, each a folder. "
      "Mend the folders or num_classes."
    )
  classes = {name: (number, name) for number, name in enumerate(names)}
  return {stem: classes[stem.split("/")[0]] for stem in stems}


def sketch(name: str, of: FolderModality, *, sigma: float = 1.0, place: str = "") -> FolderModality:
  """Sketches: grey images in the folder `place`, or made of images by `derived.sketch`."""
  _check_source(name, of, "image")
  given = image(name, of.modality.shape[:2], 1, place=place)
  return _derived(given, of, functools.partial(derived.sketch, sigma=sigma))


def partial_mask(
  name: str, of: FolderModality, *, keep: float = 0.5, place: str = ""
) -> FolderModality:
  """Parts of masks: in the folder `place`, or what `derived.partial_mask` keeps of masks.

  What it keeps is drawn once, the same in each epoch.
  """
  _check_source(name, of, "mask")
  given = mask(name, of.modality.shape, of.modality.num_classes, place=place)
  return _derived(given, of, functools.partial(derived.partial_mask, keep=keep))


def _check_source(name: str, of: FolderModality, kind: str) -> None:
  if of.modality.kind != kind or of.derive:
    raise UserError(
      f"The modality {name!r} is to be made of {of.modality.name!r}, which must be a modality of "
      f"kind {kind} that is read from files, not made itself."
    )


def _derived(given: FolderModality, of: FolderModality, derive) -> FolderModality:
  """`given` where it is there, else made of the files of `of`."""
  return dataclasses.replace(
    of, modality=given.modality, extent=None, of=of.modality.name, derive=derive, given=given
  )


_READ = {
  make.__name__: make
  for make in (image, mask, parts, sound, text, table, video, label, sketch, partial_mask)
}


# What options can be, beyond whole numbers from 1.
_CAN = (
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
  """What specs say.

  Args:
    columns: spec of each modality, by its name, from a config, so all of it is checked: `read`, the
      name of one of the functions above, and that function's arguments, where `of` is the name of
      another modality and `view` the arguments of `audio.LogMel`.

  Raises:
    UserError: there is no such function, argument or modality, or a value cannot be.
  """
  for name, spec in _mapping("config.data.columns", columns).items():
    _mapping(f"config.data.columns.{name}", spec)
  made: dict[str, FolderModality] = {}

  def make(name: str) -> FolderModality:
    if name not in made:
      made[name] = _column(name, columns, make)
    return made[name]

  return tuple(make(name) for name in columns)


def _column(name: str, columns: Mapping[str, Spec], make) -> FolderModality:
  where = f"config.data.columns.{name}"
  if not isinstance(name, str) or not name.isidentifier() or name.endswith("_present"):
    raise UserError(
      f"{where}: a modality's name is made of letters, digits and underscores, and does not begin "
      "with a digit or end in '_present'."
    )
  options = dict(columns[name])
  read = options.pop("read", None)
  if not isinstance(read, str) or read not in _READ:
    raise UserError(f"{where}.read is {read!r}; it can be {', '.join(_READ)}.")
  if "of" in options:
    of = options["of"]
    if not isinstance(of, str) or of not in columns or "of" in columns[of]:
      whole = ", ".join(other for other in columns if "of" not in columns[other])
      raise UserError(f"{where}.of is {of!r}; it can be one of the modalities {whole or '(none)'}.")
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
  for key, fits, must in _CAN:
    if key in options and not fits(options[key]):
      raise UserError(f"{where}.{key} is {options[key]!r}; it must be {must}.")
  try:
    if not re.compile(options.get("pattern", IMAGES)).groups:
      raise re.error("it has no group (in parentheses) for the stem")
  except re.error as error:
    raise UserError(f"{where}.pattern is {options['pattern']!r}: {error}.") from error
  if "view" in options:
    options["view"] = _called(
      f"{where}.view", audio.LogMel, **_mapping(f"{where}.view", options["view"])
    )
  return _called(where, _READ[read], name, **options)


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
  if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
    raise UserError(f"{where} is {value!r}; it must be a dict of options by their names.")
  return value


def _called(where: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
  signature = inspect.signature(function)
  try:
    signature.bind(*args, **options)
  except TypeError as error:
    known = ", ".join(list(signature.parameters)[len(args) :])
    raise UserError(f"{where}: {error}. What it can have is: {known}.") from error
  try:
    return function(*args, **options)
  except ValueError as error:
    raise UserError(f"{where}: {error}.") from error


# ---------------------------------------------------------------------------- as a data set


def modalities(columns: Mapping[str, Spec], **others: Any) -> tuple[Modality, ...]:
  """The modalities that specs describe; `others` are the other options of `load`."""
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
  """A whole split, in the order of the stems, read from disk when its rows are.

  The files are read once, all of them, so that what is wrong with one is said at once; their views
  are kept in `data_dir` and made anew when a file or an option has changed.

  Args:
    split: "train", "test" or "validation".
    data_dir: takes the views, in `folder/`; None is tfds's own, see `datasets.prepared`.
    manual_dir: the folder.
    columns: specs, as `parse` takes them.
    test_split: the folder's own name of the split "test".
    test_share: this and the rest as `open_folder` takes them.
    together: which examples come into one split.
    incomplete: what becomes of an example that lacks a modality.
    aligned: whether the images and masks of an example must have the same proportions.
    validation: fraction of the training examples that is held out for "validation", by a hash as
      for the tests.

  Returns:
    The views of each modality, [n, ...], and with `incomplete="keep"` a `NAME_present`, bool [n].

  Raises:
    UserError: there is no folder, a file is missing or cannot be read, or the disk is full; or the
      splits have other classes, or an image, a sound or a video in common.
  """
  if manual_dir is None:
    raise UserError("Which folder is yours? Say --config.data.manual_dir=FOLDER.")
  # One folder is one, however it is named.
  root = pathlib.Path(os.path.abspath(storage.on_disk(manual_dir, "config.data.manual_dir")))
  own, other = (test_split, "train") if split == "test" else ("train", test_split)
  parsed, parting = parse(columns), {"test_share": test_share, "together": together}
  options = {**parting, "incomplete": incomplete, "aligned": aligned}
  data = open_folder(root, parsed, own, **options)
  base, _ = _base(root, parsed, other)
  against = None
  if own != other and all(_here(base, column, other).exists() for column in parsed):
    against = _find(root, parsed, other, **parting)
    _check_classes(data, against, own, other)
  source = {"root": str(root), "split": own, "columns": columns, **options}
  source = json.dumps(source, indent=1, sort_keys=True)
  stamp = f"{source}\n{_stamp(data)}\n"
  parent = datasets.prepared(data_dir) / "folder"
  # What is there is never written again or deleted: others may be reading it.
  of_files, of_state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (source, stamp))
  key = f"{of_files}-{of_state}"
  try:
    place = _kept(parent, key, stamp)
    if place is None:
      for left in sorted(parent.glob(f"{key}*")):
        print(f"{left} was altered, its files are read again. Delete it.", flush=True)
      for left in sorted(set(parent.glob(f"{of_files}-*")) - set(parent.glob(f"{key}*"))):
        _LOG.info("Made of files that have changed since, you can delete it: %s", left)
      for left in sorted(parent.glob("incomplete.*")):
        _LOG.info("Left by a run that was interrupted, or is being made; never used: %s", left)
      if against is not None:
        _check_apart(data, against)
      place = _prepare(data, parent, key, stamp, f"{root} ({own})")
    views = {path.stem: np.load(path, mmap_mode="r") for path in sorted(place.glob("*.npy"))}
  except OSError as error:
    raise UserError(
      f"The data read from {root} cannot be kept in {parent}: {error}. Make room, or give "
      "another folder with --config.data.data_dir=FOLDER."
    ) from error
  if split == "test" or not validation:
    return views
  held_out = [_share(stem, together, slice(6, 12)) < validation for stem in data.stems]
  rows = np.flatnonzero(np.array(held_out) == (split == "validation"))
  if not len(rows):
    raise UserError(
      f"The split {split!r} of {root} is empty with config.data.validation={validation:g}: add"
      " examples or change the fraction."
    )
  return {name: Column(rows, view.__getitem__) for name, view in views.items()}


def _check_classes(data: Folder, other: Folder, *splits: str) -> None:
  """That a class has one number in both splits."""
  for column in data.columns:
    if column.modality.kind == "label":
      name = column.modality.name
      ours, theirs = ({x[1] for x in found[name].values()} for found in (data.found, other.found))
      if ours != theirs:
        raise UserError(
          f"The splits differ in the classes of {name!r}: only {splits[0]!r} has "
          f"{_few(ours - theirs)}, only {splits[1]!r} has {_few(theirs - ours)}. A class is the "
          "folder's place among all, so both need the same folders."
        )


def _few(names: Iterable[str]) -> str:
  names = sorted(names)
  return (", ".join(names[:5]) + ", ..." * (len(names) > 5)) or "no more"


def _check_apart(data: Folder, other: Folder) -> None:
  """That no image, sound or video is in both splits; texts and masks may well be equal."""
  for column in data.columns:
    name = column.modality.name
    if column.derive or column.modality.kind not in ("image", "audio", "video"):
      continue
    ours, theirs = (_by_size(each, name) for each in (data, other))
    for size in ours.keys() & theirs.keys():
      known = {_digest(files): files[0] for files in theirs[size]}
      for files in ours[size]:
        if same := known.get(_digest(files)):
          raise UserError(
            f"{files[0]} and {same} are one {name!r} in both splits, bit for bit: tests would see "
            "what was trained on. Remove one of them."
          )


def _by_size(data: Folder, name: str) -> dict[tuple[int, ...], list[Sequence[pathlib.Path]]]:
  """The files of each example, by their sizes: only files of one size can be equal."""
  found = {}
  for stem in data.stems:
    if files := data.found[name].get(stem):
      found.setdefault(tuple(file.stat().st_size for file in files), []).append(files)
  return found


def _digest(paths: Sequence[pathlib.Path]) -> bytes:
  digest = hashlib.sha256()
  for path in paths:
    with readers.reading(path):
      digest.update(path.read_bytes())
  return digest.digest()


def _stamp(data: Folder) -> str:
  """Changes when a file does."""
  digest = hashlib.sha256()
  for name, found in sorted(data.found.items()):
    for stem in data.stems:
      for needed in found.get(stem, ()):
        stat = needed.stat() if isinstance(needed, pathlib.Path) else None
        state = (stat.st_size, stat.st_mtime_ns) if stat else ()
        digest.update(repr((name, stem, str(needed), *state)).encode())
  return digest.hexdigest()


def _kept(parent: pathlib.Path, key: str, stamp: str) -> pathlib.Path | None:
  """Where views of that stamp lie whole."""
  # The first is the place without a further suffix; if it was altered others took over.
  for place in sorted(parent.glob(f"{key}*"), reverse=True):
    source = place / "source"
    if source.is_file() and source.read_bytes() == (stamp + _sums(place)).encode():
      return place
  return None


def _sums(place: pathlib.Path) -> str:
  """Name, bytes and checksum of each array."""
  lines = []
  for path in sorted(place.glob("*.npy")):
    crc = 0
    with path.open("rb") as file:
      while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    lines.append(f"{path.name} {path.stat().st_size} {crc:08x}\n")
  return "".join(lines)


def _prepare(data: Folder, parent: pathlib.Path, key: str, stamp: str, title: str) -> pathlib.Path:
  """Writes an NPY file for each key of an example; returns the folder, which is there whole or not.

  It is `key`, or, where something else has that name, begins with it.
  """
  parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f"incomplete.{key}.", dir=parent) as temporary:
    views = pathlib.Path(temporary) / "views"
    views.mkdir()  # Unlike the folder around it, it may be read by others.
    began = said = time.monotonic()
    done = 0
    for examples in _chunks(data):
      for name in examples[0]:
        _append(views / f"{name}.npy", np.stack([x[name] for x in examples]), len(data))
      done += len(examples)
      if time.monotonic() - said > _LINE_EVERY:
        said = time.monotonic()
        left = round((said - began) * (len(data) - done) / done)
        print(
          f"Reading {title}: {done:,}/{len(data):,} examples, {left // 60}:{left % 60:02d} left",
          flush=True,
        )
    (views / "source").write_bytes((stamp + _sums(views)).encode())
    try:
      return views.rename(parent / key)
    except OSError:
      # Another process was quicker, or what is there was altered.
      if place := _kept(parent, key, stamp):
        return place
      return views.rename(parent / pathlib.Path(temporary).name.removeprefix("incomplete."))


def _chunks(data: Folder) -> Iterator[list[dict[str, np.ndarray]]]:
  """All examples in order, some at a time, read by several threads."""
  with futures.ThreadPoolExecutor() as pool:
    for start in range(0, len(data), _CHUNK):
      yield list(pool.map(data.__getitem__, range(len(data))[start : start + _CHUNK]))


def _append(path: pathlib.Path, rows: np.ndarray, total: int) -> None:
  """Writes the next rows of an array of `total`; a full disk kills who writes through a map."""
  with path.open("ab") as file:
    if file.tell() == 0:
      descr = np.lib.format.dtype_to_descr(rows.dtype)
      header = {"descr": descr, "fortran_order": False, "shape": (total, *rows.shape[1:])}
      np.lib.format.write_array_header_1_0(file, header)
    file.write(rows.tobytes())
