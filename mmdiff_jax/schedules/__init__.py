"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps for a time t in [0, 1].

The forward SDE dx = f(t) x dt + g(t) dW has the same distribution with (Song et al. 2021; Kingma et
al. 2021)

  f = d log(alpha) / dt,                                                                    (1)
  g^2 = d(sigma^2)/dt - 2 f sigma^2 = -sigma^2 d(log_snr)/dt,                               (2)
  log_snr = log(alpha^2 / sigma^2).                                                         (3)

Every schedule has `alpha`, `sigma`, `log_snr`, its inverse `time`, the coefficients `drift` (f, as
in f(t) x) and `diffusion` (g), all elementwise on times of any shape and accurate in float32 at
both ends, and `t_max`, where a discretised SDE may start: f of some schedules diverges at 1.
They are static pytrees, so they may be closed over by a jitted function or be its argument.
"""

from mmdiff_jax.schedules.access import (
  along as along,
  check as check,
  check_t_min as check_t_min,
  Schedule as Schedule,
  schedule_of as schedule_of,
)
from mmdiff_jax.schedules.continuous import (
  RectifiedFlow as RectifiedFlow,
  SubVP as SubVP,
  Time as Time,
  VE as VE,
  VPCosine as VPCosine,
  VPLinear as VPLinear,
)
from mmdiff_jax.schedules.table import (
  betas_cosine as betas_cosine,
  betas_linear as betas_linear,
  betas_scaled_linear as betas_scaled_linear,
  Table as Table,
)
