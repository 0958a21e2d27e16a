"""All paths lead to one law: given modalities condition it, absent ones are marginalised out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import multitime, noise as noise_lib, prediction, schedules, solvers
from tests.laws import gaussian
from tests.laws.gaussian import COVARIANCE, join, NAMES, SCHEDULES, SOLVERS, split

STEPS = 1024
# Largest error of a covariance after 1,024 steps of each modality.
TOLERANCE = {"heun": 2e-5, "dpmpp_2m": 2e-5, "unipc": 1e-6, "sde_dpmpp_2m": 6e-5}
FIRST_ORDER = 0.04


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def paths():
  """Every kind of path that ends with all modalities clean."""
  return {
    "joint": multitime.joint(NAMES, STEPS),
    "staggered": multitime.staggered(NAMES, STEPS // 4, STEPS),
    "sequential": multitime.sequential(NAMES[::-1], STEPS),
    "given a": multitime.conditional(NAMES, ("a",), STEPS),
    "given b": multitime.conditional(NAMES, ("b",), STEPS),
  }


@pytest.mark.parametrize("name", SOLVERS)
def test_every_path_leads_to_the_data(name):
  """It does also where one modality is given: with its law, the conditional one is the joint."""
  for kind, path in paths().items():
    path = gaussian.padded(path, 2 * STEPS)
    got = gaussian.end_covariance(SOLVERS[name], SCHEDULES["vp_linear"], path)
    tolerance = TOLERANCE.get(name, FIRST_ORDER)
    np.testing.assert_allclose(got, COVARIANCE, atol=tolerance, err_msg=kind)


@pytest.mark.parametrize(
  ("schedule", "tolerance"),
  # `power_grid` suits the last two less than the others.
  [("vp_cosine", 2e-5), ("rectified_flow", 2e-5), ("table", 2e-5), ("sub_vp", 3e-5), ("ve", 6e-5)],
)
def test_every_path_leads_to_the_data_on_every_schedule(schedule, tolerance):
  for kind, path in paths().items():
    path = gaussian.padded(path, 2 * STEPS)
    got = gaussian.end_covariance(solvers.heun, SCHEDULES[schedule], path)
    np.testing.assert_allclose(got, COVARIANCE, atol=tolerance, err_msg=kind)


@pytest.mark.parametrize(
  ("name", "tolerance"),
  [("heun", 2e-5), ("ancestral", 0.01), ("euler_maruyama", 5e-3)],
)
def test_zero_terminal_snr_leads_to_the_data(name, tolerance):
  """A table of DDPM with its product shifted and scaled so that the last beta is 1."""
  root = np.sqrt(np.cumprod(1 - np.linspace(0.02, 0.3, 32)))
  root = (root - root[-1]) * root[0] / (root[0] - root[-1])
  betas = 1 - np.append(root[0], root[1:] / root[:-1]) ** 2
  schedule = schedules.Table(tuple(betas.tolist()))
  assert schedule.betas[-1] == 1
  path = gaussian.padded(multitime.joint(NAMES, STEPS), 2 * STEPS)
  got = gaussian.end_covariance(SOLVERS[name], schedule, path)
  np.testing.assert_allclose(got, COVARIANCE, atol=tolerance)


def test_zero_terminal_snr_with_predictions_of_v_and_velocity():
  """They give the same samples as the exact x0 and eps, also from alpha = 0."""
  schedule = schedules.Table((0.1, 0.4, 1.0))
  exact = gaussian.oracle(schedule)
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  path = multitime.joint(NAMES, 12)

  def predicts(target):
    def fn(x, t):
      x0, eps = exact(x, t)
      return {n: target(x0[n], eps[n], t[n]) for n in x}

    return fn

  def velocity(x0, eps, t):
    rates = [jax.grad(level)(t) for level in (schedule.alpha, schedule.sigma)]
    return prediction.to_velocity(x0, eps, *rates)

  v = lambda x0, eps, t: prediction.to_v(x0, eps, schedule.alpha(t), schedule.sigma(t))  # noqa: E731
  ends = [
    join(solvers.sample(jax.random.key(1), denoiser, schedule, x, path, solver=solvers.dpmpp_2m))
    for denoiser in (
      exact,
      solvers.from_v(predicts(v), schedule),
      solvers.from_velocity(predicts(velocity), schedule),
    )
  ]
  assert np.isfinite(ends[0]).all()
  for end in ends[1:]:
    np.testing.assert_allclose(end, ends[0], atol=1e-9)


@pytest.mark.parametrize("name", ["heun", "unipc"])
def test_the_conditional_law(name):
  schedule = SCHEDULES["vp_cosine"]  # alpha(1) = 0: noise at 1 is independent of `a`
  path = gaussian.padded(multitime.conditional(NAMES, ("a",), STEPS), 2 * STEPS)
  matrix = gaussian.matrix(SOLVERS[name], schedule, path)
  np.testing.assert_allclose(matrix[2, :2], gaussian.REGRESSION, atol=1e-5)
  np.testing.assert_allclose(matrix[2, 2] ** 2, gaussian.VARIANCE, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_held_at_one_gives_the_marginal(name):
  path = gaussian.padded(multitime.marginal(NAMES, ("a",), STEPS), 2 * STEPS)
  got = gaussian.end_covariance(SOLVERS[name], SCHEDULES["vp_linear"], path)
  tolerance = TOLERANCE.get(name, FIRST_ORDER)
  np.testing.assert_allclose(got[:2, :2], COVARIANCE[:2, :2], atol=tolerance)


@pytest.mark.parametrize("name", gaussian.STOCHASTIC)
def test_back_and_forth_keeps_the_law(name):
  """Re-noising is exact, so RePaint's path has only the errors of its last walk."""
  path = multitime.repaint(NAMES, 256, jump=64, repeats=3)
  assert len(path.times["a"]) - 1 == 256 * 3 + 4 * 2
  got = gaussian.end_covariance(SOLVERS[name], SCHEDULES["vp_linear"], path)
  np.testing.assert_allclose(got, COVARIANCE, atol=0.1 if name not in TOLERANCE else 2e-3)


