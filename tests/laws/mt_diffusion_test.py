"""MT-Diffusion's laws, against closed forms on Gaussians and a mixture of them."""

import dataclasses
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import mt_diffusion as config_lib
from mmdiff_jax import (
  modalities as modalities_lib,
  multitime,
  noise as noise_lib,
  schedules,
  solvers,
)
from mmdiff_jax.frameworks import base
from mmdiff_jax.frameworks.mt_diffusion import (
  bound as bound_lib,
  heads,
  losses,
  process as process_lib,
  sampling as sampling_lib,
)
from mmdiff_jax.frameworks.mt_diffusion.model import AGGREGATIONS, make_model, MODES
from mmdiff_jax.networks.multitask import Multitask, Part

TABLE = schedules.Table(schedules.betas_linear(12, beta_min=0.02, beta_max=0.6))
WEIGHTS = (0.5, -0.2, 0.0, 0.3, 1.0, 0.1, 0.4, 0.0, -0.6, 0.2, 0.3, 0.7)
PROCESS = process_lib.Process(TABLE, WEIGHTS)
DDPM = schedules.Table(schedules.betas_linear(1000))
CORRELATED = np.array([[1.0, 0.8], [0.8, 1.0]])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def at(*index, size=12):
  return [jnp.asarray(i / size) for i in index]


def joint_law(z0, aggregate):
  """Returns means and covariance of (z_1, .., z_T) given z_0 and E, step by step, by (1)."""
  alphas, size = 1 - np.array(TABLE.betas), len(WEIGHTS)
  mean, covariance = [], np.zeros((size, size))
  for t, (alpha, w) in enumerate(zip(alphas, WEIGHTS, strict=True)):
    before = mean[-1] if t else z0
    mean.append(np.sqrt(alpha) * (before + w * aggregate))
    if t:
      covariance[t, :t] = covariance[:t, t] = np.sqrt(alpha) * covariance[t - 1, :t]
    covariance[t, t] = alpha * covariance[t - 1, t - 1] * (t > 0) + 1 - alpha
  return np.array(mean), covariance


PAIRS = np.array(list(itertools.combinations(range(1, 13), 2)))


def test_marginal_is_that_of_the_recursion():
  mean, covariance = joint_law(0.7, -1.3)
  z0, aggregate = jnp.full((12, 1), 0.7), jnp.full((12, 1), -1.3)
  got, std = PROCESS.marginal(z0, aggregate, jnp.arange(1, 13) / 12)
  np.testing.assert_allclose(got[:, 0], mean, rtol=0, atol=1e-12)
  np.testing.assert_allclose(std[:, 0] ** 2, np.diag(covariance), rtol=0, atol=1e-12)


def test_posterior_is_that_of_bayes_rule_at_any_stride():
  mean, covariance = joint_law(0.7, -1.3)
  s, t = PAIRS.T - 1
  z0, aggregate, z = (jnp.full((len(s), 1), value) for value in (0.7, -1.3, 0.4))
  times = jnp.asarray(t + 1) / 12, jnp.asarray(s + 1) / 12
  gain = covariance[s, t] / covariance[t, t]
  expected = mean[s] + gain * (0.4 - mean[t]), covariance[s, s] - gain * covariance[s, t]
  eps = jnp.asarray((0.4 - mean[t]) / np.sqrt(covariance[t, t]))[:, None]
  slope = covariance[s, t] / covariance[s, s]
  ahead = mean[t] + slope * (0.4 - mean[s]), covariance[t, t] - slope * covariance[s, t]
  for got, truth in (
    (PROCESS.posterior(z, z0, aggregate, *times), expected),
    (PROCESS.posterior_eps(z, eps, aggregate, *times), expected),
    (PROCESS.step(z, aggregate, *times[::-1]), ahead),
    ((PROCESS.start(z, eps, aggregate, times[0]),), (np.full(len(s), 0.7),)),
  ):
    np.testing.assert_allclose(got[0][:, 0], truth[0], rtol=0, atol=1e-12)
    if len(truth) > 1:
      np.testing.assert_allclose(got[1][:, 0] ** 2, truth[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 7.0, 100.0])
