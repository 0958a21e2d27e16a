import dataclasses
import functools
import json
import re
import shutil

from absl import flags
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
import pytest

from experiments import evaluate, generation
from mmdiff_jax import noise as noise_lib, solvers
from mmdiff_jax.data import datasets, pairs_of_digits, rendering
from mmdiff_jax.errors import UserError
from mmdiff_jax.evaluation import coherence, frechet
from mmdiff_jax.evaluation.classifiers import Classifier
from mmdiff_jax.frameworks.base import Framework, SamplerConfig
from mmdiff_jax.modalities import Modality


@pytest.mark.slow
def test_measures_a_run(command, trained):
  ended = command(evaluate, f"--workdir={trained}", "--num=24")
  assert ended.code == 0, ended.err
  assert "7/7  tone, caption -> digit: 2 x 24 samples" in ended.out
  assert re.search(r"^\| from tone alone +\| .* ± ", ended.out, re.M)
  assert ended.out.strip().endswith(f"Picture: {trained / 'samples.png'}")
  assert Image.open(trained / "samples.png").size[0] > 500

  results = json.loads((trained / "results.json").read_text())
  settings = results["settings"]
  for name, value in {
    "num": 24,
    "seeds": [0, 1],
    "ema": True,
    "best": "",
    "solver": "dpmpp_2m",
    "steps": 2,
    "guidance": 1.0,
    "order": [],
    "last_step": "mean, no fresh noise at time 0",
  }.items():
    assert settings[name] == value
  # The subset with a modality that this run lacks is left out.
  assert list(results["joint"]["coherence"]) == ["digit+tone", "all 3"]
  assert [len(entry["given"]) for entry in results["conditional"]] == [1, 1, 1, 2, 2, 2]
  for entry in results["conditional"]:
    assert set(entry["given"]).isdisjoint(entry["targets"])
    assert len(entry["given"]) + len(entry["targets"]) == 3
    for measures in entry["targets"].values():
      assert len(measures["coherence"]["values"]) == 2
      assert measures["frechet"]["mean"] > 0
  assert sum(results["joint"]["histogram"]["majority"]) == pytest.approx(1.0)
  assert set(results["classifier_accuracy"]) == {"digit", "tone", "caption"}
  assert 0 <= results["joint"]["validity"]["caption"]["mean"] <= 1
  assert "frechet_between_halves" not in results  # Each digit image is drawn once.
  assert results["seconds"] > 0
  text = (trained / "results.md").read_text()
  assert "| digit + caption" in text
  assert {path.name for path in (trained / "classifiers").iterdir()} == {
    "digit.npz",
    "tone.npz",
    "caption.npz",
  }


@pytest.mark.slow
def test_joint_only_prints_and_writes_nothing(command, trained):
  before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
  ended = command(evaluate, f"--workdir={trained}", "--num=8", "--joint_only")
  assert ended.code == 0, ended.err
  assert re.search(r"^\| joint all 3 +\| .* ± ", ended.out, re.M)
  assert "alone" not in ended.out
  assert {p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()} == before


# A framework with exact classes: each modality is a one-hot vector of ten, and generated ones show
# the class of the given ones, except `off`, which is always one further.
NAMES = ("a", "b", "off")


def shift(name):
  return 1 if name == "off" else 0


def oracle_sample(params, key, given, targets, num, sampling):
  del params, sampling
  label = jax.random.randint(key, (num,), 0, 10)
  for x in given.values():
    label = jnp.argmax(x, -1)
  return {name: jax.nn.one_hot((label + shift(name)) % 10, 10) for name in targets}


def oracle_data(size):
  labels = np.random.default_rng(size).integers(0, 10, size).astype(np.int32)
  return {"label": labels, **{name: np.eye(10, dtype=np.float32)[labels] for name in NAMES}}


@pytest.fixture
def oracle():
  config = ml_collections.ConfigDict(
    {
      "data": {"name": "oracle"},
      "parallel": {"kind": "jit"},
      "sampling": {"solver": "heun"},
      "evaluation": {"subsets": (("a", "b"),)},
    }
  )
  framework = Framework(
    modalities=tuple(Modality(name, "image", (10,), str) for name in NAMES),
    stages=(),
    sample=oracle_sample,
    reconstruct=lambda params, data: {name: np.roll(x, 1, -1) for name, x in data.items()},
    evaluations=lambda given, targets, sampling: 100 * len(given) + len(targets),
  )
  sampling = SamplerConfig(solvers.heun, 4)
  return generation.Trained(config, framework, {}, sampling, True)


