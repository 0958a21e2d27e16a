"""Multi-modal examples out of single-modal sources, by index alone, in NumPy.

An example is a tuple of indices, one into each source, of items of one class; which ones belong
together is drawn by a seed. `Column` then reads a modality of such examples when it is asked for
them, so no item is ever stored twice, neither on disk nor in memory.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
from typing import Any

from jaxtyping import Int
import numpy as np

from mmdiff_jax.errors import UserError

# The splits of a data set, each with a number for seeds. "validation" is held out of "train".
SPLITS = {"train": 0, "test": 1, "validation": 2}

_CHUNK = 1000  # Examples read at once.
_HELD_OUT_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """One modality of all examples, made when its rows are read; it is read like an array.

  Attributes:
    index: [n, ...]; `index[i]` determines example i, such as its row in a source.
    read: `index[rows] -> [len(rows), ...]`, the model inputs, which depend on `index` alone.
  """

  index: Int[np.ndarray, "n ..."]
  read: Callable[[np.ndarray], np.ndarray]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array of all examples."""
    return (len(self), *self[:1].shape[1:])

  @property
  def dtype(self) -> np.dtype:
    """Type of the model inputs."""
    return self[:1].dtype

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, rows: Any) -> np.ndarray:
    """Returns the model inputs of rows, which are selected as those of an array."""
    index = self.index[rows]
    item = self.index.shape[1:]
    lead = index.shape[: index.ndim - len(item)]
    view = self.read(index.reshape(-1, *item))
    return view.reshape(lead + view.shape[1:])

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self[:], dtype)


def part_rows(
  split: str,
  labels: Int[np.ndarray, " n"],
  validation: float,
  *,
  groups: Int[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " rows"]:
  """The rows of a source that a split of a data set is made of.

  Which rows are held out depends on the arguments alone, so it is the same in training and in
  evaluation, in every process.

  Args:
    split: "test" has all rows of its source. "validation" has the rows that are held out of the
      training source, "train" the others.
    labels: classes of the rows, from which rows are held out in the same proportion.
    validation: fraction of the groups that is held out; with 0 "train" has all rows.
    groups: numbers; rows with the same number are in the same part. None is each row by itself.

  Returns:
    The rows, in order.

  Raises:
    UserError: a class would be missing in one of the parts.
  """
  if split == "test" or not validation:
    return np.arange(len(labels))
  groups = np.arange(len(labels)) if groups is None else groups
  _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
  held_out = np.zeros(len(first), bool)
  rng = np.random.default_rng(_HELD_OUT_SEED)
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels[first] == label))
    count = round(validation * len(members))
    if not 0 < count < len(members):
      raise UserError(
        f"config.data.validation is {validation:g}, which holds {count} of the {len(members)} items"
        f" of class {label} out of training: both parts need some of each class. Choose another"
        " fraction."
      )
    held_out[members[:count]] = True
  return np.flatnonzero(held_out[inverse] == (split == "validation"))


def smallest(labels: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " classes"]:
  """Items of each class in the source that has fewest of it.

  Args:
    labels: the classes of each source's items, from 0.
  """
  classes = 1 + max(int(source.max()) for source in labels)
  return np.min([np.bincount(source, minlength=classes) for source in labels], axis=0)


def pair(
  labels: Sequence[Int[np.ndarray, " _"]],
  counts: int | Int[np.ndarray, " classes"],
  *,
  seed: int | Sequence[int],
) -> Int[np.ndarray, "n sources"]:
  """Tuples of items of equal class, one item of each source.

  In each class every source is walked through in one random order after another until there are as
  many tuples as asked for. So the items of a class are used equally often, give or take one, and
  `counts = 20 * smallest(labels)` are the MLD paper's 20 permutations of a class in which the
  longer source is cut to the shorter; what is cut is merely next in line instead of lost.

  Args:
    labels: the classes of each source's items, from 0.
    counts: tuples of each class, one number for all or one for each.
    seed: of the orders; use another one for each split.

  Returns:
    Indices into the sources, [sum of counts, sources], in random order.

  Raises:
    ValueError: a class is asked for that a source lacks.
  """
  present = smallest(labels)
  counts = np.broadcast_to(counts, present.shape)
  if missing := np.flatnonzero((present == 0) & (counts > 0)).tolist():
    raise ValueError(
      f"cannot pair the classes {missing}: one of the {len(labels)} sources lacks them"
    )
  rng = np.random.default_rng(seed)
  tuples = np.concatenate(
    [
      np.stack([_line(np.flatnonzero(source == c), count, rng) for source in labels], axis=1)
      for c, count in enumerate(counts.tolist())
    ]
  )
  return rng.permutation(tuples)


def _line(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """`count` items: one random order of them all after another."""
  if count == 0:
    return items[:0]
  orders = [rng.permutation(items) for _ in range(-(-count // len(items)))]
  return np.concatenate(orders)[:count]


def group(
  labels: Int[np.ndarray, " _"], size: int, count: int, *, seed: int | Sequence[int]
) -> Int[np.ndarray, "n size"]:
  """Tuples of different items of equal class, all of one source.

  In each class the items stand in a circle of random order and a tuple holds those at some random
  distances from a place; when all places have been used a new circle is drawn. So each member of
  the tuples sees the items of a class equally often, give or take one.

  Args:
    labels: the classes of the source's items, from 0.
    size: items in a tuple.
    count: tuples of each class.
    seed: of the orders; use another one for each split.

  Returns:
    Indices into the source, [classes * count, size], in random order; no index is twice in a row.

  Raises:
    ValueError: a class has fewer items than a tuple.
  """
  rng = np.random.default_rng(seed)
  tuples = []
  for c, items in enumerate(np.bincount(labels)):
    if items < size:
      raise ValueError(f"class {c} has {items} items, too few for tuples of {size} different ones")
    members = np.flatnonzero(labels == c)
    circles = []
    for _ in range(-(-count // items)):
      distances = rng.choice(items, size, replace=False)
      circles.append(rng.permutation(members)[(np.arange(items)[:, None] + distances) % items])
    tuples.append(np.concatenate(circles)[:count])
  return rng.permutation(np.concatenate(tuples))


def shared(train: Column | np.ndarray, test: Column | np.ndarray) -> Int[np.ndarray, " _"]:
  """Which examples of the tests are in training, too, in one modality and bit for bit.

  Args:
    train: a modality of training, [n, ...].
    test: the same one of the tests, [m, ...].

  Returns:
    Rows of `test`, in order.
  """
  return np.flatnonzero(np.isin(_digests(test), _digests(train)))


def _digests(items: Column | np.ndarray) -> Int[np.ndarray, " n"]:
  inverse = slice(None)
  if isinstance(items, Column):
    # Inputs that many examples share are read once.
    index, inverse = np.unique(items.index, axis=0, return_inverse=True)
    items = dataclasses.replace(items, index=index)
  chunks = (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
  rows = (np.ascontiguousarray(row) for chunk in chunks for row in chunk)
  digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
  return np.frombuffer(digests, np.int64)[inverse]
