"""MLD's stage 2: the draw of times, the masked denoising loss of (1), and the stage around it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np

from mmdiff_jax import diffusion, multitime, noise
from mmdiff_jax.data import missing
from mmdiff_jax.frameworks.autoencoding import encode, select, statistics
from mmdiff_jax.frameworks.base import Batch, jit_sample, Params, Stage
from mmdiff_jax.frameworks.mld.model import MLD


def draw_times(
  model: MLD,
  key: PRNGKeyArray,
  batch_size: int,
  names: Sequence[str],
  present: Batch | None = None,
) -> multitime.Draw:
  """Draws the times of a batch as the variant does; `present` as for `multitime.draw_masked`."""
  if model.variant == "inpaint":
    return multitime.draw_joint(key, batch_size, names, draw_t=model.draw_t, present=present)
  if model.variant == "unidiffuser":
    return multitime.draw_independent(key, batch_size, names, draw_t=model.draw_t, present=present)
  return multitime.draw_masked(
    key,
    batch_size,
    names,
    given_prob=model.given_prob,
    absent_prob=model.absent_prob,
    draw_t=model.draw_t,
    present=present,
  )


def score_loss(
  model: MLD,
  params: Any,
  key: PRNGKeyArray,
  latents: Batch,
  present: Batch | None = None,
  fraction: Batch | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The masked denoising loss of (1).

  The squared error is a mean over components, then over the examples that have the modality (0
  where it is given or absent), then over modalities: neither the size of a latent nor how few
  examples have it matters. How often it is diffused in these does: always where it is alone, less
  where others are beside it, so a modality that is often alone counts somewhat more. How many
  examples of a batch have it is left to chance, so the divisor is its expectation, from `fraction`,
  and the loss is unbiased.

  Args:
    model: the record.
    params: parameters of its network.
    key: draws times and noise.
    latents: standardised latents, {name: [batch, latent]}.
    present: for each modality which examples have it, {name: bool [batch]}; None is all. Latents
      of the others are not used.
    fraction: with `present`, the fraction of all examples that have each modality.

  Returns:
    The loss and `loss_<modality>` for each.
  """
  names = sorted(latents)
  batch_size = latents[names[0]].shape[0]
  time_key, noise_key = jax.random.split(key)
  draw = draw_times(model, time_key, batch_size, names, present)
  if present:
    latents = {name: jnp.where(present[name][:, None], latents[name], 0.0) for name in names}
  perturbed, target = {}, {}
  for name in names:
    z, t = latents[name], draw.t[name]
    eps = noise.normal_like(noise_key, name, z)
    # An absent modality must carry no information: alpha(1) of VP linear is not quite 0.
    absent = t[:, None] == 1.0
    perturbed[name] = jnp.where(absent, eps, diffusion.perturb(model.schedule, z, eps, t))
    target[name] = diffusion.target(model.prediction, model.schedule, z, eps, t)
  predicted = model.network.apply(params, perturbed, draw.t)
  metrics, total = {}, 0.0
  for name in names:
    error = jnp.mean((predicted[name] - target[name]) ** 2, axis=-1)
    diffused = draw.diffused[name]
    # The mean over the examples that have it; by their number in the batch it would be biased.
    part = jnp.mean(draw.weight * diffused * error)
    total += (part / fraction[name] if present else part) / len(names)
    metrics[f"loss_{name}"] = jnp.sum(draw.weight * diffused * error) / jnp.maximum(
      jnp.sum(diffused), 1
    )
  return total, metrics


def make_stage(model: MLD, generate: Any) -> Stage:
  """Makes the stage `score`.

  Args:
    model: the record.
    generate: `Framework.sample`, for reports.
  """
  names = model.names

  def prepare(frozen: Params, data: Batch):
    complete = {name: missing.complete(select(data, name), [name])[name] for name in names}
    latents = encode(model.codecs, frozen, complete)
    measured = statistics(latents)
    standard = {
      name: (z - measured[name]["mean"]) / measured[name]["std"] for name, z in latents.items()
    }
    masks = missing.masks(data, names)
    for name, mask in masks.items():
      measured[name]["share"] = np.float32(mask.mean())
      rows = np.zeros((len(mask), standard[name].shape[1]), np.float32)
      rows[mask] = standard[name]
      standard[name] = rows
    return {"statistics": measured}, standard | {f"{n}_present": m for n, m in masks.items()}

  def init(key, frozen, batch):
    del frozen
    x = {name: batch[name][:2] for name in names}
    return {"score": model.network.init(key, x, {name: jnp.zeros(2) for name in names})}

  def loss(trained, frozen, key, batch):
    latents = {name: batch[name] for name in names}
    if f"{names[0]}_present" not in batch:
      return score_loss(model, trained["score"], key, latents)
    present = {name: batch[f"{name}_present"] for name in names}
    fraction = {name: frozen["statistics"][name]["share"] for name in names}
    return score_loss(model, trained["score"], key, latents, present, fraction)

  jitted = jit_sample(generate)
  first, *others = names

  def report(params, key, data):
    rows = len(data[first])
    samples = {"joint": jitted(params, key, {}, names, rows, model.sampler)}
    if others:
      given = {first: data[first]}
      generated = jitted(params, key, given, tuple(others), rows, model.sampler)
      samples[f"from_{first}"] = given | generated
    return samples

  needs = tuple(f"autoencoder_{name}" for name in names)
  return Stage("score", ("score",), model.training, prepare, init, loss, report, needs)
