"""Course assignments from this same source: the marks, the variants, the handout.

There is no second copy of the code, and no file of solutions.  Two lines in a docstring make a
function an exercise:

    Exercise: measures.rankme (set 2, 10 points, without rankme_many)
    Hint: ...

The hint ends at an empty line, at an example or with the docstring.
`@pytest.mark.exercise(name="measures.rankme", points=4)` above a test makes it one of its tests;
with hidden=True, it is one that grades and is not handed out.  `without` lists what does the same
job elsewhere in the module, or in another one (emergence.exchanged); it is blank while this
exercise is graded, and the sheet forbids it.

    handout   This tree, with `raise NotImplementedError` for the marked bodies, the public tests,
              and a SHEET.md.  What would tell a solution is left out, or replaced (course.INSTEAD).
               The first line of each file with exercises says which set and which
              variant this is.
    grade     See grading.py, which runs each submission in a process of its own (trial.py).

What belongs to this course and not to its machinery are the tables in course.py.  workbook.py holds
the exercises that no module has a place for.  For instructors: COURSE.md.
"""
import ast
import functools
import hashlib
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import course

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("tasks", "models", "measures", "emergence", "claims",      # in reading order
           "sweep", "report", "film", "pythia", "run")
WORKBOOK = "workbook.py"              # in tests/ here, beside the modules in a handout
TESTS = "test_exercises.py"


# --------------------------------------------------------------------------------------------------
# The marks

@dataclass(frozen=True)
class Test:
    name: str                         # test_rankme_..., not parametrised
    points: int
    hidden: bool = False              # it grades, and is not handed out


@dataclass(frozen=True)
class Exercise:
    name: str                         # measures.rankme
    number: int                       # of its problem set
    points: int
    without: tuple                    # functions that are blank while it is graded
    hint: str
    text: str                         # the docstring without marks: what the function must do
    signature: str
    tests: tuple                      # of Test

    @property
    def file(self):
        return self.name.partition(".")[0] + ".py"

    @property
    def function(self):
        return self.name.partition(".")[2]

    def home(self, name):
        """(file, function) of a name in `without`: of this module, if it names none."""
        module, _, function = name.rpartition(".")
        return (f"{module}.py" if module else self.file), function


MARK = re.compile(r"^ *Exercise: (?P<name>\w+\.\w+) "
                  r"\(set (?P<number>\d+), (?P<points>\d+) points"
                  r"(?:, without (?P<without>[\w., ]+))?\)\n"
                  r" *Hint: (?P<hint>.*(?:\n(?! *>>>) *\S.*)*)\n?", re.M)


def exercises(number=None, root=ROOT, variant=0):
    """All marked functions, in order of set and source.  With a number: those of one set."""
    tests = tests_of_exercises(read(TESTS, root, variant))
    found = []
    for module in (*MODULES, WORKBOOK.removesuffix(".py")):
        for node in parsed(read(f"{module}.py", root, variant)).body:
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
    without = tuple(re.findall(r"\b(?!and\b)[\w.]+", mark["without"] or ""))
    hint, text = " ".join(mark["hint"].split()), MARK.sub("", doc + "\n").strip()
    return Exercise(name, int(mark["number"]), int(mark["points"]), without, hint, text,
                    signature(node), tuple(tests.get(name, ())))


def signature(node):
    """`def f(x, eps=1e-7)` of a function's syntax tree, annotations included."""
    empty = ast.FunctionDef(node.name, node.args, [ast.Pass()], [], node.returns, lineno=0)
    return ast.unparse(empty).partition(":\n")[0]


def tests_of_exercises(text):
    """{exercise: [Test, ...]}, by the marks on the tests."""
    tests = {}
    for node in parsed(text).body:
        for options in marks_of(node):
            test = Test(node.name, options["points"], options.get("hidden", False))
            tests.setdefault(options["name"], []).append(test)
    return tests


def marks_of(node):
    """@exercise(name="measures.rankme", points=4) above a test -> [{"name": ..., "points": 4}]."""
    found = []
    for decorator in getattr(node, "decorator_list", ()):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("exercise"):
            found.append({k.arg: ast.literal_eval(k.value) for k in decorator.keywords})
    return found


@functools.lru_cache(maxsize=96)
def parsed(text):
    with warnings.catch_warnings():                            # of odd escapes in strings
        warnings.simplefilter("ignore")
        return ast.parse(text)


def place(source, name):
    """Where a function or class stands in a module, in line numbers from 1.  name: one at the top
    level, or a method, "Sampler.step".

    Returns (first line, decorators included; first line behind the docstring; last line), or None
    where there is none of that name."""
    inside = parsed(source).body
    for part in name.split("."):
        found = [node for node in inside
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == part]
        if not found:
            return None
        node = found[-1]
        inside = node.body
    lines = source.split("\n")                                 # splitlines also splits elsewhere
    body = node.body[0].lineno
    if ast.get_docstring(node) is not None:
        body = node.body[0].end_lineno + 1
    # Comments behind the last statement belong to the body too; empty lines at its end do not.
    last = node.end_lineno
    if "." in name:
        return first_line(node), body, last
    while last < len(lines) and (not lines[last].strip() or lines[last][0] in " \t"):
        last += 1
    while not lines[last - 1].strip():
        last -= 1
    return first_line(node), body, last


