import dataclasses
import io

import numpy as np
from PIL import Image
import pytest

from mmdiff_jax import modalities
from mmdiff_jax.modalities import Modality

_IMAGE = Modality("page", "image", (2, 3, 1), modalities.image_picture)
_AUDIO = Modality("tone", "audio", (4, 3), lambda mel: mel.ravel(), sample_rate=8000)
_PEN = Modality("pen", "trajectory", (8, 2), modalities.trajectory_picture)
_LABEL = Modality("label", "label", (), str, num_classes=10)


@pytest.mark.parametrize("shape", ["ab", [2, 3, 1], (2.0, 3, 1), None])
def test_a_shape_is_a_tuple_of_integers(shape, unchecked):
  with pytest.raises(TypeError, match="modality 'page': shape=.*tuple of integers"):
    Modality("page", "image", shape, modalities.image_picture)


@pytest.mark.parametrize(
  "fields", [{"name": 3}, {"name": ""}, {"shape": (2, 0, 1)}, {"num_classes": "3"}]
)
def test_fields_of_a_modality_are_checked(fields, unchecked):
  with pytest.raises((TypeError, ValueError), match="modality .*(name|shape|num_classes)"):
    Modality(**{"name": "page", "kind": "image", "shape": (2, 3, 1), "show": str, **fields})


def test_grey_and_colour_images_become_pictures():
  grey = np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, 0.2]], np.float32)[..., None]
  picture = modalities.picture(_IMAGE, grey)
  assert picture.dtype == np.uint8
  np.testing.assert_array_equal(picture[..., 0], [[0, 128, 255], [0, 255, 51]])
  np.testing.assert_array_equal(picture, picture[..., :1].repeat(3, -1))
  colour = np.array([[[1.0, 0.0, 0.2]]], np.float32)
  np.testing.assert_array_equal(modalities.image_picture(colour), [[[255, 0, 51]]])


def test_spectrogram_has_time_to_the_right_pitch_upwards_and_loud_is_bright():
  spectrogram = np.zeros((4, 3), np.float32)
  spectrogram[1, 2] = 1.0  # Second frame, highest band.
  brightness = modalities.picture(_AUDIO, spectrogram).astype(int).sum(-1)
  assert brightness.shape == (3, 4)
  assert np.unravel_index(brightness.argmax(), (3, 4)) == (0, 1)
  ramp = modalities.spectrogram_picture(np.linspace(0, 1, 30, dtype=np.float32)[:, None])
  luminance = ramp[0] @ np.array([0.299, 0.587, 0.114])
  assert (np.diff(luminance) > 0).all()


def test_mask_has_a_colour_for_each_class():
  classes = np.arange(512, dtype=np.int32).reshape(16, 32)
  colours = modalities.mask_picture(classes)
  assert colours.shape == (16, 32, 3) and colours.dtype == np.uint8
  assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 512
  # The first of Pascal VOC: background, aeroplane, bicycle, ..., sofa.
  voc = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 18: (0, 192, 0)}
  for c, colour in voc.items():
    np.testing.assert_array_equal(colours.reshape(-1, 3)[c], colour)
  mask = Modality("mask", "mask", (16, 32), modalities.mask_picture, num_classes=512)
  np.testing.assert_array_equal(modalities.picture(mask, classes), colours)


def test_trajectory_runs_through_its_points_y_upwards_and_brightens():
  corner = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]], np.float32)  # Down, then right.
  drawn = modalities.picture(_PEN, corner)[..., 0].astype(int)
  assert drawn.shape == (28, 28)
  row, column = np.nonzero(drawn)
  assert ((column < 5) | (row > 22)).all()
  down, right = drawn[3:23, 2], drawn[25, 4:25]
  assert (np.diff(down) >= 0).all() and (np.diff(right) >= 0).all()
  assert 0 < down[0] < down[-1] < right[-1] and right[-1] > 240


def test_trajectory_that_stands_still_is_a_dot():
  drawn = modalities.trajectory_picture(np.full((8, 2), 0.5, np.float32))
  assert 1 <= (drawn[..., 0] > 0).sum() <= 12 and drawn[12:16, 12:16].max() > 0


