"""Residual MLP, of which the autoencoders and the latent denoiser are built."""

from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float


class ResidualBlock(nn.Module):
  """x + Linear(SiLU(Linear(LayerNorm(x)))), the norm scaled and shifted by a condition if any.

  Attributes:
    width: size of the hidden layer.
    dtype: of the computation; parameters are float32.
  """

  width: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "batch channels"],
    condition: Float[Array, "rows features"] | None = None,
  ) -> Float[Array, "batch channels"]:
    """Maps `x`; `condition` has one row for each row of `x`, or one for all."""
    channels = x.shape[-1]
    if condition is None:
      h = nn.LayerNorm(dtype=self.dtype)(x)
    else:
      h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(x)
      scale, shift = (nn.Dense(channels, dtype=self.dtype)(condition) for _ in range(2))
      h = h * (1.0 + scale) + shift
    h = nn.silu(nn.Dense(self.width, dtype=self.dtype)(h))
    # A small initial scale keeps the stack near the identity, where deep stacks train well.
    small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
    return x + nn.Dense(channels, kernel_init=small, dtype=self.dtype)(h)


class ResidualMLP(nn.Module):
  """Linear to the width, residual blocks, norm, Linear to the output.

  Attributes:
    width: size of the hidden layers.
    depth: number of residual blocks.
    features: size of the output.
  """

  width: int
  depth: int
  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch {self.features}"]:
    """Maps each row."""
    x = nn.Dense(self.width)(x)
    for _ in range(self.depth):
      x = ResidualBlock(self.width)(x)
    return nn.Dense(self.features)(nn.LayerNorm()(x))
