"""The loop along a path, its start, and what may be done after each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped
import numpy as np

from mmdiff_jax import arguments, multitime, noise, prediction, schedules
from mmdiff_jax.diffusion import check_shapes, checked, Denoiser, perturb
from mmdiff_jax.solvers.moves import check_solver, is_floating, Solver

Modalities = Mapping[str, Shaped[Array | np.ndarray, "batch ..."]]


def prior(
  key: PRNGKeyArray, schedule: Any, shapes: Mapping[str, Sequence[int]], batch_size: int
) -> dict[str, Float[Array, "batch ..."]]:
  """Draws every modality from the distribution at t = 1, N(0, sigma(1)^2 I).

  Args:
    key: randomness.
    schedule: one schedule, or one for each modality.
    shapes: shape of one example of each modality, without the batch axis.
    batch_size: number of rows.

  Returns:
    The draw; replace given modalities by their values.

  Raises:
    TypeError, ValueError: an argument has the wrong type or range, or a modality has no schedule.
  """
  arguments.key("prior", key)
  arguments.integer("prior", "batch_size", batch_size, 1)
  shapes = arguments.shapes("prior", "shapes", shapes)
  schedules.check("prior", schedule, shapes)
  zeros = {name: jnp.zeros((batch_size, *shape)) for name, shape in shapes.items()}
  return {
    name: schedules.schedule_of(schedule, name).sigma(jnp.ones(()))
    * noise.normal_like(key, name, zero)
    for name, zero in zeros.items()
  }


def sample(
  key: PRNGKeyArray,
  denoiser: Denoiser,
  schedule: Any,
  x_init: Modalities,
  path: multitime.Path,
  *,
  solver: Solver,
  project: Callable[..., Any] | None = None,
  trajectory: bool = False,
  remat: bool = False,
) -> dict[str, Float[Array, "..."]]:
  """Follows a path through multi-time with one `lax.scan`, in memory independent of its length.

  Can be jitted (with `solver`, `project`, `trajectory` and `remat` static), vmapped and
  differentiated.

  The noise of a row is a function of the key and of the row's number. Under `jax.vmap` over rows
  with one key every row is number 0 and has the same noise: leave the rows on the batch axis, or
  map over keys, too, as in `jax.vmap(sample_one)(jax.random.split(key, num), rows)`.

  Args:
    key: randomness of the solver and of `project`.
    denoiser: `(x, t) -> (x0, eps)`, called with one scalar time for each modality.
    schedule: one schedule, or one for each modality.
    x_init: the start of the path, [batch, ...] each: the values of given modalities, and a draw of
      `prior` for all others. Integers and booleans become floats, except in a modality whose time
      stands still: the network receives those unchanged.
    path: the times; one vector for each modality of `x_init`.
    solver: for example `steps.heun`; its `evaluations` say what the steps cost.
    project: `(key, x, s) -> x`, called after each step with the times reached, for inpainting,
      re-noised conditions or thresholds. It may change any modality, also one that did not move.
      Where times rise it needs a solver of the SDE: one of the ODE would encode there instead of
      re-noising, which makes the samples too narrow.
    trajectory: whether to return all points of the path.
    remat: whether a gradient through the sampler recomputes each step instead of storing its
      intermediate values: one point per step is stored, at the cost of one more evaluation.

  Returns:
    The end of the path, shaped as `x_init`; or with `trajectory` all its points, [points, batch,
    ...] each, the first of which is `x_init`.

  Raises:
    TypeError: an argument has the wrong type, such as a solver that was not called (`solvers.ddim`)
      or a seed for a key, or `x_init` has integers and the path is traced, so that it cannot be
      determined whether their time stands still.
    ValueError: `x_init` and `path` differ in their modalities, a modality has no schedule, the
      denoiser leaves out a modality or returns another shape, or a solver of the ODE is to follow a
      path with rising times and a `project` (not checked where the path is traced).
  """
  arguments.key("sample", key)
  check_solver("sample", solver)
  x_init = start("sample", "x_init", x_init, path)
  schedules.check("sample", schedule, x_init)
  denoiser = checked("sample", denoiser)
  if project is not None:
    project = arguments.function("sample", "project", project)
    _check_rises(path, solver)
  # Samples keep their type, whatever that of the times; bfloat16 is too coarse for times.
  precision = jnp.promote_types(jnp.result_type(*x_init.values()), jnp.float32)
  times = {name: jnp.asarray(value, precision) for name, value in path.times.items()}

  def step(carry, inputs):
    x, state = carry
    index, t, s = inputs
    step_key, project_key = jax.random.split(jax.random.fold_in(key, index))
    x, state = solver.step(step_key, denoiser, schedule, x, t, s, state)
    if project is not None:
      x = project(project_key, x, s)
      check_shapes("project", x, x_init)
      arguments.subset("sample", "the output of project", x, "x_init", x_init)
    x = {name: value.astype(x_init[name].dtype) for name, value in x.items()}
    return (x, state), x if trajectory else None

  step = jax.checkpoint(step) if remat else step
  starts = {name: value[:-1] for name, value in times.items()}
  ends = {name: value[1:] for name, value in times.items()}
  num_steps = len(next(iter(starts.values())))
  inputs = (jnp.arange(num_steps), starts, ends)
  (x, _), points = jax.lax.scan(step, (x_init, solver.init(x_init)), inputs)
  if not trajectory:
    return x
  return {name: jnp.concatenate([x_init[name][None], points[name]]) for name in x_init}


def _check_rises(path, solver):
  for name, times in path.times.items():
    if solver.stochastic or isinstance(times, jax.core.Tracer):
      continue
    if np.any(np.diff(np.asarray(times)) > 0):
      raise ValueError(
        f"sample: the times of {name!r} rise along the path, there is a project hook, and the"
        " solver is one of the ODE, which encodes where times rise instead of re-noising: samples"
        " would be far too narrow. Use a solver of the SDE, such as solvers.ancestral, or a path"
        " without rises."
      )


def start(
  where: str, argument: str, x: Any, path: multitime.Path
) -> dict[str, Float[Array, "batch ..."]]:
  """Checks and returns the start of a path: values that move become floats, others are unchanged.

  Args:
    where: the function, for the message.
    argument: its argument, for the message.
    x: values by modality.
    path: the path.

  Raises:
    TypeError: `path` is not a path, `x` has no arrays, or `x` has integers and the path is traced,
      so that it cannot be determined whether their time stands still.
    ValueError: `x` has other modalities than the path.
  """
  if not isinstance(path, multitime.Path):
    raise TypeError(f"{where}: path={path!r} must be a multitime.Path, such as multitime.joint.")
  x = arguments.modalities(where, argument, x)
  arguments.same_modalities(where, argument, x, "path", path.times)
  for name, value in x.items():
    if is_floating(value):
      continue
    times = path.times[name]
    if isinstance(times, jax.core.Tracer):
      raise TypeError(
        f"{where}: {argument}[{name!r}] is {value.dtype} and the path is traced, so that it cannot"
        " be determined whether its time stands still. Make it floating if it moves; if it stands"
        " still, make the path inside the traced function, where a given time is a constant."
      )
    if np.any(np.asarray(times) != np.asarray(times)[0]):
      x[name] = value.astype(float)
  return x


def _masks(given, mask):
  """Returns the masks as arrays, checked against the given values."""
  if not isinstance(mask, Mapping):
    raise TypeError(f"replace_known: mask must be a dict by modality, not {type(mask).__name__}.")
  arguments.subset("replace_known", "mask", mask, "given", given)
  arrays = {}
  for name, value in mask.items():
    arrays[name] = arguments.array("replace_known", f"mask[{name!r}]", value)
    arguments.broadcasts("replace_known", f"mask[{name!r}]", arrays[name].shape, given[name].shape)
    if arrays[name].dtype != bool:
      arguments.number("replace_known", f"mask[{name!r}]", arrays[name], 0, 1, rows=True)
  return arrays


def _blend(mask, given, free):
  """mask * given + (1 - mask) * free, bit for bit `given` or `free` where the mask is 1 or 0."""
  mask = jnp.asarray(mask, free.dtype)
  inside = mask * given + (1 - mask) * free
  return jnp.where(mask >= 1, given, jnp.where(mask <= 0, free, inside))


def replace_known(
  schedule: Any,
  given: Modalities,
  mask: Mapping[str, Shaped[Array | np.ndarray, "..."]] | None = None,
) -> Callable[..., Any]:
  """Returns a `project` hook for `sample` that puts given values back, perturbed to the time s.

  This is replacement conditioning (Song et al. 2021, App. I.2), for networks that were trained only
  on joint times, and for the given part in inpainting. It is biased; resampling along
  `multitime.repaint` reduces the bias, at a cost.

  Args:
    schedule: one schedule, or one for each modality.
    given: clean values, [batch, ...] each.
    mask: in [0, 1], broadcast against the values: 1 where a value is given and 0 where it is not;
      in between the two are blended in that proportion. A modality without an entry is given
      everywhere.

  Returns:
    `(key, x, s) -> x`.

  Raises:
    TypeError: `given` or `mask` is not a dict of arrays.
    ValueError: a mask is for a modality that is not in `given`, has values outside [0, 1], or has a
      shape that does not broadcast to its values; when the hook is called, `x` lacks a modality or
      has another shape.
  """
  given = arguments.modalities("replace_known", "given", given, floats=True)
  schedules.check("replace_known", schedule, given)
  mask = _masks(given, {} if mask is None else mask)

  def project(key, x, s):
    x = dict(x)
    arguments.subset("replace_known", "given", given, "the modalities", x)
    for name, value in given.items():
      arguments.broadcasts("replace_known", f"given[{name!r}]", value.shape, x[name].shape)
      modality_schedule = schedules.schedule_of(schedule, name)
      eps = noise.normal_like(key, name, x[name])
      value = jnp.broadcast_to(value, eps.shape)
      perturbed = perturb(modality_schedule, value, eps, s[name])
      x[name] = _blend(mask[name], perturbed, x[name]) if name in mask else perturbed
    return x

  return project


def slerp(
  begin: Modalities, end: Modalities, fraction: float | Float[Array, "*rows"]
) -> dict[str, Array]:
  """Returns points between two draws of noise, on a great circle, for each row and modality.

  Between encoded examples (`multitime.reverse`) these keep the norm of noise, which points on the
  straight line do not. Parallel rows and rows of zeros have no such arc: their points are those on
  the straight line.

  Args:
    begin: the points where `fraction` is 0, [batch, ...] each.
    end: the points where `fraction` is 1.
    fraction: in [0, 1]; a number, or one for each row.

  Returns:
    The points, shaped as `begin`.

  Raises:
    TypeError: `begin` or `end` is not a dict of arrays, or `fraction` not a number.
    ValueError: `fraction` is outside [0, 1], or the two differ in modalities or shapes.
  """
  begin = arguments.modalities("slerp", "begin", begin, floats=True)
  end = arguments.modalities("slerp", "end", end, floats=True)
  arguments.same_modalities("slerp", "begin", begin, "end", end)
  fraction = arguments.number("slerp", "fraction", fraction, 0, 1, rows=True)
  for name in begin:
    if begin[name].shape != end[name].shape:
      raise ValueError(
        f"slerp: begin and end have shapes {begin[name].shape} and {end[name].shape} for modality"
        f" {name!r}; they must be the same."
      )

  def between(a, b):
    axes = tuple(range(1, a.ndim))
    # Of rows scaled to 1, whose squares neither overflow nor vanish.
    scaled_a, scaled_b = (
      prediction.divide(c, jnp.max(jnp.abs(c), axes, keepdims=True, initial=0.0)) for c in (a, b)
    )
    norm_a, norm_b = (
      prediction.root(jnp.sum(c**2, axes, keepdims=True)) for c in (scaled_a, scaled_b)
    )
    dot = jnp.sum(scaled_a * scaled_b, axes, keepdims=True)
    cosine = prediction.divide(dot, norm_a * norm_b)
    cosine = jnp.clip(cosine, -1, 1)
    # Where there is no arc, for parallel rows or a row of zeros, the straight line is used. The
    # angle has an infinite slope there, so gradients take that of a right angle, times 0.
    straight = (norm_a * norm_b == 0) | (jnp.sin(jnp.arccos(cosine)) < 1e-4)
    angle = jnp.arccos(jnp.where(straight, 0, cosine))
    sine = jnp.sin(angle)
    part = schedules.along(fraction, a)
    weight_a = jnp.where(straight, 1 - part, jnp.sin((1 - part) * angle) / sine)
    weight_b = jnp.where(straight, part, jnp.sin(part * angle) / sine)
    return weight_a * a + weight_b * b

  fraction = jnp.asarray(fraction)
  for value in begin.values():
    arguments.broadcasts("slerp", "fraction", schedules.along(fraction, value).shape, value.shape)
  return {name: between(begin[name], end[name]) for name in begin}
