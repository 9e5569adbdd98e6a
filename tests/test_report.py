"""Figures show the planted curves and dates; words fit; a figure that fails costs only itself."""
import csv
import doctest
import io
import itertools
import math
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread
from rich.console import Console

import claims
import emergence
import report

STEPS = range(0, 401, 10)
LEVELS = ("add-1", "add-2", "sham-add-1")
JOINT = ("add-1", "add-2", "copy-1", "copy-2", "sham-add-1")
FEW = {"threshold": (0.3, 0.5), "warmup": (True, False)}


# ------------------------------------------------------------------------------------------------
# Made-up sweeps

def planted(level, step):
    """task-k falls to k + 1, recovers at 100 k, emerges at 100 k + 60; a sham falls to k + 2."""
    k, sham = int(level[-1]), level.startswith("sham")
    low, onset = k + 1.0 + sham, 100 * k
    rank = 12.0
    if step >= 30:
        rank = low
        if step >= onset and not sham:
            rank = min(12.0, 2 * low + (step - onset) / 10)
    return rank, step >= onset + 60 and not sham


def table_of(name, levels=LEVELS, shift=0.0, measures=(), held_back=False):
    """The rows of one run; shift moves its accuracy and its RankMe, but none of its dates."""
    for step in STEPS:
        for level in levels:
            rank, emerged = planted(level, step)
            values = {"accuracy": 0.95 - shift if emerged else 0.1, "loss": 1.0, "distinct": 100,
                      "log_prob": -0.1 if emerged else -2.3}
            for position in ("first", "answer", "last"):
                for layer, value in enumerate((1.0, rank + 1, rank + shift, rank)):
                    values[f"rankme.{position}.{layer}"] = value
            if held_back:
                values["accuracy_train"] = float(step >= 50)
                values["accuracy_test"] = values["accuracy"]
            if step % 40 == 0:
                values |= {measure: step / 400 for measure in measures}
            for quantity, value in values.items():
                yield {"run": name, "level": level, "step": step, "quantity": quantity,
                       "value": value}


def config_of(size="nano", seed=0, parameters=400_000, levels=LEVELS, measures=(),
              held_back=False):
    return {"size": size, "seed": seed, "parameters": parameters, "levels": list(levels),
            "width": 128, "steps": 400, "eval_examples": 1000, "warmup": 0,
            "train_fraction": 0.4 if held_back else 1.0, "measures": ["rankme", *measures],
            "numbers": {measure: [measure] for measure in measures},
            "chance": dict.fromkeys(levels, 0.1), "chance_log_prob": dict.fromkeys(levels, -2.3),
            "answer_tokens": dict.fromkeys(levels, 2)}


def sweep(sizes=(("nano", 400_000),), seeds=2, levels=LEVELS, measures=(), held_back=False):
    """Runs whose seeds differ by the shift .02 seed."""
    rows, configs = [], {}
    for size, parameters in sizes:
        for seed in range(seeds):
            name = f"{size}-s{seed}"
            rows += table_of(name, levels, 0.02 * seed, measures, held_back)
            configs[name] = config_of(size, seed, parameters, levels, measures, held_back)
    return emergence.event_table(emergence.from_table(rows, configs))


TWO_SIZES = (("nano", 400_000), ("micro", 1_300_000))


@pytest.fixture(scope="module")
def two_sizes():
    return sweep(TWO_SIZES)


@pytest.fixture(scope="module")
def joint():
    """Two tasks, two sizes, a measure: (events, findings, universe)."""
    events = sweep(TWO_SIZES, levels=JOINT, measures=("llc",))
    universe = claims.multiverse(events.runs, claims.specifications(FEW))
    findings = {"choices": events.dated_by, "runs": [run.name for run in events.runs],
                "missing": [],
                **claims.study(events.runs, universe=universe),
                "levels": claims.medians(events), "sizes": claims.overview(events)}
    return events, findings, universe


