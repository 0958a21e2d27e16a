"""Autoencoder of short texts: residual MLPs over the one-hot characters of a whole line."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmdiff_jax.networks.residual import ResidualMLP


class TextAutoencoder(nn.Module):
  """Deterministic autoencoder of lines of tokens.

  Attributes:
    length: tokens in a line.
    vocabulary: number of tokens there are.
    latent: size of the latent.
    width: size of the hidden layers.
    depth: residual blocks on either side.
  """

  length: int
  vocabulary: int
  latent: int
  width: int
  depth: int

  def setup(self):
    """Makes both halves."""
    self.encoder = ResidualMLP(self.width, self.depth, self.latent)
    self.decoder = ResidualMLP(self.width, self.depth, self.length * self.vocabulary)

  def _logits(self, z):
    return self.decoder(z).reshape(z.shape[0], self.length, self.vocabulary)

  def encode(self, x: Int[Array, "batch length"]) -> Float[Array, "batch {self.latent}"]:
    """Tokens to latent."""
    return self.encoder(jax.nn.one_hot(x, self.vocabulary).reshape(x.shape[0], -1))

  def decode(self, z: Float[Array, "batch {self.latent}"]) -> Int[Array, "batch length"]:
    """Latent to the likeliest tokens."""
    return jnp.argmax(self._logits(z), axis=-1).astype(jnp.int32)

  def loss(
    self, x: Int[Array, "batch length"], z: Float[Array, "batch {self.latent}"]
  ) -> Float[Array, " batch"]:
    """Negative log-likelihood of `x` given `z`, in nats."""
    log_p = jax.nn.log_softmax(self._logits(z), axis=-1)
    return -jnp.take_along_axis(log_p, x[..., None], axis=-1).sum(axis=(1, 2))