def test_grid_has_each_entry_once_and_both_ends(power):
  for size in (2, 12, 1000):
    process = process_lib.Process(schedules.Table((0.1,) * size), (0.0,) * size)
    for num in {2, size // 2 + 1, size}:
      entries = process.grid(num, power) * size
      np.testing.assert_allclose(entries, np.round(entries), rtol=0, atol=1e-9)
      assert len(entries) == num
      assert (np.diff(entries) < -0.5).all()
      np.testing.assert_allclose([entries[0], entries[-1]], [size, 1])
  with pytest.raises(ValueError, match="power=0.5 must be at least 1"):
    process.grid(2, 0.5)


def test_grid_is_even_in_roots():
  process = process_lib.Process(DDPM, process_lib.no_weights(DDPM))
  np.testing.assert_allclose(process.grid(4) * 1000, [1000, 667, 334, 1])
  roots = np.sqrt(process.grid(20, 2.0) * 1000)
  np.testing.assert_allclose(np.diff(roots)[:10], (1 - 1000**0.5) / 19, atol=0.03)


def test_last_step_is_the_start():
  z0, aggregate, z = (jnp.full((1, 1), value) for value in (0.7, -1.3, 0.4))
  mean, std = PROCESS.posterior(z, z0, aggregate, *at(5, 0))
  assert mean == z0
  assert std == 0.0


def test_zero_terminal_snr():
  """At a_T = 0 eps does not determine z_0, which `start` takes as -W_T E, the prior's mean."""
  betas = (0.1, 0.3, 0.6, 1.0)
  process = process_lib.Process(schedules.Table(betas), (0.2, 0.5, -0.3, 0.4))
  process.check_prior(1.0, 1.0)
  z, eps, aggregate = (jnp.full((1, 1), value) for value in (0.4, 0.4, -1.3))
  one = jnp.asarray(1.0)
  for s in (0, 1, 3):
    s = jnp.asarray(s / 4)
    z0 = process.start(z, eps, aggregate, one)
    expected = process.posterior(z, z0, aggregate, one, s)
    for got, wanted in zip(process.posterior_eps(z, eps, aggregate, one, s), expected, strict=True):
      assert np.isfinite(wanted).all()
      np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("num_steps", [0, 1, 13, 3.0, 2.5])
def test_numbers_of_steps_beyond_the_table_are_rejected(num_steps):
  with pytest.raises(ValueError, match="take from 2 to 12"):
    PROCESS.grid(num_steps)


def test_without_weights_each_step_is_ddpm_to_the_bit():
  """XLA runs the operations one by one; compiled into one program both may round differently."""
  process = process_lib.Process(TABLE, process_lib.no_weights(TABLE))
  z, z0, aggregate = (
    jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(3, 50, 3))
  )
  ours = process_lib.posterior_sampling(process)
  denoiser = solvers.from_x0(lambda x, t: {"z": z0}, TABLE)
  for s, t in ((0, 1), (3, 11)):
    times = ({"z": jnp.asarray(i / 12, jnp.float32)} for i in (t, s))
    args = (TABLE, {"z": z}, *times, ())
    key = jax.random.key(9)
    theirs = solvers.ancestral.step(key, denoiser, *args)[0]["z"]
    got = ours.step(key, lambda x, t: ({"z": z0}, {"z": aggregate}), *args)[0]["z"]
    np.testing.assert_array_equal(got, theirs)


class Exact:
  """Perfect heads for x = (x_a, x_b) ~ N(0, covariance), whose encoders are the identity."""

  def __init__(self, process, covariance):
    self.process, self.covariance = process, covariance

  def apply(self, params, *args, method=None, **kwargs):
    del params, kwargs
    return args[0] if method == "encode" else self.predict(*args)

  def predict(self, z, t, given):
    a, sigma = self.process.table.alpha(t), self.process.table.sigma(t)
    # z_t = a h (x_a, x_b) + sigma eps.
    enters = 1.0 if self.process.plain else self.process.total(t)
    h = jnp.stack([jnp.ones_like(enters), jnp.asarray(enters, z.dtype)], -1)
    covariance, mean = self.covariance, jnp.zeros((*z.shape, 2))
    for i, name in enumerate("ab"):
      if name in given:
        value, other = given[name][1], 1 - i
        regression = covariance[:, i] / covariance[i, i]
        mean = value[..., None] * regression
        left = covariance[other, other] - regression[other] * covariance[i, other]
        covariance = np.diag([left, 0.0] if i else [0.0, left])
    gain = a * covariance @ h / (a**2 * h @ covariance @ h + sigma**2)
    mean = mean + gain * (z - a * (mean @ h))[..., None]
    return (z - a * (mean @ h)) / sigma, {"a": mean[..., 0], "b": mean[..., 1]}