def test_results_of_a_framework_with_exact_classes(oracle):
  judge = Classifier({}, lambda params, x: (x, x))
  lines = []
  results, panels = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    {"train": oracle_data(5000), "test": oracle_data(700)},
    evaluate.list_tasks(oracle),
    num=2001,
    seeds=(3, 4),
    say=lines.append,
  )
  assert results["classifier_accuracy"] == dict.fromkeys(NAMES, 1.0)
  assert results["reconstruction_accuracy"] == dict.fromkeys(NAMES, 0.0)
  assert results["joint"]["coherence"]["a+b"]["values"] == [1.0, 1.0]
  assert results["joint"]["coherence"]["all 3"]["mean"] == 0.0
  assert results["joint"]["evaluations"] == 3
  for entry in results["conditional"]:
    for target, measures in entry["targets"].items():
      expected = 1.0 - shift(target)
      assert measures["coherence"]["values"] == [expected, expected], (entry["given"], target)
      assert (measures["total_variation"]["mean"] == 0.0) == bool(expected)
      if expected:
        assert measures["frechet"]["mean"] < 0.05
    assert entry["evaluations"] == 100 * len(entry["given"]) + 3 - len(entry["given"])
  floor = results["total_variation_floor"]
  labels = oracle_data(5000)["label"]
  assert floor == coherence.total_variation_floor(coherence.histogram(labels, 10), 2001)
  # The classes of samples are exact draws, but uniform.
  assert abs(results["joint"]["total_variation"]["a"]["mean"] - floor["mean"]) < 4 * floor["std"]
  assert results["summary"]["a, b from each other"]["mean"] == 1.0
  assert results["summary"]["into off from any other one"]["mean"] == 0.0
  assert [panel.title for panel in panels] == [
    "Generated together",
    *(f"From {', '.join(given)}" for given in coherence.proper_subsets(NAMES)),
  ]
  assert "7/7" in lines[-1]
  assert lines[-1].endswith("0:00 left")


@pytest.mark.parametrize("given", [(), ("b",)])
def test_samples_that_are_not_finite_are_named(oracle, given):
  def diverged(params, key, given, targets, num, sampling):
    return {name: jnp.full((num, 10), jnp.nan if name == "a" else 1.0) for name in targets}

  oracle = oracle._replace(framework=dataclasses.replace(oracle.framework, sample=diverged))
  judge = Classifier({}, lambda params, x: (x, x))
  data = oracle_data(60)
  with pytest.raises(UserError, match=r"60 of 60 samples of a, generated \((joint|b -> a)\)"):
    evaluate.evaluate(
      oracle,
      dict.fromkeys(NAMES, judge),
      {"train": data, "test": data},
      [(given, ("a",) if given else NAMES)],
      num=60,
      seeds=(0,),
      say=lambda line: None,
    )


def test_halves_by_source_where_examples_share_one(oracle):
  """Sources of `a` have three examples each; `off` has as many sources as examples."""
  judge = Classifier({}, lambda params, x: (x, x))
  data = oracle_data(60)
  sources = {"source_a": np.arange(60) // 3, "source_off": np.arange(60)}
  results, _ = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    {"train": data, "test": data | sources},
    [((), NAMES)],
    num=20,
    seeds=(0,),
    say=lambda line: None,
  )
  expected = frechet.between_halves(data["a"], sources["source_a"], 20)
  assert results["frechet_between_halves"] == {"a": evaluate.tables.measurement(expected)}


def test_frechet_distance_detects_missing_classes(oracle):
  def one_class(params, key, given, targets, num, sampling):
    return {name: jax.nn.one_hot(jnp.zeros(num, int), 10) for name in targets}

  oracle = oracle._replace(
    framework=Framework(
      oracle.framework.modalities, (), one_class, lambda params, data: data, lambda *_: 1
    )
  )
  judge = Classifier({}, lambda params, x: (x, x))
  data = oracle_data(500)
  results, _ = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    {"train": data, "test": data},
    [((), NAMES)],
    num=50,
    seeds=(0,),
    say=lambda line: None,
  )
  # All means are 1/10, but 1 of class 0: |m1 - m2|^2 is 0.9, and the covariance is 0 against 0.9.
  assert results["joint"]["frechet"]["a"]["mean"] == pytest.approx(1.8, abs=0.05)
  assert results["joint"]["total_variation"]["a"]["mean"] == pytest.approx(0.9, abs=0.03)
  assert results["frechet_of_training_split"]["a"] < 0.1


def copied(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "run")


