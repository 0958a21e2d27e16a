"""A lock on a workdir: two trainings at once would destroy each other's checkpoints."""

from collections.abc import Iterator
import contextlib
import datetime
import json
import os
import socket

import jax
from jax.experimental import multihost_utils
import numpy as np

from mmdiff_jax import storage
from mmdiff_jax.errors import UserError

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None


@contextlib.contextmanager
def training(workdir: str | os.PathLike[str]) -> Iterator[None]:
  """Keeps all other trainings out of a workdir.

  The operating system holds the lock, on the file `training.lock`, and releases it when the process
  ends, even by SIGKILL. If several processes train together, the first takes it for all of them.
  There is no lock in a bucket, on Windows, or on a file system without locks.

  Args:
    workdir: the folder of the run; created if it does not exist.

  Raises:
    UserError: another process trains there, or the folder is not writable.
  """
  path = storage.path(workdir) / "training.lock"
  with contextlib.ExitStack() as stack:
    refused = False
    if fcntl is not None and not storage.in_bucket(workdir):
      try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refused = jax.process_index() == 0 and not _take(stack, os.fspath(path))
      except OSError as error:
        raise UserError(
          f"The workdir {workdir} cannot be written ({error}). Choose another --workdir."
        ) from error
    if jax.process_count() > 1:
      refused = bool(multihost_utils.broadcast_one_to_all(np.array(refused)))
    if refused:
      raise UserError(
        f"Another process trains in the workdir {workdir}{_holder(os.fspath(path))}. Wait until it"
        " ends, or stop it and start the same command again; or choose another --workdir."
      )
    yield


def _take(stack: contextlib.ExitStack, path: str) -> bool:
  """Locks the file until the stack is closed; returns False if another process holds the lock."""
  # Unlike a lock by `fcntl.lockf`, this also excludes a second training in the same process.
  file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  stack.callback(os.close, file)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # A file system without locks.
    return True
  since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
  with contextlib.suppress(OSError):  # On a full disk the lock holds without its description.
    os.truncate(file, 0)
    os.write(file, json.dumps(facts).encode())
  return True


def _holder(path: str) -> str:
  """Describes the process that holds the lock, if it has written that to the file."""
  try:
    with open(path, encoding="utf-8") as file:
      facts = json.load(file)
    return f" (pid {facts['pid']} on {facts['host']}, since {facts['since']})"
  except (OSError, ValueError, KeyError, TypeError):
    return ""
