"""Tests of the forward diffusion: what is perturbed, predicted and read back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import diffusion, schedules

X0 = jnp.array([[0.3, -1.2], [2.0, 0.1], [0.5, 0.6]])
EPS = jnp.array([[1.1, 0.4], [-0.7, 0.2], [-1.5, 0.9]])
SCHEDULES = (
  schedules.VPLinear(),
  schedules.VPCosine(),
  schedules.SubVP(),
  schedules.VE(),
  schedules.RectifiedFlow(),
  schedules.Table(schedules.betas_linear()),
)


@pytest.mark.filterwarnings("ignore:from_eps")  # alpha(1) = 0 does not matter inside.
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_a_perfect_prediction_gives_back_data_and_noise(kind, schedule):
  """Also with another time in each row, which a sampler never has and training always."""
  for t in (jnp.float32(0.4), jnp.array([0.2, 0.5, 0.8])):
    x = diffusion.perturb(schedule, X0, EPS, t)
    prediction = diffusion.target(kind, schedule, X0, EPS, t)
    denoise = diffusion.denoiser(kind, lambda x, t, p=prediction: {"a": p}, schedule)
    (x0, eps) = denoise({"a": x}, {"a": t})
    np.testing.assert_allclose(x0["a"], X0, atol=2e-3)
    np.testing.assert_allclose(eps["a"], EPS, atol=2e-3)


def test_rows_have_their_own_times():
  schedule, t = schedules.VPCosine(), jnp.array([0.0, 1.0, 0.5])
  x = diffusion.perturb(schedule, X0, EPS, t)
  np.testing.assert_allclose(x[0], X0[0], atol=1e-6)
  np.testing.assert_allclose(x[1], EPS[1], atol=1e-6)
  np.testing.assert_allclose(x[2], (X0[2] + EPS[2]) / np.sqrt(2), atol=1e-6)


def test_the_velocity_is_the_rate_of_the_perturbed_data():
  for schedule in (schedules.RectifiedFlow(), schedules.VPCosine(), schedules.VPLinear()):
    t = jnp.array([0.2, 0.5, 0.8])
    perturbed = lambda t, schedule=schedule: diffusion.perturb(schedule, X0, EPS, t)  # noqa: E731
    _, rate = jax.jvp(perturbed, (t,), (jnp.ones_like(t),))
    velocity = diffusion.target("velocity", schedule, X0, EPS, t)
    np.testing.assert_allclose(velocity, rate, rtol=1e-4, atol=1e-5)


def test_v_is_the_rate_with_the_angle():
  """For VPCosine the angle is pi / 2 t, so that v = (2 / pi) dx / dt."""
  schedule, t = schedules.VPCosine(), jnp.array([0.2, 0.5, 0.8])
  _, rate = jax.jvp(lambda t: diffusion.perturb(schedule, X0, EPS, t), (t,), (jnp.ones_like(t),))
  v = diffusion.target("v", schedule, X0, EPS, t)
  np.testing.assert_allclose(v, 2 / np.pi * rate, atol=1e-5)


def test_unknown_kinds_are_named():
  words = "kind='epsilon' must be one of eps, v, x0, velocity"
  with pytest.raises(ValueError, match=f"target: {words}"):
    diffusion.target("epsilon", schedules.VPCosine(), X0, EPS, jnp.float32(0.5))
  with pytest.raises(ValueError, match=f"denoiser: {words}"):
    diffusion.denoiser("epsilon", lambda x, t: x, schedules.VPCosine())
