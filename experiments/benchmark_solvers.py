"""Times the loop of the solvers without a network; `experiments.benchmark solvers` runs it.

The data are N(0.5, 0.7^2) in every dimension. Their denoiser and score have a closed form at almost
no cost, so that the benchmark times the loop, the arithmetic of a step and the noise.
`solvers.sample` is measured against a `lax.scan` of the same steps written by hand, and with
`--against=diffrax` also against Diffrax at the same times: Euler-Maruyama for the reverse SDE, Heun
and Euler for the probability-flow ODE (ours is `ddim(0.0)`, which is of order 1, too).

Diffrax is measured in its quickest setup (`UnsafeBrownianPath`, `ForwardMode`, no bound on the
number of steps, errors not thrown), and for the SDE also in its default setup
(`VirtualBrownianTree`, which draws the same path again for any steps).
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments import timing
from mmdiff_jax import multitime, noise, schedules, solvers
from mmdiff_jax.errors import UserError

SCHEDULE = schedules.VPLinear()
MEAN, STD = 0.5, 0.7
SOLVERS = {
  "euler_maruyama": solvers.euler_maruyama,
  "euler": solvers.euler,
  "ddim": solvers.ddim(0.0),
  "heun": solvers.heun,
  "dpmpp_2m": solvers.dpmpp_2m,
}
# Diffrax's contestants, and the solver of ours that does the same.
COUNTERPARTS = {
  "diffrax_unsafe": "euler_maruyama",
  "diffrax_tree": "euler_maruyama",
  "diffrax_heun": "heun",
  "diffrax_euler": "ddim",
}
# These draw noise and take many times as long as the others. Only the others are called `burst`
# times.
STOCHASTIC = ("euler_maruyama", "euler_maruyama_scan", "noise", "diffrax_unsafe", "diffrax_tree")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the benchmark.

  Attributes:
    rows: number of samples.
    dims: number of dimensions of a sample.
    steps: N; the times are `multitime.uniform_grid`, since Diffrax is quickest with equal steps.
    burst: number of calls of a deterministic loop that are timed together.
  """

  rows: int = 1000
  dims: int = 80
  steps: int = 1000
  burst: int = 10


def run(sizes: Sizes, *, against: str | None, rounds: int) -> dict[str, Any]:
  """Measures all contestants in turn, `rounds` times.

  Returns:
    "conditions"; "ms" and "median_ms" of `timing.measure` for each of `SOLVERS`, the same names
    with `_scan` (written by hand), `noise` (the noise of Euler-Maruyama alone), and with a
    counterpart each of `COUNTERPARTS` (`diffrax_tree` in one round); "ratios" of medians: "scan",
    ours to those written by hand, "noise", the noise to Euler-Maruyama, and "diffrax", ours to
    Diffrax's.

  Raises:
    UserError: the counterpart is not installed.
  """
  results = {"conditions": timing.conditions(rounds, sizes)}
  results |= timing.measure(contestants(sizes, against), rounds, once=("diffrax_tree",))
  median = results["median_ms"]
  results["ratios"] = {
    "scan": {name: median[name] / median[f"{name}_scan"] for name in SOLVERS},
    "noise": median["noise"] / median["euler_maruyama"],
  }
  if against:
    results["ratios"]["diffrax"] = {
      theirs: median[ours] / median[theirs] for theirs, ours in COUNTERPARTS.items()
    }
  return results


def table(results: Mapping[str, Any]) -> str:
  """Formats the results as a table."""
  sizes, ratios = results["conditions"]["sizes"], results["ratios"]
  rows = []
  for name in SOLVERS:
    rows += [(name, name, "ms"), ("the same steps in a scan by hand", f"{name}_scan", "ms")]
  rows += [
    ("the noise of euler_maruyama alone", "noise", "ms"),
    ("Diffrax: Euler-Maruyama, UnsafeBrownianPath", "diffrax_unsafe", "ms"),
    ("Diffrax: the same, VirtualBrownianTree", "diffrax_tree", "ms"),
    ("Diffrax: Heun", "diffrax_heun", "ms"),
    ("Diffrax: Euler", "diffrax_euler", "ms"),
  ]
  lines = [
    f"{sizes['rows']} samples of {sizes['dims']} numbers, {sizes['steps']} steps, exact score",
    *timing.lines(results, rows),
    "Ratios of medians, ours to a scan by hand: "
    + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios["scan"].items())
    + f"; the noise takes {ratios['noise']:.0%} of euler_maruyama.",
  ]
  if "diffrax" in ratios:
    lines.append(
      "Ratios of medians, ours to Diffrax: "
      + ", ".join(
        f"{COUNTERPARTS[name]} to {name} {ratio:.3f}" for name, ratio in ratios["diffrax"].items()
      )
    )
  return "\n".join(lines)


