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

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from typing import Any, Literal
import zlib

import numpy as np

from mmdiff_jax.data import audio, derived, readers
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, mask_picture, Modality, video_picture

# Which files of a folder are a modality's, as `files` takes it.
IMAGES = r"(.*)\.(?:png|jpe?g)"
SOUNDS = r"(.*)\.(?:wav|flac)"
TEXTS = r"(.*)\.txt"
VIDEOS = r"(.*)\.gif|(?P<several>.*)/[^/]*\.(?:png|jpe?g)"

Found = Mapping[str, Sequence[pathlib.Path] | Sequence[str] | Sequence[int]]
Spec = Mapping[str, Any]

_CHUNK = 64  # Examples read by all threads before they are written.
_LINE_EVERY = 5.0  # Seconds between two lines of progress.
_PREPARED = "~/tensorflow_datasets"  # Where tfds keeps what it prepares.


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
    incomplete: what becomes of an example that lacks a modality: "refuse" raises an error, "keep"
      keeps it (see `Folder.masked`), "drop" goes without it.
    aligned: see `Folder.aligned`.
    seed: of what is random.

  Raises:
    UserError: a folder is missing, the split is empty or incomplete, or two files are one example.
  """
  if incomplete not in ("refuse", "keep", "drop"):
    raise UserError(f"incomplete is {incomplete!r}; it can be 'refuse', 'keep' or 'drop'.")
  root = pathlib.Path(root)
  if not root.is_dir():
    raise UserError(f"There is no folder {str(root)!r} with data.")
  named = any("{split}" in column.place for column in columns)
  hashed = not named and not any((root / name).is_dir() for name in ("train", "test"))
  if hashed and split not in ("train", "test"):
    raise UserError(f"{root} has no folder {split!r} and is split into 'train' and 'test' only.")
  base = root if named or hashed else root / split

  def here(column: FolderModality) -> pathlib.Path:
    return base / column.place.replace("{split}", split)

  columns = [c.given if c.given and here(c.given).is_dir() else c for c in columns]
  # A derived modality has the files of another one.
  find = functools.cache(lambda finder, path: finder(path))
  found = {column.modality.name: find(column.find, here(column)) for column in columns}
  stems = set().union(*found.values())
  if hashed:
    stems = {stem for stem in stems if (_share(stem) < test_share) == (split == "test")}
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
  return Folder(tuple(columns), found, tuple(sorted(stems)), incomplete == "keep", aligned, seed)


def _share(stem: str) -> float:
  """A number in [0, 1) that depends on nothing but the stem."""
  return int.from_bytes(hashlib.sha256(os.fsencode(stem)).digest()[:6]) / 2**48


def files(path: pathlib.Path, *, pattern: str) -> Found:
  """The files in a folder, at any depth, by stem.

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
  for relative in sorted((file.relative_to(path) for file in path.rglob("*")), key=_natural):
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
  split must have all `num_classes` folders.
  """
  return FolderModality(
    Modality(name, "label", (), str, num_classes=num_classes),
    of.place,
    functools.partial(_classes, find=of.find, num_classes=num_classes),
    _class,
  )


def _class(classes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
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
  return {stem: (names.index(stem.split("/")[0]),) for stem in stems}


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


def parse(columns: Mapping[str, Spec]) -> tuple[FolderModality, ...]:
  """What specs say.

  Args:
    columns: spec of each modality, by its name: `read`, the name of one of the functions above, and
      that function's arguments, where `of` is the name of another modality and `view` the arguments
      of `audio.LogMel`.

  Raises:
    UserError: there is no such function, argument or modality, or a value cannot be.
  """
  made: dict[str, FolderModality] = {}

  def make(name: str) -> FolderModality:
    if name not in made:
      made[name] = _column(name, columns, make)
    return made[name]

  return tuple(make(name) for name in columns)


def _column(name: str, columns: Mapping[str, Spec], make) -> FolderModality:
  where = f"config.data.columns.{name}"
  options = dict(columns[name])
  read = options.pop("read", None)
  if read not in _READ:
    raise UserError(f"{where}.read is {read!r}; it can be {', '.join(_READ)}.")
  if "of" in options:
    of = options["of"]
    if of not in columns or "of" in columns[of]:
      whole = ", ".join(other for other in columns if "of" not in columns[other])
      raise UserError(f"{where}.of is {of!r}; it can be one of the modalities {whole or '(none)'}.")
    options["of"] = make(of)
  if "size" in options:
    if np.shape(options["size"]) != (2,):
      raise UserError(f"{where}.size is {options['size']}; it must be (height, width).")
    options["size"] = tuple(options["size"])
  for key in ("size", "channels", "frames", "length", "num_classes"):
    values = options.get(key, 1)
    for value in values if isinstance(values, tuple) else (values,):
      if not isinstance(value, int) or value < 1:
        raise UserError(f"{where}.{key} is {values!r}; it must be whole and at least 1.")
  try:
    if not re.compile(options.get("pattern", IMAGES)).groups:
      raise re.error("it has no group (in parentheses) for the stem")
  except re.error as error:
    raise UserError(f"{where}.pattern is {options['pattern']!r}: {error}.") from error
  if "view" in options:
    options["view"] = _called(f"{where}.view", audio.LogMel, **dict(options["view"]))
  return _called(where, _READ[read], name, **options)


def _called(where: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
  signature = inspect.signature(function)
  try:
    signature.bind(*args, **options)
  except TypeError as error:
    known = ", ".join(list(signature.parameters)[len(args) :])
    raise UserError(f"{where}: {error}. What it can have is: {known}.") from error
  return function(*args, **options)


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
  incomplete: str = "refuse",
  aligned: bool = True,
) -> dict[str, np.ndarray]:
  """A whole split, in the order of the stems, read from disk when its rows are.

  The files are read once, all of them, so that what is wrong with one is said at once; their views
  are kept in `data_dir` and made anew when a file or an option has changed.

  Args:
    split: "train" or "test".
    data_dir: takes the views, in `folder/`; None is tfds's own, `~/tensorflow_datasets`.
    manual_dir: the folder.
    columns: specs, as `parse` takes them.
    test_split: the folder's own name of the split "test".
    test_share: this and the rest as `open_folder` takes them.
    incomplete: what becomes of an example that lacks a modality.
    aligned: whether the images and masks of an example must have the same proportions.

  Returns:
    The views of each modality, [n, ...], and with `incomplete="keep"` a `NAME_present`, bool [n].

  Raises:
    UserError: there is no folder, a file is missing or cannot be read, or the disk is full.
  """
  if manual_dir is None:
    raise UserError("Which folder is yours? Say --config.data.manual_dir=FOLDER.")
  own = test_split if split == "test" else split
  options = {"test_share": test_share, "incomplete": incomplete, "aligned": aligned}
  data = open_folder(manual_dir, parse(columns), own, **options)
  source = {"root": os.path.abspath(manual_dir), "split": own, "columns": columns, **options}
  source = json.dumps(source, indent=1, sort_keys=True)
  parent = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", _PREPARED)).expanduser()
  place = parent / "folder" / hashlib.sha256(source.encode()).hexdigest()[:16]
  stamp = f"{source}\n{_stamp(data)}\n"
  try:
    if not (place / "source").is_file() or (place / "source").read_text() != stamp:
      _prepare(data, place, stamp, f"{manual_dir} ({own})")
  except OSError as error:
    raise UserError(
      f"The data read from {manual_dir} cannot be kept in {place}: {error}. Make room, or give "
      "another folder with --config.data.data_dir=FOLDER."
    ) from error
  return {path.stem: np.load(path, mmap_mode="r") for path in sorted(place.glob("*.npy"))}


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


def _prepare(data: Folder, place: pathlib.Path, stamp: str, title: str) -> None:
  """Writes an NPY file for each key of an example into `place`, which is there whole or not."""
  place.parent.mkdir(parents=True, exist_ok=True)
  temporary = pathlib.Path(tempfile.mkdtemp(dir=place.parent))
  try:
    began = said = time.monotonic()
    done = 0
    for examples in _chunks(data):
      for name in examples[0]:
        _append(temporary / f"{name}.npy", np.stack([x[name] for x in examples]), len(data))
      done += len(examples)
      if time.monotonic() - said > _LINE_EVERY:
        said = time.monotonic()
        left = round((said - began) * (len(data) - done) / done)
        print(
          f"Reading {title}: {done:,}/{len(data):,} examples, {left // 60}:{left % 60:02d} left",
          flush=True,
        )
    (temporary / "source").write_text(stamp)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


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
