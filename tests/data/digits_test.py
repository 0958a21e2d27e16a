import logging
import signal
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
import tensorflow_datasets as tfds

from mmdiff_jax.data import datasets, digits, digits_builder, public, rendering

_TWICE = np.ones((1, 2, 2), np.float32)
_WHITE = np.ones(3, np.float32)


@pytest.fixture(scope="module")
def records(few_draws):
  chunks = {split: list(digits.read(few_draws, split)) for split in ("train", "test")}
  return {
    split: {name: np.concatenate([chunk[name] for chunk in parts]) for name in parts[0]}
    for split, parts in chunks.items()
  }


def test_no_handwriting_is_in_both_splits_not_even_in_a_scene(records):
  own = {split: set(part["handwriting"]) for split, part in records.items()}
  written = {split: own[split] | set(part["scene_handwriting"]) for split, part in records.items()}
  assert not written["train"] & written["test"]
  assert own["train"] | own["test"] == set(range(1797))
  assert written == own
  assert len(own["test"]) == 360


def test_recorded_handwriting_is_the_one_that_is_drawn(few_draws, monkeypatch):
  """The indices are no mere claim: without chance and photos they are what one sees."""
  monkeypatch.setattr(rendering, "place_handwriting", lambda images, rng: np.kron(images, _TWICE))
  monkeypatch.setattr(rendering, "composite", lambda pages, photos, rng: pages[..., None] * _WHITE)
  drawn = np.round(np.kron(load_digits().images / 16, _TWICE) * 255)
  for split in ("train", "test"):
    for _, example in few_draws._generate_examples(split, 1):
      np.testing.assert_array_equal(example["digit"][..., 0], drawn[example["handwriting"]])
      scene = drawn[example["scene_handwriting"]]
      np.testing.assert_array_equal(example["scene"][..., 1], scene)
      np.testing.assert_array_equal(example["mask"], scene > 255 / 3)


def test_scene_is_another_handwriting_of_the_same_class(records):
  classes = load_digits().target
  for part in records.values():
    assert (part["scene_handwriting"] != part["handwriting"]).all()
    np.testing.assert_array_equal(classes[part["scene_handwriting"]], part["label"])
    np.testing.assert_array_equal(classes[part["handwriting"]], part["label"])


def test_each_handwriting_is_drawn_as_often_as_asked_and_each_time_anew(records):
  for split, draws in (("train", 2), ("test", 1)):
    part = records[split]
    _, counts = np.unique(part["handwriting"], return_counts=True)
    assert (counts == draws).all()
    for name in ("digit", "scene", "tone"):
      assert len(np.unique(part[name].reshape(len(part[name]), -1), axis=0)) == len(part[name])


def test_splits_are_alike_in_classes(records):
  share = [np.bincount(part["label"]) / len(part["label"]) for part in records.values()]
  np.testing.assert_allclose(*share, atol=0.003)


def test_fewer_draws_are_the_first_of_more(records, tmp_path):
  drawn = digits_builder.Drawn(train=1, test=1)
  fewer = digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
  ours = {row["handwriting"]: row for _, row in fewer._generate_examples("test", 1)}
  theirs = records["test"]
  for i, handwriting in enumerate(theirs["handwriting"]):
    for name in ("digit", "scene", "tone"):
      np.testing.assert_array_equal(theirs[name][i], ours[handwriting][name])
    assert theirs["caption"][i].decode() == ours[handwriting]["caption"]


def test_model_view_has_the_shapes_types_and_ranges_that_the_modalities_say(records):
  view = digits.model_view(records["test"])
  assert tuple(view) == tuple(m.name for m in digits.MODALITIES)
  for modality in digits.MODALITIES:
    values = view[modality.name]
    assert values.shape == (360, *modality.shape)
    if modality.num_classes:
      assert values.dtype == np.int32
      assert values.min() == 0 and values.max() == modality.num_classes - 1
    else:
      assert values.dtype == np.float32
      assert values.min() == 0.0 and 0.85 < values.max() <= 1.0


def test_mask_is_where_the_scene_is_more_ink_than_photo(monkeypatch, few_draws):
  """Written on white, ink is black: dark is where the mask is."""
  photos = [np.ones((20, 20, 3), np.float32)]
  monkeypatch.setattr(digits_builder, "_photos", lambda: photos)
  for _, example in few_draws._generate_examples("test", 1):
    np.testing.assert_array_equal(example["mask"], example["scene"][..., 0] < 127.5)
    assert 20 < example["mask"].sum() < 160
    assert example["mask"].dtype == np.uint8


def test_captions_of_the_records_are_true_of_the_records(records):
  part = records["test"]
  said = [text.decode() for text in part["caption"]]
  pages = part["digit"][..., 0] / np.float32(255)
  ink, slant = pages.mean((1, 2)), rendering.slant_of(pages)
  for name, truth in {
    "thin": ink < 0.2251,
    "bold": ink > 0.3049,
    "left": slant < -0.2199,
    "right": slant > 0.1399,
  }.items():
    those = np.array([name in sentence.split() for sentence in said])
    assert those.any() and truth[those].all()


