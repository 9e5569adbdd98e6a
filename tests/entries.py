"""What was handed in: a folder of submissions, read as text and never imported.

A row for every entry: folders, zips (nested, made on Windows or a Mac), lone .py files with the
names that Canvas gives them, notebooks.  Whatever cannot be read is an entry too, with a reason.
Nothing is unpacked to disk, and no link is followed.
"""
import io
import json
import re
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import assignments

JOURNAL = ".graded.jsonl"             # grading.py's own, in a folder of submissions
NOBODY = {"Thumbs.db", "desktop.ini", "__MACOSX"}        # and what begins with a dot
NOT_WORK = {"__MACOSX", "__pycache__", "venv", "env", "node_modules", "site-packages", "results",
            "runs", "build"}
MOST_FILES, MOST_BYTES, MOST_DEPTH = 3000, 500_000, 6
SUFFIXES = (".py", ".ipynb", ".zip")


@dataclass
class Entry:
    name: str
    texts: dict = field(default_factory=dict)            # {path in the submission: text}
    why: str = ""                                        # it was not read
    broken: dict = field(default_factory=dict)           # {path: why it cannot be read}
    person: str = ""                                     # the platform's number of the student
    late: bool = False


def entries(folders, single=False):
    """One Entry for everything that was handed in; each has a name of its own.

    A folder that holds a module with exercises is a submission.  Any other is a folder of
    submissions, unless `single` says that it is one."""
    found = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; expected a submission, or a folder of "
                             "submissions")
        if single or is_submission(folder):
            found.append(read_entry(folder.resolve().name, [folder]))
            continue
        inside = [path for path in sorted(folder.iterdir())
                  if path.name not in NOBODY and not path.name.startswith(".")]
        if not inside:
            raise ValueError(f"{folder} holds no submission: expected one of "
                             f"{', '.join(wanted_files())} in it, or an entry for each student")
        found += read_class(inside)
    names = set()
    for entry in found:
        while entry.name in names:
            entry.name += "'"
        names.add(entry.name)
    return found


def wanted_files():
    return list(dict.fromkeys(e.file for e in assignments.exercises()))


def is_submission(folder):
    try:
        return any((folder / file).exists() for file in wanted_files())
    except OSError:
        return False


# lee_LATE_998_4711_measures-1.py: who, perhaps late, the student, perhaps the submission, the file
CANVAS = re.compile(r"(?P<who>[^_]+)_(?P<late>LATE_)?(?P<person>\d+)_(?:(?P<number>\d+)_)?"
                    r"(?P<file>.+)")


def read_class(paths):
    """The files that one student uploaded to Canvas lie side by side: they are one entry."""
    together = {}
    for path in paths:
        match = CANVAS.fullmatch(path.name) if path.is_file() else None
        key = (match["who"], match["person"]) if match else path.name
        together.setdefault(key, []).append(path)
    found = []
    for key, group in together.items():
        name = "_".join(key) if isinstance(key, tuple) else key.removesuffix(".zip")
        if name != key and any(path.name == name for path in paths):       # bob/ and bob.zip
            name = key
        entry = read_entry(name, group)
        if isinstance(key, tuple):
            for long in [name for name in entry.texts if CANVAS.fullmatch(name)]:
                entry.texts[CANVAS.fullmatch(long)["file"]] = entry.texts.pop(long)
            entry.person = key[1]
            entry.late = any(CANVAS.fullmatch(path.name)["late"] for path in group)
        found.append(entry)
    return found


