"""Trains the stages of a framework one after the other, and resumes an interrupted training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import itertools
import json
import os
import signal
import threading
import zlib

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmdiff_jax import __version__, noise, parallel, storage
from mmdiff_jax.data import pipeline
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import PreemptedError, UserError
from mmdiff_jax.frameworks import base
from mmdiff_jax.frameworks.base import Batch, Framework, Params, Stage
from mmdiff_jax.parallel import Layout
from mmdiff_jax.training import (
  checkpoints,
  lock,
  monitoring,
  state as state_lib,
  step as step_lib,
  workdir as workdir_lib,
)


class DivergedError(FloatingPointError):
  """A loss or a gradient is not finite. The last good checkpoint has been kept."""


def check(
  framework: Framework,
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  stages: Sequence[str] = (),
) -> Layout:
  """Checks a training without its data; call it before they are read, which takes long.

  Args:
    framework: what to train.
    config: as in `train`.
    workdir: as in `train`.
    stages: names of the stages to train; all if empty.

  Returns:
    The layout.

  Raises:
    UserError: the workdir belongs to another config, a stage does not exist, or needs one that is
      not trained, the layout or a batch size does not fit the devices, or `config.monitor.keep` is
      below 1.
  """
  base.check_stages(framework, stages)
  layout = parallel.make_layout(**config.parallel)
  if config.monitor.keep < 1:
    raise UserError(
      f"config.monitor.keep is {config.monitor.keep}, but must be at least 1 checkpoint."
    )
  done = []
  for stage in framework.stages:
    if not _is_trained(stage, workdir):
      if stages and stage.name not in stages:
        continue
      parallel.check_batch_size(layout, stage.settings.batch_size, stage.settings.accumulate)
      _check_needs(stage, done, workdir)
    done.append(stage.name)
  workdir_lib.check_config(workdir, config)
  return layout


def train(
  framework: Framework,
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  train_data: Mapping[str, np.ndarray | Column],
  test_data: Mapping[str, np.ndarray | Column],
  stages: Sequence[str] = (),
) -> Params:
  """Trains all stages, or the named ones, that `workdir` does not hold already.

  A run that was stopped and started again is the same run, bit for bit: the key of step n is folded
  from the seed, the stage's name and n, and the input pipeline's position is in the checkpoint. On
  SIGTERM it saves and stops. Checkpoints are written while training continues. If one is damaged,
  training resumes from the one before. If one cannot be written, because the disk is full, training
  warns and continues, unless it is the last of a stage.

  Args:
    framework: what to train.
    config: `seed`, `parallel` (see `parallel.make_layout`) and `monitor` are read here:
      `log_every`, `report_every`, `checkpoint_every` in steps, `keep`, the number of last
      checkpoints to keep, `best`, the metric whose lowest value marks a further one to keep, and
      `stall_timeout` (see `monitoring.Monitor`); the entire config is kept in the workdir.
    workdir: receives the checkpoints, `config.json`, `data.json`, `metrics.jsonl` and TensorBoard's
      files; a folder or `gs://BUCKET/FOLDER`.
    train_data: the training split, arrays or columns whose first axis is the example.
    test_data: the test split; some of its rows are shown in reports.
    stages: names of the stages to train; all if empty.

  Returns:
    All available parameters: the EMA of the trained entries, and the measured ones.

  Raises:
    UserError: as in `check`, or the workdir belongs to other data, another process trains in it, a
      checkpoint is damaged, or `config.monitor.best` is not a metric of a stage.
    DivergedError: a loss or a gradient is not finite.
  """
  layout = check(framework, config, workdir, stages)
  names = [name for m in framework.modalities for name in (m.name, f"{m.name}_present")]
  trained_on = {name: train_data[name] for name in names if name in train_data}
  rows = monitoring.report_rows(test_data)
  params: Params = {}
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.training(workdir))
    workdir_lib.open_workdir(workdir, config, trained_on)
    monitor = stack.enter_context(monitoring.Monitor(workdir, framework.modalities, config))
    done = []
    for stage in framework.stages:
      for line in checkpoints.set_damaged_aside(workdir, stage.name):
        monitor.say(f"WARNING: {stage.name}: {line}. Training continues from before it.")
      if _is_trained(stage, workdir):
        monitor.say(f"{stage.name}: trained already")
      elif stages and stage.name not in stages:
        continue
      else:
        _check_needs(stage, done, workdir)
        _train_stage(stage, params, config, workdir, layout, monitor, train_data, rows)
      done.append(stage.name)
      sharding = parallel.replicated(layout)
      params |= checkpoints.load_stage(workdir, stage.name, sharding=sharding)
  return params


def _is_trained(stage: Stage, workdir: str | os.PathLike[str]) -> bool:
  return (checkpoints.latest_step(workdir, stage.name) or 0) >= stage.settings.steps


def _check_needs(stage: Stage, done: Sequence[str], workdir: str | os.PathLike[str]) -> None:
  missing = [name for name in stage.needs if name not in done]
  if missing:
    raise UserError(
      f"The stage {stage.name!r} needs {', '.join(missing)}, which is not trained to its end in"
      f" {workdir}. Train that first: --stages={','.join([*missing, stage.name])}, or all stages"
      " without --stages."
    )


def _train_stage(
  stage: Stage,
  earlier: Params,
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  layout: Layout,
  monitor: monitoring.Monitor,
  train_data: Mapping[str, np.ndarray | Column],
  rows: Batch,
) -> None:
  """Trains one stage to its end; the entries `earlier` are not changed."""
  settings = stage.settings
  grouped = settings.steps_per_dispatch > 1
  # Keyed by name, so that a stage added before this one does not change its draws.
  key = jax.random.fold_in(noise.make_key(config.seed), zlib.crc32(stage.name.encode()))
  init_key, step_key, report_key = jax.random.split(key, 3)

  monitor.say(f"{stage.name}: preparing")
  constants, examples = stage.prepare(earlier, train_data)
  constants = parallel.replicate(layout, constants)
  batches = pipeline.batches(
    examples,
    settings.batch_size,
    seed=config.seed,
    group=settings.steps_per_dispatch,
    rows=parallel.local_rows(layout, settings.batch_size),
  )
  sample_batch = {name: jnp.asarray(x[: settings.batch_size]) for name, x in examples.items()}

  tx = state_lib.optimizer(settings)
  frozen = {**earlier, **constants}
  targets, create = step_lib.initial_state(stage, tx, layout, init_key, frozen, sample_batch)
  _check_entries(stage, targets.params)
  start = checkpoints.latest_step(workdir, stage.name) or 0
  for unfinished in checkpoints.discard_unfinished(workdir, stage.name):
    monitor.say(
      f"{stage.name}: dropped the checkpoint of step {unfinished}, of an interrupted save"
    )
  keep, best = config.monitor.keep, config.monitor.best
  with contextlib.ExitStack() as stack:
    saver = stack.enter_context(checkpoints.Saver(workdir, stage.name, keep=keep, best=best))
    if start:
      copied = parallel.replicated(layout)
      state, constants = checkpoints.restore(workdir, stage.name, start, targets, copied, batches)
      frozen = {**earlier, **constants}
    else:
      state = create()
    names, train_step = step_lib.make_train_step(
      stage, tx, layout, state.params, frozen, sample_batch
    )
    if best and best not in names:
      raise UserError(
        f"config.monitor.best is {best!r}, which is not a metric of the stage {stage.name!r}. Its"
        f" metrics are {', '.join(names)}. Give one of them (every stage has `loss`), or none, and"
        " start again: the trained stages are kept."
      )
    monitor.start(stage, start, state.params)

    every_log, every_save, every_report = (
      config.monitor[name] for name in ("log_every", "checkpoint_every", "report_every")
    )
    meter, step = step_lib.new_meter(layout, names), start
    asked_to_stop = stack.enter_context(_asked_to_stop())
    while step < settings.steps:
      batch = next(batches)
      group = min(settings.steps_per_dispatch, settings.steps - step)
      if grouped and group < settings.steps_per_dispatch:
        batch = {name: x[:group] for name, x in batch.items()}
      batch = parallel.shard_batch(layout, batch, grouped=grouped)
      state, meter = train_step(state, meter, frozen, step_key, batch)
      before, step = step, step + group
      if before == start:
        jax.block_until_ready(meter)
        monitor.compiled(step)

      log, save, report = (
        step == settings.steps or step // every > before // every
        for every in (every_log, every_save, every_report)
      )
      stop = asked_to_stop()
      if log or save or report or stop:
        metrics = _read(meter, names, stage.name, workdir, saver)
        monitor.metrics(step, metrics)
        meter = step_lib.new_meter(layout, names)
        _finish(saver, monitor, stage, wait=save or stop)
      if save or stop:
        meta = {"config": config.to_dict(), "stage": stage.name, "step": step}
        meta["version"] = __version__
        # A mean over the few steps before a signal is not comparable with those of the others.
        meta["metrics"] = metrics if save else {}
        monitor.flush()
        saver.save(state, constants, batches, meta)
      if step == settings.steps or stop:
        _finish(saver, monitor, stage)
      if stop:
        saved = checkpoints.latest_step(workdir, stage.name) or 0
        raise PreemptedError(
          f"Asked to stop: {stage.name} is saved at step {saved:,} of {settings.steps:,}. The same"
          " command continues from there."
        )
      if report:
        params = {**frozen, **jax.device_put(state.ema, parallel.replicated(layout))}
        monitor.report(step, stage.report(params, jax.random.fold_in(report_key, step), rows))
      if save or report:
        monitor.restart_clock(step)


# Counts calls, not steps, which restart with each stage and may be taken in groups: the processes
# agree to stop at a call that none of them has made yet.
_calls = itertools.count(1)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
  """Yields a function to call after each dispatch: whether all processes stop, due to SIGTERM."""
  if jax.distributed.is_initialized():
    # With several processes JAX handles the signal, and the processes agree on a call.
    yield lambda: multihost_utils.reached_preemption_sync_point(next(_calls))
    return
  received = threading.Event()
  with on_sigterm(lambda *_: received.set()):
    yield received.is_set


@contextlib.contextmanager
def on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
  """Calls a handler on SIGTERM; does nothing outside the main thread, where Python forbids it."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def _finish(
  saver: checkpoints.Saver, monitor: monitoring.Monitor, stage: Stage, *, wait: bool = True
) -> None:
  """Completes a save; a stage can do without an intermediate checkpoint, but not without its last.

  Raises:
    UserError: the checkpoint of the last step was not saved.
  """
  try:
    saver.finish(wait=wait)
  except checkpoints.SaveError as error:
    if error.step == stage.settings.steps:
      raise UserError(
        f"The last checkpoint of {stage.name} was not saved: {error}. Make room, and start the same"
        " command again: it continues from the checkpoint before."
      ) from error
    monitor.say(
      f"WARNING: {stage.name}: NO CHECKPOINT AT STEP {error.step:,}: {error}. Training continues,"
      " and earlier checkpoints are unchanged. Make room before the next one is due."
    )


