"""Conversion between model inputs and the values that networks read or predict.

A value is an image in [-1, 1], a vector as it is, or the probabilities of classes on a last axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality


def normalize(modality: Modality, x) -> Float[Array, "batch ..."]:
  """Returns the value of model inputs."""
  if modality.num_classes:
    return jax.nn.one_hot(x, modality.num_classes)
  return jnp.asarray(x) if modality.kind == "vector" else 2.0 * jnp.asarray(x) - 1.0


def denormalize(modality: Modality, value) -> Array:
  """Returns model inputs from a value: the likeliest class where there are several."""
  if modality.num_classes:
    return jnp.argmax(value, axis=-1).astype(jnp.int32)
  if modality.kind == "vector":
    return value
  x = 0.5 * (value + 1.0)
  return jnp.clip(x, 0.0, 1.0) if modality.kind == "image" else x


def check_shape(modality: Modality, shape: tuple[int, ...], where: str) -> None:
  """Raises UserError unless an array of examples has the modality's shape."""
  if tuple(shape[1:]) != modality.shape:
    remedy = " A representation must come from the network that this one was made for."
    raise UserError(
      f"The modality {modality.name!r} of {where} has examples of shape {tuple(shape[1:])}, and the"
      f" network is built for {modality.shape}.{remedy if modality.kind == 'vector' else ''}"
    )


def check_examples(modalities: Sequence[Modality], data: Mapping[str, Any]) -> None:
  """Raises UserError if examples have another shape or lack a modality (see `data/missing.py`)."""
  for modality in modalities:
    check_shape(modality, data[modality.name].shape, "the data set")
    if not np.all(data.get(f"{modality.name}_present", True)):
      raise UserError(
        f"Some training examples lack the modality {modality.name!r}, and this framework needs all"
        " of them. Leave such examples out: in a folder, config.data.incomplete = 'drop'."
      )


def identity_reconstruct(params: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
  """`Framework.reconstruct` of frameworks that diffuse the modalities themselves."""
  del params
  return dict(data)
