"""Autoencoders of all modalities, each trained on its own as a stage of a framework.

An autoencoder encodes a model input x to a latent z = E(x); its decoder D is robust to a little
noise on z. Frameworks that diffuse latents standardise them by mean and std over the training set.
An autoencoder may be pretrained (`networks.pretrained`): its stage then takes over the parameters,
and its single step, which trains nothing, reports how well a batch is reconstructed.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax import config_checks
from mmdiff_jax.autoencoders.categorical import CategoricalAutoencoder
from mmdiff_jax.autoencoders.frames import FramesAutoencoder
from mmdiff_jax.autoencoders.layered import LayeredAutoencoder
from mmdiff_jax.autoencoders.signal import SignalAutoencoder
from mmdiff_jax.data import missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Batch, make_train_config, Params, Stage, TrainConfig
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks import pretrained

_CHUNK = 4096  # examples encoded at once

_SIZES = {
  "latent": config_checks.SIZE,
  # Decoders of layers have half of it.
  "width": config_checks.integer(2, 2**20),
  "depth": config_checks.DEPTH,
  "noise": config_checks.real(0.0),
  "penalty": config_checks.real(0.0),
  "tokens": config_checks.SIZE,
  "frames": config_checks.FLAG,
  "layers.shape_latent": config_checks.SIZE,
  "layers.grid": config_checks.integer(most=1024),
  "layers.negative": config_checks.FLAG,
  "layers.robust": config_checks.real(1e-6),
}

Autoencoder = (
  CategoricalAutoencoder
  | FramesAutoencoder
  | LayeredAutoencoder
  | SignalAutoencoder
  | pretrained.PretrainedModule
)


def autoencoder(modality: Modality, config: Any) -> Autoencoder:
  """Builds the autoencoder of a modality, sized by `config.autoencoder[name]`.

  Raises:
    UserError: the config has no sizes for it, or invalid ones, or a likelihood that does not suit
      it, or a pretrained one does not fit.
  """
  if modality.name not in config.autoencoder:
    raise UserError(
      f"There is no autoencoder of the modality {modality.name!r}: config.autoencoder has sizes for"
      f" {', '.join(config.autoencoder)}. Add it there or leave it out of config.modalities."
    )
  size = config.autoencoder[modality.name]
  config_checks.check(size, _SIZES, f"autoencoder.{modality.name}.")
  if size.get("frames") and modality.kind != "video":
    raise UserError(
      f"config.autoencoder.{modality.name}.frames is True, and {modality.name!r} is of kind"
      f" {modality.kind}, not a video."
    )
  if size.get("pretrained"):
    frames = bool(size.get("frames"))
    return pretrained.autoencoder(modality, size.pretrained, size.latent, frames=frames)
  suitable = ("categorical",) if modality.num_classes else ("gaussian", "laplace")
  bounded = modality.kind != "vector"
  if bounded and not modality.num_classes:
    suitable += ("bernoulli",)
  if size.likelihood not in suitable:
    raise UserError(
      f"config.autoencoder.{modality.name}.likelihood is {size.likelihood!r}; of a modality of "
      f"kind {modality.kind} it can be {' or '.join(suitable)}."
    )
  if modality.num_classes:
    return CategoricalAutoencoder(
      modality.shape, modality.num_classes, size.latent, size.width, size.depth
    )
  if size.get("frames"):
    frames, *frame = modality.shape
    codec = SignalAutoencoder(tuple(frame), size.latent, size.width, size.depth, size.likelihood)
    return FramesAutoencoder(codec, frames)
  if "layers" in size:
    if size.layers.shape_latent >= size.latent:
      raise UserError(
        f"config.autoencoder.{modality.name}.layers.shape_latent is {size.layers.shape_latent}; it"
        f" must be below config.autoencoder.{modality.name}.latent, {size.latent}, whose rest"
        " encodes the colours."
      )
    return LayeredAutoencoder(
      modality.shape, size.latent, width=size.width, depth=size.depth, **size.layers
    )
  return SignalAutoencoder(
    modality.shape, size.latent, size.width, size.depth, size.likelihood, bounded
  )


def autoencoder_stage(modality: Modality, codec: Autoencoder, config: Any) -> Stage:
  """Makes the stage of one modality: reconstruction through a slightly perturbed latent.

  Args:
    modality: the modality to encode.
    codec: from `autoencoder`; its parameters are the entry `autoencoder_NAME`.
    config: reads `autoencoder[NAME]`.
  """
  name, entry = modality.name, f"autoencoder_{modality.name}"
  size = config.autoencoder[name]
  std, penalty = size.get("noise"), size.get("penalty")
  is_pretrained = isinstance(codec, pretrained.PretrainedModule)

  def prepare(frozen: Params, data: Batch):
    del frozen
    constants = {entry: codec.entry} if is_pretrained else {}
    return constants, {name: missing.complete(select(data, name), [name])[name]}

  def init(key, frozen, batch):
    del frozen
    return {entry: {"params": _init_both(codec, key, batch[name][:2])}}

  def loss(trained, frozen, key, batch):
    del frozen
    x = batch[name]
    z = codec.apply(trained[entry], x, method="encode")
    noisy = z + std * jax.random.normal(key, z.shape)
    reconstruction = jnp.mean(codec.apply(trained[entry], x, noisy, method="loss"))
    # The noise makes nearby latents decode alike; without a pull to 0 the encoder would spread
    # them until the noise does not matter.
    spread = jnp.mean(jnp.sum(z**2, axis=-1))
    return reconstruction + penalty * spread, {f"loss_{name}": reconstruction}

  def error(trained, frozen, key, batch):
    del trained, key
    x = batch[name]
    rebuilt = reconstruct(frozen, x)
    value = jnp.mean(rebuilt != x) if modality.num_classes else jnp.mean((rebuilt - x) ** 2)
    return value, {f"loss_{name}": value}

  @jax.jit
  def reconstruct(params, x):
    z = codec.apply(params[entry], x, method="encode")
    return codec.apply(params[entry], z, method="decode")

  def report(params, key, data):
    del key
    return {
      "data": {name: data[name]},
      "reconstruction": {name: reconstruct({entry: params[entry]}, data[name])},
    }

  if is_pretrained:
    one_step = TrainConfig(1, size.training.batch_size, learning_rate=0.0, warmup=0)
    return Stage(f"autoencoder_{name}", (), one_step, prepare, lambda *_: {}, error, report)
  training = make_train_config(size.training, f"autoencoder.{name}.training.")
  return Stage(f"autoencoder_{name}", (entry,), training, prepare, init, loss, report)


def select(data, name):
  """Returns a modality's examples and its mask, if there is one."""
  return {key: data[key] for key in (name, f"{name}_present") if key in data}


