import numpy as np
from PIL import Image
import pytest

from mmdiff_jax.data import poly_mnist
from mmdiff_jax.errors import UserError

_NAMES = ("m0", "m1", "m2", "m3", "m4")


@pytest.fixture
def data(handwriting, monkeypatch):
  monkeypatch.setattr(poly_mnist, "COUNTS", {"train": 80, "test": 20})
  return {split: poly_mnist.load(split) for split in ("train", "test")}


def test_five_different_digits_of_one_class(data, handwriting):
  for split, count in (("train", 80), ("test", 20)):
    labels = data[split]["label"]
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, count))
    index = np.stack([data[split][name].index[:, 0] for name in _NAMES], axis=1)
    assert all(len(set(row)) == 5 for row in index.tolist())
    classes = handwriting[split].labels[index]
    np.testing.assert_array_equal(classes, labels[:, None].repeat(5, 1))


def test_picture_is_the_crop_and_under_ink_its_negative(data, handwriting, tmp_path):
  photos = poly_mnist.backgrounds(tmp_path / "none")
  for name, photo in zip(_NAMES, photos, strict=True):
    column = data["test"][name]
    for picture, (digit, top, left) in zip(column[:20], column.index[:20], strict=True):
      crop = photo[top : top + 28, left : left + 28] / 255
      ink = handwriting["test"].items[digit] / 255
      np.testing.assert_allclose(picture, crop + ink * (1 - 2 * crop), atol=1e-6)
      assert picture.dtype == np.float32


def test_same_row_gives_the_same_picture_and_splits_differ(data):
  for name in _NAMES:
    column = data["train"][name]
    np.testing.assert_array_equal(column[[3, 5, 3]][0], column[3])
  places = [data[split]["m0"].index[:200, 1:] for split in ("train", "test")]
  assert (places[0] != places[1]).any()


def test_backgrounds_differ_in_colour_and_contrast(data):
  pictures = [data["train"][name][:200] for name in _NAMES]
  colours = np.stack([np.concatenate([x.mean((0, 1, 2)), x.std((0, 1, 2))]) for x in pictures])
  gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
  assert gaps[~np.eye(5, dtype=bool)].min() > 0.05


def test_crops_can_be_read_on():
  photo = np.full((40, 90, 3), 128, np.uint8)
  photo[:, 60:] = 250
  places = poly_mnist.crop_places(photo)
  assert len(places) and places[:, 1].min() > 30 and places[:, 0].max() == 40 - 28
  contrast = [np.abs(1 - photo[r : r + 28, c : c + 28] / 127.5).mean() for r, c in places]
  assert min(contrast) > 0.35
  everywhere = poly_mnist.crop_places(np.full((30, 30, 3), 128, np.uint8))
  assert len(everywhere) == 9


def test_photos_of_ones_own_take_the_place(handwriting, monkeypatch, tmp_path):
  monkeypatch.setattr(poly_mnist, "COUNTS", {"train": 4, "test": 4})
  folder = tmp_path / "poly_mnist"
  folder.mkdir()
  for i in range(6):
    Image.new("RGB", (30 + i, 40), (10 * i, 0, 0)).save(folder / f"{i}.png")
  data = poly_mnist.load("test", None, str(tmp_path))
  for i, name in enumerate(_NAMES):
    assert data[name][0][0, 0, 0] == np.float32(10 * i / 255)
  (folder / "0.png").unlink()
  (folder / "1.png").unlink()
  with pytest.raises(UserError, match="4 photos.*five are needed"):
    poly_mnist.load("test", None, str(tmp_path))
  for i in range(2):
    Image.new("RGB", (20, 40)).save(folder / f"{i}.jpg")
  with pytest.raises(UserError, match="0.jpg is smaller than 28"):
    poly_mnist.load("test", None, str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_photo_is_named(tmp_path, suffix):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
  for i in range(5):
    Image.fromarray(noise).save(tmp_path / f"{i}.{suffix}")
  path = tmp_path / f"3.{suffix}"
  whole = path.read_bytes()
  damaged = [whole[:keep] for keep in (0, 1, 20, 40, len(whole) // 2, len(whole) - 40)]
  if suffix == "png":  # A JPEG has no checksum.
    places = range(0, len(whole), 97)
    damaged += [whole[:i] + bytes([whole[i] ^ 8]) + whole[i + 1 :] for i in places]
  for content in damaged:
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} cannot be read"):
      poly_mnist.backgrounds(tmp_path)


def test_photos_are_read_as_images_are(tmp_path):
  (tmp_path / "0.png").mkdir()  # No file.
  deep = np.full((30, 40), 257 * 200, np.uint16)
  for i in range(1, 6):
    Image.fromarray(deep).save(tmp_path / f"{i}.png")
  flag = Image.Exif()
  flag[0x0112] = 6
  Image.new("RGB", (30, 50)).save(tmp_path / "1.png", exif=flag)
  photos = poly_mnist.backgrounds(tmp_path)
  assert photos[0].shape == (30, 50, 3)
  assert (photos[1] == 200).all()
