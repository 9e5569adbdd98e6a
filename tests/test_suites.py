"""Suites other than Pythia, and files as people have them.

Four architectures (NeoX, GPT-2, Llama, OLMo 2), two seeds each, learn induction in some seconds.
Their checkpoints are served on loopback under the names that suites give them: branches, tags,
titles of commits.  What comes back is held against transformers' own, loaded from the same files.
Then faults are planted among checkpoints, and settings, leftovers and damage in files."""
import functools
import itertools
import json
import math
import random
import shutil

import pytest
import torch

import hub as loopback                                          # tests/hub.py
import measures
import pythia
import sweep
from test_pythia import (SHAPES, TINY, TRUE_STEPS, command, from_config, induction,  # noqa: F401
                         needs_extra, probe_file, set_endpoint, shaken, stored, tiny_model,
                         weight_files, word_tokenizer, write)

try:
    import safetensors.torch as safetensors_torch
    import tokenizers
    import transformers
except ImportError:
    transformers = None

LIKE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 600,
        "intermediate_size": 128, "max_position_embeddings": 128, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
# {kind: (config, what its checkpoints are called, its final norm)}
KINDS = {
    "neox": (TINY, "step{step}", "gpt_neox.final_layer_norm"),
    "gpt2": ({"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 128,
              "vocab_size": 600, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0},
             "tag checkpoint-{step}", "transformer.ln_f"),
    "llama": (LIKE | {"model_type": "llama"}, "commit Saving HF Model -- Step {step}",
              "model.norm"),
    "olmo2": (LIKE | {"model_type": "olmo2"}, "stage1-step{step}-tokens{tokens}B", "model.norm")}


@functools.cache
def learned(kind, seed):
    """{step: LanguageModel's state} of a model that learns induction in 128 steps."""
    torch.manual_seed(seed)
    model = pythia.LanguageModel(from_config(KINDS[kind][0]))
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    states = {}
    for step in range(TRUE_STEPS[-1] + 1):
        if step in TRUE_STEPS:
            states[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1, step / 20)      # 0 at first
        x = induction(64, generator)
        logits = model(x)[:, 8:-1].flatten(0, 1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, x[:, 9:].flatten()).backward()
        optimizer.step()
    return states