ONE = (1, 1, 1)
GAUSSIAN = tuple(modalities_lib.Modality(n, k, ONE, str) for n, k in
                 (("a", "image"), ("b", "trajectory")))  # fmt: skip


LABELLED = (
  modalities_lib.Modality("digit", "image", ONE, str),
  modalities_lib.Modality("label", "label", (), str, num_classes=3),
)


def record(config, modalities, process, network):
  """Returns the record of the default config with another process, network and fields."""
  names = [modality.name for modality in modalities]
  return dataclasses.replace(
    make_model(config_lib.get_config(), LABELLED),
    modalities=modalities,
    main=config.main,
    process=process,
    network=network,
    omega={name: config.parts[name].omega for name in names},
    loss_weight={name: config.parts[name].weight for name in names},
    aggregation=config.process.aggregation,
    informed=config.network.informed,
    mode=config.sampling.mode,
  )


def gaussian_model(aggregation, mode, table=DDPM, covariance=CORRELATED):
  config = config_lib.get_config()
  config.main = "a"
  part = {"encoder": "identity", "omega": 1.0, "weight": 1.0}
  config.parts = {"a": part, "b": part}
  config.process.aggregation, config.sampling.mode = aggregation, mode
  weights = (
    process_lib.no_weights(table)
    if aggregation == "start"
    else process_lib.linear_weights(table, 2.0)
  )
  process = process_lib.Process(table, weights)
  return record(config, GAUSSIAN, process, Exact(process, covariance))


def moments(model, given, num_steps, guidance=1.0):
  """Returns mean and variance of the modality that is not given (1): each step is affine."""
  informed = model.mode == "informed"
  target = "b" if given == "a" else "a"
  times = jnp.asarray(model.process.grid(num_steps, model.grid_power))
  unit = jnp.array([0.0, 1.0]).reshape(2, *ONE)
  conditions = {given: jnp.ones((2, *ONE))}

  def start_of(conditions, t):
    return heads.estimate(model, {"network": None}, unit, t, conditions, informed=informed)

  def step(law, ends):
    mean, variance = law
    start = start_of(conditions, ends[0])
    if guidance != 1:
      free = start_of({}, ends[0])
      start = [b + guidance * (a - b) for a, b in zip(start, free, strict=True)]
    moved, std = model.process.posterior(unit, *start, *ends)
    offset, slope = moved[0], moved[1] - moved[0]
    return (offset + slope * mean, slope**2 * variance + std**2), None

  prior = (jnp.zeros(ONE), jnp.ones(ONE))
  (mean, variance), _ = jax.lax.scan(step, prior, (times[:-1], times[1:]))
  _, values = heads.read(model, {"network": None}, unit, times[-1], conditions, informed=informed)
  offset, slope = values[target][0], values[target][1] - values[target][0]
  return float((offset + slope * mean).squeeze()), float((slope**2 * variance).squeeze())


@pytest.mark.parametrize(
  ("mode", "mean", "variance"), [("replacement", 0.994, 0.0003), ("informed", 0.800, 0.355)]
)
def test_given_modality_has_its_effect_with_the_stated_bias(mode, mean, variance):
  """The truth is 0.8 and 0.36."""
  got = moments(gaussian_model("start", mode), "a", 1000)
  assert [round(got[0], 3), round(got[1], 4 if mode == "replacement" else 3)] == [mean, variance]


