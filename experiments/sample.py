"""Generates samples from a trained framework; writes images, sound, text and arrays.

python -m experiments.sample --workdir=DIR [--given=tone,caption --targets=digit,scene --num=16
  --solver=dpmpp_2m --steps=32 --guidance=1.5 --mode=informed --noema --best --seed=0
  --given_npz=FILE --out=DIR]

With nothing given all targets are generated together; with no targets, all that is not given. CoDi
can also regenerate a modality that is given, and takes weights of its prompts, `--weights=tone=2`.

If nothing is named, an expert of MCDM is given all of its conditions; so are experts that are
composed:

python -m experiments.sample --unconditional=DIR --experts=DIR,DIR --out=DIR [--weights=1,0.5:2
  --given=sketch,mask --corrector=4:3:0.7 ...]
"""

from collections.abc import Mapping, Sequence
import io
import os
import time

from absl import flags
from etils import epath
import numpy as np

from experiments import experts, generation, setup
from mmdiff_jax import noise, storage
from mmdiff_jax.data import array_files, datasets, missing
from mmdiff_jax.errors import UserError
from mmdiff_jax.evaluation import pictures
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.modalities import Modality, video_gif

_GIVEN = flags.DEFINE_list("given", [], "Modalities that are given.")
_TARGETS = flags.DEFINE_list("targets", [], "Modalities to generate; all others if none.")
_SEED = setup.define_integer(
  "seed", 0, "Seed of the noise and of the rows of the test split.", 0, 10**9
)
_GIVEN_NPZ = flags.DEFINE_string(
  "given_npz", None, "NPZ file with the given model inputs; the test split's if not given."
)
# Other entry points may have an --out of their own, and tests load several into one process.
_OUT = flags.DEFINE_string(
  "out", None, "Folder for the files; DIR/samples if not given.", allow_override=True
)

_COLUMNS, _MAX_SHOWN = 8, 64
_PAUSE = 0.1  # Seconds of silence after each sound.


def main(argv: Sequence[str]) -> None:
  """Generates samples and writes them."""
  del argv
  trained = generation.load(setup.WORKDIR.value)
  out = storage.path(_OUT.value or generation.folder(None) / "samples")
  modalities = {modality.name: modality for modality in trained.framework.modalities}
  given, targets = check_names(trained.framework, _GIVEN.value, _TARGETS.value)
  if experts.WEIGHTS.value and not experts.wanted():
    _check_weights(trained.config.sampling.weights, given)
  if _GIVEN_NPZ.value:
    values = read_given(_GIVEN_NPZ.value, [modalities[n] for n in given], generation.NUM.value)
    num = len(next(iter(values.values())))
  else:
    num = generation.NUM.value or 16
    values = _from_test_split(trained.config.data, given, num, _SEED.value) if given else {}
  storage.check_writable(out, "--out")
  generator = generation.generator(trained, values, given, targets, num)
  began = time.monotonic()
  samples = generator.generate(noise.make_key(_SEED.value), values)
  print(
    f"{num:,} samples in {time.monotonic() - began:.2f} s, after {generator.seconds:.1f} s of"
    " compiling"
  )
  stem = "joint" if set(targets) == set(modalities) else "_".join(targets)
  stem += "_from_" + "_".join(given) if given else ""
  with storage.writing(out, "--out"):
    paths = write(out, stem, list(modalities.values()), values, samples)
  for path in paths:
    print(f"Wrote {path}")


