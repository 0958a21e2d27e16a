"""A denoiser of one modality's latent, and of the latents of a video's frames.

A latent is a few tokens. Blocks are those of a diffusion transformer (Peebles and Xie 2023, "adaLN
zero"): what the time and the prompt say scales, shifts and gates every branch. For a video the same
network reads every frame, and after each block two layers are put in between that mix frames. Each
block may also attend to tokens of other modalities. What is put in ends in a layer that starts at
zero, so that it changes nothing until it is trained.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from mmdiff_jax.networks.embeddings import sinusoidal

ZEROS = nn.initializers.zeros


def shift_frames(
  h: Float[Array, "batch frames tokens width"], share: float = 0.25
) -> Float[Array, "batch frames tokens width"]:
  """Moves the first channels of each frame to the next one, and as many others to the one before.

  Args:
    h: features; frame i of the result has from frame i - 1 its first `share` of the channels, from
      frame i + 1 the second, and the rest of its own. Beyond the ends there are zeros.
    share: of the channels, at most a half.
  """
  group = int(share * h.shape[-1])
  none = jnp.zeros_like(h[:, :1])
  later = jnp.concatenate([none, h[:, :-1]], axis=1)[..., :group]
  earlier = jnp.concatenate([h[:, 1:], none], axis=1)[..., group : 2 * group]
  return jnp.concatenate([later, earlier, h[..., 2 * group :]], axis=-1)


class Attention(nn.Module):
  """Residual attention of each position of `h` to `context`, or to its own axis; starts at zero.

  Attributes:
    heads: number of heads, a divisor of the width.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "*axes queries width"],
    context: Float[Array, "*axes keys _"] | None = None,
  ) -> Float[Array, "*axes queries width"]:
    """What is to be added to `h`."""
    own = nn.LayerNorm(dtype=self.dtype, name="norm")(h)
    read = own if context is None else context
    return nn.MultiHeadDotProductAttention(
      self.heads, self.dtype, qkv_features=h.shape[-1], out_kernel_init=ZEROS, name="attend"
    )(own, read)


class LatentTransformer(nn.Module):
  """Predicts the noise, or whatever has the latent's shape.

  Parameters of the layers that read other modalities have names that begin with `cross`; they are
  there once a context has been met.

  Attributes:
    width: of the features.
    depth: number of blocks.
    heads: of attention, a divisor of the width.
    hidden: of a block's two-layer perceptron.
    features: sinusoidal features of a time.
    dtype: of the computation, e.g. bfloat16; parameters and results stay float32.
  """

  width: int
  depth: int
  heads: int
  hidden: int
  features: int = 64
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "batch frames tokens size"],
    t: Float[Array, " batch"] | Float[Array, ""],
    prompt: Float[Array, "batch _"],
    context: Float[Array, "batch keys _"] | None = None,
  ) -> Float[Array, "batch frames tokens size"]:
    """Predicts for each row.

    Args:
      z: latents at their times; one frame but for videos.
      t: times in [0, 1]; a scalar serves all rows.
      prompt: embeddings of what is given; zeros are no prompt.
      context: tokens of other modalities; None leaves out what reads them.
    """
    frames, tokens = z.shape[1:3]
    dense, norm = (partial(layer, dtype=self.dtype) for layer in (nn.Dense, nn.LayerNorm))
    time = dense(self.width, name="time")(sinusoidal(jnp.atleast_1d(t), self.features))
    condition = nn.silu(time + dense(self.width, use_bias=False, name="prompt")(prompt))
    h = dense(self.width, name="in")(z)
    if tokens > 1:
      positions = self.param("positions", nn.initializers.normal(0.02), (tokens, self.width))
      h = h + positions.astype(h.dtype)
    for i in range(self.depth):
      branches = ("attention", "mlp") if tokens > 1 else ("mlp",)
      changes = dense(3 * len(branches) * self.width, kernel_init=ZEROS, name=f"adaln_{i}")(
        condition
      )
      changes = jnp.split(changes[:, None, None], len(branches), axis=-1)
      for branch, change in zip(branches, changes, strict=True):
        scale, shift, gate = jnp.split(change, 3, axis=-1)
        x = norm(use_scale=False, use_bias=False)(h) * (1 + scale) + shift
        if branch == "attention":
          x = nn.MultiHeadDotProductAttention(self.heads, self.dtype, name=f"attention_{i}")(x)
        else:
          x = nn.silu(dense(self.hidden, name=f"mlp_{i}_0")(x))
          x = dense(self.width, name=f"mlp_{i}_1")(x)
        h = h + gate * x
      if frames > 1:
        h = h + dense(self.width, kernel_init=ZEROS, name=f"shift_{i}")(shift_frames(h))
        # Attention knows no order but by this.
        order = sinusoidal(jnp.arange(frames) / frames, self.width)[:, None]
        by_token = jnp.swapaxes(h + order.astype(h.dtype), 1, 2)
        h = h + jnp.swapaxes(Attention(self.heads, self.dtype, name=f"frames_{i}")(by_token), 1, 2)
      if context is not None:
        flat = h.reshape(len(h), frames * tokens, self.width)
        h = h + Attention(self.heads, self.dtype, name=f"cross_{i}")(flat, context).reshape(h.shape)
    scale, shift = jnp.split(
      dense(2 * self.width, name="adaln")(condition)[:, None, None], 2, axis=-1
    )
    h = norm(use_scale=False, use_bias=False)(h) * (1 + scale) + shift
    return dense(z.shape[-1], kernel_init=ZEROS, name="out")(h).astype(z.dtype)


class Environment(nn.Module):
  """V: a noisy latent, as tokens in a space that all modalities share.

  Attributes:
    tokens: how many. Attention to a single one is no choice: it adds the same to all that reads.
    size: of a token.
    width: of the two hidden layers.
    features: sinusoidal features of a time.
    dtype: of the computation, e.g. bfloat16; parameters and results stay float32.
  """

  tokens: int
  size: int
  width: int
  features: int = 64
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "batch frames tokens size"],
    t: Float[Array, " batch"] | Float[Array, ""],
  ) -> Float[Array, "batch {self.tokens} {self.size}"]:
    """Encodes latents at their times, in [0, 1]; a scalar serves all rows."""
    dense = partial(nn.Dense, dtype=self.dtype)
    time = dense(self.width, name="time")(sinusoidal(jnp.atleast_1d(t), self.features))
    h = nn.silu(dense(self.width, name="in")(z.reshape(len(z), -1)) + time)
    h = nn.silu(dense(self.width, name="hidden")(h))
    h = dense(self.tokens * self.size, name="out")(h).reshape(len(z), self.tokens, self.size)
    return nn.LayerNorm(dtype=self.dtype, name="norm")(h).astype(z.dtype)
