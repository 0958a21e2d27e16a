"""CoDi's losses: InfoNCE of stage 2, (1) of stage 3 and (2) of stage 4."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import diffusion, multitime, noise as noise_lib, parallel
from mmdiff_jax.frameworks.base import Params
from mmdiff_jax.frameworks.codi.model import CoDi, PromptNoise, SCHEDULE
from mmdiff_jax.frameworks.codi.networks import predict
from mmdiff_jax.networks.prompts import unit


def info_nce(
  a: Float[Array, "batch size"], b: Float[Array, "batch size"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
  """Returns the symmetric InfoNCE of unit vectors whose rows i belong together, in nats.

  If the second gives no more than the class of the first, one of K equally likely ones, no encoders
  come below E log(1 + Bin(B - 1, 1 / K)), B the batch. Each row is compared with all of
  the batch, also where a device has a part of it.

  Args:
    a: codes of one modality.
    b: codes of the other.
    log_scale: the logarithm of the inverse temperature.
  """
  a, b = parallel.all_rows(a), parallel.all_rows(b)
  logits = jnp.exp(log_scale) * a @ b.T
  right = jnp.diagonal(logits)
  return 0.5 * sum(jnp.mean(jax.nn.logsumexp(logits, axis=axis) - right) for axis in (0, 1))


def sample_prompt(
  noise: PromptNoise, key: PRNGKeyArray, prompts: Sequence[Float[Array, "batch size"]]
) -> Float[Array, "batch size"]:
  """Draws the prompts of training examples: one of several at random, perturbed, or none.

  Args:
    noise: how often there is none, and the noise.
    key: draws all of these.
    prompts: unit vectors, of which each row gets one.
  """
  which_key, absent_key, noise_key = jax.random.split(key, 3)
  rows, size = prompts[0].shape
  which = jax.random.randint(which_key, (rows,), 0, len(prompts))
  # Not by index, which would make devices exchange their rows.
  prompt = jax.lax.select_n(jnp.broadcast_to(which[:, None], (rows, size)), *prompts)
  eps = noise_lib.normal_like(noise_key, "prompt", prompt)
  scale = noise.prompt_noise / size**0.5
  present = jax.random.bernoulli(absent_key, 1 - noise.absent_prob, (rows, 1))
  return jnp.where(present, prompt + scale * eps, 0.0)


def perturb(
  key: PRNGKeyArray, z: Mapping[str, Array], t: Float[Array, " batch"]
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Returns latents at one shared time, and the v of each."""
  eps = {name: noise_lib.normal_like(key, name, value) for name, value in z.items()}
  perturbed = {n: diffusion.perturb(SCHEDULE, value, eps[n], t) for n, value in z.items()}
  target = {n: diffusion.target("v", SCHEDULE, value, eps[n], t) for n, value in z.items()}
  return perturbed, target


def diffusion_loss(
  model: CoDi, params: Params, key: PRNGKeyArray, name: str, z: Array, prompt: Array
) -> Float[Array, ""]:
  """The loss (1), a mean over components and examples.

  Args:
    model: the record.
    params: with the entry `diffusion_NAME`.
    key: draws times, noise and withheld prompts.
    name: the modality.
    z: its standardised latents.
    prompt: unit vectors of its partners.
  """
  t_key, noise_key, prompt_key = jax.random.split(key, 3)
  t = multitime.uniform_time()(t_key, len(z))[0]
  perturbed, target = perturb(noise_key, {name: z}, t)
  prompt = sample_prompt(model.diffusion_prompts, prompt_key, [prompt])
  predicted = predict(model, params, [name], perturbed, t, prompt, aligned=False)
  return jnp.mean((predicted[name] - target[name]) ** 2)


def alignment_loss(
  model: CoDi,
  params: Params,
  key: PRNGKeyArray,
  names: Sequence[str],
  z: Mapping[str, Array],
  prompts: Mapping[str, Array],
  log_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss (2) for one link.

  Args:
    model: the record.
    params: all entries of both modalities.
    key: draws times, noise and prompts.
    names: those of the two that are trained, whose losses are counted.
    z: standardised latents of both.
    prompts: unit vectors of both, of which each example is given one or none.
    log_scale: of the contrast.

  Returns:
    The loss, and its parts.
  """
  t_key, noise_key, prompt_key, contrast_key = jax.random.split(key, 4)
  first, second = z
  t = multitime.uniform_time()(t_key, len(z[first]))[0]
  perturbed, target = perturb(noise_key, z, t)
  prompt = sample_prompt(model.alignment_prompts, prompt_key, [prompts[first], prompts[second]])
  predicted = predict(model, params, names, perturbed, t, prompt, aligned=True)
  parts = {f"loss_{name}": jnp.mean((predicted[name] - target[name]) ** 2) for name in names}
  # Each encoder is given its time: at a shared time both could match rows by that alone, whatever
  # the latents are.
  second_t_key, second_noise_key = jax.random.split(contrast_key)
  second_t = multitime.uniform_time()(second_t_key, len(t))[0]
  second_perturbed, _ = perturb(second_noise_key, {second: z[second]}, second_t)
  pooled = []
  for name, value, time in (
    (first, perturbed[first], t),
    (second, second_perturbed[second], second_t),
  ):
    entry = params[f"alignment_{name}"]["environment"]
    pooled.append(unit(model.environments[name].apply(entry, value, time).mean(axis=1)))
  contrast = info_nce(*pooled, log_scale)
  total = sum(parts.values()) + model.contrast * contrast
  return total, parts | {"contrast": contrast}
