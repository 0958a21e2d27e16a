"""The forward diffusion, what a network predicts of it, and denoisers made of such networks.

x_t = alpha(t) x_0 + sigma(t) eps is drawn by `perturb`. A network is trained on the `target` of its
kind (eps, v, x0 or velocity, see `prediction`) and sampled by the `denoiser` of the same kind.

A denoiser maps `(x, t)`, dicts of modalities and of their times, to the pair of dicts
(E[x_0 | x], E[eps | x]). It is a `jax.tree_util.Partial` and so a pytree: new parameters, bound
with `Partial(fn, params)`, do not recompile a jitted sampler.
"""

from collections.abc import Callable, Mapping
import functools
import reprlib
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from mmdiff_jax import arguments, prediction, schedules
from mmdiff_jax.schedules import Schedule

X = Float[Array, "batch ..."]
Rows = Float[Array, "*rows"]
Sample = dict[str, Float[Array, "batch ..."]]
Denoiser = Callable[..., tuple[Sample, Sample]]


def perturb(schedule: Schedule, x0: X, eps: X, t: Rows) -> X:
  """Returns a draw from q(x_t | x_0): alpha(t) x0 + sigma(t) eps.

  Args:
    schedule: one schedule.
    x0: data, [batch, ...].
    eps: standard normal noise, shaped as `x0`.
    t: times, one for each row, or one for all.

  Returns:
    The perturbed data, shaped as `x0`.

  Raises:
    TypeError, ValueError: an argument has the wrong type, shape or range.
  """
  x0, eps, t = _check_forward("perturb", schedule, x0, eps, t)
  alpha, sigma = _levels(schedule, t)
  return alpha * x0 + sigma * eps


def target(kind: str, schedule: Schedule, x0: X, eps: X, t: Rows) -> X:
  """Returns what a network of a kind is to predict; arguments as `perturb`.

  Args:
    kind: one of `KINDS`.
    schedule: one schedule.
    x0: data, [batch, ...].
    eps: the noise that perturbs it.
    t: times, one for each row, or one for all.

  Raises:
    TypeError, ValueError: no such kind, or an argument has the wrong type, shape or range.
  """
  check_kind("target", kind)
  x0, eps, t = _check_forward("target", schedule, x0, eps, t)
  if kind == "x0":
    return x0
  if kind == "eps":
    return eps
  if kind == "v":
    return prediction.to_v(x0, eps, *_levels(schedule, t))
  _, _, *rates = _levels_and_rates(schedule, t)
  return prediction.to_velocity(x0, eps, *rates)


def denoiser(kind: str, fn: Callable[..., Any], schedule: Any) -> Partial:
  """Returns the denoiser of a network of a kind; `fn` and `schedule` as `from_eps` takes them.

  Raises:
    TypeError: `fn` is not a function, or `schedule` not a schedule.
    ValueError: no such kind.
  """
  check_kind("denoiser", kind)
  return _CONSTRUCTORS[kind](fn, schedule)


def _check_forward(where, schedule, x0, eps, t):
  """Returns the arrays, and the times with axes of size 1 to multiply them."""
  schedules.check(where, schedule, one=True)
  x0, eps = (arguments.floating(where, name, x) for name, x in (("x0", x0), ("eps", eps)))
  if x0.shape != eps.shape:
    raise ValueError(
      f"{where}: x0 has shape {x0.shape} and eps {eps.shape}; they must be the same."
    )
  t = jnp.asarray(arguments.number(where, "t", t, 0, 1, rows=True), x0.dtype)
  _check_rows(where, "t", t, "x0", x0)
  return x0, eps, schedules.along(t, x0)


def _check_rows(where, argument, t, other, x):
  """Checks that there is one time, or one for each row of another argument."""
  if jnp.shape(t) not in ((), x.shape[:1]):
    raise ValueError(
      f"{where}: {argument} has shape {jnp.shape(t)}; it must be one time, or one for each row of"
      f" {other}, which has shape {x.shape}."
    )


