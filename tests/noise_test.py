"""Tests of noise: its distribution, and what each number is a function of."""

import pathlib
import re

import jax
from jax.extend.random import threefry_2x32
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mmdiff_jax import noise as noise_lib


def test_noise_is_normal_and_independent():
  x = jnp.zeros((1000, 500))
  noise = np.asarray(noise_lib.normal_like(jax.random.key(0), "a", x))
  assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
  assert abs(np.mean(noise)) < 5e-3
  # Neighbours in a row, in a column, and under neighbouring names and keys.
  others = [noise_lib.normal_like(jax.random.key(0), "b", x)]
  others += [noise_lib.normal_like(jax.random.key(1), "a", x)]
  pairs = [(noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])]
  for one, other in pairs + [(noise, np.asarray(other)) for other in others]:
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 7e-3
    assert abs(np.corrcoef(one.ravel() ** 2, other.ravel() ** 2)[0, 1]) < 7e-3


def test_noise_comes_from_threefry():
  """It uses the bits of JAX's own cipher at the counter (row, index in the row)."""
  key = noise_lib.modality_key(jax.random.key(7), "a")
  rows, columns = jnp.meshgrid(jnp.arange(5), jnp.arange(6), indexing="ij")
  counter = jnp.concatenate([rows.ravel(), columns.ravel()]).astype(jnp.uint32)
  words = threefry_2x32(jax.random.key_data(key), counter).reshape(2, 5, 6)
  fraction = np.asarray((words[0] ^ words[1]) >> 8, np.float64) * 2.0**-24 + 2.0**-25
  noise = noise_lib.normal_like(jax.random.key(7), "a", jnp.zeros((5, 2, 3)))
  np.testing.assert_allclose(noise.reshape(5, 6), stats.norm.ppf(fraction), rtol=1e-4, atol=1e-6)


DRAWS = {
  "bits": lambda key, rows: jax.random.bits(key, (rows, 3), "uint8"),
  "uniform": lambda key, rows: jax.random.uniform(key, (rows, 3)),
  "normal": lambda key, rows: jax.random.normal(key, (rows,)),
  "bernoulli": lambda key, rows: jax.random.bernoulli(key, 0.3, (rows, 2, 2)),
  "randint": lambda key, rows: jax.random.randint(key, (rows, 1), 1, 17),
  "keys": lambda key, rows: jax.random.uniform(
    jax.random.split(jax.random.fold_in(key, 1))[1], rows
  ),
  "noise": lambda key, rows: noise_lib.normal_like(key, "a", jnp.zeros((rows, 5))),
  "scalar": lambda key, rows: jnp.broadcast_to(jax.random.uniform(key), rows),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_some_rows_draw_what_they_do_in_the_whole_batch(name, x64):
  draw, key = DRAWS[name], jax.random.key(3)
  with jax.enable_x64(x64):
    batch = draw(key, 12)
    for first, step, rows in ((0, 1, 12), (4, 1, 4), (1, 3, 4)):
      part = jax.jit(
        lambda first, step=step, rows=rows: draw(noise_lib.key_of_rows(key, first, step), rows)
      )
      got = part(first)
      assert got.dtype == batch.dtype
      np.testing.assert_array_equal(got, batch[first::step][:rows])


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_other_kinds(kind):
  key = jax.random.key(3, impl=kind)
  few, many = (noise_lib.normal_like(key, "a", jnp.zeros((rows, 500))) for rows in (2, 20))
  np.testing.assert_array_equal(few, many[:2])
  assert abs(np.mean(many)) < 0.05 and abs(np.std(many) - 1) < 0.05
  with pytest.raises(TypeError, match=f"key_of_rows.*{kind}.*make_key"):
    noise_lib.key_of_rows(key, 0)
  with pytest.raises(TypeError, match="key_of_rows.*rows"):
    noise_lib.key_of_rows(noise_lib.key_of_rows(jax.random.key(3), 0), 0)


def test_keys_of_the_programs_do_not_depend_on_the_environment():
  with jax.default_prng_impl("rbg"):
    key, seeded = noise_lib.make_key(3), jax.random.key(3, impl=noise_lib._OF_ROWS)
  assert key == jax.random.key(3, impl="threefry2x32")
  np.testing.assert_array_equal(jax.random.uniform(seeded, 3), jax.random.uniform(key, 3))
  root = pathlib.Path(noise_lib.__file__).parents[1]
  for path in [*root.glob("mmdiff_jax/**/*.py"), *root.glob("experiments/*.py")]:
    makes = re.findall(r"random\.(?:key|PRNGKey)\([^\n]*", path.read_text())
    assert all("impl=" in call for call in makes), f"{path}: {makes}"


@pytest.mark.parametrize("seed", [2**32, -(2**31) - 1, 2**70, np.int64(2**40), np.array(2**40)])
def test_seeds_of_more_than_32_bits_are_refused(seed, unchecked):
  """JAX drops the higher bits: 2^32 would be the seed 0."""
  with pytest.raises(ValueError, match=f"make_key: seed={seed} "):
    noise_lib.make_key(seed)


@pytest.mark.parametrize(("word", "sign"), [(0, -1), (2**32 - 1, 1)])
def test_the_ends_of_the_noise_are_finite_and_alike(monkeypatch, word, sign):
  words = lambda key, count: (jnp.full_like(count[0], word), jnp.zeros_like(count[0]))  # noqa: E731
  monkeypatch.setattr(noise_lib, "_threefry", words)
  noise = noise_lib.normal_like(jax.random.key(0), "a", jnp.zeros((1, 1)))
  # The quantile of half of one part in 2^24.
  np.testing.assert_allclose(noise, sign * -stats.norm.ppf(2.0**-25), rtol=1e-2)


def test_noise_has_the_type_and_shape_asked_for():
  for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.zeros((4, 2, 3), dtype)
    noise = noise_lib.normal_like(jax.random.key(0), "a", x)
    assert noise.shape == x.shape and noise.dtype == dtype
  assert noise_lib.normal_like(jax.random.key(0), "a", jnp.zeros(4)).shape == (4,)
