"""What results/README.md says in numbers is what the committed runs hold."""
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import claims
import emergence
import run
import sweep
import tasks

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


def test_what_came_out_at_another_learning_rate_is_in_the_runs():
    """Each pair of runs on the snapshots that both have."""
    header, *lines = table_after("**What came out** (`results/lr-0.0005`")
    folders, found, equal = {".002": "all", ".0005": "lr-0.0005"}, {}, {}
    runs = [{one.config["size"]: [one] for one in arm_of(folder, range(1), None)}
            for folder in folders.values()]
    for size in header[2:]:
        pair = [by_size[size] for by_size in runs]
        for rate, events in zip(folders, emergence.pair_arms(*pair)):
            end = events.runs[0].steps[-1]
            rows = sweep.read_rows(ROOT / f"results/{folders[rate]}/{size}-s0/metrics.jsonl")
            top = [abs(row["levels"]["add-1"]["joint"]["eigenvalue"]) for row in rows
                   if 400 <= row["step"] <= end and "joint" in row["levels"]["add-1"]]
            found[rate, size] = {
                "floor": [math.exp(np.log(events.floor).mean())],
                "emerged of 24": [np.isfinite(events.emergence).sum()],
                "by a quarter of the steps": [(events.emergence <= end / 4).sum()],
                "curvature": [max(top), np.median(top)] if top else []}
            if rate == ".002" and size != "large":              # equal rate x steps
                steps = {2000: 326, 1000: 255}[end]
                equal[size] = (events.emergence <= steps).sum()
    more = [found[".0005", size]["emerged of 24"][0] - equal[size]
            for size in ("small", "medium", "nano")]
    assert more == [10, 8, 6] and "1,000) ten, eight and six." in " ".join(PAGE.split())
    assert len(lines) == 7
    for rate, name, *cells in lines:
        for size, cell in zip(header[2:], cells, strict=True):
            numbers = found[rate, size][name]
            assert cell == ("; ".join(map(as_written, numbers, cell.split("; "))) or "-")


def test_the_fall_of_floors_at_large_is_the_doing_of_the_rate():
    """R4, on the snapshots up to step 118 that both rates have."""
    floor, arms = {}, [arm_of(folder, range(1), None) for folder in ("all", "lr-0.0005")]
    for size in ("medium", "large"):
        pair = [[one for one in runs if one.config["size"] == size] for runs in arms]
        for rate, (one,) in enumerate(emergence.paired_runs(*pair)):
            early = one.steps <= 118
            curves = {name: curve[:, early] for name, curve in one.curves.items()}
            cut = emergence.replace(one, steps=one.steps[early], curves=curves)
            floor[size, rate] = np.log(emergence.event_table([cut]).only().floor).mean()
    falls = [floor["large", rate] - floor["medium", rate] for rate in range(2)]
    assert falls[1] > falls[0] / 2 + 0.07
    said = "{:.2f} below that of medium at .002, and {:.2f} above it at .0005".format(
        -falls[0], falls[1]).replace("0.", ".")
    assert said in " ".join(PAGE.split())


everything = functools.cache(lambda name: run.select(ROOT / "results" / name)[0])


def arm_of(name, seeds=None, sizes=("nano",)):
    sizes = sizes if name == "all" else None
    return [one for one in everything(name) if (seeds is None or one.config["seed"] in seeds)
            and (sizes is None or one.config["size"] in sizes)]


