"""Heads of the U-Net: each predicts one modality from the features that all heads share.

A head reads the features, one position per patch of the image, or the U-Net's bottleneck, or both.
Its last layer starts at zero, and so does its prediction: noise 0, equal logits, the vector 0.
"""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.unet import groups


def pooled(
  features: Float[Array, "batch _ _ channels"], bottleneck: Float[Array, "batch _ _ inner"]
) -> Float[Array, "batch channels+inner"]:
  """Returns the means of both over all positions, concatenated."""
  return jnp.concatenate([features.mean(axis=(1, 2)), bottleneck.mean(axis=(1, 2))], axis=-1)


class ImageHead(nn.Module):
  """GroupNorm, SiLU, 3 x 3 convolution: an image, the noise of one, or logits of a mask's classes.

  Each position of the features yields a patch of pixels; pixels beyond the shape are cut off.

  Attributes:
    shape: of the output, [height, width, channels].
    patch: side of the patches, in pixels.
  """

  shape: tuple[int, int, int]
  patch: int = 1

  @nn.compact
  def __call__(
    self,
    features: Float[Array, "batch rows columns _"],
    bottleneck: Float[Array, "batch _ _ _"],
  ) -> Float[Array, "batch {self.shape[0]} {self.shape[1]} {self.shape[2]}"]:
    """Predicts from the features alone."""
    height, width, channels = self.shape
    batch, rows, columns, _ = features.shape
    h = nn.silu(nn.GroupNorm(groups(features.shape[-1]))(features))
    h = nn.Conv(self.patch**2 * channels, (3, 3), kernel_init=nn.initializers.zeros)(h)
    h = h.reshape(batch, rows, columns, self.patch, self.patch, channels).swapaxes(2, 3)
    return h.reshape(batch, rows * self.patch, columns * self.patch, channels)[:, :height, :width]


class LabelHead(nn.Module):
  """A linear classifier of both inputs, pooled; the bottleneck first passes GroupNorm and SiLU.

  Attributes:
    num_classes: number of logits.
  """

  num_classes: int

  @nn.compact
  def __call__(
    self,
    features: Float[Array, "batch _ _ _"],
    bottleneck: Float[Array, "batch _ _ _"],
  ) -> Float[Array, "batch {self.num_classes}"]:
    """Predicts the logits of the classes."""
    bottleneck = nn.silu(nn.GroupNorm(groups(bottleneck.shape[-1]))(bottleneck))
    h = pooled(features, bottleneck)
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(h)


class VectorHead(nn.Module):
  """LayerNorm, a hidden layer four times as wide, SiLU and a linear layer on both inputs, pooled.

  Attributes:
    size: length of the vector.
  """

  size: int

  @nn.compact
  def __call__(
    self,
    features: Float[Array, "batch _ _ _"],
    bottleneck: Float[Array, "batch _ _ _"],
  ) -> Float[Array, "batch {self.size}"]:
    """Predicts the vector."""
    h = nn.LayerNorm()(pooled(features, bottleneck))
    h = nn.silu(nn.Dense(4 * h.shape[-1])(h))
    return nn.Dense(self.size, kernel_init=nn.initializers.zeros)(h)
