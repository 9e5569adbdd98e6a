"""Course assignments from this same source: a handout in which the exercises are blank, and a grader for what comes back.

There is no second copy of the code and no file of solutions.  A line in a docstring makes a function an exercise,

    Exercise: measures.rankme (set 2, 10 points, without rankme_many and _rankme_chunk)
    Hint: ...

and `@pytest.mark.exercise(name="measures.rankme")` names its tests.  `without` lists what does the same job elsewhere in the module and is
blank while this exercise is graded.

    handout     this tree, the marked bodies replaced by `raise NotImplementedError`, line by line, so that all else stays as it is
    grade       of a submission, read as text and never imported, one function at a time is put into a clean copy of this tree, and only
                that exercise's tests are run on it: so one mistake costs one exercise, and tests that were edited are not even looked at

Importing torch takes longer than most tests.  So a *worker* imports it once and then forks: each exercise is graded in a process of its own,
with limits on time, memory and processes, and its own folder.  A worker is worker.py, run as a script; it speaks JSON, a line for a job and
a line for its result.  What such a process cannot prevent stands in the README, under "Course assignments".
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
MODULES = ("tasks", "models", "measures", "emergence")
SECONDS = 10                          # of processor time for one exercise; of the clock, three times as many
MEGABYTES = 1500                      # more than torch itself takes
TITLES = {1: "Tasks and causal masking", 2: "Ranks and power iteration", 3: "SGLD and the local learning coefficient", 4: "Emergence, nulls and precursors"}

# Written questions: on figures that the reader's own commands have made.  (points, question)
QUESTIONS = {
    1: ((5, "Run `python run.py tasks modadd` and `python run.py tasks compare`. Why is chance 1/7 for modadd-1, but 1/3 for every level of compare? What "
            "would chance be for compare-1 if both numbers were drawn independently?"),
        (5, "Take the mask of attention away (return zeros from `attention_mask`) and train: `python run.py sweep --task copy --sizes nano --seeds 1 --measures "
            "none`. What does the accuracy do, what does the loss do, and why is it no use?")),
    2: ((5, "Run `python run.py sweep --task modadd --sizes nano --seeds 1`. In your figures/curves.png, read off floor, onset and emergence of each level. "
            "The floor of mod 7 is out of 49 distinct inputs: is a floor of 1.3 there as deep a collapse as for mod 97?"),
        (5, "In figures/layers.png, which layer collapses first, and which recovers first? Say what you would have to see in other seeds to believe it."),
        (5, "Why does power iteration need many steps where two eigenvalues are nearly alike in size, and what does its residual tell you that the Rayleigh "
            "quotient does not?")),
    3: ((5, "Run `python run.py measure runs/modadd/nano-s0 --measure llc --calibrate` on your own run. Up to which lr does the corrected value stay put while the raw "
            "one does not? Which cells would you not trust, and which of the printed diagnostics says so?"),
        (5, "Measure the LLC at step 0, at your onset and at the last step (`--step`). One of them may be negative. What does that say about w0?")),
    4: ((5, "In your events.csv, count how often the onset came before emergence. Then exchange the onsets of two tasks by hand and count again. What does "
            "`chance` in the table of claims say that the count alone does not?"),
        (5, "Name two fields of emergence.Choices that change your verdict on C4 when you change them, and one that does not. Which of the values would you have "
            "chosen before seeing the data, and why?"),
        (5, "A sham task can never emerge. What does an onset on a sham say about RankMe as a precursor?")),
}


# ---------------------------------------------------------------------------------------------------------------
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
    tests: tuple                      # tests/test_measures.py::test_rankme_..., not yet parametrised

    @property
    def file(self):
        return self.name.partition(".")[0] + ".py"

    @property
    def function(self):
        return self.name.partition(".")[2]


MARK = re.compile(r"^ *Exercise: (\w+\.\w+) \(set (\d+), (\d+) points(?:, without ([\w, ]+))?\)\n *Hint: (.*)\n?", re.M)


def exercises(number=None, root=ROOT):
    """All marked functions, in order of set and source; of one problem set if a number is given."""
    tests = {}
    for path in sorted((root / "tests").glob("test_*.py")):
        for node in parsed(path.read_text(encoding="utf-8")).body:
            for name in exercise_names(node):
                tests.setdefault(name, []).append(f"tests/{path.name}::{node.name}")
    found = []
    for module in MODULES:
        source = (root / f"{module}.py").read_text(encoding="utf-8")
        for node in parsed(source).body:
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            mark = MARK.search((doc or "") + "\n")
            if mark:
                name, number_, points, without, hint = mark.groups()
                found.append(Exercise(name, int(number_), int(points), tuple(re.findall(r"\b(?!and\b)\w+", without or "")), hint,
                                      MARK.sub("", doc + "\n").strip(), ast.unparse(ast.FunctionDef(node.name, node.args, [ast.Pass()], [], lineno=0))
                                      .partition(":\n")[0], tuple(tests.get(name, ()))))
    return sorted((e for e in found if number in (None, e.number)), key=lambda e: e.number)


def exercise_names(node):
    """@exercise(name="measures.rankme") above a test -> ["measures.rankme"]."""
    return [keyword.value.value for d in getattr(node, "decorator_list", ()) if isinstance(d, ast.Call) and ast.unparse(d.func).endswith("exercise")
            for keyword in d.keywords if keyword.arg == "name"]


@functools.lru_cache(maxsize=24)
def parsed(text):
    with warnings.catch_warnings():                            # of odd escapes in strings
        warnings.simplefilter("ignore")
        return ast.parse(text)


def place(source, name):
    """Line numbers of a function at the top of a module, from 1: (first, decorators included; first of the body, after the docstring; last), or None."""
    found = [n for n in parsed(source).body if isinstance(n, ast.FunctionDef) and n.name == name]
    if not found:
        return None
    node, lines = found[-1], source.split("\n")                # not splitlines, which also splits where Python does not
    body = node.body[0].end_lineno + 1 if ast.get_docstring(node) is not None else node.body[0].lineno
    last = node.end_lineno
    while last < len(lines) and (not lines[last].strip() or lines[last][0] in " \t"):          # comments of the body that stand behind its last line
        last += 1
    while not lines[last - 1].strip():
        last -= 1
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]), body, last


def blank(source, name, says="this is yours to write: see SHEET.md"):
    """The body of a function, comments in it included, replaced by `raise NotImplementedError`; no other line changes."""
    lines, (_, body, last) = source.split("\n"), place(source, name)
    return "\n".join([*lines[:body - 1], f'    raise NotImplementedError("{name}: {says}")', *lines[last:]])


def graft(source, name, function):
    """A function's source put where the function of that name stood."""
    lines, (first, _, last) = source.split("\n"), place(source, name)
    return "\n".join([*lines[:first - 1], function.rstrip("\n"), *lines[last:]])


