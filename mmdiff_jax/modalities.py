"""The definition of a modality, and pictures of some of them for a person."""

from collections.abc import Callable, Sequence
import dataclasses
import io
import math

from jaxtyping import Float, Int, Num, UInt8
import numpy as np

_FRAME = 200  # Milliseconds that a frame of a GIF stays.
_ZOOM = 3  # Pixels a side of a GIF that one pixel of a video becomes.

KINDS = ("image", "audio", "text", "label", "mask", "video", "trajectory", "vector")


@dataclasses.dataclass(frozen=True)
class Modality:
  """One modality of a data set: its model input, and how it is presented to a person.

  The model input, without the batch axis, by kind:

  * image: float32 in [0, 1], [height, width, channels];
  * audio: float32 log-mel spectrogram in about [0, 1], [frames, bands];
  * text: int32 tokens below `num_classes`, [length];
  * label: int32 below `num_classes`, [];
  * mask: int32 below `num_classes`, [height, width];
  * video: float32 in [0, 1], [frames, height, width, channels];
  * trajectory: float32 in [0, 1], points (x, y) in order of time, y upwards, [points, 2];
  * vector: float32 of about mean 0 and variance 1 per component, the output of another network,
    [size].

  Attributes:
    name: its name in batches, times, checkpoints and scalars.
    kind: what it is to a person, one of `KINDS`.
    shape: shape of the model input.
    show: maps the model input of one example to what a person looks at (uint8 [height, width, 3]),
      listens to (float waveform [samples] in [-1, 1] at `sample_rate`) or reads (a string).
    num_classes: size of the vocabulary of a text, a label or a mask, otherwise 0.
    sample_rate: sample rate of the waveform that `show` returns, in hertz; 0 if it is not audio.

  Raises:
    TypeError: `name` is not a string, or `shape` or `num_classes` not of integers.
    ValueError: `kind` is unknown, or `num_classes` or `sample_rate` is set for a kind without it,
      or not set for a kind that needs it.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  show: Callable[[np.ndarray], np.ndarray | str]
  num_classes: int = 0
  sample_rate: int = 0

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name:
      raise TypeError(f"modality {self.name!r}: name must be a string that is not empty.")
    if type(self.num_classes) is not int:
      raise TypeError(
        f"modality {self.name!r}: num_classes={self.num_classes!r} must be an integer."
      )
    if not isinstance(self.shape, tuple) or not all(type(size) is int for size in self.shape):
      raise TypeError(
        f"modality {self.name!r}: shape={self.shape!r} must be a tuple of integers, such as"
        " (28, 28, 1)."
      )
    if any(size < 1 for size in self.shape):
      raise ValueError(f"modality {self.name!r}: shape={self.shape} has a size below 1.")
    if self.kind not in KINDS:
      raise ValueError(f"modality {self.name!r}: kind {self.kind!r} must be one of {KINDS}")
    if (self.kind in ("text", "label", "mask")) != (self.num_classes > 0):
      raise ValueError(
        f"modality {self.name!r}: num_classes={self.num_classes} with kind {self.kind!r}; texts, "
        "labels and masks have classes, other kinds have none"
      )
    if (self.kind == "audio") != (self.sample_rate > 0):
      raise ValueError(
        f"modality {self.name!r}: sample_rate={self.sample_rate} with kind {self.kind!r}; audio "
        "has a sample rate, other kinds have none"
      )

  @property
  def bounds(self) -> tuple[float, float]:
    """Lowest and highest value that the model input may have in a data set."""
    if self.kind == "vector":
      return -math.inf, math.inf
    return 0.0, float(self.num_classes - 1 if self.num_classes else 1)


def image_picture(
  image: Float[np.ndarray, "height width channels"],
) -> UInt8[np.ndarray, "height width 3"]:
  """Returns an image in [0, 1] as a picture.

  Args:
    image: [height, width, 1 or 3]; values outside [0, 1] are clipped.

  Returns:
    uint8 [height, width, 3].
  """
  grey_or_colour = np.round(np.clip(np.asarray(image, np.float32), 0.0, 1.0) * 255.0)
  return np.broadcast_to(grey_or_colour, image.shape[:-1] + (3,)).astype(np.uint8)


def mask_picture(
  labels: Int[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
  """Returns a mask as a picture, class 0 black and each of 512 classes in a different colour.

  The lowest three bits of a class are the highest bits of red, green and blue, and so on, as in the
  Pascal VOC challenge: classes with close numbers have very different colours.

  Args:
    labels: [height, width] classes below 512.

  Returns:
    uint8 [height, width, 3].
  """
  classes = np.asarray(labels)[..., None]
  colour = sum(((classes >> (3 * i + np.arange(3))) & 1) << (7 - i) for i in range(3))
  return colour.astype(np.uint8)


def video_picture(
  video: Float[np.ndarray, "frames height width channels"],
) -> UInt8[np.ndarray, "_ _ 3"]:
  """Returns a video in [0, 1] as a strip of its frames, the first at the left, laid out by `grid`.

  Args:
    video: [frames, height, width, 1 or 3]; values outside [0, 1] are clipped.

  Returns:
    uint8 [height + 2, frames * (width + 1) + 1, 3].
  """
  return grid([image_picture(frame) for frame in video], len(video))


# Night, violet, ember, straw: darker is quieter for every viewer, also for the colour-blind.
_COLOURS = np.array([[6, 6, 24], [92, 24, 122], [226, 92, 60], [252, 246, 176]], np.float32)


def spectrogram_picture(
  spectrogram: Float[np.ndarray, "frames bands"],
) -> UInt8[np.ndarray, "bands frames 3"]:
  """Returns a spectrogram in [0, 1] as a picture: time to the right, pitch up, brighter is louder.

  Args:
    spectrogram: [frames, bands]; values outside [0, 1] are clipped.

  Returns:
    uint8 [bands, frames, 3].
  """
  level = np.clip(np.asarray(spectrogram, np.float32).T[::-1], 0.0, 1.0)
  stops = np.linspace(0.0, 1.0, len(_COLOURS))
  channels = [np.interp(level, stops, channel) for channel in _COLOURS.T]
  return np.round(np.stack(channels, -1)).astype(np.uint8)


def trajectory_picture(
  points: Float[np.ndarray, "points 2"], *, size: int = 28
) -> UInt8[np.ndarray, "size size 3"]:
  """Returns a trajectory in [0, 1] as a line that brightens in the order of its points.

  Args:
    points: [points, 2], (x, y) with y upwards; points outside [0, 1] may leave the picture.
    size: pixels a side.

  Returns:
    uint8 [size, size, 3].
  """
  margin = 2.0
  scale = size - 1 - 2 * margin
  positions = (np.asarray(points, np.float32) - 0.5) * [scale, -scale] + (size - 1) / 2
  start, move = positions[:-1], np.diff(positions, axis=0)
  pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)[:, :, None]
  # How far along each segment the point next to a pixel lies, and how far that is from the pixel.
  along = ((pixels - start) * move).sum(-1) / np.maximum((move**2).sum(-1), 1e-9)
  along = np.clip(along, 0.0, 1.0)
  distance = np.linalg.norm(pixels - start - along[..., None] * move, axis=-1)
  brightness = 0.3 + 0.7 * (np.arange(len(move)) + along) / len(move)
  ink = (np.clip(1.5 - distance, 0.0, 1.0) * brightness).max(-1)
  return image_picture(ink[..., None])


def vector_picture(vector: Float[np.ndarray, " size"]) -> UInt8[np.ndarray, "height width 3"]:
  """Returns a vector as cells of a near-square grid, row by row: -3 is black, 0 mid-grey, 3 white.

  Args:
    vector: [size], of about unit variance; values beyond -3 and 3 are clipped.

  Returns:
    uint8 [height, width, 3], one pixel per component; the rest of the last row is mid-grey.
  """
  width = math.ceil(math.sqrt(len(vector)))
  height = -(-len(vector) // width)
  cells = np.pad(np.asarray(vector, np.float32), (0, height * width - len(vector)))
  return image_picture(0.5 + cells.reshape(height, width, 1) / 6)


def picture(
  modality: Modality, example: Num[np.ndarray, "..."]
) -> UInt8[np.ndarray, "height width 3"]:
  """Returns one example of a modality (its model input) as uint8 [height, width, 3].

  Raises:
    ValueError: the modality is a text or a label, which is read, not looked at.
  """
  if modality.kind in ("text", "label"):
    raise ValueError(f"modality {modality.name!r} is a {modality.kind}; print what `show` returns")
  return spectrogram_picture(example) if modality.kind == "audio" else modality.show(example)


def grid(
  pictures: Sequence[UInt8[np.ndarray, "height width 3"]], columns: int, *, zoom: int = 1
) -> UInt8[np.ndarray, "_ _ 3"]:
  """Arranges pictures of one size in rows of `columns`, one white pixel apart (before zooming).

  Args:
    pictures: uint8 [height, width, 3] each, at least one.
    columns: pictures in a row; empty cells of the last row stay white.
    zoom: pixels a side that each pixel becomes.

  Returns:
    uint8 [zoom * (rows * (height + 1) + 1), zoom * (columns * (width + 1) + 1), 3].
  """
  height, width, _ = pictures[0].shape
  rows = -(-len(pictures) // columns)
  sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 255, np.uint8)
  for i, tile in enumerate(pictures):
    top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
    sheet[top : top + height, left : left + width] = tile
  return sheet.repeat(zoom, 0).repeat(zoom, 1)


def video_gif(
  videos: Float[np.ndarray, "videos frames height width channels"], columns: int
) -> bytes:
  """Returns videos as one animated GIF in which all play at once, in an endless loop.

  Args:
    videos: [videos, frames, height, width, 1 or 3] in [0, 1]; values outside are clipped.
    columns: videos in a row.
  """
  from PIL import Image

  columns = min(columns, len(videos))
  moments = [
    grid([image_picture(x) for x in moment], columns, zoom=_ZOOM)
    for moment in np.swapaxes(videos, 0, 1)
  ]
  first, *rest = [Image.fromarray(moment) for moment in moments]
  file = io.BytesIO()
  first.save(file, "GIF", save_all=True, append_images=rest, duration=_FRAME, loop=0)
  return file.getvalue()
