"""Exercises and their tests hold together: the reference gets all points, a blank body none, plausible mistakes none, another correct way all; and
whatever a submission does, it is graded for what it is and the others go on."""
import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

import assignments
from assignments import ROOT, blank, cut_out, exercises, graders, graft, handout, job_for, judge, place

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="grading forks")
ALL = {e.name: e for e in exercises()}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def reference(exercise):
    return cut_out((ROOT / exercise.file).read_text(), exercise.function)[0]


@pytest.fixture(scope="module")
def run():
    with graders(1, seconds=3) as run:
        yield run


def graded(run, pairs, first=False):
    """[(exercise, source of the function)] -> [Grade]"""
    answers = run([job_for(e, source) | {"first": first} for e, source in pairs])
    return [judge(assignments.Grade(e), answer) for (e, _), answer in zip(pairs, answers)]


# ------------------------------------------------------------------------------------------------- marks, tests and points


def test_marks_and_tests_name_the_same_exercises():
    tested = {name for path in (ROOT / "tests").glob("test_*.py") for node in assignments.parsed(path.read_text()).body
              for name in assignments.exercise_names(node)}
    assert tested == set(ALL) and len(ALL) >= 12 and {e.number for e in ALL.values()} == {1, 2, 3, 4}
    marks = re.findall(r"^ *Exercise: (\S+)", "".join((ROOT / f"{m}.py").read_text() for m in assignments.MODULES), re.M)
    assert sorted(marks) == sorted(ALL), "a mark that is not in the form `Exercise: module.function (set N, P points)`, with a hint in the next line"
    for e in ALL.values():
        assert e.tests and e.hint and e.text and place((ROOT / e.file).read_text(), e.function), e.name
        for other in e.without:
            assert place((ROOT / e.file).read_text(), other), f"{e.name}: without {other}"


def test_the_reference_gets_full_points_a_blank_body_none_and_no_exercise_needs_another(tmp_path):
    """In a tree where all exercises are blank every test fails; put one body back, and all of its own pass."""
    tree = tmp_path / "blank"
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    sources = {f"{m}.py": (ROOT / f"{m}.py").read_text() for m in assignments.MODULES}
    for e in ALL.values():
        sources[e.file] = blank(sources[e.file], e.function)
    for file, source in sources.items():
        (tree / file).write_text(source)
    with graders(1, root=tree) as run:
        everything = run([{"files": {}, "tests": [t for e in ALL.values() for t in e.tests]}])[0]
        one_each = run([{"files": {e.file: graft(sources[e.file], e.function, reference(e))}, "tests": list(e.tests)} for e in ALL.values()])
    assert everything["end"] == "done" and len(everything["expected"]) == len(everything["tests"]) > 100
    assert [test for test, (outcome, _) in everything["tests"].items() if outcome != "failed"] == []
    for e, answer in zip(ALL.values(), one_each):
        assert judge(assignments.Grade(e), answer).points == e.points, f"{e.name}: {answer}"