# ---------------------------------------------------------------------------------------------------------------
# The handout

def public_tests(source, names):
    """Of a file of tests, those of the named exercises, and what they use."""
    lines, body = source.splitlines(), parsed(source).body
    defined = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
        defined.update({getattr(t, "id", getattr(t, "name", None)): node for t in targets})
    waiting, keep = [n for n in body if set(exercise_names(n)) & set(names)], []
    while waiting:
        node = waiting.pop()
        keep.append(node)
        used = {getattr(n, "id", getattr(n, "arg", None)) for n in ast.walk(node) if isinstance(n, (ast.Name, ast.arg))}
        waiting += [defined[n] for n in used if n in defined and defined[n] not in keep + waiting]
    if not keep:
        return None
    always = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom, ast.Expr))]
    parts, before = [], None
    for node in sorted(always + keep, key=lambda n: n.lineno):
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        close = before is not None and not isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not isinstance(before, (ast.FunctionDef, ast.ClassDef))
        parts.append(("" if close or before is None else "\n\n") + "\n".join(lines[first - 1:node.end_lineno]) + "\n")
        before = node
    return "".join(parts)


def sheet(chosen):
    """SHEET.md: what to write, what it is worth, one hint each, and the written questions."""
    numbers = sorted({e.number for e in chosen})
    total = sum(e.points for e in chosen) + sum(p for n in numbers for p, _ in QUESTIONS.get(n, ()))
    out = ["# Problem sheet\n", f"{len(chosen)} functions of this tree are blank: each raises NotImplementedError. Write them; the docstring says what a function "
           "must do, and nothing else is asked of it. Any correct way counts. Only the function itself is taken when you are graded: what it needs, imports and "
           "helpers included, belongs inside its body (what the file already has, you may use, but not another function that does the same job). Check yourself with\n",
           "```\npython -m pytest -m exercise\n```\n", f"{total} points in all."]
    for n in numbers:
        out.append(f"\n## Set {n}: {TITLES.get(n, '')}")
        for k, e in enumerate((e for e in chosen if e.number == n), 1):
            out += [f"\n### {n}.{k} `{e.name}` ({e.points} points)\n", f"```\n{e.signature}\n\n{e.text}\n```\n", f"Hint: {e.hint}\n",
                    "Tests: " + ", ".join(f"`{t.partition('::')[2]}`" for t in e.tests) + f" (`python -m pytest {' '.join(sorted({t.partition('::')[0] for t in e.tests}))}`)"]
        if n in QUESTIONS:
            out.append("\n### Questions, on your own figures (a few sentences each, in ANSWERS.md)\n")
            out += [f"{n}.{chr(97 + k)} ({points} points) {question}\n" for k, (points, question) in enumerate(QUESTIONS[n])]
    return "\n".join(out).rstrip() + "\n"


