"""Chapter 10: run.  The command line: it parses, calls, prints, and nothing else.

    python run.py                                  which commands there are
    python run.py sweep --task modadd              train, measure, find the events: the main job

Where everything goes (sweep.py says what is in a run's folder):

    runs/<sweep>/                                  named after its tasks
        <size>-s<seed>/                            a run: one model, trained once
        report.html, findings.json, events.csv, figures/*.png       derived: `analyse` remakes them
        watch.html             the film of its first run: `watch`

torch takes two seconds to import, so that is left to the bodies of the commands.
"""
import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
import webbrowser
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# A notebook's output is taken for a terminal, though it cannot redraw a line: there, as in a pipe,
# progress is lines of their own.
NOTEBOOK = "JPY_PARENT_PID" in os.environ
out = Console(highlight=False, force_terminal=False if NOTEBOOK else None)
if out.width < 40:                                              # no screen: some editors say 1
    out.width = 80
TYPER = dict(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app = typer.Typer(**TYPER, help="When a neural network suddenly gains a capability, what changed "
                                "inside it first?",
                  epilog="To begin, in about a minute: python run.py sweep --task modadd --sizes "
                         "nano --seeds 1 --measures rankme")
checkpoints = typer.Typer(**TYPER, help="The same question, asked of public checkpoints.  It needs "
                                        "pip install '.[pythia]'.")
app.add_typer(checkpoints, name="pythia")


Device = Enum("Device", {name: name for name in ("auto", "cpu", "cuda")}, type=str)
Dtype = Enum("Dtype", {name: name for name in ("float32", "bfloat16")}, type=str)
DEVICE = typer.Option("auto", help="auto takes CUDA where there is a device")
SETTINGS = typer.Option([], "--set", metavar="FIELD=VALUE", help="any other field; may be repeated")


class Stopped(Exception):
    """Ctrl-C or SIGTERM: exit status 130."""


def pick_device(name):
    """auto, cpu or cuda -> cpu or cuda."""
    import torch
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds none here; use --device cpu, or install torch "
                         "with CUDA; a run that was made with it is measured where it was made")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def cores():
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick(option, text, names):
    """"b,a" -> ("a", "b"), in the order of `names`, in which all must be; "all" is all of them."""
    asked = set(names) if text == "all" else {part.strip() for part in text.split(",")}
    for wrong in sorted(asked - set(names)):
        raise ValueError(f"{option} {text!r}: {wrong!r} is not one of {', '.join(names)} (several: "
                         "separated by commas; or all)")
    return tuple(name for name in names if name in asked)


def pick_levels(option, text):
    """"add,xor-2" -> ("add-1", "add-2", "add-3", "xor-2"): tasks, families of them, task-levels."""
    from tasks import ALL_TASKS, FAMILIES, LEVELS, TASKS
    of = {name: [f"{name}-{k}" for k in LEVELS] for name in ALL_TASKS}
    every = [level for levels in of.values() for level in levels]
    for family, names in {"all": TASKS, **FAMILIES}.items():
        of[family] = [level for name in names for level in of[name]]
    parts = {part.strip() for part in text.split(",")}
    for wrong in sorted(parts - set(of) - set(every)):
        raise ValueError(f"{option} {text!r}: {wrong!r} is not one of {', '.join(TASKS)}, nor a "
                         "level, such as add-1, nor one of the other tasks and families that "
                         "`python run.py tasks` lists (several: separated by commas)")
    asked = {level for part in parts for level in of.get(part, [part])}
    return tuple(level for level in every if level in asked)


def with_controls(text, count):
    """The task-levels of a sweep, shams included, and what its folder is called: "add+xor-2"."""
    import tasks
    levels = pick_levels("--task", text)
    names = [tasks.split_name(level)[0] for level in levels]
    whole = {name for name in names if names.count(name) == len(tasks.LEVELS)}
    called = "+".join(dict.fromkeys(name if name in whole else level
                                    for name, level in zip(names, levels)))
    if text == "all" or text in tasks.FAMILIES:
        called, count = text, 4 if count is None else count
    return levels + tasks.controls(dict.fromkeys(names), count or 0), called


