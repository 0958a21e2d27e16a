"""Drawings of an example of `digits`: handwriting, scene, dial tone and caption, in NumPy.

Everything starts from scikit-learn's 1,797 real handwritten digits (8x8, 16 grey levels) and its
two photos. Each *draw* of a handwriting places it anew (a little slant, turn, size and shift), so
that a split holds many draws of each handwriting, and no handwriting is in two splits.
"""

from collections.abc import Iterable, Mapping, Sequence
import re

from jaxtyping import Bool, Float, Int
import numpy as np

from mmdiff_jax.data import audio
from mmdiff_jax.modalities import Modality

SIZE = 16
PAGE = (SIZE, SIZE)
LOUDEST = 32767  # The largest value of a 16-bit sample.
TONE = audio.LogMel()

# The telephone keypad's four rows and three columns, in hertz (ITU-T Q.23), and each digit's two.
_HERTZ = np.array([697.0, 770.0, 852.0, 941.0, 1209.0, 1336.0, 1477.0])
_KEYS = np.array([(3, 5)] + [((d - 1) // 3, 4 + (d - 1) % 3) for d in range(1, 10)])

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789"
CAPTION_LENGTH = 24


def place_handwriting(
  digits: Float[np.ndarray, "n 8 8"], rng: np.random.Generator
) -> Float[np.ndarray, "n 16 16"]:
  """Draws 8x8 handwriting on a 16x16 page, slightly slanted, turned, sized and shifted.

  Args:
    digits: [n, 8, 8] float in [0, 1].
    rng: the source of the placement.

  Returns:
    [n, 16, 16] float32 in [0, 1].
  """
  n = len(digits)
  turn = rng.uniform(-0.12, 0.12, n)
  slant = rng.uniform(-0.25, 0.25, n)
  size = rng.uniform(0.9, 1.1, n) * (8 / (SIZE - 1.0))
  shift = rng.uniform(-0.5, 0.5, (n, 2))
  # Output pixel -> handwriting pixel: centre, shear, turn, scale, centre.
  grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1) - 7.5
  rows, columns = grid[..., 0], grid[..., 1]
  columns = columns[None] + slant[:, None, None] * rows[None]
  rows = np.broadcast_to(rows, columns.shape)
  cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
  source_rows = size[:, None, None] * (cos * rows - sin * columns) + 3.5 + shift[:, :1, None]
  source_columns = size[:, None, None] * (sin * rows + cos * columns) + 3.5 + shift[:, 1:, None]
  return bilinear(digits, source_rows, source_columns)


def bilinear(
  images: Float[np.ndarray, "n h w"],
  rows: Float[np.ndarray, "n height width"],
  columns: Float[np.ndarray, "n height width"],
) -> Float[np.ndarray, "n height width"]:
  """Samples images at places (row, column) between their pixels; outside is 0."""
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
  limits = [side - 1.001 for side in padded.shape[1:]]
  rows = np.clip(rows + 2, 0, limits[0])
  columns = np.clip(columns + 2, 0, limits[1])
  r, c = rows.astype(int), columns.astype(int)
  fr, fc = rows - r, columns - c
  i = np.arange(len(images))[:, None, None]
  top = padded[i, r, c] * (1 - fc) + padded[i, r, c + 1] * fc
  low = padded[i, r + 1, c] * (1 - fc) + padded[i, r + 1, c + 1] * fc
  return (top * (1 - fr) + low * fr).astype(np.float32)


def composite(
  pages: Float[np.ndarray, "n 16 16"],
  photos: Sequence[Float[np.ndarray, "_ _ 3"]],
  rng: np.random.Generator,
) -> Float[np.ndarray, "n 16 16 3"]:
  """Writes each page on a random crop of a photo, in the crop's own inverted colours.

  As in PolyMNIST the ink is the negative of what lies under it. A mid-grey crop is its own
  negative and nobody could read it, so crops without contrast to their negative are drawn again.

  Args:
    pages: [n, 16, 16] handwriting in [0, 1], 1 is ink.
    photos: arrays [h, w, 3] in [0, 1].
    rng: the source of the crops.

  Returns:
    [n, 16, 16, 3] float32 in [0, 1].
  """
  crops = np.empty(pages.shape + (3,), np.float32)
  todo = np.arange(len(pages))
  while len(todo):
    which = rng.integers(len(photos), size=len(todo))
    for p, photo in enumerate(photos):
      rows = todo[which == p]
      top = rng.integers(photo.shape[0] - SIZE + 1, size=len(rows))
      left = rng.integers(photo.shape[1] - SIZE + 1, size=len(rows))
      windows = np.lib.stride_tricks.sliding_window_view(photo, (SIZE, SIZE), axis=(0, 1))
      crops[rows] = windows[top, left].transpose(0, 2, 3, 1)
    contrast = np.abs(1.0 - 2.0 * crops[todo]).mean(axis=(1, 2, 3))
    todo = todo[contrast < 0.35]
  ink = np.minimum(1.5 * pages, 1.0)[..., None]
  return crops * (1.0 - ink) + (1.0 - crops) * ink


def dial_tone(
  labels: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Float[np.ndarray, "n samples"]:
  """The two sines of each digit's key, of random level, phase, length and noise.

  Args:
    labels: [n] digits.
    rng: the source of what is random.

  Returns:
    [n, samples] float32 in [-1, 1] at `TONE.sample_rate`.
  """
  n, samples = len(labels), TONE.samples
  # sin(w t + phase) = cos(phase) sin(w t) + sin(phase) cos(w t): all clips are one matrix product
  # of these coefficients with the sines and cosines of the keypad's seven frequencies.
  level = 10 ** (rng.uniform(-20, -6, (n, 1)) / 20)
  phase = rng.uniform(0, 2 * np.pi, (n, 2))
  coefficients = np.zeros((n, 2, len(_HERTZ)), np.float32)
  np.put_along_axis(coefficients[:, 0], _KEYS[labels], level * np.cos(phase), axis=1)
  np.put_along_axis(coefficients[:, 1], _KEYS[labels], level * np.sin(phase), axis=1)
  time = np.arange(samples) / TONE.sample_rate
  angle = 2 * np.pi * _HERTZ[:, None] * time
  table = np.concatenate([np.sin(angle), np.cos(angle)]).astype(np.float32)
  clips = coefficients.reshape(n, -1) @ table

  clip = samples / TONE.sample_rate
  length = rng.uniform(0.4, 0.9, (n, 1)) * clip
  start = rng.uniform(0, 1, (n, 1)) * (clip - length)
  ramp = 0.005
  # How far inside the tone a moment is: up to its middle it rises, then it falls.
  middle = (start + length / 2).astype(np.float32)
  inside = (length / 2).astype(np.float32) - np.abs(time.astype(np.float32) - middle)
  clips *= np.clip(inside / np.float32(ramp), 0, 1)
  noise = 10 ** (rng.uniform(-60, -40, (n, 1)) / 20)
  clips += rng.standard_normal((n, samples), np.float32) * noise.astype(np.float32)
  return np.clip(clips, -1, 1)


def slant_of(pages: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, " n"]:
  """Returns how far the handwriting leans to the right, in columns per row: [n].

  It is the slope of the ink's centre of mass, covariance of row and column over variance of row; 0
  where there is no ink.
  """
  rows, columns = np.mgrid[: pages.shape[1], : pages.shape[2]].astype(np.float32)
  mass = pages / np.maximum(pages.sum((1, 2), keepdims=True), 1e-6)
  row = rows - (mass * rows).sum((1, 2))[:, None, None]
  column = columns - (mass * columns).sum((1, 2))[:, None, None]
  return -(mass * row * column).sum((1, 2)) / np.maximum((mass * row**2).sum((1, 2)), 1e-6)


def captions(
  labels: Int[np.ndarray, " n"], pages: Float[np.ndarray, "n 16 16"], rng: np.random.Generator
) -> list[str]:
  """A short sentence for each example; it names the digit and, in some, what one can see of it.

  `sentence = [article] [property] digit`, where the digit is a word or a figure and the property
  ("thin", "bold", "left leaning", "right leaning") is measured on the page, so that it is true.

  Args:
    labels: [n] digits.
    pages: [n, 16, 16] the `digit` modality, in [0, 1].
    rng: the source of the wording.

  Returns:
    n strings of at most `CAPTION_LENGTH` characters out of `ALPHABET`.
  """
  ink, slant = pages.mean((1, 2)), slant_of(pages)
  sentences = []
  for label, weight, lean in zip(labels, ink, slant, strict=True):
    properties = [""]
    if weight < 0.225:
      properties.append("thin")
    if weight > 0.305:
      properties.append("bold")
    if lean < -0.22:
      properties.append("left leaning")
    if lean > 0.14:
      properties.append("right leaning")
    mentioned = properties[rng.integers(len(properties))]
    name = NAMES[label] if rng.random() < 0.7 else str(label)
    opening = ("", "a", "the")[rng.integers(3)]
    if opening == "a" and not mentioned and name in ("eight", "8"):
      opening = "an"
    sentences.append(" ".join(word for word in (opening, mentioned, name) if word))
  return sentences


def tokens_of(
  sentences: Sequence[str], length: int = CAPTION_LENGTH
) -> Int[np.ndarray, "n length"]:
  """Returns characters as indices into `ALPHABET`, with blanks before them: [n, length] int32.

  The blanks come first since the digit comes last: it then stands at the same positions whatever
  comes before it, where an autoencoder of entire lines finds it.

  Raises:
    ValueError: a sentence is too long or has a character that `ALPHABET` lacks.
  """
  tokens = np.zeros((len(sentences), length), np.int32)
  for row, sentence in zip(tokens, sentences, strict=True):
    unknown = sorted(set(sentence) - set(ALPHABET))
    if unknown or len(sentence) > length:
      raise ValueError(
        f"the caption {sentence!r} cannot be encoded: "
        + (f"unknown characters {unknown}" if unknown else f"over {length} characters")
        + f"; captions are lower case, out of {ALPHABET!r}"
      )
    row[length - len(sentence) :] = [ALPHABET.index(character) for character in sentence]
  return tokens


def text_of(tokens: Int[np.ndarray, " length"]) -> str:
  """Returns the sentence that tokens spell, without the blanks around it."""
  return "".join(ALPHABET[token] for token in tokens).strip()


def caption(length: int) -> Modality:
  """Returns the modality `caption`: a line of at most that many characters out of `ALPHABET`."""
  return Modality("caption", "text", (length,), text_of, num_classes=len(ALPHABET))


def one_of(words: Iterable[str]) -> str:
  """Returns a pattern that matches any of the words, without empty ones."""
  return f"(?:{'|'.join(filter(None, words))})"


# Parts of grammars: the article, by what follows it, and the digit as a word or a figure.
ARTICLE = "(?:an (?=eight|8)|a (?!eight|8))"
DIGIT = one_of((*NAMES, *map(str, range(10))))
# Sentences of `captions`.
_PROPERTIES = ("thin", "bold", "left leaning", "right leaning")
GRAMMAR = re.compile(rf"(?:{ARTICLE}|the )?(?:{one_of(_PROPERTIES)} )?{DIGIT}")


def valid(tokens: Int[np.ndarray, "n length"], grammar: re.Pattern[str]) -> Bool[np.ndarray, " n"]:
  """Returns whether captions are sentences of a grammar, letter for letter.

  Args:
    tokens: the captions.
    grammar: matches all of a sentence, without the blanks around it.
  """
  return np.array([grammar.fullmatch(text_of(row)) is not None for row in tokens], bool)


def parse_captions(
  tokens: Int[np.ndarray, "n length"], grammar: re.Pattern[str], words: Mapping[str, Sequence[str]]
) -> dict[str, Int[np.ndarray, " n"]]:
  """Returns the attributes that captions mention.

  Args:
    tokens: the captions; one that is not a sentence of the grammar mentions nothing.
    grammar: of an entire sentence; the group named as an attribute is its word.
    words: those of each attribute, in the order of its classes; a figure stands for itself.

  Returns:
    The classes of each attribute, int32 [n]; -1 where the caption does not mention it.
  """
  values = {name: np.full(len(tokens), -1, np.int32) for name in words}
  for i, row in enumerate(tokens):
    match = grammar.fullmatch(text_of(row))
    for name, word in match.groupdict().items() if match else ():
      if word:
        values[name][i] = int(word) if word.isdigit() else words[name].index(word)
  return values