def check_kind(where: str, kind: str) -> None:
  """Checks that a kind of prediction is one of `KINDS`.

  Raises:
    ValueError: it is not.
  """
  if not isinstance(kind, str) or kind not in KINDS:
    raise ValueError(f"{where}: kind={kind!r} must be one of {', '.join(KINDS)}.")


def check_shapes(
  network: str, predicted: Any, x: Mapping[str, Array], *, branches: bool = False
) -> None:
  """Checks that the output of a function has an array for each modality, of the right shape.

  With `branches` it may have one more leading axis, as for `guidance.mix`.

  Raises:
    TypeError: the output is not a dict.
    ValueError: a modality is left out, or has another shape than in `x`.
  """
  if not isinstance(predicted, Mapping):
    raise TypeError(
      f"{network} returned {type(predicted).__name__} where a dict with an array for each modality"
      f" is needed: {sorted(x)}."
    )
  for name, value in x.items():
    if name not in predicted:
      raise ValueError(
        f"{network} returned nothing for modality {name!r}, only {sorted(predicted)}. It must"
        " return an array for each modality."
      )
    shape = jnp.shape(predicted[name])
    if value.shape not in (shape, shape[1:] if branches else shape):
      raise ValueError(
        f"{network} returned shape {shape} for modality {name!r}, whose values have shape"
        f" {value.shape}; they must be the same."
      )


def _checked_pair(denoiser, x, t):
  pair = denoiser(x, t)
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise TypeError(
      f"denoiser returned {type(pair).__name__} where the pair (x0, eps) is needed. Make one of a"
      " network with solvers.from_eps, from_x0, from_v, from_score or from_velocity."
    )
  for kind, values in zip(("x0", "eps"), pair, strict=True):
    check_shapes(f"denoiser, for {kind},", values, x)
  return tuple(map(dict, pair))


def checked(where: str, denoiser: Any, argument: str = "denoiser") -> Partial:
  """Returns a denoiser whose results are checked while it is traced.

  Args:
    where: the function that takes it, for the message.
    denoiser: `(x, t) -> (x0, eps)`.
    argument: the argument of that function, for the message.

  Raises:
    TypeError: it is not a function; when it is called, it does not return a pair of dicts.
    ValueError: when it is called, a modality is left out or has another shape than in `x`.
  """
  return Partial(_checked_pair, arguments.function(where, argument, denoiser))


def _eps_pair(eps, x, alpha, sigma):
  return prediction.eps_to_x0(x, eps, alpha, sigma), eps


def _x0_pair(x0, x, alpha, sigma):
  return x0, prediction.x0_to_eps(x, x0, alpha, sigma)


def _v_pair(v, x, alpha, sigma):
  return prediction.v_to_x0(x, v, alpha, sigma), prediction.v_to_eps(x, v, alpha, sigma)


def _score_pair(score, x, alpha, sigma):
  return _eps_pair(prediction.score_to_eps(score, sigma), x, alpha, sigma)


def _velocity_pair(velocity, x, *levels):
  return tuple(
    convert(x, velocity, *levels)
    for convert in (prediction.velocity_to_x0, prediction.velocity_to_eps)
  )


def _levels(schedule, t):
  return schedule.alpha(t), schedule.sigma(t)


def _levels_and_rates(schedule, t):
  levels, rates = jax.jvp(lambda t: _levels(schedule, t), (t,), (jnp.ones_like(t),))
  return *levels, *rates


def _denoise(pair, levels, fn, schedule, x, t):
  x, t = arguments.modalities("denoiser", "x", x), dict(t)
  arguments.subset("denoiser", "x", x, "t", t)
  for name, value in x.items():
    _check_rows("denoiser", f"t[{name!r}]", t[name], f"x[{name!r}]", value)
  predicted = fn(x, t)
  check_shapes("the network", predicted, x, branches=True)
  x0, eps = {}, {}
  for name, value in x.items():
    modality_schedule = schedules.schedule_of(schedule, name)
    time = schedules.along(jnp.asarray(t[name]), value)
    value = arguments.floating("denoiser", f"x[{name!r}]", value)
    x0[name], eps[name] = pair(
      jnp.asarray(predicted[name]), value, *levels(modality_schedule, time)
    )
  return x0, eps


