"""Paths that a user gives: local files and folders, and those in a bucket, `gs://BUCKET/FOLDER`.

`epath.Path` reads and writes buckets through TensorFlow, and the file system by itself. Callers
handle what buckets cannot do: an object is written as a whole, and exists only once it is complete;
appending to one rewrites it; a folder is moved object by object.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import logging
import os
import pathlib
import tempfile

from etils import epath

from mmdiff_jax.errors import UserError


def path(name: str | os.PathLike[str]) -> epath.Path:
  """Returns a file or folder that may lie in a bucket; in the file system as `expanded` returns it.

  Raises:
    UserError: it lies in a bucket and TensorFlow is not installed, or it lies in another kind of
      storage; or as for `expanded`.
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
  return epath.Path(expanded(name))


def in_bucket(name: str | os.PathLike[str]) -> bool:
  """Returns whether a name is `gs://...`."""
  return os.fspath(name).startswith("gs://")


def on_disk(name: str | os.PathLike[str], what: str) -> pathlib.Path:
  """Returns a file or folder that must lie in the file system, as `expanded` returns it.

  Args:
    name: the path.
    what: names it in messages, with the flag or field that it comes from.

  Raises:
    UserError: it is `gs://...` or the like; or as for `expanded`.
  """
  if "://" in os.fspath(name):
    raise UserError(
      f"{what} cannot be {name}: give a folder of the file system, such as a mounted bucket."
    )
  return pathlib.Path(expanded(name, what))


def expanded(name: str | os.PathLike[str], what: str = "A path") -> str:
  """Returns a path of the file system with the home folder in place of a leading `~` or `~USER`.

  The shell leaves `~` as it is in `--flag=~/x`, and nothing expands it in a config.

  Args:
    name: the path.
    what: names it in messages.

  Raises:
    UserError: it is empty or holds a null character, or there is no such user.
  """
  name = os.fspath(name)
  if not name or "\0" in name:
    raise UserError(f"{what} is {name!r}: give the name of a file or folder.")
  path = os.path.expanduser(name)
  if path.startswith("~"):
    user, _, rest = name.partition("/")
    raise UserError(
      f"{what} is {name}, but there is no user {user[1:]!r}. For a folder of that name write"
      f" ./{user}{rest and '/'}{rest}."
    )
  return path


def check_writable(folder: str | os.PathLike[str], flag: str) -> None:
  """Checks that a folder can be created and written to, before the work whose results it will hold.

  Leaves everything as it was. A bucket is not tested.

  Args:
    folder: the folder, which need not exist.
    flag: the flag that it comes from, for the message.

  Raises:
    UserError: it cannot be written to.
  """
  folder = path(folder)
  if in_bucket(folder):
    return
  folder = pathlib.Path(folder)
  with writing(folder, flag):
    new = [part for part in (folder, *folder.parents) if not os.path.lexists(part)]
    try:
      if new:
        folder.mkdir(parents=True, exist_ok=True)
      tempfile.TemporaryFile(dir=folder).close()
    finally:
      for part in new:
        with contextlib.suppress(OSError):
          part.rmdir()


def check_file_writable(file: str | os.PathLike[str], flag: str) -> None:
  """Same as `check_writable`, for a file, whose folder need not exist either."""
  file = path(file)
  if file.is_dir():
    raise UserError(f"{file} ({flag}) is a folder: give the name of a file.")
  if not file.exists():
    check_writable(file.parent, flag)
    return
  with writing(file, flag):
    file.open("ab").close()


@contextlib.contextmanager
def writing(target: str | os.PathLike[str], flag: str) -> Iterator[None]:
  """Turns an OSError inside into a UserError that names the file or folder and its flag."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{os.fspath(target)} ({flag}) cannot be written: {error.strerror or error}. Choose another"
      " path, or make sure that there is space and permission to write there."
    ) from error


def quieten_tensorflow() -> None:
  """Silences TensorFlow and tfds, whose log lines would bury ours; call it before their import."""
  from absl import logging as absl_logging

  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  # Otherwise a line reports that oneDNN is on, whatever the log level.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  absl_logging.get_absl_logger().addFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
  """Returns whether a log record is an error or not from tfds, which warns of what we handle."""
  return record.levelno >= logging.ERROR or "tensorflow_datasets" not in record.pathname


def cache_dir() -> pathlib.Path:
  """Returns the folder of files kept between runs to save time; it may be deleted at any time."""
  return pathlib.Path.home() / ".cache" / "mmdiff_jax"


def write_atomically(target: epath.Path, text: str) -> None:
  """Writes a file so that a reader sees either the old text or the new, never a part."""
  if in_bucket(target):
    target.write_text(text)
    return
  temporary = target.with_name(target.name + ".tmp")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(target)
