"""The data set `spoken_mnist`: a digit written with ink, spoken, and written with a pen.

MNIST, the free spoken digit data set and UCI's pen digits, paired by class: every example is an
index into each of the three. The splits are the sources' own (`sources` says how speech is split).
"""

import numpy as np

from mmdiff_jax.data import audio, cache, pairing, public, sources
from mmdiff_jax.data.mnist import DIGIT, LABEL
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.modalities import Modality, trajectory_picture

SPEECH = audio.LogMel(window=512, hop=176, low=80.0, high=4000.0)

# Examples of each class.
COUNTS = {"train": 6000, "test": 1000, "validation": 1000}

_SEED = 0


def _listen(log_mel: np.ndarray) -> np.ndarray:
  return audio.invert(log_mel, SPEECH)


MODALITIES = (
  DIGIT,
  Modality(
    "speech",
    "audio",
    (SPEECH.frames, SPEECH.bands),
    _listen,
    sample_rate=SPEECH.sample_rate,
  ),
  Modality("pen", "trajectory", (8, 2), trajectory_picture),
  LABEL,
)


def load(
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  validation: float = 0.0,
) -> dict[str, Column | np.ndarray]:
  """Returns a split, in random order, as many examples of each class.

  Args:
    split: "train" (60,000 examples), "test" or "validation" (10,000 each).
    data_dir: folder of prepared data sets, for MNIST and speech; None is tfds's own.
    manual_dir: folder with `pendigits`; None is tfds's `<data_dir>/downloads/manual`.
    validation: fraction of each source that is held out of "train" for "validation".

  Returns:
    digit: float32 [n, 28, 28, 1] in [0, 1], 1 is ink.
    speech: float32 [n, frames, bands], the log-mel spectrogram in [0, 1].
    pen: float32 [n, 8, 2] in [0, 1], points (x, y) in the order of writing, y upwards.
    label: int32 [n].

  Raises:
    UserError: a source is not there.
  """
  part, folders = (split, validation), (data_dir, manual_dir)
  inks, labels = sources.read_part(sources.mnist, *part, *folders)
  heard, spoken, *_ = sources.read_part(speech, *part, *folders)
  points, written = sources.read_part(sources.pendigits, *part, *folders)
  seed = (_SEED, pairing.SPLITS[split])
  index = pairing.pair((labels, spoken, written), COUNTS[split], seed=seed)
  return {
    "digit": Column(index[:, 0], lambda i: inks[i] / np.float32(255)),
    "speech": Column(index[:, 1], lambda i: heard[i]),
    "pen": Column(index[:, 2], lambda i: points[i] / np.float32(100)),
    "label": labels[index[:, 0]],
  }


def speech(
  split: str, data_dir: str | None = None, manual_dir: str | None = None
) -> sources.Recordings:
  """Spoken digits as log-mel spectrograms, float32 [n, frames, bands], as `sources.spoken_digit`.

  Arguments and errors as `load`. They are kept on disk: reading them again needs no TensorFlow.
  """

  def make() -> dict[str, np.ndarray]:
    recordings = sources.spoken_digit(split, SPEECH.samples, data_dir, manual_dir)
    heard = audio.log_mel(recordings.items / np.float32(32767), SPEECH)
    return recordings._replace(items=heard)._asdict()

  state = public.prepared_state("spoken_digit", data_dir, manual_dir)
  return sources.Recordings(**cache.arrays(f"spoken_digit-{split}", state, make))
