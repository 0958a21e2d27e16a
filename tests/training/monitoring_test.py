import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import modalities as modalities_lib
from mmdiff_jax.modalities import Modality
from mmdiff_jax.training import monitoring, trainer


def train(toy, workdir):
  framework = toy.only_first(toy.framework())
  return trainer.train(framework, toy.config(), workdir, toy.data(), toy.data(8))


def test_report_rows_are_spread_over_the_split(toy):
  rows = monitoring.report_rows({"x": np.arange(1000), "y": np.arange(1000) * 2})
  assert len(rows["x"]) == 32
  assert rows["x"][0] == 0
  assert rows["x"][-1] == 999
  np.testing.assert_array_equal(rows["y"], 2 * rows["x"])
  assert len(monitoring.report_rows(toy.data(8))["image"]) == 8


def test_report_rows_are_those_with_the_fewest_missing_modalities():
  i = np.arange(1000)
  data = {"x": i, "x_present": i % 2 == 0, "y": -i, "y_present": i % 5 == 0}
  rows = monitoring.report_rows(data)
  assert len(rows["x"]) == 32 and rows["x"][-1] == 990 and (rows["x"] % 10 == 0).all()
  np.testing.assert_array_equal(rows["y"], -rows["x"])
  never_both = data | {"y_present": (i % 2 == 1) & (i > 900)}
  assert len(monitoring.report_rows(never_both)["x"]) == 32


def test_every_kind_is_shown(toy, tmp_path):
  event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  pytest.importorskip("tensorflow")
  modalities = (
    Modality("video", "video", (4, 6, 6, 1), modalities_lib.video_picture),
    Modality("mask", "mask", (6, 6), modalities_lib.mask_picture, num_classes=3),
    Modality("pen", "trajectory", (8, 2), modalities_lib.trajectory_picture),
    Modality("vector", "vector", (10,), modalities_lib.vector_picture),
    Modality("label", "label", (), lambda x: f"class {x}", num_classes=3),
  )
  inputs = {
    m.name: np.ones((5, *m.shape), np.int32 if m.num_classes else np.float32) for m in modalities
  }
  with monitoring.Monitor(tmp_path, modalities, toy.config()) as monitor:
    monitor.start(toy.framework().stages[0], 0, {"w": jnp.ones(3)})
    monitor.report(7, {"data": inputs})
  events = event_accumulator.EventAccumulator(
    str(tmp_path / "tensorboard" / "first_stage")
  ).Reload()
  values = {name: events.Tensors(f"first_stage/data/{name}")[0].tensor_proto.string_val
            for name in inputs}  # fmt: skip
  # Width and height: side by side with a pixel in between; the pixels of a video are larger.
  assert values["video"][:2] == [b"108", b"24"]
  assert values["video"][2].startswith(b"GIF89a")
  assert {"images"} == {
    events.SummaryMetadata(f"first_stage/data/{name}").plugin_data.plugin_name
    for name in ("video", "mask")
  }
  assert values["mask"][:2] == [b"57", b"8"]
  assert values["pen"][:2] == [b"233", b"30"]
  assert values["vector"][:2] == [b"41", b"5"]
  assert b"5. `class 1`" in values["label"][0]


def test_event_files_contain_pictures_texts_and_sounds(toy, tmp_path):
  event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  pytest.importorskip("tensorflow")
  train(toy, tmp_path)
  events = event_accumulator.EventAccumulator(
    str(tmp_path / "tensorboard/first_stage"), size_guidance={"tensors": 0, "images": 0, "audio": 0}
  ).Reload()
  tags = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
  assert {"config", "first_stage/parameters", "first_stage/loss", "first_stage/loss_sound",
          "first_stage/grad_norm", "first_stage/learning_rate", "first_stage/ms_per_step"
          } <= set(tags)  # fmt: skip

  def last(name):
    (*_, event) = tags[f"first_stage/samples/{name}"]
    assert event.step == 12
    return event.tensor_proto.string_val

  assert b'"seed": 3' in tags["config"][0].tensor_proto.string_val[0]
  # A picture is width, height, PNG. Eight of 4 pixels and the lines between them make 41.
  assert last("image")[:2] == [b"41", b"6"]
  assert last("image")[2].startswith(b"\x89PNG")
  assert b"1. `" in last("words")[0]
  # Sound and its spectrogram share a tag in different plugins' name spaces.
  assert any(b"RIFF" in x for tag, values in tags.items() if "samples/sound" in tag
             for event in values for x in event.tensor_proto.string_val)  # fmt: skip


