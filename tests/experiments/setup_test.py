import errno
import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from experiments import benchmark, benchmark_train, generation, setup  # noqa: F401 (--guidance)
from mmdiff_jax.data import datasets
from mmdiff_jax.errors import UserError


def config(**fields):
  return ml_collections.ConfigDict({"framework": "mld", "data": {"name": "digits"}, **fields})


def test_unknown_framework_is_refused():
  with pytest.raises(UserError, match="'mdl'.*mld"):
    setup.build(config(framework="mdl", modalities=()))


def test_modalities_are_in_the_order_of_the_config():
  names = [modality.name for modality in datasets.modalities("digits")][:2]
  modalities = setup.modalities(config(modalities=tuple(reversed(names))))
  assert [modality.name for modality in modalities] == names[::-1]


def test_unknown_modality_is_refused():
  with pytest.raises(UserError, match=r"no modality 'smell'.*; it has: digit"):
    setup.modalities(config(modalities=("digit", "smell")))
  with pytest.raises(UserError, match=r"no modality ''"):
    setup.modalities(config(modalities=("digit", "")))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("sampling.order", (("caption",), ("tome",))),
    ("evaluation.subsets", (("digit", "tome"),)),
    ("evaluation.tasks", ((("digit",), ("scene", "tome")),)),
    ("alignment.links", (("digit", "tome"),)),
    ("bridging.bridge", "tome"),
    ("bridging.pretrained", {"tome": None}),
    ("sampling.weights", {"tome": 1.0}),
    ("main", "tome"),
    ("augment.modality", "tome"),
  ],
)
def test_names_that_the_data_set_lacks_are_refused(field, value):
  """Names that the data set has but the run lacks are accepted."""

  def tree(value):
    for part in reversed(field.split(".")):
      value = {part: value}
    return config(modalities=("digit",), **value)

  with pytest.raises(
    UserError, match=rf"'digits' has no modality 'tome' \(config\.{field}\).*'tone'"
  ):
    setup.modalities(tree(value))
  right = json.loads(json.dumps(value).replace("tome", "tone"))
  assert len(setup.modalities(tree(right))) == 1
  with pytest.raises(UserError, match=rf"config\.{field} is 3; it must be"):
    setup.modalities(tree(3))


DIGITS = "--config=configs/mld.py:digits"


@pytest.fixture
def config_from(command, monkeypatch):
  """`config_from(*arguments)` returns the config that the benchmark of training receives."""
  configs = []
  monkeypatch.setattr(benchmark_train, "run", lambda config, *_, **__: configs.append(config) or {})
  monkeypatch.setattr(benchmark_train, "table", str)

  def config_from(*arguments):
    ended = command(benchmark, "train", *arguments, positional=1)
    assert ended.code == 0, ended.err
    return configs.pop()

  return config_from


@pytest.mark.parametrize("first", [True, False])
def test_overrides_are_read_in_any_order(config_from, first):
  overrides = [
    "--config.score.training.steps=1e2",
    "--config.score.training.batch_size=100.0",
    "--config.seed=7",
    "--config.score.training.learning_rate=1",
    "--config.data.data_dir=None",
    "--config.evaluation.classifier_steps=3",
    "--config.evaluation.classifier_steps",
    "None",
    "--config.autoencoder.digit.pretrained=a:b",
    "--config.autoencoder.scene.pretrained=None",
    "--config.autoencoder.scene.pretrained=a:b",
    "--config.framework=None",
  ]
  config = config_from(*([DIGITS, *overrides] if first else [*overrides, "--config", DIGITS[9:]]))
  training = config.score.training
  assert (training.steps, training.batch_size, training.learning_rate) == (100, 100, 1.0)
  assert config.seed == 7
  assert config.data.data_dir is None and config.evaluation.classifier_steps is None
  assert config.autoencoder.digit.pretrained == config.autoencoder.scene.pretrained == "a:b"
  assert config.framework == "None"  # A field that must have a value.


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--config.score.training.steps=abc", "training.steps=abc: it must be an integer"),
    ("--config.score.training.steps=1.5", "training.steps=1.5: it must be an integer"),
    ("--config.seed=None", "seed=None: it must be an integer"),
    ("--config.score.training.learning_rate=abc", "learning_rate=abc: it must be a number"),
    ("--config.evaluation.similarity=abc", "similarity=abc: it must be True or False"),
    ("--guidance=abc", "--guidance=abc: it must be a number"),
    ("--rounds=abc", "--rounds=abc: it must be an integer"),
    ("--config.sed=1", "no key 'sed' (given as --config.sed=1)"),
  ],
)
def test_overrides_of_the_wrong_type_are_refused(command, refused, argument, words):
  for arguments in ([DIGITS, argument], [argument, DIGITS]):
    refused(command(benchmark, "train", *arguments, positional=1), words)