def test_damaged_checkpoint(command, trained, tmp_path, refused):
  run = copied(trained, tmp_path)
  (largest, *_) = sorted(
    (path for path in (run / "checkpoints" / "score" / "2").rglob("*") if path.is_file()),
    key=lambda path: -path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  refused(command(evaluate, f"--workdir={run}"), "damaged", "Delete that folder")
  assert largest.exists()


def test_stage_without_a_checkpoint(command, trained, tmp_path, refused):
  run = copied(trained, tmp_path)
  shutil.rmtree(run / "checkpoints" / "score")
  refused(command(evaluate, f"--workdir={run}"), "'score' has not been trained", "Train it first")


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--solver=rk4", ("no solver 'rk4'", "heun")),
    ("--num=0", ("num",)),
    ("--seeds=none", ("seeds",)),
    ("--steps=-3", ("steps",)),
    ("--mode=informed", ("'mld'", "no --mode", "solver")),
  ],
)
def test_bad_arguments(command, trained, refused, argument, words):
  refused(command(evaluate, f"--workdir={trained}", argument), *words)


def test_raw_and_best_parameters_are_those_of_the_last_stage_only(trained, monkeypatch):
  """Later stages were trained on the EMA of earlier ones at their last step."""
  asked = {}

  def load_stage(workdir, stage, *, ema, best):
    del workdir
    asked[stage] = ema, best
    return {}

  monkeypatch.setattr(generation.checkpoints, "load_stage", load_stage)
  with flagsaver.as_parsed(ema="false", best="true"):
    flags.FLAGS.mark_as_parsed()
    loaded = generation.load(trained)
  assert (loaded.ema, loaded.best) == (False, "loss")
  assert asked == {f"autoencoder_{n}": (True, "") for n in ("digit", "tone", "caption")} | {
    "score": (False, "loss")
  }


def test_best_of_a_run_that_kept_none_and_of_experts(trained, tmp_path):
  config = json.loads((trained / "config.json").read_text())
  del config["monitor"]["best"]  # As in an older version.
  (tmp_path / "config.json").write_text(json.dumps(config))
  with flagsaver.as_parsed(best="true"):
    with pytest.raises(UserError, match="--config.monitor.best=METRIC"):
      generation.load(tmp_path)
    with (
      flagsaver.as_parsed(experts="a,b"),
      pytest.raises(UserError, match="--best is for one run"),
    ):
      generation.load(None)


def test_only_modalities_that_are_present_are_judged(oracle):
  """The array of a modality has other values where it is missing."""
  judge = Classifier({}, lambda params, x: (x, x))
  data = {}
  for split, size in (("train", 500), ("test", 300)):
    data[split] = oracle_data(size)
    for k, name in enumerate(NAMES):
      mask = np.arange(size) % 4 != k
      data[split][name] = np.where(mask[:, None], data[split][name], np.nan).astype(np.float32)
      data[split][f"{name}_present"] = mask
  results, _ = evaluate.evaluate(
    oracle,
    dict.fromkeys(NAMES, judge),
    data,
    evaluate.list_tasks(oracle),
    num=60,
    seeds=(0,),
    say=lambda _: None,
  )
  assert results["classifier_accuracy"] == dict.fromkeys(NAMES, 1.0)
  assert results["conditional"][0]["targets"]["b"]["coherence"]["mean"] == 1.0
  assert results["conditional"][0]["targets"]["b"]["frechet"]["mean"] < 0.3
  assert all(value < 0.3 for value in results["frechet_of_training_split"].values())


def make_run(modalities, sample, *, draws=1, **fields):
  """Returns a run of a framework that only consists of its sampler."""
  config = {
    "data": {"name": "toy"},
    "parallel": {"kind": "jit"},
    "sampling": {"solver": "heun"},
    "evaluation": {"subsets": (), "draws": draws},
  }
  framework = Framework(modalities, (), sample, lambda params, data: data, lambda *_: 1, **fields)
  sampling = SamplerConfig(solvers.heun, 4)
  return generation.Trained(ml_collections.ConfigDict(config), framework, {}, sampling, True)


def measured(run, judges, data, num, **options):
  data = {"train": data, "test": data}
  results, _ = evaluate.evaluate(
    run,
    judges,
    data,
    evaluate.list_tasks(run),
    num=num,
    seeds=(0, 1),
    say=lambda _: None,
    **options,
  )
  json.dumps(results, allow_nan=False)
  targets = {
    ("+".join(entry["given"]), name): measures
    for entry in results["conditional"]
    for name, measures in entry["targets"].items()
  }
  return results, targets


def misread(data, name, period):
  """Returns data where a modality shows the next class in every `period`-th example."""
  classes = data["label"] + (np.arange(len(data["label"])) % period == 0)
  return data | {name: np.eye(10, dtype=np.float32)[classes % 10]}


def test_recognised_are_those_whose_given_modalities_show_their_class(oracle):
  judge = Classifier({}, lambda params, x: (x, x))
  judges = dict.fromkeys(NAMES, judge)
  _, targets = measured(oracle, judges, misread(oracle_data(400), "off", 4), 400)
  # `b` shows the class of the modality that is given last.
  for given in ("off", "a+off"):
    assert targets[given, "b"]["coherence"]["values"] == [0.75, 0.75]
    assert targets[given, "b"]["recognised"]["values"] == [1.0, 1.0]
  assert targets["a", "off"]["recognised"]["mean"] == 0.0
  assert targets["a", "b"]["recognised"]["mean"] == 1.0


