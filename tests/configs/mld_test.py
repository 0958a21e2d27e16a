import jax
import jax.numpy as jnp
import pytest

from configs import mld
from experiments import setup
from mmdiff_jax.errors import UserError


def test_long_differs_in_length_alone():
  short, long = mld.get_config("digits").to_dict(), mld.get_config("digits_long").to_dict()
  assert long["score"]["training"]["steps"] > short["score"]["training"]["steps"]
  for tree in (short, long):
    del tree["evaluation"]["num"]
    for part in (tree["score"], *tree["autoencoder"].values()):
      del part["training"]
  assert short == long


@pytest.mark.parametrize("name", mld._PRESETS)
def test_every_preset_builds(name):
  config = mld.get_config(name)
  framework = setup.build(config)
  assert [m.name for m in framework.modalities] == list(config.modalities)
  assert set(config.autoencoder) == set(config.modalities)


def test_unknown_names_are_refused_with_the_valid_ones():
  with pytest.raises(UserError, match="digits_long"):
    mld.get_config("none")


def test_preset_of_the_paper_has_the_published_sizes():
  config = mld.get_config("mnist_svhn")
  score = setup.build(config).stages[-1]
  latents = {name: jnp.zeros((2, config.autoencoder[name].latent)) for name in config.modalities}
  assert {name: z.shape[1] for name, z in latents.items()} == {"mnist": 16, "svhn": 64}
  params = jax.eval_shape(lambda: score.init(jax.random.key(0), {}, latents))
  assert sum(x.size for x in jax.tree.leaves(params)) == 8_176_720
  assert score.settings.steps == 1_322_760


def test_sizes_of_columns_can_be_set():
  config = mld.get_config("folder")
  config.data.columns.image.size = (32, 48)
  image, _ = setup.modalities(config)
  assert image.shape == (32, 48, 3)
