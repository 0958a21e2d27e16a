"""Code shared by sampling and evaluation: loading a trained run, and generating with it."""

from collections.abc import Callable, Mapping, Sequence
import time
from typing import Any, NamedTuple

from absl import flags
from etils import epath
import flax.errors
import jax
import ml_collections
import numpy as np

from experiments import experts, setup
from mmdiff_jax import config_checks, parallel, storage
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base
from mmdiff_jax.frameworks.base import Framework, Params, SamplerConfig
from mmdiff_jax.training import checkpoints, workdir as workdir_lib

NUM = setup.define_integer("num", None, "Number of samples.", 1, 10**7)
SOLVER = flags.DEFINE_string("solver", None, "Solver; the config's if not given.")
STEPS = setup.define_integer("steps", None, "Steps of the solver; the config's if not given.", 1)
GUIDANCE = flags.DEFINE_float(
  "guidance", None, "Guidance strength; 1 is no guidance. The config's if not given."
)
MODE = flags.DEFINE_string(
  "mode", None, "MT-Diffusion: replacement or informed; the config's if not given."
)
CORRECTOR = flags.DEFINE_string(
  "corrector",
  None,
  "MCDM: corrector steps after each solver step, as NUM, NUM:LEAPFROG or NUM:LEAPFROG:SNR,"
  " such as 4:3:0.7; LEAPFROG = 1 is Langevin. The config's if not given.",
)
EMA = flags.DEFINE_bool("ema", True, "Use the EMA of the last stage's parameters.")
BEST = flags.DEFINE_bool(
  "best", False, "Use the last stage's best checkpoint by config.monitor.best, not its last one."
)

# Flax's errors where parameters have another shape or name.
_FIT = (
  flax.errors.ScopeParamShapeError,
  flax.errors.ScopeParamNotFoundError,
  flax.errors.ScopeCollectionNotFound,
)
_ROWS = 1000  # Samples generated at once.


class Trained(NamedTuple):
  """A training run, ready to generate.

  Attributes:
    config: the run's config, with the sampling fields that flags override.
    framework: the framework built from it.
    params: all of its parameters.
    sampling: the parsed sampling fields.
    ema: whether the last stage's parameters are their EMA.
    best: the metric whose best checkpoint the last stage uses; empty for its last checkpoint.
  """

  config: ml_collections.ConfigDict
  framework: Framework
  params: Params
  sampling: SamplerConfig
  ema: bool
  best: str = ""


def load(workdir: str | None) -> Trained:
  """Loads a run or the experts that flags name; flags override the config's sampling fields.

  Args:
    workdir: the folder of the run; None for experts.

  Raises:
    UserError: there is no run, it is not trained or is damaged, it kept no best checkpoint though
      one is asked for, the solver is unknown, its framework does not have a flag, the experts do
      not compose, or the corrector's steps would diverge.
  """
  if experts.wanted() == bool(workdir):
    raise UserError(
      "Name the model to generate with: either --workdir=DIR, or runs of MCDM with"
      " --unconditional=DIR and --experts=DIR,DIR (not both)."
    )
  best = ""
  if workdir:
    config = workdir_lib.load_config(workdir)
    framework = setup.build(_flagged(config))
    best = config.monitor.get("best", "") if BEST.value else ""
    if BEST.value and not best:
      raise UserError(
        f"The run {workdir} kept no best checkpoint. --best needs a run that was trained with"
        " --config.monitor.best=METRIC."
      )
    params = checkpoints.load_params(framework, workdir, ema=EMA.value, best=best)
  elif BEST.value:
    raise UserError("--best is for one run (--workdir=DIR); experts use their last checkpoints.")
  else:
    config, framework, params = experts.load(EMA.value)
    experts.check_corrector(_flagged(config))
  return Trained(config, framework, params, base.make_sampler_config(config), EMA.value, best)


