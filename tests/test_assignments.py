"""Exercises and their tests hold together.

The reference gets all points, a blank body none, plausible mistakes none, and another correct way
all.  Whatever a submission does, it is graded for what it is, and the others go on.

The tables of mistakes, of other ways and of hostile submissions stand at the end of the file.
"""
import ast
import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

import assignments
from assignments import (ROOT, Graders, award, blank, cut_out, exercises, graft, handout, job_for,
                         place)

pytestmark = [pytest.mark.system,        # a course: not while editing
              pytest.mark.skipif(not hasattr(os, "fork"), reason="grading forks")]
ALL = {exercise.name: exercise for exercise in exercises()}


def source_of(exercise):
    return (ROOT / exercise.file).read_text()


def reference(exercise):
    return cut_out(source_of(exercise), exercise.function)[0]


def docstring_and_body(exercise):
    """The reference in two parts: up to the end of its docstring, and the rest."""
    head, quotes, body = reference(exercise).rpartition('"""')
    return head + quotes, body


def with_mistake(exercise, old, new):
    head, body = docstring_and_body(exercise)                  # the docstring may have these words
    assert body.count(old) == 1, f"{exercise.name}: {old!r} stands {body.count(old)} times in it"
    return head + body.replace(old, new)


def written(exercise, body):
    """A function with the reference's first line and this body."""
    text = reference(exercise)
    first_line = text[:text.index('"""')].rstrip()
    return first_line + "\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")


@pytest.fixture(scope="module")
def graders():
    with Graders(1, seconds=3) as graders:
        yield graders


def graded(graders, pairs, first=False):
    """[(exercise, source of the function)] -> [Grade]; first: stop at the first test that fails."""
    jobs = [job_for(exercise, source) | {"first": first} for exercise, source in pairs]
    grades = []
    for (exercise, _), answer in zip(pairs, graders.run(jobs)):
        grades.append(award(assignments.Grade(exercise), answer))
    return grades


# --------------------------------------------------------------------------------------------------
# Marks, tests and points

def test_marks_and_tests_name_the_same_exercises():
    tested = set(assignments.tests_of_exercises(ROOT))
    assert tested == set(ALL) and len(ALL) >= 12
    assert {exercise.number for exercise in ALL.values()} == {1, 2, 3, 4}


def test_every_mark_is_in_the_form_that_is_read():
    """`Exercise: module.function (set N, P points)`, with a hint in the next line."""
    text = "".join((ROOT / f"{module}.py").read_text() for module in assignments.MODULES)
    assert sorted(re.findall(r"^ *Exercise: (\S+)", text, re.M)) == sorted(ALL)


def test_every_exercise_has_tests_a_hint_and_a_place_in_the_module_of_its_name():
    for exercise in ALL.values():
        source = source_of(exercise)
        assert exercise.tests and exercise.hint and exercise.text, exercise.name
        assert place(source, exercise.function), exercise.name
        for other in exercise.without:
            assert place(source, other), f"{exercise.name}: without {other}"


def test_the_modules_are_those_of_the_folder():
    assert set(assignments.MODULES) == {path.stem for path in ROOT.glob("*.py")}


@pytest.mark.system
def test_the_reference_gets_full_points_a_blank_body_none_and_no_exercise_needs_another(tmp_path):
    """With all exercises blank, every test fails.  With one body put back, its own tests pass."""
    tree = tmp_path / "blank"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=no_caches)
    shutil.copy(ROOT / "pyproject.toml", tree)
    sources = {f"{m}.py": (ROOT / f"{m}.py").read_text() for m in assignments.MODULES}
    for exercise in ALL.values():
        sources[exercise.file] = blank(sources[exercise.file], exercise.function)
    for file, source in sources.items():
        (tree / file).write_text(source)
    tests, jobs = [], []
    for exercise in ALL.values():
        tests += exercise.tests
        text = graft(sources[exercise.file], exercise.function, reference(exercise))
        jobs.append({"files": {exercise.file: text}, "tests": list(exercise.tests)})
    with Graders(1, root=tree) as graders:
        everything = graders.run([{"files": {}, "tests": tests}])[0]
        one_each = graders.run(jobs)
    assert everything["end"] == "done"
    assert len(everything["expected"]) == len(everything["tests"]) > 100
    outcomes = {test: outcome for test, (outcome, _) in everything["tests"].items()}
    assert [test for test, outcome in outcomes.items() if outcome != "failed"] == []
    for exercise, answer in zip(ALL.values(), one_each):
        points = award(assignments.Grade(exercise), answer).points
        assert points == exercise.points, f"{exercise.name}: {answer}"


ONE_OF_EACH = pytest.param(slice(1), id="one of each")
THE_OTHERS = pytest.param(slice(1, None), id="the others", marks=pytest.mark.slow)


@pytest.mark.system
@pytest.mark.parametrize("which", [ONE_OF_EACH, THE_OTHERS])
def test_plausible_mistakes_get_no_points(graders, which):
    pairs, labels = [], []
    for name, mistakes in WRONG.items():
        for old, new, label in mistakes[which]:
            pairs.append((ALL[name], with_mistake(ALL[name], old, new)))
            labels.append(label)
    passed = []
    for grade, label in zip(graded(graders, pairs, first=True), labels):
        if grade.points:
            passed.append(f"{grade.exercise.name}: {label}")
    assert not passed, f"wrong, and graded as right: {passed}"


