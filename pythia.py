"""The same question, asked of language models that others trained: Pythia, and its like.

Pythia (Biderman et al. 2023, arXiv 2304.01373) is a family of language models with 154 public
checkpoints along training: steps 0, 1, 2, 4 ... 512, 1000, 2000 ... 143000.  Each is a branch
"step<N>" of a repository on the hub.  Billa 2026 (arXiv 2602.15997) measured 160M, 410M and 2.8B
with seven probe sets.  Claim C9: the global patterns replicate (the representation collapses, then
recovers), but no task's geometry announces when that task emerges.

A branch may hold the weights of another step: 86 of the 154 of the 2.8B model are reported to
(issues 195, 205 and 206 of Pythia's repository).  A "lead of 49,000 steps" found there may be an
accident of files.  So this chapter goes:

    manifest -> audit -> plan -> snapshots -> sweep.record(ProbeMeasure) -> compare -> a verdict
                                (download, verify, load, delete)

The library transformers loads the models, so GPT-2, OLMo and Llama can be read as well.
This file trains nothing, draws nothing, prints nothing, and writes no run directory.  Its probe
sets are in the spirit of the paper's, whose items are not public.  It needs the extra `pythia`.

In small: of four branches, the last two and `main` serve one file.  One of the two must be wrong,
and their names do not say which:
>>> def file(sha256):
...     return [("pytorch_model.bin", 9, sha256)]
>>> found = audit({0: file("aa"), 512: file("bb"), 142000: file("ff"), 143000: file("ff"),
...                "main": file("ff")})
>>> found.own, found.left_out[142000]
((0, 512), 'pytorch_model.bin is also that of main and 1 more')

Letters for shapes:  B rows, T tokens, D width, L blocks, V vocabulary, C columns that are read,
N items of a probe set, O completions of an item, A tokens of a completion.
"""
import contextlib
import copy
import errno
import hashlib
import importlib
import json
import math
import os
import pickle
import re
import shutil
import time
from collections import namedtuple
from operator import itemgetter
from pathlib import Path
from typing import Iterator, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

import claims
import emergence
import measures
from models import IGNORE, Batch, Snapshot, example_loss
from sweep import Failed


def extra(module):
    """A module of the extra `pythia`, imported when it is needed: the rest works without it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{module.partition('.')[0]} is missing: this needs the extra, "
                          "pip install '.[pythia]'") from None


NOT_THERE = {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError",
             "RemoteEntryNotFoundError", "EntryNotFoundError", "HFValidationError"}


@contextlib.contextmanager
def explained(what, kind=ValueError):
    """A library's error in its own words, with what it was about and what to do.

    ValueError: a file is not there, damaged, or refused.  Failed: disk or connection."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        advice = "give the same command again, or leave it out"
        if kind is Failed:
            advice = "check the connection, and give the same command again"
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kind, advice = Failed, "the disk is full: free some space, and try again"
        elif type(error).__name__ in NOT_THERE:
            kind, advice = ValueError, "`pythia audit` says what there is"
        elif "Consistency check failed" in words:               # it arrived cut short
            kind, advice = ValueError, "give the same command again, or leave it out"
        elif isinstance(error, pickle.UnpicklingError):         # torch's advice is to run it anyway
            words, advice = "refused, for it may hold code", "leave it out"
        raise kind(f"{what}: {words}; {advice}") from error


# ------------------------------------------------------------------------------------------------
# The hub: which files there are, and which steps hold weights of their own

SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")
WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")


class WeightFile(NamedTuple):
    file: str
    size: int = 0                     # bytes
    sha256: str = ""                  # of the content; "git:..." where the hub states none
    commit: str = ""                  # of the branch, when the manifest was read


def repository(model) -> str:
    """"160m", "pythia-160m" or "owner/name" -> the repository's name on the hub.

    >>> repository("160m")
    'EleutherAI/pythia-160m'
    """
    size = model.removeprefix("pythia-")
    if "/" not in model and size.removesuffix("-deduped") not in SIZES:
        raise ValueError(f"no Pythia model {model!r}: expected one of {', '.join(SIZES)} "
                         "(also with -deduped), or owner/name on the hub")
    return model if "/" in model else f"EleutherAI/pythia-{size}"


def hub():
    """The hub's client.  HF_ENDPOINT names another server than the public one."""
    return extra("huggingface_hub").HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def manifest(model, progress=None) -> dict:
    """Which weight files each branch serves, from metadata alone: {step: (WeightFile, ...)}.

    The branches are step<N>, in order, and last "main".  Each takes one request, after which
    progress is called with (branches read, all branches).
    Raises ValueError for a model that is not there, Failed for a hub that does not answer."""
    with explained(f"{model}: the list of branches", Failed):
        refs = hub().list_repo_refs(repository(model)).branches
    commits = {ref.name.removeprefix("step"): ref.target_commit for ref in refs
               if re.fullmatch(r"main|step\d+", ref.name)}
    branches = sorted(int(name) for name in commits if name != "main")
    if "main" in commits:
        branches.append("main")
    listing = {}
    for step in branches:
        commit, files = commits[str(step)], []
        with explained(f"{model}: the files of step {step}", Failed):
            entries = list(hub().list_repo_tree(repository(model), revision=commit))
        for entry in entries:
            if WEIGHTS.fullmatch(entry.path):
                sha256 = entry.lfs.sha256 if entry.lfs else "git:" + entry.blob_id
                files.append(WeightFile(entry.path, entry.size, sha256, commit))
        listing[step] = tuple(files)
        if progress:
            progress(len(listing), len(commits))
    return listing


