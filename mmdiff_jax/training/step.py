"""The compiled training step of a stage, and the meter that it keeps on the device.

Like all its imports it needs none of the tools of training (loading, checkpoints, TensorBoard).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import optax

from mmdiff_jax import noise, parallel
from mmdiff_jax.frameworks.base import Batch, Params, Stage
from mmdiff_jax.parallel import Layout
from mmdiff_jax.training import state as state_lib
from mmdiff_jax.training.state import TrainState


class Meter(NamedTuple):
  """Sums of metrics on the device, so that the host need not read them after every step.

  Attributes:
    totals: sum of each metric since the host last read them.
    count: number of steps in the sums.
    bad_step: the first step with a metric that is not finite, or -1.
    bad: which metrics were not finite at that step.
  """

  totals: Float[Array, " metrics"]
  count: Int[Array, ""]
  bad_step: Int[Array, ""]
  bad: Bool[Array, " metrics"]


def initial_state(
  stage: Stage,
  tx: optax.GradientTransformation,
  layout: Layout,
  key: Array,
  frozen: Params,
  batch: Batch,
) -> tuple[TrainState, Callable[[], TrainState]]:
  """Prepares the initial state of a stage, each array created where the layout places it.

  Args:
    stage: what to train.
    tx: the optimiser.
    layout: the layout of the devices.
    key: the key to draw the parameters with.
    frozen: all other entries.
    batch: one batch.

  Returns:
    The shapes of the state, with their shardings, and the function `() -> state` that creates it.
  """

  def create(key: Array, frozen: Params, batch: Batch) -> TrainState:
    return state_lib.create(stage.init(key, frozen, batch), tx)

  like = jax.eval_shape(create, key, frozen, batch)
  shardings = parallel.shardings(layout, like)
  targets = jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), like, shardings
  )
  return targets, lambda: jax.jit(create, out_shardings=shardings)(key, frozen, batch)


def make_train_step(
  stage: Stage,
  tx: optax.GradientTransformation,
  layout: Layout,
  params: Params,
  frozen: Params,
  batch: Batch,
) -> tuple[tuple[str, ...], Callable[..., tuple[TrainState, Meter]]]:
  """Compiles the training step of a stage.

  Args:
    stage: what to train.
    tx: the optimiser.
    layout: the layout of the devices.
    params: the trained entries; only their shapes matter here.
    frozen: all other entries; likewise.
    batch: one batch; likewise.

  Returns:
    The names of the metrics, in the meter's order, and the function `(state, meter, frozen, key,
    batch) -> (state, meter)`, which overwrites its arguments state and meter. The batch has a
    leading axis [steps] if the stage takes several steps per dispatch; see
    `parallel.shard_batch`.
  """
  settings = stage.settings
  grouped = settings.steps_per_dispatch > 1
  rate = state_lib.learning_rate(settings)

  def loss_and_metrics(
    params: Params, frozen: Params, key: Array, batch: Batch
  ) -> tuple[Array, dict[str, Array]]:
    value, metrics = stage.loss(params, frozen, key, batch)
    return value, {"loss": value, **metrics}

  _, shapes = jax.eval_shape(loss_and_metrics, params, frozen, noise.make_key(0), batch)
  names = (*shapes, "grad_norm", "learning_rate")

  def gradients(
    params: Params, frozen: Params, key: Array, batch: Batch
  ) -> tuple[Params, list[Array]]:
    grads, metrics = jax.grad(loss_and_metrics, has_aux=True)(params, frozen, key, batch)
    values = [jnp.asarray(metrics[name], jnp.float32) for name in shapes]
    return parallel.split(layout, grads), values

  def single_step(
    state: TrainState, meter: Meter, frozen: Params, key: Array, batch: Batch
  ) -> tuple[TrainState, Meter]:
    key = jax.random.fold_in(key, state.step)
    params = parallel.gather(layout, state.params)
    if layout.kind == "jit" and settings.accumulate == 1:
      grads, values = gradients(params, frozen, key, batch)
    else:
      rows = len(jax.tree.leaves(batch)[0])
      first = parallel.first_row(layout, rows)
      means = _accumulated(gradients, settings.accumulate, params, frozen, key, first, batch)
      grads, values = parallel.mean(layout, means)
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
      return single_step(state, meter, frozen, key, batch)
    carry, _ = jax.lax.scan(
      lambda carry, row: (single_step(*carry, frozen, key, row), None), (state, meter), batch
    )
    return carry

  state = jax.eval_shape(lambda params: state_lib.create(params, tx), params)
  return names, parallel.compile_step(layout, dispatch, state, grouped=grouped)


def _accumulated(
  gradients: Callable[..., tuple[Params, list[Array]]],
  pieces: int,
  params: Params,
  frozen: Params,
  key: Array,
  first: int | Array,
  batch: Batch,
) -> tuple[Params, list[Array]]:
  """Returns the mean of `gradients` over pieces of a batch, a part of the global batch.

  The batch begins at row `first` of the global one. Its rows are dealt to the pieces in turn, so
  that each device's rows are split evenly, none moves to another device, and the draws for a row
  are the same as without pieces.
  """
  if pieces == 1:
    return gradients(params, frozen, noise.key_of_rows(key, first), batch)

  def piece_gradients(index: Array, rows: Batch) -> tuple[Params, list[Array]]:
    row_key = noise.key_of_rows(key, first + index, pieces)
    return gradients(params, frozen, row_key, rows)

  def add(total: Any, piece: tuple[Array, Batch]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, piece_gradients(*piece)), None

  rows_by_piece = {
    n: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0) for n, x in batch.items()
  }
  inputs = (jnp.arange(pieces), rows_by_piece)
  shapes = jax.eval_shape(piece_gradients, *jax.tree.map(lambda x: x[0], inputs))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zero, inputs)
  return jax.tree.map(lambda x: x / pieces, total)


def new_meter(layout: Layout, names: tuple[str, ...]) -> Meter:
  """Returns a meter with empty sums."""
  return parallel.replicate(
    layout,
    Meter(
      totals=np.zeros(len(names), np.float32),
      count=np.zeros((), np.int32),
      bad_step=np.full((), -1, np.int32),
      bad=np.zeros(len(names), bool),
    ),
  )