def _read(
  meter: step_lib.Meter,
  names: tuple[str, ...],
  stage: str,
  workdir: str | os.PathLike[str],
  saver: checkpoints.Saver,
) -> dict[str, float]:
  """Returns the means since the last reading; waits for the device.

  Raises:
    DivergedError: a metric was not finite at a step since the last reading.
  """
  meter = jax.device_get(meter)
  if meter.bad_step >= 0:
    bad = [name for name, is_bad in zip(names, meter.bad, strict=True) if is_bad]
    parts = [name.removeprefix("loss_") for name in bad if name.startswith("loss_")]
    where = f"of {', '.join(parts)} " if parts else ""
    report = storage.path(workdir) / "diverged.json"
    saver.wait()
    if jax.process_index() == 0:
      facts = {
        "stage": stage,
        "step": int(meter.bad_step),
        "not_finite": bad,
        "last_checkpoint": checkpoints.latest_step(workdir, stage) or 0,
        "devices": [device.device_kind for device in jax.devices()],
        "jax": jax.__version__,
      }
      storage.write_atomically(report, json.dumps(facts, indent=1))
    raise DivergedError(
      f"Training stopped in stage {stage!r} at step {meter.bad_step}: the loss or gradient {where}"
      f"is not finite (not finite: {', '.join(bad)}). The last good checkpoint in "
      f"{checkpoints.stage_dir(workdir, stage)} is unchanged, and {report} describes the failure:"
      " the same command repeats it from that checkpoint. Lower the stage's learning rate or its"
      " clip, or look for values in the data that are not finite, and start again in another"
      " workdir."
    )
  return {name: float(total / meter.count) for name, total in zip(names, meter.totals, strict=True)}


def _check_entries(stage: Stage, params: Params) -> None:
  """Checks that a stage creates exactly the entries that it declares as trainable."""
  if set(params) != set(stage.trainable):
    raise ValueError(
      f"Stage {stage.name!r} is to train {sorted(stage.trainable)}, but its init "
      f"returned {sorted(params)}. Make them equal in the framework."
    )
