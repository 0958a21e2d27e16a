"""Tests of the published score network."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.networks import mlp

SIZES = {"svhn": 6, "mnist": 4}


def _inputs(batch=5, sizes=SIZES, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(sizes))
  return {
    name: jax.random.normal(key, (batch, size))
    for key, (name, size) in zip(keys, sizes.items(), strict=True)
  }


def _times(first, second):
  return {"mnist": jnp.float32(first), "svhn": jnp.float32(second)}


@pytest.fixture(scope="module", name="network")
def _network():
  return mlp.ScoreMLP(width=32)


@pytest.fixture(scope="module", name="params")
def _params(network):
  """Returns parameters whose last layer is no longer zero."""
  params = network.init(jax.random.key(1), _inputs(), _times(0.5, 0.5))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, moved)


@pytest.mark.parametrize(("width", "count"), [(256, 2_351_952), (512, 8_176_720)])
def test_has_the_published_number_of_parameters(width, count):
  x = _inputs(sizes={"mnist": 16, "svhn": 64})
  params = jax.eval_shape(mlp.ScoreMLP(width=width).init, jax.random.key(0), x, _times(0.5, 0.5))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_starts_at_zero_with_the_shapes_of_its_input(network):
  x = _inputs()
  params = network.init(jax.random.key(0), x, _times(0.5, 0.5))
  out = network.apply(params, x, _times(0.1, 0.9))
  assert {name: value.shape for name, value in out.items()} == {"mnist": (5, 4), "svhn": (5, 6)}
  assert all((value == 0).all() for value in out.values())


def test_shared_times_give_the_same_as_equal_times_row_by_row(network, params):
  x, t = _inputs(), _times(0.3, 0.8)
  shared = network.apply(params, x, t)
  rows = network.apply(params, x, {name: jnp.full((5,), value) for name, value in t.items()})
  mixed = network.apply(params, x, t | {"svhn": jnp.full((5,), 0.8)})
  for name in x:
    np.testing.assert_allclose(shared[name], rows[name], rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(mixed[name], rows[name], rtol=1e-6, atol=2e-6)


def test_computes_what_depends_on_times_alone_for_one_row(network, params):
  flops = {}
  x = _inputs(batch=64)
  for kind, t in (("shared", jnp.float32(0.5)), ("rows", jnp.full((64,), 0.5))):
    times = dict.fromkeys(x, t)
    cost = jax.jit(network.apply).lower(params, x, times).compile().cost_analysis()
    flops[kind] = cost["flops"]
  # 2 * 63 rows * (7 blocks * 256 * 32 + 2 times * 128 * 256), and nothing else of that size.
  assert flops["rows"] - flops["shared"] == pytest.approx(2 * 63 * (7 * 8192 + 65536), rel=0.05)


@pytest.mark.parametrize("moved", ["mnist", "svhn"])
def test_every_output_depends_on_every_time_and_on_every_input(network, params, moved):
  x, t = _inputs(), _times(0.3, 0.8)
  plain = network.apply(params, x, t)
  for other in (
    network.apply(params, x, t | {moved: jnp.float32(0.5)}),
    network.apply(params, x | {moved: x[moved] + 1.0}, t),
  ):
    for name in x:
      assert jnp.abs(other[name] - plain[name]).max() > 1e-3


def test_rows_do_not_depend_on_each_other(network, params):
  x, t = _inputs(), _times(0.3, 0.8)
  plain = network.apply(params, x, t)
  other = network.apply(params, {name: v.at[0].add(1.0) for name, v in x.items()}, t)
  for name in x:
    np.testing.assert_allclose(other[name][1:], plain[name][1:], rtol=1e-6, atol=1e-6)
    assert jnp.abs(other[name][0] - plain[name][0]).max() > 1e-3


def test_every_parameter_learns_after_one_step(network):
  x = _inputs()
  t = {name: jnp.linspace(0.1, 0.9, 5) for name in x}
  params = network.init(jax.random.key(0), x, t)

  def loss(params):
    out = network.apply(params, x, t)
    return sum(jnp.square(out[name] - x[name]).mean() for name in x)

  params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
  for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
    assert jnp.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_group_norm_is_flax_group_norm():
  x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (5, 24))
  params = {"params": {"scale": jnp.arange(24.0), "bias": jnp.linspace(-1.0, 1.0, 24)}}
  ours = mlp.GroupNorm(groups=4).apply(params, x)
  theirs = nn.GroupNorm(num_groups=4).apply(params, x)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  assert jnp.isfinite(mlp.GroupNorm(groups=4).apply(params, jnp.ones((2, 24)))).all()
