"""How fast this machine does what a sweep does.  `python run.py bench` prints it.

A time says little by itself.  So everything here is a ratio of two times, taken in one process, in
turns, each the fastest of some rounds:

    peak            the fastest product of two square matrices, in FLOP/s: the floor under all else
    training step   6 x parameters x tokens operations (forward, backward), as a share of that peak
    unit            one float32 training step of a GPT of 2 x 128 with fused attention on 256 x 24
                    tokens.  The cost of each measure is given in units, so that figures carry over
                    between machines.

With a checkout of nanoGPT, the same training step is also compared with nanoGPT's.

This file measures time and memory alone.  It says nothing about what is learned.

Letters for shapes: B rows, T tokens of a row, N lines, M scored places, D width, P parameters.
"""
import functools
import importlib.util
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from rich.table import Table

import measures
import models
import sweep
import tasks

LONGEST = 12                          # seconds that one size may take; a larger one is left out


# --------------------------------------------------------------------------------------------------
# Clocks

def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(jobs, rounds, device="cpu"):
    """{name: function} -> {name: seconds}, the fastest of `rounds`.

    One round runs every job once, so that what else the machine does falls on all of them.  The
    first round is a warm-up.  The fastest counts: others can make a step slower, but not faster."""
    times = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            wait(device)
            start = time.perf_counter()
            job()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def raise_peaks(peaks, device):
    """Time matrix products in both dtypes, and keep the fastest so far, in FLOP/s.

    It is called again and again between the other figures, for a machine is not always alike."""
    n = 1536 if device == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        job = functools.partial(torch.matmul, a, b)
        seconds = interleaved({"product": job}, 8, device)["product"]
        name = str(dtype).removeprefix("torch.")
        peaks[name] = max(peaks.get(name, 0), 2 * n ** 3 / seconds)


