"""Checkpoints that say when they are damaged.

A stage's checkpoints lie in `workdir/checkpoints/<stage>/<step>/`, written by Orbax:

  model     the trained entries, their running mean, and the stage's measured constants
  training  the step and the optimiser's moments
  data      where the input pipeline stands
  meta      the config, the stage's name and the step

Orbax restores a flipped bit silently, so the SHA-256 of every file of a step is kept beside it, in
`<step>.sha256.json`, written (atomically) last of all and checked before the step is read. A step
without its checksums is a save that was cut off. What is damaged is put into `workdir/damaged` when
training goes on, from the step before.
"""

from collections.abc import Iterable, Mapping
import hashlib
import json
import os
import pathlib
import shutil
import time
from typing import Any
import zlib

import grain
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Framework, Params
from mmdiff_jax.training.state import TrainState

# Fields that two runs in one workdir need not share: they change what is shown or where it is
# computed, not the weights. The data, which may lie elsewhere on another machine, are compared
# themselves.
_FREE_FIELDS = (
  "monitor.", "parallel.", "sampling.", "evaluation.", "data.data_dir", "data.manual_dir"
)  # fmt: skip
_KEEP = 2
_COMPARED_ROWS = 64  # Rows of the training split that are compared: few, since reading may be slow.


class SaveError(Exception):
  """A checkpoint could not be written."""


def manager(workdir: str | os.PathLike[str], stage: str) -> ocp.CheckpointManager:
  """Orbax's manager of one stage's checkpoints. Use it in a `with`."""
  return ocp.CheckpointManager(
    stage_dir(workdir, stage),
    # Not in the background, and with old steps deleted by `save` at the very end, so that a step's
    # checksums follow it at once.
    options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
    item_handlers={
      "model": ocp.StandardCheckpointHandler(),
      "training": ocp.StandardCheckpointHandler(),
      "data": grain.checkpoint.CheckpointHandler(),
      "meta": ocp.JsonCheckpointHandler(),
    },
  )


def stage_dir(workdir: str | os.PathLike[str], stage: str) -> pathlib.Path:
  """The folder of one stage's checkpoints."""
  return pathlib.Path(workdir).absolute() / "checkpoints" / stage


def latest_step(workdir: str | os.PathLike[str], stage: str) -> int | None:
  """The last complete step of a stage, or None when it has no checkpoint.

  Raises:
    UserError: there are checkpoints, but none has its checksums.
  """
  steps = _steps(workdir, stage)
  complete = [step for step in steps if _seal_path(step).exists()]
  if steps and not complete:
    verify(steps[-1])
  return int(complete[-1].name) if complete else None


def discard_unfinished(workdir: str | os.PathLike[str], stage: str) -> list[int]:
  """Deletes what saves left behind that were cut off; returns their steps.

  For the process that trains only: a save that is still going on looks the same.
  """
  unfinished = [step for step in _steps(workdir, stage) if not _seal_path(step).exists()]
  multihost_utils.sync_global_devices(f"unfinished checkpoints of {stage}")
  if jax.process_index() == 0:
    for path in [*unfinished, *stage_dir(workdir, stage).glob("*.orbax-checkpoint-tmp")]:
      shutil.rmtree(path)
  return [int(step.name) for step in unfinished]


def set_damaged_aside(workdir: str | os.PathLike[str], stage: str) -> list[str]:
  """Moves the last checkpoints of a stage, as far as they are damaged, into `workdir/damaged`.

  For the processes that train only, all of them. Steps without checksums stay where they are.

  Returns:
    A sentence on each, in the first process.
  """
  said = []
  if jax.process_index() == 0:
    for step in reversed([step for step in _steps(workdir, stage) if _seal_path(step).exists()]):
      fault = _fault(step)
      if not fault:
        break
      aside = pathlib.Path(workdir) / "damaged" / f"{stage}-{step.name}-{time.time_ns()}"
      aside.mkdir(parents=True)
      # The checksums first: a step that has lost them is dropped.
      for path in (_seal_path(step), step):
        path.rename(aside / path.name)
      said.append(f"the checkpoint of step {int(step.name):,} is damaged ({fault}); now in {aside}")
  multihost_utils.sync_global_devices(f"damaged checkpoints of {stage}")
  return said


