"""Discrete tables of betas, as DDPM has them, and the usual betas."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax import arguments
from mmdiff_jax.schedules.continuous import at_most_one, check_parameters, Time


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
    check_parameters(self, ends_at_zero=self._ends_at_zero)

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
    t = jnp.asarray(t)
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
    log_snr = jnp.asarray(log_snr)
    log_alpha = -0.5 * jax.nn.softplus(-log_snr)
    values, steps = (
      jnp.asarray(table, log_alpha.dtype) for table in (self._log_alphas, self._steps)
    )
    before = jnp.clip(jnp.searchsorted(-values, -log_alpha) - 1, 0, len(self.betas) - 1)
    fraction = (log_alpha - values[before]) / jnp.where(steps[before] == 0, 1, steps[before])
    if self._ends_at_zero:
      last = before == len(self.betas) - 1
      fraction = jnp.where(last, -jnp.expm1(log_alpha - values[before]), fraction)
    return at_most_one((before + fraction) / len(self.betas))

  def drift(self, t: Time) -> Time:
    """f(t) = N log(1 - beta_n) / 2; on a last step to alpha = 0 it is -1 / (1 - t)."""
    t = jnp.asarray(t)
    drift = len(self.betas) * jnp.asarray(self._steps, t.dtype)[self._before(t)]
    if not self._ends_at_zero:
      return drift
    last = self._last(t)
    return jnp.where(last > 0, -len(self.betas) / (1.0 - last), drift)

  def diffusion(self, t: Time) -> Time:
    """g(t)^2 = -2 f(t)."""
    return jnp.sqrt(-2.0 * self.drift(t))


def _check_ends(where, num, beta_min, beta_max):
  arguments.integer(where, "num", num, 1)
  for name, beta in (("beta_min", beta_min), ("beta_max", beta_max)):
    arguments.scalar(where, name, beta, 0, 1, above=0)


def betas_linear(
  num: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02
) -> tuple[float, ...]:
  """Returns betas in equal steps (Ho et al. 2020), for `Table`.

  Args:
    num: N, at least 1.
    beta_min: beta_1, inside (0, 1).
    beta_max: beta_N, inside (0, 1).

  Raises:
    TypeError, ValueError: an argument has the wrong type or range.
  """
  _check_ends("betas_linear", num, beta_min, beta_max)
  return tuple(np.linspace(beta_min, beta_max, num).tolist())


def betas_scaled_linear(
  num: int = 1000, *, beta_min: float = 0.00085, beta_max: float = 0.012
) -> tuple[float, ...]:
  """Returns betas whose square roots are in equal steps (Rombach et al. 2022), for `Table`.

  Arguments and errors as for `betas_linear`.
  """
  _check_ends("betas_scaled_linear", num, beta_min, beta_max)
  return tuple((np.linspace(beta_min**0.5, beta_max**0.5, num) ** 2).tolist())


def betas_cosine(
  num: int = 1000, *, offset: float = 0.008, largest: float = 0.999
) -> tuple[float, ...]:
  """Returns betas of alpha^2 = cos^2 of an angle linear in t (Nichol and Dhariwal 2021, Eq. 17).

  Args:
    num: N, at least 1.
    offset: s of the paper, at least 0, which keeps the first betas from vanishing.
    largest: upper bound of each beta, in (0, 1]; without it the last one would be 1.

  Returns:
    beta_1, ..., beta_N, for `Table`.

  Raises:
    TypeError, ValueError: an argument has the wrong type or range.
  """
  arguments.integer("betas_cosine", "num", num, 1)
  arguments.scalar("betas_cosine", "offset", offset, 0)
  arguments.scalar("betas_cosine", "largest", largest, 0, 1, above=0)
  angle = (np.arange(num + 1) / num + offset) / (1 + offset) * math.pi / 2
  alpha_bar = np.cos(angle) ** 2
  return tuple(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], largest).tolist())
