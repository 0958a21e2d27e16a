"""MLD's own laws: what its loss is, what its draws and paths mean, what it keeps."""

import dataclasses
import functools
import json
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mld as mld_config
from mmdiff_jax import modalities as modalities_lib, multitime, solvers
from mmdiff_jax.data import missing, pairing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import autoencoding, base, mld
from mmdiff_jax.frameworks.mld import losses, sampling as sampling_lib
from mmdiff_jax.frameworks.mld.model import make_model, VARIANTS
from mmdiff_jax.training import checkpoints, trainer


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


def made(config, examples=None):
  """The framework with parameters that have not been trained but are not at their zeros."""
  framework = mld.build(config, MODALITIES)
  params, examples = {}, examples or data()
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
  codecs = {m.name: autoencoding.autoencoder(m, config) for m in MODALITIES}
  for name in "abc":
    z = examples[name]
    assert len(z) == 40
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-4)
    raw = autoencoding.encode({name: codecs[name]}, params, data())[name]
    stats = constants["statistics"][name]
    np.testing.assert_allclose(z * stats["std"] + stats["mean"], raw, atol=1e-5)


class Oracle:
  """A network that knows the answer to one modality and is wrong by 1 in the others."""

  def __init__(self, latents, knows, prediction):
    self.latents, self.knows, self.prediction = latents, knows, prediction

  def apply(self, params, x, t):
    del params
    schedule = make_model(tiny(), MODALITIES).schedule
    out = {}
    for name, z in self.latents.items():
      time = t[name][:, None]
      alpha, sigma = schedule.alpha(time), schedule.sigma(time)
      eps = (x[name] - alpha * z) / jnp.maximum(sigma, 1e-6)
      truth = eps if self.prediction == "eps" else alpha * eps - sigma * z
      out[name] = truth + (0.0 if name == self.knows else 1.0)
    return out


def score_loss(config, network, *rest):
  """The loss with another network, of any prediction: alpha(1) = 0 matters to samplers only."""
  prediction, config.score.prediction = config.score.prediction, "v"
  model = make_model(config, MODALITIES)
  config.score.prediction = prediction
  model = dataclasses.replace(model, network=network, prediction=prediction)
  return losses.score_loss(model, *rest)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_modalities_count_equally_whatever_their_size(prediction):
  config = tiny(score__prediction=prediction, score__given_prob=0.0, score__absent_prob=0.0)
  sizes = {"a": 40, "b": 2, "c": 7}
  latents = {n: jax.random.normal(jax.random.key(i), (64, d)) for i, (n, d) in
             enumerate(sizes.items())}  # fmt: skip
  for knows in sizes:
    network = Oracle(latents, knows, prediction)
    loss, metrics = score_loss(config, network, None, jax.random.key(5), latents)
    np.testing.assert_allclose(loss, 2 / 3, rtol=2e-3)
    for name in sizes:
      np.testing.assert_allclose(metrics[f"loss_{name}"], float(name != knows), atol=2e-3)


def test_given_and_absent_modalities_have_no_loss():
  config = tiny(score__given_prob=1.0, score__absent_prob=0.3)
  latents = {n: jax.random.normal(jax.random.key(i), (4000, 2)) for i, n in enumerate("abc")}
  draw = losses.draw_times(
    make_model(config, MODALITIES), jax.random.split(jax.random.key(5))[0], 4000, ["a", "b", "c"]
  )
  loss, _ = score_loss(config, Oracle(latents, "none", "v"), None, jax.random.key(5), latents)
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
  score_loss(config, Spy(), None, jax.random.key(0), latents)
  for name in "abc":
    absent = np.asarray(seen["t"][name] == 1)
    assert absent.sum() > 100
    assert np.abs(np.asarray(seen["x"][name])[absent]).max() < 6


