"""The data set `digits`: views of a handwritten digit, made from what scikit-learn brings.

One example is a handwriting on a page (`digit`), another handwriting of the same class on a photo
(`scene`), the dial tone of its key (`tone`), a sentence about the page (`caption`), the class
(`label`) and where the scene's handwriting is (`mask`); `rendering` draws them. Nothing is
downloaded.

The two splits share no handwriting: 80 % of scikit-learn's 1,797 are for training, 20 % for tests,
alike in classes, and both the page's and the scene's come from the example's own split.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools

import numpy as np
import tensorflow_datasets as tfds

from mmdiff_jax.data import audio, rendering, sources
from mmdiff_jax.modalities import image_picture, mask_picture, Modality

# Handwritings of each split.
HANDWRITINGS = {"train": 1437, "test": 360}

# How often each handwriting is drawn; each time with a fresh placement, partner, crop, tone and
# caption.
DRAWS = {"train": 30, "test": 3}

_SEED = 0
LOUDEST = 32767  # of a 16-bit sample
_INKED = 1 / 3  # From here on a scene is more of its ink than of its photo; see `composite`.


def _listen(log_mel: np.ndarray) -> np.ndarray:
  return audio.invert(log_mel, rendering.TONE)


def _figure(label: np.ndarray | np.integer) -> str:
  return str(int(label))


_PAGE = (rendering.SIZE, rendering.SIZE)

MODALITIES = (
  Modality("digit", "image", (*_PAGE, 1), image_picture),
  Modality("scene", "image", (*_PAGE, 3), image_picture),
  Modality(
    "tone",
    "audio",
    (rendering.TONE.frames, rendering.TONE.bands),
    _listen,
    sample_rate=rendering.TONE.sample_rate,
  ),
  rendering.caption(rendering.CAPTION_LENGTH),
  Modality("label", "label", (), _figure, num_classes=10),
  Modality("mask", "mask", _PAGE, mask_picture, num_classes=2),
)


@dataclasses.dataclass(eq=False)
class Drawn(tfds.core.BuilderConfig):
  """How often each handwriting of a split is drawn; each choice has its folder on disk."""

  train: int = DRAWS["train"]
  test: int = DRAWS["test"]
  name: str = dataclasses.field(init=False)

  def __post_init__(self):
    self.name = f"drawn_{self.train}_{self.test}"


class _Counted:
  """Examples of a known number: so the progress bar of tfds says when it is done."""

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
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "digit": tensor(shape=(*_PAGE, 1), dtype=np.uint8),
          "scene": tensor(shape=(*_PAGE, 3), dtype=np.uint8),
          "tone": tensor(shape=(rendering.TONE.samples,), dtype=np.int16),
          "caption": tfds.features.Text(),
          "label": tfds.features.ClassLabel(num_classes=10),
          "mask": tensor(shape=_PAGE, dtype=np.uint8),
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
    """How often each handwriting of a split is drawn."""
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
    own = {"train": train, "test": test}[split]
    labels = classes[own]
    photos = _photos()
    for draw in range(draws):
      # A draw does not depend on how many there are.
      rng = np.random.default_rng((_SEED, split == "test", draw))
      partner = own[_partners(labels, rng)]
      pages = rendering.place_handwriting(images[own], rng)
      others = rendering.place_handwriting(images[partner], rng)
      pages = np.round(pages * 255).astype(np.uint8)
      columns = {
        "digit": pages[..., None],
        "scene": np.round(rendering.composite(others, photos, rng) * 255).astype(np.uint8),
        "tone": np.round(rendering.dial_tone(labels, rng) * LOUDEST).astype(np.int16),
        "caption": rendering.captions(labels, pages / np.float32(255), rng),
        "label": labels,
        "mask": (others > _INKED).astype(np.uint8),
        "handwriting": own,
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
  """For each place in `classes` another place of the same class, uniformly: [n]."""
  partners = np.empty(len(classes), int)
  for c in np.unique(classes):
    members = np.flatnonzero(classes == c)
    step = rng.integers(1, len(members), size=len(members))
    partners[members] = members[(np.arange(len(members)) + step) % len(members)]
  return partners


def load(
  split: str, data_dir: str | None = None, manual_dir: str | None = None
) -> dict[str, np.ndarray]:
  """A whole split in the model's view, in the order of the records.

  Prepares the data set first where it is not in `data_dir` yet (about 20 seconds, 210 MB).

  Args:
    split: "train" (43,110 examples) or "test" (1,080).
    data_dir: folder of prepared data sets; None is tfds's own, `~/tensorflow_datasets`.
    manual_dir: not needed.

  Returns:
    digit: float32 [n, 16, 16, 1] in [0, 1], 1 is ink.
    scene: float32 [n, 16, 16, 3] in [0, 1].
    tone: float32 [n, frames, bands], the log-mel spectrogram in [0, 1].
    caption: int32 [n, CAPTION_LENGTH], indices into `rendering.ALPHABET`.
    label: int32 [n].
    mask: int32 [n, 16, 16], 1 where the handwriting of the scene is, else 0.

  Raises:
    UserError: it cannot be prepared, such as on a full disk, or what is prepared is damaged.
  """
  del manual_dir
  views = [model_view(records) for records in read(prepared(data_dir), split)]
  return {name: np.concatenate([view[name] for view in views]) for name in views[0]}


def prepared(data_dir: str | None) -> Digits:
  """The data set on disk, prepared first where it is not there; argument and errors as `load`."""
  builder = sources.opened(Digits, "digits", data_dir)
  sources.prepare(builder, "Check that files can be written there, or give another data_dir.")
  return builder


def read(
  builder: Digits, split: str, skipped: Sequence[str] = ()
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the records of a prepared split as they are on disk, some at a time, stacked.

  Args:
    builder: of the data set.
    split: which one.
    skipped: features that stay encoded.

  Raises:
    UserError: a file is missing or damaged.
  """
  for records in sources.records(builder, split, builder.number(split), skipped):
    yield {name: np.stack([record[name] for record in records]) for name in records[0]}


def model_view(records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What the model sees, as `load` describes it, of records as `read` yields them."""
  return {
    "digit": records["digit"] / np.float32(255),
    "scene": records["scene"] / np.float32(255),
    "tone": audio.log_mel(records["tone"] / np.float32(LOUDEST), rendering.TONE),
    "caption": rendering.tokens_of([text.decode() for text in records["caption"]]),
    "label": records["label"].astype(np.int32),
    "mask": records["mask"].astype(np.int32),
  }
