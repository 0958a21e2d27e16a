"""Tests of the converters: each cycle returns, and the ends give no NaN."""

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax import prediction

X0, EPS = jnp.array([0.3, -1.2, 2.0]), jnp.array([1.1, 0.4, -0.7])


def test_cycles():
  # Also where alpha^2 + sigma^2 is not 1.
  for alpha, sigma in ((0.99, 0.1), (0.7, 0.72), (0.4, 0.6), (1.0, 20.0)):
    alpha, sigma, alpha_rate, sigma_rate = map(jnp.float32, (alpha, sigma, -0.8, 1.3))
    x = alpha * X0 + sigma * EPS
    v = prediction.to_v(X0, EPS, alpha, sigma)
    score = prediction.eps_to_score(EPS, sigma)
    np.testing.assert_allclose(score, -EPS / sigma, rtol=1e-6)
    velocity = prediction.to_velocity(X0, EPS, alpha_rate, sigma_rate)
    rates = (alpha, sigma, alpha_rate, sigma_rate)
    for got, expected in (
      (prediction.eps_to_x0(x, EPS, alpha, sigma), X0),
      (prediction.x0_to_eps(x, X0, alpha, sigma), EPS),
      (prediction.v_to_x0(x, v, alpha, sigma), X0),
      (prediction.v_to_eps(x, v, alpha, sigma), EPS),
      (prediction.score_to_eps(score, sigma), EPS),
      (prediction.velocity_to_x0(x, velocity, *rates), X0),
      (prediction.velocity_to_eps(x, velocity, *rates), EPS),
    ):
      np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_v_turns_with_the_angle():
  # v = dx / d(angle) for x = cos(angle) x0 + sin(angle) eps.
  rate = jax.jvp(lambda a: jnp.cos(a) * X0 + jnp.sin(a) * EPS, (0.7,), (1.0,))[1]
  got = prediction.to_v(X0, EPS, jnp.cos(0.7), jnp.sin(0.7))
  np.testing.assert_allclose(got, rate, atol=1e-6)


def test_velocity_is_the_rate_of_the_interpolant():
  rate = jax.jvp(lambda t: (1 - t) ** 2 * X0 + t**3 * EPS, (0.6,), (1.0,))[1]
  got = prediction.to_velocity(X0, EPS, jnp.float32(-0.8), jnp.float32(1.08))
  np.testing.assert_allclose(got, rate, atol=1e-6)


def test_roots_and_quotients_at_zero():
  x = jnp.array([0.0, 4.0])
  value, slope = jax.vmap(jax.value_and_grad(prediction.root))(x)
  np.testing.assert_array_equal(value, [0.0, 2.0])
  np.testing.assert_array_equal(slope, [0.0, 0.25])
  for numerator in (0.0, 3.0):
    value, slope = jax.value_and_grad(prediction.divide, (0, 1))(numerator, 0.0)
    assert value == 0 and slope == (0, 0)


def test_the_ends_give_no_nan():
  for convert, scales in ((prediction.eps_to_x0, (0.0, 1.0)), (prediction.x0_to_eps, (1.0, 0.0))):
    value, gradient = jax.value_and_grad(
      lambda x, other, scales, convert=convert: convert(x, other, *scales).sum(), (0, 1, 2)
    )(X0, EPS, scales)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
