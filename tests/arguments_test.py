"""Wrong arguments of public functions are promoted, or rejected with a message that names them."""

import inspect
import itertools
import traceback

from hypothesis import given, HealthCheck, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import diffusion, guidance, multitime, noise, parallel, schedules, solvers

SCHEDULE = schedules.VPLinear()
KEY = jax.random.key(0)
X = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1))}
T = {"a": jnp.float32(0.5), "b": jnp.float32(0.0)}
PATH = multitime.conditional(("a", "b"), ("b",), 1)


def network(x, t):
  del t
  return {name: 0.5 * value for name, value in x.items()}


def denoiser(x, t):
  del t
  return dict(x), dict(x)


def branches(x, t):
  return jax.tree.map(lambda value: jnp.stack([value, value]), denoiser(x, t))


def draw_t(key, batch_size):
  del key
  return jnp.full(batch_size, 0.5), jnp.ones(batch_size)


def call_denoiser(result):
  result(X, T)


def call_draw(result):
  result(KEY, 2)


DRAW = {"key": KEY, "batch_size": 2, "names": ("a", "b"), "draw_t": draw_t}
DRAW["present"] = {"a": jnp.ones(2, bool), "b": jnp.ones(2, bool)}
FORWARD = {"schedule": SCHEDULE, "x0": X["a"], "eps": -X["a"], "t": jnp.full(2, 0.5)}
GRID = jnp.array([1.0, 0.5, 0.0])
# Valid arguments of each function, and a function that calls its result if that is a function.
RIGHT = {
  noise.make_key: ({"seed": 0}, None),
  multitime.states: ({"path": PATH}, None),
  noise.modality_key: ({"key": KEY, "name": "a"}, None),
  noise.normal_like: ({"key": KEY, "name": "a", "x": X["a"]}, None),
  parallel.all_rows: ({"x": X["a"]}, None),
  noise.key_of_rows: ({"key": KEY, "first": 0, "step": 1}, None),
  multitime.uniform_time: ({"t_min": 1e-3}, call_draw),
  multitime.importance_time: ({"schedule": SCHEDULE, "t_min": 1e-3}, call_draw),
  multitime.draw_masked: ({**DRAW, "given_prob": 0.5, "absent_prob": 0.2}, None),
  multitime.draw_joint: (DRAW, None),
  multitime.draw_independent: (DRAW, None),
  multitime.Path: ({"times": {"a": GRID, "b": GRID}}, None),
  multitime.uniform_grid: ({"num_steps": 2}, None),
  multitime.power_grid: ({"num_steps": 2, "power": 2.0}, None),
  multitime.log_snr_grid: ({"schedule": SCHEDULE, "num_steps": 3, "t_min": 1e-3}, None),
  multitime.edm_grid: ({"schedule": SCHEDULE, "num_steps": 3, "rho": 7.0, "t_min": 1e-3}, None),
  multitime.reverse: ({"path": PATH}, None),
  multitime.staggered: ({"names": ("a", "b"), "lag": 1, "num_steps": 2, "grid": GRID}, None),
  multitime.joint: ({"names": ("a", "b"), "num_steps": 2, "grid": GRID}, None),
  multitime.sequential: (
    {"order": ("a", ("b",)), "num_steps": 2, "given": ("c",), "absent": ("d",), "grid": GRID},
    None,
  ),
  multitime.conditional: (
    {"names": ("a", "b"), "given": ("b",), "num_steps": 2, "grid": GRID},
    None,
  ),
  multitime.marginal: (
    {"names": ("a", "b"), "targets": ("b",), "num_steps": 2, "grid": GRID},
    None,
  ),
  multitime.repaint: (
    {"names": ("a", "b"), "num_steps": 2, "jump": 1, "repeats": 1, "given": ("b",), "grid": GRID},
    None,
  ),
  diffusion.perturb: (FORWARD, None),
  diffusion.target: ({"kind": "v", **FORWARD}, None),
  diffusion.denoiser: ({"kind": "v", "fn": network, "schedule": SCHEDULE}, call_denoiser),
  **{
    make: ({"fn": network, "schedule": SCHEDULE}, call_denoiser)
    for make in (
      solvers.from_eps,
      solvers.from_x0,
      solvers.from_v,
      solvers.from_score,
      solvers.from_velocity,
    )
  },  # fmt: skip
  solvers.prior: (
    {"key": KEY, "schedule": SCHEDULE, "shapes": {"a": (3,)}, "batch_size": 2},
    None,
  ),
  solvers.sample: (
    {
      "key": KEY,
      "denoiser": denoiser,
      "schedule": SCHEDULE,
      "x_init": X,
      "path": PATH,
      "solver": solvers.ancestral,
      "project": lambda key, x, s: x,
    },
    None,
  ),  # fmt: skip
  solvers.replace_known: (
    {"schedule": SCHEDULE, "given": {"a": X["a"]}, "mask": {"a": jnp.ones((2, 3))}},
    lambda hook: hook(KEY, X, T),
  ),
  solvers.slerp: ({"begin": X, "end": {n: -x for n, x in X.items()}, "fraction": 0.3}, None),
  solvers.log_likelihood: (
    {
      "key": KEY,
      "denoiser": denoiser,
      "schedule": SCHEDULE,
      "x": X,
      "path": PATH,
      "trace": "gaussian",
      "num_probes": 1,
    },
    None,
  ),  # fmt: skip
  solvers.bits_per_dim: ({"log_prob": jnp.zeros(2), "num_dims": 3, "bin_width": 1.0}, None),
  solvers.ddim: ({"eta": 0.5}, None),
  solvers.corrected: ({"solver": solvers.heun, "num": 1, "snr": 0.1, "leapfrog": 1}, None),
  solvers.largest_snr: ({"weights": [1.0, 2.0]}, None),
  solvers.hmc: (
    {
      "key": KEY,
      "denoiser": denoiser,
      "schedule": SCHEDULE,
      "x": X,
      "t": T,
      "moving": {"a": True, "b": False},
      "snr": 0.1,
      "leapfrog": 1,
    },
    None,
  ),  # fmt: skip
  guidance.guide: (
    {
      "denoiser": denoiser,
      "strength": 2.0,
      "noise": {"b": jnp.zeros((2, 1))},
      "interval": (-1.0, 1.0),
      "rescale": 0.5,
      "schedule": SCHEDULE,
    },
    call_denoiser,
  ),  # fmt: skip
  guidance.combine: (
    {"conditional": {"a": X["a"]}, "unconditional": {"a": -X["a"]}, "strength": 2.0},
    None,
  ),
  guidance.mix: ({"branches": branches, "shares": (1.0,), "weights": (0.5,)}, call_denoiser),
  guidance.compose: (
    {
      "unconditional": denoiser,
      "experts": (denoiser,),
      "weights": (0.5,),
      "shares": (1.0,),
    },
    call_denoiser,
  ),  # fmt: skip
  guidance.steer: (
    {
      "denoiser": denoiser,
      "log_likelihood": lambda x0, t: jnp.sum(x0["a"]),
      "schedule": SCHEDULE,
    },
    call_denoiser,
  ),  # fmt: skip
  guidance.threshold: (
    {"denoiser": denoiser, "schedule": SCHEDULE, "bounds": {"a": (0.0, 1.0)}, "quantile": 0.9},
    call_denoiser,
  ),
}
WRONG = [
  None, "a", "nowhere", "", b"a", 0, -1, 3, 2.5, 0.3, -0.5, float("nan"), float("inf"), True, 1j,
  [], (), ["a"], [1.0, 0.5], [[1.0], [2.0, 3.0]], {}, {"a": "b"}, {"a": None},
  {"nowhere": jnp.ones(2)}, {1: jnp.ones(2)}, {"a": jnp.ones((3, 7))}, {"a": [1, 0]}, object(),
  np.array(["a"]), np.array(1j),
  jnp.ones(3), jnp.ones((2, 3), int), jnp.zeros((2, 3), bool), KEY, 7, schedules.VPLinear,
  solvers.ddim, PATH, SCHEDULE, {"a": SCHEDULE}, solvers.heun, lambda: 0, lambda *_: 0,
  lambda *_: {}, lambda x, *_: {name: value[:1] for name, value in dict(x).items()},
]  # fmt: skip
# If an argument is a function, the message may name its output instead.
OF_RESULTS = {
  "fn": "the network", "experts": "denoiser", "unconditional": "denoiser", "draw_t": "draw_t",
}  # fmt: skip


