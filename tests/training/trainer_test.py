import contextlib
import dataclasses
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from mmdiff_jax.data import pipeline
from mmdiff_jax.errors import PreemptedError, UserError
from mmdiff_jax.training import checkpoints, checksums, trainer


class StoppedError(Exception):
  """Raised by a test in the middle of a run, as a signal would."""


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def train(toy, workdir, framework=None, data=None, **fields):
  return trainer.train(
    framework or toy.framework(),
    toy.config(**fields),
    workdir,
    toy.data() if data is None else data,
    toy.data(8, seed=1),
  )


def stopping(framework, stage, call):
  """Returns the framework, interrupted at the given call of a stage's report."""
  calls = iter(range(100))

  def report(*args):
    if next(calls) == call:
      raise StoppedError
    return framework.stages[stage].report(*args)

  stages = list(framework.stages)
  stages[stage] = dataclasses.replace(stages[stage], report=report)
  return dataclasses.replace(framework, stages=tuple(stages))


def test_learns_both_stages_and_keeps_frozen_entries(toy, tmp_path):
  framework = toy.framework(steps=300, learning_rate=0.1, weight_decay=0.0)
  monitor = {"log_every": 50, "report_every": 1000, "checkpoint_every": 1000, "keep": 2, "best": ""}
  params = train(toy, tmp_path, framework, monitor=monitor)
  assert set(params) == {"first", "mean", "second"}
  losses = {(row["stage"], row["step"]): row["loss"] for row in toy.rows(tmp_path)}
  assert losses["first_stage", 300] < 0.1 * losses["first_stage", 50]
  equal(
    {name: params[name] for name in ("first", "mean")},
    checkpoints.load_stage(tmp_path, "first_stage"),
  )


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("stage", [0, 1])
def test_resumed_run_is_the_same_run(toy, tmp_path, group, stage):
  framework = toy.framework(steps_per_dispatch=group)
  uninterrupted = train(toy, tmp_path / "whole", framework)
  with pytest.raises(StoppedError):
    train(toy, tmp_path / "parts", stopping(framework, stage, call=0))
  assert checkpoints.latest_step(tmp_path / "parts", framework.stages[stage].name) == 4
  parts = train(toy, tmp_path / "parts", framework)
  equal(uninterrupted, parts)
  raw = [checkpoints.load_params(framework, tmp_path / d, ema=False) for d in ("whole", "parts")]
  equal(*raw)
  assert not np.array_equal(raw[0]["second"]["w"], uninterrupted["second"]["w"])
  # No line is repeated or missing.
  for a, b in zip(toy.rows(tmp_path / "whole"), toy.rows(tmp_path / "parts"), strict=True):
    assert {**a, "ms_per_step": 0} == {**b, "ms_per_step": 0}


def test_killed_and_resumed_run_is_the_same_run(toy, tmp_path):
  """SIGKILL at step 6, after the checkpoint of step 4 with batches prefetched."""
  code = """
    import dataclasses, importlib.util, os, signal, sys, time
    sys.modules["tensorflow"] = None
    from mmdiff_jax.training import checkpoints, checksums, trainer
    spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    framework = toy.framework()
    def report(*_):
      while checkpoints.latest_step(sys.argv[2], "first_stage") is None:
        time.sleep(0.01)
      os.kill(os.getpid(), signal.SIGKILL)
    stages = tuple(dataclasses.replace(stage, report=report) for stage in framework.stages)
    framework = dataclasses.replace(framework, stages=stages)
    trainer.train(framework, toy.config(), sys.argv[2], toy.data(), toy.data(8, seed=1))
  """
  killed = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), toy.file, str(tmp_path / "killed")],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  framework = toy.framework()
  uninterrupted = train(toy, tmp_path / "whole", framework)
  assert killed.wait() == -signal.SIGKILL
  assert checkpoints.latest_step(tmp_path / "killed", "first_stage") == 4
  assert [row["step"] for row in toy.rows(tmp_path / "killed")] == [2, 4, 6]
  equal(uninterrupted, train(toy, tmp_path / "killed", framework))
  equal(*(checkpoints.load_params(framework, tmp_path / d, ema=False) for d in ("whole", "killed")))


