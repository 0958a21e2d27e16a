"""Tests of the mutants: they follow the rules, nothing else changes, and the tests run on them."""

import importlib.util
import json
from pathlib import Path
import subprocess
import sys

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")
SOURCE = '''"""Is 1 + 1."""
import math as sin

def f(alpha: Float[Array, "2 3"], sigma=0.5) -> 2:
  """Adds 1 + 2."""
  if alpha < 0 and not sigma:
    raise ValueError(f"{alpha + 1} - 1", 3)
  return g(alpha, -2 * sigma**(4  # + 1
           ), t=1, s=x | y)
'''
EXPECTED = {
  ("f", 'def f(alpha: Float[Array, "2 3"], sigma=1.5) -> 2:'),
  ("f", 'def f(alpha: Float[Array, "2 3"], sigma=1.0) -> 2:'),
  ("f", "if (alpha < 0 or not sigma):"),
  ("f", "if alpha <= 0 and not sigma:"),
  ("f", "if sigma < 0 and not sigma:"),
  ("f", "if alpha < 1 and not sigma:"),
  ("f", "if alpha < 0 and sigma:"),
  ("f", "if alpha < 0 and not alpha:"),
  ("f", "return g(-2 * sigma**(4  # + 1 ), alpha, t=1, s=x | y)"),
  ("f", "), t=x | y, s=1)"),
  ("f", "return g(sigma, -2 * sigma**(4  # + 1"),
  ("f", "return g(alpha, -2 / sigma**(4  # + 1"),
  ("f", "return g(alpha, 2 * sigma**(4  # + 1"),
  ("f", "return g(alpha, -3 * sigma**(4  # + 1"),
  ("f", "return g(alpha, -2 * (sigma*(4  # + 1 )), t=1, s=x | y)"),
  ("f", "return g(alpha, -2 * alpha**(4  # + 1"),
  ("f", "return g(alpha, -2 * sigma**(5  # + 1"),
  ("f", "), t=2, s=x | y)"),
  ("f", "), t=1, s=(x & y))"),
}


@pytest.fixture(name="mutants", scope="module")
def _mutants():
  spec = importlib.util.spec_from_file_location("mutants", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_mutants_are_those_of_the_rules_and_no_others(mutants):
  results = mutants.mutants_of(SOURCE, "f.py")
  assert {(mutant.where, mutant.mutated) for mutant in results} == EXPECTED
  for mutant in results:
    assert mutant.original in " ".join(line.strip() for line in SOURCE.splitlines())
    compile(mutant.source, "f.py", "exec")


def test_where_is_the_qualified_name(mutants):
  source = "class A:\n  c = 1\n  def f(self):\n    def g(): return 1\n    return lambda: 1\nd = 1\n"
  names = [mutant.where for mutant in mutants.mutants_of(source, "f.py")]
  assert names == ["A", "A.f.<locals>.g", "A.f.<locals>.<lambda>", "<module>"]


def test_proofs_are_read_and_belong_to_mutants(mutants):
  table = "| `m` | `f` | `a \\| b` | `a & b` | because |\n|---|---|---|---|---|\n"
  assert mutants.equivalent(table) == {("m", "f", "a | b", "a & b"): "because"}
  proofs = mutants.equivalent(mutants.EQUIVALENT.read_text())
  keys = set()
  for module in {proof[0] for proof in proofs}:
    text = (mutants.ROOT / module).read_text()
    within = {proof[1] for proof in proofs if proof[0] == module}
    keys |= set(map(mutants.key, mutants.mutants_of(text, module, within)))
  assert set(proofs) <= keys
  assert all(proofs.values())


@pytest.mark.slow
@pytest.mark.parametrize(("module", "fate"), [("prediction", "caught"), ("guidance", "survived")])
def test_a_mutant_meets_its_tests(module, fate, tmp_path):
  out = tmp_path / "fates.json"
  options = [f"--modules={module}", "--tests=prediction_test.py", "--limit=1", f"--out={out}"]
  result = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
  assert [row["fate"] for row in json.loads(out.read_text())] == [fate], result.stdout
  assert result.returncode == (fate == "survived"), result.stdout
