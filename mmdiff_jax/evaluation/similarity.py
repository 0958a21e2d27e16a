"""SIM: how alike modalities are that were generated together, against ones generated alone.

Modalities are compared in a space that all of them have and no generator was trained on: the
probabilities that a classifier of each gives to the classes (`classifiers.probabilities`). Their
cosine is 1 where both say the same, and 0 where they name different classes with certainty. What
else the data set can tell of one and the other, as whether a caption says the truth about how thick
an image's lines are, is 1 or 0, over the samples that say something of it in every way of making.

What is generated together and what is generated alone start from the same noise and the same
prompt, so that differences are taken sample by sample: their standard error is far below that of a
difference of means.
"""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np


def cosine(
  a: Float[np.ndarray, "samples size"], b: Float[np.ndarray, "samples size"]
) -> Float[np.ndarray, " samples"]:
  """Cosine of the angle between rows; 0 where one of them is 0 and there is no angle."""
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return (a * b).sum(-1) / np.where(norms == 0, 1, norms)


def estimate(values: Sequence[float] | Float[np.ndarray, " samples"]) -> dict[str, float]:
  """Mean and its standard error (sample deviation over the root of their number), `mean`, `error`.

  Raises:
    ValueError: there are fewer than two values.
  """
  if len(values) < 2:
    raise ValueError(
      f"similarity.estimate: a standard error needs at least 2 values, got {len(values)}."
    )
  return {
    "mean": float(np.mean(values)),
    "error": float(np.std(values, ddof=1) / len(values) ** 0.5),
  }


def compared(
  together: Float[np.ndarray, " samples"],
  alone: Float[np.ndarray, " samples"],
  shuffled: Float[np.ndarray, " samples"] | None = None,
) -> dict[str, dict[str, float]]:
  """Similarities of one pair of modalities, and their differences sample by sample.

  Args:
    together: generated together.
    alone: each alone, from the same prompt and the same noise.
    shuffled: together, but each row reads of the other modality what is another row's; or None.

  Returns:
    Estimates: `together`, `alone`, `shuffled`, `together - alone`, `shuffled - alone`.
  """
  found = {"together": together, "alone": alone}
  if shuffled is not None:
    found["shuffled"] = shuffled
  differences = {f"{name} - alone": x - alone for name, x in found.items() if name != "alone"}
  return {name: estimate(x) for name, x in (found | differences).items()}
