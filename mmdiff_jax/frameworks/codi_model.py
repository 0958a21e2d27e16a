"""CoDi's networks and losses; equations as in `codi.py`."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import (
  config_checks,
  multitime,
  noise as noise_lib,
  parallel,
  prediction,
  schedules,
  solvers,
)
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import autoencoding
from mmdiff_jax.frameworks.base import Batch, Params, SamplerConfig
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks import pretrained
from mmdiff_jax.networks.prompts import PromptEncoder, unit
from mmdiff_jax.networks.transformer import Environment, LatentTransformer

SCHEDULE = schedules.VPCosine()

_NOISE = {"absent_prob": config_checks.FRACTION, "prompt_noise": config_checks.real(0.0)}
_RULES = {
  "bridging.network.size": config_checks.SIZE,
  # Half of it are the channels of a convolution.
  "bridging.network.width": config_checks.integer(2, 2**20),
  "diffusion.network.width": config_checks.SIZE,
  "diffusion.network.depth": config_checks.DEPTH,
  "diffusion.network.heads": config_checks.SIZE,
  "diffusion.network.hidden": config_checks.SIZE,
  "diffusion.network.dtype": config_checks.DTYPE,
  **{f"diffusion.{name}": rule for name, rule in _NOISE.items()},
  "alignment.links": config_checks.tuple_of(config_checks.NAMES),
  **{f"alignment.environment.{name}": config_checks.SIZE for name in ("tokens", "size", "width")},
  "alignment.environment.dtype": config_checks.DTYPE,
  **{f"alignment.{name}": rule for name, rule in _NOISE.items()},
  "alignment.contrast": config_checks.real(0.0),
}


class Model(NamedTuple):
  """What all functions of this framework share.

  Attributes:
    config: of the run.
    modalities: by name, in order.
    codecs: autoencoders, by modality; parameters are the entries `autoencoder_NAME`, and mean and
      deviation of latents the entries `statistics_NAME`.
    prompts: C_m; the entries `prompt_NAME`.
    denoisers: v_m; the entries `diffusion_NAME`, and those of the layers that read other modalities
      in `alignment_NAME`.
    environments: V_m; likewise in `alignment_NAME`.
  """

  config: Any
  modalities: dict[str, Modality]
  codecs: dict[str, Any]
  prompts: dict[str, PromptEncoder | pretrained.PretrainedModule]
  denoisers: dict[str, LatentTransformer]
  environments: dict[str, Environment]


def model_of(config: Any, modalities: Sequence[Modality]) -> Model:
  """The networks of a config, as `configs/codi.py` has it.

  Raises:
    UserError: a modality without sizes, a number that cannot be, a latent that cannot be split into
      its tokens, or an autoencoder or prompt encoder that is brought and does not fit.
  """
  config_checks.check(config, _RULES)
  network = config.diffusion.network
  if network.width % (2 * network.heads):
    raise UserError(
      f"config.diffusion.network.width is {network.width}; it must be a multiple of twice"
      f" config.diffusion.network.heads, {network.heads}."
    )
  found = {modality.name: modality for modality in modalities}
  codecs = {name: autoencoding.autoencoder(modality, config) for name, modality in found.items()}
  for name in found:
    size = config.autoencoder[name]
    if size.latent % size.tokens:
      raise UserError(
        f"config.autoencoder.{name}.latent is {size.latent}, which cannot be split into"
        f" {size.tokens} tokens (config.autoencoder.{name}.tokens)."
      )
  environment = Environment(**config.alignment.environment)
  return Model(
    config,
    found,
    codecs,
    {name: _prompt_encoder(modality, config.bridging) for name, modality in found.items()},
    {name: LatentTransformer(**config.diffusion.network) for name in found},
    dict.fromkeys(found, environment),
  )


def _prompt_encoder(
  modality: Modality, bridging: Any
) -> PromptEncoder | pretrained.PretrainedModule:
  if path := bridging.get("pretrained", {}).get(modality.name):
    return pretrained.prompt_encoder(modality, path, bridging.network.size)
  return PromptEncoder(modality.kind, modality.num_classes, **bridging.network)


# ---------------------------------------------------------------------------- latents


def latent_of(model: Model, params: Params, name: str, x) -> Float[Array, "batch _ _ _"]:
  """The standardised latent of a view: frames (one but for videos), tokens, size of a token."""
  z = model.codecs[name].apply(params[f"autoencoder_{name}"], jnp.asarray(x), method="encode")
  return split(model, name, z, params[f"statistics_{name}"])


def split(model: Model, name: str, z, measured: Mapping[str, Any]):
  """A latent as tokens, standardised."""
  z = (z - measured["mean"]) / measured["std"]
  frames = z.shape[1] if z.ndim == 3 else 1
  return z.reshape(len(z), frames, model.config.autoencoder[name].tokens, -1)


def view_of(model: Model, params: Params, name: str, z: Float[Array, "batch _ _ _"]) -> Array:
  """The inverse of `latent_of`, as far as the autoencoder goes."""
  measured = params[f"statistics_{name}"]
  z = z.reshape(len(z), z.shape[1], -1) if measured["mean"].ndim == 2 else z.reshape(len(z), -1)
  z = z * measured["std"] + measured["mean"]
  return model.codecs[name].apply(params[f"autoencoder_{name}"], z, method="decode")


def shape_of(model: Model, name: str) -> tuple[int, int, int]:
  """Frames, tokens and size of a token of a modality's latent."""
  size = model.config.autoencoder[name]
  frames = model.modalities[name].shape[0] if size.get("frames") else 1
  return frames, size.tokens, size.latent // size.tokens


