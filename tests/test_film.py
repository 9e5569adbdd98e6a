"""The film: recorded beside the rows, the same when resumed, small; a page that plays it.

A film is a run's own: so these tests train a model of a thousand parameters.  The last ones open
the page in a browser, with keys and a slider, and skip where there is none.
"""
import dataclasses
import json
import math
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import claims
import emergence
import faults
import film
import models
import run
import sweep
import tasks
from faults import call, rows_of, same_weights

MEGABYTES = 3e6
TRAIN = models.TrainConfig(levels=("parity-1", "copy-2", "sham-modadd-2"), steps=12, snapshots=13,
                           per_level=4, warmup=2)
MEASURE = sweep.MeasureConfig(measures=("rankme",), eval_examples=30, film=6)
COMMAND = ["sweep", "--task", "parity", "--sizes", "nano", "--seeds", "2", "--steps", "30",
           "--measures", "rankme", "--workers", "1"]
for _field in ("snapshots=16", "per_level=4", "eval_examples=20", "threads=1"):
    COMMAND += ["--set", _field]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    faults.small(monkeypatch)


def job(folder, train=TRAIN, **changes):
    return sweep.Job(folder, train, dataclasses.replace(MEASURE, **changes))


def killed(one, at):
    """Carry out a run up to its snapshot number `at`, which is measured but not written down."""
    measurement = sweep.Measurement(one.train, one.measure)

    def measure(snapshot):
        row = measurement(snapshot)
        if snapshot.step == at:
            raise MemoryError("planted")
        return row
    with pytest.raises(MemoryError):
        sweep.record(one.folder, sweep.run_config(one.train, one.measure),
                     lambda state: models.train(one.train, state), measure)


# --------------------------------------------------------------------------------------------------
# Recording

def test_a_film_changes_neither_weights_nor_rows_and_can_be_turned_off(tmp_path):
    for name, film in (("with", 6), ("without", 0)):
        sweep.run_one(job(tmp_path / name, film=film))
    assert rows_of(tmp_path / "with") == rows_of(tmp_path / "without")
    assert same_weights(tmp_path / "with", tmp_path / "without")
    assert not (tmp_path / "without/film.jsonl").exists()

    frames = sweep.read_rows(tmp_path / "with/film.jsonl")
    assert [frame["step"] for frame in frames] == [0, 2, 5, 7, 10, 12]      # evenly over 0 to 12
    assert all(list(frame["levels"]) == ["parity-1", "copy-2"] for frame in frames)     # no sham
    first = frames[0]["levels"]["parity-1"]
    assert first["lines"][0] == "parity 0 0 0 = 0" and set(first["answers"]) == {"0", "1"}


@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_killed_run_comes_to_the_same_film(at, tmp_path):
    sweep.run_one(job(tmp_path / "whole"))
    one = job(tmp_path / "run")
    killed(one, at)
    with open(tmp_path / "run/film.jsonl", "a") as file:        # what no checkpoint knows of
        file.write('{"step": 11, "levels": {}}\n{"step": 12, "lev')
    sweep.run_one(one)
    whole, again = [(tmp_path / name / "film.jsonl").read_bytes() for name in ("whole", "run")]
    assert again == whole


def test_a_run_that_is_stopped_early_and_goes_on_has_the_film_of_one_that_was_not(tmp_path):
    sweep.run_one(job(tmp_path / "whole"))
    sweep.run_one(job(tmp_path / "run", dataclasses.replace(TRAIN, stop=6)))
    sweep.run_one(job(tmp_path / "run", dataclasses.replace(TRAIN, stop=12)))
    whole, again = [(tmp_path / name / "film.jsonl").read_bytes() for name in ("whole", "run")]
    assert again == whole


def test_a_run_with_another_film_is_another_run(tmp_path):
    with pytest.raises(sweep.BadInput, match="film was 6, now 0"):
        sweep.run_one(job(tmp_path / "other"))
        sweep.run_one(job(tmp_path / "other", film=0))


def frame_of(states, step=0, level="modadd-2"):
    """The film's frame of made-up states (N, D)."""
    lines = tasks.eval_lines(*tasks.split_name(level), len(states))
    count = len(lines.weights)
    layers = states[:count].repeat(2, 1, 1)
    evals = SimpleNamespace(levels=[level], lines={(level, "accuracy"): lines}, look=lambda _: {
        (level, "accuracy"): SimpleNamespace(weights=lines.weights, first=layers)})
    return sweep.film_frame(SimpleNamespace(step=step), evals), lines.weights, layers[0].double()


