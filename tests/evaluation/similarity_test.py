import numpy as np
import pytest

from mmdiff_jax.evaluation import similarity


def test_probability_of_one_class():
  a = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
  b = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.5, 0.3, 0.2]])
  expected = [0.0, 0.5, 0.04 + 0.09 + 0.25, 0.1 + 0.09 + 0.1]
  np.testing.assert_allclose(similarity.same_class(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("sharpness", [(9.0, 9.0), (9.0, 1.0), (1.0, 1.0), (0.1, 0.5), (0.0, 0.0)])
def test_similarity_of_independent_pairs_does_not_depend_on_classifiers_confidence(sharpness):
  """Takes all pairs of ten equally likely classes, with classifiers that confuse neighbours."""
  shift = (np.arange(10) - np.arange(10)[:, None]) % 10
  logits = np.where(shift == 0, 1.0, np.where(shift == 1, 0.5, 0.0))
  a, b = (np.exp(s * logits) / np.exp(s * logits).sum(1, keepdims=True) for s in sharpness)
  one, other = np.divmod(np.arange(100), 10)
  assert similarity.same_class(a[one], b[other]).mean() == pytest.approx(0.1, abs=1e-12)


def test_differences_are_taken_sample_by_sample():
  """Four samples have the divisor 3 in the variance, and the root of 4 in the error of the mean."""
  together = np.array([1.0, 0.9, 0.8, 0.7])
  alone = np.array([0.9, 0.7, 0.7, 0.5])
  estimates = similarity.compared(np.arange(4), together, alone, alone[::-1])
  assert list(estimates) == [
    "together",
    "alone",
    "shuffled",
    "together - alone",
    "shuffled - alone",
  ]
  assert estimates["together"] == pytest.approx({"mean": 0.85, "error": (0.05 / 3) ** 0.5 / 2})
  # 0.1, 0.2, 0.1 and 0.2.
  assert estimates["together - alone"] == pytest.approx(
    {"mean": 0.15, "error": (0.01 / 3) ** 0.5 / 2}
  )
  # -0.4, 0, 0 and 0.4.
  assert estimates["shuffled - alone"] == pytest.approx(
    {"mean": 0.0, "error": (0.32 / 3) ** 0.5 / 2}, abs=1e-12
  )
  estimates = similarity.compared(np.arange(4), together, alone)
  assert list(estimates) == ["together", "alone", "together - alone"]


def test_more_samples_of_the_same_examples_add_no_evidence():
  values, examples = np.array([0.1, 0.5, 0.2, 0.9]), np.array([7, 3, 5, 0])
  once = similarity.estimate(values, examples)
  again = similarity.estimate(np.tile(values, 25), np.tile(examples, 25))
  assert again == pytest.approx(once)
  # Independent samples do.
  assert similarity.estimate(np.tile(values, 25), np.arange(100))["error"] < once["error"] / 4


def test_standard_error_is_the_spread_of_the_mean():
  """Draws clusters of 1 to 5 samples that share most of their value."""
  rng = np.random.default_rng(0)
  means, errors = [], []
  for _ in range(400):
    examples = np.repeat(np.arange(60), np.arange(60) % 5 + 1)
    values = rng.normal(size=60)[examples] + 0.5 * rng.normal(size=len(examples))
    estimates = similarity.estimate(values, examples)
    means.append(estimates["mean"])
    errors.append(estimates["error"])
  assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_one_example_has_no_error():
  with pytest.raises(ValueError, match="at least 2 given examples, got 1"):
    similarity.estimate([1.0, 0.5], [3, 3])
