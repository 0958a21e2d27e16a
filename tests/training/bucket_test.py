"""Tests a run whose workdir is on `gs://`, in a bucket served by this machine (`fake_gcs`)."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from mmdiff_jax.training import checkpoints

_HERE = pathlib.Path(__file__)
_ROOT = _HERE.parents[2]
_WORKDIR = "gs://bucket/some runs/1"
_PREFIX = _WORKDIR.removeprefix("gs://")

# Each process stands for one command of a user, since both clients read the environment once.
_SETUP = """
import importlib.util, sys
import jax
import numpy as np
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
framework, workdir = toy.only_first(toy.framework()), sys.argv[2]

def train():
  return toy.trainer.train(framework, toy.config(), workdir, toy.data(), toy.data(8))
"""
_TRAIN = _SETUP + "train()"
_LOAD = """
params = checkpoints.load_params(framework, workdir)
np.savez(sys.argv[3], **params["first"])
"""
_REFUSED = """
try:
  checkpoints.load_params(framework, workdir)
  raise SystemExit("a damaged checkpoint was read")
except UserError as error:
  print(error)
train()
"""
# Writes the files of evaluation and sampling, which need no trained framework for that.
_RESULTS = """
from experiments import sample
from mmdiff_jax import storage
from mmdiff_jax.data import array_files
from mmdiff_jax.evaluation import classifiers
folder = storage.path(workdir) / "samples"
samples = {name: x[:4] for name, x in toy.data(8).items()}
sample.write(folder, "joint", toy.MODALITIES, {}, samples)
assert array_files.kept_npz(folder / "none.npz") is None
assert (array_files.kept_npz(folder / "joint.npz")["image"] == samples["image"]).all()
data, labels = toy.data(8)["words"], np.arange(8) % 2
messages = []
for _ in range(2):
  classifiers.load_or_fit(toy.MODALITIES[2], data, labels, folder, num_steps=1, say=messages.append)
assert len(messages) == 1, messages
"""


@pytest.fixture
def gcs(tmp_path):
  if not shutil.which("openssl") or not importlib.util.find_spec("tensorflow"):
    pytest.skip("needs openssl, for a certificate, and TensorFlow")
  spec = importlib.util.spec_from_file_location("fake_gcs", _HERE.with_name("fake_gcs.py"))
  fake_gcs = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(fake_gcs)
  with fake_gcs.bucket(tmp_path) as server:
    yield server


def _start(gcs, code, *more):
  arguments = [_HERE.with_name("conftest.py"), _WORKDIR, *more]
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, arguments)],
    cwd=_ROOT,
    env={**os.environ, **gcs.environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _run(gcs, code, *more):
  process = _start(gcs, code, *more)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  return output


def _names(gcs):
  """Returns the names of files in the workdir, without the objects that stand for folders."""
  names = [name.removeprefix(f"{_PREFIX}/") for name in sorted(gcs.objects)]
  return [name for name in names if name and not name.endswith("/")]


def _steps(gcs):
  return [json.loads(x)["step"] for x in gcs.objects[f"{_PREFIX}/metrics.jsonl"][1].splitlines()]


@pytest.mark.slow
def test_a_run_is_killed_resumed_and_loaded_and_a_flipped_bit_is_detected(gcs, toy, tmp_path):
  sums = f"{_PREFIX}/checkpoints/first_stage/4.sha256.json"
  process = _start(gcs, _TRAIN)
  try:
    deadline = time.monotonic() + 300
    while sums not in gcs.objects and process.poll() is None and time.monotonic() < deadline:
      time.sleep(0.02)
  finally:
    process.kill()
  output, _ = process.communicate()
  assert sums in gcs.objects, output
  assert _steps(gcs)[:2] == [2, 4]

  output = _run(gcs, _SETUP + "train()" + _LOAD + _RESULTS, tmp_path / "params.npz")
  assert "8 steps" not in output and "steps from step" in output, output
  framework = toy.only_first(toy.framework())
  local = tmp_path / "local"
  toy.trainer.train(framework, toy.config(), local, toy.data(), toy.data(8))
  expected = checkpoints.load_params(framework, local)["first"]
  with np.load(tmp_path / "params.npz") as params:
    assert {name: np.asarray(x).tobytes() for name, x in expected.items()} == {
      name: x.tobytes() for name, x in params.items()
    }
  assert _steps(gcs) == [2, 4, 6, 8, 10, 12]
  names = _names(gcs)
  in_stage = {name.split("/")[2] for name in names if name.startswith("checkpoints/")}
  assert in_stage == {"8", "8.sha256.json", "12", "12.sha256.json"}
  assert {"config.json", "data.json", "samples/joint.png", "samples/joint_sound.wav"} < set(names)
  assert any(name.startswith("tensorboard/first_stage/events") for name in names)

  # A flipped bit in the arrays, which Orbax would restore without an error.
  start = f"{_PREFIX}/checkpoints/first_stage/12/model/d/"
  name = next(name for name in gcs.objects if name.startswith(start) and name != start)
  generation, content = gcs.objects[name]
  middle = len(content) // 2
  flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
  gcs.objects[name] = generation + 1, flipped
  output = _run(gcs, _SETUP + _REFUSED + _LOAD, tmp_path / "again.npz")
  assert "has changed since it was written. Delete that folder" in output
  assert "WARNING: first_stage: the checkpoint of step 12 is damaged" in output
  damaged = [name.split("/", 2)[2] for name in _names(gcs) if name.startswith("damaged/")]
  assert "12.sha256.json" in damaged and len(damaged) > 20
  assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "params.npz").read_bytes()
  assert not (_ROOT / "gs:").exists()