def save(path, content):
    """A stand-in for the writer that `report.write` is given."""
    if isinstance(content, dict):
        content = repr(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def vertical_lines(ax):
    """{step: (colour, line style)} of the lines that stand at one step."""
    return {float(line.get_xdata()[0]): (to_hex(line.get_color()), line.get_linestyle())
            for line in ax.lines if len(set(line.get_xdata())) == 1}


def titled(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def numbers_of(ax):
    """The y values of all curves, without straight lines, in the order of drawing."""
    return [line.get_ydata() for line in ax.lines if len(set(line.get_xdata())) > 2]


# ------------------------------------------------------------------------------------------------
# Figures of a sweep

def test_curves_have_a_panel_for_each_level_and_size_with_both_dates(two_sizes):
    figures = report.figure_curves(two_sizes)
    assert list(figures) == ["curves"]
    axes = figures["curves"].axes
    assert len(axes) == 2 * 2 * 2                           # sizes x levels x (accuracy, RankMe)
    assert [ax.get_title() for ax in titled(figures["curves"])] == [
        "nano   add-1", "nano   add-2", "micro   add-1", "micro   add-2"]
    for i, k in enumerate((1, 2, 1, 2)):
        for ax in axes[2 * i:2 * i + 2]:
            assert vertical_lines(ax) == {100.0 * k: (report.RANKME.lower(), "--"),
                                          100.0 * k + 60: (report.ACCURACY.lower(), "-")}


def test_curves_show_median_and_range_over_seeds_above_the_controls(two_sizes):
    upper, lower = report.figure_curves(two_sizes)["curves"].axes[:2]
    sham, accuracy = numbers_of(upper)
    assert to_hex(upper.lines[0].get_color()) == to_hex(report.CONTROL) and set(sham) == {0.1}
    assert accuracy == pytest.approx([0.94 if step >= 160 else 0.1 for step in STEPS])
    rank = [planted("add-1", step)[0] + 0.01 for step in STEPS]
    assert numbers_of(lower)[1] == pytest.approx(rank)
    edges = upper.collections[1].get_paths()[0].vertices[:, 1]              # of the band
    assert (edges.min(), edges.max()) == pytest.approx((0.1, 0.95))
    assert 0.93 in edges.round(6)


def test_a_single_seed_has_no_band():
    upper, lower = report.figure_curves(sweep(seeds=1))["curves"].axes[:2]
    assert not upper.collections and not lower.collections


def test_several_tasks_have_a_figure_for_each_size(joint):
    events, _, _ = joint
    figures = report.figure_curves(events)
    assert list(figures) == ["curves-nano", "curves-micro"]
    titles = [ax.get_title() for ax in titled(figures["curves-nano"])]
    assert titles == list(JOINT[:4])                        # the row's title is in the level's name
    assert list(report.figure_layers(events)) == ["layers-nano", "layers-micro"]


def test_seen_operands_are_dotted_where_some_are_held_back():
    figure = report.figure_curves(sweep(held_back=True))["curves"]
    chance, dotted = sorted((line for line in figure.axes[0].lines if line.get_linestyle() == ":"),
                            key=lambda line: len(line.get_xdata()))
    assert set(chance.get_ydata()) == {0.1}
    assert dotted.get_ydata().tolist() == [float(step >= 50) for step in STEPS]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["accuracy on unseen operands", "on seen ones"]


def test_layers_are_the_median_of_every_layer_with_emergence_in_white(two_sizes):
    figure = report.figure_layers(two_sizes)["layers"]
    assert len(titled(figure)) == 4 and len(figure.axes) == 5               # and the colour bar
    ax = titled(figure)[1]
    expected = [[1.0, rank + 1, rank + 0.01, rank] for rank, _ in
                (planted("add-2", step) for step in STEPS)]
    mesh = np.asarray(ax.collections[0].get_array()).reshape(4, len(STEPS))
    assert np.allclose(mesh, np.transpose(expected))
    assert vertical_lines(ax) == {260.0: ("#ffffff", "-")}, "the last one drawn, on a black one"
    first = titled(figure)[0]
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == ["embedding", "1", "2", "final norm"]


def test_sizes_stand_side_by_side_where_there_are_several(two_sizes, joint):
    figure = report.figure_sizes(two_sizes)["sizes"]
    assert [ax.get_title() for ax in titled(figure)] == ["add"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["nano (2)", "micro (2)", "level 1", "level 2"]
    harder = two_sizes.subset(levels=[name == "add-2" for name in two_sizes.levels])
    figure = report.figure_sizes(harder)["sizes"]
    assert figure.legends[0].get_texts()[-1].get_text() == "level 2"
    shown = [line.get_marker() for line in titled(figure)[0].lines if len(line.get_xdata()) == 1]
    assert shown == ["s", "s"], "the marker of level 2, at either size"
    one = joint[0].subset(runs=[0])
    assert report.figure_sizes(one) == {} == report.figure_slopes(one)
    assert report.figure_slopes(two_sizes) == {}, "of one task there is no mean over tasks"


def scaled_runs(power=0.25, parameters=(1e6, 16e6), lasts=(400, 400)):
    """Two tasks whose floors are 2 and 3 times parameters^power / 1e6^power, at two sizes."""
    rows, configs = [], {}
    for size, P, last in zip(("small", "big"), parameters, lasts):
        configs[size] = {"size": size, "parameters": P, "width": 64 if size == "small" else 256}
        for task, least in (("add-1", 2), ("copy-1", 3)):
            floor = least * (P / 1e6) ** power
            for step in range(0, last + 1, 20):
                rank = 10 * floor if step == 0 else floor if step < 200 else 3 * floor
                values = {"accuracy": float(step >= 300), "distinct": 200}
                values |= {f"{name}.{layer}": rank for layer in ("embedding", 1, "final norm")
                           for name in ("rankme.first", "rankme_centred")}
                rows += [(size, task, step, key, value) for key, value in values.items()]
    return emergence.from_table(rows, configs)


def test_slopes_of_floors_are_those_that_were_planted():
    events = emergence.event_table(scaled_runs(), onset="floor")
    rows = {(row["kind"], row["task"]): row for row in claims.floor_slopes(events)}
    assert {kind for kind, _ in rows} == {"raw", "centred", "share"}
    for task, least in (("add", 2), ("copy", 3)):
        for kind in ("raw", "centred"):
            assert rows[kind, task]["slope"] == pytest.approx(0.25)
            assert rows[kind, task]["floors"] == pytest.approx({"small": least, "big": 2 * least})
        # the ceiling grows from 64, a width, to 200, the inputs
        growth = math.log(200 / 64) / math.log(16)
        assert rows["share", task]["slope"] == pytest.approx(0.25 - growth)
    every = rows["raw", "all"]
    assert every["floors"] == pytest.approx({"small": 6 ** 0.5, "big": 2 * 6 ** 0.5})
    assert every["low"] == pytest.approx(0.25) == every["high"], "both tasks have the same"


def test_a_size_that_was_stopped_early_cuts_no_other_short():
    events = emergence.event_table(scaled_runs(lasts=(400, 200)), onset="floor")
    for ax in titled(report.figure_sizes(events)["sizes"]):
        assert ax.get_xlim()[1] == 400
        assert sorted(line.get_xdata()[-1] for line in ax.lines if len(line.get_xdata()) > 1) == [
            200, 400]


def test_what_changes_with_size_is_told_size_by_size_and_pair_by_pair():
    events = emergence.event_table(scaled_runs(), onset="floor")
    scales = claims.scales(events)
    assert [(row["sizes"], row["claim"]) for row in scales["claims"]] == [
        *[([size], key) for size in ("small", "big") for key in claims.AT_EACH],
        *[(["small", "big"], key) for key in claims.OF_PAIRS]]
    ratio = next(row for row in scales["claims"] if row["claim"] == "C2")
    assert ratio["value"] == pytest.approx(2)
    floors, slopes, each, pairs = report.scale_tables(scales)
    assert floors == [{"floor": task, "small": small, "big": big} for task, small, big in
                      (("add", "2.0", "4.0"), ("copy", "3.0", "6.0"), ("all", "2.4", "4.9"))]
    assert [*slopes[0]] == ["slope", "raw", "centred", "share"]
    assert (slopes[0]["raw"], slopes[-1]["raw"]) == ("0.250", "0.250 (0.250 to 0.250)")
    assert [row["size"] for row in each] == ["small", "big"]
    assert [*each[0]] == ["size", *claims.AT_EACH]
    assert [[*row.values()] for row in pairs] == [["small, big", "2.00", "-"]]
    figure = report.figure_slopes(events)["slopes"]
    assert [ax.get_title().splitlines()[0] for ax in figure.axes] == [*report.SLOPES.values()]
    assert figure.axes[0].lines[-1].get_ydata() == pytest.approx([6 ** 0.5, 2 * 6 ** 0.5])

    one = claims.scales(events.subset(runs=[0]))
    assert one == {"floors": [], "claims": []} and report.scale_tables(one) == []


def test_a_slope_has_an_interval_where_one_is_known():
    row = {"slope": 0.021, "low": math.nan, "high": math.nan}
    assert report.slope_text(row) == report.slope_text({"slope": 0.021}) == "0.021"
    assert report.slope_text(row | {"low": -0.004, "high": 0.0521}) == "0.021 (-0.004 to 0.052)"


def test_what_is_measured_of_all_levels_at_once_is_drawn_and_not_dated(joint):
    """A line for each run, hollow of what was not measured; an eigenvalue where it converged."""
    rows, configs = [], {}
    for k, size in enumerate(("small", "big"), start=1):
        configs[size] = {"size": size, "levels": ["add-1", "copy-1"]}
        for step in range(0, 101, 10):
            rows.append((size, "add-1", step, "accuracy", step / 100))
            values = {"gradient_rank": 3 * k, "eigenvalue": -7.0 * k, "converged": step > 0}
            values |= {"llc": step - 20} if k == 1 else {}
            rows += [(size, "", step, f"joint.{name}", value) for name, value in values.items()
                     if step % 20 == 0]
    events = emergence.event_table(emergence.from_table(rows, configs))
    assert all(run.measures == [] for run in events.runs)
    figure = report.figure_joint(events)["joint"]
    assert [ax.get_title() for ax in figure.axes] == [title for title, _ in report.JOINT.values()]
    seen = [[[*map(list, line.get_data())] for line in ax.lines if line.get_linestyle() != "None"]
            for ax in figure.axes]
    hollow = [[line.get_ydata().tolist() for line in ax.lines if line.get_linestyle() == "None"]
              for ax in figure.axes]
    every = [0, 20, 40, 60, 80, 100]
    assert seen[0] == [[every, [3.0] * 6], [every, [6.0] * 6]]
    assert seen[1] == [[[], []], [[], []]], "nobody measured the Fisher rank"
    assert seen[2] == [[every[1:], [7.0] * 5], [every[1:], [14.0] * 5]]
    assert hollow == [[[], []], [[], []], [[7.0] * 5, [14.0] * 5], [[], []]], "what is negative"
    assert seen[3] == [[every, [-20, 0, 20, 40, 60, 80]], [[], []]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "big"]
    assert report.figure_joint(joint[0]) == {}, "where there is nothing"
    llc = [row for row in rows if not row[3].startswith("joint.") or row[3] == "joint.llc"]
    alone = emergence.event_table(emergence.from_table(llc, configs))
    assert report.figure_joint(alone) == {}, "every sweep has the LLC; the others are asked for"


def test_measures_are_scaled_and_stand_around_emergence(joint):
    figure = report.figure_measures(joint[0])["measures"]
    counts = [ax.get_title() for ax in figure.axes]
    assert counts == ["accuracy (16 curves)", "rankme (16 curves)", "llc (16 curves)"]
    x, y = figure.axes[0].lines[0].get_data()               # accuracy jumps at emergence
    assert set(y[x < 0.93]) == {0.0} and set(y[x >= 1]) == {1.0}
    assert vertical_lines(figure.axes[1]) == {1.0: (report.ACCURACY.lower(), "-")}


def test_a_measure_that_rises_evenly_is_on_its_way_at_emergence():
    """The llc is step / 400, seen every 40 steps.  Step 0 is left out; emergence is at 160."""
    figure = report.figure_measures(sweep(levels=("add-1",), measures=("llc",)))["measures"]
    x, y = figure.axes[2].lines[0].get_data()
    at_emergence = np.flatnonzero(np.isclose(x, 1))
    assert y[at_emergence] == pytest.approx((160 - 40) / (400 - 40))
    assert (np.diff(y) > 0).all() and 0 <= y.min() and y.max() <= 1


def test_measures_have_a_figure_whether_anything_emerges_or_not():
    rows = [row for row in table_of("nano-s0") if row["quantity"] != "accuracy"]
    rows += [row | {"value": 0.1} for row in table_of("nano-s0") if row["quantity"] == "accuracy"]
    events = emergence.event_table(emergence.from_table(rows, {"nano-s0": config_of()}))
    assert set(report.figure_measures(events)) == {"measures"}
    assert set(report.figure_curves(events)) == {"curves"}


def test_choices_show_every_combination_and_every_option(joint):
    events, findings, universe = joint
    left, right = report.figure_choices(findings, universe)["choices"].axes
    observed = left.lines[1].get_ydata()
    rates = universe.values["C4"]
    assert observed.tolist() == sorted(rates[:, 0])
    assert len(observed) == len(universe.specifications) == 4
    order = np.lexsort((np.median(rates[:, 1:], axis=1), rates[:, 0]))
    assert np.array_equal(left.lines[0].get_ydata(), np.median(rates[order, 1:], axis=1))

    shown = [row for row in findings["claims"] if "options" in row and not math.isnan(row["value"])]
    names = [label.get_text().replace("\n", " ") for label in right.get_xticklabels()]
    assert names == [row["claim"] + " *" * row["verdict"].startswith("cannot tell")
                     for row in shown] and "C4" in {name.removesuffix(" *") for name in names}
    options = [label.get_text() for label in right.get_yticklabels()]
    assert {"threshold 0.3", "threshold 0.5", "warmup True", "warmup False"} <= set(options)
    cells = np.asarray(right.images[0].get_array())
    assert cells.shape == (len(options), len(names))
    axis, option = options[0].split(" ")
    assert cells[0].tolist() == [row["options"][axis][option] for row in shown]
    assert [text.get_text() for text in right.texts] == [f"{100 * x:.0f}" for x in cells.flat]


def test_choices_have_no_figure_without_a_universe_or_an_emergence(joint):
    events, findings, universe = joint
    assert report.figure_choices(findings, None) == {}
    nothing = universe.values | {"C4": np.full_like(universe.values["C4"], math.nan)}
    assert report.figure_choices(findings, universe._replace(values=nothing)) == {}


# ------------------------------------------------------------------------------------------------
# Figures of single commands

def eval_row(model, step, task, value):
    return SimpleNamespace(model=model, step=step, task=task, metric="acc", value=value,
                           stderr=0.01)


def eval_event(model, task, emerged):
    return SimpleNamespace(model=model, task=task, chance=0.25, emergence=emerged)


def test_evals_draw_every_curve_with_chance_and_a_dot_at_emergence():
    rows = [eval_row(model, step, task, 0.25 + step / 2000 * (model == "large"))
            for task in ("sciq", "piqa") for model in ("small", "large") for step in (0, 500, 1000)]
    rows.append(eval_row("small", 500, "sciq", 9))
    rows[-1].metric = "f1"                                  # another metric of the same task
    events = [eval_event(model, task, (0, 500) if model == "large" else None)
              for task in ("sciq", "piqa") for model in ("small", "large")]
    figure = report.figure_evals(rows, events, {"sciq": 0.3})["evals"]
    sciq, piqa = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["sciq", "piqa"]
    curves = [container.lines[0].get_ydata() for container in sciq.containers]
    assert [list(curve) for curve in curves] == [[0.25] * 3, [0.25, 0.5, 0.75]]
    (dot,) = [line for line in sciq.lines if line.get_marker() == "o"]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (500, 0.5)
    for ax, chance in ((sciq, 0.3), (piqa, 0.25)):          # as given, or as the event has it
        levels = {line.get_ydata()[0] for line in ax.lines if line.get_color() == "0.5"}
        assert levels == {chance}
    assert [text.get_text() for text in sciq.get_legend().get_texts()] == ["small", "large"]


def test_compare_draws_rankme_its_interval_accuracy_and_both_spans():
    rows = []
    for step in (0, 16, 112):
        level = {"rankme": {"first": [1, step + 1, 2]}, "accuracy": step / 112,
                 "rankme_interval": {"first": [step, step + 2]}}
        rows.append({"step": step, "levels": {"facts": level, "grammar": level}})
    orders = [SimpleNamespace(task="facts", verdict="leads", onset=(0, 16), emergence=(16, 112)),
              SimpleNamespace(task="grammar", verdict="never", onset=None, emergence=None)]
    comparison = SimpleNamespace(orders=orders, steps=(0, 16, 112), rows=rows)
    figure = report.figure_compare(comparison)["compare"]
    facts, grammar, accuracy, _ = figure.axes
    assert [facts.get_title(), grammar.get_title()] == ["facts: leads", "grammar: never"]
    assert facts.lines[0].get_ydata().tolist() == [1, 17, 113]
    assert accuracy.lines[0].get_ydata() == pytest.approx([0, 1 / 7, 1])
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in facts.patches]
    assert spans == [(0, 16), (16, 112)] and not grammar.patches


# ------------------------------------------------------------------------------------------------
# PNG, settings, other processes

def test_the_users_own_settings_change_no_picture_and_stay(two_sizes):
    plain = report.draw(two_sizes.runs, two_sizes.dated_by)[0]["sizes"]
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 10}):
        assert report.draw(two_sizes.runs, two_sizes.dated_by)[0]["sizes"] == plain
        assert matplotlib.rcParams["font.size"] == 30
    height, width, _ = imread(io.BytesIO(plain)).shape
    assert (width, height) == (448, 400)


