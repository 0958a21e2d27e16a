"""Tests of the draws of times in training, and of paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import multitime, noise as noise_lib, schedules

NAMES = ("a", "b", "c")
ROWS = 40_000


def states(draw):
  """Returns g, d or x (given, diffused, absent) for each example and modality."""
  t = np.stack([draw.t[name] for name in NAMES], axis=1)
  return np.where(t == 0, "g", np.where(t == 1, "x", "d"))


def masked_distribution(given_prob, absent_prob, there=(0, 1, 2)):
  """Returns the probability of every state of an example that has `there`, by enumeration."""
  probs = dict.fromkeys(map("".join, itertools.product("gdx", repeat=3)), 0.0)
  if not there:
    return probs | {"xxx": 1.0}
  some = given_prob if len(there) > 1 else 0.0
  proper = [g for size in range(len(there)) for g in itertools.combinations(there, size)]
  for given in proper:
    prob_given = some / (len(proper) - 1) if given else 1 - some
    rest = [i for i in there if i not in given]
    for absent in itertools.product((False, True), repeat=len(rest)):
      p = prob_given * np.prod([absent_prob if a else 1 - absent_prob for a in absent])
      for keep in rest if all(absent) else [None]:
        stay = {i for i, a in zip(rest, absent, strict=True) if not a or i == keep}
        state = "".join("g" if i in given else "d" if i in stay else "x" for i in range(3))
        probs[state] += p / (len(rest) if all(absent) else 1)
  return probs


@pytest.mark.parametrize(("given_prob", "absent_prob"), [(0.5, 0.0), (0.6, 0.4), (1.0, 1.0)])
def test_masked_distribution(given_prob, absent_prob):
  draw = multitime.draw_masked(
    jax.random.key(0), ROWS, NAMES, given_prob=given_prob, absent_prob=absent_prob
  )
  got = states(draw)
  rows = ["".join(row) for row in got]
  for state, p in masked_distribution(given_prob, absent_prob).items():
    bound = 4.5 * (p * (1 - p) / ROWS) ** 0.5
    assert rows.count(state) / ROWS == pytest.approx(p, abs=bound + 1e-12), state
  for i, name in enumerate(NAMES):
    np.testing.assert_array_equal(draw.diffused[name], got[:, i] == "d")


@pytest.mark.parametrize(("given_prob", "absent_prob"), [(0.6, 0.0), (0.7, 0.4), (1.0, 1.0)])
def test_masked_distribution_of_present_modalities(given_prob, absent_prob):
  """It holds for each of the eight subsets of three modalities that an example may have."""
  ways = np.array(list(itertools.product((False, True), repeat=3)))
  present = ways[np.arange(ROWS) % 8]
  draw = multitime.draw_masked(
    jax.random.key(1),
    ROWS,
    NAMES,
    given_prob=given_prob,
    absent_prob=absent_prob,
    present={name: jnp.asarray(present[:, i]) for i, name in enumerate(NAMES)},
  )
  got = states(draw)
  for way in ways:
    rows = ["".join(row) for row in got[(present == way).all(1)]]
    probs = masked_distribution(given_prob, absent_prob, tuple(np.flatnonzero(way)))
    for state, p in probs.items():
      bound = 4.5 * (p * (1 - p) / len(rows)) ** 0.5
      assert rows.count(state) / len(rows) == pytest.approx(p, abs=bound + 1e-12), (way, state)
  for i, name in enumerate(NAMES):
    np.testing.assert_array_equal(draw.diffused[name], got[:, i] == "d")


def test_all_there_is_the_same_draw():
  there = dict.fromkeys(NAMES, jnp.ones(200, bool))
  for draw_all in (multitime.draw_masked, multitime.draw_joint, multitime.draw_independent):
    draws = [draw_all(jax.random.key(0), 200, NAMES, present=p) for p in (None, there)]
    jax.tree.map(np.testing.assert_array_equal, *draws)


def test_joint_and_independent_draws_of_present_modalities():
  def draw_t(key, batch_size):
    t = jax.random.uniform(key, (batch_size,), minval=0.2, maxval=0.8)
    return t, 1 + t

  there = {"a": jnp.arange(50) % 2 == 0, "b": jnp.arange(50) % 3 == 0}
  for draw_all in (multitime.draw_joint, multitime.draw_independent):
    draw = draw_all(jax.random.key(0), 50, ("a", "b"), draw_t=draw_t, present=there)
    complete = draw_all(jax.random.key(0), 50, ("a", "b"), draw_t=draw_t)
    for name, mask in there.items():
      np.testing.assert_array_equal(draw.diffused[name], mask)
      np.testing.assert_array_equal(draw.t[name], np.where(mask, complete.t[name], 1))
  weight = np.prod([np.where(there[name], 1 + draw.t[name], 1) for name in there], axis=0)
  np.testing.assert_allclose(draw.weight, weight, rtol=1e-6)


@pytest.mark.parametrize("num", [31, 32, 64])
def test_masked_distribution_of_many_modalities(num):
  names = [f"m{i}" for i in range(num)]
  rows = 4000
  draw = multitime.draw_masked(jax.random.key(2), rows, names, given_prob=1.0)
  given = np.stack([draw.t[name] == 0 for name in names], axis=1)
  count = given.sum(axis=1)
  assert count.min() > 0 and count.max() < num
  # Each modality, and each pair, is a fair coin: bounds at 5 standard deviations.
  bound = 5 * 0.5 / rows**0.5
  np.testing.assert_allclose(given.mean(axis=0), 0.5, atol=bound)
  np.testing.assert_allclose(count.var(), num / 4, rtol=5 * (2 / rows) ** 0.5)
  np.testing.assert_allclose(np.corrcoef(given.T), np.eye(num), atol=2 * bound)
  # Examples that have 30 of them or fewer.
  few = {name: jnp.full(rows, i % (num // 3) == 0) for i, name in enumerate(names)}
  draw = multitime.draw_masked(jax.random.key(2), rows, names, given_prob=1.0, present=few)
  there = [name for name in names if few[name][0]]
  alone = multitime.draw_masked(jax.random.key(2), rows, there, given_prob=1.0)
  for name in there:
    np.testing.assert_array_equal(draw.t[name] == 0, alone.t[name] == 0)


def test_diffused_modalities_share_one_uniform_time():
  draw = multitime.draw_masked(
    jax.random.key(0), ROWS, NAMES, draw_t=multitime.uniform_time(t_min=0.2)
  )
  t, diffused = (np.stack([part[name] for name in NAMES], axis=1) for part in draw[:2])
  shared = np.where(diffused, t, -1).max(axis=1)
  np.testing.assert_array_equal(np.where(diffused, t, shared[:, None]), shared[:, None] + 0 * t)
  deciles = np.quantile(shared, np.linspace(0, 1, 11))
  np.testing.assert_allclose(deciles, np.linspace(0.2, 1, 11), atol=0.01)
  np.testing.assert_array_equal(draw.weight, 1)


def test_one_modality_is_never_given():
  draw = multitime.draw_masked(jax.random.key(0), 100, ("a",), given_prob=1.0, absent_prob=1.0)
  assert np.all(draw.diffused["a"])


def test_joint_and_independent_times():
  joint = multitime.draw_joint(jax.random.key(0), ROWS, NAMES)
  np.testing.assert_array_equal(joint.t["a"], joint.t["b"])
  free = multitime.draw_independent(jax.random.key(0), ROWS, NAMES)
  assert abs(np.corrcoef(free.t["a"], free.t["b"])[0, 1]) < 0.02


@pytest.mark.parametrize("schedule", [schedules.VPLinear(), schedules.VPCosine()])
def test_importance_is_unbiased_and_follows_its_density(schedule):
  t, weight = multitime.importance_time(schedule, 0.01)(jax.random.key(0), 200_000)
  np.testing.assert_allclose(weight.mean(), 1, rtol=0.02)
  uniform = jnp.linspace(0.01, schedule.t_max, 100_001)
  for f in (np.square, np.cos):
    np.testing.assert_allclose(np.mean(weight * f(t)), f(uniform).mean(), rtol=0.03)
  middle = float(schedule.time(schedule.log_snr(jnp.array([0.01, schedule.t_max])).mean()))
  assert float((t < middle).mean()) == pytest.approx(0.5, abs=0.01)
  density = (schedule.diffusion(uniform) / schedule.sigma(uniform)) ** 2
  assert density[uniform < middle].sum() / density.sum() == pytest.approx(0.5, abs=0.01)


def test_paths():
  grid = multitime.uniform_grid(4)
  path = multitime.staggered(NAMES, 2, 4, grid=grid)
  np.testing.assert_array_equal(path.times["a"], [1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(path.times["b"], [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
  groups = multitime.sequential(["a", ("b",)], 2, given=("c",), absent=("d",))
  np.testing.assert_array_equal(groups.times["a"], [1, 0.25, 0, 0, 0])
  np.testing.assert_array_equal(groups.times["b"], [1, 1, 1, 0.25, 0])
  np.testing.assert_array_equal(groups.times["c"], 0)
  np.testing.assert_array_equal(groups.times["d"], 1)
  np.testing.assert_array_equal(multitime.conditional(NAMES, ("b",), 3).times["b"], 0)
  np.testing.assert_array_equal(multitime.marginal(NAMES, ("b",), 3).times["a"], 1)


def test_log_snr_grid():
  for schedule in (schedules.VPLinear(), schedules.RectifiedFlow()):
    grid = multitime.log_snr_grid(schedule, 8)
    assert grid.shape == (9,)
    assert grid[0] == 1 and grid[-1] == 0
    inner = schedule.log_snr(grid[grid > 0][schedule.t_max < 1 :])
    np.testing.assert_allclose(np.diff(inner), np.diff(inner).mean(), rtol=1e-2)


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    (multitime.joint(NAMES, 4), {"shared"}),
    (multitime.reverse(multitime.joint(NAMES, 4)), {"shared"}),
    (multitime.joint(NAMES[:1], 4), set()),
    (multitime.conditional(NAMES, ("a",), 4), {"given", "shared"}),
    (multitime.conditional(NAMES, ("a", "b"), 4), {"given"}),
    (multitime.marginal(NAMES, ("a",), 4), {"absent"}),
    (multitime.sequential(NAMES, 4), {"given", "absent"}),
    (multitime.sequential([("a", "b"), "c"], 4), {"given", "absent", "shared"}),
    (multitime.staggered(NAMES[:2], 1, 4), {"given", "absent", "apart"}),
    (multitime.repaint(NAMES, 4, jump=2, repeats=2), {"shared"}),
    # A modality that waits between the ends is at a time of its own.
    (multitime.Path({"a": jnp.array([1.0, 0.5]), "b": jnp.array([0.5, 0.5])}), {"apart"}),
    # Where all stand still the network is not called.
    (multitime.Path({"a": jnp.zeros(3), "b": jnp.ones(3)}), set()),
  ],
)
def test_states_of_paths(path, expected):
  assert multitime.states(path) == expected


def test_edm_grid():
  for schedule in (schedules.VE(), schedules.RectifiedFlow()):
    grid = multitime.edm_grid(schedule, 8, rho=7.0, t_min=0.01)
    assert grid.shape == (9,)
    assert grid[0] == 1 and grid[-1] == 0
    assert grid[-2] == jnp.float32(0.01)
    inner = grid[grid > 0][schedule.t_max < 1 :]
    assert len(inner) == 8 - (schedule.t_max < 1)
    assert inner[0] == jnp.float32(schedule.t_max)
    level = (schedule.sigma(inner) / schedule.alpha(inner)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(level), np.diff(level).mean(), rtol=2e-2)


def test_power_grid():
  np.testing.assert_allclose(multitime.power_grid(4, 3.0), [1, 27 / 64, 1 / 8, 1 / 64, 0])
  np.testing.assert_allclose(multitime.power_grid(2), [1, 1 / 4, 0])


def test_defaults():
  """The earliest times are 1/1000, and RePaint's walks are those of its paper."""
  schedule = schedules.VPLinear()
  for grid in (multitime.edm_grid(schedule, 8), multitime.log_snr_grid(schedule, 8)):
    assert grid[-2] == jnp.float32(1e-3)
  for draw in (multitime.uniform_time(), multitime.importance_time(schedule)):
    t, _ = draw(jax.random.key(0), 200_000)
    assert 1e-3 <= float(t.min()) < 1.2e-3
  assert len(multitime.repaint(("a",), 100).times["a"]) - 1 == 1000 + 10 * 9


