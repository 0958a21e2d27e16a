"""Tests that need eight devices; `parallel_test.py` runs them in a process that has them."""

import collections
import dataclasses
import functools
import importlib.util
import math
import pathlib
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import ml_collections
import numpy as np
import optax
import pytest

from experiments import generation
from mmdiff_jax import noise as noise_lib, parallel, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base, codi, mcdm, mld, mt_diffusion
from mmdiff_jax.training import checkpoints, state as state_lib, step as step_lib, trainer

STEPS, ROWS = 20, 16
LAYOUTS = {
  "data": {"mesh": (-1, 1)},
  "shard": {"mesh": (1, -1)},
  "both": {"mesh": (2, 4)},
  "pmap": {"kind": "pmap"},
}


def make_layout(name):
  """Returns one of `LAYOUTS`, or for "one" a layout of a single device."""
  if name != "one":
    return parallel.make_layout(**LAYOUTS[name], min_shard_size=16)
  axes = {"axis_types": (AxisType.Auto,) * 2, "devices": jax.devices()[:1]}
  return parallel.Layout(jax.make_mesh((1, 1), ("data", "shard"), **axes))


# --- frameworks and training


def toy_stage(toy, loss=None):
  stage, _ = toy.framework().stages
  stage = dataclasses.replace(stage, loss=loss or stage.loss)
  return stage, {"mean": np.zeros(16)}, toy.data()


def make_framework(name):
  """Returns the tiny framework and data of the test file of a framework."""
  path = pathlib.Path(__file__).parents[1] / "frameworks" / f"{name}_test.py"
  spec = importlib.util.spec_from_file_location(f"{name}_tiny", path)
  tiny = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tiny)
  tiny.ROWS = 48
  if name == "mld":
    return mld.build(tiny.tiny(), tiny.MODALITIES), tiny.data()
  if name == "mcdm":
    # Dropout draws, too.
    config = tiny.config_of("caption", "label", network__dropout=0.2)
    modalities = (tiny.IMAGE, tiny.TEXT, tiny.LABEL)
    return mcdm.build(config, modalities), tiny.data(*modalities)
  if name == "mt_diffusion":
    mt_diffusion.model._backbone = lambda config: tiny.Tiny()
    modalities = (tiny.DIGIT, tiny.LABEL)
    return mt_diffusion.build(tiny.tiny(), modalities), tiny.data(rows=48)
  return codi.build(tiny.tiny(), tiny.MODALITIES), tiny.data()


def make_stages(name, wanted):
  """Yields some stages of a framework, with frozen entries and examples that it prepares."""
  framework, data = make_framework(name)
  params = {}
  for stage in framework.stages:
    constants, examples = stage.prepare(params, data)
    frozen = params | constants
    if stage.name in wanted:
      yield stage, frozen, examples
    if stage.name == wanted[-1]:
      return
    batch = {n: x[:ROWS] for n, x in examples.items()}
    params = frozen | jax.jit(stage.init)(jax.random.key(1), frozen, batch)


def doubles(tree):
  tree = jax.tree.map(np.asarray, tree)
  return jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, tree)


def batches(examples, num):
  return [
    {
      n: np.take(x, range(i * ROWS, (i + 1) * ROWS), axis=0, mode="wrap")
      for n, x in examples.items()
    }
    for i in range(num)
  ]


def prepare(stage, frozen, examples, layout, **settings):
  """Returns the compiled step and its arguments, with the state of a run."""
  settings = dataclasses.replace(stage.settings, ema=0.9, **settings)
  stage = dataclasses.replace(stage, settings=settings)
  tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.05))
  (batch,) = batches(examples, 1)
  params = jax.jit(stage.init)(jax.random.key(1), frozen, batch)
  # Layers that start at zero would block the gradient of all layers before them.
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), doubles(params))
  state = state_lib.create(jax.tree.map(jnp.asarray, params), tx)
  state = jax.device_put(state, parallel.shardings(layout, state), may_alias=False)
  names, step = step_lib.make_train_step(stage, tx, layout, state.params, frozen, batch)
  batch = parallel.shard_batch(layout, batch, grouped=False)
  frozen = parallel.replicate(layout, frozen)
  return step, (state, step_lib.new_meter(layout, names), frozen, jax.random.key(5), batch)


