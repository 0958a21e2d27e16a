"""CoDi: any to any, from diffusion models trained apart and aligned (Tang et al. 2023).

The seed's text here is a summary of the paper; what it leaves open was filled in anew. No stage
needs an example with more than two modalities. Each freezes what those before it trained.

1. An autoencoder a modality: z_m = E_m(x_m).
2. Bridging Alignment: prompt encoders C_m into one space, by contrast with the bridge (text): first
   the bridge and one other modality together, then each further one against the frozen bridge. The
   loss is the symmetric InfoNCE of a batch, `info_nce`. One that is brought is frozen from the
   start, and the temperature may be all that is left to train.
3. A latent diffusion model a modality, on all pairs that it is in, prompted by its partner,

     L_m = E |v - v_m(z_m(t), t, C_n(x_n))|^2,                                               (1)

   with the prompt withheld in some examples, and a little noise on it: a prompt at generation may
   be of a modality that this model has never been prompted by.
4. Latent Alignment: environment encoders V_m and layers that attend to the *other* modalities'
   V_n(z_n(t)), all at one shared time t. The layers' last ones start at zero, so that this stage
   starts as the one before ended. One link after the other, each on the pairs of two modalities:
   first of both, then of the second alone, against the frozen first:

     L = sum_m E |v - v_m(z_m(t), t, c, V_n(z_n(t)))|^2 + InfoNCE(V_m(z_m(t)), V_n(z_n(s))). (2)

   The contrast has independent times t and s: a shared one would tell rows apart by itself.
5. Generation of any subset S from any other: all of S fall together from t = 1 to 0, each reading
   the others' V; the prompt is c = sum_n a_n C_n(x_n) over what is given, sum_n a_n = 1.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax.data import missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import autoencoding, codi_model
from mmdiff_jax.frameworks.base import (
  Batch,
  Framework,
  make_sampler_config,
  make_train_config,
  Params,
  SamplerConfig,
  Stage,
)
from mmdiff_jax.frameworks.codi_model import Model
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks import pretrained

# InfoNCE's inverse temperature begins here and stays below 100 (Radford et al. 2021).
_LOG_SCALE, _LARGEST_LOG_SCALE = math.log(1 / 0.07), math.log(100.0)


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """CoDi for some modalities.

  Args:
    config: as `configs/codi.py` has it.
    modalities: all of them, `config.bridging.bridge` among them.

  Returns:
    The framework: stages `autoencoder_NAME`, `bridging_NAME`, `diffusion_NAME`, and an
    `alignment_NAME` for each link.

  Raises:
    UserError: a bridge or a link of what is no modality, links that do not follow one another, or a
      choice in the config that does not exist.
  """
  model = codi_model.model_of(config, modalities)
  names = tuple(model.modalities)
  bridge = config.bridging.bridge
  if bridge not in names:
    raise UserError(
      f"config.bridging.bridge is {bridge!r}; it must be one of config.modalities"
      f" ({', '.join(names)})."
    )
  if config.sampling.order:
    raise UserError(
      "CoDi makes all targets together and has no order of them: config.sampling.order is"
      f" {config.sampling.order}."
    )
  links = [tuple(link) for link in config.alignment.links]
  _check_links(names, links)
  partners = [name for name in names if name != bridge]
  generate = functools.partial(codi_model.sample, model)
  stages = [
    *(autoencoding.autoencoder_stage(model.modalities[n], model.codecs[n], config) for n in names),
    *(_bridging_stage(model, bridge, name, first=name == partners[0]) for name in partners),
    *(_diffusion_stage(model, name, generate) for name in names),
    *(_alignment_stage(model, link, generate, first=link == links[0]) for link in links),
  ]
  restore = functools.partial(autoencoding.reconstruct, model.codecs)
  return Framework(
    tuple(model.modalities.values()),
    tuple(stages),
    generate,
    restore,
    _evaluations,
    can_regenerate_given=True,
    shuffled=functools.partial(generate, shuffled=True),
  )


def _check_links(names: Sequence[str], links: Sequence[tuple[str, ...]]) -> None:
  reached = set(links[0]) if links else set()
  for number, link in enumerate(links):
    if len(link) != 2 or not set(link) <= set(names) or link[0] == link[1]:
      raise UserError(
        f"config.alignment.links has {link}; a link is two different ones of config.modalities"
        f" ({', '.join(names)})."
      )
    if number and (link[0] not in reached or link[1] in reached):
      raise UserError(
        f"config.alignment.links has {link} after {links[:number]}: a link leads from a modality"
        " that is aligned already to one that is not."
      )
    reached |= set(link)
  if missed := [name for name in names if name not in reached]:
    raise UserError(f"config.alignment.links do not reach {', '.join(missed)}.")


def _evaluations(given, targets, sampling: SamplerConfig) -> int:
  """Of all networks together: each target has its own."""
  guided = 2 if given and sampling.guidance != 1 else 1
  return guided * len(targets) * sampling.solver.evaluations(sampling.steps)


def _both(data: Batch, first: str, second: str) -> Batch | None:
  """The examples that have both of two modalities, and of each no more than these; None if none."""
  names = (first, second)
  masks = missing.masks(data, names)
  if masks and not np.logical_and(*masks.values()).any():
    return None
  return {name: x for name, x in missing.complete(data, names).items() if name in names}


def _pairs(data: Batch, first: str, second: str) -> Batch:
  found = _both(data, first, second)
  if found is None:
    raise UserError(
      f"No training example has both {first!r} and {second!r}, which this stage is trained on."
    )
  return found


def _bridging_stage(model: Model, bridge: str, name: str, *, first: bool) -> Stage:
  """Stage 2 of one modality; the first time the bridge's encoder is trained along."""
  new_names = (bridge, name) if first else (name,)
  brought_names = [
    n for n in new_names if isinstance(model.prompts[n], pretrained.PretrainedModule)
  ]
  trained_names = [n for n in new_names if n not in brought_names]
  entries = (*(f"prompt_{n}" for n in trained_names), f"contrast_{name}")

  def prepare(frozen: Params, data: Batch):
    del frozen
    constants = {f"prompt_{n}": model.prompts[n].entry for n in brought_names}
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
    prompts = [codi_model.prompt_of(model, params, n, batch[n]) for n in (bridge, name)]
    value = codi_model.info_nce(*prompts, _bounded(params[f"contrast_{name}"]["log_scale"]))
    return value, {}

  def report(params, key, data):
    del params, key
    return {"pairs": {n: data[n] for n in (bridge, name)}}

  settings = make_train_config(model.config.bridging.training, "bridging.training.")
  needs = () if first else (f"bridging_{_first_partner(model, bridge)}",)
  return Stage(f"bridging_{name}", entries, settings, prepare, init, loss, report, needs)


