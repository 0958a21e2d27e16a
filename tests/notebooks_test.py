"""The notebooks run, with a small budget, and show the results that they describe."""

import contextlib
import io
import json
import pathlib
import re

import matplotlib.pyplot as plt

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "notebooks"


def test_reuse_the_solvers(monkeypatch):
  monkeypatch.setattr(plt, "show", plt.close)
  cells = json.loads((FOLDER / "reuse_the_solvers.ipynb").read_text())["cells"]
  code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
  code, changed = re.subn(r"^BUDGET = \d+", "BUDGET = 24", code, flags=re.M)
  assert changed == 1
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(code, "reuse_the_solvers", "exec"), {})  # noqa: S102
  matches = re.findall(r"^(?:.*: )?(-?[\d.]+)(?: (-?[\d.]+))?$", out.getvalue(), re.M)
  spiral, angle, trip, (right, wrong), upper, steered = (
    [float(number) for number in match if number] for match in matches
  )
  assert spiral[0] < 0.06
  assert angle[0] < 0.25
  assert trip[0] < 0.05
  assert right > wrong + 10
  assert steered[0] > upper[0] + 0.2