@pytest.mark.parametrize(("aggregation", "given"), [("start", "a"), ("steps", "b")])
def test_informed_heads_reach_the_truth_as_steps_grow_many(aggregation, given):
  """A modality added in steps leaves z_t again as t falls, so there the main one is tested."""
  errors = []
  for size in (500, 2000):
    betas = schedules.betas_linear(size, beta_min=0.1 / size, beta_max=20 / size)
    model = gaussian_model(aggregation, "informed", schedules.Table(betas))
    mean, variance = moments(model, given, size)
    assert mean == pytest.approx(0.8, abs=2e-3)
    errors.append(abs(variance - 0.36))
  assert errors[1] < 0.3 * errors[0]
  assert errors[1] < 4e-3


def test_modality_added_in_steps_is_read_as_its_mean():
  """z_1 hardly contains it, so its head gives its mean given the main one: no variance is left."""
  mean, variance = moments(gaussian_model("steps", "informed"), "a", 1000)
  assert mean == pytest.approx(0.8, abs=2e-3)
  assert variance < 0.01


@pytest.mark.parametrize(
  ("mode", "guidance"), [("replacement", 1.0), ("informed", 1.0), ("informed", 2.0)]
)
def test_samples_have_these_moments(mode, guidance):
  model, num = gaussian_model("start", mode), 4000
  sampling = base.SamplerConfig(solvers.ancestral, 100, guidance)
  given = {"a": jnp.ones((num, *ONE))}
  out = sampling_lib.sample(
    model, {"network": None}, jax.random.key(0), given, ("b",), num, sampling
  )
  x = 2 * np.asarray(out["b"]).ravel() - 1
  mean, variance = moments(model, "a", 100, guidance)
  assert x.mean() == pytest.approx(mean, abs=4 * (variance / num) ** 0.5 + 1e-6)
  assert x.var() == pytest.approx(variance, rel=4 * (2 / num) ** 0.5)


def test_guidance_emphasises_given_modalities():
  """Guidance of 2 moves the mean further from the marginal one, with a smaller variance."""
  model = gaussian_model("start", "informed")
  (mean, variance), (pressed, left) = (moments(model, "a", 100, g) for g in (1.0, 2.0))
  assert pressed > mean + 0.1
  assert left < variance


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_both_forms_are_one_with_nothing_given(aggregation):
  model = gaussian_model(aggregation, "replacement")
  z = jax.random.normal(jax.random.key(0), (6, *ONE))
  t = jnp.asarray(0.3)
  z0, aggregate = heads.estimate(model, {"network": None}, z, t, {}, informed=False)
  eps, values = heads.read(model, {"network": None}, z, t, {}, informed=False)
  rebuilt = heads.aggregate(model, values)
  np.testing.assert_allclose(z0, rebuilt[0], atol=1e-9)
  np.testing.assert_allclose(aggregate, rebuilt[1], atol=1e-9)
  s = jnp.asarray(0.29)
  for x0_form, eps_form in zip(
    model.process.posterior(z, z0, aggregate, t, s),
    model.process.posterior_eps(z, eps, aggregate, t, s),
    strict=True,
  ):
    np.testing.assert_allclose(x0_form, eps_form, atol=1e-9)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_bound_on_a_gaussian(aggregation):
  """The closed form uses the covariance of (z_0, E) given z_t, and not the code's process."""
  betas = np.array(schedules.betas_cosine(30))
  # Small, so that almost no image leaves [0, 1].
  covariance = 0.04 * CORRELATED
  model = gaussian_model(aggregation, "replacement", schedules.Table(tuple(betas)), covariance)
  num, stds = 20_000, {"a": 0.1, "b": 0.2}
  x = np.random.default_rng(0).multivariate_normal([0, 0], covariance, num)
  batch = {n: jnp.asarray(0.5 * (x[:, i] + 1)).reshape(num, *ONE) for i, n in enumerate("ab")}
  got = jax.jit(lambda key: bound_lib.bound(model, {"network": None}, key, batch, stds))(
    jax.random.key(0)
  )

  a = np.concatenate([[1], np.sqrt(np.cumprod(1 - betas))])
  sigma2 = 1 - a**2
  w = np.zeros(30) if aggregation == "start" else 2.0 * a[:-1] / 30
  W = np.concatenate([[0], np.cumsum(w / a[:-1])])
  mix = np.array([[1, 1], [0, 0]]) if aggregation == "start" else np.eye(2)
  spread = mix @ covariance @ mix.T

  def left(t):
    """Returns the covariance of (z_0, E), and of x, given z_t."""
    h = np.array([1, W[t]])
    variance = a[t] ** 2 * h @ spread @ h + sigma2[t]
    gains = (spread @ h, covariance @ mix.T @ h)
    return tuple(
      full - a[t] ** 2 * np.outer(g, g) / variance
      for full, g in zip((spread, covariance), gains, strict=True)
    )

  end = np.array([1, W[30]])
  prior = 0.5 * (a[30] ** 2 * end @ spread @ end + sigma2[30] - 1 - np.log(sigma2[30]))
  steps = 0.0
  for t in range(2, 31):
    s, beta = t - 1, betas[t - 1]
    on_z = np.sqrt(1 - beta) * sigma2[s] / sigma2[t]
    on_start = beta * a[s] / sigma2[t]
    c = np.array([on_start, on_start * W[s] - on_z * np.sqrt(1 - beta) * w[t - 1]])
    steps += c @ left(t)[0] @ c / (2 * beta * sigma2[s] / sigma2[t])
  np.testing.assert_allclose(got["prior"], prior, rtol=0.05, atol=1e-9)
  np.testing.assert_allclose(got["steps"], steps, rtol=0.01)
  ends = {
    n: 0.5 * np.log(2 * np.pi * stds[n] ** 2) + left(1)[1][i, i] / (2 * stds[n] ** 2)
    for i, n in enumerate("ab")
  }
  # An image's level has the width 2 / 255.
  np.testing.assert_allclose(got["nll_a"], ends["a"] - np.log(2 / 255), rtol=0.01)
  np.testing.assert_allclose(got["nll_b"], ends["b"], rtol=0.02)
  total = sum(got[name] for name in ("prior", "steps", "nll_a", "nll_b"))
  np.testing.assert_allclose(got["total"], total, rtol=1e-9)
  np.testing.assert_allclose(got["bits_per_dim"], total / np.log(2), rtol=1e-9)
  # It is a bound on the entropy of the law itself.
  entropy = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * covariance)) - np.log(2 / 255)
  assert got["total"] > entropy
  errors = bound_lib.residuals(model, {"network": None}, jax.random.key(1), batch)
  for i, n in enumerate("ab"):
    np.testing.assert_allclose(errors[n] ** 2, left(1)[1][i, i], rtol=0.04)


