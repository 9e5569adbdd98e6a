"""The command line, and the only file that writes run directories and prints.

    python run.py sweep --task modadd              train, measure, find the events, draw: the main job
    python run.py sweep --task all --sizes nano    the study: 24 task-levels and 4 controls in one model
    python run.py analyse runs/modadd              findings and figures again, from config.json and metrics.jsonl alone
    python run.py measure runs/modadd/nano-s0 --measure llc --step 300        one measure of any step of a run, with its diagnostics
    python run.py tasks                            what the tasks look like
    python run.py pythia audit 2.8b                the same question asked of public checkpoints: audit, plan, measure, evals, compare

What a sweep leaves behind:

    runs/<sweep>/                 named after its tasks
        <size>-s<seed>/           one run: one model, trained once
            config.json           every field, chance levels, command line, versions
            metrics.jsonl         one row per snapshot, appended as training goes on
            checkpoint.pt         where to go on after a stop; replaced atomically, every 20 seconds
            weights/              with --keep N: the weights of every N-th snapshot
            done                  written last: a run that has it is not run again
        findings.json, events.csv, figures/*.png        derived: `analyse` makes them again

The same command again resumes: finished runs are skipped, a stopped one goes on from its checkpoint, to the same bits as
if it had not been stopped.  A reader who wants the science can skip this file.
"""
import contextlib
import csv
import dataclasses
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# torch takes two seconds to import.  So the names that a command line can get wrong stand here once more, for an answer
# in no time (a test holds them to the tables in tasks.py and models.py), and everything else is imported where it is used.
TASK_NAMES = ("copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply")
SIZE_NAMES = ("nano", "micro", "small", "medium", "large", "xl")
CONTROL_COUNT = 24
CHECKPOINT_SECONDS = 20               # how much work a killed run may lose

out = Console(highlight=False)
app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                  help="When a neural network suddenly gains a capability, what changed inside it first?")


class BadInput(Exception):
    """What the user can mend by writing another command: exit status 2."""


class Failed(Exception):
    """What went wrong while running: exit status 1."""


class Stopped(Exception):
    """Ctrl-C: exit status 130."""


# ---------------------------------------------------------------------------------------------------------------
# What a sweep measures

@dataclass(frozen=True)
class MeasureConfig:
    """Everything that decides what is measured.  It does not touch the weights."""
    measures: tuple = ("rankme",)     # names in MEASURES
    probe_examples: int = 200         # of each task-level, fixed, distinct where there are so many: for hidden states
    eval_examples: int = 1000         # of each task-level, others: for accuracy and log-probability
    costly_snapshots: int = 13        # gradient and Fisher rank and the Hessian are taken at so many of the snapshots, evenly spread
    dear_snapshots: int = 7           # the LLC and the linear probe, which cost most: with 7 at every second one of those 13
    gradient_examples: int = 512      # for the two ranks, shared out equally over the task-levels; of each at most 64, which bounds the ranks
    hessian_examples: int = 512       # for the top Hessian eigenvalue, likewise; of each at most 128
    hessian_tol: float = 0.02         # its residual: the eigenvalue's own error is about the square of that
    llc_examples: int = 64            # of each task-level, from which the LLC's mini-batches are drawn
    llc_rows: int = 48                # of a mini-batch, shared out equally; of each task-level at least 2
    llc_chains: int = 4               # one set, on the joint loss
    llc_draws: int = 125              # of each chain, after llc_burnin more
    llc_burnin: int = 25
    llc_nbeta: float = 30.0
    llc_lr: float = 5e-4              # the smallest with which a trained joint nano's chains mix (R-hat 1.01-1.04); its bias, 9%, is subtracted
    llc_localization: float = 300.0
    linear_examples: int = 2000       # of each task-level, three quarters to fit the linear probe, a quarter to test it
    keep: int = 0                     # keep the weights of every so-many-th snapshot; 0: none


def answer_tokens(level_name):
    """How many tokens the answers of a task-level have: all of them the same number."""
    import tasks
    line = tasks.sample(*tasks.split_name(level_name), 1, tasks.seeded("cpu"))
    return int((line.targets != tasks.IGNORE).sum())


