"""MCDM's configs: `--config=configs/mcdm.py:EXPERT`, one expert each.

EXPERT is `unconditional`, `sketch`, `mask`, `text` or `label`, what the expert is shown; `all`, one
network for all of these, which any of them may be withheld from; or `oracle`, shown a sketch, a
mask and a text, always together, which composed experts are to be compared with. Each is trained on
handwriting, and those with `faces_` before them on a folder in the layout of CelebAMask-HQ (where
all experts have the same images, unless you give each a folder of its own).
"""

from ml_collections import ConfigDict

from configs import common
from mmdiff_jax.data import layouts
from mmdiff_jax.errors import UserError

# The condition of each expert, its name among the digits and among the faces, and its part of the
# handwriting: no two experts that are shown something have an example of it in common.
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
  """The config of that name.

  Raises:
    UserError: no such config.
  """
  faces = name.startswith("faces_")
  expert = name.removeprefix("faces_")
  if expert not in _EXPERTS or name == "faces_label":
    known = (*_EXPERTS, *(f"faces_{e}" for e in _EXPERTS if e != "label"))
    raise UserError(f"configs/mcdm.py has no {name!r}; it has {', '.join(known)}")
  config = _defaults()
  shown = [_CONDITIONS[condition] for condition in _EXPERTS[expert]]
  names = [condition[1] if faces else condition[0] for condition in shown]
  (_faces if faces else _digits)(config)
  config.modalities = (config.main, *filter(None, names))
  if faces:
    # The folder need have no more than what the expert is shown.
    columns = layouts.celebamask_hq(size=(64, 64), length=128)
    needed = {*config.modalities, *(columns[name].get("of") for name in config.modalities)}
    common.folder(config, {name: columns[name] for name in columns if name in needed})
  if expert in _CONDITIONS and not faces:
    config.data.part = shown[0][2]
  if expert == "all":
    config.absent_prob = 0.5
  return config


def _digits(config):
  config.main = "digit"
  # of: mnist, or digits, which come with the project. part: (0, 4) is the first quarter of the
  # training split.
  config.data.update({"name": "sketched_digits", "of": "mnist", "part": (0, 1)})


def _faces(config):
  """Faces in your folder `config.data.manual_dir`."""
  config.main = "image"
  config.network.update({"width": 96, "multipliers": (1, 2, 3, 4), "blocks": 2, "text_width": 128})
  config.network.update({"attention": (16, 8), "patch": 1, "head_channels": 48})
  config.training.update({"steps": 200_000, "batch_size": 64, "learning_rate": 2e-4})
  config.evaluation.update({"seeds": 3, "num": 1000})


def _defaults() -> ConfigDict:
  config = common.defaults("mcdm")
  # In which share of the training examples each condition is absent. At 0 the expert cannot do
  # without it.
  config.absent_prob = 0.0
  # v = alpha eps - sigma x0, or the paper's eps, whose error is 1 / alpha as large in x0: at t = 1
  # of the cosine betas that is 20,000 times.
  config.prediction = "v"
  # Guidance is of one expert that was trained with its conditions absent, too; experts that are
  # composed have --weights. There is no order.
  common.small_images(config, steps=3000)
  config.network.text_width = 64
  # A solver of the SDE leaves a composition more of its spread than one of the ODE does. In 50
  # steps this one keeps a Gaussian's variance to 3 %; ancestral loses 9 to 13 %.
  config.sampling.solver = "sde_dpmpp_2m"
  # After each step so many corrections, each of so many leapfrog steps of that size: num * leapfrog
  # evaluations of every model more a step. 0 leaves them out. An snr that would diverge with the
  # weights is refused, see `solvers.largest_snr`.
  config.sampling.corrector = ConfigDict({"num": 0, "leapfrog": 3, "snr": 0.7})

  config.evaluation.update({"seeds": 1, "num": 1000})
  return config
