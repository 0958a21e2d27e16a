"""MT-Diffusion's record: what its losses, samplers and bound read, parsed from a config once."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from mmdiff_jax import config_checks, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import (
  make_sampler_config,
  make_train_config,
  SamplerConfig,
  TrainConfig,
)
from mmdiff_jax.frameworks.ddpm import make_table, UNET
from mmdiff_jax.frameworks.mt_diffusion import process as process_lib
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.multitask import Multitask, Part
from mmdiff_jax.networks.unet import UNet

# The solvers' name of the shared space, which is diffused as one.
SPACE = "z"
AGGREGATIONS = ("start", "steps")
MODES = ("replacement", "informed")

_CHECKS = {
  "heads": config_checks.FLAG,
  "stop_gradient": config_checks.FLAG,
  "parts.*.omega": config_checks.real(),
  "parts.*.weight": config_checks.real(),
  "process.aggregation": config_checks.one_of(*AGGREGATIONS),
  "process.weights": config_checks.one_of("linear", "constant"),
  "process.total": config_checks.real(),
  "network.informed": config_checks.FLAG,
  **{f"network.{name}": check for name, check in UNET.items()},
  "sampling.mode": config_checks.one_of(*MODES),
  "sampling.grid_power": config_checks.real(1.0, 100.0),
}


@dataclasses.dataclass(frozen=True)
class MTDiffusion:
  """MT-Diffusion for some modalities.

  Attributes:
    modalities: what is modelled, in order.
    main: the name of the modality whose shape the shared space has.
    process: the forward process.
    network: a `Multitask`; its parameters are the entry `network`.
    omega: the weight of each modality in the aggregate.
    loss_weight: lambda_i of (6).
    aggregation: whether modalities enter z at the start or in steps, one of `AGGREGATIONS`.
    heads: whether the network has heads.
    informed: whether it is trained with some modalities given.
    given_prob: the fraction of training examples in which some are.
    stop_gradient: whether encoders do not learn through z.
    augment: the modality that comes in the place of the main one; empty for none.
    augment_prob: the fraction of training examples in which it does.
    mode: how given modalities condition the others, one of `MODES`.
    grid_power: power of the sampler's grid of times.
    training: how the network is trained.
    sampler: the default sampler.
  """

  modalities: tuple[Modality, ...]
  main: str
  process: process_lib.Process
  network: Any
  omega: Mapping[str, float]
  loss_weight: Mapping[str, float]
  aggregation: str
  heads: bool
  informed: bool
  given_prob: float
  stop_gradient: bool
  augment: str
  augment_prob: float
  mode: str
  grid_power: float
  training: TrainConfig
  sampler: SamplerConfig


def make_model(config: Any, modalities: Sequence[Modality]) -> MTDiffusion:
  """Parses a config.

  Args:
    config: as `configs/mt_diffusion.py` has it.
    modalities: all that share the space, `config.main` among them.

  Raises:
    UserError: a choice in the config that does not exist or does not suit another, or a process
      whose last step is not N(0, I).
  """
  by_name = {modality.name: modality for modality in modalities}
  parts = _check(config, by_name)
  network = Multitask(
    backbone=_backbone(config),
    space=by_name[config.main].shape,
    parts=parts,
    heads=config.heads,
    # A modality alone is never given, but the network is told of an augmented one.
    informed=(config.network.informed and len(by_name) > 1) or bool(config.augment.modality),
  )
  model = MTDiffusion(
    modalities=tuple(modalities),
    main=config.main,
    process=_process(config, tuple(by_name)),
    network=network,
    omega={name: config.parts[name].omega for name in by_name},
    loss_weight={name: config.parts[name].weight for name in by_name},
    aggregation=config.process.aggregation,
    heads=config.heads,
    informed=config.network.informed,
    given_prob=config.network.given_prob,
    stop_gradient=config.stop_gradient,
    augment=config.augment.modality,
    augment_prob=config.augment.share,
    mode=config.sampling.mode,
    # Runs from before there was a power took even steps.
    grid_power=config.sampling.get("grid_power", 1.0),
    training=make_train_config(config.training, "training."),
    sampler=make_sampler_config(config),
  )
  check_sampler(model, model.sampler)
  return model


def _check(config, by_name) -> tuple[Part, ...]:
  """Checks a config against the modalities; returns their parts in the network."""
  config_checks.check(config, _CHECKS)
  listed = ", ".join(by_name)
  fields = [(config.main, "config.main"), *((name, "config.modalities") for name in by_name)]
  for name, field in fields:
    if name not in by_name or name not in config.parts:
      raise UserError(
        f"{field} names {name!r}; it must be one of config.modalities ({listed}) and of"
        f" config.parts ({', '.join(config.parts)})."
      )
  main = by_name[config.main]
  if len(by_name) > 1 and not config.heads:
    raise UserError(
      f"config.heads is False and config.modalities has {listed}. Only the main modality"
      " can do without a head, since the noise says what it is: leave the others out."
    )
  if config.network.informed and not 0 < config.network.given_prob < 1:
    raise UserError(
      f"config.network.given_prob is {config.network.given_prob}; it must be between 0 and 1: an"
      " informed network learns from examples with some modalities given, and from others."
    )
  if not 0 < config.augment.share <= 1:
    raise UserError(f"config.augment.share is {config.augment.share}; it must be in (0, 1].")
  if config.augment.modality and len(by_name) > 1:
    raise UserError(
      f"config.augment.modality is {config.augment.modality!r}; only a main modality that is alone"
      f" is augmented, and config.modalities has {listed}."
    )
  if len(main.shape) != 3 or main.num_classes:
    raise UserError(
      f"config.main is {main.name!r}, a {main.kind} of shape {main.shape}. The shared space has the"
      " main modality's shape and a U-Net works in it, so it must be an image."
    )
  parts = tuple(_part(modality, config.parts[name].encoder) for name, modality in by_name.items())
  if config.parts[config.main].encoder != "identity":
    raise UserError(
      f"config.parts.{main.name}.encoder is {config.parts[config.main].encoder!r}: the main"
      " modality enters the space, which has its shape, by the identity."
    )
  for part in parts:
    if part.encoder == "identity" and part.shape != main.shape:
      raise UserError(
        f"config.parts.{part.name}.encoder is 'identity', but its values have the shape"
        f" {part.shape} and the shared space {main.shape}. Use 'embedding' or 'frozen'."
      )
  return parts


def _part(modality: Modality, encoder: str) -> Part:
  classes = (modality.num_classes,) if modality.num_classes else ()
  try:
    return Part(modality.name, modality.shape + classes, bool(classes), encoder)
  except ValueError as error:
    raise UserError(f"config.parts.{modality.name}: {error}") from error


def _backbone(config) -> UNet:
  """Returns the U-Net of `config.network`, without the fields of its conditioning."""
  sizes = config.network.to_dict()
  del sizes["informed"], sizes["given_prob"]
  return UNet(**sizes)


def _process(config, names: Sequence[str]) -> process_lib.Process:
  """Returns the process, checked to end in N(0, I).

  Components of encoded modalities have a size of at most 1: images by their range, embeddings
  because they are kept so.
  """
  section = config.process
  weights = {
    "linear": process_lib.linear_weights,
    "constant": process_lib.constant_weights,
  }
  table = make_table(section)
  omega = {name: abs(config.parts[name].omega) for name in names}
  try:
    if section.aggregation == "start" or len(names) == 1:
      process = process_lib.Process(table, process_lib.no_weights(table))
      process.check_prior(sum(omega.values()), 0.0)
    else:
      process = process_lib.Process(table, weights[section.weights](table, section.total))
      process.check_prior(1.0, sum(omega.values()) - omega[config.main])
  except ValueError as error:
    raise UserError(f"config.process: {error}") from error
  return process


def check_sampler(model: MTDiffusion, sampler: SamplerConfig) -> None:
  """Checks that a sampler suits the model.

  Raises:
    UserError: a mode, guidance, order, solver or number of steps that the model cannot have.
  """
  if model.mode == "informed" and not model.informed:
    raise UserError(
      "config.sampling.mode is 'informed', and the network of this run was not made for it"
      " (config.network.informed is False). Use 'replacement', or train with it."
    )
  if sampler.guidance != 1.0 and model.mode != "informed":
    raise UserError(
      f"config.sampling.guidance is {sampler.guidance}, and config.sampling.mode"
      f" {model.mode!r}: guidance is between heads that read what is given and heads that"
      " do not. Use the mode 'informed', or guidance 1."
    )
  if sampler.order:
    raise UserError("MT-Diffusion has no order of modalities: config.sampling.order must be empty.")
  stepwise = len(model.modalities) > 1 and model.aggregation == "steps"
  if stepwise and sampler.solver is not solvers.ancestral:
    raise UserError(
      "With config.process.aggregation 'steps' modalities enter z at each step, which only the"
      " solver 'ancestral' takes into account (the posterior with w_t). Use it, or aggregate at the"
      " 'start', where others can be used, too."
    )
  entries = len(model.process.weights)
  if not 2 <= sampler.steps <= entries:
    raise UserError(
      f"config.sampling.steps is {sampler.steps}; the table has {entries} entries"
      " (config.process.num), so take from 2 to as many steps."
    )