# Plausible mistakes, as substitutions in the reference.
WRONG = {
    "tasks.answer_targets": [
        ("- length - 1:-1]", "- length:]", "not shifted"), ("torch.full_like(tokens, IGNORE)", "tokens.roll(-1, 1)", "the prompt is scored too"),
        ("torch.full_like(tokens, IGNORE)", "tokens", "in place"), ("IGNORE)", "PAD)", "the wrong filling")],
    "tasks.answer_distribution": [
        ("v / len(code)", "v / len(counts)", "divided by the answers"), ("len(code), m)", "len(code), 1)", "multiplicity forgotten"),
        ("VOCAB_SIZE **", "2 **", "two answers with one code"), ("spec.operands(torch.stack([c.reshape(-1) for c in columns], 1), size)",
         "torch.stack([c.reshape(-1) for c in columns], 1)[:, -2:]", "columns taken for operands")],
    "models.attention_mask": [
        (".tril()", ".triu()", "looks ahead"), (".tril()", ".tril(-1)", "not at itself"), ("(line[:, :, None] == line[:, None, :])", "(line[:, :, None] > -9)", "other lines seen"),
        ("-math.inf)", "-1.0)", "a little is let through")],
    "models.attention": [
        (" * d ** -0.5", "", "not divided by sqrt(d)"), ("d ** -0.5", "d ** -1", "the square root is missing"), ("d ** -0.5", "(d * n_head) ** -0.5", "sqrt(D)"),
        (".softmax(-1)", ".softmax(-2)", "over queries"), (" + mask", "", "no mask"), ("3, n_head, d).permute(2, 0, 3, 1, 4)", "n_head, 3, d).permute(3, 0, 2, 1, 4)", "heads outermost"),
        (".transpose(1, 2).reshape", ".reshape", "heads not put back")],
    "models.resample_answers": [
        ("torch.multinomial(p, 1, generator=generator)[:, 0]", "p.argmax(-1)", "chosen, not drawn"), ("tokens[rows, t + 1] = targets[rows, t] =", "targets[rows, t] =", "not read by what follows"),
        ("batch[0].clone(), batch[1].clone()", "batch[0], batch[1]", "in place"), (".float().softmax(-1)", ".float().softmax(-1).sqrt()", "a square root too many")],
    "measures.rankme": [
        ("p = s / s.sum() + eps", "p = s ** 2 / (s ** 2).sum() + eps", "squared"), ("features.detach().double()", "(features - features.mean(0)).double()", "centred"),
        ("torch.exp(-(p * p.log()).sum())", "-(p * p.log()).sum()", "entropy itself"), ("p.log()", "p.log2()", "bits under exp"), ("s / s.sum()", "s / s.max()", "not normalised"),
        ("not torch.isfinite(x).all() or not x.any()", "False", "takes anything")],
    "measures.effective_rank": [
        ("values.clamp(min=0)", "values.clamp(min=0).sqrt()", "singular values taken"), ("values.clamp(min=0)", "values.clamp(min=0) ** 2", "squared"), ("p / p.sum()", "p", "not normalised"),
        ("torch.exp(torch.special.entr(p / p.sum()).sum())", "p.sum() ** 2 / (p ** 2).sum()", "participation ratio"), ("torch.exp(", "(", "entropy itself")],
    "measures.gradient_gram": [
        ("(gram + gram.mT) / 2", "(gram + gram.mT) / 2 / n", "divided by N"), ("(gram + gram.mT) / 2", "gram + gram.mT", "a missing 1/2"), ("for block in blocks:", "for block in [params[:1]]:", "first parameter only"),
        ("(gram + gram.mT) / 2", "gram - gram.mean(0)", "centred"), ("n = _prepare(name, model, data)", "n = _prepare(name, model, data); net.train()", "dropout on"),
        ("net, params, data, n = _prepare(name, model, data)", "net, n = model, len(data[0]); params = [p for p in model.parameters()]", "frozen parameters too, and unchecked")],
    "measures.power_iteration": [
        ("v = hv / hv.norm()", "v = hv", "not normalised"), ("float(v @ hv)", "float(hv.norm())", "the sign lost"), ("error / scale if scale", "error if scale", "residual not relative"),
        ("residual, residual <= tol)", "residual, True)", "converged, whatever"), ("v = start / start.norm()", "v = start", "the start not normalised"),
        ("if residual <= tol or", "if abs(eigenvalue - locals().get('old', 9e9)) < 1e-9 or", "never stops early")],
    "measures.split_r_hat": [
        ("torch.cat([traces[:, :half], traces[:, -half:]])", "traces", "not split"), (".sqrt())", ")", "a missing square root"), ("(half - 1) / half + ", "1 + ", "1 for (h - 1) / h"),
        ("parts.mean(1).var()", "parts.mean(1).var() / half", "error of the mean"), ("parts.var(1)", "parts.std(1)", "standard deviations")],
    "measures.effective_samples": [
        ("2 * torch.cummin", "1 * torch.cummin", "the 2 missing"), ("acov[0] + (x.mean(1).var() if chains > 1 else 0)", "acov[0]", "chains apart"), ("ess = chains * n", "ess = n", "of one chain"),
        ("math.sqrt(float(total) / ess)", "float(total) / ess", "a missing square root"), ("ess = chains * n / max(tau, 1 / math.log10(chains * n + 10))", "ess = float(chains * n)", "independent, whatever")],
    "measures.sgld_step": [
        ("-lr / 2", "-lr", "a missing 1/2"), ("math.sqrt(lr)", "lr", "a missing square root"), ("torch.sub(w, w0)", "torch.sub(w0, w)", "pushed away"), ("alpha=nbeta)", "alpha=1)", "nbeta left out"),
        ("math.sqrt(lr)", "math.sqrt(2 * lr)", "twice the noise"), ("    w.add_(drift", "    w = w.clone().add_(drift", "not in place")],
    "measures.llc_draws": [
        ("[:, num_burnin_steps:]", "", "burn-in kept"), ("nbeta * (", "(", "nbeta left out"), ("losses - baselines", "losses - baselines.mean()", "not paired"), ("losses - baselines", "losses", "no baseline"),
        ("[:, num_burnin_steps:]", "[:, :-num_burnin_steps]", "the other end dropped"), ("nbeta * (losses - baselines)", "(nbeta * (losses - baselines)).clamp(min=0)", "never negative")],
    "emergence.emergence_index": [
        ("(values - chance) / (1 - chance)", "values", "chance ignored"), ("/ (1 - chance) >= bar", ">= bar", "not rescaled"), ("3 * np.sqrt(chance / (1 - chance) / examples)", "3 * chance / (1 - chance) / examples",
         "a missing square root"), (">= bar - 1e-12, persistence", ">= bar - 1e-12, 1", "one is enough"), (">= bar - 1e-12", "> bar + 1e-12", "the bar itself does not count")],
    "emergence.recovery": [
        ("later & (", "(", "before the floor"), ("(1 + rise) * floor", "rise * floor", "share for excess"), ("np.where(np.isnan(smooth), np.inf, smooth)", "smooth", "NaN is the floor"),
        ("floor), persistence)", "floor), 1)", "one is enough"), ("(1 + rise) * floor", "floor + rise", "absolute")],
    "emergence.holm": [
        ("(len(order) - k)", "len(order)", "Bonferroni"), ("max(worst, min(1.0, (len(order) - k) * p_values[i]))", "min(1.0, (len(order) - k) * p_values[i])", "not monotone"),
        ("(len(order) - k)", "(len(p_values) - k)", "what was not tested counts"), ("min(1.0, (len(order) - k) * p_values[i])", "(len(order) - k) * p_values[i]", "above 1")],
    "emergence.shuffles": [
        ("    upside_down[0] = False\n", "", "the observed data shuffled"), ("(where,) = (number == k).nonzero()", "where = np.arange(len(levels))", "across levels"), ("default_rng(seed)", "default_rng()", "no seed"),
        ("rng.permuted(np.tile(", "rng.permutation(np.tile(", "one order for all"), ("rng.random((count, num_runs)) < 0.5", "np.tile(rng.random((count, 1)) < 0.5, num_runs)", "all runs alike")],
    "emergence.precursor_rate": [
        ("d.emergence[:, None])", "d.emergence[:, None] + 1e-9)", "the same step counts"), ("emerges.sum() or", "emerges.size or", "of all, not of those that emerge"),
        (" & emerges[:, None]", "", "what never emerges counts"), ("d.onset[:, s.tasks] < d.emergence[:, None]", "d.onset[:, None] < d.emergence[:, s.tasks]", "the other one exchanged")],
    "emergence.p_value": [
        ("(x >= x[0] - 1e-9)", "(x > x[0])", "ties left out"), (".mean()", "[1:].mean()", "the observed left out"), ("extremity(values)", "values", "extremity left out"),
        ("x >= x[0] - 1e-9", "x <= x[0] + 1e-9", "the other tail"), (" - 1e-9", "", "no room for rounding")],
}


