"""Tests of the loop: independence of rows, cost, hooks, transformations, errors."""

import functools
import os
import pathlib
import subprocess
import sys
import warnings

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import guidance, multitime, schedules, solvers

SCHEDULE = schedules.VPLinear()
SHAPES = {"a": (3,), "b": (2, 2)}


def fn(x, t):
  del t
  return {name: 0.5 * value for name, value in x.items()}


def run(x, *, solver=solvers.ancestral, path=None, denoiser=None, **options):
  path = path or multitime.joint(tuple(x), 5)
  denoiser = denoiser or solvers.from_eps(fn, SCHEDULE)
  return solvers.sample(jax.random.key(1), denoiser, SCHEDULE, x, path, solver=solver, **options)


def test_a_row_depends_neither_on_other_rows_nor_on_the_batch():
  few, many = (solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, n) for n in (4, 400))
  np.testing.assert_array_equal(few["a"], many["a"][:4])
  changed = {name: value.at[0].add(1.0) for name, value in few.items()}
  jitted = jax.jit(run)
  of_few, of_many, of_changed = jitted(few), jitted(many), jitted(changed)
  for name in SHAPES:
    np.testing.assert_allclose(of_few[name], of_many[name][:4], rtol=1e-6)
    np.testing.assert_array_equal(of_few[name][1:], of_changed[name][1:])


def test_a_modality_has_the_same_noise_alone():
  both = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 4)
  np.testing.assert_allclose(run({"a": both["a"]})["a"], run(both)["a"], rtol=1e-6)
  assert not np.array_equal(both["a"][:, :2], both["b"][:, 0])