def handout(target, number=None, root=ROOT):
    """Write a fresh tree into `target`, a folder that is empty or not there.  Returns (exercises, points of the functions)."""
    chosen, target = exercises(number, root), target.resolve()
    if not chosen:
        raise ValueError(f"--problem-set {number}: expected one of {', '.join(map(str, sorted({e.number for e in exercises(root=root)})))}")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder; give the name of a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        building.chmod(0o755)
        (building / "tests").mkdir()
        for path in sorted(p for p in [*root.iterdir(), *(root / "tests").iterdir()] if p.is_file() and not p.is_symlink()):
            inside = path.relative_to(root)
            if inside.parent == Path("tests") and (path.suffix != ".py" or path.name in ("assignments.py", "worker.py")):
                continue
            if inside.parent == Path(".") and path.suffix not in (".py", ".toml", ".md") and path.name not in ("LICENSE", ".gitignore"):
                continue
            text = path.read_text(encoding="utf-8")
            for e in chosen:
                if str(inside) == e.file:
                    text = blank(text, e.function)
            if inside.parent == Path("tests") and path.name.startswith("test_"):
                text = public_tests(text, [e.name for e in chosen])
            if text is not None:
                (building / inside).write_text(text, encoding="utf-8")
        (building / "SHEET.md").write_text(sheet(chosen), encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return chosen, sum(e.points for e in chosen)


# ---------------------------------------------------------------------------------------------------------------
# Reading a submission: as text

@dataclass
class Grade:
    exercise: Exercise
    points: int = 0
    why: str = ""                     # "" where all is well
    failures: list = field(default_factory=list)               # (test, how far off)
    passed: int = 0
    total: int = 0
    look: str = ""                    # something in it that whoever grades should read
    seconds: float = 0.0


def read_module(folder, file):
    """-> (text, "") or ("", what is wrong with it).  A link that leads out of the submission is not followed."""
    path = folder / file
    try:
        if not path.is_file():
            return "", f"{file} is missing"
        if not path.resolve().is_relative_to(folder.resolve()):
            return "", f"{file} is a link that leads out of the submission"
        if path.stat().st_size > 500_000:
            return "", f"{file} is larger than 500 kB"
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n"), ""
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        return "", f"{file} cannot be read ({type(error).__name__})"


def cut_out(text, name):
    """The source of one function of a module -> (source, "") or ("", why not).  Where the module does not parse, the function may: it is looked for by
    its first line, so that an error costs the exercise it is in and no other."""
    try:
        if where := place(text, name):
            return "\n".join(text.split("\n")[where[0] - 1:where[2]]), ""
        like = difflib.get_close_matches(name, sorted(top_names(text))[:1000], 1)
        return "", f"there is no function {name}" + (f", but {like[0]}: was it renamed?" if like else "")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        head = re.search(rf"^def +{name}\b", text, re.M)
        if head is None:
            return "", f"there is no function {name}, and the file has an error (line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)})"
        end = re.compile(r"^[^\s)#]", re.M).search(text, head.end())
        function = text[head.start():end.start() if end else len(text)]            # without decorators: an exercise needs none but functools'
        try:
            place(function, name)
            return function.rstrip(), ""
        except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as inside:
            line = text[:head.start()].count("\n") + (getattr(inside, "lineno", None) or 1)
            return "", f"syntax error in line {line}: {getattr(inside, 'msg', inside)}"


def top_names(text):
    """What a module defines or imports at its top level."""
    names = set()
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        for node in parsed(text).body:
            for n in ast.walk(node) if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [node]:
                names |= {getattr(n, "name", None)} | ({n.id} if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) else set())
                names |= {(a.asname or a.name).partition(".")[0] for a in getattr(n, "names", ()) if isinstance(a, ast.alias)}
    return names - {None}


