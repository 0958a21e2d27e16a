"""Prepares a data set on disk, checks it, and writes contact sheets of its examples.

python -m experiments.prepare_data --dataset=NAME [--data_dir=DIR --manual_dir=DIR --out=DIR]

NAME is a preset of configs/mld.py or else configs/mt_diffusion.py, whose data set and options are
used, or a data set.
Data that were prepared before are only checked. The files of a public data set are downloaded, or
read from the manual folder if they are there; it is `<data_dir>/downloads/manual` by default.
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
  "manual_dir", None, "Folder of your own files; DATA_DIR/downloads/manual if not given."
)
# Other entry points may have an --out of their own, and tests load several into one process.
_OUT = flags.DEFINE_string(
  "out",
  None,
  "Folder for the contact sheets; contact_sheets/DATASET if not given.",
  allow_override=True,
)

SPLITS = ("train", "test")
REPORT = "report.txt"  # Written with the sheets: where it exists, they are complete.

_SHOWN, _HEARD = 64, 16  # Examples on a sheet, and in a sound.
_SIDE, _WIDTH = 64, 1200  # Pixels: least height of an example, and width of a sheet.
_PAUSE = 0.1  # Seconds of silence after each sound.


class Split(NamedTuple):
  """The size and the first examples of a split.

  Attributes:
    number: number of examples.
    first: the first examples as model inputs, {modality: [_SHOWN, ...]}, and the masks of those
      that lack a modality (`data/missing.py`).
  """

  number: int
  first: Mapping[str, np.ndarray]


def main(argv: Sequence[str]) -> None:
  """Prepares and checks the data set, prints a report and draws the contact sheets."""
  del argv
  name = _DATASET.value
  data = options(name) | {"data_dir": _DATA_DIR.value, "manual_dir": _MANUAL_DIR.value}
  modalities = datasets.modalities(**data)
  out = storage.on_disk(
    _OUT.value or os.path.join("contact_sheets", name), "The folder for the contact sheets (--out)"
  )
  files = {file for modality in modalities for file in _files(modality)} | {REPORT}
  _check_folder(out, name, files)
  storage.check_writable(out.parent, "--out")
  arrays, splits = {}, {}
  with _logging_to_stdout():
    for split in SPLITS:
      print(f"{name}, {split}: reading and checking ...", flush=True)
      arrays[split] = datasets.load(split=split, **data)
      splits[split] = check(name, split, modalities, arrays[split])
  report = table(name, modalities, splits) + in_both(modalities, *arrays.values())
  print(report, end="")
  names = {path.name for path in out.iterdir()} if out.exists() else set()
  if names == files and (out / REPORT).read_text() == report:
    print(f"Everything was prepared before. The contact sheets are in {out}.")
    return
  write(out, modalities, splits["train"].first, report)
  print(f"Wrote the contact sheets into {out}.")


def options(name: str) -> dict[str, Any]:
  """Returns the options of `datasets.load` except the split: the preset's, or the name alone."""
  for configs in (mld, mt_diffusion):
    with contextlib.suppress(UserError):
      return configs.get_config(name).data.to_dict()
  return {"name": name}


def _check_folder(out: pathlib.Path, name: str, files: Set[str]) -> None:
  """Raises UserError unless a folder is absent, empty or has only this data set's sheets."""
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return
  report = out / REPORT
  is_ours = report.is_file() and report.read_bytes().startswith(f"\n{name}, ".encode())
  if not is_ours or not {path.name for path in out.iterdir()} <= files:
    raise UserError(
      f"There are other files in {out}, the folder for the contact sheets. Name another folder "
      "with --out."
    )


