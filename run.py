"""The command line, and the only file that writes run directories and prints.

    python run.py sweep --task modadd              train, measure, find the events, draw: the main job
    python run.py sweep --task all --sizes nano    the study: 24 task-levels and 4 controls in one model
    python run.py analyse runs/modadd              findings and figures again, from config.json and metrics.jsonl alone
    python run.py measure runs/modadd/nano-s0 --measure llc --step 300        one measure of any step of a run, with its diagnostics
    python run.py tasks                            what the tasks look like
    python run.py bench                            how fast this machine is, against the floor
    python run.py handout DIR                      a course assignment: this tree with its exercises blank; `grade DIR` gives points
    python run.py pythia audit 2.8b                the same question asked of public checkpoints: audit, plan, measure, evals, compare

What a sweep leaves behind:

    runs/<sweep>/                 named after its tasks
        <size>-s<seed>/           one run: one model, trained once
            config.json           every field, chance levels, command line, versions
            metrics.jsonl         one row per snapshot, appended as training goes on
            checkpoint.pt         where to go on after a stop, replaced every 20 seconds
            weights/              with --keep N: the weights of every N-th snapshot
            done, or failed       written last: a run that has one of them is not run again
        report.html, findings.json, events.csv, figures/*.png        derived: `analyse` makes them again

The same command again resumes: finished runs are skipped, a stopped one goes on from its checkpoint, to the same bits as
if it had not been stopped.  Any number of processes that are given the same command share a sweep out, to the same bits as one; the file `lock`
in a run says that one of them is at it.  A reader who wants the science can skip this file.
"""
import base64
import contextlib
import csv
import dataclasses
import html
import io
import itertools
import json
import multiprocessing
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import typer
from filelock import FileLock, Timeout
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


class Busy(Failed):
    """Another process is at this run."""


class Stopped(Exception):
    """Ctrl-C: exit status 130."""


def in_words(error):
    """One sentence for whatever ended a command or a run."""
    if hasattr(error, "format_message"):                                      # the command line's own errors
        return error.format_message().rstrip(".")
    if isinstance(error, OSError):
        return f"{error.filename or 'the disk'}: {error.strerror}; what is there is kept, and the same command goes on from it"
    if isinstance(error, (BadInput, Failed, Stopped, ValueError)):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (--debug shows where; what was written before is kept)"


# ---------------------------------------------------------------------------------------------------------------
# What a sweep measures

@dataclass(frozen=True)
class MeasureConfig:
    """Everything that decides what is measured.  It does not touch the weights."""
    measures: tuple = ("rankme",)     # names in MEASURES
    probe_examples: int = 200         # of each task-level, fixed, distinct where there are so many: for hidden states
    eval_examples: int = 500          # of each task-level, others: for accuracy and log-probability
    costly_snapshots: int = 21        # gradient and Fisher rank and the Hessian are taken at so many of the snapshots, evenly spread
    dear_snapshots: int = 11          # the LLC and the linear probe, which cost most: with 11 at every second one of those 21
    gradient_examples: int = 512      # for the two ranks, shared out equally over the task-levels; of each at most 64, which bounds the ranks
    hessian_examples: int = 512       # for the top Hessian eigenvalue, likewise; of each at most 128
    hessian_tol: float = 0.02         # its residual: the eigenvalue's own error is about the square of that
    llc_examples: int = 64            # of each task-level, from which the LLC's mini-batches are drawn
    llc_rows: int = 48                # of a mini-batch, shared out equally; of each task-level at least 2
    llc_chains: int = 4               # one set, on the joint loss
    llc_draws: int = 100              # of each chain, after llc_burnin more
    llc_burnin: int = 20
    llc_nbeta: float = 30.0
    llc_lr: float = 1e-3              # the largest with which a trained joint nano's bias stays under 5%; its chains mix (see measures.llc)
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
        top = measures.hessian_top(snapshot.model, models.example_loss, batch, probes.measure.hessian_tol, max_iters=30,
                                   start=probes.state.get(level), generator=tasks.seeded("cpu", "hessian", level))
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
    joint = tuple(torch.cat([pad(x, (0, longest - x.shape[1]), value=fill) for x in side])
                  for side, fill in zip(zip(*data), (tasks.PAD, tasks.IGNORE)))
    return (snapshot.model, models.packed_loss, joint), {
        "groups": torch.arange(K).repeat_interleave(m.llc_examples), "batch_size": K * of_each(m.llc_rows, m.llc_examples, probes),
        "num_chains": m.llc_chains, "num_draws": m.llc_draws, "num_burnin_steps": m.llc_burnin, "nbeta": m.llc_nbeta,
        "autocast": torch.bfloat16 if probes.dtype == "bfloat16" else None}


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
    own = zip(found.group_means.tolist(), found.group_mc_errors.tolist(), found.group_biases.tolist())
    return {level: {"llc": {"mean": mean, "mc_error": error, "bias": bias, **same}} for level, (mean, error, bias) in zip(probes.levels, own)}


def measure_linear_probe(snapshot, probes):
    """Held-out accuracy of a linear probe for the first answer token, from each layer's state where that token is predicted; and of the
    same on shuffled labels, from the last layer.  The untrained model's is the row of step 0."""
    import torch, measures, tasks

    def one(level, batch):
        tokens, targets = batch
        first = int((targets[0] != tasks.IGNORE).nonzero()[0])
        # in pieces whose activations stay in the cache
        with torch.no_grad(), torch.autocast(torch.device(probes.device).type, torch.bfloat16, enabled=probes.dtype == "bfloat16"):
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


def write_atomically(path, *parts):
    """All of it (texts or bytes) or nothing: written to the disk under another name in the same folder, then moved."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)                                         # left by a killed process
    with open(temporary, "xb") as file:                                       # x: never through a link to somewhere else
        for part in parts:
            file.write(part.encode(errors="replace") if isinstance(part, str) else part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path, value):
    write_atomically(path, json.dumps(rounded(value), indent=1) + "\n")


@contextlib.contextmanager
def reading(complaint):
    """Whatever is found wrong while a file is read, and whoever finds it, is said with the complaint, which names the file."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:
        raise Failed(f"{complaint} ({type(error).__name__}: {str(error)[:200]}); move the run's directory away, and run it again")


def read_json(path):
    """-> dict"""
    with reading(f"{path} cannot be read as JSON that `sweep` wrote"):
        return dict(json.loads(path.read_bytes()).items())


def read_rows(path):
    """The rows of a metrics.jsonl; a last line that was cut off half-way is left out."""
    with reading(f"{path} cannot be read"):
        rows, lines = [], path.read_bytes().splitlines() if path.exists() else []
    for i, line in enumerate(lines):
        with reading(f"{path}, line {i + 1}, is not a row that `sweep` wrote"):
            try:
                row = json.loads(line)
            except ValueError:
                if i == len(lines) - 1:
                    break
                raise
            if type(row["step"]) is not int or type(row["levels"]) is not dict:
                raise TypeError("expected a whole step, and its levels")
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
    # where it went is no part of a run
    told = [a for before, a in zip(sys.argv, sys.argv[1:]) if "--out" not in (before, a) and not a.startswith("--out=")]
    return {"command": ["python", "run.py", *told], "git": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status),
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
        if (folder / "metrics.jsonl").exists():
            raise Failed(f"{folder} has a metrics.jsonl, but no config.json: put it back, or move the directory away")
        write_json(path, {**config, "environment": environment()})
    old = read_json(path)
    different = [f"{k} was {str(old.get(k))[:60]}, now {str(config.get(k))[:60]}" for k in {**old, **config}
                 if k not in ("format", "environment") and old.get(k) != config.get(k)]
    if different:
        raise BadInput(f"{folder} holds a run with another config ({'; '.join(different)}); choose another --out, or repeat the old command")


