"""Random overrides of configs: each builds networks whose shapes fit, or is refused by an error.

Overrides are read from a command line, as a user gives them. Whatever is raised but UserError and
the errors of flags is a fault: the entry points would end in its traceback.
"""

import collections
import random

from absl import flags
import jax
from ml_collections.config_flags import config_flags, config_path
import numpy as np
import pytest

from configs import mcdm, mld, mt_diffusion
from experiments import benchmark_train, setup
from mmdiff_jax import parallel
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import state as state_lib, step as step_lib

FACES = [f"faces_{name}" for name in mcdm._EXPERTS if name != "label"]
PRESETS = [
  *(f"mld:{name}" for name in mld._PRESETS),
  *(f"mt_diffusion:{name}" for name in mt_diffusion._PRESETS),
  *(f"mcdm:{name}" for name in (*mcdm._EXPERTS, *FACES)),
  # It has fourteen stages, and is drawn as often as others of its size.
  *["codi:digits"] * 5,
]
# Presets whose networks are traced quickly.
LIGHT = ["mld:digits", "mld:poly_mnist", "mld:mnist_svhn", "mld:cub", "codi:digits", "codi:digits"]
LIGHT += ["mt_diffusion:masked_digits", "mcdm:unconditional"]
# Networks of few channels, for steps that are computed.
TINY = {
  "mld:digits": [
    "modalities=('digit','scene','caption')",
    *(f"autoencoder.{name}.width=8" for name in ("digit", "scene", "caption")),
    *(f"score.network.{name}=8" for name in ("width", "tower_width")),
  ],
  "mt_diffusion:label_digits": ["network.width=8", "network.head_channels=8"],
  "mcdm:all": ["network.width=8", "network.head_channels=8", "network.text_width=4"],
  "codi:digits": [
    *(f"autoencoder.{name}.width=8" for name in ("caption", "digit", "speech", "video")),
    *(f"bridging.network.{name}=8" for name in ("size", "width")),
    *(f"diffusion.network.{name}=8" for name in ("width", "hidden")),
    "diffusion.network.depth=1",
    "alignment.environment.width=8",
  ],
}
TINY_TRAINING = {"batch_size": 8, "steps_per_dispatch": 2}
ROWS = 2
# A shape with all of these would exceed any memory.
HUGE = ("1000000000000", "2147483648")
WORDS = ("wrong", "", "None", "0", "True", "()", "('a', 'b')", "nan", "-1", "2.5")


def config_of(argv):
  """Returns the config of a command line, read as the entry points read it."""
  values = flags.FlagValues()
  argv, unset = setup.config_first(["train", *argv])
  config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
  values(argv)
  for key in unset:
    config_path.set_value(key, values.config, None)
  return values.config


