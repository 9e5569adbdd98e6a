"""Chapter 8: film.  The collapse and the recovery as a moving picture.

A sweep's first run keeps hidden states of a few task-levels at up to 60 snapshots (film.jsonl, of
sweep.py).  Here they become a player: a cloud of states beside the curves, with a slider and keys.

    player      events and frames -> HTML, for report.html
    page        the same as a page of its own, for `watch`

The pages need no network, and work from the file system.  This file dates no event: dates and
curves come with the events.

Letters in shapes:  F frames, N lines of a task-level, D width of the model.
"""
import base64
import math

import numpy as np

from report import fill, missing, step_text

INNER = 0.03                                                # of the cloud's scale; see one_level
RINGS = (0.03, 0.1, 0.3, 1)


def player(events, name, frames):
    """The player as HTML: a cloud of hidden states beside the curves, with a slider and keys.

    name: the run that was filmed.  frames: of sweep.find_film, the first of them of step 0.
    Raises ValueError for a damaged film."""
    run = [run.name for run in events.runs].index(name)
    try:
        levels = [one_level(events, run, level, frames)
                  for level in frames[0]["levels"] if level in events.levels]
        if not levels:
            raise LookupError("none of its levels is in the sweep")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the film of {name} is damaged ({error!r:.80}); delete its "
                         "film.jsonl: nothing else needs it") from None
    return fill(PLAYER, name=name, levels=levels)


def page(title, events, name, frames):
    """The player as a page of its own."""
    return fill(PAGE, title=title, player=player(events, name, frames))


def one_level(events, r, level, frames):
    """All that the player shows of one task-level of run number r, ready to be drawn.

    A point is a line.  Its place is the difference of its state from the mean of all states, in
    root mean square lengths of these, on a plane that stays the same: so points that fall together
    are states that become equal.  Angles are those of the plane.  Distances from the middle are
    logarithmic beyond INNER, for before training they are a tenth of those at the end.  They are
    written down as whole thousandths of the largest."""
    run, k = events.runs[r], events.levels.index(level)
    of = [frame["levels"][level] for frame in frames]
    plane = plane_of(of[0], of[-1])
    clouds = np.array([states_of(one) @ (directions_of(one).T @ plane) for one in of])
    distance = np.linalg.norm(clouds, axis=2, keepdims=True)                # (F, N, 1)
    outer = distance.max() or 1
    scale = np.log1p(distance / INNER) / np.maximum(distance, 1e-300) / np.log1p(outer / INNER)

    by, row = events.dated_by, events.rows[k]
    rank, accuracy = run.rankme_at(by["position"], by["layer"])[row], run.accuracy[row]
    dates = {"floor": events.floor_step[r, k], "onset": events.onset[r, k],
             "emergence": events.emergence[r, k]}
    dates = {event: float(step) for event, step in dates.items() if math.isfinite(step)}
    steps = [frame["step"] for frame in frames]
    here = np.searchsorted(run.steps, steps)                # every frame is one of the snapshots
    answers = sorted(set(of[0]["answers"]), key=lambda word: (len(word), word))
    tops = [2 ** n for n in range(11) if 2 ** n <= 1.4 * np.nanmax([1, *rank])]
    return {
        "level": level, "steps": steps, "lines": of[0]["lines"], "words": answers,
        "answers": [answers.index(word) for word in of[0]["answers"]],
        "clouds": (1000 * scale * clouds).round().astype(int).reshape(len(of), -1).tolist(),
        "rings": [{"text": f"{ring:.0%}", "r": round(1000 * math.log1p(ring / INNER)
                                                     / math.log1p(outer / INNER))}
                  for ring in RINGS if ring <= outer],
        "bars": [[round(share, 4) for share in one["shares"]] for one in of],
        "x": [round(place_of(step, run.steps[-1]), 4) for step in run.steps], "here": here.tolist(),
        "accuracy": [None if missing(x) else round(x, 4) for x in accuracy.tolist()],
        "rank": [None if missing(x) else round(x, 3) for x in rank.tolist()],
        "tops": tops, "events": {event: [step_text(step), place_of(step, run.steps[-1])]
                                 for event, step in dates.items() if event != "floor"},
        "ticks": [[f"{tick:,}", place] for tick in (0, 10, 100, 1000, 10_000)
                  if (place := place_of(tick, run.steps[-1])) < 0.8]
        + [[f"{run.config['unit']} {run.steps[-1]:,.0f}", 1]],
        "captions": [caption_of(step, rank[i], accuracy[i], dates, run.config["unit"])
                     for step, i in zip(steps, here)],
        "moments": moments_of(steps, dates)}


