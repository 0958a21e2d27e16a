"""Checkpoints that are written while training goes on, and that say when they are damaged.

A stage's checkpoints lie in `workdir/checkpoints/<stage>/<step>/`, written by Orbax:

  model     the trained entries, their running mean, and the stage's measured constants
  training  the step and the optimiser's moments
  data      where the input pipeline stands
  meta      the config, the package's version, the stage's name, the step and its metrics

Beside each are its checksums, written last and checked before the step is read. A step without
them is a save that was cut off. What is damaged is put into `workdir/damaged` when
training goes on, from the step before.
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
    step: whose it was.
  """

  def __init__(self, step: int, message: str):
    super().__init__(message)
    self.step = step


def stage_dir(workdir: str | os.PathLike[str], stage: str) -> epath.Path:
  """The folder of one stage's checkpoints."""
  workdir = storage.path(workdir)
  if not storage.in_bucket(workdir):
    workdir = os.getcwd() / workdir  # Orbax wants to know all of it.
  return workdir / "checkpoints" / stage


def latest_step(workdir: str | os.PathLike[str], stage: str) -> int | None:
  """The last complete step of a stage, or None when it has no checkpoint.

  Raises:
    UserError: there are checkpoints, but none has its checksums, nor was cut off in its saving.
  """
  steps = _steps(workdir, stage)
  complete = [step for step in steps if checksums.path_of(step).exists()]
  lost = [
    step for step in steps if step not in complete and not checksums.begun_path(step).exists()
  ]
  if lost and not complete:
    checksums.verify(lost[-1])
  return int(complete[-1].name) if complete else None


def best_step(workdir: str | os.PathLike[str], stage: str, metric: str) -> int | None:
  """The complete step of a stage whose checkpoint has the lowest value of a metric, or None."""
  found = {}
  for step in _steps(workdir, stage):
    # One that is damaged, which is told where it is loaded, or that is of an older version.
    with contextlib.suppress(OSError, ValueError, KeyError):
      if checksums.path_of(step).exists():
        found[int(step.name)] = _read_json(step / "meta")["metrics"][metric]
  return min(found, key=found.get, default=None)


def metadata(workdir: str | os.PathLike[str]) -> dict[epath.Path, dict[str, Any]]:
  """Reads the `meta` item of each stage's last checkpoint.

  Returns:
    The items, by the file that has them. A damaged checkpoint has none here; loading it raises.
  """
  loaded = {}
  for folder in _ending(stage_dir(workdir, ""), ""):
    with contextlib.suppress(OSError, ValueError, KeyError, UserError):
      meta = folder / str(latest_step(workdir, folder.name)) / "meta"
      loaded[meta / "metadata"] = _read_json(meta)
  return loaded


def discard_unfinished(workdir: str | os.PathLike[str], stage: str) -> list[int]:
  """Deletes what saves left behind that were cut off; returns their steps.

  For the process that trains only: a save that is still going on looks the same.
  """
  directory = stage_dir(workdir, stage)
  unfinished = [step for step in _steps(workdir, stage) if not checksums.path_of(step).exists()]
  multihost_utils.sync_global_devices(f"unfinished checkpoints of {stage}")
  _clear([*unfinished, *_ending(directory, ".orbax-checkpoint-tmp", ".json.tmp")])
  return [int(step.name) for step in unfinished]


def set_damaged_aside(workdir: str | os.PathLike[str], stage: str) -> list[str]:
  """Moves the last checkpoints of a stage, as far as they are damaged, into `workdir/damaged`.

  For the processes that train only, all of them. Steps without checksums stay where they are.

  Returns:
    A sentence on each, in the first process.
  """
  said = []
  if jax.process_index() == 0:
    for step in reversed(
      [step for step in _steps(workdir, stage) if checksums.path_of(step).exists()]
    ):
      fault = checksums.fault(step)
      if not fault:
        break
      aside = storage.path(workdir) / "damaged" / f"{stage}-{step.name}-{time.time_ns()}"
      aside.mkdir(parents=True)
      # The checksums first: a step that has lost them is dropped.
      for path in (checksums.path_of(step), step):
        path.rename(aside / path.name)
      said.append(f"the checkpoint of step {int(step.name):,} is damaged ({fault}); now in {aside}")
  multihost_utils.sync_global_devices(f"damaged checkpoints of {stage}")
  return said


def _steps(workdir: str | os.PathLike[str], stage: str) -> list[epath.Path]:
  """The folders of a stage's steps, in order, complete or not."""
  found = (path for path in _ending(stage_dir(workdir, stage), "") if path.name.isdecimal())
  return sorted(found, key=lambda path: int(path.name))


def _ending(directory: epath.Path, *ends: str) -> list[epath.Path]:
  """What lies in a folder, if it is there, under names that end so.

  Not by `glob`, which would take brackets in the folder's own name for a pattern.
  """
  there = directory.iterdir() if directory.is_dir() else ()
  return [path for path in there if path.name.endswith(ends)]


