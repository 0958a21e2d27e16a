"""The interface of a framework to the trainer, the sampler and the evaluation.

The parameters of a framework are one dict `{entry: pytree}`. A stage creates and trains some of the
entries; all others are frozen while it runs. A framework consists of its stages in order, and a
function that generates.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from mmdiff_jax import config_checks, modalities as modalities_lib, multitime, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.solvers import Solver

Params = dict[str, Any]
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long and how fast a stage trains.

  Attributes:
    steps: optimiser steps in all.
    batch_size: examples a step, over all devices.
    learning_rate: peak of the schedule (linear warm-up, then cosine to `final` times the peak).
    warmup: steps of linear warm-up.
    final: learning rate at the last step, as a fraction of the peak.
    weight_decay: AdamW's decoupled decay.
    b2: AdamW's decay of the second moment.
    clip: bound on the gradient's global norm; 0 for none.
    ema: decay of the EMA of the parameters, which later stages and sampling use; at step n it is
      at most (1 + n) / (10 + n), so that early steps average over few.
    accumulate: number of pieces in which each device processes its part of a batch, one after the
      other; the step takes the mean of their gradients. This divides the memory of a step's
      intermediate results.
    steps_per_dispatch: steps that one call of the compiled function takes. Matrix-product networks
      gain from several; convolutions on CPU lose (their gradients are slow inside a scan).
  """

  steps: int
  batch_size: int
  learning_rate: float
  warmup: int = 100
  final: float = 0.0
  weight_decay: float = 0.0
  b2: float = 0.999
  clip: float = 1.0
  ema: float = 0.999
  accumulate: int = 1
  steps_per_dispatch: int = 1


_TRAINING = {
  "steps": config_checks.integer(),
  "batch_size": config_checks.SIZE,
  "learning_rate": config_checks.real(0.0),
  "warmup": config_checks.integer(0),
  "final": config_checks.real(0.0),
  "weight_decay": config_checks.real(0.0),
  "b2": config_checks.DECAY,
  "clip": config_checks.real(0.0),
  "ema": config_checks.DECAY,
  "accumulate": config_checks.SIZE,
  "steps_per_dispatch": config_checks.integer(most=10_000),
}


def make_train_config(config: Any, section: str) -> TrainConfig:
  """Parses a section `training` of a config.

  Args:
    config: that section.
    section: its path in the config, with a dot after it; for the message.

  Raises:
    UserError: a field is invalid, missing or unknown.
  """
  config_checks.check(config, _TRAINING, section)
  config_checks.check_names(config, _TRAINING, section)
  for name in ("steps", "batch_size", "learning_rate"):
    if name not in config:
      raise UserError(f"config.{section}{name} is missing; every stage needs it.")
  return TrainConfig(**config)


