"""The command line from end to end: a small sweep, its files, resuming, identical bits, and every bad input."""
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import models
import run
import tasks

RUN = str(Path(run.__file__))
SMALL = ["--measures", "rankme", "--task", "parity,copy", "--controls", "1", "--sizes", "nano", "--seeds", "1", "--steps", "40", "--set", "snapshots=10",
         "--set", "per_level=4", "--set", "eval_examples=50", "--set", "probe_examples=20", "--set", "threads=1"]


def call(capsys, monkeypatch, *arguments):
    """Run the command line in this process: (exit status, what it wrote to stdout, to stderr)."""
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def rows_without_clock(path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("wall_")} for row in rows]


def weights(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)["train"]["model"]


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small sweep, made once."""
    folder = tmp_path_factory.mktemp("sweep")
    done = subprocess.run([sys.executable, RUN, "sweep", *SMALL, "--out", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "copy+parity", done.stdout


def test_names_on_the_command_line_are_those_of_the_tables():
    assert run.TASK_NAMES == tuple(tasks.TASKS) and run.SIZE_NAMES == tuple(models.SIZES)
    assert run.CONTROL_COUNT == len(tasks.CONTROLS)


def test_a_sweep_leaves_what_the_docstring_draws(finished):
    folder, screen = finished
    assert {p.name for p in folder.iterdir()} - {"lock"} == {"nano-s0", "findings.json", "events.csv", "figures", "report.html"}
    one = folder / "nano-s0"
    assert {p.name for p in one.iterdir()} - {"lock"} == {"config.json", "metrics.jsonl", "checkpoint.pt", "done"}
    config = json.loads((one / "config.json").read_text())
    assert config["levels"] == [*(f"{t}-{k}" for t in ("copy", "parity") for k in (1, 2, 3)), "sham-modadd-2"]
    assert config["steps"] == 40 and config["chance"]["parity-1"] == 0.5 and config["environment"]["torch"] == torch.__version__
    rows = rows_without_clock(one / "metrics.jsonl")
    assert [r["step"] for r in rows] == models.snapshot_steps(40, 10) and rows[0]["loss"] is None and rows[-1]["loss"] > 0
    level = rows[-1]["levels"]["parity-1"]
    assert level["distinct"] == 8 and set(level["rankme"]) == {"first", "answer", "last"}
    assert all(len(layers) == 4 and all(1 <= r <= 20.1 for r in layers) for layers in level["rankme"].values())
    assert level["rankme"]["first"] == level["rankme"]["answer"], "an answer of one token"
    with open(folder / "events.csv") as file:
        events = list(csv.DictReader(file))
    assert len(events) == 7 and sum(e["control"] == "True" for e in events) == 1
    assert {p.name for p in (folder / "figures").iterdir()} == {"curves-nano.png", "layers-nano.png", "floors.png"}
    assert "findings.json" in screen and "parity-3" in screen


def test_recorded_numbers_against_the_model_itself(finished):
    """The last row's accuracy, log-probability and RankMe once more, line by line, without packing or batching."""
    import measures
    one = finished[0] / "nano-s0"
    config, row = json.loads((one / "config.json").read_text()), rows_without_clock(one / "metrics.jsonl")[-1]
    model = models.GPT(models.SIZES["nano"])
    model.load_state_dict(weights(one))
    for name in config["levels"]:
        pair, seen = tasks.split_name(name), row["levels"][name]
        batch = tasks.sample(*pair, 50, tasks.seeded("cpu", "eval", *pair, "all"))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config["dtype"] == "bfloat16"):
            log_p = model(batch.tokens).float().log_softmax(-1)
        scored = batch.targets != tasks.IGNORE
        picked = log_p.gather(2, batch.targets.clamp(min=0)[:, :, None])[:, :, 0]
        right = ((log_p.argmax(-1) == batch.targets) | ~scored).all(1)
        assert seen["accuracy"] == pytest.approx(right.float().mean().item(), abs=0.021)       # one line of 50: a tie in bfloat16
        assert seen["log_prob"] == pytest.approx((picked * scored).sum(1).mean().item(), abs=0.05)
        probe, distinct = tasks.probe_set(*pair, 20, tasks.seeded("cpu", "probe", *pair))
        assert seen["distinct"] == distinct
        with torch.no_grad():
            states = model.hidden_states(probe.tokens)
        at = (probe.targets[0] != tasks.IGNORE).nonzero()[:, 0]
        for layer, state in enumerate([*states, model.ln_f(states[-1])]):
            assert seen["rankme"]["first"][layer] == pytest.approx(measures.rankme(state[:, at[0]]), rel=1e-3)
            assert seen["rankme"]["answer"][layer] == pytest.approx(measures.rankme(state[:, at].flatten(0, 1)), rel=1e-3)
            assert seen["rankme"]["last"][layer] == pytest.approx(measures.rankme(state[:, -1]), rel=1e-3)