WEIGHT, OTHER_WEIGHT, MISREAD = -0.7, 0.4, 0.01
FEW = schedules.Table(schedules.betas_cosine(30))
NETWORK = {"network": None}
GIVEN = ((), ("b",))


class BadHead:
  """Predicts no noise, a with an error of 0.3, and b with one of MISREAD."""

  def __init__(self, values, heads):
    self.predicted = {n: values[n] + (MISREAD if n == "b" else 0.3) for n in heads}

  def apply(self, params, *args, method=None, **kwargs):
    del params, kwargs
    return args[0] if method == "encode" else (jnp.zeros_like(args[0]), self.predicted)


def with_bad_head(aggregation, mode="informed", names="ab", heads="ab"):
  """Returns a model, values of images a and vectors b, and the rms error of a that z_1 allows."""
  model, shape = gaussian_model(aggregation, mode, FEW), (100, 4, 4, 1)
  model = dataclasses.replace(model, omega={"a": WEIGHT, "b": OTHER_WEIGHT})
  rng = np.random.default_rng(0)
  # The values are among the 256 levels, and far enough from the ends that none is clipped.
  batch = {"a": rng.integers(64, 192, shape) / 255, "b": rng.uniform(size=shape)}
  batch = {name: jnp.asarray(batch[name]) for name in names}
  modalities = tuple(
    dataclasses.replace(m, shape=shape[1:]) for m in model.modalities if m.name in names
  )
  network = BadHead({name: 2 * x - 1 for name, x in batch.items()}, heads)
  noise, misread = np.sqrt(FEW.betas[0] / (1 - FEW.betas[0])), 0.0
  if aggregation == "start" and len(names) > 1:
    noise, misread = noise / abs(WEIGHT), OTHER_WEIGHT * MISREAD / abs(WEIGHT)
  elif len(names) > 1:
    misread = model.process.weights[0] * OTHER_WEIGHT * MISREAD
  model = dataclasses.replace(model, modalities=modalities, network=network)
  return model, batch, 1.1 * noise, misread