def _init_both(codec, key, x):
  """Initialises both halves: a Flax module creates only the parameters of the called method."""
  encoder, decoder = jax.random.split(key)
  z, params = codec.init_with_output(encoder, x, method="encode")
  other = codec.init(decoder, jnp.zeros_like(z), method="decode")
  merged = traverse_util.flatten_dict(params["params"])
  merged |= traverse_util.flatten_dict(other["params"])
  return traverse_util.unflatten_dict(merged)


def encode(codecs: Mapping[str, Any], params: Params, data: Batch) -> dict[str, np.ndarray]:
  """Returns latents of all examples, before standardisation: {name: [examples, latent]}.

  Args:
    codecs: the autoencoders, by modality.
    params: their entries.
    data: model inputs; modalities without a codec are left out.
  """
  encoders = {
    name: jax.jit(functools.partial(codec.apply, method="encode"))
    for name, codec in codecs.items()
    if name in data
  }
  return {
    name: np.concatenate(
      [
        np.asarray(encoder(params[f"autoencoder_{name}"], data[name][i : i + _CHUNK]))
        for i in range(0, len(data[name]), _CHUNK)
      ]
    )
    for name, encoder in encoders.items()
  }


def reconstruct(codecs: Mapping[str, Any], params: Params, data: Batch) -> dict[str, np.ndarray]:
  """Encodes and decodes each modality; arguments as `encode`."""
  latents = encode(codecs, params, data)
  return {
    name: np.asarray(_decoder(codecs[name])(params[f"autoencoder_{name}"], z))
    for name, z in latents.items()
  }


@functools.cache
def _decoder(codec):
  return jax.jit(functools.partial(codec.apply, method="decode"))


def statistics(latents: Batch) -> dict[str, dict[str, np.ndarray]]:
  """Returns mean and std of each latent's components over all examples.

  The score stage adds `share`, the fraction of examples that have the modality, where some lack it.
  """
  return {
    name: {
      "mean": z.mean(axis=0, dtype=np.float64).astype(np.float32),
      "std": np.maximum(z.std(axis=0, dtype=np.float64), 1e-6).astype(np.float32),
    }
    for name, z in latents.items()
  }
