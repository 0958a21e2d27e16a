"""MLD's record: what its losses and samplers read, parsed from a config once."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp

from mmdiff_jax import config_checks, diffusion, multitime, schedules
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.autoencoding import Autoencoder, autoencoder
from mmdiff_jax.frameworks.base import (
  make_sampler_config,
  make_train_config,
  SamplerConfig,
  TrainConfig,
)
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.latent import LatentDenoiser
from mmdiff_jax.networks.mlp import ScoreMLP

VARIANTS = ("masked", "inpaint", "unidiffuser")
SCHEDULES = {
  "vp_linear": schedules.VPLinear,
  "vp_cosine": schedules.VPCosine,
  "sub_vp": schedules.SubVP,
  "rectified_flow": schedules.RectifiedFlow,
}

_CHECKS = {
  "drop_prob": config_checks.FRACTION,
  "score.network.width": config_checks.SIZE,
  "score.network.depth": config_checks.DEPTH,
  "score.network.tower_width": config_checks.SIZE,
  "score.network.tower_depth": config_checks.DEPTH,
  "score.network.dtype": config_checks.DTYPE,
  "score.prediction": config_checks.one_of(*diffusion.KINDS),
  "score.t_min": config_checks.real(0.0, 0.5),
  "score.given_prob": config_checks.FRACTION,
  "score.absent_prob": config_checks.FRACTION,
  "score.importance": config_checks.FLAG,
}


@dataclasses.dataclass(frozen=True)
class MLD:
  """MLD for some modalities.

  Attributes:
    modalities: what is generated, in order.
    codecs: the autoencoder of each modality.
    schedule: of all latents.
    network: the multi-time score network of all latents.
    prediction: what the network predicts, one of `diffusion.KINDS`, which the loss is on.
    variant: which draw of times, one of `VARIANTS`.
    given_prob: probability that some modalities are given, as `multitime.draw_masked` has it.
    absent_prob: probability that one that is not given is absent, likewise.
    draw_t: draws the times of the diffused modalities.
    training: how the score network is trained.
    sampler: the default sampler.
    grid_power: power of the sampler's `multitime.power_grid`.
    jump: steps of a piece of `multitime.repaint`, for the variant `inpaint`.
    repeats: walks down each piece, likewise.
  """

  modalities: tuple[Modality, ...]
  codecs: Mapping[str, Autoencoder]
  schedule: schedules.Schedule
  network: LatentDenoiser | ScoreMLP
  prediction: str
  variant: str
  given_prob: float
  absent_prob: float
  draw_t: multitime.DrawTime
  training: TrainConfig
  sampler: SamplerConfig
  grid_power: float
  jump: int
  repeats: int

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the modalities, in order."""
    return tuple(modality.name for modality in self.modalities)


def make_model(config: Any, modalities: Sequence[Modality]) -> MLD:
  """Parses a config.

  Args:
    config: reads `variant`, `autoencoder`, `score` and `sampling` as `configs/mld.py` has them.
    modalities: what is generated.

  Raises:
    UserError: an unknown variant, schedule, network, solver or likelihood, `importance` with
      independent times or from time 0, a prediction that does not suit the schedule, a solver or
      steps that do not suit `inpaint`, an invalid number, or a modality that the config has no
      autoencoder for.
  """
  _check(config)
  score, schedule = config.score, SCHEDULES[config.score.schedule]()
  model = MLD(
    modalities=tuple(modalities),
    codecs={modality.name: autoencoder(modality, config) for modality in modalities},
    schedule=schedule,
    network=_network(score.network.to_dict()),
    prediction=score.prediction,
    variant=config.variant,
    given_prob=score.given_prob,
    absent_prob=score.absent_prob,
    draw_t=(
      multitime.importance_time(schedule, score.t_min)
      if score.importance
      else multitime.uniform_time(score.t_min)
    ),
    training=make_train_config(score.training, "score.training."),
    sampler=make_sampler_config(config),
    grid_power=config.sampling.grid_power,
    # Runs from before RePaint's path was used have neither.
    jump=config.sampling.get("jump", 1),
    repeats=config.sampling.get("repeats", 1),
  )
  check_sampler(model, model.sampler)
  return model


def _check(config):
  config_checks.check(config, _CHECKS)
  if config.variant not in VARIANTS:
    raise UserError(
      f"config.variant is {config.variant!r}; MLD has the variants {', '.join(VARIANTS)}."
    )
  score = config.score
  if score.schedule not in SCHEDULES:
    raise UserError(
      f"config.score.schedule is {score.schedule!r}; it can be {', '.join(SCHEDULES)}."
    )
  if score.importance and config.variant == "unidiffuser":
    raise UserError(
      "config.score.importance is True and config.variant 'unidiffuser': the weights of all"
      " modalities multiply, which leaves the gradient to a few examples of a batch (with four"
      " modalities, to 2 % of them). Use config.score.importance=False."
    )
  if score.importance and score.t_min == 0:
    raise UserError(
      "config.score.importance is True and config.score.t_min 0, where the weights are infinite."
      " Use config.score.t_min=0.001, or config.score.importance=False."
    )
  if score.prediction == "eps" and SCHEDULES[score.schedule]().alpha(jnp.ones(())) == 0:
    raise UserError(
      f"config.score.prediction is 'eps' and config.score.schedule {score.schedule!r}, whose"
      " alpha is 0 at t = 1: eps does not determine x0 there, and every solver becomes first order."
      " Use config.score.prediction=v, or config.score.schedule=vp_linear."
    )
  if score.prediction == "velocity" and score.schedule not in ("vp_cosine", "rectified_flow"):
    raise UserError(
      f"config.score.prediction is 'velocity' and config.score.schedule {score.schedule!r}, of"
      " which d(sigma)/dt is infinite at t = 0, where given modalities are. Use"
      " config.score.schedule=vp_cosine or rectified_flow, or config.score.prediction=v."
    )


def _network(network) -> LatentDenoiser | ScoreMLP:
  kind = network.pop("kind")
  if kind not in ("towers", "published"):
    raise UserError(
      f"config.score.network.kind is {kind!r}; it can be 'towers' or 'published' (the paper's)."
    )
  if kind == "towers":
    return LatentDenoiser(**network)
  if network["width"] % ScoreMLP.groups:
    raise UserError(
      f"config.score.network.width is {network['width']}; with the kind 'published' it must be a"
      f" multiple of {ScoreMLP.groups}."
    )
  return ScoreMLP(width=network["width"], dtype=network.get("dtype"))


def check_sampler(model: MLD, sampler: SamplerConfig) -> None:
  """Checks that a sampler suits the variant.

  Raises:
    UserError: with the variant `inpaint` a solver of the ODE, or steps that `jump` does not divide.
  """
  if model.variant != "inpaint" or model.repeats == 1:
    return
  if not sampler.solver.stochastic:
    raise UserError(
      f"config.variant is 'inpaint' and config.sampling.repeats {model.repeats}, which takes a"
      " solver of the SDE: where times rise, one of the ODE encodes instead of re-noising. Use"
      " config.sampling.solver=sde_dpmpp_2m (--solver=sde_dpmpp_2m), or config.sampling.repeats=1."
    )
  if sampler.steps % model.jump:
    raise UserError(
      f"config.sampling.steps is {sampler.steps}; with the variant 'inpaint' it must be a multiple"
      f" of config.sampling.jump, {model.jump}."
    )
