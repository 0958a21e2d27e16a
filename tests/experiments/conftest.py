"""Fixtures: a small run on real data, and entry points as a user calls them."""

import sys
from typing import NamedTuple

from absl.testing import flagsaver
import jax
import numpy as np
import pytest

from configs import mld as mld_config
from experiments import setup
from mmdiff_jax.data import datasets, digits, digits_builder
from mmdiff_jax.training import trainer

MODALITIES = ("digit", "tone", "caption")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
  """`digits` with one draw of each digit image, as model inputs, by split."""
  drawn = digits_builder.Drawn(train=1, test=1)
  folder = str(tmp_path_factory.mktemp("prepared"))
  builder = digits_builder.Digits(data_dir=folder, config=drawn, file_format="array_record")
  builder.download_and_prepare()
  data = {}
  for split in ("train", "test"):
    inputs = [digits.model_view(records) for records in digits.read(builder, split)]
    data[split] = {name: np.concatenate([x[name] for x in inputs]) for name in inputs[0]}
  return data


@pytest.fixture(autouse=True)
def load_small_data(request, monkeypatch):
  """Makes the entry points load the small data set; its preparation is tested elsewhere."""
  if "trained" in request.fixturenames:
    small = request.getfixturevalue("small_data")
    monkeypatch.setattr(datasets, "load", lambda name, split, **_: small[split])


@pytest.fixture(scope="session")
def trained(small_data, tmp_path_factory):
  """A workdir with tiny networks that were trained for a few steps."""
  config = mld_config.get_config("digits")
  config.modalities = MODALITIES
  short = {"steps": 2, "batch_size": 16, "steps_per_dispatch": 1}
  for name in MODALITIES:
    config.autoencoder[name].width = 16
    config.autoencoder[name].training.update(short)
  config.score.network.update({"width": 16, "depth": 1, "tower_width": 8})
  config.score.training.update(short)
  # Quick to compile: no guidance, and all modalities together.
  config.sampling.update({"steps": 2, "guidance": 1.0, "order": ()})
  config.evaluation.update({"num": 30, "seeds": 2, "classifier_steps": 3})
  config.evaluation.subsets = (("digit", "tone"), ("digit", "scene"))
  config.monitor.best = "loss"
  workdir = tmp_path_factory.mktemp("workdir") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "tensorflow", None)  # It takes seconds to load.
    data = small_data
    trainer.train(setup.build(config), config, workdir, data["train"], data["test"])
  return workdir


class Ended(NamedTuple):
  """The exit code and output of a command."""

  code: int
  out: str
  err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path_factory):
  """`command(entry_point, *arguments)` runs a module's `main` as from a shell; see `setup.run`."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "xla"))

  def command(module, *arguments, **options):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    capsys.readouterr()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as error:
      setup.run(module.main, **options)
    return Ended(error.value.code or 0, *capsys.readouterr())

  return command


def check_refused(ended, *words):
  """Checks for exit code 2 and one paragraph with these words."""
  assert ended.code == 2, ended
  assert len(ended.err.strip().splitlines()) == 1
  for word in words:
    assert word in ended.err


@pytest.fixture
def refused():
  return check_refused
