"""The machinery of `bench --prove`: its parts on a CPU, beside the same CPU."""
import copy
import dataclasses
import json

import pytest
import torch

import faults
import models
import prove
import sweep
from test_run import call

pytestmark = pytest.mark.system

TRAIN = dataclasses.replace(prove.TRAIN, levels=("parity-1", "copy-1"), steps=12)
MEASURE = dataclasses.replace(
    prove.MEASURE, eval_examples=20, gradient_examples=8, hessian_examples=8, hessian_tol=0.02,
    llc_examples=4, llc_rows=6, llc_draws=12, llc_burnin=2, linear_examples=40)
COMPARED = 1 + len(sweep.MEASURES)                              # behaviour, and every measure


@pytest.fixture(scope="module", autouse=True)
def small():
    """No test here asks what a size is: the smallest one is a thousand parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.SIZES, "nano", faults.SMALLEST)
        yield


@pytest.fixture(scope="module")
def trained(small):
    return prove.same_bits("cpu", TRAIN)


def test_training_twice_and_resumed_gives_the_same_bits(trained):
    snapshot, checks = trained
    assert [one["passed"] for one in checks] == [True, True] and snapshot.step == 12
    assert 0 < checks[1]["resumed_at"] < 12


def test_other_weights_are_not_the_same_bits(trained):
    other = prove.last_of(dataclasses.replace(TRAIN, seed=1))
    assert not prove.same_weights(trained[0], other)
    other = prove.last_of(TRAIN)
    with torch.no_grad():                                       # one number of one matrix
        next(other.model.parameters())[0, 0] += 1e-6
    assert not prove.same_weights(trained[0], other)


def test_every_measure_is_compared_and_on_a_cpu_is_the_same(trained):
    checks = prove.same_numbers(trained[0], "cpu", TRAIN, MEASURE)
    assert [one["passed"] for one in checks] == [True] * 2 * COMPARED, checks
    names = {one["check"].partition(":")[0] for one in checks[COMPARED:]}
    assert names == {"behaviour", *sweep.MEASURES}
    assert all(one["apart"] == 0 for one in checks[COMPARED:])


def test_a_device_that_computes_something_else_is_noticed(trained):
    """Numbers that are a third larger, or half as accurate, or beside it by more than the error."""
    cpu, _ = prove.measured(trained[0], TRAIN, MEASURE, "cpu")
    for name in cpu:
        wrong = copy.deepcopy(cpu[name])
        columns = wrong["copy-1"]
        if name == "behaviour":
            columns["log_prob"] *= 4 / 3
        elif name == "rankme":
            columns["rankme"]["first"][1] *= 4 / 3
        elif name == "linear_probe":
            columns["linear_probe"][-2] += 0.1
        elif name in ("hessian_top", "joint"):
            columns[name]["eigenvalue"] *= 4 / 3
        elif name.startswith("llc"):
            columns[name]["mean"] += 6 * columns[name]["mc_error"]
        else:
            columns[name] *= 4 / 3
        found = prove.farthest(name, cpu[name], wrong, TRAIN.levels)
        assert found["apart"] > found["allowed"] and found["level"] == "copy-1", name
        assert prove.farthest(name, cpu[name], cpu[name], TRAIN.levels)["apart"] == 0


def test_what_is_not_a_number_is_the_farthest():
    cpu, there = {"a": {"fisher_rank": 2.0}}, {"a": {"fisher_rank": float("nan")}}
    found = prove.farthest("fisher_rank", cpu, there, ("a",))
    assert not found["apart"] <= found["allowed"]


def test_a_size_is_run_for_so_many_steps_and_its_floors_are_told():
    found = prove.large_run("cpu", "nano", 4, ("parity-1", "copy-1"))
    assert found["steps"] == 4 and found["snapshots"] == 5 and found["loss"] > 0
    assert found["floor"].keys() == {"parity-1", "copy-1"} == found["start"].keys()
    assert all(found["floor"][level] <= found["start"][level] for level in found["floor"])


def test_all_of_it_is_one_dictionary_for_json(monkeypatch):
    said = []
    monkeypatch.setattr(prove.bench, "bench_sizes", lambda *args: [
        {"size": "nano", "flops": 2e9}, {"size": "large", "left_out": ["left out"]}])
    monkeypatch.setattr(prove.bench, "raise_peaks",
                        lambda peaks, device: peaks.update(float32=4e9, bfloat16=8e9))
    monkeypatch.setattr(prove, "same_numbers",
                        lambda _, *given: [prove.check("same", given == ("cpu", TRAIN, MEASURE))])
    monkeypatch.setattr(prove, "large_run", lambda device, size, stop, levels: {
        "size": size, "loss": 1.0, "start": dict.fromkeys(levels, 9.0),
        "floor": dict.fromkeys(levels, 1.0)})
    found = prove.prove("cpu", said.append, TRAIN, MEASURE, ("nano", 3))
    assert found["passed"] and len(found["checks"]) == 2 + 1 + 1 and len(said) == 5
    assert found["sizes"][0]["peak_share"] in (0.25, 0.5)
    assert found["sizes"][1]["peak_share"] is None
    assert json.loads(json.dumps(sweep.rounded(found)))["large"]["size"] == "nano"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("options", [(), ("--device", "cuda"), ("--device", "auto")])
def test_without_a_gpu_it_says_so_in_one_sentence(options, capsys):
    status, _, err = call(capsys, "bench", "--prove", *options)
    assert status == 1 and "no CUDA device" in err and len(err.strip().splitlines()) <= 3


def test_what_failed_is_named_and_the_exit_status_is_1(capsys, monkeypatch):
    rows = [prove.check("a", True), prove.check("b", False)]
    monkeypatch.setattr(prove, "prove", lambda device, say: {"checks": rows, "passed": False})
    status, screen, err = call(capsys, "bench", "--prove", "--device", "cpu")
    assert status == 1 and "bench --prove: b" in err
    assert models.pick_dtype("cpu") and '"passed": false' in screen
