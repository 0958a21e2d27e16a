import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from mmdiff_jax.data import datasets, imagenet64, pairing, pipeline, sources
from mmdiff_jax.errors import UserError

SIZES = {"train": 60, "validation": 9}
NAME = "imagenet_resized/64x64"


def _png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format="png")
  return file.getvalue()


@pytest.fixture(scope="module")
def made():
  """Pixels and labels of both splits: noise, of which the first pixel of row i is i and 0."""
  splits = {}
  for seed, (split, size) in enumerate(SIZES.items()):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size, 64, 64, 3)).astype(np.uint8)
    labels = rng.integers(0, 1000, size)
    labels[:2] = 0, 999
    splits[split] = pixels, labels
  return splits


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
  """A folder in which tfds's own builder has prepared small splits, which count as the public."""
  builder = tfds.builder(NAME, data_dir=str(tmp_path), file_format="array_record")

  def examples(split):
    for i, (pixels, label) in enumerate(zip(*made[split], strict=True)):
      yield i, {"image": _png(pixels), "label": int(label)}

  splits = {split: examples(split) for split in SIZES}
  monkeypatch.setattr(type(builder), "_split_generators", lambda *_: splits)
  builder.download_and_prepare()
  for split, size in SIZES.items():
    monkeypatch.setitem(sources.PUBLIC, (NAME, split), sources.Known(size, None))
  return tmp_path


def _rows(made, split):
  pixels, labels = made[split]
  return {row.tobytes(): label for row, label in zip(pixels, labels, strict=True)}


def _bytes(images):
  return [np.round(image * 255).astype(np.uint8).tobytes() for image in images]


def test_examples_are_the_records_and_every_one_has_its_label(folder, made):
  for split, public in (("train", "train"), ("test", "validation")):
    data = datasets.load("imagenet64", split, str(folder))
    truth = _rows(made, public)
    assert data["image"].shape == (SIZES[public], 64, 64, 3)
    assert data["image"].dtype == np.float32 and data["label"].dtype == np.int32
    assert {*_bytes(data["image"][:])} == {*truth}
    assert [truth[row] for row in _bytes(data["image"][:])] == data["label"].tolist()
    chosen = np.array([[3, 1], [8, 3]])
    np.testing.assert_array_equal(data["image"][chosen][1, 0], data["image"][8])


def test_a_part_of_the_published_training_split_is_held_out(folder, made, monkeypatch):
  """Every other image: of most classes there is but one here."""
  monkeypatch.setattr(
    pairing, "part_rows", lambda split, labels, _: np.arange(split == "train", len(labels), 2)
  )
  truth, seen = _rows(made, "train"), set()
  for split in ("train", "validation"):
    data = datasets.load("imagenet64", split, str(folder), validation=0.5)
    rows = _bytes(data["image"][:])
    assert [truth[row] for row in rows] == data["label"].tolist()
    assert not seen & {*rows}
    seen |= {*rows}
  assert seen == {*truth}


def test_batches_of_several_threads_have_their_labels(folder, made):
  data = datasets.load("imagenet64", "train", str(folder))
  truth = _rows(made, "train")
  batches = pipeline.batches(data, 20, seed=0, threads=4)
  for _ in range(6):
    batch = next(batches)
    assert [truth[row] for row in _bytes(batch["image"])] == batch["label"].tolist()


def test_only_what_is_asked_for_is_decoded(folder, monkeypatch):
  decoded = []
  image = tfds.features.Image.decode_example_np

  def counted(self, example):
    decoded.append(len(example))
    return image(self, example)

  monkeypatch.setattr(tfds.features.Image, "decode_example_np", counted)
  data = datasets.load("imagenet64", "train", str(folder))
  assert len(data["label"]) == SIZES["train"] and not decoded
  data["image"][np.arange(7)]
  assert len(decoded) == 7


