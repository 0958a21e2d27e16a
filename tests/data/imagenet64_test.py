import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from mmdiff_jax.data import datasets, imagenet64, pairing, pipeline, public
from mmdiff_jax.errors import UserError

SIZES = {"train": 60, "validation": 9}
NAME = "imagenet_resized/64x64"


def _png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format="png")
  return file.getvalue()


@pytest.fixture(scope="module")
def public_splits():
  """Pixels and labels of both splits: pixels are noise, the first two labels are 0 and 999."""
  splits = {}
  for seed, (split, size) in enumerate(SIZES.items()):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size, 64, 64, 3)).astype(np.uint8)
    labels = rng.integers(0, 1000, size)
    labels[:2] = 0, 999
    splits[split] = pixels, labels
  return splits


@pytest.fixture
def folder(public_splits, tmp_path, monkeypatch):
  """A folder in which tfds's builder has prepared small splits, which count as the public ones."""
  builder = tfds.builder(NAME, data_dir=str(tmp_path), file_format="array_record")

  def examples(split):
    for i, (pixels, label) in enumerate(zip(*public_splits[split], strict=True)):
      yield i, {"image": _png(pixels), "label": int(label)}

  splits = {split: examples(split) for split in SIZES}
  monkeypatch.setattr(type(builder), "_split_generators", lambda *_: splits)
  builder.download_and_prepare()
  for split, size in SIZES.items():
    monkeypatch.setitem(public.PUBLIC, (NAME, split), public.PublicSplit(size, None))
  return tmp_path


def _rows(public_splits, split):
  pixels, labels = public_splits[split]
  return {row.tobytes(): label for row, label in zip(pixels, labels, strict=True)}


def _bytes(images):
  return [np.round(image * 255).astype(np.uint8).tobytes() for image in images]


def test_examples_are_the_records_and_every_one_has_its_label(folder, public_splits):
  for split, source_split in (("train", "train"), ("test", "validation")):
    data = datasets.load("imagenet64", split, str(folder))
    truth = _rows(public_splits, source_split)
    assert data["image"].shape == (SIZES[source_split], 64, 64, 3)
    assert data["image"].dtype == np.float32 and data["label"].dtype == np.int32
    assert {*_bytes(data["image"][:])} == {*truth}
    assert [truth[row] for row in _bytes(data["image"][:])] == data["label"].tolist()
    indices = np.array([[3, 1], [8, 3]])
    np.testing.assert_array_equal(data["image"][indices][1, 0], data["image"][8])


def test_a_part_of_the_published_training_split_is_held_out(folder, public_splits, monkeypatch):
  """Every other image is held out, since most classes have only one here."""
  monkeypatch.setattr(
    pairing, "part_rows", lambda split, labels, _: np.arange(split == "train", len(labels), 2)
  )
  truth, seen = _rows(public_splits, "train"), set()
  for split in ("train", "validation"):
    data = datasets.load("imagenet64", split, str(folder), validation=0.5)
    rows = _bytes(data["image"][:])
    assert [truth[row] for row in rows] == data["label"].tolist()
    assert not seen & {*rows}
    seen |= {*rows}
  assert seen == {*truth}


def test_batches_of_several_threads_have_their_labels(folder, public_splits):
  data = datasets.load("imagenet64", "train", str(folder))
  truth = _rows(public_splits, "train")
  batches = pipeline.batches(data, 20, seed=0, threads=4)
  for _ in range(6):
    batch = next(batches)
    assert [truth[row] for row in _bytes(batch["image"])] == batch["label"].tolist()


