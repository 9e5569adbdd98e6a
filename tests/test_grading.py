"""Grading: every entry has a row, whatever is in it, and no submission changes another's.

A small class is graded by default; one of eighty, the whole way, is marked slow.
"""
import csv
import io
import json
import os
import re
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

import assignments
import course
import entries
import gradebook
import grading
from assignments import ROOT, exercises, graft, handout, read
from grading import cut_out
from mistakes import HOSTILE, WRONG

pytestmark = [pytest.mark.system,        # a course: not while editing
              pytest.mark.skipif(not hasattr(os, "fork"), reason="grading forks")]
ALL = {exercise.name: exercise for exercise in exercises()}
SECOND = (ROOT / "tests" / "second_solutions.py").read_text(encoding="utf-8")
TWO = [ALL["measures.rankme"], ALL["measures.effective_rank"]]


def second(name):
    return cut_out(SECOND, name.partition(".")[2])[0]


def measures_with(*sources):
    """The text of a set-2 measures.py with these functions, effective_rank right."""
    text = handed_out()["measures.py"]
    for source in (second("measures.effective_rank"), *sources):
        name = re.search(r"^def (\w+)", source, re.M)[1]
        text = graft(text, name, source)
    return text


def handed_out(number=2, variant=0):
    chosen = exercises(number, ROOT, variant)
    return assignments.handed_out(ROOT, chosen, number, variant)


@pytest.fixture
def two(monkeypatch):
    """A set of two exercises, so that grading takes little time."""
    monkeypatch.setattr(grading, "chosen_exercises", lambda *_: TWO)


# --------------------------------------------------------------------------------------------------
# Hostile and broken submissions

def hostile(name):
    """The source of a rankme that does what a row of HOSTILE says."""
    body = textwrap.indent(textwrap.dedent(HOSTILE[name][0]).strip("\n"), "    ")
    text = measures_with("def rankme(features, eps=1e-7):\n" + body + "\n")
    return text + "\ndef _entropy(x):\n    return 1.0\n" * (name == "helper")


QUICK = ["endless loop", "fork", "os._exit"]


@pytest.mark.parametrize("names", [pytest.param(QUICK, id="some"),
                                   pytest.param(sorted(set(HOSTILE) - set(QUICK)), id="the others",
                                                marks=pytest.mark.slow)])
def test_hostile_submissions_are_graded_for_what_they_are_and_change_no_other(tmp_path, two, names):
    for name in names:
        mine = tmp_path / name
        mine.mkdir()
        (mine / "measures.py").write_text(hostile(name))
    good = tmp_path / "zz good"
    good.mkdir()
    (good / "measures.py").write_text(measures_with(second("measures.rankme")))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    results = {r.name: r for r in grading.grade([tmp_path], workers=2, seconds=1)}
    for name in names:
        rankme, effective_rank = results.pop(name).grades
        said = f"{name}: {rankme.why!r}"
        assert rankme.points == 0 and re.search(HOSTILE[name][1], rankme.why), said
        assert effective_rank.points == 5, f"{name}: {effective_rank.why}"
    assert results.pop("zz good").points == 15 and not results
    assert {path: path.read_bytes() for path in before} == before
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_ours(path)]
    assert not alive, "processes were left behind"


def is_ours(path):
    try:
        return b"trial.py" in path.read_bytes() and b"grading-" in path.read_bytes()
    except OSError:
        return False


LOOKS = [("import os\nreturn os.getpid()", "to be read: uses os"),
         ("class Any:\n    __eq__ = lambda s, o: True\nreturn Any()", "to be read: uses a class"),
         ("return open('x')", "to be read: uses open"),
         ("import sweep\nreturn sweep.rounded(1.0)", "to be read: uses sweep"),
         ("return 1.0", None)]


@pytest.mark.parametrize("body, look", LOOKS)
def test_what_a_person_should_read_is_pointed_at(body, look):
    source = "def rankme(features, eps=1e-7):\n" + textwrap.indent(body, "    ") + "\n"
    entry = entries.Entry("ann", {"measures.py": source})
    assert grading.examine(entry, TWO[0])[1].remarks == ([look] if look else [])


def test_a_grader_that_cannot_start_says_so(tmp_path, two, monkeypatch):
    (tmp_path / "measures.py").write_text(right())
    program = tmp_path / "broken.py"
    program.write_text("raise ImportError('No module named torch')")
    monkeypatch.setattr(grading, "PROGRAM", program)
    with pytest.raises(RuntimeError, match="do not start here: ImportError: No module named torch"):
        grading.grade([tmp_path])


