"""What a run measures and leaves on the disk, without the command line.

The model has two blocks of width 8, so a run takes a moment.  `record` is also given generators
that train nothing: it must not care where its snapshots come from.
"""
import dataclasses
import doctest
import functools
import itertools
import json
import math
import os
import sys
import zipfile

import pytest
import torch

import claims
import emergence
import faults
import measures
import models
import sweep
import tasks
from faults import rows_of, same_weights

TRAIN = models.TrainConfig(levels=("parity-1", "copy-2", "sham-modadd-2"), steps=12, snapshots=13,
                           per_level=4, warmup=2)
MEASURE = sweep.MeasureConfig(
    measures=tuple(sweep.MEASURES), eval_examples=30, hessian_snapshots=5,
    llc_snapshots=3, gradient_examples=12, hessian_examples=12, llc_examples=4, llc_rows=6,
    llc_chains=2, llc_draws=4, llc_burnin=2, linear_examples=40)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(models.SIZES, "nano", faults.SMALLEST)


def trained(config=TRAIN):
    """The last Snapshot of a run."""
    *_, snapshot = models.train(config)
    return snapshot


# --------------------------------------------------------------------------------------------------
# The lines on which a run is measured

def test_examples_in_the_docstrings():
    assert doctest.testmod(sweep).failed == 0


@pytest.mark.parametrize("items, largest, threads, sizes", [
    (10, 4, 1, [4, 4, 2]), (10, 100, 2, [5, 5]), (10, 2, 2, [2] * 5), (9, 2, 3, [2, 2, 2, 2, 1]),
    (1, 5, 4, [1])])
def test_parts_are_small_and_there_is_one_for_each_thread(items, largest, threads, sizes):
    parts = models.equal_shares(list(range(items)), largest, threads)
    assert [len(part) for part in parts] == sizes and sum(parts, []) == list(range(items))


def test_a_small_space_is_gone_through_and_a_large_one_drawn():
    """Level 1 of parity has eight lines."""
    evals = sweep.EvalSet(TRAIN, MEASURE)
    counts = [len(found.weights) for found in evals.lines.values()]
    assert counts[0] == 8 and all(n <= 30 for n in counts)
    assert sum(len(part.first) for part in evals.parts) == sum(counts)
    assert all(found.weights.sum() == pytest.approx(1) for found in evals.lines.values())


def test_levels_share_the_examples_of_a_measure():
    evals = sweep.EvalSet(TRAIN, MEASURE)
    assert [evals.share(12, 64), evals.share(600, 64), evals.share(3, 64)] == [4, 64, 2]
    tokens, targets = evals.joint(4, "hessian")
    assert tokens.shape == targets.shape and len(tokens) == 12
    each = evals.each_level(lambda level, batch: batch, 4, "hessian")
    for i, (own, asked) in enumerate(each.values()):
        T = own.shape[1]
        assert torch.equal(tokens[4 * i:4 * i + 4, :T], own)
        assert (tokens[4 * i:4 * i + 4, T:] == tasks.PAD).all()
        assert torch.equal(targets[4 * i:4 * i + 4, :T], asked)
        assert (targets[4 * i:4 * i + 4, T:] == tasks.IGNORE).all()


def test_behaviour_is_measured_where_the_model_is():
    """The frequencies of the answers wait on the CPU.  A tensor without values stands for CUDA's:
    it comes as far as the number, which it does not have."""
    elsewhere = torch.rand(tasks.VOCAB_SIZE, device="meta")
    for frequencies in sweep.EvalSet(TRAIN, MEASURE).frequencies.values():
        with pytest.raises(RuntimeError, match=r"item\(\)"):
            measures.marginal_kl(frequencies, elsewhere)


def test_measuring_on_several_threads_leaves_compiled_code_as_it_was():
    evals = sweep.EvalSet(dataclasses.replace(TRAIN, threads=3), MEASURE)
    for _ in range(3):
        sweep.measure_gradient_rank(trained(), evals)
        assert torch._dynamo.eval_frame._stance.stance == "default"


def one_by_one(model, lines):
    """The behaviour on EvalLines, without packing: {column: value}."""
    batch, w = lines.batch, lines.weights
    with torch.no_grad():
        log_p = model(batch.tokens).double().log_softmax(-1)
    scored = batch.targets != tasks.IGNORE
    right = (log_p.argmax(-1) == batch.targets) & scored
    first = int(scored[0].nonzero()[0])
    own = log_p.gather(2, batch.targets.clamp(min=0)[:, :, None])[:, :, 0] * scored
    return {"accuracy": float(w @ (right | ~scored).all(1).double()),
            "token_accuracy": float(w @ (right.sum(1) / scored.sum(1)).double()),
            "log_prob": float(w @ own.sum(1)),
            "loss": float(w @ models.example_loss(model, batch).double()),
            "predicted": w @ log_p[:, first].exp()}


def weighted(states, lines):
    """Rows times the root of their weights."""
    return states.double() * lines.weights.sqrt()[:, None]


@pytest.mark.parametrize("threads", [1, 2])
def test_recorded_numbers_are_those_of_the_model_line_by_line(threads):
    """Every number of a snapshot once more, without packing."""
    train = dataclasses.replace(TRAIN, threads=threads)
    snapshot = trained(train)
    row = sweep.Measurement(train, dataclasses.replace(MEASURE, measures=("rankme",)))(snapshot)
    model = snapshot.model
    for name in train.levels:
        seen, lines = row["levels"][name], tasks.eval_lines(*tasks.split_name(name), 30)
        expected = one_by_one(model, lines)
        mean, frequencies = expected.pop("predicted"), tasks.answer_frequencies(
            *tasks.split_name(name))[0]
        kl = sum(f * math.log(f / p) for f, p in zip(frequencies.tolist(), mean.tolist()) if f)
        assert seen["marginal_kl"] == pytest.approx(kl, rel=1e-4)
        assert {key: seen[key] for key in expected} == pytest.approx(expected, rel=1e-4)
        assert seen["distinct"] == lines.distinct

        with torch.no_grad():
            states = model.hidden_states(lines.batch.tokens)
            states.append(model.ln_f(states[-1]))
        asked = (lines.batch.targets[0] != tasks.IGNORE).nonzero()[:, 0]
        root = lines.weights.sqrt()[:, None, None]
        expected = {
            "first": [measures.rankme(weighted(state[:, asked[0]], lines)) for state in states],
            "answer": [measures.rankme((state[:, asked].double() * root).flatten(0, 1))
                       for state in states[-2:]],
            "last": [measures.rankme(weighted(state[:, -1], lines)) for state in states[-2:]]}
        for position, layers in expected.items():
            assert seen["rankme"][position] == pytest.approx(layers, rel=1e-3), (name, position)
        for layer, state in enumerate(states):
            x, w = state[:, asked[0]].double(), lines.weights[:, None]
            mean = (w * x).sum(0)
            share = float(mean.square().sum() / (w * x.square()).sum())
            assert seen["mean_share"][layer] == pytest.approx(share, rel=1e-6)
            centred = seen["rankme_centred"][layer]
            if layer == 0:                                      # all lines have the same "=" there
                assert centred is None and share == pytest.approx(1)
            else:
                assert centred == pytest.approx(measures.rankme((x - mean) * w.sqrt()), rel=1e-3)
    one_token = row["levels"]["parity-1"]["rankme"]
    assert one_token["answer"] == one_token["first"][-2:]