def check(
  name: str, split: str, modalities: Sequence[Modality], arrays: Mapping[str, np.ndarray]
) -> Split:
  """Checks a split against its modalities.

  Args:
    name: the data set.
    split: the split.
    modalities: the modalities that it must have.
    arrays: the model inputs of the split; may be columns that are computed when read.

  Returns:
    Its number of examples and the first examples.

  Raises:
    UserError: the split is empty, a modality is missing or has another number of examples than the
      others, or the first examples do not have the modality's shape, type or range.
  """
  if missing := [modality.name for modality in modalities if modality.name not in arrays]:
    raise UserError(f"The split {split!r} of the data set {name!r} has no {', '.join(missing)}.")
  numbers = {modality.name: len(arrays[modality.name]) for modality in modalities}
  if len(set(numbers.values())) != 1 or 0 in numbers.values():
    raise UserError(
      f"The split {split!r} of the data set {name!r} must have examples, the same number for each "
      f"modality; it has {numbers}. Check the folders given as --data_dir and --manual_dir."
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
  """Formats the contents of a data set: its splits; each modality's kind, shape, type and size."""
  lines = [
    "",
    *(f"{name}, {split}: {part.number:,} examples, checked" for split, part in splits.items()),
  ]
  rows = [("modality", "kind", "shape", "type", "classes", *(f"MB, {split}" for split in splits))]
  for modality in modalities:
    first = next(iter(splits.values())).first[modality.name]
    sizes = (part.number * first[0].nbytes / 1e6 for part in splits.values())
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
  return "\n".join([*lines, "MB are those of the model inputs in memory.", ""])


def in_both(
  modalities: Sequence[Modality], train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
) -> str:
  """Warns, in a line per modality, of test examples that are in training, too, bit for bit.

  Labels, texts and masks are left out, since they are often equal, and so are constant examples.
  A few others can be equal by chance, such as drawings of a few points; many mean that the splits
  overlap.
  """
  lines = []
  for modality in modalities:
    if modality.kind in ("label", "text", "mask"):
      continue
    ours, theirs = (_present(arrays, modality.name) for arrays in (train, test))
    # A constant example, such as a fully masked image, does not count.
    rows = np.array([i for i in pairing.shared(ours, theirs) if np.ptp(theirs[int(i)])], int)
    if len(rows):
      lines.append(
        f"Warning: {len(rows):,} of {len(theirs):,} test examples of {modality.name!r} are in "
        f"training, too; the first rows are {rows[:5].tolist()}.\n"
      )
  return "".join(lines)


def _present(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray | pairing.Column:
  present = arrays.get(f"{name}_present")
  return arrays[name] if present is None else arrays[name][np.asarray(present)]


def write(
  out: pathlib.Path,
  modalities: Sequence[Modality],
  first: Mapping[str, np.ndarray],
  report: str,
) -> None:
  """Writes a sheet for each modality, all of them or none; example i is at position i in each.

  A modality that an example lacks is a black image, no sound, or an empty line.

  Args:
    out: the folder; the files of an earlier run in it are replaced.
    modalities: the modalities to draw.
    first: the examples' model inputs, {modality: [n, ...]}, and the masks of those that lack one.
    report: text to save with them.

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
      f"The contact sheets cannot be written to {out} ({error}); no file was left there. "
      "Free some space, or name another folder with --out."
    ) from error


def _files(modality: Modality) -> tuple[str, ...]:
  """Returns the names of the files that `_draw` writes."""
  suffixes = {"text": ("txt",), "label": ("txt",), "audio": ("png", "wav")}
  return tuple(f"{modality.name}.{suffix}" for suffix in suffixes.get(modality.kind, ("png",)))


def _draw(folder: pathlib.Path, modality: Modality, rows: np.ndarray, present: np.ndarray) -> None:
  """Writes a modality's examples as an image, a sound or text."""
  # They take long to import.
  from PIL import Image
  from scipy.io import wavfile

  path = folder / modality.name
  if modality.kind in ("text", "label"):
    lines = [
      modality.show(row) if is_present else ""
      for row, is_present in zip(rows, present, strict=True)
    ]
    path.with_suffix(".txt").write_text("".join(f"{line}\n" for line in lines))
    return
  tiles = [
    np.where(is_present, picture(modality, row), np.uint8(0))
    for row, is_present in zip(rows, present, strict=True)
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
    pcm = np.round(np.clip(sound, -1.0, 1.0) * 32767).astype(np.int16)
    wavfile.write(path.with_suffix(".wav"), modality.sample_rate, pcm)


@contextlib.contextmanager
def _logging_to_stdout() -> Iterator[None]:
  """Prints, within the context, the log of the data sources: what they find, prepare and check."""
  log, handler = logging.getLogger("mmdiff_jax.data"), logging.StreamHandler(sys.stdout)
  saved = log.level, log.propagate
  log.propagate = False
  log.setLevel(logging.INFO)
  log.addHandler(handler)
  try:
    yield
  finally:
    log.removeHandler(handler)
    log.propagate = saved[1]
    log.setLevel(saved[0])


if __name__ == "__main__":
  setup.run(main, required=("dataset",))