def test_reverse():
  path = multitime.reverse(multitime.conditional(("a", "b"), ("b",), 4))
  np.testing.assert_allclose(path.times["a"], [0, 1 / 16, 1 / 4, 9 / 16, 1])
  np.testing.assert_array_equal(path.times["b"], 0)


def test_repaint_walks_each_piece_again():
  grid = multitime.uniform_grid(4)
  path = multitime.repaint(("a", "b"), 4, jump=2, repeats=2, given=("b",), grid=grid)
  expected = [1, 0.75, 0.5, 1, 0.75, 0.5, 0.25, 0, 0.5, 0.25, 0]
  np.testing.assert_array_equal(path.times["a"], expected)
  np.testing.assert_array_equal(path.times["b"], 0)
  once = multitime.repaint(("a",), 4, jump=2, repeats=1, grid=grid)
  np.testing.assert_array_equal(once.times["a"], grid)
  for wrong in ({"jump": 3}, {"jump": 0}, {"repeats": 0}):
    with pytest.raises(ValueError, match="repaint: " + next(iter(wrong))):
      multitime.repaint(("a",), 4, **wrong)
  short = multitime.repaint(("a",), 2, jump=10, repeats=2, grid=multitime.uniform_grid(2))
  np.testing.assert_array_equal(short.times["a"], [1, 0.5, 0, 1, 0.5, 0])


