"""The machinery of `run.py bench`: the jobs that it times do what they are named after."""
import json
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

import bench
import models
from test_run import RUN, call


def test_the_packed_and_the_padded_step_are_the_same_step():
    """One timing is divided by the other: both must be about the same lines, with the same loss."""
    batches = bench.joint_lines("cpu")
    ragged, (tokens, at) = models.lay_out(batches), bench.padded(batches)
    assert len(at) == len(ragged.at) and len(tokens) == sum(len(b.tokens) for b in batches) == 280
    assert sorted(tokens.flatten()[at].tolist()) == sorted(ragged.tokens.flatten()[ragged.at].tolist())
    losses = []
    for job in ((ragged.tokens, ragged.layout, ragged.at), (tokens, None, at)):
        torch.manual_seed(0)
        losses.append(bench.our_step((models.GPTConfig(1, 2, 16), 0, 0), "float32", "cpu", None, *job)().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_interleaved_takes_the_fastest_round_but_the_first():
    naps = iter([0.0, 0.5, 0.05, 0.5])
    assert 0.05 <= bench.interleaved({"nap": lambda: time.sleep(next(naps))}, 3)["nap"] < 0.5


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
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    def configure_optimizers(self, weight_decay, lr, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas, weight_decay=weight_decay)
'''


def test_nanogpt_comes_from_a_checkout(tmp_path, monkeypatch, capsys):
    """With a stand-in that has nanoGPT's names: which columns there are, not how fast it is."""
    status, _, err = call(capsys, monkeypatch, "bench", "--nanogpt", tmp_path)
    assert status == 2 and "there is no model.py in it" in err
    (tmp_path / "model.py").write_text(STAND_IN)
    monkeypatch.setattr(bench, "SHAPES", [("tiny", models.GPTConfig(1, 2, 16), 4, 8)])
    row, = bench.bench_nanogpt(bench.load_nanogpt(tmp_path), "bfloat16", "cpu")
    assert len(row["ms"]) == 6 and row["ratio_all"] == row["ms"]["nanoGPT float32, all"] / row["ms"]["ours, all"] > 0


@pytest.mark.slow
def test_bench_says_how_long_and_gives_every_figure():
    done = subprocess.run([sys.executable, RUN, "bench", "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and "two minutes" in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert [r["size"] for r in found["sizes"]] == list(models.SIZES)
    assert all(0 < r["peak_share"] < 1 for r in found["sizes"] if "left_out" not in r)
    assert all(0 < m["units"] < 100 for m in found["measures"]) and all(1 < r["gain"] < 1.2 * r["ceiling"] for r in found["joint"])
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    for table in bench.tables(found):
        console.print(table)
    assert all(len(line) <= 80 for line in console.export_text().splitlines()) and "…" not in console.export_text()


@pytest.mark.slow
def test_what_bfloat16_saves_is_not_paid_for_in_findings(tmp_path):
    """Floors and emergence steps, trained in float32 and in bfloat16, differ no more than those of two seeds do."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, RUN, "sweep", "--task", "modadd", "--sizes", "nano", "--steps", "300", "--set", f"dtype={dtype}", "--out", tmp_path / dtype]
        assert subprocess.run(command, capture_output=True).returncode == 0
        found[dtype] = json.loads((tmp_path / dtype / "modadd/findings.json").read_text())["levels"]
    compared = 0
    for one, other in zip(*found.values(), strict=True):
        for key in ("floor", "emergence"):
            if one[key] and other[key] and (key == "floor" or one["emerged"] == other["emerged"] == 3):
                spread = max(one[key]["high"] - one[key]["low"], other[key]["high"] - other[key]["low"])
                assert abs(one[key]["median"] - other[key]["median"]) <= spread, (one["level"], key, one[key], other[key])
                compared += 1
    assert compared >= 4, "the three floors, and modadd-1 emerges within 300 steps"
