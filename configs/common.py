"""Config sections that all frameworks share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import ConfigDict


def defaults(framework: str) -> ConfigDict:
  """Returns the fields on data, evaluation, devices and monitoring; each framework adds its own."""
  config = ConfigDict()
  config.framework = framework
  config.seed = 0

  config.data = ConfigDict()
  config.data.data_dir = ml_collections.config_dict.placeholder(str)
  config.data.manual_dir = ml_collections.config_dict.placeholder(str)
  # Fraction of the training split that is held out of training, for `evaluate --split=validation`.
  # With None all of it is trained on.
  config.data.validation = ml_collections.config_dict.placeholder(float)

  config.evaluation = ConfigDict()
  config.evaluation.seeds = 5
  config.evaluation.num = 500
  # test or validation: the split whose examples are given and compared with samples.
  config.evaluation.split = "test"
  # Number of samples drawn for each given example; with several, their spread is measured.
  config.evaluation.draws = 1
  # Options of the data set, for both splits, that differ between evaluation and training.
  config.evaluation.data = ConfigDict()
  # Training steps of each classifier; with None each has a default.
  config.evaluation.classifier_steps = ml_collections.config_dict.placeholder(int)
  # Subsets of modalities that are also evaluated by themselves: jointly and from each other.
  config.evaluation.subsets = ()
  # Whether modalities generated together are compared with ones generated alone; each of the latter
  # costs as much again.
  config.evaluation.similarity = False

  config.parallel = ConfigDict()
  # jit, or pmap: the older form of data parallelism.
  config.parallel.kind = "jit"
  # Sizes of the axes (data, shard): copies of the parameters, and devices that share one copy. -1
  # stands for all devices that the other axis leaves.
  config.parallel.mesh = (-1, 1)
  # Arrays with fewer elements are not split.
  config.parallel.min_shard_size = 2**16

  config.monitor = ConfigDict()
  config.monitor.log_every = 100
  config.monitor.report_every = 2000
  config.monitor.checkpoint_every = 2000
  # Number of a stage's latest checkpoints that are kept.
  config.monitor.keep = 2
  # A metric of the log, such as loss, whose checkpoint of lowest value is kept, too; "" keeps none.
  config.monitor.best = ""
  # With several processes: seconds without a heartbeat after which a process counts as dead, and
  # seconds that compiling, a report, a checkpoint or `log_every` steps may take. Then all end.
  config.monitor.peer_timeout = 100
  config.monitor.stall_timeout = 1800.0
  return config


class _Operation(NamedTuple):
  """The operation that ml_collections applies to a field's value when it is read."""

  fn: Callable[[Any], Any]
  args: tuple[Any, ...] = ()


def default_by(
  field: ml_collections.FieldReference, choices: Mapping[str, str], otherwise: str
) -> ml_collections.FieldReference:
  """Returns a default that follows another field until it is set explicitly.

  Args:
    field: the other field, from `config.get_ref`.
    choices: the default for each value of the other field.
    otherwise: the default for values that are not in `choices`.
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
  """Returns the training fields of a diffusion network."""
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
      # Bound on the gradient's global norm; 0 means no bound.
      "clip": 1.0,
      "accumulate": 1,
      "steps_per_dispatch": steps_per_dispatch,
    }
  )


def small_images(config: ConfigDict, *, steps: int) -> None:
  """Sets the fields of DDPM on images of MNIST's size, all except the solver."""
  config.process = ConfigDict()
  # linear or cosine
  config.process.betas = "cosine"
  config.process.num = 1000

  network = config.network = ConfigDict()
  network.width = 32
  network.multipliers = (1, 1, 2)
  network.blocks = 1
  network.attention = (7, 4)
  network.head_channels = 32
  network.patch = 2
  # Whether its blocks are recomputed for the gradient, which saves their memory.
  network.remat = False
  # Type of the computation: bfloat16, or None for float32. Parameters, losses and moments are
  # float32.
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
  """Returns the sizes and training of one autoencoder."""
  return ConfigDict(
    {
      # my_package.my_module:function of a pretrained autoencoder, kept frozen; None is ours. For a
      # pretrained one `latent` must match, and of `training` only the batch size is read.
      "pretrained": ml_collections.config_dict.placeholder(str),
      "likelihood": likelihood,
      "latent": latent,
      "width": width,
      "depth": 1,
      # Std of the noise added to the latent in training, and weight of the penalty on its size.
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
  """Sets captions, digit images, their sounds and videos; no example has more than two of these."""
  # of: mnist (with spoken digits), or digits, which come with the project (with dial tones).
  config.data.update({"name": "pairs_of_digits", "of": "mnist"})
  config.modalities = ("caption", "digit", "speech", "video")
  config.autoencoder = {
    "caption": autoencoder("categorical", latent=32, width=512, noise=1.0, penalty=0.05),
    "digit": autoencoder("bernoulli", latent=32, width=512, penalty=0.1, steps=4000),
    "speech": autoencoder("gaussian", latent=32, width=512, penalty=0.01, steps=4000),
    "video": autoencoder("bernoulli", latent=16, width=256, penalty=0.1),
  }
  # Given modalities and the ones generated from them: single pairs first.
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
    # No example has both digit and speech.
    (("caption",), ("digit", "speech")),
  )


def folder(config: ConfigDict, columns: Mapping[str, Any]) -> None:
  """Sets data in a user's folder, `--config.data.manual_dir=FOLDER`; see `data/folder.py`."""
  config.data.name = "folder"
  config.data.columns = ConfigDict(columns)
  config.data.test_split = "test"
  config.data.test_share = 0.1
  # The start of a name that is hashed for this: names that share it come into the same split.
  config.data.together = ".*"
  # refuse, keep or drop: the treatment of examples that lack a modality.
  config.data.incomplete = "refuse"
  # Whether the images and masks of an example must have the same proportions.
  config.data.aligned = True
