"""The code in the README runs and prints what it says."""

import contextlib
import io
import pathlib
import re
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import modalities as modalities_lib
from mmdiff_jax.data import folder
from mmdiff_jax.networks import brought

README = pathlib.Path(__file__).parents[1] / "README.md"


def run(words):
  """Runs the one Python block that has these words; returns its variables and what it prints."""
  blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
  (code,) = (block for block in blocks if words in block)
  variables, out = {}, io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(code, str(README), "exec"), variables)  # noqa: S102
  return variables, out.getvalue()


def test_solver_example_gives_the_conditional_law():
  _, printed = run("solvers.sample")
  mean, deviation = map(float, printed.split())
  assert mean == pytest.approx(0.8, abs=0.06)
  assert deviation == pytest.approx(0.6, abs=0.05)


def test_columns_of_a_folder_are_such_as_it_takes():
  columns = run("columns = {")[0]["columns"]
  assert [column.modality.name for column in folder.parse(columns)] == list(columns)
  kinds = {modality.name: modality.kind for modality in folder.modalities(columns)}
  assert kinds == {
    "image": "image", "mask": "mask", "some_classes": "mask", "sketch": "image", "sound": "audio",
    "clip": "video", "caption": "text", "label": "label",
  }  # fmt: skip


@pytest.mark.parametrize("size", [8, 16])
def test_autoencoder_that_is_brought_fits_and_keeps_low_frequencies(size, monkeypatch):
  module = types.SimpleNamespace(**run("Brought(params")[0])
  monkeypatch.setitem(sys.modules, "my_networks", module)
  image = modalities_lib.Modality("digit", "image", (size, size, 1), modalities_lib.image_picture)
  codec = brought.autoencoder(image, "my_networks:cosines", 64, frames=False)
  wave = 0.5 + 0.4 * np.cos(np.pi * (np.arange(size) + 0.5) * 3 / size)
  x = np.broadcast_to(wave[:, None, None], (2, size, size, 1))
  x = jnp.asarray(x, jnp.float32)
  found = codec.apply(codec.entry, codec.apply(codec.entry, x), method="decode")
  np.testing.assert_allclose(found, x, atol=1e-5)
