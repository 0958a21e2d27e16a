"""No damage of a checkpoint is loaded silently."""

from etils import epath
import jax
import numpy as np
import pytest

from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, checksums

FAULTS = 150
TRAINED = 5  # The number of further faults from which training resumes.


def damage(rng, path):
  """Changes a byte of a file, or truncates it; returns a description."""
  content = bytearray(path.read_bytes())
  position = rng.integers(len(content))
  if rng.random() < 0.5:
    path.write_bytes(content[:position])
    return f"{path.name} truncated at byte {position} of {len(content)}"
  content[position] ^= rng.integers(1, 256)
  path.write_bytes(content)
  return f"byte {position} of {path.name} is now {content[position]}"


def files(step):
  """Returns the files of a checkpoint, and its checksums."""
  paths = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
  return [*sorted(paths), checksums.path_for(epath.Path(step))]


def test_random_damage_is_detected(workdir):
  rng = np.random.default_rng(0)
  step = workdir / "checkpoints" / "second_stage" / "12"
  paths = files(step)
  assert len(paths) > 10
  for number in range(FAULTS):
    # Each file at least once, then a random one.
    path = paths[number] if number < len(paths) else paths[rng.integers(len(paths))]
    good = path.read_bytes()
    change = damage(rng, path)
    assert path.read_bytes() != good
    with pytest.raises(UserError):
      checksums.verify(step)
      pytest.fail(f"{change}: not detected")
    path.write_bytes(good)
    checksums.verify(step)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TRAINED))
def test_a_run_resumes_from_before_random_damage(toy, workdir, seed, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  rng = np.random.default_rng(seed)
  paths = files(workdir / "checkpoints" / "second_stage" / "12")
  change = damage(rng, paths[rng.integers(len(paths))])
  capsys.readouterr()
  after = toy.train(workdir)
  output = capsys.readouterr().out
  assert "step 12 is damaged" in output and "from step 8" in output, change
  jax.tree.map(np.testing.assert_array_equal, before, after)
