"""Benchmarks: times this library and its counterparts in turn, in one process.

python -m experiments.benchmark [network] [--against=torch] [--rounds=5] [--out=FILE.json]
python -m experiments.benchmark solvers [--against=diffrax] [--rounds=5] [--out=FILE.json]
python -m experiments.benchmark data [--rounds=5] [--out=FILE.json]
python -m experiments.benchmark train --config=FILE[:NAME] [--stages=NAME,NAME --config.KEY=VALUE]

`network` times the training step, the network and the sampler at the published MNIST-SVHN sizes:
latents of 16 and 64, `ScoreMLP` of width 256 (2.35 M parameters), batch 128, Adam, EMA. It runs
the code that training and sampling run: `mld.losses.score_loss` (the draw of times, noise, loss),
`state.apply_gradients` (optimiser and EMA) with several steps a dispatch, `solvers.sample`. Data
are random latents in memory. `--against=torch` also measures `torch_counterpart` with the same
weights and as many threads. Its training step does the same work, once as public code writes it and
once tuned. Its network is evaluated with a time for each row, as in the public reference, and for
comparison with one time for all rows.

`solvers` is `benchmark_solvers`: the loop of `solvers.sample` without a network. `data` is
`benchmark_data`: the cost of the input pipeline per training step. `train` is `benchmark_train`:
the training steps of any config on random data, on all devices.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import importlib.util
import json
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import benchmark_solvers, benchmark_train, flags as training_flags, setup, timing
from mmdiff_jax import multitime, noise, schedules, solvers, storage
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks.base import SamplerConfig, TrainConfig
from mmdiff_jax.frameworks.mld import losses
from mmdiff_jax.frameworks.mld.model import MLD
from mmdiff_jax.networks.mlp import ScoreMLP
from mmdiff_jax.training import state as state_lib

_AGAINST = flags.DEFINE_enum(
  "against", None, ["torch", "diffrax"], "Also measure this counterpart."
)
_ROUNDS = setup.define_integer("rounds", 5, "Number of rounds; their median is reported.", 1)
_OUT = flags.DEFINE_string("out", None, "JSON file for the results.")

SCHEDULE = schedules.VPLinear()


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the benchmark; the defaults are the published MNIST-SVHN sizes.

  Attributes:
    latents: size of each modality's latent.
    width: width W of the network.
    batch_size: examples per training step.
    rows: batch size of an evaluation of the network, and number of samples.
    burst: number of training steps or evaluations that are timed together.
    solver_steps: steps of the default solver.
    euler_steps: steps of Euler-Maruyama, timed once.
    reference_evaluations: network evaluations per sample in the public reference, by default.
  """

  latents: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"mnist": 16, "svhn": 64})
  width: int = 256
  batch_size: int = 128
  rows: int = 1000
  burst: int = 20
  solver_steps: int = 32
  euler_steps: int = 1000
  reference_evaluations: int = 2410


def main(argv: Sequence[str]) -> None:
  """Runs the benchmark, prints a table and writes the JSON file."""
  name = argv[1] if len(argv) > 1 else "network"
  counterparts = {"network": "torch", "solvers": "diffrax", "data": None, "train": None}
  if name not in counterparts:
    raise UserError(f"There is no benchmark {name!r}; there are: {', '.join(counterparts)}.")
  if _AGAINST.value not in (None, counterparts[name]):
    raise UserError(
      f"The benchmark {name!r} has no counterpart {_AGAINST.value!r} (--against); it has"
      f" {counterparts[name]!r}."
    )
  if (name == "train") != (training_flags.CONFIG.value is not None):
    raise UserError("`benchmark train` requires --config=FILE; no other benchmark takes it.")
  out = _OUT.value and storage.on_disk(_OUT.value, "The file for the results (--out)")
  if out:
    storage.check_file_writable(out, "--out")
  options = {"against": _AGAINST.value, "rounds": _ROUNDS.value}
  if name == "train":
    config, stages = training_flags.CONFIG.value, training_flags.STAGES.value
    results = benchmark_train.run(config, stages, rounds=_ROUNDS.value)
    print(benchmark_train.table(results))
  elif name == "data":
    # Imported here, since it needs Grain and the other benchmarks do not.
    from experiments import benchmark_data

    # Does not limit its threads yet: it reads on all cores first.
    results = benchmark_data.run(benchmark_data.Sizes(), rounds=_ROUNDS.value)
    print(benchmark_data.table(results))
  elif name == "solvers":
    timing.limit_threads()
    results = benchmark_solvers.run(benchmark_solvers.Sizes(), **options)
    print(benchmark_solvers.table(results))
  else:
    timing.limit_threads()
    results = run(Sizes(), **options)
    print(table(results))
  if out:
    with storage.writing(out, "--out"):
      out.parent.mkdir(parents=True, exist_ok=True)
      out.write_text(json.dumps(results, indent=2) + "\n")


