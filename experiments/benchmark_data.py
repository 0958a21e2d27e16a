"""Times what the input pipeline costs a training step; `experiments.benchmark data` runs it.

First, on all cores that this process may use: how many examples a second threads and Grain's worker
processes read of a column that computes its pictures, and how many threads the pipeline chooses.

Then, on two cores, the trainer's own step in turn in two ways: fed by the trainer's own pipeline, a
new batch at every step, and with one batch that stays on the device. The ratio of the times is what
the input costs. It is to be at most `TARGETS`:

  score  MLD's latent stage, sizes of the preset `digits`
  image  an image autoencoder's stage, 28 x 28 x 1 pictures that lie in memory as float32
  view   an image autoencoder's stage, 28 x 28 x 3 pictures that `poly_mnist` makes of bytes

The data are made up; only their shapes matter.
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
  """What is measured.

  Attributes:
    examples: in each of the made-up data sets.
    steps: training steps that are timed at once.
    batch_size: examples of a batch that is only read.
    batches: of these, how many are timed at once.
    workers: most worker processes that read; 0 leaves them out.
  """

  examples: int = 20_000
  steps: int = 200
  batch_size: int = 256
  batches: int = 100
  workers: int = 8


def run(sizes: Sizes, *, rounds: int) -> dict[str, Any]:
  """Measures reading, then keeps this process on two cores and measures training steps.

  Returns:
    "examples_per_second" of each way to read; "chosen", the threads that the pipeline takes on all
    cores for arrays in memory and for columns; "conditions", "ms" and "median_ms" of
    `timing.measure` for NAME_fed and NAME_kept of each of `TARGETS`; "ratios" of their medians; and
    "targets".
  """
  view = {"m0": _view(sizes.examples)}
  chosen = {
    "arrays": pipeline.reading_threads({"x": np.zeros(1)}),
    "columns": pipeline.reading_threads(view),
  }
  with _readers(sizes, view) as readers:
    read = timing.measure(readers, rounds)["median_ms"]

  timing.limit_threads()
  results = {"conditions": timing.conditions(rounds, sizes), "chosen": chosen}
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
  """The results for a person to read."""
  labels = {
    "score": "step of MLD's latent stage",
    "image": "step of an image autoencoder",
    "view": "the same, pictures made when read",
  }
  rows = []
  for name, label in labels.items():
    rows += [(f"{label}, fed", f"{name}_fed", "ms"), ("one batch kept", f"{name}_kept", "ms")]
  chosen = results["chosen"]
  return "\n".join(
    [
      *(
        f"read by {name:<48}{speed:9.0f} examples/s"
        for name, speed in results["examples_per_second"].items()
      ),
      f"The pipeline reads with {chosen['columns']} thread(s) here, arrays in memory with"
      f" {chosen['arrays']}, and with no worker processes.",
      *timing.lines(results, rows),
      "Fed to kept: "
      + ", ".join(
        f"{name} {ratio:.3f} (target {results['targets'][name]:.2f})"
        for name, ratio in results["ratios"].items()
      ),
    ]
  )


def stages(sizes: Sizes) -> dict[str, tuple[Stage, Examples]]:
  """What is trained, and on what, for each of `TARGETS`."""
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
  """A column of `poly_mnist` over bytes in memory."""
  rng = np.random.default_rng(0)
  digits = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8)
  photo = rng.integers(0, 256, (200, 200, 3), np.uint8)
  index = np.column_stack([np.arange(examples), rng.integers(0, 150, (examples, 2))])
  return Column(index, functools.partial(poly_mnist.read, digits, photo))


def _steps(
  name: str, stage: Stage, examples: Examples, sizes: Sizes
) -> dict[str, timing.Contestant]:
  """Training as `trainer` does it, fed and with one batch kept."""
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
    # Drops the batches that were made ahead while nothing was timed.
    batches.set_state(batches.get_state())
    train(lambda: parallel.shard_batch(layout, next(batches), grouped=grouped))

  batch = jax.device_put(next(batches), parallel.batch_sharding(layout, grouped=grouped))
  steps = dispatches * group
  return {f"{name}_fed": (fed, steps), f"{name}_kept": (lambda: train(lambda: batch), steps)}


@contextlib.contextmanager
def _readers(sizes: Sizes, examples: Examples) -> Iterator[dict[str, timing.Contestant]]:
  """Ways to read, each with the number of examples that a call reads.

  Worker processes have up to two batches each made ahead when a call begins, threads none.
  """
  most = max(2, pipeline.cores())
  workers = min(most, sizes.workers)
  total = sizes.batches * sizes.batch_size

  def threads(num):
    batches = pipeline.batches(examples, sizes.batch_size, seed=0, threads=num)

    def call():
      batches.set_state(batches.get_state())
      for _ in range(sizes.batches):
        next(batches)

    return call, total

  readers = {"1 thread": threads(1), f"{most} threads": threads(most)}
  if not workers:
    yield readers
    return
  source = grain.MapDataset.range(sizes.examples).shuffle(seed=0).repeat()
  batches = source.batch(sizes.batch_size, batch_fn=functools.partial(_gather, examples))
  # No threads within the processes, which would share their cores.
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
