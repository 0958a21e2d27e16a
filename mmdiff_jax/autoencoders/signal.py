"""Autoencoder of all that has no classes: residual MLPs over the flat view.

At digit size a matrix product over all pixels is both faster on a CPU and no worse than
convolutions; larger images want an encoder of their own. So it is for short videos of that size: a
network for each frame, shared, and one for the frames' codes learnt more slowly.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.residual import ResidualMLP


class SignalAutoencoder(nn.Module):
  """Deterministic autoencoder of a view in [0, 1], or of any values.

  It encodes what lies outside, too, such as points of a trajectory that leave the canvas, but what
  is decoded of a bounded view ends at 0 and 1.

  Attributes:
    shape: shape of the view, without the batch.
    latent: size of the latent.
    width: size of the hidden layers.
    depth: residual blocks on either side.
    likelihood: "gaussian" or "laplace" (of fixed scale), or "bernoulli" (whose mean is decoded).
    bounded: whether the view is in [0, 1]; if not, it is not "bernoulli".
  """

  shape: tuple[int, ...]
  latent: int
  width: int
  depth: int
  likelihood: str
  bounded: bool = True

  def setup(self):
    """Makes both halves."""
    self.encoder = ResidualMLP(self.width, self.depth, self.latent)
    self.decoder = ResidualMLP(self.width, self.depth, math.prod(self.shape))

  def encode(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch {self.latent}"]:
    """View to latent."""
    # Centred: pixels of a mean of 1/2 would all push the first layer the same way.
    return self.encoder(2.0 * x.reshape(x.shape[0], -1) - 1.0)

  def decode(self, z: Float[Array, "batch {self.latent}"]) -> Float[Array, "batch ..."]:
    """Latent to the mean of the view, in [0, 1] if it is bounded."""
    out = self.decoder(z).reshape(z.shape[0], *self.shape)
    if self.likelihood == "bernoulli":
      return jax.nn.sigmoid(out)
    mean = 0.5 * (out + 1.0)
    return jnp.clip(mean, 0.0, 1.0) if self.bounded else mean

  def loss(
    self, x: Float[Array, "batch ..."], z: Float[Array, "batch {self.latent}"]
  ) -> Float[Array, " batch"]:
    """Error of each example: its negative log-likelihood, up to scale and constant."""
    target = x.reshape(x.shape[0], -1)
    out = self.decoder(z)
    if self.likelihood == "bernoulli":
      # log(1 + exp(out)) - target out: the cross-entropy of a pixel that is on with p = target.
      return jnp.sum(jax.nn.softplus(out) - target * out, axis=-1)
    error = 0.5 * (out + 1.0) - target
    if self.likelihood == "laplace":
      return jnp.sum(jnp.abs(error), axis=-1)
    return jnp.sum(error**2, axis=-1)
