"""The multi-time denoiser of small latents: one tower per modality, one trunk for all.

The published score MLP (`mlp.ScoreMLP`) reads all latents through one linear layer. Here each
modality first passes a tower of its own, conditioned on its own time: reading a clean latent that
is given and denoising a noisy one are different tasks, and a class hidden in a large latent must be
extracted before the other modalities can follow it. The trunk then mixes all towers, and each
output reads the trunk and its own tower.
"""

from collections.abc import Mapping
from functools import partial

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from mmdiff_jax.networks.embeddings import sinusoidal
from mmdiff_jax.networks.residual import ResidualBlock


class LatentDenoiser(nn.Module):
  """Maps all noisy latents and the vector of their times to one prediction for each.

  When all times are scalars (sampling: all rows share them) their embedding is computed once.

  Attributes:
    width: width of the trunk.
    depth: residual blocks of the trunk.
    tower_width: width of the towers.
    tower_depth: residual blocks of a tower.
    features: number of sinusoidal features of a time.
    dtype: of the computation, e.g. bfloat16; parameters and predictions stay float32.
  """

  width: int
  depth: int
  tower_width: int
  tower_depth: int
  features: int = 64
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    x: Mapping[str, Float[Array, "batch _"]],
    t: Mapping[str, Float[Array, ""] | Float[Array, " batch"]],
  ) -> dict[str, Float[Array, "batch _"]]:
    """Predicts for every modality of `x`; `t` has the same names, times in [0, 1]."""
    names = sorted(x)
    dense, block = (partial(layer, dtype=self.dtype) for layer in (nn.Dense, ResidualBlock))
    embeddings, towers = {}, {}
    for name in names:
      embedded = dense(self.features, name=f"time_{name}")(
        sinusoidal(jnp.atleast_1d(t[name]), self.features)
      )
      embeddings[name] = nn.silu(embedded)
      h = dense(self.tower_width, name=f"in_{name}")(x[name])
      for i in range(self.tower_depth):
        h = block(self.tower_width, name=f"tower_{name}_{i}")(h, embeddings[name])
      towers[name] = h
    # Some times may be scalars while others have one entry per row.
    rows = max(embedding.shape[0] for embedding in embeddings.values())
    every = [jnp.broadcast_to(embeddings[name], (rows, self.features)) for name in names]
    condition = nn.silu(dense(2 * self.features, name="time")(jnp.concatenate(every, -1)))
    h = dense(self.width, name="mix")(jnp.concatenate([towers[n] for n in names], -1))
    for i in range(self.depth):
      h = block(self.width, name=f"trunk_{i}")(h, condition)
    h = nn.LayerNorm(dtype=self.dtype, name="norm")(h)
    return {
      name: dense(x[name].shape[-1], kernel_init=nn.initializers.zeros, name=f"out_{name}")(
        jnp.concatenate([h, towers[name]], -1)
      ).astype(x[name].dtype)
      for name in names
    }