def _flagged(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Overrides the sampling fields of the config that have flags."""
  config_checks.check(config, {"sampling": config_checks.SECTION})
  for flag in (SOLVER, STEPS, GUIDANCE, MODE, CORRECTOR):
    if flag.value is None:
      continue
    if flag.name not in config.sampling:
      raise UserError(
        f"The framework {config.framework!r} of this run has no --{flag.name}. It has:"
        f" {', '.join(config.sampling)}."
      )
    if flag is CORRECTOR:
      config.sampling.corrector.update(_corrector(flag.value))
    else:
      config.sampling[flag.name] = flag.value
  if experts.WEIGHTS.value and not experts.wanted():
    config.sampling.weights = _weights(config, experts.WEIGHTS.value)
  return config


def _weights(config: ml_collections.ConfigDict, texts: Sequence[str]) -> dict[str, float]:
  """Parses the weights of prompts that `--weights` names."""
  if "weights" not in config.sampling:
    raise UserError(
      f"The framework {config.framework!r} of this run has no --weights. The weights of experts"
      " need --experts=DIR,DIR."
    )
  weights = {}
  for text in texts:
    name, _, weight = text.partition("=")
    if name not in config.modalities or name in weights:
      raise UserError(
        f"--weights has {text!r}. Name given modalities, each once, as NAME=WEIGHT with NAME one of"
        f" {', '.join(config.modalities)}."
      )
    weights[name] = experts.number("weights", weight)
  return weights


def _corrector(text: str) -> dict[str, float]:
  kinds = {"num": int, "leapfrog": int, "snr": float}
  parts = text.split(":")
  try:
    values = {name: kinds[name](part) for name, part in zip(kinds, parts, strict=False)}
  except ValueError:
    values = {}
  if (
    len(values) < len(parts) or values["num"] < 0 or min(list(values.values())[1:], default=1) <= 0
  ):
    raise UserError(
      f"--corrector={text} is not NUM, NUM:LEAPFROG or NUM:LEAPFROG:SNR, such as 4:3:0.7: the"
      " number of corrections after each step, the leapfrog steps in each, and their size."
    )
  return values


def folder(out: str | None) -> epath.Path:
  """Returns the folder for results: `out`, or the workdir.

  Raises:
    UserError: neither is named.
  """
  if not (out or setup.WORKDIR.value):
    raise UserError("Name the folder for the results with --out=DIR: a composition has no workdir.")
  return storage.path(out or setup.WORKDIR.value)


class Generator(NamedTuple):
  """A compiled sampler.

  Attributes:
    generate: `(key, given) -> samples`, dicts of NumPy arrays, as model inputs.
    seconds: the time that compiling took.
  """

  generate: Callable[[Any, Mapping[str, np.ndarray]], dict[str, np.ndarray]]
  seconds: float


def generator(
  trained: Trained,
  data: Mapping[str, np.ndarray],
  given: Sequence[str],
  targets: tuple[str, ...],
  num: int,
  *,
  shuffled: bool = False,
) -> Generator:
  """Compiles a sampler of one task, once for all seeds, in equal parts of at most 1,000 rows.

  The rows of a part are split over all devices, by jit or pmap as in training. The number of
  devices does not change any row's noise: where it does not divide the rows, extra rows are
  generated and dropped.

  Args:
    trained: the run from `load`.
    data: arrays with the shapes and types of the given modalities.
    given: names of the given modalities.
    targets: names of the modalities to generate.
    num: number of samples per call.
    shuffled: whether to sample with `Framework.shuffled`.

  Returns:
    The sampler.
  """
  began = time.monotonic()
  parts = -(-num // _ROWS)
  size = -(-num // parts)
  # Shuffled rows read one another, and pmap cannot read rows of other devices.
  layout = parallel.make_layout("jit" if shuffled else trained.config.parallel.kind)
  num_rows = -(-size // layout.mesh.size) * layout.mesh.size
  like = {
    name: jax.ShapeDtypeStruct((num_rows, *data[name].shape[1:]), data[name].dtype)
    for name in given
  }
  function = trained.framework.shuffled if shuffled else trained.framework.sample

  def sample(params, key, given, rows):
    return function(params, key, given, targets, rows, trained.sampling)

  try:
    program = parallel.compile_sampler(layout, sample, trained.params, like, num_rows)
  except _FIT as error:
    raise UserError(
      "The parameters in the checkpoints do not fit the networks of the config"
      f" ({str(error).splitlines()[0]}). The checkpoints are from another version of this library,"
      " or config.json was changed; the config of the training is in a checkpoint's meta item."
    ) from error

  def generate(key, values):
    samples = []
    for part in range(parts):
      # Surplus rows repeat the last row.
      index = np.minimum(part * size + np.arange(num_rows), num - 1)
      given_rows = {name: values[name][index] for name in like}
      samples.append(program(jax.random.fold_in(key, part), given_rows))
    return {
      name: np.concatenate([np.asarray(part[name])[:size] for part in samples])[:num]
      for name in targets
    }

  return Generator(generate, time.monotonic() - began)
