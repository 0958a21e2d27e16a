import math

import ml_collections
import pytest

from mmdiff_jax import rules
from mmdiff_jax.errors import UserError


@pytest.mark.parametrize(
  ("rule", "good", "bad"),
  [
    (rules.whole(2, 4), [2, 4], [1, 5, 2.0, True, "2", None, math.nan]),
    (rules.number(-1.0, 2.0), [-1, 0.5, 2.0], [-1.1, 2.1, math.nan, math.inf, True, "1", None]),
    (rules.one_of(None, "a"), [None, "a"], ["b", "", 0, (), ["a"]]),
    (rules.tuple_of(rules.whole(), 1), [(1,), [1, 2]], [(), (0,), (1, "2"), 1, "12", None]),
    (rules.NAMES, [(), ("a", "b")], ["ab", (1,), (("a",),), None]),
    (rules.TEXT, ["", "a"], [1, None, ("a",)]),
    (rules.SECTION, [{}, ml_collections.ConfigDict({"a": 1})], [1, "a", None, ("a",)]),
    (rules.FLAG, [True, False], [0, 1, "True", None]),
    (rules.DECAY, [0, 0.999], [1, 1.0, -0.1, math.nan, "0", False]),
  ],
)
def test_rules(rule, good, bad):
  assert all(rule.holds(value) for value in good)
  assert not any(rule.holds(value) for value in bad)


def test_fields_are_named_where_they_are():
  config = ml_collections.ConfigDict({"a": {"b": {"b": 1}, "c": {"b": 0}}, "d": 2, "nothing": {}})
  # What is not there is not checked.
  rules.check(config, {"a.b.b": rules.whole(), "e": rules.whole(), "nothing.*.b": rules.whole()})
  for table, section, words in (
    ({"a.c.b": rules.whole()}, "", r"^config\.a\.c\.b is 0; it must be a whole number from 1 to"),
    ({"a.*.b": rules.whole()}, "", r"^config\.a\.c\.b is 0"),
    ({"d.b": rules.whole()}, "x.", r"^config\.x\.d is 2; it must be a section with fields\.$"),
    ({"d": rules.SHARE}, "x.", r"^config\.x\.d is 2; it must be a number from 0 to 1\.$"),
  ):
    with pytest.raises(UserError, match=words):
      rules.check(config, table, section)
