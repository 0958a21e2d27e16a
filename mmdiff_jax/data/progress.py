"""Printed progress of a long loop over parts of a data set."""

from collections.abc import Iterator, Sequence
import time
from typing import TypeVar

_LINE_EVERY = 5.0  # Seconds between two lines.

_Part = TypeVar("_Part")


def report(title: str, parts: Sequence[_Part]) -> Iterator[_Part]:
  """Yields equally long parts of a task; prints the fraction that is done, and the time left."""
  began = last = time.monotonic()
  for done, part in enumerate(parts):
    if (now := time.monotonic()) - last > _LINE_EVERY:
      last = now
      left = round((now - began) * (len(parts) - done) / done)
      print(f"{title}: {100 * done // len(parts)} %, {left // 60}:{left % 60:02d} left", flush=True)
    yield part
