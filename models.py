"""Chapter 2: models.  A GPT, its sizes, and its training: a generator that yields snapshots.

The model is GPT-2's decoder.  Each token starts as the sum of two embeddings, of the token and of
its position.  This sum is the beginning of the residual stream.  Every block adds to it twice:

    x = x + Attention(LayerNorm(x))         look at earlier tokens
    x = x + MLP(LayerNorm(x))               think about what was found
    logits = E LayerNorm(x)                 after the last block; E is the token embedding

Attention is written out: scores, mask, softmax, product.  The lines here have 5 to 20 tokens.  At
that length this is faster on a CPU than a fused kernel.  It also has the second derivative that
the Hessian needs; fused kernels have none.

    >>> model = GPT(SIZES["nano"])
    >>> batch = tasks.sample("add", 1, 2, torch.Generator().manual_seed(0))
    >>> model(batch.tokens).shape, model.hidden_states(batch.tokens)[-1].shape
    (torch.Size([2, 7, 64]), torch.Size([2, 7, 128]))

`train(config)` yields a `Snapshot` at every step of a schedule.  An `Intervention` changes what a
training step does.  Lines of different lengths are packed into rows, to save half of the work.
The GPT knows nothing of that; see "For speed alone", at the end of this file.

This file decides what the weights are.  It measures nothing, writes no file, and knows nothing of
the command line.

What can go wrong: if the mask lets a place see the token that it must predict, the loss falls to
nearly 0, and the model can do nothing.  A test changes the future, and looks at the past.
Read more: Vaswani et al. 2017 (arXiv 1706.03762); Radford et al. 2019 (GPT-2); Loshchilov & Hutter
2017 (arXiv 1711.05101), AdamW.

Letters for shapes:  B rows, T tokens of a row, D width, H heads, d = D / H, V vocabulary,
N examples, M scored places, S tokens of all lines."""
import copy
import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

import tasks
from tasks import IGNORE, PAD, VOCAB_SIZE, Batch

# --------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int                      # blocks
    n_head: int                       # attention heads per block, H
    n_embd: int                       # width of the residual stream, D
    block_size: int = 32              # the longest line, in tokens
    vocab_size: int = VOCAB_SIZE      # V


