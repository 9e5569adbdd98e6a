"""Chapter 7: report.  Figures, sentences and a page: how a reader sees the findings.

The numbers come from emergence.py and claims.py.  Here they become pictures and words.  This file
dates no event and tests nothing, reads no run directory and knows nothing of torch.

    figure_...      events -> {name: Figure}; the table FIGURES at the end has their captions
    story           findings -> what happened, and what a sweep cannot tell, in sentences
    SHOWN           findings -> lines and tables for a terminal, in four lengths
    page            findings and pictures -> report.html, one file; only the film has a script
    write           all of it into the folder of a sweep, numbers first

Letters in shapes:  R runs, S snapshots, M data sets (the observed one, then shuffled ones).
"""
import base64
import codecs
import contextlib
import csv
import functools
import html
import io
import itertools
import json
import math
import os
import re
import shlex
import sys
import textwrap
import warnings
from operator import itemgetter
from typing import NamedTuple

import jinja2
import markupsafe
import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import claims
import emergence

# A notebook's MPLBACKEND may name a backend that is not installed here: hidden during the import.
_backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
import matplotlib
from matplotlib import style
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image                 # matplotlib brings it
if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles differ as well.
ACCURACY, RANKME, CONTROL = "#D55E00", "#0072B2", "0.6"
PALETTE = (RANKME, ACCURACY, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
NO_BREAK = "\N{NO-BREAK SPACE}"

# Decorators: matplotlib's defaults, whatever the user's matplotlibrc says.
default_style = style.context("default")
sweep_style = style.context(["default", {
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 8, "axes.titlepad": 3, "axes.labelsize": 8, "figure.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "legend.frameon": False}])


# ------------------------------------------------------------------------------------------------
# Tables that other programs wrote

NOTHING = ("", "None", "nan", "NaN", "null", "NA", "N/A", "<NA>", "-")      # not measured


def read_runs(path, text=""):
    """A file that read_table takes -> runs.

    text: "ours=theirs,...", the columns of long_rows; a name without = is ours and theirs."""
    named = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    named = [(ours, theirs if equals else ours) for ours, equals, theirs in named]
    for names in zip(*named):
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("--columns: expected OURS=THEIRS, several separated by commas, each "
                             f"name once, got {text!r}")
    unit = dict(named).get("step", "step")
    return emergence.from_table(read_table(path, dict(named)),
                                unit="step" if "step" in unit.lower() else unit)


def read_table(path, columns=None):
    """A .csv, .tsv, .json or .jsonl file -> rows for emergence.from_table: see long_rows.

    ValueError names the file, and what is wrong with it."""
    kind = path.suffix.lower()
    try:
        content = path.read_bytes()                             # UTF-16: of Excel, and PowerShell
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if kind == ".jsonl":
            rows = list(json_lines(text))
        elif kind == ".json":
            rows = json.loads(text)
        elif kind in (".csv", ".tsv"):
            mark = max(",;\t", key=text.partition("\n")[0].count)
            reader = csv.DictReader(io.StringIO(text), delimiter=mark, skipinitialspace=True)
            names = [name for name in reader.fieldnames or () if name]
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"there are two columns {twice[0]!r}")
            rows = list(reader)
        else:
            raise ValueError("expected a sweep's directory, or a .csv, .tsv, .json or .jsonl file")
        if not (rows and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("expected rows, each with the names of its columns")
        return list(long_rows(rows, columns or {}))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path}: {str(error)[:300]}") from None


def json_lines(text):
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            yield from [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:                   # it knows its own line alone
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None


def long_rows(rows, columns):
    """Dicts with any columns -> dicts with the columns of emergence.COLUMNS, and numbers in them.

    A table without the column quantity has a column for each: all that begin neither with _ nor
    with wall, nor end with W&B's __MIN and __MAX.  W&B's "a - b" is quantity b of run a.
    columns: {ours: theirs} of columns, and of quantities: if there are any, others are not read.
      One level's quantity may be called "add-1/accuracy".
    ValueError for a missing column or quantity, and for what is no number."""
    ours, settings = {theirs: name for name, theirs in columns.items()}, emergence.SETTINGS
    named, met = [name for name in columns if name not in emergence.COLUMNS], {}
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"row {number} has more cells than the header")
        names = [ours.get(name, name.lower() if name.lower() in emergence.COLUMNS else name)
                 for name in map(str, row)]
        if len(set(names)) < len(names):
            raise ValueError(f"row {number} has two columns for one of {', '.join(names)}")
        row = {name: x for name, x in zip(names, row.values())
               if name and not name.startswith("Unnamed:")}     # pandas' own count of rows
        needed = {"step", *columns.keys() - named}
        needed |= {"quantity", "value"} if {"quantity", "value"} & row.keys() else set()
        for name in sorted(needed - row.keys()):
            raise ValueError(f"row {number} has no {columns.get(name, name)!r}, only "
                             f"{', '.join(map(str, row))}; --columns OURS=THEIRS says what is what")
        step = number_in(row.pop("step"), f"row {number}: step")
        place = {name: row.pop(name, None) for name in ("run", "level")}
        place = {name: "" if x is None else str(x) for name, x in place.items()}    # run 0 is one
        if "quantity" in row:
            cells = {row.pop("quantity"): row.pop("value")}
            cells |= {name: row[name] for name in settings if name in row}
        else:
            cells = {name: x for name, x in row.items()
                     if not name.startswith(("_", "wall", "Wall"))
                     and not name.endswith(("__MIN", "__MAX"))}
        if not 0 <= step < math.inf and cells.keys() - {*settings}:
            raise ValueError(f"row {number}: step is {step:g}, no number from 0 on")
        for name, cell in cells.items():
            run, _, quantity = name.rpartition(" - ") if place["run"] == "" else ("", "", name)
            quantity = met.setdefault(quantity, ours.get(quantity, quantity))
            if not named or quantity in (*named, *settings):
                renamed = columns.get(quantity, quantity) != quantity
                level, _, last = quantity.rpartition("/") if renamed else ("", "", quantity)
                yield {"run": place["run"] or run or "run", "level": place["level"] or level,
                       "step": step, "quantity": last, "value":
                       cell if name == "size" else number_in(cell, f"row {number}: {name}")}
    for name in set(named) - set(met.values()):
        raise ValueError(f"there is no {columns[name]!r}, only {', '.join(map(str, met))}")


def number_in(cell, place):
    try:
        return math.nan if str(cell).strip() in NOTHING else float(cell)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{place} is {cell!r:.60}, no number; --columns says what is "
                         "read") from None


# ------------------------------------------------------------------------------------------------
# What the figures share

def sheets(kind, events, width, height, top, left=0.5, right=0.25, bottom=0.4, key=(), **gaps):
    """Figures that show every task-level: yields (name, Figure, [(cell of its grid, panel)]).

    One task: one figure, with a row for each size.
    Several tasks: a figure for each size, with a row for each task.
    A panel, width x height inches: a row of claims.medians, its title, runs, and level's place.
    The title says in how many runs the level emerges, where that is not all or none."""
    several = len(set(events.only(shams=False).tasks)) > 1
    figures = {}                                            # {name: {name of a row: panels}}
    for medians in claims.medians(events):
        size, level = medians["size"], medians["level"]
        if several:
            name, row, title = f"{kind}-{size}", emergence.split_level(level)[0], level
            name = name.removesuffix("-")                   # runs of a table may have no size
        else:
            name, row, title = kind, size, f"{size}   {level}".strip()
        if 0 < medians["emerged"] < medians["with_accuracy"]:
            title += f" (emerges in {medians['emerged']} of {medians['with_accuracy']})"
        if not medians["control"]:
            runs = [run for run in events.runs if run.config["size"] == size]
            panel = medians | {"title": title, "runs": runs, "k": runs[0].levels.index(level)}
            figures.setdefault(name, {}).setdefault(row, []).append(panel)

    # margins by hand: matplotlib's layout engines take as long for 50 panels as drawing them
    for name, rows in figures.items():
        columns = max(len(row) for row in rows.values())
        w = columns * width + left + right
        together = int(w / 1.15)                                # entries of the key in a row
        above = top + 0.17 * math.ceil(len(key) / together)
        h = len(rows) * height + bottom + above
        figure = Figure(figsize=(w, h))
        figure.subplots_adjust(left / w, bottom / h, 1 - right / w, 1 - above / h, **gaps)
        if key:
            figure.legend(handles=key, loc="upper center", ncols=min(len(key), together))
        grid = figure.add_gridspec(len(rows), columns)
        yield name, figure, [(grid[i, j], panel) for i, row in enumerate(rows.values())
                             for j, panel in enumerate(row)]


def steps_axis(ax, steps):
    """Logarithmic, and yet step 0 has a place and the first steps have room."""
    last, least = max(steps), min((step for step in steps if step > 0), default=1)
    linear = max(least, min(10, last / 10))                 # 10, but for epochs, or tokens
    ax.set_xscale("symlog", linthresh=linear, linscale=0.6)
    ax.set_xlim(0, last or 1)
    ax.xaxis.set_major_formatter("{x:,g}")


def rank_axis(ax, top):
    """Effective ranks: a tick at each power of two."""
    if not np.isfinite(top):                                # RankMe was not measured
        return ax.set_yticks([])
    ax.set_yscale("log", base=2)
    ticks = [2 ** k for k in range(11) if 2 ** k <= top]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.set_ylim(0.9, 1.4 * top)


def steps_of(runs):
    """(S,) the steps of all runs."""
    return np.unique(np.concatenate([run.steps for run in runs]))


def on_common_steps(runs, curves):
    """steps_of(runs), and their curves there, (R, S) or (R, layers, S).

    Between two snapshots a curve is a line; NaN before its first and after its last."""
    steps = steps_of(runs)

    def on_all(curve, own):
        known = ~np.isnan(curve)
        if not known.any():
            return np.full(len(steps), math.nan)
        return np.interp(steps, own[known], curve[known], left=math.nan, right=math.nan)
    return steps, np.array([np.apply_along_axis(on_all, -1, curve, run.steps)
                            for run, curve in zip(runs, curves)])


def band(ax, runs, curves, colour, linestyle="-"):
    """Several seeds: median as a line, range as a band.  curves: (S,) of each run."""
    steps, values = on_common_steps(runs, curves)
    there = ~np.isnan(values).all(axis=0)
    steps, values = steps[there], values[:, there]
    if len(values) > 1:
        low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        ax.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
    linewidth = 0.7 if colour == CONTROL else 1.3
    ax.plot(steps, np.nanmedian(values, axis=0), linestyle, color=colour, linewidth=linewidth)


def panels(names, columns, width, height):
    """A panel for each name, so many to a row, and room for a key: (Figure, {name: axes})."""
    rows, columns = math.ceil(len(names) / columns), min(columns, len(names))
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.6), layout="constrained")
    return figure, {name: figure.add_subplot(rows, columns, i, title=name)
                    for i, name in enumerate(names, 1)}


