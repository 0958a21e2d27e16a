"""Checks of the arguments of the library's public functions.

Each check takes the name of the function and of the argument, for the message, and returns the
value in the form that the function computes with. Values are checked where they are concrete;
inside a transformation of JAX only shapes and types can be.
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
  """Returns the end of a message about an unknown name: the nearest valid name, and all of them."""
  names = sorted(names)
  return (
    f"the nearest is {config_checks.nearest(name, names)!r}, of {names}"
    if names
    else "there is none"
  )


def names(where: str, argument: str, value: Any) -> tuple[str, ...]:
  """Returns names of modalities as a tuple.

  Raises:
    TypeError: the value is a single string, which would be read as a sequence of letters, or is not
      a sequence of strings.
    ValueError: a name is there twice.
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
  for name in value:
    if value.count(name) > 1:
      raise ValueError(f"{where}: {argument}={value} has {name!r} twice.")
  return tuple(map(str, value))


def subset(where: str, argument: str, value: Iterable[Any], other: str, of: Iterable[str]) -> None:
  """Checks that all names of one argument are among those of another.

  Raises:
    ValueError: a name is not among them; the message gives the nearest one.
  """
  for name in value:
    if name not in of:
      raise ValueError(
        f"{where}: {argument} has {name!r}, which is not among {other}: {nearest(str(name), of)}."
      )


def integer(where: str, argument: str, value: Any, least: int = 0) -> int:
  """Returns an integer of at least `least`.

  Raises:
    TypeError: the value is not an integer, or is traced by JAX.
    ValueError: it is too small.
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


def index(where: str, argument: str, value: Any, least: int, most: int) -> Array | np.ndarray:
  """Returns an integer, which JAX may trace, as an array.

  Raises:
    TypeError: the value is not an integer.
    ValueError: it is below `least` or above `most`.
  """
  if not isinstance(value, jax.core.Tracer):
    try:
      number = operator.index(value)
    except TypeError:
      number = least  # Refused below.
    if not least <= number <= most:
      raise ValueError(f"{where}: {argument}={value} must be from {least} to {most}.")
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
  """Returns a number, which may be an array without axes, also one that JAX traces.

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
    The value: a Python number as a float, anything else as an array.

  Raises:
    TypeError: the value is not a number.
    ValueError: it is NaN, infinite, or outside the bounds.
  """
  numbers = array(where, argument, value)
  if numbers.dtype == bool or (numbers.ndim and not rows):
    raise TypeError(f"{where}: {argument}={_short(value)} must be a number.")
  numbers = 1.0 * (jnp.asarray(numbers) if numbers.ndim else numbers)
  if isinstance(numbers, jax.core.Tracer):
    return numbers
  values = np.asarray(numbers, np.float64)
  inside = (values > above) if above is not None else (values >= least)
  valid = ~np.isnan(values) if infinite else np.isfinite(values)
  if not np.all(valid & inside & (values <= most)):
    bounds = ["no NaN" if infinite else "finite"]
    bounds += [f"above {above:g}"] if above is not None else []
    bounds += [f"at least {least:g}"] if above is None and least > -math.inf else []
    bounds += [f"at most {most:g}"] if most < math.inf else []
    got = f"{argument}={value!r}"
    if values.ndim:
      got = f"{argument}, an array with values from {values.min():g} to {values.max():g},"
    raise ValueError(f"{where}: {got} must be {' and '.join(bounds)}.")
  is_scalar = isinstance(numbers, np.ndarray | np.generic) and not numbers.ndim
  return float(numbers) if is_scalar else numbers


def interval(where: str, argument: str, value: Any) -> None:
  """Checks a pair of numbers, the lower one first.

  Raises:
    TypeError: the value is not a pair of numbers.
    ValueError: the first is above the second.
  """
  pair = sequence(where, argument, value)
  if len(pair) != 2:
    raise TypeError(f"{where}: {argument}={value!r} must be a pair of numbers.")
  low, high = (number(where, f"an end of {argument}", end, infinite=True) for end in pair)
  if not isinstance(low, jax.core.Tracer) and not isinstance(high, jax.core.Tracer) and low > high:
    raise ValueError(f"{where}: {argument}={value!r} must have the lower number first.")


def sequence(where: str, argument: str, value: Any) -> Sequence[Any]:
  """Returns a sequence that is not a string; an array with one axis becomes a tuple of its numbers.

  Raises:
    TypeError: the value is anything else.
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
  """Returns a single number that is available while Python runs; bounds as in `number`.

  Raises:
    TypeError: the value is an array of several numbers, is traced, or is not a number.
    ValueError: it is NaN, infinite, or outside the bounds.
  """
  if isinstance(value, jax.core.Tracer):
    raise TypeError(f"{where}: {argument}={value!r} must be a number that is not traced by JAX.")
  return float(number(where, argument, value, *bounds, above=above))