SCHEDULES = {
  "vp_linear": schedules.VPLinear(),
  "sub_vp": schedules.SubVP(),
  "ve": schedules.VE(),
  "vp_cosine": schedules.VPCosine(),
  "rectified_flow": schedules.RectifiedFlow(),
  "table": schedules.Table(schedules.betas_linear()),
  "zero_snr": schedules.Table((0.1, 0.4, 1.0)),
}


def few_steps(schedule):
  """Every grid, by its name."""
  return {
    "uniform": multitime.uniform_grid,
    "power": multitime.power_grid,
    "log_snr": lambda n: multitime.log_snr_grid(schedule, n),
    "edm": lambda n: multitime.edm_grid(schedule, n),
  }


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grids_of_few_steps(schedule):
  for name, grid_of in few_steps(SCHEDULES[schedule]).items():
    for n in (1, 2, 3):
      grid = np.asarray(grid_of(n))
      assert grid.shape == (n + 1,) and np.isfinite(grid).all(), name
      assert grid[0] == 1 and grid[-1] == 0 and np.all(np.diff(grid) < 0), name
  for grid_of in (multitime.log_snr_grid, multitime.edm_grid):
    got = grid_of(SCHEDULES[schedule], 2, t_min=0.01)
    np.testing.assert_array_equal(got, jnp.array([1.0, 0.01, 0.0]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_paths_of_few_steps(n):
  for path, steps in (
    (multitime.joint(("a", "b"), n), n),
    (multitime.staggered(("a", "b"), 1, n), n + 1),
    (multitime.sequential(("a", "b"), n), 2 * n),
    (multitime.conditional(("a", "b"), ("b",), n), n),
    (multitime.marginal(("a", "b"), ("a",), n), n),
    (multitime.repaint(("a", "b"), n, repeats=2), 2 * n + 1),
  ):
    times = np.asarray(path.times["a"])
    assert times.shape == (steps + 1,) and times[0] == 1 and times[-1] == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [0, -1, 2.0, 2.5, "3", None])
def test_steps_that_are_no_count_are_refused(wrong):
  schedule = schedules.VPCosine()
  for make in (
    *few_steps(schedule).values(),
    lambda n: multitime.joint(("a",), n),
    lambda n: multitime.joint(("a",), n, grid=multitime.uniform_grid(2)),
    lambda n: multitime.staggered(("a",), 1, n),
    lambda n: multitime.sequential(("a",), n),
    lambda n: multitime.conditional(("a", "b"), ("b",), n),
    lambda n: multitime.marginal(("a", "b"), ("b",), n),
    lambda n: multitime.repaint(("a",), n),
  ):
    with pytest.raises((TypeError, ValueError), match="num_steps=.* must be .*at least 1"):
      make(wrong)
  assert multitime.joint(("a",), np.int64(3)).times["a"].shape == (4,)
  if wrong != 0:
    with pytest.raises((TypeError, ValueError), match="lag=.* must be .*at least 0"):
      multitime.staggered(("a",), wrong, 3)
  for name in ("jump", "repeats"):
    with pytest.raises((TypeError, ValueError), match=f"repaint: {name}=.* must be .*at least 1"):
      multitime.repaint(("a",), 4, **{name: wrong})


def test_settings_of_grids_that_cannot_be_are_refused():
  schedule = schedules.VPCosine()
  for make in (
    lambda t_min: multitime.edm_grid(schedule, 3, t_min=t_min),
    lambda t_min: multitime.log_snr_grid(schedule, 3, t_min=t_min),
    lambda t_min: multitime.importance_time(schedule, t_min),
  ):
    for wrong in (0.0, -0.1, 0.999, float("nan")):
      with pytest.raises(ValueError, match="t_min=.* must be (above 0|finite)"):
        make(wrong)
  with pytest.raises(ValueError, match="rho=0.0 must"):
    multitime.edm_grid(schedule, 3, rho=0.0)
  with pytest.raises(ValueError, match="power=0.0 must"):
    multitime.power_grid(3, 0.0)


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_modality():
  good = jnp.array([1.0, 0.0])
  for times in ({}, {"b": good[None]}, {"b": good[:1]}):
    with pytest.raises(ValueError, match="'b'|empty"):
      multitime.Path(times)
  with pytest.raises(ValueError, match="'b'.*outside"):
    multitime.Path({"a": good, "b": 2 * good})
  with pytest.raises(ValueError, match="'b': 3"):
    multitime.Path({"a": good, "b": jnp.zeros(3)})
  with pytest.raises(ValueError, match="unknown|not among"):
    multitime.conditional(NAMES, ("z",), 3)
  with pytest.raises(ValueError, match="'a'.*twice"):
    multitime.sequential(NAMES, 3, given=("a",))
  with pytest.raises(ValueError, match="grid"):
    multitime.joint(NAMES, 3, grid=good)
  with pytest.raises(ValueError, match="lag"):
    multitime.staggered(NAMES, -1, 3)


def test_path_is_checked_where_concrete_only():
  jax.jit(lambda t: multitime.Path({"a": t}))(jnp.array([2.0, 0.0]))


def test_states_of_a_traced_path_are_refused():
  with pytest.raises(TypeError, match=r"states: .*traced.*ensure_compile_time_eval"):
    jax.jit(lambda path: len(multitime.states(path)))(multitime.joint(NAMES, 3))


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: multitime.power_grid(8, 300.0), "power_grid: with power=300"),
    (lambda: multitime.power_grid(8, 1e-9), "power_grid: with power=1e-09"),
    (lambda: multitime.edm_grid(schedules.VPLinear(), 6, rho=0.02), "edm_grid: with rho=0.02"),
    (lambda: multitime.log_snr_grid(schedules.VPLinear(), 4, t_min=1e-40), "t_min=1e-40"),
    (lambda: multitime.joint(NAMES, 2, grid=jnp.array([1.0, 1.0, 0.0])), "joint: grid must fall"),
    (lambda: multitime.sequential(NAMES, 2, grid=jnp.array([0.5, 0.6, 0.1])), "grid must fall"),
    (lambda: multitime.repaint(("a", "a"), 4, jump=2), "repaint: names=.* twice"),
    (lambda: multitime.repaint(("a", "b"), 4, jump=2, given=("b", "b")), "repaint: given=.* twice"),
  ],
)
def test_grids_that_float32_cannot_follow_are_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


