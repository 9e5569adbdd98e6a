"""Course assignments from this same source: a handout with blank exercises, and a grader.

There is no second copy of the code, and no file of solutions.  Two lines in a docstring make a
function an exercise:

    Exercise: measures.rankme (set 2, 10 points, without rankme_many)
    Hint: ...

`@pytest.mark.exercise(name="measures.rankme")` names its tests.  `without` lists what does the same
job elsewhere in the module; it is blank while this exercise is graded.

    handout   This tree, with the marked bodies replaced by `raise NotImplementedError`.
              No other line changes.
    grade     A submission is read as text and never imported.  One function at a time is put into
              a clean copy of this tree, and only the tests of that exercise are run.  So one
              mistake costs one exercise, and tests that were edited are not even looked at.

Importing torch takes longer than most tests.  So a *worker* (worker.py, run as a script) imports it
once and then forks: each exercise is graded in a process of its own, with limits on time, memory
and processes, in a folder of its own.  A worker reads a job, one line of JSON, and answers with one
line.

This file holds no solution and knows nothing of tasks or measures.  It does not keep a hostile
function from everything: what such a process can still do stands in the README, under "Course
assignments".
"""
import ast
import contextlib
import csv
import difflib
import functools
import io
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("tasks", "models", "measures", "emergence", "claims",      # in reading order
           "sweep", "report", "pythia", "run")
SECONDS = 10                          # of processor time for one exercise, and 30 of the clock
MEGABYTES = 1500                      # more than torch itself takes


# --------------------------------------------------------------------------------------------------
# The marks

@dataclass(frozen=True)
class Exercise:
    name: str                         # measures.rankme
    number: int                       # of its problem set
    points: int
    without: tuple                    # functions that are blank while it is graded
    hint: str
    text: str                         # the docstring without marks: what the function must do
    signature: str
    tests: tuple                      # tests/test_measures.py::test_rankme_..., not parametrised

    @property
    def file(self):
        return self.name.partition(".")[0] + ".py"

    @property
    def function(self):
        return self.name.partition(".")[2]


MARK = re.compile(r"^ *Exercise: (?P<name>\w+\.\w+) "
                  r"\(set (?P<number>\d+), (?P<points>\d+) points"
                  r"(?:, without (?P<without>[\w, ]+))?\)\n"
                  r" *Hint: (?P<hint>.*)\n?", re.M)


def exercises(number=None, root=ROOT):
    """All marked functions, in order of set and source.  With a number: those of one set."""
    tests = tests_of_exercises(root)
    found = []
    for module in MODULES:
        source = (root / f"{module}.py").read_text(encoding="utf-8")
        for node in parsed(source).body:
            exercise = marked(node, tests)
            if exercise is not None and number in (None, exercise.number):
                found.append(exercise)
    return sorted(found, key=lambda exercise: exercise.number)


def marked(node, tests):
    """The Exercise that a function's docstring declares; None for what is no exercise."""
    doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
    mark = MARK.search((doc or "") + "\n")
    if mark is None:
        return None
    name = mark["name"]
    without = tuple(re.findall(r"\b(?!and\b)\w+", mark["without"] or ""))
    text = MARK.sub("", doc + "\n").strip()
    return Exercise(name, int(mark["number"]), int(mark["points"]), without, mark["hint"], text,
                    signature(node), tuple(tests.get(name, ())))


def signature(node):
    """`def f(x, eps=1e-7)` of a function's syntax tree, annotations included."""
    empty = ast.FunctionDef(node.name, node.args, [ast.Pass()], [], node.returns, lineno=0)
    return ast.unparse(empty).partition(":\n")[0]


def tests_of_exercises(root):
    """{exercise: [tests/test_x.py::test_y, ...]}, by the marks on the tests."""
    tests = {}
    for path in sorted((root / "tests").glob("test_*.py")):
        for node in parsed(path.read_text(encoding="utf-8")).body:
            for name in exercise_names(node):
                tests.setdefault(name, []).append(f"tests/{path.name}::{node.name}")
    return tests


