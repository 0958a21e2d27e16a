"""MT-Diffusion's variational bound, of which the training loss is the practical form."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np

from mmdiff_jax import noise as noise_lib
from mmdiff_jax.frameworks.base import Batch, Params
from mmdiff_jax.frameworks.mt_diffusion_model import (
  aggregate,
  cross_entropy,
  estimate,
  means,
  Model,
  read_main,
  SPACE,
  values_of,
)

_RESIDUAL_ROWS = 512  # Of the training split: the deviations are taken from them.
_CHUNK = 64  # Rows at once.
_LEAST_DEVIATION = 1e-3


def measure(
  model: Model, params: Params, key: PRNGKeyArray, train: Batch, test: Batch, *, num: int
) -> dict[str, float]:
  """The bound over some test examples, with deviations from training examples.

  Args:
    model: from `model_of`.
    params: with the entry `network`.
    key: draws the examples and the noise.
    train: arrays in the model's view; `residuals` of 512 of their rows, or of all if fewer.
    test: likewise.
    num: how many test examples; all if there are fewer.

  Returns:
    What `bound` does, in floats.
  """

  def squares(params, key, batch):
    return {name: error**2 for name, error in residuals(model, params, key, batch).items()}

  def terms(params, key, batch):
    return bound(model, params, key, batch, deviations)

  names = [modality.name for modality in model.modalities]
  train, test = ({name: data[name] for name in names} for data in (train, test))
  error_key, key = jax.random.split(key)
  found = _mean_over(squares, params, error_key, train, _RESIDUAL_ROWS)
  # A modality that is always the same is predicted without any error.
  deviations = {name: max(square**0.5, _LEAST_DEVIATION) for name, square in found.items()}
  return _mean_over(terms, params, key, test, num)


def _mean_over(
  function: Callable[..., Mapping[str, Array]],
  params: Params,
  key: PRNGKeyArray,
  data: Batch,
  num: int,
) -> dict[str, float]:
  """Means of what `function(params, key, batch)` finds, over random rows, some at a time."""
  row_key, key = jax.random.split(key)
  size = len(next(iter(data.values())))
  rows = np.asarray(jax.random.permutation(row_key, size))[:num]
  # Parts that differ by one row at most: one program or two.
  parts = np.array_split(rows, -(-len(rows) // _CHUNK))
  run = jax.jit(function)
  found = [
    run(params, jax.random.fold_in(key, i), {name: x[part] for name, x in data.items()})
    for i, part in enumerate(parts)
  ]
  shares = [len(part) / len(rows) for part in parts]
  return {
    name: sum(share * float(one[name]) for share, one in zip(shares, found, strict=True))
    for name in found[0]
  }


def bound(
  model: Model,
  params: Params,
  key: PRNGKeyArray,
  batch: Batch,
  deviations: Mapping[str, float | Float[Array, ""]],
) -> dict[str, Float[Array, ""]]:
  """The variational bound on -log p(X), its terms in nats, means over the examples.

  With the chain z_1, .., z_T, the reverse p(z_{t-1} | z_t) = (4) at the network's z_0 and E, and
  p(X | z_1) = prod_i p(x_i | z_1), where the main modality has the mean that is read off z_1 itself
  (`read_main`), and the others those of their heads,

    -log p(X) <= KL(q(z_T | X) || N(0, I))                               prior
               + sum_{t=2}^T E KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t))  steps
               + E[-log p(x_main | z_1)] + sum_i E[-log p(x_i | z_1)].      nll_<modality>

  Images count as integrals over their 256 levels (so that they are a law of whole numbers, and bits
  a dimension mean something), other continuous modalities as densities of their values.

  Args:
    model: from `model_of`.
    params: with the entry `network`.
    key: draws the noise at each of the T steps.
    batch: arrays in the model's view.
    deviations: of each continuous modality's Gaussian p(x_i | z_1), in units of its value (images
      in [-1, 1]); see `residuals`.

  Returns:
    `prior`, `steps`, `nll_<modality>`, their sum `total`, and `bits_per_dim`, the sum over the
    main modality's number of components.
  """
  process = model.process
  values = values_of(model, batch)
  z0, total = aggregate(model, model.network.apply(params["network"], values, method="encode"))
  size = len(process.weights)

  def drawn(index):
    """z at an entry of the table, and the time."""
    t = jnp.asarray(index / size, z0.dtype)
    mean, deviation = process.marginal(z0, total, t)
    noise = noise_lib.normal_like(jax.random.fold_in(key, index), SPACE, z0)
    return mean + deviation * noise, t

  def of_step(sum_, index):
    z, t = drawn(index)
    s = jnp.asarray((index - 1) / size, z0.dtype)
    true, deviation = process.posterior(z, z0, total, t, s)
    model_mean, _ = process.posterior(z, *estimate(model, params, z, t, {}, informed=False), t, s)
    return sum_ + _sum((true - model_mean) ** 2) / (2 * deviation**2), None

  mean, deviation = process.marginal(z0, total, jnp.ones((), z0.dtype))
  terms = {"prior": _sum(0.5 * (mean**2 + deviation**2 - 1) - jnp.log(deviation))}
  terms["steps"], _ = jax.lax.scan(of_step, jnp.zeros(len(z0), z0.dtype), jnp.arange(2, size + 1))
  for name, predicted in _read_first(model, params, *drawn(jnp.asarray(1))).items():
    modality = next(m for m in model.modalities if m.name == name)
    value = values[name]
    if modality.num_classes:
      terms[f"nll_{name}"] = _sum(cross_entropy(predicted, value))
    elif modality.kind == "image":
      terms[f"nll_{name}"] = -_sum(_log_level(batch[name], predicted, deviations[name]))
    else:
      terms[f"nll_{name}"] = -_sum(norm.logpdf(value, predicted, deviations[name]))
  terms = {name: jnp.mean(term) for name, term in terms.items()}
  terms["total"] = sum(terms.values())
  terms["bits_per_dim"] = terms["total"] / (jnp.log(2.0) * z0[0].size)
  return terms


def residuals(
  model: Model, params: Params, key: PRNGKeyArray, batch: Batch
) -> dict[str, Float[Array, ""]]:
  """Std of the error with which each continuous modality is read at z_1; arguments as `bound`.

  Take them from training data: the bound is one for any deviations that do not depend on its batch.
  """
  values = values_of(model, batch)
  z0, total = aggregate(model, model.network.apply(params["network"], values, method="encode"))
  t = jnp.asarray(1 / len(model.process.weights), z0.dtype)
  mean, deviation = model.process.marginal(z0, total, t)
  z = mean + deviation * noise_lib.normal_like(key, SPACE, z0)
  found = _read_first(model, params, z, t)
  return {
    modality.name: jnp.sqrt(jnp.mean((found[modality.name] - values[modality.name]) ** 2))
    for modality in model.modalities
    if modality.name in found and not modality.num_classes
  }


def _read_first(model: Model, params: Params, z, t) -> dict[str, Array]:
  """The heads' predictions at z_1, and the main modality as it is read off z_1 itself."""
  eps, predicted = model.network.apply(params["network"], z, t, {})
  main = read_main(model, params, z, t, eps, means(model, predicted))
  return {**predicted, model.config.main: main}


def _sum(x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
  return jnp.sum(x.reshape(len(x), -1), axis=-1)


def _log_level(
  x: Float[Array, "batch ..."], mean: Float[Array, "batch ..."], deviation: Any
) -> Float[Array, "batch ..."]:
  """log of N(mean, deviation^2) integrated over the level of `x`, of 256 in [0, 1] (Ho et al.).

  The outer levels reach to infinity. `mean` is in [-1, 1].
  """
  level = jnp.round(255.0 * jnp.asarray(x))
  low = (2.0 * (level - 0.5) / 255.0 - 1.0 - mean) / deviation
  high = (2.0 * (level + 0.5) / 255.0 - 1.0 - mean) / deviation
  # Both on the side of the tail where differences of Phi keep their digits.
  flip = low + high > 0
  low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
  first, last = level == 0, level == 255
  low = jnp.where(jnp.where(flip, last, first), -jnp.inf, low)
  high = jnp.where(jnp.where(flip, first, last), jnp.inf, high)
  top = norm.logcdf(high)
  return top + jnp.log(-jnp.expm1(norm.logcdf(low) - top))
