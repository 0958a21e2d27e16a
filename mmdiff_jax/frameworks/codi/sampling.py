"""CoDi's generation: all targets together, each reading the others' environments."""

from collections.abc import Mapping, Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import guidance, multitime, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Batch, Params, SamplerConfig
from mmdiff_jax.frameworks.codi.model import CoDi, SCHEDULE
from mmdiff_jax.frameworks.codi.networks import decode, encode_prompt, predict


def evaluations(given: Sequence[str], targets: Sequence[str], sampler: SamplerConfig) -> int:
  """Returns `Framework.evaluations`, those of all networks together: each target has its own."""
  guided = 2 if given and sampler.guidance != 1 else 1
  return guided * len(targets) * sampler.solver.evaluations(sampler.steps)


def mix_prompts(
  prompts: Mapping[str, Float[Array, "batch size"]], weights: Mapping[str, float]
) -> Float[Array, "batch size"]:
  """Returns sum_n a_n C_n, with the weights scaled to a sum of 1.

  Args:
    prompts: those of the given modalities.
    weights: of some of them; the others have 1.

  Raises:
    UserError: a weight is negative, or of a modality that is not given, or all are 0.
  """
  for name, weight in weights.items():
    if name not in prompts:
      names = ", ".join(prompts) or "nothing is"
      raise UserError(f"There is a weight for {name!r}, which is not given ({names}).")
    if not 0 <= weight < math.inf:
      raise UserError(
        f"The weight of {name!r} is {weight:g}; weights of prompts must be finite and at least 0."
      )
  filled = {name: weights.get(name, 1.0) for name in prompts}
  total = sum(filled.values())
  if total == 0:
    raise UserError(f"The weights of {', '.join(prompts)} are all 0; at least one must be above 0.")
  return sum(filled[name] / total * prompt for name, prompt in prompts.items())


def sample(
  model: CoDi,
  params: Params,
  key: PRNGKeyArray,
  given: Batch,
  targets: tuple[str, ...],
  num: int,
  sampler: SamplerConfig,
  *,
  shuffled: bool = False,
) -> dict[str, Array]:
  """Generates: `Framework.sample` once the model is bound.

  Args:
    model: the record.
    params: all entries.
    key: the source of noise.
    given: model inputs with `num` rows each; may be empty.
    targets: what to generate, all together; given modalities among them are generated again.
    num: number of samples.
    sampler: how to generate.
    shuffled: whether each row reads the environments of the row before it; see
      `Framework.shuffled`.

  Returns:
    The targets as model inputs.

  Raises:
    UserError: an invalid weight of a prompt.
  """
  prompts = {name: encode_prompt(model, params, name, x) for name, x in given.items()}
  no_prompt = jnp.zeros((num, model.prompt_size))
  # A run's weights hold for all of its tasks: each takes those of the modalities it is given.
  weights = {name: model.weights.get(name, 1.0) for name in given}
  prompt = mix_prompts(prompts, weights) if given else no_prompt

  def velocity(x, t):
    shared = t[targets[0]]

    def with_prompt(prompt):
      return predict(model, params, targets, x, shared, prompt, aligned=True, shuffled=shuffled)

    if sampler.guidance == 1.0 or not given:
      return with_prompt(prompt)
    return guidance.combine(with_prompt(prompt), with_prompt(no_prompt), sampler.guidance)

  prior_key, loop_key = jax.random.split(key)
  shapes = {name: model.shapes[name] for name in targets}
  x = solvers.prior(prior_key, SCHEDULE, shapes, num)
  grid = multitime.power_grid(sampler.steps, model.grid_power)
  path = multitime.joint(targets, sampler.steps, grid=grid)
  denoiser = solvers.from_v(velocity, SCHEDULE)
  z = solvers.sample(loop_key, denoiser, SCHEDULE, x, path, solver=sampler.solver)
  return {name: decode(model, params, name, z[name]) for name in targets}
