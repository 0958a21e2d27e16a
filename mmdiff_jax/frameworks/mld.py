"""MLD: masked multi-time diffusion of latents (Bounoua, Franzese and Michiardi 2023).

Stage 1 trains one deterministic autoencoder a modality, each alone: z_m = E_m(x_m). The latents of
the training set are then encoded once, standardised with its mean and deviation, and kept.

Stage 2 trains one score network on all latents R = (z_1, .., z_M) together. The masked forward SDE

  dR = m(A_1) * [f(t) R dt + g(t) dW]                                                       (1)

diffuses the modalities of A_1 and leaves those of A_2 as they are. In multi-time that is t_m = t
for m in A_1 and t_m = 0 in A_2, and the law of each latent at its time has a closed form:
z_m(t_m) = alpha(t_m) z_m + sigma(t_m) eps. A_1 is drawn anew for each example. Beyond the paper
some modalities may be absent (t_m = 1): what guidance and generation without them need. So are
those that an example of the training set lacks (see `data.missing`), and they have no loss.

SamplerConfig integrates the reverse of (1) from noise, the given latents held at time 0,

  dR = m(A_1) * [(-f(t') R + g(t')^2 score(R, t')) dt + g(t') dW],  t' = T - t,             (2)

or its probability-flow ODE, by any solver along any path through multi-time.

Two baselines of the paper differ in the draw of times alone: `inpaint` trains on joint times only
and imposes what is given by noising it to the current time, along RePaint's path (without its
rising moves the given modalities hardly act); `unidiffuser` draws independent times.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax import config_checks, guidance, multitime, noise, schedules, solvers
from mmdiff_jax.data import missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.autoencoding import (
  autoencoder,
  autoencoder_stage,
  encode,
  reconstruct,
  select,
  statistics,
)
from mmdiff_jax.frameworks.base import (
  Batch,
  Framework,
  make_sampler_config,
  make_train_config,
  Params,
  SamplerConfig,
  Stage,
)
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.latent import LatentDenoiser
from mmdiff_jax.networks.mlp import ScoreMLP

VARIANTS = ("masked", "inpaint", "unidiffuser")

_RULES = {
  "drop_prob": config_checks.FRACTION,
  "score.network.width": config_checks.SIZE,
  "score.network.depth": config_checks.DEPTH,
  "score.network.tower_width": config_checks.SIZE,
  "score.network.tower_depth": config_checks.DEPTH,
  "score.network.dtype": config_checks.DTYPE,
  "score.prediction": config_checks.one_of("eps", "v"),
  "score.t_min": config_checks.real(0.0, 0.5),
  "score.given_prob": config_checks.FRACTION,
  "score.absent_prob": config_checks.FRACTION,
  "score.importance": config_checks.FLAG,
}


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """MLD for some modalities.

  Args:
    config: reads `variant`, `autoencoder`, `score` and `sampling` as `configs/mld.py` has them.
    modalities: what is generated; the score network sees all of them.

  Returns:
    The framework: one stage an autoencoder, then the stage `score`.

  Raises:
    UserError: an unknown variant, schedule, network, solver or likelihood, `importance` with
      independent times or from time 0, a prediction that does not go with the schedule, a solver or
      steps that do not go with `inpaint`, a number that cannot be, or a modality that the config
      has no autoencoder for.
  """
  config_checks.check(config, _RULES)
  if config.variant not in VARIANTS:
    raise UserError(
      f"config.variant is {config.variant!r}; MLD has the variants {', '.join(VARIANTS)}."
    )
  if config.score.importance and config.variant == "unidiffuser":
    raise UserError(
      "config.score.importance is True and config.variant 'unidiffuser': the weights of all"
      " modalities multiply, which leaves the gradient to a few examples of a batch (with four"
      " modalities, to 2 % of them). Use config.score.importance=False."
    )
  if config.score.importance and config.score.t_min == 0:
    raise UserError(
      "config.score.importance is True and config.score.t_min 0, where the weights are infinite."
      " Use config.score.t_min=0.001, or config.score.importance=False."
    )
  schedule = schedule_of(config)
  if config.score.prediction == "eps" and schedule.alpha(jnp.ones(())) == 0:
    raise UserError(
      f"config.score.prediction is 'eps' and config.score.schedule {config.score.schedule!r}, whose"
      " alpha is 0 at t = 1: eps does not determine x0 there, and every solver becomes first order."
      " Use config.score.prediction=v, or config.score.schedule=vp_linear."
    )
  _check_sampling(config, make_sampler_config(config))
  modalities = tuple(modalities)
  codecs = {modality.name: autoencoder(modality, config) for modality in modalities}
  stages = [autoencoder_stage(m, codecs[m.name], config) for m in modalities]
  generate = functools.partial(sample, config, modalities, codecs)
  score = _score_stage(config, modalities, codecs, generate)
  evaluations = functools.partial(_evaluations, config)
  restore = functools.partial(reconstruct, codecs)
  return Framework(modalities, (*stages, score), generate, restore, evaluations)


# ---------------------------------------------------------------------------- stage 2


def score_network(config: Any) -> LatentDenoiser | ScoreMLP:
  """The multi-time network of `config.score.network`.

  Raises:
    UserError: an unknown kind of network.
  """
  network = config.score.network.to_dict()
  kind = network.pop("kind")
  if kind not in ("towers", "published"):
    raise UserError(
      f"config.score.network.kind is {kind!r}; it can be 'towers' or 'published' (the paper's)."
    )
  if kind == "towers":
    return LatentDenoiser(**network)
  if network["width"] % ScoreMLP.groups:
    raise UserError(
      f"config.score.network.width is {network['width']}; with the kind 'published' it must be a"
      f" multiple of {ScoreMLP.groups}."
    )
  return ScoreMLP(width=network["width"], dtype=network.get("dtype"))


def schedule_of(config: Any) -> schedules.Schedule:
  """The schedule of `config.score.schedule`.

  Raises:
    UserError: an unknown schedule.
  """
  known = {"vp_linear": schedules.VPLinear, "vp_cosine": schedules.VPCosine}
  if config.score.schedule not in known:
    raise UserError(
      f"config.score.schedule is {config.score.schedule!r}; it can be {' or '.join(known)}."
    )
  return known[config.score.schedule]()


def draw_times(
  config: Any, key, batch_size: int, names: Sequence[str], present: Batch | None = None
) -> multitime.Draw:
  """The variant's draw of times for a batch; `present` as `multitime.draw_masked` has it."""
  score = config.score
  schedule = schedule_of(config)
  draw_t = (
    multitime.importance_time(schedule, score.t_min)
    if score.importance
    else multitime.uniform_time(score.t_min)
  )
  if config.variant == "inpaint":
    return multitime.draw_joint(key, batch_size, names, draw_t=draw_t, present=present)
  if config.variant == "unidiffuser":
    return multitime.draw_independent(key, batch_size, names, draw_t=draw_t, present=present)
  return multitime.draw_masked(
    key,
    batch_size,
    names,
    given_prob=score.given_prob,
    absent_prob=score.absent_prob,
    draw_t=draw_t,
    present=present,
  )


