"""Tests several processes, started as from a shell: their training, and the loss of one."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from experiments import processes, train
from mmdiff_jax.training import checkpoints, lock

LOAD_TOY = f"""
import importlib.util
file = {str(pathlib.Path(__file__).parents[1] / "training" / "conftest.py")!r}
spec = importlib.util.spec_from_file_location("toy", file)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
"""

CONFIG = f"""{LOAD_TOY}
def get_config():
  config = toy.config(framework="toy", steps=12)
  config.monitor.fault = ""
  return config
"""

# Replaces the frameworks by the toy one, leaves out TensorFlow, which takes seconds to load, and
# adds a fault to the second process, in the report of step 6; the last checkpoint is of step 4.
MAIN = f"""{LOAD_TOY}
import dataclasses, os, pathlib, signal, sys, time
sys.modules["tensorflow"] = None
import jax
from experiments import setup, train
from mmdiff_jax.data import datasets

def build(config):
  framework = toy.framework(steps=config.steps, steps_per_dispatch=2, clip=0.0)
  def report(*arguments):
    fault = config.monitor.fault if jax.process_index() == 1 else ""
    # It is written while training continues.
    sealed = pathlib.Path(setup.WORKDIR.value, "checkpoints", "first_stage", "4.sha256.json")
    while fault and not sealed.exists():
      time.sleep(0.1)
    if fault == "hang":
      time.sleep(1000)
    elif fault == "error":
      raise OSError("no such file server")
    elif fault:
      os.kill(os.getpid(), getattr(signal, fault))
    return toy.report(*arguments)
  stage = dataclasses.replace(framework.stages[0], report=report)
  return dataclasses.replace(framework, stages=(stage,))

setup.build = build
datasets.load = lambda name, split, data_dir: toy.data(44 if split == "train" else 8)
setup.run(train.main, required=("config", "workdir"))
"""


@pytest.fixture
def start(tmp_path):
  """Starts processes, and kills them at the end of the test."""
  (tmp_path / "config.py").write_text(CONFIG)
  started = []

  def start(workdir, *flags, num=2, devices=4, slurm=False):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    for i in range(num):
      rank = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={num}", f"--process_id={i}")
      common = (f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}", *flags)
      environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **(slurm_variables(i) if slurm else {}),
      }
      with (tmp_path / f"out{i}").open("w") as out, (tmp_path / f"err{i}").open("w") as err:
        command = [sys.executable, "-c", MAIN, *common, *(() if slurm else rank)]
        started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
    return started[-num:]

  yield start
  for process in started:
    process.kill()
    process.wait()


def slurm_variables(process):
  """Returns the variables of `srun --nodes=2 --ntasks=2`, with this machine as both hosts."""
  return {
    "SLURM_JOB_ID": str(os.getpid()),  # The port is made from it.
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(process),
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
  }


def exit_codes(started):
  return [process.wait(240) for process in started]


def metrics(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return np.array([[line[name] for name in ("step", "loss", "grad_norm")] for line in lines])


SHORT = ("--config.monitor.peer_timeout=5",)


def check_ended_by_peer(process, log):
  """JAX missed the other's heartbeats and aborted, or a collective failed before that."""
  assert process.wait(60) in (-signal.SIGABRT, 1)
  last = "another task died" if process.returncode < 0 else "This process ends with the error above"
  assert last in log.read_text()


@pytest.mark.slow
def test_one_killed_ends_the_other_and_two_or_one_resume(start, tmp_path):
  entire, killed, one = (tmp_path / name for name in ("whole", "killed", "one"))
  assert exit_codes(start(entire)) == [0, 0]
  assert f"Trained: {entire}" in (tmp_path / "out0").read_text()
  # Gloo's threads write there, and mix their lines, but training does not.
  outputs = [(tmp_path / name).read_text() for name in ("out1", "err1")]
  assert "first_stage" not in "".join(outputs) and "Trained" not in "".join(outputs)

  first, second = start(killed, *SHORT, "--config.monitor.fault=SIGKILL")
  assert second.wait(240) == -signal.SIGKILL
  check_ended_by_peer(first, tmp_path / "err0")
  assert checkpoints.latest_step(killed, "first_stage") == 4
  shutil.copytree(killed, one)

  assert exit_codes(start(killed)) == [0, 0]
  trained = [checkpoints.load_stage(workdir, "first_stage") for workdir in (entire, killed)]
  for x, y in zip(*map(jax.tree.leaves, trained), strict=True):
    np.testing.assert_array_equal(x, y)

  assert exit_codes(start(one, num=1, devices=8)) == [0]
  assert "first_stage: 12 steps from step 4" in (tmp_path / "out0").read_text()
  assert len(metrics(entire)) == 6
  np.testing.assert_allclose(metrics(one), metrics(entire), rtol=1e-4)


@pytest.mark.slow
def test_another_training_is_reported_by_all(start, tmp_path):
  with lock.training(tmp_path / "run"):
    assert exit_codes(start(tmp_path / "run")) == [2, 2]
  for i in range(2):
    paragraph = (tmp_path / f"err{i}").read_text().splitlines()[-1]
    assert paragraph.startswith("Another process trains") and f"pid {os.getpid()} on" in paragraph


@pytest.mark.slow
def test_one_stopped_ends_the_other(start, tmp_path):
  first, second = start(tmp_path / "run", *SHORT, "--config.monitor.fault=SIGSTOP")
  assert os.WIFSTOPPED(os.waitpid(second.pid, os.WUNTRACED)[1])
  check_ended_by_peer(first, tmp_path / "err0")
  second.send_signal(signal.SIGCONT)
  assert second.wait(30) != 0


