"""MCDM: separately trained experts, composed when images are generated (Nair et al. 2022).

An expert predicts the noise of an image z, given conditions x_i, such as a sketch, or none: the
unconditional model. It is trained separately, on data of its own (Eq. 3, in `losses`):

  L = E_{t, eps} |eps - eps_theta(z_t, x_i, t)|^2.

If the conditions are independent given z, then (Eq. 7, which leaves out "given z")

  P(z | x_1, ..., x_N) ~ prod_i P(z | x_i) / P(z)^(N - 1),

and the scores, s = -eps / sqrt(1 - abar_t) (Eq. 6 and 11 lack the sign), add up to (Eq. 10, 12)

  eps_c = sum_i eps(z_t, x_i, t) - (N - 1) eps(z_t, t).

`guidance.compose` has it with weights; here it is in `sampling`, and `composing` makes a framework
of it. The reverse step is that of any one model (Eq. 13, whose noise is sigma_t eta and not
sigma_t^2 eta): the solver `ancestral` takes sigma_t^2 = btilde_t and `ancestral_large` the paper's
beta_t, and all other solvers can be used, too. In few steps `ancestral` loses variance (a tenth of
a Gaussian's in 50), so that the default is `sde_dpmpp_2m`.

Eq. 8 treats the distribution of a composition as one that holds at each t, and it holds at t = 0
only. So these samples are more alike, and follow the conditions more closely, than those of
P(z | x_1, ..., x_N): of two Gaussian experts on z ~ N(0, 1), x_i = z + n, the variance is 1/4 by
the ODE and 7/24 by `ancestral` where 1/3 is right. Steps of a corrector between those of the solver
(`config.sampling.corrector`) lead to what is right; 4 of them of 3 leapfrog steps each cost 12
evaluations of every model more for each step.
"""

from collections.abc import Sequence
import itertools
from typing import Any

from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.frameworks.mcdm import losses, sampling
from mmdiff_jax.frameworks.mcdm.model import Expert, make_expert, NO_GUIDANCE
from mmdiff_jax.frameworks.normalize import identity_reconstruct
from mmdiff_jax.modalities import Modality


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """Builds one expert by itself; arguments and errors as `model.make_expert`.

  It generates from all of its conditions; if it was trained with some absent, from any of them, and
  with guidance.
  """
  return alone(make_expert(config, modalities))


def alone(expert: Expert) -> Framework:
  """Returns the framework of one expert, as `build` does."""
  run = "this run"
  names = tuple(condition.name for condition in expert.conditions)
  unconditional = {run: 1.0} if expert.absent_prob > 0 or not names else {}

  def terms(given, sampler):
    if sampler.guidance != 1 and not expert.absent_prob:
      raise UserError(NO_GUIDANCE)
    conditions = tuple(name for name in names if name in given)
    return [sampling.Term(run, conditions, sampler.guidance)] if conditions else []

  composed, evaluations = sampling.make_sampler({run: expert}, unconditional, terms)

  def generate(params, *rest):
    return composed({run: params}, *rest)

  sizes = range(len(names) + 1) if unconditional else (len(names),)
  tasks = sampling.tasks(
    expert.main, [subset for n in sizes for subset in itertools.combinations(names, n)]
  )
  return Framework(
    (expert.main, *expert.conditions),
    (losses.make_stage(expert, generate, tasks),),
    generate,
    identity_reconstruct,
    evaluations,
    supported_tasks=tasks,
  )
