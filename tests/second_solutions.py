"""A second solution of every exercise, written from its docstring alone.

That these pass shows that a docstring says enough, and that more than one way is right.  Nine of
them were written by somebody who had only the handout: answer_targets, attention, resample_answers,
power_iteration, llc_draws, length_penalty, emergence_index, holm and log_score.  The others are
plain: loops, no helper that the docstring does not name.

The file is read as text and never imported: each function stands in its module when it is graded,
and uses what that module imports.
"""


# --------------------------------------------------------------------------------------------------
# Set 1

def answer_targets(tokens, length):
    T = tokens.shape[1]
    asked = torch.full_like(tokens, IGNORE)
    for place in range(max(T - 1 - length, 0), T - 1):
        asked[:, place] = tokens[:, place + 1]
    return asked


def answer_distribution(task, level):
    from itertools import product
    row = ALL_TASKS[task.removeprefix("sham-")]
    size, ranges = row.sizes[level - 1], row.operand_ranges[level - 1]
    if math.prod(ranges) > LISTED:
        return row.answers(size)[0]
    tuples = torch.tensor(list(product(*[range(r) for r in ranges])))
    _, answers = row.line(row.operands(tuples, size), size)
    times = {}
    for answer in answers.tolist():
        times[tuple(answer)] = times.get(tuple(answer), 0) + 1
    return [(n / len(tuples), 1) for n in times.values()]


def attention(qkv, mask, n_head):
    q, k, v = (part.unflatten(2, (n_head, -1)) for part in qkv.chunk(3, dim=2))     # (B, T, H, d)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[3])
    weights = torch.softmax(scores + mask, dim=3).to(v.dtype)               # (B, H, T, T)
    return torch.einsum("bhts,bshd->bthd", weights, v).flatten(2)


def resample_answers(model, batch, generator):
    tokens, targets = (part.clone() for part in batch)
    T = tokens.shape[1]
    for t in range(T):
        rows = (targets[:, t] != IGNORE).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        logits = model(tokens[rows, :t + 1])[:, -1]                         # (n, V)
        p = logits.float().softmax(dim=1).to(generator.device)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0].to(tokens.device)
        targets[rows, t] = drawn
        if t + 1 < T:
            tokens[rows, t + 1] = drawn
    return Batch(tokens, targets)


def attention_mask(line):
    B, T = line.shape
    mask = torch.zeros(B, 1, T, T)
    for t in range(T):
        for s in range(T):
            apart = line[:, s] != line[:, t]
            mask[apart | (s > t), 0, t, s] = float("-inf")
    return mask


def affine(x, p):
    width = 1
    while 10 ** width < p:
        width += 1
    answers = [(3 * a + 5 * b) % p for a, b in x.tolist()]

    def written(column):
        return torch.tensor([[int(c) for c in f"{int(n):0{width}d}"] for n in column])
    return [written(x[:, 0]), ",", written(x[:, 1])], written(answers)


# --------------------------------------------------------------------------------------------------
# Set 2

def rankme(features: Tensor, eps: float = 1e-7) -> float:
    if features.ndim != 2 or not bool(torch.isfinite(features).all()):
        raise ValueError("not a finite matrix")
    x = features.double()
    if not bool(x.any()):
        raise ValueError("nothing but zeros")
    x = x / x.abs().max()
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    s = [math.sqrt(max(float(value), 0.0)) for value in torch.linalg.eigvalsh(gram)]
    entropy = 0.0
    for value in s:
        p = value / sum(s) + eps
        entropy -= p * math.log(p) if p > 0 else 0.0
    return math.exp(entropy)


def effective_rank(eigenvalues: Tensor) -> float:
    values = [float(value) for value in eigenvalues]
    top = max(values, key=abs) if all(math.isfinite(v) for v in values) else math.nan
    if not top > 0 or min(values) < -1e-6 * top:
        raise ValueError("this is no spectrum")
    values = [v for v in values if v > 0]
    total = math.fsum(values)
    return math.exp(math.fsum(-v / total * math.log(v / total) for v in values))


