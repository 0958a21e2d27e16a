"""The network of an expert: a U-Net that reads a noisy image and its conditions."""

from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.conditioning import concat_conditioning
from mmdiff_jax.networks.heads import ImageHead


@dataclasses.dataclass(frozen=True)
class Condition:
  """A modality that may be given to condition an image.

  Attributes:
    name: of the modality.
    shape: of its value, without the batch axis.
    text: whether it is a text, [length, vocabulary] one-hot, which a `TextEncoder` reads.
  """

  name: str
  shape: tuple[int, ...]
  text: bool = False


class TextEncoder(nn.Module):
  """Two convolutions over characters, then the maximum of each channel over the text.

  Each output sees nine characters, about one word; its position in the text does not matter.

  Attributes:
    width: channels of the first convolution, half the size of the result.
  """

  width: int

  @nn.compact
  def __call__(
    self, text: Float[Array, "batch length vocabulary"]
  ) -> Float[Array, "batch {2*self.width}"]:
    """Encodes each text."""
    h = nn.silu(nn.Conv(self.width, (5,))(text))
    h = nn.silu(nn.Conv(2 * self.width, (5,))(h))
    return h.max(axis=1)


class Conditional(nn.Module):
  """Predicts the noise of an image, or another array of its shape, from it and its conditions.

  Attributes:
    backbone: `(z, t, train, condition) -> (features, bottleneck)`, with an attribute `patch`.
    shape: of the image, [height, width, channels].
    conditions: what may be given; values of the image's height and width become channels.
    text_width: width of the text encoders.
  """

  backbone: nn.Module
  shape: tuple[int, int, int]
  conditions: tuple[Condition, ...]
  text_width: int = 64

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "batch height width channels"],
    t: Float[Array, " batch"] | Float[Array, ""],
    given: Mapping[str, tuple[Float[Array, " _"], Float[Array, "batch ..."]]],
    train: bool = False,
  ) -> Float[Array, "batch height width channels"]:
    """Predicts for each row.

    Args:
      z: noisy images.
      t: times in [0, 1].
      given: (flag, value) of conditions; the flag, one per row or one for all, is 1 where the
        condition is given and 0 elsewhere. A condition without an entry is given nowhere.
      train: whether dropout is on; it needs the key "dropout".
    """
    pairs = []
    for condition in self.conditions:
      absent = jnp.zeros(1), jnp.zeros((len(z), *condition.shape))
      flag, value = given.get(condition.name, absent)
      if condition.text:
        value = TextEncoder(self.text_width, name=f"read_{condition.name}")(value)
      pairs.append((flag, value))
    inputs, vector = concat_conditioning(z, pairs)
    return ImageHead(self.shape, self.backbone.patch)(*self.backbone(inputs, t, train, vector))