def test_the_same_command_gives_the_same_bits_and_measuring_changes_none(finished, tmp_path, capsys, monkeypatch):
    for name, extra in (("twice", []), ("unmeasured", ["--measures", "none"])):
        assert call(capsys, monkeypatch, "sweep", *SMALL, "--out", tmp_path / name, *extra)[0] == 0
        assert same_weights(tmp_path / name / "copy+parity/nano-s0", finished[0] / "nano-s0"), name
    twice = rows_without_clock(tmp_path / "twice/copy+parity/nano-s0/metrics.jsonl")
    assert twice == rows_without_clock(finished[0] / "nano-s0/metrics.jsonl")


def die_at_the_seventh_snapshot(monkeypatch):
    """Let the next run end there without warning, all its checkpoints written; -> the function that takes the fault out again."""
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    real, count = run.measure_row, iter(range(100))

    def killed(*arguments):
        if next(count) == 6:
            raise MemoryError("planted")
        return real(*arguments)
    monkeypatch.setattr(run, "measure_row", killed)
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    return lambda: monkeypatch.setattr(run, "measure_row", real)


def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path, capsys, monkeypatch):
    """Killed without warning in the middle of writing a row; then the same command again."""
    mend = die_at_the_seventh_snapshot(monkeypatch)
    status, _, err = call(capsys, monkeypatch, "sweep", *SMALL, "--out", tmp_path)
    assert status == 1 and "planted" in err
    path = tmp_path / "copy+parity/nano-s0"
    assert not (path / "done").exists() and len(rows_without_clock(path / "metrics.jsonl")) == 6
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 17, "lev')                                # the half-written line of a process that died
    mend()
    assert call(capsys, monkeypatch, "sweep", *SMALL, "--out", tmp_path)[0] == 0
    assert rows_without_clock(path / "metrics.jsonl") == rows_without_clock(finished[0] / "nano-s0/metrics.jsonl")
    assert same_weights(path, finished[0] / "nano-s0")


COSTLY = ["--measures", "all", "--set", "costly_snapshots=4", "--set", "dear_snapshots=2", "--set", "gradient_examples=42", "--set", "hessian_examples=42", "--set", "llc_examples=4",
          "--set", "llc_draws=5", "--set", "llc_burnin=2", "--set", "linear_examples=40"]


def test_all_measures_on_schedule_change_no_weight_and_resume_to_the_same_bits(finished, tmp_path, capsys, monkeypatch):
    """The Hessian starts from the eigenvector of the snapshot before: so that, too, must survive a kill."""
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    assert call(capsys, monkeypatch, "sweep", *SMALL, *COSTLY, "--out", tmp_path / "a")[0] == 0
    path = tmp_path / "a/copy+parity/nano-s0"
    assert same_weights(path, finished[0] / "nano-s0")
    rows = rows_without_clock(path / "metrics.jsonl")
    costly, dear = (run.due([row["step"] for row in rows], n) for n in (4, 2))
    assert len(costly) == 4 and {0, 40} <= costly and dear == {0, 40}
    for row in rows:
        for level in row["levels"].values():
            assert ({"gradient_rank", "fisher_rank", "hessian_top"} <= set(level)) == (row["step"] in costly)
            assert ({"llc", "linear_probe"} <= set(level)) == (row["step"] in dear)
    last = rows[-1]["levels"]
    assert all(1 <= level["fisher_rank"] <= 6 and len(level["linear_probe"]) == 4 for level in last.values())
    joint = {level["llc"]["joint"] for level in last.values()}
    assert len(joint) == 1 and sum(level["llc"]["mean"] for level in last.values()) / len(last) == pytest.approx(joint.pop(), rel=1e-4)

    mend = die_at_the_seventh_snapshot(monkeypatch)
    assert call(capsys, monkeypatch, "sweep", *SMALL, *COSTLY, "--out", tmp_path / "b")[0] == 1
    mend()
    assert call(capsys, monkeypatch, "sweep", *SMALL, *COSTLY, "--out", tmp_path / "b")[0] == 0
    assert rows_without_clock(tmp_path / "b/copy+parity/nano-s0/metrics.jsonl") == rows


