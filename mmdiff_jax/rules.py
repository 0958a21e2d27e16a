"""What the fields of a config may be: a table a section, checked where the section is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import difflib
from typing import Any, NamedTuple

from mmdiff_jax.errors import UserError


class Rule(NamedTuple):
  """What a field may be.

  Attributes:
    words: what completes "it must be".
    holds: whether a value is so.
  """

  words: str
  holds: Callable[[Any], bool]


def whole(least: int = 1, most: int = 10**9) -> Rule:
  """An int from `least` to `most`; by default what a counter of 32 bits can hold."""
  return Rule(
    f"a whole number from {least:,} to {most:,}", lambda x: type(x) is int and least <= x <= most
  )


def number(least: float = -1e9, most: float = 1e9) -> Rule:
  """An int or float from `least` to `most`; NaN is none."""
  return Rule(
    f"a number from {least:g} to {most:g}", lambda x: type(x) in (int, float) and least <= x <= most
  )


def one_of(*known: Any) -> Rule:
  """One of some values."""
  return Rule(f"one of {', '.join(map(str, known))}", lambda x: x in known)


def tuple_of(rule: Rule, least: int = 0) -> Rule:
  """A tuple of `least` or more values, for each of which a rule holds."""
  number_of = f"{least} or more, " if least else ""
  return Rule(
    f"a tuple, of {number_of}each {rule.words}",
    lambda x: isinstance(x, tuple | list) and len(x) >= least and all(map(rule.holds, x)),
  )


FLAG = Rule("True or False", lambda x: isinstance(x, bool))
TEXT = Rule("a text", lambda x: isinstance(x, str))
SECTION = Rule("a section with fields", lambda x: isinstance(x, Mapping) or hasattr(x, "to_dict"))
NAMES = tuple_of(Rule("a name", TEXT.holds))
SHARE = number(0.0, 1.0)
DECAY = Rule("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1)
# What no network has more of is a slip. Layers are made one by one, so that a slip there would take
# hours before anything else is said.
SIZE, DEPTH = whole(most=2**20), whole(0, 1000)
DTYPE = one_of(None, "float32", "bfloat16")


def check(config: Any, rules: Mapping[str, Rule], section: str = "") -> None:
  """Checks fields of a config.

  Args:
    config: a ConfigDict, or that of a section.
    rules: by the field's name, dotted where it is in a section; `*` is each name that is there. A
      field that is not there is not checked.
    section: of the config, with a dot after it; for the message.

  Raises:
    UserError: a field is not as its rule says, or no section where it must be one.
  """
  for path, rule in rules.items():
    for name, value in fields(config, [path], section):
      if not rule.holds(value):
        raise UserError(f"{name} is {value!r}; it must be {rule.words}.")


def fields(config: Any, paths: Iterable[str], section: str = "") -> Iterator[tuple[str, Any]]:
  """Those fields of a config that are there.

  Args:
    config: as `check`.
    paths: names of fields, as those of the rules of `check`.
    section: as `check`.

  Yields:
    Names in full, such as "config.score.prediction", and values.

  Raises:
    UserError: what must be a section is none.
  """
  for path in paths:
    yield from _fields(config, path.split("."), f"config.{section}")


def nearest(name: str, names: Iterable[str]) -> str:
  """The one of `names` that is spelled most like `name`."""
  return difflib.get_close_matches(name, names, 1, 0.0)[0]


def _fields(tree: Any, path: list[str], prefix: str) -> Iterator[tuple[str, Any]]:
  if not SECTION.holds(tree):
    raise UserError(f"{prefix[:-1]} is {tree!r}; it must be {SECTION.words}.")
  first, *rest = path
  for name in tree if first == "*" else [first] if first in tree else []:
    if rest:
      yield from _fields(tree[name], rest, f"{prefix}{name}.")
    else:
      yield prefix + name, tree[name]
