"""The forward process of MT-Diffusion: several modalities enter one diffusion space Z.

The paper's full text is not public here. The equations below were derived again from its
abstract and summaries, and are checked against closed forms in `tests/laws/mt_diffusion_test.py`.

Each modality's encoder maps it into Z, and E(X) = sum_i omega_i E_i(x_i) is their aggregate. Every
step adds some of it,

  q(z_t | z_{t-1}, X) = N(sqrt(alpha_t) (z_{t-1} + w_t E), (1 - alpha_t) I),                (1)

so that with a_t = sqrt(alpha_1 .. alpha_t), sigma_t^2 = 1 - a_t^2, and by induction over t

  q(z_t | z_0, X) = N(a_t (z_0 + W_t E), sigma_t^2 I),  W_t = sum_{s <= t} w_s / a_{s-1}.   (2)

Hence for any two entries s < t of the table, with r = a_t / a_s,

  q(z_t | z_s, X) = N(r z_s + a_t (W_t - W_s) E, (1 - r^2) I),                              (3)

and by Bayes' rule on (2) at s and (3), with fresh = (1 - r^2) / sigma_t^2,

  q(z_s | z_t, z_0, X) = N(mean, sigma_s^2 fresh I),
  mean = r (sigma_s / sigma_t)^2 (z_t - a_t (W_t - W_s) E) + a_s fresh (z_0 + W_s E).       (4)

z_t = a_t (z_0 + W_t E) + sigma_t eps in (4) gives the eps form, DDPM's mean minus what was added:

  mean = (z_t - (1 - r^2) / sigma_t eps) / r - a_s (W_t - W_s) E.                           (5)

With s = t - 1 the last term is w_t E. With w = 0 all of this is DDPM (Ho et al. 2020), and (4) on a
strided table is DDIM with eta = 1 (Song, Meng and Ermon 2021).

z_T is N(0, I), from which generation starts, only if a_T (|z_0| + |W_T| |E|) is about 0.

Times are those of `schedules.Table`: n / T for the n-th of T entries.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mmdiff_jax import arguments, noise, prediction, schedules
from mmdiff_jax.schedules import along
from mmdiff_jax.solvers import Solver

Z = Float[Array, "batch ..."]
Time = Float[Array, ""] | Float[Array, " batch"]

# The bound of `check_prior`: KL(q(z_T | X) || N(0, I)) stays below 0.0013 nats per component.
LARGEST_TRACE = 0.05


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Process:
  """The forward process (1) and the distributions (2) to (5) that follow from it.

  Attributes:
    table: the alphas.
    weights: w_1, ..., w_T; `no_weights`, `linear_weights` and `constant_weights` make some.

  Raises:
    TypeError: `table` is not a `Table`, or `weights` not a sequence of numbers.
    ValueError: the numbers of weights and of the table's entries differ.
  """

  table: schedules.Table
  weights: tuple[float, ...]

  def __post_init__(self):
    if not isinstance(self.table, schedules.Table):
      raise TypeError(f"Process: table={self.table!r} must be a schedules.Table.")
    weights = arguments.array("Process", "weights", self.weights)
    if not np.all(np.isfinite(weights)):
      raise ValueError("Process: weights must be finite.")
    object.__setattr__(
      self, "weights", tuple(map(float, arguments.sequence("Process", "weights", weights)))
    )
    if len(self.weights) != len(self.table.betas):
      raise ValueError(
        f"Process: {len(self.weights)} weights for a table of {len(self.table.betas)} entries;"
        " there must be one for each."
      )

  @property
  def plain(self) -> bool:
    """Whether w = 0, so that it is DDPM and any solver can be used."""
    return not any(self.weights)

  @functools.cached_property
  def _totals(self):
    """W_0, ..., W_T in float64."""
    a = np.cumprod(np.sqrt(1 - np.array(self.table.betas)))
    return np.concatenate([[0.0], np.cumsum(self.weights / np.concatenate([[1.0], a[:-1]]))])

  def total(self, t: Time) -> Time:
    """W_t."""
    index = jnp.round(t * len(self.weights)).astype(int)
    return jnp.asarray(self._totals, t.dtype)[index]

  def _levels(self, t, z):
    """a_t, sigma_t and W_t, to multiply `z`."""
    return (along(level(t), z) for level in (self.table.alpha, self.table.sigma, self.total))

  def step(self, z: Z, aggregate: Z, s: Time, t: Time) -> tuple[Z, Array]:
    """Mean and standard deviation of q(z_t | z_s, X), (3), for times s < t."""
    (a_s, _, total_s), (a_t, _, total_t) = self._levels(s, z), self._levels(t, z)
    r = a_t / a_s
    return r * z + a_t * (total_t - total_s) * aggregate, jnp.sqrt(1 - r**2)

  def marginal(self, z0: Z, aggregate: Z, t: Time) -> tuple[Z, Array]:
    """Mean and standard deviation of q(z_t | z_0, X), (2)."""
    a, sigma, total = self._levels(t, z0)
    return a * (z0 + total * aggregate), sigma

  def posterior(self, z: Z, z0: Z, aggregate: Z, t: Time, s: Time) -> tuple[Z, Array]:
    """Mean and standard deviation of q(z_s | z_t, z_0, X), (4), for times s < t."""
    (a_s, sigma_s, total_s), (a_t, sigma_t, total_t) = self._levels(s, z), self._levels(t, z)
    shrink = sigma_s / sigma_t
    fresh = jnp.maximum(1 - (shrink * a_t / a_s) ** 2, 0)
    left = z - a_t * (total_t - total_s) * aggregate
    mean = a_t / a_s * shrink**2 * left + a_s * fresh * (z0 + total_s * aggregate)
    return mean, sigma_s * jnp.sqrt(fresh)

  def posterior_eps(self, z: Z, eps: Z, aggregate: Z, t: Time, s: Time) -> tuple[Z, Array]:
    """`posterior` in its eps form, (5)."""
    (a_s, sigma_s, total_s), (a_t, sigma_t, total_t) = self._levels(s, z), self._levels(t, z)
    r = a_t / a_s
    start = prediction.divide(z - (1 - r**2) / sigma_t * eps, r)
    mean = start - a_s * (total_t - total_s) * aggregate
    return mean, sigma_s / sigma_t * jnp.sqrt(1 - r**2)

  def start(self, z: Z, eps: Z, aggregate: Z, t: Time) -> Z:
    """z_0 from eps, by (2)."""
    a, sigma, total = self._levels(t, z)
    return prediction.eps_to_x0(z, eps, a, sigma) - total * aggregate

  def grid(self, num_steps: int, power: float = 1.0) -> Float[np.ndarray, " {num_steps}"]:
    """Returns `num_steps` times of the table from 1 down to its first entry.

    Args:
      num_steps: number of times.
      power: at least 1; the entries' roots of this order are even up to rounding. 1 makes even
        steps, larger powers are denser towards the data. No entry occurs twice.

    Raises:
      ValueError: `num_steps` is not an integer from 2 to the number of the table's entries, or
        `power` is below 1.
    """
    size = len(self.weights)
    if not isinstance(num_steps, int | np.integer) or not 2 <= num_steps <= size:
      raise ValueError(f"{num_steps} steps on a table of {size} entries: take from 2 to {size}.")
    if power < 1:
      raise ValueError(f"power={power} must be at least 1, which makes even steps.")
    even = np.linspace(size ** (1 / power), 1, num_steps)
    entries = np.round(even**power)[::-1]
    rank = np.arange(num_steps)
    return (np.maximum.accumulate(entries - rank) + rank)[::-1] / size

  def check_prior(self, start: float, aggregate: float) -> None:
    """Checks that z_T is N(0, I), as far as these magnitudes can tell.

    Args:
      start: root mean square of the components of z_0.
      aggregate: root mean square of the components of E.

    Raises:
      ValueError: a_T (start + |W_T| aggregate), which should be about 0, exceeds `LARGEST_TRACE`.
    """
    a_end = float(np.prod(np.sqrt(1 - np.array(self.table.betas))))
    trace = a_end * (start + abs(self._totals[-1]) * aggregate)
    if trace > LARGEST_TRACE:
      raise ValueError(
        "the distribution at the last step is not N(0, I), from which generation starts: what is"
        f" left of the data there is sqrt(abar_T) (|z_0| + |W_T| |E|) = {a_end:.2g} * ({start:.2g}"
        f" + {abs(self._totals[-1]):.3g} * {aggregate:.2g}) = {trace:.2g} per component, and must"
        f" be below {LARGEST_TRACE}. Take more steps or larger betas, or weights w_t that are"
        " smaller near the end."
      )


def no_weights(table: schedules.Table) -> tuple[float, ...]:
  """w = 0."""
  return (0.0,) * len(table.betas)


def linear_weights(table: schedules.Table, total: float) -> tuple[float, ...]:
  """w_t = total a_{t-1} / T, so that W_t = total t / T and a_T W_T vanishes with a_T."""
  a = np.sqrt(np.cumprod(1 - np.array((0.0, *table.betas[:-1]))))
  return tuple((total * a / len(a)).tolist())


def constant_weights(table: schedules.Table, total: float) -> tuple[float, ...]:
  """w_t = total / T: what is added last still remains at T, so only a small total is accepted."""
  return (total / len(table.betas),) * len(table.betas)


def posterior_sampling(process: Process) -> Solver:
  """Draws from (4) with z_0 and E as estimated at each step, for any w: N evaluations.

  Its `denoiser` is not one of z but `(z, t) -> (z_0, E)`. With w = 0 it is `solvers.ancestral`.
  """

  def step(key, denoiser, schedule, x, t, s, state):
    del schedule
    z0, aggregate = denoiser(x, t)
    moved = {}
    for name, z in x.items():
      mean, std = process.posterior(z, z0[name], aggregate[name], t[name], s[name])
      moved[name] = mean + std * noise.normal_like(key, name, z)
    return moved, state

  return Solver(lambda x: (), step, lambda num_steps: num_steps)
