"""Computes the representations that the data set `represented` reads, with a frozen classifier.

python -m experiments.represent --dataset=NAME --modality=NAME --out=FILE.npz
  [--data_dir=DIR --manual_dir=DIR]

The classifier of that modality is trained on the training split, with a seed of its own, so that
it is a different network from the one that classifies samples in experiments.evaluate. The file has
the 256 features of its last hidden layer for all examples, in the arrays `train` and `test`. The
same command writes the same file again.
"""

from collections.abc import Mapping, Sequence

from absl import flags
import numpy as np

from experiments import setup
from mmdiff_jax import noise, storage
from mmdiff_jax.data import array_files, datasets
from mmdiff_jax.data.pairing import Column
from mmdiff_jax.errors import UserError
from mmdiff_jax.evaluation import classifiers
from mmdiff_jax.modalities import Modality

# Other entry points have flags of these names, and tests load several into one process.
_DATASET = flags.DEFINE_string("dataset", None, "Name of a data set.", allow_override=True)
_DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "Folder of prepared data sets; ~/tensorflow_datasets if not given.",
  allow_override=True,
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir",
  None,
  "Folder of your own files; DATA_DIR/downloads/manual if not given.",
  allow_override=True,
)
_MODALITY = flags.DEFINE_string("modality", None, "Modality to represent.")
_OUT = flags.DEFINE_string("out", None, "NPZ file to write.", allow_override=True)

_SEED = 6007  # Not the seed of the classifiers in experiments.evaluate.


def main(argv: Sequence[str]) -> None:
  """Trains the classifier, computes the features and writes them."""
  del argv
  name, out = _DATASET.value, storage.on_disk(_OUT.value, "The NPZ file (--out)")
  modalities = {modality.name: modality for modality in datasets.modalities(name)}
  if _MODALITY.value not in modalities or "label" not in modalities:
    raise UserError(
      f"The data set {name!r} must have the modality {_MODALITY.value!r} (--modality), and the"
      f" modality 'label' to train a classifier. It has: {', '.join(modalities)}."
    )
  if not out.parent.is_dir():
    raise UserError(f"There is no folder {out.parent} for the file {out.name} (--out). Create it.")
  storage.check_file_writable(out, "--out")
  storage.check_writable(out.parent, "--out")  # The file is written beside its final path first.
  data = {
    split: datasets.load(name, split, _DATA_DIR.value, _MANUAL_DIR.value)
    for split in ("train", "test")
  }
  features = represent(modalities[_MODALITY.value], data)
  with storage.writing(out, "--out"):
    array_files.write_npz(out, **features)
  print(f"Wrote {out}.", flush=True)


def represent(
  modality: Modality, data: Mapping[str, Mapping[str, np.ndarray | Column]]
) -> dict[str, np.ndarray]:
  """Trains a classifier and computes its features of a modality; prints progress and accuracy.

  Args:
    modality: the modality to represent.
    data: the splits "train" and "test", with "label".

  Returns:
    float16 [n, 256] for each split: half the size, with an error of 0.05 % that no network notices.
  """
  key = noise.modality_key(noise.make_key(_SEED), modality.name)
  labels = {split: np.asarray(arrays["label"]) for split, arrays in data.items()}
  classifier = classifiers.fit(
    modality, data["train"][modality.name], labels["train"], key, say=_say
  )
  features = {}
  for split, arrays in data.items():
    _say(f"features of {modality.name}, {split}: {len(labels[split]):,} examples ...")
    classes, values = classifiers.classify(classifier, arrays[modality.name])
    features[split] = values.astype(np.float16)
  accuracy = np.mean(classes == labels["test"])
  _say(f"The classifier of {modality.name} is right for {100 * accuracy:.1f} % of the tests.")
  return features


def _say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  setup.run(main, required=("dataset", "modality", "out"))
