"""Static counts of the code's style: names, docstrings, sizes and imports."""

import ast
import pathlib

import grimp
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
  path for room in ("mmdiff_jax", "experiments", "configs") for path in ROOT.glob(f"{room}/**/*.py")
]
# Words that name nothing: a noun says what a variable holds.
VAGUE = {"found", "known", "own", "said", "told", "shown", "made", "place", "whole", "chosen"}
# The place of a digit on a page, and of a column's files: fields of data and configs.
PLACES = {"captioned_digits.py", "sketched_digits.py", "columns.py"}
LARGEST = 450


def relative(path):
  return str(path.relative_to(ROOT))


def variables(tree):
  """Yields the names of all variables and arguments."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.id
    elif isinstance(node, ast.arg):
      yield node.arg


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_names_and_docstrings(path):
  tree = ast.parse(path.read_text())
  vague = VAGUE & set(variables(tree))
  assert not vague - ({"place"} if path.name in PLACES else set())
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      first = (ast.get_docstring(node) or "-").split()[0]
      assert first not in ("What", "Of", "Where"), node


@pytest.mark.parametrize("path", (ROOT / "mmdiff_jax").glob("**/*.py"), ids=relative)
def test_files_are_of_one_sitting(path):
  assert len(path.read_text().splitlines()) <= LARGEST


@pytest.mark.parametrize("framework", ["mld", "mt_diffusion", "mcdm", "codi"])
def test_losses_and_samplers_take_a_record(framework):
  """A config is parsed in `model`; below it no function takes one."""
  folder = ROOT / "mmdiff_jax" / "frameworks" / framework
  for path in folder.glob("*.py"):
    if path.name not in ("__init__.py", "model.py"):
      assert "config" not in set(variables(ast.parse(path.read_text()))), path


def test_there_is_no_import_cycle():
  graph = grimp.build_graph("mmdiff_jax")
  imported = {
    module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules
  }
  # Modules that import nothing but what is left out already are taken out, until none is.
  while True:
    ends = {module for module, modules in imported.items() if not modules & set(imported)}
    if not ends:
      break
    for module in ends:
      del imported[module]
  assert not imported
