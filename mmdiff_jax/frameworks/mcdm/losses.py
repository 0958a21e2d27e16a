"""MCDM's training: the loss of one expert, Eq. 3, and the stage around it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import diffusion, noise
from mmdiff_jax.frameworks.base import Batch, jit_sample, Params, Stage
from mmdiff_jax.frameworks.ddpm import initialise
from mmdiff_jax.frameworks.mcdm.model import Expert, SPACE
from mmdiff_jax.frameworks.normalize import check_examples, normalize


def loss(
  expert: Expert, params: Params, key: PRNGKeyArray, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Eq. 3, a mean over components and examples, at times drawn from the table.

  Args:
    expert: from `make_expert`.
    params: with the entry `network`.
    key: draws times, noise, absent conditions, and dropout.
    batch: model inputs.

  Returns:
    The loss, and an empty dict, since it has one term only.
  """
  t_key, noise_key, absent_key, dropout_key = jax.random.split(key, 4)
  x0 = normalize(expert.main, batch[expert.main.name])
  rows, size = len(x0), len(expert.schedule.betas)
  t = jax.random.randint(t_key, (rows,), 1, size + 1) / size
  eps = noise.normal_like(noise_key, SPACE, x0)
  given = {}
  for index, condition in enumerate(expert.conditions):
    flag_key = jax.random.fold_in(absent_key, index)
    flag = jax.random.bernoulli(flag_key, 1 - expert.absent_prob, (rows,))
    given[condition.name] = flag.astype(x0.dtype), normalize(condition, batch[condition.name])
  z = diffusion.perturb(expert.schedule, x0, eps, t)
  predicted = expert.network.apply(
    params["network"], z, t, given, True, rngs={"dropout": dropout_key}
  )
  target = diffusion.target(expert.prediction, expert.schedule, x0, eps, t)
  return jnp.mean((predicted - target) ** 2), {}


def make_stage(
  expert: Expert, generate: Any, tasks: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]
) -> Stage:
  """Makes the stage `mcdm`.

  Args:
    expert: from `make_expert`.
    generate: `Framework.sample`, for reports.
    tasks: `Framework.supported_tasks`, of which reports show the first and the last.
  """
  modalities = (expert.main, *expert.conditions)
  names = tuple(modality.name for modality in modalities)

  def prepare(frozen: Params, data: Batch):
    del frozen
    check_examples(modalities, data)
    return {}, {name: data[name] for name in names}

  def init(key, frozen, batch):
    del frozen
    x0 = normalize(expert.main, batch[expert.main.name][:2])
    return initialise(expert.network.init, key, x0, jnp.zeros(len(x0)), {})

  def stage_loss(trained, frozen, key, batch):
    del frozen
    return loss(expert, trained, key, batch)

  jitted = jit_sample(generate)

  def report(params, key, data):
    samples = {}
    for condition_names, targets in (tasks[0], tasks[-1]):
      given = {name: data[name] for name in condition_names}
      rows = len(data[expert.main.name])
      tag = f"from_{'_'.join(condition_names)}" if condition_names else "unconditional"
      samples[tag] = given | jitted(params, key, given, targets, rows, expert.sampler)
    return samples

  return Stage("mcdm", ("network",), expert.training, prepare, init, stage_loss, report)
