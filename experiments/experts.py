"""The flags that say which experts of MCDM are composed, and how; the runs behind them."""

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
  "experts", [], "MCDM: runs to compose; DIR:sketch+mask shows a run only those conditions of its."
)
_UNCONDITIONAL = flags.DEFINE_list(
  "unconditional", [], "MCDM: run of the unconditional model, or of several that are mixed."
)
WEIGHTS = flags.DEFINE_list(
  "weights",
  [],
  "MCDM: one for each expert, 1 if none; A:B goes from A at t = 1 to B at t = 0. CoDi: NAME=SHARE"
  " of prompts of what is given, 1 if not named.",
)
_SHARES = flags.DEFINE_list(
  "shares", [], "MCDM: how far each unconditional model is relied on; they sum to 1. Equal if none."
)


def wanted() -> bool:
  """Whether the flags ask for a composition."""
  return bool(_EXPERTS.value or _UNCONDITIONAL.value or _SHARES.value)


def load(ema: bool) -> tuple[ml_collections.ConfigDict, Framework, Params]:
  """The composition that the flags name.

  Args:
    ema: whether experts give the running mean of their parameters.

  Returns:
    A config with the first run's way to sample and a data set that has all modalities, if a run's
    does; the framework; and its parameters.

  Raises:
    UserError: a run that is none, or no expert; experts that do not fit together; weights or shares
      that are no numbers, or not as many.
  """
  chosen = [_term(text) for text in _EXPERTS.value]
  weights = WEIGHTS.value or ["1"] * len(chosen)
  if len(weights) != len(chosen):
    raise UserError(
      f"--weights has {len(weights)} ({', '.join(weights)}) for {len(chosen)} experts"
      f" ({', '.join(run for run, _ in chosen) or 'none'}): give each one its own, in that order."
    )
  unconditional = [_run(run) for run in _UNCONDITIONAL.value]
  if len(set(unconditional)) < len(unconditional):
    raise UserError(f"--unconditional names a run twice: {', '.join(unconditional)}.")
  shares = _SHARES.value or [1 / len(unconditional) for _ in unconditional]
  if len(shares) != len(unconditional):
    raise UserError(
      f"--shares has {len(shares)} for {len(unconditional)} unconditional models"
      f" ({', '.join(unconditional) or 'none'}): give each one its own, in that order."
    )
  if not (chosen or unconditional):
    raise UserError("--shares are of runs: name them, --unconditional=DIR,DIR.")
  configs, experts = {}, {}
  for run in dict.fromkeys([*unconditional, *(run for run, _ in chosen)]):
    configs[run] = config = workdir_lib.load_config(run)
    if config.framework != "mcdm":
      raise UserError(
        f"The run {run} is of the framework {config.framework!r}. Only experts of MCDM compose;"
        " train one with --config=configs/mcdm.py:EXPERT."
      )
    experts[run] = make_expert(config, setup.modalities(config))
  terms = [
    Term(run, shown or tuple(c.name for c in experts[run].conditions), _weight(weight))
    for (run, shown), weight in zip(chosen, weights, strict=True)
  ]
  for term in terms:
    if not term.conditions:
      raise UserError(
        f"The expert {term.run} has no conditions; name it with --unconditional, not --experts."
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
      # No part is held out of the training of all of them.
      config.data.validation = None
    config.composition = {
      "experts": [f"{term.run}:{'+'.join(term.conditions)}" for term in terms],
      "weights": weights,
      "unconditional": unconditional,
      "shares": shares,
    }
  return config, framework, params


def check_corrector(config: ml_collections.ConfigDict) -> None:
  """Checks the corrector of a composition against its weights.

  Args:
    config: from `load`, with the settings that flags changed.

  Raises:
    UserError: its steps would diverge.
  """
  corrector, composition = config.sampling.get("corrector"), config.composition
  weights = [_weight(text) for text in composition.weights]
  # Of a weight that changes with t the ends, between which the bound has no lower value.
  ends = [
    [weight({SPACE: t}) if callable(weight) else weight for weight in weights] for t in (1.0, 0.0)
  ]
  largest = min(solvers.largest_snr(weights) for weights in ends)
  if corrector and corrector.num and corrector.snr >= largest:
    raise UserError(
      f"The corrector's steps of snr {corrector.snr:g} would diverge with the weights"
      f" {', '.join(composition.weights)}: give less than {largest:.3g}, such as"
      f" --corrector={corrector.num}:{corrector.leapfrog}:{largest / 2:.2g}."
    )


def _data(sets: Sequence[ml_collections.ConfigDict], framework: Framework):
  """The first data set with all modalities; else the first one, with all columns of its folder."""
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
  """One name for each folder of a user's own files."""
  folder = data.get("manual_dir")
  return folder and os.path.abspath(storage.expanded(folder, "config.data.manual_dir"))


def _term(text: str) -> tuple[str, tuple[str, ...]]:
  """The run and the conditions named, none if all are meant."""
  run, colon, names = text.rpartition(":")
  if not colon or names.startswith("//") or os.path.isdir(_run(text)):
    return _run(text), ()
  return _run(run), tuple(names.split("+"))


def _run(name: str) -> str:
  """One name for each run, so that naming one twice is seen."""
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
  """The number in a flag.

  Raises:
    UserError: it is none, or not finite.
  """
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f"--{flag} has {text!r}, which is no number.")
  return number