@pytest.mark.parametrize("which", [slice(1), pytest.param(slice(1, None), marks=pytest.mark.slow)], ids=["one of each", "the others"])
def test_plausible_mistakes_get_no_points(run, which):
    pairs, labels = [], []
    for name, mistakes in WRONG.items():
        for old, new, label in mistakes[which]:
            head, quotes, body = reference(ALL[name]).rpartition('"""')         # the docstring may have the same words
            assert body.count(old) == 1, f"{name}: {old!r} stands {body.count(old)} times in the reference"
            pairs.append((ALL[name], head + quotes + body.replace(old, new)))
            labels.append(label)
    assert set(WRONG) == set(ALL) and min(map(len, WRONG.values())) >= 3
    passed = [f"{g.exercise.name}: {label}" for g, label in zip(graded(run, pairs, first=True), labels) if g.points]
    assert not passed, f"wrong, and graded as right: {passed}"


# Correct, and written another way.
ANOTHER_WAY = {
    "tasks.answer_targets": """
        T = tokens.shape[1]
        at = torch.arange(T)
        return torch.where((at >= T - 1 - length) & (at < T - 1), tokens.roll(-1, dims=1), torch.tensor(IGNORE))""",
    "tasks.answer_distribution": """
        from itertools import product
        spec, size, _ = _lookup(task, level)
        if math.prod(spec.radices(size)) > 2_000_000:
            return spec.answers(size)
        x = torch.tensor(list(product(*map(range, spec.radices(size)))))
        counts = Counter(map(tuple, spec.line(spec.operands(x, size), size)[1].tolist()))
        return [(n / len(x), 1) for n in counts.values()]""",
    "models.attention_mask": """
        B, T = line.shape
        mask = torch.full((B, 1, T, T), -math.inf)
        for b in range(B):
            for t in range(T):
                for s in range(t + 1):
                    if line[b, s] == line[b, t]:
                        mask[b, 0, t, s] = 0
        return mask""",
    "models.attention": """
        B, T, D3 = qkv.shape
        q, k, v = (x.reshape(B, T, n_head, -1).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)).transpose(1, 2).flatten(2)""",
    "models.resample_answers": """                                                          # another order of draws: all of them first, by inverse distribution function
        tokens, targets = (x.clone() for x in batch)
        u = torch.rand(tokens.shape, generator=generator, dtype=torch.float64)
        for t in range(tokens.shape[1] - 1):
            cdf = model(tokens)[:, t].double().softmax(-1).cumsum(-1)
            new = (u[:, t:t + 1] > cdf).sum(-1).clamp(max=cdf.shape[1] - 1)
            here = targets[:, t] != IGNORE
            tokens[:, t + 1] = torch.where(here, new, tokens[:, t + 1])
            targets[:, t] = torch.where(here, new, targets[:, t])
        return Batch(tokens, targets)""",
    "measures.rankme": """                                                                # the Gram matrix instead of the SVD
        if features.dim() != 2 or not torch.isfinite(features).all() or (features == 0).all():
            raise ValueError("rankme: wrong features")
        x = features.double()
        gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
        s = torch.linalg.eigh(gram)[0].clamp(min=0) ** 0.5
        p = s / s.sum() + eps
        return math.exp(-sum(q * math.log(q) for q in p.tolist()))""",
    "measures.effective_rank": """
        l = [float(x) for x in eigenvalues]
        if not all(map(math.isfinite, l)) or max(l) <= 0 or min(l) < -1e-6 * max(l):
            raise ValueError("effective_rank: no spectrum")
        l = [x for x in l if x > 0]
        return math.prod((x / sum(l)) ** (-x / sum(l)) for x in l)""",
    "measures.gradient_gram": """
        net, params, data, n = _prepare("gradient_gram", model, data)
        rows = []
        for i in range(n):
            loss = loss_fn(net, tuple(t[i:i + 1] for t in data))
            if loss.shape != (1,):
                raise ValueError("gradient_gram: loss_fn must return one loss per example")
            g = torch.autograd.grad(loss[0], params, allow_unused=True)
            rows.append(torch.cat([(torch.zeros_like(p) if x is None else x).flatten() for x, p in zip(g, params)]).double())
        K = torch.stack(rows) @ torch.stack(rows).T
        if not torch.isfinite(K).all():
            raise ValueError("gradient_gram: not finite")
        return K""",
    "measures.power_iteration": """
        v, n = start, 0
        while True:
            v = v / torch.linalg.vector_norm(v)
            hv, n = matvec(v), n + 1
            rho = torch.dot(v, hv).item()
            r = torch.linalg.vector_norm(hv - rho * v).item()
            r = r / abs(rho) if rho != 0 else 0.0 if r == 0 else float("inf")
            if r <= tol or n >= max_iters:
                return HessianTop(eigenvalue=rho, eigenvector=v, smallest=math.nan, smallest_residual=math.nan, iterations=n, residual=r, converged=r <= tol)
            v = hv""",
    "measures.split_r_hat": """
        n = traces.shape[1] // 2
        parts = [p.double() for chain in traces for p in (chain[:n], chain[len(chain) - n:])]
        if n < 2 or all(float(p.var()) == 0 for p in parts):
            return float("nan")
        W = sum(float(p.var()) for p in parts) / len(parts)
        m = [float(p.mean()) for p in parts]
        B = sum((x - sum(m) / len(m)) ** 2 for x in m) / (len(m) - 1)
        return math.sqrt((n - 1) / n + B / W)""",
    "measures.effective_samples": """                                                      # a loop over lags instead of an FFT
        x = traces.double()
        C, n = x.shape
        y = x - x.mean(1, keepdim=True)
        W = float((y ** 2).sum(1).mean()) / (n - 1)
        total = W * (n - 1) / n + (float(x.mean(1).var()) if C > 1 else 0)
        if total == 0:
            return float(C * n), 0.0
        rho = lambda t: 1.0 if t == 0 else 1 - (W - float((y[:, :n - t] * y[:, t:]).sum(1).mean()) / n) / total
        tau, t = -1.0, 0
        while t + 1 < n and (pair := rho(t) + rho(t + 1)) > 0:
            tau, t = tau + 2 * pair, t + 2
        return C * n / tau, math.sqrt(total * tau / (C * n))""",
    "measures.sgld_step": """                                                              # the noise first
        drift = nbeta * gradient + localization * (w - w0)
        w += lr ** 0.5 * noise
        w -= 0.5 * lr * drift""",
    "measures.llc_draws": """
        return torch.stack([nbeta * l - nbeta * b for l, b in zip(losses.unbind(1), baselines.unbind(1))][num_burnin_steps:], 1)""",
    "emergence.emergence_index": """                                                       # one curve after another, in a loop
        values = np.asarray(values, dtype=float)
        chances = np.broadcast_to(np.asarray(chance, dtype=float), (*values.shape[:-1], 1))
        out = np.full(values.shape[:-1], -1)
        for where in np.ndindex(*values.shape[:-1]):
            c, row = chances[where][0], 0
            bar = max(threshold, 3 * math.sqrt(c / (1 - c) / examples) if examples else 0)
            for t, x in enumerate(values[where]):
                row = row + 1 if x - c >= (bar - 1e-12) * (1 - c) else 0
                if row == persistence:
                    out[where] = t - persistence + 1
                    break
        return out""",
    "emergence.recovery": """
        low = np.nanargmin(smooth, axis=-1)
        floor = np.nanmin(smooth, axis=-1)
        onset = np.full(floor.shape, -1)
        for where in np.ndindex(*floor.shape):
            row = 0
            for t in range(low[where] + 1, smooth.shape[-1]):
                row = row + 1 if smooth[where][t] >= (1 + rise) * floor[where] else 0
                if row == persistence:
                    onset[where] = t + 1 - persistence
                    break
        return floor, low, onset""",
    "emergence.holm": """
        known = [p for p in p_values if p is not None]
        return [None if q is None else min(1.0, max((sum(r >= p for r in known)) * p for p in known if p <= q)) for q in p_values]""",
    "emergence.shuffles": """                                                               # another order of draws: data set by data set, the last first
        rng = np.random.default_rng(seed + 7)
        tasks, runs, down = np.tile(np.arange(len(levels)), (count, 1)), np.tile(np.arange(num_runs), (count, 1)), np.zeros((count, num_runs), bool)
        for m in reversed(range(1, count)):
            down[m] = rng.integers(0, 2, num_runs) == 1
            runs[m] = rng.permutation(num_runs)
            for number in {name[-1] for name in levels}:
                where = [i for i, name in enumerate(levels) if name[-1] == number]
                tasks[m, where] = rng.permutation(where)
        return Shuffles(tasks, runs, down)""",
    "emergence.precursor_rate": """
        out = []
        for order in s.tasks:
            flags = [o[order[k]] < e[k] for o, e in zip(d.onset, d.emergence) for k in range(len(e)) if e[k] < math.inf]
            out.append(sum(flags) / len(flags) if flags else math.nan)
        return np.array(out)""",
    "emergence.p_value": """
        if len(values) < 2 or values[0] != values[0]:
            return None
        far = [float(x) for x in extremity(values)]
        return sum(x >= far[0] - 1e-9 for x in far) / len(far)""",
}


