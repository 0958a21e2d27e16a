import os
import subprocess
import sys
import textwrap

import jax
from jax.sharding import AbstractMesh, AxisType
import numpy as np
import pytest

from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, parallel, trainer


def test_uneven_batch_is_refused():
  mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
  parallel.check_batch_size(mesh, 8)
  with pytest.raises(UserError, match="multiple of 4"):
    parallel.check_batch_size(mesh, 6)


def test_replicate_copies():
  x = jax.numpy.ones(3)
  y = parallel.replicate(parallel.data_mesh(), x)
  assert x.unsafe_buffer_pointer() != y.addressable_data(0).unsafe_buffer_pointer()


def test_four_devices_train_as_one_and_their_checkpoint_loads_on_one(toy, tmp_path):
  """The first stage, plain gradient sums: Adam would hide a factor, the gradient norm does not."""
  framework = toy.only_first(toy.framework(steps=4, steps_per_dispatch=2, clip=0.0))
  code = f"""
    import importlib.util, sys
    sys.modules["tensorflow"] = None
    import jax
    from mmdiff_jax.training import trainer
    spec = importlib.util.spec_from_file_location("toy", {toy.file!r})
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    assert jax.device_count() == 4
    framework = toy.only_first(toy.framework(steps=4, steps_per_dispatch=2, clip=0.0))
    trainer.train(framework, toy.config(), {str(tmp_path / "four")!r}, toy.data(), toy.data(8))
  """
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    check=True,
  )
  one = trainer.train(framework, toy.config(), tmp_path / "one", toy.data(), toy.data(8))
  four = checkpoints.load_params(framework, tmp_path / "four")
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  norms = [toy.rows(tmp_path / name)[-1]["grad_norm"] for name in ("one", "four")]
  np.testing.assert_allclose(*norms, rtol=1e-4)
