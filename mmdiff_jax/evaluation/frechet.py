"""Frechet distance between Gaussians fitted to features.

  d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)                          (1)

(Dowson and Landau 1982; Heusel et al. 2017, Eq. 6.) Its value depends on the features and, through
the fitted covariances, on the number of samples: compare distances of equal numbers only. With no
more samples than features the covariance is singular, and the distance far too large.
"""

from typing import NamedTuple
import warnings

from jaxtyping import Float, Int
import numpy as np


class Gaussian(NamedTuple):
  """A Gaussian, with the symmetric root of its covariance.

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
  """Mean and (unbiased) covariance of features, in float64.

  Warns where there are no more samples than features.

  Args:
    features: one row a sample.
    name: what errors and the warning call them.

  Raises:
    ValueError: there are fewer than two samples, or one with a feature that is not finite.
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
      " have no covariance. See whether the samples themselves are finite."
    )
  if num <= size:
    warnings.warn(
      f"frechet.fit: there are no more samples of {name} ({num}) than features ({size}). A Frechet"
      " distance of so few is biased, it is far too large: take more samples.",
      stacklevel=2,
    )
  mean = features.mean(0)
  centred = features - mean
  covariance = centred.T @ centred / (len(features) - 1)
  values, vectors = np.linalg.eigh(covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
  return Gaussian(mean, covariance, root)


def distance(a: Gaussian, b: Gaussian) -> float:
  """The squared Frechet distance (1), which is what is usually called by that name."""
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
  """Distances between samples of one half of the sources and those of the other half.

  Args:
    features: of each sample.
    sources: number of the sample's source, such as the digit image that it was drawn from.
    num: the most samples of the first half that are taken.

  Returns:
    One distance for each of five random halvings, from a fixed seed.

  Raises:
    ValueError: a half has fewer than two samples.
  """
  numbers, place = np.unique(sources, return_inverse=True)
  rng = np.random.default_rng(0)
  distances = []
  for _ in range(5):
    first = (rng.permutation(len(numbers)) < len(numbers) // 2)[place]
    some = rng.permutation(features[first])[:num]
    distances.append(distance(fit(features[~first]), fit(some)))
  return distances
