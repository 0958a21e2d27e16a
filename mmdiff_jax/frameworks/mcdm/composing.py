"""Composing: experts of several runs as one framework."""

from collections.abc import Mapping, Sequence
import itertools

from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.frameworks.mcdm import sampling
from mmdiff_jax.frameworks.mcdm.model import Expert
from mmdiff_jax.frameworks.mcdm.sampling import Term
from mmdiff_jax.frameworks.normalize import identity_reconstruct
from mmdiff_jax.modalities import Modality


def compose(
  experts: Mapping[str, Expert], unconditional: Mapping[str, float], terms: Sequence[Term]
) -> Framework:
  """Makes experts one framework, which has no stages: they are trained already.

  Its parameters are `{run: parameters of that run}`. Terms none of whose conditions are given are
  left out, so that any number of the experts can be used.

  Args:
    experts: by the name of their run.
    unconditional: the run of each unconditional model, and its fraction; the fractions sum to 1.
      May be empty where the weights of the terms sum to 1.
    terms: the experts' parts.

  Raises:
    UserError: experts of other schedules, predictions or spaces than the first one; a term that
      gives its expert an unknown condition, or withholds one that it cannot do without; no
      unconditional model where one is needed; fractions that do not sum to 1.
  """
  _check_alike(experts)
  for run in unconditional:
    _check_conditions(run, experts[run], ())
  for term in terms:
    _check_conditions(term.run, experts[term.run], term.conditions)
  sampling.branches(unconditional, terms)
  if unconditional and abs(sum(unconditional.values()) - 1) > 1e-6:
    raise UserError(
      f"The shares of the unconditional models sum to {sum(unconditional.values()):g}; they must"
      " sum to 1 (--shares)."
    )
  first = next(iter(experts.values()))
  conditions = {
    c.name: c for t in terms for c in experts[t.run].conditions if c.name in t.conditions
  }

  def terms_of(given, sampler):
    if sampler.guidance != 1:
      raise UserError(
        f"Composed experts have no guidance in common (it is {sampler.guidance:g}; --guidance=1 is"
        " none), but weights of their own: --weights=..., one for each."
      )
    return [term for term in terms if set(term.conditions) <= set(given)]

  generate, evaluations = sampling.make_sampler(experts, unconditional, terms_of)
  subsets = [subset for n in range(len(terms) + 1) for subset in itertools.combinations(terms, n)]
  unions = [{name for term in subset for name in term.conditions} for subset in subsets]
  ordered = [tuple(name for name in conditions if name in union) for union in unions]
  # Without the unconditional model weights that sum to 1 are those of all experts together.
  served = dict.fromkeys(ordered) if unconditional else ordered[-1:]
  return Framework(
    (first.main, *conditions.values()),
    (),
    generate,
    identity_reconstruct,
    evaluations,
    supported_tasks=sampling.tasks(first.main, list(served)),
  )


def _check_alike(experts: Mapping[str, Expert]) -> None:
  """Raises UserError where an expert cannot be added to the first one."""
  (name, first), *others = experts.items()
  formats = {condition.name: (name, _format(condition)) for condition in first.conditions}
  for run, expert in others:
    for property_name, value, required in (
      ("the schedule", expert.process, first.process),
      ("the prediction", repr(expert.prediction), repr(first.prediction)),
      ("the image", repr(expert.main.name), repr(first.main.name)),
      ("the image's shape", repr(expert.main.shape), repr(first.main.shape)),
    ):
      if value != required:
        raise UserError(
          f"The expert {run} does not fit {name}: {property_name} is {value}, and there"
          f" {required}. Experts add up only in one space, under one schedule and with one"
          " prediction; train it again with those."
        )
    for condition in expert.conditions:
      other, required = formats.setdefault(condition.name, (run, _format(condition)))
      if required != _format(condition):
        raise UserError(
          f"The expert {run} reads {condition.name!r} as {_format(condition)}, and {other} as"
          f" {required}: what is given cannot be both."
        )


def _format(condition: Modality) -> str:
  classes = f" of {condition.num_classes} classes" if condition.num_classes else ""
  return f"{condition.kind} of shape {condition.shape}{classes}"


def _check_conditions(run: str, expert: Expert, given: Sequence[str]) -> None:
  names = [condition.name for condition in expert.conditions]
  unknown = [name for name in given if name not in names]
  if unknown:
    raise UserError(
      f"The expert {run} has no condition {unknown[0]!r}; it has {', '.join(names) or 'none'}."
    )
  if len(given) < len(names) and not expert.absent_prob:
    missing = [name for name in names if name not in given]
    raise UserError(
      f"The expert {run} cannot do without {', '.join(missing)}: it was never trained with a"
      " condition absent (config.absent_prob is 0). Give it, or take another model."
    )
