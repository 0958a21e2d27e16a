"""Tests that a restarted training reuses programs that took long to compile."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

# Trains on synthetic examples and prints the numbers of compilations that JAX counts.
CODE = """
  import collections, json, os, sys
  sys.modules["tensorflow"] = None
  import jax
  from experiments import benchmark_train, setup, train
  from mmdiff_jax.data import datasets

  seconds, counts = collections.Counter(), collections.Counter()
  jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, duration, **_: seconds.update({name: duration})
  )
  datasets.load = lambda name, split, **_: benchmark_train._random_inputs(
    datasets.modalities(name), 64
  )

  def main(argv):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(os.environ["LEAST"]))
    train.main(argv)
    print(json.dumps({"counts": counts, "seconds": seconds}))

  setup.run(main, required=("config", "workdir"))
"""
# The flags that `tests/conftest.py` sets.
QUICKLY_COMPILED = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
SHORT = {"steps": 4, "batch_size": 16, "steps_per_dispatch": 2}
SMALL = {
  "configs/mld.py:digits": {
    "modalities": "('digit','caption')",
    **{f"autoencoder.{n}.training.{k}": v for n in ("digit", "caption") for k, v in SHORT.items()},
    **{f"score.training.{k}": v for k, v in SHORT.items()},
  },
  "configs/mt_diffusion.py:label_digits": {
    "training.steps": 2,
    "training.batch_size": 16,
    "network.multipliers": "(1,2)",
    "network.attention": "(4,)",
  },
}


def start(config, workdir, cache, *, least):
  """Trains in a separate process, which caches programs that took `least` seconds to compile."""
  fields = SMALL[config] | {"monitor.report_every": 4, "sampling.order": "()"}
  ended = subprocess.run(
    [
      *(sys.executable, "-c", textwrap.dedent(CODE), f"--config={config}"),
      *(f"--config.{key}={value}" for key, value in fields.items()),
      f"--workdir={workdir}",
    ],
    # Compiled as for a user.
    env={
      **{k: v for k, v in os.environ.items() if k not in QUICKLY_COMPILED},
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "LEAST": str(least),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr[-3000:]
  return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("config", SMALL)
def test_second_start_reuses_programs_that_took_long(config, tmp_path):
  first = start(config, tmp_path / "first", tmp_path / "cache", least=0.5)
  # Twice as long: a program just below half a second the first time may be just above it now.
  second = start(config, tmp_path / "second", tmp_path / "cache", least=1.0)
  misses, hits = (f"/jax/compilation_cache/cache_{n}" for n in ("misses", "hits"))
  assert first["counts"][misses] >= 2
  assert second["counts"].get(misses, 0) == 0
  assert second["counts"][hits] >= first["counts"][misses]
  # Includes reads from the cache, and programs that were too quick to be cached.
  compiling = "/jax/core/compile/backend_compile_duration"
  assert second["seconds"][compiling] <= 0.25 * first["seconds"][compiling]
