"""Classifiers that evaluate generated samples, one per modality, trained on the training split.

They share nothing with the generators, which are residual MLPs with LayerNorm and SiLU, trained
from the run's seed; the classifiers are a small convolutional network for images, one of single
frames for videos, and a plain MLP for all other kinds, with ReLU and dropout, trained from a seed
of their own. So a modality's classifier depends on the data alone, and not on the run or the
framework.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import os
import time
from typing import Any, NamedTuple
import zlib

from flax import linen as nn, traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import numpy as np
import optax
from scipy import special

from mmdiff_jax import noise, storage
from mmdiff_jax.data import array_files
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.modalities import Modality

_SEED = 7919  # A seed for the classifiers alone: they do not depend on a run's seed.
_BATCH = 128
_CHUNK = 1000  # Number of rows that are classified at once.


class _Images(nn.Module):
  """Two convolutions and a hidden layer, for small images in [0, 1]."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = 2.0 * x - 1.0
    x = nn.relu(nn.Conv(32, (4, 4), strides=2)(x))
    x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
    x = x.reshape(x.shape[0], -1)
    x = nn.Dropout(0.4, deterministic=not train)(x)
    features = nn.relu(nn.Dense(256)(x))
    x = nn.Dropout(0.3, deterministic=not train)(features)
    return nn.Dense(self.num_classes)(x), features


class _Videos(nn.Module):
  """Three convolutions of a frame, each channel's maximum over positions, the mean over frames."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    frames = 2.0 * x.reshape(-1, *x.shape[2:]) - 1.0
    frames = nn.relu(nn.Conv(32, (4, 4), strides=2)(frames))
    frames = nn.relu(nn.Conv(64, (3, 3), strides=2)(frames))
    frames = nn.relu(nn.Conv(64, (3, 3))(frames))
    x = frames.max(axis=(1, 2)).reshape(*x.shape[:2], -1).mean(axis=1)
    x = nn.Dropout(0.1, deterministic=not train)(x)
    features = nn.relu(nn.Dense(256)(x))
    x = nn.Dropout(0.3, deterministic=not train)(features)
    return nn.Dense(self.num_classes)(x), features


class _Vectors(nn.Module):
  """Two hidden layers on the flattened input; `vocabulary` > 0 means that the input is tokens."""

  num_classes: int
  vocabulary: int

  @nn.compact
  def __call__(self, x, train):
    x = jax.nn.one_hot(x, self.vocabulary) if self.vocabulary else 2.0 * x - 1.0
    x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
    x = nn.Dropout(0.3, deterministic=not train)(x)
    features = nn.relu(nn.Dense(256)(x))
    x = nn.Dropout(0.3, deterministic=not train)(features)
    return nn.Dense(self.num_classes)(x), features


class Classifier(NamedTuple):
  """A trained classifier.

  Attributes:
    params: its parameters.
    apply: `(params, x) -> (logits, features)`, jitted: model inputs x, [batch, ...]; logits
      [batch, classes]; features of the last hidden layer, [batch, 256], for Frechet distances, or
      [batch, 0] if there are none.
  """

  params: Any
  apply: Callable[..., tuple[Array, Array]]


def _network(modality: Modality, num_classes: int) -> nn.Module:
  if modality.kind == "image":
    return _Images(num_classes)
  if modality.kind == "video":
    return _Videos(num_classes)
  return _Vectors(num_classes, modality.num_classes)


def _num_steps(modality: Modality) -> int:
  """Returns the default number of steps.

  Images are harder than spectrograms and texts of this size, and colour is harder than ink.
  """
  if modality.kind != "image":
    return 1000 if modality.kind == "video" else 400
  return 1500 if modality.shape[-1] == 1 else 3000


def _inference(network: nn.Module) -> Callable[..., tuple[Array, Array]]:
  return jax.jit(functools.partial(network.apply, train=False))


def fit(
  modality: Modality,
  x: np.ndarray | Column,
  labels: Int[np.ndarray, " examples"],
  key: PRNGKeyArray,
  *,
  num_steps: int | None = None,
  say: Callable[[str], None] = print,
) -> Classifier:
  """Trains the classifier of a modality with AdamW, cross-entropy and cosine decay to 0.

  Args:
    modality: what the classifier reads; its kind determines the network.
    x: model inputs of the training split, [examples, ...].
    labels: classes, counted from 0.
    key: for the initial weights, the dropout and the order of the examples.
    num_steps: steps of 128 examples; None is enough for small images and short texts.
    say: receives lines of progress.

  Returns:
    The classifier.
  """
  network = _network(modality, int(labels.max()) + 1)
  num_steps = num_steps or _num_steps(modality)
  optimiser = optax.adamw(optax.cosine_decay_schedule(1e-3, num_steps), weight_decay=1e-2)
  init_key, dropout_key, order_key = jax.random.split(key, 3)
  params = network.init(init_key, jnp.asarray(x[:1]), train=False)

  # One step per call: gradients of convolutions are slow inside a scan on CPU.
  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, x, labels, index):
    def loss(params):
      rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
      logits, _ = network.apply(params, x, train=True, rngs=rngs)
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = optimiser.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  rng = np.random.default_rng(np.asarray(jax.random.bits(order_key, (4,))))
  opt_state = optimiser.init(params)
  began = reported = time.monotonic()
  for index in range(num_steps):
    rows = rng.integers(len(labels), size=_BATCH)
    params, opt_state, value = step(params, opt_state, x[rows], labels[rows], np.int32(index))
    done, now = index + 1, time.monotonic()
    if now - reported > 5.0 or done == num_steps:
      reported = now
      left = (now - began) * (num_steps - done) / done
      say(
        f"classifier of {modality.name}: {done:,}/{num_steps:,}  loss {float(value):.4f}  "
        f"{left:.0f} s left"
      )
  return Classifier(params, _inference(network))


def classify(
  classifier: Classifier, x: np.ndarray | Column
) -> tuple[Int[np.ndarray, " examples"], Float[np.ndarray, "examples features"]]:
  """Returns the likeliest class and the features of each example; computed in chunks."""
  logits, features = _outputs(classifier, x)
  return logits.argmax(-1), features


def probabilities(
  classifier: Classifier, x: np.ndarray | Column
) -> Float[np.ndarray, "examples classes"]:
  """Returns each example's class probabilities, also for a caption that names no class."""
  logits, _ = _outputs(classifier, x)
  return special.softmax(logits, axis=-1)


