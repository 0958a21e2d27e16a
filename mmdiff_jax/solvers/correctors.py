"""Correctors: steps at one time that leave its law as it is, and steps made of others.

Langevin dynamics at noise level sigma, with a step that is a share of the level's own scale,

  x <- x + delta score(x) + sqrt(2 delta) noise,  delta = snr^2 sigma^2,                       (1)

has p_t for its law in the limit of a small snr; on N(0, C) the variance that it reaches is
C / (1 - delta / (2 C)). Song et al. (2021, Alg. 4 and 5) choose delta by norms of a whole batch,
which binds its rows to one another; here sigma stands for them, since score = -eps / sigma.
"""

from collections.abc import Mapping
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mmdiff_jax import multitime, schedules
from mmdiff_jax.solvers.steps import Denoiser, Sample, Solver, Times


def langevin(
  key: PRNGKeyArray,
  denoiser: Denoiser,
  schedule: schedules.Schedule | dict[str, schedules.Schedule],
  x: Sample,
  t: Times,
  moving: Mapping[str, bool | Bool[Array, ""]],
  snr: float | Float[Array, ""] = 0.16,
) -> Sample:
  """One step of (1) for the modalities that move, all at once; one network evaluation.

  Args:
    key: randomness.
    denoiser: `(x, t) -> (x0, eps)`.
    schedule: one schedule, or one for each modality.
    x: points, [batch, ...] each.
    t: their times, scalars.
    moving: for each modality whether it takes the step; the others come out as they were.
    snr: of (1), below about 1.

  Returns:
    The new points.
  """
  _, eps = denoiser(x, t)
  stepped = {}
  for name, value in x.items():
    scale = snr * schedules.schedule_of(schedule, name).sigma(t[name])
    noise = multitime.normal_like(key, name, value)
    step = value - snr * scale * eps[name] + jnp.sqrt(2.0) * scale * noise
    stepped[name] = jnp.where(moving[name], step, value)
  return stepped


@functools.cache
def corrected(solver: Solver, *, num: int = 1, snr: float = 0.16) -> Solver:
  """Predictor-corrector: after each step, `num` steps of `langevin` at the times reached.

  Only what the step has moved is corrected, and nothing at time 0. It costs `num` evaluations more
  for each step but the one that arrives at time 0. The law of a composition of experts at t > 0 is
  not what their summed scores lead to; with corrections it is reached (`guidance.compose`): for two
  Gaussian experts to 2 % in mean and variance by 60 steps with num = 16 and snr = 0.9.

  Args:
    solver: the predictor.
    num: corrections after each step.
    snr: size of their steps, see (1).

  Returns:
    The solver: for the same arguments always the same object.
  """

  def step(key, denoiser, schedule, x, t, s, state):
    predict_key, correct_key = jax.random.split(key)
    x, state = solver.step(predict_key, denoiser, schedule, x, t, s, state)
    moving = {name: (t[name] != s[name]) & (s[name] > 0) for name in x}

    def correct(index, x):
      own_key = jax.random.fold_in(correct_key, index)
      return langevin(own_key, denoiser, schedule, x, s, moving, snr)

    some = jnp.stack(list(moving.values())).any()
    x = jax.lax.cond(some, lambda x: jax.lax.fori_loop(0, num, correct, x), lambda x: x, x)
    return x, state

  return Solver(solver.init, step, lambda n: solver.evaluations(n) + num * (n - 1))
