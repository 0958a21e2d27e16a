"""How a network that reads an image is shown what is known."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def concat_conditioning(
  z: Float[Array, "batch height width channels"],
  known: Sequence[tuple[Float[Array, " _"], Float[Array, "batch ..."]]],
) -> tuple[Float[Array, "batch height width _"], Float[Array, "batch _"] | None]:
  """The network's input and condition.

  Args:
    z: the image that it reads.
    known: (flag, value) of each modality, in the network's order; the flag, one a row or one for
      all, is 1 where it is known and 0 where not.

  Returns:
    z with [flag * value, flag] as further channels for values of its height and width; and
    [flag * value, flag] of all others side by side, None if there are none.
  """
  channels, condition = [z], []
  for flag, value in known:
    if value.ndim == 4 and value.shape[1:3] == z.shape[1:3]:
      place = channels
    else:
      place, value = condition, value.reshape(len(value), -1)
    flag = jnp.broadcast_to(
      flag.reshape(-1, *[1] * (value.ndim - 1)), (*value.shape[:-1], 1)
    ).astype(value.dtype)
    place += [flag * value, flag]
  return (
    jnp.concatenate(channels, axis=-1),
    jnp.concatenate(condition, axis=-1) if condition else None,
  )
