"""The modalities as values, their aggregate, and what the network's heads say of them.

Training, generation and the bound share these functions.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmdiff_jax import schedules
from mmdiff_jax.frameworks.base import Batch, Params
from mmdiff_jax.frameworks.mt_diffusion.model import MTDiffusion
from mmdiff_jax.frameworks.normalize import normalize


def values_of(model: MTDiffusion, batch: Batch) -> dict[str, Array]:
  """Returns the values of a batch of model inputs."""
  return {modality.name: normalize(modality, batch[modality.name]) for modality in model.modalities}


def means(model: MTDiffusion, predicted: Mapping[str, Array]) -> dict[str, Array]:
  """Returns the means of the values from the heads' predictions, which for classes are logits."""
  return {
    m.name: jax.nn.softmax(predicted[m.name], axis=-1) if m.num_classes else predicted[m.name]
    for m in model.modalities
    if m.name in predicted
  }


def cross_entropy(
  logits: Float[Array, "*axes classes"], value: Float[Array, "*axes classes"]
) -> Float[Array, "*axes"]:
  """Returns the cross-entropy of a value's classes, in nats."""
  return -jnp.sum(value * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def aggregate(model: MTDiffusion, encoded: Mapping[str, Array]) -> tuple[Array, Array]:
  """Returns z_0 and E of encoded modalities.

  With the aggregation "start" z_0 is the aggregate of all, and nothing enters later (E has no
  effect and is 0). With "steps" z_0 is the main modality, and E the aggregate of the others.
  Without heads z_0 is the main modality either way.
  """
  main = encoded[model.main]
  omega = {name: model.omega[name] for name in encoded}
  if len(encoded) == 1:
    return main, jnp.zeros_like(main)
  if model.aggregation == "start":
    return sum(omega[name] * e for name, e in encoded.items()), jnp.zeros_like(main)
  others = (omega[name] * e for name, e in encoded.items() if name != model.main)
  return main, sum(others)


def read(
  model: MTDiffusion, params: Params, z, t, given: Mapping[str, Array], *, informed: bool
) -> tuple[Array, dict[str, Array]]:
  """Returns the network's eps, and each modality's value: as given, or the predicted mean.

  Without a head the main modality is z_0 itself, from eps, clipped to the range of values.
  """
  rows = jnp.ones(len(z))
  inputs = {name: (rows, value) for name, value in given.items()} if informed else {}
  eps, predicted = model.network.apply(params["network"], z, t, inputs)
  values = means(model, predicted)
  if not values:
    start = model.process.start(z, eps, jnp.zeros_like(z), t)
    values = {model.main: jnp.clip(start, -1.0, 1.0)}
  return eps, values | dict(given)


def estimate(
  model: MTDiffusion, params: Params, z, t, given: Mapping[str, Array], *, informed: bool
) -> tuple[Array, Array]:
  """Returns z_0 and E, rebuilt from the modalities.

  Where the network has all given modalities as input, eps gives z_0, too. Its error counts
  sigma_t / a_t times, and those of the heads as they are, so eps is used where a_t > sigma_t.
  """
  eps, values = read(model, params, z, t, given, informed=informed)
  z0, total = aggregate(model, model.network.apply(params["network"], values, method="encode"))
  if (given and not informed) or not model.heads:
    return z0, total
  a, sigma = model.process.table.alpha(t), model.process.table.sigma(t)
  return jnp.where(schedules.along(a > sigma, z), model.process.start(z, eps, total, t), z0), total


def read_main(
  model: MTDiffusion, params: Params, z: Array, t: Array, eps: Array, values: Mapping[str, Array]
) -> Float[Array, "batch ..."]:
  """Reads the main modality off z_t itself where little noise is left.

  By (2) z_t less its noise is a_t (z_0 + W_t E), from which the part of the other modalities is
  subtracted. An error of eps then counts sigma_t / (a_t |omega|) times, where omega is the weight
  of the main modality in z_0, and an error of its head as it is. So z_t is used
  where a_t |omega| > sigma_t, as eps is in `estimate`, and the head elsewhere.

  Args:
    model: the record.
    params: with the entry `network`.
    z: points of the shared space.
    t: their time.
    eps: the predicted noise.
    values: of the other modalities, as given or predicted, and of the main modality by its head,
      if it has one.

  Returns:
    The value of the main modality.
  """
  main = model.main
  others = {**values, main: jnp.zeros_like(z)}
  rest, total = aggregate(model, model.network.apply(params["network"], others, method="encode"))
  # As `aggregate` weights it.
  weighted = model.aggregation == "start" and len(others) > 1
  omega = model.omega[main] if weighted else 1.0
  exact = (model.process.start(z, eps, total, t) - rest) / omega
  a, sigma = model.process.table.alpha(t), model.process.table.sigma(t)
  little = schedules.along(a * abs(omega) > sigma, z)
  return jnp.where(little, exact, values.get(main, exact))
