"""Times the loop of the solvers without a network; `experiments.benchmark solvers` runs it.

The data are N(0.5, 0.7^2) in every dimension, whose denoiser and score are known and cost next to
nothing, so that the loop, the arithmetic of a step and the noise are what is timed.
`solvers.sample` is measured against a `lax.scan` of the same steps written by hand, and with
`--against=diffrax` against Diffrax on the same times: the reverse SDE by Euler-Maruyama, the
probability-flow ODE by Heun and by Euler (ours is `ddim(0.0)`, which is of order 1, too).

Of Diffrax the quickest set-up is measured (`UnsafeBrownianPath`, `ForwardMode`, no bound on the
number of steps, errors not thrown), and for the SDE also the one that it takes by default
(`VirtualBrownianTree`, which redraws the same path for any steps).
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
MEAN, DEVIATION = 0.5, 0.7
SOLVERS = {
  "euler_maruyama": solvers.euler_maruyama,
  "euler": solvers.euler,
  "ddim": solvers.ddim(0.0),
  "heun": solvers.heun,
  "dpmpp_2m": solvers.dpmpp_2m,
}
# Diffrax's contestants, and which of ours does the same.
COUNTERPARTS = {
  "diffrax_unsafe": "euler_maruyama",
  "diffrax_tree": "euler_maruyama",
  "diffrax_heun": "heun",
  "diffrax_euler": "ddim",
}
# These draw noise and take many times as long as the others, which are called `burst` times.
STOCHASTIC = ("euler_maruyama", "euler_maruyama_scan", "noise", "diffrax_unsafe", "diffrax_tree")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured.

  Attributes:
    rows: number of samples.
    dims: size of a sample.
    steps: N; the times are `multitime.uniform_grid`, since Diffrax is quickest at equal steps.
    burst: calls of a deterministic loop that are timed at once.
  """

  rows: int = 1000
  dims: int = 80
  steps: int = 1000
  burst: int = 10


def run(sizes: Sizes, *, against: str | None, rounds: int) -> dict[str, Any]:
  """Measures all contestants in turn, `rounds` times.

  Returns:
    "conditions"; "ms" and "median_ms" of `timing.measure` for each of `SOLVERS`, the same with
    `_scan` (written by hand), `noise` (the noise of Euler-Maruyama, nothing else), and with a
    counterpart each of `COUNTERPARTS` (`diffrax_tree` in one round); "ratios" of medians:
    "scan" of ours to those written by hand, "noise" to Euler-Maruyama, and "diffrax" of ours to
    its.

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
  """The results for a person to read."""
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
  """What `run` measures, compiled; each call returns the end of the samples' paths."""
  loops = _ours(sizes) | (_diffrax(sizes) if against else {})
  bursts = {name: 1 if name in STOCHASTIC else sizes.burst for name in loops}
  return {
    name: (_compiled(loop, sizes, bursts[name]), bursts[name]) for name, loop in loops.items()
  }


def start(sizes: Sizes) -> Float[Array, "rows dims"]:
  """Where all paths start, at t = 1."""
  return jax.random.normal(noise.make_key(0), (sizes.rows, sizes.dims))


def _compiled(loop, sizes, burst):
  """The function `() -> x` that calls `loop`, `(key, x) -> (x, steps)`, so many times."""
  key, x = noise.make_key(1), start(sizes)
  program = jax.jit(loop).lower(key, x).compile()

  def call():
    for _ in range(burst):
      end, steps = jax.block_until_ready(program(key, x))
    # Diffrax adds up its times, so that rounding could cost it a step more.
    assert steps == sizes.steps, f"{steps} steps instead of {sizes.steps}"
    return end

  return call


def _distance(x, t):
  """(x - its mean) / its variance at time `t`."""
  alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
  return (x - alpha * MEAN) / ((alpha * DEVIATION) ** 2 + sigma**2)


def _denoiser(x, t):
  x, t = x["x"], t["x"]
  distance = _distance(x, t)
  x0 = MEAN + SCHEDULE.alpha(t) * DEVIATION**2 * distance
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

  def noise(key, x):
    def step(x, index):
      step_key, _ = jax.random.split(jax.random.fold_in(key, index))
      return x + noise.normal_like(step_key, "x", x), None

    return jax.lax.scan(step, x, jnp.arange(sizes.steps))[0], sizes.steps

  loops = {"noise": noise}
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
      "--against=diffrax needs Diffrax, which is not installed here: pip install 'diffrax>=0.7',"
      " or leave the flag out."
    ) from error

  quickest = {"adjoint": diffrax.ForwardMode(), "max_steps": None, "throw": False}

  def solve(terms, solver, x, **options):
    solution = diffrax.diffeqsolve(terms, solver, 1.0, 0.0, -1.0 / sizes.steps, x, **options)
    return solution.ys[0], solution.stats["num_steps"]

  def drift(share, t, x, args):
    """Of the reverse SDE at a share of 1, of the probability-flow ODE at 1/2."""
    del args
    return SCHEDULE.drift(t) * x + share * SCHEDULE.diffusion(t) ** 2 * _distance(x, t)

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