def files_to_read(files) -> tuple:
    """Of a branch's weight files those that are read: safetensors before bin, one before shards."""
    kinds = {}
    for f in sorted(WeightFile(*f) for f in files if WEIGHTS.fullmatch(f[0])):
        kinds.setdefault((f.file.endswith(".bin"), "-of-" in f.file), []).append(f)
    return tuple(kinds[min(kinds)]) if kinds else ()


Audit = namedtuple("Audit", "own left_out groups")


def audit(manifest) -> Audit:
    """Which steps of a model really hold weights of their own.

    manifest: {step: files, "main": files}; a file is a WeightFile or (file, size, sha256).
    -> Audit(steps that do; {step: why not}; (file, sha256, branches) of what several serve).
    A step is left out if a weight file of its own, a shard included, is also that of `main` or of
    another step: one of them must be wrong, and their names do not say which.
    Two pairs may share, if nobody else does: steps 0 and 1 (the first step of the warm-up has
    learning rate 0), and the last step and `main`.
    That two different files hold the same weights shows later (`fingerprint`)."""
    steps = sorted(step for step in manifest if step != "main")
    files = {step: [WeightFile(*f) for f in manifest.get(step, ())] for step in ("main", *steps)}
    names, holders = {}, {}                                     # of each sha256
    for step, served in files.items():
        for f in served:
            names[f.sha256] = f.file
            branches = holders.setdefault(f.sha256, [])
            if step not in branches:
                branches.append(step)
    rightly = [[0, 1], ["main", *steps[-1:]]]
    shared = {sha for sha, who in holders.items() if len(who) > 1 and who not in rightly}
    left_out = {step: "no weight file" for step in steps if not files[step]}
    for step in steps:
        wrong = [f for f in files[step] if f.sha256 in shared]
        if wrong:
            first, *others = [s for s in holders[wrong[0].sha256] if s != step]
            left_out[step] = f"{wrong[0].file} is also that of {first}"
            if others:
                left_out[step] += f" and {len(others)} more"
            if len(files[step]) > 1:
                left_out[step] += f" ({len(wrong)} of {len(files[step])} files)"
    groups = [(names[sha], sha, tuple(who)) for sha, who in holders.items() if len(who) > 1]
    groups.sort(key=lambda group: len(group[2]), reverse=True)
    return Audit(tuple(s for s in steps if s not in left_out), left_out, tuple(groups))


def parse_steps(text, available) -> tuple:
    """"all", or numbers and ranges first:last:stride with commas between -> the steps, in order.

    Raises ValueError for a step that is not among `available`.

    >>> parse_steps("0,512,1000:3000:1000", [0, 1, 512, 1000, 2000, 3000])
    (0, 512, 1000, 2000, 3000)
    """
    if text == "all":
        return tuple(available)
    asked = set()
    try:
        for part in text.split(","):
            first, *rest = map(int, part.split(":"))
            asked |= set(range(first, rest[0] + 1, *rest[1:])) if rest else {first}
    except (ValueError, TypeError):
        raise ValueError(f"--steps {text!r}: expected all, or numbers and ranges "
                         "first:last:stride, with commas between") from None
    wrong = sorted(asked - set(available))
    if wrong or not asked:
        raise ValueError(f"--steps {text!r}: no step {wrong[0] if wrong else ''} among the "
                         f"{len(available)} from {min(available)} to {max(available)}")
    return tuple(sorted(asked))


def fetch(model, file, cache_dir, revision="main") -> Path:
    """Download one file of one revision into cache_dir, a folder of our own -> its path."""
    extra("huggingface_hub.utils").disable_progress_bars()
    with explained(f"{model}: {file} of revision {revision[:12]}", Failed):
        return Path(hub().hf_hub_download(repository(model), file, revision=revision,
                                          cache_dir=cache_dir))


def delete_cached(model, cache_dir):
    """Delete all that cache_dir holds of a model: what was loaded, and what a kill left behind."""
    user = extra("huggingface_hub.constants").HF_HUB_CACHE
    if Path(cache_dir).resolve() == Path(user).resolve():
        raise ValueError(f"{cache_dir} is the hub's own cache, and what is measured is deleted: "
                         "give a folder of its own")
    name = f"models--{repository(model).replace('/', '--')}"
    shutil.rmtree(Path(cache_dir) / name, ignore_errors=True)


# ------------------------------------------------------------------------------------------------
# The model, and one checkpoint after another

