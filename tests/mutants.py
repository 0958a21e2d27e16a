"""Checks by mutation that the tests prove the mathematics.

  python tests/mutants.py [--modules=schedules,solvers/ode] [--limit=N] [--jobs=2] [--out=FILE]

Every operator, constant, pair of arguments and name with a counterpart (alpha and sigma, t and s,
exp and expm1, ...) in the modules of mathematics is changed by rule, one at a time, and the tests
must fail. Files are not changed: a forked child imports the changed text in place of the module's,
through the usual check of annotations, and runs the tests that call the changed function,
most likely to fail first, up to the first failure.

First the tests are run on the unchanged code: once to see which test calls which function, and once
as with a mutant, to see that they pass and how long each takes. A mutant that no test catches is a
survivor.
`tests/mutants_equivalent.md` lists mutants with the proof that they change nothing that the package
promises. They are not tested; any other survivor makes the exit status 1.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator, Set
import gc
import importlib
import itertools
import json
import multiprocessing
from multiprocessing import connection as connections
import os
from pathlib import Path
import random
import re
import resource
import signal
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
  "schedules/*.py",
  "prediction.py",
  "noise.py",
  "diffusion.py",
  "multitime/*.py",
  "guidance.py",
  "solvers/*.py",
)
TESTS = (
  "laws/*_test.py",
  "schedules_test.py",
  "prediction_test.py",
  "noise_test.py",
  "diffusion_test.py",
  "multitime_test.py",
  "guidance_test.py",
  "solvers/*_test.py",
)
EQUIVALENT = ROOT / "tests" / "mutants_equivalent.md"
PASSED, FAILED, INTERRUPTED, NO_TESTS = 0, 1, 2, 5  # pytest's exit statuses
QUICK = 15.0
KEY = ("module", "where", "original", "mutated")

# ---------------------------------------------------------------------------- mutants

BINARY = {
  ast.Add: ("+", "-"),
  ast.Sub: ("-", "+"),
  ast.Mult: ("*", "/"),
  ast.Div: ("/", "*"),
  ast.FloorDiv: ("//", "*"),
  ast.Mod: ("%", "*"),
  ast.Pow: ("**", "*"),
  ast.MatMult: ("@", "*"),
  ast.LShift: ("<<", ">>"),
  ast.RShift: (">>", "<<"),
  ast.BitAnd: ("&", "|"),
  ast.BitOr: ("|", "&"),
  ast.BitXor: ("^", "|"),
}
COMPARE = {
  ast.Lt: ("<", "<="),
  ast.LtE: ("<=", "<"),
  ast.Gt: (">", ">="),
  ast.GtE: (">=", ">"),
  ast.Eq: ("==", "!="),
  ast.NotEq: ("!=", "=="),
  ast.Is: ("is", "is not"),
  ast.IsNot: ("is not", "is"),
  ast.In: ("in", "not in"),
  ast.NotIn: ("not in", "in"),
}
UNARY = {ast.USub: "-", ast.Invert: "~", ast.Not: "not"}
# Another operator binds differently here, so that the expression needs parentheses.
REBINDS = (ast.Pow, ast.BitAnd, ast.BitOr, ast.BitXor)
COUNTERPARTS = (
  ("alpha", "sigma"),
  ("alpha_t", "sigma_t"),
  ("alpha_s", "sigma_s"),
  ("alpha_t", "alpha_s"),
  ("sigma_t", "sigma_s"),
  ("x0", "eps"),
  ("t", "s"),
  ("start", "end"),
  ("starts", "ends"),
  ("given", "absent"),
  ("drift", "diffusion"),
  ("eps_to_x0", "x0_to_eps"),
  ("v_to_x0", "v_to_eps"),
  ("score_to_eps", "eps_to_score"),
  ("sin", "cos"),
  ("sinh", "cosh"),
  ("exp", "expm1"),
  ("log", "log1p"),
  ("minimum", "maximum"),
  ("min", "max"),
  ("argmin", "argmax"),
  ("any", "all"),
  ("zeros", "ones"),
  ("zeros_like", "ones_like"),
)
# Another order of arguments gives the same value, or is not a valid program.
ORDERLESS = {"isinstance", "minimum", "maximum", "min", "max", "hypot", "logaddexp", "multiply"}

Edit = tuple[int, int, bytes]
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Mutant(NamedTuple):
  """One change of one module.

  Attributes:
    module: path of the file from the repository's root.
    where: qualified name of the function or class around the change, or `<module>`.
    line: first changed line.
    rule: the kind of change.
    original: the changed lines before the change, on one line.
    mutated: the same lines after the change.
    source: text of the whole module after the change.
  """

  module: str
  where: str
  line: int
  rule: str
  original: str
  mutated: str
  source: str


class _Sites:
  """Finds where a module can be changed, as (qualified name, rule, edits of the text)."""

  def __init__(self, source: bytes):
    self._source = source
    lengths = (len(line) for line in source.splitlines(keepends=True))
    self._starts = [0, *itertools.accumulate(lengths)]

  def _span(self, node) -> tuple[int, int]:
    return (
      self._starts[node.lineno - 1] + node.col_offset,
      self._starts[node.end_lineno - 1] + node.end_col_offset,
    )

  def _operator(self, left, right, old, new) -> Edit:
    """Replaces the operator between two nodes, past brackets and comments between them."""
    between = self._source[self._span(left)[1] : self._span(right)[0]]
    skipped = re.match(rb"(?:[\s)\\]|#[^\n]*)*", between).end()
    begin = self._span(left)[1] + skipped
    words = rb"\s+".join(re.escape(word).encode() for word in old.split())
    length = re.match(words, between[skipped:]).end()
    return begin, begin + length, new.encode()

  def _swap(self, one, other) -> list[Edit]:
    one, other = self._span(one), self._span(other)
    text = [self._source[slice(*span)] for span in (one, other)]
    return [(*one, text[1]), (*other, text[0])] if text[0] != text[1] else []

  def _around(self, node) -> list[Edit]:
    begin, end = self._span(node)
    return [(begin, begin, b"("), (end, end, b")")]

  def _name(self, node, text, bound) -> Iterator[tuple[str, list[Edit]]]:
    end = self._span(node)[1]
    for pair in COUNTERPARTS:
      if text in pair:
        other = pair[1 - pair.index(text)]
        if bound is None or other in bound:
          yield "counterpart", [(end - len(text), end, other.encode())]

  def _of(self, node, bound, within) -> Iterator[tuple[str, list[Edit]]]:
    """Yields the changes of one node itself, without its children."""
    match node:
      case ast.BinOp(left=left, op=op, right=right):
        if not (within and isinstance(op, ast.BitOr)):  # at the module level it is a type
          edits = [self._operator(left, right, *BINARY[type(op)])]
          yield "operator", edits + (self._around(node) if isinstance(op, REBINDS) else [])
      case ast.AugAssign(target=target, op=op, value=value):
        old, new = BINARY[type(op)]
        yield "operator", [self._operator(target, value, old + "=", new + "=")]
      case ast.Compare(left=left, ops=ops, comparators=comparators):
        for one, op, other in zip([left, *comparators], ops, comparators, strict=False):
          yield "comparison", [self._operator(one, other, *COMPARE[type(op)])]
      case ast.BoolOp(op=op, values=values):
        names = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
        pairs = itertools.pairwise(values)
        yield "operator", [self._operator(*pair, *names) for pair in pairs] + self._around(node)
      case ast.UnaryOp(op=op) if type(op) in UNARY:
        begin = self._span(node)[0]
        length = re.match(re.escape(UNARY[type(op)]).encode() + rb"\s*", self._source[begin:]).end()
        yield "dropped", [(begin, begin + length, b"")]
      case ast.Constant(value=bool() as value):
        yield "constant", [(*self._span(node), repr(not value).encode())]
      case ast.Constant(value=int() | float() as value):
        yield "constant", [(*self._span(node), repr(value + 1).encode())]
        if not float(value).is_integer():
          yield "constant", [(*self._span(node), repr(value * 2).encode())]
      case ast.Name(id=text, ctx=ast.Load()):
        yield from self._name(node, text, bound)
      case ast.Attribute(attr=text, ctx=ast.Load()):
        yield from self._name(node, text, None)
      case ast.Call(func=func, args=args, keywords=keywords):
        called = getattr(func, "attr", getattr(func, "id", ""))
        values = [[] if called in ORDERLESS else args, [keyword.value for keyword in keywords]]
        for one, other in itertools.chain.from_iterable(map(itertools.pairwise, values)):
          if not isinstance(one, ast.Starred) and not isinstance(other, ast.Starred):
            yield "arguments", self._swap(one, other)

  def _condition(self, test) -> Iterator[tuple[str, list[Edit]]]:
    if isinstance(test, ast.Name | ast.Attribute | ast.Call):
      begin = self._span(test)[0]
      yield "condition", [(begin, begin, b"not ")]

  def walk(self, node, where=(), bound=frozenset()) -> Iterator[tuple[str, str, list[Edit]]]:
    """Yields changes below `node`, not in annotations, decorators, imports, strings or errors."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
      return
    if isinstance(node, ast.Module):
      bound = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
    if isinstance(node, Function):
      inner = list(ast.walk(node))
      bound = bound | {child.arg for child in inner if isinstance(child, ast.arg)}
      bound |= {c.id for c in inner if isinstance(c, ast.Name) and isinstance(c.ctx, ast.Store)}
    if isinstance(node, Function | ast.ClassDef):
      where = (*where, getattr(node, "name", "<lambda>"))
    name = ".".join(where).removesuffix(".<locals>") or "<module>"
    of_node = self._of(node, bound, not where)
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
    tests += node.ifs if isinstance(node, ast.comprehension) else []
    for rule, edits in itertools.chain(of_node, *map(self._condition, tests)):
      if edits:
        yield name, rule, edits
    if isinstance(node, Function):
      where = (*where, "<locals>")
    left_out = {"annotation", "returns", "decorator_list", "type_params"}
    for field, value in ast.iter_fields(node):
      if field not in left_out:
        for child in value if isinstance(value, list) else [value]:
          if isinstance(child, ast.AST):
            yield from self.walk(child, where, bound)


