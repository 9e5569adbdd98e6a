"""Grades for people and platforms: the screen, a CSV, Canvas's columns, Gradescope's results.json.

The same grades give the same bytes.  Points of written questions are typed into the CSV by hand; a
later grading into the same file keeps them.
"""
import contextlib
import csv
import io
import json
import re

import course
from assignments import printable


# --------------------------------------------------------------------------------------------------
# The screen

def points_of(grades):
    return f"{sum(g.points for g in grades)} of {sum(g.exercise.points for g in grades)}"


def remarks_of(result):
    """What is worth a sentence, exercises of which the same is true together."""
    if result.why:
        return [f"not read: {result.why}"]
    alike = {}
    for g in result.grades:
        for why in [g.why if g.why != "not attempted" else "", *g.remarks]:
            if why:
                alike.setdefault(why, []).append(g.exercise.name)
    return [*result.remarks, *(f"{', '.join(names)}: {why}" for why, names in alike.items())]


def tables(results):
    """What `run.py grade` prints: a row for each exercise, or for each of several submissions."""
    return table_of_one(results[0]) if len(results) == 1 else table_of_many(results)


def table_of_one(result):
    from rich.markup import escape
    from rich.table import Table
    table = Table("exercise", "points", "why", box=None, pad_edge=False, header_style="dim")
    for g in result.grades:
        lines = [g.why if not g.tests else f"{sum(passed for _, passed, _ in g.tests)} of "
                                           f"{len(g.tests)} tests pass"]
        lines += [f"{test.name} (0 of {test.points}): {wrong}"
                  for test, passed, wrong in g.tests if not passed]
        table.add_row(g.exercise.name, points_of([g]), escape("\n".join(lines + g.remarks)))
    notes = [f"{printable(result.name)}: {remark}" for remark in result.remarks]
    last = f"{printable(result.name)}: {points_of(result.grades)} points"
    return [table, *map(escape, notes), escape(last)]


def table_of_many(results):
    from rich.markup import escape
    from rich.table import Table
    table = Table("submission", "points", "less than full for", box=None, pad_edge=False,
                  header_style="dim")
    notes = []
    for result in results:
        lost = [g.exercise.function for g in result.grades if g.points < g.exercise.points]
        which = ", ".join(lost)
        if result.why:
            which = "not read"
        elif not result.points:
            which = "all"
        table.add_row(escape(printable(result.name)), points_of(result.grades), which)
        notes += [f"{printable(result.name)}: {remark}" for remark in remarks_of(result)]
    return [table, "", *map(escape, notes)]


# --------------------------------------------------------------------------------------------------
# A CSV

def cell(text):
    """A name that a spreadsheet would take for a formula gets an apostrophe."""
    return ("'" if text[:1] in tuple("=+-@") else "") + printable(text)


def questions_of(results):
    """["2.a", "2.b", ...]: the written questions of the sets that were graded."""
    numbers = sorted({g.exercise.number for g in results[0].grades})
    return [f"{n}.{letter}" for n in numbers
            for letter, _ in zip("abcdefgh", course.QUESTIONS[n])]


def rows_of(path):
    """The rows of a CSV, its header's names as keys; nothing if there is no such file."""
    if path is None or not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def number(text):
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def as_csv(results, before=()):
    """A row for each submission: exercises, written questions, total, remarks.

    before: the rows of the file that this replaces; what was typed into the columns of written
    questions is kept, and counts."""
    questions = questions_of(results)
    typed = {row.get("submission", ""): row for row in before}
    table = [["submission", *(g.exercise.name for g in results[0].grades), *questions, "total",
              "remarks"]]
    for result in results:
        row = typed.get(cell(result.name), {})
        written = [row.get(question) or "" for question in questions]
        total = result.points + sum(map(number, written))
        table.append([cell(result.name), *(g.points for g in result.grades), *written, f"{total:g}",
                      printable("; ".join(remarks_of(result)))])
    return text_of(table)


def text_of(table):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


# --------------------------------------------------------------------------------------------------
# A roster, and Canvas's columns

IDENTITY = ("student", "name", "id", "sis user id", "sis login id", "login", "e-mail", "email",
            "section")


def plain(text):
    return re.sub(r"[\W_]+", "", (text or "").lower())


