"""MT-Diffusion: several modalities in one shared diffusion space, with a head for each.

The paper's full text is not public here: what follows was derived anew and is checked by closed
forms. The forward process, from the modalities' encoders E_i to q(z_s | z_t, z_0, X), is in
`mmdiff_jax/shared_space.py`, whose equations (1) to (5) are meant below.

One network reads z_t and predicts the noise and, by one head D_i each, the modalities. Its loss is
the practical form of the bound (`mt_diffusion_bound.py`) on -log p(X),

  E_{t, eps} [|eps - eps_theta(z_t, t)|^2 + sum_i lambda_i l_i(x_i, D_i(h_t))],             (6)

with squared error for l_i, or cross-entropy where a modality has classes. Their minima are the
posterior means E[x_i | z_t], and the posterior probabilities.

Generation draws from (4) at each t with z_0 and E rebuilt from the heads' predictions, in which
what is known takes its own place. A target's own value enters nowhere: a label that is to be
predicted is not in E. Where little noise is left, and the network sees all that is known, z_0 is
that of eps_theta.

Two ways to know (`config.sampling.mode`):

* replacement: the heads see z_t alone. z_t is then not what the heads were trained on, since a
  known x_i says more of the others than z_t does: biased even with perfect heads.
* informed: the heads also see what is known, as they are shown some modalities in training.
  Guidance is between them and what they say when they are shown nothing.

Targets are read at the last step, as means given z_1 (or likeliest classes). The main modality is
read off z_1 itself, less its noise and the part of the others, which is exact to sigma_1 / a_1 and
to the errors of the others; its head is less exact there. The others are read off their heads. With
the aggregation "start" z_1 has all modalities in it, but as a sum: what the sum leaves open of a
target has no spread. (Of two Gaussians of variance 1 and correlation 0.8 with E = x_1 + x_2,
generated jointly, either is z_1 / 2: variance 0.9, correlation 1.) With "steps" what was added has
left z_t again at t = 1, so that all but the main modality are read as their means given it.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mmdiff_jax import config_checks, multitime, noise, shared_space, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import mt_diffusion_bound
from mmdiff_jax.frameworks.base import (
  Batch,
  Framework,
  make_sampler_config,
  make_train_config,
  Params,
  SamplerConfig,
  Stage,
)
from mmdiff_jax.frameworks.ddpm import make_table, UNET
from mmdiff_jax.frameworks.mt_diffusion_model import (
  aggregate,
  cross_entropy,
  estimate,
  Model,
  read,
  read_main,
  SPACE,
  values_of,
)
from mmdiff_jax.frameworks.normalize import (
  check_examples,
  check_shape,
  denormalize,
  identity_reconstruct,
  normalize,
)
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.multitask import Multitask, Part
from mmdiff_jax.networks.unet import UNet

AGGREGATIONS = ("start", "steps")
MODES = ("replacement", "informed")

_RULES = {
  "heads": config_checks.FLAG,
  "stop_gradient": config_checks.FLAG,
  "parts.*.omega": config_checks.real(),
  "parts.*.weight": config_checks.real(),
  "process.aggregation": config_checks.one_of(*AGGREGATIONS),
  "process.weights": config_checks.one_of("linear", "constant"),
  "process.total": config_checks.real(),
  "network.informed": config_checks.FLAG,
  **{f"network.{name}": rule for name, rule in UNET.items()},
  "sampling.mode": config_checks.one_of(*MODES),
  "sampling.grid_power": config_checks.real(1.0, 100.0),
}


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """MT-Diffusion for some modalities.

  Args:
    config: as `configs/mt_diffusion.py` has it.
    modalities: all that share the space, `config.main` among them.

  Returns:
    The framework, of the one stage `mt_diffusion`.

  Raises:
    UserError: a choice in the config that does not exist or does not go with another, or a process
      whose last step is not N(0, I).
  """
  model = model_of(config, modalities)
  _check_sampling(config, make_sampler_config(config))
  generate = functools.partial(sample, model)
  stage = _stage(model, generate)
  rows = config.evaluation.bound
  bound = functools.partial(mt_diffusion_bound.measure, model, num=rows) if rows else None
  return Framework(model.modalities, (stage,), generate, identity_reconstruct, _evaluations, bound)


def model_of(config: Any, modalities: Sequence[Modality]) -> Model:
  """The process and the network of a config; arguments and errors as `build`."""
  config_checks.check(config, _RULES)
  found = {modality.name: modality for modality in modalities}
  for name, where in [(config.main, "config.main"), *((n, "config.modalities") for n in found)]:
    if name not in found or name not in config.parts:
      raise UserError(
        f"{where} names {name!r}; it must be one of config.modalities ({', '.join(found)}) and of"
        f" config.parts ({', '.join(config.parts)})."
      )
  main = found[config.main]
  if len(found) > 1 and not config.heads:
    raise UserError(
      f"config.heads is False and config.modalities has {', '.join(found)}. Only the main modality"
      " can do without a head, since the noise says what it is: leave the others out."
    )
  informed, prob = config.network.informed, config.network.given_prob
  if informed and not 0 < prob < 1:
    raise UserError(
      f"config.network.given_prob is {prob}; it must be between 0 and 1: an informed network learns"
      " from examples of which something is known, and from others."
    )
  if not 0 < config.augment.share <= 1:
    raise UserError(f"config.augment.share is {config.augment.share}; it must be in (0, 1].")
  if config.augment.modality and len(found) > 1:
    raise UserError(
      f"config.augment.modality is {config.augment.modality!r}; only a main modality that is alone"
      f" is augmented, and config.modalities has {', '.join(found)}."
    )
  if len(main.shape) != 3 or main.num_classes:
    raise UserError(
      f"config.main is {main.name!r}, a {main.kind} of shape {main.shape}. The shared space has the"
      " main modality's shape and a U-Net works in it, so it must be an image."
    )
  parts = tuple(_part(modality, config.parts[name].encoder) for name, modality in found.items())
  if config.parts[config.main].encoder != "identity":
    raise UserError(
      f"config.parts.{main.name}.encoder is {config.parts[config.main].encoder!r}: the main"
      " modality enters the space, which has its shape, by the identity."
    )
  for part in parts:
    if part.encoder == "identity" and part.shape != main.shape:
      raise UserError(
        f"config.parts.{part.name}.encoder is 'identity', but its values have the shape"
        f" {part.shape} and the shared space {main.shape}. Use 'embedding' or 'frozen'."
      )
  network = Multitask(
    backbone=_backbone(config),
    space=main.shape,
    parts=parts,
    heads=config.heads,
    informed=_informed(config),
  )
  return Model(config, tuple(found.values()), _process(config, tuple(found)), network)


def _informed(config) -> bool:
  """A modality alone is never known, but an augmented one is said to be so."""
  return (config.network.informed and len(config.modalities) > 1) or bool(config.augment.modality)


def _part(modality: Modality, encoder: str) -> Part:
  classes = (modality.num_classes,) if modality.num_classes else ()
  try:
    return Part(modality.name, modality.shape + classes, bool(classes), encoder)
  except ValueError as error:
    raise UserError(f"config.parts.{modality.name}: {error}") from error


def _backbone(config) -> UNet:
  """All of `config.network` but what is said of knowing."""
  sizes = config.network.to_dict()
  del sizes["informed"], sizes["given_prob"]
  return UNet(**sizes)


def _process(config, names: Sequence[str]) -> shared_space.Process:
  """The process, checked to end in N(0, I).

  Components of encoded modalities are of size 1 or less: images by their range, embeddings because
  they are kept so.
  """
  settings = config.process
  weights = {
    "linear": shared_space.linear_weights,
    "constant": shared_space.constant_weights,
  }
  table = make_table(settings)
  omega = {name: abs(config.parts[name].omega) for name in names}
  try:
    if settings.aggregation == "start" or len(names) == 1:
      process = shared_space.Process(table, shared_space.no_weights(table))
      process.check_prior(sum(omega.values()), 0.0)
    else:
      process = shared_space.Process(table, weights[settings.weights](table, settings.total))
      process.check_prior(1.0, sum(omega.values()) - omega[config.main])
  except ValueError as error:
    raise UserError(f"config.process: {error}") from error
  return process


# ---------------------------------------------------------------------------- training


def loss(
  model: Model, params: Params, key: PRNGKeyArray, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss (6), each term a mean over components and examples.

  Of a modality that an informed network is shown there is nothing to be learned: its term is a mean
  over the examples in which it is unknown. How many of a batch these are is left to chance, so the
  divisor is their expected number, and the loss is unbiased.

  Args:
    model: from `model_of`.
    params: with the entry `network`.
    key: draws times, noise, what is known, what is augmented, and dropout.
    batch: arrays in the model's view.

  Returns:
    The loss, and its terms `loss_eps` and `loss_<modality>`, before their weights.
  """
  config, network = model.config, functools.partial(model.network.apply, params["network"])
  t_key, noise_key, known_key, augment_key, dropout_key = jax.random.split(key, 5)
  values = values_of(model, batch)
  rows = len(values[config.main])
  prob = config.network.given_prob if config.network.informed else 0.0
  flags = draw_known(known_key, tuple(values), rows, prob)
  shown = {name: (flags[name], value) for name, value in values.items()}
  if config.augment.modality:
    (main,) = model.modalities
    augmented = normalize(main, batch[config.augment.modality])
    instead = jax.random.bernoulli(augment_key, config.augment.share, (rows,)).astype(jnp.float32)
    values = {main.name: jnp.where(instead[:, None, None, None] > 0, augmented, values[main.name])}
    # The network is told, so that what it generates later is none of these (as by Karras et al.
    # 2022, appendix F.2).
    shown = {main.name: (instead, jnp.zeros_like(augmented))}

  z0, total = aggregate(model, network(values, method="encode"))
  if config.stop_gradient:
    z0, total = jax.lax.stop_gradient((z0, total))
  size = len(model.process.weights)
  t = jax.random.randint(t_key, (rows,), 1, size + 1) / size
  eps = noise.normal_like(noise_key, SPACE, z0)
  mean, deviation = model.process.marginal(z0, total, t)
  predicted_eps, predicted = network(
    mean + deviation * eps, t, shown, train=True, rngs={"dropout": dropout_key}
  )
  terms = {"loss_eps": jnp.mean((eps - predicted_eps) ** 2)}
  result = terms["loss_eps"]
  for modality in model.modalities:
    if modality.name not in predicted:
      continue
    found, value = predicted[modality.name], values[modality.name]
    error = cross_entropy(found, value) if modality.num_classes else (found - value) ** 2
    each = jnp.mean(error.reshape(rows, -1), axis=-1)
    unknown = 1.0 - flags[modality.name]
    # Of those of which some are known, half are on average.
    term = jnp.mean(unknown * each) / (1.0 - prob / 2 if len(flags) > 1 else 1.0)
    terms[f"loss_{modality.name}"] = term
    result += config.parts[modality.name].weight * term
  return result, terms


