"""A GPT, its sizes, and how it is trained: a generator that hands out snapshots.

The model is GPT-2's decoder: token and position embeddings, then blocks that add to a residual stream, each
block an attention and a two-layer perceptron with a LayerNorm *before* each (pre-norm):

    x = x + attention(LayerNorm(x));    x = x + mlp(LayerNorm(x));    logits = E LayerNorm(x)     (E: the token embedding)

Two things differ from what one reads elsewhere, both because the lines here are short (5 to 20 tokens):

  - Attention is written out: scores, mask, softmax, product.  At this length it is faster than a fused kernel on a CPU, and it
    has the second derivative that the Hessian needs (fused kernels have none).
  - Lines of different task-levels differ in length.  Padding them all to the longest would waste half of the work, so
    several lines share a row, each seeing only itself: `Layout`.

The training loop is at the end: `train(config)` yields a `Snapshot` on a schedule dense early, and knows nothing of
measures, files or the command line.

    >>> model, batch = GPT(SIZES["nano"]), tasks.sample("add", 1, 2, torch.Generator().manual_seed(0))
    >>> model(batch.tokens).shape, [h.shape for h in model.hidden_states(batch.tokens)][-1]
    (torch.Size([2, 7, 29]), torch.Size([2, 7, 128]))

What can go wrong: a mask that lets a place see the token that it is to predict gives a loss near 0 and a model that can do nothing
(`attention_mask`, and a test that changes the future); a loss that is not finite stops the run and says at which step.
Read more: Vaswani et al. 2017 (arXiv 1706.03762); Radford et al. 2019 (GPT-2); Loshchilov & Hutter 2017 (arXiv 1711.05101), AdamW.

Letters used for shapes:  B rows, T tokens, D width, H heads, V vocabulary, N examples, M scored positions.
"""
import copy
import functools
import math
from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

import tasks
from tasks import IGNORE, PAD, VOCAB_SIZE, Batch


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int                      # blocks
    n_head: int                       # attention heads per block
    n_embd: int                       # width of the residual stream, D
    block_size: int = 32              # longest line, in tokens
    vocab_size: int = VOCAB_SIZE


# ---------------------------------------------------------------------------------------------------------------
# Several lines in a row

def attention_mask(line):
    """Where attention may look: from each place at itself and at earlier places of its own line.
        mask[b, 0, t, s] = 0 where s <= t and line[b, s] = line[b, t], else -inf
    line: (B, T) int64, the number of the line that stands at each place.  Places where none stands share a number, -1, and are treated
    like a line: a row that is -inf throughout would have a softmax of NaN.  Returns (B, 1, T, T) float32; the 1 serves all heads.
    Exercise: models.attention_mask (set 1, 10 points)
    Hint: compare line[:, :, None] with line[:, None, :]; torch.tril keeps what lies on and below the diagonal.

    >>> attention_mask(torch.tensor([[0, 0, 1]]))[0, 0].tolist()
    [[0.0, -inf, -inf], [0.0, 0.0, -inf], [-inf, -inf, 0.0]]
    """
    T = line.shape[1]
    allowed = (line[:, :, None] == line[:, None, :]) & torch.ones(T, T).tril().bool()
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)[:, None]


class Layout(NamedTuple):
    """Where the lines of a ragged batch stand in a (B, T) grid of tokens, several lines to a row.

    It depends only on how many lines of which length there are, so it is made once and serves every step of a run.
    """
    slots: torch.Tensor        # (S,) int64: the place in the flattened grid of each of the S tokens, line after line
    positions: torch.Tensor    # (B, T) int64: how far each place is from the start of its line
    mask: torch.Tensor         # (B, 1, T, T) float: 0 where a place may look (its own line, up to itself), else -inf

    def spread(self, flat, fill):
        """(..., S) values, line after line -> (..., B, T), `fill` where no line stands."""
        grid = flat.new_full((*flat.shape[:-1], self.positions.numel()), fill)
        grid[..., self.slots] = flat
        return grid.view(*flat.shape[:-1], *self.positions.shape)

    def gather(self, grid):
        """(B, T, ...) -> (S, ...): the inverse of `spread`."""
        return grid.flatten(0, 1)[self.slots]


