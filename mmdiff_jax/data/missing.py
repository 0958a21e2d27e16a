"""Masks of the modalities that examples lack, in NumPy.

Beside an array NAME of a split there may be `NAME_present`, bool [n]: which examples have it. The
values of NAME in the other examples have no meaning. An array without such a mask has no gaps.
"""

from collections.abc import Mapping, Sequence
import zlib

from jaxtyping import Bool
import numpy as np

from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError

Data = Mapping[str, np.ndarray | Column]


def masks(data: Data, names: Sequence[str]) -> dict[str, Bool[np.ndarray, " n"]]:
  """Returns which examples have each modality, {name: bool [n]}; empty if all have all."""
  present = {
    name: np.asarray(data[f"{name}_present"])
    if f"{name}_present" in data
    else np.ones(len(data[name]), bool)
    for name in names
  }
  return {} if all(mask.all() for mask in present.values()) else present


def complete(data: Data, names: Sequence[str]) -> dict[str, np.ndarray | Column]:
  """Selects the examples that have all of some modalities.

  Args:
    data: arrays or columns, and masks.
    names: the modalities.

  Returns:
    The rows of all of `data` for these examples: unchanged if these are all of them, otherwise as
    columns, so that nothing is copied.

  Raises:
    UserError: there is no such example.
  """
  present = masks(data, names)
  if not present:
    return dict(data)
  rows = np.flatnonzero(np.all(list(present.values()), axis=0))
  if not len(rows):
    raise UserError(
      f"No example of the data has {' and '.join(names)}, which is needed here. Add such examples, "
      "lower config.drop_prob, or leave a modality out of config.modalities."
    )
  return {name: Column(rows, x.__getitem__) for name, x in data.items()}


def drop(
  data: Data, names: Sequence[str], prob: float, seed: int
) -> dict[str, np.ndarray | Column]:
  """Removes modalities from examples on purpose.

  Each modality of an example is removed with probability `prob`, independently; if all that it has
  would be removed, one of them, drawn uniformly, stays. This is a property of the example: it
  depends only on the seed, the example's index and the names of the modalities.

  Args:
    data: arrays or columns, and masks; modalities that are missing already stay missing.
    names: the modalities that may be removed.
    prob: the probability, in [0, 1).
    seed: the seed of the choice.

  Returns:
    The data with a mask for each of `names`; unchanged if `prob` is 0.

  Raises:
    UserError: `prob` is outside [0, 1).
  """
  if not 0.0 <= prob < 1.0:
    raise UserError(
      f"config.drop_prob is {prob}; it must be a probability in [0, 1): the fraction of each "
      "modality's examples that are removed from training."
    )
  if not prob:
    return dict(data)
  num = len(data[names[0]])
  present = np.stack([data.get(f"{name}_present", np.ones(num, bool)) for name in names])
  draws = [np.random.default_rng((seed, zlib.crc32(name.encode()))).random(num) for name in names]
  draws = np.where(present, np.stack(draws), -1.0)
  # The modality with the largest draw stays. Its draw is below `prob` only if all are, and then it
  # is uniformly one of them.
  stays = present & ((draws >= prob) | (draws == draws.max(axis=0)))
  return {**data, **{f"{name}_present": mask for name, mask in zip(names, stays, strict=True)}}
