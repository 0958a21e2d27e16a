"""MLD's configs: `--config=configs/mld.py:NAME`, where NAME is a preset for a data set.

Each function below sets all fields that depend on a data set: its modalities, and for each the size
of its latent and the likelihood of its decoder. All other fields come from `_defaults`.
"""

from ml_collections import config_dict, ConfigDict

from configs import common
from mmdiff_jax.data import audio, layouts
from mmdiff_jax.errors import UserError


def get_config(name: str = "digits") -> ConfigDict:
  """Returns the config of that name.

  Raises:
    UserError: there is no such config.
  """
  if name not in _PRESETS:
    raise UserError(f"configs/mld.py has no {name!r}; it has {', '.join(_PRESETS)}")
  config = _defaults()
  _PRESETS[name](config)
  return config


def _digits(config):
  """`make demo`: 5 minutes on two CPU cores; all four agree in 92.4 % of joint samples."""
  config.data.name = "digits"
  config.modalities = ("digit", "scene", "tone", "caption")
  config.autoencoder = {
    "digit": common.autoencoder("bernoulli", latent=16, penalty=0.1, steps=1500),
    "scene": _layered(latent=32, shape_latent=24, grid=2, steps=2000),
    "tone": common.autoencoder("gaussian", latent=12, penalty=0.02, steps=800),
    "caption": common.autoencoder("categorical", latent=12, noise=1.0, penalty=0.05, steps=1200),
  }
  config.sampling.order = (("tone",),)
  config.evaluation.subsets = (("digit", "scene", "tone"), ("digit", "tone", "caption"))


def _digits_long(config):
  """Trains `digits` longer: 21 minutes; all four agree in 91.5 % of joint samples."""
  _digits(config)
  for modality, steps in {"digit": 3000, "scene": 5000, "tone": 1500, "caption": 2000}.items():
    config.autoencoder[modality].training.steps = steps
  config.score.training.steps = 20000
  config.evaluation.num = 1000


def _spoken_mnist(config):
  """MNIST, speech and pen: 20 minutes; all three agree in 95.1 % of joint samples."""
  config.data.name = "spoken_mnist"
  config.modalities = ("digit", "speech", "pen")
  config.autoencoder = {
    "digit": common.autoencoder("bernoulli", latent=32, width=512, penalty=0.1, steps=6000),
    "speech": common.autoencoder("gaussian", latent=32, width=512, penalty=0.02, steps=6000),
    "pen": common.autoencoder("gaussian", latent=16, penalty=0.01, steps=3000),
  }
  config.score.training.steps = 12000
  config.sampling.order = (("pen",), ("speech",))
  config.evaluation.num = 1000


def _poly_mnist(config):
  """Five digit images of a class: 21 minutes; all five agree in 76.3 % of joint samples."""
  config.data.name = "poly_mnist"
  config.modalities = ("m0", "m1", "m2", "m3", "m4")
  config.autoencoder = {
    name: _layered(latent=48, shape_latent=32, grid=4, negative=True, steps=4000)
    for name in config.modalities
  }
  # The order below starts with one modality alone, which is a rare state among five.
  config.score.absent_prob = 0.6
  config.score.training.steps = 10000
  config.sampling.order = (("m4",), ("m0",), ("m3",), ("m2",))
  config.sampling.guidance = 4.0


def _captioned_digits(config):
  """Coloured digits and captions: 36 minutes; both agree in 52.8 %, a weak model."""
  config.data.name = "captioned_digits"
  config.modalities = ("digit", "caption")
  config.autoencoder = {
    "digit": common.autoencoder("gaussian", latent=48, width=512, penalty=0.01, steps=8000),
    "caption": common.autoencoder("categorical", latent=32, width=512, noise=1.0, penalty=0.05),
  }
  config.score.training.steps = 10000
  config.sampling.order = (("caption",),)
  config.evaluation.num = 1000