def override(draw, key, value, choices, *, huge):
  """Returns `--config.KEY=VALUE` with a random value, in a third of the cases an odd one."""
  odd = list(WORDS)
  if isinstance(value, bool):
    plain = [True, False]
  elif isinstance(value, int):
    plain = [value // 2, value * 2, value + 1, 1, value]
    odd += [0, 0, -1, -1, *(HUGE * 2 if huge else ())]
  elif isinstance(value, float):
    plain = [value / 2, value * 2, 1, 0, value]
    odd += [-1, -1, "inf", "nan", *(["1e30", "-1e300"] if huge else [])]
  elif isinstance(value, tuple):
    plain = [value[:-1], value[::-1], value]
    changed = list(value) or [None]
    index = draw.randrange(len(changed))
    changed[index] = draw.choice([0, -1, 2.5, "wrong", None, (), ("a", 1), 1, changed[-1]])
    odd = [tuple(changed)] * 6 + [(*value, *value), (), 3, "wrong", "[[1], {}]", "(None,)", "(("]
    odd += [f"({HUGE[0]},)"] if huge else []
  else:
    plain = [draw.choice(choices), value or draw.choice(choices)]
    odd += ["bfloat16", "os:path", "no.such:function"]
  return f"--config.{key}={draw.choice(odd if draw.random() < 0.35 else plain)}"


def command(draw, preset, *, tiny=False):
  """Returns a config's command line, with one to three random overrides."""
  framework, name = preset.split(":")
  argv = [f"--config=configs/{framework}.py:{name}"]
  leaves = dict(_leaves(config_of(argv).to_dict()))
  if tiny:
    argv += [f"--config.{field}" for field in TINY[preset]]
    for key, value in leaves.items():
      least = TINY_TRAINING.get(key.split(".")[-1], value)
      argv += [f"--config.{key}={least}"] * (least != value and "training." in key)
    leaves = dict(_leaves(config_of(argv).to_dict()))
  choices = sorted({value for value in leaves.values() if isinstance(value, str)})
  choices += ["linear", "constant", "steps", "replacement", "published", "eps", "vp_linear", "heun"]
  choices += ["ancestral", "ddim", "unipc", "inpaint", "laplace", "categorical", "frozen", "digits"]
  keys = draw.sample(sorted(leaves), draw.randint(1, 3))
  return argv + [override(draw, key, leaves[key], choices, huge=not tiny) for key in keys]


def _leaves(tree, prefix=""):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def zeros(shape, dtype):
  """Returns zeros that take no memory."""
  return np.broadcast_to(np.zeros((), dtype), shape)


def shapes_only(function, static_argnums=(), **_):
  """Replaces `jax.jit`: returns zeros of the shapes that would be computed."""

  def call(*args):
    moving = {i: x for i, x in enumerate(args) if i not in static_argnums}

    def bound(moving):
      return function(*(moving.get(i, x) for i, x in enumerate(args)))

    return jax.tree.map(lambda x: zeros(x.shape, x.dtype), jax.eval_shape(bound, moving))

  return call


@pytest.fixture
def make_stage(monkeypatch):
  """`make_stage(config, draw)` returns a random stage and its inputs, without computing any."""

  def make_stage(config, draw):
    framework = setup.build(config)
    layout = parallel.make_layout(**config.parallel)
    for stage in framework.stages:
      parallel.check_batch_size(layout, stage.settings.batch_size, stage.settings.accumulate)
    data = {
      m.name: zeros((ROWS, *m.shape), np.int32 if m.num_classes else np.float32)
      for m in datasets.modalities(**config.data.to_dict())
    }
    last = draw.choice(framework.stages)
    with monkeypatch.context() as patch:
      patch.setattr(jax, "jit", shapes_only)
      stages = benchmark_train.each_stage(framework, data)
      stage, frozen, examples = next(entry for entry in stages if entry[0] is last)
    return stage, layout, frozen, examples, data

  return make_stage


def start(stage, layout, frozen, examples):
  """Returns the shapes of the state, the function that creates it, the metrics and the step."""
  tx = state_lib.optimizer(stage.settings)
  shapes, create = step_lib.initial_state(stage, tx, layout, jax.random.key(0), frozen, examples)
  assert set(shapes.params) == set(stage.trainable)
  return (
    shapes,
    create,
    *step_lib.make_train_step(stage, tx, layout, shapes.params, frozen, examples),
  )


def faults(number, draw, presets, check, **options):
  """Counts overrides that succeeded or were refused; returns the command lines of the others."""
  counts, errors = collections.Counter(), []
  for _ in range(number):
    argv = command(draw, draw.choice(presets), **options)
    try:
      config = config_of(argv)
      check(config, draw)
      counts["succeeded"] += 1
    except (UserError, flags.Error) as error:
      assert str(error)
      counts["refused"] += 1
    except Exception as error:
      errors.append(f"{' '.join(argv)}\n  {type(error).__name__}: {error}")
  return counts, errors


@pytest.mark.parametrize(
  ("number", "presets", "fraction"),
  [(40, LIGHT, 0.0), pytest.param(300, PRESETS, 0.1, marks=pytest.mark.slow)],
)
def test_overrides_fit_or_are_refused(make_stage, monkeypatch, number, presets, fraction):
  """Evaluates shapes: init and loss of a stage, and its report for a `fraction` of overrides."""

  def check(config, draw):
    stage, layout, frozen, examples, data = make_stage(config, draw)
    state, *_ = start(stage, layout, frozen, examples)
    if draw.random() < fraction:
      params = jax.tree.map(lambda x: zeros(x.shape, x.dtype), state.params)
      with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", shapes_only)
        # Built again, since functions that draw samples are compiled when the framework is built.
        (stage,) = (s for s in setup.build(config).stages if s.name == stage.name)
        stage.report(frozen | params, jax.random.key(0), data)

  counts, errors = faults(number, random.Random(number), presets, check)
  assert not errors, "\n".join(errors)
  assert min(counts["succeeded"], counts["refused"]) > number / 10


@pytest.mark.slow
def test_overrides_that_fit_take_a_step(make_stage):
  def check(config, draw):
    stage, layout, frozen, examples, _ = make_stage(config, draw)
    _, create, names, step = start(stage, layout, frozen, examples)
    settings = stage.settings
    grouped = settings.steps_per_dispatch > 1
    rows = (settings.steps_per_dispatch,) * grouped + (settings.batch_size,)
    batch = {name: np.zeros((*rows, *x.shape[1:]), x.dtype) for name, x in examples.items()}
    batch = parallel.shard_batch(layout, batch, grouped=grouped)
    meter = step_lib.new_meter(layout, names)
    state, meter = step(create(), meter, frozen, jax.random.key(1), batch)
    assert int(state.step) == int(meter.count) == settings.steps_per_dispatch
    counted.append(stage.name)

  counted = []
  _, errors = faults(40, random.Random(0), list(TINY), check, tiny=True)
  assert not errors, "\n".join(errors)
  assert len(counted) >= 10
