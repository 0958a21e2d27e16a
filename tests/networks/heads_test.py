import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.networks import heads

HEADS = {
  "image": (heads.ImageHead((11, 10, 3), 2), (2, 11, 10, 3)),
  "label": (heads.LabelHead(10), (2, 10)),
  "vector": (heads.VectorHead(7), (2, 7)),
}


@pytest.fixture(scope="module")
def inputs():
  keys = jax.random.split(jax.random.key(0))
  return jax.random.normal(keys[0], (2, 6, 5, 8)), jax.random.normal(keys[1], (2, 3, 3, 16))


def off_zero(head, inputs):
  params = head.init(jax.random.key(1), *inputs)
  noise = jax.random.key(2)
  return jax.tree.map(lambda p: p + 0.3 * jax.random.normal(noise, p.shape), params)


@pytest.mark.parametrize("name", HEADS)
def test_starts_at_zero(name, inputs):
  head, shape = HEADS[name]
  out = head.apply(head.init(jax.random.key(1), *inputs), *inputs)
  assert out.shape == shape and (out == 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_rows_are_independent_and_each_input_is_read(name, inputs):
  head, _ = HEADS[name]
  params = off_zero(head, inputs)
  plain = head.apply(params, *inputs)
  for source in (0, 1):
    changed = list(inputs)
    changed[source] = (
      changed[source].at[1].multiply(jnp.linspace(0.5, 2.0, inputs[source].shape[-1]))
    )
    other = head.apply(params, *changed)
    np.testing.assert_array_equal(plain[0], other[0])
    reads = name != "image" or source == 0
    assert (np.abs(plain[1] - other[1]).max() > 1e-3) == reads


@pytest.mark.parametrize("name", HEADS)
def test_gradient_reaches_every_parameter(name, inputs):
  head, _ = HEADS[name]
  params = off_zero(head, inputs)
  gradients = jax.grad(lambda params: jnp.sum(head.apply(params, *inputs) ** 2))(params)
  assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["label", "vector"])
def test_vectors_ignore_position(name, inputs):
  """A class or a representation stays the same when the content of the image moves."""
  head, _ = HEADS[name]
  params = off_zero(head, inputs)
  rolled = [jnp.roll(x, (1, 2), axis=(1, 2)) for x in inputs]
  np.testing.assert_allclose(
    head.apply(params, *inputs), head.apply(params, *rolled), rtol=1e-4, atol=1e-4
  )


def test_patches_are_written_in_order(inputs):
  head = heads.ImageHead((11, 10, 3), 2)
  params = jax.tree.map(jnp.zeros_like, head.init(jax.random.key(1), *inputs))
  params["params"]["Conv_0"]["bias"] = jnp.arange(12.0)
  image = head.apply(params, *inputs)[0]
  pixels = jnp.array([[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]])
  np.testing.assert_array_equal(image[:2, :2], pixels)
  np.testing.assert_array_equal(image[10, 8:], pixels[0])