# ---------------------------------------------------------------------------- stage 2


def info_nce(
  a: Float[Array, "batch size"], b: Float[Array, "batch size"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
  """Symmetric InfoNCE of unit vectors, row i of either belonging together, in nats.

  If the second says no more of the first than its class, one of K that are alike likely, no
  encoders come below E log(1 + Bin(B - 1, 1 / K)), B the batch. Each row is compared with all of
  the batch, also where a device has a part of it.

  Args:
    a: one modality's.
    b: the other's.
    log_scale: the logarithm of the inverse temperature.
  """
  a, b = parallel.all_rows(a), parallel.all_rows(b)
  logits = jnp.exp(log_scale) * a @ b.T
  right = jnp.diagonal(logits)
  return 0.5 * sum(jnp.mean(jax.nn.logsumexp(logits, axis=axis) - right) for axis in (0, 1))


def prompt_of(model: Model, params: Params, name: str, x) -> Float[Array, "batch _"]:
  """C_m(x_m), a unit vector."""
  return model.prompts[name].apply(params[f"prompt_{name}"], jnp.asarray(x))


# ---------------------------------------------------------------------------- stages 3 and 4


def sample_prompt(
  config: Any, key: PRNGKeyArray, prompts: Sequence[Float[Array, "batch size"]]
) -> Float[Array, "batch size"]:
  """What a training example is prompted by: one of several at random, noised, or nothing.

  Args:
    config: reads `absent_prob`, how often it is nothing, and `prompt_noise`, the deviation of the
      noise's length, the prompt's being 1.
    key: of all that.
    prompts: unit vectors, of which each row gets one.
  """
  which_key, absent_key, noise_key = jax.random.split(key, 3)
  rows, size = prompts[0].shape
  which = jax.random.randint(which_key, (rows,), 0, len(prompts))
  # Not by index, for which devices would exchange their rows.
  chosen = jax.lax.select_n(jnp.broadcast_to(which[:, None], (rows, size)), *prompts)
  noise = config.prompt_noise / size**0.5 * noise_lib.normal_like(noise_key, "prompt", chosen)
  present = jax.random.bernoulli(absent_key, 1 - config.absent_prob, (rows, 1))
  return jnp.where(present, chosen + noise, 0.0)


def perturb(
  key: PRNGKeyArray, z: Mapping[str, Array], t: Float[Array, " batch"]
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Latents at one shared time, and the v of each."""
  noisy, target = {}, {}
  for name, value in z.items():
    eps = noise_lib.normal_like(key, name, value)
    alpha, sigma = (schedules.along(f(t), value) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    noisy[name] = alpha * value + sigma * eps
    target[name] = prediction.to_v(value, eps, alpha, sigma)
  return noisy, target


def predict(
  model: Model,
  params: Params,
  names: Sequence[str],
  z: Mapping[str, Array],
  t,
  prompt: Float[Array, "batch size"],
  *,
  aligned: bool,
  shuffled: bool = False,
) -> dict[str, Array]:
  """v of some modalities, each of which reads the environments of all the others in `z`.

  Args:
    model: the networks.
    params: the entries of all of `z`.
    names: which are wanted.
    z: latents at their time.
    t: the time, one for all.
    prompt: zeros for none.
    aligned: whether others are read at all.
    shuffled: whether each row reads the environments of the row before it.
  """
  environment = {}
  if aligned and len(z) > 1:
    environment = {
      name: model.environments[name].apply(params[f"alignment_{name}"]["environment"], value, t)
      for name, value in z.items()
    }
    if shuffled:
      environment = {name: jnp.roll(v, 1, axis=0) for name, v in environment.items()}
  found = {}
  for name in names:
    layers, context = params[f"diffusion_{name}"]["params"], None
    if environment:
      layers = layers | params[f"alignment_{name}"]["cross"]
      context = jnp.concatenate([v for other, v in environment.items() if other != name], axis=1)
    found[name] = model.denoisers[name].apply({"params": layers}, z[name], t, prompt, context)
  return found


def diffusion_loss(
  model: Model, params: Params, key: PRNGKeyArray, name: str, z: Array, prompt: Array
) -> Float[Array, ""]:
  """(1), a mean over components and examples.

  Args:
    model: the networks.
    params: with the entry `diffusion_NAME`.
    key: draws times, noise and what is withheld.
    name: the modality.
    z: its standardised latents.
    prompt: unit vectors of its partners.
  """
  t_key, noise_key, prompt_key = jax.random.split(key, 3)
  t = multitime.uniform_time()(t_key, len(z))[0]
  noisy, target = perturb(noise_key, {name: z}, t)
  prompt = sample_prompt(model.config.diffusion, prompt_key, [prompt])
  found = predict(model, params, [name], noisy, t, prompt, aligned=False)
  return jnp.mean((found[name] - target[name]) ** 2)


def alignment_loss(
  model: Model,
  params: Params,
  key: PRNGKeyArray,
  names: Sequence[str],
  z: Mapping[str, Array],
  prompts: Mapping[str, Array],
  log_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """(2) for one link.

  Args:
    model: the networks.
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
  noisy, target = perturb(noise_key, z, t)
  prompt = sample_prompt(model.config.alignment, prompt_key, [prompts[first], prompts[second]])
  found = predict(model, params, names, noisy, t, prompt, aligned=True)
  parts = {f"loss_{name}": jnp.mean((found[name] - target[name]) ** 2) for name in names}
  # Each encoder is given its time: at a shared time both could match rows by that alone, whatever
  # the latents are.
  second_t_key, second_noise_key = jax.random.split(contrast_key)
  second_t = multitime.uniform_time()(second_t_key, len(t))[0]
  second_noisy, _ = perturb(second_noise_key, {second: z[second]}, second_t)
  pooled = []
  for name, value, time in ((first, noisy[first], t), (second, second_noisy[second], second_t)):
    entry = params[f"alignment_{name}"]["environment"]
    pooled.append(unit(model.environments[name].apply(entry, value, time).mean(axis=1)))
  contrast = info_nce(*pooled, log_scale)
  total = sum(parts.values()) + model.config.alignment.contrast * contrast
  return total, parts | {"contrast": contrast}


# ---------------------------------------------------------------------------- generation


def mix_prompts(
  prompts: Mapping[str, Float[Array, "batch size"]], weights: Mapping[str, float]
) -> Float[Array, "batch size"]:
  """sum_n a_n C_n, the weights brought to a sum of 1.

  Args:
    prompts: of what is given.
    weights: of some of them; what is not named has 1.

  Raises:
    UserError: a weight is negative, of what is not given, or all are 0.
  """
  for name, weight in weights.items():
    if name not in prompts:
      known = ", ".join(prompts) or "nothing is"
      raise UserError(f"There is a weight for {name!r}, which is not given ({known}).")
    if not 0 <= weight < math.inf:
      raise UserError(
        f"The weight of {name!r} is {weight:g}; weights of prompts are shares, finite, from 0 up."
      )
  shares = {name: weights.get(name, 1.0) for name in prompts}
  total = sum(shares.values())
  if total == 0:
    raise UserError(f"The weights of {', '.join(prompts)} are all 0: one must be above.")
  return sum(shares[name] / total * prompt for name, prompt in prompts.items())


def sample(
  model: Model,
  params: Params,
  key: PRNGKeyArray,
  given: Batch,
  targets: tuple[str, ...],
  num: int,
  sampling: SamplerConfig,
  *,
  shuffled: bool = False,
) -> dict[str, Array]:
  """Generates: `Framework.sample` once the model is bound.

  Args:
    model: from `model_of`.
    params: all entries.
    key: the source of noise.
    given: arrays in the model's view with `num` rows each; may be empty.
    targets: what to generate, all together; may have what is given, which is then made anew.
    num: number of samples.
    sampling: how.
    shuffled: whether each row reads the environments of the row before it; see
      `Framework.shuffled`.

  Returns:
    The targets in the model's view.

  Raises:
    UserError: a weight of a prompt that cannot be.
  """
  config = model.config
  prompts = {name: prompt_of(model, params, name, x) for name, x in given.items()}
  size = config.bridging.network.size
  nothing = jnp.zeros((num, size))
  # A run's weights hold for all of its tasks: each takes those of what it is given.
  weights = {name: config.sampling.weights.get(name, 1.0) for name in given}
  prompt = mix_prompts(prompts, weights) if given else nothing

  def velocity(x, t):
    shared = t[targets[0]]

    def of(prompt):
      return predict(model, params, targets, x, shared, prompt, aligned=True, shuffled=shuffled)

    if sampling.guidance == 1.0 or not given:
      return of(prompt)
    with_prompt, without = of(prompt), of(nothing)
    return jax.tree.map(lambda a, b: b + sampling.guidance * (a - b), with_prompt, without)

  prior_key, loop_key = jax.random.split(key)
  shapes = {name: shape_of(model, name) for name in targets}
  x = solvers.prior(prior_key, SCHEDULE, shapes, num)
  grid = multitime.power_grid(sampling.steps, config.sampling.grid_power)
  path = multitime.joint(targets, sampling.steps, grid=grid)
  denoiser = solvers.from_v(velocity, SCHEDULE)
  z = solvers.sample(loop_key, denoiser, SCHEDULE, x, path, solver=sampling.solver)
  return {name: view_of(model, params, name, z[name]) for name in targets}