def test_integers_of_flags_are_read_like_those_of_configs(command, monkeypatch):
  monkeypatch.setattr(benchmark, "run", lambda sizes, **options: options)
  monkeypatch.setattr(benchmark, "table", lambda options: str(options["rounds"]))
  assert command(benchmark, "--rounds=1e1", positional=1).out.strip() == "10"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("def get_config(", "fails (SyntaxError"),
    ("x = 1", "fails (AttributeError: .*get_config"),
    ("def get_config(): return 1 / 0", "fails (ZeroDivisionError"),
    ("def get_config(): raise ValueError('no\\nway')", "ValueError: no way"),
    ("def get_config(): return {}", "returns dict; it must return an ml_collections.ConfigDict"),
  ],
)
def test_files_that_are_not_configs_are_refused(
  command, tmp_path, monkeypatch, refused, text, words
):
  monkeypatch.delitem(sys.modules, "config_config", raising=False)
  (tmp_path / "mine.py").write_text(text)
  refused(command(benchmark, "train", f"--config={tmp_path / 'mine.py'}", positional=1), "mine.py")
  with pytest.raises(UserError) as error:
    setup.config_first(["benchmark", f"--config={tmp_path / 'mine.py'}"])
  for word in words.split(".*"):
    assert word in str(error.value)


def test_errors_of_the_system_are_reported_in_a_sentence(command, monkeypatch, refused):
  def fail(*_, **__):
    raise error

  monkeypatch.setattr(benchmark, "run", fail)
  for number in (errno.EACCES, errno.ENOSPC, errno.ENOTDIR, errno.EROFS):
    error = OSError(number, os.strerror(number), "there/x")
    refused(command(benchmark, positional=1), "there/x", os.strerror(number))
  error = OSError("of a library")  # An error without a number is a defect, and keeps its traceback.
  with pytest.raises(OSError, match="of a library"):
    setup._guarded(benchmark.main, ["benchmark"], 1)


ROOT = pathlib.Path(__file__).parents[2]


def start(module, *arguments, **environment):
  return subprocess.Popen(
    [sys.executable, "-m", f"experiments.{module}", *arguments],
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_first_line_is_printed_before_slow_imports(tmp_path):
  """The folder has a module jax that ends the process."""
  (tmp_path / "jax.py").write_text("raise SystemExit('imported')")
  entry_points = ("train", "sample", "evaluate")
  started = [start(module, PYTHONPATH=str(tmp_path)) for module in entry_points]
  for process in started:
    out, err = process.communicate()
    assert out == "mmdiff_jax: loading\n"
    assert "imported" in err


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist_svhn", "spoken_mnist"])
def test_unavailable_data_end_in_one_paragraph(tmp_path, dataset):
  """TensorFlow and tfds, which try to load them, print nothing."""
  (tmp_path / "sitecustomize.py").write_text(
    "import socket\ndef offline(*_): raise OSError('no such host')\nsocket.getaddrinfo = offline\n"
  )
  process = start(
    "train",
    f"--config=configs/mld.py:{dataset}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.data_dir={tmp_path}",
    HOME=str(tmp_path),
    PYTHONPATH=str(tmp_path),
  )
  out, err = process.communicate()
  assert process.returncode == 2, err
  assert out.splitlines() == [
    "mmdiff_jax: loading",
    f"Reading the data set {dataset} (train)",
  ]
  (paragraph,) = err.splitlines()
  assert paragraph.startswith("The data set 'mnist' is not prepared in")
  assert not (tmp_path / "run").exists()