@pytest.mark.slow
def test_what_the_interventions_hang_on():
    """C13 on parity-2; C12 on what recovery is; C11 on the task."""
    words, control, plateau = " ".join(PAGE.split()), arm_of("all", range(6)), {
        "parity-1", "parity-2", "parity-3", "add-1", "modadd-1"}
    arms, means = (arm_of("all-placebo"), arm_of("all-rank-up")), []
    for lasting, left_out in ((1.25, "parity-2"), (2, "")):
        found = emergence.effect(*arms, lasting=lasting)
        means.append(np.mean([one.shift for one in found.levels
                              if one.level in plateau - {left_out}]))
    for text, mean in zip(("{:.2f}, {:.1f} times sooner;", "{:.2f}, {:.1f} times ("), means):
        assert text.format(mean, math.exp(-mean)) in words
    early = emergence.event_table(arms[1]).only()
    assert sorted(early.emergence[:, early.levels.index("parity-2")])[:4] == [10, 14, 15, 25]

    two, doses = range(2), []
    for name in ("rank-up-0.3", "rank-up", "rank-up-3"):
        found = emergence.effect(arm_of("all-placebo", two), arm_of(f"all-{name}", two))
        doses.append(np.mean([one.shift for one in found.levels if one.level in plateau]))
    assert "by {:.2f}, {:.2f} and {:.2f} log steps".format(*doses).replace("0.", ".") in words
    delays = [math.exp(emergence.effect(arm_of("all", two), arm_of(f"all-{name}", two)).mean.shift)
              for name in ("rank-down", "rank-down-3", "rank-down-10")]
    assert "{:.2f}, {:.2f} and {:.2f} times; at".format(*delays) in words

    low = emergence.event_table(arm_of("all-rank-down-3")).only()
    first = {level: int((low.onset < low.emergence)[:, low.levels.index(level)].sum())
             for level in ("compare-1", "compare-2", "compare-3", "parity-1")}
    assert sum(first.values()) == 17 and first["parity-1"] == 0
    own = emergence.event_table(arm_of("all-rank-down-3"), onset="floor").only()
    k = own.levels.index("parity-1")
    assert np.isfinite(own.emergence[:, k]).sum() == 5                     # "in four of the five"
    assert (own.onset < own.emergence)[np.isfinite(own.emergence[:, k]), k].sum() == 4
    assert 1.65 < own.start[:, k].min() < own.start[:, k].max() < 2.25

    spared = {}
    for name in ("all-marginal", "all-wrong-marginal"):
        before, after = emergence.pair_arms(control, arm_of(name))
        falls = [np.log(x.floor / x.start).mean(0) @ x.owner.T for x in (before, after)]
        spared[name] = dict(zip(dict.fromkeys(before.tasks), 1 - falls[1] / falls[0]))
    shown = {"copy": .72, "reverse": .73, "sort": .73, "compare": .69, "multiply": .75,
             "parity": .24, "add": .24, "modadd": 0}
    for task, value in shown.items():
        assert spared["all-marginal"][task] == pytest.approx(value, abs=0.0151), task
    wrong = {"compare": 0, "reverse": .40, "copy": .80}
    for task, value in wrong.items():
        assert spared["all-wrong-marginal"][task] == pytest.approx(value, abs=0.0251), task


@pytest.mark.slow
def test_a_table_that_is_far_from_right_spares_little():
    """KL(right, wrong table) of the first answer token, in nats, as the network is given it."""
    levels, after, away = tasks.level_names()[:24], dict(zip(tasks.TASKS, [*tasks.TASKS][1:])), []
    for task, level in map(tasks.split_name, levels):
        right, wrong = (tasks.answer_frequencies(name, level)[0].double()
                        for name in (task, after.get(task, [*tasks.TASKS][0])))
        away.append(float((torch.special.xlogy(right, right)
                           - right * (wrong + 1e-4).log().log_softmax(0)).sum()))
    spared = []
    for name in ("all-marginal", "all-wrong-marginal"):
        before, after = emergence.pair_arms(arm_of("all", range(3)), arm_of(name))
        assert before.levels == tuple(levels)
        falls = [np.log(x.floor / x.start).mean(0) for x in (before, after)]
        bands = np.digitize(away, (1, 3))
        spared.append([1 - falls[1][bands == b].sum() / falls[0][bands == b].sum()
                       for b in range(3)])
    said = ("spare {:.2f} and {:.2f} in the {} task-levels with up to 1 nat, {:.2f} and {:.2f} in "
            "the {} between, {:.2f} and {:.2f} in the {} beyond 3 nats")
    numbers = [x for b in range(3) for x in (*[arm[b] for arm in spared], (bands == b).sum())]
    assert said.format(*numbers).replace("0.", ".") in " ".join(PAGE.split())


