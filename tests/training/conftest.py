"""A framework of two tiny linear regressions, the second on the output of the first."""

import dataclasses
import functools
import json
import shutil
import types

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mmdiff_jax import modalities as modalities_lib
from mmdiff_jax.frameworks import base
from mmdiff_jax.training import trainer

MODALITIES = (
  modalities_lib.Modality("image", "image", (4, 4, 1), show=modalities_lib.image_picture),
  modalities_lib.Modality(
    "sound",
    "audio",
    (2, 4),
    show=lambda x: np.repeat(x.ravel(), 100).astype(np.float32),
    sample_rate=8000,
  ),
  modalities_lib.Modality(
    "words",
    "text",
    (3,),
    show=lambda x: " ".join("abcd"[i] for i in x),
    num_classes=4,
  ),
)


def data(size=48, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(size=(size, 4, 4, 1)).astype(np.float32)
  weights = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
  sound = (image.reshape(size, 16) @ weights / 10).reshape(size, 2, 4)
  return {"image": image, "sound": sound, "words": rng.integers(0, 4, (size, 3), np.int32)}


def init(key, frozen, batch, *, entry, source, target):
  del frozen
  sizes = [batch[name][0].size for name in (source, target)]
  return {entry: {"w": 0.1 * jax.random.normal(key, sizes), "b": jnp.zeros(sizes[1])}}


def loss(trained, frozen, key, batch, *, entry, source, target):
  x = batch[source].reshape(len(batch[source]), -1)
  y = batch[target].reshape(len(x), -1)
  if "mean" in frozen and source == "image":
    x = x - frozen["mean"]
  noise = 0.01 * jax.random.normal(key, x.shape)
  x = x + noise
  params = trained[entry]
  value = jnp.mean((x @ params["w"] + params["b"] - y) ** 2)
  return value, {f"loss_{target}": value, "noise": noise[0, 0]}


def prepare_first(frozen, data):
  assert not frozen
  examples = {name: data[name] for name in ("image", "sound")}
  return {"mean": data["image"].reshape(-1, 16).mean(0)}, examples


def prepare_second(frozen, data):
  x = data["image"].reshape(-1, 16) - np.asarray(frozen["mean"])
  return {}, {
    "feature": np.asarray(x @ frozen["first"]["w"] + frozen["first"]["b"]),
    "words": data["words"].astype(np.float32),
  }


def report(params, key, data):
  del params, key
  return {"samples": {name: data[name] for name in ("image", "sound", "words")}}


def framework(steps=12, **settings):
  settings = base.TrainConfig(
    **{"steps": steps, "batch_size": 8, "learning_rate": 0.05, "warmup": 3, **settings}
  )
  first = {"entry": "first", "source": "image", "target": "sound"}
  second = {"entry": "second", "source": "feature", "target": "words"}

  def stage(prepare, names):
    return base.Stage(
      name=names["entry"] + "_stage",
      trainable=(names["entry"],),
      prepare=prepare,
      init=functools.partial(init, **names),
      loss=functools.partial(loss, **names),
      report=report,
      settings=settings,
    )

  return base.Framework(
    modalities=MODALITIES,
    stages=(stage(prepare_first, first), stage(prepare_second, second)),
    sample=lambda *_: {},
    reconstruct=lambda *_: {},
    evaluations=lambda *_: 0,
  )


def only_first(framework):
  return dataclasses.replace(framework, stages=framework.stages[:1])


def config(**fields):
  return ml_collections.ConfigDict(
    {
      "seed": 3,
      "modalities": ("image", "sound", "words"),
      "data": {"name": "toy", "data_dir": None},
      "parallel": {"kind": "jit", "mesh": (-1, 1), "min_shard_size": 16},
      "monitor": {
        "log_every": 2,
        "report_every": 6,
        "checkpoint_every": 4,
        "keep": 2,
        "best": "",
        "peer_timeout": 100,
        "stall_timeout": 1800.0,
      },
      **fields,
    }
  )


@pytest.fixture(scope="package", autouse=True)
def compile_once(tmp_path_factory):
  """Caches compilations: most tests compile the same two steps, which takes longer than a run."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = [getattr(jax.config, name) for name in names]
  for name, value in zip(names, (str(tmp_path_factory.mktemp("xla")), 0.1), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def train(workdir, **fields):
  return trainer.train(framework(), config(**fields), workdir, data(), data(8))


@pytest.fixture(scope="package")
def finished(tmp_path_factory, compile_once):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  train(workdir)
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of a finished run, which the test may break."""
  return shutil.copytree(finished, tmp_path / "run")


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def toy():
  return types.SimpleNamespace(
    config=config,
    data=data,
    file=__file__,
    framework=framework,
    modalities=MODALITIES,
    only_first=only_first,
    rows=rows,
    train=train,
    trainer=trainer,
  )
