"""Checkpoints that are written while training continues, and that detect damage by checksums.

A stage's checkpoints lie in `workdir/checkpoints/<stage>/<step>/`, written by Orbax:

  model     the trained entries, their EMA, and the stage's measured constants
  training  the step and the optimiser's moments
  data      the position of the input pipeline
  meta      the config, the package's version, the stage's name, the step and its metrics

The checksums of a step lie beside its folder; they are written last and checked before the step is
read. A step without checksums is an interrupted save. When training resumes, damaged steps are
moved to `workdir/damaged`, and training continues from the step before.
"""

from collections.abc import Iterable, Mapping
from concurrent import futures
import contextlib
import json
import os
import shutil
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from mmdiff_jax import storage
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Framework, Params
from mmdiff_jax.training import checksums
from mmdiff_jax.training.state import TrainState


class SaveError(Exception):
  """A checkpoint could not be written.

  Attributes:
    step: the step of that checkpoint.
  """

  def __init__(self, step: int, message: str):
    super().__init__(message)
    self.step = step


def stage_dir(workdir: str | os.PathLike[str], stage: str) -> epath.Path:
  """Returns the folder of a stage's checkpoints."""
  workdir = storage.path(workdir)
  if not storage.in_bucket(workdir):
    workdir = os.getcwd() / workdir  # Orbax needs an absolute path.
  return workdir / "checkpoints" / stage


def latest_step(workdir: str | os.PathLike[str], stage: str) -> int | None:
  """Returns the last complete step of a stage, or None if it has no checkpoint.

  Raises:
    UserError: there are checkpoints, but none has checksums, and their saves were not interrupted.
  """
  steps = _steps(workdir, stage)
  complete = [step for step in steps if checksums.path_for(step).exists()]
  lost = [
    step for step in steps if step not in complete and not checksums.marker_path(step).exists()
  ]
  if lost and not complete:
    checksums.verify(lost[-1])
  return int(complete[-1].name) if complete else None


def best_step(workdir: str | os.PathLike[str], stage: str, metric: str) -> int | None:
  """Returns the complete step of a stage with the lowest value of a metric, or None."""
  values = {}
  for step in _steps(workdir, stage):
    # Skips checkpoints that are damaged, which loading them reports, or of an older version.
    with contextlib.suppress(OSError, ValueError, KeyError):
      if checksums.path_for(step).exists():
        values[int(step.name)] = _read_json(step / "meta")["metrics"][metric]
  return min(values, key=values.get, default=None)


def metadata(workdir: str | os.PathLike[str]) -> dict[epath.Path, dict[str, Any]]:
  """Reads the `meta` item of each stage's last checkpoint.

  Returns:
    The items, by the path of their file. A damaged checkpoint is left out; loading it raises.
  """
  loaded = {}
  for folder in _ending(stage_dir(workdir, ""), ""):
    with contextlib.suppress(OSError, ValueError, KeyError, UserError):
      meta = folder / str(latest_step(workdir, folder.name)) / "meta"
      loaded[meta / "metadata"] = _read_json(meta)
  return loaded


def discard_unfinished(workdir: str | os.PathLike[str], stage: str) -> list[int]:
  """Deletes the remains of interrupted saves and returns their steps.

  Only for the process that trains: a save in progress looks the same.
  """
  directory = stage_dir(workdir, stage)
  unfinished = [step for step in _steps(workdir, stage) if not checksums.path_for(step).exists()]
  multihost_utils.sync_global_devices(f"unfinished checkpoints of {stage}")
  _clear([*unfinished, *_ending(directory, ".orbax-checkpoint-tmp", ".json.tmp")])
  return [int(step.name) for step in unfinished]


def set_damaged_aside(workdir: str | os.PathLike[str], stage: str) -> list[str]:
  """Moves damaged checkpoints at the end of a stage into `workdir/damaged`.

  Only for the processes that train, and all of them must call it. Steps without checksums are not
  moved.

  Returns:
    A sentence about each, in the first process.
  """
  messages = []
  if jax.process_index() == 0:
    for step in reversed(
      [step for step in _steps(workdir, stage) if checksums.path_for(step).exists()]
    ):
      fault = checksums.fault(step)
      if not fault:
        break
      aside = storage.path(workdir) / "damaged" / f"{stage}-{step.name}-{time.time_ns()}"
      aside.mkdir(parents=True)
      # The checksums go first: a step without them is dropped.
      for path in (checksums.path_for(step), step):
        path.rename(aside / path.name)
      messages.append(
        f"the checkpoint of step {int(step.name):,} is damaged ({fault}) and now lies in {aside}"
      )
  multihost_utils.sync_global_devices(f"damaged checkpoints of {stage}")
  return messages


def _steps(workdir: str | os.PathLike[str], stage: str) -> list[epath.Path]:
  """Returns the folders of a stage's steps, in order, complete or not."""
  paths = (path for path in _ending(stage_dir(workdir, stage), "") if path.name.isdecimal())
  return sorted(paths, key=lambda path: int(path.name))


