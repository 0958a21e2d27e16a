import math

import ml_collections
import pytest

from mmdiff_jax import config_checks
from mmdiff_jax.errors import UserError


@pytest.mark.parametrize(
  ("check", "good", "bad"),
  [
    (config_checks.integer(2, 4), [2, 4], [1, 5, 2.0, True, "2", None, math.nan]),
    (
      config_checks.real(-1.0, 2.0),
      [-1, 0.5, 2.0],
      [-1.1, 2.1, math.nan, math.inf, True, "1", None],
    ),
    (config_checks.one_of(None, "a"), [None, "a"], ["b", "", 0, (), ["a"]]),
    (
      config_checks.tuple_of(config_checks.integer(), 1),
      [(1,), [1, 2]],
      [(), (0,), (1, "2"), 1, "12", None],
    ),
    (config_checks.NAMES, [(), ("a", "b")], ["ab", (1,), (("a",),), None]),
    (config_checks.TEXT, ["", "a"], [1, None, ("a",)]),
    (config_checks.SECTION, [{}, ml_collections.ConfigDict({"a": 1})], [1, "a", None, ("a",)]),
    (config_checks.FLAG, [True, False], [0, 1, "True", None]),
    (config_checks.DECAY, [0, 0.999], [1, 1.0, -0.1, math.nan, "0", False]),
  ],
)
def test_checks(check, good, bad):
  assert all(check.accepts(value) for value in good)
  assert not any(check.accepts(value) for value in bad)


def test_errors_name_the_field_by_its_full_path():
  config = ml_collections.ConfigDict({"a": {"b": {"b": 1}, "c": {"b": 0}}, "d": 2, "nothing": {}})
  # Missing fields are not checked.
  config_checks.check(
    config,
    {
      "a.b.b": config_checks.integer(),
      "e": config_checks.integer(),
      "nothing.*.b": config_checks.integer(),
    },
  )
  for table, section, words in (
    (
      {"a.c.b": config_checks.integer()},
      "",
      r"^config\.a\.c\.b is 0; it must be an integer from 1 to",
    ),
    ({"a.*.b": config_checks.integer()}, "", r"^config\.a\.c\.b is 0"),
    (
      {"d.b": config_checks.integer()},
      "x.",
      r"^config\.x\.d is 2; it must be a section with fields\.$",
    ),
    (
      {"d": config_checks.FRACTION},
      "x.",
      r"^config\.x\.d is 2; it must be a number from 0 to 1\.$",
    ),
  ):
    with pytest.raises(UserError, match=words):
      config_checks.check(config, table, section)
