"""MLD's configs: `--config=configs/mld.py:NAME` with NAME `digits` or `digits_long`."""

import ml_collections
from ml_collections import ConfigDict


def get_config(name: str = "digits") -> ConfigDict:
  """The config of that name.

  Raises:
    ValueError: no such config.
  """
  if name not in ("digits", "digits_long"):
    raise ValueError(f"configs/mld.py has no {name!r}; it has digits and digits_long")
  config = ConfigDict()
  config.framework = "mld"
  config.seed = 0
  config.modalities = ("digit", "scene", "tone", "caption")
  # masked: the paper's. inpaint, unidiffuser: its baselines.
  config.variant = "masked"

  config.data = ConfigDict()
  config.data.name = "digits"
  config.data.data_dir = ml_collections.config_dict.placeholder(str)
  config.data.manual_dir = ml_collections.config_dict.placeholder(str)

  config.autoencoder = ConfigDict()
  config.autoencoder.digit = _autoencoder(latent=16, noise=0.3, penalty=0.1, steps=1500)
  scene = config.autoencoder.scene = _autoencoder(
    latent=32, width=512, noise=0.3, penalty=0.004, steps=2000
  )
  # A figure on a ground: the first 24 components carry its shape and nothing else.
  scene.layers = ConfigDict({"shape_latent": 24, "grid": 2, "robust": 2.0})
  config.autoencoder.tone = _autoencoder(latent=12, noise=0.3, penalty=0.02, steps=800)
  config.autoencoder.caption = _autoencoder(latent=12, noise=1.0, penalty=0.05, steps=1200)

  score = config.score = ConfigDict()
  score.network = ConfigDict(
    {"kind": "towers", "width": 512, "depth": 3, "tower_width": 256, "tower_depth": 1}
  )
  score.schedule = "vp_cosine"
  score.prediction = "v"
  score.t_min = 1e-3
  # Probability that some modalities are given, and that each other one is absent.
  score.given_prob = 0.7
  score.absent_prob = 0.3
  # Times in proportion to g^2 / sigma^2, reweighted, instead of uniform.
  score.importance = False
  score.training = ConfigDict(
    {
      "steps": 6000,
      "batch_size": 256,
      "learning_rate": 1e-3,
      "warmup": 200,
      "ema": 0.999,
      "b2": 0.99,
      "steps_per_dispatch": 20,
    }
  )

  config.sampling = ConfigDict()
  config.sampling.solver = "dpmpp_2m"
  config.sampling.steps = 32
  # Times (1 - i/N)^power: 1 suits vp_cosine, 2 vp_linear.
  config.sampling.grid_power = 1.0
  config.sampling.guidance = 3.0
  # Groups that are generated one after the other, then the rest; () is all together.
  config.sampling.order = (("tone",),)

  config.evaluation = ConfigDict()
  config.evaluation.seeds = 5
  config.evaluation.num = 500
  # Training steps of each classifier; None is each one's own number.
  config.evaluation.classifier_steps = ml_collections.config_dict.placeholder(int)
  config.evaluation.joint_subsets = (("digit", "scene", "tone"),)

  config.monitor = ConfigDict()
  config.monitor.log_every = 100
  config.monitor.report_every = 2000
  config.monitor.checkpoint_every = 2000

  if name == "digits_long":
    for modality, steps in {"digit": 3000, "scene": 5000, "tone": 1500, "caption": 2000}.items():
      config.autoencoder[modality].training.steps = steps
    score.training.steps = 20000
    config.evaluation.num = 1000
  return config


def _autoencoder(*, latent, noise, penalty, steps, width=256) -> ConfigDict:
  """Sizes and training of one autoencoder."""
  return ConfigDict(
    {
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
        "steps_per_dispatch": 10,
      },
    }
  )
