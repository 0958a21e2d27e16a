"""A Gaussian target, on which every step is linear: laws in closed form, nothing is sampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff_jax import multitime, noise as noise_lib, schedules, solvers

SIZES = {"a": 2, "b": 1}
NAMES = tuple(SIZES)
DIM = sum(SIZES.values())
COVARIANCE = np.array([[1.0, 0.3, 0.6], [0.3, 0.5, -0.2], [0.6, -0.2, 1.5]])
# E[b | a] and its variance.
REGRESSION = COVARIANCE[2, :2] @ np.linalg.inv(COVARIANCE[:2, :2])
VARIANCE = COVARIANCE[2, 2] - REGRESSION @ COVARIANCE[:2, 2]

SCHEDULES = {
  "vp_linear": schedules.VPLinear(),
  "sub_vp": schedules.SubVP(),
  "ve": schedules.VE(),
  "vp_cosine": schedules.VPCosine(),
  "rectified_flow": schedules.RectifiedFlow(),
  "table": schedules.Table(schedules.betas_linear(64, beta_min=1e-3, beta_max=0.3)),
}
DETERMINISTIC = {
  "euler": solvers.euler,
  "ddim": solvers.ddim(0.0),
  "heun": solvers.heun,
  "dpmpp_2m": solvers.dpmpp_2m,
  "unipc": solvers.unipc,
}
STOCHASTIC = {
  "euler_maruyama": solvers.euler_maruyama,
  "ancestral": solvers.ancestral,
  "ancestral_large": solvers.ancestral_large,
  "ddim_1": solvers.ddim(1.0),
  "ddim_half": solvers.ddim(0.5),
  "sde_dpmpp_2m": solvers.sde_dpmpp_2m,
}
SOLVERS = DETERMINISTIC | STOCHASTIC


def split(rows):
  return {"a": rows[:, :2], "b": rows[:, 2:]}


def join(x):
  return jnp.concatenate([x[name] for name in NAMES], axis=1)


def levels(schedule, t):
  """Returns alpha and sigma of every coordinate at a point of multi-time."""
  by_name = {name: schedules.schedule_of(schedule, name) for name in NAMES}
  values = [(by_name[n].alpha(t[n]), by_name[n].sigma(t[n]), size) for n, size in SIZES.items()]
  return tuple(jnp.concatenate([jnp.full(v[2], v[i]) for v in values]) for i in (0, 1))


def law(schedule, t, covariance=COVARIANCE):
  alpha, sigma = levels(schedule, t)
  return alpha[:, None] * covariance * alpha + jnp.diag(sigma**2)


def oracle(schedule, covariance=COVARIANCE):
  """Returns the exact E[x_0 | x] and E[eps | x] of N(0, covariance) at any point of multi-time."""

  def denoise(x, t):
    alpha, sigma = levels(schedule, t)
    whitened = jnp.linalg.solve(law(schedule, t, covariance), join(x).T).T
    return split(whitened * alpha @ covariance), split(whitened * sigma)

  return denoise


def at(path, index):
  return {name: value[index] for name, value in path.times.items()}


def padded(path, num_steps):
  """Returns the path with a rest at its end, so that paths of any length compile once."""
  return multitime.Path(
    {n: jnp.pad(t, (0, num_steps + 1 - len(t)), mode="edge") for n, t in path.times.items()}
  )


@functools.partial(jax.jit, static_argnums=0)
def matrix(solver, schedule, path, covariance=COVARIANCE):
  """Returns M of a deterministic solver: a point x at the path's start ends at M x."""
  basis = split(jnp.eye(DIM))
  denoise = oracle(schedule, covariance)
  return join(solvers.sample(jax.random.key(0), denoise, schedule, basis, path, solver=solver)).T


@functools.partial(jax.jit, static_argnums=0)
def _propagated(solver, schedule, path, start, covariance):
  """Applies P <- A P A' + B B' along the path, to a point and its previous x0 if there is one."""
  denoise = oracle(schedule, covariance)
  remembers = bool(jax.tree.leaves(jax.eval_shape(solver.init, split(jnp.eye(DIM)))))
  size = 2 * DIM if remembers else DIM

  def step(carry, inputs):
    p, lengths = carry
    index, t, s = inputs
    key = jax.random.fold_in(jax.random.key(0), index)

    def move(rows):
      x = split(rows[:, :DIM])
      state = solver.init(x)
      if remembers:
        leads = split(rows[:, DIM:])
        state = {n: state[n]._replace(lead=leads[n], length=lengths[n]) for n in NAMES}
      x, state = solver.step(key, denoise, schedule, x, t, s, state)
      if not remembers:
        return join(x), lengths
      leads = join({n: state[n].lead for n in NAMES})
      return jnp.concatenate([join(x), leads], axis=1), {n: state[n].length for n in NAMES}

    # Mapped, so that the step is compiled once, and both see the same noise.
    moved, kept = jax.vmap(move)(jnp.stack([jnp.eye(size), jnp.zeros((size, size))]))
    of_basis, of_zero = moved
    linear = (of_basis - of_zero).T
    kept = jax.tree.map(lambda length: length[0], kept)
    # At x = 0 the mean is 0, so the output is the noise times its scale.
    zeros = split(jnp.zeros((size, DIM)))
    noise = {name: noise_lib.normal_like(key, name, x) for name, x in zeros.items()}
    scale = jnp.pad((of_zero[:, :DIM] / join(noise))[0], (0, size - DIM))
    return (linear @ p @ linear.T + jnp.diag(scale**2), kept), None

  starts, ends = ({n: v[i] for n, v in path.times.items()} for i in (slice(-1), slice(1, None)))
  start = jnp.pad(start, (0, size - DIM))
  lengths = dict.fromkeys(NAMES, jnp.array(jnp.inf))
  inputs = (jnp.arange(len(path.times["a"]) - 1), starts, ends)
  return jax.lax.scan(step, (start, lengths), inputs)[0][0][:DIM, :DIM]


def end_covariance(solver, schedule, path, covariance=COVARIANCE):
  """Returns the covariance at the path's end, from the exact law at its start."""
  start = law(schedule, at(path, 0), covariance)
  if solver in DETERMINISTIC.values():
    moved = matrix(solver, schedule, path, covariance)
    return moved @ start @ moved.T
  return _propagated(solver, schedule, path, start, covariance)


def slope(errors, counts):
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]
