"""CoDi's stages 2 to 4 for the trainer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax.data import missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import autoencoding
from mmdiff_jax.frameworks.base import Batch, jit_sample, Params, Stage
from mmdiff_jax.frameworks.codi import losses
from mmdiff_jax.frameworks.codi.model import CoDi
from mmdiff_jax.frameworks.codi.networks import encode_prompt, split
from mmdiff_jax.networks import pretrained

# InfoNCE's inverse temperature begins here and stays below 100 (Radford et al. 2021).
_LOG_SCALE, _LARGEST_LOG_SCALE = math.log(1 / 0.07), math.log(100.0)


def make_stages(model: CoDi, generate: Any) -> list[Stage]:
  """Makes the stages `bridging_NAME`, `diffusion_NAME` and `alignment_NAME`, in order.

  Args:
    model: the record.
    generate: `Framework.sample`, for reports.
  """
  partners = [name for name in model.modalities if name != model.bridge]
  return [
    *(_bridging_stage(model, model.bridge, n, first=n == partners[0]) for n in partners),
    *(_diffusion_stage(model, name, generate) for name in model.modalities),
    *(
      _alignment_stage(model, link, generate, first=link == model.links[0]) for link in model.links
    ),
  ]


def _both(data: Batch, first: str, second: str) -> Batch | None:
  """Returns the examples that have both modalities, and only these two of each; None if none."""
  names = (first, second)
  masks = missing.masks(data, names)
  if masks and not np.logical_and(*masks.values()).any():
    return None
  return {name: x for name, x in missing.complete(data, names).items() if name in names}


def _pairs(data: Batch, first: str, second: str) -> Batch:
  pairs = _both(data, first, second)
  if pairs is None:
    raise UserError(
      f"No training example has both {first!r} and {second!r}, which this stage is trained on."
    )
  return pairs


def _bridging_stage(model: CoDi, bridge: str, name: str, *, first: bool) -> Stage:
  """Stage 2 of one modality; the first one trains the bridge's encoder, too."""
  new_names = (bridge, name) if first else (name,)
  pretrained_names = [
    n for n in new_names if isinstance(model.prompts[n], pretrained.PretrainedModule)
  ]
  trained_names = [n for n in new_names if n not in pretrained_names]
  entries = (*(f"prompt_{n}" for n in trained_names), f"contrast_{name}")

  def prepare(frozen: Params, data: Batch):
    del frozen
    constants = {f"prompt_{n}": model.prompts[n].entry for n in pretrained_names}
    return constants, _pairs(data, bridge, name)

  def init(key, frozen, batch):
    del frozen
    keys = jax.random.split(key, len(trained_names))
    return {
      f"prompt_{n}": model.prompts[n].init(k, batch[n][:2])
      for n, k in zip(trained_names, keys, strict=True)
    } | {f"contrast_{name}": {"log_scale": jnp.float32(_LOG_SCALE)}}

  def loss(trained, frozen, key, batch):
    del key
    params = {**frozen, **trained}
    prompts = [encode_prompt(model, params, n, batch[n]) for n in (bridge, name)]
    value = losses.info_nce(*prompts, _bounded(params[f"contrast_{name}"]["log_scale"]))
    return value, {}

  def report(params, key, data):
    del params, key
    return {"pairs": {n: data[n] for n in (bridge, name)}}

  needs = () if first else (f"bridging_{_first_partner(model, bridge)}",)
  return Stage(f"bridging_{name}", entries, model.bridging, prepare, init, loss, report, needs)


def _first_partner(model: CoDi, bridge: str) -> str:
  return next(name for name in model.modalities if name != bridge)


@jax.custom_vjp
def _bounded(log_scale):
  """Returns `log_scale` where it is at most log 100, else log 100.

  Past the bound a gradient that leads further counts as 0, and one that leads back is kept.
  """
  return jnp.minimum(log_scale, _LARGEST_LOG_SCALE)


_bounded.defvjp(
  lambda log_scale: (_bounded(log_scale), log_scale),
  # A descent moves against the gradient.
  lambda log_scale, g: (jnp.where((log_scale > _LARGEST_LOG_SCALE) & (g < 0), 0.0, g),),
)


def _bridgings(model: CoDi) -> tuple[str, ...]:
  bridge = model.bridge
  return tuple(f"bridging_{name}" for name in model.modalities if name != bridge)


_CHUNK = 1024  # Examples whose prompts are computed in one call.


def _prompts(model: CoDi, params: Params, name: str, inputs) -> np.ndarray:
  """Returns C(x) of all rows, [n, size]."""
  encode = jax.jit(lambda params, x: encode_prompt(model, params, name, x))
  entry = {f"prompt_{name}": params[f"prompt_{name}"]}
  chunks = [inputs[i : i + _CHUNK] for i in range(0, len(inputs), _CHUNK)]
  return np.concatenate([np.asarray(encode(entry, chunk)) for chunk in chunks])


