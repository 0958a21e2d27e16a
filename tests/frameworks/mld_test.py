"""MLD's own laws: what its loss is, what its draws and paths mean, what it keeps."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mld as mld_config
from mmdiff_jax import modalities as modalities_lib, solvers
from mmdiff_jax.data import pairing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base, mld


def show(x):
  return str(x)


MODALITIES = (
  modalities_lib.Modality("a", "image", (4, 4, 1), show),
  modalities_lib.Modality("b", "image", (2, 2, 1), show),
  modalities_lib.Modality("c", "text", (3,), show, num_classes=5),
)


def tiny(**changes):
  config = mld_config.get_config("digits")
  config.modalities = ("a", "b", "c")
  small = {"latent": 3, "width": 8, "depth": 1, "noise": 0.1, "penalty": 0.1}
  training = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3}
  config.unlock()
  config.autoencoder = {
    name: {**small, "likelihood": likelihood, "latent": size, "training": training}
    for name, likelihood, size in (
      ("a", "bernoulli", 4),
      ("b", "gaussian", 2),
      ("c", "categorical", 3),
    )
  }
  config.score.network = {
    "kind": "towers",
    "width": 16,
    "depth": 1,
    "tower_width": 8,
    "tower_depth": 1,
  }
  config.score.training = training
  config.sampling.order = ()
  config.sampling.steps = 4
  config.sampling.guidance = 1.0
  for name, value in changes.items():
    *parents, leaf = name.split("__")
    functools.reduce(getattr, parents, config)[leaf] = value
  return config


def data(size=40):
  rng = np.random.default_rng(0)
  return {
    "a": rng.uniform(size=(size, 4, 4, 1)).astype(np.float32),
    "b": rng.uniform(size=(size, 2, 2, 1)).astype(np.float32),
    "c": rng.integers(0, 5, (size, 3)).astype(np.int32),
  }


def made(config):
  """The framework with parameters that have not been trained but are not at their zeros."""
  framework = mld.build(config, MODALITIES)
  params, examples = {}, data()
  for i, stage in enumerate(framework.stages):
    constants, rows = stage.prepare(params, examples)
    batch = {name: jnp.asarray(x[:8]) for name, x in rows.items()}
    params |= constants
    params |= stage.init(jax.random.key(i), params, batch)
  noise = jax.random.normal
  params["score"] = jax.tree.map(
    lambda p: p + 0.1 * noise(jax.random.key(9), p.shape), params["score"]
  )
  return framework, params


def test_autoencoder_trains_on_columns_as_they_are():
  """A data set of pairs may be too large to be made at once."""
  a = pairing.Column(np.arange(9), lambda index: np.zeros((len(index), 4, 4, 1), np.float32))
  _, examples = mld.build(tiny(), MODALITIES).stages[0].prepare({}, {"a": a})
  assert examples["a"] is a


def test_stages_name_what_they_train():
  framework, params = made(tiny())
  assert [stage.name for stage in framework.stages] == [
    "autoencoder_a", "autoencoder_b", "autoencoder_c", "score"
  ]  # fmt: skip
  named = {entry for stage in framework.stages for entry in stage.trainable}
  assert named | {"statistics"} == set(params)


def test_latents_are_encoded_once_and_standardised_over_the_whole_set():
  config = tiny()
  framework, params = made(config)
  constants, examples = framework.stages[-1].prepare(params, data())
  codecs = {m.name: mld.autoencoder(m, config) for m in MODALITIES}
  for name in "abc":
    z = examples[name]
    assert len(z) == 40
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-4)
    raw = mld.encode({name: codecs[name]}, params, data())[name]
    stats = constants["statistics"][name]
    np.testing.assert_allclose(z * stats["std"] + stats["mean"], raw, atol=1e-5)


class Oracle:
  """A network that knows the answer to one modality and is wrong by 1 in the others."""

  def __init__(self, latents, knows, prediction):
    self.latents, self.knows, self.prediction = latents, knows, prediction

  def apply(self, params, x, t):
    del params
    schedule = mld.schedule_of(tiny())
    out = {}
    for name, z in self.latents.items():
      time = t[name][:, None]
      alpha, sigma = schedule.alpha(time), schedule.sigma(time)
      eps = (x[name] - alpha * z) / jnp.maximum(sigma, 1e-6)
      truth = eps if self.prediction == "eps" else alpha * eps - sigma * z
      out[name] = truth + (0.0 if name == self.knows else 1.0)
    return out


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_modalities_count_equally_whatever_their_size(prediction):
  config = tiny(score__prediction=prediction, score__given_prob=0.0, score__absent_prob=0.0)
  sizes = {"a": 40, "b": 2, "c": 7}
  latents = {n: jax.random.normal(jax.random.key(i), (64, d)) for i, (n, d) in
             enumerate(sizes.items())}  # fmt: skip
  for knows in sizes:
    network = Oracle(latents, knows, prediction)
    loss, metrics = mld.score_loss(config, network, None, jax.random.key(5), latents)
    np.testing.assert_allclose(loss, 2 / 3, rtol=2e-3)
    for name in sizes:
      np.testing.assert_allclose(metrics[f"loss_{name}"], float(name != knows), atol=2e-3)


def test_given_and_absent_modalities_have_no_loss():
  config = tiny(score__given_prob=1.0, score__absent_prob=0.3)
  latents = {n: jax.random.normal(jax.random.key(i), (4000, 2)) for i, n in enumerate("abc")}
  draw = mld.draw_times(config, jax.random.split(jax.random.key(5))[0], 4000, ["a", "b", "c"])
  loss, _ = mld.score_loss(config, Oracle(latents, "none", "v"), None, jax.random.key(5), latents)
  shares = [np.mean(draw.diffused[name]) for name in "abc"]
  # An error of exactly 1 wherever a modality is diffused.
  np.testing.assert_allclose(loss, np.mean(shares), rtol=2e-3)
  assert 0.3 < np.mean(shares) < 0.6


def test_absent_input_tells_nothing_of_the_data():
  config = tiny(score__schedule="vp_linear", score__absent_prob=0.9, score__given_prob=0.0)
  seen = {}

  class Spy:
    def apply(self, params, x, t):
      seen.update(x=x, t=t)
      return x

  latents = {n: jnp.full((500, 2), 1000.0) for n in "abc"}
  mld.score_loss(config, Spy(), None, jax.random.key(0), latents)
  for name in "abc":
    absent = np.asarray(seen["t"][name] == 1)
    assert absent.sum() > 100
    assert np.abs(np.asarray(seen["x"][name])[absent]).max() < 6


def test_variants_draw_their_times():
  def times(variant):
    draw = mld.draw_times(tiny(variant=variant), jax.random.key(0), 200, ["a", "b", "c"])
    return np.stack([draw.t[name] for name in "abc"])

  masked, inpaint, unidiffuser = (times(v) for v in ("masked", "inpaint", "unidiffuser"))
  assert (masked == 0).any()
  assert (masked == 1).any()
  assert (inpaint[0] == inpaint[1]).all()
  assert ((inpaint > 0) & (inpaint <= 1)).all()
  assert (unidiffuser[0] != unidiffuser[1]).all()


def test_importance_times_leave_the_expected_loss():
  latents = {n: jax.random.normal(jax.random.key(i), (200_000, 1)) for i, n in enumerate("abc")}

  class Half:
    def apply(self, params, x, t):
      return {name: 0.5 * value for name, value in x.items()}

  losses = [
    mld.score_loss(
      tiny(score__importance=importance, score__schedule="vp_linear", score__t_min=0.01),
      Half(), None, jax.random.key(3), latents,
    )[0]
    for importance in (False, True)
  ]  # fmt: skip
  np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)


def sampling(**changes):
  return base.Sampling(**{"solver": solvers.dpmpp_2m, "steps": 4, **changes})


def test_sample_gives_the_targets_and_only_them():
  framework, params = made(tiny())
  given = {"a": data()["a"][:5]}
  out = framework.sample(params, jax.random.key(0), given, ("c",), 5, sampling())
  assert {name: x.shape for name, x in out.items()} == {"c": (5, 3)}
  joint = framework.sample(params, jax.random.key(0), {}, ("a", "b", "c"), 5, sampling())
  assert {name: x.shape for name, x in joint.items()} == {
    "a": (5, 4, 4, 1), "b": (5, 2, 2, 1), "c": (5, 3)
  }  # fmt: skip


@pytest.mark.parametrize("variant", mld.VARIANTS)
def test_what_is_given_leads(variant):
  framework, params = made(tiny(variant=variant))
  one, other = ({"a": data()["a"][i : i + 5]} for i in (0, 5))
  run = jax.jit(framework.sample, static_argnums=(3, 4, 5))
  key = jax.random.key(0)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    first = run(params, key, one, ("b",), 5, sampling())["b"]
    second = run(params, key, other, ("b",), 5, sampling())["b"]
  assert np.abs(first - second).max() > 1e-5


def test_guidance_of_one_is_none_and_two_is_more():
  framework, params = made(tiny())
  given = {"a": data()["a"][:5]}

  def run(strength):
    settings = sampling(guidance=strength)
    return framework.sample(params, jax.random.key(0), given, ("b",), 5, settings)["b"]

  assert np.abs(run(1.0) - run(2.0)).max() > 1e-5
  np.testing.assert_allclose(run(1.0), run(1.0 + 1e-6), atol=1e-4)


def test_absent_modalities_need_not_be_fed_and_change_nothing_else():
  framework, params = made(tiny())
  key = jax.random.key(0)
  alone = framework.sample(params, key, {}, ("b",), 5, sampling())
  assert set(alone) == {"b"}


def test_order_generates_group_after_group():
  framework, params = made(tiny())
  key = jax.random.key(0)
  ordered = framework.sample(params, key, {}, ("a", "b", "c"), 5, sampling(order=(("b",),)))
  alone = framework.sample(params, key, {}, ("b",), 5, sampling())
  # The first group sees the others absent, so it is what it would be alone.
  np.testing.assert_allclose(ordered["b"], alone["b"], atol=1e-5)
  together = framework.sample(params, key, {}, ("a", "b", "c"), 5, sampling())
  assert np.abs(ordered["a"] - together["a"]).max() > 1e-5


@pytest.mark.parametrize(
  ("given", "targets", "changes", "expected"),
  [
    ((), ("a", "b"), {}, 4),
    (("c",), ("a", "b"), {}, 4),
    (("c",), ("a", "b"), {"guidance": 2.0}, 8),
    ((), ("a", "b"), {"guidance": 2.0}, 4),
    ((), ("a", "b", "c"), {"order": (("b",), ("a",))}, 12),
    ((), ("a", "b", "c"), {"order": (("b",), ("a", "c"))}, 8),
    ((), ("a", "b", "c"), {"order": (("b",),), "guidance": 2.0}, 16),
    ((), ("a", "b"), {"solver": solvers.heun}, 7),
  ],
)
def test_evaluations_are_those_that_run(given, targets, changes, expected):
  framework, params = made(tiny())
  settings = sampling(**changes)
  assert framework.evaluations(given, targets, settings) == expected
  calls = []

  class Counting:
    def apply(self, params, x, t):
      jax.debug.callback(lambda _: calls.append(1), t["a"])
      return x

  original = mld.score_network
  mld.score_network = lambda config: Counting()
  try:
    rows = {name: data()[name][:2] for name in given}
    out = framework.sample(params, jax.random.key(0), rows, targets, 2, settings)
    jax.block_until_ready(out)
    jax.effects_barrier()
  finally:
    mld.score_network = original
  assert len(calls) == expected


def test_untrained_states_warn():
  framework, params = made(tiny(score__absent_prob=0.0))
  key, given = jax.random.key(0), {"a": data()["a"][:5]}
  with pytest.warns(UserWarning, match="absent_prob above 0"):
    framework.sample(params, key, given, ("b",), 5, sampling())
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    framework.sample(params, key, given, ("b", "c"), 5, sampling())


def test_reconstruct_goes_through_the_latent():
  framework, params = made(tiny())
  out = framework.reconstruct(params, data())
  assert {name: x.shape for name, x in out.items()} == {name: x.shape for name, x in data().items()}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"variant": "none"}, "masked, inpaint, unidiffuser"),
    ({"score__schedule": "none"}, "vp_linear or vp_cosine"),
    ({"score__network__kind": "none"}, "'towers' or 'published'"),
    ({"sampling__solver": "none"}, "dpmpp_2m"),
    ({"autoencoder__a__likelihood": "categorical"}, "gaussian or laplace or bernoulli"),
    ({"autoencoder__c__likelihood": "gaussian"}, "kind text it can be categorical"),
  ],
)
def test_unknown_choices_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    mld.build(tiny(**changes), MODALITIES)


def test_a_modality_without_sizes_is_named():
  label = modalities_lib.Modality("label", "label", (), show, num_classes=10)
  with pytest.raises(UserError, match="'label'"):
    mld.build(tiny(), (*MODALITIES, label))
