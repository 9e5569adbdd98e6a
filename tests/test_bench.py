"""The machinery of `run.py bench`: the jobs that it times do what they are named after."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import bench
import models

pytestmark = pytest.mark.system        # whole sweeps and courses: not while editing

RUN = str(Path(__file__).parent.parent / "run.py")


def command(*arguments):
    return subprocess.run([sys.executable, RUN, *map(str, arguments)], capture_output=True,
                          text=True)


def test_the_packed_and_the_padded_step_are_the_same_step():
    """One timing is divided by the other: both must be about the same lines, with one loss."""
    batches = bench.joint_lines("cpu")
    ragged, (tokens, positions) = models.lay_out(batches), bench.padded(batches)
    assert len(positions) == len(ragged.positions)
    assert len(tokens) == sum(len(batch.tokens) for batch in batches) == 280
    there = sorted(ragged.tokens.flatten()[ragged.positions].tolist())
    assert sorted(tokens.flatten()[positions].tolist()) == there
    config, losses = models.GPTConfig(1, 2, 16), []
    for step, lines in ((bench.packed_step, [ragged]), (bench.padded_step, [tokens, positions])):
        torch.manual_seed(0)
        losses.append(step(config, "float32", "cpu", *lines)().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_row_of_its_own_gives_the_logits_of_the_plain_model():
    model, tokens = models.GPT(models.GPTConfig(1, 2, 16)), torch.randint(10, (3, 7))
    layout, everywhere = bench.one_line_a_row(tokens), torch.arange(21)
    packed = models.packed_logits(model, tokens, layout, everywhere)
    torch.testing.assert_close(packed, model(tokens).flatten(0, 1))


def test_interleaved_takes_the_fastest_round_but_the_first():
    naps = iter([0.0, 0.5, 0.05, 0.5])
    seconds = bench.interleaved({"nap": lambda: time.sleep(next(naps))}, 3)
    assert 0.05 <= seconds["nap"] < 0.5


STAND_IN = '''
import torch
from collections import namedtuple
GPTConfig = namedtuple("GPTConfig", "block_size vocab_size n_layer n_head n_embd dropout bias")
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
    def forward(self, tokens, targets):
        logits = self.table(tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(),
                                                 ignore_index=-1)
        return logits, loss
    def configure_optimizers(self, weight_decay, lr, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas, weight_decay=weight_decay)
'''


def test_nanogpt_comes_from_a_checkout(tmp_path, monkeypatch):
    """With a stand-in that has nanoGPT's names: which columns there are, not how fast it is."""
    (tmp_path / "model.py").write_text(STAND_IN)
    monkeypatch.setattr(bench, "SHAPES", [("tiny", models.GPTConfig(1, 2, 16), 4, 8)])
    row, = bench.bench_nanogpt(bench.load_nanogpt(tmp_path), "bfloat16", "cpu")
    assert len(row["ms"]) == 6
    ratio = row["ms"]["nanoGPT float32, all"] / row["ms"]["ours, all"]
    assert row["ratio_all"] == pytest.approx(ratio, rel=1e-12) and ratio > 0
    assert {"ratio_quarter", "ratio_bfloat16_all", "ratio_bfloat16_quarter"} <= set(row)


@pytest.mark.system
def test_a_folder_without_nanogpt_is_one_sentence(tmp_path):
    done = command("bench", "--nanogpt", tmp_path)
    assert done.returncode == 2 and "there is no model.py in it" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.system
def test_bench_says_how_long_and_gives_every_figure():
    done = command("bench", "--json")
    assert done.returncode == 0 and "two minutes" in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert [row["size"] for row in found["sizes"]] == list(models.SIZES)
    for row in found["sizes"]:
        assert "left_out" in row or 0 < row["peak_share"] < 1, row
    for row in found["measures"]:
        assert 0 < row["units"] < 100, row
    for row in found["joint"]:
        assert 1 < row["gain"] < 1.2 * row["ceiling"], row
    with open(os.devnull, "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        for table in bench.tables(found):
            console.print(table)
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text


@pytest.mark.slow
@pytest.mark.system
def test_what_bfloat16_saves_is_not_paid_for_in_findings(tmp_path):
    """Floors and emergence steps differ between dtypes no more than those of two seeds do."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        done = command("sweep", "--task", "modadd", "--sizes", "nano", "--steps", "300",
                       "--set", f"dtype={dtype}", "--out", tmp_path / dtype)
        assert done.returncode == 0, done.stderr
        findings = json.loads((tmp_path / dtype / "modadd/findings.json").read_text())
        found[dtype] = findings["levels"]
    compared = 0
    for one, other in zip(*found.values(), strict=True):
        always = one["emerged"] == other["emerged"] == 3
        for key in ("floor", "emergence"):
            if one[key] and other[key] and (key == "floor" or always):
                spread = max(x[key]["high"] - x[key]["low"] for x in (one, other))
                difference = abs(one[key]["median"] - other[key]["median"])
                assert difference <= spread, (one["level"], key, one[key], other[key])
                compared += 1
    assert compared >= 4, "the three floors, and modadd-1 emerges within 300 steps"
