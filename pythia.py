"""The same question asked of real language models: do representations move before behaviour does in Pythia?

Pythia (Biderman et al. 2023, arXiv 2304.01373) is a family of language models of which 154 checkpoints along training are
public: steps 0, 1, 2, 4 ... 512, 1000, 2000 ... 143000, each a branch "step<N>" of a repository on the hub.  Billa 2026
(arXiv 2602.15997) measured 160M, 410M and 2.8B with seven probe sets, and claims (C9) that the global patterns replicate,
a collapse of the representation and a recovery, but that no task's geometry announces that task's emergence.

Before one measures a checkpoint, one has to know that it holds its own weights: it is *reported* (see REPORTED) that 86 of the 154
branches of the 2.8B model do not, and a "lead of 49,000 steps" found there may be an accident of files.  So this chapter goes:

    manifest -> audit -> plan -> snapshots (download, verify, load, evict) -> rows of metrics.jsonl -> compare -> a verdict

What this file does not do: it trains nothing; it knows one architecture, GPT-NeoX; its probe sets are ours, in the spirit of the
paper's, whose items are not public; it prints nothing and writes no run directory (run.py does).  It needs the extra `pythia`.

What can go wrong: see `audit`; and a checkpoint every 1,000 steps dates nothing more closely than that.

In small: of four branches the last two, and `main`, serve one file.  One of the two must be wrong, and names do not tell which:
>>> files = {0: [("pytorch_model.bin", 9, "aa")], 512: [("pytorch_model.bin", 9, "bb")], 142000: [("pytorch_model.bin", 9, "ff")],
...          143000: [("pytorch_model.bin", 9, "ff")], "main": [("pytorch_model.bin", 9, "ff")]}
>>> audit(files).own, audit(files).left_out[142000]
((0, 512), 'pytorch_model.bin is also that of main and 1 more')

Letters for shapes:  B rows, T tokens, D width, H heads, d = D / H, L blocks, V vocabulary, N items of a probe set, A tokens of a
completion, O completions of an item.
"""
import contextlib
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import time
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from matplotlib.figure import Figure

import emergence
import measures
from models import IGNORE, Batch, Snapshot, example_loss


def extra(module):
    """A module of the extra `pythia`, imported when it is needed: the rest works without it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{module.partition('.')[0]} is missing: downloading and reading Pythia's checkpoints needs the extra, "
                          "pip install '.[pythia]' (huggingface_hub, safetensors, tokenizers)") from None


# What the libraries raise, the first pattern that fits, and what is said of it: ValueError for what is not there or not as stated,
# RuntimeError for a disk or a connection that fails.
FAULTS = (
    (ImportError, r"^(Import|ModuleNotFound)Error", "{error}"),
    (RuntimeError, r"No space left|not enough space|File too large|[Qq]uota exceeded",
     "the disk is full: {what} of {model} does not fit into {folder}; free some space and give the same command again"),
    (ValueError, r"^(RepositoryNotFound|GatedRepo|HFValidation)Error", "{model}: the hub has no such model, or it is not public; check the name"),
    (ValueError, r"^(Revision|Entry|RemoteEntry)NotFoundError",
     "{model}: the hub has no {what}; leave it out, or see what there is with `pythia audit`"),
    (ValueError, r"Consistency check failed", "{model}: {what} arrived cut short; give the same command again, or leave it out"),
    (ValueError, r"^UnpicklingError", "{what} was refused: it is no plain list of tensors, and loading it might run code hidden in it; leave it out"),
    (ValueError, r"^(SafetensorError|RuntimeError|EOFError|OSError|Exception):", "{what} is damaged or cut short; delete it and download it again"),
    (RuntimeError, r"", "{model}: {what} cannot be had from the hub ({name}); check the connection and give the same command again"),
)


@contextlib.contextmanager
def plainly(model, what, folder="."):
    """Whatever the libraries raise becomes one sentence, of FAULTS."""
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        kind, sentence = next((kind, sentence) for kind, pattern, sentence in FAULTS if re.search(pattern, f"{name}: {error}"))
        raise kind(sentence.format(model=model, what=what, folder=folder, name=name, error=error)) from error


# ---------------------------------------------------------------------------------------------------------------
# The model: GPT-NeoX.  Against models.GPT: positions enter by rotating queries and keys instead of by an embedding, attention
# and perceptron read the same input (a "parallel" residual), and the output matrix is not the input embedding.

@dataclass(frozen=True)
class NeoXConfig:
    n_layer: int
    n_head: int
    n_embd: int                       # width, D
    n_inner: int                      # width of the perceptron
    vocab_size: int = 50304           # padded; the tokenizer has 50,277 entries
    rotary_pct: float = 0.25          # share of each head that is rotated
    rotary_base: float = 10000.0
    parallel_residual: bool = True
    layer_norm_eps: float = 1e-5
    bias: bool = True                 # of the attention's two matrices
    block_size: int = 2048            # longest input, in tokens


SIZES = {
    "14m": NeoXConfig(6, 4, 128, 512), "31m": NeoXConfig(6, 8, 256, 1024), "70m": NeoXConfig(6, 8, 512, 2048),
    "160m": NeoXConfig(12, 12, 768, 3072), "410m": NeoXConfig(24, 16, 1024, 4096), "1b": NeoXConfig(16, 8, 2048, 8192),
    "1.4b": NeoXConfig(24, 16, 2048, 8192), "2.8b": NeoXConfig(32, 32, 2560, 10240),
}


def read_config(path):
    """The hub's config.json -> NeoXConfig.  Raises ValueError on another architecture, activation or position scheme."""
    try:
        c = json.loads(Path(path).read_text())
        c |= c.get("rope_parameters") or c.get("rope_scaling") or {}               # where newer files keep the rotary fields
        for field, accepted in (("model_type", "gpt_neox"), ("hidden_act", "gelu"), ("tie_word_embeddings", False), ("rope_type", "default")):
            if c.get(field, accepted) != accepted:
                raise ValueError(f"{path}: {field} is {c[field]!r}, and only {accepted!r} can be read here")
        return NeoXConfig(c["num_hidden_layers"], c["num_attention_heads"], c["hidden_size"], c["intermediate_size"], c["vocab_size"],
                          c.get("partial_rotary_factor", c.get("rotary_pct", 0.25)), c.get("rope_theta", c.get("rotary_emb_base", 10000)),
                          c.get("use_parallel_residual", True), c.get("layer_norm_eps", 1e-5), c.get("attention_bias", True),
                          c.get("max_position_embeddings", 2048))
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not the config.json of a GPT-NeoX model ({type(error).__name__}: {error})") from None


