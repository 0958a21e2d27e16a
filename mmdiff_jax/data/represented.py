"""The data set `represented`: another data set, and a frozen network's features of its examples.

The network's outputs are in an NPZ file, with the arrays `train` and `test`, float [n, size], whose
rows are in the order of the other data set's splits. `experiments.represent` writes such files.
"""

import os

import numpy as np

from mmdiff_jax import config_checks, storage
from mmdiff_jax.data import array_files, datasets
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality, vector_picture

_LARGEST = 5.0  # Standard deviations.


def modalities(*, of: str, file: str | None, size: int) -> tuple[Modality, ...]:
  """Returns the modalities of the other data set, and `representation`; arguments as `load`."""
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
  """Loads a split of the other data set, in its order, with the representations.

  Args:
    split: "train" or "test".
    data_dir: folder of prepared data sets, for the other one.
    manual_dir: folder of your own files, for the other one.
    of: the other data set, which must not need options.
    file: the NPZ file.
    size: components of a representation.

  Returns:
    The model inputs of the other data set, and representation: float32 [n, size], standardised by
    the mean and the standard deviation of each component in training and clipped to [-5, 5], since
    a feature that is almost never on would be hundreds of standard deviations high; a component
    that never varies in training is 0.

  Raises:
    UserError: there is no such data set, or the file is not named, missing, damaged or for other
      data.
  """
  if not file:
    raise UserError(
      "config.data.file is not set: name the NPZ file of the representations. experiments.represent"
      " writes one."
    )
  path = os.fspath(storage.on_disk(file, "config.data.file"))
  rows = {name: _read(path, name, size) for name in {"train", split}}
  data = datasets.load(of, split, data_dir, manual_dir)
  number = len(next(iter(data.values())))
  if len(rows[split]) != number:
    raise UserError(
      f"The array {split!r} of {path} has {len(rows[split]):,} rows, but the data set {of!r} has"
      f" {number:,} examples in that split. Make the file for that data set with"
      " experiments.represent."
    )
  mean, std = (f(rows["train"], axis=0, dtype=np.float64) for f in (np.mean, np.std))
  # The std of equal values is exactly 0: float32 values add up without error in float64.
  scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
  standard = np.clip((rows[split] - mean) * scale, -_LARGEST, _LARGEST)
  return data | {"representation": standard.astype(np.float32)}


def _read(path: str, split: str, size: int) -> np.ndarray:
  array = array_files.array(path, split)
  if array.ndim == 2 and array.shape[1] != size:
    raise UserError(
      f"The array {split!r} of {path} has shape {array.shape}, a representation of the wrong"
      f" size: config.data.size is {size}. Change that, or name the file of another network."
    )
  return array_files.checked(array, split, Modality(split, "vector", (size,), vector_picture), path)
