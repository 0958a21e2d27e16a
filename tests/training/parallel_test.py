import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
from jax.sharding import AbstractMesh, AxisType
import numpy as np
import pytest

from mmdiff_jax import parallel
from mmdiff_jax.data import pipeline
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, trainer


def test_uneven_batch_is_refused():
  layout = parallel.Layout(AbstractMesh((2, 2), ("data", "shard"), axis_types=(AxisType.Auto,) * 2))
  parallel.check_batch_size(layout, 8, 2)
  with pytest.raises(UserError, match="multiple of 4"):
    parallel.check_batch_size(layout, 6)
  with pytest.raises(UserError, match="3 pieces.*multiple of 12"):
    parallel.check_batch_size(layout, 8, 3)


def test_replicate_copies():
  x = jax.numpy.ones(3)
  y = parallel.replicate(parallel.make_layout(), x)
  assert x.unsafe_buffer_pointer() != y.addressable_data(0).unsafe_buffer_pointer()


def test_one_process_has_all_rows():
  np.testing.assert_array_equal(parallel.local_rows(parallel.make_layout(), 6), np.arange(6))


@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_eight_devices(marked, tmp_path):
  """Runs the tests in `eight_devices.py`."""
  file = pathlib.Path(__file__).with_name("eight_devices.py")
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, file]
  variables = environment(devices=8)
  if marked == "slow":
    # As in a user's process: without XLA's fusion emitters exp of float64 has an error of 1e-8.
    variables["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  ended = subprocess.run(
    [*command, f"--basetemp={tmp_path / 'eight'}"],
    env=variables,
    cwd=file.parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stdout[-5000:]


@pytest.mark.slow
def test_communication_of_a_device_does_not_grow_with_the_number_of_devices():
  """Counted in numbers; all but a few, of metrics and norms, are parameters and gradients."""
  file = pathlib.Path(__file__).with_name("weak_scaling.py")
  counts = []
  for devices in (2, 8, 64):
    ended = subprocess.run(
      [sys.executable, file],
      env={**environment(devices=devices), "PYTHONPATH": os.fspath(file.parents[2])},
      capture_output=True,
      text=True,
      check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    counts.append(json.loads(ended.stdout))
  assert counts[0] == counts[1] == counts[2]
  data, shard = counts[0]["data"], counts[0]["shard"]
  # One sum of the gradient and the loss.
  assert data.keys() == {"parameters", "split", "all-reduce"}
  assert data["split"] == 0
  assert 0 < data["all-reduce"] - data["parameters"] < 10
  # Parameters are gathered once. On a CPU a reduce-scatter is a sum; each device keeps its part.
  assert shard.keys() == {"parameters", "split", "all-gather", "all-reduce"}
  assert shard["split"] > 0.95 * shard["parameters"]
  assert shard["all-gather"] == shard["split"]
  # The rest are the norms of the gradient of each array that is split.
  assert 0 < shard["all-reduce"] - shard["parameters"] < 100


def environment(*, devices):
  """Returns the environment of a process with this number of devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
  }


# The beginning of a separate process: the toy framework, without TensorFlow, which loads slowly.
LOAD_TOY = """
  import importlib.util, os, sys
  sys.modules["tensorflow"] = None
  import jax
  import numpy as np
  from mmdiff_jax import parallel
  from mmdiff_jax.data import pipeline
  from mmdiff_jax.training import trainer
  spec = importlib.util.spec_from_file_location("toy", os.environ["TOY"])
  toy = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(toy)
"""


def start(toy, code, *arguments, devices):
  """Starts a process that runs the code after `LOAD_TOY`."""
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(LOAD_TOY) + textwrap.dedent(code), *map(str, arguments)],
    env={**environment(devices=devices), "TOY": toy.file},
  )


def check_equals_one_device(toy, framework, workdir, other):
  """Checks that a run equals the run of one device, `other`, up to the order of sums."""
  trained = [checkpoints.load_params(framework, path) for path in (workdir, other)]
  for x, y in zip(*map(jax.tree.leaves, trained), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  # Plain sums of gradients: Adam would hide a factor, the gradient norm does not.
  norms = [toy.rows(path)[-1]["grad_norm"] for path in (workdir, other)]
  np.testing.assert_allclose(*norms, rtol=1e-4)


def test_four_devices_train_as_one_and_their_checkpoint_loads_on_one(toy, tmp_path):
  code = """
    assert jax.device_count() == 4
    framework = toy.only_first(toy.framework(steps=4, steps_per_dispatch=2, clip=0.0))
    trainer.train(framework, toy.config(), sys.argv[1], toy.data(), toy.data(8))
  """
  process = start(toy, code, tmp_path / "four", devices=4)
  framework = toy.only_first(toy.framework(steps=4, steps_per_dispatch=2, clip=0.0))
  trainer.train(framework, toy.config(), tmp_path / "one", toy.data(), toy.data(8))
  assert process.wait() == 0
  check_equals_one_device(toy, framework, tmp_path / "four", tmp_path / "one")


@pytest.mark.slow
def test_sigterm_stops_two_processes_at_one_step(toy, tmp_path):
  """Two steps per dispatch; only one process gets the signal, in the second stage."""
  code = """
    import dataclasses, signal, time
    from mmdiff_jax.errors import PreemptedError
    process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    framework = toy.framework(steps_per_dispatch=2)
    first, second = framework.stages
    settings = dataclasses.replace(second.settings, steps=4000)
    def report(*_):
      if process == 0:
        os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.02)
      return {}
    second = dataclasses.replace(second, settings=settings, report=report)
    framework = dataclasses.replace(framework, stages=(first, second))
    config = toy.config()
    config.monitor.report_every = 2
    try:
      trainer.train(framework, config, folder, toy.data(), toy.data(8))
      raise AssertionError("not stopped")
    except PreemptedError as error:
      assert "second_stage is saved at step" in str(error), error
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = [start(toy, code, i, port, tmp_path / "run", devices=1) for i in range(2)]
  assert [process.wait() for process in processes] == [0, 0]
  assert 0 < checkpoints.latest_step(tmp_path / "run", "second_stage") < 4000


@pytest.mark.slow
def test_two_processes_have_the_batches_of_one_train_as_one_and_resume(toy, tmp_path):
  """Two devices each: compares batches, and parameters of a run resumed by two or by one."""
  code = """
    import dataclasses, pathlib, shutil
    from jax.experimental import multihost_utils
    process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)

    layout = parallel.make_layout()
    rows = parallel.local_rows(layout, 8)
    seen = {}
    for group in (1, 3):
      batches = pipeline.batches({"row": np.arange(11)}, 8, seed=5, group=group, rows=rows)
      for i in range(4):
        local = next(batches)
        assert local["row"].shape[-1] == 4
        batch = parallel.shard_batch(layout, local, grouped=group > 1)
        seen[f"{group}_{i}"] = multihost_utils.process_allgather(batch["row"], tiled=True)
    np.savez(folder / f"batches_{process}.npz", **seen)

    framework = toy.only_first(toy.framework(steps=8, steps_per_dispatch=2, clip=0.0))
    stage, = framework.stages
    class Stopped(Exception):
      pass
    def stop(*_):
      raise Stopped
    stopping = dataclasses.replace(framework, stages=(dataclasses.replace(stage, report=stop),))
    def train(name, framework):
      trainer.train(framework, toy.config(), folder / name, toy.data(44), toy.data(8))
    train("whole", framework)
    try:
      train("parts", stopping)
      raise AssertionError("not stopped")
    except Stopped:
      if process == 0:
        shutil.copytree(folder / "parts", folder / "half")
      multihost_utils.sync_global_devices("copied")
      train("parts", framework)
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = [start(toy, code, i, port, tmp_path, devices=2) for i in range(2)]
  framework = toy.only_first(toy.framework(steps=8, steps_per_dispatch=2, clip=0.0))
  trainer.train(framework, toy.config(), tmp_path / "one", toy.data(44), toy.data(8))
  assert [process.wait() for process in processes] == [0, 0]

  for group in (1, 3):
    batches = pipeline.batches({"row": np.arange(11)}, 8, seed=5, group=group)
    seen = [np.load(tmp_path / f"batches_{i}.npz") for i in range(2)]
    for i in range(4):
      expected = next(batches)["row"]
      for rows in seen:
        np.testing.assert_array_equal(rows[f"{group}_{i}"], expected)
  # One process can finish what two have started.
  assert (checkpoints.latest_step(tmp_path / "half", framework.stages[0].name) or 8) < 8
  trainer.train(framework, toy.config(), tmp_path / "half", toy.data(44), toy.data(8))
  check_equals_one_device(toy, framework, tmp_path / "half", tmp_path / "one")
  entire, parts = (checkpoints.load_params(framework, tmp_path / d) for d in ("whole", "parts"))
  for x, y in zip(jax.tree.leaves(entire), jax.tree.leaves(parts), strict=True):
    np.testing.assert_array_equal(x, y)
  check_equals_one_device(toy, framework, tmp_path / "whole", tmp_path / "one")


def test_all_rows_gathers_the_rows_of_all_parts():
  x = jax.numpy.arange(6.0).reshape(3, 2)
  np.testing.assert_array_equal(parallel.all_rows(x), x)
  parts = jax.vmap(parallel.all_rows, axis_name=parallel.PARTS)(x.reshape(3, 1, 2))
  np.testing.assert_array_equal(parts, np.broadcast_to(x, (3, 3, 2)))
