"""The virtual environment that `make` fills holds the package."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_package_can_be_imported_outside_the_repository(tmp_path):
  """Installs without the pins, which take minutes; pip downloads setuptools for the build."""
  repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
  elsewhere.mkdir()
  repository.mkdir()
  for name in ("Makefile", "pyproject.toml", "README.md"):
    shutil.copy(ROOT / name, repository)
  shutil.copytree(ROOT / "mmdiff_jax", repository / "mmdiff_jax")
  (repository / "requirements.txt").touch()
  environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

  def run(*command, **options):
    return subprocess.run(
      command, env=environment, capture_output=True, text=True, check=False, **options
    )

  result = run("make", ".venv/installed", cwd=repository)
  if result.returncode and "No matching distribution found for setuptools" in result.stderr:
    pytest.skip("no package registry can be reached")
  assert result.returncode == 0, result.stderr
  python = repository / ".venv" / "bin" / "python"
  code = "import mmdiff_jax; print(mmdiff_jax.__file__)"
  assert run(python, "-c", code, cwd=elsewhere).stdout.strip() == str(
    repository / "mmdiff_jax" / "__init__.py"
  )
  # It is rebuilt when its requirements have changed.
  assert run("make", "--question", ".venv/installed", cwd=repository).returncode == 0
  os.utime(repository / "pyproject.toml", (2**33, 2**33))
  assert run("make", "--question", ".venv/installed", cwd=repository).returncode == 1
