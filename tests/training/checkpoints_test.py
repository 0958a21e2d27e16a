import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import mmdiff_jax
from mmdiff_jax import parallel
from mmdiff_jax.data import pipeline
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, checksums, trainer, workdir as workdir_lib
from mmdiff_jax.training.state import TrainState


def test_keeps_the_last_two_and_their_checksums(workdir):
  names = {path.name for path in (workdir / "checkpoints" / "second_stage").iterdir()}
  assert names == {"8", "8.sha256.json", "12", "12.sha256.json"}


def losses(toy, workdir, stage):
  return {row["step"]: row["loss"] for row in toy.rows(workdir) if row["stage"] == stage}


@pytest.mark.parametrize("keep", [1, 3])
def test_keeps_the_last_ones_and_the_best(toy, tmp_path, keep):
  """The loss rises at the end, due to a learning rate that is far too large."""
  monitor = {**toy.config().monitor, "checkpoint_every": 2, "keep": keep, "best": "loss"}
  framework = toy.only_first(toy.framework(steps=20, warmup=20, learning_rate=20.0))
  trainer.train(framework, toy.config(monitor=monitor), tmp_path, toy.data(), toy.data(8))
  loss = losses(toy, tmp_path, "first_stage")
  best = min(loss, key=loss.get)
  last = list(loss)[-keep:]
  assert best not in last
  folder = checkpoints.stage_dir(tmp_path, "first_stage")
  names = {f"{step}{end}" for step in (best, *last) for end in ("", ".sha256.json")}
  assert {path.name for path in folder.iterdir()} == names
  assert checkpoints.best_step(tmp_path, "first_stage", "loss") == best
  assert checkpoints.latest_step(tmp_path, "first_stage") == 20

  # The best checkpoint is of the step in the log, and loads; by default the last one is loaded.
  params = checkpoints.load_params(framework, tmp_path, ema=False, best="loss")
  for step in last:
    shutil.rmtree(folder / str(step))
  alone = checkpoints.load_stage(tmp_path, "first_stage", ema=False)
  jax.tree.map(np.testing.assert_array_equal, params, alone)


def test_a_resumed_run_continues_from_the_last_and_keeps_the_best(toy, tmp_path):
  monitor = {**toy.config().monitor, "checkpoint_every": 2, "keep": 1, "best": "loss"}
  framework = toy.only_first(toy.framework(steps=20, warmup=20, learning_rate=20.0))
  stage = framework.stages[0]

  class StoppedError(Exception):
    pass

  def stop(*_):
    raise StoppedError

  (tmp_path / "x").mkdir()
  config = toy.config(monitor={**monitor, "report_every": 16})
  stopping = dataclasses.replace(framework, stages=(dataclasses.replace(stage, report=stop),))
  with pytest.raises(StoppedError):
    trainer.train(stopping, config, tmp_path / "x", toy.data(), toy.data(8))
  best = checkpoints.best_step(tmp_path / "x", stage.name, "loss")
  assert best < 14 <= checkpoints.latest_step(tmp_path / "x", stage.name)
  trainer.train(framework, config, tmp_path / "x", toy.data(), toy.data(8))
  assert [row["step"] for row in toy.rows(tmp_path / "x")] == list(range(2, 21, 2))
  steps = {int(p.name) for p in (tmp_path / "x").glob("checkpoints/*/*") if p.name.isdecimal()}
  assert steps == {best, 20}


def test_a_best_metric_that_no_checkpoint_has_is_refused(toy, workdir):
  with pytest.raises(UserError, match="has the metric 'nothing'.*monitor.best=nothing"):
    checkpoints.load_params(toy.framework(), workdir, best="nothing")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"best": "loss_words"}, "'loss_words'.*not a metric of the stage 'first_stage'.*loss_sound"),
    ({"keep": 0}, "monitor.keep is 0.*at least"),
  ],
)
def test_invalid_keep_and_best_are_refused_before_training(toy, tmp_path, fields, words):
  with pytest.raises(UserError, match=words):
    toy.train(tmp_path, monitor={**toy.config().monitor, **fields})
  assert not list(tmp_path.glob("checkpoints/*/*"))
  assert not (tmp_path / "metrics.jsonl").exists()


def pointers(tree):
  return [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]


