"""What goes wrong: mistakes in the second solutions, and submissions that misbehave.

WRONG: what stands in the second solution, what stands there instead, the hint that the grade must
give ("": the values say enough).  HOSTILE: the body of a rankme, and what its grade says.
"""

WRONG = {
    "tasks.answer_targets": [
        ("= tokens[:, place + 1]", "= tokens[:, place]", ""),
        ("max(T - 1 - length, 0)", "0", "is the prompt scored too?"),
        ("max(T - 1 - length, 0)", "T - length", ""),
        ("torch.full_like(tokens, IGNORE)", "torch.zeros_like(tokens)", ""),
    ],
    "tasks.answer_distribution": [
        ("(n / len(tuples), 1)", "(n / len(times), 1)", ""),
        ("row.operands(tuples, size)", "tuples[:, -2:]", ""),
        ("times.get(tuple(answer), 0) + 1", "1", ""),
        ("return row.answers(size)[0]", "return []", ""),
    ],
    "models.attention": [
        (" / math.sqrt(q.shape[3])", "", "are scores divided by sqrt(d)?"),
        ("math.sqrt(q.shape[3])", "math.sqrt(qkv.shape[2] / 3)", ""),
        ("scores + mask, dim=3", "scores + mask, dim=2", ""),
        ("scores + mask", "scores", "is the mask added?"),
        ("qkv.chunk(3, dim=2)", "(qkv[:, :, i::3] for i in range(3))", ""),
        ("qkv.chunk(3, dim=2)", "(qkv.unflatten(2, (n_head, 3, -1))[:, :, :, i].flatten(2)"
                                " for i in range(3))", "is the first third the queries"),
        (".to(v.dtype)  ", "  ", ""),
    ],
    "models.resample_answers": [
        ("torch.multinomial(p, 1, generator=generator)[:, 0]", "p.argmax(1)",
         "is the token drawn, or is it the most likely one?"),
        ("tokens[rows, t + 1] = drawn", "pass", "are the drawn tokens written into the line?"),
        ("(part.clone() for part in batch)", "batch", ""),
        ("model(tokens[rows", "model(batch[0][rows",
         "does the model see the tokens that were drawn"),
        ("for t in range(T):", "for t in range(T - 1):", ""),
    ],
    "models.attention_mask": [
        ("(s > t)", "(s < t)", "may a place look at later ones?"),
        (" | (s > t)", "", "may a place look at later ones?"),
        ("(s > t)", "(s >= t)", "may a place look at itself?"),
        ("apart | (s > t)", "apart | True if s > t else apart & False", ""),
        ('float("-inf")', "-1.0", ""),
    ],
    "workbook.affine": [
        ("3 * a + 5 * b", "3 * b + 5 * a", "have a and b changed places?"),
        ("for c in f\"{int(n):0{width}d}\"", "for c in f\"{int(n):0{width}d}\"[::-1]", ""),
        ("while 10 ** width < p", "while 10 ** width < p - 1", ""),
    ],
    "measures.rankme": [
        ("return math.exp(entropy)", "return entropy", "is exp missing?"),
        ("s = [math.sqrt(max(float(value), 0.0))", "s = [max(float(value), 0.0)",
         "are the singular values squared?"),
        ("value / sum(s) + eps", "value / sum(s) + 1e-300", ""),
        ("value / sum(s) + eps", "value / max(s) + eps", ""),
        ("x = features.double()", "x = (features - features.mean(0)).double()", ""),
        ("math.log(p)", "math.log2(p)", "is it log2 under exp?"),
    ],
    "measures.effective_rank": [
        ("return math.exp(math.fsum(", "return (math.fsum(", "is exp missing?"),
        ("values = [v for v in values if v > 0]", "values = [v ** .5 for v in values if v > 0]",
         "is a root taken that is not asked for?"),
        ("-1e-6 * top", "-1e-9 * top", ""),
        ("values = [v for v in values if v > 0]", "pass", ""),
    ],
    "measures.gradient_gram": [
        ("= torch.dot(rows[i], rows[j])", "= torch.dot(rows[i], rows[j]) / N",
         "is it divided by N?"),
        ("if p.requires_grad:", "if p.dim() > 1 and len(p) == 1:", "is the first layer left out?"),
        ("net.eval()", "net.train()", ""),
        ("net = copy.deepcopy(model)", "net = model", ""),
        ("if tuple(loss.shape) != (1,):", "if False:", ""),
        ("net.zero_grad()", "pass", ""),
    ],
    "measures.power_iteration": [
        ("value = float(v @ hv)", "value = float(hv.norm())", "is the sign lost?"),
        ("miss / abs(value) if", "miss if", "is it divided by |lambda|?"),
        ("residual, residual <= tol)", "residual, True)", ""),
        ("        return x / x.norm()", "        return x", ""),
        ("if residual <= tol or count", "if count", ""),
        ("HessianTop(value, v,", "HessianTop(value, unit(hv),",
         "does the eigenvector go with the residual?"),
        ("if value else math.inf", "if value else 0.0", ""),
    ],
    "workbook.renyi_rank": [
        ("** 3).sum()) / 2))", "** 2).sum())))", "is the order 3?"),
        (") / 2))", ")))", ""),
        ("np.exp(-np.log", "np.exp(np.log", "is the sign of the exponent right?"),
        ("s = np.linalg.svd(x.numpy(), compute_uv=False)",
         "s = np.linalg.svd(x.numpy(), compute_uv=False) ** 2", "are the singular values squared?"),
        ("(x == 0).all()", "False", ""),
    ],
    "measures.sgld_step": [
        ("lr / 2", "lr", "is the step lr / 2?"),
        ("lr ** 0.5", "lr", "is the noise times sqrt(lr)?"),
        ("(w - w0)", "(w0 - w)", "does it pull towards w0?"),
        ("nbeta * gradient", "gradient", "is nbeta left out?"),
        ("w.copy_(new)", "w = new", "are the weights changed in place"),
    ],
    "measures.llc_draws": [
        ("[:, num_burnin_steps:]", "", "are the draws of the burn-in left out?"),
        ("return nbeta * excess", "return excess", "is nbeta left out?"),
        (" - baselines", "", "is the loss at w0 taken away?"),
        ("return nbeta * excess", "return nbeta * excess.clamp(min=0)",
         "may a draw be negative? It may."),
        (" - baselines", " - baselines[:, :1]", ""),
        ("return nbeta * excess[:, num_burnin_steps:]", "return nbeta * "
         "(losses[:, num_burnin_steps:] - baselines[:, num_burnin_steps:])",
         "is the difference taken first?"),
    ],
    "measures.split_r_hat": [
        ("math.sqrt((h - 1)", "((h - 1)", "is the root missing?"),
        ("(h - 1) / h +", "1 +", "is it (h - 1) / h?"),
        ("for x in part) / (h - 1) for", "for x in part) / h for", "do variances divide by n - 1?"),
        ("for part in (chain[:h], chain[n - h:])", "for part in (chain,)", ""),
        ("if W == 0:", "if False:", ""),
    ],
    "measures.effective_samples": [
        ("2 * summed - 1", "2 * summed + 1", "does the sum begin at lag 1?"),
        ("2 * summed - 1", "summed", "is the sum taken twice?"),
        ("0.0, math.inf\n    for t in range(0,", "1.0, math.inf\n    for t in range(1,",
         "are the pairs rho_0 + rho_1, rho_2 + rho_3 ...?"),
        ("W + apart", "W", ""),
        ("ess = C * n /", "ess = n /", ""),
        ("math.sqrt(total / ess)", "total / ess", "is a root missing?"),
        ("C * n / tau", "float(C * n)", "are the correlations summed?"),
        ("if last < 0:", "if False:", "does the sum end at the first pair below 0?"),
        ("min(last, rho(t) + rho(t + 1))", "rho(t) + rho(t + 1)",
         "does a pair count for no more than the one before it?"),
        (" / (n - 1)\n    apart", " / n\n    apart", "do variances divide by n - 1?"),
        (", 1 / math.log10(C * n + 10))", ", 1e-9)", ""),
    ],
    "workbook.stiffness": [
        ("nbeta * float(c) + localization", "nbeta * abs(float(c)) + localization",
         "is it the largest, or the largest in size?"),
        ("+ localization", "", "is localization left out?"),
        ("return lr * top", "return top", "is it times lr?"),
        ("top <= 0", "top < 0", ""),
        ("return lr * top,", "return torch.tensor(lr * top),", ""),
    ],
    "workbook.length_penalty": [
        ("((share - 1) ** 2).mean()", "((share - 1) ** 2).sum()", "is it the mean over rows?"),
        ("(2 * x.shape[1])", "2", "is it divided by D?"),
        ('torch.einsum("md,md->m", x, x)', "x.norm(dim=1).sqrt() ** 4", ""),
        ("else states.float()", "else states", ""),
    ],
    "emergence.emergence_index": [
        ("(values - chance) / (1 - chance) >=", "values >=", "is chance taken away?"),
        ("(values - chance) / (1 - chance) >=", "values - chance >=", ""),
        ("np.sqrt(chance / (1 - chance) / np.asarray(examples, dtype=float))",
         "chance / (1 - chance) / np.asarray(examples, dtype=float)", ""),
        (">= bar - 1e-12", "> bar", "does a value on the bar count?"),
        (">= bar - 1e-12", ">= bar", "does a value on the bar count?"),
        ("noise = 3 *", "noise = 1 *", ""),
        ("flags, steps, persistence", "flags, steps, 1", ""),
    ],
    "emergence.recovery": [
        ("t > low[place] and", "", "does what stands before the floor count as risen?"),
        ("(1 + rise) * floor[place]", "rise * floor[place]", "is it a share of the floor?"),
        ("(1 + rise) * floor[place]", "floor[place] + rise", ""),
        ("and value >=", "and value >", "does a value on the bar count?"),
    ],
    "emergence.holm": [
        ("left * p", "len(made) * p", ""),
        ("largest = max(largest, min(1.0, left * p))", "largest = min(1.0, left * p)",
         "is the largest so far kept?"),
        ("min(1.0, left * p)", "left * p", ""),
        ("range(len(made), 0, -1)", "range(len(p_values), 0, -1)",
         "does a test that was not made count?"),
        ("sorted((p, place) for place, p in enumerate(p_values) if p is not None)",
         "[(p, place) for place, p in enumerate(p_values) if p is not None]",
         "are they taken from the smallest up?"),
    ],
    "emergence.exchanges": [
        ("if task not in row:", "if len(row) < T:", "does one task's geometry go to two tasks?"),
        ("len(set(tasks))", "len(tasks)", ""),
        ("default_rng([seed, 1])", "default_rng(1)", ""),
        ("[np.arange(T)] + ", "[random.permutation(T)] + ", ""),
        ("return np.array(rows)", "return np.array(rows[::-1])", ""),
    ],
    "emergence.precursor_counts": [
        ("date < arrival", "date <= arrival", "is an onset at the very step of emergence before"),
        ("math.isfinite(arrival) and", "", ""),
        ("math.isfinite(arrival) and", "arrival < math.inf and",
         "Does what was there from the start count?"),
        ("events.arrivals[r, k]", "events.emergence[r, k]", "is it events.arrivals?"),
        (" and not math.isnan(date)", "", ""),
        ("events.arrivals[r, k]", "events.arrivals[r, 0]", ""),
    ],
    "emergence.p_value": [
        ("value >= values[0] - 1e-9", "value > values[0]",
         "does a tie count, and what was observed?"),
        ("as_far / len(values)", "(as_far - 1) / (len(values) - 1)",
         "does what was observed count too?"),
        ("value >= values[0] - 1e-9", "value <= values[0] + 1e-9", ""),
        (" - 1e-9", "", ""),
    ],
    "workbook.exchange_test": [
        ("far / len(sums)", "(far - 1) / len(sums)", "does the exchange that changes nothing"),
        ("itertools.permutations(range(T))", "itertools.product(range(T), repeat=T)",
         "does one task's geometry go to two tasks?"),
        ("sum(sums) / len(sums)", "sum(sums[1:]) / (len(sums) - 1)", "does it count in the mean?"),
        ("total >= observed - 1e-9", "total > observed", ""),
    ],
    "workbook.log_score": [
        ("return found, found - ", "return -found, -found + ", "is the sign lost?"),
        ("return found, found - score([share] * len(pairs))",
         "return found, score([share] * len(pairs)) - found",
         "is the gain above 0 where the forecast is better?"),
        ("min(max(q, 0.01), 0.99)", "q", ""),
        ("min(max(q, 0.01), 0.99)", "min(max(q, 1e-12), 1 - 1e-12)", ""),
        ("if not math.isnan(y)]", "]", ""),
        ("score([share] * len(pairs))", "sum(math.log(share if y else 1 - share) for _, y in pairs)"
         " / len(pairs)", ""),
        ("sum(logs) / len(logs)", "sum(logs)", ""),
        ("for q, _ in pairs):      # NaN", "for q, y in pairs if y == y):      # NaN", ""),
    ],
}


