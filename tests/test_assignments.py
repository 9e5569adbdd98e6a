"""Exercises, their tests and the handout hold together.

The reference gets all points and a blank body none.  A second solution of each exercise, written
from its docstring, gets all.  A mistake costs points, and the common ones get a hint.  Here a
function is put into its module and its tests are called, without a process: test_grading.py has
those.
"""
import ast
import contextlib
import csv
import doctest
import functools
import importlib
import io
import json
import re
import subprocess
import sys
import types
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import assignments
import course
from assignments import ROOT, blank, exercises, graft, handout, parsed, place, read
from grading import cut_out, job_for
from mistakes import WRONG

pytestmark = [pytest.mark.system,        # a course: not while editing
              pytest.mark.filterwarnings("ignore::RuntimeWarning")]        # of mistakes
ALL = {exercise.name: exercise for exercise in exercises()}
SECOND = (ROOT / "tests" / "second_solutions.py").read_text(encoding="utf-8")


def reference(exercise, variant=0):
    return cut_out(read(exercise.file, ROOT, variant), exercise.function)[0]


def second(exercise):
    return cut_out(SECOND, exercise.function)[0]


@functools.lru_cache(maxsize=8)
def variant_of_tests(variant):
    found = types.ModuleType(f"variant{variant}")
    exec(compile(read(assignments.TESTS, ROOT, variant), "tests", "exec"), vars(found))
    return found


def cases_of(function):
    """The arguments of each case of a parametrised test; one without arguments for any other."""
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            names = [name.strip() for name in mark.args[0].split(",")]
            return [dict(zip(names, case if len(names) > 1 else [case])) for case in mark.args[1]]
    return [{}]


def lost(exercise, source, variant=0):
    """{test: what its grade would say} of those that fail with this source of the function."""
    module = vars(importlib.import_module(exercise.name.partition(".")[0]))
    before, failed = module[exercise.function], {}
    exec(compile(source, "a submission", "exec"), module)
    try:
        for test in exercise.tests:
            function = getattr(variant_of_tests(variant), test.name)
            try:
                for case in cases_of(function):
                    function(**case)
            except Exception as error:
                failed[test] = f"{type(error).__name__}: {error}"
    finally:
        module[exercise.function] = before
    return failed


# --------------------------------------------------------------------------------------------------
# Marks, tests and points

def test_marks_tables_and_tests_name_the_same_exercises():
    tested = set(assignments.tests_of_exercises(read(assignments.TESTS)))
    assert tested == set(ALL) == set(course.EFFORT) == set(WRONG) and len(ALL) >= 25
    assert {exercise.number for exercise in ALL.values()} == {1, 2, 3, 4} == set(course.TITLES)
    for path in (ROOT / "tests").glob("test_*.py"):
        marked = [node.name for node in parsed(path.read_text(encoding="utf-8")).body
                  if assignments.marks_of(node)]
        assert not marked or path.name == assignments.TESTS, f"{path.name}: {marked}"


def test_every_mark_is_in_the_form_that_is_read():
    """`Exercise: module.function (set N, P points)`, with a hint in the next line."""
    files = [f"{module}.py" for module in assignments.MODULES] + [assignments.WORKBOOK]
    text = "".join(read(file) for file in files)
    assert sorted(re.findall(r"^ *Exercise: (\S+)", text, re.M)) == sorted(ALL)


def test_a_hint_of_two_lines_is_a_hint_of_two_lines():
    """It ends before an example, at an empty line, or with the docstring."""
    assert ALL["workbook.exchange_test"].hint.endswith("no task's geometry goes to two.")
    mark = "Exercise: a.f (set 1, 5 points, without b.g)\nHint: one,\n    two.\n"
    for rest in ("", "\nMore.", ">>> f()\n1"):
        doc = 'def f():\n    """What.\n\n' + mark + rest + '\n"""\n'
        found = assignments.marked(ast.parse(doc).body[0], {})
        assert found.hint == "one, two." and found.without == ("b.g",)
        assert found.text.split() == ["What.", *rest.split()]
    for exercise in ALL.values():
        assert exercise.hint[-1] in ".?" or exercise.hint.endswith("twice"), exercise.hint


