import numpy as np
import pytest

from mmdiff_jax.evaluation import similarity


def test_cosine_of_probabilities():
  a = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
  b = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.4, 0.6, 1.0], [0.5, 0.3, 0.2]])
  expected = [0.0, 0.5**0.5, 1.0, (0.1 + 0.09 + 0.1) / 0.38]
  np.testing.assert_allclose(similarity.cosine(a, b), expected, rtol=1e-12)


def test_a_row_of_zeros_has_no_angle():
  rows = np.array([[0.0, 0.0], [0.6, 0.8]])
  with np.errstate(all="raise"):
    np.testing.assert_allclose(similarity.cosine(rows, rows), [0.0, 1.0])


def test_differences_are_taken_sample_by_sample():
  """Of four samples: deviations with the divisor 3, and the root of 4."""
  together = np.array([1.0, 0.9, 0.8, 0.7])
  alone = np.array([0.9, 0.7, 0.7, 0.5])
  found = similarity.compared(together, alone, alone[::-1])
  assert list(found) == ["together", "alone", "shuffled", "together - alone", "shuffled - alone"]
  assert found["together"] == pytest.approx({"mean": 0.85, "error": (0.05 / 3) ** 0.5 / 2})
  # 0.1, 0.2, 0.1 and 0.2.
  assert found["together - alone"] == pytest.approx({"mean": 0.15, "error": (0.01 / 3) ** 0.5 / 2})
  # -0.4, 0, 0 and 0.4.
  assert found["shuffled - alone"] == pytest.approx(
    {"mean": 0.0, "error": (0.32 / 3) ** 0.5 / 2}, abs=1e-12
  )
  assert list(similarity.compared(together, alone)) == ["together", "alone", "together - alone"]


def test_one_sample_has_no_error():
  with pytest.raises(ValueError, match="at least 2 values, got 1"):
    similarity.estimate([1.0])
