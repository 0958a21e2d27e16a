"""Checks the shapes in annotations while tests run, on the CPU and quickly compiled."""

import os

# Before jax is imported: tests run on the CPU wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of their time is compilation, of programs that run for moments.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook("mmdiff_jax", "beartype.beartype")


@pytest.fixture(name="unchecked")
def _unchecked():
  """Users run without the checks of annotations, which would raise before our errors do."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