def _moving_digits(config):
  """Digits, videos and captions; no result of it is recorded yet."""
  config.data.name = "moving_digits"
  config.modalities = ("digit", "video", "caption")
  config.autoencoder = {
    "digit": common.autoencoder("bernoulli", latent=32, width=512, penalty=0.1, steps=6000),
    "video": common.autoencoder("bernoulli", latent=48, width=512, penalty=0.1, steps=8000),
    "caption": common.autoencoder("categorical", latent=32, width=512, noise=1.0, penalty=0.05),
  }
  config.score.training.steps = 15000


def _pairs_of_digits(config):
  """Trains on CoDi's data, for as long as CoDi: each example has two of the four modalities.

  Modalities that occur together in no example are generated together, or from one another, all the
  same, in states that were never trained.

  82 minutes of one CPU core; digit and speech from a caption are both right in 46.7 %.
  """
  common.pairs_of_digits(config)
  # One latent for all frames.
  config.autoencoder.video = common.autoencoder(
    "bernoulli", latent=48, width=512, penalty=0.1, steps=4000
  )
  config.score.training.steps = 50000
  config.evaluation.tasks += ((("caption",), ("digit", "speech", "video")),)


def _mnist_svhn(config):
  """Sets the paper's latents, likelihood, score network, schedule and length of training.

  The autoencoders are ours (residual MLPs in place of the published convolutions for SVHN), and so
  is their training length. The public reference also takes 1,000 steps of Euler-Maruyama.

  Not trained here. The paper has a joint coherence of 85.22 %.
  """
  config.data.name = "mnist_svhn"
  config.modalities = ("mnist", "svhn")
  config.autoencoder = {
    "mnist": common.autoencoder(
      "laplace", latent=16, width=400, noise=0.0, penalty=0.0, steps=87600
    ),
    "svhn": common.autoencoder(
      "laplace", latent=64, width=512, noise=0.0, penalty=0.0, steps=87600
    ),
  }
  published = {"batch_size": 128, "warmup": 0, "final": 1.0, "b2": 0.999}
  for codec in config.autoencoder.values():
    codec.training.update({**published, "learning_rate": 1e-3})
  score = {"kind": "published", "width": 512, "dtype": config_dict.placeholder(str)}
  config.score.network = ConfigDict(score)
  config.score.schedule = "vp_linear"
  config.score.prediction = "eps"
  config.score.given_prob = 0.5
  config.score.absent_prob = 0.0
  # 151 epochs.
  config.score.training.update({**published, "learning_rate": 1e-4, "steps": 151 * 8760})
  config.sampling.update({"solver": "euler_maruyama", "steps": 1000, "guidance": 1.0})
  config.evaluation.num = 1000


def _folder(config):
  """Sets images with captions. For other columns, change a copy of this file; see README."""
  columns = {
    "image": {"read": "image", "size": (64, 64)},
    "caption": {"read": "text", "length": 128},
  }
  _files(config, columns)


def _cub(config):
  _files(config, layouts.cub(size=(64, 64), length=128))
  config.modalities = ("image", "caption")


def _celebamask_hq(config):
  _files(config, layouts.celebamask_hq(size=(32, 32), length=128))


def _paired_images(config):
  _files(config, layouts.paired_images(size=(64, 64)))


def _night2day(config):
  _files(config, layouts.night2day(size=(64, 64)))


def _cityscapes(config):
  _files(config, layouts.cityscapes(size=(32, 64)))
  config.data.test_split = "val"


def _camvid(config):
  _files(config, layouts.camvid(size=(48, 64)))
  config.data.together = layouts.CAMVID_DRIVE
  config.data.test_share = 0.2


def _audiocaps(config):
  # Ten seconds of sound.
  view = audio.LogMel(16000, window=2048, hop=1250, frames=128, bands=64, low=50.0, high=7000.0)
  _files(config, layouts.audiocaps(view=view, length=128))
  config.data.incomplete = "drop"


_SIZES = {
  "image": {"likelihood": "gaussian", "latent": 64, "penalty": 0.01},
  "mask": {"likelihood": "categorical", "latent": 48, "penalty": 0.01},
  "sound": {"likelihood": "gaussian", "latent": 64, "penalty": 0.02},
  "text": {"likelihood": "categorical", "latent": 48, "penalty": 0.05, "noise": 1.0},
  "video": {"likelihood": "gaussian", "latent": 96, "penalty": 0.01},
}
_SIZES |= {"sketch": _SIZES["image"], "table": _SIZES["text"]}
_SIZES |= {"parts": _SIZES["mask"], "partial_mask": _SIZES["mask"]}


