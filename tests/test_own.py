"""Bring your own: tables, runs and callbacks of others are dated as planted, and bad ones named."""
import csv
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import claims
import emergence
import own_callbacks
import own_run
import report
import run
import sweep
from emergence import event_table, from_table


def step_curve(name, level, at, steps, quantity="accuracy", low=0.0, high=1.0):
    return [(name, level, step, quantity, high if step >= at else low) for step in steps]


def write(path, rows, header=emergence.COLUMNS):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def analyse(capsys, *arguments):
    """-> (status, screen, error) of `python run.py analyse`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["run.py", "analyse", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run.main()
    return ended.value.code, *capsys.readouterr()


def events_of(folder):
    with open(folder / "events.csv") as file:
        return {(row["run"], row["level"], row["quantity"]): row["step"]
                for row in csv.DictReader(file)}


# ------------------------------------------------------------------------------------------------
# Grids, steps, names

def test_each_level_and_quantity_is_dated_on_a_grid_of_its_own():
    """Level a every 10 steps, b every 35, RankMe every 20: gaps in none of them."""
    rows = step_curve("mine", "a", 300, range(0, 1000, 10))
    rows += step_curve("mine", "b", 350, range(0, 1000, 35))
    rows += [("mine", level, step, "rankme.first.block", 2.0 if 40 <= step < 200 else 8.0)
             for level in "ab" for step in range(0, 1000, 20)]
    events = event_table(from_table(rows))
    assert events.emergence.tolist() == [[300, 350]] and events.onset.tolist() == [[200, 200]]
    # the last emergence that lasts a factor 1.25, and three snapshots, while watched
    assert events.censored.tolist() == [[990 / 1.25, 980 / 1.25]]
    leads = claims.lead_rows(events, emergence.exchanges(events.tasks))
    assert {row["quantity"]: row["first"] for row in leads} == {"rankme": 2, "accuracy": 0,
                                                                "step": 2}


def test_a_run_without_rankme_is_counted_where_it_was_measured():
    """Of two runs with one sham each, one has RankMe."""
    for levels in ("ab", ("a", "b", "sham-a")):
        rows = [(run, level, step, name, value) for run in "xy" for level in levels
                for step in range(0, 1000, 20)
                for name, value in (("accuracy", float(step >= 500 and "sham" not in level)),
                                    ("rankme.first.0", 9.0 if step >= 300 else 5.0))
                if run == "x" or name == "accuracy"]
        events = event_table(from_table(rows)).only()
        leads = claims.lead_rows(events, emergence.exchanges(events.tasks))
        (row,) = [row for row in leads if row["quantity"] == "rankme"]
        assert (row["first"], row["events"]) == (2 * ("sham-a" not in levels), 2)
        assert claims.study(from_table(rows))["claims"]


def test_an_empty_cell_of_a_setting_says_nothing():
    """Exported tables hold width, warm-up and the like in one row of a run, or in every tenth."""
    curve = step_curve("mine", "a", 300, range(0, 1000, 20))
    for name, value in (("width", 96), ("warmup", 40), ("parameters", 5e5), ("size", "own")):
        told = [("mine", "", 0, name, value), ("mine", "", 20, name, ""),
                ("mine", "", 40, name, None)]
        (run,) = from_table([*told, *curve])
        assert run.config[name] == value
        (run,) = from_table(curve, {"mine": {name: None}})
        assert run.config == from_table(curve)[0].config
        claims.study([run])


def test_a_reference_is_read_where_it_was_last_measured_on_a_measures_grid():
    """Accuracy is past its tenth at 300, and the measure's own grid is 0, 70, 140 ...: 350."""
    rows = step_curve("mine", "a", 300, range(0, 1000, 100))
    rows += step_curve("mine", "a", 210, range(0, 1000, 70), "norm", 5.0, 9.0)
    events = event_table(from_table(rows))
    (grid,) = claims.grids_of(events, "norm")
    for name, date in (("accuracy", 350), ("norm", 210)):
        assert claims.date_on(events, events.runs[0], name, grid, 2).tolist() == [date]


def test_a_run_that_still_goes_on_is_watched_to_its_end():
    rows = step_curve("long", "a", 500, range(0, 1001, 10))
    rows += step_curve("short", "a", 500, range(0, 301, 10))
    events = event_table(from_table(rows))
    assert events.emergence.tolist() == [[500], [math.inf]]
    assert events.censored.tolist() == [[800], [240]]
    z, information = emergence.risk_set_test([1, 1], events.emergence[:, 0], events.censored[:, 0])
    assert information == 0, "one alone is at risk at step 500"


