"""The config and training split that a workdir belongs to: `config.json` and `data.json`."""

from collections.abc import Mapping
import json
import os
from typing import Any
import zlib

from etils import epath
import jax
import ml_collections
import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints

# Fields that may differ between two runs in one workdir: they change what is reported or where it
# is computed, not the weights. The data, which may lie elsewhere on another machine, are compared
# by their contents.
_FREE_FIELDS = (
  "monitor.", "parallel.", "sampling.", "evaluation.", "data.data_dir", "data.manual_dir"
)  # fmt: skip
_COMPARED_ROWS = 64  # Rows of the training split that are compared: few, since reading may be slow.


def check_name(workdir: str | os.PathLike[str]) -> None:
  """Raises UserError if Orbax would read the path as a pattern and not find its checkpoints."""
  if invalid := set("[]*?\\") & set(os.path.abspath(storage.path(workdir))):
    raise UserError(
      f"The workdir {workdir} cannot have {' '.join(sorted(invalid))} in its path: checkpoints"
      " there cannot be read. Choose another --workdir."
    )


def check_config(workdir: str | os.PathLike[str], config: ml_collections.ConfigDict) -> None:
  """Checks that a config would train the weights of a workdir, if it has any; writes nothing.

  Args:
    workdir: the folder of the run.
    config: the config of the training.

  Raises:
    UserError: the workdir was made with another config (the message gives the differences), or
      by mmdiff_jax 0.1. Or as in `check_name`.
  """
  check_name(workdir)
  _check_version(workdir)
  config_path = storage.path(workdir) / "config.json"
  if config_path.exists():
    # Through JSON, so that tuples and lists compare as equal.
    old, new = _flat(_read_config(config_path)), _flat(json.loads(json.dumps(config.to_dict())))
    differing = [text for name, text in _differences(old, new) if not name.startswith(_FREE_FIELDS)]
    if differing:
      raise UserError(
        f"The workdir {workdir} was made with another config: {'; '.join(differing)}. Give the "
        "same fields to continue its training, or choose another --workdir."
      )


def open_workdir(
  workdir: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  data: Mapping[str, np.ndarray | Column],
) -> None:
  """Writes `config.json` and `data.json`, or checks that they would train the same weights.

  `data.json` keeps the number of examples, names, shapes and types of the data, the masks'
  checksums, and one number for each of 64 rows spread over the split, which differ if the data were
  replaced. A workdir without the file gets one.

  Args:
    workdir: the folder of the run.
    config: the config of the training.
    data: the training split: the modalities that are trained on, and their masks.

  Raises:
    UserError: as in `check_config`, or the workdir was made with other data; the message gives the
      differences.
  """
  check_config(workdir, config)
  config_path, data_path = (storage.path(workdir) / name for name in ("config.json", "data.json"))
  fingerprint = _fingerprint(data)
  if data_path.exists():
    recorded = _read_json(data_path, "Delete it if the data are the same")
    if differing := _data_differences(recorded, fingerprint):
      raise UserError(
        f"The workdir {workdir} was made with other training data: {'; '.join(differing)}. Give "
        "the same data to continue (--config.data), or choose another --workdir. To continue with "
        f"these data nevertheless, delete {data_path}."
      )
  config_path.parent.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    storage.write_atomically(config_path, json.dumps(config.to_dict(), indent=2))
    if not data_path.exists():
      storage.write_atomically(data_path, json.dumps(fingerprint, indent=1))


def _fingerprint(data: Mapping[str, np.ndarray | Column]) -> dict[str, dict[str, Any]]:
  """Returns numbers that identify a split: "facts", and "contents" of some rows, by name."""
  number = len(next(iter(data.values())))
  index = np.linspace(0, number - 1, min(number, _COMPARED_ROWS)).astype(int)
  facts: dict[str, Any] = {"number of examples": number}
  contents = {}
  for name, array in data.items():
    if name.endswith("_present"):
      facts[f"checksum of {name}"] = zlib.crc32(np.packbits(np.asarray(array)).tobytes())
      continue
    rows = array[index]
    facts[f"shape of {name}"], facts[f"type of {name}"] = list(rows.shape[1:]), str(rows.dtype)
    # Numbers, not checksums: another machine may round a spectrogram differently in the last bit.
    # The weights make the number depend on the order of the values.
    weights = np.linspace(1, 2, rows[0].size)
    contents[name] = [float(np.average(row.ravel(), weights=weights)) for row in rows]
  return {"facts": facts, "contents": contents}


