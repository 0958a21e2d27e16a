"""Guidance and composition: denoisers made from denoisers.

The pairs that they return satisfy x = alpha x0 + sigma eps. Where several eps are combined with
weights that sum to 1, their x0 are combined in the same way, which for one x is equivalent.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Shaped
import numpy as np

from mmdiff_jax import arguments, prediction, schedules
from mmdiff_jax.diffusion import checked, Denoiser
from mmdiff_jax.schedules import along
from mmdiff_jax.solvers.moves import is_floating


def combine(conditional: Any, unconditional: Any, strength: Any) -> Any:
  """Returns unconditional + strength (conditional - unconditional), for each array of two pytrees.

  This is the step from a model's two predictions to the guided one (Ho and Salimans 2022, Eq. 6).

  Raises:
    TypeError, ValueError: an argument has the wrong type, or the two pytrees differ in structure or
      in the shapes of their arrays.
  """
  strength = arguments.number("combine", "strength", strength, rows=True)
  pytrees = {"conditional": conditional, "unconditional": unconditional}
  for name, pytree in pytrees.items():
    for leaf in jax.tree.leaves(pytree):
      leaf = arguments.floating("combine", name, leaf)
      arguments.broadcasts("combine", "strength", jnp.shape(strength), leaf.shape)
  shapes = [jax.tree.map(jnp.shape, pytree) for pytree in pytrees.values()]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"combine: conditional and unconditional have the shapes {shapes[0]} and {shapes[1]}; they"
      " must be the same."
    )
  return jax.tree.map(lambda c, u: u + strength * (c - u), conditional, unconditional)


def _guided(denoiser, strength, noise, interval, rescale, schedule, x, t):
  # Stacked on an axis of their own, not as more rows: a time that all rows share stays a scalar.
  arguments.subset("guide", "noise", noise, "the modalities", x)
  t = {name: jnp.asarray(time) for name, time in t.items()}
  without_x, without_t = dict(x), dict(t)
  for name in noise:
    given = t[name] == 0
    absent = _absent(name, noise[name], x[name])
    without_x[name] = jnp.where(along(given, x[name]), absent, x[name])
    without_t[name] = jnp.where(given, jnp.ones_like(t[name]), t[name])
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), (x, t), (without_x, without_t))
  both_x0, both_eps = jax.vmap(denoiser)(*both)
  x0, eps = {}, {}
  for name in x:
    weight = strength
    if isinstance(strength, jax.Array):
      weight = along(strength, x[name])
      arguments.broadcasts("guide", "strength", weight.shape, x[name].shape)
    if interval is not None:
      log_snr = schedules.schedule_of(schedule, name).log_snr(t[name])
      inside = (interval[0] <= log_snr) & (log_snr <= interval[1])
      weight = jnp.where(along(inside, x[name]), weight, 1.0)
    x0[name], eps[name] = (combine(*both, weight) for both in (both_x0[name], both_eps[name]))
    if rescale is not None:
      x0[name] = _rescaled(x0[name], both_x0[name][0], rescale)
      eps[name] = _eps_of(schedule, name, x[name], t[name], x0[name], eps[name])
  return x0, eps


def _absent(name, noise, x):
  """Returns the network's input for an absent modality, in the type of `x`."""
  if jnp.issubdtype(noise.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f"guide: noise[{name!r}] is {noise.dtype} but the modality is {x.dtype}: give integers, such"
      " as the class that the network was trained with where the modality is absent."
    )
  arguments.broadcasts("guide", f"noise[{name!r}]", noise.shape, x.shape)
  return noise.astype(x.dtype)


def _rescaled(x0, conditional, rescale):
  """Returns `x0` with each row's deviations from its mean scaled to the std of `conditional`'s."""
  deviations = _deviations(x0)
  spread = _std(deviations)
  scale = prediction.divide(_std(_deviations(conditional)), spread)
  scale = jnp.where(spread == 0, 1, scale)
  return x0 + rescale * (scale - 1) * deviations


def _deviations(x):
  """Returns each row minus its mean, exactly 0 where all of its components are equal."""
  axes = tuple(range(1, x.ndim))
  # Relative to the first component: the mean of equal numbers, computed directly, is rounded.
  from_first = x - x[(slice(None), *(slice(1),) * len(axes))]
  return from_first - jnp.mean(from_first, axes, keepdims=True)


