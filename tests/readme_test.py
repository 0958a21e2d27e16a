"""The code in the README and in docs runs and prints what it says."""

import contextlib
import io
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import modalities as modalities_lib, solvers
from mmdiff_jax.data import columns as columns_lib, folder
from mmdiff_jax.networks import pretrained

README = pathlib.Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def run(page, words):
  """Runs a page's one Python block with these words; returns its variables and what it prints."""
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
  (code,) = (block for block in blocks if words in block)
  variables, out = {}, io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(code, str(page), "exec"), variables)  # noqa: S102
  return variables, out.getvalue()


def test_trained_example_gives_the_conditional_law():
  _, printed = run(README, "solvers.sample")
  mean, deviation = map(float, printed.split())
  assert mean == pytest.approx(0.8, abs=0.06)
  assert deviation == pytest.approx(0.6, abs=0.05)


def test_networks_of_every_library_are_seen_to_change():
  """The page runs in one piece; new parameters change the samples, and compile nothing again."""
  page = DOCS / "your_networks.md"
  code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
  v = {}
  exec(compile(code, str(page), "exec"), v)  # noqa: S102
  sampler, key, partial = v["sampler"], jax.random.key(1), jax.tree_util.Partial
  compiled = sampler._cache_size()
  before = sampler(v["with_nnx"], key)
  v["nnx_net"].dense.kernel[...] = jnp.zeros((4, 4))
  assert not np.allclose(before, sampler(v["with_nnx"], key))
  for denoiser, apply, params in (
    (v["with_linen"], v["linen_net"].apply, v["params"]),
    (v["with_equinox"], v["equinox_apply"], v["arrays"]),
  ):
    changed = partial(apply, jax.tree.map(lambda x: 0.5 * x, params))
    changed = sampler(solvers.from_v(changed, v["schedule"]), key)
    assert not np.allclose(sampler(denoiser, key), changed)
  assert sampler._cache_size() == compiled == 4


def test_columns_of_a_folder_are_such_as_it_takes():
  columns = run(DOCS / "data.md", "columns = {")[0]["columns"]
  assert [column.modality.name for column in columns_lib.parse(columns)] == list(columns)
  kinds = {modality.name: modality.kind for modality in folder.modalities(columns)}
  assert kinds == {
    "image": "image", "mask": "mask", "some_classes": "mask", "sketch": "image", "sound": "audio",
    "clip": "video", "caption": "text", "label": "label",
  }  # fmt: skip


@pytest.mark.parametrize("size", [8, 16])
def test_autoencoder_that_is_brought_fits_and_keeps_low_frequencies(size, monkeypatch):
  module = types.SimpleNamespace(**run(DOCS / "your_networks.md", "Pretrained(params")[0])
  monkeypatch.setitem(sys.modules, "my_networks", module)
  image = modalities_lib.Modality("digit", "image", (size, size, 1), modalities_lib.image_picture)
  codec = pretrained.autoencoder(image, "my_networks:cosines", 64, frames=False)
  wave = 0.5 + 0.4 * np.cos(np.pi * (np.arange(size) + 0.5) * 3 / size)
  x = np.broadcast_to(wave[:, None, None], (2, size, size, 1))
  x = jnp.asarray(x, jnp.float32)
  found = codec.apply(codec.entry, codec.apply(codec.entry, x), method="decode")
  np.testing.assert_allclose(found, x, atol=1e-5)


def test_links_between_pages_lead_somewhere():
  pages = [*README.parent.glob("*.md"), *DOCS.rglob("*.md")]
  for page in pages:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
      assert (page.parent / link).exists(), (page, link)
  assert len(README.read_text().splitlines()) <= 150
