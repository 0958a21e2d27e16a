"""Laws with closed forms: on a Gaussian target every step is linear, so nothing is sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import multitime, schedules, solvers

SIZES = {"a": 2, "b": 1}
NAMES = tuple(SIZES)
DIM = sum(SIZES.values())
COVARIANCE = np.array([[1.0, 0.3, 0.6], [0.3, 0.5, -0.2], [0.6, -0.2, 1.5]])
SCHEDULES = [schedules.VPLinear(), schedules.VPCosine(), schedules.RectifiedFlow()]
DETERMINISTIC = {"ddim": solvers.ddim(0.0), "heun": solvers.heun, "dpmpp_2m": solvers.dpmpp_2m}
STOCHASTIC = {
  "euler_maruyama": solvers.euler_maruyama,
  "ancestral": solvers.ancestral,
  "ddim_1": solvers.ddim(1.0),
}
SOLVERS = DETERMINISTIC | STOCHASTIC


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def split(rows):
  return {"a": rows[:, :2], "b": rows[:, 2:]}


def join(x):
  return jnp.concatenate([x[name] for name in NAMES], axis=1)


def coefficients(schedule, t):
  """alpha and sigma of every coordinate at a point of multi-time."""
  values = [(schedule.alpha(t[n]), schedule.sigma(t[n]), size) for n, size in SIZES.items()]
  return tuple(jnp.concatenate([jnp.full(v[2], v[i]) for v in values]) for i in (0, 1))


def law(schedule, t, covariance=COVARIANCE):
  alpha, sigma = coefficients(schedule, t)
  return alpha[:, None] * covariance * alpha + jnp.diag(sigma**2)


def oracle(schedule, covariance=COVARIANCE):
  """The exact E[x_0 | x] and E[eps | x] of N(0, covariance) at any point of multi-time."""

  def denoise(x, t):
    alpha, sigma = coefficients(schedule, t)
    whitened = jnp.linalg.solve(law(schedule, t, covariance), join(x).T).T
    return split(whitened * alpha @ covariance), split(whitened * sigma)

  return denoise


def times(path, index):
  return {name: value[index] for name, value in path.times.items()}


def end_covariance(solver, schedule, path, covariance=COVARIANCE):
  """Covariance at the path's end: P <- A P A' + B B' along it, from the exact law at its start."""
  denoise = oracle(schedule, covariance)
  basis, zeros = split(jnp.eye(DIM)), split(jnp.zeros((DIM, DIM)))
  if solver in DETERMINISTIC.values():
    moved = join(solvers.sample(jax.random.key(0), denoise, schedule, basis, path, solver=solver))
    return moved.T @ law(schedule, times(path, 0), covariance) @ moved

  def step(p, inputs):
    index, t, s = inputs
    key = jax.random.fold_in(jax.random.key(0), index)
    of_basis, of_zero = (
      join(solver.step(key, denoise, schedule, x, t, s, solver.init(x))[0]) for x in (basis, zeros)
    )
    matrix = (of_basis - of_zero).T
    # At x = 0 the mean is 0, so what came out is the noise times its scale.
    noise = join({name: multitime.normal_like(key, name, x) for name, x in zeros.items()})
    scale = (of_zero / noise)[0]
    return matrix @ p @ matrix.T + jnp.diag(scale**2), None

  num_steps = len(path.times["a"]) - 1
  starts = {name: value[:-1] for name, value in path.times.items()}
  ends = {name: value[1:] for name, value in path.times.items()}
  start = law(schedule, times(path, 0), covariance)
  return jax.lax.scan(step, start, (jnp.arange(num_steps), starts, ends))[0]


