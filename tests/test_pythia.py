"""Truths that pythia.py is tested against: transformers' GPT-NeoX; a little series of checkpoints with planted faults, served on
loopback in the hub's own API; what is published and reported of Pythia; curves whose order is known by construction.

PYTHIA_DATA names a folder with tokenizer.json, evals/ and evals_core.csv of the Pythia repository, and ../bbh beside it; tests that need
it are skipped without."""
import csv
import doctest
import json
import math
import os
import re
import signal
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import measures
import pythia

hub_client = pytest.importorskip("huggingface_hub", reason="the extra `pythia` is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="the extra `pythia` is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra `pythia` is not installed")
import hub as loopback  # noqa: E402  (tests/hub.py)

ROOT = Path(pythia.__file__).parent
DATA = Path(os.environ.get("PYTHIA_DATA", "no such folder"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="PYTHIA_DATA names no folder")
TINY = pythia.NeoXConfig(2, 4, 64, 128, vocab_size=600, rotary_pct=0.5, block_size=128)
LETTERS = "abcdefghijklmnopqrstuvwx"


def random_model(config, std=0.02, seed=0, dtype=torch.float32):
    model = pythia.NeoX(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=std, generator=generator)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(p)
    return model


def hub_config(c):
    return {"model_type": "gpt_neox", "hidden_act": "gelu", "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
            "hidden_size": c.n_embd, "intermediate_size": c.n_inner, "vocab_size": c.vocab_size, "rotary_pct": c.rotary_pct,
            "rotary_emb_base": 10000, "use_parallel_residual": c.parallel_residual, "layer_norm_eps": 1e-5,
            "attention_bias": c.bias, "max_position_embeddings": c.block_size, "tie_word_embeddings": False}


def stored(model):
    """The parameters under the names that files on the hub use."""
    return {name if name.startswith("embed_out") else "gpt_neox." + name: p.detach().clone() for name, p in model.named_parameters()}


def word_tokenizer():
    words = sorted({w for items in pythia.own_probes().values() for item in items for s in (item.prompt, item.right, *item.wrong)
                    for w in s.split()} - set(LETTERS))
    vocabulary = {w: i for i, w in enumerate(["<|endoftext|>", "unknown", *LETTERS, *words])}
    assert len(vocabulary) <= TINY.vocab_size
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="unknown"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------
# The forward pass

SHAPES = {"as Pythia": pythia.NeoXConfig(2, 4, 64, 256, vocab_size=97),
          "sequential, fully rotated": pythia.NeoXConfig(3, 2, 32, 64, vocab_size=50, rotary_pct=1.0, parallel_residual=False),
          "many heads, no bias": pythia.NeoXConfig(1, 8, 64, 96, vocab_size=61, rotary_pct=0.5, bias=False)}


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_with_transformers(shape, layout, tmp_path):
    transformers = pytest.importorskip("transformers")
    c = SHAPES[shape]
    torch.manual_seed(0)
    reference = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**hub_config(c), attn_implementation="eager")).eval()
    with torch.no_grad():
        for p in reference.parameters():                       # LayerNorms and biases too: at their initial values they hide mistakes
            p.copy_(torch.randn_like(p) * 0.2 + (p.dim() == 1))
    reference.save_pretrained(tmp_path, max_shard_size="20KB" if layout == "sharded" else "1GB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 if layout == "sharded" else (tmp_path / "model.safetensors").exists()
    if layout == "bin":                                        # as old branches have it, with the buffers of the time
        state = safetensors_torch.load_file(tmp_path / "model.safetensors")
        state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        state["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    model, _ = pythia.load(tmp_path)
    tokens = torch.randint(c.vocab_size, (3, 12))
    mask = torch.ones_like(tokens)
    mask[1, 9:] = mask[2, 4:] = 0
    with torch.no_grad():
        theirs = reference(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        states = model.hidden_states(tokens)
        ours = [*states[:-1], model.final_layer_norm(states[-1])]
        differences = [float((a - b)[mask.bool()].abs().max()) for a, b in zip(ours, theirs.hidden_states, strict=True)]
        differences.append(float((model(tokens) - theirs.logits)[mask.bool()].abs().max()))
    assert max(differences) < 1e-5, f"largest difference by layer, then logits: {differences}"
    assert float(theirs.logits.abs().max()) > 1                # or a model of zeros would agree


def test_last_state_is_before_the_final_norm_and_padding_is_not_seen():
    model = random_model(TINY, 0.2)
    tokens = torch.randint(600, (2, 9), generator=torch.Generator().manual_seed(0))
    states = model.hidden_states(tokens)
    assert len(states) == TINY.n_layer + 1
    assert torch.equal(model.embed_out(model.final_layer_norm(states[-1])), model(tokens))
    assert not torch.allclose(states[-1], model.final_layer_norm(states[-1]))
    other = tokens.clone()
    other[:, 6:] = 0
    assert torch.equal(model(other)[:, :6], model(tokens)[:, :6])
    torch.testing.assert_close(model(tokens, at=torch.tensor([3, 10])), model(tokens).flatten(0, 1)[[3, 10]])


def test_second_derivative_matches_finite_differences():
    model = random_model(pythia.NeoXConfig(1, 2, 8, 16, vocab_size=11, rotary_pct=0.5), 0.5, dtype=torch.float64)
    parameters = [p for p in model.parameters()]
    batch = pythia.right_padded([([1, 2], [3]), ([4, 5, 6], [7, 8])])
    v = [torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(parameters)]
    loss = lambda: torch.nn.functional.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
    gradient = lambda create=False: torch.autograd.grad(loss(), parameters, create_graph=create)
    product = torch.autograd.grad(sum((g * u).sum() for g, u in zip(gradient(True), v)), parameters)
    h, ends = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            [p.add_(u, alpha=sign * h) for p, u in zip(parameters, v)]
        ends.append(gradient())
        with torch.no_grad():
            [p.sub_(u, alpha=sign * h) for p, u in zip(parameters, v)]
    slow = [(a - b) / (2 * h) for a, b in zip(*ends)]
    error = max(float((a - b).abs().max()) for a, b in zip(product, slow)) / max(float(a.abs().max()) for a in slow)
    assert error < 1e-5, error


def test_measures_of_the_loss_run_on_it():
    model = random_model(pythia.NeoXConfig(1, 2, 16, 32, vocab_size=40), 0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    probe = pythia.Probe(tuple([i, i + 1, 7] for i in range(6)), tuple(([i + 3], [i + 4]) for i in range(6)), 0.5)
    row = pythia.probe_row(model, probe, extras=pythia.EXTRAS)
    assert 1 < row["gradient_rank"] <= 6
    assert row["hessian_top"]["converged"] and math.isfinite(row["hessian_top"]["eigenvalue"]) and math.isfinite(row["llc"]["mean"])
    json.dumps(row)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_parameter_counts():
    """Millions, as the Pythia paper's page has them."""
    known = {"14m": 14.1, "31m": 30.5, "70m": 70.4, "160m": 162.3, "410m": 405.3, "1b": 1011.8, "1.4b": 1414.6, "2.8b": 2775.2}
    with torch.device("meta"):
        found = {name: round(sum(p.numel() for p in pythia.NeoX(c).parameters()) / 1e6, 1) for name, c in pythia.SIZES.items()}
    assert found == known


# ---------------------------------------------------------------------------------------------------------------
# Loading

def write(folder, model, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hub_config(model.config)))
    safetensors_torch.save_file(stored(model), folder / name) if name.endswith("safetensors") else torch.save(stored(model), folder / name)
    return folder


def test_fingerprint_is_of_the_weights_not_of_the_file(tmp_path):
    a = random_model(TINY)
    with torch.no_grad():
        a.embed_in.weight[599, 3] = 0.0
    _, first = pythia.load(write(tmp_path / "a", a))
    with torch.no_grad():
        a.embed_in.weight[599, 3] = -0.0
    _, second = pythia.load(write(tmp_path / "b", a))
    assert pythia.file_sha256(tmp_path / "a/model.safetensors") != pythia.file_sha256(tmp_path / "b/model.safetensors")
    assert first == second == pythia.load(write(tmp_path / "c", a, "pytorch_model.bin"))[1] == pythia.load(tmp_path / "a", torch.bfloat16)[1]
    with torch.no_grad():
        a.embed_in.weight[599, 3] = 1e-30
    assert pythia.load(write(tmp_path / "d", a))[1] != first


def test_loaded_weights_outlive_their_file(tmp_path):
    model, _ = pythia.load(write(tmp_path / "a", random_model(TINY)), torch.bfloat16)
    shutil.rmtree(tmp_path / "a")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not model.training
    with torch.no_grad():
        difference = model(torch.arange(20)[None]).float() - random_model(TINY)(torch.arange(20)[None])
    assert float(difference.abs().max()) < 0.02


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ.get('EVIL_FILE', '/dev/null')}",)


def test_bad_weight_files_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    good = write(tmp_path / "cut", random_model(TINY))
    file = good / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    evil = write(tmp_path / "evil", random_model(TINY), "pytorch_model.bin")
    torch.save({"gpt_neox.embed_in.weight": Evil()}, evil / "pytorch_model.bin")
    half = write(tmp_path / "half", random_model(TINY), "pytorch_model.bin")
    (half / "pytorch_model.bin").write_bytes((half / "pytorch_model.bin").read_bytes()[:5000])
    lacking = write(tmp_path / "lacking", random_model(TINY))
    state = stored(random_model(TINY))
    del state["embed_out.weight"]
    safetensors_torch.save_file(state, lacking / "model.safetensors")
    shape = write(tmp_path / "shape", random_model(TINY))
    (shape / "config.json").write_text(json.dumps(hub_config(TINY) | {"hidden_size": 32}))
    other = write(tmp_path / "other", random_model(TINY))
    (other / "config.json").write_text(json.dumps(hub_config(TINY) | {"model_type": "llama"}))
    gelu = write(tmp_path / "gelu", random_model(TINY))
    (gelu / "config.json").write_text(json.dumps(hub_config(TINY) | {"hidden_act": "gelu_new"}))
    for folder, said in ((good, "cut short"), (evil, "refused"), (half, "damaged"), (lacking, "embed_out.weight"),
                         (shape, "does not fit"), (other, "llama"), (gelu, "gelu_new")):
        with pytest.raises(ValueError, match=said) as error:
            pythia.load(folder)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists(), "the pickle's code was run"
    os.system(Evil().__reduce__()[1][0])
    assert (tmp_path / "ran").exists()                         # so it would have shown


# ---------------------------------------------------------------------------------------------------------------
# The audit

def listing(shas, main="end"):
    return {**{s: (pythia.WeightFile("model.safetensors", 5, sha),) for s, sha in shas.items()},
            "main": (pythia.WeightFile("model.safetensors", 5, main),)}


def test_audit_of_what_is_reported_of_2_8b():
    as_main, second = pythia.REPORTED["EleutherAI/pythia-2.8b"]
    shas = {s: "end" if s in as_main else "end again" if s in second else f"own {s}" for s in pythia.STEPS}
    report = pythia.audit(listing(shas))
    assert len(pythia.STEPS) == 154 and len(as_main) == 76 and len(second) == 10
    assert len(report.own) == 68 and report.own[0] == 66000 and len(report.left_out) == 86
    assert [len(g[2]) for g in report.groups] == [77, 10] and report.groups[0][2][0] == "main"
    assert "main and 75 more" in report.left_out[0] and "main" not in report.left_out[143000]
    assert pythia.reported("410m") is None
    assert all(n in pythia.reported("2.8b") for n in ("76", "10", "68", "66000", "unverified"))


def test_audit_accepts_what_is_right_to_share():
    shas = {s: f"own {s}" for s in pythia.STEPS} | {0: "start", 1: "start", 143000: "end"}
    assert pythia.audit(listing(shas)).own == pythia.STEPS
    report = pythia.audit(listing(shas | {2: "start"}))         # a third one that shares makes all three doubtful
    assert report.own == pythia.STEPS[3:] and set(report.left_out) == {0, 1, 2}


def test_audit_groups_by_shard():
    shards = lambda *shas: tuple((f"model-0000{i}-of-00002.safetensors", 5, sha) for i, sha in enumerate(shas, 1))
    report = pythia.audit({10: shards("a", "b"), 20: shards("c", "d"), 30: shards("a", "e"), 40: (), "main": shards("f", "g")})
    assert report.own == (20,) and set(report.left_out) == {10, 30, 40}
    assert "1 of 2" in report.left_out[10] and "no weight file" in report.left_out[40]
    assert pythia.audit({10: shards("a", "a"), 20: shards("b", "c")}).own == (10, 20)           # twice in one step is no sharing


def test_chosen_files_and_steps():
    names = ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files = [pythia.WeightFile(n) for n in names]
    assert [f.file for f in pythia.chosen(files)] == names[1:]
    assert pythia.parse_steps("1000:4000:1000,0", pythia.STEPS) == (0, 1000, 2000, 3000, 4000)
    assert pythia.parse_steps("all", (1, 2)) == (1, 2)
    for text, said in (("3", "no step 3"), ("a", "expected"), ("1:2:0", "expected"), ("5:1", "no step"), ("", "expected")):
        with pytest.raises(ValueError, match=said):
            pythia.parse_steps(text, pythia.STEPS)
    assert pythia.repository("160m") == pythia.repository("pythia-160m") == "EleutherAI/pythia-160m"
    assert pythia.repository("410m-deduped") == "EleutherAI/pythia-410m-deduped" and pythia.repository("a/b") == "a/b"
    with pytest.raises(ValueError, match="2.8b"):
        pythia.repository("3b")


# ---------------------------------------------------------------------------------------------------------------
# Probe sets

def test_probe_sets_are_balanced():
    sets = pythia.own_probes()
    assert list(sets) == ["grammar", "semantics", "arithmetic", "copying", "facts", "reasoning", "text"]
    for name, items in sets.items():
        assert len(items) == 30 and len({i.prompt for i in items}) == 30, name
        assert all(i.right not in i.wrong and all(o.startswith(" ") for o in (i.right, *i.wrong)) for i in items), name
        if name not in ("arithmetic", "reasoning"):            # a liking for certain words gains nothing
            assert Counter(i.right for i in items) == Counter(i.wrong[0] for i in items), name
    higher = [int(i.wrong[0]) > int(i.right) for i in sets["arithmetic"]]
    assert 12 <= sum(higher) <= 18
    for prompt, right, _ in sets["arithmetic"]:
        a, b = re.findall(r"(\d+) \+ (\d+) =$", prompt)[0]
        assert int(a) + int(b) == int(right)
    heuristics = Counter()                                     # none of these may tell who is the tallest
    for prompt, right, (wrong,) in sets["reasoning"]:
        told, question = prompt.rsplit(". ", 1)
        above = [re.match(r"(\w+) is (\w+) than (\w+)", s).group(1, 3) for s in told.split(". ")]
        order = [above[0][0], *above[0][1:], above[1][1]] if above[0][1] == above[1][0] else [above[1][0], *above[1][1:], above[0][1]]
        top = any(w in question for w in ("tallest", "oldest", "fastest"))
        assert (right.strip(), wrong.strip()) == (order[0], order[2]) if top else (order[2], order[0])
        heuristics["first named"] += prompt.index(right.strip()) < prompt.index(wrong.strip())
        heuristics["asked for the top"] += top
        heuristics["told in order"] += above[0][1] == above[1][0]
    assert all(10 <= k <= 20 for k in heuristics.values()), heuristics


def test_probe_files(tmp_path):
    (tmp_path / "blimp.jsonl").write_text(json.dumps({"sentence_good": "Who should Derek hug after shocking Richard?",
                                                     "sentence_bad": "Who should Derek hug Richard after shocking?"}) + "\n\n" +
                                         json.dumps({"sentence_good": "Only Bill ever left.", "sentence_bad": "Even Bill ever left."}) + "\n")
    first, second = pythia.read_probes(tmp_path / "blimp.jsonl")
    assert first == ("Who should Derek hug", " after shocking Richard?", (" Richard after shocking?",))
    assert second == ("", "Only Bill ever left.", ("Even Bill ever left.",))
    (tmp_path / "bbh.json").write_text(json.dumps({"canary": "keep", "examples": [
        {"input": "Which?\nOptions:\n(A) x\n(B) y\n(C) z", "target": "(B)"}]}))
    assert pythia.read_probes(tmp_path / "bbh.json") == [("Which?\nOptions:\n(A) x\n(B) y\n(C) z\nAnswer:", " (B)", (" (A)", " (C)"))]
    (tmp_path / "yes.json").write_text(json.dumps({"examples": [{"input": "a", "target": "yes"}, {"input": "b", "target": "no"}]}))
    assert [i.wrong for i in pythia.read_probes(tmp_path / "yes.json")] == [(" no",), (" yes",)]
    (tmp_path / "own.jsonl").write_text('{"prompt": "a b", "right": " c", "wrong": [" d", " e"]}\n')
    assert pythia.read_probes(tmp_path / "own.jsonl") == [("a b", " c", (" d", " e"))]
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a b", "right": " c"}\n')
    (tmp_path / "worse.jsonl").write_text("hello\n")
    for name, said in (("bad.jsonl", "item 1"), ("worse.jsonl", "no file of probes"), ("absent.json", "no file of probes")):
        with pytest.raises(ValueError, match=said):
            pythia.read_probes(tmp_path / name)


def test_encoding_gives_equal_n_and_says_what_is_wrong():
    ids = lambda s: [ord(c) for c in s]
    items = [pythia.Item(str(i), " y", (" n", " m")) for i in range(10)]
    probes = pythia.encode({"ten": items, "four": items[:4]}, ids)
    assert [len(p.prompts) for p in probes.values()] == [4, 4] and probes["ten"].chance == pytest.approx(1 / 3)
    assert probes["ten"].prompts == (ids("0"), ids("2"), ids("5"), ids("7"))          # spread over the set
    assert pythia.encode({"a": [pythia.Item("", "x", ("y",))] * 2}, ids)["a"].prompts[0] == [0]
    for sets, n, said in (({"a": items[:4]}, 5, "4 items where 5"), ({"a": [pythia.Item("x", "", ("y",))] * 3}, None, "not empty")):
        with pytest.raises(ValueError, match=said):
            pythia.encode(sets, ids, n)


def test_read_probe_against_one_item_at_a_time():
    """Batches of ragged, padded rows give what each item gives alone, written out the slow way."""
    model = random_model(TINY, 0.3)
    probe = pythia.Probe(([5], [6, 7, 8], [9, 10]), (([11, 12], [13]), ([14], [15, 16, 17]), ([18], [19], [20])), 0.4)
    states, log_probs = pythia.read_probe(model, probe, rows=5)
    for n, (prompt, options) in enumerate(zip(probe.prompts, probe.options)):
        for o, option in enumerate(options):
            p = model(torch.tensor([prompt + option]))[0].log_softmax(-1).detach()
            expected = sum(float(p[len(prompt) - 1 + i, token]) for i, token in enumerate(option))
            assert float(log_probs[n, o]) == pytest.approx(expected, abs=1e-4)
        with torch.no_grad():
            hidden = model.hidden_states(torch.tensor([prompt + options[0]]))
        x = torch.stack([*hidden, model.final_layer_norm(hidden[-1])]).detach()[:, 0]     # (L + 2, T, D)
        k = len(prompt) - 1
        for name, expected in (("first", x[:, k]), ("last", x[:, -1]), ("answer", x[:, k:-1].mean(1))):
            torch.testing.assert_close(states[name][:, n], expected, rtol=1e-4, atol=1e-4)
    assert log_probs[0, 2] == -math.inf and states["first"].shape == (4, 3, 64)


@needs_data
def test_probes_with_the_real_tokenizer():
    encode = pythia.tokenizer(DATA / "tokenizer.json")
    for name, items in pythia.own_probes().items():
        for item in items:
            assert len(encode(item.right)) == len(encode(item.wrong[0])) == 1, (name, item)        # no advantage of length
            assert all(encode(item.prompt + o) == encode(item.prompt) + encode(o) for o in (item.right, *item.wrong)), (name, item)
    sets = {str(k): pythia.read_probes(DATA.parent / f"bbh/logical_deduction_{word}_objects.json")
            for k, word in ((3, "three"), (5, "five"), (7, "seven"))}
    assert {k: len(v) for k, v in sets.items()} == {"3": 250, "5": 250, "7": 250}
    probes = pythia.encode(sets, encode)
    for k, probe in probes.items():
        assert probe.chance == pytest.approx(1 / int(k)) and max(len(p) for p in probe.prompts) < 300
        assert {len(o) for options in probe.options for o in options} == {3}          # " (", "A", ")"


# ---------------------------------------------------------------------------------------------------------------
# RankMe of few rows

def test_squared_and_centred_entropy_has_its_closed_form():
    x = torch.zeros(4, 6)
    x[0, 0], x[1, 0], x[2, 1], x[3, 1] = 3, -3, 1, -1           # centred already; squared singular values 18 and 2
    p = torch.tensor([0.9, 0.1])
    assert pythia.rankme_squared_centred(x + 5) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)
    assert pythia.rankme_squared_centred(torch.ones(4, 6)) == 1.0
    assert measures.rankme(x) > pythia.rankme_squared_centred(x)


def test_rankme_interval_covers_other_items_of_the_same_kind():
    """Items drawn anew from one known distribution: their RankMe should lie in the interval of the first draw's mean about 19 times in 20."""
    generator = torch.Generator().manual_seed(0)
    scale = 1 / torch.arange(1, 65)
    draw = lambda: torch.randn(30, 64, generator=generator) * scale + 0.3
    truth = sum(measures.rankme(draw()) for _ in range(300)) / 300
    intervals = [pythia.rankme_interval(draw(), generator) for _ in range(150)]
    share = sum(low < truth < high for low, high in intervals) / 150
    assert 0.85 <= share <= 1, share
    assert sum(high - low for low, high in intervals) / 150 < 0.5 * truth               # and it says something


# ---------------------------------------------------------------------------------------------------------------
# End to end: a little model learns induction in some seconds; its checkpoints are served on loopback, some of them spoiled

NAME = "tests/induction"
TRUE_STEPS = (0, 1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 80, 96, 112, 128)
DUPLICATE, TWIN, CUT, EVIL_STEP, GARBLED, SHORT = 20, 72, 200, 208, 216, 224


def induction(n, generator):
    """(n, 16): eight different letters, twice."""
    x = torch.stack([torch.randperm(len(LETTERS), generator=generator)[:8] for _ in range(n)]) + 2
    return torch.cat([x, x], 1)


@pytest.fixture(scope="session")
def series():
    """{branch: {file: bytes}} of a model trained for 128 steps; the first has learning rate 0, so that steps 0 and 1 are the same."""
    model, generator = random_model(TINY), torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.embed_in.weight[599, 3] = 0.0                    # of a word that never occurs
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    tensors = {}
    for step in range(TRUE_STEPS[-1] + 1):
        if step in TRUE_STEPS:
            tensors[step] = stored(model)
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1, step / 20)
        x = induction(64, generator)
        loss = torch.nn.functional.cross_entropy(model(x)[:, 8:-1].flatten(0, 1), x[:, 9:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    config = {"config.json": json.dumps(hub_config(TINY)).encode(), "README.md": b"not wanted"}
    single = lambda state: config | {"model.safetensors": safetensors_torch.save(state)}
    branches = {f"step{s}": single(t) for s, t in tensors.items()}
    names = sorted(tensors[4])
    branches["step4"] = config | {f"model-0000{i + 1}-of-00002.safetensors": safetensors_torch.save({n: tensors[4][n] for n in names[i::2]})
                                  for i in range(2)} | {"model.safetensors.index.json": b"{}"}
    branches["step8"] = config | {"pytorch_model.bin": saved(tensors[8])}
    branches["main"] = branches["step128"] | {"tokenizer.json": word_tokenizer().to_str().encode()}
    branches[f"step{DUPLICATE}"] = branches["step128"]
    twin = {k: v.clone() for k, v in tensors[64].items()}
    twin["gpt_neox.embed_in.weight"][599, 3] = -0.0
    branches[f"step{TWIN}"] = single(twin)
    branches[f"step{CUT}"] = config | {"model.safetensors": safetensors_torch.save({k: v + 1 for k, v in twin.items()})[:-100]}
    branches[f"step{EVIL_STEP}"] = config | {"pytorch_model.bin": saved({"gpt_neox.embed_in.weight": Evil()})}
    for step in (GARBLED, SHORT):
        branches[f"step{step}"] = single({k: v + step for k, v in twin.items()})
    return branches


def saved(state):
    import io
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(series, monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with loopback.serve({NAME: dict(series)}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def probe_file(folder):
    """Thirty induction items: which letter comes next, the right one against another of the same list."""
    lines = []
    for row in induction(30, torch.Generator().manual_seed(9)).tolist():
        word = [LETTERS[i - 2] for i in row]
        k = 9 + len(lines) % 6
        lines.append(json.dumps({"prompt": " ".join(word[:k]), "right": " " + word[k], "wrong": [" " + word[k - 3]]}))
    (folder / "induction.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "induction.jsonl"


def probe_sets(folder):
    path = pythia.fetch(NAME, "tokenizer.json", folder / "cache")
    own = pythia.own_probes()
    sets = {"induction": pythia.read_probes(probe_file(folder)), "grammar": own["grammar"], "facts": own["facts"]}
    return pythia.encode(sets, pythia.tokenizer(path))


def weight_files(folder):
    return [p for p in Path(folder).rglob("*") if p.suffix in (".safetensors", ".bin") or ".incomplete" in p.name]


def without_clock(rows):
    return [{k: v for k, v in row.items() if not k.startswith("wall_")} for row in rows]


def test_audit_and_plan_of_the_series_download_no_weights(hub, tmp_path):
    seen = []
    listing = pythia.manifest(NAME, lambda *progress: seen.append(progress))
    assert seen[-1] == (len(listing), len(listing)) and list(listing)[-1] == "main"
    report = pythia.audit(listing)
    assert set(report.left_out) == {DUPLICATE, 128} and "main" in report.left_out[DUPLICATE]
    assert set(report.own) == set(listing) - {DUPLICATE, 128, "main"}          # the twin cannot be seen from metadata
    probes = probe_sets(tmp_path)
    config = pythia.read_config(pythia.fetch(NAME, "config.json", tmp_path / "cache"))
    assert config == TINY
    cost = pythia.plan(config, listing, report.own, probes, rate=1e9)
    assert cost.steps == report.own
    assert cost.download == sum(len(v) for s in report.own for k, v in hub.repositories[NAME][f"step{s}"].items() if not k.endswith((".json", ".md")))
    assert cost.disk == max(len(hub.repositories[NAME][f"step{s}"][f.file]) for s in report.own for f in listing[s] if len(listing[s]) == 1)
    assert cost.seconds > len(report.own) * cost.flop / 1e9
    asked = [path for method, path in hub.log if "/resolve/" in path]
    assert asked and all(path.endswith((".json")) for path in asked), asked
    assert weight_files(tmp_path) == []


def test_measure_and_compare_the_series(hub, tmp_path):
    listing = pythia.manifest(NAME)
    report = pythia.audit(listing)
    probes = probe_sets(tmp_path)
    steps = pythia.parse_steps("all", report.own)
    hub.bodies[f"step{GARBLED}", "model.safetensors"] = bytes(reversed(hub.repositories[NAME][f"step{GARBLED}"]["model.safetensors"]))
    hub.bodies[f"step{SHORT}", "model.safetensors"] = hub.repositories[NAME][f"step{SHORT}"]["model.safetensors"][:-7]
    listing[232] = tuple(f._replace(commit="0" * 40) for f in listing[64])              # a branch that went away since
    seen, rows, on_disk = [], [], []
    with pytest.raises(RuntimeError) as error:
        for row in pythia.measure(NAME, [*steps, 232, 240], probes, listing | {240: ()}, tmp_path, progress=lambda *p: seen.append(p)):
            rows.append(row)
            on_disk.append(weight_files(tmp_path))
    said = str(error.value)
    for step, words in ((CUT, "damaged or cut short"), (EVIL_STEP, "refused"), (GARBLED, "sha256"), (SHORT, "arrived cut short"),
                        (232, "has no"), (240, "no weight file")):
        assert re.search(rf"step {step} of {NAME}: [^;]*{words}", said), (step, words, said)
    assert said.count("; ") >= 5 and "\n" not in said and "6 of" in said
    assert not (tmp_path / "ran").exists(), "the pickle's code was run"
    assert on_disk == [[]] * len(rows), "each checkpoint is gone before its row is handed out"
    assert seen[-1] == (240, len(steps) + 1, len(steps) + 2)
    assert [row["step"] for row in rows] == sorted(set(TRUE_STEPS) - {128} | {TWIN})
    assert [r["twin_of"] for r in rows if "twin_of" in r] == [0, 64]
    assert json.loads(json.dumps(rows)) == rows
    level = rows[0]["levels"]["induction"]
    assert level["n"] == level["distinct"] == 30 and level["chance"] == 0.5
    assert level["loss"] == pytest.approx(math.log(600), rel=0.02)
    assert all(len(level[kind][p]) == TINY.n_layer + 2 for kind in ("rankme", "rankme_squared_centred") for p in pythia.POSITIONS)
    assert rows[-1]["levels"]["induction"]["accuracy"] == 1 and rows[-1]["levels"]["induction"]["margin"] > 2
    # it is the checkpoint's own numbers: once more, from the tensors that were served
    (tmp_path / "by hand").mkdir()
    for name, body in hub.repositories[NAME]["step80"].items():
        (tmp_path / "by hand" / name).write_bytes(body)
    again = pythia.probe_row(pythia.load(tmp_path / "by hand")[0], probes["induction"])
    assert again == next(r for r in rows if r["step"] == 80)["levels"]["induction"]

    result = pythia.compare(rows, report)
    assert set(result.left_out) == {1, 64, TWIN} and result.steps == (0, 2, 4, 8, 16, 32, 40, 48, 56, 80, 96, 112)
    order = {o.task: o for o in result.orders}
    assert order["induction"].emergence[1] in (48, 56, 80) and order["grammar"].emergence is None
    assert order["induction"].emergence[0] == result.steps[result.steps.index(order["induction"].emergence[1]) - 1]
    assert order["grammar"].verdict == order["facts"].verdict == "never"
    assert "cannot tell" in result.verdict and result.information < 5
    figure = pythia.compare_figure(rows, result)
    figure.savefig(tmp_path / "figure.png")
    assert [a.get_title().split(":")[0] for a in figure.axes[:3]] == ["induction", "grammar", "facts"]


def test_a_missing_model_or_hub_is_one_sentence(hub, tmp_path, monkeypatch):
    for name in ("tests/absent", "tests/no/name"):
        with pytest.raises(ValueError, match="no such model"):
            pythia.manifest(name)
    with pytest.raises(ValueError, match="has no absent.json"):
        pythia.fetch(NAME, "absent.json", tmp_path)
    listing = {64: (pythia.WeightFile("model.safetensors", 10, "0" * 64, "step7"),)}
    with pytest.raises(ValueError, match="step 64.*step7"):
        next(pythia.snapshots(NAME, [64], listing, tmp_path))
    with pytest.raises(ValueError, match="step 65 of .* no weight file"):
        next(pythia.snapshots(NAME, [65], listing, tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda s: None)
    for call in (lambda: pythia.manifest(NAME), lambda: pythia.fetch(NAME, "config.json", tmp_path / "other")):
        with pytest.raises(RuntimeError, match="cannot be had from the hub") as error:
            call()
        assert "\n" not in str(error.value)


def test_a_snapshot_leaves_neither_file_nor_weights_behind(hub, tmp_path, monkeypatch):
    listing = pythia.manifest(NAME)
    user = tmp_path / "models--somebody--else" / "blobs"
    user.mkdir(parents=True)
    (user / "kept").write_text("another model's file in the same folder")
    kept = []
    for snapshot in pythia.snapshots(NAME, [4, 8, 64], listing, tmp_path, torch.bfloat16):
        assert weight_files(tmp_path) == []
        assert {p.dtype for p in snapshot.model.parameters()} == {torch.bfloat16} and {p.device.type for p in snapshot.model.parameters()} == {"cpu"}
        assert all({p.device.type for p in m.parameters()} == {"meta"} for m in kept)  # whoever holds the last one holds no memory
        kept.append(snapshot.model)
        assert len(snapshot.state()["fingerprint"]) == 64
    assert len(kept) == 3 and (user / "kept").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hub's own cache"):
        next(pythia.snapshots(NAME, [4], listing, tmp_path))


def test_step_0_that_is_no_untrained_network_is_found(hub, tmp_path, series):
    listing = pythia.manifest(NAME)
    probes = probe_sets(tmp_path)
    with pytest.raises(RuntimeError, match="step 0 has loss .* weights of another step"):
        list(pythia.measure(NAME, [0], {"induction": probes["induction"]}, listing | {0: listing[96]}, tmp_path))


SCRIPT = """
import json, sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
import pythia, test_pythia
from pathlib import Path
out = Path({out!r})
torch.set_num_threads(1)                                       # as conftest.py has it: sums come out in another order with two
probes = test_pythia.probe_sets(out)
{before}
with open(out / "metrics.jsonl", "a") as file:
    for row in pythia.measure(test_pythia.NAME, {steps!r}, probes, pythia.manifest(test_pythia.NAME), out / "cache",
                              progress=lambda step, *rest: print("at", step, flush=True)):
        print(json.dumps(row), file=file, flush=True)
"""


def script(out, steps, before=""):
    out.mkdir(exist_ok=True)
    return [sys.executable, "-c", SCRIPT.format(root=str(ROOT), tests=str(Path(__file__).parent), out=str(out), steps=steps, before=before)]


def test_killed_and_resumed(hub, tmp_path):
    steps = [0, 2, 4, 8, 16]
    listing = pythia.manifest(NAME)
    whole = list(pythia.measure(NAME, steps, probe_sets(tmp_path), listing, tmp_path))
    out = tmp_path / "killed"
    with subprocess.Popen(script(out, steps), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == "at 4":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert 2 <= len(kept) < 5
    left = out / "cache" / "models--tests--induction" / "blobs" / "abc.incomplete"          # the kill may have come while a file arrived
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"0" * 1000)
    rest = list(pythia.measure(NAME, steps, probe_sets(out), listing, out / "cache", done=kept))
    assert without_clock(kept + rest) == without_clock(json.loads(json.dumps(whole)))
    assert weight_files(out) == []
    hub.log.clear()
    assert list(pythia.measure(NAME, steps, {}, listing, out / "cache", done=kept + rest)) == [] and hub.log == []


def test_full_disk_in_the_middle_of_a_download(hub, tmp_path):
    """The kernel refuses to write more than 100 KB to a file, as a full disk or a quota does: what was measured stays."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    out = tmp_path / "full"
    run = subprocess.run(script(out, [0, 2], limit), capture_output=True, text=True)
    assert run.returncode == 1 and "RuntimeError: the disk is full" in run.stderr.splitlines()[-1], run.stderr[-2000:]
    assert run.stdout.split() == ["at", "0"] and weight_files(out) == []


def test_the_commands(hub, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, str(ROOT / "run.py"), "pythia", *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {"COLUMNS": "200"})

    audit = run("audit", NAME)
    assert audit.returncode == 0 and "21 step branches; 19 hold weights of their own" in audit.stdout, audit
    measure = ["measure", NAME, "--probes", "grammar,facts", "--probe-file", probe_file(tmp_path), "--out", "run", "--yes", "--steps"]
    first = run(*measure, "0,2,4,8,16,32,40,208")
    assert first.returncode == 1 and len(first.stderr.splitlines()) == 1 and "refused" in first.stderr, first
    rows_path = tmp_path / "run" / "metrics.jsonl"
    before = rows_path.read_text()
    assert [json.loads(line)["step"] for line in before.splitlines()] == [0, 2, 4, 8, 16, 32, 40]
    rows_path.write_text(before + '{"step": 48, "lev')             # as a kill leaves it
    second = run(*measure, "0,2,4,8,16,20,32,40,48,56,64,72,80,96,112")
    assert second.returncode == 0 and "leaves out 1 of 15" in second.stdout, second
    assert rows_path.read_text().startswith(before) and len(rows_path.read_text().splitlines()) == 14
    assert weight_files(tmp_path) == [] and not (tmp_path / "ran").exists()
    other = run(*measure, "0,2", "--dtype", "bfloat16")
    assert other.returncode == 2 and "another config (dtype was float32, now bfloat16)" in other.stderr, other
    compare = run("compare", "run")
    assert compare.returncode == 0 and "step 72 left out: same weights as step 64" in compare.stdout, compare
    findings = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert {o["task"]: o["verdict"] for o in findings["orders"]}["facts"] == "never" and "cannot tell" in findings["verdict"]
    assert (tmp_path / "run" / "figures" / "compare.png").stat().st_size > 10_000


def test_a_disk_too_small_is_said_before_the_download(hub, tmp_path, monkeypatch):
    listing = pythia.manifest(NAME)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 ** 6, 10 ** 6 - 1000, 1000))
    hub.log.clear()
    with pytest.raises(RuntimeError, match="too full for step 64"):
        next(pythia.snapshots(NAME, [64], listing, tmp_path))
    assert hub.log == []


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path):
    code = ("import sys; sys.modules['huggingface_hub'] = sys.modules['tokenizers'] = None; import pythia\n"
            "for call in (lambda: pythia.manifest('160m'), lambda: pythia.tokenizer('x')):\n"
            "    try:\n        call()\n    except ImportError as error:\n        print(error)")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 2 and run.stdout.count("pip install '.[pythia]'") == 2


# ---------------------------------------------------------------------------------------------------------------
# The published evaluations

def write_evals(folder, curves, stderr=0.01):
    """curves: {task: {step: accuracy}} of a model "pythia-160m"."""
    (folder / "pythia-160m").mkdir(parents=True, exist_ok=True)
    for step in sorted({s for c in curves.values() for s in c}):
        results = {task: {"acc": c[step], "acc_stderr": stderr} for task, c in curves.items()}
        (folder / "pythia-160m" / f"160m_step{step}.json").write_text(json.dumps({"results": results, "versions": {}}))


def test_evals_emergence_of_made_up_curves(tmp_path):
    steps = [0, 512, 1000, 3000, 13000, 23000]
    write_evals(tmp_path, {"sciq": dict(zip(steps, [.2, .25, .26, .5, .6, .7])),               # plainly at 3000
                           "logiqa": dict(zip(steps, [.24, .26, .27, .265, .26, .275])),       # never three standard errors
                           "arc_easy": dict(zip(steps, [.25, .4, .25, .25, .25, .4])),         # once, and not for good
                           "piqa": dict(zip(steps, [.54, .54, .54, .54, .55, .55])),           # no better than untrained
                           "lambada_openai": dict(zip(steps, [0, 0, 0, .1, .2, .3]))})
    events = {e.task: e for e in pythia.evals_emergence(pythia.read_evals(tmp_path))}
    assert {t: e.emergence for t, e in events.items()} == {"sciq": (1000, 3000), "logiqa": None, "arc_easy": None, "piqa": None,
                                                          "lambada_openai": (1000, 3000)}
    assert events["piqa"].chance == 0.54 and events["arc_easy"].best_step == 512
    assert {e.task for e in pythia.evals_emergence(pythia.read_evals(tmp_path), threshold=0.5) if e.emergence} == set()


def test_evals_files(tmp_path):
    with pytest.raises(ValueError, match="no files named"):
        pythia.read_evals(tmp_path)
    newer = {"results": {"sciq": {"alias": "sciq", "acc,none": 0.5, "acc_stderr,none": 0.02, "acc_norm,none": 0.4, "acc_norm_stderr,none": "N/A"}}}
    (tmp_path / "2.8b_step64.json").write_text(json.dumps(newer))
    assert pythia.read_evals(tmp_path) == [("pythia-2.8b", 64, "sciq", "acc", 0.5, 0.02), ("pythia-2.8b", 64, "sciq", "acc_norm", 0.4, None)]
    (tmp_path / "five-shot").mkdir()
    (tmp_path / "five-shot" / "2.8b_step64.json").write_text(json.dumps({"results": {"sciq": {"acc": 0.6, "acc_stderr": 0.02}}}))
    with pytest.raises(ValueError, match="two values for sciq"):
        pythia.read_evals(tmp_path)
    (tmp_path / "2.8b_step64.json").write_text("[]")
    with pytest.raises(ValueError, match="not a result file"):
        pythia.read_evals(tmp_path)


@needs_data
def test_published_evaluations_agree_with_their_table():
    rows = {row[:4]: row for row in pythia.read_evals(DATA / "evals")}
    table = list(csv.DictReader(open(DATA / "evals_core.csv")))
    assert len(table) > 1000
    for r in table:
        row = rows[r["model"], int(r["step"]), r["task"], r["metric"]]
        assert row.value == pytest.approx(float(r["value"]), rel=1e-4, abs=1e-6), r
        assert r["stderr"] == "" or row.stderr == pytest.approx(float(r["stderr"]), rel=1e-3), r


@needs_data
@pytest.mark.parametrize("rule", [{}, {"persistence": 2}, {"threshold": 0.04}])
def test_published_evaluations_emergence(rule):
    found = {(e.task, e.model): e for e in pythia.evals_emergence(pythia.read_evals(DATA / "evals"), **rule)}
    models = ["pythia-160m", "pythia-410m", "pythia-2.8b"]
    for model in models:
        assert all(found[task, model].emergence is None for task in ("logiqa", "wsc", "mmlu_mean57")), model
        for task in ("lambada_openai", "sciq", "arc_easy"):
            after, by = found[task, model].emergence
            assert 512 <= after < by <= 3000, (task, model, after, by)
    assert found["arc_challenge", models[2]].emergence[0] >= 83000
    assert found["arc_challenge", models[0]].emergence is found["arc_challenge", models[1]].emergence is None
    peak = found["lambada_openai", "pythia-160m"]
    assert (peak.best_step, round(peak.best, 3), round(peak.last, 3)) == (63000, 0.399, 0.328)


@needs_data
def test_evals_figure_draws_every_curve(tmp_path):
    rows = pythia.read_evals(DATA / "evals")
    figure = pythia.evals_figure(rows, pythia.evals_emergence(rows))
    figure.savefig(tmp_path / "evals.png")
    assert [a.get_title() for a in figure.axes if a.get_title()] == list(pythia.CHANCE)
    sciq = figure.axes[1]
    dots = sorted(float(line.get_xdata()[0]) for line in sciq.lines if line.get_marker() == "o")
    assert dots == [1000, 1000, 1000]


# ---------------------------------------------------------------------------------------------------------------
# Geometry against behaviour

def made_up_rows(tasks, steps):
    """tasks: {name: (onset step, emergence step)}: RankMe falls from 20 to 5, and rises to 15 from the onset on; accuracy jumps."""
    rows = []
    for i, step in enumerate(steps):
        levels = {}
        for name, (onset, emerged) in tasks.items():
            rank = 20.0 if i == 0 else 15.0 if step >= onset else 5.0
            levels[name] = {"n": 30, "chance": 0.5, "accuracy": 1.0 if step >= emerged else 0.5, "margin": 0.0,
                            "rankme": {"first": [1.0, rank, 3.0]}, "rankme_interval": {"first": [rank - 1, rank + 1]}}
        rows.append({"step": step, "fingerprint": str(step), "levels": levels})
    return rows


STEPS = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


def test_compare_orders_events_by_intervals():
    rows = made_up_rows({"before": (400, 700), "same": (500, 500), "next": (500, 600), "after": (700, 400)}, STEPS)
    result = pythia.compare(rows)
    orders = {o.task: o for o in result.orders}
    assert {t: o.verdict for t, o in orders.items()} == {"before": "leads", "same": "unresolved", "next": "leads", "after": "lags"}
    assert orders["before"].onset == (300, 400) and orders["before"].emergence == (600, 700) and orders["before"].lead == (200, 400)
    assert orders["same"].lead == (-100, 100) and orders["next"].lead == (0, 200)
    assert all(o.collapse and o.recovery and not o.compression for o in result.orders)
    assert "Global patterns: replicate" in result.verdict and "cannot tell" in result.verdict


def test_compare_applies_the_audit():
    """The same curves; but the checkpoints between onset and emergence turn out to be copies, and the lead is no longer resolved."""
    rows = made_up_rows({"before": (400, 700)}, STEPS)
    copies = pythia.Audit(own=(), left_out={400: "copy", 500: "copy", 600: "copy"}, groups=())
    audited = pythia.compare(rows, copies)
    assert audited.left_out == copies.left_out and audited.orders[0].verdict == "unresolved" and audited.orders[0].lead == (-400, 400)
    rows[3]["twin_of"] = 700                                   # and two that hold the same weights both go
    assert set(pythia.compare(rows).left_out) == {300, 700}
    late = pythia.compare(made_up_rows({"before": (400, 700)}, STEPS), pythia.Audit((), {s: "copy" for s in STEPS[:7]}, ()))
    assert late.orders[0].emergence == (0, 700) and late.orders[0].verdict == "never" and "cannot tell, for the first" in late.verdict
    with pytest.raises(ValueError, match="at least 4"):
        pythia.compare(rows[:3])


def test_verdict_needs_information():
    """With as many tasks as it takes, precursors that are there are found, and a common onset is not one."""
    steps = list(range(0, 4100, 100))
    real = {f"t{i}": (300 + 40 * i, 700 + 40 * i) for i in range(80)}
    result = pythia.compare(made_up_rows(real, steps))
    assert result.information >= 5 and "found, against C9" in result.verdict
    common = {f"t{i}": (200, 500 + 80 * i) for i in range(30)}
    result = pythia.compare(made_up_rows(common, steps))
    assert all(o.verdict == "leads" for o in result.orders) and result.information == 0 and "cannot tell" in result.verdict


# ---------------------------------------------------------------------------------------------------------------
# Memory

@pytest.mark.slow
def test_2_8b_in_bfloat16_is_measured_within_8_gib(tmp_path):
    """A random model of that shape, in two shards of float16 made tensor by tensor; loaded and measured in a process of its own."""
    if shutil.disk_usage(tmp_path).free < 7e9:
        pytest.skip("needs 6 GB of disk")
    c = pythia.SIZES["2.8b"]
    with torch.device("meta"):
        names = {("" if k.startswith("embed_out") else "gpt_neox.") + k: p.shape for k, p in pythia.NeoX(c).named_parameters()}
    (tmp_path / "config.json").write_text(json.dumps(hub_config(c)))
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        header, offset = {}, 0
        mine = list(names)[i::2]
        for name in mine:
            header[name] = {"dtype": "F16", "shape": list(names[name]), "data_offsets": [offset, offset + 2 * names[name].numel()]}
            offset += 2 * names[name].numel()
        text = json.dumps(header).encode()
        with open(tmp_path / f"model-0000{i + 1}-of-00002.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in mine:
                value = torch.ones(names[name]) if name.endswith("norm.weight") else torch.randn(names[name], generator=generator) * 0.02
                file.write(value.half().numpy().tobytes())
    code = f"""
import resource, torch, pythia
model, fingerprint = pythia.load({str(tmp_path)!r}, torch.bfloat16)
probe = pythia.Probe(tuple([i, i + 1, i + 2, i + 3] for i in range(4)), tuple(([i + 9], [i + 8]) for i in range(4)), 0.5)
row = pythia.probe_row(model, probe)
print(len(row["rankme"]["first"]), row["loss"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()                                         # pytest would keep them for three runs
    assert run.returncode == 0, run.stderr
    layers, loss, peak = run.stdout.split()
    print(f"peak resident memory {float(peak):.2f} GiB")
    assert int(layers) == 34 and float(peak) < 8
    assert 2775208960 * 2 / 2 ** 30 < float(peak)              # the weights were really there


def test_examples_in_the_docstrings():
    assert doctest.testmod(pythia).failed == 0
