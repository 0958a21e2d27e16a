import pytest

from configs import mld
from experiments import setup


def test_long_is_longer_and_nothing_else():
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


def test_unknown_name_is_said():
  with pytest.raises(ValueError, match="digits_long"):
    mld.get_config("none")
