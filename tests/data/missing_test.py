import itertools

import numpy as np
import pytest

from mmdiff_jax.data import missing, pairing
from mmdiff_jax.errors import UserError

NAMES = ("a", "b", "c")


def data(size=12):
  values = np.arange(size * 2.0).reshape(size, 2)
  column = pairing.Column(np.arange(size), lambda index: -index)
  return {"a": values, "b": column, "c": values + 0.5, "label": np.arange(size)}


def test_data_without_gaps_have_no_masks():
  full = data() | {"a_present": np.ones(12, bool)}
  assert missing.masks(full, NAMES) == {}
  assert missing.complete(full, NAMES)["a"] is full["a"]


def test_one_gap_gives_masks_of_all_modalities():
  mask = np.arange(12) > 0
  masks = missing.masks(data() | {"b_present": mask}, NAMES)
  assert list(masks) == list(NAMES)
  np.testing.assert_array_equal(masks["b"], mask)
  assert masks["a"].all() and masks["a"].shape == (12,)


def test_complete_rows_of_arrays_and_columns():
  i = np.arange(12)
  gaps = data() | {"a_present": i % 2 == 0, "b_present": i > 5}
  both = missing.complete(gaps, ["a", "b"])
  np.testing.assert_array_equal(both["label"], [6, 8, 10])
  np.testing.assert_array_equal(both["b"][1:], [-8, -10])
  np.testing.assert_array_equal(both["a"][np.array([[0], [2]])], gaps["a"][[[6], [10]]])
  assert both["a_present"][:].all() and both["a"].shape == (3, 2)
  np.testing.assert_array_equal(missing.complete(gaps, ["b"])["label"], i[6:])
  with pytest.raises(UserError, match="a and b"):
    missing.complete(gaps | {"a_present": i <= 5}, ["a", "b"])


@pytest.mark.parametrize("prob", [0.3, 0.9])
def test_modalities_are_dropped_independently_and_one_stays(prob):
  size = 20_000
  full = {name: np.zeros(size) for name in NAMES}
  dropped = missing.drop(full, NAMES, prob, 0)
  rows = np.stack([dropped[f"{name}_present"] for name in NAMES], 1)
  for state in itertools.product((False, True), repeat=3):
    # If all three would be dropped each one stays with probability 1/3.
    p = np.prod([1 - prob if stays else prob for stays in state]) * any(state)
    p += prob**3 / 3 * (sum(state) == 1)
    bound = 4.5 * (p * (1 - p) / size) ** 0.5 + 1e-12
    assert (rows == state).all(1).mean() == pytest.approx(p, abs=bound), state


def test_dropped_modalities_depend_only_on_seed_index_and_names():
  few = missing.drop(data(2000), ("a", "b"), 0.5, 7)
  again = missing.drop(data(2000), ("b", "a"), 0.5, 7)
  other = missing.drop(data(2000), ("a", "b"), 0.5, 8)
  np.testing.assert_array_equal(few["a_present"], again["a_present"])
  assert np.any(few["a_present"] != other["a_present"])
  assert np.any(few["a_present"] != few["b_present"]) and "c_present" not in few


def test_missing_modalities_stay_missing():
  size = 5000
  lacks = np.arange(size) % 2 == 0
  gaps = data(size) | {"a_present": ~lacks}
  dropped = missing.drop(gaps, ("a", "b"), 0.4, 0)
  assert not dropped["a_present"][lacks].any()
  assert dropped["b_present"][lacks].all()  # The only modality left in these examples.
  assert dropped["b_present"][~lacks].mean() == pytest.approx(0.6 + 0.16 / 2, abs=0.04)
  none = missing.drop(gaps | {"b_present": ~lacks}, ("a", "b"), 0.4, 0)
  assert not none["b_present"][lacks].any()


def test_invalid_probabilities_are_refused():
  assert missing.drop(data(), NAMES, 0.0, 0).keys() == data().keys()
  for prob in (-0.1, 1.0, float("nan")):
    with pytest.raises(UserError, match="drop_prob"):
      missing.drop(data(), NAMES, prob, 0)
