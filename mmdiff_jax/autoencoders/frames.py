"""Autoencoder of a video: an autoencoder of its frames, each by itself."""

from flax import linen as nn
from jaxtyping import Array, Float


class FramesAutoencoder(nn.Module):
  """Latents of a video are those of its frames, so that an image is a video of one frame.

  Attributes:
    codec: of a frame, such as a `SignalAutoencoder`.
    frames: their number.
  """

  codec: nn.Module
  frames: int

  def _each(self, x):
    return x.reshape(-1, *x.shape[2:])

  def encode(self, x: Float[Array, "batch frames ..."]) -> Float[Array, "batch frames _"]:
    """View to latents."""
    return self.codec.encode(self._each(x)).reshape(len(x), self.frames, -1)

  def decode(self, z: Float[Array, "batch frames _"]) -> Float[Array, "batch frames ..."]:
    """Latents to the view."""
    x = self.codec.decode(self._each(z))
    return x.reshape(len(z), self.frames, *x.shape[1:])

  def loss(
    self, x: Float[Array, "batch frames ..."], z: Float[Array, "batch frames _"]
  ) -> Float[Array, " batch"]:
    """Error of each video, the sum over its frames."""
    return self.codec.loss(self._each(x), self._each(z)).reshape(len(x), self.frames).sum(axis=-1)
