"""Every framework's diffusion network computes in bfloat16 where its config says so.

Parameters, running mean, moments, gradients and losses stay float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import codi, mcdm, mld, mt_diffusion
from experiments import benchmark_train, setup
from mmdiff_jax import parallel
from mmdiff_jax.training import state as state_lib, step as step_lib


def of_mld(dtype, kind="towers"):
  config = mld.get_config("digits")
  config.modalities = ("tone", "caption")
  config.score.network.update({"kind": kind, "width": 32, "tower_width": 32, "dtype": dtype})
  return config, ["score"]


def of_mt_diffusion(dtype):
  config = mt_diffusion.get_config("label_digits")
  config.network.update({"width": 16, "head_channels": 16, "dtype": dtype})
  return config, ["mt_diffusion"]


def of_mcdm(dtype):
  config = mcdm.get_config("text")
  config.network.update({"width": 16, "head_channels": 16, "text_width": 8, "dtype": dtype})
  return config, ["mcdm"]


def of_codi(dtype):
  config = codi.get_config("digits")
  config.data.of = "digits"
  config.modalities = ("caption", "video")
  config.alignment.links = (("caption", "video"),)
  for network in (config.diffusion.network, config.alignment.environment):
    network.update({"width": 32, "dtype": dtype})
  config.diffusion.network.depth = 1
  return config, ["diffusion_video", "alignment_video"]


FRAMEWORKS = {
  "mld": of_mld,
  "mld_published": lambda dtype: of_mld(dtype, "published"),
  "mt_diffusion": of_mt_diffusion,
  "mcdm": of_mcdm,
  "codi": of_codi,
}


def dtypes(tree):
  return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def products(stage, *args):
  """The types of matrix products and convolutions of a stage's loss, with how many there are."""
  counts = {}

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name in ("dot_general", "conv_general_dilated"):
        dtype = str(equation.outvars[0].aval.dtype)
        counts[dtype] = counts.get(dtype, 0) + 1
      for inner in jax.core.jaxprs_in_params(equation.params):
        visit(inner)

  visit(jax.make_jaxpr(stage.loss)(*args).jaxpr)
  return counts


def stages(name):
  """The stages of `name` that have the network, in bfloat16 and in float32, and what they take."""
  (rough, wanted), (exact, _) = (FRAMEWORKS[name](dtype) for dtype in ("bfloat16", None))
  rough, exact = (setup.build(config) for config in (rough, exact))
  rough_stages = {stage.name: stage for stage in rough.stages}
  data = benchmark_train._random_inputs(exact.modalities, 16)
  for stage, frozen, examples in benchmark_train.each_stage(exact, data):
    if stage.name in wanted:
      yield rough_stages[stage.name], stage, frozen, examples
    if stage.name == wanted[-1]:
      return


@pytest.mark.parametrize(
  "name", [*list(FRAMEWORKS)[:-1], pytest.param("codi", marks=pytest.mark.slow)]
)
def test_computes_in_bfloat16_and_trains_float32(name):
  key, layout = jax.random.key(0), parallel.make_layout()
  for rough, exact, frozen, examples in stages(name):
    tx = state_lib.optimizer(rough.settings)
    state, _ = step_lib.initial_state(rough, tx, layout, key, frozen, examples)
    args = (state.params, frozen, key, examples)
    assert set(products(exact, *args)) == {"float32"}
    # The heads of images, the encoders of texts and labels, and contrasts are float32.
    found = products(rough, *args)
    assert found["bfloat16"] > 3 * found.get("float32", 0)
    gradients, metrics = jax.eval_shape(jax.grad(rough.loss, has_aux=True), *args)
    step = functools.partial(state_lib.apply_gradients, tx=tx, ema_decay=0.9)
    updated = jax.eval_shape(step, state, gradients)
    assert dtypes((metrics, gradients, state, updated)) == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_loss_is_that_of_float32_but_for_rounding(name):
  key, rng = jax.random.key(0), np.random.default_rng(0)
  for rough, exact, frozen, examples in stages(name):
    # Layers that start at zero would keep all that is before them from the loss.
    params = jax.tree.map(
      lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32),
      jax.jit(exact.init)(key, frozen, examples),
    )
    found, expected = (
      float(jax.jit(stage.loss)(params, frozen, key, examples)[0]) for stage in (rough, exact)
    )
    assert found == pytest.approx(expected, rel=0.03)
    assert found != expected