def draw_known(
  key: PRNGKeyArray, names: tuple[str, ...], rows: int, prob: float
) -> dict[str, Float[Array, " {rows}"]]:
  """Which modalities a training example shows: flags of 1 and 0.

  With probability `prob` some are known but not all: their number is uniform, and so are they.
  """
  if len(names) == 1:
    return {names[0]: jnp.zeros(rows)}
  whether_key, number_key, which_key = jax.random.split(key, 3)
  number = jax.random.randint(number_key, (rows,), 1, len(names))
  number = jnp.where(jax.random.bernoulli(whether_key, prob, (rows,)), number, 0)
  order = jnp.argsort(jax.random.uniform(which_key, (rows, len(names))), axis=1)
  return {name: (order[:, i] < number).astype(jnp.float32) for i, name in enumerate(names)}


def _stage(model: Model, generate) -> Stage:
  config = model.config
  names = tuple(modality.name for modality in model.modalities)
  augmenting = (config.augment.modality,) if config.augment.modality else ()

  def prepare(frozen: Params, data: Batch):
    del frozen
    check_examples(model.modalities, data)
    for name in augmenting:
      if name not in data or data[name].shape != data[config.main].shape:
        raise UserError(
          f"config.augment.modality is {name!r}. It must be a modality of the data set with the"
          f" shape of {config.main!r}, in whose place it comes."
        )
    return {}, {name: data[name] for name in (*names, *augmenting)}

  def init(key, frozen, batch):
    del frozen
    values = values_of(model, {name: batch[name][:2] for name in names})
    try:
      return {"network": model.network.init(key, values, method="initialise")}
    except ValueError as error:
      raise UserError(f"config.network: {error}") from error

  def stage_loss(trained, frozen, key, batch):
    del frozen
    return loss(model, trained, key, batch)

  sampling = make_sampler_config(config)
  jitted = jax.jit(generate, static_argnums=(3, 4, 5))
  others = tuple(name for name in names if name != config.main)

  def report(params, key, data):
    rows = len(data[config.main])
    shown = {"joint": jitted(params, key, {}, names, rows, sampling)}
    if others:
      given = {name: data[name] for name in others}
      found = jitted(params, key, given, (config.main,), rows, sampling)
      shown[f"from_{'_'.join(others)}"] = given | found
    return shown

  settings = make_train_config(config.training, "training.")
  return Stage("mt_diffusion", ("network",), settings, prepare, init, stage_loss, report)


