"""Log-likelihoods against the Gaussian density."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmdiff_jax import multitime, schedules, solvers
from tests.laws import gaussian
from tests.laws.gaussian import COVARIANCE, NAMES, split

ROWS = np.random.default_rng(0).multivariate_normal(np.zeros(3), COVARIANCE, 4)
SCHEDULE = schedules.VPCosine()  # alpha(1) = 0: the prior is the law at 1, whatever is given


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@functools.partial(jax.jit, static_argnums=0, static_argnames=("trace", "num_probes"))
def log_prob(schedule, path, rows=ROWS, *, seed=0, **options):
  denoise = gaussian.oracle(schedule)
  key = jax.random.key(seed)
  x = split(jnp.asarray(rows))
  return solvers.log_likelihood(key, denoise, schedule, x, path, **options)


def density(columns):
  law = stats.multivariate_normal(np.zeros(len(columns)), COVARIANCE[np.ix_(columns, columns)])
  return law.logpdf(ROWS[:, columns])


# alpha(1) of sub-VP and VE leaves some of the data at t = 1, which N(0, sigma(1)^2 I) ignores.
@pytest.mark.parametrize(
  ("schedule", "tolerance"),
  [("vp_linear", 1e-3), ("vp_cosine", 1e-3), ("rectified_flow", 1e-3), ("sub_vp", 1e-3)]
  + [("ve", 5e-3)],
)
def test_exact_trace(schedule, tolerance):
  got = log_prob(gaussian.SCHEDULES[schedule], multitime.joint(NAMES, 512))
  np.testing.assert_allclose(got, density([0, 1, 2]), atol=tolerance)


def test_every_path_gives_one_number_and_the_chain_rule_holds():
  """log p(a) + log p(b | a) = log p(a, b)."""
  joint = density([0, 1, 2])
  log_probs = {
    "staggered": log_prob(SCHEDULE, multitime.staggered(NAMES, 128, 512)),
    "sequential": log_prob(SCHEDULE, multitime.sequential(NAMES, 256)),
  }
  for kind, got in log_probs.items():
    np.testing.assert_allclose(got, joint, atol=1e-3, err_msg=kind)
  # An absent modality is pure noise, so its value is that at time 1.
  absent = np.array(ROWS)
  absent[:, 2] = 0.3
  marginal = log_prob(SCHEDULE, multitime.marginal(NAMES, ("a",), 512), absent)
  conditional = log_prob(SCHEDULE, multitime.conditional(NAMES, ("a",), 512))
  np.testing.assert_allclose(conditional, joint - density([0, 1]), atol=1e-3)
  np.testing.assert_allclose(marginal, density([0, 1]), atol=1e-3)


def test_a_path_may_end_before_time_zero():
  """Then it is the density of still noisy data; alpha^2 + sigma^2 is not 1 there."""
  schedule = gaussian.SCHEDULES["sub_vp"]
  path = multitime.joint(NAMES, 512, grid=jnp.linspace(1.0, 0.3, 513))
  law = gaussian.law(schedule, gaussian.at(path, -1))
  truth = stats.multivariate_normal(np.zeros(3), law).logpdf(ROWS)
  np.testing.assert_allclose(log_prob(schedule, path), truth, atol=1e-3)


def test_modalities_that_stand_still_are_passed_at_their_time():
  def denoise(x, t):
    x0, eps = gaussian.oracle(SCHEDULE)(x, t)
    return {name: jnp.where(t["a"] == 0, value, jnp.nan) for name, value in x0.items()}, eps

  path = multitime.conditional(NAMES, ("a",), 8)
  x = split(jnp.asarray(ROWS))
  got = solvers.log_likelihood(jax.random.key(0), denoise, SCHEDULE, x, path)
  assert np.isfinite(got).all()


def test_the_order_is_four():
  def log_probs(count):
    grid = jnp.linspace(1.0, 0.05, count + 1)
    return log_prob(SCHEDULE, multitime.joint(NAMES, count, grid=grid))

  counts = (16, 64)
  errors = [float(jnp.abs(log_probs(count) - log_probs(256)).max()) for count in counts]
  assert gaussian.slope(errors, counts) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(probe):
  """On a linear flow the estimate's mean over many probes is the exact trace."""
  path = multitime.joint(NAMES, 24)
  exact = log_prob(SCHEDULE, path, ROWS[:1])
  many = log_prob(SCHEDULE, path, np.repeat(ROWS[:1], 1000, 0), trace=probe, num_probes=2)
  assert float(many.std()) > 0.05  # The off-diagonal terms are there.
  error = float(many.std()) / math.sqrt(1000)
  assert float(many.mean()) == pytest.approx(float(exact[0]), abs=4 * error)
  one = log_prob(SCHEDULE, path, np.repeat(ROWS[:1], 1000, 0), trace=probe)
  assert float(one.var() / many.var()) == pytest.approx(2, rel=0.35)


def test_rows_are_independent_and_gradients_finite():
  path = multitime.joint(NAMES, 16)
  first = log_prob(SCHEDULE, path, ROWS, trace="rademacher")
  other = np.array(ROWS)
  other[1:] += 1
  np.testing.assert_allclose(log_prob(SCHEDULE, path, other, trace="rademacher")[0], first[0])
  slope = jax.grad(lambda rows: log_prob(SCHEDULE, path, rows).sum())(jnp.asarray(ROWS))
  np.testing.assert_allclose(slope, -np.linalg.solve(COVARIANCE, ROWS.T).T, atol=2e-2)


def test_bits_per_dim():
  # Uniform over 256 values in [0, 1]: eight bits.
  assert float(solvers.bits_per_dim(jnp.array(0.0), 10, 1 / 256)) == pytest.approx(8)
  # A density of e in each of ten dimensions: one nat less in each.
  got = float(solvers.bits_per_dim(jnp.array(10.0), 10, 1 / 256))
  assert got == pytest.approx(8 - 1 / math.log(2))


def test_errors():
  x = split(jnp.zeros((2, 3)))
  path = multitime.joint(NAMES, 2)
  call = functools.partial(
    solvers.log_likelihood, jax.random.key(0), gaussian.oracle(SCHEDULE), SCHEDULE
  )
  with pytest.raises(ValueError, match="'b'"):
    call({"a": x["a"]}, path)
  with pytest.raises(ValueError, match="num_probes=0"):
    call(x, path, num_probes=0)


def test_likelihoods_begin_at_the_prior():
  """Read upwards, or from a time below 1, the path would score x as if it were a draw at 1."""
  x, schedule = {"a": jnp.ones((2, 1))}, gaussian.SCHEDULES["vp_linear"]
  denoiser = solvers.from_v(lambda x, t: x, schedule)
  for path in (multitime.reverse(multitime.joint(("a",), 4)), multitime.Path({"a": [0.5, 0.0]})):
    with pytest.raises(ValueError, match="log_likelihood: the path of 'a' begins at time"):
      solvers.log_likelihood(jax.random.key(0), denoiser, schedule, x, path)
