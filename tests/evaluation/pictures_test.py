import numpy as np
from PIL import Image

from mmdiff_jax.evaluation import pictures
from mmdiff_jax.modalities import image_picture, Modality, video_picture

IMAGE = Modality("image", "image", (4, 4, 1), image_picture)
SOUND = Modality("sound", "audio", (5, 4), str, sample_rate=100)
WORDS = Modality("words", "text", (3,), lambda x: "w" * len(x), num_classes=5)

ROWS = {
  "image": np.full((5, 4, 4, 1), 0.5, np.float32),
  "sound": np.full((5, 5, 4), 0.5, np.float32),
  "words": np.zeros((5, 3), np.int32),
}


def drawn(tmp_path, sheet):
  pictures.draw(tmp_path / "sheet.png", (IMAGE, SOUND, WORDS), sheet)
  return np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))


def test_draws_all_kinds_that_a_panel_has(tmp_path):
  generated = {name: x for name, x in ROWS.items() if name != "words"}
  both = pictures.Panel("Both", generated, {"words": ROWS["words"]})
  two = drawn(tmp_path, [both, both])
  one = drawn(tmp_path, [both])
  silent = drawn(tmp_path, [pictures.Panel("Image", {"image": ROWS["image"]})])
  assert two.shape[0] > 1.8 * one.shape[0] > 1.8 * silent.shape[0]
  # Five pictures of half grey, as wide as if each were alone.
  assert 0.2 < np.mean(np.all(silent == 128, -1)) < 0.8
  assert np.any(np.ptp(one.astype(int), axis=-1) > 50)  # Colours of the spectrogram.


def test_modality_that_is_given_and_generated_again_is_drawn_twice(tmp_path):
  """The two have different greys, and the given one is above."""
  generated = {"image": np.full((5, 4, 4, 1), 0.25, np.float32)}
  sheet = drawn(tmp_path, [pictures.Panel("Again", generated, {"image": ROWS["image"]})])
  above, below = (np.nonzero((sheet == grey).all(-1))[0] for grey in (128, 64))
  # Five pictures of 0.8 inches a side, less the space between them.
  assert min(len(above), len(below)) > 0.5 * 5 * 96**2
  assert np.percentile(above, 99) < np.percentile(below, 1)


def clips():
  """Returns three videos of four frames, each of one grey."""
  greys = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
  return np.broadcast_to(greys[..., None, None, None], (3, 4, 6, 6, 1))


def test_draws_all_frames_of_a_video_in_a_square(tmp_path):
  video = Modality("clip", "video", (4, 6, 6, 1), video_picture)
  pictures.draw(tmp_path / "clip.png", [video], [pictures.Panel("Clip", {"clip": clips()})])
  drawn = np.asarray(Image.open(tmp_path / "clip.png").convert("RGB"))
  for grey in image_picture(clips()[:, :, 0, :1, 0])[..., 0].ravel():
    # A quarter of a column's width would be 23 pixels, half of it 41.
    rows, columns = np.nonzero((drawn == grey).all(-1))
    if 0 < grey < 255:
      assert np.ptp(rows) > 30 and np.ptp(columns) > 30


def test_draws_trajectories_and_masks_as_pictures(tmp_path):
  def red(x):
    return np.full((8, 8, 3), (255, 0, 0), np.uint8)

  for kind in ("trajectory", "mask"):
    modality = Modality("seen", kind, (2, 2), red, num_classes=2 * (kind == "mask"))
    sheet = [pictures.Panel("Seen", {"seen": np.zeros((3, 2, 2), np.float32)})]
    pictures.draw(tmp_path / "seen.png", [modality], sheet)
    drawn = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB"))
    assert np.mean(np.all(drawn == (255, 0, 0), -1)) > 0.2


def test_panels_are_split_by_number_of_columns():
  parts = pictures.panels(pictures.Panel("All", ROWS, {"image": ROWS["image"]}), 2)
  assert [len(part.rows["words"]) for part in parts] == [2, 2, 1]
  assert [part.title for part in parts] == ["All", "", ""]
  for part_name in ("rows", "given"):
    images = np.concatenate([getattr(part, part_name)["image"] for part in parts])
    np.testing.assert_array_equal(images, ROWS["image"])
