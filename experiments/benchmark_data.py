"""Times the cost of the input pipeline per step; `experiments.benchmark data` runs it.

First, on all cores that this process may use, it measures how many examples per second threads and
Grain's worker processes read from a column that computes its images, and reports how many threads
the pipeline uses.

Then, on two cores, it times the trainer's step in two ways in turn: fed by the trainer's pipeline,
with a new batch at every step, and with one batch that stays on the device. The ratio of the two
times is the cost of the input. It should be at most `TARGETS`:

  score  MLD's latent stage, with the sizes of the preset `digits`
  image  an image autoencoder's stage, 28 x 28 x 1 images in memory as float32
  view   an image autoencoder's stage, 28 x 28 x 3 images that `poly_mnist` makes from bytes

The data are random; only their shapes matter.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from configs import mld as mld_config
from experiments import setup, timing
from mmdiff_jax import noise, parallel
from mmdiff_jax.data import pipeline, poly_mnist
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.frameworks.base import Stage
from mmdiff_jax.training import state as state_lib, step as step_lib

TARGETS = {"score": 1.05, "image": 1.15, "view": 1.15}
Examples = Mapping[str, np.ndarray | Column]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the benchmark.

  Attributes:
    examples: number of examples in each of the random data sets.
    steps: training steps that are timed together.
    batch_size: examples per batch where reading alone is timed.
    batches: number of such batches that are timed together.
    workers: largest number of worker processes that read; 0 does not measure them.
  """

  examples: int = 20_000
  steps: int = 200
  batch_size: int = 256
  batches: int = 100
  workers: int = 8


def run(sizes: Sizes, *, rounds: int) -> dict[str, Any]:
  """Measures reading, then keeps this process on two cores and measures training steps.

  Returns:
    "examples_per_second" of each way to read; "chosen", the number of threads that the pipeline
    uses on all cores for arrays in memory and for columns; "conditions", "ms" and "median_ms" of
    `timing.measure` for NAME_fed and NAME_kept of each of `TARGETS`; "ratios" of their medians; and
    "targets".
  """
  view = {"m0": _view(sizes.examples)}
  num_threads = {
    "arrays": pipeline.reading_threads({"x": np.zeros(1)}),
    "columns": pipeline.reading_threads(view),
  }
  with _readers(sizes, view) as readers:
    read = timing.measure(readers, rounds)["median_ms"]

  timing.limit_threads()
  results = {"conditions": timing.conditions(rounds, sizes), "chosen": num_threads}
  results["examples_per_second"] = {name: 1e3 / ms for name, ms in read.items()}
  contestants = {}
  for name, (stage, examples) in stages(sizes).items():
    contestants |= _steps(name, stage, examples, sizes)
  results |= timing.measure(contestants, rounds)
  median = results["median_ms"]
  results["ratios"] = {name: median[f"{name}_fed"] / median[f"{name}_kept"] for name in TARGETS}
  results["targets"] = TARGETS
  return results


def table(results: Mapping[str, Any]) -> str:
  """Formats the results as a table."""
  labels = {
    "score": "step of MLD's latent stage",
    "image": "step of an image autoencoder",
    "view": "the same, images computed when read",
  }
  rows = []
  for name, label in labels.items():
    rows += [(f"{label}, fed", f"{name}_fed", "ms"), ("one batch kept", f"{name}_kept", "ms")]
  num_threads = results["chosen"]
  return "\n".join(
    [
      *(
        f"read by {name:<48}{speed:9.0f} examples/s"
        for name, speed in results["examples_per_second"].items()
      ),
      f"The pipeline reads with {num_threads['columns']} thread(s) here, arrays in memory with"
      f" {num_threads['arrays']}, and with no worker processes.",
      *timing.lines(results, rows),
      "Fed to kept: "
      + ", ".join(
        f"{name} {ratio:.3f} (target {results['targets'][name]:.2f})"
        for name, ratio in results["ratios"].items()
      ),
    ]
  )


