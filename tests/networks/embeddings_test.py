"""Tests of the embeddings of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.networks import embeddings


def test_sinusoidal_is_cosines_then_sines_from_1_to_1000_rad():
  t = jnp.array([0.0, 0.3, 1.0])
  features = embeddings.sinusoidal(t, 6)
  frequencies = np.array([1.0, np.sqrt(1000.0), 1000.0])
  angles = np.array([0.0, 0.3, 1.0])[:, None] * frequencies
  expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
  np.testing.assert_allclose(features, expected, atol=2e-4)


def test_sinusoidal_separates_close_times():
  features = embeddings.sinusoidal(jnp.array([0.0, 1e-3]), 128)
  assert jnp.linalg.norm(features[1] - features[0]) > 0.5


@pytest.mark.parametrize("size", [0, 7])
def test_sinusoidal_refuses_sizes_that_are_not_pairs(size):
  with pytest.raises(ValueError, match="even"):
    embeddings.sinusoidal(jnp.float32(0.5), size)


def test_each_time_has_its_own_embedding_and_their_order_does_not_matter():
  network = embeddings.MultiTimeEmbedding(size=16, features=8)
  t = {"a": jnp.float32(0.2), "b": jnp.float32(0.7)}
  params = network.init(jax.random.key(0), t)
  assert set(params["params"]) == {"a", "b"}
  plain = network.apply(params, t)
  np.testing.assert_array_equal(network.apply(params, {"b": t["b"], "a": t["a"]}), plain)
  swapped = network.apply(params, {"a": t["b"], "b": t["a"]})
  assert jnp.abs(swapped - plain).max() > 0.1


def test_scalars_give_one_row_and_a_vector_beside_a_scalar_a_row_each():
  network = embeddings.MultiTimeEmbedding(size=16, features=8)
  scalars = {"a": jnp.float32(0.2), "b": jnp.float32(0.7)}
  params = network.init(jax.random.key(0), scalars)
  row = network.apply(params, scalars)
  assert row.shape == (1, 16)
  mixed = network.apply(params, scalars | {"b": jnp.full((3,), 0.7)})
  np.testing.assert_allclose(mixed, jnp.repeat(row, 3, axis=0), atol=1e-6)