def _std(deviations):
  axes = tuple(range(1, deviations.ndim))
  return prediction.root(jnp.mean(deviations**2, axes, keepdims=True))


def _eps_of(schedule, name, x, t, x0, otherwise):
  """Returns the eps of a changed x0, or `otherwise` where sigma is 0."""
  schedule = schedules.schedule_of(schedule, name)
  alpha, sigma = (along(level(t), x) for level in (schedule.alpha, schedule.sigma))
  return jnp.where(sigma == 0, otherwise, prediction.x0_to_eps(x, x0, alpha, sigma))


def guide(
  denoiser: Denoiser,
  strength: float | Float[Array, "*rows"],
  noise: Mapping[str, Shaped[Array | np.ndarray, "batch ..."]],
  *,
  interval: tuple[float, float] | None = None,
  rescale: float | Float[Array, ""] | None = None,
  schedule: Any = None,
) -> Denoiser:
  """Classifier-free guidance (Ho and Salimans 2022, Eq. 6) by the times of given modalities.

  With eps_c predicted at the times t, and eps_u with all given modalities (time 0) absent (time 1),

    eps = eps_u + strength (eps_c - eps_u),

  and x0 in the same way. Strength 1 is the conditional distribution, 0 the marginal one; above 1
  the condition is emphasised. The network must have been trained with absent modalities
  (`multitime.draw_masked(absent_prob=...)`). The result for a given modality itself is meaningless,
  and no step reads it.

  Args:
    denoiser: `(x, t) -> (x0, eps)`.
    strength: weight of the condition; a number or, to change it without recompiling, an array,
      which may have one entry for each row.
    noise: the network's input for a modality where it is absent, such as a draw of
      `solvers.prior`, or zeros; shaped as the modality. Modalities without an entry stay given.
    interval: lower and upper log_snr of a modality between which it is guided; elsewhere it has
      strength 1 (Kynkäänniemi et al. 2024). If None it is guided everywhere.
    rescale: fraction in [0, 1] by which each row of x0 is moved back to the std that it has
      without guidance (Lin et al. 2023, Eq. 15-16, there for eps or v). The row's mean stays, and
      so does a row of std 0, such as one of a single number. No rescaling if None.
    schedule: one schedule, or one for each modality; for `interval` and `rescale`.

  Returns:
    A denoiser. For the number 1 it is `denoiser` itself; otherwise it calls `denoiser` once, for
    both predictions, under `jax.vmap`.

  Raises:
    TypeError: an argument has the wrong type; when the denoiser is called, `noise` has floats for a
      modality of integers.
    ValueError: `interval` or `rescale` is given without a schedule, or is outside its range; when
      the denoiser is called, `noise` has a name that is not a modality, or another shape.
  """
  plain, denoiser = denoiser, checked("guide", denoiser)
  strength = arguments.number("guide", "strength", strength, rows=True)
  noise = arguments.modalities("guide", "noise", noise)
  if rescale is not None:
    rescale = arguments.number("guide", "rescale", rescale, 0, 1)
  if interval is not None:
    arguments.interval("guide", "interval", interval)
  if interval is not None or rescale is not None:
    if schedule is None:
      raise ValueError("guide: interval and rescale need the schedule; pass schedule=...")
    schedule = schedules.check("guide", schedule)
  if not isinstance(strength, jax.Array) and strength == 1:
    return plain
  return Partial(_guided, denoiser, strength, noise, interval, rescale, schedule)


def _side_by_side(denoisers, x, t):
  return jax.tree.map(
    lambda *outputs: jnp.stack(outputs), *(denoiser(x, t) for denoiser in denoisers)
  )


def _mixed(branches, shares, weights, x, t):
  weights = [weight(t) if callable(weight) else weight for weight in weights]
  rest = 1.0 - sum(weights)
  factors = [*(rest * share for share in shares), *weights]
  factors = [jnp.asarray(factor) for factor in factors]

  def total(each):
    return sum(along(f, one) * one for f, one in zip(factors, each, strict=True))

  each = branches(x, t)
  for leaf in jax.tree.leaves(each):
    if jnp.shape(leaf)[:1] != (len(factors),):
      raise ValueError(
        f"mix: branches returned shape {jnp.shape(leaf)}; its first axis must have size"
        f" {len(factors)}, one for each of {len(shares)} shares and {len(weights)} weights."
      )
  return jax.tree.map(total, each)