def run_steps(stage, frozen, examples, layout, **settings):
  """Returns parameters and EMA after steps of SGD, and the distance from the first parameters."""
  step, (state, meter, *rest) = prepare(stage, frozen, examples, layout, **settings)
  first = jax.device_get(state.params)
  for batch in batches(examples, STEPS):
    batch = parallel.shard_batch(layout, batch, grouped=False)
    state, meter = step(state, meter, *rest[:2], batch)
  assert int(meter.bad_step) == -1
  last = jax.device_get({"params": state.params, "ema": state.ema})
  return last, distance(last["params"], first)


def distance(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return math.sqrt(sum(np.sum((x - y) ** 2) for x, y in pairs))


def check_alike(stage, frozen, examples, names, *, pieces=()):
  """Checks that all layouts, also with the batch processed in pieces, give the same run."""
  with jax.enable_x64(True):
    frozen, examples = doubles(frozen), doubles(examples)
    expected, total = run_steps(stage, frozen, examples, make_layout("one"))
    assert total > 0.1
    for name in names:
      actual, _ = run_steps(stage, frozen, examples, make_layout(name))
      assert distance(actual, expected) < 1e-8 * total, (stage.name, name)
    for name in pieces:
      actual, _ = run_steps(stage, frozen, examples, make_layout(name), accumulate=2)
      assert distance(actual, expected) < 1e-8 * total, (stage.name, name, "in pieces")


# --- layouts


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"kind": "shmap"}, "'shmap'.*'jit' or 'pmap'"),
    ({"mesh": (3, -1)}, r"\(3, -1\).*8 devices"),
    ({"mesh": (4, 4)}, "8 devices"),
    ({"mesh": (-1, -1)}, "8 devices"),
    ({"mesh": (0, -1)}, "8 devices"),
    ({"mesh": (-8, -1)}, "8 devices"),
    ({"mesh": (8,)}, "8 devices"),
    ({"mesh": (4, 2), "kind": "pmap"}, "copies the parameters to every device"),
    ({"min_shard_size": 0}, "min_shard_size"),
  ],
)
def test_invalid_layouts_are_refused(toy, tmp_path, fields, words):
  with pytest.raises(UserError, match=words):
    parallel.make_layout(**fields)
  config = toy.config()
  config.parallel.update(fields)
  with pytest.raises(UserError, match=words):
    trainer.train(toy.framework(), config, tmp_path / "run", toy.data(), toy.data(8))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "multiple"), [({"batch_size": 12}, 8), ({"accumulate": 3}, 24)]
)
def test_batches_that_do_not_split_are_refused(toy, tmp_path, changes, multiple):
  framework = toy.framework(**changes)
  with pytest.raises(UserError, match=f"multiple of {multiple}"):
    trainer.train(framework, toy.config(), tmp_path / "run", toy.data(), toy.data(8))
  assert not (tmp_path / "run").exists()


def test_large_arrays_are_split_and_small_ones_copied(toy):
  layout = make_layout("both")
  stage, frozen, examples = toy_stage(toy)
  step, (state, *rest) = prepare(stage, frozen, examples, layout)
  for _ in range(2):
    for tree in (state.params, state.ema):
      assert tree["first"]["w"].addressable_data(0).shape == (4, 8)
      assert tree["first"]["b"].addressable_data(0).shape == (8,)
    old, (state, meter) = state, step(state, *rest)
    rest[0] = meter
    # The old state is overwritten in place.
    assert all(x.is_deleted() for x in jax.tree.leaves((old.params, old.ema)))
  step, (state, meter, *rest) = prepare(stage, frozen, examples, make_layout("pmap"))
  step(state, meter, *rest)
  assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.ema)))


# --- the same run on all layouts


def test_layouts_train_alike(toy):
  check_alike(*toy_stage(toy), LAYOUTS, pieces=("data", "shard", "pmap"))


def test_rows_are_compared_with_those_of_other_devices(toy):
  def loss(trained, frozen, key, batch):
    del frozen, key
    x = batch["image"].reshape(-1, 16) @ trained["first"]["w"] + trained["first"]["b"]
    x = parallel.all_rows(x)
    return jnp.mean(jax.nn.logsumexp(x @ x.T, axis=1)), {}

  check_alike(*toy_stage(toy, loss), ("data", "pmap"))


