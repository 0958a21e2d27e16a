"""Paths in sampling: the times that each modality takes, step by step."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped
import numpy as np

from mmdiff_jax import arguments
from mmdiff_jax.multitime import grids


def _check_noise(names):
  checksums = {}
  for name in names:
    other = checksums.setdefault(zlib.crc32(name.encode()), name)
    if other != name:
      raise ValueError(
        f"Path: the modalities {other!r} and {name!r} would have the same noise, which is drawn by"
        " the CRC-32 of the name, since theirs are equal. Give one of them another name."
      )


@dataclasses.dataclass(frozen=True)
class Path:
  """The N + 1 times of each modality that N steps connect; a pytree with `times` as leaves.

  Falling times denoise, rising ones re-noise (or, along the ODE, encode), and a modality whose time
  stands still is not changed. Paths are checked when they are constructed, values only where they
  are concrete; JAX's own rebuilding of a path (stacking paths for `vmap`, say) is not checked.

  Attributes:
    times: for each modality N + 1 times in [0, 1]; lists and integers become arrays of floats.

  Raises:
    TypeError: `times` is not a dict of numbers by name of modality.
    ValueError: there are no modalities, times are not a vector of two or more, vectors differ in
      length, times are outside [0, 1], or two names have one CRC-32 and would share their noise.
  """

  times: Mapping[str, Shaped[Array | np.ndarray, " points"] | Sequence[int | float]]

  def __post_init__(self):
    if not isinstance(self.times, Mapping):
      raise TypeError(f"Path: times={self.times!r} must be a dict with a vector for each modality.")
    if not self.times:
      raise ValueError("Path: times is empty; give at least one modality its times.")
    arguments.names("Path", "times", self.times)
    _check_noise(self.times)
    times = {n: arguments.floating("Path", f"times[{n!r}]", t) for n, t in self.times.items()}
    object.__setattr__(self, "times", times)
    for name, values in times.items():
      if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(
          f"Path: times[{name!r}] has shape {values.shape}; it must be a vector of N + 1 times for"
          " N >= 1 steps."
        )
      if isinstance(values, jax.core.Tracer):
        continue
      values = np.asarray(values)
      if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
          f"Path: times[{name!r}] has a time outside [0, 1]: they go from {values.min()} to "
          f"{values.max()}. 0 is clean and 1 is pure noise."
        )
    lengths = {name: values.shape[0] for name, values in times.items()}
    if len(set(lengths.values())) > 1:
      raise ValueError(
        f"Path: all of times must have the same length, but they have {lengths}. Repeat the last"
        " time of a modality that is done, or the first of one that waits."
      )


def _unflatten_path(_, children):
  path = object.__new__(Path)  # Leaves may be anything here, so __post_init__ must not check them.
  object.__setattr__(path, "times", children[0])
  return path


jax.tree_util.register_pytree_with_keys(
  Path,
  lambda path: (((jax.tree_util.GetAttrKey("times"), dict(path.times)),), None),
  _unflatten_path,
)


def states(path: Path) -> frozenset[str]:
  """Returns the states of modalities that a path visits, to compare with those of a training draw.

  In each step in which some time moves, a modality that stands still at 0 is given and one that
  stands still at 1 is absent. All others are being diffused, any two of them at one shared time or
  apart.

  Args:
    path: its times must be concrete; in a function that is being traced, construct the path within
      `jax.ensure_compile_time_eval`.

  Returns:
    The states that occur, out of "given", "absent", "shared" and "apart".

  Raises:
    TypeError: `path` is not a path, or its times are traced.
  """
  if not isinstance(path, Path):
    raise TypeError(f"states: path={path!r} must be a Path.")
  if any(isinstance(times, jax.core.Tracer) for times in path.times.values()):
    raise TypeError(
      "states: the times of path are traced by JAX, so they cannot be compared. Construct the path"
      " within jax.ensure_compile_time_eval(), or outside the traced function."
    )
  times = np.stack([np.asarray(times) for times in path.times.values()])
  t, s = times[:, :-1], times[:, 1:]
  t, s = (x[:, np.any(t != s, axis=0)] for x in (t, s))
  given, absent = ((t == end) & (s == end) for end in (0, 1))
  diffused = ~given & ~absent
  occurs = {"given": given.any(), "absent": absent.any(), "shared": False, "apart": False}
  for i, j in itertools.combinations(range(len(times)), 2):
    together = (t[i] == t[j]) & (s[i] == s[j])
    both = diffused[i] & diffused[j]
    occurs["shared"] |= np.any(both & together)
    occurs["apart"] |= np.any(both & ~together)
  return frozenset(name for name, does in occurs.items() if does)


def reverse(path: Path) -> Path:
  """Returns the path walked backwards: a falling one becomes the upward path that encodes."""
  if not isinstance(path, Path):
    raise TypeError(f"reverse: path={path!r} must be a Path.")
  return Path({name: times[::-1] for name, times in path.times.items()})


def _grid(where, num_steps, grid):
  arguments.integer(where, "num_steps", num_steps, 1)
  if grid is None:
    return grids.power_grid(num_steps)
  grid = arguments.floating(where, "grid", grid)
  if grid.shape != (num_steps + 1,):
    raise ValueError(
      f"{where}: grid has shape {grid.shape}, but num_steps={num_steps} needs"
      f" {num_steps + 1} times."
    )
  if not isinstance(grid, jax.core.Tracer):
    times = np.asarray(grid)
    if not np.all(np.diff(times) < 0):
      raise ValueError(
        f"{where}: grid must fall, each time below the one before. For a path that rises use"
        " multitime.reverse, for any other times a multitime.Path."
      )
  return jnp.asarray(grid)


def _falls(where, argument, groups, lag, num_steps, given, absent, grid):
  """Returns a path on which group k falls after k * lag steps, `given` stay at 0, `absent` at 1."""
  if not groups or not any(map(len, (*groups, given, absent))):
    raise ValueError(f"{where}: {argument} is empty; a path needs one modality or more.")
  grid = _grid(where, num_steps, grid)
  waits = (len(groups) - 1) * lag
  times = {
    name: jnp.pad(grid, (k * lag, waits - k * lag), mode="edge")
    for k, group in enumerate(groups)
    for name in group
  }
  names = [*(name for group in groups for name in group), *given, *absent]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f"{where}: a path has {twice} twice; a modality is either given (t = 0), absent (t = 1), or"
      " falls once."
    )
  # NumPy arrays, so that they are constants where the path is made inside a traced function.
  still = grid.shape[0] + waits
  times |= {name: np.zeros(still, grid.dtype) for name in given}
  times |= {name: np.ones(still, grid.dtype) for name in absent}
  return Path(times)


def staggered(names: Sequence[str], lag: int, num_steps: int, *, grid: Array | None = None) -> Path:
  """Times fall one after the other: the k-th modality starts `k * lag` steps after the first.

  A lag between 0 and `num_steps` visits pairs of times that only `draw_independent` trains; see
  `states`.

  Args:
    names: the modalities, in the order in which they start.
    lag: steps between two starts; 0 is `joint`, `num_steps` is `sequential`.
    num_steps: moves of each modality; the path has num_steps + (len(names) - 1) lag steps.
    grid: the num_steps + 1 times of each modality, usually from 1 to 0, and falling;
      `power_grid` if None. One that ends above 0 leaves its modalities there.

  Returns:
    The path.

  Raises:
    ValueError: `lag` is negative or not an integer, `names` has a name twice, `num_steps` is not an
      integer of at least 1, or `grid` does not have num_steps + 1 times.
  """
  names = arguments.names("staggered", "names", names)
  arguments.integer("staggered", "lag", lag)
  return _falls("staggered", "names", [(name,) for name in names], lag, num_steps, (), (), grid)


def joint(names: Sequence[str], num_steps: int, *, grid: Array | None = None) -> Path:
  """All times fall together from 1 to 0; arguments as `staggered`."""
  names = arguments.names("joint", "names", names)
  return _falls("joint", "names", [names], 0, num_steps, (), (), grid)


def sequential(
  order: Sequence[str | Sequence[str]],
  num_steps: int,
  *,
  given: Sequence[str] = (),
  absent: Sequence[str] = (),
  grid: Array | None = None,
) -> Path:
  """One modality or group after the other: "first the caption, then the rest".

  Args:
    order: modalities, or groups whose times fall together.
    num_steps: moves of each modality; the path has len(order) * num_steps steps.
    given: modalities that condition the others: their times stay 0.
    absent: modalities that are marginalised out: their times stay 1.
    grid: the num_steps + 1 times of each modality, usually from 1 to 0, and falling;
      `power_grid` if None. One that ends above 0 leaves its modalities there.

  Returns:
    The path.

  Raises:
    ValueError: a modality is named twice, `num_steps` is not an integer of at least 1, or `grid`
      does not have num_steps + 1 times.
  """
  if isinstance(order, str) or not isinstance(order, Sequence):
    raise TypeError(
      f"sequential: order={order!r} must be a sequence of names or of groups of names, such as"
      ' ("caption", ("image", "audio")).'
    )
  groups = [
    (group,) if isinstance(group, str) else arguments.names("sequential", "order", group)
    for group in order
  ]
  given = arguments.names("sequential", "given", given)
  absent = arguments.names("sequential", "absent", absent)
  return _falls("sequential", "order", groups, num_steps, num_steps, given, absent, grid)


def conditional(
  names: Sequence[str], given: Sequence[str], num_steps: int, *, grid: Array | None = None
) -> Path:
  """Times of `given` stay 0, all others fall together.

  Args:
    names: all modalities of the path.
    given: modalities that condition the others.
    num_steps: number of steps.
    grid: the num_steps + 1 times of the others, from 1 to 0; `power_grid` if None.

  Returns:
    The path.

  Raises:
    ValueError: `given` has an unknown name, `num_steps` is not an integer of at least 1, or `grid`
      does not have num_steps + 1 times.
  """
  names = arguments.names("conditional", "names", names)
  given = arguments.names("conditional", "given", given)
  arguments.subset("conditional", "given", given, "names", names)
  targets = tuple(name for name in names if name not in given)
  return _falls("conditional", "names", [targets], 0, num_steps, given, (), grid)


def marginal(
  names: Sequence[str], targets: Sequence[str], num_steps: int, *, grid: Array | None = None
) -> Path:
  """Times of `targets` fall together, all others stay 1; arguments as `conditional`."""
  names = arguments.names("marginal", "names", names)
  targets = arguments.names("marginal", "targets", targets)
  arguments.subset("marginal", "targets", targets, "names", names)
  absent = tuple(name for name in names if name not in targets)
  return _falls("marginal", "names", [targets], 0, num_steps, (), absent, grid)


def repaint(
  names: Sequence[str],
  num_steps: int,
  *,
  jump: int = 10,
  repeats: int = 10,
  given: Sequence[str] = (),
  grid: Array | None = None,
) -> Path:
  """RePaint's back and forth: each piece of `jump` steps is walked `repeats` times.

  After each piece all times rise back to its start, in one move, which a solver of the SDE takes by
  re-noising (Lugmayr et al. 2022, Alg. 1; there the way back has as many moves as the way down,
  which is the same distribution). With `solvers.replace_known` as the hook this conditions a
  network that was trained on joint times only.

  Args:
    names: the modalities.
    num_steps: N, a multiple of `jump` or below it.
    jump: steps of a piece, at least 1; a shorter path is one piece.
    repeats: number of walks down each piece, at least 1.
    given: those of `names` whose times stay 0.
    grid: the N + 1 times, from 1 to 0; `power_grid` if None.

  Returns:
    The path, of N repeats + (N / jump) (repeats - 1) steps.

  Raises:
    ValueError: `num_steps`, `jump` or `repeats` is not an integer of at least 1, `jump` does not
      divide N, `given` has an unknown name, or `grid` does not have N + 1 times.
  """
  names = arguments.names("repaint", "names", names)
  given = arguments.names("repaint", "given", given)
  arguments.subset("repaint", "given", given, "names", names)
  grid = _grid("repaint", num_steps, grid)
  arguments.integer("repaint", "jump", jump, 1)
  arguments.integer("repaint", "repeats", repeats, 1)
  jump = min(jump, num_steps)
  if num_steps % jump:
    raise ValueError(f"repaint: jump={jump} must divide num_steps={num_steps}.")
  walks = [
    range(start + (0 if repeat or not start else 1), start + jump + 1)
    for start in range(0, num_steps, jump)
    for repeat in range(repeats)
  ]
  times = grid[np.concatenate(walks)]
  still = np.zeros(times.shape, times.dtype)
  return Path({name: still if name in given else times for name in names})