def test_steps_may_be_fractions_or_tokens_and_dates_scale_with_them():
    for scale in (0.01, 1, 10 ** 7):
        rows = [row[:2] + (row[2] * scale,) + row[3:]
                for row in step_curve("mine", "a", 300, range(0, 1000, 10))]
        assert event_table(from_table(rows)).emergence.item() == pytest.approx(300 * scale)


@pytest.mark.parametrize("scale", [0.001, 1, 10 ** 6])
def test_a_forecast_finds_a_planted_signal_in_any_unit(scale):
    """A hint that jumps 30% before each level emerges; accuracy gives no warning."""
    rng, rows = np.random.default_rng(0), []
    steps = np.unique(np.round(10 * 1.1 ** np.arange(54)))
    for name, k in ((name, k) for name in "ab" for k in range(8)):
        at = 100 * 2 ** rng.uniform(0, 3)
        for quantity, date in (("accuracy", at), ("my hint", at / 1.3)):
            rows += [(name, f"task{k}-1", step * scale, quantity, float(step >= date))
                     for step in steps]
    found = emergence.forecast(from_table(rows), ("my hint",))
    assert found.gain > 0.3 and found.low > 0
    assert "my hint" in [row["features"][0] for row in claims.forecasts(from_table(rows),
                         event_table(from_table(rows)))]


def test_levels_have_any_names_and_runs_may_have_different_ones():
    rows = step_curve("x", "easy ones", 100, range(0, 500, 10))
    rows += step_curve("y", 7, 200, range(0, 500, 10))
    events = event_table(from_table(rows))
    assert events.levels == ("easy ones", "7")
    assert np.array_equal(events.emergence, [[100, math.nan], [math.nan, 200]], equal_nan=True)
    assert events.censored.tolist() == [[392, -math.inf], [-math.inf, 392]]


def test_what_is_of_the_whole_model_holds_for_every_level():
    rows = [*step_curve("x", "a", 100, range(0, 500, 10)), ("x", "", 0, "norm", 3.0),
            ("x", "b", 0, "norm", 4.0), ("x", None, 10, "norm", 5.0), ("x", "b", 0, "accuracy", 0)]
    (one,) = from_table(rows)
    assert one.table("norm")[:, :2].tolist() == [[3, 5], [4, 5]]
    (alone,) = from_table([("x", "", 0, "accuracy", 1.0)])
    assert alone.levels == ["all"] and alone.accuracy.tolist() == [[1.0]]


def test_settings_may_stand_in_the_table():
    """At chance .5 an accuracy of .6 is a fifth of the way, of .7 two fifths."""
    rows = [("x", level, step, "accuracy", x) for level, x in (("a", 0.6), ("b", 0.7))
            for step in range(0, 500, 10)]
    rows += [("x", "", 0, "chance", 0.5), ("x", "", 0, "parameters", 1e6), ("x", "", 0, "seed", 3)]
    (one,) = from_table(rows, {"x": {"width": 8}})
    assert event_table([one]).emergence.tolist() == [[math.inf, 0]]
    assert (one.config["parameters"], one.config["seed"], one.config["width"]) == (10 ** 6, 3, 8)
    with pytest.raises(ValueError, match="run 'x': chance 'low': expected numbers"):
        from_table(rows, {"x": {"chance": "low"}})
    (other,) = from_table(rows, {"x": {"chance": {"b": 0.9}}})              # a config counts more
    assert other.per_level("chance", 0.0).tolist() == [[0], [0.9]]


@pytest.mark.parametrize("layers, last_block", [
    (("block1", "block2"), 1), (("1", "2", "10"), 2), (("0", "1", "2", "3"), 2),
    (("10", "embedding", "9", "final_norm"), 0), (("attn", "mlp", "final_norm"), 1)])
def test_the_last_block_is_found_by_name(layers, last_block):
    rows = [("x", "a", 0, f"rankme.first.{name}", k) for k, name in enumerate(layers, 1)]
    (one,) = from_table(rows)
    assert one.rankme_at("first", -2).tolist() == [[last_block + 1]]
    assert one.rankme_at("whatever", -2).tolist() == [[last_block + 1]], "one position: that is it"
    assert one.table("rankme.answer").tolist() == [[last_block + 1]]


def test_rankme_may_have_neither_layer_nor_position_and_other_names_dots():
    rows = [("x", "a", 0, "rankme", 5.0), ("x", "a", 0, "grad.norm", 1.0),
            ("x", "a", 0, "grad.max", 2.0), ("x", "a", 0, "share.0", 3.0),
            ("x", "a", 0, "share.1", 4.0), ("x", "a", 0, "loss", 4.0)]
    (one,) = from_table(rows)
    assert one.rankme_at("first", -2).tolist() == one.rankme_at("last", -2).tolist() == [[5]]
    assert np.isnan(one.rankme_at("first", -1)).all()
    assert one.measures == ["grad.norm", "grad.max", "loss", "share"]