@pytest.mark.parametrize("name", gaussian.STOCHASTIC)
def test_a_rising_move_of_the_sde_is_exact(name):
  schedule = SCHEDULES["vp_linear"]
  path = multitime.Path({"a": jnp.array([0.0, 0.7]), "b": jnp.array([0.3, 1.0])})
  got = gaussian.end_covariance(SOLVERS[name], schedule, path)
  np.testing.assert_allclose(got, gaussian.law(schedule, gaussian.at(path, -1)), atol=1e-12)


@pytest.mark.parametrize(
  ("name", "schedule"),
  [("heun", "vp_linear"), ("dpmpp_2m", "vp_linear"), ("unipc", "vp_cosine"), ("heun", "ve")],
)
def test_encoding_and_back(name, schedule):
  """The ODE leads up from clean data to noise of the right law, and down to the same data."""
  schedule = SCHEDULES[schedule]
  down = gaussian.padded(multitime.joint(NAMES, STEPS), 2 * STEPS)
  up = multitime.reverse(down)
  encode, decode = (gaussian.matrix(SOLVERS[name], schedule, path) for path in (up, down))
  size = float(schedule.sigma(jnp.ones(())))
  np.testing.assert_allclose(decode @ encode, np.eye(3), atol=1e-3)
  noise = gaussian.law(schedule, gaussian.at(down, 0))
  np.testing.assert_allclose(encode @ COVARIANCE @ encode.T / size**2, noise / size**2, atol=2e-3)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "sde_dpmpp_2m"])
def test_multistep_is_first_order_on_a_first_move_and_after_a_pause(name):
  schedule, denoise = SCHEDULES["vp_linear"], gaussian.oracle(SCHEDULES["vp_linear"])
  grid = {"a": [0.9, 0.8, 0.7, 0.7, 0.6, 0.5], "b": [0.9, 0.9, 0.8, 0.7, 0.6, 0.5]}
  path = multitime.Path({name: jnp.array(value) for name, value in grid.items()})
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  key = jax.random.key(1)
  points = solvers.sample(key, denoise, schedule, x, path, solver=SOLVERS[name], trajectory=True)
  single = solvers.ancestral if name == "sde_dpmpp_2m" else solvers.ddim(0.0)
  first_order = {"a": (0, 2, 3), "b": (0, 1)}
  for index in range(5):
    here = {name: value[index] for name, value in points.items()}
    step_key, _ = jax.random.split(jax.random.fold_in(key, index))
    alone, _ = single.step(
      step_key, denoise, schedule, here, gaussian.at(path, index), gaussian.at(path, index + 1), ()
    )
    for modality in NAMES:
      same = np.allclose(points[modality][index + 1], alone[modality], atol=1e-12)
      assert same == (index in first_order[modality]), (modality, index)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "euler"])
