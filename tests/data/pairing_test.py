import numpy as np
import pytest

from mmdiff_jax.data import pairing

_FEW = np.array([0, 1, 0, 2, 2, 1, 0, 2])  # 3, 2, 3 of each class
_MANY = np.array([2, 2, 0, 0, 1, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0])  # 5, 5, 5


def _rng_labels(size, seed):
  return np.random.default_rng(seed).integers(0, 4, size)


def test_pairs_are_of_one_class_and_as_many_as_asked_for():
  labels = [_rng_labels(40, 0), _rng_labels(90, 1), _rng_labels(60, 2)]
  tuples = pairing.pair(labels, np.array([5, 0, 70, 200]), seed=0)
  assert tuples.shape == (275, 3)
  classes = np.stack([source[tuples[:, i]] for i, source in enumerate(labels)], axis=1)
  assert (classes == classes[:, :1]).all()
  np.testing.assert_array_equal(np.bincount(classes[:, 0], minlength=4), [5, 0, 70, 200])


def test_items_of_a_class_are_used_equally_often():
  labels = [_rng_labels(40, 0), _rng_labels(90, 1)]
  tuples = pairing.pair(labels, 100, seed=0)
  for i, source in enumerate(labels):
    used = np.bincount(tuples[:, i], minlength=len(source))
    for c in range(4):
      assert np.ptp(used[source == c]) <= 1


def test_twenty_permutations_use_the_shorter_source_twenty_times():
  counts = 20 * pairing.smallest([_FEW, _MANY])
  np.testing.assert_array_equal(counts, [60, 40, 60])
  tuples = pairing.pair([_FEW, _MANY], counts, seed=0)
  np.testing.assert_array_equal(np.bincount(tuples[:, 0]), np.full(len(_FEW), 20))


def test_size_of_the_papers_training_set():
  mnist = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
  svhn = [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659]
  labels = [np.repeat(np.arange(10), counts) for counts in (mnist, svhn)]
  tuples = pairing.pair(labels, 20 * pairing.smallest(labels), seed=0)
  assert len(tuples) == 1_121_360


def test_partners_change_from_permutation_to_permutation():
  labels = np.zeros(50, int)
  tuples = pairing.pair([labels, labels], 50 * 20, seed=0)
  assert len(np.unique(tuples, axis=0)) > 600  # Of 1,000 out of 2,500: about 824 differ by chance.


def test_rows_are_in_random_order():
  for tuples in (pairing.pair([_MANY, _MANY], 100, seed=0), pairing.group(_MANY, 2, 100, seed=0)):
    classes = _MANY[tuples[:, 0]]
    assert (np.diff(classes) == 0).mean() < 0.5  # Sorted they would nearly all be equal.


def test_seed_decides():
  first, same, other = (pairing.pair([_FEW, _MANY], 30, seed=s) for s in ((0, 1), (0, 1), (0, 2)))
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()
  first, same, other = (pairing.group(_MANY, 3, 30, seed=s) for s in ((0, 1), (0, 1), (0, 2)))
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()


def test_class_that_a_source_lacks_is_refused_unless_none_is_asked_for():
  lacking = np.array([0, 2, 2])
  with pytest.raises(ValueError, match=r"classes \[1\]"):
    pairing.pair([_FEW, lacking], 4, seed=0)
  assert len(pairing.pair([_FEW, lacking], np.array([4, 0, 4]), seed=0)) == 8
  np.testing.assert_array_equal(pairing.smallest([_FEW, lacking]), [1, 0, 2])


def test_groups_are_different_items_of_one_class_used_equally_often():
  labels = _rng_labels(80, 0)
  tuples = pairing.group(labels, 5, 50, seed=0)
  assert tuples.shape == (4 * 50, 5)
  classes = labels[tuples]
  assert (classes == classes[:, :1]).all()
  assert all(len(set(row)) == 5 for row in tuples.tolist())
  for member in tuples.T:
    used = np.bincount(member, minlength=len(labels))
    for c in range(4):
      assert used[labels == c].sum() == 50 and np.ptp(used[labels == c]) <= 1


def test_groups_larger_than_a_class_are_refused():
  with pytest.raises(ValueError, match="class 1 has 2 items"):
    pairing.group(_FEW, 3, 10, seed=0)


def test_examples_of_both_splits_are_found_by_their_contents(monkeypatch):
  monkeypatch.setattr(pairing, "_CHUNK", 3)
  items = np.random.default_rng(0).random((10, 2, 3)).astype(np.float32)
  train, test = items[:6], items[[7, 2, 8, 5, 2]]
  np.testing.assert_array_equal(pairing.shared(train, test), [1, 3, 4])
  assert not len(pairing.shared(train, items[6:]))
  # One bit is another item.
  test = np.nextafter(test, np.float32(2))
  assert not len(pairing.shared(train, test))


def test_examples_of_both_splits_are_found_among_columns_that_read_each_item_once():
  items, asked = np.arange(12.0).reshape(6, 2), []

  def read(index):
    asked.extend(index.tolist())
    return items[index]

  train = pairing.Column(np.array([0, 3, 3, 0, 1]), read)
  np.testing.assert_array_equal(pairing.shared(train, items[[5, 3, 2, 0]]), [1, 3])
  test = pairing.Column(np.array([5, 1, 1]), lambda index: items[index])
  asked.clear()
  np.testing.assert_array_equal(pairing.shared(train, test), [1, 2])
  assert sorted(asked) == [0, 1, 3]


@pytest.mark.parametrize(
  "index", [np.array([3, 0, 2, 2]), np.array([[3, 1], [0, 5], [2, 2], [2, 9]])]
)
def test_column_reads_like_the_array_that_it_stands_for(index):
  source = np.arange(4 * 6).reshape(4, 2, 3).astype(np.uint8)

  def read(index):
    first = index if index.ndim == 1 else index[:, 0]
    more = 0 if index.ndim == 1 else np.float32(index[:, 1, None, None])
    return source[first] / np.float32(255) + more

  column = pairing.Column(index, read)
  array = read(index)
  assert len(column) == len(array)
  assert column.shape == array.shape and column.dtype == array.dtype
  for rows in (2, np.int64(1), slice(1, 3), [0, 3], np.array([[1, 0], [3, 3], [2, 1]])):
    np.testing.assert_array_equal(column[rows], array[rows])
    assert column[rows].dtype == np.float32
  np.testing.assert_array_equal(np.asarray(column), array)


def test_column_makes_only_what_is_read():
  asked = []

  def read(index):
    asked.extend(index.tolist())
    return index[:, None] * np.ones(3)

  pairing.Column(np.arange(10) * 10, read)[[1, 4]]
  assert asked == [10, 40]