class LanguageModel(nn.Module):
    """A causal language model of transformers, called as models.GPT is: tokens -> logits.

    Attention looks back only, so rows that are padded on the right need no mask.
    There are two "last" states: *last block*, the residual stream after the last block, and
    *final_norm*, what the final norm makes of it.  transformers gives only the second one, as
    hidden_states[-1].  A hook reads the first."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def blocks(self):
        """The longest list of modules, whatever its name."""
        return max((m for m in self.model.modules() if isinstance(m, nn.ModuleList)), key=len)

    def forward(self, tokens):
        """tokens (B, T) int64 -> logits (B, T, V)."""
        return self.model(input_ids=tokens, use_cache=False).logits

    def read(self, tokens, columns):
        """tokens (B, T) -> (L + 2 states (B, T, D), logits (B, C, V) at those columns, (C,)).

        States: the embedding, the residual stream after each block, final_norm."""
        last_block = []

        def keep(module, inputs, output):
            last_block.append(output[0] if isinstance(output, tuple) else output)

        hook = self.blocks()[-1].register_forward_hook(keep)
        try:
            found = self.model(input_ids=tokens, use_cache=False, output_hidden_states=True,
                               logits_to_keep=columns)
        finally:
            hook.remove()
        *before, final_norm = found.hidden_states
        return [*before, *last_block, final_norm], found.logits


def load_model(folder, dtype=torch.float32, device="cpu") -> LanguageModel:
    """The model in `folder`: config.json and weight files, sharded or not.

    Attention is "eager", for fused kernels have no second derivative.  dtype is always stated, for
    transformers would take the file's: float16 for some models.  No code from the folder is run.
    Raises ValueError if it cannot be read, or a tensor is missing, left over or misshapen."""
    transformers = extra("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()            # what is wrong is raised below
    files = files_to_read((path.name,) for path in Path(folder).iterdir())
    with explained(", ".join(f.file for f in files)):
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True)
    # transformers fills gaps with random numbers, and goes on.  GPT-2's old files have a constant.
    left_over = {name for name in found["unexpected_keys"] if not name.endswith(".masked_bias")}
    for fault, names in (("missing", found["missing_keys"]), ("left over", left_over),
                         ("of another shape", {name for name, *_ in found["mismatched_keys"]})):
        if names:
            raise ValueError(f"the weight files do not fit config.json: {min(names)} is {fault}, "
                             f"one of {len(names)}; leave it out")
    for parameter in model.parameters():                        # their files are mapped, not read:
        parameter.data = parameter.data.clone()                 # a copy outlives its file
    return LanguageModel(model.to(device)).eval()


def fingerprint(model) -> str:
    """A sha256 over all parameters, buffers left out, -0.0 read as 0.0.

    So files that differ while their weights are the same have the same one, in one dtype."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        plain = (parameter.detach().cpu() + 0).flatten()        # -0.0 + 0 is 0.0
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def download_and_load(model, files, cache_dir, dtype, device):
    """One checkpoint, checked against the manifest -> LanguageModel.

    Raises ValueError if it is missing, damaged, refused, or not what the manifest says."""
    files = files_to_read(files)
    if not files:
        raise ValueError("the hub has no weight file; leave it out")
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    need, free = sum(f.size for f in files), shutil.disk_usage(cache_dir).free
    if free < 1.02 * need:
        raise Failed(f"the disk is too full: {need / 1e9:.2f} GB are needed in {cache_dir}, "
                           f"{free / 1e9:.2f} are free; free some space, and try again")
    folder = fetch(model, "config.json", cache_dir, files[0].commit).parent
    if "-of-" in files[0].file:                                 # which shard holds what
        index = re.sub(r"-\d+-of-\d+", "", files[0].file) + ".index.json"
        fetch(model, index, cache_dir, files[0].commit)
    for f in files:
        with open(fetch(model, f.file, cache_dir, f.commit), "rb") as file:
            found = extra("huggingface_hub.utils.sha").sha_fileobj(file).hex()
        if found != f.sha256 and not f.sha256.startswith("git:"):
            raise ValueError(f"{f.file} has sha256 {found[:12]} where the hub states "
                             f"{f.sha256[:12]}; give the same command again, or leave it out")
    return load_model(folder, dtype, device)


def snapshots(model, steps, manifest, cache_dir, dtype=torch.float32, device="cpu",
              state=None) -> Iterator[Snapshot]:
    """One checkpoint after another as a Snapshot: download, check, load, delete, yield.

    manifest: of `manifest(model)`.  state: what state() of the last Snapshot returned; the steps in
    state["done"] are skipped.  state()["fingerprint"] is that of the weights.
    One checkpoint is on disk at a time, and one in memory: a model is emptied when the next one is
    asked for.  What is missing, damaged or refused is passed over.
    Raises Failed at once for a full disk and a hub that does not answer; in the end, for what
    was passed over."""
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
        raise Failed(f"{len(failed)} of {len(steps)} checkpoints could not be measured, the "
                           f"others are done: {'; '.join(failed)}")


