"""Grading: one row for each submission, one process for each, points for each test.

A submission is text (entries.py).  One function at a time is put into a clean copy of this tree,
and only the tests of that exercise are run: so one mistake costs one exercise, and tests that were
edited are not even looked at.  The functions of one submission are run by one process (trial.py)
under limits of time and memory.  It cannot take the grader down, stop the others, or change their
rows.  It is no sandbox: what it does not hold stands in COURSE.md.

What was graded is kept in a journal, and is not run again: a stopped `grade` goes on.
"""
import ast
import compileall
import contextlib
import difflib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from assignments import (MODULES, ROOT, TESTS, WORKBOOK, Exercise, blank, chosen_exercises, graft,
                         parsed, path_of, place, read, tests_for)
from entries import JOURNAL, entries, handed_out_as, module_text

SECONDS = 10                          # of processor time for one exercise, and 30 of the clock
MEGABYTES = 1500                      # more than torch itself takes
PROGRAM = Path(__file__).with_name("trial.py")


@dataclass
class Grade:
    """One exercise of one submission."""
    exercise: Exercise
    points: int = 0
    why: str = ""                     # "" where all is well
    tests: list = field(default_factory=list)            # (Test, earned or not, what was wrong)
    remarks: list = field(default_factory=list)          # what a person should read


@dataclass
class Result:
    """One submission: a row."""
    name: str
    variant: int = 0
    why: str = ""                     # it was not read
    grades: list = field(default_factory=list)
    remarks: list = field(default_factory=list)
    person: str = ""

    @property
    def points(self):
        return sum(grade.points for grade in self.grades)

    @property
    def most(self):
        return sum(grade.exercise.points for grade in self.grades)


# --------------------------------------------------------------------------------------------------
# Reading a function: as text

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
    return not body or (len(body) == 1 and isinstance(body[0], ast.Pass))


def examine(entry, exercise):
    """What can be said of one exercise without running it.

    Returns (source of the function, Grade, helpers outside it).  No source: it is not run."""
    grade = Grade(exercise)
    text, grade.why, remark = module_text(entry, exercise)
    source = ""
    if not grade.why:
        source, grade.why = cut_out(text, exercise.function)
    if remark and not grade.why:
        grade.remarks.append(remark)
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
    if used & REFUSED:
        names = ", ".join(sorted(used & REFUSED))
        grade.why = f"uses {names}, which no exercise needs: a person should read it"
        return "", grade, set()
    if odd:
        grade.remarks.append(f"to be read: uses {', '.join(odd)}")
    ours = path_of(exercise.file).read_text(encoding="utf-8")
    return source, grade, used & top_names(text) - top_names(ours)


# --------------------------------------------------------------------------------------------------
# Running what was read

def job_for(exercise, function, variant=0):
    """The clean module with the submission's function in it, `without` blank, and the tests."""
    files = {exercise.file: read(exercise.file, ROOT, variant)}
    for name in exercise.without:
        file, other = exercise.home(name)
        files.setdefault(file, read(file, ROOT, variant))
        files[file] = blank(files[file], other, f"{exercise.function} is to do the work itself, "
                                                f"without {other}")
    files[exercise.file] = graft(files[exercise.file], exercise.function, function)
    files[f"tests/{TESTS}"] = tests_for(read(TESTS, ROOT, variant), [exercise.name], hidden=True)
    return {"name": exercise.name, "files": files}


