"""MT-Diffusion's training: the loss (6), and the stage around it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import noise
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Batch, jit_sample, Params, Stage
from mmdiff_jax.frameworks.ddpm import initialise
from mmdiff_jax.frameworks.mt_diffusion.heads import aggregate, cross_entropy, values_of
from mmdiff_jax.frameworks.mt_diffusion.model import MTDiffusion, SPACE
from mmdiff_jax.frameworks.normalize import check_examples, normalize


def loss(
  model: MTDiffusion, params: Params, key: PRNGKeyArray, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss (6), each term a mean over components and examples.

  A modality that is given to an informed network has nothing to teach: its term is a mean over the
  examples in which it is not given. How many of a batch these are is left to chance, so the divisor
  is their expected number, and the loss is unbiased.

  Args:
    model: the record.
    params: with the entry `network`.
    key: draws times, noise, what is given, what is augmented, and dropout.
    batch: model inputs.

  Returns:
    The loss, and its terms `loss_eps` and `loss_<modality>`, before their weights.
  """
  network = functools.partial(model.network.apply, params["network"])
  t_key, noise_key, given_key, augment_key, dropout_key = jax.random.split(key, 5)
  values = values_of(model, batch)
  rows = len(values[model.main])
  prob = model.given_prob if model.informed else 0.0
  flags = draw_given(given_key, tuple(values), rows, prob)
  given = {name: (flags[name], value) for name, value in values.items()}
  if model.augment:
    (main,) = model.modalities
    augmented = normalize(main, batch[model.augment])
    replaced = jax.random.bernoulli(augment_key, model.augment_prob, (rows,)).astype(jnp.float32)
    values = {main.name: jnp.where(replaced[:, None, None, None] > 0, augmented, values[main.name])}
    # The network has the flag as input, so that none of these are generated later (as by Karras et
    # al. 2022, appendix F.2).
    given = {main.name: (replaced, jnp.zeros_like(augmented))}

  z0, total = aggregate(model, network(values, method="encode"))
  if model.stop_gradient:
    z0, total = jax.lax.stop_gradient((z0, total))
  size = len(model.process.weights)
  t = jax.random.randint(t_key, (rows,), 1, size + 1) / size
  eps = noise.normal_like(noise_key, SPACE, z0)
  mean, std = model.process.marginal(z0, total, t)
  predicted_eps, predicted = network(
    mean + std * eps, t, given, train=True, rngs={"dropout": dropout_key}
  )
  terms = {"loss_eps": jnp.mean((eps - predicted_eps) ** 2)}
  result = terms["loss_eps"]
  for modality in model.modalities:
    if modality.name not in predicted:
      continue
    prediction, target = predicted[modality.name], values[modality.name]
    if modality.num_classes:
      error = cross_entropy(prediction, target)
    else:
      error = (prediction - target) ** 2
    each = jnp.mean(error.reshape(rows, -1), axis=-1)
    free = 1.0 - flags[modality.name]
    # Of those of which some are given, half are on average.
    term = jnp.mean(free * each) / (1.0 - prob / 2 if len(flags) > 1 else 1.0)
    terms[f"loss_{modality.name}"] = term
    result += model.loss_weight[modality.name] * term
  return result, terms


def draw_given(
  key: PRNGKeyArray, names: tuple[str, ...], rows: int, prob: float
) -> dict[str, Float[Array, " {rows}"]]:
  """Draws which modalities of each training example are given, as flags of 1 and 0.

  With probability `prob` some are but not all: their number is uniform, and so are they.
  """
  if len(names) == 1:
    return {names[0]: jnp.zeros(rows)}
  whether_key, number_key, which_key = jax.random.split(key, 3)
  number = jax.random.randint(number_key, (rows,), 1, len(names))
  number = jnp.where(jax.random.bernoulli(whether_key, prob, (rows,)), number, 0)
  order = jnp.argsort(jax.random.uniform(which_key, (rows, len(names))), axis=1)
  return {name: (order[:, i] < number).astype(jnp.float32) for i, name in enumerate(names)}


def make_stage(model: MTDiffusion, generate: Any) -> Stage:
  """Makes the stage `mt_diffusion`.

  Args:
    model: the record.
    generate: `Framework.sample`, for reports.
  """
  names = tuple(modality.name for modality in model.modalities)
  augmenting = (model.augment,) if model.augment else ()

  def prepare(frozen: Params, data: Batch):
    del frozen
    check_examples(model.modalities, data)
    for name in augmenting:
      if name not in data or data[name].shape != data[model.main].shape:
        raise UserError(
          f"config.augment.modality is {name!r}. It must be a modality of the data set with the"
          f" shape of {model.main!r}, whose place it takes."
        )
    return {}, {name: data[name] for name in (*names, *augmenting)}

  def init(key, frozen, batch):
    del frozen
    values = values_of(model, {name: batch[name][:2] for name in names})
    return initialise(model.network.init, key, values, method="initialise")

  def stage_loss(trained, frozen, key, batch):
    del frozen
    return loss(model, trained, key, batch)

  jitted = jit_sample(generate)
  others = tuple(name for name in names if name != model.main)

  def report(params, key, data):
    rows = len(data[model.main])
    samples = {"joint": jitted(params, key, {}, names, rows, model.sampler)}
    if others:
      given = {name: data[name] for name in others}
      generated = jitted(params, key, given, (model.main,), rows, model.sampler)
      samples[f"from_{'_'.join(others)}"] = given | generated
    return samples

  return Stage("mt_diffusion", ("network",), model.training, prepare, init, stage_loss, report)
