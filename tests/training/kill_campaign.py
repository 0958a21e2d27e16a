"""Kills trainings at random moments, and checks that they end like an uninterrupted one.

  python tests/training/kill_campaign.py [--frameworks=mld,codi] [--kills=20] [--seed=0]

A training of all stages of a framework, by the command line and with few steps, is killed (SIGKILL)
after a random time, and started again by the same command, until it ends. If it ends before the
number of kills is reached, another one follows. Each must end with the parameters of one that was
not interrupted, bit for bit, and the same lines in its log. No start may train a stage that was
finished before it, or resume from anything but the last checkpoint.
"""

import argparse
from collections import Counter
import json
import os
from pathlib import Path
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments import setup  # noqa: E402
from mmdiff_jax.training import checkpoints, workdir as workdir_lib  # noqa: E402

# Config file and data set, the stages to train, and the fields that make it small.
FRAMEWORKS = {
  "mld": (
    "configs/mld.py:digits",
    ("autoencoder.tone", "autoencoder.caption", "score"),
    (
      "modalities=('tone', 'caption')",
      "evaluation.subsets=()",
      "autoencoder.tone.width=32",
      "autoencoder.caption.width=32",
      "score.network.width=32",
      "score.network.tower_width=32",
    ),
  ),
  "codi": (
    "configs/codi.py:digits",
    (
      *(f"autoencoder.{name}" for name in ("caption", "digit", "speech", "video")),
      *("bridging", "diffusion", "alignment"),
    ),
    (
      "data.of=digits",
      *(f"autoencoder.{name}.width=32" for name in ("caption", "digit", "speech", "video")),
      "bridging.network.width=16",
      *("diffusion.network.width=32", "diffusion.network.depth=1", "diffusion.network.hidden=32"),
      "alignment.environment.width=32",
    ),
  ),
}
STEPS = 60


class Start(NamedTuple):
  """One start of a training.

  Attributes:
    lines: the lines that it printed.
    when: the seconds after the start at which it printed them.
    killed: whether it was killed before it ended.
  """

  lines: list[str]
  when: list[float]
  killed: bool


def command(name: str, workdir: Path) -> list[str]:
  """Returns the command of a training with a checkpoint every 10 steps."""
  config, trainings, options = FRAMEWORKS[name]
  changes = [*options, "monitor.log_every=10", "monitor.checkpoint_every=10"]
  for training in trainings:
    changes += [f"{training}.training.steps={STEPS}", f"{training}.training.batch_size=32"]
    changes += [f"{training}.training.steps_per_dispatch=5"]
  flags = [f"--config={config}", f"--workdir={workdir}", *(f"--config.{x}" for x in changes)]
  return [sys.executable, "-m", "experiments.train", *flags]


def without_tensorflow(folder: Path) -> dict[str, str]:
  """Returns an environment without TensorFlow, whose TensorBoard files double the time of a run."""
  (folder / "tensorflow.py").write_text("raise ImportError('left out')")
  return {**os.environ, "PYTHONPATH": str(folder)}


def start(name: str, workdir: Path, delay: float | None = None, *, at_once: bool = False) -> Start:
  """Runs a training, and kills it `delay` seconds after its first line, or after its start."""
  arguments = command(name, workdir)
  process = subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=without_tensorflow(workdir.parent),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  started, lines, when = time.monotonic(), [], []
  timer = threading.Timer(delay or 0.0, process.kill)
  if delay and at_once:
    timer.start()
  for line in process.stdout:
    lines.append(line.rstrip())
    when.append(time.monotonic() - started)
    if delay and len(lines) == 1 and not at_once:
      timer.start()
  code = process.wait()
  timer.cancel()
  if code not in (0, -signal.SIGKILL):
    raise AssertionError("\n".join([f"exit code {code} of {' '.join(arguments)}", *lines]))
  return Start(lines, when, code != 0)


def campaign(name: str, kills: int, seed: int, folder: Path) -> Counter:
  """Trains a framework until it has been killed a number of times.

  Args:
    name: the framework's name.
    kills: the number of kills.
    seed: the seed of the moments.
    folder: receives the workdirs.

  Returns:
    The number of kills in each stage, and before any ("start").

  Raises:
    AssertionError: a training differs from the uninterrupted one, or has trained a stage twice.
  """
  rng = random.Random(f"{name} {seed}")
  uninterrupted_dir = folder / f"{name}_whole"
  uninterrupted = start(name, uninterrupted_dir)
  framework = setup.build(workdir_lib.load_config(uninterrupted_dir))
  expected = outcome(framework, uninterrupted_dir)
  # Later starts reuse compiled functions; this spreads the kills over all stages.
  longest = (uninterrupted.when[-1] - uninterrupted.when[0]) / max(kills / 2, 3)
  counts = Counter()
  while counts.total() < kills:
    workdir = folder / f"{name}_{counts.total()}"
    killed = True
    while killed:
      before = {
        stage.name: checkpoints.latest_step(workdir, stage.name) or 0 for stage in framework.stages
      }
      if counts.total() == kills:
        run = start(name, workdir)
      elif rng.random() < 0.2:
        run = start(name, workdir, rng.uniform(0.1, uninterrupted.when[0]), at_once=True)
      else:
        run = start(name, workdir, rng.uniform(0.01, longest))
      check(run.lines, before)
      killed = run.killed
      if killed:
        stages = re.findall(r"^(\w+): preparing$", "\n".join(run.lines), re.MULTILINE)
        counts[stages[-1] if stages else "start"] += 1
        last = run.lines[-1] if run.lines else "no line"
        print(f"{name}: kill {counts.total()}: {last}", flush=True)
    compare(outcome(framework, workdir), expected)
    print(f"{name}: {workdir.name} ended like the uninterrupted one", flush=True)
  return counts


def check(lines: list[str], before: dict[str, int]) -> None:
  """Checks the lines that a start printed against the last checkpoints before it."""
  text = "\n".join(lines)
  for stage, step in before.items():
    if step == STEPS:
      assert f"{stage}: preparing" not in lines, f"{stage} was finished\n{text}"
    since = f" from step {step}" if step else ""
    match = re.search(rf"^{stage}: {STEPS} steps(.*), .* parameters", text, re.MULTILINE)
    assert not match or match[1] == since, f"{stage} does not start{since}\n{text}"
  assert "WARNING: " not in text, text


def outcome(framework, workdir: Path) -> tuple:
  """Returns the parameters of all stages and their EMA, and the log without step times."""
  log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for row in log:
    row.pop("ms_per_step", None)
  stages = [
    checkpoints.load_stage(workdir, stage.name, ema=ema)
    for stage in framework.stages
    for ema in (False, True)
  ]
  return stages, log


def compare(actual: tuple, expected: tuple) -> None:
  """Raises AssertionError unless both are the same, bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, actual[0], expected[0])
  assert actual[1] == expected[1]


def main() -> None:
  """Runs the campaign that the command line describes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--frameworks", default="mld,codi")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    for name in arguments.frameworks.split(","):
      counts = campaign(name, arguments.kills, arguments.seed, Path(folder))
      print(f"{name}: {counts.total()} kills: {dict(counts)}", flush=True)


if __name__ == "__main__":
  main()
