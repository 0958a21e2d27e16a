import ml_collections
import pytest

from experiments import setup
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError


def config(**fields):
  return ml_collections.ConfigDict({"framework": "mld", "data": {"name": "digits"}, **fields})


def test_unknown_framework():
  with pytest.raises(UserError, match="'mdl'.*mld"):
    setup.build(config(framework="mdl", modalities=()))


def test_modalities_come_in_the_config_s_order():
  names = [modality.name for modality in datasets.modalities("digits")][:2]
  found = setup.modalities(config(modalities=tuple(reversed(names))))
  assert [modality.name for modality in found] == names[::-1]


def test_unknown_modality():
  with pytest.raises(UserError, match=r"no modality 'smell'.* It has: digit"):
    setup.modalities(config(modalities=("digit", "smell")))
