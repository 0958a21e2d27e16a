"""Measures a trained framework: coherence and Frechet distances, joint and from every subset.

python -m experiments.evaluate --workdir=DIR [--num=N --seeds=K --solver=NAME --steps=N
  --guidance=G --mode=NAME --noema --best --joint_only --split=validation --data=OPTION=VALUE
  --out=DIR]
python -m experiments.evaluate --unconditional=DIR --experts=DIR,DIR --out=DIR [...]

Writes `results.json`, `results.md` and `samples.png` into the workdir, or `--out`, and a picture of
each of `config.evaluation.tasks` into `tasks`. The classifiers that judge are trained on first use
and kept in `classifiers` beside them. With `--joint_only`, to compare solvers, it looks at joint
samples alone, shows the numbers and writes nothing. Each `--data` is an option of the data set that
differs from training's, for the judges' training, too.

With `--split=validation`, to choose settings, it measures on what `config.data.validation` held out
of training in place of the test split, and writes into a folder `validation` there.

Where the data set can tell how true a modality is to what was given (`datasets.adherence`), that is
measured, too, and beside it how true it is to what was given with another sample. Where captions
have a grammar (`datasets.valid`), the fraction of generated ones that are sentences of it letter
for letter is: a classifier reads the class of "hn eight", too.

With `config.evaluation.similarity` modalities generated together are held against each generated
alone from the same noise, by their classes and by how true one is to what the other is or says, see
`mmdiff_jax.evaluation.similarity`.

Examples without classes (no column `label`) are measured by what needs none: masks against true
ones, the spread of several draws, the variational bound, cost and pictures.
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
  classifiers,
  coherence,
  frechet,
  pictures,
  similarity,
  tables,
)
from mmdiff_jax.evaluation.classifiers import Classifier
from mmdiff_jax.modalities import Modality

_SEEDS = setup.define_integer("seeds", None, "How many sampling seeds.", 1, 10**6)
_JOINT_ONLY = flags.DEFINE_bool("joint_only", False, "Judge joint samples only, write nothing.")
_SPLIT = flags.DEFINE_enum(
  "split",
  None,
  ["test", "validation"],
  "The split that is measured on; config.evaluation.split if not given.",
  allow_override=True,
)
_DATA = flags.DEFINE_multi_string(
  "data", [], "OPTION=VALUE of the data set in place of the run's own; may be given repeatedly."
)
# Other entry points may have an --out of their own, and tests load several into one process.
_OUT = flags.DEFINE_string(
  "out", None, "Folder for results and classifiers; the workdir if not given.", allow_override=True
)

_SHOWN = 10  # Samples in a panel of the picture.
_CONTINUOUS = ("image", "audio", "video", "trajectory", "vector")

Data = Mapping[str, np.ndarray]


def main(argv: Sequence[str]) -> None:
  """Loads the run, gets the classifiers, samples, judges and writes."""
  del argv
  began = time.monotonic()
  trained = generation.load(setup.WORKDIR.value)
  folder = generation.folder(_OUT.value)
  config = trained.config
  num = generation.NUM.value or config.evaluation.num
  if num < 2:
    raise UserError("--num (or config.evaluation.num) is 1; spreads and distances need 2 or more.")
  draws = config.evaluation.get("draws", 1)
  if num % draws:
    raise UserError(
      f"{num} samples (--num) are no whole number of examples with {draws} samples of each"
      f" (config.evaluation.draws). Take a multiple of {draws}."
    )
  tasks = tasks_of(trained)[: 1 if _JOINT_ONLY.value else None]
  others = ml_collections.ConfigDict(config.evaluation.get("data")).to_dict()
  others |= _options(_DATA.value)
  if "split" in others:
    raise UserError("--data=split=... is no option of a data set: write --split=validation.")
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
        f"The data set {config.data.name!r} has no {modality.name!r}, which something is generated"
        " from. Put first a run whose data set has all that is given."
      )
  judges = {}
  for modality in trained.framework.modalities if "label" in data["train"] else ():
    labelled = missing.complete(data["train"], [modality.name, "label"])
    judges[modality.name] = classifiers.load_or_fit(
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
    trained, judges, data, tasks, num=num, seeds=seeds, adherence=adherence, valid=valid
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


def tasks_of(trained: generation.Trained) -> list[Task]:
  """What is given and what is generated from it, each time; joint samples first.

  That is every subset that the framework serves, or those of `config.evaluation.tasks` whose
  modalities the run has. What is given may be among what is generated: it is then made anew.

  Raises:
    UserError: it generates nothing without something given, or a task in the config has nothing
      given or no target.
  """
  framework = trained.framework
  names = tuple(modality.name for modality in framework.modalities)
  if chosen := trained.config.evaluation.get("tasks"):
    tasks = [(tuple(given), tuple(targets)) for given, targets in chosen]
    for given, targets in tasks:
      if not (given and targets):
        raise UserError(
          f"config.evaluation.tasks has {(given, targets)}; a task is what is given and what is"
          " generated, at least one modality each. Samples from nothing are measured anyway."
        )
    return [((), names), *(task for task in tasks if set(sum(task, ())) <= set(names))]
  if framework.supported_tasks is None:
    return [
      (given, tuple(name for name in names if name not in given))
      for given in ((), *coherence.proper_subsets(names))
    ]
  if framework.supported_tasks[0][0]:
    raise UserError(
      f"What is measured begins with samples without any condition, and this generates {names[0]!r}"
      f" from {', '.join(names[1:])} alone. Measure it along with the unconditional model:"
      " --unconditional=DIR --experts=DIR,DIR --out=DIR."
    )
  return list(framework.supported_tasks)


def _say(line: str) -> None:
  print(line, flush=True)


def _options(given: Sequence[str]) -> dict[str, Any]:
  """Options of a data set from strings like "kinds=('half',)"."""
  options = {}
  for option in given:
    name, equals, value = option.partition("=")
    if not equals:
      raise UserError(f"--data={option} has no value: write --data=OPTION=VALUE.")
    try:
      options[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      options[name] = value  # A string without quotes.
    if name in ("data_dir", "manual_dir") and not isinstance(options[name], str):
      options[name] = value  # Such as a folder 2024.
  return options


def _check_split(config: ml_collections.ConfigDict, split: str, others: Mapping[str, Any]) -> None:
  """Checks that training did without the examples of the split."""
  if "validation" in others:
    raise UserError(
      "What is held out for validation was decided by the training: --data=validation and"
      " config.evaluation.data.validation cannot change it."
    )
  if split == "validation" and not config.data.get("validation"):
    raise UserError(
      "The run has no validation split: all of the training split was trained on. Hold a part out,"
      " such as a tenth, when you train: python -m experiments.train --config=CONFIG"
      " --config.data.validation=0.1 --workdir=DIR. Experts that are composed need the same"
      " fraction."
    )


def _bound(trained: generation.Trained, data: Mapping[str, Data]) -> dict[str, float]:
  began = time.monotonic()
  names = [modality.name for modality in trained.framework.modalities]
  train, test = (missing.complete(data[split], names) for split in ("train", "test"))
  found = trained.framework.bound(trained.params, noise.make_key(0), train, test)
  shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
  _say(f"variational bound: {shown}; {time.monotonic() - began:.1f} s")
  return found


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
  judges: Mapping[str, Classifier],
  data: Mapping[str, Data],
  tasks: Sequence[Task],
  *,
  num: int,
  seeds: Sequence[int],
  adherence: Mapping[str, Callable[..., dict[str, np.ndarray]] | None] = types.MappingProxyType({}),
  valid: Mapping[str, Callable[[np.ndarray], np.ndarray] | None] = types.MappingProxyType({}),
  say: Callable[[str], None] = _say,
) -> tuple[dict[str, Any], list[pictures.Panel]]:
  """Samples, task by task, and judges.

  Args:
    trained: from `generation.load`.
    judges: a classifier of each modality; none if the data have no classes.
    data: "train" and "test" in the model's view, with "label" if there are judges; "test" is the
      split that is measured on, `config.evaluation.split`. What is given comes from it, other rows
      (or another order) at each seed, each of them `config.evaluation.draws` times in a row. Of its
      examples that lack modalities (`data.missing`) those that have all are used.
    tasks: what is given and what is generated, such as `tasks_of`; joint samples, from nothing,
      must be among them.
    num: samples a seed, a multiple of the draws.
    seeds: the sampling seeds.
    adherence: of each modality, as `datasets.adherence`, for data with classes.
    valid: of each modality, as `datasets.valid`.
    say: takes lines of progress.

  Returns:
    The results as `tables` reads them, but for the whole wall time; and a panel of samples of each
    task. What does not apply to the data or to a target is left out, and so is `recognised` where
    at some seed nothing that was given is recognised.
  """
  modalities = {modality.name: modality for modality in trained.framework.modalities}
  names = tuple(modalities)
  needed = (*names, "label") if judges else names
  test = missing.complete(data["test"], needed)
  draws = trained.config.evaluation.get("draws", 1)
  results = {"settings": _settings(trained, names, num, draws, seeds), "conditional": []}
  truth = {name: _judge(judges, name, test[name]) for name in judges}
  # Labels are their own judges, and those have no features.
  references = {
    name: _fit(x, f"{name} in the test split") for name, (_, x) in truth.items() if x.shape[1]
  }
  if judges:
    labels, train_labels = np.asarray(test["label"]), np.asarray(data["train"]["label"])
    train = {name: missing.complete(data["train"], [name])[name] for name in references}
    right = {name: truth[name][0] == labels for name in names}
    law = coherence.histogram(train_labels, _num_classes(modalities, train_labels))
    rebuilt = trained.framework.reconstruct(trained.params, {name: test[name] for name in names})
    results["settings"] |= {
      "frechet_reference": f"all of the {results['settings']['split']} split",
      "frechet_reference_samples": len(labels),
      "frechet_features": "last hidden layer of each modality's classifier",
      "frechet_sizes": {name: len(reference.mean) for name, reference in references.items()},
    }
    results |= {
      "classifier_accuracy": {name: float(np.mean(right[name])) for name in names},
      "reconstruction_accuracy": classifiers.accuracy(judges, rebuilt, labels),
      "total_variation_floor": coherence.total_variation_floor(law, num),
      "frechet_of_training_split": {
        name: _distance(
          reference, _judge(judges, name, train[name][:num]), f"{name} in the training split"
        )
        for name, reference in references.items()
      },
    }
    halves = {}
    for name in references:
      sources = np.asarray(test.get(f"source_{name}", labels[:0]))
      # At least two sources in each half, and something to learn from splitting by them.
      if 4 <= len(np.unique(sources)) < len(sources):
        distances = frechet.between_halves(truth[name][1], sources, num)
        halves[name] = tables.measurement(distances)
    if halves:
      results["frechet_between_halves"] = halves
    for title, key in (("data", "classifier_accuracy"), ("rebuilt", "reconstruction_accuracy")):
      shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in results[key].items())
      say(f"classifiers on {results['settings']['split']} {title}: {shown}")

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
    if judges and len(targets) > 1 and trained.config.evaluation.get("similarity"):
      alone = {name: sample(generator(given, (name,)))[0] for name in targets}
      shuffled = None
      if trained.framework.shuffled:
        shuffled, _ = sample(generator(given, targets, shuffled=True))
      examples = _given_examples(test, given, samples)
      cost["similarity"] = _similarity(
        judges, adherence, targets, examples, samples, alone, shuffled
      )
    judged = [
      {name: _judge(judges, name, x[name]) for name in targets if name in judges}
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
        found = [
          _of_view(modalities[name], x[name], test[name], rows, draws) for rows, x in samples
        ]
        if judges:
          recognised = np.all([right[other] for other in given], axis=0)
          for one, seed, (rows, _) in zip(found, judged, samples, strict=True):
            title = f"{name}, generated ({key_name})"
            one |= _of_class(
              seed[name], labels[rows], recognised[rows], references.get(name), title
            )
        entry["targets"][name] = _measurements(found)
        if name in validity:
          entry["targets"][name]["validity"] = validity[name]
      for name in targets if judges else ():
        if measures := adherence.get(name):
          seen = [
            (rows, x[name], seed[name][0]) for (rows, x), seed in zip(samples, judged, strict=True)
          ]
          found = _adherence(measures, {other: test[other] for other in given}, seen, draws)
          entry["targets"][name] |= found
      if judges and len(targets) > 1:
        right_all = [
          np.mean(np.all([seed[name][0] == labels[rows] for name in targets], axis=0))
          for (rows, _), seed in zip(samples, judged, strict=True)
        ]
        entry["together"] = tables.measurement(right_all)
      results["conditional"].append(entry | cost)
    else:
      results["joint"] = cost | ({"validity": validity} if validity else {})
      if judges:
        classes = [{name: found[0] for name, found in seed.items()} for seed in judged]
        distances = [
          {
            name: _distance(references[name], seed[name], f"{name}, generated ({key_name})")
            for name in targets
            if name in references
          }
          for seed in judged
        ]
        results["joint"] |= _joint(trained.config, targets, classes, law)
        results["joint"]["frechet"] = _measurements(distances)
    panels.append(_panel(test, given, samples[0]))
    left = (time.monotonic() - began) * (len(tasks) - done - 1) / (done + 1)
    say(
      f"{done + 1:2d}/{len(tasks)}  {key_name}: {len(seeds)} x {num:,} samples, "
      f"{cost['seconds']:.1f} s a seed; {left // 60:.0f}:{left % 60:02.0f} left"
    )
  results["summary"] = tables.summary(results)
  return results, panels


def _judge(judges, name, x):
  return classifiers.classify(judges[name], x)


def _distance(reference, judged, title) -> float:
  return frechet.distance(reference, _fit(judged[1], title))


def _fit(features, title) -> frechet.Gaussian:
  """The Gaussian of some features; the table says once what few samples mean."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      return frechet.fit(features, title)
    except ValueError as error:
      raise UserError(f"No Frechet distance: {error}") from error


