"""MLD's sampler: the reverse of (1) along a path through multi-time, by (2)."""

from collections.abc import Sequence
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
import numpy as np

from mmdiff_jax import diffusion, guidance, multitime, solvers
from mmdiff_jax.frameworks.base import Batch, Params, SamplerConfig
from mmdiff_jax.frameworks.mld.model import check_sampler, MLD


def _groups(targets: Sequence[str], order: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
  """Returns the targets in the order in which they are generated."""
  groups = [tuple(name for name in group if name in targets) for group in order]
  rest = tuple(name for name in targets if not any(name in group for group in groups))
  return [group for group in (*groups, rest) if group]


def evaluations(
  model: MLD, given: Sequence[str], targets: Sequence[str], sampler: SamplerConfig
) -> int:
  """Returns how many network evaluations one sample costs: `Framework.evaluations`."""
  inpaint = model.variant == "inpaint"
  if inpaint and given:
    rises = sampler.steps // model.jump * (model.repeats - 1)
    return sampler.solver.evaluations(sampler.steps * model.repeats + rises)
  guided = sampler.guidance != 1.0 and not inpaint
  groups = _groups(targets, () if inpaint else sampler.order)
  each = sampler.solver.evaluations(sampler.steps)
  # The first group is unguided when nothing is given, but both branches are computed all the same.
  return len(groups) * each * (2 if guided and (given or len(groups) > 1) else 1)


def sample(
  model: MLD,
  params: Params,
  key: PRNGKeyArray,
  given: Batch,
  targets: tuple[str, ...],
  num: int,
  sampler: SamplerConfig,
) -> dict[str, Any]:
  """Generates by (2): `Framework.sample` once the model is bound.

  Args:
    model: the record.
    params: all entries.
    key: the source of noise.
    given: model inputs with `num` rows each; may be empty.
    targets: what to generate. Modalities in neither are absent.
    num: number of samples.
    sampler: how to generate.

  Returns:
    The targets as model inputs.

  Raises:
    UserError: as `model.check_sampler`.
  """
  check_sampler(model, sampler)
  names = model.names
  absent = [name for name in names if name not in given and name not in targets]
  groups = _groups(targets, sampler.order if model.variant != "inpaint" else ())
  statistics = params["statistics"]

  prior_key, loop_key, absent_key, given_key = jax.random.split(key, 4)
  shapes = {name: (model.codecs[name].latent,) for name in names}
  prior, other = (solvers.prior(k, model.schedule, shapes, num) for k in (prior_key, absent_key))
  latents = {name: _standardised_latent(model, params, name, x) for name, x in given.items()}

  predict = jax.tree_util.Partial(model.network.apply, params["score"])
  denoiser = diffusion.denoiser(model.prediction, predict, model.schedule)
  if model.variant == "inpaint":
    # The network was trained on joint times only: all move together, and what is given is put back,
    # perturbed to the current time, after each step.
    with jax.ensure_compile_time_eval():
      grid = multitime.power_grid(sampler.steps, model.grid_power)
      walks = (model.jump, model.repeats) if latents else (1, 1)
      falling = multitime.repaint(
        [*groups[0], *latents], sampler.steps, grid=grid, jump=walks[0], repeats=walks[1]
      )
      still = np.ones(len(next(iter(falling.times.values()))), grid.dtype)
      path = multitime.Path({**falling.times, **dict.fromkeys(absent, still)})
    guided = False
    project = solvers.replace_known(model.schedule, latents)
    x_init = project(given_key, prior, {name: jnp.float32(1.0) for name in names})
  else:
    guided = sampler.guidance != 1.0 and bool(latents or len(groups) > 1)
    if guided:
      denoiser = guidance.guide(denoiser, sampler.guidance, other)
    with jax.ensure_compile_time_eval():
      grid = multitime.power_grid(sampler.steps, model.grid_power)
      path = multitime.sequential(
        groups, sampler.steps, given=tuple(latents), absent=tuple(absent), grid=grid
      )
    project, x_init = None, {**prior, **latents}
  warn_untrained(model, path, guided=guided, gaps="share" in statistics[names[0]])
  z = solvers.sample(
    loop_key, denoiser, model.schedule, x_init, path, solver=sampler.solver, project=project
  )
  return {
    name: model.codecs[name].apply(
      params[f"autoencoder_{name}"],
      z[name] * statistics[name]["std"] + statistics[name]["mean"],
      method="decode",
    )
    for name in targets
  }


def _standardised_latent(model, params, name, x):
  statistics = params["statistics"][name]
  codec = model.codecs[name]
  z = codec.apply(params[f"autoencoder_{name}"], jnp.asarray(x), method="encode")
  return (z - statistics["mean"]) / statistics["std"]


_UNTRAINED = {
  "given": (
    "given modalities (time 0)",
    "train the variant 'masked' with config.score.given_prob above 0",
  ),
  "absent": (
    "absent modalities (time 1)",
    "name every modality as given or target, leave sampling.order empty and guidance at 1, or train"
    " the variant 'masked' with config.score.absent_prob above 0",
  ),
  "shared": (
    "several modalities at one shared time, which independent times have with probability 0",
    "generate one modality after the other, or train the variant 'masked'",
  ),
  "apart": (
    "modalities at different times strictly between 0 and 1",
    "let their times fall together or one after the other, or train the variant 'unidiffuser'",
  ),
}


def trained_states(model: MLD, *, gaps: bool = False) -> frozenset[str]:
  """Returns the states of modalities that training draws, named as by `multitime.states`.

  Independent times are never exactly 0, 1 or equal. They count as training given and absent
  modalities nevertheless, which such networks are made for: whatever the number of modalities, a
  fraction d of each one's times lies within d of an end. The diagonal does not count: that k
  modalities lie within d of one shared time has a probability of order d^(k - 1).

  Args:
    model: reads `variant`, `given_prob` and `absent_prob`.
    gaps: whether some training examples lack modalities, which are then absent.
  """
  if model.variant == "unidiffuser":
    return frozenset({"given", "absent", "apart"})
  masked = model.variant == "masked"
  drawn = {
    "shared": True,
    "given": masked and model.given_prob > 0,
    "absent": gaps or (masked and model.absent_prob > 0),
  }
  return frozenset(state for state, occurs in drawn.items() if occurs)


def warn_untrained(
  model: MLD, path: multitime.Path, *, guided: bool = False, gaps: bool = False
) -> None:
  """Warns when a path visits states that the network has not been trained on.

  `sample` calls this. Call it yourself for a path of your own, such as a staggered one.

  Args:
    model: of the run.
    path: through the times of the network's modalities, concrete (see `multitime.states`).
    guided: whether `guidance.guide` evaluates the network with the given modalities absent, too.
    gaps: as for `trained_states`.
  """
  visited = multitime.states(path) | ({"absent"} if guided else set())
  missing_states = visited - trained_states(model, gaps=gaps)
  untrained = [state for state in _UNTRAINED if state in missing_states]
  if untrained:
    warnings.warn(
      "The path visits states that this network was not trained on (config.variant"
      f" {model.variant!r}, config.score.given_prob={model.given_prob},"
      f" config.score.absent_prob={model.absent_prob}):"
      f" {'; '.join(_UNTRAINED[state][0] for state in untrained)}. To avoid that,"
      f" {'; '.join(_UNTRAINED[state][1] for state in untrained)}.",
      stacklevel=3,
    )
