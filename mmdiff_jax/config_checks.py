"""Checks of config fields: one table per section, applied where the section is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import difflib
from typing import Any, NamedTuple

from mmdiff_jax.errors import UserError


class Check(NamedTuple):
  """A check of one field's value.

  Attributes:
    description: completes the sentence "it must be".
    accepts: returns whether a value passes.
  """

  description: str
  accepts: Callable[[Any], bool]


def integer(least: int = 1, most: int = 10**9) -> Check:
  """Accepts an int from `least` to `most`, by default up to what a counter of 32 bits can hold."""
  return Check(
    f"an integer from {least:,} to {most:,}", lambda x: type(x) is int and least <= x <= most
  )


def real(least: float = -1e9, most: float = 1e9) -> Check:
  """Accepts an int or float from `least` to `most`, but not NaN."""
  return Check(
    f"a number from {least:g} to {most:g}", lambda x: type(x) in (int, float) and least <= x <= most
  )


def one_of(*values: Any) -> Check:
  """Accepts one of some values."""
  return Check(f"one of {', '.join(map(str, values))}", lambda x: x in values)


def tuple_of(check: Check, least: int = 0) -> Check:
  """Accepts a tuple of `least` or more values that each pass a check."""
  at_least = f"{least} or more, " if least else ""
  return Check(
    f"a tuple, of {at_least}each {check.description}",
    lambda x: isinstance(x, tuple | list) and len(x) >= least and all(map(check.accepts, x)),
  )


FLAG = Check("True or False", lambda x: isinstance(x, bool))
TEXT = Check("a text", lambda x: isinstance(x, str))
SECTION = Check("a section with fields", lambda x: isinstance(x, Mapping) or hasattr(x, "to_dict"))
NAMES = tuple_of(Check("a name", TEXT.accepts))
FRACTION = real(0.0, 1.0)
DECAY = Check("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)
# No network is larger than these: beyond them is a typo. Layers are built one by one, so a typo in
# the depth would cost hours before any error.
SIZE, DEPTH = integer(most=2**20), integer(0, 1000)
DTYPE = one_of(None, "float32", "bfloat16")


def check(config: Any, checks: Mapping[str, Check], section: str = "") -> None:
  """Checks fields of a config.

  Args:
    config: a ConfigDict, or one of its sections.
    checks: by field name, with dots for fields of nested sections; `*` matches every name in a
      section. A missing field is not checked.
    section: the section's name followed by a dot; for the message.

  Raises:
    UserError: a field fails its check, or is not a section where it must be one.
  """
  for path, one in checks.items():
    for name, value in fields(config, [path], section):
      if not one.accepts(value):
        raise UserError(f"{name} is {value!r}; it must be {one.description}.")


def check_names(config: Any, checks: Mapping[str, Check], section: str) -> None:
  """Checks that a section has no field but those of a table.

  Args:
    config: the section.
    checks: the table of all of its fields, as in `check`.
    section: its name followed by a dot; for the message.

  Raises:
    UserError: a field is not in the table; the message gives the nearest one that is.
  """
  names = dict.fromkeys(path.split(".")[0] for path in checks)
  for name in config:
    if name not in names:
      raise UserError(
        f"config.{section}{name} is not a field; the nearest one is"
        f" config.{section}{nearest(name, names)}."
      )


def fields(config: Any, paths: Iterable[str], section: str = "") -> Iterator[tuple[str, Any]]:
  """Yields the fields of a config that exist.

  Args:
    config: as in `check`.
    paths: names of fields, as in the table of `check`.
    section: as in `check`.

  Yields:
    Full names, such as "config.score.prediction", and values.

  Raises:
    UserError: a field that must be a section is not one.
  """
  for path in paths:
    yield from _fields(config, path.split("."), f"config.{section}")


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns the one of `names` whose spelling is closest to `name`."""
  return difflib.get_close_matches(name, names, 1, 0.0)[0]


def _fields(tree: Any, path: list[str], prefix: str) -> Iterator[tuple[str, Any]]:
  if not SECTION.accepts(tree):
    raise UserError(f"{prefix[:-1]} is {tree!r}; it must be {SECTION.description}.")
  first, *rest = path
  for name in tree if first == "*" else [first] if first in tree else []:
    if rest:
      yield from _fields(tree[name], rest, f"{prefix}{name}.")
    else:
      yield prefix + name, tree[name]