@pytest.mark.parametrize("name", ALL)
def test_an_exercise_has_points_for_each_test_some_seen_and_some_hidden(name):
    exercise = ALL[name]
    assert sum(test.points for test in exercise.tests) == exercise.points
    assert {test.hidden for test in exercise.tests} == {False, True}
    shown = sum(test.points for test in exercise.tests if not test.hidden)
    assert exercise.points / 2 <= shown < exercise.points, "the tests that are seen are worth more"
    assert exercise.hint and exercise.text
    assert place(read(exercise.file), exercise.function)
    for file, function in map(exercise.home, exercise.without):
        assert place(read(file), function), function
    minutes, difficulty = course.EFFORT[name]
    assert 5 <= minutes <= 60 and difficulty in ("easy", "medium", "hard")


def test_no_error_is_asked_for_by_its_wording():
    """Only by its type: a docstring names no wording."""
    text = read(assignments.TESTS)
    assert "match=" not in text and "str(error)" not in text and "raises(" not in text


def test_the_modules_are_those_of_the_folder():
    assert set(assignments.MODULES) == {path.stem for path in ROOT.glob("*.py")}


def test_examples_in_the_workbook():
    import workbook
    assert doctest.testmod(workbook).failed == 0


@pytest.mark.parametrize("name", ALL)
def test_the_reference_and_a_second_solution_get_full_points_and_a_blank_body_none(name):
    exercise = ALL[name]
    assert lost(exercise, reference(exercise)) == {}
    assert lost(exercise, second(exercise)) == {}
    nothing = blank(reference(exercise), exercise.function, "not solved")
    assert set(lost(exercise, nothing)) == set(exercise.tests)
    for value in ("None", "0.0", "1.0"):
        head = reference(exercise).partition('"""')[0]
        constant = head + f"return {value}\n"
        assert set(lost(exercise, constant)) == set(exercise.tests), f"return {value} earns points"


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_costs_points_and_a_common_one_gets_a_hint(name):
    exercise, mistakes, hints = ALL[name], WRONG[name], 0
    for old, new, hint in mistakes:
        assert second(exercise).count(old) == 1, f"{old!r} stands not once in the second solution"
        said = lost(exercise, second(exercise).replace(old, new))
        assert said, f"{new!r} for {old!r} is graded as right"
        assert any(hint in message for message in said.values()), f"{new!r}: {said}"
        assert all("expected" in m or not m.startswith("AssertionError") for m in said.values())
        hints += bool(hint)
    assert len(mistakes) >= 3


def test_a_mistake_in_one_part_leaves_the_points_of_the_others():
    partly = 0
    for name, mistakes in WRONG.items():
        exercise = ALL[name]
        for old, new, _ in mistakes[-1:]:
            said = lost(exercise, second(exercise).replace(old, new))
            partly += 0 < sum(test.points for test in said) < exercise.points
    assert partly >= 10, "all or nothing"


# --------------------------------------------------------------------------------------------------
# Variants

SEEDS = {row.exercise: {assignments.constant(row, seed): seed for seed in range(60)}
         for row in course.VARIANTS}


@pytest.mark.parametrize("row", course.VARIANTS, ids=lambda row: row.exercise)
def test_a_variant_changes_docstring_code_and_tests_at_once(row):
    exercise = ALL[row.exercise]
    assert set(SEEDS[row.exercise]) == set(row.values), "no seed gives this constant"
    for value in row.values[1:]:
        seed = SEEDS[row.exercise][value]
        changed = {e.name: e for e in exercises(variant=seed)}[row.exercise]
        assert changed.text + changed.signature != exercise.text + exercise.signature
        assert lost(exercise, reference(exercise, seed), seed) == {}, f"variant {seed}"
        said = lost(exercise, reference(exercise), seed)
        assert said, f"what is copied from here gets full points in variant {seed}"
        assert lost(exercise, second(exercise), seed), "so does the second solution"


def test_the_examples_of_a_variant_are_right():
    for seed in (1, 2, 3, 4, 5, 6):
        module = types.ModuleType("workbook")
        exec(compile(read(assignments.WORKBOOK, ROOT, seed), "workbook", "exec"), vars(module))
        assert doctest.testmod(module).failed == 0, f"variant {seed}"


def test_a_constant_that_stands_nowhere_is_said():
    with pytest.raises(ValueError, match="'x = 3' stands nowhere"):
        assignments.changed("x = 2", ["x = {0}"], ("3",), ("4",))


# --------------------------------------------------------------------------------------------------
# Handout

def command(*arguments, program=ROOT / "run.py", **options):
    return subprocess.run([sys.executable, str(program), *map(str, arguments)], text=True,
                          capture_output=True, timeout=120, **options)


def one_line(text):
    return " ".join(text.split())


