import re

import pytest

from mmdiff_jax.evaluation import coherence, tables

NAMES = ("a", "b", "c")
# Coherence of the pairs, one value per seed.
PAIRS = {
  ("a", "b"): (0.5, 0.7),
  ("a", "c"): (0.9, 0.9),
  ("b", "a"): (0.2, 0.4),
  ("b", "c"): (0.8, 0.6),
  ("c", "a"): (1.0, 0.8),
  ("c", "b"): (0.1, 0.3),
}


COHERENCE = PAIRS | {("a", "b", "c"): (0.3, 0.6)}


@pytest.fixture
def results():
  one = tables.measurement([0.25, 0.75])
  conditional = [
    {
      "given": list(given),
      "targets": {
        name: {"coherence": tables.measurement(COHERENCE.get((*given, name), (1.0, 1.0)))}
        | {"frechet": one}
        for name in NAMES
        if name not in given
      },
      "evaluations": 32,
      "seconds": 1.5,
      "seconds_compiling": 2.5,
    }
    for given in coherence.proper_subsets(NAMES)
  ]
  joint = {
    "coherence": {"a+b": one, "all 3": one},
    "frechet": dict.fromkeys(NAMES, one),
    "histogram": {"a": [0.5, 0.5], "majority": [0.4, 0.6], "data": [0.5, 0.5]},
    "total_variation": {"a": one, "majority": one},
    "evaluations": 32,
    "seconds": 1.0,
    "seconds_compiling": 2.0,
  }
  settings = {
    "modalities": list(NAMES),
    "seeds": [0, 1],
    "num": 1000,
    "draws": 1,
    "solver": "heun",
    "steps": 16,
    "guidance": 1.5,
    "order": [["a"], ["b", "c"]],
    "subsets": [["a", "c"]],
  }
  accuracy = dict.fromkeys(NAMES, 0.98765)
  results = {
    "settings": settings,
    "joint": joint,
    "conditional": conditional,
    "classifier_accuracy": accuracy,
    "reconstruction_accuracy": accuracy,
    "total_variation_floor": {"mean": 0.0378, "std": 0.0096},
    "frechet_of_training_split": dict.fromkeys(NAMES, 0.125),
    "seconds": 61.0,
  }
  return results | {"summary": tables.summary(results)}


def test_measurement():
  measured = tables.measurement([1.0, 2.0, 3.0])
  assert measured == {"mean": 2.0, "std": 1.0, "values": [1.0, 2.0, 3.0]}
  assert tables.measurement([4.0])["std"] == 0.0


def test_summary_takes_the_right_pairs(results):
  summary = results["summary"]
  assert list(summary)[:2] == ["joint a+b", "joint all 3"]
  assert summary["joint a+b"]["mean"] == 0.5
  alone = summary["from b alone"]
  assert alone["values"] == pytest.approx([0.5, 0.5])
  assert alone["mean"] == pytest.approx(0.5)
  assert alone["std"] == pytest.approx(0.0, abs=1e-12)
  assert alone["min"] == pytest.approx(0.3)
  into = summary["into b from any other one"]
  assert into["values"] == pytest.approx([0.3, 0.5])
  assert into["min"] == pytest.approx(0.2)
  rest = summary["a, c from each other"]
  assert rest["values"] == pytest.approx([0.95, 0.85])
  assert rest["min"] == pytest.approx(0.9)
  every = summary["all 3 from each other"]
  assert every["mean"] == pytest.approx(0.6)
  assert every["min"] == pytest.approx(0.2)
  last = summary["each from all others"]
  assert last["values"] == pytest.approx([(0.3 + 1 + 1) / 3, (0.6 + 1 + 1) / 3])
  assert last["min"] == pytest.approx(0.45)
  assert len(summary) == 2 + 3 + 2 * len(NAMES)


def test_two_modalities_are_a_pair_and_no_more(results):
  results["settings"] |= {"modalities": ["a", "b"], "subsets": []}
  results["conditional"] = [
    entry | {"targets": {n: x for n, x in entry["targets"].items() if n != "c"}}
    for entry in results["conditional"]
    if entry["given"] in (["a"], ["b"])
  ]
  summary = list(tables.summary(results))
  assert summary == ["joint a+b", "joint all 3", "all 2 from each other"]


def test_without_conditionals_there_are_joint_rows_alone(results):
  results["conditional"] = []
  assert list(tables.summary(results)) == ["joint a+b", "joint all 3"]


def cells(text, row):
  (line,) = re.findall(rf"^\| {re.escape(row)} +\|(.*)\|$", text, re.M)
  return [cell.strip() for cell in line.split("|")]


