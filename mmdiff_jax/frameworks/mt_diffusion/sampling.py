"""MT-Diffusion's sampler: draws from (4), or any solver where modalities enter at the start."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mmdiff_jax import guidance, multitime, noise, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Batch, Params, SamplerConfig
from mmdiff_jax.frameworks.mt_diffusion import process as process_lib
from mmdiff_jax.frameworks.mt_diffusion.heads import estimate, read, read_main
from mmdiff_jax.frameworks.mt_diffusion.model import check_sampler, MTDiffusion, SPACE
from mmdiff_jax.frameworks.normalize import check_shape, denormalize, normalize


def evaluations(given: Sequence[str], targets: Sequence[str], sampler: SamplerConfig) -> int:
  """Returns how many network evaluations one sample costs: `Framework.evaluations`."""
  # The last evaluation reads the modalities instead of making a step, as a step to time 0 would.
  del targets
  steps = sampler.solver.evaluations(sampler.steps)
  return 2 * steps - 1 if given and sampler.guidance != 1.0 else steps


def sample(
  model: MTDiffusion,
  params: Params,
  key: PRNGKeyArray,
  given: Batch,
  targets: tuple[str, ...],
  num: int,
  sampler: SamplerConfig,
) -> dict[str, Array]:
  """Generates: `Framework.sample` once the model is bound.

  Modalities that are neither given nor targets are generated, too, and left out of the result.

  Args:
    model: the record.
    params: with the entry `network`.
    key: the source of noise.
    given: model inputs with `num` rows each; may be empty.
    targets: what to generate.
    num: number of samples.
    sampler: how to generate; its steps are on the table, as `Process.grid` has them.

  Returns:
    The targets as model inputs.

  Raises:
    UserError: a target is given, a given modality has another shape, or a sampler that the model
      cannot have.
  """
  check_sampler(model, sampler)
  modalities = {modality.name: modality for modality in model.modalities}
  for name in given:
    if name in targets:
      raise UserError(f"{name!r} is both given and a target; what is to be predicted is withheld.")
    check_shape(modalities[name], given[name].shape, "what is given")
  process, informed = model.process, model.mode == "informed"
  conditions = {name: normalize(modalities[name], x) for name, x in given.items()}

  def estimated(x, t):
    def with_conditions(conditions):
      return estimate(model, params, x[SPACE], t[SPACE], conditions, informed=informed)

    estimates = with_conditions(conditions)
    if conditions and sampler.guidance != 1.0:
      estimates = guidance.combine(estimates, with_conditions({}), sampler.guidance)
    z0, total = estimates
    return {SPACE: z0}, {SPACE: total}

  if process.plain:
    solver = sampler.solver
    denoiser = solvers.from_x0(lambda x, t: estimated(x, t)[0], process.table)
  else:
    solver, denoiser = process_lib.posterior_sampling(process), estimated
  prior_key, loop_key = jax.random.split(key)
  z = noise.normal_like(prior_key, SPACE, jnp.zeros((num, *modalities[model.main].shape)))
  times = jnp.asarray(process.grid(sampler.steps, model.grid_power), z.dtype)
  path = multitime.Path({SPACE: times})
  z = solvers.sample(loop_key, denoiser, process.table, {SPACE: z}, path, solver=solver)[SPACE]
  eps, values = read(model, params, z, times[-1], conditions, informed=informed)
  if model.heads and model.main not in conditions:
    main = read_main(model, params, z, times[-1], eps, values)
    values = {**values, model.main: main}
  return {name: denormalize(modalities[name], values[name]) for name in targets}
