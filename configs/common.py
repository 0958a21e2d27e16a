"""What the configs of all frameworks have alike."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import ConfigDict


def defaults(framework: str) -> ConfigDict:
  """Where data come from, how a run is judged and watched; each framework adds its own."""
  config = ConfigDict()
  config.framework = framework
  config.seed = 0

  config.data = ConfigDict()
  config.data.data_dir = ml_collections.config_dict.placeholder(str)
  config.data.manual_dir = ml_collections.config_dict.placeholder(str)
  # Fraction of the training split that is held out of training, for `evaluate --split=validation`.
  # None trains on all.
  config.data.validation = ml_collections.config_dict.placeholder(float)

  config.evaluation = ConfigDict()
  config.evaluation.seeds = 5
  config.evaluation.num = 500
  # test or validation: whose examples are given, and which samples are compared with.
  config.evaluation.split = "test"
  # How many samples are drawn of each example given; several show how far they differ.
  config.evaluation.draws = 1
  # Options of the data set, of both splits, that are others at evaluation than in training.
  config.evaluation.data = ConfigDict()
  # Training steps of each classifier; None is each one's own number.
  config.evaluation.classifier_steps = ml_collections.config_dict.placeholder(int)
  # Subsets of modalities that are judged on their own, too: jointly and from each other.
  config.evaluation.subsets = ()
  # Whether modalities generated together are held against ones generated alone, which costs as much
  # again as each of them.
  config.evaluation.similarity = False

  config.parallel = ConfigDict()
  # jit, or pmap: data parallel, as it was done before.
  config.parallel.kind = "jit"
  # Sizes of the axes (data, shard): copies of the parameters, and devices that share one copy. -1
  # is what the other one leaves.
  config.parallel.mesh = (-1, 1)
  # Arrays of fewer elements are not split.
  config.parallel.min_shard_size = 2**16

  config.monitor = ConfigDict()
  config.monitor.log_every = 100
  config.monitor.report_every = 2000
  config.monitor.checkpoint_every = 2000
  # How many of a stage's last checkpoints stay.
  config.monitor.keep = 2
  # A metric of the log, such as loss: the checkpoint with its lowest value stays, too. None if "".
  config.monitor.best = ""
  # Of several processes: seconds without a sign of life after which one is taken for dead, and
  # seconds that compiling, a report, a checkpoint or `log_every` steps may take. Then all end.
  config.monitor.peer_timeout = 100
  config.monitor.stall_timeout = 1800.0
  return config


class _Operation(NamedTuple):
  """What ml_collections calls on a field's value when it is read."""

  fn: Callable[[Any], Any]
  args: tuple[Any, ...] = ()


def chosen_by(
  field: ml_collections.FieldReference, choices: Mapping[str, str], otherwise: str
) -> ml_collections.FieldReference:
  """A default that follows another field, until it is set itself.

  Args:
    field: the other one, from `config.get_ref`.
    choices: the default by the other field's value.
    otherwise: the default where `choices` has none.
  """
  follow = _Operation(lambda value: choices.get(value, otherwise))
  return ml_collections.FieldReference(field, field_type=str, op=follow)


def training(
  *,
  steps: int,
  batch_size: int = 256,
  learning_rate: float = 1e-3,
  steps_per_dispatch: int = 1,
) -> ConfigDict:
  """How long and how fast a diffusion network is trained."""
  return ConfigDict(
    {
      "steps": steps,
      "batch_size": batch_size,
      "learning_rate": learning_rate,
      "warmup": 200,
      "final": 0.0,
      "ema": 0.999,
      "b2": 0.99,
      "weight_decay": 0.0,
      # Bound on the gradient's global norm; 0 leaves it alone.
      "clip": 1.0,
      "accumulate": 1,
      "steps_per_dispatch": steps_per_dispatch,
    }
  )


def small_images(config: ConfigDict, *, steps: int) -> None:
  """DDPM of images of MNIST's size: all but the solver."""
  config.process = ConfigDict()
  # linear or cosine.
  config.process.betas = "cosine"
  config.process.num = 1000

  network = config.network = ConfigDict()
  network.width = 32
  network.multipliers = (1, 1, 2)
  network.blocks = 1
  network.attention = (7, 4)
  network.head_channels = 32
  network.patch = 2
  # Whether its blocks are computed once more for the gradient, which saves their memory.
  network.remat = False
  # What it computes in: bfloat16, or None, float32. Parameters, losses and moments are float32.
  network.dtype = ml_collections.config_dict.placeholder(str)

  config.training = training(steps=steps, batch_size=64, learning_rate=2e-3)

  config.sampling = ConfigDict()
  config.sampling.steps = 50
  config.sampling.guidance = 1.0
  config.sampling.order = ()


def autoencoder(
  likelihood: str,
  *,
  latent: int,
  penalty: float,
  noise: float = 0.3,
  width: int = 256,
  steps: int = 2000,
) -> ConfigDict:
  """Sizes and training of one autoencoder."""
  return ConfigDict(
    {
      # my_package.my_module:function of an autoencoder that is brought, frozen; None is ours. Then
      # `latent` must be its own, and of `training` the batch size alone is read.
      "pretrained": ml_collections.config_dict.placeholder(str),
      "likelihood": likelihood,
      "latent": latent,
      "width": width,
      "depth": 1,
      # Deviation of the noise put on the latent in training, and the pull of the latent to 0.
      "noise": noise,
      "penalty": penalty,
      "training": {
        "steps": steps,
        "batch_size": 256,
        "learning_rate": 2e-3,
        "warmup": 50,
        "clip": 1.0,
        "accumulate": 1,
        "steps_per_dispatch": 10,
      },
    }
  )


def pairs_of_digits(config: ConfigDict) -> None:
  """A caption, a handwriting, its sound and a film of it, of which no example has more than two."""
  # of: mnist (with spoken digits), or digits, which come with the project (with dial tones).
  config.data.update({"name": "pairs_of_digits", "of": "mnist"})
  config.modalities = ("caption", "digit", "speech", "video")
  config.autoencoder = {
    "caption": autoencoder("categorical", latent=32, width=512, noise=1.0, penalty=0.05),
    "digit": autoencoder("bernoulli", latent=32, width=512, penalty=0.1, steps=4000),
    "speech": autoencoder("gaussian", latent=32, width=512, penalty=0.01, steps=4000),
    "video": autoencoder("bernoulli", latent=16, width=256, penalty=0.1),
  }
  # What is given, and what of it is generated: single pairs first.
  config.evaluation.tasks = (
    (("caption",), ("digit",)),
    (("digit",), ("caption",)),
    (("caption",), ("speech",)),
    (("speech",), ("caption",)),
    (("digit",), ("speech",)),
    (("speech",), ("digit",)),
    (("caption",), ("video",)),
    (("video",), ("caption",)),
    (("caption",), ("speech", "video")),
    # Of digit and speech no example has both.
    (("caption",), ("digit", "speech")),
  )


def folder(config: ConfigDict, columns: Mapping[str, Any]) -> None:
  """Data in a user's folder, `--config.data.manual_dir=FOLDER`; see `mmdiff_jax/data/folder.py`."""
  config.data.name = "folder"
  config.data.columns = ConfigDict(columns)
  config.data.test_split = "test"
  config.data.test_share = 0.1
  # What of the start of a name is hashed for that: what has it in common comes into one split.
  config.data.together = ".*"
  # refuse, keep or drop: what becomes of an example that lacks a modality.
  config.data.incomplete = "refuse"
  # Whether the images and masks of an example must have the same proportions.
  config.data.aligned = True
