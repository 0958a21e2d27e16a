import jax
import jax.numpy as jnp
import pytest

from configs import mt_diffusion
from experiments import setup


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
  params = jax.eval_shape(lambda key: stage.init(key, {}, batch), jax.random.key(0))
  found, metrics = jax.eval_shape(stage.loss, params, {}, jax.random.key(0), batch)
  assert found.shape == ()
  assert set(metrics) == {"loss_eps", *(f"loss_{m.name}" for m in framework.modalities)}


def test_unknown_name_is_said():
  with pytest.raises(ValueError, match="label_digits"):
    mt_diffusion.get_config("none")
