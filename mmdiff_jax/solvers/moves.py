"""Moves of one modality between two times, and what all solvers have in common.

Each move is written for one modality and derived where it is defined; the steps apply it to dicts
and leave a modality whose time does not move unchanged, bit for bit. A denoiser gives both x0 and
eps, and with

  kappa = alpha / sigma,  h = log(kappa_s / kappa_t),  shrink = sigma_s / sigma_t,
  gain = alpha_s (1 - exp(-h)) = alpha_s - alpha_t shrink                                       (1)

no falling move divides by alpha(t), which may be 0 at t = 1, or by sigma(s), which is 0 at s = 0.

Data and noise play equivalent roles in x = alpha x0 + sigma eps. So a rising move along the ODE
(which encodes) is a falling one with alpha and sigma, and x0 and eps, exchanged, and does not
divide by sigma(0) or alpha(1) either. Solvers of the SDE re-noise where times rise (RePaint): that
is a draw from q(x_s | x_t), which is exact for moves of any length.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmdiff_jax import schedules
from mmdiff_jax.diffusion import Sample

Times = Mapping[str, Float[Array, ""]]


class Solver(NamedTuple):
  """A pair of pure functions that make a solver, and its cost.

  Attributes:
    init: `(x) -> state`: the history of a multistep method before its first step.
    step: `(key, denoiser, schedule, x, t, s, state) -> (x, state)`; t and s are dicts of scalars.
    evaluations: `(num_steps) -> int`: network evaluations for that many steps to time 0.
    stochastic: whether it solves the SDE, so that it re-noises where times rise. False for a solver
      of the probability-flow ODE, which encodes there.
  """

  init: Callable[[Sample], Any]
  step: Callable[..., tuple[Sample, Any]]
  evaluations: Callable[[int], int]
  stochastic: bool = True


def check_solver(where: str, solver: Any) -> None:
  """Checks that a value is a solver.

  Raises:
    TypeError: it is a name, a function that makes a solver and was not called, or anything else.
  """
  if not isinstance(solver, Solver):
    called = " Call it to make one, as in solvers.ddim(0.0)." if callable(solver) else ""
    raise TypeError(f"{where}: solver={solver!r} must be a Solver, such as solvers.heun.{called}")


class Move(NamedTuple):
  """One modality's move: alpha and sigma at its ends, exchanged where it rises.

  Where the time stands still these are the values of some other move: its result is discarded, and
  no infinity reaches a gradient.
  """

  alpha_t: Array
  sigma_t: Array
  alpha_s: Array
  sigma_s: Array
  length: Array  # of log(kappa), negative where it rises
  rises: Array
  held: Array

  @property
  def shrink(self):
    """The factor of x_t in the solution with x0 held constant; see (1)."""
    return self.sigma_s / self.sigma_t

  @property
  def gain(self):
    """The factor of x0 in the solution with x0 held constant; see (1)."""
    return self.alpha_s - self.alpha_t * self.shrink

  @property
  def fresh(self):
    """1 - exp(-2 |h|), the fraction of the variance at s that is new: 1 on the move to time 0."""
    return jnp.maximum(1 - (self.shrink * self.alpha_t / self.alpha_s) ** 2, 0)

  def lead(self, x0, eps):
    """Returns the integrand of a step of the ODE: x0 where the time falls, eps where it rises."""
    return jnp.where(self.rises, eps, x0)


def _log_snr(schedule, t):
  """`log_snr`, with a gradient of 0 where it is infinite."""
  clean, absent = schedule.sigma(t) == 0, schedule.alpha(t) == 0
  inside = schedule.log_snr(jnp.where(clean | absent, 0.5, t))
  return jnp.where(clean, jnp.inf, jnp.where(absent, -jnp.inf, inside))


def make_move(schedule: Any, name: str, t: Times, s: Times) -> Move:
  """Returns the move of one modality from its time in `t` to its time in `s`."""
  schedule = schedules.schedule_of(schedule, name)
  held = t[name] == s[name]
  begin, end = jnp.where(held, 0.6, t[name]), jnp.where(held, 0.4, s[name])
  rises = end > begin
  data, noise = (
    (schedule.alpha(begin), schedule.alpha(end)),
    (schedule.sigma(begin), schedule.sigma(end)),
  )
  alpha_t, alpha_s = (jnp.where(rises, n, d) for d, n in zip(data, noise, strict=True))
  sigma_t, sigma_s = (jnp.where(rises, d, n) for d, n in zip(data, noise, strict=True))
  length = 0.5 * (_log_snr(schedule, end) - _log_snr(schedule, begin))
  return Move(alpha_t, sigma_t, alpha_s, sigma_s, length, rises, held)


def make_moves(schedule, x: Sample, t: Times, s: Times) -> dict[str, Move]:
  """Returns the moves of all modalities."""
  return {name: make_move(schedule, name, t, s) for name in x}


def keep_still(moved: Sample, x: Sample, t: Times, s: Times) -> Sample:
  """Returns `moved`, but `x` itself, bit for bit, where a time does not move."""
  # Integers always stand still (`sampling.start`), and stay integers for the network.
  return {
    name: jnp.where(t[name] == s[name], value, moved[name]) if is_floating(value) else value
    for name, value in x.items()
  }


def is_floating(x: Array) -> bool:
  """Returns whether the values can move: integers and booleans stand still."""
  return jnp.issubdtype(x.dtype, jnp.floating)


def no_history(x: Sample) -> tuple[()]:
  """The `init` of a single-step method."""
  del x
  return ()


def one_each(num_steps: int) -> int:
  """The `evaluations` of a method with one network evaluation for each step."""
  return num_steps


class History(NamedTuple):
  """The history of one modality: `lead` of the previous step, and its length in log(kappa).

  The length is inf where there was no such step, which makes the next one first-order.
  """

  lead: Array
  length: Array


def no_steps_yet(x: Sample) -> dict[str, History]:
  """The `init` of a method that remembers one step."""
  return {name: History(jnp.zeros_like(value), jnp.array(jnp.inf)) for name, value in x.items()}


def goes_on(move: Move, before: Array) -> Bool[Array, ""]:
  """Returns whether the previous move has finite length and the same direction."""
  return jnp.isfinite(before) & (move.length * before > 0)


def remember(move: Move, length: Array) -> Array:
  """Returns the length of a move for the history, in the type of `length`."""
  # A pause ends the history: while a modality stood still the others moved, and its x0 with them,
  # so that the slope from its old x0 would be wrong.
  return jnp.where(move.held, jnp.inf, move.length).astype(length.dtype)


def extrapolate(move: Move, lead, history: History):
  """Returns `lead` in the middle of the move, linearly extrapolated in log(kappa), and the history.

  The first move of a modality is first-order, and so are one of infinite length (to time 0, or from
  alpha = 0) and the next one after it.
  """
  second = goes_on(move, history.length) & jnp.isfinite(move.length)
  ratio = jnp.where(second, move.length, 0) / jnp.where(second, history.length, 1)
  middle = lead + 0.5 * ratio * (lead - history.lead)
  return middle, History(lead.astype(history.lead.dtype), remember(move, history.length))
