from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.networks import unet
from mmdiff_jax.networks.heads import ImageHead

SMALL = unet.UNet(width=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8)
TINY = unet.UNet(width=8, multipliers=(1,), blocks=0, attention=(7,), head_channels=8)
apply = jax.jit(SMALL.apply)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(network, *size):
  """Returns the shapes of features, bottleneck and parameters, without computing them."""
  z, t = jax.ShapeDtypeStruct((2, *size), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
  init = partial(network.init_with_output, jax.random.key(0))
  (features, bottleneck), params = jax.eval_shape(init, z, t)
  return features.shape, bottleneck.shape, params


def drawn(network, *size):
  """Returns random parameters, none of them zero; faster than compiling `init`."""
  generator = np.random.default_rng(0)

  def draw(path, leaf):
    value = generator.normal(size=leaf.shape).astype(np.float32)
    if leaf.ndim == 1:
      return 0.1 * value + (path[-1].key == "scale")
    return value / np.sqrt(np.prod(leaf.shape[:-1]))

  return jax.tree_util.tree_map_with_path(draw, shapes(network, *size)[2])


@pytest.fixture(scope="module")
def inputs():
  z = np.random.default_rng(1).normal(size=(3, 7, 6, 2)).astype(np.float32)
  return jnp.asarray(z), jnp.array([0.1, 0.5, 0.9])


@pytest.fixture(scope="module")
def small(inputs):
  return drawn(SMALL, 7, 6, 2), *inputs


@pytest.fixture(scope="module")
def tiny(inputs):
  return drawn(TINY, 7, 6, 2), *inputs


def test_halve_and_double():
  x = jnp.arange(15.0).reshape(1, 3, 5, 1)
  means = [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
  np.testing.assert_allclose(unet.halve(x)[0, :, :, 0], means)
  rows = [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
  np.testing.assert_array_equal(
    unet.double(jnp.arange(6.0).reshape(1, 2, 3, 1), 3, 5)[0, :, :, 0], rows
  )


@pytest.mark.parametrize("channels, expected", [(1, 1), (6, 1), (24, 6), (42, 7), (64, 16)])
def test_groups_divide_and_hold_four_channels(channels, expected):
  assert unet.groups(channels) == expected
  assert unet.groups(192) == 32


@pytest.mark.parametrize(
  "size, patch, first, bottleneck",
  [
    ((28, 28, 1), 1, (28, 28), (7, 7)),
    ((28, 28, 1), 2, (14, 14), (4, 4)),
    ((7, 7, 3), 1, (7, 7), (2, 2)),
    ((9, 30, 3), 4, (3, 8), (1, 2)),
    ((16, 16, 2), 4, (4, 4), (1, 1)),
  ],
)
def test_any_size_works(size, patch, first, bottleneck):
  network = unet.UNet(8, (1, 1, 3), 1, (), 8, patch=patch)
  features, inner, _ = shapes(network, *size)
  assert features == (2, *first, 8)
  assert inner == (2, *bottleneck, 24)


def test_patches_stay_in_place():
  """Without the effect of blocks, a pixel changes the features of its own patch and no others."""
  network = unet.UNet(4, (1,), 0, (), 4, patch=3)
  pixels = [(0, 0), (5, 3), (15, 10)]
  z = jnp.zeros((4, 16, 11, 1))
  for i, (row, column) in enumerate(pixels):
    z = z.at[i, row, column].set(1.0)
  params = drawn(network, 16, 11, 1)
  for name in ("middle_0", "middle_1", "up_0_0"):
    params["params"][name]["Conv_1"]["kernel"] *= 0.0
  features, _ = jax.jit(network.apply)(params, z, jnp.float32(0.5))
  for i, (row, column) in enumerate(pixels):
    moved = np.abs(features[i] - features[3]).max(axis=-1) > 0
    rows, columns = np.arange(6) == row // 3, np.arange(4) == column // 3
    np.testing.assert_array_equal(moved, rows[:, None] & columns)


def test_scalar_time_serves_all_rows(small):
  params, z, _ = small
  one = apply(params, z, jnp.float32(0.3))
  each = apply(params, z, jnp.full(3, 0.3))
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), one, each)


def test_rows_are_independent(small):
  params, z, t = small
  plain = apply(params, z, t)
  other = apply(params, z.at[1].add(1.0), t.at[1].add(0.05))
  for a, b in zip(plain, other, strict=True):
    np.testing.assert_allclose(a[jnp.array([0, 2])], b[jnp.array([0, 2])], atol=1e-5)
    assert np.abs(a[1] - b[1]).max() > 1e-2


def test_time_matters(small):
  params, z, t = small
  for a, b in zip(apply(params, z, t), apply(params, z, t + 0.05), strict=True):
    assert (np.abs(a - b).max(axis=(1, 2, 3)) > 1e-2).all()


def test_condition_acts_on_its_row_and_0_has_no_effect(small):
  params, z, t = small
  kernel = np.random.default_rng(2).normal(size=(5, 32)).astype(np.float32)
  extended = {"params": {**params["params"], "condition": {"kernel": kernel}}}
  plain = apply(params, z, t)
  conditioned = apply(extended, z, t, condition=jnp.zeros((3, 5)).at[1, 2].set(1.0))
  for a, b in zip(plain, conditioned, strict=True):
    np.testing.assert_allclose(a[jnp.array([0, 2])], b[jnp.array([0, 2])], atol=1e-5)
    assert np.abs(a[1] - b[1]).max() > 1e-2


def test_blocks_start_as_the_identity():
  x, time = jax.random.normal(jax.random.key(0), (2, 3, 3, 4)), jnp.ones((1, 2))
  out, _ = unet.ResBlock(4).init_with_output(jax.random.key(1), x, time)
  np.testing.assert_array_equal(out, x)


def test_time_scales_and_shifts_the_second_norm():
  """With a scale of -1 the block's branch depends on the shift alone: its input is lost."""
  block = unet.ResBlock(4)
  x, time = jax.random.normal(jax.random.key(0), (2, 3, 3, 4)), jnp.ones((1, 2))
  params = block.init(jax.random.key(1), x, time)
  centre = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
  params["params"]["Conv_1"]["kernel"] = centre
  params["params"]["Dense_0"]["kernel"] = jnp.zeros((2, 8))
  shift = jnp.arange(4.0)
  params["params"]["Dense_0"]["bias"] = jnp.concatenate([-jnp.ones(4), shift])
  expected = x + jax.nn.silu(shift)
  np.testing.assert_allclose(block.apply(params, x, time), expected, atol=1e-6)


def test_attention_matches_its_equation():
  layer = unet.SelfAttention(head_channels=2)
  x = jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
  params = layer.init(jax.random.key(1), x)["params"]
  np.testing.assert_array_equal(layer.apply({"params": params}, x), x)
  params["Dense_1"]["kernel"] = jnp.eye(4)
  flat = x.reshape(6, 4)
  normed = (flat - flat.mean()) / jnp.sqrt(flat.var() + 1e-6)
  q, k, v = jnp.split(normed @ params["Dense_0"]["kernel"], 3, axis=-1)
  heads = [slice(0, 2), slice(2, 4)]
  out = [jax.nn.softmax(q[:, h] @ k[:, h].T / 2**0.5) @ v[:, h] for h in heads]
  expected = flat + jnp.concatenate(out, axis=-1)
  np.testing.assert_allclose(
    layer.apply({"params": params}, x)[0].reshape(6, 4), expected, atol=1e-5
  )


@pytest.mark.parametrize("heights, middle", [((), False), ((14,), False), ((14, 7), True)])
def test_attends_at_the_named_heights_only(heights, middle):
  _, _, params = shapes(unet.UNet(8, (1, 2, 2), 2, heights, 8), 28, 28, 1)
  levels = [{28: 0, 14: 1, 7: 2}[height] for height in heights]
  expected = {f"down_{level}_{i}_attention" for level in levels for i in range(2)}
  expected |= {f"up_{level}_{i}_attention" for level in levels for i in range(3)}
  expected |= {"middle_attention"} if middle else set()
  assert {name for name in params["params"] if name.endswith("_attention")} == expected


def test_gradient_reaches_every_parameter(small):
  params, z, t = small

  def loss(params):
    return sum(jnp.sum(out**2) for out in SMALL.apply(params, z, t))

  gradients, _ = jax.tree.flatten_with_path(jax.jit(jax.grad(loss))(params))
  silent = [path for path, gradient in gradients if np.abs(gradient).max() < 1e-3]
  assert not silent


def test_dropout_in_training_only(tiny):
  params, z, t = tiny
  dropped = jax.jit(TINY.clone(dropout=0.5).apply, static_argnums=3)
  out = [
    dropped(params, z, t, train, rngs={"dropout": jax.random.key(i)})[0]
    for train, i in ((True, 0), (True, 1), (False, 0), (False, 1))
  ]
  assert np.abs(out[0] - out[1]).max() > 1e-2
  np.testing.assert_array_equal(out[2], out[3])
  assert np.abs(out[0] - out[2]).max() > 1e-2


def test_bfloat16_is_used_to_compute_but_not_to_store(tiny):
  params, z, t = tiny
  network = TINY.clone(dtype=jnp.bfloat16)
  kept = jax.eval_shape(network.init, jax.random.key(0), z, t)
  assert {p.dtype for p in jax.tree.leaves(kept)} == {z.dtype}
  exact, rounded = jax.jit(TINY.apply)(params, z, t), jax.jit(network.apply)(params, z, t)
  for a, b in zip(exact, rounded, strict=True):
    assert b.dtype == jnp.float32
    error = jnp.linalg.norm(a - b) / jnp.linalg.norm(a)
    # Eight bits of mantissa and some dozens of roundings; an error below 1e-4 would mean float32.
    assert 1e-4 < error < 0.05


def test_remat_recomputes_the_same(tiny):
  params, z, t = tiny

  def gradient(remat):
    network = TINY.clone(remat=remat)
    return jax.grad(lambda params: jnp.sum(network.apply(params, z, t)[0] ** 2))

  plain, again = jax.jit(gradient(False))(params), jax.jit(gradient(True))(params)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), plain, again)
  # Every convolution in a block runs forward, once more, and backward for its input and kernel.
  convolutions = [
    str(jax.make_jaxpr(gradient(remat))(params)).count("conv_general_dilated[")
    for remat in (False, True)
  ]
  blocks = 3
  assert convolutions[1] - convolutions[0] >= blocks


