import functools
import itertools
import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mmdiff_jax.data import audio, rendering

_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_GRAMMAR = re.compile(
  r"(?P<article>(a|an|the) )?(?P<property>(thin|bold|left leaning|right leaning) )?"
  rf"(?P<digit>{'|'.join(_NAMES)}|[0-9])"
)


def _key(wave):
  """The digit that a telephone exchange hears: the loudest row and column, by Goertzel."""
  time = np.arange(wave.size) / rendering.TONE.sample_rate

  def loudest(tones):
    return int(np.argmax([np.abs(np.exp(-2j * np.pi * hertz * time) @ wave) for hertz in tones]))

  row, column = loudest((697.0, 770.0, 852.0, 941.0)), loudest((1209.0, 1336.0, 1477.0))
  return 0 if (row, column) == (3, 1) else 3 * row + column + 1 if row < 3 else -1


@pytest.fixture(scope="module")
def pages():
  source = load_digits()
  images = source.images.astype(np.float32) / 16
  return source.target, rendering.place_handwriting(images, np.random.default_rng(0))


def test_tone_is_that_of_the_digits_key():
  labels = np.arange(200) % 10
  waves = rendering.dial_tone(labels, np.random.default_rng(1))
  assert waves.dtype == np.float32
  assert [_key(wave) for wave in waves] == labels.tolist()


def test_key_can_still_be_heard_after_inverting_the_log_mel():
  labels = np.arange(50) % 10
  waves = rendering.dial_tone(labels, np.random.default_rng(2))
  heard = audio.invert(audio.log_mel(waves, rendering.TONE), rendering.TONE)
  assert [_key(wave) for wave in heard] == labels.tolist()


def test_tones_differ_in_level_length_and_noise():
  labels = np.full(300, 5)
  waves = rendering.dial_tone(labels, np.random.default_rng(3))
  level = 20 * np.log10(np.abs(waves).max(1) / 2)  # Two sines: the peak is near twice each.
  assert level.min() < -18 and level.max() > -8 and np.abs(waves).max() <= 1
  # Amplitudes over windows of 8 ms; a tone is where it is above a third of the loudest.
  loudness = np.sqrt((waves.reshape(300, -1, 64) ** 2).mean(-1))
  length = (loudness > loudness.max(1, keepdims=True) / 3).mean(1)
  assert length.min() < 0.5 and 0.8 < length.max() < 0.95
  quietest = 20 * np.log10(loudness.min(1))
  assert quietest.min() < -55 and quietest.max() > -45


def test_placement_keeps_the_handwriting_readable(pages):
  _, drawn = pages
  assert drawn.dtype == np.float32 and drawn.min() >= 0 and drawn.max() <= 1
  places = np.arange(16) - 7.5
  mass = drawn / drawn.sum((1, 2), keepdims=True)
  centre = np.stack([mass.sum(2) @ places, mass.sum(1) @ places])
  assert np.abs(centre).max() < 4 and np.abs(centre.mean(1)).max() < 0.5
  # Halved in size it is, by and large, the handwriting it came from.
  halved = drawn.reshape(-1, 8, 2, 8, 2).mean((2, 4))
  likeness = [
    np.corrcoef(page.ravel(), image.ravel())[0, 1]
    for page, image in zip(halved, load_digits().images, strict=True)
  ]
  assert np.mean(likeness) > 0.8


def test_each_placement_is_another():
  image = np.repeat(load_digits().images[:1].astype(np.float32) / 16, 20, 0)
  drawn = rendering.place_handwriting(image, np.random.default_rng(0))
  gaps = np.abs(drawn[:, None] - drawn[None]).mean((2, 3))
  assert gaps[~np.eye(20, dtype=bool)].min() > 1e-3


