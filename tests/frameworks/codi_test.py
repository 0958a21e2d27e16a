import dataclasses
import functools
import hashlib
import itertools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import codi as config_lib
from mmdiff_jax import modalities as modalities_lib, solvers
from mmdiff_jax.data import pairing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base, codi
from mmdiff_jax.frameworks.codi import losses, networks, sampling as sampling_lib
from mmdiff_jax.frameworks.codi.model import make_model, PromptNoise, SCHEDULE
from mmdiff_jax.networks import prompts as prompts_lib
from mmdiff_jax.networks.transformer import Environment
from mmdiff_jax.training import checkpoints, state, trainer

KEY = jax.random.key(0)
ROWS = 24


def show(x):
  return np.zeros((2, 2, 3), np.uint8)


CAPTION = modalities_lib.Modality("caption", "text", (6,), str, num_classes=5)
DIGIT = modalities_lib.Modality("digit", "image", (4, 4, 1), show)
SPEECH = modalities_lib.Modality("speech", "audio", (4, 4), show, sample_rate=8000)
VIDEO = modalities_lib.Modality("video", "video", (3, 4, 4, 1), show)
MODALITIES = (CAPTION, DIGIT, SPEECH, VIDEO)
NAMES = tuple(m.name for m in MODALITIES)
PAIR = ("digit", "speech")
# Of each row two modalities are there.
PAIRS = (("caption", "digit"), ("caption", "speech"), ("speech", "video"), ("caption", "video"))


def tiny(**changes):
  config = config_lib.get_config("digits")
  training = {"steps": 2, "batch_size": 4, "steps_per_dispatch": 1}
  for size in config.autoencoder.values():
    size.update({"latent": 4, "width": 8, "tokens": 2})
    size.training.update(training)
  config.bridging.network.update({"size": 6, "width": 4})
  config.diffusion.network.update({"width": 8, "depth": 1, "heads": 2, "hidden": 8})
  config.alignment.environment.update({"tokens": 3, "size": 4, "width": 8})
  for part in (config.bridging, config.diffusion, config.alignment):
    part.training.update(training)
  config.sampling.steps = 2
  config.unlock()
  for name, value in changes.items():
    *parents, leaf = name.split("__")
    functools.reduce(getattr, parents, config)[leaf] = value
  return config


def data(pairs=PAIRS):
  rng = np.random.default_rng(0)
  found = {
    m.name: rng.integers(0, m.num_classes, (ROWS, *m.shape)).astype(np.int32)
    if m.num_classes
    else rng.uniform(size=(ROWS, *m.shape)).astype(np.float32)
    for m in MODALITIES
  }
  which = np.arange(ROWS) % len(pairs)
  return found | {f"{name}_present": np.array([name in pairs[i] for i in which]) for name in NAMES}


def noting(reads, name, x):
  """`Column.read` of an array; one row alone is read for its shape."""

  def read(rows):
    if len(rows) > 1:
      reads.append((name, rows))
    return x[rows]

  return read


# It compiles every stage, so that what wants it is left to the slow tests.
@pytest.fixture(scope="module")
def ran():
  """All stages in order, one step each: the entries before and after every stage.

  And what it read: of each modality the rows.
  """
  config = tiny()
  framework = codi.build(config, MODALITIES)
  params, history, reads = {}, [], []
  watched = {
    name: x
    if name.endswith("_present")
    else pairing.Column(np.arange(ROWS), noting(reads, name, x))
    for name, x in data().items()
  }
  for stage in framework.stages:
    reads.clear()
    constants, examples = stage.prepare(params, watched)
    examples = {name: x[:] for name, x in examples.items()}
    read = {name: {row for n, rows in reads if n == name for row in rows} for name in NAMES}
    frozen = params | constants
    batch = {name: jnp.asarray(x[:4]) for name, x in examples.items()}

    @jax.jit
    def step(frozen, batch, stage=stage):
      trained = stage.init(KEY, frozen, batch)
      return trained, jax.grad(lambda p: stage.loss(p, frozen, KEY, batch)[0])(trained)

    trained, grads = step(frozen, batch)
    moved = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), trained, grads)
    history.append((stage, set(params), examples, trained, grads, read))
    params = frozen | moved
  return make_model(config, MODALITIES), framework, params, history


def sampling(**changes):
  return base.SamplerConfig(**{"solver": solvers.ddim(0.0), "steps": 2, **changes})


def rows(*names, num=4):
  return {name: jnp.asarray(data()[name][:num]) for name in names}