def test_draw_can_be_pickled_and_draws_all_that_needs_no_findings(joint):
    events, _, _ = joint
    function, runs = pickle.loads(pickle.dumps((report.draw, events.runs)))
    images, complaints = function(runs, events.dated_by)
    assert complaints == []
    assert set(images) == {"curves-nano", "curves-micro", "layers-nano", "layers-micro", "sizes",
                           "slopes", "measures"}
    assert all(image.startswith(b"\x89PNG") for image in images.values())


@pytest.mark.system
def test_another_process_draws_the_same_pictures(joint):
    events, _, _ = joint
    with ProcessPoolExecutor(1) as pool:
        elsewhere = pool.submit(report.draw, events.runs, events.dated_by).result()
    assert elsewhere == report.draw(events.runs, events.dated_by)


@pytest.mark.system
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_notebooks_backend_that_is_not_installed_does_no_harm(backend):
    code = ("import io, os, report; figure = report.Figure(); figure.subplots(); "
            "print(report.png({'x': figure})['x'][1:4], os.environ['MPLBACKEND'])")
    folder = Path(report.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"MPLBACKEND": backend})
    assert done.stdout.strip() == f"b'PNG' {backend}", done.stderr


# ------------------------------------------------------------------------------------------------
# Words

def claim_row(key, **changes):
    """The worst case for width: every number there is, and long ones."""
    claim = next(claim for claim in claims.CLAIMS if claim.key == key)
    row = {"claim": key, "text": claim.text, "v1": claim.v1, "v3": claim.v3, "v4": claim.v4,
           "value": 0.8765, "low": 0.4321, "high": 0.9876, "null": 0.5555, "p": 0.04,
           "p_holm": 0.0432, "over": "tasks", "form": claim.form, "share": 0.6789,
           "p_multiverse": 0.0021,
           "verdict": "as claimed, but chance gives it too; depends on persistence"}
    return row | changes


