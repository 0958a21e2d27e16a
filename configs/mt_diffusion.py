"""MT-Diffusion's configs: `--config=configs/mt_diffusion.py:NAME`, where NAME is a task.

Each function below sets all fields that depend on a task; all others come from `_defaults`. Tasks
whose names end in `digits` are trained on the data that come with the project.
"""

import ml_collections
from ml_collections import ConfigDict

from configs import common
from mmdiff_jax.data import layouts
from mmdiff_jax.errors import UserError


def get_config(name: str = "label_digits") -> ConfigDict:
  """Returns the config of that name.

  Raises:
    UserError: there is no such config.
  """
  if name not in _PRESETS:
    raise UserError(f"configs/mt_diffusion.py has no {name!r}; it has {', '.join(_PRESETS)}")
  config = _defaults()
  _PRESETS[name](config)
  return config


def _label(config):
  """An image and its class, generated together or from one another.

  With a larger omega, noise hides the label later than the image, so that the label's head learns
  to read it from z_t and not from the image; with a smaller one the image's head learns less from
  it.

  47 minutes on two CPU cores; labels of test images are found in 98.9 %.
  """
  config.data.name = "mnist"
  _parts(config, digit=_part("identity"), label=_part("embedding", omega=0.1, weight=0.3))


def _label_digits(config):
  _label(config)
  config.data.name = "digits"
  _network_of_16(config)


def _single(config):
  """DDPM, the baseline of `label`: the image alone, by its noise."""
  _label(config)
  _parts(config, digit=_part("identity"))
  config.heads = False


def _augmented(config):
  """`single` on images half of which are masked and flagged as such; masked images have no head."""
  _masked(config)
  _parts(config, digit=_part("identity"))
  config.heads = False
  config.augment.modality = "masked"


def _apart(config):
  """`label` without the shared space: the label's head reads an image that contains no label.

  Only informed heads receive a given label; `replacement` has no effect for it.
  """
  _label(config)
  config.parts.label.omega = 0.0


def _masked(config):
  """Masked-image training: an image, and the same image with a part hidden."""
  config.data.update({"name": "masked", "of": "mnist", "modality": "digit"})
  config.data.kinds = ("random", "half", "complete")
  config.data.hidden = 0.5
  _parts(config, digit=_part("identity"), masked=_part("identity", omega=0.1, weight=0.2))
  config.evaluation.draws = 4


def _masked_digits(config):
  _masked(config)
  config.data.of = "digits"
  _network_of_16(config)


def _representation(config):
  """An image and its features from a frozen network: `--config.data.file=FILE`; see README."""
  config.data.update({"name": "represented", "of": "mnist", "size": 256})
  config.data.file = ml_collections.config_dict.placeholder(str)
  _parts(config, digit=_part("identity"), representation=_part("embedding", omega=0.5, weight=0.5))


def _representation_digits(config):
  _representation(config)
  config.data.of = "digits"
  _network_of_16(config)


def _transition_digits(config):
  """Image transition: a photo with a digit on it, and the mask of the digit."""
  config.data.name = "digits"
  _parts(config, scene=_part("identity"), mask=_part("embedding", omega=0.5, weight=0.5))
  _network_of_16(config)


def _camvid_classes(config):
  """Image transition: streets and their label maps in your folder `config.data.manual_dir`."""
  _files(config, layouts.camvid_classes(size=(24, 32)))


def _cityscapes(config):
  _files(config, layouts.cityscapes(size=(32, 64)))
  config.data.test_split = "val"


def _night2day(config):
  _files(config, layouts.night2day(size=(64, 64)))


def _paired_images(config):
  _files(config, layouts.paired_images(size=(64, 64)))


