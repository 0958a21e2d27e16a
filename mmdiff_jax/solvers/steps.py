"""One pure step of each solver, from the times `t` to the times `s`.

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
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from mmdiff_jax import arguments, multitime, prediction, schedules

Sample = dict[str, Float[Array, "batch ..."]]
Times = Mapping[str, Float[Array, ""]]
Denoiser = Callable[..., tuple[Sample, Sample]]


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


def check_shapes(
  network: str, predicted: Any, x: Mapping[str, Array], *, branches: bool = False
) -> None:
  """Checks that the output of a function has an array for each modality, of the right shape.

  With `branches` it may have one more leading axis, as for `guidance.mix`.

  Raises:
    TypeError: the output is not a dict.
    ValueError: a modality is left out, or has another shape than in `x`.
  """
  if not isinstance(predicted, Mapping):
    raise TypeError(
      f"{network} returned {type(predicted).__name__} where a dict with an array for each modality"
      f" is needed: {sorted(x)}."
    )
  for name, value in x.items():
    if name not in predicted:
      raise ValueError(
        f"{network} returned nothing for modality {name!r}, only {sorted(predicted)}. It must"
        " return an array for each modality."
      )
    shape = jnp.shape(predicted[name])
    if value.shape not in (shape, shape[1:] if branches else shape):
      raise ValueError(
        f"{network} returned shape {shape} for modality {name!r}, whose values have shape"
        f" {value.shape}; they must be the same."
      )


def _pair(denoiser, x, t):
  pair = denoiser(x, t)
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise TypeError(
      f"denoiser returned {type(pair).__name__} where the pair (x0, eps) is needed. Make one of a"
      " network with solvers.from_eps, from_x0, from_v, from_score or from_velocity."
    )
  for kind, values in zip(("x0", "eps"), pair, strict=True):
    check_shapes(f"denoiser, for {kind},", values, x)
  return tuple(map(dict, pair))


def checked(where: str, denoiser: Any, argument: str = "denoiser") -> Partial:
  """Returns a denoiser whose results are checked while it is traced.

  Args:
    where: the function that takes it, for the message.
    denoiser: `(x, t) -> (x0, eps)`.
    argument: the argument of that function, for the message.

  Raises:
    TypeError: it is not a function; when it is called, it does not return a pair of dicts.
    ValueError: when it is called, a modality is left out or has another shape than in `x`.
  """
  return Partial(_pair, arguments.function(where, argument, denoiser))


class _Move(NamedTuple):
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
    return self.sigma_s / self.sigma_t

  @property
  def gain(self):
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


def _move(schedule, name, t, s) -> _Move:
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
  return _Move(alpha_t, sigma_t, alpha_s, sigma_s, length, rises, held)


def _moves(schedule, x: Sample, t: Times, s: Times) -> dict[str, _Move]:
  return {name: _move(schedule, name, t, s) for name in x}


def _keep_still(moved: Sample, x: Sample, t: Times, s: Times) -> Sample:
  # Integers always stand still (`sampling.start`), and stay integers for the network.
  return {
    name: jnp.where(t[name] == s[name], value, moved[name]) if is_floating(value) else value
    for name, value in x.items()
  }


def is_floating(x: Array) -> bool:
  """Returns whether the values can move: integers and booleans stand still."""
  return jnp.issubdtype(x.dtype, jnp.floating)


def _no_history(x: Sample) -> tuple[()]:
  del x
  return ()


def _one_each(num_steps: int) -> int:
  return num_steps


# ---------------------------------------------------------------------------- deterministic


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
  return _keep_still(moved, x, t, s), state


euler = Solver(_no_history, _euler_step, _one_each, stochastic=False)
"""Euler's method on the probability-flow ODE: order 1, N evaluations.

For `VPCosine` it is Euler's method in t. `ddim(0.0)` costs the same and is better in long steps.
"""


def _exponential_euler(move: _Move, x, lead):
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
  moves = _moves(schedule, x, t, s)
  x0, eps = denoiser(x, t)
  begin = {name: move.lead(x0[name], eps[name]) for name, move in moves.items()}
  guess = {name: _exponential_euler(moves[name], x[name], begin[name]) for name in x}
  guess = _keep_still(guess, x, t, s)

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
  return _keep_still(moved, x, t, s), state


heun = Solver(_no_history, _heun_step, lambda num_steps: 2 * num_steps - 1, stochastic=False)
"""Heun's method on the probability-flow ODE: order 2, 2 N - 1 evaluations (Karras et al. 2022)."""


class _History(NamedTuple):
  """The history of one modality: `lead` of the previous step, and its length in log(kappa).

  The length is inf where there was no such step, which makes the next one first-order.
  """

  lead: Array
  length: Array


def _no_steps_yet(x: Sample) -> dict[str, _History]:
  return {name: _History(jnp.zeros_like(value), jnp.array(jnp.inf)) for name, value in x.items()}


def _goes_on(move: _Move, before: Array) -> Bool[Array, ""]:
  """Returns whether the previous move has finite length and the same direction."""
  return jnp.isfinite(before) & (move.length * before > 0)


def _remembered(move: _Move, length: Array) -> Array:
  # A pause ends the history: while a modality stood still the others moved, and its x0 with them,
  # so that the slope from its old x0 would be wrong.
  return jnp.where(move.held, jnp.inf, move.length).astype(length.dtype)


