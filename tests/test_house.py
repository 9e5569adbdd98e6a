"""The habits of this tree, each as a test that can fail.

Nothing here asks what the code computes.  It asks how the code is laid out: which files there are,
which of them imports which, how wide a line is, how long a function.  The tables that the tests
hold against the tree stand at the end of the file.
"""
import ast
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assignments

ROOT = Path(__file__).resolve().parent.parent
LINE, MODULE, FUNCTION, LAMBDAS = 100, 1000, 60, 20            # the most that is allowed


def tree(module):
    return ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))


def fresh(program):
    """What a program prints as JSON, run in an interpreter that has imported nothing of ours."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --------------------------------------------------------------------------------------------------
# Files

def tracked():
    """The files that git tracks.  None without git, or outside a checkout."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else None


@pytest.mark.system
def test_nothing_stands_at_the_top_level_but_what_the_tables_name():
    paths = tracked()
    if paths is None:                                          # then all but what work leaves
        there = {path.name for path in ROOT.iterdir() if path.suffix != ".egg-info"}
        there -= {"runs", "build", "__pycache__"}
    else:
        there = {path.partition("/")[0] for path in paths if (ROOT / path).exists()}
    there = {name for name in there if not name.startswith(".")}
    expected = {f"{module}.py" for module in ARROWS} | BESIDE
    assert there == expected, f"too much: {there - expected}; missing: {expected - there}"


def test_every_table_of_modules_names_the_files_that_there_are():
    there = {path.stem for path in ROOT.glob("*.py")}
    assert there == set(ARROWS) == set(PUBLIC) | {"report", "film", "run"}
    assert there == set(assignments.MODULES) and len(assignments.MODULES) == 10


def test_no_line_is_wider_than_a_laptop_shows():
    wide = []
    for path in [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "tests").glob("*.py"))]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > LINE:
                wide.append(f"{path.relative_to(ROOT)}:{number} has {len(line)}")
    assert not wide, f"{len(wide)} lines over {LINE} columns: {', '.join(wide[:10])}"


def test_no_module_is_too_long_to_be_read_in_one_sitting():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines())
             for path in ROOT.glob("*.py")}
    assert not {name: n for name, n in lines.items() if n > LONGER.get(name, MODULE)}


@pytest.mark.system
@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_ruff_is_clean():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache",
                           "--output-format", "concise", "."], cwd=ROOT,
                          capture_output=True, text=True)
    first = "\n".join(done.stdout.splitlines()[:20])
    assert done.returncode == 0, first + done.stderr


# --------------------------------------------------------------------------------------------------
# Imports

def imported(module):
    """The modules and packages that a file imports, at its top and inside functions."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("module", assignments.MODULES)
def test_arrows_run_one_way(module):
    ours = imported(module) & set(ARROWS)
    assert ours <= ARROWS[module], f"{module} must not import {ours - ARROWS[module]}"


def test_the_science_needs_torch_and_numpy_alone():
    for module, allowed in PACKAGES.items():
        packages = imported(module) - set(ARROWS) - set(sys.stdlib_module_names)
        assert packages <= allowed, f"{module} must not import {packages - allowed}"


@pytest.mark.system
def test_the_statistics_and_the_command_line_start_without_torch():
    found = fresh("""
import json, sys
import emergence, claims
found = {"statistics": sorted(sys.modules)}
import run
found["command line"] = sorted(sys.modules)
print(json.dumps(found))
""")
    assert not {"torch", "matplotlib"} & set(found["statistics"])
    assert "torch" not in found["command line"], "--help and a wrong option must answer at once"


@pytest.mark.system
def test_measures_stand_alone_and_importing_does_nothing():
    """No print: what is printed would not be JSON.  No seed: torch's generator is where it was."""
    found = fresh(f"""
import json, sys
import torch
before = torch.get_rng_state()
import measures
found = {{"loaded": sorted(sys.modules)}}
for module in {list(ARROWS)}:
    __import__(module)
found["seeded"] = not torch.equal(before, torch.get_rng_state())
print(json.dumps(found))
""")
    loaded = set(found["loaded"])
    assert "measures" in loaded and "matplotlib" not in loaded
    assert not loaded & set(ARROWS) - {"measures"}
    assert not found["seeded"]


# --------------------------------------------------------------------------------------------------
# How the code reads