def exercise_names(node):
    """@exercise(name="measures.rankme") above a test -> ["measures.rankme"]."""
    names = []
    for decorator in getattr(node, "decorator_list", ()):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("exercise"):
            names += [k.value.value for k in decorator.keywords if k.arg == "name"]
    return names


@functools.lru_cache(maxsize=48)
def parsed(text):
    with warnings.catch_warnings():                            # of odd escapes in strings
        warnings.simplefilter("ignore")
        return ast.parse(text)


def place(source, name):
    """Where a function stands at the top level of a module, in line numbers from 1.

    Returns (first line, decorators included; first line behind the docstring; last line), or None
    where there is no such function."""
    found = [n for n in parsed(source).body if isinstance(n, ast.FunctionDef) and n.name == name]
    if not found:
        return None
    node = found[-1]
    lines = source.split("\n")                                 # splitlines also splits elsewhere
    body = node.body[0].lineno
    if ast.get_docstring(node) is not None:
        body = node.body[0].end_lineno + 1
    # Comments behind the last statement belong to the body too; empty lines at its end do not.
    last = node.end_lineno
    while last < len(lines) and (not lines[last].strip() or lines[last][0] in " \t"):
        last += 1
    while not lines[last - 1].strip():
        last -= 1
    return first_line(node), body, last


def first_line(node):
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def blank(source, name, reason="this is yours to write: see SHEET.md"):
    """Replace a function's body, its comments included, by `raise NotImplementedError`."""
    lines = source.split("\n")
    _, body, last = place(source, name)
    instead = f'    raise NotImplementedError("{name}: {reason}")'
    return "\n".join([*lines[:body - 1], instead, *lines[last:]])


def graft(source, name, function):
    """Put a function's source where the function of that name stood."""
    lines = source.split("\n")
    first, _, last = place(source, name)
    return "\n".join([*lines[:first - 1], function.rstrip("\n"), *lines[last:]])


# --------------------------------------------------------------------------------------------------
# The handout

def public_tests(source, names):
    """The tests of the named exercises, and what they use; None if the file has none of them."""
    body = parsed(source).body
    defined = defined_names(body)
    # Start from the tests themselves, then add what each of them uses, until nothing is missing.
    waiting = [node for node in body if set(exercise_names(node)) & set(names)]
    keep = []
    while waiting:
        node = waiting.pop()
        keep.append(node)
        for name in names_read(node):
            if name in defined and defined[name] not in keep + waiting:
                waiting.append(defined[name])
    if not keep:
        return None
    always = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom, ast.Expr))]
    return joined(source, sorted(always + keep, key=lambda node: node.lineno))


def defined_names(body):
    """{name: the statement that defines it}, of the statements of a module."""
    defined = {}
    for node in body:
        if isinstance(node, ast.Assign):
            defined.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined[node.name] = node
    return defined


def names_read(node):
    """Every name in a statement; arguments too, for those of a test are fixtures."""
    names = set()
    for inside in ast.walk(node):
        if isinstance(inside, ast.Name):
            names.add(inside.id)
        elif isinstance(inside, ast.arg):
            names.add(inside.arg)
    return names


def joined(source, nodes):
    """The source of these statements, with two empty lines around functions and classes."""
    lines, text, before = source.splitlines(), "", None
    for node in nodes:
        large = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if before is not None and (large or isinstance(before, (ast.FunctionDef, ast.ClassDef))):
            text += "\n\n"
        text += "\n".join(lines[first_line(node) - 1:node.end_lineno]) + "\n"
        before = node
    return text


def sheet(chosen):
    """SHEET.md: what to write, what it is worth, one hint each, and the written questions."""
    numbers = sorted({e.number for e in chosen})
    written = sum(points for n in numbers for points, _ in QUESTIONS.get(n, ()))
    total = sum(e.points for e in chosen) + written
    out = [SHEET.format(count=len(chosen), total=total)]
    for n in numbers:
        out.append(f"\n## Set {n}: {TITLES.get(n, '')}")
        for k, e in enumerate([e for e in chosen if e.number == n], 1):
            out += sheet_entry(f"{n}.{k}", e)
        if n in QUESTIONS:
            out.append("\n### Questions, on your own figures "
                       "(a few sentences each, in ANSWERS.md)\n")
        for letter, (points, question) in zip("abcdefgh", QUESTIONS.get(n, ())):
            out.append(f"{n}.{letter} ({points} points) {question}\n")
    return "\n".join(out).rstrip() + "\n"