def contestants(sizes: Sizes, against: str | None) -> dict[str, timing.Contestant]:
  """Makes the compiled contestants of `run`; each call returns the final samples."""
  loops = _ours(sizes) | (_diffrax(sizes) if against else {})
  bursts = {name: 1 if name in STOCHASTIC else sizes.burst for name in loops}
  return {
    name: (_compiled(loop, sizes, bursts[name]), bursts[name]) for name, loop in loops.items()
  }


def start(sizes: Sizes) -> Float[Array, "rows dims"]:
  """Draws the start of all paths, at t = 1."""
  return jax.random.normal(noise.make_key(0), (sizes.rows, sizes.dims))


def _compiled(loop, sizes, burst):
  """Makes the function `() -> x` that calls `loop`, `(key, x) -> (x, steps)`, `burst` times."""
  key, x = noise.make_key(1), start(sizes)
  program = jax.jit(loop).lower(key, x).compile()

  def call():
    for _ in range(burst):
      end, steps = jax.block_until_ready(program(key, x))
    # Diffrax accumulates its times, so that rounding errors could add a step.
    assert steps == sizes.steps, f"{steps} steps instead of {sizes.steps}"
    return end

  return call


def _distance(x, t):
  """Computes (x - mean) / variance, with both moments those of x at time `t`."""
  alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
  return (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


def _denoiser(x, t):
  x, t = x["x"], t["x"]
  distance = _distance(x, t)
  x0 = MEAN + SCHEDULE.alpha(t) * STD**2 * distance
  return {"x": x0}, {"x": SCHEDULE.sigma(t) * distance}


def _ours(sizes):
  grid = multitime.uniform_grid(sizes.steps)

  def sample(solver, key, x):
    path = multitime.joint(["x"], sizes.steps, grid=grid)
    end = solvers.sample(key, _denoiser, SCHEDULE, {"x": x}, path, solver=solver)
    return end["x"], sizes.steps

  def scan(solver, key, x):
    def step(carry, inputs):
      index, t, s = inputs
      step_key, _ = jax.random.split(jax.random.fold_in(key, index))
      x, state = carry
      return solver.step(step_key, _denoiser, SCHEDULE, x, {"x": t}, {"x": s}, state), None

    start = {"x": x}, solver.init({"x": x})
    (end, _), _ = jax.lax.scan(step, start, (jnp.arange(sizes.steps), grid[:-1], grid[1:]))
    return end["x"], sizes.steps

  def draw_noise(key, x):
    def step(x, index):
      step_key, _ = jax.random.split(jax.random.fold_in(key, index))
      return x + noise.normal_like(step_key, "x", x), None

    return jax.lax.scan(step, x, jnp.arange(sizes.steps))[0], sizes.steps

  loops = {"noise": draw_noise}
  for name, solver in SOLVERS.items():
    loops[name] = functools.partial(sample, solver)
    loops[f"{name}_scan"] = functools.partial(scan, solver)
  return loops


def _diffrax(sizes):
  try:
    import diffrax
    import lineax
  except ImportError as error:
    raise UserError(
      "--against=diffrax needs Diffrax, which is not installed. Run pip install 'diffrax>=0.7',"
      " or omit the flag."
    ) from error

  quickest = {"adjoint": diffrax.ForwardMode(), "max_steps": None, "throw": False}

  def solve(terms, solver, x, **options):
    solution = diffrax.diffeqsolve(terms, solver, 1.0, 0.0, -1.0 / sizes.steps, x, **options)
    return solution.ys[0], solution.stats["num_steps"]

  def drift(weight, t, x, args):
    """Computes the drift of the reverse SDE (weight 1) or the probability-flow ODE (weight 1/2)."""
    del args
    return SCHEDULE.drift(t) * x + weight * SCHEDULE.diffusion(t) ** 2 * _distance(x, t)

  def diffusion(t, x, args):
    del args
    return lineax.DiagonalLinearOperator(jnp.broadcast_to(SCHEDULE.diffusion(t), x.shape))

  def sde(brownian, options, key, x):
    terms = diffrax.MultiTerm(
      diffrax.ODETerm(functools.partial(drift, 1.0)),
      diffrax.ControlTerm(diffusion, brownian(shape=x.shape, key=key)),
    )
    return solve(terms, diffrax.Euler(), x, **options)

  def ode(solver, key, x):
    del key
    return solve(diffrax.ODETerm(functools.partial(drift, 0.5)), solver, x, **quickest)

  tree = functools.partial(diffrax.VirtualBrownianTree, 0.0, 1.0, 0.5 / sizes.steps)
  return {
    "diffrax_unsafe": functools.partial(sde, diffrax.UnsafeBrownianPath, quickest),
    "diffrax_tree": functools.partial(sde, tree, {}),
    "diffrax_heun": functools.partial(ode, diffrax.Heun()),
    "diffrax_euler": functools.partial(ode, diffrax.Euler()),
  }
