"""MCDM: experts that were trained apart, composed when images are generated.

An expert predicts the noise of an image z of which it is shown conditions x_i, such as a sketch,
or none: the unconditional model. It is trained by itself, on data of its own (Eq. 3):

  L = E_{t, eps} |eps - eps_theta(z_t, x_i, t)|^2.

If the conditions are independent given z, then (Eq. 7, which leaves out "given z")

  P(z | x_1, ..., x_N) ~ prod_i P(z | x_i) / P(z)^(N - 1),

and the scores, s = -eps / sqrt(1 - abar_t) (Eq. 6 and 11 lack the sign), add up to (Eq. 10, 12)

  eps_c = sum_i eps(z_t, x_i, t) - (N - 1) eps(z_t, t).

`guidance.compose` has it with weights. The reverse step is that of any one model (Eq. 13, whose
noise is sigma_t eta and not sigma_t^2 eta): the solver `ancestral` takes sigma_t^2 = btilde_t and
`ancestral_large` the paper's beta_t, and all other solvers serve, too. In few steps `ancestral`
loses variance (a tenth of a Gaussian's in 50), so that the default is `sde_dpmpp_2m`.

Eq. 8 takes the law of a composition for one that holds at each t, and it holds at t = 0 only. So
these samples are more alike, and press the conditions harder, than those of P(z | x_1, ..., x_N):
of two Gaussian experts on z ~ N(0, 1), x_i = z + n, the variance is 1/4 by the ODE and 7/24 by
`ancestral` where 1/3 is right. Steps of a corrector between those of the solver
(`config.sampling.corrector`) lead to what is right; 4 of them of 3 leapfrog steps each cost 12
evaluations of every model more a step.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import config_checks, guidance, multitime, noise, prediction, schedules, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import (
  Batch,
  Framework,
  make_sampler_config,
  make_train_config,
  Params,
  SamplerConfig,
  Stage,
  table_of,
  UNET,
)
from mmdiff_jax.frameworks.normalize import (
  check_examples,
  check_shape,
  denormalize,
  identity_reconstruct,
  normalize,
)
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.conditional import Condition, Conditional
from mmdiff_jax.networks.unet import UNet

# What is diffused is the image alone; this is its name to the solvers.
SPACE = "z"

# The share of the image that may be left at the last step.
_LARGEST_TRACE = 0.02
_NO_GUIDANCE = (
  "Guidance needs the model without the condition, and this expert was never trained with it absent"
  " (config.absent_prob is 0). Compose: --experts=DIR --weights=W --unconditional=DIR."
)


class Expert(NamedTuple):
  """One model.

  Attributes:
    config: of its run.
    main: the image that it generates.
    conditions: what it may be shown.
    schedule: of its diffusion.
    network: a `Conditional`; its parameters are the entry `network`.
  """

  config: Any
  main: Modality
  conditions: tuple[Modality, ...]
  schedule: schedules.Table
  network: Conditional


class Term(NamedTuple):
  """An expert's part in a composition.

  Attributes:
    run: its name.
    conditions: what it is shown; others of its conditions are absent.
    weight: w_i of `guidance.compose`; a number, or a function of the times.
  """

  run: str
  conditions: tuple[str, ...]
  weight: guidance.Weight = 1.0


def expert_of(config: Any, modalities: Sequence[Modality]) -> Expert:
  """The expert that a config describes.

  Args:
    config: as `configs/mcdm.py` has it.
    modalities: `config.main`, and all that the expert may be shown.

  Raises:
    UserError: a choice in the config that does not exist, or a condition that has no place.
  """
  if config.prediction not in _TARGETS:
    raise UserError(f"config.prediction is {config.prediction!r}; it can be {', '.join(_TARGETS)}.")
  if not 0 <= config.absent_prob < 1:
    raise UserError(
      f"config.absent_prob is {config.absent_prob}; it must be in [0, 1). At 0 the expert is always"
      " shown all of its conditions."
    )
  found = {modality.name: modality for modality in modalities}
  main = found.pop(config.main, None)
  if main is None or main.kind != "image":
    raise UserError(
      f"config.main is {config.main!r}; it must be an image among config.modalities"
      f" ({', '.join(config.modalities)})."
    )
  for condition in found.values():
    if len(condition.shape) > 1 and condition.shape[:2] != main.shape[:2]:
      raise UserError(
        f"The condition {condition.name!r} has the shape {condition.shape}, and {main.name!r}"
        f" {main.shape}: conditions with a height and a width must have those of the image."
      )
  schedule = table_of(config.process)
  left = float(schedule.alpha(jnp.float32(1.0)))
  if left > _LARGEST_TRACE:
    raise UserError(
      f"config.process leaves {left:.2g} of the image at its last step, where generation starts"
      f" from noise alone: it must be below {_LARGEST_TRACE}. Take more steps, or betas 'cosine'."
    )
  sampling = make_sampler_config(config)
  if sampling.guidance != 1 and not config.absent_prob:
    raise UserError(f"config.sampling.guidance is {sampling.guidance:g}. {_NO_GUIDANCE}")
  if sampling.order:
    raise UserError(
      f"MCDM has one image and no order of modalities: config.sampling.order is {sampling.order}."
    )
  config_checks.check(config.network, UNET, "network.")
  sizes = config.network.to_dict()
  text_width = sizes.pop("text_width")
  conditions = tuple(
    Condition(m.name, m.shape + (m.num_classes,) * bool(m.num_classes), m.kind == "text")
    for m in found.values()
  )
  network = Conditional(UNet(**sizes), main.shape, conditions, text_width)
  return Expert(config, main, tuple(found.values()), schedule, network)


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """An expert by itself; arguments and errors as `expert_of`.

  It generates from all of its conditions; if it was trained with some absent, from any of them, and
  with guidance.
  """
  return alone(expert_of(config, modalities))


def alone(expert: Expert) -> Framework:
  """The framework of one expert, as `build` has it."""
  config, run = expert.config, "this run"
  names = tuple(condition.name for condition in expert.conditions)
  unconditional = {run: 1.0} if config.absent_prob > 0 or not names else {}

  def terms(given, sampling):
    if sampling.guidance != 1 and not config.absent_prob:
      raise UserError(_NO_GUIDANCE)
    shown = tuple(name for name in names if name in given)
    return [Term(run, shown, sampling.guidance)] if shown else []

  composed, evaluations = _sampler({run: expert}, unconditional, terms)

  def generate(params, *rest):
    return composed({run: params}, *rest)

  sizes = range(len(names) + 1) if unconditional else (len(names),)
  ways = _ways(expert.main, [w for n in sizes for w in itertools.combinations(names, n)])
  stage = _stage(expert, generate, ways)
  return Framework(
    (expert.main, *expert.conditions),
    (stage,),
    generate,
    identity_reconstruct,
    evaluations,
    supported_tasks=ways,
  )


def compose(
  experts: Mapping[str, Expert], unconditional: Mapping[str, float], terms: Sequence[Term]
) -> Framework:
  """Experts as one framework, which has no stages: they are trained already.

  Its parameters are `{run: parameters of that run}`. Terms of whose conditions nothing is given are
  left out, so that any number of the experts can be used.

  Args:
    experts: by the name of their run.
    unconditional: the run of each unconditional model, and its share; the shares sum to 1. May be
      empty where the weights of the terms sum to 1.
    terms: the experts' parts.

  Raises:
    UserError: experts of other schedules, predictions or spaces than the first one; a term that
      shows its expert what it does not know, or leaves out what it cannot do without; no
      unconditional model where one is needed; shares that do not sum to 1.
  """
  _check_alike(experts)
  for run in unconditional:
    _check_shown(run, experts[run], ())
  for term in terms:
    _check_shown(term.run, experts[term.run], term.conditions)
  _branches(unconditional, terms)
  if unconditional and abs(sum(unconditional.values()) - 1) > 1e-6:
    raise UserError(
      f"The shares of the unconditional models sum to {sum(unconditional.values()):g}; they must"
      " sum to 1 (--shares)."
    )
  first = next(iter(experts.values()))
  conditions = {
    c.name: c for t in terms for c in experts[t.run].conditions if c.name in t.conditions
  }

  def chosen(given, sampling):
    if sampling.guidance != 1:
      raise UserError(
        f"Composed experts have no guidance in common (it is {sampling.guidance:g}; --guidance=1 is"
        " none), but weights of their own: --weights=..., one for each."
      )
    return [term for term in terms if set(term.conditions) <= set(given)]

  generate, evaluations = _sampler(experts, unconditional, chosen)
  subsets = [some for n in range(len(terms) + 1) for some in itertools.combinations(terms, n)]
  unions = [{name for term in some for name in term.conditions} for some in subsets]
  ordered = [tuple(name for name in conditions if name in union) for union in unions]
  # Without the unconditional model weights that sum to 1 are those of all experts together.
  served = dict.fromkeys(ordered) if unconditional else ordered[-1:]
  ways = _ways(first.main, list(served))
  modalities = (first.main, *conditions.values())
  return Framework(
    modalities, (), generate, identity_reconstruct, evaluations, supported_tasks=ways
  )


def _sampler(experts: Mapping[str, Expert], unconditional: Mapping[str, float], chosen):
  """`sample` and `evaluations` of a framework; `chosen` is `(given, sampling) -> terms`."""

  def generate(params, key, given, targets, num, sampling):
    del targets
    terms = chosen(given, sampling)
    return sample(experts, params, key, given, unconditional, terms, num, sampling)

  def evaluations(given, targets, sampling):
    del targets
    branches, _, _ = _branches(unconditional, chosen(given, sampling))
    return len(branches) * sampling.solver.evaluations(sampling.steps)

  return generate, evaluations


def _ways(main: Modality, given: Sequence[tuple[str, ...]]):
  return tuple((names, (main.name,)) for names in given)


def _check_alike(experts: Mapping[str, Expert]) -> None:
  """Raises UserError where an expert cannot be added to the first one."""
  (name, first), *others = experts.items()
  seen = {condition.name: (name, _format(condition)) for condition in first.conditions}
  for run, expert in others:
    for what, own, theirs in (
      ("the schedule", expert.config.process, first.config.process),
      ("the prediction", expert.config.prediction, first.config.prediction),
      ("the image", expert.main.name, first.main.name),
      ("the image's shape", expert.main.shape, first.main.shape),
    ):
      if own != theirs:
        raise UserError(
          f"The expert {run} does not fit {name}: {what} is {_plain(own)}, and there"
          f" {_plain(theirs)}. Experts add up only in one space, under one schedule and with one"
          " prediction; train it again with those."
        )
    for condition in expert.conditions:
      where, known = seen.setdefault(condition.name, (run, _format(condition)))
      if known != _format(condition):
        raise UserError(
          f"The expert {run} reads {condition.name!r} as {_format(condition)}, and {where} as"
          f" {known}: what is given cannot be both."
        )


def _format(condition: Modality) -> str:
  classes = f" of {condition.num_classes} classes" if condition.num_classes else ""
  return f"{condition.kind} of shape {condition.shape}{classes}"


def _plain(value: Any) -> str:
  if hasattr(value, "to_dict"):
    return ", ".join(f"{name}={own}" for name, own in sorted(value.to_dict().items()))
  return repr(value)


def _check_shown(run: str, expert: Expert, shown: Sequence[str]) -> None:
  names = [condition.name for condition in expert.conditions]
  unknown = [name for name in shown if name not in names]
  if unknown:
    raise UserError(
      f"The expert {run} has no condition {unknown[0]!r}; it has {', '.join(names) or 'none'}."
    )
  if len(shown) < len(names) and not expert.config.absent_prob:
    missing = [name for name in names if name not in shown]
    raise UserError(
      f"The expert {run} cannot do without {', '.join(missing)}: it was never trained with a"
      " condition absent (config.absent_prob is 0). Show it, or take another model."
    )


# ---------------------------------------------------------------------------- training

# What the network may predict: (alpha, sigma, x0, eps) -> the target.
_TARGETS = {
  "eps": lambda alpha, sigma, x0, eps: eps,
  "v": lambda alpha, sigma, x0, eps: prediction.to_v(x0, eps, alpha, sigma),
}


def loss(
  expert: Expert, params: Params, key: PRNGKeyArray, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Eq. 3, a mean over components and examples, at times drawn from the table.

  Args:
    expert: from `expert_of`.
    params: with the entry `network`.
    key: draws times, noise, absent conditions, and dropout.
    batch: arrays in the model's view.

  Returns:
    The loss, and no terms, of which there is one.
  """
  t_key, noise_key, absent_key, dropout_key = jax.random.split(key, 4)
  x0 = normalize(expert.main, batch[expert.main.name])
  rows, size = len(x0), len(expert.schedule.betas)
  t = jax.random.randint(t_key, (rows,), 1, size + 1) / size
  alpha, sigma = (schedules.along(f(t), x0) for f in (expert.schedule.alpha, expert.schedule.sigma))
  eps = noise.normal_like(noise_key, SPACE, x0)
  known = {}
  for index, condition in enumerate(expert.conditions):
    own_key = jax.random.fold_in(absent_key, index)
    flag = jax.random.bernoulli(own_key, 1 - expert.config.absent_prob, (rows,))
    known[condition.name] = flag.astype(x0.dtype), normalize(condition, batch[condition.name])
  predicted = expert.network.apply(
    params["network"], alpha * x0 + sigma * eps, t, known, True, rngs={"dropout": dropout_key}
  )
  target = _TARGETS[expert.config.prediction](alpha, sigma, x0, eps)
  return jnp.mean((predicted - target) ** 2), {}


