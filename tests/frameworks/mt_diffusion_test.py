"""MT-Diffusion: its parts, tasks and ways to sample. Its laws are in tests/laws."""

import dataclasses
import functools
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mt_diffusion as config_lib
from mmdiff_jax import modalities as modalities_lib, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base, mt_diffusion
from mmdiff_jax.frameworks.mt_diffusion import (
  bound as bound_lib,
  heads,
  losses,
  model as model_lib,
  process as process_lib,
)
from mmdiff_jax.frameworks.mt_diffusion.model import AGGREGATIONS, make_model, MODES


def show(x):
  return str(x)


SHAPE = (4, 6, 2)
DIGIT = modalities_lib.Modality("digit", "image", SHAPE, show)
LABEL = modalities_lib.Modality("label", "label", (), show, num_classes=3)
OTHERS = (
  modalities_lib.Modality("other", "image", SHAPE, show),
  modalities_lib.Modality("grey", "image", (4, 6, 1), show),
  modalities_lib.Modality("mask", "mask", (4, 6), show, num_classes=5),
  modalities_lib.Modality("vector", "trajectory", (7,), show),
)
ENCODERS = {"other": "identity", "grey": "embedding", "mask": "embedding", "vector": "frozen"}
ROWS = 6
KEY = jax.random.key(0)


class Tiny(nn.Module):
  """Stands in for the U-Net, pixel by pixel."""

  patch: int = 1

  @nn.compact
  def __call__(self, z, t, train, condition):
    told = [jnp.reshape(t, (-1, 1, 1, 1))]
    told += [] if condition is None else [condition[:, None, None]]
    h = [jnp.broadcast_to(x, (*z.shape[:3], x.shape[-1])) for x in told]
    h = jnp.tanh(nn.Dense(8)(jnp.concatenate([z, *h], axis=-1)))
    return h, jnp.tanh(nn.Dense(4)(h.mean(axis=(1, 2), keepdims=True)))


_backbone = model_lib._backbone


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
  monkeypatch.setattr(model_lib, "_backbone", lambda config: Tiny())


def tiny(**changes):
  config = config_lib.get_config("label_digits")
  config.process.update({"betas": "cosine", "num": 20})
  config.sampling.steps = 3
  config.parts.label.omega = 0.5
  config.training.update({"steps": 2, "batch_size": ROWS})
  config.unlock()
  for name, value in changes.items():
    *parents, leaf = name.split("__")
    functools.reduce(getattr, parents, config)[leaf] = value
  return config


def data(modalities=(DIGIT, LABEL), rows=ROWS):
  rng = np.random.default_rng(0)
  return {
    m.name: rng.integers(0, m.num_classes, (rows, *m.shape)).astype(np.int32)
    if m.num_classes
    else rng.uniform(size=(rows, *m.shape)).astype(np.float32)
    for m in modalities
  }


def made(config, modalities=(DIGIT, LABEL)):
  """The model, the framework, and parameters that are not at their zeros."""
  framework = mt_diffusion.build(config, modalities)
  batch = {name: jnp.asarray(x) for name, x in data(modalities).items()}
  params = jax.jit(framework.stages[0].init)(jax.random.key(0), {}, batch)
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  leaves = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  return make_model(config, modalities), framework, jax.tree.unflatten(tree, leaves)


def loss_of(model, params, batch):
  return jax.jit(functools.partial(losses.loss, model))(params, KEY, batch)


def jitted(framework):
  return jax.jit(framework.sample, static_argnums=(3, 4, 5))


def sampling(**changes):
  return base.SamplerConfig(**{"solver": solvers.ancestral, "steps": 3, **changes})


# --- training


def test_stage_trains_the_network_on_the_data_as_they_are():
  _, framework, params = made(tiny())
  (stage,) = framework.stages
  constants, examples = stage.prepare({}, data() | {"unused": np.zeros(3)})
  assert constants == {}
  assert set(examples) == {"digit", "label"}
  assert set(params) == set(stage.trainable) == {"network"}


def test_loss_is_the_weighted_sum_of_its_terms():
  model, _, params = made(tiny(parts__label__weight=0.25, parts__digit__weight=2.0))
  loss, terms = loss_of(model, params, data())
  total = terms["loss_eps"] + 2.0 * terms["loss_digit"] + 0.25 * terms["loss_label"]
  np.testing.assert_allclose(loss, total, rtol=1e-6)


