"""Picture sheets of samples: one column per sample, its captions below its images."""

from collections.abc import Mapping, Sequence
import math
import os
import textwrap
import types
from typing import Any, NamedTuple

import numpy as np

from mmdiff_jax import modalities as modalities_lib, storage
from mmdiff_jax.modalities import Modality

_INCH = 0.8  # Width of a column.
_TEXT, _TITLE = 0.5, 0.3  # Heights of a caption and a title in inches.
_WRAP = 13  # Characters in a line of a caption.


class Panel(NamedTuple):
  """Samples next to each other.

  Attributes:
    title: drawn above the samples.
    rows: generated model inputs, {modality: [samples, ...]}.
    given: those that they were generated from, likewise; drawn above the rows and marked.
  """

  title: str
  rows: Mapping[str, Any]
  given: Mapping[str, Any] = types.MappingProxyType({})


def panels(panel: Panel, columns: int) -> list[Panel]:
  """Splits a panel into panels of at most `columns` samples."""
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
    modalities: to be drawn, in their order from top to bottom: in each panel first the given ones
      that it has, then the generated ones.
    sheet: the panels.
  """
  # The object-oriented interface needs no display, and reads no global state.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  strips = []  # (title or None below a panel's first strip, modality, its rows, whether given)
  for panel in sheet:
    panel_strips = [
      (modality, np.asarray(part[modality.name]), given)
      for part, given in ((panel.given, True), (panel.rows, False))
      for modality in modalities
      if modality.name in part
    ]
    strips += [(None if i else panel.title, *strip) for i, strip in enumerate(panel_strips)]
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
      fraction = len(rows) * _INCH / width
      axes = figure.add_axes((1.0 / width, bottom / height, fraction, (top - bottom) / height))
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
  """Returns the samples side by side, or None for modalities that are drawn as text."""
  if modality.kind in ("text", "label"):
    return None
  return modalities_lib.grid([_tile(modality, x) for x in rows], len(rows))


def _tile(modality: Modality, x: np.ndarray) -> np.ndarray:
  """Returns a picture of one sample; a video's frames are arranged in rows, not in a wide strip."""
  if modality.kind != "video":
    return modalities_lib.picture(modality, x)
  frames = [modalities_lib.image_picture(frame) for frame in x]
  return modalities_lib.grid(frames, math.ceil(math.sqrt(len(frames))))


def _height(tiles: np.ndarray, rows: np.ndarray) -> float:
  """Returns the height of a strip with square pixels, in widths of a column."""
  return tiles.shape[0] * len(rows) / tiles.shape[1]
