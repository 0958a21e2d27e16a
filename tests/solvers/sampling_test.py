"""Tests of the loop: independence of rows, cost, hooks, transformations, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import multitime, schedules, solvers

SCHEDULE = schedules.VPLinear()
SHAPES = {"a": (3,), "b": (2, 2)}


def fn(x, t):
  del t
  return {name: 0.5 * value for name, value in x.items()}


def run(x, *, solver=solvers.ancestral, path=None, denoiser=None, **options):
  path = path or multitime.joint(tuple(x), 5)
  denoiser = denoiser or solvers.from_eps(fn, SCHEDULE)
  return solvers.sample(jax.random.key(1), denoiser, SCHEDULE, x, path, solver=solver, **options)


def test_a_row_knows_neither_other_rows_nor_the_batch():
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


def test_project_sees_the_times_reached_and_trajectory_all_points():
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