def mutants_of(source: str, module: str, within: Set[str] | None = None) -> list[Mutant]:
  """Returns all mutants of a module, or of the functions named, in the order of its lines."""
  text = source.encode()
  tree = ast.parse(source)
  unchanged = ast.dump(tree)
  by_source = {}
  for where, rule, edits in _Sites(text).walk(tree):
    if within is not None and where not in within:
      continue
    changed = text
    for begin, end, new in sorted(edits, reverse=True):
      changed = changed[:begin] + new + changed[end:]
    changed = changed.decode()
    if ast.dump(ast.parse(changed)) == unchanged:
      continue
    first, last = (text.count(b"\n", 0, at) for at in (min(edits)[0], max(edits)[1]))
    lines = (
      " ".join(line.strip() for line in version.split("\n")[first : last + 1])
      for version in (source, changed)
    )
    by_source.setdefault(changed, Mutant(module, where, first + 1, rule, *lines, changed))
  return sorted(by_source.values(), key=lambda mutant: mutant.line)


def equivalent(table: str) -> dict[tuple[str, str, str, str], str]:
  """Reads a table in Markdown: (module, where, original, mutated) to the proof."""
  proofs = {}
  for row in table.splitlines():
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    if len(cells) == 5 and all(cell.startswith("`") for cell in cells[:4]):
      proofs[tuple(cell.strip("`").replace(r"\|", "|") for cell in cells[:4])] = cells[4]
  return proofs


