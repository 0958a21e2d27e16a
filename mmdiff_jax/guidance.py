"""Guidance: denoisers made from denoisers."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from mmdiff_jax.schedules import along
from mmdiff_jax.solvers import Denoiser


def _guided(denoiser, strength, noise, x, t):
  # The rows as they are, then as many with all that is given absent: one call for both.
  num_rows = next(iter(x.values())).shape[0]
  rows, times = {}, {}
  for name, value in x.items():
    time = jnp.broadcast_to(t[name], (num_rows,))
    given = (time == 0) if name in noise else jnp.zeros_like(time, bool)
    without = jnp.where(along(given, value), noise.get(name, value), value)
    rows[name] = jnp.concatenate([value, without])
    times[name] = jnp.concatenate([time, jnp.where(given, 1, time).astype(time.dtype)])

  def combine(estimate):
    conditional, unconditional = estimate[:num_rows], estimate[num_rows:]
    return unconditional + strength * (conditional - unconditional)

  return jax.tree.map(combine, denoiser(rows, times))


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
    A denoiser. For the number 1 it is `denoiser` itself; else it calls `denoiser` once, on twice as
    many rows, with one time for each row.
  """
  if not isinstance(strength, jax.Array) and strength == 1:
    return denoiser
  denoiser = denoiser if isinstance(denoiser, Partial) else Partial(denoiser)
  return Partial(_guided, denoiser, strength, dict(noise))
