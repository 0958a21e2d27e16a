"""Random flags of all entry points: each command runs, or ends with an error of one sentence.

The flags are those that the modules of an entry point define, so that a new one is drawn, too.
Whatever ends in a traceback is a fault. What takes its time is replaced: networks are traced and
not computed, data are zeros, and nothing is timed.
"""

import collections
import contextlib
import errno
import functools
import os
import pathlib
import pkgutil
import random
import sys
import types

from absl import flags
import jax
import numpy as np
import pytest

from configs import mcdm as mcdm_config
from experiments import (
  benchmark,
  benchmark_data,
  benchmark_solvers,
  benchmark_train,
  evaluate,
  experts,
  generation,
  prepare_data,
  represent,
  sample,
  setup,
  train,
)
from mmdiff_jax import data as data_lib, storage
from mmdiff_jax.data import array_files, datasets
from mmdiff_jax.evaluation import classifiers, pictures
from mmdiff_jax.training import checkpoints, trainer

LOAD = datasets.load
CONFIGS = ("mld:digits", "mt_diffusion:masked_digits", "mcdm:all", "codi:digits", "mld:folder")
# By entry point: how it is run, and arguments with which it succeeds.
ENTRIES = {
  train: (
    {"required": ("config", "workdir")},
    [["--config=configs/{config}", "--workdir={new}"], ["--config=~/mine.py", "--workdir=~/new"]],
  ),
  sample: (
    {},
    [["--workdir=run", "--out=new"], ["--experts=all", "--unconditional=plain", "--out=x"]],
  ),
  evaluate: ({}, [["--workdir=run", "--out=new"], ["--workdir=run", "--out=x", "--joint_only"]]),
  prepare_data: ({"required": ("dataset",)}, [["--dataset=digits", "--out={new}"]]),
  represent: (
    {"required": ("dataset", "modality", "out")},
    [["--dataset=digits", "--modality=digit", "--out=new.npz"]],
  ),
  benchmark: (
    {"positional": 1},
    [["solvers"], ["data"], [], ["train", "--config=configs/{config}"], ["--out=new/file.json"]],
  ),
}  # fmt: skip
# By entry point: the arguments that make it write.
WRITES = {
  train: ["--config=~/mine.py", "--workdir={new}"],
  sample: ["--workdir=run", "--out={new}", "--given=tone"],
  evaluate: ["--workdir=run", "--out={new}"],
  prepare_data: ["--dataset=digits", "--out={new}"],
  represent: ["--dataset=digits", "--modality=digit", "--out={new}/x.npz"],
  benchmark: ["--out={new}/results.json"],
}
# Valid values of some flags, which random words would never hit.
GOOD = {
  "config": [f"configs/{name.replace(':', '.py:')}" for name in CONFIGS] + ["~/mine.py"],
  "stages": ["autoencoder_digit", "score", "autoencoder_digit,score"],
  "given": ["digit", "tone,caption", "caption", "sketch", "mask,caption"],
  "targets": ["digit", "tone", "digit,caption"],
  "given_npz": ["given.npz", "~/given.npz"],
  "solver": ["heun", "ddim", "ancestral", "euler"],
  "guidance": ["1.5", "0", "3"],
  "corrector": ["1", "2:3", "1:1:0.1"],
  "mode": ["informed", "replacement"],
  "experts": ["all", "all:sketch+mask,~/all:caption", "~/all"],
  "unconditional": ["plain", "~/plain", "plain,all"],
  "weights": ["1", "0.5:2", "1,2", "digit=2"],
  "shares": ["1", "0.3,0.7"],
  "dataset": ["digits", "mnist_svhn", "folder", "mnist", "imagenet64", "label_digits"],
  "modality": ["digit", "tone", "caption", "label"],
  "data": ["of='digits'", "num=3", "data_dir=folder", "data_dir=3", "split='test'", "x"],
  "coordinator": ["localhost:0", "localhost:1234"],
  "num_processes": ["1", "2"],
  "process_id": ["0", "1"],
  "num": ["2", "3"],
  "steps": ["1", "2"],
  "seeds": ["1", "2"],
  "against": ["torch", "diffrax"],
}
PATHS = [
  *("new", "new/deep/er", "folder", "run", "all", "plain", ".", "..", "with space", "ünï\u2028"),
  *("~", "~/x", "~/folder", "~nobody/x", "./~x", "given.npz", "file", "file/below", "file/be/low"),
  *("back\\slash", "q?[*]", "a" * 300, "a/" * 3000, "/proc/x", "/dev/null", "/dev/null/x"),
  *("gs://bucket/x", "s3://bucket/x", "file:///x", "loop", "dangling", "a:b", "x,y", "caf\udce9"),
  *("tab\t", "line\nbreak", "-", "--", "=", "~/", "folder/"),
]
NUMBERS = [
  *("0", "1", "2", "3", "-1", "-5", "1e2", "100.0", "1.5", "1e-3", "abc", "nan", "inf", "-inf"),
  *("1e400", "1e30", "2147483648", "1000000000000", "0x10", "1_0", "٣", "½", "1,5", "True", "1 2"),
]
WORDS = [
  *("wrong", "None", "", " ", "0", "True", "()", "{}", "[", "'", "digit", "score", "ünï", "🎲"),
  *("digit,digit", ",", ",digit", "a=b", "=", ":", "+", "a:b:c", "os:path", "%s", "{x}", "\\"),
  "x" * 2000,
]