@pytest.mark.parametrize(
  ("solver", "path", "expected"),
  [
    (solvers.heun, multitime.joint(tuple(SHAPES), 5), 9),
    (solvers.heun, multitime.sequential(tuple(SHAPES), 5), 18),
    (solvers.dpmpp_2m, multitime.joint(tuple(SHAPES), 5), 5),
    (solvers.unipc, multitime.joint(tuple(SHAPES), 5), 5),
    (solvers.corrected(solvers.ddim(1.0), num=2), multitime.joint(tuple(SHAPES), 5), 13),
  ],
)
def test_evaluations(solver, path, expected):
  calls = []

  def counted(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return fn(x, t)

  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  jax.block_until_ready(
    run(x, solver=solver, path=path, denoiser=solvers.from_eps(counted, SCHEDULE))
  )
  jax.effects_barrier()
  assert len(calls) == expected
  if len(path.times["a"]) == 6:
    assert solver.evaluations(5) == expected


def test_project_receives_the_times_reached_and_trajectory_has_all_points():
  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  path = multitime.joint(tuple(x), 5)
  seen = run(
    x, path=path, trajectory=True, project=lambda key, x, s: x | {"a": 0 * x["a"] + s["a"]}
  )
  np.testing.assert_array_equal(seen["a"][1:, 0, 0], path.times["a"][1:])
  np.testing.assert_array_equal(seen["b"][0], x["b"])
  np.testing.assert_array_equal(run(x, trajectory=True)["b"][-1], run(x)["b"])


def test_new_paths_and_parameters_do_not_compile_again():
  traces = []

  @jax.jit
  def jitted(denoiser, x, path):
    traces.append(1)
    return run(x, denoiser=denoiser, path=path, solver=solvers.dpmpp_2m)

  def scaled(scale, x, t):
    del t
    return {name: scale * value for name, value in x.items()}

  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  ends = [
    jitted(solvers.from_eps(jax.tree_util.Partial(scaled, jnp.float32(scale)), SCHEDULE), x, path)
    for scale, path in (
      (0.5, multitime.joint(tuple(x), 5)),
      (0.7, multitime.conditional(tuple(x), ("a",), 5)),
    )
  ]
  assert len(traces) == 1
  np.testing.assert_array_equal(ends[1]["a"], x["a"])


def test_vmap_over_paths():
  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  paths = [multitime.joint(tuple(x), 5), multitime.conditional(tuple(x), ("a",), 5)]
  stacked = jax.tree.map(lambda *times: jnp.stack(times), *paths)
  got = jax.vmap(lambda path: run(x, path=path, solver=solvers.heun)["b"])(stacked)
  for i, path in enumerate(paths):
    np.testing.assert_allclose(got[i], run(x, path=path, solver=solvers.heun)["b"], rtol=1e-5)


# Not the defaults, for which a warning may already have been issued.
VANISHING = (schedules.VPCosine(t_max=0.9985), schedules.RectifiedFlow(t_max=0.9985))


@pytest.mark.parametrize("convert", [solvers.from_eps, solvers.from_score])
def test_eps_warns_once_where_alpha_vanishes(convert):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
      convert(fn, {"a": VANISHING[0], "b": SCHEDULE})
      jax.jit(lambda x: convert(fn, VANISHING[1])(x, {"a": jnp.float32(0.5)}))({"a": jnp.ones(2)})
  texts = [str(warning.message) for warning in caught]
  assert ["VPCosine" in text for text in texts] == [True, False]
  assert all(convert.__name__ in text and "Predict v, x0" in text for text in texts)


def test_other_schedules_and_predictions_do_not_warn():
  @jax.jit
  def traced(scale):
    class Scaled:
      def alpha(self, t):
        return scale * (1 - t)

      def sigma(self, t):
        return t

    solvers.from_eps(fn, Scaled())
    return scale

  with warnings.catch_warnings():
    warnings.simplefilter("error")
    cosine = schedules.Table(schedules.betas_cosine(10))
    for schedule in (SCHEDULE, schedules.SubVP(), schedules.VE(), cosine):
      solvers.from_eps(fn, schedule)
    for convert in (solvers.from_v, solvers.from_x0, solvers.from_velocity):
      convert(fn, schedules.VPCosine(t_max=0.9975))
    traced(1.0)


@pytest.mark.filterwarnings("ignore:from_eps")
def test_eps_on_a_path_that_starts_at_t_max():
  """The remedy of the warning: the mean of a Gaussian, wrong by far from t = 1, is right."""
  schedule, mean, std = schedules.VPCosine(), 0.8, 0.6

  def eps(x, t):
    alpha, sigma = schedule.alpha(t["a"]), schedule.sigma(t["a"])
    return {"a": sigma * (x["a"] - alpha * mean) / (alpha**2 * std**2 + sigma**2)}

  x = solvers.prior(jax.random.key(0), schedule, {"a": (5000,)}, 1)
  error = []
  for start in (1.0, schedule.t_max):
    path = multitime.joint(("a",), 16, grid=multitime.uniform_grid(16).at[0].set(start))
    denoiser = solvers.from_eps(eps, schedule)
    got = solvers.sample(jax.random.key(1), denoiser, schedule, x, path, solver=solvers.dpmpp_2m)[
      "a"
    ]
    # Draws from the prior do not have mean 0.
    error.append(abs(got.mean() - std * x["a"].mean() - mean))
  assert error[0] > 0.03 and error[1] < 0.003, error


@pytest.mark.filterwarnings("ignore:from_")
def test_every_prediction_makes_the_same_denoiser():
  schedule, t = schedules.RectifiedFlow(), {"a": jnp.float32(0.3)}
  x0, eps = jnp.array([[0.2, 1.0]]), jnp.array([[-0.5, 0.4]])
  alpha, sigma = schedule.alpha(t["a"]), schedule.sigma(t["a"])
  x = {"a": alpha * x0 + sigma * eps}
  for convert, predicted in (
    (solvers.from_eps, eps),
    (solvers.from_x0, x0),
    (solvers.from_v, alpha * eps - sigma * x0),
    (solvers.from_score, -eps / sigma),
    (solvers.from_velocity, eps - x0),
  ):

    def network(x, t, predicted=predicted):
      assert x["a"].ndim == 2 and t["a"].ndim == 0
      return {"a": predicted}

    got = convert(network, schedule)(x, t)
    np.testing.assert_allclose(got[0]["a"], x0, rtol=1e-5, err_msg=convert.__name__)
    np.testing.assert_allclose(got[1]["a"], eps, rtol=1e-5, err_msg=convert.__name__)


def test_a_plain_function_makes_a_denoiser_for_jit():
  x = {"a": jnp.ones((2, 3))}
  run_jitted = jax.jit(lambda denoiser: denoiser(x, {"a": jnp.float32(0.5)})[0]["a"])
  for convert in (solvers.from_velocity, solvers.from_x0):
    assert run_jitted(convert(fn, schedules.RectifiedFlow())).shape == (2, 3)


def test_velocity_at_both_ends():
  for schedule in (schedules.RectifiedFlow(), schedules.VPCosine()):
    denoiser = solvers.from_velocity(lambda x, t: {"a": 0 * x["a"] + 0.5}, schedule)
    for time in (0.0, 1.0):
      x0, eps = denoiser({"a": jnp.ones((2, 3))}, {"a": jnp.float32(time)})
      assert np.isfinite(x0["a"]).all() and np.isfinite(eps["a"]).all()


def test_given_values_are_put_back_at_their_noise_level():
  given = {"a": jnp.full((2000, 1), 3.0)}
  x = {"a": jnp.zeros((2000, 1)), "b": jnp.zeros((2000, 2))}
  s = {"a": jnp.float32(0.4), "b": jnp.float32(0.4)}
  got = solvers.replace_known(SCHEDULE, given)(jax.random.key(0), x, s)
  alpha, sigma = SCHEDULE.alpha(s["a"]), SCHEDULE.sigma(s["a"])
  np.testing.assert_allclose(got["a"].mean(), 3 * alpha, atol=0.1)
  np.testing.assert_allclose(got["a"].std(), sigma, rtol=0.1)
  np.testing.assert_array_equal(got["b"], x["b"])
  clean = dict.fromkeys(s, jnp.float32(0.0))
  mask = {"b": jnp.array([1.0, 0.0])}
  pixels = {"b": jnp.full((2000, 2), 7.0)}
  got = solvers.replace_known(SCHEDULE, pixels, mask)(jax.random.key(0), x, clean)
  np.testing.assert_array_equal(got["b"], jnp.broadcast_to(jnp.array([7.0, 0.0]), (2000, 2)))


def test_slerp_follows_the_arc():
  begin = {"a": jnp.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])}
  sixty = [3 * np.cos(np.pi / 3), 3 * np.sin(np.pi / 3)]
  end = {"a": jnp.array([[0.0, 1.0], [1.0, 1.0], sixty])}
  third = solvers.slerp(begin, end, jnp.float32(1 / 3))["a"]
  np.testing.assert_allclose(third[0], [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-5)
  np.testing.assert_allclose(third[1], [1.0, 1.0], rtol=1e-5)
  weights = np.sin(np.deg2rad([40, 20])) / np.sin(np.deg2rad(60))
  np.testing.assert_allclose(third[2], weights @ np.array([[2, 0], sixty]), rtol=1e-5)
  np.testing.assert_allclose(solvers.slerp(begin, end, jnp.float32(1.0))["a"], end["a"], atol=1e-6)


def test_slerp_without_an_arc_is_straight_and_has_gradients():
  a = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [3.0, -2.0], [0.0, 0.0], [1.0, 0.0]])
  b = jnp.array([[1.0, 1.0], [-2.0, -2.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])

  def points(a, b, fraction):
    return solvers.slerp({"a": a}, {"a": b}, fraction)["a"]

  fraction = jnp.float32(0.25)
  straight = 0.75 * a + 0.25 * b
  np.testing.assert_allclose(points(a, b, fraction)[:5], straight[:5], rtol=1e-6)
  slopes = jax.grad(lambda *args: (points(*args) ** 2).sum(), (0, 1, 2))(a, b, fraction)
  for slope in slopes:
    assert np.isfinite(slope).all()
  np.testing.assert_allclose(slopes[0][2:5], 1.5 * straight[2:5], rtol=1e-6)


@pytest.mark.parametrize("soft", [0.0, 0.3, 1.0])
def test_a_mask_in_between_blends(soft):
  key, s = jax.random.key(0), {"a": jnp.float32(0.4)}
  given, x = {"a": jnp.full((3, 2), 7.0)}, {"a": jnp.ones((3, 2))}
  perturbed = solvers.replace_known(SCHEDULE, given)(key, x, s)["a"]
  got = solvers.replace_known(SCHEDULE, given, {"a": jnp.array([soft, 1.0])})(key, x, s)["a"]
  np.testing.assert_allclose(got[:, 0], soft * perturbed[:, 0] + (1 - soft), rtol=1e-6)
  np.testing.assert_array_equal(got[:, 1], perturbed[:, 1])


@pytest.mark.parametrize("solver", [solvers.unipc, solvers.sde_dpmpp_2m])
def test_a_move_too_short_for_its_log_snr_is_finite(solver):
  """Between neighbouring float32 numbers log_snr does not change, nor do alpha and sigma."""
  t = np.float32(0.9)
  near = np.nextafter(t, np.float32(0))
  schedule = schedules.VPLinear(beta_min=0.1, beta_max=0.1)
  assert schedule.log_snr(jnp.float32(t)) == schedule.log_snr(jnp.float32(near))
  x = {"a": jnp.ones((2, 3))}
  denoiser = solvers.from_eps(fn, schedule)

  def end(times):
    path = multitime.Path({"a": times})
    return solvers.sample(jax.random.key(0), denoiser, schedule, x, path, solver=solver)["a"]

  times = jnp.array([1.0, t, near, 0.5, 0.2])
  got = end(times)
  assert np.isfinite(got).all()
  if solver is not solvers.sde_dpmpp_2m:
    np.testing.assert_allclose(got, end(times[jnp.array([0, 1, 3, 4])]), rtol=1e-2)
  assert np.isfinite(jax.grad(lambda times: end(times).sum())(times)).all()


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_with_and_without_remat(remat):
  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)

  def scaled(scale, x, t):
    del t
    return {name: scale * jnp.tanh(value) for name, value in x.items()}

  def total(scale):
    denoiser = solvers.from_eps(jax.tree_util.Partial(scaled, scale), SCHEDULE)
    return run(x, denoiser=denoiser, solver=solvers.heun, remat=remat)["a"].sum()

  slope = jax.grad(total)(jnp.float32(0.5))
  near = [float(total(jnp.float32(0.5 + d))) for d in (-0.01, 0.01)]
  assert float(slope) == pytest.approx((near[1] - near[0]) / 0.02, rel=1e-2)