def test_what_the_heads_are_shown_has_no_loss(monkeypatch):
  model, _, params = made(tiny())
  monkeypatch.setattr(
    losses, "draw_given", lambda key, names, rows, prob: {n: jnp.ones(rows) for n in names}
  )
  _, terms = loss_of(model, params, data())
  assert terms["loss_digit"] == terms["loss_label"] == 0
  assert terms["loss_eps"] > 0


def test_some_modalities_are_known_but_never_all():
  names, rows = ("a", "b", "c"), 30_000
  flags = np.stack(list(losses.draw_given(KEY, names, rows, 0.6).values()))
  law = {(0, 0, 0): 0.4}
  law |= {known: 0.1 for known in itertools.product((0, 1), repeat=3) if 0 < sum(known) < 3}
  for known in itertools.product((0, 1), repeat=3):
    share = np.mean(np.all(known == flags.T, axis=1))
    assert share == pytest.approx(law.get(known, 0), abs=0.01)


def encoder_slope(**changes):
  model, _, params = made(tiny(**changes))
  grads = jax.grad(lambda p: loss_of(model, p, data())[0])(params)
  return float(jnp.abs(grads["network"]["params"]["encoder_label"]).max())


@pytest.mark.parametrize(
  ("changes", "learns"),
  [
    ({}, True),
    ({"process__aggregation": "steps"}, True),
    ({"stop_gradient": True}, False),
    ({"parts__label__encoder": "frozen"}, False),
  ],
)
def test_encoders_learn_through_z_unless_stopped_or_frozen(changes, learns):
  uninformed = {"network__informed": False, "sampling__mode": "replacement"}
  assert (encoder_slope(**uninformed, **changes) > 1e-6) == learns


def test_all_kinds_of_modality_have_encoders_and_heads():
  config = tiny()
  for name, encoder in ENCODERS.items():
    config.parts[name] = {"encoder": encoder, "omega": 0.1, "weight": 1.0}
  modalities = (DIGIT, LABEL, *OTHERS)
  model, framework, params = made(config, modalities)
  _, terms = loss_of(model, params, data(modalities))
  assert set(terms) == {"loss_eps", *(f"loss_{m.name}" for m in modalities)}
  assert np.isfinite(list(terms.values())).all()
  names = tuple(m.name for m in modalities)
  out = jitted(framework)(params, KEY, {}, names, ROWS, sampling())
  for m in modalities:
    assert out[m.name].shape == (ROWS, *m.shape)
    assert out[m.name].dtype == data(modalities)[m.name].dtype
  values = heads.values_of(model, data(modalities))
  encoded = model.network.apply(params["network"], values, method="encode")
  for m in modalities:
    assert encoded[m.name].shape == (ROWS, *SHAPE)


def test_embeddings_keep_their_size():
  model, _, params = made(tiny())
  params = jax.tree.map(lambda x: 100 * x, params)
  values = {"label": jnp.eye(3)}
  encoded = model.network.apply(params["network"], values, method="encode")["label"]
  np.testing.assert_allclose(jnp.mean(encoded**2), 1, rtol=1e-5)


def test_encoders_are_affine():
  """So that the encoded mean is the mean of what is encoded, as rebuilding z_0 wants it."""
  model, _, params = made(tiny())
  encode = functools.partial(model.network.apply, params["network"], method="encode")
  share = jnp.array([[0.2, 0.5, 0.3]])
  each = encode({"label": jnp.eye(3)})["label"]
  np.testing.assert_allclose(
    encode({"label": share})["label"][0], jnp.tensordot(share[0], each, 1), atol=1e-5
  )


# --- tasks


def alone(**changes):
  return tiny(modalities=("digit",), heads=False, **changes)


def test_without_heads_the_noise_is_all():
  model, framework, params = made(alone(), (DIGIT,))
  _, terms = loss_of(model, params, data())
  assert set(terms) == {"loss_eps"}
  assert not [name for name in params["network"]["params"] if "label" in name or "part" in name]
  out = jitted(framework)(params, KEY, {}, ("digit",), ROWS, sampling())
  assert out["digit"].shape == (ROWS, *SHAPE)