def test_log_prob_without_its_chance_is_a_quantity_like_any_other():
    rows = step_curve("x", "a", 50, range(0, 200, 10), "log_prob", -3.0, -1.0)
    (one,) = from_table(rows)
    (other,) = from_table([*rows, ("x", "a", 0, "chance_log_prob", -2.0)])
    assert one.measures == ["log_prob"] and other.measures == []
    assert np.isnan(emergence.way_from_chance(one, "log_prob")[0]).all()
    assert claims.has(other, "behaviour", "log_prob") and not claims.has(one, "behaviour",
                                                                         "log_prob")


def test_choices_that_need_what_was_not_measured_are_left_out():
    rows = step_curve("x", "a", 50, range(0, 200, 10))
    alone = claims.specifications(runs=from_table(rows))
    assert {(one.behaviour, one.position, one.layer) for one in alone} == {
        ("accuracy", "first", -2)} and len(alone) == 90
    ranks = [("x", "a", step, f"rankme.last.{layer}", 5.0) for step in range(0, 200, 10)
             for layer in ("block", "final_norm")]
    found = claims.specifications(runs=from_table(rows + ranks))
    assert {(one.position, one.layer) for one in found} == {("last", -2), ("last", -1)}


def test_what_emergence_returns_goes_into_json():
    steps, curve = np.arange(0, 300, 10), np.r_[8, np.full(12, 2), np.full(17, 9.0)]
    accuracy = torch.tensor(curve > 8.5).double()
    found = {"emergence": emergence.emergence_step(steps, accuracy),
             "collapse": emergence.collapse(steps, curve),
             "lead": emergence.lead_time(np.int64(50), np.float64(70)),
             "never": emergence.lead_time(math.nan, 3),
             "half": emergence.lead_time(0.25, 0.75)}
    assert json.loads(json.dumps(found)) == {"emergence": 130, "collapse": [2.0, 10, 130],
                                             "lead": 20, "never": None, "half": 0.5}


def test_a_step_twice_is_said_once(tmp_path, capsys):
    rows = step_curve("x", "a", 50, range(0, 200, 10))
    path = write(tmp_path / "curves.csv", [("x", "a", 60, "accuracy", 0.0), *rows, *rows])
    status, screen, err = analyse(capsys, path)
    assert status == 0, err
    said = " ".join(screen.split())
    assert said.count("twice, of which the last counts: 21, such as accuracy at step 60 of x") == 1
    assert screen.split("analysing")[0].endswith("\n"), "a note is a line"
    assert events_of(tmp_path / "curves")["x", "a", "accuracy"] == "50"


# ------------------------------------------------------------------------------------------------
# Tables as other programs write them

def planted(path, columns=""):
    """-> the emergences that are read from a file, {(run, level): step}, and its runs."""
    runs = report.read_runs(path, columns)
    events = event_table(runs)
    return {(one.name, level): events.emergence[r, k] for r, one in enumerate(runs)
            for k, level in enumerate(events.levels)}, runs


STEPS = range(0, 500, 10)


def test_a_wide_table_of_a_logger_is_read_by_its_columns(tmp_path):
    """As W&B's history: a row for each step, empty where a quantity was not logged."""
    rows = [(step, 0.1 * step, 17.5, float(step >= 200) if step % 20 == 0 else "", 5.0 - step / 500,
             "text") for step in STEPS]
    path = write(tmp_path / "history.csv", rows, ("_step", "_runtime", "Wall time", "val/acc",
                                                  "train/loss", "note"))
    found, (one,) = planted(path, "step=_step,accuracy=val/acc,train/loss")
    assert found == {("run", "all"): 200} and set(one.curves) == {"accuracy", "train/loss"}
    assert one.measures == ["train/loss"] and one.table("train/loss")[0, 1] == 5 - 10 / 500
    with pytest.raises(ValueError, match="row 1: note is 'text', no number"):
        report.read_runs(path, "step=_step")


def test_a_chart_of_wandb_has_a_column_for_each_run(tmp_path):
    header = ["Step"]
    for name in ("red-1", "blue-2"):
        header += [f"{name} - val/acc", f"{name} - val/acc__MIN", f"{name} - val/acc__MAX"]
    rows = [(step, *[float(step >= 100)] * 3, *[float(step >= 300)] * 3) for step in STEPS]
    path = write(tmp_path / "chart.csv", rows, header)
    found, runs = planted(path, "accuracy=val/acc")
    assert found == {("red-1", "all"): 100, ("blue-2", "all"): 300}
    assert [list(one.curves) for one in runs] == [["accuracy"]] * 2


