"""Exact likelihoods by the probability-flow ODE (Chen et al. 2018; Song et al. 2021, App. D.2).

With norm = sqrt(alpha^2 + sigma^2), phi = atan(sigma / alpha) and y = x / norm the flow is

  dy/d(phi) = cos(phi) eps - sin(phi) x0,                                                       (1)

regular at both ends of every schedule. Along it the density of y changes by

  d log p(y) / d(phi) = -div (cos(phi) eps - sin(phi) x0),                                      (2)

so that log p of an example is log p of the point where it arrives at t = 1, plus the integral of
the divergence on the way, plus sum log(norm) at the end minus the same at the start. Given
modalities stay at time 0 and make it conditional; absent ones stay at time 1 and are marginalised
out.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import numpy as np

from mmdiff_jax import arguments, multitime, noise, schedules
from mmdiff_jax.diffusion import checked, Denoiser
from mmdiff_jax.solvers.moves import is_floating
from mmdiff_jax.solvers.sampling import Modalities, start

Trace = Literal["exact", "rademacher", "gaussian"]


def log_likelihood(
  key: PRNGKeyArray,
  denoiser: Denoiser,
  schedule: Any,
  x: Modalities,
  path: multitime.Path,
  *,
  trace: Trace = "exact",
  num_probes: int = 1,
) -> Float[Array, " batch"]:
  """Returns log p of the modalities that move along a path, at its end, given those that stay at 0.

  (1) and (2) are integrated together up the path, a step at a time, by the classical Runge-Kutta
  method of fourth order: 4 N evaluations for N steps, each with its derivatives. Can be jitted
  (with `trace` and `num_probes` static), vmapped and differentiated.

  Args:
    key: randomness of the probes; a row's probes depend on no other row.
    denoiser: `(x, t) -> (x0, eps)`, differentiable; its rows must not depend on one another.
    schedule: one schedule, or one for each modality.
    x: the clean examples; given modalities at their values, absent ones at a draw of the prior.
      Integers are treated as in `sample`.
    path: a path as for sampling, such as `multitime.conditional`, from time 1 for modalities that
      move. Any path gives the same number in the limit of many steps.
    trace: "exact", with one derivative for each dimension of `x`; or Hutchinson's estimate of the
      divergence, unbiased, with Rademacher or Gaussian probes.
    num_probes: number of probes, which cost one derivative each.

  Returns:
    log p in nats, with N(0, sigma(1)^2 I) for the distribution at t = 1.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: `x` and `path` differ in their modalities, the path of a modality that moves does
      not begin at time 1 (not checked where it is traced), `trace` is none of the three, or
      `num_probes` is below 1.
  """
  arguments.key("log_likelihood", key)
  arguments.integer("log_likelihood", "num_probes", num_probes, 1)
  x = start("log_likelihood", "x", x, path)
  schedules.check("log_likelihood", schedule, x)
  denoiser = checked("log_likelihood", denoiser)
  if trace not in ("exact", "rademacher", "gaussian"):
    raise ValueError(
      f"log_likelihood: trace={trace!r} must be 'exact', 'rademacher' or 'gaussian'."
    )
  _check_starts(path)
  by_name = {name: schedules.schedule_of(schedule, name) for name in x}
  up = {name: jnp.asarray(times[::-1]) for name, times in path.times.items()}
  # Integers stand still: the network receives them unchanged, and there is nothing to integrate.
  flowing = {name: v for name, v in x.items() if is_floating(v)}
  constant = {name: value for name, value in x.items() if name not in flowing}
  tangents = _tangents(key, flowing, trace, num_probes)

  def flow(y, phi, t, turned):
    """Evaluates (1) and the divergence of (2), each modality's times the angle that it turns by."""

    def slope(y):
      x0, eps = denoiser(
        constant | {n: _norm(by_name[n], t[n]) * value for n, value in y.items()}, t
      )
      return {
        name: turned[name] * (jnp.cos(phi[name]) * eps[name] - jnp.sin(phi[name]) * x0[name])
        for name in y
      }

    # One evaluation for the slope and all of its derivatives.
    value, derivative = jax.linearize(slope, y)

    def divergence(tangent):
      change = derivative(tangent)
      return sum(jnp.sum(change[n] * tangent[n], tuple(range(1, y[n].ndim))) for n in y)

    total = jax.lax.map(divergence, tangents).sum(axis=0)
    return value, total if trace == "exact" else total / num_probes

  def step(carry, times):
    y, log_det = carry
    t, s = times
    begin, end = _angles(by_name, t), _angles(by_name, s)
    turned = {name: end[name] - begin[name] for name in x}
    middle = {name: 0.5 * (begin[name] + end[name]) for name in x}
    halfway = {
      name: jnp.where(turned[name] == 0, t[name], _time_of_angle(by_name[name], middle[name]))
      for name in x
    }

    def ahead(slope, fraction):
      return {name: y[name] + fraction * slope[name] for name in y}

    k1, d1 = flow(y, begin, t, turned)
    k2, d2 = flow(ahead(k1, 0.5), middle, halfway, turned)
    k3, d3 = flow(ahead(k2, 0.5), middle, halfway, turned)
    k4, d4 = flow(ahead(k3, 1.0), end, s, turned)
    y = {n: y[n] + (k1[n] + 2 * k2[n] + 2 * k3[n] + k4[n]) / 6 for n in y}
    return (y, log_det + (d1 + 2 * d2 + 2 * d3 + d4) / 6), None

  first, last = ({name: times[i] for name, times in up.items()} for i in (0, -1))
  y = {name: value / _norm(by_name[name], first[name]) for name, value in flowing.items()}
  zero = jnp.zeros(len(next(iter(x.values()))), jnp.result_type(float, *x.values()))
  starts = {name: times[:-1] for name, times in up.items()}
  ends = {name: times[1:] for name, times in up.items()}
  (y, log_prob), _ = jax.lax.scan(step, (y, zero), (starts, ends))
  for name, value in y.items():
    arrived = _norm(by_name[name], last[name])
    sigma = by_name[name].sigma(jnp.ones_like(last[name]))
    each = -0.5 * (arrived * value / sigma) ** 2 - jnp.log(sigma) - 0.5 * math.log(2 * math.pi)
    each += jnp.log(arrived) - jnp.log(_norm(by_name[name], first[name]))
    total = jnp.sum(each, tuple(range(1, value.ndim)))
    log_prob += jnp.where(first[name] == last[name], 0, total)
  return log_prob


