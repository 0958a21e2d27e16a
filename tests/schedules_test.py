"""Tests of the schedules against automatic differentiation and against float64."""

import dataclasses
import inspect

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import schedules

TABLES = {
  "linear": schedules.betas_linear(),
  "scaled_linear": schedules.betas_scaled_linear(),
  "cosine": schedules.betas_cosine(),
}


def rescaled(betas):
  """Returns the same betas with zero terminal SNR (Lin et al. 2023, Alg. 1)."""
  root = np.sqrt(np.cumprod(1 - np.array(betas)))
  root = (root - root[-1]) * root[0] / (root[0] - root[-1])
  product = root**2
  return tuple((1 - np.append(product[0], product[1:] / product[:-1])).tolist())


TABLES |= {"zero_snr": rescaled(TABLES["scaled_linear"])}
SCHEDULES = {
  "vp_linear": schedules.VPLinear(),
  "sub_vp": schedules.SubVP(),
  "ve": schedules.VE(),
  "vp_cosine": schedules.VPCosine(),
  "rectified_flow": schedules.RectifiedFlow(),
} | {name: schedules.Table(betas) for name, betas in TABLES.items()}


@pytest.fixture(name="schedule", params=SCHEDULES.values(), ids=SCHEDULES.keys())
def _schedule(request):
  return request.param


def test_drift_diffusion_and_log_snr_are_those_of_alpha_and_sigma(schedule):
  with jax.enable_x64(True):
    t = jnp.linspace(0.0105, 0.9895, 50)  # between the entries of the tables
    rate = jax.vmap(jax.grad(lambda t: jnp.log(schedule.alpha(t))))(t)
    np.testing.assert_allclose(schedule.drift(t), rate, rtol=1e-9)
    growth = jax.vmap(jax.grad(lambda t: schedule.sigma(t) ** 2))(t)
    np.testing.assert_allclose(
      schedule.diffusion(t) ** 2, growth - 2 * rate * schedule.sigma(t) ** 2, rtol=1e-9
    )
    np.testing.assert_allclose(
      schedule.log_snr(t), 2 * jnp.log(schedule.alpha(t) / schedule.sigma(t)), atol=1e-9
    )
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-9)


def test_the_usual_definitions():
  with jax.enable_x64(True):
    t = jnp.linspace(0.0, 1.0, 101)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    for name, variance in (("vp_linear", 1 - np.exp(-integral)), ("sub_vp", None)):
      np.testing.assert_allclose(SCHEDULES[name].alpha(t), np.exp(-integral / 2), rtol=1e-12)
      variance = (1 - np.exp(-integral)) ** 2 if variance is None else variance
      np.testing.assert_allclose(SCHEDULES[name].sigma(t) ** 2, variance, atol=1e-12)
    growth = 0.01**2 * (5000 ** (2 * t) - 1)
    np.testing.assert_allclose(SCHEDULES["ve"].sigma(t) ** 2, growth, rtol=1e-9)
    np.testing.assert_array_equal(SCHEDULES["ve"].alpha(t), 1)
    np.testing.assert_allclose(SCHEDULES["vp_cosine"].alpha(t), np.cos(np.pi * t / 2), atol=1e-12)
    np.testing.assert_allclose(SCHEDULES["vp_cosine"].sigma(t), np.sin(np.pi * t / 2), atol=1e-12)
    np.testing.assert_allclose(SCHEDULES["rectified_flow"].alpha(t), 1 - t)
    np.testing.assert_allclose(SCHEDULES["rectified_flow"].sigma(t), t)


@pytest.mark.parametrize(
  ("name", "first", "last"), [("linear", 1e-4, 0.02), ("scaled_linear", 8.5e-4, 0.012)]
)
def test_tables_have_the_published_ends(name, first, last):
  betas = np.array(TABLES[name])
  assert betas.shape == (1000,)
  np.testing.assert_allclose(betas[[0, -1]], [first, last], rtol=1e-12)
  shape = np.sqrt(betas) if name == "scaled_linear" else betas
  np.testing.assert_allclose(np.diff(shape, 2), 0, atol=1e-12)


