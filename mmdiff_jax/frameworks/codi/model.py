"""CoDi's record: what its losses and samplers read, parsed from a config once."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from mmdiff_jax import config_checks, schedules
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import autoencoding
from mmdiff_jax.frameworks.base import (
  make_sampler_config,
  make_train_config,
  SamplerConfig,
  TrainConfig,
)
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks import pretrained
from mmdiff_jax.networks.prompts import PromptEncoder
from mmdiff_jax.networks.transformer import Environment, LatentTransformer

SCHEDULE = schedules.VPCosine()

_NOISE = {"absent_prob": config_checks.FRACTION, "prompt_noise": config_checks.real(0.0)}
_CHECKS = {
  "bridging.network.size": config_checks.SIZE,
  # Half of it are the channels of a convolution.
  "bridging.network.width": config_checks.integer(2, 2**20),
  "diffusion.network.width": config_checks.SIZE,
  "diffusion.network.depth": config_checks.DEPTH,
  "diffusion.network.heads": config_checks.SIZE,
  "diffusion.network.hidden": config_checks.SIZE,
  "diffusion.network.dtype": config_checks.DTYPE,
  **{f"diffusion.{name}": check for name, check in _NOISE.items()},
  "alignment.links": config_checks.tuple_of(config_checks.NAMES),
  **{f"alignment.environment.{name}": config_checks.SIZE for name in ("tokens", "size", "width")},
  "alignment.environment.dtype": config_checks.DTYPE,
  **{f"alignment.{name}": check for name, check in _NOISE.items()},
  "alignment.contrast": config_checks.real(0.0),
}


@dataclasses.dataclass(frozen=True)
class PromptNoise:
  """How a training example is prompted.

  Attributes:
    absent_prob: the fraction of examples without a prompt.
    prompt_noise: the std of the noise's length, that of the prompt being 1.
  """

  absent_prob: float
  prompt_noise: float


@dataclasses.dataclass(frozen=True)
class CoDi:
  """CoDi for some modalities.

  Attributes:
    modalities: by name, in order.
    codecs: autoencoders, by modality; parameters are the entries `autoencoder_NAME`, and mean and
      std of latents the entries `statistics_NAME`.
    prompts: C_m; the entries `prompt_NAME`.
    denoisers: v_m; the entries `diffusion_NAME`, and those of the layers that read other modalities
      in `alignment_NAME`.
    environments: V_m; likewise in `alignment_NAME`.
    shapes: frames (one except for videos), tokens and size of a token of each modality's latent.
    prompt_size: size of the space of prompts.
    bridge: the modality that all others are aligned with.
    links: the pairs of stage 4, in order.
    diffusion_prompts: how stage 3 is prompted.
    alignment_prompts: how stage 4 is prompted.
    contrast: weight of the contrast in (2).
    bridging: how stage 2 is trained.
    diffusion: how stage 3 is trained.
    alignment: how stage 4 is trained.
    sampler: the default sampler.
    grid_power: power of the sampler's `multitime.power_grid`.
    weights: a_n by name; those without an entry have 1.
  """

  modalities: Mapping[str, Modality]
  codecs: Mapping[str, Any]
  prompts: Mapping[str, Any]
  denoisers: Mapping[str, Any]
  environments: Mapping[str, Any]
  shapes: Mapping[str, tuple[int, int, int]]
  prompt_size: int
  bridge: str
  links: tuple[tuple[str, str], ...]
  diffusion_prompts: PromptNoise
  alignment_prompts: PromptNoise
  contrast: float
  bridging: TrainConfig
  diffusion: TrainConfig
  alignment: TrainConfig
  sampler: SamplerConfig
  grid_power: float
  weights: Mapping[str, float]


def make_model(config: Any, modalities: Sequence[Modality]) -> CoDi:
  """Parses a config.

  Args:
    config: as `configs/codi.py` has it.
    modalities: all of them, `config.bridging.bridge` among them.

  Raises:
    UserError: a modality without sizes, an invalid number, a latent that cannot be split into its
      tokens, a pretrained autoencoder or prompt encoder that does not fit, a bridge or a link that
      is not among the modalities, links that do not follow one another, or an order.
  """
  by_name = {modality.name: modality for modality in modalities}
  _check(config, tuple(by_name))
  environment = Environment(**config.alignment.environment)
  return CoDi(
    modalities=by_name,
    codecs={name: autoencoding.autoencoder(m, config) for name, m in by_name.items()},
    prompts={name: _prompt_encoder(m, config.bridging) for name, m in by_name.items()},
    denoisers={name: LatentTransformer(**config.diffusion.network) for name in by_name},
    environments=dict.fromkeys(by_name, environment),
    shapes={name: _shape(m, config.autoencoder[name]) for name, m in by_name.items()},
    prompt_size=config.bridging.network.size,
    bridge=config.bridging.bridge,
    links=tuple((first, second) for first, second in config.alignment.links),
    diffusion_prompts=_prompt_noise(config.diffusion),
    alignment_prompts=_prompt_noise(config.alignment),
    contrast=config.alignment.contrast,
    bridging=make_train_config(config.bridging.training, "bridging.training."),
    diffusion=make_train_config(config.diffusion.training, "diffusion.training."),
    alignment=make_train_config(config.alignment.training, "alignment.training."),
    sampler=make_sampler_config(config),
    grid_power=config.sampling.grid_power,
    weights=config.sampling.weights.to_dict(),
  )


def _check(config, names):
  config_checks.check(config, _CHECKS)
  network = config.diffusion.network
  if network.width % (2 * network.heads):
    raise UserError(
      f"config.diffusion.network.width is {network.width}; it must be a multiple of twice"
      f" config.diffusion.network.heads, {network.heads}."
    )
  if config.bridging.bridge not in names:
    raise UserError(
      f"config.bridging.bridge is {config.bridging.bridge!r}; it must be one of config.modalities"
      f" ({', '.join(names)})."
    )
  if config.sampling.order:
    raise UserError(
      "CoDi generates all targets together and has no order of them: config.sampling.order is"
      f" {config.sampling.order}."
    )
  _check_links(names, [tuple(link) for link in config.alignment.links])


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


def _shape(modality: Modality, size: Any) -> tuple[int, int, int]:
  if size.latent % size.tokens:
    raise UserError(
      f"config.autoencoder.{modality.name}.latent is {size.latent}, which cannot be split into"
      f" {size.tokens} tokens (config.autoencoder.{modality.name}.tokens)."
    )
  frames = modality.shape[0] if size.get("frames") else 1
  return frames, size.tokens, size.latent // size.tokens


def _prompt_noise(section: Any) -> PromptNoise:
  return PromptNoise(section.absent_prob, section.prompt_noise)


def _prompt_encoder(
  modality: Modality, bridging: Any
) -> PromptEncoder | pretrained.PretrainedModule:
  if path := bridging.get("pretrained", {}).get(modality.name):
    return pretrained.prompt_encoder(modality, path, bridging.network.size)
  return PromptEncoder(modality.kind, modality.num_classes, **bridging.network)