def test_by_default_all_measures_are_planned_for_the_first_run_alone(tmp_path, capsys, monkeypatch):
    """RankMe at every snapshot of every run; the costly ones on a schedule whose coarser half is part of the finer."""
    monkeypatch.setattr(run, "estimate", lambda *_: (60, 60, 201))
    status, screen, _ = call(capsys, monkeypatch, "sweep", "--task", "modadd", "--seeds", "2", "--dry-run", "--out", tmp_path)
    also = [line for line in screen.replace("\n  ", " ").splitlines() if "also:" in line]
    assert status == 0 and len(also) == 1 and also[0].startswith("nano-s0 also: gradient_rank")
    planned = run.schedule(models.TrainConfig(), run.MeasureConfig(measures=tuple(run.MEASURES)))
    assert list(planned) == list(run.MEASURES) and planned["llc"] < planned["hessian_top"] < planned["rankme"]
    assert [len(planned[name]) for name in ("rankme", "hessian_top", "llc")] == [201, 21, 11]


def test_a_finished_run_is_not_run_again_and_analyse_makes_the_same_files(finished, capsys, monkeypatch, all_choices):
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "nano-s0").iterdir()}
    findings, events = (folder / "findings.json").read_text(), (folder / "events.csv").read_text()
    status, screen, _ = call(capsys, monkeypatch, "sweep", *SMALL, "--out", folder.parent)
    assert status == 0 and "0 runs to do, 1 done already" in screen
    (folder / "findings.json").unlink()
    assert call(capsys, monkeypatch, "analyse", folder)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "nano-s0").iterdir()}
    assert (folder / "findings.json").read_text() == findings and (folder / "events.csv").read_text() == events


def test_a_finished_run_of_another_config_is_not_taken_for_this_one(finished, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in finished[0].rglob("*")}
    status, _, err = call(capsys, monkeypatch, "sweep", *SMALL, "--set", "lr=0.5", "--out", finished[0].parent)
    assert status == 2 and "lr was 0.002, now 0.5" in err
    assert before == {p: p.stat().st_mtime_ns for p in finished[0].rglob("*")}


def test_dry_run_does_nothing(tmp_path, capsys, monkeypatch):
    status, screen, _ = call(capsys, monkeypatch, "sweep", *SMALL, "--dry-run", "--out", tmp_path / "x")
    assert status == 0 and "1 runs to do" in screen and not (tmp_path / "x").exists()


def test_seen_and_unseen_operands_are_columns_of_their_own(tmp_path, capsys, monkeypatch):
    arguments = ["modadd" if a == "parity,copy" else a for a in SMALL]
    assert call(capsys, monkeypatch, "sweep", *arguments, "--train-fraction", "0.4", "--out", tmp_path, "--keep", "3")[0] == 0
    path = tmp_path / "modadd-fraction0.4/nano-s0"
    level = rows_without_clock(path / "metrics.jsonl")[-1]["levels"]["modadd-1"]
    assert {"accuracy", "accuracy_train", "accuracy_test"} <= set(level)
    kept = sorted(p.name for p in (path / "weights").iterdir())
    assert kept == [f"step-{s:06d}.pt" for s in models.snapshot_steps(40, 10)[::3]]


def test_a_loss_that_is_not_finite_is_said_and_the_other_runs_go_on(tmp_path, capsys, monkeypatch):
    status, _, err = call(capsys, monkeypatch, "sweep", *SMALL, "--set", "lr=1e30", "--set", "clip=1e30", "--set", "warmup=0", "--out", tmp_path)
    assert status == 1 and "finite" in err and "after step" in err and len(err.strip().splitlines()) == 1
    assert len(rows_without_clock(tmp_path / "copy+parity/nano-s0/metrics.jsonl")) >= 1


