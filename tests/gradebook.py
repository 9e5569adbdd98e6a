"""Grades for people and platforms: the screen, a CSV, Canvas's columns, Gradescope's results.json.

The same grades give the same bytes.  Points of written questions are typed into the CSV by hand; a
later grading into the same file keeps them, and all rows and columns that it has nothing new for.
"""
import contextlib
import csv
import io
import json
import math
import re
from typing import NamedTuple

import course
from assignments import exercises, printable


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


def questions_of(number):
    """["2.a", "2.b", ...]: the written questions of a set."""
    return [f"{number}.{letter}" for letter, _ in zip("abcdefgh", course.QUESTIONS[number])]


class Sheet(NamedTuple):
    """A CSV as it was found."""
    columns: tuple = ()
    rows: tuple = ()                  # {column: text}; cells beyond the last column under None
    mark: str = ","                   # between cells


NOTHING = Sheet()
DECIMAL = {";": ","}                  # a spreadsheet that separates by ; writes numbers so


def sheet_of(option, path):
    """Commas, semicolons or tabs.  ValueError, naming the file, for what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip("\n")
        mark = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text), delimiter=mark, restval="")
        rows = [row for row in reader if any(row.values())]
    except UnicodeDecodeError:
        raise ValueError(f"{option} {path}: its letters are not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from None
    except csv.Error as error:
        raise ValueError(f"{option} {path}: {error}") from None
    return Sheet(tuple(reader.fieldnames or ()), tuple(rows), mark)


def typed(text):
    """Points as a number, typed with a decimal comma or point.  NaN for what is none."""
    try:
        return float(text.strip().replace(",", ".") or 0)
    except ValueError:
        return math.nan


def counted():
    """The columns that `total` adds up, of all sets."""
    questions = [name for number in course.QUESTIONS for name in questions_of(number)]
    return [exercise.name for exercise in exercises()] + questions


def faults(sheet, people):
    """Sentences: why grades cannot go into this file without a loss."""
    if people:
        who, adds_up = persons(people), []
        expected = f"{' or '.join(who)}, and one such as 'Set 2: written'"
        ours = any(name in who for name in sheet.columns) and any(map(OURS.match, sheet.columns))
    else:
        adds_up = [name for name in counted() if name in sheet.columns]
        expected = "submission and total"
        ours = {"submission", "total"} <= {*sheet.columns}
    if not ours:
        yield f"another file has this name: expected none, or one with columns {expected}"
    for name in sheet.columns:
        if not name or sheet.columns.count(name) > 1:
            yield f"there is a column {name!r}: expected a name of its own for each column"
    for row in sheet.rows:
        who = next(filter(None, row.values()))
        if None in row:
            yield f"{who}: expected a row with no more cells than the header"
        for name in adds_up:
            if not 0 <= typed(row[name]) < math.inf:
                yield f"{who}, column {name}: expected points such as 4 or 2.5, got {row[name]!r}"


def earlier(path, people):
    """The file that --csv replaces.  ValueError for one that holds something else."""
    if path is None or not path.exists():
        return NOTHING
    sheet = sheet_of("--csv", path)
    for fault in faults(sheet, people) if sheet.columns else ():
        raise ValueError(f"--csv {path}: {fault}")
    return sheet


def carried(fresh, before, who):
    """Fresh rows, each over the first row of the file with the same `who`; then all other rows."""
    left, rows = list(before.rows), []
    for new in fresh:
        same = {key: new[key] for key in who if key in new and key in before.columns}
        replaced = {}
        if any(same.values()):
            replaced = next((row for row in left if same.items() <= row.items()), {})
        left = [row for row in left if row is not replaced]
        rows.append({**replaced, **new})
    return rows + left


def as_csv(results, before=NOTHING):
    """A row for each submission: exercises, written questions, total, remarks.

    before: the file that this replaces.  What is not graded now stays as it was, and counts."""
    grades, adds_up = results[0].grades, counted()
    fresh = [{"submission": cell(result.name), **{g.exercise.name: g.points for g in result.grades},
              "remarks": printable("; ".join(remarks_of(result)))} for result in results]
    rows = carried(fresh, before, ["submission"])
    for row in rows:
        points = [typed(str(row[name])) for name in adds_up if row.get(name, "") != ""]
        if points:                                             # none: someone's own row
            row["total"] = f"{sum(points):g}".replace(".", DECIMAL.get(before.mark, "."))
    questions = [name for number in sorted({g.exercise.number for g in grades})
                 for name in questions_of(number)]
    end = [*before.columns, "total"].index("total")            # new columns come before it
    columns = [*before.columns[:end], "submission", *(g.exercise.name for g in grades), *questions,
               *before.columns[end:], "total", "remarks"]
    return text_of(columns, rows, before.mark)


def text_of(columns, rows, mark):
    """A column that is named twice stands where it is named first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*dict.fromkeys(columns)], restval="", delimiter=mark,
                            lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --------------------------------------------------------------------------------------------------