def _files(config, columns):
  """Image transition in a user's folder; the first column is the main one."""
  common.folder(config, columns)
  main, other = columns
  encoder = "embedding" if columns[other]["read"] == "mask" else "identity"
  _parts(config, **{main: _part("identity"), other: _part(encoder, omega=0.5, weight=0.5)})
  height, _ = columns[main]["size"]
  # With patches of 4 x 4 the noise of a colour image would fill all channels of that width.
  _network(config, width=48, attention=(height // 4, height // 8))
  config.training.batch_size = 32


def _imagenet64(config):
  """`label` with the sizes and training published for ImageNet-64 (Dhariwal and Nichol 2021, ADM).

  Differences from the published setup are the heads, bfloat16 in place of float16, and the bound on
  the gradient; the variances of the steps are not learned. It has 309 M parameters and takes 2,048
  images per step, split over the devices: it is meant for several accelerators.
  """
  config.data.name = "imagenet64"
  # The label's cross-entropy, log 1,000 at the start, must not dominate the squared errors.
  label = _part("embedding", omega=0.5, weight=0.01)
  _parts(config, image=_part("identity"), label=label)
  config.network.update(
    {
      "width": 192,
      "multipliers": (1, 2, 3, 4),
      "blocks": 3,
      "attention": (32, 16, 8),
      "head_channels": 64,
      "dropout": 0.1,
      "patch": 1,
      "remat": True,
      "dtype": "bfloat16",
    }
  )
  config.training.update(
    {
      "steps": 540_000,
      "batch_size": 2048,
      "learning_rate": 3e-4,
      "warmup": 0,
      "final": 1.0,
      "ema": 0.9999,
      "b2": 0.999,
    }
  )
  config.sampling.steps = 250
  config.evaluation.update({"seeds": 3, "num": 5000, "classifier_steps": 100_000})
  config.monitor.update({"report_every": 10_000, "checkpoint_every": 10_000})


_PRESETS = {
  "label": _label,
  "label_digits": _label_digits,
  "imagenet64": _imagenet64,
  "single": _single,
  "augmented": _augmented,
  "apart": _apart,
  "masked": _masked,
  "masked_digits": _masked_digits,
  "representation": _representation,
  "representation_digits": _representation_digits,
  "transition_digits": _transition_digits,
  "camvid_classes": _camvid_classes,
  "cityscapes": _cityscapes,
  "night2day": _night2day,
  "paired_images": _paired_images,
}


def _network_of_16(config):
  """Sets a network for the 16 x 16 pixels of the included digits."""
  _network(config, width=48, attention=(8, 4))


def _network(config, *, width, attention):
  """Sets a network for images of another size, whose levels have other heights to attend at."""
  config.network.update({"width": width, "head_channels": width, "attention": attention})


def _parts(config, **parts):
  """Sets the modalities, of which the first has the shape of the shared space."""
  config.modalities = tuple(parts)
  config.main = config.modalities[0]
  config.parts = ConfigDict(parts)


def _part(encoder, *, omega=1.0, weight=1.0) -> ConfigDict:
  """Returns one modality: its encoder into the shared space and its head's weight in the loss."""
  # identity, embedding or frozen (an embedding at its initial weights).
  return ConfigDict({"encoder": encoder, "omega": omega, "weight": weight})


def _defaults() -> ConfigDict:
  config = common.defaults("mt_diffusion")
  # Whether modalities have heads; a single modality may have none, which is DDPM.
  config.heads = True

  # The modality that replaces the main one in a fraction of the examples; "" is none.
  config.augment = ConfigDict({"modality": "", "share": 0.5})

  # There is no order, and guidance is only for informed heads.
  common.small_images(config, steps=10_000)
  process, network, sampling = config.process, config.network, config.sampling
  # start: z_0 is the aggregate of all modalities, and w = 0. steps: z_0 is the main modality, and
  # each step adds w_t of the aggregate of the others.
  process.aggregation = "start"
  # For steps: w_t = total a_{t-1} / T (linear) or total / T (constant).
  process.weights = "linear"
  process.total = 1.0
  # Whether the encoders get no gradient through z_t.
  config.stop_gradient = False

  # Whether the heads may read what is given, and the fraction of examples in which something is.
  network.informed = True
  network.given_prob = 0.5

  # dpmpp_2m, or ancestral for the aggregation steps, the only solver that accounts for what they
  # add.
  sampling.solver = common.default_by(
    process.get_ref("aggregation"), {"steps": "ancestral"}, "dpmpp_2m"
  )
  # Steps are entries of the table whose roots of this power are evenly spaced. With 1, that is even
  # steps, samples of a Gaussian of variance .04 come out 14 % too wide in 50 steps.
  sampling.grid_power = 2.0
  # replacement: given modalities replace the predictions of the heads, which is biased. informed:
  # the heads also read them.
  sampling.mode = "informed"

  # Number of test examples whose variational bound is computed; 0 leaves it out.
  config.evaluation.bound = 32
  return config
