"""What pythia.py is tested against: transformers' own hidden states; a little series of checkpoints
with planted faults, served on loopback in the hub's own API; what is published and reported of
Pythia; curves whose order is known by construction.

PYTHIA_DATA names a folder with tokenizer.json, evals/ and evals_core.csv of the Pythia repository,
and ../bbh beside it; tests that need it are skipped without.  Tests that load models are skipped
where the extra `pythia` is not installed."""
import csv
import doctest
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

import pytest
import torch

import claims
import hub as loopback                                          # tests/hub.py
import measures
import pythia
import report
import run
import sweep

try:
    import huggingface_hub  # noqa: F401
    import safetensors.torch as safetensors_torch
    import tokenizers
    import transformers
except ImportError:
    transformers = None

ROOT = Path(pythia.__file__).parent
DATA = Path(os.environ.get("PYTHIA_DATA", "no such folder"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="PYTHIA_DATA names no folder")
needs_extra = pytest.mark.skipif(transformers is None, reason="the extra `pythia` is missing")
LETTERS = "abcdefghijklmnopqrstuvwx"
PYTHIA = (0, *(2 ** i for i in range(10)), *range(1000, 144000, 1000))       # its public steps

# A config.json as Pythia's, of a tiny model.
TINY = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu",
        "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
        "intermediate_size": 128, "vocab_size": 600, "rotary_pct": 0.5, "rotary_emb_base": 10000,
        "use_parallel_residual": True, "layer_norm_eps": 1e-5, "attention_bias": True,
        "max_position_embeddings": 128, "tie_word_embeddings": False}


def from_config(config, dtype=torch.float32):
    config = transformers.AutoConfig.for_model(**config)
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager").eval()


def tiny_model(std=0.02, seed=0, **changes):
    """A GPT-NeoX whose matrices are normal, its biases 0 and its gains 1 -> LanguageModel."""
    model = from_config(TINY | changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.normal_(std=std, generator=generator)
            elif name.endswith("bias"):
                p.zero_()
    return pythia.LanguageModel(model)


def stored(model):
    """The parameters under the names that Pythia's files use."""
    return {name.replace("lm_head.", "embed_out."): p.detach().clone()
            for name, p in model.model.named_parameters()}


def write(folder, state, name="model.safetensors", **changes):
    """A checkpoint's folder, as on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    if name.endswith("safetensors"):
        safetensors_torch.save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder


def word_tokenizer():
    words = set()
    for items in pythia.own_probes().values():
        for item in items:
            for text in (item.prompt, item.right, *item.wrong):
                words |= set(text.split())
    known = ["<|endoftext|>", "unknown", *LETTERS, *sorted(words - set(LETTERS))]
    assert len(known) <= TINY["vocab_size"]
    vocabulary = {word: i for i, word in enumerate(known)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="unknown")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tokenizer


# ------------------------------------------------------------------------------------------------
# The model

SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 97,
         "intermediate_size": 64, "max_position_embeddings": 64}
SHAPES = {
    "as Pythia": (TINY | SMALL | {"rotary_pct": 0.25}, "gpt_neox.final_layer_norm"),
    "sequential": (TINY | SMALL | {"rotary_pct": 1.0, "use_parallel_residual": False,
                                   "attention_bias": False}, "gpt_neox.final_layer_norm"),
    "GPT-2": ({"model_type": "gpt2", "n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 97,
               "n_positions": 64}, "transformer.ln_f"),
    "Llama": (SMALL | {"model_type": "llama", "num_key_value_heads": 2}, "model.norm"),
    "OLMo 2": (SMALL | {"model_type": "olmo2", "num_key_value_heads": 4}, "model.norm")}


def shaken(model):
    """Gains and biases too: at their initial values they hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (p.dim() == 1))
    return model


@needs_extra
@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin"])
@pytest.mark.parametrize("shape", SHAPES)
def test_states_and_logits_are_those_of_transformers(shape, layout, tmp_path):
    config, norm = SHAPES[shape]
    reference = shaken(from_config(config))
    reference.save_pretrained(tmp_path, max_shard_size="20KB" if layout == "sharded" else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (layout == "sharded")
    if layout == "bin":                                         # as old branches have it
        state = safetensors_torch.load_file(tmp_path / "model.safetensors")
        if config["model_type"] == "gpt_neox":                  # with the buffers of the time
            state["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            state["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    model = pythia.load_model(tmp_path)
    tokens = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, 9:] = mask[2, 4:] = 0                               # padding on the right is not seen
    with torch.no_grad():
        theirs = reference(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        states, logits = model.read(tokens, torch.arange(12))
        *before, last_block, final_norm = states
        assert torch.equal(logits, model(tokens))
    layers = [*before, final_norm]
    seen = mask.bool()
    differences = [float((a - b)[seen].abs().max())
                   for a, b in zip([*layers, logits], [*theirs.hidden_states, theirs.logits],
                                   strict=True)]
    assert max(differences) < 1e-5, f"largest difference by layer, then logits: {differences}"
    assert float(theirs.logits.abs().max()) > 1                 # or a model of zeros would agree
    with torch.no_grad():
        again = reference.get_submodule(norm)(last_block)
    torch.testing.assert_close(again, final_norm, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(last_block, final_norm)


@needs_extra
def test_only_the_columns_asked_for_are_returned_and_the_hook_goes():
    model = tiny_model(0.2)
    tokens = torch.randint(600, (2, 9), generator=torch.Generator().manual_seed(0))
    columns, hooks = torch.tensor([3, 7]), []
    for _ in range(2):
        states, logits = model.read(tokens, columns)
        last = model.model.gpt_neox.layers[-1]
        hooks.append(len(last._forward_hooks))                  # transformers leaves one of its own
    torch.testing.assert_close(logits, model(tokens)[:, columns])
    assert len(states) == 4 and {tuple(x.shape) for x in states} == {(2, 9, 64)}
    assert hooks[0] == hooks[1]


@needs_extra
def test_later_tokens_leave_earlier_logits_alone():
    model = tiny_model(0.2)
    tokens = torch.randint(600, (2, 9), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 6:] = 0
    assert torch.equal(model(other)[:, :6], model(tokens)[:, :6])


@needs_extra
def test_second_derivative_matches_finite_differences():
    model = tiny_model(0.5, num_hidden_layers=1, num_attention_heads=2, hidden_size=8,
                       intermediate_size=16, vocab_size=11).double()
    parameters = list(model.parameters())
    batch = pythia.right_padded([([1, 2], [3]), ([4, 5, 6], [7, 8])])
    v = []
    for i, p in enumerate(parameters):
        generator = torch.Generator().manual_seed(i)
        v.append(torch.randn(p.shape, dtype=torch.float64, generator=generator))

    def gradient(create_graph=False):
        logits = model(batch.tokens).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets.flatten())
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)

    inner = sum((g * u).sum() for g, u in zip(gradient(True), v))
    product = torch.autograd.grad(inner, parameters)
    h, ends = 1e-3, []                                          # softmax and rotations are float32
    for shift in (h, -2 * h):                                   # to w + h v, then to w - h v
        with torch.no_grad():
            for p, u in zip(parameters, v):
                p.add_(u, alpha=shift)
        ends.append(gradient())
    slow = [(a - b) / (2 * h) for a, b in zip(*ends)]
    error = max(float((a - b).abs().max()) for a, b in zip(product, slow))
    error /= max(float(a.abs().max()) for a in slow)
    assert error < 1e-3, error                                  # their rounding over h is 6e-5


@needs_extra
@pytest.mark.parametrize("kind", ["as Pythia", "GPT-2", "Llama"])
def test_measures_of_the_loss_run_on_it(kind, monkeypatch):
    few = pythia.EXTRAS["llc"] | {"num_chains": 2, "num_draws": 8, "num_burnin_steps": 1}
    monkeypatch.setitem(pythia.EXTRAS, "llc", few)
    config, _ = SHAPES[kind]
    model = pythia.LanguageModel(from_config(config))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prompts = tuple([i, i + 1, 7] for i in range(6))
    options = tuple(([i + 3], [i + 4]) for i in range(6))
    row = pythia.probe_row(model, pythia.ProbeSet(prompts, options, 0.5), extras=pythia.EXTRAS)
    assert 1 < row["gradient_rank"] <= 6
    assert row["hessian_top"]["converged"] and math.isfinite(row["hessian_top"]["eigenvalue"])
    assert math.isfinite(row["llc"]["mean"])
    json.dumps(row)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------
# Loading

@needs_extra
def test_fingerprint_is_of_the_weights_not_of_the_file(tmp_path):
    state = stored(tiny_model())
    embedding = state["gpt_neox.embed_in.weight"]
    embedding[599, 3] = 0.0
    first = fingerprint_of(write(tmp_path / "a", state))
    assert first == fingerprint_of(write(tmp_path / "bin", state, "pytorch_model.bin"))
    buffers = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    assert first == fingerprint_of(write(tmp_path / "buffers", state | buffers))
    embedding[599, 3] = -0.0
    second = fingerprint_of(write(tmp_path / "b", state))
    a, b = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert a != b and first == second
    half = {name: value.half() for name, value in state.items()}
    assert fingerprint_of(write(tmp_path / "half", half)) != first
    embedding[599, 3] = 1e-30
    assert fingerprint_of(write(tmp_path / "c", state)) != first


def fingerprint_of(folder):
    return pythia.fingerprint(pythia.load_model(folder))


@needs_extra
def test_loaded_weights_outlive_their_file(tmp_path):
    write(tmp_path / "a", stored(tiny_model()))
    models = {dtype: pythia.load_model(tmp_path / "a", dtype)
              for dtype in (torch.float32, torch.bfloat16)}
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "the file is still mapped"
    shutil.rmtree(tmp_path / "a")
    expected = tiny_model()(torch.arange(20)[None])
    for dtype, model in models.items():
        assert {p.dtype for p in model.parameters()} == {dtype} and not model.training
        with torch.no_grad():
            difference = model(torch.arange(20)[None]).float() - expected
        assert float(difference.abs().max()) < (0.02 if dtype == torch.bfloat16 else 1e-6)


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ.get('EVIL_FILE', '/dev/null')}",)