@pytest.mark.parametrize("solver", [solvers.ancestral, solvers.dpmpp_2m, solvers.unipc])
def test_samples_keep_their_type(solver):
  x = {"a": jnp.ones((2, 3), jnp.bfloat16)}
  assert run(x, solver=solver)["a"].dtype == jnp.bfloat16
  with jax.enable_x64(True):
    assert run({"a": jnp.ones((2, 3), jnp.float32)}, solver=solver)["a"].dtype == jnp.float32


def test_remat_keeps_one_point_a_step():
  x = {"a": jnp.ones((64, 32))}

  def bytes_kept(remat):
    def total(scale):
      def fn(x, t):
        del t
        h = x["a"]
        for _ in range(8):
          h = jnp.tanh(scale * h)
        return {"a": h}

      denoiser = solvers.from_eps(fn, SCHEDULE)
      path = multitime.joint(("a",), 100)
      ends = solvers.sample(
        jax.random.key(1), denoiser, SCHEDULE, x, path, solver=solvers.ddim(0.0), remat=remat
      )
      return ends["a"].sum()

    compiled = jax.jit(jax.grad(total)).lower(jnp.float32(0.5)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  points = 100 * x["a"].nbytes
  assert bytes_kept(True) < 2 * points < 6 * points < bytes_kept(False)


def test_memory_does_not_grow_with_the_number_of_steps():
  x = {"a": jnp.ones((64, 32))}

  def bytes_used(num_steps, **options):
    sample = jax.jit(lambda x, path: run(x, path=path, **options))
    compiled = sample.lower(x, multitime.joint(("a",), num_steps)).compile()
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes

  assert bytes_used(400) < bytes_used(10) + 20_000  # the times themselves
  assert bytes_used(400, trajectory=True) > 300 * x["a"].nbytes


def test_noise_is_the_same_on_eight_devices(tmp_path):
  """So are the samples, to float tolerance."""
  program = """
import sys
import jax, numpy as np
from mmdiff_jax import multitime, noise as noise_lib, schedules, solvers
schedule = schedules.VPLinear()
num = len(jax.devices())
mesh = jax.make_mesh((num,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
def run(key):
  x = solvers.prior(key, schedule, {"a": (3,)}, 16)
  x = jax.lax.with_sharding_constraint(x, rows)
  noise = noise_lib.normal_like(key, "a", x["a"])
  denoiser = solvers.from_eps(lambda x, t: {"a": 0.5 * x["a"]}, schedule)
  path = multitime.joint(("a",), 8)
  return noise, solvers.sample(key, denoiser, schedule, x, path, solver=solvers.ancestral)["a"]
noise, samples = jax.jit(run, out_shardings=rows)(jax.random.key(0))
assert len(samples.sharding.device_set) == num
np.savez(sys.argv[1], num=num, noise=noise, samples=samples)
"""
  results = []
  for num in (1, 8):
    file = tmp_path / f"{num}.npz"
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={num}",
    }
    command = [sys.executable, "-c", program, str(file)]
    subprocess.run(command, env=environment, check=True, cwd=pathlib.Path(__file__).parents[2])
    results.append(np.load(file))
  assert [int(result["num"]) for result in results] == [1, 8]
  np.testing.assert_array_equal(results[0]["noise"], results[1]["noise"])
  np.testing.assert_allclose(results[0]["samples"], results[1]["samples"], rtol=1e-6)