def _stage(expert: Expert, generate, ways) -> Stage:
  modalities = (expert.main, *expert.conditions)
  names = tuple(modality.name for modality in modalities)

  def prepare(frozen: Params, data: Batch):
    del frozen
    check_examples(modalities, data)
    return {}, {name: data[name] for name in names}

  def init(key, frozen, batch):
    del frozen
    x0 = normalize(expert.main, batch[expert.main.name][:2])
    try:
      return {"network": expert.network.init(key, x0, jnp.zeros(len(x0)), {})}
    except ValueError as error:
      raise UserError(f"config.network: {error}") from error

  def stage_loss(trained, frozen, key, batch):
    del frozen
    return loss(expert, trained, key, batch)

  sampling = make_sampler_config(expert.config)
  jitted = jax.jit(generate, static_argnums=(3, 4, 5))

  def report(params, key, data):
    shown = {}
    for given, targets in (ways[0], ways[-1]):
      known = {name: data[name] for name in given}
      rows = len(data[expert.main.name])
      tag = f"from_{'_'.join(given)}" if given else "unconditional"
      shown[tag] = known | jitted(params, key, known, targets, rows, sampling)
    return shown

  settings = make_train_config(expert.config.training, "training.")
  return Stage("mcdm", ("network",), settings, prepare, init, stage_loss, report)


