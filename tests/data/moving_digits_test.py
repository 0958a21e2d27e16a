import re

import numpy as np
import pytest

from mmdiff_jax.data import datasets, moving_digits, rendering


@pytest.fixture
def data(handwriting, monkeypatch):
  monkeypatch.setattr(moving_digits, "COUNTS", {"train": 40, "test": 20})
  return moving_digits.load("train")


def _centres(videos):
  """Centre of the ink (row, column) in each frame: [n, frames, 2]."""
  mass = videos[..., 0].sum((2, 3))
  places = np.arange(videos.shape[2])
  rows, columns = videos[..., 0].sum(3) @ places, videos[..., 0].sum(2) @ places
  return np.stack([rows, columns], -1) / mass[..., None]


def test_digit_moves_rigidly_within_the_frame(data):
  videos = data["video"][:]
  mass = videos.sum((2, 3, 4))
  np.testing.assert_allclose(mass, mass[:, :1].repeat(8, 1), rtol=1e-4)  # Nothing is cut off.
  moves = np.diff(_centres(videos), axis=1)
  assert np.abs(moves).max() < 4.01


def test_caption_and_heading_are_what_the_video_does_first(data):
  move = np.round(np.diff(_centres(data["video"][:]), axis=1)[:, 0])
  signs = np.array(list(moving_digits.HEADINGS.values()))[data["heading"]]
  np.testing.assert_array_equal(np.sign(move), signs)
  assert (np.abs(move).max(1) >= 2).all()
  words = {(-1, 0): "up", (1, 0): "down", (0, -1): "left", (0, 1): "right"}
  for tokens, (down, right), label in zip(data["caption"], signs, data["label"], strict=True):
    said = rendering.text_of(tokens)
    expected = [words[sign] for sign in ((down, 0), (0, right)) if any(sign)]
    assert re.findall("up|down|left|right", said) == expected
    assert re.match(r"(an? \w+) goes ", said)[1].split()[1] == rendering.NAMES[label]
    assert said.startswith("an ") == (label == 8)


def test_places_go_straight_and_bounce():
  places, _ = moving_digits.bounce(500, 18, np.random.default_rng(0))
  assert places.min() == 0 and places.max() == 18
  steps = np.abs(np.diff(places, axis=1))
  # A step is as long as the first unless the wall is met in it.
  short = steps < steps[:, :1]
  assert (steps <= steps[:, :1]).all()
  near = np.minimum(places, 18 - places)
  assert (np.minimum(near[:, :-1], near[:, 1:])[short] < 4).all()
  assert 0.05 < short.mean() < 0.4
  turned = (np.diff(places, axis=1)[:, :1] * np.diff(places, axis=1) < 0).any(1)
  assert turned.mean() > 0.3


def test_speeds_and_pages_may_be_others():
  places, heading = moving_digits.bounce(500, 8, np.random.default_rng(0), speeds=(1, 2))
  assert places.min() == 0 and places.max() == 8
  first = places[:, 1] - places[:, 0]
  signs = np.array(list(moving_digits.HEADINGS.values()))[heading]
  np.testing.assert_array_equal(np.sign(first), signs)
  assert set(np.abs(first[signs != 0])) == {1, 2}
  digits = np.full((500, 12, 12), 7, np.uint8)
  video = moving_digits.film(digits, places, size=20)
  assert video.shape == (500, 8, 20, 20, 1)
  assert (video.sum((2, 3, 4)) == 7 * 144).all()


def test_all_headings_come():
  _, heading = moving_digits.bounce(800, 18, np.random.default_rng(0))
  assert np.bincount(heading, minlength=8).min() > 60


def test_still_is_another_digit_of_the_class(data, handwriting):
  own = handwriting["train"]
  still, moving = data["digit"].index, data["video"].index[:, 0]
  assert (still != moving).all()
  for index in (still, moving):
    np.testing.assert_array_equal(own.labels[index], data["label"])
  np.testing.assert_array_equal(np.bincount(data["label"]), np.full(10, 40))
  ink = own.items[moving].reshape(-1, 784).sum(1) / 255 / 4
  np.testing.assert_allclose(data["video"][:][:, 0].sum((1, 2, 3)), ink, rtol=0.03)


def test_views_are_as_the_modalities_say(data):
  assert tuple(data) == tuple(modality.name for modality in moving_digits.MODALITIES)
  for modality in moving_digits.MODALITIES:
    batch = data[modality.name][:6]
    assert batch.shape == (6, *modality.shape)
    assert batch.dtype == (np.int32 if modality.num_classes else np.float32)
    assert isinstance(modality.show(batch[0]), str) == (modality.kind in ("text", "label"))


def test_longest_caption_fits_and_all_are_the_grammar(letter_by_letter):
  every = moving_digits.captions(np.repeat(np.arange(10), 8), np.tile(np.arange(8), 10))
  assert max(map(len, every)) == moving_digits.CAPTION_LENGTH
  valid = datasets.valid("caption", "moving_digits")
  letter_by_letter(valid, every, moving_digits.CAPTION_LENGTH)
