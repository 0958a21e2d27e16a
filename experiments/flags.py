"""The flags that name a config and its stages, shared by training and its benchmark."""

from absl import flags
from ml_collections.config_flags import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train: FILE or FILE:DATASET.")
STAGES = flags.DEFINE_list(
  "stages", [], "Names of the stages to run; all if not given. Training prints the names."
)