def test_one_forward_pass_serves_behaviour_and_states(monkeypatch):
    real, passes = models.read_answers, []
    monkeypatch.setattr(models, "read_answers", lambda *args: passes.append(1) or real(*args))
    measurement = sweep.Measurement(TRAIN, dataclasses.replace(MEASURE, measures=("rankme",)))
    measurement(trained())
    assert len(passes) == len(measurement.evals.parts)


def test_seen_and_unseen_operands_are_columns_of_their_own():
    train = dataclasses.replace(TRAIN, levels=("modadd-1", "copy-1"), train_fraction=0.4)
    snapshot = trained(train)
    levels = sweep.measure_behaviour(snapshot, sweep.EvalSet(train, MEASURE))
    for name in train.levels:
        for split, column in (("train", "accuracy_train"), ("test", "accuracy_test")):
            lines = tasks.eval_lines(*tasks.split_name(name), 30, split, 0.4)
            accuracy = one_by_one(snapshot.model, lines)["accuracy"]
            assert levels[name][column] == pytest.approx(accuracy), (name, column)
    assert "accuracy_test" not in sweep.measure_behaviour(trained(), sweep.EvalSet(
        TRAIN, MEASURE))["copy-2"]


# --------------------------------------------------------------------------------------------------
# The table of measures

def test_the_vocabulary_of_measures():
    assert list(sweep.MEASURES) == ["rankme", "gradient_rank", "fisher_rank", "hessian_top",
                                    "joint", "llc", "llc_narrow", "linear_probe"]


@pytest.mark.parametrize("name", sweep.MEASURES)
def test_each_measure_writes_the_columns_of_its_row_and_disturbs_nothing(name):
    row, snapshot = sweep.MEASURES[name], trained()
    model = snapshot.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random, mode = torch.get_rng_state(), model.training
    found = row.function(snapshot, sweep.EvalSet(TRAIN, MEASURE))
    assert list(found) == list(TRAIN.levels)
    for columns in found.values():
        assert set(columns) == set(row.columns)
        value = columns
        for key in row.number:
            value = value[key]
        assert not row.number or value is None or isinstance(value, float)
    assert torch.equal(torch.get_rng_state(), random) and model.training == mode
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    again = row.function(snapshot, sweep.EvalSet(TRAIN, MEASURE))
    assert repr(again) == repr(found), "a measure is a function of the weights"


@pytest.mark.parametrize("name", sweep.MEASURES)
def test_each_row_of_the_table_is_complete(name):
    row = sweep.MEASURES[name]
    assert row.snapshots == "snapshots" or hasattr(MEASURE, row.snapshots)
    assert row.cost > 0 and row.about.endswith(".") and name in row.columns
    assert row.number == () or row.number[0] == name


def test_the_llc_is_taken_at_two_localizations_and_starts_warm():
    evals, at = sweep.EvalSet(TRAIN, MEASURE), trained()
    wide = sweep.measure_llc(at, evals)["copy-2"]["llc"]
    vector = evals.state["llc"]
    assert vector.shape == (models.parameter_count(faults.SMALLEST),)
    narrow = sweep.measure_llc_narrow(at, evals)["copy-2"]["llc_narrow"]
    assert (wide["localization"], narrow["localization"]) == (1e4, 3e4)
    assert [wide["stiffness"], narrow["stiffness"]] == pytest.approx([2, 2])
    assert abs(float(vector @ evals.state["llc"])) > 0.5, "of about the same direction"
    assert wide["nbeta"] == 100 and isinstance(wide["usable"], bool)
    # uniform guessing would lose more than guessing by frequency: the share is of that
    assert wide["lost_share"] is None or abs(wide["lost_share"]) < 10


def test_an_llc_whose_chains_all_diverged_is_none_for_each_level(monkeypatch):
    monkeypatch.setattr(sweep.measures, "llc", lambda *args, **options: measures.LLC())
    for columns in sweep.measure_llc(trained(), sweep.EvalSet(TRAIN, MEASURE)).values():
        assert columns["llc"]["mean"] is columns["llc"]["noise_only"] is None


def test_the_mean_over_levels_of_the_llc_is_that_of_the_joint_loss():
    found = sweep.measure_llc(trained(), sweep.EvalSet(TRAIN, MEASURE))
    joint = {columns["llc"]["joint"] for columns in found.values()}
    means = [columns["llc"]["mean"] for columns in found.values()]
    assert len(joint) == 1 and sum(means) / len(means) == pytest.approx(joint.pop(), rel=1e-4)


