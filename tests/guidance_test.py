"""Tests of guidance and composition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import guidance, multitime, schedules, solvers

SCHEDULE = schedules.VPLinear()


def fn(x, t):
  """Couples the modalities and their times, row by row."""
  time = {n: schedules.along(jnp.asarray(t[n]), x[n]) for n in x}
  return {"a": x["a"] * time["a"] + 0.3 * x["b"], "b": 0.2 * x["b"] + x["a"] * (1 + time["a"])}


DENOISER = solvers.from_eps(fn, SCHEDULE)
X = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[0.5], [-1.0]])}
NOISE = {"a": jnp.array([[-0.4], [0.9]])}
T = {"a": jnp.float32(0.0), "b": jnp.float32(0.6)}


def test_combines_conditional_and_unconditional():
  conditional = DENOISER(X, T)
  unconditional = DENOISER(X | NOISE, T | {"a": jnp.float32(1.0)})
  for t in (T, {name: jnp.full(2, time) for name, time in T.items()}):
    guided = guidance.guide(DENOISER, 2.5, NOISE)(X, t)
    for got, c, u in zip(guided, conditional, unconditional, strict=True):
      np.testing.assert_allclose(got["b"], u["b"] + 2.5 * (c["b"] - u["b"]), rtol=1e-5)
  x0, eps = guided
  x = SCHEDULE.alpha(T["b"]) * x0["b"] + SCHEDULE.sigma(T["b"]) * eps["b"]
  np.testing.assert_allclose(x, X["b"], rtol=1e-5)


def test_only_given_modalities_become_absent():
  noise = NOISE | {"b": jnp.full((2, 1), 99.0)}
  for got, expected in zip(
    guidance.guide(DENOISER, 2.5, noise)(X, T),
    guidance.guide(DENOISER, 2.5, NOISE)(X, T),
    strict=True,
  ):
    np.testing.assert_array_equal(got["b"], expected["b"])


def test_strength_one_is_the_denoiser_itself_and_others_call_it_once():
  assert guidance.guide(DENOISER, 1.0, NOISE) is DENOISER
  calls = []

  def counted(x, t):
    calls.append(1)
    return DENOISER(x, t)

  guidance.guide(counted, 0.0, NOISE)(X, T)
  assert len(calls) == 1


def test_guided_sampling_keeps_given_modalities():
  path = multitime.conditional(("a", "b"), ("a",), 4)
  got = jax.jit(
    lambda denoiser: solvers.sample(
      jax.random.key(0), denoiser, SCHEDULE, X, path, solver=solvers.heun
    )
  )(guidance.guide(DENOISER, jnp.float32(2.0), NOISE))
  np.testing.assert_array_equal(got["a"], X["a"])
  assert np.isfinite(got["b"]).all()


def test_the_interval_decides_for_each_modality_and_row():
  conditional, unconditional = DENOISER(X, T)[1]["b"], DENOISER(X | NOISE, T | {"a": 1.0})[1]["b"]
  expected = unconditional + 2.5 * (conditional - unconditional)
  here = float(SCHEDULE.log_snr(T["b"]))
  for interval, wanted in (
    ((here - 1, here + 1), expected),
    ((here, here), expected),  # both ends belong to it
    ((here + 0.1, 99.0), conditional),
    ((-99.0, here - 0.1), conditional),
  ):
    guided = guidance.guide(DENOISER, 2.5, NOISE, interval=interval, schedule=SCHEDULE)
    np.testing.assert_allclose(guided(X, T)[1]["b"], wanted, rtol=1e-5)
  rows = {"a": jnp.zeros(2), "b": jnp.array([0.6, 0.1])}
  guided = guidance.guide(DENOISER, 2.5, NOISE, interval=(-99.0, here + 0.1), schedule=SCHEDULE)
  got = guided(X, rows)[1]["b"]
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], DENOISER(X, rows)[1]["b"][1], rtol=1e-5)


def test_rescaling_restores_the_std_of_each_row():
  wide = {"a": jnp.ones((2, 3)), "b": jax.random.normal(jax.random.key(0), (2, 3))}
  noise = {"a": jax.random.normal(jax.random.key(1), (2, 3))}
  plain = DENOISER(wide, T)[0]["b"]
  guided = guidance.guide(DENOISER, 4.0, noise)(wide, T)[0]["b"]
  for fraction in (1.0, 0.4):
    rescaled = guidance.guide(DENOISER, 4.0, noise, rescale=fraction, schedule=SCHEDULE)
    x0, eps = rescaled(wide, T)
    scale = fraction * plain.std(axis=1) / guided.std(axis=1) + 1 - fraction
    mean = guided.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(x0["b"], mean + (guided - mean) * scale[:, None], rtol=1e-4)
    x = SCHEDULE.alpha(T["b"]) * x0["b"] + SCHEDULE.sigma(T["b"]) * eps["b"]
    np.testing.assert_allclose(x, wide["b"], rtol=1e-4)
  with pytest.raises(ValueError, match="schedule"):
    guidance.guide(DENOISER, 2.0, noise, rescale=1.0)


def images(brightness, contrast):
  """Returns a denoiser whose x0 has more contrast where `a` is given, in rows 0 and 1.

  Row 2 is constant; its 48 components have a mean that float32 rounds.
  """
  pattern = jnp.linspace(-1.0, 1.0, 48).reshape(1, 4, 12)
  rows = jnp.array([1.0, 2.0, 0.0]).reshape(3, 1, 1)

  def x0(x, t):
    given = schedules.along(jnp.asarray(t["a"] == 0), x["b"])
    value = brightness + contrast * rows * pattern * jnp.where(given, 1.0, 0.4)
    return {"a": x["a"], "b": value + 0.0 * x["b"]}

  return solvers.from_x0(x0, SCHEDULE)


@pytest.mark.parametrize("fraction", [0.7, 1.0])
def test_rescaling_keeps_brightness_and_constant_rows(fraction):
  x = {"a": jnp.ones((3, 1)), "b": jnp.ones((3, 4, 12))}
  noise = {"a": jnp.zeros((3, 1))}

  def run(denoiser, rescale):
    return guidance.guide(denoiser, 3.0, noise, rescale=rescale, schedule=SCHEDULE)

  denoiser = images(0.9, 0.1)
  plain, guided = (run(denoiser, r)(x, T)[0]["b"] for r in (0.0, fraction))
  np.testing.assert_allclose(guided.mean((1, 2)), 0.9, rtol=1e-6)
  wanted = fraction * denoiser(x, T)[0]["b"].std((1, 2)) + (1 - fraction) * plain.std((1, 2))
  np.testing.assert_allclose(guided.std((1, 2)), wanted, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(guided[2], plain[2])
  # Rows of a single number.
  single = guidance.guide(DENOISER, 3.0, NOISE, rescale=fraction, schedule=SCHEDULE)
  none = guidance.guide(DENOISER, 3.0, NOISE)
  np.testing.assert_array_equal(single(X, T)[0]["b"], none(X, T)[0]["b"])

  def total(brightness, contrast):
    return sum(value["b"].sum() for value in run(images(brightness, contrast), fraction)(x, T))

  for contrast in (0.1, 0.0):
    slope = jax.grad(total, (0, 1))(0.9, contrast)
    assert np.isfinite(slope).all()
  # The slope of the sum of x0 and eps in the brightness: that of x0 is 1, and eps follows.
  ratio = SCHEDULE.alpha(T["b"]) / SCHEDULE.sigma(T["b"])
  np.testing.assert_allclose(slope[0], x["b"].size * (1 - ratio), rtol=1e-4)


def constant(value):
  return solvers.from_eps(lambda x, t: {n: jnp.full_like(x[n], value) for n in x}, SCHEDULE)


def test_composition():
  composed = guidance.compose(constant(1.0), [constant(2.0), constant(5.0)], [0.5, -2.0])
  x0, eps = composed(X, T)
  np.testing.assert_allclose(eps["b"], 1 + 0.5 * 1 - 2 * 4)
  x = SCHEDULE.alpha(T["b"]) * x0["b"] + SCHEDULE.sigma(T["b"]) * eps["b"]
  np.testing.assert_allclose(x, X["b"], rtol=1e-5)
  one = guidance.compose(constant(1.0), [DENOISER], [1.0])(X, T)
  for got, expected in zip(one, DENOISER(X, T), strict=True):
    np.testing.assert_allclose(got["b"], expected["b"], rtol=1e-5)
  with pytest.raises(ValueError, match="2 experts.*not 1"):
    guidance.compose(DENOISER, [DENOISER, DENOISER], [1.0])


def test_composition_with_several_unconditional_ones_and_weights_that_change():
  several = [constant(1.0), constant(3.0)]
  rows = jnp.array([0.5, 2.0])
  composed = guidance.compose(
    several, [constant(7.0), constant(5.0)], [lambda t: 1 - t["b"], rows], (0.25, 0.75)
  )
  x = {"b": jnp.zeros((2, 4))}
  for time in (0.3, 0.8):
    x0, eps = composed(x, {"b": jnp.float32(time)})
    expected = 2.5 + (1 - time) * 4.5 + rows * 2.5
    np.testing.assert_allclose(eps["b"], np.broadcast_to(expected[:, None], (2, 4)), rtol=1e-5)
    alpha, sigma = SCHEDULE.alpha(jnp.float32(time)), SCHEDULE.sigma(jnp.float32(time))
    rebuilt = alpha * x0["b"] + sigma * eps["b"]
    np.testing.assert_allclose(rebuilt, x["b"], atol=1e-5)
  with pytest.raises(ValueError, match="2 unconditional.*not 1"):
    guidance.compose(several, [DENOISER], [1.0])
  with pytest.raises(ValueError, match="sum to 1"):
    guidance.compose(several, [DENOISER], [1.0], (0.5, 0.6))


def test_mixing_branches_is_composing():
  alone = [constant(1.0), constant(2.0), constant(5.0)]

  def branches(x, t):
    return jax.tree.map(lambda *outputs: jnp.stack(outputs), *(one(x, t) for one in alone))

  mixed = guidance.mix(branches, (1.0,), (0.5, -2.0))(X, T)
  composed = guidance.compose(alone[0], alone[1:], [0.5, -2.0])(X, T)
  for a, b in zip(mixed, composed, strict=True):
    np.testing.assert_array_equal(a["b"], b["b"])


def test_steering_gives_the_posterior_of_a_linear_measurement():
  """For y = x + r n with a Gaussian x it is exact, if the variance of x0 given x is included."""
  variance, noise, observed = 0.5, 0.3, 1.2
  schedule = schedules.VPCosine()

  def gain(t):
    alpha, sigma = schedule.alpha(t["z"]), schedule.sigma(t["z"])
    return alpha * variance / (alpha**2 * variance + sigma**2)

  def log_likelihood(x0, t):
    spread = variance * (1 - schedule.alpha(t["z"]) * gain(t))
    return jnp.sum(-0.5 * (observed - x0["z"]) ** 2 / (noise**2 + spread))

  denoiser = solvers.from_x0(lambda x, t: {"z": gain(t) * x["z"]}, schedule)
  steered = guidance.steer(denoiser, log_likelihood, schedule)
  x = solvers.prior(jax.random.key(0), schedule, {"z": (1,)}, 20_000)
  path = multitime.joint(("z",), 200)
  z = solvers.sample(jax.random.key(1), steered, schedule, x, path, solver=solvers.heun)["z"]
  # Where alpha is 0 nothing can be steered.
  start = {"z": jnp.float32(1.0)}
  np.testing.assert_array_equal(steered(x, start)[0]["z"], denoiser(x, start)[0]["z"])
  precision = 1 / variance + 1 / noise**2
  np.testing.assert_allclose(z.mean(), observed / noise**2 / precision, atol=0.01)
  np.testing.assert_allclose(z.var(), 1 / precision, rtol=0.04)


def test_thresholds():
  x = {"a": jnp.array([[0.1, -4.0, 1.0, 8.0], [0.1, 0.2, 0.3, 0.4]])}
  t = {"a": jnp.float32(0.5)}
  schedule = schedules.VPCosine()
  denoiser = solvers.from_x0(lambda x, t: x, schedule)
  x0, eps = guidance.threshold(denoiser, schedule, {"a": (-1.0, 2.0)})(x, t)
  np.testing.assert_allclose(x0["a"], jnp.clip(x["a"], -1.0, 2.0))
  rebuilt = schedule.alpha(t["a"]) * x0["a"] + schedule.sigma(t["a"]) * eps["a"]
  np.testing.assert_allclose(rebuilt, x["a"], rtol=1e-5)
  # The largest distance from the middle, 1/2, is 7.5: five times what fits.
  x0, _ = guidance.threshold(denoiser, schedule, {"a": (-1.0, 2.0)}, quantile=1.0)(x, t)
  np.testing.assert_allclose(x0["a"][0], 0.5 + (x["a"][0] - 0.5) / 5, rtol=1e-5)
  np.testing.assert_allclose(x0["a"][1], x["a"][1], rtol=1e-6)
  # Equal bounds, and a row that lies on them.
  level = {"a": jnp.array([[0.5, 3.0], [0.5, 0.5]])}
  point = guidance.threshold(denoiser, schedule, {"a": (0.5, 0.5)}, quantile=0.9)
  np.testing.assert_array_equal(point(level, t)[0]["a"], 0.5)
  assert np.isfinite(jax.grad(lambda x: point(x, t)[1]["a"].sum())(level)["a"]).all()
  with pytest.raises(ValueError, match=r"'a'.*\(2\.0, -1\.0\)"):
    guidance.threshold(denoiser, schedule, {"a": (2.0, -1.0)})
  with pytest.raises(ValueError, match="quantile.*99.5"):
    guidance.threshold(denoiser, schedule, {"a": (-1.0, 2.0)}, quantile=99.5)
  # Other modalities are unchanged, and at time 0 eps is unchanged.
  two = {"a": x["a"], "b": 9 * x["a"]}
  zero = dict.fromkeys(two, jnp.float32(0.0))
  odd = lambda x, t: (x, {n: 7 + value for n, value in x.items()})  # noqa: E731
  x0, eps = guidance.threshold(odd, schedule, {"a": (-1.0, 2.0)})(two, zero)
  np.testing.assert_array_equal(x0["b"], two["b"])
  np.testing.assert_array_equal(eps["b"], 7 + two["b"])
  np.testing.assert_array_equal(x0["a"], jnp.clip(two["a"], -1.0, 2.0))
  np.testing.assert_array_equal(eps["a"], 7 + two["a"])


def test_a_new_strength_does_not_compile_again():
  traces = []

  @jax.jit
  def run(denoiser):
    traces.append(1)
    return denoiser(X, T)[0]["b"]

  ends = [
    run(guidance.guide(DENOISER, jnp.float32(w), NOISE, interval=(-9.0, 9.0), schedule=SCHEDULE))
    for w in (2.0, 3.0)
  ]
  assert len(traces) == 1
  assert not np.allclose(*ends)


def test_plain_functions_make_denoisers_for_jit():
  def plain(x, t):
    return DENOISER(x, t)

  run = jax.jit(lambda denoiser: denoiser(X, T)[0]["b"])
  for denoiser in (
    guidance.guide(plain, jnp.float32(2.0), NOISE),
    guidance.compose(plain, [plain], [1.0]),
    guidance.steer(plain, lambda x0, t: x0["b"].sum(), SCHEDULE),
    guidance.threshold(plain, SCHEDULE, {"b": (-1.0, 1.0)}),
    guidance.threshold(plain, SCHEDULE, {"b": (-1.0, 1.0)}, quantile=0.9),
    guidance.guide(plain, jnp.float32(2.0), NOISE, rescale=0.7, schedule=SCHEDULE),
  ):
    assert np.isfinite(run(denoiser)).all()


def test_guidance_passes_integers_unchanged():
  types, null = set(), 9

  def denoiser(x, t):
    types.add(x["b"].dtype)
    shift = (x["b"] == null) * 1.0
    return {"a": x["a"] + shift, "b": 0.0 * x["b"]}, {"a": x["a"] - shift, "b": 0.0 * x["b"]}

  x, t = {"a": jnp.ones((2, 1)), "b": jnp.zeros((2, 1), int)}, {"a": jnp.float32(1)}
  t["b"] = jnp.float32(0)
  noise = jnp.full((2, 1), null)
  guided = guidance.guide(denoiser, 3.0, {"b": noise})(x, t)
  assert types == {jnp.dtype("int32")}
  np.testing.assert_allclose(guided[0]["a"], 2.0 + 3.0 * (1.0 - 2.0))
  with pytest.raises(TypeError, match=r"noise\['b'\] is float32 but the modality is int32"):
    guidance.guide(denoiser, 3.0, {"b": jnp.zeros((2, 1))})(x, t)
  with pytest.raises(ValueError, match="noise has 'bb'.* nearest is 'b'"):
    guidance.guide(denoiser, 3.0, {"bb": noise})(x, t)


@pytest.mark.usefixtures("unchecked")
def test_weights_bounds_and_intervals_may_be_arrays():
  experts, t = [DENOISER, DENOISER], T
  expected = guidance.compose(DENOISER, experts, [1.0, 0.5])(X, t)
  for weights in (np.array([1.0, 0.5]), jnp.array([1.0, 0.5])):
    got = jax.jit(lambda w: guidance.compose(DENOISER, experts, w)(X, t))(weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)
  guidance.guide(DENOISER, 2.0, NOISE, interval=np.array([-np.inf, 1.0]), schedule=SCHEDULE)(X, t)
  name = next(iter(X))
  bounded = guidance.threshold(DENOISER, SCHEDULE, {name: (0.0, np.inf)})(X, t)[0][name]
  assert bounded.min() >= 0
  with pytest.raises(ValueError, match="shares .* must sum to 1"):
    guidance.compose([DENOISER, DENOISER], [DENOISER], [1.0], jnp.array([0.5, 0.2]))


def test_a_strength_for_each_row():
  rows = len(X["a"])
  strength = jnp.linspace(1.0, 3.0, rows)
  got = guidance.guide(DENOISER, strength, NOISE)(X, T)[0]["a"]
  for row in range(rows):
    one = guidance.guide(DENOISER, float(strength[row]) + 1e-7, NOISE)(X, T)[0]["a"]
    np.testing.assert_allclose(got[row], one[row], rtol=1e-4, atol=1e-5)


def test_infinite_bounds_have_no_quantile():
  denoiser = solvers.from_v(lambda x, t: x, schedules.VPLinear())
  for bounds in ((0.0, math.inf), (-math.inf, 1.0)):
    with pytest.raises(ValueError, match=r"threshold: bounds\['a'\].*infinite"):
      guidance.threshold(denoiser, schedules.VPLinear(), {"a": bounds}, quantile=0.9)