def test_arrival_at_zero_is_the_mean(name, schedule):
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  t, s = ({modality: jnp.array(time) for modality in NAMES} for time in (0.5, 0.0))
  denoise, solver = gaussian.oracle(SCHEDULES[schedule]), SOLVERS[name]

  @jax.jit
  def both(x, t, s):
    step = solver.step(jax.random.key(1), denoise, SCHEDULES[schedule], x, t, s, solver.init(x))
    return step[0], denoise(x, t)[0]

  got, expected = both(x, t, s)
  np.testing.assert_allclose(join(got), join(expected), atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_given_modalities_are_unchanged_bit_for_bit(name):
  schedule = SCHEDULES["vp_linear"]
  path = multitime.conditional(NAMES, ("a",), 7)
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  got = solvers.sample(
    jax.random.key(1), gaussian.oracle(schedule), schedule, x, path, solver=SOLVERS[name]
  )
  np.testing.assert_array_equal(got["a"], x["a"])
  assert not np.any(got["b"] == x["b"])


@pytest.mark.parametrize("name", SOLVERS)
def test_independent_modalities_end_as_they_do_alone(name):
  schedule = SCHEDULES["vp_linear"]
  blocks = COVARIANCE * np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))

  @jax.jit
  def run(path):
    return solvers.sample(
      jax.random.key(1), gaussian.oracle(schedule, blocks), schedule, x, path, solver=SOLVERS[name]
    )

  together = run(multitime.joint(NAMES, 20))
  alone = run(multitime.marginal(NAMES, ("a",), 20))
  np.testing.assert_allclose(together["a"], alone["a"], atol=1e-10)


def test_ddim_with_all_noise_is_ancestral():
  schedule = SCHEDULES["vp_linear"]
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  path = multitime.joint(NAMES, 20)
  ends = [
    solvers.sample(jax.random.key(1), gaussian.oracle(schedule), schedule, x, path, solver=solver)
    for solver in (solvers.ddim(1.0), solvers.ancestral)
  ]
  np.testing.assert_allclose(join(ends[0]), join(ends[1]), atol=1e-10)


def test_large_variance_is_that_of_the_forward_process():
  """With x0 = 0 given, a step adds noise of variance beta = sigma_t^2 (1 - SNR_t / SNR_s)."""
  schedule = SCHEDULES["vp_linear"]
  t, s = ({name: jnp.array(time) for name in NAMES} for time in (0.6, 0.5))
  zeros = split(jnp.zeros((4, 3)))
  key = jax.random.key(1)
  moved, _ = solvers.ancestral_large.step(key, lambda x, t: (x, x), schedule, zeros, t, s, ())
  noise = noise_lib.normal_like(key, "a", zeros["a"])
  ratio = jnp.exp(schedule.log_snr(t["a"]) - schedule.log_snr(s["a"]))
  beta = schedule.sigma(t["a"]) ** 2 * (1 - ratio)
  np.testing.assert_allclose((moved["a"] / noise) ** 2, beta, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_exponential_euler_on_the_ode(schedule):
  """x / sigma is linear in kappa while x0 is held constant."""
  schedule = SCHEDULES[schedule]
  denoise = gaussian.oracle(schedule)
  t, s = ({name: jnp.array(time) for name in NAMES} for time in (0.6, 0.5))
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  moved, _ = solvers.ddim(0.0).step(jax.random.key(1), denoise, schedule, x, t, s, ())
  x0, _ = denoise(x, t)
  (alpha_t, alpha_s), (sigma_t, sigma_s) = (
    [level(time["a"]) for time in (t, s)] for level in (schedule.alpha, schedule.sigma)
  )
  expected = x["a"] / sigma_t + (alpha_s / sigma_s - alpha_t / sigma_t) * x0["a"]
  np.testing.assert_allclose(moved["a"] / sigma_s, expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["vp_linear", "vp_cosine"])
@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_finite(name, schedule):
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  schedule = SCHEDULES[schedule]

  @jax.jit
  @jax.grad
  def slope(x, path):
    ends = solvers.sample(
      jax.random.key(1), gaussian.oracle(schedule), schedule, x, path, solver=SOLVERS[name]
    )
    return join(ends).sum()

  for path in (multitime.conditional(NAMES, ("a",), 6), multitime.sequential(NAMES, 3)):
    assert np.isfinite(join(slope(x, path))).all()


def test_a_schedule_for_each_modality():
  each = {"a": schedules.VPLinear(), "b": schedules.RectifiedFlow()}
  path = multitime.joint(NAMES, STEPS)
  denoise = gaussian.oracle(each)
  moved = jax.jit(
    lambda x: solvers.sample(jax.random.key(0), denoise, each, x, path, solver=solvers.heun)
  )(split(jnp.eye(3)))
  matrix = join(moved).T
  got = matrix @ gaussian.law(each, gaussian.at(path, 0)) @ matrix.T
  np.testing.assert_allclose(got, COVARIANCE, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_finite_beside_absent_or_given_modalities(name):
  """So are those in the times of the path, where alpha(1) = 0 and log_snr is infinite."""
  schedule = SCHEDULES["vp_cosine"]
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))

  def total(x, times, held):
    path = multitime.Path({"a": times, "b": jnp.full_like(times, held)})
    ends = solvers.sample(
      jax.random.key(1), gaussian.oracle(schedule), schedule, x, path, solver=SOLVERS[name]
    )
    return ends["a"].sum()

  slopes = jax.jit(jax.grad(total, (0, 1)))
  for held in (0.0, 1.0):
    of_x, of_times = slopes(x, jnp.array([0.9, 0.5, 0.3, 0.2]), held)
    assert np.isfinite(join(of_x)).all() and np.isfinite(of_times).all()
    assert np.abs(of_times).max() > 0