@pytest.mark.parametrize(
  "present", [jnp.array([jnp.nan, 0.0]), jnp.array([0.3, 1.0]), jnp.ones((2, 2))]
)
def test_presence_is_a_boolean_for_each_row(present, unchecked):
  with pytest.raises(ValueError, match=r"draw_joint: present\['a'\]"):
    multitime.draw_joint(jax.random.key(0), 2, ("a",), present={"a": jnp.array(present)})


def test_lists_from_draw_t_are_arrays(unchecked):
  draw = multitime.draw_joint(jax.random.key(0), 2, ("a",), draw_t=lambda *_: ([0.2, 0.4], [1, 1]))
  np.testing.assert_allclose(draw.t["a"], [0.2, 0.4])


@pytest.mark.parametrize("draw_all", ["draw_masked", "draw_joint", "draw_independent"])
@pytest.mark.parametrize(
  "t, weight, words",
  [
    (np.nan, 1, "a time drawn by draw_t"),
    (1.5, 1, "a time drawn by draw_t"),
    (0.5, -1, "a weight drawn by draw_t"),
    (0.5, np.inf, "a weight drawn by draw_t"),
  ],
)
def test_invalid_drawn_times_are_refused(draw_all, t, weight, words):
  draw_t = lambda key, num: (jnp.linspace(0.2, t, num), jnp.linspace(1, weight, num))  # noqa: E731
  with pytest.raises(ValueError, match=f"{draw_all}: {words}"):
    getattr(multitime, draw_all)(jax.random.key(0), 4, NAMES, draw_t=draw_t)