def attention(qkv, mask, n_head):
    """Every place gathers what it needs from the places that it may look at, head by head.
        softmax(q k' / sqrt(d) + mask) v
    qkv: (B, T, 3 D): queries, then keys, then values.  Each of the three is D wide, and holds its
    heads one after another.  mask: (T, T) or (B, 1, T, T), 0 where a place may look, else -inf.
    Returns (B, T, D) of qkv's dtype, heads one after another.  The output projection comes later.
    Exercise: models.attention (set 1, 10 points)
    Hint: a view (B, T, 3, H, d), heads permuted before places; back with transpose and reshape.

    >>> attention(torch.tensor([[[0., 0., 1.], [0., 0., 3.]]]), torch.zeros(2, 2), 1).tolist()
    [[[2.0], [2.0]]]"""
    B, T, width = qkv.shape
    d = width // (3 * n_head)
    q, k, v = qkv.view(B, T, 3, n_head, d).permute(2, 0, 3, 1, 4)           # each (B, H, T, d)
    scores = (q * d ** -0.5) @ k.transpose(-2, -1) + mask                   # (B, H, T, T)
    weights = scores.softmax(-1).to(v.dtype)              # float32 until here, also under autocast
    return (weights @ v).transpose(1, 2).reshape(B, T, n_head * d)          # (B, T, D)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask):
        return self.proj(attention(self.qkv(x), mask, self.n_head))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x, mask):
        x = x + self.attn(self.ln_1(x), mask)                               # (B, T, D)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2: the token embedding serves at both ends.

    The matrices begin normal with standard deviation 0.02, the biases at zero.  The two projections
    of a block that add to the residual stream begin smaller by sqrt(2 n_layer), for there are
    2 n_layer of them in all.
    Source: Radford et al. 2019, as in nanoGPT.
    Differs from it: no dropout, and the exact GELU (its tanh form is three times slower on a CPU).
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

        # Each place sees itself and what stands before it: -inf above the diagonal, else 0.
        causal = torch.full((config.block_size, config.block_size), -math.inf).triu(1)
        self.register_buffer("causal", causal, persistent=False)

        for name, p in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def hidden_states(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """The residual stream at n_layer + 1 depths: after the embedding, and after each block.

        tokens: (B, T) int64.  Returns tensors (B, T, D).  The final LayerNorm is NOT applied to the
        last one; `model.ln_f` does that.
        Raises ValueError if T is larger than block_size."""
        T = tokens.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"a line of {T} tokens is longer than the model's block_size"
                             f" {self.config.block_size}")
        mask = self.causal[:T, :T]
        states = [self.token_embedding(tokens) + self.position_embedding.weight[:T]]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        return states

    def logits(self, states, where=None):
        """The last block's states (..., D) -> logits (..., V) of the token that comes next.

        where: (2, ...), tasks.level_and_place of each state: for models whose logits depend on it.
        """
        return F.linear(self.ln_f(states), self.token_embedding.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int64 -> logits (B, T, V)."""
        return self.logits(self.hidden_states(tokens)[-1])


def parameter_count(config):
    """Parameters of GPT(config): the blocks, the final LayerNorm, and the two embeddings.

    A block has 12 D^2 weights in its four matrices, 9 D biases, and 4 D in its two LayerNorms.

    >>> parameter_count(SIZES["nano"])
    409088"""
    D = config.n_embd
    block = 12 * D * D + 13 * D
    return config.n_layer * block + 2 * D + (config.vocab_size + config.block_size) * D


# --------------------------------------------------------------------------------------------------
# Losses and answers

def example_loss(model: nn.Module, batch: tuple) -> torch.Tensor:
    """Mean cross-entropy over each example's answer tokens.

    batch: a pair (tokens, targets), both (N, T), targets IGNORE off the answer.
    Returns (N,), in nats per token.  An untrained model knows nothing: its loss is about log V.

    >>> _ = torch.manual_seed(0)
    >>> batch = tasks.sample("add", 2, 500, torch.Generator().manual_seed(0))
    >>> loss = example_loss(GPT(SIZES["nano"]), batch).mean().item()
    >>> abs(loss - math.log(VOCAB_SIZE)) < 0.15
    True"""
    tokens, targets = batch
    logits = model(tokens).float().transpose(1, 2)                          # (N, V, T)
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    return loss.sum(1) / (targets != IGNORE).sum(1)       # loss (N, T) is 0 off the answer


def example_loss_sum(model, batch):
    """-log p(answer | prompt): the same, summed over the answer and not averaged.

    Where answers differ in length, this is the loss whose curvature is the Fisher matrix.
    Returns (N,), in nats per answer."""
    return example_loss(model, batch) * (batch[1] != IGNORE).sum(1)


@torch.no_grad()
def resample_answers(model: nn.Module, batch: tuple, generator: torch.Generator) -> Batch:
    """The same prompts, with answers drawn from the model token by token (ancestral sampling).

    batch: (tokens, targets), both (N, T).  Wherever its targets are not IGNORE, a token is drawn
    from softmax(logits) at that place.  The model is shown the line up to there, with the tokens
    drawn before; what stands behind may be left out.  The token becomes the target there, and the
    next token of the line; at the last place it becomes the target alone.
    Returns Batch.  The batch given stays as it is.
    A Fisher matrix needs labels drawn from the model.  With the true ones it is called empirical.
    Exercise: models.resample_answers (set 1, 10 points)
    Hint: from left to right, for a draw changes what is shown next; torch.multinomial draws."""
    tokens, targets = batch[0].clone(), batch[1].clone()
    T = tokens.shape[1]
    for t in range(T):
        rows = (targets[:, t] != IGNORE).nonzero()[:, 0]                    # (n,): whose turn it is
        if len(rows):
            p = model(tokens[rows, :t + 1])[:, -1].float().softmax(-1)      # (n, V)
            drawn = torch.multinomial(p, 1, generator=generator)[:, 0]      # (n,)
            targets[rows, t] = drawn
            if t + 1 < T:
                tokens[rows, t + 1] = drawn
    return Batch(tokens, targets)


# --------------------------------------------------------------------------------------------------
# Training: its parts

@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights.

    The same fields, machine and torch give the same weights, bit for bit."""
    size: str = "nano"                # a name in SIZES
    seed: int = 0                     # of the initial weights and of the data
    levels: tuple = ("modadd-1", "modadd-2", "modadd-3")      # task-levels, in equal shares
    steps: int = 600                  # updates of the weights
    stop: int = 0                     # the run ends after the first `stop` of them; 0: after all
    per_level: int = 44               # examples of each task-level in a batch
    lr: float = 1e-3                  # peak learning rate of AdamW
    warmup: int = 100                 # steps of linear warm-up; a cosine down to `final_lr` follows
    final_lr: float = 0.1             # the last learning rate, as a share of the peak
    weight_decay: float = 0.1         # on matrices, not on biases and LayerNorms
    beta1: float = 0.9                # AdamW's memory of gradients
    beta2: float = 0.98               # AdamW's memory of squared gradients
    clip: float = 1.0                 # largest norm of the gradient
    train_fraction: float = 1.0       # share of the operands trained on (1: all, as in the paper)
    snapshots: int = 121              # at least so many, in all steps: see snapshot_steps
    dtype: str = "float32"            # of products in training: float32, or bfloat16 (autocast)
    device: str = "cpu"               # cpu, cuda or mps
    threads: int = 1                  # of torch, on a CPU; the number decides the last bits
    compile: int = 0                  # 1: torch.compile, with CUDA graphs on a GPU.  It pays where
                                      # a model is so small that launching kernels costs most
    intervene: str = ""               # a name in INTERVENTIONS; "" is none
    strength: float = 1.0             # what the intervention's penalty is multiplied by
    until: int = 0                    # penalty and gradients act on the first `until` steps; 0: all
    filler: int = -1                  # so many lines of text for each line of a task; 0: none, but
                                      # their characters are in the vocabulary; -1: not even that
    filler_shuffled: int = 0          # 1: the characters of the text in random order


class Snapshot(NamedTuple):
    step: int                         # number of updates so far
    model: nn.Module                  # the live model: read it, and leave it as it is
    loss: float | None                # mean training loss (nats per token) since the snapshot
                                      # before; None at step 0
    state: Callable                   # () -> dict with which train(..., resume=) goes on; like the
                                      # model, it is read before the next snapshot is asked for


def snapshot_steps(steps, count=121):
    """When to look: on a logarithmic grid and on an even one, together.

    The first is for what happens early, the second for what happens late.  Both are made finer
    until there are at least `count` snapshots; if there are not so many steps, one after each.

    >>> [len(snapshot_steps(n)) for n in (600, 3000)], snapshot_steps(100, 12)
    ([122, 123], [0, 1, 2, 4, 7, 14, 27, 29, 52, 57, 86, 100])"""
    if count > steps:
        return list(range(steps + 1))
    n, grid = 2, set()
    while len(grid) < count:
        n += 1
        logarithmic = [round(steps ** (i / n)) for i in range(n + 1)]
        even = [round(steps * 2 * i / n) for i in range(n // 2 + 1)]
        grid = {0, *logarithmic, *even}
    return sorted(grid)


def last_step(config):
    """The step after which a run ends: `stop`, or the end of its schedule."""
    return min(config.stop or config.steps, config.steps)


def snapshots_of(config):
    """The steps at which a run is looked at: those of its schedule, and its last one.

    >>> snapshots_of(TrainConfig(steps=100, snapshots=12, stop=50))
    [0, 1, 2, 4, 7, 14, 27, 29, 50]"""
    last = last_step(config)
    return [s for s in snapshot_steps(config.steps, config.snapshots) if s < last] + [last]


def pick_dtype(device):
    """bfloat16 where the processor or GPU says that it can; never by a clock."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    declared = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if declared and declared() else "float32"


def evenly_spaced(steps, count):
    """`count` of the steps, evenly spread over their list, the first and the last among them.

    >>> sorted(evenly_spaced([0, 1, 2, 4, 8, 16, 32], 4))
    [0, 2, 8, 32]"""
    return {steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)}


def defaults(levels):
    """Fields of a TrainConfig with which nearly all of so many task-levels emerge.

    One task alone is quick.  24 levels that share a model need more of all: at 1e-3 some do not
    emerge, and for one task alone 2e-3 is too much."""
    steps, lr, snapshots = (600, 1e-3, 81) if levels <= 3 else (1500, 2e-3, 121)
    return {"steps": 2000 if levels > 12 else steps, "lr": lr, "snapshots": snapshots,
            "per_level": max(10, 132 // levels)}


def learning_rate(config, step):
    """Linear warm-up, then a cosine from the peak down to final_lr times the peak.

    >>> config = TrainConfig(steps=600, lr=1e-3, warmup=100)
    >>> [round(learning_rate(config, step), 6) for step in (0, 49, 99, 100, 350, 600)]
    [1e-05, 0.0005, 0.001, 0.001, 0.00055, 0.0001]"""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    t = (step - config.warmup) / max(1, config.steps - config.warmup)       # from 0 to 1
    cosine = 0.5 * (1 + math.cos(math.pi * t))                              # from 1 to 0
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)


def gpt_config(config):
    """The shape of the model that a TrainConfig asks for: its size, with characters for text."""
    characters = len(tasks.text()[1]) if config.filler >= 0 else 0
    return dataclasses.replace(SIZES[config.size], vocab_size=VOCAB_SIZE + characters)


class TrainingData:
    """The batches of a run, as a function of (seed, step): all task-levels in equal shares.

    They are drawn for BLOCK steps at a time.  So one call of `sample` per task-level serves many
    steps.  The lines of a batch are packed, and packed in the same way at every step."""
    BLOCK = 64

    def __init__(self, config):
        self.config = config
        self.block = None                                 # the number of the block that is drawn

        # A batch of any numbers shows the layout, which depends on the lengths of lines alone.
        # The last token of a line is never an input: nothing comes after it.
        batches = [Batch(batch.tokens[:, :-1], batch.targets[:, :-1])
                   for batch in self.lines(1, 0)]
        packed = lay_out(batches, config.device)
        self.layout, self.positions = packed.layout, packed.positions

        # Weights of the M losses: each line counts once, however long its answer is.
        answer_tokens = packed.owner.bincount()                             # (N,)
        shares = answer_tokens * len(answer_tokens)
        self.weights = 1 / shares[packed.owner].float()                     # (M,)

    def lines(self, steps, block):
        """The lines of so many steps: a Batch for each task-level, and one for the text."""
        c, found = self.config, []
        for name in c.levels:
            generator = tasks.seeded(c.device, "train", c.seed, name, block)
            found.append(tasks.sample(*tasks.split_name(name), steps * c.per_level, generator,
                                      "train", c.train_fraction))
        if c.filler > 0:
            generator = tasks.seeded(c.device, "train", c.seed, "text", block)
            count = steps * c.per_level * len(c.levels) * c.filler
            found.append(tasks.sample_text(count, generator, bool(c.filler_shuffled)))
        return found

    def draw(self, block):
        """Tokens (BLOCK, B, T) and targets (BLOCK, M) of the steps of one block."""
        tokens, targets = [], []
        for batch in self.lines(self.BLOCK, block):
            tokens.append(batch.tokens[:, :-1].reshape(self.BLOCK, -1))
            targets.append(batch.targets[:, :-1].reshape(self.BLOCK, -1))
        tokens = self.layout.spread(torch.cat(tokens, 1), PAD)              # (BLOCK, B, T)
        targets = self.layout.spread(torch.cat(targets, 1), IGNORE)
        return tokens, targets.flatten(1)[:, self.positions]

    def __call__(self, step):
        """The packed tokens (B, T) of one step, and the targets (M,) at `self.positions`."""
        if self.block != step // self.BLOCK:
            self.block = step // self.BLOCK
            self.tokens, self.targets = self.draw(self.block)
        return self.tokens[step % self.BLOCK], self.targets[step % self.BLOCK]


# --------------------------------------------------------------------------------------------------
# Interventions: what depends on what?

class Scored(NamedTuple):
    """The M places of a batch where a token is predicted."""
    targets: torch.Tensor             # (M,) int64: these tokens
    level: torch.Tensor               # (M,) int64: an index of tasks.level_names(); -1: text
    place: torch.Tensor               # (M,) int64: 0 is the first token of an answer; -1: text


class Intervention:
    """A change to training.

    That one thing comes before another does not show that it is needed.  So take it away, and look.
    The methods of this class do nothing.  A subclass overrides those that it needs:

    >>> class SmallStates(Intervention):
    ...     def penalty(self, states, scored, step):        # keeps the last block's states small
    ...         return states.square().mean()
    >>> SmallStates(TrainConfig()).penalty(torch.full((4, 128), 3.0), None, step=0).item()
    9.0

    The table INTERVENTIONS gives it a name, `INTERVENTIONS["small-states"] = SmallStates`, and a
    TrainConfig asks for it: `TrainConfig(intervene="small-states", strength=0.1, until=300)`.

    One object serves one run.  A resumed run gets a new one, so what an object remembers of
    earlier steps must not matter."""

    def __init__(self, config):
        self.config = config

    def wrap(self, model):
        """The untrained GPT -> the one that is trained and measured.

        It may have parameters of its own.  A subclass of GPT with another method `logits` changes
        what the logits mean, in training and in measuring alike."""
        return model

    def penalty(self, states, scored, step):
        """A scalar tensor, or None.  Times `strength`, it is added to the loss.

        states: (M, D), the last block's, at the M places that are scored.  scored: what is asked
        there, a Scored.  The loss that a Snapshot reports is without the penalty."""
        return None

    def gradients(self, params, penalty):
        """May change p.grad of each parameter, after the backward pass and before the clipping.

        penalty: what the method `penalty` returned."""


class OffsetGPT(GPT):
    """A GPT with fixed numbers added to its logits, which depend on where in which line it is.
        logits = E LayerNorm(x) + offset[task-level, place of the answer]
    offset: (P + 1, A + 1, V); the last of each is for what is off the answer."""

    def __init__(self, model, offset):
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self.register_buffer("offset", offset, persistent=False)

    def logits(self, states, where=None):
        level, place = where
        return super().logits(states) + self.offset[level, place]

    def forward(self, tokens):
        where = torch.stack(tasks.level_and_place(tokens))                  # (2, B, T)
        return self.logits(self.hidden_states(tokens)[-1], where)


class BiasGPT(GPT):
    """A GPT with a bias on its logits, which is trained.  It begins at 0."""

    def __init__(self, model):
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self.head_bias = nn.Parameter(torch.zeros(model.config.vocab_size))

    def logits(self, states, where=None):
        return super().logits(states) + self.head_bias


def log_frequencies(names, vocab_size):
    """The log of how often each token stands at each place of each task-level's answer.
        log(f + 1e-4)           so that no token is ruled out
    names: P task-levels.  Returns (P + 1, A + 1, V): 0 where there is no such place or token."""
    found = [tasks.answer_frequencies(*tasks.split_name(name)) for name in names]
    places = max(len(f) for f in found)
    table = torch.zeros(len(names) + 1, places + 1, vocab_size)
    for row, f in zip(table, found):
        row[:len(f), :VOCAB_SIZE] = (f + 1e-4).log()
    return table


class Marginal(Intervention):
    """The frequencies of the answers stand in the logits from the start, and need no learning.

    If the early collapse is the learning of frequencies, it does not happen."""

    def names(self):
        return tasks.level_names()

    def wrap(self, model):
        offset = log_frequencies(self.names(), model.config.vocab_size)
        return OffsetGPT(model, offset.to(self.config.device)).to(self.config.device)


class WrongMarginal(Marginal):
    """Control: each task-level has the frequencies of the next task, which it must unlearn.

    The next: in the order of the table, within the paper's eight or a family; same level.  For
    copy, whose next is reverse, that is its own table: there this is no control."""

    def names(self):
        after = {}
        for family in (tuple(tasks.TASKS), *tasks.FAMILIES.values()):
            after |= dict(zip(family, (*family[1:], family[0])))
        pairs = [tasks.split_name(name) for name in tasks.level_names()]
        return [f"{after[task.removeprefix('sham-')]}-{level}" for task, level in pairs]


class HeadBias(Intervention):
    """The frequencies can be learned without moving the states: by a bias on the logits.

    It moves by the sum of the learning rates at most, which in a warm-up is little."""

    def wrap(self, model):
        return BiasGPT(model).to(self.config.device)


def concentration(states, scored):
    """How much of the states' energy lies in few directions; mean over the task-levels in a batch.
        sum_i l_i^2         l: eigenvalues, of sum 1, of X X', X the n states of one task-level
    It is |X X'|^2 / trace(X X')^2: 1 if all states are parallel, 1/n if they are orthogonal and of
    one length.  X: the last block's states where the first answer token is predicted, not centred.
    """
    first = scored.place == 0
    X = states[first].float()                                               # (n K, D)
    K = len(scored.level[first].unique())
    X = X.view(K, -1, X.shape[1])                         # (K, n, D): one level after another
    gram = X @ X.transpose(1, 2)                                            # (K, n, n)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)                            # (K,)
    return (gram.square().sum((1, 2)) / trace.square()).mean()


class RankUp(Intervention):
    """Holds the rank of the states up.  Does a capability that waits come earlier?"""

    def penalty(self, states, scored, step):
        return concentration(states, scored)


class RankDown(Intervention):
    """Holds the rank of the states down.  Is a recovery needed?"""

    def penalty(self, states, scored, step):
        return -concentration(states, scored)


class Placebo(Intervention):
    """A gradient as large as that of rank-up, at the same steps, in a direction that means nothing.

    The direction is drawn anew at every step.  A fixed one would be a force: AdamW's steps do not
    shrink with a gradient that always points the same way.  Half as much again as a plain step."""

    def wrap(self, model):
        self.params = list(model.parameters())
        return model

    def penalty(self, states, scored, step):
        real = torch.autograd.grad(concentration(states, scored), self.params, retain_graph=True,
                                   allow_unused=True)
        norm = torch.stack([g.norm() for g in real if g is not None]).norm()
        generator = tasks.seeded(self.config.device, "placebo", self.config.seed, step)
        noise = [torch.randn(p.shape, generator=generator, device=p.device) for p in self.params]
        scale = norm / torch.stack([x.norm() for x in noise]).norm()
        return sum((p * x).sum() for p, x in zip(self.params, noise)) * scale


def new_intervention(config):
    """The intervention that a TrainConfig names.  Raises ValueError for one that is not known."""
    if not config.intervene:
        return Intervention(config)
    if config.intervene not in INTERVENTIONS:
        known = ", ".join(INTERVENTIONS) or "none so far"
        raise ValueError(f"intervene {config.intervene!r} does not exist; the interventions are:"
                         f" {known}")
    return INTERVENTIONS[config.intervene](config)


# --------------------------------------------------------------------------------------------------
# Training: the loop

def new_model(config, intervention=None):
    """The untrained model of a TrainConfig, wrapped by its intervention.

    The caller's random state stays as it is."""
    intervention = intervention or new_intervention(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)    # the CPU's alone
        model = GPT(gpt_config(config)).to(config.device)
        return intervention.wrap(model)


def new_optimizer(model, config):
    """AdamW, with weight decay on the matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    fused = config.device != "mps"                        # one kernel for all parameters
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)


def training_step(model, optimizer, data, config, step, intervention=None, forward=None):
    """One update of the weights, on the batch of that step.

    The loss is the mean of example_loss over the batch.  forward: packed_forward, or a compiled
    one.  Returns the loss without any penalty, left on the device: nothing here waits for a GPU."""
    intervention = intervention or Intervention(config)
    forward = forward or packed_forward
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)

    # Forward: the logits at the places before an answer token.
    tokens, targets = data(step)                                            # (B, T), (M,)
    with torch.autocast(torch.device(config.device).type, torch.bfloat16,
                        enabled=config.dtype == "bfloat16"):
        states, logits = forward(model, tokens, data.layout, data.positions)    # (M, D), (M, V)
    losses = F.cross_entropy(logits.float(), targets, reduction="none")     # (M,)
    loss = losses @ data.weights

    # The intervention may ask for something else besides.
    active = config.until == 0 or step < config.until
    scored = Scored(targets, *data.layout.at(data.positions))
    penalty = intervention.penalty(states, scored, step) if active else None
    total = loss if penalty is None else loss + config.strength * penalty

    # Backward: the gradients, changed by the intervention, then clipped.
    optimizer.zero_grad()
    total.backward()
    if active:
        intervention.gradients(list(model.parameters()), penalty)
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return loss.detach()


def train(config: TrainConfig, resume: dict | None = None) -> Iterator[Snapshot]:
    """Train one model on all task-levels of `config`; yields a Snapshot at each of snapshot_steps.

    resume: what `snapshot.state()` returned.  Training goes on after that snapshot, to the same
    bits as if it had not stopped.
    Raises ValueError for an intervention that does not exist.
    Raises FloatingPointError, naming the step, when the loss is no longer finite.
    Differs from the paper: every number here, for its protocol is public only in outline."""
    # Begin: the config alone decides what the weights and the data are.
    intervention = new_intervention(config)
    model = new_model(config, intervention)
    optimizer = new_optimizer(model, config)
    data = TrainingData(config)
    forward = packed_forward
    if config.compile:
        forward = torch.compile(packed_forward, mode="reduce-overhead")

    # Or go on where a snapshot was taken.
    done = -1                                             # the last step that has been looked at
    if resume is not None:
        done = resume["step"]
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(copy.deepcopy(resume["optimizer"]))       # it writes into these
    start = max(done, 0)

    schedule, last = set(snapshots_of(config)), last_step(config)
    losses = torch.zeros(config.steps, device=config.device)                # read at snapshots only
    before = start                                        # the step of the snapshot before
    for step in range(start, last + 1):

        # Look, if it is time to.
        if step in schedule and step > done:
            loss = mean_loss(losses, before, step)
            state = functools.partial(training_state, step, model, optimizer)
            yield Snapshot(step, model, loss, state)
            before = step

        # Learn, until all steps are made.
        if step < last:
            losses[step] = training_step(model, optimizer, data, config, step, intervention,
                                         forward)


def mean_loss(losses, before, step):
    """Mean loss of the updates from one snapshot to the next; None at step 0.

    Raises FloatingPointError if one of them is not finite."""
    part = losses[before:step]
    wrong = (~torch.isfinite(part)).nonzero()
    if len(wrong):
        raise FloatingPointError("the training loss is no longer finite at step"
                                 f" {before + int(wrong[0]) + 1}")
    return float(part.mean()) if step else None


def training_state(step, model, optimizer):
    """What `train` needs to go on from here: tensors and numbers alone.  The tensors are live."""
    return {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


# --------------------------------------------------------------------------------------------------
# The tables

SIZES: dict[str, GPTConfig] = {       # each has about four times the parameters of the one before
    "nano": GPTConfig(2, 4, 128),     # 409 thousand
    "micro": GPTConfig(3, 4, 192),    # 1.3 million
    "small": GPTConfig(6, 6, 288),    # 6.0 million
    "medium": GPTConfig(8, 8, 480),   # 22 million
    "large": GPTConfig(12, 12, 768),  # 85 million
    "xl": GPTConfig(12, 16, 1024),    # 151 million
}

INTERVENTIONS: dict[str, type[Intervention]] = {          # name -> what it does to training
    "marginal": Marginal,
    "wrong-marginal": WrongMarginal,
    "head-bias": HeadBias,
    "rank-up": RankUp,
    "rank-down": RankDown,
    "placebo": Placebo,
}


# --------------------------------------------------------------------------------------------------
# For speed alone: several lines in a row
#
# The lines of different task-levels differ in length.  One line to a row, padded to the longest, a
# training step on all 24 task-levels and 4 shams takes 1.98 times as long as below.  In three
# batches by length, each padded, it takes 1.60 times as long.  So lines share rows:
#
#     line       a a a a a b b b          offsets    0 1 2 3 4 0 1 2
#                c c c d d . . .                     0 1 2 0 1 0 0 0
#
# A token learns its position from `offsets`, and the mask keeps it to its own line.  A place of the
# (B, T) grid is named by one number, its index in the flattened grid.  `slots` are the places where
# a token stands.  `positions` are those where something is asked, such as the next token.
#
# The functions below give the numbers of the plain ones above, up to rounding.  A test compares.

def attention_mask(line):
    """Where attention may look: from each place at itself and at earlier places of its own line.
        mask[b, 0, t, s] = 0 where s <= t and line[b, s] = line[b, t], else -inf
    line: (B, T) int64, the number of the line that stands at each place.  Places where none stands
    share the number -1, and are treated like a line: the softmax of a row of -inf would be NaN.
    Returns (B, 1, T, T) float32.  The 1 serves all heads.
    Exercise: models.attention_mask (set 1, 10 points)
    Hint: compare line[:, :, None] with line[:, None, :]; torch.tril keeps what lies to the left.

    >>> attention_mask(torch.tensor([[0, 0, 1]]))[0, 0].tolist()
    [[0.0, -inf, -inf], [0.0, 0.0, -inf], [-inf, -inf, 0.0]]"""
    T = line.shape[1]
    allowed = (line[:, :, None] == line[:, None, :]) & torch.ones(T, T).tril().bool()   # (B, T, T)
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)[:, None]


class Layout(NamedTuple):
    """Where the lines of a batch stand in a (B, T) grid.

    It depends on the lengths of the lines alone.  So one layout serves every step of a run."""
    slots: torch.Tensor               # (S,) int64: the places of all tokens, line after line
    offsets: torch.Tensor             # (B, T) int64: how far from the start of its line each is
    mask: torch.Tensor                # (B, 1, T, T): see attention_mask
    where: torch.Tensor | None = None       # (2, B, T): see tasks.level_and_place

    def to(self, device):
        return Layout(*(part.to(device) for part in self))

    def at(self, positions):
        """(2, M): level and place of the answer, at M places.  None if they are not known."""
        return None if self.where is None else self.where.flatten(1)[:, positions]

    def spread(self, flat, fill):
        """(..., S) values, line after line -> (..., B, T), and `fill` where no line stands."""
        grid = flat.new_full((*flat.shape[:-1], self.offsets.numel()), fill)
        grid[..., self.slots] = flat
        return grid.view(*flat.shape[:-1], *self.offsets.shape)


def pack(lengths, width, device="cpu"):
    """Lay out lines in rows of `width` places.  Each row takes the longest lines that still fit.

    lengths: N integers.  Returns Layout.
    Raises ValueError for a line that is longer than a row.

    >>> pack([3, 5, 3, 2], 8).offsets.tolist()
    [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 0, 0, 0]]"""
    waiting = {}                                          # length -> the lines, the first one last
    for line in reversed(range(len(lengths))):
        waiting.setdefault(lengths[line], []).append(line)

    starts = [0] * len(lengths)                           # the place of each line's first token
    rows = 0
    while waiting:
        column = 0
        for length in sorted(waiting, reverse=True):
            while waiting[length] and column + length <= width:
                starts[waiting[length].pop()] = rows * width + column
                column += length
        if column == 0:
            raise ValueError(f"a line of {max(waiting)} tokens does not fit into {width}")
        waiting = {length: lines for length, lines in waiting.items() if lines}
        rows += 1

    # From lines to tokens: each knows its offset, its slot, and whose it is.
    within = torch.cat([torch.arange(length) for length in lengths])        # (S,)
    lengths = torch.tensor(lengths)
    slots = torch.repeat_interleave(torch.tensor(starts), lengths) + within
    offsets = torch.zeros(rows * width, dtype=torch.long)
    offsets[slots] = within
    owner = torch.full((rows * width,), -1)
    owner[slots] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    mask = attention_mask(owner.view(rows, width))
    return Layout(slots.to(device), offsets.view(rows, width).to(device), mask.to(device))


class Ragged(NamedTuple):
    """Lines of different lengths, laid out, and where their M scored places are."""
    tokens: torch.Tensor              # (B, T) int64
    layout: Layout
    positions: torch.Tensor           # (M,) int64: the places that carry a target
    targets: torch.Tensor             # (M,) int64: these targets
    owner: torch.Tensor               # (M,) int64: whose they are, 0 to N - 1


def lay_out(batches, device="cpu"):
    """A list of Batches, each with a length of its own -> Ragged.

    Lines are counted through all batches, one after another.  A row holds two of the longest;
    then some 95% of the places are used."""
    lines = [line for batch in batches for line in batch.tokens]
    lengths = [len(line) for line in lines]
    layout = pack(lengths, 2 * max(lengths), device)

    padded = nn.utils.rnn.pad_sequence(lines, True, PAD)                    # (N, T): asked at once
    real = torch.arange(padded.shape[1], device=padded.device) < padded.new_tensor(lengths)[:, None]
    where = torch.stack(tasks.level_and_place(padded))[:, real]             # (2, S)
    layout = layout._replace(where=layout.spread(where.to(device), -1))

    tokens = torch.cat(lines).to(device)                                    # (S,)
    targets = torch.cat([batch.targets.reshape(-1) for batch in batches]).to(device)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    scored = targets != IGNORE
    return Ragged(layout.spread(tokens, PAD), layout, layout.slots[scored], targets[scored],
                  owner[scored])


def walk(model, tokens, layout, positions):
    """The residual stream: a list of those before the last block, (B, T, D) each, and the last one.

    After the last attention no place looks at another.  So the rest of that block, 9 D^2 of its
    12 D^2 weights, runs only at `positions`; the last one is (M, D) then, else (B, T, D)."""
    states = [model.token_embedding(tokens) + model.position_embedding(layout.offsets)]
    for block in model.blocks[:-1]:
        states.append(block(states[-1], layout.mask))

    x, block = states[-1], model.blocks[-1]
    a = attention(block.attn.qkv(block.ln_1(x)), layout.mask, block.attn.n_head)    # (B, T, D)
    if positions is not None:
        x, a = x.flatten(0, 1)[positions], a.flatten(0, 1)[positions]       # (M, D)
    x = x + block.attn.proj(a)
    return states, x + block.mlp(block.ln_2(x))


def equal_shares(items, largest, threads):
    """Cut a list into parts of one size, none above `largest`, equally many for each thread."""
    rounds = math.ceil(len(items) / (threads * largest))
    size = math.ceil(len(items) / (threads * rounds))
    return [items[i:i + size] for i in range(0, len(items), size)]


def packed_forward(model, tokens, layout, positions):
    """What a training step needs at M places: the last block's states (M, D), and logits (M, V)."""
    _, last = walk(model, tokens, layout, positions)
    return last, model.logits(last, layout.at(positions))


class Answers(NamedTuple):
    """N lines, laid out, and the places of theirs that are read."""
    tokens: torch.Tensor              # (B, T) int64
    layout: Layout
    first: torch.Tensor               # (N,) where each line's first answer token is predicted
    read: torch.Tensor                # (M + N,) where any token of it is, and each line's end
    asked: torch.Tensor               # (M,) which of these predict a token
    begins: torch.Tensor              # (N,) which of the M tokens are first ones
    targets: torch.Tensor             # (M,) int64: the tokens


def lay_out_answers(lines, device="cpu"):
    """A list of Batches of one whole line each -> Answers."""
    packed = lay_out(lines)
    targets = torch.cat([line.targets[0] for line in lines])                # (S,)
    asked = targets != IGNORE
    first, read = asked.clone(), asked.clone()
    first[1:] &= ~asked[:-1]
    read[torch.tensor([line.tokens.shape[1] for line in lines]).cumsum(0) - 1] = True
    slots = packed.layout.slots
    parts = Answers(packed.tokens, packed.layout, slots[first], slots[read],
                    asked[read].nonzero()[:, 0], first[asked].nonzero()[:, 0], targets[asked])
    return Answers(*(part.to(device) for part in parts))


def read_answers(model, lines):
    """One forward pass, and what is read in it.  lines: Answers.

    Returns early, (N, n_layer, D): the states before the last block, at `first`; late,
    (M + N, 2, D): the last block's and the final LayerNorm's, at `read`; then of each of the M
    tokens -log p, and whether it is the most likely one; and (N, V) probabilities of the first."""
    states, last = walk(model, lines.tokens, lines.layout, lines.read)
    early = torch.stack([x.flatten(0, 1)[lines.first] for x in states], 1)
    where = lines.layout.at(lines.read)[:, lines.asked]                     # (2, M)
    logits = model.logits(last[lines.asked], where)                         # (M, V)
    nll = F.cross_entropy(logits, lines.targets, reduction="none")
    right = logits.argmax(1) == lines.targets
    return (early, torch.stack([last, model.ln_f(last)], 1), nll, right,
            logits[lines.begins].softmax(1))


def packed_logits(model, tokens, layout, positions):
    """model(tokens) of packed lines, at M places alone: (M, V)."""
    return packed_forward(model, tokens, layout, positions)[1]


@functools.lru_cache(maxsize=8)
def pack_once(lengths, width, device):
    """`pack`, remembered: mini-batches that are drawn alike share a layout."""
    return pack(lengths, width, device)


def packed_loss(model, batch):
    """example_loss of lines that are padded on the right: packed first, then in half of the time.

    batch: (tokens, targets), both (N, T).  Returns (N,)."""
    tokens, targets = batch
    real = tokens != PAD                                                    # (N, T)
    lengths = tuple(real.sum(1).tolist())
    layout = pack_once(lengths, 2 * max(lengths), tokens.device)

    owner = real.nonzero()[:, 0]                                            # (S,)
    targets = targets[real]                                                 # (S,)
    scored = targets != IGNORE
    owner, targets = owner[scored], targets[scored]                         # (M,)

    where = torch.stack(tasks.level_and_place(tokens))[:, real]             # (2, S)
    layout = layout._replace(where=layout.spread(where, -1))
    tokens = layout.spread(tokens[real], PAD)                               # (B, T)
    logits = packed_logits(model, tokens, layout, layout.slots[scored]).float()
    loss = F.cross_entropy(logits, targets, reduction="none")               # (M,)
    # on CUDA, unlike index_add, in the same order every time
    total = loss.new_zeros(len(real)).index_put((owner,), loss, accumulate=True)    # (N,)
    return total / owner.bincount(minlength=len(real))