def bits_per_dim(
  log_prob: Float[Array, "..."], num_dims: int, bin_width: float = 1.0
) -> Float[Array, "..."]:
  """Converts a log-density in nats to bits per dimension of the data before dequantisation.

  Args:
    log_prob: log-densities in nats.
    num_dims: number of components of an example.
    bin_width: distance between neighbouring values of the data, in the model's units: 1/255 for
      8-bit images in [0, 1], 2/255 in [-1, 1] (to which uniform noise was added).

  Returns:
    -(log_prob / num_dims + log(bin_width)) / log(2).

  Raises:
    TypeError, ValueError: an argument has the wrong type or range.
  """
  log_prob = jnp.asarray(arguments.array("bits_per_dim", "log_prob", log_prob))
  arguments.integer("bits_per_dim", "num_dims", num_dims, 1)
  bin_width = arguments.scalar("bits_per_dim", "bin_width", bin_width, above=0)
  return -(log_prob / num_dims + math.log(bin_width)) / math.log(2)


def _norm(schedule, t):
  return jnp.hypot(schedule.alpha(t), schedule.sigma(t))


def _angles(by_name, t):
  return {
    name: jnp.arctan2(by_name[name].sigma(t[name]), by_name[name].alpha(t[name]))
    for name in by_name
  }


def _time_of_angle(schedule, phi):
  # Where the time stands still at an end, any angle inside will do.
  inside = jnp.clip(phi, 1e-6, 0.5 * math.pi - 1e-6)
  return schedule.time(-2 * jnp.log(jnp.tan(inside)))


def _check_starts(path):
  for name, times in path.times.items():
    if isinstance(times, jax.core.Tracer):
      continue
    times = np.asarray(times)
    if times[0] != 1 and np.any(times != times[0]):
      raise ValueError(
        f"log_likelihood: the path of {name!r} begins at time {times[0]:g}, but must begin at 1,"
        " where the distribution is that of the prior. Take a path that falls from 1, such as"
        " multitime.joint, not its reverse."
      )


def _tangents(key, x, trace, num_probes):
  """Returns directions for the divergence, on a leading axis: unit vectors, or probes."""
  if trace == "exact":
    sizes = {name: math.prod(value.shape[1:]) for name, value in x.items()}
    total, before, axes = sum(sizes.values()), 0, {}
    for name, value in x.items():
      ones = jnp.eye(total, sizes[name], -before, dtype=value.dtype)
      ones = ones.reshape(total, 1, *value.shape[1:])
      axes[name] = jnp.broadcast_to(ones, (total, *value.shape))
      before += sizes[name]
    return axes
  keys = jax.random.split(key, num_probes)
  draws = {
    name: jax.vmap(lambda k, n=name, v=value: noise.normal_like(k, n, v))(keys)
    for name, value in x.items()
  }
  return draws if trace == "gaussian" else jax.tree.map(jnp.sign, draws)