def written(exercise, body):
    """A function with the reference's first line and this body."""
    text = reference(exercise)
    return text[:text.index('"""')].rstrip() + "\n" + textwrap.indent(textwrap.dedent(body.partition("\n")[2]), "    ")


def test_another_correct_way_gets_full_points(run):
    assert set(ANOTHER_WAY) == set(ALL)
    for g in graded(run, [(ALL[name], written(ALL[name], body)) for name, body in ANOTHER_WAY.items()]):
        assert g.points == g.exercise.points, f"{g.exercise.name}: {g.why} {g.failures}"


# --------------------------------------------------------------------------------------------- hostile and broken submissions

SECRET = "what stands outside the grading folder"
# What a submission's rankme may do, and what is said of it.  In each, effective_rank, next to it, is right.
HOSTILE = {
    "endless loop": ("while True: pass", "endless loop"),
    "sleeps": ("import time; time.sleep(1e6)", "endless loop"),
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "endless loop"),
    "orphans": ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(777)\n    os._exit(0)\nreturn 1.0", "tests fail"),
    "sys.exit": ("import sys; sys.exit(0)", "SystemExit"),
    "os._exit": ("import os; os._exit(0)", "exit status 0 before its tests were done"),
    "stops pytest": ("import pytest; pytest.exit('all passed', 0)", "not all run|before its tests"),
    "skips": ("import pytest; pytest.skip('no need')", "tests fail"),
    "keyboard": ("raise KeyboardInterrupt", "not all run|before its tests"),
    "memory": ("return torch.ones(10 ** 11).sum()", "tests fail"),
    "memory in python": ("x = []\nwhile True: x.append(b'x' * 10 ** 8)", "tests fail|killed|endless"),
    "crash": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "prints": ("print('tests/test_measures.py ......... 9 passed'); print('[\"x\", 1, \"tests/test_measures.py::test_rankme\", \"passed\", \"\"]')\nreturn 1.0", "tests fail"),
    "writes to every file": ("import os\nfor fd in range(3, 99):\n    try: os.write(fd, b'[\"0\", 1, \"\", \"end\", \"\"]\\n' * 9)\n    except OSError: pass\nos._exit(0)", "before its tests"),
    "kills its parent": ("import os; os.kill(os.getppid(), 9); return 1.0", "tests fail|took down"),
    "reads outside": ("return open(OUTSIDE).read()", "tests fail"),
    "writes outside": ("import os\nfor path in (OUTSIDE, SUBMISSION):\n    try: os.remove(path)\n    except OSError: pass\n    try: open(path, 'w').write('gone')\n    except OSError: pass\nreturn 1.0",
                       "tests fail"),
    "edits the tests": ("import pathlib\nfor path in pathlib.Path.cwd().rglob('test_*.py'):\n    try: path.write_text('')\n    except OSError: pass\nreturn 1.0", "tests fail"),
    "decorated": ("return 1.0", "not all run|before its tests"),
    "not finished": ("raise NotImplementedError('measures.rankme')", "not attempted"),
    "very deep": ("return " + "(" * 5000 + "1" + ")" * 5000, "error|nested"),
    "helper": ("return _entropy(features)", "uses _entropy, which stands outside"),
}


