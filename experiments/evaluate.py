"""Measures a trained framework: coherence and Frechet distances, joint and from every subset.

python -m experiments.evaluate --workdir=DIR [--num=N --seeds=K --solver=NAME --steps=N
  --guidance=G --mode=NAME --noema --best --joint_only --split=validation --data=OPTION=VALUE
  --out=DIR]
python -m experiments.evaluate --unconditional=DIR --experts=DIR,DIR --out=DIR [...]

Writes `results.json`, `results.md` and `samples.png` into the workdir, or `--out`, and an image for
each of `config.evaluation.tasks` into `tasks`. The classifiers are trained on first use and kept in
`classifiers` beside them. With `--joint_only`, to compare solvers, it measures joint samples alone,
prints the numbers and writes nothing. Each `--data` is an option of the data set that differs from
training's; it applies to the training of the classifiers, too.

With `--split=validation`, to choose settings, it measures on the examples that
`config.data.validation` held out of training instead of the test split, and writes into a folder
`validation` there.

Where the data set defines how closely a modality adheres to what was given (`datasets.adherence`),
that is measured, too, and beside it the adherence to what was given with another sample. Where
captions have a grammar (`datasets.valid`), it also measures the fraction of generated captions that
are sentences of it letter for letter: a classifier recognises the class of "hn eight", too.

With `config.evaluation.similarity` modalities generated together are compared with each generated
alone from the same noise, by their classes and by the adherence of one to the other, see
`mmdiff_jax.evaluation.similarity`.

Examples without classes (no column `label`) are measured by what needs none: masks against true
ones, the spread of several draws, the variational bound, cost and images.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
import json
import time
import types
from typing import Any
import warnings

from absl import flags
from etils import epath
import jax
import ml_collections
import numpy as np

from experiments import generation, setup
from mmdiff_jax import noise, storage
from mmdiff_jax.data import datasets, missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.evaluation import (
  classifiers as classifiers_lib,
  coherence,
  frechet,
  pictures,
  similarity,
  tables,
)
from mmdiff_jax.evaluation.classifiers import Classifier
from mmdiff_jax.modalities import Modality

_SEEDS = setup.define_integer("seeds", None, "Number of sampling seeds.", 1, 10**6)
_JOINT_ONLY = flags.DEFINE_bool("joint_only", False, "Measure joint samples only; write nothing.")
_SPLIT = flags.DEFINE_enum(
  "split",
  None,
  ["test", "validation"],
  "Split to measure on; config.evaluation.split if not given.",
  allow_override=True,
)
_DATA = flags.DEFINE_multi_string(
  "data", [], "OPTION=VALUE of the data set that replaces the run's; may be repeated."
)
# Other entry points may have an --out of their own, and tests load several into one process.
_OUT = flags.DEFINE_string(
  "out", None, "Folder for results and classifiers; the workdir if not given.", allow_override=True
)

_SHOWN = 10  # Samples in a panel of the image.
_CONTINUOUS = ("image", "audio", "video", "trajectory", "vector")

Data = Mapping[str, np.ndarray]


def main(argv: Sequence[str]) -> None:
  """Loads the run, loads or trains the classifiers, samples, measures and writes."""
  del argv
  began = time.monotonic()
  trained = generation.load(setup.WORKDIR.value)
  folder = generation.folder(_OUT.value)
  config = trained.config
  num = generation.NUM.value or config.evaluation.num
  if num < 2:
    raise UserError(
      "--num (or config.evaluation.num) is 1; it must be 2 or more for spreads and distances."
    )
  draws = config.evaluation.get("draws", 1)
  if num % draws:
    raise UserError(
      f"--num (or config.evaluation.num) is {num}, with config.evaluation.draws={draws} samples of"
      f" each example. It must be a multiple of {draws}."
    )
  tasks = list_tasks(trained)[: 1 if _JOINT_ONLY.value else None]
  others = ml_collections.ConfigDict(config.evaluation.get("data")).to_dict()
  others |= _options(_DATA.value)
  if "split" in others:
    raise UserError("--data=split=... is not an option of a data set. Write --split=validation.")
  with config.unlocked():
    config.evaluation.split = split = _SPLIT.value or config.evaluation.get("split", "test")
  _check_split(config, split, others)
  target = folder if split == "test" else folder / split
  if not _JOINT_ONLY.value:
    storage.check_writable(target, "--out or --workdir")
  options = config.data.to_dict() | others
  splits = {"train": "train", "test": split}
  data = {part: datasets.load(**options, split=name) for part, name in splits.items()}
  for modality in trained.framework.modalities:
    if modality.name not in data["test"]:
      raise UserError(
        f"The data set {config.data.name!r} has no {modality.name!r}, which is given in a task."
        " Name first a run whose data set has all given modalities."
      )
  classifiers = {}
  for modality in trained.framework.modalities if "label" in data["train"] else ():
    labelled = missing.complete(data["train"], [modality.name, "label"])
    classifiers[modality.name] = classifiers_lib.load_or_fit(
      modality,
      labelled[modality.name],
      np.asarray(labelled["label"]),
      folder / "classifiers",
      num_steps=config.evaluation.get("classifier_steps"),
      say=_say,
    )
  seeds = range(_SEEDS.value or config.evaluation.seeds)
  adherence = {m.name: datasets.adherence(m.name, **options) for m in trained.framework.modalities}
  valid = {m.name: datasets.valid(m.name, **options) for m in trained.framework.modalities}
  results, panels = evaluate(
    trained, classifiers, data, tasks, num=num, seeds=seeds, adherence=adherence, valid=valid
  )
  results["settings"]["data_options"] = others
  if trained.framework.bound and not _JOINT_ONLY.value:
    results["bound"] = _bound(trained, data)
  results["seconds"] = time.monotonic() - began
  if _JOINT_ONLY.value:
    print(f"\n{tables.screen(results)}", flush=True)
    return
  with storage.writing(target, "--out or --workdir"):
    picture = _write(target, trained, tasks, results, panels)
  print(f"\n{tables.screen(results)}\nPicture: {picture}", flush=True)


Task = tuple[tuple[str, ...], tuple[str, ...]]


def list_tasks(trained: generation.Trained) -> list[Task]:
  """Lists the tasks, each what is given and what is generated from it; joint samples first.

  These are all subsets that the framework supports, or those of `config.evaluation.tasks` whose
  modalities the run has. A given modality may also be a target: it is then regenerated.

  Raises:
    UserError: the framework cannot generate without something given, or a task in the config has
      nothing given or no target.
  """
  framework = trained.framework
  names = tuple(modality.name for modality in framework.modalities)
  if specified := trained.config.evaluation.get("tasks"):
    tasks = [(tuple(given), tuple(targets)) for given, targets in specified]
    for given, targets in tasks:
      if not (given and targets):
        raise UserError(
          f"config.evaluation.tasks has {(given, targets)}; a task is what is given and what is"
          " generated, at least one modality each. Joint samples are always measured."
        )
    return [((), names), *(task for task in tasks if set(sum(task, ())) <= set(names))]
  if framework.supported_tasks is None:
    return [
      (given, tuple(name for name in names if name not in given))
      for given in ((), *coherence.proper_subsets(names))
    ]
  if framework.supported_tasks[0][0]:
    raise UserError(
      f"Evaluation needs samples without any condition, but this model generates {names[0]!r} only"
      f" from {', '.join(names[1:])}. Evaluate it together with the unconditional model:"
      " --unconditional=DIR --experts=DIR,DIR --out=DIR."
    )
  return list(framework.supported_tasks)


def _say(line: str) -> None:
  print(line, flush=True)


def _options(given: Sequence[str]) -> dict[str, Any]:
  """Parses options of a data set from strings like "kinds=('half',)"."""
  options = {}
  for option in given:
    name, equals, value = option.partition("=")
    if not equals:
      raise UserError(f"--data={option} has no value. Write --data=OPTION=VALUE.")
    try:
      options[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      options[name] = value  # A string without quotes.
    if name in ("data_dir", "manual_dir") and not isinstance(options[name], str):
      options[name] = value  # For example a folder named 2024.
  return options


def _check_split(config: ml_collections.ConfigDict, split: str, others: Mapping[str, Any]) -> None:
  """Checks that the examples of the split were not trained on."""
  if "validation" in others:
    raise UserError(
      "The examples held out for validation were decided by the training; --data=validation and"
      " config.evaluation.data.validation cannot change them."
    )
  if split == "validation" and not config.data.get("validation"):
    raise UserError(
      "The run has no validation split: it was trained on all of the training split. Hold out a"
      " part, such as a tenth, when you train: python -m experiments.train --config=CONFIG"
      " --config.data.validation=0.1 --workdir=DIR. Experts that are composed need the same"
      " fraction."
    )


def _bound(trained: generation.Trained, data: Mapping[str, Data]) -> dict[str, float]:
  began = time.monotonic()
  names = [modality.name for modality in trained.framework.modalities]
  train, test = (missing.complete(data[split], names) for split in ("train", "test"))
  bound = trained.framework.bound(trained.params, noise.make_key(0), train, test)
  text = ", ".join(f"{name} {value:.4g}" for name, value in bound.items())
  _say(f"variational bound: {text}; {time.monotonic() - began:.1f} s")
  return bound


def _write(folder, trained, tasks, results, panels) -> epath.Path:
  modalities = trained.framework.modalities
  folder.mkdir(parents=True, exist_ok=True)
  storage.write_atomically(folder / "results.json", json.dumps(results, indent=1))
  storage.write_atomically(folder / "results.md", tables.markdown(results) + "\n")
  few = [panel for panel in panels if len(panel.given) <= 1]
  pictures.draw(folder / "samples.png", modalities, few)
  if trained.config.evaluation.get("tasks"):
    (folder / "tasks").mkdir(exist_ok=True)
    for (given, targets), panel in zip(tasks[1:], panels[1:], strict=True):
      name = f"{'_'.join(given)}_to_{'_'.join(targets)}.png"
      pictures.draw(folder / "tasks" / name, modalities, [panel])
  return folder / "samples.png"


def evaluate(
  trained: generation.Trained,
  classifiers: Mapping[str, Classifier],
  data: Mapping[str, Data],
  tasks: Sequence[Task],
  *,
  num: int,
  seeds: Sequence[int],
  adherence: Mapping[str, Callable[..., dict[str, np.ndarray]] | None] = types.MappingProxyType({}),
  valid: Mapping[str, Callable[[np.ndarray], np.ndarray] | None] = types.MappingProxyType({}),
  say: Callable[[str], None] = _say,
) -> tuple[dict[str, Any], list[pictures.Panel]]:
  """Samples task by task, and measures the samples.

  Args:
    trained: the run from `generation.load`.
    classifiers: a classifier of each modality; none if the data have no classes.
    data: model inputs "train" and "test", with "label" if there are classifiers; "test" is the
      split to measure on, `config.evaluation.split`. What is given is drawn from it, other rows (or
      another order) at each seed, each of them `config.evaluation.draws` times in a row. Of its
      examples only those that lack no modality (`data.missing`) are used.
    tasks: what is given and what is generated in each task, as in `list_tasks`; joint samples, with
      nothing given, must be among them.
    num: number of samples per seed, a multiple of the draws.
    seeds: the sampling seeds.
    adherence: `datasets.adherence` of each modality, for data with classes.
    valid: `datasets.valid` of each modality.
    say: called with lines of progress.

  Returns:
    The results as `tables` reads them, without the total wall time; and a panel of samples of each
    task. What does not apply to the data or to a target is left out, and so is `recognised` if at
    some seed nothing that was given is recognised.
  """
  modalities = {modality.name: modality for modality in trained.framework.modalities}
  names = tuple(modalities)
  needed = (*names, "label") if classifiers else names
  test = missing.complete(data["test"], needed)
  draws = trained.config.evaluation.get("draws", 1)
  results = {"settings": _settings(trained, names, num, draws, seeds), "conditional": []}
  truth = {name: _classify(classifiers, name, test[name]) for name in classifiers}
  # The classifier of labels is the identity, which has no features.
  references = {
    name: _fit(x, f"{name} in the test split") for name, (_, x) in truth.items() if x.shape[1]
  }
  if classifiers:
    labels, train_labels = np.asarray(test["label"]), np.asarray(data["train"]["label"])
    train = {name: missing.complete(data["train"], [name])[name] for name in references}
    right = {name: truth[name][0] == labels for name in names}
    distribution = coherence.histogram(train_labels, _num_classes(modalities, train_labels))
    rebuilt = trained.framework.reconstruct(trained.params, {name: test[name] for name in names})
    results["settings"] |= {
      "frechet_reference": f"all of the {results['settings']['split']} split",
      "frechet_reference_samples": len(labels),
      "frechet_features": "last hidden layer of each modality's classifier",
      "frechet_sizes": {name: len(reference.mean) for name, reference in references.items()},
    }
    results |= {
      "classifier_accuracy": {name: float(np.mean(right[name])) for name in names},
      "reconstruction_accuracy": classifiers_lib.accuracy(classifiers, rebuilt, labels),
      "total_variation_floor": coherence.total_variation_floor(distribution, num),
      "frechet_of_training_split": {
        name: _distance(
          reference,
          _classify(classifiers, name, train[name][:num]),
          f"{name} in the training split",
        )
        for name, reference in references.items()
      },
    }
    halves = {}
    for name in references:
      sources = np.asarray(test.get(f"source_{name}", labels[:0]))
      # Each half needs two sources or more, and some source needs several examples.
      if 4 <= len(np.unique(sources)) < len(sources):
        distances = frechet.between_halves(truth[name][1], sources, num)
        halves[name] = tables.measurement(distances)
    if halves:
      results["frechet_between_halves"] = halves
    for title, key in (("data", "classifier_accuracy"), ("rebuilt", "reconstruction_accuracy")):
      text = ", ".join(f"{name} {100 * value:.1f} %" for name, value in results[key].items())
      say(f"classifiers on {results['settings']['split']} {title}: {text}")

  @functools.cache
  def generator(given, targets, *, shuffled=False):
    return generation.generator(trained, test, given, targets, num, shuffled=shuffled)

  panels = []
  began = time.monotonic()
  for done, (given, targets) in enumerate(tasks):
    key_name = _arrow(given, targets)
    sample = functools.partial(_sample, test, given, key_name, num, draws, seeds)
    samples, seconds = sample(generator(given, targets))
    cost = {
      "evaluations": trained.framework.evaluations(given, targets, trained.sampling),
      "seconds": seconds,
      "seconds_compiling": generator(given, targets).seconds,
    }
    if classifiers and len(targets) > 1 and trained.config.evaluation.get("similarity"):
      alone = {name: sample(generator(given, (name,)))[0] for name in targets}
      shuffled = None
      if trained.framework.shuffled:
        shuffled, _ = sample(generator(given, targets, shuffled=True))
      examples = _given_examples(test, given, samples)
      cost["similarity"] = _similarity(
        classifiers, adherence, targets, examples, samples, alone, shuffled
      )
    outputs = [
      {name: _classify(classifiers, name, x[name]) for name in targets if name in classifiers}
      for _, x in samples
    ]
    validity = {
      name: tables.measurement([np.mean(valid[name](x[name])) for _, x in samples])
      for name in targets
      if valid.get(name)
    }
    if given:
      entry = {"given": list(given), "targets": {}}
      for name in targets:
        measures_by_seed = [
          _data_measures(modalities[name], x[name], test[name], rows, draws) for rows, x in samples
        ]
        if classifiers:
          recognised = np.all([right[other] for other in given], axis=0)
          for measures, seed, (rows, _) in zip(measures_by_seed, outputs, samples, strict=True):
            title = f"{name}, generated ({key_name})"
            measures |= _class_measures(
              seed[name], labels[rows], recognised[rows], references.get(name), title
            )
        entry["targets"][name] = _measurements(measures_by_seed)
        if name in validity:
          entry["targets"][name]["validity"] = validity[name]
      for name in targets if classifiers else ():
        if measure := adherence.get(name):
          sampled = [
            (rows, x[name], seed[name][0]) for (rows, x), seed in zip(samples, outputs, strict=True)
          ]
          values = _adherence(measure, {other: test[other] for other in given}, sampled, draws)
          entry["targets"][name] |= values
      if classifiers and len(targets) > 1:
        right_all = [
          np.mean(np.all([seed[name][0] == labels[rows] for name in targets], axis=0))
          for (rows, _), seed in zip(samples, outputs, strict=True)
        ]
        entry["together"] = tables.measurement(right_all)
      results["conditional"].append(entry | cost)
    else:
      results["joint"] = cost | ({"validity": validity} if validity else {})
      if classifiers:
        classes = [{name: values[0] for name, values in seed.items()} for seed in outputs]
        distances = [
          {
            name: _distance(references[name], seed[name], f"{name}, generated ({key_name})")
            for name in targets
            if name in references
          }
          for seed in outputs
        ]
        results["joint"] |= _joint(trained.config, targets, classes, distribution)
        results["joint"]["frechet"] = _measurements(distances)
    panels.append(_panel(test, given, samples[0]))
    left = (time.monotonic() - began) * (len(tasks) - done - 1) / (done + 1)
    say(
      f"{done + 1:2d}/{len(tasks)}  {key_name}: {len(seeds)} x {num:,} samples, "
      f"{cost['seconds']:.1f} s a seed; {left // 60:.0f}:{left % 60:02.0f} left"
    )
  results["summary"] = tables.summary(results)
  return results, panels


def _classify(classifiers, name, x):
  return classifiers_lib.classify(classifiers[name], x)


def _distance(reference, outputs, title) -> float:
  return frechet.distance(reference, _fit(outputs[1], title))


def _fit(features, title) -> frechet.Gaussian:
  """Fits a Gaussian to features; the warning about few samples is in the table, once."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      return frechet.fit(features, title)
    except ValueError as error:
      raise UserError(f"No Frechet distance: {error}") from error