def read_entry(name, paths):
    entry = Entry(name)
    try:
        for path in paths:
            read_path(entry, path)
    except Unreadable as error:
        entry.why = str(error)
    except (OSError, RuntimeError, RecursionError, MemoryError, NotImplementedError,
            zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        entry.why = f"it cannot be opened ({type(error).__name__}: {error})"
    if not entry.why and not entry.texts:
        kinds = sorted({path.suffix or path.name for path in paths if path.is_file()})
        entry.why = next(iter(entry.broken.values()), "")
        if not entry.why and kinds:
            entry.why = (f"a {', '.join(kinds)} file; expected a folder, a .zip, a .py file or a "
                         "notebook")
        entry.why = entry.why or "it holds no .py file and no notebook"
    return entry


class Unreadable(ValueError):
    """In words that can be shown."""


def read_path(entry, path):
    if path.is_symlink():
        raise Unreadable("a link, which is not followed")
    if path.is_dir():
        files = walk(path)
    else:
        files = [(path.name, path)]
    for name, file in files:
        if file.is_symlink():
            entry.broken[name] = f"{file.name} is a link, which is not followed"
        elif file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                read_zip(entry, archive, "" if file == path else f"{name}/")
        else:
            add(entry, name, file.stat().st_size, file.read_bytes)


def walk(folder):
    """(name from the folder on, path) of all files that may hold work, the nearest first."""
    found, waiting = [], [folder]
    while waiting:
        here = waiting.pop(0)
        for path in sorted(here.iterdir()):
            if path.name in NOT_WORK or path.name.startswith("."):
                continue
            inside = path.relative_to(folder)
            if path.is_dir() and not path.is_symlink() and len(inside.parts) < MOST_DEPTH:
                waiting.append(path)
            elif path.suffix.lower() in SUFFIXES:
                found.append((inside.as_posix(), path))
            if len(found) + len(waiting) > MOST_FILES:
                raise Unreadable(f"it holds more than {MOST_FILES} files")
    return found


def read_zip(entry, archive, before, depth=0):
    """Windows writes backslashes, Macs add __MACOSX and ._names, people put zips into zips."""
    if len(archive.infolist()) > MOST_FILES:
        raise Unreadable(f"it holds more than {MOST_FILES} files")
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        hidden = [part for part in path.parts if part in NOT_WORK or part.startswith(".")]
        if info.is_dir() or hidden or path.suffix.lower() not in SUFFIXES:
            continue
        if info.flag_bits & 1:
            raise Unreadable("the zip is locked with a password")
        name = before + path.as_posix()
        if path.suffix.lower() != ".zip":
            add(entry, name, info.file_size, lambda info=info: archive.read(info))
        elif depth < 3 and info.file_size < 50_000_000:
            with zipfile.ZipFile(io.BytesIO(archive.read(info))) as inner:
                read_zip(entry, inner, f"{name}/", depth + 1)
        else:
            entry.broken[name] = f"{path.name} is a zip too deep or too large to be opened"


def add(entry, name, size, read):
    """Put one file's text into the entry, or the reason why it has none."""
    suffix, short = PurePosixPath(name).suffix.lower(), PurePosixPath(name).name
    if suffix not in (".py", ".ipynb"):
        return
    if size > (10 if suffix == ".ipynb" else 1) * MOST_BYTES:
        entry.broken[name] = f"{short} is larger than {size // 1000:,} kB"
        return
    try:
        entry.texts[name] = notebook(read()) if suffix == ".ipynb" else decoded(read())
    except (SyntaxError, UnicodeError, LookupError, ValueError, KeyError, TypeError) as error:
        entry.broken[name] = f"{short} cannot be read ({type(error).__name__}: {error})"


def decoded(data):
    """Python's own rule: a byte order mark, a coding line, else UTF-8."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    text = data.decode(encoding)
    if "\0" in text:
        raise ValueError("it is no text")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")


def notebook(data):
    """The code cells, one below another; lines for the notebook itself become comments."""
    cells = json.loads(data.decode("utf-8-sig"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^(\s*)([%!])", r"\1# \2", text, flags=re.M) + "\n"


# --------------------------------------------------------------------------------------------------
# Which of its files is measures.py?

def module_text(entry, exercise):
    """-> (text of the file that should hold this exercise, "", a remark) or ("", why not, "").

    Its own name first, the nearest; then a name that a browser or platform has changed; then a
    notebook or another file that has the function."""
    file, stem = exercise.file, exercise.file.removesuffix(".py")
    exact = [name for name in entry.texts if PurePosixPath(name).name == file]
    depth = min((name.count("/") for name in exact), default=0)
    exact = [name for name in exact if name.count("/") == depth]
    changed = re.compile(rf"(?:.*[_ -])?{stem}(?:[_ -]?\(?(\d+)\)?|[_ -]?copy.*)?\.py", re.I)
    near = {}
    for name in entry.texts:
        match = changed.fullmatch(PurePosixPath(name).name)
        if match and (name not in exact or entry.person):      # Canvas: the last one counts
            near[name] = int(match[1] or 0)
    if len({entry.texts[name] for name in exact}) > 1 and not entry.person:
        return "", f"there are two files {file}: {' and '.join(exact)}", ""
    if exact and not entry.person:
        return entry.texts[exact[0]], "", ""
    if near:
        newest = max(near, key=near.get)
        if newest in exact:
            return entry.texts[newest], "", ""
        return entry.texts[newest], "", f"{file} read from {PurePosixPath(newest).name}"
    head = re.compile(rf"^def +{exercise.function}\b", re.M)
    for name, text in entry.texts.items():
        short = PurePosixPath(name).name
        if head.search(text) and not short.startswith("test_"):
            return text, "", f"{file} read from {short}"
    for name, why in entry.broken.items():
        if PurePosixPath(name).name == file:
            return "", why, ""
    return "", f"{file} is missing", ""


def handed_out_as(entry):
    """{(number or None, variant)} of the first lines that `handout` has written into its files."""
    found = set()
    for text in entry.texts.values():
        for match in assignments.HEADING.finditer(text):
            number = match["number"] and int(match["number"])
            found.add((number, int(match["variant"])))
    return found
