import itertools

import jax
import jax.numpy as jnp
import pytest

from configs import mcdm
from experiments import setup
from mmdiff_jax.errors import UserError

DIGITS = list(mcdm._EXPERTS)
FACES = [f"faces_{name}" for name in DIGITS if name != "label"]


@pytest.mark.parametrize("name", [*DIGITS, *FACES])
def test_every_expert_builds_and_its_network_runs(name):
  config = mcdm.get_config(name)
  framework = setup.build(config)
  assert [m.name for m in framework.modalities] == list(config.modalities)
  (stage,) = framework.stages
  batch = {
    m.name: jnp.zeros((2, *m.shape), jnp.int32 if m.num_classes else jnp.float32)
    for m in framework.modalities
  }
  params = jax.eval_shape(lambda key: stage.init(key, {}, batch), jax.random.key(0))
  loss, metrics = jax.eval_shape(stage.loss, params, {}, jax.random.key(0), batch)
  assert loss.shape == ()
  assert metrics == {}


def test_experts_with_a_condition_have_no_examples_in_common():
  parts = [mcdm.get_config(name).data.part for name in mcdm._CONDITIONS]
  spans = sorted((i / n, (i + 1) / n) for i, n in parts)
  assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
  assert mcdm.get_config("unconditional").data.part == (0, 1)


def test_unknown_names_are_refused_with_the_valid_ones():
  for name in ("none", "faces_label"):
    with pytest.raises(UserError, match="sketch, mask, text.*faces_sketch"):
      mcdm.get_config(name)