def first_line(node):
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def blank(source, name, message):
    """Replace a function's body, its comments included, by `raise NotImplementedError`."""
    lines = source.split("\n")
    _, body, last = place(source, name)
    instead = f'    raise NotImplementedError("{message}")'
    return "\n".join([*lines[:body - 1], instead, *lines[last:]])


def graft(source, name, function):
    """Put another source where the function or class of that name stood."""
    lines = source.split("\n")
    first, _, last = place(source, name)
    return "\n".join([*lines[:first - 1], function.strip("\n"), *lines[last:]])


def leave_out(source, name):
    """Without a function, and without the comment above it, if that is no heading."""
    lines = source.split("\n")
    first, _, last = place(source, name)
    above = lines[:first - 1]
    while not above[-1].strip():
        above.pop()
    while above[-1].startswith("#") and not above[-1].startswith("# --"):
        above.pop()
    while not above[-1].strip():
        above.pop()
    below = lines[last:]
    while below and not below[0].strip():
        below.pop(0)
    return "\n".join([*above, "", "", *below])


def unsolved(exercise):
    return f"exercise {exercise.name} is not solved yet (see SHEET.md)"


# --------------------------------------------------------------------------------------------------
# Variants: the same exercises with other constants

def constant(row, variant):
    """The value of a row of course.VARIANTS: its first in variant 0, one of the others else."""
    if variant == 0:
        return row.values[0]
    digest = hashlib.sha256(f"{variant} {row.exercise}".encode()).digest()
    return row.values[1 + digest[0] % (len(row.values) - 1)]


def path_of(file, root=ROOT):
    return root / "tests" / file if file in (WORKBOOK, TESTS) else root / file


@functools.lru_cache(maxsize=96)
def read(file, root=ROOT, variant=0):
    """The text of a module, of the workbook or of the exercises' tests, in that variant."""
    text = path_of(file, root).read_text(encoding="utf-8")
    for row in course.VARIANTS if variant else ():
        module, _, function = row.exercise.partition(".")
        value = constant(row, variant)
        if file == TESTS:
            text = changed(text, row.tests, row.values[0], value)
        elif file == f"{module}.py":
            for name, templates in {function: row.source, **dict(row.beside)}.items():
                first, _, last = place(text, name)
                source = "\n".join(text.split("\n")[first - 1:last])
                text = graft(text, name, changed(source, templates, row.values[0], value))
    return text


def changed(text, templates, old, new):
    """Each template, with {} for the constant, must stand in the text."""
    for template in templates:
        if template.format(*old) not in text:
            raise ValueError(f"course.VARIANTS: {template.format(*old)!r} stands nowhere")
        text = text.replace(template.format(*old), template.format(*new))
    return text


def heading(number, variant):
    """The first line of a file that is handed out."""
    which = "all sets" if number is None else f"set {number}"
    return f"# handout: {which}, variant {variant}"


HEADING = re.compile(r"^# *handout: *(?:set (?P<number>\d+)|all sets), *variant (?P<variant>\d+)",
                     re.M)


# --------------------------------------------------------------------------------------------------
# The handout

def tests_for(source, names, hidden=False):
    """The tests of the named exercises, and what they use; None if the file has none of them."""
    body = parsed(source).body
    defined = defined_names(body)
    # Start from the tests themselves, then add what each of them uses, until nothing is missing.
    waiting = []
    for node in body:
        marks = marks_of(node)
        if any(m["name"] in names and (hidden or not m.get("hidden")) for m in marks):
            waiting.append(node)
    keep, used = [], set()
    while waiting:
        node = waiting.pop()
        keep.append(node)
        used |= names_read(node)
        for name in names_read(node):
            if name in defined and defined[name] not in keep + waiting:
                waiting.append(defined[name])
    if not keep:
        return None
    keep += [node for node in body[:1] if isinstance(node, ast.Expr)]          # the docstring
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if used & {(alias.asname or alias.name).partition(".")[0] for alias in node.names}:
                keep.append(node)
    return joined(source, sorted(keep, key=lambda node: node.lineno))


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


def sheet(chosen, number, variant):
    """SHEET.md: what to write, what it is worth, one hint each, and the written questions."""
    numbers = sorted({e.number for e in chosen})
    written = sum(q.points for n in numbers for q in course.QUESTIONS[n])
    minutes = sum(course.EFFORT[e.name][0] for e in chosen)
    hours = f"{minutes / 60:.0f} hours" if minutes > 90 else f"{minutes} minutes"
    out = [course.SHEET.format(count=len(chosen), points=sum(e.points for e in chosen),
                               written=written, hours=hours, heading=heading(number, variant),
                               left_out=course.LEFT_OUT)]
    for n in numbers:
        out.append(f"\n## Set {n}: {course.TITLES[n]}")
        for k, e in enumerate([e for e in chosen if e.number == n], 1):
            out += sheet_entry(f"{n}.{k}", e)
        out.append("\n### Questions, on your own figures (a few sentences each, in ANSWERS.md)\n")
        for letter, question in zip("abcdefgh", course.QUESTIONS[n]):
            out.append(f"{n}.{letter} ({question.points} points) {question.text}\n")
    return "\n".join(out).rstrip() + "\n"


