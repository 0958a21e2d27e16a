"""Reads and writes NPZ files; pickled objects are not read."""

from collections.abc import Sequence
import io
import os
import zipfile

import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.data.readers import DAMAGE, reading
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality


def npz(
  path: str | os.PathLike[str], modalities: Sequence[Modality], *, prefix: str = ""
) -> dict[str, np.ndarray]:
  """Reads a whole split from an NPZ file, which has an array `prefix + name` for each modality.

  Images and videos may be uint8, which is divided by 255. Pickled objects are not read.

  Returns:
    The model inputs, float32 or int32 [n, *shape].

  Raises:
    UserError: the file is damaged or needs pickle, or an array is missing or invalid.
  """
  inputs = {}
  for modality in modalities:
    key = prefix + modality.name
    inputs[modality.name] = checked(array(path, key), key, modality, path)
  lengths = {name: len(values) for name, values in inputs.items()}
  if len(set(lengths.values())) != 1 or 0 in lengths.values():
    raise UserError(f"The arrays of {path} must have the same examples, at least one: {lengths}.")
  return inputs


def write_npz(path: str | os.PathLike[str], **arrays: np.ndarray) -> None:
  """Writes an NPZ file atomically; if that raises OSError, no part of the file is left.

  It may lie in a bucket, see `storage.path`.
  """
  path = storage.path(path)
  if storage.in_bucket(path):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
    return
  # A name unique to this process, since several processes may write the same file.
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
  """Returns the arrays of an NPZ file, or None if it does not exist or cannot be read.

  It may lie in a bucket, see `storage.path`.
  """
  try:
    path = storage.path(path)
    source = io.BytesIO(path.read_bytes()) if storage.in_bucket(path) else path
    with np.load(source, allow_pickle=False) as file:  # A ZIP has a checksum of each array.
      return dict(file)
  except (*DAMAGE, KeyError):
    return None


def array(path: str | os.PathLike[str], key: str) -> np.ndarray:
  """Reads one array of an NPZ file unchanged; pickled objects are not read.

  Raises:
    UserError: the file does not exist, is damaged or needs pickle, or has no such array.
  """
  path = storage.expanded(path)
  with reading(path):
    if not zipfile.is_zipfile(path):
      raise ValueError("it does not exist, or is not an NPZ file")
    with np.load(path, allow_pickle=False) as file:
      if key in file:
        return file[key]
      raise UserError(f"The file {path} has no array {key!r}, only: {', '.join(file)}. Add it.")


def checked(
  array: np.ndarray, key: str, modality: Modality, path: str | os.PathLike[str]
) -> np.ndarray:
  """Checks an array of an NPZ file and returns it as a model input, float32 or int32 [n, *shape].

  Args:
    array: the array; for an image or a video it may be uint8, which is divided by 255.
    key: its name in the file, for the message.
    modality: the modality that it must be.
    path: the file, for the message.

  Raises:
    UserError: it has the wrong shape, type or range.
  """
  pixels, discrete = modality.kind in ("image", "video"), modality.num_classes > 0
  kind, dtype = ("iu", np.int32) if discrete else ("f", np.float32)
  low, high = modality.bounds
  values = array / np.float32(255) if pixels and array.dtype == np.uint8 else array
  if values.dtype.kind == "f":
    with np.errstate(over="ignore"):  # Numbers that are too large become infinite and are refused.
      values = values.astype(np.float32)
  fits = values.dtype.kind in kind and values.shape[1:] == modality.shape and values.ndim > 0
  if not fits or not (np.isfinite(values) & (values >= low) & (values <= high)).all():
    raise UserError(
      f"The array {key!r} of {path} is {array.dtype} of shape {array.shape}; a modality of kind "
      f"{modality.kind} must be {dtype.__name__} of shape [n, *{modality.shape}], finite numbers "
      f"from {low:g} to {high:g}. Convert it and save it again."
    )
  return values.astype(dtype)