def test_tags_of_tensorboard_are_quantities_of_levels(tmp_path):
    rows = [("a", 1e9 + step, step, f"eval/{level}", float(step >= at)) for step in STEPS
            for level, at in (("copy", 100), ("sort", 200))]
    path = write(tmp_path / "scalars.csv", rows, ("run", "Wall time", "Step", "tag", "value"))
    found, (one,) = planted(path, "quantity=tag,copy/accuracy=eval/copy,"
                            "sort/accuracy=eval/sort")
    assert found == {("a", "copy"): 100, ("a", "sort"): 200} and list(one.curves) == ["accuracy"]
    single = write(tmp_path / "tag.csv", [row[1:3] + row[4:] for row in rows[::2]],
                   ("Wall time", "Step", "Value"))                          # one tag, one file
    assert planted(single, "accuracy=Value")[0] == {("run", "all"): 100}


def test_json_lines_tabs_and_semicolons_are_tables_too(tmp_path):
    rows = step_curve("r", "a", 100, STEPS)
    dicts = [dict(zip(emergence.COLUMNS, row)) for row in rows]
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, dicts)) + "\n\n")
    (tmp_path / "x.json").write_text(json.dumps(dicts))
    for name, mark in (("x.tsv", "\t"), ("x.csv", ";")):
        lines = [mark.join(map(str, row)) for row in (emergence.COLUMNS, *rows)]
        (tmp_path / name).write_text("\n".join(lines))
    for name in ("x.jsonl", "x.json", "x.tsv", "x.csv"):
        assert planted(tmp_path / name)[0] == {("r", "a"): 100}, name
    (tmp_path / "x.csv").rename(tmp_path / "X.CSV")
    assert planted(tmp_path / "X.CSV")[0] == {("r", "a"): 100}


def test_runs_and_levels_may_be_numbered_from_0_in_json_as_in_csv(tmp_path):
    rows = [row for run in (0, 1) for level in (0, 1) for row in step_curve(run, level, 100, STEPS)]
    dicts = [dict(zip(emergence.COLUMNS, row)) for row in rows]
    (tmp_path / "x.json").write_text(json.dumps(dicts))
    dates = {(run, level): 100 for run in "01" for level in "01"}
    assert planted(tmp_path / "x.json")[0] == planted(write(tmp_path / "x.csv", rows))[0] == dates
    wide = [{"run": None, "step": step, "mine - accuracy": float(step >= 100)} for step in STEPS]
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    assert {name for name, _ in planted(tmp_path / "wide.json")[0]} == {"mine"}


def test_two_tables_of_one_name_are_refused_before_one_overwrites_the_other(tmp_path, capsys):
    for name in ("x.csv", "x.tsv"):
        write(tmp_path / name, step_curve("r", "a", 100, STEPS))
    status, _, error = analyse(capsys, tmp_path / "x.csv", tmp_path / "x.tsv")
    assert status == 2 and "rename a table" in error and not (tmp_path / "x").exists()


@pytest.mark.parametrize("text, encoding", [
    ("step,accuracy\n0,0.5\n", "utf-8-sig"), ("step\taccuracy\n0\t0.5\n", "utf-16"),
    ("step, accuracy\n0, 0.5\n", "ascii"), (",step,accuracy\n0,0,0.5\n", "ascii"),
    ("Unnamed: 0,step,accuracy\n7,0,0.5\n", "ascii"), ("step,accuracy\r0,0.5\r", "ascii")])
def test_a_table_is_read_as_spreadsheets_and_pandas_write_it(text, encoding, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode(encoding))
    [row] = report.read_table(path)
    assert (row["step"], row["quantity"], row["value"]) == (0, "accuracy", 0.5)


def test_a_pandas_frame_is_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(step_curve("r", "a", 100, STEPS), columns=list(emergence.COLUMNS))
    frame.loc[len(frame)] = ["r", None, 0, "norm", None]
    events = event_table(from_table(frame))
    assert events.emergence.tolist() == [[100]] and events.levels == ("a",)
    wide = frame.pivot(index="step", columns="quantity", values="value").reset_index()
    rows = report.long_rows(wide.to_dict("records"), {})
    assert event_table(from_table(rows)).emergence.tolist() == [[100]]
    series = frame["value"][:-1]
    assert emergence.emergence_step(frame["step"][:-1], series) == 100