def key(mutant: Mutant) -> tuple[str, str, str, str]:
  """Returns the key of a mutant in the table of proofs: not its line, which changes too often."""
  return tuple(getattr(mutant, field) for field in KEY)


# ---------------------------------------------------------------------------- children


class Result(NamedTuple):
  """The result of one run of pytest: the exit status, and the records of `_Plugin`."""

  status: int
  failed: str | None
  seconds: dict[str, float]
  calls: dict[str, set[tuple[str, str]]]
  output: str


class _Plugin:
  """Runs tests in the given order, and records which fail, how long they take, what they call."""

  def __init__(self, order: list[str] | slice, watched: frozenset[str] = frozenset()):
    self.order = order
    self.watched = watched
    self.failed = None
    self.seconds = {}
    self.calls = {"": set()}  # under "" the functions called when tests are imported

  def _watch(self, test):
    calls = self.calls.setdefault(test, set())

    def note(frame, event, _):
      code = frame.f_code
      if event == "call" and code.co_filename in self.watched:
        calls.add((code.co_filename, code.co_qualname.split(".<locals>")[0]))

    sys.setprofile(note)

  def pytest_sessionstart(self):
    if self.watched:
      self._watch("")

  def pytest_collection_modifyitems(self, items):
    if isinstance(self.order, slice):
      items[:] = items[self.order]
    else:
      position = {test: i for i, test in enumerate(self.order)}
      items[:] = sorted(
        (item for item in items if item.nodeid in position), key=lambda item: position[item.nodeid]
      )

  def pytest_runtest_logstart(self, nodeid):
    if self.watched:
      import jax

      jax.clear_caches()  # otherwise functions that another test has traced are not called again
      self._watch(nodeid)
    self._begin = time.process_time()  # which other work on the machine does not lengthen

  def pytest_runtest_logfinish(self, nodeid):
    self.seconds[nodeid] = time.process_time() - self._begin
    sys.setprofile(None)

  def pytest_collectreport(self, report):
    if report.failed:
      self.failed = self.failed or report.nodeid

  def pytest_runtest_logreport(self, report):
    if report.failed:
      self.failed = self.failed or report.nodeid


