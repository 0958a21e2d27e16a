"""SIM: similarity of modalities that were generated together, compared with ones generated alone.

Modalities are compared in a space that all of them share and no generator was trained on: the
probabilities p and q that a classifier of each assigns to the classes
(`classifiers.probabilities`). Their similarity is the probability that both name the same class,

  sum_c p_c q_c = P(c_a = c_b), c_a ~ p and c_b ~ q independently.                           (1)

Its mean over independent samples is the product of the mean probabilities, however confident the
classifiers are; the cosine, in contrast, is 1 for two flat vectors, and rewards blur. Other
attributes that the data set can compare, such as whether a caption is right about the thickness of
an image's lines, score 1 or 0, over the samples that mention the attribute in every way of
generating them.

Modalities generated together and alone start from the same noise and the same prompt, so that
differences are taken sample by sample: their standard error is far below that of a difference of
means. Samples from one given example are not independent, so that standard errors are computed from
the sums over given examples.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np


def same_class(
  a: Float[np.ndarray, "samples classes"], b: Float[np.ndarray, "samples classes"]
) -> Float[np.ndarray, " samples"]:
  """Returns the probability (1) that two classifiers name the same class, for each row."""
  return (a * b).sum(-1)


def estimate(
  values: Sequence[float] | Float[np.ndarray, " samples"],
  examples: Sequence[int] | Int[np.ndarray, " samples"],
) -> dict[str, float]:
  """Returns the mean and its standard error, clustered by given example.

  With m samples, G examples and residuals r_i from the mean,

    error^2 = G / (G - 1) sum_g (sum_{i in g} r_i)^2 / m^2.                                  (2)

  Args:
    values: of each sample.
    examples: index of each sample's given example; samples with equal indices are one cluster.

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
  """Returns similarities of one pair of modalities, and their differences sample by sample.

  Args:
    examples: index of each sample's given example, as for `estimate`.
    together: similarities when generated together.
    alone: when each is generated alone, from the same prompt and the same noise.
    shuffled: when generated together, but each row reads another row's values of the other
      modality; or None.

  Returns:
    Estimates: `together`, `alone`, `shuffled`, `together - alone`, `shuffled - alone`.

  Raises:
    ValueError: there are fewer than two examples.
  """
  measured = {"together": together, "alone": alone}
  if shuffled is not None:
    measured["shuffled"] = shuffled
  differences = {f"{name} - alone": x - alone for name, x in measured.items() if name != "alone"}
  return {name: estimate(x, examples) for name, x in (measured | differences).items()}
