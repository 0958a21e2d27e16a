"""The output of a training run for a person: lines on screen, `metrics.jsonl`, TensorBoard.

TensorBoard's files lie in `tensorboard/STAGE`: a stage that resumes from step n makes TensorBoard
drop the points after n that an interrupted run wrote, which it does for an entire folder.

TensorFlow, which the TensorBoard writer needs, is imported only when a stage starts, and is kept
off the accelerators. If it is not installed, the run continues without TensorBoard.
"""

from collections.abc import Mapping, Sequence
import json
import math
import os
import sys
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from mmdiff_jax import modalities as modalities_lib, storage
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.frameworks.base import Params, Stage
from mmdiff_jax.modalities import Modality
from mmdiff_jax.training.watchdog import Watchdog

_LINE_EVERY = 5.0  # Seconds between two lines on screen.
_BUCKET_EVERY = 30.0  # Seconds between two writes to a bucket, each of the entire file.
_NUM_ROWS = 32  # Rows of the test split in a report.
_COLUMNS = 8  # Pictures in a row of a report.
_NUM_CLIPS = 8  # The number of them that are turned into sound.


def report_rows(test_data: Mapping[str, np.ndarray | Column]) -> dict[str, np.ndarray]:
  """Returns the rows of the test split for reports: always the same, spread over the split.

  If examples lack modalities (`data.missing`), the rows are among those that have the most.
  """
  size = len(next(iter(test_data.values())))
  masks = [np.asarray(x) for name, x in test_data.items() if name.endswith("_present")]
  counts = np.sum(masks, axis=0) if masks else np.ones(size)
  (fullest,) = np.nonzero(counts == counts.max())
  index = np.linspace(0, len(fullest) - 1, min(len(fullest), _NUM_ROWS)).astype(int)
  return {name: x[fullest[index]] for name, x in test_data.items()}


