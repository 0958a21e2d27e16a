"""Checksums of checkpoints: Orbax restores a flipped bit silently.

The SHA-256 of every file of a step is kept beside its folder, in `<step>.sha256.json`, which is
written atomically when all else is: a checkpoint counts from then on.
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


def path_of(directory: epath.Path) -> epath.Path:
  """Where the checksums of a checkpoint are."""
  return directory.parent / f"{directory.name}.sha256.json"


def begun_path(directory: epath.Path) -> epath.Path:
  """There from the start of a save until its checksums, by `write_atomically`, take its place.

  So a first save that was cut off is told from a copy that has lost its checksums.
  """
  seal = path_of(directory)
  return seal.with_name(seal.name + ".tmp")


def write(directory: epath.Path) -> None:
  """Writes the checksums of a complete step."""
  sums = {name: _sha256(directory / name) for name in sorted(_files(directory))}
  storage.write_atomically(path_of(directory), _text(sums))
  begun_path(directory).unlink(missing_ok=True)  # In a bucket nothing has taken its place.


def verify(directory: str | os.PathLike[str]) -> None:
  """Checks every file of a checkpoint against its checksum.

  Raises:
    UserError: a file is missing, too many or altered, or the checksums themselves are unreadable.
  """
  directory = storage.path(directory)
  found = fault(directory)
  if found:
    raise UserError(
      f"The checkpoint {directory} is damaged or was not written to the end: {found}. Delete that "
      "folder and start again with the same command: training goes on from the checkpoint before "
      f"it in {directory.parent}, or from the start of the stage when there is none."
    )


def fault(directory: epath.Path) -> str | None:
  """What is wrong with a checkpoint, in a sentence, or None."""
  seal = path_of(directory)
  if not seal.exists():
    return f"its checksums {seal} are missing"
  try:
    text = seal.read_text()
    expected = json.loads(text)
  except ValueError:
    return f"its checksums {seal} cannot be read"
  if text != _text(expected):
    return f"its checksums {seal} have changed since they were written"
  for name in sorted(_files(directory) ^ set(expected)):
    return f"{directory / name} is " + ("missing" if name in expected else "not part of it")
  for name, digest in expected.items():
    if _sha256(directory / name) != digest:
      return f"{directory / name} has changed since it was written"
  return None


def _files(directory: epath.Path) -> set[str]:
  """The names of all files of a checkpoint, relative to its folder."""
  if not storage.in_bucket(directory):
    found = pathlib.Path(directory).rglob("*")
    return {str(path.relative_to(directory)) for path in found if path.is_file()}
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