@pytest.mark.slow
def test_one_with_an_error_ends_the_other(start, tmp_path):
  first, second = start(tmp_path / "run", *SHORT, "--config.monitor.fault=error")
  assert second.wait(240) == 1
  output = (tmp_path / "err1").read_text()
  assert "OSError: no such file server\nThis process ends with the error above" in output
  check_ended_by_peer(first, tmp_path / "err0")


@pytest.mark.slow
def test_one_that_hangs_ends_all(start, tmp_path):
  """Its heartbeats continue, so that JAX does not detect it."""
  faulty = ("--config.monitor.fault=hang", "--config.monitor.stall_timeout=40")
  assert exit_codes(start(tmp_path / "run", *faulty)) == [1, 1]
  output = (tmp_path / "err1").read_text()
  assert "in report" in output
  assert "Nothing was finished for 40 s (config.monitor.stall_timeout)" in output


@pytest.mark.slow
def test_sigterm_to_one_of_two_that_slurm_started(start, tmp_path):
  """Both save the same step and report it."""
  intervals = (f"--config.monitor.{name}_every={n}" for name, n in (("log", 10), ("report", 10**6)))
  long = ("--config.steps=1000000", "--config.monitor.checkpoint_every=1000000")
  first, second = start(tmp_path / "run", *intervals, *long, slurm=True)
  started = time.monotonic()
  while not (tmp_path / "run" / "metrics.jsonl").exists():
    assert (first.poll(), second.poll()) == (None, None)
    assert time.monotonic() - started < 240
    time.sleep(0.1)
  second.send_signal(signal.SIGTERM)
  # It takes less than 30 s on an idle machine.
  assert [process.wait(60) for process in (first, second)] == [75, 75]
  step = checkpoints.latest_step(tmp_path / "run", "first_stage")
  for i in range(2):
    assert f"is saved at step {step:,} of" in (tmp_path / f"err{i}").read_text()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--num_processes=2", "--process_id=0"), ("--coordinator must be given, too",)),
    (("--coordinator=localhost:1234",), ("--num_processes and --process_id must",)),
    (("--coordinator=host", "--num_processes=2", "--process_id=1"), ("'host'", "HOST:PORT")),
    (("--coordinator=host:99999", "--num_processes=2", "--process_id=0"), ("host:99999",)),
    (("--coordinator=host:1", "--num_processes=2", "--process_id=2"), ("2 of --num_processes=2",)),
    (
      ("--coordinator=host:1", "--num_processes=2", "--process_id=1")
      + ("--config.monitor.peer_timeout=0",),
      ("config.monitor.peer_timeout is 0",),
    ),
  ],
)
def test_wrong_flags_are_refused(command, refused, tmp_path, arguments, words):
  config = ("--config=configs/mld.py:digits", f"--workdir={tmp_path / 'run'}")
  refused(command(train, *config, *arguments), *words)


def test_port_in_use_is_refused(command, refused, tmp_path):
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    rank = (f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0")
    config = ("--config=configs/mld.py:digits", f"--workdir={tmp_path / 'run'}")
    refused(command(train, *config, *rank), f"localhost:{port}", "another port")


@pytest.fixture
def peers(monkeypatch):
  """`peers(num_processes, platforms, **environment)` returns the options that describe peers."""
  for name in list(os.environ):
    if name.startswith(("SLURM_", "TPU_", "MEGASCALE_")):
      monkeypatch.delenv(name)

  def peers(num_processes=None, platforms=None, **environment):
    config = types.SimpleNamespace(jax_platforms=platforms)
    flags = {"coordinator": None, "num_processes": num_processes, "process_id": None}
    with monkeypatch.context() as patch:
      patch.setattr(processes, "jax", types.SimpleNamespace(config=config))
      for name, value in flags.items():
        flag = types.SimpleNamespace(name=name, value=value)
        patch.setattr(processes, f"_{name.upper()}", flag)
      for name, value in environment.items():
        patch.setenv(name, value)
      return processes._peers()

  return peers


def test_single_processes_have_no_peers(peers):
  assert peers() is None
  assert peers(platforms="cpu", TPU_WORKER_HOSTNAMES="a,b") is None
  # A script of sbatch, and a single task of srun.
  assert peers(SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0") is None
  assert peers(**{**slurm_variables(0), "SLURM_STEP_NUM_TASKS": "1"}) is None
  assert peers(num_processes=1, **slurm_variables(0)) is None
  assert peers(num_processes=1, platforms="tpu,cpu") is None
  assert peers(platforms="tpu,cpu", TPU_WORKER_HOSTNAMES="localhost") is None
  assert peers(platforms="tpu,cpu", TPU_SKIP_MDS_QUERY="1") is None


def test_peers_are_detected(peers):
  # A single task of a host has all of its devices, several have one each.
  slurm = {"cluster_detection_method": "slurm"}
  assert peers(**slurm_variables(0)) == {**slurm, "local_device_ids": []}
  assert peers(**{**slurm_variables(0), "SLURM_STEP_NUM_NODES": "1"}) == {
    **slurm,
    "local_device_ids": None,
  }
  assert peers(platforms="tpu,cpu") == {}
  assert peers(platforms="tpu", TPU_WORKER_HOSTNAMES="a,b") == {}
  slices = {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}
  assert peers(platforms="tpu,cpu", **slices) == {}