def test_claim_lines_fit_80_columns_and_begin_with_the_key_in_bold():
    for claim in claims.CLAIMS:
        lines = report.claim_lines([claim_row(claim.key)])
        assert max(len(line.plain) for line in lines) <= 80
        assert lines[0].plain == f"{claim.key}  {claim.text}"
        (bold,) = lines[0].spans
        assert (bold.start, bold.end, bold.style) == (0, len(claim.key), "bold")
        together = " ".join(line.plain.strip() for line in lines[1:])
        assert "chance" in together and "p .043" in together and "p .002" in together
        assert together.endswith("depends on persistence") and "\N{NO-BREAK SPACE}" not in together


def test_a_claim_without_a_value_has_its_verdict_alone():
    row = claim_row("C4", value=math.nan, low=None, high=None, null=math.nan, verdict="cannot tell")
    name, verdict = report.claim_lines([row])
    assert verdict.plain == "    cannot tell"
    cells = report.claim_cells(row)
    assert (cells["here"], cells["interval"], cells["chance"]) == ("-", "-", "-")


def test_cells_of_claims_are_short_and_never_minus_zero():
    for x, form, text in ((-0.03, "{:.1f}", "0.0"), (0.004, "{:.3f}", "0.004"), (-0.001, "{:.0%}",
                          "0%"), (-0.004, "{:.2f}", "0.00"), (-0.2, "{:+.1f}", "-0.2")):
        assert report.value_text(x, form) == text
    cells = report.claim_cells(claim_row("C4", value=-0.001, p_holm=1.0, p_multiverse=0.0004))
    assert list(cells.values())[3:9] == [
        "0%", "43% to 99% over tasks", "56%", "1", "68%", "<.001"]
    untested = report.claim_cells(claim_row("C5", p_holm=None, p=0.048))        # by its interval
    assert untested["p"] == ".048"
    row = claim_row("C4")
    del row["share"], row["p_multiverse"]                   # a study without a universe
    cells = report.claim_cells(row)
    assert (cells["choices"], cells["p of that share"]) == ("-", "-")
    assert "choices" not in report.evidence(cells)


def test_evidence_leaves_out_what_there_is_not():
    bare = dict(low=None, high=None, null=None, p_holm=None, p_multiverse=None)
    cells = report.claim_cells(claim_row("C1", **bare))
    assert report.evidence(cells).replace("\N{NO-BREAK SPACE}", " ") == (
        "paper all tasks; here 88%; choices 68%")
    cells = report.claim_cells(claim_row("C4 risk set"))    # of which the paper says nothing
    assert report.evidence(cells).startswith("here\N{NO-BREAK SPACE}0.9")


def test_tables_of_medians_dim_the_shams_and_say_never(two_sizes):
    tables = report.median_tables(claims.medians(two_sizes))
    assert [size for size, _ in tables] == ["nano", "micro"]
    shown = report.text_table(tables[0][1], "nano")
    assert [row.style for row in shown.rows] == [None, None, "dim"]
    add, sham = (tuple(row.values()) for row in tables[0][1][1:])
    assert add == ("add-2", "3.0", "200", "260", "60", "2/2/2")
    assert sham[0] == "sham-add-1" and sham[2:] == ("-", "never", "-", "0/0/2")


def test_sweeps_stand_side_by_side_with_an_unadjusted_p(joint):
    _, findings, _ = joint
    rows = [row | {"p": 0.031, "p_holm": 0.5} for row in findings["claims"]]
    screen = io.StringIO()
    table = report.side_by_side({"[b]add": findings, "other": findings | {"claims": rows}})
    Console(file=screen, highlight=False, width=80).print(table)
    _, first, second, legend = screen.getvalue().splitlines()
    assert first.startswith("[b]add") and f"{findings['lead_check']['median_onset']:.0f}" in first
    assert second.split()[-1] == ".031" and legend.startswith("onset: ")
    for step in (math.nan, math.inf):
        without = findings | {"lead_check": findings["lead_check"] | {"median_onset": step}}
        screen = io.StringIO()
        Console(file=screen, width=80).print(report.side_by_side({"a": without}))
        assert screen.getvalue().splitlines()[1].split()[2] == "-"


def test_sentences_of_the_joint_sweep_give_its_numbers(joint):
    _, findings, _ = joint
    lines = report.sentences(findings)
    check = findings["lead_check"]
    assert f"z = {check['z']:.2f}" in lines[1]
    assert f"The median onset is at step {check['median_onset']:.0f}." in lines[1]
    assert f"Of 4 shams 0 emerged, {check['sham_onsets']} rise above the others." in lines
    assert lines[0] == report.SENTENCES["rule shams"]
    assert "As shares of their ceilings, floors have a ratio of 1.00." in lines
    (mean,) = [line for line in lines if line.startswith("With any one run or task left out")]
    row = findings["claims"][0]
    assert f"{min(excess for excess, _ in row['without'].values()):.3f}" in mean
    assert row["centred"][1] or not any("without their mean" in line for line in lines)
    few = report.sentences(findings | {"claims": [row | {"centred": [0.0418, 2e-5]}]})
    assert "Of the states without their mean the mean excess is 0.042 (p <.001)." in few
    (llc,) = [line for line in lines if line.startswith("llc on the 11 snapshots of llc")]
    assert "rankme 100%" in llc and "accuracy" in llc and "It is not shown to lead." in llc
    assert not any("None" in line or "nan " in line or "nan%" in line for line in lines)


