"""Does a GPU compute what the CPU does?  `python run.py bench --device cuda --prove` answers.

In some ten minutes on one card it looks at all that this toolkit asks of CUDA:

    tests        those that are marked `gpu`
    bits         training in bfloat16, stopped and resumed, and every measure, twice: the same bits
    numbers      every measure in float32, on the same weights, beside the CPU's
    steps        a training step of every size, as a share of the card's matrix-product peak; and of
                 nano, with CUDA graphs and without
    large        the largest size of the study, for the first 300 steps of its schedule: floors

What comes back is one dictionary.  `checks` holds a row for each thing that could have failed.

With device "cpu" it does the same on a CPU, beside the same CPU: that is how it is tested.
"""
import copy
import dataclasses
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import bench
import models
import sweep

LEVELS = ("copy-2", "parity-1", "add-1", "modadd-1", "sham-modadd-2")
TRAIN = models.TrainConfig(levels=LEVELS, steps=120, lr=2e-3, per_level=20, snapshots=9)
# Every measure, at a size at which a CPU answers within seconds.
MEASURE = sweep.MeasureConfig(
    measures=tuple(sweep.MEASURES), eval_examples=100, gradient_examples=60, hessian_examples=60,
    hessian_tol=1e-3, llc_examples=16, llc_rows=20, linear_examples=300)

# How far a GPU's number may be from the CPU's, as a share of it: float32 sums in another order.
# The LLC is a Monte Carlo estimate, and is judged by its own error.
WITHIN = {"accuracy": 0.03, "log_prob": 1e-3, "rankme": 1e-3, "gradient_rank": 1e-2,
          "fisher_rank": 1e-2, "hessian_top": 1e-2, "linear_probe": 0.05}
ERRORS = 4.0


def check(name, passed, **found):
    return {"check": name, "passed": bool(passed), **found}


# --------------------------------------------------------------------------------------------------
# The tests that are marked gpu

def gpu_tests(device):
    """None on a CPU, where all of them would be skipped."""
    if device == "cpu":
        return []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [done.stderr])[-1]
    passed = int((re.search(r"(\d+) passed", last) or [0, 0])[1])
    return [check("tests marked gpu", done.returncode == 0 and passed > 0, said=last)]


# --------------------------------------------------------------------------------------------------
# The same bits

def last_of(config, resume=None):
    for snapshot in models.train(config, resume):
        pass
    return snapshot


def same_weights(a, b):
    there = b.model.state_dict()
    return all(torch.equal(value, there[name]) for name, value in a.model.state_dict().items())


def same_bits(device, train):
    """Training twice, and once more with a stop on the way."""
    config = dataclasses.replace(train, device=device)
    first, second = last_of(config), last_of(config)
    for snapshot in models.train(config):
        if snapshot.step >= config.steps // 2:
            state = copy.deepcopy(snapshot.state())
            break
    resumed = last_of(config, state)
    found = {"steps": config.steps, "dtype": config.dtype, "loss": first.loss}
    return first, [check("training twice: the same bits", same_weights(first, second), **found),
                   check("training resumed: the same bits", same_weights(first, resumed),
                         resumed_at=state["step"])]


# --------------------------------------------------------------------------------------------------
# The same numbers

def measured(snapshot, train, measure, device):
    """{measure: {level: columns}} of these weights in float32 on that device, and the seconds."""
    model = copy.deepcopy(snapshot.model).to(device).float()
    config = dataclasses.replace(train, device=device, dtype="float32")
    found, seconds = {}, {}
    there, evals = snapshot._replace(model=model, loss=None), sweep.EvalSet(config, measure)
    evals.state = {}
    jobs = {"behaviour": sweep.measure_behaviour}
    jobs |= {name: row.function for name, row in sweep.MEASURES.items()}
    for name, job in jobs.items():
        bench.wait(device)
        begin = time.perf_counter()
        found[name] = sweep.rounded(job(there, evals))
        bench.wait(device)
        seconds[name] = time.perf_counter() - begin
    return found, seconds


def judged(columns, name):
    """The numbers of a level's columns that are compared: {quantity: value}."""
    if name == "behaviour":
        return {key: columns[key] for key in ("accuracy", "log_prob")}
    if name == "rankme":
        layers = enumerate(columns["rankme"]["first"])
        return {f"rankme in layer {layer}": value for layer, value in layers}
    if name == "joint":                                         # the Fisher rank's labels are drawn
        return {"gradient_rank": columns[name]["gradient_rank"],
                "hessian_top": columns[name]["eigenvalue"]}
    value = columns
    for key in sweep.MEASURES[name].number:
        value = value[key]
    return {name: value}


