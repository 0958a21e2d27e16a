"""Trains the stages of a framework, one after the other, and goes on where it was stopped."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import ml_collections
import numpy as np
import optax

from mmdiff_jax import multitime
from mmdiff_jax.data import pipeline
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Batch, Framework, Params, Stage
from mmdiff_jax.training import checkpoints, monitoring, parallel, state as state_lib
from mmdiff_jax.training.parallel import Layout
from mmdiff_jax.training.state import TrainState


class DivergedError(FloatingPointError):
  """A loss or a gradient is not finite. The last good checkpoint has been kept."""


class Meter(NamedTuple):
  """Sums on the device, so that the host need not look at every step.

  Attributes:
    totals: sum of each metric since the host last looked.
    count: number of steps in the sums.
    bad_step: the first step with a metric that is not finite, or -1.
    bad: which metrics were not finite at that step.
  """

  totals: Float[Array, " metrics"]
  count: Int[Array, ""]
  bad_step: Int[Array, ""]
  bad: Bool[Array, " metrics"]


def train(
  framework: Framework,
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  train_data: Mapping[str, np.ndarray | Column],
  test_data: Mapping[str, np.ndarray | Column],
  stages: Sequence[str] = (),
) -> Params:
  """Trains all stages that `workdir` does not hold already, or those of them that are named.

  A run that was stopped and started again is the same run, bit for bit: the key of step n is folded
  from the seed, the stage's name and n, and the input pipeline's position is in the checkpoint.

  Args:
    framework: what to train.
    config: `seed`, `parallel` (see `parallel.layout_of`) and `monitor.{log_every, report_every,
      checkpoint_every}` (in steps) are read here; all of it is kept in the workdir.
    workdir: takes the checkpoints, `config.json`, `data.json`, `metrics.jsonl` and TensorBoard's
      files.
    train_data: the training split, arrays or columns whose first axis is the example.
    test_data: the test split; some of its rows are shown in reports.
    stages: names of those to train; all if empty.

  Returns:
    All parameters that there are: the running means of the trained entries, and the measured ones.

  Raises:
    UserError: the workdir belongs to another config or other data, a checkpoint is damaged, there
      is no such stage, one that it needs is not trained, or the layout or a batch size does not fit
      the devices.
    DivergedError: a loss or a gradient is not finite.
  """
  _check_stages(framework, stages)
  layout = parallel.layout_of(**config.parallel)
  wanted = [
    stage
    for stage in framework.stages
    if (not stages or stage.name in stages) and not _is_trained(stage, workdir)
  ]
  for stage in wanted:
    parallel.check_batch_size(layout, stage.settings.batch_size, stage.settings.accumulate)
  names = [name for m in framework.modalities for name in (m.name, f"{m.name}_present")]
  trained_on = {name: train_data[name] for name in names if name in train_data}
  checkpoints.claim_workdir(workdir, config, trained_on)
  rows = monitoring.report_rows(test_data)
  params: Params = {}
  with monitoring.Monitor(workdir, framework.modalities, config) as monitor:
    done = []
    for stage in framework.stages:
      if stage in wanted:
        _check_needs(stage, done, workdir)
        _train_stage(stage, params, config, workdir, layout, monitor, train_data, rows)
      elif _is_trained(stage, workdir):
        monitor.say(f"{stage.name}: trained already")
      else:
        continue
      done.append(stage.name)
      sharding = parallel.replicated(layout)
      params |= checkpoints.load_stage(workdir, stage.name, sharding=sharding)
  return params


def _check_stages(framework: Framework, stages: Sequence[str]) -> None:
  known = [stage.name for stage in framework.stages]
  for name in stages:
    if name not in known:
      raise UserError(f"There is no stage {name!r}. There are: {', '.join(known)}.")


def _is_trained(stage: Stage, workdir: str | os.PathLike[str]) -> bool:
  return (checkpoints.latest_step(workdir, stage.name) or 0) >= stage.settings.steps


def _check_needs(stage: Stage, done: Sequence[str], workdir: str | os.PathLike[str]) -> None:
  missing = [name for name in stage.needs if name not in done]
  if missing:
    raise UserError(
      f"The stage {stage.name!r} needs {', '.join(missing)}, which {workdir} does not hold to the"
      f" end. Train that first: --stages={','.join([*missing, stage.name])}, or all stages without"
      " --stages."
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
  """Trains one stage to its end; `earlier` are the entries that stay as they are."""
  settings = stage.settings
  grouped = settings.steps_per_dispatch > 1
  # Keyed by name, so that a stage put before this one does not change it.
  key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(stage.name.encode()))
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

  def create(key: Array, frozen: Params, batch: Batch) -> TrainState:
    return state_lib.create(stage.init(key, frozen, batch), tx)

  like = jax.eval_shape(create, init_key, frozen, sample_batch)
  _check_entries(stage, like.params)
  shardings = parallel.shardings(layout, like)
  start = checkpoints.latest_step(workdir, stage.name) or 0
  for unfinished in checkpoints.discard_unfinished(workdir, stage.name):
    monitor.say(f"{stage.name}: dropped the checkpoint of step {unfinished}, cut off in its saving")
  with checkpoints.manager(workdir, stage.name) as ckpt:
    if start:
      placed = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), like, shardings
      )
      copied = parallel.replicated(layout)
      state, constants = checkpoints.restore(ckpt, start, placed, copied, batches)
      frozen = {**earlier, **constants}
    else:
      state = jax.jit(create, out_shardings=shardings)(init_key, frozen, sample_batch)
    names, train_step = make_train_step(stage, tx, layout, state.params, frozen, sample_batch)
    monitor.start(stage, start, state.params)

    every_log, every_save, every_report = (
      config.monitor[name] for name in ("log_every", "checkpoint_every", "report_every")
    )
    meter, step = new_meter(layout, names), start
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
      if log or save or report:
        monitor.metrics(step, _read(meter, names, stage.name, workdir))
        meter = new_meter(layout, names)
      if save:
        meta = {"config": config.to_dict(), "stage": stage.name, "step": step}
        checkpoints.save(ckpt, state, constants, batches, meta)
      if report:
        shown = {**frozen, **jax.device_put(state.ema, parallel.replicated(layout))}
        monitor.report(step, stage.report(shown, jax.random.fold_in(report_key, step), rows))
      if save or report:
        monitor.restart_clock(step)


def make_train_step(
  stage: Stage,
  tx: optax.GradientTransformation,
  layout: Layout,
  params: Params,
  frozen: Params,
  batch: Batch,
) -> tuple[tuple[str, ...], Callable[..., tuple[TrainState, Meter]]]:
  """Compiles the step of a stage.

  Args:
    stage: what to train.
    tx: the optimiser.
    layout: of the devices.
    params: the trained entries, of which only the shapes matter here.
    frozen: all other entries; likewise.
    batch: one batch; likewise.

  Returns:
    The names of the metrics, in the meter's order, and the function `(state, meter, frozen, key,
    batch) -> (state, meter)`, which overwrites the state and the meter that it gets. The batch has
    a leading axis [steps] when the stage takes several steps a dispatch; see
    `parallel.shard_batch`.
  """
  settings = stage.settings
  grouped = settings.steps_per_dispatch > 1
  rate = state_lib.learning_rate(settings)

  def measured(
    params: Params, frozen: Params, key: Array, batch: Batch
  ) -> tuple[Array, dict[str, Array]]:
    value, metrics = stage.loss(params, frozen, key, batch)
    return value, {"loss": value, **metrics}

  _, shapes = jax.eval_shape(measured, params, frozen, jax.random.key(0), batch)
  names = (*shapes, "grad_norm", "learning_rate")

  def gradients(
    params: Params, frozen: Params, key: Array, batch: Batch
  ) -> tuple[Params, list[Array]]:
    grads, metrics = jax.grad(measured, has_aux=True)(params, frozen, key, batch)
    values = [jnp.asarray(metrics[name], jnp.float32) for name in shapes]
    return parallel.split(layout, grads), values

  def one(
    state: TrainState, meter: Meter, frozen: Params, key: Array, batch: Batch
  ) -> tuple[TrainState, Meter]:
    key = jax.random.fold_in(key, state.step)
    params = parallel.whole(layout, state.params)
    if layout.kind == "jit" and settings.accumulate == 1:
      grads, values = gradients(params, frozen, key, batch)
    else:
      rows = len(jax.tree.leaves(batch)[0])
      first = parallel.first_row(layout, rows)
      found = _in_pieces(gradients, settings.accumulate, params, frozen, key, first, batch)
      grads, values = parallel.mean(layout, found)
    values = jnp.stack([*values, optax.tree.norm(grads), rate(state.step)]).astype(jnp.float32)
    first = ~jnp.isfinite(values).all() & (meter.bad_step < 0)
    meter = Meter(
      totals=meter.totals + values,
      count=meter.count + 1,
      bad_step=jnp.where(first, state.step, meter.bad_step),
      bad=jnp.where(first, ~jnp.isfinite(values), meter.bad),
    )
    state = state_lib.apply_gradients(state, grads, tx, settings.ema)
    return state, meter

  def dispatch(
    state: TrainState, meter: Meter, frozen: Params, key: Array, batch: Batch
  ) -> tuple[TrainState, Meter]:
    if not grouped:
      return one(state, meter, frozen, key, batch)
    carry, _ = jax.lax.scan(
      lambda carry, row: (one(*carry, frozen, key, row), None), (state, meter), batch
    )
    return carry

  state = jax.eval_shape(lambda params: state_lib.create(params, tx), params)
  return names, parallel.compile_step(layout, dispatch, state, grouped=grouped)


def _in_pieces(
  gradients: Callable[..., tuple[Params, list[Array]]],
  pieces: int,
  params: Params,
  frozen: Params,
  key: Array,
  first: int | Array,
  batch: Batch,
) -> tuple[Params, list[Array]]:
  """The mean of `gradients` over pieces of a batch, whose first row is `first` of the whole one.

  The pieces take turns in the rows. So each device's rows are split evenly, none moves to another
  device, and what is drawn for a row is what it would be in one piece.
  """
  if pieces == 1:
    return gradients(params, frozen, multitime.key_of_rows(key, first), batch)

  def part(index: Array, rows: Batch) -> tuple[Params, list[Array]]:
    own_key = multitime.key_of_rows(key, first + index, pieces)
    return gradients(params, frozen, own_key, rows)

  def add(total: Any, piece: tuple[Array, Batch]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, part(*piece)), None

  split = {n: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0) for n, x in batch.items()}
  every = (jnp.arange(pieces), split)
  shapes = jax.eval_shape(part, *jax.tree.map(lambda x: x[0], every))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zero, every)
  return jax.tree.map(lambda x: x / pieces, total)


def new_meter(layout: Layout, names: tuple[str, ...]) -> Meter:
  """A meter that has seen nothing."""
  return parallel.replicate(
    layout,
    Meter(
      totals=np.zeros(len(names), np.float32),
      count=np.zeros((), np.int32),
      bad_step=np.full((), -1, np.int32),
      bad=np.zeros(len(names), bool),
    ),
  )


def _read(
  meter: Meter, names: tuple[str, ...], stage: str, workdir: str | os.PathLike[str]
) -> dict[str, float]:
  """The means since the last reading; waits for the device.

  Raises:
    DivergedError: something was not finite at some step since the last reading.
  """
  meter = jax.device_get(meter)
  if meter.bad_step >= 0:
    bad = [name for name, is_bad in zip(names, meter.bad, strict=True) if is_bad]
    parts = [name.removeprefix("loss_") for name in bad if name.startswith("loss_")]
    where = f"of {', '.join(parts)} " if parts else ""
    raise DivergedError(
      f"Training stopped in stage {stage!r} at step {meter.bad_step}: the loss or gradient {where}"
      f"is not finite (not finite: {', '.join(bad)}). The last good checkpoint in "
      f"{checkpoints.stage_dir(workdir, stage)} is untouched. Lower the stage's learning rate or "
      "its clip, or look for values in the data that are not finite, and start again in another "
      "workdir."
    )
  return {name: float(total / meter.count) for name, total in zip(names, meter.totals, strict=True)}


def _check_entries(stage: Stage, params: Params) -> None:
  """A stage must create what it says it trains: no more, no less."""
  if set(params) != set(stage.trainable):
    raise ValueError(
      f"Stage {stage.name!r} is to train {sorted(stage.trainable)} but its init made "
      f"{sorted(params)}. Make them equal in the framework."
    )
