"""Tests of the properties of all autoencoders, and of those specific to each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmdiff_jax.autoencoders.categorical import CategoricalAutoencoder
from mmdiff_jax.autoencoders.layered import LayeredAutoencoder
from mmdiff_jax.autoencoders.signal import SignalAutoencoder


def signal(likelihood):
  return SignalAutoencoder((4, 4, 1), 8, 32, 1, likelihood)


LAYERED = LayeredAutoencoder((8, 8, 3), 10, 6, 32, 1, grid=2, negative=False, robust=2.0)
TEXT = CategoricalAutoencoder((5,), num_classes=7, latent=8, width=32, depth=1)


def both(codec, x):
  return lambda module: module.loss(x, module.encode(x))


def fit(codec, x, steps=300):
  params = codec.init(jax.random.key(0), method=both(codec, x))
  if isinstance(codec, LayeredAutoencoder):
    assert set(params["params"]) == {"encoder", "mask", "layers"}
  tx = optax.adam(1e-2)
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    def loss(params):
      return codec.apply(params, method=both(codec, x)).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  for _ in range(steps):
    params, state, value = step(params, state)
  return params, float(value)


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "bernoulli"])
def test_signal_learns_its_data(likelihood):
  x = (jax.random.uniform(jax.random.key(1), (12, 4, 4, 1)) > 0.5).astype(jnp.float32)
  codec = signal(likelihood)
  params, _ = fit(codec, x)
  z = codec.apply(params, x, method="encode")
  back = codec.apply(params, z, method="decode")
  assert z.shape == (12, 8)
  assert back.shape == x.shape
  assert ((back >= 0) & (back <= 1)).all()
  assert np.abs(back - x).mean() < 0.05


@pytest.mark.parametrize(
  ("likelihood", "expected"),
  [
    ("gaussian", lambda x, mean: ((x - mean) ** 2).sum((1, 2, 3))),
    ("laplace", lambda x, mean: np.abs(x - mean).sum((1, 2, 3))),
    (
      "bernoulli",
      lambda x, mean: -(x * np.log(mean) + (1 - x) * np.log1p(-mean)).sum((1, 2, 3)),
    ),
  ],
)
def test_signal_loss_is_its_likelihood(likelihood, expected):
  codec = signal(likelihood)
  x = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1))
  params = codec.init(jax.random.key(0), method=both(codec, x))
  # Parameters are shrunk, so that no mean is clipped.
  params = jax.tree.map(lambda p: 0.3 * p, params)
  z = codec.apply(params, x, method="encode")
  mean = np.asarray(codec.apply(params, z, method="decode"), np.float64)
  loss = codec.apply(params, x, z, method="loss")
  np.testing.assert_allclose(loss, expected(np.asarray(x), mean), rtol=1e-4)


def test_trajectories_beyond_the_canvas_are_encoded_unclipped():
  """Their codes differ; decoded trajectories end at the edge."""
  x = jnp.stack([jnp.linspace(a, b, 16).reshape(8, 2) for a, b in ((0, 1), (-0.3, 1), (0, 1.3))])
  codec = SignalAutoencoder((8, 2), 4, 32, 1, "gaussian")
  params, loss = fit(codec, x)
  assert loss < 1e-2
  back = codec.apply(params, codec.apply(params, x, method="encode"), method="decode")
  np.testing.assert_allclose(back, np.clip(x, 0, 1), atol=0.1)


def test_unbounded_inputs_are_reconstructed_at_any_value():
  x = 3.0 * jax.random.normal(jax.random.key(1), (12, 6))
  codec = SignalAutoencoder((6,), 8, 32, 1, "gaussian", bounded=False)
  params, _ = fit(codec, x)
  back = codec.apply(params, codec.apply(params, x, method="encode"), method="decode")
  assert x.min() < -3 and x.max() > 4
  np.testing.assert_allclose(back, x, atol=0.2)


@pytest.mark.parametrize("shape", [(5,), (3, 2), ()])
def test_classes_are_reconstructed_exactly(shape):
  """Classes come as a text, a mask and a label."""
  codec = CategoricalAutoencoder(shape, num_classes=7, latent=8, width=32, depth=1)
  x = jax.random.randint(jax.random.key(1), (12, *shape), 0, 7)
  params, loss = fit(codec, x)
  z = codec.apply(params, x, method="encode")
  back = codec.apply(params, z, method="decode")
  assert back.dtype == jnp.int32
  np.testing.assert_array_equal(back, x)
  assert loss < 0.1


def test_text_loss_of_an_ignorant_decoder_is_uniform():
  x = jax.random.randint(jax.random.key(1), (3, 5), 0, 7)
  params = TEXT.init(jax.random.key(0), method=both(TEXT, x))
  nothing = jax.tree.map(jnp.zeros_like, params)
  loss = TEXT.apply(nothing, x, jnp.zeros((3, 8)), method="loss")
  np.testing.assert_allclose(loss, 5 * np.log(7), rtol=1e-5)


def test_figure_is_drawn_by_the_shape_latent_alone():
  """Colours do not change the shape: two images of one z_shape differ by nearly flat layers."""
  x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
  params = LAYERED.init(jax.random.key(0), method=both(LAYERED, x))
  z = jax.random.normal(jax.random.key(2), (4, 10))
  other_shape = z.at[:, :6].set(z[::-1, :6])
  same = LAYERED.apply(params, z, method="decode")
  moved = LAYERED.apply(params, other_shape, method="decode")
  assert np.abs(same - moved).max() > 1e-3
  # If figure and ground have one colour, the shape is invisible.
  layers = params["params"]["layers"]
  last = max(name for name in layers if name.startswith("Dense"))
  kernel, bias = layers[last]["kernel"], layers[last]["bias"]

  def one_colour(p):
    return jnp.tile(p[..., :3], 5)  # the figure's colour, for it and for the 2 x 2 of the ground

  layers = layers | {last: {"kernel": one_colour(kernel), "bias": one_colour(bias)}}
  flat = {"params": params["params"] | {"layers": layers}}
  np.testing.assert_allclose(
    LAYERED.apply(flat, z, method="decode"),
    LAYERED.apply(flat, other_shape, method="decode"),
    atol=1e-6,
  )


def test_figure_can_be_the_negative_of_the_ground():
  """Black on white and white on black of one mask add up to 1 where layers are opposite."""
  codec = dataclasses.replace(LAYERED, negative=True)
  x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
  params = codec.init(jax.random.key(0), method=both(codec, x))
  z = codec.apply(params, x, method="encode")
  layers = params["params"]["layers"]
  last = max(name for name in layers if name.startswith("Dense"))
  opposite = layers | {last: jax.tree.map(jnp.negative, layers[last])}
  swapped = {"params": params["params"] | {"layers": opposite}}
  image, other = (codec.apply(p, z, method="_compose") for p in (params, swapped))
  np.testing.assert_allclose(image + other, 1.0, atol=1e-5)
  assert np.abs(image - other).max() > 0.05


def test_robust_error_grows_as_a_logarithm():
  x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
  params = LAYERED.init(jax.random.key(0), method=both(LAYERED, x))
  z = LAYERED.apply(params, x, method="encode")
  plain = dataclasses.replace(LAYERED, robust=1e6)
  error = plain.apply(params, x, z, method="loss")
  np.testing.assert_allclose(
    LAYERED.apply(params, x, z, method="loss"), 2 * np.log1p(error / 2), rtol=1e-3
  )