def training_unit(events):
    return f"training {events.runs[0].config['unit']}"


# ------------------------------------------------------------------------------------------------
# The figures of a sweep

@sweep_style
def figure_curves(events, accuracy=None, rankme=None):
    """Accuracy and RankMe against steps, a panel for each task-level: {name: Figure}.

    events: an EventTable; or steps, with accuracy and perhaps RankMe as two more lists."""
    if accuracy is not None:
        curves = {"accuracy": accuracy, "rankme": [] if rankme is None else rankme}
        events = emergence.event_table(emergence.from_table(
            ("", "", step, name, value) for name, curve in curves.items()
            for step, value in zip(events, curve)))
    held_back = any(run.held_back for run in events.runs)
    accuracy = "accuracy on unseen operands" if held_back else "accuracy"
    entries = [                                             # a date is a line that stands upright
        (True, accuracy, ACCURACY, "-"), (held_back, "on seen ones", ACCURACY, ":"),
        (True, "emergence", ACCURACY, "|"), (True, "chance", "black", ":"),
        (True, "RankMe", RANKME, "-"), (True, "its onset (dashed)", RANKME, "|"),
        (any(events.shams), "sham controls", CONTROL, "-")]
    key = [Line2D([], [], label=label, color=colour, markersize=9,
                  **({"marker": line, "linestyle": ""} if line == "|" else {"linestyle": line}))
           for shown, label, colour, line in entries if shown]

    figures = {}
    for name, figure, cells in sheets("curves", events, 2.45, 1.75, 0.3, key=key, wspace=0.13,
                                      hspace=0.32):
        for cell, panel in cells:
            upper, lower = cell.subgridspec(2, 1, hspace=0).subplots(sharex=True)
            curves_panel(upper, lower, events, panel)
            if held_back:
                seen = [run.table("accuracy_train")[panel["k"]] for run in panel["runs"]]
                band(upper, panel["runs"], seen, ACCURACY, linestyle=":")
            if cell.is_first_col():
                upper.set_ylabel("accuracy")
                lower.set_ylabel("RankMe")
            if cell.is_last_row():
                lower.set_xlabel(training_unit(events))
        figures[name] = figure
    return figures


def curves_panel(upper, lower, events, panel):
    """Accuracy in the upper axes, RankMe in the lower ones."""
    runs, by = panel["runs"], events.dated_by

    # the controls lie behind the curves of the level
    shams = [runs[0].levels.index(level) for level in events.only(shams=True).levels]
    for k in (*shams, panel["k"]):
        accuracy = [run.accuracy[k] for run in runs]
        rankme = [run.rankme_at(by["position"], by["layer"])[k] for run in runs]
        band(upper, runs, accuracy, CONTROL if k in shams else ACCURACY)
        band(lower, runs, rankme, CONTROL if k in shams else RANKME)
    rank_axis(lower, lower.dataLim.ymax)
    chance = runs[0].per_level("chance", 0.0)[panel["k"], 0]
    upper.axhline(chance, color="black", linestyle=":", linewidth=0.7)

    # the two events, in both axes
    for event, colour, linestyle in (("emergence", ACCURACY, "-"), ("onset", RANKME, "--")):
        if panel[event]:
            step = panel[event]["median"]
            for ax in (upper, lower):
                ax.axvline(step, color=colour, linestyle=linestyle, linewidth=0.9, alpha=0.9)

    steps_axis(lower, steps_of(runs))
    upper.set_title(panel["title"])
    upper.set_ylim(-0.03, 1.03)
    upper.set_yticks([0, 1])


def names_of_layers(run):
    """The layers of run.rankme_layers("first"), from the embedding to the final norm."""
    found = {quantity: layers for quantity, layers in run.layer_names.items()
             if quantity.partition(".")[0] == "rankme"}
    names = found.get("rankme.first") or next(iter(found.values()))
    if names[0] == "0":                                     # places in a list of hidden states
        names = ["embedding", *names[1:-1], "final norm"]
    return [name.replace("_", " ") for name in names]


