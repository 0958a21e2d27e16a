"""SIM: how alike modalities are that were generated together, against ones generated alone.

Modalities are compared in a space that all of them have and no generator was trained on: the
probabilities p and q that a classifier of each gives to the classes (`classifiers.probabilities`).
Their similarity is the probability that both name one class,

  sum_c p_c q_c = P(c_a = c_b), c_a ~ p and c_b ~ q independently.                           (1)

Its mean over independent samples is the product of the mean probabilities, however sure the
classifiers are; the cosine, in contrast, is 1 of two that are flat, and rewards blur. What else the
data set can tell of one and the other, as whether a caption says the truth about how thick an
image's lines are, is 1 or 0, over the samples that say something of it in every way of making.

What is generated together and what is generated alone start from the same noise and the same
prompt, so that differences are taken sample by sample: their standard error is far below that of a
difference of means. Samples from one given example are not independent, so that standard errors
are of the sums over given examples.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np


def same_class(
  a: Float[np.ndarray, "samples classes"], b: Float[np.ndarray, "samples classes"]
) -> Float[np.ndarray, " samples"]:
  """Probability (1) that two classifiers name one class, of rows of class probabilities."""
  return (a * b).sum(-1)


def estimate(
  values: Sequence[float] | Float[np.ndarray, " samples"],
  examples: Sequence[int] | Int[np.ndarray, " samples"],
) -> dict[str, float]:
  """Mean and its standard error, clustered by given example.

  With m samples, G examples and residuals r_i from the mean

    error^2 = G / (G - 1) sum_g (sum_{i in g} r_i)^2 / m^2.                                  (2)

  Args:
    values: of each sample.
    examples: number of the example that was given; samples with equal numbers are one cluster.

  Returns:
    `mean` and `error`.

  Raises:
    ValueError: there are fewer than two examples.
  """
  numbers, cluster = np.unique(examples, return_inverse=True)
  if len(numbers) < 2:
    raise ValueError(
      "similarity.estimate: a standard error needs samples of at least 2 given examples, got"
      f" {len(numbers)}."
    )
  mean = np.mean(values)
  sums = np.bincount(cluster, weights=np.asarray(values) - mean)
  variance = len(sums) / (len(sums) - 1) * np.sum(sums**2)
  return {"mean": float(mean), "error": float(variance**0.5 / len(values))}


def compared(
  examples: Sequence[int] | Int[np.ndarray, " samples"],
  together: Float[np.ndarray, " samples"],
  alone: Float[np.ndarray, " samples"],
  shuffled: Float[np.ndarray, " samples"] | None = None,
) -> dict[str, dict[str, float]]:
  """Similarities of one pair of modalities, and their differences sample by sample.

  Args:
    examples: number of the example that was given for each sample, as for `estimate`.
    together: generated together.
    alone: each alone, from the same prompt and the same noise.
    shuffled: together, but each row reads of the other modality what is another row's; or None.

  Returns:
    Estimates: `together`, `alone`, `shuffled`, `together - alone`, `shuffled - alone`.

  Raises:
    ValueError: there are fewer than two examples.
  """
  found = {"together": together, "alone": alone}
  if shuffled is not None:
    found["shuffled"] = shuffled
  differences = {f"{name} - alone": x - alone for name, x in found.items() if name != "alone"}
  return {name: estimate(x, examples) for name, x in (found | differences).items()}