def sheet_entry(label, exercise):
    tests = ", ".join(f"`{test.partition('::')[2]}`" for test in exercise.tests)
    files = " ".join(sorted({test.partition("::")[0] for test in exercise.tests}))
    return [f"\n### {label} `{exercise.name}` ({exercise.points} points)\n",
            f"```\n{exercise.signature}\n\n{exercise.text}\n```\n",
            f"Hint: {exercise.hint}\n",
            f"Tests: {tests} (`python -m pytest {files}`)"]


def handout(target, number=None, root=ROOT):
    """Write a fresh tree into `target`, a folder that is empty or not there.

    Returns (exercises, points of the functions).  Raises ValueError for a set or a folder that will
    not do.  The tree is built beside the target and then moved: all of it is there, or nothing."""
    chosen, target = chosen_exercises(number, root), target.resolve()
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder; give the name of a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        building.chmod(0o755)
        (building / "tests").mkdir()
        for path in files_of_a_handout(root):
            text = handed_out(path, chosen)
            if text is not None:
                (building / path.relative_to(root)).write_text(text, encoding="utf-8")
        (building / "SHEET.md").write_text(sheet(chosen), encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return chosen, sum(e.points for e in chosen)


def chosen_exercises(number, root=ROOT):
    chosen = exercises(number, root)
    if not chosen:
        numbers = sorted({e.number for e in exercises(root=root)})
        raise ValueError(f"--problem-set {number}: expected one of {', '.join(map(str, numbers))}")
    return chosen


def files_of_a_handout(root):
    """Every module, every test file, and the texts beside them; not what grades."""
    found = []
    for path in sorted(root.iterdir()):
        if path.suffix in (".py", ".toml", ".md", ".cff"):
            found.append(path)
        elif path.name in ("LICENSE", ".gitignore"):
            found.append(path)
    for path in sorted((root / "tests").glob("*.py")):
        if path.name not in ("assignments.py", "worker.py"):
            found.append(path)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def handed_out(path, chosen):
    """The text of a file as a handout has it; None where nothing of it is left."""
    text = path.read_text(encoding="utf-8")
    if path.parent.name == "tests" and path.name.startswith("test_"):
        return public_tests(text, [e.name for e in chosen])
    for e in chosen:
        if path.name == e.file:
            text = blank(text, e.function)
    return text


# --------------------------------------------------------------------------------------------------
# Reading a submission: as text

@dataclass
class Grade:
    exercise: Exercise
    points: int = 0
    why: str = ""                     # "" where all is well
    failures: list = field(default_factory=list)               # (test, how far off)
    passed: int = 0
    total: int = 0
    look: str = ""                    # something in it that a person should read
    seconds: float = 0.0


def read_module(folder, file):
    """-> (text, "") or ("", what is wrong with it).  No link out of the submission is followed."""
    path = folder / file
    try:
        if not path.is_file():
            return "", f"{file} is missing"
        if not path.resolve().is_relative_to(folder.resolve()):
            return "", f"{file} is a link that leads out of the submission"
        if path.stat().st_size > 500_000:
            return "", f"{file} is larger than 500 kB"
        text = path.read_bytes().decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n"), ""
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        return "", f"{file} cannot be read ({type(error).__name__})"


UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)        # what ast.parse raises


def cut_out(text, name):
    """The source of one function of a module -> (source, "") or ("", why there is none).

    A module may not parse where the function does.  Then the function is looked for by its first
    line, so that an error costs the exercise it is in and no other."""
    try:
        where = place(text, name)
    except UNREADABLE as error:
        return cut_out_of_broken(text, name, error)
    if where is not None:
        return "\n".join(text.split("\n")[where[0] - 1:where[2]]), ""
    like = difflib.get_close_matches(name, sorted(top_names(text))[:1000], 1)
    renamed = f", but {like[0]}: was it renamed?" if like else ""
    return "", f"there is no function {name}{renamed}"


