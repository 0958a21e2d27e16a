"""The atoms: one pure step of each solver, from the times `t` to the times `s`.

Each move is written for one modality and derived where it stands; `_lift` takes it to dicts and
leaves a modality whose time does not move bit for bit as it was. A denoiser gives both x0 and eps,
and with

  kappa = alpha / sigma,  h = log(kappa_s / kappa_t),  shrink = sigma_s / sigma_t,
  gain = alpha_s (1 - exp(-h)) = alpha_s - alpha_t shrink                                       (1)

no move divides by alpha(t), which may be 0 at t = 1, or by sigma(s), which is 0 at s = 0.

Times fall here (s <= t). Rising moves (encoding, resampling) are not among these steps yet.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax import multitime, schedules

Sample = dict[str, Float[Array, "batch ..."]]
Times = Mapping[str, Float[Array, ""]]
Denoiser = Callable[..., tuple[Sample, Sample]]


class Solver(NamedTuple):
  """A solver is a pair of pure functions, and what it costs.

  Attributes:
    init: `(x) -> state`: the history of a multistep method before its first step.
    step: `(key, denoiser, schedule, x, t, s, state) -> (x, state)`; t and s are dicts of scalars.
    evaluations: `(num_steps) -> int`: network evaluations of so many steps of a path to time 0.
  """

  init: Callable[[Sample], Any]
  step: Callable[..., tuple[Sample, Any]]
  evaluations: Callable[[int], int]


class _Coefficients(NamedTuple):
  """alpha and sigma at the ends of a move, and what (1) makes of them."""

  alpha_t: Array
  sigma_t: Array
  alpha_s: Array
  sigma_s: Array

  @property
  def shrink(self):
    # sigma(t) is 0 only where the time does not move, and that move is thrown away.
    return self.sigma_s / jnp.where(self.sigma_t == 0, 1, self.sigma_t)

  @property
  def gain(self):
    return self.alpha_s - self.alpha_t * self.shrink

  @property
  def snr_ratio(self):
    """exp(-2 h) = SNR_t / SNR_s: 0 on the move to time 0."""
    return (self.shrink * self.alpha_t / jnp.where(self.alpha_s == 0, 1, self.alpha_s)) ** 2


def _coefficients(schedule, name, t, s) -> _Coefficients:
  own = schedules.schedule_of(schedule, name)
  return _Coefficients(
    own.alpha(t[name]), own.sigma(t[name]), own.alpha(s[name]), own.sigma(s[name])
  )


def _keep_still(moved: Sample, x: Sample, t: Times, s: Times) -> Sample:
  return {name: jnp.where(t[name] == s[name], x[name], moved[name]) for name in x}


def _no_history(x: Sample) -> tuple[()]:
  del x
  return ()


def _one_each(num_steps: int) -> int:
  return num_steps


# ---------------------------------------------------------------------------- deterministic


def _exponential_euler(c: _Coefficients, x, x0):
  """The probability-flow ODE with x0 held over the move.

  In x / sigma it reads d(x / sigma) / d(kappa) = x0, so with x0 held
  x_s = shrink x_t + sigma_s (kappa_s - kappa_t) x0 = shrink x_t + gain x0. At s = 0 this is x0.
  """
  return c.shrink * x + c.gain * x0


def _heun_step(key, denoiser, schedule, x, t, s, state):
  """The trapezoid rule for d(x / sigma) / d(kappa) = x0: x0 at both ends, averaged.

  A modality that arrives at time 0, where kappa is infinite, takes the first-order move instead;
  when all that move arrive there, the second evaluation is left out.
  """
  del key
  x0, _ = denoiser(x, t)
  c = {name: _coefficients(schedule, name, t, s) for name in x}
  guess = {name: _exponential_euler(c[name], x[name], x0[name]) for name in x}
  guess = _keep_still(guess, x, t, s)

  def corrected():
    end, _ = denoiser(guess, s)
    return {
      name: jnp.where(
        s[name] == 0,
        guess[name],
        _exponential_euler(c[name], x[name], 0.5 * (x0[name] + end[name])),
      )
      for name in x
    }

  goes_on = jnp.stack([(s[name] > 0) & (t[name] != s[name]) for name in x]).any()
  moved = jax.lax.cond(goes_on, corrected, lambda: guess)
  return _keep_still(moved, x, t, s), state


heun = Solver(_no_history, _heun_step, lambda num_steps: 2 * num_steps - 1)
"""Heun's method on the probability-flow ODE: order 2, 2 N - 1 evaluations (Karras et al. 2022)."""


class _History(NamedTuple):
  """Of one modality: x0 of the step before, and that step's length in log(kappa).

  The length is inf where there was no such step, which makes the next one first-order.
  """

  x0: Array
  length: Array


def _no_steps_yet(x: Sample) -> dict[str, _History]:
  return {name: _History(jnp.zeros_like(value), jnp.array(jnp.inf)) for name, value in x.items()}


