"""Tests of the benchmark of the input pipeline, at sizes too small to measure speed."""

import dataclasses
import functools

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark_data
from mmdiff_jax.data import pipeline
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.frameworks.base import Stage, TrainConfig

SIZES = benchmark_data.Sizes(examples=40, steps=4, batch_size=8, batches=2, workers=0)


def _stage(group):
  """Returns a stage that learns a mean."""
  return Stage(
    name="toy",
    trainable=("mean",),
    settings=TrainConfig(steps=8, batch_size=4, learning_rate=0.1, steps_per_dispatch=group),
    prepare=lambda frozen, data: ({}, data),
    init=lambda key, frozen, batch: {"mean": jnp.zeros(batch["x"].shape[1:])},
    loss=lambda params, frozen, key, batch: (jnp.mean((batch["x"] - params["mean"]) ** 2), {}),
    report=lambda params, key, data: {},
  )


def test_measures_and_prints(monkeypatch):
  x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  toys = {"score": (_stage(2), {"x": x}), "image": (_stage(1), {"x": x})}
  toys["view"] = (_stage(2), {"x": Column(np.arange(40), lambda index: x[index])})
  monkeypatch.setattr(benchmark_data, "stages", lambda sizes: toys)
  results = benchmark_data.run(SIZES, rounds=2)
  median = results["median_ms"]
  assert set(median) == {f"{name}_{way}" for name in toys for way in ("fed", "kept")}
  for name, ratio in results["ratios"].items():
    assert ratio == pytest.approx(median[f"{name}_fed"] / median[f"{name}_kept"])
  assert len(results["examples_per_second"]) == 2
  assert min(results["examples_per_second"].values()) > 0
  assert results["chosen"]["arrays"] == 1
  table = benchmark_data.table(results)
  for words in ("1 thread ", "examples/s", "fed", "score", "(target 1.05)", "view"):
    assert words in table


def test_fed_steps_get_a_new_batch_each_and_kept_steps_one_batch(monkeypatch):
  seen = []
  x = np.arange(40, dtype=np.float32)[:, None]
  real = benchmark_data.step_lib.make_train_step

  def make_train_step(*args):
    names, step = real(*args)

    def spy(state, meter, frozen, key, batch):
      seen.append(np.asarray(batch["x"]).copy())
      return step(state, meter, frozen, key, batch)

    return names, spy

  monkeypatch.setattr(benchmark_data.step_lib, "make_train_step", make_train_step)
  contestants = benchmark_data._steps("toy", _stage(2), {"x": x}, SIZES)
  for name in ("toy_fed", "toy_kept", "toy_fed"):
    call, steps = contestants[name]
    assert steps == 4
    call()
  batches = pipeline.batches({"x": x}, 4, seed=0, group=2)
  first, *rest = [next(batches)["x"] for _ in range(5)]  # The first one is kept.
  for ours, expected in zip(seen, [*rest[:2], first, first, *rest[2:]], strict=True):
    np.testing.assert_array_equal(ours, expected)


def test_stages_accept_the_batches_that_they_are_fed():
  for stage, examples in benchmark_data.stages(SIZES).values():
    batch = {name: jnp.asarray(x[:2]) for name, x in examples.items()}
    init = functools.partial(stage.init, jax.random.key(0), {}, batch)
    value, _ = jax.eval_shape(
      lambda params, stage=stage, batch=batch: stage.loss(params, {}, jax.random.key(0), batch),
      jax.eval_shape(init),
    )
    assert value.shape == ()
    assert stage.settings.steps_per_dispatch > 1
  assert set(benchmark_data.stages(SIZES)) == set(benchmark_data.TARGETS)


def test_worker_processes_read_data():
  flags.FLAGS.mark_as_parsed()
  sizes = dataclasses.replace(SIZES, workers=1)
  column = {"x": Column(np.arange(40), np.square)}
  with benchmark_data._readers(sizes, column) as readers:
    call, examples = readers["1 worker process(es)"]
    call()
    assert examples == 16