def test_a_checkpoint_written_in_the_background_is_of_its_step(toy, tmp_path):
  """Many arrays, while steps overwrite the state in place and take further batches."""
  layout = parallel.make_layout()
  values = {str(i): np.zeros(2**12, np.float32) for i in range(50)}
  state = TrainState(np.int32(0), values, values, {"mu": values, "nu": values})
  state = jax.device_put(state, parallel.shardings(layout, state), may_alias=False)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  batches = pipeline.batches({"row": np.arange(100)}, 10, seed=0)

  for _ in range(3):
    old = pointers(state)
    state = step(state)
    next(batches)
  assert pointers(state) == old  # In place.
  with checkpoints.Saver(tmp_path, "first_stage", keep=2) as saver:
    saver.save(state, {}, batches, {"stage": "first_stage"})
    meanwhile = 0
    while checkpoints.latest_step(tmp_path, "first_stage") is None:
      state = jax.block_until_ready(step(state))
      next(batches)
      saver.finish(wait=False)
      meanwhile += 1
    assert meanwhile > 3
    saver.finish()
  again = pipeline.batches({"row": np.arange(100)}, 10, seed=0)
  copied = parallel.replicated(layout)
  restored, _ = checkpoints.restore(tmp_path, "first_stage", 3, like, copied, again)
  for x in jax.tree.leaves(restored):
    np.testing.assert_array_equal(x, 3)
  expected = pipeline.batches({"row": np.arange(100)}, 10, seed=0)
  expected = [next(expected)["row"] for _ in range(4)]
  np.testing.assert_array_equal(next(again)["row"], expected[3])


def test_a_save_in_progress_when_a_run_ends_with_an_error_is_completed(toy, tmp_path):
  """The error comes right after the save of step 4."""
  framework = toy.only_first(toy.framework())

  def stop(*_):
    raise KeyboardInterrupt

  stages = (dataclasses.replace(framework.stages[0], report=stop),)
  config = toy.config(monitor={**toy.config().monitor, "report_every": 4})
  with pytest.raises(KeyboardInterrupt):
    trainer.train(
      dataclasses.replace(framework, stages=stages), config, tmp_path, toy.data(), toy.data(8)
    )
  assert checkpoints.latest_step(tmp_path, "first_stage") == 4


def test_load_params_merges_stages_and_constants(toy, workdir):
  params = checkpoints.load_params(toy.framework(), workdir)
  assert set(params) == {"first", "second", "mean"}
  np.testing.assert_allclose(params["mean"], toy.data()["image"].reshape(-1, 16).mean(0))
  raw = checkpoints.load_params(toy.framework(), workdir, ema=False)
  assert not np.array_equal(params["second"]["w"], raw["second"]["w"])
  # The entries that the last stage was trained on are the same.
  for name in ("first", "mean"):
    jax.tree.map(np.testing.assert_array_equal, params[name], raw[name])


def test_load_params_of_an_untrained_stage_is_refused(toy, workdir):
  shutil.rmtree(workdir / "checkpoints" / "second_stage")
  with pytest.raises(UserError, match=r"'second_stage' has not been trained .*experiments\.train"):
    checkpoints.load_params(toy.framework(), workdir)


def test_one_flipped_bit_in_any_file_is_detected(workdir):
  step = workdir / "checkpoints" / "first_stage" / "12"
  checksums.verify(step)
  files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
  assert len(files) > 5
  for path in files:
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    with pytest.raises(UserError, match="has changed since") as error:
      checksums.verify(step)
    assert str(path) in str(error.value)
    path.write_bytes(good)
  checksums.verify(step)


def test_any_change_of_the_checksums_is_detected(workdir):
  step = workdir / "checkpoints" / "first_stage" / "12"
  sums = step.with_name("12.sha256.json")
  sums.write_text(sums.read_text().replace("\n ", "\n\t", 1))
  with pytest.raises(UserError, match="checksums .* have changed"):
    checksums.verify(step)


def test_a_run_of_version_0_1_is_refused(toy, workdir):
  meta = workdir / "checkpoints" / "second_stage" / "12" / "meta" / "metadata"
  item = json.loads(meta.read_text())
  assert item.pop("version") == mmdiff_jax.__version__
  meta.write_text(json.dumps(item))
  before = sorted(workdir.rglob("*"))
  for use in (toy.train, workdir_lib.load_config):
    with pytest.raises(
      UserError, match="trained by mmdiff_jax 0.1 .*12/meta/metadata has no version"
    ):
      use(workdir)
  assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "missing", "half checksums", "extra"])
