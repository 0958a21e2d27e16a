"""MCDM's configs: `--config=configs/mcdm.py:EXPERT`, one expert each.

EXPERT is `unconditional`, `sketch`, `mask`, `text` or `label`, the condition that the expert is
given; `all`, one network for all of these, any of which may be absent; or `oracle`, always given a
sketch, a mask and a text together, which serves as a reference for composed experts. Each is
trained on digit images, and those with the prefix `faces_` on a folder in the layout of
CelebAMask-HQ (where all experts have the same images, unless you give each a folder of its own).
"""

from ml_collections import ConfigDict

from configs import common
from mmdiff_jax.data import layouts
from mmdiff_jax.errors import UserError

# The condition of each expert: its modality's name for digits and for faces, and the expert's part
# of the digit images. No two experts with a condition have an example of these in common.
_CONDITIONS = {
  "sketch": ("sketch", "sketch", (0, 4)),
  "mask": ("mask", "partial_mask", (1, 4)),
  "text": ("caption", "caption", (2, 4)),
  "label": ("label", None, (3, 4)),
}
_EXPERTS = {
  "unconditional": (),
  **{name: (name,) for name in _CONDITIONS},
  "all": tuple(_CONDITIONS),
  "oracle": ("sketch", "mask", "text"),
}


def get_config(name: str = "sketch") -> ConfigDict:
  """Returns the config of that name.

  Raises:
    UserError: there is no such config.
  """
  faces = name.startswith("faces_")
  expert = name.removeprefix("faces_")
  if expert not in _EXPERTS or name == "faces_label":
    valid_names = (*_EXPERTS, *(f"faces_{e}" for e in _EXPERTS if e != "label"))
    raise UserError(f"configs/mcdm.py has no {name!r}; it has {', '.join(valid_names)}")
  config = _defaults()
  conditions = [_CONDITIONS[condition] for condition in _EXPERTS[expert]]
  names = [condition[1] if faces else condition[0] for condition in conditions]
  (_faces if faces else _digits)(config)
  config.modalities = (config.main, *filter(None, names))
  if faces:
    # The folder needs no other columns than those that the expert reads.
    columns = layouts.celebamask_hq(size=(64, 64), length=128)
    needed = {*config.modalities, *(columns[name].get("of") for name in config.modalities)}
    common.folder(config, {name: columns[name] for name in columns if name in needed})
  if expert in _CONDITIONS and not faces:
    config.data.part = conditions[0][2]
  if expert == "all":
    config.absent_prob = 0.5
  return config


def _digits(config):
  """About 26 minutes of one CPU core for each expert; RESULTS.md has the compositions."""
  config.main = "digit"
  # of: mnist, or digits, which come with the project. part: (0, 4) is the first quarter of the
  # training split.
  config.data.update({"name": "sketched_digits", "of": "mnist", "part": (0, 1)})


def _faces(config):
  """Sets faces in your folder `config.data.manual_dir`."""
  config.main = "image"
  config.network.update({"width": 96, "multipliers": (1, 2, 3, 4), "blocks": 2, "text_width": 128})
  config.network.update({"attention": (16, 8), "patch": 1, "head_channels": 48})
  config.training.update({"steps": 200_000, "batch_size": 64, "learning_rate": 2e-4})
  config.evaluation.update({"seeds": 3, "num": 1000})


def _defaults() -> ConfigDict:
  config = common.defaults("mcdm")
  # Fraction of the training examples in which each condition is absent. At 0 the expert cannot do
  # without it.
  config.absent_prob = 0.0
  # v = alpha eps - sigma x0, or the paper's eps, whose error is 1 / alpha times as large in x0: at
  # t = 1 of the cosine betas that is 20,000 times.
  config.prediction = "v"
  # Guidance is for one expert that was also trained with its conditions absent; composed experts
  # have --weights. There is no order.
  common.small_images(config, steps=3000)
  config.network.text_width = 64
  # A solver of the SDE preserves more of a composition's variance than one of the ODE. In 50 steps
  # this one keeps a Gaussian's variance to 3 %; ancestral loses 9 to 13 %.
  config.sampling.solver = "sde_dpmpp_2m"
  # `num` corrections after each solver step, each of `leapfrog` steps of size `snr`: num * leapfrog
  # more evaluations of every model per step. 0 means no corrections. An snr that would diverge with
  # the weights is refused, see `solvers.largest_snr`.
  config.sampling.corrector = ConfigDict({"num": 0, "leapfrog": 3, "snr": 0.7})

  config.evaluation.update({"seeds": 1, "num": 1000})
  return config
