"""Prepares a data set on disk, checks it and shows what is in it.

python -m experiments.prepare_data --dataset=NAME [--data_dir=DIR --manual_dir=DIR --out=DIR]

NAME is that of a preset of configs/mld.py or else configs/mt_diffusion.py, whose data set and
options are taken, or of a data set.
What is prepared already is only checked. Files of a public set come from the internet or, where
they are there, from the manual folder, which is `<data_dir>/downloads/manual` by default.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import contextlib
import logging
import os
import pathlib
import sys
import tempfile
from typing import Any, NamedTuple

from absl import flags
import numpy as np

from configs import mld, mt_diffusion
from experiments import setup
from mmdiff_jax import storage
from mmdiff_jax.data import datasets, pairing
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import grid, Modality, picture

_DATASET = flags.DEFINE_string(
  "dataset", None, "Name of a preset of configs/{mld,mt_diffusion}.py, or of a data set."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Folder of prepared data sets; ~/tensorflow_datasets if not given."
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir", None, "Folder of files that you bring; DATA_DIR/downloads/manual if not given."
)
# Other entry points may have an --out of their own, and tests load several into one process.
_OUT = flags.DEFINE_string(
  "out",
  None,
  "Folder for the contact sheets; contact_sheets/DATASET if not given.",
  allow_override=True,
)

SPLITS = ("train", "test")
REPORT = "report.txt"  # Written with the sheets: where it is, they are all there.

_SHOWN, _HEARD = 64, 16  # Examples on a sheet, in a sound.
_SIDE, _WIDTH = 64, 1200  # Pixels: least height of an example, width of a sheet.
_PAUSE = 0.1  # Seconds of silence after each sound.


class Split(NamedTuple):
  """What is kept of a split.

  Attributes:
    number: examples.
    first: the first of them, {modality: [_SHOWN, ...]}, in the model's view, and what says which
      of them lack one (`data/missing.py`).
  """

  number: int
  first: Mapping[str, np.ndarray]


def main(argv: Sequence[str]) -> None:
  """Prepares, checks, prints and draws."""
  del argv
  name = _DATASET.value
  data = options(name) | {"data_dir": _DATA_DIR.value, "manual_dir": _MANUAL_DIR.value}
  modalities = datasets.modalities(**data)
  out = storage.on_disk(
    _OUT.value or os.path.join("contact_sheets", name), "The folder for the contact sheets (--out)"
  )
  files = {file for modality in modalities for file in _files(modality)} | {REPORT}
  _check_own(out, name, files)
  storage.check_writable(out.parent, "--out")
  arrays, splits = {}, {}
  with _sources_tell():
    for split in SPLITS:
      print(f"{name}, {split}: reading and checking ...", flush=True)
      arrays[split] = datasets.load(split=split, **data)
      splits[split] = check(name, split, modalities, arrays[split])
  report = table(name, modalities, splits) + in_both(modalities, *arrays.values())
  print(report, end="")
  there = {path.name for path in out.iterdir()} if out.exists() else set()
  if there == files and (out / REPORT).read_text() == report:
    print(f"All was prepared before. The contact sheets are in {out}.")
    return
  write(out, modalities, splits["train"].first, report)
  print(f"Wrote the contact sheets into {out}.")


def options(name: str) -> dict[str, Any]:
  """What `datasets.load` takes but for the split: of the preset of that name, or of no options."""
  for configs in (mld, mt_diffusion):
    with contextlib.suppress(UserError):
      return configs.get_config(name).data.to_dict()
  return {"name": name}


def _check_own(out: pathlib.Path, name: str, files: Set[str]) -> None:
  """Raises UserError unless a folder is not there, is empty or holds this data set's sheets."""
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return
  report = out / REPORT
  own = report.is_file() and report.read_bytes().startswith(f"\n{name}, ".encode())
  if not own or not {path.name for path in out.iterdir()} <= files:
    raise UserError(
      f"There are other files in {out}, where the contact sheets should be. Name another folder "
      "with --out."
    )


def check(
  name: str, split: str, modalities: Sequence[Modality], arrays: Mapping[str, np.ndarray]
) -> Split:
  """Checks a split against its modalities.

  Args:
    name: the data set.
    split: the split.
    modalities: what must be there.
    arrays: the split in the model's view; may be columns that are made when read.

  Returns:
    Its number of examples and the first ones.

  Raises:
    UserError: it is empty, or a modality is missing or has another number of examples than the
      others, or the first examples have another shape, type or range than it says.
  """
  if missing := [modality.name for modality in modalities if modality.name not in arrays]:
    raise UserError(f"The split {split!r} of the data set {name!r} has no {', '.join(missing)}.")
  numbers = {modality.name: len(arrays[modality.name]) for modality in modalities}
  if len(set(numbers.values())) != 1 or 0 in numbers.values():
    raise UserError(
      f"The split {split!r} of the data set {name!r} must have examples, of each modality the same "
      f"number; it has {numbers}. Check the folders given as --data_dir and --manual_dir."
    )
  first = {modality.name: arrays[modality.name][:_SHOWN] for modality in modalities}
  for modality in modalities:
    rows = first[modality.name]
    dtype, (low, high) = np.int32 if modality.num_classes else np.float32, modality.bounds
    fits = rows.shape[1:] == modality.shape and rows.dtype == dtype
    if not fits or not (np.isfinite(rows) & (rows >= low) & (rows <= high)).all():
      raise UserError(
        f"The modality {modality.name!r} of the data set {name!r}, {split!r}, is {rows.dtype} of "
        f"shape {rows.shape[1:]} from {rows.min():g} to {rows.max():g}; it must be "
        f"{np.dtype(dtype)} of shape {modality.shape}, finite numbers from {low:g} to {high:g}. "
        "Prepare it again."
      )
  masks = {f"{name}_present" for name in numbers} & arrays.keys()
  first |= {name: np.asarray(arrays[name])[:_SHOWN] for name in masks}
  return Split(next(iter(numbers.values())), first)


