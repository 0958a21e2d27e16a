"""Autoencoder of texts, masks and labels: residual MLPs over the one-hot classes of a whole view.

As `signal`, it is made for small views: a short line of text, a mask of a digit's size.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmdiff_jax.networks.residual import ResidualMLP


class CategoricalAutoencoder(nn.Module):
  """Deterministic autoencoder of views whose every place holds a class.

  Attributes:
    shape: shape of the view, without the batch: [length] of a text, [height, width] of a mask, []
      of a label.
    num_classes: number of classes (tokens) there are.
    latent: size of the latent.
    width: size of the hidden layers.
    depth: residual blocks on either side.
  """

  shape: tuple[int, ...]
  num_classes: int
  latent: int
  width: int
  depth: int

  def setup(self):
    """Makes both halves."""
    self.encoder = ResidualMLP(self.width, self.depth, self.latent)
    self.decoder = ResidualMLP(self.width, self.depth, math.prod(self.shape) * self.num_classes)

  def _logits(self, z):
    return self.decoder(z).reshape(z.shape[0], *self.shape, self.num_classes)

  def encode(self, x: Int[Array, "batch ..."]) -> Float[Array, "batch {self.latent}"]:
    """View to latent."""
    return self.encoder(jax.nn.one_hot(x, self.num_classes).reshape(x.shape[0], -1))

  def decode(self, z: Float[Array, "batch {self.latent}"]) -> Int[Array, "batch ..."]:
    """Latent to the likeliest classes."""
    return jnp.argmax(self._logits(z), axis=-1).astype(jnp.int32)

  def loss(
    self, x: Int[Array, "batch ..."], z: Float[Array, "batch {self.latent}"]
  ) -> Float[Array, " batch"]:
    """Negative log-likelihood of `x` given `z`, in nats."""
    log_p = jax.nn.log_softmax(self._logits(z), axis=-1)
    log_p = jnp.take_along_axis(log_p, x[..., None], axis=-1)
    return -jnp.sum(log_p.reshape(x.shape[0], -1), axis=-1)