@pytest.mark.parametrize("arguments, status, says", [
    (["sweep", "--task", "substract"], 2, "'substract' is not one of copy, reverse"),
    (["sweep"], 2, "--task"), (["swep"], 2, "swep"), (["sweep", "--task", "add", "--sizs", "nano"], 2, "--sizs"),
    (["sweep", "--task", "add", "--sizes", "huge"], 2, "'huge' is not one of nano"),
    (["sweep", "--task", "add", "--measures", "rank"], 2, "'rank' is not one of"),
    (["sweep", "--task", "add", "--seeds", "0"], 2, "at least one seed"), (["sweep", "--task", "add", "--controls", "99"], 2, "at most 24"),
    (["sweep", "--task", "add", "--seeds", "many"], 2, "--seeds"),
    (["sweep", "--task", "add", "--set", "learning=1"], 2, "a field out of beta1"),
    (["sweep", "--task", "add", "--set", "lr=fast"], 2, "of type float"), (["sweep", "--task", "add", "--set", "lr=0"], 2, "lr: expected a number from 1e-12"),
    (["sweep", "--task", "add", "--set", "dtype=int8"], 2, "expected float32 or bfloat16"),
    (["sweep", "--task", "add", "--train-fraction", "1.5"], 2, "train_fraction"), (["sweep", "--task", "add", "--device", "tpu"], 2, "expected auto, cpu or cuda"),
    (["sweep", "--task", "parity", "--train-fraction", "1e-9"], 2, "has no operands"),
    (["tasks", "division"], 2, "'division' is not one of"), (["analyse", "nowhere"], 2, "nowhere is not a directory")])
def test_bad_arguments_get_one_sentence(arguments, status, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    got, _, err = call(capsys, monkeypatch, *arguments)
    assert (got, len(err.strip().splitlines())) == (status, 1) and says in err and "Traceback" not in err, err
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none(capsys, monkeypatch):
    status, _, err = call(capsys, monkeypatch, "sweep", "--task", "add", "--device", "cuda")
    assert status == 2 and "finds no CUDA device" in err


def unfinished(finished, folder):
    """A copy of the finished sweep, its run not marked as done.  -> the run's directory"""
    shutil.copytree(finished, folder / "copy+parity")
    (folder / "copy+parity/nano-s0/done").unlink()
    return folder / "copy+parity/nano-s0"


def test_a_malicious_checkpoint_is_not_executed(finished, tmp_path, capsys, monkeypatch):
    """With the right checksum, so that it comes as far as being loaded."""
    path = unfinished(finished[0], tmp_path)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)
    run.save(path / "checkpoint.pt", {"train": Bomb()})
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    status, _, err = call(capsys, monkeypatch, "sweep", *SMALL, "--out", tmp_path)
    assert status == 1 and "is not a checkpoint that `sweep` wrote" in err and not (tmp_path / "pwned").exists()
    torch.load(path / "checkpoint.pt", weights_only=False)             # it is a bomb
    assert (tmp_path / "pwned").exists()


def test_two_processes_do_not_write_one_run(finished, tmp_path, capsys, monkeypatch):
    path = unfinished(finished[0], tmp_path)
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    with run.locked(path):
        status, _, err = call(capsys, monkeypatch, "sweep", *SMALL, "--out", tmp_path)
    assert status == 1 and "another process" in err