def test_screen_has_all_results_in_aligned_columns(results):
  text = tables.screen(results)
  assert cells(text, "from b alone") == ["50.0 ± 0.0", "30.0"]
  assert cells(text, "joint a+b") == ["50.0 ± 35.4", ""]
  assert cells(text, "b") == ["30.0 ± 14.1", "", "70.0 ± 14.1"]
  assert cells(text, "on data") == ["98.8"] * 3
  assert "2 seeds of 1,000 samples, heun with 16 steps, guidance 1.5" in text
  for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.M):
    assert len({len(line) for line in table.strip().splitlines()}) == 1


def test_markdown_has_every_subset_and_setting(results):
  text = tables.markdown(results)
  for given in coherence.proper_subsets(NAMES):
    assert len(re.findall(rf"^\| {re.escape(' + '.join(given))} +\|", text, re.M)) >= 3
  for line in ("- num: 1000", "- order: a, b, c", "- solver: heun"):
    assert line in text
  assert cells(text, "training split") == ["0.12"] * 3
  assert cells(text, "majority") == ["40.0", "60.0"]
  assert "Masks" not in text
  assert "draws" not in text.split("## Settings")[0]
  assert "bound" not in text


def test_every_table_with_a_spread_explains_it(results):
  estimates = {"together": {"mean": 0.5, "error": 0.25}}
  results["joint"]["similarity"] = {"a + b": estimates}
  results["joint"]["validity"] = {"a": tables.measurement([0.5, 0.75])}
  sections = tables.markdown(results).split("## ")[1:]
  spreads = [text for text in sections if re.search(r"^\|.* ± |: a .* ± ", text, re.M)]
  assert len(spreads) >= 6
  for text in spreads:
    explanation = "over sampling seeds of one trained model. The spread over training seeds"
    if text.startswith("SIM"):
      explanation = "standard error of the mean over the examples given, of one trained model"
    assert text.count(explanation) == 1, text
  assert all("trained model" not in text for text in sections if text not in spreads)
  for text in (tables.screen(results), *spreads):
    assert " ± " in text and text.count("one trained model") in (1, 2)
  results["settings"]["seeds"] = [3]
  assert "One sampling seed of one trained model: no spread is measured" in tables.screen(results)


def test_sections_exist_for_all_measured_quantities(results):
  first = results["conditional"][0]["targets"]
  first["b"] |= {
    "recognised": tables.measurement([0.75, 0.25]),
    "iou": tables.measurement([0.125]),
    "pixel_accuracy": tables.measurement([0.375]),
  }
  first["b"]["total_variation"] = tables.measurement([0.03125])
  first["c"]["spread"] = tables.measurement([0.0625])
  results["settings"]["draws"] = 4
  results["bound"] = {"prior": 0.25, "nll_a": 7.75, "total": 8.0, "bits_per_dim": 2.0}
  sections = dict(part.split("\n", 1) for part in tables.markdown(results).split("## ")[1:])
  for title, row in {
    "Coherence where the": ["", "50.0 ± 35.4", ""],
    "Masks: mean": ["", "12.5 ± 0.0", ""],
    "Masks: pixels": ["", "37.5 ± 0.0", ""],
    "Total variation of the": ["", "0.0312 ± 0.0000", ""],
    "Standard deviation of 4 draws": ["", "", "0.0625 ± 0.0000"],
  }.items():
    (text,) = (text for name, text in sections.items() if name.startswith(title))
    assert cells(text, "a") == row
  (text,) = (text for name, text in sections.items() if name.startswith("Variational bound"))
  assert cells(text, "nll_a") == ["7.75", "1.938"]
  assert cells(text, "total") == ["8", "2"]
  screen = tables.screen(results)
  floor = "1,000 samples of a perfect sampler are at 0.038 ± 0.010 by chance."
  assert floor in screen
  for title in ("Total variation of the", "Classes of joint samples"):
    (text,) = (text for name, text in sections.items() if name.startswith(title))
    assert floor in text
  assert "| IoU of masks, %" in screen
  assert "| spread of draws" in screen
  assert "37.5" not in screen


def test_yardsticks_are_no_floors(results):
  text = tables.markdown(results)
  assert "a yardstick and no floor" in text
  assert "least" not in text and "halves by source" not in text
  results["frechet_between_halves"] = {"b": tables.measurement([18.0, 20.0])}
  text = tables.markdown(results)
  assert cells(text, "halves by source") == ["", "19.00 ± 1.41", ""]
  assert "five random halvings" in text


