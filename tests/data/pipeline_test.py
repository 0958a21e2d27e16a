import json
import os
import time

import numpy as np
import pytest

from mmdiff_jax.data import pairing, pipeline


def _arrays(size):
  return {"row": np.arange(size), "image": np.arange(size * 6.0).reshape(size, 2, 3)}


def _rows(iterator, batches):
  return np.concatenate([next(iterator)["row"].ravel() for _ in range(batches)])


def test_each_example_is_seen_once_per_epoch_and_none_is_dropped():
  rows = _rows(pipeline.batches(_arrays(10), 4, seed=0), 15)  # Six epochs; batches straddle them.
  for epoch in rows.reshape(6, 10):
    assert sorted(epoch) == list(range(10))
  assert len(np.unique(rows.reshape(6, 10), axis=0)) == 6  # Each epoch has a different order.


def test_rows_of_all_arrays_are_the_same_examples():
  arrays = _arrays(10)
  batch = next(pipeline.batches(arrays, 4, seed=0))
  assert batch["image"].shape == (4, 2, 3)
  np.testing.assert_array_equal(batch["image"], arrays["image"][batch["row"]])


@pytest.mark.parametrize("group", [1, 3])
def test_column_gives_the_same_batches_as_its_array(group):
  arrays = _arrays(10)
  index = np.array([3, 3, 7, 0, 9])
  columns = {name: pairing.Column(index, x.__getitem__) for name, x in arrays.items()}
  ours = pipeline.batches(columns, 2, seed=0, group=group)
  theirs = pipeline.batches({name: x[index] for name, x in arrays.items()}, 2, seed=0, group=group)
  for _ in range(4):
    batch, expected = next(ours), next(theirs)
    for name, x in expected.items():
      np.testing.assert_array_equal(batch[name], x)


def test_order_depends_on_the_seed():
  first, same, other = (_rows(pipeline.batches(_arrays(50), 7, seed=s), 20) for s in (1, 1, 2))
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()


@pytest.mark.parametrize("group", [2, 3])
def test_group_is_the_number_of_batches_at_once(group):
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
  state = json.loads(json.dumps(interrupted.get_state()))  # As if it were stored on disk.
  expected = _rows(interrupted, 9)
  resumed = pipeline.batches(_arrays(10), 4, seed=3)
  _rows(resumed, 2)
  resumed.set_state(state)
  np.testing.assert_array_equal(_rows(resumed, 9), expected)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_make_the_same_batches_together(processes, group):
  single = pipeline.batches(_arrays(10), 7, seed=0, group=group)
  parts = [
    pipeline.batches(_arrays(10), 7, seed=0, group=group, rows=rows)
    for rows in np.array_split(np.arange(7), processes)
  ]
  for _ in range(6):
    batches = [next(part) for part in parts]
    for name, x in next(single).items():
      together = np.concatenate([batch[name] for batch in batches], axis=int(group > 1))
      np.testing.assert_array_equal(together, x)


@pytest.mark.parametrize(
  "size, batch_size, processes", [(10, 4, 2), (13, 6, 3), (7, 7, 2), (3, 8, 4)]
)
def test_within_an_epoch_processes_read_disjoint_examples_and_together_all(
  size, batch_size, processes
):
  seen = [[set() for _ in range(processes)] for _ in range(batch_size)]
  for process, rows in enumerate(np.array_split(np.arange(batch_size), processes)):
    iterator = pipeline.batches(_arrays(size), batch_size, seed=1, rows=rows)
    for i in range(size):  # As many batches as examples: `batch_size` epochs.
      for row, example in zip(rows, next(iterator)["row"].tolist(), strict=True):
        examples = seen[(i * batch_size + row) // size][process]
        assert example not in examples
        examples.add(example)
  for epoch in seen:
    assert sum(map(len, epoch)) == size  # Disjoint, since together they are all.
    assert set().union(*epoch) == set(range(size))


def test_threads_do_not_change_the_order():
  def slow(index):
    time.sleep(0.01 * (index[0] % 3))  # A batch that is started later may be ready earlier.
    return index

  column = {"row": pairing.Column(np.arange(10), slow)}
  one, many = (pipeline.batches(column, 3, seed=0, threads=threads) for threads in (1, 4))
  np.testing.assert_array_equal(_rows(many, 20), _rows(one, 20))


def test_state_resumes_with_another_number_of_processes_and_threads():
  options = [
    {"rows": None, "threads": 1},
    {"rows": np.arange(3), "threads": 4},
    {"rows": np.arange(3, 7), "threads": 2},
  ]
  expected = _rows(pipeline.batches(_arrays(10), 7, seed=0), 12).reshape(12, 7)
  for saving in options:
    interrupted = pipeline.batches(_arrays(10), 7, seed=0, **saving)
    _rows(interrupted, 5)
    state = json.loads(json.dumps(interrupted.get_state()))
    for resuming in options:
      resumed = pipeline.batches(_arrays(10), 7, seed=0, **resuming)
      resumed.set_state(state)
      rows = np.arange(7) if resuming["rows"] is None else resuming["rows"]
      np.testing.assert_array_equal(_rows(resumed, 7).reshape(7, -1), expected[5:, rows])


@pytest.mark.parametrize("cores, threads", [(1, 1), (2, 1), (16, 8)])
def test_columns_and_memory_maps_are_read_with_half_of_the_cores_and_arrays_with_one_thread(
  cores, threads, monkeypatch, tmp_path
):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
  arrays = _arrays(10)
  assert pipeline.reading_threads(arrays) == 1
  np.save(tmp_path / "row.npy", arrays["row"])
  on_disk = np.load(tmp_path / "row.npy", mmap_mode="r")
  for other in (pairing.Column(np.arange(10), np.square), on_disk):
    assert pipeline.reading_threads({**arrays, "view": other}) == threads


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
    ({"a": np.zeros(3)}, {"threads": 0}, "threads=0"),
  ],
)
def test_impossible_batches_are_refused(arrays, options, complaint):
  with pytest.raises(ValueError, match=complaint):
    pipeline.batches(arrays, **{"batch_size": 2, "seed": 0, **options})
