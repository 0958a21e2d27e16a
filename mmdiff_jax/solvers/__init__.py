"""Solvers of the reverse SDE and the probability-flow ODE along paths through multi-time.

`ode` and `sde` have the single steps, `sampling` the loop, `correctors` the steps that preserve a
distribution, and `likelihood` exact log-likelihoods. None of them depends on frameworks, Flax or
devices.
"""

from mmdiff_jax.diffusion import (
  Denoiser as Denoiser,
  from_eps as from_eps,
  from_score as from_score,
  from_v as from_v,
  from_velocity as from_velocity,
  from_x0 as from_x0,
)
from mmdiff_jax.solvers.correctors import (
  corrected as corrected,
  hmc as hmc,
  largest_snr as largest_snr,
)
from mmdiff_jax.solvers.likelihood import (
  bits_per_dim as bits_per_dim,
  log_likelihood as log_likelihood,
)
from mmdiff_jax.solvers.moves import Solver as Solver
from mmdiff_jax.solvers.ode import (
  dpmpp_2m as dpmpp_2m,
  euler as euler,
  heun as heun,
  unipc as unipc,
)
from mmdiff_jax.solvers.sampling import (
  prior as prior,
  replace_known as replace_known,
  sample as sample,
  slerp as slerp,
)
from mmdiff_jax.solvers.sde import (
  ancestral as ancestral,
  ancestral_large as ancestral_large,
  ddim as ddim,
  euler_maruyama as euler_maruyama,
  sde_dpmpp_2m as sde_dpmpp_2m,
)