def forecast_row(adds, p=None):
    return {"features": ("llc", "llc slope"), "over": "task", "adds": adds, "p": p, "gain": 0.09,
            "low": 0.01, "high": 0.2, "gaining": 0.875, "runs": 2}


@pytest.mark.parametrize("adds, p, words", [
    (True, 0.003, "llc and llc slope adds to behaviour, 0.09 (0.01 to 0.20) nats an emergence, "
                  "p .003; 88% of all gain."),
    (False, 0.2, "llc and llc slope is not shown to add to behaviour"),
    (None, None, "llc and llc slope may add, p not asked for, to behaviour")])
def test_a_forecast_says_what_it_adds(adds, p, words, joint):
    _, findings, _ = joint
    lines = report.sentences(findings | {"forecasts": [forecast_row(adds, p)]})
    (line,) = [line for line in lines if line.startswith("Forecast")]
    assert line.startswith(f"Forecast with each task left out: {words}")


def test_sentences_leave_out_what_was_not_there(joint):
    _, findings, _ = joint
    check = findings["lead_check"] | {"shams": 0, "information": 0, "z": math.nan,
                                      "median_onset": math.inf, "onset_rule": "floor"}
    bare = findings | {"lead_check": check, "floor_ratio_of_shares": math.nan, "classes": [],
                       "claims": [], "leads": [], "forecasts": [],
                       "missing": ["nano-s7 was not started"]}
    rule, risk_set, shams = report.sentences(bare)
    assert rule.endswith("RankMe's floor.") and shams.startswith("Without sham controls")
    assert "no z" in risk_set and "Most task-levels show no onset." in risk_set
    assert "Missing: nano-s7 was not started." in report.story(joint[0], bare).happened


def test_examples_in_the_docstrings():
    results = doctest.testmod(report)
    assert results.failed == 0 and results.attempted >= 2


# ------------------------------------------------------------------------------------------------
# What happened

def spread(median, low=None, high=None):
    return {"median": median, "low": median if low is None else low,
            "high": median if high is None else high}


def level_row(**changes):
    """Three seeds of one task-level in which everything happens: a row of claims.medians."""
    row = {"size": "nano", "level": "add-2", "control": False, "seeds": 3, "collapsed": 3,
           "measured": 3, "with_accuracy": 3, "recovered": 3, "emerged": 3, "start": spread(5.31),
           "watched": 600, "floor": spread(1.5), "floor_step": spread(75), "onset": spread(139),
           "emergence": spread(363)}
    return row | changes


@pytest.mark.parametrize("changes, sentence", [
    ({}, "add-2: RankMe fell from 5.3 to 1.5 by step 75, began to recover at 139, and accuracy "
         "emerged at 363 (all 3 seeds)."),
    (dict(seeds=1, measured=1, with_accuracy=1, collapsed=1, recovered=1, emerged=1),
     "add-2: RankMe fell from 5.3 to 1.5 by step 75, began to recover at 139, and accuracy emerged "
     "at 363 (one seed)."),
    (dict(collapsed=2, emerged=1),
     "add-2: RankMe fell from 5.3 to 1.5 by step 75 (2 of 3 seeds), began to recover at 139, and "
     "accuracy emerged at 363 (1 of 3 seeds)."),
    (dict(collapsed=0, floor=spread(4.0)),
     "add-2: RankMe did not collapse (first 5.3, lowest 4.0); accuracy emerged at 363 (all 3 "
     "seeds)."),
    (dict(emerged=0, emergence=None),
     "add-2: RankMe fell from 5.3 to 1.5 by step 75 and began to recover at 139, but accuracy had "
     "not emerged for good by step 600 (all 3 seeds)."),
    (dict(recovered=0, onset=None),
     "add-2: RankMe fell from 5.3 to 1.5 by step 75 and did not recover, yet accuracy emerged at "
     "363 (all 3 seeds)."),
    (dict(recovered=0, onset=None, emerged=0, emergence=None),
     "add-2: RankMe fell from 5.3 to 1.5 by step 75 and did not recover; accuracy had not emerged "
     "for good by step 600 (all 3 seeds)."),
    (dict(onset=spread(400)),
     "add-2: RankMe fell from 5.3 to 1.5 by step 75 and began to recover at 400, no sooner than "
     "accuracy emerged, at 363 (all 3 seeds)."),
    (dict(collapsed=0, recovered=0, start=None, floor=None, floor_step=None, onset=None),
     "add-2: RankMe was not measured; accuracy emerged at 363 (all 3 seeds)."),
    (dict(collapsed=0, start=None, floor=None, floor_step=None, onset=None, recovered=0,
          emerged=0, emergence=None),
     "add-2: RankMe was not measured; accuracy had not emerged for good by step 600 (all 3 "
     "seeds).")])
def test_a_level_has_a_sentence_with_every_figure(changes, sentence):
    assert report.level_sentence(level_row(**changes), "step") == sentence


@pytest.mark.parametrize("changes, known, ending", [
    (dict(emerged=0, emergence=None), 0, "at 139, but accuracy was not measured (all 3 seeds)."),
    (dict(emerged=0, emergence=None, recovered=0, onset=None), 0,
     "and did not recover; accuracy was not measured (all 3 seeds)."),
    (dict(emerged=1), 2, "emerged at 363 (1 of 2 seeds) (accuracy was measured in 2 of 3 seeds)."),
    (dict(emerged=1), 1, "accuracy emerged at 363 (accuracy was measured in 1 of 3 seeds)."),
    (dict(collapsed=1, recovered=1, measured=1, emerged=1), 3,
     "at 139, and accuracy emerged at 363 (1 of 3 seeds) (RankMe was measured in 1 of 3 seeds)."),
    (dict(collapsed=1, recovered=2, measured=2, emerged=1), 1,
     "at 139, and accuracy emerged at 363 (accuracy was measured in 1 of 3 seeds, RankMe was "
     "measured in 2 of 3 seeds).")])
def test_an_accuracy_that_was_not_measured_is_not_called_absent(changes, known, ending):
    sentence = report.level_sentence(level_row(**changes, with_accuracy=known), "step")
    assert sentence.endswith(ending), sentence
    size = size_row(seeds=1, levels=3, with_accuracy=2, emerged=1, never=["add-3"],
                    order=[["add-4", 9]])
    assert report.size_sentences(size, "step")[1:] == [
        "1 of 2 emerged by step 2000 (add-4 at 9); in 156 of these RankMe had recovered before.",
        "Not by step 2000, in any seed: add-3.", "In 1 more, accuracy was not measured."]
    size |= dict(with_accuracy=0, emerged=0, order=[], never=[], watched=None)
    assert report.size_sentences(size, "step")[1:] == ["Accuracy was not measured."]
    size |= dict(with_accuracy=3, watched=90)                   # of several seeds, the shortest
    assert report.size_sentences(size, "step")[1:] == ["None of 3 emerged by step 90."]


def size_row(**changes):
    row = {"size": "nano", "seeds": 9, "levels": 24, "measured": 216, "with_accuracy": 216,
           "collapsed": 210, "recovered": 200, "emerged": 171, "rankme_first": 156,
           "start": spread(7.42), "floor": spread(2.4, 1.0, 3.2), "last_step": 2000,
           "watched": 2000, "order": [["sort-1", 69], ["modadd-2", 1452]],
           "never": ["add-3", "multiply-3"]}
    return row | changes