# --------------------------------------------------------------------------------------------------
# Entries

def zipped(files, **options):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def notebook(text):
    cells = [{"cell_type": "markdown", "source": ["# Set 2"]},
             {"cell_type": "code", "source": text.splitlines(keepends=True)},
             {"cell_type": "code", "source": ["%timeit rankme(x)\n", "!ls"]}]
    return json.dumps({"cells": cells, "nbformat": 4})


def right():
    return measures_with(second("measures.rankme"))


def class_of_shapes(folder):
    text = right()
    latin = "# -*- coding: latin-1 -*-\n" + text.replace("# handout", "# für dich\n# handout", 1)
    inner = zipped({"homework/measures.py": text})
    files = {
        "ann/measures.py": text,
        "bob.zip": zipped({"bob/homework/measures.py": text, "__MACOSX/bob/._measures.py": b"\0",
                           "bob/.DS_Store": b"\0"}),
        "carl.zip": zipped({"carl\\homework\\measures.py": text.replace("\n", "\r\n")}),
        "dora/all.zip": zipped({"set2/inner.zip": inner}),
        "eve/deep/er/homework/measures.py": text,
        "fay/measures.py": latin.encode("latin-1"),
        "gus/measures (1).py": text,
        "hal/homework.ipynb": notebook(text),
        "ida/mine.py": text,
        "lee_LATE_998_4711_measures-1.py": text,
        "kim_999_4712_measures.py": text,
        "may/measures.py": text.replace("def rankme(", "def rank_me("),
        "ned/measures.py": b"\xff\xfe\x00def rankme",
        "oda/notes.txt": "nothing to read",
        "pam.pdf": b"%PDF",
        "quinn.zip": b"PK\x03\x04 cut short",
        "ruth/a/measures.py": text,
        "ruth/b/measures.py": handed_out()["measures.py"],
        "sam/measures.py": handed_out(3)["measures.py"],
        "tom/measures.py": text.partition("\n")[2],
        "uma/measures.py": b"x" * 600_000,
        ".DS_Store": b"\0",
        "__MACOSX/ann": b"\0",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "vic").mkdir()
    (folder / "vic" / "measures.py").symlink_to(folder / "ann" / "measures.py")
    (folder / "will").symlink_to(folder / "ann")
    (folder / "xena").mkdir()


SHAPES = {                                # name: (points, what is said)
    "ann": (15, ""), "bob": (15, ""), "carl": (15, ""), "dora": (15, ""), "eve": (15, ""),
    "fay": (15, ""),
    "gus": (15, "read from measures (1).py"),
    "hal": (15, "read from homework.ipynb"),
    "ida": (15, "read from mine.py"),
    "lee_998": (15, "late"), "kim_999": (15, ""),
    "may": (5, "no function rankme, but rank_me: was it renamed?"),
    "ned": (0, "not read: measures.py cannot be read"),
    "oda": (0, "not read: it holds no .py file"),
    "pam.pdf": (0, "not read: a .pdf file; expected a folder, a .zip"),
    "quinn": (0, "not read: it cannot be opened"),
    "ruth": (0, "there are two files measures.py"),
    "sam": (0, "not read: it was handed out as set 3"),
    "tom": (0, "not read: no file says of which handout"),
    "uma": (0, "larger than 600 kB"),
    "vic": (0, "a link, which is not followed"),
    "will": (0, "a link, which is not followed"),
    "xena": (0, "not read: it holds no .py file"),
}


def test_every_entry_has_a_row_in_whatever_shape_it_comes(tmp_path, two):
    class_of_shapes(tmp_path)
    results = {r.name: r for r in grading.grade([tmp_path], workers=2)}
    assert set(results) == set(SHAPES)
    for name, (points, said) in SHAPES.items():
        remarks = "; ".join(gradebook.remarks_of(results[name]))
        assert results[name].points == points and said in remarks, f"{name}: {remarks}"
        assert (remarks == "") == (said == ""), f"{name}: {remarks}"


@pytest.mark.parametrize("name, encoding, why", [
    ("measures.py", "utf-8-sig", ""), ("Measures.py", "utf-8", ""),
    ("my work/Copy of measures.py", "utf-8", ""), ("measures .py", "utf-8", ""),
    ("homework.ipynb", "utf-8-sig", ""), ("measures.py", "utf-16", "cannot be read"),
    ("measures.py.txt", "utf-8", "no .py file")])