def plural(number, what):
    """1 run, 2 runs."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def minutes(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plain_table(*columns):
    return Table(*columns, box=None, pad_edge=False, header_style="dim")


def save_figure(path, function, *arguments):
    """A figure into a file.  One that cannot be drawn costs a sentence; -> was it drawn?"""
    import report
    import sweep
    images, wrong = report.try_to_draw({path.stem: function}, *arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    for image in images.values():
        sweep.write_atomically(path, image)
    for sentence in wrong:
        out.print(escape(sentence))
    return not wrong


def draw_elsewhere(stack, *arguments):
    """A future of report.draw, in a process of its own; None where there cannot be one."""
    import report
    with contextlib.suppress(OSError, ImportError, NotImplementedError, RuntimeError):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        return stack.enter_context(pool).submit(report.draw, *arguments)


def bar(text):
    """A progress bar that leaves nothing behind."""
    return Progress(TextColumn(text), BarColumn(bar_width=24), TimeRemainingColumn(), console=out,
                    transient=True)


# --------------------------------------------------------------------------------------------------
# sweep

# The least and the most that a field of the config may be; the others are positive and finite.
LEAST = {"filler": -1, "snapshots": 2, "eval_examples": 2, "linear_examples": 8, "llc_draws": 4}
LEAST |= dict.fromkeys(
    ("seed", "warmup", "final_lr", "weight_decay", "beta1", "beta2", "keep", "llc_burnin",
     "compile", "until", "strength", "stop", "filler_shuffled", "film"), 0)
MOST = {"beta1": 0.99999, "beta2": 0.99999, "train_fraction": 1, "threads": 1024, "compile": 1,
        "filler": 100, "filler_shuffled": 1, "film": 60}


def with_settings(settings, *configs):
    """Apply ["lr=0.01", ...] to frozen dataclasses; each field is looked for in all of them."""
    configs, owner = list(configs), {}
    for i, config in enumerate(configs):
        names = [field.name for field in dataclasses.fields(config)]
        owner |= {name: i for name in names if name not in ("size", "seed", "device", "levels")}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in owner or not equals:
            raise ValueError(f"--set {setting!r}: expected field=value, with a field out of "
                             f"{', '.join(sorted(owner))}")
        config = configs[owner[name]]
        kind = type(getattr(config, name))
        try:
            value = tuple(value.split(",")) if kind is tuple else kind(value)
        except ValueError:
            raise ValueError(f"--set {setting!r}: {name} is of type {kind.__name__}, and {value!r} "
                             "is not") from None
        configs[owner[name]] = dataclasses.replace(config, **{name: value})
    for config in configs:
        check_values(config)
    return configs


def check_values(config):
    """Refuse early what would fail late, or not at all."""
    import sweep
    import tasks
    values = dataclasses.asdict(config)
    for name, value in values.items():
        if isinstance(value, (int, float)):
            low = LEAST.get(name, 1 if isinstance(value, int) else 1e-12)
            high = MOST.get(name, 10 ** 9 if isinstance(value, int) else sys.float_info.max)
            if not low <= value <= high:
                raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got "
                                 f"{str(value)[:60]}")
    if values.get("stop", 0) > values.get("steps", math.inf):
        raise ValueError(f"stop {config.stop}: the schedule has only {config.steps} steps")
    alone = [] if values.get("intervene", "x") else ["strength", "until"]
    alone += ["filler_shuffled"] if values.get("filler", 1) <= 0 else []
    for name in alone:
        if values[name] != getattr(type(config), name):
            raise ValueError(f"{name} {values[name]:g} does nothing here: without "
                             f"{'filler' if 'filler' in name else 'an intervention'}")
    known = {"levels": tasks.level_names(), "measures": list(sweep.MEASURES),
             "dtype": list(Dtype.__members__)}
    for name in known.keys() & values.keys():
        given = [values[name]] if isinstance(values[name], str) else list(values[name])
        if set(given) - set(known[name]) or len(set(given)) < len(given):
            raise ValueError(f"{name}: expected different ones out of {', '.join(known[name])}, "
                             f"got {','.join(given)!r}")


def parse_seeds(text):
    """"3" -> range(0, 3); "5-9" -> range(5, 10)."""
    first, dash, last = text.partition("-")
    if first.isdecimal() and (last.isdecimal() if dash else int(first) > 0):
        low, high = (int(first), int(last)) if dash else (0, int(first) - 1)
        if low <= high < 10_000:
            return range(low, high + 1)
    raise typer.BadParameter(f"{text!r}: expected a number of seeds, such as 3, or the first and "
                             "the last of them, such as 5-9, from 0 to 9999")


def name_of_arm(train):
    """What a sweep's folder is called after its tasks, where training is not the usual one."""
    name = f"-fraction{train.train_fraction:g}" if train.train_fraction < 1 else ""
    if train.intervene:
        name += f"-{train.intervene}"
        name += f"-{train.strength:g}" if train.strength != 1 else ""
        name += f"-until{train.until}" if train.until else ""
    if train.filler >= 0:
        name += f"-filler{train.filler}{'-shuffled' if train.filler_shuffled else ''}"
    return name


def make_plan(folder, seeds, train, measure, everything_first, settings):
    """The jobs of a sweep: the shortest first, which is soon to be seen, then the longest.

    seeds: {size: its seeds}.  everything_first: sweep.FIRST_RUN in the first run."""
    import sweep
    plan = []
    for size, own in seeds.items():
        for seed in own:
            config = dataclasses.replace(train, size=size, seed=seed)
            plan.append(sweep.Job(folder / f"{size}-s{seed}", config, measure))
    asked, first = {setting.partition("=")[0] for setting in settings}, plan[0].measure
    if everything_first and "measures" not in asked:
        first = dataclasses.replace(first, measures=sweep.FIRST_RUN)
    if "film" not in asked:                                     # a film of the first run alone
        first = dataclasses.replace(first, film=sweep.FRAMES)
    plan[0] = plan[0]._replace(measure=first)
    plan.sort(key=lambda job: sweep.work(job.train, job.measure))
    plan[1:] = sorted(plan[1:], key=lambda job: -sweep.work(job.train, job.measure))
    for i, (one, train, measure) in enumerate(plan):
        path = one / "config.json"
        if path.exists():                                       # a run keeps its number of threads
            saved = sweep.read_json(path)                       # and what it had as the first run
            if "threads" not in asked:
                train = dataclasses.replace(train, threads=saved.get("threads"))
            if "film" not in asked:
                measure = dataclasses.replace(measure, film=saved.get("film", 0))
            if everything_first and "measures" not in asked:
                measure = dataclasses.replace(measure, measures=tuple(saved.get("measures", ())))
            plan[i] = sweep.Job(one, train, measure)
            sweep.check_config(one, sweep.run_config(train, measure))
    return plan