def deaf(params):
  """Without the weights of the flag; rows of the kernel: z, the value shown, the flag, the time."""
  params = jax.tree.map(jnp.copy, params)
  first = params["network"]["params"]["backbone"]["Dense_0"]
  first["kernel"] = first["kernel"].at[2 * SHAPE[-1]].set(0.0)
  return params


def test_augmenting_puts_another_modality_in_the_main_one_s_place():
  config = alone(augment__modality="masked", augment__share=1.0)
  model, framework, params = made(config, (DIGIT,))
  params = deaf(params)
  one, other = data()["digit"], np.zeros((ROWS, *SHAPE), np.float32)
  _, examples = framework.stages[0].prepare({}, {"digit": one, "masked": other, "more": one})
  assert set(examples) == {"digit", "masked"}
  half, always, never = (
    loss_of(dataclasses.replace(model, augment_prob=prob), params, examples)[0]
    for prob in (0.5, 1.0, 0.0)
  )
  exchanged = {"digit": other, "masked": one}
  swapped = loss_of(dataclasses.replace(model, augment_prob=0.0), params, exchanged)[0]
  np.testing.assert_array_equal(always, swapped)
  assert len({float(x) for x in (half, always, never)}) == 3


def test_network_is_told_which_images_are_augmented():
  """So that those it generates are none of them."""
  config = alone(augment__modality="masked", augment__share=1.0)
  model, framework, params = made(config, (DIGIT,))
  same = data() | {"masked": data()["digit"]}
  told, untold = (loss_of(model, p, same)[0] for p in (params, deaf(params)))
  assert abs(told - untold) > 1e-4
  never = dataclasses.replace(model, augment_prob=0.0)
  np.testing.assert_array_equal(loss_of(never, params, same)[0], untold)
  one, other = (
    jitted(framework)(p, KEY, {}, ("digit",), ROWS, sampling())["digit"]
    for p in (params, deaf(params))
  )
  np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("other", [{}, {"masked": np.zeros((ROWS, 2, 2, 2), np.float32)}])
def test_augmenting_by_what_is_not_there_is_refused(other):
  _, framework, _ = made(alone(augment__modality="masked"), (DIGIT,))
  with pytest.raises(UserError, match="augment.modality is 'masked'"):
    framework.stages[0].prepare({}, data() | other)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_shared_space_leaves_the_main_modality_alone_in_it(aggregation):
  model, _, _ = made(tiny(parts__label__omega=0.0, process__aggregation=aggregation))
  digit, label = jnp.ones((2, *SHAPE)), 5 * jnp.ones((2, *SHAPE))
  z0, total = heads.aggregate(model, {"digit": digit, "label": label})
  np.testing.assert_array_equal(z0, digit)
  np.testing.assert_array_equal(total, 0 * digit)


def test_aggregates():
  digit, label = jnp.ones((2, *SHAPE)), 5 * jnp.ones((2, *SHAPE))
  found = {
    aggregation: heads.aggregate(
      made(tiny(process__aggregation=aggregation))[0], {"digit": digit, "label": label}
    )
    for aggregation in AGGREGATIONS
  }
  np.testing.assert_allclose(found["start"][0], 3.5 * digit)
  np.testing.assert_array_equal(found["start"][1], 0 * digit)
  np.testing.assert_allclose(found["steps"][0], digit)
  np.testing.assert_allclose(found["steps"][1], 2.5 * digit)


# --- generation


@pytest.mark.parametrize(("mode", "aggregation"), list(zip(MODES, AGGREGATIONS, strict=True)))
def test_any_subset_from_any_other(mode, aggregation):
  _, framework, params = made(tiny(process__aggregation=aggregation, sampling__mode=mode))
  run = jitted(framework)
  for given, targets in (((), ("digit", "label")), (("digit",), ("label",))):
    rows = {name: data()[name] for name in given}
    out = run(params, KEY, rows, targets, ROWS, sampling())
    assert set(out) == set(targets)
    assert all(np.isfinite(x).all() for x in out.values())
  one, other = (
    run(params, KEY, {"label": np.full(ROWS, y, np.int32)}, ("digit",), ROWS, sampling())["digit"]
    for y in (0, 1)
  )
  assert np.abs(one - other).max() > 1e-4
  assert one.min() >= 0
  assert one.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "aggregation"), [("replacement", "steps"), ("informed", "start")])
