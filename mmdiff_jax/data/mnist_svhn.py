"""The data set `mnist_svhn` of the MLD paper: a handwritten digit and a house number's digit.

In each class both training sets are permuted 20 times and the longer one is cut to the shorter:
1,121,360 pairs, each two indices. The test sets are permuted once: 10,000 pairs in which no digit
comes twice.
"""

import numpy as np

from mmdiff_jax.data import pairing, sources
from mmdiff_jax.data.mnist import LABEL
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.modalities import image_picture, Modality

PERMUTATIONS = {"train": 20, "test": 1, "validation": 1}
_SEED = 0

MODALITIES = (
  Modality("mnist", "image", (28, 28, 1), image_picture),
  Modality("svhn", "image", (32, 32, 3), image_picture),
  LABEL,
)


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """Returns a split, in random order.

  Args:
    split: "train", "test" or "validation", which is paired as the test split is.
    data_dir: folder of prepared data sets; None is tfds's own, `~/tensorflow_datasets`.
    manual_dir: folder in which `svhn/{train,test}_32x32.mat` may lie; None is tfds's
      `<data_dir>/downloads/manual`.
    validation: fraction of each source that is held out of "train" for "validation".

  Returns:
    mnist: float32 [n, 28, 28, 1] in [0, 1], 1 is ink.
    svhn: float32 [n, 32, 32, 3] in [0, 1].
    label: int32 [n].

  Raises:
    UserError: a source is not there.
  """
  folders = data_dir, manual_dir
  digits, labels = sources.read_part(sources.mnist, split, validation, *folders)
  houses, numbers = sources.read_part(sources.svhn, split, validation, *folders)
  counts = PERMUTATIONS[split] * pairing.smallest((labels, numbers))
  index = pairing.pair((labels, numbers), counts, seed=(_SEED, pairing.SPLITS[split]))
  return {
    "mnist": Column(index[:, 0], lambda i: digits[i] / np.float32(255)),
    "svhn": Column(index[:, 1], lambda i: houses[i] / np.float32(255)),
    "label": labels[index[:, 0]],
  }