class Grader:
    """A clean copy of this tree, which every submission's process copies in turn.

    `with Grader() as grader: grader.run(jobs)` gives an answer for each job of one submission."""

    def __init__(self, seconds=SECONDS, memory=MEGABYTES, root=ROOT):
        if not hasattr(os, "fork"):
            raise ValueError("grading needs Linux or macOS: each exercise is run in a process with "
                             "limits")
        self.seconds, self.memory, self.root = seconds, memory, root

    def __enter__(self):
        self.home = Path(tempfile.mkdtemp(prefix="grading-"))
        clean = self.home / "clean"
        (clean / "tests").mkdir(parents=True)
        for name in (*(f"{module}.py" for module in MODULES), "pyproject.toml"):
            shutil.copyfile(self.root / name, clean / name)
        shutil.copyfile(self.root / "tests" / "conftest.py", clean / "tests" / "conftest.py")
        if path_of(WORKBOOK, self.root).exists():
            shutil.copyfile(path_of(WORKBOOK, self.root), clean / WORKBOOK)
        compileall.compile_dir(clean, quiet=2, maxlevels=0)
        return self

    def __exit__(self, *error):
        shutil.rmtree(self.home, ignore_errors=True)

    def run(self, jobs):
        """The answers to the jobs of one submission, in their order.

        Where a job takes down the process that runs it, another process goes on behind it."""
        answers = []
        while len(answers) < len(jobs):
            got = self.one_process(jobs[len(answers):])
            answers += got
            if len(answers) < len(jobs):
                answers.append({"tests": {}, "end": "took down the process that grades it"})
        return answers

    def one_process(self, jobs):
        home = Path(tempfile.mkdtemp(dir=self.home))
        job = {"clean": str(self.home / "clean"), "home": str(home), "seconds": self.seconds,
               "memory": self.memory, "exercises": jobs}
        (home / "job.json").write_text(json.dumps(job), encoding="utf-8")
        kept = ("PATH", "HOME", "LD_LIBRARY_PATH")
        environment = {key: value for key, value in os.environ.items() if key in kept}
        environment |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                        "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        with (home / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-s", PROGRAM, home / "job.json", home / "results"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True, env=environment, cwd=home)
            try:
                process.wait(120 + 3 * self.seconds * len(jobs))
            except subprocess.TimeoutExpired:
                process.kill()                                 # its children end with it
                process.wait()
        answers = read_answers(home / "results", jobs)
        lines = (home / "errors").read_text(errors="replace").strip().splitlines()
        shutil.rmtree(home, ignore_errors=True)
        if process.returncode == 1 and not answers and lines:
            raise RuntimeError(f"the grader's tests do not start here: {lines[-1]}")
        return answers


def read_answers(path, jobs):
    answers = []
    with contextlib.suppress(OSError, ValueError):             # killed as it wrote
        for line in path.read_text(encoding="utf-8").splitlines()[:len(jobs)]:
            answer = json.loads(line)
            if answer["name"] != jobs[len(answers)]["name"]:
                break
            answers.append({"tests": answer["tests"], "end": answer["end"]})
    return answers


def award(grade, answer, helpers=()):
    """From the outcomes of the tests to points: each test's own, if all of its cases passed."""
    cases = {}
    for test, (outcome, message) in answer["tests"].items():
        name = test.partition("::")[2].partition("[")[0]
        cases.setdefault(name, []).append((outcome, message))
    end = answer["end"] if answer["end"] != "done" else "it was not run"
    grade.points, grade.why, grade.tests = 0, "", []
    for test in grade.exercise.tests:
        outcomes = cases.get(test.name, [])
        passed = bool(outcomes) and all(outcome == "passed" for outcome, _ in outcomes)
        wrong = ""
        if not passed:
            messages = [message or outcome for outcome, message in outcomes
                        if outcome not in ("passed", "listed")]
            wrong = messages[0] if messages else end
        grade.points += test.points if passed else 0
        grade.tests.append((test, passed, wrong))
    failed = [(test, wrong) for test, passed, wrong in grade.tests if not passed]
    if failed:
        first = failed[0][1]
        broken = [m for name, outs in cases.items() if not name for o, m in outs if o == "failed"]
        if first == "it was not run" and broken:               # the module could not be imported
            first = broken[0]
        grade.why = f"{len(failed)} of {len(grade.tests)} tests fail: {first}"
    unknown = [name for name in sorted(helpers)
               if any(f"name '{name}' is not defined" in wrong for _, wrong in failed)]
    if unknown:
        grade.why = (f"uses {', '.join(unknown)}, which stands outside the function and is not "
                     "taken along: put it inside")
    return grade


# --------------------------------------------------------------------------------------------------
# A class

def agreed_set(found, number):
    """The set that is graded: the one asked for, or the one that most submissions are of."""
    if number is not None:
        return number
    counts = {}
    for entry in found:
        for asked, _ in handed_out_as(entry):
            counts[asked] = counts.get(asked, 0) + 1
    if not counts:
        raise ValueError("no submission says of which set it is (in the first line of its files, "
                         "`# handout: set 2, variant 0`): give --problem-set N")
    return max(sorted(counts, key=str), key=counts.get)


def fitting_variant(entry, number, expected, told):
    """-> (variant to grade by, why this submission does not fit, a remark).

    expected: the variant that it should be; None: whatever it says.  told: the set was given by
    hand, so that a submission which says nothing can be graded."""
    said = handed_out_as(entry)
    if len(said) > 1:
        return 0, "its files come from several handouts", ""
    if not said and not told:
        return 0, "no file says of which handout it is: give --problem-set, if you know", ""
    if not said:
        return expected or 0, "", f"no file says its variant: graded as variant {expected or 0}"
    its_set, its_variant = said.pop()
    if its_set not in (None, number):
        asked = "all sets are" if number is None else f"set {number} is"
        return 0, f"it was handed out as set {its_set}, and {asked} graded", ""
    if expected not in (None, its_variant):
        return 0, (f"it was handed out as variant {its_variant}, and variant {expected} is "
                   "expected"), ""
    return its_variant, "", ""


