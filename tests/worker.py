"""The worker that grades, a process of its own: `assignments.Worker` starts it on a clean copy of this tree.

It imports torch once, says which tests there are, and then, for each job (a line of JSON), forks a child that may take the time, memory and
processes that it is given and no more, runs the tests named in it, and answers with a line of JSON.  What a child has started is killed with it.
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


def serve(clean, folder, seconds, memory):
    """Import everything once, say which tests there are, then: a job from stdin, a forked child, its result to stdout."""
    clean, folder, answers = Path(clean), Path(folder), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                              # whatever prints, prints elsewhere
    on_linux("prctl", 36, 1)                                   # orphans of a job become children of this process, and are found
    sys.path[:0] = [str(clean), str(clean / "tests")]
    import pytest, torch, torch._dynamo                        # noqa: E401, F401  the last is what torch.func imports at its first call
    import assignments
    everything = [test for e in assignments.exercises(root=clean) for test in e.tests]
    for module in assignments.MODULES:
        __import__(module)                                     # for what they import; they themselves are imported again, with the graft
    for module in assignments.MODULES:
        del sys.modules[module]
    del sys.path[:2]
    torch.set_num_threads(1)
    listed = run_child(clean, folder, {"tests": everything, "files": {}, "list": True}, 300, 4096)
    answers.write(json.dumps(sorted(listed["tests"])).encode() + b"\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(run_child(clean, folder, json.loads(line), float(seconds), int(memory))).encode() + b"\n")
        answers.flush()


def run_child(clean, folder, job, seconds, memory):
    """One job in a forked process: {"tests": {id: [outcome, message]}, "end": "done" or what happened, "seconds"}."""
    token, began = secrets.token_hex(16), time.monotonic()
    tree = clean if job.get("list") else Path(tempfile.mkdtemp(dir=folder))
    if tree != clean:
        shutil.copytree(clean, tree, dirs_exist_ok=True)       # dates included, so that what was compiled need not be again
        for name, text in job["files"].items():
            (tree / name).write_text(text, encoding="utf-8")
        tree.chmod(0o755)
        (tree / "home").mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            confine(tree, writing, seconds, memory, job.get("list"))
            run_tests(tree, job, token, writing)
        finally:
            os._exit(1)                                        # only if it has not ended before, with 0
    os.close(writing)
    received, status, deadline = b"", None, began + 3 * seconds
    while status is None:
        if select.select([reading], [], [], 0.02)[0]:
            more = os.read(reading, 65536)
            received += more[:max(0, 4_000_000 - len(received))]
            if not more:
                time.sleep(0.005)
        pid, code = os.waitpid(child, os.WNOHANG)
        status = code if pid else None
        if status is None and time.monotonic() > deadline:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
            status = "time"
    clean_up(child)
    os.set_blocking(reading, False)
    with contextlib.suppress(BlockingIOError):
        while len(received) < 4_000_000 and (more := os.read(reading, 65536)):
            received += more
    os.close(reading)
    if tree != clean:
        shutil.rmtree(tree, ignore_errors=True)
    told = [json.loads(line) for line in received.decode("utf-8", "replace").split("\n") if line.startswith(f'["{token}", {child}, ') and line.endswith("]")]
    tests = {}
    for _, _, test, outcome, message in told:
        if test and tests.get(test, [""])[0] in ("", "passed"):                                # a failure is not taken back
            tests[test] = [outcome, message]
    ended = any(outcome == "end" for _, _, _, outcome, _ in told)
    cpu = isinstance(status, int) and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
    end = ("done" if ended and status == 0 else
           f"stopped after {seconds:g} s of processor time or {3 * seconds:g} s in all (an endless loop?)" if status == "time" or cpu else
           f"its process was killed ({signal.Signals(os.WTERMSIG(status)).name})" if os.WIFSIGNALED(status) else
           f"its process ended with exit status {os.WEXITSTATUS(status)} before its tests were done")
    return {"tests": tests, "end": end, "seconds": time.monotonic() - began}


def on_linux(name, *arguments):
    if sys.platform == "linux":
        import ctypes
        return getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)


def confine(tree, writing, seconds, memory, trusted):
    """In the child: a session of its own, limits, no open file but /dev/null and the pipe, a small environment; and if this is root, no longer."""
    import resource
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, writing)
    os.closerange(writing + 1, 4096)
    os.environ.clear()
    home = str(tree if trusted else tree / "home")
    os.environ.update(PATH="/usr/bin:/bin", HOME=home, TMPDIR=home, MPLCONFIGDIR=home, LC_ALL="C.UTF-8", OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    tempfile.tempdir = home
    os.chdir(tree)
    if trusted:
        return
    sys.dont_write_bytecode = True
    def limit(what, value):
        most = resource.getrlimit(what)[1]                     # what is limited already stays so
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(what, (value, most if what == resource.RLIMIT_CPU else value))      # so that SIGXCPU tells time from other deaths
    limit(resource.RLIMIT_CPU, int(seconds) or 1)
    limit(resource.RLIMIT_FSIZE, 64 << 20)
    limit(resource.RLIMIT_CORE, 0)
    threads = 0
    if sys.platform == "linux":
        limit(resource.RLIMIT_AS, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (memory << 20))
        if os.geteuid() == 0:
            become_nobody(tree, 64000 + os.getppid() % 1000)
        for status in Path("/proc").glob("[0-9]*/status") if os.geteuid() else ():
            with contextlib.suppress(OSError, IndexError):
                text = status.read_text()
                threads += int(text.partition("\nThreads:")[2].split()[0]) * (int(text.partition("\nUid:")[2].split()[0]) == os.getuid())
    limit(resource.RLIMIT_NPROC, threads + PROCESSES)


def become_nobody(tree, uid):
    """Root is not held by limits on processes, and may write anywhere.  So a user that no one is, of its own for each worker.  It keeps the right to
    read what root can read, and only where Python itself lies in a place that others cannot read."""
    import ctypes
    os.chown(tree / "home", uid, uid)
    on_linux("prctl", 8, 1)                                    # keep what is permitted over the change of user
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    keep = 0 if os.access(os.__file__, os.R_OK) else 1 << 2    # CAP_DAC_READ_SEARCH
    on_linux("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0))
    on_linux("prctl", 38, 1, 0, 0, 0)                          # and nothing that is executed gets more


def run_tests(tree, job, token, writing):
    """pytest, in this process, on the tests named; each outcome goes down the pipe as it comes, behind a token that only this process knows."""
    me, write, dumps, end = os.getpid(), os.write, json.dumps, os._exit

    def tell(test, outcome, message=""):
        message = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        write(writing, dumps([token, me, test, outcome, message[:300]]).encode() + b"\n")

    class Reporter:
        def pytest_collection_modifyitems(self, items):
            for item in items if job.get("list") else ():
                tell(item.nodeid, "listed")

        def pytest_collectreport(self, report):
            if report.failed:
                tell("collection", "failed", shown(report))

        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                tell(report.nodeid, report.outcome, "" if report.passed else shown(report))

    def shown(report):
        crash = getattr(report.longrepr, "reprcrash", None)
        if isinstance(report.longrepr, tuple):
            return str(report.longrepr[2])
        text = crash.message if crash else (str(report.longrepr).strip().splitlines() or [""])[-1].removeprefix("E ").strip()
        first = text.partition("\n")[0].removeprefix("AssertionError: ")
        return first.replace("assert (", "assert ", 1) if first.count("(") > first.count(")") else first       # cut off before its closing bracket

    import pytest
    sys.path[:0] = [str(tree), str(tree / "tests")]
    pytest.main(["-q", "--capture=no", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:unraisableexception", "--tb=native", "-W", "ignore", "-o", "addopts=", "--rootdir", str(tree), "-c", str(tree / "pyproject.toml"),
                 *(["--collect-only"] if job.get("list") else []), *(["-x"] if job.get("first") else []), *job["tests"]], plugins=[Reporter()])
    tell("", "end")
    end(0)


def clean_up(child):
    """Whatever the job has started: its process group, and on Linux all that has come down to this process, which inherits orphans."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(200):
        with contextlib.suppress(OSError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left, mine = [], os.getpid()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == mine:
                    left.append(int(stat.parent.name))
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    serve(*sys.argv[1:])