def score_loss(
  config: Any,
  network,
  params,
  key,
  latents: Batch,
  present: Batch | None = None,
  share: Batch | None = None,
):
  """The masked denoising loss of (1).

  The squared error is a mean over components, then over the examples that have the modality (0
  where it is given or absent), then over modalities: neither the size of a latent nor how few
  examples have it matters. How often it is diffused in these does: always where it is alone, less
  where others are beside it, so a modality that is often alone counts somewhat more. How many
  examples of a batch have it is left to chance, so the divisor is its expectation, from `share`,
  and the loss is unbiased.

  Args:
    config: the score's settings; `prediction` "eps" or "v" says what the network predicts, and the
      loss is on that.
    network: the multi-time network.
    params: its parameters.
    key: draws times and noise.
    latents: standardised latents, {name: [batch, latent]}.
    present: for each modality which examples have it, {name: bool [batch]}; None is all. Latents
      of the others are not used.
    share: with `present`, each modality's share of all examples that have it.

  Returns:
    The loss and `loss_<modality>` for each.
  """
  schedule = schedule_of(config)
  names = sorted(latents)
  batch_size = latents[names[0]].shape[0]
  time_key, noise_key = jax.random.split(key)
  draw = draw_times(config, time_key, batch_size, names, present)
  if present:
    latents = {name: jnp.where(present[name][:, None], latents[name], 0.0) for name in names}
  noisy, target = {}, {}
  for name in names:
    z, t = latents[name], draw.t[name][:, None]
    eps = noise.normal_like(noise_key, name, z)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # What is absent must tell nothing: alpha(1) of VP linear is not quite 0.
    noisy[name] = jnp.where(t == 1.0, eps, alpha * z + sigma * eps)
    target[name] = eps if config.score.prediction == "eps" else alpha * eps - sigma * z
  predicted = network.apply(params, noisy, draw.t)
  metrics, total = {}, 0.0
  for name in names:
    error = jnp.mean((predicted[name] - target[name]) ** 2, axis=-1)
    diffused = draw.diffused[name]
    # The mean over the examples that have it; by their number in the batch it would be biased.
    part = jnp.mean(draw.weight * diffused * error)
    total += (part / share[name] if present else part) / len(names)
    metrics[f"loss_{name}"] = jnp.sum(draw.weight * diffused * error) / jnp.maximum(
      jnp.sum(diffused), 1
    )
  return total, metrics


