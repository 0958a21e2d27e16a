"""The training step of a stage, compiled, and the meter that it keeps on the device.

Like all that it imports it needs none of the tools of training (loading, checkpoints, TensorBoard).
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


def initial_state(
  stage: Stage,
  tx: optax.GradientTransformation,
  layout: Layout,
  key: Array,
  frozen: Params,
  batch: Batch,
) -> tuple[TrainState, Callable[[], TrainState]]:
  """The state that a stage begins with, each array made where the layout has it.

  Args:
    stage: what to train.
    tx: the optimiser.
    layout: of the devices.
    key: draws the parameters.
    frozen: all other entries.
    batch: one batch.

  Returns:
    Its shapes, with their shardings, and the function `() -> state` that makes it.
  """

  def create(key: Array, frozen: Params, batch: Batch) -> TrainState:
    return state_lib.create(stage.init(key, frozen, batch), tx)

  like = jax.eval_shape(create, key, frozen, batch)
  shardings = parallel.shardings(layout, like)
  placed = jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), like, shardings
  )
  return placed, lambda: jax.jit(create, out_shardings=shardings)(key, frozen, batch)


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

  _, shapes = jax.eval_shape(measured, params, frozen, noise.make_key(0), batch)
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
    params = parallel.gather(layout, state.params)
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
    return gradients(params, frozen, noise.key_of_rows(key, first), batch)

  def part(index: Array, rows: Batch) -> tuple[Params, list[Array]]:
    own_key = noise.key_of_rows(key, first + index, pieces)
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