def test_without_recognised_examples_their_coherence_is_left_out(oracle):
  judge = Classifier({}, lambda params, x: (x, x))
  _, targets = measured(oracle, dict.fromkeys(NAMES, judge), misread(oracle_data(50), "a", 1), 40)
  assert set(targets["a", "b"]) == {"coherence", "total_variation", "frechet"}
  assert "recognised" in targets["b", "off"]


def test_labels_as_a_modality(tmp_path):
  label = Modality("label", "label", (), str, num_classes=12)

  def sample(params, key, given, targets, num, sampling):
    one = given["label"] if "label" in given else jnp.full(num, 11)
    inputs = {"a": jax.nn.one_hot(one % 10, 10), "label": one.astype(jnp.int32)}
    if "a" in given:
      inputs["label"] = jnp.argmax(given["a"], -1).astype(jnp.int32)
    return {name: inputs[name] for name in targets}

  run = make_run((Modality("a", "image", (10,), str), label), sample)
  data = oracle_data(400)
  judges = {
    "a": Classifier({}, lambda params, x: (x, x)),
    "label": evaluate.classifiers_lib.load_or_fit(label, data["label"], data["label"], tmp_path),
  }
  results, targets = measured(run, judges, misread(data, "a", 4), 400)
  assert targets["label", "a"]["recognised"] == targets["label", "a"]["coherence"]
  assert targets["label", "a"]["coherence"]["mean"] == 1.0
  assert set(targets["a", "label"]) == {"coherence", "total_variation", "recognised"}
  assert targets["a", "label"]["coherence"]["mean"] == 0.75
  assert set(results["joint"]["frechet"]) == set(results["frechet_of_training_split"]) == {"a"}
  # Classes beyond those of the data can be generated.
  assert len(results["joint"]["histogram"]["data"]) == 12


def test_adherence_with_what_was_given_and_with_other_examples(oracle):
  """Half of the examples describe their class, and none describes `silent`."""

  def adherence(given, generated, predicted):
    np.testing.assert_array_equal(predicted, generated.argmax(-1))
    adhering = {}
    if "b" in given:
      classes = given["b"].argmax(-1)
      adhering["b class"] = np.where(classes % 2, np.nan, classes == predicted)
      adhering["silent"] = np.full(len(classes), np.nan)
    return adhering

  judges = dict.fromkeys(NAMES, Classifier({}, lambda params, x: (x, x)))
  for draws in (1, 2):
    run = make_run(oracle.framework.modalities, oracle_sample, draws=draws)
    data = misread(oracle_data(3000), "b", 4)
    results, _ = measured(run, judges, data, 4000, adherence={"a": adherence, "b": None})
    for entry in results["conditional"]:
      for name, measures in entry["targets"].items():
        if name != "a":
          assert not {"adherence", "adherence_shuffled"} & set(measures)
        elif entry["given"] == ["off"]:
          assert measures["adherence"] == measures["adherence_shuffled"] == {}
        else:
          # Samples show the modality that is given last.
          expected = 0.75 if "off" in entry["given"] else 1.0
          assert (
            measures["adherence"].keys() == measures["adherence_shuffled"].keys() == {"b class"}
          )
          assert measures["adherence"]["b class"]["values"] == pytest.approx(
            [expected] * 2, abs=0.03
          )
          assert measures["adherence_shuffled"]["b class"]["mean"] == pytest.approx(0.1, abs=0.03)


def test_tasks_of_the_config_are_measured_one_by_one(oracle):
  """Given modalities may be generated again; \"together\" is how often all targets are right."""
  judges = dict.fromkeys(NAMES, Classifier({}, lambda params, x: (x, x)))
  tasks = ((("a",), ("b",)), (("a",), ("b", "off")), (("b",), ("a", "b")))
  run = make_run(oracle.framework.modalities, oracle_sample)
  run.config.evaluation.tasks = tasks
  results, _ = measured(run, judges, oracle_data(3000), 2000)
  assert [(tuple(e["given"]), tuple(e["targets"])) for e in results["conditional"]] == list(tasks)
  assert not any("similarity" in entry for entry in (results["joint"], *results["conditional"]))
  together = [entry.get("together", {}).get("mean") for entry in results["conditional"]]
  assert together[0] is None
  assert together[1] == results["conditional"][1]["targets"]["off"]["coherence"]["mean"]


