import json
import subprocess
import sys
import textwrap

import pytest

from configs import mld as mld_config, mt_diffusion as mt_diffusion_config
from experiments import benchmark, benchmark_train
from mmdiff_jax.errors import UserError


def tiny():
  config = mld_config.get_config("digits")
  config.modalities = ("tone", "caption")
  for size in (*config.autoencoder.values(), config.score):
    size.training.batch_size = 8
    size.training.steps_per_dispatch = 2
  config.score.network.width = 16
  return config


@pytest.mark.slow
def test_measures_the_named_stages():
  results = benchmark_train.run(tiny(), ["autoencoder_caption", "score"], rounds=1)
  assert set(results["stages"]) == {"autoencoder_caption", "score"}
  for stage in results["stages"].values():
    rate = 1e3 * stage["batch"] / stage["ms_per_step"]
    assert stage["examples_per_second"] == pytest.approx(rate)
    assert stage["seconds_compiling"] >= 0
    peak = results["conditions"]["peak_gflop_per_second"]
    assert stage["share_of_peak"] == pytest.approx(stage["gflop_per_second"] / peak)
    assert 0 < stage["share_of_peak"] < 1
    # Dense layers take 6 FLOPs per parameter and example, forward and backward; the rest is little.
    ratio = 1e9 * stage["gflop_per_step"] / (6 * stage["batch"] * stage["parameters"])
    assert 0.5 < ratio < 2
    # Parameters, EMA, two moments and gradients, of 4 bytes each.
    assert 1e9 * stage["memory_gb"] > 5 * 4 * stage["parameters"]
  lines = benchmark_train.table(results).splitlines()
  assert lines[-1].startswith("| score | ")
  assert len({line.count("|") for line in lines[2:]}) == 1
  json.dumps(results)


@pytest.mark.slow
def test_flops_do_not_count_recomputation():
  stages = []
  for remat in (False, True):
    config = mt_diffusion_config.get_config("label_digits")
    config.network.update({"multipliers": (1,), "attention": (), "remat": remat})
    config.training.batch_size = 2
    stages += benchmark_train.run(config, rounds=1)["stages"].values()
  assert stages[0]["gflop_per_step"] == stages[1]["gflop_per_step"]


@pytest.mark.slow
def test_needs_no_packages_for_data_or_checkpoints():
  code = """
    import sys
    for name in ("tensorflow", "tensorflow_datasets", "clu", "grain", "orbax"):
      sys.modules[name] = None
    from experiments import benchmark, setup
    setup.run(benchmark.main, positional=1)
  """
  arguments = ["train", "--config=configs/mld.py:digits", "--stages=autoencoder_caption"]
  ended = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), *arguments, "--rounds=1"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  assert "| autoencoder_caption | " in ended.stdout


def test_unknown_stages_are_refused(command, refused):
  with pytest.raises(UserError, match="no stage 'scor'.*autoencoder_tone"):
    benchmark_train.run(tiny(), ["scor"], rounds=1)
  refused(command(benchmark, "train", positional=1), "--config")
  arguments = ("network", "--config=configs/mld.py:digits")
  refused(command(benchmark, *arguments, positional=1), "no other benchmark")
