"""Chapter 9: pythia.  The same question, asked of language models that others trained.

Pythia (Biderman et al. 2023, arXiv 2304.01373) is a family of language models with 154 public
checkpoints along training: steps 0, 1, 2, 4 ... 512, 1000, 2000 ... 143000.  Each is a branch
"step<N>" of a repository on the hub.  Billa 2026 (arXiv 2602.15997) measured three sizes.  Claim
C9: the global patterns replicate (the representation collapses, then recovers), but no task's
geometry announces when that task emerges.

Other suites have other names for their checkpoints: a pattern such as "checkpoint-{step}", of
branches, tags, titles of commits, or folders on the disk.  Any of them may hold the weights of
another step: 86 of the 154 of Pythia's 2.8B are reported to (its issues 195, 205 and 206).  So:

    manifest -> audit -> plan -> snapshots -> sweep.record(ProbeMeasure) -> examine -> compare
                                (download, verify, load, delete)   (the audit by content)

The library transformers loads the models, so GPT-2, OLMo and Llama can be read as well.  This file
trains, draws and prints nothing, and writes no run directory.  It needs the extra `pythia`.

In small: `main` and the last two steps serve one file.  One step must be wrong, but which?
>>> one, end = [("model.safetensors", 9, "aa")], [("model.safetensors", 9, "ff")]
>>> audit({0: one, 142000: end, 143000: end, "main": end}).left_out[142000]
'model.safetensors is also that of main and 1 more'

Letters for shapes:  B rows, T tokens, D width, L blocks, V vocabulary, C columns that are read,
N items of a probe set, O completions of an item, A tokens of a completion, S steps, W weights.
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
import warnings
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
from sweep import Failed, decoded, parse_json, spread


class Missing(ImportError):
    """The extra `pythia` is not installed."""


def extra(module):
    """A module of the extra `pythia`, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Missing(f"{module} is missing: pip install '.[pythia]'") from None


# A full disk, and a hub that does not answer: the libraries derive their errors from these.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ANSWER = {"ConnectionError", "TransportError", "LocalEntryNotFoundError"}


@contextlib.contextmanager
def explained(what):
    """A library's error in its own words, with what it was about and what to do.
    Failed: the disk or the connection.  ValueError: this file is absent, damaged or refused."""
    try:
        yield
    except Missing:
        raise
    except Exception as error:                                  # also of what a config asks for
        measures.unless_it_is_memory(error)
        names = {kind.__name__ for kind in type(error).__mro__}
        words = " ".join(str(error).split())[:300] or type(error).__name__
        if "UnpicklingError" in names:                          # torch's advice is to run it anyway
            words = "refused, for it may hold code"
        if getattr(error, "errno", None) in DISK_FULL or names & NO_ANSWER:
            raise Failed(f"{what}: {words}; check the disk and the connection") from error
        raise ValueError(f"{what}: {words}; try again, or leave it out") from error


# ------------------------------------------------------------------------------------------------
# A suite: where its models lie, and what their checkpoints are called

def matches(pattern, text):
    """The parts of a text that fits a pattern; None where it does not fit.
    {step} and {seed} are whole numbers, other braces any word; "|" stands between alternatives.
    >>> matches("step{step}|stage1-step{step}-tokens{tokens}B", "stage1-step1000-tokens3B")
    {'step': '1000', 'tokens': '3'}"""
    for alternative in pattern.split("|"):
        expression = ""
        for i, part in enumerate(re.split(r"\{(\w+)\}", alternative)):
            kind = r"\d+" if part in ("step", "seed") else r"[\w.-]+?"
            expression += f"(?P<{part}>{kind})" if i % 2 else re.escape(part)
        found = re.fullmatch(expression, text)
        if found:
            return found.groupdict()


def repository(model) -> str:
    """"160m" or "pythia-160m" -> "EleutherAI/pythia-160m"; a key of MODELS -> what stands there.
    A folder, and "owner/name", stay what they are."""
    if "/" in model or Path(model).is_dir():
        return model
    return MODELS.get(model, f"EleutherAI/pythia-{model.removeprefix('pythia-')}")


def suite_of(model):
    """-> (the pattern of its revisions, size, seed).  What names do not tell: "checkpoint-{step}"
    in a folder, else "step{step}"; the last part of the name; None."""
    name = Path(model).resolve().name if Path(model).is_dir() else repository(model)
    for models, revisions in SUITES.items():
        found = matches(models, name)
        if found is not None:
            return revisions, found.get("size", name.rpartition("/")[2]), found.get("seed")
    revisions = "checkpoint-{step}" if Path(model).is_dir() else "step{step}"
    name = name.rpartition("/")[2]
    seeds = "{size}-seed{seed}|{size}-s{seed}|{size}_seed{seed}|{size}_s{seed}"
    found = matches(seeds, name) or {"size": name}
    return revisions, found["size"], found.get("seed")


def revisions_of(model) -> dict:
    """{name: commit}: the branches and tags of a model on the hub; the subfolders of a folder, with
    the folder itself as "main"."""
    if Path(model).is_dir():
        folders = sorted(path.name for path in Path(model).iterdir() if path.is_dir())
        return {name: name for name in folders} | {"main": "."}
    with explained(f"{model}: the list of branches"):
        refs = extra("huggingface_hub").HfApi().list_repo_refs(repository(model))
    return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}


def commits_of(model, revisions) -> dict:
    """{title: commit} over all branches.  A title that comes twice: the latest."""
    found = {}
    with explained(f"{model}: the list of commits"):
        hub = extra("huggingface_hub").HfApi()
        for commit in revisions.values():
            for entry in hub.list_repo_commits(repository(model), revision=commit):
                found.setdefault(entry.title, entry.commit_id)
    return found


# ------------------------------------------------------------------------------------------------
# Which files there are, and which steps hold weights of their own

# What weight files are called, in order of preference: one or several, safetensors or bin.
LAYOUTS = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin",
           "pytorch_model-*-of-*.bin")

LINKED = "linked"                 # a folder in the cache, for shards that lack an index

# size: bytes.  sha256: of the content; "git:..." where the hub states none.  commit: or a folder.
WeightFile = namedtuple("WeightFile", "file size sha256 commit", defaults=(0, "", ""))
Audit = namedtuple("Audit", "own left_out groups")


