"""One pure step of each solver of the probability-flow ODE, from the times `t` to `s`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmdiff_jax import schedules
from mmdiff_jax.solvers.moves import (
  extrapolate,
  goes_on,
  is_floating,
  keep_still,
  make_move,
  make_moves,
  Move,
  no_history,
  no_steps_yet,
  one_each,
  remember,
  Sample,
  Solver,
)


def _euler_step(key, denoiser, schedule, x, t, s, state):
  """Euler's step in the angle phi = atan(sigma / alpha), where the flow is regular at both ends.

  With y = x / norm, norm = sqrt(alpha^2 + sigma^2), it reads
  dy/d(phi) = cos(phi) eps - sin(phi) x0 = (alpha eps - sigma x0) / norm.
  """
  del key
  x0, eps = denoiser(x, t)
  moved = {}
  for name, value in x.items():
    modality_schedule = schedules.schedule_of(schedule, name)
    alpha, alpha_s = modality_schedule.alpha(t[name]), modality_schedule.alpha(s[name])
    sigma, sigma_s = modality_schedule.sigma(t[name]), modality_schedule.sigma(s[name])
    turn = jnp.arctan2(sigma_s, alpha_s) - jnp.arctan2(sigma, alpha)
    grown = jnp.hypot(alpha_s, sigma_s) / jnp.hypot(alpha, sigma)
    moved[name] = grown * (value + turn * (alpha * eps[name] - sigma * x0[name]))
  return keep_still(moved, x, t, s), state


euler = Solver(no_history, _euler_step, one_each, stochastic=False)
"""Euler's method on the probability-flow ODE: order 1, N evaluations.

For `VPCosine` it is Euler's method in t. `ddim(0.0)` costs the same and is better in long steps.
"""


def _exponential_euler(move: Move, x, lead):
  """Solves the probability-flow ODE with `lead` held constant over the move.

  In x / sigma it reads d(x / sigma) / d(kappa) = x0, so with x0 held
  x_s = shrink x_t + sigma_s (kappa_s - kappa_t) x0 = shrink x_t + gain x0. At s = 0 this is x0.
  """
  return move.shrink * x + move.gain * lead


def _heun_step(key, denoiser, schedule, x, t, s, state):
  """The trapezoid rule for d(x / sigma) / d(kappa) = x0: x0 at both ends, averaged.

  A modality that arrives at time 0, where kappa is infinite, takes the first-order move instead;
  when all modalities that move arrive there, the second evaluation is left out.
  """
  del key
  moves = make_moves(schedule, x, t, s)
  x0, eps = denoiser(x, t)
  begin = {name: move.lead(x0[name], eps[name]) for name, move in moves.items()}
  guess = {name: _exponential_euler(moves[name], x[name], begin[name]) for name in x}
  guess = keep_still(guess, x, t, s)

  def corrected():
    x0, eps = denoiser(guess, s)
    result = {}
    for name, move in moves.items():
      mean = 0.5 * (begin[name] + move.lead(x0[name], eps[name]))
      second = _exponential_euler(move, x[name], mean)
      moved = jnp.where(move.sigma_s == 0, guess[name], second)
      result[name] = moved if is_floating(x[name]) else x[name]
    return result

  goes_on = jnp.stack([(move.sigma_s != 0) & ~move.held for move in moves.values()]).any()
  moved = jax.lax.cond(goes_on, corrected, lambda: guess)
  return keep_still(moved, x, t, s), state


heun = Solver(no_history, _heun_step, lambda num_steps: 2 * num_steps - 1, stochastic=False)
"""Heun's method on the probability-flow ODE: order 2, 2 N - 1 evaluations (Karras et al. 2022)."""


def _dpmpp_2m_step(key, denoiser, schedule, x, t, s, state):
  """`_exponential_euler` with x0 in the middle of the move."""
  del key
  x0, eps = denoiser(x, t)
  moved, history = {}, {}
  for name, value in x.items():
    move = make_move(schedule, name, t, s)
    middle, history[name] = extrapolate(move, move.lead(x0[name], eps[name]), state[name])
    moved[name] = _exponential_euler(move, value, middle)
  return keep_still(moved, x, t, s), history