def test_any_subset_of_three(mode, aggregation):
  config = tiny(process__aggregation=aggregation, sampling__mode=mode)
  config.parts["mask"] = {"encoder": "embedding", "omega": 0.3, "weight": 1.0}
  modalities = (DIGIT, LABEL, OTHERS[2])
  config.modalities = names = tuple(m.name for m in modalities)
  _, framework, params = made(config, modalities)
  rows = data(modalities)
  with jax.disable_jit():
    for given in (given for n in (1, 2) for given in itertools.combinations(names, n)):
      for target in set(names) - set(given):
        known = {name: rows[name] for name in given}
        run = functools.partial(framework.sample, params, KEY)
        alone = run(known, (target,), ROWS, sampling(steps=2))
        all_others = tuple(name for name in names if name not in given)
        along = run(dict(reversed(known.items())), all_others, ROWS, sampling(steps=2))
        # What else is a target, and the order of what is given, are nothing to it.
        np.testing.assert_array_equal(alone[target], along[target])
        assert alone[target].shape == rows[target].shape


def test_a_label_to_be_predicted_is_not_in_the_aggregate():
  """z_0 has the given image and the head's probabilities, no more."""
  model, _, params = made(tiny())
  z, t = jax.random.normal(KEY, (ROWS, *SHAPE)), jnp.float32(0.5)
  digit = 2 * jnp.asarray(data()["digit"]) - 1
  shown = {"digit": (jnp.ones(ROWS), digit)}
  _, predicted = model.network.apply(params["network"], z, t, shown)
  share = {"label": jax.nn.softmax(predicted["label"])}
  label = model.network.apply(params["network"], share, method="encode")["label"]
  z0, _ = heads.estimate(model, params, z, t, {"digit": digit}, informed=True)
  np.testing.assert_allclose(z0, digit + 0.5 * label, atol=1e-5)


def test_with_nothing_known_the_noise_says_where_z_began_once_there_is_little():
  model, _, params = made(tiny())
  z = jax.random.normal(KEY, (ROWS, *SHAPE))
  for time, little in ((0.25, True), (0.75, False)):
    t = jnp.float32(time)
    eps, values = heads.read(model, params, z, t, {}, informed=True)
    encoded = model.network.apply(params["network"], values, method="encode")
    rebuilt, _ = heads.aggregate(model, encoded)
    start = model.process.start(z, eps, jnp.zeros_like(z), t)
    z0, _ = heads.estimate(model, params, z, t, {}, informed=True)
    np.testing.assert_array_equal(z0, start if little else rebuilt)
    assert np.abs(start - rebuilt).max() > 1e-2


def test_heads_see_what_is_known_in_the_informed_mode_only():
  model, _, params = made(tiny())
  z, t = jax.random.normal(KEY, (ROWS, *SHAPE)), jnp.float32(0.5)

  def label(known, informed):
    _, values = heads.read(model, params, z, t, known, informed=informed)
    return values["label"]

  known = {"digit": 2 * jnp.asarray(data()["digit"]) - 1}
  np.testing.assert_array_equal(label(known, False), label({}, False))
  assert np.abs(label(known, True) - label({}, False)).max() > 1e-4


def test_flag_of_0_hides_the_value():
  model, _, params = made(tiny())
  z, t = jax.random.normal(KEY, (ROWS, *SHAPE)), jnp.full(ROWS, 0.5)
  digit = 2 * jnp.asarray(data()["digit"]) - 1
  apply = functools.partial(model.network.apply, params["network"], z, t)
  none = apply({})[0]
  label = jax.nn.one_hot(data()["label"], 3)
  for name, value in (("digit", digit), ("label", label)):
    hidden = apply({name: (jnp.zeros(ROWS), value)})[0]
    np.testing.assert_allclose(hidden, none, atol=1e-6)
    # Flags are each row's own.
    first = apply({name: (jnp.eye(ROWS)[0], value)})[0]
    np.testing.assert_allclose(first[1:], none[1:], atol=1e-6)
    assert np.abs(first[0] - none[0]).max() > 1e-4