def gaps(size, *, seed=0, prob=1 / 3):
  """A mask for each modality; every example has one at least."""
  masks = missing.drop({name: np.zeros(size) for name in "abc"}, tuple("abc"), prob, seed)
  return {name: jnp.asarray(masks[f"{name}_present"]) for name in "abc"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_what_is_not_there_does_not_enter_the_loss(variant, prediction):
  config = tiny(variant=variant, score__prediction=prediction)
  network = make_model(tiny(), MODALITIES).network
  masks = gaps(64)
  share = dict.fromkeys("abc", 0.5)
  latents = {n: jax.random.normal(jax.random.key(i), (64, 3)) for i, n in enumerate("abc")}
  params = network.init(jax.random.key(0), latents, {name: jnp.zeros(64) for name in "abc"})
  params = jax.tree.map(lambda p: p + 0.1, params)

  @jax.jit
  def both(latents):
    def loss(params, latents):
      return score_loss(config, network, params, jax.random.key(1), latents, masks, share)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, latents)

  expected = both(latents)
  for other in (0.0, 1e6, np.nan):
    filled = {n: jnp.where(masks[n][:, None], z, other) for n, z in latents.items()}
    found = both(filled)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  for name, slope in expected[1][1].items():
    assert (slope[~masks[name]] == 0).all()
    assert np.any(slope[masks[name]] != 0)


def test_rare_modalities_count_as_much_as_others():
  config = tiny(score__given_prob=0.0, score__absent_prob=0.0)
  latents = {n: jax.random.normal(jax.random.key(i), (64, 4)) for i, n in enumerate("abc")}
  i = jnp.arange(64)
  masks = {"a": i >= 0, "b": i % 2 == 0, "c": i % 8 == 0}
  share = {name: mask.mean() for name, mask in masks.items()}
  for knows in "abc":
    network = Oracle(latents, knows, "v")
    loss, metrics = score_loss(config, network, None, jax.random.key(5), latents, masks, share)
    np.testing.assert_allclose(loss, 2 / 3, rtol=2e-3)
    for name in "abc":
      np.testing.assert_allclose(metrics[f"loss_{name}"], float(name != knows), atol=2e-3)


def test_loss_of_batches_is_unbiased():
  """Over batches, it is the loss of the whole set, however many a batch has of what is rare."""
  config = tiny(score__given_prob=0.0)
  masks = gaps(4096, prob=0.7)
  share = {name: mask.mean() for name, mask in masks.items()}
  latents = {n: jnp.ones((4096, 1)) for n in "abc"}
  network = Oracle(latents, "none", "v")
  whole, _ = score_loss(config, network, None, jax.random.key(0), latents, masks, share)
  parts = []
  for k in range(0, 4096, 64):
    piece = [{name: x[k : k + 64] for name, x in of.items()} for of in (latents, masks)]
    network = Oracle(piece[0], "none", "v")
    parts.append(score_loss(config, network, None, jax.random.key(k), *piece, share)[0])
  np.testing.assert_allclose(np.mean(parts), whole, rtol=0.03)


def test_stages_learn_from_what_is_there_alone():
  config = tiny()
  framework, params = made(config)
  masks = {name: np.asarray(mask) for name, mask in gaps(40).items()}
  with_masks = {f"{name}_present": mask for name, mask in masks.items()}
  filled = data()
  for name in "ab":
    filled[name][~masks[name]] = np.nan
  for stage, name in zip(framework.stages, "abc", strict=False):
    _, examples = stage.prepare({}, {**filled, **with_masks})
    assert examples.keys() == {name}
    np.testing.assert_array_equal(examples[name][:], data()[name][masks[name]])

  constants, examples = framework.stages[-1].prepare(params, {**filled, **with_masks})
  codecs = {m.name: autoencoding.autoencoder(m, config) for m in MODALITIES}
  raw = autoencoding.encode(codecs, params, data())
  for name, mask in masks.items():
    assert len(examples[name]) == 40
    np.testing.assert_array_equal(examples[f"{name}_present"], mask)
    stats = constants["statistics"][name]
    assert stats["share"] == np.float32(mask.mean())
    np.testing.assert_allclose(stats["mean"], raw[name][mask].mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["std"], raw[name][mask].std(0), rtol=1e-4)
    expected = (raw[name] - stats["mean"]) / stats["std"]
    np.testing.assert_allclose(examples[name][mask], expected[mask], atol=1e-4)

  # The stage's loss weighs by these shares.
  batch = {name: jnp.asarray(x) for name, x in examples.items()}
  loss = framework.stages[-1].loss({"score": params["score"]}, constants, jax.random.key(0), batch)
  share = {name: mask.mean() for name, mask in masks.items()}
  latents = {name: batch[name] for name in "abc"}
  expected = score_loss(
    config,
    make_model(config, MODALITIES).network,
    params["score"],
    jax.random.key(0),
    latents,
    gaps(40),
    share,
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), loss, expected)