def grade(folders, number=None, variant=None, workers=2, seconds=SECONDS, memory=MEGABYTES,
          tell=None, single=False, expected=None):
    """-> [Result, one for each entry].  `tell(done, of)` is called after each that was run.

    number, variant: what to grade; None: what the submissions say.  expected: a function from an
    Entry to the variant that it should be, or None.  Raises ValueError for a set that does not
    exist, and for a folder without submissions."""
    found, told = entries(folders, single), number is not None
    number = agreed_set(found, number)
    chosen_exercises(number)
    results, waiting = [], []                                  # waiting: (Result, [jobs])
    for entry in found:
        result = Result(entry.name, why=entry.why, person=entry.person)
        if entry.late:
            result.remarks.append("late")
        if not result.why:
            due = expected(entry) if expected else None
            result.variant, result.why, remark = fitting_variant(
                entry, number, variant if due is None else due, told)
            result.remarks += [remark] if remark else []
        jobs = examine_all(entry, result, number)
        results.append(result)
        if jobs:
            waiting.append((result, jobs))
    run_all(waiting, journal_of(folders, found), workers, seconds, memory, tell)
    return results


def examine_all(entry, result, number):
    """Fill in result.grades.  Returns (Grade, job, helpers) for each that is to be run."""
    jobs = []
    for exercise in chosen_exercises(number, ROOT, result.variant):
        if result.why:
            result.grades.append(Grade(exercise, why=f"not read: {result.why}"))
            continue
        source, one, helpers = examine(entry, exercise)
        result.grades.append(one)
        if source:
            jobs.append((one, job_for(exercise, source, result.variant), helpers))
    return jobs


def run_all(waiting, journal, workers, seconds, memory, tell):
    """Run every submission's jobs, but for those that the journal knows, and award points."""
    done = []
    if not waiting:
        return
    with Grader(seconds, memory) as grader, ThreadPoolExecutor(workers) as pool:
        def one(item):
            result, jobs = item
            answers = journal.look_up([job for _, job, _ in jobs])
            if answers is None:
                answers = grader.run([job for _, job, _ in jobs])
                journal.add(result.name, [job for _, job, _ in jobs], answers)
            for (grade, _, helpers), answer in zip(jobs, answers):
                award(grade, answer, helpers)
            done.append(result.name)
            if tell is not None:
                tell(len(done), len(waiting))
        for _ in pool.map(one, waiting):
            pass


class Journal:
    """What was run before: a line for each submission, found again by all that it depends on."""

    def __init__(self, path):
        self.path, self.known = path, {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self.known[row["key"]] = row["answers"]

    @functools.cached_property
    def tree(self):
        """Of all modules: what a function uses may have changed."""
        text = "".join(read(f"{module}.py") for module in MODULES)
        return hashlib.sha256(text.encode()).hexdigest()

    def key(self, jobs):
        """Of the functions, the modules they stand in, and the tests."""
        return hashlib.sha256(json.dumps([jobs, self.tree]).encode()).hexdigest()[:24]

    def look_up(self, jobs):
        return self.known.get(self.key(jobs))

    def add(self, name, jobs, answers):
        """What was stopped by the clock is tried again the next time."""
        if any("stopped after" in answer["end"] for answer in answers):
            return
        self.known[self.key(jobs)] = answers                   # an equal one is not run again
        if self.path is None:
            return
        line = json.dumps({"entry": name, "key": self.key(jobs), "answers": answers})
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def journal_of(folders, found):
    """In the folder of a class, where it can be written; one submission needs none."""
    many = len(found) > 1 and len(folders) == 1 and os.access(folders[0], os.W_OK)
    return Journal(Path(folders[0]) / JOURNAL if many else None)


# --------------------------------------------------------------------------------------------------
# Tables

# A function that uses one of these may still be right; a person should read it.
SUSPECT = {"os", "sys", "subprocess", "ctypes", "socket", "gc", "importlib", "builtins", "signal",
           "threading", "multiprocessing", "pathlib", "shutil", "urllib", "requests", "open",
           "eval", "exec", "compile", "globals", "setattr", "__import__", *MODULES}
# No exercise needs these: they see or change the tests.
REFUSED = {"pytest", "_pytest", "unittest", "inspect", "conftest", TESTS.removesuffix(".py")}
