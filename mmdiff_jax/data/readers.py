"""Reads a user's files as model inputs: one pure function per kind.

All take the files of one example in one modality, a generator (only texts draw from it) and
settings. If a file cannot be read as requested they raise a UserError that names it. PNG, WAV and
GIF are checked for truncation, PNG also for alteration; a JPEG has no checksum, so one that was
altered may pass. NPZ files are in `array_files`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import csv
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

from mmdiff_jax.data import audio
from mmdiff_jax.errors import UserError

Paths = Sequence[pathlib.Path]


Size = tuple[int, int]  # height, width


_ORIENTATION = 0x0112  # Exif's tag; for values from 5 on, height and width are swapped.


# The errors that decoders raise on damaged files.
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, IndexError, RuntimeError, MemoryError)

DAMAGE += (struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
  """A context in which errors caused by a damaged file become a UserError that names it."""
  try:
    yield
  except DAMAGE as error:
    raise UserError(
      f"The file {path} cannot be read: {error}. If it is truncated or was altered, get it again "
      "or remove it."
    ) from error


def _open(path: pathlib.Path) -> Image.Image:
  """Returns the decoded image, upright."""
  with reading(path):
    with Image.open(path) as file:
      file.verify()  # Decoding alone does not check the checksums of a PNG.
    with Image.open(path) as file:
      return ImageOps.exif_transpose(file)


def _plain(still: Image.Image, path: pathlib.Path) -> Image.Image:
  """Converts to mode L, RGB, or F from 0 to 255 for 16 bits; refuses conversions that lose data."""
  if still.mode.startswith("I;16"):
    return Image.fromarray(np.asarray(still).astype(np.float32) / 257)
  if still.has_transparency_data:
    still = still.convert("RGBA")
    if still.getchannel("A").getextrema()[0] < 255:
      raise UserError(f"The image {path} has transparent pixels. Put it on a background.")
  if still.mode not in ("1", "L", "P", "RGB", "RGBA"):
    raise UserError(f"The image {path} has mode {still.mode}. Save it as 8-bit grey or RGB.")
  return still.convert("L" if still.mode in ("1", "L") else "RGB")


def _labels(still: Image.Image, size: Size) -> Image.Image:
  """Scales and crops as for an image, but without mixing values."""
  return ImageOps.fit(still, size[::-1], Image.Resampling.NEAREST)


def _pixels(still: Image.Image, path: pathlib.Path, size: Size, channels: int) -> np.ndarray:
  still = _plain(still, path)
  if channels == 1 and still.mode == "RGB":
    still = still.convert("L")
  fitted = ImageOps.fit(still, size[::-1], Image.Resampling.BICUBIC)
  values = np.clip(np.asarray(fitted) / np.float32(255), 0.0, 1.0)
  return values if values.ndim == 3 else values[..., None].repeat(channels, -1)


def extent(paths: Paths, *, half: Literal["", "left", "right"] = "") -> tuple[int, int]:
  """Returns height and width of the upright image on disk, or of its half if it contains two."""
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
  """Reads a PNG or JPEG, scaled to cover `size` and cropped at its centre.

  If the image contains two side by side, `half` selects one. Colours become grey (luma) if one
  channel is requested. Palettes, 1 and 16 bits, rotation flags and opaque alpha channels are
  converted; transparency, CMYK and 32 bits are refused.

  Returns:
    float32 [height, width, channels] in [0, 1].
  """
  del rng
  still = _open(paths[0])
  if half:
    middle, odd = divmod(still.width, 2)
    if odd:
      raise UserError(
        f"The image {paths[0]} is {still.width} pixels wide, so it cannot be split into two halves."
      )
    left = 0 if half == "left" else middle
    still = still.crop((left, 0, left + middle, still.height))
  return _pixels(still, paths[0], size, channels)


def photo(path: pathlib.Path) -> UInt8[np.ndarray, "height width 3"]:
  """Reads a PNG or JPEG in colour and in its original size; converts and refuses as `image`."""
  values = np.round(np.asarray(_plain(_open(path), path))).astype(np.uint8)
  return values if values.ndim == 3 else values[..., None].repeat(3, -1)


def mask(
  paths: Paths, rng: np.random.Generator, *, size: Size, num_classes: int
) -> Int[np.ndarray, "height width"]:
  """Reads a label map: the grey values or palette indices of a PNG are the classes.

  It is scaled by the nearest neighbour and cropped as in `image`. With two classes, 255 is class 1,
  too, and a JPEG is accepted if it is black and white: values below 64 are class 0, from 192 on 1.
  Files other than PNG are refused, because lossy compression makes classes that nobody drew.

  Returns:
    int32 [height, width] below `num_classes`.
  """
  del rng
  path, still = paths[0], _open(paths[0])
  with reading(path), Image.open(path) as file:
    lossy = file.format != "PNG"  # The suffix may be wrong.
  if still.mode == "RGB" and not np.ptp(np.asarray(still), axis=-1).any():
    still = still.getchannel(0)
  if still.mode not in ("1", "L", "P", "I;16"):
    raise UserError(
      f"The mask {path} has mode {still.mode}. A mask has one channel (or a palette) of classes "
      "0, 1, ...; turn colours into such values first."
    )
  if lossy:
    values = np.asarray(still.convert("L"))
    # Without white it must be all black; otherwise its values may be the classes 0 and 1.
    plain = ((values < 64) | (values >= 192)).all() and values.max() not in range(1, 192)
    if num_classes > 2 or not plain:
      raise UserError(
        f"The mask {path} is not a PNG, and other formats blur classes into each other. Save it as "
        "PNG from the original, not from this file. A JPEG can only have two classes, black and "
        "white."
      )
    still = still.convert("L")
  labels = np.asarray(_labels(still, size)).astype(np.int32)
  if num_classes == 2 and (lossy or np.isin(labels, (0, 255)).all()):
    labels = (labels > 127).astype(np.int32)
  if labels.max() >= num_classes:
    raise UserError(
      f"The mask {path} has the value {labels.max()}, but its {num_classes} classes are 0 to "
      f"{num_classes - 1}. Correct the mask or num_classes."
    )
  return labels


def parts(
  paths: Paths, rng: np.random.Generator, *, size: Size, names: tuple[str, ...]
) -> Int[np.ndarray, "height width"]:
  """Reads a label map from black-and-white images `NUMBER_PART.png`, one for each part that exists.

  The first of `names` is class 1; later parts cover earlier ones; the rest is class 0.

  Returns:
    int32 [height, width], at most `len(names)`.
  """
  del rng
  labels = np.zeros(size, np.int32)
  files = {path.stem.partition("_")[2]: path for path in paths}
  for name in files.keys() - set(names):
    raise UserError(
      f"The file {files[name]} belongs to no valid part. The parts are: {', '.join(names)}."
    )
  for name in sorted(files, key=names.index):
    part = _plain(_labels(_open(files[name]), size), files[name]).convert("L")
    labels[np.asarray(part) > 127] = names.index(name) + 1
  return labels


def video(
  paths: Paths, rng: np.random.Generator, *, frames: int, size: Size, channels: int
) -> Float[np.ndarray, "frames height width channels"]:
  """Reads frames of a GIF, or of PNGs or JPEGs, evenly spaced from the first to the last.

  If there are fewer frames than requested, some are repeated.

  Returns:
    float32 [frames, height, width, channels] in [0, 1], each frame as `image` returns it.
  """
  del rng
  stills = []
  if paths[0].suffix.lower() == ".gif":
    with reading(paths[0]), Image.open(paths[0]) as file:
      if not _is_ended(paths[0].read_bytes()):
        raise ValueError("it stops before the end mark of a GIF")
      stills = [still.copy() for still in ImageSequence.Iterator(file)]
    paths = [paths[0]] * len(stills)
  indices = np.round(np.linspace(0, len(paths) - 1, frames)).astype(int)
  return np.stack(
    [_pixels(stills[i] if stills else _open(paths[i]), paths[i], size, channels) for i in indices]
  )


def _is_ended(gif: bytes) -> bool:
  """Returns whether a GIF's blocks lead to its end mark, which Pillow does not need.

  Bytes after the end mark are allowed.
  """

  def table(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0

  offset = 13 + table(gif[10])
  try:
    while (block := gif[offset : offset + 1]) != b";":
      if block == b"!":  # An extension: its kind, then sub-blocks.
        offset += 2
      elif block == b",":  # A frame: position, colour table, bits of a code, then sub-blocks.
        offset += 11 + table(gif[offset + 9])
      else:
        return False
      while gif[offset]:
        offset += 1 + gif[offset]
      offset += 1
  except IndexError:
    return False
  return True


def sound(
  paths: Paths, rng: np.random.Generator, *, view: audio.LogMel
) -> Float[np.ndarray, "frames bands"]:
  """Reads the log-mel spectrogram of the start of a WAV or FLAC, with all channels averaged.

  Other sample rates are resampled; shorter sounds are padded with silence.

  Returns:
    float32 [frames, bands] in [0, 1].
  """
  # They are slow to import, and only sounds need them.
  from scipy import signal
  import soundfile

  del rng
  with reading(paths[0]), soundfile.SoundFile(paths[0]) as file:
    rate, wave = file.samplerate, file.read(dtype="float32", always_2d=True).mean(1)
    if _is_cut(paths[0]):
      raise ValueError("it is shorter than its header says")
    if not len(wave):
      raise ValueError("it has no samples")
    if not 1000 <= rate <= 1_000_000:
      raise ValueError(f"it has {rate} samples per second")
    if not np.isfinite(wave).all():
      raise ValueError("it has samples that are not finite numbers")
  common = math.gcd(rate, view.sample_rate)
  wave = signal.resample_poly(wave, view.sample_rate // common, rate // common)[: view.samples]
  return audio.log_mel(np.pad(wave, (0, view.samples - len(wave))), view)


def _is_cut(path: pathlib.Path) -> bool:
  """Returns whether a WAV file is shorter than its header says, which libsndfile accepts."""
  with path.open("rb") as file:
    name, length = struct.unpack("<4sI", file.read(8))
  # Programs that write into a pipe leave the length at its maximum.
  return name == b"RIFF" and length < 2**32 - 1 and path.stat().st_size < length + 8


def text(
  lines: Paths | Sequence[str],
  rng: np.random.Generator,
  *,
  length: int,
  alphabet: str = "",
) -> Int[np.ndarray, " length"]:
  """Draws one caption of `lines`, or of the lines of a UTF-8 file, and returns its tokens.

  The tokens are indices in `alphabet`, padded with its first character, or, without an alphabet,
  the bytes of UTF-8, padded with 0. Longer captions are cut off at `length`.

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
    raise UserError(f"There is no caption in {source}. Write one per line, or remove the file.")
  caption = captions[rng.integers(len(captions))]
  if alphabet:
    if unknown := sorted(set(caption) - set(alphabet)):
      raise UserError(
        f"The caption {caption!r} in {source} has characters that are not in the alphabet: "
        f"{unknown}. Add them, or leave the alphabet out to use bytes."
      )
    tokens = [alphabet.index(character) for character in caption[:length]]
  else:
    # A character that the cut would split is dropped entirely.
    tokens = list(caption.encode()[:length].decode(errors="ignore").encode())
  return np.pad(np.array(tokens, np.int32), (0, length - len(tokens)))


def table(path: pathlib.Path, *, key: str, column: str) -> dict[str, list[str]]:
  """Returns the captions in one column of a CSV file, by the stems in another.

  Raises:
    UserError: there is no such file or column, it is not a CSV file, or a cell is empty.
  """
  captions = {}
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      for row in (rows := csv.DictReader(file, strict=True)):
        if not row[key] or not (row[column] or "").strip():
          raise csv.Error(f"line {rows.line_num} has no {key} or no {column}")
        captions.setdefault(row[key], []).append(row[column])
  except (OSError, UnicodeError, csv.Error) as error:
    raise UserError(f"The file {path} cannot be read as CSV: {error}. Get it again.") from error
  except KeyError as error:
    raise UserError(f"The file {path} has no column {error}. Name it in the first line.") from error
  return captions


def text_of(tokens: Int[np.ndarray, " length"], alphabet: str = "") -> str:
  """Returns the caption of [length] tokens of `text`; unprintable characters become U+FFFD."""
  if alphabet:
    return "".join(alphabet[token] for token in tokens).strip()
  caption = bytes(token for token in tokens.tolist() if token).decode(errors="replace")
  return "".join(character if character.isprintable() else "\ufffd" for character in caption)