@pytest.mark.parametrize("task", [((), ("a",)), (("a",), ())])
def test_tasks_without_given_or_target_are_refused(oracle, task):
  run = make_run(oracle.framework.modalities, oracle_sample)
  run.config.evaluation.tasks = (task,)
  with pytest.raises(UserError, match="evaluation.tasks.*at least one modality each"):
    evaluate.list_tasks(run)


def test_tasks_of_modalities_that_a_run_lacks_are_left_out(oracle):
  run = make_run(oracle.framework.modalities, oracle_sample)
  run.config.evaluation.tasks = ((("a",), ("b", "none")), (("none",), ("b",)), (("a",), ("b",)))
  assert evaluate.list_tasks(run) == [((), NAMES), (("a",), ("b",))]


def certain(name, key, num):
  """Returns probabilities of two classes, from noise by name: (1, 0) or (0.5, 0.5)."""
  noise = noise_lib.normal_like(key, name, jnp.zeros((num, 1)))
  both = jnp.concatenate([jnp.ones((num, 1)), jnp.zeros((num, 1))], axis=1)
  return jnp.where(noise > 0, both, 0.5)


def agreeing_sample(params, key, given, targets, num, sampling, *, shuffled=False):
  """Samples targets that all equal the first one, or the first one of the row before."""
  del params, given, sampling
  leader = certain(targets[0], key, num)
  leader = jnp.roll(leader, 1, axis=0) if shuffled else leader
  return {name: certain(name, key, num) if name == targets[0] else leader for name in targets}


def test_similarity_of_targets_generated_together_and_alone(oracle):
  """Two certain targets have the same class; otherwise they do in half of the cases."""
  judges = dict.fromkeys(("a", "off"), Classifier({}, lambda params, x: (jnp.log(x), x)))
  run = make_run(
    (oracle.framework.modalities[0], oracle.framework.modalities[2]),
    agreeing_sample,
    shuffled=functools.partial(agreeing_sample, shuffled=True),
  )
  run.config.evaluation.tasks = ((("a",), ("a",)), (("a",), ("a", "off")))
  run.config.evaluation.similarity = True
  num = 1500
  data = oracle_data(num)
  values = np.linspace(0.1, 0.9, num, dtype=np.float32)  # No two examples are equal.
  data |= {name: np.stack([values, 1 - values], 1) for name in NAMES}
  data["label"] = data["label"] % 2
  results, _ = measured(run, judges, data, num)
  assert set(results["joint"]["similarity"]) == {"a + off"}
  alone, joint = results["conditional"]
  assert "similarity" not in alone
  similarity = joint["similarity"]["a + off"]
  # 1 or a half: equally often for equal targets; for independent ones, 1 in a quarter of the rows.
  spread = {"together": 0.25, "alone": 0.1875**0.5 / 2, "shuffled": 0.1875**0.5 / 2}
  for way, mean in {"together": 0.75, "alone": 0.625, "shuffled": 0.625}.items():
    assert similarity[way]["mean"] == pytest.approx(mean, abs=0.02)
    assert similarity[way]["error"] == pytest.approx(spread[way] / (2 * num) ** 0.5, rel=0.1)
  # Paired, since targets alone and together have the same noise: a half in a quarter of the rows.
  gain = similarity["together - alone"]
  assert gain["mean"] == pytest.approx(
    similarity["together"]["mean"] - similarity["alone"]["mean"], abs=1e-6
  )
  assert gain["error"] == pytest.approx(0.1875**0.5 / 2 / (2 * num) ** 0.5, rel=0.1)
  assert abs(similarity["shuffled - alone"]["mean"]) < 0.02
  text = evaluate.tables.markdown(results | {"seconds": 1.0})
  row = next(line for line in text.splitlines() if line.startswith("| a -> a + off | a + off |"))
  assert f"{gain['mean']:.4f} ± {gain['error']:.4f}" in row and len(row.split("|")) == 2 + 2 + 5


def test_equal_content_is_one_given_example():
  """Two seeds; the last rows differ in one of the two given modalities."""
  test = {"a": np.array([[1.0], [2.0], [1.0], [1.0]]), "b": np.array([[0], [0], [0], [3]])}
  samples = [(np.array([0, 1, 2, 3]), None), (np.array([3, 3, 1, 0]), None)]
  examples = evaluate._given_examples(test, ("a", "b"), samples)
  assert len(examples) == 8 and len(set(examples)) == 3
  assert examples[0] == examples[2] == examples[7]
  assert examples[1] == examples[6]
  assert examples[3] == examples[4] == examples[5]
  assert len(set(evaluate._given_examples(test, ("a",), samples))) == 2
  assert evaluate._given_examples(test, (), samples).tolist() == list(range(8))