dpmpp_2m = Solver(no_steps_yet, _dpmpp_2m_step, one_each, stochastic=False)
"""DPM-Solver++(2M) on the probability-flow ODE: order 2, N evaluations (Lu et al. 2022, Alg. 2)."""


class _Prediction(NamedTuple):
  """The state that `_unipc_step` keeps of one modality's previous move.

  Attributes:
    lead: `lead` at the move's start.
    expected: the polynomial of the prediction, at the move's end.
    weight: weight of the error in `expected`, in the correction.
    length: length of the move in log(kappa); inf where there was none.
  """

  lead: Array
  expected: Array
  weight: Array
  length: Array


def _nothing_predicted(x: Sample) -> dict[str, _Prediction]:
  return {
    name: _Prediction(
      jnp.zeros_like(value), jnp.zeros_like(value), jnp.array(0.0), jnp.array(jnp.inf)
    )
    for name, value in x.items()
  }


def _unipc_step(key, denoiser, schedule, x, t, s, state):
  """Two-step prediction, and correction of the previous prediction, with one evaluation for both.

  On a move of length h the solution is x_s = shrink x_t + alpha_s int_0^h e^(u - h) x0(u) du. The
  prediction puts the line through x0 at t and one step before, h_1 long, into the integral:

    int e^(u - h) du = 1 - e^(-h),  I_1 = int u e^(u - h) du = h - (1 - e^(-h)),
    I_2 = int u^2 e^(u - h) du = h^2 - 2 I_1.

  Once x0 is available at s, too, the parabola through all three differs from the line by
  (x0_s - line(h)) u (u + h_1) / (h (h + h_1)), so that the correction is

    alpha_s (I_2 + h_1 I_1) / (h (h + h_1)) (x0_s - line(h)).

  Without a previous step, the line is replaced by a constant: h_1 goes to infinity. That is also
  done where some modality starts or stops, since x0 of the others has a kink there.
  """
  del key
  x0, eps = denoiser(x, t)
  moves = make_moves(schedule, x, t, s)
  kink = jnp.stack([jnp.isfinite(state[n].length) == move.held for n, move in moves.items()]).any()
  moved, kept = {}, {}
  for name, value in x.items():
    move, before = moves[name], state[name]
    lead = move.lead(x0[name], eps[name])
    # A move so short that log_snr does not change is, like an infinite one, first-order.
    follows, finite = goes_on(move, before.length), jnp.isfinite(move.length) & (move.length != 0)
    correction = jnp.where(follows, before.weight, 0) * (lead - before.expected)
    second = follows & finite & ~kink
    h, h_1 = (
      jnp.where(finite, jnp.abs(move.length), 1),
      jnp.where(second, jnp.abs(before.length), 1),
    )
    slope = jnp.where(second, (lead - before.lead) / h_1, 0)
    i_1 = h + jnp.expm1(-h)
    # The small terms are summed first: separately they would be rounded off on short moves.
    change = move.gain * lead + (move.alpha_s * i_1 * slope + move.shrink * correction)
    moved[name] = move.shrink * value + change
    weight = jnp.where(second, (h**2 - 2 * i_1 + h_1 * i_1) / (h + h_1), i_1) / h
    dtype = before.lead.dtype
    kept[name] = _Prediction(
      lead.astype(dtype),
      (lead + h * slope).astype(dtype),
      jnp.where(finite, move.alpha_s * weight, 0).astype(before.weight.dtype),
      remember(move, before.length),
    )
  return keep_still(moved, x, t, s), kept


unipc = Solver(_nothing_predicted, _unipc_step, one_each, stochastic=False)
"""UniPC-2 on the probability-flow ODE: order 3, N evaluations (Zhao et al. 2023, Alg. 1 and 2).

The polynomials are integrated exactly (B_2 of the paper with varying coefficients). The last point
of a path is a prediction that is not corrected.
"""
