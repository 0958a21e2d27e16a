"""Schedules in closed form."""

import dataclasses
import itertools
import math
import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Time = Float[Array, "..."]


_SMALLEST = 1e-15


def check_parameters(schedule, *ascending, ends_at_zero=False):
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
    if not _SMALLEST <= value <= 1 / _SMALLEST:
      raise ValueError(
        f"{title}: {name} must be from {_SMALLEST:g} to {1 / _SMALLEST:g}, whose squares float32"
        f" can hold, got {value!r}."
      )
  for low, high in itertools.pairwise(ascending):
    least, most = getattr(schedule, low), getattr(schedule, high)
    if least > most:
      raise ValueError(
        f"{title}: {low} must not be above {high}, got {low}={least} and {high}={most}."
      )
  if schedule.t_max > 1:
    raise ValueError(f"{title}: t_max must be in (0, 1], got {schedule.t_max}.")
  if np.float32(schedule.t_max) == 1 and ends_at_zero:
    raise ValueError(
      f"{title}: t_max must be below 1, as by default: alpha(1) = 0 and the drift diverges there."
    )


def at_most_one(t):
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
    check_parameters(self, "beta_min", "beta_max")

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
    return at_most_one(2.0 * integral / (self.beta_min + root))

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
    check_parameters(self, "beta_min", "beta_max")

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
    check_parameters(self, "sigma_min", "sigma_max")
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
    return at_most_one(jnp.log1p(jnp.exp(-log_snr) / self.sigma_min**2) / self._rate)

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
    check_parameters(self, ends_at_zero=True)

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
    return at_most_one(2.0 / math.pi * jnp.arctan(ratio))

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
    check_parameters(self, ends_at_zero=True)

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
