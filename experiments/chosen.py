"""The flags that choose a config and its stages, of training and of its benchmark."""

from absl import flags
from ml_collections.config_flags import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train: FILE or FILE:DATASET.")
STAGES = flags.DEFINE_list("stages", [], "Stages, all if none; training prints their names.")
