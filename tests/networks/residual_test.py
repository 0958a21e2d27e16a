import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax.networks import residual


def test_condition_moves_the_output_row_by_row():
  block = residual.ResidualBlock(8)
  x = jax.random.normal(jax.random.key(0), (3, 4))
  condition = jax.random.normal(jax.random.key(1), (3, 5))
  params = block.init(jax.random.key(2), x, condition)
  out = block.apply(params, x, condition)
  other = block.apply(params, x, condition.at[1].add(1.0))
  np.testing.assert_array_equal(out[jnp.array([0, 2])], other[jnp.array([0, 2])])
  assert np.abs(out[1] - other[1]).max() > 1e-4


def test_one_row_of_condition_serves_all():
  block = residual.ResidualBlock(8)
  x = jax.random.normal(jax.random.key(0), (3, 4))
  one = jax.random.normal(jax.random.key(1), (1, 5))
  params = block.init(jax.random.key(2), x, one)
  each = jnp.broadcast_to(one, (3, 5))
  np.testing.assert_allclose(block.apply(params, x, one), block.apply(params, x, each), atol=1e-6)


def test_mlp_has_the_size_it_says():
  mlp = residual.ResidualMLP(width=16, depth=2, features=3)
  params = mlp.init(jax.random.key(0), jnp.zeros((2, 7)))
  assert mlp.apply(params, jnp.zeros((2, 7))).shape == (2, 3)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  block = 2 * 16 + 2 * (16 * 16 + 16)
  assert count == (7 * 16 + 16) + 2 * block + 2 * 16 + (16 * 3 + 3)