@contextlib.contextmanager
def locked(folder, wait=False):
    """Hold the folder's lock.  If another process has it: wait for it, or raise Busy.

    The system lets go of a lock when its process ends, however it ends."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a directory; expected a sweep's, such as runs/modadd")
    lock = FileLock(folder / "lock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"{folder} is being written by another process; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def save(path, state):
    """torch.save, all of it or nothing."""
    buffer = io.BytesIO()
    import torch
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_saved(path):
    """What `save` wrote, on the CPU.  None where there is none, or where it is damaged.

    A file of torch is a zip with a checksum of each part: damage shows before anything is loaded.
    Raises Failed for a sound zip that holds something else than tensors and plain values."""
    import torch
    if path.is_dir():
        raise Failed(f"{path} is a folder; expected a checkpoint: move it away")
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
    except Exception:                                           # no zip, or cut short: many kinds
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)      # runs no code from it
    except Exception as error:
        raise Failed(f"{path} is not a checkpoint that `sweep` wrote ({type(error).__name__}); "
                     "move it away, and the same command begins again") from None


def where_to_go_on(folder, config):
    """-> (the last checkpoint, the rows up to it).  Without a sound one, a run begins again."""
    path, rows, why = folder / "checkpoint.pt", read_rows(folder / "metrics.jsonl"), None
    saved = load_saved(path)
    if saved is None and path.exists():
        why = f"{path} is damaged"
    elif saved is not None and (not isinstance(saved, dict) or saved.get("config") != config):
        raise Failed(f"{path} is not a checkpoint of this run; move it away, and the same command "
                     "begins again")
    elif saved is not None and saved["rows"] > len(rows):
        why = f"{folder}/metrics.jsonl has fewer rows than its checkpoint knows of"
    if why:
        print(f"{why}: the run begins again, and comes to the same numbers", file=sys.stderr)
    if why or saved is None:
        saved = {"train": None, "state": {}, "rows": 0, "wall": {"train": 0.0, "measure": 0.0}}
    return saved, rows[:saved["rows"]]


def failure(folder):
    """In words, why and when a run failed for good; None if it did not."""
    if not (folder / "failed").exists():
        return None
    told = read_json(folder / "failed")
    return f"{folder.name} failed after step {told.get('step')}: {told.get('reason')}"


def execute(folder, train, measure):
    """Carry out one run in its directory, from wherever it was left."""
    import models, torch
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        config = run_config(train, measure)
        settle_config(folder, config)
        if (folder / "done").exists():
            return
        if failure(folder):
            raise Failed(f"{failure(folder)}; what it had recorded is kept: choose other settings, and another --out")
        rows_path = folder / "metrics.jsonl"
        begun, rows = where_to_go_on(folder, config)
        resume, wall = begun["train"], begun["wall"]
        write_atomically(rows_path, "".join(json.dumps(row) + "\n" for row in rows))
        torch.set_num_threads(train.threads)
        probes, last = Probes(train, measure), time.monotonic()
        probes.state, last_saved = begun["state"], last if resume else -math.inf
        wanted = schedule(train, measure)
        with open(rows_path, "ab") as file:
            try:
                for count, snapshot in enumerate(models.train(train, resume), len(rows)):
                    wall["train"] += time.monotonic() - last
                    last = time.monotonic()
                    if not all(p.isfinite().all() for p in snapshot.model.parameters()):
                        raise FloatingPointError(f"the weights are no longer finite at step {snapshot.step}")
                    row = measure_row(snapshot, probes, [name for name, steps in wanted.items() if snapshot.step in steps])
                    wall["measure"] += time.monotonic() - last
                    last = time.monotonic()
                    row |= {"wall_train_s": round(wall["train"], 2), "wall_measure_s": round(wall["measure"], 2)}
                    line = (json.dumps(rounded(row)) + "\n").encode()
                    file.write(line)
                    file.flush()
                    rows.append(row)
                    if measure.keep and count % measure.keep == 0:
                        (folder / "weights").mkdir(exist_ok=True)
                        save(folder / "weights" / f"step-{snapshot.step:06d}.pt", snapshot.model.state_dict())
                    if last - last_saved > CHECKPOINT_SECONDS or snapshot.step == train.steps:
                        os.fsync(file.fileno())                               # a checkpoint never knows of more rows than the disk
                        if not rows_path.exists():
                            raise Failed(f"{rows_path} was deleted under the run; the same command begins it again")
                        save(folder / "checkpoint.pt", {"train": snapshot.state(), "wall": wall, "state": probes.state,
                                                        "config": config, "rows": len(rows)})
                        last_saved = time.monotonic()
            except (FloatingPointError, ValueError) as error:                 # from training; from a measure that met a NaN
                write_json(folder / "failed", {"step": rows[-1]["step"] if rows else 0, "reason": str(error)})
                raise Failed(f"{folder.parent}/{failure(folder)}; the rows and the checkpoint up to there are kept: try a smaller learning rate "
                             "(--set lr=...) and another --out")
        write_json(folder / "done", {"wall_train_s": wall["train"], "wall_measure_s": wall["measure"]})


def check_run(folder, config):
    """Raise an exception of any kind where a finished run is not what analysis takes it for."""
    if type(config["parameters"]) is not int or set(config["levels"]) != set(config["chance"]):
        raise TypeError("a wrong value in its config.json")
    if folder.name != f"{config['size']}-s{config['seed']}":                  # names of figures are made of these
        raise ValueError(f"its config.json is that of {config['size']}-s{config['seed']}")


def load_sweep(folder):
    """-> (finished runs as (config, rows), what is missing in words)."""
    runs, missing = [], []
    for one in sorted({path.parent for path in folder.glob("*/*") if path.name in ("config.json", "metrics.jsonl", "done")}):
        config, rows = read_json(one / "config.json"), read_rows(one / "metrics.jsonl")
        with reading(f"{one} is not a run that `sweep` wrote"):
            last, steps = rows[-1]["step"] if rows else 0, config["steps"]
            if failure(one):
                missing.append(failure(one))
            elif last != steps:
                missing.append(f"{one.name} stopped at step {last} of {steps}"
                               + (", although marked as done: move it away, and run it again" if (one / "done").exists() else ""))
            else:
                check_run(one, config)
                runs.append((config, rows))
    if not runs:
        why = f" ({'; '.join(missing)})" if missing else "; expected a sweep's directory, such as runs/modadd"
        raise BadInput(f"{folder} holds no finished run{why}")
    return sorted(runs, key=lambda run: (run[0]["parameters"], run[0]["seed"])), missing


# ---------------------------------------------------------------------------------------------------------------
# Many workers.  Nobody hands out work: each goes through the same plan, and the locks keep any two from the same run.

def take_up(plan, alone=False):
    """Carry out the runs of a plan, [(folder, TrainConfig, MeasureConfig)], until each is done or has failed -> what failed, in words.

    A run that another worker holds is passed over and looked at again later, for that one may be killed; `alone`, it is a failure."""
    if plan and plan[0][1].device == "cuda":
        import torch
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    failures = {}
    while waiting := [job for job in plan if job[0] not in failures and not (job[0] / "done").exists()]:
        for folder, train, measure in waiting:
            try:
                execute(folder, train, measure)
            except Exception as error:                                        # the other runs can still be done
                if isinstance(error, Busy) and not alone:
                    time.sleep(0.1)
                    continue
                if "--debug" in sys.argv:
                    traceback.print_exc()
                failures[folder] = in_words(error)
    return list(failures.values())


def worker_process(rank, plan, queue):
    """take_up in a process that ends with the one that started it, however that ends."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)                # Ctrl-C is for the parent
    threading.Thread(target=watch, daemon=True).start()
    os.environ["LOCAL_RANK"] = str(rank)
    queue.put(take_up(plan))


