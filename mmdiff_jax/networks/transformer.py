"""A denoiser of one modality's latent, or of the latents of a video's frames.

A latent is a few tokens. Blocks are those of a diffusion transformer (Peebles and Xie 2023, "adaLN
zero"): an embedding of time and prompt scales, shifts and gates every branch. For a video the same
network reads every frame, and each block is followed by two layers that mix frames. Each block may
also attend to tokens of other modalities. These additions end in a layer that starts at zero, so
that they change nothing until they are trained.
"""

from functools import partial

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from mmdiff_jax.networks.embeddings import sinusoidal

ZEROS = nn.initializers.zeros


def shift_frames(
  h: Float[Array, "batch frames tokens width"], fraction: float = 0.25
) -> Float[Array, "batch frames tokens width"]:
  """Moves the first channels of each frame to the next one, and as many others to the previous one.

  Args:
    h: features; frame i of the result takes the first `fraction` of its channels from frame i - 1,
      the second from frame i + 1, and the rest from itself. Beyond the ends there are zeros.
    fraction: of the channels, at most a half.
  """
  group = int(fraction * h.shape[-1])
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
    """Returns the term to be added to `h`."""
    queries = nn.LayerNorm(dtype=self.dtype, name="norm")(h)
    keys = queries if context is None else context
    return nn.MultiHeadDotProductAttention(
      self.heads, self.dtype, qkv_features=h.shape[-1], out_kernel_init=ZEROS, name="attend"
    )(queries, keys)


class LatentTransformer(nn.Module):
  """Predicts the noise, or another array of the latent's shape.

  Parameters of the layers that read other modalities have names that begin with `cross`; they exist
  only if the network was initialised with a context.

  Attributes:
    width: of the features.
    depth: number of blocks.
    heads: number of attention heads, a divisor of the width.
    hidden: hidden size of a block's two-layer perceptron.
    features: number of sinusoidal features of a time.
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
      z: latents at their times; one frame, except for videos.
      t: times in [0, 1]; a scalar serves all rows.
      prompt: embeddings of what is given; zeros mean no prompt.
      context: tokens of other modalities; None leaves out the layers that read them.
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
        # Without this, attention would not know the order of frames.
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
  """V: encodes a noisy latent as tokens in a space that all modalities share.

  Attributes:
    tokens: their number. Attention to a single token has no choice: every reader gets the same.
    size: of a token.
    width: of the two hidden layers.
    features: number of sinusoidal features of a time.
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