@app.command("sweep")
def run_sweep(
        task: str = typer.Option(..., help="names of `python run.py tasks`, or levels, such "
                                 "as add-1, with commas; or all, arithmetic, sequences: families "
                                 "of eight"),
        sizes: str = typer.Option("nano,micro", help="from nano to xl, with commas; or all"),
        seeds: range = typer.Option(None, metavar="N|A-B", parser=parse_seeds, help="N: seeds 0 to "
                                    "N-1; A-B: A to B  [default: 3, and 1 of every size but the "
                                    "smallest]"),
        steps: int = typer.Option(None, min=1, help="training steps  [default: 600 for up to 3 "
                                   "task-levels, shams included, 1500 for up to 12, else 2000]"),
        measures: str = typer.Option(None, help="such as rankme,llc; or all; or none  [default: "
                                     "rankme; first run all but joint, llc_narrow; less often]"),
        controls: int = typer.Option(None, min=0, help="shams beside them  [default: 4 with all "
                                     "eight tasks or a family, else 0]"),
        train_fraction: float = typer.Option(1.0, help="share of the operands to train on; below "
                                             "1, accuracy on unseen ones is a column"),
        out_dir: Path = typer.Option("runs", "--out", help="where the sweep's directory goes"),
        intervene: str = typer.Option("", metavar="NAME", help="change training: marginal, "
                                      "wrong-marginal, head-bias, rank-up, rank-down, placebo"),
        device: Device = DEVICE,
        workers: int = typer.Option(None, min=1, help="processes  [default: all cores or GPUs]"),
        keep: int = typer.Option(0, min=0, help="keep every so-many-th snapshot's weights"),
        settings: list[str] = SETTINGS,
        dry_run: bool = typer.Option(False, "--dry-run", help="plan and cost, nothing else")):
    """Train, measure, date what emerges, draw: the main job."""
    import models
    import sweep
    import torch
    levels, name = with_controls(task, controls)
    sizes = pick("--sizes", sizes, tuple(models.SIZES))
    seeds = {size: seeds or range(3 if size == sizes[0] else 1) for size in sizes}
    device, fields = pick_device(device.value), models.defaults(len(levels))
    train = models.TrainConfig(
        **fields | ({"steps": steps} if steps else {}), levels=levels, device=device,
        dtype=models.pick_dtype(device), train_fraction=train_fraction, intervene=intervene,
        threads=max(1, cores() // sum(map(len, seeds.values()))))
    often = {} if measures is None else {"hessian_snapshots": 40, "llc_snapshots": 40}
    asked = "rankme" if measures is None else measures
    wanted = () if asked == "none" else pick("--measures", asked, tuple(sweep.MEASURES))
    measure = sweep.MeasureConfig(measures=wanted, keep=keep, **often)
    train, measure = with_settings(settings, train, measure)
    models.new_intervention(train)                              # an unknown name is said here
    folder = out_dir / f"{name}{name_of_arm(train)}"
    plan = make_plan(folder, seeds, train, measure, measures is None, settings)
    launched = sweep.local_rank() is not None                   # torchrun started several of us
    waiting = [job for job in plan if not job.is_done()]
    room = torch.cuda.device_count() if device == "cuda" else cores() // plan[0].train.threads
    workers = 1 if launched else max(1, min(workers or room, len(waiting)))
    show_plan(folder, plan, workers)
    show_cost(plan, waiting, workers, dry_run)
    if not dry_run:
        carry_out(folder, plan, waiting, workers, alone=not launched and len(plan) == 1)


def carry_out(folder, plan, waiting, workers, alone):
    """Do what is still to be done, and report on all that is."""
    import sweep
    folder.mkdir(parents=True, exist_ok=True)
    with show_progress(waiting, functools.partial(first_look, folder)):
        if workers > 1:
            failures = sweep.run_workers(workers, waiting)
        else:
            failures = sweep.run_worker(waiting, alone)
    if any(job.is_done() for job in plan):
        with sweep.locked(folder, wait=True):
            runs, missing = select(folder)
            missing += [f"{job.folder.name} was not started" for job in plan
                        if not (job.folder / "config.json").exists()]
            analyse_runs(folder, runs, missing, show="events")
    if failures:
        raise sweep.Failed("; ".join(failures))


def first_look(folder):
    """figures/curves.png of the runs that are done, while the others go on."""
    import emergence
    import report
    import sweep
    with contextlib.suppress(sweep.Failed, ValueError, OSError):    # `analyse` says what is wrong
        runs, _ = select(folder)
        events = emergence.event_table(runs)
        images, _ = report.try_to_draw({"curves": report.figure_curves}, events)
        (folder / "figures").mkdir(exist_ok=True)
        for name, image in images.items():
            sweep.write_atomically(folder / "figures" / f"{name}.png", image)
            out.print(f"first look: {folder}/figures/{name}.png")


def show_plan(folder, plan, workers):
    """Two lines: what is trained, and on what."""
    train, sizes = plan[0].train, [job.train.size for job in plan]
    counts = ", ".join(f"{size} x {sizes.count(size)}" for size in dict.fromkeys(sizes))
    many = len(train.levels)
    out.print(f"[bold]{folder}[/bold]: {plural(many, 'task-level')} in one model, {train.steps:,} "
              f"steps of {train.per_level * many} examples")
    out.print(f"{counts}; {train.dtype} on {train.device} (workers: {workers}, threads of each: "
              f"{train.threads})")


def show_cost(plan, waiting, workers, in_full):
    """How long what is still to do will take; in full: what takes it."""
    import models
    import sweep
    times, totals = {}, []
    for job in reversed(waiting):                               # of each size, its shortest run
        if job.train.size not in times:
            shape = models.gpt_config(job.train)
            times[job.train.size] = shape, *sweep.estimate(job.train, job.measure)
    table = plain_table(*"size parameters runs snapshots training measuring total".split())
    for size, (shape, training, measuring, snapshots) in times.items():
        runs = sum(job.train.size == size for job in waiting)
        seconds = training, measuring, runs * (training + measuring)
        table.add_row(size, f"{models.parameter_count(shape):,}", str(runs),
                      str(snapshots), *map(minutes, seconds))
    if waiting and in_full:
        out.print(table)
    for job in waiting:
        _, training, measuring, _ = times[job.train.size]
        totals.append(training + measuring)
        parts = []
        for name, (snapshots, cost) in sweep.costs(job.train, job.measure).items():
            if sweep.MEASURES[name].snapshots == "snapshots":   # timed above
                continue
            seconds = cost * training / models.last_step(job.train)
            totals[-1] += seconds
            parts.append(f"{name} {minutes(seconds)} ({snapshots} snapshots)")
        totals[-1] *= job.to_do()
        if parts and in_full:
            out.print(f"{job.folder.name} also: {', '.join(parts)}")
    ends = [0.0] * workers                                      # each takes the next when free
    for seconds in totals:
        ends[ends.index(min(ends))] += seconds
    rest = f"; about {minutes(max(ends))} on this machine"
    out.print(f"{plural(len(waiting), 'run')} to do, {len(plan) - len(waiting)} done already"
              f"{rest if waiting else ': they are analysed again'}")


def progress_of(job, begin):
    """-> (step, sentence) of a run in flight, by what it wrote after `begin`; without a step, if it
    is done; without a sentence, if it has no row yet."""
    with contextlib.suppress(OSError, IndexError, ValueError):  # not begun; no row; half a row
        if job.is_done():
            wall = json.loads((job.folder / "done").read_text())
            return None, (f"done: training {minutes(wall['wall_train_s'])}, measuring "
                          f"{minutes(wall['wall_measure_s'])}")
        rows = job.folder / "metrics.jsonl"
        if rows.stat().st_mtime > begin:
            row = json.loads(rows.read_text().splitlines()[-1])
            loss = "" if row["loss"] is None else f"  loss {row['loss']:.3f}"
            return row["step"], f"step {row['step']:,}{loss}{accuracies(row['levels'])}"
    return None, None


def accuracies(levels):
    """Of few task-levels each one's accuracy; of many, how many have left chance behind."""
    from tasks import chance, split_name
    real = {level: columns["accuracy"] for level, columns in levels.items()
            if not level.startswith("sham-")}
    tasks = list(dict.fromkeys(split_name(level)[0] for level in real))
    values = [f"{x:.2f}".removeprefix("0") for x in real.values()]
    if len(tasks) < 2:
        return f"  {' '.join(tasks + values)}"
    lows = [chance(*split_name(level)) for level in real]
    off = sum(x - low >= 0.3 * (1 - low) for x, low in zip(real.values(), lows))
    return f"  {off} of {len(real)} off chance"


def time_left(progress, number):
    (line,) = [line for line in progress.tasks if line.id == number]
    return f"  {minutes(line.time_remaining)} left" if line.time_remaining else ""


SILENCE = 30                          # seconds after which a reader thinks that nothing moves

@contextlib.contextmanager
def show_progress(plan, when_one_is_done=None):
    """Meanwhile, one line for each run in flight: step, loss, accuracy, time left.  Where the
    output is no terminal, a line at every tenth of a run, and after SILENCE.

    when_one_is_done is called once, with others to go."""
    import sweep
    stop, begin = threading.Event(), time.time()
    ends = {job: sweep.worth(job.train, job.measure) for job in plan}
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=8),
               TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"), TimeRemainingColumn())

    def watch():
        with Progress(*columns, console=out, transient=True,
                      speed_estimate_period=3600) as progress:  # a row may take minutes
            lines, tenths, ended, spoke = {}, {}, False, begin
            for job in plan:
                lines[job] = progress.add_task(job.folder.name, total=ends[job],
                                               visible=False, note="")
            while lines and not ended:
                ended, silent = stop.wait(0.5), time.time() - spoke > SILENCE
                for job in list(lines):
                    step, note = progress_of(job, begin)
                    if not note:
                        continue
                    if step is None:
                        progress.update(lines.pop(job), visible=False)
                        out.print(f"{job.folder.name}  {note}")
                        if when_one_is_done and len(lines) == len(plan) - 1 > 0:
                            when_one_is_done()
                        continue
                    made = sweep.worth(job.train, job.measure, step)    # the early steps are few,
                    progress.update(lines[job], completed=made, visible=True, note=note)  # and dear
                    tenth = int(10 * made / ends[job])
                    due = tenths.get(job, 0) < tenth < 10
                    if not out.is_terminal and (due or silent):
                        tenths[job], spoke = tenth, time.time()
                        out.print(f"{job.folder.name}  {int(100 * made / ends[job])}%  {note}"
                                  f"{time_left(progress, lines[job])}")
                if not out.is_terminal and time.time() - spoke > SILENCE:
                    out.print("still at work")
                    spoke = time.time()
    thread = threading.Thread(target=watch)
    try:
        thread.start()
        yield
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on from the last checkpoint") from None
    finally:
        stop.set()
        if thread.ident is not None:                            # stopped before it had begun
            thread.join()


# --------------------------------------------------------------------------------------------------
# analyse

def select(folder, seeds=None, sizes=None):
    """The finished runs of a sweep that have one of these seeds and sizes, None: any.

    Returns (runs, what is missing in words)."""
    import emergence
    import sweep
    rows, configs, missing = sweep.load(folder)
    kept = {name: x for name, x in configs.items() if (seeds is None or x.get("seed") in seeds)
            and (sizes is None or x.get("size") in sizes)}
    if not kept:
        raise ValueError(f"{folder} holds no finished run with these seeds and sizes; it holds "
                         f"{', '.join(configs)}")
    return emergence.from_table((row for row in rows if row[0] in kept), kept), missing


def analyse_runs(folder, runs, missing=(), forecast_null=0, others=None, show="claims"):
    """Everything derived of emergence's Runs, wherever they come from, on disk and screen.

    missing: what is not among them, in words.  forecast_null: see claims.study.  others: {sweep:
    runs}, which may be arms of one experiment with these.  show: a key of report.SHOWN."""
    import claims
    import emergence
    import report
    import sweep
    if all(run.shams.all() for run in runs):
        raise ValueError(f"{folder}: {report.HAPPENED['only shams']}")
    begin, specification = time.monotonic(), claims.Specification()
    large = sum(run.accuracy.size for run in runs) > 10_000     # else a process begins too late
    with contextlib.ExitStack() as stack:
        events = emergence.event_table(runs, **dataclasses.asdict(specification))
        drawing = large and draw_elsewhere(stack, runs, dataclasses.asdict(specification))
        choices = claims.specifications(runs=runs)
        out.print(f"analysing {plural(len(runs), 'run')} under {len(choices)} combinations of "
                  "choices")
        with bar("{task.description}") as progress:
            each = functools.partial(progress.track, description="choices")
            universe = claims.multiverse(runs, choices, each=each)
        with out.status("intervals, leads and forecasts"):
            found = claims.study(runs, specification, universe, forecast_null)
            together = sum((others or {}).values(), runs)
            found["arms"] = claims.study_arms(together, specification) | {
                "sweeps": [folder.resolve().name, *(others or ())]}
        findings = {"choices": dataclasses.asdict(specification),
                    "runs": [run.name for run in runs], "missing": list(missing), **found,
                    "levels": claims.medians(events), "sizes": claims.overview(events)}
        if runs[0].config["unit"] != "step":
            findings["unit"] = runs[0].config["unit"]
        with out.status("figures"):
            lines = report.write(folder, events, findings, universe, sweep.write_atomically,
                                 drawing, together, show, functools.partial(play, folder, events))
        for line in lines:
            out.print(line)
    wall = [sweep.read_json(x / "done") for x in sweep.run_folders(folder) if sweep.is_done(x)]
    spent = [f"{word} {minutes(sum(x.get(f'wall_{what}_s') or 0 for x in wall))}, " if wall else ""
             for word, what in (("the runs took: training", "train"), ("measuring", "measure"))]
    out.print(f"{''.join(spent)}analysing and drawing {minutes(time.monotonic() - begin)}")
    return findings


def play(folder, events):
    """The player of the sweep's film, as HTML; "" where no run of it was filmed."""
    import film
    import sweep
    filmed = sweep.find_film(folder, [run.name for run in events.runs])
    return film.player(events, *filmed) if filmed else ""


def names_apart(folders):
    """The last parts of each path, as many as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    for many in range(1, 1 + max(map(len, parts))):
        names = ["/".join(own[-many:]) for own in parts]
        if len(set(names)) == len(names):
            return names


@app.command("analyse")
def run_analyse(paths: list[Path] = typer.Argument(..., metavar="DIR|TABLE...", help="sweeps, such "
                                                   "as runs/modadd; or tables of your own: .csv, "
                                                   ".tsv, .json, .jsonl"),
                columns: str = typer.Option("", metavar="OURS=THEIRS,...", help="of a table that "
                                            "names them otherwise: step=_step,accuracy=val/acc"),
                forecast_null: int = typer.Option(0, min=0, help="exchanges of tasks that give the "
                                                  "forecast its p, such as 200: a minute"),
                seeds: range = typer.Option(None, metavar="N|A-B", parser=parse_seeds,
                                            help="only runs with these seeds"),
                sizes: str = typer.Option(None, help="only runs of these sizes, with commas"),
                full: bool = typer.Option(False, "--full", help="print every claim with its "
                                          "evidence, as the report has them")):
    """Findings and figures again, from the recorded rows alone.

    Several are also set side by side.  Of arms of one experiment (only intervene, strength, until
    or filler differ), the report of the first says what that did to emergence, by size and seed.
    What is derived of curves.csv goes to curves/; of some of the runs, to a folder named so."""
    import models
    import report
    import sweep
    sizes = sizes and pick("--sizes", sizes, tuple(models.SIZES))
    which = "-".join([*(sizes or ()), *(["seeds", str(seeds[0]), str(seeds[-1])] if seeds else ())])
    tables = [path for path in paths if path.is_file()]
    if which and tables or columns and not tables:
        raise ValueError("--columns is for tables, --seeds and --sizes are for sweeps' directories")
    places = []                                                 # (folder, runs, what is missing)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        for path in {path.resolve(): path for path in paths}.values():
            places.append((path.with_suffix(""), report.read_runs(path, columns), [])
                          if path in tables else (path / which, *select(path, seeds, sizes)))
    for note in notes:
        say(note.message)
    for folder, runs, _ in places:
        if not any((run.accuracy == run.accuracy).any() for run in runs):   # NaN: not measured
            names = ", ".join(dict.fromkeys(name for run in runs for name in run.curves))
            raise ValueError(f"{folder}: no accuracy, but {names}; --columns accuracy=NAME says so")
    folders = [folder for folder, _, _ in places]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("what is derived of two of these would go to one folder; rename a table")
    names, found = names_apart(folders), {}
    others = {name: runs for name, (_, runs, _) in list(zip(names, places))[1:]}
    show = "claims" if len(places) == 1 else "story"
    for name, (folder, runs, missing) in zip(names, places):
        folder.mkdir(exist_ok=True)
        if len(places) > 1:
            out.print(f"\n[bold]{escape(name)}[/bold]")
        with sweep.locked(folder, wait=True):
            found[name] = analyse_runs(folder, runs, missing, forecast_null,
                                       None if found else others, "full" if full else show)
    if len(found) > 1:
        out.print("", report.side_by_side(found), sep="\n")


# --------------------------------------------------------------------------------------------------
# watch

@app.command("watch")
def run_watch(folder: Path = typer.Argument(..., metavar="DIR", help="a sweep, or one of its runs"),
              no_open: bool = typer.Option(False, "--no-open", help="write the page, show none")):
    """The collapse and the recovery as a moving picture, in a browser.

    DIR/watch.html is one file that needs no network."""
    import emergence
    import film
    import sweep
    runs, _ = select(folder)
    filmed = sweep.find_film(folder, [run.name for run in runs])
    if filmed is None:
        raise sweep.BadInput(f"{folder} holds no film of a finished run; the command that made it, "
                             "with --set film=60 and another --out, records one of every run")
    events = emergence.event_table(runs)
    path = folder / "watch.html"
    sweep.write_atomically(path, film.page(folder.resolve().name, events, *filmed))
    out.print(f"{path}: {filmed[0]}, {len(filmed[1])} frames", soft_wrap=True, markup=False)
    screen = os.name == "nt" or sys.platform == "darwin"
    if not no_open and (screen or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(path.resolve().as_uri())


# --------------------------------------------------------------------------------------------------
# measure, tasks, bench

def saved_run(folder):
    """-> (a run's directory, TrainConfig, MeasureConfig).  folder: a run's, or a sweep's of one."""
    import models
    import sweep
    found = sweep.run_folders(folder)
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} runs; expected the directory of one, such "
                         "as runs/modadd/nano-s0")
    saved, configs = sweep.read_json(found[0] / "config.json"), []
    sweep.check_run(found[0], saved)
    saved = {key: tuple(x) if isinstance(x, list) else x for key, x in saved.items()}
    for kind in (models.TrainConfig, sweep.MeasureConfig):
        names = [field.name for field in dataclasses.fields(kind)]
        lacks = [name for name in names if name not in saved]
        if lacks:
            raise ValueError(f"{found[0]}/config.json lacks {', '.join(lacks[:5])}: expected a run "
                             "that `sweep` made")
        configs.append(kind(**{name: saved[name] for name in names}))
    return found[0], *configs


