"""What results/README.md says in numbers is what the committed runs hold."""
import re
from pathlib import Path

import pytest

import sweep

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "results/README.md").read_text(encoding="utf-8")


def table_after(words):
    """The rows of the first table after these words: lists of cells, the header first."""
    rest = PAGE.partition(words)[2]
    assert rest, f"results/README.md no longer says {words!r}"
    lines = rest.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.lstrip().startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return [rows[0], *rows[2:]]


def as_written(number, cell):
    """A number with as many places as the cell has: -17.5, .7"""
    places = len(cell.partition(".")[2])
    return f"{number:.{places}f}".replace("0.", ".", 1) if cell.lstrip("-").startswith(".") else (
        f"{number:.{places}f}")


def test_the_llc_of_the_joint_run_and_the_noise_beside_it():
    """Where the two agree, the run itself says "no other than under noise alone (x)"."""
    header, *lines = table_after("What the LLC of the joint nano run measures")
    rows = {row["step"]: row for row in sweep.read_rows(ROOT / "results/all/nano-s0/metrics.jsonl")}
    checked = 0
    for line, name in zip(lines, ("llc", "llc", "llc_narrow", "llc_narrow")):
        for step, cell in zip(header[1:], line[1:]):
            found = rows[int(step.replace(",", ""))]["levels"]["add-1"][name]
            said = re.findall(r"noise alone \(([\d.]+)\)", " ".join(found["warnings"]))
            number = found["joint"] if not line[0].startswith("noise") else (
                float(said[0]) if said else None)
            assert cell == ("" if number is None else as_written(number, cell)), (line[0], step)
            checked += number is not None
    assert checked == 27


@pytest.mark.parametrize("words", ["With eight tasks not even ten seeds"])
def test_power_grows_with_tasks_and_with_seeds(words):
    header, *lines = table_after(words)
    table = [[float(cell) for cell in line[1:]] for line in lines]
    assert all(row == sorted(row) for row in table)
    assert all(list(column) == sorted(column) for column in zip(*table))


def test_the_lines_of_python_in_the_notebook_page_run_as_they_stand(monkeypatch):
    monkeypatch.chdir(ROOT)
    section = (ROOT / "tests/NOTEBOOK.md").read_text().partition("## From Python\n")[2]
    cells, names = section.split("```")[1::2], {}
    assert len(cells) == 2
    exec(cells[0], names)
    four = names["torch"].eye(4).repeat(3, 1)
    assert names["measures"].rankme(four) == pytest.approx(4, abs=1e-5)
    exec(cells[1].replace("claims.precursor_rate", "rate = claims.precursor_rate"), names)
    assert 0.8 < names["rate"] < 1


def test_what_came_out_of_the_interventions_is_in_effects_json():
    """Value and 95% interval of each claim, raw and of the centred states, and its verdict."""
    rows = {(row["claim"], f"{row['treated']} / {row['control']}"): row
            for row in sweep.read_json(ROOT / "results/all/effects.json")["claims"]}
    _, *lines = table_after("`results/all/effects.json`).")
    assert len(lines) == 6
    for name, arms, seeds, value, centred, verdict in lines:
        row = rows[name.partition(":")[0], arms]
        assert int(seeds) == row["pairs"]
        for cell, found in ((value, row), (centred, row.get("centred"))):
            numbers = re.findall(r"-?[\d.]+", cell)
            if not numbers:
                assert found is None
                continue
            shown = [found["mean"]]
            if len(numbers) == 3:
                shown += [found["mean"] - found["half"], found["mean"] + found["half"]]
            for text, number in zip(numbers, shown, strict=True):
                assert abs(float(text) - number) < 0.0051, (name, text, number)
        assert verdict.startswith(f"**{row['verdict'].partition(':')[0]}**"), name
