import dataclasses
import functools
import pathlib

import numpy as np
from PIL import Image, ImageDraw
import pytest
import soundfile

from mmdiff_jax.data import array_files, audio, readers
from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import image_picture, mask_picture, Modality

_RNG = np.random.default_rng(0)
_PIXELS = _RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)
_LABELS = _RNG.integers(0, 5, (8, 12), dtype=np.uint8)
_VIEW = audio.LogMel()


def _save(path, pixels, mode=None, **options):
  still = Image.fromarray(pixels)
  (still.convert(mode) if mode else still).save(path, **options)
  return [path]


def _image(paths, size=(8, 12), channels=3, half=""):
  return readers.image(paths, _RNG, size=size, channels=channels, half=half)


def _mask(paths, size=(8, 12), num_classes=5):
  return readers.mask(paths, _RNG, size=size, num_classes=num_classes)


def _sound(paths, view=_VIEW):
  return readers.sound(paths, _RNG, view=view)


def _text(lines, rng=_RNG, length=16, alphabet=""):
  return readers.text(lines, rng, length=length, alphabet=alphabet)


def _video(paths, frames=3):
  return readers.video(paths, _RNG, frames=frames, size=(8, 12), channels=3)


def test_image_of_the_requested_size_is_read_unchanged(tmp_path):
  values = _image(_save(tmp_path / "a.png", _PIXELS))
  assert values.dtype == np.float32
  np.testing.assert_array_equal(values, _PIXELS / np.float32(255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_other_modes_are_converted_if_nothing_is_lost(tmp_path, mode):
  grey = np.uint8(255) * (_LABELS[..., None] > 2).repeat(3, -1)
  paths = _save(tmp_path / "a.png", grey, mode)
  assert Image.open(paths[0]).mode == mode
  np.testing.assert_array_equal(_image(paths), grey / np.float32(255))
  np.testing.assert_array_equal(_image(paths, channels=1), grey[..., :1] / np.float32(255))


def test_sixteen_bits_are_kept(tmp_path):
  deep = _RNG.integers(0, 2**16, (8, 12), dtype=np.uint16)
  values = _image(_save(tmp_path / "a.png", deep))
  np.testing.assert_allclose(values, (deep / 65535)[..., None].repeat(3, -1), atol=1e-7)
  larger = _image([tmp_path / "a.png"], size=(16, 24), channels=1)
  assert larger.min() == 0.0 and larger.max() == 1.0  # The cubic overshoots and is clipped.


@pytest.mark.parametrize(
  "name, mode, complaint",
  [
    ("a.png", "RGBA", "transparent"),
    ("a.png", "LA", "transparent"),
    ("a.jpg", "CMYK", "CMYK"),
    ("a.tif", "I", "mode I"),
  ],
)
def test_other_modes_are_refused_if_something_is_lost(tmp_path, name, mode, complaint):
  still = Image.fromarray(_PIXELS).convert("L").convert(mode)
  if complaint == "transparent":
    still.putpixel((3, 3), (*still.getpixel((3, 3))[:-1], 254))
  still.save(tmp_path / name)
  with pytest.raises(UserError, match=rf"{name}.*{complaint}"):
    _image([tmp_path / name])


def test_image_covers_the_size_and_is_cropped_at_its_centre(tmp_path):
  wide = np.zeros((8, 32, 3), np.uint8)
  wide[:, 12:20, 0] = 255  # Its central square.
  values = _image(_save(tmp_path / "a.png", wide), size=(8, 8))
  assert (values[..., 0] == 1).all() and (values[..., 1:] == 0).all()
  half = _image([tmp_path / "a.png"], size=(4, 8))
  np.testing.assert_allclose(half[:, 2:6, 0], 1.0, atol=0.1)
  assert half[:, :1].max() < 0.1 and half[:, 7:].max() < 0.1


def test_halves_are_the_two_images(tmp_path):
  paths = _save(tmp_path / "a.png", _PIXELS)
  halves = [_image(paths, size=(8, 6), half=half) for half in ("left", "right")]
  np.testing.assert_array_equal(np.concatenate(halves, 1), _PIXELS / np.float32(255))
  odd = _save(tmp_path / "b.png", _PIXELS[:, :11])
  with pytest.raises(UserError, match="b.png is 11 pixels wide"):
    _image(odd, half="left")


def test_image_that_is_too_large_for_memory_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
  with pytest.raises(UserError, match="a.png cannot be read.*decompression bomb"):
    _image(_save(tmp_path / "a.png", _PIXELS))


def test_photo_is_read_uncropped_and_in_colour_from_any_file(tmp_path):
  colour = readers.photo(*_save(tmp_path / "a.png", _PIXELS))
  assert colour.dtype == np.uint8
  np.testing.assert_array_equal(colour, _PIXELS)
  deep = _RNG.integers(0, 2**16, (8, 12), dtype=np.uint16)
  grey = readers.photo(*_save(tmp_path / "b.png", deep))
  np.testing.assert_array_equal(grey, np.round(deep / 257)[..., None].repeat(3, -1))


def test_photo_is_rotated_by_its_flag(tmp_path):
  flag = Image.Exif()
  flag[0x0112] = 6  # Must be rotated clockwise.
  paths = _save(tmp_path / "a.png", _PIXELS, exif=flag)
  np.testing.assert_array_equal(
    _image(paths, size=(12, 8)), np.rot90(_PIXELS, -1) / np.float32(255)
  )


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_mask_is_its_classes_in_any_mode(tmp_path, mode):
  still = Image.fromarray(_LABELS)
  if mode == "P":
    still.putpalette(_RNG.integers(0, 256, 768).tolist())
  elif mode == "I;16":
    still = Image.fromarray(_LABELS.astype(np.uint16))
  else:
    still = still.convert(mode)
  still.save(tmp_path / "a.png")
  assert Image.open(tmp_path / "a.png").mode == mode
  labels = _mask([tmp_path / "a.png"])
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(labels, _LABELS)
  np.testing.assert_array_equal(_mask([tmp_path / "a.png"], size=(16, 24))[::2, ::2], _LABELS)


def test_mask_is_aligned_with_an_image_of_another_size(tmp_path):
  square = np.zeros((64, 96), np.uint8)
  square[16:32, 40:72] = 1
  image = _image(_save(tmp_path / "a.png", square.repeat(2, 0).repeat(2, 1) * 255), (16, 16), 1)
  np.testing.assert_array_equal(
    _mask(_save(tmp_path / "b.png", square), (16, 16)), np.round(image[..., 0])
  )


def test_binary_mask_may_be_black_and_white(tmp_path):
  binary = (_LABELS > 2).astype(np.uint8)
  for name, pixels in (("a.png", binary), ("b.png", binary * 255), ("c.jpg", binary * 255)):
    large = pixels.repeat(5, 0).repeat(5, 1)  # Not aligned with the blocks of JPEG: it blurs.
    labels = _mask(_save(tmp_path / name, large, quality=95), (40, 60), 2)
    np.testing.assert_array_equal(labels, binary.repeat(5, 0).repeat(5, 1))
  bits = _save(tmp_path / "e.png", binary * 255, "1")
  np.testing.assert_array_equal(_mask(bits, num_classes=2), binary)
  with pytest.raises(UserError, match="d.png has the value 4, but its 2 classes"):
    _mask(_save(tmp_path / "d.png", _LABELS), num_classes=2)


def test_mask_with_invalid_values_is_refused(tmp_path):
  with pytest.raises(UserError, match="a.png has the value 4, but its 4 classes are 0 to 3"):
    _mask(_save(tmp_path / "a.png", _LABELS), num_classes=4)
  with pytest.raises(UserError, match="b.png has mode RGB"):
    _mask(_save(tmp_path / "b.png", _PIXELS))


def test_mask_that_may_be_blurred_is_refused(tmp_path):
  large = _LABELS.repeat(8, 0).repeat(8, 1)  # Aligned with JPEG's blocks, so values are kept.
  Image.fromarray(large * 40).save(tmp_path / "png.png", "JPEG")
  for name, pixels, num_classes in (
    ("few.jpg", large, 5),
    ("many.jpg", large * 40, 256),
    ("png.png", None, 256),
    ("low.jpg", large // 4, 2),  # 0 and 1 would all be the class 0.
    ("grey.jpg", (large > 2).astype(np.uint8) * 128, 2),
    ("three.jpg", (large // 2) * 100, 2),
  ):
    paths = _save(tmp_path / name, pixels) if pixels is not None else [tmp_path / name]
    with pytest.raises(UserError, match=f"{name} is not a PNG.*Save it as PNG"):
      _mask(paths, (64, 96), num_classes)
  assert _mask(_save(tmp_path / "none.jpg", 0 * large), (64, 96), 2).max() == 0


def test_extent_is_measured_on_the_upright_image(tmp_path):
  paths = _save(tmp_path / "a.png", _PIXELS)
  assert readers.extent(paths) == (8, 12)
  assert readers.extent(paths, half="right") == (8, 6)
  for flag, extent in ((3, (8, 12)), (6, (12, 8))):
    exif = Image.Exif()
    exif[0x0112] = flag
    assert readers.extent(_save(tmp_path / "b.png", _PIXELS, exif=exif)) == extent
  (tmp_path / "c.png").write_bytes(b"no image")
  with pytest.raises(UserError, match="c.png cannot be read"):
    readers.extent([tmp_path / "c.png"])


def test_parts_are_painted_in_order(tmp_path):
  parts = {"00007_l_eye.png": np.s_[2:4], "00007_skin.png": np.s_[:6], "00007_hair.png": np.s_[5:7]}
  paths = []
  for name, rows in parts.items():
    part = np.zeros((8, 12, 3), np.uint8)
    part[rows] = 255
    paths += _save(tmp_path / name, part)
  read = functools.partial(readers.parts, rng=_RNG, size=(8, 12))
  labels = read(paths, names=("skin", "nose", "l_eye", "hair"))
  np.testing.assert_array_equal(labels[:, 0], [1, 1, 3, 3, 1, 4, 4, 0])
  with pytest.raises(UserError, match="00007_hair.png belongs to no valid part"):
    read(paths, names=("skin", "l_eye"))


def _frames(count):
  frames = []
  for i in range(count):
    frame = Image.new("RGB", (12, 8), (20 * i, 0, 255 - 20 * i))
    ImageDraw.Draw(frame).rectangle((i, 0, i, 7), fill=(255, 255, 255))
    frames.append(frame)
  return frames


def test_video_has_evenly_spaced_frames(tmp_path):
  frames = _frames(9)
  frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
  for i, frame in enumerate(frames):
    frame.save(tmp_path / f"{i}.png")
  files = [tmp_path / f"{i}.png" for i in range(9)]
  pixels = np.stack([np.asarray(frame) for frame in frames]) / np.float32(255)
  for count, indices in ((3, [0, 4, 8]), (9, range(9)), (1, [0])):
    np.testing.assert_array_equal(_video(files, count), pixels[list(indices)])
    gif = _video([tmp_path / "a.gif"], count)
    assert gif.dtype == np.float32
    np.testing.assert_allclose(gif, pixels[list(indices)], atol=0.02)  # Its palette is coarse.
  np.testing.assert_array_equal(_video(files[:2], 4), pixels[[0, 0, 1, 1]])


def _tone(rate, seconds=0.2, hertz=1000.0):
  return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_is_the_spectrogram_of_its_samples_padded_with_silence(tmp_path, name):
  wave = _tone(8000)  # 1,600 of 2,048 samples.
  soundfile.write(tmp_path / name, wave, 8000)
  expected = audio.log_mel(np.pad(wave, (0, _VIEW.samples - len(wave))), _VIEW)
  np.testing.assert_allclose(_sound([tmp_path / name]), expected, atol=2e-3)
  soundfile.write(tmp_path / name, np.stack([2 * wave, 0 * wave], 1), 8000)
  np.testing.assert_allclose(_sound([tmp_path / name]), expected, atol=2e-3)


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_other_sample_rates_give_the_same_spectrogram(tmp_path, rate):
  soundfile.write(tmp_path / "a.wav", _tone(8000, 0.4), 8000)
  soundfile.write(tmp_path / "b.wav", _tone(rate, 0.4), rate)
  a, b = _sound([tmp_path / "a.wav"]), _sound([tmp_path / "b.wav"])
  np.testing.assert_allclose(a[2:-2].max(-1), b[2:-2].max(-1), atol=0.01)
  np.testing.assert_array_equal(a[2:-2].argmax(-1), b[2:-2].argmax(-1))


def test_sound_with_invalid_samples_or_rate_is_refused(tmp_path):
  for complaint, samples, rate in (
    ("not finite numbers", [0.0, np.nan], 8000),
    ("100 samples", [0.0, 0.0], 100),
    ("no samples", [], 8000),
  ):
    soundfile.write(tmp_path / "a.wav", np.array(samples), rate, subtype="FLOAT")
    with pytest.raises(UserError, match=f"a.wav.*{complaint}"):
      _sound([tmp_path / "a.wav"])


def test_sound_written_into_a_pipe_is_read(tmp_path):
  soundfile.write(tmp_path / "a.wav", _tone(8000), 8000)
  expected = _sound([tmp_path / "a.wav"])
  data = bytearray((tmp_path / "a.wav").read_bytes())
  data[4:8] = data[40:44] = b"\xff" * 4  # The lengths, which a pipe's writer does not know yet.
  (tmp_path / "a.wav").write_bytes(data)
  np.testing.assert_array_equal(_sound([tmp_path / "a.wav"]), expected)


def test_caption_is_one_of_the_lines(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("\ufeffa bird\n\n  a gull \r\n", "utf-8")
  captions = {readers.text_of(_text([path], np.random.default_rng(i))) for i in range(20)}
  assert captions == {"a bird", "a gull"}
  assert readers.text_of(_text(["a hen"])) == "a hen"


def test_tokens_are_bytes_or_characters_padded_to_the_length():
  tokens = _text(["où"], length=5)
  assert tokens.dtype == np.int32
  np.testing.assert_array_equal(tokens, [*"où".encode(), 0, 0])
  np.testing.assert_array_equal(_text(["où"], length=2), [ord("o"), 0])  # Not half a character.
  assert readers.text_of(_text(["abcdef"], length=4)) == "abcd"
  np.testing.assert_array_equal(_text(["b ab"], length=6, alphabet=" ab"), [2, 0, 1, 2, 0, 0])
  assert readers.text_of(np.array([2, 0, 1, 2, 0, 0]), " ab") == "b ab"
  # A model may generate tokens that are not text.
  assert readers.text_of(np.array([255, 65, 10, 13])) == "\ufffdA\ufffd\ufffd"


def test_invalid_text_is_refused(tmp_path):
  for name, content, complaint in (
    ("empty.txt", b"\n \n", "no caption in .*empty.txt"),
    ("latin.txt", "où".encode("latin-1"), "latin.txt cannot be read"),
    ("upper.txt", b"A b", r"caption 'A b' in .*upper.txt.*\['A'\]"),
  ):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
      _text([tmp_path / name], alphabet=" ab")


@pytest.fixture
def valid(tmp_path):
  """A file of each kind, and the function that reads it."""
  frames = _frames(4)
  frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
  photo = Image.fromarray(_PIXELS).resize((48, 32))
  photo.save(tmp_path / "a.png")
  photo.save(tmp_path / "a.jpg")
  for name in ("a.wav", "a.flac"):
    soundfile.write(tmp_path / name, _tone(8000), 8000)
  np.savez(tmp_path / "a.npz", page=np.zeros((2, 4, 4, 1), np.float32))
  page = Modality("page", "image", (4, 4, 1), image_picture)
  read = {"png": _image, "jpg": _image, "gif": _video, "wav": _sound, "flac": _sound}
  read["npz"] = lambda paths: array_files.npz(paths[0], [page])
  return {suffix: (tmp_path / f"a.{suffix}", reader) for suffix, reader in read.items()}


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "wav", "flac", "npz"])
def test_truncated_file_is_refused(valid, suffix):
  path, read = valid[suffix]
  intact = path.read_bytes()
  read([path])
  # The last four bytes of a PNG are the checksum of its end mark, which decoders do not need.
  for length in (0, 3, 30, len(intact) // 3, len(intact) // 2, len(intact) - 40, len(intact) - 5):
    path.write_bytes(intact[:length])
    with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
      read([path])
  path.unlink()
  with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
    read([path])


def test_gif_may_have_bytes_after_its_end_mark(valid, tmp_path):
  path, read = valid["gif"]
  intact, expected = path.read_bytes(), read([path])
  path.write_bytes(intact + b"\0 more")
  np.testing.assert_array_equal(read([path]), expected)
  path.write_bytes(intact[:-1] + b"\0;")  # Not an end mark: it is not at the start of a block.
  with pytest.raises(UserError, match="a.gif.*before the end mark"):
    read([path])


def test_gif_that_lost_entire_frames_is_refused(valid):
  path, read = valid["gif"]
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match="a.gif.*before the end mark"):
    read([path])


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "wav", "flac", "npz"])
def test_altered_file_is_read_or_refused_without_other_errors(valid, suffix):
  path, read = valid[suffix]
  intact, rng = path.read_bytes(), np.random.default_rng(0)
  refused = 0
  for _ in range(60):
    altered = bytearray(intact)
    altered[rng.integers(len(intact))] ^= 1 << int(rng.integers(8))
    path.write_bytes(altered)
    try:
      read([path])
    except UserError as error:
      assert path.name in str(error)
      refused += 1
  if suffix == "png":
    assert refused == 60


_PAGE = Modality("page", "image", (2, 3, 1), image_picture)
_DIGIT = Modality("digit", "label", (), str, num_classes=3)


def test_npz_is_read_as_model_inputs(tmp_path):
  page = _RNG.integers(0, 256, (4, 2, 3, 1), dtype=np.uint8)
  digit = np.array([0, 1, 2, 0])
  np.savez(tmp_path / "a.npz", train_page=page, train_digit=digit, other=np.zeros(9))
  inputs = array_files.npz(tmp_path / "a.npz", [_PAGE, _DIGIT], prefix="train_")
  np.testing.assert_array_equal(inputs["page"], page / np.float32(255))
  np.testing.assert_array_equal(inputs["digit"], digit)
  assert (inputs["page"].dtype, inputs["digit"].dtype) == (np.float32, np.int32)
  np.savez(tmp_path / "b.npz", page=(page / 255).astype(np.float64))
  (same,) = array_files.npz(tmp_path / "b.npz", [_PAGE]).values()
  np.testing.assert_allclose(same, inputs["page"], atol=1e-7)


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"page": np.zeros((4, 2, 3, 1), np.int64)}, "'page'.*is int64.*float32"),
    ({"page": np.zeros((4, 2, 3), np.float32)}, r"'page'.*shape \(4, 2, 3\)"),
    ({"page": np.full((4, 2, 3, 1), 255.0)}, "'page'.*from 0 to 1"),
    ({"page": np.full((4, 2, 3, 1), np.nan)}, "'page'.*from 0 to 1"),
    ({"page": np.zeros((5, 2, 3, 1))}, "same examples.*'page': 5, 'digit': 4"),
    ({"page": np.zeros((0, 2, 3, 1)), "digit": np.zeros(0, int)}, "at least one"),
    ({"digit": np.zeros(4)}, "'digit'.*is float64.*int32"),
    ({"digit": np.array([0, 1, 2, 3])}, "'digit'.*from 0 to 2"),
    ({"digit": np.array(list("abcd"))}, "'digit'.*is <U1"),
    ({"digit": np.array([{}] * 4)}, "cannot be read.*pickle"),
    ({"digit": None}, "no array 'digit', only: page"),
  ],
)
def test_npz_with_invalid_arrays_is_refused(tmp_path, change, complaint):
  arrays = {"page": np.zeros((4, 2, 3, 1)), "digit": np.zeros(4, int), **change}
  np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
  with pytest.raises(UserError, match=complaint) as raised:
    array_files.npz(tmp_path / "a.npz", [_PAGE, _DIGIT])
  assert "a.npz" in str(raised.value)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_npz_of_other_kinds_is_checked_for_its_bounds(tmp_path, value):
  pen = Modality("pen", "trajectory", (2, 2), lambda points: points)
  points = np.ones((3, 2, 2))
  np.savez(tmp_path / "a.npz", pen=points)
  np.testing.assert_array_equal(array_files.npz(tmp_path / "a.npz", [pen])["pen"], points)
  points[1, 1, 1] = value
  np.savez(tmp_path / "a.npz", pen=points)
  with pytest.raises(UserError, match="'pen'.*from 0 to 1"):
    array_files.npz(tmp_path / "a.npz", [pen])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e300])