def _first_partner(model: Model, bridge: str) -> str:
  return next(name for name in model.modalities if name != bridge)


@jax.custom_vjp
def _bounded(log_scale):
  """`log_scale` where it is at most log 100, else log 100.

  Past the bound a gradient that leads further counts as 0, and one that leads back is kept.
  """
  return jnp.minimum(log_scale, _LARGEST_LOG_SCALE)


_bounded.defvjp(
  lambda log_scale: (_bounded(log_scale), log_scale),
  # A descent moves against the gradient.
  lambda log_scale, g: (jnp.where((log_scale > _LARGEST_LOG_SCALE) & (g < 0), 0.0, g),),
)


def _bridgings(model: Model) -> tuple[str, ...]:
  bridge = model.config.bridging.bridge
  return tuple(f"bridging_{name}" for name in model.modalities if name != bridge)


_CHUNK = 1024  # Examples prompted at once.


def _prompts(model: Model, params: Params, name: str, views) -> np.ndarray:
  """C(x) of all rows, [n, size]."""
  encode = jax.jit(lambda params, x: codi_model.prompt_of(model, params, name, x))
  own = {f"prompt_{name}": params[f"prompt_{name}"]}
  chunks = [views[i : i + _CHUNK] for i in range(0, len(views), _CHUNK)]
  return np.concatenate([np.asarray(encode(own, chunk)) for chunk in chunks])


def _latents(model: Model, params: Params, name: str, views, measured) -> np.ndarray:
  """Standardised latents of all rows, as tokens."""
  z = autoencoding.encode({name: model.codecs[name]}, params, {name: views})[name]
  return np.asarray(codi_model.split(model, name, z, measured))