def _replace(path: str, source: str):
  """Makes an import of the file `path` read `source`, by any loader derived from Python's."""
  from importlib.machinery import SourceFileLoader

  get_data, path_stats = SourceFileLoader.get_data, SourceFileLoader.path_stats

  def replaced_data(self, file):
    return source.encode() if file == path else get_data(self, file)

  def replaced_stats(self, file):
    if file == path:
      raise OSError  # without them bytecode is neither read nor written
    return path_stats(self, file)

  SourceFileLoader.get_data, SourceFileLoader.path_stats = replaced_data, replaced_stats


def _child(pipe, files, plugin, mutant, cpu_seconds):
  import jax
  import pytest

  resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
  if mutant:
    _replace(str(ROOT / mutant.module), mutant.source)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # reads, never writes
  options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
  with tempfile.TemporaryFile() as output:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    status = pytest.main([*options, *files], plugins=[plugin])
    sys.setprofile(None)
    sys.stdout.flush()
    output.seek(0)
    text = output.read().decode(errors="replace")
  pipe.send(Result(int(status), plugin.failed, plugin.seconds, plugin.calls, text))
  os._exit(0)


class _Children:
  """Forked children, at most `jobs` at once, each with one run of the tests."""

  def __init__(self, jobs: int):
    self.jobs = jobs
    self._running = {}

  def run(self, tasks) -> Iterator[tuple]:
    """Turns (label, files, plugin, mutant, CPU seconds) into (label, result or None, exit code).

    The result is None for a child that died, by the limit of its CPU time or otherwise.
    """
    context = multiprocessing.get_context("fork")
    tasks = iter(tasks)
    while True:
      for label, *task in itertools.islice(tasks, self.jobs - len(self._running)):
        ours, its = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(its, *task), daemon=True)
        process.start()
        its.close()
        self._running[ours] = label, process
      if not self._running:
        return
      for pipe in connections.wait(list(self._running)):
        label, process = self._running.pop(pipe)
        try:
          result = pipe.recv()
        except EOFError:
          result = None
        process.join()
        yield label, result, process.exitcode