QUICK = ("endless loop", "os._exit", "prints", "writes outside", "not finished", "helper")     # the others are slow


@pytest.fixture
def folder(tmp_path, request):
    """A folder of submissions, one for each row of HOSTILE, and some that are broken as files."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text(SECRET)
    source, students = (ROOT / "measures.py").read_text(), tmp_path / "students"
    for name in request.param:
        body, mine = HOSTILE[name][0], students / name.replace(" ", "_") / "measures.py"
        mine.parent.mkdir(parents=True)
        body = body.replace("OUTSIDE", repr(str(outside / "secret"))).replace("SUBMISSION", repr(str(mine)))
        function = ("@(lambda f: exit(0))\n" if name == "decorated" else "") + "def rankme(features, eps=1e-7):\n" + textwrap.indent(body, "    ") + "\n"
        mine.write_text((graft(source, "rankme", function)) + ("\ndef _entropy(x):\n    return 1.0\n" if name == "helper" else ""))

    def broken(name, text):
        (students / name).mkdir()
        (students / name / "measures.py").write_bytes(text)
    broken("syntax_error", graft(source, "rankme", "def rankme(features, eps=1e-7):\n    return 1 +* 2\n").encode())
    broken("renamed", source.replace("def rankme(", "def rank_me(").encode())
    broken("not_text", b"\xff\xfe\x00def rankme")
    (students / "missing").mkdir()
    (students / "nested" / "homework").mkdir(parents=True)
    shutil.copy(ROOT / "measures.py", students / "nested" / "homework")
    (students / "link").mkdir()
    (students / "link" / "measures.py").symlink_to(outside / "secret")
    edited = students / "edited_tests"
    shutil.copytree(ROOT / "tests", edited / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*(edited / "tests").glob("*.py")]:
        path.write_text("def test_all_is_well():\n    pass\n")
    (edited / "measures.py").write_text(graft(source, "rankme", "def rankme(features, eps=1e-7):\n    return 4.0\n"))
    return students


def left_behind():
    """What jobs forked and did not end: it has a worker's command line, and for a parent a worker of ours, or none any more."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"grading-" in path.read_bytes():
                parents[int(path.parent.name)] = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
    ours = {pid for pid, parent in parents.items() if parent == os.getpid()}
    return [pid for pid, parent in parents.items() if parent in ours or parent == 1]


