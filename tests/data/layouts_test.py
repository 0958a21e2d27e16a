import numpy as np
from PIL import Image
import pytest
import soundfile

from configs import mld
from mmdiff_jax.data import audio, columns as columns_lib, derived, folder, layouts
from mmdiff_jax.errors import UserError

_SIZE = (6, 8)
_RNG = np.random.default_rng(0)
_VIEW = audio.LogMel()


def _pixels(i, shape=_SIZE):
  return np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def _write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, "utf-8")


def _open(root, columns, split="train", **options):
  return folder.open_folder(root, columns_lib.parse(columns), split, **options)


def _caption(data, example):
  (modality,) = (m for m in data.modalities if m.name == "caption")
  return modality.show(example["caption"])


def test_cub(tmp_path):
  for i, kind in enumerate(("001.Black_footed_Albatross", "002.Laysan_Albatross")):
    name = f"{kind}/{kind[4:]}_000{i}_79{i}"
    _save(tmp_path / "images" / f"{name}.jpg", _pixels(i))
    _write(tmp_path / "text" / f"{name}.txt", f"bird {i}\n" * 10)
  _write(tmp_path / "images.txt", "1 001.Black_footed_Albatross/x.jpg")
  columns = layouts.cub(size=_SIZE, length=12)
  with pytest.raises(UserError, match="images has files in 2 folders .* 200 classes"):
    _open(tmp_path, columns, test_share=0.0)
  columns["label"]["num_classes"] = 2
  data = _open(tmp_path, columns, test_share=0.0)
  assert [m.name for m in data.modalities] == ["image", "caption", "label"]
  assert [int(example["label"]) for example in data] == [0, 1]
  assert [_caption(data, example) for example in data] == ["bird 0", "bird 1"]
  assert data[0]["image"].shape == (*_SIZE, 3)


