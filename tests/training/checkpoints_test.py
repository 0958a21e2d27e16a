import json
import shutil

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmdiff_jax.data import pairing
from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  return tmp_path_factory.mktemp("finished")


@pytest.fixture
def workdir(toy, finished, tmp_path):
  """A finished run, of which the test may break its own copy."""
  if not (finished / "run").exists():
    trainer.train(toy.framework(), toy.config(), finished / "run", toy.data(), toy.data(8))
  shutil.copytree(finished / "run", tmp_path / "run")
  return tmp_path / "run"


def train(toy, workdir, **fields):
  return trainer.train(toy.framework(), toy.config(**fields), workdir, toy.data(), toy.data(8))


def test_keeps_the_last_two_and_their_checksums(workdir):
  names = {path.name for path in (workdir / "checkpoints" / "second_stage").iterdir()}
  assert names == {"8", "8.sha256.json", "12", "12.sha256.json"}


def test_load_params_merges_stages_and_constants(toy, workdir):
  params = checkpoints.load_params(toy.framework(), workdir)
  assert set(params) == {"first", "second", "mean"}
  np.testing.assert_allclose(params["mean"], toy.data()["image"].reshape(-1, 16).mean(0))
  raw = checkpoints.load_params(toy.framework(), workdir, ema=False)
  assert not np.array_equal(params["second"]["w"], raw["second"]["w"])
  # What the last stage was trained upon stays as it was.
  for name in ("first", "mean"):
    jax.tree.map(np.testing.assert_array_equal, params[name], raw[name])


def test_load_params_of_an_untrained_stage(toy, workdir):
  shutil.rmtree(workdir / "checkpoints" / "second_stage")
  with pytest.raises(UserError, match=r"'second_stage' has not been trained .*experiments\.train"):
    checkpoints.load_params(toy.framework(), workdir)


def test_one_flipped_bit_in_any_file_is_found(workdir):
  step = workdir / "checkpoints" / "first_stage" / "12"
  checkpoints.verify(step)
  files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
  assert len(files) > 5
  for path in files:
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    with pytest.raises(UserError, match="has changed since") as error:
      checkpoints.verify(step)
    assert str(path) in str(error.value)
    path.write_bytes(good)
  checkpoints.verify(step)


