"""Correctors keep the law, and lead composed experts to the true posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import guidance, multitime, noise as noise_lib, schedules, solvers
from tests.laws import gaussian
from tests.laws.gaussian import join, NAMES, split

SCHEDULE = schedules.VPCosine()
BOTH = dict.fromkeys(NAMES, True)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(name="t")
def _times():
  return {"a": jnp.array(0.4), "b": jnp.array(0.6)}


def after_one_step(t, snr, covariance, leapfrog=1):
  """Returns A P A' + B B' of one step, for P the covariance."""
  denoise = gaussian.oracle(SCHEDULE)

  def moved(rows, key):
    return join(solvers.hmc(key, denoise, SCHEDULE, split(rows), t, BOTH, snr, leapfrog))

  zeros, keys = jnp.zeros((3, 3)), jax.random.split(jax.random.key(0), 3)
  linear = (moved(jnp.eye(3), keys[0]) - moved(zeros, keys[0])).T
  # B from three draws of the momentum, in which the end is linear, too.
  noise = jnp.stack(
    [join({n: noise_lib.normal_like(k, n, x) for n, x in split(zeros).items()})[0] for k in keys]
  )
  spread = jnp.linalg.solve(noise, jnp.stack([moved(zeros, k)[0] for k in keys])).T
  return linear @ covariance @ linear.T + spread @ spread.T


def test_langevin_leaves_the_law_as_its_step_goes_to_zero(t):
  """The change by a step falls with delta^2, that is with snr^4: the drift undoes the noise."""
  law = gaussian.law(SCHEDULE, t)
  snrs = (0.2, 0.05)
  changes = [float(jnp.abs(after_one_step(t, snr, law) - law).max()) for snr in snrs]
  assert np.log(changes[0] / changes[1]) / np.log(4) == pytest.approx(4, abs=0.01)
  # A law other than the right one changes by delta.
  changes = [float(jnp.abs(after_one_step(t, snr, 2 * law) - 2 * law).max()) for snr in snrs]
  assert np.log(changes[0] / changes[1]) / np.log(4) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("leapfrog", [1, 2, 5])
def test_hmc_leads_to_the_documented_law(leapfrog):
  """At one level it preserves C (I - delta / (2 C))^-1, a little wider than C."""
  t = dict.fromkeys(NAMES, jnp.array(0.6))
  law, delta = gaussian.law(SCHEDULE, t), (0.3 * SCHEDULE.sigma(t["a"])) ** 2
  reached = law @ jnp.linalg.inv(jnp.eye(3) - 0.5 * delta * jnp.linalg.inv(law))
  np.testing.assert_allclose(after_one_step(t, 0.3, reached, leapfrog), reached, atol=1e-12)
  assert jnp.abs(after_one_step(t, 0.3, 1.2 * reached, leapfrog) - 1.2 * reached).max() > 1e-3


def test_only_what_moves_is_corrected(t):
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  moving = {"a": jnp.array(False), "b": jnp.array(True)}
  got = solvers.hmc(jax.random.key(0), gaussian.oracle(SCHEDULE), SCHEDULE, x, t, moving, 0.1)
  np.testing.assert_array_equal(got["a"], x["a"])
  assert not np.any(got["b"] == x["b"])


def test_predictor_corrector_is_the_step_then_langevin(t):
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  denoise, key = gaussian.oracle(SCHEDULE), jax.random.key(1)
  predict_key, correct_key = jax.random.split(key)
  s = {"a": jnp.array(0.4), "b": jnp.array(0.5)}  # `a` stands still.
  solver = solvers.corrected(solvers.ancestral, num=2, snr=0.1)
  got, _ = solver.step(key, denoise, SCHEDULE, x, t, s, ())
  expected, _ = solvers.ancestral.step(predict_key, denoise, SCHEDULE, x, t, s, ())
  moving = {"a": False, "b": True}
  for index in range(2):
    hmc_key = jax.random.fold_in(correct_key, index)
    expected = solvers.hmc(hmc_key, denoise, SCHEDULE, expected, s, moving, 0.1)
  np.testing.assert_allclose(join(got), join(expected), atol=1e-12)
  np.testing.assert_array_equal(got["a"], x["a"])
  # At time 0 there is nothing to correct.
  zero = dict.fromkeys(NAMES, jnp.array(0.0))
  at_end, _ = solver.step(key, denoise, SCHEDULE, x, t, zero, ())
  np.testing.assert_allclose(join(at_end), join(denoise(x, t)[0]), atol=1e-12)
  assert solver.evaluations(10) == 10 + 2 * 9
  assert solvers.corrected(solvers.ancestral, num=2, leapfrog=3).evaluations(10) == 10 + 6 * 9


def test_defaults_are_one_small_correction(t):
  s = {"a": jnp.array(0.3), "b": jnp.array(0.5)}
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  ends = [
    solver.step(jax.random.key(1), gaussian.oracle(SCHEDULE), SCHEDULE, x, t, s, ())[0]
    for solver in (
      solvers.corrected(solvers.ancestral),
      solvers.corrected(solvers.ancestral, num=1, snr=0.16),
    )
  ]
  np.testing.assert_array_equal(*map(join, ends))
  arguments = (jax.random.key(1), gaussian.oracle(SCHEDULE), SCHEDULE, x, t, BOTH)
  default, explicit = solvers.hmc(*arguments), solvers.hmc(*arguments, 0.16)
  np.testing.assert_array_equal(join(default), join(explicit))


def posterior_experts(stds, observed, weights=None):
  """Composes exact experts of x = z + s n for z ~ N(0, 1), and the unconditional one."""

  def expert(variance, mean):
    def x0_fn(x, t):
      alpha, sigma = SCHEDULE.alpha(t["z"]), SCHEDULE.sigma(t["z"])
      gain = alpha * variance / (alpha**2 * variance + sigma**2)
      return {"z": mean + gain * (x["z"] - alpha * mean)}

    return solvers.from_x0(x0_fn, SCHEDULE)

  experts = [expert(s**2 / (1 + s**2), observed / (1 + s**2)) for s in stds]
  return guidance.compose(expert(1.0, 0.0), experts, weights or [1.0] * len(experts))


def composed_law(solver, stds, num_steps, weights=None):
  """Returns the mean and variance of z by a solver: the step is affine, so nothing is sampled."""
  path = multitime.joint(("z",), num_steps)
  denoise = posterior_experts(stds, 1.0, weights)
  key = jax.random.key(0)

  def step(carry, inputs):
    mean, variance = carry
    index, t, s = inputs
    step_key = jax.random.fold_in(key, index)
    # Rows: the mean, and the mean plus 1, each with noise of its own.
    x = {"z": jnp.stack([mean, mean + 1.0])[:, None]}
    moved, _ = solver.step(step_key, denoise, SCHEDULE, x, {"z": t}, {"z": s}, ())
    noise = noise_lib.normal_like(step_key, "z", x["z"])
    move = 1 - jnp.exp(SCHEDULE.log_snr(t) - SCHEDULE.log_snr(s))
    scale = SCHEDULE.sigma(s) * jnp.sqrt(move) if solver is solvers.ancestral else 0.0
    ends = (moved["z"] - scale * noise)[:, 0]
    slope = ends[1] - ends[0]
    return (ends[0], slope**2 * variance + scale**2), None

  start = (jnp.array(0.0), SCHEDULE.sigma(jnp.array(1.0)) ** 2)
  times = path.times["z"]
  inputs = (jnp.arange(num_steps), times[:-1], times[1:])
  return jax.lax.scan(step, start, inputs)[0]


@pytest.mark.parametrize(
  ("stds", "ode", "ancestral"),
  [
    ((1.0, 1.0), (0.8116, 0.2500), (0.7500, 7 / 24)),
    ((0.5, 0.5), (1.0582, 0.0400), (0.9600, 0.08266)),
    ((0.5, 0.5, 0.5), (1.1200, 0.0080), (0.9920, 0.04998)),
  ],
)
def test_composed_experts_end_elsewhere_than_the_posterior(stds, ode, ancestral):
  """The ODE reaches the product of the experts' variances; the SDE a value in between."""
  for solver, expected in ((solvers.heun, ode), (solvers.ancestral, ancestral)):
    mean, variance = composed_law(solver, stds, 16_000)
    assert float(mean) == pytest.approx(expected[0], abs=1e-4)
    assert float(variance) == pytest.approx(expected[1], rel=1e-3)


