"""The loop along a path, and how a network becomes a denoiser.

A denoiser maps `(x, t)`, dicts of modalities and of their times, to the pair of dicts
(E[x_0 | x], E[eps | x]). It is a `jax.tree_util.Partial` and so a pytree: new parameters, bound
with `Partial(fn, params)`, do not recompile a jitted sampler.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import multitime, prediction, schedules
from mmdiff_jax.solvers.steps import Denoiser, Solver

Modalities = Mapping[str, Float[Array, "..."]]


def _eps_pair(eps, x, alpha, sigma):
  return prediction.eps_to_x0(x, eps, alpha, sigma), eps


def _x0_pair(x0, x, alpha, sigma):
  return x0, prediction.x0_to_eps(x, x0, alpha, sigma)


def _v_pair(v, x, alpha, sigma):
  return prediction.v_to_x0(x, v, alpha, sigma), prediction.v_to_eps(x, v, alpha, sigma)


def _score_pair(score, x, alpha, sigma):
  return _eps_pair(prediction.score_to_eps(score, sigma), x, alpha, sigma)


def _velocity_pair(velocity, x, *levels):
  return tuple(
    convert(x, velocity, *levels)
    for convert in (prediction.velocity_to_x0, prediction.velocity_to_eps)
  )


def _levels(schedule, t):
  return schedule.alpha(t), schedule.sigma(t)


def _levels_and_rates(schedule, t):
  levels, rates = jax.jvp(lambda t: _levels(schedule, t), (t,), (jnp.ones_like(t),))
  return *levels, *rates


def _denoise(pair, levels, fn, schedule, x, t):
  predicted = fn(x, t)
  x0, eps = {}, {}
  for name, value in x.items():
    own = schedules.schedule_of(schedule, name)
    time = schedules.along(jnp.asarray(t[name]), value)
    x0[name], eps[name] = pair(predicted[name], value, *levels(own, time))
  return x0, eps


def _denoiser(pair, fn, schedule, levels=_levels):
  fn = fn if isinstance(fn, Partial) else Partial(fn)
  return Partial(_denoise, Partial(pair), Partial(levels), fn, schedule)


def from_eps(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts eps.

  At alpha = 0 its x0 is 0, not known: a schedule with alpha(1) = 0 wants another prediction.

  Args:
    fn: `(x, t) -> dict` shaped as `x`; a `Partial` with its parameters as arguments if it has any.
    schedule: one schedule, or one for each modality.

  Returns:
    The denoiser.
  """
  return _denoiser(_eps_pair, fn, schedule)


