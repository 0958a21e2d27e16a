"""The data set `imagenet64`: ImageNet at 64 x 64 pixels, and its classes (Chrabaszcz et al. 2017).

The source is tfds's `imagenet_resized/64x64`, in ArrayRecord files. The decoded training split
would take 15.7 GB as bytes, so images are read and decoded on demand, by the threads that index
them. Labels are an array: they are read from the records once, and kept beside these.

Classes are numbered as the authors of the small images number them, less 1, which is not the order
of other versions of ImageNet.
"""

import functools

import numpy as np

from mmdiff_jax.data import pairing, public
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, Modality

MODALITIES = (
  Modality("image", "image", (64, 64, 3), image_picture),
  Modality("label", "label", (), str, num_classes=1000),
)

_SOURCE = "imagenet_resized/64x64"
_SPLITS = {"train": "train", "test": "validation", "validation": "train"}


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """Loads a whole split, in the order of its records.

  If it is not in `data_dir` yet, preparing it needs TensorFlow; reading it does not. The first call
  reads all records for the labels.

  Args:
    split: "train" (1,281,167 examples), "test" (the 50,000 that are published for validation) or
      "validation", a part of the published training split.
    data_dir: folder of prepared data sets; None is that of tfds, `~/tensorflow_datasets`.
    manual_dir: folder that may contain the published files `Imagenet64_*_npz.zip`; None is that of
      tfds, `<data_dir>/downloads/manual`.
    validation: fraction of the examples that is held out of "train" for "validation".

  Returns:
    image: float32 [n, 64, 64, 3] in [0, 1].
    label: int32 [n].

  Raises:
    UserError: the set is not prepared and cannot be, or is damaged. Damage in an image is reported
      when that image is read.
  """
  builder = public.prepared(_SOURCE, data_dir, manual_dir, files="Imagenet64_*")
  source_split = _SPLITS[split]
  number = public.PUBLIC[_SOURCE, source_split].number
  labels = public.labels(builder, source_split, number, num_classes=1000)
  read = public.reader(builder, source_split, number)
  images = functools.partial(_images, read, labels, str(builder.data_path))
  rows = pairing.part_rows(split, labels, validation)
  return {"image": Column(rows, images), "label": labels[rows]}


def _images(read: public.Reader, labels: np.ndarray, folder: str, index: np.ndarray) -> np.ndarray:
  records = read(index.tolist())
  if any(record["label"] != label for record, label in zip(records, labels[index], strict=True)):
    raise UserError(
      f"The labels kept in {folder} are not those of the images beside them. Delete its files "
      "labels_*.npz; they are then made again."
    )
  return np.stack([record["image"] for record in records]) / np.float32(255)
