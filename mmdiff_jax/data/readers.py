"""Reads a user's files into the model's view: a pure function a kind.

All but those of NPZ take the files of one example in one modality, a generator (only texts draw
from it) and settings. Where a file cannot be read as asked they raise a UserError that names it.
PNG, WAV and GIF are checked for truncation, PNG also for alteration; a JPEG has no checksum, so one
that was altered may pass.
"""

from collections.abc import Iterator, Sequence
import contextlib
import csv
import io
import math
import os
import pathlib
import struct
from typing import Literal
import zipfile
import zlib

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image, ImageOps, ImageSequence

from mmdiff_jax import storage
from mmdiff_jax.data import audio
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality

Paths = Sequence[pathlib.Path]
Size = tuple[int, int]  # height, width
_ORIENTATION = 0x0112  # Exif's tag; from 5 on the image lies on its side.
# What the decoders raise on damaged files.
_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, IndexError, RuntimeError, MemoryError)
_DAMAGE += (struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
  """Within, what goes wrong because of a damaged file is a UserError that names it."""
  try:
    yield
  except _DAMAGE as error:
    raise UserError(
      f"The file {path} cannot be read: {error}. If it is truncated or was altered, get it again "
      "or remove it."
    ) from error


def _open(path: pathlib.Path) -> Image.Image:
  """The decoded image, upright."""
  with reading(path):
    with Image.open(path) as file:
      file.verify()  # Decoding alone does not look at the checksums of a PNG.
    with Image.open(path) as file:
      return ImageOps.exif_transpose(file)


def _plain(still: Image.Image, path: pathlib.Path) -> Image.Image:
  """In mode L, RGB, or F from 0 to 255 if it has 16 bits; refuses what would lose something."""
  if still.mode.startswith("I;16"):
    return Image.fromarray(np.asarray(still).astype(np.float32) / 257)
  if still.has_transparency_data:
    still = still.convert("RGBA")
    if still.getchannel("A").getextrema()[0] < 255:
      raise UserError(f"The image {path} is transparent in places. Put it on a background.")
  if still.mode not in ("1", "L", "P", "RGB", "RGBA"):
    raise UserError(f"The image {path} has mode {still.mode}. Save it as 8-bit grey or RGB.")
  return still.convert("L" if still.mode in ("1", "L") else "RGB")


def _labels(still: Image.Image, size: Size) -> Image.Image:
  """Fitted as an image is, but without mixing values."""
  return ImageOps.fit(still, size[::-1], Image.Resampling.NEAREST)


def _view(still: Image.Image, path: pathlib.Path, size: Size, channels: int) -> np.ndarray:
  still = _plain(still, path)
  if channels == 1 and still.mode == "RGB":
    still = still.convert("L")
  fitted = ImageOps.fit(still, size[::-1], Image.Resampling.BICUBIC)
  values = np.clip(np.asarray(fitted) / np.float32(255), 0.0, 1.0)
  return values if values.ndim == 3 else values[..., None].repeat(channels, -1)


def extent(paths: Paths, *, half: Literal["", "left", "right"] = "") -> tuple[int, int]:
  """Height and width of an image on disk, upright; of its half where it holds two."""
  with reading(paths[0]), Image.open(paths[0]) as file:
    width, height = file.size
    if file.getexif().get(_ORIENTATION, 1) >= 5:
      width, height = height, width
  return height, width // 2 if half else width


def image(
  paths: Paths,
  rng: np.random.Generator,
  *,
  size: Size,
  channels: int,
  half: Literal["", "left", "right"] = "",
) -> Float[np.ndarray, "height width channels"]:
  """A PNG or JPEG, scaled to cover `size` and cut at its centre.

  Of an image that holds two side by side, `half` is the one to take. Colours become grey (luma)
  where one channel is asked for. Palettes, 1 and 16 bits, flags of rotation and opaque alpha
  channels are converted; transparency, CMYK and 32 bits are refused.

  Returns:
    float32 [height, width, channels] in [0, 1].
  """
  del rng
  still = _open(paths[0])
  if half:
    middle, odd = divmod(still.width, 2)
    if odd:
      raise UserError(f"The image {paths[0]} is {still.width} pixels wide: no two halves in it.")
    left = 0 if half == "left" else middle
    still = still.crop((left, 0, left + middle, still.height))
  return _view(still, paths[0], size, channels)


def photo(path: pathlib.Path) -> UInt8[np.ndarray, "height width 3"]:
  """A whole PNG or JPEG in its own size, in colour, converted and refused as `image` does."""
  values = np.round(np.asarray(_plain(_open(path), path))).astype(np.uint8)
  return values if values.ndim == 3 else values[..., None].repeat(3, -1)


def mask(
  paths: Paths, rng: np.random.Generator, *, size: Size, num_classes: int
) -> Int[np.ndarray, "height width"]:
  """A label map: the grey values or palette indices of a PNG are the classes.

  Scaled by the nearest neighbour and cut as `image` is. With two classes, 255 is the class 1, too,
  and a JPEG will do if it is black and white: values below 64 are the class 0, from 192 on 1. Other
  files than PNG are refused, for what smears makes classes that nobody drew.

  Returns:
    int32 [height, width] below `num_classes`.
  """
  del rng
  path, still = paths[0], _open(paths[0])
  with reading(path), Image.open(path) as file:
    lossy = file.format != "PNG"  # Whatever the suffix says.
  if still.mode == "RGB" and not np.ptp(np.asarray(still), axis=-1).any():
    still = still.getchannel(0)
  if still.mode not in ("1", "L", "P", "I;16"):
    raise UserError(
      f"The mask {path} has mode {still.mode}. A mask has one channel (or a palette) of classes "
      "0, 1, ...; turn colours into such values first."
    )
  if lossy:
    values = np.asarray(still.convert("L"))
    # One that has no white must be black altogether, or it may hold the values 0 and 1.
    plain = ((values < 64) | (values >= 192)).all() and values.max() not in range(1, 192)
    if num_classes > 2 or not plain:
      raise UserError(
        f"The mask {path} is no PNG, and other formats smear classes into each other. Save it as "
        "PNG, from the original, not from this file. JPEG is for two classes, black and white."
      )
    still = still.convert("L")
  labels = np.asarray(_labels(still, size)).astype(np.int32)
  if num_classes == 2 and (lossy or np.isin(labels, (0, 255)).all()):
    labels = (labels > 127).astype(np.int32)
  if labels.max() >= num_classes:
    raise UserError(
      f"The mask {path} has the value {labels.max()}, but its {num_classes} classes are 0 to "
      f"{num_classes - 1}. Mend the mask or num_classes."
    )
  return labels


def parts(
  paths: Paths, rng: np.random.Generator, *, size: Size, names: tuple[str, ...]
) -> Int[np.ndarray, "height width"]:
  """A label map out of black-and-white images `NUMBER_PART.png`, of the parts that there are.

  The first of `names` is the class 1; later ones cover earlier ones; the rest is the class 0.

  Returns:
    int32 [height, width], at most `len(names)`.
  """
  del rng
  labels = np.zeros(size, np.int32)
  files = {path.stem.partition("_")[2]: path for path in paths}
  for name in files.keys() - set(names):
    raise UserError(f"The file {files[name]} is of no known part; they are: {', '.join(names)}.")
  for name in sorted(files, key=names.index):
    part = _plain(_labels(_open(files[name]), size), files[name]).convert("L")
    labels[np.asarray(part) > 127] = names.index(name) + 1
  return labels


def video(
  paths: Paths, rng: np.random.Generator, *, frames: int, size: Size, channels: int
) -> Float[np.ndarray, "frames height width channels"]:
  """A GIF, or the PNGs or JPEGs of its frames, at even distances from the first to the last.

  Where there are fewer frames than asked for, some are repeated.

  Returns:
    float32 [frames, height, width, channels] in [0, 1], each frame as `image` makes it.
  """
  del rng
  stills = []
  if paths[0].suffix.lower() == ".gif":
    with reading(paths[0]), Image.open(paths[0]) as file:
      if not _is_ended(paths[0].read_bytes()):
        raise ValueError("it stops before the end mark of a GIF")
      stills = [still.copy() for still in ImageSequence.Iterator(file)]
    paths = [paths[0]] * len(stills)
  chosen = np.round(np.linspace(0, len(paths) - 1, frames)).astype(int)
  return np.stack(
    [_view(stills[i] if stills else _open(paths[i]), paths[i], size, channels) for i in chosen]
  )


def _is_ended(gif: bytes) -> bool:
  """Whether a GIF's blocks lead to its end mark, which Pillow does without; more may follow."""

  def table(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0

  place = 13 + table(gif[10])
  try:
    while (block := gif[place : place + 1]) != b";":
      if block == b"!":  # An extension: its kind, then pieces.
        place += 2
      elif block == b",":  # A frame: where it is, its colours, the bits of a code, then pieces.
        place += 11 + table(gif[place + 9])
      else:
        return False
      while gif[place]:
        place += 1 + gif[place]
      place += 1
  except IndexError:
    return False
  return True


def sound(
  paths: Paths, rng: np.random.Generator, *, view: audio.LogMel
) -> Float[np.ndarray, "frames bands"]:
  """The log-mel spectrogram of the start of a WAV or FLAC, all channels mixed.

  Other sample rates are resampled; shorter sounds end in silence.

  Returns:
    float32 [frames, bands] in [0, 1].
  """
  # They take a while to import, and only sounds need them.
  from scipy import signal
  import soundfile

  del rng
  with reading(paths[0]), soundfile.SoundFile(paths[0]) as file:
    rate, wave = file.samplerate, file.read(dtype="float32", always_2d=True).mean(1)
    if _is_cut(paths[0]):
      raise ValueError("it stops before the end that its header says")
    if not len(wave):
      raise ValueError("it has no samples")
    if not 1000 <= rate <= 1_000_000:
      raise ValueError(f"it has {rate} samples a second")
    if not np.isfinite(wave).all():
      raise ValueError("it has samples that are no numbers")
  common = math.gcd(rate, view.sample_rate)
  wave = signal.resample_poly(wave, view.sample_rate // common, rate // common)[: view.samples]
  return audio.log_mel(np.pad(wave, (0, view.samples - len(wave))), view)


def _is_cut(path: pathlib.Path) -> bool:
  """Whether it is a WAV file shorter than it says, which libsndfile forgives."""
  with path.open("rb") as file:
    name, length = struct.unpack("<4sI", file.read(8))
  # Programs that write into a pipe leave the length at its limit.
  return name == b"RIFF" and length < 2**32 - 1 and path.stat().st_size < length + 8


def text(
  lines: Paths | Sequence[str],
  rng: np.random.Generator,
  *,
  length: int,
  alphabet: str = "",
) -> Int[np.ndarray, " length"]:
  """One of the captions, drawn at random, as tokens: those given, or the lines of a UTF-8 file.

  The tokens are places in `alphabet`, filled up by its first character, or, without one, the bytes
  of UTF-8, filled up by 0. What is over `length` is cut off.

  Returns:
    int32 [length].
  """
  captions, source = lines, "its table"
  if isinstance(lines[0], pathlib.Path):
    source = lines[0]
    with reading(source):
      captions = source.read_text("utf-8-sig").splitlines()
  captions = [caption.strip() for caption in captions if caption.strip()]
  if not captions:
    raise UserError(f"There is no caption in {source}. Write one a line, or remove the file.")
  caption = captions[rng.integers(len(captions))]
  if alphabet:
    if unknown := sorted(set(caption) - set(alphabet)):
      raise UserError(
        f"The caption {caption!r} in {source} has characters that the alphabet lacks: {unknown}. "
        "Add them, or leave the alphabet out to use bytes."
      )
    tokens = [alphabet.index(character) for character in caption[:length]]
  else:
    # A character that the cut would split goes whole.
    tokens = list(caption.encode()[:length].decode(errors="ignore").encode())
  return np.pad(np.array(tokens, np.int32), (0, length - len(tokens)))


def table(path: pathlib.Path, *, key: str, column: str) -> dict[str, list[str]]:
  """The captions in one column of a CSV file, by the stems in another.

  Raises:
    UserError: there is no such file or column, it is no CSV, or a cell is empty.
  """
  found = {}
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      for row in (rows := csv.DictReader(file, strict=True)):
        if not row[key] or not (row[column] or "").strip():
          raise csv.Error(f"line {rows.line_num} has no {key} or no {column}")
        found.setdefault(row[key], []).append(row[column])
  except (OSError, UnicodeError, csv.Error) as error:
    raise UserError(f"The file {path} cannot be read as CSV: {error}. Get it again.") from error
  except KeyError as error:
    raise UserError(f"The file {path} has no column {error}. Name it in its first line.") from error
  return found


def text_of(tokens: Int[np.ndarray, " length"], alphabet: str = "") -> str:
  """The caption that [length] tokens of `text` spell; what is no character of a line is U+FFFD."""
  if alphabet:
    return "".join(alphabet[token] for token in tokens).strip()
  caption = bytes(token for token in tokens.tolist() if token).decode(errors="replace")
  return "".join(character if character.isprintable() else "\ufffd" for character in caption)


def npz(
  path: str | os.PathLike[str], modalities: Sequence[Modality], *, prefix: str = ""
) -> dict[str, np.ndarray]:
  """A whole split out of an NPZ file, which has an array `prefix + name` for each modality.

  Images and videos may be uint8, which is divided by 255. No pickle is read.

  Returns:
    The model's views, float32 or int32 [n, *shape].

  Raises:
    UserError: the file is damaged or needs pickle, or an array is missing or not what it must be.
  """
  views = {}
  for modality in modalities:
    key = prefix + modality.name
    views[modality.name] = checked(array(path, key), key, modality, path)
  lengths = {name: len(view) for name, view in views.items()}
  if len(set(lengths.values())) != 1 or 0 in lengths.values():
    raise UserError(f"The arrays of {path} must have the same examples, at least one: {lengths}.")
  return views


def write_npz(path: str | os.PathLike[str], **arrays: np.ndarray) -> None:
  """Writes an NPZ file so that nobody ever sees a part of it; raises OSError and leaves nothing.

  It may lie in a bucket, see `storage.path`.
  """
  path = storage.path(path)
  if storage.in_bucket(path):
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    path.write_bytes(whole.getvalue())
    return
  # A name of its own, since several processes may write the same.
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  try:
    with part.open("wb") as file:
      np.savez(file, **arrays)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  except OSError:
    part.unlink(missing_ok=True)
    raise


def kept_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | None:
  """The arrays of an NPZ file, or None when it is not there or cannot be read.

  It may lie in a bucket, see `storage.path`.
  """
  try:
    path = storage.path(path)
    whole = io.BytesIO(path.read_bytes()) if storage.in_bucket(path) else path
    with np.load(whole, allow_pickle=False) as file:  # What is in a ZIP has a checksum.
      return dict(file)
  except (*_DAMAGE, KeyError):
    return None


def array(path: str | os.PathLike[str], key: str) -> np.ndarray:
  """One array of an NPZ file as it is; no pickle is read.

  Raises:
    UserError: the file is not there, is damaged or needs pickle, or has no such array.
  """
  path = storage.expanded(path)
  with reading(path):
    if not zipfile.is_zipfile(path):
      raise ValueError("it is not there, or no NPZ file")
    with np.load(path, allow_pickle=False) as file:
      if key in file:
        return file[key]
      raise UserError(f"The file {path} has no array {key!r}, only: {', '.join(file)}. Add it.")


def checked(
  array: np.ndarray, key: str, modality: Modality, path: str | os.PathLike[str]
) -> np.ndarray:
  """An array of an NPZ file as a modality's view, float32 or int32 [n, *shape].

  Args:
    array: the array; of an image or a video it may be uint8, which is divided by 255.
    key: its name in the file, for the message.
    modality: what it must be.
    path: the file, for the message.

  Raises:
    UserError: it has another shape, type or range.
  """
  pixels, whole = modality.kind in ("image", "video"), modality.num_classes > 0
  kind, dtype = ("iu", np.int32) if whole else ("f", np.float32)
  low, high = modality.bounds
  view = array / np.float32(255) if pixels and array.dtype == np.uint8 else array
  if view.dtype.kind == "f":
    with np.errstate(over="ignore"):  # What is too large becomes infinite and is refused.
      view = view.astype(np.float32)
  fits = view.dtype.kind in kind and view.shape[1:] == modality.shape and view.ndim > 0
  if not fits or not (np.isfinite(view) & (view >= low) & (view <= high)).all():
    raise UserError(
      f"The array {key!r} of {path} is {array.dtype} of shape {array.shape}; a modality of kind "
      f"{modality.kind} must be {dtype.__name__} of shape [n, *{modality.shape}], finite numbers "
      f"from {low:g} to {high:g}. Convert it and save it again."
    )
  return view.astype(dtype)