# In each of these submissions, effective_rank, which stands next to rankme, is right.
HOSTILE = {
    "endless loop": ("while True: pass", "endless loop"),
    "sleeps": ("import time; time.sleep(1e6)", "endless loop"),
    "memory": ("return torch.ones(10 ** 11).sum()", "tests fail"),
    "memory in python": ("""
        x = []
        while True:
            x.append(b'x' * 10 ** 8)
        """, "tests fail|killed|endless"),
    "sys.exit": ("import sys; sys.exit(0)", "SystemExit"),
    "os._exit": ("import os; os._exit(0)", "exit status 0 before its tests were done"),
    "crash": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "keyboard": ("raise KeyboardInterrupt", "tests fail"),
    "output in gigabytes": ("""
        import sys
        line = 'x' * 10 ** 7
        for _ in range(200):
            print(line)
            print(line, file=sys.stderr)
        with open('a file', 'w') as file:
            for _ in range(200):
                file.write(line)
        """, "tests fail"),
    "a long message": ("raise ValueError('x' * 10 ** 8)", "xxx"),
    "fork": ("""
        import os, time
        if os.fork() == 0:
            time.sleep(777)
        return 1.0
        """, "tests fail"),
    "kills its parent": ("""
        import os
        with open(f'/proc/{os.getppid()}/cmdline') as file:    # and nobody who inherits it
            if 'trial.py' in file.read():
                os.kill(os.getppid(), 9)
        return 1.0
        """, "took down"),
    "patched pytest": ("import pytest; pytest.main = print; return 1.0", "uses pytest"),
    "patched comparison": ("""
        import builtins
        builtins.AssertionError = KeyError
        return 1.0
        """, "tests fail"),
    "edits the tests": ("""
        import pathlib
        for path in pathlib.Path.cwd().rglob('test_*.py'):
            path.write_text('')
        return 1.0
        """, "tests fail"),
    "not finished": ("raise NotImplementedError('measures.rankme')", "not attempted"),
    "very deep": ("return " + "(" * 5000 + "1" + ")" * 5000, "error|nested"),
    "helper": ("return _entropy(features)", "uses _entropy, which stands outside"),
}