def test_cosine_table_follows_the_squared_cosine():
  with jax.enable_x64(True):
    alpha = SCHEDULES["cosine"].alpha(jnp.arange(1000) / 1000)  # all but the clipped last entry
  angle = (np.arange(1000) / 1000 + 0.008) / 1.008 * np.pi / 2
  np.testing.assert_allclose(alpha**2, (np.cos(angle) / np.cos(angle[0])) ** 2, rtol=1e-9)
  assert TABLES["cosine"][-1] == 0.999


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_exact_at_their_entries(name):
  with jax.enable_x64(True):
    entries = jnp.arange(1, 1001) / 1000
    product = np.cumprod(1 - np.array(TABLES[name]))
    np.testing.assert_allclose(SCHEDULES[name].alpha(entries) ** 2, product, rtol=1e-9)
    np.testing.assert_allclose(SCHEDULES[name].sigma(entries) ** 2, 1 - product, rtol=1e-9)


def test_a_table_says_what_is_wrong_with_it():
  for betas, index in (((1.0, 0.1), 0), ((0.0, 0.1), 0), ((0.1, 1.5), 1), ((0.1, np.nan), 1)):
    with pytest.raises(
      ValueError, match=rf"betas\[{index}\].*inside \(0, 1\).*only the last.*0.999"
    ):
      schedules.Table(betas)
  with pytest.raises(ValueError, match="empty.*betas_linear"):
    schedules.Table(())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
  "make", [schedules.betas_linear, schedules.betas_scaled_linear, schedules.betas_cosine]
)
def test_arguments_of_betas_are_checked(make):
  for num in (0, -3, "10", 2.5, None):
    with pytest.raises((TypeError, ValueError), match=f"{make.__name__}: num"):
      make(num)
  for name in set(inspect.signature(make).parameters) - {"num"}:
    for wrong in (-1.0, np.nan, "0.1", None):
      with pytest.raises((TypeError, ValueError), match=f"{make.__name__}: {name}"):
        make(10, **{name: wrong})


@pytest.mark.usefixtures("unchecked")
def test_a_table_of_an_array_is_that_of_its_numbers():
  assert schedules.Table(np.array([0.1, 0.2])) == schedules.Table((0.1, 0.2))
  assert hash(schedules.Table([0.1, 1.0])) == hash(schedules.Table((0.1, 1.0)))


