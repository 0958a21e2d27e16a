"""Coherence: do modalities generated together, or from one another, show the same class?

A classifier of each modality predicts the class that it shows. Joint coherence is the fraction of
samples on which the classifiers agree; conditional coherence is the fraction on which the
classifier of a generated modality predicts the label of the given example.
"""

from collections.abc import Mapping, Sequence
import itertools

from jaxtyping import Float, Int
import numpy as np

Predictions = Mapping[str, Int[np.ndarray, " samples"]]


def proper_subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
  """Returns all subsets except the empty and the full one, small ones first, in `names`' order."""
  return [subset for size in range(1, len(names)) for subset in itertools.combinations(names, size)]


def joint(predictions: Predictions, names: Sequence[str]) -> float:
  """Returns the fraction of samples on which the classifiers of all of `names` agree."""
  votes = np.stack([predictions[name] for name in names])
  return float(np.mean(np.all(votes == votes[0], axis=0)))


def conditional(
  prediction: Int[np.ndarray, " samples"], labels: Int[np.ndarray, " samples"]
) -> float:
  """Returns the fraction of samples that show the label of the given example."""
  return float(np.mean(prediction == labels))


def majority(predictions: Predictions, num_classes: int) -> Int[np.ndarray, " samples"]:
  """Returns the class that most modalities of a sample show; the first modality breaks a tie."""
  votes = np.stack(list(predictions.values()))
  counts = np.sum(votes[..., None] == np.arange(num_classes), axis=0).astype(float)
  counts[np.arange(votes.shape[1]), votes[0]] += 0.5
  return counts.argmax(-1)


def histogram(
  classes: Int[np.ndarray, " samples"], num_classes: int
) -> Float[np.ndarray, " classes"]:
  """Returns the fraction of each class."""
  return np.bincount(classes, minlength=num_classes) / len(classes)


def total_variation(p: Float[np.ndarray, " classes"], q: Float[np.ndarray, " classes"]) -> float:
  """Returns half the sum of absolute differences of two distributions, in [0, 1]."""
  return float(0.5 * np.abs(p - q).sum())


def total_variation_floor(
  probabilities: Float[np.ndarray, " classes"], num: int
) -> dict[str, float]:
  """Returns the total variation between a distribution and the histogram of draws from it.

  The draws are independent. A perfect sampler has this distance, too: only what exceeds it is the
  sampler's error.

  Args:
    probabilities: of the classes.
    num: number of draws in a histogram, 1 or more.

  Returns:
    `mean` and `std` over 10,000 histograms, from a fixed seed.
  """
  counts = np.random.default_rng(0).multinomial(num, probabilities, size=10_000)
  distances = 0.5 * np.abs(counts / num - probabilities).sum(-1)
  return {"mean": float(distances.mean()), "std": float(distances.std())}