@pytest.mark.parametrize(
  ("solver", "guidance"),
  [(solvers.ancestral, 1.0), (solvers.heun, 1.0), (solvers.ancestral, 2.0)],
)
def test_evaluations_are_those_that_run(solver, guidance, monkeypatch):
  _, _, params = made(tiny())
  calls = []

  class Counting(Tiny):
    @nn.compact
    def __call__(self, *inputs):
      jax.debug.callback(lambda: calls.append(1))
      return super().__call__(*inputs)

  monkeypatch.setattr(model_lib, "_backbone", lambda config: Counting())
  framework = mt_diffusion.build(tiny(), (DIGIT, LABEL))
  settings = sampling(solver=solver, guidance=guidance)
  given = {"label": data()["label"]}
  jax.block_until_ready(jitted(framework)(params, KEY, given, ("digit",), ROWS, settings))
  jax.effects_barrier()
  assert len(calls) == framework.evaluations(("label",), ("digit",), settings)


def test_reconstruction_is_the_data():
  _, framework, params = made(tiny())
  for name, x in framework.reconstruct(params, data()).items():
    np.testing.assert_array_equal(x, data()[name])


def test_report_has_joint_samples_and_the_main_modality_from_the_others():
  _, framework, params = made(tiny())
  shown = framework.stages[0].report(params, KEY, data())
  assert set(shown) == {"joint", "from_label"}
  assert set(shown["joint"]) == set(shown["from_label"]) == {"digit", "label"}
  np.testing.assert_array_equal(shown["from_label"]["label"], data()["label"])


# --- the bound


def test_levels_are_a_law():
  x = jnp.arange(256)[:, None] / 255
  for mean, deviation in itertools.product((-1.2, 0.1, 0.9), (0.003, 0.1, 3.0)):
    log_p = bound_lib._log_level(x, jnp.full((256, 1), mean), deviation)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=2e-3)


def test_bound_of_an_image_and_a_label():
  model, _, params = made(tiny())
  deviations = jax.jit(functools.partial(bound_lib.residuals, model))(params, KEY, data())
  assert set(deviations) == {"digit"}
  bound = jax.jit(functools.partial(bound_lib.bound, model))
  terms = bound(params, KEY, data(), deviations)
  assert set(terms) == {"prior", "steps", "nll_digit", "nll_label", "total", "bits_per_dim"}
  assert all(term > 0 for term in terms.values())
  bits = terms["total"] / (np.log(2) * np.prod(SHAPE))
  np.testing.assert_allclose(terms["bits_per_dim"], bits, rtol=1e-6)


def test_bound_is_measured_over_rows_in_parts(monkeypatch):
  monkeypatch.setattr(bound_lib, "_CHUNK", 3)
  x = np.arange(8.0, dtype=np.float32) ** 2
  seen = []

  def mean(params, key, batch):
    jax.debug.callback(seen.append, batch["x"])
    return {"mean": params["factor"] * batch["x"].mean()}

  found = bound_lib._mean_over(mean, {"factor": 2.0}, KEY, {"x": x}, 100)
  jax.effects_barrier()
  # Parts of 3, 3 and 2 rows.
  assert found["mean"] == pytest.approx(2 * x.mean())
  assert sorted(np.concatenate(seen)) == x.tolist()
  seen.clear()
  bound_lib._mean_over(mean, {"factor": 2.0}, KEY, {"x": x}, 3)
  jax.effects_barrier()
  assert [len(part) for part in seen] == [3]


def test_framework_has_the_bound_that_its_config_asks_for():
  assert mt_diffusion.build(tiny(evaluation__bound=0), (DIGIT, LABEL)).bound is None
  config = tiny(evaluation__bound=2)
  model, framework, params = made(config)
  train = data() | {"unused": np.array(["no number"] * ROWS)}
  found = framework.bound(params, KEY, train, data())
  assert all(isinstance(value, float) for value in found.values())
  parts = ("prior", "steps", "nll_digit", "nll_label")
  assert found["total"] == pytest.approx(sum(found[name] for name in parts), rel=1e-5)
  assert set(found) == {*parts, "total", "bits_per_dim"}


def test_bound_of_a_modality_that_never_changes_is_finite():
  """Its head is right to the last bit, so that the deviation of its error is 0."""
  model, _, _ = made(tiny())
  batch = data() | {"digit": np.full((ROWS, *SHAPE), 0.5, np.float32)}
  like = {name: jnp.asarray(x) for name, x in batch.items()}
  params = {"network": model.network.init(KEY, heads.values_of(model, like), method="initialise")}
  terms = bound_lib.measure(model, params, KEY, batch, batch, num=ROWS)
  assert np.isfinite(list(terms.values())).all()