@sweep_style
def figure_layers(events):
    """RankMe of every layer (upwards) at the first answer token, median over seeds."""
    figures = {}
    if any((~np.isnan(run.rankme_layers("first")).all((0, 2))).sum() < 2 for run in events.runs):
        return {}
    for name, figure, cells in sheets("layers", events, 2.3, 1.15, top=0.25, left=0.75, right=0.9,
                                      wspace=0.1, hspace=0.5):
        for cell, panel in cells:
            names = names_of_layers(panel["runs"][0])       # of runs that have the same
            runs = [run for run in panel["runs"] if names_of_layers(run) == names]
            layers = [run.rankme_layers("first")[panel["k"]] for run in runs]       # (layers, S)
            steps, values = on_common_steps(runs, layers)                   # (R, layers, S)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)             # layers of NaN
                values = np.nanmedian(values, axis=0)

            # pcolormesh wants the edges of the rectangles, one more than there are rectangles
            ax = figure.add_subplot(cell)
            x = np.append(steps, steps[-1] + 1)
            y = np.arange(len(values) + 1) - 0.5
            mesh = ax.pcolormesh(x, y, values, norm=LogNorm(1, 32), rasterized=True)
            for colour, linewidth in (("black", 2), ("white", 1)) if panel["emergence"] else ():
                ax.axvline(panel["emergence"]["median"], color=colour, linewidth=linewidth)

            # both ends have a label, and about four of the blocks
            steps_axis(ax, steps)
            last = len(values) - 1
            shown = [0, *range(1 + last // 10, last, max(1, (last - 1) // 4)), last]
            labels = [names[k] for k in shown] if cell.is_first_col() else []
            ax.set_yticks(shown, labels, fontsize=6)
            ax.set_title(panel["title"])
            ax.spines[:].set_visible(True)
            if cell.is_last_row():
                ax.set_xlabel(training_unit(events))

        # one colour bar for all panels, on their right
        grid = figure.subplotpars
        beside = figure.add_axes((grid.right + 0.02, grid.bottom, 0.012, grid.top - grid.bottom))
        bar = figure.colorbar(mesh, cax=beside, ticks=[1, 2, 4, 8, 16, 32], format="{x:g}",
                              extend="max")
        bar.ax.minorticks_off()
        bar.set_label("RankMe\n(white: emergence)")
        figures[name] = figure
    return figures


@sweep_style
def figure_sizes(events):
    """RankMe of each task, a line for each size: the collapse at every scale, on one grid."""
    real = events.only(shams=False)
    sizes = {real.runs[own.argmax()].config["size"]: real.subset(runs=own)
             for own in claims.by_size(real)}
    drawn = figure_arms([sizes]) if len(sizes) > 1 and np.isfinite(real.floor).all() else {}
    return {"sizes": figure for figure in drawn.values()}


@sweep_style
def figure_slopes(events):
    """Floors of tasks against parameters: raw, of centred states, as shares of the ceiling.

    A panel for each kind of claims.floor_slopes; dashed is the mean over tasks."""
    real = events.only(shams=False)
    several = len(claims.by_size(real)) > 1 and len(real.owner) > 1
    rows = claims.floor_slopes(real) if several else []
    panels = {kind: list(own) for kind, own in itertools.groupby(rows, itemgetter("kind"))}
    if not panels:
        return {}
    parameters = {run.config["size"]: run.config["parameters"] for run in real.runs}
    figure = Figure(figsize=(2.6 * len(panels) + 1.2, 2.9), layout="constrained")
    for ax, (kind, own) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):
        for k, row in enumerate(own):
            mean = row["task"] == "all"
            ax.plot([parameters[size] for size in row["floors"]], [*row["floors"].values()],
                    MARKERS[k % 3] + ("--" if mean else "-"), label=row["task"], markersize=3,
                    color="black" if mean else PALETTE[k % len(PALETTE)],
                    linewidth=2 if mean else 0.9)
        ax.set_title(f"{SLOPES[kind]}\nparameters^{slope_text(row)}")
        ax.set_xscale("log")
        ax.set_xticks([parameters[size] for size in row["floors"]], [*row["floors"]])
        ax.minorticks_off()
        rank_axis(ax, ax.dataLim.ymax)
        if kind == "share":
            ticks = (.01, .02, .03, .05, .1, .2, .5, 1)
            ax.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    # one ratio of top and bottom in all panels: equal slopes look equal
    least, most = np.log(np.transpose([ax.dataLim.intervaly for ax in figure.axes]))
    reach = (most - least).max() / 2 + 0.2
    for ax, middle in zip(figure.axes, (least + most) / 2):
        ax.set_ylim(math.exp(middle - reach), math.exp(middle + reach))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center")
    figure.supylabel("floor")
    return {"slopes": figure}


def aligned_curves(events):
    """x, log10 of step / step of emergence; {name: (curves, points)}, each scaled to 0 ... 1.

    Where nothing emerges, the last step takes its place."""
    x, found, by = np.linspace(-2, 1, 61), {}, events.dated_by
    last = np.array([[run.steps[-1]] for run in events.runs])               # (R, 1)
    some = np.isfinite(events.emergence).any()
    for run, emergences in zip(events.runs, np.where(some, events.emergence, last)):
        tables = {"accuracy": run.accuracy, "rankme": run.rankme_at(by["position"], by["layer"])}
        tables |= {name: run.table(name) for name in run.measures}
        for name, table in tables.items():
            for curve, emerged in zip(table[events.rows], emergences):
                used = (run.steps > 0) & ~np.isnan(curve)                   # 0 has no logarithm
                values = curve[used]
                if 0 < emerged < math.inf and len(values) > 2 and np.ptp(values) > 0:
                    found.setdefault(name, []).append(np.interp(
                        x, np.log10(run.steps[used] / emerged),
                        (values - values.min()) / np.ptp(values), left=math.nan, right=math.nan))
    return x, {name: np.array(curves) for name, curves in found.items()}


@sweep_style
def figure_measures(events):
    """Every measure along training, with emergence at 1 on the step axis: median, middle half."""
    log_ratios, scaled = aligned_curves(events.only())
    if not scaled:
        return {}
    figure, axes = panels(scaled, 4, 2.1, 1.75)
    for ax, (name, curves) in zip(axes.values(), scaled.items()):           # (curves, points)
        known = (~np.isnan(curves)).sum(axis=0)
        there = known >= math.ceil(len(curves) / 2)         # elsewhere too few for a median
        low, middle, high = np.nanquantile(curves[:, there], (0.25, 0.5, 0.75), axis=0)
        x = 10 ** log_ratios[there]
        colour = ACCURACY if name == "accuracy" else RANKME
        ax.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        ax.plot(x, middle, color=colour, linewidth=1.3)
        ax.axvline(1, color=ACCURACY, linewidth=0.9)
        ax.set_xscale("log")
        ax.set_xticks([0.01, 0.1, 1, 10], [".01", ".1", "1", "10"])
        ax.set_yticks([0, 1], ["lowest", "highest"])
        ax.set(xlim=(0.01, 10), ylim=(-0.05, 1.05))
        ax.label_outer()
        ax.tick_params(labelbottom=list(axes).index(name) + 4 >= len(axes))     # none below it
        ax.set_title(f"{name.replace('_', ' ')} ({len(curves)} curves)")
    what = "that of emergence" if np.isfinite(events.only().emergence).any() else "the last one"
    figure.supxlabel(f"{training_unit(events)} / {what}")
    return {"measures": figure}


JOINT = {                             # title, and the scale of the axis
    "gradient_rank": ("gradient covariance rank", {"value": "linear"}),
    "fisher_rank": ("Fisher rank", {"value": "linear"}),
    "eigenvalue": ("|top Hessian eigenvalue|; hollow: negative", {"value": "log"}),
    "llc": ("LLC", {"value": "symlog", "linthresh": 1})}


@sweep_style
def figure_joint(events):
    """Measures of the loss of all task-levels at once, against steps: a line for each run."""
    runs = [run for run in events.runs if {f"joint.{name}" for name in JOINT} & {*run.curves}]
    styles = arm_styles(dict.fromkeys(run.config["size"] for run in runs))
    if not any("joint.eigenvalue" in run.curves for run in runs):           # the LLC alone
        return {}
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    for ax, (name, (title, scale)) in zip(figure.subplots(2, 2).flat, JOINT.items()):
        for run in runs:
            values, converged = (run.table(f"joint.{key}")[0] for key in (name, "converged"))
            used = ~np.isnan(values) & ((converged != 0) | (name != "eigenvalue"))
            steps, values, size = run.steps[used], values[used], run.config["size"]
            shown = np.abs(values) if scale["value"] == "log" else values
            hollow, how = values < shown, {"color": styles[size][0], "marker": "o", "ms": 3.5}
            ax.plot(steps, shown, linestyle=styles[size][1], linewidth=1, label=size, **how)
            ax.plot(steps[hollow], shown[hollow], linestyle="", markerfacecolor="white", **how)
        ax.set_title(title)
        ax.set_yscale(**scale)
        steps_axis(ax, steps_of(runs))
    labels = dict(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(labels.values(), labels.keys(), loc="outside right center")
    figure.supxlabel(training_unit(events))
    return {"joint": figure}


@sweep_style
def figure_traces(draws, mean, noise_only):
    """The chains of an LLC, draw by draw: (C, n) in nats times nbeta."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.subplots()
    for trace in draws:
        ax.plot(trace, color=RANKME, linewidth=0.7, alpha=0.7)
    ax.axhline(mean, color=ACCURACY, linewidth=1.3, label="mean, less the bias")
    ax.axhline(noise_only, color=CONTROL, linestyle="--", label="noise alone")
    ax.set(xlabel="draw", ylabel="nbeta (L(w) - L(w0))")
    ax.legend()
    return {"traces": figure}


@sweep_style
def figure_choices(findings, universe):
    """How far the claims depend on choices of analysis."""
    rates = universe.values["C4"] if universe else np.array([[math.nan]])   # (combinations, M)
    if np.isnan(rates).all() or min(rates.shape) < 2:
        return {}
    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))

    # left: a rate for each combination of choices, sorted by the observed one
    rates = rates[np.lexsort((np.median(rates[:, 1:], axis=1), rates[:, 0]))]
    low, middle, high = np.quantile(rates[:, 1:], (0.025, 0.5, 0.975), axis=1)
    left.fill_between(range(len(rates)), low, high, color=CONTROL, alpha=0.4, linewidth=0,
                      label="tasks exchanged: middle 95%")
    left.plot(middle, color="0.4", linewidth=0.8, linestyle="--", label="tasks exchanged: median")
    left.plot(rates[:, 0], color=RANKME, linewidth=1.6, label="observed")
    left.set_xlabel(f"{len(rates)} combinations of choices, sorted")
    left.set_ylabel("share of emergences with RankMe first")
    left.set_ylim(-0.02, 1.02)
    left.legend(loc="lower right")

    # right: a column for each claim, a row for each option, a line between one choice and the next
    rows = [row for row in findings["claims"] if "options" in row and not missing(row["value"])]
    options = [(axis, option) for axis, shares in rows[0]["options"].items() for option in shares]
    cells = np.array([[row["options"][axis][option] for row in rows] for axis, option in options])
    right.imshow(cells, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for (i, j), value in np.ndenumerate(cells):
        colour = "white" if value > 0.8 else "black"
        right.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    for i in range(1, len(options)):
        if options[i][0] != options[i - 1][0]:
            right.axhline(i - 0.5, color="black", linewidth=0.6)
    names = [row["claim"].replace(" ", "\n") + "\n*" * row["verdict"].startswith("cannot tell")
             for row in rows]
    right.set_xticks(range(len(rows)), names)
    right.set_yticks(range(len(options)), [" ".join(option) for option in options])
    right.set_title("% of the combinations with this option in which the value passes", pad=6)
    right.tick_params(length=0)
    right.spines[:].set_visible(True)
    return {"choices": figure}


# ------------------------------------------------------------------------------------------------
# The figures of a sweep with arms

def arm_styles(names):
    """{name of an arm: (colour, line)}.  Doses of one intervention share a colour.

    Those of RankMe and accuracy come last.

    >>> [style[1] for style in arm_styles(["none", "rank-up", "rank-up 3"]).values()]
    ['-', '-', '--']
    >>> [style[1] for style in arm_styles(["nano", "micro", "small"]).values()]
    ['-', '--', ':']
    """
    kinds, styles = [name.partition(" ")[0] for name in names], {}
    order, colours = list(dict.fromkeys(kinds)), (*PALETTE[2:], *PALETTE[:2])
    for i, (name, kind) in enumerate(zip(names, kinds)):
        dose = kinds[:i].count(kind) if len(order) < len(kinds) else i
        styles[name] = colours[order.index(kind) % len(colours)], DASHES[dose % len(DASHES)]
    return styles


@sweep_style
def figure_arms(experiments):
    """RankMe of each task in every arm, with emergence of its levels on the curve.

    experiments: [{name of an arm: its EventTable without shams}]."""
    figures = {}
    for number, arms in enumerate(experiments, 1):
        first, styles = next(iter(arms.values())), arm_styles(arms)
        figure, axes = panels(dict.fromkeys(first.tasks), 4, 2.4, 1.9)
        for (name, events), (task, ax) in itertools.product(arms.items(), axes.items()):
            own = [k for k, other in enumerate(events.tasks) if other == task]
            by, rows = events.dated_by, [events.rows[k] for k in own]
            steps, rankme = on_common_steps(events.runs, [
                run.rankme_at(by["position"], by["layer"])[rows] for run in events.runs])
            curve = np.exp(np.log(rankme).mean(axis=(0, 1)))                # (S,)
            colour, line = styles[name]
            shown = {"linewidth": 1.8, "zorder": 3} if name == "none" else {"linewidth": 1}
            ax.plot(steps, curve, linestyle=line, color=colour, **shown)
            for k, step in zip(own, np.median(events.emergence[:, own], axis=0)):
                if np.isfinite(step):
                    ax.plot(step, np.interp(step, steps, curve), marker_of(events.levels[k]),
                            color=colour, markersize=5, markeredgecolor="white",
                            markeredgewidth=0.5, zorder=4)
            steps_axis(ax, steps_of(run for arm in arms.values() for run in arm.runs))
            rank_axis(ax, ax.dataLim.ymax)
        key = [Line2D([], [], color=colour, linestyle=line, label=f"{name} ({len(events.runs)})")
               for (name, events), (colour, line) in zip(arms.items(), styles.values())]
        figure.legend(handles=key + level_keys(first.levels), loc="outside upper center",
                      ncols=min(5, 2 * len(axes)))
        figure.supylabel("RankMe, geometric mean")
        figure.supxlabel(training_unit(first))
        figures["arms" if len(experiments) == 1 else f"arms-{number}"] = figure
    return figures


def marker_of(level):
    """It tells the levels of a task apart."""
    return MARKERS[(int(emergence.split_level(level)[1] or 1) - 1) % 3]


def level_keys(levels):
    """What marker_of each level means."""
    markers = {emergence.split_level(level)[1]: marker_of(level) for level in levels}
    return [Line2D([], [], color="0.4", marker=marker, linestyle="", label=f"level {number}")
            for number, marker in sorted(markers.items())]


@sweep_style
def figure_shifts(effects):
    """A number line for each task: by which factor emergence moves, with its interval.

    effects: of claims.study_arms.  A line for each arm and level that emerges in one arm at least;
    without an interval, a marker; hollow where a run does not emerge: the factor is a bound."""
    names = [contrast(row) for row in effects]
    tasks = dict.fromkeys(emergence.split_level(one["level"])[0]
                          for row in effects for one in row["levels"])
    figure, axes = panels(tasks, 4, 2.4, 0.6 + 0.22 * len(names))
    arms = {row[which] for row in effects for which in ("control", "treated")}
    styles = arm_styles(sorted(arms, key=lambda arm: (arm != "none", arm)))     # as in figure_arms
    for (place, row), (task, ax) in itertools.product(enumerate(effects), axes.items()):
        colour = styles[row["treated"]][0]
        levels = [one for one in row["levels"] if emergence.split_level(one["level"])[0] == task]
        for number, one in enumerate(levels):
            y, x = place + 0.22 * (number - (len(levels) - 1) / 2), math.exp(one["shift"])
            if not any(one["emerged"]):
                continue
            if not missing(one["low"]):
                ends = [math.exp(max(-5, min(5, one[end]))) for end in ("low", "high")]
                ax.plot(ends, [y, y], color=colour, linewidth=0.8)
            bound = min(one["emerged"]) < len(row["pairs"])
            ax.plot(x, y, marker_of(one["level"]), color=colour, markersize=3.5,
                    markerfacecolor="white" if bound else colour)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
    for i, ax in enumerate(axes.values()):
        ax.axvspan(1 / 1.1, 1.1, color=CONTROL, alpha=0.3, linewidth=0)     # "no effect"
        ax.set_xscale("log", base=2)
        ax.set_xlim(1 / 64, 16)
        ax.set_xticks([1 / 64, 1 / 16, 1 / 4, 1, 4, 16], ["1/64", "1/16", "1/4", "1", "4", "16"])
        ax.tick_params(labelleft=i % 4 == 0)
    key = level_keys([one["level"] for row in effects for one in row["levels"]])
    figure.legend(handles=key, loc="outside upper center", ncols=len(key))
    figure.supxlabel("step of emergence, treated / control; 95% interval over seeds")
    return {"shifts": figure}


def contrast(row):
    return f"{row['treated']} / {row['control']}"


# ------------------------------------------------------------------------------------------------
# The figures of single commands: `measure` and `pythia`

@default_style
def figure_evals(rows, events, chance):
    """A panel for each task: accuracy along training for every model, with its standard error.

    Chance is dashed; a dot is emergence.  rows: of pythia.read_evals.  events: of
    pythia.evals_emergence.  chance: {task: accuracy of the best blind answer}."""
    tasks = list(dict.fromkeys(event.task for event in events))
    models = list(dict.fromkeys(event.model for event in events))
    figure, axes = panels(tasks, 3, 4.2, 3)
    for event in events:
        ax, which = axes[event.task], models.index(event.model)
        colour = PALETTE[which % len(PALETTE)]
        wanted = (event.model, event.task, "acc")
        curve = [row for row in rows if (row.model, row.task, row.metric) == wanted]
        values = {row.step: row.value for row in curve}
        ax.errorbar(list(values), list(values.values()), [row.stderr or 0 for row in curve],
                    color=colour, linewidth=1.2, elinewidth=0.6, linestyle=DASHES[which % 3],
                    label=event.model)
        ax.axhline(chance.get(event.task, event.chance), color="0.5", linestyle="--", linewidth=0.8)
        if event.emergence:
            by = event.emergence[1]
            ax.plot(by, values[by], "o", color=colour, markersize=6)
        steps_axis(ax, [row.step for row in rows])
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("training step")
    figure.supylabel("accuracy (dot: emerges)")
    return {"evals": figure}


@default_style
def figure_compare(comparison):
    """A panel for each probe set: RankMe with its interval, and accuracy.

    RankMe is taken where the first answer token is predicted, after the last block.  In the shaded
    spans lie onset and emergence.  comparison: of pythia.compare."""
    steps = comparison.steps
    figure, axes = panels([order.task for order in comparison.orders], 3, 4.2, 3)
    for order in comparison.orders:
        left, right = axes[order.task], axes[order.task].twinx()
        levels = [row["levels"][order.task] for row in comparison.rows]
        low, high = zip(*[level["rankme_interval"]["first"] for level in levels])
        left.plot(steps, [level["rankme"]["first"][-2] for level in levels], color=RANKME)
        left.fill_between(steps, low, high, color=RANKME, alpha=0.2, linewidth=0)
        right.plot(steps, [level["accuracy"] for level in levels], color=ACCURACY)
        right.set_ylim(0, 1.02)
        for span, colour in ((order.onset, RANKME), (order.emergence, ACCURACY)):
            if span:
                left.axvspan(*span, color=colour, alpha=0.15, linewidth=0)
        left.set_title(f"{order.task}: {order.verdict}", fontsize=10)
        steps_axis(left, steps)
    figure.supxlabel("training step")
    figure.supylabel("RankMe, onset (blue); accuracy, emergence (orange)", fontsize=9)
    return {"compare": figure}


# ------------------------------------------------------------------------------------------------
# Figures as PNG.  One that cannot be drawn costs that figure and a sentence.

@default_style
def png(figures):
    """{name: Figure} -> {name: bytes of a PNG}, of 256 colours: a third of the bytes of all."""
    images = {}
    for name, figure in figures.items():
        picture, packed = io.BytesIO(), io.BytesIO()
        figure.savefig(picture, dpi=160)
        colours = Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(packed, "PNG", optimize=True)
        images[name] = packed.getvalue()
    return images


def try_to_draw(functions, *arguments):
    """{kind: function of {name: Figure}} -> ({name: PNG}, what went wrong, in sentences)."""
    images, wrong = {}, []
    for kind, function in functions.items():
        try:
            images |= png(function(*arguments))
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            wrong.append(f"Figure {kind} could not be drawn ({why}).")
    return images, wrong


def draw(runs, keywords):
    """The figures that need nothing but the runs, as another process may draw them."""
    events = emergence.event_table(runs, **keywords)
    apart = ("choices", "arms", "shifts")
    return try_to_draw({kind: function for kind, (function, _) in FIGURES.items()
                        if kind not in apart}, events)


def draw_arms(runs, effects, keywords):
    """The figures of arms, which need the runs of several sweeps: those of sizes that all have."""
    experiments = []
    for arms in claims.experiments(runs):
        sizes = [{run.config["size"] for run in among} for among in arms.values()]
        common = set.intersection(*sizes) or set.union(*sizes)
        experiments.append({str(arm): emergence.event_table(
            [run for run in among if run.config["size"] in common], **keywords).only()
            for arm, among in arms.items()})
    images, wrong = try_to_draw({"arms": figure_arms}, experiments)
    others, complaints = try_to_draw({"shifts": figure_shifts}, effects)
    return images | others, wrong + complaints


# ------------------------------------------------------------------------------------------------
# Words and tables

def text_table(rows, title=""):
    """For a terminal: rows of {column: text}, shams dimmed; no text is taken for markup."""
    table = Table(*map(escape, rows[0]), box=None, pad_edge=False, header_style="dim",
                  title=Text(title), title_justify="left")
    for row in rows:
        first, *others = map(escape, row.values())
        table.add_row(first, *others, style="dim" if first.startswith("sham-") else None)
    return table


def rows_by_size(medians):
    """[(size, its rows)]"""
    return [(size, list(rows)) for size, rows in itertools.groupby(medians, itemgetter("size"))]


def median_tables(medians):
    """A table for each size, a line for each task-level: [(size, rows of median_cells)]."""
    return [(size, [median_cells(row) for row in rows]) for size, rows in rows_by_size(medians)]


def median_cells(row):
    """One row of claims.medians as text: {column: cell}."""
    return {"task-level": row["level"], "floor": spread_text(row["floor"], decimals=1),
            "onset": spread_text(row["onset"]),
            "emergence": spread_text(row["emergence"]) if row["emerged"] else none_text(row),
            "lead": step_text(row["lead"]["median"]) if row["lead"] else "-",
            "first": f"{row['rankme_first']}/{row['emerged']}/{row['with_accuracy']}"}


def none_text(row):
    return "never" if row["with_accuracy"] else "unmeasured"


def spread_text(spread, decimals=None):
    """Median, and the range over seeds where there is one; of steps, if decimals is None.

    >>> spread_text({"median": 30, "low": 20, "high": 50}), spread_text(None)
    ('30 (20..50)', '-')
    """
    if not spread:
        return "-"
    numbers = [spread[key] for key in ("median", "low", "high")]
    median, low, high = (step_text(x) if decimals is None else f"{x:.{decimals}f}" for x in numbers)
    return median if low == high else f"{median} ({low}..{high})"


def step_text(x):
    """Steps may be fractions of epochs, or billions of tokens.

    >>> [step_text(x) for x in (30, 1234.5, 0.25, 2.5e9)]
    ['30', '1234', '0.25', '2.5e+09']
    """
    return f"{x:.0f}" if abs(x) < 1e7 and (abs(x) >= 100 or x == round(x)) else f"{x:.3g}"


def claim_cells(row):
    """One of findings["claims"] as text: {what a cell is called on a narrow screen: the cell}."""
    form, low, high = row["form"], *(value_text(row[x], row["form"]) for x in ("low", "high"))
    if row["verdict"].startswith("cannot tell: one "):          # then no interval says anything
        low = "-"
    return {"v1, v2": row["v1"], "v3": row["v3"], "v4": row["v4"],
            "here": value_text(row["value"], form),
            "interval": "-" if low == "-" else f"{low} to {high} over {row['over']}",
            "chance": value_text(row["null"], form),
            "p": p_text(row["p"] if row["p_holm"] is None else row["p_holm"]),
            "choices": value_text(row.get("share"), "{:.0%}"),
            "p of that share": p_text(row.get("p_multiverse"))}


def missing(x):
    return x is None or math.isnan(x)


def plural(unit):
    return "steps" if unit == "step" else unit


def value_text(x, form):
    if missing(x):
        return "-"
    text = form.format(x)
    return text if float(text.strip("%")) else text.lstrip("-")             # never -0%


def p_text(p):
    """
    >>> p_text(0.0321), p_text(0.0001), p_text(1.0), p_text(None)
    ('.032', '<.001', '1', '-')
    """
    if p is None:
        return "-"
    if p < 0.001:
        return "<.001"
    return "1" if p >= 1 else f"{p:.3f}".lstrip("0")


def side_by_side(found):
    """The lead in several sweeps, a line for each.  found: {name: findings}."""
    rows = []
    for name, findings in found.items():
        lead = findings["lead_check"]
        precursor = next(row for row in findings["claims"] if row["claim"] == "C4")
        # one test in each sweep: its p needs no adjusting for other tests
        cells = claim_cells(precursor | {"p_holm": precursor["p"]})
        rows.append({"sweep": name, "warm-up": f"{lead['warmup']:g}",
                     "onset": step_text(lead["median_onset"])
                     if math.isfinite(lead["median_onset"]) else "-",
                     "in warm-up": f"{lead['onsets_in_warmup']:.0%}",
                     "RankMe first": cells["here"], "chance": cells["chance"], "p": cells["p"]})
    return Group(text_table(rows), Text("onset: its median step over task-levels and runs."))


def slope_text(row):
    """A row of claims.floor_slopes; that of all tasks has an interval."""
    slope, *ends = (value_text(row[x], "{:.3f}") for x in ("slope", "low", "high")
                    if not missing(row.get(x)))
    return f"{slope} ({' to '.join(ends)})" if ends else slope


def scale_tables(scales):
    """What changes with size: tables, rows of {column: cell}, of claims.scales."""
    floors, slopes = [], {}
    for row in scales["floors"]:
        if row["kind"] == "raw":
            sizes = {size: f"{floor:.1f}" for size, floor in row["floors"].items()}
            floors.append({"floor": row["task"], **sizes})
        slopes.setdefault(row["task"], {"slope": row["task"]})[row["kind"]] = slope_text(row)
    tables = [floors, list(slopes.values())]
    for heading, keys in (("size", claims.AT_EACH), ("sizes", claims.OF_PAIRS)):
        rows = [row for row in scales["claims"] if row["claim"] in keys]
        tables.append([{heading: ", ".join(sizes), **{row["claim"]: scale_cell(row) for row in own}}
                       for sizes, own in itertools.groupby(rows, itemgetter("sizes"))])
    return [table for table in tables if table]


def scale_cell(row):
    """A claim at one size, or of two: its value, then what chance gives."""
    beside = "" if row["p"] is None else f" ({value_text(row['null'], row['form'])})"
    return f"{value_text(row['value'], row['form'])}{beside}"


def claim_lines(rows):
    """The claims for a terminal of 80 columns: what is claimed, what is found, the verdict."""
    lines = []
    for row in rows:
        lines.append(Text.assemble((row["claim"], "bold"), f"  {row['text']}"))
        cells = claim_cells(row)
        if cells["here"] != "-":
            lines += [Text(line) for line in indented(evidence(cells))]
        lines += [Text(line, style="bold") for line in indented(row["verdict"])]
    return lines


def indented(text, first="    ", others="  "):
    """Lines of at most 80 columns; spaces written as NO_BREAK stay within a line.

    others: what stands before a second line, besides."""
    lines = textwrap.wrap(text, width=80, initial_indent=first, subsequent_indent=first + others,
                          break_on_hyphens=False, break_long_words=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def evidence(cells):
    """What the paper reports, what is found here, what chance gives, how far choices matter."""
    parts = []
    paper = [cells[version] for version in ("v1, v2", "v3", "v4") if cells[version] != "-"]
    if paper:
        parts.append(f"paper {' / '.join(dict.fromkeys(paper))}")
    parts.append(f"here {cells['here']} ({cells['interval']})".removesuffix(" (-)"))
    if cells["chance"] != "-":
        parts.append(f"chance {cells['chance']}, p {cells['p']}")
    if cells["choices"] != "-":
        choices = f"choices {cells['choices']}, p {cells['p of that share']}"
        parts.append(choices.removesuffix(", p -"))
    return "; ".join(part.replace(" ", NO_BREAK) for part in parts)


def shift_cells(one):
    """One level of an effect as text: {column: cell}."""
    low, middle, high = (one[key] if missing(one[key]) else math.exp(one[key])
                         for key in ("low", "shift", "high"))
    span = "" if missing(low) else f" ({low:.2g}..{high:.2g})"
    return {"task-level": one["level"], "emerged": " > ".join(map(str, one["emerged"])),
            "factor": f"{middle:.2g}{span}", "p": p_text(one["p"]),
            "model": "-" if missing(one["model"]) else f"{math.exp(one['model']):.2g}",
            "need": "-" if one["needed"] is None else str(one["needed"]),
            "verdict": one["verdict"]}


def effect_tables(effects):
    """A table for each arm and its control: [(title, rows of shift_cells)]."""
    return [(f"{contrast(row)}: {len(row['pairs'])} pairs, up to step {row['end']:,.0f}",
             [shift_cells(one) for one in (row["mean"], *row["levels"])]) for row in effects]


def arm_lines(arms):
    """Effects and claims on arms for a terminal; nothing where there are none."""
    if not arms["effects"]:
        return []
    claimed = [Text(line) for text in arm_claim_lines(arms["claims"]) for line in indented(text)]
    tables = [text_table(rows, title) for title, rows in effect_tables(arms["effects"])]
    return [Text(), *spaced(tables), Text(EFFECT_LEGEND), Text(), *claimed, Text()]


def spaced(tables):
    return [line for table in tables for line in (table, Text())]


def arm_claim_lines(rows):
    """Claims on arms as lines: what is claimed, how it could fail, what is found for each arm."""
    lines = []
    for key, group in itertools.groupby(rows, itemgetter("claim")):
        group = list(group)
        lines.append(f"{key}: {group[0]['text']}. It could fail: {'; or '.join(group[0]['fails'])}")
        for row in group:
            found = arm_value(row)
            if "centred" in row:
                found += f"; of centred states {arm_value(row['centred'])}"
            lines.append(f"{key}, {contrast(row)}, {row['pairs']} pairs: {found}")
    return lines


def arm_value(row):
    if missing(row["mean"]):
        return row["verdict"]
    half = "" if missing(row["half"]) else f" +- {row['half']:.2f}"
    return f"{row['mean']:.2f}{half}, {row['verdict']}"


# ------------------------------------------------------------------------------------------------
# What happened, in sentences: terminal and page share them

FEW = 4                               # so many task-levels have a sentence each


class Story(NamedTuple):
    happened: list                    # sentences
    cannot: str                       # what the sweep cannot tell; "": nothing
    command: str                      # what can


def story(events, findings):
    """findings: of run.analyse_runs, with "levels" and "sizes" (claims.medians and .overview)."""
    lines, unit, config = [], findings.get("unit", "step"), events.runs[0].config
    several = len(findings["sizes"]) > 1
    for number, size in enumerate(findings["sizes"]):
        name = size["size"] if several else ""
        if number == 0 and 0 < size["levels"] <= FEW:       # the others follow in short
            rows = [row for row in findings["levels"]
                    if row["size"] == size["size"] and not row["control"]]
            lines += [f"{name} {level_sentence(row, unit)}".strip() for row in rows]
        else:
            lines += [f"{name}: {line}".removeprefix(": ") for line in size_sentences(size, unit)]
    if findings["lead_check"]["sham_emergences"]:
        lines.append(HAPPENED["shams"].format(**findings["lead_check"]))
    lines += [HAPPENED["chance"].format(**row) for row in findings["claims"]
              if row["claim"] == "C4" and told(row)]
    last = max(run.steps[-1] for run in events.runs)
    if last < config.get("steps", 0):                       # a table's has no such field
        lines.append(HAPPENED["stopped"].format(unit=unit, last=step_text(last),
                                                steps=step_text(config["steps"])))
    lines += [f"Missing: {what}." for what in findings["missing"]]
    return Story(lines, *cannot_tell(events, findings))


def told(row):
    return not row["verdict"].startswith("cannot tell")


def level_sentence(row, unit):
    """What became of one task-level of one size.  row: of claims.medians."""
    words, mixed = {"unit": unit, "watched": step_text(row["watched"] or 0)}, False
    seeds, ranked, known = row["seeds"], row["measured"], row["with_accuracy"]
    words["none"] = HAPPENED["none" if known else "unseen"].format(**words)
    for key, spread in row.items():
        if isinstance(spread, dict):
            rank = key in ("start", "floor")
            words[key] = f"{spread['median']:.1f}" if rank else step_text(spread["median"])
    for key, of in ("collapsed", ranked), ("recovered", ranked), ("emerged", known):
        some = 0 < row[key] < of
        words[key], mixed = f" ({row[key]} of {of} seeds)" if some else "", mixed or some
    rank, then = "unmeasured", ["emerged"] if row["emerged"] else []
    if row["floor"]:
        rank = "fell" if row["collapsed"] else "stayed"
    if rank == "fell" and row["onset"]:
        late = then and row["emergence"]["median"] <= row["onset"]["median"]
        then.insert(1 if late else 0, "recovered")
    text = HAPPENED[rank] + HAPPENED[" ".join([*(["fell"] if rank == "fell" else []), *then, "."])]
    many = "one seed" if seeds == 1 else f"all {seeds} seeds"
    partly = [f"{what} was measured in {of} of {seeds} seeds"
              for what, of in (("accuracy", known), ("RankMe", ranked)) if 0 < of < seeds]
    if partly:
        many, mixed = ", ".join(partly), False
    return f"{row['level']}: {text.format(**words)}{'' if mixed else f' ({many})'}."


def size_sentences(size, unit):
    """What became of all task-levels of one size.  size: a row of claims.overview."""
    if not size["levels"]:
        return [HAPPENED["only shams"]]
    never, without = size["never"], size["seeds"] * size["levels"] - size["with_accuracy"]
    words = size | {"unit": unit, "without": without,
                    **{key: step_text(size[key] or 0) for key in ("last_step", "watched")},
                    "seeds": "one seed" if size["seeds"] == 1 else f"{size['seeds']} seeds"}
    lines = ["all unmeasured"]
    if size["measured"]:
        words |= {"rank": size["start"]["median"], **size["floor"]}
        lines = ["all fell" if size["collapsed"] else "none fell"]
    dated = [f"{level} at {step_text(step)}" for level, step in size["order"]]
    words["dated"] = f"first {dated[0]}, last {dated[-1]}" if dated[1:] else "".join(dated)
    lines.append("none emerged" if size["with_accuracy"] else "none seen")
    if dated:
        lines[-1] = "some emerged after" if size["measured"] else "some emerged"
    if dated and never:
        words["never"] = ", ".join(never[:6]) + (f" and {len(never) - 6} more" if never[6:] else "")
        lines.append("never")
    lines += ["without"] if without and size["with_accuracy"] else []
    return [HAPPENED[line].format(**words) for line in lines]


def cannot_tell(events, findings):
    """(what the sweep cannot tell, the command that can), by the first row of CANNOT that fits."""
    config = events.runs[0].config
    for key, verdict, text, changes in CANNOT:
        keys = [row["claim"] for row in findings["claims"]
                if row["verdict"].startswith(verdict) and row["claim"].startswith(key)]
        if keys:
            needed = [row["verdict"].rpartition(" ")[2] for row in findings["claims"]
                      if row["claim"] in keys]
            words = {"claims": ", ".join(keys), "needed": ", ".join(needed),
                     "last": step_text(events.runs[0].steps[-1]),
                     "unit": findings.get("unit", "step"), "tasks": len(set(events.only().tasks)),
                     "steps": 2 * config.get("steps", 0),
                     "seeds": 2 * len({run.config["seed"] for run in events.runs})}
            changes = {option: value.format(**words) for option, value in changes.items()}
            if "shams" in verdict and not any(events.shams):
                changes["--controls"] = "4"
            return text.format(**words), sweep_command(events, changes)
    return "", ""


ANOTHER = ("--task", "--controls", "--steps", "--measures", "--train-fraction", "--intervene")

def sweep_command(events, changes):
    """The command of a sweep with other options; "" for what no sweep of ours made."""
    config = events.runs[0].config
    if "per_level" not in config:
        return ""
    words = [part for word in (config.get("environment") or {}).get("command", ())
             for part in (word.split("=", 1) if word.startswith("--") else [word])]
    given = list(zip(words, words[1:]))
    sizes = dict.fromkeys(run.config["size"] for run in events.runs)
    options = {"--task": ",".join(dict.fromkeys(events.only().tasks)), "--sizes": ",".join(sizes),
               "--seeds": str(max(run.config["seed"] for run in events.runs) + 1)}
    if "--task" not in changes:
        options |= {option: value for option, value in given if option in ANOTHER}
        options |= {f"--set {value}": value for option, value in given
                    if option == "--set" and not value.startswith(("threads=", "stop="))}
        if config.get("stop") and "--steps" not in changes:     # where it has come to since
            options[f"--set stop={config['stop']}"] = ""
    options |= changes
    return " ".join(["python run.py sweep", *(
        option if option.startswith("--set ") else f"{option} {shlex.quote(value)}"
        for option, value in options.items())])


def short_tables(medians):
    """The events of few task-levels as median_tables; of many, a line for each task."""
    if sum(not row["control"] for row in medians) <= 3 * FEW:
        few = median_tables([row for row in medians if not row["control"]])
        return [*[text_table(rows, size) for size, rows in few], Text(SHORT_LEGEND, style="dim")]
    tables = []
    for size, rows in rows_by_size(medians)[:2]:            # the page has the others
        cells = {}                                          # {task: {column: cell}}
        for row in rows:
            task, number = emergence.split_level(row["level"])
            if not row["control"]:
                own = cells.setdefault(task, {"task": task})
                own[f"level {number}".strip()] = dates_text(row)
        columns = dict.fromkeys(column for own in cells.values() for column in own)
        rows = [dict.fromkeys(columns, "") | own for own in cells.values()]
        tables.append(text_table(rows[:12], size))
    return [*tables, Text(DATES_LEGEND, style="dim")]


def dates_text(row):
    """
    >>> step = {"median": 50}
    >>> dates_text({"onset": step, "emergence": {"median": 126}, "emerged": 9, "with_accuracy": 9})
    '50 > 126'
    >>> dates_text({"onset": None, "emergence": step, "emerged": 2, "with_accuracy": 3})
    '- > 50 (2/3)'
    """
    onset = step_text(row["onset"]["median"]) if row["onset"] else "-"
    emerged = step_text(row["emergence"]["median"]) if row["emergence"] else none_text(row)
    of = row["with_accuracy"]
    share = f" ({row['emerged']}/{of})" if 0 < row["emerged"] < of else ""
    return f"{onset} > {emerged}{share}"


def told_lines(rows):
    """The claims in short: what can be told, a line or two each; then those that cannot."""
    lines, others = [], [row["claim"] for row in rows if not told(row)]
    for row in filter(told, rows):
        cells = claim_cells(row)
        chance = "" if cells["chance"] == "-" else f", chance {cells['chance']}"
        lines.append(f"{row['claim']}: {row['text']}: {cells['here']}{chance}; {row['verdict']}")
    if others:
        which = f"these cannot be told: {', '.join(others)}" if lines else "none can be told"
        lines.append(f"Of the paper's claims {which} (--full and the report say why).")
    return [Text(one) for line in lines for one in indented(line, "", "  ")]


def sentences(findings):
    """What belongs beside the table of claims: a list of strings, from the texts in SENTENCES."""
    check, lines = findings["lead_check"], []
    z = f"z = {check['z']:.2f}" if check["information"] else "no z"
    unit, onset = findings.get("unit", "step"), SENTENCES["no onset"]
    if math.isfinite(check["median_onset"]):
        onset = SENTENCES["onset"].format(unit=unit, step=step_text(check["median_onset"]))
    rule = SENTENCES.get(f"rule {check['onset_rule']}", SENTENCES["rule"])
    if not any(row["floor"] for row in findings["levels"]):
        lines.append(SENTENCES["no rankme"])
    lines += [rule.format(**check),
              SENTENCES["risk set"].format(z_text=z, onset=onset, **check),
              SENTENCES["shams" if check["shams"] else "no shams"].format(**check)]
    if not missing(findings["floor_ratio_of_shares"]):
        lines.append(SENTENCES["ceilings"].format(**findings))
    for row in findings["claims"]:
        if row.get("without") and row["p"] is not None:
            worst, (excess, p) = min(row["without"].items(), key=itemgetter(1))
            lines.append(SENTENCES["without"].format(worst=worst, excess=excess, p=p_text(p)))
        excess, p = row.get("centred", (None, None))
        if p is not None:
            lines.append(SENTENCES["centred"].format(excess=excess, p=p_text(p)))
    lines += [SENTENCES["class"].format(span=span_text(row), p_text=p_text(row["p"]), **row)
              for row in findings["classes"]]
    lines += [lead_sentence(row, findings["leads"], unit) for row in findings["leads"]
              if row["quantity"] == row["measure"]]
    for row in findings["forecasts"]:
        lines.append(SENTENCES["forecast"].format(
            what=" and ".join(row["features"]), verb=GAINS[row["adds"]],
            p_text="" if row["p"] is None else f", p {p_text(row['p'])}", **row))
    return lines


def span_text(row):
    return "" if missing(row["low"]) else " ({low:.0%} to {high:.0%} over {over})".format(**row)


def lead_sentence(row, rows, unit):
    """One measure, and what stands beside it on the same snapshots."""
    unit = plural(unit)
    beside = [f"{other['quantity'].replace('_', ' ')} {other['rate']:.0%} (chance "
              f"{other['null']:.0%})" for other in rows if other["measure"] == row["measure"]]
    return SENTENCES["lead"].format(
        beside=", ".join(beside[1:]), p_text=p_text(row["p"]), span=span_text(row),
        verdict="It leads." if row["leads"] else "It is not shown to lead.",
        lead_text="" if row["lead"] is None else f", median lead {step_text(row['lead'])} {unit}",
        room=f"; {row['without_room']} more have no room" if row["without_room"] else "", **row)


# ------------------------------------------------------------------------------------------------
# The page, and everything into a folder

@functools.lru_cache
def compiled(template):
    """A template of jinja2; functions of this file are at hand in it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.from_string(template, globals=globals())


def fill(template, **values):
    """The template with its values, as HTML."""
    return compiled(template).render(**values)


def page(title, events, findings, images, complaints=(), player=""):
    """report.html as a string: one file with the figures in it.

    images: {name: PNG}.  player: of film.player; it alone has a script."""
    kinds = {kind: [name for name in images if name.partition("-")[0] == kind] for kind in FIGURES}
    return fill(
        PAGE, title=title, run=events.runs[0], findings=findings, images=images, kinds=kinds,
        player=player, story=story(events, findings), complaints=complaints,
        lines=sentences(findings), rows=sorted(findings["claims"], key=told, reverse=True),
        count=sum(map(told, findings["claims"])))


def glossed(text, met):
    """Text as HTML.  Words of GLOSSARY that are not among those `met` before show their meaning:
    under a pointer, when they are tapped, and when the Tab key is at them."""
    def one(found):
        word = WORDS.get(found[0].lower(), found[0].lower())
        if word in met:
            return found[0]
        met.append(word)
        return f'<dfn tabindex="0" data-meaning="{html.escape(GLOSSARY[word])}">{found[0]}</dfn>'
    words = sorted([*GLOSSARY, *WORDS], key=len, reverse=True)          # the longest that fits
    pattern = rf"\b({'|'.join(map(re.escape, words))})\b"
    return markupsafe.Markup(re.sub(pattern, one, html.escape(text), flags=re.IGNORECASE))


def events_csv(events):
    """claims.event_rows, a line each; empty: never."""
    text = io.StringIO()
    writer = csv.DictWriter(text, claims.EVENT, lineterminator="\n")
    writer.writeheader()
    writer.writerows(claims.event_rows(events))
    return text.getvalue()


def write(folder, events, findings, universe, save, drawing=None, together=(), show="claims",
          player=None):
    """Everything derived of a sweep into its folder: numbers, then figures, then report.html.

    findings: of claims.study, with choices, runs, missing (sentences), levels (the medians) and
      sizes (claims.overview).
    save(path, content): writes a text, bytes or (.json) a dict; all of it, or nothing.
    drawing: a future of `draw`, begun in another process.  Without it all is drawn here.
    together: the runs of all sweeps that findings["arms"], of claims.study_arms, is about.
    player: () -> the film for the page, as HTML; "" where there is none.
    Returns what to print, as much as SHOWN[show] has: tables and lines of rich."""
    arms = findings.get("arms") or {"effects": [], "claims": []}
    save(folder / "findings.json", {key: x for key, x in findings.items() if key != "arms"})
    save(folder / "events.csv", events_csv(events))
    if arms["effects"]:
        save(folder / "effects.json", arms)

    images, complaints = try_to_draw({"choices": FIGURES["choices"][0]}, findings, universe)
    try:
        drawn, wrong = drawing.result() if drawing else draw(events.runs, events.dated_by)
        images |= drawn
        complaints += wrong
    except Exception as error:                              # the other process was killed
        complaints.append(f"Most figures could not be drawn ({type(error).__name__}: {error}).")
    if arms["effects"]:
        drawn, wrong = draw_arms(together, arms["effects"], events.dated_by)
        images, complaints = drawn | images, complaints + wrong

    moving = ""
    try:
        moving = player() if player else ""
    except (ValueError, RuntimeError) as error:             # it is damaged, and costs itself alone
        complaints.append(f"No film is shown: {error}.")

    (folder / "figures").mkdir(exist_ok=True)
    for name, image in images.items():
        save(folder / "figures" / f"{name}.png", image)
    save(folder / "report.html", page(folder.resolve().name, events, findings, images, complaints,
                                      moving))
    return [*SHOWN[show](events, findings), *arm_lines(arms), *map(Text, complaints),
            Text(f"Report: {folder}/report.html"),
            *([Text(f"To see it move: python run.py watch {folder}")] if moving else [])]


# What a terminal shows of a sweep

def in_short(events, findings, *tables):
    """What happened, the tables, and what the sweep cannot tell."""
    found = story(events, findings)
    happened = [line for sentence in found.happened for line in indented(sentence, "  ")]
    command = f"This asks it: {found.command}" if found.command else ""
    cannot = [line for text in (found.cannot, command) for line in indented(text, "", "  ")]
    return [Text("What happened", style="bold"), *map(Text, happened), *tables, Text(),
            *map(Text, cannot)]


def with_events(events, findings):
    return in_short(events, findings, Text(), *short_tables(findings["levels"]))


def with_claims(events, findings):
    return [*with_events(events, findings), Text(), *told_lines(findings["claims"])]


def in_full(events, findings):
    scales = spaced([text_table(rows) for rows in scale_tables(findings["scales"])])
    return [*in_short(events, findings), Text(),
            *[text_table(rows, size) for size, rows in median_tables(findings["levels"])],
            Text(MEDIAN_LEGEND), Text(), *scales, *([Text(SCALE_LEGEND), Text()] if scales else []),
            *claim_lines(findings["claims"]), Text(CLAIM_LEGEND.format(**findings)), Text(),
            *map(Text, sentences(findings))]


SHOWN = {"story": in_short, "events": with_events, "claims": with_claims, "full": in_full}


# ------------------------------------------------------------------------------------------------
# Tables: figures with their captions, columns, legends, sentences, and the page

SIDE_BY_SIDE = ("side by side: RankMe of each task, mean over its levels and runs (so many, in "
                "brackets). Markers: median emergence of a level over all runs, on the curve.")
FIGURES = {                           # in the order of the page
    "curves": (figure_curves, (
        "Accuracy and RankMe. Median over seeds as a line, range as a band. Solid vertical line: "
        "emergence. Dashed: onset of recovery. Both: medians over the runs in which it happens.")),
    "layers": (figure_layers, (
        "RankMe of every layer (upwards) against steps. The white line is emergence. At the "
        "embedding all inputs are one token where the answer begins: a RankMe of 1.")),
    "sizes": (figure_sizes, f"Sizes {SIDE_BY_SIDE}"),
    "slopes": (figure_slopes, (
        "Floors of tasks against size: RankMe as it is, of the states without their mean, and as a "
        "share of its ceiling (the width, or fewer inputs). Dashed: mean over tasks.")),
    "measures": (figure_measures, (
        "Every measure with emergence at 1, each curve scaled to its own range. Median and middle "
        "half.")),
    "joint": (figure_joint, (
        "Measures of the loss of all task-levels at once, a line for each run. Ranks are of "
        "few examples, which are their ceiling; the eigenvalue where it converged.")),
    "arms": (figure_arms, f"Arms {SIDE_BY_SIDE}"),
    "shifts": (figure_shifts, (
        "By which factor the step of emergence moves, for each task-level and arm, with a 95% "
        "interval over pairs of one seed. Grey: less than 10%. Hollow: a bound, for in some run of "
        "either arm it does not emerge.")),
    "choices": (figure_choices, (
        "How far the claims depend on choices of analysis. Left: the precursor rate (C4) under "
        "each combination of choices, and what exchanged tasks give. Right: by the value alone, "
        "without interval and correction (*: with them, it cannot be told); an unequal pair of "
        "cells is a choice that decides.")),
}

MEDIAN_LEGEND = (
    "Median (low..high) over seeds. floor: lowest RankMe. onset: where RankMe recovers. lead: "
    "emergence - onset. first: seeds whose RankMe recovered before emergence / that emerged / "
    "in which accuracy was measured. never: not for good within the run.")

CLAIM_LEGEND = (
    "here: the value in these runs, with a 95% interval over tasks or over runs, the wider one. "
    "chance: its mean over {exchanges} exchanges of whole tasks, levels, seeds and sizes together. "
    "p: how often such data are as far out, after Holm's correction over the claims that are "
    "tests. choices: the share of {specifications} combinations of reasonable choices under which "
    "the claim holds, and how often exchanged data reach that share.")

SLOPES = {"raw": "RankMe", "centred": "states without their mean", "share": "share of the ceiling"}
SCALE_LEGEND = (
    "By size. floor: of a task, geometric mean over levels and seeds. slope: of its log against "
    "that of parameters (95% interval over tasks). Claims: value (what chance gives), at each "
    "size, then for each pair of sizes.")

EFFECT_LEGEND = (
    "factor: of min(T, step of emergence), T the last step, geometric mean over pairs of one seed, "
    "with its 95% interval. emerged: runs, control > treated. p: of the mean by exact sign flips, "
    "of a level by Student's t with Holm's correction. model: the factor if log steps are normal "
    "and censored. need: so many pairs show a shift of 10% with power .8. no effect: the 90% "
    "interval is within 10%.")

SHORT_LEGEND = "median (low..high) over seeds; first: RankMe first / emerged / measured"
DATES_LEGEND = "onset of RankMe's recovery > emergence, median steps over seeds"

# A task-level: what RankMe did, then what followed, in the order of its events.
HAPPENED = {
    "fell": "RankMe fell from {start} to {floor} by {unit} {floor_step}{collapsed}",
    "stayed": "RankMe did not collapse (first {start}, lowest {floor})",
    "unmeasured": "RankMe was not measured",
    "emerged .": "; accuracy emerged at {emergence}{emerged}",
    ".": "; {none}",
    "none": "accuracy had not emerged for good by {unit} {watched}",
    "unseen": "accuracy was not measured",
    "fell recovered emerged .": (
        ", began to recover at {onset}{recovered}, and accuracy emerged at {emergence}{emerged}"),
    "fell emerged recovered .": (
        " and began to recover at {onset}{recovered}, no sooner than accuracy emerged, at "
        "{emergence}{emerged}"),
    "fell recovered .": " and began to recover at {onset}{recovered}, but {none}",
    "fell emerged .": " and did not recover, yet accuracy emerged at {emergence}{emerged}",
    "fell .": " and did not recover; {none}",
    # all task-levels of a size
    "all fell": (
        "RankMe collapsed in {collapsed} of {measured} capabilities ({levels} task-levels, "
        "{seeds}), from {rank:.1f} to {median:.1f} (range {low:.1f} to {high:.1f})."),
    "none fell": (
        "RankMe collapsed in none of {measured} capabilities ({levels} task-levels, {seeds}): it "
        "was {rank:.1f} at first and {median:.1f} at its lowest."),
    "all unmeasured": "{levels} task-levels, {seeds}; RankMe was not measured.",
    "some emerged after": (
        "{emerged} of {with_accuracy} emerged by {unit} {last_step} ({dated}); in {rankme_first} "
        "of these RankMe had recovered before."),
    "some emerged": "{emerged} of {with_accuracy} emerged by {unit} {last_step} ({dated}).",
    "none emerged": "None of {with_accuracy} emerged by {unit} {watched}.",
    "none seen": "Accuracy was not measured.",
    "never": "Not by {unit} {watched}, in any seed: {never}.",
    "without": "In {without} more, accuracy was not measured.",
    # the whole sweep
    "only shams": "Only shams were trained, which cannot be learned: nothing can emerge.",
    "shams": (
        "{sham_emergences} of {shams} sham controls emerged, though they cannot be learned: trust "
        "no date here."),
    "chance": (
        "RankMe came first in {value:.0%} of emergences; tasks exchanged by chance give "
        "{null:.0%}: {verdict}."),
    "stopped": "Training was stopped at {unit} {last} of {steps}: what comes later was not seen.",
}

CANNOT = (                  # (claim, how its verdict begins, what cannot be told, other options)
    ("C4", "cannot tell: one task",
     "This sweep cannot tell whether RankMe came first by chance: one task has no other to be "
     "exchanged with.", {"--task": "all", "--sizes": "nano", "--seeds": "3"}),
    ("C4", "cannot tell: one run",
     "This sweep cannot tell what another seed would give: there is one run.", {"--seeds": "3"}),
    ("C4", "cannot tell: needs RankMe",
     "This sweep cannot tell what came before: RankMe was not measured.",
     {"--measures": "rankme", "--out": "runs/rankme"}),
    ("C4", "cannot tell: needs an emergence",
     "This sweep cannot tell what precedes an emergence: there is none by {unit} {last}.",
     {"--steps": "{steps}", "--out": "runs/longer"}),
    ("C4", "cannot tell: the null",
     "This sweep cannot tell whether RankMe came first by chance: {tasks} tasks can be exchanged "
     "in too few ways.", {"--task": "all", "--sizes": "nano", "--seeds": "3"}),
    ("", "cannot tell: needs shams",
     "This sweep cannot tell whether other measures come before an emergence ({needed}): that "
     "needs shams, and these measures in several runs.",
     {"--measures": "all", "--out": "runs/all-measures"}),
    ("", "cannot tell: needs two sizes",
     "This sweep cannot tell whether these claims hold, which need two sizes: {claims}.",
     {"--sizes": "nano,micro"}),
    ("", "cannot tell",
     "This sweep cannot tell whether these claims hold, for it is too small: {claims}.",
     {"--seeds": "{seeds}"}),
)

GAINS = {True: "adds", False: "is not shown to add", None: "may add, p not asked for,"}
SENTENCES = {
    "rule shams": "Onset: the first lasting rise to 1.2 times the highest sham at that step.",
    "rule floor": "Onset: the first lasting rise to 1.2 times RankMe's floor.",
    "rule": "Onset: by the rule '{onset_rule}'.",
    "risk set": (
        "Risk-set test by its formula: {z_text} on an information of {information:.1f} (below 5 it "
        "cannot tell).  {onset}  {onsets_in_warmup:.0%} of all onsets lie within the learning "
        "rate's warm-up."),
    "onset": "The median onset is at {unit} {step}.",
    "no onset": "Most task-levels show no onset.",
    "shams": "Of {shams} shams {sham_emergences} emerged, {sham_onsets} rise above the others.",
    "no rankme": (
        "RankMe was not measured: capabilities are dated, but nothing can be said of what comes "
        "before them."),
    "no shams": (
        "Without sham controls a measure is dated where it has moved, from its first value, by a "
        "fifth of its range."),
    "ceilings": "As shares of their ceilings, floors have a ratio of {floor_ratio_of_shares:.2f}.",
    "without": (
        "With any one run or task left out, the mean excess over all choices is at least "
        "{excess:.3f} (without {worst}; p {p})."),
    "centred": "Of the states without their mean the mean excess is {excess:.3f} (p {p}).",
    "class": (
        "RankMe first among the {class} (by other seeds): {rate:.0%}{span} of {events}; chance "
        "{null:.0%}, p {p_text}."),
    "lead": (
        "{quantity} on the {snapshots} snapshots of {measure}: first in {rate:.0%}{span} of "
        "{events}{room}; chance {null:.0%}, p {p_text}{lead_text}.  "
        "Beside it (behaviour at a tenth of its way): {beside}.  {verdict}"),
    "forecast": (
        "Forecast with each {over} left out: {what} {verb} to behaviour, {gain:.2f} ({low:.2f} to "
        "{high:.2f}) nats an emergence{p_text}; {gaining:.0%} of all gain."),
}

GLOSSARY = {                          # in the page, under a word that one may not know
    "rankme": (
        "How many directions the hidden states of different inputs use: from 1, when they are all "
        "alike, to the width of the model."),
    "capability": "A task-level in one seed: it can be learned, or not.",
    "task-level": "A task at one of three levels of difficulty: modadd-2 is modadd at level 2.",
    "collapsed": "RankMe lost at least half of what it had above 1.",
    "floor": "The lowest RankMe of a run.",
    "onset": (
        "The step from which RankMe rises for good above what shams reach, or above its floor."),
    "emerged": (
        "Accuracy went 30% of the way from chance to perfect, and stayed there for a quarter more "
        "of the steps."),
    "seeds": "Runs that differ only in their random numbers.",
    "sham": "A task whose answers are shuffled, so that it cannot be learned.",
    "chance": "What comes out if the geometry of each task is paired with another's behaviour.",
    "lead": "Emergence minus onset, in steps: positive where RankMe recovered first.",
}
WORDS = {                             # other forms of these words
    "capabilities": "capability", "task-levels": "task-level",
    "fell": "collapsed", "collapse": "collapsed", "emergence": "emerged", "seed": "seeds",
    "emergences": "emerged", "shams": "sham", "exchanged": "chance", "recovered": "onset",
    "recover": "onset",
}

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --ink: #1d2125; --soft: #57606a; --line: #d5d9de; --paper: #fff;
        --card: #f3f5f7; --mark: #0b62a3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --soft: #a4adb7; --line: #3b434c; --paper: #15181b; --card: #20252a;
          --mark: #6db8ef }
  img { filter: brightness(.9) }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
       color: var(--ink); background: var(--paper); overflow-wrap: break-word }
h1 { font-size: 1.35rem; line-height: 1.25; margin: .2rem 0 }
h2 { font-size: 1.1rem; line-height: 1.25; margin: 1.8rem 0 .5rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem }
p, ul { margin: .5rem 0 } ul { padding-left: 1.2rem } li { margin: .3rem 0 }
.soft, figcaption, small, th, dt { color: var(--soft) }
.card { background: var(--card); border-left: 4px solid var(--mark); padding: .1rem 1rem;
        margin: 1rem 0 }
code { font-size: .9em; overflow-wrap: anywhere }
.card code { display: block; user-select: all }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto; border-radius: 4px }
.wide { overflow-x: auto } @media (max-width: 40rem) {
  body { font-size: 15px; line-height: 1.4 }
  .wide img { max-width: 40rem }
}
table { border-collapse: collapse; font-size: 14px; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0;
         border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: normal } .sham { color: var(--soft) }
