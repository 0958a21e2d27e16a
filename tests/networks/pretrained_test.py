"""Pretrained networks of a user replace ours, or the message says why they cannot."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff_jax import modalities as modalities_lib
from mmdiff_jax.errors import UserError
from mmdiff_jax.networks import pretrained

IMAGE = modalities_lib.Modality("photo", "image", (2, 3, 1), modalities_lib.image_picture)
VIDEO = modalities_lib.Modality("photo", "video", (4, 2, 3, 1), modalities_lib.video_picture)
CAPTION = modalities_lib.Modality("photo", "text", (3,), str, num_classes=5)
THEIRS = "tests.networks.theirs"


def draw_input(modality, rows=7):
  rng = np.random.default_rng(0)
  if modality.num_classes:
    return jnp.asarray(rng.integers(0, modality.num_classes, (rows, *modality.shape)), jnp.int32)
  return jnp.asarray(rng.uniform(size=(rows, *modality.shape)), jnp.float32)


@pytest.mark.parametrize(
  ("modality", "latent", "shape"),
  [(IMAGE, 6, (7, 6)), (VIDEO, 6, (7, 4, 6)), (CAPTION, 15, (7, 15))],
)
def test_decode_inverts_encode(modality, latent, shape):
  frames = modality.kind == "video"
  codec = pretrained.autoencoder(modality, f"{THEIRS}:rotation", latent, frames=frames)
  x = draw_input(modality)
  z = codec.apply(codec.entry, x, method="encode")
  assert z.shape == shape
  np.testing.assert_allclose(codec.apply(codec.entry, z, method="decode"), x, atol=1e-5)


def test_entry_is_a_dict_of_arrays_and_is_what_apply_uses():
  codec = pretrained.autoencoder(IMAGE, f"{THEIRS}:rotation", 6, frames=False)
  assert all(isinstance(x, (np.ndarray, np.generic)) for x in codec.entry.values())
  x = draw_input(IMAGE)
  z = codec.apply(codec.entry, x)
  halved = codec.apply(jax.tree.map(lambda leaf: leaf / 2, codec.entry), x)
  np.testing.assert_allclose(halved, z / 2, atol=1e-6)


def test_prompts_have_length_one():
  encoder = pretrained.prompt_encoder(IMAGE, f"{THEIRS}:directions", 6)
  vectors = np.asarray(encoder.apply(encoder.entry, draw_input(IMAGE)))
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
  raw = draw_input(IMAGE).reshape(7, -1) @ encoder.entry["0"]
  np.testing.assert_allclose(vectors * np.linalg.norm(raw, axis=1, keepdims=True), raw, atol=1e-5)


def test_module_is_searched_for_where_the_program_starts(tmp_path, monkeypatch):
  path = tmp_path / "my_networks.py"
  path.write_text("import no_such_library\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "my_networks", raising=False)
  with pytest.raises(UserError, match=r"my_networks cannot be imported .*no_such_library"):
    pretrained.prompt_encoder(IMAGE, "my_networks:one", 6)
  path.write_text("from tests.networks.theirs import directions as one\n")
  assert pretrained.prompt_encoder(IMAGE, "my_networks:one", 6).latent == 6


@pytest.mark.parametrize(
  ("use", "latent", "message"),
  [
    (
      "no_such_module:f",
      6,
      r"autoencoder\.photo\.pretrained is .* no_such_module cannot be imported",
    ),
    ("no_colon", 6, "of the form my_package.my_module:function"),
    ("..up:f", 6, "of the form my_package.my_module:function"),
    (f"{THEIRS}:missing", 6, r"theirs\.py'> has no function 'missing'"),
    (f"{THEIRS}:math", 6, "has no function 'math'"),
    (f"{THEIRS}:nothing", 6, r"returned dict for .*'photo'; .* return .*pretrained\.Pretrained"),
    (f"{THEIRS}:directions", 6, "returns no decode"),
    (f"{THEIRS}:tokens", 6, r"encode returns int32 \[5, 6\] .*must be float32 \[5, 6\]"),
    (f"{THEIRS}:rotation", 8, r"returns float32 \[5, 6\] .*float32 \[5, 8\].*photo\.latent=8 says"),
    (f"{THEIRS}:blank", 6, r"decode returns float32 \[5, 6\] .*must be float32 \[5, 2, 3, 1\]"),
  ],
)
def test_autoencoders_that_do_not_fit(use, latent, message):
  with pytest.raises(UserError, match=message) as error:
    pretrained.autoencoder(IMAGE, use, latent, frames=False)
  assert "\n" not in str(error.value)


def test_latents_per_frame_where_one_is_expected_and_vice_versa():
  with pytest.raises(UserError, match=r"float32 \[5, 4, 6\] .*must be float32 \[5, 6\]"):
    pretrained.autoencoder(VIDEO, f"{THEIRS}:rotation", 6, frames=False)
  with pytest.raises(UserError, match=r"float32 \[5, 24\] .*must be float32 \[5, 4, 24\]"):
    pretrained.autoencoder(VIDEO, f"{THEIRS}:pixels", 24, frames=True)


@pytest.mark.parametrize(
  ("use", "message"),
  [
    (f"{THEIRS}:missing", r"config\.bridging\.pretrained\.photo is .* has no function 'missing'"),
    (f"{THEIRS}:directions", r"float32 \[5, 6\] .*float32 \[5, 8\], as .*network\.size=8 says"),
  ],
)
def test_prompt_encoders_that_do_not_fit(use, message):
  with pytest.raises(UserError, match=message):
    pretrained.prompt_encoder(IMAGE, use, 8)


def test_a_mean_and_a_variance_are_not_a_latent(monkeypatch):
  module = type(sys)("their_vae")
  module.vae = lambda modality: pretrained.Pretrained({}, lambda _, x: (x, x), lambda _, z: z)
  monkeypatch.setitem(sys.modules, "their_vae", module)
  with pytest.raises(UserError, match="encode returns a tuple"):
    pretrained.autoencoder(IMAGE, "their_vae:vae", 6, frames=False)


def test_parameters_that_differ_from_those_of_the_checkpoint():
  codec = pretrained.autoencoder(IMAGE, f"{THEIRS}:rotation", 6, frames=False)
  for other in ({"0": jnp.zeros(2)}, codec.entry | {"1": np.zeros((6, 5))}):
    with pytest.raises(UserError, match="rotation returns parameters of other shapes"):
      codec.apply(other, draw_input(IMAGE))
