"""Where arrays live: the one module that knows about devices.

Parameters are replicated, batches are split by example over all devices of all processes, and the
compiler inserts the sums of gradients. One device is the same code with a mesh of size one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int
import numpy as np

from mmdiff_jax.errors import UserError


def data_mesh() -> Mesh:
  """All devices of all processes along one axis, `data`."""
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """The layout of parameters: a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
  """A copy of `tree` on every device; never shares memory with `tree`, so it may be donated."""
  return jax.device_put(tree, replicated(mesh), may_alias=False)


def check_batch_size(mesh: Mesh | AbstractMesh, batch_size: int) -> None:
  """Raises UserError unless every device gets the same number of examples."""
  if batch_size % mesh.size:
    raise UserError(
      f"A batch of {batch_size} examples cannot be split evenly over {mesh.size} devices. Choose a "
      f"batch size that is a multiple of {mesh.size}, or make fewer devices visible."
    )


def batch_sharding(mesh: Mesh, *, grouped: bool) -> NamedSharding:
  """The layout of batches [batch, ...], or [group, batch, ...] when `grouped`: split by example."""
  return NamedSharding(mesh, PartitionSpec(None, "data") if grouped else PartitionSpec("data"))


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " local"]:
  """Which rows of a batch live on the devices of this process, in ascending order.

  Over all processes they are every row once.
  """
  held = batch_sharding(mesh, grouped=False).addressable_devices_indices_map((batch_size,))
  return np.sort(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], *, grouped: bool) -> dict[str, Any]:
  """Puts a batch where `compile_step`'s function wants it.

  Args:
    mesh: from `data_mesh`.
    batch: arrays [local, ...], or [group, local, ...] when `grouped`: of the whole batch the
      process's `local_rows`.
    grouped: whether the first axis counts the steps of one dispatch.

  Returns:
    Arrays [batch, ...] or [group, batch, ...], over the devices of all processes.
  """
  if jax.process_count() == 1:
    # The compiled function splits NumPy arrays by itself, in a tenth of the time that the host
    # takes here; at a few ms a step that can be seen.
    return dict(batch)
  return jax.make_array_from_process_local_data(batch_sharding(mesh, grouped=grouped), dict(batch))


def compile_step(mesh: Mesh, step: Callable[..., Any], *, grouped: bool) -> Callable[..., Any]:
  """Compiles `(state, meter, frozen, key, batch) -> (state, meter)` for the devices of a mesh.

  All but the batch is replicated; the state and the meter are overwritten in place.
  """
  whole = replicated(mesh)
  return jax.jit(
    step,
    donate_argnums=(0, 1),
    in_shardings=(whole, whole, whole, whole, batch_sharding(mesh, grouped=grouped)),
    out_shardings=whole,
  )
