"""Samples by each framework's own defaults have the law of the data, where the network is exact."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import (
  codi as codi_config,
  mcdm as mcdm_config,
  mld as mld_config,
  mt_diffusion as mt_diffusion_config,
)
from mmdiff_jax import modalities as modalities_lib, multitime, solvers
from mmdiff_jax.frameworks import base
from mmdiff_jax.frameworks.codi import model as codi_model, sampling as codi_sampling
from mmdiff_jax.frameworks.mcdm import model as mcdm_model, sampling as mcdm_sampling
from mmdiff_jax.frameworks.mld import model as mld_model, sampling as mld_sampling
from mmdiff_jax.frameworks.mt_diffusion import (
  model as mt_diffusion_model,
  sampling as mt_diffusion_sampling,
)
from tests.laws import gaussian

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
    # Unit variances remain 1 on a schedule that preserves variance.
    noisy = CORRELATION * alpha["a"] * alpha["b"]
    v = {}
    for name, other in ("ab", "ba"):
      whitened = {n: (x[n] - noisy * x[m]) / (1 - noisy**2) for n, m in ("ab", "ba")}
      x0 = alpha[name] * whitened[name] + CORRELATION * alpha[other] * whitened[other]
      v[name] = sigma[name] * (alpha[name] * whitened[name] - x0)
    return v


def exact_mld(config):
  """MLD of a pair whose latents are the data, with an exact network."""
  model = mld_model.make_model(config, ())
  network = Exact(model.schedule)
  return dataclasses.replace(model, modalities=PAIR, codecs=CODECS, network=network)


@pytest.mark.parametrize("variant", ["masked", "inpaint"])
def test_a_given_modality_has_its_effect(variant):
  """Without resampling the slope is .34 by a solver of the ODE, and .50 by one of the SDE."""
  config = mld_config.get_config("digits")
  config.variant, config.sampling.guidance, config.sampling.order = variant, 1.0, ()
  model = exact_mld(config)
  num = 2000
  b = jnp.asarray(np.random.default_rng(0).normal(size=(num, 1)), jnp.float32)

  @jax.jit
  def run(b):
    out = mld_sampling.sample(
      model, PARAMS, jax.random.key(0), {"b": b}, ("a",), num, model.sampler
    )
    return out["a"]

  a = np.asarray(run(b))
  slope = float((a * b).mean() / (b * b).mean())
  assert slope == pytest.approx(CORRELATION, rel=0.1)
  assert np.var(a - slope * b) == pytest.approx(1 - CORRELATION**2, rel=0.15)


IMAGE = modalities_lib.Modality("image", "image", (1, 1, 1), str)
KEY = jax.random.key(0)


def sample_mld(config, sampling, monkeypatch):
  del monkeypatch
  return mld_sampling.sample(exact_mld(config), PARAMS, KEY, {}, ("a", "b"), 2, sampling)


def sample_codi(config, sampling, monkeypatch):
  monkeypatch.setattr(codi_sampling, "decode", lambda model, params, name, z: z)
  digit = modalities_lib.Modality("digit", "image", (4, 4, 1), str)
  caption = modalities_lib.Modality("caption", "text", (4,), str, num_classes=3)
  config.modalities, config.alignment.links = ("caption", "digit"), (("caption", "digit"),)
  model = codi_model.make_model(config, (caption, digit))
  model = dataclasses.replace(model, shapes={"digit": (1, 1, 1)})
  return codi_sampling.sample(model, {}, KEY, {}, ("digit",), 2, sampling)


def sample_mt_diffusion(config, sampling, monkeypatch):
  del monkeypatch
  config.main, config.modalities, config.heads = "image", ("image",), False
  config.parts = {"image": {"encoder": "identity", "omega": 1.0, "weight": 1.0}}
  network = types.SimpleNamespace(
    apply=lambda params, z, *args, method=None: z if method else (z, {})
  )
  model = dataclasses.replace(mt_diffusion_model.make_model(config, (IMAGE,)), network=network)
  return mt_diffusion_sampling.sample(model, {"network": None}, KEY, {}, ("image",), 2, sampling)


def sample_mcdm(config, sampling, monkeypatch):
  del monkeypatch
  config.main, config.modalities = "image", ("image",)
  expert = mcdm_model.make_expert(config, (IMAGE,))
  params = {"run": {"network": None}}
  return mcdm_sampling.sample({"run": expert}, params, KEY, {}, {"run": 1.0}, (), 2, sampling)


FRAMEWORKS = {
  "mld": (mld_config, mld_config._PRESETS, sample_mld),
  "codi": (codi_config, codi_config._PRESETS, sample_codi),
  "mt_diffusion": (mt_diffusion_config, mt_diffusion_config._PRESETS, sample_mt_diffusion),
  "mcdm": (mcdm_config, mcdm_config._EXPERTS, sample_mcdm),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_default_sampler_keeps_a_gaussian_s_variance(framework, monkeypatch):
  """Whatever solver, steps, grid and schedule each preset has: taken where it calls the solver."""
  configs, presets, sample = FRAMEWORKS[framework]
  calls = {}

  def spy(key, denoiser, schedule, x_init, path, *, solver, project=None):
    assert project is None
    times = np.asarray(next(iter(path.times.values())), np.float64)
    # MT-Diffusion reads means at its last time, as a step to time 0 would.
    times = times if times[-1] == 0 else np.append(times, 0.0)
    calls[schedule, solver, times.tobytes()] = times
    return dict(x_init)

  monkeypatch.setattr(solvers, "sample", spy)
  for preset in presets:
    config = configs.get_config(preset)
    sampling = dataclasses.replace(base.make_sampler_config(config), guidance=1.0, order=())
    sample(config, sampling, monkeypatch)
  monkeypatch.undo()
  variances = np.array([1.0, 0.04, 1.0])
  with jax.enable_x64(True):
    for (schedule, solver, _), times in calls.items():
      path = multitime.Path({name: jnp.asarray(times) for name in gaussian.NAMES})
      got = gaussian.end_covariance(solver, schedule, path, np.diag(variances))
      np.testing.assert_allclose(np.diag(got), variances, rtol=0.05, err_msg=str(schedule)[:80])