def plane_of(first, last):
    """(D, 2).  The sum of the two leading directions before training and the two at the end.

    Where states differ before training they hardly differ at the end, and the other way round.  So
    the leading directions of all frames together show no collapse: this plane sees both."""
    total = directions_of(first)[:, :2] + directions_of(last)[:, :2]
    return np.linalg.qr(total)[0]


def whole_numbers(one, name):
    """What sweep.in_bytes wrote, (rows, 6)."""
    codes = base64.b64decode(one[name], validate=True)
    return np.frombuffer(codes, np.int8).reshape(-1, len(one["scales"]))


def states_of(one):
    """(N, 6) coordinates of one frame of a task-level along its directions."""
    return whole_numbers(one, "states") * np.array(one["scales"])


def directions_of(one):
    """(D, 6), of length 1."""
    directions = whole_numbers(one, "directions").astype(float)
    return directions / np.maximum(np.linalg.norm(directions, axis=0), 1)


def place_of(step, last):
    """0 to 1, as on the axes of the figures: linear up to step 10, then logarithmic."""
    def place(x):
        return 0.6 * x / 10 if x <= 10 else 0.6 + math.log10(x / 10)
    return place(step) / (place(last) or 1)


def caption_of(step, rank, accuracy, dates, unit="step"):
    """What happens at one frame, in words: [a headline, the numbers].

    >>> caption_of(112, 2.13, 0.16, {"floor": 90, "onset": 110, "emergence": 206})
    ['Step 112: recovery since step 110, the states part again', 'RankMe 2.1, accuracy 16%']
    """
    phase = "training" if step else "before training"
    if step >= dates.get("emergence", math.inf):
        phase = f"emerged at {unit} {step_text(dates['emergence'])}"
    elif step >= dates.get("onset", math.inf):
        phase = f"recovery since {unit} {step_text(dates['onset'])}, the states part again"
    elif step >= dates.get("floor", math.inf):
        phase = f"the floor, reached at {unit} {step_text(dates['floor'])}"
    elif step > 0 and "floor" in dates:
        phase = "collapse, the states become alike"
    numbers = [] if missing(rank) else [f"RankMe {rank:.1f}"]
    numbers += [] if missing(accuracy) else [f"accuracy {accuracy:.0%}"]
    return [f"{unit.capitalize()} {step_text(step)}: {phase}", ", ".join(numbers)]


def moments_of(steps, dates):
    """[[name, number of the first frame that shows it]], in the order of time, none twice.

    >>> moments_of([0, 10, 20, 30], {"floor": 10, "onset": 15, "emergence": 30})
    [['start', 0], ['floor', 1], ['recovery', 2], ['emergence', 3]]
    """
    names = {"floor": "floor", "onset": "recovery", "emergence": "emergence"}
    found = {0: "start"}
    for event, name in names.items():
        later = [i for i, step in enumerate(steps) if step >= dates.get(event, math.inf)]
        if later:
            found.setdefault(later[0], name)
    found.setdefault(len(steps) - 1, "end")
    return [[name, i] for i, name in sorted(found.items())]


# ------------------------------------------------------------------------------------------------
# The player and its page: templates of jinja2

