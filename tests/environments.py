"""Python 3.10 to 3.13, each with the oldest and the newest torch and numpy that are promised.

    python tests/environments.py                    all of them
    python tests/environments.py 3.11               only these

Each is a virtual environment in a temporary folder.  In it run the examples of all docstrings, and
`analyse` of a committed sweep, whose events.csv must come out as it is committed.  A Python that is
not found, and a package that pip cannot have, are skipped by name: one line for each environment.
Where a Python has no torch, what needs none is tried: that all files compile, and the examples of
the statistics and of the report.

torch is taken as a build for CPUs ("+cpu" on Linux), never with CUDA's gigabytes.  Where pip's
usual index has none, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS tells it where there are some.
Exit status 1 if anything failed.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWEEP = "modadd"                      # a small one in results/
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHS = ("2.6.0", "2.13.0")          # as pyproject.toml has it
OLD_NUMPY = {"3.13": "2.1.0"}         # the first with wheels for it; else:
OLDEST_NUMPY = "1.26.4"
OTHERS = ("matplotlib", "typer", "rich", "filelock", "jinja2")
WITHOUT_TORCH = ("emergence", "claims", "report")
MODULES = ("tasks", "models", "measures", "sweep", "pythia", "run", *WITHOUT_TORCH)

EXAMPLES = f"""
import doctest, importlib, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy
try:
    import torch
    print("torch", torch.__version__ + ", numpy", numpy.__version__)
    torch.set_num_threads(1)
except ImportError:
    print("no torch, numpy", numpy.__version__)
for name in sys.argv[1:]:
    found = doctest.testmod(importlib.import_module(name))
    if found.failed:
        sys.exit(f"{{name}}: {{found.failed}} of {{found.attempted}} examples failed")
"""


class Skipped(Exception):
    """Not to be had here."""


def find_python(version):
    """The path of a Python of this version that runs: on the PATH, of uv, or of pyenv."""
    found = [shutil.which(f"python{version}")]
    if shutil.which("uv"):
        done = subprocess.run(["uv", "python", "find", "--offline", version], capture_output=True,
                              text=True)
        found.append(done.stdout.strip())
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += sorted(home.glob(f"versions/{version}.*/bin/python"))
    for path in filter(None, found):
        ask = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.stdout.strip() == version:
            return path
    raise Skipped(f"no Python {version} here")


def tail(done):
    return " ".join((done.stdout + done.stderr).split())[-400:]


def make(folder, version, torch, numpy):
    """A virtual environment with these -> its Python.  None: no torch; the newest numpy."""
    subprocess.run([find_python(version), "-m", "venv", folder], check=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = [f"numpy=={numpy}" if numpy else "numpy", *OTHERS]
    if torch:                                                   # else with CUDA
        build = "+cpu" if sys.platform == "linux" else ""
        wanted.insert(0, f"torch=={torch}{build}")
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:",
                           *wanted], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = errors[0].removeprefix("ERROR: ") if errors else "pip failed"
        raise Skipped(f"Python {version}, {', '.join(wanted[:2])}: not to be had ({why:.150})")
    return python


def call(python, folder, *arguments):
    """Run that Python in that folder; RuntimeError with the end of what it says if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder)}
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True,
                          cwd=folder, env=environment)
    if done.returncode:
        raise RuntimeError(tail(done))
    return done


def check(python, folder):
    """Run the examples and `analyse` -> what is in the environment; RuntimeError if one fails."""
    about = call(python, folder, "-c", EXAMPLES, *MODULES).stdout.splitlines()[0]
    shutil.copytree(ROOT / "results" / SWEEP, folder / SWEEP)
    (folder / SWEEP / "events.csv").unlink()
    said = call(python, folder, ROOT / "run.py", "analyse", folder / SWEEP)
    if "could not be drawn" in said.stdout or said.stderr:
        raise RuntimeError(tail(said))
    events = [(place / SWEEP / "events.csv").read_text() for place in (folder, ROOT / "results")]
    if events[0] != events[1]:
        raise RuntimeError("events.csv is not the committed one")
    return about


def check_without_torch(python, folder):
    for place in (ROOT, ROOT / "tests"):
        shutil.copytree(place, folder / "tree" / place.name, dirs_exist_ok=True,
                        ignore=lambda where, names: [name for name in names
                                                     if not name.endswith(".py")])
    call(python, folder, "-m", "compileall", "-q", folder / "tree")
    return call(python, folder, "-c", EXAMPLES, *WITHOUT_TORCH).stdout.splitlines()[0]


def environments(versions):
    """(Python, torch, numpy) of each: old with old, new with old, new with new."""
    for version in versions:
        oldest = OLD_NUMPY.get(version, OLDEST_NUMPY)
        yield from ((version, TORCHS[0], oldest), (version, TORCHS[1], oldest),
                    (version, TORCHS[1], None))


def run_one(version, torch, numpy, tell):
    """-> did it pass?  None: it was not to be had."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            python = make(folder / "venv", version, torch, numpy)
            about = (check if torch else check_without_torch)(python, folder)
            tell(f"ok: Python {version}, {about} ({time.monotonic() - begin:.0f} s)")
            return True
        except Skipped as error:
            tell(f"skipped: {error}")
        except RuntimeError as error:
            tell(f"FAILED: Python {version}, torch {torch}, numpy {numpy or 'newest'}: {error}")
            return False


def run_all(versions=PYTHONS, tell=print):
    """-> [did it pass?] of the environments that could be had."""
    passed = []
    for version in versions:
        own = [run_one(*each, tell) for each in environments([version])]
        if set(own) == {None}:
            own.append(run_one(version, None, None, tell))
        passed += [one for one in own if one is not None]
    return passed


if __name__ == "__main__":
    sys.exit(not all(run_all(sys.argv[1:] or PYTHONS)))
