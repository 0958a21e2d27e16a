"""Multi-time: how times are drawn in training, and the paths that they take in sampling.

Data is a dict of modalities and time a dict of times in [0, 1]. A time of 0 means *given* (clean,
conditioning the others), 1 means *absent* (pure noise, marginalised out), and in between a modality
is being denoised. Every task is a path through multi-time: joint generation lets all times fall
together, conditional generation keeps some at 0, a marginal keeps some at 1, and the time of one
modality may also fall after that of another.

`draws` has the times of training, `grids` the times of one modality and `paths` those of all along
which samples are generated.
"""

from mmdiff_jax.multitime.draws import (
  Draw as Draw,
  draw_independent as draw_independent,
  draw_joint as draw_joint,
  draw_masked as draw_masked,
  DrawTime as DrawTime,
  importance_time as importance_time,
  uniform_time as uniform_time,
)
from mmdiff_jax.multitime.grids import (
  EARLIEST as EARLIEST,
  edm_grid as edm_grid,
  log_snr_grid as log_snr_grid,
  power_grid as power_grid,
  uniform_grid as uniform_grid,
)
from mmdiff_jax.multitime.paths import (
  conditional as conditional,
  joint as joint,
  marginal as marginal,
  Path as Path,
  repaint as repaint,
  reverse as reverse,
  sequential as sequential,
  staggered as staggered,
  states as states,
)