@pytest.mark.parametrize("damage", ["cut", "missing", "half checksums", "extra"])
def test_damage_is_named_and_the_checkpoint_before_takes_over(toy, workdir, damage, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  step = workdir / "checkpoints" / "second_stage" / "12"
  seal = step.with_name("12.sha256.json")
  largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  match damage:
    case "cut":
      largest.write_bytes(largest.read_bytes()[:-1])
    case "missing":
      largest.unlink()
    case "half checksums":
      seal.write_text(seal.read_text()[:50])
    case "extra":
      largest = step / "model" / "more"
      largest.write_text("more")
  with pytest.raises(UserError, match="Delete that folder") as error:
    checkpoints.load_params(toy.framework(), workdir)
  assert str(seal if "checksums" in damage else largest) in str(error.value)
  assert "\n" not in str(error.value)

  capsys.readouterr()
  after = train(toy, workdir)
  said = capsys.readouterr().out
  for word in ("WARNING: second_stage", "step 12 is damaged", "from step 8"):
    assert word in said
  assert "first_stage: trained already" in said
  jax.tree.map(np.testing.assert_array_equal, before, after)
  checkpoints.verify(step)
  (aside,) = (workdir / "damaged").iterdir()
  assert {path.name for path in aside.iterdir()} == {"12", "12.sha256.json"}


def test_with_all_checkpoints_damaged_the_stage_starts_again(toy, workdir, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  for step in ("8", "12"):
    folder = workdir / "checkpoints" / "second_stage" / step / "training"
    file = next(path for path in folder.rglob("d/*"))
    file.write_bytes(bytes(file.stat().st_size))
  capsys.readouterr()
  jax.tree.map(np.testing.assert_array_equal, before, train(toy, workdir))
  said = capsys.readouterr().out
  assert "step 12 is damaged" in said and "step 8 is damaged" in said
  assert "second_stage: 12 steps, " in said


@pytest.mark.parametrize("killed", ["while writing", "before the checksums"])
def test_a_save_that_was_killed_does_not_count(toy, workdir, killed, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  step = workdir / "checkpoints" / "second_stage" / "12"
  step.with_name("12.sha256.json").unlink()
  if killed == "while writing":
    step.rename(step.with_name("12.orbax-checkpoint-tmp"))
  assert checkpoints.latest_step(workdir, "second_stage") == 8
  jax.tree.map(np.testing.assert_array_equal, before, train(toy, workdir))
  assert ("cut off" in capsys.readouterr().out) == (killed == "before the checksums")
  checkpoints.verify(step)
  assert not list(step.parent.glob("*tmp*"))


def test_a_copy_without_any_checksums_is_refused_rather_than_dropped(toy, workdir):
  for seal in workdir.rglob("second_stage/*.sha256.json"):
    seal.unlink()
  with pytest.raises(UserError, match=r"12\.sha256\.json are missing"):
    train(toy, workdir)
  assert (workdir / "checkpoints" / "second_stage" / "12").exists()


def test_a_checkpoint_of_other_shapes(toy, workdir):
  shutil.rmtree(workdir / "checkpoints" / "first_stage" / "12")
  (workdir / "data.json").unlink()
  data = {**toy.data(), "sound": toy.data()["sound"][:, :1]}
  with pytest.raises(UserError, match="other shapes"):
    trainer.train(toy.framework(), toy.config(), workdir, data, data)


@pytest.mark.parametrize("complete", [True, False])
def test_a_checkpoint_of_another_stage(toy, workdir, complete):
  first, second = (workdir / "checkpoints" / f"{name}_stage" for name in ("first", "second"))
  shutil.rmtree(second)
  shutil.copytree(first, second)
  if not complete:
    shutil.rmtree(second / "12")
  for call in (train, lambda toy, workdir: checkpoints.load_params(toy.framework(), workdir)):
    with pytest.raises(UserError, match="not of the stage 'second_stage' but of 'first_stage'"):
      call(toy, workdir)


def test_meta_says_what_was_trained(toy, workdir):
  with checkpoints.manager(workdir, "second_stage") as ckpt:
    meta = ckpt.restore(12, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
  assert meta["stage"] == "second_stage"
  assert meta["step"] == 12
  assert meta["config"]["seed"] == toy.config().seed


def test_another_config_is_refused_and_changes_nothing(toy, workdir):
  before = (workdir / "config.json").read_text()
  with pytest.raises(UserError) as error:
    train(toy, workdir, seed=4, extra=1, data={"name": "other", "data_dir": None})
  for words in ("data.name was \"toy\", now \"other\"", "seed was 3, now 4",
                "extra was not there, now 1", "--workdir"):  # fmt: skip
    assert words in str(error.value)
  assert (workdir / "config.json").read_text() == before


def test_fields_that_do_not_change_training_may_differ(tmp_path):
  def config(value, modalities):
    fields = {name: {"x": value} for name in ("monitor", "sampling", "evaluation")}
    return ml_collections.ConfigDict(
      {**fields, "data": {"name": "toy", "data_dir": value}, "modalities": modalities}
    )

  data = {"image": np.zeros((3, 2))}
  checkpoints.claim_workdir(tmp_path, config("a", ("image", "words")), data)
  checkpoints.claim_workdir(tmp_path, config("b", ("image", "words")), data)
  # The newest one counts, and tuples come back as tuples.
  assert checkpoints.load_config(tmp_path) == config("b", ("image", "words"))
  with pytest.raises(UserError, match="modalities was"):
    checkpoints.claim_workdir(tmp_path, config("b", ("image",)), data)


def test_a_field_that_is_not_set_is_as_none(tmp_path):
  data = {"image": np.zeros((3, 2))}
  fields = {"seed": 3, "autoencoder": {"latent": 4}}
  checkpoints.claim_workdir(tmp_path, ml_collections.ConfigDict(fields), data)
  fields["autoencoder"]["use"] = None
  checkpoints.claim_workdir(tmp_path, ml_collections.ConfigDict(fields), data)
  fields["autoencoder"]["use"] = "theirs:networks"
  with pytest.raises(UserError, match='autoencoder.use was not there, now "theirs:networks"'):
    checkpoints.claim_workdir(tmp_path, ml_collections.ConfigDict(fields), data)


def _split(**change):
  """A split of 1,000 examples, one of its modalities made when read and one with gaps."""
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
  checkpoints.claim_workdir(tmp_path, toy.config(), _split())
  before = {path: path.read_text() for path in tmp_path.iterdir()}
  elsewhere = toy.config(data={"name": "toy", "data_dir": "/elsewhere"})
  with pytest.raises(UserError, match=f"made with other training data.*{words}.*data.json"):
    checkpoints.claim_workdir(tmp_path, elsewhere, other)
  assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_same_data_may_come_from_elsewhere_and_differ_in_the_last_bit(toy, tmp_path):
  data = _split()
  checkpoints.claim_workdir(tmp_path, toy.config(), data)
  image = np.nextafter(data["image"][:], np.float32(1))
  elsewhere = toy.config(data={"name": "toy", "data_dir": "/elsewhere"})
  checkpoints.claim_workdir(tmp_path, elsewhere, {**data, "image": image})
  assert checkpoints.load_config(tmp_path).data.data_dir == "/elsewhere"


def test_few_rows_are_read_to_compare_data(toy, tmp_path):
  read = []

  def rows(index):
    read.extend(index)
    return np.zeros((len(index), 2))

  data = {"image": pairing.Column(np.arange(60_000), rows)}
  checkpoints.claim_workdir(tmp_path, toy.config(), data)
  assert len(read) < 100 and {0, 59_999} <= set(read)


def test_resumed_run_refuses_other_data_and_an_older_one_takes_what_there_is(toy, workdir):
  other = toy.data(seed=1)
  with pytest.raises(UserError, match="other training data: image has other contents"):
    trainer.train(toy.framework(), toy.config(), workdir, other, other)
  (workdir / "data.json").unlink()
  trainer.train(toy.framework(), toy.config(), workdir, other, other)
  with pytest.raises(UserError, match="other training data"):
    train(toy, workdir)


def test_load_config_of_no_run(tmp_path):
  with pytest.raises(UserError, match="no training run"):
    checkpoints.load_config(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-1])
  with pytest.raises(UserError, match="cannot be read"):
    checkpoints.load_config(tmp_path)
