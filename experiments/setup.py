"""What all entry points share: flags, errors in plain words, the compilation cache, building."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import difflib
import importlib
import os
import pathlib
import re
import sys
from typing import Any

from absl import app, flags, logging
import jax
import ml_collections
from ml_collections.config_flags import config_flags

from mmdiff_jax import rules
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import PreemptedError, UserError
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.modalities import Modality

# Here, since flags have one name space and every entry point has this one.
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of a training run: its config, checkpoints, metrics and results. May be gs://BUCKET/FOLDER"
  " where TensorFlow is installed.",
)


def run(
  main: Callable[[Sequence[str]], None], required: Iterable[str] = (), positional: int = 0
) -> None:
  """Parses the flags and runs `main`; call it under `if __name__ == "__main__"`.

  A UserError, and anything wrong with the flags, is printed as one paragraph: exit code 2. A loss
  that is not finite likewise: exit code 3. Training that was asked to stop: 75. All else keeps its
  traceback.

  Args:
    main: the entry point; gets what is left of the command line.
    required: names of the flags that must be given.
    positional: how many arguments that are no flags `main` takes.
  """
  flags.mark_flags_as_required(required)
  app.run(lambda argv: _guarded(main, argv, positional), flags_parser=_parse)


# What the configs of all frameworks have; each framework checks its own.
_RULES = {
  "seed": rules.whole(0),
  "modalities": rules.NAMES,
  "evaluation.seeds": rules.whole(),
  "evaluation.num": rules.whole(),
  "evaluation.draws": rules.whole(),
  "evaluation.split": rules.one_of("test", "validation"),
  "evaluation.subsets": rules.tuple_of(rules.NAMES),
  "evaluation.tasks": rules.tuple_of(rules.tuple_of(rules.NAMES)),
  "evaluation.similarity": rules.FLAG,
  "evaluation.bound": rules.whole(0),
  "parallel.mesh": rules.tuple_of(rules.whole(-(10**9))),
  "parallel.min_shard_size": rules.whole(),
  "monitor.log_every": rules.whole(),
  "monitor.report_every": rules.whole(),
  "monitor.checkpoint_every": rules.whole(),
  "monitor.keep": rules.whole(),
  "monitor.peer_timeout": rules.whole(),
  "monitor.stall_timeout": rules.number(0.0),
}


def build(config: ml_collections.ConfigDict) -> Framework:
  """The framework that a config describes.

  Raises:
    UserError: an unknown framework, data set or modality, or a number that cannot be.
  """
  rules.check(config, _RULES)
  frameworks = ("mld", "mt_diffusion", "mcdm", "codi")
  if config.framework not in frameworks:
    raise UserError(
      f"There is no framework named {config.framework!r} (config.framework). The known ones are: "
      f"{', '.join(frameworks)}."
    )
  framework = importlib.import_module(f"mmdiff_jax.frameworks.{config.framework}")
  return framework.build(config, modalities(config))


def modalities(config: ml_collections.ConfigDict) -> tuple[Modality, ...]:
  """The modalities that `config.modalities` names, in that order.

  Raises:
    UserError: the data set has no such modality, or is not known, or one is named twice or none.
  """
  if len(set(config.modalities)) < max(len(config.modalities), 1):
    raise UserError(
      f"config.modalities is {config.modalities}; it must name one modality or more, each once."
    )
  known = {modality.name: modality for modality in datasets.modalities(**config.data.to_dict())}
  unknown = [name for name in config.modalities if name not in known]
  if unknown:
    raise UserError(
      f"The data set {config.data.name!r} has no modality {unknown[0]!r} (config.modalities). It "
      f"has: {', '.join(known)}."
    )
  return tuple(known[name] for name in config.modalities)


def _guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str], positional: int) -> None:
  """Runs `main` with the compilation cache on and errors turned into words."""
  if not jax.config.jax_compilation_cache_dir:
    cache = pathlib.Path.home() / ".cache" / "mmdiff_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", os.fspath(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  try:
    if len(argv) > 1 + positional:
      raise UserError(f"Cannot read {argv[-1]!r} on the command line: write --NAME=VALUE.")
    main(argv)
  except UserError as error:
    _exit(error, 2)
  except FloatingPointError as error:
    _exit(error, 3)
  except PreemptedError as error:
    _exit(error, 75)
  except KeyboardInterrupt:
    _exit("Stopped. The same command goes on from the last checkpoint.", 130)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses the flags; what is wrong with them is said in one paragraph."""
  try:
    _check_config(argv)
    rest = flags.FLAGS(argv)
  except (UserError, flags.Error, OSError) as error:
    _exit(error, 2)
  # Info lines of the libraries below would bury the progress lines.
  if flags.FLAGS["verbosity"].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING
  return rest


def _check_config(argv: Sequence[str]) -> None:
  """Raises UserError when `--config` is no file, or a `--config.KEY` is no key of it."""
  source = re.compile(r"--?config(?:=(.*))?$")
  override = re.compile(r"--?(?:no)?config\.([^=]+)")
  path = None
  for i, argument in enumerate(argv):
    if match := source.match(argument):
      path = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
  if path is None:
    return
  if not pathlib.Path(path.split(":")[0]).is_file():
    raise UserError(
      f"There is no config file {path.split(':')[0]!r}. Give one with --config=FILE or "
      "--config=FILE:DATASET, such as --config=configs/mld.py:digits."
    )
  config = config_flags.ConfigFileFlagParser("config").parse(path)
  known = list(_keys(config.to_dict()))
  for argument in argv:
    if (match := override.match(argument)) and re.sub(r"\[.*", "", match[1]) not in known:
      near = difflib.get_close_matches(match[1], known, 1, 0.0)[0]
      raise UserError(
        f"The config {path} has no key {match[1]!r} (given as {argument}). The nearest one is "
        f"--config.{near}; all keys are in that file."
      )


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
  """The dotted names of the leaves of nested dicts."""
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _keys(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def _exit(message: object, code: int) -> None:
  print(message, file=sys.stderr, flush=True)
  sys.exit(code)