def test_sigterm_saves_and_the_run_can_be_resumed(toy, tmp_path):
  """The signal comes between two checkpoints; the final parameters are the same bit for bit."""
  framework = toy.framework()
  uninterrupted = train(toy, tmp_path / "whole", framework)
  before = signal.getsignal(signal.SIGTERM)

  def report(*_):
    signal.raise_signal(signal.SIGTERM)
    return {}

  first, second = framework.stages
  asked = dataclasses.replace(framework, stages=(dataclasses.replace(first, report=report), second))
  with pytest.raises(PreemptedError, match="first_stage is saved at step 7 of 12"):
    train(toy, tmp_path / "parts", asked)
  assert signal.getsignal(signal.SIGTERM) is before
  assert checkpoints.latest_step(tmp_path / "parts", "first_stage") == 7
  equal(uninterrupted, train(toy, tmp_path / "parts", framework))


def full_disk(monkeypatch, at):
  """Truncates the checkpoints of some steps, as on a full disk."""
  # The files of TensorBoard would be truncated, too.
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  save = checkpoints.Saver.save

  def cut(saver, state, *rest):
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 if state.step in at else limit, most))
    try:
      save(saver, state, *rest)
      saver.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
      signal.signal(signal.SIGXFSZ, previous)

  monkeypatch.setattr(checkpoints.Saver, "save", cut)


def test_full_disk_leaves_training_and_the_old_checkpoint_alone(toy, tmp_path, monkeypatch, capsys):
  framework = toy.framework()
  uninterrupted = train(toy, tmp_path / "whole", framework)
  with monkeypatch.context() as patch:
    full_disk(patch, at=(8,))
    resumed = train(toy, tmp_path / "full", framework)
  output = capsys.readouterr().out
  for word in (
    "WARNING: first_stage: NO CHECKPOINT AT STEP 8",
    "File too large",
    "Training continues",
  ):
    assert word in output
  equal(uninterrupted, resumed)
  steps = tmp_path / "full" / "checkpoints" / "first_stage"
  assert {path.name for path in steps.iterdir() if path.name.isdecimal()} == {"4", "12"}
  checksums.verify(steps / "4")


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 2 MB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
  if not shutil.which("mount") or subprocess.run(command, check=False).returncode:
    pytest.skip("no file system can be mounted here")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def test_training_continues_on_a_full_file_system(toy, small_disk, tmp_path, capsys):
  """Full from step 6 to 12: no checkpoint of 8, and the metrics are kept until there is room."""
  framework = toy.framework(steps=16)
  uninterrupted = train(toy, tmp_path / "whole", framework)
  workdir, filler = small_disk / "run", small_disk / "filler"
  page, calls = 4096, itertools.count(1)

  def report(*_):
    if next(calls) > 1:
      filler.unlink(missing_ok=True)
      return {}
    # The page in which the metrics end is filled, too.
    with (workdir / "metrics.jsonl").open("a") as file:
      row = json.dumps({"stage": "first_stage", "step": 6, "filler": ""})
      file.write(row[:-2] + "x" * (page - len(row) - 1 - file.tell()) + row[-2:] + "\n")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
      while True:
        file.write(bytes(page))
    return {}

  first, second = framework.stages
  filling = dataclasses.replace(
    framework, stages=(dataclasses.replace(first, report=report), second)
  )
  resumed = train(toy, workdir, filling)
  output = capsys.readouterr().out
  for words in ("NO CHECKPOINT AT STEP 8", "No space left on device",
                "metrics.jsonl could not be written", "metrics are kept"):  # fmt: skip
    assert words in output
  equal(uninterrupted, resumed)
  steps = [
    [(row["stage"], row["step"], row["loss"]) for row in toy.rows(folder) if "filler" not in row]
    for folder in (tmp_path / "whole", workdir)
  ]
  assert steps[0] == steps[1]


def test_last_checkpoint_that_cannot_be_written_is_an_error(toy, tmp_path, monkeypatch):
  framework = toy.framework()
  uninterrupted = train(toy, tmp_path / "whole", framework)
  with monkeypatch.context() as patch:
    full_disk(patch, at=(12,))
    with pytest.raises(UserError, match="last checkpoint of first_stage.*Make room"):
      train(toy, tmp_path / "full", framework)
  assert checkpoints.latest_step(tmp_path / "full", "first_stage") == 8
  equal(uninterrupted, train(toy, tmp_path / "full", framework))


@pytest.mark.parametrize("group", [5])
def test_several_steps_per_dispatch_are_the_same_steps(toy, tmp_path, group):
  monitor = {"log_every": 4, "report_every": 1000, "checkpoint_every": 1000, "keep": 2, "best": ""}
  one = train(toy, tmp_path / "one", toy.framework(steps=11), monitor=monitor)
  framework = toy.framework(steps=11, steps_per_dispatch=group)
  many = train(toy, tmp_path / "many", framework, monitor=monitor)
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_the_default_kind_of_keys_does_not_change_training(toy, tmp_path):
  framework = toy.only_first(toy.framework(steps=4, accumulate=2))
  default = train(toy, tmp_path / "default", framework)
  with jax.default_prng_impl("rbg"):
    equal(default, train(toy, tmp_path / "rbg", framework))