def manifest(model, progress=None, revisions=None) -> dict:
    """Which weight files each checkpoint has: {step: (WeightFile, ...)}, their index among them.
    "main" is the last one.  On the hub from metadata alone.  revisions: a pattern, see `matches`;
    default: that of the suite.  progress: called with completed=..., total=... checkpoints.
    Raises ValueError for an unknown model, or no such revisions; Failed if the hub is silent."""
    revisions = revisions or suite_of(model)[0]
    for names in (re.findall(r"\{(\w+)\}", part) for part in revisions.split("|")):
        if "step" not in names or any(names.count(x) > 1 or not x.isidentifier() for x in names):
            raise ValueError(f"revisions {revisions!r}: expected a pattern such as step{{step}}, "
                             "with one {step}, and no word in braces twice")
    commits = there = revisions_of(model)
    if not any(matches(revisions, name) for name in there) and not Path(model).is_dir():
        commits = commits_of(model, there)
    steps = {}
    for name in commits:
        found = matches(revisions, name)
        if found:
            other = steps.setdefault(int(found["step"]), name)
            if other != name:
                raise ValueError(f"{model}: {other} and {name} are both step {found['step']}: give "
                                 "--revisions a narrower pattern")
    if not steps:
        few = ", ".join(list(there)[:8])
        raise ValueError(f"{model} has no revisions like {revisions}: give --revisions a pattern "
                         f"that fits; there are {few}")
    branches = {step: commits[steps[step]] for step in sorted(steps)}
    if "main" in there:
        branches["main"] = there["main"]
    listing = {}
    for step, commit in branches.items():
        listing[step] = files_of(model, step, commit)
        if progress:
            progress(completed=len(listing), total=len(branches))
    if Path(model).is_dir() and not listing["main"]:
        del listing["main"]
    return listing


def files_of(model, step, commit) -> tuple:
    """The weight files of one checkpoint, and their indices.  On the disk all are read through."""
    wanted = (*LAYOUTS, "*.safetensors.index.json", "*.bin.index.json")
    with explained(f"{model}: the files of step {step}"):
        if Path(model).is_dir():
            files = []
            for path in sorted((Path(model) / commit).iterdir()):
                if path.is_file() and any(fnmatch(path.name, layout) for layout in wanted):
                    files.append(WeightFile(path.name, path.stat().st_size, sha256(path), commit))
            return tuple(files)
        files, hub = [], extra("huggingface_hub").HfApi()
        for entry in hub.list_repo_tree(repository(model), revision=commit):
            if any(fnmatch(entry.path, layout) for layout in wanted):
                known = entry.lfs.sha256 if entry.lfs else "git:" + entry.blob_id
                files.append(WeightFile(entry.path, entry.size, known, commit))
        return tuple(files)


def sha256(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def files_to_read(files) -> list:
    """Of a checkpoint's WeightFiles those of the first layout that it has.
    Shards "...-00001-of-00003...": sets that are whole.  Of several, the index will decide."""
    for layout in LAYOUTS:
        found = [f for f in files if fnmatch(f.file, layout)]
        if "*" in layout:
            sets = {}
            for f in found:
                sets.setdefault(re.search(r"-of-(\d+)", f.file)[1], []).append(f)
            found = [f for of, some in sets.items() if len(some) == int(of) for f in some]
        if found:
            return found
    return []


def audit(manifest) -> Audit:
    """Which steps of a model really hold weights of their own, as far as metadata tell.
    manifest: {step: files, "main": files}; a file is a WeightFile or (file, size, sha256).
    -> Audit(steps that do; {step: why not}; (file, sha256, branches) of what several serve).
    A step is left out if one of its files, a shard included, is also that of `main` or of another
    step.  Two pairs may share, if nobody else does: steps 0 and 1 (the first step of the warm-up
    has learning rate 0), and the last step and `main`."""
    steps = sorted(step for step in manifest if step != "main")
    served = {step: files_to_read([WeightFile(*f) for f in files])
              for step, files in manifest.items()}
    holders = {}                                                # {sha256: {branch: file name}}
    for step in ("main", *steps):
        for f in served.get(step, ()):
            holders.setdefault(f.sha256, {})[step] = f.file
    groups = [(list(names.values())[-1], sha, tuple(names))
              for sha, names in holders.items() if len(names) > 1]
    groups.sort(key=lambda group: len(group[2]), reverse=True)
    rightly = ((0, 1), ("main", *steps[-1:]))
    shared = {sha for _, sha, branches in groups if branches not in rightly}
    left_out = {}
    for step in steps:
        wrong = [f.sha256 for f in served[step] if f.sha256 in shared]
        if not served[step]:
            left_out[step] = "its shards are not all there" if manifest[step] else "no weight file"
        elif wrong:
            names = holders[wrong[0]]
            first, *others = [branch for branch in names if branch != step]
            left_out[step] = f"{names[step]} is also that of {first}"
            if others:
                left_out[step] += f" and {len(others)} more"
            if len(served[step]) > 1:
                left_out[step] += f" ({len(wrong)} of {len(served[step])} files)"
    return Audit(tuple(s for s in steps if s not in left_out), left_out, tuple(groups))


def audit_table(model, manifest, left_out) -> str:
    """What an audit found, in Markdown, for an issue of the suite.  left_out: {step: why}."""
    steps = [step for step in manifest if step != "main"]
    lines = [f"`{repository(model)}`: of {len(steps)} checkpoints {len(left_out)} are not shown to "
             f"hold the weights of their step.", "", "| step | commit | file | sha256 | found |",
             "|---|---|---|---|---|"]
    for step in sorted(left_out):
        files = files_to_read([WeightFile(*f) for f in manifest.get(step, ())]) or [WeightFile("")]
        f, more = files[0], f" and {len(files) - 1} more" if len(files) > 1 else ""
        why = left_out[step].replace("|", "/")
        lines.append(f"| {step} | {f.commit[:12]} | {f.file}{more} | {f.sha256[:12]} | {why} |")
    return "\n".join(lines)


def parse_steps(text, available) -> tuple:
    """"all", or numbers and ranges first:last:stride -> the steps, in order, each of `available`.
    A range: those available in it.  ValueError for a number that is not, a range that holds none.
    >>> parse_steps("0,512,1000:3000:1000", [0, 1, 512, 1000, 2000, 3000])
    (0, 512, 1000, 2000, 3000)"""
    if text == "all":
        return tuple(available)
    asked = set()
    for part in text.split(","):
        try:
            first, *rest = map(int, part.split(":"))
            among = range(first, rest[0] + 1, *rest[1:]) if rest else range(first, first + 1)
            if not among or among.step < 1:
                raise ValueError(part)
        except (ValueError, TypeError):
            raise ValueError(f"no step {part}: expected all, or numbers and ranges "
                             "first:last:stride, with commas between") from None
        found = {step for step in available if step in among}
        if not found:
            near = [step for _, step in sorted((abs(step - first), step) for step in available)]
            raise ValueError(f"no step {part}: the nearest are {', '.join(map(str, near[:3]))}")
        asked |= found
    return tuple(sorted(asked))


def fetch(model, file, cache_dir, revision="main") -> Path:
    """Download one file of one revision into a folder of our own -> its path.  Of a model that is a
    folder: the path of what lies there."""
    with explained(f"{model}: {file} of revision {revision[:12]}"):
        if Path(model).is_dir():
            path = Path(model) / ("." if revision == "main" else revision) / file
            path.stat()                                         # it is there, or an OSError
            return path
        extra("huggingface_hub.utils").disable_progress_bars()
        return Path(extra("huggingface_hub").HfApi().hf_hub_download(
            repository(model), file, revision=revision, cache_dir=cache_dir))


def delete_cached(model, cache_dir):
    """Delete what cache_dir holds of a model: what was loaded, and what a kill left behind."""
    shutil.rmtree(Path(cache_dir) / LINKED, ignore_errors=True)
    if Path(model).is_dir():
        return
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
        self.model.config.return_dict = True                    # a file may say otherwise

    def forward(self, tokens):                                  # (B, T) int64 -> (B, T, V)
        return self.model(input_ids=tokens, use_cache=False).logits

    def read(self, tokens, columns):
        """tokens (B, T), columns (C,) -> (L + 2 states (B, T, D), logits (B, C, V)).
        States: the embedding, the residual stream after each block, and the last one's final norm.
        transformers does not return the state before that norm: a hook reads it."""
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

    def blocks(self):
        """The first list of as many modules as there are blocks, whatever its name."""
        count = self.model.config.num_hidden_layers
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise ValueError(f"{type(self.model).__name__} has no list of {count} blocks")


def read_config(folder):
    with explained(folder):
        return extra("transformers").AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False)


