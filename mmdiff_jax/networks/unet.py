"""U-Net of the guided-diffusion kind (Dhariwal and Nichol 2021, appendix A; the ADM network).

Residual blocks whose second norm is scaled and shifted by the time, attention at the heights that
the config names, resampling inside residual blocks, a skip from every block on the way down to one
on the way up. It is as published except for two things: sizes need not be powers of 2, and queries,
keys and values have no bias (the norm before them has one). At the published ImageNet-64 size
(width 192, multipliers 1, 2, 3, 4, 3 blocks, attention at 32, 16, 8) the features and an
`ImageHead` of 3 channels have 295,092,675 parameters. The published network has 295.90 M: 0.77 M
more for its class embedding, 5 k for the variances that it predicts beside the noise and 38 k for
those biases.

The backbone outputs features at its highest resolution; `heads` turn them into predictions.
"""

from collections.abc import Callable
from functools import partial
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from mmdiff_jax.networks.embeddings import sinusoidal

MAX_GROUPS = 32
MIN_GROUP = 4  # Channels; with 1 a norm would remove each channel's mean.


def groups(channels: int) -> int:
  """Returns the most groups of `MIN_GROUP` or more that divide the channels, up to `MAX_GROUPS`."""
  most = max(1, min(MAX_GROUPS, channels // MIN_GROUP))
  return max(count for count in range(1, most + 1) if channels % count == 0)


def halve(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch _ _ channels"]:
  """Averages 2 x 2 neighbours; with an odd size the last row or column is alone (7 -> 4)."""
  odd = (x.shape[1] % 2, x.shape[2] % 2)
  if any(odd):
    x = jnp.pad(x, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def double(
  x: Float[Array, "batch _ _ channels"], height: int, width: int
) -> Float[Array, "batch {height} {width} channels"]:
  """Repeats each value 2 x 2 times, cut to the size before `halve` (4 -> 8 or 7)."""
  return x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


class ResBlock(nn.Module):
  """x + two of (GroupNorm, SiLU, 3 x 3 convolution), the second norm scaled and shifted by time.

  The second convolution starts at zero, so that the block starts as the identity or a projection.

  Attributes:
    channels: channels of the output.
    dropout: rate of dropout before the second convolution.
    train: whether dropout is on.
    resample: applied to `x` and, before the first convolution, to the branch that is added to it.
    dtype: of the computation; parameters are float32.
  """

  channels: int
  dropout: float = 0.0
  train: bool = False
  resample: Callable[[Array], Array] = lambda x: x
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch _ _ _"], time: Float[Array, "rows features"]
  ) -> Float[Array, "batch _ _ {self.channels}"]:
    """Maps `x`; `time` has one row for each row of `x`, or one for all."""
    h = nn.silu(nn.GroupNorm(groups(x.shape[-1]), dtype=self.dtype)(x))
    h, x = self.resample(h), self.resample(x)
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(h)
    modulation = nn.Dense(2 * self.channels, dtype=self.dtype)(time)[:, None, None, :]
    scale, shift = jnp.split(modulation, 2, axis=-1)
    h = nn.GroupNorm(groups(self.channels), dtype=self.dtype)(h) * (1.0 + scale) + shift
    h = nn.Dropout(self.dropout, deterministic=not self.train)(nn.silu(h))
    h = nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype)(h)
    if x.shape[-1] != self.channels:
      x = nn.Dense(self.channels, dtype=self.dtype)(x)
    return x + h


class SelfAttention(nn.Module):
  """x + Linear(self-attention over all positions of GroupNorm(x)); the linear layer starts at zero.

  Attributes:
    head_channels: channels of a head, a divisor of the channels of `x`.
    dtype: of the computation; parameters and the softmax are float32.
  """

  head_channels: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch height width channels"]:
    """Maps `x`; raises ValueError if its channels do not split into heads."""
    batch, height, width, channels = x.shape
    if channels % self.head_channels:
      raise ValueError(
        f"UNet: heads of {self.head_channels} channels do not divide the {channels} channels at "
        f"height {height}, which has attention. Choose head_channels that divides all of them."
      )
    h = nn.GroupNorm(groups(channels), dtype=self.dtype)(x)
    h = nn.Dense(3 * channels, use_bias=False, dtype=self.dtype)(h)
    h = h.reshape(batch, height * width, 3, channels // self.head_channels, self.head_channels)
    h = jax.nn.dot_product_attention(h[:, :, 0], h[:, :, 1], h[:, :, 2])
    h = nn.Dense(channels, kernel_init=nn.initializers.zeros, dtype=self.dtype)(h.reshape(x.shape))
    return x + h


class UNet(nn.Module):
  """Maps a noisy image and its time to features at the first and the last level.

  With `patch` = p the network runs at 1 / p of the image's height and width: it reads p x p pixels
  at once, and a head writes as many. On a small budget this pays: the cost of a layer falls by p^2,
  and its parameters stay the same. The first level has height ceil(height / p), each further one
  half of the one before, rounded up, so that any size works: 28 -> 14 -> 7 -> 4.

  Attributes:
    width: channels of the first layer, even (half of the time's features are cosines).
    multipliers: channels of each level, in widths; the first is 1.
    blocks: residual blocks per level on the way down; one more on the way up.
    attention: heights of the levels whose blocks attend; the middle attends if the last is named.
    head_channels: channels of an attention head.
    dropout: rate of dropout in residual blocks.
    patch: side of the patches.
    remat: recompute activations inside blocks for the gradient: less memory, one more forward pass.
    dtype: of the computation, e.g. bfloat16; parameters stay float32.
  """

  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...]
  head_channels: int
  dropout: float = 0.0
  patch: int = 1
  remat: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "batch height width channels"],
    t: Float[Array, " batch"] | Float[Array, ""],
    train: bool = False,
    condition: Float[Array, "batch size"] | None = None,
  ) -> tuple[
    Float[Array, "batch _ _ {self.width}"],
    Float[Array, "batch _ _ {self.width*self.multipliers[-1]}"],
  ]:
    """Maps each row.

    Args:
      z: noisy images.
      t: times in [0, 1] (for discrete steps: step / T); a scalar serves all rows.
      train: whether dropout is on; it needs the key "dropout".
      condition: added, by a linear map, to the time embedding of every block; 0 has no effect.

    Returns:
      Features, one position per patch, and the bottleneck, in the type of `z`.

    Raises:
      ValueError: the first multiplier is not 1, no level has a height named in `attention`, or
        heads do not divide the channels.
    """
    height, width = z.shape[1:3]
    heights = [
      math.ceil(height / (self.patch * 2**level)) for level in range(len(self.multipliers))
    ]
    if self.multipliers[0] != 1:
      raise ValueError(f"UNet: the first of multipliers must be 1; got {self.multipliers}.")
    if not set(self.attention) <= set(heights):
      raise ValueError(
        f"UNet: attention at heights {self.attention}, but images of height {height} in patches of "
        f"{self.patch} give levels of heights {tuple(heights)}. Name some of these, or none."
      )
    dense = partial(nn.Dense, dtype=self.dtype)
    wrap = nn.remat if self.remat else lambda module: module

    time = sinusoidal(jnp.atleast_1d(t), self.width)
    time = nn.silu(dense(4 * self.width, name="time_0")(time))
    time = dense(4 * self.width, name="time_1")(time)
    if condition is not None:
      time += dense(4 * self.width, use_bias=False, name="condition")(condition)
    time = nn.silu(time)

    def block(h, channels, name, **kwargs):
      residual = wrap(ResBlock)(
        channels, self.dropout, train, dtype=self.dtype, name=name, **kwargs
      )
      return residual(h, time)

    def attend(h, name):
      if h.shape[1] not in self.attention:
        return h
      return wrap(SelfAttention)(self.head_channels, self.dtype, name=f"{name}_attention")(h)

    if self.patch == 1:
      h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="in")(z)
    else:
      side = (self.patch, self.patch)
      padding = [(0, -size % self.patch) for size in (height, width)]
      h = nn.Conv(self.width, side, side, padding, dtype=self.dtype, name="in")(z)

    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      if level:
        h = block(h, h.shape[-1], f"halve_{level}", resample=halve)
        skips.append(h)
      for i in range(self.blocks):
        name = f"down_{level}_{i}"
        h = attend(block(h, self.width * multiplier, name), name)
        skips.append(h)
    h = attend(block(h, h.shape[-1], "middle_0"), "middle")
    h = bottleneck = block(h, h.shape[-1], "middle_1")
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for i in range(self.blocks + 1):
        name = f"up_{level}_{i}"
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = attend(block(h, self.width * multiplier, name), name)
      if level:
        size = skips[-1].shape[1:3]
        resample = partial(double, height=size[0], width=size[1])
        h = block(h, h.shape[-1], f"double_{level}", resample=resample)
    return h.astype(z.dtype), bottleneck.astype(z.dtype)
