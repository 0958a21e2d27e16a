"""The code in the README runs and prints what it says."""

import contextlib
import io
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_solver_example_gives_the_conditional_law():
  (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(code, str(README), "exec"), {})  # noqa: S102
  mean, deviation = map(float, out.getvalue().split())
  assert mean == pytest.approx(0.8, abs=0.06)
  assert deviation == pytest.approx(0.6, abs=0.05)
