"""The weights of a mixture's modes come out right, which they do not if a score is mis-scaled."""

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
    share = jax.nn.softmax(
      jnp.log(jnp.array(WEIGHTS)) - 0.5 * (x - alpha * means) ** 2 / variance, axis=-1
    )
    each = means + alpha * VARIANCE / variance * (x - alpha * means)
    return {"a": (share * each).sum(-1, keepdims=True)}

  @jax.jit
  def run(key):
    x = solvers.prior(key, schedule, {"a": (1,)}, ROWS)
    denoiser, path = solvers.from_x0(x0_fn, schedule), multitime.joint(("a",), 200)
    return solvers.sample(jax.random.key(1), denoiser, schedule, x, path, solver=solver)["a"]

  got = run(jax.random.key(0))
  deviation = (WEIGHTS[0] * WEIGHTS[1] / ROWS) ** 0.5
  assert float((got > 0).mean()) == pytest.approx(WEIGHTS[1], abs=4 * deviation)
  assert float(got[got > 0].var()) == pytest.approx(VARIANCE, rel=0.15)