def _measurements(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
  """Of all quantities that every seed has."""
  names = [name for name in found[0] if all(name in one for one in found)]
  return {name: tables.measurement([one[name] for one in found]) for name in names}


def _of_class(judged, labels, recognised, reference, title) -> dict[str, float]:
  """What classifiers say of one seed's samples of a target.

  Args:
    judged: their classes and features.
    labels: of the examples given.
    recognised: whether the classifier of each modality given finds that label in it.
    reference: of the Frechet distance; None if there is none.
    title: names the samples in an error.
  """
  num_classes = int(max(judged[0].max(), labels.max())) + 1
  laws = (coherence.histogram(classes, num_classes) for classes in (judged[0], labels))
  found = {
    "coherence": coherence.conditional(judged[0], labels),
    "total_variation": coherence.total_variation(*laws),
  }
  if recognised.any():
    found["recognised"] = coherence.conditional(judged[0][recognised], labels[recognised])
  if reference is not None:
    found["frechet"] = _distance(reference, judged, title)
  return found


def _adherence(adherence, test, seen, draws: int) -> dict[str, Any]:
  """How true samples are to what was given, and to what was given with the sample before.

  Args:
    adherence: measures, as `datasets.adherence`.
    test: what was given, in the test split.
    seen: of each seed the rows of the split that were given, the samples and their classes.
    draws: samples of each example given.
  """
  found = {"adherence": [], "adherence_shuffled": []}
  for rows, x, classes in seen:
    for one, given in zip(found.values(), (rows, np.roll(rows, draws)), strict=True):
      shares = adherence({name: test[name][given] for name in test}, x, classes)
      # What no example says has no mean.
      one.append({name: np.nanmean(s) for name, s in shares.items() if not np.isnan(s).all()})
  return {name: _measurements(seeds) for name, seeds in found.items()}


def _of_view(modality: Modality, x, truth, rows, draws: int) -> dict[str, float]:
  """What one seed's samples of a target say without classes.

  Args:
    modality: the target.
    x: the samples in the model's view.
    truth: the target in the test split.
    rows: those of the split that the samples belong to, each `draws` times in a row.
    draws: samples of each example given.
  """
  found = {}
  if modality.kind == "mask":
    # It takes a second to import. Totals over all masks, then the mean over classes.
    from sklearn import metrics

    true, drawn = np.ravel(truth[rows]), np.ravel(x)
    found["iou"] = float(metrics.jaccard_score(true, drawn, average="macro"))
    found["pixel_accuracy"] = float(np.mean(true == drawn))
  if draws > 1 and modality.kind in _CONTINUOUS:
    variance = np.var(x.reshape(len(x) // draws, draws, -1), axis=1, ddof=1)
    found["spread"] = float(np.mean(np.sqrt(np.mean(variance, axis=-1))))
  return found


def _num_classes(modalities: Mapping[str, Modality], labels: np.ndarray) -> int:
  """Those of the training split, or more if the labels themselves are generated."""
  return max(int(labels.max()) + 1, modalities["label"].num_classes if "label" in modalities else 0)


def _arrow(given, targets):
  return f"{', '.join(given)} -> {', '.join(targets)}" if given else "joint"


def _settings(trained, names, num, draws, seeds) -> dict[str, Any]:
  """All that can move a number, and what else one must know to repeat it."""
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
  """Samples of each seed with the rows of the test split that were given, and seconds a seed."""
  samples = []
  began = time.monotonic()
  for seed in seeds:
    rng = np.random.default_rng(seed)
    size, wanted = len(next(iter(test.values()))), num // draws
    rows = np.concatenate([rng.permutation(size) for _ in range(-(-wanted // size))])[:wanted]
    rows = np.repeat(rows, draws)
    key = noise.modality_key(noise.make_key(seed), key_name)
    samples.append((rows, generator.generate(key, {name: test[name][rows] for name in given})))
  return samples, (time.monotonic() - began) / len(seeds)


def _given_examples(test, given, samples) -> np.ndarray:
  """Number of the example that was given for each sample of all seeds, int [samples].

  Rows of the test split where all that is given is equal, such as one recording, are one example.
  Without anything given each sample has a number of its own.
  """
  rows = np.concatenate([rows for rows, _ in samples])
  if not given:
    return np.arange(len(rows))
  rows, place = np.unique(rows, return_inverse=True)
  columns = [test[name][rows] for name in given]
  numbers = {}
  contents = (b"".join(x[i].tobytes() for x in columns) for i in range(len(rows)))
  return np.array([numbers.setdefault(content, len(numbers)) for content in contents])[place]


def _similarity(judges, adherence, targets, examples, together, alone, shuffled) -> dict[str, Any]:
  """Of each pair of targets, over all samples of all seeds: of classes, and of what else is said.

  Samples of fewer than two given examples have no standard error: nothing is said of them.

  Args:
    judges: classifiers.
    adherence: measures, as `datasets.adherence`.
    targets: their names.
    examples: as `_given_examples`.
    together: as `_sample` gives them, generated together.
    alone: likewise of each target.
    shuffled: likewise, by `Framework.shuffled`; None where there is no such thing.
  """
  ways = {"together": dict.fromkeys(targets, together), "alone": alone}
  if shuffled:
    ways["shuffled"] = dict.fromkeys(targets, shuffled)
  samples = {
    way: {name: np.concatenate([x[name] for _, x in of[name]]) for name in targets}
    for way, of in ways.items()
  }
  classes = {
    way: {name: classifiers.probabilities(judges[name], x) for name, x in of.items()}
    for way, of in samples.items()
  }
  found = {}
  if len(np.unique(examples)) < 2:
    return found
  for a, b in itertools.combinations(targets, 2):
    alike = {way: similarity.same_class(of[a], of[b]) for way, of in classes.items()}
    found[f"{a} + {b}"] = similarity.compared(examples, **alike)
    if measures := adherence.get(a):
      shares = {
        way: measures({b: of[b]}, of[a], classes[way][a].argmax(-1)) for way, of in samples.items()
      }
      # The others are not of b.
      for name in (name for name in shares["together"] if name.startswith(f"{b} ")):
        said = np.all([~np.isnan(share[name]) for share in shares.values()], axis=0)
        if len(np.unique(examples[said])) > 1:
          true = {way: share[name][said] for way, share in shares.items()}
          found[f"{a} + {name}"] = similarity.compared(examples[said], **true)
  return found


def _subsets(config, names) -> list[list[str]]:
  # A run with fewer modalities than its data set has may lack some.
  return [list(subset) for subset in config.evaluation.subsets if set(subset) < set(names)]


def _joint(config, names, classes, law) -> dict[str, Any]:
  """Coherence and classes of joint samples; `law` is the data's share of each class."""
  num_classes = len(law)
  first = names[0]
  laws = {first: [coherence.histogram(seed[first], num_classes) for seed in classes]}
  found = {}
  # A modality alone agrees with itself.
  if len(names) > 1:
    laws["majority"] = [
      coherence.histogram(coherence.majority(seed, num_classes), num_classes) for seed in classes
    ]
    adherence = {
      "+".join(subset): [coherence.joint(seed, subset) for seed in classes]
      for subset in _subsets(config, names)
    }
    adherence[f"all {len(names)}"] = [coherence.joint(seed, names) for seed in classes]
    found["coherence"] = {name: tables.measurement(values) for name, values in adherence.items()}
  return found | {
    "histogram": {name: np.mean(shares, 0).tolist() for name, shares in laws.items()}
    | {"data": law.tolist()},
    "total_variation": {
      name: tables.measurement([coherence.total_variation(one, law) for one in shares])
      for name, shares in laws.items()
    },
  }


def _panel(test, given, sampled) -> pictures.Panel:
  rows, samples = sampled
  shown = {name: x[:_SHOWN] for name, x in samples.items()}
  seen = {name: test[name][rows[:_SHOWN]] for name in given}
  return pictures.Panel(f"From {', '.join(given)}" if given else "Generated together", shown, seen)


if __name__ == "__main__":
  setup.run(main)
