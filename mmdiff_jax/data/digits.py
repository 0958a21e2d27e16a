"""The data set `digits`: views of a handwritten digit, made from what scikit-learn brings.

One example is a handwriting on a page (`digit`), another handwriting of the same class on a photo
(`scene`), the dial tone of its key (`tone`), a sentence about the page (`caption`), the class
(`label`) and where the scene's handwriting is (`mask`); `rendering` draws them. Nothing is
downloaded.

The two splits share no handwriting: 80 % of scikit-learn's 1,797 are for training, 20 % for tests,
alike in classes, and both the page's and the scene's come from the example's own split.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
from typing import Any

import numpy as np

from mmdiff_jax.data import audio, cache, pairing, public, rendering
from mmdiff_jax.modalities import image_picture, mask_picture, Modality


def _listen(log_mel: np.ndarray) -> np.ndarray:
  return audio.invert(log_mel, rendering.TONE)


def _figure(label: np.ndarray | np.integer) -> str:
  return str(int(label))


MODALITIES = (
  Modality("digit", "image", (*rendering.PAGE, 1), image_picture),
  Modality("scene", "image", (*rendering.PAGE, 3), image_picture),
  Modality(
    "tone",
    "audio",
    (rendering.TONE.frames, rendering.TONE.bands),
    _listen,
    sample_rate=rendering.TONE.sample_rate,
  ),
  rendering.caption(rendering.CAPTION_LENGTH),
  Modality("label", "label", (), _figure, num_classes=10),
  Modality("mask", "mask", rendering.PAGE, mask_picture, num_classes=2),
)
VALID = {"caption": functools.partial(rendering.valid, grammar=rendering.GRAMMAR)}


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  validation: float = 0.0,
) -> dict[str, np.ndarray]:
  """Returns a split as model inputs, in the order of the records.

  Prepares the data set first where it is not in `data_dir` yet (about 20 seconds, 210 MB).

  Args:
    split: "train" (43,110 examples), "test" (1,080) or "validation". With a part held out, training
      examples one of whose two handwritings is held out and the other is not are in no split.
    data_dir: folder of prepared data sets; None is tfds's own, `~/tensorflow_datasets`.
    manual_dir: not needed.
    validation: fraction of the handwritings that is held out of "train" for "validation".

  Returns:
    digit: float32 [n, 16, 16, 1] in [0, 1], 1 is ink.
    scene: float32 [n, 16, 16, 3] in [0, 1].
    tone: float32 [n, frames, bands], the log-mel spectrogram in [0, 1].
    caption: int32 [n, CAPTION_LENGTH], indices into `rendering.ALPHABET`.
    label: int32 [n].
    mask: int32 [n, 16, 16], 1 where the handwriting of the scene is, else 0.
    source_digit, source_scene: int64 [n], numbers of the handwritings among scikit-learn's.

  Raises:
    UserError: it cannot be prepared, such as on a full disk, or what is prepared is damaged.
  """
  del manual_dir
  compact = arrays(prepared(data_dir), "train" if split == "validation" else split)
  data = _views(compact)
  data |= {"source_digit": compact["handwriting"], "source_scene": compact["scene_handwriting"]}
  if split == "test" or not validation:
    return data
  page, scene = compact["handwriting"], compact["scene_handwriting"]
  rows = pairing.part_rows(split, data["label"], validation, groups=page)
  rows = rows[np.isin(scene[rows], page[rows])]
  return {name: x[rows] for name, x in data.items()}


def prepared(data_dir: str | None) -> Any:
  """The data set on disk, prepared first where it is not there; argument and errors as `load`.

  Returns:
    A `digits_builder.Digits`.
  """
  # It needs tfds, which is not needed to know the modalities.
  from mmdiff_jax.data import digits_builder

  builder = public.open_builder(digits_builder.Digits, "digits", data_dir)
  public.prepare(builder, "Check that files can be written there, or give another data_dir.")
  return builder


def read(builder: Any, split: str, skipped: Sequence[str] = ()) -> Iterator[dict[str, np.ndarray]]:
  """Yields the records of a prepared split as they are on disk, some at a time, stacked.

  Args:
    builder: from `prepared`.
    split: which one.
    skipped: features that stay encoded.

  Raises:
    UserError: a file is missing or damaged.
  """
  for records in public.records(builder, split, builder.number(split), skipped):
    yield {name: np.stack([record[name] for record in records]) for name in records[0]}


def arrays(builder: Any, split: str) -> dict[str, np.ndarray]:
  """A prepared split, kept on disk for the next time.

  Args:
    builder: from `prepared`.
    split: which one.

  Returns:
    digit, scene and mask as uint8, tone and caption as `load` returns them, label as int32, and
    handwriting and scene_handwriting, their numbers among scikit-learn's, as int64.

  Raises:
    UserError: a file is missing or damaged.
  """

  def make() -> dict[str, np.ndarray]:
    parts = [_compact(records) for records in read(builder, split)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  return cache.arrays(f"digits-{split}", public.states(builder.data_path), make)


def model_view(records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The model's view, as `load` describes it, of records as `read` yields them."""
  return _views(_compact(records))


def _compact(records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {
    **records,
    "tone": audio.log_mel(records["tone"] / np.float32(rendering.LOUDEST), rendering.TONE),
    "caption": rendering.tokens_of([text.decode() for text in records["caption"]]),
    "label": records["label"].astype(np.int32),
  }


def _views(compact: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {
    "digit": compact["digit"] / np.float32(255),
    "scene": compact["scene"] / np.float32(255),
    "tone": compact["tone"],
    "caption": compact["caption"],
    "label": compact["label"],
    "mask": compact["mask"].astype(np.int32),
  }