Weight = float | Float[Array, "*rows"] | Callable[[Mapping[str, Array]], Array]


def mix(
  branches: Callable[..., Any],
  shares: Sequence[float | Float[Array, ""]],
  weights: Sequence[Weight],
) -> Denoiser:
  """Returns the `compose` of denoisers that share a network, as one call of it.

  Args:
    branches: like a denoiser, but all outputs have one more leading axis: first the unconditional
      denoisers, one for each of `shares`, then the experts.
    shares: as in `compose`.
    weights: as in `compose`.

  Returns:
    A denoiser.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: the shares do not sum to 1, or a number is not finite.
  """
  branches = arguments.function("mix", "branches", branches)
  shares = tuple(
    arguments.number("mix", "shares", share)
    for share in arguments.sequence("mix", "shares", shares)
  )
  weights = tuple(
    arguments.function("mix", "weights", weight)
    if callable(weight)
    else arguments.number("mix", "weights", weight, rows=True)
    for weight in arguments.sequence("mix", "weights", weights)
  )
  concrete = not any(isinstance(share, jax.core.Tracer) for share in shares)
  if concrete and abs(sum(map(float, shares)) - 1) > 1e-6:
    raise ValueError(f"mix: the shares of unconditional denoisers must sum to 1: {shares}.")
  return Partial(_mixed, branches, shares, weights)


def compose(
  unconditional: Denoiser | Sequence[Denoiser],
  experts: Sequence[Denoiser],
  weights: Sequence[Weight],
  shares: Sequence[float | Float[Array, ""]] = (1.0,),
) -> Denoiser:
  """Combines experts that were trained separately into one denoiser.

    eps = eps_0 + sum_i w_i (eps_i - eps_0),  eps_0 = sum_j b_j eps_0j

  is Eq. 12 of MCDM for weights w_i = 1 and one unconditional denoiser.

  With weights of 1 and conditions that are independent given x this is P(x | all conditions) at
  t = 0. At t > 0 it is not the score of that distribution perturbed by noise, so that samplers end
  elsewhere, however many steps they take: a corrector (`solvers.corrected`) leads back to it.

  Args:
    unconditional: the denoiser without a condition; or several, which are mixed by how far each is
      to be relied on (Nair et al. 2023, "Unite and Conquer").
    experts: one denoiser for each condition, which closes over it.
    weights: w_i; above 1 a condition is emphasised, below 0 it is avoided. A number, an array or,
      for a weight that changes along the path, a function of the times.
    shares: b_j, the weights of the unconditional denoisers, which sum to 1.

  Returns:
    A denoiser that calls all of them.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: the numbers of weights and experts differ, or those of shares and unconditional
      denoisers, or the shares do not sum to 1.
  """
  if callable(unconditional):
    unconditional = [unconditional]
  unconditional = [
    checked("compose", denoiser, "unconditional")
    for denoiser in arguments.sequence("compose", "unconditional", unconditional)
  ]
  experts = [
    checked("compose", denoiser, "experts")
    for denoiser in arguments.sequence("compose", "experts", experts)
  ]
  weights = arguments.sequence("compose", "weights", weights)
  shares = arguments.sequence("compose", "shares", shares)
  if len(experts) != len(weights):
    raise ValueError(f"compose: {len(experts)} experts need as many weights, not {len(weights)}.")
  if len(unconditional) != len(shares):
    raise ValueError(
      f"compose: {len(unconditional)} unconditional denoisers need as many shares, not"
      f" {len(shares)}."
    )
  return mix(Partial(_side_by_side, (*unconditional, *experts)), shares, weights)


def _steered(denoiser, log_likelihood, schedule, x, t):
  flowing = {name: value for name, value in x.items() if is_floating(value)}

  def value(flowing):
    x0, eps = denoiser({**x, **flowing}, t)
    total = arguments.number("steer", "the value of log_likelihood", log_likelihood(x0, t))
    return total, (x0, eps)

  slope, (x0, eps) = jax.grad(value, has_aux=True)(flowing)
  for name in flowing:
    modality_schedule = schedules.schedule_of(schedule, name)
    alpha, sigma = (
      along(level(t[name]), x[name]) for level in (modality_schedule.alpha, modality_schedule.sigma)
    )
    eps = eps | {name: eps[name] - sigma * slope[name]}
    moved = prediction.eps_to_x0(x[name], eps[name], alpha, sigma)
    x0 = x0 | {name: jnp.where(alpha == 0, x0[name], moved)}
  return x0, eps