def test_similarity_of_one_given_example_is_left_out():
  judge = Classifier({}, lambda params, x: (np.ones((len(x), 2)), x))
  samples = [(None, {name: np.zeros((4, 1)) for name in "ab"})]
  judges, alone = {"a": judge, "b": judge}, dict.fromkeys("ab", samples)
  assert evaluate._similarity(judges, {}, "ab", np.zeros(4, int), samples, alone, None) == {}


def test_targets_alone_have_the_noise_of_targets_together(oracle):
  """If modalities do not depend on each other, every sample is the same both ways."""

  def sample(params, key, given, targets, num, sampling):
    return {name: certain(name, key, num) for name in targets}

  run = make_run((oracle.framework.modalities[0], oracle.framework.modalities[2]), sample)
  run.config.evaluation.tasks = ((("a",), ("a", "off")),)
  run.config.evaluation.similarity = True
  judges = dict.fromkeys(("a", "off"), Classifier({}, lambda params, x: (jnp.log(x), x)))
  data = {name: np.eye(2, dtype=np.float32)[np.arange(20) % 2] for name in ("a", "off")}
  results, _ = measured(run, judges, data | {"label": np.arange(20) % 2}, 40)
  for entry in (results["joint"], *results["conditional"]):
    similarity = entry["similarity"]["a + off"]
    assert similarity["together - alone"] == {"mean": 0.0, "error": 0.0}
    assert similarity["together"]["error"] > 0
    assert "shuffled" not in similarity
  # All given examples are equal: one example has no standard error.
  data["a"] = data["a"][:1].repeat(20, axis=0)
  results, _ = measured(run, judges, data | {"label": np.arange(20) % 2}, 40)
  assert results["conditional"][0]["similarity"] == {}
  assert results["joint"]["similarity"].keys() == {"a + off"}


def test_similarity_by_adherence_of_one_target_to_the_other():
  """Only pairs with a value in every way count: there are 40, 10 of each kind below."""
  kinds = np.repeat(np.arange(4), 10)
  # Adherence to b: 1 together; alone 1 for every other kind; NaN together for the last kind.
  values = {
    "together": np.where(kinds == 3, np.nan, 1.0),
    "alone": np.where(kinds == 2, np.nan, kinds % 2),
    "shuffled": np.where(kinds == 2, 0.0, kinds == 0),
  }
  ways = {way: {"a": x[:, None], "b": np.full((40, 2), 0.5)} for way, x in values.items()}
  judge = Classifier({}, lambda params, x: (np.ones((len(x), 2)), x))

  def measures(given, generated, predicted):
    assert set(given) == {"b"} and predicted.shape == (40,)
    return {"exact": np.ones(40), "b tilt": generated[:, 0], "b never": np.full(40, np.nan)}

  similarity = evaluate._similarity(
    {"a": judge, "b": judge},
    {"a": measures, "b": None},
    ("a", "b"),
    np.arange(40),
    [(None, ways["together"])],
    {name: [(None, ways["alone"])] for name in ("a", "b")},
    [(None, ways["shuffled"])],
  )
  assert set(similarity) == {"a + b", "a + b tilt"}
  means = {way: of["mean"] for way, of in similarity["a + b tilt"].items()}
  expected = {"together": 1.0, "alone": 0.5, "shuffled": 0.5}
  expected |= {"together - alone": 0.5, "shuffled - alone": 0.0}
  assert means == pytest.approx(expected)
  # Twenty pairs, half of them 1 and half 0.
  error = (0.25 * 20 / 19 / 20) ** 0.5
  assert similarity["a + b tilt"]["together - alone"]["error"] == pytest.approx(error)


def test_every_task_has_its_picture(command, run_without_classes, tmp_path):
  run = generation.load(None)
  run.config.evaluation.tasks = ((("a",), ("a", "b")), (("a", "b"), ("b",)))
  ended = command(evaluate, f"--workdir={tmp_path}", "--num=10")
  assert ended.code == 0, ended.err
  names = {"a_to_a_b.png", "a_b_to_b.png"}
  assert {path.name for path in (tmp_path / "tasks").iterdir()} == names
  for name in names:
    # Three captions and a title.
    assert Image.open(tmp_path / "tasks" / name).size[1] == pytest.approx(1.9 * 120, abs=2)
  assert "| a -> a + b" not in (tmp_path / "results.md").read_text().split("## Cost")[0]