def array(where: str, argument: str, value: Any) -> Array | np.ndarray:
  """Returns an array of floats, integers or booleans: a JAX array unchanged, all else as NumPy's.

  Raises:
    TypeError: the value is not made of real numbers.
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
  """As `array`, but integers and booleans become floats, of the precision that JAX is set to.

  NumPy arrays stay concrete while `jax.jit` traces.
  """
  value = array(where, argument, value)
  floats = jnp.issubdtype(value.dtype, jnp.floating)
  return value.astype(jax.dtypes.canonicalize_dtype(value.dtype if floats else float))


def modalities(where: str, argument: str, value: Any, *, floats: bool = False) -> dict[str, Array]:
  """Returns a dict of arrays by modality, each with a first axis of rows, equally many in all.

  With `floats`, integers and booleans become floats.

  Raises:
    TypeError: the value is not a mapping, a name is not a string, or an entry is not an array of
      numbers.
    ValueError: an array has no axes, or the numbers of rows differ.
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
      f"{where}: all arrays of {argument} need a first axis with the same number of rows, but their"
      " shapes are"
      f" { {name: x.shape for name, x in arrays.items()} }."
    )
  return arrays


def shapes(where: str, argument: str, value: Any) -> dict[str, tuple[int, ...]]:
  """Returns a dict of shapes by name of modality.

  Raises:
    TypeError: the value is not a mapping from names to sequences of integers.
    ValueError: a size is negative.
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
    TypeError: the first is not a dict.
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
  """Returns a JAX random key.

  Raises:
    TypeError: the value is a seed, several keys, or anything else that is not a key.
  """
  dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
  raw = dtype == jnp.uint32 and shape in ((2,), (4,))  # As made by `jax.random.PRNGKey`.
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not raw and not (typed and shape == ()):
    several = " For several keys use jax.vmap." * bool(typed and shape)
    raise TypeError(
      f"{where}: {argument} must be a key of jax.random, not {_short(value)}.{several}"
    )
  return value


def function(where: str, argument: str, value: Any) -> Partial:
  """Returns a function as a `Partial`, whose arrays are its leaves.

  A callable object that is a pytree, such as a flax NNX or equinox module, or a method of one,
  becomes an argument of the `Partial`: `jax.jit` would otherwise compare it by identity and not see
  that its parameters have changed.

  Raises:
    TypeError: the value cannot be called.
  """
  if not callable(value) or inspect.isclass(value):
    raise TypeError(f"{where}: {argument} must be a function, not {_short(value)}.")
  if isinstance(value, functools.partial):
    # A `Partial` is one, too. Bound arguments that are not arrays stay static, as they were.
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
  """Returns whether JAX flattens a value: a leaf is its own only leaf."""
  return not jax.tree_util.all_leaves([value])


def _short(value):
  if inspect.isclass(value):
    return f"the class {value.__name__}"
  if callable(value):
    return f"the function {getattr(value, '__name__', value)}"
  shape = getattr(value, "shape", None)
  return f"{value!r}" if shape is None else f"an array of shape {shape}, {value.dtype}"