def test_adherence_has_a_row_for_each_subset_that_is_measured(results):
  measurement = lambda *values: tables.measurement(values)  # noqa: E731
  first, _, third, fourth = (entry["targets"] for entry in results["conditional"][:4])
  first["b"] |= {
    "adherence": {"edges": measurement(0.9, 0.962)},
    "adherence_shuffled": {"edges": measurement(0.41)},
  }
  third["b"] |= {
    "adherence": {"edges": measurement(0.5), "words": measurement(1.0)},
    "adherence_shuffled": {"words": measurement(0.125)},
  }
  next(iter(fourth.values())).update({"adherence": {}, "adherence_shuffled": {}})
  titled = tables.markdown(results).split("## Adherence to what was given, in per cent")[1]
  for text in (titled.split("## ")[0], tables.screen(results).split("adherence, % (shuffled)")[1]):
    table = text.split("\n\n| coherence")[0]
    assert cells(table, "a")[:2] == ["93.1 (41.0)", ""]
    assert cells(table, "c")[:2] == ["", "100.0 (12.5)"]
  assert not re.search(r"^\| (b|a \+ b) +\|", titled.split("## ")[0], re.M)
  # With several targets, each has its own rows.
  first["c"] |= {
    "adherence": {"edges": measurement(0.1)},
    "adherence_shuffled": {"edges": measurement(0.2)},
  }
  text = tables.markdown(results).split("## Adherence to what was given, in per cent")[1]
  assert cells(text, "a -> c")[0] == "10.0 (20.0)"


def test_tasks_with_the_same_given_modalities_have_distinct_titles(results):
  measurement = tables.measurement([0.5])
  one = results["conditional"][0]
  other = one | {"targets": {"c": one["targets"]["c"]}, "together": measurement}
  results["conditional"].append(other)
  text = tables.markdown(results)
  assert cells(text.split("## Cost")[1], "a -> c")
  table = text.split("## Samples all of whose targets")[1].split("## ")[0]
  assert cells(table, "a -> c") == ["50.0 ± 0.0"]


def test_summary_leaves_out_regenerated_targets_and_prefers_single_targets(results):
  """It also states the number of pairs."""

  def entry(given, **targets):
    measures = {name: {"coherence": tables.measurement([x])} for name, x in targets.items()}
    return {"given": given, "targets": measures}

  results["conditional"] = [
    entry(["a"], b=0.5),
    entry(["a"], a=0.0, b=0.1, c=0.7),
    entry(["a", "b"], b=0.2),
    entry(["a", "b"], c=0.25),
  ]
  summary = tables.summary(results)
  assert summary["all 3 from each other (2 of 6 pairs)"]["mean"] == pytest.approx(0.6)
  assert summary["a, c from each other (1 of 2 pairs)"]["mean"] == pytest.approx(0.7)
  assert summary["from a alone"]["values"] == pytest.approx([0.6])
  assert "into a from any other one" not in summary
  assert summary["each from all others"]["values"] == [0.25]


def test_adherence_of_a_target_in_several_tasks_has_distinct_titles(results):
  measurement = tables.measurement([0.5])
  first = results["conditional"][0]
  measured = {"adherence": {"edges": measurement}, "adherence_shuffled": {"edges": measurement}}
  first["targets"]["b"] |= measured
  results["conditional"].append(first | {"targets": {"b": measured}})
  text = tables.screen(results).split("adherence, % (shuffled)")[1]
  assert cells(text, "a -> b + c: b") == cells(text, "a -> b") == ["50.0 (50.0)"]


def test_without_classes(results):
  for key in ("classifier_accuracy", "reconstruction_accuracy", "frechet_of_training_split"):
    del results[key]
  del results["total_variation_floor"]
  for key in ("coherence", "frechet", "histogram", "total_variation"):
    del results["joint"][key]
  for entry in results["conditional"]:
    entry["targets"] = {name: {} for name in entry["targets"]}
  results["summary"] = tables.summary(results)
  assert results["summary"] == {}
  sentence = "coherence and Frechet distances are left out"
  assert "| " not in tables.screen(results)
  assert sentence in tables.screen(results)
  text = tables.markdown(results)
  assert sentence in text
  assert [line for line in text.splitlines() if line.startswith("## ")] == [
    "## Cost",
    "## Settings",
  ]


@pytest.mark.parametrize(("num", "reference"), [(64, 700), (1000, 64)])
def test_too_few_samples_are_reported_once(results, num, reference):
  settings = results["settings"]
  settings |= {"num": num, "frechet_reference_samples": reference}
  settings["frechet_sizes"] = {"a": 64, "b": 63, "c": 128}
  results["conditional"] = []
  for text in (tables.markdown(results), tables.screen(results)):
    assert text.count("Too few samples: 64 for so many features (a has 64, c has 128)") == 1
  settings["frechet_sizes"] = dict.fromkeys(NAMES, 63)
  assert "Too few samples" not in tables.markdown(results)


def test_labels_have_no_frechet_distance(results):
  del results["joint"]["frechet"]["b"], results["frechet_of_training_split"]["b"]
  for entry in results["conditional"]:
    entry["targets"].get("b", {}).pop("frechet", None)
  text = tables.markdown(results)
  assert cells(text.split("## Frechet")[1].split("## ")[0], "(joint)") == [
    "0.50 ± 0.35",
    "",
    "0.50 ± 0.35",
  ]
  assert cells(text, "training split") == ["0.12", "", "0.12"]