def cut_out_of_broken(text, name, error):
    head = re.search(rf"^def +{name}\b", text, re.M)
    if head is None:
        where = f"line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)}"
        return "", f"there is no function {name}, and the file has an error ({where})"
    # The function ends where the next line begins at the margin.  Decorators are left out: an
    # exercise needs none.
    end = re.compile(r"^[^\s)#]", re.M).search(text, head.end())
    function = text[head.start():end.start() if end else len(text)]
    try:
        place(function, name)
        return function.rstrip(), ""
    except (*UNREADABLE, TypeError) as inside:
        line = text[:head.start()].count("\n") + (getattr(inside, "lineno", None) or 1)
        return "", f"syntax error in line {line}: {getattr(inside, 'msg', inside)}"


def top_names(text):
    """What a module defines or imports at its top level; of a broken one, nothing."""
    try:
        body = parsed(text).body
    except UNREADABLE:
        return set()
    names = set()
    with contextlib.suppress(RecursionError, MemoryError):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
                continue
            for inside in ast.walk(node):
                names |= bound_names(inside)
    return names


def bound_names(node):
    """What one node of a syntax tree binds: a variable, a function, a class or an import."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    return set()


def used_names(function):
    """What a function takes from outside itself: names that it reads, and modules it imports."""
    names, own = set(), set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.Name):
            names.add(node.id)
            if isinstance(node.ctx, ast.Store):
                own.add(node.id)
    names -= own
    for node in ast.walk(function):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def is_blank(function):
    """Is nothing in the body but a docstring, or `raise NotImplementedError`?"""
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    if len(body) == 1 and isinstance(body[0], ast.Raise):
        return "NotImplementedError" in ast.unparse(body[0])
    return not body


def examine(folder, exercise, cache):
    """What can be said of one exercise without running it.

    Returns (source of the function, Grade, helpers outside it).  No source: it is not run."""
    grade = Grade(exercise)
    if exercise.file not in cache:
        cache[exercise.file] = read_module(folder, exercise.file)
    text, grade.why = cache[exercise.file]
    source = ""
    if not grade.why:
        source, grade.why = cut_out(text, exercise.function)
    if not source:
        return "", grade, set()
    try:
        function = parsed(source).body[0]
        if is_blank(function):
            grade.why = "not attempted"
            return "", grade, set()
        used = used_names(function)
        odd = sorted(used & SUSPECT)
        if any(isinstance(node, ast.ClassDef) for node in ast.walk(function)):
            odd.append("a class")
    except (RecursionError, MemoryError):
        grade.why = "too deeply nested to be read"
        return "", grade, set()
    if odd:
        grade.look = f"uses {', '.join(odd)}"
    ours = (ROOT / exercise.file).read_text(encoding="utf-8")
    return source, grade, used & top_names(text) - top_names(ours)


# --------------------------------------------------------------------------------------------------
# Grading

class Worker:
    """A process that has torch imported and forks for every job.

    It is started again if a job takes it down."""

    def __init__(self, clean, folder, seconds, memory):
        program = clean / "tests" / "worker.py"
        options = map(str, (program, clean, folder, seconds, memory))
        self.arguments = [sys.executable, "-I", *options]
        self.patience = 6 * seconds + 60
        self.process = None
        self.tests = None
        self.errors = folder / "errors"
        folder.mkdir()
        folder.chmod(0o755)

    def start(self):
        kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "MPLCONFIGDIR", "XDG_CACHE_HOME")
        environment = {key: value for key, value in os.environ.items() if key in kept}
        environment |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                self.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, env=environment)
        self.tests = self.receive(300)
        if self.tests is None:
            lines = self.errors.read_text(errors="replace").strip().splitlines()
            message = lines[-1] if lines else "no message"
            raise RuntimeError(f"the grader's tests do not start here: {message}")

    def receive(self, patience):
        """One line of JSON; None if it does not come in time, or is cut off half-way."""
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        line = self.process.stdout.readline() if ready else b""
        with contextlib.suppress(ValueError):                  # the worker was killed as it wrote
            return json.loads(line)

    def ask(self, job):
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.receive(self.patience)
        except OSError:
            answer = None
        if answer is None:
            self.stop()
            return {"tests": {}, "end": "took down the process that grades", "seconds": 0.0}
        return answer

    def stop(self):
        if self.process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None


class Graders:
    """`count` workers on a clean copy of this tree, from the first job to the end of `with`.

    A job is {"files": {name: text}, "tests": [...]}."""

    def __init__(self, count, seconds=SECONDS, memory=MEGABYTES, root=ROOT):
        if not hasattr(os, "fork"):
            raise ValueError("grading needs Linux or macOS: each exercise is run in a forked "
                             "process with limits")
        self.count, self.seconds, self.memory, self.root = count, seconds, memory, root

    def __enter__(self):
        self.home = Path(tempfile.mkdtemp(prefix="grading-"))
        self.home.chmod(0o755)
        self.workers, self.free = [], queue.SimpleQueue()
        clean = self.home / "clean"
        (clean / "tests").mkdir(parents=True)
        wanted = [*self.root.glob("*.py"), self.root / "pyproject.toml"]
        for path in [*wanted, *(self.root / "tests").glob("*.py")]:
            shutil.copyfile(path, clean / path.relative_to(self.root))
        for k in range(self.count):
            worker = Worker(clean, self.home / f"worker{k}", self.seconds, self.memory)
            self.workers.append(worker)
            self.free.put(worker)
        return self

    def __exit__(self, *error):
        for worker in self.workers:
            worker.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def run(self, jobs, tell=None):
        """The answers, in the order of the jobs.  `tell()` is called after each."""
        def one(job):
            worker = self.free.get()
            try:
                answer = worker.ask(job)
                listed = worker.tests or []
            finally:
                self.free.put(worker)
                if tell is not None:
                    tell()
            expected = [test for test in listed if test.partition("[")[0] in job["tests"]]
            return answer | {"expected": expected}
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, jobs))


def job_for(exercise, function):
    """The clean module with the submission's function in it, and with `without` blank."""
    source = (ROOT / exercise.file).read_text(encoding="utf-8")
    reason = f"not to be called by {exercise.function}, which is to do the work itself"
    for name in exercise.without:
        source = blank(source, name, reason)
    graft_in = graft(source, exercise.function, function)
    return {"files": {exercise.file: graft_in}, "tests": list(exercise.tests)}


