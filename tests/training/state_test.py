import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax.frameworks.base import TrainConfig
from mmdiff_jax.training import state as state_lib

SETTINGS = TrainConfig(steps=110, batch_size=1, learning_rate=0.2, warmup=10, final=0.1)


@pytest.mark.parametrize(
  ("step", "rate"), [(0, 0.0), (5, 0.1), (10, 0.2), (60, 0.11), (110, 0.02), (200, 0.02)]
)
def test_learning_rate(step, rate):
  np.testing.assert_allclose(state_lib.learning_rate(SETTINGS)(step), rate, atol=1e-6)


def test_ema_is_an_average_at_first_and_exponential_later():
  tx = state_lib.optimizer(SETTINGS)
  state = state_lib.create({"w": jnp.array([1.0, -2.0])}, tx)
  grads = {"w": jnp.array([0.3, 0.1])}
  mean = np.array([1.0, -2.0])
  for n in range(8):
    state = state_lib.apply_gradients(state, grads, tx, 0.4)
    decay = min(0.4, (1 + n) / (10 + n))
    mean = decay * mean + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], mean, rtol=1e-5)
  assert state.step == 8
  assert state.params["w"][0] < 0.5


def test_gradient_norm_is_bounded_and_decay_is_decoupled():
  # One Adam step hardly depends on the gradient's size, so its first moment is compared.
  params, grads = {"w": jnp.ones(4)}, {"w": jnp.full(4, 50.0)}
  tx = state_lib.optimizer(SETTINGS)
  state = state_lib.apply_gradients(state_lib.create(params, tx), grads, tx, 0.9)
  moment = next(x for x in jax.tree.leaves(state.opt_state) if x.shape == (4,))
  np.testing.assert_allclose(moment, 0.1 * 0.5, rtol=1e-5)


def test_no_buffer_is_held_twice():
  state = state_lib.create({"w": jnp.ones(4)}, state_lib.optimizer(SETTINGS))
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
  assert len(set(pointers)) == len(pointers)