def pack(lengths, width, device="cpu"):
    """Lay lines of the given lengths (a list of N integers) out in rows of `width` places: longest first, each row filled
    with the longest lines that still fit.

    >>> pack([3, 5, 3, 2], 8).positions.tolist()
    [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 0, 0, 0]]
    """
    waiting = {}
    for n in reversed(range(len(lengths))):
        waiting.setdefault(lengths[n], []).append(n)
    place, row = [0] * len(lengths), 0
    while waiting:
        column = 0
        for length in sorted(waiting, reverse=True):
            while waiting[length] and column + length <= width:
                place[waiting[length].pop()] = row * width + column
                column += length
        if column == 0:
            raise ValueError(f"a line of {max(waiting)} tokens does not fit into {width}")
        waiting = {length: lines for length, lines in waiting.items() if lines}
        row += 1
    lengths = torch.tensor(lengths)
    start = torch.repeat_interleave(torch.tensor(place), lengths)                           # (S,)
    within = torch.cat([torch.arange(n) for n in lengths.tolist()])                         # (S,)
    slots = start + within
    positions, line = torch.zeros(row * width, dtype=torch.long), torch.full((row * width,), -1)
    positions[slots] = within
    line[slots] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    mask = attention_mask(line.view(row, width))
    return Layout(*(t.to(device) for t in (slots, positions.view(row, width), mask)))


class Ragged(NamedTuple):
    """Lines of several task-levels, laid out, and where their answers are.  N lines, M answer tokens."""
    tokens: torch.Tensor       # (B, T)
    layout: Layout
    at: torch.Tensor           # (M,) int64: the places in the flattened grid that carry a target
    targets: torch.Tensor      # (M,) int64: these targets
    owner: torch.Tensor        # (M,) int64: whose they are, 0 to N - 1


def lay_out(batches, device="cpu"):
    """A list of Batches, each (n, T) with a T of its own -> Ragged; line n is the n-th of all of them, one after another."""
    lengths = [b.tokens.shape[1] for b in batches for _ in range(len(b.tokens))]
    layout = pack(lengths, 2 * max(lengths), device)                  # two of the longest to a row: some 95% of it gets used
    tokens, targets = (torch.cat([x.reshape(-1) for x in side]).to(device) for side in zip(*batches))      # (S,)
    scored = targets != IGNORE
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    return Ragged(layout.spread(tokens, PAD), layout, layout.slots[scored], targets[scored], owner[scored])


# ---------------------------------------------------------------------------------------------------------------
# The model