def launch(count, plan):
    """take_up in `count` processes of this machine, started again where all were killed."""
    context = multiprocessing.get_context("spawn")
    for _ in range(4):
        queue = context.SimpleQueue()
        processes = [context.Process(target=worker_process, args=(rank, plan, queue))
                     for rank in range(count)]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:                                                # stopped: by Ctrl-C, for instance
            for process in processes:
                process.kill()
        if any(process.exitcode == 0 for process in processes):
            return queue.get()                                  # each of them meets every failure
    raise Failed("the workers were killed four times; the same command goes on from the last "
                 "checkpoints (short of memory? --workers 1)")


@contextlib.contextmanager
def watched(plan):
    """Meanwhile, one line of progress for each run in flight, read off the rows that it writes, whichever process does so."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
               TimeRemainingColumn())
    stop, begin = threading.Event(), time.time()

    def watch():
        with Progress(*columns, console=out, transient=True) as progress:
            waiting = [(path, progress.add_task(path.name, total=train.steps, visible=False, note="")) for path, train, _ in plan]
            while waiting:
                ended = stop.wait(0.5)
                for path, line in list(waiting):
                    with contextlib.suppress(OSError, IndexError, ValueError):                  # not begun; no row yet; half a row
                        if (path / "done").exists():
                            waiting.remove((path, line))
                            progress.update(line, visible=False)
                            wall = json.loads((path / "done").read_text())
                            progress.console.print(f"{path.name}  done: training {minutes(wall['wall_train_s'])}, "
                                                   f"measuring {minutes(wall['wall_measure_s'])}")
                        elif (path / "metrics.jsonl").stat().st_mtime > begin:
                            row = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
                            loss = "" if row["loss"] is None else f"  loss {row['loss']:.3f}"
                            progress.update(line, completed=row["step"], visible=True, note=f"step {row['step']:,}{loss}")
                if ended:
                    break
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on from the last checkpoint")
    finally:
        stop.set()
        thread.join()


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
    fields = {f.name: i for i, config in enumerate(configs) for f in dataclasses.fields(config) if f.name not in ("size", "seed", "device")}
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


# The least and the most that a number may be; the others are positive and finite.
LEAST = {"snapshots": 2, "probe_examples": 2, "linear_examples": 8} | dict.fromkeys(
    ("seed", "warmup", "final_lr", "weight_decay", "beta1", "beta2", "keep", "llc_burnin", "compile"), 0)
MOST = {"beta1": 0.99999, "beta2": 0.99999, "train_fraction": 1, "threads": 1024, "compile": 1}


def check(train, measure):
    """The values that would fail late, or not at all, are refused early."""
    import tasks
    for name, value in (dataclasses.asdict(train) | dataclasses.asdict(measure)).items():
        if isinstance(value, (int, float)):
            low, high = LEAST.get(name, 1 if isinstance(value, int) else 1e-12), MOST.get(name, sys.float_info.max)
            if not low <= value <= high:
                raise BadInput(f"{name}: expected a number from {low:g} to {high:g}, got {str(value)[:60]}")
    if train.dtype not in ("float32", "bfloat16"):
        raise BadInput(f"dtype: expected float32 or bfloat16, got {train.dtype!r}")
    every = {f"{sham}{task}-{level}" for sham in ("", "sham-") for task in TASK_NAMES for level in tasks.LEVELS}
    for field, given, known in (("levels", train.levels, every), ("measures", measure.measures, set(MEASURES))):
        if set(given) - known or len(set(given)) < len(given) or not given and field == "levels":
            raise BadInput(f"{field}: expected different ones out of {', '.join(sorted(known))}, got {','.join(given)!r}")


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


def cores():
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def defaults(levels):
    """(steps, peak learning rate, snapshots) with which nearly all task-levels emerge at the smallest size.  One task alone is quick; 24 levels
    that share a model need more of all (at 1e-3, some of them do not emerge; for one task alone, 2e-3 is too much)."""
    return (600, 1e-3, 101) if levels <= 3 else (1500, 2e-3, 201) if levels <= 12 else (2000, 2e-3, 201)


def estimate(train, measure):
    """Seconds of training and of measuring accuracy and RankMe in one run, from a few steps and one snapshot of it timed here and now."""
    import torch, models
    torch.set_num_threads(train.threads)
    probes = Probes(train, measure)
    snapshots = models.train(dataclasses.replace(train, lr=0.0, snapshots=train.steps + 1, compile=0))       # one after every step
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
    draws = m.llc_chains * (1.1 * m.llc_draws + m.llc_burnin)
    examples = {"gradient_rank": 15 * ranks, "fisher_rank": 17 * ranks, "hessian_top": 25 * K * of_each(m.hessian_examples, 128, train),
                "llc": 1.6 * K * of_each(m.llc_rows, m.llc_examples, train) * draws, "linear_probe": 0.8 * K * m.linear_examples}
    return {name: (len(steps), len(steps) * examples[name] * training / (train.steps * train.per_level * K))
            for name, steps in schedule(train, m).items() if name != "rankme"}


def work(train, measure):
    """How long a run takes, in arbitrary units: training, as much again for accuracy and RankMe, and the costly measures."""
    import models
    return models.parameter_count(models.SIZES[train.size]) * (2 + sum(cost for _, cost in costly(train, measure, 1.0).values()))


def minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@app.command()
def sweep(task: str = typer.Option(..., help=f"one or more of {', '.join(TASK_NAMES)}, separated by commas; or all"),
          sizes: str = typer.Option("nano,micro", help=f"one or more of {', '.join(SIZE_NAMES)}; or all"),
          seeds: int = typer.Option(3, help="number of seeds: 0 to N-1"),
          steps: int = typer.Option(0, help="training steps  [default: 600 for one task, 1500 for up to four, else 2000]"),
          measure: str = typer.Option(None, "--measures", help="of every run: one or more of rankme, gradient_rank, fisher_rank, hessian_top, llc, "
                                      "linear_probe; all; none  [default: rankme, and all of them, less often, in the first run]"),
          controls: int = typer.Option(-1, help="sham task-levels trained beside the others  [default: 4 with --task all, else 0]"),
          train_fraction: float = typer.Option(1.0, help="share of the operand tuples to train on; below 1, accuracy on the unseen ones is a column"),
          out_dir: Path = typer.Option("runs", "--out", help="where the sweep's directory goes"),
          device: str = typer.Option("auto", help="auto, cpu or cuda"),
          workers: int = typer.Option(0, help="processes that share the runs out  [default: as many as there are cores for; on CUDA, "
                                      "one for each GPU]"),
          keep: int = typer.Option(0, help="keep the weights of every so-many-th snapshot"),
          settings: list[str] = typer.Option([], "--set", metavar="FIELD=VALUE", help="any other field of the config; may be repeated"),
          dry_run: bool = typer.Option(False, "--dry-run", help="show the plan and what it will cost, and stop")):
    """Train models, measure them on the way, find when capabilities emerge and what came before."""
    names = chosen("--task", task, TASK_NAMES)
    picked_sizes = chosen("--sizes", sizes, SIZE_NAMES)
    wanted = () if measure == "none" else chosen("--measures", "rankme" if measure is None else measure, tuple(MEASURES))
    often = {"costly_snapshots": 40, "dear_snapshots": 40} if measure is not None else {}
    controls = controls if controls >= 0 else 4 if names == TASK_NAMES else 0
    if not 0 < seeds <= 10000 or controls > CONTROL_COUNT or steps < 0 or workers < 0:
        raise BadInput(f"--seeds {seeds}, --controls {controls}, --steps {steps}, --workers {workers}: expected at least one seed (at most 10000), "
                       f"at most {CONTROL_COUNT} controls, and no negative number")
    import torch, models, tasks
    device = pick_device(device)
    levels = tuple(f"{name}-{k}" for name in names for k in tasks.LEVELS) + tasks.CONTROLS[:controls]
    default_steps, lr, snapshots = defaults(len(levels))
    base = models.TrainConfig(levels=levels, steps=steps or default_steps, lr=lr, snapshots=snapshots, per_level=max(10, 132 // len(levels)),
                              device=device, dtype=pick_dtype(device), threads=max(1, cores() // (len(picked_sizes) * seeds)),
                              train_fraction=train_fraction)
    base, measured = with_settings(settings, base, MeasureConfig(measures=wanted, keep=keep, **often))
    check(base, measured)
    folder = out_dir / (("all" if names == TASK_NAMES else "+".join(names)) + (f"-fraction{train_fraction:g}" if train_fraction < 1 else ""))
    plan = [(folder / f"{size}-s{seed}", dataclasses.replace(base, size=size, seed=seed), measured) for size in picked_sizes for seed in range(seeds)]
    if measure is None:                                                       # by default: all of them in the first run, RankMe alone in the others
        plan[0] = *plan[0][:2], dataclasses.replace(measured, measures=tuple(MEASURES))
    plan.sort(key=lambda job: -work(*job[1:]))                                # longest first, so that no worker is left with one at the end
    for i, (path, config, measured) in enumerate(plan):
        if (path / "config.json").exists():                                   # a finished run, too, must be the one that was asked for
            if not any(setting.startswith("threads=") for setting in settings):           # threads not asked for stay what they were
                config = dataclasses.replace(config, threads=read_json(path / "config.json").get("threads"))
            settle_config(path, run_config(config, measured))
            plan[i] = path, config, measured
    waiting = [job for job in plan if not (job[0] / "done").exists()]
    launched = "TORCHELASTIC_RUN_ID" in os.environ                            # by torchrun: then this process is one of its workers
    room = 1 if os.name == "nt" else torch.cuda.device_count() if device == "cuda" else cores() // base.threads
    workers = 1 if launched else max(1, min(workers or room, len(waiting)))
    out.print(f"[bold]{folder}[/bold]: {len(levels)} task-levels, {base.steps:,} steps of {base.per_level * len(levels)} examples, "
              f"{base.dtype} on {device} (workers: {workers}, threads of each: {base.threads}), measuring {', '.join(('accuracy', *wanted))}")
    show_cost(plan, waiting, workers)
    if dry_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with watched(waiting):
        if workers > 1 and not launched:
            failures = launch(workers, waiting)
        else:
            failures = take_up(waiting, alone=not launched)
    if any((path / "done").exists() for path, *_ in plan):
        with locked(folder, wait=True):
            report(folder, [path.name for path, *_ in plan if not (path / "done").exists()])
    if failures:
        raise Failed("; ".join(failures))


def show_cost(plan, waiting, workers):
    """The table of what is still to do, and how long it will take."""
    import models
    costs = {size: estimate(*job) for size, job in {config.size: (config, measured) for _, config, measured in reversed(waiting)}.items()}
    table = Table("size", "parameters", "runs", "snapshots", "training", "measuring", "in all", box=None, pad_edge=False, header_style="dim")
    for size, (training, measuring, count) in costs.items():
        n = sum(config.size == size for _, config, _ in waiting)
        table.add_row(size, f"{models.parameter_count(models.SIZES[size]):,}", str(n), str(count),
                      *map(minutes, (training, measuring, n * (training + measuring))))
    if waiting:
        out.print(table)
    each = []
    for path, config, measured in waiting:
        extra = costly(config, measured, costs[config.size][0])
        each.append(sum(costs[config.size][:2]) + sum(seconds for _, seconds in extra.values()))
        if extra:
            out.print(f"{path.name} also: " + ", ".join(f"{name} {minutes(seconds)} ({n} snapshots)" for name, (n, seconds) in extra.items()))
    total = max(sum(each) / workers, max(each, default=0))                    # the longest run is done by one worker
    out.print(f"{len(waiting)} runs to do, {len(plan) - len(waiting)} done already; about {minutes(total)} on this machine")


# ---------------------------------------------------------------------------------------------------------------
# Findings

def png(figures):
    """{name: Figure} -> {name: bytes}"""
    images = {}
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, dpi=160)
        images[name] = picture.getvalue()
    return images


def curves_png(runs):
    """The figures that need nothing but the runs."""
    import emergence
    return {name: image for make in emergence.FIGURES.values() for name, image in png(make(runs)).items()}


def draw(folder):
    """`curves_png` of a sweep's runs, in JSON, letters for bytes."""
    import emergence
    images = curves_png([emergence.tabulate(*run) for run in load_sweep(folder)[0]])
    return json.dumps({name: base64.b64encode(image).decode() for name, image in images.items()})