def run(sizes: Sizes, *, against: str | None, rounds: int) -> dict[str, Any]:
  """Measures all contestants in turn, `rounds` times.

  Returns:
    "conditions"; "ms" and "median_ms" of `timing.measure`: for this library `step`, `evaluation`,
    `samples` and `euler_samples` (one round), for PyTorch `torch_step`, `torch_step_tuned`,
    `torch_evaluation` and `torch_evaluation_shared_time`. With a counterpart also "difference", the
    largest one between the networks' outputs, and "ratios" of medians, ours to PyTorch's.

  Raises:
    UserError: the counterpart is not installed.
    AssertionError: the outputs of its network differ from ours.
  """
  if against and importlib.util.find_spec("torch") is None:
    raise UserError(
      "--against=torch needs PyTorch, which is not installed. Run pip install torch==2.13.0"
      " (the CPU build is enough), or omit the flag."
    )
  rng = np.random.default_rng(0)
  network = ScoreMLP(width=sizes.width)
  x = jax.tree.map(jnp.asarray, _normal(rng, sizes.latents, sizes.rows))
  params = network.init(noise.make_key(0), x, _shared_time(sizes))
  # Moves the parameters from their initial values, at which the output is 0 for any input.
  params = jax.tree.map(lambda p: p + 0.03 * rng.standard_normal(p.shape, np.float32), params)
  data = _normal(rng, sizes.latents, 10 * sizes.burst * sizes.batch_size)
  contestants = _ours(sizes, network, params, x, data)
  results = {"conditions": timing.conditions(rounds, sizes)}
  if against:
    theirs, results["difference"] = _torch(sizes, network, params, x, data)
    contestants |= theirs
    assert results["difference"] <= 1e-4, f"the outputs differ by {results['difference']:.1e}"

  results |= timing.measure(contestants, rounds, once=("euler_samples",))
  if against:
    median = results["median_ms"]
    results["ratios"] = {
      "step": median["step"] / median["torch_step"],
      "step_tuned": median["step"] / median["torch_step_tuned"],
      "evaluation": median["evaluation"] / median["torch_evaluation"],
      "samples": median["samples"] / (sizes.reference_evaluations * median["torch_evaluation"]),
    }
  return results


def table(results: Mapping[str, Any]) -> str:
  """Formats the results as a table."""
  sizes = results["conditions"]["sizes"]
  rows = [
    ("training step", "step", "ms"),
    (f"evaluation of {sizes['rows']} rows, one time", "evaluation", "ms"),
    (f"{sizes['rows']} samples, dpmpp_2m, {sizes['solver_steps']} steps", "samples", "s"),
    (f"the same, Euler-Maruyama, {sizes['euler_steps']} steps", "euler_samples", "s"),
    ("PyTorch: training step, as public code writes it", "torch_step", "ms"),
    ("PyTorch: training step, tuned (fused Adam, foreach EMA)", "torch_step_tuned", "ms"),
    ("PyTorch: evaluation, one time per row", "torch_evaluation", "ms"),
    ("PyTorch: evaluation, one time", "torch_evaluation_shared_time", "ms"),
  ]
  lines = list(timing.lines(results, rows))
  if "ratios" in results:
    ratios = results["ratios"]
    lines += [
      f"Largest difference between the networks' outputs: {results['difference']:.1e}",
      f"Ratios of medians, ours to PyTorch: step {ratios['step']:.2f} (to the tuned one"
      f" {ratios['step_tuned']:.2f}), evaluation {ratios['evaluation']:.2f}; the samples take"
      f" 1/{1 / ratios['samples']:.0f} of the time of {sizes['reference_evaluations']} of its"
      f" evaluations ({sizes['burst']} timed per round).",
    ]
  return "\n".join(lines)


def _normal(rng: np.random.Generator, latents: Mapping[str, int], rows: int):
  return {n: rng.standard_normal((rows, size), np.float32) for n, size in latents.items()}


def _shared_time(sizes: Sizes) -> dict[str, Any]:
  return {name: jnp.float32(0.3) for name in sizes.latents}


