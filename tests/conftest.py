"""Checks the shapes in annotations while tests run, on the CPU and with quick compilation."""

import os

# Before jax is imported: tests run on the CPU wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of their time is compilation, of programs that run only briefly.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jaxtyping.install_import_hook("mmdiff_jax", "beartype.beartype")

from mmdiff_jax import storage  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def temporary_cache(tmp_path_factory):
  """Keeps files that tests write out of the user's cache."""
  folder = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(storage, "cache_dir", lambda: folder)
    yield


@pytest.fixture(name="unchecked")
def _unchecked():
  """Disables the checks of annotations, as for users, since they would raise before our errors."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