# ---------------------------------------------------------------------------- generation


def _branches(unconditional: Mapping[str, float], terms: Sequence[Term]):
  """What is evaluated, (run, conditions) each, with the shares and weights of `guidance.mix`.

  Weights that sum to 1 leave nothing to the unconditional models: one expert alone is itself.
  """
  weights = [term.weight for term in terms]
  branches = [(term.run, term.conditions) for term in terms]
  if all(isinstance(w, int | float) for w in weights) and abs(sum(weights) - 1) < 1e-6:
    return branches, weights, []
  if not unconditional:
    runs = ", ".join(dict.fromkeys(term.run for term in terms))
    raise UserError(
      f"The experts {runs} need an unconditional model beside them, which composing takes the"
      " differences to (MCDM, Eq. 12): --unconditional=DIR. Only weights that sum to 1 do without."
    )
  return [*((run, ()) for run in unconditional), *branches], list(unconditional.values()), weights


def denoiser_of(
  experts: Mapping[str, Expert],
  params: Mapping[str, Params],
  known: Batch,
  unconditional: Mapping[str, float],
  terms: Sequence[Term],
  *,
  clip: bool,
) -> solvers.Denoiser:
  """The composed denoiser of `SPACE`.

  What one network is asked under several conditions is one call of it, under `jax.vmap`.

  Args:
    experts: by the name of their run.
    params: likewise, each with the entry `network`.
    known: values of the conditions.
    unconditional: run and share of each unconditional model.
    terms: the experts' parts.
    clip: whether x0 is kept in [-1, 1].

  Raises:
    UserError: no unconditional model where one is needed.
  """
  branches, shares, weights = _branches(unconditional, terms)
  first = next(iter(experts.values()))

  def predict(x, t):
    found = {}
    for run in dict.fromkeys(run for run, _ in branches):
      expert = experts[run]
      places = [place for place, branch in enumerate(branches) if branch[0] == run]
      names = [c.name for c in expert.conditions if any(c.name in branches[i][1] for i in places)]
      flags = jnp.array([[float(name in branches[i][1]) for name in names] for i in places])

      def one(flags, expert=expert, own=params[run]["network"], names=names):
        shown = {name: (flags[i, None], known[name]) for i, name in enumerate(names)}
        return expert.network.apply(own, x[SPACE], t[SPACE], shown)

      found |= dict(zip(places, jax.vmap(one)(flags), strict=True))
    return {SPACE: jnp.stack([found[place] for place in range(len(branches))])}

  make = {"eps": solvers.from_eps, "v": solvers.from_v}[first.config.prediction]
  mixed = guidance.mix(make(predict, first.schedule), shares, weights)
  return guidance.threshold(mixed, first.schedule, {SPACE: (-1.0, 1.0)}) if clip else mixed


