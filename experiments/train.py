"""Trains a framework, or resumes a training that was stopped.

python -m experiments.train --config=configs/mld.py:digits --workdir=DIR [--config.KEY=VALUE ...
  --stages=NAME,NAME]

On several hosts, with one process each, run the same command on all of them. Where neither Slurm's
srun nor a TPU pod identifies the processes, add

  --coordinator=HOST:PORT --num_processes=N --process_id=I
"""

from collections.abc import Sequence
from typing import NoReturn

import jax

from experiments import flags, processes, setup
from mmdiff_jax import storage
from mmdiff_jax.data import datasets, missing
from mmdiff_jax.errors import PreemptedError
from mmdiff_jax.training import lock, trainer


def main(argv: Sequence[str]) -> None:
  """Builds the framework, loads the data and trains."""
  del argv
  config = flags.CONFIG.value
  # During the steps of a stage the trainer handles SIGTERM; with several processes, JAX does.
  with trainer.on_sigterm(_between_steps), processes.joined(config.monitor.peer_timeout):
    framework = setup.build(config)
    workdir, stages = setup.WORKDIR.value, flags.STAGES.value
    trainer.check(framework, config, workdir, stages)
    if jax.process_index() == 0:
      storage.check_writable(workdir, "--workdir")
    if jax.process_count() == 1 and storage.path(workdir).exists():
      with lock.training(workdir):
        pass  # Reports another training now, since reading the data takes a while.
    data = {s: datasets.load(**config.data.to_dict(), split=s) for s in ("train", "test")}
    data["train"] = missing.drop(
      data["train"], config.modalities, config.get("drop_prob", 0.0), config.seed
    )
    trainer.train(framework, config, workdir, data["train"], data["test"], stages)
    if jax.process_index() == 0:
      print(f"Trained: {workdir}")


def _between_steps(*_: object) -> NoReturn:
  raise PreemptedError(
    "Asked to stop while reading data or preparing a stage; there was nothing to save. The same"
    " command resumes from the last checkpoint."
  )


if __name__ == "__main__":
  setup.run(main, required=("config", "workdir"))
