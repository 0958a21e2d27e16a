import dataclasses
import pickle

import grain
import numpy as np
from PIL import Image
import pytest
import soundfile

from mmdiff_jax.data import audio, derived, folder, pipeline
from mmdiff_jax.errors import UserError

_SIZE = (6, 8)
_RNG = np.random.default_rng(0)
_PHOTOS = folder.image("photo", _SIZE)
_CAPTIONS = folder.text("caption", 12)


def _pixels(i, shape=_SIZE):
  return np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _photo(path, i=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(_pixels(i)).save(path)


def _caption(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines), "utf-8")


def _fill(root, count=10):
  for i in range(count):
    _photo(root / "photo" / f"kind{i % 2}" / f"{i}.png", i)
    _caption(root / "caption" / f"kind{i % 2}" / f"{i}.txt", f"number {i}")
  return root


def _open(root, split="train", columns=(_PHOTOS, _CAPTIONS), **options):
  return folder.open_folder(root, columns, split, **{"test_share": 0.0, **options})


def _said(data):
  show = data.modalities[-1].show
  return [show(example["caption"]) for example in data]


def test_files_of_one_stem_are_one_example(tmp_path):
  data = _open(_fill(tmp_path))
  assert data.stems == tuple(sorted(f"kind{i % 2}/{i}" for i in range(10)))
  for stem, example in zip(data.stems, data, strict=True):
    i = int(stem[-1])
    assert set(example) == {"photo", "caption"}
    np.testing.assert_array_equal(example["photo"], _pixels(i) / np.float32(255))
    assert data.modalities[1].show(example["caption"]) == f"number {i}"


def test_examples_are_read_when_they_are_asked_for(tmp_path):
  data = _open(_fill(tmp_path))
  (tmp_path / "photo" / "kind0" / "2.png").write_bytes(b"")
  assert data[0]["photo"].shape == (*_SIZE, 3)
  with pytest.raises(UserError, match="2.png"):
    data[1]
  with pytest.raises(IndexError):
    data[10]
  np.testing.assert_array_equal(data[-1]["caption"], data[9]["caption"])


def test_whole_split_feeds_the_pipeline_and_single_examples_feed_grain(tmp_path):
  data = _open(_fill(tmp_path))
  arrays = data.arrays()
  for modality in data.modalities:
    assert arrays[modality.name].shape == (10, *modality.shape)
  batch = next(pipeline.batches(arrays, 4, seed=0))
  assert batch["photo"].shape == (4, *_SIZE, 3)
  lazy = grain.MapDataset.source(data).batch(5)[1]
  np.testing.assert_array_equal(lazy["photo"], arrays["photo"][5:])
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[3]["photo"], data[3]["photo"])


def test_hash_splits_in_the_share_and_never_moves_an_example(tmp_path):
  for i in range(400):
    _caption(tmp_path / "caption" / f"{i}.txt", str(i))
  train, test = (_open(tmp_path, s, [_CAPTIONS], test_share=0.2) for s in ("train", "test"))
  assert not set(train.stems) & set(test.stems)
  assert len(train) + len(test) == 400
  assert abs(len(test) - 80) < 4 * np.sqrt(400 * 0.2 * 0.8)
  more = _open(tmp_path, "test", [_CAPTIONS], test_share=0.4)
  assert set(test.stems) < set(more.stems)
  for i in range(200):
    (tmp_path / "caption" / f"{i}.txt").unlink()
  fewer = _open(tmp_path, "test", [_CAPTIONS], test_share=0.2)
  assert set(fewer.stems) == {stem for stem in test.stems if int(stem) >= 200}


def test_splits_may_be_folders_on_top(tmp_path):
  _fill(tmp_path / "train", 4)
  _fill(tmp_path / "test", 2)
  _fill(tmp_path / "val", 3)
  assert [len(_open(tmp_path, split)) for split in ("train", "test", "val")] == [4, 2, 3]
  _fill(tmp_path / "held_out" / "test", 2)
  assert len(_open(tmp_path / "held_out", "test")) == 2
  with pytest.raises(UserError, match="no folder .*dev/photo"):
    _open(tmp_path, "dev")