def _score_stage(config, modalities, codecs, generate) -> Stage:
  network = score_network(config)
  names = tuple(modality.name for modality in modalities)

  def prepare(frozen: Params, data: Batch):
    whole = {name: missing.complete(select(data, name), [name])[name] for name in names}
    latents = encode(codecs, frozen, whole)
    measured = statistics(latents)
    standard = {
      name: (z - measured[name]["mean"]) / measured[name]["std"] for name, z in latents.items()
    }
    masks = missing.masks(data, names)
    for name, mask in masks.items():
      measured[name]["share"] = np.float32(mask.mean())
      rows = np.zeros((len(mask), standard[name].shape[1]), np.float32)
      rows[mask] = standard[name]
      standard[name] = rows
    return {"statistics": measured}, standard | {f"{n}_present": m for n, m in masks.items()}

  def init(key, frozen, batch):
    del frozen
    x = {name: batch[name][:2] for name in names}
    return {"score": network.init(key, x, {name: jnp.zeros(2) for name in names})}

  def loss(trained, frozen, key, batch):
    latents = {name: batch[name] for name in names}
    if f"{names[0]}_present" not in batch:
      return score_loss(config, network, trained["score"], key, latents)
    present = {name: batch[f"{name}_present"] for name in names}
    share = {name: frozen["statistics"][name]["share"] for name in names}
    return score_loss(config, network, trained["score"], key, latents, present, share)

  settings = make_sampler_config(config)
  jitted = jax.jit(generate, static_argnums=(3, 4, 5))

  first, *rest = names
  rest = tuple(rest)

  def report(params, key, data):
    rows = len(data[first])
    shown = {"joint": jitted(params, key, {}, names, rows, settings)}
    if rest:
      given = {first: data[first]}
      shown[f"from_{first}"] = given | jitted(params, key, given, rest, rows, settings)
    return shown

  stage_settings = make_train_config(config.score.training, "score.training.")
  needs = tuple(f"autoencoder_{name}" for name in names)
  return Stage("score", ("score",), stage_settings, prepare, init, loss, report, needs)


# ---------------------------------------------------------------------------- generation