def with_slow(params, quick):
    return [param if param in quick else pytest.param(param, marks=pytest.mark.slow)
            for param in params]


@pytest.fixture(scope="module", ids=lambda param: f"set {param[0]}",
                params=with_slow([(None, 0), (1, 7), (2, 8), (3, 9), (4, 10)], [(None, 0), (2, 8)]))
def given(request, tmp_path_factory):
    """A handout: (folder, exercises, set, variant)."""
    number, variant = request.param
    folder = tmp_path_factory.mktemp("handouts") / "new" / "course"
    chosen, points = handout(folder, number, variant=variant)
    assert points == sum(e.points for e in chosen)
    return folder, chosen, number, variant


def test_a_handout_keeps_all_lines_but_those_of_the_bodies(given):
    folder, chosen, number, variant = given
    assert chosen == exercises(number, ROOT, variant)
    for module in assignments.MODULES:
        got = (folder / f"{module}.py").read_text()
        here = [e for e in chosen if e.file == f"{module}.py"]
        source = read(f"{module}.py", ROOT, variant if here else 0)
        if here:
            first, _, got = got.partition("\n")
            assert first == assignments.heading(number, variant)
        for e in here:
            assert got.count(f"exercise {e.name} is not solved yet") == 1
            got = graft(got, e.function, reference(e, variant))
        for name, instead in assignments.instead_in(f"{module}.py", chosen).items():
            start, _, end = place(source, name)
            there = "\n".join(source.split("\n")[start - 1:end])
            assert there not in got
            if instead:
                got = graft(got, name, there)
            else:
                source = assignments.leave_out(source, name)
                assert place(got, name) is None and "Ritz pairs" not in got
        assert "\n\n\n\n" not in got
        assert got == source, f"{module}.py: the rest is not what it was"
    with pytest.raises(ValueError, match="not an empty folder"):
        handout(folder)


def test_a_handout_holds_no_line_of_a_solution(given):
    """Nor a sibling with the line asked for.  Short lines, such as `return out`, say nothing."""
    folder, chosen, number, variant = given
    texts = [path.read_text() for path in [*folder.glob("*.py"), *folder.glob("tests/*.py")]]
    lines = Counter(plain(line) for text in texts for line in text.splitlines())
    left = []
    for e in chosen:
        body = reference(e, variant).rpartition('"""')[2]
        left += [f"{e.name}: {line}" for line in map(plain, body.splitlines())
                 if len(line) > 30 and lines[line] and line not in SAY_NOTHING]
    assert not left, left
    for text in texts:
        for other in ("second_solutions", "INSTEAD", "hidden=True"):
            assert other not in text or "def run_handout" in text, other


SAY_NOTHING = {"spec,size,_=_lookup(task,level)", "ranges=spec.operand_ranges[level-1]",
               "withtorch.enable_grad(),sdpa_kernel(SDPBackend.MATH):"}


def plain(line):
    return re.sub(r"\s+", "", line.partition("  #")[0])


def test_a_handout_has_the_public_tests_and_the_sheet_of_its_exercises_and_no_others(given):
    folder, chosen, number, variant = given
    names, sheet = {e.name for e in chosen}, (folder / "SHEET.md").read_text()
    assert {path.name for path in (folder / "tests").iterdir()} == {
        "conftest.py", assignments.TESTS}
    assert course.LEFT_OUT in sheet and (folder / "README.md").read_text()[2:].startswith(
        course.LEFT_OUT)
    for e in chosen:
        assert f"Hint: {e.hint}\n" in sheet and course.NEIGHBOURS.get(e.name, "") in sheet
        for name in e.without:
            assert f"May not be used: `{name}`" in sheet
    written = sum(q.points for n in {e.number for e in chosen} for q in course.QUESTIONS[n])
    assert (f"{sum(e.points for e in chosen)} points for the functions, {written} for the "
            "questions") in sheet
    marks = {node.name: assignments.marks_of(node)[0]["name"]
             for node in parsed((folder / "tests" / assignments.TESTS).read_text()).body
             if isinstance(node, ast.FunctionDef) and assignments.marks_of(node)}
    assert marks == {test.name: e.name for e in chosen for test in e.tests if not test.hidden}
    for e in exercises():
        assert (f"`{e.name}`" in sheet) == (e.name in names)
        for test in e.tests:
            assert (f"`{test.name}` ({test.points})" in sheet) == (test.name in marks)
    for n in {e.number for e in chosen}:
        assert all(question.text in sheet for question in course.QUESTIONS[n])
        assert not any(what in sheet for q in course.QUESTIONS[n] for _, what in q.rubric)
    assert assignments.heading(number, variant) in sheet


