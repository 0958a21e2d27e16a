"""CoDi's networks: latents and prompts of model inputs, and the prediction of v."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.frameworks.base import Params
from mmdiff_jax.frameworks.codi.model import CoDi


def encode(model: CoDi, params: Params, name: str, x) -> Float[Array, "batch _ _ _"]:
  """Returns the standardised latent of model inputs: frames, tokens, size of a token."""
  z = model.codecs[name].apply(params[f"autoencoder_{name}"], jnp.asarray(x), method="encode")
  return split(model, name, z, params[f"statistics_{name}"])


def split(model: CoDi, name: str, z, statistics: Mapping[str, Any]):
  """Returns a latent as tokens, standardised."""
  z = (z - statistics["mean"]) / statistics["std"]
  frames = z.shape[1] if z.ndim == 3 else 1
  return z.reshape(len(z), frames, model.shapes[name][1], -1)


def decode(model: CoDi, params: Params, name: str, z: Float[Array, "batch _ _ _"]) -> Array:
  """Returns model inputs from latents: the inverse of `encode`, up to the autoencoder's error."""
  statistics = params[f"statistics_{name}"]
  z = z.reshape(len(z), z.shape[1], -1) if statistics["mean"].ndim == 2 else z.reshape(len(z), -1)
  z = z * statistics["std"] + statistics["mean"]
  return model.codecs[name].apply(params[f"autoencoder_{name}"], z, method="decode")


def encode_prompt(model: CoDi, params: Params, name: str, x) -> Float[Array, "batch _"]:
  """Returns C_m(x_m), a unit vector."""
  return model.prompts[name].apply(params[f"prompt_{name}"], jnp.asarray(x))


def predict(
  model: CoDi,
  params: Params,
  names: Sequence[str],
  z: Mapping[str, Array],
  t,
  prompt: Float[Array, "batch size"],
  *,
  aligned: bool,
  shuffled: bool = False,
) -> dict[str, Array]:
  """Returns v of some modalities, each of which reads the environments of all others in `z`.

  Args:
    model: the record.
    params: the entries of all of `z`.
    names: the modalities whose v is returned.
    z: latents at their time.
    t: the time, one for all.
    prompt: zeros for none.
    aligned: whether they read environments at all.
    shuffled: whether each row reads the environments of the row before it.
  """
  environment = {}
  if aligned and len(z) > 1:
    environment = {
      name: model.environments[name].apply(params[f"alignment_{name}"]["environment"], value, t)
      for name, value in z.items()
    }
    if shuffled:
      environment = {name: jnp.roll(v, 1, axis=0) for name, v in environment.items()}
  predictions = {}
  for name in names:
    layers, context = params[f"diffusion_{name}"]["params"], None
    if environment:
      layers = layers | params[f"alignment_{name}"]["cross"]
      context = jnp.concatenate([v for other, v in environment.items() if other != name], axis=1)
    predictions[name] = model.denoisers[name].apply({"params": layers}, z[name], t, prompt, context)
  return predictions