class Saver:
  """Writes the checkpoints of one stage, one at a time, while training goes on.

  A context manager. What it still writes when it is left is written to the end, so that a run that
  is stopped by an error keeps it.
  """

  def __init__(self, workdir: str | os.PathLike[str], stage: str, *, keep: int, best: str = ""):
    """Says what stays: the last `keep` checkpoints, and the one with the lowest metric `best`."""
    self._workdir, self._stage, self._keep, self._best = workdir, stage, keep, best
    self._ckpt = _checkpointer()
    self._thread = futures.ThreadPoolExecutor(1)
    # The step that is being written, and what seals it.
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
    """Begins to write the checkpoint of step `state.step`, of which all is as it is now.

    The state may be overwritten in place at once: Orbax has copied it to the host. On a CPU that
    copy is the state's own memory, and XLA, which knows that it is being read, leaves it alone and
    lets the next step write elsewhere.

    Call `finish` before the next one. What goes wrong is raised there, too.
    """
    step = int(state.step)
    path = stage_dir(self._workdir, self._stage) / str(step)
    # Threads of a save that failed may have written on after it was cleared away.
    _clear(_ending(path.parent, ".orbax-checkpoint-tmp"))
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        checksums.begun_path(path).touch()
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
      sealed = futures.Future()
      sealed.set_exception(error)
    else:
      sealed = self._thread.submit(self._seal_when_written, path)
    self._pending = step, sealed

  def _seal_when_written(self, path: epath.Path) -> None:
    self._ckpt.wait_until_finished()
    if jax.process_index() == 0:
      checksums.write(path)

  def wait(self) -> None:
    """Waits for what is being written; whether it went wrong is for `finish` to say."""
    if self._pending:
      futures.wait([self._pending[1]])

  def finish(self, *, wait: bool = True) -> None:
    """Ends the save that was begun: it counts from now on, and older ones that do not are deleted.

    Where several processes train all must call it at the same steps.

    Args:
      wait: for a save that is still going on; else it is left for a later call.

    Raises:
      SaveError: it could not be written, such as on a full disk. What was written of it is gone,
        and those before it are as they were.
    """
    if not self._pending or not (wait or _everywhere(self._pending[1].done())):
      return
    step, sealed = self._pending
    error = sealed.exception()
    self._pending = None
    directory = stage_dir(self._workdir, self._stage)
    path = directory / str(step)
    if not _everywhere(error is None):
      unfinished = _ending(directory, ".orbax-checkpoint-tmp")
      _clear([checksums.path_of(path), path, *unfinished, checksums.begun_path(path)])
      raise SaveError(
        step, f"{path} could not be written: {error or 'another process failed'}"
      ) from error
    best = best_step(self._workdir, self._stage, self._best) if self._best else None
    for old in _steps(self._workdir, self._stage)[: -self._keep]:
      if int(old.name) != best:
        # The checksums first, so that half a checkpoint never has them.
        _clear([checksums.path_of(old), old])


def _everywhere(holds: bool) -> bool:
  """Whether it holds in all processes."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(holds))))


def _clear(paths: Iterable[epath.Path]) -> None:
  """Deletes files and folders, in the first process; those that are not there do not matter."""
  if jax.process_index() == 0:
    for path in paths:
      if not path.is_dir():
        path.unlink(missing_ok=True)
      elif storage.in_bucket(path):
        path.rmtree()
      else:
        shutil.rmtree(path, ignore_errors=True)


def _checkpointer() -> ocp.AsyncCheckpointer:
  # Not Orbax's CheckpointManager: from its own thread it would tell JAX the step that it has saved
  # as the one that training has reached, upon which several processes agree where to stop.
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
  """Reads a checkpoint back, to go on with it.

  Args:
    workdir: the folder of the run.
    stage: whose checkpoint.
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
  path = stage_dir(workdir, stage) / str(step)
  _check(path)
  with _checkpointer() as ckpt:
    model = _targets(ckpt, path, sharding)
    if _shapes(like.params) != _shapes(model["params"]):
      raise UserError(
        f"The checkpoint {path} was made by networks of other shapes than those of this program."
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
  """The entries that one stage trained (or their running mean) and measured.

  Args:
    workdir: the folder of the run.
    stage: its name.
    ema: whether to give the running mean.
    best: the metric whose lowest value says which checkpoint; the last one if there is none.
    sharding: that of the arrays; the first device if None.

  Raises:
    UserError: there is no checkpoint yet, or none with that metric, or it is damaged or another
      stage's.
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
        f"No checkpoint of the stage {stage!r} in {workdir} says what its {best!r} was. Train it "
        f"with --config.monitor.best={best}, or take the last one, without --best."
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
  """Checks that a checkpoint is whole, and no copy of one of another stage.

  Raises:
    UserError: it is not.
  """
  checksums.verify(path)
  stage, written = path.parent.name, _read_json(path / "meta")["stage"]
  if written != stage:
    raise UserError(
      f"The checkpoint {path} is not of the stage {stage!r} but of {written!r}. Put that stage's"
      f" own checkpoints there, or delete the folder {path.parent} to train {stage!r} anew."
    )


def _read_json(item: epath.Path) -> Any:
  return json.loads((item / "metadata").read_text())


def load_params(
  framework: Framework, workdir: str | os.PathLike[str], *, ema: bool = True, best: str = ""
) -> Params:
  """All parameters of a framework from a workdir, for sampling and evaluation.

  Args:
    framework: whose stages to read.
    workdir: the folder given to training.
    ema: whether the last stage gives the running means of its parameters, or else the parameters
      themselves. Those before it always give running means: it was trained upon these, and their
      raw parameters would be other networks than it has seen.
    best: the metric whose lowest value says which checkpoint of the last stage; its last one if
      there is none. Those before it give their last ones, which it was trained upon.

  Raises:
    UserError: a stage has no checkpoint yet, or a damaged one, or another stage's.
  """
  params: Params = {}
  for stage in framework.stages:
    last = stage is framework.stages[-1]
    chosen = best if last else ""
    params |= load_stage(workdir, stage.name, ema=ema or not last, best=chosen)
  return params


def _targets(ckpt: ocp.AsyncCheckpointer, path: epath.Path, sharding: Any) -> Any:
  """Restore targets of a checkpoint's model, from what it says of itself."""
  tree = ckpt.metadata(path).item_metadata["model"].tree
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _shapes(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path): (tuple(x.shape), str(x.dtype))
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