def test_a_schedule_for_each_modality():
  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  each = {"a": SCHEDULE, "b": schedules.VPCosine()}
  got = solvers.sample(
    jax.random.key(1),
    solvers.from_v(fn, each),
    each,
    x,
    multitime.joint(tuple(x), 5),
    solver=solvers.ddim(0.0),
  )
  alone = run({"a": x["a"]}, solver=solvers.ddim(0.0), denoiser=solvers.from_v(fn, SCHEDULE))
  np.testing.assert_allclose(got["a"], alone["a"], rtol=1e-6)


def test_errors_name_the_modality():
  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  with pytest.raises(ValueError, match="'b'"):
    run(x, path=multitime.joint(("a",), 5))
  with pytest.raises(ValueError, match="'b'"):
    solvers.prior(jax.random.key(0), {"a": SCHEDULE}, SHAPES, 2)


# --- Values that are not floats, and other wrong arguments ---


@pytest.mark.parametrize("dtype", [int, bool, np.uint8])
def test_given_integers_are_perturbed_like_floats(dtype):
  schedule, rows = schedules.VPCosine(), 20_000
  project = solvers.replace_known(schedule, {"x": jnp.ones((rows, 2), dtype)})
  t = jnp.float32(0.6)
  got = project(jax.random.key(0), {"x": jnp.zeros((rows, 2))}, {"x": t})["x"]
  assert got.mean() == pytest.approx(float(schedule.alpha(t)), abs=0.02)
  assert got.std() == pytest.approx(float(schedule.sigma(t)), rel=0.02)