def test_damage_is_named_and_training_resumes_from_the_checkpoint_before(
  toy, workdir, damage, capsys
):
  before = checkpoints.load_params(toy.framework(), workdir)
  step = workdir / "checkpoints" / "second_stage" / "12"
  sums = step.with_name("12.sha256.json")
  largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  match damage:
    case "cut":
      largest.write_bytes(largest.read_bytes()[:-1])
    case "missing":
      largest.unlink()
    case "half checksums":
      sums.write_text(sums.read_text()[:50])
    case "extra":
      largest = step / "model" / "more"
      largest.write_text("more")
  with pytest.raises(UserError, match="Delete that folder") as error:
    checkpoints.load_params(toy.framework(), workdir)
  assert str(sums if "checksums" in damage else largest) in str(error.value)
  assert "\n" not in str(error.value)

  capsys.readouterr()
  after = toy.train(workdir)
  output = capsys.readouterr().out
  for word in ("WARNING: second_stage", "step 12 is damaged", "from step 8"):
    assert word in output
  assert "first_stage: trained already" in output
  jax.tree.map(np.testing.assert_array_equal, before, after)
  checksums.verify(step)
  (aside,) = (workdir / "damaged").iterdir()
  assert {path.name for path in aside.iterdir()} == {"12", "12.sha256.json"}


def test_with_all_checkpoints_damaged_the_stage_starts_again(toy, workdir, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  for step in ("8", "12"):
    folder = workdir / "checkpoints" / "second_stage" / step / "training"
    file = next(path for path in folder.rglob("d/*"))
    file.write_bytes(bytes(file.stat().st_size))
  capsys.readouterr()
  jax.tree.map(np.testing.assert_array_equal, before, toy.train(workdir))
  output = capsys.readouterr().out
  assert "step 12 is damaged" in output and "step 8 is damaged" in output
  assert "second_stage: 12 steps, " in output


@pytest.mark.parametrize("killed", ["while writing", "before the checksums"])
def test_an_interrupted_save_is_ignored(toy, workdir, killed, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  step = workdir / "checkpoints" / "second_stage" / "12"
  step.with_name("12.sha256.json").unlink()
  if killed == "while writing":
    step.rename(step.with_name("12.orbax-checkpoint-tmp"))
  assert checkpoints.latest_step(workdir, "second_stage") == 8
  jax.tree.map(np.testing.assert_array_equal, before, toy.train(workdir))
  assert ("of an interrupted save" in capsys.readouterr().out) == (killed == "before the checksums")
  checksums.verify(step)
  assert not list(step.parent.glob("*tmp*"))


@pytest.mark.parametrize("killed", ["while writing", "before the checksums"])
def test_an_interrupted_first_save_is_ignored(toy, workdir, killed):
  """There is no other checkpoint, and yet this is not treated as damage."""
  before = checkpoints.load_params(toy.framework(), workdir)
  folder = workdir / "checkpoints" / "second_stage"
  shutil.rmtree(folder / "8")
  for sums in folder.glob("*.json"):
    sums.unlink()
  # As at the start of a save.
  (folder / "12.sha256.json.tmp").touch()
  if killed == "while writing":
    (folder / "12").rename(folder / "12.orbax-checkpoint-tmp")
  assert checkpoints.latest_step(workdir, "second_stage") is None
  jax.tree.map(np.testing.assert_array_equal, before, toy.train(workdir))
  assert not list(folder.glob("*tmp*"))


def test_a_copy_without_any_checksums_is_refused_rather_than_dropped(toy, workdir):
  for sums in workdir.rglob("second_stage/*.sha256.json"):
    sums.unlink()
  with pytest.raises(UserError, match=r"12\.sha256\.json are missing"):
    toy.train(workdir)
  assert (workdir / "checkpoints" / "second_stage" / "12").exists()


def test_a_checkpoint_of_other_shapes_is_refused(toy, workdir):
  shutil.rmtree(workdir / "checkpoints" / "first_stage" / "12")
  (workdir / "data.json").unlink()
  data = {**toy.data(), "sound": toy.data()["sound"][:, :1]}
  with pytest.raises(UserError, match="other shapes"):
    trainer.train(toy.framework(), toy.config(), workdir, data, data)


@pytest.mark.parametrize("complete", [True, False])
def test_a_checkpoint_of_another_stage_is_refused(toy, workdir, complete):
  first, second = (workdir / "checkpoints" / f"{name}_stage" for name in ("first", "second"))
  shutil.rmtree(second)
  shutil.copytree(first, second)
  if not complete:
    shutil.rmtree(second / "12")
  for call in (toy.train, functools.partial(checkpoints.load_params, toy.framework())):
    with pytest.raises(UserError, match="not of the stage 'second_stage' but of 'first_stage'"):
      call(workdir)


def test_meta_describes_the_training(toy, workdir):
  path = checkpoints.stage_dir(workdir, "second_stage") / "12"
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as ckpt:
    meta = ckpt.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
  assert meta["stage"] == "second_stage"
  assert meta["step"] == 12
  assert meta["config"]["seed"] == toy.config().seed
  assert meta["metrics"]["loss"] == toy.rows(workdir)[-1]["loss"]
