"""Checks of the arguments of the library's public functions.

Each takes the name of the function and of the argument, for the message, and returns the value in
the form that the function computes with. Values are checked where they are concrete; inside a
transformation of JAX only shapes and types can be.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import inspect
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray
import numpy as np

from mmdiff_jax import config_checks


def nearest(name: str, names: Iterable[str]) -> str:
  """The end of a message about a name that does not exist: the nearest name, and all names."""
  names = sorted(names)
  return (
    f"the nearest is {config_checks.nearest(name, names)!r}, of {names}"
    if names
    else "there is none"
  )


def names(where: str, argument: str, value: Any) -> tuple[str, ...]:
  """Names of modalities, as a tuple.

  Raises:
    TypeError: one string, which would be read as a sequence of letters, or no sequence of strings.
  """
  if isinstance(value, str):
    raise TypeError(
      f"{where}: {argument}={value!r} is one string; give a sequence of names, such as"
      f" ({value!r},)."
    )
  try:
    value = tuple(value)  # Once, for an iterator is empty afterwards.
  except TypeError:
    value = (None,)
  if not all(isinstance(name, str) for name in value):
    raise TypeError(f"{where}: {argument} must be a sequence of names of modalities.")
  return tuple(map(str, value))


def subset(where: str, argument: str, value: Iterable[Any], other: str, of: Iterable[str]) -> None:
  """Checks names against those that there are, which are those of another argument.

  Raises:
    ValueError: one that does not exist; says which is the nearest.
  """
  for name in value:
    if name not in of:
      raise ValueError(
        f"{where}: {argument} has {name!r}, which is not among {other}: {nearest(str(name), of)}."
      )


def integer(where: str, argument: str, value: Any, least: int = 0) -> int:
  """An integer of at least `least`.

  Raises:
    TypeError: no integer, or one that JAX traces.
    ValueError: too small.
  """
  try:
    number = operator.index(value)
  except TypeError:
    number = None
  if number is None or isinstance(value, bool | np.bool_):
    raise TypeError(f"{where}: {argument}={_short(value)} must be an integer, at least {least}.")
  if number < least:
    raise ValueError(f"{where}: {argument}={number} must be at least {least}.")
  return number


def index(where: str, argument: str, value: Any) -> Array | np.ndarray:
  """An integer that JAX may trace, as an array.

  Raises:
    TypeError: no integer.
  """
  value = array(where, argument, value)
  if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
    raise TypeError(f"{where}: {argument}={_short(value)} must be an integer.")
  return value


def number(
  where: str,
  argument: str,
  value: Any,
  least: int | float = -math.inf,
  most: int | float = math.inf,
  *,
  above: int | float | None = None,
  rows: bool = False,
  infinite: bool = False,
) -> Any:
  """A number, which may be an array without axes, also one that JAX traces.

  Args:
    where: the function, for the message.
    argument: its argument, for the message.
    value: the number.
    least: the smallest value.
    most: the largest value.
    above: a bound that the value must exceed, in place of `least`.
    rows: whether it may have axes, such as one for the rows.
    infinite: whether it may be infinite.

  Returns:
    The value: a Python number as a float, all else as an array.

  Raises:
    TypeError: no number.
    ValueError: NaN, infinite, or outside the bounds.
  """
  numbers = array(where, argument, value)
  if numbers.dtype == bool or (numbers.ndim and not rows):
    raise TypeError(f"{where}: {argument}={_short(value)} must be a number.")
  numbers = 1.0 * (jnp.asarray(numbers) if numbers.ndim else numbers)
  if isinstance(numbers, jax.core.Tracer):
    return numbers
  values = np.asarray(numbers, np.float64)
  inside = (values > above) if above is not None else (values >= least)
  sound = ~np.isnan(values) if infinite else np.isfinite(values)
  if not np.all(sound & inside & (values <= most)):
    bounds = ["no NaN" if infinite else "finite"]
    bounds += [f"above {above:g}"] if above is not None else []
    bounds += [f"at least {least:g}"] if above is None and least > -math.inf else []
    bounds += [f"at most {most:g}"] if most < math.inf else []
    raise ValueError(f"{where}: {argument}={value!r} must be {' and '.join(bounds)}.")
  one = isinstance(numbers, np.ndarray | np.generic) and not numbers.ndim
  return float(numbers) if one else numbers


def interval(where: str, argument: str, value: Any) -> None:
  """Checks a pair of numbers, the lower one first.

  Raises:
    TypeError: no pair of numbers.
    ValueError: the first is above the second.
  """
  pair = sequence(where, argument, value)
  if len(pair) != 2:
    raise TypeError(f"{where}: {argument}={value!r} must be a pair of numbers.")
  low, high = (number(where, f"an end of {argument}", end, infinite=True) for end in pair)
  if not isinstance(low, jax.core.Tracer) and not isinstance(high, jax.core.Tracer) and low > high:
    raise ValueError(f"{where}: {argument}={value!r} must have the lower number first.")


def sequence(where: str, argument: str, value: Any) -> Sequence[Any]:
  """A sequence that is no string; an array of one axis becomes one of its numbers.

  Raises:
    TypeError: anything else.
  """
  if getattr(value, "ndim", 0) == 1:
    return tuple(value)
  if isinstance(value, str) or not isinstance(value, Sequence):
    raise TypeError(f"{where}: {argument}={_short(value)} must be a sequence, such as a tuple.")
  return value


def broadcasts(where: str, argument: str, shape: Sequence[int], to: Sequence[int]) -> None:
  """Checks that an array of one shape broadcasts to another shape.

  Raises:
    ValueError: it does not.
  """
  try:
    fits = jnp.broadcast_shapes(tuple(shape), tuple(to)) == tuple(to)
  except ValueError:
    fits = False
  if not fits:
    hint = f" Add an axis, as in {argument}[..., None]." * (len(shape) < len(to))
    raise ValueError(
      f"{where}: {argument} has shape {tuple(shape)}, which does not broadcast to"
      f" {tuple(to)}.{hint}"
    )


def scalar(where: str, argument: str, value: Any, *bounds: Any, above: Any = None) -> float:
  """One number that is known while Python runs; bounds as of `number`.

  Raises:
    TypeError: an array of several, one that is traced, or no number.
    ValueError: NaN, infinite, or outside the bounds.
  """
  if isinstance(value, jax.core.Tracer):
    raise TypeError(f"{where}: {argument}={value!r} must be a number that is not traced by JAX.")
  return float(number(where, argument, value, *bounds, above=above))


def array(where: str, argument: str, value: Any) -> Array | np.ndarray:
  """An array of floats, integers or booleans: one of JAX as it is, all else as one of NumPy.

  Raises:
    TypeError: no numbers.
  """
  dtype = getattr(value, "dtype", None)
  if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise TypeError(f"{where}: {argument} is a random key; it must be numbers.")
  try:
    numbers = value if isinstance(value, jax.Array) else np.asarray(value)
  except ValueError as error:  # Nested sequences of different lengths.
    raise TypeError(f"{where}: {argument}={value!r} must be numbers.") from error
  kinds = (jnp.bool_, jnp.integer, jnp.floating)
  if not any(jnp.issubdtype(numbers.dtype, kind) for kind in kinds):
    raise TypeError(f"{where}: {argument}={value!r} must be real numbers, not {numbers.dtype}.")
  return numbers


def floating(where: str, argument: str, value: Any) -> Array | np.ndarray:
  """As `array`, but with integers and booleans as floats, of the precision that JAX has.

  Arrays of NumPy stay concrete where `jax.jit` traces.
  """
  value = array(where, argument, value)
  floats = jnp.issubdtype(value.dtype, jnp.floating)
  return value.astype(jax.dtypes.canonicalize_dtype(value.dtype if floats else float))


def modalities(where: str, argument: str, value: Any, *, floats: bool = False) -> dict[str, Array]:
  """A dict of arrays by name of modality, each with a first axis of rows, equally many in all.

  With `floats`, integers and booleans become floats.

  Raises:
    TypeError: no mapping, a name that is no string, or a value that is no array of numbers.
    ValueError: an array without axes, or different numbers of rows.
  """
  if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
    raise TypeError(
      f"{where}: {argument} must be a dict of arrays by name of modality, such as"
      f' {{"image": ...}}, not {_short(value)}.'
    )
  read = floating if floats else array
  arrays = {name: jnp.asarray(read(where, f"{argument}[{name!r}]", x)) for name, x in value.items()}
  rows = {name: x.shape[0] if x.ndim else None for name, x in arrays.items()}
  if None in rows.values() or len(set(rows.values())) > 1:
    raise ValueError(
      f"{where}: all of {argument} need a first axis of as many rows, but their shapes are"
      f" { {name: x.shape for name, x in arrays.items()} }."
    )
  return arrays


def shapes(where: str, argument: str, value: Any) -> dict[str, tuple[int, ...]]:
  """A dict of shapes by name of modality.

  Raises:
    TypeError: no mapping from names to sequences of integers.
    ValueError: a negative size.
  """
  if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
    raise TypeError(
      f"{where}: {argument} must be a dict of shapes by name of modality, such as"
      f' {{"image": (28, 28, 1)}}, not {_short(value)}.'
    )
  for name, shape in value.items():
    if isinstance(shape, str) or not isinstance(shape, Sequence):
      raise TypeError(f"{where}: {argument}[{name!r}]={shape!r} must be a tuple of integers.")
  return {
    name: tuple(integer(where, f"{argument}[{name!r}]", size) for size in shape)
    for name, shape in value.items()
  }


def same_modalities(where: str, argument: str, value: Any, other: str, of: Any) -> None:
  """Checks that two dicts have the same modalities.

  Raises:
    TypeError: the first is no dict.
    ValueError: they differ.
  """
  if not isinstance(value, Mapping):
    raise TypeError(f"{where}: {argument} must be a dict by modality, not {_short(value)}.")
  if set(value) != set(of):
    raise ValueError(
      f"{where}: {argument} has modalities {list(value)} but {other} has {list(of)}; they must be"
      " the same. An absent modality may be left out of both."
    )


def key(where: str, value: Any, argument: str = "key") -> PRNGKeyArray:
  """A key of JAX.

  Raises:
    TypeError: a seed, several keys, or anything else that is no key.
  """
  dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
  raw = dtype == jnp.uint32 and shape in ((2,), (4,))  # As `jax.random.PRNGKey` makes it.
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not raw and not (typed and shape == ()):
    several = " For several keys use jax.vmap." * bool(typed and shape)
    raise TypeError(
      f"{where}: {argument} must be a key of jax.random, not {_short(value)}.{several}"
    )
  return value


def function(where: str, argument: str, value: Any) -> Partial:
  """A function as a `Partial`, whose arrays are its leaves.

  An object that is a pytree and can be called, such as a module of flax NNX or equinox, or a method
  of one, becomes an argument of the `Partial`: `jax.jit` would otherwise compare it by identity and
  not see that its parameters have changed.

  Raises:
    TypeError: it cannot be called.
  """
  if not callable(value) or inspect.isclass(value):
    raise TypeError(f"{where}: {argument} must be a function, not {_short(value)}.")
  if isinstance(value, functools.partial):
    # A `Partial` is one, too. Where what is bound is no array it stays static, as it was.
    leaves = jax.tree.leaves((value.args, value.keywords))
    if isinstance(value, Partial) or all(
      isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves
    ):
      inner = function(where, argument, value.func)
      return Partial(inner.func, *inner.args, *value.args, **inner.keywords, **value.keywords)
  if _is_node(value):
    return Partial(_call, value)
  owner = getattr(value, "__self__", None)
  if inspect.ismethod(value) and _is_node(owner):
    return Partial(value.__func__, owner)
  return Partial(value)


def _call(function, *args):
  return function(*args)


def _is_node(value):
  """Whether JAX takes it apart: a leaf is its own only leaf."""
  return not jax.tree_util.all_leaves([value])


def _short(value):
  if inspect.isclass(value):
    return f"the class {value.__name__}"
  if callable(value):
    return f"the function {getattr(value, '__name__', value)}"
  shape = getattr(value, "shape", None)
  return f"{value!r}" if shape is None else f"an array of shape {shape}, {value.dtype}"