def test_integers_that_move_are_floats_and_those_that_stand_still_stay():
  labels, types = jnp.arange(4)[:, None], set()

  def network(x, t):
    del t
    types.add(x["b"].dtype)
    # The label is the value that the other modality should take.
    return {"a": x["a"] - x["b"], "b": jnp.zeros(x["b"].shape)}

  denoiser = solvers.from_v(network, SCHEDULE)
  x = {"a": 3 * jnp.ones((4, 2), int), "b": labels}
  path = multitime.conditional(("a", "b"), ("b",), 4)
  ends = run(x, denoiser=denoiser, path=path, solver=solvers.dpmpp_2m)
  jitted = jax.jit(lambda x: run(x, denoiser=denoiser, path=path, solver=solvers.dpmpp_2m))(x)
  floats = run(
    {name: value.astype(float) for name, value in x.items()},
    denoiser=denoiser, path=path, solver=solvers.dpmpp_2m,
  )  # fmt: skip
  assert ends["b"].dtype == labels.dtype and labels.dtype in types
  np.testing.assert_array_equal(ends["b"], labels)
  for end in (ends, jitted):
    np.testing.assert_allclose(end["a"], floats["a"], rtol=1e-6)
  up = {"a": jnp.ones((2, 3), int)}
  path = multitime.reverse(multitime.joint(("a",), 4))
  codes = [run(x, path=path, solver=solvers.heun)["a"] for x in (up, {"a": jnp.ones((2, 3))})]
  np.testing.assert_array_equal(*codes)
  assert np.unique(np.modf(codes[0])[0]).any()


