"""Examples that lack modalities: the masks that say so, in NumPy.

Beside an array NAME of a split there may be `NAME_present`, bool [n]: which examples have it. What
stands in NAME where they do not means nothing. An array without such a mask has no gaps.
"""

from collections.abc import Mapping, Sequence
import zlib

from jaxtyping import Bool
import numpy as np

from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError

Data = Mapping[str, np.ndarray | Column]


def masks(data: Data, names: Sequence[str]) -> dict[str, Bool[np.ndarray, " n"]]:
  """Which examples have each modality, {name: bool [n]}; empty if all examples have all."""
  found = {
    name: np.asarray(data[f"{name}_present"])
    if f"{name}_present" in data
    else np.ones(len(data[name]), bool)
    for name in names
  }
  return {} if all(mask.all() for mask in found.values()) else found


def complete(data: Data, names: Sequence[str]) -> dict[str, np.ndarray | Column]:
  """The examples that have all of some modalities.

  Args:
    data: arrays or columns, and masks.
    names: the modalities.

  Returns:
    All that `data` holds, of these examples: as it is if it is all of them, else as columns, so
    that nothing is copied.

  Raises:
    UserError: there is no such example.
  """
  found = masks(data, names)
  if not found:
    return dict(data)
  rows = np.flatnonzero(np.all(list(found.values()), axis=0))
  if not len(rows):
    raise UserError(
      f"No example of the data has {' and '.join(names)}, which is needed here. Add such examples, "
      "lower config.drop_prob, or leave a modality out of config.modalities."
    )
  return {name: Column(rows, x.__getitem__) for name, x in data.items()}


def drop(
  data: Data, names: Sequence[str], prob: float, seed: int
) -> dict[str, np.ndarray | Column]:
  """Takes modalities away from examples on purpose.

  Each modality of an example goes with probability `prob`, independently; where all that it has
  would go, one of them, uniformly, stays. That is a property of the example: it depends on the
  seed, the example's place and the modalities' names alone.

  Args:
    data: arrays or columns, and masks; what lacks already stays away.
    names: the modalities that may go.
    prob: the probability, in [0, 1).
    seed: of the choice.

  Returns:
    The data with a mask for each of `names`; as it is if `prob` is 0.

  Raises:
    UserError: `prob` is outside [0, 1).
  """
  if not 0.0 <= prob < 1.0:
    raise UserError(
      f"config.drop_prob is {prob}; it is a probability in [0, 1): the share of each modality's "
      "examples that training does without."
    )
  if not prob:
    return dict(data)
  num = len(data[names[0]])
  present = np.stack([data.get(f"{name}_present", np.ones(num, bool)) for name in names])
  draws = [np.random.default_rng((seed, zlib.crc32(name.encode()))).random(num) for name in names]
  luck = np.where(present, np.stack(draws), -1.0)
  # The luckiest stays. It would have gone only if all would have, and then it is uniform.
  stays = present & ((luck >= prob) | (luck == luck.max(axis=0)))
  return {**data, **{f"{name}_present": mask for name, mask in zip(names, stays, strict=True)}}