def sample(
  experts: Mapping[str, Expert],
  params: Mapping[str, Params],
  key: PRNGKeyArray,
  given: Batch,
  unconditional: Mapping[str, float],
  terms: Sequence[Term],
  num: int,
  sampling: SamplerConfig,
) -> dict[str, Array]:
  """Generates images: `Framework.sample` once the experts and their parts are chosen.

  Args:
    experts: by the name of their run.
    params: likewise, each with the entry `network`.
    key: the source of noise.
    given: arrays in the model's view with `num` rows each.
    unconditional: run and share of each unconditional model.
    terms: the experts' parts, of whose conditions all are given.
    num: number of samples.
    sampling: how; its steps are those of `multitime.joint`.

  Returns:
    The image in the model's view.

  Raises:
    UserError: something given that no expert is shown, or that has another shape; no unconditional
      model where one is needed.
  """
  first = next(iter(experts.values()))
  known = {}
  for name, x in given.items():
    readers = [term.run for term in terms if name in term.conditions]
    if not readers:
      used = ", ".join(f"{term.run} ({', '.join(term.conditions)})" for term in terms) or "none"
      raise UserError(
        f"No expert that can be used is shown {name!r}. With what is given ({', '.join(given)})"
        f" these can be: {used}."
      )
    (condition,) = (c for c in experts[readers[0]].conditions if c.name == name)
    check_shape(condition, x.shape, f"what is given to the expert {readers[0]}")
    known[name] = normalize(condition, x)
  denoiser = denoiser_of(experts, params, known, unconditional, terms, clip=sampling.clip)
  prior_key, loop_key = jax.random.split(key)
  z = noise.normal_like(prior_key, SPACE, jnp.zeros((num, *first.main.shape)))
  path = multitime.joint((SPACE,), sampling.steps)
  solver = sampling.solver
  z = solvers.sample(loop_key, denoiser, first.schedule, {SPACE: z}, path, solver=solver)[SPACE]
  return {first.main.name: denormalize(first.main, z)}