def damaged_folders(tmp_path):
    """{what the sentence says: folder} of checkpoints that cannot be used."""
    state = stored(tiny_model())
    cut = write(tmp_path / "cut", state)
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    half = write(tmp_path / "half", state, "pytorch_model.bin")
    file = half / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:5000])
    evil = write(tmp_path / "evil", {"gpt_neox.embed_in.weight": Evil()}, "pytorch_model.bin")
    lacking = {name: value for name, value in state.items() if name != "embed_out.weight"}
    left_over = state | {"gpt_neox.extra.weight": torch.ones(3)}
    unknown = {"model_type": "nonsense"}
    remote = unknown | {"auto_map": {"AutoConfig": "evil.Config"}}
    return {"the weights: .*file.*; try again, or leave it out": cut,
            "the weights: .*; try again": half,
            "the weights: refused": evil,
            "lm_head.weight is missing": write(tmp_path / "lacking", lacking),
            "gpt_neox.extra.weight is .* left over": write(tmp_path / "left over", left_over),
            "or misshapen": write(tmp_path / "shape", state, hidden_size=32),
            "nonsense": write(tmp_path / "other", state, **unknown),
            "custom code": write(tmp_path / "remote", state, **remote)}


@needs_extra
def test_bad_checkpoints_are_one_sentence_and_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    for sentence, folder in damaged_folders(tmp_path).items():
        with pytest.raises(ValueError, match=sentence) as error:
            pythia.load_model(folder)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists(), "the pickle's code was run"
    os.system(Evil().__reduce__()[1][0])
    assert (tmp_path / "ran").exists()                          # so it would have shown


# ------------------------------------------------------------------------------------------------
# The audit

# Reported of pythia-2.8b, not verified here (issues 195, 205 and 206 of Pythia's repository).  The
# first list is said to share one file with `main`.  The second is said to share another file, whose
# tensors are the same but for the sign of one zero.
AS_MAIN = (*PYTHIA[:11], *range(1000, 54000, 1000), *range(55000, 75000, 5000),
           *range(80000, 110000, 10000), 103000, *range(110000, 150000, 10000))
SECOND = (54000, *range(56000, 60000, 1000), *range(61000, 65000, 1000), 143000)


def listing_of(shas, main="end"):
    def served(sha):
        return (pythia.WeightFile("model.safetensors", 5, sha),)
    return {**{step: served(sha) for step, sha in shas.items()}, "main": served(main)}


def test_audit_of_what_is_reported_of_2_8b():
    shas = {step: f"own {step}" for step in PYTHIA}
    shas |= dict.fromkeys(AS_MAIN, "end") | dict.fromkeys(SECOND, "end again")
    report = pythia.audit(listing_of(shas))
    assert len(PYTHIA) == 154 and len(AS_MAIN) == 76 and len(SECOND) == 10
    assert len(report.own) == 68 and report.own[0] == 66000 and len(report.left_out) == 86
    assert [len(branches) for _, _, branches in report.groups] == [77, 10]
    assert report.groups[0][2][0] == "main"
    assert "main and 75 more" in report.left_out[0] and "main" not in report.left_out[143000]


def test_audit_accepts_what_is_right_to_share():
    shas = {step: f"own {step}" for step in PYTHIA}
    shas |= {0: "start", 1: "start", 143000: "end"}
    assert pythia.audit(listing_of(shas)).own == PYTHIA
    report = pythia.audit(listing_of(shas | {2: "start"}))      # a third: all three are doubtful
    assert report.own == PYTHIA[3:] and set(report.left_out) == {0, 1, 2}


def test_audit_groups_by_shard():
    def shards(*shas):
        return tuple((f"model-0000{i}-of-00002.safetensors", 5, sha)
                     for i, sha in enumerate(shas, 1))
    report = pythia.audit({10: shards("a", "b"), 20: shards("c", "d"), 30: shards("a", "e"), 40: (),
                           "main": shards("f", "g")})
    assert report.own == (20,) and set(report.left_out) == {10, 30, 40}
    assert "1 of 2" in report.left_out[10] and "no weight file" in report.left_out[40]
    twice = {10: shards("a", "a"), 20: shards("b", "c")}        # twice in one step is no sharing
    assert pythia.audit(twice).own == (10, 20)


def test_safetensors_come_before_bin_and_one_file_before_shards():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files = [pythia.WeightFile(name) for name in ("pytorch_model.bin", *shards, "optimizer.bin")]
    assert [f.file for f in pythia.files_to_read(files)] == shards
    files.append(pythia.WeightFile("model.safetensors"))
    assert [f.file for f in pythia.files_to_read(files)] == ["model.safetensors"]
    assert pythia.files_to_read([pythia.WeightFile("config.json")]) == []


def test_steps_are_parsed_or_refused_in_one_sentence():
    steps = PYTHIA
    assert pythia.parse_steps("1000:4000:1000,0", steps) == (0, 1000, 2000, 3000, 4000)
    assert pythia.parse_steps("all", (1, 2)) == (1, 2)
    assert pythia.parse_steps("0:5", steps) == (0, 1, 2, 4)     # of a range, those there are
    assert pythia.parse_steps(f"0:{10 ** 30}", steps) == steps
    for text, sentence in (("3", "no step 3: the nearest are 2, 4, 1$"), ("a", "expected"),
                           ("1:2:0", "expected"), ("5:1", "no step"), ("", "expected"),
                           ("0,200:0", "no step 200:0"), ("0,8:0:-4", "no step 8:0:-4"),
                           ("0,600:900", "no step 600:900: the nearest are 512, 256, 1000")):
        with pytest.raises(ValueError, match=sentence):
            pythia.parse_steps(text, steps)


@pytest.mark.parametrize("pattern", ["{step}-{step}", "{1}-{step}", "{1}", "{a}{a}{step}",
                                     "{step}|other"])
def test_a_pattern_has_one_step_and_no_word_twice(pattern, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="expected a pattern such as .* with one {step}, and no"):
        pythia.manifest(str(tmp_path), revisions=pattern)


def test_models_have_short_names():
    for name in ("160m", "pythia-160m"):
        assert pythia.repository(name) == "EleutherAI/pythia-160m"
    assert pythia.repository("410m-deduped") == "EleutherAI/pythia-410m-deduped"
    assert pythia.repository("a/b") == "a/b"


# ------------------------------------------------------------------------------------------------
# Probe sets

def test_probe_sets_are_balanced():
    sets = pythia.own_probes()
    names = ["grammar", "semantics", "arithmetic", "copying", "facts", "reasoning", "text"]
    assert list(sets) == names
    for name, items in sets.items():
        assert len(items) == 30 and len({item.prompt for item in items}) == 30, name
        for item in items:
            assert item.right not in item.wrong, item
            assert all(option.startswith(" ") for option in (item.right, *item.wrong)), item
        if name not in ("arithmetic", "reasoning"):             # a liking for words gains nothing
            wrong = Counter(item.wrong[0] for item in items)
            assert Counter(item.right for item in items) == wrong, name


def test_arithmetic_is_right_and_the_wrong_answer_on_either_side():
    items = pythia.own_probes()["arithmetic"]
    assert 12 <= sum(int(item.wrong[0]) > int(item.right) for item in items) <= 18
    for prompt, right, _ in items:
        a, b = re.findall(r"(\d+) \+ (\d+) =$", prompt)[0]
        assert int(a) + int(b) == int(right)


def test_reasoning_is_right_and_no_simple_rule_solves_it():
    heuristics = Counter()
    for prompt, right, (wrong,) in pythia.own_probes()["reasoning"]:
        stated, question = prompt.rsplit(". ", 1)
        first, second = (re.match(r"(\w+) is (\w+) than (\w+)", sentence).group(1, 3)
                         for sentence in stated.split(". "))
        in_order = first[1] == second[0]                        # a above b, b above c
        order = (*first, second[1]) if in_order else (*second, first[1])
        top = any(word in question for word in ("tallest", "oldest", "fastest"))
        expected = (order[0], order[2]) if top else (order[2], order[0])
        assert (right.strip(), wrong.strip()) == expected
        named_first = prompt.index(right.strip()) < prompt.index(wrong.strip())
        heuristics.update({"first named": named_first, "top": top, "in order": in_order})
    assert all(10 <= count <= 20 for count in heuristics.values()), heuristics