def _dpmpp_2m_step(key, denoiser, schedule, x, t, s, state):
  """`_exponential_euler` with x0 extrapolated to the middle of the move, linearly in log(kappa).

  The first move of a modality is of first order, and so is one of infinite length (to time 0, or
  from alpha = 0) and the next one after it.
  """
  del key
  x0, _ = denoiser(x, t)
  moved, history = {}, {}
  for name, value in x.items():
    log_snr = schedules.schedule_of(schedule, name).log_snr
    held = t[name] == s[name]
    # Other times where the time stands still, lest inf - inf reach gradients as NaN.
    start, end = jnp.where(held, 0.6, t[name]), jnp.where(held, 0.4, s[name])
    length = 0.5 * (log_snr(end) - log_snr(start))
    before = state[name].length
    first_order = ~(jnp.isfinite(length) & jnp.isfinite(before))
    ratio = jnp.where(first_order, 0, length) / jnp.where(first_order, 1, before)
    middle = x0[name] + 0.5 * ratio * (x0[name] - state[name].x0)
    moved[name] = _exponential_euler(_coefficients(schedule, name, t, s), value, middle)
    # A pause ends the history: while a modality stood still the others moved, and its x0 with
    # them, so that the slope to its old x0 would be wrong.
    length = jnp.where(held, jnp.inf, length).astype(before.dtype)
    history[name] = _History(x0[name].astype(value.dtype), length)
  return _keep_still(moved, x, t, s), history


dpmpp_2m = Solver(_no_steps_yet, _dpmpp_2m_step, _one_each)
"""DPM-Solver++(2M) on the probability-flow ODE: order 2, N evaluations (Lu et al. 2022, Alg. 2)."""


# ---------------------------------------------------------------------------- stochastic


def _noise(key, x: Sample) -> Sample:
  return {name: multitime.normal_like(key, name, value) for name, value in x.items()}


def _euler_maruyama_step(key, denoiser, schedule, x, t, s, state):
  """x_s = x_t + (s - t) (f x_t - g^2 score) + g sqrt(t - s) noise, with score = -eps / sigma.

  Arriving at time 0 it is x0 instead, the mean, without fresh noise. A move that starts above the
  schedule's `t_max` is made from there; what is held at 1 is shown at 1.
  """
  own = {name: schedules.schedule_of(schedule, name) for name in x}
  start = {
    name: jnp.where(t[name] == s[name], t[name], jnp.minimum(t[name], own[name].t_max))
    for name in x
  }
  x0, eps = denoiser(x, start)
  noise = _noise(key, x)
  moved = {}
  for name, value in x.items():
    # From here on the time may be any where it stands still, but f and g must be finite.
    begin = jnp.minimum(t[name], own[name].t_max)
    span = jnp.maximum(begin - s[name], 0)
    sigma, g = own[name].sigma(begin), own[name].diffusion(begin)
    score = -eps[name] / jnp.where(sigma == 0, 1, sigma)
    drift = own[name].drift(begin) * value - g**2 * score
    step = value - span * drift + g * jnp.sqrt(span) * noise[name]
    moved[name] = jnp.where(s[name] == 0, x0[name], step)
  return _keep_still(moved, x, t, s), state


euler_maruyama = Solver(_no_history, _euler_maruyama_step, _one_each)
"""Euler-Maruyama on the reverse SDE: order 1 in law, N evaluations (Song et al. 2021, Eq. 6)."""


def _ancestral_step(key, denoiser, schedule, x, t, s, state):
  """A draw from q(x_s | x_t, x_0) at x_0 = x0, in steps of any length (Ho et al. 2020, Eq. 6-7).

  Mean (alpha_t / alpha_s) shrink^2 x_t + alpha_s (1 - snr_ratio) x0, variance
  btilde = sigma_s^2 (1 - snr_ratio), which is 0 at s = 0.
  """
  x0, _ = denoiser(x, t)
  noise = _noise(key, x)
  moved = {}
  for name, value in x.items():
    c = _coefficients(schedule, name, t, s)
    fresh = 1 - c.snr_ratio
    fall = c.alpha_t / jnp.where(c.alpha_s == 0, 1, c.alpha_s)
    mean = fall * c.shrink**2 * value + c.alpha_s * fresh * x0[name]
    moved[name] = mean + c.sigma_s * jnp.sqrt(fresh) * noise[name]
  return _keep_still(moved, x, t, s), state


ancestral = Solver(_no_history, _ancestral_step, _one_each)
"""DDPM's ancestral sampling with variance btilde: order 1 in law, N evaluations."""


@functools.cache
def ddim(eta: float = 0.0) -> Solver:
  """DDIM: order 1 (for eta > 0 in law), N evaluations (Song, Meng and Ermon 2021, Eq. 12 and 16).

  x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c noise with c^2 = eta^2 btilde. `ddim(0.0)` is the
  exponential Euler step on the probability-flow ODE, `ddim(1.0)` is `ancestral`.

  Args:
    eta: share of the noise, in [0, 1].

  Returns:
    The solver: for one `eta` always the same object, so that it may be a static argument.
  """

  def step(key, denoiser, schedule, x, t, s, state):
    x0, eps = denoiser(x, t)
    noise = _noise(key, x) if eta else x0  # at no weight
    moved = {}
    for name in x:
      c = _coefficients(schedule, name, t, s)
      share = eta**2 * (1 - c.snr_ratio)
      direction = jnp.sqrt(1 - share) * eps[name] + jnp.sqrt(share) * noise[name]
      moved[name] = c.alpha_s * x0[name] + c.sigma_s * direction
    return _keep_still(moved, x, t, s), state

  return Solver(_no_history, step, _one_each)
