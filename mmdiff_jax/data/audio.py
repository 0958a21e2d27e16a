"""Log-mel spectrograms of short clips and the way back to a waveform, in NumPy.

The model sees `log_mel(wave)`: power spectrogram (Hann window), triangular mel bands, decibels
clipped to a floor and scaled to [0, 1]. `invert` undoes it for listening: the mel bands are spread
back over frequencies by Richardson and Lucy's iteration (which keeps power positive and sharp, as
the least squares by a pseudo-inverse does not) and the phase is found by that of Griffin and Lim,
with the momentum of Perraudin, Balazs and Sondergaard (2013).
"""

import dataclasses
import functools

from jaxtyping import Float
import numpy as np

_MOST = 2**20  # Of any size of a view: more is a slip.


@dataclasses.dataclass(frozen=True)
class LogMel:
  """TrainConfig of a log-mel view.

  Attributes:
    sample_rate: samples a second, in hertz.
    window: samples in a window.
    hop: samples between windows.
    frames: number of windows; the clip has `hop * frames` samples.
    bands: number of mel bands.
    low: lowest frequency, in hertz.
    high: highest frequency, in hertz.
    floor: level that maps to 0, in decibels of power, from -120 to below 0; 0 dB maps to 1 (a sine
      of amplitude 1 in one band comes out near it).

  Raises:
    ValueError: a setting cannot be.
  """

  sample_rate: int = 8000
  window: int = 256
  hop: int = 64
  frames: int = 32
  bands: int = 32
  low: float = 500.0
  high: float = 2000.0
  floor: float = -60.0

  def __post_init__(self):
    for name, least in (("sample_rate", 1), ("window", 2), ("hop", 1), ("frames", 1), ("bands", 1)):
      value = getattr(self, name)
      if not isinstance(value, int) or not least <= value <= _MOST:
        raise ValueError(f"{name} is {value!r}; it must be an integer from {least} to {_MOST:,}")
    for name in ("low", "high", "floor"):
      if not isinstance(value := getattr(self, name), (int, float)):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    if self.hop > self.window:
      raise ValueError(f"hop is {self.hop}; it must be at most the window, {self.window}")
    if not 0 <= self.low < self.high <= self.sample_rate / 2:
      raise ValueError(
        f"low is {self.low} and high is {self.high}; it must be 0 <= low < high <= "
        f"sample_rate / 2, {self.sample_rate / 2:g}"
      )
    # -120 dB is the least power that `log_mel` tells from silence.
    if not -120 <= self.floor < 0:
      raise ValueError(f"floor is {self.floor}; it must be from -120 to below 0")

  @property
  def samples(self) -> int:
    """Samples in a clip."""
    return self.hop * self.frames

  @property
  def margins(self) -> tuple[int, int]:
    """Zeros before and after a clip, so that `frames` windows fit in."""
    before = (self.window - self.hop) // 2
    return before, self.window - self.hop - before


def _mel(hertz):
  return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