def test_imagenet64_has_the_published_size():
  """The size is 295.90 M less the class embedding, predicted variances and attention biases."""
  network = unet.UNet(192, (1, 2, 3, 4), 3, (32, 16, 8), 64)
  features, bottleneck, params = shapes(network, 64, 64, 3)
  assert features == (2, 64, 64, 192) and bottleneck == (2, 8, 8, 768)
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (features, bottleneck)]
  head = jax.eval_shape(partial(ImageHead((64, 64, 3)).init, jax.random.key(0)), *args)
  classes, variances = 1000 * 4 * 192, 3 * (9 * 192 + 1)
  biases = 3 * (7 * 384 + 7 * 576 + 8 * 768)
  assert count(params) + count(head) == 295_904_454 - classes - variances - biases


@pytest.mark.parametrize(
  "change, message",
  [
    ({"multipliers": (2, 2)}, "must be 1"),
    ({"attention": (4, 5)}, r"levels of heights \(7, 4\)"),
    ({"head_channels": 3}, "heads of 3 channels do not divide the 16 channels at height 4"),
    ({"width": 9}, "even"),
  ],
)
def test_errors_name_the_remedy(change, message):
  with pytest.raises(ValueError, match=message):
    shapes(SMALL.clone(**change), 7, 6, 2)