def distance(quantity, here, there, columns):
    """(how far apart, how far is allowed), for a level's number on the two devices."""
    if quantity.startswith("llc"):
        errors = [one[quantity]["mc_error"] for one in columns]
        return abs(there - here), ERRORS * math.hypot(*errors)
    if quantity in ("accuracy", "linear_probe"):                # shares: not relative to themselves
        return abs(there - here), WITHIN[quantity]
    return abs(there - here) / abs(here), WITHIN[quantity.partition(" ")[0]]


def farthest(name, cpu, device, levels):
    """The number of a measure that is farthest apart on the two, against what is allowed."""
    worst = {"apart": 0.0, "allowed": 1.0}
    for level in levels:
        columns = cpu[level], device[level]
        here, there = (judged(one, name) for one in columns)
        for quantity in here:
            apart, allowed = distance(quantity, here[quantity], there[quantity], columns)
            if not apart / allowed <= worst["apart"] / worst["allowed"]:    # NaN is the worst
                worst = {"apart": apart, "allowed": allowed, "quantity": quantity, "level": level,
                         "cpu": here[quantity], "device": there[quantity]}
    return worst


def same_numbers(snapshot, device, train, measure):
    """Every measure twice on the device, and beside the CPU's."""
    (first, seconds), (second, _), (cpu, cpu_seconds) = [
        measured(snapshot, train, measure, where) for where in (device, device, "cpu")]
    rows = [check(f"{name} twice: the same bits", first[name] == second[name]) for name in first]
    for name in first:
        worst = farthest(name, cpu[name], first[name], train.levels)
        rows.append(check(f"{name}: as on the CPU", worst["apart"] <= worst["allowed"], **worst,
                          seconds=seconds[name], cpu_seconds=cpu_seconds[name]))
    return rows


# --------------------------------------------------------------------------------------------------
# How fast

def graphs(device, train):
    """Milliseconds of a training step of nano, plain and compiled (on a GPU: CUDA graphs)."""
    found = {}
    for name, compiled in (("plain", 0), ("compiled", 1)):
        config = dataclasses.replace(train, device=device, compile=compiled, snapshots=train.steps)
        begin, times = time.perf_counter(), []
        for _ in models.train(config):
            bench.wait(device)
            times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
        found[name] = 1e3 * sorted(times[len(times) // 2:])[len(times) // 4]
    return found


def large_run(device, size, stop, levels):
    """The first steps of a joint run as `sweep` makes it: how long, and RankMe's floors."""
    train = models.TrainConfig(
        **models.defaults(len(levels)), size=size, levels=levels, stop=stop, device=device,
        dtype=models.pick_dtype(device))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / f"{size}-s0"
        sweep.run_one(sweep.Job(run, train, sweep.MeasureConfig()))
        rows, done = sweep.read_rows(run / "metrics.jsonl"), sweep.read_json(run / "done")
    curves = {level: [row["levels"][level]["rankme"]["first"][-2] for row in rows]
              for level in levels}
    return {"size": size, "steps": stop, "seconds": time.monotonic() - begin, "done": done,
            "loss": rows[-1]["loss"], "snapshots": len(rows),
            "start": {level: curve[0] for level, curve in curves.items()},
            "floor": {level: min(curve) for level, curve in curves.items()}}


# --------------------------------------------------------------------------------------------------
# All of it

def prove(device, say, train=TRAIN, measure=MEASURE, large=("large", 300)):
    """Everything, in order -> a dictionary, whose `checks` are rows with a `passed`.

    say: called with a few words on each part.  large: a size and its number of steps."""
    import tasks
    begin, fast = time.monotonic(), models.pick_dtype(device)
    torch.manual_seed(0)
    say(f"the tests marked gpu, on {device}")
    checks = gpu_tests(device)
    say(f"training in {fast}: twice, and resumed")
    snapshot, more = same_bits(device, dataclasses.replace(train, dtype=fast))
    checks += more
    say("every measure: twice, and on the CPU")
    checks += same_numbers(snapshot, device, train, measure)
    say("training steps")
    peaks, found = {}, {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    bench.raise_peaks(peaks, device)
    found["sizes"] = bench.bench_sizes(fast, device, peaks, say)
    for row in found["sizes"]:
        row["peak_share"] = row["flops"] / peaks[fast] if "flops" in row else None
    found["peak_flops"] = peaks
    if device == "cuda":
        found["graphs"] = graphs(device, dataclasses.replace(train, dtype=fast))
    say(f"{large[0]}, {large[1]} steps of the joint run")
    levels = tuple(f"{task}-{level}" for task in tasks.TASKS for level in tasks.LEVELS)
    run = large_run(device, *large, (*levels, *tasks.controls(tasks.TASKS, 4)))
    fallen = all(low < run["start"][level] for level, low in run["floor"].items())
    checks.append(check(f"{large[0]} trains, and RankMe falls in every task-level",
                        math.isfinite(run["loss"]) and fallen))
    found["large"] = run
    return found | {"checks": checks, "passed": all(one["passed"] for one in checks),
                    "wall_s": time.monotonic() - begin}
