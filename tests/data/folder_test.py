import dataclasses
import functools
import pickle

import grain
import numpy as np
from PIL import Image
import pytest
import soundfile

from mmdiff_jax.data import audio, columns as columns_lib, datasets, derived, folder, pipeline
from mmdiff_jax.errors import UserError

_SIZE = (6, 8)
_RNG = np.random.default_rng(0)
_PHOTOS = columns_lib.image("photo", _SIZE)
_CAPTIONS = columns_lib.text("caption", 12)


def _pixels(i, shape=_SIZE):
  return np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _photo(path, i=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(_pixels(i)).save(path)


def _caption(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines), "utf-8")


def _fill(root, count=10, first=0):
  for i in range(count):
    _photo(root / "photo" / f"kind{i % 2}" / f"{i}.png", first + i)
    _caption(root / "caption" / f"kind{i % 2}" / f"{i}.txt", f"number {i}")
  return root


def _open(root, split="train", columns=(_PHOTOS, _CAPTIONS), **options):
  return folder.open_folder(root, columns, split, **{"test_share": 0.0, **options})


def _arrays(data):
  return {name: np.stack([example[name] for example in data]) for name in data[0]}


def _captions(data):
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
  arrays = _arrays(data)
  for modality in data.modalities:
    assert arrays[modality.name].shape == (10, *modality.shape)
  batch = next(pipeline.batches(arrays, 4, seed=0))
  assert batch["photo"].shape == (4, *_SIZE, 3)
  lazy = grain.MapDataset.source(data).batch(5)[1]
  np.testing.assert_array_equal(lazy["photo"], arrays["photo"][5:])
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[3]["photo"], data[3]["photo"])


def test_hash_splits_by_the_fraction_and_never_moves_an_example(tmp_path):
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


def test_examples_that_belong_together_go_to_one_split(tmp_path):
  for i in range(400):
    _caption(tmp_path / "caption" / f"drive{i % 40}_{i}.txt", str(i))
  options = {"test_share": 0.3, "together": "[^_]+"}
  splits = [_open(tmp_path, split, [_CAPTIONS], **options).stems for split in ("train", "test")]
  train, test = ({stem.partition("_")[0] for stem in stems} for stems in splits)
  assert not train & test and len(train | test) == 40 and len(test) > 3
  for together, complaint in (
    ("x", r"'x', which does not match the start of stem 'drive\d+_\d+'"),
    ("(", "not a regular expression"),
  ):
    with pytest.raises(UserError, match=f"together is .*{complaint}"):
      _open(tmp_path, "train", [_CAPTIONS], together=together)


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
    columns_lib.image("photo", _SIZE, place="{split}_photos"),
    columns_lib.text("caption", 4, place="captions/{split}"),
  )
  assert [len(_open(tmp_path, split, columns)) for split in ("train", "val")] == [3, 2]