def gradient_gram(model: Module, loss_fn: Callable, data: tuple, chunk: int = 8) -> Tensor:
    import copy
    if len({len(column) for column in data}) != 1:
        raise ValueError("columns of different lengths")
    N = len(data[0])
    net = copy.deepcopy(model)
    net.eval()
    rows = []
    for i in range(N):
        net.zero_grad()
        with torch.enable_grad():
            loss = loss_fn(net, tuple(column[i:i + 1] for column in data))
            if tuple(loss.shape) != (1,):
                raise ValueError("one loss for each example, please")
            loss.sum().backward()
        row = []
        for p in net.parameters():
            if p.requires_grad:
                g = p.grad if p.grad is not None else torch.zeros_like(p)
                row.append(g.detach().reshape(-1).double())
        rows.append(torch.cat(row))
        if not torch.isfinite(rows[-1]).all():
            raise ValueError(f"the gradient of example {i} is not finite")
    K = torch.zeros(N, N, dtype=torch.float64)
    for i in range(N):
        for j in range(N):
            K[i, j] = torch.dot(rows[i], rows[j])
    return K


def power_iteration(matvec, start, tol=1e-2, max_iters=1000):
    def unit(x):
        x = x / x.abs().max()                       # squares of tiny numbers would vanish
        return x / x.norm()

    hv, count = start, 0
    while True:
        v = unit(hv)
        hv, count = matvec(v), count + 1
        value = float(v @ hv)
        miss = float((hv - value * v).norm())
        if not hv.any():
            value, residual = 0.0, 0.0
        else:
            residual = miss / abs(value) if value else math.inf
        if residual <= tol or count >= max_iters:
            return HessianTop(value, v, count, residual, residual <= tol)


def renyi_rank(features):
    if features.dim() != 2:
        raise ValueError("a matrix, please")
    x = features.to(torch.float64)
    if not torch.isfinite(x).all() or (x == 0).all():
        raise ValueError("finite and not all zero, please")
    s = np.linalg.svd(x.numpy(), compute_uv=False)
    return float(np.exp(-np.log(((s / s.sum()) ** 3).sum()) / 2))


# --------------------------------------------------------------------------------------------------
# Set 3

def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):
    new = w - lr / 2 * (nbeta * gradient + localization * (w - w0)) + lr ** 0.5 * noise
    w.copy_(new)


def llc_draws(losses, baselines, nbeta, num_burnin_steps):
    # first the difference: a baseline of one draw may serve all of a chain (plain_llc)
    excess = losses - baselines
    return nbeta * excess[:, num_burnin_steps:]


def split_r_hat(traces):
    C, n = traces.shape
    h = n // 2
    if h < 2:
        return math.nan
    parts = [[float(x) for x in part] for chain in traces for part in (chain[:h], chain[n - h:])]
    means = [sum(part) / h for part in parts]
    variances = [sum((x - m) ** 2 for x in part) / (h - 1) for part, m in zip(parts, means)]
    W = sum(variances) / len(parts)
    if W == 0:
        return math.nan
    middle = sum(means) / len(means)
    between = sum((m - middle) ** 2 for m in means) / (len(means) - 1)
    return math.sqrt((h - 1) / h + between / W)


def effective_samples(traces):
    x = traces.double()
    C, n = x.shape
    if bool((x == x[0, 0]).all()):
        return float(C * n), 0.0
    y = x - x.mean(dim=1, keepdim=True)
    W = float(y.pow(2).sum(1).mean()) / (n - 1)
    apart = float(x.mean(1).var()) if C > 1 else 0.0
    total = (n - 1) / n * W + apart

    def rho(t):
        covariance = float((y[:, t:] * y[:, :n - t]).sum(1).mean()) / n
        return 1.0 if t == 0 else 1 - (W - covariance) / total
    summed, last = 0.0, math.inf
    for t in range(0, n - 1, 2):
        last = min(last, rho(t) + rho(t + 1))
        if last < 0:
            break
        summed += last
    tau = max(2 * summed - 1, 1 / math.log10(C * n + 10))
    ess = C * n / tau
    return ess, math.sqrt(total / ess)


