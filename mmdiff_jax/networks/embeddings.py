"""Embeddings of diffusion times, so that a network can read them at every scale.

A raw time is one number of a large vector and hardly moves a network's output; sines of many
frequencies resolve both its coarse value and the small differences near t = 0, where the signal to
noise ratio changes fastest (Vaswani et al. 2017, section 3.5, with t in [0, 1] for the position).
"""

from collections.abc import Mapping

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float
import numpy as np

MAX_FREQUENCY = 1000.0


def sinusoidal(t: Float[Array, "*axes"], size: int) -> Float[Array, "*axes size"]:
  """Returns cosines and sines of `t` at geometrically spaced angular frequencies.

  Args:
    t: times in [0, 1].
    size: number of features, even: cos(w_k t) for all k, then sin(w_k t), with w_k from 1 to
      `MAX_FREQUENCY` rad.

  Returns:
    The features, in [-1, 1].

  Raises:
    ValueError: `size` is odd or not positive.
  """
  if size <= 0 or size % 2:
    raise ValueError(f"sinusoidal: size must be even and positive, cosines and sines; got {size}.")
  frequencies = np.geomspace(1.0, MAX_FREQUENCY, size // 2)
  angles = t[..., None] * jnp.asarray(frequencies, t.dtype)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class MultiTimeEmbedding(nn.Module):
  """Embeds the vector of all modalities' times: the sum of one learned embedding per modality.

  Attributes:
    size: length of the embedding.
    features: number of sinusoidal features of each time, even.
    dtype: of the computation after the sinusoids; parameters are float32.
  """

  size: int
  features: int = 128
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, t: Mapping[str, Float[Array, ""] | Float[Array, " batch"]]
  ) -> Float[Array, "rows {self.size}"]:
    """Embeds times in [0, 1]; `rows` is the batch, or 1 if every time is a scalar."""
    return sum(
      nn.Dense(self.size, dtype=self.dtype, name=name)(
        sinusoidal(jnp.atleast_1d(t[name]), self.features)
      )
      for name in sorted(t)
    )