@pytest.mark.parametrize("folder", [QUICK, pytest.param([name for name in HOSTILE if name not in QUICK], marks=pytest.mark.slow)], indirect=True, ids=["quick", "others"])
def test_hostile_and_broken_submissions_are_graded_for_what_they_are(folder, monkeypatch, tmp_path, run):
    before = {path: path.read_bytes() for path in folder.rglob("*.py") if path.is_file()}
    two = [ALL["measures.rankme"], ALL["measures.effective_rank"]]
    monkeypatch.setattr(assignments, "exercises", lambda number=None, root=ROOT: two)
    monkeypatch.setattr(assignments, "graders", lambda *limits: contextlib.nullcontext(run))   # the workers that are there
    grades = assignments.grade([folder])
    expected = {name.replace(" ", "_"): says for name, (_, says) in HOSTILE.items() if (folder / name.replace(" ", "_")).exists()} | {
        "syntax_error": "syntax error in line", "renamed": "no function rankme, but rank_me: was it renamed", "not_text": "cannot be read", "missing": "measures.py is missing",
        "link": "leads out of the submission", "edited_tests": "tests fail"}
    for name, says in expected.items():
        rankme, effective_rank = grades.pop(name)
        assert rankme.points == 0 and re.search(says, rankme.why), f"{name}: {rankme.why!r} where {says!r} was expected"
        assert effective_rank.points == (0 if name in ("not_text", "missing", "link") else 5), f"{name}: {effective_rank.why}"
    assert [g.points for g in grades.pop("nested")] == [10, 5] and not grades
    assert not left_behind(), "processes were left behind"
    if hasattr(os, "geteuid") and os.geteuid() == 0 and sys.platform == "linux":               # run as any other user, files are only as safe as their rights
        assert (tmp_path / "outside" / "secret").read_text() == SECRET
        assert {path: path.read_bytes() for path in before} == before