def short_name(test):
    return test.partition("::")[2]


def award(grade, answer, helpers=()):
    """From the outcomes of the tests to points.

    All of them if every test was reported as passed and the process came to its end; else none."""
    expected, outcomes = answer.get("expected") or [], answer["tests"]
    grade.seconds, grade.total = answer["seconds"], len(expected)
    grade.passed = sum(outcomes.get(test, [""])[0] == "passed" for test in expected)
    grade.failures = [(short_name(test), message)
                      for test, (outcome, message) in outcomes.items() if outcome != "passed"]
    done = answer["end"] == "done"
    if done and expected and grade.passed == len(expected) and not grade.failures:
        grade.points, grade.why = grade.exercise.points, ""
        return grade
    if done and grade.failures:
        test, message = grade.failures[0]
        failed = grade.total - grade.passed
        grade.why = f"{failed} of {grade.total} tests fail: {test}: {message}"
    else:
        missing = [short_name(test) for test in expected if test not in outcomes]
        grade.why = "its tests were not all run" if done else answer["end"]
        if missing:
            grade.why += f", in {missing[0]}"
    unknown = [name for name in sorted(helpers)
               if any(f"name '{name}' is not defined" in message for _, message in grade.failures)]
    if unknown:
        grade.why = (f"uses {', '.join(unknown)}, which stands outside the function and is not "
                     "taken along: put it inside")
    return grade


