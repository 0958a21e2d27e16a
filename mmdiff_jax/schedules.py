"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps for a time t in [0, 1].

The forward SDE dx = f(t) x dt + g(t) dW has the same distribution with (Song et al. 2021; Kingma et
al. 2021)

  f = d log(alpha) / dt,                                                                    (1)
  g^2 = d(sigma^2)/dt - 2 f sigma^2 = -sigma^2 d(log_snr)/dt,                               (2)
  log_snr = log(alpha^2 / sigma^2).                                                         (3)

Every schedule has `alpha`, `sigma`, `log_snr`, its inverse `time`, the coefficients `drift` (f, as
in f(t) x) and `diffusion` (g), all elementwise on times of any shape and accurate in float32 at
both ends, and `t_max`, where a discretised SDE may start: f of some schedules diverges at 1.
They are static pytrees, so they may be closed over by a jitted function or be its argument.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import itertools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from mmdiff_jax import arguments

Time = Float[Array, "..."]


def _check(schedule, *ascending, ends_at_zero=False):
  """Rejects invalid parameters of a schedule.

  Args:
    schedule: all of its numbers must be finite and above 0.
    *ascending: names of some of them, none of which may exceed the next.
    ends_at_zero: whether alpha(1) = 0, so that f diverges there and `t_max` must be below 1.

  Raises:
    ValueError: a parameter is invalid; the message names it and the schedule.
  """
  title = type(schedule).__name__
  for name in (*ascending, "t_max"):
    value = getattr(schedule, name)
    if isinstance(value, jax.Array | np.ndarray) and not value.ndim:
      value = value.item()
      object.__setattr__(
        schedule, name, value
      )  # A Python number, which can be compared and hashed.
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
      raise ValueError(f"{title}: {name} must be a finite number above 0, got {value!r}.")
  for low, high in itertools.pairwise(ascending):
    least, most = getattr(schedule, low), getattr(schedule, high)
    if least > most:
      raise ValueError(
        f"{title}: {low} must not be above {high}, got {low}={least} and {high}={most}."
      )
  if schedule.t_max > 1:
    raise ValueError(f"{title}: t_max must be in (0, 1], got {schedule.t_max}.")
  if schedule.t_max == 1 and ends_at_zero:
    raise ValueError(
      f"{title}: t_max must be below 1, as by default: alpha(1) = 0 and the drift diverges there."
    )


