import pytest

from configs import mld


def test_long_is_longer_and_nothing_else():
  short, long = mld.get_config("digits").to_dict(), mld.get_config("digits_long").to_dict()
  assert long["score"]["training"]["steps"] > short["score"]["training"]["steps"]
  for tree in (short, long):
    del tree["evaluation"]["num"]
    for part in (tree["score"], *tree["autoencoder"].values()):
      del part["training"]
  assert short == long


def test_unknown_name_is_said():
  with pytest.raises(ValueError, match="digits_long"):
    mld.get_config("none")