def _steps(workdir: str | os.PathLike[str], stage: str) -> list[pathlib.Path]:
  """The folders of a stage's steps, in order, complete or not."""
  found = stage_dir(workdir, stage).glob("*")
  return sorted((path for path in found if path.name.isdecimal()), key=lambda path: int(path.name))


def save(
  ckpt: ocp.CheckpointManager,
  state: TrainState,
  constants: Params,
  iterator: Any,
  meta: Mapping[str, Any],
) -> None:
  """Writes the checkpoint of step `state.step`, then its checksums; keeps the last two steps.

  Raises:
    SaveError: it could not be written, such as on a full disk. What was written of it is gone, and
      those before it are as they were.
  """
  step, directory = int(state.step), pathlib.Path(ckpt.directory)
  # Threads of a save that failed may have written on after it was cleared away.
  _clear(directory.glob("*.orbax-checkpoint-tmp"))
  try:
    _write(ckpt, step, state, constants, iterator, meta)
  except Exception as error:  # Orbax and TensorStore raise ValueError, among others.
    _clear([directory / str(step), *directory.glob("*.orbax-checkpoint-tmp")])
    ckpt.reload()
    raise SaveError(f"{directory / str(step)} could not be written: {error}") from error


def _clear(folders: Iterable[pathlib.Path]) -> None:
  if jax.process_index() == 0:
    for path in folders:
      shutil.rmtree(path, ignore_errors=True)


def _write(ckpt, step, state, constants, iterator, meta) -> None:
  ckpt.save(
    step,
    args=ocp.args.Composite(
      model=ocp.args.StandardSave(
        {"params": state.params, "ema": state.ema, "constants": constants}
      ),
      training=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
      data=grain.checkpoint.CheckpointSave(iterator),
      meta=ocp.args.JsonSave(dict(meta)),
    ),
  )
  ckpt.wait_until_finished()
  directory = pathlib.Path(ckpt.directory)
  if jax.process_index() == 0:
    _seal(directory / str(step))
  multihost_utils.sync_global_devices(f"checksums of {directory} {step}")
  for old in sorted(ckpt.all_steps())[:-_KEEP]:
    ckpt.delete(old)
    _seal_path(directory / str(old)).unlink(missing_ok=True)


def restore(
  ckpt: ocp.CheckpointManager, step: int, like: TrainState, sharding: Any, iterator: Any
) -> tuple[TrainState, Params]:
  """Reads a checkpoint back.

  Args:
    ckpt: from `manager`.
    step: which one.
    like: shapes of a state of the same structure, with the shardings that the arrays shall have,
      whatever devices and layout they were saved from.
    sharding: that of the constants.
    iterator: the input pipeline; it is set to where it stood.

  Returns:
    The state and the stage's constants.

  Raises:
    UserError: the checkpoint is damaged, is another stage's, or was made with networks of other
      shapes.
  """
  verify(pathlib.Path(ckpt.directory) / str(step))
  _check_stage(ckpt, step)
  model = _targets(ckpt.item_metadata(step)["model"], sharding)
  if _shapes(like.params) != _shapes(model["params"]):
    raise UserError(
      f"The checkpoint {ckpt.directory}/{step} was made by networks of other shapes than those of "
      "this program. Use the version of the program that wrote it, or another --workdir."
    )
  restored = ckpt.restore(
    step,
    args=ocp.args.Composite(
      model=ocp.args.StandardRestore(
        {"params": like.params, "ema": like.ema, "constants": model["constants"]}
      ),
      training=ocp.args.StandardRestore({"step": like.step, "opt_state": like.opt_state}),
    ),
  )
  # Grain writes a file for each process and reads that of its own number only. All say the same,
  # and there may be fewer or more processes now.
  position = next((ckpt.directory / str(step) / "data").glob("process_*.json"))
  iterator.set_state(json.loads(position.read_text()))
  state = TrainState(
    step=restored["training"]["step"],
    params=restored["model"]["params"],
    ema=restored["model"]["ema"],
    opt_state=restored["training"]["opt_state"],
  )
  return state, restored["model"]["constants"]


