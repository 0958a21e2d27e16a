"""Noise that depends on its key, modality and row alone.

Each modality has its own key, folded from its name, and each row its own noise. So the noise of a
row depends neither on the other rows, nor on the size of the batch, nor on which other modalities
there are, nor on the number of devices.
"""

import math
import zlib

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped
import numpy as np

from mmdiff_jax import arguments

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
  arguments.index("make_key", "seed", seed, -(2**31), 2**32 - 1)
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
    ValueError: `first` or `step` is negative, or has more than 32 bits.
  """
  arguments.key("key_of_rows", key)
  if jax.random.key_impl(key) != _THREEFRY:
    raise TypeError(
      f"key_of_rows: the key is of the kind {str(jax.random.key_impl(key))!r}, but only Threefry"
      " draws the same for a row wherever it lies. Make the key with noise.make_key(seed)."
    )
  for argument, value in (("first", first), ("step", step)):
    arguments.index("key_of_rows", argument, value, 0, 2**32 - 1)
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
