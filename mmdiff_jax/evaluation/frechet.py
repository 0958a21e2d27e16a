"""Frechet distance between Gaussians fitted to features.

  d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)                          (1)

(Dowson and Landau 1982; Heusel et al. 2017, Eq. 6.) Its value depends on the features and, through
the fitted covariances, on the number of samples: only compare distances for equal numbers. With no
more samples than features the covariance is singular, and the distance is far too large.
"""

from typing import NamedTuple
import warnings

from jaxtyping import Float, Int
import numpy as np


class Gaussian(NamedTuple):
  """A Gaussian with the symmetric square root of its covariance.

  Attributes:
    mean: [features].
    covariance: [features, features].
    root: [features, features], root @ root = covariance.
  """

  mean: Float[np.ndarray, " features"]
  covariance: Float[np.ndarray, "features features"]
  root: Float[np.ndarray, "features features"]


def fit(
  features: Float[np.ndarray, "samples features"], name: str = "the given features"
) -> Gaussian:
  """Fits the mean and the (unbiased) covariance of features, in float64.

  Warns if there are no more samples than features.

  Args:
    features: one row per sample.
    name: names the features in errors and the warning.

  Raises:
    ValueError: there are fewer than two samples, or a sample has a feature that is not finite.
  """
  features = np.asarray(features, np.float64)
  num, size = features.shape
  if num < 2:
    raise ValueError(
      f"frechet.fit: a covariance needs at least 2 samples; of {name} there is {num}."
    )
  wrong = num - int(np.isfinite(features).all(axis=1).sum())
  if wrong:
    raise ValueError(
      f"frechet.fit: {wrong} of {num} samples of {name} have NaN or infinite features, so that they"
      " have no covariance. Check whether the samples themselves are finite."
    )
  if num <= size:
    warnings.warn(
      f"frechet.fit: there are no more samples of {name} ({num}) than features ({size}). A Frechet"
      " distance from so few samples is biased and far too large: use more samples.",
      stacklevel=2,
    )
  mean = features.mean(0)
  centred = features - mean
  covariance = centred.T @ centred / (len(features) - 1)
  values, vectors = np.linalg.eigh(covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
  return Gaussian(mean, covariance, root)


def distance(a: Gaussian, b: Gaussian) -> float:
  """Returns the squared Frechet distance (1), which is what that name usually means."""
  # The product in (1) is symmetric, so that its root's trace needs its eigenvalues only.
  values = np.linalg.eigvalsh(a.root @ b.covariance @ a.root)
  overlap = np.sqrt(np.maximum(values, 0.0)).sum()
  apart = np.sum((a.mean - b.mean) ** 2)
  return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * overlap)


def between_halves(
  features: Float[np.ndarray, "samples features"],
  sources: Int[np.ndarray, " samples"],
  num: int,
) -> list[float]:
  """Returns distances between samples from one half of the sources and from the other half.

  Args:
    features: of each sample.
    sources: index of each sample's source, such as the digit image that it was drawn from.
    num: the largest number of samples that is taken from the first half.

  Returns:
    One distance for each of five random halvings, from a fixed seed.

  Raises:
    ValueError: a half has fewer than two samples.
  """
  numbers, index = np.unique(sources, return_inverse=True)
  rng = np.random.default_rng(0)
  distances = []
  for _ in range(5):
    first = (rng.permutation(len(numbers)) < len(numbers) // 2)[index]
    some = rng.permutation(features[first])[:num]
    distances.append(distance(fit(features[~first]), fit(some)))
  return distances