@pytest.mark.parametrize("changes, sentences", [
    ({}, ["RankMe collapsed in 210 of 216 capabilities (24 task-levels, 9 seeds), from 7.4 to 2.4 "
          "(range 1.0 to 3.2).",
          "171 of 216 emerged by step 2000 (first sort-1 at 69, last modadd-2 at 1452); in "
          "156 of these RankMe had recovered before.",
          "Not by step 2000, in any seed: add-3, multiply-3."]),
    (dict(collapsed=0, never=[]),
     ["RankMe collapsed in none of 216 capabilities (24 task-levels, 9 seeds): it was 7.4 at first "
      "and 2.4 at its lowest.",
      "171 of 216 emerged by step 2000 (first sort-1 at 69, last modadd-2 at 1452); in 156 "
      "of these RankMe had recovered before."]),
    (dict(levels=1, seeds=1, measured=1, with_accuracy=1, collapsed=1, emerged=1, rankme_first=0,
          order=[["add-1", 80]], never=[]),
     ["RankMe collapsed in 1 of 1 capabilities (1 task-levels, one seed), from 7.4 to 2.4 (range "
      "1.0 to 3.2).",
      "1 of 1 emerged by step 2000 (add-1 at 80); in 0 of these RankMe had recovered before."]),
    (dict(emerged=0, order=[], never=[f"add-{k}" for k in range(24)], seeds=1, measured=24,
          with_accuracy=24, collapsed=24),
     ["RankMe collapsed in 24 of 24 capabilities (24 task-levels, one seed), from 7.4 to 2.4 "
      "(range 1.0 to 3.2).", "None of 24 emerged by step 2000."]),
    (dict(measured=0, collapsed=0, start=None, floor=None, never=[f"add-{k}" for k in range(8)]),
     ["24 task-levels, 9 seeds; RankMe was not measured.",
      "171 of 216 emerged by step 2000 (first sort-1 at 69, last modadd-2 at 1452).",
      "Not by step 2000, in any seed: add-0, add-1, add-2, add-3, add-4, add-5 and 2 more."])])
def test_many_levels_are_grouped_into_a_few_sentences(changes, sentences):
    assert report.size_sentences(size_row(**changes), "step") == sentences


def made_up_story(joint, verdict="holds: above chance"):
    """The story of made-up findings: claim C4 has that verdict."""
    events, findings, _ = joint
    row = claim_row("C4", verdict=verdict, value=0.9, null=0.7)
    return report.story(events, findings | {"claims": [row], "sizes": [size_row()]})


def test_few_levels_have_a_sentence_each_and_the_other_sizes_a_summary(joint):
    events, findings, _ = joint
    sizes = [size_row(levels=1, seeds=3), size_row(size="micro")]
    found = report.story(events, findings | {"sizes": sizes, "claims": [], "levels": [
        level_row(), level_row(control=True, level="sham-add-1"), level_row(size="micro")]})
    assert found.happened[0].startswith("nano add-2: RankMe fell from 5.3")
    assert [line.split(":")[0] for line in found.happened] == ["nano add-2", *["micro"] * 3]


def test_the_story_says_what_chance_gives_unless_it_cannot_be_told(joint):
    (line,) = [x for x in made_up_story(joint).happened if "chance" in x]
    assert line == ("RankMe came first in 90% of emergences; tasks exchanged by chance give 70%: "
                    "holds: above chance.")
    assert "chance" not in " ".join(made_up_story(joint, "cannot tell: one run").happened)


def test_shams_alone_cannot_emerge_and_one_that_does_is_a_warning(joint):
    assert report.story(joint[0], joint[1] | {"sizes": [size_row(levels=0)]}).happened[0] == (
        report.HAPPENED["only shams"])
    events, findings, _ = joint
    check = findings["lead_check"] | {"sham_emergences": 2}
    lines = report.story(events, findings | {"lead_check": check}).happened
    assert "2 of 4 sham controls emerged, though they cannot be learned: trust no date here." in (
        lines)


def test_a_run_that_was_stopped_early_says_so(joint):
    events, findings, _ = joint
    stopped = emergence.event_table([emergence.replace(run, config=run.config | {"steps": 900})
                                     for run in events.runs])
    words = "Training was stopped at step 400 of 900: what comes later was not seen."
    assert words in report.story(stopped, findings).happened
    assert words not in report.story(events, findings).happened


@pytest.mark.parametrize("verdict, cannot, command", [
    ("one task", "one task has no other", "--task all --sizes nano --seeds 3"),
    ("one run", "there is one run", "--task copy --sizes nano,micro --seeds 3 --set lr=0.1"),
    ("needs RankMe", "RankMe was not measured",
     "--task copy --sizes nano,micro --seeds 2 --set lr=0.1 --measures rankme --out runs/rankme"),
    ("needs an emergence", "there is none by step 400",
     "--task copy --sizes nano,micro --seeds 2 --set lr=0.1 --steps 800 --out runs/longer"),
    ("the null cannot reach .05", "2 tasks can be exchanged in too few ways",
     "--task all --sizes nano --seeds 3"),
    ("needs shams, and --measures llc", "(llc)",
     "--task copy --sizes nano,micro --seeds 2 --set lr=0.1 --measures all "
     "--out runs/all-measures")])
def test_what_cannot_be_told_comes_with_the_command_that_can(verdict, cannot, command, joint):
    """The command is the recorded one, but for what is changed, its threads and its folder."""
    events, findings, universe = joint
    for typed in ("--task copy --out x --set threads=1 --set lr=0.1",
                  "--task=copy --out=x --set=threads=1 --set=lr=0.1"):
        words = ["python", "run.py", "sweep", *typed.split()]
        ours = emergence.event_table([
            emergence.replace(run, config=run.config | {
                "per_level": 10, "environment": {"command": words}}) for run in events.runs])
        found = made_up_story((ours, findings, universe), f"cannot tell: {verdict}")
        assert cannot in found.cannot and found.command == f"python run.py sweep {command}"
    assert made_up_story(joint, f"cannot tell: {verdict}").command == "", "no sweep of ours"


@pytest.mark.parametrize("verdict, stop, command", [
    ("one run", 0, "--seeds 3"), ("one run", 300, "--seeds 3 --set stop=300"),
    ("needs an emergence", 300, "--seeds 2 --steps 800 --out runs/longer"),
    ("one task", 300, "--task all --sizes nano --seeds 3")])
def test_the_advised_command_ends_where_the_run_has_come_to(verdict, stop, command, joint):
    """Begun with another stop: a run may go on, and its first command stays."""
    events, findings, universe = joint
    words = "python run.py sweep --task copy --set stop=100".split()
    ours = emergence.event_table([
        emergence.replace(run, config=run.config | {
            "per_level": 10, "stop": stop, "environment": {"command": words}})
        for run in events.runs])
    found = made_up_story((ours, findings, universe), f"cannot tell: {verdict}").command
    assert found.endswith(command) and "stop=100" not in found


def test_nothing_is_said_to_be_untold_where_all_is_told(joint):
    assert made_up_story(joint)[1:] == ("", "")


