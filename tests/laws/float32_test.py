"""Tests of the laws in single precision; the other tests prove them in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import multitime, schedules, solvers
from tests.laws import gaussian


@pytest.mark.parametrize(
  ("name", "schedule", "tolerance"),
  [
    ("heun", "vp_linear", 1e-4),
    ("unipc", "vp_linear", 1e-4),
    ("dpmpp_2m", "vp_cosine", 3e-4),
    ("sde_dpmpp_2m", "rectified_flow", 3e-4),
  ],
)
def test_covariance_after_1024_steps(name, schedule, tolerance):
  path = gaussian.padded(multitime.joint(gaussian.NAMES, 1024), 2048)
  covariance = jnp.asarray(gaussian.COVARIANCE, jnp.float32)
  schedule = gaussian.SCHEDULES[schedule]
  got = gaussian.end_covariance(gaussian.SOLVERS[name], schedule, path, covariance)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, covariance, atol=tolerance)


@functools.partial(jax.jit, static_argnums=0)
def _samples(solver, x, times):
  schedule = schedules.VPLinear()

  def denoiser(x, t):
    alpha, sigma = schedule.alpha(t["a"]), schedule.sigma(t["a"])
    whitened = x["a"] / (0.5 * alpha**2 + sigma**2)
    return {"a": 0.5 * alpha * whitened}, {"a": sigma * whitened}

  path = multitime.Path({"a": times})
  return solvers.sample(jax.random.key(0), denoiser, schedule, {"a": x}, path, solver=solver)["a"]


# Rounding of x itself costs about 1e-5; more is lost in a step's angle or variance.
LOOSER = {"euler": 2e-4} | dict.fromkeys(
  ("ancestral", "ancestral_large", "ddim_1", "ddim_half", "sde_dpmpp_2m"), 1e-4
)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in gaussian.STOCHASTIC))
    for name in gaussian.SOLVERS
  ],
)
def test_single_precision_lasts_for_10_000_steps(name):
  """Both precisions have the same noise and the same times."""
  x = np.array([[1.0], [0.3], [-0.7], [-1.0]])
  with jax.enable_x64(True):
    times = np.asarray(multitime.power_grid(10_000), np.float32)
    single, double = (
      _samples(gaussian.SOLVERS[name], jnp.asarray(x, dtype), jnp.asarray(times, dtype))
      for dtype in (jnp.float32, jnp.float64)
    )
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, double, rtol=0, atol=LOOSER.get(name, 2e-5))