def test_a_file_is_read_as_editors_name_and_write_it(name, encoding, why, tmp_path):
    path = tmp_path / "ann" / name
    path.parent.mkdir(parents=True)
    text = handed_out()["measures.py"]
    path.write_bytes((notebook(text) if name.endswith("ipynb") else text).encode(encoding))
    [entry] = entries.entries([tmp_path])
    found, wrong, _ = entries.module_text(entry, TWO[0])
    assert why in entry.why and bool(wrong) == bool(why) == bool(entry.why)
    assert why or "def rankme(" in found


def test_a_zip_that_is_locked_or_endless_is_not_read(tmp_path):
    data = bytearray(zipped({"measures.py": right()}))
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1                                       # the flag of a password
    (tmp_path / "locked.zip").write_bytes(data)
    inside = zipped({"measures.py": right()})
    for _ in range(5):
        inside = zipped({"again.zip": inside})
    (tmp_path / "endless.zip").write_bytes(inside)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("measures.py", b"0" * 30_000_000)
    (tmp_path / "bomb.zip").write_bytes(bomb.getvalue())
    found = {entry.name: entry.why for entry in entries.entries([tmp_path])}
    assert "password" in found["locked"] and "too deep" in found["endless"]
    assert "larger than 30,000 kB" in found["bomb"]


def test_files_of_one_canvas_student_are_one_entry(tmp_path):
    for name in ("lee_998_1_measures-2.py", "lee_998_2_emergence.py", "lee_998_1_measures.py",
                 "ann_7_3_measures.py"):
        (tmp_path / name).write_text(f"# {name}")
    found = {entry.name: entry for entry in entries.entries([tmp_path])}
    assert set(found) == {"lee_998", "ann_7"} and len(found["lee_998"].texts) == 3
    text, why, remark = entries.module_text(found["lee_998"], TWO[0])
    assert text == "# lee_998_1_measures-2.py" and not why and "measures-2.py" in remark
    assert found["ann_7"].person == "7"


# --------------------------------------------------------------------------------------------------
# Sets and variants

def test_what_does_not_fit_the_handout_is_refused(tmp_path, two, monkeypatch):
    monkeypatch.setattr(grading, "run_all", lambda *_: None)
    for name, number, variant in (("a", 2, 0), ("b", 2, 17), ("c", None, 17), ("d", 3, 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "measures.py").write_text(handed_out(number, variant)["measures.py"])

    def said(**options):
        return {r.name: (r.variant, r.why) for r in grading.grade([tmp_path], **options)}
    wrong = "it was handed out as set 3, and set 2 is graded"
    assert said() == {"a": (0, ""), "b": (17, ""), "c": (17, ""), "d": (0, wrong)}
    found = said(number=3)
    assert "set 2, and set 3 is graded" in found["a"][1] and found["d"][1] == ""
    found = said(number=2, variant=17)
    assert "variant 0, and variant 17 is expected" in found["a"][1] and found["b"] == (17, "")
    found = said(number=2, expected=lambda entry: {"b": 3}.get(entry.name))
    assert "variant 17, and variant 3 is expected" in found["b"][1] and found["a"] == (0, "")


# --------------------------------------------------------------------------------------------------
# CSV, roster, journal

def results_of(points, exercise=TWO[0]):
    """{name: points of an exercise} -> [Result], without running anything."""
    out = []
    for name, got in points.items():
        grade = grading.Grade(exercise, got, "" if got == 10 else "1 of 3 tests fail")
        out.append(grading.Result(name, grades=[grade], person=name.partition("_")[2]))
    return out


def test_points_of_written_questions_are_kept_in_the_csv(tmp_path):
    table = tmp_path / "points.csv"
    results = results_of({"ann": 10, "bob": 4})
    table.write_text(gradebook.as_csv(results))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["total"] for row in rows] == ["10", "4"] and rows[0]["2.a"] == ""
    typed = table.read_text().replace("bob,4,,,", "bob,4,5,2.5,")
    table.write_text(typed)
    again = gradebook.files(results, [], table, None)[table]
    rows = list(csv.DictReader(again.splitlines()))
    assert rows[1]["2.a"] == "5" and rows[1]["2.b"] == "2.5" and rows[1]["total"] == "11.5"
    table.write_text(again)
    assert gradebook.files(results, [], table, None)[table] == again, "not the same bytes"