def snapshot_at(folder, train, step):
    """The model of a run at any of its steps: from its checkpoint or kept weights, else by training
    again, to the same bits."""
    import models
    import sweep
    import torch
    state = sweep.load_saved(folder / "weights" / f"step-{step:06d}.pt")
    saved = sweep.load_saved(folder / "checkpoint.pt")
    kept = saved.get("snapshot") if isinstance(saved, dict) else None
    if state is None and kept and kept["step"] == step:
        state = kept["model"]
    if state is not None:
        model = models.new_model(train)
        model.load_state_dict(state)
        return models.Snapshot(step, model, None, None)
    config, here = sweep.read_json(folder / "config.json"), sweep.environment()
    places = [entry.get("environment") or {} for entry in (config, *config.get("resumed", ()))]
    other = [f"{key} was {made.get(key)}, is {here[key]}" for made in places
             for key in ("torch", "system", "processor", "gpu") if made.get(key) != here[key]]
    if other:
        raise ValueError(f"{folder}: the weights of step {step} were not kept, and training again "
                         f"here would not give the same ones ({'; '.join(other)}); do it where the "
                         "run was made, or choose its last step")
    torch.set_num_threads(train.threads)
    every_step = dataclasses.replace(train, snapshots=train.steps + 1)  # looking changes nothing
    with bar("training again to step {task.total}") as progress:
        line = progress.add_task("", total=step)
        for snapshot in models.train(every_step):
            progress.update(line, completed=snapshot.step)
            if snapshot.step == step:
                return snapshot