def test_each_kind_is_read_as_its_modality_describes(tmp_path):
  view = audio.LogMel()
  columns = (
    columns_lib.image("grey", _SIZE, 1),
    columns_lib.mask("mask", _SIZE, 3),
    columns_lib.sound("sound", view),
    columns_lib.text("word", 5, alphabet=" abc"),
    columns_lib.video("video", 2, _SIZE),
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
  arrays = _arrays(data)
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


def test_derived_modalities_are_made_from_the_files_of_others(tmp_path):
  _fill(tmp_path, 3)
  masks = columns_lib.mask("mask", _SIZE, 256)
  (tmp_path / "mask").mkdir()
  for i in range(3):
    Image.fromarray(_pixels(i)[..., 0]).save(tmp_path / "mask" / f"{i}.png")
  data = _open(
    tmp_path,
    columns=(masks, columns_lib.partial_mask("some", masks, keep=0.3)),
  )
  for example in data:
    kept = (example["some"] == example["mask"]).mean()
    assert (
      0.1 < kept < 0.6 and ((example["some"] == example["mask"]) | (example["some"] == 0)).all()
    )
  assert data.modalities[1] == dataclasses.replace(masks.modality, name="some")
  data = _open(tmp_path, columns=(_PHOTOS, columns_lib.sketch("sketch", _PHOTOS, sigma=0.5)))
  for example in data:
    np.testing.assert_array_equal(
      example["sketch"], derived.sketch(example["photo"], _RNG, sigma=0.5)
    )
  assert data.modalities[1].shape == (*_SIZE, 1)


def test_modality_from_which_others_are_derived_is_read_once(tmp_path):
  _fill(tmp_path, 1)
  reads = []
  counted = dataclasses.replace(
    _PHOTOS, read=lambda paths, rng: reads.append(paths) or _PHOTOS.read(paths, rng)
  )
  sketches = [columns_lib.sketch(f"sketch{sigma}", counted, sigma=sigma) for sigma in (1.0, 2.0)]
  example = _open(tmp_path, columns=(counted, *sketches))[0]
  assert len(reads) == 1 and len(example) == 3


def test_random_parts_depend_only_on_seed_index_and_name(tmp_path):
  lines = [f"line {i}" for i in range(30)]
  for i in range(8):
    _photo(tmp_path / "photo" / f"{i}.png", i)
    _caption(tmp_path / "caption" / f"{i}.txt", *lines)
  both = _open(tmp_path, seed=3)
  alone = _open(tmp_path, columns=[_CAPTIONS], seed=3)
  assert _captions(both) == _captions(alone) == _captions(both)
  assert [both.modalities[1].show(both[i]["caption"]) for i in (5, 2)] == [
    _captions(both)[i] for i in (5, 2)
  ]
  assert len(set(_captions(both))) > 4
  other = dataclasses.replace(both, seed=4)
  assert _captions(other) != _captions(both) and set(_captions(other)) <= set(lines)
  copy = dataclasses.replace(_CAPTIONS, modality=dataclasses.replace(_CAPTIONS.modality, name="b"))
  two = _open(tmp_path, columns=[_CAPTIONS, copy], seed=3)
  assert any((example["caption"] != example["b"]).any() for example in two)
  renamed = columns_lib.text("words", 12, place="caption")
  assert [
    renamed.modality.show(e["words"]) for e in _open(tmp_path, columns=[renamed], seed=3)
  ] != (_captions(both))


def _fill_with_gaps(root):
  _fill(root, 9)
  for i in range(1, 8):
    (root / "caption" / f"kind{i % 2}" / f"{i}.txt").unlink()
  (root / "photo" / "kind0" / "8.png").unlink()
  return root


def test_at_most_five_missing_files_are_named(tmp_path):
  _fill_with_gaps(tmp_path)
  with pytest.raises(UserError, match=r"1 of 9 examples in .* no 'photo': kind0/8\. Add"):
    _open(tmp_path)
  complaint = r"7 of 9 .* no 'caption': kind0/2, kind0/4, kind0/6, kind1/1, kind1/3, \.\.\.\. Add"
  with pytest.raises(UserError, match=complaint):
    _open(tmp_path, columns=(_CAPTIONS, _PHOTOS))


def test_missing_modalities_are_masked_zeros_or_dropped(tmp_path):
  _fill_with_gaps(tmp_path)
  kept = _open(tmp_path, incomplete="keep")
  arrays = _arrays(kept)
  masks = {
    name: np.array([stem in kept.sources[name] for stem in kept.stems]) for name in kept.sources
  }
  for name, present in masks.items():
    assert arrays[f"{name}_present"].dtype == bool
    np.testing.assert_array_equal(arrays[f"{name}_present"], present)
    np.testing.assert_array_equal(arrays[name].reshape(9, -1).any(1), present)
  assert [present.sum() for present in masks.values()] == [8, 2]
  assert arrays["caption"].dtype == np.int32
  dropped = _open(tmp_path, incomplete="drop")
  assert dropped.stems == ("kind0/0",) and set(dropped[0]) == {"photo", "caption"}


def test_hidden_and_unrelated_files_are_ignored(tmp_path):
  _fill(tmp_path, 2)
  for name in (".DS_Store", "._0.png", ".cache/0.png", "kind0/notes.md"):
    _caption(tmp_path / "photo" / name, "x")
  assert len(_open(tmp_path)) == 2


def test_folders_may_be_links_but_are_not_files(tmp_path):
  _fill(tmp_path / "real", 4)
  for name in ("photo", "caption"):
    (tmp_path / "linked" / name).mkdir(parents=True)
    for kind in ("kind0", "kind1"):
      (tmp_path / "linked" / name / kind).symlink_to(tmp_path / "real" / name / kind)
    (tmp_path / "linked" / name / "loop").symlink_to(tmp_path / "linked")
  (tmp_path / "linked" / "photo" / "folder.png").mkdir()
  (tmp_path / "linked" / "photo" / "gone.png").symlink_to("nowhere.png")
  assert _open(tmp_path / "linked").stems == _open(tmp_path / "real").stems


def test_two_files_of_one_example_are_refused(tmp_path):
  _fill(tmp_path, 2)
  _photo(tmp_path / "photo" / "kind0" / "0.jpg")
  with pytest.raises(UserError, match="0.jpg and .*0.png are the same example"):
    _open(tmp_path)
  clips = columns_lib.video("clip", 2, _SIZE)
  for frame in range(2):
    _photo(tmp_path / "clip" / "0" / f"{frame}.png")
  assert len(_open(tmp_path, columns=[clips])) == 1
  _photo(tmp_path / "clip" / "0.gif")
  with pytest.raises(UserError, match="0.gif.*are the same example"):
    _open(tmp_path, columns=[clips])


def test_missing_folders_files_and_examples_are_named(tmp_path):
  with pytest.raises(UserError, match="data folder '.*nowhere' does not exist"):
    _open(tmp_path / "nowhere")
  _fill(tmp_path, 2)
  with pytest.raises(UserError, match="no folder .*sound"):
    _open(tmp_path, columns=(_PHOTOS, columns_lib.sound("sound", audio.LogMel())))
  with pytest.raises(UserError, match="no file in .*caption whose name"):
    _open(tmp_path, columns=[columns_lib.image("caption", _SIZE)])
  with pytest.raises(UserError, match="no folder 'val' and is split into 'train' and 'test'"):
    _open(tmp_path, "val")
  with pytest.raises(UserError, match="'test' .* is empty: with test_share=0.0"):
    _open(tmp_path, "test")
  _caption(tmp_path / "other" / "x.txt", "x")
  with pytest.raises(UserError, match="is empty: no example has all of photo, other"):
    _open(tmp_path, columns=(_PHOTOS, columns_lib.text("other", 3)), incomplete="drop")


def test_images_of_different_proportions_are_refused_unless_they_need_not_be_aligned(tmp_path):
  columns = (_PHOTOS, columns_lib.mask("mask", _SIZE, 256))
  for i, size in enumerate([(6, 8), (12, 16), (13, 16), (12, 12)]):
    _photo(tmp_path / "photo" / f"{i}.png", i)
    path = tmp_path / "mask" / f"{i}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(_pixels(i, size)[..., 0]).save(path)
  data = _open(tmp_path, columns=columns)
  for i in range(3):  # A difference of one pixel is due to rounding.
    data[i]
  complaint = r"photo/3.png \(6 x 8, .*mask/3.png \(12 x 12\).*different proportions.*aligned=False"
  with pytest.raises(UserError, match=complaint):
    data[3]
  assert len(_arrays(_open(tmp_path, columns=columns, aligned=False))["mask"]) == 4


def test_derived_modality_is_read_if_it_has_a_folder(tmp_path):
  _fill(tmp_path, 3)
  masks = columns_lib.mask("mask", _SIZE, 256)
  columns = (
    _PHOTOS,
    masks,
    columns_lib.sketch("sketch", _PHOTOS),
    columns_lib.partial_mask("some", masks, place="drawn"),
  )
  for name, channel in (("mask", 0), ("drawn", 1), ("sketch", 2)):
    for i in range(3):
      path = tmp_path / name / f"kind{i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(_pixels(i)[..., channel]).save(path)
  data = _open(tmp_path, columns=columns)
  assert data.modalities == tuple(column.modality for column in columns)
  for stem, example in zip(data.stems, data, strict=True):
    pixels = _pixels(int(stem[-1]))
    np.testing.assert_array_equal(example["some"], pixels[..., 1])
    np.testing.assert_array_equal(example["sketch"], pixels[..., 2:] / np.float32(255))


def test_labels_are_the_first_folders_in_order(tmp_path):
  _fill(tmp_path)
  _photo(tmp_path / "photo" / "a" / "deep" / "0.png")
  _caption(tmp_path / "caption" / "a" / "deep" / "0.txt", "x")
  data = _open(tmp_path, columns=(_PHOTOS, columns_lib.label("label", _PHOTOS, 3)))
  labels = _arrays(data)["label"]
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(
    labels, [["a", "kind0", "kind1"].index(stem.split("/")[0]) for stem in data.stems]
  )
  with pytest.raises(UserError, match=r"in 3 folders \(a, kind0, kind1\), but .* 2 classes"):
    _open(tmp_path, columns=(_PHOTOS, columns_lib.label("label", _PHOTOS, 2)))


_SPECS = {
  "photo": {"read": "image", "size": _SIZE},
  "caption": {"read": "text", "length": 12},
  "sketch": {"read": "sketch", "of": "photo", "sigma": 2.0},
}


def test_specs_are_the_functions_and_their_arguments(tmp_path):
  view = {"sample_rate": 4000, "frames": 8}
  columns = columns_lib.parse({**_SPECS, "sound": {"read": "sound", "view": view, "place": "wav"}})
  assert [c.modality.name for c in columns] == ["photo", "caption", "sketch", "sound"]
  assert columns[0].modality == _PHOTOS.modality
  assert columns[3].modality.shape == (8, audio.LogMel().bands) and columns[3].place == "wav"
  data = _open(_fill(tmp_path), columns=columns[:3])
  by_hand = _open(
    tmp_path, columns=(_PHOTOS, _CAPTIONS, columns_lib.sketch("sketch", _PHOTOS, sigma=2.0))
  )
  for name, array in _arrays(data).items():
    np.testing.assert_array_equal(array, _arrays(by_hand)[name])
  modalities = folder.modalities(_SPECS, test_share=0.5)
  assert [m.shape for m in modalities] == [m.shape for m in data.modalities]


@pytest.mark.parametrize(
  "name, spec, complaint",
  [
    ("photo", {"read": "jpeg"}, r"columns\.photo\.read is 'jpeg'; it can be image, mask"),
    ("photo", {"size": _SIZE}, r"columns\.photo\.read is None"),
    ("photo", {"read": "image"}, "photo: missing a required argument: 'size'.*options are: size"),
    ("photo", {"read": "image", "size": 8}, r"photo\.size is 8; it must be \(height, width\)"),
    ("photo", {"read": "image", "size": (8,)}, r"photo\.size is \(8,\)"),
    ("photo", {"read": "image", "size": (8, 0)}, r"photo\.size is \(8, 0\).*from 1"),
    ("caption", {"read": "text", "length": 1.5}, r"caption\.length is 1.5; it must be an integer"),
    ("caption", {"read": "text", "lenght": 3}, "caption: .*'leng.*The valid options are: length"),
    ("photo", {**_SPECS["photo"], "pattern": "("}, r"photo\.pattern is '\('"),
    ("photo", {**_SPECS["photo"], "pattern": ".*"}, r"photo\.pattern is .*no group"),
    ("sound", {"read": "sound", "view": {"rate": 1}}, r"sound\.view: .*'rate'.*sample_rate"),
    ("sketch", {"read": "sketch", "of": "face"}, r"sketch\.of is 'face'.*photo, caption"),
    ("sketch", {"read": "sketch", "of": "sketch"}, r"sketch\.of is 'sketch'"),
    ("sketch", {"read": "sketch", "of": "caption"}, "'sketch' is derived from 'caption'.* image"),
    ("some", {"read": "partial_mask", "of": "photo"}, "'some' is derived from 'photo'.* mask"),
    ("photo", {**_SPECS["photo"], "channels": 2}, r"photo\.channels is 2; it must be 1 or 3"),
    ("photo", {**_SPECS["photo"], "half": "top"}, r"photo\.half is 'top'; it must be '', 'left'"),
    ("photo", {**_SPECS["photo"], "pattern": 5}, r"photo\.pattern is 5; it must be text"),
    ("photo", {**_SPECS["photo"], "place": None}, r"photo\.place is None; it must be text"),
    ("photo", {**_SPECS["photo"], "size": "ab"}, r"photo\.size is ab"),
    ("photo", "image", r"columns\.photo is 'image'; it must be a dict"),
    ("photo", {"read": ["image"]}, r"photo\.read is \['image'\]; it can be"),
    ("sketch", {**_SPECS["sketch"], "sigma": -1.0}, r"sketch\.sigma is -1.0; .*at least 0"),
    ("sketch", {**_SPECS["sketch"], "sigma": "1"}, r"sketch\.sigma is '1'"),
    ("sketch", {**_SPECS["sketch"], "of": ["photo"]}, r"sketch\.of is \['photo'\]"),
    ("some", {"read": "partial_mask", "of": "photo", "keep": 1.5}, r"some\.keep is 1.5; .* 0 to 1"),
    ("face", {"read": "parts", "size": _SIZE, "names": "nose"}, r"face\.names is 'nose'"),
    ("sound", {"read": "sound", "view": 8000}, r"sound\.view is 8000; it must be a dict"),
    ("sound", {"read": "sound", "view": {"hop": 300}}, r"sound\.view: hop is 300; .* window"),
    ("my photo", _SPECS["photo"], r"columns\.my photo: a modality's name"),
    ("photo_present", _SPECS["photo"], r"columns\.photo_present: a modality's name"),
  ],
)
def test_invalid_specs_are_refused(name, spec, complaint):
  with pytest.raises(UserError, match=complaint):
    columns_lib.parse({**_SPECS, name: spec})


@pytest.mark.parametrize("columns", [None, ["photo"], {1: {}}])
def test_columns_that_are_not_specs_are_refused(columns):
  with pytest.raises(UserError, match=r"config\.data\.columns is .*must be a dict"):
    columns_lib.parse(columns)


def _load(root, cache, split="train", columns=_SPECS, **options):
  cache.mkdir(exist_ok=True)
  return datasets.load(
    "folder", split, str(cache), str(root), columns=columns, **{"test_share": 0.0, **options}
  )


def test_load_returns_the_arrays_of_the_folder_on_disk(tmp_path):
  root = _fill(tmp_path / "own")
  arrays = _load(root, tmp_path / "cache")
  expected = _arrays(_open(root, columns=columns_lib.parse(_SPECS)))
  assert arrays.keys() == expected.keys()
  for name, array in expected.items():
    assert isinstance(arrays[name], np.memmap) and arrays[name].dtype == array.dtype
    np.testing.assert_array_equal(arrays[name], array)
  batch = next(pipeline.batches(arrays, 4, seed=0))
  assert batch["photo"].shape == (4, *_SIZE, 3)


def test_load_reads_files_again_only_if_they_have_changed(tmp_path, monkeypatch):
  root, cache = _fill(tmp_path / "own"), tmp_path / "cache"
  _load(root, cache)
  with monkeypatch.context() as patch:
    patch.setattr(folder, "_prepare", None)
    again = _load(root, cache)
  np.testing.assert_array_equal(again["photo"][0], _pixels(0) / np.float32(255))
  _photo(root / "photo" / "kind0" / "0.png", 77)
  changed = _load(root, cache)
  np.testing.assert_array_equal(changed["photo"][0], _pixels(77) / np.float32(255))
  assert len(list((cache / "folder").iterdir())) == 2
  other = {**_SPECS, "caption": {"read": "text", "length": 5}}
  assert _load(root, cache, columns=other)["caption"].shape == (10, 5)
  assert len(list((cache / "folder").iterdir())) == 3


def _only(cache):
  (path,) = (cache / "folder").iterdir()
  return path


def _flip(path):
  content = bytearray(path.read_bytes())
  content[-9] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("spoil", [_flip, lambda path: _truncate(path), lambda path: path.unlink()])
def test_altered_arrays_are_reported_and_read_again(tmp_path, capsys, spoil):
  root, cache = _fill(tmp_path / "own"), tmp_path / "cache"
  expected = {name: np.array(array) for name, array in _load(root, cache).items()}
  path = _only(cache)
  spoil(path / "photo.npy")
  capsys.readouterr()
  again = _load(root, cache)
  assert f"{path} was altered" in capsys.readouterr().out
  assert again.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(again[name], array)
  _load(root, cache)
  assert "altered" not in capsys.readouterr().out and len(list((cache / "folder").iterdir())) == 2


def test_old_arrays_stay_for_processes_that_read_them(tmp_path):
  root, cache = _fill(tmp_path / "own"), tmp_path / "cache"
  _load(root, cache)
  folder_of_arrays = _only(cache)
  _photo(root / "photo" / "kind0" / "0.png", 77)
  _load(root, cache)
  assert {path.name for path in folder_of_arrays.iterdir()} == {
    "source",
    "photo.npy",
    "caption.npy",
    "sketch.npy",
  }


def test_two_processes_that_prepare_at_once_end_with_one_result(tmp_path, monkeypatch):
  root, cache = _fill(tmp_path / "own"), tmp_path / "cache"
  chunks, other = folder._chunks, []

  def slow(data):
    yield from chunks(data)
    if not other:  # The other one begins later and is quicker.
      other.append(None)
      other[0] = _load(root, cache)

  monkeypatch.setattr(folder, "_chunks", slow)
  arrays = _load(root, cache)
  assert {path.name for path in _only(cache).iterdir()} >= {"photo.npy", "source"}
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, other[0][name])


