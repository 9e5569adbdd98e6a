"""Chapter 8: pythia.  The same question, asked of language models that others trained.

Pythia (Biderman et al. 2023, arXiv 2304.01373) is a family of language models with 154 public
checkpoints along training: steps 0, 1, 2, 4 ... 512, 1000, 2000 ... 143000.  Each is a branch
"step<N>" of a repository on the hub.  Billa 2026 (arXiv 2602.15997) measured three sizes.  Claim
C9: the global patterns replicate (the representation collapses, then recovers), but no task's
geometry announces when that task emerges.

A branch may hold the weights of another step: 86 of the 154 of the 2.8B model are reported to
(issues 195, 205 and 206 of Pythia's repository).  So this chapter goes:

    manifest -> audit -> plan -> snapshots -> sweep.record(ProbeMeasure) -> compare -> a verdict
                                (download, verify, load, delete)

The library transformers loads the models, so GPT-2, OLMo and Llama can be read as well.  This file
trains, draws and prints nothing, and writes no run directory.  It needs the extra `pythia`.

In small: `main` and the last two steps serve one file.  One step must be wrong, but which?
>>> one, end = [("model.safetensors", 9, "aa")], [("model.safetensors", 9, "ff")]
>>> audit({0: one, 142000: end, 143000: end, "main": end}).left_out[142000]
'model.safetensors is also that of main and 1 more'

Letters for shapes:  B rows, T tokens, D width, L blocks, V vocabulary, C columns that are read,
N items of a probe set, O completions of an item, A tokens of a completion.
"""
import contextlib
import errno
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import time
from collections import namedtuple
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import torch
import torch.nn as nn

import claims
import emergence
import measures
from models import IGNORE, Batch, Snapshot, example_loss
from sweep import Failed


def extra(module):
    """A module of the extra `pythia`, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{module} is missing: pip install '.[pythia]'") from None


# A full disk, and a hub that does not answer: the libraries derive their errors from these.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ANSWER = {"ConnectionError", "TransportError", "LocalEntryNotFoundError"}


@contextlib.contextmanager
def explained(what):
    """A library's error in its own words, with what it was about and what to do.
    Failed: the disk or the connection.  ValueError: this file is absent, damaged or refused."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        words = " ".join(str(error).split())[:300] or type(error).__name__
        if "UnpicklingError" in names:                          # torch's advice is to run it anyway
            words = "refused, for it may hold code"
        if getattr(error, "errno", None) in DISK_FULL or names & NO_ANSWER:
            raise Failed(f"{what}: {words}; check the disk and the connection") from error
        raise ValueError(f"{what}: {words}; try again, or leave it out") from error


# ------------------------------------------------------------------------------------------------
# The hub: which files there are, and which steps hold weights of their own

# What weight files are called, in order of preference: one or several, safetensors or bin.
LAYOUTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")

# size: bytes.  sha256: of the content; "git:..." where the hub states none.
WeightFile = namedtuple("WeightFile", "file size sha256 commit", defaults=(0, "", ""))
Audit = namedtuple("Audit", "own left_out groups")


def repository(model) -> str:
    """"160m" or "pythia-160m" -> "EleutherAI/pythia-160m".  "owner/name" stays what it is."""
    return model if "/" in model else f"EleutherAI/pythia-{model.removeprefix('pythia-')}"


def manifest(model, progress=None) -> dict:
    """Which weight files each branch serves, from metadata alone: {step: (WeightFile, ...)}.
    "main" is the last one.  progress: called with (branches read, all branches).
    Raises ValueError for an unknown model, Failed if the hub does not answer."""
    with explained(f"{model}: the list of branches"):
        hub = extra("huggingface_hub").HfApi()
        refs = hub.list_repo_refs(repository(model)).branches
    commits = {ref.name: ref.target_commit for ref in refs}
    steps = sorted(int(name[4:]) for name in commits if re.fullmatch(r"step\d+", name))
    branches = {step: commits[f"step{step}"] for step in steps} | {"main": commits["main"]}
    listing = {}
    for step, commit in branches.items():
        with explained(f"{model}: the files of step {step}"):
            entries = list(hub.list_repo_tree(repository(model), revision=commit))
        files = []
        for entry in entries:
            if any(fnmatch(entry.path, layout) for layout in LAYOUTS):
                sha256 = entry.lfs.sha256 if entry.lfs else "git:" + entry.blob_id
                files.append(WeightFile(entry.path, entry.size, sha256, commit))
        listing[step] = tuple(files)
        if progress:
            progress(len(listing), len(branches))
    return listing


def files_to_read(files) -> list:
    """Of a branch's WeightFiles those of the first layout that it has."""
    for layout in LAYOUTS:
        found = [f for f in files if fnmatch(f.file, layout)]
        if found:
            return found
    return []