def _outputs(classifier, x) -> tuple[np.ndarray, np.ndarray]:
  parts = [classifier.apply(classifier.params, part) for part in _chunks(x)]
  return tuple(
    np.concatenate([np.asarray(a) for a in both])[: len(x)] for both in zip(*parts, strict=True)
  )


def _chunks(x: np.ndarray | Column) -> Iterator[np.ndarray]:
  """Yields equal parts, the last one padded with its last row, so that one program serves all."""
  num = -(-len(x) // _CHUNK)
  size = -(-len(x) // num)
  index = np.minimum(np.arange(num * size), len(x) - 1).reshape(num, size)
  return (x[rows] for rows in index)


def load_or_fit(
  modality: Modality,
  x: np.ndarray | Column,
  labels: Int[np.ndarray, " examples"],
  folder: str | os.PathLike[str],
  *,
  num_steps: int | None = None,
  say: Callable[[str], None] = print,
) -> Classifier:
  """Returns a modality's classifier, from `folder/<name>.npz` if that was fitted to the same data.

  Args:
    modality: what the classifier reads. The modality of the name "label", the classes themselves,
      needs no training: its class is its value, and it has no features ([batch, 0]).
    x: model inputs of the training split.
    labels: their classes.
    folder: of the file; created if necessary.
    num_steps: as for `fit`.
    say: receives lines of progress.

  Returns:
    The classifier. A file from other data, or a damaged one, is replaced.

  Raises:
    UserError: the file cannot be written.
  """
  if modality.name == "label":
    one_hot = functools.partial(jax.nn.one_hot, num_classes=modality.num_classes)
    return Classifier({}, lambda params, x: (jnp.log(one_hot(x)), jnp.zeros((len(x), 0))))
  path = storage.path(folder) / f"{modality.name}.npz"
  # All that determines the classifier: seed, number of steps and a checksum of its data.
  made_of = f"{_SEED} {num_steps or _num_steps(modality)}".encode()
  for array in (x, labels):
    digest = 0
    for i in range(0, len(array), _CHUNK):
      digest = zlib.crc32(np.ascontiguousarray(array[i : i + _CHUNK]), digest)
    made_of += digest.to_bytes(4, "big")
  made_of = np.frombuffer(made_of, np.uint8)
  saved = array_files.kept_npz(path)
  if saved is not None and np.array_equal(saved.pop("made_of", None), made_of):
    network = _network(modality, int(labels.max()) + 1)
    return Classifier(traverse_util.unflatten_dict(saved, sep="/"), _inference(network))
  # Checked before minutes of training.
  storage.check_writable(path.parent, "the folder of the classifiers")
  key = noise.modality_key(noise.make_key(_SEED), modality.name)
  classifier = fit(modality, x, labels, key, num_steps=num_steps, say=say)
  flat = {
    name: np.asarray(value)
    for name, value in traverse_util.flatten_dict(classifier.params, sep="/").items()
  }
  with storage.writing(path, "the file of a classifier"):
    path.parent.mkdir(parents=True, exist_ok=True)
    array_files.write_npz(path, made_of=made_of, **flat)
  return classifier


def accuracy(
  trained: Mapping[str, Classifier],
  data: Mapping[str, np.ndarray | Column],
  labels: np.ndarray,
) -> dict[str, float]:
  """Returns each classifier's accuracy on model inputs."""
  return {
    name: float(np.mean(classify(classifier, data[name])[0] == labels))
    for name, classifier in trained.items()
  }