def test_a_modality_that_no_example_has_is_named():
  framework = mld.build(tiny(), MODALITIES)
  nothing = data() | {"b_present": np.zeros(40, bool)}
  with pytest.raises(UserError, match="has b"):
    framework.stages[1].prepare({}, nothing)


KINDS = (
  modalities_lib.Modality("image", "image", (4, 4, 1), modalities_lib.image_picture),
  modalities_lib.Modality("film", "video", (3, 4, 4, 1), modalities_lib.video_picture),
  modalities_lib.Modality("pen", "trajectory", (8, 2), modalities_lib.trajectory_picture),
  modalities_lib.Modality("parts", "mask", (4, 4), modalities_lib.mask_picture, num_classes=3),
  modalities_lib.Modality("label", "label", (), show, num_classes=4),
  modalities_lib.Modality("words", "text", (5,), show, num_classes=7),
)


@pytest.mark.slow
def test_all_kinds_train_and_are_generated_though_a_third_of_each_is_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # It takes seconds to load.
  config = tiny()
  names = config.modalities = tuple(m.name for m in KINDS)
  size = {"latent": 3, "width": 8, "depth": 1, "noise": 0.1, "penalty": 0.1}
  training = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3}
  config.autoencoder = {
    m.name: {**size, "likelihood": "categorical" if m.num_classes else "gaussian",
             "training": training} for m in KINDS
  }  # fmt: skip
  rng = np.random.default_rng(0)
  whole = {
    m.name: rng.integers(m.num_classes, size=(30, *m.shape)).astype(np.int32)
    if m.num_classes
    else rng.uniform(size=(30, *m.shape)).astype(np.float32)
    for m in KINDS
  }
  some = missing.drop(whole, names, 1 / 3, 0)
  for m in KINDS:
    some[m.name] = some[m.name].copy()
    some[m.name][~some[f"{m.name}_present"]] = -1 if m.num_classes else np.nan
  framework = mld.build(config, KINDS)
  params = trainer.train(framework, config, tmp_path, some, whole)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  run = jax.jit(framework.sample, static_argnums=(3, 4, 5))
  joint = run(params, jax.random.key(0), {}, names, 3, sampling())
  assert {name: x.shape[1:] for name, x in joint.items()} == {m.name: m.shape for m in KINDS}
  rows = framework.reconstruct(params, whole)
  assert {name: x.shape for name, x in rows.items()} == {n: x.shape for n, x in whole.items()}


def test_variants_draw_their_times():
  def times(variant):
    model = make_model(tiny(variant=variant), MODALITIES)
    draw = losses.draw_times(model, jax.random.key(0), 200, ["a", "b", "c"])
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

  values = [
    score_loss(
      tiny(score__importance=importance, score__schedule="vp_linear", score__t_min=0.01),
      Half(), None, jax.random.key(3), latents,
    )[0]
    for importance in (False, True)
  ]  # fmt: skip
  np.testing.assert_allclose(values[0], values[1], rtol=0.03)