def sheet_entry(label, exercise):
    minutes, difficulty = course.EFFORT[exercise.name]
    public = [f"`{test.name}` ({test.points})" for test in exercise.tests if not test.hidden]
    rest = sum(test.points for test in exercise.tests if test.hidden)
    beside = [f"May not be used: `{name}`. It does the same job or calls this function, and is "
              "blank while this exercise is graded.\n" for name in exercise.without]
    if exercise.name in course.NEIGHBOURS:
        beside.append(course.NEIGHBOURS[exercise.name] + "\n")
    return [f"\n### {label} `{exercise.name}` ({exercise.points} points)\n",
            f"{difficulty}, about {minutes} minutes\n",
            f"```\n{exercise.signature}\n\n{exercise.text}\n```\n",
            f"Hint: {exercise.hint}\n", *beside,
            f"Tests and their points: {', '.join(public)}; others that you do not see: {rest}"]


def handout(target, number=None, root=ROOT, variant=0):
    """Write a fresh tree into `target`, a folder that is empty or not there.

    Returns (exercises, points of the functions).  Raises ValueError for a set or a folder that will
    not do.  The tree is built beside the target and then moved: all of it is there, or nothing."""
    chosen, target = chosen_exercises(number, root, variant), target.resolve()
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder; give the name of a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        building.chmod(0o755)
        (building / "tests").mkdir()
        for name, text in handed_out(root, chosen, number, variant).items():
            (building / name).write_text(text, encoding="utf-8")
        (building / "SHEET.md").write_text(sheet(chosen, number, variant), encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return chosen, sum(e.points for e in chosen)


def chosen_exercises(number, root=ROOT, variant=0):
    if variant < 0:
        raise ValueError(f"--variant {variant}: expected 0, the constants as they are, or more")
    chosen = exercises(number, root, variant)
    if not chosen:
        numbers = sorted({e.number for e in exercises(root=root)})
        raise ValueError(f"--problem-set {number}: expected one of {', '.join(map(str, numbers))}")
    return chosen


def handed_out(root, chosen, number, variant):
    """{name in the handout: text}: modules, workbook, public tests, and the texts beside them."""
    texts = {}
    for path in sorted(root.iterdir()):
        kept = path.suffix in (".py", ".toml", ".md", ".cff") or path.name in ("LICENSE",
                                                                               ".gitignore")
        if kept and path.is_file() and not path.is_symlink():
            texts[path.name] = path.read_text(encoding="utf-8")
    texts["README.md"] = f"> {course.LEFT_OUT}\n\n{texts['README.md']}"
    texts["tests/conftest.py"] = (root / "tests" / "conftest.py").read_text(encoding="utf-8")
    names = [e.name for e in chosen]
    texts[f"tests/{TESTS}"] = tests_for(read(TESTS, root, variant), names)
    for file in sorted({e.file for e in chosen}):
        texts[file] = heading(number, variant) + "\n" + unsolved_file(file, chosen, root, variant)
    return texts


def unsolved_file(file, chosen, root, variant):
    """A module without the bodies of its exercises, and without what would tell one of `chosen`."""
    text = read(file, root, variant)
    here = [e for e in chosen if e.file == file]
    if file == WORKBOOK:                                       # of one set, only its own
        names, tests = {e.name for e in here}, {}
        nodes = [node for node in parsed(text).body
                 if (e := marked(node, tests)) is None or e.name in names]
        text = joined(text, nodes)
    for e in here:
        text = blank(text, e.function, unsolved(e))
    for name, instead in instead_in(file, chosen).items():
        text = graft(text, name, instead) if instead else leave_out(text, name)
    return text


def instead_in(file, chosen):
    """{function of this file: what a handout with these exercises has in its place}."""
    found = {}
    for e in chosen:
        for name, instead in course.INSTEAD.get(e.name, {}).items():
            module, _, function = name.partition(".")
            if f"{module}.py" == file:
                found[function] = instead
    return found


# --------------------------------------------------------------------------------------------------
# The platform's container

def gradescope(target, number, root=ROOT, variant=0):
    """Write the autograder's zip: this toolkit, setup.sh and run_autograder.  Returns its path.

    The same bytes every time."""
    texts = {}
    for path in [*sorted(root.glob("*.py")), root / "pyproject.toml",
                 *sorted((root / "tests").glob("*.py"))]:
        texts[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
    options = f"--variant {variant}" + ("" if number is None else f" --problem-set {number}")
    texts["setup.sh"] = course.SETUP
    texts["run_autograder"] = course.RUN_AUTOGRADER.format(options=options)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(texts.items()):
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.external_attr = (0o755 if "." not in name or name == "setup.sh" else 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, text)
    return target


def printable(text):
    return "".join(c if c.isprintable() else "?" for c in text)