def test_examples_tell_their_handwritings(records, few_draws, monkeypatch):
  monkeypatch.setattr(digits, "prepared", lambda data_dir: few_draws)
  for split, options in (("test", {}), ("train", {}), ("validation", {"validation": 0.2})):
    data = digits.load(split, **options)
    part = records["test" if split == "test" else "train"]
    classes = load_digits().target
    for name, source in (("digit", "handwriting"), ("scene", "scene_handwriting")):
      numbers = data[f"source_{name}"]
      assert len(numbers) == len(data["label"]) and set(numbers) <= set(part[source])
      np.testing.assert_array_equal(classes[numbers], data["label"])
      if not options:
        np.testing.assert_array_equal(numbers, part[source])


def test_captions_of_the_records_are_valid(records):
  valid = datasets.valid("caption", "digits")
  assert valid(digits.model_view(records["test"])["caption"]).all()


def test_each_modality_is_shown_as_its_kind_asks(records):
  view = digits.model_view({name: column[:1] for name, column in records["test"].items()})
  shown = {m.name: m.show(view[m.name][0]) for m in digits.MODALITIES}
  np.testing.assert_array_equal(shown["scene"], records["test"]["scene"][0])
  np.testing.assert_array_equal(shown["digit"][..., :1], records["test"]["digit"][0])
  assert shown["tone"].shape == (rendering.TONE.samples,)
  assert shown["caption"] == records["test"]["caption"][0].decode()
  assert shown["label"] == str(records["test"]["label"][0])


def test_interrupted_preparation_is_made_anew(tmp_path, monkeypatch):
  drawn = digits_builder.Drawn(train=1, test=1)
  place = rendering.captions

  def interrupt(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(rendering, "captions", interrupt)
  builder = digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
  with pytest.raises(KeyboardInterrupt):
    builder.download_and_prepare()
  assert not list(tmp_path.rglob("*.array_record*"))
  monkeypatch.setattr(rendering, "captions", place)
  builder = digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
  builder.download_and_prepare()
  assert sum(len(chunk["label"]) for chunk in digits.read(builder, "train")) == 1437


_HANGS = """
import sys, time
from mmdiff_jax.data import digits, digits_builder, public, rendering
drawn = digits_builder.Drawn(train=2, test=1)
builder = digits_builder.Digits(data_dir=sys.argv[1], config=drawn, file_format="array_record")
whole, calls = rendering.captions, []
def captions(*args):
  calls.append(args)
  if len(calls) == int(sys.argv[2]):
    print("now", flush=True)
    time.sleep(600)
  return whole(*args)
rendering.captions = captions
public.prepare(builder, "")
"""


@pytest.mark.parametrize("call", [2, 3])
def test_killed_preparation_is_made_anew_and_what_it_left_is_told(
  tmp_path, few_draws, caplog, call
):
  """Killed within the training split, and when that is written already."""
  program = [sys.executable, "-c", _HANGS, str(tmp_path), str(call)]
  with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as running:
    while running.stdout.readline() not in ("now\n", ""):
      pass
    running.send_signal(signal.SIGKILL)
  assert running.returncode == -signal.SIGKILL
  drawn = digits_builder.Drawn(train=2, test=1)
  builder = digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
  (left,) = builder.data_path.parent.iterdir()
  assert left.name.startswith("incomplete.") and not builder.is_prepared()
  with caplog.at_level(logging.INFO, logger="mmdiff_jax.data"):
    public.prepare(builder, "")
  assert "you can delete it" in caplog.text and str(left) in caplog.text
  for split in ("train", "test"):
    pairs = zip(digits.read(builder, split), digits.read(few_draws, split), strict=True)
    for ours, theirs in pairs:
      for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  again = digits_builder.Digits(data_dir=str(tmp_path), config=drawn, file_format="array_record")
  public.prepare(again, "")
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_progress_bar_knows_its_end(few_draws):
  found = few_draws._split_generators(None)
  assert {split: len(examples) for split, examples in found.items()} == {"train": 2874, "test": 360}


def test_builder_is_registered_and_its_files_can_be_read_without_our_code(few_draws):
  assert tfds.builder_cls("digits") is digits_builder.Digits
  alone = tfds.builder_from_directory(few_draws.data_path)
  record = alone.as_data_source("test")[0]
  assert record["scene"].shape == (16, 16, 3) and record["scene"].dtype == np.uint8


def test_neither_preparing_nor_loading_needs_tensorflow(few_draws):
  folder = str(few_draws.data_path.parents[2])
  program = f"""
import sys
from mmdiff_jax.data import digits, digits_builder
drawn = digits_builder.Drawn(train=2, test=1)
builder = digits_builder.Digits(data_dir={folder!r}, config=drawn, file_format="array_record")
builder.download_and_prepare()
digits.model_view(next(digits.read(builder, "test")))
assert not {{"tensorflow", "sklearn"}} & set(sys.modules)
for _ in builder._generate_examples("test", 1): pass
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