def sampling(**changes):
  return base.SamplerConfig(**{"solver": solvers.dpmpp_2m, "steps": 4, **changes})


SDE = {"solver": solvers.ancestral}


def test_sample_gives_the_targets_and_only_them():
  framework, params = made(tiny())
  given = {"a": data()["a"][:5]}
  out = framework.sample(params, jax.random.key(0), given, ("c",), 5, sampling())
  assert {name: x.shape for name, x in out.items()} == {"c": (5, 3)}
  joint = framework.sample(params, jax.random.key(0), {}, ("a", "b", "c"), 5, sampling())
  assert {name: x.shape for name, x in joint.items()} == {
    "a": (5, 4, 4, 1), "b": (5, 2, 2, 1), "c": (5, 3)
  }  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_given_leads(variant):
  config = tiny(variant=variant)
  framework, params = made(config)
  settings = base.make_sampler_config(config)
  one, other = ({"a": data()["a"][i : i + 5]} for i in (0, 5))
  run = jax.jit(framework.sample, static_argnums=(3, 4, 5))
  key = jax.random.key(0)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    first = run(params, key, one, ("b",), 5, settings)["b"]
    second = run(params, key, other, ("b",), 5, settings)["b"]
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
    ((), ("a", "b"), {"variant": "inpaint", **SDE, "guidance": 2.0}, 4),
    # Ten walks down and nine moves back up.
    (("c",), ("a", "b"), {"variant": "inpaint", **SDE, "guidance": 2.0}, 49),
  ],
)
def test_evaluations_are_those_that_run(given, targets, changes, expected):
  config = tiny(variant=changes.get("variant", "masked"))
  framework, params = made(config)
  settings = sampling(**{name: value for name, value in changes.items() if name != "variant"})
  assert framework.evaluations(given, targets, settings) == expected
  calls = []

  class Counting:
    def apply(self, params, x, t):
      jax.debug.callback(lambda _: calls.append(1), t["a"])
      return x

  model = dataclasses.replace(make_model(config, MODALITIES), network=Counting())
  rows = {name: data()[name][:2] for name in given}
  out = sampling_lib.sample(model, params, jax.random.key(0), rows, targets, 2, settings)
  jax.block_until_ready(out)
  jax.effects_barrier()
  assert len(calls) == expected


UNTRAINED = {
  "given": r"given modalities .*given_prob above 0",
  "absent": r"absent modalities .*absent_prob above 0",
  "shared": r"one shared time.*the variant 'masked'",
  "apart": r"different times.*the variant 'unidiffuser'",
}
NONE = {"score__absent_prob": 0.0}


@pytest.fixture(scope="module")
def params():
  return made(tiny())[1]


def warned(config, params, given, targets, **fields):
  """Which states sampling warns of."""
  framework = mld.build(config, MODALITIES)
  rows = {name: data()[name][:5] for name in given}

  def sample(params):
    return framework.sample(params, jax.random.key(0), rows, tuple(targets), 5, sampling(**fields))

  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.eval_shape(sample, params)
  text = " ".join(str(warning.message) for warning in caught)
  return {state for state, words in UNTRAINED.items() if re.search(words, text)}


@pytest.mark.parametrize(
  ("changes", "given", "targets", "fields", "expected"),
  [
    (NONE, "a", "bc", {}, set()),
    (NONE, "", "abc", {}, set()),
    (NONE, "a", "b", {}, {"absent"}),
    (NONE, "", "abc", {"order": (("a",),)}, {"absent"}),
    (NONE, "a", "bc", {"guidance": 2.0}, {"absent"}),
    # Guidance is by what is given.
    (NONE, "", "abc", {"guidance": 2.0}, set()),
    ({}, "a", "b", {"guidance": 2.0}, set()),
    ({"score__given_prob": 0.0}, "a", "bc", {}, {"given"}),
    ({"score__given_prob": 0.0}, "", "abc", {"order": (("a",),)}, {"given"}),
    ({"variant": "inpaint"}, "a", "bc", {"guidance": 2.0, **SDE}, set()),
    ({"variant": "inpaint"}, "a", "b", SDE, {"absent"}),
    ({"variant": "unidiffuser"}, "a", "b", {"guidance": 2.0}, set()),
    ({"variant": "unidiffuser"}, "a", "bc", {}, {"shared"}),
  ],
)
def test_untrained_states_warn(params, changes, given, targets, fields, expected):
  assert warned(tiny(**changes), params, given, targets, **fields) == expected


