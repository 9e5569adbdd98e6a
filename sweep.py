"""Chapter 6: sweep.  What a run measures and leaves on the disk, and how runs are shared out.

    models.train() ------+  Snapshot             row
    pythia.snapshots() --+-----------> record ---------> metrics.jsonl ---------> analysis
                                      (measure)

`record` is the only loop that measures and writes.  It takes any function state -> Snapshots, so
your own training loop can feed it too: tests/own_run.py is one, from the model to the report, and
tests/own_callbacks.py has callbacks for Lightning and for Hugging Face's Trainer.  A new measure is
one function, one row of MEASURES.  This file decides nothing about emergence, draws nothing, and
prints warnings alone.  A run is a folder:

    runs/<sweep>/<size>-s<seed>/
        config.json       every field, chance levels, command line, versions; where it went on
                          in another environment, that too, with its first step
        metrics.jsonl     one row per snapshot, appended as training goes on
        film.jsonl        of a sweep's first run: hidden states at up to 60 snapshots, for `watch`
        checkpoint.pt     where to go on after a stop; replaced as a whole every 20 seconds
        weights/          with --keep N: the weights of every N-th snapshot
        done, or failed   written last: a run that has one of them is not run again
        lock              held by the process that is at it

The same call again resumes a run, to the same bits as if it had not been stopped.  Nobody hands out
the runs of a sweep: every process goes through the same list, and locks keep two from the same run.
So any number of processes share a command: two terminals, torchrun, or an array of jobs.

Letters for shapes:  N examples, M scored places, D width, L layers, K task-levels, P parameters.
"""
import base64
import codecs
import contextlib
import dataclasses
import functools
import gzip
import importlib.metadata
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch.nn.attention import SDPBackend, sdpa_kernel

import measures
import models
import tasks

CHECKPOINT_SECONDS = 20               # how much work a killed run may lose
AGAIN = "move the run's directory away, and run it again"


class BadInput(ValueError):
    """Another command mends it: exit status 2."""


class Failed(RuntimeError):
    """It went wrong while running: exit status 1."""


class Busy(Failed):
    """Another process is at it."""


# --------------------------------------------------------------------------------------------------
# The lines on which a run is measured

@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """Everything that decides what is measured.  It does not touch the weights."""
    measures: tuple = ("rankme",)     # names in MEASURES
    eval_examples: int = 200          # of each task-level: its whole space, if that is no larger,
                                      # else so many draws
    hessian_snapshots: int = 7        # how often the ranks and the Hessian are taken: evenly spread
    llc_snapshots: int = 4            # how often the LLC and the linear probe are
    gradient_examples: int = 512      # for the ranks, shared by the levels, at most 64 of each
    hessian_examples: int = 512       # for the Hessian, shared likewise, at most 128 of each
    hessian_tol: float = 0.02         # its residual; the eigenvalue's error is about its square
    llc_examples: int = 64            # of each task-level, from which mini-batches are drawn
    llc_rows: int = 48                # of a mini-batch, shared likewise, at least 2 of each
    llc_chains: int = 2               # one set of chains, on the joint loss
    llc_draws: int = 100              # of each chain, after llc_burnin more
    llc_burnin: int = 20
    llc_nbeta: float = 100.0
    llc_localization: float = 1e4     # of llc: each weight may stray some .01
    llc_narrow_localization: float = 3e4
    linear_examples: int = 2000       # of each task-level, for the linear probe
    keep: int = 0                     # keep the weights of every so-many-th snapshot; 0: none
    film: int = 0                     # so many frames of hidden states, at most FRAMES; 0: none


class Seen(NamedTuple):
    """What one forward pass shows of one task-level: its N distinct lines, answers of A tokens."""
    weights: torch.Tensor             # (N,) float64: how often each line comes up; the sum is 1
    first: torch.Tensor               # (L, N, D) states that predict the first answer token:
                                      # embedding, each block, final LayerNorm
    late: torch.Tensor                # (2, N, A + 1, D) last block and final LayerNorm, where any
                                      # token of the answer is predicted; then at the line's end
    nll: torch.Tensor                 # (N, A) -log p of each token of the answer
    right: torch.Tensor               # (N, A) bool: is it the most likely token?
    predicted: torch.Tensor           # (N, V) probabilities of the first answer token