def test_arrays_may_be_read_by_other_users_and_a_folder_has_one_name(tmp_path, monkeypatch):
  root, cache = _fill(tmp_path / "own"), tmp_path / "cache"
  _load(root, cache)
  (tmp_path / "usual").mkdir()
  assert _only(cache).stat().st_mode == (tmp_path / "usual").stat().st_mode
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(folder, "_prepare", None)
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("own", "cache/../own", "~/own"):
    folder.load("train", str(cache), name, columns=_SPECS, test_share=0.0)


def test_interrupted_folder_is_mentioned_and_never_used(tmp_path, caplog):
  root, cache = _fill(tmp_path / "own"), tmp_path / "cache"
  left = cache / "folder" / "incomplete.0123.abc"
  left.mkdir(parents=True)
  caplog.set_level("INFO", "mmdiff_jax.data")
  assert len(_load(root, cache)["photo"]) == 10
  assert f"never used: {left}" in caplog.text


_LABELLED = {"photo": _SPECS["photo"], "label": {"read": "label", "of": "photo", "num_classes": 2}}


def _kinds(root, splits):
  for n, (split, kinds) in enumerate(splits.items()):
    for i, kind in enumerate(kinds):
      _photo(root / split / "photo" / kind / "0.png", 10 * n + i)
  return root


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_of_the_splits_must_be_the_same(tmp_path, split):
  root = _kinds(tmp_path / "own", {"train": ("cat", "dog"), "test": ("bird", "cat")})
  complaint = "only '(train|test)' has (dog|bird), only '(train|test)' has (dog|bird)"
  with pytest.raises(UserError, match=complaint):
    _load(root, tmp_path / "cache", split, _LABELLED)
  root = _kinds(tmp_path / "same", {"train": ("cat", "dog"), "val": ("dog", "cat")})
  # Without another split there is nothing to compare, and hashed splits have the same folders.
  assert _load(root, tmp_path / "cache", columns=_LABELLED)["label"].tolist() == [0, 1]
  arrays = _load(root, tmp_path / "cache", split, _LABELLED, test_split="val")
  assert arrays["label"].tolist() == [0, 1]
  hashed = _load(root / "train", tmp_path / "cache", columns=_LABELLED, test_share=0.01)
  assert hashed["label"].tolist() == [0, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_photo_in_both_splits_is_refused_and_text_is_not(tmp_path, split):
  root = tmp_path / "own"
  for i, name in enumerate(("train", "test")):
    for j in range(3):
      _photo(root / name / "photo" / f"{i}{j}.png", 10 * i + j)
      _caption(root / name / "caption" / f"{i}{j}.txt", "a bird")
  assert len(_load(root, tmp_path / "cache", split)["photo"]) == 3
  photos = [root / "train" / "photo" / "01.png", root / "test" / "photo" / "12.png"]
  photos[1].write_bytes(photos[0].read_bytes())
  with pytest.raises(
    UserError, match="(0|1)[12].png and .*(0|1)[12].png are the same 'photo' in both"
  ):
    _load(root, tmp_path / "other", split)


def test_photo_in_both_hashed_splits_is_refused(tmp_path):
  for i in range(20):
    _photo(tmp_path / "own" / "photo" / f"{i}.png")
  with pytest.raises(UserError, match="are the same 'photo' in both splits"):
    _load(tmp_path / "own", tmp_path / "cache", columns={"photo": _SPECS["photo"]}, test_share=0.5)


def test_load_prints_its_progress(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(folder, "_LINE_EVERY", 0.0)
  monkeypatch.setattr(folder, "_CHUNK", 4)
  arrays = _load(_fill(tmp_path / "own"), tmp_path / "cache")
  assert len(arrays["photo"]) == 10
  _, *lines = capsys.readouterr().out.splitlines()
  assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["4/10", "8/10", "10/10"]
  assert lines[0].startswith("Reading ") and lines[-1].endswith("0:00 left")


def test_load_returns_which_modalities_are_present(tmp_path):
  root = _fill_with_gaps(tmp_path / "own")
  arrays = _load(root, tmp_path / "cache", incomplete="keep")
  assert set(arrays) == {f"{name}{end}" for name in _SPECS for end in ("", "_present")}
  for name in _SPECS:
    present = arrays[f"{name}_present"]
    assert present.dtype == bool and present.shape == (9,)
    assert present.sum() == (2 if name == "caption" else 8)
    np.testing.assert_array_equal(arrays[name].reshape(9, -1).any(1) <= present, True)
  assert len(_load(root, tmp_path / "cache", incomplete="drop")["photo"]) == 1


def test_load_takes_another_split_for_tests(tmp_path):
  root = tmp_path / "own"
  _fill(root / "train", 4)
  _fill(root / "val", 3, first=4)
  for split, size in (("train", 4), ("test", 3)):
    assert len(_load(root, tmp_path / "cache", split, test_split="val")["photo"]) == size
  # Testing on the training split is allowed if it is requested.
  assert len(_load(root, tmp_path / "other", "test", test_split="train")["photo"]) == 4


def test_load_holds_out_examples_that_belong_together(tmp_path):
  """Beside the folder's test split; grouped by the first letter of a stem."""
  root, drives = tmp_path / "own", "abcdefghijkl"
  for drive in drives:
    for i in range(3):
      _caption(root / "caption" / f"{drive}{i}.txt", f"{drive}{i}")
  options = {"columns": {"caption": _SPECS["caption"]}, "together": ".", "test_share": 0.3}
  load = functools.partial(_load, root, tmp_path / "cache", **options)
  (caption,) = columns_lib.parse(options["columns"])

  def read(split, **validation):
    return [caption.modality.show(x) for x in load(split=split, **validation)["caption"][:]]

  every, test = read("train"), read("test")
  parts = {split: read(split, validation=0.4) for split in ("train", "validation")}
  assert sorted(sum(parts.values(), [])) == every
  train, held_out = ({x[0] for x in part} for part in parts.values())
  assert train and held_out and not train & held_out
  assert 3 * (len(train) + len(held_out)) == len(every)
  assert read("test", validation=0.4) == test
  # A larger fraction holds out more of the remaining examples, as for the test split.
  assert set(parts["validation"]) <= set(read("validation", validation=0.6))
  with pytest.raises(UserError, match=r"'validation' of .* is empty with .*=1e-06"):
    read("validation", validation=1e-6)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-20])