def shown(value):
    if isinstance(value, (list, tuple)):
        return " ".join(shown(v) for v in value)
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def diagnostics(name, columns):
    """What one measure found for one task-level -> {heading: value} for the table."""
    found = columns[name]
    if name == "rankme":
        return {name: found["first"]}
    if name.startswith("llc"):
        rise = None if found["mean"] is None else found["mean"] / found["nbeta"]
        return {"LLC": found["mean"], "error": found["mc_error"], "bias": found["bias"],
                "noise only": found["noise_only"], "rise": rise}
    return found if isinstance(found, dict) else columns


def show_chains(found, path):
    """What an LLC's chains say of themselves; their traces as a figure."""
    import measures
    import report
    out.print(f"joint: LLC {shown(found.mean)} +- {shown(found.mc_error)}, "
              f"{shown(found.noise_only)} by noise alone; "
              f"{'usable' if found.usable else 'not usable'}")
    out.print(f"step: lr {shown(found.lr)}, stiffness {shown(found.stiffness)} here and "
              f"{shown(found.stiffness_after)} at the last draw")
    out.print(f"mixing: R-hat {shown(found.r_hat)}, {shown(found.ess)} effective draws, "
              f"{found.num_diverged} chains diverged")
    out.print(f"regime: nbeta {shown(found.nbeta)}, localization {shown(found.localization)}: half "
              f"of it would change the LLC by {found.change_by_half():+.0%}; the draws lose "
              f"{found.lost_share:.0%} of what training gained")
    for warning in found.warnings:
        out.print(f"Warning: {warning}.")
    draws = measures.llc_draws(found.losses, found.baselines, found.nbeta, 0)
    if save_figure(path, report.figure_traces, draws.tolist(), found.mean, found.noise_only):
        out.print(f"traces: {path}")