def table(name: str, modalities: Sequence[Modality], splits: Mapping[str, Split]) -> str:
  """What is in a data set: its splits, and of each modality the kind, shape, type and size."""
  lines = [
    "",
    *(f"{name}, {split}: {found.number:,} examples, checked" for split, found in splits.items()),
  ]
  rows = [("modality", "kind", "shape", "type", "classes", *(f"MB, {split}" for split in splits))]
  for modality in modalities:
    first = next(iter(splits.values())).first[modality.name]
    sizes = (found.number * first[0].nbytes / 1e6 for found in splits.values())
    rows.append(
      (
        modality.name,
        modality.kind,
        " x ".join(map(str, first.shape[1:])) or "-",
        str(first.dtype),
        str(modality.num_classes or "-"),
        *(f"{size:,.1f}" for size in sizes),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    lines.append("  ".join(cells).rstrip())
  return "\n".join([*lines, "MB are those of the model's view in memory.", ""])


def in_both(
  modalities: Sequence[Modality], train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
) -> str:
  """A line for each modality of which tests are in training, too, bit for bit.

  Not of labels, texts and masks, which are often equal, nor of what is the same all over. Others
  can be by chance, such as what is drawn with a few points; many say that the splits are not apart.
  """
  lines = []
  for modality in modalities:
    if modality.kind in ("label", "text", "mask"):
      continue
    ours, theirs = (_present(arrays, modality.name) for arrays in (train, test))
    # What is the same all over, such as a fully masked image, says nothing.
    rows = np.array([i for i in pairing.shared(ours, theirs) if np.ptp(theirs[int(i)])], int)
    if len(rows):
      lines.append(
        f"Warning: {len(rows):,} of {len(theirs):,} tests of {modality.name!r} are in training, "
        f"too, such as the first {rows[:5].tolist()}.\n"
      )
  return "".join(lines)


def _present(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray | pairing.Column:
  there = arrays.get(f"{name}_present")
  return arrays[name] if there is None else arrays[name][np.asarray(there)]


def write(
  out: pathlib.Path,
  modalities: Sequence[Modality],
  first: Mapping[str, np.ndarray],
  report: str,
) -> None:
  """Writes a sheet for each modality, all of them or none; example i is at place i in each.

  What an example lacks is black, not heard, and an empty line.

  Args:
    out: the folder; the files of an earlier run in it are replaced.
    modalities: what to draw.
    first: examples in the model's view, {modality: [n, ...]}, and which of them lack one.
    report: text to be kept with them.

  Raises:
    UserError: they cannot be written, such as on a full disk.
  """
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"incomplete.{out.name}.", dir=out.parent) as folder:
      sheets = pathlib.Path(folder) / "sheets"
      sheets.mkdir()
      for modality in modalities:
        rows = first[modality.name]
        present = first.get(f"{modality.name}_present", np.ones(len(rows), bool))
        _draw(sheets, modality, rows, present)
      (sheets / REPORT).write_text(report)
      for old in out.iterdir() if out.exists() else ():
        old.unlink()
      sheets.replace(out)
  except OSError as error:
    raise UserError(
      f"The contact sheets cannot be written to {out} ({error}); nothing was left there. Make "
      "room, or name another folder with --out."
    ) from error


def _files(modality: Modality) -> tuple[str, ...]:
  """The names of what `_draw` writes."""
  suffixes = {"text": ("txt",), "label": ("txt",), "audio": ("png", "wav")}
  return tuple(f"{modality.name}.{suffix}" for suffix in suffixes.get(modality.kind, ("png",)))


def _draw(folder: pathlib.Path, modality: Modality, rows: np.ndarray, present: np.ndarray) -> None:
  """Writes what a person looks at, listens to and reads."""
  # They take their time to import.
  from PIL import Image
  from scipy.io import wavfile

  path = folder / modality.name
  if modality.kind in ("text", "label"):
    lines = [modality.show(row) if there else "" for row, there in zip(rows, present, strict=True)]
    path.with_suffix(".txt").write_text("".join(f"{line}\n" for line in lines))
    return
  tiles = [
    np.where(there, picture(modality, row), np.uint8(0))
    for row, there in zip(rows, present, strict=True)
  ]
  height, width, _ = tiles[0].shape
  zoom = -(-_SIDE // height)
  sheet = grid(tiles, max(1, _WIDTH // (zoom * width)), zoom=zoom)
  Image.fromarray(sheet).save(path.with_suffix(".png"))
  if modality.kind == "audio":
    pause = np.zeros(int(_PAUSE * modality.sample_rate))
    heard = rows[present][:_HEARD]
    sound = np.concatenate(
      [part for row in heard for part in (modality.show(row), pause)] or [pause]
    )
    whole = np.round(np.clip(sound, -1.0, 1.0) * 32767).astype(np.int16)
    wavfile.write(path.with_suffix(".wav"), modality.sample_rate, whole)


@contextlib.contextmanager
def _sources_tell() -> Iterator[None]:
  """Within, what the sources find, prepare and check is printed."""
  log, handler = logging.getLogger("mmdiff_jax.data"), logging.StreamHandler(sys.stdout)
  kept = log.level, log.propagate
  log.propagate = False
  log.setLevel(logging.INFO)
  log.addHandler(handler)
  try:
    yield
  finally:
    log.removeHandler(handler)
    log.propagate = kept[1]
    log.setLevel(kept[0])


if __name__ == "__main__":
  setup.run(main, required=("dataset",))