def test_a_frame_holds_the_states_as_rankme_sees_them(generator):
    """Against the states themselves: the share of each direction, and places to a hundredth."""
    spread = torch.tensor([1, 0.8, 0.5, 0.3] + [0.001] * 28)
    states = torch.randn(150, 32, generator=generator) * spread + 3
    frame, weights, exact = frame_of(states)
    one, root = frame["modadd-2"], weights.sqrt()[:, None]
    exact = exact / (root * exact).norm()
    shares = torch.linalg.svdvals(root * exact)
    np.testing.assert_allclose(one["shares"], (shares / shares.sum())[:16], rtol=1e-9)
    found = film.states_of(one) @ film.directions_of(one).T
    centred = (exact - weights @ exact).numpy()
    assert abs(found - centred).max() < 0.01 * abs(centred).max()


@pytest.mark.parametrize("value, share", [(1, 1), (0, 0), (math.inf, 0), (math.nan, 0)])
def test_states_that_are_all_equal_or_not_finite_have_a_frame_too(value, share):
    frame, *_ = frame_of(torch.full((30, 8), float(value)))
    one = frame["modadd-2"]
    assert one["shares"][0] == pytest.approx(share) and np.isfinite(film.states_of(one)).all()
    assert np.isfinite(film.plane_of(one, one)).all()


@pytest.mark.parametrize("size", models.SIZES)
def test_a_film_of_any_size_and_of_all_tasks_is_below_three_megabytes(size, generator, monkeypatch):
    """Of 28 levels of a joint sweep four are filmed, 60 frames of 200 points each."""
    monkeypatch.undo()                                          # the sizes as they are
    levels = [f"{name}-{k}" for name in tasks.TASKS for k in tasks.LEVELS]
    filmed = sweep.filmed_levels([*levels, *tasks.controls(tuple(tasks.TASKS), 4)])
    assert len(filmed) == sweep.FILM_LEVELS and len(levels) == 24
    states = torch.randn(260, models.SIZES[size].n_embd, generator=generator)
    one = frame_of(states, step=1, level="multiply-3")[0]["multiply-3"]
    assert len(one["shares"]) == 16 and len(film.states_of(one)) == sweep.FILM_LINES
    text = json.dumps(sweep.rounded({"step": 1, "levels": {level: one for level in filmed}}))
    lines = 200 * sweep.FILM_LEVELS * 60                        # the frame of step 0 names them
    assert sweep.FRAMES * len(text) + lines < MEGABYTES


def test_the_first_hundred_steps_are_well_covered():
    for many in (3, 12, 28):
        fields = models.defaults(many)
        steps = fields["steps"]
        snapshots = models.snapshot_steps(steps, fields["snapshots"])
        chosen = models.evenly_spaced(snapshots, sweep.FRAMES)
        assert len(chosen) == sweep.FRAMES == run.MOST["film"]
        assert sum(step <= 100 for step in chosen) >= 17 and {0, steps} <= chosen


# --------------------------------------------------------------------------------------------------
# The player

@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A sweep of two runs by the command line: (its folder, what it printed)."""
    out = tmp_path_factory.mktemp("filmed")
    with pytest.MonkeyPatch.context() as patch:
        faults.small(patch)
        patch.setattr(run.sys, "argv", ["run.py", *COMMAND, "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            run.main()
    assert not stop.value.code
    return out / "parity"


@pytest.fixture
def copied(filmed, tmp_path):
    shutil.copytree(filmed, tmp_path / "parity")
    return tmp_path / "parity"


def data_of(page):
    """What the player is given."""
    (found,) = re.findall('<script type="application/json">(.*?)</script>', page, re.S)
    return json.loads(found)


def events_of(folder):
    runs, _ = run.select(folder)
    return emergence.event_table(runs, **dataclasses.asdict(claims.Specification()))


def planted(step, radius):
    """A frame of two levels' worth of points on a circle, as film_frame writes it."""
    angles = torch.linspace(0, 2 * math.pi, 9)[:8]
    centred = radius * torch.stack([angles.cos(), angles.sin()], 1).double()
    states, scales = sweep.in_bytes(centred)
    directions, _ = sweep.in_bytes(torch.eye(5)[:, :2].double())
    one = {"length": 1.0, "shares": [0.9, 0.1], "states": states, "scales": scales,
           "directions": directions, "lines": ["<b>"] * 8, "answers": ["10", "9"] * 4}
    return {"step": step, "levels": {"parity-1": one}}


def test_points_that_fall_together_are_states_that_become_equal(filmed):
    events = events_of(filmed)
    steps = [int(step) for step in events.runs[0].steps]
    radii = {0: 0.1, 1: 0.01, len(steps) - 1: 1.0}
    frames = [planted(steps[i], radius) for i, radius in radii.items()]
    (level,) = data_of(film.player(events, "nano-s0", frames))
    found = [np.hypot(*np.reshape(cloud, (-1, 2)).T) for cloud in level["clouds"]]
    expected = [1000 * math.log1p(r / film.INNER) / math.log1p(1 / film.INNER)
                for r in radii.values()]
    for radius, exact in zip(found, expected):
        np.testing.assert_allclose(radius, exact, atol=1.5)
    assert level["words"] == ["9", "10"] and level["rings"][-1]["text"] == "100%"
    assert level["rings"][-1]["r"] == pytest.approx(1000, abs=1)
    assert [level["x"][i] for i in level["here"]] == [level["x"][i] for i in radii]