# ---------------------------------------------------------------------------- the complete run


def _baseline(children, files, watched):
  """Returns which tests call which functions, and how long each takes; exits if one fails."""
  calls, seconds = {}, {}
  for watch in (watched, frozenset()):
    parts = [slice(i, None, children.jobs) for i in range(children.jobs)]
    tasks = ((f, [f], _Plugin(part, watch), None, 3600) for f in files for part in parts)
    for file, result, exitcode in children.run(tasks):
      if result is None or result.status not in (PASSED, NO_TESTS):
        reason = f"the child ended with {exitcode}" if result is None else result.output
        sys.exit(f"The tests in {file} do not pass on the unchanged code:\n{reason}")
      if watch:  # the slower run: nothing is compiled yet, as for a mutant whose effect is compiled
        seconds |= result.seconds
        for test, called in result.calls.items():
          calls.setdefault(test, set()).update(called)
  return calls, seconds


def _sampled(mutants: list[list[Mutant]], limit: int | None) -> list[Mutant]:
  """Returns at most `limit` mutants, evenly over the modules, always the same ones."""
  random_state = random.Random(0)
  shuffled = [random_state.sample(of_module, len(of_module)) for of_module in mutants]
  turns = (m for turn in itertools.zip_longest(*shuffled) for m in turn if m is not None)
  return list(itertools.islice(turns, limit))