def slope(errors, counts):
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
  ("name", "order"),
  [
    ("ddim", 1),
    ("heun", 2),
    ("dpmpp_2m", 2),
    ("euler_maruyama", 1),
    ("ancestral", 1),
    ("ddim_1", 1),
  ],
)
@pytest.mark.parametrize("kind", ["joint", "staggered"])
def test_order_of_convergence(name, order, kind):
  schedule = schedules.VPLinear()
  counts, errors = [256, 1024], []
  for count in counts:
    grid = jnp.linspace(1.0, 0.05, count + 1)
    path = (
      multitime.joint(NAMES, count, grid=grid)
      if kind == "joint"
      else multitime.staggered(NAMES, count // 4, count, grid=grid)
    )
    got = end_covariance(SOLVERS[name], schedule, path)
    errors.append(float(jnp.abs(got - law(schedule, times(path, -1))).max()))
  assert slope(errors, counts) == pytest.approx(order, abs=0.1)


def test_multistep_is_first_order_on_a_first_move_and_after_a_pause():
  schedule, denoise = schedules.VPLinear(), oracle(schedules.VPLinear())
  grid = {"a": [0.9, 0.8, 0.7, 0.7, 0.6], "b": [0.9, 0.9, 0.8, 0.7, 0.6]}
  path = multitime.Path({name: jnp.array(value) for name, value in grid.items()})
  x = split(jax.random.normal(jax.random.key(3), (5, DIM)))
  points = solvers.sample(
    jax.random.key(1), denoise, schedule, x, path, solver=solvers.dpmpp_2m, trajectory=True
  )
  for index in range(4):
    here = {name: value[index] for name, value in points.items()}
    single, _ = solvers.ddim(0.0).step(
      jax.random.key(1), denoise, schedule, here, times(path, index), times(path, index + 1), ()
    )
    for name, first_order in (("a", (0, 2, 3)), ("b", (0, 1))):
      same = np.allclose(points[name][index + 1], single[name], atol=1e-12)
      assert same == (index in first_order), (name, index)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_a_pause_costs_no_order(name):
  """`a` stands still at 0.5 while `b` falls, then goes on: the x0 before the pause is of no use."""
  schedule = schedules.VPLinear()
  counts, errors = [120, 480], []
  for count in counts:
    first, last = jnp.linspace(1.0, 0.5, count + 1), jnp.linspace(0.5, 0.05, count + 1)
    still = jnp.ones(count)
    path = multitime.Path(
      {
        "a": jnp.concatenate([first, 0.5 * still, last[1:]]),
        "b": jnp.concatenate([first, last[1:], 0.05 * still]),
      }
    )
    got = end_covariance(SOLVERS[name], schedule, path)
    errors.append(float(jnp.abs(got - law(schedule, times(path, -1))).max()))
  assert slope(errors, counts) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_arrival_at_zero_is_the_mean(name, schedule):
  x = split(jax.random.normal(jax.random.key(3), (5, DIM)))
  path = multitime.joint(NAMES, 1, grid=jnp.array([0.5, 0.0]))
  denoise = oracle(schedule)
  got = solvers.sample(jax.random.key(1), denoise, schedule, x, path, solver=SOLVERS[name])
  np.testing.assert_allclose(join(got), join(denoise(x, times(path, 0))[0]), atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_all_paths_lead_to_the_data(name, schedule):
  paths = {"staggered": multitime.staggered(NAMES, 300, 1000)}
  if isinstance(schedule, schedules.VPLinear):  # to compile less
    paths["joint"] = multitime.joint(NAMES, 1000)
    paths["sequential"] = multitime.sequential(NAMES, 1000)
  for kind, path in paths.items():
    got = end_covariance(SOLVERS[name], schedule, path)
    np.testing.assert_allclose(got, COVARIANCE, atol=0.03, err_msg=kind)


@pytest.mark.parametrize("name", SOLVERS)
def test_held_at_one_gives_the_marginal(name):
  schedule = schedules.VPLinear()
  path = multitime.marginal(NAMES, ("a",), 1000)
  got = end_covariance(SOLVERS[name], schedule, path)
  np.testing.assert_allclose(got[:2, :2], COVARIANCE[:2, :2], atol=0.03)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_given_gives_the_conditional_law(name):
  schedule = schedules.VPCosine()  # alpha(1) = 0: x_b at t = 1 is independent of what is given
  path = multitime.conditional(NAMES, ("a",), 1000)
  solver, denoise = SOLVERS[name], oracle(schedule)
  basis = split(jnp.eye(DIM))
  matrix = solvers.sample(jax.random.key(0), denoise, schedule, basis, path, solver=solver)["b"]
  regression = COVARIANCE[2, :2] @ np.linalg.inv(COVARIANCE[:2, :2])
  variance = COVARIANCE[2, 2] - regression @ COVARIANCE[:2, 2]
  np.testing.assert_allclose(matrix[:2, 0], regression, atol=2e-3)
  np.testing.assert_allclose(matrix[2, 0] ** 2, variance, rtol=5e-3)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_given_gives_the_conditional_law_to_stochastic_solvers(name):
  schedule = schedules.VPLinear()
  path = multitime.conditional(NAMES, ("a",), 1000)
  given = np.array([1.0, -0.5])
  x = split(jax.random.normal(jax.random.key(3), (4000, DIM)))
  x["a"] = jnp.broadcast_to(jnp.array(given), x["a"].shape)
  sample = jax.jit(
    lambda x: solvers.sample(
      jax.random.key(1), oracle(schedule), schedule, x, path, solver=SOLVERS[name]
    )
  )
  got = sample(x)["b"]
  regression = COVARIANCE[2, :2] @ np.linalg.inv(COVARIANCE[:2, :2])
  variance = COVARIANCE[2, 2] - regression @ COVARIANCE[:2, 2]
  assert float(got.mean()) == pytest.approx(regression @ given, abs=4 * (variance / 4000) ** 0.5)
  assert float(got.var()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_given_comes_out_bit_for_bit(name):
  schedule = schedules.VPLinear()
  path = multitime.conditional(NAMES, ("a",), 7)
  x = split(jax.random.normal(jax.random.key(3), (5, DIM)))
  got = solvers.sample(jax.random.key(1), oracle(schedule), schedule, x, path, solver=SOLVERS[name])
  np.testing.assert_array_equal(got["a"], x["a"])
  assert not np.any(got["b"] == x["b"])


@pytest.mark.parametrize("name", SOLVERS)
def test_independent_modalities_come_out_as_alone(name):
  schedule = schedules.VPLinear()
  blocks = COVARIANCE * np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
  x = split(jax.random.normal(jax.random.key(3), (5, DIM)))

  def run(path):
    return solvers.sample(
      jax.random.key(1), oracle(schedule, blocks), schedule, x, path, solver=SOLVERS[name]
    )

  together = run(multitime.joint(NAMES, 20))
  alone = run(multitime.marginal(NAMES, ("a",), 20))
  np.testing.assert_allclose(together["a"], alone["a"], atol=1e-10)


def test_ddim_with_all_noise_is_ancestral():
  schedule = schedules.VPLinear()
  x = split(jax.random.normal(jax.random.key(3), (5, DIM)))
  path = multitime.joint(NAMES, 20)
  ends = [
    solvers.sample(jax.random.key(1), oracle(schedule), schedule, x, path, solver=solver)
    for solver in (solvers.ddim(1.0), solvers.ancestral)
  ]
  np.testing.assert_allclose(join(ends[0]), join(ends[1]), atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_finite(name, schedule):
  path = multitime.conditional(NAMES, ("a",), 6)
  x = split(jax.random.normal(jax.random.key(3), (5, DIM)))

  def total(x):
    ends = solvers.sample(
      jax.random.key(1), oracle(schedule), schedule, x, path, solver=SOLVERS[name]
    )
    return join(ends).sum()

  assert np.isfinite(join(jax.grad(total)(x))).all()