def test_a_stage_requires_the_stages_that_it_needs(toy, tmp_path):
  """They must be trained to their end; only named stages are trained, as if all had been named."""
  framework = toy.framework()
  first, second = framework.stages
  second = dataclasses.replace(second, needs=("first_stage",))
  framework = dataclasses.replace(framework, stages=(first, second))
  uninterrupted = train(toy, tmp_path / "whole", framework)

  def some(framework, *names):
    rest = toy.config(), tmp_path / "some", toy.data(), toy.data(8, seed=1)
    return trainer.train(framework, *rest, names)

  needed = r"'second_stage' needs first_stage.*Train that first: --stages=first_stage,second_stage"
  with pytest.raises(UserError, match=needed):
    some(framework, "second_stage")
  with pytest.raises(StoppedError):
    some(stopping(framework, stage=0, call=0), "first_stage")
  assert checkpoints.latest_step(tmp_path / "some", "first_stage") == 4
  with pytest.raises(UserError, match=needed):
    some(framework, "second_stage")
  assert set(some(framework, "first_stage")) == {"first", "mean"}
  equal(uninterrupted, some(framework, "second_stage"))
  with pytest.raises(UserError, match="no stage 'third'.*first_stage, second_stage"):
    some(framework, "third")


def test_finished_stages_are_skipped(toy, tmp_path):
  framework = toy.framework()
  params = train(toy, tmp_path, framework)

  def fail(*_):
    raise AssertionError("a finished stage was prepared again")

  stages = tuple(dataclasses.replace(stage, prepare=fail) for stage in framework.stages)
  before = toy.rows(tmp_path)
  equal(params, train(toy, tmp_path, dataclasses.replace(framework, stages=stages)))
  assert toy.rows(tmp_path) == before


@pytest.mark.parametrize("group", [1, 2])
def test_nan_stops_and_keeps_the_last_good_checkpoint(toy, tmp_path, group):
  framework = toy.framework(steps=16, steps_per_dispatch=group)
  data = toy.data(400)
  # A row that is used in the step after the first checkpoint.
  step = 4
  *_, batch = itertools.islice(pipeline.batches({"row": np.arange(400)}, 8, seed=3), step + 1)
  row = batch["row"][0]
  data["sound"][row, 0, 0] = np.nan
  with pytest.raises(trainer.DivergedError) as error:
    train(toy, tmp_path, framework, data)
  for word in ("'first_stage'", f"step {step}", "sound", "checkpoint"):
    assert word in str(error.value)
  assert checkpoints.latest_step(tmp_path, "first_stage") == 4
  report = json.loads((tmp_path / "diverged.json").read_text())
  assert (report["stage"], report["step"], report["last_checkpoint"]) == ("first_stage", step, 4)
  assert {"loss", "loss_sound", "grad_norm"} <= set(report["not_finite"])
  good = checkpoints.load_params(toy.only_first(framework), tmp_path)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(good))
  assert [row["step"] for row in toy.rows(tmp_path)] == [2, 4]


def test_metrics_lines(toy, tmp_path):
  train(toy, tmp_path, toy.framework(steps=5, learning_rate=0.5, warmup=2, final=0.2))
  first = [row for row in toy.rows(tmp_path) if row["stage"] == "first_stage"]
  assert [row["step"] for row in first] == [2, 4, 5]
  assert set(first[1]) == {
    "stage", "step", "loss", "loss_sound", "noise", "grad_norm", "learning_rate", "ms_per_step",
  }  # fmt: skip
  # Means over the steps since the line before: 0 and 0.25, then the cosine's first two.
  assert first[0]["learning_rate"] == pytest.approx(0.125)
  assert first[1]["learning_rate"] == pytest.approx((0.5 + 0.4) / 2)
  assert len({row["noise"] for row in toy.rows(tmp_path)}) == 6
  assert all(row["grad_norm"] > 0 and row["ms_per_step"] > 0 for row in first)


def test_init_must_return_the_entries_that_the_stage_trains(toy, tmp_path):
  framework = toy.framework()
  stage = dataclasses.replace(framework.stages[0], trainable=("other",))
  with pytest.raises(ValueError, match="is to train"):
    train(toy, tmp_path, dataclasses.replace(framework, stages=(stage,)))