def test_measures_of_captions_reach_the_tables():
  """Measures validity and adherence to the given image, in tasks of both kinds."""
  words = ("a thin three", "a thick three", "no sentence", "a 3")
  tokens = rendering.tokens_of(words, pairs_of_digits.CAPTION_LENGTH)
  page = np.zeros((4, 28, 28, 1), np.float32)
  page[:, 4:24, 10:18] = 1.0  # A thick stroke.

  def sample(params, key, given, targets, num, sampling):
    inputs = {
      "caption": jnp.resize(tokens, (num, tokens.shape[1])),
      "digit": jnp.resize(page, page.shape),
    }
    return {name: inputs[name] for name in targets}

  modalities = (
    Modality("caption", "text", tokens.shape[1:], str, num_classes=len(rendering.ALPHABET)),
    Modality("digit", "image", page.shape[1:], str),
  )
  run = make_run(modalities, sample)
  run.config.evaluation.tasks = ((("digit",), ("caption",)), (("caption",), ("caption", "digit")))
  three = Classifier(
    {}, lambda params, x: (jnp.eye(10)[jnp.full(len(x), 3)], jnp.ones((len(x), 1)))
  )
  results, targets = measured(
    run,
    dict.fromkeys(("caption", "digit"), three),
    {"caption": tokens, "digit": page, "label": np.full(4, 3, np.int32)},
    4,
    adherence=pairs_of_digits.ADHERENCE,
    valid=pairs_of_digits.VALID,
  )
  adherence = targets["digit", "caption"]["adherence"]
  validity = {"mean": 0.75, "std": 0.0, "values": [0.75, 0.75]}
  assert targets["digit", "caption"]["validity"] == validity
  assert targets["caption", "caption"]["validity"] == validity
  assert "validity" not in targets["caption", "digit"]
  assert results["joint"]["validity"] == {"caption": validity}
  # One of the two sentences that describe the thickness is right.
  assert adherence["digit thickness"]["mean"] == 0.5
  results["seconds"] = 1.0
  for text in (evaluate.tables.markdown(results), evaluate.tables.screen(results)):
    assert re.search(r"^\| digit -> caption +\| +50.0 \(50.0\) \|", text, re.M)
    valid = text.split("| valid, %")[1].split("\n\n")[0]
    for title in ("(joint)", "digit", "caption"):
      assert re.search(rf"^\| {re.escape(title)} +\| 75.0 ± 0.0 \|$", valid, re.M)


def test_total_variation_is_to_the_classes_of_the_given_examples(oracle):
  def one_class(params, key, given, targets, num, sampling):
    return {name: jax.nn.one_hot(jnp.full(num, 3), 10) for name in targets}

  data = oracle_data(400)
  run = make_run(oracle.framework.modalities, one_class)
  judges = dict.fromkeys(NAMES, Classifier({}, lambda params, x: (x, x)))
  _, targets = measured(run, judges, data, 400)
  # All examples are given, each once.
  expected = 1.0 - np.mean(data["label"] == 3)
  assert targets["a", "b"]["total_variation"]["values"] == pytest.approx([expected] * 2)


def test_spread_of_draws_of_one_example():
  """Draws of one example lie at 0 and at twice each pixel's scale."""
  scale = jnp.arange(10.0)

  def sample(params, key, given, targets, num, sampling):
    mean = given.get("a", jnp.zeros((num, 10)))
    moved = mean + 2 * scale * (jnp.arange(num) % 2)[:, None]
    return {name: jnp.zeros((num, 4), int) if name == "words" else moved for name in targets}

  run = make_run(
    (
      Modality("a", "image", (10,), str),
      Modality("b", "trajectory", (10,), str),
      Modality("words", "text", (4,), str, num_classes=3),
    ),
    sample,
    draws=2,
  )
  rng = np.random.default_rng(0)
  data = {name: rng.normal(size=(30, 10)).astype(np.float32) for name in "ab"}
  results, targets = measured(run, {}, data | {"words": np.zeros((30, 4), np.int32)}, 16)
  expected = float(np.sqrt(np.mean(2 * np.arange(10.0) ** 2)))
  assert targets["a", "b"]["spread"]["values"] == pytest.approx([expected] * 2, rel=1e-5)
  assert targets["a", "words"] == {}
  assert results["settings"]["draws"] == 2
  assert results["summary"] == {}
  assert set(results["joint"]) == {"evaluations", "seconds", "seconds_compiling"}


def test_masks_are_compared_with_true_ones():
  """The left one of four columns has a class that no mask has."""

  def sample(params, key, given, targets, num, sampling):
    level = given["a"] if "a" in given else jnp.zeros((num, 1))
    mask = jnp.broadcast_to(level.astype(int)[..., None], (num, 4, 4)).at[:, :, 0].set(9)
    return {name: mask if name == "mask" else level for name in targets}

  run = make_run(
    (Modality("a", "image", (1,), str), Modality("mask", "mask", (4, 4), str, num_classes=10)),
    sample,
  )
  level = np.random.default_rng(0).integers(0, 2, (20, 1))
  mask = np.broadcast_to(level[..., None], (20, 4, 4)).astype(np.int32)
  _, targets = measured(run, {}, {"a": level.astype(np.float32), "mask": mask}, 30)
  assert set(targets["a", "mask"]) == {"iou", "pixel_accuracy"}
  assert targets["a", "mask"]["iou"]["values"] == pytest.approx([(0.75 + 0.75 + 0) / 3] * 2)
  assert targets["a", "mask"]["pixel_accuracy"]["mean"] == 0.75
  assert targets["mask", "a"] == {}


