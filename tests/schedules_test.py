"""Tests of the schedules against automatic differentiation and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import schedules

SCHEDULES = [schedules.VPLinear(), schedules.VPCosine(), schedules.RectifiedFlow()]


@pytest.fixture(name="schedule", params=SCHEDULES, ids=lambda s: type(s).__name__)
def _schedule(request):
  return request.param


def test_drift_diffusion_and_log_snr_are_those_of_alpha_and_sigma(schedule):
  with jax.enable_x64(True):
    t = jnp.linspace(0.01, 0.99, 50)
    rate = jax.vmap(jax.grad(lambda t: jnp.log(schedule.alpha(t))))(t)
    np.testing.assert_allclose(schedule.drift(t), rate, rtol=1e-9)
    growth = jax.vmap(jax.grad(lambda t: schedule.sigma(t) ** 2))(t)
    np.testing.assert_allclose(
      schedule.diffusion(t) ** 2, growth - 2 * rate * schedule.sigma(t) ** 2, rtol=1e-9
    )
    np.testing.assert_allclose(
      schedule.log_snr(t), 2 * jnp.log(schedule.alpha(t) / schedule.sigma(t)), atol=1e-9
    )
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-9)


def test_ends(schedule):
  ends = jnp.array([0.0, 1.0])
  assert schedule.alpha(ends)[0] == 1 and schedule.sigma(ends)[0] == 0
  assert schedule.log_snr(ends)[0] == jnp.inf
  np.testing.assert_allclose(schedule.sigma(ends)[1], 1, atol=1e-4)
  if schedule.t_max < 1:
    assert schedule.alpha(ends)[1] == 0


def test_float32_is_accurate_at_both_ends(schedule):
  near = np.array([1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.999], np.float32)
  single = [getattr(schedule, name)(jnp.array(near)) for name in ("alpha", "sigma", "log_snr")]
  with jax.enable_x64(True):
    exact = jnp.array(near.astype(np.float64))
    double = [getattr(schedule, name)(exact) for name in ("alpha", "sigma", "log_snr")]
  for got, expected in zip(single, double, strict=True):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_schedule_of_names_the_modality():
  one = SCHEDULES[0]
  assert schedules.schedule_of(one, "a") is one
  assert schedules.schedule_of({"a": one}, "a") is one
  with pytest.raises(ValueError, match="'b'"):
    schedules.schedule_of({"a": one}, "b")