def flag_names(module):
  """Returns the flags of an entry point: those that it and its imports define."""
  names, seen, modules = set(), set(), [module]
  while modules:
    module = modules.pop()
    seen.add(module)
    for value in vars(module).values():
      if isinstance(value, flags.FlagHolder):
        names.add(value.name)
      elif isinstance(value, types.ModuleType) and value.__name__.startswith("experiments."):
        modules += {value} - seen
  return sorted(names)


def draw_value(draw, name):
  if name in GOOD and draw.random() < 0.5:
    return draw.choice(GOOD[name])
  kind = flags.FLAGS[name].flag_type()
  pools = [NUMBERS] if kind in ("int", "float") and draw.random() < 0.8 else [PATHS, WORDS, NUMBERS]
  number = draw.randint(0, 3) if "list" in kind else 1
  return ",".join(draw.choice(draw.choice(pools)) for _ in range(number))


def argument(draw, name):
  """Returns a flag with a value, as one argument or two."""
  if flags.FLAGS[name].boolean:
    return [draw.choice([f"--{name}", f"--no{name}", f"--{name}={draw.choice(WORDS)}"])]
  value = draw_value(draw, name)
  return draw.choice([[f"--{name}={value}"]] * 4 + [[f"--{name}", value]])


def command_line(draw, module, new):
  """Returns valid arguments, perhaps without one, up to three flags, and fields of the config."""
  _, base = ENTRIES[module]
  config = draw.choice(CONFIGS).replace(":", ".py:")
  argv = [text.format(config=config, new=new) for text in draw.choice(base)]
  if argv and draw.random() < 0.1:
    argv.remove(draw.choice(argv))
  names = flag_names(module)
  for name in draw.sample(names, draw.choice([0, 1, 1, 1, 2, 3])):
    argv += argument(draw, name)
  if any(text.startswith("--config=configs/") for text in argv):
    for _ in range(draw.choice([0, 1, 1, 2])):
      with contextlib.suppress(Exception):  # An invalid config has no fields.
        argv.insert(draw.randint(0, len(argv)), override(draw, argv))
  if draw.random() < 0.05:
    argv.insert(draw.randint(0, len(argv)), draw.choice(["stray", "--wrong=1", "--nowrong", "-x"]))
  return argv


ODD_FIELDS = ["abc", "None", "1e2", "100.0", "-1", "0", "nan", "", "()", "(1, 'a')", "True", "1e30"]


def override(draw, argv):
  path = next(text for text in argv if text.startswith("--config=configs/"))
  keys = dict(setup._keys(setup._load_config(*path.removeprefix("--config=").partition(":"))))
  value = draw.choice(PATHS) if draw.random() < 0.3 else draw.choice(ODD_FIELDS + WORDS)
  return f"--config.{draw.choice(sorted(keys))}={value}"


def zeros(shape, dtype):
  """Returns zeros that take no memory."""
  return np.broadcast_to(np.zeros((), dtype), shape)


def blank(modalities, rows=8):
  return {
    m.name: zeros((rows, *m.shape), np.int32 if m.num_classes else np.float32) for m in modalities
  }


def shapes_only(function, static_argnums=(), **_):
  """Replaces `jax.jit`: returns zeros of the shapes that would be computed."""

  def call(*args):
    shapes = jax.eval_shape(function, *args)
    return jax.tree.map(lambda x: zeros(x.shape, x.dtype), shapes)

  return call


def load_params(framework, workdir, **options):
  """Loads a run's parameters, or returns zeros if it was not trained."""
  if pathlib.Path(workdir, "checkpoints").exists():
    return checkpoints.load_params(framework, workdir, **options)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "jit", shapes_only)
    params, data = {}, blank(framework.modalities)
    for stage in framework.stages:
      constants, examples = stage.prepare(params, data)
      params |= constants
      params |= jax.jit(stage.init)(jax.random.key(0), params, examples)
  return params