def test_the_shams_that_rise_above_the_others():
    runs = arm_of("all", sizes=None)
    found = claims.sham_onsets(emergence.event_table(runs))
    assert f"{found} of 80 shams have an onset too" in " ".join(PAGE.split())


@pytest.mark.slow
def test_when_the_onsets_are_that_come_first():
    runs = arm_of("all", sizes=None)
    late, events = (emergence.event_table(runs, warmup=warm).only() for warm in (False, True))
    share = claims.collapse_rate(late, None)[0]
    own = np.array([one.rankme_at("first", -2)[late.rows][:, one.steps >= 100][:, 0]
                    for one in late.runs])                      # where warm-up has ended
    half = claims.collapsed(emergence.replace(late, start=own)).mean()
    said = f"after these {share:.0%} of cases are still that low, {half:.0%} fall by half from"
    assert said in " ".join(PAGE.split())
    first = np.isfinite(events.emergence) & (events.onset < events.emergence)
    counts = [(first & also).sum() for also in
              (True, events.onset <= 100, events.onset <= events.floor_step)]
    said = "of {} onsets that come first, {} lie within the 100 steps of warm-up, and {} are"
    assert said.format(*counts) in " ".join(PAGE.split())


COLUMNS = {"first look": ("first-look", None, None), "nano 5-9": ("all", ("nano",), range(5, 10)),
           "micro 3-5": ("all", ("micro",), range(3, 6)),
           "larger sizes": ("all", ("small", "medium", "large"), None),
           "arithmetic": ("arithmetic", None, None), "sequences": ("sequences", None, None)}


def as_numbers(cell):
    """ "91% (78 to 100); <.001" -> [.91, .78, 1.0, .001]"""
    hundred = 100 if "%" in cell else 1
    parts = re.findall(r"(<?)(-?\d*\.?\d+)", cell)
    return [float(x) / (1 if "." in x else hundred) for _, x in parts]


@pytest.mark.slow
@pytest.mark.parametrize("column", COLUMNS)
def test_what_came_out_is_in_the_runs(column):
    header, *lines = table_after("**What came out.** Every column")
    folder, sizes, seeds = COLUMNS[column]
    runs = arm_of(folder, seeds, sizes)
    found = claims.study(runs, universe=claims.multiverse(runs, claims.specifications(runs=runs)))
    events = emergence.event_table(runs).only()
    claim = {row["claim"]: row for row in found["claims"]}
    lead = {row["quantity"]: row for row in found["leads"] if row["measure"] == "rankme"}
    gain = next(row for row in found["forecasts"]
                if row["over"] == "task" and [*row["features"]] == [claims.ONE_FEATURE])
    excess, fine = claim["C4 all choices"], claim["C7 fine"]
    expected = [
        [np.isfinite(events.emergence).sum(), events.emergence.size],
        [excess["value"], excess["p_holm"]], [math.nan if x is None else x
                                              for x in excess["centred"]],
        [claim["C4"][key] for key in ("value", "null", "p_holm")],
        [lead.get("centred_states", {}).get(key, math.nan)
         for key in ("rate", "low", "high", "null")],
        *[[lead[name][key] for key in ("rate", "null")] for name in ("accuracy", "log_prob")],
        [gain[key] for key in ("gain", "low", "high")], [gain["gaining"]],
        [claim["C7"][key] for key in ("value", "null")],
        [fine[key] for key in ("value", "low", "high", "null")]]
    assert len(lines) == len(expected)
    for line, numbers in zip(lines, expected):
        cell = line[header.index(column)]
        said, numbers = as_numbers(cell), [x for x in numbers if not np.isnan(x)]
        for text, number in zip(said, numbers, strict=True):
            if f"<{text:.3f}".replace("0.", ".") in cell:
                assert number < text, (line[0], cell)
            else:
                assert abs(text - number) < (0.51 if number > 1.5 else 0.0051), (line[0], cell)


