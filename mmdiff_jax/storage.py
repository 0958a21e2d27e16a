"""Folders that may lie in a bucket of Google Cloud Storage, `gs://BUCKET/FOLDER`.

`epath.Path` reads and writes them by TensorFlow, and those of the file system by itself. What a
bucket lacks is thought of where it matters: an object is written as a whole, and counts when it is;
adding to one writes it anew; a folder is moved object by object.
"""

import importlib.util
import logging
import os
import pathlib

from etils import epath

from mmdiff_jax.errors import UserError


def path(name: str | os.PathLike[str]) -> epath.Path:
  """A file or folder that may lie in a bucket.

  Raises:
    UserError: it lies there, and TensorFlow is not installed, or in another kind of storage.
  """
  if "://" in os.fspath(name):
    if not in_bucket(name):
      raise UserError(
        f"{name} cannot be written or read: give a folder of the file system, or"
        " gs://BUCKET/FOLDER."
      )
    if importlib.util.find_spec("tensorflow") is None:
      raise UserError(
        f"{name} needs TensorFlow, which reads and writes buckets: pip install tensorflow-cpu. Or"
        " give a folder of the file system."
      )
    quieten_tensorflow()
  return epath.Path(name)


def in_bucket(name: str | os.PathLike[str]) -> bool:
  """Whether it is `gs://...`."""
  return os.fspath(name).startswith("gs://")


def check_on_disk(name: str | None, what: str) -> None:
  """Raises UserError when the name of `what` is `gs://...` or the like, which cannot be there."""
  if "://" in (name or ""):
    raise UserError(
      f"{what} cannot be {name}: give a folder of the file system, such as a mounted bucket."
    )


def quieten_tensorflow() -> None:
  """Call it before TensorFlow or tfds is imported: their own lines on screen would bury ours."""
  from absl import logging as absl_logging

  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  # Otherwise a line says that oneDNN is on, whatever the level of logging.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  absl_logging.get_absl_logger().addFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
  """Whether a log record is an error, or not of tfds, which warns of what we handle."""
  return record.levelno >= logging.ERROR or "tensorflow_datasets" not in record.pathname


def cache_dir() -> pathlib.Path:
  """The folder of what is kept between runs to save time; it may be deleted at any time."""
  return pathlib.Path.home() / ".cache" / "mmdiff_jax"


def write_atomically(target: epath.Path, text: str) -> None:
  """Writes a file so that a reader sees the old text or the new, never a part."""
  if in_bucket(target):
    target.write_text(text)
    return
  temporary = target.with_name(target.name + ".tmp")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(target)
