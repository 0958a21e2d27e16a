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
from mmdiff_jax.frameworks.mt_diffusion.heads import (
  aggregate,
  cross_entropy,
  estimate,
  means,
  read_main,
  values_of,
)
from mmdiff_jax.frameworks.mt_diffusion.model import MTDiffusion, SPACE

_RESIDUAL_ROWS = 512  # Rows of the training split from which the stds are estimated.
_CHUNK = 64  # Rows in one call.
_LEAST_STD = 1e-3


def measure(
  model: MTDiffusion, params: Params, key: PRNGKeyArray, train: Batch, test: Batch, *, num: int
) -> dict[str, float]:
  """Measures the bound over some test examples, with stds from training examples.

  Args:
    model: the record.
    params: with the entry `network`.
    key: draws the examples and the noise.
    train: model inputs; `residuals` are of 512 of their rows, or of all if fewer.
    test: likewise.
    num: how many test examples; all if there are fewer.

  Returns:
    The terms of `bound`, as floats.
  """

  def squares(params, key, batch):
    return {name: error**2 for name, error in residuals(model, params, key, batch).items()}

  def terms(params, key, batch):
    return bound(model, params, key, batch, stds)

  names = [modality.name for modality in model.modalities]
  train, test = ({name: data[name] for name in names} for data in (train, test))
  error_key, key = jax.random.split(key)
  squared = _mean_over(squares, params, error_key, train, _RESIDUAL_ROWS)
  # A modality that is always the same is predicted without any error.
  stds = {name: max(square**0.5, _LEAST_STD) for name, square in squared.items()}
  return _mean_over(terms, params, key, test, num)