def run(framework, params, given, targets, how=None):
  num = len(next(iter(given.values()))) if given else 4
  jitted = jax.jit(framework.sample, static_argnums=(3, 4, 5))
  return jitted(params, KEY, given, tuple(targets), num, how or sampling())


# --- stages


@pytest.mark.slow
def test_stages_are_in_order_and_train_what_is_theirs(ran):
  _, framework, _, history = ran
  assert [stage.name for stage in framework.stages] == [
    *(f"autoencoder_{name}" for name in NAMES),
    *(f"bridging_{name}" for name in NAMES[1:]),
    *(f"diffusion_{name}" for name in NAMES),
    *(f"alignment_{name}" for name in NAMES[1:]),
  ]
  done = []
  for stage, before, _, trained, grads, _ in history:
    assert set(stage.trainable) == set(trained)
    assert not set(trained) & before
    assert set(stage.needs) <= set(done)
    done.append(stage.name)
    norms = {
      name: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(g)) for name, g in grads.items()
    }
    assert all(norm > 0 for norm in norms.values()), (stage.name, norms)
  assert [set(h[3]) for h in history[-3:]] == [
    {"alignment_caption", "alignment_digit", "contrast_caption_digit"},
    {"alignment_speech", "contrast_caption_speech"},
    {"alignment_video", "contrast_speech_video"},
  ]


@pytest.mark.slow
def test_what_is_frozen_keeps_its_hash_through_every_stage(tmp_path, monkeypatch):
  """Through the trainer: what each stage is given of the earlier ones, and what it leaves."""
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  config, hashes = tiny(), []
  framework = codi.build(config, MODALITIES)

  def hashed(params):
    return {
      name: hashlib.sha256(
        b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(of))
      ).hexdigest()
      for name, of in params.items()
    }

  def watched(stage):
    def prepare(frozen, data):
      hashes.append(hashed(frozen))
      return stage.prepare(frozen, data)

    return dataclasses.replace(stage, prepare=prepare)

  stages = tuple(map(watched, framework.stages))
  all_data = data(), data()
  params = trainer.train(dataclasses.replace(framework, stages=stages), config, tmp_path, *all_data)
  hashes.append(hashed(params))
  assert len(hashes) == 15 and not hashes[0]
  for stage, before, after in zip(framework.stages, hashes, hashes[1:], strict=False):
    assert {name: after[name] for name in before} == before, stage.name
    assert set(stage.trainable) <= set(after) - set(before)
  assert hashed(checkpoints.load_params(framework, tmp_path)) == hashes[-1]


@pytest.mark.slow
def test_no_stage_sees_more_than_two_modalities_of_an_example(ran):
  """Of each row only what is there, which is one of the pairs; and of rows that it needs all."""
  _, _, _, history = ran
  rows_of = {name: set(np.flatnonzero(data()[f"{name}_present"])) for name in NAMES}
  for stage, *_, read in history:
    kind, name = stage.name.split("_")
    assert all(read[other] <= rows_of[other] for other in NAMES), stage.name
    for row in range(ROWS):
      assert {n for n in NAMES if row in read[n]} <= set(PAIRS[row % len(PAIRS)]), stage.name
    partners = {
      "autoencoder": (),
      "bridging": ("caption",),
      "diffusion": tuple(n for n in NAMES if n != name and rows_of[n] & rows_of[name]),
      "alignment": ("speech",) if name == "video" else ("caption",),
    }[kind]
    assert {n for n in NAMES if read[n]} == {name, *partners}, stage.name
    of_pairs = set().union(*(rows_of[name] & rows_of[n] for n in partners or (name,)))
    assert read[name] == of_pairs, stage.name


@pytest.mark.slow
def test_examples_are_paired_by_row(ran):
  model, _, params, history = ran
  (examples,) = (x for stage, _, x, *_ in history if stage.name == "alignment_speech")
  both = np.flatnonzero(data()["caption_present"] & data()["speech_present"])
  for name in ("caption", "speech"):
    z = networks.encode(model, params, name, data()[name][both])
    np.testing.assert_allclose(examples[name], z, atol=1e-4)
    prompt = networks.encode_prompt(model, params, name, data()[name][both])
    np.testing.assert_allclose(examples[f"prompt_{name}"], prompt, atol=1e-5)


