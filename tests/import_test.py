"""Tests of the packages that importing the library needs."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import mmdiff_jax
for heavy in ("tensorflow", "jax"):
  assert heavy not in sys.modules, heavy
below = ["schedules", "multitime", "prediction", "guidance", "modalities"]
rooms = ["solvers", "networks", "autoencoders", "frameworks"]
for name in [*below, *rooms]:
  module = importlib.import_module("mmdiff_jax." + name)
  for inner in pkgutil.iter_modules(getattr(module, "__path__", [])):
    importlib.import_module(module.__name__ + "." + inner.name)
importlib.import_module("mmdiff_jax.training.step")
for name in ("digits", "pairs_of_digits", "sketched_digits", "mnist", "poly_mnist"):
  module = importlib.import_module("mmdiff_jax.data." + name)
  getattr(module, "modalities", lambda: module.MODALITIES)()
for heavy in ("tensorflow", "clu", "tensorflow_datasets", "grain", "orbax"):
  assert heavy not in sys.modules, heavy
for name in ("classifiers", "coherence", "frechet", "pictures", "tables"):
  importlib.import_module("mmdiff_jax.evaluation." + name)
assert "tensorflow" not in sys.modules
"""


def test_no_tensorflow_and_nothing_of_training():
  result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
