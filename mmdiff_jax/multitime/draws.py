"""Draws of times in training."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray
import numpy as np

from mmdiff_jax import arguments, noise, schedules


class Draw(NamedTuple):
  """Times for one training batch.

  Attributes:
    t: times, 0 where a modality is given and 1 where it is absent.
    diffused: where a modality is neither, so that its loss counts.
    weight: weight of each example's loss, of mean 1; the weighted mean estimates the mean over
      uniform times, whatever distribution the times were drawn from.
  """

  t: dict[str, Float[Array, " batch"]]
  diffused: dict[str, Bool[Array, " batch"]]
  weight: Float[Array, " batch"]


DrawTime = Callable[[PRNGKeyArray, int], tuple[Array, Array]]


def uniform_time(t_min: float = 1e-3) -> DrawTime:
  """Draws times from U(t_min, 1], with weights of 1.

  Args:
    t_min: the earliest time, in [0, 1].

  Returns:
    `(key, batch_size) -> (t, weight)`.

  Raises:
    TypeError, ValueError: `t_min` is not a number or is outside [0, 1].
  """
  arguments.number("uniform_time", "t_min", t_min, 0, 1)

  def draw_t(key, batch_size):
    t = 1 - (1 - t_min) * jax.random.uniform(key, (batch_size,))
    return t, jnp.ones_like(t)

  return draw_t


def importance_time(schedule: Any, t_min: float = 1e-3) -> DrawTime:
  """Draws times in proportion to g^2 / sigma^2, the weight of the likelihood bound, and reweights.

  Because g^2 / sigma^2 = -d log_snr / dt for every schedule, these times are uniform in log_snr and
  the inverse distribution function is the schedule's own `time`: for `schedules.VPLinear` the
  integral of beta / (1 - exp(-B)) is log(exp(B) - 1) = -log_snr. (Song et al. 2021, "Maximum
  likelihood training of score-based diffusion models", draw from this distribution and drop the
  weight; here the weight undoes the change of distribution, so that only the variance changes. It
  grows: for MLD's loss with `VPCosine` that of the gradient doubles, so that `uniform_time` is the
  better choice.)

  Args:
    schedule: one schedule. Its `t_max` is the latest time drawn, since g^2 / sigma^2 has no finite
      integral up to a time with alpha = 0.
    t_min: the earliest time, in (0, t_max).

  Returns:
    `(key, batch_size) -> (t, weight)`, whose weighted means are those of U(t_min, t_max].

  Raises:
    TypeError: `schedule` is not a schedule, or `t_min` not a number.
    ValueError: `t_min` is outside (0, t_max).
  """
  schedules.check_t_min("importance_time", schedule, t_min)

  def draw_t(key, batch_size):
    least, most = schedule.log_snr(jnp.array([schedule.t_max, t_min]))
    fraction = jax.random.uniform(key, (batch_size,))
    t = jnp.clip(schedule.time(least + (most - least) * fraction), t_min, schedule.t_max)
    slope = (schedule.diffusion(t) / schedule.sigma(t)) ** 2
    return t, (most - least) / (slope * (schedule.t_max - t_min))

  return draw_t


# The number of bits of an int32 that hold a subset of modalities.
_SUBSET_BITS = 30


def _check_draw(where, key, batch_size, names, draw_t, present):
  """Returns the names as a tuple, and for each which examples have it, in one row if all do."""
  arguments.key(where, key)
  arguments.integer(where, "batch_size", batch_size, 1)
  names = arguments.names(where, "names", names)
  if not names:
    raise ValueError(f"{where}: names is empty; give one name or more.")
  if draw_t is not None:
    arguments.function(where, "draw_t", draw_t)
  if present is None:
    return names, dict.fromkeys(names, jnp.ones(1, bool))
  present = arguments.modalities(where, "present", present)
  arguments.same_modalities(where, "present", present, "names", names)
  for name, value in present.items():
    if value.shape not in ((1,), (batch_size,)):
      raise ValueError(
        f"{where}: present[{name!r}] has shape {value.shape}; it needs one value for each of"
        f" batch_size={batch_size} rows."
      )
    if not isinstance(value, jax.core.Tracer) and not np.all(np.isin(np.asarray(value), (0, 1))):
      raise ValueError(f"{where}: present[{name!r}] must be booleans, or 0 and 1.")
  return names, {name: value.astype(bool) for name, value in present.items()}


def _draw_times(where, draw_t, key, batch_size):
  drawn = (draw_t or uniform_time())(key, batch_size)
  if not isinstance(drawn, tuple | list) or [jnp.shape(x) for x in drawn] != 2 * [(batch_size,)]:
    shapes = jax.tree.map(jnp.shape, drawn)
    raise ValueError(
      f"{where}: draw_t must return a pair of times and weights, of shape ({batch_size},) each, but"
      f" what it returns has the shapes {shapes}."
    )
  t, weight = map(jnp.asarray, drawn)
  arguments.number(where, "a time drawn by draw_t", t, 0, 1, rows=True)
  arguments.number(where, "a weight drawn by draw_t", weight, 0, rows=True)
  return t, weight


def draw_masked(
  key: PRNGKeyArray,
  batch_size: int,
  names: Sequence[str],
  *,
  given_prob: float = 0.5,
  absent_prob: float = 0.0,
  draw_t: DrawTime | None = None,
  present: Mapping[str, Bool[Array, " batch"]] | None = None,
) -> Draw:
  """MLD's draw, independent for each example: some modalities given, the others at a shared time.

  With probability `given_prob` a set of modalities is given, uniform over the non-empty proper
  subsets (a single modality is never given). Each of the others is absent with probability
  `absent_prob`, except that where all would be, one of them, drawn uniformly, stays diffused. The
  modalities that an example lacks are absent, and this is the distribution of those that it has.

  Args:
    key: randomness.
    batch_size: number of examples.
    names: the modalities.
    given_prob: probability in [0, 1] that some modalities are given (d of the MLD paper).
    absent_prob: probability in [0, 1] that a modality that is not given is absent; 0 is the paper.
    draw_t: `(key, batch_size) -> (t, weight)`, `uniform_time()` if None; or `importance_time`.
    present: for each modality which examples have it; None means all, as does True for all.

  Returns:
    The draw.

  Raises:
    TypeError, ValueError: an argument has the wrong type or range, `present` lacks a name, or
      `draw_t` returns no pair of vectors, a time outside [0, 1] or a weight that is negative or not
      finite.
  """
  names, present = _check_draw("draw_masked", key, batch_size, names, draw_t, present)
  arguments.number("draw_masked", "given_prob", given_prob, 0, 1)
  arguments.number("draw_masked", "absent_prob", absent_prob, 0, 1)
  given_key, subset_key, absent_key, t_key = jax.random.split(key, 4)
  num = len(names)
  there = jnp.stack([present[name] for name in names], axis=1)
  count = jnp.sum(there, axis=1, keepdims=True)
  # A subset is a number with one bit for each modality that is there; neither none nor all are set.
  # With more modalities than bits, each of the remaining ones is given by a fair coin, which is
  # uniform over their subsets, too, except for 2^-29 of all draws.
  largest = 2 ** jnp.minimum(count, _SUBSET_BITS) - 1
  subset = jax.random.randint(subset_key, (batch_size, 1), 1, jnp.maximum(largest, 2))
  some = jax.random.bernoulli(given_key, jnp.where(count > 1, given_prob, 0.0), (batch_size, 1))
  bit = jnp.cumsum(there, axis=1) - 1
  in_subset = ((subset >> bit) & 1).astype(bool)
  if num > _SUBSET_BITS:
    coin = jax.random.bernoulli(jax.random.fold_in(subset_key, num), shape=(batch_size, num))
    in_subset = jnp.where(bit < _SUBSET_BITS, in_subset, coin)
  given = some & there & in_subset
  # The modality with the largest score stays diffused. This changes nothing unless all scores are
  # below `absent_prob`, and then it is uniform among the modalities.
  free = there & ~given
  score = jnp.where(free, jax.random.uniform(absent_key, (batch_size, num)), -1.0)
  last = jnp.arange(num) == jnp.argmax(score, axis=1, keepdims=True)
  diffused = free & (last | (score >= absent_prob))
  shared, weight = _draw_times("draw_masked", draw_t, t_key, batch_size)
  t = jnp.where(given, 0.0, jnp.where(diffused, shared[:, None], 1.0))
  return Draw(
    t={name: t[:, i] for i, name in enumerate(names)},
    diffused={name: diffused[:, i] for i, name in enumerate(names)},
    weight=weight,
  )


def draw_joint(
  key: PRNGKeyArray,
  batch_size: int,
  names: Sequence[str],
  *,
  draw_t: DrawTime | None = None,
  present: Mapping[str, Bool[Array, " batch"]] | None = None,
) -> Draw:
  """All modalities at one shared time (MLD-inpaint's training); arguments as `draw_masked`."""
  names, there = _check_draw("draw_joint", key, batch_size, names, draw_t, present)
  t, weight = _draw_times("draw_joint", draw_t, key, batch_size)
  there = {name: jnp.broadcast_to(some, t.shape) for name, some in there.items()}
  return Draw({name: jnp.where(there[name], t, 1.0) for name in names}, there, weight)


def draw_independent(
  key: PRNGKeyArray,
  batch_size: int,
  names: Sequence[str],
  *,
  draw_t: DrawTime | None = None,
  present: Mapping[str, Bool[Array, " batch"]] | None = None,
) -> Draw:
  """Each modality at a time of its own (MLD-unidiffuser's training); arguments as `draw_masked`.

  The weight is the product of the weights of the modalities that are there, which with
  `importance_time` leaves most examples almost no weight.
  """
  names, there = _check_draw("draw_independent", key, batch_size, names, draw_t, present)
  draws = {
    name: _draw_times("draw_independent", draw_t, noise.modality_key(key, name), batch_size)
    for name in names
  }
  there = {name: jnp.broadcast_to(some, (batch_size,)) for name, some in there.items()}
  t = {name: jnp.where(there[name], draw[0], 1.0) for name, draw in draws.items()}
  weights = [jnp.where(there[name], draw[1], 1.0) for name, draw in draws.items()]
  return Draw(t, there, functools.reduce(jnp.multiply, weights))
