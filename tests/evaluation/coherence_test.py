import numpy as np
import pytest
from scipy import special

from mmdiff_jax.evaluation import coherence

CLASSES = {
  "a": np.array([0, 1, 2, 2]),
  "b": np.array([0, 1, 2, 0]),
  "c": np.array([0, 1, 1, 0]),
}


def test_proper_subsets():
  subsets = coherence.proper_subsets(("a", "b", "c"))
  assert subsets == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]
  assert len(coherence.proper_subsets(tuple("abcd"))) == 14


def test_joint_counts_samples_on_which_all_agree():
  assert coherence.joint(CLASSES, ("a", "b")) == 0.75
  assert coherence.joint(CLASSES, ("b", "c")) == 0.75
  assert coherence.joint(CLASSES, ("a", "b", "c")) == 0.5
  assert coherence.joint(CLASSES, ("a",)) == 1.0


def test_conditional_counts_samples_that_show_the_label():
  assert coherence.conditional(CLASSES["a"], np.array([0, 1, 2, 0])) == 0.75


def test_majority_and_ties():
  np.testing.assert_array_equal(coherence.majority(CLASSES, 3), [0, 1, 2, 0])
  tie = {"a": np.array([2, 2]), "b": np.array([0, 0]), "c": np.array([1, 0])}
  np.testing.assert_array_equal(coherence.majority(tie, 3), [2, 0])
  two_each = {name: np.array([c]) for name, c in zip("abcd", (1, 0, 0, 1), strict=True)}
  np.testing.assert_array_equal(coherence.majority(two_each, 3), [1])


def test_histogram_and_total_variation():
  fractions = coherence.histogram(CLASSES["a"], 4)
  np.testing.assert_allclose(fractions, [0.25, 0.25, 0.5, 0.0])
  assert coherence.total_variation(fractions, np.full(4, 0.25)) == pytest.approx(0.25)
  assert coherence.total_variation(fractions, fractions) == 0.0
  assert coherence.total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


@pytest.mark.parametrize(
  ("num", "mean", "std"),
  [(300, 0.0689, 0.017), (500, 0.0532, 0.013), (1000, 0.0378, 0.010), (2000, 0.0268, 0.007)],
)
def test_exact_draws_of_ten_equal_classes_have_a_total_variation(num, mean, std):
  floor = coherence.total_variation_floor(np.full(10, 0.1), num)
  assert floor == pytest.approx({"mean": mean, "std": std}, abs=5e-4)


def test_floor_of_two_classes_is_that_of_a_binomial():
  """It averages |k/5 - p| over k of 5 draws; a class that has probability 1 has distance 0."""
  k, p = np.arange(6), 0.3
  chance = special.comb(5, k) * p**k * (1 - p) ** (5 - k)
  mean = chance @ abs(k / 5 - p)
  std = (chance @ (k / 5 - p) ** 2 - mean**2) ** 0.5
  floor = coherence.total_variation_floor(np.array([p, 1 - p]), 5)
  assert floor == pytest.approx({"mean": mean, "std": std}, abs=3e-3)
  assert coherence.total_variation_floor(np.array([0.0, 1.0]), 5) == {"mean": 0.0, "std": 0.0}