def test_what_is_left_out_goes_with_its_comment_and_a_method_is_replaced_alone():
    source = "# -- heading\n\nx = 1\n\n\n# on f\n# and more\n\ndef f():\n    return 1\n\n\n" \
             "class A:\n    def g(self):\n        return 1\n\n    def h(self):\n        return 2\n"
    left = assignments.leave_out(source, "f")
    assert left.startswith("# -- heading\n\nx = 1\n\n\nclass A:")
    assert graft(left, "A.g", "    g = 3").endswith("class A:\n    g = 3\n\n"
                                                   "    def h(self):\n        return 2\n")
    assert place(source, "A.f") is None


def test_neighbours_and_substitutes_are_there():
    """What a table names exists, whatever it says of it."""
    for name, functions in course.INSTEAD.items():
        assert name in ALL
        for other in functions:
            module, _, function = other.partition(".")
            assert place(read(f"{module}.py"), function), other
    for name, sentence in course.NEIGHBOURS.items():
        files = [ALL[name].file, "tasks.py"] if name.startswith("workbook") else [ALL[name].file]
        for other in re.findall(r"`([\w.]+)`", sentence):
            module, _, function = other.rpartition(".")
            assert any(place(read(file), function)
                       for file in ([f"{module}.py"] if module else files)), other


def test_substitutes_have_the_values_of_what_they_replace():
    import emergence
    import measures
    import numpy as np
    import torch
    found = {}
    for file, name in (("emergence", "workbook.exchange_test"), ("measures", "measures.sgld_step")):
        text = read(f"{file}.py")
        for function, instead in assignments.instead_in(f"{file}.py", [ALL[name]]).items():
            text = graft(text, function, instead)
        found[file] = types.ModuleType(file)
        exec(compile(text, file, "exec"), vars(found[file]))
    table = np.arange(32.0).reshape(2, 4, 4) ** 2
    orders = emergence.exchanges(range(4))
    got = found["emergence"].exchanged(table, orders)
    assert got.tolist() == emergence.exchanged(table, orders).tolist()

    def loss_fn(model, batch):
        return (model(batch[0])[:, 0] - 1).square()
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 1), torch.randn(40, 3)
    one, other = (module.llc(model, loss_fn, (x,), num_draws=20, num_burnin_steps=10)
                  for module in (measures, found["measures"]))
    assert other.losses.tolist() != one.losses.tolist()
    assert other.losses.numpy() == pytest.approx(one.losses.numpy(), rel=1e-3)


def test_what_an_exercise_is_to_do_without_is_blank_while_it_is_graded():
    files = job_for(ALL["workbook.exchange_test"], "def exchange_test(table):\n    pass\n")["files"]
    assert set(files) == {"workbook.py", "emergence.py", f"tests/{assignments.TESTS}"}
    said = "exchange_test is to do the work itself, without exchanged"
    assert files["emergence.py"].count(said) == 1 and "p_value(sums)" not in files["workbook.py"]
    assert "rankme_many" in job_for(ALL["measures.rankme"], reference(ALL["measures.rankme"]))[
        "files"]["measures.py"].partition("to do the work itself, without")[2][:20]


def test_comments_at_the_end_of_a_body_do_not_leak():
    before = 'def f(x):\n    """Doc."""\n'
    body = "    # a comment that tells\n    return x   # all\n    # of it\n\n    # and more\n"
    after = "\n# outside\ndef g():\n    return 1\n"
    expected = before + '    raise NotImplementedError("no")\n' + after
    assert blank(before + body + after, "f", "no") == expected


def run_tests(folder, *options):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfE", "-m", "exercise", "-p", "no:cacheprovider",
         *options], cwd=folder, capture_output=True, text=True, timeout=300)
    failed = re.findall(r"^(?:FAILED|ERROR) [^ \[]+::(\w+)", done.stdout, re.M)
    passed = re.search(r"(\d+) passed", done.stdout)
    return set(failed), int(passed[1]) if passed else 0, done.stdout