def submissions(folders):
    """-> [(name, path)].

    A folder that holds one of the modules with exercises is a submission.  Any other is a folder of
    submissions, one for each folder in it."""
    files = list(dict.fromkeys(e.file for e in exercises()))

    def is_submission(folder):
        return os.access(folder, os.X_OK) and any((folder / file).is_file() for file in files)
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; expected a submission, or a folder of "
                             "submissions")
        if is_submission(folder):
            found.append((folder.resolve().name, folder))
            continue
        inside = sorted(path for path in folder.iterdir()
                        if path.is_dir() and not path.name.startswith((".", "__")))
        if not inside:
            raise ValueError(f"{folder} holds no submission: expected {', '.join(files)} in it, "
                             "or a folder for each student")
        for path in inside:
            found.append((path.name, path))
            # One folder deeper, where a student handed in a folder that holds just one folder.
            if not is_submission(path) and not path.is_symlink() and os.access(path, os.R_OK):
                deeper = [p for p in path.iterdir() if p.is_dir()]
                if len(deeper) == 1 and is_submission(deeper[0]):
                    found[-1] = (path.name, deeper[0])
    return found


def grade(folders, number=None, workers=2, seconds=SECONDS, memory=MEGABYTES, tell=None):
    """-> {submission: [Grade, one for each exercise]}.  `tell(done, of)` is called after a job.

    Raises ValueError for a set that does not exist, and for a folder without submissions."""
    chosen = chosen_exercises(number)
    table, waiting = {}, []                                    # waiting: (Grade, source, helpers)
    for name, folder in submissions(folders):
        while name in table:
            name += "'"
        table[name], cache = [], {}
        for exercise in chosen:
            source, result, helpers = examine(folder, exercise, cache)
            table[name].append(result)
            if source:
                waiting.append((result, source, helpers))
    if not waiting:
        return table
    done = []

    def one_more():
        done.append(True)
        if tell is not None:
            tell(len(done), len(waiting))
    jobs = [job_for(result.exercise, source) for result, source, _ in waiting]
    with Graders(min(workers, len(jobs)), seconds, memory) as graders:
        answers = graders.run(jobs, one_more)
    for (result, _, helpers), answer in zip(waiting, answers):
        award(result, answer, helpers)
    return table


# --------------------------------------------------------------------------------------------------
# Showing grades

def points_of(results):
    return f"{sum(g.points for g in results)} of {sum(g.exercise.points for g in results)}"


def remark(grade, otherwise=""):
    """Why points were lost, and what a person should read."""
    why = grade.why or otherwise
    return f"{why}; to be read: {grade.look}" if grade.look else why


def tables(grades):
    """What `run.py grade` prints: a row for each exercise, or for each of several submissions."""
    if len(grades) == 1:
        (name, results), = grades.items()
        return table_of_one(name, results)
    return table_of_many(grades)


def table_of_one(name, results):
    from rich.markup import escape
    from rich.table import Table
    table = Table("exercise", "points", "why", box=None, pad_edge=False, header_style="dim")
    for g in results:
        lines = [g.why or f"{g.passed} of {g.total} tests pass"]
        if g.failures and g.why.endswith(g.failures[0][1]):    # the first stands there
            lines += [f"{test}: {message}" for test, message in g.failures[1:3]]
        if g.look:
            lines.append(f"to be read: {g.look}")
        table.add_row(g.exercise.name, points_of([g]), escape("\n".join(lines)))
    return [table, escape(f"{printable(name)}: {points_of(results)} points")]


def table_of_many(grades):
    from rich.markup import escape
    from rich.table import Table
    numbers = sorted({g.exercise.number for results in grades.values() for g in results})
    table = Table("submission", *(f"set {n}" for n in numbers), "total", "no points for",
                  box=None, pad_edge=False, header_style="dim")
    notes = []
    for name, results in grades.items():
        sets = [points_of([g for g in results if g.exercise.number == n]) for n in numbers]
        lost = [g for g in results if not g.points]
        which = ", ".join(g.exercise.function for g in lost)
        if len(lost) == len(results):
            which = "all"
        table.add_row(escape(printable(name)), *sets, points_of(results), which)
        # One line for each thing to say, with all exercises of which it is true.
        alike = {}
        for g in results:
            if g.look or g.why not in ("", "not attempted"):
                alike.setdefault(remark(g, "all tests pass"), []).append(g.exercise.name)
        notes += [f"{printable(name)}: {', '.join(names)}: {why}" for why, names in alike.items()]
    return [table, "", *map(escape, notes)]