def _measurements(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
  """Summarises over the seeds the quantities that all of them have."""
  names = [name for name in seeds[0] if all(name in seed for seed in seeds)]
  return {name: tables.measurement([seed[name] for seed in seeds]) for name in names}


def _class_measures(outputs, labels, recognised, reference, title) -> dict[str, float]:
  """Measures one seed's samples of a target with the classifiers.

  Args:
    outputs: the samples' classes and features.
    labels: the labels of the given examples.
    recognised: whether the classifiers recognise that label in all given modalities of an example.
    reference: the Gaussian for the Frechet distance; None if there is none.
    title: the name of the samples in an error.
  """
  num_classes = int(max(outputs[0].max(), labels.max())) + 1
  distributions = (coherence.histogram(classes, num_classes) for classes in (outputs[0], labels))
  measures = {
    "coherence": coherence.conditional(outputs[0], labels),
    "total_variation": coherence.total_variation(*distributions),
  }
  if recognised.any():
    measures["recognised"] = coherence.conditional(outputs[0][recognised], labels[recognised])
  if reference is not None:
    measures["frechet"] = _distance(reference, outputs, title)
  return measures


def _adherence(adherence, test, sampled, draws: int) -> dict[str, Any]:
  """Measures the adherence of samples to what was given, and to what the sample before was given.

  Args:
    adherence: the measures of the target, as `datasets.adherence`.
    test: the given modalities in the test split.
    sampled: for each seed the rows of the split that were given, the samples and their classes.
    draws: number of samples of each given example.
  """
  measures = {"adherence": [], "adherence_shuffled": []}
  for rows, x, classes in sampled:
    for seeds, given in zip(measures.values(), (rows, np.roll(rows, draws)), strict=True):
      fractions = adherence({name: test[name][given] for name in test}, x, classes)
      # A measure that applies to no example has no mean.
      seeds.append({name: np.nanmean(f) for name, f in fractions.items() if not np.isnan(f).all()})
  return {name: _measurements(seeds) for name, seeds in measures.items()}


def _data_measures(modality: Modality, x, truth, rows, draws: int) -> dict[str, float]:
  """Measures one seed's samples of a target without classes.

  Args:
    modality: the target.
    x: the samples, as model inputs.
    truth: the target in the test split.
    rows: the rows of the split that were given for the samples, each `draws` times in a row.
    draws: number of samples of each given example.
  """
  measures = {}
  if modality.kind == "mask":
    # Imported here, since it takes a second. Totals over all masks, then the mean over classes.
    from sklearn import metrics

    true, drawn = np.ravel(truth[rows]), np.ravel(x)
    measures["iou"] = float(metrics.jaccard_score(true, drawn, average="macro"))
    measures["pixel_accuracy"] = float(np.mean(true == drawn))
  if draws > 1 and modality.kind in _CONTINUOUS:
    variance = np.var(x.reshape(len(x) // draws, draws, -1), axis=1, ddof=1)
    measures["spread"] = float(np.mean(np.sqrt(np.mean(variance, axis=-1))))
  return measures


def _num_classes(modalities: Mapping[str, Modality], labels: np.ndarray) -> int:
  """Counts the classes of the training split, or more if the labels themselves are generated."""
  return max(int(labels.max()) + 1, modalities["label"].num_classes if "label" in modalities else 0)


def _arrow(given, targets):
  return f"{', '.join(given)} -> {', '.join(targets)}" if given else "joint"


def _settings(trained, names, num, draws, seeds) -> dict[str, Any]:
  """Lists all settings that can change a number or that are needed to reproduce it."""
  config = trained.config
  composition = config.get("composition")
  return ({"composition": composition.to_dict()} if composition else {}) | {
    "data": config.data.name,
    "split": config.evaluation.get("split", "test"),
    "modalities": list(names),
    "num": num,
    "draws": draws,
    "seeds": list(seeds),
    "ema": trained.ema,
    "best": trained.best,
    "solver": config.sampling.solver,
    "steps": trained.sampling.steps,
    "corrector": dict(config.sampling.get("corrector", {})),
    "guidance": trained.sampling.guidance,
    "mode": config.sampling.get("mode"),
    "order": [list(group) for group in trained.sampling.order],
    "subsets": _subsets(config, names),
    "grid_power": config.sampling.get("grid_power"),
    "jump": config.sampling.get("jump"),
    "repeats": config.sampling.get("repeats"),
    "last_step": "mean, no fresh noise at time 0",
    "device": jax.devices()[0].device_kind,
  }


def _sample(test, given, key_name, num, draws, seeds, generator):
  """Samples for each seed; returns given test rows with samples, and seconds per seed."""
  samples = []
  began = time.monotonic()
  for seed in seeds:
    rng = np.random.default_rng(seed)
    size, num_rows = len(next(iter(test.values()))), num // draws
    rows = np.concatenate([rng.permutation(size) for _ in range(-(-num_rows // size))])[:num_rows]
    rows = np.repeat(rows, draws)
    key = noise.modality_key(noise.make_key(seed), key_name)
    samples.append((rows, generator.generate(key, {name: test[name][rows] for name in given})))
  return samples, (time.monotonic() - began) / len(seeds)


def _given_examples(test, given, samples) -> np.ndarray:
  """Numbers the example that was given for each sample of all seeds, int [samples].

  Rows of the test split in which all given modalities are equal, such as the same recording, are
  one example. With nothing given, each sample has a different number.
  """
  rows = np.concatenate([rows for rows, _ in samples])
  if not given:
    return np.arange(len(rows))
  rows, inverse = np.unique(rows, return_inverse=True)
  columns = [test[name][rows] for name in given]
  numbers = {}
  contents = (b"".join(x[i].tobytes() for x in columns) for i in range(len(rows)))
  return np.array([numbers.setdefault(content, len(numbers)) for content in contents])[inverse]


def _similarity(
  classifiers, adherence, targets, examples, together, alone, shuffled
) -> dict[str, Any]:
  """Computes the similarity of each pair of targets over all samples of all seeds.

  It compares their classes, and by `adherence` other properties. Samples of fewer than two given
  examples have no standard error and are left out.

  Args:
    classifiers: the classifiers.
    adherence: the measures, as `datasets.adherence`.
    targets: names of the targets.
    examples: the examples' numbers from `_given_examples`.
    together: the samples from `_sample` of targets generated together.
    alone: for each target, the samples of it generated alone.
    shuffled: the samples by `Framework.shuffled`; None if the framework has none.
  """
  ways = {"together": dict.fromkeys(targets, together), "alone": alone}
  if shuffled:
    ways["shuffled"] = dict.fromkeys(targets, shuffled)
  samples = {
    way: {name: np.concatenate([x[name] for _, x in of[name]]) for name in targets}
    for way, of in ways.items()
  }
  classes = {
    way: {name: classifiers_lib.probabilities(classifiers[name], x) for name, x in of.items()}
    for way, of in samples.items()
  }
  similarities = {}
  if len(np.unique(examples)) < 2:
    return similarities
  for a, b in itertools.combinations(targets, 2):
    same_class = {way: similarity.same_class(of[a], of[b]) for way, of in classes.items()}
    similarities[f"{a} + {b}"] = similarity.compared(examples, **same_class)
    if measures := adherence.get(a):
      fractions = {
        way: measures({b: of[b]}, of[a], classes[way][a].argmax(-1)) for way, of in samples.items()
      }
      # The other measures are not about b.
      for name in (name for name in fractions["together"] if name.startswith(f"{b} ")):
        applies = np.all([~np.isnan(values[name]) for values in fractions.values()], axis=0)
        if len(np.unique(examples[applies])) > 1:
          adheres = {way: values[name][applies] for way, values in fractions.items()}
          similarities[f"{a} + {name}"] = similarity.compared(examples[applies], **adheres)
  return similarities


def _subsets(config, names) -> list[list[str]]:
  # A run with fewer modalities than its data set may lack some of a subset's.
  return [list(subset) for subset in config.evaluation.subsets if set(subset) < set(names)]


def _joint(config, names, classes, data) -> dict[str, Any]:
  """Measures coherence and classes of joint samples; `data` is the distribution of its classes."""
  num_classes = len(data)
  first = names[0]
  histograms = {first: [coherence.histogram(seed[first], num_classes) for seed in classes]}
  measures = {}
  # A single modality always agrees with itself.
  if len(names) > 1:
    histograms["majority"] = [
      coherence.histogram(coherence.majority(seed, num_classes), num_classes) for seed in classes
    ]
    adherence = {
      "+".join(subset): [coherence.joint(seed, subset) for seed in classes]
      for subset in _subsets(config, names)
    }
    adherence[f"all {len(names)}"] = [coherence.joint(seed, names) for seed in classes]
    measures["coherence"] = {name: tables.measurement(values) for name, values in adherence.items()}
  return measures | {
    "histogram": {name: np.mean(seeds, 0).tolist() for name, seeds in histograms.items()}
    | {"data": data.tolist()},
    "total_variation": {
      name: tables.measurement([coherence.total_variation(seed, data) for seed in seeds])
      for name, seeds in histograms.items()
    },
  }


def _panel(test, given, sampled) -> pictures.Panel:
  rows, samples = sampled
  targets = {name: x[:_SHOWN] for name, x in samples.items()}
  conditions = {name: test[name][rows[:_SHOWN]] for name in given}
  return pictures.Panel(
    f"From {', '.join(given)}" if given else "Generated together", targets, conditions
  )


if __name__ == "__main__":
  setup.run(main)