def test_a_training_set_with_gaps_has_absent_modalities():
  _, params = made(tiny(), data() | {"a_present": np.arange(40) % 3 > 0})
  for variant in ("masked", "inpaint"):
    assert not warned(tiny(variant=variant, **NONE), params, "a", "b", **SDE)


def test_staggered_paths_need_independent_times():
  path = multitime.staggered(("a", "b", "c"), 1, 4)
  with pytest.warns(UserWarning, match=UNTRAINED["apart"]):
    sampling_lib.warn_untrained(make_model(tiny(), MODALITIES), path)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sampling_lib.warn_untrained(make_model(tiny(variant="unidiffuser"), MODALITIES), path)


def test_reconstruct_goes_through_the_latent():
  framework, params = made(tiny())
  out = framework.reconstruct(params, data())
  assert {name: x.shape for name, x in out.items()} == {name: x.shape for name, x in data().items()}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"variant": "none"}, "masked, inpaint, unidiffuser"),
    ({"score__schedule": "none"}, "it can be vp_linear, vp_cosine, sub_vp, rectified_flow"),
    (
      {"score__prediction": "eps"},
      "score.prediction is 'eps'.*score.schedule 'vp_cosine'.*prediction=v, or .*vp_linear",
    ),
    ({"score__prediction": "score"}, "score.prediction .*eps, v, x0, velocity"),
    (
      {"score__prediction": "velocity", "score__schedule": "vp_linear"},
      "'velocity' and config.score.schedule 'vp_linear'.*vp_cosine or rectified_flow",
    ),
    ({"score__network__kind": "none"}, "'towers' or 'published'"),
    ({"score__training__stepz": 3}, "score.training.stepz is not a field.*score.training.steps"),
    ({"score__training": {"steps": 3, "batch_size": 8}}, "score.training.learning_rate is missing"),
    ({"sampling__solver": "none"}, "dpmpp_2m"),
    (
      {"variant": "inpaint", "sampling__solver": "heun"},
      "'inpaint' and config.sampling.repeats 10, .* solver of the SDE.*solver=sde_dpmpp_2m",
    ),
    ({"variant": "inpaint", "sampling__steps": 6}, "steps is 6.*multiple of .*jump, 4"),
    ({"sampling__repeats": 0}, "config.sampling.repeats is 0"),
    (
      {"sampling__grid_power": 14.0, "sampling__steps": 1000},
      "grid_power is 14 and config.sampling.steps 1000.*below 1e-30",
    ),
    (
      {"variant": "unidiffuser", "score__importance": True},
      "importance is True and config.variant 'unidiffuser'",
    ),
    ({"score__importance": True, "score__t_min": 0}, "t_min 0, where the weights are infinite"),
    ({"autoencoder__a__likelihood": "categorical"}, "gaussian or laplace or bernoulli"),
    ({"autoencoder__c__likelihood": "gaussian"}, "kind text it can be categorical"),
  ],
)
def test_unknown_choices_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    mld.build(tiny(**changes), MODALITIES)


def test_inpaint_resamples_by_default():
  config = tiny(variant="inpaint")
  assert base.make_sampler_config(config).solver is solvers.sde_dpmpp_2m
  # A run from before it did has neither field.
  del config.sampling.jump, config.sampling.repeats
  config.sampling.solver = "dpmpp_2m"
  framework, params = made(config)
  assert framework.evaluations(("a",), ("b",), sampling()) == 4
  given = {"a": data()["a"][:2]}
  out = framework.sample(params, jax.random.key(0), given, ("b", "c"), 2, sampling())
  assert np.isfinite(out["b"]).all()