summary { cursor: pointer; padding: .3rem 0 } summary h2 { display: inline; margin: 0 }
section > details { border-top: 1px solid var(--line); padding: .4rem 0 }
.claim { border-top: 1px solid var(--line); font-size: 15px }
.claim summary { display: flex; flex-wrap: wrap; gap: 0 .6rem }
.claim summary b { flex: 0 0 9rem } .claim summary span { flex: 1 1 18rem }
.claim summary b::before { content: "\\25b8  " }
.claim[open] summary b::before { content: "\\25be  " }
.claim .verdict { font-weight: 600 } .untold .verdict { font-weight: normal; color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .3rem 0 .8rem;
     font-size: 14px } dd { margin: 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }
dfn { font-style: normal; text-decoration: underline dotted var(--mark); cursor: help;
      text-underline-offset: 3px }
dfn:hover::after, dfn:focus::after {
  content: attr(data-meaning); position: fixed; z-index: 1; left: 50%; bottom: 1rem;
  transform: translateX(-50%); width: min(34rem, 100vw - 4rem); padding: .6rem 1rem;
  border-radius: 6px; background: #0b4f85; color: #fff; box-shadow: 0 2px 10px #0008;
  font: 15px/1.4 system-ui, sans-serif }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px }
@media print {
  :root { --ink: #000; --paper: #fff; --card: #fff }
  body { max-width: none; font-size: 11px } table, dl { font-size: 9px }
  figure, tr, .claim { break-inside: avoid } .claim { font-size: 10px } img { filter: none }
  details::details-content { content-visibility: visible; height: auto }
  dfn { text-decoration: none } dfn::after { display: none }
}
</style></head><body>
<h1>When a capability emerges, what changed first?</h1>
<p class="soft">Sweep {{ title }}: {{ findings.runs | length }} run
{{- "s" if findings.runs | length > 1 }} (
{%- for size, rows in rows_by_size(findings.levels) -%}
{{ ", " if not loop.first }}{{ size or "all" }} x {{ rows[0].seeds }}
{%- endfor %}), {{ run.levels | length }} task-levels in each,
{{ step_text(run.steps[-1]) }} {{ plural(run.config.unit) }}, {{ run.steps | length }} snapshots.
</p>
<h2>What happened</h2>
{% set met = [] %}
<ul>
{% for line in story.happened %}
<li>{{ glossed(line, met) }}</li>
{% endfor %}
{% for line in complaints %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% if story.cannot %}
<div class="card"><p>{{ glossed(story.cannot, met) }}
{% if story.command %}This command asks it; with --dry-run
it says how long that takes: <code>{{ story.command }}</code>{% endif %}</p></div>
{% endif %}
{% macro draw(kind) %}
{% for name in kinds[kind] %}
{% set caption = FIGURES[kind][1] %}
{% set size = name.partition("-")[2] %}
<figure class="{{ kind }}"><div class="wide"><img alt="{{ name }}: {{ caption.partition(".")[0] }}.
{%- if kind == "curves" %} {{ story.happened | join(" ") }}{% endif %}"
 src="data:image/png;base64,{{ base64.b64encode(images[name]).decode() }}"></div>
<figcaption>{% if size %}{{ size }}: {% endif %}{{ glossed(caption, met) }}</figcaption></figure>
{% endfor %}
{% endmacro %}
{% macro table(rows) %}
<div class="wide"><table>
<thead><tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if (row.values() | first).startswith("sham-") %} class="sham"{% endif %}>
{%- for cell in row.values() %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{{ draw("curves") }}
{% if player %}
{{ player | safe }}
{% endif %}
{% if findings.arms and findings.arms.effects %}
<h2>Arms: what another training does to emergence</h2>
<ul>
{% for line in arm_claim_lines(findings.arms.claims) %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{{ draw("arms") }}
{{ draw("shifts") }}
{% for title, rows in effect_tables(findings.arms.effects) %}
<h3>{{ title }}</h3>
{{ table(rows) }}
{% endfor %}
<p><small>{{ EFFECT_LEGEND }}</small></p>
{% endif %}
<h2>Layers, sizes and other measures</h2>
{% for kind in FIGURES if kind not in ("curves", "arms", "shifts", "choices") %}
{{ draw(kind) }}
{% endfor %}
<section>
{% if findings.scales.claims %}
<details><summary><h2>By size</h2></summary>
{% for rows in scale_tables(findings.scales) %}
{{ table(rows) }}
{% endfor %}
<p><small>{{ SCALE_LEGEND }}</small></p>
</details>
{% endif %}
<details{% if findings.levels | length < 13 %} open{% endif %}>
<summary><h2>Every event</h2></summary>
{% for size, rows in median_tables(findings.levels) %}
<h3>{{ size }}</h3>
{{ table(rows) }}
{% endfor %}
<p><small>{{ MEDIAN_LEGEND }} Grey: sham controls, whose answers cannot be learned. Each seed has
rows of its own in events.csv.</small></p>
</details>
<details{% if 2 * count >= rows | length %} open{% endif %}><summary><h2>What the paper claims:
{{ count }} of {{ rows | length }} can be told here</h2></summary>
{% for row in rows %}
<details class="claim{% if not told(row) %} untold{% endif %}"><summary><b>{{ row.claim }}</b>
<span>{{ row.text }}</span> <span class="verdict">{{ row.verdict }}</span></summary>
<dl>
{%- for name, cell in claim_cells(row).items() if cell != "-" -%}
<dt>{{ "paper " if name[0] == "v" }}{{ name }}</dt><dd>{{ cell }}</dd>
{%- endfor %}</dl></details>
{% endfor %}
{{ draw("choices") }}
<p><small>{{ CLAIM_LEGEND.format(**findings) }}
v1, v3, v4: versions of arXiv 2602.15997.</small></p>
</details>
<details><summary><h2>Beside the claims</h2></summary>
<ul>
{% for line in lines %}
<li>{{ line }}</li>
{% endfor %}
</ul>
</details>
<details><summary><h2>The words</h2></summary>
<dl>
{% for word, meaning in GLOSSARY.items() %}
<dt>{{ word | replace("rankme", "RankMe") }}</dt><dd>{{ meaning }}</dd>
{% endfor %}
</dl>
</details>
<details><summary><h2>How it was run</h2></summary>
{% set hidden = ["chance", "chance_log_prob", "answer_tokens", "numbers", "seed", "size"] %}
<pre>{% for key, value in run.config.items() if key not in hidden %}{{ key }}: {{ value }}
{% endfor %}</pre>
</details>
</section>
</body></html>
"""