@dataclasses.dataclass(frozen=True)
class Stage:
  """One part of training.

  Attributes:
    name: names its checkpoints and its scalars; letters, digits and `_`.
    trainable: the entries of the parameters that this stage creates and trains.
    settings: how long and how fast.
    prepare: `(frozen, data) -> (constants, examples)`, called once before the first step, on the
      host: from the frozen entries and the training split (dict of arrays whose first axis is the
      example) it makes the examples of the loss (likewise) and entries that are measured rather
      than trained (such as the statistics of latents). The constants join the frozen entries and
      are kept in this stage's checkpoint.
    init: `(key, frozen, batch) -> trained`, a dict with exactly the entries in `trainable`.
    loss: `(trained, frozen, key, batch) -> (loss, metrics)`: pure; `metrics` is a flat dict of
      scalars, with one for each modality named `loss_<modality>` where the loss has such parts. It
      may be called with a part of a batch. The mean over the equal parts on several devices must be
      the loss of the whole batch: it is a mean over examples, or compares them through
      `parallel.all_rows`. With `accumulate` above 1 the parts come one after the other, and a loss
      that compares examples, such as InfoNCE, compares those of one part: then the mean is not the
      loss of the whole batch. Its random draws have examples along the first axis (see
      `noise.key_of_rows`).
    report: `(params, key, data) -> {tag: {modality: array}}`, samples or reconstructions by the
      current parameters, for TensorBoard: model inputs, of some rows of the test split `data`.
    needs: the stages without which this one cannot begin.
  """

  name: str
  trainable: tuple[str, ...]
  settings: TrainConfig
  prepare: Callable[[Params, Batch], tuple[Params, dict[str, np.ndarray]]]
  init: Callable[..., Params]
  loss: Callable[..., tuple[Any, dict[str, Any]]]
  report: Callable[..., dict[str, dict[str, Any]]]
  needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How to generate.

  Attributes:
    solver: the solver, such as `solvers.dpmpp_2m`.
    steps: number of steps from time 1 to 0.
    guidance: strength of the given modalities; 1 is the plain conditional distribution.
    order: groups of modalities that are generated one after the other, each given those before it,
      in `steps` steps each; modalities that it does not name come last. Empty: all together.
    clip: whether a framework that diffuses images themselves keeps x0 in their range. With a
      corrector it is False, which leads to the distribution of the scores as they are.
  """

  solver: Solver
  steps: int
  guidance: float = 1.0
  order: tuple[tuple[str, ...], ...] = ()
  clip: bool = True


@dataclasses.dataclass(frozen=True)
class Framework:
  """A way to generate several modalities together.

  Attributes:
    modalities: those it was built for, in order.
    stages: the stages of training, in order.
    sample: `(params, key, given, targets, num, sampling) -> samples`: `given` is a dict of
      model inputs with `num` rows each, `targets` a tuple of names that are to be generated (names
      in neither are absent), `samples` a dict of the targets as model inputs. Can be
      jitted with `targets`, `num` and `sampling` static.
    reconstruct: `(params, data) -> data`: each modality encoded into its space of diffusion and
      decoded again; model inputs.
    evaluations: `(given, targets, sampling) -> int`: the network evaluations of one sample;
      given and targets are tuples of names. Guidance counts twice.
    bound: `(params, key, train, test) -> {name: float}`: numbers on the variational bound, from
      some rows of both splits (dicts of model inputs); None where there is no such bound.
    supported_tasks: all (given, targets) that it can sample, as tuples of names; None if any
      targets can be sampled from any others.
    can_regenerate_given: whether given modalities can be targets, too, which are then generated
      again.
    shuffled: samples as `sample` does, but each row reads the modalities generated with another
      row instead of its own; None where rows do not read any.
  """

  modalities: tuple[modalities_lib.Modality, ...]
  stages: tuple[Stage, ...]
  sample: Callable[..., dict[str, Any]]
  reconstruct: Callable[..., dict[str, Any]]
  evaluations: Callable[..., int]
  bound: Callable[..., dict[str, float]] | None = None
  supported_tasks: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] | None = None
  can_regenerate_given: bool = False
  shuffled: Callable[..., dict[str, Any]] | None = None


def jit_sample(sample: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
  """Returns `Framework.sample` jitted, with targets, number and sampler static."""
  return jax.jit(sample, static_argnums=(3, 4, 5))


def check_stages(framework: Framework, names: Sequence[str]) -> None:
  """Raises UserError if the framework has no stage of one of the names."""
  stage_names = [stage.name for stage in framework.stages]
  for name in names:
    if name not in stage_names:
      raise UserError(f"There is no stage {name!r}. There are: {', '.join(stage_names)}.")


_SAMPLING = {
  "solver": config_checks.TEXT,
  "steps": config_checks.integer(most=100_000),
  "guidance": config_checks.real(),
  "order": config_checks.tuple_of(config_checks.NAMES),
  "mode": config_checks.TEXT,
  "grid_power": config_checks.real(0.1, 100.0),
  "jump": config_checks.integer(),
  "repeats": config_checks.integer(most=1000),
  "weights.*": config_checks.real(0.0),
  "corrector.num": config_checks.integer(0),
  "corrector.leapfrog": config_checks.integer(),
  "corrector.snr": config_checks.real(0.0),
}


def make_sampler_config(config: Any) -> SamplerConfig:
  """Parses `config.sampling`, the default sampler.

  Raises:
    UserError: an unknown solver, or an invalid number.
  """
  config_checks.check(config.sampling, _SAMPLING, "sampling.")
  config_checks.check_names(config.sampling, _SAMPLING, "sampling.")
  name = config.sampling.solver
  solver = solvers.ddim(0.0) if name == "ddim" else getattr(solvers, name, None)
  if not isinstance(solver, solvers.Solver):
    names = ["ddim", *(n for n, of in vars(solvers).items() if isinstance(of, solvers.Solver))]
    raise UserError(
      f"There is no solver {name!r} (config.sampling.solver, --solver). The nearest one is"
      f" {config_checks.nearest(str(name), names)!r}; there are: {', '.join(names)}."
    )
  power, steps = config.sampling.get("grid_power", 1.0), config.sampling.steps
  if steps**-power < multitime.EARLIEST:
    raise UserError(
      f"config.sampling.grid_power is {power:g} and config.sampling.steps {steps}: the first time"
      f" above 0 would be below {multitime.EARLIEST:g}, where float32 has no noise left. Take a"
      " smaller one."
    )
  corrector = config.sampling.get("corrector")
  corrected = bool(corrector and corrector.num)
  if corrected:
    if set(corrector) != {"num", "leapfrog", "snr"}:
      raise UserError(
        f"config.sampling.corrector has the fields {', '.join(corrector)}; they must be num,"
        " leapfrog and snr."
      )
    solver = solvers.corrected(solver, **corrector)
  order = tuple(tuple(group) for group in config.sampling.order)
  return SamplerConfig(
    solver, config.sampling.steps, config.sampling.guidance, order, not corrected
  )
