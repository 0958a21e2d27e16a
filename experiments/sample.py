"""Generates samples from a trained framework and writes them as pictures, sound, text and arrays.

python -m experiments.sample --workdir=DIR [--given=tone,caption --targets=digit,scene --num=16
  --solver=dpmpp_2m --steps=32 --guidance=1.5 --mode=informed --noema --best --seed=0
  --given_npz=FILE --out=DIR]

With nothing given all targets are generated together; with no targets, all that is not given. CoDi
makes a target anew that is given, too, and takes the shares of its prompts, `--weights=tone=2`.

An expert of MCDM with nothing named is given all of its conditions; so are experts that are
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
from mmdiff_jax.data import datasets, missing, readers
from mmdiff_jax.errors import UserError
from mmdiff_jax.evaluation import pictures
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.modalities import Modality, video_gif

_GIVEN = flags.DEFINE_list("given", [], "Modalities that are given.")
_TARGETS = flags.DEFINE_list("targets", [], "Modalities to generate; all others if none.")
_SEED = setup.define_integer(
  "seed", 0, "Draws the noise, and what is given from the test split.", 0, 10**9
)
_GIVEN_NPZ = flags.DEFINE_string(
  "given_npz", None, "NPZ file with what is given, in the model's view; else the test split."
)
# Other entry points may have an --out of their own, and tests load several into one process.
_OUT = flags.DEFINE_string(
  "out", None, "Folder for the files; DIR/samples if not given.", allow_override=True
)

_COLUMNS, _MAX_SHOWN = 8, 64
_PAUSE = 0.1  # Seconds of silence after each sound.


def main(argv: Sequence[str]) -> None:
  """Generates and writes."""
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
  """The given and the target modalities in the run's order.

  Args:
    framework: of the run.
    given: what is given; if empty and there are `ways`, as much as can be.
    targets: what to generate; if empty, all that is not given and can be.

  Raises:
    UserError: an unknown name, one in both if the framework does not make it anew, nothing left to
      generate, or none of the ways.
  """
  known, ways = [modality.name for modality in framework.modalities], framework.supported_tasks
  for flag, names in (("given", given), ("targets", targets)):
    for name in names:
      if name not in known:
        raise UserError(
          f"There is no modality {name!r} (in --{flag}). This run has: {', '.join(known)}. Name "
          "one or several of them, with commas between."
        )
  both = [name for name in given if name in targets]
  if both and not framework.can_regenerate_given:
    raise UserError(
      f"{', '.join(both)}: both given and a target. Leave it out of --given to have it generated, "
      "or out of --targets to keep it as it is."
    )
  if ways:
    given = given or ways[-1][0]
    targets = targets or ways[-1][1]
  targets = targets or [name for name in known if name not in given]
  if not targets:
    raise UserError(
      f"All modalities are given ({', '.join(given)}), so that nothing is left to generate. Leave "
      "one out of --given."
    )
  chosen = tuple(tuple(name for name in known if name in names) for names in (given, targets))
  if ways and chosen not in ways:
    raise UserError(
      f"This cannot generate {', '.join(chosen[1])} from {', '.join(chosen[0]) or 'nothing'}. It"
      f" generates {', '.join(ways[0][1])}, from"
      f" {'; '.join(', '.join(names) or 'nothing' for names, _ in ways)}."
    )
  return chosen


def _check_weights(weights: Mapping[str, float], given: Sequence[str]) -> None:
  if absent := [name for name in weights if name not in given]:
    raise UserError(
      f"--weights has {', '.join(absent)}, which --given has not ({', '.join(given) or 'nothing'})."
      " Leave it out of --weights, or add it to --given."
    )


def read_given(path: str, modalities: Sequence[Modality], num: int | None) -> dict[str, np.ndarray]:
  """What is given, from a user's NPZ file with one array a modality, in the model's view.

  Args:
    path: the file; arrays of other names in it are left alone.
    modalities: those that are given.
    num: how many rows are wanted; None is as many as there are.

  Returns:
    {name: [rows, ...]}.

  Raises:
    UserError: no such file, no NPZ, an array missing, of another shape or type, with values that
      cannot be, or rows that are not as many as those of the others or as `num`.
  """
  if not modalities:
    raise UserError(f"--given_npz={path} needs --given: say which of its arrays are given.")
  if not storage.on_disk(path, "--given_npz").is_file():
    raise UserError(f"{path} cannot be read: it is not there. Say with --given_npz where it is.")
  arrays = readers.npz(path, modalities)
  rows = len(next(iter(arrays.values())))
  if num not in (None, rows):
    raise UserError(
      f"The arrays of {path} (--given_npz) have {rows} rows, and --num={num}. Leave --num out or "
      f"make it {rows}."
    )
  return arrays


def _from_test_split(config, given: Sequence[str], num: int, seed: int) -> dict[str, np.ndarray]:
  """Rows of the test split, chosen by the seed, the same for each modality; none lacks any."""
  test = datasets.load(**config.to_dict(), split="test")
  for name in given:
    if name not in test:
      raise UserError(
        f"The data set {config.name!r} has no {name!r}. Give it yourself with --given_npz=FILE."
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
  """Writes samples for a person and as arrays.

  Args:
    out: the folder; made if need be.
    stem: how the names of the files begin.
    modalities: all that may be in `given` and `samples`.
    given: arrays in the model's view; shown in the picture and kept in the NPZ, of what was made
      anew there alone, as `given_NAME`.
    samples: likewise what was generated.

  Returns:
    The files: `stem.png` with the first 64 samples, `stem.npz` with all arrays, and for what was
    generated a `stem_NAME.wav` (16 bit, one sound after the other), a `stem_NAME.gif` (the first 64
    videos) and a `stem_NAME.txt` (one line a sample).
  """
  # SciPy takes its time to import.
  from scipy.io import wavfile

  out = storage.path(out)
  out.mkdir(parents=True, exist_ok=True)
  shown, seen = (
    {name: x[:_MAX_SHOWN] for name, x in arrays.items()} for arrays in (samples, given)
  )
  sheet = pictures.Panel(stem.replace("_", " "), shown, seen)
  pictures.draw(out / f"{stem}.png", modalities, pictures.panels(sheet, _COLUMNS))
  remade = {f"given_{name}" if name in samples else name: x for name, x in given.items()}
  readers.write_npz(out / f"{stem}.npz", **remade, **samples)
  paths = [out / f"{stem}.png", out / f"{stem}.npz"]
  for modality in modalities:
    if modality.name not in samples:
      continue
    views = samples[modality.name]
    if modality.kind == "audio":
      pause = np.zeros(int(_PAUSE * modality.sample_rate))
      sound = np.concatenate([part for x in views for part in (modality.show(x), pause)])
      paths.append(out / f"{stem}_{modality.name}.wav")
      whole = np.round(np.clip(sound, -1.0, 1.0) * 32767).astype(np.int16)
      file = io.BytesIO()  # What cannot be written to a bucket by parts.
      wavfile.write(file, modality.sample_rate, whole)
      paths[-1].write_bytes(file.getvalue())
    elif modality.kind == "video":
      paths.append(out / f"{stem}_{modality.name}.gif")
      paths[-1].write_bytes(video_gif(shown[modality.name], _COLUMNS))
    elif modality.kind in ("text", "label"):
      paths.append(out / f"{stem}_{modality.name}.txt")
      paths[-1].write_text("".join(f"{modality.show(x)}\n" for x in views))
  return paths


if __name__ == "__main__":
  setup.run(main)