def test_the_plane_sees_what_differs_before_training_and_at_the_end():
    """Directions 0 and 1 before, 2 and 3 at the end: each of them keeps half of its length."""
    frames = []
    for axes in ([0, 1], [2, 3]):
        codes, _ = sweep.in_bytes(torch.eye(6)[:, axes].double())
        frames.append({"directions": codes, "scales": [1, 1]})
    plane = film.plane_of(*frames)
    np.testing.assert_allclose(plane.T @ plane, np.eye(2), atol=1e-12)
    np.testing.assert_allclose((plane ** 2).sum(1), [0.5] * 4 + [0, 0], atol=1e-12)


@pytest.mark.parametrize("step, expected", [
    (0, "Step 0: before training"), (20, "Step 20: collapse, the states become alike"),
    (90, "Step 90: the floor, reached at step 90"),
    (139, "Step 139: recovery since step 110, the states part again"),
    (363, "Step 363: emerged at step 206")])
def test_a_caption_says_what_happens(step, expected):
    dates = {"floor": 90, "onset": 110, "emergence": 206}
    assert film.caption_of(step, 1.5, 0.123, dates) == [expected, "RankMe 1.5, accuracy 12%"]
    assert film.caption_of(step, math.nan, 0.1, {}, "epoch")[1] == "accuracy 10%"


def test_the_report_of_a_sweep_has_the_film_of_its_first_run(filmed):
    page = (filmed / "report.html").read_text()
    levels = data_of(page)
    assert [level["level"] for level in levels] == ["parity-1", "parity-2", "parity-3"]
    assert (filmed / "nano-s0/film.jsonl").exists() and not (filmed / "nano-s1/film.jsonl").exists()
    events = events_of(filmed)
    for k, level in enumerate(levels):
        assert level["steps"] == [int(step) for step in events.runs[0].steps]   # fewer than 60
        np.testing.assert_allclose(level["accuracy"], events.runs[0].accuracy[k], atol=1e-4)
        assert len(level["clouds"]) == len(level["bars"]) == len(level["captions"])
        assert max(map(max, level["clouds"])) <= 1000
    assert "http" not in page and "<link" not in page and "@import" not in page
    assert page.count('<figure><svg viewBox') == len(levels[0]["moments"])      # for print


def test_a_name_cannot_leave_the_data(filmed):
    bad = planted(0, 0.1)
    bad["levels"]["parity-1"]["lines"] = ["</script><script>alert(1)</script>"] * 8
    page = film.player(events_of(filmed), "nano-s0", [bad])
    assert "alert(1)</script>" not in page and page.count("</script>") == 2
    assert data_of(page)[0]["lines"][0].startswith("</script>")


