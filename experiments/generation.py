"""What sampling and evaluation share: a trained run, and how to generate with it."""

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
from mmdiff_jax import parallel, storage
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base
from mmdiff_jax.frameworks.base import Framework, Params, SamplerConfig
from mmdiff_jax.training import checkpoints, workdir as workdir_lib

NUM = setup.define_integer("num", None, "How many samples.", 1, 10**7)
SOLVER = flags.DEFINE_string("solver", None, "Solver; the config's if not given.")
STEPS = setup.define_integer("steps", None, "Steps of the solver; the config's if not given.", 1)
GUIDANCE = flags.DEFINE_float(
  "guidance", None, "Strength of what is given; 1 is plain, and the config's if not given."
)
MODE = flags.DEFINE_string(
  "mode", None, "MT-Diffusion: replacement or informed; the config's if not given."
)
CORRECTOR = flags.DEFINE_string(
  "corrector",
  None,
  "MCDM: corrections after each step as NUM, NUM:LEAPFROG or NUM:LEAPFROG:SNR,"
  " such as 4:3:0.7; LEAPFROG = 1 is Langevin. The config's if not given.",
)
EMA = flags.DEFINE_bool("ema", True, "Use the running mean of the last stage's parameters.")
BEST = flags.DEFINE_bool(
  "best", False, "Of the last stage, the checkpoint that config.monitor.best kept; else its last."
)

# Flax's errors of parameters of another shape or name.
_FIT = (
  flax.errors.ScopeParamShapeError,
  flax.errors.ScopeParamNotFoundError,
  flax.errors.ScopeCollectionNotFound,
)
_ROWS = 1000  # Samples generated at once.


class Trained(NamedTuple):
  """A training run, ready to generate.

  Attributes:
    config: the run's, with the flags' settings of sampling.
    framework: built from it.
    params: all of its parameters.
    sampling: how to generate.
    ema: whether the last stage gives its running mean.
    best: the metric that says which checkpoint the last stage gives; empty for its last one.
  """

  config: ml_collections.ConfigDict
  framework: Framework
  params: Params
  sampling: SamplerConfig
  ema: bool
  best: str = ""


def load(workdir: str | None) -> Trained:
  """A run, or the experts that flags name, to be sampled as the flags say and else as its config.

  Args:
    workdir: of the run; None for experts.

  Raises:
    UserError: there is no run, it is not trained or damaged, or kept no best checkpoint that is
      asked for, the solver is unknown, a flag is not of its framework, or experts do not compose or
      with a corrector whose steps would diverge.
  """
  if experts.wanted() == bool(workdir):
    raise UserError(
      "Say what to generate with: --workdir=DIR, or runs of MCDM with --unconditional=DIR and"
      " --experts=DIR,DIR (not both)."
    )
  best = ""
  if workdir:
    config = workdir_lib.load_config(workdir)
    framework = setup.build(_flagged(config))
    best = config.monitor.get("best", "") if BEST.value else ""
    if BEST.value and not best:
      raise UserError(
        f"The run {workdir} was not asked to keep its best checkpoint: --best goes with a run that"
        " was trained with --config.monitor.best=METRIC."
      )
    params = checkpoints.load_params(framework, workdir, ema=EMA.value, best=best)
  elif BEST.value:
    raise UserError("--best is for one run, --workdir=DIR; experts give their last checkpoints.")
  else:
    config, framework, params = experts.load(EMA.value)
    experts.check_corrector(_flagged(config))
  return Trained(config, framework, params, base.make_sampler_config(config), EMA.value, best)


def _flagged(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with the settings of sampling that are flags."""
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
  """The shares of prompts that `--weights` names."""
  if "weights" not in config.sampling:
    raise UserError(
      f"The framework {config.framework!r} of this run has no --weights; those of experts go with"
      " --experts=DIR,DIR."
    )
  found = {}
  for text in texts:
    name, _, share = text.partition("=")
    if name not in config.modalities or name in found:
      raise UserError(
        f"--weights has {text!r}. Of what is given name each once as NAME=SHARE, NAME one of"
        f" {', '.join(config.modalities)}."
      )
    found[name] = experts.number("weights", share)
  return found


def _corrector(text: str) -> dict[str, float]:
  kinds = {"num": int, "leapfrog": int, "snr": float}
  parts = text.split(":")
  try:
    found = {name: kinds[name](part) for name, part in zip(kinds, parts, strict=False)}
  except ValueError:
    found = {}
  if len(found) < len(parts) or found["num"] < 0 or min(list(found.values())[1:], default=1) <= 0:
    raise UserError(
      f"--corrector={text} is not NUM, NUM:LEAPFROG or NUM:LEAPFROG:SNR, such as 4:3:0.7: how many"
      " corrections follow each step, of how many leapfrog steps, how large."
    )
  return found


def folder(out: str | None) -> epath.Path:
  """Where results go: that folder, or the workdir.

  Raises:
    UserError: neither was named.
  """
  if not (out or setup.WORKDIR.value):
    raise UserError("Say where the results go: --out=DIR. A composition has no workdir of its own.")
  return storage.path(out or setup.WORKDIR.value)


class Generator(NamedTuple):
  """A compiled sampler.

  Attributes:
    generate: `(key, given) -> samples`, dicts of NumPy arrays in the model's view.
    seconds: what compiling took.
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
  """Compiles one way to sample, once for all seeds, in equal parts of at most 1,000 rows.

  The rows of a part are split over all devices, by jit or pmap as in training, and the number of
  devices changes no row's noise: where it does not divide them, some more rows are made and left
  out.

  Args:
    trained: from `load`.
    data: arrays whose shapes and types are those of what will be given.
    given: the names of what will be given.
    targets: the names of what is to be generated.
    num: samples a call.
    shuffled: whether by `Framework.shuffled`.

  Returns:
    The sampler.
  """
  began = time.monotonic()
  parts = -(-num // _ROWS)
  size = -(-num // parts)
  # Shuffled rows read one another, and those of other devices are out of sight in pmap.
  layout = parallel.make_layout("jit" if shuffled else trained.config.parallel.kind)
  made = -(-size // layout.mesh.size) * layout.mesh.size
  like = {
    name: jax.ShapeDtypeStruct((made, *data[name].shape[1:]), data[name].dtype) for name in given
  }
  function = trained.framework.shuffled if shuffled else trained.framework.sample

  def sample(params, key, given, rows):
    return function(params, key, given, targets, rows, trained.sampling)

  try:
    program = parallel.compile_sampler(layout, sample, trained.params, like, made)
  except _FIT as error:
    raise UserError(
      "The parameters in the checkpoints do not fit the networks of the config"
      f" ({str(error).splitlines()[0]}). The checkpoints are of another version of the program, or"
      " config.json was changed; the config that was trained is in a checkpoint's meta item."
    ) from error

  def generate(key, values):
    found = []
    for part in range(parts):
      # What is too many repeats the last row.
      index = np.minimum(part * size + np.arange(made), num - 1)
      own = {name: values[name][index] for name in like}
      found.append(program(jax.random.fold_in(key, part), own))
    return {
      name: np.concatenate([np.asarray(part[name])[:size] for part in found])[:num]
      for name in targets
    }

  return Generator(generate, time.monotonic() - began)
