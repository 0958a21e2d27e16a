"""Finds a data set by its name: the module of that name beside this one.

Such a module has `MODALITIES`, the modalities that a model may use, in order, and
`load(split, data_dir, manual_dir)`, which returns a whole split in the model's view.
"""

import importlib
import importlib.util
import os
import pkgutil
import types

import numpy as np

from mmdiff_jax import data
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality


def _find(name: str) -> types.ModuleType | None:
  path = f"{data.__name__}.{name}"
  if importlib.util.find_spec(path) is None:
    return None
  module = importlib.import_module(path)
  return module if hasattr(module, "MODALITIES") else None


def _module(name: str) -> types.ModuleType:
  module = _find(name) if name.isidentifier() else None
  if module is None:
    beside = [info.name for info in pkgutil.iter_modules(data.__path__)]
    known = ", ".join(filter(_find, beside))
    raise UserError(f"There is no data set named {name!r}. The known ones are: {known}.")
  return module


def modalities(name: str) -> tuple[Modality, ...]:
  """The modalities of a data set, in order.

  Raises:
    UserError: there is no such data set.
  """
  return _module(name).MODALITIES


def load(
  name: str, split: str, data_dir: str | None = None, manual_dir: str | None = None
) -> dict[str, np.ndarray | Column]:
  """A whole split in the model's view, prepared on disk first where it is not there yet.

  Args:
    name: the data set.
    split: "train" or "test".
    data_dir: folder of prepared data sets; None is tfds's own, `~/tensorflow_datasets`.
    manual_dir: folder of files that you bring yourself, for sets that need such; None is tfds's
      own, `<data_dir>/downloads/manual`.

  Returns:
    One array a modality, or one that is made when its rows are read; the first axis is the example,
    and row i of each is the same example.

  Raises:
    UserError: there is no such data set or no such folder.
  """
  module = _module(name)
  if data_dir is not None and not os.path.isdir(data_dir):
    raise UserError(
      f"The folder for prepared data, {data_dir!r}, does not exist. Make it (mkdir -p), or leave "
      "data_dir out to use ~/tensorflow_datasets."
    )
  if manual_dir is not None and not os.path.isdir(manual_dir):
    raise UserError(f"The folder of your own files, manual_dir {manual_dir!r}, does not exist.")
  return module.load(split, data_dir, manual_dir)
