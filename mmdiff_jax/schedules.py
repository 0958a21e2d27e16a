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

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

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

  def _integral(self, t):
    return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

  def alpha(self, t: Time) -> Time:
    """Scale of the data."""
    return jnp.exp(-0.5 * self._integral(t))

  def sigma(self, t: Time) -> Time:
    """Scale of the noise; `expm1` keeps its digits near t = 0."""
    return jnp.sqrt(-jnp.expm1(-self._integral(t)))

  def log_snr(self, t: Time) -> Time:
    """log(alpha^2 / sigma^2) = -log(exp(B) - 1); infinite at 0."""
    return -jnp.log(jnp.expm1(self._integral(t)))

  def time(self, log_snr: Time) -> Time:
    """Inverse of `log_snr`: B = log(1 + exp(-log_snr)), then the positive root for t."""
    integral = jax.nn.softplus(-log_snr)
    slope = self.beta_max - self.beta_min
    # The form of the root that does not cancel for small B.
    return 2.0 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * integral))

  def drift(self, t: Time) -> Time:
    """f(t) = -beta / 2."""
    return -0.5 * self.beta(t)

  def diffusion(self, t: Time) -> Time:
    """g(t) = sqrt(beta)."""
    return jnp.sqrt(self.beta(t))


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


Schedule = VPLinear | VPCosine | RectifiedFlow


def schedule_of(schedule: Schedule | dict[str, Schedule], name: str) -> Schedule:
  """The schedule of a modality, where one serves all or each has its own.

  Raises:
    ValueError: the dict has none for `name`.
  """
  if not isinstance(schedule, dict):
    return schedule
  if name not in schedule:
    raise ValueError(f"no schedule for modality {name!r}; there are {sorted(schedule)}: add one")
  return schedule[name]


def along(t: Shaped[Array, "*rows"], x: Float[Array, "..."]) -> Shaped[Array, "..."]:
  """A time (or what was computed of it), scalar or one a row, with axes of 1 to multiply `x`."""
  return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