def audit(manifest) -> Audit:
    """Which steps of a model really hold weights of their own.
    manifest: {step: files, "main": files}; a file is a WeightFile or (file, size, sha256).
    -> Audit(steps that do; {step: why not}; (file, sha256, branches) of what several serve).
    A step is left out if one of its files, a shard included, is also that of `main` or of another
    step.  Two pairs may share, if nobody else does: steps 0 and 1 (the first step of the warm-up
    has learning rate 0), and the last step and `main`."""
    steps = sorted(step for step in manifest if step != "main")
    holders = {}                                                # {sha256: {branch: file name}}
    for step in ("main", *steps):
        for file, _, sha256, *_ in manifest.get(step, ()):
            holders.setdefault(sha256, {})[step] = file
    groups = [(list(names.values())[-1], sha256, tuple(names))
              for sha256, names in holders.items() if len(names) > 1]
    groups.sort(key=lambda group: len(group[2]), reverse=True)
    rightly = ((0, 1), ("main", *steps[-1:]))
    shared = {sha256 for _, sha256, branches in groups if branches not in rightly}
    left_out = {}
    for step in steps:
        files = [sha256 for _, _, sha256, *_ in manifest[step]]
        wrong = [sha256 for sha256 in files if sha256 in shared]
        if not files:
            left_out[step] = "no weight file"
        elif wrong:
            names = holders[wrong[0]]
            first, *others = [branch for branch in names if branch != step]
            left_out[step] = f"{names[step]} is also that of {first}"
            if others:
                left_out[step] += f" and {len(others)} more"
            if len(files) > 1:
                left_out[step] += f" ({len(wrong)} of {len(files)} files)"
    return Audit(tuple(s for s in steps if s not in left_out), left_out, tuple(groups))


def parse_steps(text, available) -> tuple:
    """"all", or numbers and ranges first:last:stride -> the steps, each one of `available`.
    >>> parse_steps("0,512,1000:3000:1000", [0, 1, 512, 1000, 2000, 3000])
    (0, 512, 1000, 2000, 3000)"""
    if text == "all":
        return tuple(available)
    asked = set()
    try:
        for part in text.split(","):
            first, *rest = map(int, part.split(":"))
            asked |= set(range(first, rest[0] + 1, *rest[1:])) if rest else {first}
    except (ValueError, TypeError):
        asked = {text}
    wrong = asked - set(available)
    if wrong or not asked:
        raise ValueError(f"no step {min(wrong, default=text)}: expected all, or numbers and ranges "
                         "first:last:stride, with commas between")
    return tuple(sorted(asked))


def fetch(model, file, cache_dir, revision="main") -> Path:
    """Download one file of one revision into a folder of our own -> its path."""
    extra("huggingface_hub.utils").disable_progress_bars()
    with explained(f"{model}: {file} of revision {revision[:12]}"):
        return Path(extra("huggingface_hub").HfApi().hf_hub_download(
            repository(model), file, revision=revision, cache_dir=cache_dir))


