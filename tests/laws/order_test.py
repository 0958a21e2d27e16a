"""Every solver converges at its order, on every schedule, jointly and staggered, up and down."""

import jax
import jax.numpy as jnp
import pytest

from mmdiff_jax import multitime
from tests.laws import gaussian

# For solvers of the SDE these are weak orders: those of the covariance.
ORDERS = {
  "euler": 1,
  "ddim": 1,
  "heun": 2,
  "dpmpp_2m": 2,
  "unipc": 3,
  "euler_maruyama": 1,
  "ancestral": 1,
  "ancestral_large": 1,
  "ddim_1": 1,
  "ddim_half": 1,
  "sde_dpmpp_2m": 2,
}
# Cases that are left out (solver, schedule, kind of path; None is all), and why. Solvers of the SDE
# do not encode: on upward paths they re-noise, by an exact draw.
NOT_YET_ASYMPTOTIC = {
  ("euler", "ve", "joint"): "near t = 1 the angle hardly turns: errors made early are forgotten",
  ("euler", "ve", "upward"): "and are magnified by sigma(1) = 50",
  ("unipc", "table", "upward"): "errors of both signs nearly cancel: slope 2.7 at 960 steps",
  ("euler_maruyama", "ve", None): "g is largest near t = 1, and errors made there are forgotten",
  ("euler_maruyama", "rectified_flow", None): "errors of both signs nearly cancel: slope 0.9",
}
COUNTS = (240, 960)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def path_of(kind, schedule, count):
  """Goes from 1 (15/16 if f diverges at 1) to 1/16; kinks of paths and tables are grid points."""
  grid = jnp.linspace(1.0 if schedule.t_max == 1 else 15 / 16, 1 / 16, count + 1)
  lag = 0 if kind == "joint" else count // 4
  path = gaussian.padded(multitime.staggered(gaussian.NAMES, lag, count, grid=grid), 1200)
  return multitime.reverse(path) if kind == "upward" else path


@pytest.mark.parametrize("schedule", gaussian.SCHEDULES)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, schedule):
  if (name, schedule, None) in NOT_YET_ASYMPTOTIC:
    pytest.skip(NOT_YET_ASYMPTOTIC[name, schedule, None])
  noise_schedule = gaussian.SCHEDULES[schedule]
  kinds = ["joint", "staggered"] + ["upward"] * (name in gaussian.DETERMINISTIC)
  for kind in kinds:
    if (name, schedule, kind) in NOT_YET_ASYMPTOTIC:
      continue
    errors = []
    for count in COUNTS:
      path = path_of(kind, noise_schedule, count)
      got = gaussian.end_covariance(gaussian.SOLVERS[name], noise_schedule, path)
      truth = gaussian.law(noise_schedule, gaussian.at(path, -1))
      errors.append(float(jnp.abs(got - truth).max()))
    assert gaussian.slope(errors, COUNTS) == pytest.approx(ORDERS[name], abs=0.1), kind


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc"])
def test_a_pause_costs_no_order(name):
  """`a` stands still at 0.5 while `b` falls, then goes on: its x0 from before is of no use."""
  schedule = gaussian.SCHEDULES["vp_linear"]
  counts, errors = (120, 480), []
  for count in counts:
    first, last = jnp.linspace(1.0, 0.5, count + 1), jnp.linspace(0.5, 0.05, count + 1)
    still = jnp.ones(count)
    path = multitime.Path(
      {
        "a": jnp.concatenate([first, 0.5 * still, last[1:]]),
        "b": jnp.concatenate([first, last[1:], 0.05 * still]),
      }
    )
    path = gaussian.padded(path, 1440)
    got = gaussian.end_covariance(gaussian.SOLVERS[name], schedule, path)
    errors.append(float(jnp.abs(got - gaussian.law(schedule, gaussian.at(path, -1))).max()))
  assert gaussian.slope(errors, counts) == pytest.approx(ORDERS[name], abs=0.1)


MIXED = {
  "vp_linear, vp_cosine": {
    "a": gaussian.SCHEDULES["vp_linear"],
    "b": gaussian.SCHEDULES["vp_cosine"],
  },
  "sub_vp, rectified_flow": {
    "a": gaussian.SCHEDULES["sub_vp"],
    "b": gaussian.SCHEDULES["rectified_flow"],
  },
}


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "unipc", "ancestral", "sde_dpmpp_2m"])
@pytest.mark.parametrize("schedule", MIXED)
def test_order_with_a_schedule_and_a_grid_for_each_modality(name, schedule):
  schedule, errors = MIXED[schedule], []
  for count in COUNTS:
    even = jnp.linspace(0.0, 1.0, count + 1)
    # It never stands still, and has another pace than the other modality.
    wavy = even + 0.1 * jnp.sin(2 * jnp.pi * even)
    path = multitime.Path({n: 15 / 16 - 7 / 8 * grid for n, grid in {"a": even, "b": wavy}.items()})
    path = gaussian.padded(path, COUNTS[-1])
    got = gaussian.end_covariance(gaussian.SOLVERS[name], schedule, path)
    errors.append(float(jnp.abs(got - gaussian.law(schedule, gaussian.at(path, -1))).max()))
  assert gaussian.slope(errors, COUNTS) == pytest.approx(ORDERS[name], abs=0.1)