def test_joint_values_are_those_of_one_batch_of_all_levels():
    evals, at = sweep.EvalSet(TRAIN, MEASURE), trained()
    found, *others = (columns["joint"] for columns in sweep.measure_joint(at, evals).values())
    assert others == [found] * (len(TRAIN.levels) - 1)
    lines = one_line_each(evals.share(MEASURE.gradient_examples // 8, 16), "gradient")
    assert found["examples"] == len(lines)
    gradients = gradients_of(at.model, models.example_loss, lines)
    assert found["gradient_rank"] == pytest.approx(
        slow_rank(gradients - gradients.mean(0)), rel=1e-3)
    # labels drawn from the model, losses summed over the answer
    batch = evals.joint(evals.share(MEASURE.gradient_examples // 8, 16), "gradient")
    drawn = models.resample_answers(at.model, batch, tasks.seeded("cpu", "fisher"))
    lines = [tuple(x[n:n + 1] for x in drawn) for n in range(len(drawn[0]))]
    gradients = gradients_of(at.model, models.example_loss_sum, lines)
    assert found["fisher_rank"] == pytest.approx(slow_rank(gradients), rel=1e-3)
    # a Rayleigh quotient of the mean loss along the vector that was kept
    lines = one_line_each(evals.share(MEASURE.hessian_examples // 4, 32), "hessian")
    vector = min(evals.state["hessian"], key=lambda v: abs(rayleigh(at.model, lines, v)
                                                           - found["eigenvalue"]))
    assert rayleigh(at.model, lines, vector) == pytest.approx(found["eigenvalue"], rel=1e-2)


def test_the_joint_hessian_is_found_once_a_snapshot(monkeypatch):
    evals, at, calls = sweep.EvalSet(TRAIN, MEASURE), trained(), []
    found = measures.hessian_top
    monkeypatch.setattr(measures, "hessian_top", lambda *given, **options: (
        calls.append(options.get("generator")), found(*given, **options))[1])
    sweep.measure_hessian_top(at, evals)
    row = sweep.measure_joint(at, evals)
    assert sum(generator is not None for generator in calls) == 1
    again = sweep.EvalSet(TRAIN, MEASURE)
    assert sweep.measure_joint(at, again) == row
    sweep.measure_joint(at._replace(step=at.step + 1), again)
    assert sum(generator is not None for generator in calls) == 3


def test_what_is_left_of_a_run_is_what_it_has_no_rows_of(tmp_path):
    train = dataclasses.replace(TRAIN, steps=40, snapshots=10)
    job, left = sweep.Job(tmp_path, train, sweep.MeasureConfig()), []
    assert job.to_do() == 1
    for step in models.snapshots_of(train):
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "levels": {}}) + "\n")
        left.append(job.to_do())
    assert left == sorted(left, reverse=True) and 0.9 < left[0] < 1 and left[-1] == 0


def gradients_of(model, loss_fn, lines):
    """(N, P) float64, one line after another."""
    return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(
        loss_fn(model, line).sum(), [*model.parameters()])]).double() for line in lines])


def slow_rank(gradients):
    values = torch.linalg.svdvals(gradients).square()
    share = values[values > 0] / values.sum()
    return math.exp(-float((share * share.log()).sum()))


def one_line_each(count, name):
    """So many lines of every level, each alone and without padding."""
    batches = [tasks.sample(*tasks.split_name(level), count, tasks.seeded("cpu", name, level))
               for level in TRAIN.levels]
    return [tuple(x[n:n + 1, :-1] for x in batch) for batch in batches for n in range(count)]


def rayleigh(model, lines, vector):
    """v' H v of the mean loss, by differentiating twice, line by line."""
    params = [*model.parameters()]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = sum(models.example_loss(model, line).sum() for line in lines) / len(lines)
        first = torch.autograd.grad(loss, params, create_graph=True)
        slope = sum((g.flatten() * v).sum() for g, v in zip(first, vector.split(
            [p.numel() for p in params])))
        second = torch.autograd.grad(slope, params, materialize_grads=True)
    return float(torch.cat([h.flatten() for h in second]) @ vector)


def test_rare_measures_follow_a_schedule_whose_coarser_half_is_part_of_the_finer():
    every = sweep.MeasureConfig(measures=tuple(sweep.MEASURES))
    for steps, snapshots, counts in ((600, 101, (7, 4)), (2000, 201, (7, 4)), (2, 9, (3, 3))):
        train = models.TrainConfig(steps=steps, snapshots=snapshots)
        taken = sweep.schedule(train, every)
        assert list(taken) == list(sweep.MEASURES)
        assert taken["rankme"] == {*models.snapshot_steps(steps, snapshots)}
        assert (len(taken["hessian_top"]), len(taken["llc"])) == counts
        assert taken["llc"] <= taken["hessian_top"] <= taken["rankme"]
        assert {0, steps} <= taken["llc"]


def test_a_rare_measure_is_taken_when_the_schedule_says_so(monkeypatch):
    def one(name):
        return lambda snapshot, evals: {level: {name: 0.0} for level in evals.levels}
    for name, row in sweep.MEASURES.items():
        monkeypatch.setitem(sweep.MEASURES, name, row._replace(function=one(name)))
    rows = list(map(sweep.Measurement(TRAIN, MEASURE), models.train(TRAIN)))
    often, rarely = (models.evenly_spaced(range(13), n) for n in (5, 3))
    for step, row in enumerate(rows):
        for columns in row["levels"].values():
            assert ("hessian_top" in columns) == ("fisher_rank" in columns) == (step in often)
            assert ("llc" in columns) == ("linear_probe" in columns) == (step in rarely)
            assert "rankme" in columns and "accuracy" in columns


# --------------------------------------------------------------------------------------------------
# Files

@pytest.mark.parametrize("content, bytes_", [
    ("text\n", b"text\n"), (b"\x00\xff", b"\x00\xff"),
    ({"a": (1, float("nan"))}, b'{\n "a": [\n  1,\n  null\n ]\n}\n'),
    ([0.123456789], b"[\n 0.123457\n]\n")])
