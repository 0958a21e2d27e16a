"""Prepares the data set `digits` on disk, by tfds."""

from collections.abc import Iterable, Iterator
import dataclasses
import functools

import numpy as np
import tensorflow_datasets as tfds

from mmdiff_jax.data import rendering

# Handwritings of each split.
HANDWRITINGS = {"train": 1437, "test": 360}

# How often each handwriting is drawn; each time with a fresh placement, partner, crop, tone and
# caption.
DRAWS = {"train": 30, "test": 3}

_SEED = 0
_INKED = 1 / 3  # From here on a scene is more of its ink than of its photo; see `composite`.


@dataclasses.dataclass(eq=False)
class Drawn(tfds.core.BuilderConfig):
  """The number of draws of each digit image of a split; each choice has its folder on disk."""

  train: int = DRAWS["train"]
  test: int = DRAWS["test"]
  name: str = dataclasses.field(init=False)

  def __post_init__(self):
    self.name = f"drawn_{self.train}_{self.test}"


class _Counted:
  """Examples with a length, from which the progress bar of tfds computes its ETA."""

  def __init__(self, examples: Iterable, number: int):
    self._examples, self._number = examples, number

  def __iter__(self) -> Iterator:
    return iter(self._examples)

  def __len__(self) -> int:
    return self._number


class Digits(tfds.core.GeneratorBasedBuilder):
  """Prepares `digits` on disk as ArrayRecord files."""

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {
    "1.0.0": "Handwriting, scene, tone and caption.",
    "1.1.0": "Also the mask of the scene's handwriting; all else as it was.",
  }
  BUILDER_CONFIGS = [Drawn()]

  def _info(self) -> tfds.core.DatasetInfo:
    tensor = functools.partial(tfds.features.Tensor, encoding="bytes")
    return self.dataset_info_from_configs(
      description="Four modalities of a handwritten digit: page, scene, dial tone and caption.",
      features=tfds.features.FeaturesDict(
        {
          "digit": tensor(shape=(*rendering.PAGE, 1), dtype=np.uint8),
          "scene": tensor(shape=(*rendering.PAGE, 3), dtype=np.uint8),
          "tone": tensor(shape=(rendering.TONE.samples,), dtype=np.int16),
          "caption": tfds.features.Text(),
          "label": tfds.features.ClassLabel(num_classes=10),
          "mask": tensor(shape=rendering.PAGE, dtype=np.uint8),
          # Which of scikit-learn's handwritings are on the page and in the scene.
          "handwriting": tfds.features.Scalar(np.int64),
          "scene_handwriting": tfds.features.Scalar(np.int64),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    return {
      split: _Counted(self._generate_examples(split, draws), self.number(split))
      for split, draws in self.draws.items()
    }

  @property
  def draws(self) -> dict[str, int]:
    """The number of draws of each digit image of a split."""
    return {split: getattr(self.builder_config, split) for split in HANDWRITINGS}

  def number(self, split: str) -> int:
    """Examples of a split."""
    return self.draws[split] * HANDWRITINGS[split]

  def _generate_examples(self, split: str, draws: int):
    # Scikit-learn takes a second to import and is not needed once the data are prepared.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    handwriting = load_digits()
    images, classes = handwriting.images.astype(np.float32) / 16, handwriting.target
    train, test = train_test_split(
      np.arange(len(classes)), test_size=0.2, stratify=classes, random_state=_SEED
    )
    rows = {"train": train, "test": test}[split]
    labels = classes[rows]
    photos = _photos()
    for draw in range(draws):
      # A draw does not depend on how many there are.
      rng = np.random.default_rng((_SEED, split == "test", draw))
      partner = rows[_partners(labels, rng)]
      pages = rendering.place_handwriting(images[rows], rng)
      others = rendering.place_handwriting(images[partner], rng)
      pages = np.round(pages * 255).astype(np.uint8)
      columns = {
        "digit": pages[..., None],
        "scene": np.round(rendering.composite(others, photos, rng) * 255).astype(np.uint8),
        "tone": np.round(rendering.dial_tone(labels, rng) * rendering.LOUDEST).astype(np.int16),
        "caption": rendering.captions(labels, pages / np.float32(255), rng),
        "label": labels,
        "mask": (others > _INKED).astype(np.uint8),
        "handwriting": rows,
        "scene_handwriting": partner,
      }
      for row in zip(*columns.values(), strict=True):
        example = dict(zip(columns, row, strict=True))
        yield f"{draw} {example['handwriting']}", example


def _photos() -> list[np.ndarray]:
  """Scikit-learn's photos at twice their size: a crop of 16 pixels then holds large soft shapes."""
  from PIL import Image
  from sklearn.datasets import load_sample_images

  photos = []
  for photo in load_sample_images().images:
    height, width, _ = photo.shape
    enlarged = Image.fromarray(photo).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    photos.append(np.asarray(enlarged, np.float32) / 255)
  return photos


def _partners(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Draws for each index in `classes` another one of the same class, uniformly: [n]."""
  partners = np.empty(len(classes), int)
  for c in np.unique(classes):
    members = np.flatnonzero(classes == c)
    step = rng.integers(1, len(members), size=len(members))
    partners[members] = members[(np.arange(len(members)) + step) % len(members)]
  return partners
