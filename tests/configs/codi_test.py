import jax
import jax.numpy as jnp
import pytest

from configs import codi
from experiments import setup
from mmdiff_jax.errors import UserError


@pytest.mark.parametrize(("name", "of"), [("digits", "mnist"), ("digits_long", "digits")])
def test_every_stage_builds_and_its_networks_run(name, of):
  config = codi.get_config(name)
  config.data.of = of
  framework = setup.build(config)
  assert [m.name for m in framework.modalities] == list(config.modalities)
  names = [stage.name for stage in framework.stages]
  assert len(names) == 4 + 3 + 4 + 3
  frozen = {}
  for stage in framework.stages:
    assert set(stage.needs) < set(names)
    if stage.name.startswith(("autoencoder", "bridging")):
      batch = {
        m.name: jnp.zeros((2, *m.shape), jnp.int32 if m.num_classes else jnp.float32)
        for m in framework.modalities
      }
      params = jax.eval_shape(stage.init, jax.random.key(0), {}, batch)
      loss, _ = jax.eval_shape(stage.loss, params, frozen, jax.random.key(0), batch)
      assert loss.shape == ()
      frozen |= params


def test_unknown_names_are_refused_with_the_valid_ones():
  with pytest.raises(UserError, match="digits"):
    codi.get_config("none")