FRAMEWORKS = {
  "mld": ("autoencoder_a", "score"),
  "mt_diffusion": ("mt_diffusion",),
  "mcdm": ("mcdm",),
  "codi": ("bridging_digit", "diffusion_digit", "alignment_digit"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "pieces"),
  [
    ("mld", ("data", "pmap")),
    ("mt_diffusion", ("pmap",)),
    ("mcdm", ("pmap",)),
    # InfoNCE only compares the rows of a piece.
    ("codi", ()),
  ],
)
def test_layouts_train_a_framework_alike(name, pieces):
  for stage, frozen, examples in make_stages(name, FRAMEWORKS[name]):
    check_alike(stage, frozen, examples, LAYOUTS, pieces=pieces)


# --- communication


def collectives(stage, frozen, examples, layout):
  """Returns the sizes that a compiled step communicates, by kind, and the sizes of parameters."""
  step, args = prepare(stage, frozen, examples, layout)
  sizes = communicated(step.lower(*args).compile().as_text())
  return sizes, [x.size for x in jax.tree.leaves(args[0].params)]


def communicated(text):
  """Returns the size of each collective of a compiled program, in numbers, by kind."""
  by_kind = collections.defaultdict(list)
  kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
  for shapes, kind in re.findall(rf"= (\S.*?) ({kinds})(?:-start)?\(", text):
    for sizes in re.findall(r"\w+\[([\d,]*)\]", shapes):
      by_kind[kind].append(math.prod(int(n) for n in sizes.split(",") if n))
  return {kind: sorted(sizes) for kind, sizes in by_kind.items()}


def mean_loss(trained, frozen, key, batch, *, normalise=None):
  del frozen
  x = batch["image"].reshape(-1, 16)
  x = x + 0.1 * jax.random.normal(key, x.shape)
  x = x @ trained["first"]["w"] + trained["first"]["b"]
  if normalise == "batch norm":
    x = (x - x.mean(axis=0)) / jnp.sqrt(x.var(axis=0) + 1e-3)
  value = jnp.mean((x - batch["sound"].reshape(x.shape)) ** 2)
  if normalise == "sum of weights":
    value /= jnp.mean(batch["image"][:, 0, 0, 0])
  return value, {}


@pytest.mark.parametrize("name", ["data", "pmap"])
def test_data_parallel_communicates_gradients_and_metrics_only(toy, name):
  communication, sizes = collectives(*toy_stage(toy, mean_loss), make_layout(name))
  assert communication == {"all-reduce": sorted([*sizes, 1])}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data", "pmap"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_framework_communicates_gradients_and_a_few_numbers(name, layout):
  """The numbers are the loss, its parts, counts, and the embeddings of rows that are compared.

  A bias whose gradient is always 0 may be left out. Environment encoders are applied twice, and
  `jit` sums the gradients of each application.
  """
  for stage, frozen, examples in make_stages(name, FRAMEWORKS[name]):
    communication, sizes = collectives(stage, frozen, examples, make_layout(layout))
    compares = stage.name.startswith(("bridging", "alignment"))
    embeddings = 2 * ROWS * 6 if compares else 0
    twice = sum(sizes) if layout == "data" and stage.name.startswith("alignment") else 0
    more = sum(communication.pop("all-reduce")) - sum(sizes)
    assert -20 < more < 20 + embeddings + twice, stage.name
    assert sum(map(sum, communication.values())) <= 2 * embeddings, stage.name


@pytest.mark.parametrize("normalise", ["batch norm", "sum of weights"])
def test_further_communication_of_a_loss_is_detected(toy, normalise):
  loss = functools.partial(mean_loss, normalise=normalise)
  communication, sizes = collectives(*toy_stage(toy, loss), make_layout("data"))
  assert sum(communication["all-reduce"]) > sum(sizes) + 1