def check_names(
  framework: Framework, given: Sequence[str], targets: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the given and the target modalities in the run's order.

  Args:
    framework: the framework of the run.
    given: names of the given modalities; if empty and the framework has `supported_tasks`, the
      given modalities of the last of them.
    targets: names of the modalities to generate; if empty, those of the last supported task, or
      all that are not given.

  Raises:
    UserError: a name is unknown, or in both though the framework cannot regenerate what is given,
      nothing is left to generate, or the task is not supported.
  """
  available, tasks = [modality.name for modality in framework.modalities], framework.supported_tasks
  for flag, names in (("given", given), ("targets", targets)):
    for name in names:
      if name not in available:
        raise UserError(
          f"There is no modality {name!r} (in --{flag}). This run has: {', '.join(available)}. "
          "Name one or several of them, separated by commas."
        )
  both = [name for name in given if name in targets]
  if both and not framework.can_regenerate_given:
    raise UserError(
      f"{', '.join(both)}: both given and a target. Leave it out of --given to have it generated, "
      "or out of --targets to keep it unchanged."
    )
  if tasks:
    given = given or tasks[-1][0]
    targets = targets or tasks[-1][1]
  targets = targets or [name for name in available if name not in given]
  if not targets:
    raise UserError(
      f"All modalities are given ({', '.join(given)}), so that nothing is left to generate. Leave "
      "one out of --given."
    )
  task = tuple(tuple(name for name in available if name in names) for names in (given, targets))
  if tasks and task not in tasks:
    raise UserError(
      f"This run cannot generate {', '.join(task[1])} from {', '.join(task[0]) or 'nothing'}. It"
      f" generates {', '.join(tasks[0][1])} from"
      f" {'; '.join(', '.join(names) or 'nothing' for names, _ in tasks)}."
    )
  return task


def _check_weights(weights: Mapping[str, float], given: Sequence[str]) -> None:
  if absent := [name for name in weights if name not in given]:
    raise UserError(
      f"--weights names {', '.join(absent)}, but --given does not ({', '.join(given) or 'nothing'})"
      ". Leave it out of --weights, or add it to --given."
    )


def read_given(path: str, modalities: Sequence[Modality], num: int | None) -> dict[str, np.ndarray]:
  """Reads the given model inputs from a user's NPZ file with one array per modality.

  Args:
    path: the file; its arrays of other names are ignored.
    modalities: the modalities that are given.
    num: number of rows that the arrays must have; None is any.

  Returns:
    {name: [rows, ...]}.

  Raises:
    UserError: there is no such file, it is not an NPZ file, an array is missing, has another shape
      or type, invalid values, or another number of rows than the others or than `num`.
  """
  if not modalities:
    raise UserError(f"--given_npz={path} needs --given. Name its arrays that are given.")
  if not storage.on_disk(path, "--given_npz").is_file():
    raise UserError(
      f"{path} cannot be read: there is no such file. Name the file with --given_npz."
    )
  arrays = array_files.npz(path, modalities)
  rows = len(next(iter(arrays.values())))
  if num not in (None, rows):
    raise UserError(
      f"The arrays of {path} (--given_npz) have {rows} rows, but --num={num}. Omit --num or "
      f"set it to {rows}."
    )
  return arrays


def _from_test_split(config, given: Sequence[str], num: int, seed: int) -> dict[str, np.ndarray]:
  """Draws rows of the test split by the seed, the same for each modality; none lacks a given."""
  test = datasets.load(**config.to_dict(), split="test")
  for name in given:
    if name not in test:
      raise UserError(
        f"The data set {config.name!r} has no {name!r}. Give it with --given_npz=FILE."
      )
  test = missing.complete(test, given)
  size = len(test[given[0]])
  rng = np.random.default_rng(seed)
  rows = np.concatenate([rng.permutation(size) for _ in range(-(-num // size))])[:num]
  return {name: test[name][rows] for name in given}


def write(
  out: str | os.PathLike[str],
  stem: str,
  modalities: Sequence[Modality],
  given: Mapping[str, np.ndarray],
  samples: Mapping[str, np.ndarray],
) -> list[epath.Path]:
  """Writes samples as media files and as arrays.

  Args:
    out: the folder; created if necessary.
    stem: the beginning of the files' names.
    modalities: all modalities that may be in `given` and `samples`.
    given: the given model inputs; shown in the image and saved in the NPZ file. A modality that was
      regenerated is saved as `given_NAME`.
    samples: the generated modalities, likewise.

  Returns:
    The files: `stem.png` with the first 64 samples, `stem.npz` with all arrays, and for generated
    modalities a `stem_NAME.wav` (16 bit, one sound after the other), a `stem_NAME.gif` (the first
    64 videos) and a `stem_NAME.txt` (one line per sample).
  """
  # SciPy takes long to import.
  from scipy.io import wavfile

  out = storage.path(out)
  out.mkdir(parents=True, exist_ok=True)
  targets, conditions = (
    {name: x[:_MAX_SHOWN] for name, x in arrays.items()} for arrays in (samples, given)
  )
  sheet = pictures.Panel(stem.replace("_", " "), targets, conditions)
  pictures.draw(out / f"{stem}.png", modalities, pictures.panels(sheet, _COLUMNS))
  given = {f"given_{name}" if name in samples else name: x for name, x in given.items()}
  array_files.write_npz(out / f"{stem}.npz", **given, **samples)
  paths = [out / f"{stem}.png", out / f"{stem}.npz"]
  for modality in modalities:
    if modality.name not in samples:
      continue
    rows = samples[modality.name]
    if modality.kind == "audio":
      pause = np.zeros(int(_PAUSE * modality.sample_rate))
      sound = np.concatenate([part for x in rows for part in (modality.show(x), pause)])
      paths.append(out / f"{stem}_{modality.name}.wav")
      pcm = np.round(np.clip(sound, -1.0, 1.0) * 32767).astype(np.int16)
      file = io.BytesIO()  # In memory first, since a bucket does not take a file in parts.
      wavfile.write(file, modality.sample_rate, pcm)
      paths[-1].write_bytes(file.getvalue())
    elif modality.kind == "video":
      paths.append(out / f"{stem}_{modality.name}.gif")
      paths[-1].write_bytes(video_gif(targets[modality.name], _COLUMNS))
    elif modality.kind in ("text", "label"):
      paths.append(out / f"{stem}_{modality.name}.txt")
      paths[-1].write_text("".join(f"{modality.show(x)}\n" for x in rows))
  return paths


if __name__ == "__main__":
  setup.run(main)
