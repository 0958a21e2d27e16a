"""Solvers of the reverse SDE and the probability-flow ODE along paths through multi-time.

`steps` has the atoms, `sampling` the loop. They know nothing of frameworks, Flax or devices.
"""

from mmdiff_jax.solvers.sampling import (
  from_eps as from_eps,
  from_score as from_score,
  from_v as from_v,
  from_x0 as from_x0,
  prior as prior,
  sample as sample,
)
from mmdiff_jax.solvers.steps import (
  ancestral as ancestral,
  ddim as ddim,
  Denoiser as Denoiser,
  dpmpp_2m as dpmpp_2m,
  euler_maruyama as euler_maruyama,
  heun as heun,
  Solver as Solver,
)
