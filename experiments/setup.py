"""Code shared by all entry points: flags, readable errors, the compilation cache, building."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import importlib
import os
import pkgutil
import re
import sys
from typing import Any

from absl import app, flags, logging
import jax
import ml_collections
from ml_collections.config_flags import config_flags, config_path

from mmdiff_jax import config_checks, frameworks, storage
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import PreemptedError, UserError
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.modalities import Modality


class _Integer(flags.IntegerParser):
  """Parses integers; 1e2 and 100.0 are integers, too."""

  def convert(self, argument: int | str) -> int:
    try:
      return super().convert(argument)
    except ValueError as error:
      with contextlib.suppress(ValueError):
        if (number := float(argument)).is_integer():
          return int(number)
      raise ValueError("it must be an integer") from error


config_flags.register_flag_parser_for_type(int, _Integer())


def define_integer(
  name: str, default: int | None, text: str, least: int | None = None, most: int | None = None
) -> flags.FlagHolder[int | None]:
  """Like `flags.DEFINE_integer`, but accepts 1e2 and 100.0 as well."""
  return flags.DEFINE(
    _Integer(least, most), name, default, text, serializer=flags.ArgumentSerializer()
  )


# Defined here, since flags share one namespace and every entry point has this one.
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

  A UserError, an error in the flags or an error of the operating system (a full disk, missing
  permissions) is printed as one paragraph, with exit code 2. A loss that is not finite is printed
  likewise, with exit code 3, and the end of a training that was asked to stop with 75. All other
  errors keep their traceback.

  Args:
    main: the entry point; called with the rest of the command line.
    required: names of the flags that must be given.
    positional: number of positional arguments that `main` takes.
  """
  for stream in (sys.stdout, sys.stderr):
    # The name of a file may contain bytes that the terminal cannot show.
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
  for name in required:
    flags.mark_flag_as_required(name)
    flags.register_validator(name, bool, "It is empty; give it a value.")
  app.run(lambda argv: _guarded(main, argv, positional), flags_parser=_parse)


# Fields that name modalities of the data set, which the run need not have.
_NAMES = {
  "modalities": config_checks.NAMES,
  "sampling.order": config_checks.tuple_of(config_checks.NAMES),
  "sampling.weights": config_checks.SECTION,
  "evaluation.subsets": config_checks.tuple_of(config_checks.NAMES),
  "evaluation.tasks": config_checks.tuple_of(config_checks.tuple_of(config_checks.NAMES)),
  "alignment.links": config_checks.tuple_of(config_checks.NAMES),
  "bridging.bridge": config_checks.TEXT,
  "bridging.pretrained": config_checks.SECTION,
  "main": config_checks.TEXT,
  "augment.modality": config_checks.TEXT,
}
# Checks of the fields that all frameworks share; each framework checks its other fields.
_RULES = {
  **dict.fromkeys(("data", "evaluation", "parallel", "monitor", "sampling"), config_checks.SECTION),
  "data.name": config_checks.TEXT,
  "seed": config_checks.integer(0),
  "evaluation.seeds": config_checks.integer(),
  "evaluation.num": config_checks.integer(),
  "evaluation.draws": config_checks.integer(),
  "evaluation.split": config_checks.one_of("test", "validation"),
  "evaluation.similarity": config_checks.FLAG,
  "evaluation.bound": config_checks.integer(0),
  "evaluation.data": config_checks.SECTION,
  "evaluation.classifier_steps": config_checks.Check(
    f"None or {config_checks.integer().description}",
    lambda x: x is None or config_checks.integer().accepts(x),
  ),
  "parallel.kind": config_checks.one_of("jit", "pmap"),
  "parallel.mesh": config_checks.tuple_of(config_checks.integer(-(10**9))),
  "parallel.min_shard_size": config_checks.integer(),
  "monitor.log_every": config_checks.integer(),
  "monitor.report_every": config_checks.integer(),
  "monitor.checkpoint_every": config_checks.integer(),
  "monitor.keep": config_checks.integer(),
  "monitor.best": config_checks.TEXT,
  "monitor.peer_timeout": config_checks.integer(),
  "monitor.stall_timeout": config_checks.real(0.0),
}


def build(config: ml_collections.ConfigDict) -> Framework:
  """Builds the framework that a config describes.

  Raises:
    UserError: an unknown framework, data set or modality, or an invalid value of a field.
  """
  config_checks.check(config, _RULES)
  names = [module.name for module in pkgutil.iter_modules(frameworks.__path__) if module.ispkg]
  if config.framework not in names:
    raise UserError(
      f"There is no framework named {config.framework!r} (config.framework). There are: "
      f"{', '.join(names)}."
    )
  framework = importlib.import_module(f"mmdiff_jax.frameworks.{config.framework}")
  return framework.build(config, modalities(config))


def modalities(config: ml_collections.ConfigDict) -> tuple[Modality, ...]:
  """Returns the modalities that `config.modalities` names, in that order.

  Raises:
    UserError: there is no such data set, it lacks a modality that `config.modalities` or another
      field names, or `config.modalities` names one twice or none.
  """
  config_checks.check(config, _NAMES)
  if len(set(config.modalities)) < max(len(config.modalities), 1):
    raise UserError(
      f"config.modalities is {config.modalities}; it must name at least one modality, each once."
    )
  available = {modality.name: modality for modality in datasets.modalities(**config.data.to_dict())}
  for field, names in config_checks.fields(config, _NAMES):
    for name in _flat(names):
      if name not in available:
        raise UserError(
          f"The data set {config.data.name!r} has no modality {name!r} ({field}). The nearest one"
          f" is {config_checks.nearest(name, available)!r}; it has: {', '.join(available)}."
        )
  return tuple(available[name] for name in config.modalities)