def test_floors_at_five_sizes_are_those_of_the_findings():
    """RankMe, that of centred states, and the share of the ceiling in %; then three slopes."""
    header, *lines = table_after("**Five sizes**")
    found = {}
    for row in sweep.read_json(ROOT / "results/all/findings.json")["scales"]["floors"]:
        found.setdefault(row["task"], {})[row["kind"]] = row
    assert [line[0] for line in lines] == [*found] and len(lines) == 9
    for task, *cells in lines:
        kinds = [found[task][kind] for kind in ("raw", "centred", "share")]
        for size, cell in zip(header[1:6], cells):
            expected = [row["floors"][size] * scale for row, scale in zip(kinds, (1, 1, 100))]
            for text, number in zip(re.findall(r"[\d.]+", cell), expected, strict=True):
                places = len(text.partition(".")[2])
                assert abs(float(text) - number) < 0.51 / 10 ** places, (task, size, cell)
        for row, cell in zip(kinds, cells[5:], strict=True):
            said = [float(text) for text in re.findall(r"-?\d*\.\d+", cell)]
            for number, key in zip(said, ("slope", "low", "high")):
                assert abs(number - row[key]) < 0.0051, (task, cell)


OF_ALL = {"gradient rank": "gradient_rank", "Fisher rank": "fisher_rank",
          "top Hessian eigenvalue": "eigenvalue"}


def test_five_measures_at_five_sizes_are_in_the_runs():
    """Each cell has a value for each step that its row names: of the snapshot that had the measure
    nearest to it, "-" where none is within a factor of two."""
    header, *lines = table_after("**Four more measures at five sizes**")
    read = {size: sweep.read_rows(ROOT / f"results/all/{size}-s0/metrics.jsonl")
            for size in header[2:]}
    checked = 0
    for name, steps, *cells in lines:
        asked = [int(step.replace(",", "")) for step in steps.split("; ")]
        for size, cell in zip(header[2:], cells, strict=True):
            found = {}
            for row in read[size]:
                own = row["levels"]["add-1"]
                column, key = ("llc", "joint") if name == "LLC" else ("joint", OF_ALL[name])
                if own.get(column):
                    found[row["step"]] = own[column][key]
            for step, text in zip(asked, cell.split("; "), strict=True):
                near = min(found, key=lambda other: abs(other - step), default=math.inf)
                if near != step and not step / 2 <= near <= 2 * step:
                    assert text == "-", (name, size, step)
                    continue
                assert text == as_written(found[near], text), (name, size, step)
                checked += 1
    assert checked >= 50


def test_the_llc_is_noise_alone_at_so_many_snapshots():
    """From step 132 on: the runs themselves say so, in a warning."""
    alone, smaller = {}, 0
    for size in ("nano", "micro", "small", "medium", "large"):
        rows = sweep.read_rows(ROOT / f"results/all/{size}-s0/metrics.jsonl")
        found = [[columns["llc"] for columns in row["levels"].values()] for row in rows
                 if row["step"] >= 132 and row["levels"]["add-1"].get("llc")]
        said = [" ".join(own[0]["warnings"]) for own in found]
        alone[size] = sum("noise alone" in words for words in said), len(found)
        smaller += sum(own[0]["joint"] < np.mean([llc["noise_only"] for llc in own])
                       for own in found)
    said = ", ".join("{} of {} of {}".format(*pair, size) for size, pair in alone.items())
    assert said.replace("of nano", "snapshots of nano") in " ".join(PAGE.split())
    both = "at {} of {} snapshots from".format(*map(sum, zip(*alone.values())))
    assert both in " ".join(PAGE.split()) and f"in {smaller} it is the smaller" in PAGE