@app.command("measure")
def run_measure(
        folder: Path = typer.Argument(..., metavar="DIR", help="of a run: runs/modadd/nano-s0"),
        name: str = typer.Option(..., "--measure", help="one of those of `sweep --measures`"),
        step: int = typer.Option(None, min=0, help="any step; where its weights were not kept, the "
                                 "run is trained again  [default: the last]"),
        level: str = typer.Option("all", help="only these task-levels; the LLC's chains then "
                                  "follow the loss of these alone"),
        settings: list[str] = SETTINGS):
    """One measure of one snapshot of a run, with its diagnostics."""
    import models
    import sweep
    if name not in sweep.MEASURES:
        raise ValueError(f"--measure {name}: expected one of {', '.join(sweep.MEASURES)}")
    folder, train, measure = saved_run(folder)
    last = models.last_step(train)
    step = last if step is None else step
    if step > last:
        raise ValueError(f"--step {step}: expected a step of this run, 0 to {last}")
    pick_device(train.device)
    wanted = pick("--level", level, train.levels)
    measure, = with_settings(settings, measure)
    snapshot = snapshot_at(folder, train, step)
    evals = sweep.EvalSet(dataclasses.replace(train, levels=wanted), measure)
    out.print(f"{name} of {folder.name} at step {step:,}, of {', '.join(wanted)}")
    columns = sweep.MEASURES[name].function(snapshot, evals)
    found = {key: diagnostics(name, own) for key, own in columns.items()}
    headings = list(next(iter(found.values())))
    table = plain_table("task-level", *headings)
    for key, values in found.items():
        table.add_row(key, *(shown(values[heading]) for heading in headings))
    out.print(table)
    if name.startswith("llc"):                                  # what all levels share, once
        show_chains(evals.chains, folder / f"{name}-{step:06d}.png")
    out.print(sweep.MEASURES[name].about)


@app.command("tasks")
def run_tasks(name: str = typer.Argument("all", metavar="[NAME]", help="one task, or several, "
                                                                       "separated by commas")):
    """What the tasks look like: examples, chance, vocabulary."""
    import tasks
    import torch
    levels = pick_levels("NAME", ",".join(tasks.ALL_TASKS) if name == "all" else name)
    table = plain_table("task-level", "example", "tokens", "chance")
    for level_name in levels:
        task, level = tasks.split_name(level_name)
        count = 1 if name == "all" else 4
        batch = tasks.sample(task, level, count, torch.Generator().manual_seed(level))
        first = level_name, f"{tasks.chance(task, level):.3g}"
        for line in batch.tokens:
            table.add_row(first[0], escape(tasks.decode(line)), str(len(line)), first[1])
            first = "", ""
    out.print(table)
    for task in dict.fromkeys(tasks.split_name(level)[0] for level in levels):
        out.print(f"{task}: {tasks.ALL_TASKS[task].about}")
    out.print("chance: how often the best answer that ignores the operands is right, all of it.")
    families = "; ".join(f"{name}: {', '.join(of)}" for name, of in
                         {"all": tasks.TASKS, **tasks.FAMILIES}.items())
    out.print(f"families: {families}.")
    if name == "all":
        out.print(escape(f"vocabulary ({tasks.VOCAB_SIZE}): {' '.join(tasks.VOCABULARY)}"))


@app.command("bench")
def run_bench(as_json: bool = typer.Option(False, "--json", help="numbers instead of tables"),
              nanogpt: Path = typer.Option(None, metavar="PATH", help="a checkout of nanoGPT"),
              prove: bool = typer.Option(False, "--prove", help="does a GPU compute what the CPU "
                                         "does? ten minutes; JSON"),
              device: Device = DEVICE):
    """How fast this machine is, against its floor."""
    bench = of_tests("bench")
    import models
    import sweep
    import torch
    if prove and device.value != "cpu" and not torch.cuda.is_available():
        raise sweep.Failed("bench --prove: torch finds no CUDA device here (--device cpu tries the "
                           "same on the CPU)")
    device = pick_device(device.value)
    say = Console(stderr=True, highlight=False)
    if prove:
        proof = of_tests("prove")
        found = proof.prove(device, say.print)
        print(json.dumps(sweep.rounded(found), indent=1))
        if not found["passed"]:
            failed = [one["check"] for one in found["checks"] if not one["passed"]]
            raise sweep.Failed(f"bench --prove: {'; '.join(failed)}")
        return
    say.print("a minute and a half, with nothing else running; with nanoGPT a minute more")
    found = bench.bench(models.pick_dtype(device), device, cores(), nanogpt, say.print)
    if as_json:
        print(json.dumps(sweep.rounded(found), indent=1))
    else:
        for table in bench.tables(found):
            out.print(table, "")


# --------------------------------------------------------------------------------------------------
# Course assignments: tests/assignments.py does the work

PROBLEM_SET = typer.Option(None, "--problem-set", metavar="N", help="1 to 4; default: all")
VARIANT = typer.Option(None, "--variant", metavar="SEED", help="other constants in docstrings, "
                       "code and tests; 0: as they are here")


def of_tests(module):
    """A module of tests/, which a handout does not have."""
    sys.path.insert(0, str(Path(__file__).parent / "tests"))
    if importlib.util.find_spec(module) is None:
        raise ValueError("this tree is itself a handout: check yourself with python -m pytest -m "
                         "exercise; bench, handout and grade need the whole toolkit")
    return importlib.import_module(module)


@app.command("handout")
def run_handout(folder: Path = typer.Argument(..., metavar="DIR", help="empty, or not there yet"),
                problem_set: int = PROBLEM_SET, variant: int = VARIANT,
                gradescope: bool = typer.Option(False, help="also write the autograder's zip, "
                                                "DIR-autograder.zip")):
    """A course assignment: this tree, exercises blank.

    tests/COURSE.md says how a course uses it."""
    assignments = of_tests("assignments")
    exercises, points = assignments.handout(folder, problem_set, variant=variant or 0)
    out.print(escape(f"{folder}: {len(exercises)} exercises, {points} points, without their "
                     f"bodies; {folder}/SHEET.md says what to do"))
    if gradescope:
        target = folder.with_name(folder.name + "-autograder.zip")
        assignments.gradescope(target, problem_set, variant=variant or 0)
        out.print(escape(f"{target}: for Gradescope, with 2 GB of memory and a whole core"))