@functools.cache
def _filters(view: LogMel) -> np.ndarray:
  """Triangular filters, [bands, window // 2 + 1], each with its peak at 1."""
  edges = np.linspace(_mel(view.low), _mel(view.high), view.bands + 2)
  bins = _mel(np.fft.rfftfreq(view.window, 1.0 / view.sample_rate))
  rise = (bins[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
  fall = (edges[2:, None] - bins[None]) / np.diff(edges)[1:, None]
  # A narrow band can fall between two bins of the transform; a floor on the width keeps it fed.
  centre = edges[1:-1, None]
  spacing = np.gradient(bins)[None]
  wide = 1.0 - np.abs(bins[None] - centre) / np.maximum(np.diff(edges)[:-1, None], spacing)
  return np.maximum(np.maximum(np.minimum(rise, fall), wide), 0.0).astype(np.float32)


def _stft(wave: np.ndarray, view: LogMel) -> np.ndarray:
  """Short-time transform of [..., samples], zero-padded at both ends: [..., frames, bins].

  It is as precise as the waveform is.
  """
  pad = [(0, 0)] * (wave.ndim - 1) + [view.margins]
  padded = np.pad(wave, pad)
  windows = np.lib.stride_tricks.sliding_window_view(padded, view.window, axis=-1)
  windows = windows[..., :: view.hop, :]
  hann = np.hanning(view.window + 1)[:-1].astype(wave.dtype)
  return np.fft.rfft(windows * hann, axis=-1)


def _istft(spectrum: np.ndarray, view: LogMel) -> np.ndarray:
  """Least-squares inverse of `_stft`: windowed overlap-add over the sum of squared windows."""
  hann = np.hanning(view.window + 1)[:-1]
  pieces = np.fft.irfft(spectrum, n=view.window, axis=-1) * hann
  length = view.samples + view.window - view.hop
  wave = np.zeros(spectrum.shape[:-2] + (length,))
  weight = np.zeros(length)
  for i in range(view.frames):
    frame = slice(i * view.hop, i * view.hop + view.window)
    wave[..., frame] += pieces[..., i, :]
    weight[frame] += hann**2
  start = view.margins[0]
  kept = slice(start, start + view.samples)
  return wave[..., kept] / np.maximum(weight[kept], 1e-6)


# Clips whose windows are transformed at once: their spectra should stay in the processor's cache.
_CHUNK = 64


def log_mel(
  wave: Float[np.ndarray, "*batch samples"], view: LogMel
) -> Float[np.ndarray, "*batch frames bands"]:
  """The model's view of a clip.

  Args:
    wave: [..., samples] in [-1, 1].
    view: the settings.

  Returns:
    [..., frames, bands] float32 in [0, 1]: decibels, `view.floor` at 0 and full scale at 1.

  Raises:
    ValueError: the clip has another length than `view.samples`.
  """
  if wave.shape[-1] != view.samples:
    raise ValueError(f"a clip has {view.samples} samples, got {wave.shape[-1]}; pad or cut it")
  # A sine of amplitude 1 has magnitude sum(window) / 2 at its own frequency.
  filters = _filters(view).T / np.float32(view.window / 4) ** 2
  clips = wave.reshape(-1, view.samples)
  scaled = np.empty((len(clips), view.frames, view.bands), np.float32)
  for i in range(0, len(clips), _CHUNK):
    spectrum = _stft(clips[i : i + _CHUNK].astype(np.float32), view)
    power = (spectrum.real**2 + spectrum.imag**2) @ filters
    decibels = 10.0 * np.log10(np.maximum(power, 1e-12))
    scaled[i : i + _CHUNK] = np.clip(1.0 - decibels / view.floor, 0.0, 1.0)
  return scaled.reshape(wave.shape[:-1] + scaled.shape[1:])


def invert(
  mel: Float[np.ndarray, "*batch frames bands"], view: LogMel, *, iterations: int = 32
) -> Float[np.ndarray, "*batch samples"]:
  """A waveform with (nearly) this log-mel spectrogram.

  Args:
    mel: [..., frames, bands] in [0, 1].
    view: the settings that made it.
    iterations: rounds of sharpening and of phase estimation.

  Returns:
    [..., samples] float32 in [-1, 1]. Levels at the floor come back as silence.
  """
  power = np.where(mel > 0.02, 10.0 ** ((1.0 - np.clip(mel, 0.0, 1.0)) * view.floor / 10.0), 0.0)
  magnitude = np.sqrt(_unfilter(power, view, iterations)) * (view.window / 4)
  phase = np.random.default_rng(0).uniform(0, 2 * np.pi, magnitude.shape[-2:])
  spectrum = magnitude * np.exp(1j * phase)
  before = 0.0
  for _ in range(iterations):
    consistent = _stft(_istft(spectrum, view), view)
    ahead = consistent + 0.99 * (consistent - before)
    spectrum, before = magnitude * np.exp(1j * np.angle(ahead)), consistent
  return np.clip(_istft(spectrum, view), -1.0, 1.0).astype(np.float32)


def _unfilter(power: np.ndarray, view: LogMel, iterations: int) -> np.ndarray:
  """Power [..., frames, bins] whose mel bands come near [..., frames, bands]."""
  filters = _filters(view)
  reach = filters.sum(0)  # Bins outside all bands stay silent.
  spread = np.where(reach > 0, power.mean(-1, keepdims=True), 0.0)
  for _ in range(iterations):
    ratio = power / np.maximum(spread @ filters.T, 1e-12)
    spread *= ratio @ filters / np.maximum(reach, 1e-9)
  return spread