@pytest.fixture
def programs(trained, small_data, tmp_path, monkeypatch):
  """A folder with files of a user, and replacements for everything that computes."""
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  home = tmp_path / "home"
  (home / "folder").mkdir(parents=True)
  monkeypatch.setenv("HOME", str(home))
  here = tmp_path / "in" / "here"
  (here / "folder").mkdir(parents=True)
  monkeypatch.chdir(here)
  for name in ("configs", "mmdiff_jax"):
    (here / name).symlink_to(pathlib.Path(setup.__file__).parents[1] / name)
  (here / "file").write_text("text")
  (here / "loop").symlink_to("loop")
  (here / "dangling").symlink_to("nowhere")
  for folder in (here, home):
    (folder / "run").symlink_to(trained)
  (home / "mine.py").write_text("from configs.mld import get_config\n")
  for folder in (here, home):
    np.savez(folder / "given.npz", **{name: x[:2] for name, x in small_data["train"].items()})
    for name, preset in (("all", "all"), ("plain", "unconditional")):
      config = mcdm_config.get_config(preset)
      config.data.of = "digits"
      config.network.update({"width": 8, "multipliers": (1,), "blocks": 1, "attention": ()})
      config.network.update({"head_channels": 8, "text_width": 4})
      (folder / name).mkdir()
      (folder / name / "config.json").write_text(config.to_json())

  def end(code):
    raise AssertionError(f"the process would have ended with {code}")

  monkeypatch.setattr(os, "_exit", end)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
  monkeypatch.setattr(datasets, "load", LOAD)
  for info in pkgutil.iter_modules(data_lib.__path__):
    if info.name not in ("folder", "represented") and (module := datasets._find(info.name)):
      # Keeps the signature, by which options are checked.
      @functools.wraps(module.load)
      def load(split, data_dir=None, manual_dir=None, *, name=info.name, **options):
        if name == "digits":
          return small_data[split]
        return blank(datasets.modalities(name, **options))

      monkeypatch.setattr(module, "load", load)

  blind = classifiers.Classifier({"weights": np.zeros(1)}, None)
  monkeypatch.setattr(classifiers, "fit", lambda *_, **__: blind)

  def classify(classifier, x):
    assert classifier.params.keys() <= blind.params.keys()
    return zeros((len(x),), np.int32), zeros((len(x), 2), np.float32)

  monkeypatch.setattr(classifiers, "classify", classify)
  tasks = evaluate.list_tasks
  monkeypatch.setattr(evaluate, "list_tasks", lambda trained: tasks(trained)[:2])
  monkeypatch.setattr(pictures, "draw", lambda path, *_: storage.path(path).write_bytes(b""))

  def compiled(layout, sample, params, given, rows):
    del layout
    shapes = jax.eval_shape(
      lambda params, key, given: sample(params, key, given, rows),
      params, jax.random.key(0), dict(given),
    )  # fmt: skip
    return lambda key, given: jax.tree.map(lambda x: zeros(x.shape, x.dtype), shapes)

  monkeypatch.setattr(generation.parallel, "compile_sampler", compiled)
  for module in (experts, generation):
    changed = vars(checkpoints) | {"load_params": load_params}
    monkeypatch.setattr(module, "checkpoints", types.SimpleNamespace(**changed))
  changed = vars(checkpoints) | {"load_stage": lambda *_, **__: {}}
  monkeypatch.setattr(trainer, "checkpoints", types.SimpleNamespace(**changed))

  def train_stage(stage, earlier, config, workdir, layout, monitor, *_):
    monitor.start(stage, 0, {})
    monitor.compiled(0)
    monitor.metrics(1, {"loss": 1.0})

  monkeypatch.setattr(trainer, "_train_stage", train_stage)
  for module in (benchmark, benchmark_data, benchmark_solvers):
    monkeypatch.setattr(module, "run", lambda sizes, **options: options)
    monkeypatch.setattr(module, "table", str)
  monkeypatch.setattr(benchmark.timing, "limit_threads", lambda: None)
  each_stage = benchmark_train.each_stage

  def stages(framework, data):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(jax, "jit", shapes_only)
      return list(each_stage(framework, data))

  monkeypatch.setattr(benchmark_train, "each_stage", stages)
  monkeypatch.setattr(benchmark_train, "_random_inputs", blank)
  monkeypatch.setattr(benchmark_train, "_peak", lambda rounds: (1.0, ""))
  monkeypatch.setattr(benchmark_train, "_measure", lambda *_: {})
  monkeypatch.setattr(benchmark_train, "table", str)
  return here


def test_all_entry_points_are_tested():
  folder = pathlib.Path(setup.__file__).parent
  names = {path.stem for path in folder.glob("*.py") if "\n  setup.run(main" in path.read_text()}
  assert names == {module.__name__.removeprefix("experiments.") for module in ENTRIES}