PLAYER = """<section class="film" tabindex="-1"
 aria-label="Film of the hidden states of {{ name }}">
<style>
.film { --paper: #fff; --ink: #1c2128; --soft: #57606a; --line: #d0d7de; --rank: #0072b2;
  --right: #b84c00; --tone: .6; color: var(--ink); background: var(--paper);
  font: 15px/1.4 system-ui, sans-serif; margin: 2rem 0; outline: none }
@media screen and (prefers-color-scheme: dark) { .film { --paper: #12161b; --ink: #e8ecf1;
  --soft: #a3adb9; --line: #38424d; --rank: #5cb8f0; --right: #ff9d57; --tone: .76 } }
.film header { display: flex; flex-wrap: wrap; justify-content: space-between }
.film h2 { font-size: 1.2rem; margin: 0 0 .5rem }
.film figure, .film p { margin: 0 } .film small, .film figcaption { color: var(--soft) }
.film svg { display: block; width: 100%; overflow: visible; touch-action: pan-y }
.film circle.dot, .film .key i { fill: hsl(var(--hue) 65% 45%); background: hsl(var(--hue) 65% 45%);
  stroke: var(--paper); stroke-width: 5 }
@supports (color: oklch(.6 .15 200)) { .film circle.dot, .film .key i {
  fill: oklch(var(--tone) .16 var(--hue)); background: oklch(var(--tone) .16 var(--hue)) } }
.film .ring { fill: none; stroke: var(--line); stroke-width: 5 }
.film text { fill: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums;
  stroke: var(--paper); stroke-width: 3; paint-order: stroke; stroke-linejoin: round }
.film .cloud text { font-size: 56px; stroke-width: 18 }
.film .cloud text.word { fill: var(--ink); font-size: 96px; font-weight: 700; stroke-width: 26;
  text-anchor: middle; dominant-baseline: central }
.film .axis { stroke: var(--line) } .film .curve { fill: none; stroke-width: 2.2;
  stroke-linejoin: round }
.film .now { stroke: var(--ink); stroke-width: 1.5 } .film .event { stroke-width: 1.3 }
.film .bar { fill: var(--rank); transform-box: fill-box; transform-origin: bottom }
.film .dot, .film .word, .film .bar { transition: transform .13s linear }
.film .caption { min-height: 4.4rem } .film .caption b { font-size: 1.1rem; display: block }
.film .levels, .film .moments { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: .6rem }
.film button { font: inherit; color: var(--ink); background: transparent; padding: .45rem .8rem;
  border: 1px solid var(--soft); border-radius: .4rem; min-height: 2.75rem; cursor: pointer }
.film button[aria-pressed=true] { background: var(--ink); color: var(--paper) }
.film button:focus-visible, .film input:focus-visible { outline: 3px solid var(--rank);
  outline-offset: 2px }
.film .controls { display: flex; gap: .8rem; align-items: center; margin: .5rem 0 }
.film .moments button { font-size: 13px; padding: .3rem .55rem; min-height: 2.3rem }
.film .play { min-width: 6.4rem; background: var(--rank); color: var(--paper); font-weight: 600;
  border-color: transparent }
.film input { flex: 1; min-width: 0; height: 2.75rem; accent-color: var(--rank); margin: 0 }
.film .key { display: flex; flex-wrap: wrap; gap: .1rem .65rem; font-size: 13px; margin-top: .3rem }
.film .key i { display: inline-block; width: .8em; height: .8em; border-radius: 50% }
.film .charts { display: grid; gap: .5rem; align-content: space-between }
.film .charts b { color: var(--ink); font-variant-numeric: tabular-nums }
.film .charts figcaption { font-size: 14px } .film .charts svg { cursor: ew-resize }
.film .stills { display: none; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)) }
.film .about { margin-top: .8rem; color: var(--soft); font-size: 14px; max-width: 46rem }
@media (min-width: 48rem) {
  .film .player { display: grid; grid-template-columns: minmax(0, 9fr) minmax(0, 10fr);
    column-gap: 2.5rem } .film .player > * { grid-column: 1 / -1 }
  .film .player > .cloud { grid-column: 1 } .film .player > .charts { grid-column: 2; grid-row: 2 }
  .film .charts text { font-size: 10px } .film h2 { font-size: 1.5rem }
  .film .caption { min-height: 3.1rem } .film .caption b { font-size: 1.3rem }
}
@media (prefers-reduced-motion: reduce) { .film * { transition: none !important } }
@media print { .film .player, .film .levels, .film .keys { display: none }
  .film .stills { display: grid } }
</style>
<noscript><style>.film .player, .film .levels, .film .keys { display: none }
.film .stills { display: grid }</style></noscript>
<header><h2>The collapse and the recovery</h2>
<div class="levels" role="group" aria-label="Task-level"></div></header>
<div class="player">
<p class="caption" aria-live="polite"><b></b><span></span></p>
<figure class="cloud"><svg viewBox="-1035 -1035 2070 2070" role="img"></svg>
<figcaption class="key"></figcaption></figure>
<div class="controls"><button class="play" type="button">Play</button>
<input type="range" min="0" value="0" step="1" aria-label="Training step"></div>
<div class="moments" role="group" aria-label="Jump to"></div>
<div class="charts">
<figure><figcaption>Accuracy <b></b></figcaption>
<svg class="accuracy" viewBox="0 0 420 118" role="img"></svg></figure>
<figure class="ranks"><figcaption>RankMe, the number of directions in use <b></b></figcaption>
<svg class="rank" viewBox="0 0 420 118" role="img"></svg></figure>
<figure><figcaption>Share of each direction <b></b></figcaption>
<svg class="shares" viewBox="0 0 420 92" role="img"></svg></figure>
</div>
</div>
<div class="stills">
{% set one = levels[0] %}
{% for name, frame in one.moments %}
<figure><svg viewBox="-1035 -1035 2070 2070" role="img" aria-label="{{ one.captions[frame][0] }}">
{% for ring in one.rings %}<circle class="ring" r="{{ ring.r }}"/>{% endfor %}
{% for answer in one.answers %}
<circle class="dot" r="26" style="--hue: {{ 25 + 330 * answer // one.words | length }}" cx="
{{- one.clouds[frame][2 * loop.index0] }}" cy="{{ one.clouds[frame][2 * loop.index0 + 1] }}"/>
{% endfor %}
</svg><figcaption>{{ one.level }}. {{ one.captions[frame] | join(". ") }}</figcaption></figure>
{% endfor %}
</div>
<p class="about">Each dot is a line, such as &ldquo;{{ one.lines[-1] }}&rdquo;, of run {{ name }}:
its hidden state where the first answer token is predicted, after the last block. Colour: that
token. Distance from the middle: how far the state is from the mean of all, in per cent of the
states' length (rings, logarithmic). The plane is the same at every step: it sees both the
directions in which states differ before training and those in which they differ at the end. Bars:
singular values as shares of their sum, of the states with their mean; RankMe is how many equal bars
would be as spread out. <span class="keys">Keys: arrows, space, Home, End, and 1 to
{{ levels | length }} for the task-level.</span></p>
<script type="application/json">{{ levels | tojson }}</script>
<script>
(() => {
const film = document.currentScript.parentElement, find = what => film.querySelector(what);
const levels = JSON.parse(find("[type='application/json']").textContent);
const caption = find(".caption"), slider = find("input"), play = find(".play");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let level, frame = 0, timer = null, dots = [], words = [], bars = [], marks = [];

function add(parent, name, attributes, text) {
  const node = document.createElementNS(parent.namespaceURI, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}
const move = (node, x, y) => node.style.transform = `translate(${x}px, ${y}px)`;
const across = x => 36 + 376 * x;

// One level: all that stays while its frames go by.
function choose(number) {
  level = levels[number];
  film.querySelectorAll(".levels button").forEach(
    (button, i) => button.setAttribute("aria-pressed", i === number));
  const svg = find(".cloud svg");
  const hue = answer => `--hue: ${25 + 330 * answer / level.words.length}`;
  svg.replaceChildren();
  for (const {r} of level.rings) add(svg, "circle", {class: "ring", r});
  dots = level.answers.map((answer, i) => {
    const dot = add(svg, "circle", {class: "dot", r: 27, style: hue(answer)});
    add(dot, "title", {}, level.lines[i]);
    return dot;
  });
  for (const {r, text} of level.rings)
    add(svg, "text", {x: 12 + .7071 * r, y: .7071 * r + 40}, text);
  words = level.words.map(word => add(svg, "text", {class: "word"}, word));
  find(".key").replaceChildren("The answer begins with", ...level.words.map((word, i) => {
    const item = document.createElement("span"), swatch = document.createElement("i");
    swatch.style = hue(i);
    item.append(swatch, " " + word);
    return item;
  }));
  const top = Math.log2(1.3 * Math.max(1.5, ...level.rank)), share = v => Math.log2(v) / top;
  find(".ranks").hidden = level.rank.every(v => v === null);
  marks = [
    chart("accuracy", level.accuracy, v => v, [[0, "0"], [1, "100%"]], "--right", "emergence"),
    chart("rank", level.rank, share, level.tops.map(v => [share(v), v]), "--rank", "onset")];
  const shares = find(".shares");
  shares.replaceChildren();
  add(shares, "line", {class: "axis", x1: 36, x2: 412, y1: 88, y2: 88});
  add(shares, "text", {x: 30, y: 14, "text-anchor": "end"}, "100%");
  add(shares, "text", {x: 30, y: 90, "text-anchor": "end"}, "0");
  bars = level.bars[0].map((_, i) => add(shares, "rect", {
    class: "bar", x: 40 + 23.4 * i, y: 8, width: 17, height: 80}));
  find(".moments").replaceChildren(...level.moments.map(([name, at]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${name} (${level.steps[at].toLocaleString("en")})`;
    button.onclick = () => { stop(); show(at); };
    return button;
  }));
  slider.max = level.steps.length - 1;
  show(Math.min(frame, slider.max));
}

// A curve over all snapshots, the dates, and the cursor that `show` moves.
function chart(name, values, height, ticks, colour, event) {
  const svg = find("svg." + name), tall = v => 98 - 90 * height(v);
  svg.replaceChildren();
  add(svg, "line", {class: "axis", x1: 36, x2: 412, y1: 98, y2: 98});
  for (const [text, x] of level.ticks)
    add(svg, "text", {x: across(x), y: 113, "text-anchor": x < 1 ? "middle" : "end"}, text);
  for (const [y, text] of ticks) {
    add(svg, "line", {class: "axis", x1: 32, x2: 36, y1: 98 - 90 * y, y2: 98 - 90 * y});
    add(svg, "text", {x: 30, y: 102 - 90 * y, "text-anchor": "end"}, text);
  }
  for (const [key, [, x]] of Object.entries(level.events)) {
    const tint = `stroke: var(${key === "onset" ? "--rank" : "--right"})`;
    add(svg, "line", {class: "event", x1: across(x), x2: across(x), y1: 4, y2: 98, style: tint,
                      "stroke-dasharray": key === "onset" ? "5 4" : "none"});
  }
  const known = values.flatMap((v, i) => v === null ? [] : `${across(level.x[i])},${tall(v)}`);
  add(svg, "polyline", {class: "curve", points: known.join(" "), style: `stroke: var(${colour})`});
  if (event in level.events) {
    const [step, x] = level.events[event], left = x > .4;
    add(svg, "text", {x: across(x) + (left ? -5 : 5), y: 14, "text-anchor": left ? "end" : "start"},
        `${event === "onset" ? "recovery" : event} ${step}`);
  }
  svg.setAttribute("aria-label", `${name} against training steps, with a cursor`);
  const line = add(svg, "line", {class: "now", y1: 4, y2: 98});
  const dot = add(svg, "circle", {r: 5, style: `fill: var(${colour})`});
  return {line, dot, values, tall};
}

// One frame.
function show(at) {
  frame = Math.max(0, Math.min(level.steps.length - 1, at));
  const cloud = level.clouds[frame], means = level.words.map(() => [0, 0, 0]);
  dots.forEach((dot, i) => {
    const x = cloud[2 * i], y = cloud[2 * i + 1], mean = means[level.answers[i]];
    move(dot, x, y);
    mean[0] += x; mean[1] += y; mean[2] += 1;
  });
  const shown = [];                       // a word stands by its dots, where there is room for it
  means.forEach(([x, y, n], i) => {
    x /= n; y /= n;
    const free = Math.hypot(x, y) > 330 && shown.every(([u, v]) => Math.hypot(x - u, y - v) > 130);
    words[i].style.opacity = free ? 1 : 0;
    move(words[i], x, y);
    if (free) shown.push([x, y]);
  });
  if (2 * shown.length < words.length) words.forEach(word => word.style.opacity = 0);
  level.bars[frame].forEach((share, i) => bars[i].style.transform = `scaleY(${share})`);
  const here = level.here[frame], x = across(level.x[here]);
  for (const {line, dot, values, tall} of marks) {
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    dot.style.display = values[here] === null ? "none" : "";
    move(dot, x, tall(values[here]));
  }
  const [headline, numbers] = level.captions[frame];
  const part = name =>
    (numbers.split(", ").find(text => text.startsWith(name)) || name).slice(name.length);
  caption.children[0].textContent = headline;
  caption.children[1].textContent = numbers;
  const percent = (100 * level.bars[frame][0]).toFixed(0);
  const values = film.querySelectorAll(".charts b");
  values[0].textContent = part("accuracy ");
  values[1].textContent = part("RankMe ");
  values[2].textContent = `${percent}% in the first`;
  slider.value = frame;
  slider.setAttribute("aria-valuetext", `${headline}. ${numbers}`);
  find(".cloud svg").setAttribute("aria-label", `Hidden states of ${level.level}. ${headline}`);
  find(".shares").setAttribute("aria-label", `The first direction has ${percent}% of the sum`);
}

function stop() {
  clearTimeout(timer);
  timer = null;
  play.textContent = "\\u25b6 Play";
  caption.setAttribute("aria-live", "polite");
}
function start() {
  if (frame === level.steps.length - 1) show(0);
  play.textContent = "\\u275a\\u275a Pause";
  caption.setAttribute("aria-live", "off");
  next();
}
function next() {                         // longer where something has happened
  const wait = level.moments.some(([_, at]) => at === frame) ? 1100 : 170;
  timer = setTimeout(() => {
    show(frame + 1);
    if (frame === level.steps.length - 1) stop(); else next();
  }, wait);
}
const toggle = () => timer === null ? start() : stop();

function key(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const to = {ArrowRight: frame + 1, ArrowUp: frame + 1, ArrowLeft: frame - 1,
              ArrowDown: frame - 1, Home: 0, End: level.steps.length - 1}[event.key];
  if (to !== undefined) { stop(); show(to); }
  else if (event.key === " " && event.target.tagName !== "BUTTON") toggle();
  else if (levels[event.key - 1]) choose(event.key - 1);
  else return;
  event.preventDefault();
}

find(".levels").append(...levels.map(({level}, i) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = level;
  button.onclick = () => choose(i);
  return button;
}));
for (const name of ["accuracy", "rank"]) {
  const svg = find("svg." + name);
  const drag = event => {
    if (!(event.buttons & 1)) return;
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width * 420 - 36) / 376;
    const gaps = level.here.map(i => Math.abs(level.x[i] - x));
    stop();
    show(gaps.indexOf(Math.min(...gaps)));
  };
  svg.onpointermove = drag;
  svg.onpointerdown = event => { svg.setPointerCapture(event.pointerId); drag(event); };
}
slider.oninput = () => { stop(); show(+slider.value); };
play.onclick = toggle;
const alone = document.body.classList.contains("watch");
(alone ? document : film).addEventListener("keydown", key);
stop();
choose(0);
const asked = location.hash.match(/^#step=([0-9]+)$/);
if (asked) show(level.steps.filter(step => step <= +asked[1]).length - 1);
else if (alone && !still.matches) start();
})();
</script>
</section>"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}: film</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body { margin: 0 auto; padding: 0 1rem; max-width: 75rem; background: #fff }
@media screen and (prefers-color-scheme: dark) { body { background: #12161b } }
.film { margin: 1rem 0 } .watch .cloud svg { max-width: 66vh; margin: 0 auto }
</style></head><body class="watch">
{{ player | safe }}
</body></html>
"""