def sampled(model, z, given, monkeypatch):
  """Returns samples of a at this z_1."""
  monkeypatch.setattr(sampling_lib.solvers, "sample", lambda *args, **kwargs: {"z": z})
  sampling = base.SamplerConfig(solvers.ancestral, 20)
  key = jax.random.key(0)
  return sampling_lib.sample(model, NETWORK, key, given, ("a",), len(z), sampling)["a"]


def first(model, batch):
  """Draws z_1 of a batch."""
  z0, total = heads.aggregate(model, heads.values_of(model, batch))
  mean, std = model.process.marginal(z0, total, jnp.asarray(1 / 30))
  return mean + std * jax.random.normal(jax.random.key(1), z0.shape)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_samples_are_as_exact_as_z_1(aggregation, mode, given, monkeypatch):
  """They are exact to sigma_1 / a_1, and to the error of the other modality if it is not given."""
  model, batch, noise, misread = with_bad_head(aggregation, mode)
  given = {name: batch[name] for name in given}
  error = 2 * (sampled(model, first(model, batch), given, monkeypatch) - batch["a"])
  assert jnp.sqrt(jnp.mean(error**2)) <= np.hypot(noise, 0 if given else misread)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_bound_is_as_exact_as_z_1(aggregation):
  model, batch, noise, misread = with_bad_head(aggregation)
  key, allowed = jax.random.key(0), np.hypot(noise, misread)
  errors = bound_lib.residuals(model, NETWORK, key, batch)
  assert errors["a"] <= allowed
  np.testing.assert_allclose(errors["b"], MISREAD, rtol=1e-9)
  bound = jax.jit(lambda: bound_lib.bound(model, NETWORK, key, batch, errors))
  # 16 pixels, each with the entropy of a Gaussian of that error.
  nats = 16 * (0.5 * np.log(2 * np.pi * np.e * allowed**2) - np.log(2 / 255))
  assert bound()["nll_a"] <= nats


