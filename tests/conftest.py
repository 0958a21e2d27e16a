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

from mmdiff_jax import storage  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
  """Keeps what tests make out of the user's own cache."""
  folder = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(storage, "cache_dir", lambda: folder)
    yield


@pytest.fixture(name="unchecked")
def _unchecked():
  """Users run without the checks of annotations, which would raise before our errors do."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
