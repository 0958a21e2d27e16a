import numpy as np
import pytest

from mmdiff_jax.data import audio, public, sources, spoken_mnist


@pytest.fixture
def made_up(handwriting, monkeypatch):
  """Tones whose pitch is the class, and lines whose height is."""
  monkeypatch.setattr(spoken_mnist, "COUNTS", {"train": 30, "test": 12})
  labels = (np.arange(50) % 10).astype(np.int32)
  time = np.arange(spoken_mnist.SPEECH.samples) / spoken_mnist.SPEECH.sample_rate
  clips = 20000 * np.sin(2 * np.pi * (300 + 300 * labels[:, None]) * time)
  written = labels[39::-1].copy()  # Fewer, in another order.
  across, heights = np.broadcast_arrays(np.arange(8) * 14, 10 * written[:, None])
  points = np.stack([across, heights], -1).astype(np.uint8)
  numbers = np.arange(50)
  speech = sources.Recordings(clips.astype(np.int16), labels, 0 * labels, numbers)
  pens = sources.Source(points, written)
  monkeypatch.setattr(sources, "spoken_digit", lambda *_: speech)
  monkeypatch.setattr(public, "prepared_state", lambda *_: ["made up"])
  monkeypatch.setattr(sources, "pendigits", lambda *_: pens)
  return handwriting


def test_examples_are_of_one_class_and_classes_equally_many(made_up):
  data = spoken_mnist.load("train")
  labels = data["label"]
  np.testing.assert_array_equal(np.bincount(labels), np.full(10, 30))
  hertz = np.geomspace(1, 2, spoken_mnist.SPEECH.bands)  # Rising is all that matters.
  pitch = [hertz[mel[8:-8].mean(0).argmax()] for mel in data["speech"][:]]
  assert (np.diff(np.array(pitch)[np.argsort(labels, kind="stable")]) >= 0).all()
  assert len(np.unique(pitch)) == 10
  np.testing.assert_allclose(data["pen"][:][:, :, 1], labels[:, None].repeat(8, 1) / 10, atol=1e-6)
  own = {item.tobytes(): label for item, label in zip(*made_up["train"], strict=True)}
  inks = np.round(data["digit"][:] * 255).astype(np.uint8)
  assert [own[ink.tobytes()] for ink in inks] == labels.tolist()


def test_views_are_as_the_modalities_say(made_up):
  data = spoken_mnist.load("test")
  assert tuple(data) == tuple(modality.name for modality in spoken_mnist.MODALITIES)
  for modality in spoken_mnist.MODALITIES:
    batch = data[modality.name][np.arange(12).reshape(3, 4)]
    assert batch.shape == (3, 4, *modality.shape)
    assert batch.dtype == (np.int32 if modality.num_classes else np.float32)
  speech, pen, label = (m.show(data[m.name][0]) for m in spoken_mnist.MODALITIES[1:])
  assert speech.shape == (spoken_mnist.SPEECH.samples,) and pen.shape == (28, 28, 3)
  assert label == str(data["label"][0])


def test_real_speech_can_still_be_told_after_inversion(prepared):
  pytest.importorskip("tensorflow")
  view = spoken_mnist.SPEECH
  clips, labels, heard = {}, {}, {}
  for split, size in (("train", 2250), ("test", 250)):
    clips[split], labels[split], *_ = sources.spoken_digit(split, view.samples, prepared)
    np.testing.assert_array_equal(np.bincount(labels[split]), np.full(10, size // 10))
    heard[split] = audio.log_mel(clips[split] / np.float32(32767), view)
  few = heard["test"][::5]
  again = audio.log_mel(audio.invert(few, view), view)
  assert np.abs(again - few).mean() < 0.01  # 0.6 dB
  reference = heard["train"].reshape(2250, -1)
  for speech in (few, again):
    flat = speech.reshape(50, -1)
    distance = (flat**2).sum(1)[:, None] - 2 * flat @ reference.T + (reference**2).sum(1)
    nearest = labels["train"][distance.argmin(1)]
    assert (nearest == labels["test"][::5]).mean() > 0.9


def test_real_examples_fit_the_modalities(prepared, manual_folder):
  pytest.importorskip("tensorflow")
  data = spoken_mnist.load("test", prepared, str(manual_folder))
  np.testing.assert_array_equal(np.bincount(data["label"]), np.full(10, 1000))
  pen = data["pen"][:]
  assert pen.min() == 0.0 and pen.max() == 1.0