def test_euler_maruyama_starts_where_the_drift_is_finite():
  schedule, seen = SCHEDULES["vp_cosine"], []

  def denoise(x, t):
    seen.append({name: float(time) for name, time in t.items()})
    return x, x

  x = split(jnp.ones((2, 3)))
  for t, s in ((1.0, 0.5), (0.4, 0.3)):
    moving, to = {"a": jnp.array(t), "b": jnp.array(1.0)}, {"a": jnp.array(s), "b": jnp.array(1.0)}
    solvers.euler_maruyama.step(jax.random.key(0), denoise, schedule, x, moving, to, ())
  assert seen == [{"a": 0.999, "b": 1.0}, {"a": 0.4, "b": 1.0}]


def test_heun_arrives_at_zero_by_the_first_order_move():
  """It does also while another modality goes on, and with a denoiser that is not exact."""
  schedule = SCHEDULES["vp_linear"]

  def denoise(x, t):
    return {n: jnp.sin(x[n]) + t["b"] for n in x}, {n: jnp.cos(x[n]) for n in x}

  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  t = {"a": jnp.array(0.3), "b": jnp.array(0.6)}
  s = {"a": jnp.array(0.0), "b": jnp.array(0.5)}
  got, _ = solvers.heun.step(jax.random.key(0), denoise, schedule, x, t, s, ())
  np.testing.assert_allclose(got["a"], denoise(x, t)[0]["a"], atol=1e-12)
  first, _ = solvers.ddim(0.0).step(
    jax.random.key(0), lambda x, t: solvers_pair(denoise, schedule, x, t), schedule, x, t, s, ()
  )
  end = denoise(got | {"b": first["b"]}, s)[0]["b"]
  mean = 0.5 * (denoise(x, t)[0]["b"] + end)
  shrink = schedule.sigma(s["b"]) / schedule.sigma(t["b"])
  gain = schedule.alpha(s["b"]) - schedule.alpha(t["b"]) * shrink
  np.testing.assert_allclose(got["b"], shrink * x["b"] + gain * mean, atol=1e-12)


def solvers_pair(denoise, schedule, x, t):
  """Returns x0 unchanged, and the eps that belongs to it."""
  x0, _ = denoise(x, t)
  return x0, {n: (x[n] - schedule.alpha(t[n]) * x0[n]) / schedule.sigma(t[n]) for n in x}


def test_ddim_in_between():
  """One step follows the formula of Song, Meng and Ermon (2021, Eq. 12) with eta = 1/2."""
  schedule, key = SCHEDULES["vp_linear"], jax.random.key(1)
  t, s = ({name: jnp.array(time) for name in NAMES} for time in (0.6, 0.5))
  x = split(jax.random.normal(jax.random.key(3), (5, 3)))
  denoise = gaussian.oracle(schedule)
  got, _ = solvers.ddim(0.5).step(key, denoise, schedule, x, t, s, ())
  x0, eps = denoise(x, t)
  abar_t, abar_s = (schedule.alpha(time["a"]) ** 2 for time in (t, s))
  c = 0.5 * jnp.sqrt((1 - abar_s) / (1 - abar_t)) * jnp.sqrt(1 - abar_t / abar_s)
  noise = noise_lib.normal_like(key, "a", x["a"])
  expected = jnp.sqrt(abar_s) * x0["a"] + jnp.sqrt(1 - abar_s - c**2) * eps["a"] + c * noise
  np.testing.assert_allclose(got["a"], expected, atol=1e-12)
  assert solvers.ddim() is solvers.ddim()
  plain, _ = solvers.ddim().step(key, denoise, schedule, x, t, s, ())
  expected = jnp.sqrt(abar_s) * x0["a"] + jnp.sqrt(1 - abar_s) * eps["a"]
  np.testing.assert_allclose(plain["a"], expected, atol=1e-12)