def attention(qkv, mask, n_head):
    """Every place gathers what it needs from the places that it may look at, head by head.
        softmax(q k' / sqrt(d) + mask) v,   d = D / H
    qkv: (B, T, 3 D): queries, then keys, then values, each D wide, each holding its heads one after another.
    mask: 0 or -inf, (T, T) or (B, 1, T, T).  Returns (B, T, D), the heads one after another; the output projection comes later.
    Exercise: models.attention (set 1, 10 points)
    Hint: a view (B, T, 3, H, d), permuted so that the heads stand before the places; back with transpose and reshape.

    >>> attention(torch.tensor([[[0., 0., 1.], [0., 0., 3.]]]), torch.zeros(2, 2), 1).tolist()
    [[[2.0], [2.0]]]
    """
    B, T, d = *qkv.shape[:2], qkv.shape[2] // (3 * n_head)
    q, k, v = qkv.view(B, T, 3, n_head, d).permute(2, 0, 3, 1, 4)                               # each (B, H, T, d)
    scores = (q * d ** -0.5) @ k.transpose(-2, -1) + mask                                       # (B, H, T, T), float32
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(B, T, n_head * d)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.n_embd
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x, mask, at=None):
        """(B, T, D) -> (B, T, D); with `at`, indices into the B T places, only those places: (M, D)."""
        a = attention(self.qkv(self.ln_1(x)), mask, self.n_head)
        if at is not None:                        # no later block will look at the other places: save their perceptron
            x, a = x.flatten(0, 1)[at], a.flatten(0, 1)[at]
        x = x + self.proj(a)
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    """GPT-2 with tied embeddings, no dropout, and the exact GELU (three times as fast as GPT-2's tanh form on a CPU).

    Initialisation: normal with standard deviation 0.02; the two projections of a block that add to the residual
    stream are divided by sqrt(2 n_layer); biases are zero.  Source: Radford et al. 2019, as in nanoGPT.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.register_buffer("causal", attention_mask(torch.zeros(1, config.block_size))[0, 0], persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, tokens, layout):
        """-> (B, T, D), and the mask of attention."""
        T = tokens.shape[1]
        if layout is not None:
            return self.token_embedding(tokens) + self.position_embedding(layout.positions), layout.mask
        if T > self.config.block_size:
            raise ValueError(f"a line of {T} tokens is longer than the model's block_size {self.config.block_size}")
        return self.token_embedding(tokens) + self.position_embedding.weight[:T], self.causal[:T, :T]

    def forward(self, tokens, layout=None, at=None):
        """tokens (B, T) int64 -> logits (B, T, V); with `at`, indices into the B T places, logits (M, V) there only."""
        x, mask = self.embed(tokens, layout)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        x = self.blocks[-1](x, mask, at)
        return F.linear(self.ln_f(x), self.token_embedding.weight)

    def hidden_states(self, tokens, layout=None, at=None):
        """tokens (B, T) -> n_layer + 1 tensors (B, T, D): the embedding, then the residual stream after each block; with `at`,
        only at these M places, (M, D).  The final LayerNorm is NOT applied to the last one: `model.ln_f` does that."""
        x, mask = self.embed(tokens, layout)
        states = [x]
        for block in self.blocks[:-1]:
            states.append(block(states[-1], mask))
        last = self.blocks[-1](states[-1], mask, at)
        return [*(x if at is None else x.flatten(0, 1)[at] for x in states), last]


SIZES = {                                         # each about four times as many parameters as the one before
    "nano": GPTConfig(2, 4, 128),                 # 405 thousand
    "micro": GPTConfig(3, 4, 192),                # 1.3 million
    "small": GPTConfig(6, 6, 288),                # 6.0 million
    "medium": GPTConfig(8, 8, 480),               # 22 million
    "large": GPTConfig(12, 12, 768),              # 85 million
    "xl": GPTConfig(12, 16, 1024),                # 151 million
}


def parameter_count(config):
    """Parameters of GPT(config): 12 D^2 + 13 D for each block, a LayerNorm, and the two embeddings.

    >>> parameter_count(SIZES["nano"])
    404608
    """
    D = config.n_embd
    return config.n_layer * (12 * D * D + 13 * D) + 2 * D + (config.vocab_size + config.block_size) * D


# ---------------------------------------------------------------------------------------------------------------
# Losses and answers

def example_loss(model, batch):
    """Mean cross-entropy over each example's answer tokens.

    batch: a pair (tokens, targets), both (N, T), targets IGNORE off the answer.  Returns (N,) losses in nats per token.

    An untrained model knows nothing: about log V, whatever the task.

    >>> _ = torch.manual_seed(0)
    >>> loss = example_loss(GPT(SIZES["nano"]), tasks.sample("add", 2, 500, torch.Generator().manual_seed(0))).mean().item()
    >>> abs(loss - math.log(VOCAB_SIZE)) < 0.1
    True
    """
    tokens, targets = batch
    loss = F.cross_entropy(model(tokens).float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")     # (N, T), 0 off the answer
    return loss.sum(1) / (targets != IGNORE).sum(1)


def example_loss_sum(model, batch):
    """The same summed, not averaged, over the answer: -log p(answer | prompt), the loss of which the Fisher matrix is the
    curvature where answers differ in length.  Returns (N,) in nats per answer."""
    return example_loss(model, batch) * (batch[1] != IGNORE).sum(1)


pack_once = functools.lru_cache(maxsize=8)(pack)                      # mini-batches drawn alike share a layout


def packed_loss(model, batch):
    """example_loss for lines of different lengths, padded on the right: the same numbers, packed first, in half of the time."""
    tokens, targets = batch
    real = tokens != PAD
    lengths = tuple(real.sum(1).tolist())
    layout = pack_once(lengths, 2 * max(lengths), tokens.device)
    targets, owner = targets[real], real.nonzero()[:, 0]                                    # (S,)
    scored = targets != IGNORE
    logits = model(layout.spread(tokens[real], PAD), layout, layout.slots[scored]).float()
    loss = F.cross_entropy(logits, targets[scored], reduction="none")
    return loss.new_zeros(len(tokens)).index_add(0, owner[scored], loss) / owner[scored].bincount(minlength=len(tokens))


@torch.no_grad()
def resample_answers(model, batch, generator):
    """The same prompts with answers drawn from the model, token by token (ancestral sampling), in tokens and targets.

    Where batch's targets are not IGNORE, a token of the answer is drawn from softmax(logits) at that place, given the line up to there with
    the tokens drawn before, and becomes the target there and the next token of the line.  batch: (tokens, targets), both (N, T), as it was
    afterwards.  Returns Batch.  A Fisher matrix is one only with labels drawn from the model itself; with the true ones it is called empirical.
    Exercise: models.resample_answers (set 1, 10 points)
    Hint: from left to right, for a draw changes what the model is shown next; torch.multinomial draws, from `generator`.
    """
    tokens, targets = batch[0].clone(), batch[1].clone()
    for t in range(tokens.shape[1] - 1):
        rows = (targets[:, t] != IGNORE).nonzero()[:, 0]
        if len(rows):
            p = model(tokens[rows, :t + 1])[:, -1].float().softmax(-1)                      # (n, V)
            tokens[rows, t + 1] = targets[rows, t] = torch.multinomial(p, 1, generator=generator)[:, 0]
    return Batch(tokens, targets)


# ---------------------------------------------------------------------------------------------------------------
# Training

@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights.  With the same fields, machine and torch they come out the same, bit for bit."""
    size: str = "nano"                # a name in SIZES
    seed: int = 0                     # of the initial weights and of the data
    levels: tuple = ("modadd-1", "modadd-2", "modadd-3")      # task-levels, trained in equal shares
    steps: int = 600
    per_level: int = 44               # examples of each task-level in a batch
    lr: float = 1e-3                  # peak learning rate of AdamW
    warmup: int = 100                 # steps of linear warm-up; then a cosine down to `final_lr` of the peak
    final_lr: float = 0.1
    weight_decay: float = 0.1         # on matrices, not on biases and LayerNorms
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0                 # largest norm of the gradient
    train_fraction: float = 1.0       # share of the operand tuples that are trained on (1: all, as in the paper)
    snapshots: int = 201              # at least so many: see snapshot_steps
    dtype: str = "float32"            # of matrix products in training: float32, or bfloat16 (autocast)
    device: str = "cpu"
    threads: int = 1
    compile: int = 0                  # 1: torch.compile, with CUDA graphs on a GPU, for models so small that launching kernels costs most


