"""Layout of arrays over devices: the only module that knows about devices.

The devices of all processes form a mesh with the axes `data` and `shard`. A batch is split by
example over both. The training state (parameters, EMA, the optimiser's moments) is copied along
`data`; along `shard` each large array is split and each small one copied. So a mesh of (8, 1) is
data parallel, (1, 8) is fully sharded, (2, 4) is both, and one device is the same code with a mesh
of (1, 1). Parameters that are not trained are copied.

The step is compiled either by `jit`, which sees whole arrays and derives the communication from
their layouts, or by `pmap`, which runs the step on each device's examples, with explicit
communication. Either way a step is the same function of the batch and the key, except for the order
of sums.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
import numpy as np

from mmdiff_jax import noise
from mmdiff_jax.errors import UserError

_AXES = ("data", "shard")

# The mapped axis under which a function receives one device's part of a batch.
PARTS = "parts"


def all_rows(x: Float[Array, "part ..."]) -> Float[Array, "batch ..."]:
  """Returns all rows of a batch, for a loss that compares rows.

  Under the mapped axis `PARTS` these are the rows of all devices, elsewhere `x` itself. A loss that
  is then the same on all devices has the right gradient in the mean over them.
  """
  try:
    jax.lax.axis_size(PARTS)
  except NameError:
    return x
  return jax.lax.all_gather(x, PARTS, tiled=True)


@dataclasses.dataclass(frozen=True)
class Layout:
  """The layout of a step over devices.

  Attributes:
    mesh: the devices, with the axes `data` and `shard`.
    kind: "jit" or "pmap".
    min_shard_size: the smallest number of elements for which an array is split along `shard`.
  """

  mesh: Mesh | AbstractMesh
  kind: str = "jit"
  min_shard_size: int = 2**16


def make_layout(
  kind: str = "jit", mesh: Sequence[int] = (-1, 1), min_shard_size: int = 2**16
) -> Layout:
  """Returns the layout that `config.parallel` describes, over all devices of all processes.

  Args:
    kind: "jit" or "pmap".
    mesh: sizes of the axes (data, shard); -1 stands for all devices that the other axis leaves.
    min_shard_size: as in `Layout`.

  Raises:
    UserError: the kind is unknown, the sizes do not multiply to the number of devices, or `pmap` is
      used with split parameters or several processes.
  """
  devices, sizes = jax.device_count(), tuple(mesh)
  if kind not in ("jit", "pmap"):
    raise UserError(f"config.parallel.kind is {kind!r}; it can be 'jit' or 'pmap'.")
  if min_shard_size < 1:
    raise UserError(f"config.parallel.min_shard_size is {min_shard_size}; it must be 1 or more.")
  if len(sizes) == 2 and sizes.count(-1) == 1:
    sizes = tuple(devices // abs(math.prod(sizes) or 1) if n == -1 else n for n in sizes)
  if len(sizes) != 2 or min(sizes) < 1 or math.prod(sizes) != devices:
    raise UserError(
      f"config.parallel.mesh is {tuple(mesh)}, for {devices} device{'s' * (devices != 1)}. It must"
      " be two sizes, of the axes data and shard, whose product is the number of devices; one of"
      " them can be -1, for all devices that the other axis leaves. (-1, 1) always fits."
    )
  if kind == "pmap" and (sizes[1] > 1 or jax.process_count() > 1):
    raise UserError(
      "config.parallel.kind 'pmap' copies the parameters to every device of a single process, but"
      f" config.parallel.mesh is {tuple(mesh)} and there are {jax.process_count()} processes. Use"
      " 'jit', or a mesh of (-1, 1) in one process."
    )
  device_mesh = jax.make_mesh(sizes, _AXES, axis_types=(AxisType.Auto,) * 2)
  return Layout(device_mesh, kind, min_shard_size)


# ---------------------------------------------------------------------------- arrays


def replicated(layout: Layout) -> NamedSharding:
  """Returns the layout of a full copy on every device."""
  return NamedSharding(layout.mesh, PartitionSpec())


def replicate(layout: Layout, tree: Any) -> Any:
  """Copies `tree` to every device; never shares memory with `tree`, so that it may be donated."""
  return jax.device_put(tree, replicated(layout), may_alias=False)


def shardings(layout: Layout, tree: Any) -> Any:
  """Returns the layout of a training state.

  An array of `min_shard_size` elements or more is split along the largest of its axes that the
  mesh's axis `shard` divides (the first of equals); without such an axis, and below that size, it
  is copied. Moments have their parameter's shape, and so its layout.

  Args:
    layout: from `make_layout`.
    tree: arrays or their shapes.

  Returns:
    A sharding for each leaf.
  """
  size = layout.mesh.shape["shard"]

  def sharding(x):
    axes = [axis for axis, n in enumerate(x.shape) if n and n % size == 0]
    if size == 1 or not axes or math.prod(x.shape) < layout.min_shard_size:
      return replicated(layout)
    largest = max(axes, key=lambda axis: x.shape[axis])
    return NamedSharding(layout.mesh, PartitionSpec(*[None] * largest, "shard"))

  return jax.tree.map(sharding, tree)


# ---------------------------------------------------------------------------- batches


def check_batch_size(layout: Layout, batch_size: int, pieces: int = 1) -> None:
  """Raises UserError unless every device gets the same number of examples of every piece."""
  devices = layout.mesh.size
  if pieces < 1:
    raise UserError(f"A stage's training.accumulate is {pieces}; it must be 1 or more.")
  if batch_size % (devices * pieces):
    in_pieces = f" in {pieces} pieces (accumulate)" if pieces > 1 else ""
    raise UserError(
      f"A batch of {batch_size} examples cannot be split evenly over {devices} devices{in_pieces}."
      f" Choose a batch size that is a multiple of {devices * pieces}, or make fewer devices"
      " visible."
    )


def batch_sharding(layout: Layout, *, grouped: bool = False) -> NamedSharding:
  """The layout of batches [batch, ...], or [group, batch, ...] if `grouped`: split by example."""
  return NamedSharding(layout.mesh, PartitionSpec(None, _AXES) if grouped else PartitionSpec(_AXES))


def local_rows(layout: Layout, batch_size: int) -> Int[np.ndarray, " local"]:
  """Returns the rows of a batch that are on the devices of this process, in ascending order.

  Over all processes, every row occurs once.
  """
  indices = batch_sharding(layout).addressable_devices_indices_map((batch_size,))
  return np.sort(np.concatenate([np.arange(batch_size)[index] for index in indices.values()]))


def shard_batch(
  layout: Layout, batch: Mapping[str, np.ndarray], *, grouped: bool
) -> dict[str, Any]:
  """Arranges a batch as the function from `compile_step` expects it.

  Args:
    layout: from `make_layout`.
    batch: arrays [local, ...], or [group, local, ...] if `grouped`: the process's `local_rows` of
      the whole batch.
    grouped: whether the first axis counts the steps of one dispatch.

  Returns:
    Arrays [batch, ...] or [group, batch, ...], over the devices of all processes; for `pmap`, with
    an axis of devices before that of the batch.
  """
  if layout.kind == "pmap":
    lead = 1 if grouped else 0
    split = (layout.mesh.size, -1)
    return {n: x.reshape(*x.shape[:lead], *split, *x.shape[lead + 1 :]) for n, x in batch.items()}
  if jax.process_count() == 1:
    # The compiled function splits NumPy arrays by itself, in a tenth of the time that the host
    # would take here, which is noticeable at a few ms per step.
    return dict(batch)
  sharding = batch_sharding(layout, grouped=grouped)
  return jax.make_array_from_process_local_data(sharding, dict(batch))


# ---------------------------------------------------------------------------- in a step


def gather(layout: Layout, tree: Any) -> Any:
  """Inside a step: copies each array in full to every device (an all-gather of split arrays)."""
  return _constrained(layout, tree, replicated(layout))


def split(layout: Layout, tree: Any) -> Any:
  """Inside a step: splits arrays as in `shardings` (for a sum over devices, a reduce-scatter)."""
  return _constrained(layout, tree, shardings(layout, tree))


def _constrained(layout, tree, to):
  # If nothing is split no constraint is needed, and the compiler is free to choose.
  if layout.mesh.shape["shard"] == 1:
    return tree
  return jax.lax.with_sharding_constraint(tree, to)


def mean(layout: Layout, tree: Any) -> Any:
  """Inside a step: averages over devices what each computed for its part of the batch."""
  return jax.lax.pmean(tree, PARTS) if layout.kind == "pmap" else tree


def first_row(layout: Layout, rows: int) -> int | Int[Array, ""]:
  """Inside a step that sees `rows` examples: the index of the first of them in the whole batch."""
  return jax.lax.axis_index(PARTS) * rows if layout.kind == "pmap" else 0


def compile_step(
  layout: Layout, step: Callable[..., Any], state: Any, *, grouped: bool
) -> Callable[..., Any]:
  """Compiles `(state, meter, frozen, key, batch) -> (state, meter)`.

  The state is laid out by `shardings`, the batch by `shard_batch`, and everything else is copied;
  the memory of the state and the meter is reused for the results.

  Args:
    layout: from `make_layout`.
    step: the function, which uses `gather`, `split`, `mean` and `first_row`.
    state: the state or its shapes.
    grouped: whether the first axis of the batch counts the steps of one dispatch.
  """
  if layout.kind == "pmap":
    return jax.pmap(
      step,
      PARTS,
      in_axes=(None, None, None, None, 1 if grouped else 0),
      out_axes=None,
      devices=layout.mesh.devices.ravel().tolist(),
      donate_argnums=(0, 1),
    )
  copied, state_layout = replicated(layout), shardings(layout, state)
  return jax.jit(
    step,
    donate_argnums=(0, 1),
    in_shardings=(state_layout, copied, copied, copied, batch_sharding(layout, grouped=grouped)),
    out_shardings=(state_layout, copied),
  )


# ---------------------------------------------------------------------------- generation


def compile_sampler(
  layout: Layout,
  sample: Callable[..., Any],
  params: Any,
  given: Mapping[str, jax.ShapeDtypeStruct],
  rows: int,
) -> Callable[..., Any]:
  """Compiles `(key, given) -> samples`, whose rows are split over the devices of one process.

  Args:
    layout: from `make_layout`; parameters are copied.
    sample: `(params, key, given, rows) -> samples`, arrays [rows, ...]; a row must not depend on
      the other rows.
    params: its first argument.
    given: the shapes of what will be given, [rows, ...].
    rows: number of samples drawn at once, a multiple of the number of devices.
  """
  copied, key = replicated(layout), noise.make_key(0)
  params = jax.device_put(params, copied)
  if layout.kind == "jit":
    split_rows = batch_sharding(layout)
    program = jax.jit(
      lambda params, key, given: sample(params, key, given, rows),
      in_shardings=(copied, copied, split_rows),
      out_shardings=split_rows,
    )
    program = program.lower(params, key, dict(given)).compile()
    return lambda key, given: program(params, *jax.device_put((key, given), (copied, split_rows)))

  each = rows // layout.mesh.size

  def part(params, key, first, given):
    return sample(params, noise.key_of_rows(key, first), given, each)

  def parts(given):
    return {n: x.reshape(layout.mesh.size, each, *x.shape[1:]) for n, x in given.items()}

  program = jax.pmap(
    part,
    PARTS,
    in_axes=(None, None, 0, 0),
    devices=layout.mesh.devices.ravel().tolist(),
  )
  firsts = np.arange(0, rows, each)
  like = jax.eval_shape(parts, dict(given))
  program = program.lower(params, key, firsts, like).compile()

  def run(key, given):
    samples = program(params, key, firsts, parts(given))
    return {n: x.reshape(rows, *x.shape[2:]) for n, x in samples.items()}

  return run
