"""One backbone in a space that several modalities share: encoders into it, heads out of it.

A modality's *value* is the array whose mean a head predicts: an image in [-1, 1], an unchanged
vector, the probabilities of a category's classes on a last axis. All encoders are affine in the
value, so that encoding the mean gives the mean of the encodings.
"""

from collections.abc import Mapping
import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax.networks.conditioning import concat_conditioning
from mmdiff_jax.networks.heads import ImageHead, LabelHead, VectorHead

ENCODERS = ("identity", "embedding", "frozen")

Values = Mapping[str, Float[Array, "batch ..."]]


@dataclasses.dataclass(frozen=True)
class Part:
  """One modality as the network reads it.

  Attributes:
    name: of the modality.
    shape: of its value, without the batch axis.
    categorical: whether the value's last axis has probabilities.
    encoder: "identity", for values of the space's own shape; "embedding", a learned linear map,
      pixel by pixel if the value has the space's height and width; or "frozen", the same map at
      its initial weights, never trained.

  Raises:
    ValueError: the encoder is unknown.
  """

  name: str
  shape: tuple[int, ...]
  categorical: bool
  encoder: str

  def __post_init__(self):
    if self.encoder not in ENCODERS:
      raise ValueError(
        f"the encoder of {self.name!r} is {self.encoder!r}; it can be {', '.join(ENCODERS)}."
      )


class Multitask(nn.Module):
  """The backbone, a head for the noise, and an encoder and a head for each modality.

  An embedding is kept at a root mean square of about 1 per component (for one-hot values, and for
  others with uncorrelated components of that size), so that training cannot drown the noise in it.

  Attributes:
    backbone: `(z, t, train, condition) -> (features, bottleneck)`, with an attribute `patch`:
      features have one position for each patch of so many pixels per side.
    space: shape of the shared space, [height, width, channels].
    parts: the modalities.
    heads: whether the modalities have heads; the noise always has one.
    informed: whether the backbone also reads what is given: E_i(x_i) of a modality of the space's
      height and width, and x_i of any other.
  """

  backbone: nn.Module
  space: tuple[int, int, int]
  parts: tuple[Part, ...]
  heads: bool
  informed: bool

  def setup(self):
    """Creates the heads and the learned maps."""
    self.noise_head = ImageHead(self.space, self.backbone.patch)
    self.part_heads = {p.name: self._head(p) for p in self.parts if self.heads}
    kernels = {}
    for part in self.parts:
      if part.encoder != "identity":
        shape = (
          (part.shape[-1], self.space[-1])
          if self._is_image(part)
          else (math.prod(part.shape), math.prod(self.space))
        )
        kernels[part.name] = self.param(f"encoder_{part.name}", nn.initializers.normal(1.0), shape)
    self.kernels = kernels

  def _is_image(self, part: Part) -> bool:
    return len(part.shape) == 3 and part.shape[:2] == self.space[:2]

  def _head(self, part: Part) -> nn.Module:
    if self._is_image(part):
      return ImageHead(part.shape, self.backbone.patch)
    if part.categorical and len(part.shape) == 1:
      return LabelHead(part.shape[0])
    return VectorHead(math.prod(part.shape))

  def encode(self, values: Values) -> dict[str, Float[Array, "batch height width channels"]]:
    """Returns E_i(x_i) of each value."""
    encoded = {}
    for part in self.parts:
      if part.name not in values:
        continue
      value = values[part.name]
      if part.encoder == "identity":
        encoded[part.name] = value
        continue
      kernel = self.kernels[part.name]
      if part.encoder == "frozen":
        kernel = jax.lax.stop_gradient(kernel)
      size = jnp.sqrt(jnp.mean(kernel**2) * (1 if part.categorical else kernel.shape[0]))
      if not self._is_image(part):
        value = value.reshape(value.shape[0], -1)
      encoded[part.name] = (value @ (kernel / size)).reshape(-1, *self.space)
    return encoded

  def __call__(
    self,
    z: Float[Array, "batch height width channels"],
    t: Float[Array, " batch"] | Float[Array, ""],
    given: Mapping[str, tuple[Float[Array, " batch"], Float[Array, "batch ..."]]],
    train: bool = False,
  ) -> tuple[Float[Array, "batch height width channels"], dict[str, Float[Array, "batch ..."]]]:
    """Predicts the noise and each modality.

    Args:
      z: points of the shared space.
      t: times in [0, 1].
      given: for an informed network (flag, value) of modalities; the flag is 1 in the rows in which
        the modality is given and 0 elsewhere. A modality without an entry is given nowhere.
      train: whether dropout is on.

    Returns:
      The noise, and for each modality the mean of its value or its logits.
    """
    pairs = []
    for part in self.parts if self.informed else ():
      absent = jnp.zeros(len(z)), jnp.zeros((len(z), *part.shape))
      flag, value = given.get(part.name, absent)
      if self._is_image(part):
        value = self.encode({part.name: value})[part.name]
      pairs.append((flag, value))
    inputs, condition = concat_conditioning(z, pairs)
    hidden = self.backbone(inputs, t, train, condition)
    predicted = {
      part.name: self.part_heads[part.name](*hidden).reshape(-1, *part.shape)
      for part in self.parts
      if self.heads
    }
    return self.noise_head(*hidden), predicted

  def initialise(self, values: Values) -> None:
    """Calls all layers, so that `init` creates all parameters."""
    self.encode(values)
    rows = len(next(iter(values.values())))
    self(jnp.zeros((rows, *self.space)), jnp.zeros(rows), {})