def load_stage(
  workdir: str | os.PathLike[str], stage: str, *, ema: bool = True, sharding: Any = None
) -> Params:
  """The entries that one stage trained (or their running mean) and measured, at its last step.

  Raises:
    UserError: there is no checkpoint yet, or it is damaged or another stage's.
  """
  step = latest_step(workdir, stage)
  if step is None:
    raise UserError(
      f"Stage {stage!r} has not been trained in {workdir}: there is no checkpoint in "
      f"{stage_dir(workdir, stage)}. Train it first: python -m experiments.train "
      f"--config=CONFIG --workdir={workdir}"
    )
  verify(stage_dir(workdir, stage) / str(step))
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with manager(workdir, stage) as ckpt:
    _check_stage(ckpt, step)
    target = _targets(ckpt.item_metadata(step)["model"], sharding)
    model = ckpt.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(target)))[
      "model"
    ]
  return {**model["ema" if ema else "params"], **model["constants"]}


def _check_stage(ckpt: ocp.CheckpointManager, step: int) -> None:
  """Checks that a checkpoint lies where it was written, not in a copy to another stage's folder."""
  meta = ckpt.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
  stage = ckpt.directory.name
  if meta["stage"] != stage:
    raise UserError(
      f"The checkpoint {ckpt.directory}/{step} is not of the stage {stage!r} but of"
      f" {meta['stage']!r}. Put that stage's own checkpoints there, or delete the folder"
      f" {ckpt.directory} to train {stage!r} anew."
    )


def load_params(
  framework: Framework, workdir: str | os.PathLike[str], *, ema: bool = True
) -> Params:
  """All parameters of a framework from a workdir, for sampling and evaluation.

  Args:
    framework: whose stages to read.
    workdir: the folder given to training.
    ema: whether the last stage gives the running means of its parameters, or else the parameters
      themselves. Those before it always give running means: it was trained upon these, and their
      raw parameters would be other networks than it has seen.

  Raises:
    UserError: a stage has no checkpoint yet, or a damaged one, or another stage's.
  """
  params: Params = {}
  for stage in framework.stages:
    last = stage is framework.stages[-1]
    params |= load_stage(workdir, stage.name, ema=ema or not last)
  return params


def verify(directory: pathlib.Path) -> None:
  """Checks every file of a checkpoint against its checksum.

  Raises:
    UserError: a file is missing, too many or altered, or the checksums themselves are unreadable.
  """
  fault = _fault(directory)
  if fault:
    raise UserError(
      f"The checkpoint {directory} is damaged or was not written to the end: {fault}. Delete that "
      "folder and start again with the same command: training goes on from the checkpoint before "
      f"it in {directory.parent}, or from the start of the stage when there is none."
    )


def _fault(directory: pathlib.Path) -> str | None:
  """What is wrong with a checkpoint, or None."""
  seal = _seal_path(directory)
  if not seal.exists():
    return f"its checksums {seal} are missing"
  try:
    expected = json.loads(seal.read_text())
  except ValueError:
    return f"its checksums {seal} cannot be read"
  found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
  for name in sorted(found ^ set(expected)):
    return f"{directory / name} is " + ("missing" if name in expected else "not part of it")
  for name, digest in expected.items():
    if _sha256(directory / name) != digest:
      return f"{directory / name} has changed since it was written"
  return None


def _seal(directory: pathlib.Path) -> None:
  """Writes the checksums of a complete step."""
  files = sorted(path for path in directory.rglob("*") if path.is_file())
  write_atomically(
    _seal_path(directory),
    json.dumps({str(path.relative_to(directory)): _sha256(path) for path in files}, indent=1),
  )


