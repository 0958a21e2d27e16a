"""Heads of the U-Net: one modality's prediction each, from the features that all share.

A head reads the features, at the image's resolution, or the U-Net's bottleneck, or both. Its last
layer starts at zero, and therefore its prediction: noise 0, even odds, the vector 0.
"""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.unet import groups


def pooled(
  features: Float[Array, "batch _ _ channels"], bottleneck: Float[Array, "batch _ _ inner"]
) -> Float[Array, "batch channels+inner"]:
  """Means of both over all positions."""
  return jnp.concatenate([features.mean(axis=(1, 2)), bottleneck.mean(axis=(1, 2))], axis=-1)


class ImageHead(nn.Module):
  """GroupNorm, SiLU, 3 x 3 convolution: an image, the noise of one, or logits of a mask's classes.

  Attributes:
    channels: channels of the output.
  """

  channels: int

  @nn.compact
  def __call__(
    self,
    features: Float[Array, "batch height width _"],
    bottleneck: Float[Array, "batch _ _ _"],
  ) -> Float[Array, "batch height width {self.channels}"]:
    """Predicts from the features alone."""
    h = nn.silu(nn.GroupNorm(groups(features.shape[-1]))(features))
    return nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros)(h)


class LabelHead(nn.Module):
  """A linear classifier of both, pooled over positions; the bottleneck after GroupNorm and SiLU.

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
  """LayerNorm, a hidden layer four times as wide, SiLU and a linear layer on both, pooled.

  Attributes:
    size: size of the vector.
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