def stages(sizes: Sizes) -> dict[str, tuple[Stage, Examples]]:
  """Makes the stage and the examples to train it on, for each of `TARGETS`."""
  rng = np.random.default_rng(0)
  digits = mld_config.get_config("digits")
  latents = {name: digits.autoencoder[name].latent for name in digits.modalities}
  pictures = rng.random((sizes.examples, 28, 28, 1), np.float32)
  return {
    "score": (
      _stage(digits, "score"),
      {n: rng.standard_normal((sizes.examples, d), np.float32) for n, d in latents.items()},
    ),
    "image": (
      _stage(mld_config.get_config("spoken_mnist"), "autoencoder_digit"),
      {"digit": pictures},
    ),
    "view": (
      _stage(mld_config.get_config("poly_mnist"), "autoencoder_m0"),
      {"m0": _view(sizes.examples)},
    ),
  }


def _stage(config, name: str) -> Stage:
  return next(stage for stage in setup.build(config).stages if stage.name == name)


def _view(examples: int) -> Column:
  """Makes a column of `poly_mnist` from bytes in memory."""
  rng = np.random.default_rng(0)
  digits = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8)
  photo = rng.integers(0, 256, (200, 200, 3), np.uint8)
  index = np.column_stack([np.arange(examples), rng.integers(0, 150, (examples, 2))])
  return Column(index, functools.partial(poly_mnist.read, digits, photo))


def _steps(
  name: str, stage: Stage, examples: Examples, sizes: Sizes
) -> dict[str, timing.Contestant]:
  """Makes the contestants that train as `trainer` does, fed and with one batch kept."""
  settings = stage.settings
  group = settings.steps_per_dispatch
  grouped = group > 1
  layout = parallel.make_layout()
  batches = pipeline.batches(
    examples,
    settings.batch_size,
    seed=0,
    group=group,
    rows=parallel.local_rows(layout, settings.batch_size),
  )
  sample = {n: jnp.asarray(x[: settings.batch_size]) for n, x in examples.items()}
  tx = state_lib.optimizer(settings)
  key = noise.make_key(0)
  state = parallel.replicate(layout, state_lib.create(stage.init(key, {}, sample), tx))
  names, train_step = step_lib.make_train_step(stage, tx, layout, state.params, {}, sample)
  meter = step_lib.new_meter(layout, names)
  dispatches = max(1, sizes.steps // group)

  def train(make_batch):
    nonlocal state, meter
    for _ in range(dispatches):
      state, meter = train_step(state, meter, {}, key, make_batch())
    jax.block_until_ready(meter)

  def fed():
    # Drops the batches that were prefetched before the timing began.
    batches.set_state(batches.get_state())
    train(lambda: parallel.shard_batch(layout, next(batches), grouped=grouped))

  batch = jax.device_put(next(batches), parallel.batch_sharding(layout, grouped=grouped))
  steps = dispatches * group
  return {f"{name}_fed": (fed, steps), f"{name}_kept": (lambda: train(lambda: batch), steps)}


@contextlib.contextmanager
def _readers(sizes: Sizes, examples: Examples) -> Iterator[dict[str, timing.Contestant]]:
  """Makes the contestants that only read, each with the number of examples that a call reads.

  When a call begins, each worker process may have prefetched up to two batches, threads none.
  """
  max_threads = max(2, pipeline.cores())
  workers = min(max_threads, sizes.workers)
  total = sizes.batches * sizes.batch_size

  def threads(num):
    batches = pipeline.batches(examples, sizes.batch_size, seed=0, threads=num)

    def call():
      batches.set_state(batches.get_state())
      for _ in range(sizes.batches):
        next(batches)

    return call, total

  readers = {"1 thread": threads(1), f"{max_threads} threads": threads(max_threads)}
  if not workers:
    yield readers
    return
  source = grain.MapDataset.range(sizes.examples).shuffle(seed=0).repeat()
  batches = source.batch(sizes.batch_size, batch_fn=functools.partial(_gather, examples))
  # No threads within the worker processes: they would share the cores of the processes.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  processes = iter(
    batches.to_iter_dataset(options).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    )
  )

  def call():
    for _ in range(sizes.batches):
      next(processes)

  readers[f"{workers} worker process(es)"] = (call, total)
  try:
    yield readers
  finally:
    processes.close()


def _gather(examples: Examples, rows) -> dict[str, np.ndarray]:
  return {name: x[np.asarray(rows)] for name, x in examples.items()}