def test_integers_on_a_traced_path_are_refused():
  x = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1), int)}
  path = multitime.conditional(("a", "b"), ("b",), 2)
  with pytest.raises(TypeError, match=r"x_init\['b'\] is int32 and the path is traced"):
    jax.jit(lambda path: run(x, path=path))(path)
  # If the path is made inside, the times of given modalities are constants.
  jax.jit(lambda x: run(x, path=multitime.conditional(("a", "b"), ("b",), 2)))(x)


def test_likelihood_of_integers_is_that_of_floats():
  schedule = schedules.VPCosine()

  def network(x, t):
    """N(b, 1) given b: x0 = b + alpha (x - alpha b), eps = sigma (x - alpha b), v = -sigma b."""
    assert jnp.issubdtype(x["b"].dtype, jnp.integer)
    return {"a": -schedule.sigma(t["a"]) * x["b"], "b": jnp.zeros(x["b"].shape)}

  denoiser = solvers.from_v(network, schedule)
  path = multitime.conditional(("a", "b"), ("b",), 24)
  values = {"a": jnp.array([[1], [3]]), "b": jnp.array([[1], [1]])}
  got = solvers.log_likelihood(jax.random.key(0), denoiser, schedule, values, path)
  expected = -0.5 * np.array([0.0, 4.0]) - 0.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_unknown_names_are_reported_with_the_nearest():
  x = {"image": jnp.ones((2, 3))}
  with pytest.raises(ValueError, match="mask has 'imgae'.* nearest is 'image'"):
    solvers.replace_known(SCHEDULE, x, {"imgae": x["image"]})
  with pytest.raises(ValueError, match="given has 'imgae'.* nearest is 'image'"):
    solvers.replace_known(SCHEDULE, {"imgae": x["image"]})(jax.random.key(0), x, {})
  with pytest.raises(ValueError, match="schedule has none for modality 'image'.* 'imgae'"):
    solvers.sample(
      jax.random.key(0), lambda x, t: (x, x), {"imgae": SCHEDULE}, x,
      multitime.joint(("image",), 2), solver=solvers.heun,
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [np.nan, 2.0, -0.1])
def test_masks_outside_their_range_are_refused(wrong):
  given = {"a": jnp.ones((2, 3))}
  with pytest.raises(ValueError, match=r"replace_known: mask\['a'\]"):
    solvers.replace_known(SCHEDULE, given, {"a": jnp.array([0.0, wrong, 1.0])})


def test_times_of_a_denoiser_are_checked():
  x = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1))}
  denoiser = solvers.from_v(lambda x, t: x, SCHEDULE)
  with pytest.raises(ValueError, match="denoiser: x has 'b', which is not among t"):
    denoiser(x, {"a": jnp.float32(0.5)})
  with pytest.raises(ValueError, match=r"denoiser: t\['a'\] has shape \(5,\).*each row"):
    denoiser(x, {"a": jnp.full(5, 0.5), "b": jnp.float32(0.5)})


def test_one_given_row_is_put_back_in_all():
  x = {"a": jnp.zeros((2, 3))}
  hook = solvers.replace_known(SCHEDULE, {"a": jnp.ones((1, 3))})
  np.testing.assert_array_equal(hook(jax.random.key(0), x, {"a": jnp.float32(0.0)})["a"], 1.0)


def test_slerp_of_large_rows_is_finite():
  a, b = ({"a": scale * jnp.array([[3.0, 4.0]])} for scale in (1e25, 1e-25))
  np.testing.assert_allclose(solvers.slerp(a, a, 0.3)["a"], a["a"], rtol=1e-6)
  turned = {"a": 1e25 * jnp.array([[-4.0, 3.0]])}
  expected = np.sqrt(0.5) * (a["a"] + turned["a"])
  np.testing.assert_allclose(solvers.slerp(a, turned, 0.5)["a"], expected, rtol=1e-5)
  assert np.isfinite(solvers.slerp(b, b, 0.5)["a"]).all()


