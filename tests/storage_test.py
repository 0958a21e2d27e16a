import errno
import importlib.util
import logging
import os
import tempfile

from absl import logging as absl_logging
import numpy as np
import pytest

from experiments import experts
from mmdiff_jax import storage
from mmdiff_jax.data import array_files, datasets, public
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, workdir as workdir_lib


def test_a_bucket_needs_tensorflow(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for use in (storage.path, workdir_lib.load_config, lambda x: checkpoints.latest_step(x, "stage")):
    with pytest.raises(UserError, match="gs://bucket/run needs TensorFlow.*pip install"):
      use("gs://bucket/run")
  assert not list(tmp_path.iterdir())


def test_other_storage_is_refused():
  with pytest.raises(UserError, match="s3://bucket/run cannot be written or read"):
    storage.path("s3://bucket/run")


def test_a_name_in_a_bucket_stays_one():
  pytest.importorskip("tensorflow")
  assert str(storage.path("gs://bucket/run/") / "a") == "gs://bucket/run/a"
  assert str(checkpoints.stage_dir("gs://bucket/run", "x")) == "gs://bucket/run/checkpoints/x"
  assert experts._term("gs://bucket/run/:sketch+mask") == ("gs://bucket/run", ("sketch", "mask"))
  assert experts._term("gs://bucket/run") == ("gs://bucket/run", ())


def test_a_stage_lies_in_an_absolute_folder(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert os.fspath(checkpoints.stage_dir("run", "x")) == str(tmp_path / "run/checkpoints/x")


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  home, here = tmp_path / "home", tmp_path / "here"
  for folder in (home, here):
    folder.mkdir()
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(here)
  assert storage.expanded("~") == str(home) and storage.expanded("a~") == "a~"
  assert os.fspath(storage.path("~/run")) == str(storage.on_disk("~/run", "it")) == f"{home}/run"
  assert os.fspath(checkpoints.stage_dir("~/run", "x")) == f"{home}/run/checkpoints/x"
  assert experts._term("~/run:sketch+mask") == (f"{home}/run", ("sketch", "mask"))
  assert experts._term("~/run/") == (f"{home}/run", ())
  assert public.manual(None, "~/mine") == home / "mine"
  array_files.write_npz("~/a.npz", x=np.arange(3))
  assert (
    array_files.kept_npz("~/a.npz").keys() == {"x"} and len(array_files.array("~/a.npz", "x")) == 3
  )
  storage.check_writable("~/run", "--out")
  assert {path.name for path in home.iterdir()} == {"a.npz"} and not list(here.iterdir())


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("~nobody_here/x", "The path is ~nobody_here/x, but .*'nobody_here'.* write ./~nobody_here/x"),
    ("", "The path is ''"),
    ("a\0b", "The path is "),
  ],
)
def test_names_that_are_not_paths(name, words):
  with pytest.raises(UserError, match=words):
    storage.on_disk(name, "The path")
  with pytest.raises(UserError):
    storage.path(name)


def test_a_folder_is_tested_before_it_is_needed(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  (tmp_path / "there").mkdir()
  for name in ("there", "new/deep/er"):
    storage.check_writable(tmp_path / name, "--out")
  storage.check_file_writable(tmp_path / "file", "--out")
  storage.check_file_writable(tmp_path / "new" / "file", "--out")
  for name in ("file", "file/below", "x" * 300):
    with pytest.raises(UserError, match=f"{name} .--out. cannot be written: "):
      storage.check_writable(tmp_path / name, "--out")
  with pytest.raises(UserError, match="there .--out. is a folder"):
    storage.check_file_writable(tmp_path / "there", "--out")

  def refuse(**_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "name")

  monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
  with pytest.raises(UserError, match="new/deep .--out. cannot be written: Read-only file system"):
    storage.check_writable(tmp_path / "new" / "deep", "--out")
  assert {path.name for path in tmp_path.iterdir()} == {"file", "there"}


@pytest.mark.parametrize("name", ["data_dir", "manual_dir"])
def test_data_do_not_lie_in_a_bucket(name):
  with pytest.raises(UserError, match=f"{name}.* cannot be gs://bucket/data: give a folder"):
    datasets.load("digits", "train", **{name: "gs://bucket/data"})


def test_nor_where_the_environment_says_so(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
  with pytest.raises(UserError, match="TFDS_DATA_DIR. cannot be gs://bucket/data"):
    datasets.load("digits", "train")


def test_tensorflow_and_tfds_are_quiet_and_others_are_heard(monkeypatch):
  for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
    monkeypatch.delenv(name, raising=False)
  storage.quieten_tensorflow()
  assert (os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["TF_ENABLE_ONEDNN_OPTS"]) == ("3", "0")
  logger = absl_logging.get_absl_logger()
  heard = [
    logger.filter(logging.LogRecord("absl", level, f"/lib/{package}/x.py", 1, "text", (), None))
    for package in ("tensorflow_datasets/core", "orbax")
    for level in (logging.WARNING, logging.ERROR)
  ]
  assert list(map(bool, heard)) == [False, True, True, True]
