"""Finds a data set by its name: the module of that name in this package.

Such a module has `MODALITIES`, the modalities that a model may use, in order, and
`load(split, data_dir, manual_dir)`, which returns a whole split as model inputs, and takes
`validation` if a part can be held out of training. If the modalities depend on options, which are
then further arguments of `load`, it has `modalities(**options)`. If the adherence of a
modality to others can be measured it has `ADHERENCE`, and if captions have a grammar `VALID`, both
{modality: function}.
"""

from collections.abc import Callable, Mapping
import importlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import types
from typing import Any

import numpy as np

from mmdiff_jax import config_checks, data, storage
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality

_PREPARED = "The folder for prepared data (data_dir, or TFDS_DATA_DIR)"


def prepared(data_dir: str | None) -> pathlib.Path:
  """Returns the folder of prepared data sets: `data_dir`, by default that of tfds.

  The default is the environment variable TFDS_DATA_DIR, or `~/tensorflow_datasets` if it is unset.
  """
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return pathlib.Path(storage.expanded(data_dir or default, _PREPARED))


def _find(name: str) -> types.ModuleType | None:
  path = f"{data.__name__}.{name}"
  if path == __name__ or importlib.util.find_spec(path) is None:
    return None
  module = importlib.import_module(path)
  return module if hasattr(module, "MODALITIES") or hasattr(module, "modalities") else None


def _module(name: str) -> types.ModuleType:
  module = _find(name) if name.isidentifier() else None
  if module is None:
    modules = [info.name for info in pkgutil.iter_modules(data.__path__)]
    names = ", ".join(filter(_find, modules))
    raise UserError(f"There is no data set named {name!r}. The data sets are: {names}.")
  return module


def _check_options(name: str, module: types.ModuleType, options: Mapping[str, Any]) -> None:
  try:
    inspect.signature(module.load).bind("train", None, None, **options)
  except TypeError as error:
    raise UserError(
      f"The data set {name!r} does not take these options (config.data): {error}."
    ) from error


def _validation(name: str, module: types.ModuleType, fraction: float | None) -> dict[str, float]:
  """Returns the argument `validation` of a module's `load`; none if nothing is held out."""
  if not fraction:
    return {}
  config_checks.check({"validation": fraction}, {"validation": config_checks.DECAY}, "data.")
  if "validation" not in inspect.signature(module.load).parameters:
    raise UserError(
      f"config.data.validation is {fraction:g}, but no part of the data set {name!r} can be held"
      " out of training. Leave it out."
    )
  return {"validation": fraction}


def modalities(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  validation: float | None = None,
  **options: Any,
) -> tuple[Modality, ...]:
  """Returns the modalities of a data set, in order; arguments as for `load`, without the split.

  Raises:
    UserError: there is no such data set, or it does not take these options.
  """
  del data_dir, manual_dir
  module = _module(name)
  _check_options(name, module, options)
  _validation(name, module, validation)
  return module.modalities(**options) if hasattr(module, "modalities") else module.MODALITIES


def adherence(
  main: str,
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  validation: float | None = None,
  **options: Any,
) -> Callable[..., dict[str, np.ndarray]] | None:
  """Returns a data set's measure of the adherence of generated examples to what was given.

  Args:
    main: the modality generated.
    name: the data set; this and all other arguments as for `load`.
    data_dir: not used.
    manual_dir: not used.
    validation: not used.
    **options: the options of the data set, if it has any.

  Returns:
    The function `(given, generated, predicted) -> {measure: float [n]}`: `given` is a dict of model
    inputs, `generated` one model input, and `predicted` the classes, int [n], that a classifier
    predicts for it. A measure is in [0, 1], NaN for examples in which what it measures is not
    given. None if the data set has no such function for that modality.

  Raises:
    UserError: there is no such data set, or it does not take these options.
  """
  del data_dir, manual_dir, validation
  module = _module(name)
  _check_options(name, module, options)
  return getattr(module, "ADHERENCE", {}).get(main)


def valid(
  main: str,
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  validation: float | None = None,
  **options: Any,
) -> Callable[[np.ndarray], np.ndarray] | None:
  """Returns a data set's check that a caption is a sentence of its grammar, letter for letter.

  Arguments and errors as for `adherence`.

  Returns:
    The function `tokens -> bool [n]` of captions as model inputs, int [n, length]. None if the data
    set has no grammar for that modality.
  """
  del data_dir, manual_dir, validation
  module = _module(name)
  _check_options(name, module, options)
  return getattr(module, "VALID", {}).get(main)


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  validation: float | None = None,
  **options: Any,
) -> dict[str, np.ndarray | Column]:
  """Loads a whole split as model inputs, which is prepared on disk first if necessary.

  Args:
    name: the data set.
    split: "train", "test", or "validation", which is held out of "train".
    data_dir: folder of prepared data sets; None is that of tfds, see `prepared`.
    manual_dir: folder of your own files, for sets that need them; None is that of tfds,
      `<data_dir>/downloads/manual`.
    validation: fraction of the training split's digit images, recordings, ... that is held out. No
      example of "train" has any of these, and no example of "validation" has any other. None or 0
      holds nothing out.
    **options: the options of the data set, if it has any.

  Returns:
    One array per modality, or a column that is computed when its rows are read; the first axis is
    the example, and row i of each is the same example. If examples may lack a modality NAME there
    is a `NAME_present`, bool [n]. If several examples may be made from one digit image, recording,
    ... there may be a `source_NAME`, its number, int [n].

  Raises:
    UserError: there is no such data set, option or folder, the folder lies in a bucket, or nothing
      is held out for "validation".
  """
  module = _module(name)
  _check_options(name, module, options)
  data_dir, manual_dir = (
    path if path is None else os.fspath(storage.on_disk(path, description))
    for path, description in (
      (data_dir, _PREPARED),
      (manual_dir, "The folder of your own files (manual_dir)"),
    )
  )
  if default := os.environ.get("TFDS_DATA_DIR"):
    storage.on_disk(default, _PREPARED)
  held_out = _validation(name, module, validation)
  if split == "validation" and not held_out:
    raise UserError(
      f"The data set {name!r} has no split 'validation' unless config.data.validation sets the"
      " fraction of the training split that is held out for it, such as 0.1."
    )
  if data_dir is not None and not os.path.isdir(data_dir):
    raise UserError(
      f"The folder for prepared data, {data_dir!r}, does not exist. Make it (mkdir -p), or leave "
      "data_dir out to use ~/tensorflow_datasets."
    )
  if manual_dir is not None and not os.path.isdir(manual_dir):
    raise UserError(f"The folder of your own files, manual_dir {manual_dir!r}, does not exist.")
  print(f"Reading the data set {name} ({split})", flush=True)
  return module.load(split, data_dir, manual_dir, **held_out, **options)