ODE, SDE = (0.8116, 0.25), (0.75, 7 / 24)


@pytest.mark.parametrize(
  ("solver", "expected"),
  [
    (solvers.ddim(0.0), ODE),
    (solvers.euler, ODE),
    (solvers.dpmpp_2m, ODE),
    (solvers.unipc, ODE),
    (solvers.euler_maruyama, SDE),
    (solvers.ancestral_large, SDE),
    (solvers.sde_dpmpp_2m, SDE),
  ],
  ids=["ddim", "euler", "dpmpp_2m", "unipc", "euler_maruyama", "ancestral_large", "sde_dpmpp_2m"],
)
def test_every_solver_takes_a_composition(solver, expected):
  """With experts of standard deviation 1 it reaches the limit of its kind."""
  denoise = posterior_experts((1.0, 1.0), 1.0)

  @jax.jit
  def run(key):
    x = solvers.prior(key, SCHEDULE, {"z": (1,)}, 40_000)
    return solvers.sample(key, denoise, SCHEDULE, x, multitime.joint(("z",), 500), solver=solver)

  z = run(jax.random.key(0))["z"]
  # Five standard errors.
  assert float(z.mean()) == pytest.approx(expected[0], abs=0.014)
  assert float(z.var()) == pytest.approx(expected[1], rel=0.035)


