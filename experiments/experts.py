"""The flags that compose experts of MCDM, and the loading of the runs that they name."""

from collections.abc import Sequence
import math
import os
from typing import Any

from absl import flags
import jax
import ml_collections

from experiments import setup
from mmdiff_jax import solvers, storage
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import mcdm
from mmdiff_jax.frameworks.base import Framework, Params
from mmdiff_jax.frameworks.mcdm.composing import compose
from mmdiff_jax.frameworks.mcdm.model import make_expert, SPACE
from mmdiff_jax.frameworks.mcdm.sampling import Term
from mmdiff_jax.training import checkpoints, workdir as workdir_lib

_EXPERTS = flags.DEFINE_list(
  "experts", [], "MCDM: runs to compose; DIR:sketch+mask gives a run only these of its conditions."
)
_UNCONDITIONAL = flags.DEFINE_list(
  "unconditional", [], "MCDM: run of the unconditional model, or runs of several that are mixed."
)
WEIGHTS = flags.DEFINE_list(
  "weights",
  [],
  "MCDM: one for each expert, 1 if not given; A:B goes from A at t = 1 to B at t = 0. CoDi:"
  " NAME=WEIGHT of the prompt of each given modality, 1 if not named.",
)
_SHARES = flags.DEFINE_list(
  "shares", [], "MCDM: weight of each unconditional model; they sum to 1. Equal if not given."
)


def wanted() -> bool:
  """Returns whether the flags ask for a composition."""
  return bool(_EXPERTS.value or _UNCONDITIONAL.value or _SHARES.value)


def load(ema: bool) -> tuple[ml_collections.ConfigDict, Framework, Params]:
  """Loads the composition that the flags name.

  Args:
    ema: whether to load the EMA of the experts' parameters.

  Returns:
    A config with the first run's sampling fields and a data set that has all modalities, if any
    run's does; the framework; and its parameters.

  Raises:
    UserError: a folder is not a run or not an expert's; the experts do not fit together; the
      weights or shares are not numbers, or there are too many or too few.
  """
  runs = [_term(text) for text in _EXPERTS.value]
  weights = WEIGHTS.value or ["1"] * len(runs)
  if len(weights) != len(runs):
    raise UserError(
      f"--weights has {len(weights)} value(s) ({', '.join(weights)}) for {len(runs)} expert(s)"
      f" ({', '.join(run for run, _ in runs) or 'none'}). Give one for each expert, in that order."
    )
  unconditional = [_run(run) for run in _UNCONDITIONAL.value]
  if len(set(unconditional)) < len(unconditional):
    raise UserError(f"--unconditional names a run twice: {', '.join(unconditional)}.")
  shares = _SHARES.value or [1 / len(unconditional) for _ in unconditional]
  if len(shares) != len(unconditional):
    raise UserError(
      f"--shares has {len(shares)} value(s) for {len(unconditional)} unconditional model(s)"
      f" ({', '.join(unconditional) or 'none'}). Give one for each model, in that order."
    )
  if not (runs or unconditional):
    raise UserError(
      "--shares is set, but no runs are named. Name them with --unconditional=DIR,DIR."
    )
  configs, experts = {}, {}
  for run in dict.fromkeys([*unconditional, *(run for run, _ in runs)]):
    configs[run] = config = workdir_lib.load_config(run)
    if config.framework != "mcdm":
      raise UserError(
        f"The run {run} is of the framework {config.framework!r}. Only experts of MCDM can be"
        " composed; train one with --config=configs/mcdm.py:EXPERT."
      )
    experts[run] = make_expert(config, setup.modalities(config))
  terms = [
    Term(run, names or tuple(c.name for c in experts[run].conditions), _weight(weight))
    for (run, names), weight in zip(runs, weights, strict=True)
  ]
  for term in terms:
    if not term.conditions:
      raise UserError(
        f"The expert {term.run} has no conditions. Name it with --unconditional, not --experts."
      )
  shares = [number("shares", share) for share in shares]
  framework = compose(experts, dict(zip(unconditional, shares, strict=True)), terms)
  params = {
    run: checkpoints.load_params(mcdm.alone(expert), run, ema=ema)
    for run, expert in experts.items()
  }
  config = next(iter(configs.values()))
  fractions = {other.data.get("validation") for other in configs.values()}
  config.data = _data([other.data for other in configs.values()], framework)
  with config.unlocked():
    if len(fractions) > 1:
      # No part of the data is held out from the training of all of them.
      config.data.validation = None
    config.composition = {
      "experts": [f"{term.run}:{'+'.join(term.conditions)}" for term in terms],
      "weights": weights,
      "unconditional": unconditional,
      "shares": shares,
    }
  return config, framework, params


def check_corrector(config: ml_collections.ConfigDict) -> None:
  """Checks that the corrector of a composition does not diverge with its weights.

  Args:
    config: the config from `load`, with the fields that flags override.

  Raises:
    UserError: its steps would diverge.
  """
  corrector, composition = config.sampling.get("corrector"), config.composition
  weights = [_weight(text) for text in composition.weights]
  # A weight that changes with t is checked at both ends: the bound is no lower between them.
  ends = [
    [weight({SPACE: t}) if callable(weight) else weight for weight in weights] for t in (1.0, 0.0)
  ]
  largest = min(solvers.largest_snr(weights) for weights in ends)
  if corrector and corrector.num and corrector.snr >= largest:
    raise UserError(
      f"The corrector's steps of snr {corrector.snr:g} would diverge with the weights"
      f" {', '.join(composition.weights)}. Give an snr below {largest:.3g}, such as"
      f" --corrector={corrector.num}:{corrector.leapfrog}:{largest / 2:.2g}."
    )


def _data(sets: Sequence[ml_collections.ConfigDict], framework: Framework):
  """Returns the first data set with all modalities, else the first with its folder's columns."""
  needed = {modality.name for modality in framework.modalities}
  for data in sets:
    if needed <= {modality.name for modality in datasets.modalities(**data.to_dict())}:
      return data
  first = sets[0]
  if first.name == "folder":
    columns = [data.columns for data in sets if _folder(data) == _folder(first)]
    with first.unlocked():
      for more in columns:
        first.columns.update(more)
  return first


def _folder(data: ml_collections.ConfigDict) -> str | None:
  """Returns one name for each folder of a user's files, however it is written."""
  folder = data.get("manual_dir")
  return folder and os.path.abspath(storage.expanded(folder, "config.data.manual_dir"))


def _term(text: str) -> tuple[str, tuple[str, ...]]:
  """Parses a run and the names of its conditions; no names mean all."""
  run, colon, names = text.rpartition(":")
  if not colon or names.startswith("//") or os.path.isdir(_run(text)):
    return _run(text), ()
  return _run(run), tuple(names.split("+"))


def _run(name: str) -> str:
  """Returns one name for each run, so that duplicates are noticed."""
  name = os.fspath(storage.path(name))
  return name if storage.in_bucket(name) else os.path.normpath(name)


def _weight(text: str) -> Any:
  if ":" not in text:
    return number("weights", text)
  begin, end = (number("weights", part) for part in text.split(":", 1))
  return jax.tree_util.Partial(_between, begin, end)


def _between(begin, end, t):
  return end + (begin - end) * t[SPACE]


def number(flag: str, text: str | float) -> float:
  """Parses a number in a flag's value.

  Raises:
    UserError: it is not a number, or not finite.
  """
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f"--{flag} has {text!r}, which is not a finite number.")
  return number