SUSPECT = {"os", "sys", "subprocess", "ctypes", "socket", "inspect", "gc", "importlib", "builtins", "signal", "threading", "multiprocessing", "pytest", "pathlib", "shutil",
           "urllib", "requests", "open", "eval", "exec", "compile", "globals", "setattr", "__import__", "unittest", "measures", "emergence", "models", "tasks"}


def examine(folder, exercise, cache):
    """What can be said of one exercise without running it: (source of the function, Grade, helpers outside it).  No source: it is not run."""
    grade = Grade(exercise)
    if exercise.file not in cache:
        cache[exercise.file] = read_module(folder, exercise.file)
    text, grade.why = cache[exercise.file]
    source, grade.why = cut_out(text, exercise.function) if not grade.why else ("", grade.why)
    if not source:
        return "", grade, set()
    try:
        node = parsed(source).body[0]
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if not body or (len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0])):
            grade.why = "not attempted"
            return "", grade, set()
        own = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)} | {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - own
        used |= {a.name.partition(".")[0] for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        used |= {n.module.partition(".")[0] for n in ast.walk(node) if isinstance(n, ast.ImportFrom) and n.module}
        classes = {"a class" for n in ast.walk(node) if isinstance(n, ast.ClassDef)}
    except (RecursionError, MemoryError):
        grade.why = "too deeply nested to be read"
        return "", grade, set()
    odd = sorted(used & SUSPECT) + sorted(classes)
    grade.look = f"uses {', '.join(odd)}" if odd else ""
    helpers = used & top_names(text) - top_names((ROOT / exercise.file).read_text(encoding="utf-8"))
    return source, grade, helpers


# ---------------------------------------------------------------------------------------------------------------
# Grading

class Worker:
    """A process that has torch imported and forks for every job.  It is started again if a job takes it down."""

    def __init__(self, clean, folder, seconds, memory):
        self.arguments = [sys.executable, "-I", str(clean / "tests" / "worker.py"), str(clean), str(folder), str(seconds), str(memory)]
        self.patience, self.process, self.errors = 6 * seconds + 60, None, folder / "errors"
        folder.mkdir()
        folder.chmod(0o755)

    def start(self):
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(self.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                                            env={**{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LD_LIBRARY_PATH", "MPLCONFIGDIR", "XDG_CACHE_HOME")}, "LC_ALL": "C.UTF-8",
                                                 "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
        self.tests = self.receive(300)
        if self.tests is None:
            raise RuntimeError("the grader's tests do not start here: " + (self.errors.read_text(errors="replace").strip().splitlines() or ["no message"])[-1])

    def receive(self, patience):
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        line = self.process.stdout.readline() if ready else b""
        with contextlib.suppress(ValueError):                  # cut off, if the worker was killed while it wrote
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


@contextlib.contextmanager
def graders(count, seconds=SECONDS, memory=MEGABYTES, root=ROOT):
    """`count` workers on a clean copy of this tree -> run(jobs, tell): the answers, in order.  A job: {"files": {name: text}, "tests": [...]}."""
    if not hasattr(os, "fork"):
        raise ValueError("grading needs Linux or macOS: each exercise is run in a forked process with limits")
    home = Path(tempfile.mkdtemp(prefix="grading-"))
    home.chmod(0o755)
    workers, everyone = queue.SimpleQueue(), []
    try:
        clean = home / "clean"
        (clean / "tests").mkdir(parents=True)
        for path in [*root.glob("*.py"), root / "pyproject.toml", *(root / "tests").glob("*.py")]:
            shutil.copyfile(path, clean / path.relative_to(root))
        for k in range(count):
            everyone.append(Worker(clean, home / f"worker{k}", seconds, memory))
            workers.put(everyone[-1])

        def one(job, tell):
            worker = workers.get()
            try:
                return worker.ask(job) | {"expected": worker.tests and [t for t in worker.tests if t.partition("[")[0] in job["tests"]]}
            finally:
                workers.put(worker)
                tell()

        def run(jobs, tell=lambda: None):
            with ThreadPoolExecutor(count) as pool:
                return list(pool.map(lambda job: one(job, tell), jobs))
        yield run
    finally:
        for worker in everyone:
            worker.stop()
        shutil.rmtree(home, ignore_errors=True)


def job_for(exercise, function):
    """The clean module with one function in it that is the submission's, and with `without` blank."""
    source = (ROOT / exercise.file).read_text(encoding="utf-8")
    for name in exercise.without:
        source = blank(source, name, f"not to be called by {exercise.function}, which is to do the work itself")
    return {"files": {exercise.file: graft(source, exercise.function, function)}, "tests": list(exercise.tests)}


def judge(grade, answer, helpers=()):
    """From what the tests said to points: all of them, if every test was reported as passed by a process that came to its end; else none."""
    e, short = grade.exercise, lambda test: test.partition("::")[2]
    expected, outcomes = answer.get("expected") or [], answer["tests"]
    grade.seconds, grade.total = answer["seconds"], len(expected)
    grade.passed = sum(outcomes.get(test, [""])[0] == "passed" for test in expected)
    grade.failures = [(short(test), message) for test, (outcome, message) in outcomes.items() if outcome != "passed"]
    if answer["end"] == "done" and expected and grade.passed == len(expected) and not grade.failures:
        grade.points, grade.why = e.points, ""
        return grade
    missing = [short(test) for test in expected if test not in outcomes]
    if answer["end"] != "done" or not grade.failures:
        grade.why = (answer["end"] if answer["end"] != "done" else "its tests were not all run") + (f", in {missing[0]}" if missing else "")
    else:
        test, message = grade.failures[0]
        grade.why = f"{len(expected) - grade.passed} of {len(expected)} tests fail: {test}: {message}"
    used = sorted(h for h in helpers if any(f"name '{h}' is not defined" in message for _, message in grade.failures))
    if used:
        grade.why = f"uses {', '.join(used)}, which stands outside the function and is not taken along: put it inside"
    return grade


def submissions(folders):
    """A folder that holds one of the modules is a submission; any other is a folder of submissions, one for each folder in it.  -> [(name, path)]"""
    found = []
    has = lambda p: os.access(p, os.X_OK) and any((p / f"{m}.py").is_file() for m in MODULES)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; expected a submission, or a folder of submissions")
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
        if has(folder):
            found.append((folder.resolve().name, folder))
            continue
        if not inside:
            raise ValueError(f"{folder} holds no submission: expected {', '.join(f'{m}.py' for m in MODULES)} in it, or a folder for each student")
        for path in inside:
            deeper = [p for p in path.iterdir() if p.is_dir()] if not path.is_symlink() and os.access(path, os.R_OK) else []
            found.append((path.name, deeper[0] if not has(path) and len(deeper) == 1 and has(deeper[0]) else path))
    return found


def grade(folders, number=None, workers=2, seconds=SECONDS, memory=MEGABYTES, tell=lambda done, of: None):
    """-> {submission: [Grade, one for each exercise]}."""
    chosen, table, jobs = exercises(number), {}, []
    if not chosen:
        raise ValueError(f"--problem-set {number}: expected one of {', '.join(map(str, sorted({e.number for e in exercises()})))}")
    for name, folder in submissions(folders):
        while name in table:
            name += "'"
        table[name], cache = [], {}
        for exercise in chosen:
            source, result, helpers = examine(folder, exercise, cache)
            table[name].append(result)
            if source:
                jobs.append((result, source, helpers))
    done = [0]

    def told():
        done[0] += 1
        tell(done[0], len(jobs))
    if jobs:
        with graders(min(workers, len(jobs)), seconds, memory) as run:
            for (result, _, helpers), answer in zip(jobs, run([job_for(result.exercise, source) for result, source, _ in jobs], told)):
                judge(result, answer, helpers)
    return table


def tables(grades):
    """What `run.py grade` prints: of one submission a row for each exercise, of several a row for each."""
    from rich.markup import escape
    from rich.table import Table
    points = lambda results: f"{sum(g.points for g in results)} of {sum(g.exercise.points for g in results)}"
    if len(grades) == 1:
        (name, results), = grades.items()
        table = Table("exercise", "points", "why", box=None, pad_edge=False, header_style="dim")
        for g in results:
            more = [f"{test}: {message}" for test, message in g.failures[1:3]] if g.why and g.failures and g.why.endswith(g.failures[0][1]) else []
            table.add_row(g.exercise.name, f"{g.points} of {g.exercise.points}", escape("\n".join([g.why or f"{g.passed} of {g.total} tests pass", *more] + [f"to be read: {g.look}"] * bool(g.look))))
        return [table, escape(f"{printable(name)}: {points(results)} points")]
    numbers = sorted({g.exercise.number for results in grades.values() for g in results})
    table = Table("submission", *(f"set {n}" for n in numbers), "total", "no points for", box=None, pad_edge=False, header_style="dim")
    notes = []
    for name, results in grades.items():
        lost = [g for g in results if not g.points]
        table.add_row(escape(printable(name)), *(points([g for g in results if g.exercise.number == n]) for n in numbers), points(results),
                      "all" if len(lost) == len(results) else ", ".join(g.exercise.function for g in lost))
        said = {}
        for g in results:
            if g.look or g.why not in ("", "not attempted"):
                said.setdefault((g.why or "all tests pass") + f"; to be read: {g.look}" * bool(g.look), []).append(g.exercise.name)
        notes += [f"{printable(name)}: {', '.join(names)}: {why}" for why, names in said.items()]
    return [table, "", *map(escape, notes)]


def printable(text):
    return "".join(c if c.isprintable() else "?" for c in text)


def as_csv(grades):
    """A row for each submission: points of each exercise, total, and remarks.  A name that a spreadsheet would take for a formula gets an apostrophe."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow(["submission", *(g.exercise.name for g in next(iter(grades.values()))), "total", "remarks"])
    for name, results in grades.items():
        remarks = "; ".join(f"{g.exercise.name}: {g.why}" + f" ({g.look})" * bool(g.look) for g in results if g.why or g.look)
        write.writerow([("'" + printable(name)) if name[:1] in "=+-@" else printable(name), *(g.points for g in results), sum(g.points for g in results), remarks])
    return text.getvalue()