def test_zero_terminal_snr():
  betas = TABLES["zero_snr"]
  assert betas[-1] == 1 and all(0 < beta < 1 for beta in betas[:-1])
  schedule, one = SCHEDULES["zero_snr"], jnp.float32(1.0)
  assert schedule.alpha(one) == 0 and schedule.sigma(one) == 1
  assert schedule.log_snr(one) == -jnp.inf and schedule.time(schedule.log_snr(one)) == 1
  assert schedule.t_max == schedules.VPCosine().t_max
  # alpha falls linearly and sigma is constant, as `solvers.from_velocity` uses them.
  rates = [jax.grad(level)(one) for level in (schedule.alpha, schedule.sigma)]
  before = float(np.prod(np.sqrt(1 - np.array(betas[:-1]))))
  np.testing.assert_allclose(rates, [-1000 * before, 0], rtol=1e-5)
  # Also a table of a single entry: alpha = 1 - t.
  single, t = schedules.Table((1.0,)), jnp.linspace(0.1005, 0.9005, 6)
  np.testing.assert_allclose(single.alpha(t), 1 - t, rtol=1e-6)
  np.testing.assert_allclose(single.sigma(t) ** 2, 1 - (1 - t) ** 2, rtol=1e-5)
  np.testing.assert_allclose(single.drift(t), -1 / (1 - t), rtol=1e-5)
  np.testing.assert_allclose(single.diffusion(t) ** 2, 2 / (1 - t), rtol=1e-5)
  np.testing.assert_allclose(single.time(single.log_snr(t)), t, rtol=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_uses_the_step_that_ends_at_an_entry(name):
  """It does so also where the entry's time is rounded, upwards or downwards."""
  entries = np.arange(1, 1001) / 1000
  regular = slice(0, 999 if name == "zero_snr" else 1000)
  for times in (entries, np.minimum(entries * (1 + 1e-7), 1), entries * (1 - 1e-7)):
    rate = -2 * SCHEDULES[name].drift(jnp.asarray(times[regular], jnp.float32))
    expected = -1000 * np.log1p(-np.array(TABLES[name][regular]))
    np.testing.assert_allclose(rate, expected, rtol=1e-4)


def test_ends(schedule):
  ends = jnp.array([0.0, 1.0])
  assert schedule.alpha(ends)[0] == 1 and schedule.sigma(ends)[0] == 0
  assert schedule.log_snr(ends)[0] == jnp.inf
  expected = 50.0 if isinstance(schedule, schedules.VE) else 1.0
  np.testing.assert_allclose(schedule.sigma(ends)[1], expected, rtol=5e-3)
  if schedule.t_max < 1:
    assert schedule.alpha(ends)[1] == 0
  for level in (schedule.drift, schedule.diffusion):
    assert np.isfinite(level(jnp.array([0.0, schedule.t_max]))).all()


def test_float32_is_accurate_at_both_ends(schedule):
  near = np.array([1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.999], np.float32)
  names = ("alpha", "sigma", "log_snr", "drift", "diffusion")
  single = [getattr(schedule, name)(jnp.array(near)) for name in names]
  assert all(value.dtype == jnp.float32 for value in single)
  back = schedule.time(single[2])
  with jax.enable_x64(True):
    exact = jnp.array(near.astype(np.float64))
    double = [getattr(schedule, name)(exact) for name in names]
  for name, got, expected in zip(names, single, double, strict=True):
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=2e-6, err_msg=name)
  # Where alpha is close to its end, log_snr determines times near 1 only roughly.
  np.testing.assert_allclose(back, near, rtol=2e-4)


def test_steep_rates_do_not_overflow():
  t = jnp.array([0.5, 1.0])
  steep = schedules.VPLinear(beta_max=400.0)
  np.testing.assert_allclose(steep.log_snr(t), -steep.integral(t), rtol=1e-5)


def test_schedule_of_names_the_modality():
  one = SCHEDULES["vp_linear"]
  assert schedules.schedule_of(one, "a") is one
  assert schedules.schedule_of({"a": one}, "a") is one
  with pytest.raises(ValueError, match="'b'"):
    schedules.schedule_of({"a": one}, "b")


def test_defaults_are_the_published_ones():
  one = jnp.ones(())
  for name in ("vp_linear", "sub_vp"):
    np.testing.assert_allclose(SCHEDULES[name].alpha(one), np.exp(-(0.1 + 20) / 4), rtol=1e-5)
  np.testing.assert_allclose(SCHEDULES["ve"].sigma(one), np.sqrt(50**2 - 0.01**2), rtol=1e-6)
  assert [s.t_max for s in SCHEDULES.values()] == [1, 1, 1, 0.999, 0.999, 1, 1, 1, 0.999]