def _data_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Describes the differences between two fingerprints."""
  if differing := _differences(old["facts"], new["facts"]):
    return [text for _, text in differing]
  return [
    f"{name} has other contents"
    for name, values in new["contents"].items()
    if not np.allclose(values, old["contents"][name], rtol=1e-5, equal_nan=True)
  ]


def load_config(workdir: str | os.PathLike[str]) -> ml_collections.ConfigDict:
  """Loads the config that a workdir was made with.

  Raises:
    UserError: the folder has no training run, or one of mmdiff_jax 0.1, or its `config.json`
      cannot be read or was changed in a field that the weights of a checkpoint depend on.
  """
  path = storage.path(workdir) / "config.json"
  if not path.exists():
    raise UserError(
      f"{workdir} has no training run: {path} does not exist. Train first: python -m "
      f"experiments.train --config=CONFIG --workdir={workdir}"
    )
  config = _read_config(path)
  _check_version(workdir)
  for file, item in checkpoints.metadata(workdir).items():
    differing = [
      text
      for name, text in _differences(_flat(item["config"]), _flat(config))
      # A user's module may have moved; the shapes of its networks are checked.
      if not f"{name}.".startswith(_FREE_FIELDS) and "pretrained" not in name.split(".")
    ]
    if differing:
      raise UserError(
        f"{path} no longer matches the checkpoint {file.parent.parent}: {'; '.join(differing)}."
        f" Undo the change; the config of the training is in {file}, under 'config'."
      )
  return ml_collections.ConfigDict(_tuples(config))


def _check_version(workdir: str | os.PathLike[str]) -> None:
  """Raises UserError if the checkpoints are from a version with other names of fields."""
  for file, item in checkpoints.metadata(workdir).items():
    if "version" not in item:
      raise UserError(
        f"The run in {workdir} was trained by mmdiff_jax 0.1 ({file} has no version). Config"
        " fields, stages and parameters have other names since 0.2 (CHANGELOG.md). Use it with 0.1,"
        " or train it again in another --workdir."
      )


def _read_config(path: epath.Path) -> dict[str, Any]:
  return _read_json(path, "Restore it from a checkpoint's meta item")


def _read_json(path: epath.Path, remedy: str) -> dict[str, Any]:
  try:
    tree = json.loads(path.read_text())
    if not isinstance(tree, dict):
      raise ValueError(f"it contains a {type(tree).__name__}, not an object with fields")
    return tree
  except ValueError as error:
    raise UserError(
      f"{path} cannot be read as JSON ({error}). {remedy}, or choose another --workdir."
    ) from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested dicts as one dict with dotted names, without fields that are None.

  So a run of a version that lacked a field can be resumed if the field is not set.
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}.")
    elif value is not None:
      flat[prefix + name] = value
  return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the names of values that differ, each with a description of the difference."""
  return [
    (name, f"{name} was {_display(old, name)}, now {_display(new, name)}")
    for name in sorted(old.keys() | new.keys())
    if _display(old, name) != _display(new, name)
  ]


def _display(flat: Mapping[str, Any], name: str) -> str:
  return json.dumps(flat[name]) if name in flat else "not there"


def _tuples(tree: Any) -> Any:
  """Converts lists to tuples: JSON only has lists, configs only have tuples."""
  if isinstance(tree, dict):
    return {name: _tuples(value) for name, value in tree.items()}
  return tuple(_tuples(value) for value in tree) if isinstance(tree, list) else tree