def _groups(targets: Sequence[str], order: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
  """Targets in the order in which they are generated."""
  groups = [tuple(name for name in group if name in targets) for group in order]
  rest = tuple(name for name in targets if not any(name in group for group in groups))
  return [group for group in (*groups, rest) if group]


def _repaint(config) -> dict[str, int]:
  """`jump` and `repeats` of `multitime.repaint`; runs from before it was used have neither."""
  return {name: config.sampling.get(name, 1) for name in ("jump", "repeats")}


def _check_sampling(config, sampling: SamplerConfig) -> None:
  jump, repeats = _repaint(config).values()
  if config.variant != "inpaint" or repeats == 1:
    return
  if not sampling.solver.stochastic:
    raise UserError(
      f"config.variant is 'inpaint' and config.sampling.repeats {repeats}, which takes a solver of"
      " the SDE: where times rise, one of the ODE encodes instead of re-noising. Use"
      " config.sampling.solver=sde_dpmpp_2m (--solver=sde_dpmpp_2m), or config.sampling.repeats=1."
    )
  if sampling.steps % jump:
    raise UserError(
      f"config.sampling.steps is {sampling.steps}; with the variant 'inpaint' it must be a multiple"
      f" of config.sampling.jump, {jump}."
    )


def _evaluations(config, given, targets, sampling: SamplerConfig) -> int:
  if config.variant == "inpaint" and given:
    jump, repeats = _repaint(config).values()
    rises = sampling.steps // jump * (repeats - 1)
    return sampling.solver.evaluations(sampling.steps * repeats + rises)
  inpaint = config.variant == "inpaint"
  guided = sampling.guidance != 1.0 and not inpaint
  groups = _groups(targets, () if inpaint else sampling.order)
  each = sampling.solver.evaluations(sampling.steps)
  # The first group is unguided when nothing is given, but both branches are computed all the same.
  return len(groups) * each * (2 if guided and (given or len(groups) > 1) else 1)


def sample(
  config: Any,
  modalities: Sequence[Modality],
  codecs: Mapping[str, Any],
  params: Params,
  key,
  given: Batch,
  targets: tuple[str, ...],
  num: int,
  sampling: SamplerConfig,
) -> dict[str, Any]:
  """Generates by (2): `Framework.sample` once the first three arguments are bound.

  Args:
    config: the framework's.
    modalities: all that the network sees.
    codecs: their autoencoders.
    params: all entries.
    key: the source of noise.
    given: arrays in the model's view with `num` rows each; may be empty.
    targets: what to generate. Modalities in neither are absent.
    num: number of samples.
    sampling: how.

  Returns:
    The targets in the model's view.

  Raises:
    UserError: with the variant `inpaint` a solver of the ODE, or steps that `jump` does not divide.
  """
  _check_sampling(config, sampling)
  names = [modality.name for modality in modalities]
  schedule = schedule_of(config)
  absent = [name for name in names if name not in given and name not in targets]
  groups = _groups(targets, sampling.order if config.variant != "inpaint" else ())
  measured = params["statistics"]

  prior_key, loop_key, absent_key, known_key = jax.random.split(key, 4)
  shapes = {name: (codecs[name].latent,) for name in names}
  prior, other = (solvers.prior(k, schedule, shapes, num) for k in (prior_key, absent_key))
  known = {name: _standardised_latent(codecs, params, name, x) for name, x in given.items()}

  network = score_network(config)
  predict = jax.tree_util.Partial(network.apply, params["score"])
  convert = solvers.from_eps if config.score.prediction == "eps" else solvers.from_v
  denoiser = convert(predict, schedule)
  if config.variant == "inpaint":
    # The network knows joint times only: all move together, and what is given is put back, noised
    # to the current time, after each step.
    with jax.ensure_compile_time_eval():
      grid = multitime.power_grid(sampling.steps, config.sampling.grid_power)
      resampling = _repaint(config) if known else {"repeats": 1, "jump": 1}
      falling = multitime.repaint([*groups[0], *known], sampling.steps, grid=grid, **resampling)
      still = np.ones(len(next(iter(falling.times.values()))), grid.dtype)
      path = multitime.Path({**falling.times, **dict.fromkeys(absent, still)})
    guided = False
    project = solvers.replace_known(schedule, known)
    x_init = project(known_key, prior, {name: jnp.float32(1.0) for name in names})
  else:
    guided = sampling.guidance != 1.0 and bool(known or len(groups) > 1)
    if guided:
      denoiser = guidance.guide(denoiser, sampling.guidance, other)
    with jax.ensure_compile_time_eval():
      grid = multitime.power_grid(sampling.steps, config.sampling.grid_power)
      path = multitime.sequential(
        groups, sampling.steps, given=tuple(known), absent=tuple(absent), grid=grid
      )
    project, x_init = None, {**prior, **known}
  warn_untrained(config, path, guided=guided, gaps="share" in measured[names[0]])
  z = solvers.sample(
    loop_key, denoiser, schedule, x_init, path, solver=sampling.solver, project=project
  )
  return {
    name: codecs[name].apply(
      params[f"autoencoder_{name}"],
      z[name] * measured[name]["std"] + measured[name]["mean"],
      method="decode",
    )
    for name in targets
  }


def _standardised_latent(codecs, params, name, x):
  measured = params["statistics"][name]
  z = codecs[name].apply(params[f"autoencoder_{name}"], jnp.asarray(x), method="encode")
  return (z - measured["mean"]) / measured["std"]


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


def trained_states(config: Any, *, gaps: bool = False) -> frozenset[str]:
  """The states of modalities that training draws; as `multitime.states` names those of a path.

  Independent times are never exactly 0, 1 or equal. They count as training given and absent
  modalities nevertheless, which such networks are made for: whatever the number of modalities, a
  fraction d of each one's times lies within d of an end. The diagonal does not count: that k
  modalities lie within d of one shared time has a probability of order d^(k - 1).

  Args:
    config: reads `variant`, `score.given_prob` and `score.absent_prob`.
    gaps: whether some training examples lack modalities, which are then absent.
  """
  if config.variant == "unidiffuser":
    return frozenset({"given", "absent", "apart"})
  masked = config.variant == "masked"
  drawn = {
    "shared": True,
    "given": masked and config.score.given_prob > 0,
    "absent": gaps or (masked and config.score.absent_prob > 0),
  }
  return frozenset(state for state, occurs in drawn.items() if occurs)


def warn_untrained(
  config: Any, path: multitime.Path, *, guided: bool = False, gaps: bool = False
) -> None:
  """Warns when a path visits states that the network has not been trained on.

  `sample` calls this. Call it yourself for a path of your select, such as a staggered one.

  Args:
    config: of the run.
    path: through the times of the network's modalities, concrete (see `multitime.states`).
    guided: whether `guidance.guide` evaluates the network with the given modalities absent, too.
    gaps: as for `trained_states`.
  """
  visited = multitime.states(path) | ({"absent"} if guided else set())
  missing_states = visited - trained_states(config, gaps=gaps)
  untrained = [state for state in _UNTRAINED if state in missing_states]
  if untrained:
    score = config.score
    warnings.warn(
      "The path visits states that this network was not trained on (config.variant"
      f" {config.variant!r}, config.score.given_prob={score.given_prob},"
      f" config.score.absent_prob={score.absent_prob}):"
      f" {'; '.join(_UNTRAINED[state][0] for state in untrained)}. To avoid that,"
      f" {'; '.join(_UNTRAINED[state][1] for state in untrained)}.",
      stacklevel=3,
    )
