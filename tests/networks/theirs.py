"""Pretrained networks as a user might write them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax.networks.pretrained import Pretrained


def _orthogonal(size):
  return np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0].astype(np.float32)


def rotation(modality):
  """Rotates the flat input, a video frame by frame; decoding inverts it exactly."""
  frames = modality.kind == "video"
  shape = modality.shape[frames:]
  lead = 1 + frames

  def encode(params, x):
    turn, _ = params["turn"]
    if modality.num_classes:
      x = jax.nn.one_hot(x, modality.num_classes)
    return x.reshape(*x.shape[:lead], -1) @ turn + params["shift"]

  def decode(params, z):
    _, back = params["turn"]
    x = ((z - params["shift"]) @ back).reshape(*z.shape[:lead], *shape, -1)
    return jnp.argmax(x, axis=-1).astype(jnp.int32) if modality.num_classes else x[..., 0]

  size = math.prod(shape) * max(modality.num_classes, 1)
  turn = _orthogonal(size)
  # The pytree has containers of several kinds.
  return Pretrained({"turn": (turn, turn.T), "shift": np.float32(0.5)}, encode, decode)


def pixels(modality):
  """Has no parameters and encodes the input as itself."""
  return Pretrained(
    {}, lambda _, x: x.reshape(len(x), -1), lambda _, z: z.reshape(-1, *modality.shape)
  )


def directions(modality):
  """A prompt encoder to six numbers, far from length 1."""

  def encode(params, x):
    return 7.0 * x.reshape(len(x), -1).astype(jnp.float32) @ params

  return Pretrained(
    _orthogonal(max(math.prod(modality.shape), 6))[: math.prod(modality.shape), :6], encode
  )


def tokens(modality):
  """Encodes to integers, the wrong type."""
  return Pretrained({}, lambda _, x: jnp.zeros((len(x), 6), jnp.int32), lambda _, z: z)


def blank(modality):
  """Decodes to another shape."""
  encode, decode = (lambda _, x: x.reshape(len(x), -1)), (lambda _, z: z)
  return Pretrained({}, encode, decode)


def nothing(modality):
  """Returns no network at all."""
  return {"params": {}}
