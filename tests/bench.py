"""How fast this machine does what a sweep does, against the floor and against nanoGPT.  `python run.py bench` prints it.

Everything that is divided by something else is timed beside it: in one process, in turns, the fastest of some rounds.

    peak               the fastest product of two square matrices, in FLOP/s: the floor under everything else
    training step      6 x parameters x tokens operations (forward, backward), as a share of that peak
    unit               one float32 training step of a GPT of 2 x 128 with fused attention on 256 x 24 tokens: each measure's
                       cost is given in units, so that figures carry over between machines
"""
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
import tasks

SHAPES = [("nano", models.SIZES["nano"], 128, 10), ("nano", models.SIZES["nano"], 256, 24),
          ("4 x 256", models.GPTConfig(4, 4, 256), 128, 24), ("6 x 384", models.GPTConfig(6, 6, 384), 128, 24)]
LONGEST = 25                          # seconds that one size may take; a larger one is left out, and said to be
BEST = {                              # the best of public code, in units, on the machine of the day it was measured
    "llc, a chain and draw": "0.98 canonical-interp", "hessian_top, in all": "32 hessian-eigenthings", "hessian_top, a product": "1.98 central difference",
    "gradient_gram of 64": "0.47 torch.func", "rankme of 1000 x 128": "0.007 svdvals"}


# ---------------------------------------------------------------------------------------------------------------
# Clocks

def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(jobs, rounds, device="cpu"):
    """{name: function} -> {name: seconds}: one round runs every job once, so that whatever else the machine does falls on all of them;
    the fastest of the rounds, the first being a warm-up.  (A step cannot be faster than it is; that it was slower, others may cause.)"""
    times = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            wait(device)
            start = time.perf_counter()
            job()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: min(t[1:]) for name, t in times.items()}


def raise_peaks(peaks, device):
    """The fastest product of two square matrices so far, in FLOP/s, in both dtypes: taken again and again between the other figures."""
    n = 1536 if device == "cpu" else 8192
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(n, n, device=device).to(getattr(torch, name)) for _ in range(2))
        peaks[name] = max(peaks.get(name, 0), 2 * n ** 3 / interleaved({0: lambda: a @ b}, 8, device)[0])


# ---------------------------------------------------------------------------------------------------------------
# Training steps: a job is a function without arguments that makes one

def our_step(shape, dtype, device, scored, tokens=None, layout=None, at=None):
    """models.training_step on a fixed batch; shape: (GPTConfig, B, T), with targets at the last `scored` places of each line."""
    config, B, T = shape
    train = models.TrainConfig(dtype=dtype, device=device)
    if tokens is None:
        tokens, at = torch.randint(tasks.VOCAB_SIZE, (B, T), device=device), torch.arange(B * T, device=device).view(B, T)[:, -scored:].flatten()
    targets, weights = torch.zeros_like(at), torch.full(at.shape, 1 / len(at), device=device)

    class Batch:                                                              # as models.TrainingData, but drawn once
        def __call__(self, step):
            return tokens, targets
    data = Batch()
    data.layout, data.at, data.weights = layout, at, weights
    model = models.GPT(config).to(device)
    optimizer = models.new_optimizer(model, train)
    return lambda: models.training_step(model, optimizer, data, train, 0)


