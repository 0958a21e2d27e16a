"""Prompt encoders: C(x) of a modality, a direction in a space that all modalities share."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from mmdiff_jax.networks.conditional import TextEncoder


def unit(h: Float[Array, "batch size"]) -> Float[Array, "batch size"]:
  """Returns each vector scaled to length 1, except one that is nearly 0."""
  # A norm has no gradient at 0: a row of zeros is divided by the norm of another row.
  other = jnp.where(jnp.any(h != 0, axis=-1, keepdims=True), h, 1.0)
  return h / jnp.maximum(jnp.linalg.norm(other, axis=-1, keepdims=True), 1e-6)


class PromptEncoder(nn.Module):
  """Maps a model input to a unit vector.

  Attributes:
    kind: of the modality, as `Modality.kind`; a text is read character by character, a video frame
      by frame, inputs with a height and a width by convolutions, all others as one vector.
    num_classes: of the model input, 0 if it has none.
    size: length of the vector.
    width: of the hidden layers.
  """

  kind: str
  num_classes: int
  size: int
  width: int

  @nn.compact
  def __call__(self, x: Shaped[Array, "batch ..."]) -> Float[Array, "batch {self.size}"]:
    """Encodes each row."""
    x = jax.nn.one_hot(x, self.num_classes) if self.num_classes else 2.0 * x - 1.0
    if self.kind == "text":
      h = TextEncoder(self.width, name="text")(x)
    elif self.kind == "video":
      rows, frames = x.shape[:2]
      h = self._images(x.reshape(rows * frames, *x.shape[2:])).reshape(rows, -1)
    elif self.kind in ("image", "audio", "mask"):
      h = self._images(x if x.ndim == 4 else x[..., None])
    else:
      h = x.reshape(len(x), -1)
    h = nn.relu(nn.Dense(2 * self.width, name="hidden")(h))
    return unit(nn.Dense(self.size, name="out")(h))

  def _images(self, x):
    h = nn.relu(nn.Conv(self.width // 2, (4, 4), strides=2, name="conv_0")(x))
    h = nn.relu(nn.Conv(self.width, (3, 3), strides=2, name="conv_1")(h))
    return h.reshape(len(h), -1)