def _latents(model: CoDi, params: Params, name: str, inputs, statistics) -> np.ndarray:
  """Returns standardised latents of all rows, as tokens."""
  z = autoencoding.encode({name: model.codecs[name]}, params, {name: inputs})[name]
  return np.asarray(split(model, name, z, statistics))


def _diffusion_stage(model: CoDi, name: str, generate) -> Stage:
  """Stage 3 of one modality, on all pairs that it is in."""
  others = [other for other in model.modalities if other != name]
  entry = f"diffusion_{name}"

  def prepare(frozen: Params, data: Batch):
    sets = {n: pairs for n in others if (pairs := _both(data, name, n)) is not None}
    if not sets:
      raise UserError(f"No training example has {name!r} and another modality that it goes with.")
    latents = {
      other: autoencoding.encode({name: model.codecs[name]}, frozen, pairs)[name]
      for other, pairs in sets.items()
    }
    measured = autoencoding.statistics({name: np.concatenate(list(latents.values()))})[name]
    z = [np.asarray(split(model, name, part, measured)) for part in latents.values()]
    prompts = [_prompts(model, frozen, other, pairs[other]) for other, pairs in sets.items()]
    examples = {"z": np.concatenate(z), "prompt": np.concatenate(prompts)}
    return {f"statistics_{name}": measured}, examples

  def init(key, frozen, batch):
    del frozen
    z, prompt = batch["z"][:2], batch["prompt"][:2]
    return {entry: model.denoisers[name].init(key, z, jnp.zeros(len(z)), prompt)}

  def loss(trained, frozen, key, batch):
    params = {**frozen, **trained}
    return losses.diffusion_loss(model, params, key, name, batch["z"], batch["prompt"]), {}

  report = _report(model, (name,), generate)
  needs = (f"autoencoder_{name}", *_bridgings(model))
  return Stage(entry, (entry,), model.diffusion, prepare, init, loss, report, needs)


def _report(model: CoDi, targets: tuple[str, ...], generate):
  """Makes a report of `targets` from the bridge, or from another modality if it is among them."""
  jitted = jit_sample(generate)
  bridge = model.bridge
  given = bridge if bridge not in targets else _first_partner(model, bridge)

  def report(params, key, data):
    inputs = {given: data[given]}
    generated = jitted(params, key, inputs, targets, len(data[given]), model.sampler)
    return {f"from_{given}": {**inputs, **generated}}

  return report


def _alignment_stage(model: CoDi, link: tuple[str, str], generate, *, first: bool) -> Stage:
  """Stage 4 of one link."""
  trained_names = link if first else link[1:]
  contrast = f"contrast_{'_'.join(link)}"
  entries = (*(f"alignment_{n}" for n in trained_names), contrast)

  def prepare(frozen: Params, data: Batch):
    pairs = _pairs(data, *link)
    z = {n: _latents(model, frozen, n, pairs[n], frozen[f"statistics_{n}"]) for n in link}
    prompts = {f"prompt_{n}": _prompts(model, frozen, n, pairs[n]) for n in link}
    return {}, z | prompts

  def init(key, frozen, batch):
    del frozen
    entries = {contrast: {"log_scale": jnp.float32(_LOG_SCALE)}}
    for n, entry_key in zip(trained_names, jax.random.split(key, len(trained_names)), strict=True):
      z, prompt, t = batch[n][:2], batch[f"prompt_{n}"][:2], jnp.zeros(2)
      cross_key, environment_key = jax.random.split(entry_key)
      tokens, environment = model.environments[n].init_with_output(environment_key, z, t)
      layers = model.denoisers[n].init(cross_key, z, t, prompt, tokens)["params"]
      cross = {name: layer for name, layer in layers.items() if name.startswith("cross")}
      entries[f"alignment_{n}"] = {"cross": cross, "environment": environment}
    return entries

  def loss(trained, frozen, key, batch):
    params = {**frozen, **trained}
    z = {n: batch[n] for n in link}
    prompts = {n: batch[f"prompt_{n}"] for n in link}
    log_scale = _bounded(params[contrast]["log_scale"])
    return losses.alignment_loss(model, params, key, trained_names, z, prompts, log_scale)

  needs = tuple(f"diffusion_{n}" for n in link)
  if not first:
    needs += (_aligning(model, link[0]),)
  name = f"alignment_{link[1]}"
  return Stage(
    name, entries, model.alignment, prepare, init, loss, _report(model, link, generate), needs
  )


def _aligning(model: CoDi, name: str) -> str:
  """Returns the name of the stage that aligns a modality."""
  links = model.links
  return f"alignment_{next(link for link in links if name in link)[1]}"
