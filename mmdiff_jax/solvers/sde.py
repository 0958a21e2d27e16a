"""One pure step of each solver of the reverse SDE, from the times `t` to `s`; and DDIM."""

import functools

import jax.numpy as jnp

from mmdiff_jax import arguments, noise as noise_lib, prediction, schedules
from mmdiff_jax.solvers.moves import (
  extrapolate,
  keep_still,
  make_move,
  Move,
  no_history,
  no_steps_yet,
  one_each,
  Sample,
  Solver,
)


def _draw_noise(key, x: Sample) -> Sample:
  return {name: noise_lib.normal_like(key, name, value) for name, value in x.items()}


def _renoise(move: Move, x, noise):
  """Draws from q(x_s | x_t) for a rising move (in which alpha and sigma are exchanged)."""
  return move.shrink * x + move.alpha_s * prediction.root(move.fresh) * noise


def _euler_maruyama_step(key, denoiser, schedule, x, t, s, state):
  """x_s = x_t + (s - t) (f x_t - g^2 score) + g sqrt(t - s) noise, with score = -eps / sigma.

  On arrival at time 0 it is x0 instead, the mean, without fresh noise. A move that starts above the
  schedule's `t_max` starts from `t_max` instead; a modality held at 1 is passed at time 1.
  """
  by_name = {name: schedules.schedule_of(schedule, name) for name in x}
  start = {
    name: jnp.where(t[name] == s[name], t[name], jnp.minimum(t[name], by_name[name].t_max))
    for name in x
  }
  x0, eps = denoiser(x, start)
  noise = _draw_noise(key, x)
  moved = {}
  for name, value in x.items():
    move = make_move(schedule, name, t, s)
    # The equation is that of a falling move; for others any time will do.
    falls = ~(move.held | move.rises)
    begin = jnp.where(falls, jnp.minimum(t[name], by_name[name].t_max), 0.5)
    span = jnp.where(falls, jnp.maximum(begin - s[name], 0), 0.25)
    g = by_name[name].diffusion(begin)
    score = -eps[name] / by_name[name].sigma(begin)
    drift = by_name[name].drift(begin) * value - g**2 * score
    step = value - span * drift + g * jnp.sqrt(span) * noise[name]
    fallen = jnp.where(s[name] == 0, x0[name], step)
    moved[name] = jnp.where(move.rises, _renoise(move, value, noise[name]), fallen)
  return keep_still(moved, x, t, s), state


euler_maruyama = Solver(no_history, _euler_maruyama_step, one_each)
"""Euler-Maruyama on the reverse SDE: weak order 1, N evaluations (Song et al. 2021, Eq. 6)."""


def _posterior(move: Move, x, x0, scale, noise):
  """Draws from q(x_s | x_t, x_0) at x_0 = x0, in steps of any length (Ho et al. 2020, Eq. 6-7).

  Its mean is (alpha_t / alpha_s) shrink^2 x_t + alpha_s (1 - exp(-2 h)) x0, and its standard
  deviation is scale sqrt(1 - exp(-2 h)).
  """
  mean = move.alpha_t / move.alpha_s * move.shrink**2 * x + move.alpha_s * move.fresh * x0
  drawn = mean + scale * prediction.root(move.fresh) * noise
  return jnp.where(move.rises, _renoise(move, x, noise), drawn)


def _ancestral_step(key, denoiser, schedule, x, t, s, state, *, large):
  x0, _ = denoiser(x, t)
  noise = _draw_noise(key, x)
  moved = {}
  for name, value in x.items():
    move = make_move(schedule, name, t, s)
    scale = jnp.where(move.sigma_s == 0, 0, move.sigma_t) if large else move.sigma_s
    moved[name] = _posterior(move, value, x0[name], scale, noise[name])
  return keep_still(moved, x, t, s), state


ancestral = Solver(no_history, functools.partial(_ancestral_step, large=False), one_each)
"""DDPM's ancestral sampling: weak order 1, N evaluations.

Its variance is btilde = sigma_s^2 (1 - exp(-2 h)), that of q(x_s | x_t, x_0), and 0 at s = 0. With
few steps its samples are too narrow: 50 keep about .9 of a Gaussian's variance, 13 about .7.
"""


ancestral_large = Solver(no_history, functools.partial(_ancestral_step, large=True), one_each)
"""`ancestral` with DDPM's other variance, beta = sigma_t^2 (1 - exp(-2 h)), but 0 at s = 0."""


def ddim(eta: int | float = 0.0) -> Solver:
  """DDIM: order 1 (weak for eta > 0), N evaluations (Song, Meng and Ermon 2021, Eq. 12 and 16).

  x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c noise with c^2 = eta^2 btilde. `ddim(0.0)` is the
  exponential Euler step on the probability-flow ODE, `ddim(1.0)` is `ancestral`.

  Args:
    eta: fraction of the noise, in [0, 1].

  Returns:
    The solver: for one `eta` always the same object, so that it may be a static argument.

  Raises:
    TypeError: `eta` is not a number.
    ValueError: `eta` is outside [0, 1].
  """
  return _ddim(arguments.scalar("ddim", "eta", eta, 0, 1))


@functools.cache
def _ddim(eta):
  def deterministic(key, denoiser, schedule, x, t, s, state):
    del key
    x0, eps = denoiser(x, t)
    moved = {}
    for name in x:
      modality_schedule = schedules.schedule_of(schedule, name)
      moved[name] = (
        modality_schedule.alpha(s[name]) * x0[name] + modality_schedule.sigma(s[name]) * eps[name]
      )
    return keep_still(moved, x, t, s), state

  def stochastic(key, denoiser, schedule, x, t, s, state):
    x0, eps = denoiser(x, t)
    noise = _draw_noise(key, x)
    moved = {}
    for name, value in x.items():
      move = make_move(schedule, name, t, s)
      part = eta**2 * move.fresh
      direction = prediction.root(1 - part) * eps[name] + prediction.root(part) * noise[name]
      fallen = move.alpha_s * x0[name] + move.sigma_s * direction
      moved[name] = jnp.where(move.rises, _renoise(move, value, noise[name]), fallen)
    return keep_still(moved, x, t, s), state

  step = stochastic if eta else deterministic
  return Solver(no_history, step, one_each, stochastic=bool(eta))


def _sde_dpmpp_2m_step(key, denoiser, schedule, x, t, s, state):
  """`ancestral` with x0 in the middle of the move."""
  x0, _ = denoiser(x, t)
  noise = _draw_noise(key, x)
  moved, history = {}, {}
  for name, value in x.items():
    move = make_move(schedule, name, t, s)
    middle, history[name] = extrapolate(move, x0[name], state[name])
    moved[name] = _posterior(move, value, middle, move.sigma_s, noise[name])
  return keep_still(moved, x, t, s), history


sde_dpmpp_2m = Solver(no_steps_yet, _sde_dpmpp_2m_step, one_each)
"""SDE-DPM-Solver++(2M) on the reverse SDE: N evaluations (Lu et al. 2022, Sec. 5.2)."""