def test_analyse_says_what_is_missing(finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "s")
    shutil.copytree(tmp_path / "s/nano-s0", tmp_path / "s/nano-s1")
    lines = (tmp_path / "s/nano-s1/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "s/nano-s1/metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    status, screen, _ = call(capsys, monkeypatch, "analyse", tmp_path / "s")
    assert status == 0 and "missing: nano-s1 stopped at step" in screen
    assert json.loads((tmp_path / "s/findings.json").read_text())["runs"] == ["nano-s0"]
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = call(capsys, monkeypatch, "analyse", empty)
    assert status == 2 and "holds no finished run" in err


def test_measure_trains_again_to_the_same_bits(finished, tmp_path):
    """The last step without its checkpoint, and one before it that no snapshot was taken at; and a kept one is loaded."""
    import shutil
    shutil.copytree(finished[0] / "nano-s0", tmp_path / "run")
    (tmp_path / "run/checkpoint.pt").unlink()
    folder, train, _, made = run.saved_run(tmp_path / "run")
    again = run.snapshot_at(folder, train, made, 40).model.state_dict()
    assert all(torch.equal(x, again[key]) for key, x in weights(finished[0] / "nano-s0").items())
    assert 5 not in models.snapshot_steps(40, 10) and run.snapshot_at(folder, train, made, 5).step == 5
    (folder / "weights").mkdir()
    run.save(folder / "weights/step-000005.pt", {key: x + 1 for key, x in again.items()})
    kept = run.snapshot_at(folder, train, made, 5).model.state_dict()
    assert all(torch.equal(x + 1, kept[key]) for key, x in again.items())


@pytest.mark.parametrize("arguments", [["rankme"], ["gradient_rank", "--set", "gradient_examples=42"], ["fisher_rank", "--set", "gradient_examples=42"],
                                       ["hessian_top", "--set", "hessian_examples=42", "--step", "7"], ["linear_probe", "--set", "linear_examples=40"],
                                       ["llc", "--set", "llc_draws=5", "--level", "parity-1,copy-2"],
                                       ["llc", "--calibrate", "--set", "llc_draws=5", "--set", "llc_burnin=1", "--set", "llc_rows=7"]])
def test_measure_prints_a_table_that_says_what_it_means(arguments, finished, tmp_path, capsys, monkeypatch):
    import shutil
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(finished[0], tmp_path / "s")
    status, screen, err = call(capsys, monkeypatch, "measure", tmp_path / "s", "--measure", *arguments)
    assert status == 0 and all(len(line) <= 80 for line in screen.splitlines() if str(tmp_path) not in line), err
    if "--calibrate" in arguments:
        assert "effective" in screen and (tmp_path / "s/nano-s0/figures/llc-calibration-40.png").exists()
    else:
        assert " ".join(run.MEANING[arguments[0]].split()[:6]) in " ".join(screen.split())
        assert ("parity-3" in screen) == ("--level" not in arguments)


def test_measure_refuses_in_one_sentence(finished, tmp_path, capsys, monkeypatch):
    import shutil
    shutil.copytree(finished[0], tmp_path / "s")
    path = tmp_path / "s/nano-s0"
    config = json.loads((path / "config.json").read_text())
    config["environment"]["torch"] = "1.0"
    (path / "config.json").write_text(json.dumps(config))
    for arguments, says in ((["--measure", "llc", "--step", "7"], "torch was 1.0"), (["--measure", "llc", "--step", "41"], "0 to 40"),
                            (["--measure", "ranks"], "'ranks' is not one of"), (["--measure", "rankme", "--calibrate"], "only the llc"),
                            (["--measure", "rankme", "--level", "sort-1"], "'sort-1' is not one of")):
        status, _, err = call(capsys, monkeypatch, "measure", path, *arguments)
        assert status == 2 and says in err and len(err.strip().splitlines()) == 1, err
    status, _, err = call(capsys, monkeypatch, "measure", tmp_path, "--measure", "llc")
    assert status == 2 and "holds 0 runs" in err


def test_tasks_shows_examples_and_chance(capsys, monkeypatch):
    status, screen, _ = call(capsys, monkeypatch, "tasks", "compare")
    assert status == 0 and "compare-3" in screen and "0.333" in screen and "vocabulary (29)" in screen
    assert all(len(line) <= 80 for line in screen.splitlines())


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "sweep", "--task", "nothing", "--debug"])
    with pytest.raises(run.BadInput):
        run.main()


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["sweep", "--task", "nothing"]])
def test_help_and_bad_arguments_answer_at_once(arguments):
    """Without importing torch, which alone takes longer; the time itself is asserted loosely, for slow machines."""
    start = time.monotonic()
    code = f"import sys, runpy; sys.argv = ['run.py', *{arguments!r}]\ntry: runpy.run_path({RUN!r}, run_name='__main__')\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("False"), done.stdout + done.stderr
    assert time.monotonic() - start < 3


def test_the_process_that_draws_tells_why_it_failed_and_does_not_outlive_its_use(tmp_path):
    with run.drawing(tmp_path) as drawn, pytest.raises(run.Failed, match="status 1 .*holds no finished run"):
        drawn()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), run.drawing(Path(RUN).parent / "results" / "all"):       # some ten seconds of drawing
        raise KeyboardInterrupt
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(RUN).parent / "results").glob("*") if p.is_dir()))
def test_committed_results_are_what_analyse_makes_of_them(name, tmp_path, capsys, monkeypatch, all_choices):
    committed = Path(RUN).parent / "results" / name
    shutil.copytree(committed, tmp_path / name, ignore=shutil.ignore_patterns("figures", "findings.json", "events.csv"))
    assert call(capsys, monkeypatch, "analyse", tmp_path / name)[0] == 0
    for file in ("findings.json", "events.csv"):
        assert (tmp_path / name / file).read_text() == (committed / file).read_text(), file
    assert {p.name for p in (tmp_path / name / "figures").iterdir()} == {p.name for p in (committed / "figures").iterdir()}