def _middle(move: _Move, lead, history: _History):
  """Returns `lead` in the middle of the move, linearly extrapolated in log(kappa), and the history.

  The first move of a modality is first-order, and so are one of infinite length (to time 0, or from
  alpha = 0) and the next one after it.
  """
  second = _goes_on(move, history.length) & jnp.isfinite(move.length)
  ratio = jnp.where(second, move.length, 0) / jnp.where(second, history.length, 1)
  middle = lead + 0.5 * ratio * (lead - history.lead)
  return middle, _History(lead.astype(history.lead.dtype), _remembered(move, history.length))


def _dpmpp_2m_step(key, denoiser, schedule, x, t, s, state):
  """`_exponential_euler` with x0 in the middle of the move."""
  del key
  x0, eps = denoiser(x, t)
  moved, history = {}, {}
  for name, value in x.items():
    move = _move(schedule, name, t, s)
    middle, history[name] = _middle(move, move.lead(x0[name], eps[name]), state[name])
    moved[name] = _exponential_euler(move, value, middle)
  return _keep_still(moved, x, t, s), history


dpmpp_2m = Solver(_no_steps_yet, _dpmpp_2m_step, _one_each, stochastic=False)
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
  moves = _moves(schedule, x, t, s)
  kink = jnp.stack([jnp.isfinite(state[n].length) == move.held for n, move in moves.items()]).any()
  moved, kept = {}, {}
  for name, value in x.items():
    move, before = moves[name], state[name]
    lead = move.lead(x0[name], eps[name])
    # A move so short that log_snr does not change is, like an infinite one, first-order.
    follows, finite = _goes_on(move, before.length), jnp.isfinite(move.length) & (move.length != 0)
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
      _remembered(move, before.length),
    )
  return _keep_still(moved, x, t, s), kept


unipc = Solver(_nothing_predicted, _unipc_step, _one_each, stochastic=False)
"""UniPC-2 on the probability-flow ODE: order 3, N evaluations (Zhao et al. 2023, Alg. 1 and 2).

The polynomials are integrated exactly (B_2 of the paper with varying coefficients). The last point
of a path is a prediction that is not corrected.
"""


# ---------------------------------------------------------------------------- stochastic


def _noise(key, x: Sample) -> Sample:
  return {name: multitime.normal_like(key, name, value) for name, value in x.items()}


def _renoise(move: _Move, x, noise):
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
  noise = _noise(key, x)
  moved = {}
  for name, value in x.items():
    move = _move(schedule, name, t, s)
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
  return _keep_still(moved, x, t, s), state


euler_maruyama = Solver(_no_history, _euler_maruyama_step, _one_each)
"""Euler-Maruyama on the reverse SDE: weak order 1, N evaluations (Song et al. 2021, Eq. 6)."""


def _posterior(move: _Move, x, x0, scale, noise):
  """Draws from q(x_s | x_t, x_0) at x_0 = x0, in steps of any length (Ho et al. 2020, Eq. 6-7).

  Its mean is (alpha_t / alpha_s) shrink^2 x_t + alpha_s (1 - exp(-2 h)) x0, and its standard
  deviation is scale sqrt(1 - exp(-2 h)).
  """
  mean = move.alpha_t / move.alpha_s * move.shrink**2 * x + move.alpha_s * move.fresh * x0
  drawn = mean + scale * prediction.root(move.fresh) * noise
  return jnp.where(move.rises, _renoise(move, x, noise), drawn)


def _ancestral_step(key, denoiser, schedule, x, t, s, state, *, large):
  x0, _ = denoiser(x, t)
  noise = _noise(key, x)
  moved = {}
  for name, value in x.items():
    move = _move(schedule, name, t, s)
    scale = jnp.where(move.sigma_s == 0, 0, move.sigma_t) if large else move.sigma_s
    moved[name] = _posterior(move, value, x0[name], scale, noise[name])
  return _keep_still(moved, x, t, s), state


ancestral = Solver(_no_history, functools.partial(_ancestral_step, large=False), _one_each)
"""DDPM's ancestral sampling: weak order 1, N evaluations.

Its variance is btilde = sigma_s^2 (1 - exp(-2 h)), that of q(x_s | x_t, x_0), and 0 at s = 0. With
few steps its samples are too narrow: 50 keep about .9 of a Gaussian's variance, 13 about .7.
"""

ancestral_large = Solver(_no_history, functools.partial(_ancestral_step, large=True), _one_each)
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
    return _keep_still(moved, x, t, s), state

  def stochastic(key, denoiser, schedule, x, t, s, state):
    x0, eps = denoiser(x, t)
    noise = _noise(key, x)
    moved = {}
    for name, value in x.items():
      move = _move(schedule, name, t, s)
      part = eta**2 * move.fresh
      direction = prediction.root(1 - part) * eps[name] + prediction.root(part) * noise[name]
      fallen = move.alpha_s * x0[name] + move.sigma_s * direction
      moved[name] = jnp.where(move.rises, _renoise(move, value, noise[name]), fallen)
    return _keep_still(moved, x, t, s), state

  step = stochastic if eta else deterministic
  return Solver(_no_history, step, _one_each, stochastic=bool(eta))


def _sde_dpmpp_2m_step(key, denoiser, schedule, x, t, s, state):
  """`ancestral` with x0 in the middle of the move."""
  x0, _ = denoiser(x, t)
  noise = _noise(key, x)
  moved, history = {}, {}
  for name, value in x.items():
    move = _move(schedule, name, t, s)
    middle, history[name] = _middle(move, x0[name], state[name])
    moved[name] = _posterior(move, value, middle, move.sigma_s, noise[name])
  return _keep_still(moved, x, t, s), history


sde_dpmpp_2m = Solver(_no_steps_yet, _sde_dpmpp_2m_step, _one_each)
"""SDE-DPM-Solver++(2M) on the reverse SDE: N evaluations (Lu et al. 2022, Sec. 5.2)."""