def test_vectors_of_npz_must_be_finite_but_are_not_bounded(tmp_path, value):
  vector = Modality("vector", "vector", (3,), lambda x: x)
  rows = np.array([[-40.0, 0.0, 1e30], [0.5, 1.0, -1.0]])
  np.savez(tmp_path / "a.npz", vector=rows)
  values = array_files.npz(tmp_path / "a.npz", [vector])["vector"]
  np.testing.assert_array_equal(values, rows.astype(np.float32))
  rows[1, 1] = value
  np.savez(tmp_path / "a.npz", vector=rows)
  with pytest.raises(UserError, match="'vector'.*finite"):
    array_files.npz(tmp_path / "a.npz", [vector])


def test_street_photos_and_their_masks():
  path = pathlib.Path("../shared/data/camvid/camvid_96x128.npz")
  if not path.is_file():
    pytest.skip(f"{path} does not exist")
  photo = Modality("image", "image", (96, 128, 3), image_picture)
  mask = Modality("label", "mask", (96, 128), mask_picture, num_classes=12)
  inputs = array_files.npz(path, [photo, mask], prefix="val_")
  assert len(inputs["image"]) == 101 and set(np.unique(inputs["label"])) == set(range(12))
  with pytest.raises(UserError, match="from 0 to 10"):
    array_files.npz(path, [dataclasses.replace(mask, num_classes=11)], prefix="val_")


def test_file_that_is_not_an_npz_is_refused(tmp_path):
  np.save(tmp_path / "a.npy", np.zeros(3))
  with pytest.raises(
    UserError, match="a.npy cannot be read: it does not exist, or is not an NPZ file"
  ):
    array_files.npz(tmp_path / "a.npy", [_PAGE])


def test_failed_write_of_an_npz_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.npz"
  array_files.write_npz(path, x=np.zeros(3))
  before = path.read_bytes()

  def full(file, **arrays):
    file.write(b"half")
    raise OSError("No space left on device")

  monkeypatch.setattr(np, "savez", full)
  with pytest.raises(OSError, match="No space"):
    array_files.write_npz(path, x=np.ones(3))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