def test_each_exercise_has_three_plausible_mistakes_that_fit_its_reference():
    assert set(WRONG) == set(ALL) and min(map(len, WRONG.values())) >= 3
    for name, mistakes in WRONG.items():
        for old, new, _ in mistakes:
            assert with_mistake(ALL[name], old, new) != reference(ALL[name])


@pytest.mark.system
def test_another_correct_way_gets_full_points(graders):
    assert set(ANOTHER_WAY) == set(ALL)
    pairs = [(ALL[name], written(ALL[name], body)) for name, body in ANOTHER_WAY.items()]
    for grade in graded(graders, pairs):
        message = f"{grade.exercise.name}: {grade.why} {grade.failures}"
        assert grade.points == grade.exercise.points, message


# --------------------------------------------------------------------------------------------------
# Hostile and broken submissions

SECRET = "what stands outside the grading folder"
QUICK = ("endless loop", "os._exit", "prints", "writes outside", "not finished", "helper")


def hostile_function(name, outside, mine):
    """The source of a rankme that does what a row of HOSTILE says, helpers included."""
    body = HOSTILE[name][0].replace("OUTSIDE", repr(str(outside / "secret")))
    body = body.replace("SUBMISSION", repr(str(mine)))
    source = "def rankme(features, eps=1e-7):\n"
    source += textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    if name == "decorated":
        source = "@(lambda f: exit(0))\n" + source
    return source


@pytest.fixture
def folder(tmp_path, request):
    """A folder of submissions: one for each row of HOSTILE, and some that are broken as files."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text(SECRET)
    source, students = (ROOT / "measures.py").read_text(), tmp_path / "students"
    for name in HOSTILE:
        if (name in QUICK) == (request.param == "quick"):
            mine = students / name.replace(" ", "_") / "measures.py"
            mine.parent.mkdir(parents=True)
            text = graft(source, "rankme", hostile_function(name, outside, mine))
            if name == "helper":
                text += "\ndef _entropy(x):\n    return 1.0\n"
            mine.write_text(text)
    add_broken_submissions(students, source)
    (students / "link").mkdir()
    (students / "link" / "measures.py").symlink_to(outside / "secret")
    edited = students / "edited_tests"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", edited / "tests", ignore=no_caches)
    for path in [*(edited / "tests").glob("*.py")]:
        path.write_text("def test_all_is_well():\n    pass\n")
    four = "def rankme(features, eps=1e-7):\n    return 4.0\n"
    (edited / "measures.py").write_text(graft(source, "rankme", four))
    return students


def add_broken_submissions(students, source):
    error = "def rankme(features, eps=1e-7):\n    return 1 +* 2\n"
    broken = {"syntax_error": graft(source, "rankme", error).encode(),
              "renamed": source.replace("def rankme(", "def rank_me(").encode(),
              "not_text": b"\xff\xfe\x00def rankme"}
    for name, content in broken.items():
        (students / name).mkdir()
        (students / name / "measures.py").write_bytes(content)
    (students / "missing").mkdir()
    (students / "nested" / "homework").mkdir(parents=True)
    (students / "nested" / "homework" / "measures.py").write_text(source)


BROKEN = {"syntax_error": "syntax error in line",
          "renamed": "no function rankme, but rank_me: was it renamed",
          "not_text": "cannot be read",
          "missing": "measures.py is missing",
          "link": "leads out of the submission",
          "edited_tests": "tests fail"}


def left_behind():
    """Processes that jobs forked and did not end.

    Such a process has a worker's command line.  Its parent is a worker of ours, or has ended."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"grading-" in path.read_bytes():
                stat = path.with_name("stat").read_text()
                parents[int(path.parent.name)] = int(stat.rpartition(")")[2].split()[1])
    ours = {pid for pid, parent in parents.items() if parent == os.getpid()}
    return [pid for pid, parent in parents.items() if parent in ours or parent == 1]


QUICK_ONES = pytest.param("quick", id="quick")
OTHER_ONES = pytest.param("others", id="others", marks=pytest.mark.slow)


@pytest.mark.system
@pytest.mark.parametrize("folder", [QUICK_ONES, OTHER_ONES], indirect=True)
def test_hostile_and_broken_submissions_are_graded_for_what_they_are(folder, monkeypatch, tmp_path,
                                                                     graders):
    before = {path: path.read_bytes() for path in folder.rglob("*.py") if path.is_file()}
    two = [ALL["measures.rankme"], ALL["measures.effective_rank"]]
    monkeypatch.setattr(assignments, "exercises", lambda number=None, root=ROOT: two)
    monkeypatch.setattr(assignments, "Graders", lambda *_: contextlib.nullcontext(graders))
    grades = assignments.grade([folder])
    expected = dict(BROKEN)
    for name, (_, reason) in HOSTILE.items():
        if (folder / name.replace(" ", "_")).exists():
            expected[name.replace(" ", "_")] = reason
    for name, reason in expected.items():
        rankme, effective_rank = grades.pop(name)
        message = f"{name}: {rankme.why!r} where {reason!r} was expected"
        assert rankme.points == 0 and re.search(reason, rankme.why), message
        unreadable = name in ("not_text", "missing", "link")
        assert effective_rank.points == (0 if unreadable else 5), f"{name}: {effective_rank.why}"
    assert [grade.points for grade in grades.pop("nested")] == [10, 5] and not grades
    assert not left_behind(), "processes were left behind"
    # Run as any other user than root, files are only as safe as their rights.
    if hasattr(os, "geteuid") and os.geteuid() == 0 and sys.platform == "linux":
        assert (tmp_path / "outside" / "secret").read_text() == SECRET
        assert {path: path.read_bytes() for path in before} == before


