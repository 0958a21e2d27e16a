"""Ends a process that makes no progress, so that several processes never wait for one forever.

JAX detects a process that died or was stopped by its missing heartbeats. A process whose main
thread hangs, for example in a read from a file server, still sends them, while all others wait for
its part of a sum. Only a limit on the duration of every action ends that, and it also ends the
process that hangs.
"""

import os
import sys
import threading
import traceback


class Watchdog:
  """Ends the process, with exit code 1, when `alive` has not been called for `limit` seconds."""

  def __init__(self, limit: float | None):
    self._limit = limit
    self._sign = threading.Event()
    self._stopped = False

  def start(self) -> None:
    """Starts watching, until `stop`."""
    threading.Thread(target=self._watch, daemon=True).start()

  def stop(self) -> None:
    """Stops watching."""
    self._stopped = True
    self._sign.set()

  def alive(self) -> None:
    """Reports progress; the limit counts from here."""
    self._sign.set()

  def _watch(self) -> None:
    while self._sign.wait(self._limit):
      self._sign.clear()  # Cleared before `_stopped` is read, which `stop` writes first.
      if self._stopped:
        return
    print("This process is at:", file=sys.stderr)
    traceback.print_stack(sys._current_frames()[threading.main_thread().ident])
    print(
      f"Nothing was finished for {self._limit:g} s (config.monitor.stall_timeout): one of the"
      " processes hangs, or compiling, a report, a checkpoint, or config.monitor.log_every steps"
      " take longer than that. Start the same commands again: they go on from the last checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    # Not `sys.exit`: the main thread cannot be made to return, and peers cannot be notified.
    os._exit(1)