def _seal_path(directory: pathlib.Path) -> pathlib.Path:
  return directory.parent / f"{directory.name}.sha256.json"


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a reader sees the old text or the new, never a part."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def claim_workdir(
  workdir: str | os.PathLike[str],
  config: ml_collections.ConfigDict,
  data: Mapping[str, np.ndarray | Column],
) -> None:
  """Writes `config.json` and `data.json`, or checks that those there would train the same weights.

  Of the data, `data.json` keeps the number of examples, names, shapes and types, the masks'
  checksums, and one number each of 64 rows spread over the split; other data in the same place
  have others. A workdir without it, of an older version, gets one.

  Args:
    workdir: the folder of the run.
    config: how it is trained.
    data: the training split: the modalities that are trained on, and their masks.

  Raises:
    UserError: the workdir was made with another config or other data; says what differs.
  """
  config_path, data_path = (pathlib.Path(workdir) / name for name in ("config.json", "data.json"))
  # Through JSON, so that tuples and lists compare as equal.
  text = json.dumps(config.to_dict(), indent=2)
  if config_path.exists():
    old, new = _flat(_read_config(config_path)), _flat(json.loads(text))
    differing = [
      words for name, words in _differences(old, new) if not name.startswith(_FREE_FIELDS)
    ]
    if differing:
      raise UserError(
        f"The workdir {workdir} was made with another config: {'; '.join(differing)}. Give the "
        "same fields to go on with it, or choose another --workdir."
      )
  fingerprint = _fingerprint(data)
  if data_path.exists():
    claimed = _read_json(data_path, "Delete it if the data are the same")
    if differing := _other_data(claimed, fingerprint):
      raise UserError(
        f"The workdir {workdir} was made with other training data: {'; '.join(differing)}. Give "
        "the same data to go on with it (--config.data), or choose another --workdir. To go on "
        f"with these data nevertheless, delete {data_path}."
      )
  config_path.parent.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    write_atomically(config_path, text)
    if not data_path.exists():
      write_atomically(data_path, json.dumps(fingerprint, indent=1))


def _fingerprint(data: Mapping[str, np.ndarray | Column]) -> dict[str, dict[str, Any]]:
  """What tells a split from another one: "facts", and of some rows "contents", by name."""
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
    # Numbers, not checksums: another machine may round a spectrogram otherwise in the last bit.
    # The weights tell an order of values from another one.
    weights = np.linspace(1, 2, rows[0].size)
    contents[name] = [float(np.average(row.ravel(), weights=weights)) for row in rows]
  return {"facts": facts, "contents": contents}


def _other_data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """What differs between two fingerprints."""
  if differing := _differences(old["facts"], new["facts"]):
    return [words for _, words in differing]
  return [
    f"{name} has other contents"
    for name, values in new["contents"].items()
    if not np.allclose(values, old["contents"][name], rtol=1e-5, equal_nan=True)
  ]


def load_config(workdir: str | os.PathLike[str]) -> ml_collections.ConfigDict:
  """The config that a workdir was made with.

  Raises:
    UserError: the folder holds no training run.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(
      f"{workdir} holds no training run: there is no {path}. Train first: python -m "
      f"experiments.train --config=CONFIG --workdir={workdir}"
    )
  return ml_collections.ConfigDict(_tuples(_read_config(path)))


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  return _read_json(path, "Restore it from a checkpoint's meta item")


def _read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(
      f"{path} cannot be read as JSON ({error}). {remedy}, or choose another --workdir."
    ) from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts as one dict with dotted names, without what is not set.

  So a run of a version that did not have a field yet goes on where the field is not set.
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}.")
    elif value is not None:
      flat[prefix + name] = value
  return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
  """The names of values that differ, each with words that say how."""
  return [
    (name, f"{name} was {_shown(old, name)}, now {_shown(new, name)}")
    for name in sorted(old.keys() | new.keys())
    if _shown(old, name) != _shown(new, name)
  ]


def _shown(flat: Mapping[str, Any], name: str) -> str:
  return json.dumps(flat[name]) if name in flat else "not there"


def _tuples(tree: Any) -> Any:
  """JSON has lists only; configs have tuples only."""
  if isinstance(tree, dict):
    return {name: _tuples(value) for name, value in tree.items()}
  return tuple(_tuples(value) for value in tree) if isinstance(tree, list) else tree


def _targets(metadata: Any, sharding: Any) -> Any:
  """Restore targets from what a checkpoint says of itself."""
  tree = metadata.tree if hasattr(metadata, "tree") else metadata
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _shapes(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path): (tuple(x.shape), str(x.dtype))
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
