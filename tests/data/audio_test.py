import numpy as np
import pytest

from mmdiff_jax.data import audio, rendering

_VIEW = audio.LogMel()


def _tones(count):
  labels = np.arange(count) % 10
  return labels, rendering.dial_tone(labels, np.random.default_rng(0))


def test_full_scale_sine_is_near_one_and_silence_is_zero():
  time = np.arange(_VIEW.samples) / _VIEW.sample_rate
  for hertz in (697.0, 1000.0, 1477.0):
    loudest = audio.log_mel(np.sin(2 * np.pi * hertz * time), _VIEW)[8:-8].max(-1)
    np.testing.assert_allclose(loudest, 1.0, atol=0.03)
  assert audio.log_mel(np.zeros(_VIEW.samples), _VIEW).max() == 0.0


def test_halving_the_amplitude_lowers_the_level_by_six_decibels():
  _, waves = _tones(10)
  mel, half = audio.log_mel(waves, _VIEW), audio.log_mel(waves / 2, _VIEW)
  heard = half > 0.05
  np.testing.assert_allclose((mel - half)[heard], 20 * np.log10(2) / 60, atol=1e-4)


def test_single_precision_in_pieces_equals_double_precision_at_once():
  labels, waves = _tones(130)  # More than one piece, and not a whole number of them.
  window = np.hanning(_VIEW.window + 1)[:-1]
  margin = (_VIEW.window - _VIEW.hop) // 2
  padded = np.pad(waves.astype(np.float64), ((0, 0), (margin, margin)))
  pieces = np.stack(
    [padded[:, i * _VIEW.hop : i * _VIEW.hop + _VIEW.window] for i in range(_VIEW.frames)], axis=1
  )
  power = np.abs(np.fft.rfft(pieces * window)) ** 2 / (_VIEW.window / 4) ** 2
  bands = np.maximum(power @ audio._filters(_VIEW).T, 1e-12)
  expected = np.clip(1 + 10 * np.log10(bands) / 60, 0, 1)
  np.testing.assert_allclose(audio.log_mel(waves, _VIEW), expected, atol=1e-4)
  leading = audio.log_mel(waves.reshape(2, 65, -1), _VIEW)
  np.testing.assert_array_equal(leading.reshape(expected.shape), audio.log_mel(waves, _VIEW))


@pytest.mark.parametrize("bands", [32, 64])  # 64 are narrower than the bins of the transform.
def test_every_band_hears_something(bands):
  assert (audio._filters(audio.LogMel(bands=bands)).max(1) > 0.4).all()


def test_inversion_keeps_the_spectrogram():
  _, waves = _tones(20)
  mel = audio.log_mel(waves, _VIEW)
  again = audio.log_mel(audio.invert(mel, _VIEW), _VIEW)
  assert np.abs(again - mel).mean() < 0.015  # 0.9 dB
  assert np.abs(again - mel)[mel > 0.3].mean() < 0.015
  assert audio.invert(np.zeros_like(mel[0]), _VIEW).max() == 0.0


def test_clip_of_another_length_is_refused():
  with pytest.raises(ValueError, match="2048 samples, got 2000"):
    audio.log_mel(np.zeros(2000), _VIEW)


@pytest.mark.parametrize("window, hop", [(256, 75), (255, 64), (75, 75), (2, 1)])
def test_no_frame_is_lost_whatever_the_window(window, hop):
  view = audio.LogMel(window=window, hop=hop, bands=4)
  wave = np.random.default_rng(0).uniform(-1, 1, view.samples)
  assert audio.log_mel(wave, view).shape == (view.frames, 4)
  # Windows that end with the clip, so its ends are heard, and it comes back in its place.
  if window >= 4 * hop:
    again = audio._istft(audio._stft(wave, view), view)
    np.testing.assert_allclose(again[hop:-hop], wave[hop:-hop], atol=1e-9)


@pytest.mark.parametrize(
  "settings, complaint",
  [
    ({"hop": 300}, "hop is 300; it must be at most the window, 256"),
    ({"hop": 0}, "hop is 0"),
    ({"frames": 0}, "frames is 0"),
    ({"sample_rate": -1}, "sample_rate is -1"),
    ({"window": 1, "hop": 1}, "window is 1; .* from 2"),
    ({"high": 4001.0}, "high is 4001.0; .* sample_rate / 2, 4000"),
    ({"low": 2000.0}, "low is 2000.0 and high is 2000.0"),
    ({"low": -1.0}, "low is -1.0"),
    ({"high": float("nan")}, "high is nan"),
    ({"floor": 0.0}, "floor is 0.0; .*-120"),
    ({"floor": -121.0}, "floor is -121.0"),
  ],
)
def test_settings_that_cannot_be_are_refused(settings, complaint):
  with pytest.raises(ValueError, match=complaint):
    audio.LogMel(**settings)