def _ending(directory: epath.Path, *ends: str) -> list[epath.Path]:
  """Returns the paths in a folder, which may not exist, whose names have one of these endings.

  Does not use `glob`, which would read brackets in the folder's name as a pattern.
  """
  paths = directory.iterdir() if directory.is_dir() else ()
  return [path for path in paths if path.name.endswith(ends)]


class Saver:
  """Writes the checkpoints of one stage, one at a time, while training continues.

  A context manager. On exit it waits for a save in progress, so that a run that is stopped by an
  error keeps that checkpoint.
  """

  def __init__(self, workdir: str | os.PathLike[str], stage: str, *, keep: int, best: str = ""):
    """Keeps the last `keep` checkpoints, and the one with the lowest metric `best`."""
    self._workdir, self._stage, self._keep, self._best = workdir, stage, keep, best
    self._ckpt = _checkpointer()
    self._thread = futures.ThreadPoolExecutor(1)
    # The step that is being written, and the future that ends when its checksums are written.
    self._pending: tuple[int, futures.Future] | None = None

  def __enter__(self) -> "Saver":
    return self

  def __exit__(self, *_: object) -> None:
    self.wait()
    self._thread.shutdown()
    self._ckpt.close()

  def save(
    self, state: TrainState, constants: Params, iterator: Any, meta: Mapping[str, Any]
  ) -> None:
    """Starts an asynchronous save of the current state, as the checkpoint of step `state.step`.

    The state may be overwritten in place as soon as this returns: Orbax has copied it to the host.
    On a CPU that copy shares the state's memory, and XLA, which tracks that it is being read, does
    not reuse it but writes the results of the next step elsewhere.

    Call `finish` before the next save. It also raises the errors of this one.
    """
    step = int(state.step)
    path = stage_dir(self._workdir, self._stage) / str(step)
    # Threads of a failed save may have continued to write after its files were deleted.
    _clear(_ending(path.parent, ".orbax-checkpoint-tmp"))
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        checksums.marker_path(path).touch()
      self._ckpt.save(
        path,
        args=ocp.args.Composite(
          model=ocp.args.StandardSave(
            {"params": state.params, "ema": state.ema, "constants": constants}
          ),
          training=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
          data=ocp.args.JsonSave(iterator.get_state()),
          meta=ocp.args.JsonSave(dict(meta)),
        ),
      )
    except Exception as error:  # Orbax and TensorStore raise ValueError, among others.
      result = futures.Future()
      result.set_exception(error)
    else:
      result = self._thread.submit(self._write_checksums, path)
    self._pending = step, result

  def _write_checksums(self, path: epath.Path) -> None:
    self._ckpt.wait_until_finished()
    if jax.process_index() == 0:
      checksums.write(path)

  def wait(self) -> None:
    """Waits for the save in progress; `finish` raises its errors."""
    if self._pending:
      futures.wait([self._pending[1]])

  def finish(self, *, wait: bool = True) -> None:
    """Completes the save in progress and deletes the older checkpoints that are not kept.

    If several processes train, all must call it at the same steps.

    Args:
      wait: whether to wait for a save that is still being written; if not, a later call completes
        it.

    Raises:
      SaveError: the checkpoint could not be written, for example because the disk is full. Its
        files have been deleted, and earlier checkpoints are unchanged.
    """
    if not self._pending or not (wait or _everywhere(self._pending[1].done())):
      return
    step, result = self._pending
    error = result.exception()
    self._pending = None
    directory = stage_dir(self._workdir, self._stage)
    path = directory / str(step)
    if not _everywhere(error is None):
      unfinished = _ending(directory, ".orbax-checkpoint-tmp")
      _clear([checksums.path_for(path), path, *unfinished, checksums.marker_path(path)])
      raise SaveError(
        step, f"{path} could not be written: {error or 'another process failed'}"
      ) from error
    best = best_step(self._workdir, self._stage, self._best) if self._best else None
    for old in _steps(self._workdir, self._stage)[: -self._keep]:
      if int(old.name) != best:
        # The checksums go first, so that half a checkpoint never has them.
        _clear([checksums.path_for(old), old])


