import json

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
  with pytest.raises(UserError, match=r"no modality 'smell'.*; it has: digit"):
    setup.modalities(config(modalities=("digit", "smell")))
  with pytest.raises(UserError, match=r"no modality ''"):
    setup.modalities(config(modalities=("digit", "")))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("sampling.order", (("caption",), ("tome",))),
    ("evaluation.subsets", (("digit", "tome"),)),
    ("evaluation.tasks", ((("digit",), ("scene", "tome")),)),
    ("alignment.links", (("digit", "tome"),)),
    ("bridging.bridge", "tome"),
    ("bridging.use", {"tome": None}),
    ("sampling.weights", {"tome": 1.0}),
    ("main", "tome"),
    ("augment.modality", "tome"),
  ],
)
def test_names_that_the_data_set_does_not_have(field, value):
  """Those that it has and the run has not are no error."""

  def tree(value):
    for part in reversed(field.split(".")):
      value = {part: value}
    return config(modalities=("digit",), **value)

  with pytest.raises(
    UserError, match=rf"'digits' has no modality 'tome' \(config\.{field}\).*'tone'"
  ):
    setup.modalities(tree(value))
  right = json.loads(json.dumps(value).replace("tome", "tone"))
  assert len(setup.modalities(tree(right))) == 1
  with pytest.raises(UserError, match=rf"config\.{field} is 3; it must be"):
    setup.modalities(tree(3))
