"""Specs of `folder` for public data sets, in the layout in which they unpack; without downloads.

Each function returns a config's `data.columns`. `size` is the size of images and masks, `length`
the length of captions in bytes. If a folder has no splits, `folder.open_folder` makes them.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from mmdiff_jax.data import audio, columns as columns_lib

Columns = dict[str, dict[str, Any]]
Size = tuple[int, int]

# The parts of a face in the order in which the authors of CelebAMask-HQ paint them.
FACE = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth")
FACE += ("u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")


def cub(*, size: Size, length: int) -> Columns:
  """CUB-200-2011 with captions: `images/CLASS/NAME.jpg`, `text/CLASS/NAME.txt`."""
  return {
    "image": {"read": "image", "size": size, "place": "images"},
    "caption": {"read": "text", "length": length, "place": "text"},
    "label": {"read": "label", "of": "image", "num_classes": 200},
  }


def celebamask_hq(*, size: Size, length: int) -> Columns:
  """CelebAMask-HQ with captions.

  The files are `CelebA-HQ-img/7.jpg`, `CelebAMask-HQ-mask-anno/0/00007_nose.png` and so on for each
  part, `text/7.txt`, and `sketch/7.png`; without a folder `sketch`, sketches are made from the
  images.
  """
  parts = {
    "names": FACE,
    "place": "CelebAMask-HQ-mask-anno",
    "pattern": r"[0-9]+/0*(?P<several>[0-9]+)_\w+\.png",
  }
  return {
    "image": {"read": "image", "size": size, "place": "CelebA-HQ-img"},
    "sketch": {"read": "sketch", "of": "image"},
    "mask": {"read": "parts", "size": size, **parts},
    "partial_mask": {"read": "partial_mask", "of": "mask"},
    "caption": {"read": "text", "length": length, "place": "text"},
  }


def paired_images(
  *,
  size: Size,
  places: Sequence[str] = ("source", "target"),
  patterns: tuple[str, str] = (columns_lib.IMAGES, columns_lib.IMAGES),
) -> Columns:
  """Pairs of images, `source` and `target`, in two folders or side by side in one file.

  Args:
    size: height and width of either.
    places: the two folders, or the one folder of files that contain both images.
    patterns: patterns of the files in them, as `columns_lib.files` takes them.
  """
  halves = ("left", "right") if len(places) == 1 else ("", "")
  return {
    name: {"read": "image", "size": size, "place": path, "pattern": pattern, "half": half}
    for name, path, pattern, half in zip(
      ("source", "target"), (*places, *places)[:2], patterns, halves, strict=True
    )
  }


def night2day(*, size: Size) -> Columns:
  """The pairs of night2day, `train/PLACE/TIME.jpg` and so on, with night and day in one file."""
  return paired_images(size=size, places=["{split}"])


def cityscapes(*, size: Size) -> Columns:
  """Street photos and painted classes: `leftImg8bit/SPLIT/CITY/...`, `gtFine/SPLIT/CITY/...`.

  The classes of its split "test" are not public; test on "val".
  """
  return paired_images(
    size=size,
    places=["leftImg8bit/{split}", "gtFine/{split}"],
    patterns=(r"(.*)_leftImg8bit\.png", r"(.*)_gtFine_color\.png"),
  )


# The drive of a frame, 0001TP of 0001TP_006690, for `together` of `folder.open_folder`.
CAMVID_DRIVE = "[^_]+"


def camvid(*, size: Size) -> Columns:
  """Street photos and painted classes: `701_StillsRaw_full/X.png`, `LabeledApproved_full/X_L.png`.

  The frames of a drive are alike: keep them together by `CAMVID_DRIVE`, with which `test_share=0.2`
  makes the drive Seq05VD the test split.
  """
  return paired_images(
    size=size,
    places=["701_StillsRaw_full", "LabeledApproved_full"],
    patterns=(columns_lib.IMAGES, r"(.*)_L\.png"),
  )


def camvid_classes(*, size: Size) -> Columns:
  """Street photos and label maps of CamVid in twelve classes: `SPLIT/X.png`, `SPLITannot/X.png`.

  Its splits are train, val and test, which separate the drives; class 11 is pixels without a class.
  """
  return {
    "image": {"read": "image", "size": size, "place": "{split}"},
    "mask": {"read": "mask", "size": size, "num_classes": 12, "place": "{split}annot"},
  }


def audiocaps(*, view: audio.LogMel, length: int, key: str = "youtube_id") -> Columns:
  """AudioCaps: `SPLIT.csv` with a column `caption`, and `SPLIT/ID.wav` by its column `key`.

  Many sounds are no longer available; `incomplete="drop"` leaves out their examples.
  """
  table = {"place": "{split}.csv", "key": key, "column": "caption"}
  return {
    "sound": {"read": "sound", "view": dataclasses.asdict(view), "place": "{split}"},
    "caption": {"read": "table", "length": length, **table},
  }
