"""Whether modalities that were generated together, or from one another, show the same class.

A classifier of each modality says which class it shows. Joint coherence is the share of samples on
which the classifiers agree; conditional coherence is the share on which the classifier of what was
generated finds the label of the example that was given.
"""

from collections.abc import Mapping, Sequence
import itertools

from jaxtyping import Float, Int
import numpy as np

Predictions = Mapping[str, Int[np.ndarray, " samples"]]


def proper_subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
  """All subsets but the empty and the full one, small ones first, in the order of `names`."""
  return [subset for size in range(1, len(names)) for subset in itertools.combinations(names, size)]


def joint(predictions: Predictions, names: Sequence[str]) -> float:
  """Share of samples on which the classifiers of all of `names` agree."""
  votes = np.stack([predictions[name] for name in names])
  return float(np.mean(np.all(votes == votes[0], axis=0)))


def conditional(
  prediction: Int[np.ndarray, " samples"], labels: Int[np.ndarray, " samples"]
) -> float:
  """Share of samples that show the label of the given example."""
  return float(np.mean(prediction == labels))


def majority(predictions: Predictions, num_classes: int) -> Int[np.ndarray, " samples"]:
  """The class that most modalities of a sample show; the first modality settles a draw."""
  votes = np.stack(list(predictions.values()))
  counts = np.sum(votes[..., None] == np.arange(num_classes), axis=0).astype(float)
  counts[np.arange(votes.shape[1]), votes[0]] += 0.5
  return counts.argmax(-1)


def histogram(
  classes: Int[np.ndarray, " samples"], num_classes: int
) -> Float[np.ndarray, " classes"]:
  """Share of each class."""
  return np.bincount(classes, minlength=num_classes) / len(classes)


def total_variation(p: Float[np.ndarray, " classes"], q: Float[np.ndarray, " classes"]) -> float:
  """Half the sum of absolute differences of two laws, in [0, 1]."""
  return float(0.5 * np.abs(p - q).sum())


def total_variation_floor(law: Float[np.ndarray, " classes"], num: int) -> dict[str, float]:
  """Total variation between a distribution and the histogram of independent draws from it.

  A perfect sampler has it, too: only what exceeds it is the sampler's error.

  Args:
    law: probability of each class.
    num: draws in a histogram, 1 or more.

  Returns:
    `mean` and `std` over 10,000 histograms, from a fixed seed.
  """
  counts = np.random.default_rng(0).multinomial(num, law, size=10_000)
  distances = 0.5 * np.abs(counts / num - law).sum(-1)
  return {"mean": float(distances.mean()), "std": float(distances.std())}