@pytest.mark.parametrize("name", ["shard", "both"])
def test_fully_sharded_gathers_parameters_and_scatters_gradients(toy, name):
  communication, sizes = collectives(*toy_stage(toy, mean_loss), make_layout(name))
  small, large = sorted(sizes)
  shard = [large // 4] if name == "both" else []
  assert communication.pop("all-gather") == [large]
  # On a CPU a reduce-scatter is a sum over all devices, of which each keeps its part; with two
  # axes, a second one adds up the parts.
  reduced = communication.pop("all-reduce")
  assert [n for n in reduced if n > 1] == [small, *shard, large]
  # The loss, and the norms of the gradient for the metrics and for clipping.
  assert reduced.count(1) <= 3
  assert not communication


# --- checkpoints


@pytest.mark.slow
def test_checkpoints_move_between_layouts(toy, tmp_path):
  """Each run resumes where another layout stopped, and the end equals that of a single layout."""
  framework = toy.only_first(toy.framework(steps=8, batch_size=16, learning_rate=0.02))
  data = toy.data(64)

  class StoppedError(Exception):
    pass

  def run(workdir, stop_at=None, **fields):
    def report(*_):
      if stop_at:
        raise StoppedError
      return {}

    (stage,) = framework.stages
    one = dataclasses.replace(framework, stages=(dataclasses.replace(stage, report=report),))
    config = toy.config()
    config.monitor.update({"log_every": 1, "checkpoint_every": 2, "report_every": stop_at or 100})
    config.parallel.update(fields)
    if not stop_at:
      return trainer.train(one, config, workdir, data, toy.data(8))
    with pytest.raises(StoppedError):
      trainer.train(one, config, workdir, data, toy.data(8))
    return None

  run(tmp_path / "one", mesh=(8, 1))
  run(tmp_path / "many", stop_at=2, mesh=(8, 1))
  run(tmp_path / "many", stop_at=4, mesh=(2, 4))
  run(tmp_path / "many", stop_at=6, mesh=(1, 8))
  run(tmp_path / "many", kind="pmap")
  params = [checkpoints.load_params(framework, tmp_path / name) for name in ("one", "many")]
  for x, y in zip(*map(jax.tree.leaves, params), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  losses = [[row["loss"] for row in toy.rows(tmp_path / name)] for name in ("one", "many")]
  np.testing.assert_allclose(*losses, rtol=1e-4)


# --- sampling


def check_samples_alike(framework, params, sampling, data, given, targets, num, *, kind="jit"):
  """Checks that `generation.generator` returns the same on eight devices as on one."""
  config = ml_collections.ConfigDict({"parallel": {"kind": kind}})
  run = generation.Trained(config, framework, params, sampling, True)
  rows = {name: data[name][:num] for name in given}

  def generate():
    generator = generation.generator(run, data, given, targets, num)
    return generator.generate(jax.random.key(7), rows)

  samples = generate()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, "make_layout", lambda _: make_layout("one"))
    expected = generate()
  for name in targets:
    assert len(samples[name]) == num
    assert len(np.unique(samples[name].reshape(num, -1), axis=0)) == num
    np.testing.assert_allclose(samples[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_sampling_uses_all_devices_and_equals_that_on_one(toy, monkeypatch, kind):
  """Two parts of 7 rows, padded to 8; of the last part 6 are wanted."""
  monkeypatch.setattr(generation, "_ROWS", 7)
  devices = []

  def sample(params, key, given, targets, num, sampling):
    del targets, sampling
    noise = noise_lib.normal_like(key, "sound", jnp.zeros((num, 2, 4)))
    x = given["image"].reshape(num, 16) @ params["w"]
    if kind == "jit":
      jax.debug.inspect_array_sharding(
        x, callback=lambda sharding: devices.append(sharding.shard_shape(x.shape)[0])
      )
    else:
      devices.append(num)
    return {"sound": x.reshape(num, 2, 4) + noise}

  framework = dataclasses.replace(toy.framework(), sample=sample)
  params = {"w": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)}
  sampling = base.SamplerConfig(solvers.heun, 1)
  task = ("image",), ("sound",), 13
  check_samples_alike(framework, params, sampling, toy.data(), *task, kind=kind)
  assert devices == [1, 7]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_mld_samples_alike(kind):
  framework, data = make_framework("mld")
  params = {}
  for stage in framework.stages:
    constants, examples = stage.prepare(params, data)
    params |= constants
    batch = {n: x[:ROWS] for n, x in examples.items()}
    params |= jax.jit(stage.init)(jax.random.key(1), params, batch)
  rng = np.random.default_rng(0)
  # The last layer starts at zero.
  params["score"] = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params["score"]
  )
  sampling = base.SamplerConfig(solvers.dpmpp_2m, 4, guidance=2.0)
  for given, targets in (((), ("a", "b")), (("b",), ("a",))):
    check_samples_alike(framework, params, sampling, data, given, targets, 13, kind=kind)