LOOKS = [("import os\nreturn os.getpid()", "uses os"),
         ("class Any:\n    __eq__ = lambda s, o: True\nreturn Any()", "uses a class"),
         ("return open('x')", "uses open"),
         ("import sweep\nreturn sweep.rounded(1.0)", "uses sweep"),
         ("return 1.0", "")]


@pytest.mark.parametrize("body, look", LOOKS)
def test_what_a_person_should_read_is_pointed_at(tmp_path, body, look):
    source = "def rankme(features, eps=1e-7):\n" + textwrap.indent(body, "    ") + "\n"
    (tmp_path / "measures.py").write_text(source)
    assert assignments.examine(tmp_path, ALL["measures.rankme"], {})[1].look == look


# --------------------------------------------------------------------------------------------------
# Handout and commands

def command(*arguments, program=ROOT / "run.py", **options):
    return subprocess.run([sys.executable, str(program), *map(str, arguments)], text=True,
                          capture_output=True, timeout=120, **options)


def one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize("number", [None, 1, 2, 3, 4])
def test_a_handout_keeps_all_lines_but_those_of_the_bodies(tmp_path, number):
    tree = tmp_path / "new" / "course"
    chosen, points = handout(tree, number)
    assert chosen == exercises(number) and points == sum(e.points for e in chosen)
    assert {p.name for p in tree.glob("*.py")} == {f"{m}.py" for m in assignments.MODULES}
    for path in ROOT.glob("*.py"):
        given, source = (tree / path.name).read_text(), path.read_text()
        restored, lines = given, source.splitlines()
        there, here = Counter(lines), Counter(given.splitlines())
        for e in chosen:
            if e.file == path.name:
                first, body, last = place(source, e.function)
                assert given.count(f"{e.function}: this is yours to write") == 1
                for line in lines[body - 1:last]:              # what others have too may be left
                    assert here[line] < there[line] or not line.strip(), line
                restored = graft(restored, e.function, "\n".join(lines[first - 1:last]))
        assert restored == source, f"{path.name}: the rest is not what it was"
    with pytest.raises(ValueError, match="not an empty folder"):
        handout(tree)


@pytest.mark.parametrize("number", [None, 1, 2, 3, 4])
def test_a_handout_has_the_tests_and_the_sheet_of_its_exercises_and_no_others(tmp_path, number):
    chosen, _ = handout(tmp_path / "course", number)
    names, sheet = {e.name for e in chosen}, (tmp_path / "course" / "SHEET.md").read_text()
    tested = set()
    for path in (tmp_path / "course" / "tests").glob("test_*.py"):
        for node in assignments.parsed(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert set(assignments.exercise_names(node)) & names, node.name
            tested |= set(assignments.exercise_names(node))
    assert tested & set(ALL) >= names
    for e in exercises():
        assert (f"`{e.name}`" in sheet) == (e.name in names)
    for n in {e.number for e in chosen}:
        assert all(question in sheet for _, question in assignments.QUESTIONS[n])
    assert not (tmp_path / "course" / "tests" / "assignments.py").exists()


@pytest.mark.slow
@pytest.mark.system
def test_the_public_tests_of_a_handout_fail_until_it_is_solved(tmp_path):
    mine = tmp_path / "mine"
    handout(mine, 3)
    first, *others = exercises(3)
    for e in others:
        path = mine / e.file
        path.write_text(graft(path.read_text(), e.function, reference(e)))
    options = ["-m", "pytest", "-q", "-rfE", "-m", "exercise", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, *options], cwd=mine, capture_output=True, text=True,
                          timeout=120)
    failed = re.findall(r"^(?:FAILED|ERROR) ([^ \[]+)", done.stdout, re.M)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert set(failed) == set(first.tests), done.stdout
    assert passed and int(passed[1]) >= len(others), done.stdout
    assert f"{first.function}: this is yours to write" in done.stdout


def test_comments_at_the_end_of_a_body_do_not_leak():
    before = 'def f(x):\n    """Doc."""\n'
    body = "    # a comment that tells\n    return x   # all\n    # of it\n\n    # and more\n"
    after = "\n# outside\ndef g():\n    return 1\n"
    expected = before + '    raise NotImplementedError("f: no")\n' + after
    assert blank(before + body + after, "f", "no") == expected


@pytest.mark.system
def test_commands_from_handout_to_csv(tmp_path):
    mine, table = tmp_path / "=mine", tmp_path / "points.csv"
    done = command("handout", mine, "--problem-set", 2)
    assert done.returncode == 0, done.stderr
    assert "4 exercises, 40 points" in one_line(done.stdout)
    # One exercise solved, one with a syntax error, two left as they are.
    path = mine / "measures.py"
    solved = graft(path.read_text(), "rankme", reference(ALL["measures.rankme"]))
    error = "def effective_rank(eigenvalues):\n    return _rank(eigenvalues\n"
    path.write_text(graft(solved, "effective_rank", error))
    done = command("grade", mine, "--problem-set", 2, "--csv", table)
    assert done.returncode == 0, done.stderr
    screen = one_line(done.stdout)
    assert "10 of 40 points" in screen and "not attempted" in screen
    assert re.search(r"(\d+) of \1 tests pass", screen) and "'(' was never closed" in screen
    rows = list(csv.reader(io.StringIO(table.read_text())))
    assert rows[0] == ["submission", *(e.name for e in exercises(2)), "total", "remarks"]
    assert rows[1][:6] == ["'=mine", "10", "0", "0", "0", "10"]
    itself = command("grade", ".", program="run.py", cwd=mine)
    assert itself.returncode == 2 and "itself a handout" in itself.stderr