@pytest.mark.parametrize("where", ["", "nano-s0"])
def test_watch_writes_a_page_and_opens_it_unless_told_not_to(where, copied, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(run.webbrowser, "open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    folder = copied / where
    status, screen, err = call(capsys, "watch", folder, "--no-open")
    assert status == 0 and not opened, err
    count = len(sweep.read_rows(copied / "nano-s0/film.jsonl"))
    assert screen == f"{folder}/watch.html: nano-s0, {count} frames\n"
    page = (folder / "watch.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "http" not in page and len(data_of(page)) == 3
    assert call(capsys, "watch", folder)[0] == 0
    assert opened == [(folder / "watch.html").resolve().as_uri()]


def test_a_film_can_be_turned_off_or_asked_of_every_run(tmp_path, capsys):
    for film, names in (("0", []), ("3", ["nano-s0", "nano-s1"])):
        out = tmp_path / film
        assert call(capsys, *COMMAND, "--set", f"film={film}", "--out", out)[0] == 0
        assert [path.parent.name for path in sorted(out.glob("*/*/film.jsonl"))] == names
    status, _, err = call(capsys, "watch", tmp_path / "0/parity")
    assert status == 2 and "no film" in err and "--set film=60" in err and err.count("\n") == 1
    assert not (tmp_path / "0/parity/watch.html").exists()
    status, _, err = call(capsys, *COMMAND, "--set", "film=61", "--out", tmp_path / "61")
    assert status == 2 and "film: expected a number from 0 to 60" in err
    # the same command, but without --set film=0: the runs stay as they are
    assert call(capsys, *COMMAND, "--out", tmp_path / "0")[0] == 0


DAMAGE = {
    "cut short": (lambda text: text[:-200], 0, ""),             # its last frame is missing
    "no frames": (lambda text: "", 2, "holds no film"),
    "not JSON": (lambda text: "{\n" + text, 1, "film.jsonl is damaged; delete it"),
    "no states": (lambda text: text.replace('"states"', '"s"'), 2, "delete its film.jsonl"),
    "no base64": (lambda text: text.replace('"states": "', '"states": "*'), 2, "delete its"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_film_is_named_in_one_sentence(damage, copied, capsys):
    change, status, words = DAMAGE[damage]
    path = copied / "nano-s0/film.jsonl"
    path.write_text(change(path.read_text()))
    found, _, err = call(capsys, "watch", copied, "--no-open")
    assert found == status and words in err and err.count("\n") == (status > 0)
    found, screen, err = call(capsys, "analyse", copied)
    assert found == 0, err                                      # a film stops no report
    assert ("No film is shown" in screen) == ("delete it" in words)


@pytest.mark.parametrize("folder, words", [
    ("nowhere", "is not a directory"), ("empty", "holds no finished run")])
def test_watch_refuses_what_is_no_sweep(folder, words, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, _, err = call(capsys, "watch", tmp_path / folder)
    assert status == 2 and words in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# In a browser

@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = [next(filter(None, map(shutil.which, names)), None) for names in (
        ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))]
    if not (program and driver):
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync",
                     "disable-background-networking", "disable-component-update",
                     f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def emulate(browser, width, **features):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
        {"name": name.replace("_", "-"), "value": value} for name, value in features.items()]})


def requests(browser, page):
    """The addresses that a page asked for, itself among them."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {message["params"]["request"]["url"].partition(",")[0] for message in messages
            if message["method"] == "Network.requestWillBeSent"
            and message["params"]["documentURL"] == page}


def text(browser, selector):
    return browser.find_element("css selector", selector).text


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_the_report_plays_its_film_from_the_disk_by_slider_keys_and_buttons(
        width, filmed, browser):
    from selenium.webdriver.common.keys import Keys
    emulate(browser, width, prefers_reduced_motion="reduce")
    address = (filmed / "report.html").resolve().as_uri()
    browser.get(address)
    last = len(data_of((filmed / "report.html").read_text())[0]["steps"]) - 1
    slider = browser.find_element("css selector", ".film input")

    def now():
        return int(slider.get_attribute("value"))
    assert now() == 0 and text(browser, ".film .caption b") == "Step 0: before training"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    # the slider itself, moved as a finger or mouse does
    browser.execute_script("arguments[0].value = 5; arguments[0].dispatchEvent(new Event('input'))",
                           slider)
    assert "before training" not in text(browser, ".film .caption b")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert now() == 6 and f"{slider.get_attribute('aria-valuetext')}".startswith("Step ")
    slider.send_keys(Keys.END)
    assert now() == last
    slider.send_keys(Keys.ARROW_LEFT)
    assert now() == last - 1
    slider.send_keys(Keys.HOME)
    assert now() == 0
    slider.send_keys("2")
    pressed = browser.find_elements("css selector", ".film .levels [aria-pressed=true]")
    assert [button.text for button in pressed] == ["parity-2"]

    slider.send_keys(Keys.SPACE)                                # plays, and stops again
    assert text(browser, ".film .play").endswith("Pause")
    until = time.monotonic() + 10
    while now() < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert now() >= 2
    slider.send_keys(Keys.SPACE)
    assert text(browser, ".film .play").endswith("Play")
    browser.find_elements("css selector", ".film .moments button")[-1].click()
    assert now() == last
    dots = browser.find_elements("css selector", ".film .cloud .dot")
    assert dots and all("translate" in dot.get_attribute("style") for dot in dots)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert requests(browser, address) <= {address, "data:image/png;base64"}


@pytest.mark.browser
def test_the_page_starts_by_itself_unless_motion_is_unwanted_and_is_dark_where_asked(
        copied, browser, capsys):
    assert call(capsys, "watch", copied, "--no-open")[0] == 0
    papers = set()
    for motion, scheme, label in (("reduce", "light", "Play"), ("no-preference", "dark", "Pause")):
        emulate(browser, 1200, prefers_reduced_motion=motion, prefers_color_scheme=scheme)
        browser.get((copied / "watch.html").resolve().as_uri())
        assert text(browser, ".film .play").endswith(label)
        papers.add(browser.execute_script(
            "return getComputedStyle(document.querySelector('.film')).backgroundColor"))
    assert papers == {"rgb(255, 255, 255)", "rgb(18, 22, 27)"}
    browser.find_element("css selector", "body").send_keys(" ")  # the whole page has the keys
    assert text(browser, ".film .play").endswith("Play")
    assert browser.get_log("browser") == []