def test_times_without_weights_are_refused():
  with pytest.raises(ValueError, match=r"draw_joint: draw_t must .* shapes \(4,\)"):
    multitime.draw_joint(jax.random.key(0), 4, NAMES, draw_t=lambda key, num: jnp.ones(num))


def test_joint_and_independent_draws_diffuse_everything():
  def draw_t(key, batch_size):
    t = jax.random.uniform(key, (batch_size,), minval=0.2, maxval=0.8)
    return t, 1 + t

  for draw_all, expected in (
    (multitime.draw_joint, lambda t: 1 + t["a"]),
    (multitime.draw_independent, lambda t: (1 + t["a"]) * (1 + t["b"])),
  ):
    draw = draw_all(jax.random.key(0), 50, ("a", "b"), draw_t=draw_t)
    assert all(np.all(value) for value in draw.diffused.values())
    assert all(value.min() >= 0.2 and value.max() <= 0.8 for value in draw.t.values())
    np.testing.assert_allclose(draw.weight, expected(draw.t), rtol=1e-6)


def test_masked_draw_of_two_modalities_and_its_defaults():
  """With probability 1/2 one of the two is given; nothing is absent."""
  draw = multitime.draw_masked(jax.random.key(0), ROWS, ("a", "b"))
  given = {name: np.asarray(t == 0) for name, t in draw.t.items()}
  for name in ("a", "b"):
    assert given[name].mean() == pytest.approx(0.25, abs=0.01)
    assert not np.any((np.asarray(draw.t[name]) == 1) & ~np.asarray(draw.diffused[name]))
  assert not np.any(given["a"] & given["b"])


