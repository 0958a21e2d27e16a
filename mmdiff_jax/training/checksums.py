"""Checksums of checkpoints: Orbax restores files with flipped bits silently.

The SHA-256 of every file of a step is kept beside its folder, in `<step>.sha256.json`, which is
written last and atomically: only then is a checkpoint complete.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib

from etils import epath

from mmdiff_jax import storage
from mmdiff_jax.errors import UserError

_PART = 2**20  # Bytes of a file that are read at once.


def path_for(directory: epath.Path) -> epath.Path:
  """Returns the path of the checksums of a checkpoint."""
  return directory.parent / f"{directory.name}.sha256.json"


def marker_path(directory: epath.Path) -> epath.Path:
  """Returns the path of a file that marks a save in progress, until the checksums replace it.

  `write_atomically` replaces it. It distinguishes an interrupted first save from a copy that has
  lost its checksums.
  """
  path = path_for(directory)
  return path.with_name(path.name + ".tmp")


def write(directory: epath.Path) -> None:
  """Writes the checksums of a complete step."""
  sums = {name: _sha256(directory / name) for name in sorted(_files(directory))}
  storage.write_atomically(path_for(directory), _text(sums))
  marker_path(directory).unlink(missing_ok=True)  # In a bucket nothing has replaced it.


def verify(directory: str | os.PathLike[str]) -> None:
  """Checks every file of a checkpoint against its checksum.

  Raises:
    UserError: a file is missing, unexpected or altered, or the checksums cannot be read.
  """
  directory = storage.path(directory)
  problem = fault(directory)
  if problem:
    raise UserError(
      f"The checkpoint {directory} is damaged or was not written to the end: {problem}. Delete "
      "that folder and start again with the same command: training continues from the checkpoint "
      f"before it in {directory.parent}, or from the start of the stage if there is none."
    )


def fault(directory: epath.Path) -> str | None:
  """Describes what is wrong with a checkpoint, or returns None."""
  path = path_for(directory)
  if not path.exists():
    return f"its checksums {path} are missing"
  try:
    text = path.read_text()
    expected = json.loads(text)
  except ValueError:
    return f"its checksums {path} cannot be read"
  if text != _text(expected):
    return f"its checksums {path} have changed since they were written"
  for name in sorted(_files(directory) ^ set(expected)):
    return f"{directory / name} is " + ("missing" if name in expected else "not part of it")
  for name, digest in expected.items():
    if _sha256(directory / name) != digest:
      return f"{directory / name} has changed since it was written"
  return None


def _files(directory: epath.Path) -> set[str]:
  """Returns the names of all files of a checkpoint, relative to its folder."""
  if not storage.in_bucket(directory):
    paths = pathlib.Path(directory).rglob("*")
    return {str(path.relative_to(directory)) for path in paths if path.is_file()}
  return {
    str((folder / name).relative_to(directory))
    for folder, _, names in directory.walk()
    for name in names
  }


def _text(sums: Mapping[str, str]) -> str:
  return json.dumps(sums, indent=1)


def _sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while part := file.read(_PART):
      digest.update(part)
  return digest.hexdigest()