HOME = [
  (train, ["--config=~/mine.py", "--workdir=~/new"], "new/config.json"),
  (train, ["--workdir", "~/new", "--config", "~/mine.py:digits"], "new/metrics.jsonl"),
  (
    sample,
    ["--workdir=~/run", "--out=~/new", "--given=tone", "--given_npz=~/given.npz"],
    "new/digit_caption_from_tone.npz",
  ),
  (
    sample,
    ["--experts=~/all:mask,~/plain/../all:caption", "--unconditional=~/plain", "--out=~/new"],
    "new/digit_from_mask_caption.npz",
  ),
  (evaluate, ["--workdir=~/run", "--out=~/new", "--data=data_dir='~/folder'"], "new/results.json"),
  (prepare_data, ["--dataset=digits", "--data_dir=~/folder", "--out=~/new"], "new/report.txt"),
  (prepare_data, ["--dataset=digits", "--manual_dir=~/folder", "--out=~/new"], "new/digit.png"),
  (
    represent,
    ["--dataset=digits", "--modality=digit", "--data_dir=~/folder", "--out=~/new.npz"],
    "new.npz",
  ),
  (benchmark, ["--out=~/new/file.json"], "new/file.json"),
]


@pytest.mark.parametrize(("module", "arguments", "file"), HOME)
def test_a_tilde_is_the_home_folder(programs, command, module, arguments, file):
  before = sorted(programs.iterdir())
  ended = command(module, *arguments, **ENTRIES[module][0])
  assert ended.code == 0, ended.err
  assert (pathlib.Path.home() / file).is_file()
  assert sorted(programs.iterdir()) == before


@pytest.mark.parametrize("module", list(ENTRIES), ids=lambda module: module.__name__)
def test_nothing_is_computed_if_it_cannot_be_written(
  programs, command, refused, monkeypatch, module
):
  def never(*_, **__):
    raise AssertionError("computed before --out was tried")

  arguments = [text.format(new="file/below") for text in WRITES[module]]
  for owner, attribute in (
    (trainer, "train"),
    (generation, "generator"),
    (classifiers, "fit"),
    (datasets, "load"),
    (benchmark, "run"),
  ):
    if not (module is sample and owner is datasets):
      monkeypatch.setattr(owner, attribute, never)
  ended = command(module, *arguments, **ENTRIES[module][0])
  refused(ended, "file")
  assert (programs / "file").read_text() == "text"


def test_a_workdir_that_orbax_cannot_read_is_refused_before_data_are_read(
  programs, command, refused, monkeypatch
):
  monkeypatch.setattr(datasets, "load", None)
  ended = command(train, "--config=~/mine.py", "--workdir=a\\b", **ENTRIES[train][0])
  refused(ended, "a\\b", "cannot have \\ in its path")


def test_names_that_are_not_valid_text_are_printed(programs, command, refused):
  ended = command(prepare_data, "--dataset=digits", "--out=caf\udce9")
  assert ended.code == 0 and r"caf\udce9" in ended.out
  ended = command(train, *WRITES[train], "--process_id=caf\udce9", **ENTRIES[train][0])
  refused(ended, r"--process_id=caf\udce9: it must be an integer")


def test_a_full_disk_is_reported_in_a_sentence(programs, command, refused, monkeypatch):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  (programs / "new_experiments.represent").mkdir()
  monkeypatch.setattr(array_files, "write_npz", full)
  for module in (sample, represent):
    arguments = [text.format(new=f"new_{module.__name__}") for text in WRITES[module]]
    ended = command(module, *arguments, **ENTRIES[module][0])
    refused(ended, f"new_{module.__name__}", "No space left on device")


@pytest.mark.parametrize("number", [18, pytest.param(500, marks=pytest.mark.slow)])
def test_commands_run_or_end_with_a_sentence(programs, command, number):
  draw, counts, faults = random.Random(number), collections.Counter(), []
  for index in range(number):
    module = list(ENTRIES)[index % len(ENTRIES)]
    argv = command_line(draw, module, f"new{index}")
    os.chdir(programs)
    try:
      ended = command(module, *argv, **ENTRIES[module][0])
    except BaseException as error:
      faults.append(f"{module.__name__} {argv}\n  {type(error).__name__}: {error}")
      continue
    counts[module, ended.code] += 1
    silent = ended.code and not ended.err.strip()
    if ended.code not in (0, 2, 3) or silent or "Traceback" in ended.err:
      faults.append(f"{module.__name__} {argv}\n  {ended}")
  assert not faults, "\n".join(faults)
  for code in (0, 2):
    assert sum(counts[module, code] for module in ENTRIES) > number / 10
    # All entry points are drawn if there are enough commands.
    assert number < 100 or all(counts[module, code] for module in ENTRIES)
