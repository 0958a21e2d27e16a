"""Tests of the benchmark, at sizes too small to measure speed."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark, benchmark_solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.networks.mlp import ScoreMLP

SIZES = benchmark.Sizes(
  latents={"a": 3, "b": 5},
  width=16,
  batch_size=8,
  rows=6,
  burst=2,
  solver_steps=3,
  euler_steps=4,
)


@pytest.mark.slow
def test_measures_our_side_and_prints_it():
  results = benchmark.run(SIZES, against=None, rounds=2)
  assert set(results["median_ms"]) == {"step", "evaluation", "samples", "euler_samples"}
  assert all(value > 0 for value in results["median_ms"].values())
  assert len(results["ms"]["step"]) == 2
  assert "ratios" not in results
  table = benchmark.table(results)
  assert "training step" in table
  assert "PyTorch" not in table


def test_measures_the_counterpart_whose_outputs_equal_ours():
  pytest.importorskip("torch", reason="PyTorch (extra `benchmark`) is not installed")
  results = benchmark.run(SIZES, against="torch", rounds=1)
  assert 0 < results["difference"] <= 1e-4
  median, ratios = results["median_ms"], results["ratios"]
  assert ratios["step"] == pytest.approx(median["step"] / median["torch_step"])
  assert ratios["step_tuned"] == pytest.approx(median["step"] / median["torch_step_tuned"])
  assert ratios["evaluation"] == pytest.approx(median["evaluation"] / median["torch_evaluation"])
  assert ratios["samples"] == pytest.approx(median["samples"] / 2410 / median["torch_evaluation"])
  assert "Ratios of medians" in benchmark.table(results)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_step_of_the_counterpart_is_the_same_method(tuned):
  """Without randomness the gradients are equal: the loss as a function of the prediction."""
  torch = pytest.importorskip("torch", reason="PyTorch (extra `benchmark`) is not installed")
  from experiments import torch_counterpart

  torch.manual_seed(0)
  rng = np.random.default_rng(0)
  data = {n: rng.standard_normal((64, d), np.float32) for n, d in SIZES.latents.items()}
  x = {name: jnp.asarray(value[:2]) for name, value in data.items()}
  params = ScoreMLP(width=16).init(jax.random.key(0), x, dict.fromkeys(x, jnp.float32(0.5)))
  network = torch_counterpart.ScoreMLP(SIZES.latents, 16)
  torch_counterpart.load(network, params["params"])
  trainer = torch_counterpart.Trainer(
    network,
    data,
    batch_size=32,
    learning_rate=1e-2,
    decay=0.5,
    beta_min=0.1,
    beta_max=20.0,
    tuned=tuned,
  )
  # The output starts at 0 and the noise has variance 1: the loss is the diffused fraction,
  # 1/2 * 1 + 1/2 * 1/2 of two modalities.
  with torch.no_grad():
    losses = [trainer.loss().item() for _ in range(200)]
  assert np.mean(losses) == pytest.approx(0.75, abs=0.02)
  before = [p.detach().clone() for p in trainer.params]
  trainer.step()
  last, mean = trainer.params[-1].detach(), trainer.ema[-1]
  moved = (last - before[-1]).abs()
  np.testing.assert_allclose(moved[moved > 0], 1e-2, rtol=1e-2)  # Adam's first step
  np.testing.assert_allclose(mean, 0.5 * (before[-1] + last), atol=1e-6)
  assert bool(trainer.optimizer.defaults["fused"]) == tuned


def test_error_without_pytorch_describes_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match="pip install torch"):
    benchmark.run(SIZES, against="torch", rounds=1)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["solver"], ["'solver'", "network, solvers"]),
    (["solvers", "--against=torch"], ["'torch'", "'diffrax'"]),
    (["--against=diffrax"], ["'network'", "'torch'"]),
    (["solvers", "5"], ["'5'"]),
    (["--out=gs://bucket/results.json"], ["--out", "gs://bucket/results.json"]),
  ],
)
def test_unknown_arguments_are_refused(arguments, words, command, refused):
  refused(command(benchmark, *arguments, positional=1), *words)


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [([], "network"), (["network"], "network"), (["solvers", "--against=diffrax"], "solvers")],
)
def test_the_argument_selects_the_benchmark(arguments, expected, command, monkeypatch, tmp_path):
  for name, module in (("network", benchmark), ("solvers", benchmark_solvers)):
    monkeypatch.setattr(module, "run", lambda sizes, name=name, **options: {name: options})
    monkeypatch.setattr(module, "table", lambda results: f"of {list(results)}")
  out = tmp_path / "new" / "results.json"
  ended = command(benchmark, *arguments, "--rounds=3", f"--out={out}", positional=1)
  assert ended.out == f"of {[expected]}\n"
  against = "diffrax" if "--against=diffrax" in arguments else None
  assert json.loads(out.read_text()) == {expected: {"against": against, "rounds": 3}}