def test_vectors_are_not_bounded_and_have_no_bernoulli_likelihood():
  a = next(modality for modality in MODALITIES if modality.name == "a")
  assert autoencoding.autoencoder(a, tiny()).bounded
  vector = modalities_lib.Modality("a", "vector", (16,), show)
  assert not autoencoding.autoencoder(vector, tiny(autoencoder__a__likelihood="gaussian")).bounded
  with pytest.raises(UserError, match="kind vector it can be gaussian or laplace\\."):
    autoencoding.autoencoder(vector, tiny())


def test_a_modality_without_sizes_is_named():
  label = modalities_lib.Modality("label", "label", (), show, num_classes=10)
  with pytest.raises(UserError, match="'label'"):
    mld.build(tiny(), (*MODALITIES, label))


def with_brought():
  """Two autoencoders are theirs, one of which has no parameters."""
  config = tiny(
    autoencoder__b__pretrained="tests.networks.theirs:pixels",
    autoencoder__b__latent=4,
    autoencoder__c__pretrained="tests.networks.theirs:rotation",
    autoencoder__c__latent=15,
  )
  config.modalities = ("b", "c")
  return config, mld.build(config, MODALITIES[1:])


def check_theirs(config, framework, params):
  theirs = autoencoding.autoencoder(MODALITIES[2], config).entry
  assert params["autoencoder_b"] == {} and len(theirs) == 3
  jax.tree.map(np.testing.assert_array_equal, params["autoencoder_c"], theirs)
  found = framework.reconstruct(params, data())
  for name in config.modalities:
    np.testing.assert_allclose(found[name], data()[name], atol=1e-6)


def test_stages_of_brought_autoencoders_keep_them(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # It takes seconds to load.
  config, framework = with_brought()
  assert [stage.trainable for stage in framework.stages] == [(), (), ("score",)]
  stages = ("autoencoder_b", "autoencoder_c")
  trainer.train(framework, config, tmp_path, data(), data(), stages)
  again = trainer.train(framework, config, tmp_path, data(), data(), stages)
  check_theirs(config, framework, again)
  # What the one step tells is how wrong a reconstruction is: not at all.
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  losses = {row["stage"]: row["loss"] for row in map(json.loads, lines)}
  assert losses == dict.fromkeys(stages, 0.0)


@pytest.mark.slow
def test_brought_autoencoders_are_trained_upon_and_stay_as_they_are(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  config, framework = with_brought()
  trainer.train(framework, config, tmp_path, data(), data())
  params = checkpoints.load_params(framework, tmp_path)
  check_theirs(config, framework, params)
  out = framework.sample(params, jax.random.key(0), {"b": data()["b"][:3]}, ("c",), 3, sampling())
  assert out["c"].shape == (3, 3) and out["c"].dtype == np.int32


@pytest.mark.parametrize(("name", "latent"), [("b", 4), ("c", 15)])
def test_what_a_brought_autoencoder_gets_wrong_is_told(name, latent):
  changes = {"pretrained": "tests.networks.theirs:rotation", "latent": latent}
  config = tiny(**{f"autoencoder__{name}__{key}": value for key, value in changes.items()})
  stage = mld.build(config, MODALITIES).stages["abc".index(name)]
  constants, examples = stage.prepare({}, data())
  constants[f"autoencoder_{name}"]["2"] *= 0  # Whatever is decoded is 0.
  loss, metrics = stage.loss({}, constants, jax.random.key(0), examples)
  x = data()[name]
  np.testing.assert_allclose(loss, np.mean(x != 0 if name == "c" else x**2), rtol=1e-5)
  assert metrics == {f"loss_{name}": loss}