@app.command("grade")
def run_grade(
        folders: list[Path] = typer.Argument(..., metavar="DIR...", help="a submission, or a "
                                             "folder of submissions"),
        problem_set: int = PROBLEM_SET, variant: int = VARIANT,
        table: Path = typer.Option(None, "--csv", metavar="FILE", help="a row for each of them"),
        roster: Path = typer.Option(None, metavar="FILE", help="Canvas's list of students: --csv "
                                    "then has its columns"),
        results: Path = typer.Option(None, metavar="FILE", help="Gradescope's results.json of one "
                                     "submission"),
        require: float = typer.Option(None, metavar="POINTS", help="exit status 1 for fewer")):
    """Points for a handout that came back.

    Each submission runs by itself, under limits; first read tests/COURSE.md."""
    of_tests("assignments")
    import gradebook
    import grading
    import sweep
    people = gradebook.checked(table, results, roster, folders, require)
    try:
        with gradebook.progress() as tell:
            grades = grading.grade(folders, problem_set, variant, min(cores(), 8), tell=tell,
                                   single=results is not None,
                                   expected=gradebook.expected_variant(people))
    except RuntimeError as error:                               # its own tests do not start
        raise sweep.Failed(str(error)) from None
    files = gradebook.files(grades, people, table, results)
    for path, text in files.items():
        sweep.write_atomically(path, text)
    for line in [*gradebook.tables(grades), *(escape(f"written: {path}") for path in files)]:
        out.print(line)
    if require is not None and min(result.points for result in grades) < require:
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------
# The public checkpoints: pythia.py does the work

MODEL = typer.Argument(..., help="160m, 14m-seed3, olmo2-1b ..., owner/name on the hub, a folder")
REVISIONS = typer.Option(None, help="what the checkpoints are called, such as step{step} or, in a "
                                    "folder, checkpoint-{step}; default: as the suite has it")
STEPS = typer.Option("all", help="all, or numbers and ranges first:last:stride (of the steps that "
                                 "there are) with commas, such as 0,64,512,1000:143000:9000")
PROBES = typer.Option("all", help="of our own sets; or none")
PROBE_FILES = typer.Option([], help="BIG-Bench Hard .json, or .jsonl such as BLiMP's")
ITEMS = typer.Option(None, min=2, help="of each probe set; default: all of the smallest")
TOKENIZER = typer.Option(None, help="a tokenizer.json; default: the model's")
DTYPE = typer.Option("float32", help="of weights and forward passes")


def audited(model, revisions):
    """-> (manifest, Audit) of a model."""
    import pythia
    with bar("reading the branches") as progress:
        tell = functools.partial(progress.update, progress.add_task("", total=None))
        listing = pythia.manifest(model, tell, revisions)
    return listing, pythia.audit(listing)


def say(sentence):
    out.print(escape(str(sentence)))


def prepare(model, revisions, steps, probes, *options):
    """What plan and measure have in common -> (manifest, steps, probe sets, config's folder)."""
    import pythia
    names = () if probes == "none" else pick("--probes", probes, tuple(pythia.own_probes()))
    listing, audit = audited(model, revisions)
    kept, sets, about, sentence = pythia.prepare(model, listing, audit, steps, names, *options, say)
    say(f"{sentence}, at this machine's speed, and the download")
    return listing, kept, sets, about


@checkpoints.command("audit")
def pythia_audit(model: str = MODEL, revisions: str = REVISIONS,
                 run: Path = typer.Option(None, help="directory of a `pythia measure` of this "
                                          "model: an audit by content too")):
    """Which steps hold weights of their own: a table for an issue of the suite."""
    import pythia
    if run:
        listing, _, rows, audit = measured(run)
        rows, found = pythia.examine(rows, audit)
        own, left_out = [row["step"] for row in rows], audit.left_out | found
    else:
        listing, audit = audited(model, revisions)
        own, left_out = audit.own, audit.left_out
    out.print(f"{len(listing) - ('main' in listing)} checkpoints; {len(own)} hold weights of their "
              f"own{' and were loaded' if run else ''}: {', '.join(map(str, own))}")
    for name, sha, those in audit.groups:
        say(f"{name} {sha[:12]} is served by {len(those)} branches: {', '.join(map(str, those))}")
    typer.echo(pythia.audit_table(model, listing, left_out))


@checkpoints.command("plan")
def pythia_plan(model: str = MODEL, revisions: str = REVISIONS, steps: str = STEPS,
                probes: str = PROBES, probe_file: list[Path] = PROBE_FILES, items: int = ITEMS,
                tokenizer: Path = TOKENIZER, dtype: Dtype = DTYPE, device: Device = DEVICE):
    """What a measurement would download, and how long it takes."""
    import tempfile
    with tempfile.TemporaryDirectory() as cache:
        prepare(model, revisions, steps, probes, probe_file, items, tokenizer, dtype.value,
                pick_device(device.value), cache)


@checkpoints.command("measure")
def pythia_measure(
        model: str = MODEL, revisions: str = REVISIONS, steps: str = STEPS, probes: str = PROBES,
        probe_file: list[Path] = PROBE_FILES, items: int = ITEMS, tokenizer: Path = TOKENIZER,
        dtype: Dtype = DTYPE, device: Device = DEVICE,
        measures: str = typer.Option("none", help="gradient_rank, hessian_top, llc: far slower"),
        folder: Path = typer.Option(None, "--out", help="default: runs/pythia-MODEL"),
        yes: bool = typer.Option(False, "--yes", help="download without asking")):
    """Download, verify, measure, delete, one checkpoint at a time.  Killed: the same command."""
    import pythia
    import sweep
    import torch
    own = Path(model).resolve() if Path(model).is_dir() else Path(pythia.repository(model))
    folder = folder or Path("runs") / own.name
    extras = () if measures == "none" else pick("--measures", measures, tuple(pythia.EXTRAS))
    device, kind, cache = pick_device(device.value), getattr(torch, dtype.value), folder / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    listing, kept, sets, about = prepare(model, revisions, steps, probes, probe_file, items,
                                         tokenizer, dtype.value, device, cache)
    config = sweep.rounded(
        pythia.run_config(model, about, dtype.value, device, extras, sets, revisions))
    done = {row["step"] for row in sweep.read_rows(folder / "metrics.jsonl")}
    waiting = [step for step in kept if step not in done]
    if waiting and not yes:
        typer.confirm(f"download {len(waiting)} checkpoints, one at a time?", abort=True)
    sweep.write_config(folder, config, sweep.check_config(folder, config))
    sweep.write_atomically(folder / "manifest.json", json.dumps(listing) + "\n")
    with bar("step {task.fields[step]}") as progress:
        line = progress.add_task("", total=len(kept), completed=len(kept) - len(waiting), step="")

        def snapshots(state):
            for snapshot in pythia.snapshots(model, kept, listing, cache, kind, device, state):
                progress.update(line, advance=1, step=snapshot.step)
                yield snapshot
        sweep.record(folder, config, snapshots, pythia.ProbeMeasure(sets, extras), kept, seconds=0)
    then = f"compare {folder}" if sets else f"audit {model} --run {folder}"
    out.print(f"{folder}/metrics.jsonl: {len(kept)} checkpoints; next: python run.py pythia {then}")