def delete_cached(model, cache_dir):
    """Delete what cache_dir holds of a model: what was loaded, and what a kill left behind."""
    user = extra("huggingface_hub.constants").HF_HUB_CACHE
    if Path(cache_dir).resolve() == Path(user).resolve():
        raise ValueError(f"{cache_dir} is the hub's own cache: give another folder")
    folder = f"models--{repository(model).replace('/', '--')}"
    shutil.rmtree(Path(cache_dir) / folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------
# The model, and one checkpoint after another

class LanguageModel(nn.Module):
    """A causal language model of transformers, called as models.GPT is: tokens -> logits.
    Attention looks back only, so rows that are padded on the right need no mask."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, tokens):                                  # (B, T) int64 -> (B, T, V)
        return self.model(input_ids=tokens, use_cache=False).logits

    def read(self, tokens, columns):
        """tokens (B, T), columns (C,) -> (L + 2 states (B, T, D), logits (B, C, V)).
        States: the embedding, the residual stream after each block, and the last one's final norm.
        transformers does not return the state before that norm: a hook reads it."""
        last_block = []

        def keep(module, inputs, output):
            last_block.append(output[0] if isinstance(output, tuple) else output)

        # The blocks are the longest list of modules, whatever its name.
        blocks = max((m for m in self.model.modules() if isinstance(m, nn.ModuleList)), key=len)
        hook = blocks[-1].register_forward_hook(keep)
        try:
            found = self.model(input_ids=tokens, use_cache=False, output_hidden_states=True,
                               logits_to_keep=columns)
        finally:
            hook.remove()
        *before, final_norm = found.hidden_states
        return [*before, *last_block, final_norm], found.logits


def load_model(folder, dtype=torch.float32, device="cpu") -> LanguageModel:
    """The model in `folder`.  No code from there is run.
    Raises ValueError if it cannot be read, or a tensor is missing, left over or misshapen."""
    transformers = extra("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()            # what is wrong is raised below
    with explained("the weights"):                              # "eager" has second derivatives
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True)
    # transformers fills gaps with random numbers, and goes on.  GPT-2's old files have a constant.
    left_over = [name for name in found["unexpected_keys"] if not name.endswith(".masked_bias")]
    misshapen = [name for name, *_ in found["mismatched_keys"]]
    wrong = [*found["missing_keys"], *left_over, *misshapen]
    if wrong:
        raise ValueError(f"the weights: {wrong[0]} is missing, left over or misshapen")
    for parameter in model.parameters():                        # their files are mapped, not read:
        parameter.data = parameter.data.clone()                 # a copy outlives its file
    return LanguageModel(model.to(device)).eval()


def fingerprint(model) -> str:
    """A sha256 over the weights, not their file: no buffers, and -0.0 is read as 0.0."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        plain = (parameter.detach().cpu() + 0).flatten()        # -0.0 + 0 is 0.0
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def download_and_load(model, files, cache_dir, dtype, device):
    """One checkpoint.  ValueError: missing, damaged, refused, or not as the manifest says."""
    files = files_to_read(files)
    if not files:
        raise ValueError("the hub has no weight file")
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    need, free = sum(f.size for f in files), shutil.disk_usage(cache_dir).free
    if free < 1.02 * need:
        raise Failed(f"the disk is too full: {need / 1e9:.2f} GB needed, {free / 1e9:.2f} free")
    folder = fetch(model, "config.json", cache_dir, files[0].commit).parent
    if "-of-" in files[0].file:                                 # which shard holds what
        index = re.sub(r"-\d+-of-\d+", "", files[0].file) + ".index.json"
        fetch(model, index, cache_dir, files[0].commit)
    for f in files:
        with open(fetch(model, f.file, cache_dir, f.commit), "rb") as file:
            found = extra("huggingface_hub.utils.sha").sha_fileobj(file).hex()
        if found != f.sha256 and not f.sha256.startswith("git:"):
            raise ValueError(f"{f.file} has sha256 {found[:12]}, the hub says {f.sha256[:12]}")
    return load_model(folder, dtype, device)


def snapshots(model, steps, manifest, cache_dir, dtype=torch.float32, device="cpu", state=None):
    """One checkpoint after another as a Snapshot: download, check, load, delete, yield.
    state: what state() of the last Snapshot returned: {"done": steps to skip, "fingerprint"}.
    A model is emptied when the next one is asked for: one is in memory, and none on the disk.
    Raises Failed at once if the disk is full or the hub does not answer.  What is missing, damaged
    or refused is passed over, and raises Failed in the end."""
    done, failed = list(state["done"]) if state else [], []
    for step in steps:
        if step in done:
            continue
        delete_cached(model, cache_dir)
        try:
            net = download_and_load(model, manifest.get(step, ()), cache_dir, dtype, device)
        except ValueError as error:
            failed.append(f"step {step} of {model}: {error}")
            continue
        finally:
            delete_cached(model, cache_dir)
        done.append(step)
        now = {"done": list(done), "fingerprint": fingerprint(net)}
        yield Snapshot(step, net, None, now.copy)               # state() is a copy of `now`
        net.to("meta")                                          # whoever holds it holds no memory
    if failed:
        raise Failed(f"{len(failed)} of {len(steps)} checkpoints failed: {'; '.join(failed)}")


# ------------------------------------------------------------------------------------------------
# Probe sets: items on which geometry and behaviour are both measured

# Texts.  A completion begins with a space, to be a token of its own.  wrong: one or several.
Item = namedtuple("Item", "prompt right wrong")

# Token ids.  N prompts; N tuples of completions, the right one first.  chance: the mean of 1 / O.
ProbeSet = namedtuple("ProbeSet", "prompts options chance")


def read_probes(path) -> list:
    """A file of items -> list of Items.  Raises ValueError naming the file and the item.
    Three layouts are known by their fields: {"prompt", "right", "wrong"}, ours (.jsonl), "wrong" a
    string or a list; and those of `bbh_item` (.json) and `blimp_item` (.jsonl)."""
    items = []
    try:
        content = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix == ".json":
            entries = json.loads(content)["examples"]
        else:
            entries = [json.loads(line) for line in content.splitlines() if line.strip()]
        targets = sorted({entry["target"] for entry in entries if "target" in entry})
        for entry in entries:
            if "input" in entry:
                items.append(bbh_item(entry, targets))
            elif "sentence_good" in entry:
                items.append(blimp_item(entry))
            else:
                wrong = entry["wrong"]
                wrong = [wrong] if isinstance(wrong, str) else wrong
                items.append(Item(entry["prompt"], entry["right"], tuple(wrong)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no probes, at item {len(items) + 1}: {error!r}") from None
    return items


def bbh_item(entry, targets):
    """BIG-Bench Hard, {"input", "target"}: "(A)" against the other letters under "Options:".
    Without letters: against the other targets of the file, ten at most (yes and no, say)."""
    options = re.findall(r"^(\([A-Z]\))", entry["input"], re.M)
    if not options and len(targets) <= 10:
        options = targets
    if entry["target"] not in options or len(options) < 2:
        raise ValueError(f"no options with the target {entry['target']!r} among them")
    wrong = tuple(" " + option for option in options if option != entry["target"])
    return Item(entry["input"] + "\nAnswer:", " " + entry["target"], wrong)


def blimp_item(entry):
    """BLiMP, {"sentence_good", "sentence_bad"}: the words with which both begin are the prompt.
    So the difference of log-probabilities is that of the whole sentences."""
    good = re.findall(r" ?[^ ]+", entry["sentence_good"])
    bad = re.findall(r" ?[^ ]+", entry["sentence_bad"])
    same = len(os.path.commonprefix([good, bad]))
    return Item("".join(good[:same]), "".join(good[same:]), ("".join(bad[same:]),))


def tokenizer(path):
    """A tokenizer.json -> the function text -> list of ids."""
    with explained(path):
        encoder = extra("tokenizers").Tokenizer.from_file(str(path))
    return lambda text: encoder.encode(text, add_special_tokens=False).ids


def encode(sets, tokenizer, n=None) -> dict:
    """{name: list of Items} -> {name: ProbeSet}, each of n items spread evenly over the list.
    n: one for all sets, for RankMe cannot exceed it; default, as many as the smallest one has.
    tokenizer: text -> list of ids.  An empty prompt becomes <|endoftext|> (id 0).
    Raises ValueError if a set has fewer than n items, or an item an empty completion."""
    if n is None:
        n = min(len(items) for items in sets.values())
    probes = {}
    for name, items in sets.items():
        if not 1 < n <= len(items):
            raise ValueError(f"probe set {name} has {len(items)} items where {n} are asked for")
        prompts, options = [], []
        for i in range(n):
            item = items[i * len(items) // n]
            prompts.append(tokenizer(item.prompt) or [0])
            options.append(tuple(tokenizer(text) for text in (item.right, *item.wrong)))
        if not all(len(some) > 1 and all(some) for some in options):
            raise ValueError(f"probe set {name}: give a right and a wrong completion, not empty")
        chance = sum(1 / len(some) for some in options) / n
        probes[name] = ProbeSet(tuple(prompts), tuple(options), chance)
    return probes


# ------------------------------------------------------------------------------------------------
# Measuring one checkpoint, and what many of them cost

# Which hidden state of an item is read: the one that predicts the answer's first token; the mean
# of those that predict its tokens; the one at its last token.
POSITIONS = ("first", "answer", "last")
Plan = namedtuple("Plan", "steps download disk memory seconds")


def right_padded(lines, device="cpu") -> Batch:
    """[(prompt, completion)] in ids -> Batch, (B, T) both; targets IGNORE off the completion."""
    tokens, targets = [], []
    for prompt, completion in lines:
        tokens.append(torch.tensor(prompt + completion))
        targets.append(torch.tensor([IGNORE] * (len(prompt) - 1) + completion + [IGNORE]))
    pad = nn.utils.rnn.pad_sequence
    return Batch(pad(tokens, True, 0).to(device), pad(targets, True, IGNORE).to(device))


@torch.no_grad()
def read_probe(model, probe, rows=16):
    """One forward pass for each completion, `rows` at a time -> (states, log_probs).
    states: {position: (L + 2, N, D) float32 on the CPU}, of the right completions.
    log_probs: (N, O) float32, nats, of whole completions, the right one first; else -inf."""
    log_probs = torch.full((len(probe.prompts), max(map(len, probe.options))), -math.inf)
    states = {position: [] for position in POSITIONS}
    lines = [(n, o) for n, options in enumerate(probe.options) for o in range(len(options))]
    for start in range(0, len(lines), rows):
        chunk = lines[start:start + rows]
        texts = [(probe.prompts[n], probe.options[n][o]) for n, o in chunk]
        tokens, targets = right_padded(texts, model.model.device)
        scored = targets != IGNORE                                                  # (B, T)
        columns = scored.any(0).nonzero().flatten()                                 # (C,)
        hidden, logits = model.read(tokens, columns)
        logits = logits[scored[:, columns]].float()             # (tokens of all completions, V)
        log_p = -nn.functional.cross_entropy(logits, targets[scored], reduction="none").cpu()
        parts = log_p.split(scored.sum(1).tolist())
        for b, ((n, o), part) in enumerate(zip(chunk, parts)):
            log_probs[n, o] = part.sum()
            if o == 0:
                first = len(probe.prompts[n]) - 1
                x = torch.stack([h[b, first:first + len(part) + 1] for h in hidden])
                x = x.float().cpu()                                             # (L + 2, A + 1, D)
                states["first"].append(x[:, 0])
                states["answer"].append(x[:, :-1].mean(1))
                states["last"].append(x[:, -1])
    return {position: torch.stack(found, 1) for position, found in states.items()}, log_probs


def rankme_squared_centred(features) -> float:
    """Effective rank as another study has it (arXiv 2509.23024), of *squared*, *centred* features.
        s = singular values of (features - mean row)    p_i = s_i^2 / sum_j s_j^2
        rank = exp(-sum_i p_i log p_i)
    features (N, D).  Unit: dimensions.  It is lower than RankMe: 25 beside 44 on one state."""
    x = features.double()
    s = torch.linalg.svdvals(x - x.mean(0))
    if s[0] <= 1e-12 * x.abs().max():                           # all rows are the same
        return 1.0
    return measures.effective_rank(s ** 2)


def rankme_interval(features, generator, draws=200) -> list:
    """Bootstrap interval (95%) of RankMe for other items of the same kind: [low, high].
        value * q / median        for the 2.5% and the 97.5% quantile q; at most N
    features (N, D).  Resampling repeats rows, which lowers the rank (30 rows: by up to 40%), so
    only the spread is used.  It covers 91% at a rank of 1.6, and all near N."""
    x = torch.linalg.qr(features.double().T).R.T                # the same inner products, N columns
    picks = torch.randint(len(x), (draws, len(x)), generator=generator)
    quantiles = torch.tensor([0.025, 0.5, 0.975]).double()
    low, median, high = measures.rankme_many(x[picks]).quantile(quantiles).tolist()
    value = measures.rankme(x)
    return [min(value * q / median, float(len(x))) for q in (low, high)]


# Measures of the loss on the right completions.  They copy the model, want float32, and take some
# 40, 300 and 1,400 times what reading a probe set takes (14M).
EXTRAS = {"gradient_rank": {}, "hessian_top": {},
          "llc": {"num_chains": 2, "num_draws": 100, "num_burnin_steps": 50}}


def probe_row(model, probe, extras=()) -> dict:
    """All that is measured on one probe set at one checkpoint.  extras: names in EXTRAS.
    margin: log p(right) - log p(best wrong one).  log_prob: of a completion.  loss: of a token.
    rankme, rankme_squared_centred: {position: [embedding, each block, final norm]}.
    rankme_interval: {position: of the last block}.  distinct: prompts, the most for "first".
    bfloat16 lifts a collapsed rank (by some 8%): use one dtype for a series."""
    states, log_probs = read_probe(model, probe)
    generator = torch.Generator().manual_seed(0)
    margin = (log_probs[:, 0] - log_probs[:, 1:].amax(1)).double()                  # (N,)
    lengths = torch.tensor([len(options[0]) for options in probe.options])
    row = {"n": len(margin), "chance": probe.chance,
           "distinct": len({tuple(prompt) for prompt in probe.prompts}),
           "accuracy": float((margin > 0).double().mean()),
           "log_prob": float(log_probs[:, 0].mean()),
           "loss": float((-log_probs[:, 0] / lengths).mean()),
           "margin": float(margin.mean()),
           "margin_stderr": float(margin.std() / len(margin) ** 0.5),
           "rankme": {}, "rankme_squared_centred": {}, "rankme_interval": {}}
    for position, layers in states.items():                                         # (L + 2, N, D)
        row["rankme"][position] = measures.rankme_many(layers).tolist()
        row["rankme_squared_centred"][position] = [rankme_squared_centred(x) for x in layers]
        row["rankme_interval"][position] = rankme_interval(layers[-2], generator)
    lines = [(prompt, options[0]) for prompt, options in zip(probe.prompts, probe.options)]
    data = right_padded(lines, model.model.device)
    for name in extras:
        value = getattr(measures, name)(model, example_loss, data, **EXTRAS[name])
        if not isinstance(value, float):
            value = {k: v for k, v in vars(value).items() if isinstance(v, (int, float, bool))}
        row[name] = value
    return row


class ProbeMeasure:
    """What sweep.record calls at every checkpoint: measure(snapshot) -> columns of its row.
    {"fingerprint", "levels"}; with "twin_of" where an earlier step has the same weights, whose
    numbers are repeated; with "left_out", which says why, where there is nothing to be used.
    state: {fingerprint: columns of a twin's row}, for the run's checkpoint."""

    def __init__(self, probes, extras=()):
        self.probes, self.extras, self.state = probes, extras, {}

    def __call__(self, snapshot) -> dict:
        row = {"fingerprint": snapshot.state()["fingerprint"]}
        if row["fingerprint"] in self.state:
            return row | self.state[row["fingerprint"]]
        try:
            levels = {name: probe_row(snapshot.model, probe, self.extras)
                      for name, probe in self.probes.items()}
            # An untrained network guesses: its loss is near log V, 10.8 for Pythia.
            loss = sum(level["loss"] for level in levels.values()) / len(levels)
            guess = math.log(snapshot.model.model.config.vocab_size)
            if snapshot.step == 0 and abs(loss / guess - 1) > 0.1:
                raise ValueError(f"step 0 has loss {loss:.2f}: weights of another step")
        except ValueError as error:                             # also: weights that are not finite
            return row | {"left_out": str(error), "levels": {}}
        self.state[row["fingerprint"]] = {"twin_of": snapshot.step, "levels": levels}
        return row | {"levels": levels}


def run_config(model, dtype, device, extras, probes) -> dict:
    """What decides the numbers of a measurement.  dtype, device: their names."""
    digests = {name: hashlib.sha256(repr(tuple(probe)).encode()).hexdigest()[:16]
               for name, probe in probes.items()}
    return {"model": repository(model), "dtype": dtype, "device": device,
            "threads": torch.get_num_threads(), "measures": list(extras), "probes": digests}


def plan(path, manifest, steps, probes, dtype=torch.float32, device="cpu") -> Plan:
    """What measuring these steps with these probes takes.  path: of the model's config.json.
    -> Plan(steps; bytes to download; bytes on disk at a time; bytes of memory: weights as in the
    file and as converted, and .5 GB; seconds: forward passes, and 2 s a GB to hash and read).
    Not counted: the download; RankMe (a tenth of the time, at 14M a third); EXTRAS.
    Raises ValueError for an item that is too long for the model."""
    transformers = extra("transformers")
    with explained(path):
        config = transformers.AutoConfig.from_pretrained(
            Path(path).parent, local_files_only=True, trust_remote_code=False)
    longest = max(len(prompt) + max(map(len, options)) for probe in probes.values()
                  for prompt, options in zip(probe.prompts, probe.options))
    if longest > getattr(config, "max_position_embeddings", math.inf):
        raise ValueError(f"an item has {longest} tokens, which is more than the model reads")
    # Models with one block and with three show what a block costs.  Their weights are random.
    deeper, costs = (config.num_hidden_layers - 1) / 2, []
    for blocks in (1, 1, 3):                                    # the first pays what is paid once
        config.num_hidden_layers = blocks
        with torch.device(device):
            model = LanguageModel(transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="eager", trust_remote_code=False))
        start = time.perf_counter()
        for probe in probes.values():                           # four items of each set
            read_probe(model, probe._replace(prompts=probe.prompts[:4], options=probe.options[:4]))
        seconds = (time.perf_counter() - start) * max(1, len(probe.prompts) / 4)
        costs.append((seconds, dtype.itemsize * sum(p.numel() for p in model.parameters())))
    _, one, three = costs
    seconds, weights = (a + deeper * (b - a) for a, b in zip(one, three))
    sizes = [sum(f.size for f in files_to_read(manifest[step])) for step in steps]
    return Plan(tuple(steps), sum(sizes), max(sizes), int(max(sizes) + weights + 5e8),
                len(steps) * seconds + 2e-9 * sum(sizes))


# ------------------------------------------------------------------------------------------------
# The published evaluations: behaviour alone, at 27 steps, from the Pythia repository

EvalRow = namedtuple("EvalRow", "model step task metric value stderr")
EvalEvent = namedtuple("EvalEvent", "model task chance emergence best best_step last stderr")
SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])")                     # 160m, 2.8b


def read_evals(folder) -> list:
    """The lm-evaluation-harness JSON below `folder`, a file for each model and step -> EvalRows.
    The file is called ..._step<N>.json.  The model is a folder "pythia-<size>" above it, or else
    what precedes "_step".  Raises ValueError for a folder without such files, a file that is none,
    or two that give different values for one thing (zero-shot beside five-shot, say)."""
    found = {}
    for path in sorted(Path(folder).rglob("*.json")):
        name = re.fullmatch(r"(.*?)[_-]?step(\d+)", path.stem)
        if name is None:
            continue
        step, above = int(name[2]), [p.name for p in path.resolve().parents]
        named = [parent for parent in above if re.fullmatch(r"pythia-\d[\w.-]*", parent)]
        size = f"pythia-{name[1]}" if SIZE.fullmatch(name[1]) else name[1]
        model = named[0] if named else size or above[0]
        for task, values in evaluation_results(path).items():
            for metric, value in values.items():
                if metric.endswith("_stderr"):
                    continue
                stderr = values.get(metric + "_stderr")
                row = EvalRow(model, step, task, metric, float(value), stderr)
                if found.setdefault(row[:4], row) != row:
                    raise ValueError(f"{path}: two values for {task} ({metric}) at step {step}")
    if not found:
        raise ValueError(f"{folder}: no files named ..._step<N>.json of lm-evaluation-harness")
    return [found[key] for key in sorted(found)]


def evaluation_results(path):
    """{task: {metric: value}} of one result file, what is no number ("N/A") left out.
    Where all 57 subjects of MMLU are there (hendrycksTest-*), mmlu_mean57 is their mean."""
    try:
        results = {}
        for task, values in json.loads(path.read_text())["results"].items():
            # Newer versions write "acc,none" for "acc".
            results[task] = {metric.partition(",")[0]: v for metric, v in values.items()
                             if isinstance(v, (int, float))}
        subjects = [v for task, v in results.items() if task.startswith("hendrycksTest-")]
        if len(subjects) == 57:
            variance = sum(v["acc_stderr"] ** 2 for v in subjects)
            results["mmlu_mean57"] = {"acc": sum(v["acc"] for v in subjects) / 57,
                                      "acc_stderr": variance ** 0.5 / 57}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a result file of lm-evaluation-harness: {error!r}") from None
    return results


def between(steps, step):
    """An event seen at a checkpoint lies behind the one before it: (after, by).  None stays None.
    >>> between([512, 1000, 3000], 3000)
    (1000, 3000)"""
    return None if step is None else (max([0, *(s for s in steps if s < step)]), step)


def model_size(model):
    """A key to sort by: pythia-70m comes before pythia-1b."""
    size = SIZE.search(model)
    return float(size[1]) * {"m": 1, "b": 1000}[size[2]] if size else 0, model


def evals_emergence(rows, metric="acc", threshold=0.05, persistence=3, chance=None) -> list:
    """When each task emerges in each model, from published accuracies -> EvalEvents, by task, size.
    Emerged: `persistence` checkpoints in a row with
        (accuracy - chance) / (1 - chance) >= threshold    and    accuracy >= chance + 3 stderr
    emergence: (after the one checkpoint, by the next), None for never.  stderr: of `last`.
    chance: {task: accuracy}, default CHANCE; or what the untrained network scores, if that is more
    (PIQA: .535).  The threshold is low because most of these tasks end below .3."""
    events = []
    for task, guess in (CHANCE if chance is None else chance).items():
        mine = [row for row in rows if (row.task, row.metric) == (task, metric)]
        for model in sorted({row.model for row in mine}, key=model_size):
            curve = [row for row in mine if row.model == model]
            steps, values = [row.step for row in curve], [row.value for row in curve]
            base = max(guess, values[0] if steps[0] == 0 else 0)
            clear = [row.value if row.value - base >= 3 * (row.stderr or 0) else base
                     for row in curve]                          # accuracy where clearly above base
            emerged = emergence.emergence_step(steps, clear, base, threshold, persistence)
            best = values.index(max(values))
            events.append(EvalEvent(model, task, base, between(steps, emerged), values[best],
                                    steps[best], values[-1], curve[-1].stderr))
    return events


# ------------------------------------------------------------------------------------------------
# Geometry against behaviour, and the verdict on C9

Order = namedtuple("Order", "task onset emergence lead verdict collapse recovery compression")
Comparison = namedtuple("Comparison", "orders steps left_out z information verdict")


def compare(rows, audited=None, specification=None) -> Comparison:
    """Does each task's geometry move before its behaviour?
    rows: of metrics.jsonl.  audited: an Audit.  specification: default claims.Specification().
    -> Comparison(an Order for each task; the steps used; {step left out: why}; the risk-set test's
    z and information; a verdict).  Raises ValueError where fewer than 4 checkpoints remain."""
    specification = specification or claims.Specification()
    by_audit, left_out = audited.left_out if audited else {}, {}
    rows = sorted(rows, key=lambda row: row["step"])
    for row in rows:
        step, twin = row["step"], row.get("twin_of")
        why = by_audit.get(step, row.get("left_out"))
        if why:
            left_out[step] = why
        if twin is not None:                                    # one of the two has a wrong name
            left_out.setdefault(step, f"same weights as step {twin}")
            if (twin, step) != (0, 1):                          # which are rightly the same
                left_out.setdefault(twin, f"same weights as step {step}")
    rows = [row for row in rows if row["step"] not in left_out]
    steps = [row["step"] for row in rows]
    if len(steps) < 4:
        raise ValueError(f"{len(steps)} checkpoints can be used, and at least 4 are needed")
    orders = [task_order(rows, steps, task, specification) for task in rows[0]["levels"]]
    onsets = [order.onset and order.onset[1] for order in orders]
    emergences = [order.emergence and order.emergence[1] for order in orders]
    z, information = emergence.risk_set_test(onsets, emergences)
    verdict = c9_verdict(orders, steps, z, information)
    return Comparison(tuple(orders), tuple(steps), left_out, z, information, verdict)


def task_order(rows, steps, task, specification) -> Order:
    """When one probe set's geometry and behaviour move, and which of them first.
    onset, where RankMe begins to recover from its floor, and emergence: (after, by) or None.
    lead: (low, high) steps, ends excluded, positive if geometry is first.
    verdict: leads, lags, unresolved (0 lies in the interval), never (one did not happen).
    Beyond the bootstrap intervals, collapse: the floor is below the start; recovery: a later peak
    is above the floor; compression: the end is below that peak."""
    s, levels = specification, [row["levels"][task] for row in rows]
    rank = [level["rankme"][s.position][s.layer] for level in levels]
    spread = [level["rankme_interval"][s.position] for level in levels]             # [low, high]
    accuracy, first = [level["accuracy"] for level in levels], levels[0]
    began = emergence.collapse(steps, rank, s.smoothing, s.rise, s.persistence).onset_step
    emerged = emergence.emergence_step(steps, accuracy, first["chance"], s.threshold, s.persistence,
                                       examples=first["n"])
    began, emerged = between(steps, began), between(steps, emerged)
    lead, verdict = None, "never"
    if began and emerged:
        lead = emerged[0] - began[1], emerged[1] - began[0]
        verdict = "leads" if lead[0] >= 0 else "unresolved"
        if lead[1] <= 0:
            verdict = "lags"
    floor = rank.index(min(rank))
    peak = rank.index(max(rank[floor:]), floor)
    return Order(task, began, emerged, lead, verdict,
                 collapse=spread[floor][1] < spread[0][0],
                 recovery=spread[peak][0] > spread[floor][1],
                 compression=spread[-1][1] < spread[peak][0])


def c9_verdict(orders, steps, z, information) -> str:
    """C9 in two sentences: are there global patterns, and precursors of single tasks?
    The second needs the risk-set test of emergence.py: an onset that all tasks share precedes
    whatever emerges later.  An information below 5 decides nothing."""
    count = {name: sum(getattr(order, name) for order in orders)
             for name in ("collapse", "recovery", "compression")}
    if steps[0] > 1:
        first = f"cannot tell, for the first checkpoint with weights of its own is step {steps[0]}"
    elif min(count["collapse"], count["recovery"]) > len(orders) / 2:
        first = "replicate, as C9 says"
    else:
        first = "do not replicate, against C9"
    if not information >= 5:
        second = f"cannot tell, the information is {information:.1f} where 5 are needed"
    elif z > 1.96:
        second = f"found, against C9 (z = {z:.1f})"
    else:
        second = f"not found, as C9 says (z = {z:.1f})"
    seen = ", ".join(f"{name} in {k} of {len(orders)}" for name, k in count.items())
    verdicts = [order.verdict for order in orders]
    kinds = ", ".join(f"{kind} in {verdicts.count(kind)}"
                      for kind in ("leads", "lags", "unresolved", "never"))
    return (f"Global patterns: {first} ({seen} probe sets). "
            f"Precursors of single tasks: {second} (geometry {kinds}).")


# ------------------------------------------------------------------------------------------------
# Data: what a guess scores, and our own probe sets

# Accuracy of the best answer that ignores the question.  A few questions of ARC have three or five
# options.  66 of Winograd's 104 (wsc) have the same answer.
CHANCE = {"lambada_openai": 0.0, "sciq": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25,
          "logiqa": 0.25, "piqa": 0.5, "winogrande": 0.5, "wsc": 66 / 104, "mmlu_mean57": 0.25}


def own_probes() -> dict:
    """Seven sets of 30 items in the spirit of the paper's, which are not public -> {name: Items}.
    Every completion is one token of Pythia's tokenizer.  In five sets each wrong completion is the
    right one of another item, so a liking for certain words gains nothing."""
    sets = {name: [] for name in ("grammar", "semantics", "arithmetic", "copying", "facts",
                                  "reasoning", "text")}
    # The verb agrees with the subject, not with the noun beside it.
    nouns = ("key keys", "dog dogs", "child children", "car cars", "teacher teachers")
    for pair, near in product(nouns, ("old house", "open windows", "red boxes")):
        one, many = pair.split()
        sets["grammar"].append((f"The {one} near the {near}", "is", "are"))
        sets["grammar"].append((f"The {many} near the {near}", "are", "is"))
    # After two worked sums.  The wrong answer is the right one's neighbour, above or below.
    for a, b in product(range(2, 8), range(3, 8)):
        wrong = a + b + (-1) ** (a + b // 2)
        prompt = f"1 + 1 = 2, 9 + 6 = 15, {a} + {b} ="
        sets["arithmetic"].append((prompt, str(a + b), str(wrong)))
    # A list begins anew.  Both completions stand in it, but only one at this place.
    words = "stone river lamp cloud glass paper horse chair bread light".split()
    for stride, i in product((1, 3, 7), range(10)):
        four = [words[(i + stride * k) % 10] for k in range(4)]
        sets["copying"].append((" ".join(four + four[:3]), four[3], four[1]))
    # A transitive relation, stated in either order, asked for from either end.
    names = "Tom Anna Ben Mary Jack Lucy Sam Kate Paul Jane".split()
    relations = ("taller tallest shortest", "older oldest youngest", "faster fastest slowest")
    for (j, relation), i in product(enumerate(relations), range(10)):
        more, most, least = relation.split()
        a, b, c = names[i], names[(i + 3) % 10], names[(i + 7) % 10]
        stated = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."]
        if (i + j) % 2 == 0:
            stated.reverse()
        right, wrong, asked = (a, c, most) if i // 2 % 2 else (c, a, least)
        prompt = f"{' '.join(stated)} The {asked} of the three is"
        sets["reasoning"].append((prompt, right, wrong))
    # The last word of an entry is right; that of the entry `distance` places further on is wrong.
    for name, (form, distance, text) in TEXTS.items():
        pairs = [entry.rsplit(" ", 1) for entry in re.split(r"[|\n]", text)]
        for i, (subject, right) in enumerate(pairs):
            wrong = pairs[(i + distance) % 30][1]
            sets[name].append((form.format(subject), right, wrong))
    return {name: [Item(prompt, " " + right, (" " + wrong,)) for prompt, right, wrong in items]
            for name, items in sets.items()}


TEXTS = {
    "semantics": ("The word {} names a kind of", 5, """\
sparrow bird|eagle bird|owl bird|pigeon bird|robin bird|hammer tool|saw tool|drill tool
wrench tool|chisel tool|banana fruit|peach fruit|cherry fruit|mango fruit|pear fruit
salmon fish|trout fish|tuna fish|cod fish|shark fish|copper metal|silver metal|iron metal
zinc metal|gold metal|crimson color|violet color|beige color|scarlet color|turquoise color"""),
    "facts": ("The capital of {} is", 7, """\
France Paris|Germany Berlin|Italy Rome|Spain Madrid|England London|Russia Moscow|Japan Tokyo
China Beijing|Egypt Cairo|Thailand Bangkok|Greece Athens|Austria Vienna|Poland Warsaw
Hungary Budapest|Ireland Dublin|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen
Portugal Lisbon|Belgium Brussels|Iran Tehran|Iraq Baghdad|Syria Damascus|India Delhi
Jamaica Kingston|Canada Ottawa|Chile Santiago|Czechia Prague|Korea Seoul"""),
    "text": ("{}", 11, """\
He poured the hot coffee into the cup|She unlocked the door with her key|The baby began to cry
They sat down at the table to eat|It was dark, so he turned on the light|The dog began to bark
She put the letter into an envelope|We went to the beach to swim|The plane landed at the airport
He was ill, so he went to see a doctor|The sun rises in the east|She read the last page of the book
The king lived in a large castle|They were married in a small church|He washed his hands with soap
The teacher wrote on the board|The farmer milked the cows|She cut the bread with a knife
The judge sent him to prison|In winter the lake is covered with ice|He paid for the meal with cash
The audience clapped their hands|She looked at the clock to see the time
He planted roses in his garden|The ship sailed across the ocean|The bird built a nest
Open the window and let in some fresh air|The actors stood on the stage
He hung the picture on the wall|The train arrived at the station""")}