def free_memory(device):
    """Bytes; infinity where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return float("inf")
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --------------------------------------------------------------------------------------------------
# Training steps: a job is a function without arguments that makes one

class FixedData:
    """A batch that is drawn once, with the attributes of models.TrainingData."""

    def __init__(self, tokens, layout, positions):
        device = positions.device
        self.tokens, self.layout, self.positions = tokens, layout, positions
        self.targets = torch.zeros_like(positions)                          # (M,)
        self.weights = torch.full(positions.shape, 1 / len(positions), device=device)

    def __call__(self, step):
        return self.tokens, self.targets


def one_line_a_row(tokens):
    """The Layout of a grid (B, T) in which each line has a row of its own."""
    B, T = tokens.shape
    mask = models.attention_mask(torch.zeros(1, T, dtype=torch.long))       # one for all rows
    offsets = torch.arange(T)[None]                                         # (1, T), likewise
    where = torch.stack(tasks.level_and_place(tokens))
    return models.Layout(torch.arange(B * T), offsets, mask, where).to(tokens.device)


def our_step(config, dtype, device, tokens, layout, positions):
    """models.training_step on a fixed batch, with a target at each of `positions`."""
    train = models.TrainConfig(dtype=dtype, device=device)
    data = FixedData(tokens, layout, positions)
    model = models.GPT(config).to(device)
    optimizer = models.new_optimizer(model, train)
    return functools.partial(models.training_step, model, optimizer, data, train, 0)


def our_plain_step(shape, dtype, device, scored):
    """The same at a shape (GPTConfig, B, T), with targets at the last `scored` places of a row."""
    config, B, T = shape
    tokens = torch.randint(tasks.VOCAB_SIZE, (B, T), device=device)
    positions = torch.arange(B * T, device=device).view(B, T)[:, -scored:].flatten()
    return our_step(config, dtype, device, tokens, one_line_a_row(tokens), positions)


def nanogpt_step(module, shape, dtype, device, scored):
    """The step of nanoGPT's train.py at the same shape: its model, its optimiser, its clipping."""
    config, B, T = shape
    theirs = module.GPTConfig(
        block_size=config.block_size, vocab_size=config.vocab_size, n_layer=config.n_layer,
        n_head=config.n_head, n_embd=config.n_embd, dropout=0.0, bias=True)
    model = module.GPT(theirs).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.98), device)
    tokens = torch.randint(config.vocab_size, (B, T), device=device)
    unscored = torch.arange(T, device=device) < T - scored
    targets = tokens.masked_fill(unscored, -1)                              # nanoGPT ignores -1

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            _, loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def load_nanogpt(path):
    """model.py of a checkout of nanoGPT, as a module."""
    file = Path(path) / "model.py"
    if not file.is_file():
        raise ValueError(f"--nanogpt {path}: there is no model.py in it; "
                         "expected a checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                         # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def bench_nanogpt(module, fast, device):
    """Our step against nanoGPT's: targets at all places, and, as in a task, at the last quarter."""
    rows = []
    for name, config, B, T in SHAPES:
        jobs = {}
        for scored, where in ((T, "all"), (T // 4, "quarter")):
            shape = (config, B, T)
            jobs[f"ours, {where}"] = our_plain_step(shape, fast, device, scored)
            for dtype in dict.fromkeys(("float32", fast)):
                jobs[f"nanoGPT {dtype}, {where}"] = nanogpt_step(module, shape, dtype, device,
                                                                 scored)
        seconds = interleaved(jobs, 5, device)
        operations = 6 * models.parameter_count(config) * B * T
        row = {"model": name, "batch": f"{B} x {T}", "ms": {k: 1e3 * s for k, s in seconds.items()},
               "flops": operations / seconds["ours, all"]}
        for prefix, dtype in (("ratio", "float32"), (f"ratio_{fast}", fast)):
            for where in ("all", "quarter"):
                ours = seconds[f"ours, {where}"]
                row[f"{prefix}_{where}"] = seconds[f"nanoGPT {dtype}, {where}"] / ours
        rows.append(row)
    return rows


# --------------------------------------------------------------------------------------------------
# The joint study: all task-levels in one batch

def joint_lines(device):
    """The lines of one batch (24 task-levels, 4 sham controls), in a list of Batches."""
    levels = [f"{task}-{k}" for task in tasks.TASKS for k in tasks.LEVELS]
    batches = []
    for name in [*levels, *tasks.controls(tasks.TASKS, 4)]:
        generator = tasks.seeded(device, "bench", name)
        batch = tasks.sample(*tasks.split_name(name), 10, generator)
        batches.append(tasks.Batch(batch.tokens[:, :-1], batch.targets[:, :-1]))
    return batches


def padded(batches):
    """The same lines, each in a row of its own.

    Returns tokens (N, longest), and the places of the flattened grid that carry a target, (M,)."""
    longest = max(batch.tokens.shape[1] for batch in batches)

    def grid(side, fill):
        return torch.cat([F.pad(x, (0, longest - x.shape[1]), value=fill) for x in side])
    tokens = grid([batch.tokens for batch in batches], tasks.PAD)
    targets = grid([batch.targets for batch in batches], tasks.IGNORE)
    return tokens, (targets.flatten() != tasks.IGNORE).nonzero()[:, 0]


def packed_step(config, dtype, device, ragged):
    return our_step(config, dtype, device, ragged.tokens, ragged.layout, ragged.positions)


def padded_step(config, dtype, device, tokens, positions):
    return our_step(config, dtype, device, tokens, one_line_a_row(tokens), positions)


def bench_sizes(fast, device, peaks, say):
    """One training step of the joint study at every size."""
    ragged, rows = models.lay_out(joint_lines(device), device), []
    useful = len(ragged.layout.slots)
    for name, config in models.SIZES.items():
        P = models.parameter_count(config)
        row = {"size": name, "parameters": P, "tokens": useful, "operations": 6 * P * useful}
        rows.append(row)
        # Is there time for it, and memory?  Weights, gradient and AdamW, then the activations.
        guess = 12 * P * useful / peaks[fast]                               # s, at half of the peak
        rounds = min(5, int(LONGEST / guess) - 1)                           # and one to warm up
        memory = 16 * P + 80 * config.n_layer * config.n_embd * ragged.tokens.numel()
        if rounds < 1 or memory > free_memory(device):
            row["left_out"] = ["left out:", f"about {2 * guess:.0f} s", f"{memory / 1e9:.0f} GB"]
            continue
        job = packed_step(config, fast, device, ragged)
        seconds = interleaved({"step": job}, rounds, device)["step"]
        say(f"training step of {name}: {1e3 * seconds:,.1f} ms")
        row |= {"ms": 1e3 * seconds, "useful_tokens_per_s": useful / seconds,
                "flops": row["operations"] / seconds}
        raise_peaks(peaks, device)
    return rows


def bench_joint(fast, device):
    """What several lines to a row are worth, against the same lines padded to the longest."""
    batches = joint_lines(device)
    ragged, (tokens, positions) = models.lay_out(batches, device), padded(batches)
    useful, rows = len(ragged.layout.slots), []
    for name, rounds in (("nano", 9), ("small", 3)):
        config = models.SIZES[name]
        seconds = interleaved({
            "packed": packed_step(config, fast, device, ragged),
            "padded": padded_step(config, fast, device, tokens, positions)}, rounds, device)
        gain = seconds["padded"] / seconds["packed"]
        ceiling = tokens.numel() / useful
        rows.append({"size": name, "useful_tokens_per_s": useful / seconds["packed"],
                     "padded_useful_tokens_per_s": useful / seconds["padded"],
                     "gain": gain, "ceiling": ceiling, "of_ceiling": gain / ceiling,
                     "fill": useful / ragged.tokens.numel()})
    return rows


# --------------------------------------------------------------------------------------------------
# A snapshot

class Look:
    """One snapshot of the joint run of a size: behaviour with its forward pass, and RankMe."""

    def __init__(self, name, fast, device):
        levels = [f"{task}-{level}" for task in tasks.TASKS for level in tasks.LEVELS]
        train = models.TrainConfig(
            size=name, levels=(*levels, *tasks.controls(tasks.TASKS, 4)), dtype=fast,
            device=device, threads=torch.get_num_threads())
        self.evals = sweep.EvalSet(train, sweep.MeasureConfig())
        self.snapshot = models.Snapshot(0, models.new_model(train), None, None)
        self.tokens = sum(len(part.layout.slots) for part in self.evals.parts)

    def behaviour(self):
        self.evals.snapshot = None                              # or the last pass would be kept
        sweep.measure_behaviour(self.snapshot, self.evals)

    def rankme(self):
        sweep.measure_rankme(self.snapshot, self.evals)


def bench_snapshot(fast, device, peaks, say):
    """What a look at the joint run costs, in training steps; and its floor: the operations of one
    forward pass over the float32 peak, and the eigenvalues."""
    ragged, rows = models.lay_out(joint_lines(device), device), []
    for name in ("nano", "small"):
        config, look = models.SIZES[name], Look(name, fast, device)
        seconds = interleaved({"step": packed_step(config, fast, device, ragged),
                               "behaviour": look.behaviour, "rankme": look.rankme}, 2, device)
        weights = 12 * config.n_layer * config.n_embd ** 2
        forward = 2 * weights * look.tokens / peaks["float32"]
        total = seconds["behaviour"] + seconds["rankme"]
        rows.append({"size": name, "tokens": look.tokens, "ms": 1e3 * total,
                     "steps": total / seconds["step"],
                     "floor_steps": (forward + seconds["rankme"]) / seconds["step"]})
        say(f"snapshot of {name}: {rows[-1]['steps']:.1f} training steps")
    return rows


# --------------------------------------------------------------------------------------------------
# Measures

class UnitBlock(nn.Module):
    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        B, T, D = x.shape
        qkv = self.qkv(self.ln_1(x)).view(B, T, 3, self.H, D // self.H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                # each (B, H, T, d)
        gathered = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(gathered.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class UnitGPT(nn.Module):
    """The unit's model: 2 x 128, 4 heads.

    It stands here, and stays as it is, so that the unit does not move when models.py does."""

    def __init__(self, V, D=128):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(32, D)
        self.blocks = nn.Sequential(UnitBlock(D, 4), UnitBlock(D, 4))
        self.ln_f = nn.LayerNorm(D)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[:tokens.shape[1]]   # (B, T, D)
        return F.linear(self.ln_f(self.blocks(x)), self.tokens.weight)


def unit_step(tokens, targets):
    """A job: one training step of the unit's model."""
    unit = UnitGPT(tasks.VOCAB_SIZE).to(tokens.device)
    optimizer = torch.optim.AdamW(unit.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(unit(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    return step


class MeasureJobs:
    """What is timed, on a nano that was trained for 60 steps: its Hessian is one on its way."""

    def __init__(self, fast, device):
        config = models.TrainConfig(steps=60, warmup=20, snapshots=2, dtype=fast, device=device)
        *_, snapshot = models.train(config)
        self.model, generator = snapshot.model, torch.Generator().manual_seed(0)
        tokens = torch.randint(tasks.VOCAB_SIZE, (512, 24), generator=generator).to(device)
        unscored = torch.arange(24, device=device) < 20
        targets = tokens.roll(-1, 1).masked_fill(unscored, tasks.IGNORE)
        self.many = (tokens, targets)
        self.chains = torch.get_num_threads()                               # a core for each
        # 28 task-levels x 4 layers x 3 kinds of position
        self.features = torch.randn(336, 200, 128, generator=generator).to(device)
        self.top = None

    def data(self, n):
        return tuple(x[:n] for x in self.many)

    def llc(self, draws):
        return functools.partial(
            measures.llc, self.model, models.example_loss, self.many, batch_size=256,
            num_chains=self.chains, num_draws=draws, num_burnin_steps=1)

    def hessian_top(self):
        generator = torch.Generator().manual_seed(1)
        self.top = measures.hessian_top(self.model, models.example_loss, self.data(256),
                                        generator=generator)

    def gradient_gram(self):
        measures.gradient_gram(self.model, models.example_loss, self.data(64))

    def two_ranks(self):
        measures.gradient_rank(self.model, models.example_loss, self.data(64))
        measures.fisher_rank(self.model, models.example_loss, self.data(64))

    def rankme(self):
        measures.rankme(self.features[:5].reshape(1000, 128))

    def rankme_many(self):
        measures.rankme_many(self.features)

    def linear_probe(self):
        labels = self.many[0].flatten()[:2000] % 10
        measures.linear_probe(self.features[:10].reshape(2000, 128), labels)


def bench_measures(fast, device):
    """The cost of each measure, in units."""
    jobs = MeasureJobs(fast, device)
    seconds = interleaved({
        "unit": unit_step(*jobs.data(256)),
        "llc 4": jobs.llc(4), "llc 16": jobs.llc(16),
        "top": jobs.hessian_top,
        "gradient_gram of 64": jobs.gradient_gram,
        "gradient_rank and fisher_rank of 64": jobs.two_ranks,
        "rankme of 1000 x 128": jobs.rankme,
        "rankme of 336 x 200 x 128 (a joint snapshot)": jobs.rankme_many,
        "linear_probe of 2000 x 128": jobs.linear_probe}, 1, device)
    unit, products = seconds["unit"], jobs.top.iterations
    # What 12 draws more take, with all that happens once left out.
    costs = {"llc, a chain and draw": (seconds["llc 16"] - seconds["llc 4"]) / 12 / jobs.chains,
             "hessian_top, in all": seconds["top"],
             "hessian_top, a product": seconds["top"] / products}
    costs |= {name: cost for name, cost in seconds.items() if " of " in name}
    rows = [{"measure": name, "units": cost / unit, "best_public": BEST.get(name)}
            for name, cost in costs.items()]
    return {"unit_ms": 1e3 * unit, "hessian_products": products, "measures": rows}


# --------------------------------------------------------------------------------------------------
# All of it

def bench(fast, device, threads, nanogpt=None, say=print):
    """Everything -> a dictionary of numbers and rows.

    fast: the dtype of training here.  nanogpt: where a checkout of it lies, or None.  say: called
    with a few words on each part, the first within seconds."""
    module = load_nanogpt(nanogpt) if nanogpt else None
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    peaks = {}
    raise_peaks(peaks, device)
    say(", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in peaks.items()))
    found = {"device": device, "threads": threads, "dtype": fast, "torch": torch.__version__,
             "peak_flops": peaks, "sizes": bench_sizes(fast, device, peaks, say)}
    say("the joint batch, packed and padded")
    found["joint"] = bench_joint(fast, device)
    found["snapshot"] = bench_snapshot(fast, device, peaks, say)
    say("the measures")
    found |= bench_measures(fast, device)
    if module:
        say("nanoGPT")
        found["nanogpt"] = bench_nanogpt(module, fast, device)
    raise_peaks(peaks, device)
    for row in found["sizes"] + found.get("nanogpt", []):
        row["peak_share"] = row["flops"] / peaks[fast] if "flops" in row else None
    return found


def tables(found):
    """What `bench` returns, as tables of 80 columns, each with its title."""
    yield table_of_sizes(found)
    yield table_of_packing(found)
    yield table_of_snapshots(found)
    yield table_of_measures(found)
    if "nanogpt" in found:
        yield table_of_nanogpt(found)


def new_table(title, *columns):
    return Table(*columns, title=title, title_justify="left", title_style="", box=None,
                 pad_edge=False, header_style="dim")


def table_of_sizes(found):
    peaks = {name: f"{flops / 1e9:,.0f}" for name, flops in found["peak_flops"].items()}
    table = new_table(
        f"Training step of the joint study ({found['sizes'][0]['tokens']:,} tokens), "
        f"{found['dtype']}; matrix-product peak of this machine ({found['device']}, "
        f"{found['threads']} threads): {peaks['float32']} GFLOP/s in float32, "
        f"{peaks['bfloat16']} in bfloat16",
        "size", "parameters", "GFLOP", "step", "useful tokens/s", "of the peak")
    for row in found["sizes"]:
        cells = row.get("left_out")
        if cells is None:
            cells = [f"{row['ms']:,.1f} ms", f"{row['useful_tokens_per_s']:,.0f}",
                     f"{row['peak_share']:.2f}"]
        table.add_row(row["size"], f"{row['parameters']:,}", f"{row['operations'] / 1e9:,.0f}",
                      *cells)
    return table


def table_of_packing(found):
    table = new_table(
        "The same, several lines to a row, against every line padded to the longest; ceiling: "
        "padded / useful tokens",
        "size", "useful tokens/s", "padded", "gain", "ceiling", "of the ceiling", "fill")
    for row in found["joint"]:
        speeds = [row["useful_tokens_per_s"], row["padded_useful_tokens_per_s"]]
        ratios = [row[key] for key in ("gain", "ceiling", "of_ceiling", "fill")]
        table.add_row(row["size"], *(f"{x:,.0f}" for x in speeds), *(f"{x:.2f}" for x in ratios))
    return table


def table_of_snapshots(found):
    table = new_table(
        "A look at the joint run (behaviour and RankMe, float32), in its training steps; floor: "
        "one forward pass at the float32 peak, and the eigenvalues",
        "size", "tokens", "time", "steps", "floor")
    for row in found["snapshot"]:
        table.add_row(row["size"], f"{row['tokens']:,}", f"{row['ms']:,.0f} ms",
                      f"{row['steps']:.1f}", f"{row['floor_steps']:.1f}")
    return table


def table_of_measures(found):
    table = new_table(
        "Each measure, in float32 training steps of a nano on 256 x 24 tokens with fused attention "
        f"({found['unit_ms']:.0f} ms here)", "measure", "steps", "best public code")
    for row in found["measures"]:
        table.add_row(row["measure"], f"{row['units']:.3f}", row["best_public"] or "")
    return table


def table_of_nanogpt(found):
    table = new_table(
        "Against nanoGPT's model and optimiser in float32; targets at all places, and (as in a "
        "task) at the last quarter",
        "model", "batch", "nanoGPT", "ours", "ratio", "of the peak", "quarter")
    for row in found["nanogpt"]:
        times = [row["ms"]["nanoGPT float32, all"], row["ms"]["ours, all"]]
        ratios = [row["ratio_all"], row["peak_share"], row["ratio_quarter"]]
        table.add_row(row["model"], row["batch"], *(f"{x:,.1f} ms" for x in times),
                      *(f"{x:.2f}" for x in ratios))
    return table


# --------------------------------------------------------------------------------------------------
# Tables of what is compared

SHAPES = [                                        # against nanoGPT: name, model, rows, tokens a row
    ("nano", models.SIZES["nano"], 128, 10),
    ("nano", models.SIZES["nano"], 256, 24),
    ("4 x 256", models.GPTConfig(4, 4, 256), 128, 24),
    ("6 x 384", models.GPTConfig(6, 6, 384), 128, 24),
]

BEST = {                                          # the best of public code, in units
    "llc, a chain and draw": "0.98 canonical-interp",
    "hessian_top, in all": "32 hessian-eigenthings",
    "hessian_top, a product": "1.98 central difference",
    "gradient_gram of 64": "0.47 torch.func",
    "rankme of 1000 x 128": "0.007 svdvals",
}
