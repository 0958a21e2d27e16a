"""Timing shared by the benchmarks: contestants timed in turn, medians of rounds, and a table."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import dataclasses
import os
import platform
import time
from typing import Any

import jax
import numpy as np

THREADS = 2
# A call `()`, which returns when its work is done, and the number of items that it processes.
Contestant = tuple[Callable[[], Any], int]


def limit_threads() -> None:
  """Limits this process to `THREADS` cores; call it before the first computation.

  JAX starts as many threads as it may use cores.
  """
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def conditions(rounds: int, sizes: Any = None) -> dict[str, Any]:
  """Describes the measurement and the machine; `sizes` is a dataclass or None."""
  return ({"sizes": dataclasses.asdict(sizes)} if sizes else {}) | {
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "rounds": rounds,
    "machine": platform.machine(),
    "load_before": os.getloadavg()[0],
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
  }


def measure(
  contestants: Mapping[str, Contestant], rounds: int, once: Collection[str] = ()
) -> dict[str, Any]:
  """Calls all contestants in turn, `rounds` times, after one call of each that is not timed.

  Args:
    contestants: what to measure, by name.
    rounds: number of timed calls of each.
    once: names of those that are called only once, without the untimed call; they must be compiled.

  Returns:
    "ms", the times of all rounds in ms for each contestant, and "median_ms".
  """
  times = {name: [] for name in contestants}
  for name, (call, _) in contestants.items():
    if name not in once:
      call()  # Compiles if it is not compiled yet, and fills the caches.
  for round_index in range(rounds):
    for name, (call, count) in contestants.items():
      if name not in once or round_index == 0:
        start = time.perf_counter()
        call()
        times[name].append(1e3 * (time.perf_counter() - start) / count)
  return {
    "ms": times,
    "median_ms": {name: float(np.median(values)) for name, values in times.items()},
  }


def lines(results: Mapping[str, Any], rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
  """Formats the conditions in a line, then a line for each contestant that was measured.

  Args:
    results: "conditions", and the output of `measure`.
    rows: label, contestant and unit ("ms" or "s") of each line.

  Yields:
    The lines.
  """
  conditions, median = results["conditions"], results["median_ms"]
  yield ", ".join(f"{name} {conditions[name]}" for name in conditions if name != "sizes")
  for label, name, unit in rows:
    if name in median:
      scale = {"ms": 1.0, "s": 1e3}[unit]
      ms = results["ms"][name]
      spread = f"{min(ms) / scale:.2f} to {max(ms) / scale:.2f}, {len(ms)} rounds"
      yield f"{label:<56}{median[name] / scale:9.2f} {unit:<3}({spread})"