def start_and_longest(folder):
    """-> (the id with which texts begin, else the one with which they end; the most tokens)."""
    config = read_config(folder)
    ids = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")]
    start = next((i for i in ids if isinstance(i, int) and 0 <= i < config.vocab_size), 0)
    return start, getattr(config, "max_position_embeddings", math.inf)


def new_model(config, dtype=torch.float32):
    """With random weights."""
    return LanguageModel(extra("transformers").AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager", trust_remote_code=False))


# Other frameworks put "model." before each name.
PREFIXED = {r"^model\.(?=model\.|transformer\.|gpt_neox\.|lm_head\.|embed_out\.)": ""}


def load_model(folder, dtype=torch.float32, device="cpu") -> LanguageModel:
    """The model in `folder`.  No code from there is run.
    Raises ValueError if it cannot be read, if a tensor is missing, left over or misshapen, or if a
    number is not finite."""
    transformers = extra("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()            # what is wrong is raised below
    with explained("the weights"):                              # "eager" has second derivatives
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True,
            key_mapping=PREFIXED)
    # transformers fills gaps with random numbers, and goes on.  GPT-2's old files have a constant.
    left_over = [name for name in found["unexpected_keys"] if not name.endswith(".masked_bias")]
    wrong = [*found["missing_keys"], *left_over, *(name for name, *_ in found["mismatched_keys"])]
    if wrong:
        raise ValueError(f"the weights: {wrong[0]} is missing, left over or misshapen")
    for name, parameter in model.named_parameters():            # their files are mapped, not read:
        parameter.data = parameter.data.clone()                 # a copy outlives its file
        if not parameter.isfinite().all():
            raise ValueError(f"the weights: {name} is not finite")
    return LanguageModel(model.to(device)).eval()


def fingerprint(model) -> str:
    """A sha256 over the weights, not their file: no buffers, and -0.0 is read as 0.0."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        plain = (parameter.detach().cpu() + 0).flatten()        # -0.0 + 0 is 0.0
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def sketch(model, size=1024) -> list:
    """Some `size` of the weights, from all matrices alike, and always the same ones.
    They tell how far apart two checkpoints are, to a few percent, when both are gone."""
    matrices = [p.detach().flatten() for p in model.parameters() if p.dim() > 1]
    each, generator, some = math.ceil(size / len(matrices)), torch.Generator(), []
    for flat in matrices:
        generator.manual_seed(0)
        some.append(flat[torch.randint(len(flat), (each,), generator=generator).to(flat.device)])
    return torch.cat(some).float().tolist()


@torch.no_grad()
def guess(model) -> float:
    """Mean loss on 256 random tokens / log V: near 1 if the model is untrained, for then it
    guesses.  A trained one bets on likely tokens, and loses."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.model.config.vocab_size, (8, 33), generator=generator)
    logits = model(tokens.to(model.model.device))[:, :-1].flatten(0, 1).float().cpu()
    loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    return float(loss) / math.log(logits.shape[-1])


def download(model, files, cache_dir) -> Path:
    """One checkpoint -> its folder.  ValueError: it is not there, or not as the manifest says."""
    local, wanted = Path(model).is_dir(), files_to_read(files)
    if not wanted:
        raise ValueError("no weight file, or not all shards")
    if not local:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        need, free = sum(f.size for f in wanted), shutil.disk_usage(cache_dir).free
        if free < 1.02 * need:
            raise Failed(f"the disk is too full: {need / 1e9:.2f} GB needed, {free / 1e9:.2f} free")
    folder = fetch(model, "config.json", cache_dir, wanted[0].commit).parent
    sharded, index = "-of-" in wanted[0].file, None
    if sharded:                                                 # the index says which, and what
        name = re.sub(r"-\d+-of-\d+", "", wanted[0].file) + ".index.json"
        for f in files:
            if f.file == name:
                index = fetch(model, name, cache_dir, f.commit)
    if index:
        with explained(name):
            named = set(parse_json(decoded(index.read_bytes()))["weight_map"].values())
        wanted = [f for f in files if f.file in named]
    for f in wanted:
        path = fetch(model, f.file, cache_dir, f.commit)
        found = f.sha256 if local or f.sha256.startswith("git:") else sha256(path)
        if found != f.sha256:
            raise ValueError(f"{f.file} has sha256 {found[:12]}, the hub says {f.sha256[:12]}")
    if sharded and not index:
        folder = with_index(folder, [f.file for f in wanted], Path(cache_dir) / LINKED)
    return folder


def with_index(folder, shards, linked) -> Path:
    """A new folder, `linked`, with links to these shards, and the index that they lack."""
    linked.mkdir(parents=True)
    where = {}
    with explained("the shards without an index"):
        for name in ("config.json", *shards):
            (linked / name).symlink_to((folder / name).resolve())
        for name in shards:
            with extra("safetensors").safe_open(folder / name, "pt") as file:
                where |= dict.fromkeys(file.keys(), name)
    index = json.dumps({"metadata": {}, "weight_map": where})
    (linked / "model.safetensors.index.json").write_text(index)
    return linked


def snapshots(model, steps, manifest, cache_dir, dtype=torch.float32, device="cpu", state=None):
    """One checkpoint after another as a Snapshot: download, check, load, delete, yield.
    state: what state() of the last Snapshot returned: {"done": steps to skip, "fingerprint"}.
    A model is emptied when the next one is asked for: one is in memory, and none on the disk.
    What arrived as it should, but is no model, is a Snapshot with the model None, and state() says
    in "left_out" why.  Raises Failed at once if the disk is full or the hub does not answer, and
    in the end if something did not arrive."""
    done, failed = list(state["done"]) if state else [], []
    for step in steps:
        if step in done:
            continue
        delete_cached(model, cache_dir)
        now, net, folder = {"done": [*done, step]}, None, None
        try:
            folder = download(model, manifest.get(step, ()), cache_dir)
            net = load_model(folder, dtype, device)
            now["fingerprint"] = fingerprint(net)
        except ValueError as error:
            if folder is None:
                failed.append(f"step {step} of {model}: {error}")
                continue
            now["left_out"] = str(error)
        finally:
            delete_cached(model, cache_dir)
        done.append(step)
        yield Snapshot(step, net, None, now.copy)               # state() is a copy of `now`
        if net:
            net.to("meta")                                      # whoever holds it holds no memory
    if failed:
        raise Failed(f"{len(failed)} of {len(steps)} checkpoints failed: {'; '.join(failed)}")


# ------------------------------------------------------------------------------------------------
# Probe sets: items on which geometry and behaviour are both measured

# Texts.  A completion begins with a space, to be a token of its own.  wrong: one or several.
Item = namedtuple("Item", "prompt right wrong")

# Token ids.  N prompts; N tuples of completions, the right one first.  chance: the mean of 1 / O.
ProbeSet = namedtuple("ProbeSet", "prompts options chance")


def read_probes(path, tell=warnings.warn) -> list:
    """A file of items -> list of Items.  One that is none is left out, and `tell` is told.
    Three layouts are known by their fields: {"prompt", "right", "wrong"}, ours (.jsonl), "wrong" a
    string or a list; and those of `bbh_item` (.json) and `blimp_item` (.jsonl).
    Raises ValueError for a file that cannot be read, or without any item."""
    try:
        content = decoded(Path(path).read_bytes())
        if Path(path).suffix == ".json":
            entries = list(parse_json(content)["examples"])
        else:                                                   # other marks may stand in a text
            entries = [line for line in content.split("\n") if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no probes: {error!r}") from None
    targets = [entry.get("target") for entry in entries if isinstance(entry, dict)]
    targets = sorted({target for target in targets if isinstance(target, str)})
    items, wrong = [], []
    for number, entry in enumerate(entries, 1):
        try:
            entry = parse_json(entry) if isinstance(entry, str) else entry
            items.append(probe_item(entry, targets))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong.append(f"item {number} ({error!r})")
    if not items:
        raise ValueError(f"{path}: no probes: {'; '.join(wrong[:3])}")
    if wrong:
        tell(f"{path}: {len(wrong)} of {len(entries)} items left out: {'; '.join(wrong[:5])}")
    return items


def probe_item(entry, targets):
    """One entry of a file -> Item.  ValueError, KeyError or TypeError: it is none."""
    if "input" in entry:
        item = bbh_item(entry, targets)
    elif "sentence_good" in entry:
        item = blimp_item(entry)
    else:
        wrong = entry["wrong"]
        wrong = wrong if isinstance(wrong, list) else [wrong]
        item = Item(entry["prompt"], entry["right"], tuple(wrong))
    if not item.wrong or not all(isinstance(text, str) for text in (*item[:2], *item.wrong)):
        raise TypeError("expected texts")
    if not all((item.right, *item.wrong)) or item.right in item.wrong:
        raise ValueError("the right completion must differ from the wrong ones, none empty")
    return item


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
    """A tokenizer.json -> the function text -> list of ids.  It may say to cut texts, to fill them
    up, or to divide them at random, which was right for what it was saved for: switched off."""
    with explained(path):
        encoder = extra("tokenizers").Tokenizer.from_file(str(path))
    encoder.no_padding()
    encoder.no_truncation()
    if getattr(encoder.model, "dropout", None) is not None:
        encoder.model.dropout = None
    return lambda text: encoder.encode(text, add_special_tokens=False).ids


def continued(tokenizer, prompt, text):
    """The ids of a completion after its prompt.  By itself " a" may begin with an id of its own."""
    before, whole = tokenizer(prompt), tokenizer(prompt + text)
    together = whole[:len(before)] == before
    return whole[len(before):] if together else tokenizer(text)


def encode(sets, tokenizer, n=None, start=0, longest=math.inf, tell=warnings.warn) -> dict:
    """{name: list of Items} -> {name: ProbeSet}, each of n items spread evenly over the list.
    n: one for all sets, for RankMe cannot exceed it; default, as many as the smallest one has.
    tokenizer: text -> list of ids.  start: the id that stands for an empty prompt.
    longest: items of more tokens are left out, as are those with an empty completion.
    Raises ValueError if a set has fewer than n items left, or fewer than two."""
    encoded = {}
    for name, items in sets.items():
        lines = []
        for item in items:
            options = tuple(continued(tokenizer, item.prompt, text)
                            for text in (item.right, *item.wrong))
            prompt = tokenizer(item.prompt) or [start]
            if all(options) and len(prompt) + max(map(len, options)) <= longest:
                lines.append((prompt, options))
        if len(lines) < len(items):
            tell(f"probe set {name}: {len(items) - len(lines)} of {len(items)} items left out: a "
                 f"completion without tokens, or more than {longest} of them in all")
        encoded[name] = lines
    n = min(map(len, encoded.values())) if n is None else n
    probes = {}
    for name, lines in encoded.items():
        if not 1 < n <= len(lines):
            raise ValueError(f"probe set {name} has {len(lines)} items where {max(n, 2)} are "
                             "asked for")
        prompts, options = zip(*[lines[i * len(lines) // n] for i in range(n)])
        probes[name] = ProbeSet(prompts, options, sum(1 / len(some) for some in options) / n)
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
    margin: log p(right) - log p(best wrong one).  log_prob: of the right completion among its
      options, against that of a guess, chance_log_prob.  loss: of a token of it.
    rankme: {position: [embedding, each block, final norm]}; rankme_squared_centred: of "first".
    rankme_interval: {"first": of the last block}.  distinct: prompts, the most for "first".
    bfloat16 lifts a collapsed rank (by some 8%): use one dtype for a series."""
    states, log_probs = read_probe(model, probe)
    generator = torch.Generator().manual_seed(0)
    margin = (log_probs[:, 0] - log_probs[:, 1:].amax(1)).double()                  # (N,)
    lengths = torch.tensor([len(options[0]) for options in probe.options])
    guesses = torch.tensor([len(options) for options in probe.options]).double().log()
    row = {"n": len(margin), "chance": probe.chance, "chance_log_prob": -float(guesses.mean()),
           "distinct": len({tuple(prompt) for prompt in probe.prompts}),
           "accuracy": float((margin > 0).double().mean()),
           "log_prob": float((log_probs[:, 0] - log_probs.logsumexp(1)).mean()),
           "loss": float((-log_probs[:, 0] / lengths).mean()), "margin": float(margin.mean()),
           "rankme": {position: measures.rankme_many(layers).tolist()
                      for position, layers in states.items()},                      # (L + 2, N, D)
           "rankme_squared_centred": {"first": [*map(rankme_squared_centred, states["first"])]},
           "rankme_interval": {"first": rankme_interval(states["first"][-2], generator)}}
    lines = [(prompt, options[0]) for prompt, options in zip(probe.prompts, probe.options)]
    data = right_padded(lines, model.model.device)
    for name in extras:
        value = getattr(measures, name)(model, example_loss, data, **EXTRAS[name])
        row[name] = value if isinstance(value, float) else value.row()
    return row


class ProbeMeasure:
    """What sweep.record calls at every checkpoint: measure(snapshot) -> columns of its row.
    {"fingerprint", "sketch", "guess", "levels"}; with "twin_of" where an earlier step has the same
    weights, whose numbers are repeated; with "left_out", which says why nothing can be used.
    Without probes: for the audit alone.
    state: {fingerprint: columns of a twin's row}, for the run's checkpoint."""

    def __init__(self, probes, extras=()):
        self.probes, self.extras, self.state = probes, extras, {}

    def __call__(self, snapshot) -> dict:
        if snapshot.model is None:
            return {"left_out": snapshot.state()["left_out"], "levels": {}}
        row = {"fingerprint": snapshot.state()["fingerprint"]}
        if row["fingerprint"] in self.state:
            return row | self.state[row["fingerprint"]]
        row |= {"sketch": sketch(snapshot.model), "guess": guess(snapshot.model)}
        try:
            levels = {name: probe_row(snapshot.model, probe, self.extras)
                      for name, probe in self.probes.items()}
        except ValueError as error:                             # states that are not finite
            return row | {"left_out": str(error), "levels": {}}
        self.state[row["fingerprint"]] = {"twin_of": snapshot.step, "levels": levels}
        return row | {"levels": levels}


def run_config(model, folder, dtype, device, extras, probes, revisions=None) -> dict:
    """What decides the numbers of a measurement, and what analysis wants to know of a model.
    folder: where its config.json lies.  dtype, device: their names.  The learning rate's warm-up is
    not known: every checkpoint counts."""
    config, (pattern, size, seed) = read_config(folder), suite_of(model)
    with torch.device("meta"):                                  # shapes alone
        parameters = sum(p.numel() for p in new_model(config).parameters())
    digests = {name: hashlib.sha256(repr(tuple(probe)).encode()).hexdigest()[:16]
               for name, probe in probes.items()}
    return {"model": repository(model), "revisions": revisions or pattern, "size": size,
            "seed": int(seed or 0), "parameters": parameters, "width": config.hidden_size,
            "warmup": 0, "dtype": dtype, "device": device, "threads": torch.get_num_threads(),
            "measures": list(extras), "probes": digests}


def plan(folder, manifest, steps, probes, dtype=torch.float32, device="cpu") -> Plan:
    """What measuring these steps with these probes takes.  folder: of the model's config.json.
    -> Plan(steps; bytes to download; bytes on disk at a time; bytes of memory: weights as in the
    file and as converted, and .5 GB; seconds: forward passes, and 2 s a GB to hash and read).
    Not counted: the download; RankMe (a tenth of the time, at 14M a third); EXTRAS."""
    # Models with one block and with three show what a block costs.  Their weights are random.
    config, costs = read_config(folder), []
    deeper = (config.num_hidden_layers - 1) / 2
    for blocks in (1, 1, 3):                                    # the first pays what is paid once
        config.num_hidden_layers = blocks
        with torch.device(device):
            model = new_model(config, dtype)
        seconds = 0.0
        for probe in probes.values():                           # four items of each set
            start = time.perf_counter()
            read_probe(model, probe._replace(prompts=probe.prompts[:4], options=probe.options[:4]))
            seconds += (time.perf_counter() - start) * max(1, len(probe.prompts) / 4)
        costs.append((seconds, dtype.itemsize * sum(p.numel() for p in model.parameters())))
    _, one, three = costs
    seconds, weights = (a + deeper * (b - a) for a, b in zip(one, three))
    sizes = [sum(f.size for f in files_to_read(manifest[step])) for step in steps]
    return Plan(tuple(steps), sum(sizes), max(sizes), int(max(sizes) + weights + 5e8),
                len(steps) * seconds + 2e-9 * sum(sizes))


def prepare(model, manifest, audited, steps, names, files, n, tokens, dtype, device, cache, tell):
    """What a measurement needs to know before it downloads weights -> (steps, probe sets, folder of
    the config.json, what it costs in words).
    steps: see parse_steps; those without weights of their own are left out.  names: of our own
    sets.  files: of items.  n: see `encode`.  tokens: a tokenizer.json; None: the model's."""
    asked = parse_steps(steps, tuple(step for step in manifest if step != "main"))
    kept = [step for step in asked if step in audited.own]
    if len(kept) < len(asked):
        tell(f"the audit leaves out {len(asked) - len(kept)} of {len(asked)} steps (see `python "
             f"run.py pythia audit {model}`)")
    if not kept:
        raise ValueError(f"--steps {steps}: none of them holds weights of its own")
    sets = {name: items for name, items in own_probes().items() if name in names}
    for path in map(Path, files):
        if path.stem in sets:
            raise ValueError(f"two probe sets called {path.stem}; rename a file")
        sets[path.stem] = read_probes(path, tell)
    last = manifest[kept[-1]][0].commit
    folder = fetch(model, "config.json", cache, last).parent
    if sets:
        with contextlib.suppress(ValueError):                   # it may lie in `main` alone
            tokens = tokens or fetch(model, "tokenizer.json", cache, last)
        tokens = tokens or fetch(model, "tokenizer.json", cache)
        sets = encode(sets, tokenizer(tokens), n, *start_and_longest(folder), tell)
    cost = plan(folder, manifest, kept, sets, getattr(torch, dtype), device)
    return kept, sets, folder, (
        f"{model}: {len(kept)} checkpoints ({kept[0]} ... {kept[-1]}); "
        f"{cost.download / 1e9:.2f} GB to download, at most {cost.disk / 1e9:.2f} GB on disk at "
        f"a time; {cost.memory / 1e9:.1f} GB of memory; about {math.ceil(cost.seconds / 60)} "
        f"minutes ({device}, {dtype})")


# ------------------------------------------------------------------------------------------------
# The published evaluations: behaviour alone, at 27 steps, from the Pythia repository

EvalRow = namedtuple("EvalRow", "model step task metric value stderr")
EvalEvent = namedtuple("EvalEvent", "model task chance emergence late best best_step last stderr")
SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])")                     # 160m, 2.8b


def read_evals(folder, tell=warnings.warn) -> list:
    """The lm-evaluation-harness JSON below `folder`, a file for each model and step -> EvalRows.
    Model and step: by the file's name, "..._step<N>.json", below a folder "pythia-<size>" or after
    that size; else by its own config, if that names a revision, or a folder, with a step.
    Folders above `folder` say nothing.  A filter stays in the metric's name, but for "none".
    A file that cannot be read is left out, and `tell` is told.  Raises ValueError for a folder with
    none, and for two values of one thing (zero-shot beside five-shot, say)."""
    found, wrong = {}, []
    for path in sorted(Path(folder).rglob("*.json")):
        try:
            content = parse_json(decoded(path.read_bytes()))
            model, step = evaluated(path.relative_to(folder), content, Path(folder).resolve().name)
            if step is None:
                continue
            results = evaluation_results(content)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
            wrong.append(f"{path}: not a result file of lm-evaluation-harness: {error!r}")
            continue
        for task, metrics in results.items():
            for metric, (value, stderr) in metrics.items():
                row = EvalRow(model, step, task, metric, value, stderr)
                if found.setdefault(row[:4], row) != row:
                    raise ValueError(f"{path}: two values for {task} ({metric}) at step {step}")
    if not found:
        raise ValueError(f"{folder}: no results of lm-evaluation-harness that name a step: files "
                         f"..._step<N>.json, or with a revision in their config; {wrong[:1]}")
    if wrong:
        tell(f"{len(wrong)} files left out: {'; '.join(wrong[:5])}")
    return [found[key] for key in sorted(found)]


def evaluated(path, content, folder):
    """-> (model, step) of a result file; the step None where nothing names one."""
    name = re.fullmatch(r"(.*?)[_-]?step(\d+)", path.stem)
    if name:
        named = [part for part in path.parts[-2::-1] if re.fullmatch(r"pythia-\d[\w.-]*", part)]
        size = f"pythia-{name[1]}" if SIZE.fullmatch(name[1]) else name[1]
        above = path.parts[-2] if len(path.parts) > 1 else folder
        return (named[0] if named else size or above), int(name[2])
    about = content.get("config") or {}
    arguments = about.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(pair.split("=", 1) for pair in arguments.split(",") if "=" in pair)
    model = str(arguments.get("pretrained") or content.get("model_name") or "").rstrip("/")
    above, _, last = model.rpartition("/")
    revision = str(arguments.get("revision") or about.get("model_revision") or "")
    for pattern in (*SUITES.values(), "{name}-{step}", "{name}_{step}", "{name}step{step}"):
        for text, named in ((revision, last), (last, above.rpartition("/")[2])):
            found = matches(pattern, text)                      # a local model: a step's folder
            if found and named:
                return named, int(found["step"])
    return None, None


def evaluation_results(content):
    """{task: {metric: (value, stderr)}} of a result file; what is no number ("N/A") is left out.
    ValueError for two values of one metric ("acc" beside "acc,none").
    Where all 57 subjects of MMLU are there (hendrycksTest-*), mmlu_mean57 is their mean."""
    results = {}
    for task, values in content["results"].items():
        mine = results.setdefault(task, {})
        for metric, value in values.items():
            kind, _, chosen = metric.partition(",")             # newer versions: "acc,none"
            if is_number(value) and not kind.endswith("_stderr"):
                stderr = values.get(f"{kind}_stderr,{chosen}" if chosen else f"{kind}_stderr")
                name = metric if chosen not in ("", "none") else kind
                row = float(value), stderr if is_number(stderr) else None
                if mine.setdefault(name, row) != row:
                    raise ValueError(f"two values for {task} ({name})")
    subjects = [mine["acc"] for task, mine in results.items() if task.startswith("hendrycksTest-")]
    if len(subjects) == 57:
        variance = sum(stderr ** 2 for _, stderr in subjects)
        results["mmlu_mean57"] = {"acc": (sum(value for value, _ in subjects) / 57,
                                          variance ** 0.5 / 57)}
    return results


def is_number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def between(steps, step):
    """An event seen at a checkpoint lies behind the one before it: (after, by).  None stays None.
    >>> between([512, 1000, 3000], 3000)
    (1000, 3000)"""
    return None if step is None else (max([0, *(s for s in steps if s < step)]), step)


def model_size(model):
    """A key to sort by: pythia-70m comes before pythia-1b."""
    size = SIZE.search(model)
    return float(size[1]) * {"m": 1, "b": 1000}[size[2]] if size else 0, model


def chance_of(task):
    """What a guess scores, by CHANCE, where names may end in "*"; None where it is not known."""
    return next((chance for name, chance in CHANCE.items() if fnmatch(task, name)), None)


def evals_emergence(rows, metric="acc", threshold=0.05, persistence=3, chance=None) -> list:
    """When each task emerges in each model, from published accuracies -> EvalEvents, by task, size.
    Emerged, by the rule of emergence.py (which says how long it must last):
        (accuracy - chance) / (1 - chance) >= threshold    and    accuracy >= chance + 3 stderr
    emergence: (after the one checkpoint, by the next), None for never.  late: likewise, of what is
    there at the end, but was not watched for long enough.  stderr: of `last`.
    chance: {task: accuracy}, default by CHANCE, and tasks that are not there are left out; or what
    the untrained network scores, if that is more (PIQA: .535).  The threshold is low because most
    of these tasks end below .3."""
    events, tasks = [], dict.fromkeys(row.task for row in rows)
    for task in CHANCE if chance is None else chance:
        tasks[task] = tasks.pop(task, None)                     # in the order of that table
    for task in tasks:
        guess = chance_of(task) if chance is None else chance.get(task)
        mine = [row for row in rows if (row.task, row.metric) == (task, metric)]
        models = {row.model for row in mine} if guess is not None else ()
        for model in sorted(models, key=model_size):
            curve = [row for row in mine if row.model == model]
            steps, values = [row.step for row in curve], [row.value for row in curve]
            emergence.check_share(torch.tensor(values), f"{task} of {model}: {metric}")
            base = max(guess, values[0] if steps[0] == 0 else 0)
            clear = [row.value if row.value - base >= 3 * (row.stderr or 0) else base
                     for row in curve]                          # accuracy where clearly above base
            dates = [emergence.emergence_step(steps, clear, base, threshold, persistence, lasting)
                     for lasting in (claims.Specification.lasting, 1)]
            emerged, late = [between(steps, date) for date in dates]
            best = values.index(max(values))
            events.append(EvalEvent(model, task, base, emerged, None if emerged else late,
                                    values[best], steps[best], values[-1], curve[-1].stderr))
    return events


def apart(steps) -> str:
    """How many steps lie between neighbouring checkpoints, which bounds what can be dated.
    >>> apart([0, 1, 512, 1000, 3000, 13000, 23000])
    '7 checkpoints, 1 to 10,000 steps apart (median 1,256)'"""
    steps = sorted(set(steps))
    gaps = sorted(b - a for a, b in zip(steps, steps[1:])) or [0]
    middle = (gaps[(len(gaps) - 1) // 2] + gaps[len(gaps) // 2]) / 2
    return (f"{len(steps)} checkpoints, {gaps[0]:,} to {gaps[-1]:,} steps apart "
            f"(median {middle:,.0f})")


def eval_notes(rows, events) -> list:
    """In words: which tasks are not dated, and how far apart each model's checkpoints are."""
    dated = {event.task for event in events}
    others = {row.task for row in rows if not row.task.startswith("hendrycksTest-")} - dated
    few = ", ".join(sorted(others)[:8]) + (" ..." if len(others) > 8 else "")
    found = [f"{model}: {apart(row.step for row in rows if row.model == model)}"
             for model in sorted({row.model for row in rows}, key=model_size)]
    if others:
        found.append(f"{len(others)} tasks are not dated, for what a guess scores, or acc, is not "
                     f"known: {few}")
    return found


# ------------------------------------------------------------------------------------------------
# The audit by content: does each checkpoint lie on the path of the others?

def out_of_place(sketches) -> dict:
    """Checkpoints that do not lie where their steps say -> {step: why}.
    Training is a path through the weights.  Is it much shorter if two checkpoints are exchanged, or
    one is moved?  (By a fifth of the distances to their neighbours; noise around a point gains
    nothing.)  Or are there strangers?  A checkpoint, or several in a row, w_i to w_j, if
        |w_(i-1) - w_(j+1)|  <  (|w_(i-1) - w_i| + |w_j - w_(j+1)|) / 4
    (on a random walk it is .7 of that sum), or if the cosines of these two pairs are both less than
    half that of w_(i-1) and w_(j+1), which is above .5; at an end of the path, if its weights have
    no more to do with their neighbour's than chance has (a cosine below .1, the next one above .5).
    Whatever saves most is set right, or taken out, and the rest looked at again.
    sketches: {step: (W,) weights}.  Twins must have been left out."""
    steps, why = sorted(sketches), {}
    x = torch.tensor([sketches[step] for step in steps], dtype=torch.float64)       # (S, W)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    unit = x / x.norm(dim=1, keepdim=True)
    cosine, path = (unit @ unit.T).tolist(), list(range(len(steps)))
    while len(path) > 3:
        saved, moved, better = shorter_path(path, distance)
        gain, lone = strangers(path, distance, cosine)
        if moved and saved > 0.7 * gain:
            if len(moved) == 2:
                first, second = (steps[k] for k in moved)
                why[first] = f"exchanged with step {second}, by its weights"
                why[second] = f"exchanged with step {first}, by its weights"
                path = better
                continue
            place = better.index(moved[0])
            beside = [str(steps[k]) for k in better[max(place - 1, 0):place + 2] if k != moved[0]]
            why[steps[moved[0]]] = f"its weights lie beside those of step {' and '.join(beside)}"
        elif lone:
            moved = lone
            far = "its weights lie far from the others, as another run's do"
            why |= dict.fromkeys((steps[k] for k in lone), far)
        else:
            break
        path = [k for k in path if k not in moved]
    return why


def path_length(path, distance):
    """Of a path through the checkpoints; the ends count twice, for they have one neighbour."""
    steps = [distance[a][b] for a, b in zip(path, path[1:])]
    return sum(steps) + steps[0] + steps[-1]


def shorter_path(path, distance):
    """(what is saved, [the two to exchange, or the one to move], the path then); (0, [], path)."""
    best, found, length = 0, ([], path), path_length(path, distance)
    around = [distance[path[max(i - 1, 0)]][k] + distance[k][path[min(i + 1, len(path) - 1)]]
              for i, k in enumerate(path)]
    for i, j in product(range(len(path)), repeat=2):
        exchanged, moved = path.copy(), path.copy()
        exchanged[i], exchanged[j] = path[j], path[i]
        moved.insert(j, moved.pop(i))
        for which, other in (((i, j), exchanged), ((i,), moved)):
            saved = length - path_length(other, distance)
            if saved > max(best, 0.2 * sum(around[k] for k in which)):
                best, found = saved, ([path[k] for k in which], other)
    return best, *found


def strangers(path, distance, cosine):
    """(what is saved, the fewest in a row that lie far from the others' path); (0, []) for none."""
    for size in range(1, len(path) // 2):
        found = []
        for i in range(len(path) - size + 1):
            block, before, after = path[i:i + size], path[:i], path[i + size:]
            if before and after:
                a, b = before[-1], after[0]
                own = distance[a][block[0]] + distance[block[-1]][b]
                alike = max(cosine[a][block[0]], cosine[block[-1]][b])
                apart = 4 * distance[a][b] < own or alike < cosine[a][b] / 2 > 0.25
                own -= distance[a][b]
            else:                                               # an end of the path
                inner, near, far = [*block, *after][size - 1:size + 2] if after else \
                    [*before, *block][-size:-size - 3:-1]
                own = distance[inner][near]
                apart = cosine[inner][near] < 0.1 and cosine[near][far] > 0.5
            if apart:
                found.append((own, block))
        if found:
            return max(found)
    return 0, []


def examine(rows, audited=None):
    """Which rows of a measurement can be used -> (these, by step; {step left out: why}).
    rows: of metrics.jsonl.  audited: an Audit of the metadata.  Left out are what that says, what
    could not be loaded or measured, twins (one has a wrong name), what is out of place, and a first
    step, 0 or 1, that does not guess as an untrained model does."""
    left_out, by_step = {}, {row["step"]: row for row in rows}
    for step in (0, 1):
        guessed = by_step.get(step, {}).get("guess", 1)
        if guessed is not None and abs(guessed - 1) > 0.1:
            left_out[step] = (f"its loss on random tokens is {guessed:.2f} log V, where an "
                              "untrained model has 1: weights of another step")
    for step, row in by_step.items():
        why = (audited.left_out if audited else {}).get(step, row.get("left_out"))
        if why:
            left_out[step] = why
    wrong = set(left_out)                                       # of these a twin may be right
    for step, row in sorted(by_step.items()):
        twin = row.get("twin_of")
        if twin is not None and twin not in wrong:
            first, second = sorted((twin, step))
            left_out.setdefault(second, f"same weights as step {first}")
            if (first, second) != (0, 1):                       # which are rightly the same
                left_out[first] = f"same weights as step {second}"
    sketches = {step: row["sketch"] for step, row in by_step.items()
                if "sketch" in row and step not in left_out}
    lengths = [len(weights) for weights in sketches.values()]
    for step, weights in list(sketches.items()):
        if len(weights) != max(set(lengths), key=lengths.count):
            left_out[step] = "it has another number of matrices than most"
            del sketches[step]
    if len(sketches) > 3:
        left_out |= out_of_place(sketches)
    return [by_step[step] for step in sorted(by_step) if step not in left_out], left_out


# ------------------------------------------------------------------------------------------------
# Geometry against behaviour, and the verdict on C9

Order = namedtuple("Order", "run task onset emergence lead verdict collapse recovery compression")
Comparison = namedtuple("Comparison", "run rows orders steps left_out")


def compare(name, config, rows, audited=None) -> Comparison:
    """One run's checkpoints: does each task's geometry move before its behaviour?
    name, config, rows: of the run.  audited: an Audit.
    -> Comparison(an emergence.Run; the rows used; an Order for each task; the steps used; {step
    left out: why}).  Raises ValueError where fewer than 4 checkpoints remain."""
    rows, left_out = examine(rows, audited)
    steps = [row["step"] for row in rows]
    if rows and not rows[0]["levels"]:
        raise ValueError(f"{name} was measured without probes; to compare it, measure with some")
    if len(steps) < 4:
        raise ValueError(f"{name}: {len(steps)} checkpoints can be used, and at least 4 are needed")
    table = [cell for row in rows for cell in table_rows(name, row)]
    [run] = emergence.from_table(table, {name: config})
    events = emergence.event_table([run])
    orders = [task_order(name, rows, steps, task, *dates) for task, *dates in
              zip(events.levels, events.onset[0].tolist(), events.emergence[0].tolist())]
    return Comparison(run, rows, orders, steps, left_out)


def notes(comparison) -> list:
    """In words: which checkpoints were left out."""
    return [f"{comparison.run.name}, step {step} left out: {why}"
            for step, why in sorted(comparison.left_out.items())]


def table_rows(name, row):
    """(run, level, step, quantity, value) of one row of metrics.jsonl."""
    for level, columns in row["levels"].items():
        values = {quantity: columns.get(quantity) for quantity in (
            "accuracy", "log_prob", "loss", "distinct", "chance", "chance_log_prob",
            "gradient_rank")} | {"examples": columns["n"]}
        for quantity, number in (("hessian_top", "eigenvalue"), ("llc", "mean")):
            values[quantity] = columns.get(quantity, {}).get(number)
        for quantity, value in (*values.items(), *spread("rankme", columns["rankme"])):
            yield name, level, row["step"], quantity, value


def task_order(name, rows, steps, task, began, emerged) -> Order:
    """When one probe set's geometry and behaviour move, and which of them first.
    onset, where RankMe begins to recover from its floor, and emergence: (after, by) or None.
    lead: (low, high) steps, ends excluded, positive if geometry is first.
    verdict: leads, lags, unresolved (0 lies in the interval), never (one did not happen).
    Beyond the bootstrap intervals, collapse: the floor is below the start; recovery: a later peak
    is above the floor; compression: the end is below that peak."""
    levels = [row["levels"][task] for row in rows]
    rank = [level["rankme"]["first"][-2] for level in levels]
    spread = [level["rankme_interval"]["first"] for level in levels]                # [low, high]
    began, emerged = (between(steps, int(date)) if math.isfinite(date) else None
                      for date in (began, emerged))
    lead, verdict = None, "never"
    if began and emerged:
        lead = emerged[0] - began[1], emerged[1] - began[0]
        verdict = "leads" if lead[0] >= 0 else "unresolved"
        if lead[1] <= 0:
            verdict = "lags"
    floor = rank.index(min(rank))
    peak = rank.index(max(rank[floor:]), floor)
    return Order(name, task, began, emerged, lead, verdict,
                 collapse=spread[floor][1] < spread[0][0],
                 recovery=spread[peak][0] > spread[floor][1],
                 compression=spread[-1][1] < spread[peak][0])


def c9_verdict(comparisons, findings) -> str:
    """C9 in two sentences: are there global patterns, and precursors of single tasks?
    findings: of claims.study, of the same runs.  The second is its verdict on C4: whole tasks are
    exchanged, and what comes first must also beat behaviour at a tenth of its way."""
    orders = [order for comparison in comparisons for order in comparison.orders]
    count = {name: sum(getattr(order, name) for order in orders)
             for name in ("collapse", "recovery", "compression")}
    start = max(comparison.steps[0] for comparison in comparisons)
    if start > 1:
        first = f"cannot tell, for the first checkpoint with weights of its own is step {start}"
    elif min(count["collapse"], count["recovery"]) > len(orders) / 2:
        first = "replicate, as C9 says"
    else:
        first = "do not replicate, against C9"
    [c4] = [row for row in findings["claims"] if row["claim"] == "C4"]
    second = c4["verdict"]
    if "cannot tell" not in second:
        second += ", against C9" if second.startswith("holds") else ", as C9 says"
    seen = ", ".join(f"{name} in {k} of {len(orders)}" for name, k in count.items())
    verdicts = [order.verdict for order in orders]
    kinds = ", ".join(f"{kind} in {verdicts.count(kind)}"
                      for kind in ("leads", "lags", "unresolved", "never"))
    return (f"Global patterns: {first} ({seen} probe sets). "
            f"Precursors of single tasks: {second} (geometry {kinds}).")


# ------------------------------------------------------------------------------------------------
# Data: what a guess scores, the suites that have names here, and our own probe sets

# Accuracy of the best answer that ignores the question.  A few questions of ARC have three or five
# options.  66 of Winograd's 104 (wsc) have the same answer.
CHANCE = {"lambada_openai": 0.0, "sciq": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25,
          "logiqa": 0.25, "piqa": 0.5, "winogrande": 0.5, "wsc": 66 / 104, "mmlu_mean57": 0.25,
          "lambada_standard": 0.0, "hellaswag": 0.25, "mmlu": 0.25, "mmlu_*": 0.25, "copa": 0.5,
          "openbookqa": 0.25, "blimp": 0.5, "blimp_*": 0.5, "race": 0.25}

# Suites: model on the hub -> its checkpoints.  Not on the hub's pages when we looked: pico-decoder,
# whose code writes such titles of commits, and which needs code of its own to be loaded.
SUITES = {
    "EleutherAI/pythia-{size}-seed{seed}": "step{step}",        # PolyPythias
    "EleutherAI/pythia-{size}": "step{step}",
    "allenai/OLMo-2-{size}": "stage1-step{step}-tokens{tokens}B|step{step}-tokens{tokens}B",
    "HuggingFaceTB/SmolLM3-{size}-checkpoints": "stage1-step-{step}",
    "pico-lm/pico-decoder-{size}": "Saving HF Model -- Step {step}",
    "stanford-crfm/{name}-gpt2-{size}-x{seed}": "checkpoint-{step}",            # CRFM Mistral
    "LLM360/Amber": "ckpt_{step}"}

MODELS = {
    "olmo2-1b": "allenai/OLMo-2-0425-1B", "olmo2-7b": "allenai/OLMo-2-1124-7B",
    "olmo2-13b": "allenai/OLMo-2-1124-13B", "olmo2-32b": "allenai/OLMo-2-0325-32B",
    "smollm3": "HuggingFaceTB/SmolLM3-3B-checkpoints", "amber": "LLM360/Amber",
    "pico-tiny": "pico-lm/pico-decoder-tiny", "pico-small": "pico-lm/pico-decoder-small",
    "pico-medium": "pico-lm/pico-decoder-medium", "pico-large": "pico-lm/pico-decoder-large",
    "mistral-x21": "stanford-crfm/alias-gpt2-small-x21",
    "mistral-x49": "stanford-crfm/battlestar-gpt2-small-x49",
    "mistral-x81": "stanford-crfm/caprica-gpt2-small-x81",
    "mistral-x343": "stanford-crfm/darkmatter-gpt2-small-x343",
    "mistral-x777": "stanford-crfm/expanse-gpt2-small-x777"}


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
            sets[name].append((form.format(subject), right, pairs[(i + distance) % 30][1]))
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