class Snapshot(NamedTuple):
    step: int                         # number of updates so far
    model: nn.Module                  # the live model: read it, and leave it as it is
    loss: float                       # mean training loss (nats per token) since the snapshot before; None at step 0
    state: Callable                   # () -> dict of tensors and numbers with which train(..., resume=) goes on


def snapshot_steps(steps, count=201):
    """When to look: on a logarithmic grid, for what happens early, and on an even one, for what happens later; so fine that there
    are at least `count` snapshots (or one after every step, if that is less).

    >>> [len(snapshot_steps(n)) for n in (600, 3000)], snapshot_steps(100, 12)
    ([201, 201], [0, 1, 2, 4, 7, 14, 27, 29, 52, 57, 86, 100])
    """
    if count > steps:
        return list(range(steps + 1))
    grid, n = set(), 2
    while len(grid) < count:
        n += 1
        grid = {0, *(round(steps ** (i / n)) for i in range(n + 1)), *(round(steps * 2 * i / n) for i in range(n // 2 + 1))}
    return sorted(grid)


def learning_rate(config, step):
    """Linear warm-up, then a cosine from the peak down to final_lr times the peak.

    >>> config = TrainConfig(steps=600, lr=1e-3, warmup=100)
    >>> [round(learning_rate(config, step), 6) for step in (0, 49, 99, 100, 350, 600)]
    [1e-05, 0.0005, 0.001, 0.001, 0.00055, 0.0001]
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    t = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * t)))


class TrainingData:
    """Batches of all task-levels in equal shares, as a function of (seed, step).

    They are drawn for BLOCK steps at a time: one call of `sample` per task-level then serves many steps."""
    BLOCK = 64

    def __init__(self, config):
        self.config, self.block = config, None
        generator = torch.Generator().manual_seed(0)                  # for the shapes alone, which every batch shares
        shapes = [tasks.sample(*tasks.split_name(name), config.per_level, generator) for name in config.levels]
        shapes = lay_out([Batch(b.tokens[:, :-1], b.targets[:, :-1]) for b in shapes], config.device)
        self.layout, self.at = shapes.layout, shapes.at
        answer_tokens = shapes.owner.bincount()                       # (N,)
        self.weights = 1 / (answer_tokens * len(answer_tokens))[shapes.owner].float()      # (M,): each example counts once

    def __call__(self, step):
        """-> tokens (B, T) in the layout, targets (M,) at the places `self.at`."""
        c = self.config
        if self.block != step // self.BLOCK:
            self.block = step // self.BLOCK
            generators = [tasks.seeded(c.device, "train", c.seed, name, self.block) for name in c.levels]
            batches = [tasks.sample(*tasks.split_name(name), self.BLOCK * c.per_level, g, "train", c.train_fraction)
                       for name, g in zip(c.levels, generators)]
            flat = [torch.cat([x[:, :-1].reshape(self.BLOCK, -1) for x in side], 1) for side in zip(*batches)]
            self.tokens = self.layout.spread(flat[0], PAD)                                  # (BLOCK, B, T)
            self.targets = self.layout.spread(flat[1], IGNORE).flatten(1)[:, self.at]       # (BLOCK, M)
        return self.tokens[step % self.BLOCK], self.targets[step % self.BLOCK]


def new_model(config):
    """The untrained model of a TrainConfig; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT(SIZES[config.size]).to(config.device)


def new_optimizer(model, config):
    """AdamW, one fused kernel for all parameters, with weight decay on the matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                             lr=config.lr, betas=(config.beta1, config.beta2), fused=config.device != "mps")


def training_step(model, optimizer, data, config, step):
    """One update of the weights, on the batch of that step -> its loss, left on the device: nothing in here waits for a GPU."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    tokens, targets = data(step)
    with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        logits = model(tokens, data.layout, data.at)                                        # (M, V)
    loss = F.cross_entropy(logits.float(), targets, reduction="none") @ data.weights
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return loss.detach()


def train(config, resume=None) -> Iterator[Snapshot]:
    """Train one model on all task-levels of `config`; yields a Snapshot at each of snapshot_steps.

    resume: what `snapshot.state()` returned; training goes on behind that snapshot, to the same bits as if it had not stopped.
    Raises FloatingPointError, naming the step, when the loss is no longer finite.
    Differs from the paper: everything here that is a number, for its protocol is public only in outline.
    """
    model, data = new_model(config), TrainingData(config)
    optimizer = new_optimizer(model, config)
    fast = torch.compile(model, mode="reduce-overhead") if config.compile else model                # the same parameters, run faster
    losses = torch.zeros(config.steps, device=config.device)          # stays on the device: no waiting inside the loop
    done, seen = -1, 0
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(copy.deepcopy(resume["optimizer"]))  # or it would go on writing into the caller's tensors
        done = seen = resume["step"]
    schedule = set(snapshot_steps(config.steps, config.snapshots))

    for step in range(max(done, 0), config.steps + 1):
        if step in schedule and step > done:
            part = losses[seen:step]
            if not torch.isfinite(part).all():
                first = seen + int((~torch.isfinite(part)).nonzero()[0])
                raise FloatingPointError(f"the training loss is no longer finite at step {first + 1}")
            yield Snapshot(step, model, float(part.mean()) if step else None,
                           lambda: {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
            seen = step
        if step == config.steps:
            return
        losses[step] = training_step(fast, optimizer, data, config, step)
