from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.networks import transformer
from mmdiff_jax.networks.transformer import Environment, LatentTransformer, shift_frames

KEY = jax.random.key(0)
NETWORK = LatentTransformer(width=8, depth=2, heads=2, hidden=16, features=8)
apply = jax.jit(NETWORK.apply)


def inputs(frames=3, tokens=2, rows=4):
  z, prompt, context = (
    jax.random.normal(k, shape)
    for k, shape in zip(
      jax.random.split(KEY, 3), ((rows, frames, tokens, 5), (rows, 6), (rows, 7, 4)), strict=True
    )
  )
  return z, jnp.linspace(0.1, 0.9, rows), prompt, context


def drawn(network, *args):
  """Returns parameters none of which is zero."""
  params = jax.eval_shape(network.init, KEY, *args)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.parametrize(("frames", "width"), [(1, 8), (3, 8), (5, 10)])
def test_shift_is_by_index(frames, width):
  h = np.random.default_rng(0).normal(size=(2, frames, 3, width)).astype(np.float32)
  group = width // 4
  expected = np.zeros_like(h)
  for i in range(frames):
    for c in range(width):
      source = i - 1 if c < group else i + 1 if c < 2 * group else i
      if 0 <= source < frames:
        expected[:, i, :, c] = h[:, source, :, c]
  np.testing.assert_array_equal(shift_frames(jnp.asarray(h)), expected)


def test_one_frame_is_an_image():
  """The parameters are the same, and the layers between frames are not zero."""
  z, t, prompt, context = inputs(frames=3)
  params = drawn(NETWORK, z, t, prompt, context)
  image = {n: p for n, p in params["params"].items() if not n.startswith(("shift", "frames"))}
  one = apply(params, z[:, :1], t, prompt, context)
  np.testing.assert_array_equal(one, apply({"params": image}, z[:, :1], t, prompt, context))
  # Several frames need those layers, and are mixed by them.
  moved = z.at[:, 2].add(1.0)
  both = [apply(params, x, t, prompt)[:, 0] for x in (z, moved)]
  assert np.abs(both[0] - both[1]).max() > 1e-3


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (1, 3), (3, 2)])
def test_inserted_layers_start_at_zero(frames, tokens):
  z, t, prompt, context = inputs(frames, tokens)
  params = jax.jit(NETWORK.init)(KEY, z, t, prompt, context)
  # All layers but the inserted ones are random, as otherwise the output would be zero.
  rng = np.random.default_rng(0)

  def trained(path, x):
    name = path[1].key
    inserted = name.startswith(("cross", "shift", "frames"))
    return x if inserted else 0.3 * rng.normal(size=x.shape).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(trained, params)
  without = {n: p for n, p in params["params"].items() if not n.startswith("cross")}
  plain = apply({"params": without}, z, t, prompt)
  # Two compilations may round the same sums differently.
  np.testing.assert_allclose(apply(params, z, t, prompt, context), plain, atol=1e-6, rtol=1e-6)
  assert np.abs(plain).max() > 0.1
  if frames > 1:
    # Without the layers that mix frames, a frame is processed as if it were alone.
    alone = apply(params, z[:, 1:2], t, prompt)
    np.testing.assert_allclose(plain[:, 1:2], alone, atol=1e-5)


def test_every_input_is_read():
  z, t, prompt, context = inputs()
  params = drawn(NETWORK, z, t, prompt, context)
  run = partial(apply, params)
  plain = run(z, t, prompt, context)
  row = np.arange(4) == 1
  for changed in (
    (z.at[1].add(1.0), t, prompt, context),
    (z, t.at[1].add(0.1), prompt, context),
    (z, t, prompt.at[1].add(1.0), context),
    (z, t, prompt, context.at[1].add(1.0)),
  ):
    output = run(*changed)
    assert np.abs(output - plain)[row].max() > 1e-3
    np.testing.assert_allclose(output[~row], plain[~row], atol=1e-5)
  # A scalar time serves all rows.
  np.testing.assert_allclose(
    run(z, jnp.float32(0.3), prompt, context), run(z, jnp.full(4, 0.3), prompt, context),
    atol=1e-5,
  )  # fmt: skip


def test_order_of_tokens_and_frames_matters():
  z, t, prompt, _ = inputs()
  params = drawn(NETWORK, z, t, prompt)
  plain = apply(params, z, t, prompt)
  for axis in (1, 2):
    turned = apply(params, jnp.flip(z, axis), t, prompt)
    assert np.abs(jnp.flip(turned, axis) - plain).max() > 1e-3


def test_a_single_token_of_context_is_added_to_all_alike():
  z, t, prompt, context = inputs(frames=1, tokens=3)
  attention = transformer.Attention(2)
  h = jax.random.normal(KEY, (4, 3, 8))
  for keys, alike in ((1, True), (7, False)):
    params = drawn(attention, h, context[:, :keys])
    added = attention.apply(params, h, context[:, :keys])
    assert (np.abs(added - added[:, :1]).max() < 1e-5) == alike


def test_environment_gives_tokens_of_one_scale():
  z, t, _, _ = inputs()
  network = Environment(tokens=3, size=6, width=8, features=8)
  params = network.init(KEY, z, t)
  tokens = network.apply(params, z, t)
  assert tokens.shape == (4, 3, 6)
  np.testing.assert_allclose(tokens.std(axis=-1), 1, atol=1e-2)
  assert np.abs(network.apply(params, z, t + 0.1) - tokens).max() > 1e-3
  moved = network.apply(params, z.at[1].add(1.0), t)
  np.testing.assert_array_equal(moved[0], tokens[0])
  assert np.abs(moved[1] - tokens[1]).max() > 1e-3