def public(module):
  """Yields the public functions, and the class of paths, that a module defines."""
  for name, value in vars(module).items():
    defined_here = getattr(value, "__module__", "").startswith(module.__name__)
    if (
      defined_here
      and not name.startswith("_")
      and (inspect.isfunction(value) or value is multitime.Path)
    ):
      yield value


def test_every_public_function_is_tried():
  modules = (noise, diffusion, multitime, solvers, guidance)
  functions = {function for module in modules for function in public(module)}
  checks = {diffusion.check_kind, diffusion.check_shapes, diffusion.checked}
  assert functions - checks | {parallel.all_rows} == set(RIGHT)
  for function, (arguments, _) in RIGHT.items():
    names = set(inspect.signature(function).parameters)
    assert set(arguments) >= names - {"trajectory", "remat"}, function


def outcome(function, name, value):
  """Calls a function with one argument changed; returns the fault as a sentence, or None."""
  arguments, use = RIGHT[function]
  try:
    result = function(**{**arguments, name: value})
    if use:
      use(result)
  except (TypeError, ValueError) as error:
    words = str(error)
    # Python's own message names a function with other parameters.
    if any(word in words for word in (name, OF_RESULTS.get(name, name), "positional argument")):
      return None
    frames = traceback.extract_tb(error.__traceback__)[1:]
    if callable(value) and any(frame.name == "<lambda>" for frame in frames):
      return None  # The user's function fails.
    return f"{function.__name__}({name}={value!r}): {type(error).__name__}: {words[:200]}"
  except Exception as error:
    return f"{function.__name__}({name}={value!r}): {type(error).__name__}: {error!s:.200}"
  return None


PAIRS = [(function, name) for function, (arguments, _) in RIGHT.items() for name in arguments]


@settings(
  max_examples=250, derandomize=True, deadline=None, database=None,
  suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(pair=st.sampled_from(PAIRS), value=st.sampled_from(WRONG))
def test_a_wrong_argument_is_named(unchecked, pair, value):
  assert outcome(*pair, value) is None


@pytest.mark.slow
def test_all_wrong_arguments_are_named(unchecked):
  faults = [outcome(*pair, value) for pair, value in itertools.product(PAIRS, WRONG)]
  assert not any(faults), "\n".join(filter(None, faults))


def test_right_arguments_are_right(unchecked):
  for function, (arguments, use) in RIGHT.items():
    result = function(**arguments)
    if use:
      use(result)
