"""Columns of a user's folder: one function per kind of file, and the specs that name them.

`parse` makes columns of specs, the plain values of a config (see `folder`): `read` names one of the
functions `image` to `partial_mask` below, and the other values are its arguments.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import inspect
import os
import pathlib
import re
from typing import Any, Literal

import numpy as np

from mmdiff_jax import config_checks
from mmdiff_jax.data import audio, derived, readers
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
  for relative in sorted(_walk(path), key=natural):
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


def natural(path: pathlib.Path) -> list[tuple[int, str]]:
  """Returns a sort key that puts frame_2 before frame_10."""
  pieces = re.split(r"([0-9]+)", path.as_posix())
  return [(int(piece) if i % 2 else 0, piece) for i, piece in enumerate(pieces)]


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