@contextlib.contextmanager
def drawing(folder):
    """`curves_png` in a process of its own, for it takes as long as all of the statistics.  Yields a function that waits for what it returns."""
    code = "import pathlib, sys; sys.path.insert(0, sys.argv[1]); import run; print(run.draw(pathlib.Path(sys.argv[2])))"

    def drawn():
        images, errors = process.communicate()
        if process.returncode:
            said = errors.decode(errors="replace").strip().splitlines() or ["no message"]
            raise Failed(f"the process that draws ended with status {process.returncode} ({said[-1][:200]}); the same command tries again")
        return {name: base64.b64decode(image) for name, image in json.loads(images).items()}
    with subprocess.Popen([sys.executable, "-c", code, Path(__file__).parent, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield drawn
        finally:
            process.kill()                                                    # if it is still at it, nobody waits for it any more


def report(folder, unfinished=()):
    """Everything derived: findings.json, events.csv, the figures, report.html, and the tables on the screen -> the findings."""
    import emergence
    start = time.monotonic()
    recorded, missing = load_sweep(folder)
    missing += [f"{name} was not started" for name in unfinished if not (folder / name / "config.json").exists()]
    if not all("rankme" in config["measures"] for config, _ in recorded):
        out.print("RankMe was not measured: there is nothing to find in this sweep")
        return None
    choices, runs, found = emergence.Choices(), [], []
    for config, rows in recorded:
        with reading(f"{folder}/{config['size']}-s{config['seed']} is not a run that `sweep` wrote"):
            runs.append(emergence.tabulate(config, rows))
            found += emergence.events(runs[-1], choices)
    large = sum(run.accuracy.size for run in runs) > 10_000                   # small ones are drawn before another process has begun
    with drawing(folder) if large else contextlib.nullcontext(lambda: curves_png(runs)) as drawn:
        summary, universe = emergence.summarise(found), emergence.multiverse(runs)
        findings = {"choices": dataclasses.asdict(choices), "runs": [run.name for run in runs], "missing": missing,
                    **emergence.study(runs, choices, universe), "levels": summary}
        images = drawn() | png(emergence.figure_choices(runs, findings=findings, universe=universe))
    write_json(folder / "findings.json", findings)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rounded(event) for event in found)
    write_atomically(folder / "events.csv", text.getvalue())
    (folder / "figures").mkdir(exist_ok=True)
    pictures = {name: folder / "figures" / f"{name}.png" for name in images}
    for name, path in pictures.items():
        write_atomically(path, images[name])
    write_atomically(folder / "report.html", page(folder.resolve().name, runs, findings, summary, pictures))
    out.print(*summary_tables(summary))
    out.print(SUMMARY_SAID + "\n")
    for line in claim_lines(findings["claims"]):
        out.print(line)
    out.print("here: with a 95% interval. chance: the mean over shuffled data; p: how often those are as far out, after Holm over all claims. "
              f"choices: of {findings['specifications']} combinations of reasonable choices, under which share it holds; p: how often shuffled "
              "data reach that share.\n")
    for line in said_of(findings):
        out.print(escape(line))
    wall = [read_json(path) for path in folder.glob("*/done")]
    training, measuring = (sum(w[key] for w in wall) for key in ("wall_train_s", "wall_measure_s"))
    out.print(f"training {minutes(training)}, measuring {minutes(measuring)}, analysing and drawing {minutes(time.monotonic() - start)}")
    out.print(f"{folder}/report.html, findings.json, events.csv; figures: {', '.join(str(path) for path in pictures.values())}")
    return findings


def summary_rows(summary):
    """Per task-level, medians over seeds with the range.  Yields (cells, whether it is a sham)."""
    def cell(spread, form="{:.0f}"):
        if not spread:
            return "-"
        ends = [form.format(spread[end]) for end in ("low", "high")]
        return form.format(spread["median"]) + (f" ({ends[0]}..{ends[1]})" if ends[0] != ends[1] else "")
    for s in summary:
        yield (s["level"], cell(s["floor"], "{:.1f}"), cell(s["onset"]), cell(s["emergence"]) if s["emerged"] else "never",
               f"{s['lead']['median']:.0f}" if s["lead"] else "-", f"{s['rankme_first']}/{s['emerged']}/{s['seeds']}"), s["control"]


SUMMARY = ("task-level", "floor", "onset", "emergence", "lead", "first")
SUMMARY_SAID = ("Median (low..high) over seeds. floor: lowest RankMe. onset: step at which RankMe recovers. lead: emergence - onset, in steps. "
                "first: seeds whose RankMe recovered before emergence / that emerged / all.")


def by_size(summary):
    return [(size, list(rows)) for size, rows in itertools.groupby(summary, key=lambda s: s["size"])]


def summary_tables(summary):
    for size, rows in by_size(summary):
        table = Table(SUMMARY[0], *SUMMARY[1:], title=size, box=None, pad_edge=False, header_style="dim", title_justify="left")
        for cells, control in summary_rows(rows):
            table.add_row(*cells, style="dim" if control else None)
        yield table


def claim_cells(row):
    """-> here, its interval, chance, p, share of the choices, p of that share, verdict: as text."""
    import emergence
    form = next(claim.form for claim in emergence.CLAIMS if claim.key == row["claim"]).format
    some = lambda x, form=form: "-" if x is None or math.isnan(x) else form(x) if abs(x) > 0.005 else form(0)
    interval = "-" if row["low"] is None or math.isnan(row["low"]) else f"{form(row['low'])} to {form(row['high'])}"
    p = lambda x: "-" if x is None else "<.001" if x < 0.001 else f"{x:.3f}".lstrip("0") if x < 1 else "1"
    return (some(row["value"]), interval, some(row["null"]), p(row["p_holm"]), some(row.get("share"), "{:.0%}".format), p(row.get("p_multiverse")), row["verdict"])


def claim_lines(rows):
    """The table of claims for a terminal of 80 columns: three lines each."""
    for row in rows:
        here, interval, null, p, share, p_share, verdict = claim_cells(row)
        paper = " / ".join(dict.fromkeys(row[version] for version in ("v1", "v3", "v4") if row[version] != "-"))
        said = [f"paper {paper}" if paper else "", f"here {here}" + (f" ({interval})" if interval != "-" else ""), f"chance {null}, p {p}" if null != "-" else "",
                f"choices {share}" + (f", p {p_share}" if p_share != "-" else "") if share != "-" else ""]
        yield f"[bold]{row['claim']}[/bold]  {escape(row['text'])}"
        if here != "-":
            yield f"    {escape('; '.join(part for part in said if part))}"
        yield f"    [bold]{escape(verdict)}[/bold]"


def said_of(findings):
    """What belongs beside the table of claims, in sentences."""
    check, cv = findings["lead_check"], findings["floor_variation"]
    top_down, earlier = findings["top_down_floor"], findings["top_down_time"]
    yield (f"Of all pairs of layers the deeper one has the lower floor in {top_down[0]:.0%} ({top_down[1]:.0%} to {top_down[2]:.0%}), "
           f"and reaches it earlier in {earlier[0]:.0%} ({earlier[1]:.0%} to {earlier[2]:.0%}; 50%: no order).")
    z, median = (f"z = {check['z']:.2f}" if check["information"] else "no z"), check["median_onset"]
    yield (f"Risk-set test by its formula: {z} on an information of {check['information']:.1f} (below 5 it cannot tell).  "
           + (f"The median onset is at step {median:.0f}" if math.isfinite(median) else "Most task-levels show no onset")
           + f", and {check['onsets_in_warmup']:.0%} of all onsets lie within the learning rate's warm-up.")
    if check["shams"]:
        yield (f"Of {check['shams']} sham controls {check['sham_emergences']} emerged, and {check['sham_onsets']} show an onset of RankMe: "
               "false alarms.")
    parts = [f"{cv[key]:.0%} over {key[5:]}" for key in ("over_sizes", "over_seeds", "over_tasks") if cv[key] is not None]
    if parts:
        share = "" if cv["ratio_of_shares"] is None else f"  As shares of their ceilings, largest over smallest size: {cv['ratio_of_shares']:.2f}."
        yield f"Floors vary (coefficient of variation) by {', by '.join(parts)}.{share}"
    for row in findings["classes"]:
        yield (f"RankMe first among the {row['class']} (by other seeds): {row['rate']:.0%} ({row['low']:.0%} to {row['high']:.0%}) of "
               f"{row['events']}; chance {row['null']:.0%}, p = {row['p']:.2g}.")
    for row in findings["measures"]:
        lead = "" if row["lead_low"] is None else f", median lead {row['lead_low']:.0f} to {row['lead_high']:.0f} steps"
        yield (f"{row['measure']}, on its own {row['snapshots']} snapshots: first {row['first']}, same {row['same']}, later or never "
               f"{row['later_or_never']} of {row['events']}{lead}; chance {row['null']:.0%}, p = {row['p']:.2g}.  "
               f"RankMe on the same snapshots: first in {row['rankme_rate']:.0%}."
               + "".join(f"  Of the {c['class']}: {c['rate']:.0%} (chance {c['null']:.0%})." for c in row["classes"]))
    for line in findings["missing"]:
        yield f"missing: {line}"


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ font: 16px/1.5 Georgia, serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: #222; }}
h1, h2 {{ line-height: 1.2; }} figure {{ margin: 1.5rem 0; }} img {{ max-width: 100%; height: auto; }} figcaption, small, th {{ color: #555; }}
table {{ border-collapse: collapse; font: 13px/1.35 system-ui, sans-serif; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #ddd; overflow-wrap: break-word; }}
th {{ font-weight: normal; }} .claims td:first-child, .claims td:last-child {{ font-weight: bold; }} .sham {{ color: #888; }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; }}
@media (max-width: 40rem) {{ .claims thead {{ display: none; }} .claims tr {{ display: block; border-bottom: 2px solid #bbb; padding: .5rem 0; }}
  .claims td {{ display: block; border: 0; padding: .1rem 0; }} .claims td[data-name]:before {{ content: attr(data-name) ": "; color: #555; }} .claims td.none {{ display: none; }} }}
@media print {{ body {{ max-width: none; font-size: 11px; }} table {{ font-size: 9px; }} figure, tr {{ break-inside: avoid; }} }}
</style></head><body>
<h1>When a capability emerges, what changed first?</h1>
<p>{intro}</p>
<h2>What the paper claims, and what is found here</h2>
<table class="claims">{claims}</table>
<p><small>here: the value in these runs, with a 95% interval that knows that events of one task, and of one run, are alike. chance: its mean over data in which tasks are
exchanged within a level (or layers, or sizes). p: how often such data are as far out, after Holm's correction over all claims. choices: the share of {specifications}
combinations of reasonable choices under which the claim holds, and how often shuffled data reach that share. v1, v3, v4: versions of arXiv 2602.15997.</small></p>
<ul>{said}</ul>
<h2>Figures</h2>
{figures}
<h2>Every event</h2>
{events}
<p><small>{summary_said} Grey: sham controls, whose answers cannot be learned. Each seed has a row in events.csv.</small></p>
<h2>How it was run</h2>
<pre>{how}</pre>
</body></html>
"""

CAPTIONS = {"choices": "How far the claims depend on choices of analysis.  Left: the precursor rate (C4) under each combination of choices, above what exchanged tasks give.  "
                       "Right: an unequal pair of cells is a choice that decides.",
            "measures": "Every measure with emergence at 1, each curve scaled to its own range: median and middle half.",
            "floors": "The floor of RankMe against size.",
            "curves": "Accuracy and RankMe.  Median over seeds as a line, range as a band; solid vertical line: emergence, dashed: onset of recovery.",
            "layers": "RankMe of every layer (upwards) against steps; the white line is emergence."}


def page(title, runs, findings, summary, pictures):
    """report.html: one file with the figures in it, no script."""
    text = lambda x: html.escape(str(x))

    def table(head, rows, names=()):
        cells = lambda row: "".join(f"<td{f' data-name={name!r}' if name else ''}{' class=none' if cell == '-' else ''}>{text(cell)}</td>"
                                    for name, cell in itertools.zip_longest(names, row, fillvalue=""))
        return (f"<thead><tr>{''.join(f'<th>{text(h)}</th>' for h in head)}</tr></thead><tbody>"
                + "".join(f'<tr{" class=sham" if dim else ""}>{cells(row)}</tr>' for row, dim in rows) + "</tbody>")
    head = ("claim", "v1, v2", "v3", "v4", "here", "interval", "chance", "p", "choices", "p", "verdict")
    claims = [((f"{row['claim']}: {row['text']}", row["v1"], row["v3"], row["v4"], *claim_cells(row)), False) for row in findings["claims"]]
    images = [f'<figure><img alt="{text(name)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
              f"<figcaption>{text(name.partition('-')[2])} {text(caption)}</figcaption></figure>"
              for kind, caption in CAPTIONS.items() for name, path in pictures.items() if name.partition("-")[0] == kind]
    config = {k: v for k, v in runs[0].config.items() if k not in ("chance", "chance_log_prob", "answer_tokens", "seed", "size")}
    sizes = ", ".join(f"{size} x {sum(run.config['size'] == size for run in runs)}" for size in dict.fromkeys(run.config["size"] for run in runs))
    return PAGE.format(title=text(title), specifications=findings["specifications"], claims=table(head, claims, ("", *head[1:9], "p of that share", "verdict")),
                       intro=text(f"Sweep {title}: {len(runs)} runs ({sizes}), {len(config['levels'])} task-levels in each, {config['steps']:,} steps, {len(runs[0].steps)} snapshots. "
                                  "The effective rank of the hidden states (RankMe) is followed from its collapse to a floor, through the onset of its recovery, to the emergence of each capability."),
                       said="".join(f"<li>{text(line)}</li>" for line in said_of(findings)), figures="\n".join(images),
                       events="".join(f"<h3>{text(size)}</h3><table>{table(SUMMARY, summary_rows(rows))}</table>" for size, rows in by_size(summary)),
                       summary_said=text(SUMMARY_SAID),
                       how=text("\n".join(f"{k}: {v}" for k, v in config.items())))


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
    kept = folder / "weights" / f"step-{step:06d}.pt"
    state, saved = load_saved(kept), load_saved(folder / "checkpoint.pt")
    if state is None and saved and saved["train"]["step"] == step:
        state = saved["train"]["model"]
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
    best = [f"{gamma:g}: {'none' if lr is None else format(lr, 'g')}" for gamma, lr in measures.recommended(cells).items()]
    out.print(f"The largest lr with a bias under 5% and an R-hat under 1.05, at localization {'; '.join(best)} (`sweep --set llc_lr=... --set llc_localization=...`).")
    path = folder / "figures" / f"llc-calibration-{snapshot.step}.png"
    path.parent.mkdir(exist_ok=True)
    measures.grid_figure(cells).savefig(path, dpi=120)
    out.print(f"figure: {path}")


def shown(value):
    if isinstance(value, (list, tuple)):
        return " ".join(shown(v) for v in value)
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
        raise BadInput("--calibrate: only the llc has settings to calibrate; use --measure llc" if calibrated else
                       f"--measure {name}: expected one of {', '.join(MEASURES)}")
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
        found = {key: {"LLC": c["mean"], "error": c.get("mc_error"), "bias": c.get("bias"), "rise": c["mean"] and c["mean"] / c["nbeta"]}
                 for key, c in found.items()}
    columns = list(next(iter(found.values()))) if isinstance(next(iter(found.values())), dict) else [name]
    table = Table("task-level", *columns, box=None, pad_edge=False, header_style="dim")
    for key, value in found.items():
        table.add_row(key, *(shown(value[c]) if isinstance(value, dict) else shown(value) for c in columns))
    out.print(table)
    if shared:
        said = shared.pop("warnings")
        out.print(", ".join(f"{key} {shown(value)}" for key, value in shared.items()), *(f"Warning: {warning}." for warning in said), sep="\n")
    out.print(MEANING[name])


@app.command()
def analyse(folders: list[Path] = typer.Argument(..., metavar="DIR...", help="directories of sweeps, such as runs/modadd")):
    """Findings, events.csv, figures and report.html again, from config.json and metrics.jsonl alone; several sweeps also side by side."""
    table = Table("sweep", "warm-up", "onset", "in warm-up", "RankMe first", "chance", "p", box=None, pad_edge=False, header_style="dim")
    for folder in folders:
        with locked(folder, wait=True):
            findings = report(folder)
        if findings:
            precursor = next(row for row in findings["claims"] if row["claim"] == "C4")
            here, _, chance, p, *_ = claim_cells(precursor | {"p_holm": precursor["p"]})          # one test of each: nothing to adjust for
            check = findings["lead_check"]
            table.add_row(folder.name, f"{check['warmup']:g}", f"{check['median_onset']:.0f}", f"{check['onsets_in_warmup']:.0%}", here, chance, p)
    if table.row_count > 1:
        out.print(table)
        out.print("onset: its median step over task-levels and runs.")


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


@app.command()
def bench(as_json: bool = typer.Option(False, "--json", help="numbers instead of tables"),
          nanogpt: Path = typer.Option(None, metavar="PATH", help="a checkout of nanoGPT to compare with"), device: str = typer.Option("auto", help="auto, cpu or cuda")):
    """How fast this machine is: matrix-product peak, training step of every size, joint batch, each measure."""
    device = pick_device(device)
    sys.path.insert(0, str(Path(__file__).parent / "tests"))
    import bench as machine
    say = Console(stderr=True, highlight=False)
    say.print("two minutes" + (" and one more for nanoGPT" if nanogpt else "") + " on two cores, with nothing else running")
    with say.status("") as status:
        found = machine.bench(pick_dtype(device), device, cores(), nanogpt, status.update)
    if as_json:
        print(json.dumps(rounded(found), indent=1))
    for table in () if as_json else machine.tables(found):
        out.print(table, "")


# ---------------------------------------------------------------------------------------------------------------
# Course assignments: thin commands around tests/assignments.py.

@contextlib.contextmanager
def plain_failures():
    """A hub, a disk or a missing package that fails while running: exit status 1, and the sentence that pythia.py has for it."""
    try:
        yield
    except (RuntimeError, ImportError) as error:
        raise Failed(str(error) or "nothing was downloaded; --yes answers the question beforehand")          # typer.Abort is a RuntimeError


PROBLEM_SET = typer.Option(None, "--problem-set", metavar="N", help="1 to 4; default: all of them")


def course():
    sys.path.insert(0, str(Path(__file__).parent / "tests"))
    try:
        import assignments
    except ModuleNotFoundError:
        raise BadInput("this tree is itself a handout: check yourself with python -m pytest -m exercise, and be graded by the whole "
                       "toolkit") from None
    return assignments


@app.command()
def handout(folder: Path = typer.Argument(..., metavar="DIR", help="a folder that is empty or not there yet"), problem_set: int = PROBLEM_SET):
    """A course assignment: this tree with the exercises blank, their tests, and SHEET.md with the questions."""
    chosen, points = course().handout(folder, problem_set)
    out.print(escape(f"{folder}: {len(chosen)} exercises, {points} points, without their bodies; {folder}/SHEET.md says what to do"))


@app.command("grade")
def grade_submissions(folders: list[Path] = typer.Argument(..., metavar="DIR...", help="a submission, or a folder of submissions"), problem_set: int = PROBLEM_SET,
                      table: Path = typer.Option(None, "--csv", metavar="FILE", help="all points, a row for each submission")):
    """Points for a handout that came back: each function by itself in a clean copy of this tree, under limits.

    Read "Course assignments" in the README first."""
    if table and not table.absolute().parent.is_dir():
        raise BadInput(f"--csv {table}: {table.absolute().parent} is not a folder")
    with Console(stderr=True, highlight=False).status("") as status, plain_failures():
        grades = course().grade(folders, problem_set, min(cores(), 8), tell=lambda done, of: status.update(f"{done} of {of} functions graded"))
    for line in course().tables(grades):
        out.print(line)
    if table:
        write_atomically(table, course().as_csv(grades))
        out.print(escape(f"{table}: {len(grades)} rows"))


# ---------------------------------------------------------------------------------------------------------------
# The public checkpoints: thin commands around pythia.py.

checkpoints = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                          help="The same question asked of the public Pythia checkpoints; downloading needs pip install '.[pythia]'")
app.add_typer(checkpoints, name="pythia")
MODEL = typer.Argument(..., help="160m, 410m, 2.8b ..., or owner/name on the hub")
STEPS = typer.Option("all", help="all, or numbers and ranges first:last:stride with commas between, such as 0,64,512,1000:143000:9000")
PROBES = typer.Option("all", help="of our own sets; or none")
PROBE_FILES = typer.Option([], help="BIG-Bench Hard .json, or .jsonl such as BLiMP's")
ITEMS = typer.Option(None, help="of each probe set; default: all of the smallest")
TOKENIZER = typer.Option(None, help="a tokenizer.json; default: the model's")
DTYPE = typer.Option("float32", help="float32 or bfloat16")


def audited(model):
    """(manifest, Audit) of a model, with what is reported of it said first."""
    import pythia
    if pythia.reported(model):
        out.print(escape(f"{model}: {pythia.reported(model)}"))
    with Progress(*Progress.get_default_columns(), console=out, transient=True) as progress:
        line = progress.add_task("reading the branches", total=None)
        listing = pythia.manifest(model, lambda done, total: progress.update(line, completed=done, total=total))
    return listing, pythia.audit(listing)


def prepare(model, steps, probes, probe_file, items, tokenizer, dtype, device, cache):
    """What plan and measure have in common -> (manifest, steps, probes, torch dtype, device); prints the plan."""
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
    own = pythia.own_probes()
    sets = {name: own[name] for name in (chosen("--probes", probes, tuple(own)) if probes != "none" else ())}
    sets |= {path.stem: pythia.read_probes(path) for path in probe_file}
    if not sets:
        raise BadInput("--probes none: give at least one --probe-file")
    sets = pythia.encode(sets, pythia.tokenizer(tokenizer or pythia.fetch(model, "tokenizer.json", cache)), items)
    cost = pythia.plan(pythia.read_config(pythia.fetch(model, "config.json", cache)), listing, kept, sets, getattr(torch, dtype), device)
    out.print(f"{model}: {len(kept)} checkpoints ({kept[0]} ... {kept[-1]}); {cost.download / 1e9:.2f} GB to download, "
              f"at most {cost.disk / 1e9:.2f} GB on disk at a time; {cost.memory / 1e9:.1f} GB of memory; about {minutes(cost.seconds)} on this "
              f"machine ({device}, {dtype}, {cost.rate / 1e9:.0f} GFLOP/s measured), and the download")
    return listing, kept, sets, getattr(torch, dtype), device


@checkpoints.command("audit")
@plain_failures()
def pythia_audit(model: str = MODEL):
    """Which steps hold weights of their own: from metadata alone, nothing is downloaded."""
    listing, audit = audited(model)
    out.print(f"{len(listing) - ('main' in listing)} step branches; {len(audit.own)} hold weights of their own: {', '.join(map(str, audit.own))}")
    for step, why in audit.left_out.items():
        out.print(escape(f"step {step} left out: {why}"))
    for name, sha, branches in audit.groups:
        out.print(f"{name} {sha[:12]} is served by {len(branches)} branches: {', '.join(map(str, branches))}")


@checkpoints.command("plan")
@plain_failures()
def pythia_plan(model: str = MODEL, steps: str = STEPS, probes: str = PROBES, probe_file: list[Path] = PROBE_FILES, items: int = ITEMS,
                tokenizer: Path = TOKENIZER, dtype: str = DTYPE, device: str = typer.Option("auto")):
    """What a measurement would download and take; nothing but config.json and the tokenizer is fetched."""
    import tempfile
    with tempfile.TemporaryDirectory() as cache:
        prepare(model, steps, probes, probe_file, items, tokenizer, dtype, device, cache)


@checkpoints.command("measure")
@plain_failures()
def pythia_measure(model: str = MODEL, steps: str = STEPS, probes: str = PROBES, probe_file: list[Path] = PROBE_FILES, items: int = ITEMS,
                   tokenizer: Path = TOKENIZER, dtype: str = DTYPE, device: str = typer.Option("auto"),
                   measures: str = typer.Option("none", help="gradient_rank, hessian_top, llc: far slower"),
                   folder: Path = typer.Option(None, "--out", metavar="DIR", help="default: runs/pythia-<model>"),
                   yes: bool = typer.Option(False, "--yes", help="download without asking")):
    """One checkpoint at a time: download, verify, measure, delete.  The same command again goes on."""
    import pythia, hashlib, torch
    folder = folder or Path("runs") / pythia.repository(model).replace("/", "-").removeprefix("EleutherAI-")
    extras = () if measures == "none" else chosen("--measures", measures, tuple(pythia.EXTRAS))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        listing, kept, sets, kind, device = prepare(model, steps, probes, probe_file, items, tokenizer, dtype, device, folder / "cache")
        settle_config(folder, rounded({
            "model": pythia.repository(model), "dtype": dtype, "device": device, "threads": torch.get_num_threads(), "measures": list(extras),
            "probes": {name: hashlib.sha256(repr(p).encode()).hexdigest()[:16] for name, p in sets.items()},
            "n": len(next(iter(sets.values())).prompts), "chance": {name: p.chance for name, p in sets.items()}}))
        rows_path, rows = folder / "metrics.jsonl", read_rows(folder / "metrics.jsonl")
        waiting = set(kept) - {row["step"] for row in rows}
        if waiting and not yes:
            typer.confirm(f"download {len(waiting)} checkpoints, one at a time?", abort=True)
        write_atomically(folder / "manifest.json", json.dumps(listing) + "\n")
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
    table = Table("task", "model", "chance", "emerges", "best", "at step", "last", box=None, pad_edge=False, header_style="dim")
    for e in events:
        table.add_row(e.task, e.model, f"{e.chance:.3f}", span(e.emergence), f"{e.best:.3f}", f"{e.best_step:,}",
                      f"{e.last:.3f}" + (f" ± {e.stderr:.3f}" if e.stderr is not None else ""))
    out.print(table)
    pythia.evals_figure(rows, events).savefig(figure, dpi=160)
    out.print(f"emerges: after one checkpoint and by the next: {threshold:g} of the way from chance to 1 and 3 standard errors above chance, "
              f"{persistence} checkpoints in a row. {len(rows)} results; figure: {figure}")


def span(pair, never="never"):
    return never if pair is None else f"{pair[0]:,} to {pair[1]:,}"


@checkpoints.command("compare")
def pythia_compare(folder: Path = typer.Argument(..., metavar="DIR", help="of `pythia measure`")):
    """Geometry against behaviour, task by task, as far as the checkpoints resolve it; and the verdict on C9."""
    import pythia
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise BadInput(f"{folder} holds no rows; expected the directory of a `python run.py pythia measure`")
    listing = {step if step == "main" else int(step): files for step, files in read_json(folder / "manifest.json").items()}
    result = pythia.compare(rows, pythia.audit(listing))
    table = Table("probe set", "onset", "emergence", "lead", "verdict", "collapse", "recovery", "compression",
                  box=None, pad_edge=False, header_style="dim")
    for o in result.orders:
        table.add_row(o.task, span(o.onset), span(o.emergence), span(o.lead, "-"), o.verdict, *("yes" if x else "no" for x in o[5:]))
    out.print(table)
    for step, why in result.left_out.items():
        out.print(escape(f"step {step} left out: {why}"))
    (folder / "figures").mkdir(exist_ok=True)
    pythia.compare_figure(rows, result).savefig(folder / "figures" / "compare.png", dpi=160)
    write_json(folder / "findings.json", result._asdict() | {"orders": [o._asdict() for o in result.orders]})
    out.print(escape(f"{len(result.steps)} checkpoints. {result.verdict}\n{folder}/findings.json, figures/compare.png"))


def main():
    """One sentence on stderr for whatever the user can mend; a traceback only with --debug."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)                 # like Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                                    # closed, it is None
            stream.reconfigure(errors="replace")                              # a terminal may not know a letter that a file name has
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        message, status = "stopped", 130
    except Exception as error:
        if debug:
            raise
        status = 130 if isinstance(error, Stopped) else 2 if isinstance(error, (BadInput, ValueError)) or hasattr(error, "format_message") else 1
        message = in_words(error) + f"; see python run.py {' '.join(arguments[:1])} --help" * hasattr(error, "format_message")
    message = "".join(c if c.isprintable() else " " for c in message)         # names and values come from files
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