def test_what_should_be_read_is_pointed_at(tmp_path):
    mine = tmp_path / "measures.py"
    e = ALL["measures.rankme"]
    for body, look in (("import os\nreturn os.getpid()", "uses os"), ("class Any:\n    __eq__ = lambda s, o: True\nreturn Any()", "uses a class"), ("return open('x')", "uses open"), ("return 1.0", "")):
        mine.write_text("def rankme(features, eps=1e-7):\n" + textwrap.indent(body, "    ") + "\n")
        assert assignments.examine(tmp_path, e, {})[1].look == look


# ------------------------------------------------------------------------------------------------------- handout and commands


def command(*arguments, **options):
    return subprocess.run([sys.executable, str(ROOT / "run.py"), *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("number", [None, 1, 2, 3, 4])
def test_a_handout_keeps_all_lines_but_those_of_the_bodies(tmp_path, number):
    tree = tmp_path / "new" / "course"
    chosen, points = handout(tree, number)
    assert chosen == exercises(number) and points == sum(e.points for e in chosen)
    for path in ROOT.glob("*.py"):
        given, source = (tree / path.name).read_text(), path.read_text()
        mine = [e for e in chosen if e.file == path.name]
        restored = given
        for e in mine:
            first, body, last = place(source, e.function)
            lines, there = source.splitlines()[body - 1:last], Counter(source.splitlines())
            here = Counter(given.splitlines())
            assert given.count(f"{e.function}: this is yours to write") == 1
            for line in lines:                                 # none of its lines is left, but for what other functions have too
                assert here[line] < there[line] or not line.strip(), line
            restored = graft(restored, e.function, "\n".join(source.splitlines()[first - 1:last]))
        assert restored == source, f"{path.name}: the rest is not what it was"
    sheet, tests = (tree / "SHEET.md").read_text(), "".join(p.read_text() for p in (tree / "tests").glob("test_*.py"))
    for e in exercises():
        assert (f"`{e.name}`" in sheet) == (e in chosen) == (f'exercise(name="{e.name}")' in tests)
    assert all(question in sheet for n in {e.number for e in chosen} for _, question in assignments.QUESTIONS[n])
    assert "slow_gram" not in tests and not (tree / "tests" / "assignments.py").exists()
    with pytest.raises(ValueError, match="not an empty folder"):
        handout(tree)


@pytest.mark.slow
def test_the_public_tests_of_a_handout_fail_until_it_is_solved(tmp_path):
    handout(tmp_path / "mine", 3)
    for e in exercises(3)[1:]:
        path = tmp_path / "mine" / e.file
        path.write_text(graft(path.read_text(), e.function, reference(e)))
    said = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "exercise", "-p", "no:cacheprovider"], cwd=tmp_path / "mine", capture_output=True, text=True, timeout=120).stdout
    assert re.search(r"\n1 failed, 8 passed", said) and f"{exercises(3)[0].function}: this is yours to write" in said, said


def test_comments_at_the_end_of_a_body_do_not_leak():
    source = 'def f(x):\n    """Doc."""\n    # a comment that tells\n    return x   # all\n    # of it\n\n    # and more\n\n# outside\ndef g():\n    return 1\n'
    assert blank(source, "f", "no") == 'def f(x):\n    """Doc."""\n    raise NotImplementedError("f: no")\n\n# outside\ndef g():\n    return 1\n'


def test_commands_from_handout_to_csv(tmp_path):
    mine, table = tmp_path / "=mine", tmp_path / "points.csv"
    said = command("handout", mine, "--problem-set", 2)
    assert said.returncode == 0 and "4 exercises, 40 points" in " ".join(said.stdout.split())
    path = mine / "measures.py"
    path.write_text(graft(graft(path.read_text(), "rankme", reference(ALL["measures.rankme"])), "effective_rank", "def effective_rank(eigenvalues):\n    return _rank(eigenvalues\n"))
    said = command("grade", mine, "--problem-set", 2, "--csv", table)
    assert said.returncode == 0, said.stderr
    assert "10 of 40 points" in said.stdout and "9 of 9 tests pass" in said.stdout and "not attempted" in said.stdout and "'(' was never closed" in " ".join(said.stdout.split())
    rows = list(csv.reader(io.StringIO(table.read_text())))
    assert rows[0] == ["submission", *(e.name for e in exercises(2)), "total", "remarks"] and rows[1][:6] == ["'=mine", "10", "0", "0", "0", "10"]
    itself = subprocess.run([sys.executable, "run.py", "grade", "."], cwd=mine, capture_output=True, text=True, timeout=60)
    assert itself.returncode == 2 and "itself a handout" in itself.stderr