def _mean_over(
  function: Callable[..., Mapping[str, Array]],
  params: Params,
  key: PRNGKeyArray,
  data: Batch,
  num: int,
) -> dict[str, float]:
  """Returns means of what `function(params, key, batch)` returns, over random rows, in parts."""
  row_key, key = jax.random.split(key)
  size = len(next(iter(data.values())))
  rows = np.asarray(jax.random.permutation(row_key, size))[:num]
  # Parts that differ by one row at most, so that at most two programs are compiled.
  parts = np.array_split(rows, -(-len(rows) // _CHUNK))
  run = jax.jit(function)
  results = [
    run(params, jax.random.fold_in(key, i), {name: x[part] for name, x in data.items()})
    for i, part in enumerate(parts)
  ]
  fractions = [len(part) / len(rows) for part in parts]
  return {
    name: sum(weight * float(r[name]) for weight, r in zip(fractions, results, strict=True))
    for name in results[0]
  }


def bound(
  model: MTDiffusion,
  params: Params,
  key: PRNGKeyArray,
  batch: Batch,
  stds: Mapping[str, float | Float[Array, ""]],
) -> dict[str, Float[Array, ""]]:
  """Returns the variational bound on -log p(X): its terms in nats, means over the examples.

  With the chain z_1, .., z_T, the reverse p(z_{t-1} | z_t) = (4) at the network's z_0 and E, and
  p(X | z_1) = prod_i p(x_i | z_1), where the main modality has the mean that is read off z_1 itself
  (`read_main`), and the others those of their heads,

    -log p(X) <= KL(q(z_T | X) || N(0, I))                               prior
               + sum_{t=2}^T E KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t))  steps
               + E[-log p(x_main | z_1)] + sum_i E[-log p(x_i | z_1)].      nll_<modality>

  Images count as integrals over their 256 levels (so that theirs is a distribution of integers, and
  bits per dimension mean something), other continuous modalities as densities of their values.

  Args:
    model: the record.
    params: with the entry `network`.
    key: draws the noise at each of the T steps.
    batch: model inputs.
    stds: of each continuous modality's Gaussian p(x_i | z_1), in units of its value (images
      in [-1, 1]); see `residuals`.

  Returns:
    `prior`, `steps`, `nll_<modality>`, their sum `total`, and `bits_per_dim`, the sum over the
    main modality's number of components.
  """
  process = model.process
  values = values_of(model, batch)
  z0, total = aggregate(model, model.network.apply(params["network"], values, method="encode"))
  size = len(process.weights)

  def draw(index):
    """Draws z at an entry of the table; returns it and the time."""
    t = jnp.asarray(index / size, z0.dtype)
    mean, std = process.marginal(z0, total, t)
    noise = noise_lib.normal_like(jax.random.fold_in(key, index), SPACE, z0)
    return mean + std * noise, t

  def of_step(sum_, index):
    z, t = draw(index)
    s = jnp.asarray((index - 1) / size, z0.dtype)
    true, std = process.posterior(z, z0, total, t, s)
    model_mean, _ = process.posterior(z, *estimate(model, params, z, t, {}, informed=False), t, s)
    return sum_ + _sum((true - model_mean) ** 2) / (2 * std**2), None

  mean, std = process.marginal(z0, total, jnp.ones((), z0.dtype))
  terms = {"prior": _sum(0.5 * (mean**2 + std**2 - 1) - jnp.log(std))}
  terms["steps"], _ = jax.lax.scan(of_step, jnp.zeros(len(z0), z0.dtype), jnp.arange(2, size + 1))
  for name, predicted in _read_first(model, params, *draw(jnp.asarray(1))).items():
    modality = next(m for m in model.modalities if m.name == name)
    value = values[name]
    if modality.num_classes:
      terms[f"nll_{name}"] = _sum(cross_entropy(predicted, value))
    elif modality.kind == "image":
      terms[f"nll_{name}"] = -_sum(_log_level(batch[name], predicted, stds[name]))
    else:
      terms[f"nll_{name}"] = -_sum(norm.logpdf(value, predicted, stds[name]))
  terms = {name: jnp.mean(term) for name, term in terms.items()}
  terms["total"] = sum(terms.values())
  terms["bits_per_dim"] = terms["total"] / (jnp.log(2.0) * z0[0].size)
  return terms


def residuals(
  model: MTDiffusion, params: Params, key: PRNGKeyArray, batch: Batch
) -> dict[str, Float[Array, ""]]:
  """Returns the std of the error of each continuous modality at z_1; arguments as `bound`.

  Take them from training data: the bound is one for any stds that do not depend on its batch.
  """
  values = values_of(model, batch)
  z0, total = aggregate(model, model.network.apply(params["network"], values, method="encode"))
  t = jnp.asarray(1 / len(model.process.weights), z0.dtype)
  mean, std = model.process.marginal(z0, total, t)
  z = mean + std * noise_lib.normal_like(key, SPACE, z0)
  readings = _read_first(model, params, z, t)
  return {
    modality.name: jnp.sqrt(jnp.mean((readings[modality.name] - values[modality.name]) ** 2))
    for modality in model.modalities
    if modality.name in readings and not modality.num_classes
  }


def _read_first(model: MTDiffusion, params: Params, z, t) -> dict[str, Array]:
  """Returns the heads' predictions at z_1, and the main modality as read off z_1 itself."""
  eps, predicted = model.network.apply(params["network"], z, t, {})
  main = read_main(model, params, z, t, eps, means(model, predicted))
  return {**predicted, model.main: main}


def _sum(x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
  return jnp.sum(x.reshape(len(x), -1), axis=-1)


def _log_level(
  x: Float[Array, "batch ..."], mean: Float[Array, "batch ..."], std: Any
) -> Float[Array, "batch ..."]:
  """log of N(mean, std^2) integrated over the level of `x`, of 256 in [0, 1] (Ho et al.).

  The outer levels reach to infinity. `mean` is in [-1, 1].
  """
  level = jnp.round(255.0 * jnp.asarray(x))
  low = (2.0 * (level - 0.5) / 255.0 - 1.0 - mean) / std
  high = (2.0 * (level + 0.5) / 255.0 - 1.0 - mean) / std
  # Both on the side of the tail where differences of Phi keep their digits.
  flip = low + high > 0
  low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
  first, last = level == 0, level == 255
  low = jnp.where(jnp.where(flip, last, first), -jnp.inf, low)
  high = jnp.where(jnp.where(flip, first, last), jnp.inf, high)
  top = norm.logcdf(high)
  return top + jnp.log(-jnp.expm1(norm.logcdf(low) - top))
