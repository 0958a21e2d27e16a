"""Tests of classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax import guidance, multitime, schedules, solvers

SCHEDULE = schedules.VPLinear()


def fn(x, t):
  """Couples the modalities and their times, row by row."""
  time = {n: schedules.along(jnp.asarray(t[n]), x[n]) for n in x}
  return {"a": x["a"] * time["a"] + 0.3 * x["b"], "b": 0.2 * x["b"] + x["a"] * (1 + time["a"])}


DENOISER = solvers.from_eps(fn, SCHEDULE)
X = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[0.5], [-1.0]])}
NOISE = {"a": jnp.array([[-0.4], [0.9]])}
T = {"a": jnp.float32(0.0), "b": jnp.float32(0.6)}


def test_combines_conditional_and_unconditional():
  conditional = DENOISER(X, T)
  unconditional = DENOISER(X | NOISE, T | {"a": jnp.float32(1.0)})
  for t in (T, {name: jnp.full(2, time) for name, time in T.items()}):
    guided = guidance.guide(DENOISER, 2.5, NOISE)(X, t)
    for got, c, u in zip(guided, conditional, unconditional, strict=True):
      np.testing.assert_allclose(got["b"], u["b"] + 2.5 * (c["b"] - u["b"]), rtol=1e-5)
  x0, eps = guided
  x = SCHEDULE.alpha(T["b"]) * x0["b"] + SCHEDULE.sigma(T["b"]) * eps["b"]
  np.testing.assert_allclose(x, X["b"], rtol=1e-5)


def test_only_what_is_given_is_made_absent():
  noise = NOISE | {"b": jnp.full((2, 1), 99.0)}
  for got, expected in zip(
    guidance.guide(DENOISER, 2.5, noise)(X, T),
    guidance.guide(DENOISER, 2.5, NOISE)(X, T),
    strict=True,
  ):
    np.testing.assert_array_equal(got["b"], expected["b"])


def test_strength_one_is_the_denoiser_itself_and_others_call_it_once():
  assert guidance.guide(DENOISER, 1.0, NOISE) is DENOISER
  calls = []

  def counted(x, t):
    calls.append(1)
    return DENOISER(x, t)

  guidance.guide(counted, 0.0, NOISE)(X, T)
  assert len(calls) == 1


def test_guided_sampling_leaves_the_given_alone():
  path = multitime.conditional(("a", "b"), ("a",), 4)
  got = jax.jit(
    lambda denoiser: solvers.sample(
      jax.random.key(0), denoiser, SCHEDULE, X, path, solver=solvers.heun
    )
  )(guidance.guide(DENOISER, jnp.float32(2.0), NOISE))
  np.testing.assert_array_equal(got["a"], X["a"])
  assert np.isfinite(got["b"]).all()
