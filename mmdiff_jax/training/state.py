"""The state that a stage's training carries from step to step, and its optimiser."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mmdiff_jax.frameworks.base import Params, TrainConfig


@flax.struct.dataclass
class TrainState:
  """The state of one stage; frozen entries stay outside.

  Attributes:
    step: optimiser steps taken.
    params: the entries that the stage trains.
    ema: their EMA, which later stages and sampling use.
    opt_state: the optimiser's moments.
  """

  # The leaves may also be shapes, shardings or layouts, so that no field has a narrower type.
  step: Any
  params: Any
  ema: Any
  opt_state: Any


def learning_rate(settings: TrainConfig) -> optax.Schedule:
  """Returns a linear warm-up from 0, then a cosine to `final` times the peak at the last step."""
  warmup = min(settings.warmup, settings.steps)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, settings.learning_rate, warmup),
      optax.cosine_decay_schedule(
        settings.learning_rate, max(settings.steps - warmup, 1), settings.final
      ),
    ],
    [warmup],
  )


def optimizer(settings: TrainConfig) -> optax.GradientTransformation:
  """Returns AdamW (Loshchilov and Hutter, 2019) on gradients whose global norm is clipped."""
  adamw = optax.adamw(learning_rate(settings), b2=settings.b2, weight_decay=settings.weight_decay)
  if not settings.clip:
    return adamw
  return optax.chain(optax.clip_by_global_norm(settings.clip), adamw)


def create(params: Params, tx: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step; the EMA starts at the parameters themselves."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # A copy, since the train function donates its state and no buffer can be donated twice.
    ema=jax.tree.map(jnp.copy, params),
    opt_state=tx.init(params),
  )


def apply_gradients(
  state: TrainState, grads: Params, tx: optax.GradientTransformation, ema_decay: float
) -> TrainState:
  """Takes one optimiser step, then updates the EMA, `ema <- d ema + (1 - d) params`.

  At step n (from 0) `d = min(ema_decay, (1 + n) / (10 + n))`, so that the first parameters are
  forgotten quickly, whatever the decay.
  """
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  n = state.step.astype(jnp.float32)
  decay = jnp.minimum(ema_decay, (1.0 + n) / (10.0 + n))
  ema = jax.tree.map(lambda mean, new: mean + (1.0 - decay) * (new - mean), state.ema, params)
  return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