def test_files_of_blimp_bbh_and_ours_are_read(tmp_path):
    lines = [{"sentence_good": "Who should Derek hug after shocking Richard?",
              "sentence_bad": "Who should Derek hug Richard after shocking?"},
             {"sentence_good": "Only Bill ever left.", "sentence_bad": "Even Bill ever left."}]
    (tmp_path / "blimp.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    first, second = pythia.read_probes(tmp_path / "blimp.jsonl")
    assert first == ("Who should Derek hug", " after shocking Richard?",
                     (" Richard after shocking?",))
    assert second == ("", "Only Bill ever left.", ("Even Bill ever left.",))

    question = "Which?\nOptions:\n(A) x\n(B) y\n(C) z"
    (tmp_path / "bbh.json").write_text(json.dumps(
        {"canary": "keep", "examples": [{"input": question, "target": "(B)"}]}))
    expected = [(question + "\nAnswer:", " (B)", (" (A)", " (C)"))]
    assert pythia.read_probes(tmp_path / "bbh.json") == expected
    (tmp_path / "yes.json").write_text(json.dumps(
        {"examples": [{"input": "a", "target": "yes"}, {"input": "b", "target": "no"}]}))
    yes, no = pythia.read_probes(tmp_path / "yes.json")
    assert (yes.wrong, no.wrong) == ((" no",), (" yes",))

    (tmp_path / "own.jsonl").write_text('{"prompt": "a b", "right": " c", "wrong": [" d", " e"]}\n')
    assert pythia.read_probes(tmp_path / "own.jsonl") == [("a b", " c", (" d", " e"))]


@pytest.mark.parametrize("name, content, sentence", [
    ("bad.jsonl", '{"prompt": "a b", "right": " c"}\n', "item 1 .*wrong"),
    ("worse.jsonl", "hello\n", "no probes"), ("absent.json", None, "no probes: .*No such file"),
    ("bbh.json", '{"examples": [{"input": "a", "target": "b"}]}', "item 1 .*options"),
    ("list.json", "[1]", "no probes: "), ("no.json", '{"examples": 3}', "no probes: ")])
def test_a_bad_file_of_probes_is_one_sentence(name, content, sentence, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        pythia.read_probes(tmp_path / name)


def test_two_probe_sets_of_one_name_are_refused(tmp_path):
    for name in ("a/items", "b/items", "arithmetic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "right": " b", "wrong": " c"}\n')
    whole = pythia.Audit((0,), {}, ())
    for name, files in (("items", ("a/items", "b/items")), ("arithmetic", ("arithmetic",))):
        files = [tmp_path / f"{file}.jsonl" for file in files]
        with pytest.raises(ValueError, match=f"two probe sets called {name}; rename a file"):
            pythia.prepare("mine", {0: ()}, whole, "all", ("arithmetic",), files, None, None,
                           "float32", "cpu", tmp_path, print)


def letters(text):
    return [ord(c) for c in text]


def test_encoding_gives_equal_n():
    items = [pythia.Item(str(i), " y", (" n", " m")) for i in range(10)]
    probes = pythia.encode({"ten": items, "four": items[:4]}, letters)
    assert [len(p.prompts) for p in probes.values()] == [4, 4]
    assert probes["ten"].chance == pytest.approx(1 / 3)
    assert probes["ten"].prompts == tuple(map(letters, "0257"))         # spread over the set
    empty = pythia.encode({"a": [pythia.Item("", "x", ("y",))] * 2}, letters, start=7)
    assert empty["a"].prompts[0] == [7]


def test_encoding_says_what_is_wrong():
    items = [pythia.Item(str(i), " y", (" n",)) for i in range(4)]
    with pytest.raises(ValueError, match="4 items where 5"):
        pythia.encode({"a": items}, letters, 5)
    told = []
    some = [*items[:3], pythia.Item("x", "", ("y",)), pythia.Item("long" * 9, " y", (" n",))]
    probes = pythia.encode({"a": some}, letters, longest=10, tell=told.append)
    assert len(probes["a"].prompts) == 3 and "probe set a: 2 of 5 items left out" in told[0]
    with pytest.raises(ValueError, match="0 items where 2"):
        pythia.encode({"a": some[3:]}, letters, longest=10, tell=told.append)


@needs_extra
def test_a_bad_tokenizer_is_one_sentence(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json"):
        pythia.tokenizer(tmp_path / "tokenizer.json")


@needs_extra
def test_read_probe_against_one_item_at_a_time():
    """Batches of ragged, padded rows give what each item gives alone, written out the slow way."""
    model = tiny_model(0.3)
    options = (([11, 12], [13]), ([14], [15, 16, 17]), ([18], [19], [20]))
    probe = pythia.ProbeSet(([5], [6, 7, 8], [9, 10]), options, 0.4)
    states, log_probs = pythia.read_probe(model, probe, rows=5)
    for n, (prompt, options) in enumerate(zip(probe.prompts, probe.options)):
        k = len(prompt) - 1
        for o, option in enumerate(options):
            p = model(torch.tensor([prompt + option]))[0].log_softmax(-1).detach()
            expected = sum(float(p[k + i, token]) for i, token in enumerate(option))
            assert float(log_probs[n, o]) == pytest.approx(expected, abs=1e-4)
        with torch.no_grad():
            line = torch.tensor([prompt + options[0]])
            hidden, _ = model.read(line, torch.tensor([0]))
        x = torch.stack(hidden)[:, 0]                                       # (L + 2, T, D)
        for name, expected in (("first", x[:, k]), ("last", x[:, -1]),
                               ("answer", x[:, k:-1].mean(1))):
            torch.testing.assert_close(states[name][:, n], expected, rtol=1e-4, atol=1e-4)
    assert log_probs[0, 2] == -math.inf and states["first"].shape == (4, 3, 64)


@needs_data
@needs_extra
def test_probes_with_the_real_tokenizer():
    encode = pythia.tokenizer(DATA / "tokenizer.json")
    for name, items in pythia.own_probes().items():
        for item in items:
            assert len(encode(item.right)) == len(encode(item.wrong[0])) == 1, (name, item)
            for option in (item.right, *item.wrong):
                assert encode(item.prompt + option) == encode(item.prompt) + encode(option), item
    words = {3: "three", 5: "five", 7: "seven"}
    sets = {k: pythia.read_probes(DATA.parent / f"bbh/logical_deduction_{word}_objects.json")
            for k, word in words.items()}
    assert {k: len(items) for k, items in sets.items()} == {3: 250, 5: 250, 7: 250}
    for k, probe in pythia.encode(sets, encode).items():
        assert probe.chance == pytest.approx(1 / k) and max(map(len, probe.prompts)) < 300
        # " (", "A", ")"
        assert {len(option) for options in probe.options for option in options} == {3}


# ------------------------------------------------------------------------------------------------
# RankMe of few rows

def test_squared_and_centred_entropy_has_its_closed_form():
    x = torch.zeros(4, 6)                                       # centred: squared values 18 and 2
    x[0, 0], x[1, 0], x[2, 1], x[3, 1] = 3, -3, 1, -1
    p = torch.tensor([0.9, 0.1])
    expected = float(torch.exp(-(p * p.log()).sum()))
    assert pythia.rankme_squared_centred(x + 5) == pytest.approx(expected, rel=1e-6)
    assert pythia.rankme_squared_centred(torch.ones(4, 6)) == 1.0
    assert measures.rankme(x) > pythia.rankme_squared_centred(x)


def test_rankme_interval_covers_other_items_of_the_same_kind():
    """Items drawn anew from one distribution: their mean RankMe lies in some 19 of 20 intervals."""
    generator = torch.Generator().manual_seed(0)
    scale = 1 / torch.arange(1, 65)

    def draw():
        return torch.randn(30, 64, generator=generator) * scale + 0.3

    truth = sum(measures.rankme(draw()) for _ in range(300)) / 300
    intervals = [pythia.rankme_interval(draw(), generator) for _ in range(150)]
    share = sum(low < truth < high for low, high in intervals) / 150
    assert 0.85 <= share <= 1, share
    assert sum(high - low for low, high in intervals) / 150 < 0.5 * truth      # it says something


# ------------------------------------------------------------------------------------------------
# End to end: a little model learns induction in some seconds.  Its checkpoints are served on
# loopback, some of them spoiled.

NAME = "tests/induction"
TRUE_STEPS = (0, 1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 80, 96, 112, 128)
DUPLICATE, TWIN, CUT, EVIL_STEP, GARBLED, SHORT = 20, 72, 200, 208, 216, 224


def induction(n, generator):
    """(n, 16): eight different letters, twice."""
    rows = [torch.randperm(len(LETTERS), generator=generator)[:8] for _ in range(n)]
    x = torch.stack(rows) + 2
    return torch.cat([x, x], 1)


def trained():
    """{step: parameters}.  The first step has learning rate 0: steps 0 and 1 are the same."""
    model, generator = tiny_model(), torch.Generator().manual_seed(1)
    with torch.no_grad():                                       # of a word that never occurs
        model.model.get_input_embeddings().weight[599, 3] = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    tensors = {}
    for step in range(TRUE_STEPS[-1] + 1):
        if step in TRUE_STEPS:
            tensors[step] = stored(model)
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1, step / 20)
        x = induction(64, generator)
        logits = model(x)[:, 8:-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, x[:, 9:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tensors


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sharded(state):
    """Two shards and their index."""
    files, where = {}, {}
    for i in range(2):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        shard = {key: state[key] for key in sorted(state)[i::2]}
        files[name] = safetensors_torch.save(shard)
        where |= dict.fromkeys(shard, name)
    index = json.dumps({"metadata": {}, "weight_map": where}).encode()
    return files | {"model.safetensors.index.json": index}


@pytest.fixture(scope="session")
def series():
    """{branch: {file: bytes}} of a model trained for 128 steps."""
    tensors = trained()
    config = {"config.json": json.dumps(TINY).encode(), "README.md": b"not wanted"}

    def single(state):
        return config | {"model.safetensors": safetensors_torch.save(state)}

    branches = {f"step{step}": single(state) for step, state in tensors.items()}
    branches["step4"] = config | sharded(tensors[4])
    branches["step8"] = config | {"pytorch_model.bin": saved(tensors[8])}
    tokenizer = word_tokenizer().to_str().encode()
    branches["main"] = branches["step128"] | {"tokenizer.json": tokenizer}
    branches[f"step{DUPLICATE}"] = branches["step128"]
    twin = {name: value.clone() for name, value in tensors[64].items()}
    twin["gpt_neox.embed_in.weight"][599, 3] = -0.0
    branches[f"step{TWIN}"] = single(twin)
    others = {step: {name: value + step for name, value in twin.items()}
              for step in (CUT, GARBLED, SHORT)}
    branches |= {f"step{step}": single(state) for step, state in others.items()}
    branches[f"step{CUT}"]["model.safetensors"] = safetensors_torch.save(others[CUT])[:-100]
    evil = saved({"gpt_neox.embed_in.weight": Evil()})
    branches[f"step{EVIL_STEP}"] = config | {"pytorch_model.bin": evil}
    return branches


@pytest.fixture
def hub(series, monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with loopback.serve({NAME: dict(series)}) as server:
        set_endpoint(monkeypatch, server.url)
        yield server


def set_endpoint(monkeypatch, url):
    """Of this process, whose client has read the variable already, and of those that it starts."""
    constants = {"ENDPOINT": url,
                 "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_ENDPOINT", url)


def probe_file(folder):
    """Thirty items: which letter comes next, the right one against another of the same list."""
    lines = []
    for row in induction(30, torch.Generator().manual_seed(9)).tolist():
        word = [LETTERS[i - 2] for i in row]
        k = 9 + len(lines) % 6
        lines.append(json.dumps({"prompt": " ".join(word[:k]), "right": " " + word[k],
                                 "wrong": [" " + word[k - 3]]}))
    (folder / "induction.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "induction.jsonl"


def probe_sets(folder):
    path = pythia.fetch(NAME, "tokenizer.json", folder / "cache")
    own = pythia.own_probes()
    sets = {"induction": pythia.read_probes(probe_file(folder)), "grammar": own["grammar"],
            "facts": own["facts"]}
    return pythia.encode(sets, pythia.tokenizer(path))


def weight_files(folder):
    return [path for path in Path(folder).rglob("*")
            if path.suffix in (".safetensors", ".bin") or ".incomplete" in path.name]


def measure(folder, steps, probes, listing):
    """`pythia measure`, without its questions -> the rows of metrics.jsonl."""
    checkpoints = functools.partial(pythia.snapshots, NAME, steps, listing, folder / "cache",
                                    torch.float32, "cpu")
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "config.json").write_text(json.dumps(TINY))
    config = pythia.run_config(NAME, folder / "cache", "float32", "cpu", (), probes)
    sweep.record(folder, config, checkpoints, pythia.ProbeMeasure(probes),
                 until=tuple(steps), seconds=0)
    return sweep.read_rows(folder / "metrics.jsonl")


def without_clock(rows):
    return [{key: value for key, value in row.items() if not key.startswith("wall_")}
            for row in rows]


@needs_extra
@pytest.mark.system
def test_audit_and_plan_of_the_series_download_no_weights(hub, tmp_path):
    seen = []
    listing = pythia.manifest(NAME, lambda **progress: seen.append(progress))
    assert seen[-1] == dict.fromkeys(("completed", "total"), len(listing))
    assert list(listing)[-1] == "main"
    assert list(listing)[:-1] == sorted(set(listing) - {"main"})
    report = pythia.audit(listing)
    assert set(report.left_out) == {DUPLICATE, 128} and "main" in report.left_out[DUPLICATE]
    # The twin cannot be seen from metadata.
    assert set(report.own) == set(listing) - {DUPLICATE, 128, "main"}
    probes = probe_sets(tmp_path)
    config = pythia.fetch(NAME, "config.json", tmp_path / "cache")
    cost = pythia.plan(config.parent, listing, report.own, probes)
    sizes = {step: sum(f.size for f in pythia.files_to_read(listing[step])) for step in report.own}
    bodies = {step: [len(body) for name, body in hub.repositories[NAME][f"step{step}"].items()
                     if name.endswith((".safetensors", ".bin"))] for step in report.own}
    assert sizes == {step: sum(lengths) for step, lengths in bodies.items()}
    assert (cost.steps, cost.download) == (report.own, sum(sizes.values()))
    assert cost.disk == max(sizes.values()) < cost.memory and 0 < cost.seconds < 600
    asked = [path for method, path in hub.log if "/resolve/" in path]
    assert asked and all(path.endswith(".json") for path in asked), asked
    assert weight_files(tmp_path) == []


@needs_extra
def test_plan_goes_by_blocks_items_and_sets(tmp_path, monkeypatch):
    """On a clock where reading an item takes as many seconds as there are blocks, and one more."""
    clock = [0.0]

    def read_probe(model, probe):
        clock[0] += len(probe.prompts) * (model.model.config.num_hidden_layers + 1)

    monkeypatch.setattr(pythia, "read_probe", read_probe)
    monkeypatch.setattr(pythia.time, "perf_counter", lambda: clock[0])
    path = tmp_path
    (path / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": 6}))
    listing = {step: (pythia.WeightFile("model.safetensors", 5 * 10 ** 9),) for step in (8, 9)}
    for n in (2, 12):
        probe = pythia.ProbeSet(([1, 2, 3],) * n, (([4, 5], [6]),) * n, 0.5)
        cost = pythia.plan(path, listing, [8, 9], {"a": probe, "b": probe})
        assert cost.seconds == pytest.approx(2 * (2 * n * 7 + 10))
        assert (cost.steps, cost.download, cost.disk) == ((8, 9), 10 ** 10, 5 * 10 ** 9)


@needs_extra
@pytest.mark.parametrize("blocks, heads, width, millions", [
    (6, 4, 128, 14.1), pytest.param(6, 8, 512, 70.4, marks=pytest.mark.slow)])
def test_plan_knows_the_weights_of_pythia(blocks, heads, width, millions, tmp_path):
    """Millions, as the Pythia paper's page has them."""
    shape = {"num_hidden_layers": blocks, "num_attention_heads": heads, "hidden_size": width,
             "intermediate_size": 4 * width, "vocab_size": 50304}
    path = tmp_path
    (path / "config.json").write_text(json.dumps(TINY | shape))
    probe = pythia.ProbeSet(([1, 2],) * 2, (([4], [6]),) * 2, 0.5)
    listing = {0: (pythia.WeightFile("model.safetensors", 10 ** 8),)}
    for dtype in (torch.float32, torch.bfloat16):
        cost = pythia.plan(path, listing, [0], {"a": probe}, dtype)
        weights = cost.memory - 10 ** 8 - 5 * 10 ** 8
        assert round(weights / dtype.itemsize / 1e6, 1) == millions


@needs_extra
def test_plan_refuses_what_it_cannot_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    probe = pythia.ProbeSet(([1] * 128,) * 2, (([1], [2]),) * 2, 0.5)
    with pytest.raises(ValueError, match=f"{tmp_path}: "):
        pythia.plan(tmp_path, {0: ()}, [0], {"long": probe})


@needs_extra
@pytest.mark.system
def test_measure_and_compare_the_series(hub, tmp_path):
    listing = pythia.manifest(NAME)
    report = pythia.audit(listing)
    probes = probe_sets(tmp_path)
    steps = [*pythia.parse_steps("all", report.own), 232, 240]
    name = "model.safetensors"
    garbled, short = (hub.repositories[NAME][f"step{s}"][name] for s in (GARBLED, SHORT))
    hub.bodies[f"step{GARBLED}", name] = bytes(reversed(garbled))
    hub.bodies[f"step{SHORT}", name] = short[:-7]
    gone = tuple(f._replace(commit="0" * 40) for f in listing[64])         # a branch that went away
    with pytest.raises(sweep.Failed) as error:
        measure(tmp_path, steps, probes, listing | {232: gone, 240: ()})
    sentence = str(error.value)
    for step, words in ((GARBLED, "sha256"), (SHORT, "Consistency check failed"),
                        (232, "revision 000000000000: .*leave it out"),
                        (240, "no weight file")):
        assert re.search(rf"step {step} of {NAME}: .*{words}", sentence), (step, words, sentence)
    assert "\n" not in sentence and f"4 of {len(steps)} checkpoints" in sentence
    assert not (tmp_path / "ran").exists(), "the pickle's code was run"
    assert not (tmp_path / "done").exists() and not (tmp_path / "failed").exists()
    assert weight_files(tmp_path) == []
    asked = {path.rsplit("/", 1)[1] for method, path in hub.log if "/resolve/" in path}
    assert all(re.search("config.json|tokenizer.json|model", name) for name in asked), asked

    rows = sweep.read_rows(tmp_path / "metrics.jsonl")
    served = sorted(set(TRUE_STEPS) - {128} | {TWIN})
    assert [row["step"] for row in rows] == [*served, CUT, EVIL_STEP]
    for row, words in zip(rows[-2:], ("the weights: .*leave it out", "the weights: refused")):
        assert row["levels"] == {} and re.search(words, row["left_out"]), row
    assert [row["twin_of"] for row in rows if "twin_of" in row] == [0, 64]
    level = rows[0]["levels"]["induction"]
    assert level["n"] == level["distinct"] == 30 and level["chance"] == 0.5
    assert level["loss"] == pytest.approx(math.log(600), rel=0.02)
    assert [len(level["rankme"][position]) for position in pythia.POSITIONS] == [4, 4, 4]
    [(position, layers)] = level["rankme_squared_centred"].items()
    assert position == "first" and len(layers) == 4
    last = rows[-3]["levels"]["induction"]
    assert last["accuracy"] == 1 and last["margin"] > 2
    # These are the checkpoint's own numbers: once more, from the tensors that were served.
    (tmp_path / "by hand").mkdir()
    for name, body in hub.repositories[NAME]["step80"].items():
        (tmp_path / "by hand" / name).write_bytes(body)
    again = pythia.probe_row(pythia.load_model(tmp_path / "by hand"), probes["induction"])
    [row] = [row for row in rows if row["step"] == 80]
    assert sweep.rounded(again) == row["levels"]["induction"]
    config = sweep.read_json(tmp_path / "config.json")
    assert config["parameters"] == tiny_model().model.num_parameters() and config["width"] == 64
    check_comparison(pythia.compare("run", config, rows, report))


def check_comparison(result):
    assert set(result.left_out) == {1, 64, TWIN, CUT, EVIL_STEP}
    assert result.steps == [0, 2, 4, 8, 16, 32, 40, 48, 56, 80, 96, 112]
    order = {o.task: o for o in result.orders}
    after, by = order["induction"].emergence
    assert by in (48, 56, 80) and result.steps.index(after) + 1 == result.steps.index(by)
    assert order["grammar"].emergence is None
    assert order["grammar"].verdict == order["facts"].verdict == "never"
    assert result.run.table("accuracy").shape == (3, 12)
    assert list(result.run.rankme_layers("first").shape) == [3, 4, 12]


@needs_extra
@pytest.mark.system
def test_a_missing_model_or_file_is_one_sentence(hub, tmp_path):
    for name in ("tests/absent", "tests/no/name"):
        with pytest.raises(ValueError, match=f"{name}: the list of branches: .*leave it out"):
            pythia.manifest(name)
    with pytest.raises(ValueError, match="absent.json of revision main"):
        pythia.fetch(NAME, "absent.json", tmp_path)
    listing = {64: (pythia.WeightFile("model.safetensors", 10, "0" * 64, "step7"),)}
    with pytest.raises(sweep.Failed, match="step 64.*step7"):
        list(pythia.snapshots(NAME, [64], listing, tmp_path))
    with pytest.raises(sweep.Failed, match="step 65 of .* no weight file"):
        list(pythia.snapshots(NAME, [65], listing, tmp_path))


@needs_extra
@pytest.mark.system
def test_a_hub_that_does_not_answer_is_one_sentence_at_once(hub, tmp_path, monkeypatch):
    listing = pythia.manifest(NAME)
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda s: None)
    for call in (functools.partial(pythia.manifest, NAME),
                 functools.partial(pythia.fetch, NAME, "config.json", tmp_path / "other"),
                 functools.partial(list, pythia.snapshots(NAME, [0, 2], listing, tmp_path))):
        with pytest.raises(sweep.Failed) as error:
            call()
        sentence = str(error.value)
        assert NAME in sentence and "\n" not in sentence and "and the connection" in sentence
        assert "checkpoints failed" not in sentence


@needs_extra
@pytest.mark.system
def test_a_snapshot_leaves_neither_file_nor_weights_behind(hub, tmp_path, monkeypatch):
    listing = pythia.manifest(NAME)
    other = tmp_path / "models--somebody--else" / "blobs"
    other.mkdir(parents=True)
    (other / "kept").write_text("another model's file in the same folder")
    kept = []
    for snapshot in pythia.snapshots(NAME, [4, 8, 64], listing, tmp_path, torch.bfloat16):
        assert weight_files(tmp_path) == []
        kinds = {(p.dtype, p.device.type) for p in snapshot.model.parameters()}
        assert kinds == {(torch.bfloat16, "cpu")}
        for model in kept:                                      # the last one holds no memory
            assert {p.device.type for p in model.parameters()} == {"meta"}
        kept.append(snapshot.model)
        state = snapshot.state()
        assert len(state["fingerprint"]) == 64 and state["done"] == [4, 8, 64][:len(kept)]
    assert len(kept) == 3 and (other / "kept").exists()
    rest = pythia.snapshots(NAME, [4, 8, 64, 80], listing, tmp_path, state=state)
    assert [snapshot.step for snapshot in rest] == [80]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hub's own cache"):
        next(pythia.snapshots(NAME, [4], listing, tmp_path))


@needs_extra
@pytest.mark.system
def test_step_0_that_is_no_untrained_network_is_left_out(hub, tmp_path):
    listing = pythia.manifest(NAME)
    listing[0] = listing[96]
    probes = {"induction": probe_sets(tmp_path)["induction"]}
    rows = measure(tmp_path, [0, 2, 4, 8, 16, 96], probes, listing)
    assert rows[0]["guess"] > 1.1 and rows[-1]["twin_of"] == 0
    result = pythia.compare("run", {}, rows)
    assert result.steps == [2, 4, 8, 16, 96] and "weights of another step" in result.left_out[0]
    assert result.rows[-1]["levels"]["induction"]["accuracy"] > 0.5


@needs_extra
def test_weights_that_are_not_finite_are_left_out_and_twins_measured_once():
    model = tiny_model()
    probe = pythia.ProbeSet(([5, 6], [7, 8]), (([11], [13]), ([14], [15])), 0.5)
    measure = pythia.ProbeMeasure({"two": probe})

    def snapshot(step, name):
        return pythia.Snapshot(step, model, None, {"done": [], "fingerprint": name}.copy)

    first = measure(snapshot(0, "a"))
    assert set(first) == {"fingerprint", "sketch", "guess", "levels"}
    assert set(measure.state) == {"a"} and first["guess"] == pytest.approx(1, abs=0.02)
    twin = measure(snapshot(1, "a"))
    assert twin == {"fingerprint": "a", "twin_of": 0, "levels": first["levels"]}
    assert twin == measure(snapshot(2, "a"))
    model.model.get_input_embeddings().weight.data[:] = math.nan
    broken = measure(snapshot(4, "b"))
    assert broken["levels"] == {} and "finite" in broken["left_out"]
    assert set(measure.state) == {"a"}
    refused = pythia.Snapshot(8, None, None, {"done": [8], "left_out": "why"}.copy)
    assert measure(refused) == {"left_out": "why", "levels": {}}


SCRIPT = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
import pythia, test_pythia
from pathlib import Path
torch.set_num_threads(1)              # as conftest.py has it: with two, sums have another order
out = Path({out!r})
probes = test_pythia.probe_sets(out)
listing = pythia.manifest(test_pythia.NAME)
row = pythia.ProbeMeasure.__call__
def spoken(self, snapshot):
    print("at", snapshot.step, flush=True)
    return row(self, snapshot)
pythia.ProbeMeasure.__call__ = spoken
{before}
test_pythia.measure(out, {steps!r}, probes, listing)
"""


def script(out, steps, before=""):
    out.mkdir(exist_ok=True)
    code = SCRIPT.format(root=str(ROOT), tests=str(Path(__file__).parent), out=str(out),
                         steps=steps, before=before)
    return [sys.executable, "-c", code]


@needs_extra
@pytest.mark.system
def test_killed_and_resumed_gives_the_rows_of_one_run(hub, tmp_path):
    steps = [0, 2, 4, 8, 16]
    listing = pythia.manifest(NAME)
    whole = measure(tmp_path, steps, probe_sets(tmp_path), listing)
    out = tmp_path / "killed"
    with subprocess.Popen(script(out, steps), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == "at 4":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(sweep.read_rows(out / "metrics.jsonl")) < 5
    # The kill may have come while a file arrived.
    left = out / "cache" / "models--tests--induction" / "blobs" / "abc.incomplete"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"0" * 1000)
    probes = probe_sets(out)
    hub.log.clear()
    assert without_clock(measure(out, steps, probes, listing)) == without_clock(whole)
    assert weight_files(out) == []
    assert not any(path.endswith("safetensors") and listing[0][0].commit in path
                   for _, path in hub.log), "step 0 was downloaded again"
    hub.log.clear()
    assert without_clock(measure(out, steps, probes, listing)) == without_clock(whole)
    assert hub.log == []


@needs_extra
@pytest.mark.system
def test_full_disk_in_the_middle_of_a_download(hub, tmp_path):
    """The kernel refuses to write more than 100 KB to a file, as a full disk or a quota does."""
    limit = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
             "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    out = tmp_path / "full"
    run = subprocess.run(script(out, [0, 2], limit), capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and "Failed" in last and "check the disk" in last, run.stderr
    assert run.stdout == "" and weight_files(out) == []


@needs_extra
@pytest.mark.system
def test_a_disk_too_small_is_refused_before_the_download(hub, tmp_path, monkeypatch):
    listing = pythia.manifest(NAME)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    hub.log.clear()
    with pytest.raises(sweep.Failed, match="the disk is too full"):
        next(pythia.snapshots(NAME, [64], listing, tmp_path))
    assert hub.log == []


Done = namedtuple("Done", "returncode stdout stderr")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """python run.py pythia ..., in this process: transformers takes seconds to be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", "pythia", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run.main()
        signal.signal(signal.SIGTERM, handler)
        printed = capsys.readouterr()
        return Done(end.value.code, printed.out, printed.err)
    return call


@needs_extra
@pytest.mark.system
def test_the_commands(hub, tmp_path, command):
    audit = command("audit", NAME)
    assert audit.returncode == 0, audit
    assert "21 checkpoints; 19 hold weights of their own" in audit.stdout, audit
    assert f"`{NAME}`: of 21 checkpoints 2 are not shown" in audit.stdout
    assert re.search(r"\| 20 \| \w{12} \| model.safetensors \| \w{12} \| model.safetensors is also",
                     audit.stdout), audit
    measure = ["measure", NAME, "--probes", "grammar,facts", "--probe-file", probe_file(tmp_path),
               "--out", "run", "--yes", "--steps"]
    hub.bodies["step40", "model.safetensors"] = b"cut off"      # on its way, and not for good
    first = command(*measure, "0,2,4,8,16,32,40")
    assert first.returncode == 1 and len(first.stderr.splitlines()) == 1, first
    assert "step 40" in first.stderr, first
    rows_path = tmp_path / "run" / "metrics.jsonl"
    before = rows_path.read_text()
    steps = [json.loads(line)["step"] for line in before.splitlines()]
    assert steps == [0, 2, 4, 8, 16, 32]
    rows_path.write_text(before + '{"step": 40, "lev')          # as a kill leaves it
    hub.bodies.clear()
    second = command(*measure, "0,2,4,8,16,20,32,40,48,56,64,72,80,96,112,208")
    assert second.returncode == 0 and "leaves out 1 of 16" in second.stdout, second
    after = rows_path.read_text()
    assert after.startswith(before) and len(after.splitlines()) == 15
    assert weight_files(tmp_path) == [] and not (tmp_path / "ran").exists()
    other = command(*measure, "0,2", "--dtype", "bfloat16")
    assert other.returncode == 2, other
    assert "another config (dtype was float32, now bfloat16)" in other.stderr, other
    content = command("audit", NAME, "--run", "run")
    assert content.returncode == 0 and "12 hold weights of their own and were" in content.stdout
    for step, why in ((20, "also that of main"), (64, "same weights as step 72"),
                      (208, "refused, for it may hold code")):
        assert re.search(rf"\| {step} \|.*{why}", content.stdout), (step, content)
    compare = command("compare", "run")
    assert compare.returncode == 0, compare
    assert "step 72 left out: same weights as step 64" in compare.stdout, compare
    assert "12 checkpoints, 2 to 24 steps apart" in compare.stdout, compare
    assert "next: python run.py pythia compare run" in second.stdout, second
    bare = command("measure", NAME, "--probes", "none", "--out", "bare", "--yes", "--steps", "0:8")
    said = " ".join(bare.stdout.split())                        # however wide the terminal is
    assert f"5 checkpoints; next: python run.py pythia audit {NAME} --run bare" in said, bare
    bare = command("compare", "bare")
    assert bare.returncode == 2 and "bare was measured without probes" in bare.stderr, bare
    c9 = json.loads((tmp_path / "run" / "c9.json").read_text())
    assert {order["task"]: order["verdict"] for order in c9["orders"]}["facts"] == "never"
    assert "cannot tell" in c9["verdict"]
    assert (tmp_path / "run" / "figures" / "compare-run.png").stat().st_size > 10_000
    assert "cannot tell: one run" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.system
def test_without_the_extra_one_sentence_says_what_to_install():
    code = """
import sys
for name in ("huggingface_hub", "tokenizers", "transformers"):
    sys.modules[name] = None
import pythia
for call in (pythia.manifest, pythia.tokenizer, pythia.load_model):
    try:
        call("160m")
    except ImportError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 3 and all("pip install '.[pythia]'" in line for line in lines)


# ------------------------------------------------------------------------------------------------
# The published evaluations

def write_evals(folder, curves, stderr=0.01):
    """curves: {task: {step: accuracy}} of a model "pythia-160m"."""
    (folder / "pythia-160m").mkdir(parents=True, exist_ok=True)
    for step in sorted({step for curve in curves.values() for step in curve}):
        results = {task: {"acc": curve[step], "acc_stderr": stderr}
                   for task, curve in curves.items()}
        path = folder / "pythia-160m" / f"160m_step{step}.json"
        path.write_text(json.dumps({"results": results, "versions": {}}))


def test_evals_emergence_of_made_up_curves(tmp_path):
    steps = [0, 512, 1000, 3000, 13000, 23000]
    curves = {"sciq": [.2, .25, .26, .5, .6, .7],               # plainly at 3000
              "logiqa": [.24, .26, .27, .265, .26, .275],       # never three standard errors
              "arc_easy": [.25, .4, .25, .25, .25, .4],         # once, and not for good
              "piqa": [.54, .54, .54, .54, .55, .55],           # no better than untrained
              "lambada_openai": [0, 0, 0, .1, .2, .3]}
    write_evals(tmp_path, {task: dict(zip(steps, curve)) for task, curve in curves.items()})
    rows = pythia.read_evals(tmp_path)
    events = {event.task: event for event in pythia.evals_emergence(rows)}
    assert {task: event.emergence for task, event in events.items()} == {
        "sciq": (1000, 3000), "logiqa": None, "arc_easy": None, "piqa": None,
        "lambada_openai": (1000, 3000)}
    assert events["piqa"].chance == 0.54 and events["arc_easy"].best_step == 512
    strict = pythia.evals_emergence(rows, threshold=0.5)
    assert not any(event.emergence for event in strict)


def test_evals_files_of_either_version_are_read(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        pythia.read_evals(tmp_path)
    newer = {"alias": "sciq", "acc,none": 0.5, "acc_stderr,none": 0.02, "acc_norm,none": 0.4,
             "acc_norm_stderr,none": "N/A"}
    path = tmp_path / "2.8b_step64.json"
    path.write_text(json.dumps({"results": {"sciq": newer}}))
    assert pythia.read_evals(tmp_path) == [("pythia-2.8b", 64, "sciq", "acc", 0.5, 0.02),
                                           ("pythia-2.8b", 64, "sciq", "acc_norm", 0.4, None)]
    (tmp_path / "five-shot").mkdir()
    five = {"results": {"sciq": {"acc": 0.6, "acc_stderr": 0.02}}}
    (tmp_path / "five-shot" / "2.8b_step64.json").write_text(json.dumps(five))
    with pytest.raises(ValueError, match="two values for sciq"):
        pythia.read_evals(tmp_path)


def test_a_bad_file_of_evals_is_left_out_and_named(tmp_path):
    good = {"results": {"sciq": {"acc": 0.6}}}
    (tmp_path / "70m_step1.json").write_text("\ufeff" + json.dumps(good), encoding="utf-8")
    for step, content in ((2, "[]"), (4, '{"results": 3}'), (8, '{"results"'), (16, "{}")):
        (tmp_path / f"70m_step{step}.json").write_text(content)
    told = []
    assert [row.step for row in pythia.read_evals(tmp_path, told.append)] == [1]
    [sentence] = told
    assert "4 files left out" in sentence
    assert all(f"70m_step{step}.json" in sentence for step in (2, 4, 8, 16))


def test_each_filter_of_a_metric_is_a_row(tmp_path):
    values = {"exact_match,strict-match": 0.02, "exact_match_stderr,strict-match": 0.004,
              "exact_match,flexible-extract": 0.31, "exact_match_stderr,flexible-extract": 0.01}
    (tmp_path / "70m_step8.json").write_text(json.dumps({"results": {"gsm8k": values}}))
    found = {row.metric: (row.value, row.stderr) for row in pythia.read_evals(tmp_path)}
    assert found == {"exact_match,strict-match": (0.02, 0.004),
                     "exact_match,flexible-extract": (0.31, 0.01)}


@pytest.mark.parametrize("results", [
    '{"sciq": {"acc": 0.1, "acc,none": 0.3}}', '{"sciq": {"acc": 0.1, "acc": 0.9}}',
    '{"sciq": {"acc": 0.1}, "sciq": {"acc": 0.9}}'])
def test_a_file_with_two_values_of_one_metric_is_left_out_and_named(results, tmp_path):
    (tmp_path / "70m_step8.json").write_text(f'{{"results": {results}}}')
    (tmp_path / "70m_step16.json").write_text(
        '{"results": {"sciq": {"acc": 0.3, "acc,none": 0.3}}}')     # one value, written twice
    told = []
    [row] = pythia.read_evals(tmp_path, told.append)
    assert (row.step, row.metric, row.value) == (16, "acc", 0.3)
    assert "70m_step8.json" in told[0] and "two values for" in told[0]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "true", "null", '"N/A"', '"0.5"', "[0.5]"])
def test_what_is_no_number_is_no_result(value, tmp_path):
    (tmp_path / "70m_step8.json").write_text(
        f'{{"results": {{"sciq": {{"acc": {value}}}, "piqa": {{"acc": 0.5, "acc_stderr": {value}'
        "}}}")
    rows = pythia.read_evals(tmp_path)
    assert [(row.task, row.value, row.stderr) for row in rows] == [("piqa", 0.5, None)]


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"results": {"x": {"acc": 1' + b"0" * 400
                                     + b"}}}", b"\xff\xfe\x00", b"null", b'{"results": null}'])
def test_odd_files_of_evals_are_left_out(content, tmp_path):
    (tmp_path / "70m_step8.json").write_bytes(content)
    text = json.dumps({"results": {"sciq": {"acc": 0.5}}})
    (tmp_path / "70m_step16.json").write_bytes(text.encode("utf-16"))
    told = []
    assert [row.step for row in pythia.read_evals(tmp_path, told.append)] == [16]
    assert "1 files left out" in told[0] and "70m_step8.json" in told[0]


def test_evals_in_percent_are_refused_by_name(tmp_path):
    write_evals(tmp_path, {"sciq": {0: 25.0, 8: 55.0}})
    with pytest.raises(ValueError, match="sciq of pythia-160m: acc 25: .*divide percent by 100"):
        pythia.evals_emergence(pythia.read_evals(tmp_path))


def test_a_figure_of_evals_that_cannot_be_drawn_costs_itself_alone(tmp_path, command, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of ink")
    monkeypatch.setattr(report, "figure_evals", fails)
    write_evals(tmp_path / "evals", {"sciq": {step: 0.25 + step / 40 for step in range(0, 24, 8)}})
    done = command("evals", tmp_path / "evals", "--figure", tmp_path / "x.png")
    assert done.returncode == 0 and "sciq" in done.stdout and "figure: none" in done.stdout
    assert "Figure x could not be drawn (RuntimeError: out of ink)." in done.stdout
    assert not (tmp_path / "x.png").exists()


def test_folders_above_the_given_one_do_not_name_the_model(tmp_path):
    folder = tmp_path / "pythia-2025" / "evals"
    folder.mkdir(parents=True)
    for name in ("70m_step1000", "410m_step2000", "mine-step5"):
        (folder / f"{name}.json").write_text('{"results": {"sciq": {"acc": 0.5}}}')
    names = {(row.model, row.step) for row in pythia.read_evals(folder)}
    assert names == {("pythia-70m", 1000), ("pythia-410m", 2000), ("mine", 5)}
    (folder / "step7.json").write_text('{"results": {"sciq": {"acc": 0.5}}}')
    assert ("evals", 7) in {(row.model, row.step) for row in pythia.read_evals(folder)}


@pytest.mark.parametrize("config, model, step", [
    ({"model_args": "pretrained=EleutherAI/pythia-70m,revision=step3000,dtype=float"}, "pythia-70m",
     3000),
    ({"model_args": {"pretrained": "EleutherAI/pythia-14m-seed3", "revision": "step64"}},
     "pythia-14m-seed3", 64),
    ({"model_args": "pretrained=allenai/OLMo-2-0425-1B,revision=stage1-step5000-tokens11B"},
     "OLMo-2-0425-1B", 5000),
    ({"model_args": {"pretrained": "out/mine/checkpoint-500"}}, "mine", 500),
    ({"model_args": "pretrained=gpt2", "model_revision": "ckpt_12"}, "gpt2", 12)])
def test_todays_results_name_model_and_revision_in_their_config(config, model, step, tmp_path):
    path = tmp_path / "owner__model" / "results_2024-08-21T03-41-58.123456.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"results": {"sciq": {"acc,none": 0.5}}, "config": config}))
    [row] = pythia.read_evals(tmp_path)
    assert (row.model, row.step) == (model, step)


def test_groups_and_tasks_without_a_known_chance(tmp_path):
    """`mmlu` beside its subjects, all at once from step 8 on; a task that no table knows."""
    for step in range(0, 160, 8):
        value = 0.25 if step < 8 else 0.6
        results = {"mmlu": {"acc,none": value, "acc_stderr,none": 0.01, "alias": "mmlu"},
                   "mmlu_virology": {"acc,none": value, "acc_stderr,none": "N/A"},
                   "hellaswag": {"acc,none": value, "acc_stderr,none": 0.01, " ": " "},
                   "house_task": {"acc,none": value}}
        path = tmp_path / f"70m_step{step}.json"
        path.write_text(json.dumps({"results": results, "groups": {"mmlu": {}}}))
    events = pythia.evals_emergence(pythia.read_evals(tmp_path))
    assert {e.task: e.emergence for e in events} == dict.fromkeys(
        ("mmlu", "mmlu_virology", "hellaswag"), (0, 8))
    own = pythia.evals_emergence(pythia.read_evals(tmp_path), chance={"house_task": 0.1})
    assert [(e.task, e.emergence) for e in own] == [("house_task", (0, 8))]


def test_the_command_says_what_it_does_not_date(tmp_path, command):
    for task, sentence in (("house_task", "1 tasks are not dated.*house_task"),
                           ("hellaswag", "2 checkpoints, 8 to 8 steps apart")):
        folder = tmp_path / task
        folder.mkdir()
        for step in (0, 8):
            (folder / f"70m_step{step}.json").write_text(json.dumps(
                {"results": {task: {"acc,none": 0.5, "acc_stderr,none": "N/A"}}}))
        (folder / "70m_step16.json").write_text("{")
        done = command("evals", folder)
        assert done.returncode == 0 and re.search(sentence, done.stdout), done
        assert "1 files left out" in done.stdout and "pythia-70m" in done.stdout


def test_what_is_seen_only_at_the_end_is_too_late_to_tell(tmp_path):
    """Clear of chance at 80, 90 and 100, where it should last to 100: and then from 90 alone."""
    steps = [0, *range(10, 110, 10)]
    write_evals(tmp_path, {"sciq": {step: 0.25 + 0.5 * (step >= 80) for step in steps},
                           "piqa": {step: 0.5 + 0.4 * (step >= 90) for step in steps}})
    in_time, late = pythia.evals_emergence(pythia.read_evals(tmp_path), persistence=2)
    assert (in_time.task, in_time.emergence, in_time.late) == ("sciq", (70, 80), None)
    assert (late.task, late.emergence, late.late) == ("piqa", None, (80, 90))


@needs_data
def test_published_evaluations_agree_with_their_table():
    rows = {row[:4]: row for row in pythia.read_evals(DATA / "evals")}
    with open(DATA / "evals_core.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) > 1000
    for r in table:
        row = rows[r["model"], int(r["step"]), r["task"], r["metric"]]
        assert row.value == pytest.approx(float(r["value"]), rel=1e-4, abs=1e-6), r
        assert r["stderr"] == "" or row.stderr == pytest.approx(float(r["stderr"]), rel=1e-3), r


@needs_data
@pytest.mark.parametrize("rule", [{}, {"persistence": 2}, {"threshold": 0.04}])
def test_published_evaluations_emerge_where_they_are_known_to(rule):
    events = pythia.evals_emergence(pythia.read_evals(DATA / "evals"), **rule)
    found = {(event.task, event.model): event for event in events}
    small, middle, large = "pythia-160m", "pythia-410m", "pythia-2.8b"
    assert list(dict.fromkeys(event.model for event in events)) == [small, middle, large]
    for model in (small, middle, large):
        for task in ("logiqa", "wsc", "mmlu_mean57"):
            assert found[task, model].emergence is None, (task, model)
        for task in ("lambada_openai", "sciq", "arc_easy"):
            after, by = found[task, model].emergence
            assert 512 <= after < by <= 3000, (task, model, after, by)
    late = found["arc_challenge", large]                        # to last, it would need 153,750
    assert (late.emergence or late.late)[0] >= 83000
    assert found["arc_challenge", small].emergence is None
    assert found["arc_challenge", middle].emergence is None
    peak = found["lambada_openai", small]
    assert (peak.best_step, round(peak.best, 3), round(peak.last, 3)) == (63000, 0.399, 0.328)


# ------------------------------------------------------------------------------------------------
# Geometry against behaviour

def made_up_rows(tasks, steps):
    """tasks: {name: (onset step, emergence step)}.

    RankMe falls from 20 to 5, and rises to 15 from the onset on; accuracy jumps."""
    rows = []
    for i, step in enumerate(steps):
        levels = {}
        for name, (onset, emerged) in tasks.items():
            rank = 5.0
            if i == 0:
                rank = 20.0
            elif step >= onset:
                rank = 15.0
            levels[name] = {"n": 30, "chance": 0.5, "accuracy": 1.0 if step >= emerged else 0.5,
                            "margin": 0.0, "rankme": {"first": [1.0, rank, 3.0]},
                            "rankme_interval": {"first": [rank - 1, rank + 1]}}
        rows.append({"step": step, "fingerprint": str(step), "levels": levels})
    return rows


STEPS = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


def compare(rows, audited=None, seed=0):
    """Of a run in which nothing but these rows is known."""
    return pythia.compare(f"run-s{seed}", {"seed": seed, "width": 64}, rows, audited)


def test_compare_orders_events_by_intervals():
    tasks = {"before": (400, 700), "same": (500, 500), "next": (500, 600), "after": (700, 400)}
    result = compare(made_up_rows(tasks, STEPS))
    orders = {order.task: order for order in result.orders}
    assert {task: order.verdict for task, order in orders.items()} == {
        "before": "leads", "same": "unresolved", "next": "leads", "after": "lags"}
    assert orders["before"].onset == (300, 400) and orders["before"].emergence == (600, 700)
    assert orders["before"].lead == (200, 400)
    assert orders["same"].lead == (-100, 100) and orders["next"].lead == (0, 200)
    assert all(o.collapse and o.recovery and not o.compression for o in result.orders)


def test_global_patterns_lie_beyond_the_bootstrap_intervals():
    """The same curve, 20, 5 ... 15; the intervals are 2 or 30 dimensions wide."""
    [clear] = compare(made_up_rows({"task": (400, 700)}, STEPS)).orders
    assert (clear.collapse, clear.recovery, clear.compression) == (True, True, False)
    wide = made_up_rows({"task": (400, 700)}, STEPS)
    for row in wide:
        low, high = row["levels"]["task"]["rankme_interval"]["first"]
        row["levels"]["task"]["rankme_interval"]["first"] = [low - 14, high + 14]
    [order] = compare(wide).orders
    assert (order.collapse, order.recovery, order.compression) == (False, False, False)
    falling = made_up_rows({"task": (400, 700)}, STEPS)         # the last one falls back to 5
    falling[-1]["levels"]["task"] |= {"rankme": {"first": [1.0, 5.0, 3.0]},
                                      "rankme_interval": {"first": [4.0, 6.0]}}
    [order] = compare(falling).orders
    assert order.compression and order.collapse and order.recovery


def test_compare_applies_the_audit():
    """The checkpoints between onset and emergence turn out to be copies: nothing is resolved."""
    rows = made_up_rows({"before": (400, 700)}, STEPS)
    copies = pythia.Audit(own=(), left_out={400: "copy", 500: "copy", 600: "copy"}, groups=())
    audited = compare(rows, copies)
    assert audited.left_out == copies.left_out
    assert audited.orders[0].verdict == "unresolved" and audited.orders[0].lead == (-400, 400)
    early = pythia.Audit((), {step: "copy" for step in STEPS[:7]}, ())
    late = compare(rows, early)
    assert late.orders[0].emergence == (0, 700) and late.orders[0].verdict == "never"
    verdict = pythia.c9_verdict([late], claims.study([late.run]))
    assert "Global patterns: cannot tell, for the first" in verdict


def test_compare_drops_twins_and_what_was_left_out():
    rows = made_up_rows({"before": (400, 700)}, STEPS)
    rows[1]["twin_of"] = 0                                      # step 100, wrongly the same as 0
    assert set(compare(rows).left_out) == {0, 100}
    rows[2]["twin_of"] = 0                                      # and a third that is
    assert set(compare(rows).left_out) == {0, STEPS[1], STEPS[2]}
    rows = made_up_rows({"before": (400, 700)}, [0, 1, *STEPS[1:]])
    rows[1]["twin_of"] = 0
    rows[4]["twin_of"] = 700                                    # and two that are wrongly the same
    rows[-1] |= {"left_out": "not finite", "levels": {}}
    left_out = compare(rows).left_out
    assert set(left_out) == {1, 300, 700, 1000} and left_out[1000] == "not finite"
    assert left_out[700] == "same weights as step 300"
    with pytest.raises(ValueError, match="at least 4"):
        compare(rows[:3])


def measured(folder, rows, **config):
    """As `pythia measure` leaves it."""
    config = {"model": f"tests/{folder.name}", "revisions": "step{step}", "size": "14m", "seed": 0,
              "parameters": 10 ** 6, "width": 64, "warmup": 0} | config
    listing = {row["step"]: [["model.safetensors", 9, f"{row['step']}"]] for row in rows}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps(listing))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_compare_counts_a_measurement_once_and_misses_only_what_is_left_out(tmp_path, command):
    rows = made_up_rows({"a": (400, 700), "b": (700, 400)}, STEPS)
    measured(tmp_path / "out", rows)
    measured(tmp_path / "same", rows, model="tests/out")
    twice = command("compare", "out", "./out")
    assert twice.returncode == 0 and (tmp_path / "out/c9.json").exists(), twice
    assert "analysing 1 run " in twice.stdout and "Missing" not in twice.stdout, twice
    assert "out: 11 checkpoints, 100 to 100 steps apart" in twice.stdout, twice
    same = command("compare", "out", "same")
    assert (same.returncode, same.stderr.strip()) == (
        2, "run.py: out and same measure one model, tests/out: drop one")
    rows[4]["left_out"] = "not finite"
    measured(tmp_path / "less", rows)
    assert "Missing: less, step 400 left out: not finite." in command("compare", "less").stdout
    (tmp_path / "less/manifest.json").unlink()                  # as a run of a sweep has none
    for words in (["compare", "less"], ["audit", "14m", "--run", "less"], ["compare", "nowhere"]):
        done = command(*words)
        assert done.returncode == 2 and "a directory of `python run.py pythia" in done.stderr


def verdict_of(*series):
    found = [compare(made_up_rows(*one), seed=seed) for seed, one in enumerate(series)]
    findings = claims.study([one.run for one in found])
    return found, findings, pythia.c9_verdict(found, findings)


def test_seeds_supply_the_null_that_one_run_cannot():
    """Precursors that are there are found, given several seeds; and a common onset is none."""
    steps = list(range(0, 4100, 100))
    real = {f"t{i}": (300 + 450 * i, 400 + 450 * i) for i in range(7)}
    _, findings, alone = verdict_of((real, steps))
    assert "cannot tell: one run" in alone and "Global patterns: replicate" in alone
    found, findings, verdict = verdict_of(*[(real, steps)] * 3)
    assert findings["exchanges"] == "all 5,040"
    [c4] = [row for row in findings["claims"] if row["claim"] == "C4"]
    assert c4["value"] == pytest.approx(1) and c4["null"] < 0.7 and c4["p"] < 0.001
    assert "holds: above chance, against C9" in verdict
    assert f"leads in {7 * 3}" in verdict and "collapse in 21 of 21" in verdict
    beside = {row["quantity"]: row["rate"] for row in findings["leads"]}
    assert beside == pytest.approx({"rankme": 1, "accuracy": 0, "step": beside["step"]})
    common = {f"t{i}": (200, 500 + 400 * i) for i in range(7)}
    found, findings, verdict = verdict_of(*[(common, steps)] * 3)
    assert all(order.verdict == "leads" for one in found for order in one.orders)
    assert "against C9" not in verdict and ("as C9 says" in verdict or "cannot tell" in verdict)


def test_behaviour_at_a_lower_bar_stands_beside_geometry():
    """log p moves where RankMe does: to come first is then no lead."""
    steps = list(range(0, 4100, 100))
    tasks = {f"t{i}": (300 + 450 * i, 400 + 450 * i) for i in range(7)}
    series = []
    for seed in range(3):
        rows = made_up_rows(tasks, steps)
        for row in rows:
            for name, level in row["levels"].items():
                level["chance_log_prob"] = math.log(0.5)
                moved = row["step"] >= tasks[name][0]
                level["log_prob"] = math.log(0.9 if moved else 0.5)
        series.append(compare(rows, seed=seed))
    findings = claims.study([one.run for one in series])
    beside = {row["quantity"]: row["rate"] for row in findings["leads"]}
    assert beside["rankme"] == beside["log_prob"] == pytest.approx(1)
    verdict = pythia.c9_verdict(series, findings)
    assert "not shown to beat log_prob" in verdict and "as C9 says" in verdict


# ------------------------------------------------------------------------------------------------
# Memory

@needs_extra
@pytest.mark.slow
def test_plan_bounds_the_memory_of_a_410m_model_in_bfloat16(tmp_path):
    """Random weights of that shape, stored as float16; measured in a process of its own."""
    shape = {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024,
             "intermediate_size": 4096, "vocab_size": 50304}
    from_config(TINY | shape, torch.float16).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    code = f"""
import pathlib, resource, torch, pythia
folder = pathlib.Path({str(tmp_path)!r})
options = tuple(([i + 9], [i + 8]) for i in range(4))
probe = pythia.ProbeSet(tuple([i, i + 1, i + 2, i + 3] for i in range(4)), options, 0.5)
listing = {{0: [pythia.WeightFile("model.safetensors", {size})]}}
cost = pythia.plan(folder, listing, [0], {{"a": probe}}, torch.bfloat16)
model = pythia.load_model(folder, torch.bfloat16)
pythia.fingerprint(model)
row = pythia.probe_row(model, probe)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(len(row["rankme"]["first"]), peak, cost.memory)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    (tmp_path / "model.safetensors").unlink()                   # pytest would keep it for a while
    assert run.returncode == 0, run.stderr
    layers, peak, planned = map(int, run.stdout.split())
    print(f"peak resident memory {peak / 1e9:.2f} GB, planned {planned / 1e9:.2f} GB")
    assert layers == 26 and size < peak < planned


def test_examples_in_the_docstrings():
    assert doctest.testmod(pythia).failed == 0