def _faces(root):
  for i in (7, 2001):
    _save(root / "CelebA-HQ-img" / f"{i}.jpg", _pixels(i, (12, 16)))
    _write(root / "text" / f"{i}.txt", f"face {i}")
    for part, rows in (("skin", np.s_[1:5]), ("nose", np.s_[2:3]), ("hair", np.s_[:2])):
      pixels = np.zeros((*_SIZE, 3), np.uint8)
      pixels[rows] = 255
      folder_of_parts = root / "CelebAMask-HQ-mask-anno" / str(i // 2000)
      _save(folder_of_parts / f"{i:05d}_{part}.png", pixels)
  _write(root / "CelebAMask-HQ-pose-anno.txt", "x")


def test_celebamask_hq(tmp_path):
  _faces(tmp_path)
  columns = layouts.celebamask_hq(size=_SIZE, length=12)
  data = _open(tmp_path, columns, test_share=0.0)
  names = [modality.name for modality in data.modalities]
  assert names == ["image", "sketch", "mask", "partial_mask", "caption"]
  assert data.stems == ("2001", "7")
  skin, nose, hair = (layouts.FACE.index(part) + 1 for part in ("skin", "nose", "hair"))
  for stem, example in zip(data.stems, data, strict=True):
    assert _caption(data, example) == f"face {stem}"
    np.testing.assert_array_equal(example["mask"][:, 3], [hair, hair, nose, skin, skin, 0])
    part = example["partial_mask"]
    assert ((part == example["mask"]) | (part == 0)).all()
    np.testing.assert_array_equal(example["sketch"], derived.sketch(example["image"], _RNG))
  # Sketches are read if they have a folder.
  for i in (7, 2001):
    _save(tmp_path / "sketch" / f"{i}.png", _pixels(i)[..., 0])
  sketch = _open(tmp_path, columns, test_share=0.0)[1]["sketch"]
  np.testing.assert_array_equal(sketch, _pixels(7)[..., :1] / np.float32(255))


def test_night2day_is_split_into_halves(tmp_path):
  for i, split in enumerate(("train", "val")):
    _save(tmp_path / split / "13412" / "20130101.png", np.hstack([_pixels(i), _pixels(i + 9)]))
  for i, split in enumerate(("train", "val")):
    (pair,) = _open(tmp_path, layouts.night2day(size=_SIZE), split)
    np.testing.assert_array_equal(pair["source"], _pixels(i) / np.float32(255))
    np.testing.assert_array_equal(pair["target"], _pixels(i + 9) / np.float32(255))


@pytest.mark.parametrize(
  "files, columns, split",
  [
    (
      ("leftImg8bit/val/bonn/bonn_1_leftImg8bit.png", "gtFine/val/bonn/bonn_1_gtFine_color.png"),
      layouts.cityscapes(size=_SIZE),
      "val",
    ),
    (
      ("701_StillsRaw_full/1.png", "LabeledApproved_full/1_L.png"),
      layouts.camvid(size=_SIZE),
      "train",
    ),
    (
      ("valA/1.png", "valB/1.png"),
      layouts.paired_images(size=_SIZE, places=["{split}A", "{split}B"]),
      "val",
    ),
    (("source/1.png", "target/1.png"), layouts.paired_images(size=_SIZE), "train"),
  ],
)
def test_pairs_from_two_folders(tmp_path, files, columns, split):
  for i, file in enumerate(files):
    _save(tmp_path / file, _pixels(i))
    _write((tmp_path / file).with_suffix(".json"), "{}")
  if "gtFine" in files[1]:  # Cityscapes has other pictures in the same folder.
    _save((tmp_path / files[1]).with_name("bonn_1_gtFine_instanceIds.png"), _pixels(5))
  (pair,) = _open(tmp_path, columns, split, test_share=0.0)
  for i, name in enumerate(("source", "target")):
    np.testing.assert_array_equal(pair[name], _pixels(i) / np.float32(255))


def test_drives_of_camvid_are_not_split(tmp_path):
  drives = ("0001TP", "0006R0", "0016E5", "Seq05VD")
  for i, drive in enumerate(drives):
    for frame in ("000", "030", "f060"):
      _save(tmp_path / "701_StillsRaw_full" / f"{drive}_{frame}.png", _pixels(i))
      _save(tmp_path / "LabeledApproved_full" / f"{drive}_{frame}_L.png", _pixels(i))
  config = mld.get_config("camvid").data
  options = {"test_share": config.test_share, "together": config.together}
  drives_by_split = {}
  for split in ("train", "test"):
    stems = _open(tmp_path, layouts.camvid(size=_SIZE), split, **options).stems
    drives_by_split[split] = {stem.partition("_")[0] for stem in stems}
  assert drives_by_split == {"train": set(drives[:3]), "test": {"Seq05VD"}}


def test_classes_of_camvid_are_numbers(tmp_path):
  classes = np.arange(_SIZE[0] * _SIZE[1], dtype=np.uint8).reshape(_SIZE) % 12
  for split in ("train", "test"):
    _save(tmp_path / split / "1.png", _pixels(split == "test"))
    _save(tmp_path / f"{split}annot" / "1.png", classes)
  (pair,) = _open(tmp_path, layouts.camvid_classes(size=_SIZE), "test")
  np.testing.assert_array_equal(pair["image"], _pixels(1) / np.float32(255))
  np.testing.assert_array_equal(pair["mask"], classes)


def _sounds(root, names, table):
  (root / "val").mkdir()
  for i, name in enumerate(names):
    wave = 0.5 * np.sin(np.arange(_VIEW.samples) * (0.5 + 0.3 * i))
    soundfile.write(root / "val" / f"{name}.wav", wave, _VIEW.sample_rate)
  _write(root / "val.csv", table)


_TABLE = """audiocap_id,youtube_id,start_time,caption
1,-ab_C,30,"Rain, then a bark"
2,xyz,10,A bell
3,-ab_C,30,"Rain, then a bark"
4,gone,10,A horn
"""


def test_audiocaps(tmp_path):
  _sounds(tmp_path, ["-ab_C", "xyz"], _TABLE)
  columns = layouts.audiocaps(view=_VIEW, length=20)
  with pytest.raises(UserError, match="1 of 3 examples in .* no 'sound': gone"):
    _open(tmp_path, columns, "val")
  data = _open(tmp_path, columns, "val", incomplete="drop")
  assert data.stems == ("-ab_C", "xyz")
  assert [_caption(data, example) for example in data] == ["Rain, then a bark", "A bell"]
  assert data[0]["sound"].max() > 0.8
  kept = _open(tmp_path, columns, "val", incomplete="keep")
  assert [bool(example["sound_present"]) for example in kept] == [True, False, True]


@pytest.mark.parametrize(
  "table, complaint",
  [
    ("youtube_id,text\nxyz,A bell\n", "val.csv has no column 'caption'"),
    ('youtube_id,caption\nxyz,"A bell\n', "val.csv cannot be read as CSV"),
    ("youtube_id,caption\nxyz\n", "val.csv .* line 2 has no youtube_id or no caption"),
    ("youtube_id,caption\nxyz,  \n", "val.csv .* line 2 has no youtube_id or no caption"),
    (None, "val.csv cannot be read as CSV"),
  ],
)
def test_invalid_table_is_refused(tmp_path, table, complaint):
  _sounds(tmp_path, ["xyz"], table or "")
  if table is None:
    (tmp_path / "val.csv").unlink()
  with pytest.raises(UserError, match=complaint):
    _open(tmp_path, layouts.audiocaps(view=_VIEW, length=9), "val")