@pytest.mark.parametrize("heads", ["", "a"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_image_alone_is_as_exact_as_z_1(aggregation, heads, monkeypatch):
  """It is z_0 itself, whatever its omega."""
  model, batch, noise, _ = with_bad_head(aggregation, names="a", heads=heads)
  error = 2 * (sampled(model, first(model, batch), {}, monkeypatch) - batch["a"])
  assert jnp.sqrt(jnp.mean(error**2)) <= noise
  assert bound_lib.residuals(model, NETWORK, jax.random.key(0), batch)["a"] <= noise


@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_image_that_hardly_enters_z_is_read_off_its_head(weight, monkeypatch):
  model, batch, _, _ = with_bad_head("start")
  model = dataclasses.replace(model, omega={**model.omega, "a": weight})
  error = 2 * (sampled(model, first(model, batch), {}, monkeypatch) - batch["a"])
  np.testing.assert_allclose(error, 0.3, rtol=1e-9)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_image_read_off_z_1_is_its_mean(aggregation, given, monkeypatch):
  """It is so with perfect eps and a perfect head for b, whatever the head for a predicts."""
  model = gaussian_model(aggregation, "informed")
  perfect = model.network.predict
  z = 0.3 * jax.random.normal(jax.random.key(1), (50, *ONE))
  given = dict.fromkeys(given, 0.5 + 0.3 * z)
  conditions = {name: (jnp.ones(50), 2 * x - 1) for name, x in given.items()}
  mean = perfect(z, jnp.asarray(1e-3), conditions)[1]["a"]

  def predict(*args):
    eps, predicted = perfect(*args)
    return eps, predicted | {"a": predicted["a"] + 0.3}

  monkeypatch.setattr(model.network, "predict", predict)
  out = sampled(model, z, given, monkeypatch)
  np.testing.assert_allclose(out, jnp.clip(0.5 * (mean + 1), 0, 1), rtol=0, atol=1e-9)


MEANS, SHARES, SPREAD, EMBEDDED = (
  jnp.array([-0.6, 0.1, 0.5]),
  np.array([0.2, 0.5, 0.3]),
  0.05,
  np.array([0.3, -0.2, 0.4]),
)


class Mixture:
  """Perfect heads for x | y ~ N(mean of y, spread) and z_0 = x + embedded y.

  The parameters are a scale and a shift of the label's logits.
  """

  def __init__(self, table):
    self.table = table

  def apply(self, params, *args, method=None, **kwargs):
    del kwargs
    if method == "encode":
      table = jnp.asarray(EMBEDDED)
      encoded = {"digit": args[0]["digit"]}
      return encoded | {"label": (args[0]["label"] @ table).reshape(-1, *ONE)}
    z, t, _ = args
    a, sigma = (level(t)[:, None] for level in (self.table.alpha, self.table.sigma))
    variance = a**2 * SPREAD + sigma**2
    error = z.reshape(-1, 1) - a * (MEANS + EMBEDDED)
    logits = jnp.log(SHARES) - 0.5 * error**2 / variance
    posterior = jax.nn.softmax(logits)
    x = (posterior * (MEANS + a * SPREAD / variance * error)).sum(-1)
    eps = (posterior * sigma * error / variance).sum(-1)
    rows = (-1, *ONE)
    return eps.reshape(rows), {"digit": x.reshape(rows), "label": params[0] * logits + params[1]}


def test_posterior_of_the_label_is_what_minimises_the_loss():
  """On a mixture it has a closed form, and so has the least loss: mean entropy of y given z_t."""
  table = schedules.Table(schedules.betas_linear(20, beta_min=1e-3, beta_max=0.5))
  config = config_lib.get_config()
  config.network.informed = False
  process = process_lib.Process(table, process_lib.no_weights(table))
  config.parts.label.omega = 1.0
  num = 50_000
  rng = np.random.default_rng(0)
  y = rng.choice(3, num, p=SHARES)
  x = MEANS[y] + SPREAD**0.5 * rng.normal(size=num)
  batch = {"digit": jnp.asarray(0.5 * (x + 1)).reshape(num, *ONE), "label": jnp.asarray(y)}
  model = record(config, LABELLED, process, Mixture(table))

  @jax.jit
  def terms(scale, shift):
    """Returns the label's loss and that of eps, with the slope of the former."""

    def of_change(change):
      scalars = losses.loss(model, {"network": change}, jax.random.key(0), batch)[1]
      return scalars["loss_label"], scalars["loss_eps"]

    return jax.value_and_grad(of_change, has_aux=True)((scale, shift))

  (label, eps), slope = terms(1.0, jnp.zeros(3))
  grid = np.linspace(-6, 6, 4001)
  entropies, errors = [], []
  for a in np.sqrt(np.cumprod(1 - np.array(table.betas))):
    variance = a**2 * SPREAD + 1 - a**2
    error = grid[:, None] - a * (MEANS + EMBEDDED)
    each = SHARES * np.exp(-0.5 * error**2 / variance) / np.sqrt(2 * np.pi * variance)
    density = each.sum(1, keepdims=True)
    entropies.append(-np.trapezoid((each * np.log(each / density + 1e-300)).sum(1), grid))
    # E |eps - E[eps | z]|^2 = 1 - E |E[eps | z]|^2.
    mean = (each * error).sum(1) * np.sqrt(1 - a**2) / variance
    errors.append(1 - np.trapezoid(mean**2 / density[:, 0], grid))
  assert float(label) == pytest.approx(np.mean(entropies), abs=0.01)
  assert float(eps) == pytest.approx(np.mean(errors), abs=0.02)
  np.testing.assert_allclose(jnp.append(slope[1], slope[0]), 0, atol=8e-3)
  for scale, shift in [(0.8, 0), (1.2, 0), (1.0, 0.2), (1.0, -0.2)]:
    assert terms(scale, jnp.array([shift, 0.0, 0.0]))[0][0] > label + 1e-3


def test_single_task_is_ddpm_to_the_last_point():
  """Its last read-out is the step to time 0, so that sampling is `solvers.sample`."""
  model = gaussian_model("start", "replacement", TABLE)

  class Alone:
    def apply(self, params, z, *args, method=None, **kwargs):
      return z if method == "encode" else (jnp.tanh(z) * args[0], {})

  model = dataclasses.replace(model, network=Alone(), modalities=GAUSSIAN[:1], heads=False)
  key = jax.random.key(3)
  out = sampling_lib.sample(
    model, {"network": None}, key, {}, ("a",), 64, base.SamplerConfig(solvers.ancestral, 12)
  )
  prior_key, loop_key = jax.random.split(key)
  z = noise_lib.normal_like(prior_key, "z", jnp.zeros((64, *ONE)))

  def clipped(x, t):
    a, sigma = TABLE.alpha(t["z"]), TABLE.sigma(t["z"])
    return {"z": jnp.clip((x["z"] - sigma * jnp.tanh(x["z"]) * t["z"]) / a, -1, 1)}

  denoiser = solvers.from_x0(clipped, TABLE)
  path = multitime.Path({"z": jnp.linspace(1.0, 0.0, 13)})
  x = solvers.sample(loop_key, denoiser, TABLE, {"z": z}, path, solver=solvers.ancestral)["z"]
  np.testing.assert_allclose(out["a"], jnp.clip(0.5 * (x + 1), 0, 1), rtol=0, atol=1e-12)


class Dot(nn.Module):
  """A backbone for one pixel."""

  patch: int = 1

  @nn.compact
  def __call__(self, z, t, train, condition):
    t = jnp.broadcast_to(jnp.reshape(t, (-1, 1, 1, 1)), z.shape[:-1] + (1,))
    h = jnp.concatenate([z, t], axis=-1)
    for _ in range(2):
      h = nn.silu(nn.Dense(64)(h))
    return h, h


@pytest.mark.slow
def test_trained_label_head_is_the_posterior():
  """The real network learns it by the real loss, at any z and t."""
  table = schedules.Table(schedules.betas_linear(20, beta_min=1e-3, beta_max=0.5))
  config = config_lib.get_config()
  config.process.num = 20
  parts = (Part("digit", ONE, False, "identity"), Part("label", (3,), True, "frozen"))
  network = Multitask(Dot(), ONE, parts, heads=True, informed=False)
  config.network.informed = False
  process = process_lib.Process(table, process_lib.no_weights(table))
  embedded = config.parts.label.omega = 0.5
  model = record(config, LABELLED, process, network)

  def draw(key, num):
    y_key, x_key = jax.random.split(key)
    y = jax.random.choice(y_key, 3, (num,), p=jnp.asarray(SHARES))
    x = MEANS[y] + SPREAD**0.5 * jax.random.normal(x_key, (num,))
    return {"digit": (0.5 * (x + 1)).reshape(num, *ONE), "label": y}

  key = jax.random.key(0)
  like = heads.values_of(model, draw(key, 2))
  params = {"network": network.init(key, like, method="initialise")}
  tx = optax.adam(optax.cosine_decay_schedule(1e-2, 1000))

  def step(carry, key):
    params, state = carry
    grads = jax.grad(lambda p: losses.loss(model, p, key, draw(key, 256))[0])(params)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(key, 1000)
  (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, tx.init(params)))
  kernel = params["network"]["params"]["encoder_label"][:, 0]
  centres = MEANS + embedded * kernel / jnp.sqrt(jnp.mean(kernel**2))
  z = jnp.linspace(-2, 2, 41)
  for index in (2, 8, 14, 20):
    t = jnp.asarray(index / 20)
    a, sigma = table.alpha(t), table.sigma(t)
    variance = a**2 * SPREAD + sigma**2
    exact = jax.nn.softmax(jnp.log(SHARES) - 0.5 * (z[:, None] - a * centres) ** 2 / variance)
    _, values = heads.read(model, params, z.reshape(-1, *ONE), t, {}, informed=False)
    weight = (SHARES * jnp.exp(-0.5 * (z[:, None] - a * centres) ** 2 / variance)).sum(-1)
    error = jnp.abs(values["label"] - exact).max(-1)
    # Only where z_t is likely.
    assert error[weight > 0.05 * weight.max()].max() < 0.04


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_a_process_are_checked():
  with pytest.raises(TypeError, match="Process: table="):
    process_lib.Process(schedules.VPLinear(), (0.0,))
  with pytest.raises(TypeError, match="Process: weights"):
    process_lib.Process(TABLE, "no weights")
