"""A user's own data: a folder with one subfolder a modality, whose files are matched by name.

    root/image/cat/001.jpg     root/caption/cat/001.txt     root/tone/cat/001.wav

The *stem* of a file is its path in the modality's folder without the suffix, here `cat/001`; files
of one stem are one example. `root` may have the splits on top (`train/image/...`), or the place of
a modality names the split (`"{split}_photos"`); else a hash of the stem parts train from test.

    photos = image("image", (64, 64))
    data = open_folder(root, (photos, text("caption", 128), sketch("sketch", photos)), "train")
    data[0]["image"]  # Read now. As a source for Grain: grain.MapDataset.source(data).
    data.arrays()  # The whole split in memory, as the `load` of a data set returns it.

`layouts` opens some public data sets as they unpack.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
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

Found = Mapping[str, Sequence[pathlib.Path] | Sequence[str]]


@dataclasses.dataclass(frozen=True)
class FolderModality:
  """A modality of a folder: where its files are and how they are read.

  Attributes:
    modality: the model's view.
    place: its folder (or file) below the root; `{split}` in it stands for the split.
    find: that folder -> what `read` needs of each example (paths, or captions), by stem.
    read: what it needs, generator -> the model's view of an example.
    of: where the modality is derived, the name of the one that `read` reads.
    derive: that one's view, generator -> the model's view.
  """

  modality: Modality
  place: str
  find: Callable[[pathlib.Path], Found]
  read: Callable[[Any, np.random.Generator], np.ndarray]
  of: str = ""
  derive: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None


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
    seed: of what is random.
  """

  columns: tuple[FolderModality, ...]
  found: Mapping[str, Found]
  stems: tuple[str, ...]
  masked: bool = False
  seed: int = 0

  @property
  def modalities(self) -> tuple[Modality, ...]:
    """The modalities, in order."""
    return tuple(column.modality for column in self.columns)

  def __len__(self) -> int:
    return len(self.stems)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    index = range(len(self))[index]
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

  def arrays(self) -> dict[str, np.ndarray]:
    """The whole split in memory: an array for each key of an example, [n, ...]."""
    examples = list(self)
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def open_folder(
  root: str | os.PathLike[str],
  columns: Sequence[FolderModality],
  split: str,
  *,
  test_share: float = 0.1,
  incomplete: Literal["refuse", "keep", "drop"] = "refuse",
  seed: int = 0,
) -> Folder:
  """Finds the examples of a split; no file is read.

  Args:
    root: the folder.
    columns: its modalities.
    split: "train" or "test", or another one that the folder has.
    test_share: share of "test" where the folder has no splits.
    incomplete: what becomes of an example that lacks a modality: an error is raised, it is kept
      (see `Folder.masked`), or it is dropped.
    seed: of what is random.

  Raises:
    UserError: a folder is missing, the split is empty or incomplete, or two files are one example.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise UserError(f"There is no folder {str(root)!r} with data.")
  named = any("{split}" in column.place for column in columns)
  hashed = not named and not any((root / name).is_dir() for name in ("train", "test"))
  if hashed and split not in ("train", "test"):
    raise UserError(f"{root} has no folder {split!r} and is split into 'train' and 'test' only.")
  base = root if named or hashed else root / split
  # A derived modality has the files of another one.
  find = functools.cache(lambda finder, place: finder(base / place))
  found = {c.modality.name: find(c.find, c.place.replace("{split}", split)) for c in columns}
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
  return Folder(tuple(columns), found, tuple(sorted(stems)), incomplete == "keep", seed)


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
  read = functools.partial(readers.image, size=size, channels=channels, half=half)
  return FolderModality(modality, place or name, functools.partial(files, pattern=pattern), read)


def mask(
  name: str, size: readers.Size, num_classes: int, *, place: str = "", pattern: str = IMAGES
) -> FolderModality:
  """Label maps, as `readers.mask` reads them."""
  modality = Modality(name, "mask", size, mask_picture, num_classes=num_classes)
  read = functools.partial(readers.mask, size=size, num_classes=num_classes)
  return FolderModality(modality, place or name, functools.partial(files, pattern=pattern), read)


def sound(name: str, view: audio.LogMel, *, place: str = "") -> FolderModality:
  """Log-mel spectrograms, as `readers.sound` reads them."""
  show = functools.partial(audio.invert, view=view)
  shape = (view.frames, view.bands)
  modality = Modality(name, "audio", shape, show, sample_rate=view.sample_rate)
  read = functools.partial(readers.sound, view=view)
  return FolderModality(modality, place or name, functools.partial(files, pattern=SOUNDS), read)


def text(name: str, length: int, *, alphabet: str = "", place: str = "") -> FolderModality:
  """Captions, as `readers.text` reads them."""
  show = functools.partial(readers.text_of, alphabet=alphabet)
  tokens = len(alphabet) or 256
  modality = Modality(name, "text", (length,), show, num_classes=tokens)
  read = functools.partial(readers.text, length=length, alphabet=alphabet)
  return FolderModality(modality, place or name, functools.partial(files, pattern=TEXTS), read)


def video(
  name: str, frames: int, size: readers.Size, channels: int = 3, *, place: str = ""
) -> FolderModality:
  """Videos, each a GIF or a folder of frames, as `readers.video` reads them."""
  modality = Modality(name, "video", (frames, *size, channels), video_picture)
  read = functools.partial(readers.video, frames=frames, size=size, channels=channels)
  return FolderModality(modality, place or name, functools.partial(files, pattern=VIDEOS), read)


def sketch(name: str, of: FolderModality, *, sigma: float = 1.0) -> FolderModality:
  """The sketches that `derived.sketch` makes of images."""
  modality = dataclasses.replace(of.modality, name=name, shape=(*of.modality.shape[:2], 1))
  derive = functools.partial(derived.sketch, sigma=sigma)
  return dataclasses.replace(of, modality=modality, of=of.modality.name, derive=derive)


def partial_mask(name: str, of: FolderModality, *, keep: float = 0.5) -> FolderModality:
  """The parts that `derived.partial_mask` keeps of masks."""
  modality = dataclasses.replace(of.modality, name=name)
  derive = functools.partial(derived.partial_mask, keep=keep)
  return dataclasses.replace(of, modality=modality, of=of.modality.name, derive=derive)
