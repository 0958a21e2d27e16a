"""The weights of a mixture's modes come out right, which they do not if a score is mis-scaled."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mmdiff_jax import multitime, schedules, solvers
from tests.laws import gaussian

MEANS, WEIGHTS, VARIANCE, ROWS = (-2.0, 2.0), (0.25, 0.75), 0.1, 10_000


@pytest.mark.parametrize("name", [*gaussian.SOLVERS, "corrected"])
def test_mode_weights(name):
  solver = gaussian.SOLVERS.get(name) or solvers.corrected(solvers.ancestral, num=1, snr=0.3)
  schedule = schedules.VPLinear()

  def x0_fn(x, t):
    alpha, sigma, x = schedule.alpha(t["a"]), schedule.sigma(t["a"]), x["a"]
    variance = alpha**2 * VARIANCE + sigma**2
    means = jnp.array(MEANS)
    weights = jax.nn.softmax(
      jnp.log(jnp.array(WEIGHTS)) - 0.5 * (x - alpha * means) ** 2 / variance, axis=-1
    )
    each = means + alpha * VARIANCE / variance * (x - alpha * means)
    return {"a": (weights * each).sum(-1, keepdims=True)}

  @jax.jit
  def run(key):
    x = solvers.prior(key, schedule, {"a": (1,)}, ROWS)
    denoiser, path = solvers.from_x0(x0_fn, schedule), multitime.joint(("a",), 200)
    return solvers.sample(jax.random.key(1), denoiser, schedule, x, path, solver=solver)["a"]

  got = run(jax.random.key(0))
  std = (WEIGHTS[0] * WEIGHTS[1] / ROWS) ** 0.5
  assert float((got > 0).mean()) == pytest.approx(WEIGHTS[1], abs=4 * std)
  assert float(got[got > 0].var()) == pytest.approx(VARIANCE, rel=0.15)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ends(solver, schedule, times):
  """Returns the ends of points by the flow of a mixture of three modes, which is not linear."""
  means, weights, variance = jnp.array([-1.5, 0.2, 1.0]), jnp.array([0.2, 0.5, 0.3]), 0.3

  def denoiser(x, t):
    alpha, sigma, x = schedule.alpha(t["a"]), schedule.sigma(t["a"]), x["a"]
    spread = alpha**2 * variance + sigma**2
    posterior = jax.nn.softmax(jnp.log(weights) - 0.5 * (x - alpha * means) ** 2 / spread, axis=-1)
    whitened = (posterior * (x - alpha * means) / spread).sum(-1, keepdims=True)
    x0 = (posterior * means).sum(-1, keepdims=True) + alpha * variance * whitened
    return {"a": x0}, {"a": sigma * whitened}

  x = {"a": jnp.linspace(-2.0, 2.0, 9)[:, None]}
  path = multitime.Path({"a": times})
  return solvers.sample(jax.random.key(0), denoiser, schedule, x, path, solver=solver)["a"]


@pytest.mark.parametrize(
  ("solver", "order"), [(solvers.heun, 2), (solvers.dpmpp_2m, 2), (solvers.unipc, 3)]
)
@pytest.mark.parametrize("ends", [(15 / 16, 1 / 16), (1 / 16, 15 / 16)])
def test_order_on_a_flow_that_is_not_linear(solver, order, ends):
  counts = (128, 512)
  with jax.enable_x64(True):
    exact, *got = (
      # The path's rest is padding, so that one length is compiled.
      _ends(
        each, schedules.VPCosine(), jnp.pad(jnp.linspace(*ends, num + 1), (0, 2048 - num), "edge")
      )
      for each, num in [(solvers.unipc, 2048), *((solver, num) for num in counts)]
    )
    errors = [float(jnp.abs(value - exact).max()) for value in got]
  assert gaussian.slope(errors, counts) == pytest.approx(order, abs=0.15)