def test_splits_may_be_in_the_places(tmp_path):
  for split, count in (("train", 3), ("val", 2)):
    for i in range(count):
      _photo(tmp_path / f"{split}_photos" / f"{i}.png", i)
      _caption(tmp_path / "captions" / split / f"{i}.txt", str(i))
  columns = (
    folder.image("photo", _SIZE, place="{split}_photos"),
    folder.text("caption", 4, place="captions/{split}"),
  )
  assert [len(_open(tmp_path, split, columns)) for split in ("train", "val")] == [3, 2]


def test_each_kind_is_found_and_is_what_its_modality_says(tmp_path):
  view = audio.LogMel()
  columns = (
    folder.image("grey", _SIZE, 1),
    folder.mask("mask", _SIZE, 3),
    folder.sound("sound", view),
    folder.text("word", 5, alphabet=" abc"),
    folder.video("video", 2, _SIZE),
  )
  for column in columns:
    (tmp_path / column.place).mkdir()
  labels = np.random.default_rng(0).integers(0, 3, _SIZE, dtype=np.uint8)
  for i, suffix in enumerate(("png", "JPG")):
    _photo(tmp_path / "grey" / f"{i}.{suffix}")
    Image.fromarray(labels).save(tmp_path / "mask" / f"{i}.png")
    _caption(tmp_path / "word" / f"{i}.txt", "cab")
  for name in ("0.wav", "1.flac"):
    soundfile.write(tmp_path / "sound" / name, np.zeros(view.samples), view.sample_rate)
  for frame in (1, 2, 10):
    _photo(tmp_path / "video" / "0" / f"frame_{frame}.png", frame)
  Image.fromarray(_pixels(0)).save(tmp_path / "video" / "1.gif")
  data = _open(tmp_path, columns=columns)
  arrays = data.arrays()
  for modality in data.modalities:
    array = arrays[modality.name]
    assert array.shape == (2, *modality.shape)
    assert array.dtype == (np.int32 if modality.num_classes else np.float32)
    assert 0 <= array.min() <= array.max() <= max(modality.num_classes - 1, 1)
    assert modality.show(array[0]) is not None
  np.testing.assert_array_equal(arrays["mask"][0], labels)
  # In natural order, 10 is the last.
  np.testing.assert_array_equal(arrays["video"][0, 1], _pixels(10) / np.float32(255))
  assert data.modalities[3].show(arrays["word"][0]) == "cab"


def test_derived_modalities_are_made_of_the_others_files(tmp_path):
  _fill(tmp_path, 3)
  masks = folder.mask("mask", _SIZE, 256)
  (tmp_path / "mask").mkdir()
  for i in range(3):
    Image.fromarray(_pixels(i)[..., 0]).save(tmp_path / "mask" / f"{i}.png")
  data = _open(
    tmp_path,
    columns=(masks, folder.partial_mask("some", masks, keep=0.3)),
  )
  for example in data:
    share = (example["some"] == example["mask"]).mean()
    assert (
      0.1 < share < 0.6 and ((example["some"] == example["mask"]) | (example["some"] == 0)).all()
    )
  assert data.modalities[1] == dataclasses.replace(masks.modality, name="some")
  data = _open(tmp_path, columns=(_PHOTOS, folder.sketch("sketch", _PHOTOS, sigma=0.5)))
  for example in data:
    np.testing.assert_array_equal(
      example["sketch"], derived.sketch(example["photo"], _RNG, sigma=0.5)
    )
  assert data.modalities[1].shape == (*_SIZE, 1)


def test_what_others_are_derived_of_is_read_once(tmp_path):
  _fill(tmp_path, 1)
  reads = []
  counted = dataclasses.replace(
    _PHOTOS, read=lambda paths, rng: reads.append(paths) or _PHOTOS.read(paths, rng)
  )
  sketches = [folder.sketch(f"sketch{sigma}", counted, sigma=sigma) for sigma in (1.0, 2.0)]
  example = _open(tmp_path, columns=(counted, *sketches))[0]
  assert len(reads) == 1 and len(example) == 3