@pytest.mark.parametrize("arguments, says", [
    (("handout", "FULL"), "not an empty folder"), (("handout", "FILE"), "not an empty folder"), (("handout", "new", "--problem-set", "5"), "expected one of 1, 2, 3, 4"),
    (("handout", "FILE/under"), ""), (("grade", "nowhere"), "is not a folder"), (("grade", "EMPTY"), "holds no submission"), (("grade", "FULL", "--problem-set", "0"), "expected one of"),
    (("grade", "FULL", "--csv", "nowhere/x.csv"), "is not a folder"), (("grade",), "Missing argument")])
def test_bad_input_is_one_sentence(tmp_path, arguments, says):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "measures.py").write_text("")
    (tmp_path / "FILE").write_text("")
    said = command(*arguments, cwd=tmp_path)
    assert said.returncode in (1, 2) and says in said.stderr and said.stderr.count("\n") == 1 and "Traceback" not in said.stderr, said.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["EMPTY", "FILE", "FULL"]


# ------------------------------------------------------------------------------------------- what the README says, in numbers


def readme(section):
    return (ROOT / "README.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]


def test_the_normal_curve_in_the_readme_is_that_of_the_committed_run():
    """Median, lowest and highest of three seeds, rounded as the table is."""
    runs = [[json.loads(line) for line in (ROOT / f"results/modadd/nano-s{k}/metrics.jsonl").read_text().splitlines()] for k in range(3)]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme("What a normal default run looks like").splitlines() if re.match(r"\| \d", line)]
    assert len(table) >= 10
    for step, loss, *cells in table:
        rows = [row for run in runs for row in run if row["step"] == int(step)]
        quantities = [(loss, [row["loss"] for row in rows])] if loss else []
        for k, level in enumerate(("modadd-1", "modadd-2", "modadd-3")):
            quantities.append((cells[2 * k], [row["levels"][level]["accuracy"] for row in rows]))
            quantities.append((cells[2 * k + 1], [row["levels"][level]["rankme"]["first"][-2] for row in rows]))
        for said, values in quantities:
            numbers = re.findall(r"[\d.]+", said)
            places = len(numbers[0].partition(".")[2])
            shown = [f"{x:.{places}f}" for x in (sorted(values)[1], min(values), max(values))]
            assert [f"{float(n):.{places}f}" for n in numbers] == (shown if len(numbers) == 3 else [shown[0]]), f"step {step}: {said!r} for {values}"


def test_the_readme_counts_lines_and_points_as_they_are():
    for name, lines in re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", readme("Reading order"), re.M):
        assert int(lines) == pytest.approx(len((ROOT / name).read_text().splitlines()), rel=0.1), name
    written = sum(points for questions in assignments.QUESTIONS.values() for points, _ in questions)
    said = " ".join(readme("Course assignments").split())
    assert f"an exercise: {len(ALL)} of them in four sets, {sum(e.points for e in ALL.values())} points, and {written} more" in said


@pytest.mark.slow
def test_thirty_submissions_in_five_minutes(tmp_path):
    """Of each three, one is right, one is wrong in every exercise, and one is hostile in two of them."""
    handout(tmp_path / "given")
    for k in range(30):
        mine = tmp_path / "submissions" / f"student{k:02}"
        shutil.copytree(tmp_path / "given", mine)
        for e in ALL.values():
            source = reference(e)
            if k % 3 == 1:
                head, quotes, body = source.rpartition('"""')
                old, new, _ = WRONG[e.name][k // 3 % 3]
                source = head + quotes + body.replace(old, new)
            elif k % 3 == 2 and e.name == "measures.rankme":
                bad = sorted(HOSTILE)[k // 3]
                source = "def rankme(features, eps=1e-7):\n" + textwrap.indent(HOSTILE[bad][0], "    ")
            elif k % 3 == 2 and e.name == "measures.sgld_step":
                source = "def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):\n    while True: pass\n"
            else:
                source = written(e, ANOTHER_WAY[e.name]) if k % 2 else source
            (mine / e.file).write_text(graft((mine / e.file).read_text(), e.function, source))
    began = time.monotonic()
    grades = assignments.grade([tmp_path / "submissions"], workers=2)
    took = time.monotonic() - began
    print(f"\n30 submissions, {len(ALL)} exercises each, two workers: {took:.0f} s")
    assert took < 300
    total = sum(e.points for e in ALL.values())
    for k, results in enumerate(grades.values()):
        assert sum(g.points for g in results) == (total, 0, total - 20)[k % 3], (k, [(g.exercise.name, g.why) for g in results if not g.points])
