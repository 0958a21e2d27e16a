"""The data set `mnist`: a handwritten digit and its class, as published."""

import numpy as np

from mmdiff_jax.data import sources
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.modalities import image_picture, Modality

DIGIT = Modality("digit", "image", (28, 28, 1), image_picture)
LABEL = Modality("label", "label", (), str, num_classes=10)

MODALITIES = (DIGIT, LABEL)


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """Returns a split, in its own order.

  Args:
    split: "train" (60,000 examples), "test" (10,000) or "validation".
    data_dir: folder of prepared data sets; None is tfds's own, `~/tensorflow_datasets`.
    manual_dir: folder in which the original's files may lie; None is tfds's
      `<data_dir>/downloads/manual`.
    validation: fraction of the digits that is held out of "train" for "validation".

  Returns:
    digit: float32 [n, 28, 28, 1] in [0, 1], 1 is ink.
    label: int32 [n].

  Raises:
    UserError: the source is not there.
  """
  images, labels = sources.read_part(sources.mnist, split, validation, data_dir, manual_dir)
  index = np.arange(len(labels))
  return {"digit": Column(index, lambda i: images[i] / np.float32(255)), "label": labels}