def lines_of_code(function, lines):
    """Lines of a function that are neither empty, nor comments, nor its docstring."""
    documented = ast.get_docstring(function, clean=False) is not None
    first, last = function.lineno, function.end_lineno
    skipped = set()
    if documented:
        docstring = function.body[0]
        skipped = set(range(docstring.lineno, docstring.end_lineno + 1))
    code = 0
    for number in range(first, last + 1):
        text = lines[number - 1].strip()
        if number not in skipped and text and not text.startswith("#"):
            code += 1
    return code


@pytest.mark.parametrize("module", assignments.MODULES)
def test_no_function_is_longer_than_one_story(module):
    lines = (ROOT / f"{module}.py").read_text(encoding="utf-8").splitlines()
    long = {}
    for node in ast.walk(tree(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            code = lines_of_code(node, lines)
            if code > FUNCTION:
                long[node.name] = code
    assert not long, f"over {FUNCTION} lines of code: {long}"


def test_few_lambdas_for_a_def_has_a_name_to_give():
    counts = {}
    for module in ARROWS:
        counts[module] = sum(isinstance(node, ast.Lambda) for node in ast.walk(tree(module)))
    assert sum(counts.values()) <= LAMBDAS, counts


def is_puzzle(node):
    """`a if x else b if y else c`, or `-(-a // b)`."""
    if isinstance(node, ast.IfExp):
        inside = [*ast.walk(node.test), *ast.walk(node.body), *ast.walk(node.orelse)]
        return any(isinstance(other, ast.IfExp) for other in inside)
    return (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
            and isinstance(node.operand, ast.BinOp) and isinstance(node.operand.op, ast.FloorDiv))


@pytest.mark.parametrize("module", assignments.MODULES)
def test_no_puzzles(module):
    found = [f"line {node.lineno}" for node in ast.walk(tree(module)) if is_puzzle(node)]
    assert not found, f"nested conditional expressions or -(-a // b): {', '.join(found)}"


@pytest.mark.parametrize("module", assignments.MODULES)
def test_a_module_opens_with_its_contract(module):
    doc = ast.get_docstring(tree(module))
    assert doc and len(doc.splitlines()) >= 5


def test_the_public_names_are_there():
    missing = []
    for module, names in PUBLIC.items():
        loaded = importlib.import_module(module)
        missing += [f"{module}.{name}" for name in names.split() if not hasattr(loaded, name)]
    assert not missing, missing


# --------------------------------------------------------------------------------------------------
# Tables

# Rooms that have grown past one sitting: measures and pythia ask much of what they are given, so
# that no wrong number passes in silence; report has what happened in words, and a page; the others
# hold what interventions, own data and the film need.
LONGER = {"measures.py": 1285, "pythia.py": 1359, "claims.py": 1228, "emergence.py": 1155,
          "report.py": 1788, "sweep.py": 1182, "run.py": 1168}

BESIDE = {"README.md", "pyproject.toml", "LICENSE", "CITATION.cff", "tests", "results"}

ARROWS = {                            # in reading order: which of our modules each may import
    "tasks": set(),
    "models": {"tasks"},
    "measures": set(),
    "emergence": set(),
    "claims": {"emergence"},
    "sweep": {"tasks", "models", "measures"},
    "report": {"emergence", "claims"},
    "film": {"report"},
    "pythia": {"models", "measures", "emergence", "claims", "sweep"},
    "run": {"tasks", "models", "measures", "emergence", "claims", "sweep", "report", "film",
            "pythia"},
}

PACKAGES = {                          # all that these may import from outside the standard library
    "tasks": {"torch"},
    "models": {"torch"},
    "measures": {"torch"},
    "emergence": {"numpy"},
    "claims": {"numpy"},
}

PUBLIC = {                            # exercises and notebooks rely on these
    "tasks": "TASKS VOCAB_SIZE IGNORE Batch sample chance decode",
    "models": "SIZES GPT GPTConfig example_loss resample_answers Snapshot train INTERVENTIONS",
    "measures": "rankme effective_rank gradient_gram gradient_rank fisher_rank hessian_top "
                "HessianTop llc LLC linear_probe collect_states",
    "emergence": "emergence_step collapse Collapse lead_time rate_with_interval concordance "
                 "risk_set_test from_table effect Effect",
    "claims": "Specification specifications CLAIMS ARM_CLAIMS study study_arms",
    "sweep": "MEASURES record load",
    "pythia": "read_evals audit",
}