def test_what_is_random_depends_on_seed_index_and_name_alone(tmp_path):
  lines = [f"line {i}" for i in range(30)]
  for i in range(8):
    _photo(tmp_path / "photo" / f"{i}.png", i)
    _caption(tmp_path / "caption" / f"{i}.txt", *lines)
  both = _open(tmp_path, seed=3)
  alone = _open(tmp_path, columns=[_CAPTIONS], seed=3)
  assert _said(both) == _said(alone) == _said(both)
  assert [both.modalities[1].show(both[i]["caption"]) for i in (5, 2)] == [
    _said(both)[i] for i in (5, 2)
  ]
  assert len(set(_said(both))) > 4
  other = dataclasses.replace(both, seed=4)
  assert _said(other) != _said(both) and set(_said(other)) <= set(lines)
  again = dataclasses.replace(_CAPTIONS, modality=dataclasses.replace(_CAPTIONS.modality, name="b"))
  twice = _open(tmp_path, columns=[_CAPTIONS, again], seed=3)
  assert any((example["caption"] != example["b"]).any() for example in twice)
  renamed = folder.text("words", 12, place="caption")
  assert [
    renamed.modality.show(e["words"]) for e in _open(tmp_path, columns=[renamed], seed=3)
  ] != (_said(both))


def _lacking(root):
  _fill(root, 9)
  for i in range(1, 8):
    (root / "caption" / f"kind{i % 2}" / f"{i}.txt").unlink()
  (root / "photo" / "kind0" / "8.png").unlink()
  return root


def test_lacking_files_are_said_at_most_five(tmp_path):
  _lacking(tmp_path)
  with pytest.raises(UserError, match=r"1 of 9 examples in .* no 'photo': kind0/8\. Add"):
    _open(tmp_path)
  said = r"7 of 9 .* no 'caption': kind0/2, kind0/4, kind0/6, kind1/1, kind1/3, \.\.\.\. Add"
  with pytest.raises(UserError, match=said):
    _open(tmp_path, columns=(_CAPTIONS, _PHOTOS))


def test_lacking_modalities_are_masked_zeros_or_dropped(tmp_path):
  _lacking(tmp_path)
  kept = _open(tmp_path, incomplete="keep")
  arrays = kept.arrays()
  whole = {name: np.array([stem in kept.found[name] for stem in kept.stems]) for name in kept.found}
  for name, there in whole.items():
    assert arrays[f"{name}_present"].dtype == bool
    np.testing.assert_array_equal(arrays[f"{name}_present"], there)
    np.testing.assert_array_equal(arrays[name].reshape(9, -1).any(1), there)
  assert [there.sum() for there in whole.values()] == [8, 2]
  assert arrays["caption"].dtype == np.int32
  dropped = _open(tmp_path, incomplete="drop")
  assert dropped.stems == ("kind0/0",) and set(dropped[0]) == {"photo", "caption"}


def test_hidden_and_foreign_files_are_left_aside(tmp_path):
  _fill(tmp_path, 2)
  for name in (".DS_Store", "._0.png", ".cache/0.png", "kind0/notes.md"):
    _caption(tmp_path / "photo" / name, "x")
  assert len(_open(tmp_path)) == 2


def test_two_files_of_one_example_are_refused(tmp_path):
  _fill(tmp_path, 2)
  _photo(tmp_path / "photo" / "kind0" / "0.jpg")
  with pytest.raises(UserError, match="0.jpg and .*0.png are the same example"):
    _open(tmp_path)
  clips = folder.video("clip", 2, _SIZE)
  for frame in range(2):
    _photo(tmp_path / "clip" / "0" / f"{frame}.png")
  assert len(_open(tmp_path, columns=[clips])) == 1
  _photo(tmp_path / "clip" / "0.gif")
  with pytest.raises(UserError, match="0.gif.*are the same example"):
    _open(tmp_path, columns=[clips])


def test_what_is_not_there_is_said(tmp_path):
  with pytest.raises(UserError, match="no folder '.*nowhere'"):
    _open(tmp_path / "nowhere")
  _fill(tmp_path, 2)
  with pytest.raises(UserError, match="no folder .*sound"):
    _open(tmp_path, columns=(_PHOTOS, folder.sound("sound", audio.LogMel())))
  with pytest.raises(UserError, match="no file in .*caption whose name"):
    _open(tmp_path, columns=[folder.image("caption", _SIZE)])
  with pytest.raises(UserError, match="no folder 'val' and is split into 'train' and 'test'"):
    _open(tmp_path, "val")
  with pytest.raises(UserError, match="'test' .* is empty: with test_share=0.0"):
    _open(tmp_path, "test")
  _caption(tmp_path / "other" / "x.txt", "x")
  with pytest.raises(UserError, match="is empty: no example has all of photo, other"):
    _open(tmp_path, columns=(_PHOTOS, folder.text("other", 3)), incomplete="drop")
