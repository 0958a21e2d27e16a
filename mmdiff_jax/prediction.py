"""The quantities that a network may predict, and how each of them gives (x0, eps).

With x_t = alpha x_0 + sigma eps, and dots for derivatives with respect to t:

  score    = -eps / sigma                       (the gradient of log p_t at x_t)
  v        = alpha eps - sigma x_0              (Salimans and Ho 2022)
  velocity = d(alpha)/dt x_0 + d(sigma)/dt eps  (of the probability flow; Lipman et al. 2023)

Steps work with the pair (x0, eps): it needs no division by alpha(1) or sigma(0), which may both be
0. Each division below is guarded by `divide` where the other quantity stays finite; `divide` and
`root` also serve wherever else a norm or a standard deviation may be 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

X = Float[Array, "..."]


def divide(numerator: X, denominator: X) -> X:
  """numerator / denominator, and 0 (in gradients, too) where the denominator is 0."""
  safe = jnp.where(denominator == 0, 1, denominator)
  return jnp.where(denominator == 0, 0, numerator / safe)


def root(x: X) -> X:
  """The square root of x >= 0, with a gradient of 0 in place of an infinite one where x is 0."""
  return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def eps_to_x0(x: X, eps: X, alpha: X, sigma: X) -> X:
  """x_0 = (x_t - sigma eps) / alpha; 0, the prior's mean, where alpha is 0."""
  return divide(x - sigma * eps, alpha)


def x0_to_eps(x: X, x0: X, alpha: X, sigma: X) -> X:
  """eps = (x_t - alpha x_0) / sigma; 0, the prior's mean, where sigma is 0."""
  return divide(x - alpha * x0, sigma)


def v_to_x0(x: X, v: X, alpha: X, sigma: X) -> X:
  """x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)."""
  return (alpha * x - sigma * v) / (alpha**2 + sigma**2)


def v_to_eps(x: X, v: X, alpha: X, sigma: X) -> X:
  """eps = (sigma x_t + alpha v) / (alpha^2 + sigma^2)."""
  return (sigma * x + alpha * v) / (alpha**2 + sigma**2)


def to_v(x0: X, eps: X, alpha: X, sigma: X) -> X:
  """v = alpha eps - sigma x_0."""
  return alpha * eps - sigma * x0


def score_to_eps(score: X, sigma: X) -> X:
  """eps = -sigma score."""
  return -sigma * score


def eps_to_score(eps: X, sigma: X) -> X:
  """score = -eps / sigma; 0 where sigma is 0, where no score exists."""
  return -divide(eps, sigma)


def velocity_to_x0(x: X, velocity: X, alpha: X, sigma: X, alpha_rate: X, sigma_rate: X) -> X:
  """x_0 from the velocity; `alpha_rate` and `sigma_rate` are the derivatives, both finite."""
  return (sigma_rate * x - sigma * velocity) / (alpha * sigma_rate - alpha_rate * sigma)


def velocity_to_eps(x: X, velocity: X, alpha: X, sigma: X, alpha_rate: X, sigma_rate: X) -> X:
  """eps from the velocity; arguments as `velocity_to_x0`."""
  return (alpha * velocity - alpha_rate * x) / (alpha * sigma_rate - alpha_rate * sigma)


def to_velocity(x0: X, eps: X, alpha_rate: X, sigma_rate: X) -> X:
  """velocity = d(alpha)/dt x_0 + d(sigma)/dt eps."""
  return alpha_rate * x0 + sigma_rate * eps