def test_numbers_of_corrections_may_be_arrays(unchecked):
  one = solvers.corrected(solvers.heun, num=jnp.array(1), leapfrog=np.array(2))
  assert one is solvers.corrected(solvers.heun, num=1, leapfrog=2)


def test_masks_of_images_need_their_channel():
  images = {"x": jnp.ones((2, 4, 4, 1))}
  with pytest.raises(ValueError, match=r"mask\['x'\]\[\.\.\., None\]"):
    solvers.replace_known(SCHEDULE, images, {"x": jnp.ones((2, 4, 4))})


@pytest.mark.parametrize(
  ("network", "words"),
  [
    (lambda x, t: x["a"], "dict with an array for each modality"),
    (lambda x, t: {"a": x["a"]}, "returned nothing for modality 'b'"),
    (lambda x, t: {"a": x["a"], "b": x["b"][:1]}, r"returned shape \(1, 1\) for modality 'b'"),
  ],
)
def test_the_output_of_a_network_is_checked(network, words):
  x = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1))}
  path = multitime.conditional(("a", "b"), ("b",), 2)
  with pytest.raises((TypeError, ValueError), match=words):
    run(x, denoiser=solvers.from_v(network, SCHEDULE), path=path)
  with pytest.raises((TypeError, ValueError), match=words):
    run(x, denoiser=lambda x, t: (network(x, t), network(x, t)), path=path)


class Net(nnx.Module):
  """A network whose one parameter may be changed in place."""

  def __init__(self):
    self.scale = nnx.Param(jnp.float32(0.5))

  def __call__(self, x, t):
    del t
    return {name: self.scale[...] * value for name, value in x.items()}

  def predict(self, x, t):
    return self(x, t)


def test_changes_of_modules_in_place_take_effect():
  """A flax NNX module, and a method of one, are passed to a sampler that is compiled once."""

  net, x = Net(), {"a": jnp.ones((2, 3))}
  jitted = jax.jit(lambda denoiser: run(x, denoiser=denoiser)["a"])
  for function in (net, net.predict):
    net.scale[...] = jnp.float32(0.5)
    before = jitted(solvers.from_v(function, SCHEDULE))
    net.scale[...] = jnp.float32(0.2)
    after = jitted(solvers.from_v(function, SCHEDULE))
    fresh = run(x, denoiser=solvers.from_v(lambda x, t: net(x, t), SCHEDULE))["a"]
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, fresh, rtol=1e-6)
  assert jitted._cache_size() == 2


@pytest.mark.parametrize("solver", [solvers.dpmpp_2m, solvers.unipc, solvers.sde_dpmpp_2m])
def test_a_corrected_multistep_solver_runs_in_bfloat16(solver):
  x = {"a": jnp.ones((2, 3), jnp.bfloat16)}
  out = run(x, solver=solvers.corrected(solver))["a"]
  assert out.dtype == jnp.bfloat16
  assert np.isfinite(np.asarray(out, np.float32)).all()


@pytest.mark.parametrize(
  "solver",
  [
    *(solvers.euler, solvers.heun, solvers.dpmpp_2m, solvers.unipc, solvers.ddim(0.0)),
    *(solvers.euler_maruyama, solvers.ancestral, solvers.ancestral_large, solvers.sde_dpmpp_2m),
    *(solvers.ddim(0.5), solvers.ddim(1.0), solvers.corrected(solvers.sde_dpmpp_2m)),
  ],
)
@pytest.mark.parametrize(
  "schedule",
  [schedules.VPCosine(), pytest.param(schedules.RectifiedFlow(), marks=pytest.mark.slow)],
)
def test_gradients_with_respect_to_times_are_finite_at_the_ends(solver, schedule):
  denoiser = solvers.from_v(fn, schedule)

  def total(times):
    path = multitime.Path({"a": times})
    x = {"a": jnp.ones((2, 1))}
    ends = solvers.sample(jax.random.key(0), denoiser, schedule, x, path, solver=solver)
    return ends["a"].sum()

  slopes = jax.jit(jax.grad(total))(jnp.array([1.0, 0.6, 0.3, 0.1, 0.0]))
  assert np.isfinite(slopes).all()
  assert np.abs(slopes[1:4]).min() > 1e-6


