"""Conditioning of a network that reads an image, by further channels or by a vector."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def concat_conditioning(
  z: Float[Array, "batch height width channels"],
  given: Sequence[tuple[Float[Array, " _"], Float[Array, "batch ..."]]],
) -> tuple[Float[Array, "batch height width _"], Float[Array, "batch _"] | None]:
  """Returns the network's input and its condition vector.

  Args:
    z: the image that the network reads.
    given: (flag, value) of each modality, in the network's order; the flag, one per row or one for
      all, is 1 where the modality is given and 0 where it is not.

  Returns:
    z with [flag * value, flag] as further channels for values of its height and width; and the
    concatenation of [flag * value, flag] of all other values, None if there are none.
  """
  channels, condition = [z], []
  for flag, value in given:
    if value.ndim == 4 and value.shape[1:3] == z.shape[1:3]:
      parts = channels
    else:
      parts, value = condition, value.reshape(len(value), -1)
    flag = jnp.broadcast_to(
      flag.reshape(-1, *[1] * (value.ndim - 1)), (*value.shape[:-1], 1)
    ).astype(value.dtype)
    parts += [flag * value, flag]
  return (
    jnp.concatenate(channels, axis=-1),
    jnp.concatenate(condition, axis=-1) if condition else None,
  )
