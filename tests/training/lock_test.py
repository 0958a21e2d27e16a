import multiprocessing
import os
import signal

import pytest

from mmdiff_jax import storage
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import lock


def refused(workdir, words):
  with pytest.raises(UserError, match=words), lock.training(workdir):
    pass


def test_only_one_training_at_a_time(tmp_path):
  workdir = tmp_path / "new" / "run"
  with lock.training(workdir):
    refused(workdir, rf"pid {os.getpid()} on .*--workdir")
  with pytest.raises(KeyError), lock.training(workdir):
    raise KeyError
  with lock.training(workdir), lock.training(tmp_path / "other"):
    pass


def _hold(workdir, held):
  with lock.training(workdir):
    held.set()
    signal.pause()


def test_a_killed_process_releases_the_lock(tmp_path):
  context = multiprocessing.get_context("spawn")
  held = context.Event()
  process = context.Process(target=_hold, args=(tmp_path, held))
  process.start()
  assert held.wait(60)
  refused(tmp_path, f"pid {process.pid} on")
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  with lock.training(tmp_path):
    pass


@pytest.mark.parametrize("text", ["", "no JSON", "3", "{}"])
def test_a_holder_that_is_not_described(tmp_path, text):
  """The holder has not written its description yet, or could not."""
  with lock.training(tmp_path):
    (tmp_path / "training.lock").write_text(text)
    refused(tmp_path, f"trains in the workdir {tmp_path}. Wait")


def test_training_continues_where_locks_do_not_exist(tmp_path, monkeypatch):
  def unsupported(*_):
    raise OSError(95, "Operation not supported")

  with monkeypatch.context() as patch:
    patch.setattr(lock.fcntl, "flock", unsupported)
    with lock.training(tmp_path), lock.training(tmp_path):
      pass
  with monkeypatch.context() as patch:
    patch.setattr(lock, "fcntl", None)  # As on Windows.
    with lock.training(tmp_path), lock.training(tmp_path):
      pass
  monkeypatch.setattr(storage, "path", lambda _: tmp_path)
  with lock.training("gs://bucket/run"), lock.training("gs://bucket/run"):
    pass


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  refused(tmp_path / "file" / "run", f"workdir {tmp_path / 'file' / 'run'} cannot be written")


def test_a_training_elsewhere_is_not_disturbed(toy, workdir):
  def contents():
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

  with lock.training(workdir):
    before = contents()
    monitor = {**toy.config().monitor, "log_every": 1}
    with pytest.raises(UserError, match="Another process trains"):
      toy.train(workdir, monitor=monitor)
    assert contents() == before
  toy.train(workdir, monitor=monitor)  # Any number of times, in one process.
  toy.train(workdir, monitor=monitor)
