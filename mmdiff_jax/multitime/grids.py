"""Grids: the falling times 1, ..., 0 of one modality, by which most paths are made."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mmdiff_jax import arguments, schedules

# At this time sigma^2, which for VPLinear is about a tenth of it, is a normal float32 number.
EARLIEST = 1e-30


def _check_grid(where, setting, grid):
  """Returns a grid, checked to fall from 1 to 0 with times that float32 can tell apart."""
  if not isinstance(grid, jax.core.Tracer):
    times = np.asarray(grid)
    if not np.all(np.diff(times) < 0) or times[0] != 1 or not np.min(times[:-1]) >= EARLIEST:
      raise ValueError(
        f"{where}: with {setting} and num_steps={len(times) - 1} times repeat, or one above 0 is"
        f" below {EARLIEST:g}. Take a less extreme one."
      )
  return grid


def uniform_grid(num_steps: int) -> Float[Array, " points"]:
  """Times 1, 1 - 1/N, ..., 0; the last steps are far too long in log_snr for multistep methods.

  Raises:
    ValueError: `num_steps` is not an integer of at least 1.
  """
  arguments.integer("uniform_grid", "num_steps", num_steps, 1)
  return jnp.asarray(1 - np.arange(num_steps + 1) / num_steps)


def power_grid(num_steps: int, power: float = 2.0) -> Float[Array, " points"]:
  """Times (1 - i/N)^power, i = 0..N: denser towards 0, where log_snr changes fastest.

  Args:
    num_steps: N.
    power: above 0, and usually at least 1. 2 makes the first time above 0 equal 1/N^2, which for
      `VPLinear` leaves a fraction of noise of about beta_min / N^2 in variance.

  Returns:
    N + 1 falling times.

  Raises:
    ValueError: `num_steps` is not an integer of at least 1, `power` not above 0, or so extreme that
      times repeat or are below 1e-30.
  """
  arguments.integer("power_grid", "num_steps", num_steps, 1)
  power = arguments.scalar("power_grid", "power", power, above=0)
  grid = jnp.asarray((1 - np.arange(num_steps + 1) / num_steps) ** power)
  return _check_grid("power_grid", f"power={power:g}", grid)


def _inner_grid(where, setting, schedule, num_steps, t_min, level_of, log_snr_of):
  """Returns 1, then equal steps of a function of log_snr from `t_max` to `t_min`, then 0.

  If there are two steps the first leads from 1 to `t_min`; a single one leads to 0.
  """
  arguments.integer(where, "num_steps", num_steps, 1)
  schedules.check_t_min(where, schedule, t_min)
  if num_steps == 1:
    return uniform_grid(1)
  start = [1.0] if schedule.t_max < 1 else []
  ends = level_of(schedule.log_snr(jnp.array([schedule.t_max, t_min])))
  levels = jnp.linspace(ends[0], ends[1], num_steps - len(start))
  inner = schedule.time(log_snr_of(levels)).at[0].set(schedule.t_max).at[-1].set(t_min)
  grid = jnp.concatenate([jnp.array(start, inner.dtype), inner, jnp.zeros(1, inner.dtype)])
  return _check_grid(where, setting, grid)


def log_snr_grid(schedule: Any, num_steps: int, *, t_min: float = 1e-3) -> Float[Array, " points"]:
  """Times 1, then equal steps in log_snr down to t_min, then 0; arguments as `edm_grid`."""
  same = lambda log_snr: log_snr  # noqa: E731
  return _inner_grid("log_snr_grid", f"t_min={t_min}", schedule, num_steps, t_min, same, same)


def edm_grid(
  schedule: Any, num_steps: int, *, rho: float = 7.0, t_min: float = 1e-3
) -> Float[Array, " points"]:
  """Equal steps in (sigma / alpha)^(1 / rho) from 1 to t_min, then 0 (Karras et al. 2022, Eq. 5).

  Args:
    schedule: one schedule. Equal steps start at its `t_max`; if it is below 1, the first step leads
      from 1 to there.
    num_steps: N. If it is 2 the first step leads from 1 to t_min; a single one from 1 to 0.
    rho: above 0; the larger, the denser towards 0.
    t_min: the last time above 0, below `t_max`.

  Returns:
    N + 1 falling times.

  Raises:
    ValueError: `num_steps` is not an integer of at least 1, `rho` not above 0, or `t_min` not in
      (0, t_max).
  """
  rho = arguments.scalar("edm_grid", "rho", rho, above=0)
  return _inner_grid(
    "edm_grid",
    f"rho={rho:g} and t_min={t_min}",
    schedule,
    num_steps,
    t_min,
    lambda log_snr: jnp.exp(-0.5 * log_snr / rho),
    lambda level: -2.0 * rho * jnp.log(level),
  )