def test_analyse_makes_everything_of_a_table_in_tokens(tmp_path, capsys):
    """Two runs on grids of their own, one of which goes on; every quantity is dated and drawn."""
    rows = []
    for name, stride, end in (("r0", 20e6, 1e9), ("r1", 25e6, 6e8)):
        for level, at in (("qa easy", 2e8), ("qa hard", 4e8)):
            for tokens in np.arange(0, end, stride):
                later = tokens >= at - 1e8
                rows += [(name, level, tokens, "accuracy", 0.25 + 0.7 * (tokens >= at)),
                         (name, level, tokens, "chance", 0.25),
                         (name, level, tokens, "my norm", 10.0 + 5 * later),
                         (name, level, tokens, "rankme.first.block", 2.0 + 6 * later)]
    path = write(tmp_path / "curves.csv", rows, ("run", "level", "tokens", "quantity", "value"))
    status, screen, err = analyse(capsys, path, "--columns", "step=tokens", "--full")
    assert status == 0, err
    found, folder = events_of(tmp_path / "curves"), tmp_path / "curves"
    for name in ("r0", "r1"):
        assert float(found[name, "qa easy", "accuracy"]) == 2e8
        for quantity in ("my norm", "rankme"):
            assert float(found[name, "qa easy", quantity]) == 1e8
    findings = json.loads((folder / "findings.json").read_text())
    leads = {row["quantity"]: row for row in findings["leads"] if row["measure"] == "my norm"}
    assert leads["my norm"]["events"] == 4 and leads["my norm"]["first"] == 4
    assert leads["my norm"]["lead"] == 1e8 and findings["unit"] == "tokens"
    assert "median lead 1e+08 tokens" in " ".join(screen.split())
    assert {file.name for file in (folder / "figures").iterdir()} >= {"curves.png", "measures.png"}
    assert "could not be drawn" not in screen and "nan" not in screen


@pytest.mark.parametrize("rows, drawn", [
    ([("r", "a", 0, "accuracy", 1.0)], {"curves.png"}),                     # a single point
    ([("r", "a", 0, "accuracy", None), ("r", "a", 1, "accuracy", 1.0)], {"curves.png"}),
    ([*step_curve("r", "a", 100, STEPS, "weight norm"), ("r", "a", 0, "accuracy", 0.0)],
     {"curves.png", "measures.png"}),
    ([*step_curve("r", "a", 100, STEPS), ("r", "a", 5, "loss", 1.0), ("r", "a", 9, "loss", 2.0),
      ("r", "a", 19, "loss", math.inf), ("r", "a", 39, "loss", 2.5)], {"curves.png",
                                                                       "measures.png"}),
    ([(f"{size}{r}", level, *row[2:], size) for size in "SM" for r in range(2) for level in "ab"
      for row in step_curve("", "", 100, STEPS)], {"curves-S.png", "curves-M.png",
                                                   "measures.png"})])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_odd_tables_are_analysed_without_a_complaint(rows, drawn, tmp_path, capsys):
    path = write(tmp_path / "odd.csv", rows, (*emergence.COLUMNS, "size")[:len(rows[0])])
    status, screen, err = analyse(capsys, path)
    assert status == 0 and "could not be drawn" not in screen and "nan%" not in screen, err + screen
    assert {file.name for file in (tmp_path / "odd/figures").iterdir()} == drawn


def test_three_lists_are_drawn():
    figures = report.figure_curves([0, 10, 20, 30, 40, 60], [0, 0, 0, 1, 1, 1], [9, 2, 2, 8, 8, 8])
    upper, lower = figures["curves"].axes
    assert upper.lines[0].get_xydata().tolist() == [[0, 0], [10, 0], [20, 0], [30, 1], [40, 1],
                                                    [60, 1]]
    assert lower.lines[0].get_ydata().tolist() == [9, 2, 2, 8, 8, 8]
    assert report.figure_curves([0.0, 0.5], [0, 1])["curves"].axes[0].lines[0].get_xdata()[1] == 0.5



@pytest.mark.parametrize("content, words", [
    ("", "expected rows"), ("run,level,step,quantity,value\n", "expected rows"),
    ("run,level,quantity,value\nr,a,accuracy,1\n", "row 1 has no 'step'"),
    ("step,value\n0,1\n", "row 1 has no 'quantity'"),
    ("run,level,step,quantity,value\nr,a,0,accuracy,high\n", "row 1: accuracy is 'high'"),
    ("run,level,step,quantity,value\nr,a,soon,accuracy,1\n", "row 1: step is 'soon'"),
    ("run,level,step,quantity,value\nr,a,-1,accuracy,1\n", "row 1: step is -1, no number from 0"),
    ("step,accuracy\n0,1\n,1\n", "row 2: step is nan, no number from 0 on"),
    ("run,step,quantity,event\nr,0,accuracy,onset\n", "row 1 has no 'value', only run, step"),
    ("step,accuracy,rankme\n0,1,0\n", "level all, step 0: rankme 0: a RankMe is at least 1"),
    ("step,Accuracy,RankMe\n0,1,2\n", "no accuracy, but Accuracy, RankMe; --columns accuracy="),
    ("step,accuracy,loss\n0,,2\n", "no accuracy, but accuracy, loss; --columns"),
    ("run,level,step,quantity,value\nr,a,0,accuracy,50\n", "divide percent by 100"),
    ("run,level,step,quantity,value\nr,a,0,chance,1\nr,a,0,accuracy,1\n", "chance {'a': 1}"),
    ("step,accuracy\n0,1,2,3\n", "more cells"), (b"\xff\xfe\x00s\x00", "codec can't decode"),
    ("step,accuracy\n0,1\n\0,\0\n", "row 2: step"), ("step\n0\n", "no rows"),
    ("step,accuracy,accuracy\n0,0,1\n", "two columns 'accuracy'"),
    ("step,Step,accuracy\n0,9,1\n", "two columns for one of step, step, accuracy"),
    ("step,accuracy\n0,90%\n", "accuracy is '90%'"), ("step;accuracy\n0;0,9\n", "is '0,9'")])
