"""A cache on disk of arrays that take seconds to compute.

Decoded records, spectrograms and drawn pages are in `~/.cache/mmdiff_jax/data`, one file per name.
A file is used as long as everything that determines its arrays is unchanged: the inputs, the code
of `mmdiff_jax.data` and the versions of the packages that it calls. Otherwise, or if it is damaged,
it is replaced. The folder may be deleted at any time.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
from importlib import metadata
import logging
import pathlib
from typing import Any

import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.data import array_files

_PACKAGES = ("numpy", "scipy", "pillow", "tensorflow-datasets", "array_record", "tensorflow-cpu")

_LOG = logging.getLogger(__name__)  # Silent unless it is enabled.


def arrays(
  name: str, inputs: Sequence[Any], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Returns the arrays of `make`, from disk if they were computed from the same inputs before.

  If nothing can be written they are computed each time. Processes that compute the same arrays at
  once each write a complete file, of which the last one stays.

  Args:
    name: the name of the file, which holds the arrays of the latest inputs.
    inputs: all that the arrays depend on beyond the code: arrays, and values that `repr` describes.
    make: computes the arrays.

  Returns:
    {name: array}, bit for bit the result of `make`.
  """
  path = storage.cache_dir() / "data" / f"{name}.npz"
  stamp = _stamp(inputs)
  stored = array_files.kept_npz(path) or {}
  # The stamp includes the names, since a damaged ZIP file may lack some of its members.
  if str(stored.pop("stamp", "")) == " ".join([stamp, *stored]):
    return stored
  fresh = dict(make())
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    array_files.write_npz(path, stamp=np.array(" ".join([stamp, *fresh])), **fresh)
  except OSError as error:
    _LOG.info("%s cannot be kept and is computed again at each start: %s", path, error)
  return fresh


def _stamp(inputs: Sequence[Any]) -> str:
  digest = hashlib.blake2b(_code().encode(), digest_size=16)
  for value in inputs:
    if isinstance(value, np.ndarray):
      digest.update(f"{value.dtype.str} {value.shape} ".encode())
      digest.update(np.ascontiguousarray(value))
    else:
      digest.update(f"{value!r} ".encode())
  return digest.hexdigest()


@functools.cache
def _code() -> str:
  """Returns a digest of the code of `mmdiff_jax.data` and of the versions of what it calls."""
  digest = hashlib.blake2b(digest_size=16)
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    digest.update(path.read_bytes())
  for package in _PACKAGES:
    try:
      digest.update(f"{package} {metadata.version(package)} ".encode())
    except metadata.PackageNotFoundError:
      digest.update(f"no {package} ".encode())
  return digest.hexdigest()
