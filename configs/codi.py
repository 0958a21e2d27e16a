"""CoDi's configs: `--config=configs/codi.py:NAME`, where NAME is a data set."""

from ml_collections import config_dict, ConfigDict

from configs import common
from mmdiff_jax.errors import UserError


def get_config(name: str = "digits") -> ConfigDict:
  """Returns the config of that name.

  Raises:
    UserError: there is no such config.
  """
  if name not in _PRESETS:
    raise UserError(f"configs/codi.py has no {name!r}; it has {', '.join(_PRESETS)}")
  config = _defaults()
  _PRESETS[name](config)
  # my_package.my_module:function of each pretrained prompt encoder, kept frozen; None is ours.
  config.bridging.pretrained = {n: config_dict.placeholder(str) for n in config.modalities}
  return config


def _digits(config):
  """69 minutes of one CPU core; from a caption digit and speech are both right in 82.7 %."""
  common.pairs_of_digits(config)
  # A latent is split into tokens; the latent of a video has this many tokens per frame.
  for name, size in config.autoencoder.items():
    size.frames = name == "video"
    size.tokens = 1 if size.frames else 2
  config.autoencoder.video.training.batch_size = 64
  config.bridging.bridge = "caption"
  config.alignment.links = (("caption", "digit"), ("caption", "speech"), ("speech", "video"))

  config.evaluation.tasks += (
    # Together with the first nine these are the paper's tasks.
    (("caption", "digit", "speech"), ("digit",)),
    (("caption",), ("caption", "digit")),
    # Several modalities at once, from prompts that some of them were not trained with.
    (("speech",), ("caption", "digit")),
    (("digit",), ("caption", "speech")),
    (("caption",), ("caption", "digit", "speech", "video")),
  )


def _digits_long(config):
  """Trains the diffusion models four times as long, for those who have a GPU or some hours."""
  _digits(config)
  for size in config.autoencoder.values():
    size.training.steps *= 2
  config.bridging.training.steps = 2000
  config.diffusion.training.steps = 20000
  config.alignment.training.steps = 10000
  config.evaluation.num = 1000


_PRESETS = {"digits": _digits, "digits_long": _digits_long}


def _defaults() -> ConfigDict:
  config = common.defaults("codi")
  config.evaluation.similarity = True

  bridging = config.bridging = ConfigDict()
  bridging.network = ConfigDict({"size": 64, "width": 64})
  bridging.training = common.training(steps=1000)

  diffusion = config.diffusion = ConfigDict()
  diffusion.network = ConfigDict({"width": 256, "depth": 4, "heads": 4, "hidden": 512})
  # Type of the computation: bfloat16, or None for float32. Parameters, losses and moments are
  # float32.
  diffusion.network.dtype = config_dict.placeholder(str)
  # Fraction of the examples in which the prompt is absent, and the length of the noise added to it
  # (the prompt has length 1), so that prompts of modalities not seen in training work, too.
  diffusion.absent_prob = 0.15
  diffusion.prompt_noise = 0.5
  diffusion.training = common.training(steps=5000, batch_size=128, steps_per_dispatch=10)

  alignment = config.alignment = ConfigDict()
  # V: number and size of its tokens, and width of its network.
  alignment.environment = ConfigDict({"tokens": 4, "size": 64, "width": 256})
  alignment.environment.dtype = config_dict.placeholder(str)
  alignment.absent_prob = 0.5
  alignment.prompt_noise = 0.5
  # Weight of V's contrastive loss relative to the losses of the latents.
  alignment.contrast = 0.05
  alignment.training = common.training(steps=2500, batch_size=128, steps_per_dispatch=10)

  config.sampling = ConfigDict()
  config.sampling.solver = "dpmpp_2m"
  config.sampling.steps = 32
  config.sampling.grid_power = 1.0
  # Chosen on validation examples; RESULTS.md has the curve.
  config.sampling.guidance = 2.0
  config.sampling.order = ()
  # Weights of the prompts of given modalities; 1 for each modality without an entry.
  config.sampling.weights = ConfigDict()
  return config