START = {"a": np.ones((2, 3), np.float32)}
RISING = multitime.repaint(("a",), 4, jump=2, repeats=2)


@pytest.mark.parametrize(
  "solver",
  [
    *(solvers.euler, solvers.heun, solvers.dpmpp_2m, solvers.unipc, solvers.ddim(0.0)),
    solvers.corrected(solvers.dpmpp_2m),
  ],
)
def test_solver_of_the_ode_does_not_resample(solver):
  """It encodes where times rise, and imposed given values would not mix with the rest."""
  with pytest.raises(ValueError, match=r"times of 'a' rise .* Use a solver of the SDE"):
    run(START, path=RISING, solver=solver, project=lambda key, x, s: x)
  run(START, path=RISING, solver=solver)


@pytest.mark.parametrize(
  "solver",
  [
    *(solvers.euler_maruyama, solvers.ancestral, solvers.ancestral_large, solvers.sde_dpmpp_2m),
    *(solvers.ddim(0.1), solvers.corrected(solvers.ancestral)),
  ],
)
def test_solver_of_the_sde_resamples(solver):
  run(START, path=RISING, solver=solver, project=lambda key, x, s: x)


def test_rises_of_a_traced_path_are_not_checked():
  @jax.jit
  def traced(path):
    return run(START, path=path, solver=solvers.heun, project=lambda key, x, s: x)

  traced(RISING)


@pytest.mark.parametrize(
  "solver", [solvers.heun, solvers.corrected(solvers.ancestral), solvers.unipc]
)
def test_integers_stay_integers_at_every_call_of_the_network(solver):
  def network(x, t):
    del t
    assert jnp.issubdtype(x["b"].dtype, jnp.integer)
    return {"a": jnp.eye(4)[x["b"][:, 0]], "b": jnp.zeros(x["b"].shape)}

  x = {"a": jnp.ones((2, 4)), "b": jnp.array([[1], [3]])}
  path = multitime.conditional(("a", "b"), ("b",), 3)
  denoiser = solvers.from_x0(network, SCHEDULE)
  ends = jax.jit(lambda x: run(x, denoiser=denoiser, path=path, solver=solver))(x)
  np.testing.assert_array_equal(ends["b"], x["b"])
  np.testing.assert_allclose(ends["a"], np.eye(4)[[1, 3]], atol=0.1)
  slope = guidance.steer(denoiser, lambda x0, t: jnp.sum(x0["a"]), SCHEDULE)
  run(x, denoiser=slope, path=path, solver=solver)


def test_changes_of_bound_modules_take_effect():
  """They do within `functools.partial` and JAX's `Partial`, as within the denoiser."""

  net, x = Net(), {"a": jnp.ones((2, 3))}
  jitted = jax.jit(lambda denoiser: run(x, denoiser=denoiser)["a"])
  for function in (
    functools.partial(Net.predict, net),
    functools.partial(net.predict),
    jax.tree_util.Partial(net.predict),
    jax.tree_util.Partial(Net.predict, net),
  ):
    ends = []
    for scale in (0.5, 0.2):
      net.scale[...] = jnp.float32(scale)
      ends.append(jitted(solvers.from_v(function, SCHEDULE)))
    assert not np.allclose(*ends)


def test_a_fraction_for_each_row():
  begin = {"a": jnp.array([[1.0, 0.0], [1.0, 0.0]])}
  end = {"a": jnp.array([[0.0, 1.0], [0.0, 1.0]])}
  fractions = jnp.array([0.0, 0.5])
  expected = [[1.0, 0.0], [0.5**0.5, 0.5**0.5]]
  for fraction in (fractions, fractions[:, None]):
    np.testing.assert_allclose(solvers.slerp(begin, end, fraction)["a"], expected, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_several_keys_need_vmap():
  x = solvers.prior(jax.random.key(0), SCHEDULE, SHAPES, 2)
  keys = jax.random.split(jax.random.key(0), 3)
  with pytest.raises(TypeError, match="sample: key must be a key .* use jax.vmap"):
    solvers.sample(keys, lambda x, t: (x, x), SCHEDULE, x, multitime.joint(tuple(x), 2),
                   solver=solvers.heun)  # fmt: skip