BAD_INPUT = [
    (("handout", "FULL"), "not an empty folder"),
    (("handout", "FILE"), "not an empty folder"),
    (("handout", "new", "--problem-set", "5"), "expected one of 1, 2, 3, 4"),
    (("handout", "FILE/under"), ""),
    (("grade", "nowhere"), "is not a folder"),
    (("grade", "EMPTY"), "holds no submission"),
    (("grade", "FULL", "--problem-set", "0"), "expected one of"),
    (("grade", "FULL", "--csv", "nowhere/x.csv"), "is not a folder"),
    (("grade",), "Missing argument"),
]


@pytest.mark.system
@pytest.mark.parametrize("arguments, reason", BAD_INPUT)
def test_bad_input_is_one_sentence(tmp_path, arguments, reason):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "measures.py").write_text("")
    (tmp_path / "FILE").write_text("")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2) and reason in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "FILE", "FULL"]


# --------------------------------------------------------------------------------------------------
# What the README says, in numbers

def readme(section, file="README.md"):
    text = (ROOT / file).read_text()
    return text.partition(f"## {section}\n")[2].partition("\n## ")[0]


def rows_of_seed(seed):
    text = (ROOT / f"results/modadd/nano-s{seed}/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_cell(cell, values):
    """A cell says "median (lowest to highest)", or the median alone, rounded as it is there."""
    numbers = re.findall(r"[\d.]+", cell)
    places = len(numbers[0].partition(".")[2])
    shown = [f"{x:.{places}f}" for x in (sorted(values)[1], min(values), max(values))]
    if len(numbers) != 3:
        shown = shown[:1]
    assert [f"{float(n):.{places}f}" for n in numbers] == shown, f"{cell!r} for {values}"


def test_the_normal_curve_is_that_of_the_committed_run():
    """Median, lowest and highest of three seeds."""
    runs = [rows_of_seed(seed) for seed in range(3)]
    section = "What a normal default run looks like"
    lines = readme(section, "results/README.md").splitlines()
    table = [line.strip("|").split("|") for line in lines if re.match(r"\| \d", line)]
    assert len(table) >= 10
    for line in table:
        step, loss, *cells = [cell.strip() for cell in line]
        rows = [row for run in runs for row in run if row["step"] == int(step)]
        if loss:
            assert_cell(loss, [row["loss"] for row in rows])
        for k, level in enumerate(("modadd-1", "modadd-2", "modadd-3")):
            levels = [row["levels"][level] for row in rows]
            assert_cell(cells[2 * k], [found["accuracy"] for found in levels])
            assert_cell(cells[2 * k + 1], [found["rankme"]["first"][-2] for found in levels])


def test_the_readme_counts_lines_and_points_as_they_are():
    counted = re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", readme("Reading order"), re.M)
    for name, lines in counted:
        there = len((ROOT / name).read_text().splitlines())
        assert int(lines) == pytest.approx(there, rel=0.1), name
    written = 0
    for questions in assignments.QUESTIONS.values():
        written += sum(points for points, _ in questions)
    points = sum(e.points for e in ALL.values())
    expected = (f"an exercise: {len(ALL)} of them in four sets, {points} points, "
                f"and {written} more")
    assert expected in one_line(readme("Course assignments"))


# --------------------------------------------------------------------------------------------------
# A whole course

def submission_of(k, e):
    """Of three students one is right, one wrong in everything, one hostile in two exercises."""
    if k % 3 == 1:
        old, new, _ = WRONG[e.name][k // 3 % 3]
        return with_mistake(e, old, new)
    if k % 3 == 2 and e.name == "measures.rankme":
        return hostile_function(sorted(HOSTILE)[k // 3], Path("/nowhere"), Path("/nowhere"))
    if k % 3 == 2 and e.name == "measures.sgld_step":
        first_line = "def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):"
        return first_line + "\n    while True: pass\n"
    return written(e, ANOTHER_WAY[e.name]) if k % 2 else reference(e)


@pytest.mark.slow
@pytest.mark.system
def test_thirty_submissions_in_five_minutes(tmp_path):
    handout(tmp_path / "given")
    for k in range(30):
        mine = tmp_path / "submissions" / f"student{k:02}"
        shutil.copytree(tmp_path / "given", mine)
        for e in ALL.values():
            path = mine / e.file
            path.write_text(graft(path.read_text(), e.function, submission_of(k, e)))
    began = time.monotonic()
    grades = assignments.grade([tmp_path / "submissions"], workers=2)
    took = time.monotonic() - began
    print(f"\n30 submissions, {len(ALL)} exercises each, two workers: {took:.0f} s")
    assert took < 300
    total = sum(e.points for e in ALL.values())
    for k, results in enumerate(grades.values()):
        lost = [(g.exercise.name, g.why) for g in results if not g.points]
        assert sum(g.points for g in results) == (total, 0, total - 20)[k % 3], (k, lost)


# --------------------------------------------------------------------------------------------------
# Plausible mistakes: (what stands in the reference, what stands there instead, what is wrong)

WRONG = {
    "tasks.answer_targets": [
        ("T - length - 1:-1]", "T - length:]", "not shifted"),
        ("torch.full_like(tokens, IGNORE)", "tokens.roll(-1, 1)", "the prompt is scored too"),
        ("torch.full_like(tokens, IGNORE)", "tokens", "in place"),
        ("IGNORE)", "PAD)", "the wrong filling"),
    ],
    "tasks.answer_distribution": [
        ("v / len(code)", "v / len(counts)", "divided by the answers"),
        ("len(code), m)", "len(code), 1)", "multiplicity forgotten"),
        ("VOCAB_SIZE **", "2 **", "two answers with one code"),
        ("spec.operands(columns, size), size)", "columns[:, -2:], size)",
         "columns taken for operands"),
    ],
    "models.attention_mask": [
        (".tril()", ".triu()", "looks ahead"),
        (".tril()", ".tril(-1)", "not at itself"),
        ("line[:, :, None] == line[:, None, :]", "line[:, :, None] > -9", "other lines seen"),
        ("-math.inf)", "-1.0)", "a little is let through"),
    ],
    "models.attention": [
        (" * d ** -0.5", "", "not divided by sqrt(d)"),
        ("d ** -0.5", "d ** -1", "the square root is missing"),
        ("d ** -0.5", "(d * n_head) ** -0.5", "sqrt(D)"),
        (".softmax(-1)", ".softmax(-2)", "over queries"),
        (" + mask", "", "no mask"),
        ("3, n_head, d).permute(2, 0, 3, 1, 4)", "n_head, 3, d).permute(3, 0, 2, 1, 4)",
         "heads outermost"),
        (".transpose(1, 2).reshape", ".reshape", "heads not put back"),
    ],
    "models.resample_answers": [
        ("torch.multinomial(p, 1, generator=generator)[:, 0]", "p.argmax(-1)",
         "chosen, not drawn"),
        ("tokens[rows, t + 1] = targets[rows, t] =", "targets[rows, t] =",
         "not read by what follows"),
        ("batch[0].clone(), batch[1].clone()", "batch[0], batch[1]", "in place"),
        (".float().softmax(-1)", ".float().softmax(-1).sqrt()", "a square root too many"),
    ],
    "measures.rankme": [
        ("p = s / s.sum() + eps", "p = s ** 2 / (s ** 2).sum() + eps", "squared"),
        ("features.detach().double()", "(features - features.mean(0)).double()", "centred"),
        ("torch.exp(-(p * p.log()).sum())", "-(p * p.log()).sum()", "entropy itself"),
        ("p.log()", "p.log2()", "bits under exp"),
        ("s / s.sum()", "s / s.max()", "not normalised"),
        ("not torch.isfinite(x).all() or not x.any()", "False", "takes anything"),
    ],
    "measures.effective_rank": [
        ("values.clamp(min=0)", "values.clamp(min=0).sqrt()", "singular values taken"),
        ("values.clamp(min=0)", "values.clamp(min=0) ** 2", "squared"),
        ("p / p.sum()", "p", "not normalised"),
        ("torch.exp(torch.special.entr(p / p.sum()).sum())", "p.sum() ** 2 / (p ** 2).sum()",
         "participation ratio"),
        ("torch.exp(", "(", "entropy itself"),
    ],
    "measures.gradient_gram": [
        ("(gram + gram.mT) / 2", "(gram + gram.mT) / 2 / n", "divided by N"),
        ("(gram + gram.mT) / 2", "gram + gram.mT", "a missing 1/2"),
        ("gram += g", "gram = g", "the last parameter only"),
        ("(gram + gram.mT) / 2", "gram - gram.mean(0)", "centred"),
        ('n = _prepare("gradient_gram", model, data)',
         'n = _prepare("gradient_gram", model, data); net.train()', "dropout on"),
        ('net, params, data, n = _prepare("gradient_gram", model, data)',
         "net, params, n = model, [*model.parameters()], len(data[0])",
         "the caller's model itself, and unchecked"),
    ],
    "measures.power_iteration": [
        ("v = hv / hv.norm()", "v = hv", "not normalised"),
        ("float(v @ hv)", "float(hv.norm())", "the sign lost"),
        (" / max(abs(eigenvalue), 1e-300)", "", "residual not relative"),
        ("converged=residual <= tol", "converged=True", "converged, whatever"),
        ("v = start / start.norm()", "v = start", "the start not normalised"),
        ("if residual <= tol or", "if", "never stops early"),
    ],
    "measures.split_r_hat": [
        ("torch.cat([traces[:, :half], traces[:, -half:]])", "traces", "not split"),
        (".sqrt())", ")", "a missing square root"),
        ("(half - 1) / half + ", "1 + ", "1 for (h - 1) / h"),
        ("parts.mean(1).var()", "parts.mean(1).var() / half", "error of the mean"),
        ("parts.var(1)", "parts.std(1)", "standard deviations"),
    ],
    "measures.effective_samples": [
        ("2 * torch.cummin", "1 * torch.cummin", "the 2 missing"),
        ("acov[0] + (x.mean(1).var() if chains > 1 else 0)", "acov[0]", "chains apart"),
        ("ess = chains * n", "ess = n", "of one chain"),
        ("math.sqrt(float(total) / ess)", "float(total) / ess", "a missing square root"),
        ("ess = chains * n / max(tau, 1 / math.log10(chains * n + 10))",
         "ess = float(chains * n)", "independent, whatever"),
    ],
    "measures.sgld_step": [
        ("-lr / 2", "-lr", "a missing 1/2"),
        ("math.sqrt(lr)", "lr", "a missing square root"),
        ("torch.sub(w, w0)", "torch.sub(w0, w)", "pushed away"),
        ("alpha=nbeta)", "alpha=1)", "nbeta left out"),
        ("math.sqrt(lr)", "math.sqrt(2 * lr)", "twice the noise"),
        ("    w.add_(drift", "    w = w.clone().add_(drift", "not in place"),
    ],
    "measures.llc_draws": [
        ("[:, num_burnin_steps:]", "", "burn-in kept"),
        ("nbeta * (", "(", "nbeta left out"),
        ("losses - baselines", "losses - baselines.mean()", "not paired"),
        ("losses - baselines", "losses", "no baseline"),
        ("[:, num_burnin_steps:]", "[:, :-num_burnin_steps]", "the other end dropped"),
        ("nbeta * (losses - baselines)", "(nbeta * (losses - baselines)).clamp(min=0)",
         "never negative"),
    ],
    "emergence.emergence_index": [
        ("(values - chance) / (1 - chance)", "values", "chance ignored"),
        ("/ (1 - chance) >= bar", ">= bar", "not rescaled"),
        ("3 * np.sqrt(chance / (1 - chance) / examples)",
         "3 * chance / (1 - chance) / examples", "a missing square root"),
        ("steps, persistence, lasting)", "steps, 1, lasting)", "one is enough"),
        ("steps, persistence, lasting)", "steps, persistence, 1.0)", "three are enough"),
        (">= bar - 1e-12", "> bar + 1e-12", "the bar itself does not count"),
    ],
    "emergence.recovery": [
        ("later & (", "(", "before the floor"),
        ("(1 + rise) * floor", "rise * floor", "share for excess"),
        ("np.where(np.isnan(smooth), np.inf, smooth)", "smooth", "NaN is the floor"),
        (">= (1 + rise)", "> (1 + rise)", "the bar itself does not count"),
        ("(1 + rise) * floor", "floor + rise", "absolute"),
    ],
    "emergence.holm": [
        ("(len(order) - k)", "len(order)", "Bonferroni"),
        ("max(worst, min(1.0, (len(order) - k) * p_values[i]))",
         "min(1.0, (len(order) - k) * p_values[i])", "not monotone"),
        ("(len(order) - k)", "(len(p_values) - k)", "what was not tested counts"),
        ("min(1.0, (len(order) - k) * p_values[i])", "(len(order) - k) * p_values[i]", "above 1"),
    ],
    "emergence.exchanges": [
        ("T = len(set(tasks))", "T = len(tasks)", "levels for tasks"),
        ("default_rng(seed)", "default_rng()", "no seed"),
        ("drawn[1:] = np", "drawn[:] = np", "the observed data exchanged"),
        (".permuted(drawn[1:], axis=1)", ".permutation(drawn[1:], axis=1)", "one order for all"),
        ("itertools.permutations(range(T))", "itertools.product(range(T), repeat=T)",
         "a task's geometry twice"),
        ("np.array(list(itertools.permutations(range(T))))",
         "np.array(list(itertools.permutations(range(T))))[::-1]", "the observed data last"),
    ],
    "emergence.precursor_counts": [
        ("(onset < emergence)", "(onset <= emergence)", "the same step counts"),
        (" & ~np.isnan(onset)", "", "what has no date counts"),
        ("first = counted & (", "first = (", "what never emerges counts"),
        ("events.arrivals[:, :, None]", "events.emergence[:, :, None]",
         "what was there from the start counts"),
        ("np.isfinite(emergence)", "np.isfinite(emergence) & np.isfinite(onset)",
         "an onset that never came does not count"),
    ],
    "emergence.p_value": [
        ("(values >= values[0] - 1e-9)", "(values > values[0])", "ties left out"),
        (".mean()", "[1:].mean()", "the observed left out"),
        ("values >= values[0] - 1e-9", "values <= values[0] + 1e-9", "the other tail"),
        (" - 1e-9", "", "no room for rounding"),
    ],
}


# --------------------------------------------------------------------------------------------------
# Correct, and written in another way

ANOTHER_WAY = {
    "tasks.answer_targets": """
        T = tokens.shape[1]
        place = torch.arange(T)
        asked = (place >= T - 1 - length) & (place < T - 1)
        return torch.where(asked, tokens.roll(-1, dims=1), torch.tensor(IGNORE))
        """,
    "tasks.answer_distribution": """
        from itertools import product
        spec, size, _ = _lookup(task, level)
        ranges = spec.operand_ranges[level - 1]
        if math.prod(ranges) > 2_000_000:
            return spec.answers(size)[0]
        x = torch.tensor(list(product(*map(range, ranges))))
        answers = spec.line(spec.operands(x, size), size)[1]
        counts = Counter(map(tuple, answers.tolist()))
        return [(n / len(x), 1) for n in counts.values()]
        """,
    "models.attention_mask": """
        B, T = line.shape
        mask = torch.full((B, 1, T, T), -math.inf)
        for b in range(B):
            for t in range(T):
                for s in range(t + 1):
                    if line[b, s] == line[b, t]:
                        mask[b, 0, t, s] = 0
        return mask
        """,
    "models.attention": """
        B, T, D3 = qkv.shape
        q, k, v = (x.reshape(B, T, n_head, -1).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        return out.transpose(1, 2).flatten(2)
        """,
    # Another order of draws: all of them first, by the inverse distribution function.
    "models.resample_answers": """
        tokens, targets = (x.clone() for x in batch)
        u = torch.rand(tokens.shape, generator=generator, dtype=torch.float64)
        for t in range(tokens.shape[1] - 1):
            cdf = model(tokens)[:, t].double().softmax(-1).cumsum(-1)
            new = (u[:, t:t + 1] > cdf).sum(-1).clamp(max=cdf.shape[1] - 1)
            here = targets[:, t] != IGNORE
            tokens[:, t + 1] = torch.where(here, new, tokens[:, t + 1])
            targets[:, t] = torch.where(here, new, targets[:, t])
        return Batch(tokens, targets)
        """,
    # The Gram matrix instead of the SVD.
    "measures.rankme": """
        if features.dim() != 2 or not torch.isfinite(features).all() or (features == 0).all():
            raise ValueError("rankme: wrong features")
        x = features.double()
        gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
        s = torch.linalg.eigh(gram)[0].clamp(min=0) ** 0.5
        p = s / s.sum() + eps
        return math.exp(-sum(q * math.log(q) for q in p.tolist()))
        """,
    "measures.effective_rank": """
        x = [float(value) for value in eigenvalues]
        if not all(map(math.isfinite, x)) or max(x) <= 0 or min(x) < -1e-6 * max(x):
            raise ValueError("effective_rank: no spectrum")
        x = [value for value in x if value > 0]
        return math.prod((value / sum(x)) ** (-value / sum(x)) for value in x)
        """,
    "measures.gradient_gram": """
        net, params, data, n = _prepare("gradient_gram", model, data)
        rows = []
        for i in range(n):
            loss = loss_fn(net, tuple(t[i:i + 1] for t in data))
            if loss.shape != (1,):
                raise ValueError("gradient_gram: loss_fn must return one loss per example")
            g = torch.autograd.grad(loss[0], params, allow_unused=True)
            g = [torch.zeros_like(p) if x is None else x for x, p in zip(g, params)]
            rows.append(torch.cat([x.flatten() for x in g]).double())
        K = torch.stack(rows) @ torch.stack(rows).T
        if not torch.isfinite(K).all():
            raise ValueError("gradient_gram: not finite")
        return K
        """,
    "measures.power_iteration": """
        v, n = start, 0
        while True:
            v = v / torch.linalg.vector_norm(v)
            hv, n = matvec(v), n + 1
            rho = torch.dot(v, hv).item()
            r = torch.linalg.vector_norm(hv - rho * v).item()
            if rho != 0:
                r = r / abs(rho)
            elif r != 0:
                r = float("inf")
            if r <= tol or n >= max_iters:
                return HessianTop(
                    eigenvalue=rho, eigenvector=v, smallest=math.nan, smallest_residual=math.nan,
                    iterations=n, residual=r, converged=r <= tol, vectors=torch.empty(0, len(v)))
            v = hv
        """,
    "measures.split_r_hat": """
        n = traces.shape[1] // 2
        parts = []
        for chain in traces:
            parts += [chain[:n].double(), chain[len(chain) - n:].double()]
        if n < 2 or all(float(p.var()) == 0 for p in parts):
            return float("nan")
        W = sum(float(p.var()) for p in parts) / len(parts)
        m = [float(p.mean()) for p in parts]
        B = sum((x - sum(m) / len(m)) ** 2 for x in m) / (len(m) - 1)
        return math.sqrt((n - 1) / n + B / W)
        """,
    # A loop over lags instead of an FFT.
    "measures.effective_samples": """
        x = traces.double()
        C, n = x.shape
        y = x - x.mean(1, keepdim=True)
        W = float((y ** 2).sum(1).mean()) / (n - 1)
        total = W * (n - 1) / n + (float(x.mean(1).var()) if C > 1 else 0)
        if total == 0:
            return float(C * n), 0.0
        def rho(t):
            if t == 0:
                return 1.0
            return 1 - (W - float((y[:, :n - t] * y[:, t:]).sum(1).mean()) / n) / total
        tau, t = -1.0, 0
        while t + 1 < n and (pair := rho(t) + rho(t + 1)) > 0:
            tau, t = tau + 2 * pair, t + 2
        return C * n / tau, math.sqrt(total * tau / (C * n))
        """,
    # The noise first.
    "measures.sgld_step": """
        drift = nbeta * gradient + localization * (w - w0)
        w += lr ** 0.5 * noise
        w -= 0.5 * lr * drift
        """,
    "measures.llc_draws": """
        pairs = zip(losses.unbind(1), baselines.unbind(1))
        draws = [nbeta * loss - nbeta * baseline for loss, baseline in pairs]
        return torch.stack(draws[num_burnin_steps:], 1)
        """,
    # One curve after another, in a loop.
    "emergence.emergence_index": """
        import math
        values, steps = np.asarray(values, dtype=float), list(steps)
        chances = np.broadcast_to(np.asarray(chance, dtype=float), (*values.shape[:-1], 1))
        counts = np.broadcast_to(np.asarray(examples, dtype=float), (*values.shape[:-1], 1))
        out = np.full(values.shape[:-1], -1)
        for where in np.ndindex(*values.shape[:-1]):
            c, n = chances[where][0], counts[where][0]
            bar = max(threshold, 3 * math.sqrt(c / (1 - c) / n))
            good = [x - c >= (bar - 1e-12) * (1 - c) for x in values[where]]
            for t in range(len(steps)):
                until = [k for k in range(t, len(steps)) if steps[k] <= lasting * steps[t]]
                last = max([*until, t + persistence - 1])
                if last < len(steps) and lasting * steps[t] <= steps[-1]:
                    if all(good[t:last + 1]):
                        out[where] = t
                        break
        return out
        """,
    "emergence.recovery": """
        low = np.argmin(np.where(smooth == smooth, smooth, np.inf), axis=-1)
        floor = np.full(low.shape, np.nan)
        risen = np.zeros(smooth.shape, bool)
        for where in np.ndindex(*low.shape):
            floor[where] = smooth[where][low[where]]
            for t in range(low[where] + 1, smooth.shape[-1]):
                risen[where][t] = smooth[where][t] >= floor[where] + rise * floor[where]
        return floor, low, risen
        """,
    "emergence.holm": """
        known = [p for p in p_values if p is not None]
        out = []
        for q in p_values:
            below = [p for p in known if q is not None and p <= q]
            adjusted = [sum(r >= p for r in known) * p for p in below]
            out.append(None if q is None else min(1.0, max(adjusted)))
        return out
        """,
    # Another order of draws, one row at a time; and the permutations from the last task on.
    "emergence.exchanges": """
        names = sorted(set(tasks), key=str)
        T = len(names)
        if T > 9:
            rng = np.random.default_rng(seed + 7)
            rows = [list(range(T))]
            while len(rows) < count:
                rows.append(rng.permutation(T).tolist())
            return np.array(rows)
        rows = [[]]
        for task in range(T):
            rows = [row + [other] for row in rows for other in range(T) if other not in row]
        return np.array(rows).reshape(-1, T)
        """,
    "emergence.precursor_counts": """
        R, L, T = len(events.runs), len(events.levels), len(events.owner)
        first, counted = np.zeros((2, R, T, T))
        onsets = events.of_partners(events.onset)
        for r in range(R):
            for k in range(L):
                j = int(events.owner[:, k].argmax())
                emerged = events.arrivals[r, k]
                for i in range(T):
                    onset = onsets[r, k, i]
                    if abs(emerged) < np.inf and onset == onset:
                        counted[r, j, i] += 1
                        first[r, j, i] += onset < emerged
        return first, counted
        """,
    "emergence.p_value": """
        if len(values) < 2 or values[0] != values[0]:
            return None
        far = [float(x) for x in values]
        return sum(x >= far[0] - 1e-9 for x in far) / len(far)
        """,
}


# --------------------------------------------------------------------------------------------------
# What a submission's rankme may do, and what its grade says.  In each of these submissions,
# effective_rank, which stands next to it, is right.

HOSTILE = {
    "endless loop": ("while True: pass", "endless loop"),
    "sleeps": ("import time; time.sleep(1e6)", "endless loop"),
    "fork bomb": ("""
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """, "endless loop"),
    "orphans": ("""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(777)
            os._exit(0)
        return 1.0
        """, "tests fail"),
    "sys.exit": ("import sys; sys.exit(0)", "SystemExit"),
    "os._exit": ("import os; os._exit(0)", "exit status 0 before its tests were done"),
    "stops pytest": ("import pytest; pytest.exit('all passed', 0)",
                     "not all run|before its tests"),
    "skips": ("import pytest; pytest.skip('no need')", "tests fail"),
    "keyboard": ("raise KeyboardInterrupt", "not all run|before its tests"),
    "memory": ("return torch.ones(10 ** 11).sum()", "tests fail"),
    "memory in python": ("""
        x = []
        while True:
            x.append(b'x' * 10 ** 8)
        """, "tests fail|killed|endless"),
    "crash": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "prints": ("""
        print('tests/test_measures.py ......... 9 passed')
        print('["x", 1, "tests/test_measures.py::test_rankme", "passed", ""]')
        return 1.0
        """, "tests fail"),
    "writes to every file": (r"""
        import os
        for fd in range(3, 99):
            try:
                os.write(fd, b'["0", 1, "", "end", ""]\n' * 9)
            except OSError:
                pass
        os._exit(0)
        """, "before its tests"),
    "kills its parent": ("import os; os.kill(os.getppid(), 9); return 1.0",
                         "tests fail|took down"),
    "reads outside": ("return open(OUTSIDE).read()", "tests fail"),
    "writes outside": ("""
        import os
        for path in (OUTSIDE, SUBMISSION):
            try:
                os.remove(path)
            except OSError:
                pass
            try:
                open(path, 'w').write('gone')
            except OSError:
                pass
        return 1.0
        """, "tests fail"),
    "edits the tests": ("""
        import pathlib
        for path in pathlib.Path.cwd().rglob('test_*.py'):
            try:
                path.write_text('')
            except OSError:
                pass
        return 1.0
        """, "tests fail"),
    "decorated": ("return 1.0", "not all run|before its tests"),
    "not finished": ("raise NotImplementedError('measures.rankme')", "not attempted"),
    "very deep": ("return " + "(" * 5000 + "1" + ")" * 5000, "error|nested"),
    "helper": ("return _entropy(features)", "uses _entropy, which stands outside"),
}