def test_only_requested_images_are_decoded(folder, monkeypatch):
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
    patch.setattr(public, "records", never)
    again = datasets.load("imagenet64", "train", str(folder))["label"]
  np.testing.assert_array_equal(again, first)

  intact = kept.read_bytes()
  for damaged in (b"", intact[: len(intact) // 2], intact.replace(first.tobytes(), bytes(4 * 60))):
    kept.write_bytes(damaged)
    labels = datasets.load("imagenet64", "train", str(folder))["label"]
    np.testing.assert_array_equal(labels, first)
    assert kept.read_bytes() == intact


def test_kept_labels_with_a_wrong_number_are_read_again(folder):
  first = datasets.load("imagenet64", "train", str(folder))["label"]
  (kept,) = folder.rglob("labels_*")
  np.savez(kept, label=first[1:])
  labels = datasets.load("imagenet64", "train", str(folder))["label"]
  np.testing.assert_array_equal(labels, first)


def test_kept_labels_of_other_images_are_refused(folder):
  first = datasets.load("imagenet64", "train", str(folder))["label"]
  (kept,) = folder.rglob("labels_*")
  np.savez(kept, label=(first + 1) % 1000)
  images = datasets.load("imagenet64", "train", str(folder))["image"]
  with pytest.raises(UserError, match=rf"{kept.parent} are not those.*labels_\*.npz"):
    images[:3]


def test_labels_are_not_kept_if_nothing_can_be_written(folder, monkeypatch):
  def refuse(*args, **kwargs):
    raise PermissionError("read-only")

  monkeypatch.setattr(np, "savez", refuse)
  assert len(datasets.load("imagenet64", "train", str(folder))["label"]) == SIZES["train"]
  assert not list(folder.rglob("labels_*"))


def test_split_with_a_wrong_number_of_examples_is_refused(folder, monkeypatch):
  monkeypatch.setitem(public.PUBLIC, (NAME, "train"), public.PublicSplit(1_281_167, None))
  with pytest.raises(UserError, match=r"has 60 examples.*'train'.*must be 1,281,167"):
    datasets.load("imagenet64", "train", str(folder))


def test_labels_out_of_range_are_refused(folder):
  builder = tfds.builder(NAME, data_dir=str(folder), file_format="array_record")
  with pytest.raises(UserError, match="labels from 0 to 999.*must be 0 to 998"):
    public.labels(builder, "train", SIZES["train"], 999)


def test_damaged_file_is_named_when_it_is_read(folder):
  images = datasets.load("imagenet64", "test", str(folder))["image"]
  (path,) = folder.rglob("*validation.array_record*")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  images = datasets.load("imagenet64", "test", str(folder))["image"]
  with pytest.raises(UserError, match=rf"{path} cannot be read.*Delete {path.parent}"):
    images[:]


def test_only_files_of_this_size_are_requested(tmp_path, monkeypatch):
  def offline(*args):
    raise OSError("no such host")

  monkeypatch.setattr(public.socket, "getaddrinfo", offline)
  with pytest.raises(UserError) as raised:
    imagenet64.load("train", str(tmp_path))
  message = str(raised.value)
  assert f"tfds build {NAME} --file_format=array_record" in message
  assert "Imagenet64_train_part1_npz.zip" in message and "Imagenet64_val_npz.zip" in message
  assert "Imagenet32" not in message
  # If these files exist no network is needed; tfds checks their contents.
  files = tmp_path / "downloads" / "manual"
  files.mkdir(parents=True)
  for name in ("train_part1", "train_part2", "val"):
    (files / f"Imagenet64_{name}_npz.zip").write_bytes(b"no archive")
  with pytest.raises(UserError, match="(?i)checksum"):
    imagenet64.load("train", str(tmp_path))


def test_reading_does_not_need_tensorflow(folder):
  sizes = json.dumps(SIZES)
  program = (
    "import sys\nfrom mmdiff_jax.data import datasets, public\n"
    f"for split, size in {sizes}.items():\n"
    f"  public.PUBLIC[{NAME!r}, split] = public.PublicSplit(size, None)\n"
    f"data = datasets.load('imagenet64', 'train', {str(folder)!r})\n"
    "data['image'][:5]\nassert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