def test_a_file_is_written_as_a_whole(content, bytes_, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    sweep.write_atomically(path, content)
    assert path.read_bytes() == bytes_ and os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")
    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        sweep.write_atomically(path, "after")
    assert path.read_text() == "before"


def test_numbers_have_six_digits_and_what_is_no_number_is_null():
    found = sweep.rounded({"a": [1.23456789e-7, math.inf, (2, "x")], "b": None, "c": True})
    assert found == {"a": [1.23457e-7, None, [2, "x"]], "b": None, "c": True}


ROW = '{"step": 3, "levels": {"add-1": {"accuracy": 0.5}}}\n'


def test_rows_are_read_up_to_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert sweep.read_rows(path) == []
    path.write_text(ROW + ROW + ROW[:20])
    assert sweep.read_rows(path) == [json.loads(ROW)] * 2


@pytest.mark.parametrize("line", [
    "nonsense\n", "[]\n", "1e999\n", "null\n", '{"step": 3}\n', '{"step": 3.5, "levels": {}}\n',
    '{"step": true, "levels": {}}\n', '{"step": 3, "levels": []}\n',
    '{"step": 3, "levels": {"add-1": 5}}\n', "[" * 100_000 + "\n"])
def test_a_line_that_is_no_row_is_named_by_its_number(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(ROW + line + ROW)
    with pytest.raises(sweep.Failed, match=r"metrics.jsonl, line 2, is not a row"):
        sweep.read_rows(path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"3", b"\xff\xfe", b"null", b"[" * 100_000])
def test_what_is_no_json_object_is_refused_by_name(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(sweep.Failed, match="config.json .* JSON object"):
        sweep.read_json(path)
    path.write_bytes(b'{"a": 1}')
    assert sweep.read_json(path) == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_as_editors_and_shells_write_it(encoding, tmp_path):
    (tmp_path / "x.json").write_text('{"a": "\u00e9"}', encoding=encoding)
    assert sweep.read_json(tmp_path / "x.json") == {"a": "\u00e9"}


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "c": 1, "a": 1}}',
                                  '{"b": [{"a": 1, "a": null}]}'])
def test_two_values_under_one_name_are_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(sweep.Failed, match="x.json is no readable.*two values for 'a'"):
        sweep.read_json(tmp_path / "x.json")


def test_a_lock_is_held_by_one(tmp_path):
    with sweep.locked(tmp_path):
        with pytest.raises(sweep.Busy, match="another process"), sweep.locked(tmp_path):
            pass
    with sweep.locked(tmp_path):
        pass
    with pytest.raises(sweep.BadInput, match="is not a directory"):
        sweep.load(tmp_path / "x")


