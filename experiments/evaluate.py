"""Measures a trained framework: coherence and Frechet distances, joint and from every subset.

python -m experiments.evaluate --workdir=DIR [--num=N --seeds=K --solver=NAME --steps=N
  --guidance=G --noema --joint_only]

Writes `results.json`, `results.md` and `samples.png` into the workdir. The classifiers that judge
are trained on first use and kept in `DIR/classifiers`. With `--joint_only`, to compare solvers, it
looks at joint samples alone, shows the numbers and writes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from experiments import generation, setup
from mmdiff_jax import multitime
from mmdiff_jax.data import datasets, missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.evaluation import classifiers, coherence, frechet, pictures, tables
from mmdiff_jax.evaluation.classifiers import Classifier
from mmdiff_jax.training import checkpoints

_SEEDS = flags.DEFINE_integer("seeds", None, "How many sampling seeds.", lower_bound=1)
_JOINT_ONLY = flags.DEFINE_bool("joint_only", False, "Judge joint samples only, write nothing.")

_SHOWN = 10  # Samples in a panel of the picture.

Data = Mapping[str, np.ndarray]


def main(argv: Sequence[str]) -> None:
  """Loads the run, gets the classifiers, samples, judges and writes."""
  del argv
  began = time.monotonic()
  workdir = setup.WORKDIR.value
  trained = generation.load(workdir)
  config = trained.config
  data = {s: datasets.load(**config.data.to_dict(), split=s) for s in ("train", "test")}
  if "label" not in data["train"]:
    raise UserError(
      f"The examples of {config.data.name!r} have no classes, by which samples are judged. A folder"
      " has them with a column `label` (README, Your own data); experiments.sample needs none."
    )
  judges = {}
  for modality in trained.framework.modalities:
    labelled = missing.complete(data["train"], [modality.name, "label"])
    judges[modality.name] = classifiers.load_or_fit(
      modality,
      labelled[modality.name],
      np.asarray(labelled["label"]),
      pathlib.Path(workdir) / "classifiers",
      num_steps=config.evaluation.get("classifier_steps"),
      say=_say,
    )
  num = generation.NUM.value or config.evaluation.num
  seeds = range(_SEEDS.value or config.evaluation.seeds)
  subsets = [()] if _JOINT_ONLY.value else [(), *coherence.proper_subsets(tuple(judges))]
  results, panels = evaluate(trained, judges, data, subsets, num=num, seeds=seeds)
  results["seconds"] = time.monotonic() - began
  if _JOINT_ONLY.value:
    print(f"\n{tables.screen(results)}", flush=True)
    return
  picture = _write(workdir, trained, results, panels)
  print(f"\n{tables.screen(results)}\nPicture: {picture}", flush=True)


def _say(line: str) -> None:
  print(line, flush=True)


def _write(workdir, trained, results, panels) -> pathlib.Path:
  folder = pathlib.Path(workdir)
  checkpoints.write_atomically(folder / "results.json", json.dumps(results, indent=1))
  checkpoints.write_atomically(folder / "results.md", tables.markdown(results) + "\n")
  pictures.draw(folder / "samples.png", trained.framework.modalities, panels)
  return folder / "samples.png"


def evaluate(
  trained: generation.Trained,
  judges: Mapping[str, Classifier],
  data: Mapping[str, Data],
  subsets: Sequence[tuple[str, ...]],
  *,
  num: int,
  seeds: Sequence[int],
  say: Callable[[str], None] = _say,
) -> tuple[dict[str, Any], list[pictures.Panel]]:
  """Samples from each subset given, and judges.

  Args:
    trained: from `generation.load`.
    judges: a classifier of each modality.
    data: splits "train" and "test" in the model's view, with "label". What is given comes from the
      test split, other rows (or another order) at each seed. Of examples that lack modalities
      (`data.missing`) those that have all are used.
    subsets: what is given each time; the empty one, joint samples, must be among them.
    num: samples a seed.
    seeds: the sampling seeds.
    say: takes lines of progress.

  Returns:
    The results as `tables` reads them, but for the whole wall time; and panels of samples.
  """
  names = tuple(modality.name for modality in trained.framework.modalities)
  train, test = (missing.complete(data[split], (*names, "label")) for split in ("train", "test"))
  labels, train_labels = np.asarray(test["label"]), np.asarray(train["label"])
  num_classes = int(train_labels.max()) + 1
  truth = {name: classifiers.classify(judges[name], test[name]) for name in names}
  references = {name: frechet.fit(features) for name, (_, features) in truth.items()}
  rebuilt = trained.framework.reconstruct(trained.params, {name: test[name] for name in names})
  results = {
    "settings": _settings(trained, names, num, seeds),
    "classifier_accuracy": {name: float(np.mean(truth[name][0] == labels)) for name in names},
    "reconstruction_accuracy": classifiers.accuracy(judges, rebuilt, labels),
    "frechet_of_training_split": {
      name: frechet.distance(
        references[name], frechet.fit(_judge(judges, name, train[name][:num])[1])
      )
      for name in names
    },
    "conditional": [],
  }
  for title, key in (("data", "classifier_accuracy"), ("rebuilt", "reconstruction_accuracy")):
    shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in results[key].items())
    say(f"classifiers on test {title}: {shown}")

  panels = []
  began = time.monotonic()
  for done, given in enumerate(subsets):
    targets = tuple(name for name in names if name not in given)
    samples, cost = _sample(trained, test, given, targets, num, seeds)
    judged = [{name: _judge(judges, name, x[name]) for name in targets} for _, x in samples]
    classes = [{name: found[0] for name, found in seed.items()} for seed in judged]
    distances = {
      name: tables.measurement(
        [frechet.distance(references[name], frechet.fit(seed[name][1])) for seed in judged]
      )
      for name in targets
    }
    if given:
      entry = {"given": list(given), "targets": {}}
      for name in targets:
        hits = [
          coherence.conditional(seed[name], labels[rows])
          for seed, (rows, _) in zip(classes, samples, strict=True)
        ]
        entry["targets"][name] = {
          "coherence": tables.measurement(hits),
          "frechet": distances[name],
        }
      results["conditional"].append(entry | cost)
    else:
      law = coherence.histogram(train_labels, num_classes)
      results["joint"] = _joint(trained.config, names, classes, law) | cost
      results["joint"]["frechet"] = distances
    if len(given) <= 1:
      panels.append(_panel(test, given, samples[0]))
    left = (time.monotonic() - began) * (len(subsets) - done - 1) / (done + 1)
    say(
      f"{done + 1:2d}/{len(subsets)}  {_arrow(given, targets)}: {len(seeds)} x {num:,} samples, "
      f"{cost['seconds']:.1f} s a seed; {left // 60:.0f}:{left % 60:02.0f} left"
    )
  results["summary"] = tables.summary(results)
  return results, panels


def _judge(judges, name, x):
  return classifiers.classify(judges[name], x)


def _arrow(given, targets):
  return f"{', '.join(given)} -> {', '.join(targets)}" if given else "joint"


def _settings(trained, names, num, seeds) -> dict[str, Any]:
  """All that can move a Frechet distance, and what else one must know to repeat the numbers."""
  return {
    "data": trained.config.data.name,
    "modalities": list(names),
    "num": num,
    "seeds": list(seeds),
    "ema": trained.ema,
    "solver": trained.config.sampling.solver,
    "steps": trained.sampling.steps,
    "guidance": trained.sampling.guidance,
    "order": [list(group) for group in trained.sampling.order],
    "subsets": _subsets(trained.config, names),
    "grid_power": trained.config.sampling.get("grid_power"),
    "last_step": "mean, no fresh noise at time 0",
    "frechet_reference": "all of the test split",
    "frechet_features": "last hidden layer of each modality's classifier",
    "device": jax.devices()[0].device_kind,
  }


def _sample(trained, test, given, targets, num, seeds):
  """Samples of each seed, with the rows of the test split that were given, and what they cost."""
  generator = generation.generator(trained, test, given, targets, num)
  samples = []
  began = time.monotonic()
  for seed in seeds:
    rng = np.random.default_rng(seed)
    size = len(test["label"])
    rows = np.concatenate([rng.permutation(size) for _ in range(-(-num // size))])[:num]
    key = multitime.modality_key(jax.random.key(seed), _arrow(given, targets))
    samples.append((rows, generator.generate(key, {name: test[name][rows] for name in given})))
  return samples, {
    "evaluations": trained.framework.evaluations(given, targets, trained.sampling),
    "seconds": (time.monotonic() - began) / len(seeds),
    "seconds_compiling": generator.seconds,
  }


def _subsets(config, names) -> list[list[str]]:
  # A run with fewer modalities than its data set has may lack some.
  return [list(subset) for subset in config.evaluation.subsets if set(subset) < set(names)]


def _joint(config, names, classes, law) -> dict[str, Any]:
  """Coherence and classes of joint samples; `law` is the data's share of each class."""
  num_classes = len(law)
  first = names[0]
  laws = {
    first: [coherence.histogram(seed[first], num_classes) for seed in classes],
    "majority": [
      coherence.histogram(coherence.majority(seed, num_classes), num_classes) for seed in classes
    ],
  }
  agreement = {
    "+".join(subset): [coherence.joint(seed, subset) for seed in classes]
    for subset in _subsets(config, names)
  }
  agreement[f"all {len(names)}"] = [coherence.joint(seed, names) for seed in classes]
  return {
    "coherence": {name: tables.measurement(values) for name, values in agreement.items()},
    "histogram": {name: np.mean(found, 0).tolist() for name, found in laws.items()}
    | {"data": law.tolist()},
    "total_variation": {
      name: tables.measurement([coherence.total_variation(one, law) for one in found])
      for name, found in laws.items()
    },
  }


def _panel(test, given, sampled) -> pictures.Panel:
  rows, samples = sampled
  shown = {name: test[name][rows[:_SHOWN]] for name in given}
  shown |= {name: x[:_SHOWN] for name, x in samples.items()}
  return pictures.Panel(f"From {given[0]}" if given else "Generated together", shown, given)


if __name__ == "__main__":
  setup.run(main, required=("workdir",))