def _everywhere(condition: bool) -> bool:
  """Returns whether a condition is true in all processes."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(condition))))


def _clear(paths: Iterable[epath.Path]) -> None:
  """Deletes files and folders, in the first process; ignores those that do not exist."""
  if jax.process_index() == 0:
    for path in paths:
      if not path.is_dir():
        path.unlink(missing_ok=True)
      elif storage.in_bucket(path):
        path.rmtree()
      else:
        shutil.rmtree(path, ignore_errors=True)


def _checkpointer() -> ocp.AsyncCheckpointer:
  # Orbax's CheckpointManager is not used: from its own thread it would report the step that it has
  # saved to JAX as the step that training has reached, on which several processes agree to stop.
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(
      model=ocp.StandardCheckpointHandler(),
      training=ocp.StandardCheckpointHandler(),
      data=ocp.JsonCheckpointHandler(),
      meta=ocp.JsonCheckpointHandler(),
    )
  )


def restore(
  workdir: str | os.PathLike[str],
  stage: str,
  step: int,
  like: TrainState,
  sharding: Any,
  iterator: Any,
) -> tuple[TrainState, Params]:
  """Restores a checkpoint to resume training from it.

  Args:
    workdir: the folder of the run.
    stage: the stage's name.
    step: the step of the checkpoint.
    like: shapes of a state of the same structure, with the shardings of the restored arrays, which
      do not depend on the devices and the layout that they were saved from.
    sharding: the sharding of the constants.
    iterator: the input pipeline; it is set to its saved position.

  Returns:
    The state and the stage's constants.

  Raises:
    UserError: the checkpoint is damaged, belongs to another stage, or was written with networks of
      other shapes.
  """
  path = stage_dir(workdir, stage) / str(step)
  _check(path)
  with _checkpointer() as ckpt:
    model = _targets(ckpt, path, sharding)
    if _shapes(like.params) != _shapes(model["params"]):
      raise UserError(
        f"The checkpoint {path} has networks of other shapes than those of this program."
        " Use the version of the program that wrote it, or another --workdir."
      )
    restored = ckpt.restore(
      path,
      args=ocp.args.Composite(
        model=ocp.args.StandardRestore(
          {"params": like.params, "ema": like.ema, "constants": model["constants"]}
        ),
        training=ocp.args.StandardRestore({"step": like.step, "opt_state": like.opt_state}),
      ),
    )
  iterator.set_state(_read_json(path / "data"))
  state = TrainState(
    step=restored["training"]["step"],
    params=restored["model"]["params"],
    ema=restored["model"]["ema"],
    opt_state=restored["training"]["opt_state"],
  )
  return state, restored["model"]["constants"]


def load_stage(
  workdir: str | os.PathLike[str],
  stage: str,
  *,
  ema: bool = True,
  best: str = "",
  sharding: Any = None,
) -> Params:
  """Loads the entries that one stage trained (or their EMA) and measured.

  Args:
    workdir: the folder of the run.
    stage: the stage's name.
    ema: whether to return the EMA.
    best: the metric by whose lowest value the checkpoint is selected; the last one if empty.
    sharding: the sharding of the arrays; the first device if None.

  Raises:
    UserError: there is no checkpoint yet, or none with that metric, or it is damaged or belongs to
      another stage.
  """
  step = latest_step(workdir, stage)
  if step is None:
    raise UserError(
      f"Stage {stage!r} has not been trained in {workdir}: there is no checkpoint in "
      f"{stage_dir(workdir, stage)}. Train it first: python -m experiments.train "
      f"--config=CONFIG --workdir={workdir}"
    )
  if best:
    step = best_step(workdir, stage, best)
    if step is None:
      raise UserError(
        f"No checkpoint of the stage {stage!r} in {workdir} has the metric {best!r}. Train it "
        f"with --config.monitor.best={best}, or use the last checkpoint, without --best."
      )
  path = stage_dir(workdir, stage) / str(step)
  _check(path)
  with _checkpointer() as ckpt:
    target = _targets(
      ckpt, path, sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    )
    args = ocp.args.Composite(model=ocp.args.StandardRestore(target))
    model = ckpt.restore(path, args=args)["model"]
  return {**model["ema" if ema else "params"], **model["constants"]}


def _check(path: epath.Path) -> None:
  """Checks that a checkpoint is complete, and is not a copy of one of another stage.

  Raises:
    UserError: it is incomplete, damaged, or such a copy.
  """
  checksums.verify(path)
  stage, saved_stage = path.parent.name, _read_json(path / "meta")["stage"]
  if saved_stage != stage:
    raise UserError(
      f"The checkpoint {path} is not of the stage {stage!r} but of {saved_stage!r}. Put the"
      f" checkpoints of {stage!r} there, or delete the folder {path.parent} to train it again."
    )


def _read_json(item: epath.Path) -> Any:
  return json.loads((item / "metadata").read_text())


def load_params(
  framework: Framework, workdir: str | os.PathLike[str], *, ema: bool = True, best: str = ""
) -> Params:
  """Loads all parameters of a framework from a workdir, for sampling and evaluation.

  Args:
    framework: the framework whose stages are loaded.
    workdir: the folder given to training.
    ema: whether to load the EMA of the last stage's parameters, or else the parameters themselves.
      Of earlier stages the EMA is always loaded: the last stage was trained on it, and the raw
      parameters would be networks that it was not trained with.
    best: the metric by whose lowest value the checkpoint of the last stage is selected; its last
      checkpoint if empty. Earlier stages use their last one, on which the last stage was trained.

  Raises:
    UserError: a stage has no checkpoint yet, or a damaged one, or one of another stage.
  """
  params: Params = {}
  for stage in framework.stages:
    last = stage is framework.stages[-1]
    metric = best if last else ""
    params |= load_stage(workdir, stage.name, ema=ema or not last, best=metric)
  return params


def _targets(ckpt: ocp.AsyncCheckpointer, path: epath.Path, sharding: Any) -> Any:
  """Returns restore targets for a checkpoint's model, from its metadata."""
  tree = ckpt.metadata(path).item_metadata["model"].tree
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _shapes(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path): (tuple(x.shape), str(x.dtype))
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
