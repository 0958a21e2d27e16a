"""Sheets of samples for a person: a column a sample, its captions under its pictures."""

from collections.abc import Mapping, Sequence
import math
import os
import textwrap
import types
from typing import Any, NamedTuple

import numpy as np

from mmdiff_jax import modalities as modalities_lib, storage
from mmdiff_jax.modalities import Modality

_INCH = 0.8  # A column's width.
_TEXT, _TITLE = 0.5, 0.3  # Inches that a caption and a title take.
_WRAP = 13  # Letters in a line of a caption.


class Panel(NamedTuple):
  """Samples beside each other.

  Attributes:
    title: stands above them.
    rows: what was generated, arrays in the model's view, {modality: [samples, ...]}.
    given: likewise what it was generated from, which is drawn above it and marked.
  """

  title: str
  rows: Mapping[str, Any]
  given: Mapping[str, Any] = types.MappingProxyType({})


def panels(panel: Panel, columns: int) -> list[Panel]:
  """The panel in several of at most `columns` samples."""
  num = len(next(iter(panel.rows.values())))

  def part(arrays, start):
    return {name: x[start : start + columns] for name, x in arrays.items()}

  return [
    Panel("" if start else panel.title, part(panel.rows, start), part(panel.given, start))
    for start in range(0, num, columns)
  ]


def draw(path: str | os.PathLike[str], modalities: Sequence[Modality], sheet: Sequence[Panel]):
  """Draws panels, one above the other, and writes a PNG.

  Args:
    path: the file.
    modalities: what is drawn, from top to bottom of what a panel has of given ones, and then of
      generated ones.
    sheet: the panels.
  """
  # The object-oriented interface: no display, and no state that others may have set.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  strips = []  # A title, or None below a panel's first, a modality, its rows, whether it was given.
  for panel in sheet:
    own = [
      (modality, np.asarray(part[modality.name]), given)
      for part, given in ((panel.given, True), (panel.rows, False))
      for modality in modalities
      if modality.name in part
    ]
    strips += [(None if place else panel.title, *strip) for place, strip in enumerate(own)]
  columns = max(len(rows) for _, _, rows, _ in strips)
  grids = [_grid(modality, rows) for _, modality, rows, _ in strips]
  heights = [
    (_TEXT if tiles is None else _INCH * _height(tiles, rows)) + (0.0 if title is None else _TITLE)
    for (title, _, rows, _), tiles in zip(strips, grids, strict=True)
  ]
  width, height = 1.1 + columns * _INCH, sum(heights) + 0.1
  figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
  top = height - 0.05
  for (title, modality, rows, given), tiles, extent in zip(strips, grids, heights, strict=True):
    bottom = top - extent
    if title is not None:
      figure.text(0.1 / width, (top - 0.12) / height, title, va="center", weight="bold")
      top -= _TITLE
    label = modality.name + ("\n(given)" if given else "")
    colour = "tab:blue" if given else "black"
    middle = 0.5 * (top + bottom) / height
    figure.text(0.1 / width, middle, label, va="center", size=9, color=colour)
    if tiles is not None:
      share = len(rows) * _INCH / width
      axes = figure.add_axes((1.0 / width, bottom / height, share, (top - bottom) / height))
      axes.imshow(tiles, interpolation="nearest", aspect="auto")
      axes.set_axis_off()
    else:
      for column, x in enumerate(rows):
        text = textwrap.fill(str(modality.show(x)), _WRAP)
        left = (1.0 + (column + 0.5) * _INCH) / width
        figure.text(left, middle, text, ha="center", va="center", size=7, color=colour)
    top = bottom
  with storage.path(path).open("wb") as file:
    FigureCanvasAgg(figure).print_png(file)


def _grid(modality: Modality, rows: np.ndarray) -> np.ndarray | None:
  """The samples side by side, or None for what is read."""
  if modality.kind in ("text", "label"):
    return None
  return modalities_lib.grid([_tile(modality, x) for x in rows], len(rows))


def _tile(modality: Modality, x: np.ndarray) -> np.ndarray:
  """A picture of one sample; that of a video has its frames in rows, a strip would be too wide."""
  if modality.kind != "video":
    return modalities_lib.picture(modality, x)
  frames = [modalities_lib.image_picture(frame) for frame in x]
  return modalities_lib.grid(frames, math.ceil(math.sqrt(len(frames))))


def _height(tiles: np.ndarray, rows: np.ndarray) -> float:
  """How high a strip is, in columns, if its pixels are square."""
  return tiles.shape[0] * len(rows) / tiles.shape[1]