@pytest.mark.parametrize("number", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_the_public_tests_of_a_handout_fail_until_it_is_solved(tmp_path, number):
    chosen, _ = handout(tmp_path / "mine", number)
    for e in chosen[::2]:
        path = tmp_path / "mine" / e.file
        path.write_text(graft(path.read_text(), e.function, second(e)))
    failed, passed, out = run_tests(tmp_path / "mine")
    assert failed == {test.name for e in chosen[1::2] for test in e.tests if not test.hidden}, out
    assert passed >= len(chosen[::2])
    assert f"exercise {chosen[1].name} is not solved yet" in out


TINY = ["--task", "parity", "--sizes", "nano", "--seeds", "1", "--steps", "20", "--set",
        "snapshots=6", "--set", "per_level=4", "--set", "eval_examples=40"]


@pytest.mark.parametrize("number, name, arguments", [
    (1, "tasks.answer_targets", ["tasks", "modadd"]),
    pytest.param(2, "measures.rankme", ["sweep", *TINY, "--measures", "rankme"],
                 marks=pytest.mark.slow),
    pytest.param(3, "measures.sgld_step", ["sweep", *TINY, "--measures", "llc"],
                 marks=pytest.mark.slow),
    (4, "emergence.emergence_index", ["analyse", ROOT / "results" / "modadd"])])
def test_a_command_in_an_unsolved_tree_says_which_exercise_is_missing(tmp_path, number, name,
                                                                      arguments):
    handout(tmp_path / "mine", number)
    done = command(*arguments, program="run.py", cwd=tmp_path / "mine")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert one_line(done.stderr) == f"run.py: {assignments.unsolved(ALL[name])}"


def test_a_run_in_an_unsolved_tree_ends_with_that_sentence_alone():
    import sweep
    sentence = assignments.unsolved(ALL["measures.rankme"])
    assert sentence == "exercise measures.rankme is not solved yet (see SHEET.md)"
    assert sweep.in_words(NotImplementedError(sentence)) == sentence


def test_a_solved_handout_is_a_toolkit_that_works(tmp_path):
    """What stands in the place of the fast versions serves as well."""
    mine = tmp_path / "mine"
    chosen, _ = handout(mine, 2)
    for e in chosen:
        path = mine / e.file
        path.write_text(graft(path.read_text(), e.function, second(e)))
    program = """
import torch, measures
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
x = torch.randn(32, 3)
def loss_fn(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]).square()
top = measures.hessian_top(model, loss_fn, (x, x.prod(1)), max_iters=5000)
print(measures.rankme_many(x[None].expand(3, 32, 3)).tolist(), top.eigenvalue, top.smallest)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=mine, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    got = [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", done.stdout)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(program, {})
    exact = [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", out.getvalue())]
    assert got[:4] == pytest.approx(exact[:4], rel=1e-3) and len(got) == 5
    assert got[4] == pytest.approx(exact[4], rel=0.1), "its residual is that of H - lambda I"


# --------------------------------------------------------------------------------------------------
# Commands

@pytest.fixture
def main(monkeypatch, capsys):
    """The command line in this process: (exit status, stdout, stderr)."""
    import run

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run.main()
        said = capsys.readouterr()
        return ended.value.code, one_line(said.out), said.err
    return call


def test_commands_from_handout_to_csv(tmp_path, main):
    mine, table = tmp_path / "=mine", tmp_path / "points.csv"
    status, out, err = main("handout", mine, "--problem-set", 2, "--variant", 3, "--gradescope")
    assert not status and "5 exercises, 50 points" in out, err
    # One exercise solved, one with a syntax error, three left as they are.
    path = mine / "measures.py"
    solved = graft(path.read_text(), "rankme", reference(ALL["measures.rankme"], 3))
    error = "def effective_rank(eigenvalues):\n    return _rank(eigenvalues\n"
    path.write_text(graft(solved, "effective_rank", error))
    results = tmp_path / "results.json"
    status, out, err = main("grade", mine, "--csv", table, "--results", results, "--require", 11)
    assert status == 1, "of 11 points there are 10: an exit status for a classroom's check"
    assert "10 of 50 points" in out and "not attempted" in out
    assert "3 of 3 tests pass" in out and "'(' was never closed" in out
    row, = csv.DictReader(table.read_text().splitlines())
    assert row["submission"] == "'=mine" and row["total"] == row["measures.rankme"] == "10"
    assert [row[f"2.{letter}"] for letter in "abc"] == ["", "", ""]
    found = json.loads(results.read_text())
    assert found["score"] == 10 == sum(test["score"] for test in found["tests"])
    assert sum(test["max_score"] for test in found["tests"]) == 50
    assert {test["visibility"] for test in found["tests"]} == {"visible", "after_published"}
    itself = command("grade", ".", program="run.py", cwd=mine)
    assert itself.returncode == 2 and "itself a handout" in itself.stderr
    bench = command("bench", "--device", "cpu", program="run.py", cwd=mine)
    assert bench.returncode == 2 and "itself a handout" in bench.stderr


def test_the_autograders_zip_says_what_is_graded(tmp_path):
    """The same bytes every time, and all that grading needs."""
    one, other = tmp_path / "one.zip", tmp_path / "other.zip"
    assignments.gradescope(one, 2, variant=3)
    assignments.gradescope(other, 2, variant=3)
    assert one.read_bytes() == other.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert archive.getinfo("run_autograder").external_attr >> 16 == 0o755
        program = archive.read("run_autograder").decode()
        assert {"setup.sh", "run.py", "tests/trial.py", "tests/conftest.py"} <= set(
            archive.namelist())
    assert "--variant 3 --problem-set 2" in program and "/autograder/submission" in program


@pytest.mark.slow
def test_the_autograders_zip_gives_the_same_results(tmp_path, main):
    mine, results = tmp_path / "mine", tmp_path / "results.json"
    main("handout", mine, "--problem-set", 2, "--gradescope")
    path = mine / "measures.py"
    path.write_text(graft(path.read_text(), "rankme", second(ALL["measures.rankme"])))
    main("grade", mine, "--results", tmp_path / "here.json")
    with zipfile.ZipFile(tmp_path / "mine-autograder.zip") as archive:
        archive.extractall(tmp_path / "source")
    program = (tmp_path / "source" / "run_autograder").read_text()
    for old, new in (("/autograder/source", "source"), ("/autograder/submission", "../mine"),
                     ("/autograder/results", ".."), ("python3", sys.executable)):
        program = program.replace(old, new)
    subprocess.run(["bash", "-c", program], cwd=tmp_path, check=True, capture_output=True)
    assert results.read_bytes() == (tmp_path / "here.json").read_bytes()
    assert json.loads(results.read_text())["score"] == 10


BAD_INPUT = [
    (("handout", "FULL"), "not an empty folder"),
    (("handout", "FILE"), "not an empty folder"),
    (("handout", "new", "--problem-set", "5"), "expected one of 1, 2, 3, 4"),
    (("handout", "new", "--variant", "-1"), "expected 0"),
    (("handout", "FILE/under"), ""),
    (("grade", "nowhere"), "is not a folder"),
    (("grade", "EMPTY"), "holds no submission"),
    (("grade", "FULL"), "give --problem-set N"),
    (("grade", "FULL", "--problem-set", "0"), "expected one of"),
    (("grade", "FULL", "--csv", "nowhere/x.csv"), "is not a folder"),
    (("grade", "FULL", "--roster", "FILE"), "a row for each student"),
    (("grade", "FULL", "--roster", "nowhere.csv"), "nowhere.csv: No such file"),
    (("grade", "FULL", "--csv", "EMPTY"), "--csv EMPTY: expected the name of a file"),
    (("grade", "FULL", "EMPTY", "--results", "r.json"), "expected one folder, got 2"),
    (("grade", "FULL", "--require", "nan"), "expected a number of points"),
    (("grade",), "Missing argument"),
]


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, main):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "measures.py").write_text("")
    (tmp_path / "FILE").write_text("")
    for arguments, reason in BAD_INPUT:
        status, _, said = main(*arguments)
        assert status in (1, 2) and reason in said, (arguments, said)
        assert said.count("\n") == 1 and "Traceback" not in said, (arguments, said)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "FILE", "FULL"]


# --------------------------------------------------------------------------------------------------
# What the README and the instructor's page say, in numbers

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
    written = sum(q.points for questions in course.QUESTIONS.values() for q in questions)
    points = sum(e.points for e in ALL.values())
    expected = (f"an exercise: {len(ALL)} of them in four sets, {points} points, "
                f"and {written} more")
    assert expected in one_line(readme("Course assignments"))


def test_the_instructors_page_has_the_rubrics_and_the_numbers_as_they_are():
    page = (ROOT / "tests" / "COURSE.md").read_text()
    assert course.rubrics() in page
    for number, questions in course.QUESTIONS.items():
        for question in questions:
            assert sum(points for points, _ in question.rubric) == question.points
        chosen = exercises(number)
        minutes = sum(course.EFFORT[e.name][0] for e in chosen)
        row = f"| {number} | {course.TITLES[number]} | {len(chosen)} | " \
              f"{sum(e.points for e in chosen)} + {sum(q.points for q in questions)} | {minutes} |"
        assert row in page, row
