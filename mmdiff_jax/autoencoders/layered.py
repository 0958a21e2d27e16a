"""Autoencoder of images with a figure on a ground: a latent that carries shape, and one for colour.

An image of writing on a photo is mostly photo, and a latent trained to reconstruct pixels is mostly
photo, too: which digit is written hides in it, once for every colour of ink and paper. Here the
decoder composes two layers,

  x = m a + (1 - m) b,    m = mask(z_shape),    (a, b) = layers(z_colour),

where the figure's layer a is one colour, or the negative 1 - b of what lies under it, and the
ground's layer b so coarse that it cannot draw the figure: it must come from the mask, and the mask
from a latent that has nothing else to say.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.residual import ResidualMLP


class LayeredAutoencoder(nn.Module):
  """Deterministic autoencoder of images in [0, 1] with one figure each.

  Attributes:
    shape: height, width, channels.
    latent: size of the latent, z_shape then z_colour.
    shape_latent: size of z_shape.
    width: size of the encoder's hidden layers; the decoders have half of it.
    depth: residual blocks on either side.
    grid: the ground is grid x grid colours, enlarged linearly.
    negative: whether the figure is the ground's negative instead of one colour.
    robust: c in c log(1 + error / c), which the squared error of an example passes: those that are
      hopeless to reconstruct, such as fine textures, then do not take all the latent.
  """

  shape: tuple[int, int, int]
  latent: int
  shape_latent: int
  width: int
  depth: int
  grid: int
  negative: bool
  robust: float

  def setup(self):
    """Makes all parts."""
    height, width, channels = self.shape
    half = self.width // 2
    self.encoder = ResidualMLP(self.width, self.depth, self.latent)
    self.mask = ResidualMLP(half, self.depth, height * width)
    self.layers = ResidualMLP(half, self.depth, (self.grid**2 + (not self.negative)) * channels)

  def _compose(self, z):
    height, width, channels = self.shape
    # Starts as mostly ground, so that which layer is the figure is not left to chance.
    mask = jax.nn.sigmoid(self.mask(z[:, : self.shape_latent]) - 2.0)
    mask = mask.reshape(-1, height, width, 1)
    layers = 0.5 * (self.layers(z[:, self.shape_latent :]) + 1.0)
    # The colours of the ground come last.
    ground = layers[:, -(self.grid**2) * channels :].reshape(-1, self.grid, self.grid, channels)
    ground = jax.image.resize(ground, (z.shape[0], height, width, channels), "bilinear")
    figure = 1.0 - ground if self.negative else layers[:, None, None, :channels]
    return mask * figure + (1.0 - mask) * ground

  def encode(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch {self.latent}"]:
    """Image to latent."""
    return self.encoder(2.0 * x.reshape(x.shape[0], math.prod(self.shape)) - 1.0)

  def decode(
    self, z: Float[Array, "batch {self.latent}"]
  ) -> Float[Array, "batch height width channels"]:
    """Latent to image in [0, 1]."""
    return jnp.clip(self._compose(z), 0.0, 1.0)

  def loss(
    self,
    x: Float[Array, "batch height width channels"],
    z: Float[Array, "batch {self.latent}"],
  ) -> Float[Array, " batch"]:
    """Squared error of each image given its latent, made robust."""
    error = jnp.sum((self._compose(z) - x) ** 2, axis=(1, 2, 3))
    return self.robust * jnp.log1p(error / self.robust)