class Probes:
    """The examples that a run is measured on: fixed, the same for every seed and size."""
    LINES, PROBES = 256, 96           # lines, and probes, that go through the model at once: their activations stay in the cache

    def __init__(self, train, measure):
        import torch, models, tasks
        self.levels, self.device, self.dtype, self.measure = train.levels, train.device, train.dtype, measure
        self.state = {}               # what a measure carries from one snapshot to the next: eigenvectors; part of the checkpoint
        self.pool = ThreadPoolExecutor(train.threads, initializer=torch.set_num_threads, initargs=(1,))     # of each worker, not of ours
        splits = {"accuracy": "all"} if train.train_fraction == 1 else {"accuracy": "all", "accuracy_train": "train", "accuracy_test": "test"}
        self.groups = [(name, column) for column in splits for name in self.levels]
        self.times, probes, lines, groups, counts = {}, [], [], [], []
        for g, (name, column) in enumerate(self.groups):
            pair, split = tasks.split_name(name), splits[column]
            if split == "all":                                                # for hidden states: each distinct line is run once,
                batch, d = tasks.probe_set(*pair, measure.probe_examples, tasks.seeded("cpu", "probe", *pair))
                probes += [tasks.Batch(*(x[i:i + 1] for x in batch)) for i in range(d)]
                self.times[name] = (torch.arange(measure.probe_examples) % d).bincount()            # and counts so many times
            batch = tasks.sample(*pair, measure.eval_examples, tasks.seeded("cpu", "eval", *pair, split), split, train.train_fraction)
            both, count = torch.cat(batch, 1).unique(dim=0, return_counts=True)                     # for behaviour: likewise
            lines += [tasks.Batch(*(x[None, :-1] for x in line.chunk(2))) for line in both]
            groups += [g] * len(count)
            counts += count.tolist()

        def chunks(x, largest):                                               # equal shares, as many for each thread
            size = -(-len(x) // (train.threads * -(-len(x) // (train.threads * largest))))
            return (x[i:i + size] for i in range(0, len(x), size))
        self.chunks = [(models.lay_out(part, self.device), torch.tensor(group, device=self.device), torch.tensor(count, device=self.device))
                       for part, group, count in zip(*(chunks(x, self.LINES) for x in (lines, groups, counts)))]
        self.probes = []                                                      # (tokens, layout, places of answers and of line ends)
        for part in chunks(probes, self.PROBES):
            ragged = models.lay_out(part, self.device)
            wanted = torch.cat([(line.targets[0] != tasks.IGNORE).index_fill(0, torch.tensor([line.targets.shape[1] - 1]), True) for line in part])
            self.probes.append((ragged.tokens, ragged.layout, ragged.layout.slots[wanted.to(self.device)]))
        self.answer_tokens = {name: answer_tokens(name) for name in self.levels}

    def each(self, function, items):
        """[function(item) for item in items], without gradients.  On a CPU one core takes one item: at this size that is faster
        than sharing every small operation out over the cores."""
        import torch

        def alone(item):
            with torch.inference_mode():                                       # these contexts belong to a thread
                return function(item)
        return list(map(alone, items) if self.device != "cpu" else self.pool.map(alone, items))


def measure_behaviour(snapshot, probes):
    """Accuracy (exact match), log-probability of the whole answer and loss per answer token, for every task-level.

    Greedy decoding gets an answer right exactly if each of its tokens is the most likely one after the true ones before it,
    so one forward pass is enough.  It runs in the precision of training."""
    import torch
    import torch.nn.functional as F

    def one(chunk):                                                           # -> (4, groups): sums over this chunk's lines
        ragged, group, count = chunk
        with torch.autocast(torch.device(probes.device).type, torch.bfloat16, enabled=probes.dtype == "bfloat16"):
            logits = snapshot.model(ragged.tokens, ragged.layout, ragged.at).float()                # (M, V)
        nll = F.cross_entropy(logits, ragged.targets, reduction="none")                             # (M,)
        per_line = torch.zeros(3, len(group), device=probes.device)
        per_line.index_add_(1, ragged.owner, torch.stack([(logits.argmax(1) != ragged.targets).float(), nll, torch.ones_like(nll)]))
        wrong, nll, tokens = per_line
        sums = torch.stack([(wrong == 0) * count, -nll * count, nll / tokens * count, count])
        return torch.zeros(4, len(probes.groups), device=probes.device).index_add_(1, group, sums)
    totals = torch.stack(probes.each(one, probes.chunks)).sum(0)
    accuracy, log_prob, loss = (totals[:3] / totals[3]).tolist()
    columns = {}
    for i, (level, column) in enumerate(probes.groups):
        columns.setdefault(level, {})[column] = accuracy[i]
        if column == "accuracy":
            columns[level] |= {"log_prob": log_prob[i], "loss": loss[i]}
    return columns


def measure_rankme(snapshot, probes):
    """RankMe of every layer's hidden states, at three kinds of position, for every task-level: one forward pass for all.

    Layers: the embedding, the residual stream after each block, and that after the final LayerNorm.  In float32, whatever
    training uses: rounding to bfloat16 is noise in all directions, and lifts a collapsed rank by some 8% (1.69 to 1.83)."""
    import torch, measures

    def one(chunk):
        states = snapshot.model.hidden_states(*chunk)
        return torch.stack([*states, snapshot.model.ln_f(states[-1])])        # (L, places, D)
    states, jobs, start = torch.cat(probes.each(one, probes.probes), 1), {}, 0
    for level in probes.levels:
        times, A = probes.times[level].to(states), probes.answer_tokens[level]
        d, k = len(times), A + 1                                              # distinct lines; places of each: the answer, the end
        lines = states[:, start:start + d * k].unflatten(1, (d, k))           # (L, d, k, D)
        lines = lines * times.sqrt()[:, None, None]                           # a row that counts c times is that row times sqrt(c)
        start += d * k
        kinds = {("first",): slice(1), ("answer",): slice(A)} if A > 1 else {("first", "answer"): slice(1)}      # the same, if A is 1
        for positions, where in {**kinds, ("last",): slice(A, k)}.items():
            features = lines[:, :, where].flatten(1, 2)                       # (L, n, D)
            jobs.setdefault(features.shape[1], []).append((level, positions, features))
    columns = {level: {"distinct": len(probes.times[level]), "rankme": {}} for level in probes.levels}
    for same in jobs.values():                                                # matrices of one shape go together
        ranks = measures.rankme_many(torch.cat([features for _, _, features in same])).view(len(same), -1).tolist()
        for (level, positions, _), layers in zip(same, ranks):
            columns[level]["rankme"] |= dict.fromkeys(positions, layers)
    return columns


def level_by_level(probes, count, name, function):
    """{level: function(level, examples)}: `count` fixed examples (tokens, targets) of each task-level, for one of the costly measures.

    On a CPU one core takes one task-level."""
    import tasks
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def one(level):
        batch = tasks.sample(*tasks.split_name(level), count, tasks.seeded("cpu", name, level))
        return function(level, tuple(x[:, :-1].to(probes.device) for x in batch))
    with sdpa_kernel(SDPBackend.MATH):                                        # a setting of the process: the threads must not undo each other's
        return dict(zip(probes.levels, map(one, probes.levels) if probes.device != "cpu" else probes.pool.map(one, probes.levels)))


def of_each(total, most, run):
    """A total shared out over the task-levels of a run: examples of each."""
    return max(2, min(most, total // len(run.levels)))


def measure_gradient_rank(snapshot, probes):
    """Effective rank of the gradient covariance, true labels."""
    import measures, models
    return level_by_level(probes, of_each(probes.measure.gradient_examples, 64, probes), "gradient", lambda level, batch: {
        "gradient_rank": measures.gradient_rank(snapshot.model, models.example_loss, batch)})


def measure_fisher_rank(snapshot, probes):
    """Effective rank of the Fisher matrix: labels drawn from the model, losses summed over the answer."""
    import measures, models, tasks

    def one(level, batch):
        drawn = models.resample_answers(snapshot.model, batch, tasks.seeded(probes.device, "fisher", level))
        return {"fisher_rank": measures.fisher_rank(snapshot.model, models.example_loss_sum, drawn)}
    return level_by_level(probes, of_each(probes.measure.gradient_examples, 64, probes), "gradient", one)


def measure_hessian_top(snapshot, probes):
    """Top eigenvalue of the Hessian of each task-level's loss, from the eigenvector of the snapshot before."""
    import measures, models, tasks

    def one(level, batch):
        top = measures.hessian_top(snapshot.model, models.example_loss, batch, probes.measure.hessian_tol, max_iters=30, start=probes.state.get(level),
                                   generator=tasks.seeded("cpu", "hessian", level))
        probes.state[level] = top.eigenvector
        return {"hessian_top": {k: getattr(top, k) for k in ("eigenvalue", "smallest", "iterations", "residual", "converged")}}
    return level_by_level(probes, of_each(probes.measure.hessian_examples, 128, probes), "hessian", one)


def llc_arguments(snapshot, probes):
    """-> (model, loss, data), {option: value} with which measures.llc is called."""
    import torch, models, tasks
    from torch.nn.functional import pad
    m, K = probes.measure, len(probes.levels)
    data = level_by_level(probes, m.llc_examples, "llc", lambda level, batch: batch).values()
    longest = max(tokens.shape[1] for tokens, _ in data)
    joint = tuple(torch.cat([pad(x, (0, longest - x.shape[1]), value=fill) for x in side]) for side, fill in zip(zip(*data), (tasks.PAD, tasks.IGNORE)))
    return (snapshot.model, models.packed_loss, joint), {
        "groups": torch.arange(K).repeat_interleave(m.llc_examples), "batch_size": K * of_each(m.llc_rows, m.llc_examples, probes), "num_chains": m.llc_chains,
        "num_draws": m.llc_draws, "num_burnin_steps": m.llc_burnin, "nbeta": m.llc_nbeta, "autocast": torch.bfloat16 if probes.dtype == "bfloat16" else None}


def measure_llc(snapshot, probes):
    """Every task-level's LLC from one set of chains on the joint loss; the joint one's diagnostics stand with each of them."""
    import measures, tasks
    place, options = llc_arguments(snapshot, probes)
    found = measures.llc(*place, lr=probes.measure.llc_lr, localization=probes.measure.llc_localization,
                         generator=tasks.seeded("cpu", "llc", snapshot.step), **options)
    same = {"joint": found.mean, "nbeta": found.nbeta, "r_hat": found.r_hat, "ess": found.ess, "num_diverged": found.num_diverged,
            "warnings": found.warnings}
    if found.group_means is None:                                             # every chain diverged: there is no value
        return {level: {"llc": {"mean": None, **same}} for level in probes.levels}
    return {level: {"llc": {"mean": float(found.group_means[k]), "mc_error": float(found.group_mc_errors[k]), "bias": float(found.group_biases[k]), **same}}
            for k, level in enumerate(probes.levels)}


def measure_linear_probe(snapshot, probes):
    """Held-out accuracy of a linear probe for the first answer token, from each layer's state where that token is predicted; and of the
    same on shuffled labels, from the last layer.  The untrained model's is the row of step 0."""
    import torch, measures, tasks

    def one(level, batch):
        tokens, targets = batch
        first = int((targets[0] != tasks.IGNORE).nonzero()[0])
        with torch.no_grad(), torch.autocast(torch.device(probes.device).type, torch.bfloat16, enabled=probes.dtype == "bfloat16"):     # in pieces whose activations stay in the cache
            pieces = [snapshot.model.hidden_states(part, at=torch.arange(len(part), device=part.device) * part.shape[1] + first)
                      for part in tokens.split(probes.PROBES)]
            states = [torch.cat(layer) for layer in zip(*pieces)]
            states.append(snapshot.model.ln_f(states[-1]))
        labels, generator = targets[:, first], tasks.seeded("cpu", "linear", level)
        order = torch.randperm(len(labels), generator=generator)
        return {"linear_probe": [measures.linear_probe(h, labels, generator) for h in states],
                "linear_probe_shuffled": measures.linear_probe(states[-2], labels[order], generator)}
    return level_by_level(probes, probes.measure.linear_examples, "linear", one)


# The vocabulary of --measures: name -> (snapshot, probes) -> columns for each task-level.  Accuracy needs no name.  RankMe is taken at
# every snapshot; the others, which cost far more, on a schedule.
MEASURES = {"rankme": measure_rankme, "gradient_rank": measure_gradient_rank, "fisher_rank": measure_fisher_rank,
            "hessian_top": measure_hessian_top, "llc": measure_llc, "linear_probe": measure_linear_probe}


def due(steps, count):
    """`count` of the steps, evenly spread over their list, the first and the last among them.

    >>> sorted(due([0, 1, 2, 4, 8, 16, 32], 4))
    [0, 2, 8, 32]
    """
    return {steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)}


def schedule(train, measure):
    """{name: steps at which it is taken} of everything that a run measures."""
    import models
    steps = models.snapshot_steps(train.steps, train.snapshots)
    counts = {"rankme": len(steps), "llc": measure.dear_snapshots, "linear_probe": measure.dear_snapshots}
    return {name: due(steps, min(len(steps), counts.get(name, measure.costly_snapshots))) for name in measure.measures}


def measure_row(snapshot, probes, names):
    """One row of metrics.jsonl, but for the clock."""
    levels = measure_behaviour(snapshot, probes)
    for name in names:
        for level, columns in MEASURES[name](snapshot, probes).items():
            levels[level] |= columns
    return {"step": snapshot.step, "loss": snapshot.loss, "levels": levels}


# ---------------------------------------------------------------------------------------------------------------
# Run directories

def rounded(x):
    """Six significant digits, and null for what is not a number (bare NaN is not JSON)."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v) for v in x]
    return x if not isinstance(x, float) else float(f"{x:.6g}") if math.isfinite(x) else None


def write_atomically(path, text):
    """All of it or nothing: written under another name in the same folder, then moved."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path, value):
    write_atomically(path, json.dumps(rounded(value), indent=1) + "\n")


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise Failed(f"{path} cannot be read as JSON ({error}); it should have been written by `sweep`: move it away and run that again")


def read_rows(path):
    """The rows of a metrics.jsonl; a last line that was cut off half-way is left out."""
    rows = []
    lines = path.read_text().splitlines() if path.exists() else []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            row["step"], row["levels"]
        except (ValueError, KeyError, TypeError):
            if i == len(lines) - 1:
                break
            raise Failed(f"{path}, line {i + 1}, is not a row that `sweep` wrote; move the run directory away and run it again")
        rows.append(row)
    return rows


def environment():
    """What a run depends on besides its config: for the record, not compared when resuming."""
    import torch

    def git(*arguments):
        try:
            return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"command": ["python", "run.py", *sys.argv[1:]], "git": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status),
            "torch": torch.__version__, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
            "processor": torch.backends.cpu.get_cpu_capability(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def run_config(train, measure):
    """config.json: every field, and what analysis needs to know about the tasks and the model."""
    import models, tasks
    pairs = {name: tasks.split_name(name) for name in train.levels}
    return rounded({**dataclasses.asdict(train), **dataclasses.asdict(measure),
                    "parameters": models.parameter_count(models.SIZES[train.size]), "width": models.SIZES[train.size].n_embd,
                    "n_layer": models.SIZES[train.size].n_layer,
                    "chance": {name: tasks.chance(*pair) for name, pair in pairs.items()},
                    "chance_log_prob": {name: tasks.chance_log_prob(*pair) for name, pair in pairs.items()},
                    "answer_tokens": {name: answer_tokens(name) for name in train.levels}})


def settle_config(folder, config):
    """Write config.json, or, where there is one, hold the new config against it: a folder keeps the config that it was begun with."""
    path = folder / "config.json"
    if not path.exists():
        write_json(path, {**config, "environment": environment()})
        return
    old = {k: v for k, v in read_json(path).items() if k != "environment"}
    different = [f"{k} was {old.get(k)!r}, now {config.get(k)!r}" for k in {**old, **config} if old.get(k) != config.get(k)]
    if different:
        raise BadInput(f"{folder} holds a run with another config ({'; '.join(different)}); choose another --out, or repeat the old command")


@contextlib.contextmanager
def locked(folder):
    """Hold the folder's lock, or raise Failed if another process has it.  The system lets go of it when a process ends, however
    it ends, so a killed run leaves no lock behind.  (Not on Windows, which has no fcntl.)"""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Failed(f"{folder} is being written by another process; wait for it, or stop it")
    finally:
        os.close(handle)


def load_checkpoint(path):
    import torch
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)       # weights_only: a checkpoint cannot run code
        state["train"]["step"], state["train"]["model"], state["train"]["optimizer"], state["wall"], state["state"]
        return state
    except Exception as error:                                                # whatever is wrong with a foreign file
        raise Failed(f"{path} is not a checkpoint that `sweep` wrote ({type(error).__name__}); move it away to start this run afresh")


def execute(folder, train, measure, tick):
    """Carry out one run in its directory, from wherever it was left.  tick(step, loss) is called at every snapshot."""
    import torch, models
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        settle_config(folder, run_config(train, measure))
        if (folder / "done").exists():
            return
        rows_path, checkpoint = folder / "metrics.jsonl", folder / "checkpoint.pt"
        resume, wall = None, {"train": 0.0, "measure": 0.0}
        if checkpoint.exists():
            saved = load_checkpoint(checkpoint)
            resume, wall = saved["train"], saved["wall"]
        rows = [row for row in read_rows(rows_path) if resume is not None and row["step"] <= resume["step"]]
        write_atomically(rows_path, "".join(json.dumps(row) + "\n" for row in rows))
        torch.set_num_threads(train.threads)
        probes, last_saved, last = Probes(train, measure), time.monotonic(), time.monotonic()
        probes.state = saved["state"] if resume is not None else {}
        wanted = schedule(train, measure)
        snapshots = models.train(train, resume)
        with open(rows_path, "a") as file:
            try:
                for count, snapshot in enumerate(snapshots, len(rows)):
                    wall["train"] += time.monotonic() - last
                    last = time.monotonic()
                    row = measure_row(snapshot, probes, [name for name, steps in wanted.items() if snapshot.step in steps])
                    wall["measure"] += time.monotonic() - last
                    last = time.monotonic()
                    row |= {"wall_train_s": round(wall["train"], 2), "wall_measure_s": round(wall["measure"], 2)}
                    file.write(json.dumps(rounded(row)) + "\n")
                    file.flush()
                    rows.append(row)
                    if measure.keep and count % measure.keep == 0:
                        (folder / "weights").mkdir(exist_ok=True)
                        save(snapshot.model.state_dict(), folder / "weights" / f"step-{snapshot.step:06d}.pt")
                    if last - last_saved > CHECKPOINT_SECONDS or snapshot.step == train.steps:
                        save({"train": snapshot.state(), "wall": wall, "state": probes.state}, checkpoint)
                        last_saved = time.monotonic()
                    tick(snapshot.step, snapshot.loss)
            except (FloatingPointError, ValueError) as error:                 # from training; from a measure that met a NaN
                raise Failed(f"{folder}, after step {rows[-1]['step'] if rows else 0}: {error}; the rows up to there are kept: try a smaller learning rate (--set lr=...)")
        write_json(folder / "done", {"wall_train_s": wall["train"], "wall_measure_s": wall["measure"]})


def save(state, path):
    import torch
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_sweep(folder):
    """-> (finished runs as (config, rows), what is missing in words)."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a directory; expected a sweep's, such as runs/modadd")
    runs, missing = [], []
    for path in sorted(folder.glob("*/config.json")):
        config, rows = read_json(path), read_rows(path.parent / "metrics.jsonl")
        if "levels" not in config or "chance" not in config:
            raise Failed(f"{path} is not a config that `sweep` wrote; move it out of {folder}")
        if rows and rows[-1]["step"] == config["steps"]:
            runs.append((config, rows))
        else:
            missing.append(f"{path.parent.name} stopped at step {rows[-1]['step'] if rows else 0} of {config['steps']}")
    if not runs:
        raise BadInput(f"{folder} holds no finished run" + (f" ({'; '.join(missing)})" if missing else "; expected a sweep's directory, such as runs/modadd"))
    return sorted(runs, key=lambda run: (run[0]["parameters"], run[0]["seed"])), missing


# ---------------------------------------------------------------------------------------------------------------
# The plan: which runs, and how long they will take

def chosen(option, text, names):
    """"b,a" -> ("a", "b"), in the order of `names`, in which all of them must be; "all" is all of them."""
    asked = set(names) if text == "all" else {part.strip() for part in text.split(",")}
    for wrong in sorted(asked - set(names)):
        raise BadInput(f"{option} {text!r}: {wrong!r} is not one of {', '.join(names)} (several: separated by commas; or all)")
    return tuple(name for name in names if name in asked)


def with_settings(settings, *configs):
    """Apply ["lr=0.01", ...] to frozen dataclasses; each field is looked for in all of them."""
    fields = {f.name: i for i, config in enumerate(configs) for f in dataclasses.fields(config)}
    configs = list(configs)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in fields or not equals:
            raise BadInput(f"--set {setting!r}: expected field=value, with a field out of {', '.join(sorted(fields))}")
        config = configs[fields[name]]
        kind = type(getattr(config, name))
        try:
            value = tuple(value.split(",")) if kind is tuple else kind(value)
        except ValueError:
            raise BadInput(f"--set {setting!r}: {name} is of type {kind.__name__}, and {value!r} is not")
        configs[fields[name]] = dataclasses.replace(config, **{name: value})
    return configs


def check(train, measure):
    """The values that would fail late, or not at all, are refused early."""
    positive = {"steps": train.steps, "per_level": train.per_level, "lr": train.lr, "threads": train.threads, "clip": train.clip,
                "snapshots": train.snapshots - 1,
                "probe_examples": measure.probe_examples - 1, "eval_examples": measure.eval_examples}
    for name, value in positive.items():
        if not value > 0:
            raise BadInput(f"{name}: expected a larger number, got {getattr(train, name, None) or getattr(measure, name, value)!r}")
    for name, value in {"warmup": train.warmup, "keep": measure.keep, "weight_decay": train.weight_decay}.items():
        if value < 0:
            raise BadInput(f"{name}: expected a number of at least 0, got {value!r}")
    if not 0 < train.train_fraction <= 1:
        raise BadInput(f"train_fraction: expected a number above 0 and at most 1, got {train.train_fraction!r}")
    if train.dtype not in ("float32", "bfloat16"):
        raise BadInput(f"dtype: expected float32 or bfloat16, got {train.dtype!r}")


def pick_device(name):
    import torch
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no CUDA device here; use --device cpu, or install torch with CUDA")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def pick_dtype(device):
    """bfloat16 where the processor or GPU says that it has the instructions; never by a clock, for it changes numbers."""
    import torch
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    declared = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if declared() else "float32"


def defaults(levels):
    """(steps, peak learning rate) with which nearly all task-levels emerge at the smallest size.  One task alone is quick; 24 levels
    that share a model need more of both (at 1e-3, some of them do not emerge; for one task alone, 2e-3 is too much)."""
    return (600, 1e-3) if levels <= 3 else (1500, 2e-3) if levels <= 12 else (2000, 2e-3)


def estimate(train, measure):
    """Seconds of training and of measuring accuracy and RankMe in one run, from a few steps and one snapshot of it timed here and now."""
    import torch, models
    torch.set_num_threads(train.threads)
    probes = Probes(train, measure)
    snapshots = models.train(dataclasses.replace(train, lr=0.0, snapshots=train.steps + 1))       # one after every step
    first, begin = next(snapshots), time.monotonic()
    for first in itertools.islice(snapshots, 5):
        if first.step == 1:                                                   # the first step pays for what is set up once
            begin = time.monotonic()
    per_step, taken = (time.monotonic() - begin) / max(1, first.step - 1), []
    for _ in range(2):
        start = time.monotonic()
        measure_row(first, probes, [name for name in measure.measures if name == "rankme"])
        taken.append(time.monotonic() - start)
    count = len(models.snapshot_steps(train.steps, train.snapshots))
    return per_step * train.steps, min(taken) * count, count


def costly(train, measure, training):
    """{name: (snapshots, seconds)} of the costly measures of one run, by counting operations: the examples that they send through the model
    times what each of these costs in training's time per example (seen at nano on a CPU that trains in bfloat16), from the seconds that
    training takes."""
    K, m = len(train.levels), measure
    ranks = K * of_each(m.gradient_examples, 64, train)
    examples = {"gradient_rank": 15 * ranks, "fisher_rank": 17 * ranks, "hessian_top": 25 * K * of_each(m.hessian_examples, 128, train),
                "llc": 1.6 * K * of_each(m.llc_rows, m.llc_examples, train) * m.llc_chains * (m.llc_draws + m.llc_burnin), "linear_probe": 0.8 * K * m.linear_examples}
    return {name: (len(steps), len(steps) * examples[name] * training / (train.steps * train.per_level * K))
            for name, steps in schedule(train, m).items() if name != "rankme"}


def minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@app.command()
def sweep(task: str = typer.Option(..., help=f"one or more of {', '.join(TASK_NAMES)}, separated by commas; or all"),
          sizes: str = typer.Option("nano,micro", help=f"one or more of {', '.join(SIZE_NAMES)}; or all"),
          seeds: int = typer.Option(3, help="number of seeds: 0 to N-1"),
          steps: int = typer.Option(0, help="training steps  [default: 600 for one task, 1500 for up to four, else 2000]"),
          measure: str = typer.Option("", "--measures", help="of every run: one or more of rankme, gradient_rank, fisher_rank, hessian_top, llc, linear_probe; all; none  "
                                       "[default: rankme, and all of them, less often, in the first run]"),
          controls: int = typer.Option(-1, help="sham task-levels trained beside the others  [default: 4 with --task all, else 0]"),
          train_fraction: float = typer.Option(1.0, help="share of the operand tuples to train on; below 1, accuracy on the unseen ones is a column"),
          out_dir: Path = typer.Option("runs", "--out", help="where the sweep's directory goes"),
          device: str = typer.Option("auto", help="auto, cpu or cuda"),
          keep: int = typer.Option(0, help="keep the weights of every so-many-th snapshot"),
          settings: list[str] = typer.Option([], "--set", metavar="FIELD=VALUE", help="any other field of the config; may be repeated"),
          dry_run: bool = typer.Option(False, "--dry-run", help="show the plan and what it will cost, and stop")):
    """Train models, measure them on the way, find when capabilities emerge and what came before."""
    names = chosen("--task", task, TASK_NAMES)
    picked_sizes = chosen("--sizes", sizes, SIZE_NAMES)
    wanted = () if measure == "none" else chosen("--measures", measure or "rankme", tuple(MEASURES))
    often = {"costly_snapshots": 40, "dear_snapshots": 40} if measure else {}
    controls = controls if controls >= 0 else 4 if names == TASK_NAMES else 0
    if seeds < 1 or controls > CONTROL_COUNT or steps < 0:
        raise BadInput(f"--seeds {seeds}, --controls {controls}, --steps {steps}: expected at least one seed, at most {CONTROL_COUNT} controls, and no negative number")
    import torch, models, tasks
    device = pick_device(device)
    levels = tuple(f"{name}-{k}" for name in names for k in tasks.LEVELS) + tasks.CONTROLS[:controls]
    default_steps, lr = defaults(len(levels))
    base = models.TrainConfig(levels=levels, steps=steps or default_steps, lr=lr, per_level=max(10, 132 // len(levels)), device=device,
                              dtype=pick_dtype(device), threads=torch.get_num_threads(), train_fraction=train_fraction)
    base, measured = with_settings(settings, base, MeasureConfig(measures=wanted, keep=keep, **often))
    check(base, measured)
    folder = out_dir / (("all" if names == TASK_NAMES else "+".join(names)) + (f"-fraction{train_fraction:g}" if train_fraction < 1 else ""))
    everything = dataclasses.replace(measured, measures=tuple(MEASURES))     # by default: in the first run, RankMe alone in the others
    plan = [(folder / f"{size}-s{seed}", dataclasses.replace(base, size=size, seed=seed), everything if not measure and (size, seed) == (picked_sizes[0], 0) else measured)
            for size in picked_sizes for seed in range(seeds)]
    waiting = [job for job in plan if not (job[0] / "done").exists()]
    for path, config, measured in plan:
        if (path / "config.json").exists():                                   # a finished run, too, must be the one that was asked for
            settle_config(path, run_config(config, measured))

    out.print(f"[bold]{folder}[/bold]: {len(levels)} task-levels, {base.steps:,} steps of {base.per_level * len(levels)} examples, "
              f"{base.dtype} on {device} ({base.threads} threads), measuring {', '.join(('accuracy', *wanted))}")
    costs = {size: estimate(dataclasses.replace(base, size=size), measured) for size in dict.fromkeys(config.size for _, config, _ in waiting)}
    table = Table("size", "parameters", "runs", "snapshots", "training", "measuring", "in all", box=None, pad_edge=False, header_style="dim")
    for size, (training, measuring, count) in costs.items():
        n = sum(config.size == size for _, config, _ in waiting)
        table.add_row(size, f"{models.parameter_count(models.SIZES[size]):,}", str(n), str(count), minutes(training), minutes(measuring), minutes(n * (training + measuring)))
    if waiting:
        out.print(table)
    total = sum(sum(costs[config.size][:2]) for _, config, _ in waiting)
    for path, config, measured in waiting:
        extra = costly(config, measured, costs[config.size][0])
        total += sum(seconds for _, seconds in extra.values())
        if extra:
            out.print(f"{path.name} also: " + ", ".join(f"{name} {minutes(seconds)} ({n} snapshots)" for name, (n, seconds) in extra.items()))
    out.print(f"{len(waiting)} runs to do, {len(plan) - len(waiting)} done already; about {minutes(total)} on this machine")
    if dry_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"), TimeRemainingColumn()
    failures = []
    with Progress(*columns, console=out, transient=True) as progress:
        for k, (path, config, measured) in enumerate(waiting):
            line = progress.add_task(f"{path.name} ({k + 1} of {len(waiting)})", total=config.steps, note="")
            start = time.monotonic()
            try:
                execute(path, config, measured, lambda step, loss: progress.update(
                    line, completed=step, note=f"step {step:,}" + ("" if loss is None else f"  loss {loss:.3f}")))
                progress.console.print(f"{path.name}  done in {minutes(time.monotonic() - start)}")
            except Failed as error:                                           # the other runs can still be done
                failures.append(str(error))
            except KeyboardInterrupt:
                raise Stopped("stopped; the same command goes on from the last checkpoint")
            progress.remove_task(line)
    if any((path / "done").exists() for path, *_ in plan):
        report(folder, [path.name for path, *_ in plan if not (path / "done").exists()])
    if failures:
        raise Failed("; ".join(failures))


# ---------------------------------------------------------------------------------------------------------------
# Findings

def report(folder, unfinished=()):
    """Everything derived: findings.json, events.csv, the figures, and the table on the screen."""
    start = time.monotonic()
    import emergence
    runs, missing = load_sweep(folder)
    missing += [f"{name} was not started" for name in unfinished if not (folder / name / "config.json").exists()]
    if not all("rankme" in config["measures"] for config, _ in runs):
        out.print("RankMe was not measured: there is nothing to find in this sweep")
        return
    choices = emergence.Choices()
    found = [event for config, rows in runs for event in emergence.events(config, rows, choices)]
    summary = emergence.summarise(found)
    lead = emergence.lead_check(found)
    top_down = {key: sum(e[key] for e in found) / len(found) for key in ("top_down_floor", "top_down_time")}
    write_json(folder / "findings.json", {"choices": dataclasses.asdict(choices), "runs": len(runs), "missing": missing, "lead_check": lead,
                                           **top_down, "levels": summary})
    temporary = folder / "events.csv.tmp"
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]))
        writer.writeheader()
        writer.writerows(rounded(event) for event in found)
    os.replace(temporary, folder / "events.csv")
    paths = []
    (folder / "figures").mkdir(exist_ok=True)
    for make in emergence.FIGURES.values():
        for name, figure in make(runs, choices).items():
            paths.append(folder / "figures" / f"{name}.png")
            figure.savefig(paths[-1], dpi=160)
    out.print(summary_table(summary))
    out.print("Median (range) over seeds. floor: lowest RankMe. onset: step at which RankMe recovers. lead: emergence - onset, in steps. "
              "first: seeds whose RankMe recovered before emergence / that emerged / all.")
    out.print(f"Top-down?  Of all pairs of layers, the deeper one has the lower floor in {top_down['top_down_floor']:.0%} and reaches it earlier in "
              f"{top_down['top_down_time']:.0%} (50%: no order; the embedding and the final norm are left out).")
    out.print(f"Is a lead more than common timing gives?  Risk-set test: z = {lead['z']:.2f} on an information of {lead['information']:.1f}: {lead['verdict']}.")
    if lead["shams"]:
        out.print(f"Of {lead['shams']} sham controls {lead['sham_emergences']} emerged, and {lead['sham_onsets']} show an onset of RankMe: false alarms.")
    for line in missing:
        out.print(f"missing: {escape(line)}")
    wall = [read_json(path) for path in folder.glob("*/done")]
    training, measuring = (sum(w[key] for w in wall) for key in ("wall_train_s", "wall_measure_s"))
    out.print(f"training {minutes(training)}, measuring {minutes(measuring)}, analysing and drawing {minutes(time.monotonic() - start)}")
    out.print(f"{folder}/findings.json, events.csv; figures: {', '.join(str(path) for path in paths)}")


def summary_table(summary):
    """Per size and task-level: medians over seeds, with the range."""
    def cell(spread, form="{:.0f}"):
        if not spread:
            return "-"
        text = form.format(spread["median"])
        return text if spread["low"] == spread["high"] else f"{text} ({form.format(spread['low'])} to {form.format(spread['high'])})"
    table = Table("size", "task-level", "floor", "onset", "emergence", "lead", "first", box=None, pad_edge=False, header_style="dim")
    for s in summary:
        table.add_row(s["size"], s["level"], cell(s["floor"], "{:.1f}"), cell(s["onset"]), cell(s["emergence"]) if s["emerged"] else "never", cell(s["lead"]),
                      f"{s['rankme_first']}/{s['emerged']}/{s['seeds']}", style="dim" if s["control"] else None)
    return table


# ---------------------------------------------------------------------------------------------------------------
# One measure of one snapshot

MEANING = {
    "rankme": "Effective number of directions of the hidden states where the first answer token is predicted: embedding, each block, final norm.",
    "gradient_rank": "Along how many directions the gradients of the examples disagree; at most their number less one.",
    "fisher_rank": "Effective rank of the Fisher matrix, labels drawn from the model; at most the number of examples.",
    "hessian_top": "Curvature of the loss along its sharpest direction.  residual: |Hv - lambda v| / |lambda|; products: Hessian-vector products.",
    "llc": "rise: by how many nats the loss is higher around these weights (LLC / nbeta), where each weight may stray some localization^-1/2.  Where the rise "
           "brings the loss to that of guessing, the LLC only mirrors the loss at the weights; a negative one means that they are no minimum.",
    "linear_probe": "Accuracy of a linear probe for the first answer token: embedding, each block, final norm; then the last block's on shuffled labels."}


def saved_run(folder):
    """-> (run directory, TrainConfig, MeasureConfig, what config.json says of its environment).  `folder`: a run's, or a sweep's that has one run."""
    import models
    found = [folder] if (folder / "config.json").exists() else sorted(path.parent for path in folder.glob("*/config.json"))
    if len(found) != 1:
        raise BadInput(f"{folder} holds {len(found)} runs; expected the directory of one, such as runs/modadd/nano-s0")
    saved = read_json(found[0] / "config.json")
    if "levels" not in saved:
        raise Failed(f"{found[0]}/config.json is not a config that `sweep` wrote")
    train, measure = (kind(**{f.name: tuple(saved[f.name]) if isinstance(saved[f.name], list) else saved[f.name] for f in dataclasses.fields(kind) if f.name in saved})
                      for kind in (models.TrainConfig, MeasureConfig))
    return found[0], train, measure, saved.get("environment", {})


def snapshot_at(folder, train, made, step):
    """The model of a run at any of its steps: from its checkpoint or kept weights, else by training again, to the same bits."""
    import torch, models
    kept, checkpoint = folder / "weights" / f"step-{step:06d}.pt", folder / "checkpoint.pt"
    state = torch.load(kept, map_location=train.device, weights_only=True) if kept.exists() else None
    if state is None and checkpoint.exists() and (saved := load_checkpoint(checkpoint)["train"])["step"] == step:
        state = saved["model"]
    if state is not None:
        model = models.new_model(train)
        model.load_state_dict(state)
        return models.Snapshot(step, model, None, None)
    here = environment()
    other = [f"{key} was {made.get(key)}, is {here[key]}" for key in ("torch", "system", "processor", "gpu") if made.get(key) != here[key]]
    if other:
        raise BadInput(f"{folder}: the weights of step {step} were not kept, and training again here would not give the same ones ({'; '.join(other)}); "
                       "do it where the run was made, or choose its last step")
    torch.set_num_threads(train.threads)
    with Progress(TextColumn("training again to step {task.total}"), BarColumn(bar_width=24), TimeRemainingColumn(), console=out, transient=True) as progress:
        line = progress.add_task("", total=step)
        for snapshot in models.train(dataclasses.replace(train, snapshots=train.steps + 1)):       # one after every step: looking changes nothing
            progress.update(line, completed=snapshot.step)
            if snapshot.step == step:
                return snapshot


def calibrate(snapshot, probes, folder):
    """The LLC over lr x localization: a table, a figure, a recommendation."""
    import measures
    place, options = llc_arguments(snapshot, probes)
    table = Table(*"localization lr LLC error bias rise R-hat draws effective".split(), box=None, pad_edge=False, header_style="dim")
    cells = []
    with Progress(TextColumn("cell {task.completed} of 12"), BarColumn(bar_width=24), TimeRemainingColumn(), console=out, transient=True) as progress:
        line = progress.add_task("", total=12)
        for lr, gamma, r in measures.llc_grid(*place, **options):
            cells.append((lr, gamma, r))
            progress.update(line, advance=1)
            table.add_row(f"{gamma:g}", f"{lr:g}", f"{r.mean:.2f}", f"{r.mc_error:.2f}", f"{abs(r.bias / (r.mean + r.bias)):.1%}", f"{r.mean / r.nbeta:.2f}",
                          f"{r.r_hat:.3f}", str(r.losses.numel()), f"{r.ess:.0f}")
    out.print(table)
    best = measures.recommended(cells)
    out.print("No cell has a bias under 5% and an R-hat under 1.05: take more draws (--set llc_draws=...)." if best is None else
              f"The largest lr with a bias under 5% and an R-hat under 1.05: lr {best[0]:g}, localization {best[1]:g} (llc_lr, llc_localization of `sweep --set`).")
    path = folder / "figures" / f"llc-calibration-{snapshot.step}.png"
    path.parent.mkdir(exist_ok=True)
    measures.grid_figure(cells).savefig(path, dpi=120)
    out.print(f"figure: {path}")


def in_words(value):
    if isinstance(value, (list, tuple)):
        return " ".join(in_words(v) for v in value)
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@app.command("measure")
def measure_one(folder: Path = typer.Argument(..., metavar="DIR", help="of a run, such as runs/modadd/nano-s0"),
                name: str = typer.Option(..., "--measure", help="rankme, gradient_rank, fisher_rank, hessian_top, llc or linear_probe"),
                step: int = typer.Option(None, help="any step of the run; trained again where it was not kept  [default: the last]"),
                level: str = typer.Option("all", help="only these task-levels; the LLC's chains then follow the loss of these alone"),
                calibrated: bool = typer.Option(False, "--calibrate", help="llc: over lr x localization, with a figure and a recommendation"),
                settings: list[str] = typer.Option([], "--set", metavar="FIELD=VALUE", help="how it is measured, such as llc_draws=400")):
    """One measure of one snapshot of a run, with its diagnostics."""
    chosen("--measure", name, tuple(MEASURES))
    if name not in MEASURES or (calibrated and name != "llc"):
        raise BadInput("--calibrate: only the llc has settings to calibrate; use --measure llc" if calibrated else f"--measure {name}: expected one of {', '.join(MEASURES)}")
    folder, train, measure, made = saved_run(folder)
    step = train.steps if step is None else step
    if not 0 <= step <= train.steps:
        raise BadInput(f"--step {step}: expected a step of this run, 0 to {train.steps}")
    pick_device(train.device)
    wanted = chosen("--level", level, train.levels)
    measure, = with_settings(settings, measure)
    snapshot = snapshot_at(folder, train, made, step)
    probes = Probes(dataclasses.replace(train, levels=wanted), measure)
    out.print(f"{name} of {folder.name} at step {step:,}" + ("" if level == "all" else f", {', '.join(wanted)} alone"))
    if calibrated:
        return calibrate(snapshot, probes, folder)
    found = {key: columns["rankme"]["first"] if name == "rankme" else [columns[name], columns["linear_probe_shuffled"]] if name == "linear_probe" else columns[name]
             for key, columns in MEASURES[name](snapshot, probes).items()}
    shared = {}
    if name == "llc":                                                         # what all levels share is said once, below
        shared = {key: next(iter(found.values()))[key] for key in ("joint", "nbeta", "r_hat", "ess", "num_diverged", "warnings")}
        found = {key: {"LLC": c["mean"], "error": c.get("mc_error"), "bias": c.get("bias"), "rise": c["mean"] and c["mean"] / c["nbeta"]} for key, c in found.items()}
    columns = list(next(iter(found.values()))) if isinstance(next(iter(found.values())), dict) else [name]
    table = Table("task-level", *columns, box=None, pad_edge=False, header_style="dim")
    for key, value in found.items():
        table.add_row(key, *(in_words(value[c]) if isinstance(value, dict) else in_words(value) for c in columns))
    out.print(table)
    if shared:
        said = shared.pop("warnings")
        out.print(", ".join(f"{key} {in_words(value)}" for key, value in shared.items()), *(f"Warning: {warning}." for warning in said), sep="\n")
    out.print(MEANING[name])


@app.command()
def analyse(folders: list[Path] = typer.Argument(..., metavar="DIR...", help="directories of sweeps, such as runs/modadd")):
    """Findings, events.csv and figures again, from config.json and metrics.jsonl alone."""
    for folder in folders:
        report(folder)


@app.command("tasks")
def show_tasks(name: str = typer.Argument("all", metavar="[NAME]", help="one task, or several separated by commas")):
    """What each task looks like: examples of every level, chance level, vocabulary."""
    names = chosen("NAME", name, TASK_NAMES)
    import torch, tasks
    table = Table("task-level", "example", "tokens", "chance", box=None, pad_edge=False, header_style="dim")
    for task in names:
        for level in tasks.LEVELS:
            batch = tasks.sample(task, level, 1 if name == "all" else 4, torch.Generator().manual_seed(level))
            for i, row in enumerate(batch.tokens):
                table.add_row(f"{task}-{level}" if i == 0 else "", escape(tasks.decode(row)), str(len(row)), f"{tasks.chance(task, level):.3g}" if i == 0 else "")
    out.print(table)
    for task in names:
        out.print(f"{task}: {tasks.TASKS[task].about}")
    out.print("chance: how often the best answer that ignores the operands is right, all of it.")
    out.print(escape(f"vocabulary ({tasks.VOCAB_SIZE}): {' '.join(tasks.VOCABULARY)}"))


# ---------------------------------------------------------------------------------------------------------------
# The public checkpoints: thin commands around pythia.py.

checkpoints = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                          help="The same question asked of the public Pythia checkpoints; downloading needs pip install '.[pythia]'")
app.add_typer(checkpoints, name="pythia")
STEPS_HELP = "all, or numbers and ranges first:last:stride with commas between, such as 0,64,512,1000:143000:9000"


@contextlib.contextmanager
def plain_failures():
    """A hub, a disk or a missing package that fails while running: exit status 1, and the sentence that pythia.py has for it."""
    try:
        yield
    except (RuntimeError, ImportError) as error:
        raise Failed(str(error))


def audited(model):
    """(manifest, Audit) of a model, with what is reported of it said first."""
    import pythia
    if pythia.reported(model):
        out.print(escape(f"{model}: {pythia.reported(model)}"))
    with plain_failures(), Progress(*Progress.get_default_columns(), console=out, transient=True) as progress:
        line = progress.add_task("reading the branches", total=None)
        listing = pythia.manifest(model, lambda done, total: progress.update(line, completed=done, total=total))
    return listing, pythia.audit(listing)


def probe_sets(model, names, files, items, tokenizer, cache):
    """{name: Probe} of the chosen sets of our own and of the files given, in the tokens of the model."""
    import pythia
    own = pythia.own_probes()
    sets = {name: own[name] for name in chosen("--probes", names, tuple(own))} if names != "none" else {}
    sets |= {path.stem: pythia.read_probes(path) for path in files}
    if not sets:
        raise BadInput("--probes none: give at least one --probe-file")
    with plain_failures():
        return pythia.encode(sets, pythia.tokenizer(tokenizer or pythia.fetch(model, "tokenizer.json", cache)), items)


def save_listing(path, listing):
    write_atomically(path, json.dumps({str(step): files for step, files in listing.items()}) + "\n")


def load_listing(path):
    return {step if step == "main" else int(step): tuple(map(tuple, files)) for step, files in read_json(path).items()}


@checkpoints.command("audit")
def pythia_audit(model: str = typer.Argument(..., help="160m, 410m, 2.8b ..., or owner/name on the hub")):
    """Which steps hold weights of their own: from metadata alone, nothing is downloaded."""
    import pythia
    listing, audit = audited(model)
    table = Table("left out", "why", box=None, pad_edge=False, header_style="dim")
    for step, why in audit.left_out.items():
        table.add_row(str(step), escape(why))
    out.print(f"{len(listing) - ('main' in listing)} step branches; {len(audit.own)} hold weights of their own: {', '.join(map(str, audit.own))}")
    if audit.left_out:
        out.print(table)
    for name, sha, branches in audit.groups:
        out.print(f"{name} {sha[:12]} is served by {len(branches)} branches: {', '.join(map(str, branches))}")
    missing = sorted(set(pythia.STEPS) - set(listing)) if "EleutherAI" in pythia.repository(model) else []
    if missing:
        out.print(f"of Pythia's {len(pythia.STEPS)} steps {len(missing)} have no branch: {', '.join(map(str, missing))}")


def print_plan(model, cost, device, dtype):
    out.print(f"{model}: {len(cost.steps)} checkpoints ({cost.steps[0]} ... {cost.steps[-1]}); {cost.download / 1e9:.2f} GB to download, "
              f"at most {cost.disk / 1e9:.2f} GB on disk at a time; {cost.memory / 1e9:.1f} GB of memory; about {minutes(cost.seconds)} on this "
              f"machine ({device}, {dtype}, {cost.rate / 1e9:.0f} GFLOP/s measured), and the download")


def prepare(model, steps, probes, probe_file, items, tokenizer, dtype, device, cache):
    """What plan and measure have in common -> (manifest, steps, probes, torch dtype, device, Plan)."""
    import pythia, torch
    device = pick_device(device)
    if dtype not in ("float32", "bfloat16"):
        raise BadInput(f"--dtype {dtype!r}: expected float32 or bfloat16")
    listing, audit = audited(model)
    asked = pythia.parse_steps(steps, tuple(s for s in listing if s != "main"))
    kept = [s for s in asked if s in audit.own]
    if len(kept) < len(asked):
        out.print(f"the audit leaves out {len(asked) - len(kept)} of {len(asked)} steps (see `python run.py pythia audit {model}`)")
    if not kept:
        raise BadInput(f"--steps {steps}: none of them holds weights of its own")
    sets = probe_sets(model, probes, probe_file, items, tokenizer, cache)
    with plain_failures():
        config = pythia.read_config(pythia.fetch(model, "config.json", cache))
    cost = pythia.plan(config, listing, kept, sets, getattr(torch, dtype), device)
    print_plan(model, cost, device, dtype)
    return listing, kept, sets, getattr(torch, dtype), device


@checkpoints.command("plan")
def pythia_plan(model: str = typer.Argument(...), steps: str = typer.Option("all", help=STEPS_HELP), probes: str = typer.Option("all"),
                probe_file: list[Path] = typer.Option([], help="BIG-Bench Hard .json, or .jsonl such as BLiMP's"), items: int = typer.Option(None),
                tokenizer: Path = typer.Option(None), dtype: str = typer.Option("float32"), device: str = typer.Option("auto")):
    """What a measurement would download and take; nothing but config.json and the tokenizer is fetched."""
    with contextlib.ExitStack() as stack:
        import tempfile
        prepare(model, steps, probes, probe_file, items, tokenizer, dtype, device, stack.enter_context(tempfile.TemporaryDirectory()))


@checkpoints.command("measure")
def pythia_measure(model: str = typer.Argument(...), steps: str = typer.Option("all", help=STEPS_HELP), probes: str = typer.Option("all"),
                   probe_file: list[Path] = typer.Option([]), items: int = typer.Option(None, help="of each probe set; default: all of the smallest"),
                   tokenizer: Path = typer.Option(None, help="a tokenizer.json; default: the model's"), dtype: str = typer.Option("float32"),
                   device: str = typer.Option("auto"), measures: str = typer.Option("none", help="gradient_rank, hessian_top, llc: far slower"),
                   directory: Path = typer.Option(None, "--out", metavar="DIR", help="default: runs/pythia-<model>"), yes: bool = typer.Option(False, "--yes")):
    """One checkpoint at a time: download, verify, measure, delete.  The same command again goes on."""
    import pythia, hashlib, torch
    folder = directory or Path("runs") / pythia.repository(model).replace("/", "-").replace("EleutherAI-", "")
    extras = () if measures == "none" else tuple(chosen("--measures", measures, pythia.EXTRAS))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), plain_failures():
        listing, kept, sets, kind, device = prepare(model, steps, probes, probe_file, items, tokenizer, dtype, device, folder / "cache")
        config = {"model": pythia.repository(model), "dtype": dtype, "device": device, "threads": torch.get_num_threads(), "measures": list(extras),
                  "probes": {name: hashlib.sha256(repr(p).encode()).hexdigest()[:16] for name, p in sets.items()},
                  "n": len(next(iter(sets.values())).prompts), "chance": {name: p.chance for name, p in sets.items()}}
        settle_config(folder, rounded(config))
        rows_path = folder / "metrics.jsonl"
        rows = read_rows(rows_path)
        waiting = [step for step in kept if step not in {row["step"] for row in rows}]
        if waiting and not yes and not typer.confirm(f"download {len(waiting)} checkpoints, one at a time?"):
            raise typer.Abort()
        save_listing(folder / "manifest.json", listing)
        write_atomically(rows_path, "".join(json.dumps(row) + "\n" for row in rows))
        with Progress(*Progress.get_default_columns(), console=out, transient=True) as progress, open(rows_path, "a") as file:
            line = progress.add_task(model, total=len(kept))
            tick = lambda step, number, total: progress.update(line, completed=number, description=f"{model} step {step:,}")
            for row in pythia.measure(model, kept, sets, listing, folder / "cache", rows, extras, kind, device, tick):
                file.write(json.dumps(rounded(row)) + "\n")
                file.flush()
        out.print(f"{rows_path}: {len(kept)} checkpoints; next: python run.py pythia compare {folder}")


@checkpoints.command("evals")
def pythia_evals(folder: Path = typer.Argument(..., metavar="FOLDER", help="lm-evaluation-harness results, a file per model and step"),
                 threshold: float = typer.Option(0.05, help="share of the way from chance to perfect"), persistence: int = typer.Option(3),
                 figure: Path = typer.Option(Path("pythia-evals.png"), help="where to draw the curves")):
    """When each task emerges in the published evaluations, by size."""
    import pythia
    rows = pythia.read_evals(folder)
    events = pythia.evals_emergence(rows, threshold=threshold, persistence=persistence)
    table = Table("task", "model", "chance", "emerges", "best", "at step", "last", box=None, pad_edge=False, header_style="dim",
                  caption=f"emerges: after one checkpoint and by the next: accuracy above chance by {threshold:g} of the way to 1 and by 3 standard errors, "
                          f"{persistence} checkpoints in a row", caption_justify="left")
    for e in events:
        table.add_row(e.task, e.model, f"{e.chance:.3f}", "never" if e.emergence is None else f"{e.emergence[0]:,} to {e.emergence[1]:,}", f"{e.best:.3f}",
                      f"{e.best_step:,}", f"{e.last:.3f}" + (f" ± {e.stderr:.3f}" if e.stderr is not None else ""))
    out.print(table)
    pythia.evals_figure(rows, events).savefig(figure, dpi=160)
    out.print(f"{len(rows)} results; figure: {figure}")


@checkpoints.command("compare")
def pythia_compare(folder: Path = typer.Argument(..., metavar="DIR", help="of `pythia measure`")):
    """Geometry against behaviour, task by task, as far as the checkpoints resolve it; and the verdict on C9."""
    import pythia
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise BadInput(f"{folder} holds no rows; expected the directory of a `python run.py pythia measure`")
    result = pythia.compare(rows, pythia.audit(load_listing(folder / "manifest.json")))
    span = lambda pair: "never" if pair is None else f"{pair[0]:,} to {pair[1]:,}"
    table = Table("probe set", "onset", "emergence", "lead", "verdict", "collapse", "recovery", "compression", box=None, pad_edge=False, header_style="dim")
    for o in result.orders:
        table.add_row(o.task, span(o.onset), span(o.emergence), "-" if o.lead is None else span(o.lead), o.verdict, *("yes" if x else "no" for x in o[5:]))
    out.print(table)
    for step, why in result.left_out.items():
        out.print(escape(f"step {step} left out: {why}"))
    (folder / "figures").mkdir(exist_ok=True)
    pythia.compare_figure(rows, result).savefig(folder / "figures" / "compare.png", dpi=160)
    write_json(folder / "findings.json", result._asdict() | {"orders": [o._asdict() for o in result.orders]})
    out.print(escape(f"{len(result.steps)} checkpoints. {result.verdict}"))
    out.print(f"{folder}/findings.json, figures/compare.png")


def main():
    """One sentence on stderr for whatever the user can mend; a traceback only with --debug."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except KeyboardInterrupt:
        message, status = "stopped", 130
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):                                  # the command line's own errors
            message, status = f"{error.format_message().rstrip('.')}; see python run.py {' '.join(arguments[:1])} --help", 2
        elif isinstance(error, OSError):
            message, status = f"{error.filename or 'the disk'}: {error.strerror}; what was written before is kept, and the same command goes on from there", 1
        elif isinstance(error, (BadInput, Failed, Stopped, ValueError)):
            message, status = str(error), {Failed: 1, Stopped: 130}.get(type(error), 2)
        else:
            message, status = f"unexpected {type(error).__name__}: {error} (--debug shows where; what was written before is kept)", 1
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