def test_bound_is_computed_for_complete_examples(oracle, capsys):
  data = oracle_data(30)
  data["a_present"] = np.arange(30) % 3 > 0

  def bound(params, key, train, test):
    return {"rows": float(len(train["a"])), "bits_per_dim": 2.5}

  run = make_run(oracle.framework.modalities, oracle_sample, bound=bound)
  bits = evaluate._bound(run, {"train": data, "test": data})
  assert bits == {"rows": 20.0, "bits_per_dim": 2.5}
  assert "rows 20, bits_per_dim 2.5" in capsys.readouterr().out


@pytest.fixture
def run_without_classes(monkeypatch):
  """Replaces the run that the entry point loads; returns the options of loading data."""
  modalities = tuple(Modality(name, "text", (10,), str, num_classes=2) for name in "ab")
  data = {name: np.eye(10, dtype=np.int32) for name in "ab"}
  load_options = []

  def sample(params, key, given, targets, num, sampling):
    return {name: jnp.zeros((num, 10), jnp.int32) for name in targets}

  run = make_run(modalities, sample, draws=5, bound=lambda *_: {"total": 5.0, "bits_per_dim": 2.5})
  run.config.evaluation.update({"num": 10, "seeds": 2})
  run.config.data.place = "here"
  monkeypatch.setattr(generation, "load", lambda workdir: run)
  monkeypatch.setattr(datasets, "load", lambda **options: load_options.append(options) or data)
  monkeypatch.setattr(datasets, "adherence", lambda main, **options: None)
  monkeypatch.setattr(datasets, "valid", lambda main, **options: None)
  return load_options


def test_data_without_classes_and_with_other_options(command, run_without_classes, tmp_path):
  ended = command(
    evaluate,
    f"--workdir={tmp_path / 'run'}",
    f"--out={tmp_path / 'halves'}",
    "--data=kinds=('half',)",
    "--data=place=hall",
  )
  assert ended.code == 0, ended.err
  assert "coherence and Frechet distances are left out" in ended.out
  assert "variational bound: total 5, bits_per_dim 2.5" in ended.out
  options = {"name": "toy", "place": "hall", "kinds": ("half",)}
  assert run_without_classes == [options | {"split": split} for split in ("train", "test")]
  results = json.loads((tmp_path / "halves" / "results.json").read_text())
  assert results["settings"]["data_options"] == {"kinds": ["half"], "place": "hall"}
  assert results["bound"] == {"total": 5.0, "bits_per_dim": 2.5}
  text = (tmp_path / "halves" / "results.md").read_text()
  assert "- data_options: kinds=half, place=hall" in text
  assert [path.name for path in tmp_path.iterdir()] == ["halves"]
  written = {path.name for path in (tmp_path / "halves").iterdir()}
  assert written == {"results.json", "results.md", "samples.png"}


def test_validation_is_measured_instead_of_the_test_split(command, run_without_classes, tmp_path):
  options = run_without_classes
  generation.load("").config.data.validation = 0.1
  ended = command(evaluate, f"--workdir={tmp_path}", "--split=validation")
  assert ended.code == 0, ended.err
  assert [asked["split"] for asked in options] == ["train", "validation"]
  assert all(asked["validation"] == 0.1 for asked in options)
  assert [path.name for path in tmp_path.iterdir()] == ["validation"]
  results = json.loads((tmp_path / "validation" / "results.json").read_text())
  assert results["settings"]["split"] == "validation"
  assert "bound on the validation split" in (tmp_path / "validation" / "results.md").read_text()


def test_validation_must_have_been_held_out(command, run_without_classes, tmp_path, refused):
  for arguments, words in (
    (["--split=validation"], "--config.data.validation=0.1"),
    (["--split=validation", "--data=validation=0.1"], "decided by the training"),
  ):
    refused(command(evaluate, f"--workdir={tmp_path}", *arguments), words)
  assert not run_without_classes


def test_bound_is_left_out_where_joint_samples_are_compared(command, run_without_classes, tmp_path):
  ended = command(evaluate, f"--workdir={tmp_path}", "--joint_only")
  assert ended.code == 0, ended.err
  assert "bound" not in ended.out
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("argument", "words"), [("--data=kinds", "--data=OPTION=VALUE"), ("--num=12", "multiple of 5")]
)
def test_bad_options_and_draws(command, run_without_classes, tmp_path, refused, argument, words):
  refused(command(evaluate, f"--workdir={tmp_path}", argument), words)