def graded_into(table, results, people=(), mark=","):
    """The rows of the CSV after one more grading, which a second one leaves as they are."""
    for again in (False, True):
        text = gradebook.files(results, people, table, None)[table]
        assert not again or text == table.read_text(), "not the same bytes"
        table.write_text(text)
    return list(csv.DictReader(text.splitlines(), delimiter=mark))


def test_a_later_grading_loses_nothing_of_the_csv(tmp_path):
    """Saved by a European spreadsheet; another set; a submission that is gone; own columns."""
    table = tmp_path / "points.csv"
    table.write_text(gradebook.as_csv(results_of({"ann": 10, "bob": 4})))
    text = table.read_text().replace("bob,4,,,", 'bob,4,"4,5",2,').replace("\n", ",\n")
    text = text.replace("remarks,", "remarks,group").replace("fail,", "fail,B")
    rows = list(csv.reader([*text.splitlines(), "mean,,,,,8.5,,"]))
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows(rows)
    table.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    first = next(e for e in ALL.values() if e.number == 3)
    ann, bob, mean = graded_into(table, results_of({"ann": 7}, first), mark=";")
    assert ann["measures.rankme"] == "10" and ann[first.name] == "7" and ann["total"] == "17"
    assert bob["2.a"] == "4,5" and bob["2.b"] == "2" and bob["group"] == "B" and bob["3.a"] == ""
    assert bob["total"] == "10,5" and bob["remarks"] and mean["total"] == "8.5"
    assert list(ann)[-3:] == ["total", "remarks", "group"]


def test_a_later_grading_loses_nothing_of_canvas_columns(tmp_path):
    path, table = tmp_path / "roster.csv", tmp_path / "canvas.csv"
    path.write_text(ROSTER)
    people = gradebook.checked(table, None, path)
    graded_into(table, results_of({"lee_998": 10, "lee": 1, "cmay": 6}), people)
    text = table.read_text().replace("lee,,,,1,", "lee,,,,1,3").replace("A,10,", "A,10,5")
    table.write_text(text.replace("B,6,", "C,6,2") + '"Gone, Gil",7,gil,A,8,4\n')
    later = results_of({"lee": 2}, next(e for e in ALL.values() if e.number == 3))
    found = {row["Student"]: list(row.values())[4:] for row in graded_into(table, later, people)}
    assert found == {"Lee, Ann": ["10", "5", "", ""], "Lee, Bob": ["", "", "", ""],
                     "May, Cleo": ["6", "2", "", ""], "lee": ["1", "3", "2", ""],
                     "Gone, Gil": ["8", "4", "", ""]}


HEAD = "submission,measures.rankme,2.a,total\n"


@pytest.mark.parametrize("content, wrong", [
    ("day,rain\n1,2\n", "expected none, or one with columns submission and total"),
    (HEAD + "ann,10,five,10\n", "ann, column 2.a: expected points such as 4 or 2.5, got 'five'"),
    (HEAD + "ann,10,nan,10\n", "got 'nan'"), (HEAD + "ann,10,-1,10\n", "got '-1'"),
    (HEAD + "ann,10,4,5,14.5\n", "no more cells than the header"),
    (HEAD.replace("\n", ",\n") + "ann,10,4,14,?\n", "a column ''"),
    (HEAD + "ann,10,4,14,für\n", "save it as UTF-8")])
def test_a_csv_that_cannot_take_the_grades_is_refused_before(content, wrong, tmp_path):
    table, roster = tmp_path / "points.csv", tmp_path / "roster.csv"
    table.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"points.csv: .*{re.escape(wrong)}"):
        gradebook.checked(table, None, None)
    roster.write_text(ROSTER)
    with pytest.raises(ValueError, match="points.csv: .*(Set 2: written|UTF-8)"):
        gradebook.checked(table, None, roster)


@pytest.mark.parametrize("said, variant", [("17", 17), ("17.0", 17), ('"17,0"', 17), ("0.0", 0),
                                           ("", None), ("17,one cell too many", 17)])
def test_a_variant_is_read_as_spreadsheets_write_it(said, variant, tmp_path):
    (tmp_path / "roster.csv").write_text(f"name,ID,Variant\nann,1,{said}\n")
    people = gradebook.checked(None, None, tmp_path / "roster.csv")
    results = results_of({"ann": 3})
    assert gradebook.expected_variant(people)(results[0]) == variant
    assert graded_into(tmp_path / "new.csv", results, people)[0]["Set 2: functions"] == "3"