def test_screens_grow_from_the_story_to_every_claim(joint):
    events, findings, _ = joint
    screens = {}
    for show, lines in report.SHOWN.items():
        screen = io.StringIO()
        Console(file=screen, highlight=False, width=80).print(*lines(events, findings), sep="\n")
        screens[show] = screen.getvalue()
    counts = [len(screen.splitlines()) for screen in screens.values()]
    assert counts == sorted(set(counts)) and all("What happened" in x for x in screens.values())
    assert "task-level" not in screens["story"].partition("\n\n")[2]
    assert "add-2" in screens["events"] and "C7" not in screens["events"]
    for row in findings["claims"]:
        assert row["text"] in " ".join(screens["full"].split())
        short = " ".join(screens["claims"].split())
        assert (row["text"] in short) == report.told(row) and row["claim"] in short


AROUND = 3 + 4 + 2 + 3        # the plan; four runs; first look, analysing; report, watch, times

@pytest.mark.parametrize("tasks, sizes, shams", [
    (("modadd",), TWO_SIZES, ()),
    (("copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply"),
     TWO_SIZES[:1], ("sham-add-1", "sham-sort-1", "sham-copy-1", "sham-add-2"))])
def test_what_a_sweep_prints_is_at_most_forty_lines(tasks, sizes, shams):
    levels = (*[f"{task}-{k}" for task in tasks for k in (1, 2, 3)], *shams)
    events = sweep(sizes, levels=levels)
    findings = {"missing": [], **claims.study(events.runs), "levels": claims.medians(events),
                "sizes": claims.overview(events)}
    screen = io.StringIO()
    Console(file=screen, highlight=False, width=80).print(
        *report.SHOWN["events"](events, findings), sep="\n")
    lines = screen.getvalue().splitlines()
    assert len(lines) + AROUND <= 40, screen.getvalue()
    assert lines[0] == "What happened" and all(task in screen.getvalue() for task in tasks)


def test_many_levels_have_a_line_for_each_task_and_no_sham():
    rows = [level_row(level=f"{task}-{k}") for task in ("add", "copy", "sort", "chess", "go")
            for k in (1, 2, 3)]
    rows += [level_row(level="sham-add-1", control=True)]
    table, legend = report.short_tables(rows)
    assert len(table.rows) == 5 and legend.plain == report.DATES_LEGEND
    assert [column.header for column in table.columns] == [
        "task", "level 1", "level 2", "level 3"]
    assert list(table.columns[2].cells) == ["139 > 363"] * 5


# ------------------------------------------------------------------------------------------------
# The page

