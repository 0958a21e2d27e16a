import functools
import subprocess
import sys

import numpy as np
import pytest

from mmdiff_jax.data import datasets, digits, digits_builder, public, rendering, sketched_digits
from mmdiff_jax.errors import UserError


def test_data_set_is_found_by_its_name():
  assert datasets.modalities("digits") is digits.MODALITIES


@pytest.mark.parametrize("name", ["digit", "rendering", "datasets", "../digits", "digits.load", ""])
def test_unknown_name_is_refused_and_the_valid_ones_are_listed(name):
  with pytest.raises(UserError, match=r"The data sets are: .*\bdigits, .*spoken_mnist\."):
    datasets.modalities(name)
  with pytest.raises(UserError, match="no data set named"):
    datasets.load(name, "train")


def test_missing_folder_is_refused_and_not_made(tmp_path):
  missing = tmp_path / "missing"
  with pytest.raises(UserError, match="missing.*does not exist"):
    datasets.load("digits", "train", str(missing))
  assert not missing.exists()
  with pytest.raises(UserError, match="manual_dir.*does not exist"):
    datasets.load("digits", "train", str(tmp_path), str(missing))


def test_prepared_data_are_in_the_folder_of_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  assert datasets.prepared(None) == tmp_path / "tensorflow_datasets"
  monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
  assert datasets.prepared(None) == tmp_path / "elsewhere"
  assert public.manual(None, None) == tmp_path / "elsewhere" / "downloads" / "manual"
  assert datasets.prepared("~/mine") == tmp_path / "mine"


def test_home_may_be_a_tilde(tmp_path, monkeypatch, handwriting):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "own" / "poly_mnist").mkdir(parents=True)
  with pytest.raises(UserError, match="0 photos"):
    datasets.load("poly_mnist", "train", "~", "~/own")


def test_folders_reach_the_data_set(tmp_path, handwriting):
  (tmp_path / "poly_mnist").mkdir()
  with pytest.raises(UserError, match="0 photos"):
    datasets.load("poly_mnist", "train", str(tmp_path), str(tmp_path))


def test_load_prepares_once_and_returns_the_whole_split(few_draws, monkeypatch):
  def never(*args):
    raise AssertionError("it is prepared already")

  drawn = few_draws.builder_config
  monkeypatch.setattr(
    digits_builder, "Digits", functools.partial(digits_builder.Digits, config=drawn)
  )
  monkeypatch.setattr(digits.rendering, "captions", never)
  folder = str(few_draws.data_path.parents[2])
  for split, size in (("train", 2 * 1437), ("test", 360)):
    data = datasets.load("digits", split, folder)
    assert {len(column) for column in data.values()} == {size}
    chunks = [digits.model_view(chunk) for chunk in digits.read(few_draws, split)]
    assert set(data) == {*chunks[0], "source_digit", "source_scene"}
    for name, column in data.items():
      if name.startswith("source_"):
        continue  # Not a model input; `digits_test` compares it with the records.
      np.testing.assert_array_equal(column, np.concatenate([chunk[name] for chunk in chunks]))


def test_rendering_and_modalities_import_no_large_packages():
  program = (
    "import sys, mmdiff_jax.data.rendering, mmdiff_jax.data.datasets, mmdiff_jax.modalities\n"
    "assert not {'tensorflow', 'tensorflow_datasets', 'grain', 'sklearn', 'jax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_adherence_is_the_function_of_the_data_set_for_the_modality():
  adherence = datasets.adherence("digit", "sketched_digits", of="digits")
  assert adherence is sketched_digits.adherence
  assert datasets.adherence("sketch", "sketched_digits") is None
  for name in ("caption", "digit", "speech", "video"):
    assert datasets.adherence(name, "pairs_of_digits", None, of="digits").args == (name,)
  assert datasets.adherence("label", "pairs_of_digits") is None
  assert datasets.adherence("digit", "mnist") is None
  with pytest.raises(UserError, match="no data set named"):
    datasets.adherence("digit", "adherence")
  with pytest.raises(UserError, match="does not take"):
    datasets.adherence("digit", "sketched_digits", parts=3)


@pytest.mark.parametrize(
  "name", ["digits", "captioned_digits", "moving_digits", "sketched_digits", "pairs_of_digits"]
)
def test_almost_a_sentence_is_not_valid(name):
  almost = ("e thin seven", "hn eight", "b ld 2", "an thin eight", "a", "")
  tokens = rendering.tokens_of(almost)
  np.testing.assert_array_equal(datasets.valid("caption", name)(tokens), [False] * len(almost))
  assert datasets.valid("label", name) is None


def test_grammar_of_a_data_set_without_one():
  assert datasets.valid("digit", "mnist") is None
  with pytest.raises(UserError, match="does not take"):
    datasets.valid("caption", "digits", of="mnist")


def test_options_are_checked_against_the_data_set():
  columns = {"image": {"read": "image", "size": (4, 6)}}
  (image,) = datasets.modalities("folder", None, None, columns=columns, test_share=0.5)
  assert (image.name, image.shape) == ("image", (4, 6, 3))
  for call in (datasets.modalities, functools.partial(datasets.load, split="train")):
    with pytest.raises(UserError, match="'digits' does not take .*'columns'"):
      call("digits", columns=columns)
    with pytest.raises(UserError, match="'folder' does not take .*'columns'"):
      call("folder")
