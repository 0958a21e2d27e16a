"""A fifth framework is two files: its package in `frameworks`, and its config."""

import sys

import jax
import numpy as np
import pytest

from configs import common
from experiments import setup
from mmdiff_jax import frameworks
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base
from mmdiff_jax.training import trainer

# It generates the mean of each modality's training examples.
TOY = """
import jax
import jax.numpy as jnp

from mmdiff_jax.frameworks import base


def build(config, modalities):
  names = [modality.name for modality in modalities]

  def init(key, frozen, batch):
    return {"means": {name: jnp.zeros(batch[name].shape[1:]) for name in names}}

  def loss(trained, frozen, key, batch):
    errors = [jnp.mean((batch[name] - trained["means"][name]) ** 2) for name in names]
    return sum(errors), {}

  def sample(params, key, given, targets, num, sampler):
    return {n: jnp.broadcast_to(m, (num, *m.shape)) for n, m in params["means"].items()}

  stage = base.Stage(
    "means", ("means",), base.make_train_config(config.training, "training."),
    lambda frozen, data: ({}, {name: data[name] for name in names}), init, loss,
    lambda params, key, data: {"data": {name: data[name] for name in names}},
  )
  return base.Framework(
    tuple(modalities), (stage,), sample, lambda params, data: data, lambda *_: 0
  )
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
  package = tmp_path / "frameworks" / "toy"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text(TOY)
  monkeypatch.setattr(frameworks, "__path__", [*frameworks.__path__, str(package.parent)])
  yield
  sys.modules.pop("mmdiff_jax.frameworks.toy", None)


def config_of(framework):
  config = common.defaults(framework)
  config.data.name, config.modalities = "digits", ("digit",)
  config.training = {"steps": 300, "batch_size": 8, "learning_rate": 0.1, "warmup": 0, "ema": 0.9}
  config.sampling = {"solver": "ddim", "steps": 1, "guidance": 1.0, "order": ()}
  return config


def test_a_new_package_is_a_framework(toy, tmp_path):
  config = config_of("toy")
  framework = setup.build(config)
  (digit,) = datasets.modalities("digits")[:1]
  x = np.random.default_rng(0).random((64, *digit.shape), np.float32)
  params = trainer.train(framework, config, tmp_path / "run", {"digit": x}, {"digit": x})
  sampler = base.make_sampler_config(config)
  samples = framework.sample(params, jax.random.key(0), {}, ("digit",), 3, sampler)
  np.testing.assert_allclose(
    samples["digit"], np.broadcast_to(x.mean(0), samples["digit"].shape), atol=0.1
  )


def test_unknown_frameworks_are_refused_with_the_valid_ones():
  with pytest.raises(UserError, match="named 'none'.*codi, mcdm, mld, mt_diffusion"):
    setup.build(config_of("none"))