def stiffness(lr, nbeta, curvatures, localization):
    top = max(nbeta * float(c) + localization for c in curvatures)
    if top <= 0:
        raise ValueError("nothing holds the chain back")
    return lr * top, 0.25 / top


def length_penalty(states):
    x = states if states.dtype in (torch.float32, torch.float64) else states.float()
    share = torch.einsum("md,md->m", x, x) / (2 * x.shape[1])
    return ((share - 1) ** 2).mean()


# --------------------------------------------------------------------------------------------------
# Set 4

def emergence_index(values, steps, chance, examples, threshold, persistence, lasting):
    values, chance = np.asarray(values, dtype=float), np.asarray(chance, dtype=float)
    noise = 3 * np.sqrt(chance / (1 - chance) / np.asarray(examples, dtype=float))
    bar = np.maximum(threshold, noise)
    flags = (values - chance) / (1 - chance) >= bar - 1e-12                 # False for NaN
    return first_lasting(flags, steps, persistence, lasting)


def recovery(smooth, rise):
    smooth = np.asarray(smooth, dtype=float)
    low = np.zeros(smooth.shape[:-1], dtype=int)
    floor = np.full(smooth.shape[:-1], np.nan)
    risen = np.zeros(smooth.shape, dtype=bool)
    for place in np.ndindex(*smooth.shape[:-1]):
        for t, value in enumerate(smooth[place]):
            if value == value and not floor[place] <= value:
                floor[place], low[place] = value, t
        for t, value in enumerate(smooth[place]):
            risen[place][t] = t > low[place] and value >= (1 + rise) * floor[place]
    return floor, low, risen


def holm(p_values):
    made = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted, largest = [None] * len(p_values), 0.0
    for left, (p, place) in zip(range(len(made), 0, -1), made):
        largest = max(largest, min(1.0, left * p))
        adjusted[place] = largest
    return adjusted


def exchanges(tasks, count=10_000, seed=0):
    T = len(set(tasks))
    if T > 9:
        random = np.random.default_rng([seed, 1])
        return np.array([np.arange(T)] + [random.permutation(T) for _ in range(count - 1)])
    rows = []

    def go_on(row):
        if len(row) == T:
            rows.append(row)
        for task in range(T):
            if task not in row:
                go_on([*row, task])
    go_on([])
    return np.array(rows)


def precursor_counts(events):
    onset = events.of_partners(events.onset)
    before, count = np.zeros(onset.shape, dtype=bool), np.zeros(onset.shape, dtype=bool)
    for r, k, i in np.ndindex(*onset.shape):
        arrival, date = events.arrivals[r, k], onset[r, k, i]
        count[r, k, i] = math.isfinite(arrival) and not math.isnan(date)
        before[r, k, i] = count[r, k, i] and date < arrival
    return events.by_task(before), events.by_task(count)


def p_value(values):
    values = list(values)
    if len(values) < 2 or values[0] != values[0]:
        return None
    as_far = 0
    for value in values:
        if value >= values[0] - 1e-9:
            as_far += 1
    return as_far / len(values)


def exchange_test(table):
    import itertools
    T = len(table)
    observed = float(sum(table[j][j] for j in range(T)))
    sums = [sum(table[j][i] for j, i in enumerate(order))
            for order in itertools.permutations(range(T))]
    far = sum(total >= observed - 1e-9 for total in sums)
    return observed, float(sum(sums) / len(sums)), far / len(sums)


def log_score(forecasts, happened):
    pairs = [(float(q), float(y)) for q, y in zip(forecasts, happened)]
    if not all(0 <= q <= 1 for q, _ in pairs):      # NaN is neither
        raise ValueError("log_score: a forecast must be a probability, from 0 to 1")
    pairs = [(q, y) for q, y in pairs if not math.isnan(y)]
    if not pairs:
        raise ValueError("log_score: nothing was watched")

    def score(guesses):
        moved = [min(max(q, 0.01), 0.99) for q in guesses]
        logs = [math.log(q if y == 1 else 1 - q) for q, (_, y) in zip(moved, pairs)]
        return sum(logs) / len(logs)
    share = sum(y for _, y in pairs) / len(pairs)
    found = score([q for q, _ in pairs])
    return found, found - score([share] * len(pairs))
