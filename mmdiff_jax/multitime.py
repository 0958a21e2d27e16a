"""Multi-time: how times are drawn in training, and the paths that they take in sampling.

Data is a dict of modalities and time a dict of times in [0, 1]. A time of 0 means *given* (clean,
conditioning the others), 1 means *absent* (pure noise, marginalised out), and in between a modality
is being denoised. Every task is a path through multi-time: joint generation lets all times fall
together, conditional generation keeps some at 0, a marginal keeps some at 1, and the time of one
modality may also fall after that of another.

Randomness: each modality has its own key, folded from its name, and each row its own noise. So the
noise of a row depends neither on the other rows, nor on the size of the batch, nor on which other
modalities there are, nor on the number of devices.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped
import numpy as np

from mmdiff_jax import arguments, schedules

# --- Noise ---

_THREEFRY = "threefry2x32"


def make_key(seed: int | Int[Array, ""]) -> PRNGKeyArray:
  """Returns a Threefry key, whatever kind JAX's option `jax_default_prng_impl` names.

  The programs draw only from such keys, so that their numbers do not depend on the environment.

  Args:
    seed: an integer of 32 bits, from -2^31 to 2^32 - 1. JAX would drop any higher bits, so that
      seeds 2^32 apart would be one.

  Raises:
    TypeError: `seed` is not an integer.
    ValueError: it has more than 32 bits.
  """
  if isinstance(seed, int) and not -(2**31) <= seed < 2**32:
    raise ValueError(f"make_key: seed={seed} must be from -2^31 to 2^32 - 1.")
  arguments.index("make_key", "seed", seed)
  return jax.random.key(seed, impl=_THREEFRY)


def modality_key(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
  """The key of a modality: `key` folded with the CRC-32 of its name, the same in every process."""
  if not isinstance(name, str):
    raise TypeError(f"modality_key: name={name!r} must be the name of a modality.")
  key = arguments.key("modality_key", key)
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _threefry(key, counters):
  """The two words of Threefry-2x32 with 20 rounds (Salmon et al. 2011), as in `jax.random`.

  Unrolled. On CPUs JAX's version is not, which takes three times as long, and drawing noise is
  nearly the whole cost of a step beside the network.
  """
  schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
  a, b = counters[0] + key[0], counters[1] + key[1]
  for group in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
      a = a + b
      b = (b << np.uint32(turn) | b >> np.uint32(32 - turn)) ^ a
    a = a + schedule[(group + 1) % 3]
    b = b + schedule[(group + 2) % 3] + np.uint32(group + 1)
  return a, b


def normal_like(
  key: PRNGKeyArray, name: str, x: Shaped[Array | np.ndarray, "batch ..."]
) -> Float[Array, "batch ..."]:
  """Draws standard normal noise for one modality, in the shape and type of `x`.

  Each number is a function of the key, the name, its row and its index in the row, so that a row's
  noise does not depend on how many rows there are, nor on how devices share them. It has the
  resolution of float32, also where `x` is float64: 2^24 values, none beyond 5.4. For an `x` of
  integers or booleans it is float32.

  The numbers come from Threefry, whatever the kind of the key. Keys of the kinds `rbg` and
  `unsafe_rbg` have four words, of which the first two are used; those of an `rbg` key are the words
  of the Threefry key with the same seed, and so is the noise.
  """
  x = jnp.asarray(arguments.floating("normal_like", "x", x))
  if not x.ndim:
    raise ValueError("normal_like: x is a scalar; its first axis must be the rows.")
  shape = (x.shape[0], math.prod(x.shape[1:]))
  words = jax.random.key_data(modality_key(key, name))
  row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
  if jax.random.key_impl(key) == _OF_ROWS:
    row = _rows(words, row)
  a, b = _threefry(words, (row, column))
  # Odd multiples of 2^-24 inside (-1, 1): never an end, where the normal would be infinite.
  odd = 2 * ((a ^ b) >> np.uint32(8)).astype(jnp.int32) - (2**24 - 1)
  normal = math.sqrt(2) * jax.lax.erf_inv(odd.astype(jnp.float32) * 2.0**-24)
  return normal.astype(x.dtype).reshape(x.shape)


# --- Parts of a batch ---

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


def key_of_rows(key: PRNGKeyArray, first: int | Int[Array, ""], step: int = 1) -> PRNGKeyArray:
  """Returns a key for some rows of a batch, which draws what `key` draws there for the whole batch.

  This holds bit for bit for all of `jax.random` that draws each number by itself (`bits`,
  `uniform`, `normal`, `randint`, `bernoulli`, ..., but no permutation or choice), where the first
  axis of the shape is the rows and the whole batch has fewer than 2^32 numbers, since the number at
  index i comes from the counter i. It also holds for `normal_like`. Keys derived from it (`split`,
  `fold_in`) are for these rows, too.

  Args:
    key: a Threefry key (see `make_key`). What other kinds draw for a row is not a function of its
      index alone.
    first: the index in the batch of the first row.
    step: the difference of index from one row to the next.

  Raises:
    TypeError: `key` is not a Threefry key, or `first` or `step` is not an integer.
    ValueError: `first` or `step` is negative.
  """
  arguments.key("key_of_rows", key)
  if jax.random.key_impl(key) != _THREEFRY:
    raise TypeError(
      f"key_of_rows: the key is of the kind {str(jax.random.key_impl(key))!r}, but only Threefry"
      " draws the same for a row wherever it lies. Make the key with multitime.make_key(seed)."
    )
  for argument, value in (("first", first), ("step", step)):
    index = arguments.index("key_of_rows", argument, value)
    if not isinstance(index, jax.core.Tracer) and not 0 <= int(index) < 2**32:
      raise ValueError(f"key_of_rows: {argument}={value} must be from 0 to 2^32 - 1.")
  rows = jnp.stack([jnp.asarray(n, jnp.uint32) for n in (first, step)])
  return jax.random.wrap_key_data(jnp.concatenate([jax.random.key_data(key), rows]), impl=_OF_ROWS)


def _rows(words, row):
  """Returns indices in the batch; a key's words are Threefry's two, the first row, the step."""
  return words[2] + words[3] * row


def _bits_of_rows(words, width, shape):
  """`jax.random.bits`, with the numbers of an array counted from the first of the whole batch."""
  flat = (shape[0] if shape else 1, math.prod(shape[1:]))
  row, column = (jax.lax.broadcasted_iota(jnp.uint32, flat, axis) for axis in (0, 1))
  row = _rows(words, row) if shape else row
  counter = row * np.uint32(flat[1]) + column
  a, b = _threefry(words, (jnp.zeros_like(counter), counter))
  if width == 64:
    bits = a.astype(jnp.uint64) << np.uint64(32) | b.astype(jnp.uint64)
  else:
    bits = (a ^ b).astype(f"uint{width}")
  return bits.reshape(shape)


def _children_of_rows(words, children):
  """Returns Threefry's keys, each followed by the parent's first row and step."""
  data = jax.random.key_data(children)
  rows = jnp.broadcast_to(words[2:], (*data.shape[:-1], 2))
  return jnp.concatenate([data, rows], axis=-1)


def _threefry_key(words):
  return jax.random.wrap_key_data(words[:2], impl=_THREEFRY)


_OF_ROWS = jax.extend.random.define_prng_impl(
  key_shape=(4,),
  seed=lambda seed: jnp.concatenate(
    [jax.random.key_data(make_key(seed)), jnp.array([0, 1], jnp.uint32)]
  ),
  split=lambda words, shape: _children_of_rows(
    words, jax.random.split(_threefry_key(words), shape)
  ),
  random_bits=_bits_of_rows,
  fold_in=lambda words, data: _children_of_rows(
    words, jax.random.fold_in(_threefry_key(words), data)
  ),
  name="threefry2x32_of_rows",
  tag="rows",
)


# --- Times in training ---


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
  _check_t_min("importance_time", schedule, t_min)

  def draw_t(key, batch_size):
    least, most = schedule.log_snr(jnp.array([schedule.t_max, t_min]))
    fraction = jax.random.uniform(key, (batch_size,))
    t = jnp.clip(schedule.time(least + (most - least) * fraction), t_min, schedule.t_max)
    slope = (schedule.diffusion(t) / schedule.sigma(t)) ** 2
    return t, (most - least) / (slope * (schedule.t_max - t_min))

  return draw_t


def _check_t_min(where, schedule, t_min):
  schedules.check(where, schedule, one=True)
  arguments.scalar(where, "t_min", t_min)
  if not 0 < t_min < schedule.t_max:
    raise ValueError(
      f"{where}: t_min={t_min} must be above 0, where log_snr is infinite, and below the schedule's"
      f" t_max, {schedule.t_max}."
    )


# The number of bits of an int32 that hold a subset of modalities.
_SUBSET_BITS = 30


def _check_draw(where, key, batch_size, names, draw_t, present):
  """Returns the names as a tuple, and for each which examples have it, in one row if all do."""
  arguments.key(where, key)
  arguments.integer(where, "batch_size", batch_size, 1)
  names = arguments.names(where, "names", names)
  if not names or len(set(names)) < len(names):
    raise ValueError(f"{where}: names={names} must have one name or more, each once.")
  if draw_t is not None:
    arguments.function(where, "draw_t", draw_t)
  if present is None:
    return names, dict.fromkeys(names, jnp.ones(1, bool))
  present = arguments.modalities(where, "present", present)
  arguments.same_modalities(where, "present", present, "names", names)
  if {len(value) for value in present.values()} - {1, batch_size}:
    raise ValueError(f"{where}: present needs one value for each of batch_size={batch_size} rows.")
  return names, {name: value.astype(bool) for name, value in present.items()}


def _draw_times(where, draw_t, key, batch_size):
  drawn = (draw_t or uniform_time())(key, batch_size)
  if not isinstance(drawn, tuple | list) or [jnp.shape(x) for x in drawn] != 2 * [(batch_size,)]:
    shapes = jax.tree.map(jnp.shape, drawn)
    raise ValueError(
      f"{where}: draw_t must return a pair of times and weights, of shape ({batch_size},) each, but"
      f" what it returns has the shapes {shapes}."
    )
  t, weight = drawn
  arguments.number(where, "a time drawn by draw_t", t, 0, 1, rows=True)
  arguments.number(where, "a weight drawn by draw_t", weight, 0, rows=True)
  return drawn


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
    name: _draw_times("draw_independent", draw_t, modality_key(key, name), batch_size)
    for name in names
  }
  there = {name: jnp.broadcast_to(some, (batch_size,)) for name, some in there.items()}
  t = {name: jnp.where(there[name], draw[0], 1.0) for name, draw in draws.items()}
  weights = [jnp.where(there[name], draw[1], 1.0) for name, draw in draws.items()]
  return Draw(t, there, functools.reduce(jnp.multiply, weights))


# --- Paths in sampling ---


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


def uniform_grid(num_steps: int) -> Float[Array, " points"]:
  """Times 1, 1 - 1/N, ..., 0; the last steps are far too long in log_snr for multistep methods.

  Raises:
    ValueError: `num_steps` is not an integer of at least 1.
  """
  arguments.integer("uniform_grid", "num_steps", num_steps, 1)
  return jnp.asarray(1 - np.arange(num_steps + 1) / num_steps)


def power_grid(num_steps: int, power: float = 2.0) -> Float[Array, " points"]:
  """Times (1 - i/N)^power, i = 0..N: denser towards 0, where log_snr changes fastest.

  Args:
    num_steps: N.
    power: above 0, and usually at least 1. 2 makes the first time above 0 equal 1/N^2, which for
      `VPLinear` leaves a fraction of noise of about beta_min / N^2 in variance.

  Returns:
    N + 1 falling times.

  Raises:
    ValueError: `num_steps` is not an integer of at least 1, or `power` not above 0.
  """
  arguments.integer("power_grid", "num_steps", num_steps, 1)
  power = arguments.scalar("power_grid", "power", power, above=0)
  return jnp.asarray((1 - np.arange(num_steps + 1) / num_steps) ** power)


def _inner_grid(where, schedule, num_steps, t_min, level_of, log_snr_of):
  """Returns 1, then equal steps of a function of log_snr from `t_max` to `t_min`, then 0.

  If there are two steps the first leads from 1 to `t_min`; a single one leads to 0.
  """
  arguments.integer(where, "num_steps", num_steps, 1)
  _check_t_min(where, schedule, t_min)
  if num_steps == 1:
    return uniform_grid(1)
  start = [1.0] if schedule.t_max < 1 else []
  ends = level_of(schedule.log_snr(jnp.array([schedule.t_max, t_min])))
  levels = jnp.linspace(ends[0], ends[1], num_steps - len(start))
  inner = schedule.time(log_snr_of(levels)).at[0].set(schedule.t_max).at[-1].set(t_min)
  return jnp.concatenate([jnp.array(start, inner.dtype), inner, jnp.zeros(1, inner.dtype)])


def log_snr_grid(schedule: Any, num_steps: int, *, t_min: float = 1e-3) -> Float[Array, " points"]:
  """Times 1, then equal steps in log_snr down to t_min, then 0; arguments as `edm_grid`."""
  same = lambda log_snr: log_snr  # noqa: E731
  return _inner_grid("log_snr_grid", schedule, num_steps, t_min, same, same)


def edm_grid(
  schedule: Any, num_steps: int, *, rho: float = 7.0, t_min: float = 1e-3
) -> Float[Array, " points"]:
  """Equal steps in (sigma / alpha)^(1 / rho) from 1 to t_min, then 0 (Karras et al. 2022, Eq. 5).

  Args:
    schedule: one schedule. Equal steps start at its `t_max`; if it is below 1, the first step leads
      from 1 to there.
    num_steps: N. If it is 2 the first step leads from 1 to t_min; a single one from 1 to 0.
    rho: above 0; the larger, the denser towards 0.
    t_min: the last time above 0, below `t_max`.

  Returns:
    N + 1 falling times.

  Raises:
    ValueError: `num_steps` is not an integer of at least 1, `rho` not above 0, or `t_min` not in
      (0, t_max).
  """
  rho = arguments.scalar("edm_grid", "rho", rho, above=0)
  return _inner_grid(
    "edm_grid",
    schedule,
    num_steps,
    t_min,
    lambda log_snr: jnp.exp(-0.5 * log_snr / rho),
    lambda level: -2.0 * rho * jnp.log(level),
  )


def reverse(path: Path) -> Path:
  """Returns the path walked backwards: a falling one becomes the upward path that encodes."""
  if not isinstance(path, Path):
    raise TypeError(f"reverse: path={path!r} must be a Path.")
  return Path({name: times[::-1] for name, times in path.times.items()})


def _grid(where, num_steps, grid):
  arguments.integer(where, "num_steps", num_steps, 1)
  if grid is None:
    return power_grid(num_steps)
  grid = arguments.floating(where, "grid", grid)
  if grid.shape != (num_steps + 1,):
    raise ValueError(
      f"{where}: grid has shape {grid.shape}, but num_steps={num_steps} needs"
      f" {num_steps + 1} times."
    )
  if not isinstance(grid, jax.core.Tracer) and np.any(np.diff(np.asarray(grid)) > 0):
    raise ValueError(f"{where}: grid must fall; for a path that rises use multitime.reverse.")
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
    grid: the num_steps + 1 times of each modality, from 1 to 0; `power_grid` if None.

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
    grid: the num_steps + 1 times of each modality, from 1 to 0; `power_grid` if None.

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
