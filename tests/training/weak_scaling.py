"""Prints how much a step communicates on all devices of this process, for `parallel_test.py`.

The batch grows with the number of devices. Nothing is computed: the step is compiled for shapes.
"""

import importlib.util
import json
import pathlib

import jax
import numpy as np

from configs import mcdm
from experiments import setup
from mmdiff_jax import parallel
from mmdiff_jax.training import state as state_lib, step as step_lib


def eight_devices():
  path = pathlib.Path(__file__).with_name("eight_devices.py")
  spec = importlib.util.spec_from_file_location("eight_devices", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def main():
  config = mcdm.get_config("unconditional")
  # Each array that is split has an axis that 64 devices divide.
  config.network.update({"width": 64, "multipliers": (1,), "attention": ()})
  (stage,) = setup.build(config).stages
  batch = {"digit": jax.ShapeDtypeStruct((2 * jax.device_count(), 28, 28, 1), np.float32)}
  key = jax.random.key(0)
  counts = {}
  for name, mesh in {"data": (-1, 1), "shard": (1, -1)}.items():
    layout = parallel.make_layout(mesh=mesh, min_shard_size=2**10)
    tx = state_lib.optimizer(stage.settings)
    state, _ = step_lib.initial_state(stage, tx, layout, key, {}, batch)
    names, step = step_lib.make_train_step(stage, tx, layout, state.params, {}, batch)
    meter = step_lib.new_meter(layout, names)
    text = step.lower(state, meter, {}, key, batch).compile().as_text()
    leaves = jax.tree.leaves(state.params)
    counts[name] = {
      "parameters": sum(x.size for x in leaves),
      "split": sum(x.size for x in leaves if not x.sharding.is_fully_replicated),
      **{kind: sum(sizes) for kind, sizes in eight_devices().communicated(text).items()},
    }
  print(json.dumps(counts))


if __name__ == "__main__":
  main()