def test_labels_are_read_once_and_kept(folder, monkeypatch):
  first = datasets.load("imagenet64", "train", str(folder))["label"]
  (kept,) = folder.rglob("labels_*")
  assert kept.name == "labels_train.npz"

  def never(*args):
    raise AssertionError("the labels are kept")

  with monkeypatch.context() as patch:
    patch.setattr(sources, "records", never)
    again = datasets.load("imagenet64", "train", str(folder))["label"]
  np.testing.assert_array_equal(again, first)

  whole = kept.read_bytes()
  for damaged in (b"", whole[: len(whole) // 2], whole.replace(first.tobytes(), bytes(4 * 60))):
    kept.write_bytes(damaged)
    found = datasets.load("imagenet64", "train", str(folder))["label"]
    np.testing.assert_array_equal(found, first)
    assert kept.read_bytes() == whole


def test_kept_labels_of_another_number_are_read_anew(folder):
  first = datasets.load("imagenet64", "train", str(folder))["label"]
  (kept,) = folder.rglob("labels_*")
  np.savez(kept, label=first[1:])
  found = datasets.load("imagenet64", "train", str(folder))["label"]
  np.testing.assert_array_equal(found, first)


def test_kept_labels_of_other_images_are_refused(folder):
  first = datasets.load("imagenet64", "train", str(folder))["label"]
  (kept,) = folder.rglob("labels_*")
  np.savez(kept, label=(first + 1) % 1000)
  images = datasets.load("imagenet64", "train", str(folder))["image"]
  with pytest.raises(UserError, match=rf"{kept.parent} are not those.*labels_\*.npz"):
    images[:3]


def test_labels_are_not_kept_where_nothing_can_be_written(folder, monkeypatch):
  def refuse(*args, **kwargs):
    raise PermissionError("read-only")

  monkeypatch.setattr(np, "savez", refuse)
  assert len(datasets.load("imagenet64", "train", str(folder))["label"]) == SIZES["train"]
  assert not list(folder.rglob("labels_*"))


def test_split_of_another_number_is_refused(folder, monkeypatch):
  monkeypatch.setitem(sources.PUBLIC, (NAME, "train"), sources.Known(1_281_167, None))
  with pytest.raises(UserError, match=r"has 60 examples.*'train'.*must be 1,281,167"):
    datasets.load("imagenet64", "train", str(folder))


def test_labels_out_of_range_are_refused(folder):
  builder = tfds.builder(NAME, data_dir=str(folder), file_format="array_record")
  with pytest.raises(UserError, match="labels from 0 to 999.*must be 0 to 998"):
    sources.labels(builder, "train", SIZES["train"], 999)


def test_damaged_file_is_named_when_it_is_read(folder):
  images = datasets.load("imagenet64", "test", str(folder))["image"]
  (path,) = folder.rglob("*validation.array_record*")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  images = datasets.load("imagenet64", "test", str(folder))["image"]
  with pytest.raises(UserError, match=rf"{path} cannot be read.*Delete {path.parent}"):
    images[:]


def test_only_files_of_this_size_are_asked_for(tmp_path, monkeypatch):
  def offline(*args):
    raise OSError("no such host")

  monkeypatch.setattr(sources.socket, "getaddrinfo", offline)
  with pytest.raises(UserError) as raised:
    imagenet64.load("train", str(tmp_path))
  said = str(raised.value)
  assert f"tfds build {NAME} --file_format=array_record" in said
  assert "Imagenet64_train_part1_npz.zip" in said and "Imagenet64_val_npz.zip" in said
  assert "Imagenet32" not in said
  # With these at hand no network is asked for; what is in them is tfds's to check.
  files = tmp_path / "downloads" / "manual"
  files.mkdir(parents=True)
  for name in ("train_part1", "train_part2", "val"):
    (files / f"Imagenet64_{name}_npz.zip").write_bytes(b"no archive")
  with pytest.raises(UserError, match="(?i)checksum"):
    imagenet64.load("train", str(tmp_path))


def test_reading_does_not_need_tensorflow(folder):
  sizes = json.dumps(SIZES)
  program = (
    "import sys\nfrom mmdiff_jax.data import datasets, sources\n"
    f"for split, size in {sizes}.items():\n"
    f"  sources.PUBLIC[{NAME!r}, split] = sources.Known(size, None)\n"
    f"data = datasets.load('imagenet64', 'train', {str(folder)!r})\n"
    "data['image'][:5]\nassert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