def test_no_lag_is_joint():
  got, expected = multitime.staggered(NAMES, 0, 3), multitime.joint(NAMES, 3)
  for name in NAMES:
    np.testing.assert_array_equal(got.times[name], expected.times[name])


def test_importance_weights_of_a_late_start():
  t, weight = multitime.importance_time(schedules.VPLinear(), 0.5)(jax.random.key(0), 400_000)
  np.testing.assert_allclose(weight.mean(), 1, rtol=3e-3)
  np.testing.assert_allclose(np.mean(weight * t), 0.75, rtol=3e-3)


@pytest.mark.parametrize(
  "wrong",
  [
    lambda: multitime.joint("img", 8),
    lambda: multitime.staggered("img", 1, 8),
    lambda: multitime.sequential("img", 8),
    lambda: multitime.sequential(("img",), 8, given="ab"),
    lambda: multitime.conditional(("img", "a"), "a", 8),
    lambda: multitime.marginal(("img", "a"), "a", 8),
    lambda: multitime.repaint("img", 10, jump=1),
    lambda: multitime.draw_masked(jax.random.key(0), 2, "ab"),
    lambda: multitime.draw_joint(jax.random.key(0), 2, "ab"),
    lambda: multitime.draw_independent(jax.random.key(0), 2, "ab"),
  ],
)
def test_one_string_is_not_a_sequence_of_names(wrong):
  with pytest.raises(TypeError, match="is one string; give a sequence|must be a sequence of names"):
    wrong()


def test_lists_and_integers_are_times():
  path = multitime.Path({"a": [1, 0], "b": [0.0, 0.0]})
  assert all(jnp.issubdtype(times.dtype, jnp.floating) for times in path.times.values())
  np.testing.assert_array_equal(path.times["a"], [1.0, 0.0])


def test_names_of_one_checksum_share_their_noise_and_are_refused():
  key, x = jax.random.key(0), jnp.zeros((2, 3))
  noise = [noise_lib.normal_like(key, name, x) for name in ("plumless", "buckeroo")]
  np.testing.assert_array_equal(*noise)
  with pytest.raises(ValueError, match="'plumless' and 'buckeroo' would have the same noise"):
    multitime.joint(("plumless", "other", "buckeroo"), 4)


@pytest.mark.usefixtures("unchecked")
def test_iterators_of_names_are_read_once():
  path = multitime.conditional(iter(("a", "b")), (name for name in ["a"]), 4)
  np.testing.assert_array_equal(path.times["a"], 0)
  assert path.times["b"][0] == 1 and path.times["b"][-1] == 0
  assert set(multitime.joint(np.array(["a", "b"]), jnp.int32(2)).times) == {"a", "b"}


def test_grids_of_paths_fall():
  with pytest.raises(ValueError, match="joint: grid must fall"):
    multitime.joint(("a",), 2, grid=jnp.array([0.0, 0.5, 1.0]))
