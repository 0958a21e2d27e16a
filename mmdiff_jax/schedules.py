"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps for a time t in [0, 1].

The same law is the forward SDE dx = f(t) x dt + g(t) dW with (Song et al. 2021; Kingma et al. 2021)

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
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from mmdiff_jax import arguments

Time = Float[Array, "..."]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VPLinear:
  """Variance preserving with beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021).

  With B(t) the integral of beta from 0 to t: alpha = exp(-B / 2), sigma^2 = 1 - exp(-B).
  At the usual 0.1 and 20 alpha(1) is 0.0066, so that noise at t = 1 is not quite N(0, I).
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_max: float = 1.0

  def beta(self, t: Time) -> Time:
    """The rate of the forward SDE."""
    return self.beta_min + t * (self.beta_max - self.beta_min)

  def integral(self, t: Time) -> Time:
    """B(t)."""
    return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

  def time_of_integral(self, integral: Time) -> Time:
    """Inverse of `integral`, in the form of the root that does not cancel for small B."""
    slope = self.beta_max - self.beta_min
    return 2.0 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * integral))

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
  """Sub-variance preserving (Song et al. 2021): alpha of `VPLinear`, sigma = 1 - exp(-B)."""

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_max: float = 1.0

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
    """Inverse of `log_snr` = -2 log(2 sinh(B / 2))."""
    return self._vp.time_of_integral(2.0 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))

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
  """

  sigma_min: float = 0.01
  sigma_max: float = 50.0
  t_max: float = 1.0

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
    """Inverse of `log_snr`."""
    return jnp.log1p(jnp.exp(-log_snr) / self.sigma_min**2) / self._rate

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
  """

  t_max: float = 0.999

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
    """Inverse of `log_snr`."""
    return 2.0 / math.pi * jnp.arctan(jnp.exp(-0.5 * log_snr))

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
  """

  t_max: float = 0.999

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

  Between two entries log(alpha) is linear in t, so that f and g are steps, constant on
  ((n - 1) / N, n / N]. `betas_linear`, `betas_scaled_linear` and `betas_cosine` are the usual ones.

  Attributes:
    betas: beta_1, ..., beta_N in (0, 1).
    t_max: where a discretised SDE may start.

  Raises:
    ValueError: a beta is not inside (0, 1).
  """

  betas: tuple[float, ...]
  t_max: float = 1.0

  def __post_init__(self):
    if not self.betas or not all(0 < beta < 1 for beta in self.betas):
      raise ValueError("Table: betas must be one or more numbers, all inside (0, 1).")

  @functools.cached_property
  def _steps(self):
    """The differences of log(alpha), in float64."""
    return 0.5 * np.log1p(-np.array(self.betas))

  @functools.cached_property
  def _log_alphas(self):
    return np.concatenate([[0.0], np.cumsum(self._steps)])

  def _before(self, t):
    """Which entry lies before `t`; a time that is an entry but for its rounding counts as one."""
    last = len(self.betas) - 1
    return jnp.clip(jnp.ceil(t * len(self.betas) - 1e-3).astype(int) - 1, 0, last)

  def _log_alpha(self, t):
    before = self._before(t)
    share = t * len(self.betas) - before
    values, steps = (jnp.asarray(table, t.dtype) for table in (self._log_alphas, self._steps))
    return values[before] + share * steps[before]

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    return jnp.exp(self._log_alpha(t))

  def sigma(self, t: Time) -> Time:
    """Scale of the noise."""
    return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2); infinite at 0."""
    log_alpha = self._log_alpha(t)
    return 2.0 * log_alpha - jnp.log(-jnp.expm1(2.0 * log_alpha))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`."""
    log_alpha = -0.5 * jax.nn.softplus(-log_snr)
    values, steps = (
      jnp.asarray(table, log_alpha.dtype) for table in (self._log_alphas, self._steps)
    )
    before = jnp.clip(jnp.searchsorted(-values, -log_alpha) - 1, 0, len(self.betas) - 1)
    return (before + (log_alpha - values[before]) / steps[before]) / len(self.betas)

  def drift(self, t: Time) -> Time:
    """f(t) = N log(1 - beta_n) / 2."""
    return len(self.betas) * jnp.asarray(self._steps, t.dtype)[self._before(t)]

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = -N log(1 - beta_n)."""
    return jnp.sqrt(-2.0 * self.drift(t))


def betas_linear(
  num: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02
) -> tuple[float, ...]:
  """Betas in equal steps (Ho et al. 2020), for `Table`."""
  return tuple(np.linspace(beta_min, beta_max, num).tolist())


def betas_scaled_linear(
  num: int = 1000, *, beta_min: float = 0.00085, beta_max: float = 0.012
) -> tuple[float, ...]:
  """Betas whose roots are in equal steps (Rombach et al. 2022), for `Table`."""
  return tuple((np.linspace(beta_min**0.5, beta_max**0.5, num) ** 2).tolist())


def betas_cosine(
  num: int = 1000, *, offset: float = 0.008, largest: float = 0.999
) -> tuple[float, ...]:
  """Betas of alpha^2 = cos^2 of an angle that grows with t (Nichol and Dhariwal 2021, Eq. 17).

  Args:
    num: N.
    offset: s of the paper, which keeps the first betas from vanishing.
    largest: bound of each beta; without it the last one would be 1.

  Returns:
    beta_1, ..., beta_N, for `Table`.
  """
  angle = (np.arange(num + 1) / num + offset) / (1 + offset) * math.pi / 2
  alpha_bar = np.cos(angle) ** 2
  return tuple(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], largest).tolist())


Schedule = VPLinear | SubVP | VE | VPCosine | RectifiedFlow | Table


def schedule_of(schedule: Schedule | Mapping[str, Schedule], name: str) -> Schedule:
  """The schedule of a modality, where one serves all or each has its own.

  Raises:
    ValueError: the dict has none for `name`.
  """
  if not isinstance(schedule, Mapping):
    return schedule
  if name not in schedule:
    raise ValueError(
      f"schedule has none for modality {name!r}: {arguments.nearest(name, schedule)}. Add one."
    )
  return schedule[name]


def check(where: str, schedule: Any, names: Iterable[str] = (), *, one: bool = False) -> None:
  """Checks that something is a schedule, or a dict of schedules with one for each of `names`.

  With `one` it must be a schedule itself.

  A schedule of a user's own serves that has the methods of those above.

  Raises:
    TypeError: no schedule, such as the name of one or a class that was not called.
    ValueError: none for a modality.
  """
  each = schedule if isinstance(schedule, Mapping) and not one else {None: schedule}
  for name, value in each.items():
    if isinstance(value, type) or not all(
      callable(getattr(value, method, None)) for method in ("alpha", "sigma", "log_snr")
    ):
      argument = "schedule" if name is None else f"schedule[{name!r}]"
      raise TypeError(
        f"{where}: {argument}={value!r} must be a schedule, such as schedules.VPCosine(), or a dict"
        " with one for each modality."
      )
  for name in names:
    schedule_of(schedule, name)


def along(t: Shaped[Array, "*rows"], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
  """A time (or what was computed of it), scalar or one a row, with axes of 1 to multiply `x`."""
  return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