@pytest.mark.slow
def test_latents_come_back(ran):
  model, _, params, _ = ran
  for name in NAMES:
    x = rows(name)[name]
    z = networks.encode(model, params, name, x)
    assert z.shape == (4, *model.shapes[name])
    codec = model.codecs[name]
    entry = params[f"autoencoder_{name}"]
    through = codec.apply(entry, codec.apply(entry, x, method="encode"), method="decode")
    np.testing.assert_allclose(networks.decode(model, params, name, z), through, atol=1e-4)


@pytest.mark.slow
def test_alignment_starts_as_diffusion_ended(ran):
  model, _, params, history = ran
  fresh = dict(params)
  for _, _, _, trained, *_ in history[-3:]:
    fresh |= trained
  z = {n: jax.random.normal(KEY, (4, *model.shapes[n])) for n in NAMES}
  prompt = jnp.ones((4, 6))
  both = [
    networks.predict(model, fresh, NAMES, z, jnp.float32(0.4), prompt, aligned=aligned)
    for aligned in (True, False)
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.slow
def test_other_modalities_are_read_after_alignment_and_not_before(ran):
  model, _, params, history = ran
  fresh = dict(params)
  for _, _, _, trained, *_ in history[-3:]:
    fresh |= trained
  z = {n: jax.random.normal(KEY, (1, *model.shapes[n])) for n in NAMES}
  t, prompt = jnp.float32(0.4), jnp.zeros((1, 6))

  @jax.jit
  def slopes(params):
    return jax.jacobian(
      lambda z: networks.predict(model, params, NAMES, z, t, prompt, aligned=True)
    )(z)

  before, after = slopes(fresh), slopes(params)
  for a, b in itertools.permutations(NAMES, 2):
    assert np.abs(before[a][b]).max() == 0
    assert np.abs(after[a][b]).max() > 0, (a, b)


# --- networks that are brought

THEIRS = "tests.networks.theirs"


def brought(*prompts, **changes):
  """Every autoencoder is theirs, and some prompt encoders are."""
  latents = {"caption": 30, "digit": 16, "speech": 16, "video": 16}
  for name, latent in latents.items():
    changes |= {f"autoencoder__{name}__pretrained": f"{THEIRS}:rotation"}
    changes |= {f"autoencoder__{name}__latent": latent}
  return tiny(
    **changes, **{f"bridging__pretrained__{name}": f"{THEIRS}:directions" for name in prompts}
  )


@pytest.mark.parametrize(
  ("prompts", "trained"),
  [
    ((), [{"prompt_caption", "prompt_digit"}, {"prompt_speech"}, {"prompt_video"}]),
    (("caption",), [{"prompt_digit"}, {"prompt_speech"}, {"prompt_video"}]),
    (("caption", "digit", "video"), [set(), {"prompt_speech"}, set()]),
  ],
)
def test_brought_prompt_encoders_are_not_trained_but_what_is_left_is(prompts, trained):
  framework = codi.build(brought(*prompts), MODALITIES)
  stages = [stage for stage in framework.stages if stage.name.startswith("bridging")]
  for stage, names, own in zip(stages, NAMES[1:], trained, strict=True):
    assert set(stage.trainable) == own | {f"contrast_{names}"}
  params, _ = stages[0].prepare({}, data())
  expected = {f"prompt_{name}" for name in ("caption", "digit") if name in prompts}
  assert set(params) == expected


@pytest.mark.parametrize(("wrong", "start"), [(True, 120.0), (False, 95.0)])
def test_the_temperature_stops_at_its_bound_and_returns_from_beyond(wrong, start):
  """By the optimiser of training, on pairs whose encoders are frozen."""
  config = tiny(modalities=PAIR, bridging__bridge="digit", alignment__links=(PAIR,))
  config.bridging.pretrained.update(dict.fromkeys(PAIR, f"{THEIRS}:directions"))
  steps = 200
  config.bridging.training.update({"steps": steps, "warmup": 0, "learning_rate": 0.01})
  (stage,) = (s for s in codi.build(config, (DIGIT, SPEECH)).stages if s.name == "bridging_speech")
  model = make_model(config, (DIGIT, SPEECH))
  frozen = {f"prompt_{n}": model.prompts[n].entry for n in PAIR}
  # So alike that at the bound the right pairs still want a higher scale.
  x = 1 + 0.1 * jax.random.normal(KEY, (8, 16))
  pair = x, jnp.roll(x, 1, axis=0) if wrong else x
  batch = {m.name: v.reshape(8, *m.shape) for m, v in zip((DIGIT, SPEECH), pair, strict=True)}
  tx = state.optimizer(stage.settings)
  (name,) = stage.trainable

  @jax.jit
  def log_scales():
    params = {name: {"log_scale": jnp.float32(np.log(start))}}

    def step(carry, _):
      params, moments = carry
      grads = jax.grad(lambda params: stage.loss(params, frozen, KEY, batch)[0])(params)
      updates, moments = tx.update(grads, moments, params)
      params = optax.apply_updates(params, updates)
      return (params, moments), params[name]["log_scale"]

    return jax.lax.scan(step, (params, tx.init(params)), None, steps)[1]

  bound = np.log(100.0)
  if wrong:
    assert log_scales()[-1] < bound - 0.2
  else:
    assert bound < np.max(log_scales()) < bound + 0.2
  beyond = {name: {"log_scale": jnp.float32(bound + 1)}}
  value, _ = stage.loss(beyond, frozen, KEY, batch)
  at_bound, _ = stage.loss({name: {"log_scale": jnp.float32(bound)}}, frozen, KEY, batch)
  assert value == at_bound


def test_brought_autoencoders_give_tokens_of_the_latents_and_views_back():
  model = make_model(brought(), MODALITIES)
  for name, codec in model.codecs.items():
    x = rows(name)[name]
    mean = np.full((3, 16) if name == "video" else (codec.latent,), 0.3, np.float32)
    params = {f"autoencoder_{name}": codec.entry}
    params |= {f"statistics_{name}": {"mean": mean, "std": mean + 1.0}}
    z = networks.encode(model, params, name, x)
    assert z.shape == (4, *model.shapes[name])
    np.testing.assert_allclose(networks.decode(model, params, name, z), x, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [("digit",), ("caption", "digit", "video")])
def test_brought_networks_are_trained_upon_and_stay_as_they_are(prompts, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # It takes seconds to load.
  config = brought(*prompts)
  framework = codi.build(config, MODALITIES)
  trainer.train(framework, config, tmp_path, data(), data())
  params = checkpoints.load_params(framework, tmp_path)
  model = make_model(config, MODALITIES)
  for name in NAMES:
    theirs = {f"autoencoder_{name}": model.codecs[name].entry}
    if name in prompts:
      theirs[f"prompt_{name}"] = model.prompts[name].entry
    for entry, leaves in theirs.items():
      jax.tree.map(np.testing.assert_array_equal, params[entry], leaves)
  fresh = codi.build(config, MODALITIES).stages[len(NAMES)]
  batch = {name: jnp.asarray(data()[name][:4]) for name in ("caption", "digit")}
  for entry, leaves in fresh.init(KEY, {}, batch).items():
    differ = [not np.array_equal(*both) for both in zip(
      jax.tree.leaves(leaves), jax.tree.leaves(params[entry]), strict=True)]  # fmt: skip
    assert any(differ), entry
  out = run(framework, params, rows("caption"), ("digit", "video"))
  assert {name: x.shape for name, x in out.items()} == {
    "digit": (4, *DIGIT.shape), "video": (4, *VIDEO.shape)
  }  # fmt: skip
  found = framework.reconstruct(params, data())
  for name in NAMES:
    np.testing.assert_allclose(found[name], data()[name], atol=1e-5)


# --- laws


def test_info_nce_of_captions_that_say_the_class_alone_is_at_its_floor():
  """E log(1 + Bin(B - 1, 1 / K)): one-hot codes of the class, at a large scale."""
  batch, classes = 32, 10
  draws = np.random.default_rng(0).integers(0, classes, (400, batch))

  @jax.jit
  def value(labels):
    codes = jax.nn.one_hot(labels, classes)
    return losses.info_nce(codes, codes, jnp.float32(np.log(100.0)))

  found = np.mean([value(labels) for labels in draws])
  numbers = np.random.default_rng(1).binomial(batch - 1, 1 / classes, 200_000)
  floor = np.mean(np.log1p(numbers))
  assert found == pytest.approx(floor, abs=0.02)
  # Codes that lie to each other by accident do no better; and what tells rows apart does.
  worse = np.mean(
    [
      losses.info_nce(
        jax.nn.one_hot(x, classes), jax.nn.one_hot((x + (x == 3)) % 10, classes), jnp.float32(4.6)
      )
      for x in draws[:50]
    ]
  )
  assert worse > floor
  eye = jnp.eye(batch)
  assert float(losses.info_nce(eye, eye, jnp.float32(np.log(100.0)))) < 1e-3
  # It is symmetric, and matches the definition.
  a, b = jax.random.normal(KEY, (2, 5, 3))
  one, other = (float(losses.info_nce(x, y, jnp.float32(0.3))) for x, y in ((a, b), (b, a)))
  assert one == pytest.approx(other, rel=1e-6)
  p = np.exp(np.exp(0.3) * np.asarray(a) @ np.asarray(b).T)
  expected = -0.5 * np.mean(np.log(np.diag(p) ** 2 / p.sum(0) / p.sum(1)))
  assert one == pytest.approx(expected, rel=1e-5)


class Pair:
  """In place of a denoiser: the exact v of x_A of a Gaussian pair of variance 1, correlation r."""

  def __init__(self, r):
    self.r = r

  def apply(self, params, z, t, prompt, context=None):
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    k = alpha**2 * self.r
    if context is None:
      eps = sigma * z
    else:
      eps = sigma * (z - k * context.reshape(z.shape)) / (1 - k**2)
    # v = alpha eps - sigma x0, x0 = (z - sigma eps) / alpha; alpha is 0 at t = 1.
    x0 = jnp.where(alpha > 1e-4, (z - sigma * eps) / jnp.maximum(alpha, 1e-4), 0.0)
    return alpha * eps - sigma * x0


class Identity:
  def apply(self, params, z, t):
    return z.reshape(len(z), 1, -1)


def with_networks(config, denoiser, environment):
  """Returns the record of a config with other networks of `PAIR`, whose latents are one number."""
  return dataclasses.replace(
    make_model(config, MODALITIES),
    denoisers=dict.fromkeys(PAIR, denoiser),
    environments=dict.fromkeys(PAIR, environment),
    shapes=dict.fromkeys(PAIR, (1, 1, 1)),
  )


def gaussian_pair(r):
  """A model of the Gaussian pair, and its parameters."""
  model = with_networks(tiny(), Pair(r), Identity())
  params = {f"diffusion_{n}": {"params": {}} for n in PAIR}
  return model, params | {f"alignment_{n}": {"environment": {}, "cross": {}} for n in PAIR}


def pair_samples(r, monkeypatch, targets, num, how, **options):
  """Samples of some of the pair, each [num]."""
  model, params = gaussian_pair(r)
  monkeypatch.setattr(sampling_lib, "decode", lambda model, params, name, z: z.reshape(-1))
  found = jax.jit(
    lambda key: sampling_lib.sample(model, params, key, {}, targets, num, how, **options)
  )(KEY)
  return [np.asarray(found[name]) for name in targets]


@pytest.mark.slow
@pytest.mark.parametrize(("aligned", "r"), [(True, 0.8), (True, -0.5), (False, 0.8)])
def test_correlated_pair(aligned, r, monkeypatch):
  """With environments the correlation of the samples is r, without them 0."""
  if not aligned:
    predict = networks.predict
    monkeypatch.setattr(
      sampling_lib, "predict", lambda *args, **kwargs: predict(*args, aligned=False)
    )
  how = sampling(solver=solvers.heun, steps=100)
  a, b = pair_samples(r, monkeypatch, PAIR, 20_000, how)
  assert np.corrcoef(a, b)[0, 1] == pytest.approx(r if aligned else 0.0, abs=0.02)
  assert np.var(a) == pytest.approx(1, abs=0.04)


@pytest.mark.slow
def test_trained_networks_learn_the_correlation_of_a_pair(monkeypatch):
  """By the stages' own losses: nothing of it before alignment, and all of it after.

  Of deviation 0.4: v of a unit Gaussian is 0, for which a network's last layer would stay at zero.
  """
  r, scale, num = 0.8, 0.4, 256
  size = {"latent": 1, "tokens": 1, "width": 8}
  config = tiny(modalities=PAIR, bridging__bridge="digit", alignment__links=(PAIR,))
  for name in PAIR:
    config.autoencoder[name].update(size)
  config.diffusion.network.update({"width": 32, "hidden": 64})
  config.alignment.environment.update({"tokens": 2, "size": 8, "width": 32})
  for part in (config.diffusion, config.alignment):
    part.absent_prob = 1.0
  framework = codi.build(config, (DIGIT, SPEECH))
  stages = {stage.name: stage for stage in framework.stages}

  def pair(key):
    a, other = scale * jax.random.normal(key, (2, num, 1, 1, 1))
    return dict(zip(PAIR, (a, r * a + (1 - r**2) ** 0.5 * other), strict=True))

  def trained(stage, frozen, batch, steps):
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def step(carry, index):
      params, state = carry
      data_key, loss_key = jax.random.split(jax.random.fold_in(KEY, index))
      loss = functools.partial(stage.loss, frozen=frozen, key=loss_key, batch=batch(data_key))
      gradient = jax.grad(lambda params: loss(params)[0])(params)
      updates, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run():
      params = stage.init(KEY, frozen, batch(KEY))
      return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    return run()

  none = jnp.zeros((num, 6))
  params = {}
  for name in PAIR:

    def of_one(key, name=name):
      return {"z": pair(key)[name], "prompt": none}

    params |= trained(stages[f"diffusion_{name}"], params, of_one, 1000)
  prompts = {f"prompt_{name}": none for name in PAIR}
  aligned = trained(stages["alignment_speech"], params, lambda key: pair(key) | prompts, 2500)

  model = make_model(config, (DIGIT, SPEECH))
  monkeypatch.setattr(sampling_lib, "decode", lambda model, params, name, z: z.reshape(-1))
  start = stages["alignment_speech"].init(KEY, params, pair(KEY) | prompts)
  how = sampling(solver=solvers.heun, steps=50)
  for entries, correlation in ((start, 0.0), (aligned, r)):
    found = jax.jit(
      lambda entries: sampling_lib.sample(model, params | entries, KEY, {}, PAIR, 10_000, how)
    )(entries)
    a, b = (np.asarray(found[name]) for name in PAIR)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(correlation, abs=0.08)
    for x in (a, b):
      assert np.std(x) == pytest.approx(scale, rel=0.05)


def test_noise_is_the_same_together_and_alone(monkeypatch):
  """Of a pair that is independent, so that nothing else tells them apart; with a noisy solver."""
  how = sampling(solver=solvers.ddim(1.0), steps=4)
  digit, speech = pair_samples(0.0, monkeypatch, PAIR, 5, how)
  assert np.abs(digit - speech).min() > 1e-3
  for name, together in zip(PAIR, (digit, speech), strict=True):
    (alone,) = pair_samples(0.0, monkeypatch, (name,), 5, how)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_shuffled_rows_read_the_row_before():
  """One row, or one modality, has nothing else to read."""
  model, params = gaussian_pair(0.8)
  a, b = jax.random.normal(KEY, (2, 4, 1, 1, 1))

  def velocity(a, b, names=PAIR, **options):
    z = {name: x for name, x in zip(PAIR, (a, b), strict=True) if name in names}
    t, prompt = jnp.float32(0.3), jnp.zeros((len(a), 6))
    return networks.predict(model, params, names, z, t, prompt, aligned=True, **options)

  found, plain = velocity(a, b, shuffled=True), velocity(a, b)
  for name, moved in (
    ("digit", velocity(a, jnp.roll(b, 1, axis=0))),
    ("speech", velocity(jnp.roll(a, 1, axis=0), b)),
  ):
    np.testing.assert_array_equal(found[name], moved[name])
    assert np.abs(found[name] - plain[name]).min() > 1e-3
  for few in ((a[:1], b[:1]), (a, b, PAIR[:1])):
    jax.tree.map(np.testing.assert_array_equal, velocity(*few, shuffled=True), velocity(*few))


def test_shuffled_pairs_share_no_noise(monkeypatch):
  """Either of row i comes of rows i, i - 2, ... of its own noise and i - 1, ... of the other's."""
  how = sampling(solver=solvers.ddim(0.0), steps=16)
  a, b = pair_samples(0.8, monkeypatch, PAIR, 4000, how, shuffled=True)
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
  assert np.corrcoef(a, np.roll(b, 1))[0, 1] > 0.4


def test_losses_of_exact_networks_are_the_variance_that_is_left():
  """Var(v | z_A, z_B) = (1 - sigma^2 / (1 - k^2)) / alpha^2, k = alpha^2 r, a mean over times."""
  names, num, r = ("digit", "speech"), 200_000, 0.8

  class Each(Pair):
    def apply(self, params, z, t, prompt, context=None):
      return super().apply(params, z, t[:, None, None, None], prompt, context)

  model = with_networks(tiny(alignment__contrast=0.0), Each(r), Identity())
  params = {f"diffusion_{n}": {"params": {}} for n in names}
  params |= {f"alignment_{n}": {"environment": {}, "cross": {}} for n in names}
  a, n = jax.random.normal(KEY, (2, num, 1, 1, 1))
  z = {"digit": a, "speech": r * a + np.sqrt(1 - r**2) * n}
  t = jnp.linspace(1e-3, 1 - 1e-3, 20_001)
  alpha, sigma = (np.asarray(f(t), np.float64) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
  expected = np.mean((1 - sigma**2 / (1 - (alpha**2 * r) ** 2)) / alpha**2)
  prompts = dict.fromkeys(names, jnp.ones((num, 6)))
  # A batch this large has a matrix of contrast that is larger still.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(losses, "info_nce", lambda *_: jnp.float32(0.0))
    _, parts = losses.alignment_loss(model, params, KEY, names, z, prompts, jnp.float32(0.0))
  for name in names:
    assert float(parts[f"loss_{name}"]) == pytest.approx(expected, rel=0.02)
  # Alone the best v is 0, whose error is Var(v) = 1.
  alone = losses.diffusion_loss(model, params, KEY, "digit", a, prompts["digit"])
  assert float(alone) == pytest.approx(1.0, abs=0.01)
  assert expected < 0.95


def test_the_contrast_of_environments_falls_by_the_content_alone():
  """Never below log B for independent latents; well below it for latents that share a class."""
  num, size = 32, 4
  config = tiny(alignment__absent_prob=1.0, alignment__contrast=1.0)
  silent = types.SimpleNamespace(apply=lambda params, z, *_: jnp.zeros_like(z))
  environment = Environment(tokens=2, size=16, width=64)
  model = with_networks(config, silent, environment)
  frozen = {f"diffusion_{n}": {"params": {}} for n in PAIR}
  prompts = dict.fromkeys(PAIR, jnp.zeros((num, 6)))
  means = 2 * jax.random.normal(KEY, (len(PAIR), 10, 1, 1, size))
  tx = optax.adam(3e-3)

  def latents(key, shared):
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (len(PAIR), num), 0, 10)
    noise = jax.random.normal(noise_key, (len(PAIR), num, 1, 1, size))
    labels = jnp.where(shared, labels[:1], labels)
    return {n: means[i][labels[i]] + 0.2 * noise[i] for i, n in enumerate(PAIR)}

  def loss(trained, key, shared):
    data_key, loss_key = jax.random.split(key)
    params = {f"alignment_{n}": {"environment": e, "cross": {}} for n, e in trained[0].items()}
    value, parts = losses.alignment_loss(
      model, frozen | params, loss_key, PAIR, latents(data_key, shared), prompts, trained[1]
    )
    return value, parts["contrast"]

  @jax.jit
  def last_contrasts(shared):
    z = latents(KEY, shared)
    keys = dict(zip(PAIR, jax.random.split(KEY), strict=True))
    trained = {n: environment.init(keys[n], z[n], jnp.zeros(num)) for n in PAIR}, jnp.log(1 / 0.07)

    def step(carry, index):
      trained, state = carry
      key = jax.random.fold_in(KEY, index)
      grads, contrast = jax.grad(loss, has_aux=True)(trained, key, shared)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(trained, updates), state), contrast

    return jax.lax.scan(step, (trained, tx.init(trained)), jnp.arange(200))[1][-50:]

  assert np.mean(last_contrasts(False)) > np.log(num) - 0.1
  assert np.mean(last_contrasts(True)) < np.log(num) - 0.4


def test_prompts_are_mixed_noised_and_withheld():
  noise = PromptNoise(absent_prob=0.25, prompt_noise=0.5)
  num, size = 20_000, 16
  a, b = jnp.eye(size)[0], jnp.eye(size)[1]
  prompts = [jnp.broadcast_to(x, (num, size)) for x in (a, b)]
  found = np.asarray(losses.sample_prompt(noise, KEY, prompts))
  absent = (found == 0).all(axis=1)
  assert absent.mean() == pytest.approx(0.25, abs=0.01)
  rest = found[~absent]
  assert rest[:, 0].mean() == pytest.approx(0.5, abs=0.02)
  assert rest[:, 1].mean() == pytest.approx(0.5, abs=0.02)
  assert np.sqrt((rest[:, 2:] ** 2).sum(1).mean() * size / (size - 2)) == pytest.approx(
    0.5, abs=0.02
  )


# --- generation


@pytest.mark.slow
@pytest.mark.parametrize(
  ("given", "targets"),
  [
    (("caption",), ("digit",)),
    (("caption", "digit", "speech"), ("digit",)),
    (("caption",), ("digit", "caption")),
    (("caption",), ("video", "speech")),
    ((), NAMES),
  ],
)
def test_any_subset_from_any_other(ran, given, targets):
  _, framework, params, _ = ran
  out = run(framework, params, rows(*given), targets)
  assert set(out) == set(targets)
  for m in MODALITIES:
    if m.name in targets:
      assert out[m.name].shape == (4, *m.shape)
      assert out[m.name].dtype == data()[m.name].dtype
  how = sampling(guidance=2.0)
  assert framework.evaluations(given, targets, how) == 2 * len(targets) * (2 if given else 1)


@pytest.mark.slow
def test_interpolation_ends_at_single_prompts_and_guidance_at_none(ran):
  _, _, params, _ = ran
  given = rows("caption", "digit")

  def out(weights, given, guidance=1.0):
    framework = codi.build(tiny(sampling__weights=weights), MODALITIES)
    return np.asarray(
      run(framework, params, given, ("speech",), sampling(guidance=guidance))["speech"]
    )

  for name, other in (("caption", "digit"), ("digit", "caption")):
    end = out({name: 1.0, other: 0.0}, given)
    np.testing.assert_allclose(end, out({}, {name: given[name]}), atol=1e-5)
  middle = out({"caption": 2.0, "digit": 2.0}, given)
  np.testing.assert_allclose(middle, out({}, given), atol=1e-6)
  assert np.abs(middle - end).max() > 1e-4
  nothing = out({}, given, guidance=0.0)
  framework = codi.build(tiny(), MODALITIES)
  np.testing.assert_allclose(nothing, run(framework, params, {}, ("speech",))["speech"], atol=1e-5)


# --- bad input


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"bridging__bridge": "none"}, "bridge is 'none'"),
    ({"autoencoder__digit__tokens": 3}, "autoencoder.digit.latent is 4.*3 tokens"),
    ({"alignment__links": (("caption", "none"),)}, "two different ones"),
    ({"alignment__links": (("caption", "digit"), ("speech", "video"))}, "aligned already"),
    ({"alignment__links": (("caption", "digit"),)}, "do not reach speech, video"),
    ({"autoencoder": {}}, "no autoencoder of the modality 'caption'"),
    ({"autoencoder__digit__pretrained": f"{THEIRS}:rotation"}, r"digit\.latent=4 says"),
    (
      {"bridging__pretrained__digit": f"{THEIRS}:rotation"},
      r"pretrained\.digit .*network\.size=6 says",
    ),
    ({"sampling__solver": "none"}, "ancestral"),
    ({"sampling__order": (("caption",),)}, "no order of them"),
  ],
)
def test_bad_configs_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    codi.build(tiny(**changes), MODALITIES)


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ({"caption": -1.0}, "'caption' is -1"),
    ({"caption": float("nan")}, "'caption' is nan"),
    ({"caption": float("inf")}, "'caption' is inf"),
    ({"caption": 0.0, "digit": 0.0}, "caption, digit are all 0"),
    ({"video": 1.0}, "'video', which is not given"),
  ],
)
def test_weights_that_cannot_be_are_refused(weights, message):
  prompts = {"caption": jnp.ones((2, 3)), "digit": jnp.ones((2, 3))}
  with pytest.raises(UserError, match=message):
    sampling_lib.mix_prompts(prompts, weights)