def test_without_tensorflow_training_warns_once_and_continues(toy, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  train(toy, tmp_path)
  assert capsys.readouterr().out.count("No TensorBoard") == 1
  assert [row["step"] for row in toy.rows(tmp_path)] == [2, 4, 6, 8, 10, 12]
  assert not (tmp_path / "tensorboard").exists()


def test_screen_shows_the_stage_the_step_and_the_time_left(toy, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(monitoring, "_LINE_EVERY", 0.0)
  train(toy, tmp_path)
  lines = [line for line in capsys.readouterr().out.splitlines() if "ms/step" in line]
  assert len(lines) == 6
  for word in ("first_stage: 10/12", "loss ", "(sound ", " left"):
    assert word in lines[4]


def test_start_drops_later_lines_of_the_stage_and_an_incomplete_one(toy, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  path = tmp_path / "metrics.jsonl"
  kept = ['{"stage": "other", "step": 9}', '{"stage": "first_stage", "step": 4}']
  path.write_text("\n".join([*kept, '{"stage": "first_stage", "step": 6}', '{"stage": "fir']))
  stage = toy.framework().stages[0]
  with monitoring.Monitor(tmp_path, toy.modalities, toy.config()) as monitor:
    monitor.start(stage, 4, {"w": jnp.ones(3)})
  assert path.read_text().splitlines() == kept


def test_step_time_excludes_reports_and_checkpoints(toy, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  now = iter([0.0, 50.0, 50.0, 51.0, 51.0, 90.0, 92.0])
  monkeypatch.setattr(monitoring.time, "monotonic", lambda: next(now, 92.0))
  stage = toy.framework().stages[0]
  stage = dataclasses.replace(stage, settings=dataclasses.replace(stage.settings, steps=1000))
  with monitoring.Monitor(tmp_path, toy.modalities, toy.config()) as monitor:
    monitor.start(stage, 0, {"w": np.ones(3)})  # Not of JAX, which would read the clock, too.
    monitor.compiled(1)
    monitor.metrics(11, {"loss": 1.0})
    monitor.restart_clock(11)
    monitor.metrics(31, {"loss": 1.0})
  assert [row["ms_per_step"] for row in toy.rows(tmp_path)] == pytest.approx([100.0, 100.0])


def test_invalid_lines_are_dropped(toy, tmp_path):
  """Lines left by a crash or another program must not prevent a run from resuming."""
  good = '{"stage": "first_stage", "step": 0}\n{"stage": "other", "step": 9}\n'
  bad = b'{"stage": "first_stage", "step": 1}\n\xff\xfe\n3\n{"step": 1}\n{"stage": "first_st'
  (tmp_path / "metrics.jsonl").write_bytes(good.encode() + bad)
  with monitoring.Monitor(tmp_path, (), toy.config()) as monitor:
    monitor.start(toy.framework().stages[0], 0, {"w": jnp.ones(3)})
  assert (tmp_path / "metrics.jsonl").read_text() == good


def test_points_after_the_step_resumed_from_are_dropped(toy, tmp_path):
  """Only points of the stage itself are dropped."""
  tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
  # The one that TensorBoard uses; the public one only drops points of TensorFlow 1.
  event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.plugin_event_accumulator"
  )
  pytest.importorskip("tensorflow")
  stages = toy.framework().stages

  def interrupted(stage, steps, value):
    with monitoring.Monitor(tmp_path, toy.modalities, toy.config()) as monitor:
      monitor.start(stage, steps[0], {"w": jnp.ones(3)})
      monitor.compiled(steps[0])
      for step in steps[1:]:
        monitor.metrics(step, {"loss": value})

  interrupted(stages[0], (0, 2, 4), 0.0)  # Killed before its first checkpoint.
  interrupted(stages[0], (0, 2, 4, 6, 8), 1.0)
  interrupted(stages[1], (0, 2, 4, 6), 1.0)
  interrupted(stages[0], (4, 6, 8, 10), 2.0)
  interrupted(stages[0], (8, 10, 12), 3.0)
  interrupted(stages[1], (2, 4, 6), 2.0)
  curves = {}
  for stage in stages:
    folder = str(tmp_path / "tensorboard" / stage.name)
    events = event_accumulator.EventAccumulator(folder, purge_orphaned_data=True).Reload()
    points = events.Tensors(f"{stage.name}/loss")
    curves[stage.name] = {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in points}
    assert len(points) == len(curves[stage.name])
  rows = {stage.name: {} for stage in stages}
  for row in toy.rows(tmp_path):
    rows[row["stage"]][row["step"]] = row["loss"]
  assert curves == rows
  assert curves == {
    "first_stage": {2: 1.0, 4: 1.0, 6: 2.0, 8: 2.0, 10: 3.0, 12: 3.0},
    "second_stage": {2: 1.0, 4: 2.0, 6: 2.0},
  }


def test_training_continues_without_a_tensorboard_that_cannot_be_written(
  toy, tmp_path, monkeypatch, capsys
):
  class Full:
    def write_texts(self, *_):
      raise OSError("No space left on device.")

  monkeypatch.setattr(monitoring.Monitor, "_open_tensorboard", lambda *_: Full())
  with monitoring.Monitor(tmp_path, (), toy.config()) as monitor:
    monitor.start(toy.framework().stages[0], 0, {"w": jnp.ones(3)})
    monitor.compiled(1)
    monitor.metrics(2, {"loss": 1.0})
  output = capsys.readouterr().out
  assert (
    output.count("WARNING: no more TensorBoard: No space left on device. Training continues") == 1
  )
  assert len(toy.rows(tmp_path)) == 1