class Monitor:
  """Records the progress of training; a context manager, to be exited when the run ends.

  Only the first process writes. Times per step leave out compilation, checkpoints and reports. If
  there are several processes, each is ended when it makes no progress for
  `config.monitor.stall_timeout` seconds.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    modalities: Sequence[Modality],
    config: ml_collections.ConfigDict,
  ):
    """Writes nothing yet: `start` opens the files in `workdir`."""
    self._active = jax.process_index() == 0
    self._several = jax.process_count() > 1
    self._watchdog = Watchdog(config.monitor.stall_timeout if self._several else None)
    self._modalities = {modality.name: modality for modality in modalities}
    self._workdir, self._config = storage.path(workdir), json.dumps(config.to_dict(), indent=2)
    self._path = self._workdir / "metrics.jsonl"
    self._unwritten, self._last_write = "", 0.0
    self._tensorboard, self._writer = self._active, None

  def __enter__(self) -> "Monitor":
    if self._several:
      self._watchdog.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._watchdog.stop()
    self.flush()
    self._to_tensorboard("close")

  def say(self, line: str) -> None:
    """Prints one line."""
    if self._active:
      print(line, flush=True)

  def start(self, stage: Stage, step: int, params: Params) -> None:
    """Starts a stage at `step`; drops the metrics that an interrupted run wrote after it."""
    self._watchdog.alive()
    self._stage, self._steps = stage.name, stage.settings.steps
    self._began = self._last_line = time.monotonic()
    size = sum(x.size for x in jax.tree.leaves(params))
    since = f" from step {step:,}" if step else ""
    self.say(f"{stage.name}: {self._steps:,} steps{since}, {size:,} parameters; compiling")
    if self._active:
      self._truncate(step)
    self._to_tensorboard("close")
    self._writer = self._open_tensorboard(step) if self._tensorboard else None
    if self._writer:
      from clu import parameter_overview

      table = parameter_overview.get_parameter_overview(params, include_stats=False)
      texts = {"config": f"```json\n{self._config}\n```"}
      texts[f"{stage.name}/parameters"] = f"```\n{table}\n```"
      self._to_tensorboard("write_texts", step, texts)

  def compiled(self, step: int) -> None:
    """Reports that the first dispatch has run; `step` steps are done and the clock starts here."""
    self.say(f"{self._stage}: compiled and started in {time.monotonic() - self._began:.1f} s")
    self.restart_clock(step)

  def restart_clock(self, step: int) -> None:
    """Excludes all time since the last metrics from the step time."""
    self._watchdog.alive()
    self._clock = (step, time.monotonic())

  def metrics(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the means since the last call, over the steps before `step`."""
    self._watchdog.alive()
    if not self._active:
      return
    now, (since, then) = time.monotonic(), self._clock
    seconds = (now - then) / (step - since) if step > since else math.nan
    self.restart_clock(step)
    values = dict(values)
    if step > since:
      values["ms_per_step"] = 1e3 * seconds
    self._unwritten += json.dumps({"stage": self._stage, "step": step, **values}) + "\n"
    if not storage.in_bucket(self._path) or now - self._last_write > _BUCKET_EVERY:
      self._last_write = now
      self.flush()
    scalars = {f"{self._stage}/{name}": x for name, x in values.items()}
    self._to_tensorboard("write_scalars", step, scalars)
    if now - self._last_line > _LINE_EVERY or step == self._steps:
      self._last_line = now
      self.say(self._line(step, values, seconds))

  def flush(self) -> None:
    """Writes the metrics that are not written yet; call it before a step is saved.

    Metrics that cannot be written, because the disk is full, are kept for the next call.
    """
    if not self._unwritten:
      return
    on_disk = not storage.in_bucket(self._path)
    length = self._path.stat().length if on_disk and self._path.exists() else 0
    try:
      with self._path.open("a") as file:
        file.write(self._unwritten)
    except OSError as error:
      self.say(
        f"WARNING: {self._path} could not be written: {error}. Training continues, and the"
        " metrics are kept until there is room."
      )
      if on_disk and self._path.exists():
        os.truncate(self._path, length)  # Removes half a line.
    else:
      self._unwritten = ""

  def report(self, step: int, media: Mapping[str, Mapping[str, Any]]) -> None:
    """Shows model inputs to a person.

    Args:
      step: number of steps done.
      media: `{tag: {modality: array [rows, ...]}}`, as returned by a stage's `report`.
    """
    if not self._writer:
      return
    for tag, inputs in media.items():
      for name, rows in inputs.items():
        self._show(step, f"{self._stage}/{tag}/{name}", self._modalities[name], np.asarray(rows))

  def _show(self, step: int, tag: str, modality: Modality, inputs: np.ndarray) -> None:
    if modality.kind == "video":
      self._to_tensorboard("write_videos", step, {tag: inputs})
    elif modality.kind not in ("text", "label"):
      pictures = [modalities_lib.picture(modality, x) for x in inputs]
      grid = modalities_lib.grid(pictures, _COLUMNS)
      self._to_tensorboard("write_images", step, {tag: grid[None]})
    if modality.kind == "audio":
      waves = [modality.show(x) for x in inputs[:_NUM_CLIPS]]
      length = max(len(wave) for wave in waves)
      clips = np.stack([np.pad(wave, (0, length - len(wave))) for wave in waves])
      clips = np.clip(clips, -1.0, 1.0).astype(np.float32)[..., None]
      rate = modality.sample_rate
      self._to_tensorboard("write_audios", step, {tag: clips}, sample_rate=rate)
    if modality.kind in ("text", "label"):
      lines = [f"{i}. `{modality.show(x)}`" for i, x in enumerate(inputs, 1)]
      self._to_tensorboard("write_texts", step, {tag: "\n".join(lines)})

  def _line(self, step: int, values: Mapping[str, float], seconds: float) -> str:
    parts = [
      f"{name.removeprefix('loss_')} {value:.4g}"
      for name, value in values.items()
      if name.startswith("loss_")
    ]
    losses = f"loss {values['loss']:.4g}" + (f" ({', '.join(parts)})" if parts else "")
    line = f"{self._stage}: {step:,}/{self._steps:,}  {losses}"
    if math.isnan(seconds):
      return line
    left = round((self._steps - step) * seconds)
    return f"{line}  {1e3 * seconds:.2f} ms/step  {left // 60}:{left % 60:02d} left"

  def _truncate(self, step: int) -> None:
    """Drops this stage's lines after `step`, and a line that was not written to its end."""
    if not self._path.exists():
      return
    lines = self._path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    kept = []
    for line in lines:
      try:
        row = json.loads(line)
        if row["stage"] != self._stage or row["step"] <= step:
          kept.append(line)
      except (ValueError, KeyError, TypeError):
        continue
    if kept != lines:
      storage.write_atomically(self._path, "".join(kept))

  def _to_tensorboard(self, method: str, *arguments: Any, **options: Any) -> None:
    """Calls the writer; if its files cannot be written, continues without TensorBoard."""
    if not self._writer:
      return
    try:
      getattr(self._writer, method)(*arguments, **options)
    except Exception as error:  # An error of clu, of TensorFlow, or of the system.
      self._give_up_tensorboard(f"WARNING: no more TensorBoard: {error} Training continues;")

  def _give_up_tensorboard(self, reason: str) -> None:
    self._tensorboard, self._writer = False, None
    self.say(f"{reason} metrics go to {self._path}.")

  def _open_tensorboard(self, step: int) -> Any:
    """Returns a writer that runs in a separate thread, or None if TensorFlow is missing."""
    storage.quieten_tensorflow()
    if "tensorflow" not in sys.modules:
      self.say("Loading TensorFlow, which writes for TensorBoard")
    try:
      from clu import metric_writers
      from tensorboard.compat.proto import event_pb2
      import tensorflow as tf
    except ImportError as error:
      self._give_up_tensorboard(f"No TensorBoard ({error}):")
      return None
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")

    class Writer(metric_writers.SummaryWriter):
      """Adds two methods that clu lacks."""

      def write_start(self, step: int) -> None:
        """Makes TensorBoard drop points after `step` that earlier files contain."""
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # The step itself was saved, and its points are kept.
        event = event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=session)
        # TensorFlow 2 only writes summaries; a separate file might sort after this one.
        tf.raw_ops.ImportEvent(
          writer=self._summary_writer._resource, event=event.SerializeToString()
        )

      def write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
        """Shows all videos in one GIF, in the place of TensorBoard's images."""
        metadata = tf.compat.v1.SummaryMetadata(
          plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="images")
        )
        with self._summary_writer.as_default():
          for tag, inputs in videos.items():
            gif = modalities_lib.video_gif(inputs, _COLUMNS)
            # As in `tf.summary.image`: width and height, from the header of the GIF, then the GIF.
            size = [b"%d" % int.from_bytes(gif[i : i + 2], "little") for i in (6, 8)]
            tf.summary.write(tag, tf.constant([*size, gif]), step=step, metadata=metadata)

    try:
      writer = Writer(os.fspath(self._workdir / "tensorboard" / self._stage))
      writer.write_start(step)
    except Exception as error:  # An error of TensorFlow, or of the system.
      self._give_up_tensorboard(f"WARNING: no TensorBoard: {error} Training continues;")
      return None
    return metric_writers.AsyncWriter(writer)