def _denoiser(maker, pair, fn, schedule, levels=_levels):
  fn = arguments.function(maker, "fn", fn)
  schedule = schedules.check(maker, schedule)
  return Partial(_denoise, Partial(pair), Partial(levels), fn, schedule)


def _warn_where_alpha_vanishes(constructor, schedule):
  """Warns once per schedule with alpha(1) = 0; one with traced parameters is not checked."""
  for each in schedule.values() if isinstance(schedule, Mapping) else (schedule,):
    try:
      with jax.ensure_compile_time_eval():
        vanishes = bool(each.alpha(jnp.ones(())) == 0)
    except jax.errors.ConcretizationTypeError:
      continue
    if vanishes:
      # A table's repr has a thousand numbers.
      _warn_once(
        f"{constructor}: the schedule {reprlib.repr(each)} has alpha(1) = 0, where eps does not"
        " determine x0. x0 is taken as 0 on the first move from t = 1, which makes every solver"
        " first order. Predict v, x0 or the velocity, or start the path at `schedule.t_max`."
      )


@functools.cache
def _warn_once(message):
  # Cached, since any `warnings.catch_warnings` makes Python forget which warnings it has issued.
  warnings.warn(message, stacklevel=4)


def from_eps(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts eps.

  Where alpha is 0, eps does not determine x0, which is taken as 0, the prior's mean. On a schedule
  with alpha(1) = 0 (`VPCosine`, `RectifiedFlow`) this makes the first move from t = 1 wrong, and
  every solver first order. Such a schedule warns, once: predict v, x0 or the velocity, or start the
  path at the schedule's `t_max`.

  Args:
    fn: `(x, t) -> dict` shaped as `x`, with an array for each modality, also for one that is
      given. Pass a function with parameters as a `Partial` with these as arguments, or as an object
      that is itself a pytree, such as a flax NNX or equinox module: `jax.jit` then uses new
      parameters without recompiling. Parameters that a function merely closes over are constants of
      a compiled sampler, which does not notice when they change.
    schedule: one schedule, or one for each modality.

  Returns:
    The denoiser.

  Raises:
    TypeError: `fn` is not a function, or `schedule` not a schedule; when the denoiser is called,
      `fn` does not return a dict.
    ValueError: when the denoiser is called, `fn` leaves out a modality or returns another shape.
  """
  denoiser = _denoiser("from_eps", _eps_pair, fn, schedule)
  _warn_where_alpha_vanishes("from_eps", schedule)
  return denoiser


def from_x0(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts x0; arguments as `from_eps`."""
  return _denoiser("from_x0", _x0_pair, fn, schedule)


def from_v(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts v = alpha eps - sigma x0; arguments as `from_eps`."""
  return _denoiser("from_v", _v_pair, fn, schedule)


def from_score(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts the score, -eps / sigma; it warns as `from_eps`."""
  denoiser = _denoiser("from_score", _score_pair, fn, schedule)
  _warn_where_alpha_vanishes("from_score", schedule)
  return denoiser


def from_velocity(fn: Callable[..., Any], schedule: Any) -> Partial:
  """The denoiser of a network that predicts the velocity, d(alpha)/dt x0 + d(sigma)/dt eps.

  Flow matching trains such networks. The two derivatives must be finite at both ends, as they are
  for `RectifiedFlow` (where the velocity is eps - x0) and `VPCosine`. Arguments as `from_eps`.
  """
  return _denoiser("from_velocity", _velocity_pair, fn, schedule, _levels_and_rates)


_CONSTRUCTORS = {"eps": from_eps, "v": from_v, "x0": from_x0, "velocity": from_velocity}
KINDS = tuple(_CONSTRUCTORS)
