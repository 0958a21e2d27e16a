"""Solvers of the reverse SDE and the probability-flow ODE along paths through multi-time.

`steps` has the single steps, `sampling` the loop, `correctors` the steps that preserve a
distribution, and `likelihood` exact log-likelihoods. None of them depends on frameworks, Flax or
devices.
"""

from mmdiff_jax.solvers.correctors import (
  corrected as corrected,
  hmc as hmc,
  largest_snr as largest_snr,
)
from mmdiff_jax.solvers.likelihood import (
  bits_per_dim as bits_per_dim,
  log_likelihood as log_likelihood,
)
from mmdiff_jax.solvers.sampling import (
  from_eps as from_eps,
  from_score as from_score,
  from_v as from_v,
  from_velocity as from_velocity,
  from_x0 as from_x0,
  prior as prior,
  replace_known as replace_known,
  sample as sample,
  slerp as slerp,
)
from mmdiff_jax.solvers.steps import (
  ancestral as ancestral,
  ancestral_large as ancestral_large,
  ddim as ddim,
  Denoiser as Denoiser,
  dpmpp_2m as dpmpp_2m,
  euler as euler,
  euler_maruyama as euler_maruyama,
  heun as heun,
  sde_dpmpp_2m as sde_dpmpp_2m,
  Solver as Solver,
  unipc as unipc,
)
