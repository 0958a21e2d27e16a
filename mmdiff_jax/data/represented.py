"""The data set `represented`: another data set, and what a frozen network makes of its examples.

The network's outputs are in an NPZ file, with the arrays `train` and `test`, float [n, size], whose
rows are in the order of the other data set's splits. `experiments.represent` writes such files.
"""

import os

import numpy as np

from mmdiff_jax import config_checks, storage
from mmdiff_jax.data import datasets, readers
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality, vector_picture

_LARGEST = 5.0  # Deviations.


def modalities(*, of: str, file: str | None, size: int) -> tuple[Modality, ...]:
  """Those of the other data set, and `representation`; arguments as `load`."""
  del file
  config_checks.check({"size": size}, {"size": config_checks.SIZE}, "data.")
  return *datasets.modalities(of), Modality("representation", "vector", (size,), vector_picture)


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  of: str,
  file: str | None,
  size: int,
) -> dict[str, np.ndarray | Column]:
  """A whole split of the other data set, in its order, with the representations.

  Args:
    split: "train" or "test".
    data_dir: folder of prepared data sets, for the other one.
    manual_dir: folder of files that you bring, for the other one.
    of: the other data set, of no options.
    file: the NPZ file.
    size: components of a representation.

  Returns:
    What the other data set has, and representation: float32 [n, size], standardised by the mean and
    the deviation of each component in training and cut off at -5 and 5, since a feature that is
    almost never on would be hundreds of deviations high; one that never varies there is 0.

  Raises:
    UserError: there is no such data set, or the file is not named, missing, damaged or of other
      data.
  """
  if not file:
    raise UserError(
      "config.data.file is not set: name the NPZ file of the representations. experiments.represent"
      " makes one."
    )
  path = os.fspath(storage.on_disk(file, "config.data.file"))
  rows = {name: _read(path, name, size) for name in {"train", split}}
  data = datasets.load(of, split, data_dir, manual_dir)
  number = len(next(iter(data.values())))
  if len(rows[split]) != number:
    raise UserError(
      f"The array {split!r} of {path} has {len(rows[split]):,} rows, but the data set {of!r} has"
      f" {number:,} examples in that split. Make the file of that data set, with"
      " experiments.represent."
    )
  mean, deviation = (f(rows["train"], axis=0, dtype=np.float64) for f in (np.mean, np.std))
  # Of equal values the deviation is 0 exactly: float32 values add up without error in float64.
  scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
  standard = np.clip((rows[split] - mean) * scale, -_LARGEST, _LARGEST)
  return data | {"representation": standard.astype(np.float32)}


def _read(path: str, split: str, size: int) -> np.ndarray:
  array = readers.array(path, split)
  if array.ndim == 2 and array.shape[1] != size:
    raise UserError(
      f"The array {split!r} of {path} is of shape {array.shape}, a representation of the wrong"
      f" size: config.data.size is {size}. Change that, or name the file of another network."
    )
  return readers.checked(array, split, Modality(split, "vector", (size,), vector_picture), path)