def rotate(x, cos, sin):
    """Rotary positions: turn the pairs (i, i + r/2) of the first r entries of each head by an angle that grows with the token's
    place, so that a query and a key see only their distance.  x (B, H, T, d), cos and sin (T, r) -> (B, H, T, d)."""
    turned, rest = x[..., :cos.shape[-1]], x[..., cos.shape[-1]:]
    a, b = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-b, a], -1) * sin, rest], -1)


class Block(nn.Module):
    """Attention and a perceptron.  The names of the modules are those in the checkpoint files."""

    def __init__(self, config):
        super().__init__()
        D, self.config = config.n_embd, config
        self.input_layernorm = nn.LayerNorm(D, config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(D, config.layer_norm_eps)
        self.attention = nn.ModuleDict({"query_key_value": nn.Linear(D, 3 * D, config.bias), "dense": nn.Linear(D, D, config.bias)})
        self.mlp = nn.ModuleDict({"dense_h_to_4h": nn.Linear(D, config.n_inner), "dense_4h_to_h": nn.Linear(config.n_inner, D)})

    def forward(self, x, cos, sin, mask):
        (B, T, D), H = x.shape, self.config.n_head
        qkv = self.attention["query_key_value"](self.input_layernorm(x)).view(B, T, H, 3 * D // H)         # head by head: q | k | v
        q, k, v = qkv.transpose(1, 2).chunk(3, -1)                                                          # each (B, H, T, d)
        scores = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-2, -1) * (D // H) ** -0.5 + mask
        # written out, for fused kernels have no second derivative; the softmax never in less than float32, as in the reference
        weights = scores.softmax(-1, torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        a = self.attention["dense"]((weights @ v).transpose(1, 2).reshape(B, T, D))
        h = self.post_attention_layernorm(x if self.config.parallel_residual else x + a)
        return x + a + self.mlp["dense_4h_to_h"](nn.functional.gelu(self.mlp["dense_h_to_4h"](h)))


class NeoX(nn.Module):
    """GPT-NeoX (Black et al. 2022, arXiv 2204.06745).  Attention looks back only, so rows padded on the right need no mask.
    Two "last" states, and each has its name: hidden_states(tokens)[-1] is before the final LayerNorm, and
    final_layer_norm(hidden_states(tokens)[-1]), called final_norm in the rows, after it (transformers' hidden_states[-1])."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_in = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_layer_norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.embed_out = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def hidden_states(self, tokens):
        """tokens (B, T) int64 -> L + 1 tensors (B, T, D): the embedding, then the residual stream after each block."""
        T, c = tokens.shape[1], self.config
        if T > c.block_size:
            raise ValueError(f"an input of {T} tokens is longer than the model's {c.block_size}")
        states = [self.embed_in(tokens)]
        r = int(c.n_embd // c.n_head * c.rotary_pct)
        frequency = c.rotary_base ** -(torch.arange(0, r, 2, device=tokens.device) / r)                    # (r / 2,)
        angle = torch.outer(torch.arange(T, device=tokens.device), frequency).repeat(1, 2)                # (T, r), float32
        cos, sin = angle.cos().to(states[0]), angle.sin().to(states[0])
        mask = states[0].new_full((T, T), -math.inf).triu(1)
        for block in self.layers:
            states.append(block(states[-1], cos, sin, mask))
        return states

    def forward(self, tokens, at=None):
        """tokens (B, T) -> logits (B, T, V); with `at`, indices into the B T places, logits (M, V) there only."""
        x = self.final_layer_norm(self.hidden_states(tokens)[-1])
        return self.embed_out(x if at is None else x.flatten(0, 1)[at])


# ---------------------------------------------------------------------------------------------------------------
# Loading, one tensor at a time: a 2.8B model in bfloat16 takes its 5.6 GB and little more

def stored_tensors(path):
    """(name, tensor) of one weight file, .safetensors or .bin.  Raises ValueError on a damaged or a refused one."""
    with plainly(path.parent.name, path.name):
        if path.suffix == ".bin":
            state = torch.load(path, map_location="cpu", weights_only=True)      # runs no code from the file
            while state:
                yield state.popitem()                          # popped: a converted tensor's original is freed at once
        else:
            safe_open = extra("safetensors").safe_open
            with safe_open(path, "pt") as file:
                names = list(file.keys())
            for name in names:
                with safe_open(path, "pt") as file:            # opened anew each time: the pages read so far are given back
                    yield name, file.get_tensor(name)


def load(folder, dtype=torch.float32, device="cpu"):
    """The model in `folder` (config.json and weight files, sharded or not) -> (NeoX, fingerprint).
    The fingerprint is a sha256 over all parameters as they stand in the file, before any conversion, -0.0 read as 0.0 and buffers
    left out: files that differ while their weights are the same have the same one.
    Raises ValueError naming the file or the tensor: damaged, refused, missing, left over, or of another shape."""
    folder, state, digests = Path(folder), {}, []
    with torch.device("meta"):                                 # shapes without memory
        model = NeoX(read_config(folder / "config.json"))
    for file in chosen((p.name,) for p in folder.iterdir()):
        for name, tensor in stored_tensors(folder / file.file):
            name = name.removeprefix("gpt_neox.").replace("lm_head.", "embed_out.")
            if re.search(r"attention\.(bias|masked_bias)$|rotary_emb\.inv_freq$", name):           # constants that older files carry
                continue
            plain = (tensor + 0).contiguous().view(torch.uint8)                                    # -0.0 + 0 is 0.0
            digests.append(f"{name} {tensor.dtype} {hashlib.sha256(plain.numpy()).hexdigest()}")
            state[name] = tensor.to(device, dtype, copy=True)  # a copy: the file may be deleted, and its memory map with it
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:                              # torch lists all that is wrong, a tensor a line
        raise ValueError(f"what the weight files hold does not fit config.json: {' '.join(str(error).split()[6:])[:300]}") from None
    return model.eval(), hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------
# The hub: which files there are, and which steps hold weights of their own

WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")
STEPS = (0, *(2 ** i for i in range(10)), *range(1000, 144000, 1000))                       # the 154 that Pythia saved

# Reported, not verified here: issues 195, 205 and 206 of the Pythia repository, 2026.  The first list is said to share one file
# with `main`; the second to share another, whose tensors are the same but for the sign of one zero.
REPORTED = {"EleutherAI/pythia-2.8b": (
    (*STEPS[:11], *range(1000, 54000, 1000), *range(55000, 75000, 5000), *range(80000, 110000, 10000), 103000,
     *range(110000, 150000, 10000)),
    (54000, *range(56000, 60000, 1000), *range(61000, 65000, 1000), 143000))}


class WeightFile(NamedTuple):
    file: str
    size: int = 0                     # bytes
    sha256: str = ""                  # of its content, as the hub states it
    commit: str = "main"              # where to download it: the branch may move on, a commit does not


def repository(model):
    """"160m", "pythia-160m" or "owner/name" -> the repository's name on the hub.

    >>> repository("160m")
    'EleutherAI/pythia-160m'
    """
    size = model.removeprefix("pythia-")
    if "/" not in model and size.removesuffix("-deduped") not in SIZES:
        raise ValueError(f"no Pythia model {model!r}: expected one of {', '.join(SIZES)} (also with -deduped), or owner/name on the hub")
    return model if "/" in model else f"EleutherAI/pythia-{size}"


def reported(model):
    """What others report of this model's branches, before anything is asked of the hub: a sentence, or None."""
    if repository(model) not in REPORTED:
        return None
    as_main, second = REPORTED[repository(model)]
    own = [step for step in STEPS if step not in as_main + second]
    return (f"reported by others, unverified: of {len(STEPS)} step branches {len(as_main)} share one weight file with main and "
            f"{len(second)} a second one with the same weights; {len(own)} hold weights of their own, the first at step {own[0]}")


def hub():
    """The hub's client.  HF_ENDPOINT names another server than the public one."""
    return extra("huggingface_hub").HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def manifest(model, progress=lambda read, of: None):
    """Which weight files each branch of a model serves, from metadata alone: {step, and last "main": (WeightFile, ...)}, steps being
    branches named step<N>.  progress: called with (branches read, all branches); there is one request for each.
    Raises ValueError for a model that is not there, RuntimeError for a hub that does not answer."""
    with plainly(model, "list of branches"):
        refs = hub().list_repo_refs(repository(model)).branches
    commits = {ref.name: ref.target_commit for ref in refs if re.fullmatch(r"main|step\d+", ref.name)}
    listing = {}
    for name in sorted(commits, key=lambda name: (name == "main", len(name), name)):
        with plainly(model, f"branch {name}"):
            entries = list(hub().list_repo_tree(repository(model), revision=commits[name]))
        listing[name if name == "main" else int(name[4:])] = tuple(
            WeightFile(e.path, e.size, e.lfs.sha256 if e.lfs else "git:" + e.blob_id, commits[name]) for e in entries if WEIGHTS.fullmatch(e.path))
        progress(len(listing), len(commits))
    return listing


def chosen(files):
    """Those of a branch's weight files that are read: .safetensors before .bin, one file before shards."""
    files = sorted(WeightFile(*f) for f in files if WEIGHTS.fullmatch(f[0]))
    kind = lambda f: (f.file.endswith(".bin"), "-of-" in f.file)
    return tuple(f for f in files if kind(f) == min(map(kind, files)))


Audit = namedtuple("Audit", "own left_out groups")


def audit(manifest):
    """Which steps of a model really hold weights of their own.
    manifest: {step: files, "main": files}, a file being a WeightFile or a tuple (file, size, sha256) -> Audit(steps that do; {step: why not};
    (file name, sha256, branches) for every file that several branches serve, the largest group first).
    A step is left out if any of its weight files, a shard included, is also that of `main` or of another step: one of them must be
    wrong, and the names do not tell which.  Two pairs are right to share: steps 0 and 1 (the learning rate of the first step of the
    warm-up is 0), and the last step and `main`, as long as nobody else shares with them.
    It sees files, not weights: that two different files hold the same weights shows after loading (see `load` and `measure`)."""
    steps = sorted(set(manifest) - {"main"})
    files = {step: [WeightFile(*f) for f in manifest.get(step, ())] for step in ("main", *steps)}
    names = {f.sha256: f.file for some in files.values() for f in some}
    holders = {sha: [step for step, some in files.items() if sha in [f.sha256 for f in some]] for sha in names}
    left_out = {}
    for step in steps:
        shared = [f for f in files[step] if len(holders[f.sha256]) > 1 and holders[f.sha256] not in ([0, 1], ["main", steps[-1]])]
        if shared:
            others = [s for s in holders[shared[0].sha256] if s != step]
            left_out[step] = (f"{shared[0].file} is also that of {others[0]}" + f" and {len(others) - 1} more" * (len(others) > 1)
                              + f" ({len(shared)} of {len(files[step])} files)" * (len(files[step]) > 1))
        elif not files[step]:
            left_out[step] = "no weight file"
    groups = sorted(((names[sha], sha, tuple(who)) for sha, who in holders.items() if len(who) > 1), key=lambda group: -len(group[2]))
    return Audit(tuple(step for step in steps if step not in left_out), left_out, tuple(groups))


def parse_steps(text, available):
    """"all", or numbers and ranges first:last:stride with commas between ("0,512,1000:143000:9000") -> the steps, in order.
    Raises ValueError for a step that is not among `available`.

    >>> parse_steps("0,512,1000:3000:1000", [0, 1, 512, 1000, 2000, 3000])
    (0, 512, 1000, 2000, 3000)
    """
    if text == "all":
        return tuple(available)
    try:
        parts = [[int(n) for n in part.split(":")] for part in text.split(",")]
        asked = {s for first, *rest in parts for s in (range(first, rest[0] + 1, *rest[1:]) if rest else [first])}
    except (ValueError, TypeError):
        raise ValueError(f"--steps {text!r}: expected all, or numbers and ranges first:last:stride, with commas between") from None
    for wrong in sorted(asked - set(available)) or [""] * (not asked):
        raise ValueError(f"--steps {text!r}: there is no step {wrong} among the {len(available)} from {min(available)} to {max(available)}; "
                         "`pythia audit` lists them")
    return tuple(sorted(asked))


def fetch(model, file, cache_dir, revision="main"):
    """Download one file of one revision into cache_dir (a folder of our own, not the user's cache of the hub) -> its path."""
    extra("huggingface_hub.utils").disable_progress_bars()     # run.py shows its own
    with plainly(model, f"{file} of revision {revision[:12]}", cache_dir):
        return Path(hub().hf_hub_download(repository(model), file, revision=revision, cache_dir=cache_dir))


def evict(model, cache_dir):
    """Delete all that cache_dir holds of a model: a checkpoint that has been loaded, and what a killed download left."""
    if Path(cache_dir).resolve() == Path(extra("huggingface_hub.constants").HF_HUB_CACHE).resolve():
        raise ValueError(f"{cache_dir} is the hub's own cache; give a folder of its own, for what is measured is deleted from it")
    shutil.rmtree(Path(cache_dir) / f"models--{repository(model).replace('/', '--')}", ignore_errors=True)


def file_sha256(path):
    """sha256 of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return extra("huggingface_hub.utils.sha").sha_fileobj(file).hex()


def snapshots(model, steps, manifest, cache_dir="pythia-cache", dtype=torch.float32, device="cpu"):
    """One checkpoint after another as a Snapshot(step, model, None, state): download, check the sha256, load, delete, yield.
    There is one checkpoint on disk at a time, and one in memory: when the next one is asked for, the last one's model is emptied.
    manifest: of `manifest(model)`.  state() gives the fingerprint of the weights.
    Raises ValueError for a checkpoint that is missing, damaged, refused, or not what the manifest says; RuntimeError for a full disk
    and for a hub that does not answer.  What was downloaded is deleted in any case."""
    for step in steps:
        evict(model, cache_dir)
        try:
            files = chosen(manifest.get(step, ()))
            if not files:
                raise ValueError("the hub has no weight file; leave it out, or see `pythia audit`")
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
            need, free = sum(f.size for f in files), shutil.disk_usage(cache_dir).free
            if free < 1.02 * need:
                raise RuntimeError(f"the disk is too full for step {step} of {model}: {need / 1e9:.2f} GB are needed in {cache_dir} and "
                                   f"{free / 1e9:.2f} GB are free; free some space and give the same command again")
            folder = fetch(model, "config.json", cache_dir, files[0].commit).parent
            for f in files:
                found = file_sha256(fetch(model, f.file, cache_dir, f.commit))
                if found != f.sha256 and not f.sha256.startswith("git:"):
                    raise ValueError(f"{f.file} has sha256 {found[:12]} where the hub states {f.sha256[:12]}; give the same command "
                                     "again, or leave this step out")
            net, fingerprint = load(folder, dtype, device)
        except ValueError as error:
            raise ValueError(f"step {step} of {model}: {error}") from None
        finally:
            evict(model, cache_dir)
        yield Snapshot(step, net, None, lambda fingerprint=fingerprint: {"fingerprint": fingerprint})
        net.to("meta")                                         # whoever still holds it holds no memory


# ---------------------------------------------------------------------------------------------------------------
# Probe sets: items on which geometry and behaviour are both measured.  In all but arithmetic and reasoning, whose wrong answers
# have to fit the item, each wrong completion is the right one of another item, so a liking for certain words gains nothing.

class Item(NamedTuple):
    prompt: str
    right: str            # the correct completion; begins with a space, so that it is a token of its own
    wrong: tuple          # one or several others.  The item is answered if the correct one is more probable than each of them


def shifted(pairs, by):
    """(prompt, right) pairs -> (prompt, right, wrong); the wrong completion of each is the right one `by` places further on."""
    return [(prompt, right, pairs[(i + by) % len(pairs)][1]) for i, (prompt, right) in enumerate(pairs)]


def own_probes():
    """The seven sets of this chapter, of 30 items each -> {name: list of Items}.  Every completion is one token of Pythia's tokenizer."""
    # the verb agrees with the subject, not with the noun beside it
    nouns = [pair.split() for pair in "key keys,dog dogs,child children,car cars,teacher teachers".split(",")]
    grammar = [(f"The {noun} near the {near}", verb) for pair in nouns for near in ("old house", "open windows", "red boxes")
               for noun, verb in zip(pair, ("is", "are"))]
    kinds = {"bird": "sparrow eagle owl pigeon robin", "tool": "hammer saw drill wrench chisel", "fruit": "banana peach cherry mango pear",
             "fish": "salmon trout tuna cod shark", "metal": "copper silver iron zinc gold", "color": "crimson violet beige scarlet turquoise"}
    semantics = [(f"The word {word} names a kind of", kind) for kind, some in kinds.items() for word in some.split()]
    # after two worked sums; the wrong answer is the right one's neighbour, above or below
    arithmetic = [(f"1 + 1 = 2, 9 + 6 = 15, {a} + {b} =", f"{a + b}", f"{a + b + (-1) ** (a + b // 2)}") for a in range(2, 8) for b in range(3, 8)]
    # a list begins anew: both completions stand in it, but only one at this place
    words = "stone river lamp cloud glass paper horse chair bread light".split()
    lists = [[words[(i + step * k) % 10] for k in range(4)] for step in (1, 3, 7) for i in range(10)]
    copying = [(" ".join(four + four[:3]), four[3], four[1]) for four in lists]
    capitals = """France Paris,Germany Berlin,Italy Rome,Spain Madrid,England London,Russia Moscow,Japan Tokyo,China Beijing,Egypt Cairo,
        Thailand Bangkok,Greece Athens,Austria Vienna,Poland Warsaw,Hungary Budapest,Ireland Dublin,Norway Oslo,Sweden Stockholm,
        Finland Helsinki,Denmark Copenhagen,Portugal Lisbon,Belgium Brussels,Iran Tehran,Iraq Baghdad,Syria Damascus,India Delhi,
        Jamaica Kingston,Canada Ottawa,Chile Santiago,Czechia Prague,Korea Seoul"""
    facts = [(f"The capital of {country} is", city) for country, city in (pair.split() for pair in capitals.split(","))]
    # a transitive relation, told in either order, asked for from either end
    names, reasoning = "Tom Anna Ben Mary Jack Lucy Sam Kate Paul Jane".split(), []
    for j, (more, most, least) in enumerate((("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))):
        for i in range(10):
            a, b, c = (names[(i + k) % 10] for k in (0, 3, 7))
            told = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."][::1 if (i + j) % 2 else -1]
            right, wrong, asked = (a, c, most) if i // 2 % 2 else (c, a, least)
            reasoning.append((f"{' '.join(told)} The {asked} of the three is", right, wrong))
    lines = """He poured the hot coffee into the=cup|She unlocked the door with her=key|The baby began to=cry|They sat down at the table to=eat|
        It was dark, so he turned on the=light|The dog began to=bark|She put the letter into an=envelope|We went to the beach to=swim|
        The plane landed at the=airport|He was ill, so he went to see a=doctor|The sun rises in the=east|She read the last page of the=book|
        The king lived in a large=castle|They were married in a small=church|He washed his hands with=soap|The teacher wrote on the=board|
        The farmer milked the=cows|She cut the bread with a=knife|The judge sent him to=prison|In winter the lake is covered with=ice|
        He paid for the meal with=cash|The audience clapped their=hands|She looked at the clock to see the=time|He planted roses in his=garden|
        The ship sailed across the=ocean|The bird built a=nest|Open the window and let in some fresh=air|The actors stood on the=stage|
        He hung the picture on the=wall|The train arrived at the=station"""
    sets = {"grammar": shifted(grammar, 1), "semantics": shifted(semantics, 5), "arithmetic": arithmetic, "copying": copying,
            "facts": shifted(facts, 7), "reasoning": reasoning, "text": shifted([line.strip().split("=") for line in lines.split("|")], 11)}
    return {name: [Item(prompt, " " + right, (" " + wrong,)) for prompt, right, wrong in some] for name, some in sets.items()}


def read_probes(path):
    """A file of items -> list of Items.  Three layouts, told apart by their fields:
        {"examples": [{"input", "target"}]}       BIG-Bench Hard (.json): "(A)" against the other letters under "Options:", or else the
                                                  target against the other targets in the file (ten at most: yes and no, say)
        {"sentence_good", "sentence_bad"}         BLiMP (.jsonl): the words that both begin with are the prompt, so that the difference
                                                  of log-probabilities is that of the whole sentences
        {"prompt", "right", "wrong"}              our own (.jsonl), "wrong" a string or a list of them
    Raises ValueError naming the file and the item."""
    try:
        content = Path(path).read_text(encoding="utf-8")
        data = json.loads(content)["examples"] if Path(path).suffix == ".json" else [json.loads(s) for s in content.splitlines() if s.strip()]
        targets = sorted({d["target"] for d in data if "target" in d})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no file of probes, expected BIG-Bench Hard .json or .jsonl with one item a line ({error})") from None
    items = []
    for number, d in enumerate(data, 1):
        try:
            if "input" in d:
                options = re.findall(r"^(\([A-Z]\))", d["input"], re.M) or targets[:11]
                if d["target"] not in options or len(options) < 2 or options == targets[:11] and len(targets) > 10:
                    raise KeyError(f"options with the target {d['target']!r} among them")
                items.append(Item(d["input"] + "\nAnswer:", " " + d["target"], tuple(" " + o for o in options if o != d["target"])))
            elif "sentence_good" in d:
                good, bad = (re.findall(r" ?[^ ]+", d[key]) for key in ("sentence_good", "sentence_bad"))
                same = len(os.path.commonprefix([good, bad]))
                items.append(Item("".join(good[:same]), "".join(good[same:]), ("".join(bad[same:]),)))
            else:
                items.append(Item(d["prompt"], d["right"], (d["wrong"],) if isinstance(d["wrong"], str) else tuple(d["wrong"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: item {number} is none of the three layouts, it lacks {error}") from None
    return items


class Probe(NamedTuple):
    """A probe set in tokens.  N is the same for all sets of a measurement, for RankMe cannot exceed N."""
    prompts: tuple        # N lists of token ids
    options: tuple        # N tuples of lists of token ids, the right completion first
    chance: float         # accuracy of a guess: the mean of 1 / O


def encode(sets, tokenizer, n=None):
    """{name: list of Items} -> {name: Probe}, each of n items spread evenly over the set (default: as many as the smallest has).
    tokenizer: text -> list of ids.  An empty prompt becomes <|endoftext|> (id 0), as in lm-evaluation-harness, for Pythia has no
    beginning-of-text token.  Raises ValueError if a set has fewer than n items, or an item an empty completion."""
    n, probes = min(map(len, sets.values())) if n is None else n, {}
    for name, items in sets.items():
        if not 1 < n <= len(items):
            raise ValueError(f"probe set {name} has {len(items)} items where {n} are asked for (at least 2, and equally many of each set)")
        items = [items[i * len(items) // n] for i in range(n)]
        options = tuple(tuple(tokenizer(o) for o in (item.right, *item.wrong)) for item in items)
        if not all(len(o) > 1 and all(o) for o in options):
            raise ValueError(f"probe set {name}: every item needs a right and a wrong completion that are not empty")
        probes[name] = Probe(tuple(tokenizer(item.prompt) or [0] for item in items), options, sum(1 / len(o) for o in options) / n)
    return probes


def tokenizer(path):
    """The function text -> list of ids of a tokenizer.json.  Raises ValueError for a file that is none."""
    with plainly(None, path):
        encoder = extra("tokenizers").Tokenizer.from_file(str(path))
    return lambda text: encoder.encode(text, add_special_tokens=False).ids


# ---------------------------------------------------------------------------------------------------------------
# Measuring one checkpoint

POSITIONS = ("first", "answer", "last")       # the state that predicts the answer's first token; the mean of those that predict its
                                              # tokens (so that N stays N); the state at its last token, the whole line read


def right_padded(lines, device="cpu"):
    """[(prompt, completion)] in ids -> Batch(tokens, targets), (B, T) both; targets IGNORE off the completion."""
    tokens = [torch.tensor(p + c) for p, c in lines]
    targets = [torch.tensor([IGNORE] * (len(p) - 1) + c + [IGNORE]) for p, c in lines]
    return Batch(*(nn.utils.rnn.pad_sequence(rows, True, fill).to(device) for rows, fill in ((tokens, 0), (targets, IGNORE))))


@torch.no_grad()
def read_probe(model, probe, rows=16):
    """One forward per completion, `rows` at a time -> (states, log_probs).
    states: {position: (L + 2, N, D) float32 on the CPU}: embedding, each block, final_norm; of the right completions.
    log_probs: (N, O) float32, nats, summed over a completion's tokens, the right one first; -inf where an item has fewer options."""
    log_probs = torch.full((len(probe.prompts), max(map(len, probe.options))), -math.inf)
    states = {position: [] for position in POSITIONS}
    lines = [(n, o) for n, options in enumerate(probe.options) for o in range(len(options))]
    for chunk in (lines[i:i + rows] for i in range(0, len(lines), rows)):
        tokens, targets = right_padded([(probe.prompts[n], probe.options[n][o]) for n, o in chunk], model.embed_in.weight.device)
        hidden = model.hidden_states(tokens)
        hidden.append(model.final_layer_norm(hidden[-1]))
        scored = targets != IGNORE                                                                          # (B, T)
        log_p = -nn.functional.cross_entropy(model.embed_out(hidden[-1][scored]).float(), targets[scored], reduction="none").cpu()
        for b, ((n, o), part) in enumerate(zip(chunk, log_p.split(scored.sum(1).tolist()))):
            log_probs[n, o] = part.sum()
            if o == 0:
                start = len(probe.prompts[n]) - 1
                x = torch.stack([h[b, start:start + len(part) + 1] for h in hidden]).float().cpu()      # (L + 2, A + 1, D)
                for position, state in zip(POSITIONS, (x[:, 0], x[:, :-1].mean(1), x[:, -1])):
                    states[position].append(state)
    return {position: torch.stack(found, 1) for position, found in states.items()}, log_probs


def rankme_squared_centred(features):
    """Effective rank as another study has it (arXiv 2509.23024): entropy of the *squared* singular values of *centred* features.
    (N, D) -> float, dimensions; lower than RankMe (25 beside 44 on one state), so the two are never to be mixed."""
    x = features.double()
    s = torch.linalg.svdvals(x - x.mean(0))
    return measures.effective_rank(s ** 2) if s[0] > 1e-12 * x.abs().max() else 1.0


def rankme_interval(features, generator, draws=200):
    """Bootstrap interval (95%) of RankMe for other items of the same kind, equally many: [low, high].  features (N, D).
    Resampling repeats rows, and repeated rows have a lower rank, so the plain percentiles lie below the value itself (with 30
    rows by up to 40%).  What is kept of them is their spread: value * q / median, for the 2.5% and the 97.5% quantile q, and at most N.
    Seen on normal features of known spectrum: it covers 91% at a rank of 1.6, and near N, where it is too wide, all."""
    x = torch.linalg.qr(features.double().T).R.T               # (N, N or less): the same inner products in fewer columns
    picks = torch.randint(len(x), (draws, len(x)), generator=generator)
    low, median, high = measures.rankme_many(x[picks]).quantile(torch.tensor([0.025, 0.5, 0.975]).double()).tolist()
    return [min(measures.rankme(x) * q / median, float(len(x))) for q in (low, high)]


# Of the loss on the right completions, by the functions of measures.py, the LLC with the short chains of a sweep.  They copy the model, want
# float32, and take far more time than all the rest: some 40, 300 and 1,400 times what reading a probe set takes (seen at 14M on two CPU cores).
EXTRAS = {"gradient_rank": {}, "hessian_top": {}, "llc": {"num_chains": 2, "num_draws": 100, "num_burnin_steps": 50}}


def probe_row(model, probe, extras=()):
    """Everything measured on one probe set at one checkpoint, as a dict for the row's "levels".  The model is left as it is.
    rankme and rankme_squared_centred: {position: [one per layer from the embedding on, then final_norm]}; rankme_interval: {position: of the
    last block}; margin: log p(right) - log p(best wrong one), nats; distinct: different prompts, which bound RankMe at "first".
    bfloat16 is noise in all directions: it lifts a collapsed rank (by some 8% in a small model), so use one dtype for a whole series."""
    states, log_probs = read_probe(model, probe)
    generator = torch.Generator().manual_seed(0)
    margin = (log_probs[:, 0] - log_probs[:, 1:].amax(1)).double()
    lengths = torch.tensor([len(options[0]) for options in probe.options])
    row = {"n": len(margin), "chance": probe.chance, "distinct": len(set(map(tuple, probe.prompts))),
           "accuracy": float((margin > 0).double().mean()), "log_prob": float(log_probs[:, 0].mean()),
           "loss": float((-log_probs[:, 0] / lengths).mean()),
           "margin": float(margin.mean()), "margin_stderr": float(margin.std() / len(margin) ** 0.5),
           "rankme": {k: measures.rankme_many(x).tolist() for k, x in states.items()},
           "rankme_squared_centred": {k: [rankme_squared_centred(layer) for layer in x] for k, x in states.items()},
           "rankme_interval": {k: rankme_interval(x[-2], generator) for k, x in states.items()}}
    data = right_padded([(p, o[0]) for p, o in zip(probe.prompts, probe.options)], model.embed_in.weight.device)
    for name in extras:
        value = getattr(measures, name)(model, example_loss, data, **EXTRAS[name])
        row[name] = value if isinstance(value, float) else {k: v for k, v in vars(value).items() if isinstance(v, (int, float, bool))}
    return row


def measure(model, steps, probes, manifest, cache_dir="pythia-cache", done=(), extras=(), dtype=torch.float32, device="cpu",
            progress=lambda step, number, of: None):
    """Measure checkpoints one after another: yields a row for metrics.jsonl for each of `steps` that is not among the rows `done`,
    so that the same call with the rows that were kept goes on where a killed one stopped.  A checkpoint with the fingerprint of an earlier
    one is not measured again: its row repeats the other's numbers and says "twin_of".  progress: called with (step, number, of how many).
    Raises RuntimeError at once for a disk or a hub that fails; and at the end, all others being done, for the checkpoints that could not
    be measured (missing, damaged, refused; or a step 0 that does not behave like an untrained network), by name and reason."""
    rows, failed = {row["step"]: row for row in done}, []
    for number, step in enumerate(steps):
        progress(step, number, len(steps))
        if step in rows:
            continue
        start = time.monotonic()
        try:
            for snapshot in snapshots(model, [step], manifest, cache_dir, dtype, device):
                row = {"step": step, **snapshot.state()}
                twin = next((r for r in rows.values() if r["fingerprint"] == row["fingerprint"]), None)
                row |= {"twin_of": twin["step"], "levels": twin["levels"]} if twin else {
                    "levels": {name: probe_row(snapshot.model, probe, extras) for name, probe in probes.items()}}
                loss = sum(level["loss"] for level in row["levels"].values()) / len(probes)
                guess = math.log(snapshot.model.config.vocab_size)              # 10.8 for Pythia
                if step == 0 and abs(loss / guess - 1) > 0.1:
                    raise ValueError(f"step 0 has loss {loss:.2f} where an untrained network guesses, {guess:.2f}: these are weights of another "
                                     "step; leave it out")
            rows[step] = row | {"wall_s": time.monotonic() - start}
            yield rows[step]
        except ValueError as error:
            failed.append(str(error))
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(steps)} checkpoints could not be measured, the others are done: {'; '.join(failed)}")


# ---------------------------------------------------------------------------------------------------------------
# What a measurement costs, said before anything is downloaded

Plan = namedtuple("Plan", "steps download disk memory flop rate seconds")


def forward_flop(config, probe):
    """2 FLOP for each weight of the blocks and token, 4 T D a block for attention, the output matrix where a completion is predicted."""
    D, L, flop = config.n_embd, config.n_layer, 0
    for prompt, completion in ((p, o) for p, options in zip(probe.prompts, probe.options) for o in options):
        T = len(prompt) + len(completion)
        flop += T * L * D * (8 * D + 4 * config.n_inner + 4 * T) + 2 * D * config.vocab_size * len(completion)
    return flop


def forward_rate(config, probe, dtype, device):
    """FLOP/s of `read_probe` with two of the model's blocks: the second of two readings, for the first pays for what is set up once."""
    with torch.device("meta"):
        model = NeoX(replace(config, n_layer=2)).to(dtype)
    for p in model.to_empty(device=device).parameters():
        nn.init.constant_(p, 0.01)
    for _ in range(2):
        start = time.perf_counter()
        read_probe(model, probe)
    return forward_flop(model.config, probe) / (time.perf_counter() - start)


def plan(config, manifest, steps, probes, dtype=torch.float32, device="cpu", rate=None):
    """What measuring these steps with these probes takes.  config: of `read_config`; rate: FLOP/s, measured if not given.
    -> Plan(steps; bytes to download; bytes on disk at any one time; bytes of memory: weights, the largest once more while it is converted, one
    forward, and 0.4 GB of Python and torch; FLOP of one checkpoint's forwards; rate; seconds: forwards, and 2 s a GB to hash, read and convert).
    Not counted: the download, the SVDs of RankMe (a tenth of the time or less; at 14M a third), and `extras` (see there)."""
    D, V, L, width = config.n_embd, config.vocab_size, config.n_layer, dtype.itemsize
    T = max(len(p) + len(o) for probe in probes.values() for p, options in zip(probe.prompts, probe.options) for o in options)
    weights = 2 * V * D + L * D * (4 * D + 2 * config.n_inner)                                     # the biases are nothing beside them
    activations = 16 * T * (D * (L + 12) + 3 * T * config.n_head) * width + 16 * 8 * V * 4
    sizes = [sum(f.size for f in chosen(manifest[step])) for step in steps]
    flop = sum(forward_flop(config, probe) for probe in probes.values())
    rate = rate or forward_rate(config, next(iter(probes.values())), dtype, device)
    return Plan(tuple(steps), sum(sizes), max(sizes), int(weights * width + 4 * V * D + activations + 4e8), flop, rate,
                len(steps) * flop / rate + 2e-9 * sum(sizes))


# ---------------------------------------------------------------------------------------------------------------
# The published evaluations: behaviour alone, at 27 steps, from the Pythia repository

EvalRow = namedtuple("EvalRow", "model step task metric value stderr")

# Accuracy of the best answer that ignores the question.  ARC has a few questions with three or five options; the answer to 66 of Winograd's
# 104 (wsc) is the same, and always that one, or always the other, is what one sees of these models.
CHANCE = {"lambada_openai": 0.0, "sciq": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "logiqa": 0.25, "piqa": 0.5, "winogrande": 0.5,
          "wsc": 66 / 104, "mmlu_mean57": 0.25}


def read_evals(folder):
    """lm-evaluation-harness JSON, a file for each model and step, anywhere below `folder` -> list of EvalRow, sorted.
    The step is in the file's name (..._step<N>.json); the model is a folder "pythia-<size>" above it, or else what precedes "_step".
    The 57 subjects of MMLU (hendrycksTest-*), where all are there, also give mmlu_mean57: their mean, and its standard error.
    Raises ValueError for a folder without such files, a file that is none, or two that give different values for one thing (zero-shot
    beside five-shot, say)."""
    found = {}
    for path in sorted(Path(folder).rglob("*.json")):
        named = re.fullmatch(r"(.*?)[_-]?step(\d+)", path.stem)
        if named is None:
            continue
        above = [p.name for p in path.resolve().parents if re.fullmatch(r"pythia-\d[\w.-]*", p.name)]
        model = above[0] if above else "pythia-" * (named[1] in SIZES) + named[1] or path.parent.name
        try:
            results = {task: {k.partition(",")[0]: v for k, v in values.items()}               # newer versions write "acc,none"
                       for task, values in json.loads(path.read_text())["results"].items()}
            subjects = [v for task, v in results.items() if task.startswith("hendrycksTest-")]
            if len(subjects) == 57:
                results["mmlu_mean57"] = {"acc": sum(v["acc"] for v in subjects) / 57,
                                          "acc_stderr": sum(v["acc_stderr"] ** 2 for v in subjects) ** 0.5 / 57}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: not a result file of lm-evaluation-harness ({type(error).__name__}: {error})") from None
        for task, metric, value in ((t, m, v) for t, values in results.items() for m, v in values.items()):
            if isinstance(value, (int, float)) and not metric.endswith("_stderr"):
                error = results[task].get(metric + "_stderr")
                row = EvalRow(model, int(named[2]), task, metric, float(value), error if isinstance(error, float) else None)
                if found.setdefault(row[:4], row) != row:
                    raise ValueError(f"{folder}: two values for {task} ({metric}) of {model} at step {row.step}, the second in {path.name}; give "
                                     "the folder of one kind of evaluation, zero-shot say")
    if not found:
        raise ValueError(f"{folder}: no files named ..._step<N>.json; expected results of lm-evaluation-harness")
    return sorted(found.values(), key=lambda row: row[:4])


def between(steps, step):
    """An event seen at a checkpoint lies behind the one before it: (after, by).  None stays None; what the first one shows is after 0.

    >>> between([512, 1000, 3000], 3000)
    (1000, 3000)
    """
    return None if step is None else (max([0, *(s for s in steps if s < step)]), step)


EvalEvent = namedtuple("EvalEvent", "model task chance emergence best best_step last stderr")


def by_size(model):
    """Sorts pythia-70m before pythia-1b."""
    size = re.search(r"(\d+(?:\.\d+)?)([mb])", model)
    return (float(size[1]) * (1000 if size[2] == "b" else 1) if size else 0, model)


def evals_emergence(rows, metric="acc", threshold=0.05, persistence=3, chance=CHANCE):
    """When each task emerges in each model, from published accuracies -> list of EvalEvent, by task, then by size; emergence: (after, by), after
    the one checkpoint, by the next, or None for never; stderr: of the last accuracy.
    Emerged: `persistence` checkpoints in a row with (accuracy - chance) / (1 - chance) >= threshold, lower than elsewhere because most of these
    tasks end below 0.3, and accuracy >= chance + 3 standard errors.  What the untrained network scores, by a liking for short answers say
    (PIQA: .535), takes the place of chance where it is higher."""
    events = []
    for task in chance:
        for model in sorted({r.model for r in rows if (r.task, r.metric) == (task, metric)}, key=by_size):
            steps, values, errors = zip(*((r.step, r.value, r.stderr) for r in rows if (r.model, r.task, r.metric) == (model, task, metric)))
            base = max(chance[task], values[0] if steps[0] == 0 else 0)
            clear = [v if v - base >= 3 * (e or 0) else base for v, e in zip(values, errors)]
            emerged = between(steps, emergence.emergence_step(steps, clear, base, threshold, persistence))
            best = max(range(len(values)), key=values.__getitem__)
            events.append(EvalEvent(model, task, base, emerged, values[best], steps[best], values[-1], errors[-1]))
    return events


def panels(names, last):
    """A figure with a panel for each name, training steps on a logarithmic axis that has room for 0 -> (figure, {name: axes})."""
    columns, lines = min(3, len(names)), math.ceil(len(names) / 3)
    figure = Figure(figsize=(4.2 * columns, 3 * lines), layout="constrained")
    figure.supxlabel("training step")
    axes = {name: figure.add_subplot(lines, columns, i, title=name, xlim=(0, last)) for i, name in enumerate(names, 1)}
    for ax in axes.values():
        ax.set_xscale("symlog", linthresh=1)
    return figure, axes


def evals_figure(rows, events):
    """A panel for each task: accuracy along training for every model, with its standard error; chance dashed; a dot where it emerges."""
    figure, axes = panels(list(dict.fromkeys(e.task for e in events)), max(r.step for r in rows))
    models = sorted({e.model for e in events}, key=by_size)
    for e in events:
        ax, which = axes[e.task], models.index(e.model)
        color, line = emergence.PALETTE[which % 8], ("-", "--", ":")[which % 3]
        steps, values, errors = zip(*((r.step, r.value, r.stderr or 0) for r in rows if (r.model, r.task, r.metric) == (e.model, e.task, "acc")))
        ax.errorbar(steps, values, errors, color=color, lw=1.2, ls=line, elinewidth=0.6, label=e.model)
        ax.axhline(CHANCE.get(e.task, e.chance), color="0.5", ls="--", lw=0.8)
        if e.emergence:
            ax.plot(e.emergence[1], values[steps.index(e.emergence[1])], "o", color=color, ms=6)
    figure.axes[0].legend(fontsize=7)
    figure.supylabel("accuracy (dot: emerges)")
    return figure


# ---------------------------------------------------------------------------------------------------------------
# Geometry against behaviour, and the verdict on C9

Order = namedtuple("Order", "task onset emergence lead verdict collapse recovery compression")
Comparison = namedtuple("Comparison", "orders steps left_out z information verdict")


def compare(rows, audited=None, choices=emergence.Choices()):
    """Does each task's geometry move before its behaviour?  rows: of metrics.jsonl; audited: an Audit
    -> Comparison(an Order for each task; the steps that were used; {step left out: why}; the risk-set test's z and information; a verdict).
    Order: onset, in which RankMe begins to recover from its floor, and emergence, (after, by) or None; lead, (low, high) steps, ends excluded,
    positive if geometry is first; verdict: leads, lags, unresolved (0 lies in the interval), never (one of the two did not happen); and the
    global patterns, each beyond the bootstrap intervals: collapse, the floor lies below the start; recovery, a later peak above the floor;
    compression, the end below that peak.
    Checkpoints that the audit leaves out are dropped, and both of two twins, one of which carries a wrong name (of 0 and 1, which are rightly
    the same, only 1).  Onset and emergence lie somewhere between two neighbouring checkpoints of those that remain, so a lead is an interval.
    Raises ValueError where fewer than 4 checkpoints remain."""
    rows, c, orders = sorted(rows, key=lambda row: row["step"]), choices, []
    left_out = {row["step"]: audited.left_out[row["step"]] for row in rows if audited and row["step"] in audited.left_out}
    for pair in ((row["step"], row["twin_of"]) for row in rows if "twin_of" in row):
        for step, other in [(1, 0)] if set(pair) == {0, 1} else [pair, pair[::-1]]:
            left_out.setdefault(step, f"same weights as step {other}")
    rows = [row for row in rows if row["step"] not in left_out]
    steps = [row["step"] for row in rows]
    if len(steps) < 4:
        raise ValueError(f"{len(steps)} checkpoints with weights of their own, and at least 4 are needed: measure more steps")
    for task, first in rows[0]["levels"].items():
        rank, spread, accuracy = (emergence.curve(rows, task, *path)[1] for path in
                                  (("rankme", c.position, c.layer), ("rankme_interval", c.position), ("accuracy",)))
        onset = between(steps, emergence.collapse(steps, rank, c.smoothing, c.rise, c.persistence).onset_step)
        emerged = between(steps, emergence.emergence_step(steps, accuracy, first["chance"], c.threshold, c.persistence, first["n"]))
        lead = (emerged[0] - onset[1], emerged[1] - onset[0]) if onset and emerged else None
        verdict = "never" if lead is None else "leads" if lead[0] >= 0 else "lags" if lead[1] <= 0 else "unresolved"
        low = min(range(len(rank)), key=rank.__getitem__)
        peak = max(range(low, len(rank)), key=rank.__getitem__)
        orders.append(Order(task, onset, emerged, lead, verdict, spread[low][1] < spread[0][0],
                            spread[peak][0] > spread[low][1], spread[-1][1] < spread[peak][0]))
    z, information = emergence.risk_set_test([o.onset and o.onset[1] for o in orders], [o.emergence and o.emergence[1] for o in orders])
    return Comparison(tuple(orders), tuple(steps), left_out, z, information, c9_verdict(orders, steps, z, information))


def c9_verdict(orders, steps, z, information):
    """C9 in two sentences: are there global patterns, and are there precursors of single tasks?  The second needs the risk-set test of
    emergence.py: an onset common to all tasks precedes whatever emerges later, and an information below 5 decides nothing."""
    count = {name: sum(getattr(o, name) for o in orders) for name in ("collapse", "recovery", "compression")}
    first = (f"cannot tell, for the first checkpoint with weights of its own is step {steps[0]}" if steps[0] > 1 else
             "replicate, as C9 says" if min(count["collapse"], count["recovery"]) > len(orders) / 2 else "do not replicate, against C9")
    second = (f"cannot tell, the information is {information:.1f} where 5 are needed" if not information >= 5 else
              f"found, against C9 (z = {z:.1f})" if z > 1.96 else f"not found, as C9 says (z = {z:.1f})")
    seen = ", ".join(f"{name} in {k} of {len(orders)}" for name, k in count.items())
    kinds = ", ".join(f"{kind} in {sum(o.verdict == kind for o in orders)}" for kind in ("leads", "lags", "unresolved", "never"))
    return f"Global patterns: {first} ({seen} probe sets). Precursors of single tasks: {second} (geometry {kinds})."


def compare_figure(rows, comparison, choices=emergence.Choices()):
    """A panel for each probe set: RankMe with its interval, accuracy, and the two intervals in which onset and emergence lie."""
    rows, steps = sorted((row for row in rows if row["step"] in comparison.steps), key=lambda row: row["step"]), comparison.steps
    figure, axes = panels([o.task for o in comparison.orders], steps[-1])
    for o in comparison.orders:
        left, right = axes[o.task], axes[o.task].twinx()
        curve = lambda *path: emergence.curve(rows, o.task, *path)[1]
        left.plot(steps, curve("rankme", choices.position, choices.layer), color=emergence.RANKME)
        left.fill_between(steps, *zip(*curve("rankme_interval", choices.position)), color=emergence.RANKME, alpha=0.2, lw=0)
        right.plot(steps, curve("accuracy"), color=emergence.ACCURACY)
        right.set_ylim(0, 1.02)
        for event, color in ((o.onset, emergence.RANKME), (o.emergence, emergence.ACCURACY)):
            if event:
                left.axvspan(*event, color=color, alpha=0.15, lw=0)
        left.set_title(f"{o.task}: {o.verdict}", fontsize=10)
    figure.supylabel("RankMe, onset (blue); accuracy, emergence (orange)", fontsize=9)
    return figure