def as_saved(kind, state, folder):
    """The files that transformers writes of it -> {file: bytes}."""
    model = pythia.LanguageModel(from_config(KINDS[kind][0]))
    model.load_state_dict(state, strict=False)                  # GPT-2's head is its embedding
    shutil.rmtree(folder, ignore_errors=True)
    model.model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def repository_of(kind, seed, folder):
    """{revision: {file: bytes}}, under the names that the suites have."""
    revisions = {}
    for step, state in learned(kind, seed).items():
        name = KINDS[kind][1].replace("{step}", str(step)).replace("{tokens}", str(step // 4))
        revisions[name] = as_saved(kind, state, folder)
    tokenizer = word_tokenizer().to_str().encode()
    return {"main": revisions[name] | {"tokenizer.json": tokenizer}} | revisions


NAME = "tests/mine"


@pytest.fixture
def hub(monkeypatch):
    """Without repositories, at first."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with loopback.serve({}) as server:
        set_endpoint(monkeypatch, server.url)
        yield server


@pytest.fixture
def some(hub, tmp_path):
    """Five checkpoints of a NeoX as "tests/mine", of which the last one is `main` -> the hub."""
    files = {}
    for step in (0, 2, 4, 8, 64):
        files[f"step{step}"] = as_saved("neox", learned("neox", 0)[step], tmp_path / "written")
    hub.repositories[NAME] = files | {"main": files["step64"]}
    return hub


def by_hand(model, norm, probe):
    """Accuracy, log-probabilities and states of each item, with transformers alone."""
    log_probs, states = [], []
    last_block = []
    hook = model.get_submodule(norm).register_forward_pre_hook(
        lambda module, inputs: last_block.append(inputs[0].detach()))
    for prompt, options in zip(probe.prompts, probe.options):
        scores = []
        for option in options:
            with torch.no_grad():
                out = model(torch.tensor([prompt + option]), output_hidden_states=True)
            log_p = out.logits[0].log_softmax(-1)
            scores.append(sum(float(log_p[len(prompt) - 1 + i, token])
                              for i, token in enumerate(option)))
            if option is options[0]:
                layers = [*out.hidden_states[:-1], last_block[-1], out.hidden_states[-1]]
                states.append(torch.stack([h[0, len(prompt) - 1] for h in layers]))
        log_probs.append(scores)
    hook.remove()
    return torch.tensor(log_probs), torch.stack(states, 1)      # (N, O), (L + 2, N, D)


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way_on_another_suite(kind, hub, tmp_path, command):      # noqa: F811
    """audit, plan, measure, audit by content, compare, report; two seeds."""
    _, called, norm = KINDS[kind]
    revisions = called.removeprefix("tag ").removeprefix("commit ")
    for seed in (0, 1):
        name = f"tests/{kind}-seed{seed}"
        hub.repositories[name] = repository_of(kind, seed, tmp_path / "written")
        audit = command("audit", name, "--revisions", revisions)
        assert audit.returncode == 0, audit                     # steps 0 and 1, 128 and main: right
        assert "15 checkpoints; 15 hold weights of their own" in audit.stdout, audit
        chosen = [name, "--revisions", revisions, "--probes", "grammar,facts", "--probe-file",
                  probe_file(tmp_path)]
        hub.log.clear()
        plan = command("plan", *chosen)
        assert plan.returncode == 0 and "15 checkpoints (0 ... 128)" in plan.stdout, plan
        assert not [path for _, path in hub.log if path.endswith(".safetensors")]
        measure = command("measure", *chosen, "--yes")
        assert measure.returncode == 0, measure
        content = command("audit", name, "--run", f"runs/{kind}-seed{seed}")
        assert "14 hold weights of their own and were loaded" in content.stdout, content
        assert "| 1 | " in content.stdout and "same weights as step 0" in content.stdout

    rows = sweep.read_rows(tmp_path / f"runs/{kind}-seed1/metrics.jsonl")
    rows = {row["step"]: row for row in rows}
    config = sweep.read_json(tmp_path / f"runs/{kind}-seed1/config.json")
    assert (config["size"], config["seed"]) == (kind, 1)
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    items = {"induction": pythia.read_probes(probe_file(tmp_path))}
    probe = pythia.encode(items, pythia.tokenizer(tmp_path / "tokenizer.json"))["induction"]
    for step in (0, 48, 128):                                   # a direct load of what was served
        for file, body in as_saved(kind, learned(kind, 1)[step], tmp_path / "direct").items():
            (tmp_path / "direct" / file).write_bytes(body)
        direct = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "direct").eval()
        log_probs, states = by_hand(direct, norm, probe)
        level = rows[step]["levels"]["induction"]
        right = log_probs[:, 0] - log_probs.logsumexp(1)
        assert level["log_prob"] == pytest.approx(float(right.mean()), rel=1e-5, abs=1e-5)
        assert level["loss"] == pytest.approx(-float(log_probs[:, 0].mean()), rel=1e-5)
        accuracy = (log_probs[:, 0] > log_probs[:, 1]).double().mean()
        assert level["accuracy"] == pytest.approx(float(accuracy), rel=1e-5)
        ranks = [measures.rankme(x) for x in states]
        assert level["rankme"]["first"] == pytest.approx(ranks, rel=1e-5)

    folders = [f"runs/{kind}-seed{seed}" for seed in (0, 1)]
    compare = command("compare", *folders, "--out", "both")
    assert compare.returncode == 0, compare
    c9 = json.loads((tmp_path / "both/c9.json").read_text())
    found = json.loads((tmp_path / "both/findings.json").read_text())
    emerged = {(o["run"], o["task"]): o["emergence"] for o in c9["orders"]}
    for seed in (0, 1):
        after, by = emerged[f"{kind}-seed{seed}", "induction"]
        assert 16 <= after < by <= 96 and emerged[f"{kind}-seed{seed}", "facts"] is None
    assert found["runs"] == [f"{kind}-seed0", f"{kind}-seed1"] and found["exchanges"] == "all 6"
    [c4] = [row for row in found["claims"] if row["claim"] == "C4"]
    assert c4["runs"] == 2 and c4["verdict"] in c9["verdict"]
    assert {"rankme", "accuracy", "log_prob"} <= {row["quantity"] for row in found["leads"]}
    page = (tmp_path / "both/report.html").read_text()
    assert "induction" in page and f"{kind} x 2" in page and "img" in page
    assert (tmp_path / f"both/figures/compare-{kind}-seed1.png").stat().st_size > 10_000
    assert weight_files(tmp_path / "runs") == []


# ------------------------------------------------------------------------------------------------
# Names

@pytest.mark.parametrize("name, revisions, size, seed", [
    ("14m-seed3", "step64", "14m", "3"), ("EleutherAI/pythia-160m-data-seed2", "step1000",
                                          "160m-data", "2"),
    ("2.8b", "step143000", "2.8b", None),
    ("olmo2-1b", "stage1-step5000-tokens11B", "0425-1B", None),
    ("olmo2-7b", "step300000-tokens1258B", "1124-7B", None),
    ("smollm3", "stage1-step-40000", "3B", None), ("amber", "ckpt_042", "Amber", None),
    ("pico-tiny", "Saving HF Model -- Step 1000", "tiny", None),
    ("mistral-x777", "checkpoint-400000", "small", "777"), ("owner/gpt_s4", "step3", "gpt", "4")])
def test_known_suites(name, revisions, size, seed):
    pattern, *found = pythia.suite_of(name)
    assert found == [size, seed] and "/" in pythia.repository(name)
    step = int(pythia.matches(pattern, revisions)["step"])
    assert str(step) in revisions and pythia.matches(pattern, "main") is None


def test_patterns():
    assert pythia.matches("a.{step}", "a.7") == {"step": "7"}
    assert pythia.matches("a.{step}", "ab7") is None            # a dot is a dot
    assert pythia.matches("{name}-{step}", "mine-2-30") == {"name": "mine-2", "step": "30"}
    assert pythia.matches("step{step}", "step-1") is None
    with pytest.raises(ValueError, match="expected a pattern such as"):
        pythia.manifest("160m", revisions="step")


@needs_extra
@pytest.mark.system
def test_revisions_that_do_not_fit_are_one_sentence(some):
    hub = some
    with pytest.raises(ValueError, match="like ckpt_{step}: .*there are step0, step2"):
        pythia.manifest(NAME, revisions="ckpt_{step}")
    hub.repositories[NAME]["final-step64"] = hub.repositories[NAME]["step64"]
    with pytest.raises(ValueError, match="step64 and final-step64 are both step 64"):
        pythia.manifest(NAME, revisions="step{step}|{kind}-step{step}")
    assert 64 in pythia.manifest(NAME)


@needs_extra
@pytest.mark.system
def test_tags_and_titles_of_commits_are_revisions(some):
    hub = some
    files = hub.repositories[NAME]["step64"]
    hub.repositories["tests/tags"] = {"main": files, "tag v-10": files, "tag v-20": files}
    listing = pythia.manifest("tests/tags", revisions="v-{step}")
    assert list(listing) == [10, 20, "main"] and set(pythia.audit(listing).left_out) == {10, 20}
    other = hub.repositories[NAME]["step8"]
    hub.repositories["tests/commits"] = {"main": files, "commit Save 5": other, "commit no": files}
    listing = pythia.manifest("tests/commits", revisions="Save {step}")
    assert list(listing) == [5, "main"] and pythia.audit(listing).own == (5,)


@needs_extra
@pytest.mark.system
def test_a_folder_as_trainer_writes_it(tmp_path, command):      # noqa: F811
    """Nothing is downloaded, copied or deleted; the final model lies in the folder itself."""
    out = tmp_path / "mine"
    for step in (0, 16, 48, 80, 128):
        files = as_saved("llama", learned("llama", 0)[step], tmp_path / "written")
        folder = out / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name, body in (files | {"optimizer.pt": b"..", "trainer_state.json": b"{}"}).items():
            (folder / name).write_bytes(body)
    (out / "runs").mkdir()
    for name, body in files.items():
        (out / name).write_bytes(body)
    word_tokenizer().save(str(out / "tokenizer.json"))
    before = sorted(out.rglob("*"))
    assert "5 checkpoints; 5 hold" in command("audit", "mine").stdout
    measure = ["measure", "mine", "--probes", "grammar", "--probe-file", probe_file(tmp_path),
               "--out", "run", "--yes"]
    done = command(*measure)
    assert done.returncode == 0, done
    rows = sweep.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 16, 48, 80, 128]
    assert rows[-1]["levels"]["induction"]["accuracy"] == 1
    assert sorted(out.rglob("*")) == before and weight_files(tmp_path / "run") == []
    (out / "checkpoint-16" / "model.safetensors").write_bytes(b"not one")
    (out / "checkpoint-48" / "model.safetensors").unlink()
    assert "| 48 |" in command("audit", "mine").stdout
    again = command(*measure[:-3], "--out", "other", "--yes")
    assert again.returncode == 0, again
    left_out = {row["step"]: row.get("left_out")
                for row in sweep.read_rows(tmp_path / "other" / "metrics.jsonl")}
    assert list(left_out) == [0, 16, 80, 128] and "the weights" in left_out[16]


# ------------------------------------------------------------------------------------------------
# Faults planted among checkpoints

def planted(kind):
    """{fault: ({step: state}, steps that must be named, steps that may be)}, of `kind`."""
    mine, other = dict(learned(kind, 0)), learned(kind, 1)
    first = next(iter(mine[0]))
    mine = {step: {name: p.clone() for name, p in state.items()} for step, state in mine.items()}
    for state in mine.values():                                 # of a word that never occurs
        state[first][599, 3] = 0.0
    signed = {name: p.clone() for name, p in mine[64].items()}
    signed[first][599, 3] = -0.0
    return {
        "none": (mine, set(), {1}),
        "swapped": (mine | {8: mine[64], 64: mine[8]}, {8, 64}, {1}),
        "swapped neighbours": (mine | {48: mine[56], 56: mine[48]}, {48, 56}, {1}),
        "duplicated": (mine | {40: mine[96]}, {40, 96}, {1}),
        "re-signed": (mine | {48: signed}, {48, 64}, {1}),
        "another seed's": (mine | {56: other[56]}, {56}, {1}),
        "another seed's start": (mine | {0: other[0]}, {0}, {1}),
        "the last one's": (mine | {16: mine[128]}, {16}, {1, 128}),
        "the last one's, rounded": (
            mine | {16: {name: p.bfloat16().float() for name, p in mine[128].items()}}, {16}, {1}),
        "truncated": (mine, {32}, {1})}


@needs_extra
@pytest.mark.system
@pytest.mark.parametrize("fault", ["none", "swapped", "swapped neighbours", "duplicated",
                                   "re-signed", "another seed's", "another seed's start",
                                   "the last one's", "the last one's, rounded", "truncated"])
@pytest.mark.parametrize("kind", ["neox", *(pytest.param(kind, marks=pytest.mark.slow)
                                            for kind in ("gpt2", "llama", "olmo2"))])
def test_planted_faults_are_found_and_nothing_else(kind, fault, hub, tmp_path):
    states, must, may = planted(kind)[fault]
    revisions = {}
    for step, state in states.items():
        files = as_saved(kind, state, tmp_path / "written")
        if (fault, step) == ("truncated", 32):
            files["model.safetensors"] = files["model.safetensors"][:-1000]
        revisions[f"step{step}"] = files
    hub.repositories["tests/faulty"] = {"main": revisions["step128"], **revisions}
    listing = pythia.manifest("tests/faulty")
    audited = pythia.audit(listing)
    checkpoints = functools.partial(pythia.snapshots, "tests/faulty", audited.own, listing,
                                    tmp_path / "cache", torch.float32, "cpu")
    sweep.record(tmp_path / "run", {}, checkpoints, pythia.ProbeMeasure({}))
    rows, left_out = pythia.examine(sweep.read_rows(tmp_path / "run/metrics.jsonl"), audited)
    named = set(left_out) | set(audited.left_out)
    assert must <= named <= must | may, (left_out, audited.left_out)
    assert {row["step"] for row in rows} == set(states) - named
    table = pythia.audit_table("tests/faulty", listing, audited.left_out | left_out)
    assert all(f"\n| {step} | " in table for step in named)
    if fault == "another seed's":
        assert "another run's" in left_out[56]
    if fault == "swapped":
        assert "exchanged with step 64" in left_out[8]
    if "rounded" in fault:
        assert "beside those of step" in left_out[16] and "128" in left_out[16]


def sketches_of(kind, seed):
    found = {}
    for step, state in learned(kind, seed).items():
        model = torch.nn.Module()
        for i, p in enumerate(state.values()):
            model.register_parameter(str(i), torch.nn.Parameter(p))
        found[step] = pythia.sketch(model)
    del found[1]                                                # rightly the twin of step 0
    return found


@needs_extra
@pytest.mark.parametrize("kind", ["neox", *(pytest.param(kind, marks=pytest.mark.slow)
                                            for kind in ("gpt2", "llama", "olmo2"))])
def test_every_exchange_and_every_stranger_is_found(kind):
    mine, other = sketches_of(kind, 0), sketches_of(kind, 1)
    generator, wrong = random.Random(0), []
    for _ in range(50):                                         # none where there is none
        some = generator.sample(list(mine), generator.randint(4, 14))
        assert pythia.out_of_place({step: mine[step] for step in some}) == {}
    pairs = list(itertools.combinations(mine, 2))
    for a, b in pairs:
        found = set(pythia.out_of_place(mine | {a: mine[b], b: mine[a]}))
        if found != {a, b} and not {a, b} > found > set():      # of neighbours, either is moved
            wrong.append((a, b, found))
    for step in mine:
        found = set(pythia.out_of_place(mine | {step: other[step]}))
        if found != {step}:
            wrong.append((step, found))
    assert len(wrong) <= 0.03 * (len(pairs) + len(mine)), wrong


@pytest.mark.parametrize("count", [10, 60, 154])
def test_paths_of_known_shape_have_nothing_out_of_place(count):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(count, 1024, generator=generator)
    around = torch.zeros(count, 1024)
    for i in range(1, count):
        around[i] = 0.7 * around[i - 1] + steps[i]
    line = torch.arange(count)[:, None] * steps[0]
    paths = {"walk": steps.cumsum(0), "line": line, "drawn to a point": around, "noise": steps,
             "noise around a point": steps[0] * 3 + steps.roll(1, 0)[1:]}
    for name, path in paths.items():
        assert pythia.out_of_place(dict(enumerate(path.tolist()))) == {}, name
    walk = paths["walk"].tolist()
    walk[5], walk[6] = walk[6], walk[5]
    found = set(pythia.out_of_place(dict(enumerate(walk))))
    assert found and found <= {5, 6}                            # either is the one that was moved
    walk = paths["walk"].tolist()
    foreign = torch.randn(3, 1024, generator=generator) * 9     # three of another run, in a row
    walk[3:6] = (foreign[:1] + 0.01 * foreign.cumsum(0)).tolist()
    if count > 10:
        assert set(pythia.out_of_place(dict(enumerate(walk)))) == {3, 4, 5}


def test_a_checkpoint_of_another_shape_is_named():
    rows = [{"step": step, "fingerprint": str(step), "sketch": [step, 1.0, 2.0], "levels": {}}
            for step in (2, 4, 8, 16, 32)]
    rows[2]["sketch"] = [1.0, 2.0]
    used, left_out = pythia.examine(rows)
    assert list(left_out) == [8] and "another number of matrices" in left_out[8]
    assert [row["step"] for row in used] == [2, 4, 16, 32]


# ------------------------------------------------------------------------------------------------
# Files as people have them

def served_from(folder, tmp_path):
    """The model that `measure` reads of a folder's checkpoint-7."""
    listing = pythia.manifest(str(folder))
    found = pythia.download(str(folder), listing[7], tmp_path / "cache")
    model = pythia.load_model(found)
    pythia.delete_cached(str(folder), tmp_path / "cache")
    return model


def sharded(folder, model, index=True):
    folder.mkdir(parents=True)
    model.model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*"))
    assert len(shards) > 1
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    return shards


@needs_extra
@pytest.mark.parametrize("index", [True, False])
def test_shards_that_another_save_left_behind_are_not_read(index, tmp_path):
    model, old = tiny_model(0.3), tiny_model(0.3, seed=1)
    count = len(sharded(tmp_path / "mine/checkpoint-7", model, index))
    stale = sharded(tmp_path / "old", old)[0].read_bytes()
    left = tmp_path / f"mine/checkpoint-7/model-00001-of-0000{count + 1}.safetensors"
    left.write_bytes(stale)
    read = served_from(tmp_path / "mine", tmp_path)
    assert pythia.fingerprint(read) == pythia.fingerprint(model) != pythia.fingerprint(old)
    assert not (tmp_path / "cache" / "linked").exists()
    listing = pythia.manifest(str(tmp_path / "mine"))
    assert left.name not in [f.file for f in pythia.files_to_read(listing[7])]
    next((tmp_path / "mine/checkpoint-7").glob("model-00002-of-*")).unlink()
    lost = pythia.audit(pythia.manifest(str(tmp_path / "mine")))
    assert "shards are not all there" in lost.left_out[7]


@needs_extra
def test_names_with_a_prefix_are_those_of_the_model(tmp_path):
    state = {f"model.{name}": value for name, value in stored(tiny_model(0.3)).items()}
    loaded = pythia.load_model(write(tmp_path / "a", state))
    assert pythia.fingerprint(loaded) == pythia.fingerprint(tiny_model(0.3))
    llama = shaken(from_config(SHAPES["Llama"][0]))             # its own names begin so
    llama.save_pretrained(tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    state = {f"model.{name}": p for name, p in safetensors_torch.load_file(file).items()}
    safetensors_torch.save_file(state, file)
    assert pythia.fingerprint(pythia.load_model(tmp_path / "b")) == pythia.fingerprint(
        pythia.LanguageModel(llama))


@needs_extra
@pytest.mark.parametrize("kind", ["as Pythia", "Llama"])
def test_scaled_rotations_are_as_transformers_has_them(kind, tmp_path):
    model, tokens = shaken(from_config(SHAPES[kind][0])), torch.arange(40)[None] % 97
    model.save_pretrained(tmp_path)
    plain = pythia.load_model(tmp_path)(tokens)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_scaling"] = {"type": "linear", "factor": 4.0}
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        scaled = pythia.load_model(tmp_path)(tokens)
        torch.testing.assert_close(scaled, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert float((scaled - plain).abs().max()) > 0.01


@needs_extra
def test_one_bad_checkpoint_is_named_and_the_series_goes_on(tmp_path):
    """Not finite in one bias; 8-bit floats, which can be read; a number written as text."""
    folder, state = tmp_path / "mine", stored(tiny_model())
    broken = {name: value.clone() for name, value in state.items()}
    broken["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][3] = math.nan
    small = {name: value.to(torch.float8_e4m3fn) for name, value in state.items()}
    write(folder / "checkpoint-0", state)
    write(folder / "checkpoint-1", broken)
    write(folder / "checkpoint-2", small)
    write(folder / "checkpoint-4", state, hidden_size="32")
    write(folder / "checkpoint-8", {name: value + 1 for name, value in state.items()})
    listing = pythia.manifest(str(folder))
    found = {snapshot.step: snapshot.state().get("left_out") for snapshot in
             pythia.snapshots(str(folder), [0, 1, 2, 4, 8], listing, tmp_path / "cache")}
    assert found[0] is found[2] is found[8] is None
    assert "layers.1.mlp.dense_h_to_4h.bias is not finite" in found[1]
    assert "hidden_size" in found[4] and "\n" not in found[4]


def as_text(**changes):
    """A damage: fields of config.json get other values."""
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
    return change


def instead(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def becomes_a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


@needs_extra
@pytest.mark.parametrize("damage", [
    as_text(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    as_text(_attn_implementation="flash_attention_2"), as_text(model_type="never heard of"),
    as_text(num_hidden_layers=3), as_text(hidden_size=None), instead(b""),
    instead(b"<html>log in</html>"), becomes_a_folder])
def test_whatever_is_wrong_with_one_checkpoint_the_others_are_read(damage, tmp_path):
    state = stored(tiny_model())
    for step in (0, 1, 2):
        write(tmp_path / f"mine/checkpoint-{step}", {key: x + step for key, x in state.items()})
    damage(tmp_path / "mine/checkpoint-1")
    listing, found = pythia.manifest(str(tmp_path / "mine")), {}
    try:
        for one in pythia.snapshots(str(tmp_path / "mine"), [0, 1, 2], listing, tmp_path / "c"):
            found[one.step] = one.state().get("left_out")
    except sweep.Failed as error:
        assert "step 1 of" in str(error) and "1 of 3" in str(error)
        found[1] = str(error)
    assert found[0] is found[2] is None and found[1] and "\n" not in found[1]


@needs_extra
@pytest.mark.parametrize("changes", [
    {"return_dict": False}, {"output_hidden_states": True, "output_attentions": True},
    {"torch_dtype": "bfloat16", "dtype": "float16", "attention_dropout": 0.5}])
def test_settings_for_another_use_change_no_logit(changes, tmp_path):
    model, tokens = tiny_model(0.3), torch.arange(40)[None] % 97
    model.model.save_pretrained(tmp_path)
    as_text(**changes)(tmp_path)
    loaded = pythia.load_model(tmp_path)
    torch.testing.assert_close(loaded(tokens), model(tokens))
    states, logits = loaded.read(tokens, torch.tensor([3]))
    assert len(states) == 4 and logits.shape[:2] == (1, 1)


@needs_extra
@pytest.mark.parametrize("setting", ["padding", "truncation", "multiples", "from the left"])
def test_a_tokenizers_padding_and_truncation_are_switched_off(setting, tmp_path):
    plain = word_tokenizer()
    plain.save(str(tmp_path / "plain.json"))
    if setting == "padding":
        plain.enable_padding(length=8)
    elif setting == "multiples":
        plain.enable_padding(pad_to_multiple_of=8, direction="left")
    else:
        plain.enable_truncation(3, direction="left" if setting == "from the left" else "right")
    plain.save(str(tmp_path / "set.json"))
    for text in ("a", "a b c d e f g h i j", ""):
        ids = pythia.tokenizer(tmp_path / "set.json")(text)
        assert ids == pythia.tokenizer(tmp_path / "plain.json")(text)
        assert len(ids) == len(text.split())


@needs_extra
def test_a_tokenizer_that_divides_at_random_does_so_no_more(tmp_path):
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    model = tokenizers.models.BPE(vocabulary, [("a", "b"), ("ab", "c")], dropout=0.5)
    tokenizers.Tokenizer(model).save(str(tmp_path / "x.json"))
    ids = pythia.tokenizer(tmp_path / "x.json")
    assert {tuple(ids("abc")) for _ in range(40)} == {(4,)}


def stale_index(folder, old):
    for path in old.iterdir():                                  # shards, and what names them
        if path.name != "config.json":
            shutil.copy(path, folder)


def other_kinds(folder, old):
    for name in ("adapter_model.safetensors", "consolidated.safetensors", "model.fp16.safetensors"):
        safetensors_torch.save_file({"x": torch.ones(1)}, folder / name)
    torch.save(tiny_model(0.3, seed=1).model.state_dict(), folder / "pytorch_model.bin")


def half_written(folder, old):
    for name in ("model.safetensors.tmp", "._model.safetensors", ".model.safetensors.swp"):
        (folder / name).write_bytes(b"x")


@needs_extra
@pytest.mark.parametrize("litter", [stale_index, other_kinds, half_written])
def test_what_lies_beside_the_weights_is_not_read(litter, tmp_path):
    model, folder = tiny_model(0.3), tmp_path / "mine/checkpoint-7"
    sharded(tmp_path / "old", tiny_model(0.3, seed=1))
    folder.mkdir(parents=True)
    model.model.save_pretrained(folder)
    litter(folder, tmp_path / "old")
    read = served_from(tmp_path / "mine", tmp_path)
    assert pythia.fingerprint(read) == pythia.fingerprint(model)


@pytest.mark.parametrize("line", [
    "[" * 100_000, '{"prompt": "a", "right": " b", "right": " x", "wrong": " c"}', "\0\0",
    '{"prompt": "a", "right": " b", "wrong": {"x": 1}}', "null", "1e999"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_one_odd_line_is_left_out(line, encoding, tmp_path):
    good = '{"prompt": "a\u2028b", "right": " b", "wrong": " c"}\r\n'
    (tmp_path / "x.jsonl").write_bytes((good + line).encode(encoding))
    told = []
    assert pythia.read_probes(tmp_path / "x.jsonl", told.append) == [("a\u2028b", " b", (" c",))]
    assert "1 of 2 items left out: item 2 (" in told[0]


@needs_extra
def test_a_completion_after_its_prompt_has_the_ids_of_the_whole():
    """A tokenizer that puts a mark before each text, as Llama's does, and joins two letters."""
    model = tokenizers.models.BPE({"▁": 0, "a": 1, "b": 2, "▁b": 3, "ab": 4},
                                  [("▁", "b"), ("a", "b")])
    encoder = tokenizers.Tokenizer(model)
    encoder.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])

    def ids(text):
        return encoder.encode(text).ids
    assert ids("a b") == ids("a") + [3] == [0, 1, 3]
    assert ids(" b") == [0, 3] and pythia.continued(ids, "a", " b") == [3]
    assert pythia.continued(ids, "a", "b") == ids("b")          # "ab" is one token: taken apart


def test_bad_items_are_left_out_counted_and_named(tmp_path):
    question = "Which?\nOptions:\n(A) x\n(B) y"
    examples = [{"input": question, "target": "(B)"}, {"input": question, "target": "Monsters"},
                {"input": question, "target": "B"}, {"input": question, "target": "(A)"},
                {"target": "(A)"}, None, {"input": question, "target": 3}]
    (tmp_path / "bbh.json").write_text("\ufeff" + json.dumps({"examples": examples}),
                                       encoding="utf-8")
    told = []
    items = pythia.read_probes(tmp_path / "bbh.json", told.append)
    assert [item.right for item in items] == [" (B)", " (A)"]
    [sentence] = told
    assert "5 of 7 items left out" in sentence
    assert all(f"item {k} (" in sentence for k in (2, 3, 5, 6, 7))
    lines = ['{"prompt": "a", "right": " b", "wrong": " c"}', "{", '{"prompt": "a", "right": ""}',
             '{"prompt": "a", "right": " b", "wrong": [" b"]}',
             '{"prompt": "a", "right": "", "wrong": " c"}',
             '{"sentence_good": "All is well.", "sentence_bad": "All is well."}', "[]",
             '{"prompt": 3, "right": " b", "wrong": " c"}', '{"prompt": "", "right": "b", '
             '"wrong": ["c", null]}']
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    assert pythia.read_probes(tmp_path / "own.jsonl", told.append) == [("a", " b", (" c",))]
    assert "8 of 9 items left out" in told[-1]


@needs_extra
@pytest.mark.system
def test_a_lost_connection_ends_a_measurement_which_then_goes_on(some, tmp_path, monkeypatch):
    hub, listing, steps = some, pythia.manifest(NAME), [0, 2, 4, 8]
    checkpoints = functools.partial(pythia.snapshots, NAME, steps, listing, tmp_path / "cache",
                                    torch.float32, "cpu")

    class Cut(pythia.ProbeMeasure):
        def __call__(self, snapshot):
            if snapshot.step == 2:
                set_endpoint(monkeypatch, "http://127.0.0.1:9")
            return super().__call__(snapshot)
    monkeypatch.setattr("time.sleep", lambda s: None)
    with pytest.raises(sweep.Failed, match="step|revision.*check the disk and the connection"):
        sweep.record(tmp_path, {}, checkpoints, Cut({}), until=steps, seconds=0)
    assert [row["step"] for row in sweep.read_rows(tmp_path / "metrics.jsonl")] == [0, 2]
    set_endpoint(monkeypatch, hub.url)
    hub.log.clear()
    sweep.record(tmp_path, {}, checkpoints, pythia.ProbeMeasure({}), until=steps, seconds=0)
    assert [row["step"] for row in sweep.read_rows(tmp_path / "metrics.jsonl")] == steps
    again = [path for _, path in hub.log if listing[0][0].commit in path]
    assert not again and weight_files(tmp_path / "cache") == []
