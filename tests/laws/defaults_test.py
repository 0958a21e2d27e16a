"""Samples by each framework's own defaults have the law of the data, where the network is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mld as mld_config
from mmdiff_jax import modalities as modalities_lib
from mmdiff_jax.frameworks import base, mld

CORRELATION = 0.8


class Latent:
  """An autoencoder that does nothing."""

  latent = 1

  def apply(self, params, x, method):
    del params, method
    return x


PAIR = tuple(modalities_lib.Modality(name, "vector", (1,), str) for name in "ab")
CODECS = {name: Latent() for name in "ab"}
PARAMS = {
  "score": None,
  "autoencoder_a": None,
  "autoencoder_b": None,
  "statistics": {name: {"mean": 0.0, "std": 1.0} for name in "ab"},
}


class Exact:
  """Predicts v of a Gaussian pair at any two times."""

  def __init__(self, schedule):
    self.schedule = schedule

  def apply(self, params, x, t):
    del params
    alpha, sigma = ({n: f(t[n]) for n in "ab"} for f in (self.schedule.alpha, self.schedule.sigma))
    # Unit variances stay so on a schedule that preserves variance.
    noisy = CORRELATION * alpha["a"] * alpha["b"]
    v = {}
    for name, other in ("ab", "ba"):
      whitened = {n: (x[n] - noisy * x[m]) / (1 - noisy**2) for n, m in ("ab", "ba")}
      x0 = alpha[name] * whitened[name] + CORRELATION * alpha[other] * whitened[other]
      v[name] = sigma[name] * (alpha[name] * whitened[name] - x0)
    return v


@pytest.mark.parametrize("variant", ["masked", "inpaint"])
def test_a_given_modality_acts_as_it_must(variant, monkeypatch):
  """Without resampling the slope is .34 by a solver of the ODE, and .50 by one of the SDE."""
  config = mld_config.get_config("digits")
  config.variant, config.sampling.guidance, config.sampling.order = variant, 1.0, ()
  monkeypatch.setattr(mld, "score_network", lambda config: Exact(mld.schedule_of(config)))
  num = 2000
  b = jnp.asarray(np.random.default_rng(0).normal(size=(num, 1)), jnp.float32)

  @jax.jit
  def run(b):
    return mld.sample(
      config, PAIR, CODECS, PARAMS, jax.random.key(0), {"b": b}, ("a",), num,
      base.sampling_of(config),
    )["a"]  # fmt: skip

  a = np.asarray(run(b))
  slope = float((a * b).mean() / (b * b).mean())
  assert slope == pytest.approx(CORRELATION, rel=0.1)
  assert np.var(a - slope * b) == pytest.approx(1 - CORRELATION**2, rel=0.15)