def main(argv: list[str]) -> int:
  """Runs the script; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--modules", default="", help="parts of paths, separated by commas")
  parser.add_argument("--tests", default=",".join(TESTS), help="patterns below tests/")
  parser.add_argument("--limit", type=int, help="test only this many mutants, evenly over modules")
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--out", help="write every mutant's fate to this file, as JSON")
  parser.add_argument("--again", help="tests only the survivors in such a file")
  options = parser.parse_args(argv)

  os.chdir(ROOT)
  package = ROOT / "mmdiff_jax"
  paths = [path for pattern in MODULES for path in sorted(package.glob(pattern))]
  wanted = options.modules.split(",")
  paths = [p for p in paths if p.name != "__init__.py" and any(w in str(p) for w in wanted)]
  of_tests = options.tests.split(",")
  files = [str(p.relative_to(ROOT)) for t in of_tests for p in sorted((ROOT / "tests").glob(t))]
  modules = [str(path.relative_to(ROOT)) for path in paths]
  mutants = [mutants_of(p.read_text(), m) for p, m in zip(paths, modules, strict=True)]
  keys = {key(mutant) for mutant in itertools.chain(*mutants)}
  proofs = equivalent(EQUIVALENT.read_text())
  proven = Counter(m.module for m in itertools.chain(*mutants) if key(m) in proofs)
  mutants = [[m for m in of_module if key(m) not in proofs] for of_module in mutants]
  if options.again:
    rows = json.loads(Path(options.again).read_text())
    survived = {tuple(row[f] for f in KEY) for row in rows if row["fate"] == "survived"}
    mutants = [[m for m in of_module if key(m) in survived] for of_module in mutants]
  sampled = _sampled(mutants, options.limit)
  stale = [proof for proof in proofs if proof[0] in modules and proof not in keys]

  os.environ |= {"JAX_PLATFORMS": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
  # Imported once, before the forks; no computation, which would start threads that no fork keeps.
  for name in ("beartype", "hypothesis", "jax.numpy", "jaxtyping", "numpy.testing", "pytest"):
    importlib.import_module(name)
  import jax

  gc.freeze()
  begin = time.monotonic()
  children = _Children(options.jobs)
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_disable_most_optimizations", True)  # a sixth less time to compile
    print(f"{len(sampled)} mutants; first the unchanged code", flush=True)
    calls, seconds = _baseline(children, files, frozenset(map(str, paths)))
    print(f"{len(seconds)} tests pass, {time.monotonic() - begin:.0f} s", flush=True)
    fates = _fates(children, sampled, calls, seconds)
  if options.out:
    rows = [m._asdict() | fate for m, fate in fates]
    Path(options.out).write_text(
      json.dumps([{k: v for k, v in row.items() if k != "source"} for row in rows], indent=1)
    )
  return _report(modules, fates, proven, stale)


def _fates(children, mutants, calls, seconds):
  """Runs the tests on every mutant; returns (mutant, {fate, test}) in order of modules and lines.

  Most are caught soon. So each mutant first runs the tests that take `QUICK` seconds together, and
  the survivors then run the others.
  """
  fates = [{"fate": "survived", "test": None} for _ in mutants]
  kills, tried = Counter(), [[] for _ in mutants]

  def task(index, most):
    mutant = mutants[index]
    # The outermost function: Python and the tree name a lambda in a comprehension differently.
    function = str(ROOT / mutant.module), mutant.where.split(".<locals>")[0]
    reached = [test for test in seconds if function in calls[""] | calls[test]]
    reached = [test for test in reached if test not in tried[index]]
    # Tests that have caught mutants of this function come first.
    reached.sort(key=lambda test: seconds[test] / (1 + kills[function, test]))
    sums = itertools.accumulate(seconds[test] for test in reached)
    reached = [test for test, total in zip(reached, sums, strict=True) if total <= most]
    tried[index] += reached
    files = list(dict.fromkeys(test.split("::")[0] for test in reached))
    limit = 30 + int(6 * sum(seconds[test] for test in reached))
    return index, files, _Plugin(reached), mutant, limit

  for most in (QUICK, float("inf")):
    left = [index for index, fate in enumerate(fates) if fate["fate"] == "survived"]
    which = "quick" if most == QUICK else "all other"
    print(f"{len(left)} mutants against {which} tests", flush=True)
    begin = last = time.monotonic()
    tasks = (new for index in left if (new := task(index, most))[1])
    for done, (index, result, exitcode) in enumerate(children.run(tasks), 1):
      mutant = mutants[index]
      if result is None:
        limit = exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        why = "the limit of its time" if limit else f"exit code {exitcode}"
        fates[index] = {"fate": "caught", "test": why}
      elif result.status in (FAILED, INTERRUPTED):  # the latter if the import of a test fails
        fates[index] = {"fate": "caught", "test": result.failed}
        outermost = mutant.where.split(".<locals>")[0]
        kills[(str(ROOT / mutant.module), outermost), result.failed] += 1
      elif result.status != PASSED:
        sys.exit(f"{result.output}\npytest ended with {result.status} on {_line(mutant)}")
      else:
        print(f"survives {which} tests: {_line(mutant)}", flush=True)
      if time.monotonic() - last > 30:
        last = time.monotonic()
        minutes = (last - begin) / done * (len(left) - done) / 60
        print(f"{done} of {len(left)}, {minutes:.0f} min to go", flush=True)
  fates = zip(mutants, fates, strict=True)
  return sorted(fates, key=lambda fate: (fate[0].module, fate[0].line))


def _line(mutant: Mutant) -> str:
  return f"{mutant.module}:{mutant.line}: {mutant.original}  ->  {mutant.mutated}"


def _report(modules, fates, proven, stale) -> int:
  tried = Counter(mutant.module for mutant, _ in fates)
  survivors = [mutant for mutant, fate in fates if fate["fate"] == "survived"]
  survived = Counter(mutant.module for mutant in survivors)
  print(f"\n{'module':<32}{'proven equivalent':>18}{'tried':>8}{'caught':>8}{'survivors':>11}")
  for name, counted in [*((module, [module]) for module in modules), ("all", modules)]:
    same, of, left = (sum(counts[m] for m in counted) for counts in (proven, tried, survived))
    print(f"{name.removeprefix('mmdiff_jax/'):<32}{same:>18}{of:>8}{of - left:>8}{left:>11}")
  for mutant in survivors:
    print(f"survivor {_line(mutant)}")
  for proof in stale:
    print(f"listed as equivalent, but no mutant: {' '.join(proof)}")
  return int(bool(survivors or stale))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
