"""The network of an expert: a U-Net that reads a noisy image and what is known of it."""

from collections.abc import Mapping
import dataclasses

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.conditioning import concat_conditioning
from mmdiff_jax.networks.heads import ImageHead


@dataclasses.dataclass(frozen=True)
class Condition:
  """Something that may be known of an image.

  Attributes:
    name: its modality.
    shape: of its value, without the batch axis.
    text: whether it is a text, [length, vocabulary] one-hot, which is read by a `TextEncoder`.
  """

  name: str
  shape: tuple[int, ...]
  text: bool = False


class TextEncoder(nn.Module):
  """Two convolutions over characters, and of each channel the maximum over the text.

  Each sees nine characters, which is a word or so; where in the text it stands does not matter.

  Attributes:
    width: channels, and half the size of the result.
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
  """Predicts the noise of an image, or whatever has its shape, from all that it is shown.

  Attributes:
    backbone: `(z, t, train, condition) -> (features, bottleneck)`, with an attribute `patch`.
    shape: of the image, [height, width, channels].
    conditions: what may be known; values of the image's height and width become channels.
    text_width: of the encoders of texts.
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
    known: Mapping[str, tuple[Float[Array, " _"], Float[Array, "batch ..."]]],
    train: bool = False,
  ) -> Float[Array, "batch height width channels"]:
    """Predicts.

    Args:
      z: noisy images.
      t: times in [0, 1].
      known: (flag, value) of conditions; the flag, one a row or one for all, is 1 where it is known
        and 0 elsewhere. What is not in it is nowhere known.
      train: whether dropout is on; it needs the key "dropout".
    """
    shown = []
    for condition in self.conditions:
      nowhere = jnp.zeros(1), jnp.zeros((len(z), *condition.shape))
      flag, value = known.get(condition.name, nowhere)
      if condition.text:
        value = TextEncoder(self.text_width, name=f"read_{condition.name}")(value)
      shown.append((flag, value))
    inputs, told = concat_conditioning(z, shown)
    return ImageHead(self.shape, self.backbone.patch)(*self.backbone(inputs, t, train, told))