def test_video_is_a_strip_of_its_frames():
  frames = np.random.default_rng(0).uniform(size=(3, 2, 4, 1)).astype(np.float32)
  video = Modality("clip", "video", (3, 2, 4, 1), modalities.video_picture)
  strip = modalities.picture(video, frames)
  assert strip.shape == (4, 16, 3)
  for i in range(3):
    tile = strip[1:3, 5 * i + 1 : 5 * i + 5]
    np.testing.assert_array_equal(tile, modalities.image_picture(frames[i]))


@pytest.mark.parametrize("size, shape", [(1, (1, 1)), (5, (2, 3)), (6, (2, 3)), (256, (16, 16))])
def test_vector_is_cells_of_a_near_square_row_by_row(size, shape):
  values = np.linspace(-4.0, 4.0, size).astype(np.float32) if size > 1 else np.zeros(1, np.float32)
  vector = Modality("vector", "vector", (size,), modalities.vector_picture)
  cells = modalities.picture(vector, values)
  assert cells.shape == (*shape, 3) and cells.dtype == np.uint8
  row = cells.reshape(-1, 3)
  expected = np.clip(255 * (values + 3) / 6, 0, 255)
  np.testing.assert_allclose(row[:size], expected[:, None].repeat(3, 1), atol=0.51)
  assert (row[size:] == 128).all()


def test_bounds_are_those_of_the_kind():
  vector = Modality("vector", "vector", (2,), modalities.vector_picture)
  mask = Modality("mask", "mask", (2, 3), modalities.mask_picture, num_classes=5)
  one = dataclasses.replace(_LABEL, num_classes=1)
  assert [m.bounds for m in (_IMAGE, _AUDIO, _PEN, _LABEL, mask, one)] == [
    *[(0, 1)] * 3,
    (0, 9),
    (0, 4),
    (0, 0),
  ]
  assert vector.bounds == (-np.inf, np.inf)


def test_grid_places_pictures_in_rows_with_white_between():
  tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
  sheet = modalities.grid(tiles, 2)
  assert sheet.shape == (7, 9, 3)
  np.testing.assert_array_equal(sheet[1:3, 1:4], tiles[0])
  np.testing.assert_array_equal(sheet[1:3, 5:8], tiles[1])
  np.testing.assert_array_equal(sheet[4:6, 1:4], tiles[2])
  sheet[1:3, 1:4] = sheet[1:3, 5:8] = sheet[4:6, 1:4] = 255
  assert (sheet == 255).all()
  np.testing.assert_array_equal(
    modalities.grid(tiles, 2, zoom=3)[::3, ::3], modalities.grid(tiles, 2)
  )


def test_modalities_that_are_read_are_not_drawn():
  with pytest.raises(ValueError, match="is a label"):
    modalities.picture(_LABEL, np.zeros((), np.float32))


@pytest.mark.parametrize(
  "modality, change, complaint",
  [
    (_IMAGE, {"kind": "smell"}, "smell"),
    (_IMAGE, {"num_classes": 3}, "num_classes=3"),
    (_IMAGE, {"sample_rate": 8000}, "sample_rate=8000"),
    (_AUDIO, {"sample_rate": 0}, "sample_rate=0"),
    (_LABEL, {"num_classes": 0}, "num_classes=0"),
    (_IMAGE, {"kind": "vector", "num_classes": 3}, "num_classes=3"),
  ],
)
def test_contradiction_is_refused(modality, change, complaint):
  with pytest.raises(ValueError, match=complaint):
    dataclasses.replace(modality, **change)


def test_modality_can_be_a_static_argument():
  assert hash(_IMAGE) == hash(dataclasses.replace(_IMAGE)) and dataclasses.replace(_IMAGE) == _IMAGE


def test_videos_play_side_by_side():
  clips = np.random.default_rng(0).uniform(size=(3, 4, 1, 1, 1)).astype(np.float32)
  gif = Image.open(io.BytesIO(modalities.video_gif(clips.repeat(6, 2).repeat(6, 3), columns=2)))
  assert gif.n_frames == 4 and gif.info["loop"] == 0
  assert gif.size == (3 * 15, 3 * 15)
  for moment in range(4):
    gif.seek(moment)
    frame = np.asarray(gif.convert("L"), int)
    centres = frame[10, 10], frame[10, 31], frame[31, 10]
    np.testing.assert_allclose(centres, 255 * clips[:, moment, 0, 0, 0], atol=2)