@pytest.mark.parametrize("said, wrong", [
    ("seventeen", "roster.csv: ann: expected a variant such as 17, or none, got 'seventeen'"),
    ("\u00b2", "got '\u00b2'"), ("17.5", "got '17.5'"), ("-1", "got '-1'")])
def test_a_variant_that_is_none_is_refused(said, wrong, tmp_path):
    (tmp_path / "roster.csv").write_text(f"name,ID,variant\nann,1,{said}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(wrong)):
        gradebook.checked(None, None, tmp_path / "roster.csv")
    (tmp_path / "roster.csv").write_text("name\nfür\n", encoding="latin-1")
    with pytest.raises(ValueError, match="--roster .*roster.csv: .*save it as UTF-8"):
        gradebook.checked(None, None, tmp_path / "roster.csv")


ROSTER = """Student,ID,SIS Login ID,Section,variant
    Points Possible,,,,
"Lee, Ann",998,alee,A,3
"Lee, Bob",999,blee,A,4
"May, Cleo",12,cmay@x.org,B,
"""


def test_a_roster_gives_canvas_its_columns(tmp_path):
    path, table = tmp_path / "roster.csv", tmp_path / "canvas.csv"
    path.write_text(ROSTER)
    people = gradebook.checked(table, None, path)
    assert len(people) == 3
    results = results_of({"lee_998": 10, "cmay": 6, "Bob Lee": 4, "lee": 1})
    table.write_text(gradebook.files(results, people, table, None)[table])
    assert table.read_text().splitlines() == [
        "Student,ID,SIS Login ID,Section,Set 2: functions,Set 2: written",
        '"Lee, Ann",998,alee,A,10,', '"Lee, Bob",999,blee,A,4,', '"May, Cleo",12,cmay@x.org,B,6,',
        "lee,,,,1,"]
    table.write_text(table.read_text().replace("blee,A,4,", "blee,A,4,7"))
    assert "blee,A,4,7" in gradebook.files(results, people, table, None)[table]
    expected = gradebook.expected_variant(people)
    assert [expected(r) for r in results] == [3, None, 4, None]


class NoProcess(grading.Grader):
    """A grader that passes every test without running it, and counts what it was asked."""
    asked = []

    def run(self, jobs):
        self.asked.append([job["name"] for job in jobs])
        return [{"tests": {f"x::{test.name}": ["passed", ""] for test in ALL[job["name"]].tests},
                 "end": "done"} for job in jobs]


def test_a_stopped_grading_goes_on_where_it_was(tmp_path, two, monkeypatch):
    for k, name in enumerate(("ann", "bob", "carl", "dora")):
        (tmp_path / name).mkdir()
        source = second("measures.rankme") + f"\n    # {k % 3}\n"         # dora has what ann has
        (tmp_path / name / "measures.py").write_text(measures_with(source))
    monkeypatch.setattr(grading, "Grader", NoProcess)
    NoProcess.asked = []

    def stop(done, of):
        assert of == 4
        if done == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        grading.grade([tmp_path], workers=1, tell=stop)
    before = len(NoProcess.asked)
    assert before >= 2 and (tmp_path / entries.JOURNAL).exists()
    first = gradebook.as_csv(grading.grade([tmp_path], workers=1))
    assert len(NoProcess.asked) == 3, "each that differs is run once, stopped or not"
    assert gradebook.as_csv(grading.grade([tmp_path], workers=2)) == first
    (tmp_path / "ann" / "measures.py").write_text(hostile("not finished"))
    last = grading.grade([tmp_path], workers=1)
    assert [result.points for result in last] == [5, 15, 15, 15]
    assert NoProcess.asked[3:] == [["measures.effective_rank"]]


def test_what_the_clock_stopped_is_run_again(tmp_path):
    journal = grading.Journal(tmp_path / "journal")
    journal.add("ann", [1], [{"tests": {}, "end": "stopped after 10 s of processor time"}])
    journal.add("bob", [2], [{"tests": {}, "end": "done"}])
    again = grading.Journal(tmp_path / "journal")
    assert again.look_up([1]) is None and again.look_up([2]) == [{"tests": {}, "end": "done"}]


# --------------------------------------------------------------------------------------------------
# A whole class

KINDS = ("right in another style", "half right", "empty", "hostile", "zipped", "late", "renamed",
         "a mistake in each", "in a notebook", "copied")


IN_CLASS = ["os._exit", "endless loop", "fork", "output in gigabytes", "memory", "patched pytest",
            "crash", "sys.exit"]


def student(k, given):
    """What student k hands in: (name in the folder, content or {file: text})."""
    kind, variant = KINDS[k % len(KINDS)], 1 + (k // len(KINDS) + (k == 5)) % 4
    files = dict(given[variant])
    for number, e in enumerate(grading.chosen_exercises(2, ROOT, variant)):
        own = cut_out(read(e.file, ROOT, variant), e.function)[0]
        if kind == "half right" and number % 2 or kind == "empty":
            continue
        source = own
        if kind == "right in another style" and not any(
                row.exercise == e.name for row in course.VARIANTS):
            source = second(e.name)
        if kind == "copied":
            source = cut_out(read(e.file), e.function)[0]
        if kind == "a mistake in each":
            old, new, _ = WRONG[e.name][k // len(KINDS) % 3]
            source = second(e.name).replace(old, new)
        if kind == "hostile" and e.name == "measures.rankme":
            source = cut_out(hostile(IN_CLASS[k // len(KINDS)]), "rankme")[0]
        files[e.file] = graft(files[e.file], e.function, source)
    name = f"student{k:02}"
    if kind == "zipped":
        return f"{name}.zip", zipped({f"{name}/{file}": text for file, text in files.items()})
    if kind == "in a notebook":
        return f"{name}.ipynb", notebook("\n".join(files.values())).encode()
    if kind == "late":
        return name, {f"{name}_LATE_{k}_{i}_{file}": text
                      for i, (file, text) in enumerate(files.items())}
    if kind == "renamed":
        files = {file.replace(".py", " (2).py"): text for file, text in files.items()}
    return name, files


def hand_in(folder, count):
    given = {}
    for variant in (1, 2, 3, 4) if count > 10 else (1, 2):
        tree = folder.parent / f"given{variant}"
        handout(tree, 2, variant=variant)
        given[variant] = {file: (tree / file).read_text()
                          for file in ("measures.py", "workbook.py")}
    folder.mkdir()
    for k in range(count):
        name, content = student(k, given)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
            continue
        for file, text in content.items():
            path = folder / file if "_LATE_" in file else folder / name / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


@pytest.mark.parametrize("count", [10, pytest.param(80, marks=pytest.mark.slow)])
def test_the_whole_way_of_a_class(tmp_path, count, monkeypatch):
    """Handed out in variants, handed in in ten ways, graded, and graded again.

    The small class has only two exercises to do."""
    if count == 10:
        few = ("measures.rankme", "workbook.renyi_rank")
        monkeypatch.setattr(grading, "chosen_exercises", lambda number, root=ROOT, variant=0: [
            e for e in exercises(number, root, variant) if e.name in few])
    chosen = grading.chosen_exercises(2)
    hand_in(tmp_path / "class", count)
    began = time.monotonic()
    results = grading.grade([tmp_path / "class"], workers=2, seconds=10 if count > 10 else 2)
    took = time.monotonic() - began
    print(f"\n{count} submissions of a set, two workers: {took:.0f} s")
    assert took < 600 and len(results) == count
    most = sum(e.points for e in chosen)
    for result in results:
        kind = KINDS[int(re.search(r"student(\d+)", result.name)[1]) % len(KINDS)]
        said = f"{result.name}, {kind}: {result.points}, {gradebook.remarks_of(result)}"
        if kind in ("right in another style", "zipped", "late", "renamed", "in a notebook"):
            assert result.points == most, said
        elif kind == "half right":
            assert result.points == sum(e.points for e in chosen[::2]), said
        elif kind == "empty":
            assert result.points == 0, said
        elif kind == "hostile":
            assert result.points == most - 10, said
        else:                                                  # a mistake in each, copied
            assert result.points <= most - len(chosen), said
    table = gradebook.as_csv(results)
    assert len(table.splitlines()) == count + 1
    scores = [json.loads(gradebook.as_gradescope(result))["score"] for result in results]
    assert scores == [result.points for result in results]
    # once more from the beginning: all of the large class, one of the small one
    journal = tmp_path / "class" / entries.JOURNAL
    kept = journal.read_text().splitlines(keepends=True)[1:] if count == 10 else []
    journal.write_text("".join(kept))
    again = grading.grade([tmp_path / "class"], workers=2, seconds=10 if count > 10 else 2)
    assert gradebook.as_csv(again) == table
    for one, other in zip(results, again):
        assert gradebook.as_gradescope(one) == gradebook.as_gradescope(other)