def match(name, person, roster):
    """The row of a roster that a submission belongs to; None if there is none, or are several.

    By the platform's number in the file's name, else by a name, login or address."""
    rows = [row for row in roster if person and (row.get("ID") or row.get("id")) == person]
    if not rows:
        for row in roster:
            known = [plain(value) for key, value in row.items()
                     if key and key.lower() in IDENTITY and key.lower() != "section"]
            known += [plain((value or "").partition("@")[0]) for value in row.values()
                      if isinstance(value, str)]
            surname, _, given = (row.get("Student") or row.get("name") or "").partition(",")
            known.append(plain(given + surname))
            if plain(name) in known or (person and plain(name.rpartition("_")[0]) in known):
                rows.append(row)
    return rows[0] if len(rows) == 1 else None


def as_canvas(results, roster, before=()):
    """The roster's own columns, then the points: what Canvas's gradebook imports.

    Everyone on the roster has a row, and whoever is not on it comes last."""
    numbers = sorted({g.exercise.number for g in results[0].grades})
    title = "Set " + " ".join(map(str, numbers))
    columns = [f"{title}: functions", f"{title}: written"]
    known = [key for key in roster[0] if key.lower() in IDENTITY]
    owner = {result.name: match(result.name, result.person, roster) for result in results}
    typed = {tuple(row.get(key) or "" for key in known): row.get(columns[1]) for row in before}
    table = [[*known, *columns]]
    for row in roster:
        who = tuple(row[key] or "" for key in known)
        theirs = [result.points for result in results if owner[result.name] is row]
        table.append([*who, max(theirs, default=""), typed.get(who) or ""])
    for result in results:
        if owner[result.name] is None:
            table.append([cell(result.name), *[""] * (len(known) - 1), result.points, ""])
    return text_of(table)


def roster_of(path):
    """The rows of --roster; none without one.  Raises ValueError for a file that is no roster."""
    if path is None:
        return []
    rows = [row for row in rows_of(path) if any(row.values())]
    rows = [row for row in rows if "points possible" not in plain_words(row)]
    if not rows or not any(key and key.lower() in IDENTITY for key in rows[0]):
        raise ValueError(f"--roster {path}: expected a CSV with a row for each student, and a "
                         "header with one of Student, ID, SIS Login ID, name, email")
    return rows


def plain_words(row):
    """Canvas has a row below its header that begins with Points Possible."""
    return str(next(iter(row.values())) or "").strip().lower()


def checked(table, results, roster):
    """The rows of --roster; the files that are to be written can be."""
    for option, path in (("--csv", table), ("--results", results)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{option} {path}: {path.absolute().parent} is not a folder")
    return roster_of(roster)


def files(grades, roster, table, results):
    """{path: text} of the files that were asked for."""
    found = {}
    if table is not None and roster:
        found[table] = as_canvas(grades, roster, rows_of(table))
    elif table is not None:
        found[table] = as_csv(grades, rows_of(table))
    if results is not None:
        found[results] = as_gradescope(grades[0])
    return found


@contextlib.contextmanager
def progress():
    """A function tell(done, of) for a line that changes, or one at every tenth in a log."""
    from rich.console import Console
    say = Console(stderr=True, highlight=False)
    with say.status("") as status:
        def tell(done, of):
            status.update(f"{done} of {of} submissions graded")
            if not say.is_terminal and of > 1 and done % max(1, of // 10) == 0:
                say.print(f"{done} of {of} submissions graded")
        yield tell


def expected_variant(roster):
    """A function from a submission to the variant that the roster's column `variant` says."""
    def expected(entry):
        row = match(entry.name, entry.person, roster) or {}
        said = row.get("variant") or row.get("Variant")
        return int(said) if said and said.strip().isdigit() else None
    return expected


# --------------------------------------------------------------------------------------------------
# Gradescope

def as_gradescope(result):
    """results.json: a row for each test.  What the student never saw is shown after publishing."""
    tests = []
    for g in result.grades:
        for test in g.exercise.tests:
            passed, wrong = g.why == "" and not g.tests, g.why
            for one, earned, message in g.tests:
                if one == test:
                    passed, wrong = earned, message
            tests.append({"name": f"{g.exercise.name}: {test.name}",
                          "score": test.points if passed else 0, "max_score": test.points,
                          "status": "passed" if passed else "failed",
                          "visibility": "after_published" if test.hidden else "visible",
                          "output": printable("; ".join(filter(None, [wrong, *g.remarks])))})
    output = [f"{result.points} of {result.most} points"]
    output += [f"not read: {result.why}"] if result.why else result.remarks
    found = {"score": result.points, "output": printable("; ".join(output)),
             "visibility": "visible", "stdout_visibility": "hidden", "tests": tests}
    return json.dumps(found, indent=1) + "\n"
