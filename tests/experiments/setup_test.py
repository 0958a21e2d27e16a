import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from experiments import setup
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError


def config(**fields):
  return ml_collections.ConfigDict({"framework": "mld", "data": {"name": "digits"}, **fields})


def test_unknown_framework():
  with pytest.raises(UserError, match="'mdl'.*mld"):
    setup.build(config(framework="mdl", modalities=()))


def test_modalities_come_in_the_config_s_order():
  names = [modality.name for modality in datasets.modalities("digits")][:2]
  found = setup.modalities(config(modalities=tuple(reversed(names))))
  assert [modality.name for modality in found] == names[::-1]


def test_unknown_modality():
  with pytest.raises(UserError, match=r"no modality 'smell'.* It has: digit"):
    setup.modalities(config(modalities=("digit", "smell")))


ROOT = pathlib.Path(__file__).parents[2]


def start(module, *arguments, **environment):
  return subprocess.Popen(
    [sys.executable, "-m", f"experiments.{module}", *arguments],
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_first_line_comes_before_slow_imports(tmp_path):
  """JAX would be found in this folder, and would end the process."""
  (tmp_path / "jax.py").write_text("raise SystemExit('imported')")
  entry_points = ("train", "sample", "evaluate")
  started = [start(module, PYTHONPATH=str(tmp_path)) for module in entry_points]
  for process in started:
    out, err = process.communicate()
    assert out == "mmdiff_jax: loading\n"
    assert "imported" in err


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist_svhn", "spoken_mnist"])
def test_data_that_cannot_be_had_end_in_one_paragraph(tmp_path, dataset):
  """TensorFlow and tfds, which are asked for them, say nothing of their own."""
  (tmp_path / "sitecustomize.py").write_text(
    "import socket\n"
    "def offline(*_): raise OSError('no such host')\n"
    "socket.getaddrinfo = offline\n"
  )
  process = start(
    "train",
    f"--config=configs/mld.py:{dataset}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.data_dir={tmp_path}",
    HOME=str(tmp_path),
    PYTHONPATH=str(tmp_path),
  )
  out, err = process.communicate()
  assert process.returncode == 2, err
  assert out.splitlines() == [
    "mmdiff_jax: loading",
    f"Reading the data set {dataset} (train)",
  ]
  (paragraph,) = err.splitlines()
  assert paragraph.startswith("The data set 'mnist' is not prepared in")
  assert not (tmp_path / "run").exists()
