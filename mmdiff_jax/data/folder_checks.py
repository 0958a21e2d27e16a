"""Checks of the splits of a user's folder, two `folder.Folder`s, against each other."""

from collections.abc import Iterable, Sequence
import hashlib
import pathlib
from typing import Any

from mmdiff_jax.data import readers
from mmdiff_jax.errors import UserError


def check_classes(data: Any, other: Any, *splits: str) -> None:
  """Checks that both splits have the same classes, so that a class has one number."""
  for column in data.columns:
    if column.modality.kind == "label":
      name = column.modality.name
      ours, theirs = ({x[1] for x in part[name].values()} for part in (data.sources, other.sources))
      if ours != theirs:
        raise UserError(
          f"The splits differ in the classes of {name!r}: only {splits[0]!r} has "
          f"{_few(ours - theirs)}, only {splits[1]!r} has {_few(theirs - ours)}. A class is the "
          "index of its folder among all, so both splits need the same folders."
        )


def _few(names: Iterable[str]) -> str:
  names = sorted(names)
  return (", ".join(names[:5]) + ", ..." * (len(names) > 5)) or "no more"


def check_disjoint(data: Any, other: Any) -> None:
  """Checks that no image, sound or video is in both splits; texts and masks may be equal."""
  for column in data.columns:
    name = column.modality.name
    if column.derive or column.modality.kind not in ("image", "audio", "video"):
      continue
    ours, theirs = (_by_size(each, name) for each in (data, other))
    for size in ours.keys() & theirs.keys():
      digests = {_digest(files): files[0] for files in theirs[size]}
      for files in ours[size]:
        if same := digests.get(_digest(files)):
          raise UserError(
            f"{files[0]} and {same} are the same {name!r} in both splits, bit for bit: the model "
            "would be tested on an example that it was trained on. Remove one of them."
          )


def _by_size(data: Any, name: str) -> dict[tuple[int, ...], list[Sequence[pathlib.Path]]]:
  """Groups the files of examples by their sizes: only files of the same size can be equal."""
  groups = {}
  for stem in data.stems:
    if files := data.sources[name].get(stem):
      groups.setdefault(tuple(file.stat().st_size for file in files), []).append(files)
  return groups


def _digest(paths: Sequence[pathlib.Path]) -> bytes:
  digest = hashlib.sha256()
  for path in paths:
    with readers.reading(path):
      digest.update(path.read_bytes())
  return digest.digest()
