"""Tests of the solver benchmark, at sizes too small to measure speed."""

import importlib.util
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark_solvers
from mmdiff_jax.errors import UserError

SIZES = benchmark_solvers.Sizes(rows=4, dims=3, steps=5, burst=2)


def test_measures_our_side_and_prints_it():
  results = benchmark_solvers.run(SIZES, against=None, rounds=2)
  median, ratios = results["median_ms"], results["ratios"]
  scans = {f"{name}_scan" for name in benchmark_solvers.SOLVERS}
  assert set(median) == {*benchmark_solvers.SOLVERS, *scans, "noise"}
  assert ratios["scan"]["heun"] == pytest.approx(median["heun"] / median["heun_scan"])
  assert ratios["noise"] == pytest.approx(median["noise"] / median["euler_maruyama"])
  assert "diffrax" not in ratios
  table = benchmark_solvers.table(results)
  assert "dpmpp_2m" in table
  assert "Diffrax" not in table


def test_the_scan_by_hand_equals_sample():
  contestants = benchmark_solvers.contestants(SIZES, against=None)
  for name in benchmark_solvers.SOLVERS:
    (ours, _), (by_hand, _) = contestants[name], contestants[f"{name}_scan"]
    np.testing.assert_array_equal(ours(), by_hand())


def test_all_solve_the_same_problem():
  against = "diffrax" if importlib.util.find_spec("diffrax") else None
  sizes = benchmark_solvers.Sizes(rows=1000, dims=2, steps=100, burst=1)
  contestants = benchmark_solvers.contestants(sizes, against=against)
  ends = {name: call() for name, (call, _) in contestants.items() if name != "noise"}
  start, schedule = benchmark_solvers.start(sizes), benchmark_solvers.SCHEDULE
  alpha, sigma = (f(jnp.float32(1.0)) for f in (schedule.alpha, schedule.sigma))
  mean, std = benchmark_solvers.MEAN, benchmark_solvers.STD
  # The ODE keeps the distance from the mean in standard deviations.
  flow = mean + std * (start - alpha * mean) / np.hypot(alpha * std, sigma)
  for name, end in ends.items():
    # Four standard errors, and the error of methods of order 1 at this step.
    assert end.mean() == pytest.approx(mean, abs=0.07), name
    assert end.std() == pytest.approx(std, abs=0.06), name
    if name not in benchmark_solvers.STOCHASTIC:
      np.testing.assert_allclose(end, flow, atol=0.02 if "heun" in name else 0.1, err_msg=name)


def test_measures_diffrax():
  pytest.importorskip("diffrax", reason="Diffrax (extra `benchmark`) is not installed")
  results = benchmark_solvers.run(SIZES, against="diffrax", rounds=2)
  median, ratios = results["median_ms"], results["ratios"]["diffrax"]
  assert set(ratios) == set(benchmark_solvers.COUNTERPARTS)
  assert ratios["diffrax_euler"] == pytest.approx(median["ddim"] / median["diffrax_euler"])
  assert len(results["ms"]["diffrax_tree"]) == 1
  assert "Ratios of medians, ours to Diffrax" in benchmark_solvers.table(results)


def test_error_without_diffrax_describes_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "diffrax", None)
  with pytest.raises(UserError, match="pip install 'diffrax"):
    benchmark_solvers.run(SIZES, against="diffrax", rounds=1)