def _at_most_one(t):
  """Bounds times by 1, which rounding or a log_snr beyond the schedule's may exceed."""
  return jnp.where(t > 1, 1.0, t)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VPLinear:
  """Variance preserving with beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021).

  With B(t) the integral of beta from 0 to t: alpha = exp(-B / 2), sigma^2 = 1 - exp(-B).
  At the usual 0.1 and 20, alpha(1) is 0.0066, so that x_1 is not quite N(0, I).

  Raises:
    ValueError: 0 < beta_min <= beta_max < inf does not hold, or `t_max` is outside (0, 1].
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_max: float = 1.0

  def __post_init__(self):
    _check(self, "beta_min", "beta_max")

  def beta(self, t: Time) -> Time:
    """The rate of the forward SDE."""
    return self.beta_min + t * (self.beta_max - self.beta_min)

  def integral(self, t: Time) -> Time:
    """B(t)."""
    return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

  def time_of_integral(self, integral: Time) -> Time:
    """Inverse of `integral`, in the form of the root that does not cancel for small B.

    It is at most 1.
    """
    slope = self.beta_max - self.beta_min
    # Twice B(1) is past the end, and finite.
    integral = jnp.minimum(integral, self.beta_min + self.beta_max)
    root = jnp.sqrt(self.beta_min**2 + 2.0 * slope * integral)
    return _at_most_one(2.0 * integral / (self.beta_min + root))

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    return jnp.exp(-0.5 * self.integral(t))

  def sigma(self, t: Time) -> Time:
    """Scale of the noise; `expm1` keeps its digits near t = 0."""
    return jnp.sqrt(-jnp.expm1(-self.integral(t)))

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2) = -B - log(1 - exp(-B)); infinite at 0."""
    integral = self.integral(t)
    return -integral - jnp.log(-jnp.expm1(-integral))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`: B = log(1 + exp(-log_snr))."""
    return self.time_of_integral(jax.nn.softplus(-log_snr))

  def drift(self, t: Time) -> Time:
    """f(t) = -beta / 2."""
    return -0.5 * self.beta(t)

  def diffusion(self, t: Time) -> Time:
    """g(t) = sqrt(beta)."""
    return jnp.sqrt(self.beta(t))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SubVP:
  """Sub-variance preserving (Song et al. 2021): alpha of `VPLinear`, sigma = 1 - exp(-B).

  Raises:
    ValueError: as for `VPLinear`.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_max: float = 1.0

  def __post_init__(self):
    _check(self, "beta_min", "beta_max")

  @property
  def _vp(self):
    return VPLinear(self.beta_min, self.beta_max)

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    return self._vp.alpha(t)

  def sigma(self, t: Time) -> Time:
    """Scale of the noise."""
    return -jnp.expm1(-self._vp.integral(t))

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2); infinite at 0."""
    return -self._vp.integral(t) - 2.0 * jnp.log(self.sigma(t))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr` = -2 log(2 sinh(B / 2)), which is -B where the exponential overflows."""
    half = jnp.maximum(0.5 * log_snr, -30.0)
    integral = 2.0 * jnp.arcsinh(0.5 * jnp.exp(-half))
    return self._vp.time_of_integral(jnp.where(log_snr < -60, -log_snr, integral))

  def drift(self, t: Time) -> Time:
    """f(t) = -beta / 2."""
    return self._vp.drift(t)

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = beta (1 - exp(-2 B))."""
    return jnp.sqrt(-self._vp.beta(t) * jnp.expm1(-2.0 * self._vp.integral(t)))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VE:
  """Variance exploding (Song et al. 2021): alpha = 1, the scale of the noise grows geometrically.

  sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1), which is 0 at t = 0.

  Raises:
    ValueError: 0 < sigma_min < sigma_max < inf does not hold, or `t_max` is outside (0, 1].
  """

  sigma_min: float = 0.01
  sigma_max: float = 50.0
  t_max: float = 1.0

  def __post_init__(self):
    _check(self, "sigma_min", "sigma_max")
    if self.sigma_min == self.sigma_max:
      raise ValueError(f"VE: sigma_min must be below sigma_max, but both are {self.sigma_max}.")

  @property
  def _rate(self):
    return 2.0 * math.log(self.sigma_max / self.sigma_min)

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    return jnp.ones_like(t)

  def sigma(self, t: Time) -> Time:
    """Scale of the noise."""
    return self.sigma_min * jnp.sqrt(jnp.expm1(self._rate * t))

  def log_snr(self, t: Time) -> Time:
    """-log(sigma^2); infinite at 0."""
    return -2.0 * math.log(self.sigma_min) - jnp.log(jnp.expm1(self._rate * t))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`, at most 1."""
    # Bounded just past the end, so that the exponential cannot overflow.
    log_snr = jnp.maximum(log_snr, -2.0 * math.log(self.sigma_max) - 1.0)
    return _at_most_one(jnp.log1p(jnp.exp(-log_snr) / self.sigma_min**2) / self._rate)

  def drift(self, t: Time) -> Time:
    """f(t) = 0."""
    return jnp.zeros_like(t)

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = d(sigma^2)/dt."""
    return self.sigma_min * math.sqrt(self._rate) * jnp.exp(0.5 * self._rate * t)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VPCosine:
  """Variance preserving with alpha = cos(pi t / 2), sigma = sin(pi t / 2).

  alpha(1) = 0: the noise at t = 1 is exactly N(0, I) and f diverges there.

  Raises:
    ValueError: `t_max` is outside (0, 1).
  """

  t_max: float = 0.999

  def __post_init__(self):
    _check(self, ends_at_zero=True)

  def alpha(self, t: Time) -> Time:
    """Scale of the data: the sine of the complement, which is exactly 0 at t = 1."""
    return jnp.sin(0.5 * math.pi * (1.0 - t))

  def sigma(self, t: Time) -> Time:
    """Scale of the noise."""
    return jnp.sin(0.5 * math.pi * t)

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2); infinite at both ends."""
    return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`, at most 1."""
    # For the arctangent exp(80 / 2) is as good as infinity, and its square is still finite.
    ratio = jnp.exp(-0.5 * jnp.maximum(log_snr, -80.0))
    return _at_most_one(2.0 / math.pi * jnp.arctan(ratio))

  def drift(self, t: Time) -> Time:
    """f(t) = -(pi / 2) tan(pi t / 2)."""
    return -0.5 * math.pi * self.sigma(t) / self.alpha(t)

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = pi tan(pi t / 2)."""
    return jnp.sqrt(math.pi * self.sigma(t) / self.alpha(t))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
  """The straight line from data to noise: alpha = 1 - t, sigma = t (Liu et al. 2023).

  alpha(1) = 0, and f diverges there.

  Raises:
    ValueError: `t_max` is outside (0, 1).
  """

  t_max: float = 0.999

  def __post_init__(self):
    _check(self, ends_at_zero=True)

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    return 1.0 - t

  def sigma(self, t: Time) -> Time:
    """Scale of the noise."""
    return 1.0 * t

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2); infinite at both ends."""
    return 2.0 * (jnp.log1p(-t) - jnp.log(t))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`."""
    return jax.nn.sigmoid(-0.5 * log_snr)

  def drift(self, t: Time) -> Time:
    """f(t) = -1 / (1 - t)."""
    return -1.0 / (1.0 - t)

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = 2 t / (1 - t)."""
    return jnp.sqrt(2.0 * t / (1.0 - t))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Table:
  """A discrete table of DDPM, variance preserving: alpha^2 = prod (1 - beta_i) at t = n / N.

  Between two entries log(alpha) is linear in t, so that f and g are step functions, constant on
  ((n - 1) / N, n / N]. `betas_linear`, `betas_scaled_linear` and `betas_cosine` make the usual
  betas.

  A table may end with beta_N = 1, that is with alpha(1) = 0 (zero terminal SNR, Lin et al. 2023).
  After its last entry but one, alpha itself falls linearly to 0, so that f = -1 / (1 - t) diverges
  at 1, as for `RectifiedFlow`. A network that predicts v or x0 is needed there.

  Attributes:
    betas: beta_1, ..., beta_N in (0, 1); the last one may be 1.
    t_max: where a discretised SDE may start; None is 1, or 0.999 if beta_N is 1.

  Raises:
    ValueError: a beta is not inside (0, 1), or `t_max` is not in (0, 1] (below 1 if beta_N is 1).
  """

  betas: tuple[float, ...]
  t_max: float | None = None

  def __post_init__(self):
    betas = arguments.array("Table", "betas", arguments.sequence("Table", "betas", self.betas))
    object.__setattr__(self, "betas", tuple(map(float, betas)))
    if not self.betas:
      raise ValueError("Table: betas is empty; give at least one, or use betas_linear().")
    for index, beta in enumerate(self.betas):
      last = index == len(self.betas) - 1
      if not 0 < beta < 1 and not (last and beta == 1):
        raise ValueError(
          f"Table: betas[{index}] is {beta}, but betas must be inside (0, 1), and only the last may"
          " be 1. Bound them from above, as by 0.999, and leave out entries of 0."
        )
    if self.t_max is None:
      object.__setattr__(self, "t_max", 0.999 if self._ends_at_zero else 1.0)
    _check(self, ends_at_zero=self._ends_at_zero)

  @property
  def _ends_at_zero(self):
    return self.betas[-1] == 1

  @functools.cached_property
  def _steps(self):
    """The differences of log(alpha), in float64; 0 for a beta of 1, which `_last` handles."""
    betas = np.array(self.betas)
    return 0.5 * np.log1p(-np.where(betas == 1, 0.0, betas))

  @functools.cached_property
  def _log_alphas(self):
    return np.concatenate([[0.0], np.cumsum(self._steps)])

  def _last(self, t):
    """Returns the fraction in [0, 1] of a last step to alpha = 0 that `t` has passed, or 0."""
    before = self._before(t)
    fraction = t * len(self.betas) - before
    return jnp.where(before == len(self.betas) - 1, fraction, 0.0)

  def _before(self, t):
    """Returns the index of the entry before `t`; a time that is an entry up to rounding is one."""
    last = len(self.betas) - 1
    return jnp.clip(jnp.ceil(t * len(self.betas) - 1e-3).astype(int) - 1, 0, last)

  def _log_linear(self, t):
    """log(alpha), without the factor of a last step to alpha = 0."""
    before = self._before(t)
    fraction = t * len(self.betas) - before
    values, steps = (jnp.asarray(table, t.dtype) for table in (self._log_alphas, self._steps))
    return values[before] + fraction * steps[before]

  def _log_alpha(self, t):
    if not self._ends_at_zero:
      return self._log_linear(t)
    last = self._last(t)
    end = last == 1
    falls = jnp.log1p(-jnp.where(end, 0.0, last))
    return jnp.where(end, -jnp.inf, self._log_linear(t) + falls)

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    alpha = jnp.exp(self._log_linear(t))
    return alpha * (1.0 - self._last(t)) if self._ends_at_zero else alpha

  def sigma(self, t: Time) -> Time:
    """Scale of the noise."""
    return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2); infinite at 0, and at 1 if alpha is 0 there."""
    log_alpha = self._log_alpha(t)
    return 2.0 * log_alpha - jnp.log(-jnp.expm1(2.0 * log_alpha))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`, at most 1."""
    log_alpha = -0.5 * jax.nn.softplus(-log_snr)
    values, steps = (
      jnp.asarray(table, log_alpha.dtype) for table in (self._log_alphas, self._steps)
    )
    before = jnp.clip(jnp.searchsorted(-values, -log_alpha) - 1, 0, len(self.betas) - 1)
    fraction = (log_alpha - values[before]) / jnp.where(steps[before] == 0, 1, steps[before])
    if self._ends_at_zero:
      last = before == len(self.betas) - 1
      fraction = jnp.where(last, -jnp.expm1(log_alpha - values[before]), fraction)
    return _at_most_one((before + fraction) / len(self.betas))

  def drift(self, t: Time) -> Time:
    """f(t) = N log(1 - beta_n) / 2; on a last step to alpha = 0 it is -1 / (1 - t)."""
    drift = len(self.betas) * jnp.asarray(self._steps, t.dtype)[self._before(t)]
    if not self._ends_at_zero:
      return drift
    last = self._last(t)
    return jnp.where(last > 0, -len(self.betas) / (1.0 - last), drift)

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = -2 f(t)."""
    return jnp.sqrt(-2.0 * self.drift(t))


def betas_linear(
  num: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02
) -> tuple[float, ...]:
  """Returns betas in equal steps (Ho et al. 2020), for `Table`."""
  return tuple(np.linspace(beta_min, beta_max, num).tolist())


def betas_scaled_linear(
  num: int = 1000, *, beta_min: float = 0.00085, beta_max: float = 0.012
) -> tuple[float, ...]:
  """Returns betas whose square roots are in equal steps (Rombach et al. 2022), for `Table`."""
  return tuple((np.linspace(beta_min**0.5, beta_max**0.5, num) ** 2).tolist())


def betas_cosine(
  num: int = 1000, *, offset: float = 0.008, largest: float = 0.999
) -> tuple[float, ...]:
  """Returns betas of alpha^2 = cos^2 of an angle linear in t (Nichol and Dhariwal 2021, Eq. 17).

  Args:
    num: N.
    offset: s of the paper, which keeps the first betas from vanishing.
    largest: upper bound of each beta; without it the last one would be 1.

  Returns:
    beta_1, ..., beta_N, for `Table`.
  """
  angle = (np.arange(num + 1) / num + offset) / (1 + offset) * math.pi / 2
  alpha_bar = np.cos(angle) ** 2
  return tuple(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], largest).tolist())


Schedule = VPLinear | SubVP | VE | VPCosine | RectifiedFlow | Table


def schedule_of(schedule: Schedule | Mapping[str, Schedule], name: str) -> Schedule:
  """Returns the schedule of a modality: the only one, or its entry in a dict of schedules.

  Raises:
    ValueError: the dict has no entry for `name`.
  """
  if not isinstance(schedule, Mapping):
    return schedule
  if name not in schedule:
    raise ValueError(
      f"schedule has none for modality {name!r}: {arguments.nearest(name, schedule)}. Add one."
    )
  return schedule[name]


def check(where: str, schedule: Any, names: Iterable[str] = (), *, one: bool = False) -> Any:
  """Checks that something is a schedule, or a dict of schedules with one for each of `names`.

  A user-defined schedule also serves if it has the methods of those above.

  Args:
    where: the function, for the message.
    schedule: the object to check.
    names: modalities that need a schedule.
    one: whether it must be a single schedule, not a dict.

  Returns:
    The schedule; any mapping as a dict, which is a pytree.

  Raises:
    TypeError: it is not a schedule, but such as the name of one or a class that was not called.
    ValueError: a modality has no schedule.
  """
  several = isinstance(schedule, Mapping) and not one
  for name, value in schedule.items() if several else ((None, schedule),):
    if isinstance(value, type) or not all(
      callable(getattr(value, method, None)) for method in ("alpha", "sigma")
    ):
      argument = "schedule" if name is None else f"schedule[{name!r}]"
      raise TypeError(
        f"{where}: {argument}={value!r} must be a schedule, such as schedules.VPCosine(), or a dict"
        " with one for each modality."
      )
  if not several:
    return schedule
  for name in names:
    if name not in schedule:
      raise ValueError(
        f"{where}: schedule has none for modality {name!r}: {arguments.nearest(name, schedule)}."
        " Add one."
      )
  return dict(schedule)


def along(t: Shaped[Array, "*rows"], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
  """Adds axes of size 1 to a time (or a function of it), scalar or one a row, to multiply `x`."""
  return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
