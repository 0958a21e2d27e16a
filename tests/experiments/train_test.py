"""Tests the entry point as a user calls it: a process, its exit code and its output."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest

from configs import mld as mld_config
from experiments import train
from mmdiff_jax.data import datasets
from mmdiff_jax.training import lock

TOY = pathlib.Path(__file__).parents[1] / "training" / "conftest.py"

CONFIG = """
  import ml_collections

  def get_config(dataset="toy"):
    return ml_collections.ConfigDict({
      "framework": "toy", "seed": 3, "rate": 0.05,
      "modalities": ("image", "sound", "words"),
      "data": {"name": dataset, "data_dir": ml_collections.config_dict.placeholder(str)},
      "parallel": {"kind": "jit", "mesh": (-1, 1), "min_shard_size": 65536},
      "monitor": {"log_every": 2, "report_every": 6, "checkpoint_every": 4, "keep": 2, "best": "",
                  "peer_timeout": 100, "stall_timeout": 1800.0},
    })
"""

# Replaces the frameworks by the toy one, and leaves out TensorFlow, which takes seconds to load.
TOY_IN_PLACE = f"""
  import importlib.util, sys
  sys.modules["tensorflow"] = None
  from experiments import setup, train
  from mmdiff_jax.data import datasets

  def toy():
    spec = importlib.util.spec_from_file_location("toy", {str(TOY)!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  setup.build = lambda config: toy().framework(learning_rate=config.rate)
  datasets.load = lambda name, split, data_dir: toy().data(48 if split == "train" else 8)
"""
RUN = """
  setup.run(train.main, required=("config", "workdir"))
"""


@pytest.fixture
def start(tmp_path):
  (tmp_path / "config.py").write_text(textwrap.dedent(CONFIG))

  def start(*arguments, before=""):
    return subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(TOY_IN_PLACE + before + RUN), *arguments],
      # Compiled as for a user: only slow compilations are cached.
      env={
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "XLA_FLAGS": "",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.fixture
def run(start):
  def run(*arguments, before=""):
    process = start(*arguments, before=before)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)

  return run


def flags(tmp_path, *more):
  return [f"--config={tmp_path / 'config.py'}:toy", f"--workdir={tmp_path / 'run'}", *more]


def check_error(result, code, *words):
  """Checks the exit code of a process, and that it ends with one paragraph with these words."""
  assert result.returncode == code, result.stderr
  paragraph = result.stderr.strip().splitlines()[-1]
  assert "Traceback" not in result.stderr
  for word in words:
    assert word in paragraph


def test_trains_resumes_and_refuses_another_config(run, tmp_path):
  first = run(*flags(tmp_path))
  assert first.returncode == 0, first.stderr
  assert "second_stage: 12/12  loss" in first.stdout
  assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 12
  assert json.loads((tmp_path / "run" / "config.json").read_text())["rate"] == 0.05
  assert any((tmp_path / "xla").iterdir())

  again = run(*flags(tmp_path, "--config.monitor.log_every=1"))
  assert again.returncode == 0, again.stderr
  assert "second_stage: trained already" in again.stdout

  other = run(*flags(tmp_path, "--config.rate=0.1"))
  check_error(other, 2, "rate was 0.05, now 0.1", "--workdir")


def test_loss_that_is_not_finite(run, tmp_path):
  result = run(*flags(tmp_path, f"--config.rate={np.float32(1e38)}"))
  check_error(result, 3, "'first_stage' at step", "sound")


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--config.data.nme=x", ("no key 'data.nme'", "--config.data.name")),
    ("--config.sed=1", ("no key 'sed'", "--config.seed")),
    ("--config.seed=many", ("seed",)),
    ("--confg=x", ("confg",)),
    ("digits", ("'digits'", "--NAME=VALUE")),
  ],
)
def test_bad_arguments(run, tmp_path, argument, words):
  check_error(run(*flags(tmp_path, argument)), 2, *words)
  assert not (tmp_path / "run").exists()


def test_drops_modalities_on_purpose(tmp_path, monkeypatch):
  config = mld_config.get_config("digits")
  config.drop_prob = 0.5
  seen = {}
  monkeypatch.setattr(train.processes, "joined", contextlib.nullcontext)
  monkeypatch.setattr(train.flags, "CONFIG", types.SimpleNamespace(value=config))
  monkeypatch.setattr(train.flags, "STAGES", types.SimpleNamespace(value=[]))
  monkeypatch.setattr(train.setup, "WORKDIR", types.SimpleNamespace(value=tmp_path))
  rows = {name: np.zeros(100) for name in (*config.modalities, "label")}
  monkeypatch.setattr(train.datasets, "load", lambda **_: rows)
  monkeypatch.setattr(
    train.trainer, "train", lambda *args: seen.update(train=args[3], test=args[4])
  )
  train.main([])
  masks = [seen["train"][f"{name}_present"] for name in config.modalities]
  assert 0.4 < np.mean(masks) < 0.7
  assert seen["test"].keys() == rows.keys()  # The test split is complete.


def test_asked_to_stop_while_data_are_read(run, tmp_path):
  """Exit code 75, as during a stage: nothing is lost, and the command can be run again."""
  signal = """
  import os, signal
  datasets.load = lambda **_: os.kill(os.getpid(), signal.SIGTERM)
  """
  check_error(run(*flags(tmp_path), before=signal), 75, "resumes")
  assert not (tmp_path / "run").exists()


@pytest.fixture
def unread(monkeypatch):
  """Makes reading data an error."""

  def load(**_):
    raise AssertionError("data were read")

  monkeypatch.setattr(datasets, "load", load)


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--stages=scor", ("no stage 'scor'", "score")),
    ("--stages=score", ("'score' needs autoencoder_digit",)),
    ("--config.parallel.mesh=(3, 5)", ("config.parallel.mesh is (3, 5)", "(-1, 1)")),
    ("--config.score.training.accumulate=7", ("256 examples", "7 pieces", "multiple of 7")),
    ("--config.monitor.keep=0", ("config.monitor.keep",)),
    ("--config.seed=1", ("seed was 0, now 1",)),
  ],
)
def test_checks_without_data_come_first(command, refused, unread, tmp_path, argument, words):
  config = mld_config.get_config("digits")
  (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
  path = pathlib.Path(mld_config.__file__)
  refused(command(train, f"--config={path}", f"--workdir={tmp_path}", argument), *words)


def test_another_training_is_reported_before_data_are_read(command, refused, unread, tmp_path):
  flag = f"--config={pathlib.Path(mld_config.__file__)}"
  with lock.training(tmp_path / "run"):
    refused(command(train, flag, f"--workdir={tmp_path / 'run'}"), "Another process trains in")


# The first report prints that training has started, and then blocks.
BLOCKED = """
  import dataclasses, pathlib, time

  def blocked(build):
    def report(*_):
      print("blocked", flush=True)
      time.sleep(600)
    framework = build()
    stages = tuple(dataclasses.replace(stage, report=report) for stage in framework.stages)
    return dataclasses.replace(framework, stages=stages)

  build = setup.build
  setup.build = lambda config: blocked(lambda: build(config))
"""


@pytest.mark.slow
def test_two_trainings_in_one_workdir(start, run, tmp_path):
  """The second one changes nothing; the first releases its lock when it ends, even by SIGKILL."""

  def contents():
    return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

  first = start(*flags(tmp_path), before=BLOCKED)
  try:
    while "blocked" not in (line := first.stdout.readline()):
      assert line, first.communicate()
    while not (tmp_path / "run/checkpoints/first_stage/4.sha256.json").exists():
      time.sleep(0.01)
    before = contents()
    second = run(*flags(tmp_path, "--config.monitor.log_every=1"))
    check_error(
      second, 2, f"Another process trains in the workdir {tmp_path / 'run'}", f"{first.pid} on "
    )
    assert contents() == before
  finally:
    first.kill()
    first.communicate()
  resumed = run(*flags(tmp_path))
  assert resumed.returncode == 0, resumed.stderr
  assert "first_stage: 12 steps from step 4" in resumed.stdout
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == 2 * [2, 4, 6, 8, 10, 12]


def test_missing_arguments(run, tmp_path):
  check_error(run(f"--workdir={tmp_path / 'run'}"), 2, "--config")
  check_error(run("--config=no_such_file.py", "--workdir=x"), 2, "no config file 'no_such_file.py'")
  config = pathlib.Path(mld_config.__file__)
  check_error(
    run(f"--config={config}:nothing", "--workdir=x"), 2, "has no 'nothing'; it has digits"
  )