# A roster, and Canvas's columns

PERSON = ("student", "name", "id", "sis user id", "sis login id", "login", "e-mail", "email")
OURS = re.compile(r"Set [\d ]+: (functions|written)$")
WHOLE = re.compile(r"(\d+)([.,]0*)?", re.ASCII)                # 17.0: a column that had empty cells


def persons(roster):
    """The columns that say who someone is."""
    return [key for key in roster[0] if key.lower() in PERSON]


def plain(text):
    return re.sub(r"[\W_]+", "", text.lower())


def match(name, person, roster):
    """The row of a roster that a submission belongs to; None if there is none, or are several.

    By the platform's number in the file's name, else by a name, login or address."""
    rows = [row for row in roster if person and (row.get("ID") or row.get("id")) == person]
    if not rows:
        for row in roster:
            known = [plain(row[key]) for key in persons([row])]
            known += [plain(value.partition("@")[0]) for value in row.values()]
            surname, _, given = (row.get("Student") or row.get("name") or "").partition(",")
            known.append(plain(given + surname))
            if plain(name) in known or (person and plain(name.rpartition("_")[0]) in known):
                rows.append(row)
    return rows[0] if len(rows) == 1 else None


def as_canvas(results, roster, before=NOTHING):
    """The roster's own columns, then the points: what Canvas's gradebook imports.

    Everyone on the roster has a row, and whoever is not on it comes last.  before: the file that
    this replaces; what is not graded now stays as it was."""
    numbers = sorted({g.exercise.number for g in results[0].grades})
    title = "Set " + " ".join(map(str, numbers))
    who, points = persons(roster), f"{title}: functions"
    known = [key for key in roster[0] if key in who or key.lower() == "section"]
    owner = {result.name: match(result.name, result.person, roster) for result in results}
    fresh = []
    for row in roster:
        theirs = [result.points for result in results if owner[result.name] is row]
        fresh.append({key: row[key] for key in known} | ({points: max(theirs)} if theirs else {}))
    for result in results:
        if owner[result.name] is None:
            fresh.append({who[0]: cell(result.name), points: result.points})
    columns = [*known, *before.columns, points, f"{title}: written"]
    return text_of(columns, carried(fresh, before, who), before.mark)


def roster_of(path):
    """The rows of --roster; none without one.  Raises ValueError for a file that is no roster."""
    if path is None:
        return []
    rows = sheet_of("--roster", path).rows
    rows = [{key: text for key, text in row.items() if key} for row in rows]
    rows = [row for row in rows if any(row.values())]
    rows = [row for row in rows if "points possible" not in plain_words(row)]
    if not rows or not persons(rows):
        raise ValueError(f"--roster {path}: expected a CSV with a row for each student, and a "
                         "header with one of Student, ID, SIS Login ID, name, email")
    for row in rows:
        if variant_in(row) and not WHOLE.fullmatch(variant_in(row)):
            raise ValueError(f"--roster {path}: {next(filter(None, row.values()))}: expected a "
                             f"variant such as 17, or none, got {variant_in(row)!r}")
    return rows


def plain_words(row):
    """Canvas has a row below its header that begins with Points Possible."""
    return next(iter(row.values())).strip().lower()


def variant_in(row):
    return next((text.strip() for key, text in row.items() if key.lower() == "variant"), "")


def checked(table, results, roster, folders=(), require=None):
    """The rows of --roster; the files that are to be written can be, and nothing in them is lost.

    Raises ValueError for what would be wrong only after the grading."""
    for option, path in (("--csv", table), ("--results", results)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{option} {path}: {path.absolute().parent} is not a folder")
        if path is not None and path.exists() and not path.is_file():
            raise ValueError(f"{option} {path}: expected the name of a file; this is none")
    if results is not None and len(folders) > 1:
        raise ValueError(f"--results {results}: it holds one submission; expected one folder, got "
                         f"{len(folders)}")
    if require is not None and not math.isfinite(require):
        raise ValueError(f"--require {require}: expected a number of points")
    people = roster_of(roster)
    earlier(table, people)
    return people


def files(grades, roster, table, results):
    """{path: text} of the files that were asked for."""
    found, before = {}, earlier(table, roster)                  # again: someone may type meanwhile
    if table is not None and roster:
        found[table] = as_canvas(grades, roster, before)
    elif table is not None:
        found[table] = as_csv(grades, before)
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
        said = WHOLE.fullmatch(variant_in(match(entry.name, entry.person, roster) or {}))
        return int(said[1]) if said else None
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
