"""The worker that grades: a process of its own, which `assignments.Worker` starts on a clean copy.

It imports torch once and says which tests there are.  Then, for each job (a line of JSON), it forks
a child.  The child may take the time, memory and processes that it is given and no more.  It runs
the tests that the job names, and the worker answers with a line of JSON.  Whatever a child has
started is killed with it.

This file decides on no points (assignments.py does), and it is no sandbox: a child that is run as
any user but root can write what that user can write.
"""
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

PROCESSES = 48                        # that a job may have, threads included
MOST_BYTES = 4_000_000                # that are read from a job
# prctl and capset of Linux, by number.
PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 8, 36, 38
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2


def serve(clean, folder, seconds, memory):
    """Import everything once and list the tests.  Then: a job from stdin, its result to stdout."""
    clean, folder, answers = Path(clean), Path(folder), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                              # what prints, prints elsewhere
    # Orphans of a job become children of this process, and so they are found.
    on_linux("prctl", PR_SET_CHILD_SUBREAPER, 1)
    everything = import_once(clean)
    job = {"tests": everything, "files": {}, "list": True}
    listed = run_child(clean, folder, job, 300, 4096)
    send(answers, sorted(listed["tests"]))
    for line in sys.stdin.buffer:
        send(answers, run_child(clean, folder, json.loads(line), float(seconds), int(memory)))


def send(answers, value):
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


def import_once(clean):
    """Import what the tests need, so that no child has to.  Returns the tests of all exercises."""
    sys.path[:0] = [str(clean), str(clean / "tests")]
    import pytest, torch, torch._dynamo              # noqa: E401, F401  torch.func wants it
    import assignments
    everything = [test for e in assignments.exercises(root=clean) for test in e.tests]
    for module in assignments.MODULES:
        with contextlib.suppress(ImportError):                 # of a package that is an extra
            __import__(module)
    # The modules themselves are imported anew in each child, with the submission's function.
    for module in assignments.MODULES:
        sys.modules.pop(module, None)
    del sys.path[:2]
    torch.set_num_threads(1)
    return everything


# --------------------------------------------------------------------------------------------------
# The worker's side of a job