def _ours(sizes: Sizes, network: ScoreMLP, params, x, data) -> dict[str, timing.Contestant]:
  """Makes our contestants: training step, evaluation, and sampling with two solvers."""
  settings = TrainConfig(
    steps=10**6, batch_size=sizes.batch_size, learning_rate=1e-4, warmup=0, final=1.0, clip=0.0
  )
  tx = state_lib.optimizer(settings)
  key = noise.make_key(1)
  model = MLD(
    modalities=(),
    codecs={},
    schedule=SCHEDULE,
    network=network,
    prediction="eps",
    variant="masked",
    given_prob=0.5,
    absent_prob=0.0,
    draw_t=multitime.uniform_time(),
    training=settings,
    sampler=SamplerConfig(solvers.euler_maruyama, steps=1),
    grid_power=1.0,
    jump=1,
    repeats=1,
  )

  def train_step(state, batch):
    step_key = jax.random.fold_in(key, state.step)
    loss = functools.partial(losses.score_loss, model, key=step_key, latents=batch)
    grads, _ = jax.grad(loss, has_aux=True)(state.params)
    return state_lib.apply_gradients(state, grads, tx, settings.ema), None

  dispatch = jax.jit(
    lambda state, batches: jax.lax.scan(train_step, state, batches)[0], donate_argnums=0
  )
  # Copies the parameters, since the donated buffers are lost.
  state = state_lib.create(jax.tree.map(jnp.array, params), tx)
  batches = {
    name: jnp.asarray(value).reshape(-1, sizes.batch_size, value.shape[1])[: sizes.burst]
    for name, value in data.items()
  }

  def step():
    nonlocal state
    state = jax.block_until_ready(dispatch(state, batches))

  evaluate = jax.jit(network.apply)
  t = _shared_time(sizes)

  def evaluation():
    for _ in range(sizes.burst):
      jax.block_until_ready(evaluate(params, x, t))

  predict = jax.tree_util.Partial(network.apply, params)
  denoiser = solvers.from_eps(predict, SCHEDULE)
  names = list(sizes.latents)
  shapes = {name: (size,) for name, size in sizes.latents.items()}

  def samples(solver, num_steps):
    @jax.jit
    def sample(key, denoiser):
      prior_key, loop_key = jax.random.split(key)
      x_init = solvers.prior(prior_key, SCHEDULE, shapes, sizes.rows)
      path = multitime.joint(names, num_steps)
      return solvers.sample(loop_key, denoiser, SCHEDULE, x_init, path, solver=solver)

    compiled = sample.lower(key, denoiser).compile()
    return lambda: jax.block_until_ready(compiled(key, denoiser))

  return {
    "step": (step, sizes.burst),
    "evaluation": (evaluation, sizes.burst),
    "samples": (samples(solvers.dpmpp_2m, sizes.solver_steps), 1),
    "euler_samples": (samples(solvers.euler_maruyama, sizes.euler_steps), 1),
  }


def _torch(sizes: Sizes, network: ScoreMLP, params, x, data):
  """Makes PyTorch's contestants; also returns the largest difference of outputs to ours."""
  import torch

  from experiments import torch_counterpart

  torch.set_num_threads(timing.THREADS)

  def build():
    network = torch_counterpart.ScoreMLP(sizes.latents, sizes.width)
    torch_counterpart.load(network, params["params"])
    return network

  theirs = build()
  inputs = {name: torch.tensor(np.asarray(value)) for name, value in x.items()}
  shared = {name: torch.full((1,), 0.3) for name in sizes.latents}
  rows = {name: torch.full((sizes.rows,), 0.3) for name in sizes.latents}

  def evaluation(t):
    def call():
      with torch.inference_mode():
        for _ in range(sizes.burst):
          theirs(inputs, t)

    return call

  with torch.inference_mode():
    outputs = theirs(inputs, rows)
  expected = network.apply(params, x, _shared_time(sizes))
  difference = max(float(np.abs(outputs[n].numpy() - expected[n]).max()) for n in sizes.latents)

  def step(tuned):
    trainer = torch_counterpart.Trainer(
      build(),
      data,
      batch_size=sizes.batch_size,
      learning_rate=1e-4,
      decay=0.999,
      beta_min=SCHEDULE.beta_min,
      beta_max=SCHEDULE.beta_max,
      tuned=tuned,
    )

    def call():
      for _ in range(sizes.burst):
        trainer.step()

    return call

  contestants = {
    "torch_step": (step(tuned=False), sizes.burst),
    "torch_step_tuned": (step(tuned=True), sizes.burst),
    "torch_evaluation": (evaluation(rows), sizes.burst),
    "torch_evaluation_shared_time": (evaluation(shared), sizes.burst),
  }
  return contestants, difference


if __name__ == "__main__":
  setup.run(main, positional=1)