def _flat(names: Any) -> Iterable[str]:
  """Lists the names in nested tuples or in a section; an empty string alone is no name."""
  if isinstance(names, str):
    return [names] if names else []
  return [name for part in names for name in ([part] if isinstance(part, str) else _flat(part))]


def _guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str], positional: int) -> None:
  """Runs `main` with the compilation cache enabled, and prints errors as a paragraph."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", os.fspath(storage.cache_dir() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  try:
    if len(argv) > 1 + positional:
      raise UserError(
        f"Cannot parse {argv[-1]!r} on the command line. Write flags as --NAME=VALUE."
      )
    main(argv)
  except UserError as error:
    _exit(error, 2)
  except AttributeError as error:
    if not isinstance(error.obj, ml_collections.ConfigDict):
      raise
    _exit(
      f"The config has no field {error.name!r} beside {', '.join(error.obj)}, but it is required."
      " Add it to the config as in the files in configs/; config.json of a run can be restored from"
      " a checkpoint's meta item.",
      2,
    )
  except FloatingPointError as error:
    _exit(error, 3)
  except PreemptedError as error:
    _exit(error, 75)
  except OSError as error:
    if error.errno is None:  # Raised by a library, not by the operating system.
      raise
    name = error.filename or "A file or connection"
    _exit(
      f"{name} cannot be read or written: {error.strerror}. Check the path, its permissions"
      " and the free space on the disk.",
      2,
    )
  except KeyboardInterrupt:
    _exit("Stopped. The same command resumes from the last checkpoint.", 130)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses the flags; prints an error in them as one paragraph and exits."""
  try:
    # ml_collections reads the overrides from sys.argv.
    sys.argv, unset = config_first(argv)
    rest = flags.FLAGS(sys.argv)
    for key in unset:
      config_path.set_value(key, flags.FLAGS.config, None)
  except (UserError, flags.Error, OSError) as error:
    _exit(_reworded(str(error)), 2)
  # Info lines of the libraries below would bury the progress lines.
  if flags.FLAGS["verbosity"].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING
  return rest


def _reworded(message: str) -> str:
  """Rewords absl's errors about a value of the wrong type as `config_checks` words them."""
  for pattern, words in (
    (r"\('Non-boolean argument to boolean flag', .*\)", "it must be True or False"),
    (r"could not convert string to float: .*", "it must be a number"),
  ):
    message = re.sub(pattern, words, message, flags=re.DOTALL)
  return message


def config_first(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Reorders a command line as ml_collections needs it, and checks its config and overrides.

  Args:
    argv: the program's name and the arguments, in any order.

  Returns:
    The same with `--config` first, `~` in its path expanded, and without the overrides whose last
    value is None; and the keys of these, which are to be set to None.

  Raises:
    UserError: `--config` is not a file or not a config, or a `--config.KEY` is not one of its keys.
  """
  given, rest = [], []
  arguments = iter(argv[1:])
  for argument in arguments:
    if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
      given.append(next(arguments, "") if match[1] is None else match[1])
    else:
      rest.append(argument)
  if not given:
    return list(argv), []
  file, colon, preset = given[-1].partition(":")
  if file:
    file = storage.expanded(file, "--config")
  config = _load_config(file, colon, preset)
  keys = dict(_keys(config))
  kept, last = [], {}
  arguments = iter(rest)
  for argument in arguments:
    match = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
    if not match:
      kept.append(argument)
      continue
    key, value = match.groups()
    optional = keys.get(re.sub(r"\[.*", "", key))
    if optional is None:
      raise UserError(
        f"The config {file + colon + preset} has no key {key!r} (given as {argument}). The nearest"
        f" one is --config.{config_checks.nearest(key, keys)}; all keys are in that file."
      )
    if optional and value is None:
      value = next(arguments, "")
      argument = f"{argument}={value}"
    if optional:
      last[key] = value
    if not (optional and value == "None"):
      kept.append(argument)
  unset = [key for key, value in last.items() if value == "None"]
  return [argv[0], f"--config={file + colon + preset}", *kept], unset


def _load_config(file: str, colon: str, preset: str) -> ml_collections.ConfigDict:
  """Loads the config of a file, `FILE:PRESET`."""
  if not os.path.isfile(file):
    raise UserError(
      f"There is no config file {file!r}. Give one with --config=FILE or "
      "--config=FILE:DATASET, such as --config=configs/mld.py:digits."
    )
  try:
    config = config_flags.ConfigFileFlagParser("config").parse(file + colon + preset)
  except UserError:
    raise
  except Exception as error:  # A file that is not a config, or has a typo, can raise any error.
    last = " ".join(str(error).split("Traceback")[-1].split())
    raise UserError(
      f"The config file {file!r} fails ({type(error).__name__}: {last}). It must be Python with a"
      " function get_config(name) that returns a ConfigDict; see configs/mld.py."
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"get_config of the config file {file!r} returns {type(config).__name__}; it must return an"
      " ml_collections.ConfigDict."
    )
  return config


def _keys(tree: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, bool]]:
  """Yields the dotted names of the leaves of a config, and whether each may be None."""
  for name, value in tree.items(preserve_field_references=True):
    optional = isinstance(value, ml_collections.FieldReference)
    if optional:
      value = value.get()
    if isinstance(value, ml_collections.ConfigDict):
      yield from _keys(value, f"{prefix}{name}.")
    else:
      yield prefix + name, optional


def _exit(message: object, code: int) -> None:
  print(message, file=sys.stderr, flush=True)
  sys.exit(code)
