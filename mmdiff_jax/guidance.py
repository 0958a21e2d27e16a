"""Guidance: denoisers made from denoisers."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from mmdiff_jax.schedules import along
from mmdiff_jax.solvers import Denoiser


def _guided(denoiser, strength, noise, x, t):
  # Side by side on an axis of their own, not as more rows: a time that all rows share stays one.
  without_x, without_t = dict(x), dict(t)
  for name in noise:
    given = t[name] == 0
    without_x[name] = jnp.where(along(given, x[name]), noise[name], x[name])
    without_t[name] = jnp.where(given, jnp.ones_like(t[name]), t[name])
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), (x, t), (without_x, without_t))

  def combine(estimate):
    conditional, unconditional = estimate
    return unconditional + strength * (conditional - unconditional)

  return jax.tree.map(combine, jax.vmap(denoiser)(*both))


def guide(
  denoiser: Denoiser,
  strength: float | Float[Array, ""],
  noise: Mapping[str, Float[Array, "batch ..."]],
) -> Denoiser:
  """Classifier-free guidance (Ho and Salimans 2022, Eq. 6) between t = 0 and t = 1 of the given.

  With eps_c as the times say and eps_u where all that is given (time 0) is absent (time 1) instead,

    eps = eps_u + strength (eps_c - eps_u),

  and x0 in the same way, which for the same x is the same statement. Strength 1 is the conditional
  law, 0 the marginal one; above 1 the condition is pressed harder. The network must have been
  trained with absent modalities (`multitime.draw_masked(absent_prob=...)`). The result for a given
  modality itself means nothing, and no step reads it.

  Args:
    denoiser: `(x, t) -> (x0, eps)`.
    strength: weight of the condition; a number or, to change it without compiling again, an array.
    noise: what the network sees of a modality where it is absent, such as a draw of
      `solvers.prior`, or zeros; shaped as the modality. Modalities without an entry stay given.

  Returns:
    A denoiser. For the number 1 it is `denoiser` itself; else it calls `denoiser` once, for
    both, under `jax.vmap`.
  """
  if not isinstance(strength, jax.Array) and strength == 1:
    return denoiser
  denoiser = denoiser if isinstance(denoiser, Partial) else Partial(denoiser)
  return Partial(_guided, denoiser, strength, dict(noise))
