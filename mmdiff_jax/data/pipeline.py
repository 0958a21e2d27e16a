"""Batches without end out of arrays in memory, through Grain.

The examples of all epochs stand in one line: one permutation of them after the other. Batch i is
the i-th piece of that line, so every example is seen once an epoch, no remainder is dropped, and
the place in the line is all the state there is.
"""

from collections.abc import Mapping
import functools
import sys

import grain
import numpy as np

from mmdiff_jax.data.pairing import Column


def batches(
  arrays: Mapping[str, np.ndarray | Column], batch_size: int, *, seed: int, group: int = 1
) -> grain.DatasetIterator:
  """Batches of a deterministic shuffle, without end.

  Each batch is gathered with one fancy index an array. The iterator's `get_state` and `set_state`
  resume at the very next batch; `grain.checkpoint` saves it.

  Args:
    arrays: dict of arrays, or of columns made when read, whose first axis is the example.
    batch_size: examples in a batch.
    seed: of the shuffle.
    group: batches that come at once.

  Returns:
    An iterator over dicts of arrays [batch_size, ...], or [group, batch_size, ...] when group > 1.

  Raises:
    ValueError: the arrays differ in length or are empty, or `batch_size` or `group` is below 1.
  """
  sizes = {name: len(array) for name, array in arrays.items()}
  if len(set(sizes.values())) != 1 or 0 in sizes.values():
    raise ValueError(f"all arrays must have the same examples, at least one; got {sizes} of them")
  if batch_size < 1 or group < 1:
    raise ValueError(f"batch_size={batch_size} and group={group} must be at least 1")
  size = next(iter(sizes.values()))
  lead = (group, batch_size) if group > 1 else (batch_size,)

  # A batch can straddle epochs, so the neighbours of the current one are wanted, too.
  @functools.lru_cache(maxsize=4)
  def shuffled(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)

  def gather(index: int) -> dict[str, np.ndarray]:
    place = index * group * batch_size
    epoch, start = divmod(place, size)
    line = shuffled(epoch)[start:]
    while len(line) < group * batch_size:
      epoch += 1
      line = np.concatenate([line, shuffled(epoch)])
    rows = line[: group * batch_size].reshape(lead)
    return {name: array[rows] for name, array in arrays.items()}

  # One thread gathers ahead while the device computes.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  return iter(grain.MapDataset.range(sys.maxsize).map(gather).to_iter_dataset(options))