def _diffusion_stage(model: Model, name: str, generate) -> Stage:
  """Stage 3 of one modality, on all pairs that it is in."""
  others = [other for other in model.modalities if other != name]
  entry = f"diffusion_{name}"

  def prepare(frozen: Params, data: Batch):
    sets = {other: found for other in others if (found := _both(data, name, other)) is not None}
    if not sets:
      raise UserError(f"No training example has {name!r} and another modality that it goes with.")
    whole = {
      other: autoencoding.encode({name: model.codecs[name]}, frozen, found)[name]
      for other, found in sets.items()
    }
    measured = autoencoding.statistics({name: np.concatenate(list(whole.values()))})[name]
    z = [np.asarray(codi_model.split(model, name, one, measured)) for one in whole.values()]
    prompts = [_prompts(model, frozen, other, found[other]) for other, found in sets.items()]
    examples = {"z": np.concatenate(z), "prompt": np.concatenate(prompts)}
    return {f"statistics_{name}": measured}, examples

  def init(key, frozen, batch):
    del frozen
    z, prompt = batch["z"][:2], batch["prompt"][:2]
    return {entry: model.denoisers[name].init(key, z, jnp.zeros(len(z)), prompt)}

  def loss(trained, frozen, key, batch):
    params = {**frozen, **trained}
    return codi_model.diffusion_loss(model, params, key, name, batch["z"], batch["prompt"]), {}

  report = _report(model, (name,), generate)
  settings = make_train_config(model.config.diffusion.training, "diffusion.training.")
  needs = (f"autoencoder_{name}", *_bridgings(model))
  return Stage(entry, (entry,), settings, prepare, init, loss, report, needs)


def _report(model: Model, targets: tuple[str, ...], generate):
  """Samples of `targets` from the bridge, or from another modality if the bridge is among them."""
  jitted = jax.jit(generate, static_argnums=(3, 4, 5))
  sampling = make_sampler_config(model.config)
  bridge = model.config.bridging.bridge
  given = bridge if bridge not in targets else _first_partner(model, bridge)

  def report(params, key, data):
    known = {given: data[given]}
    found = jitted(params, key, known, targets, len(data[given]), sampling)
    return {f"from_{given}": {**known, **found}}

  return report


def _alignment_stage(model: Model, link: tuple[str, str], generate, *, first: bool) -> Stage:
  """Stage 4 of one link."""
  trained_names = link if first else link[1:]
  contrast = f"contrast_{'_'.join(link)}"
  entries = (*(f"alignment_{n}" for n in trained_names), contrast)

  def prepare(frozen: Params, data: Batch):
    found = _pairs(data, *link)
    z = {n: _latents(model, frozen, n, found[n], frozen[f"statistics_{n}"]) for n in link}
    prompts = {f"prompt_{n}": _prompts(model, frozen, n, found[n]) for n in link}
    return {}, z | prompts

  def init(key, frozen, batch):
    del frozen
    made = {contrast: {"log_scale": jnp.float32(_LOG_SCALE)}}
    for n, own_key in zip(trained_names, jax.random.split(key, len(trained_names)), strict=True):
      z, prompt, t = batch[n][:2], batch[f"prompt_{n}"][:2], jnp.zeros(2)
      cross_key, environment_key = jax.random.split(own_key)
      tokens, environment = model.environments[n].init_with_output(environment_key, z, t)
      layers = model.denoisers[n].init(cross_key, z, t, prompt, tokens)["params"]
      cross = {name: layer for name, layer in layers.items() if name.startswith("cross")}
      made[f"alignment_{n}"] = {"cross": cross, "environment": environment}
    return made

  def loss(trained, frozen, key, batch):
    params = {**frozen, **trained}
    z = {n: batch[n] for n in link}
    prompts = {n: batch[f"prompt_{n}"] for n in link}
    log_scale = _bounded(params[contrast]["log_scale"])
    return codi_model.alignment_loss(model, params, key, trained_names, z, prompts, log_scale)

  settings = make_train_config(model.config.alignment.training, "alignment.training.")
  needs = tuple(f"diffusion_{n}" for n in link)
  if not first:
    needs += (_aligning(model, link[0]),)
  name = f"alignment_{link[1]}"
  return Stage(name, entries, settings, prepare, init, loss, _report(model, link, generate), needs)


def _aligning(model: Model, name: str) -> str:
  """The stage that aligns a modality."""
  links = model.config.alignment.links
  return f"alignment_{next(link for link in links if name in link)[1]}"