# --- bad input


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": False}, "leave the others out"),
    ({"augment__modality": "masked"}, "only a main modality that is alone"),
    ({"process__aggregation": "none"}, "start, steps"),
    ({"process__betas": "none"}, "linear, cosine"),
    ({"process__weights": "none"}, "linear, constant"),
    ({"sampling__mode": "none"}, "replacement, informed"),
    ({"sampling__solver": "none"}, "ancestral"),
    ({"sampling__steps": 21}, "from 2 to"),
    ({"sampling__steps": 1}, "from 2 to"),
    ({"sampling__guidance": 2.0, "sampling__mode": "replacement"}, "Use the mode 'informed'"),
    ({"sampling__order": (("label",),)}, "no order"),
    ({"network__informed": False}, "'replacement', or train"),
    ({"network__given_prob": 0.0}, "given_prob is 0.0"),
    ({"network__given_prob": 1.0}, "given_prob is 1.0"),
    ({"augment__share": 3.0}, "augment.share is 3.0"),
    ({"process__aggregation": "steps", "sampling__solver": "ddim"}, "only the solver 'ancestral'"),
    ({"main": "none"}, "config.main names 'none'"),
    ({"main": "label"}, "must be an image"),
    ({"parts__label__encoder": "none"}, "identity, embedding, frozen"),
    ({"parts__label__encoder": "identity"}, r"shape \(3,\) and the shared space \(4, 6, 2\)"),
    ({"parts__digit__encoder": "embedding"}, "by the identity"),
    ({"parts": {"digit": {}}}, "config.modalities names 'label'"),
    ({"process__betas": "linear", "process__num": 100}, r"not N\(0, I\).*sqrt\(abar_T\)"),
    (
      {
        "process__betas": "linear", "process__num": 1000,
        "process__aggregation": "steps", "process__weights": "constant",
      },
      r"not N\(0, I\)",
    ),
  ],
)  # fmt: skip
def test_bad_configs_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    mt_diffusion.build(tiny(**changes), (DIGIT, LABEL))


def test_linear_weights_pass_where_constant_ones_do_not():
  mt_diffusion.build(
    tiny(process__betas="linear", process__num=1000, process__aggregation="steps"), (DIGIT, LABEL)
  )


def test_representation_of_the_wrong_size_is_refused():
  vector = OTHERS[-1]
  config = tiny(parts__vector={"encoder": "embedding", "omega": 1.0, "weight": 1.0})
  _, framework, params = made(config, (DIGIT, vector))
  wrong = data((DIGIT, vector)) | {"vector": np.zeros((ROWS, 9), np.float32)}
  with pytest.raises(UserError, match=r"'vector'.*\(9,\).*\(7,\)"):
    framework.stages[0].prepare({}, wrong)
  with pytest.raises(UserError, match=r"'vector'.*\(9,\).*\(7,\)"):
    given = {"vector": wrong["vector"]}
    framework.sample(params, KEY, given, ("digit",), ROWS, sampling())


def test_examples_that_lack_a_modality_are_refused():
  _, framework, _ = made(tiny())
  stage = framework.stages[0]
  whole = {"label_present": np.ones(ROWS, bool)}
  assert set(stage.prepare({}, data() | whole)[1]) == {"digit", "label"}
  with pytest.raises(UserError, match="lack the modality 'label'.*'drop'"):
    stage.prepare({}, data() | {"label_present": np.arange(ROWS) > 0})


def test_network_that_cannot_be_is_said():
  config = tiny(network__attention=(5,))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_lib, "_backbone", _backbone)
    framework = mt_diffusion.build(config, (DIGIT, LABEL))
  batch = {name: jnp.asarray(x) for name, x in data().items()}
  with pytest.raises(UserError, match=r"config.network: UNet: attention at heights \(5,\)"):
    framework.stages[0].init(KEY, {}, batch)


def test_target_that_is_given_is_refused():
  _, framework, params = made(tiny())
  with pytest.raises(UserError, match="withheld"):
    framework.sample(params, KEY, data(), ("label",), ROWS, sampling())


def test_process_wants_a_weight_an_entry():
  table = made(tiny())[0].process.table
  with pytest.raises(ValueError, match="3 weights for a table of 20"):
    process_lib.Process(table, (0.0, 0.0, 0.0))
