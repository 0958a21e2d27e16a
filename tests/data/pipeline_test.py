import json

import numpy as np
import pytest

from mmdiff_jax.data import pairing, pipeline


def _arrays(size):
  return {"row": np.arange(size), "image": np.arange(size * 6.0).reshape(size, 2, 3)}


def _rows(iterator, batches):
  return np.concatenate([next(iterator)["row"].ravel() for _ in range(batches)])


def test_each_example_is_seen_once_an_epoch_and_none_is_dropped():
  rows = _rows(pipeline.batches(_arrays(10), 4, seed=0), 15)  # Six epochs; batches straddle them.
  for epoch in rows.reshape(6, 10):
    assert sorted(epoch) == list(range(10))
  assert len(np.unique(rows.reshape(6, 10), axis=0)) == 6  # Each epoch has its own order.


def test_rows_of_all_arrays_belong_together():
  arrays = _arrays(10)
  batch = next(pipeline.batches(arrays, 4, seed=0))
  assert batch["image"].shape == (4, 2, 3)
  np.testing.assert_array_equal(batch["image"], arrays["image"][batch["row"]])


@pytest.mark.parametrize("group", [1, 3])
def test_column_goes_through_as_the_array_that_it_stands_for(group):
  arrays = _arrays(10)
  index = np.array([3, 3, 7, 0, 9])
  columns = {name: pairing.Column(index, x.__getitem__) for name, x in arrays.items()}
  ours = pipeline.batches(columns, 2, seed=0, group=group)
  theirs = pipeline.batches({name: x[index] for name, x in arrays.items()}, 2, seed=0, group=group)
  for _ in range(4):
    batch, expected = next(ours), next(theirs)
    for name, x in expected.items():
      np.testing.assert_array_equal(batch[name], x)


def test_seed_decides_the_order():
  first, same, other = (_rows(pipeline.batches(_arrays(50), 7, seed=s), 20) for s in (1, 1, 2))
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()


@pytest.mark.parametrize("group", [2, 3])
def test_group_is_that_many_batches_at_once(group):
  single = _rows(pipeline.batches(_arrays(10), 4, seed=0), 6 * group)
  grouped = pipeline.batches(_arrays(10), 4, seed=0, group=group)
  assert next(grouped)["image"].shape == (group, 4, 2, 3)
  np.testing.assert_array_equal(_rows(grouped, 5), single[4 * group :])


@pytest.mark.parametrize("size, batch_size", [(3, 8), (4, 8), (1, 1)])
def test_batch_can_be_larger_than_the_data(size, batch_size):
  rows = _rows(pipeline.batches(_arrays(size), batch_size, seed=0), size)
  for epoch in rows.reshape(-1, size):
    assert sorted(epoch) == list(range(size))


@pytest.mark.parametrize("done", [0, 1, 7])
def test_state_resumes_at_the_very_next_batch(done):
  interrupted = pipeline.batches(_arrays(10), 4, seed=3)
  _rows(interrupted, done) if done else None
  state = json.loads(json.dumps(interrupted.get_state()))  # It outlives the process.
  expected = _rows(interrupted, 9)
  resumed = pipeline.batches(_arrays(10), 4, seed=3)
  _rows(resumed, 2)
  resumed.set_state(state)
  np.testing.assert_array_equal(_rows(resumed, 9), expected)


def test_batches_are_copies():
  arrays = _arrays(10)
  next(pipeline.batches(arrays, 10, seed=0))["image"][:] = -1
  assert arrays["image"].min() == 0


@pytest.mark.parametrize(
  "arrays, options, complaint",
  [
    ({"a": np.zeros(3), "b": np.zeros(4)}, {}, "same examples.*'a': 3, 'b': 4"),
    ({"a": np.zeros(0)}, {}, "at least one"),
    ({"a": np.zeros(3)}, {"batch_size": 0}, "batch_size=0"),
    ({"a": np.zeros(3)}, {"group": 0}, "group=0"),
  ],
)
def test_impossible_batches_are_refused(arrays, options, complaint):
  with pytest.raises(ValueError, match=complaint):
    pipeline.batches(arrays, **{"batch_size": 2, "seed": 0, **options})