# ------------------------------------------------------------------------------------------------
# Probe sets: items on which geometry and behaviour are both measured

class Item(NamedTuple):
    prompt: str
    right: str            # the correct completion; begins with a space, to be a token of its own
    wrong: tuple          # one or several others: the right one must be more probable than each


class ProbeSet(NamedTuple):
    """Items in tokens.  N is the same for all sets of a measurement, for RankMe cannot exceed N."""
    prompts: tuple        # N lists of token ids
    options: tuple        # N tuples of lists of token ids, the right completion first
    chance: float         # accuracy of a guess: the mean of 1 / O


def read_probes(path) -> list:
    """A file of items -> list of Items.  Raises ValueError naming the file and the item.

    Three layouts are known by their fields: {"prompt", "right", "wrong"}, ours (.jsonl), "wrong" a
    string or a list; and those of `bbh_item` (.json) and `blimp_item` (.jsonl)."""
    try:
        content = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix == ".json":
            entries = json.loads(content)["examples"]
        else:
            entries = [json.loads(line) for line in content.splitlines() if line.strip()]
        targets = sorted({entry["target"] for entry in entries if "target" in entry})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no file of probes, expected BIG-Bench Hard .json, or .jsonl, an "
                         f"item a line ({error})") from None
    items = []
    for number, entry in enumerate(entries, 1):
        try:
            if "input" in entry:
                items.append(bbh_item(entry, targets))
            elif "sentence_good" in entry:
                items.append(blimp_item(entry))
            else:
                wrong = entry["wrong"]
                wrong = [wrong] if isinstance(wrong, str) else wrong
                items.append(Item(entry["prompt"], entry["right"], tuple(wrong)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: item {number} is none of the three layouts, it lacks "
                             f"{error}") from None
    return items


def bbh_item(entry, targets):
    """BIG-Bench Hard, {"input", "target"}: "(A)" against the other letters under "Options:".

    Without letters: against the other targets of the file, ten at most (yes and no, say)."""
    options = re.findall(r"^(\([A-Z]\))", entry["input"], re.M)
    if not options and len(targets) <= 10:
        options = targets
    if entry["target"] not in options or len(options) < 2:
        raise KeyError(f"options with the target {entry['target']!r} among them")
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
    """The function text -> list of ids of a tokenizer.json.  ValueError for a file that is none."""
    with explained(path):
        encoder = extra("tokenizers").Tokenizer.from_file(str(path))

    def ids(text):
        return encoder.encode(text, add_special_tokens=False).ids
    return ids


def encode(sets, tokenizer, n=None) -> dict:
    """{name: list of Items} -> {name: ProbeSet}, each of n items spread evenly over the list.

    n: default, as many as the smallest set has.  tokenizer: text -> list of ids.
    An empty prompt becomes <|endoftext|> (id 0), as in lm-evaluation-harness, for Pythia has no
    beginning-of-text token.
    Raises ValueError if a set has fewer than n items, or an item an empty completion."""
    if n is None:
        n = min(len(items) for items in sets.values())
    probes = {}
    for name, items in sets.items():
        if not 1 < n <= len(items):
            raise ValueError(f"probe set {name} has {len(items)} items where {n} are asked for (at "
                             "least 2, and equally many of each set)")
        prompts, options = [], []
        for i in range(n):
            item = items[i * len(items) // n]
            prompts.append(tokenizer(item.prompt) or [0])
            options.append(tuple(tokenizer(text) for text in (item.right, *item.wrong)))
        if not all(len(some) > 1 and all(some) for some in options):
            raise ValueError(f"probe set {name}: every item needs a right and a wrong completion "
                             "that are not empty")
        chance = sum(1 / len(some) for some in options) / n
        probes[name] = ProbeSet(tuple(prompts), tuple(options), chance)
    return probes


# ------------------------------------------------------------------------------------------------
# Measuring one checkpoint

# Which hidden state of an item is read: the one that predicts the answer's first token; the mean of
# those that predict its tokens, so that N stays N; the one at its last token, the whole line read.
POSITIONS = ("first", "answer", "last")


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
    log_probs: (N, O) float32, nats, summed over a completion's tokens, the right one first; -inf
    where an item has fewer options."""
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
        log_p = -F.cross_entropy(logits, targets[scored], reduction="none").cpu()
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

    features (N, D).  Unit: dimensions.  It is lower than RankMe (25 beside 44 on one state): the
    two must never be mixed."""
    x = features.double()
    s = torch.linalg.svdvals(x - x.mean(0))
    if s[0] <= 1e-12 * x.abs().max():                           # all rows are the same
        return 1.0
    return measures.effective_rank(s ** 2)


def rankme_interval(features, generator, draws=200) -> list:
    """Bootstrap interval (95%) of RankMe for other items of the same kind: [low, high].

        value * q / median        for the 2.5% and the 97.5% quantile q; at most N

    features (N, D).  Resampling repeats rows, and repeated rows have a lower rank: the plain
    percentiles lie below the value, with 30 rows by up to 40%.  So only their spread is kept.
    On normal features of known spectrum it covers 91% at a rank of 1.6, and all near N, where it is
    too wide."""
    x = torch.linalg.qr(features.double().T).R.T                # the same inner products, N columns
    picks = torch.randint(len(x), (draws, len(x)), generator=generator)
    quantiles = torch.tensor([0.025, 0.5, 0.975]).double()
    low, median, high = measures.rankme_many(x[picks]).quantile(quantiles).tolist()
    value = measures.rankme(x)
    return [min(value * q / median, float(len(x))) for q in (low, high)]


# Measures of the loss on the right completions.  They copy the model, want float32, and take some
# 40, 300 and 1,400 times what reading a probe set takes (14M, two CPU cores).
EXTRAS = {"gradient_rank": {}, "hessian_top": {},
          "llc": {"num_chains": 2, "num_draws": 100, "num_burnin_steps": 50}}


def probe_row(model, probe, extras=()) -> dict:
    """All that is measured on one probe set at one checkpoint.  The model is left as it is.

    margin: log p(right) - log p(best wrong one).  log_prob is per completion, loss per token: nats.
    rankme, rankme_squared_centred: {position: [embedding, each block, final_norm]}.
    rankme_interval: {position: of the last block}.  distinct: prompts; RankMe at "first" is at most
    that.  extras: names in EXTRAS.
    bfloat16 is noise in all directions, and lifts a collapsed rank (by some 8% in a small model):
    use one dtype for a whole series."""
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
        squared = [rankme_squared_centred(layer) for layer in layers]
        row["rankme_squared_centred"][position] = squared
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
    probes: of `encode`.  extras: names in EXTRAS.
    state: {fingerprint: {"step", "levels"}} of what was measured, for the run's checkpoint."""

    def __init__(self, probes, extras=()):
        self.probes, self.extras, self.state = probes, extras, {}

    def __call__(self, snapshot) -> dict:
        row = {"fingerprint": snapshot.state()["fingerprint"]}
        twin = self.state.get(row["fingerprint"])
        try:
            if twin:
                row |= {"twin_of": twin["step"], "levels": twin["levels"]}
            else:
                row["levels"] = {name: probe_row(snapshot.model, probe, self.extras)
                                 for name, probe in self.probes.items()}
            if snapshot.step == 0:
                check_untrained(row["levels"], snapshot.model)
        except ValueError as error:                             # also: weights that are not finite
            return {"fingerprint": row["fingerprint"], "left_out": str(error), "levels": {}}
        if twin is None:
            found = {"step": snapshot.step, "levels": row["levels"]}
            self.state[row["fingerprint"]] = found
        return row


def check_untrained(levels, model):
    """An untrained network guesses: its loss is near log V, 10.8 for Pythia.  Else ValueError."""
    loss = sum(level["loss"] for level in levels.values()) / len(levels)
    guess = math.log(model.model.config.vocab_size)
    if abs(loss / guess - 1) > 0.1:
        raise ValueError(f"step 0 has loss {loss:.2f} where an untrained network guesses, "
                         f"{guess:.2f}: these are weights of another step")


def run_config(model, dtype, device, extras, probes) -> dict:
    """What decides the numbers of a measurement, for its config.json.  dtype, device: their names.

    Of a probe set it holds the number of items, the chance, and a sha256 of all its tokens."""
    digests = {name: hashlib.sha256(repr(tuple(probe)).encode()).hexdigest()[:16]
               for name, probe in probes.items()}
    return {"model": repository(model), "dtype": dtype, "device": device,
            "threads": torch.get_num_threads(), "measures": list(extras), "probes": digests,
            "n": len(next(iter(probes.values())).prompts),
            "chance": {name: probe.chance for name, probe in probes.items()}}


# ------------------------------------------------------------------------------------------------
# What a measurement costs, before anything is downloaded

Plan = namedtuple("Plan", "steps download disk memory flop rate seconds")


def model_config(path):
    """A model's config.json -> its config in transformers.  ValueError for a file that is none."""
    with explained(path):
        return extra("transformers").AutoConfig.from_pretrained(
            Path(path).parent, local_files_only=True, trust_remote_code=False)


def random_model(config, dtype=torch.float32, device="meta") -> LanguageModel:
    """A model of that shape with random weights; on the device "meta", with none."""
    with torch.device(device):
        return LanguageModel(extra("transformers").AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=False)).eval()


def forward_flop(model, probe) -> float:
    """FLOP of `read_probe`: 2 for each weight of the blocks and token, 4 T D a block for attention,
    2 D V for each token of a completion, where the output matrix is needed."""
    blocks, D, V = model.blocks(), model.model.config.hidden_size, model.model.config.vocab_size
    weights = sum(p.numel() for p in blocks.parameters())
    flop = 0
    for prompt, options in zip(probe.prompts, probe.options):
        for completion in options:
            T = len(prompt) + len(completion)
            flop += T * (2 * weights + 4 * T * D * len(blocks)) + 2 * D * V * len(completion)
    return flop


def forward_rate(config, probe, dtype, device) -> float:
    """FLOP/s of `read_probe`, timed with two of the model's blocks.

    The second of two readings counts: the first one pays for what is set up once."""
    two_blocks = copy.deepcopy(config)
    two_blocks.num_hidden_layers = 2
    model = random_model(two_blocks, dtype, device)
    for _ in range(2):
        start = time.perf_counter()
        read_probe(model, probe)
    return forward_flop(model, probe) / (time.perf_counter() - start)


def plan(config, manifest, steps, probes, dtype=torch.float32, device="cpu", rate=None) -> Plan:
    """What measuring these steps with these probes takes.

    config: of `model_config`.  rate: FLOP/s, measured if not given.
    -> Plan(steps; bytes to download; bytes on disk at any one time; bytes of memory: weights as in
    the file and as converted, one forward pass, .5 GB of libraries; FLOP of one checkpoint; rate;
    seconds: forward passes, and 2 s a GB to hash, read and convert).
    Not counted: the download; the SVDs of RankMe (a tenth of the time, at 14M a third); EXTRAS.
    Raises ValueError for an item that is longer than what the model reads."""
    T = max(len(prompt) + max(map(len, options)) for probe in probes.values()
            for prompt, options in zip(probe.prompts, probe.options))
    longest = getattr(config, "max_position_embeddings", math.inf)
    if T > longest:
        raise ValueError(f"an item has {T} tokens, and the model reads {longest} at most: leave "
                         "its probe set out")
    model, width = random_model(config), dtype.itemsize
    sizes = [sum(f.size for f in files_to_read(manifest[step])) for step in steps]
    weights = sum(p.numel() for p in model.parameters()) * width
    states = 16 * T * config.hidden_size * (config.num_hidden_layers + 12) * width
    scores = 16 * T * T * config.num_attention_heads * 3 * width
    logits = 16 * 8 * config.vocab_size * 4
    memory = max(sizes) + weights + states + scores + logits + 5e8
    flop = sum(forward_flop(model, probe) for probe in probes.values())
    rate = rate or forward_rate(config, next(iter(probes.values())), dtype, device)
    seconds = len(steps) * flop / rate + 2e-9 * sum(sizes)
    return Plan(tuple(steps), sum(sizes), max(sizes), int(memory), flop, rate, seconds)


# ------------------------------------------------------------------------------------------------
# The published evaluations: behaviour alone, at 27 steps, from the Pythia repository

EvalRow = namedtuple("EvalRow", "model step task metric value stderr")
EvalEvent = namedtuple("EvalEvent", "model task chance emergence best best_step last stderr")


def read_evals(folder) -> list:
    """The lm-evaluation-harness JSON below `folder`, a file for each model and step -> EvalRows.

    The step is in the file's name (..._step<N>.json).  The model is a folder "pythia-<size>" above
    it, or else what precedes "_step".
    Raises ValueError for a folder without such files, a file that is none, or two that give
    different values for one thing (zero-shot beside five-shot, say)."""
    found = {}
    for path in sorted(Path(folder).rglob("*.json")):
        name = re.fullmatch(r"(.*?)[_-]?step(\d+)", path.stem)
        if name is None:
            continue
        step, above = int(name[2]), [p.name for p in path.resolve().parents]
        named = [folder for folder in above if re.fullmatch(r"pythia-\d[\w.-]*", folder)]
        size = f"pythia-{name[1]}" if name[1] in SIZES else name[1]
        model = named[0] if named else size or above[0]
        for task, values in evaluation_results(path).items():
            for metric, value in values.items():
                if not isinstance(value, (int, float)) or metric.endswith("_stderr"):
                    continue
                stderr = values.get(metric + "_stderr")
                stderr = stderr if isinstance(stderr, float) else None              # "N/A"
                row = EvalRow(model, step, task, metric, float(value), stderr)
                if found.setdefault(row[:4], row) != row:
                    raise ValueError(f"{folder}: two values for {task} ({metric}) of {model} at "
                                     f"step {step}, the second in {path.name}; give the folder of "
                                     "one kind of evaluation, zero-shot say")
    if not found:
        raise ValueError(f"{folder}: no files named ..._step<N>.json; expected results of "
                         "lm-evaluation-harness")
    return [found[key] for key in sorted(found)]


def evaluation_results(path):
    """{task: {metric: value}} of one result file.

    The 57 subjects of MMLU (hendrycksTest-*), where all are there, also give mmlu_mean57: their
    mean, and its standard error."""
    try:
        results = {}
        for task, values in json.loads(path.read_text())["results"].items():
            # Newer versions write "acc,none" for "acc".
            results[task] = {metric.partition(",")[0]: v for metric, v in values.items()}
        subjects = [v for task, v in results.items() if task.startswith("hendrycksTest-")]
        if len(subjects) == 57:
            variance = sum(v["acc_stderr"] ** 2 for v in subjects)
            results["mmlu_mean57"] = {"acc": sum(v["acc"] for v in subjects) / 57,
                                      "acc_stderr": variance ** 0.5 / 57}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a result file of lm-evaluation-harness "
                         f"({type(error).__name__}: {error})") from None
    return results


