import json

import ml_collections
import numpy as np
import pytest

from mmdiff_jax.data import pairing
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import trainer, workdir as workdir_lib


def test_another_config_is_refused_and_changes_nothing(toy, workdir):
  before = (workdir / "config.json").read_text()
  with pytest.raises(UserError) as error:
    toy.train(workdir, seed=4, extra=1, data={"name": "other", "data_dir": None})
  for words in ("data.name was \"toy\", now \"other\"", "seed was 3, now 4",
                "extra was not there, now 1", "--workdir"):  # fmt: skip
    assert words in str(error.value)
  assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize("name", ["run[1]", "what?", "all*/run", "runs\\x"])
def test_a_path_whose_checkpoints_could_not_be_read_is_refused(toy, tmp_path, name):
  with pytest.raises(UserError, match="cannot have .* in its path: checkpoints there"):
    toy.train(tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_fields_that_do_not_change_training_may_differ(tmp_path):
  def config(value, modalities):
    fields = {name: {"x": value} for name in ("monitor", "sampling", "evaluation")}
    return ml_collections.ConfigDict(
      {**fields, "data": {"name": "toy", "data_dir": value}, "modalities": modalities}
    )

  data = {"image": np.zeros((3, 2))}
  workdir_lib.open_workdir(tmp_path, config("a", ("image", "words")), data)
  workdir_lib.open_workdir(tmp_path, config("b", ("image", "words")), data)
  # The newest config is loaded, and tuples are restored as tuples.
  assert workdir_lib.load_config(tmp_path) == config("b", ("image", "words"))
  with pytest.raises(UserError, match="modalities was"):
    workdir_lib.open_workdir(tmp_path, config("b", ("image",)), data)


def test_a_missing_field_equals_none(tmp_path):
  data = {"image": np.zeros((3, 2))}
  fields = {"seed": 3, "autoencoder": {"latent": 4}}
  workdir_lib.open_workdir(tmp_path, ml_collections.ConfigDict(fields), data)
  fields["autoencoder"]["pretrained"] = None
  workdir_lib.open_workdir(tmp_path, ml_collections.ConfigDict(fields), data)
  fields["autoencoder"]["pretrained"] = "theirs:networks"
  with pytest.raises(
    UserError, match='autoencoder.pretrained was not there, now "theirs:networks"'
  ):
    workdir_lib.open_workdir(tmp_path, ml_collections.ConfigDict(fields), data)


def _split(**change):
  """Returns 1,000 examples, one modality computed when it is read and one with gaps."""
  image = np.random.default_rng(0).uniform(size=(1000, 4, 4)).astype(np.float32)
  words = np.random.default_rng(1).integers(0, 9, (1000, 3))
  return {
    "image": pairing.Column(np.arange(1000), image.__getitem__),
    "words": words,
    "words_present": np.arange(1000) != 500,
    **change,
  }


def _mirrored(rows):
  return _split()["image"][rows][..., ::-1]


@pytest.mark.parametrize(
  "other, words",
  [
    ({name: x[:999] for name, x in _split().items()}, "number of examples was 1000, now 999"),
    (_split(image=np.zeros((1000, 5), np.float32)), r"shape of image was \[4, 4\], now \[5\]"),
    (_split(words=_split()["words"].astype(np.int16)), 'type of words was "int64", now "int16"'),
    (_split(sound=np.zeros((1000, 2))), r"shape of sound was not there, now \[2\]"),
    (_split(words_present=np.arange(1000) != 501), "checksum of words_present"),
    (_split(words=_split()["words"][::-1]), "words has other contents"),
    (_split(image=pairing.Column(np.arange(1000), _mirrored)), ": image has other contents"),
  ],
)
def test_other_data_are_refused_and_change_nothing(toy, tmp_path, other, words):
  workdir_lib.open_workdir(tmp_path, toy.config(), _split())
  before = {path: path.read_text() for path in tmp_path.iterdir()}
  elsewhere = toy.config(data={"name": "toy", "data_dir": "/elsewhere"})
  with pytest.raises(UserError, match=f"made with other training data.*{words}.*data.json"):
    workdir_lib.open_workdir(tmp_path, elsewhere, other)
  assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_the_same_data_may_lie_elsewhere_and_differ_in_the_last_bit(toy, tmp_path):
  data = _split()
  workdir_lib.open_workdir(tmp_path, toy.config(), data)
  image = np.nextafter(data["image"][:], np.float32(1))
  elsewhere = toy.config(data={"name": "toy", "data_dir": "/elsewhere"})
  workdir_lib.open_workdir(tmp_path, elsewhere, {**data, "image": image})
  assert workdir_lib.load_config(tmp_path).data.data_dir == "/elsewhere"


def test_few_rows_are_read_to_compare_data(toy, tmp_path):
  read = []

  def rows(index):
    read.extend(index)
    return np.zeros((len(index), 2))

  data = {"image": pairing.Column(np.arange(60_000), rows)}
  workdir_lib.open_workdir(tmp_path, toy.config(), data)
  assert len(read) < 100 and {0, 59_999} <= set(read)


def test_resumed_run_refuses_other_data_but_one_without_data_json_accepts_them(toy, workdir):
  other = toy.data(seed=1)
  with pytest.raises(UserError, match="other training data: image has other contents"):
    trainer.train(toy.framework(), toy.config(), workdir, other, other)
  (workdir / "data.json").unlink()
  trainer.train(toy.framework(), toy.config(), workdir, other, other)
  with pytest.raises(UserError, match="other training data"):
    toy.train(workdir)


def test_load_config_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match="no training run"):
    workdir_lib.load_config(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-1])
  with pytest.raises(UserError, match="cannot be read"):
    workdir_lib.load_config(tmp_path)