def test_composite_inverts_the_photo_under_the_ink():
  rng = np.random.default_rng(0)
  photo = np.full((20, 20, 3), (0.9, 0.1, 0.05), np.float32)
  page = np.zeros((4, 16, 16), np.float32)
  page[:, 4:8, 4:8] = 1.0
  scene = rendering.composite(page, [photo], rng)
  np.testing.assert_allclose(scene[:, 4:8, 4:8], 1 - photo[:4, :4][None].repeat(4, 0), atol=1e-6)
  np.testing.assert_allclose(scene[:, 8:, 8:], photo[:8, :8][None].repeat(4, 0), atol=1e-6)


def test_composite_shuns_crops_on_which_nobody_could_read():
  rng = np.random.default_rng(0)
  grey, dark = np.full((16, 16, 3), 0.5, np.float32), np.full((16, 16, 3), 0.1, np.float32)
  scene = rendering.composite(np.zeros((50, 16, 16), np.float32), [grey, dark], rng)
  np.testing.assert_allclose(scene, 0.1, atol=1e-6)


def test_caption_names_the_label_and_says_what_is_true_of_the_page(pages):
  labels, drawn = pages
  said = rendering.captions(labels, drawn, np.random.default_rng(0))
  parts = [_GRAMMAR.fullmatch(sentence) for sentence in said]
  assert all(parts)
  digits = [part["digit"] for part in parts]
  assert [int(d) if d.isdigit() else _NAMES.index(d) for d in digits] == labels.tolist()

  ink, slant = drawn.mean((1, 2)), rendering.slant_of(drawn)
  is_true = {
    "thin ": ink < 0.225,
    "bold ": ink > 0.305,
    "left leaning ": slant < -0.22,
    "right leaning ": slant > 0.14,
  }
  properties = np.array([part["property"] or "" for part in parts])
  for name, truth in is_true.items():
    assert truth[properties == name].all()
    assert 0.01 < (properties == name).mean() < 0.2  # Each is said now and then.
    assert 0.03 < truth.mean() < 0.35
  articles = {part["article"] for part in parts}
  assert articles == {None, "a ", "an ", "the "}
  for sentence in said:
    assert not re.match(r"a (eight|8)|an (?!eight|8)", sentence)


def test_slant_is_positive_to_the_right():
  page = np.zeros((2, 16, 16), np.float32)
  for row in range(16):
    page[0, row, 12 - row // 2] = page[1, row, 4 + row // 2] = 1.0
  right, left = rendering.slant_of(page)
  np.testing.assert_allclose([right, left], [0.5, -0.5], atol=0.02)


def test_grammar_is_that_of_the_captions(letter_by_letter):
  properties = ("", "thin", "bold", "left leaning", "right leaning")
  sentences = [
    f"{opening} {words}".strip()
    for words in (
      f"{word} {name}".strip()
      for word, name in itertools.product(properties, (*rendering.NAMES, *"0123456789"))
    )
    for opening in ("", "an" if words in ("eight", "8") else "a", "the")
  ]
  assert len(set(sentences)) == len(sentences) == 3 * 5 * 20
  letter_by_letter(functools.partial(rendering.valid, grammar=rendering.GRAMMAR), sentences, 24)


def test_tokens_come_back_as_the_sentence(pages):
  labels, drawn = pages
  said = rendering.captions(labels, drawn, np.random.default_rng(0))
  tokens = rendering.tokens_of(said)
  assert tokens.shape == (len(said), rendering.CAPTION_LENGTH) and tokens.dtype == np.int32
  assert [rendering.text_of(row) for row in tokens] == said
  longest = rendering.ALPHABET[1:25]
  assert rendering.text_of(rendering.tokens_of([longest])[0]) == longest


@pytest.mark.parametrize(
  "sentence, complaint",
  [("a Two", r"unknown characters \['T'\]"), ("a" * 25, "over 24 characters")],
)
def test_sentence_that_cannot_be_encoded_is_refused(sentence, complaint):
  with pytest.raises(ValueError, match=complaint):
    rendering.tokens_of([sentence])
