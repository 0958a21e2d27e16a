"""No damage of a checkpoint is loaded silently."""

from etils import epath
import jax
import numpy as np
import pytest

from mmdiff_jax.errors import UserError
from mmdiff_jax.training import checkpoints, checksums

FAULTS = 150
TRAINED = 5  # Of these, how many go through the trainer.


def damage(rng, path):
  """Flips a byte of a file, or cuts it off; returns what was done."""
  content = bytearray(path.read_bytes())
  place = rng.integers(len(content))
  if rng.random() < 0.5:
    path.write_bytes(content[:place])
    return f"{path.name} cut off at byte {place} of {len(content)}"
  content[place] ^= rng.integers(1, 256)
  path.write_bytes(content)
  return f"byte {place} of {path.name} is now {content[place]}"


def files(step):
  """Those of a checkpoint, and its checksums."""
  found = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
  return [*sorted(found), checksums.path_of(epath.Path(step))]


def test_random_damage_is_found(workdir):
  rng = np.random.default_rng(0)
  step = workdir / "checkpoints" / "second_stage" / "12"
  every = files(step)
  assert len(every) > 10
  for number in range(FAULTS):
    # Each of them at least once, and else any.
    path = every[number] if number < len(every) else every[rng.integers(len(every))]
    good = path.read_bytes()
    done = damage(rng, path)
    assert path.read_bytes() != good
    with pytest.raises(UserError):
      checksums.verify(step)
      pytest.fail(f"{done}: not found")
    path.write_bytes(good)
    checksums.verify(step)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TRAINED))
def test_a_run_goes_on_from_before_random_damage(toy, workdir, seed, capsys):
  before = checkpoints.load_params(toy.framework(), workdir)
  rng = np.random.default_rng(seed)
  every = files(workdir / "checkpoints" / "second_stage" / "12")
  done = damage(rng, every[rng.integers(len(every))])
  capsys.readouterr()
  after = toy.train(workdir)
  said = capsys.readouterr().out
  assert "step 12 is damaged" in said and "from step 8" in said, done
  jax.tree.map(np.testing.assert_array_equal, before, after)