def _cmyk(path):
  Image.fromarray(_pixels(0)).convert("CMYK").save(path.with_suffix(".jpg"))
  path.unlink()


def _wide(path):
  Image.fromarray(_pixels(0, (6, 12))).save(path)


_SOUND = {"read": "sound", "view": {}}
_BROKEN = {
  "truncated image": ("photo", _truncate, "kind0/2.png cannot be read"),
  "image of another mode": ("photo", _cmyk, "kind0/2.jpg has mode CMYK"),
  "image of different proportions": ("photo", _wide, "photo/kind0/2.png .*mask/kind0/2.png"),
  "empty caption": ("caption", lambda path: path.write_text("\n"), "no caption in .*kind0/2.txt"),
  "caption without an image": ("photo", lambda path: path.unlink(), "no 'photo': kind0/2"),
  "image without a caption": ("caption", lambda path: path.unlink(), "no 'caption': kind0/2"),
  "truncated sound": ("sound", _truncate, "kind0/2.wav cannot be read"),
}


@pytest.mark.parametrize("damage", _BROKEN)
def test_load_names_the_damaged_file_and_keeps_nothing(tmp_path, damage):
  root = _fill(tmp_path / "own")
  for path in sorted((root / "photo").rglob("*.png")):
    other = root / "mask" / path.relative_to(root / "photo")
    other.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(_SIZE, np.uint8)).save(other)
    sound = (root / "sound" / path.relative_to(root / "photo")).with_suffix(".wav")
    sound.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(sound, np.zeros(2048), 8000)
  columns = {**_SPECS, "mask": {"read": "mask", "size": _SIZE, "num_classes": 2}, "sound": _SOUND}
  name, spoil, complaint = _BROKEN[damage]
  spoil(next((root / name / "kind0").glob("2.*")))
  with pytest.raises(UserError, match=complaint):
    _load(root, tmp_path / "cache", columns=columns)
  assert not list((tmp_path / "cache").glob("folder/*"))


def test_load_without_a_folder_or_room_is_refused(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"--config\.data\.manual_dir=FOLDER"):
    datasets.load("folder", "train", columns=_SPECS)
  with pytest.raises(UserError, match="'missing', does not exist"):
    datasets.load("folder", "train", manual_dir="missing", columns=_SPECS)
  root = _fill(tmp_path / "own")
  with pytest.raises(UserError, match="incomplete is 'lose'"):
    _load(root, tmp_path / "cache", incomplete="lose")

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(folder, "_append", full)
  with pytest.raises(UserError, match=r"cannot be kept in .*No space left.*data\.data_dir"):
    _load(root, tmp_path / "cache")
  assert not list((tmp_path / "cache").glob("folder/*"))
