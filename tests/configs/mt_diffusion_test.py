import collections
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mt_diffusion
from experiments import setup
from mmdiff_jax import parallel
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import state as state_lib, step as step_lib


@pytest.mark.parametrize("name", mt_diffusion._PRESETS)
def test_every_preset_builds_and_its_network_runs(name):
  config = mt_diffusion.get_config(name)
  framework = setup.build(config)
  assert [m.name for m in framework.modalities] == list(config.modalities)
  (stage,) = framework.stages
  batch = {
    m.name: jnp.zeros((2, *m.shape), jnp.int32 if m.num_classes else jnp.float32)
    for m in framework.modalities
  }
  if config.augment.modality:
    batch[config.augment.modality] = batch[config.main]
  params = jax.eval_shape(lambda key: stage.init(key, {}, batch), jax.random.key(0))
  loss, metrics = jax.eval_shape(stage.loss, params, {}, jax.random.key(0), batch)
  assert loss.shape == ()
  heads = framework.modalities if config.heads else ()
  assert set(metrics) == {"loss_eps", *(f"loss_{m.name}" for m in heads)}


def test_unknown_names_are_refused_with_the_valid_ones():
  with pytest.raises(UserError, match="label_digits"):
    mt_diffusion.get_config("none")


@functools.cache
def _imagenet64():
  """Returns the preset's only stage, and the shapes of two examples and of its parameters."""
  (stage,) = setup.build(mt_diffusion.get_config("imagenet64")).stages
  batch = {
    "image": jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
    "label": jax.ShapeDtypeStruct((2,), jnp.int32),
  }
  params = jax.eval_shape(lambda key, batch: stage.init(key, {}, batch), jax.random.key(0), batch)
  return stage, batch, params


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_imagenet64_is_the_published_network_plus_the_parts_for_the_label():
  stage, batch, params = _imagenet64()
  # The features and a head for noise (unet_test.py derives it from the published number).
  published = 295_092_675
  # Values and flags of what is given: the image's enter the first convolution, of 3 x 3, and the
  # label's the blocks, together with the time.
  informed = (3 + 1) * 9 * 192 + (1000 + 1) * 768
  encoder = 1000 * 64 * 64 * 3
  image_head = 2 * 192 + 3 * (9 * 192 + 1)
  label_head = 2 * 768 + 1000 * (192 + 768 + 1)
  assert _count(params) == published + informed + encoder + image_head + label_head == 309_124_462
  # In float32, with EMA, two moments and gradient: 6.2 GB before any activation.
  state = jax.eval_shape(lambda p: state_lib.create(p, state_lib.optimizer(stage.settings)), params)
  resident = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, params)))
  assert resident == pytest.approx(5 * 4 * _count(params), abs=100)
  assert resident < 6.2e9


@pytest.mark.slow
def test_imagenet64_computes_in_bfloat16_and_recomputes_its_blocks():
  stage, batch, params = _imagenet64()
  loss = jax.make_jaxpr(lambda p, batch: stage.loss(p, {}, jax.random.key(0), batch))
  program = str(loss(params, batch))
  blocks, attention, heads = 12 + 3 + 2 + 16 + 3, 9 + 1 + 12, 2
  types = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", program)
  assert collections.Counter(types) == {"bf16": 1 + 2 * blocks, "f32": heads}
  assert len(re.findall(r" = (?:remat|checkpoint)", program)) == blocks + attention


@pytest.mark.slow
def test_imagenet64_takes_a_step():
  """Runs the trainer's step at full size: 12 GB, and minutes on a CPU."""
  stage, shapes, _ = _imagenet64()
  stage = dataclasses.replace(stage, settings=dataclasses.replace(stage.settings, batch_size=2))
  layout, tx = parallel.make_layout(), state_lib.optimizer(stage.settings)
  image = np.random.default_rng(0).uniform(size=shapes["image"].shape).astype(np.float32)
  batch = {"image": image, "label": np.array([3, 999], np.int32)}

  def drawn(key):
    params = stage.init(key, {}, batch)
    # Layers that start at zero would block the gradient of all layers before them.
    return jax.tree.map(lambda p: p + 0.02 * jax.random.normal(key, p.shape) * ~jnp.any(p), params)

  state = jax.jit(lambda key: state_lib.create(drawn(key), tx))(jax.random.key(0))
  names, step = step_lib.make_train_step(stage, tx, layout, state.params, {}, batch)
  # With this key the network is given the label of one of the two examples, and no images.
  args = (state, step_lib.new_meter(layout, names), {}, jax.random.key(2), batch)
  compiled = step.lower(*args).compile()
  # Temporary memory beside the state, which is overwritten: gradients, and activations of 2 images.
  assert compiled.memory_analysis().temp_size_in_bytes < 5e9
  state, meter = compiled(*args)
  assert int(meter.bad_step) == -1
  metrics = dict(zip(names, np.asarray(meter.totals).tolist(), strict=True))
  # An untrained network predicts little of the noise and nothing of the label. The label counts
  # where it is not given, which is in one of the two examples; 3 of 4 are expected.
  assert 0.5 < metrics["loss_eps"] < 5
  assert metrics["loss_label"] == pytest.approx(math.log(1000) * (1 / 2) / (3 / 4), rel=0.2)
  # The EMA is a tenth of the step behind.
  moved = jax.tree.map(lambda p, mean: jnp.any(p != mean), state.params, state.ema)
  still = [path for path, did in jax.tree_util.tree_leaves_with_path(moved) if not did]
  assert not still
