"""Tests of the distance against its closed forms."""

import warnings

import numpy as np
import pytest
from scipy import linalg

from mmdiff_jax.evaluation import frechet


def gaussian(mean, covariance):
  return frechet.Gaussian(mean, covariance, np.real(linalg.sqrtm(covariance)))


def random_covariance(rng, size):
  factor = rng.standard_normal((size, size))
  return factor @ factor.T + 0.1 * np.eye(size)


def test_halves_by_source_are_further_apart_than_random_ones():
  """There are thirty sources of ten samples each, which hardly differ from one another."""
  rng = np.random.default_rng(1)
  sources = rng.permutation(np.repeat(np.arange(30), 10))
  features = rng.normal(size=(30, 4))[sources] + 0.1 * rng.normal(size=(300, 4))
  by_source = frechet.between_halves(features, sources, 300)
  at_random = frechet.between_halves(features, np.arange(300), 300)
  assert len(by_source) == len(set(by_source)) == 5
  assert np.mean(by_source) > 4 * np.mean(at_random)
  # No source is in both halves: the samples of each half are two of four points on a line.
  line = np.repeat([0.0, 1.0, 3.0, 7.0], 5)[:, None]
  pairs = (([0.0, 1.0], [3.0, 7.0]), ([0.0, 3.0], [1.0, 7.0]), ([0.0, 7.0], [1.0, 3.0]))
  expected = [
    frechet.distance(*(frechet.fit(np.repeat(half, 5)[:, None]) for half in pair)) for pair in pairs
  ]
  for distance in frechet.between_halves(line, np.repeat(np.arange(4), 5), 100):
    assert np.isclose(distance, expected).sum() == 1


def test_halves_take_no_more_samples_than_requested():
  features = np.random.default_rng(0).normal(size=(40, 1))
  few, all_ = (frechet.between_halves(features, np.arange(40), num) for num in (2, 20))
  assert np.mean(few) > np.mean(all_)
  with pytest.raises(ValueError, match="at least 2 samples"):
    frechet.between_halves(features, np.arange(40), 1)


def test_covariances_that_commute():
  """The distance is then |m1 - m2|^2 + sum (s1 - s2)^2 over the axes that they share."""
  rng = np.random.default_rng(0)
  axes = linalg.qr(rng.standard_normal((5, 5)))[0]
  s1, s2 = rng.uniform(0.1, 3.0, (2, 5))
  m1, m2 = rng.standard_normal((2, 5))
  a = gaussian(m1, (axes * s1**2) @ axes.T)
  b = gaussian(m2, (axes * s2**2) @ axes.T)
  expected = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)
  assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_do_not_commute():
  rng = np.random.default_rng(1)
  c1, c2 = random_covariance(rng, 6), random_covariance(rng, 6)
  zero = np.zeros(6)
  expected = np.trace(c1 + c2 - 2 * np.real(linalg.sqrtm(c1 @ c2)))
  distance = frechet.distance(gaussian(zero, c1), gaussian(zero, c2))
  assert distance == pytest.approx(expected, rel=1e-6)
  assert distance == pytest.approx(frechet.distance(gaussian(zero, c2), gaussian(zero, c1)))
  assert distance > 0.1


def test_fit_is_the_sample_mean_and_covariance():
  features = np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32) * [1, 2, 3] + 7
  fitted = frechet.fit(features)
  np.testing.assert_allclose(fitted.mean, features.mean(0))
  np.testing.assert_allclose(fitted.covariance, np.cov(features.T))
  np.testing.assert_allclose(fitted.root @ fitted.root, fitted.covariance, atol=1e-9)
  assert fitted.mean.dtype == np.float64


def test_fewer_samples_than_features():
  """A singular covariance is no obstacle: the distance of a fit to itself is 0."""
  features = np.random.default_rng(3).standard_normal((10, 40))
  with pytest.warns(UserWarning, match=r"samples of digits \(10\) than features \(40\).*biased"):
    fitted = frechet.fit(features, "digits")
  assert frechet.distance(fitted, fitted) == pytest.approx(0.0, abs=1e-4)
  with pytest.warns(UserWarning, match="the given features"):
    shifted = frechet.fit(features + 2.0)
  assert frechet.distance(fitted, shifted) == pytest.approx(40 * 4.0, rel=1e-6)


def test_one_sample_has_no_covariance():
  for num in (0, 1):
    with pytest.raises(ValueError, match=f"at least 2 samples; of digits there is {num}"):
      frechet.fit(np.zeros((num, 3)), "digits")


def test_enough_samples_give_no_warning():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    frechet.fit(np.random.default_rng(0).standard_normal((41, 40)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(wrong):
  features = np.random.default_rng(0).standard_normal((50, 3))
  features[[4, 7], [0, 2]] = wrong
  with pytest.raises(ValueError, match="2 of 50 samples of digits have NaN or infinite"):
    frechet.fit(features, "digits")