def span(pair, never="never"):
    return never if pair is None else f"{pair[0]:,} to {pair[1]:,}"


@checkpoints.command("evals")
def pythia_evals(
        folder: Path = typer.Argument(..., metavar="FOLDER", help="lm-evaluation-harness results, "
                                      "a file per model and step"),
        threshold: float = typer.Option(0.05, help="share of the way from chance to perfect"),
        persistence: int = typer.Option(3, min=1),
        figure: Path = typer.Option("runs/pythia-evals.png", help="where to draw the curves")):
    """When each task emerges in evaluations, by model."""
    import pythia
    import report
    rows = pythia.read_evals(folder, say)
    events = pythia.evals_emergence(rows, threshold=threshold, persistence=persistence)
    table = plain_table("task", "model", "chance", "emerges", "best", "at step", "last")
    for e in events:
        last = f"{e.last:.3f}" + ("" if e.stderr is None else f" ± {e.stderr:.3f}")
        when = span(e.emergence, f"{span(e.late)}, too late to tell" if e.late else "never")
        table.add_row(e.task, e.model, f"{e.chance:.3f}", when, f"{e.best:.3f}",
                      f"{e.best_step:,}", last)
    out.print(table)
    say("\n".join(pythia.eval_notes(rows, events)))
    drawn = events and save_figure(figure, report.figure_evals, rows, events, pythia.CHANCE)
    out.print(f"emerges: after one checkpoint and by the next: {threshold:g} of the way from "
              f"chance to 1, and 3 standard errors, {persistence} checkpoints in a row. "
              f"{len(rows)} results; figure: {figure if drawn else 'none'}")


def measured(folder):
    """A directory of `pythia measure` -> (manifest, config, rows, Audit)."""
    import pythia
    import sweep
    rows = sweep.read_rows(folder / "metrics.jsonl")
    if not rows or not (folder / "manifest.json").exists():
        raise ValueError(f"{folder}: expected a directory of `python run.py pythia measure`")
    listing = {step if step == "main" else int(step): files
               for step, files in sweep.read_json(folder / "manifest.json").items()}
    return listing, sweep.read_json(folder / "config.json"), rows, pythia.audit(listing)


@checkpoints.command("compare")
def pythia_compare(
        folders: list[Path] = typer.Argument(..., metavar="DIR...", help="of `pythia measure`: the "
                                             "seeds, and the sizes, of a suite"),
        target: Path = typer.Option(None, "--out", help="default: DIR, or runs/compare")):
    """Geometry against behaviour, by the same rules as a sweep, and the verdict on C9."""
    import pythia
    import report
    import sweep
    found, models = [], {}
    for path, folder in {folder.resolve(): folder for folder in folders}.items():
        _, config, rows, audit = measured(folder)
        other = models.setdefault((config["model"], config["revisions"]), folder)
        if other != folder:
            raise ValueError(f"{other} and {folder} measure one model, {config['model']}: drop one")
        found.append(pythia.compare(path.name, config, rows, audit))
    target = target or (Path("runs/compare") if found[1:] else folder)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    notes = [note for one in found for note in pythia.notes(one)]
    findings = analyse_runs(target, [one.run for one in found], notes)
    notes += [f"{one.run.name}: {pythia.apart(one.steps)}" for one in found]
    table = plain_table("run", "probe set", "onset", "emergence", "lead", "verdict", "collapse",
                        "recovery", "compression")
    orders = [order for one in found for order in one.orders]
    for o in orders:
        table.add_row(o.run, o.task, span(o.onset), span(o.emergence), span(o.lead, "-"), o.verdict,
                      *("yes" if x else "no" for x in (o.collapse, o.recovery, o.compression)))
    out.print(table)
    verdict = pythia.c9_verdict(found, findings)
    sweep.write_atomically(target / "c9.json", {"verdict": verdict, "notes": notes,
                                                "orders": [o._asdict() for o in orders]})
    for one in found:
        save_figure(target / "figures" / f"compare-{one.run.name}.png", report.figure_compare, one)
    say("\n".join([*notes, verdict, f"{target}/c9.json, figures/compare-*.png"]))


# --------------------------------------------------------------------------------------------------

def explain(error):
    """-> (exit status, one sentence) for whatever ended a command."""
    if hasattr(error, "format_message"):                        # the command line's own
        path = error.ctx.command_path if getattr(error, "ctx", None) else "python run.py"
        return 2, f"{error.format_message().rstrip('.')}; see {path} --help"
    if isinstance(error, (Stopped, KeyboardInterrupt, typer.Abort)):
        return 130, str(error) or "stopped"
    if isinstance(error, (ValueError, ImportError)):
        return 2 if isinstance(error, ValueError) else 1, str(error)
    import sweep
    return 1, sweep.in_words(error)


def main():
    """One sentence on stderr for whatever the user can mend; a traceback only with --debug."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # like Ctrl-C
    home = str(Path(__file__).parent)
    if home not in sys.path:                                    # python -I leaves it out
        sys.path.insert(0, home)
    # Before torch starts its threads: one that waits for another one sleeps.  Left to spin, two
    # threads on two cores take five times as long as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                      # closed, it is None
            stream.reconfigure(errors="replace")                # not all know every letter
    if arguments in ([], ["pythia"]):
        arguments.append("--help")
    try:
        status = app(arguments, prog_name="python run.py", standalone_mode=False) or 0
        if status == 130:                                       # what typer makes of Ctrl-C
            raise Stopped
        sys.exit(status)
    except (Exception, KeyboardInterrupt) as error:
        status, message = explain(error)
        if debug and status != 130:
            raise
    message = "".join(c if c.isprintable() else " " for c in message)   # names come from files
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