# ---------------------------------------------------------------------------- generation


def _check_sampling(config: Any, sampling: SamplerConfig) -> None:
  if config.sampling.mode == "informed" and not config.network.informed:
    raise UserError(
      "config.sampling.mode is 'informed', and the network of this run was not made for it"
      " (config.network.informed is False). Use 'replacement', or train with it."
    )
  if sampling.guidance != 1.0 and config.sampling.mode != "informed":
    raise UserError(
      f"config.sampling.guidance is {sampling.guidance}, and config.sampling.mode"
      f" {config.sampling.mode!r}: guidance is between heads that see what is known and heads that"
      " do not. Use the mode 'informed', or guidance 1."
    )
  if sampling.order:
    raise UserError("MT-Diffusion has no order of modalities: config.sampling.order must be empty.")
  stepwise = len(config.modalities) > 1 and config.process.aggregation == "steps"
  if stepwise and sampling.solver is not solvers.ancestral:
    raise UserError(
      "With config.process.aggregation 'steps' modalities enter z at each step, which only the"
      " solver 'ancestral' takes into account (the posterior with w_t). Use it, or aggregate at the"
      " 'start', where others serve, too."
    )
  if not 2 <= sampling.steps <= config.process.num:
    raise UserError(
      f"config.sampling.steps is {sampling.steps}; the table has {config.process.num} entries"
      " (config.process.num), so take from 2 to as many steps."
    )


