"""The tests of one submission, in a process of its own: python trial.py JOB RESULTS.

JOB is a file of JSON: {"clean": folder, "home": folder, "seconds": s, "memory": megabytes,
"exercises": [{"name", "files": {name: text}}, ...]}.  torch is imported once.  Then each exercise
gets a copy of the clean tree, its files, and a forked child with limits on time and memory.
RESULTS gets a line of JSON for each exercise as soon as it is done, so that whatever happens later
is no loss.

This is no sandbox.  A child may read and write what its user may, and one that is written to cheat
can report what it likes.  What it holds is mistakes: loops, memory, exits, output, processes.
"""
import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

MOST_BYTES = 4_000_000                # that are read of what a child reports
PR_SET_PDEATHSIG = 1                  # of Linux's prctl


def main(job_file, results_file):
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    sys.path.remove(str(Path(__file__).resolve().parent))      # a tree of its own comes instead
    import pytest, numpy, torch                      # noqa: E401, F401  once, and not in each child
    torch.set_num_threads(1)
    torch.manual_seed(0)                             # the same grades every time, whatever it draws
    numpy.random.seed(0)
    random.seed(0)
    for number, exercise in enumerate(job["exercises"]):
        tree = Path(job["home"]) / str(number)
        shutil.copytree(job["clean"], tree)          # dates too: nothing compiles again
        for name, text in exercise["files"].items():
            (tree / name).write_text(text, encoding="utf-8")
        answer = run_child(tree, job["seconds"], job["memory"])
        shutil.rmtree(tree, ignore_errors=True)
        with open(results_file, "a", encoding="utf-8") as results:
            results.write(json.dumps({"name": exercise["name"], **answer}) + "\n")


def run_child(tree, seconds, memory):
    """-> {"tests": {id: [outcome, message]}, "end": "done", or what happened}."""
    report, deadline = tree / "report.jsonl", time.monotonic() + 3 * seconds
    child = os.fork()
    if child == 0:
        try:
            confine(tree, seconds, memory)
            run_tests(tree, report)
        finally:
            os._exit(1)                              # if it has not ended before, with 0
    status = None
    while status is None and time.monotonic() < deadline:
        pid, code = os.waitpid(child, os.WNOHANG)
        status = code if pid else None
        time.sleep(0.005)
    with contextlib.suppress(OSError):               # and whatever it has started
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    tests, ended = read_report(report)
    return {"tests": tests, "end": how_it_ended(status, ended, seconds)}


def read_report(report):
    """-> ({test: [outcome, message]}, whether the tests came to their end)."""
    tests, ended = {}, False
    with contextlib.suppress(OSError), report.open("rb") as file:
        for line in file.read(MOST_BYTES).decode("utf-8", "replace").split("\n"):
            with contextlib.suppress(ValueError, TypeError):
                test, outcome, message = json.loads(line)
                ended = ended or outcome == "end"
                if tests.get(test, ["listed"])[0] in ("listed", "passed"):      # no failure is
                    tests[test] = [outcome, message]                            # taken back
    tests.pop("", None)
    return tests, ended


def how_it_ended(status, ended, seconds):
    """In words; "done" where all is well.  status: None, if it had to be stopped."""
    if status == 0 and ended:
        return "done"
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return (f"stopped after {seconds:g} s of processor time or {3 * seconds:g} s in all "
                "(an endless loop?)")
    if os.WIFSIGNALED(status):
        return f"its process was killed ({signal.Signals(os.WTERMSIG(status)).name})"
    return (f"its process ended with exit status {os.WEXITSTATUS(status)} before its tests were "
            "done")


# --------------------------------------------------------------------------------------------------
# The child's side

def confine(tree, seconds, memory):
    """A session of its own, /dev/null for input and output, an environment that says nothing."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    home = str(tree)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME=home, TMPDIR=home, MPLCONFIGDIR=home,
                      LC_ALL="C.UTF-8", OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    os.chdir(tree)
    sys.dont_write_bytecode = True
    # Of processor time the hard limit comes later: so SIGXCPU tells time from other deaths.
    limit(resource.RLIMIT_CPU, int(seconds) or 1, 5)
    limit(resource.RLIMIT_FSIZE, 64 << 20)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NPROC, 0)                  # no process, no thread; root is not held by it
    statm = Path("/proc/self/statm")
    if statm.exists():                               # Linux; macOS does not keep this limit
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)      # it ends with its parent
        pages = int(statm.read_text().split()[0])
        limit(resource.RLIMIT_AS, pages * resource.getpagesize() + (memory << 20))


def limit(what, value, more=0):
    most = resource.getrlimit(what)[1]               # what is limited already stays so
    if most == resource.RLIM_INFINITY:
        most = value + more
    resource.setrlimit(what, (min(value, most), min(value + more, most)))


class Reporter:
    """A plugin of pytest that appends each outcome to a file as it comes."""

    def __init__(self, report):
        self.me, self.file = os.getpid(), report.open("ab", buffering=0)
        self.dumps, self.getpid = json.dumps, os.getpid

    def tell(self, test, outcome, message=""):
        printable = "".join(c if c.isprintable() else " " for c in message[:2000])
        line = self.dumps([test, outcome, " ".join(printable.split())[:300]])
        if self.getpid() == self.me:                 # a fork of the submission's says nothing
            self.file.write(line.encode() + b"\n")

    def pytest_collection_modifyitems(self, items):
        for item in items:
            self.tell(item.nodeid, "listed")

    def pytest_collectreport(self, report):
        if report.failed:
            self.tell("collection", "failed", first_words(report))

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            message = "" if report.passed else first_words(report)
            self.tell(report.nodeid, report.outcome, message)


def first_words(report):
    """The first line of what went wrong in a test."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash:
        text = crash.message
    else:
        lines = str(report.longrepr).strip().splitlines() or [""]
        text = lines[-1].removeprefix("E ").strip()
    first = text.partition("\n")[0].removeprefix("AssertionError: ")
    if first.count("(") > first.count(")"):          # cut off before its closing bracket
        first = first.replace("assert (", "assert ", 1)
    return first


def run_tests(tree, report):
    """pytest, in this process, on all tests of the tree.  It ends the process."""
    import pytest
    reporter, end = Reporter(report), os._exit
    sys.path[:0] = [str(tree), str(tree / "tests")]
    options = ["-q", "--capture=no", "--tb=native", "-W", "ignore", "-o", "addopts=",
               "--rootdir", str(tree), "-c", str(tree / "pyproject.toml")]
    for plugin in ("cacheprovider", "faulthandler", "unraisableexception", "threadexception"):
        options += ["-p", f"no:{plugin}"]
    pytest.main([*options, "tests"], plugins=[reporter])
    reporter.tell("", "end")
    end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