def from_x0(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts x0; arguments as `from_eps`."""
  return _denoiser(_x0_pair, fn, schedule)


def from_v(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts v = alpha eps - sigma x0; arguments as `from_eps`."""
  return _denoiser(_v_pair, fn, schedule)


def from_score(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts the score, -eps / sigma; arguments as `from_eps`."""
  return _denoiser(_score_pair, fn, schedule)


def from_velocity(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts the velocity, d(alpha)/dt x0 + d(sigma)/dt eps.

  Flow matching trains such networks. The two derivatives must be finite at both ends, as those of
  `RectifiedFlow` (where the velocity is eps - x0) and `VPCosine` are. Arguments as `from_eps`.
  """
  return _denoiser(_velocity_pair, fn, schedule, _levels_and_rates)


def prior(
  key: PRNGKeyArray, schedule: Any, shapes: Mapping[str, Sequence[int]], batch_size: int
) -> dict[str, Float[Array, "batch ..."]]:
  """Draws every modality from the law at t = 1, N(0, sigma(1)^2 I).

  Args:
    key: randomness.
    schedule: one schedule, or one for each modality.
    shapes: shape of one example of each modality, without the batch axis.
    batch_size: number of rows.

  Returns:
    The draw; replace the modalities that are given by their values.
  """
  zeros = {name: jnp.zeros((batch_size, *shape)) for name, shape in shapes.items()}
  return {
    name: schedules.schedule_of(schedule, name).sigma(jnp.ones(()))
    * multitime.normal_like(key, name, zero)
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

  Args:
    key: randomness of the solver and of `project`.
    denoiser: `(x, t) -> (x0, eps)`, called with one scalar time for each modality.
    schedule: one schedule, or one for each modality.
    x_init: where the path starts, [batch, ...] each: the values of given modalities, and a draw of
      `prior` for all others.
    path: the times; one vector for each modality of `x_init`.
    solver: such as `steps.heun`; it says what a step costs.
    project: `(key, x, s) -> x`, called after each step with the times reached, for inpainting,
      re-noised conditions or thresholds. It may change any modality, also one that did not move.
    trajectory: whether to return all points of the path.
    remat: whether a gradient through the sampler computes each step again instead of keeping what
      happened in it: one point a step is kept, at the price of one more evaluation.

  Returns:
    The end of the path, shaped as `x_init`; or with `trajectory` all its points, [points, batch,
    ...] each, the first of which is `x_init`.

  Raises:
    ValueError: `x_init` and `path` differ in their modalities.
  """
  if set(x_init) != set(path.times):
    raise ValueError(
      f"sample: x_init has modalities {sorted(x_init)} but the path has {sorted(path.times)}; they "
      "must be the same. An absent modality may be left out of both."
    )
  x_init = dict(x_init)
  # Samples keep their type, whatever that of the times; bfloat16 is too coarse for times.
  precision = jnp.promote_types(jnp.result_type(*x_init.values()), jnp.float32)
  times = {name: value.astype(precision) for name, value in path.times.items()}

  def step(carry, inputs):
    x, state = carry
    index, t, s = inputs
    step_key, project_key = jax.random.split(jax.random.fold_in(key, index))
    x, state = solver.step(step_key, denoiser, schedule, x, t, s, state)
    if project is not None:
      x = project(project_key, x, s)
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


def _blended(mask, known, free):
  """mask * known + (1 - mask) * free, bit for bit `known` or `free` where the mask is 1 or 0."""
  mask = jnp.asarray(mask, free.dtype)
  inside = mask * known + (1 - mask) * free
  return jnp.where(mask >= 1, known, jnp.where(mask <= 0, free, inside))


def replace_known(
  schedule: Any, known: Modalities, mask: Mapping[str, Float[Array, "..."]] | None = None
) -> Callable[..., Any]:
  """The hook `project` of `sample` that puts back what is known, noised to the time reached.

  This is replacement conditioning (Song et al. 2021, App. I.2), for networks that were trained on
  joint times alone, and the known part in inpainting. It is biased; resampling along
  `multitime.repaint` makes it less so, at a price.

  Args:
    schedule: one schedule, or one for each modality.
    known: clean values, [batch, ...] each.
    mask: 1 where a value is known and 0 where it is not, broadcast against the values; in between
      the two are blended in that proportion. A modality without an entry is known everywhere.

  Returns:
    `(key, x, s) -> x`.
  """
  mask = mask or {}

  def project(key, x, s):
    x = dict(x)
    for name, value in known.items():
      own = schedules.schedule_of(schedule, name)
      noise = multitime.normal_like(key, name, value)
      noised = own.alpha(s[name]) * value + own.sigma(s[name]) * noise
      x[name] = _blended(mask[name], noised, x[name]) if name in mask else noised
    return x

  return project


def slerp(begin: Modalities, end: Modalities, share: Float[Array, ""]) -> dict[str, Array]:
  """Points between two draws of noise, on the arc of a great circle, for each row and modality.

  Between encoded examples (`multitime.reverse`) these keep the norm that noise has, which points on
  the straight line do not. Rows that are parallel, and rows of zeros, have no such arc: their
  points are those on the straight line.

  Args:
    begin: where `share` is 0, [batch, ...] each.
    end: where `share` is 1.
    share: in [0, 1].

  Returns:
    The points, shaped as `begin`.
  """

  def between(a, b):
    axes = tuple(range(1, a.ndim))
    norm_a, norm_b = (prediction.root(jnp.sum(c**2, axes, keepdims=True)) for c in (a, b))
    cosine = prediction.divide(jnp.sum(a * b, axes, keepdims=True), norm_a * norm_b)
    cosine = jnp.clip(cosine, -1, 1)
    # Where there is no arc, of parallel rows or of a row of zeros, the straight line serves; the
    # angle has an infinite slope there, so that gradients get that of a right angle, times 0.
    straight = (norm_a * norm_b == 0) | (jnp.sin(jnp.arccos(cosine)) < 1e-4)
    angle = jnp.arccos(jnp.where(straight, 0, cosine))
    sine = jnp.sin(angle)
    weight_a = jnp.where(straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    weight_b = jnp.where(straight, share, jnp.sin(share * angle) / sine)
    return weight_a * a + weight_b * b

  return {name: between(begin[name], end[name]) for name in begin}