def test_a_bad_table_is_named_in_one_sentence(content, words, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, err = analyse(capsys, path)
    assert status == 2 and words in err and err.count("\n") == 1 and len(err) < 600, err
    assert not (tmp_path / "bad").exists(), "nothing is made of a table that cannot be read"


@pytest.mark.parametrize("name, content, columns, words", [
    ("x.jsonl", '{"step": 0}\n\n{"step": 1\n{}', "", "x.jsonl: line 3, column 11: "),
    ("x.jsonl", "[1]\n", "", "expected rows"),
    ("x.json", '{"a": {"0": 1}}', "", "expected rows"), ("x.txt", "step\n", "", "a .csv, .tsv"),
    ("x.jsonl", '{"step": 0, "a": {"b": 1}}', "", "row 1: a is {'b': 1}"),
    ("x.csv", "step,acc\n0,1\n", "accuracy=val", "there is no 'val', only acc"),
    ("x.csv", "step,acc\n0,1\n", "run=Name", "row 1 has no 'Name'"),
    ("x.csv", "step,acc\n0,1\n", "accuracy=acc,accuracy=b", "each name once"),
    ("x.csv", "step,acc\n0,1\n", "accuracy=acc,rankme=acc", "each name once"),
    ("x.csv", "step,acc\n0,1\n", "acc", "no accuracy, but acc; --columns accuracy="),
    ("x.csv", "step,acc\n0,1\n", "=,", "--columns")])
def test_a_table_that_does_not_fit_is_named(name, content, columns, words, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    status, _, err = analyse(capsys, tmp_path / name, "--columns", columns)
    assert status == 2 and words in err and err.count("\n") == 1, err


@pytest.mark.parametrize("name, option", [
    ("x.csv", "--seeds=7-9"), ("x.csv", "--sizes=nano"), (".", "--columns=accuracy=acc")])
def test_options_of_sweeps_are_not_for_tables_nor_theirs_for_sweeps(name, option, tmp_path, capsys):
    write(tmp_path / "x.csv", step_curve("r", "a", 100, STEPS))
    status, _, err = analyse(capsys, tmp_path / name, option)
    assert status == 2 and "--columns is for tables, --seeds and --sizes are for" in err


def test_an_accuracy_that_one_run_lacks_is_not_called_never(tmp_path, capsys):
    rows = [*step_curve("x", "a", 100, STEPS), ("y", "a", 0, "loss", 1.0), ("x", "b", 0, "loss", 1)]
    status, screen, err = analyse(capsys, write(tmp_path / "curves.csv", rows))
    assert status == 0, err
    said, found = " ".join(screen.split()), events_of(tmp_path / "curves")
    assert "accuracy emerged at 100 (accuracy was measured in 1 of 2 seeds)" in said
    assert "b: RankMe was not measured; accuracy was not measured (all 2 seeds)." in said
    assert set(found) == {("x", "a", "accuracy"), ("x", "b", "loss"), ("y", "a", "loss")}
    rows = json.loads((tmp_path / "curves/findings.json").read_text())["levels"]
    assert [(row["level"], row["seeds"], row["with_accuracy"]) for row in rows] == [
        ("a", 2, 1), ("b", 2, 0)]
    assert "-unmeasured" in "".join(screen.split()) and "never" not in screen
    assert {row["first"] for row in map(report.median_cells, rows)} == {"0/1/1", "0/0/0"}


TASKS = {name: 100 + 50 * k for k, name in enumerate("abcdefgh")}


def capability(name, task, unseen="", steps=STEPS):
    """Of one run: RankMe, which falls and recovers, and accuracy unless it was not measured."""
    onset = 60 + 10 * ord(task) % 80
    rankme = [(name, f"{task}-1", step, "rankme", 6 if step < 20 else 1.2 if step < onset else 5)
              for step in STEPS]
    seen = steps if task not in unseen else ()
    return rankme + step_curve(name, f"{task}-1", TASKS[task], seen)


def test_a_level_without_accuracy_changes_no_order_of_emergence():
    """What was not measured has no place in an order: not the last one."""
    for several in ("", "XY"):
        rows = [row for name in "wxyz" for task in TASKS for row in capability(name, task, "gh")]
        rows += [(name, "", 0, "size", size) for name, size in zip("wxyz", 2 * several)]
        events = event_table(from_table(rows))
        known = events.subset(levels=~np.isnan(events.emergence).any(0))
        assert len(known.levels) == 6 < len(events.levels)
        for statistic in (claims.order_correlation, claims.within_class, claims.swap_rate,
                          claims.precursor_rate, claims.risk_set_excess):
            alike = [statistic(one, np.arange(len(one.owner))[None])[0] for one in (events, known)]
            assert alike[0] == pytest.approx(alike[1], nan_ok=True), statistic
        classes = claims.difficulty(events)[0]
        assert classes[[*map(events.levels.index, ("g-1", "h-1"))]].tolist() == [-1, -1]


def test_an_arm_without_accuracy_has_no_effect_that_could_be_seen():
    rows = [[row for name in "uvwxyz" for task in "ab" for row in capability(name, task, unseen)]
            for unseen in ("", "a", "ab")]
    arms = [from_table(own) for own in rows]
    found = emergence.effect(arms[0], arms[1])
    assert [row.level for row in found.levels] == ["b-1"] and found.mean.verdict == "no effect"
    with pytest.raises(ValueError, match="no task-level whose behaviour was measured in all"):
        emergence.effect(arms[0], arms[2])


def test_where_one_kind_of_behaviour_was_not_measured_the_other_is_counted():
    """b-1 has log p alone, which dates it where that is asked for; and its accuracy, none."""
    rows = [row for task in "ab" for row in capability("x", task, "b")]
    rows += [("x", f"{task}-1", step, "log_prob", -3 * (step < 100)) for task in "ab"
             for step in STEPS]
    events = event_table(from_table(rows, {"x": {"chance_log_prob": -3.0}}), behaviour="log_prob")
    (size,) = claims.overview(events)
    assert (size["with_accuracy"], size["emerged"], size["watched"]) == (2, 2, STEPS[-1])
    assert [row["watched"] for row in claims.medians(events)] == [STEPS[-1], None]


def test_shams_whose_rankme_was_not_taken_set_no_bar():
    rows = [row for task in "ab" for row in capability("x", task)]
    alone = event_table(from_table(rows))
    sham = step_curve("x", "sham-a-1", 9999, STEPS)
    events = event_table(from_table([*rows, *sham]))
    assert events.onset_rule == "floor" and np.isfinite(alone.onset).all()
    assert np.array_equal(events.only().onset, alone.onset)
    rows += [("x", level, step, "norm", float(step > 100 and level == "a-1"))
             for level in ("a-1", "b-1") for step in STEPS]
    dates = {(row["level"], row["quantity"]): row["step"]
             for row in claims.event_rows(event_table(from_table([*rows, *sham])))}
    assert dates["a-1", "norm"] == STEPS[np.searchsorted(STEPS, 100, "right")]
    assert dates["b-1", "norm"] is None and dates["sham-a-1", "accuracy"] is None
    assert ("sham-a-1", "norm") not in dates and ("sham-a-1", "rankme") not in dates


def test_what_had_not_emerged_had_not_by_the_last_accuracy(tmp_path, capsys):
    rows = capability("x", "h", steps=range(0, 210, 10)) + capability("y", "h")
    rows = [row for row in rows if row[3] != "accuracy" or row[2] < 440 and row[4] == 0]
    status, screen, err = analyse(capsys, write(tmp_path / "curves.csv", rows))
    assert status == 0, err
    assert "had not emerged for good by step 200 (all 2 seeds)" in " ".join(screen.split())


# ------------------------------------------------------------------------------------------------
# Configs

def measured_run(config, levels="ab", name="x"):
    return from_table([row for level in levels
                       for row in step_curve(0, level, 60, range(0, 300, 10), low=0.5)],
                      {name: config})


def test_a_config_finds_its_run_and_its_levels():
    for name in (0, "0"):
        (one,) = measured_run({"chance": {"a": 0.5, "b": 0.5, "later": 0.1}, "size": 5}, name=name)
        assert one.per_level("chance", 0.0).tolist() == [[0.5], [0.5]] and one.config["size"] == "5"
    rows = [(run, "a", step, "accuracy", 1) for run, step in ((0, 0), ("0", 1))]
    assert [one.name for one in from_table(rows)] == ["0"]
    (one,) = measured_run({"levels": ["a", "later"]}, "a", 0)   # it may still go on
    assert one.levels == ["a", "later"]


@pytest.mark.parametrize("config, words, name", [
    ({}, r"configs has run 'x', the table \['0'\]", "x"),
    ({"chance": {"a": 0.1, "B": 0.1}}, "'0': chance names .'B', 'a'., but the levels are", 0),
    ({"levels": ["a", "y"]}, "'0': levels names .'a', 'y'., but the levels are", 0),
    ({"chance_log_prob": 0}, "chance_log_prob 0: expected numbers of at least -inf and below 0", 0),
    ({"warmup": "x"}, "warmup 'x': expected numbers", 0),
    ({"parameters": "x"}, "parameters 'x': expected numbers", 0)])
def test_a_config_that_fits_nothing_is_refused(config, words, name):
    with pytest.raises(ValueError, match=words):
        measured_run(config, name=name)


# ------------------------------------------------------------------------------------------------
# Runs that others train

def test_the_example_knows_by_heart_first_and_generalises_later(tmp_path, capsys):
    own_run.main(tmp_path / "grokking", seeds=1)
    rows = (tmp_path / "grokking/mine-s0/metrics.jsonl").read_text()
    own_run.main(tmp_path / "grokking", seeds=1)                            # it is done already
    assert (tmp_path / "grokking/mine-s0/metrics.jsonl").read_text() == rows
    status, screen, err = analyse(capsys, tmp_path / "grokking")
    assert status == 0, err
    found = {key[2]: int(step or 0) for key, step in events_of(tmp_path / "grokking").items()}
    assert 0 < found["accuracy_train"] < found["accuracy"] < 300
    assert found["weight norm"] and found["hessian_top"]
    last = json.loads(rows.splitlines()[-1])["levels"]["add mod 13"]
    assert last["accuracy_train"] == 1 and last["accuracy_test"] > 0.9


def test_an_own_run_goes_on_from_its_state_or_begins_again(tmp_path, capsys):
    """Stopped after 5 of 10 snapshots: with a state it goes on, without one it begins again."""
    import models
    asked = []

    def made_up(state, end, keeps):
        asked.append(state)
        for step in range(state["step"] + 1 if state else 0, end):
            now = {"step": step} if keeps else None
            yield models.Snapshot(step, torch.nn.Linear(1, 1), None, lambda now=now: now)
            if step == 4 and end == 5:
                raise KeyboardInterrupt

    def measured(snapshot):
        return {"levels": {"a": {"accuracy": torch.tensor(snapshot.step / 10),
                                 "rankme": np.float64(2), "parts": {"x": [1, 2]}}}}
    for keeps, state in ((True, {"step": 4}), (False, None)):
        folder = tmp_path / f"sweep{keeps}" / "mine"
        shorter = functools.partial(made_up, end=5, keeps=keeps)
        with pytest.raises(KeyboardInterrupt):
            sweep.record(folder, {"path": Path("x")}, shorter, measured, seconds=0)
        rows, configs, missing = sweep.load(folder.parent)                  # while it goes on
        (one,) = from_table(rows, configs)
        assert one.steps.tolist() == [0, 1, 2, 3, 4] and not missing
        assert one.measures == ["parts.x"] and one.table("parts.x")[0, 0] == 1
        asked.clear()
        longer = functools.partial(made_up, end=10, keeps=keeps)
        sweep.record(folder, {"path": Path("x")}, longer, measured)
        steps = [row["step"] for row in sweep.read_rows(folder / "metrics.jsonl")]
        assert asked == [state] and steps == list(range(10))


def test_a_callback_writes_curves_while_a_trainer_trains(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 16
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=8, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    seen = []

    def measure(model):
        seen.append(sum(p.numel() for p in model.parameters()))
        return {"accuracy": float(len(seen) > 4)}
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=40, eval_strategy="steps", eval_steps=2, save_strategy="no",
        per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True)
    transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data[:4], callbacks=[
        own_callbacks.for_trainer(tmp_path / "curves.jsonl", measure)]).train()
    found, (one,) = planted(tmp_path / "curves.jsonl")
    assert one.steps.tolist() == list(range(2, 41, 2)) and found == {("mine", "all"): 10}
    assert set(seen) == {sum(p.numel() for p in model.parameters())}


def test_a_callback_writes_curves_while_lightning_trains(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Line(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(1, 1)

        def training_step(self, batch, number):
            return self.line(batch).square().mean()

        def validation_step(self, batch, number):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)
    values = iter([0.0] * 5 + [1.0] * 15)
    trainer = lightning.Trainer(
        max_epochs=20, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[own_callbacks.for_lightning(
            tmp_path / "curves.jsonl", lambda model: {"accuracy": next(values)})])
    trainer.fit(Line(), loader, loader)
    found, (one,) = planted(tmp_path / "curves.jsonl")
    assert one.steps.tolist() == list(range(2, 41, 2)) and found == {("mine", "all"): 12}