def _files(config, columns):
  """Sets data in a user's folder, `--config.data.manual_dir=FOLDER`.

  See `mmdiff_jax/data/folder.py`. The sizes are a starting point, small enough for autoencoders
  without convolutions: if reconstructions are blurred, raise the latents, and the width with them.
  """
  common.folder(config, columns)
  config.modalities = tuple(name for name in columns if columns[name]["read"] != "label")
  config.autoencoder = {
    name: common.autoencoder(**_SIZES[columns[name]["read"]], width=512, steps=8000)
    for name in config.modalities
  }
  config.score.training.steps = 15000


_PRESETS = {
  "digits": _digits,
  "digits_long": _digits_long,
  "spoken_mnist": _spoken_mnist,
  "poly_mnist": _poly_mnist,
  "captioned_digits": _captioned_digits,
  "moving_digits": _moving_digits,
  "pairs_of_digits": _pairs_of_digits,
  "mnist_svhn": _mnist_svhn,
  "folder": _folder,
  "cub": _cub,
  "celebamask_hq": _celebamask_hq,
  "paired_images": _paired_images,
  "night2day": _night2day,
  "cityscapes": _cityscapes,
  "camvid": _camvid,
  "audiocaps": _audiocaps,
}


def _defaults() -> ConfigDict:
  config = common.defaults("mld")
  # masked is the paper's method; inpaint and unidiffuser are its baselines.
  config.variant = "masked"

  # Each modality of a training example is dropped with this probability; at least one stays.
  config.drop_prob = 0.0

  score = config.score = ConfigDict()
  score.network = ConfigDict(
    {"kind": "towers", "width": 512, "depth": 3, "tower_width": 256, "tower_depth": 1}
  )
  # Type of the computation: bfloat16, or None for float32. Parameters, losses and moments are
  # float32.
  score.network.dtype = config_dict.placeholder(str)
  score.schedule = "vp_cosine"
  score.prediction = "v"
  score.t_min = 1e-3
  # Probability that some modalities are given, and probability of each other one to be absent.
  score.given_prob = 0.7
  score.absent_prob = 0.3
  # Draws times with density proportional to g^2 / sigma^2, reweighted, instead of uniformly. The
  # expected loss is the same, but the variance of its gradient doubles: useful only for comparison.
  # Not with unidiffuser.
  score.importance = False
  score.training = common.training(steps=6000, steps_per_dispatch=20)

  config.sampling = ConfigDict()
  # dpmpp_2m, or sde_dpmpp_2m for the variant inpaint, which adds noise again where times rise.
  config.sampling.solver = common.default_by(
    config.get_ref("variant"), {"inpaint": "sde_dpmpp_2m"}, "dpmpp_2m"
  )
  config.sampling.steps = 32
  # Times (1 - i/N)^power: 1 suits vp_cosine, 2 vp_linear.
  config.sampling.grid_power = 1.0
  config.sampling.guidance = 3.0
  # Groups that are generated one after the other, then the rest; () means all together.
  config.sampling.order = ()
  # For inpaint with given modalities: RePaint takes each piece of `jump` steps `repeats` times.
  # For a Gaussian pair with correlation .8 (b given a: slope .80, variance .36) this gives .76 and
  # .38; repeats of 1 give .50 and .52.
  config.sampling.jump = 4
  config.sampling.repeats = 10
  return config


def _layered(*, latent, shape_latent, grid, steps, negative=False) -> ConfigDict:
  """Returns an autoencoder of a figure on a ground.

  The first `shape_latent` components of the latent encode the figure's shape and nothing else.
  """
  config = common.autoencoder("gaussian", latent=latent, width=512, penalty=0.004, steps=steps)
  config.layers = ConfigDict(
    {"shape_latent": shape_latent, "grid": grid, "negative": negative, "robust": 2.0}
  )
  return config
