"""MCDM's sampler: the composed denoiser of Eq. 12, and images from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mmdiff_jax import diffusion, guidance, multitime, noise, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Batch, Params, SamplerConfig
from mmdiff_jax.frameworks.mcdm.model import Expert, SPACE
from mmdiff_jax.frameworks.normalize import check_shape, denormalize, normalize
from mmdiff_jax.modalities import Modality


class Term(NamedTuple):
  """An expert's part in a composition.

  Attributes:
    run: its name.
    conditions: those that are given to it; its others are absent.
    weight: w_i of `guidance.compose`; a number, or a function of the times.
  """

  run: str
  conditions: tuple[str, ...]
  weight: guidance.Weight = 1.0


def branches(
  unconditional: Mapping[str, float], terms: Sequence[Term]
) -> tuple[list[tuple[str, tuple[str, ...]]], list[guidance.Weight], list[guidance.Weight]]:
  """Returns what is evaluated, and how `guidance.mix` weighs it.

  Weights that sum to 1 leave nothing to the unconditional models: one expert alone is itself.

  Args:
    unconditional: run and fraction of each unconditional model.
    terms: the experts' parts.

  Returns:
    (run, conditions) of each evaluation, and the shares and weights of `guidance.mix`.

  Raises:
    UserError: no unconditional model where one is needed.
  """
  weights = [term.weight for term in terms]
  conditional = [(term.run, term.conditions) for term in terms]
  if all(isinstance(w, int | float) for w in weights) and abs(sum(weights) - 1) < 1e-6:
    return conditional, weights, []
  if not unconditional:
    runs = ", ".join(dict.fromkeys(term.run for term in terms))
    raise UserError(
      f"The experts {runs} need an unconditional model beside them, which composing takes the"
      " differences to (MCDM, Eq. 12): --unconditional=DIR. Only weights that sum to 1 do without."
    )
  both = [*((run, ()) for run in unconditional), *conditional]
  return both, list(unconditional.values()), weights


def make_denoiser(
  experts: Mapping[str, Expert],
  params: Mapping[str, Params],
  given: Batch,
  unconditional: Mapping[str, float],
  terms: Sequence[Term],
  *,
  clip: bool,
) -> solvers.Denoiser:
  """Makes the composed denoiser of `SPACE`.

  All evaluations of one network, under several conditions, are one call of it, under `jax.vmap`.

  Args:
    experts: by the name of their run.
    params: likewise, each with the entry `network`.
    given: values of the conditions.
    unconditional: run and fraction of each unconditional model.
    terms: the experts' parts.
    clip: whether x0 is kept in [-1, 1].

  Raises:
    UserError: no unconditional model where one is needed.
  """
  evaluated, shares, weights = branches(unconditional, terms)
  first = next(iter(experts.values()))

  def predict(x, t):
    predictions = {}
    for run in dict.fromkeys(run for run, _ in evaluated):
      expert = experts[run]
      indices = [index for index, branch in enumerate(evaluated) if branch[0] == run]
      names = [c.name for c in expert.conditions if any(c.name in evaluated[i][1] for i in indices)]
      flags = jnp.array([[float(name in evaluated[i][1]) for name in names] for i in indices])

      def predict_once(flags, expert=expert, network=params[run]["network"], names=names):
        inputs = {name: (flags[i, None], given[name]) for i, name in enumerate(names)}
        return expert.network.apply(network, x[SPACE], t[SPACE], inputs)

      predictions |= dict(zip(indices, jax.vmap(predict_once)(flags), strict=True))
    return {SPACE: jnp.stack([predictions[index] for index in range(len(evaluated))])}

  stacked = diffusion.denoiser(first.prediction, predict, first.schedule)
  mixed = guidance.mix(stacked, shares, weights)
  return guidance.threshold(mixed, first.schedule, {SPACE: (-1.0, 1.0)}) if clip else mixed


def sample(
  experts: Mapping[str, Expert],
  params: Mapping[str, Params],
  key: PRNGKeyArray,
  given: Batch,
  unconditional: Mapping[str, float],
  terms: Sequence[Term],
  num: int,
  sampler: SamplerConfig,
) -> dict[str, Array]:
  """Generates images: `Framework.sample` once the experts and their parts are bound.

  Args:
    experts: by the name of their run.
    params: likewise, each with the entry `network`.
    key: the source of noise.
    given: model inputs with `num` rows each.
    unconditional: run and fraction of each unconditional model.
    terms: the experts' parts, of whose conditions all are given.
    num: number of samples.
    sampler: how to generate; its steps are those of `multitime.joint`.

  Returns:
    The image as model input.

  Raises:
    UserError: a given modality that no expert takes, or that has another shape; no unconditional
      model where one is needed.
  """
  first = next(iter(experts.values()))
  values = {}
  for name, x in given.items():
    readers = [term.run for term in terms if name in term.conditions]
    if not readers:
      used = ", ".join(f"{term.run} ({', '.join(term.conditions)})" for term in terms) or "none"
      raise UserError(
        f"No expert that can be used takes {name!r}. With what is given ({', '.join(given)})"
        f" these can be: {used}."
      )
    (condition,) = (c for c in experts[readers[0]].conditions if c.name == name)
    check_shape(condition, x.shape, f"what is given to the expert {readers[0]}")
    values[name] = normalize(condition, x)
  denoiser = make_denoiser(experts, params, values, unconditional, terms, clip=sampler.clip)
  prior_key, loop_key = jax.random.split(key)
  z = noise.normal_like(prior_key, SPACE, jnp.zeros((num, *first.main.shape)))
  path = multitime.joint((SPACE,), sampler.steps)
  solver = sampler.solver
  z = solvers.sample(loop_key, denoiser, first.schedule, {SPACE: z}, path, solver=solver)[SPACE]
  return {first.main.name: denormalize(first.main, z)}


def make_sampler(
  experts: Mapping[str, Expert],
  unconditional: Mapping[str, float],
  terms_of: Callable[[Any, SamplerConfig], Sequence[Term]],
) -> tuple[Callable[..., dict[str, Array]], Callable[..., int]]:
  """Makes `sample` and `evaluations` of a framework.

  Args:
    experts: by the name of their run.
    unconditional: run and fraction of each unconditional model.
    terms_of: `(given, sampler) -> terms`, the experts' parts with these conditions.
  """

  def generate(params, key, given, targets, num, sampler):
    del targets
    terms = terms_of(given, sampler)
    return sample(experts, params, key, given, unconditional, terms, num, sampler)

  def evaluations(given, targets, sampler):
    del targets
    evaluated, _, _ = branches(unconditional, terms_of(given, sampler))
    return len(evaluated) * sampler.solver.evaluations(sampler.steps)

  return generate, evaluations


def tasks(
  main: Modality, given: Sequence[tuple[str, ...]]
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
  """Returns `Framework.supported_tasks`: the image from each of these sets of conditions."""
  return tuple((names, (main.name,)) for names in given)