def test_a_damaged_checkpoint_shows_before_it_is_loaded(tmp_path):
    path = tmp_path / "x.pt"
    assert sweep.load_saved(path) is None
    sweep.save(path, {"weights": torch.arange(5.0), "step": 3})
    found, sound = sweep.load_saved(path), path.read_bytes()
    assert found["step"] == 3 and torch.equal(found["weights"], torch.arange(5.0))
    start = sound.index(torch.arange(5.0).numpy().tobytes())
    damaged = sound[:start] + b"?" + sound[start + 1:]
    for content in (sound[:-1], sound[:len(sound) // 2], b"", b"not a zip", damaged):
        path.write_bytes(content)
        assert sweep.load_saved(path) is None


def test_a_sound_zip_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(sweep.Failed, match="is not a checkpoint that `sweep` wrote"):
        sweep.load_saved(path)


# --------------------------------------------------------------------------------------------------
# The recorder, fed by a generator that trains nothing

CONFIG = {"what": "made up", "lr": 0.1, "keep": 0}
MODEL = torch.nn.Linear(2, 1)


class MadeUp:
    """A source of `count` snapshots.  states: what it was handed.  It ends early at step `stop`."""

    def __init__(self, count=6, stop=None, error=MemoryError("planted")):
        self.count, self.stop, self.error, self.states = count, stop, error, []

    def __call__(self, state):
        self.states.append(state)
        start = 0 if state is None else state["step"] + 1
        for step in range(start, self.count):
            if step == self.stop:
                raise self.error
            yield models.Snapshot(step, MODEL, step / 10, functools.partial(dict, step=step))


def accuracy(snapshot):
    return {"levels": {"mine": {"accuracy": snapshot.step / 8}}}


def record(folder, source=None, measure=accuracy, config=CONFIG, **options):
    """sweep.record with made-up snapshots -> the source, to be asked what it was handed."""
    source = source or MadeUp()
    sweep.record(folder, config, source, measure, **options)
    return source


def stopped(folder, at=4, **options):
    """A run that was killed when it asked for its snapshot at step `at`."""
    with pytest.raises(MemoryError):
        record(folder, MadeUp(stop=at), **options)


def snapshot_of(folder):
    """All bytes of a folder, to see whether anything was touched."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_any_generator_of_snapshots_is_recorded(tmp_path):
    source = record(tmp_path / "mine")
    assert source.states == [None]
    rows = sweep.read_rows(tmp_path / "mine/metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(i, i / 10) for i in range(6)]
    assert [row["levels"] for row in rows] == [{"mine": {"accuracy": i / 8}} for i in range(6)]
    clocks = [(row["wall_train_s"], row["wall_measure_s"]) for row in rows]
    assert clocks == sorted(clocks)
    config = json.loads((tmp_path / "mine/config.json").read_text())
    assert config.pop("environment")["torch"] == torch.__version__ and config == CONFIG
    assert set(snapshot_of(tmp_path / "mine")) - {"lock"} == {
        "config.json", "metrics.jsonl", "checkpoint.pt", "done"}


def test_a_finished_run_is_not_run_again(tmp_path):
    record(tmp_path)
    before = snapshot_of(tmp_path)
    assert record(tmp_path).states == [] and snapshot_of(tmp_path) == before


def test_what_a_snapshot_gave_is_handed_back_on_resume(tmp_path):
    record(tmp_path / "whole")
    stopped(tmp_path / "run", seconds=0)
    assert len(rows_of(tmp_path / "run")) == 4 and not (tmp_path / "run/done").exists()
    assert record(tmp_path / "run").states == [{"step": 3}]
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_checkpoints_are_seconds_apart_and_the_first_is_at_once(tmp_path):
    """The rows behind a checkpoint are made again: they are never there twice."""
    record(tmp_path / "whole")
    stopped(tmp_path / "run", seconds=1000)
    assert len(rows_of(tmp_path / "run")) == 4
    assert record(tmp_path / "run").states == [{"step": 0}]
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_a_line_that_was_cut_off_is_dropped_on_resume(tmp_path):
    record(tmp_path / "whole")
    stopped(tmp_path / "run", seconds=0)
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lev')
    record(tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def elsewhere(monkeypatch, **changes):
    """From now on, this is another environment."""
    real = sweep.environment
    monkeypatch.setattr(sweep, "environment", lambda: real() | changes)


@pytest.mark.parametrize("key, value", [
    ("python", "3.9.1"), ("torch", "2.6.0"), ("numpy", "1.26.4"), ("system", "Plan9 mips"),
    ("processor", "NO AVX"), ("gpu", "a large one"), ("git", "0" * 40)])
def test_a_run_that_goes_on_elsewhere_says_so_and_records_where(
        key, value, tmp_path, capsys, monkeypatch):
    stopped(tmp_path, seconds=0)
    first = sweep.read_json(tmp_path / "config.json")
    elsewhere(monkeypatch, **{key: value})
    stopped(tmp_path, at=5, seconds=0)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "from step 3 in another" in err and value in err, err
    config = sweep.read_json(tmp_path / "config.json")
    [entry] = config.pop("resumed")
    assert config == first and entry["step"] == 3 and entry["environment"][key] == value
    record(tmp_path)                                            # the same environment as just now
    assert not capsys.readouterr().err
    assert sweep.read_json(tmp_path / "config.json")["resumed"] == [entry]
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(6))


def test_a_run_has_as_many_environments_as_made_its_rows(tmp_path, capsys, monkeypatch):
    """One that made no row is not recorded; where a run begins again, there is one."""
    def places():
        config = sweep.read_json(tmp_path / "config.json")
        return [(0, config["environment"]["torch"]), *[
            (entry["step"], entry["environment"]["torch"]) for entry in config.get("resumed", ())]]
    stopped(tmp_path, at=2, seconds=0)
    for at, torchs in ((2, "a"), (4, "b"), (5, "c")):
        elsewhere(monkeypatch, torch=torchs)
        stopped(tmp_path, at=at, seconds=0)
    assert places() == [(0, torch.__version__), (1, "b"), (3, "c")]
    (tmp_path / "checkpoint.pt").unlink()
    record(tmp_path)
    assert places() == [(0, "c")]


def test_what_a_record_does_not_name_is_no_change(tmp_path, capsys):
    """Of an older version, or by hand."""
    for recorded in ({}, {"torch": torch.__version__}, None):
        folder = tmp_path / str(recorded and len(recorded))
        stopped(folder, seconds=0)
        config = sweep.read_json(folder / "config.json") | {"environment": recorded}
        sweep.write_atomically(folder / "config.json", config)
        record(folder)
        assert not capsys.readouterr().err


class Sum:
    """A measure that remembers."""

    def __init__(self):
        self.state = {}

    def __call__(self, snapshot):
        self.state["sum"] = self.state.get("sum", 0) + snapshot.step
        return {"levels": {"mine": {"sum": self.state["sum"]}}}


def test_what_a_measure_carries_on_is_part_of_the_checkpoint(tmp_path):
    stopped(tmp_path, measure=Sum(), seconds=0)
    assert sweep.load_saved(tmp_path / "checkpoint.pt")["measure"] == {"sum": 6}
    record(tmp_path, measure=Sum())
    sums = [row["levels"]["mine"]["sum"] for row in rows_of(tmp_path)]
    assert sums == list(itertools.accumulate(range(6)))


def test_a_run_that_is_done_goes_on_if_it_is_to_reach_something_else(tmp_path):
    record(tmp_path, MadeUp(3), until=[0, 1, 2])
    assert record(tmp_path, MadeUp(3), until=[0, 1, 2]).states == []
    assert record(tmp_path, MadeUp(5), until=[0, 1, 2, 3, 4]).states == [{"step": 2}]
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "done").read_text())["until"] == [0, 1, 2, 3, 4]


def begins_again(err, why):
    """One sentence on stderr."""
    return err.startswith(f"{why}: the run begins again") and err.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_with_a_damaged_checkpoint_a_run_begins_again_and_says_so(damage, tmp_path, capsys):
    record(tmp_path / "whole")
    stopped(tmp_path / "run", seconds=0)
    path = tmp_path / "run/checkpoint.pt"
    path.write_bytes({"cut": path.read_bytes()[:-20], "empty": b"", "foreign": b"hello"}[damage])
    assert record(tmp_path / "run").states == [None]
    assert begins_again(capsys.readouterr().err, f"{path} is damaged")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_with_fewer_rows_than_its_checkpoint_knows_of_a_run_begins_again(tmp_path, capsys):
    record(tmp_path / "whole")
    stopped(tmp_path / "run", seconds=0)
    path = tmp_path / "run/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert record(tmp_path / "run").states == [None]
    assert begins_again(capsys.readouterr().err, f"{path} has fewer rows than its checkpoint "
                                                 "knows of")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_a_run_that_was_begun_without_a_checkpoint_begins_again_quietly(tmp_path, capsys):
    stopped(tmp_path, seconds=0)
    (tmp_path / "checkpoint.pt").unlink()
    assert record(tmp_path).states == [None] and not capsys.readouterr().err


@pytest.mark.parametrize("change", [
    lambda row: row["levels"].update(mine=0.5), lambda row: row.pop("levels"),
    lambda row: row.update(levels=[1]), lambda row: row.update(step=0.5)])
def test_a_row_that_could_not_be_read_again_is_refused_at_once(tmp_path, change):
    def odd(snapshot):
        row = {"levels": {"mine": {"accuracy": 0.5}}}
        change(row)
        return row
    with pytest.raises(TypeError, match="expected .*a whole number, \"levels\": {level"):
        record(tmp_path, measure=odd)
    assert sweep.read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("lacks", ["rows", "wall", "snapshot", "measure"])
def test_a_checkpoint_that_lacks_something_is_none_of_this_run(tmp_path, lacks):
    stopped(tmp_path, seconds=0)
    saved = sweep.load_saved(tmp_path / "checkpoint.pt")
    sweep.save(tmp_path / "checkpoint.pt", {key: saved[key] for key in saved if key != lacks})
    refused(tmp_path, sweep.Failed, "is not a checkpoint of this run")


def test_a_finished_run_without_its_checkpoint_says_that_it_begins_again(tmp_path, capsys):
    """As a committed run is; until it has got as far again it is not done."""
    record(tmp_path, MadeUp(3), until=2)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(MemoryError):
        record(tmp_path, MadeUp(stop=4), until=5)
    assert begins_again(capsys.readouterr().err, f"{tmp_path}/checkpoint.pt is missing")
    assert not (tmp_path / "done").exists() and len(rows_of(tmp_path)) == 4
    record(tmp_path, until=5)
    assert sweep.is_done(tmp_path, 5) and len(rows_of(tmp_path)) == 6


def refused(folder, error, match, **options):
    """The run is refused, and everything stays as it is."""
    before, source = snapshot_of(folder), MadeUp()
    with pytest.raises(error, match=match):
        record(folder, source, **options)
    after = snapshot_of(folder)
    assert {**after, "lock": b""} == {**before, "lock": b""} and source.states == []


def test_another_config_is_refused_and_the_difference_is_named(tmp_path):
    for finish in (False, True):
        if finish:
            record(tmp_path)
        else:
            stopped(tmp_path, seconds=0)
        refused(tmp_path, sweep.BadInput, r"another config \(lr was 0.1, now 0.2\)",
                config=CONFIG | {"lr": 0.2})


def test_a_run_of_the_version_before_is_refused(tmp_path):
    config = sweep.run_config(TRAIN, MEASURE)
    old = {key: value for key, value in config.items() if key != "numbers"}
    stopped(tmp_path, config=old)
    refused(tmp_path, sweep.BadInput, "numbers was None", config=config)


def test_the_checkpoint_of_another_config_is_refused(tmp_path):
    for name, config in (("a", CONFIG), ("b", CONFIG | {"lr": 0.2})):
        stopped(tmp_path / name, config=config, seconds=0)
    (tmp_path / "b/checkpoint.pt").replace(tmp_path / "a/checkpoint.pt")
    refused(tmp_path / "a", sweep.Failed, "is not a checkpoint of this run")


@pytest.mark.parametrize("other", [{"weights": torch.zeros(2)}, [1, 2], torch.zeros(3)])
def test_something_else_in_place_of_the_checkpoint_is_refused(other, tmp_path):
    stopped(tmp_path, seconds=0)
    sweep.save(tmp_path / "checkpoint.pt", other)
    refused(tmp_path, sweep.Failed, "is not a checkpoint of this run")


def test_a_folder_in_place_of_the_checkpoint_is_refused(tmp_path):
    stopped(tmp_path, seconds=0)
    (tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "checkpoint.pt").mkdir()
    refused(tmp_path, sweep.Failed, "checkpoint.pt is a folder; expected a checkpoint")


def test_rows_without_a_config_are_refused(tmp_path):
    stopped(tmp_path, seconds=0)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, sweep.Failed, "has a metrics.jsonl, but no config.json")


def test_a_run_that_another_process_holds_is_left_alone(tmp_path):
    stopped(tmp_path, seconds=0)
    with sweep.locked(tmp_path):
        refused(tmp_path, sweep.Busy, "is being written by another process")


@pytest.mark.parametrize("error", [FloatingPointError("the loss is no longer finite"),
                                   ValueError("a measure has nothing to measure")])
def test_what_cannot_go_on_fails_for_good_and_keeps_its_rows(error, tmp_path):
    with pytest.raises(sweep.Failed, match=f"failed after step 3: {error}"):
        record(tmp_path, MadeUp(stop=4, error=error))
    assert json.loads((tmp_path / "failed").read_text()) == {"step": 3, "reason": str(error)}
    assert len(rows_of(tmp_path)) == 4 and not (tmp_path / "done").exists()
    refused(tmp_path, sweep.Failed, f"failed after step 3: {error}")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), sweep.BadInput("planted")])
def test_what_can_be_mended_does_not_fail_for_good(error, tmp_path):
    with pytest.raises(type(error)):
        record(tmp_path, MadeUp(stop=4, error=error), seconds=0)
    assert not (tmp_path / "failed").exists()
    assert record(tmp_path).states == [{"step": 3}]


def test_weights_are_kept_at_every_so_manyth_snapshot(tmp_path):
    record(tmp_path, config=CONFIG | {"keep": 2})
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert names == ["step-000000.pt", "step-000002.pt", "step-000004.pt"]
    kept = sweep.load_saved(tmp_path / "weights/step-000002.pt")
    assert torch.equal(kept["weight"], MODEL.weight)


def test_a_value_that_is_no_number_is_null_in_a_row(tmp_path):
    def measure(snapshot):
        return {"levels": {"mine": {"accuracy": math.nan, "rankme": {"first": [1.0, math.inf]}}}}
    record(tmp_path, MadeUp(1), measure=measure)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    level = rows_of(tmp_path)[0]["levels"]["mine"]
    assert level == {"accuracy": None, "rankme": {"first": [1.0, None]}}


# --------------------------------------------------------------------------------------------------
# The recorder, fed by training

def run(folder, train=TRAIN, measure=MEASURE, die=None, **options):
    """sweep.run_one; it may be killed when it asks for snapshot number `die`."""
    def snapshots(state):
        for i, snapshot in enumerate(models.train(train, state)):
            if i == die:
                raise MemoryError("planted")
            yield snapshot
    sweep.record(folder, sweep.run_config(train, measure), snapshots,
                 sweep.Measurement(train, measure), **options)


def test_a_killed_run_comes_to_the_same_bits_whatever_is_measured(tmp_path):
    """The Hessian starts from vectors of the snapshot before: these, too, survive a kill."""
    sweep.run_one(sweep.Job(tmp_path / "whole", TRAIN, MEASURE))
    with pytest.raises(MemoryError):
        run(tmp_path / "run", die=7, seconds=0)
    run(tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert same_weights(tmp_path / "run", tmp_path / "whole")

    run(tmp_path / "unmeasured", measure=dataclasses.replace(MEASURE, measures=()))
    assert same_weights(tmp_path / "unmeasured", tmp_path / "whole"), "measuring changes no weight"


@pytest.mark.parametrize("levels", [1, 3, 9])
def test_a_checkpoint_holds_two_eigenvectors_however_many_levels_there_are(levels, tmp_path):
    names = [f"{task}-{k}" for task in ("copy", "parity", "sort") for k in tasks.LEVELS]
    train = dataclasses.replace(TRAIN, levels=tuple(names[:levels]), steps=1, snapshots=2)
    run(tmp_path, train, dataclasses.replace(MEASURE, measures=("hessian_top",)))
    measured = sweep.load_saved(tmp_path / "checkpoint.pt")["measure"]
    assert list(measured) == ["hessian"]
    assert measured["hessian"].shape == (2, models.parameter_count(faults.SMALLEST))


def test_weights_that_are_not_finite_are_not_measured():
    snapshot = trained()
    with torch.no_grad():
        snapshot.model.ln_f.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match="no longer finite at step 12"):
        sweep.Measurement(TRAIN, MEASURE)(snapshot)


def test_the_record_of_a_command_does_not_say_where_it_wrote(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "sweep", "--out", "/home/me", "--task", "add",
                                      "--out=/home/me"])
    found = sweep.environment()
    assert found["command"] == ["python", "run.py", "sweep", "--task", "add"]
    assert found["torch"] == torch.__version__ and set(found) == {
        "command", "git", "git_dirty", "torch", "numpy", "python", "system", "processor", "gpu"}


# --------------------------------------------------------------------------------------------------
# What finished runs say

def planted_behaviour(snapshot, evals):
    """In place of the model's: nothing before step 9, everything from there on."""
    accuracy = float(snapshot.step >= 9)
    return {level: {"accuracy": accuracy, "log_prob": accuracy - 1, "loss": 1.0}
            for level in evals.levels}


def test_table_rows_are_numbers_under_names_that_emergence_understands():
    config = {"levels": ["add-1"], "measures": [],
              "numbers": {"hessian_top": ["hessian_top", "eigenvalue"],
                          "linear_probe": ["linear_probe", -2], "llc": ["llc", "mean"],
                          "llc_narrow": ["llc_narrow", "mean"], "mine": ["mine"]}}
    columns = {"accuracy": 0.5, "distinct": 8, "rankme": {"first": [1.0, 2.0], "last": [3.0, None]},
               "hessian_top": {"eigenvalue": 4.0, "converged": True}, "llc": {"mean": None},
               "linear_probe": [0.1, 0.2, 0.3], "linear_probe_shuffled": 0.4, "mine": 5.0,
               "unknown": [7.0], "other": {"a": 8.0},
               "llc_narrow": {"mean": 6.0, "mc_error": 0.5, "joint": 9.0},
               "joint": {"examples": 56, "gradient_rank": 11.0, "converged": True}}
    rows = list(sweep.table_rows("nano-s0", config, [{"step": 3, "levels": {"add-1": columns}}]))
    assert {row[:3] for row in rows} == {("nano-s0", "add-1", 3)}
    assert [row[3:] for row in rows] == [
        ("accuracy", 0.5), ("distinct", 8), ("rankme.first.0", 1.0), ("rankme.first.1", 2.0),
        ("rankme.last.0", 3.0), ("rankme.last.1", None), ("hessian_top", 4.0), ("llc", None),
        ("linear_probe", 0.2), ("linear_probe_shuffled", 0.4), ("mine", 5.0),
        ("llc_narrow.mc_error", 0.5), ("joint.llc_narrow", 9.0), ("llc_narrow", 6.0),
        ("joint.examples", 56), ("joint.gradient_rank", 11.0), ("joint.converged", True)]


@pytest.fixture
def three_runs(tmp_path, monkeypatch):
    """Two seeds of nano and one of micro, all planted."""
    monkeypatch.setitem(models.SIZES, "micro", models.GPTConfig(2, 1, 16))
    monkeypatch.setattr(sweep, "measure_behaviour", planted_behaviour)
    measure = dataclasses.replace(MEASURE, measures=("rankme",))
    for size, seed in (("micro", 0), ("nano", 1), ("nano", 0)):
        train = dataclasses.replace(TRAIN, size=size, seed=seed)
        sweep.run_one(sweep.Job(tmp_path / f"all/{size}-s{seed}", train, measure))
    return tmp_path / "all"


def test_a_sweep_is_loaded_as_one_long_table(three_runs):
    rows, configs, missing = sweep.load(three_runs)
    assert list(configs) == ["nano-s0", "nano-s1", "micro-s0"] and not missing
    runs = emergence.from_table(rows, configs)
    assert [run.name for run in runs] == list(configs)
    for one in runs:
        assert one.levels == list(TRAIN.levels) and one.steps.tolist() == list(range(13))
        assert one.accuracy[0].tolist() == [0.0] * 9 + [1.0] * 4
        assert one.rankme_layers("first").shape == (3, 4, 13)
    last = sweep.read_rows(three_runs / "nano-s1/metrics.jsonl")[-1]["levels"]["copy-2"]
    assert runs[1].rankme_layers("answer")[1, :, -1].tolist() == last["rankme"]["answer"]


def test_a_runs_own_directory_is_a_sweep_of_one(three_runs):
    _, configs, missing = sweep.load(three_runs / "nano-s1")
    assert list(configs) == ["nano-s1"] and not missing


def test_what_is_not_finished_is_missing_in_words(three_runs):
    for name in ("nano-s1", "micro-s0"):
        path = three_runs / name / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
        (path.parent / "done").unlink()
    sweep.write_atomically(three_runs / "micro-s0/failed", {"step": 4, "reason": "planted"})
    _, configs, missing = sweep.load(three_runs)
    assert list(configs) == ["nano-s0"]
    assert missing == ["micro-s0 failed after step 4: planted", "nano-s1 stopped at step 4 of 12"]


def test_a_directory_without_a_finished_run_is_refused(three_runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(sweep.BadInput, match="holds no finished run .expected a sweep's"):
        sweep.load(tmp_path / "empty")
    for path in three_runs.glob("*/metrics.jsonl"):
        path.write_text("")
    with pytest.raises(sweep.BadInput, match="micro-s0 stopped at step 0 of 12"):
        sweep.load(three_runs)


@pytest.mark.parametrize("change, match", [
    ({"numbers": None}, "does not fit"), ({"size": "micro"}, "does not fit"),
    ({"seed": 7}, "does not fit"), ({"parameters": "many"}, "does not fit"),
    ({"chance": {"add-1": 0.1}}, "does not fit")])
def test_a_config_that_analysis_cannot_use_is_refused(change, match, three_runs):
    path = three_runs / "nano-s0/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(sweep.Failed, match=f"nano-s0 is not a run that `sweep` wrote .*{match}"):
        sweep.load(three_runs)


@pytest.mark.parametrize("lacks", [("levels",), ("measures",), ("levels", "measures")])
def test_a_config_that_lacks_what_every_run_of_a_sweep_has_is_refused(lacks, three_runs, capsys):
    path = three_runs / "nano-s0/config.json"
    config = {key: x for key, x in json.loads(path.read_text()).items() if key not in lacks}
    path.write_text(json.dumps(config))
    match = f"nano-s0/config.json lacks {' and '.join(lacks)}"
    with pytest.raises(sweep.Failed, match=match):
        sweep.load(three_runs)
    status, _, err = faults.call(capsys, "measure", path.parent, "--measure", "rankme")
    assert status == 1 and err.count("\n") == 1 and match in err
    path.parent.rename(three_runs / "mine")                     # a run of one's own may lack them
    _, configs, _ = sweep.load(three_runs)
    assert configs["mine"] == config
    status, _, err = faults.call(capsys, "measure", three_runs / "mine", "--measure", "rankme")
    assert status == 2 and err.count("\n") == 1 and "config.json lacks" in err


def test_a_run_of_the_version_before_is_not_analysed(three_runs):
    path = three_runs / "nano-s0/config.json"
    config = json.loads(path.read_text())
    del config["numbers"]
    path.write_text(json.dumps(config))
    with pytest.raises(sweep.Failed, match="nano-s0 was written by an earlier version"):
        sweep.load(three_runs)


# --------------------------------------------------------------------------------------------------
# A measure is one row of the table

def planted_measure(snapshot, evals):
    learned = snapshot.step >= 6
    return {level: {"planted": {"value": float(learned and level[:4] != "sham"), "error": 0.1}}
            for level in evals.levels}


def test_a_measure_added_as_one_row_is_recorded_scheduled_dated_and_compared(
        tmp_path, monkeypatch):
    row = sweep.Measure(planted_measure, ("planted",), "llc_snapshots", 5, ("planted", "value"),
                        "What a test has planted.")
    monkeypatch.setitem(sweep.MEASURES, "planted", row)
    monkeypatch.setattr(sweep, "measure_behaviour", planted_behaviour)
    train = dataclasses.replace(TRAIN, levels=("parity-1", "copy-2", "sham-modadd-2"))
    measure = dataclasses.replace(MEASURE, measures=("rankme", "planted"), llc_snapshots=5)
    assert sweep.costs(train, measure)["planted"] == (5, 25)
    sweep.run_one(sweep.Job(tmp_path / "nano-s0", train, measure))

    taken = [one["step"] for one in rows_of(tmp_path / "nano-s0")
             if "planted" in one["levels"]["copy-2"]]
    assert taken == [0, 3, 6, 9, 12]
    config = json.loads((tmp_path / "nano-s0/config.json").read_text())
    assert config["numbers"] == {"planted": ["planted", "value"]}

    rows, configs, _ = sweep.load(tmp_path)
    events = emergence.event_table(emergence.from_table(rows, configs))
    dated = {(e["level"], e["event"]): e["step"] for e in claims.event_rows(events)
             if e["quantity"] == "planted"}
    assert dated == {("parity-1", "onset"): 6, ("copy-2", "onset"): 6,
                     ("sham-modadd-2", "onset"): None}
    leads = claims.lead_rows(events.only(), emergence.exchanges(("parity", "copy")))
    found, = [row for row in leads if row["measure"] == row["quantity"] == "planted"]
    assert (found["measure"], found["snapshots"], found["first"], found["events"]) == (
        "planted", 5, 2, 2)


# --------------------------------------------------------------------------------------------------
# What a plan costs

def test_the_cost_of_a_run_is_timed_here_and_now():
    for steps in (12, 1):
        train = dataclasses.replace(TRAIN, steps=steps)
        training, measuring, count = sweep.estimate(train, MEASURE)
        assert training > 0 and measuring > 0
        assert count == len(models.snapshot_steps(steps, TRAIN.snapshots))


def test_rare_measures_cost_so_many_training_steps_a_snapshot():
    costs = sweep.costs(TRAIN, MEASURE)
    assert list(costs) == list(sweep.MEASURES)
    assert costs["llc"] == (3, 3 * sweep.MEASURES["llc"].cost)
    assert costs["hessian_top"] == (5, 5 * sweep.MEASURES["hessian_top"].cost)
    probe = sweep.MEASURES["linear_probe"]
    assert costs["linear_probe"][1] == 3 * (probe.cost + len(TRAIN.levels) * probe.level_cost)


def test_work_is_more_for_more_steps_measures_and_parameters(monkeypatch):
    few = dataclasses.replace(MEASURE, measures=("rankme",))
    least = sweep.work(TRAIN, few)
    assert sweep.work(TRAIN, MEASURE) > least
    assert sweep.work(dataclasses.replace(TRAIN, steps=13), few) > least
    assert sweep.work(dataclasses.replace(TRAIN, size="micro"), few) > least


def test_what_a_run_is_worth_grows_by_what_each_step_of_it_costs():
    """12 steps, a snapshot after each, one of them with the Hessian at every third."""
    measure = dataclasses.replace(MEASURE, measures=("rankme", "hessian_top"))
    hessian, levels = sweep.MEASURES["hessian_top"], len(TRAIN.levels)
    cost = hessian.cost + levels * hessian.level_cost
    taken = sorted(sweep.schedule(TRAIN, measure)["hessian_top"])
    look = sweep.BEHAVIOUR_COST + sweep.MEASURES["rankme"].cost
    looks = models.snapshots_of(TRAIN)
    found = [sweep.worth(TRAIN, measure, step) for step in looks]
    for step, before, after in zip(looks[1:], found, found[1:]):
        assert after - before >= 1 + look + cost * (step in taken)
    assert found[0] == look + cost, "the first row is measured before any step"
    assert found[-1] == sweep.worth(TRAIN, measure) == (
        TRAIN.steps + look * len(looks) + cost * len(taken))


@pytest.mark.parametrize("error, words", [
    (OSError(28, "No space left on device", "/x"), "/x: No space left on device;"),
    (sweep.Failed("planted"), "planted"), (ValueError("planted"), "planted"),
    (KeyError("planted"), "unexpected KeyError: 'planted' (--debug")])
def test_whatever_ends_a_run_is_one_sentence(error, words):
    assert sweep.in_words(error).startswith(words) and "\n" not in sweep.in_words(error)