def nanogpt_step(module, shape, dtype, device, scored):
    """The step of nanoGPT's train.py at the same shape: its model, its optimiser, its clipping."""
    config, B, T = shape
    model = module.GPT(module.GPTConfig(block_size=config.block_size, vocab_size=config.vocab_size, n_layer=config.n_layer, n_head=config.n_head,
                                        n_embd=config.n_embd, dropout=0.0, bias=True)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.98), device)
    tokens = torch.randint(config.vocab_size, (B, T), device=device)
    targets = tokens.masked_fill(torch.arange(T, device=device) < T - scored, -1)                   # -1: what nanoGPT ignores

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
        raise ValueError(f"--nanogpt {path}: there is no model.py in it; expected a checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)                        # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def bench_nanogpt(module, fast, device):
    """Our step against nanoGPT's, with targets at all places and, as in a task, at the last quarter only."""
    rows = []
    for name, config, B, T in SHAPES:
        shape, jobs = (config, B, T), {}
        for scored, where in ((T, "all"), (T // 4, "quarter")):
            jobs[f"ours, {where}"] = our_step(shape, fast, device, scored)
            for dtype in dict.fromkeys(("float32", fast)):
                jobs[f"nanoGPT {dtype}, {where}"] = nanogpt_step(module, shape, dtype, device, scored)
        seconds = interleaved(jobs, 5, device)
        rows.append({"model": name, "batch": f"{B} x {T}", "ms": {k: 1e3 * s for k, s in seconds.items()},
                     "flops": 6 * models.parameter_count(config) * B * T / seconds["ours, all"],
                     **{f"ratio_{where}": seconds[f"nanoGPT float32, {where}"] / seconds[f"ours, {where}"] for where in ("all", "quarter")},
                     **{f"ratio_{fast}_{where}": seconds[f"nanoGPT {fast}, {where}"] / seconds[f"ours, {where}"] for where in ("all", "quarter")}})
    return rows


def joint_lines(device):
    """The lines of one batch of the joint study (24 task-levels, 4 sham controls), in a list of Batches."""
    levels = [f"{task}-{k}" for task in tasks.TASKS for k in tasks.LEVELS] + list(tasks.CONTROLS[:4])
    drawn = [tasks.sample(*tasks.split_name(name), 10, tasks.seeded(device, "bench", name)) for name in levels]
    return [tasks.Batch(b.tokens[:, :-1], b.targets[:, :-1]) for b in drawn]


def padded(batches):
    """The same lines, each in a row of its own: tokens (N, longest), and the places that carry a target."""
    longest = max(b.tokens.shape[1] for b in batches)
    tokens, targets = (torch.cat([F.pad(x, (0, longest - x.shape[1]), value=fill) for x in side])
                       for side, fill in zip(zip(*batches), (tasks.PAD, tasks.IGNORE)))
    return tokens, (targets.flatten() != tasks.IGNORE).nonzero()[:, 0]


def bench_sizes(fast, device, peaks, say):
    """One step of the joint study at every size."""
    ragged, rows = models.lay_out(joint_lines(device), device), []
    useful = len(ragged.layout.slots)
    for name, config in models.SIZES.items():
        P = models.parameter_count(config)
        guess = 12 * P * useful / peaks[fast]                                 # at half of the peak
        rounds = min(5, int(LONGEST / guess) - 1)                             # and one more to warm up
        row = {"size": name, "parameters": P, "tokens": useful, "operations": 6 * P * useful}
        memory = 16 * P + 80 * config.n_layer * config.n_embd * ragged.tokens.numel()              # weights, gradient, AdamW; activations
        if rounds < 1 or memory > free_memory(device):
            row["left_out"] = ["left out:", f"about {2 * guess:.0f} s", f"{memory / 1e9:.0f} GB"]
        else:
            say(f"training step of {name}")
            seconds = interleaved({0: our_step((config, 0, 0), fast, device, None, ragged.tokens, ragged.layout, ragged.at)}, rounds, device)[0]
            row |= {"ms": 1e3 * seconds, "useful_tokens_per_s": useful / seconds, "flops": row["operations"] / seconds}
            raise_peaks(peaks, device)
        rows.append(row)
    return rows


def free_memory(device):
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}) else float("inf")


def bench_joint(fast, device):
    """What several lines to a row are worth: the joint batch as it is laid out, against the same lines padded to the longest."""
    batches = joint_lines(device)
    ragged, (tokens, at) = models.lay_out(batches, device), padded(batches)
    useful, rows = len(ragged.layout.slots), []
    for name in ("nano", "small"):
        seconds = interleaved({"packed": our_step((models.SIZES[name], 0, 0), fast, device, None, ragged.tokens, ragged.layout, ragged.at),
                               "padded": our_step((models.SIZES[name], 0, 0), fast, device, None, tokens, None, at)}, 9 if name == "nano" else 3, device)
        gain, ceiling = seconds["padded"] / seconds["packed"], tokens.numel() / useful
        rows.append({"size": name, "useful_tokens_per_s": useful / seconds["packed"], "padded_useful_tokens_per_s": useful / seconds["padded"],
                     "gain": gain, "ceiling": ceiling, "of_ceiling": gain / ceiling, "fill": useful / ragged.tokens.numel()})
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Measures

class UnitBlock(nn.Module):
    def __init__(self, D, H):
        super().__init__()
        self.H, self.ln_1, self.ln_2 = H, nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.proj, self.up, self.down = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(B, T, 3, self.H, D // self.H).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class UnitGPT(nn.Module):
    """The unit's model: 2 x 128, 4 heads.  It stands here, and stays as it is, so that the unit does not move when models.py does."""

    def __init__(self, V, D=128):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(32, D)
        self.blocks, self.ln_f = nn.Sequential(*(UnitBlock(D, 4) for _ in range(2))), nn.LayerNorm(D)

    def forward(self, t):
        return F.linear(self.ln_f(self.blocks(self.tokens(t) + self.positions.weight[:t.shape[1]])), self.tokens.weight)


def bench_measures(fast, device):
    """Each measure's cost in units, on a nano that has been trained for 60 steps, so that its Hessian is that of a model on its way."""
    config = models.TrainConfig(steps=60, warmup=20, snapshots=2, dtype=fast, device=device)
    *_, snapshot = models.train(config)
    model, generator = snapshot.model, torch.Generator().manual_seed(0)
    tokens = torch.randint(tasks.VOCAB_SIZE, (512, 24), generator=generator).to(device)
    targets = tokens.roll(-1, 1).masked_fill(torch.arange(24, device=device) < 20, tasks.IGNORE)
    many, data, few = ((tokens[:n], targets[:n]) for n in (512, 256, 64))
    chains = torch.get_num_threads()                                          # on a CPU each has a core
    unit = UnitGPT(tasks.VOCAB_SIZE).to(device)
    optimizer = torch.optim.AdamW(unit.parameters(), lr=1e-4)
    features = torch.randn(336, 200, 128, generator=generator).to(device)     # 28 task-levels x 4 layers x 3 kinds of position
    found = {}

    def step():
        optimizer.zero_grad()
        F.cross_entropy(unit(data[0]).flatten(0, 1), data[1].flatten()).backward()
        optimizer.step()

    def llc(draws, autocast=None):
        return lambda: measures.llc(model, models.example_loss, many, batch_size=256, num_chains=chains, num_draws=draws, num_burnin_steps=1, autocast=autocast)

    def top():
        found["top"] = measures.hessian_top(model, models.example_loss, data, generator=torch.Generator().manual_seed(1))
    seconds = interleaved({
        "unit": step, **{f"llc {n}{fast}": llc(n, dtype) for n in (20, 40) for fast, dtype in (("", None), (" fast", torch.bfloat16))}, "top": top,
        "gradient_gram of 64": lambda: measures.gradient_gram(model, models.example_loss, few),
        "gradient_rank and fisher_rank of 64": lambda: (measures.gradient_rank(model, models.example_loss, few), measures.fisher_rank(model, models.example_loss, few)),
        "rankme of 1000 x 128": lambda: measures.rankme(features[:5].reshape(1000, 128)),
        "rankme of 336 x 200 x 128 (a joint snapshot)": lambda: measures.rankme_many(features),
        "linear_probe of 2000 x 128": lambda: measures.linear_probe(features[:10].reshape(2000, 128), tokens.flatten()[:2000] % 10)}, 2, device)
    one, products = seconds["unit"], found["top"].iterations
    costs = {"llc, a chain and draw": (seconds["llc 40"] - seconds["llc 20"]) / 20 / chains, "the same, bfloat16": (seconds["llc 40 fast"] - seconds["llc 20 fast"]) / 20 / chains,
             "hessian_top, in all": seconds["top"], "hessian_top, a product": seconds["top"] / products,
             **{name: s for name, s in seconds.items() if " of " in name}}
    return {"unit_ms": 1e3 * one, "hessian_products": products,
            "measures": [{"measure": name, "units": s / one, "best_public": BEST.get(name)} for name, s in costs.items()]}


def bench(fast, device, threads, nanogpt=None, say=print):
    """Everything -> a dictionary of numbers and rows.  fast: the dtype of training here; nanogpt: where a checkout of it lies, or None."""
    module = load_nanogpt(nanogpt) if nanogpt else None
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    say("matrix products")
    peaks = {}
    raise_peaks(peaks, device)
    found = {"device": device, "threads": threads, "dtype": fast, "torch": torch.__version__, "peak_flops": peaks, "sizes": bench_sizes(fast, device, peaks, say)}
    say("the joint batch, packed and padded")
    found["joint"] = bench_joint(fast, device)
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
    def table(title, *columns, rows):
        t = Table(*columns, title=title, title_justify="left", title_style="", box=None, pad_edge=False, header_style="dim")
        for row in rows:
            t.add_row(*row)
        return t
    peaks, fast = found["peak_flops"], found["dtype"]
    yield table(f"Training step of the joint study ({found['sizes'][0]['tokens']:,} tokens), {fast}; matrix-product peak of this machine ({found['device']}, "
                f"{found['threads']} threads): {peaks['float32'] / 1e9:,.0f} GFLOP/s in float32, {peaks['bfloat16'] / 1e9:,.0f} in bfloat16",
                "size", "parameters", "GFLOP", "step", "useful tokens/s", "of the peak", rows=[
                    (r["size"], f"{r['parameters']:,}", f"{r['operations'] / 1e9:,.0f}", *(r.get("left_out") or (
                        f"{r['ms']:,.1f} ms", f"{r['useful_tokens_per_s']:,.0f}", f"{r['peak_share']:.2f}"))) for r in found["sizes"]])
    yield table("The same, several lines to a row, against every line padded to the longest; ceiling: padded / useful tokens",
                "size", "useful tokens/s", "padded", "gain", "ceiling", "of the ceiling", "fill", rows=[
                    (r["size"], f"{r['useful_tokens_per_s']:,.0f}", f"{r['padded_useful_tokens_per_s']:,.0f}", f"{r['gain']:.2f}", f"{r['ceiling']:.2f}",
                     f"{r['of_ceiling']:.2f}", f"{r['fill']:.2f}") for r in found["joint"]])
    yield table(f"Each measure, in float32 training steps of a nano on 256 x 24 tokens with fused attention ({found['unit_ms']:.0f} ms here)",
                "measure", "steps", "best public code", rows=[(m["measure"], f"{m['units']:.3f}", m["best_public"] or "") for m in found["measures"]])
    if "nanogpt" in found:
        yield table("Against nanoGPT's model and optimiser in float32; targets at all places, and (as in a task) at the last quarter",
                    "model", "batch", "nanoGPT", "ours", "ratio", "of the peak", "quarter", rows=[
                        (r["model"], r["batch"], f"{r['ms']['nanoGPT float32, all']:,.1f} ms", f"{r['ms']['ours, all']:,.1f} ms", f"{r['ratio_all']:.2f}",
                         f"{r['peak_share']:.2f}", f"{r['ratio_quarter']:.2f}") for r in found["nanogpt"]])