def test_with_weights_the_ode_reaches_the_product_of_powers():
  """prod v_i^{g_i} is (1/2)^0.5 (1/5)^2 with these weights and standard deviations."""
  _, variance = composed_law(solvers.heun, (1.0, 0.5), 4000, weights=(0.5, 2.0))
  assert float(variance) == pytest.approx(0.5**0.5 * 0.2**2, rel=2e-3)


def test_one_expert_is_itself():
  mean, variance = composed_law(solvers.heun, (0.5,), 4000)
  assert float(mean) == pytest.approx(0.8, abs=1e-4)
  assert float(variance) == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize(
  ("stds", "num", "leapfrog"),
  [((1.0, 1.0), 16, 1), ((1.0, 1.0), 4, 3), ((0.5, 0.5), 4, 3), ((0.5, 0.5, 0.5), 4, 3)],
)
def test_the_corrector_leads_back_to_the_posterior(stds, num, leapfrog):
  """Corrections have the size, and paths the grid, of `configs/mcdm.py`."""
  rows = 40_000
  denoise = posterior_experts(stds, 1.0)
  path = multitime.joint(("z",), 60)

  @jax.jit
  def run(key):
    x = solvers.prior(key, SCHEDULE, {"z": (1,)}, rows)
    solver = solvers.corrected(solvers.ancestral, num=num, snr=0.7, leapfrog=leapfrog)
    return solvers.sample(key, denoise, SCHEDULE, x, path, solver=solver)["z"]

  z = run(jax.random.key(0))
  precision = 1 + sum(s**-2 for s in stds)
  assert float(z.mean()) == pytest.approx(1 - 1 / precision, rel=0.02)
  assert float(z.var()) == pytest.approx(1 / precision, rel=0.02)


@pytest.mark.parametrize("solver", [solvers.dpmpp_2m, solvers.unipc, solvers.sde_dpmpp_2m])
def test_a_multistep_solver_drops_its_history_at_a_correction(solver):
  """Its history is of points that have since moved: with it the variance is 12 % too large."""
  rows, denoise = 40_000, posterior_experts((1.0, 1.0), 1.0)
  path = multitime.joint(("z",), 60, grid=multitime.power_grid(60, 1.5))

  @jax.jit
  def run(key):
    x = solvers.prior(key, SCHEDULE, {"z": (1,)}, rows)
    corrected = solvers.corrected(solver, num=4, snr=0.7, leapfrog=3)
    return solvers.sample(key, denoise, SCHEDULE, x, path, solver=corrected)["z"]

  assert float(run(jax.random.key(0)).var()) == pytest.approx(1 / 3, rel=0.025)


@pytest.mark.parametrize(
  ("weights", "stds", "precision"),
  [
    ((1.0,), (0.01,), 1.0),
    ((1.0, 1.0, 1.0), (0.01, 0.01, 0.01), 3.0),
    # The condition that is avoided has little information, and removes little.
    ((5.0, -4.0), (0.01, 100.0), 5.0),
  ],
)
def test_the_largest_snr_is_where_steps_begin_to_diverge(weights, stds, precision):
  """A Langevin step multiplies by 1 - snr^2 C^-1 sigma^2, for experts that are certain of z."""
  largest = solvers.largest_snr(weights)
  assert largest == pytest.approx((2 / precision) ** 0.5)
  denoise, t = posterior_experts(stds, 1.0, list(weights)), {"z": jnp.array(0.3)}

  def factor(snr):
    x = {"z": jnp.array([[0.0], [1.0]])}
    ends = [
      solvers.hmc(jax.random.key(0), denoise, SCHEDULE, start, t, {"z": True}, snr)["z"]
      for start in (x, {"z": x["z"] + 1.0})
    ]
    return np.abs(ends[1] - ends[0]).max()

  assert factor(0.97 * largest) < 1 < factor(1.1 * largest)


def test_the_largest_snr_is_for_all_choices_of_the_experts():
  """An avoided expert alone leaves the unconditional model weight 2; half an expert, weight 1/2."""
  assert solvers.largest_snr((-1.0,)) == pytest.approx(1.0)
  assert solvers.largest_snr((0.5,)) == solvers.largest_snr(()) == pytest.approx(2**0.5)
  assert solvers.largest_snr((1.0, -1.0)) == pytest.approx(1.0)