def printable(text):
    return "".join(c if c.isprintable() else "?" for c in text)


def as_csv(grades):
    """A row for each submission: points of each exercise, total, and remarks.

    A name that a spreadsheet would take for a formula gets an apostrophe."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    names = [g.exercise.name for g in next(iter(grades.values()))]
    write.writerow(["submission", *names, "total", "remarks"])
    for name, results in grades.items():
        shown = ("'" if name[:1] in tuple("=+-@") else "") + printable(name)
        points = [g.points for g in results]
        remarks = [f"{g.exercise.name}: {g.why}" + (f" ({g.look})" if g.look else "")
                   for g in results if g.why or g.look]
        write.writerow([shown, *points, sum(points), "; ".join(remarks)])
    return text.getvalue()


# --------------------------------------------------------------------------------------------------
# Tables

# A function that uses one of these may still be right; a person should read it.
SUSPECT = {"os", "sys", "subprocess", "ctypes", "socket", "inspect", "gc", "importlib", "builtins",
           "signal", "threading", "multiprocessing", "pytest", "pathlib", "shutil", "urllib",
           "requests", "open", "eval", "exec", "compile", "globals", "setattr", "__import__",
           "unittest", *MODULES}

TITLES = {1: "Tasks and causal masking", 2: "Ranks and power iteration",
          3: "SGLD and the local learning coefficient", 4: "Emergence, nulls and precursors"}

SHEET = """# Problem sheet

{count} functions of this tree are blank: each raises NotImplementedError. Write them; the \
docstring says what a function must do, and nothing else is asked of it. Any correct way counts. \
Only the function itself is taken when you are graded: what it needs, imports and helpers \
included, belongs inside its body (what the file already has, you may use, but not another \
function that does the same job). Check yourself with

```
python -m pytest -m exercise
```

{total} points in all."""

# Written questions, on figures that the reader's own commands have made: (points, question).
QUESTIONS = {
    1: [
        (5, "Run `python run.py tasks modadd` and `python run.py tasks compare`. Why is chance "
            "1/7 for modadd-1, but 1/3 for every level of compare? What would chance be for "
            "compare-1 if both numbers were drawn independently?"),
        (5, "Take the mask of attention away (return zeros from `attention_mask`) and train: "
            "`python run.py sweep --task copy --sizes nano --seeds 1 --measures none`. What "
            "does the accuracy do, what does the loss do, and why is it no use?"),
    ],
    2: [
        (5, "Run `python run.py sweep --task modadd --sizes nano --seeds 1`. In your "
            "figures/curves.png, read off floor, onset and emergence of each level. The floor "
            "of mod 7 is out of 49 distinct inputs: is a floor of 1.3 there as deep a collapse "
            "as for mod 97?"),
        (5, "In figures/layers.png, which layer collapses first, and which recovers first? Say "
            "what you would have to see in other seeds to believe it."),
        (5, "Why does power iteration need many steps where two eigenvalues are nearly alike "
            "in size, and what does its residual tell you that the Rayleigh quotient does not?"),
    ],
    3: [
        (5, "Run `python run.py measure runs/modadd/nano-s0 --measure llc --set "
            "llc_localization=G` on your own run, with G 1e3, 1e4, 3e4 and 1e5. Does the order of "
            "the levels stay the same? Which would you not trust, and which of the printed "
            "diagnostics says so?"),
        (5, "Measure the LLC at step 0, at your onset and at the last step (`--step`). One of "
            "them may be negative. What does that say about w0?"),
    ],
    4: [
        (5, "In your events.csv, count how often the onset came before emergence. Then exchange "
            "the onsets of two tasks by hand and count again. What does `chance` in the table "
            "of claims say that the count alone does not?"),
        (5, "Name two fields of claims.Specification that change your verdict on C4 when you "
            "change them, and one that does not. Which of the values would you have chosen "
            "before seeing the data, and why?"),
        (5, "A sham task can never emerge. What does an onset on a sham say about RankMe as a "
            "precursor?"),
    ],
}
