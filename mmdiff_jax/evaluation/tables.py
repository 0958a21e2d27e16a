"""Results as tables for people to read, and the summary at their top.

A measurement is `{"mean": ..., "std": ..., "values": [one per sampling seed]}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Results = Mapping[str, Any]


def measurement(values: Sequence[float]) -> dict[str, Any]:
  """Returns mean and spread (sample std; 0 for a single value) over sampling seeds."""
  spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
  return {
    "mean": float(np.mean(values)),
    "std": float(spread),
    "values": [float(value) for value in values],
  }


def summary(results: Results) -> dict[str, dict[str, Any]]:
  """Returns the few numbers by which to compare models, as fractions: {name: measurement}.

  These are joint coherence; coherence over all pairs of one given modality and one target, among
  all modalities and within each subset that the settings name; into each modality from all others;
  and for each modality over the pairs from it and the pairs into it. Means over several pairs also
  have `min`, the mean over seeds of the worst pair. A modality that was both given and generated is
  not a target here; if a pair is in several tasks, the one with the fewest targets counts. The
  result is empty if the data have no classes.
  """
  if "coherence" not in results["joint"]:
    return {}
  rows = {f"joint {name}": value for name, value in results["joint"]["coherence"].items()}
  names = results["settings"]["modalities"]
  many_first = sorted(results["conditional"], key=lambda entry: -len(entry["targets"]))
  pairs, rest = (
    {
      (*entry["given"], target): measures["coherence"]["values"]
      for entry in many_first
      if len(entry["given"]) == size
      for target, measures in entry["targets"].items()
      if target not in entry["given"]
    }
    for size in (1, len(names) - 1)
  )
  if not pairs:
    return rows
  for subset in (*results["settings"]["subsets"], names):
    within = [pair for pair in pairs if set(pair) <= set(subset)]
    title = f"all {len(names)}" if subset is names else ", ".join(subset)
    every = len(subset) * (len(subset) - 1)
    some = f" ({len(within)} of {every} pairs)" if len(within) < every else ""
    rows[f"{title} from each other{some}"] = _over(pairs, within)
  if len(names) > 2:
    rows["each from all others"] = _over(rest, rest)
    for name in names:
      rows[f"from {name} alone"] = _over(pairs, [pair for pair in pairs if pair[0] == name])
      into = [pair for pair in pairs if pair[1] == name]
      rows[f"into {name} from any other one"] = _over(pairs, into)
  return {name: row for name, row in rows.items() if row}


def _over(pairs, selected):
  """Returns the mean over pairs; nothing for none, since not all pairs need have been evaluated."""
  if not selected:
    return {}
  values = np.array([pairs[key] for key in selected])
  return measurement(values.mean(0).tolist()) | {"min": float(values.mean(1).min())}


def screen(results: Results) -> str:
  """Returns the non-empty tables printed at the end of an evaluation, and their caveats."""
  parts = [
    _summary_table(results),
    _one_to_one_table(results),
    _validity_table(results),
    _adherence_table(results),
    _similarity_table(results),
    _subsets_table(results, "iou", _percent_mean_std, "IoU of masks, %"),
    _subsets_table(results, "spread", _four_decimals, "spread of draws"),
    # With many subsets it would bury the rest.
    "" if results["conditional"] else _frechet_table(results),
    _classifiers_table(results),
  ]
  text = "\n\n".join(filter(None, parts))
  return "\n\n".join(filter(None, [text, _spread(results, text) + _counts(results)]))


def markdown(results: Results) -> str:
  """Returns all results as the text of `results.md`; empty sections are left out."""
  settings = "\n".join(f"- {name}: {_plain(x)}" for name, x in results["settings"].items())
  draws, split = (results["settings"].get(name) for name in ("draws", "split"))
  split = f"the {split or 'test'} split"
  sections = {
    "Summary: coherence in per cent, mean ± spread": _summary_table(results),
    "From one modality (row) into another (column): coherence": _one_to_one_table(results),
    "From every subset: coherence": _subsets_table(results, "coherence", _percent_mean_std),
    "Captions that are sentences of the data set's grammar letter for letter, in per cent": (
      _validity_table(results)
    ),
    "Coherence where the classifiers recognise all that is given": _subsets_table(
      results, "recognised", _percent_mean_std
    ),
    "Samples all of whose targets show the class given, in per cent": _together_table(results),
    "SIM: probability that two modalities name one class": _similarity_table(results),
    "Adherence to what was given, in per cent (shuffled: with another example's)": (
      _adherence_table(results)
    ),
    "Total variation of the classes from those of the examples given": _variation_table(results),
    f"Frechet distance to {split}, on the classifiers' features": _frechet_table(results),
    "Masks: mean intersection over union with the true ones, in per cent": _subsets_table(
      results, "iou", _percent_mean_std
    ),
    "Masks: pixels of the true class, in per cent": _subsets_table(
      results, "pixel_accuracy", _percent_mean_std
    ),
    f"Standard deviation of {draws} draws from the same example, in units of the model input": (
      _subsets_table(results, "spread", _four_decimals)
    ),
    f"Variational bound on {split}": _bound_table(results),
    f"The classifiers: accuracy in per cent on {split}": _classifiers_table(results),
    "Classes of joint samples, in per cent": _classes(results),
    "Cost": _cost_table(results),
    "Settings": f"{settings}\n\n{_counts(results)}",
  }
  parts = [
    # SIM's table explains its errors itself.
    f"## {title}\n\n{'' if title.startswith('SIM') else _spread(results, text)}{text}"
    for title, text in sections.items()
    if text
  ]
  return "# Results\n\n" + "\n\n".join(parts)


def _spread(results: Results, text: str) -> str:
  """Returns a paragraph that explains the spread in a table; empty if it has none."""
  if "±" not in text:
    return ""
  if len(results["settings"]["seeds"]) == 1:
    return "One sampling seed of one trained model: no spread is measured, ± 0 stands for it.\n\n"
  return (
    "Unless a table says otherwise ± is the standard deviation over sampling seeds of one trained"
    " model. The spread over training seeds, which a comparison of methods needs, is not in it.\n\n"
  )


def _summary_table(results: Results) -> str:
  rows = [
    [name, _percent_mean_std(value), _percent(value["min"]) if "min" in value else ""]
    for name, value in results["summary"].items()
  ]
  return _table(["coherence, %", "mean ± spread", "worst"], rows)


def _one_to_one_table(results: Results) -> str:
  alone = [entry for entry in results["conditional"] if len(entry["given"]) == 1]
  return _subsets_table({**results, "conditional": alone}, "coherence", _percent_mean_std)


def _subsets_table(results: Results, quantity: str, show, corner: str = "given \\ target") -> str:
  return _table([corner, *results["settings"]["modalities"]], _rows(results, quantity, show))


def _rows(results: Results, quantity: str, show) -> list[list[str]]:
  """Returns one row per given subset for which there is any value of that quantity."""
  names = results["settings"]["modalities"]
  rows = [
    [_title(results, entry), *_cells(entry["targets"], names, quantity, show)]
    for entry in results["conditional"]
  ]
  return [row for row in rows if any(row[1:])]


def _cells(targets, names, quantity, show) -> list[str]:
  values = (targets.get(name, {}).get(quantity) for name in names)
  return ["" if value is None else show(value) for value in values]


def _validity_table(results: Results) -> str:
  """Returns one row for joint samples and each given subset, one column for each grammar."""
  titled = [("(joint)", results["joint"].get("validity", {}))]
  for entry in results["conditional"]:
    targets = entry["targets"].items()
    validity = {name: x["validity"] for name, x in targets if "validity" in x}
    titled.append((_title(results, entry), validity))
  names = list(dict.fromkeys(name for _, validity in titled for name in validity))
  rows = [
    [title, *(_percent_mean_std(validity[name]) if name in validity else "" for name in names)]
    for title, validity in titled
    if validity
  ]
  return _table(["valid, %", *names], rows)


def _adherence_table(results: Results) -> str:
  """Returns one row per given subset and measured target, one column per measure."""
  measured = [
    (entry, target, measures["adherence"], measures["adherence_shuffled"])
    for entry in results["conditional"]
    for target, measures in entry["targets"].items()
    if measures.get("adherence")
  ]
  names = list(dict.fromkeys(name for *_, adherence, _ in measured for name in adherence))
  several = len({target for _, target, *_ in measured}) > 1

  def cell(name, *parts):
    if not all(name in part for part in parts):
      return ""
    return "{} ({})".format(*(_percent(part[name]["mean"]) for part in parts))

  def title(entry, target):
    task = _title(results, entry)
    if "->" in task:
      return f"{task}: {target}" if len(entry["targets"]) > 1 else task
    return f"{task} -> {target}" if several else task

  rows = [
    [title(entry, target), *(cell(name, *parts) for name in names)]
    for entry, target, *parts in measured
  ]
  return _table(["adherence, % (shuffled)", *names], rows)


def _similarity_table(results: Results) -> str:
  """Returns one row per task and pair of its targets."""
  entries = [("(joint)", results["joint"])]
  entries += [(_title(results, entry), entry) for entry in results["conditional"]]
  measured = [
    (title, pair, estimates)
    for title, entry in entries
    for pair, estimates in entry.get("similarity", {}).items()
  ]
  columns = list(dict.fromkeys(name for *_, estimates in measured for name in estimates))
  rows = [
    [title, pair, *(f"{x[name]['mean']:.4f} ± {x[name]['error']:.4f}" for name in columns)]
    for title, pair, x in measured
  ]
  if not rows:
    return ""
  errors = "± is the standard error of the mean over the examples given, of one trained model."
  return f"{errors}\n\n{_table(['SIM', 'of', *columns], rows)}"


def _together_table(results: Results) -> str:
  """Returns one row per given subset from which several modalities were generated."""
  rows = [
    [_title(results, entry), _percent_mean_std(entry["together"])]
    for entry in results["conditional"]
    if "together" in entry
  ]
  return _table(["given", "all targets"], rows)


def _title(results: Results, entry: Mapping[str, Any]) -> str:
  """Names the given modalities, and the targets if other tasks have the same given ones."""
  title = " + ".join(entry["given"])
  same = [other for other in results["conditional"] if other["given"] == entry["given"]]
  return f"{title} -> {' + '.join(entry['targets'])}" if len(same) > 1 else title


def _frechet_table(results: Results) -> str:
  if "frechet_of_training_split" not in results:
    return ""
  names = results["settings"]["modalities"]
  joint = {name: {"frechet": value} for name, value in results["joint"]["frechet"].items()}
  real = results["frechet_of_training_split"]
  rows = [
    ["(joint)", *_cells(joint, names, "frechet", _two_decimals)],
    *_rows(results, "frechet", _two_decimals),
    ["training split", *(f"{real[name]:.2f}" if name in real else "" for name in names)],
  ]
  yardsticks = (
    "The row `training split` is as many real examples: a yardstick and no floor, since samples"
    " from given examples depend on the reference's own examples."
  )
  if halves := results.get("frechet_between_halves"):
    halves = {name: {"frechet": value} for name, value in halves.items()}
    rows.append(["halves by source", *_cells(halves, names, "frechet", _two_decimals)])
    yardsticks += (
      " The row `halves by source` is real examples, at most as many, drawn from one half of the"
      " reference's digit images, recordings, ... and compared with those from the other half: mean"
      " and standard deviation of five random halvings."
    )
  table = _table(["given \\ target", *names], rows)
  return f"{yardsticks}\n\n{_bias(results['settings'])}{table}"


def _bias(settings: Mapping[str, Any]) -> str:
  """Returns a paragraph on the modalities that have no more samples than features, if any."""
  num = min(settings["num"], settings.get("frechet_reference_samples", settings["num"]))
  sizes = settings.get("frechet_sizes", {})
  few = [f"{name} has {size}" for name, size in sizes.items() if num <= size]
  if not few:
    return ""
  return (
    f"Too few samples: {num:,} for so many features ({', '.join(few)}) give singular covariances"
    " and distances that are biased, far too large. Take more samples.\n\n"
  )


def _bound_table(results: Results) -> str:
  if "bound" not in results:
    return ""
  terms = dict(results["bound"])
  # Bits for each component of the main modality, as is customary for images.
  scale = terms.pop("bits_per_dim") / terms["total"]
  rows = [[name, f"{nats:.4g}", f"{scale * nats:.4g}"] for name, nats in terms.items()]
  return _table(["term", "nats per example", "bits per dimension"], rows)


def _classifiers_table(results: Results) -> str:
  names = results["settings"]["modalities"]
  rows = [
    [title, *(_percent(results[key][name]) for name in names)]
    for title, key in (
      ("on data", "classifier_accuracy"),
      ("on reconstructions", "reconstruction_accuracy"),
    )
    if key in results
  ]
  return _table(["classifier accuracy, %", *names], rows)


def _classes(results: Results) -> str:
  if "histogram" not in results["joint"]:
    return ""
  histograms = results["joint"]["histogram"]
  header = ["class", *map(str, range(len(histograms["data"])))]
  table = _table(header, [[name, *map(_percent, x)] for name, x in histograms.items()])
  return f"{table}\n\n{_variation(results)}"


def _cost_table(results: Results) -> str:
  entries = [("(joint)", results["joint"])]
  entries += [(_title(results, entry), entry) for entry in results["conditional"]]
  rows = [
    [
      title,
      str(entry["evaluations"]),
      f"{entry['seconds']:.2f}",
      f"{entry['seconds_compiling']:.2f}",
    ]
    for title, entry in entries
  ]
  header = ["given", "network evaluations", "seconds per seed", "seconds compiling"]
  return _table(header, rows)


def _variation_table(results: Results) -> str:
  """Returns one row per given subset; if it determines the class, values go below the floor."""
  table = _subsets_table(results, "total_variation", _four_decimals)
  if not table:
    return ""
  return f"For samples that all show the given class it is 0. {_floor(results)}\n\n{table}"


def _floor(results: Results) -> str:
  floor = results["total_variation_floor"]
  return (
    f"{results['settings']['num']:,} samples of a perfect sampler are at {floor['mean']:.3f} ±"
    f" {floor['std']:.3f} by chance."
  )


def _variation(results: Results) -> str:
  measured = results["joint"].get("total_variation")
  if measured is None:
    return "The examples have no classes: coherence and Frechet distances are left out."
  parts = [f"{name} {value['mean']:.3f} ± {value['std']:.3f}" for name, value in measured.items()]
  return (
    f"Total variation from the data's classes, of each seed's samples: {', '.join(parts)}."
    f" {_floor(results)}"
  )


def _counts(results: Results) -> str:
  settings = results["settings"]
  guidance = f", guidance {settings['guidance']:g}" if settings["guidance"] != 1 else ""
  return (
    f"{_variation(results)}\n{len(settings['seeds'])} seeds of {settings['num']:,} samples, "
    f"{settings['solver']} with {settings['steps']} steps{guidance}: "
    f"{results['joint']['evaluations']} network evaluations per joint sample. "
    f"{results['seconds']:.0f} s in all."
  )


def _percent(fraction: float) -> str:
  return f"{100 * fraction:.1f}"


def _percent_mean_std(value: Mapping[str, Any]) -> str:
  return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"


def _two_decimals(value: Mapping[str, Any]) -> str:
  return f"{value['mean']:.2f} ± {value['std']:.2f}"


def _four_decimals(value: Mapping[str, Any]) -> str:
  return f"{value['mean']:.4f} ± {value['std']:.4f}"


def _plain(value: Any) -> str:
  if isinstance(value, Mapping):
    value = [f"{name}={_plain(x)}" for name, x in value.items()]
  if isinstance(value, Sequence) and not isinstance(value, str):
    return ", ".join(map(_plain, value)) or "none"
  return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table whose columns also align on a screen; empty if it has no rows."""
  if not rows:
    return ""
  columns = list(zip(header, *rows, strict=True))
  widths = [max(map(len, column)) for column in columns]

  def line(cells):
    first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join([first.strip().ljust(widths[0]), *rest])} |"

  rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
  return "\n".join([line(header), rule, *map(line, rows)])
