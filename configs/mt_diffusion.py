"""MT-Diffusion's configs: `--config=configs/mt_diffusion.py:NAME`, where NAME is a task.

Each function below has all that is chosen for a task; what they do not say is `_defaults`.
"""

import ml_collections
from ml_collections import ConfigDict


def get_config(name: str = "label_digits") -> ConfigDict:
  """The config of that name.

  Raises:
    ValueError: no such config.
  """
  if name not in _PRESETS:
    raise ValueError(f"configs/mt_diffusion.py has no {name!r}; it has {', '.join(_PRESETS)}")
  config = _defaults()
  _PRESETS[name](config)
  return config


def _label(config):
  """An image and its class, generated together or from one another."""
  config.data.name = "mnist"
  config.modalities = ("digit", "label")
  config.main = "digit"
  config.parts = {
    "digit": _part("identity"),
    "label": _part("embedding", omega=0.5, weight=0.1),
  }


def _label_digits(config):
  _label(config)
  config.data.name = "digits"
  config.network.patch = 1
  config.network.attention = (4,)
  config.training.steps = 6000


_PRESETS = {"label": _label, "label_digits": _label_digits}


def _part(encoder, *, omega=1.0, weight=1.0) -> ConfigDict:
  """One modality: how it enters the shared space, and what its head counts in the loss."""
  # identity, embedding or frozen (an embedding as it was drawn).
  return ConfigDict({"encoder": encoder, "omega": omega, "weight": weight})


def _defaults() -> ConfigDict:
  config = ConfigDict()
  config.framework = "mt_diffusion"
  config.seed = 0
  # multi: all modalities, each with a head. single: the main one alone, which is DDPM. augmented:
  # single, on images some of which are masked.
  config.task = "multi"

  config.data = ConfigDict()
  config.data.data_dir = ml_collections.config_dict.placeholder(str)
  config.data.manual_dir = ml_collections.config_dict.placeholder(str)

  process = config.process = ConfigDict()
  # linear or cosine.
  process.betas = "linear"
  process.num = 1000
  # start: z_0 is the aggregate of all modalities, and w = 0. steps: z_0 is the main modality, and
  # each step adds w_t of the aggregate of the others.
  process.aggregation = "start"
  # Of steps: w_t = total a_{t-1} / T (linear) or total / T (constant).
  process.weights = "linear"
  process.total = 1.0
  # Whether the encoders are kept from learning through z_t.
  config.stop_gradient = False

  # Of augmented: the share of images that are masked, how (each at random), and how much of an
  # image the random masks hide.
  config.masking = ConfigDict({"share": 0.5, "kinds": ("random", "half"), "hidden": 0.5})

  network = config.network = ConfigDict()
  # Whether the heads may see what is known, and the share of examples in which each modality is.
  network.informed = True
  network.known_prob = 0.3
  network.width = 32
  network.multipliers = (1, 2, 2)
  network.blocks = 1
  network.attention = (7,)
  network.head_channels = 32
  network.patch = 1

  config.training = ConfigDict(
    {
      "steps": 20000,
      "batch_size": 128,
      "learning_rate": 1e-3,
      "warmup": 500,
      "ema": 0.9995,
      "b2": 0.99,
    }
  )

  config.sampling = ConfigDict()
  # replacement: known modalities take the place of what the heads predict; biased. informed: the
  # heads also see them.
  config.sampling.mode = "informed"
  config.sampling.solver = "ancestral"
  config.sampling.steps = 100
  # This framework has neither guidance nor an order; both stay as they are.
  config.sampling.guidance = 1.0
  config.sampling.order = ()

  config.evaluation = ConfigDict()
  config.evaluation.seeds = 5
  config.evaluation.num = 500
  # Training steps of each classifier; None is each one's own number.
  config.evaluation.classifier_steps = ml_collections.config_dict.placeholder(int)
  config.evaluation.subsets = ()

  config.monitor = ConfigDict()
  config.monitor.log_every = 100
  config.monitor.report_every = 2000
  config.monitor.checkpoint_every = 2000
  return config