def run_child(clean, folder, job, seconds, memory):
    """One job in a forked process.

    Returns {"tests": {id: [outcome, message]}, "end": "done" or what happened, "seconds"}."""
    token, began = secrets.token_hex(16), time.monotonic()
    tree = clean if job.get("list") else tree_for(clean, folder, job["files"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            confine(tree, writing, seconds, memory, job.get("list"))
            run_tests(tree, job, token, writing)
        finally:
            os._exit(1)                                        # if it has not ended before, with 0
    os.close(writing)
    received, status = wait_for(child, reading, began + 3 * seconds)
    clean_up(child)
    received += what_is_left(reading, len(received))
    os.close(reading)
    if tree != clean:
        shutil.rmtree(tree, ignore_errors=True)
    tests, ended = read_outcomes(received, token, child)
    return {"tests": tests, "end": how_it_ended(status, ended, seconds),
            "seconds": time.monotonic() - began}


def tree_for(clean, folder, files):
    """A copy of the clean tree with the job's files in it."""
    tree = Path(tempfile.mkdtemp(dir=folder))
    shutil.copytree(clean, tree, dirs_exist_ok=True)           # dates too: nothing compiles again
    for name, text in files.items():
        (tree / name).write_text(text, encoding="utf-8")
    tree.chmod(0o755)
    (tree / "home").mkdir()
    return tree


def wait_for(child, reading, deadline):
    """Read what the child writes until it ends -> (bytes, wait status).

    The status is "time" if the child was stopped at the deadline."""
    received, status = b"", None
    while status is None:
        if select.select([reading], [], [], 0.02)[0]:
            more = os.read(reading, 65536)
            received += more[:max(0, MOST_BYTES - len(received))]
            if not more:
                time.sleep(0.005)
        pid, code = os.waitpid(child, os.WNOHANG)
        if pid:
            status = code
        elif time.monotonic() > deadline:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
            status = "time"
    return received, status


def what_is_left(reading, length):
    """What the child had written and nobody had read, up to MOST_BYTES in all."""
    left = b""
    os.set_blocking(reading, False)
    with contextlib.suppress(BlockingIOError):
        while length + len(left) < MOST_BYTES and (more := os.read(reading, 65536)):
            left += more
    return left


def read_outcomes(received, token, child):
    """-> ({test: [outcome, message]}, whether the tests came to their end).

    Only lines that begin with the job's token count: a submission does not know it."""
    beginning, tests, ended = f'["{token}", {child}, ', {}, False
    for line in received.decode("utf-8", "replace").split("\n"):
        if not (line.startswith(beginning) and line.endswith("]")):
            continue
        _, _, test, outcome, message = json.loads(line)
        ended = ended or outcome == "end"
        before = tests.get(test, ["passed"])[0]
        if test and before == "passed":                        # a failure is not taken back
            tests[test] = [outcome, message]
    return tests, ended


def how_it_ended(status, ended, seconds):
    """In words; "done" where all is well."""
    if status == 0 and ended:
        return "done"
    killed_by = None
    if status != "time" and os.WIFSIGNALED(status):
        killed_by = os.WTERMSIG(status)
    if status == "time" or killed_by == signal.SIGXCPU:
        return (f"stopped after {seconds:g} s of processor time or {3 * seconds:g} s in all "
                "(an endless loop?)")
    if killed_by is not None:
        return f"its process was killed ({signal.Signals(killed_by).name})"
    return (f"its process ended with exit status {os.WEXITSTATUS(status)} before its tests were "
            "done")


def clean_up(child):
    """Kill what the job has started: its process group, and on Linux all of its orphans too."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(200):
        with contextlib.suppress(OSError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = children(os.getpid())
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def children(mine):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == mine:
                found.append(int(stat.parent.name))
    return found


# --------------------------------------------------------------------------------------------------
# The child's side

def on_linux(name, *arguments):
    if sys.platform == "linux":
        import ctypes
        return getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)


def confine(tree, writing, seconds, memory, trusted):
    """In the child: a session of its own, no open file but /dev/null and the pipe, and limits.

    If this is root, it is root no longer.  A trusted child only lists tests, and has no limits."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, writing)
    os.closerange(writing + 1, 4096)
    home = str(tree if trusted else tree / "home")
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME=home, TMPDIR=home, MPLCONFIGDIR=home,
                      LC_ALL="C.UTF-8", OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    tempfile.tempdir = home
    os.chdir(tree)
    if not trusted:
        sys.dont_write_bytecode = True
        set_limits(tree, seconds, memory)


def set_limits(tree, seconds, memory):
    import resource
    # Of processor time the hard limit stays: so SIGXCPU tells time from other deaths.
    limit(resource.RLIMIT_CPU, int(seconds) or 1, hard=False)
    limit(resource.RLIMIT_FSIZE, 64 << 20)
    limit(resource.RLIMIT_CORE, 0)
    threads = 0
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit(resource.RLIMIT_AS, pages * resource.getpagesize() + (memory << 20))
        if os.geteuid() == 0:
            become_nobody(tree, 64000 + os.getppid() % 1000)
        if os.geteuid():
            threads = threads_of(os.getuid())
    limit(resource.RLIMIT_NPROC, threads + PROCESSES)


def limit(what, value, hard=True):
    import resource
    most = resource.getrlimit(what)[1]                         # what is limited already stays so
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    resource.setrlimit(what, (value, value if hard else most))


def threads_of(uid):
    """How many threads this user has now: the limit on processes counts them all."""
    threads = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, IndexError):
            text = status.read_text()
            if int(text.partition("\nUid:")[2].split()[0]) == uid:
                threads += int(text.partition("\nThreads:")[2].split()[0])
    return threads


def become_nobody(tree, uid):
    """Become a user that no one is, another one for each worker.

    Root is not held by limits on processes, and may write anywhere.  The child keeps the right to
    read what root can read only where Python itself lies in a place that others cannot read."""
    import ctypes
    os.chown(tree / "home", uid, uid)
    on_linux("prctl", PR_SET_KEEPCAPS, 1)                      # over the change of user
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    keep = 0 if os.access(os.__file__, os.R_OK) else CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    on_linux("capset", header, (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0))
    on_linux("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)         # what it executes gets no more


class Reporter:
    """A plugin of pytest that sends each outcome down the pipe as it comes.

    A line begins with a token that only this process knows.  The functions that it needs are kept
    here, so that a test which replaces os.write changes nothing."""

    def __init__(self, job, token, writing):
        self.me, self.token, self.writing = os.getpid(), token, writing
        self.listing = bool(job.get("list"))
        self.write, self.dumps = os.write, json.dumps

    def tell(self, test, outcome, message=""):
        printable = "".join(c if c.isprintable() else " " for c in message)
        message = " ".join(printable.split())[:300]
        line = self.dumps([self.token, self.me, test, outcome, message])
        self.write(self.writing, line.encode() + b"\n")

    def pytest_collection_modifyitems(self, items):
        if self.listing:
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
    if first.count("(") > first.count(")"):                    # cut off before its closing bracket
        first = first.replace("assert (", "assert ", 1)
    return first


def run_tests(tree, job, token, writing):
    """pytest, in this process, on the tests that the job names.  It ends the process."""
    import pytest
    reporter, end = Reporter(job, token, writing), os._exit
    sys.path[:0] = [str(tree), str(tree / "tests")]
    options = ["-q", "--capture=no", "--tb=native", "-W", "ignore", "-o", "addopts=",
               "--rootdir", str(tree), "-c", str(tree / "pyproject.toml")]
    for plugin in ("cacheprovider", "faulthandler", "unraisableexception"):
        options += ["-p", f"no:{plugin}"]
    if job.get("list"):
        options.append("--collect-only")
    if job.get("first"):                                       # stop at the first failure
        options.append("-x")
    pytest.main([*options, *job["tests"]], plugins=[reporter])
    reporter.tell("", "end")
    end(0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