def between(steps, step):
    """An event seen at a checkpoint lies behind the one before it: (after, by).

    None stays None.  What the first checkpoint shows is after 0.

    >>> between([512, 1000, 3000], 3000)
    (1000, 3000)
    """
    if step is None:
        return None
    return max([0, *(s for s in steps if s < step)]), step


def model_size(model):
    """A key to sort by: pythia-70m comes before pythia-1b."""
    size = re.search(r"(\d+(?:\.\d+)?)([mb])", model)
    if size is None:
        return 0, model
    return float(size[1]) * {"m": 1, "b": 1000}[size[2]], model


def evals_emergence(rows, metric="acc", threshold=0.05, persistence=3, chance=None) -> list:
    """When each task emerges in each model, from published accuracies -> EvalEvents, by task, size.

    Emerged: `persistence` checkpoints in a row with
        (accuracy - chance) / (1 - chance) >= threshold    and    accuracy >= chance + 3 stderr
    emergence: (after the one checkpoint, by the next), None for never.  stderr: of `last`.
    chance: {task: accuracy}, default CHANCE.  What the untrained network scores, by a liking for
    short answers say (PIQA: .535), takes its place where it is higher.
    The threshold is lower than elsewhere because most of these tasks end below .3."""
    events = []
    for task, guess in (CHANCE if chance is None else chance).items():
        mine = [row for row in rows if (row.task, row.metric) == (task, metric)]
        for model in sorted({row.model for row in mine}, key=model_size):
            curve = [row for row in mine if row.model == model]
            steps, values = [row.step for row in curve], [row.value for row in curve]
            base = max(guess, values[0] if steps[0] == 0 else 0)
            clear = []                                          # accuracy where clearly above base
            for row in curve:
                above = row.value - base >= 3 * (row.stderr or 0)
                clear.append(row.value if above else base)
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
    z and information; a verdict).
    Raises ValueError where fewer than 4 checkpoints remain."""
    specification = specification or claims.Specification()
    rows = sorted(rows, key=itemgetter("step"))
    left_out = steps_left_out(rows, audited.left_out if audited else {})
    rows = [row for row in rows if row["step"] not in left_out]
    steps = [row["step"] for row in rows]
    if len(steps) < 4:
        raise ValueError(f"{len(steps)} checkpoints with weights of their own, and at least 4 are "
                         "needed: measure more steps")
    orders = [task_order(rows, steps, task, specification) for task in rows[0]["levels"]]
    onsets = [order.onset and order.onset[1] for order in orders]
    emergences = [order.emergence and order.emergence[1] for order in orders]
    z, information = emergence.risk_set_test(onsets, emergences)
    verdict = c9_verdict(orders, steps, z, information)
    return Comparison(tuple(orders), tuple(steps), left_out, z, information, verdict)


def steps_left_out(rows, by_audit):
    """{step: why} of the rows that cannot be used: by the audit, when measured, or as a twin.

    Of two twins both go, for one of them has a wrong name.  But steps 0 and 1 are rightly the same:
    of them only 1 goes."""
    left_out = {}
    for row in rows:
        why = by_audit.get(row["step"], row.get("left_out"))
        if why:
            left_out[row["step"]] = why
    for row in rows:
        if "twin_of" in row:
            other_of = {row["step"]: row["twin_of"], row["twin_of"]: row["step"]}
            if set(other_of) == {0, 1}:
                del other_of[0]
            for step, other in other_of.items():
                left_out.setdefault(step, f"same weights as step {other}")
    return left_out


def task_order(rows, steps, task, specification) -> Order:
    """When one probe set's geometry and behaviour move, and which of them first.

    onset, where RankMe begins to recover from its floor, and emergence: (after, by) or None.
    lead: (low, high) steps, ends excluded, positive if geometry is first.
    verdict: leads, lags, unresolved (0 lies in the interval), never (one did not happen).
    The global patterns, each beyond the bootstrap intervals.  collapse: the floor is below the
    start.  recovery: a later peak is above the floor.  compression: the end is below that peak."""
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
        verdict = "unresolved"
        if lead[0] >= 0:
            verdict = "leads"
        elif lead[1] <= 0:
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
# options.  66 of Winograd's 104 (wsc) have the same answer: always that one, or always the other,
# is what one sees of these models.
CHANCE = {"lambada_openai": 0.0, "sciq": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25,
          "logiqa": 0.25, "piqa": 0.5, "winogrande": 0.5, "wsc": 66 / 104, "mmlu_mean57": 0.25}


def own_probes() -> dict:
    """The seven sets of this chapter, of 30 items each -> {name: list of Items}.

    Every completion is one token of Pythia's tokenizer.  In five sets each wrong completion is the
    right one of another item, so a liking for certain words gains nothing.  In arithmetic and
    reasoning the wrong answer has to fit the item."""
    kinds = [(word, kind) for kind, words in KINDS.items() for word in words.split()]
    sentences = [line.split(" = ") for line in re.split(r"[|\n]", SENTENCES)]
    capitals = [pair.split() for pair in re.split(r"[,\n]", CAPITALS)]
    sets = {
        "grammar": with_wrong(grammar_pairs(), 1),
        "semantics": with_wrong([(f"The word {a} names a kind of", b) for a, b in kinds], 5),
        "arithmetic": arithmetic_items(),
        "copying": copying_items(),
        "facts": with_wrong([(f"The capital of {a} is", b) for a, b in capitals], 7),
        "reasoning": reasoning_items(),
        "text": with_wrong(sentences, 11)}
    return {name: [Item(prompt, " " + right, (" " + wrong,)) for prompt, right, wrong in items]
            for name, items in sets.items()}


def with_wrong(pairs, distance):
    """(prompt, right) pairs; wrong is the right one of the pair `distance` places further on."""
    return [(prompt, right, pairs[(i + distance) % len(pairs)][1])
            for i, (prompt, right) in enumerate(pairs)]


def grammar_pairs():
    """The verb agrees with the subject, not with the noun beside it."""
    pairs = []
    for nouns in ("key keys", "dog dogs", "child children", "car cars", "teacher teachers"):
        for near in ("old house", "open windows", "red boxes"):
            for noun, verb in zip(nouns.split(), ("is", "are")):
                pairs.append((f"The {noun} near the {near}", verb))
    return pairs


def arithmetic_items():
    """After two worked sums.  The wrong answer is the right one's neighbour, above or below."""
    items = []
    for a in range(2, 8):
        for b in range(3, 8):
            wrong = a + b + (-1) ** (a + b // 2)
            items.append((f"1 + 1 = 2, 9 + 6 = 15, {a} + {b} =", f"{a + b}", f"{wrong}"))
    return items


def copying_items():
    """A list begins anew.  Both completions stand in it, but only one at this place."""
    words = "stone river lamp cloud glass paper horse chair bread light".split()
    items = []
    for stride in (1, 3, 7):
        for i in range(10):
            four = [words[(i + stride * k) % 10] for k in range(4)]
            items.append((" ".join(four + four[:3]), four[3], four[1]))
    return items


def reasoning_items():
    """A transitive relation, stated in either order, asked for from either end."""
    names = "Tom Anna Ben Mary Jack Lucy Sam Kate Paul Jane".split()
    relations = ("taller tallest shortest", "older oldest youngest", "faster fastest slowest")
    items = []
    for j, relation in enumerate(relations):
        more, most, least = relation.split()
        for i in range(10):
            a, b, c = names[i], names[(i + 3) % 10], names[(i + 7) % 10]
            stated = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."]
            if (i + j) % 2 == 0:
                stated.reverse()
            right, wrong, asked = (a, c, most) if i // 2 % 2 else (c, a, least)
            items.append((f"{' '.join(stated)} The {asked} of the three is", right, wrong))
    return items


KINDS = {"bird": "sparrow eagle owl pigeon robin", "tool": "hammer saw drill wrench chisel",
         "fruit": "banana peach cherry mango pear", "fish": "salmon trout tuna cod shark",
         "metal": "copper silver iron zinc gold", "color": "crimson violet beige scarlet turquoise"}

CAPITALS = """\
France Paris,Germany Berlin,Italy Rome,Spain Madrid,England London,Russia Moscow,Japan Tokyo
China Beijing,Egypt Cairo,Thailand Bangkok,Greece Athens,Austria Vienna,Poland Warsaw
Hungary Budapest,Ireland Dublin,Norway Oslo,Sweden Stockholm,Finland Helsinki,Denmark Copenhagen
Portugal Lisbon,Belgium Brussels,Iran Tehran,Iraq Baghdad,Syria Damascus,India Delhi
Jamaica Kingston,Canada Ottawa,Chile Santiago,Czechia Prague,Korea Seoul"""

SENTENCES = """\
He poured the hot coffee into the = cup|She unlocked the door with her = key
The baby began to = cry|They sat down at the table to = eat
It was dark, so he turned on the = light|The dog began to = bark
She put the letter into an = envelope|We went to the beach to = swim
The plane landed at the = airport|He was ill, so he went to see a = doctor
The sun rises in the = east|She read the last page of the = book
The king lived in a large = castle|They were married in a small = church
He washed his hands with = soap|The teacher wrote on the = board
The farmer milked the = cows|She cut the bread with a = knife
The judge sent him to = prison|In winter the lake is covered with = ice
He paid for the meal with = cash|The audience clapped their = hands
She looked at the clock to see the = time|He planted roses in his = garden
The ship sailed across the = ocean|The bird built a = nest
Open the window and let in some fresh = air|The actors stood on the = stage
He hung the picture on the = wall|The train arrived at the = station"""
