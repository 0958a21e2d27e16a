"""What single precision leaves of the laws, which the other tests prove in double precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import multitime
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
  chosen = gaussian.SCHEDULES[schedule]
  got = gaussian.end_covariance(gaussian.SOLVERS[name], chosen, path, covariance)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, covariance, atol=tolerance)
