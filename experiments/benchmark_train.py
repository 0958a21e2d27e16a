"""Times training steps of a config's stages on random data; `experiments.benchmark train` runs it.

For each stage it measures how long the step takes to compile and to run, both fed from the host's
memory and with one batch that stays on the devices (the difference is the time that a step waits
for its input, without reading files); examples per second; the FLOPs of loss and gradient, as the
compiler counts them before it optimises, and their fraction of the devices' peak; and the memory
that a device needs. The peak is taken from the data sheet, in bfloat16, or where there is none, as
for a CPU, from a product of large matrices in float32. Recomputation by `network.remat` is not
counted.

The step is the trainer's, in the layout of `config.parallel`, and nothing here needs TensorFlow,
tfds, Grain, Orbax or clu. The values are random, so the losses mean nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import setup, timing
from mmdiff_jax import noise, parallel
from mmdiff_jax.data import datasets
from mmdiff_jax.frameworks import base
from mmdiff_jax.frameworks.base import Batch, Framework, Params, Stage
from mmdiff_jax.modalities import Modality
from mmdiff_jax.parallel import Layout
from mmdiff_jax.training import state as state_lib, step as step_lib

# FLOP/s of a device in bfloat16 without sparsity, from the makers' data sheets, by a part of the
# device's name in JAX.
PEAKS = {
  "H200": 989e12,
  "H100": 989e12,
  "A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
}
_BURST = 10  # Least number of steps that are timed together.
_PRODUCT = 4096  # Size of the square matrices whose product measures a device's peak.


def run(
  config: ml_collections.ConfigDict, stages: Sequence[str] = (), *, rounds: int
) -> dict[str, Any]:
  """Measures the stages one after the other.

  Args:
    config: the config of a training run.
    stages: names of the stages to measure; all if empty.
    rounds: number of times that each is timed.

  Returns:
    "conditions", and for each stage in "stages" the quantities of `table`, by name.

  Raises:
    UserError: there is no such stage, or the config or the layout is invalid.
  """
  framework = setup.build(config)
  base.check_stages(framework, stages)
  layout = parallel.make_layout(**config.parallel)
  measured = [stage for stage in framework.stages if not stages or stage.name in stages]
  for stage in measured:
    parallel.check_batch_size(layout, stage.settings.batch_size, stage.settings.accumulate)
  data = _random_inputs(
    datasets.modalities(**config.data.to_dict()),
    max(stage.settings.batch_size for stage in framework.stages),
  )
  peak, source = _peak(rounds)
  counted = config.copy_and_resolve_references()
  if counted.get("network", {}).get("remat"):
    counted.network.remat = False
  losses = {stage.name: stage.loss for stage in setup.build(counted).stages}
  results = {
    "conditions": timing.conditions(rounds)
    | {"devices": jax.device_count(), "peak_gflop_per_second": peak / 1e9, "peak_from": source}
    | {"config": config.to_dict()},
    "stages": {},
  }
  for stage, frozen, examples in each_stage(framework, data):
    if stage in measured:
      frozen = parallel.replicate(layout, frozen)
      loss = losses[stage.name]
      results["stages"][stage.name] = _measure(stage, loss, layout, frozen, examples, rounds, peak)
    if stage is measured[-1]:
      break
  return results


def each_stage(framework: Framework, data: Batch) -> Iterator[tuple[Stage, Params, Batch]]:
  """Yields each stage in order, with its frozen entries (at initial values) and its examples."""
  params: Params = {}
  for stage in framework.stages:
    constants, examples = stage.prepare(params, data)
    frozen = params | constants
    yield stage, frozen, examples
    if stage is framework.stages[-1]:
      return
    batch = {name: jnp.asarray(x[: stage.settings.batch_size]) for name, x in examples.items()}
    params = frozen | jax.jit(stage.init)(noise.make_key(0), frozen, batch)


def table(results: Mapping[str, Any]) -> str:
  """Formats the results as a table."""
  conditions = [
    f"{name} {x:,.1f}" if isinstance(x, float) else f"{name} {x}"
    for name, x in results["conditions"].items()
    if name != "config"
  ]
  columns = (
    ("parameters", "parameters", "{:,.0f}"),
    ("batch", "batch", "{:,.0f}"),
    ("seconds_compiling", "compiling, s", "{:.1f}"),
    ("ms_per_step", "step, ms", "{:.2f}"),
    ("input_ms", "of which input, ms", "{:.2f}"),
    ("examples_per_second", "examples/s", "{:,.0f}"),
    ("gflop_per_step", "GFLOP per step", "{:,.2f}"),
    ("gflop_per_second", "GFLOP/s", "{:,.1f}"),
    ("share_of_peak", "of peak", "{:.1%}"),
    ("memory_gb", "memory per device, GB", "{:.2f}"),
  )
  header = ["stage", *(title for _, title, _ in columns)]
  rows = [
    [name, *(form.format(values[key]) for key, _, form in columns)]
    for name, values in results["stages"].items()
  ]
  lines = [
    ", ".join(conditions),
    "",
    "| " + " | ".join(header) + " |",
    "|---" + "|---:" * len(columns) + "|",
  ]
  return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _random_inputs(modalities: Sequence[Modality], rows: int) -> dict[str, np.ndarray]:
  """Draws random model inputs."""
  rng = np.random.default_rng(0)
  return {
    m.name: rng.integers(0, m.num_classes, (rows, *m.shape), np.int32)
    if m.num_classes
    else rng.uniform(size=(rows, *m.shape)).astype(np.float32)
    for m in modalities
  }


def _peak(rounds: int) -> tuple[float, str]:
  """Returns the FLOP/s of all devices together, and the source of the number."""
  device = jax.devices()[0]
  for part, flops in PEAKS.items():
    if part in device.device_kind:
      return flops * jax.device_count(), "data sheet"
  x = jnp.ones((_PRODUCT, _PRODUCT))
  product = jax.jit(jnp.matmul)
  once = {"product": (lambda: product(x, x).block_until_ready(), 1)}
  flops = 2e3 * _PRODUCT**3 / timing.measure(once, rounds)["median_ms"]["product"]
  # Simulated devices share the cores, and one of them uses all cores.
  return flops * (1 if device.platform == "cpu" else jax.device_count()), "product of matrices"


def _measure(
  stage: Stage,
  loss: Callable[..., Any],
  layout: Layout,
  frozen: Params,
  examples: Mapping[str, Any],
  rounds: int,
  peak: float,
) -> dict[str, float]:
  settings = stage.settings
  group, grouped = settings.steps_per_dispatch, settings.steps_per_dispatch > 1
  tx = state_lib.optimizer(settings)
  key = noise.make_key(0)
  batch = {name: np.asarray(x[: settings.batch_size]) for name, x in examples.items()}

  _, create = step_lib.initial_state(stage, tx, layout, key, frozen, batch)
  state = create()
  # Counted before the first step, which donates the state's buffers.
  size = sum(x.size for x in jax.tree.leaves(state.params))
  flops = _flops(loss, state.params, frozen, batch)
  names, train_step = step_lib.make_train_step(stage, tx, layout, state.params, frozen, batch)
  meter = step_lib.new_meter(layout, names)
  batches = {name: np.stack([x] * group) for name, x in batch.items()} if grouped else batch
  host = parallel.shard_batch(layout, batches, grouped=grouped)
  began = time.perf_counter()
  program = train_step.lower(state, meter, frozen, key, host).compile()
  compiling = time.perf_counter() - began
  memory = program.memory_analysis()
  kept = host
  if layout.kind == "jit":
    kept = jax.device_put(batches, parallel.batch_sharding(layout, grouped=grouped))
  dispatches = -(-_BURST // group)

  def steps(batch):
    nonlocal state, meter
    for _ in range(dispatches):
      state, meter = program(state, meter, frozen, key, batch)
    jax.block_until_ready(meter)

  count = dispatches * group
  times = timing.measure(
    {"fed": (lambda: steps(host), count), "kept": (lambda: steps(kept), count)}, rounds
  )
  ms = times["median_ms"]["fed"]
  return {
    "parameters": size,
    "batch": settings.batch_size,
    "seconds_compiling": compiling,
    "ms_per_step": ms,
    "ms_of_all_rounds": times["ms"]["fed"],
    "input_ms": ms - times["median_ms"]["kept"],
    "examples_per_second": 1e3 * settings.batch_size / ms,
    "gflop_per_step": flops / 1e9,
    "gflop_per_second": flops / 1e6 / ms,
    "share_of_peak": flops * 1e3 / ms / peak,
    "memory_gb": _memory(memory) / 1e9,
  }


def _flops(
  loss: Callable[..., Any], params: Params, frozen: Params, batch: Mapping[str, Any]
) -> float:
  """Counts the FLOPs of loss and gradient for a batch; what is in a loop counts once only."""

  def gradient(params, frozen, key, batch):
    return jax.grad(lambda params: loss(params, frozen, key, batch)[0])(params)

  lowered = jax.jit(gradient).lower(params, frozen, noise.make_key(0), batch)
  return float(lowered.cost_analysis()["flops"])


def _memory(memory: Any) -> int:
  """Adds up the bytes of a device: arguments, outputs in buffers of their own, scratch."""
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
