"""Endless batches of arrays, in memory or on disk, and of columns computed when read, with Grain.

The examples of all epochs form one sequence: one permutation of them after the other. Batch i is
the i-th piece of that sequence, so every example is seen once per epoch, no remainder is dropped,
and the position in the sequence is the whole state. Several processes share each batch by rows:
within an epoch every example is read by exactly one of them, once, however uneven the sizes are,
and the position in the sequence is the same for all of them and for any number of them.
"""

from collections.abc import Mapping
import functools
import os
import sys

import grain
from jaxtyping import Int
import numpy as np

from mmdiff_jax.data.pairing import Column


def batches(
  arrays: Mapping[str, np.ndarray | Column],
  batch_size: int,
  *,
  seed: int,
  group: int = 1,
  rows: Int[np.ndarray, " local"] | None = None,
  threads: int | None = None,
) -> grain.DatasetIterator:
  """Returns an endless iterator over the batches of a deterministic shuffle.

  Each batch is gathered with one fancy index per array, by threads that run ahead of the caller.
  The iterator's `get_state` and `set_state` resume at the very next batch, for any `rows` and
  `threads`; `grain.checkpoint` saves its state.

  Args:
    arrays: dict of arrays, or of columns computed when read, whose first axis is the example.
    batch_size: examples in a batch, over all processes.
    seed: the seed of the shuffle.
    group: the number of batches that are returned at once.
    rows: the rows of each batch to read, in order: the part of one process, as returned by
      `parallel.local_rows`. None reads all.
    threads: the number of batches that are read at the same time; None is `reading_threads`.

  Returns:
    An iterator over dicts of arrays [rows, ...], or [group, rows, ...] when group > 1.

  Raises:
    ValueError: the arrays differ in length or are empty, or `batch_size`, `group` or `threads` is
      below 1.
  """
  sizes = {name: len(array) for name, array in arrays.items()}
  if len(set(sizes.values())) != 1 or 0 in sizes.values():
    raise ValueError(f"all arrays must have the same examples, at least one; got {sizes} of them")
  if batch_size < 1 or group < 1:
    raise ValueError(f"batch_size={batch_size} and group={group} must be at least 1")
  threads = reading_threads(arrays) if threads is None else threads
  if threads < 1:
    raise ValueError(f"threads={threads} must be at least 1")
  size = next(iter(sizes.values()))
  rows = np.arange(batch_size) if rows is None else rows
  lead = (group, batch_size) if group > 1 else (batch_size,)

  # A batch can straddle epochs, so the neighbours of the current one are needed, too.
  @functools.lru_cache(maxsize=4)
  def shuffled(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)

  def gather(index: int) -> dict[str, np.ndarray]:
    position = index * group * batch_size
    epoch, start = divmod(position, size)
    sequence = shuffled(epoch)[start:]
    while len(sequence) < group * batch_size:
      epoch += 1
      sequence = np.concatenate([sequence, shuffled(epoch)])
    examples = sequence[: group * batch_size].reshape(lead)[..., rows]
    return {name: array[examples] for name, array in arrays.items()}

  # The buffer holds one batch more than there are threads, so that none waits for the caller.
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
  return iter(grain.MapDataset.range(sys.maxsize).map(gather).to_iter_dataset(options))


def reading_threads(arrays: Mapping[str, np.ndarray | Column]) -> int:
  """Returns the number of threads that should read batches on this machine.

  Arrays in memory are gathered at the speed of memory, in a small part of any training step: one
  thread is enough, and more would only take cores from the step. Columns compute their rows, and
  memory maps may wait for the disk; for them it is half of the cores that this process may use.

  Worker processes are not used. Columns and memory maps are read by NumPy, which releases the
  interpreter's lock, so threads use many cores as well; a process would need its own copy of the
  sources, seconds to start and a copy of every batch on its way back; and the state of Grain's
  `mp_prefetch` depends on how many there are. `experiments.benchmark data` measures both.
  """
  if not any(isinstance(array, (Column, np.memmap)) for array in arrays.values()):
    return 1
  return max(1, cores() // 2)


def cores() -> int:
  """Returns the number of cores that this process may use, perhaps not all of the machine's."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