def steer(
  denoiser: Denoiser, log_likelihood: Callable[..., Float[Array, ""]], schedule: Any
) -> Denoiser:
  """Adds the gradient of a user-defined log-likelihood of x0: inverse problems, classifiers.

  The score becomes score + grad_x log p(y | x0(x, t)) (Chung et al. 2023, Eq. 7-9; there without
  the variance of x0 given x, for which `log_likelihood` may account, as it receives the times).

  Args:
    denoiser: `(x, t) -> (x0, eps)`, differentiable.
    log_likelihood: `(x0, t) -> []`, the sum over rows of log p(y | x0) up to a constant; a
      `Partial` with the values that it closes over as arguments, so that new ones do not recompile.
    schedule: one schedule, or one for each modality.

  Returns:
    A denoiser that costs one evaluation and its gradient. It changes given modalities, too, which
    no step reads.

  Raises:
    TypeError: `denoiser` or `log_likelihood` is not a function, or `schedule` not a schedule.
  """
  denoiser = checked("steer", denoiser)
  log_likelihood = arguments.function("steer", "log_likelihood", log_likelihood)
  schedule = schedules.check("steer", schedule)
  return Partial(_steered, denoiser, log_likelihood, schedule)


def _thresholded(denoiser, bounds, quantile, schedule, x, t):
  x0, eps = denoiser(x, t)
  arguments.subset("threshold", "bounds", bounds, "the modalities", x)
  for name, (low, high) in bounds.items():
    value = x0[name]
    if quantile is not None:
      middle, half = 0.5 * (low + high), 0.5 * (high - low)
      rows = jnp.abs(value - middle).reshape(len(value), -1)
      # Equal bounds leave nothing to shrink: the clip below returns them.
      reach = jnp.maximum(jnp.quantile(rows, quantile, axis=1) / jnp.where(half == 0, 1.0, half), 1)
      value = middle + (value - middle) / along(reach, value)
    value = jnp.clip(value, low, high)
    eps = eps | {name: _eps_of(schedule, name, x[name], t[name], value, eps[name])}
    x0 = x0 | {name: value}
  return x0, eps


def threshold(
  denoiser: Denoiser,
  schedule: Any,
  bounds: Mapping[str, tuple[float, float]],
  *,
  quantile: float | None = None,
) -> Denoiser:
  """Keeps x0 inside its bounds, and eps consistent with it.

  Args:
    denoiser: `(x, t) -> (x0, eps)`.
    schedule: one schedule, or one for each modality.
    bounds: lowest and highest value of each modality that is to be bounded.
    quantile: None clips (static thresholding). A number such as 0.995 first shrinks a row towards
      the middle so that this quantile of its distances just fits (dynamic thresholding, Saharia et
      al. 2022, Sec. 2.3).

  Returns:
    A denoiser.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: a lower bound is above the higher one, `quantile` is outside [0, 1], or a bound is
      infinite beside it; when the
      denoiser is called, `bounds` has a name that is not a modality.
  """
  denoiser = checked("threshold", denoiser)
  schedule = schedules.check("threshold", schedule)
  if not isinstance(bounds, Mapping):
    raise TypeError(f"threshold: bounds={bounds!r} must be a dict with (low, high) by modality.")
  arguments.names("threshold", "bounds", bounds)
  for name, pair in bounds.items():
    arguments.interval("threshold", f"bounds[{name!r}]", pair)
  if quantile is not None:
    quantile = arguments.number("threshold", "quantile", quantile, 0, 1)
    for name, pair in bounds.items():
      if any(math.isinf(end) for end in pair if not isinstance(end, jax.core.Tracer)):
        raise ValueError(
          f"threshold: bounds[{name!r}]={pair!r} is infinite, from which quantile has no middle to"
          " shrink to. Give finite bounds, or leave quantile out."
        )
  return Partial(_thresholded, denoiser, dict(bounds), quantile, schedule)