def _evaluations(given, targets, sampling: SamplerConfig) -> int:
  # The last evaluation reads the modalities instead of making a step, as a step to time 0 would.
  del targets
  steps = sampling.solver.evaluations(sampling.steps)
  return 2 * steps - 1 if given and sampling.guidance != 1.0 else steps


def sample(
  model: Model,
  params: Params,
  key: PRNGKeyArray,
  given: Batch,
  targets: tuple[str, ...],
  num: int,
  sampling: SamplerConfig,
) -> dict[str, Array]:
  """Generates: `Framework.sample` once the model is bound.

  Modalities that are neither given nor targets are generated along, and left out of the result.

  Args:
    model: from `model_of`.
    params: with the entry `network`.
    key: the source of noise.
    given: arrays in the model's view with `num` rows each; may be empty.
    targets: what to generate.
    num: number of samples.
    sampling: how; its steps are on the table, as `Process.grid` has them.

  Returns:
    The targets in the model's view.

  Raises:
    UserError: a target is given, something given has another shape, or a way to sample that the
      model cannot serve.
  """
  _check_sampling(model.config, sampling)
  modalities = {modality.name: modality for modality in model.modalities}
  for name in given:
    if name in targets:
      raise UserError(f"{name!r} is both given and a target; what is to be predicted is withheld.")
    check_shape(modalities[name], given[name].shape, "what is given")
  process, informed = model.process, model.config.sampling.mode == "informed"
  known = {name: normalize(modalities[name], x) for name, x in given.items()}

  def estimated(x, t):
    def knowing(known):
      return estimate(model, params, x[SPACE], t[SPACE], known, informed=informed)

    found = knowing(known)
    if known and sampling.guidance != 1.0:
      found = jax.tree.map(lambda a, b: b + sampling.guidance * (a - b), found, knowing({}))
    z0, total = found
    return {SPACE: z0}, {SPACE: total}

  if process.plain:
    solver = sampling.solver
    denoiser = solvers.from_x0(lambda x, t: estimated(x, t)[0], process.table)
  else:
    solver, denoiser = shared_space.posterior_sampling(process), estimated
  prior_key, loop_key = jax.random.split(key)
  z = noise.normal_like(prior_key, SPACE, jnp.zeros((num, *modalities[model.config.main].shape)))
  # Runs from before there was a power took even steps.
  power = model.config.sampling.get("grid_power", 1.0)
  times = jnp.asarray(process.grid(sampling.steps, power), z.dtype)
  path = multitime.Path({SPACE: times})
  z = solvers.sample(loop_key, denoiser, process.table, {SPACE: z}, path, solver=solver)[SPACE]
  eps, values = read(model, params, z, times[-1], known, informed=informed)
  if model.config.heads and model.config.main not in known:
    main = read_main(model, params, z, times[-1], eps, values)
    values = {**values, model.config.main: main}
  return {name: denormalize(modalities[name], values[name]) for name in targets}
