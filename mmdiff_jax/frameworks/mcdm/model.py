"""MCDM's record: one expert, parsed from a config once."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp

from mmdiff_jax import config_checks, schedules
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import (
  make_sampler_config,
  make_train_config,
  SamplerConfig,
  TrainConfig,
)
from mmdiff_jax.frameworks.ddpm import make_table, UNET
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.conditional import Condition, Conditional
from mmdiff_jax.networks.unet import UNet

# The solvers' name of the image, which alone is diffused.
SPACE = "z"

PREDICTIONS = ("eps", "v", "x0")

# The fraction of the image that may be left at the last step.
_LARGEST_TRACE = 0.02
NO_GUIDANCE = (
  "Guidance needs the model without the condition, and this expert was never trained with it absent"
  " (config.absent_prob is 0). Compose: --experts=DIR --weights=W --unconditional=DIR."
)


@dataclasses.dataclass(frozen=True)
class Expert:
  """One model.

  Attributes:
    main: the image that it generates.
    conditions: what may be given to it.
    schedule: of its diffusion.
    process: `config.process` in words, for messages.
    prediction: what the network predicts, one of `PREDICTIONS`, which the loss is on.
    absent_prob: the fraction of the training examples in which each condition is absent.
    network: a `Conditional`; its parameters are the entry `network`.
    training: how it is trained.
    sampler: its default sampler.
  """

  main: Modality
  conditions: tuple[Modality, ...]
  schedule: schedules.Table
  process: str
  prediction: str
  absent_prob: float
  network: Any
  training: TrainConfig
  sampler: SamplerConfig


def make_expert(config: Any, modalities: Sequence[Modality]) -> Expert:
  """Parses a config.

  Args:
    config: as `configs/mcdm.py` has it.
    modalities: `config.main`, and all that may be given to the expert.

  Raises:
    UserError: an invalid choice or number in the config, or a condition that does not suit the
      image.
  """
  by_name = {modality.name: modality for modality in modalities}
  main = by_name.pop(config.main, None)
  conditions = tuple(by_name.values())
  _check(config, main, conditions)
  schedule = make_table(config.process)
  trace = float(schedule.alpha(jnp.float32(1.0)))
  if trace > _LARGEST_TRACE:
    raise UserError(
      f"config.process leaves {trace:.2g} of the image at its last step, where generation starts"
      f" from noise alone: it must be below {_LARGEST_TRACE}. Take more steps, or betas 'cosine'."
    )
  sampler = make_sampler_config(config)
  if sampler.guidance != 1 and not config.absent_prob:
    raise UserError(f"config.sampling.guidance is {sampler.guidance:g}. {NO_GUIDANCE}")
  if sampler.order:
    raise UserError(
      f"MCDM has one image and no order of modalities: config.sampling.order is {sampler.order}."
    )
  sizes = config.network.to_dict()
  text_width = sizes.pop("text_width")
  inputs = tuple(
    Condition(m.name, m.shape + (m.num_classes,) * bool(m.num_classes), m.kind == "text")
    for m in conditions
  )
  return Expert(
    main=main,
    conditions=conditions,
    schedule=schedule,
    process=", ".join(f"{name}={value}" for name, value in sorted(config.process.items())),
    prediction=config.prediction,
    absent_prob=config.absent_prob,
    network=Conditional(UNet(**sizes), main.shape, inputs, text_width),
    training=make_train_config(config.training, "training."),
    sampler=sampler,
  )


def _check(config, main, conditions):
  if config.prediction not in PREDICTIONS:
    raise UserError(
      f"config.prediction is {config.prediction!r}; it can be {', '.join(PREDICTIONS)}."
    )
  if not 0 <= config.absent_prob < 1:
    raise UserError(
      f"config.absent_prob is {config.absent_prob}; it must be in [0, 1). At 0 the expert is always"
      " given all of its conditions."
    )
  if main is None or main.kind != "image":
    raise UserError(
      f"config.main is {config.main!r}; it must be an image among config.modalities"
      f" ({', '.join(config.modalities)})."
    )
  for condition in conditions:
    if len(condition.shape) > 1 and condition.shape[:2] != main.shape[:2]:
      raise UserError(
        f"The condition {condition.name!r} has the shape {condition.shape}, and {main.name!r}"
        f" {main.shape}: conditions with a height and a width must have those of the image."
      )
  config_checks.check(config.network, UNET, "network.")