class Page(HTMLParser):
    """Well-formed or an AssertionError; `tags` are [(name, attributes)], `words` the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def picture():
    figure = matplotlib.figure.Figure(figsize=(1, 1))
    return report.png({"sizes": figure})["sizes"]


def test_the_page_is_well_formed_and_needs_no_other_file(joint):
    events, findings, _ = joint
    images = {"curves-nano": picture(), "curves-micro": picture(), "sizes": picture()}
    text = report.page("add+copy", events, findings, images)
    page = Page(text)
    names = [name for name, _ in page.tags]
    assert text.startswith("<!DOCTYPE html>") and not {"script", "link", "iframe"} & set(names)
    assert "http" not in text and "@import" not in text and "url(" not in text
    pictures = [attributes for name, attributes in page.tags if name == "img"]
    assert [attributes["alt"].split(":")[0] for attributes in pictures] == list(images)
    for attributes in pictures:
        assert attributes["src"].startswith("data:image/png;base64,iVBOR")
        assert len(attributes["alt"]) > len("curves-nano: ")
    assert "width=device-width" in text and "max-width: 40rem" in text      # it fits a telephone


def test_the_page_holds_every_claim_every_level_and_every_setting(joint):
    events, findings, _ = joint
    page = Page(report.page("add+copy", events, findings, {}, ["Figure sizes could not be drawn"]))
    for row in findings["claims"]:
        assert f"{row['claim']}\n{row['text']} {row['verdict']}" in page.words
    assert "4 runs (nano x 2, micro x 2), 5 task-levels in each" in page.words
    assert "400 steps, 41 snapshots" in page.words and "eval_examples: 1000" in page.words
    shams = [attributes for name, attributes in page.tags if attributes.get("class") == "sham"]
    assert len(shams) == 2                                  # one for each size
    results, _, settings = page.words.partition("How it was run")
    assert results.count("sham-add-1") == 2 and "sham-add-1" in settings
    assert "Figure sizes could not be drawn" in page.words
    assert "chance_log_prob" not in page.words


def test_the_first_screen_is_the_story_and_then_the_curves(joint):
    events, findings, _ = joint
    findings = findings | {"claims": [claim_row("C4", verdict="cannot tell: one task")]}
    text = report.page("add", events, findings, {"sizes": picture(), "curves-nano": picture()},
                       player="<video></video>")
    found = report.story(events, findings)
    places = [text.index(part) for part in (
        "What happened", 'class="card"', 'alt="curves-nano', "<video>", 'alt="sizes',
        "Every event", "What the paper claims:\n0 of 1 can be told")]
    assert places == sorted(places)
    words = Page(text[:places[2]].rpartition("<figure")[0] + "</body></html>").words
    assert found.cannot in words and all(line in words for line in found.happened)
    assert "<video>" not in report.page("add", events, findings, {})


def test_claims_are_folded_where_most_cannot_be_told(joint):
    events, findings, _ = joint
    told, untold = claim_row("C1", verdict="holds"), claim_row("C4", verdict="cannot tell: one run")
    for rows, opened in (([told, told, untold], True), ([told, untold, untold], False)):
        page = Page(report.page("add", events, findings | {"claims": rows}, {}))
        folds = [attributes for name, attributes in page.tags if name == "details"]
        claims_fold, first, *_ = folds[2:]                      # after "By size", "Every event"
        assert ("open" in claims_fold) == opened and first["class"] == "claim"
        kinds = [fold["class"] for fold in folds if "class" in fold]
        assert kinds.count("claim") + kinds.count("claim untold") == 3
        assert kinds[-1] == "claim untold", "what can be told comes first"


def test_a_word_is_explained_where_it_first_stands_and_the_keyboard_gets_there():
    met = []
    first = report.glossed("RankMe <fell> & shams recovered; RankMe", met)
    page = Page(f"<p>{first}</p>")
    terms = [attributes for name, attributes in page.tags if name == "dfn"]
    assert len(terms) == 4 and all(term["tabindex"] == "0" for term in terms)
    assert page.words == "RankMe <fell> & shams recovered; RankMe"
    assert [term["data-meaning"] for term in terms[:2]] == [
        report.GLOSSARY["rankme"], report.GLOSSARY["collapsed"]]
    assert report.glossed("rankme and a seed", met).count("<dfn") == 1
    assert set(report.WORDS.values()) <= set(report.GLOSSARY)


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window: the width of the screen -> a driver that shows the page."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for word in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update",
                 f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.mark.browser
def test_a_browser_shows_the_page_at_any_width_by_day_by_night_and_on_paper(
        browser, tmp_path, joint):
    events, findings, _ = joint
    path = tmp_path / "report.html"
    path.write_text(report.page("add", events, findings, report.draw(events.runs, {})[0]))

    def emulate(width, scheme="light", media="screen"):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]})
        browser.get(path.as_uri())

    ask = browser.execute_script
    papers = []
    for width, scheme in itertools.product((400, 1200), ("light", "dark")):
        emulate(width, scheme)
        assert ask("return document.documentElement.scrollWidth") <= width
        assert ask("return performance.getEntriesByType('navigation')[0].loadEventEnd") < 1000
        papers.append(ask("return getComputedStyle(document.body).backgroundColor"))
        edge = "return document.querySelector('.card').getBoundingClientRect().bottom"
        assert ask(edge) < 800, "what cannot be told is on the first screen"
    assert papers[0] == papers[2] != papers[1] == papers[3]

    term = browser.find_element("css selector", "dfn")          # the keyboard: the first stop
    browser.find_element("tag name", "body").send_keys("\t")
    assert ask("return document.activeElement") == term
    shown = "return getComputedStyle(document.querySelectorAll('dfn')[%d], '::after').content"
    assert report.GLOSSARY["rankme"] in ask(shown % 0) and ask(shown % 1) == "none"

    heights = []
    for media in ("screen", "print"):
        emulate(1200, media=media)
        heights.append(ask("return document.documentElement.scrollHeight"))
    assert heights[1] > heights[0] + 500, "on paper all is unfolded"


def test_the_page_escapes_every_name(joint):
    events, findings, _ = joint
    bad = "<script>alert('x')</script> & \"more\""
    levels = [row | {"level": bad, "size": bad} for row in findings["levels"]]
    rows = [row | {"verdict": bad, "text": bad} for row in findings["claims"]]
    changed = findings | {"levels": levels, "claims": rows, "missing": [bad]}
    text = report.page(bad, events, changed, {f"curves-{bad}": picture()}, [bad])
    page = Page(text)
    assert "<script" not in text and not any(name == "script" for name, _ in page.tags)
    assert page.words.count("<script>alert('x')</script>") > len(rows)
    (image,) = [attributes for name, attributes in page.tags if name == "img"]
    assert image["alt"].startswith(f"curves-{bad}: ")


# ------------------------------------------------------------------------------------------------
# Everything into a folder

FILES = {"findings.json", "events.csv", "report.html", "choices.png", "curves-nano.png",
         "curves-micro.png", "layers-nano.png", "layers-micro.png", "sizes.png",
         "slopes.png", "measures.png"}


def written(folder, sweep_of, drawing=None, width=80, player=None):
    """(names in the order of writing, what is printed)"""
    events, findings, universe = sweep_of
    names = []

    def noted(path, content):
        names.append(path.name)
        save(path, content)
    screen = io.StringIO()
    lines = report.write(folder, events, findings, universe, noted, drawing, player=player)
    Console(file=screen, highlight=False, width=width).print(*lines, sep="\n")
    return names, screen.getvalue()


def test_numbers_are_written_first_and_the_page_last(tmp_path, joint):
    names, screen = written(tmp_path, joint)
    assert names[:2] == ["findings.json", "events.csv"] and names[-1] == "report.html"
    assert set(names) == FILES and len(names) == len(FILES)
    assert {path.name for path in tmp_path.rglob("*.*")} == FILES
    assert "add-2" in screen and "C4 risk set" in screen
    assert "could not be drawn" not in screen
    last = f"Report: {tmp_path}/report.html"                   # a long path is wrapped
    assert screen.replace("\n", "").replace(" ", "").endswith(last.replace(" ", ""))
    page = Page((tmp_path / "report.html").read_text())
    assert tmp_path.name in page.words
    alternatives = [attributes["alt"] for name, attributes in page.tags if name == "img"]
    assert [text.partition(":")[0] for text in alternatives] == [
        "curves-nano", "curves-micro", "layers-nano", "layers-micro", "sizes", "slopes",
        "measures", "choices"]


@pytest.mark.parametrize("player, shown", [
    (None, ""), (lambda: "", ""), (lambda: "<video></video>", "<video></video>")])
def test_the_moving_picture_is_named_where_there_is_one(tmp_path, joint, player, shown):
    screen = written(tmp_path, joint, killed(), player=player)[1].replace("\n", "")
    command = f"python run.py watch {tmp_path}".replace(" ", "")
    assert (command in screen.replace(" ", "")) == bool(shown)
    assert ("<video></video>" in (tmp_path / "report.html").read_text()) == bool(shown)


@pytest.mark.parametrize("error", [ValueError("planted"), RuntimeError("planted")])
def test_a_damaged_film_costs_itself_alone(tmp_path, joint, error):
    def broken():
        raise error
    screen = written(tmp_path, joint, killed(), player=broken)[1]
    assert "No film is shown: planted." in screen and "watch" not in screen
    assert "No film is shown: planted." in Page((tmp_path / "report.html").read_text()).words


def test_figures_drawn_elsewhere_make_the_same_files(tmp_path, joint):
    events, _, _ = joint
    for name in ("here", "elsewhere"):
        (tmp_path / name / "sweep").mkdir(parents=True)
    written(tmp_path / "here/sweep", joint)
    future = Future()
    future.set_result(report.draw(events.runs, events.dated_by))
    written(tmp_path / "elsewhere/sweep", joint, future)
    for path in (tmp_path / "here").rglob("*.*"):
        other = tmp_path / "elsewhere" / path.relative_to(tmp_path / "here")
        assert path.read_bytes() == other.read_bytes(), path.name


def fails(*arguments):
    raise RuntimeError("out of ink")


@pytest.mark.parametrize("kind", ["curves", "choices"])
def test_a_figure_that_cannot_be_drawn_costs_only_itself(kind, tmp_path, joint, monkeypatch):
    monkeypatch.setitem(report.FIGURES, kind, (fails, "A caption."))
    names, screen = written(tmp_path, joint)
    assert set(names) == {name for name in FILES if not name.startswith(kind)}
    sentence = f"Figure {kind} could not be drawn (RuntimeError: out of ink)."
    assert sentence in screen.splitlines()
    assert sentence in Page((tmp_path / "report.html").read_text()).words


def killed():
    """The drawing of a process that is no more."""
    future = Future()
    future.set_exception(BrokenProcessPool("a process was terminated"))
    return future


def test_a_process_that_dies_costs_its_figures_and_a_sentence(tmp_path, joint):
    names, screen = written(tmp_path, joint, killed())
    assert set(names) == {"findings.json", "events.csv", "choices.png", "report.html"}
    sentence = "Most figures could not be drawn (BrokenProcessPool: a process was terminated)."
    assert sentence in screen.replace("\n", " ").replace("  ", " ")


def test_events_csv_has_a_row_for_each_event_empty_for_never(tmp_path, joint):
    events, _, _ = joint
    rows = list(csv.DictReader(io.StringIO(report.events_csv(events))))
    assert list(rows[0]) == "run size seed task level sham quantity event step".split()
    assert len(rows) == len(claims.event_rows(events))

    def steps(level, quantity, event):
        return {row["step"] for row in rows
                if (row["level"], row["quantity"], row["event"]) == (level, quantity, event)}
    assert steps("copy-2", "rankme", "onset") == {"200"}
    assert steps("copy-2", "accuracy", "emergence") == {"260"}
    assert steps("sham-add-1", "accuracy", "emergence") == {""}
    assert {row["sham"] for row in rows if row["level"] == "sham-add-1"} == {"True"}


def test_forty_columns_are_enough(tmp_path, joint):
    _, screen = written(tmp_path, joint, killed(), width=40)
    assert max(len(line) for line in screen.splitlines()) <= 40