BAD = (0.0, -1.0, np.nan, np.inf, "1", None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
  "make", [*(type(SCHEDULES[name]) for name in list(SCHEDULES)[:5]), schedules.Table]
)
def test_invalid_parameters_are_named(make):
  betas = {"betas": (0.1, 0.2)} if make is schedules.Table else {}
  for field in dataclasses.fields(make):
    if field.name == "betas":
      continue
    for value in (*BAD, *((1.5,) if field.name == "t_max" else ())):
      if make is schedules.Table and value is None:
        continue
      with pytest.raises(ValueError, match=f"{make.__name__}: {field.name} must"):
        make(**betas, **{field.name: value})
    make(**betas, **{field.name: np.float32(0.5)})


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: schedules.VPLinear(beta_min=20.0, beta_max=0.1), "VPLinear: beta_min .* beta_max"),
    (lambda: schedules.SubVP(beta_min=20.0, beta_max=0.1), "SubVP: beta_min .* beta_max"),
    (lambda: schedules.VE(sigma_min=50.0, sigma_max=0.01), "VE: sigma_min .* sigma_max"),
    (lambda: schedules.VE(sigma_min=1.0, sigma_max=1.0), "VE: sigma_min .* sigma_max"),
    (lambda: schedules.VPCosine(t_max=1.0), "VPCosine: t_max must be below 1"),
    (lambda: schedules.RectifiedFlow(t_max=1.0), "RectifiedFlow: t_max must be below 1"),
    (lambda: schedules.Table((0.1, 1.0), t_max=1.0), "Table: t_max must be below 1"),
  ],
)
def test_parameters_that_contradict_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_constant_rates_are_a_schedule():
  schedule, t = schedules.VPLinear(beta_min=3.0, beta_max=3.0), jnp.linspace(0.1, 1.0, 10)
  np.testing.assert_allclose(schedule.alpha(t), np.exp(-1.5 * t), rtol=1e-6)
  np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-5)


TIMES = {
  name: jax.jit(jax.vmap(jax.value_and_grad(schedule.time))) for name, schedule in SCHEDULES.items()
} | {"steep": jax.jit(jax.vmap(jax.value_and_grad(schedules.SubVP(beta_max=400.0).time)))}
ANY = st.floats(allow_nan=False, width=32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(ANY, st.floats(-200, 200, width=32)), min_size=32, max_size=32))
def test_times_are_inside_whatever_the_log_snr(log_snr):
  log_snr = jnp.array(log_snr, jnp.float32)
  for name, time in TIMES.items():
    t, slope = time(log_snr)
    assert np.all((t >= 0) & (t <= 1)), name
    assert np.isfinite(slope).all() and np.all(slope <= 0), name


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_at_both_ends(name):
  """Times are right at both ends and just beyond them, where rounding may lead."""
  schedule = SCHEDULES[name]
  last = schedule.log_snr(jnp.float32(1.0))
  ends = jnp.array([last, np.nextafter(last, -np.inf), last - 1e-3, last - 1, -jnp.inf, jnp.inf])
  t, slope = TIMES[name](ends)
  np.testing.assert_allclose(t, [1, 1, 1, 1, 1, 0], atol=1e-5)
  assert np.all(t <= 1) and np.isfinite(slope).all()
  # Inside, the slope is that of an inverse function.
  t = jnp.linspace(0.1005, 0.9005, 6)
  rate = -((schedule.diffusion(t) / schedule.sigma(t)) ** 2)
  np.testing.assert_allclose(TIMES[name](schedule.log_snr(t))[1] * rate, 1, rtol=1e-3)


def test_a_table_takes_python_numbers(unchecked):
  table = schedules.Table(schedules.betas_linear(10))
  for method in ("alpha", "sigma", "log_snr", "drift", "diffusion"):
    np.testing.assert_allclose(
      getattr(table, method)(0.5), getattr(table, method)(jnp.float32(0.5)), rtol=1e-6
    )


@pytest.mark.parametrize(
  "make",
  [
    lambda: schedules.VPLinear(beta_max=1e300),
    lambda: schedules.VE(sigma_max=1e30),
    lambda: schedules.VE(sigma_min=1e-30),
    lambda: schedules.VPCosine(t_max=1 - 1e-12),
  ],
)
def test_parameters_that_float32_cannot_hold_are_refused(make):
  with pytest.raises(ValueError, match="beta_max|sigma_max|sigma_min|t_max"):
    make()