class EvalSet:
    """The lines that a run is measured on: fixed, and the same for every seed and size.

    One forward pass in float32 serves behaviour and hidden states.  A line that comes up twice is
    run once and counted twice.  On a CPU each part of the lines has a core: at this size that is
    faster than sharing every small operation out over the cores."""
    LINES = 96                        # lines in a part: their activations stay in the cache

    def __init__(self, train, measure):
        self.train, self.measure, self.snapshot = train, measure, None
        self.levels, self.device = train.levels, train.device
        self.curvature = None, None   # the snapshot at which it was found, joint_hessian
        self.state = {}               # what a measure carries on; part of the checkpoint
        self.pool = ThreadPoolExecutor(train.threads, initializer=torch.set_num_threads,
                                       initargs=(1,))           # one thread to each of its workers
        splits = {"accuracy": "all"}
        if train.train_fraction < 1:
            splits |= {"accuracy_train": "train", "accuracy_test": "test"}
        self.lines = {
            (level, column): tasks.eval_lines(*tasks.split_name(level), measure.eval_examples,
                                              split, train.train_fraction)
            for column, split in splits.items() for level in self.levels}
        self.answer_tokens = {level: tasks.answer_tokens(level) for level in self.levels}
        self.frequencies = {level: tasks.answer_frequencies(*tasks.split_name(level))[0]
                            for level in self.levels}           # of the first answer token, (V,)
        lines = [tasks.Batch(*(x[None] for x in line))
                 for found in self.lines.values() for line in zip(*found.batch)]
        self.parts = [models.lay_out_answers(share, self.device)
                      for share in models.equal_shares(lines, self.LINES, train.threads)]

    def look(self, snapshot):
        """{(level, column): Seen}, from one forward pass, which is kept for the next caller."""
        if self.snapshot is snapshot:
            return self.seen
        parts = self.each(functools.partial(models.read_answers, snapshot.model), self.parts)
        early, late, nll, right, predicted = map(torch.cat, zip(*parts))
        # the lines stand one after another, level after level
        self.snapshot, self.seen, n, m = snapshot, {}, 0, 0
        for key, found in self.lines.items():
            N, A = len(found.weights), self.answer_tokens[key[0]]
            own = late[n + m:n + m + N * (A + 1)].unflatten(0, (N, A + 1)).permute(2, 0, 1, 3)
            first = torch.cat([early[n:n + N].transpose(0, 1), own[:, :, 0]])
            self.seen[key] = Seen(
                found.weights.to(self.device), first, own,
                nll[m:m + N * A].view(N, A), right[m:m + N * A].view(N, A), predicted[n:n + N])
            n, m = n + N, m + N * A
        return self.seen

    def each(self, function, items):
        """[function(item) for item in items], without gradients; on a CPU one item to a core."""
        def alone(item):
            with torch.inference_mode():                        # a context of the thread
                return function(item)
        return list(self.pool.map(alone, items) if self.device == "cpu" else map(alone, items))

    def each_level(self, function, count, name):
        """{level: function(level, batch)}, on `count` fixed examples (tokens, targets) of each."""
        def one(level):
            pair, generator = tasks.split_name(level), tasks.seeded("cpu", name, level)
            batch = tasks.sample(*pair, count, generator)
            return function(level, tuple(x[:, :-1].to(self.device) for x in batch))
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            run = self.pool.map if self.device == "cpu" else map        # settings of the process:
            return dict(zip(self.levels, run(one, self.levels)))        # no thread may undo them

    def joint(self, count, name):
        """The same examples of all task-levels as one batch, padded to the longest line."""
        batches, sides = self.each_level(lambda level, batch: batch, count, name).values(), []
        for side, fill in zip(zip(*batches), (tasks.PAD, tasks.IGNORE)):
            rows = [row for x in side for row in x]
            sides.append(torch.nn.utils.rnn.pad_sequence(rows, True, fill))
        return tuple(sides)                                     # tokens, targets, both (N, T)

    def share(self, total, most):
        """Examples of each task-level, where all of them together are to have `total`."""
        return max(2, min(most, total // len(self.levels)))


# --------------------------------------------------------------------------------------------------
# One function for each measure: (snapshot, evals) -> {level: {column: value}}

def measure_behaviour(snapshot, evals):
    """Accuracy (exact match), token accuracy, log-probability of the whole answer, loss per token,
    and how far the mean prediction is from the frequencies of the answers.

    Greedy decoding gets an answer right exactly if each of its tokens is the most likely one after
    the true ones before it.  So one forward pass is enough."""
    levels = {}
    for (level, column), seen in evals.look(snapshot).items():
        w = seen.weights
        columns = levels.setdefault(level, {})
        columns[column] = float(w @ seen.right.all(1).double())
        if column == "accuracy":
            nll = seen.nll.double()
            mean = w @ seen.predicted.double()[:, :tasks.VOCAB_SIZE]
            columns |= {"token_accuracy": float(w @ seen.right.double().mean(1)),
                        "log_prob": -float(w @ nll.sum(1)), "loss": float(w @ nll.mean(1)),
                        "marginal_kl": measures.marginal_kl(evals.frequencies[level], mean)}
    return levels


def measure_rankme(snapshot, evals):
    """RankMe of the hidden states, raw and centred, and the share of their energy in the mean.

    In float32: rounding to bfloat16 lifts a collapsed rank by some 8% (1.69 to 1.83)."""
    seen = evals.look(snapshot)

    def one(level):
        own = seen[level, "accuracy"]
        root, A = own.weights.sqrt()[:, None], own.late.shape[2] - 1
        first, last = own.first.double(), own.late[:, :, A].double()        # (L, N, D), (2, N, D)
        centred, share = measures.centred(first, own.weights.expand(first.shape[:2]))
        varies = share < 1 - 1e-9                               # else nothing is left to centre
        kinds = first * root, centred[varies], last * root      # a row of weight w: times sqrt(w)
        first, centred, last = measures.rankme_many(torch.cat(kinds)).split(list(map(len, kinds)))
        answer = first[-2:]
        if A > 1:                                               # of one token, "answer" is "first"
            states = own.late[:, :, :A].double() * root[:, :, None]         # (2, N, A, D)
            answer = measures.rankme_many(states.flatten(1, 2))
        ranks, rest = {"first": first, "answer": answer, "last": last}, iter(centred.tolist())
        return {"distinct": evals.lines[level, "accuracy"].distinct, "mean_share": share.tolist(),
                "rankme": {position: x.tolist() for position, x in ranks.items()},
                "rankme_centred": [next(rest) if some else None for some in varies.tolist()]}
    return dict(zip(evals.levels, evals.each(one, evals.levels)))


def measure_gradient_rank(snapshot, evals):
    """Effective rank of the gradient covariance, true labels."""
    def one(level, batch):
        return {"gradient_rank": measures.gradient_rank(snapshot.model, models.example_loss, batch)}
    return evals.each_level(one, evals.share(evals.measure.gradient_examples, 64), "gradient")


def measure_fisher_rank(snapshot, evals):
    """Effective rank of the Fisher matrix: labels drawn from the model, losses summed."""
    def one(level, batch):
        generator = tasks.seeded(evals.device, "fisher", level)
        drawn = models.resample_answers(snapshot.model, batch, generator)
        return {"fisher_rank": measures.fisher_rank(snapshot.model, models.example_loss_sum, drawn)}
    return evals.each_level(one, evals.share(evals.measure.gradient_examples, 64), "gradient")


HESSIAN_KEYS = "eigenvalue", "smallest", "iterations", "residual", "converged"    # what is kept


def measure_hessian_top(snapshot, evals):
    """Top eigenvalue of the Hessian of each task-level's loss.

    All levels start from two vectors, of the joint loss's smallest and largest eigenvalue: found
    roughly, on a quarter of the examples, and kept in the checkpoint for the next snapshot."""
    joint = joint_hessian(snapshot, evals)

    def one(level, batch):
        top = measures.hessian_top(snapshot.model, models.example_loss, batch,
                                   evals.measure.hessian_tol, max_iters=30, start=joint.vectors,
                                   room=2**30 // evals.train.threads)       # one in each thread
        return {"hessian_top": {key: getattr(top, key) for key in HESSIAN_KEYS}}
    return evals.each_level(one, evals.share(evals.measure.hessian_examples, 128), "hessian")


def joint_hessian(snapshot, evals):
    """HessianTop of the joint loss, roughly, on a quarter of the examples: once a snapshot."""
    if evals.curvature[0] is snapshot:
        return evals.curvature[1]
    batch = evals.joint(evals.share(evals.measure.hessian_examples // 4, 32), "hessian")
    joint = measures.hessian_top(snapshot.model, models.packed_loss, batch, tol=0.1, max_iters=30,
                                 start=evals.state.get("hessian"),
                                 generator=tasks.seeded("cpu", "hessian"))
    evals.state["hessian"] = joint.vectors                      # (2, P)
    evals.curvature = snapshot, joint
    return joint


def measure_joint(snapshot, evals):
    """Ranks and top Hessian eigenvalue of all task-levels' loss at once: where the model is large,
    those of each cost too much.  Every level is given the same.

    The ranks are of few examples: 56 of the 85M model, padded to the longest line, take 12 GiB."""
    batch = evals.joint(evals.share(evals.measure.gradient_examples // 8, 16), "gradient")
    drawn = models.resample_answers(snapshot.model, batch, tasks.seeded(evals.device, "fisher"))
    top = joint_hessian(snapshot, evals)
    found = {"examples": len(batch[0]),
             "gradient_rank": measures.gradient_rank(snapshot.model, models.example_loss, batch),
             "fisher_rank": measures.fisher_rank(snapshot.model, models.example_loss_sum, drawn)}
    found |= {key: getattr(top, key) for key in HESSIAN_KEYS}
    return {level: {"joint": found} for level in evals.levels}


def measure_llc(snapshot, evals, name="llc"):
    """Every task-level's LLC, from one set of chains on the joint loss.  Guessing is the worst."""
    m, K = evals.measure, len(evals.levels)
    pairs = map(tasks.split_name, evals.levels)
    guessing = [torch.special.entr(tasks.answer_frequencies(*pair)).sum(1).mean() for pair in pairs]
    found = evals.chains = measures.llc(
        snapshot.model, models.packed_loss, evals.joint(m.llc_examples, "llc"), m.llc_nbeta,
        localization=getattr(m, f"{name}_localization"), start=evals.state.get("llc"),
        num_chains=m.llc_chains, num_draws=m.llc_draws, num_burnin_steps=m.llc_burnin,
        batch_size=K * evals.share(m.llc_rows, m.llc_examples),
        generator=tasks.seeded("cpu", "llc", snapshot.step),
        groups=torch.arange(K).repeat_interleave(m.llc_examples),
        worst_loss=float(sum(guessing) / K))
    evals.state["llc"], row = found.eigenvector, found.row()
    shared = {key: value for key, value in row.items() if "group" not in key}
    columns = {}
    for k, level in enumerate(evals.levels):
        own = {"mean": "group_means", "mc_error": "group_mc_errors", "bias": "group_biases",
               "noise_only": "group_noise_only"}
        own = {key: row[column] and row[column][k] for key, column in own.items()}
        columns[level] = {name: shared | {"joint": row["mean"]} | own}      # None: all diverged
    return columns


def measure_llc_narrow(snapshot, evals):
    """The same, where the weights are held closer: what depends on that is no property of them."""
    return measure_llc(snapshot, evals, "llc_narrow")


def measure_linear_probe(snapshot, evals):
    """Held-out accuracy of a linear probe for the first answer token, from each layer's state where
    that token is predicted; and the same on shuffled labels, from the last block."""
    def one(level, batch):
        tokens, targets = batch
        first = int((targets[0] != tasks.IGNORE).nonzero()[0])  # the position that predicts it
        pieces, low = [], evals.train.dtype == "bfloat16"
        with torch.no_grad(), torch.autocast(tokens.device.type, torch.bfloat16, enabled=low):
            for part in tokens.split(256):
                states = [h[:, first] for h in snapshot.model.hidden_states(part)]
                pieces.append(torch.stack([*states, snapshot.model.ln_f(states[-1])]))
        layers = torch.cat(pieces, 1)                           # (L, N, D)
        labels, generator = targets[:, first], tasks.seeded("cpu", "linear", level)
        # rows of one input are never on both sides of the split
        _, inputs = tokens[:, :first + 1].unique(dim=0, return_inverse=True)
        accuracy = [measures.linear_probe(h, labels, generator, inputs) for h in layers]
        order = torch.randperm(len(labels), generator=generator)
        shuffled = measures.linear_probe(layers[-2], labels[order], generator, inputs)
        return {"linear_probe": accuracy, "linear_probe_shuffled": shuffled}
    return evals.each_level(one, evals.measure.linear_examples, "linear")


class Measure(NamedTuple):
    """One row of the table MEASURES."""
    function: Callable                # (snapshot, evals) -> {level: {column: value}}
    columns: tuple                    # the columns that it writes
    snapshots: str                    # the config field that says at how many snapshots it is taken
    cost: float                       # of one snapshot, in training steps
    number: tuple                     # where the number that is judged stands in a level's columns
    about: str                        # what it is: for help, tables and pages
    level_cost: float = 0.0           # and so many steps more for each task-level


# The vocabulary of --measures.  Accuracy needs no name.
MEASURES = {
    "rankme": Measure(
        measure_rankme, ("distinct", "rankme", "rankme_centred", "mean_share"), "snapshots", 6, (),
        "Effective number of directions of the hidden states that predict the first answer token: "
        "embedding, each block, final norm.  rankme_centred: without their mean, whose share of "
        "the energy is mean_share."),
    "gradient_rank": Measure(
        measure_gradient_rank, ("gradient_rank",), "hessian_snapshots", 25, ("gradient_rank",),
        "Along how many directions the examples' gradients disagree; below their number."),
    "fisher_rank": Measure(
        measure_fisher_rank, ("fisher_rank",), "hessian_snapshots", 25, ("fisher_rank",),
        "Effective rank of the Fisher matrix, labels drawn from the model; at most their number."),
    "hessian_top": Measure(
        measure_hessian_top, ("hessian_top",), "hessian_snapshots", 140,
        ("hessian_top", "eigenvalue"),
        "Curvature of the loss along its sharpest direction.  iterations: Hessian-vector products; "
        "residual: |Hv - lambda v| / |lambda|."),
    "joint": Measure(
        measure_joint, ("joint",), "hessian_snapshots", 45, (),
        "Ranks and top Hessian eigenvalue of all task-levels' loss at once, on few examples: one "
        "value for the model, where those of each level cost too much."),
    "llc": Measure(
        measure_llc, ("llc",), "llc_snapshots", 300, ("llc", "mean"),
        "rise: by how many nats the loss is higher around these weights (LLC / nbeta), where each "
        "may stray some localization^-1/2.  Where the rise brings the loss to that of guessing, "
        "the LLC only mirrors the loss at the weights.  A negative one: they are no minimum."),
    "llc_narrow": Measure(
        measure_llc_narrow, ("llc_narrow",), "llc_snapshots", 250, ("llc_narrow", "mean"),
        "The LLC with another localization, three times that of llc."),
    "linear_probe": Measure(
        measure_linear_probe, ("linear_probe", "linear_probe_shuffled"), "llc_snapshots", 30,
        ("linear_probe", -2),
        "Accuracy of a linear probe for the first answer token: embedding, each block, final norm; "
        "then the last block's on shuffled labels.", level_cost=9),
}

# Unless --measures asks: in the first run of a sweep all but the second LLC, which costs as much as
# the first, and the joint values; in the others, RankMe.
FIRST_RUN = tuple(name for name in MEASURES if name not in ("llc_narrow", "joint"))


# --------------------------------------------------------------------------------------------------
# The film: hidden states to look at, not to analyse

FRAMES = 60                           # of a film: the snapshots' own grid, evenly thinned out
FILM_LINES = 200                      # of each of its task-levels: a point in the picture
FILM_LEVELS = 4
FILM_DIRECTIONS = 6                   # that are kept of each frame


def filmed_levels(levels):
    """At most FILM_LEVELS: of a few all, of many the second levels, evenly spread over the list.

    >>> filmed_levels(["add-1", "add-2", "add-3", "sham-add-1"])
    ['add-1', 'add-2', 'add-3']
    >>> filmed_levels([f"{name}-{k}" for name in tasks.TASKS for k in tasks.LEVELS])
    ['copy-2', 'compare-2', 'modadd-2', 'multiply-2']
    """
    real = [level for level in levels if not level.startswith("sham-")] or list(levels)
    if len(real) > FILM_LEVELS:
        real = [level for level in real if level.endswith("-2")] or real
    chosen = models.evenly_spaced(real, FILM_LEVELS)
    return [level for level in real if level in chosen]


def film_frame(snapshot, evals):
    """One frame: the states from which RankMe is read by default, small enough to be kept.

    They are those of the last block where the first answer token is predicted, (N, D), as RankMe
    sees them: divided by their root mean square length.  Of each task-level:
        length      that length
        shares      the 16 largest singular values, as shares of the sum of all: RankMe is the
                    exponential of the entropy of these shares
        directions  (D, 6) the leading directions of the states without their mean
        states      (n, 6) their coordinates along these, of at most FILM_LINES lines
        scales      (6,) states are these times whole numbers from -127 to 127
        lines, answers      in the frame of step 0: each line, and the first token of its answer
    Numbers of one byte in base64 keep (n + D) 6 bytes, a third more in text: .5 MB for three levels
    of nano, 2.4 MB for four of xl.  Which plane is shown can so be chosen when the run is over."""
    frame = {}
    for level in filmed_levels(evals.levels):
        found, seen = evals.lines[level, "accuracy"], evals.look(snapshot)[level, "accuracy"]
        weights, states = seen.weights.cpu(), seen.first[-2].cpu().double()         # (N,), (N, D)
        states = states.nan_to_num(0, 0, 0)                     # a film never ends a run
        root = weights.sqrt()[:, None]
        length = float((root * states).norm())
        states = states / (length or 1)
        singular = torch.linalg.svdvals(root * states)
        centred = states - weights @ states
        right = torch.linalg.svd(root * centred, full_matrices=False).Vh.T[:, :FILM_DIRECTIONS]
        shown = torch.linspace(0, len(states) - 1, min(len(states), FILM_LINES)).long()
        codes, scales = in_bytes(centred[shown] @ right)
        shares = singular[:16] / singular.sum().clamp_min(1e-300)
        frame[level] = {"length": length, "shares": shares.tolist(), "states": codes,
                        "scales": scales, "directions": in_bytes(right)[0]}
        if snapshot.step == 0:
            tokens, targets = found.batch
            first = targets[targets != tasks.IGNORE].view(len(tokens), -1)[shown, 0]
            frame[level] |= {"lines": [tasks.decode(line) for line in tokens[shown]],
                             "answers": [tasks.VOCABULARY[token] for token in first]}
    return frame


def in_bytes(x):
    """(N, r) -> (base64 of whole numbers from -127 to 127, row by row; the scale of each column).

    >>> in_bytes(torch.tensor([[1.27, 0], [-1.27, 0]], dtype=torch.float64))
    ('fwCBAA==', [0.01, 0.0])
    """
    scales = x.abs().amax(0) / 127
    codes = (x / scales.clamp_min(1e-300)).round().to(torch.int8)
    return base64.b64encode(codes.numpy().tobytes()).decode(), scales.tolist()


def schedule(train, measure):
    """{name: steps at which it is taken} of everything that a run measures."""
    steps, taken = models.snapshot_steps(train.steps, train.snapshots), {}
    looked_at = models.snapshots_of(train)
    for name in measure.measures:
        field = MEASURES[name].snapshots
        if field == "snapshots":
            taken[name] = set(looked_at)
        else:                                                   # of the whole schedule: `stop`
            count = min(getattr(measure, field), len(steps))    # moves none of them
            taken[name] = models.evenly_spaced(steps, count) & set(looked_at)
    return taken


class Measurement:
    """What `record` calls at every snapshot of a run: measurement(snapshot) -> {"levels": ...}."""

    def __init__(self, train, measure):
        self.train, self.measure, self.evals, self.state = train, measure, None, {}
        self.taken = schedule(train, measure)
        steps = models.snapshot_steps(train.steps, train.snapshots)
        self.filmed = models.evenly_spaced(steps, min(measure.film, len(steps)))

    def __call__(self, snapshot):
        if not all(p.isfinite().all() for p in snapshot.model.parameters()):
            raise FloatingPointError(f"the weights are no longer finite at step {snapshot.step}")
        if self.evals is None:                                  # not before the run is ours
            self.evals = EvalSet(self.train, self.measure)
            self.evals.state = self.state
        levels = measure_behaviour(snapshot, self.evals)
        for name, steps in self.taken.items():
            if snapshot.step in steps:
                for level, columns in MEASURES[name].function(snapshot, self.evals).items():
                    levels[level] |= columns
        if snapshot.step in self.filmed:
            return {"levels": levels, "film": film_frame(snapshot, self.evals)}
        return {"levels": levels}


# --------------------------------------------------------------------------------------------------
# Files

def rounded(x):
    """As JSON has it: six significant digits, and null for what is not a number, such as NaN.

    Tensors and arrays become lists, a result of measures.py its `row()`, anything else its text."""
    if hasattr(x, "row") or hasattr(x, "tolist"):
        return rounded(x.row() if hasattr(x, "row") else x.tolist())
    if isinstance(x, dict):
        return {str(k): rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v) for v in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x if x is None or isinstance(x, (str, int)) else str(x)


def write_atomically(path, content):
    """All of it or nothing: another name in the same folder, then moved.

    content: text, bytes, or a dict or list, which becomes JSON."""
    if isinstance(content, (dict, list)):
        content = json.dumps(rounded(content), indent=1) + "\n"
    if isinstance(content, str):
        content = content.encode(errors="replace")
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def decoded(content):
    """Bytes -> text: UTF-8, with a mark at its beginning or without, or UTF-16 with one."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig")


def parse_json(text):
    """What a JSON text says.  ValueError for what is none, and for a name that comes twice."""
    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"two values for {max(names, key=names.count)!r}")
        return found
    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path):
    """A file that holds a JSON object -> dict.  Raises Failed for any other."""
    try:
        return dict(parse_json(decoded(path.read_bytes())).items())
    except (OSError, ValueError, AttributeError) as error:
        raise Failed(f"{path} is no readable JSON object ({str(error)[:200]}); {AGAIN}") from None


def checked_row(row):
    """The same row.  TypeError for what is none."""
    levels = row.get("levels") if isinstance(row, dict) else None
    columns = {type(own) for own in levels.values()} if isinstance(levels, dict) else {None}
    if columns - {dict} or type(row.get("step")) is not int:
        raise TypeError('expected {"step": a whole number, "levels": {level: {column: value}}}')
    return row


def as_line(row):
    """A row -> its line.  TypeError for what could not be read again."""
    return json.dumps(checked_row(rounded(row))) + "\n"


def read_rows(path):
    """The rows of a metrics.jsonl.  A last line that was cut off half-way is left out.

    Where there is none, but a metrics.jsonl.gz, it is read instead."""
    packed, lines, rows = path.with_name(path.name + ".gz"), [], []
    if path.exists():
        lines = path.read_bytes().splitlines()
    elif packed.exists():
        try:
            lines = gzip.decompress(packed.read_bytes()).splitlines()
        except (OSError, EOFError, zlib.error) as error:
            raise Failed(f"{packed} is damaged, or was cut short ({error}); {AGAIN}") from None
    for number, line in enumerate(lines, 1):
        try:
            rows.append(checked_row(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise Failed(f"{path}, line {number}, is not a row ({error}); {AGAIN}") from None
    return rows


@contextlib.contextmanager
def locked(folder, wait=False):
    """Hold the folder's lock.  If another process has it: wait for it, or raise Busy.

    The system lets go of a lock when its process ends, however it ends."""
    try:
        with FileLock(folder / "lock", timeout=-1 if wait else 0):
            yield
    except Timeout:
        raise Busy(f"{folder} is being written by another process; wait, or stop it") from None


def save(path, state):
    """torch.save, all of it or nothing."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_saved(path):
    """What `save` wrote, on the CPU.  None where there is none, or where it is damaged.

    A file of torch is a zip with a checksum of each part: damage shows before it is loaded.
    Raises Failed for a sound zip that holds other things than tensors and plain values."""
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


# --------------------------------------------------------------------------------------------------
# One run

@functools.cache
def git(*arguments):
    """What git says of this tree; None without git, or outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, check=True,
                              capture_output=True, text=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment():
    """What a run depends on besides its config: for the record; a run may go on in another one."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    words = [word for before, word in zip(sys.argv, sys.argv[1:])       # where it goes is left out
             if "--out" not in (before, word) and not word.startswith("--out=")]
    return {"command": ["python", "run.py", *words], "git": git("rev-parse", "HEAD"),
            "git_dirty": None if changed is None else bool(changed), "torch": torch.__version__,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), "numpy": importlib.metadata.version("numpy"),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def run_config(train, measure):
    """config.json: every field, and what analysis needs to know of tasks, model and measures."""
    size = models.gpt_config(train)
    pairs = {name: tasks.split_name(name) for name in train.levels}
    taken = {name: MEASURES[name].number for name in measure.measures}
    return rounded({
        **dataclasses.asdict(train), **dataclasses.asdict(measure),
        "parameters": models.parameter_count(size), "width": size.n_embd, "n_layer": size.n_layer,
        "chance": {name: tasks.chance(*pair) for name, pair in pairs.items()},
        "chance_log_prob": {name: tasks.chance_log_prob(*pair) for name, pair in pairs.items()},
        "answer_tokens": {name: tasks.answer_tokens(name) for name in train.levels},
        # over how many draws accuracy is a mean; None: over all inputs, so that it is exact
        "examples": {name: None if tasks.eval_lines(*pair, measure.eval_examples).exact
                     else measure.eval_examples for name, pair in pairs.items()},
        "token_chance": {name: float(tasks.answer_frequencies(*pair).amax(1).mean())
                         for name, pair in pairs.items()},
        "numbers": {name: number for name, number in taken.items() if number}})


def without_stop(config):
    """What must not change about a run: it may end later than it was to end at first."""
    return {key: value for key, value in config.items()
            if key not in ("stop", "environment", "resumed")}


def check_config(folder, config):
    """-> what config.json says; {} where there is none.  Raise BadInput if it says another thing.

    Only `stop` may differ: a run can go on where it ended."""
    path = folder / "config.json"
    if not path.exists():
        if (folder / "metrics.jsonl").exists():
            raise Failed(f"{folder} has a metrics.jsonl, but no config.json: put it back, or move "
                         "the directory away")
        return {}
    old = read_json(path)
    before, now = without_stop(old), without_stop(config)
    different = [f"{key} was {str(old.get(key))[:60]}, now {str(config.get(key))[:60]}"
                 for key in {**before, **now} if before.get(key) != now.get(key)]
    if different:
        raise BadInput(f"{folder} holds a run with another config ({'; '.join(different)}); choose "
                       "another --out, or repeat the old command")
    return old


def write_config(folder, config, old):
    """Write config.json where there is none (old: what is there).  Else note where it now ends."""
    if not old:
        write_atomically(folder / "config.json", {**config, "environment": environment()})
    elif old.get("stop") != config.get("stop"):
        write_atomically(folder / "config.json", {**old, "stop": config["stop"]})


COMPARED = ("python", "numpy", "torch", "system", "processor", "gpu", "git")


def note_environment(folder, rows):
    """A run that goes on elsewhere says so; config.json has each environment with its first step.

    environment: the first.  resumed: [{"step": went on from there, "environment"}].
    A run that begins again has one environment, that of now."""
    path, here = folder / "config.json", rounded(environment())
    config, step = read_json(path), rows[-1]["step"] if rows else -1
    resumed = [entry for entry in config.get("resumed", ()) if entry["step"] < step]
    made = (resumed[-1] if resumed else config).get("environment") or {}
    different = [f"{key} was {made[key]}, is {here[key]}" for key in COMPARED
                 if key in made and made[key] != here[key]]     # what it does not name: not known
    if different and rows:
        print(f"{folder}: goes on from step {step} in another environment ({'; '.join(different)})"
              "; config.json says which steps were made where", file=sys.stderr)
        resumed.append({"step": step, "environment": here})
    elif different:
        config["environment"] = here
    if different or len(resumed) < len(config.get("resumed", ())):
        write_atomically(path, {**config, "resumed": resumed})


def failure(folder):
    """In words, when and why a run failed for good.  None if it did not."""
    if (folder / "failed").exists():
        found = read_json(folder / "failed")
        return f"{folder.name} failed after step {found.get('step')}: {found.get('reason')}"


def is_done(folder, until=None):
    """Has a run reached what it is to reach?  A later step is enough; None: whatever it was."""
    path = folder / "done"
    if until is None or not path.exists():
        return path.exists()
    reached = read_json(path).get("until")
    numbers = isinstance(reached, int) and isinstance(until, int)
    return reached >= until if numbers else reached == rounded(until)


def where_to_go_on(folder, config):
    """-> (the last checkpoint, the rows up to it).  Without a sound one, a run begins again."""
    path, rows, why = folder / "checkpoint.pt", read_rows(folder / "metrics.jsonl"), ""
    saved = load_saved(path)
    if saved is None:
        why = f"{path} is missing" if (folder / "done").exists() else ""    # else it only began
        why = f"{path} is damaged" if path.exists() else why
    elif (not isinstance(saved, dict) or saved.get("config") != without_stop(config)
          or not {"snapshot", "measure", "rows", "wall"} <= saved.keys()):
        raise Failed(f"{path} is not a checkpoint of this run; move it away, and the same command "
                     "begins again")
    elif saved["snapshot"] is None:
        why = f"{path} has no state of the training to go on from"
    elif saved["rows"] <= len(rows):
        return saved, rows[:saved["rows"]]
    else:
        why = f"{folder}/metrics.jsonl has fewer rows than its checkpoint knows of"
    if why:
        print(f"{why}: the run begins again, and comes to the same numbers", file=sys.stderr)
    return {"snapshot": None, "measure": {}, "wall": {"train": 0.0, "measure": 0.0}}, []


def record(folder: Path, config: dict, snapshots: Callable, measure: Callable, until=None,
           seconds: float | None = None) -> None:
    """Measure every snapshot and write it down: the only loop that does.

    folder: the run's directory.  config: what decides the numbers, for config.json.
    snapshots: state -> iterator of Snapshots, such as models.train and pythia.snapshots, which does
      not train on after its last: that one's state may be read at the end.  state is what
      `snapshot.state()` returned at the last checkpoint; None at the start.
    measure: snapshot -> dict, with {level: {column: value}} under the key "levels".  If it has an
      attribute `state`, a dict, that is part of the checkpoint too.  What is under the key "film",
      likewise {level: {...}}, is no part of the row: it goes to film.jsonl.
    until: what the run is to reach; one that is done, but reached something else, goes on.
    seconds: between checkpoints; None: CHECKPOINT_SECONDS.
    Raises BadInput for another config, Busy if another process is at it, Failed if it failed."""
    folder, config = Path(folder), rounded(config)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        old = check_config(folder, config)
        if is_done(folder, until):
            return
        if failure(folder):
            raise Failed(f"{failure(folder)}; its rows are kept: other settings, another --out")
        write_config(folder, config, old)
        saved, rows = where_to_go_on(folder, config)
        note_environment(folder, rows)
        path, wall, unsaved = folder / "metrics.jsonl", saved["wall"], None
        write_atomically(path, "".join(map(as_line, rows)))
        for stale in (path.with_name(path.name + ".gz"), *([] if rows else [folder / "done"])):
            if stale.exists():
                stale.unlink()                                  # there is no second version
        keep_frames(folder / "film.jsonl", rows)
        if hasattr(measure, "state"):
            measure.state = saved["measure"]
        last, seconds = time.monotonic(), CHECKPOINT_SECONDS if seconds is None else seconds
        last_saved = last if rows else -math.inf                # a new run: saved at once
        with open(path, "ab") as file, ending_for_good(folder, rows):
            for snapshot in snapshots(saved["snapshot"]):
                # Measure, and write the row down before anything else happens.
                wall["train"] += time.monotonic() - last
                last = time.monotonic()
                row = {"step": snapshot.step, "loss": snapshot.loss, **measure(snapshot)}
                frame = row.pop("film", None)
                wall["measure"] += time.monotonic() - last
                last = time.monotonic()
                row |= {f"wall_{what}_s": round(spent, 2) for what, spent in wall.items()}
                rows.append(row)
                file.write(as_line(row).encode())
                file.flush()
                if frame:
                    append_frame(folder / "film.jsonl", {"step": snapshot.step, "levels": frame})
                if config.get("keep") and (len(rows) - 1) % config["keep"] == 0:
                    kept = folder / "weights" / f"step-{snapshot.step:06d}.pt"
                    kept.parent.mkdir(exist_ok=True)
                    save(kept, snapshot.model.state_dict())
                # Where to go on, were the run to stop here.
                unsaved = {"snapshot": snapshot.state(), "measure": getattr(measure, "state", {}),
                           "rows": len(rows), "wall": wall, "config": without_stop(config)}
                if last - last_saved > seconds:
                    save_checkpoint(folder, file, unsaved)
                    last_saved, unsaved = time.monotonic(), None
            if unsaved:                                         # the last weights are still there
                save_checkpoint(folder, file, unsaved)
        write_atomically(folder / "done", {"until": until, "wall_train_s": wall["train"],
                                           "wall_measure_s": wall["measure"]})


def append_frame(path, frame):
    """It is on the disk before a checkpoint can know of its row."""
    if not path.exists():
        return write_atomically(path, as_line(frame))
    with open(path, "ab") as file:
        file.write(as_line(frame).encode())
        file.flush()
        os.fsync(file.fileno())


def read_frames(path):
    try:
        return read_rows(path)
    except Failed:
        raise Failed(f"{path} is damaged; delete it: nothing but the film needs it") from None


def keep_frames(path, rows):
    """Cut a film back to where the rows end, as the rows are: the rest comes once more."""
    if path.exists():
        last = rows[-1]["step"] if rows else -1
        kept = [frame for frame in read_frames(path) if frame["step"] <= last]
        write_atomically(path, "".join(map(as_line, kept)))


def save_checkpoint(folder, file, state):
    """A checkpoint never knows of more rows than the disk does."""
    os.fsync(file.fileno())
    if not (folder / "metrics.jsonl").exists():
        raise Failed(f"{folder}/metrics.jsonl was deleted under the run; the same command begins "
                     "it again")
    save(folder / "checkpoint.pt", state)


@contextlib.contextmanager
def ending_for_good(folder, rows):
    """What is no longer finite, or cannot be measured, ends a run for good: the file `failed`."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        step = rows[-1]["step"] if rows else 0
        write_atomically(folder / "failed", {"step": step, "reason": str(error)})
        raise Failed(f"{folder.parent}/{failure(folder)}; what is there is kept: choose other "
                     "settings, such as a smaller --set lr=..., and another --out") from None


# --------------------------------------------------------------------------------------------------
# What finished runs say, as one long table

def run_folders(folder):
    """The directories of a sweep's runs.  A run's own directory is a sweep of one."""
    if (folder / "config.json").exists():
        return [folder]
    names = ("config.json", "metrics.jsonl", "metrics.jsonl.gz", "done")
    return sorted({path.parent for path in folder.glob("*/*") if path.name in names})


def is_own(config):
    """Was it recorded by a reader's own loop?  Then config.json may hold anything, or nothing."""
    return not {"levels", "measures"} <= config.keys()


def check_run(folder, config):
    """Raise Failed where a run's config.json is not one that analysis can use."""
    if is_own(config):
        size, _, seed = folder.resolve().name.rpartition("-s")
        if size in models.SIZES and seed.isdecimal():           # a name that only a sweep gives
            lacks = " and ".join(sorted({"levels", "measures"} - config.keys()))
            raise Failed(f"{folder}/config.json lacks {lacks}, which every run of a sweep has; "
                         f"{AGAIN} (a run of your own needs another name)")
        return
    if "numbers" not in config:
        raise Failed(f"{folder} was written by an earlier version, or by another program: use the "
                     "commit that its config.json names, or run it again elsewhere")
    name = f"{config.get('size')}-s{config.get('seed')}"
    kinds = {"parameters": int, "width": int, "steps": int, "numbers": dict, "chance": dict}
    if (folder.resolve().name != name
            or any(type(config.get(key)) is not kind for key, kind in kinds.items())
            or list(config["chance"]) != config.get("levels")):
        raise Failed(f"{folder} is not a run that `sweep` wrote (its config.json does not fit); "
                     f"{AGAIN}")


def load(folder: Path) -> tuple[Iterator, dict, list]:
    """A sweep's directory -> (rows, configs, missing).

    rows: of the long table that emergence.from_table takes, (run, level, step, quantity, value).
    configs: {run: its config.json}.  missing: in words, which runs are not finished, and why.
    Raises BadInput where no run is finished, Failed for a file that cannot be read."""
    folder, found, missing = Path(folder), [], []
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a directory; expected a sweep's, such as runs/modadd")
    for one in run_folders(folder):
        config, rows = read_json(one / "config.json"), read_rows(one / "metrics.jsonl")
        check_run(one, config)
        last = rows[-1]["step"] if rows else 0
        steps = config.get("stop") or config.get("steps")
        if is_own(config):                                      # it may still go on
            steps = last if rows else 1
        if failure(one):
            missing.append(failure(one))
        elif last < steps:
            missing.append(f"{one.name} stopped at step {last} of {steps}")
        else:
            place = config.get("parameters") or 0, config.get("seed") or 0, one.resolve().name
            found.append((*place, config, rows))
    if not found:
        why = "; ".join(missing) or "expected a sweep's directory, such as runs/modadd"
        raise BadInput(f"{folder} holds no finished run ({why})")
    found.sort(key=lambda run: run[:3])
    table = (table_rows(name, config, rows) for *_, name, config, rows in found)
    return (itertools.chain.from_iterable(table),
            {name: config for *_, name, config, rows in found}, missing)


def find_film(folder: Path, names) -> tuple[str, list] | None:
    """The film of the first of these runs that has one: (its name, its frames).  None: no film."""
    places = {one.resolve().name: one for one in run_folders(folder)}
    for name in names:
        frames = read_frames(places[name] / "film.jsonl") if name in places else []
        if frames and frames[0]["step"] == 0:                   # there, the lines are written down
            return name, frames
    return None


LAYERED = ("rankme", "rankme_centred", "mean_share", "joint")

def table_rows(name, config, rows):
    """The rows of metrics.jsonl -> (run, level, step, quantity, value), one at a time."""
    own = is_own(config)
    for row in rows:
        for level, columns in row["levels"].items():
            place = name, level, row["step"]
            for column, value in columns.items():
                if column in LAYERED or own:                    # a number for each layer, or key
                    for quantity, number in spread(column, value):
                        if not (own and isinstance(number, str)):       # words of a reader's own
                            yield *place, quantity, number
                    continue
                if isinstance(value, dict) and "mc_error" in value:
                    yield *place, f"{column}.mc_error", value["mc_error"]
                    if "joint" in value:
                        yield *place, f"joint.{column}", value["joint"]
                for key in config["numbers"].get(column, ())[1:]:       # the one that is judged
                    value = None if value is None else value[key]
                if not isinstance(value, (dict, list)):
                    yield *place, column, value


def spread(name, value):
    """The numbers of nested dicts and lists: {"a": {"b": [1, 2]}} -> a.b.0, 1 and a.b.1, 2."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from spread(f"{name}.{key}", inner)
    else:
        yield name, value


# --------------------------------------------------------------------------------------------------
# A plan of runs: what it costs, and the processes that share it out

class Job(NamedTuple):
    """One run of a sweep's plan."""
    folder: Path
    train: models.TrainConfig
    measure: MeasureConfig

    def is_done(self):
        return is_done(self.folder, models.last_step(self.train))

    def to_do(self):
        """The share of its cost that is still to come, by the rows that it has."""
        rows = read_rows(self.folder / "metrics.jsonl")
        made = worth(self.train, self.measure, rows[-1]["step"]) if rows else 0
        return max(0.0, 1 - made / worth(self.train, self.measure))


def estimate(train, measure):
    """-> (seconds of training, seconds of measuring accuracy and RankMe, snapshots) of a run.

    Some of its steps and up to three snapshots are timed here and now: of a large model, fewer."""
    torch.set_num_threads(train.threads)
    short = dataclasses.replace(train, lr=0.0, snapshots=train.steps + 1, compile=0, stop=0)
    begin, steps = time.monotonic(), []
    for snapshot in models.train(short):                        # one after every step
        steps.append(time.monotonic() - begin)
        if len(steps) > 20 or sum(steps) > (3 if len(steps) > 4 else 25):
            break
        begin = time.monotonic()
    often = tuple(name for name in measure.measures if MEASURES[name].snapshots == "snapshots")
    measurement, looks = Measurement(short, dataclasses.replace(measure, measures=often)), []
    for _ in range(3):                                          # the first draws the lines
        begin = time.monotonic()
        measurement(snapshot._replace(loss=None))               # a new one, or it would be kept
        looks.append(time.monotonic() - begin)
        if sum(looks) > 10:
            break
    # The first three steps and the first look pay for the set-up.  A median of the others, for
    # something else may run beside.
    count = len(models.snapshots_of(train))
    step = statistics.median(steps[3:] or steps[-1:])
    return step * models.last_step(train), statistics.median(looks[1:] or looks) * count, count


def costs(train, measure, until=math.inf):
    """{measure: (snapshots, training steps)}: how often it is taken up to a step, and its cost."""
    found, levels = {}, len(train.levels)
    for name, steps in schedule(train, measure).items():
        row, count = MEASURES[name], sum(step <= until for step in steps)
        found[name] = count, count * (row.cost + levels * row.level_cost)
    return found


BEHAVIOUR_COST = 4                    # training steps, roughly: accuracy, at every snapshot

@functools.cache                      # progress asks twice a second
def worth(train, measure, until=math.inf):
    """How long a run takes, or its part up to a step, in training steps of its own model."""
    looks = sum(step <= until for step in models.snapshots_of(train))
    return (min(until, models.last_step(train)) + BEHAVIOUR_COST * looks
            + sum(cost for _, cost in costs(train, measure, until).values()))


def work(train, measure):
    """How long a run takes, in units of its own: to put the longest first."""
    return models.parameter_count(models.gpt_config(train)) * worth(train, measure)


def run_one(job):
    """Carry out one run in its directory, from wherever it was left."""
    torch.set_num_threads(job.train.threads)
    record(job.folder, run_config(job.train, job.measure),
           lambda state: models.train(job.train, state), Measurement(job.train, job.measure),
           until=models.last_step(job.train))


def in_words(error):
    """One sentence for whatever ended a run or a command."""
    if isinstance(error, OSError):
        return (f"{error.filename or 'the disk'}: {error.strerror}; what is there is kept, and the "
                "same command goes on from it")
    if isinstance(error, (ValueError, Failed, NotImplementedError)):    # of a handout
        return str(error)
    return (f"unexpected {type(error).__name__}: {error} (--debug shows where; what was written "
            "before is kept)")


def local_rank():
    """Which process of this machine we are, where torchrun started several; else None.

    The only reader of a launcher's variables.  LOCAL_RANK or RANK without torchrun's own mark were
    left behind by another launcher, or a shell, and say nothing."""
    rank = os.environ.get("LOCAL_RANK", "")
    return int(rank) if "TORCHELASTIC_RUN_ID" in os.environ and rank.isdecimal() else None


def run_worker(plan, alone=False, rank=None):
    """Carry out the jobs of a plan until each is done or has failed -> what failed, in words.

    A run that another process holds is looked at again later, for that process may be killed; if we
    are `alone`, it is a failure.  rank: of this process on its machine; None: see local_rank."""
    if plan and plan[0].train.device == "cuda":                 # each process of a machine: a GPU
        rank = local_rank() if rank is None else rank
        torch.cuda.set_device((rank or 0) % torch.cuda.device_count())
    failures = {}
    while waiting := [job for job in plan
                      if job.folder not in failures and not job.is_done()]:
        for job in waiting:
            try:
                run_one(job)
            except Exception as error:                          # the other runs can still be done
                if isinstance(error, Busy) and not alone:
                    time.sleep(0.1)
                    continue
                if "--debug" in sys.argv:
                    traceback.print_exc()
                failures[job.folder] = in_words(error)
    return [failures[job.folder] for job in plan
            if job.folder in failures and not job.is_done()]


def worker_process(rank, plan, queue):
    """run_worker in a process that ends with the one that started it, however that ends."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)                # Ctrl-C is for the parent
    threading.Thread(target=watch, daemon=True).start()
    queue.put(run_worker(plan, rank=rank))


def run_workers(count, plan):
    """run_worker in `count` processes of this machine, started again where all were killed."""
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
                if process.pid:
                    process.kill()
        if any(process.exitcode == 0 for process in processes):
            return queue.get()                                  # each of them meets every failure
    raise Failed("the workers were killed four times; the same command goes on from the last "
                 "checkpoints (short of memory? --workers 1)")