def test_a_prompt_of_zeros_has_a_gradient():
  h = jnp.array([[0.0, 0.0], [3.0, 4.0], [3e-8, 4e-8]])
  np.testing.assert_allclose(prompts_lib.unit(h)[:2], [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)

  def loss(h):
    return losses.info_nce(prompts_lib.unit(h), prompts_lib.unit(h[::-1]), jnp.float32(1.0))

  assert np.isfinite(jax.grad(loss)(h)).all()


@pytest.mark.slow
def test_weights_of_what_is_not_given_count_for_nothing(ran):
  _, _, params, _ = ran
  given = {"digit": rows("digit")["digit"]}
  plain, weighed = (
    run(codi.build(tiny(sampling__weights=weights), MODALITIES), params, given, ("speech",))
    for weights in ({}, {"caption": 2.0})
  )
  np.testing.assert_array_equal(plain["speech"], weighed["speech"])


@pytest.mark.slow
def test_stages_want_pairs(ran):
  _, framework, params, _ = ran
  stages = {stage.name: stage for stage in framework.stages}
  lonely = data(pairs=(("digit", "video"),))
  with pytest.raises(UserError, match="both 'caption' and 'digit'"):
    stages["bridging_digit"].prepare({}, lonely)
  with pytest.raises(UserError, match="'speech' and another modality"):
    stages["diffusion_speech"].prepare(params, lonely)
