import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.networks.latent import LatentDenoiser


@pytest.fixture(scope="module")
def model():
  network = LatentDenoiser(width=32, depth=2, tower_width=16, tower_depth=1, features=8)
  keys = jax.random.split(jax.random.key(0), 4)
  x = {"a": jax.random.normal(keys[0], (5, 3)), "b": jax.random.normal(keys[1], (5, 2))}
  t = {"a": jnp.linspace(0.1, 0.9, 5), "b": jnp.linspace(0.8, 0.2, 5)}
  params = network.init(keys[2], x, t)
  # The output layers start at 0, which would hide all that is before them.
  moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(keys[3], p.shape), params)
  return network, params, moved, x, t


def test_starts_at_zero(model):
  network, params, _, x, t = model
  out = network.apply(params, x, t)
  assert {name: value.shape for name, value in out.items()} == {"a": (5, 3), "b": (5, 2)}
  assert all((value == 0).all() for value in out.values())


def test_every_output_reads_every_input_and_time(model):
  network, _, params, x, t = model
  for argument in (0, 1):
    for source in "ab":
      args = [dict(x), dict(t)]
      args[argument][source] = args[argument][source] * 0.5
      changed, plain = network.apply(params, *args), network.apply(params, x, t)
      for name in "ab":
        assert np.abs(changed[name] - plain[name]).max() > 1e-4, (argument, source, name)


def test_rows_are_independent(model):
  network, _, params, x, t = model
  alone = network.apply(params, *jax.tree.map(lambda v: v[:1], (x, t)))
  together = network.apply(params, x, t)
  np.testing.assert_allclose(alone["a"], together["a"][:1], atol=1e-5)


def test_shared_times_may_be_scalars(model):
  network, _, params, x, _ = model
  scalars = {"a": jnp.float32(0.3), "b": jnp.float32(0.0)}
  rows = {name: jnp.full(5, t) for name, t in scalars.items()}
  one, each = network.apply(params, x, scalars), network.apply(params, x, rows)
  mixed = network.apply(params, x, {"a": scalars["a"], "b": rows["b"]})
  for name in "ab":
    np.testing.assert_allclose(one[name], each[name], atol=1e-5)
    np.testing.assert_allclose(one[name], mixed[name], atol=1e-5)
