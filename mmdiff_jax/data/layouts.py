"""Opens public data sets as they unpack, through `folder`; nothing is downloaded.

All take the folder, the split, sizes, and the options of `folder.open_folder`; `length` is that of
the caption, in bytes. To be a data set of a config, call one of them in a `load`.
"""

from collections.abc import Sequence
import csv
import dataclasses
import functools
import os
import pathlib

from mmdiff_jax.data import audio, folder, readers
from mmdiff_jax.errors import UserError

Root = str | os.PathLike[str]

# The parts of a face in the order in which the authors of CelebAMask-HQ paint them.
FACE = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth")
FACE += ("u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")


def cub(root: Root, split: str, *, size: readers.Size, length: int, **options) -> folder.Folder:
  """CUB-200-2011 with captions: `images/CLASS/NAME.jpg`, `text/CLASS/NAME.txt`."""
  images = folder.image("image", size, place="images")
  captions = folder.text("caption", length, place="text")
  return folder.open_folder(root, (images, captions), split, **options)


def celebamask_hq(
  root: Root, split: str, *, size: readers.Size, length: int, **options
) -> folder.Folder:
  """CelebAMask-HQ with captions: image, sketch, mask, partial_mask and caption.

  The files are `CelebA-HQ-img/7.jpg`, `CelebAMask-HQ-mask-anno/0/00007_nose.png` and so on for each
  part, `text/7.txt`, and `sketch/7.png`; without a folder `sketch` they are made of the images.
  """
  images = folder.image("image", size, place="CelebA-HQ-img")
  drawn = (pathlib.Path(root) / "sketch").is_dir()
  sketches = folder.image("sketch", size, 1) if drawn else folder.sketch("sketch", images)
  masks = dataclasses.replace(
    folder.mask(
      "mask",
      size,
      len(FACE) + 1,
      place="CelebAMask-HQ-mask-anno",
      pattern=r"[0-9]+/0*(?P<several>[0-9]+)_\w+\.png",
    ),
    read=functools.partial(readers.parts, size=size, names=FACE),
  )
  partial_masks = folder.partial_mask("partial_mask", masks)
  captions = folder.text("caption", length, place="text")
  columns = (images, sketches, masks, partial_masks, captions)
  return folder.open_folder(root, columns, split, **options)


def paired_images(
  root: Root,
  split: str,
  *,
  size: readers.Size,
  places: Sequence[str],
  patterns: tuple[str, str] = (folder.IMAGES, folder.IMAGES),
  **options,
) -> folder.Folder:
  r"""Pairs of images, `source` and `target`, in two folders or side by side in one file.

  * night2day: `places=["{split}"]`;
  * Cityscapes: `places=["leftImg8bit/{split}", "gtFine/{split}"]` and
    `patterns=(r"(.*)_leftImg8bit\.png", r"(.*)_gtFine_color\.png")`, splits "train" and "val";
  * CamVid: `places=["701_StillsRaw_full", "LabeledApproved_full"]` and
    `patterns=(folder.IMAGES, r"(.*)_L\.png")`.

  Args:
    root: the folder.
    split: the split.
    size: height and width of either.
    places: the folders of the two, or the one of the files that hold both.
    patterns: of the files in them, as `folder.files` takes them.
    **options: of `folder.open_folder`.
  """
  halves = ("left", "right") if len(places) == 1 else ("", "")
  source, target = (
    folder.image(name, size, place=place, pattern=pattern, half=half)
    for name, place, pattern, half in zip(
      ("source", "target"), (*places, *places)[:2], patterns, halves, strict=True
    )
  )
  return folder.open_folder(root, (source, target), split, **options)


def audiocaps(
  root: Root,
  split: str,
  *,
  view: audio.LogMel,
  length: int,
  key: str = "youtube_id",
  **options,
) -> folder.Folder:
  """AudioCaps: `SPLIT.csv` with a column `caption`, and `SPLIT/ID.wav` by its column `key`.

  Many sounds are no longer to be had; `incomplete="drop"` goes without.
  """
  captions = dataclasses.replace(
    folder.text("caption", length, place="{split}.csv"),
    find=functools.partial(_captions, key=key),
  )
  sounds = folder.sound("sound", view, place="{split}")
  return folder.open_folder(root, (sounds, captions), split, **options)


def _captions(path: pathlib.Path, *, key: str) -> dict[str, list[str]]:
  """The captions of a CSV file by another column."""
  found = {}
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      for row in (rows := csv.DictReader(file, strict=True)):
        if not row[key] or not (row["caption"] or "").strip():
          raise csv.Error(f"line {rows.line_num} has no {key} or no caption")
        found.setdefault(row[key], []).append(row["caption"])
  except (OSError, UnicodeError, csv.Error) as error:
    raise UserError(f"The file {path} cannot be read as CSV: {error}. Get it again.") from error
  except KeyError as error:
    raise UserError(f"The file {path} has no column {error}. Name it in its first line.") from error
  return found
