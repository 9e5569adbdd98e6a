"""The model and its training: counts, causality, losses, sampling, bits, interventions, packing."""
import dataclasses
import doctest
import io
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

import models
import tasks
from models import GPT, SIZES, GPTConfig, Intervention, TrainConfig, train
from tasks import IGNORE, Batch

TINY = TrainConfig(levels=("parity-1", "modadd-1", "copy-2"), steps=12, per_level=4, snapshots=7,
                   warmup=3)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(2, 2, 16))


def joint_batches(generator, n=3):
    return [tasks.sample(task, level, n, generator)
            for task in tasks.TASKS for level in tasks.LEVELS]


# --------------------------------------------------------------------------------------------------
# The model

@pytest.mark.parametrize("name, millions", [
    ("nano", 0.409), ("micro", 1.35), ("small", 6.0), ("medium", 22.2), ("large", 85), ("xl", 151)])
def test_sizes_have_their_parameters(name, millions):
    with torch.device("meta"):
        built = sum(p.numel() for p in GPT(SIZES[name]).parameters())
    assert built == models.parameter_count(SIZES[name])
    assert built / 1e6 == pytest.approx(millions, rel=0.01)


def test_parameters_keep_their_order():
    """Eigenvectors and gradients of saved runs are vectors over all parameters, in this order."""
    names = [name.removeprefix("blocks.0.") for name, _ in tiny_model().named_parameters()]
    block = ["ln_1", "ln_2", "attn.qkv", "attn.proj", "mlp.up", "mlp.down"]
    expected = [f"{name}.{part}" for name in block for part in ("weight", "bias")]
    assert names[2:14] == expected


def test_weights_begin_as_in_gpt_2():
    model = models.new_model(dataclasses.replace(TINY, size="micro"))
    assert float(model.token_embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for block in model.blocks:
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.down):
            expected = 0.02 / math.sqrt(2 * 3)
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.05)
            assert not layer.bias.any()


def test_a_future_token_changes_no_earlier_logit(generator):
    model = tiny_model()
    tokens = tasks.sample("sort", 3, 4, generator).tokens
    before = model(tokens)
    for t in range(1, tokens.shape[1]):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 3) % tasks.VOCAB_SIZE
        after = model(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t], after[:, t])


def test_hidden_states_end_before_the_final_norm(generator):
    model = tiny_model()
    tokens = tasks.sample("copy", 1, 3, generator).tokens
    states = model.hidden_states(tokens)
    assert [x.shape for x in states] == [(3, 8, 16)] * 3
    logits = F.linear(model.ln_f(states[-1]), model.token_embedding.weight)
    assert torch.allclose(logits, model(tokens), atol=1e-6)
    embedded = model.token_embedding(tokens) + model.position_embedding.weight[:8]
    assert torch.allclose(states[0], embedded)


def test_a_line_longer_than_the_block_size_is_an_error():
    with pytest.raises(ValueError, match="block_size"):
        tiny_model()(torch.zeros(1, 40, dtype=torch.long))


def qkv_of(q, k, v):
    """Lists of B x T x D numbers -> (B, T, 3 D)."""
    return torch.cat([torch.tensor(x, dtype=torch.float64) for x in (q, k, v)], -1)


CAUSAL = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)


def test_attention_with_equal_keys_is_a_mean():
    flat, v = [[[0.0, 0]] * 3], [[[1.0, 10], [2, 20], [6, 60]]]
    expected = torch.tensor([[[1.0, 10], [1.5, 15], [3, 30]]]).double()
    assert torch.allclose(models.attention(qkv_of(flat, flat, v), CAUSAL, 1), expected)


@pytest.mark.parametrize("d", [1, 4, 16])
def test_attention_divides_by_the_root_of_a_heads_width(d):
    """q . k = sqrt(d) ln 3 for the second key and 0 for the first: weights 1/4 and 3/4."""
    q = [[[1.0] + [0] * (d - 1)] * 2]
    k = [[[0.0] * d, [math.sqrt(d) * math.log(3)] + [0] * (d - 1)]]
    v = [[[4.0] * d, [8.0] * d]]
    found = models.attention(qkv_of(q, k, v), torch.zeros(2, 2), 1)
    expected = torch.full((1, 2, d), 7.0).double()
    assert torch.allclose(found, expected), f"{float(found[0, 0, 0]):.4f} instead of 7"


def test_attention_heads_are_apart(generator):
    qkv = torch.randn(2, 3, 3 * 8, generator=generator)
    mask = CAUSAL.expand(2, 1, 3, 3)
    whole = models.attention(qkv, mask, 4)
    assert whole.shape == (2, 3, 8)
    for head in range(4):
        columns = [part * 8 + head * 2 + i for part in range(3) for i in range(2)]
        alone = models.attention(qkv[:, :, columns], mask, 1)
        found = whole[:, :, 2 * head:2 * head + 2]
        assert torch.allclose(found, alone, atol=1e-6), f"head {head} is not what it is by itself"


# --------------------------------------------------------------------------------------------------
# Losses and answers

def test_example_loss_is_the_mean_over_each_answer(generator):
    model = tiny_model()
    tokens, targets = tasks.sample("add", 2, 5, generator)
    targets[3, (targets[3] != IGNORE).nonzero()[0]] = IGNORE          # answers may differ in length
    expected, total = [], []
    for n in range(5):
        scored = targets[n] != IGNORE
        log_p = model(tokens[n:n + 1])[0].log_softmax(-1)[scored]
        log_p = log_p.gather(1, targets[n][scored][:, None])
        expected.append(-log_p.mean())
        total.append(-log_p.sum())
    batch = (tokens, targets)
    assert torch.allclose(models.example_loss(model, batch), torch.stack(expected), atol=1e-6)
    assert torch.allclose(models.example_loss_sum(model, batch), torch.stack(total), atol=1e-5)


def counting_model(tokens):
    """Certain that the next token is the last one plus the number of tokens so far, modulo 10."""
    T = tokens.shape[1]
    logits = torch.full((*tokens.shape, 10), -1e9)
    return logits.scatter(2, ((tokens + torch.arange(1, T + 1)) % 10)[:, :, None], 0.0)


def test_resampled_answers_are_read_by_the_model_that_goes_on(generator):
    tokens = torch.tensor([[1, 2, 0, 0, 0], [5, 5, 5, 0, 0], [7, 7, 7, 7, 7]])
    targets = torch.tensor([[IGNORE, 0, 0, IGNORE, IGNORE], [IGNORE, IGNORE, 0, 0, IGNORE],
                            [IGNORE] * 5])
    kept = tokens.clone(), targets.clone()
    drawn = models.resample_answers(counting_model, (tokens, targets), generator)
    assert drawn.tokens.tolist() == [[1, 2, 4, 7, 0], [5, 5, 5, 8, 2], [7] * 5]
    assert drawn.targets.tolist() == [[IGNORE, 4, 7, IGNORE, IGNORE],
                                      [IGNORE, IGNORE, 8, 2, IGNORE], [IGNORE] * 5]
    assert torch.equal(tokens, kept[0]), "the batch given must stay as it is"
    assert torch.equal(targets, kept[1]), "the batch given must stay as it is"


def test_resampled_answers_are_drawn_not_chosen(generator):
    """The first token is 1 with probability 1/4; then 2 surely after 0, and 3 surely after 1."""
    never = -1e9

    def model(tokens):
        logits = torch.full((*tokens.shape, 4), never)
        logits[..., :2] = torch.tensor([0.75, 0.25]).log()
        after = tokens[..., None] == torch.arange(4)
        later = (torch.arange(tokens.shape[1]) >= 1)[None, :, None]
        two, three = torch.tensor([never, never, 0, never]), torch.tensor([never, never, never, 0])
        logits = torch.where(later & after[..., :1], two, logits)
        return torch.where(later & after[..., 1:2], three, logits)

    tokens = torch.tensor([[3, 0, 0]]).expand(4000, -1)
    targets = torch.tensor([[0, 0, IGNORE]]).expand(4000, -1)
    drawn = models.resample_answers(model, (tokens, targets), generator)
    ones = drawn.tokens[:, 1] == 1
    share = float(ones.float().mean())
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)
    assert torch.equal(drawn.tokens[:, 2], 2 + ones.long())
    assert torch.equal(drawn.targets[:, :2], drawn.tokens[:, 1:])


def test_resampled_answers_follow_the_model(generator):
    """The frequencies of all answers of two tokens, against the product of the model's conditional
    probabilities."""
    n, V = 20_000, tasks.VOCAB_SIZE
    torch.manual_seed(1)
    model = GPT(GPTConfig(1, 1, 8))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)                                                 # far from uniform
    one = tasks.sample("modadd", 2, 1, generator)
    batch = Batch(one.tokens.expand(n, -1), one.targets.expand(n, -1))
    drawn = models.resample_answers(model, batch, generator)

    first = int((one.targets[0] != IGNORE).nonzero()[0])
    prompt = slice(first + 1)
    assert torch.equal(drawn.tokens[:, prompt], batch.tokens[:, prompt]), "the prompt stays"
    assert torch.equal(drawn.tokens[:, first + 1:], drawn.targets[:, first:-1])

    pairs = drawn.tokens[:, -2] * V + drawn.tokens[:, -1]
    counts = pairs.bincount(minlength=V ** 2) / n
    p1 = model(one.tokens[:, prompt])[0, -1].softmax(-1)
    lines = one.tokens[:, :first + 2].repeat(V, 1)
    lines[:, -1] = torch.arange(V)
    p2 = model(lines)[:, -1].softmax(-1)
    exact = (p1[:, None] * p2).flatten().detach()
    assert (counts - exact).abs().max() < 5 * math.sqrt(0.25 / n)
    assert exact.max() < 0.9


# --------------------------------------------------------------------------------------------------
# Training

def test_schedule_is_dense_early_and_even_later():
    for steps in (600, 4000, 10_000):
        schedule = models.snapshot_steps(steps)
        assert len(schedule) >= 121 and schedule == sorted(set(schedule))
        assert schedule[0] == 0 and schedule[-1] == steps
        early = sum(step <= steps / 10 for step in schedule)
        assert early > len(schedule) / 4, "a quarter of them in the first tenth"
        assert max(b - a for a, b in zip(schedule, schedule[1:])) <= steps / 40
    assert models.snapshot_steps(1) == [0, 1]


def test_learning_rate_warms_up_and_comes_down():
    config = dataclasses.replace(TINY, steps=100, warmup=10, lr=1.0, final_lr=0.1)
    rates = [models.learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)
    assert models.learning_rate(dataclasses.replace(config, warmup=0), 0) == 1.0


def test_loss_counts_each_example_once():
    """The loss of one step on the packed batch is the mean of example_loss over all task-levels."""
    data, model = models.TrainingData(TINY), models.new_model(TINY)
    packed = models.training_step(model, models.new_optimizer(model, TINY), data, TINY, 0)
    model, plain = models.new_model(TINY), []
    for name in TINY.levels:
        generator = tasks.seeded("cpu", "train", 0, name, 0)
        batch = tasks.sample(*tasks.split_name(name), 64 * 4, generator, "train")
        plain.append(models.example_loss(model, Batch(batch.tokens[:4], batch.targets[:4])))
    assert packed.item() == pytest.approx(torch.cat(plain).mean().item(), rel=1e-5)


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()]).detach()


def final_weights(config, **kwargs):
    *_, snapshot = train(config, **kwargs)
    return weights(snapshot.model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_config_gives_the_same_bits_and_another_seed_does_not(dtype):
    config = dataclasses.replace(TINY, dtype=dtype)
    assert torch.equal(final_weights(config), final_weights(config))
    other = dataclasses.replace(config, seed=1)
    assert not torch.equal(final_weights(config), final_weights(other))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def snapshot_at(config, step):
    """The first snapshot at or after a step."""
    return next(snapshot for snapshot in train(config) if snapshot.step >= step)


@pytest.mark.parametrize("stop", [0, 3, 12])
def test_resuming_gives_the_same_bits(stop):
    straight = list(train(TINY))
    snapshot = snapshot_at(TINY, stop)
    state = saved_and_loaded(snapshot.state())
    rest = list(train(TINY, resume=state))
    assert [s.loss for s in rest] == [s.loss for s in straight if s.step > snapshot.step]
    if rest:
        assert torch.equal(weights(rest[-1].model), weights(straight[-1].model))


def test_resuming_leaves_the_state_that_it_was_given():
    state = saved_and_loaded(snapshot_at(TINY, 3).state())
    first = final_weights(TINY, resume=state)
    assert torch.equal(first, final_weights(TINY, resume=state))


def test_training_learns_and_leaves_the_callers_random_state_alone():
    config = dataclasses.replace(TINY, levels=("parity-1",), steps=150, per_level=16, warmup=10)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    losses = [snapshot.loss for snapshot in train(config)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert losses[1] > 2 and losses[-1] < 0.75, losses              # ln 64 = 4.16, then ln 2 = 0.69


def test_a_loss_that_is_not_finite_stops_with_its_step():
    with pytest.raises(FloatingPointError, match=r"step \d+"):
        list(train(dataclasses.replace(TINY, lr=1e30, clip=1e30, warmup=0)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same_training():
    plain, compiled = [[snapshot.loss for snapshot in train(dataclasses.replace(TINY, compile=k))]
                       for k in (0, 1)]
    assert len(plain) > 3 and compiled[1:] == pytest.approx(plain[1:], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_training_learns():
    config = dataclasses.replace(TINY, levels=("parity-1",), steps=100, per_level=16, warmup=10,
                                 device="cuda")
    *_, snapshot = train(config)
    assert snapshot.loss < 0.75


# --------------------------------------------------------------------------------------------------
# Interventions

class SmallStates(Intervention):
    def penalty(self, states, scored, step):
        return states.square().mean()


class Biased(GPT):
    """A GPT with a trainable bias on its logits."""

    def __init__(self, config):
        super().__init__(config)
        self.bias = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def logits(self, states, where=None):
        return super().logits(states) + self.bias


class HeadBias(Intervention):
    def wrap(self, model):
        wrapped = Biased(model.config)
        wrapped.load_state_dict(model.state_dict(), strict=False)
        return wrapped


class FrozenPositions(Intervention):
    def wrap(self, model):
        self.frozen = model.position_embedding.weight
        return model

    def gradients(self, params, penalty):
        self.frozen.grad.zero_()


@pytest.fixture
def named(monkeypatch):
    """named(SomeIntervention) -> TINY with that intervention, under a name of its own."""
    def name(kind, **fields):
        monkeypatch.setitem(models.INTERVENTIONS, kind.__name__, kind)
        return dataclasses.replace(TINY, intervene=kind.__name__, **fields)
    return name


def test_an_intervention_that_does_nothing_gives_the_same_bits_as_none(named):
    class Nothing(Intervention):
        pass

    assert torch.equal(final_weights(named(Nothing, strength=5.0, until=3)), final_weights(TINY))


def test_a_penalty_changes_the_weights_and_does_what_it_asks(named):
    config = named(SmallStates, strength=10.0)
    assert not torch.equal(final_weights(config), final_weights(TINY))
    batch = tasks.sample("copy", 2, 50, tasks.seeded("cpu", "any"))
    sizes = []
    for each in (config, TINY):
        *_, snapshot = train(each)
        sizes.append(snapshot.model.hidden_states(batch.tokens)[-1].square().mean())
    assert sizes[0] < sizes[1]


def test_a_penalty_of_no_strength_changes_nothing(named):
    assert torch.equal(final_weights(named(SmallStates, strength=0.0)), final_weights(TINY))


def test_a_penalty_is_shown_the_last_states_and_the_targets_of_its_step(named):
    seen = []

    class Looking(Intervention):
        def penalty(self, states, scored, step):
            seen.append((states.detach(), scored, step))

    list(train(named(Looking)))
    model, data = models.new_model(TINY), models.TrainingData(TINY)
    tokens, expected = data(0)
    states, (targets, level, place), step = seen[0]
    assert step == 0 and [s for _, _, s in seen] == list(range(12))
    assert torch.equal(targets, expected) and states.shape == (len(targets), 128)
    names = tasks.level_names()
    assert {names[i] for i in level.tolist()} == set(TINY.levels) and (place == 0).any()
    _, last = models.walk(model, tokens, data.layout, data.positions)
    assert torch.equal(states, last)


def test_a_penalty_stops_after_the_steps_that_it_is_given(named):
    steps = []

    class Counting(SmallStates):
        def penalty(self, states, scored, step):
            steps.append(step)
            return super().penalty(states, scored, step)

        def gradients(self, params, penalty):
            assert penalty is not None and params[0].grad is not None

    always = final_weights(named(Counting))
    assert steps == list(range(12))
    steps.clear()
    early = final_weights(named(Counting, until=4))
    assert steps == [0, 1, 2, 3]
    assert not torch.equal(early, always) and not torch.equal(early, final_weights(TINY))


def test_the_loss_that_is_reported_is_without_the_penalty(named):
    first = [[s.loss for s in train(c)][1] for c in (named(SmallStates, strength=100.0), TINY)]
    assert first[0] == first[1], "before the first update both have the same weights"


def test_gradients_can_be_changed(named):
    *_, snapshot = train(named(FrozenPositions, weight_decay=0.0))
    begin = models.new_model(TINY).position_embedding.weight
    assert torch.equal(snapshot.model.position_embedding.weight, begin)


def test_a_wrapped_model_is_what_is_trained_and_handed_out(named, generator):
    config = named(HeadBias)
    *_, snapshot = train(config)
    model = snapshot.model
    assert isinstance(model, Biased) and model.bias.abs().sum() > 0, "the bias is trained"
    batch = tasks.sample("modadd", 1, 5, generator)
    found = models.packed_loss(model, batch)
    assert torch.allclose(found, models.example_loss(model, batch), atol=1e-6), "both see the bias"

    fresh = models.new_model(config)                  # what others load saved weights into
    fresh.load_state_dict(snapshot.state()["model"])
    assert torch.equal(fresh(batch.tokens), model(batch.tokens))


@pytest.mark.parametrize("kind", [SmallStates, HeadBias, FrozenPositions])
def test_resuming_with_an_intervention_gives_the_same_bits(kind, named):
    config = named(kind, until=8)
    state = saved_and_loaded(snapshot_at(config, 5).state())
    assert torch.equal(final_weights(config, resume=state), final_weights(config))


def joint(**fields):
    """A few steps on levels of several kinds."""
    return TrainConfig(levels=("parity-2", "modadd-2", "sort-2", "sham-add-1"), per_level=6,
                       steps=30, warmup=5, snapshots=2, lr=2e-3, **fields)


def place_entropies(name):
    """How surprising an answer is to a guess that knows the frequencies at each place: in nats."""
    f = tasks.answer_frequencies(*tasks.split_name(name))
    return -torch.special.xlogy(f, f).sum().item()


@pytest.mark.parametrize("name", ["parity-2", "modadd-2", "sort-2", "sham-parity-2"])
def test_with_marginal_the_untrained_model_already_guesses_by_frequency(name):
    model = models.new_model(joint(intervene="marginal"))
    batch = tasks.sample(*tasks.split_name(name), 1000, tasks.seeded("cpu", "marginal"))
    found = models.example_loss_sum(model, batch).mean().item()
    assert found == pytest.approx(place_entropies(name), rel=0.04)
    plain = models.example_loss_sum(models.new_model(joint()), batch).mean().item()
    assert plain > 1.5 * found
    packed = models.packed_loss(model, batch)
    torch.testing.assert_close(packed, models.example_loss(model, batch))


def test_with_wrong_marginal_it_guesses_as_if_it_were_the_next_task():
    names = dict(zip(tasks.level_names(), models.WrongMarginal(joint()).names()))
    assert names["copy-1"] == "reverse-1" and names["multiply-3"] == "copy-3"
    assert names["sham-modadd-2"] == "sort-2" and names["permute-1"] == "maximum-1"
    model = models.new_model(joint(intervene="wrong-marginal"))
    batch = tasks.sample("modadd", 2, 500, tasks.seeded("cpu", "wrong"))
    p = model(batch.tokens).softmax(-1)[batch.targets != tasks.IGNORE].view(500, -1, 64).mean(0)
    wrong, own = (tasks.answer_frequencies(task, 2)[:1] for task in ("sort", "modadd"))
    guess = p[:1].double()
    assert (guess - wrong).abs().sum() < 0.3 * (guess - own).abs().sum()


def test_concentration_in_closed_form():
    level, place = torch.tensor([3] * 4 + [7] * 4), torch.zeros(8, dtype=torch.long)
    scored = models.Scored(None, level, place)
    parallel, orthogonal = torch.ones(4, 6), 5 * torch.eye(4, 6)
    both = torch.cat([parallel, orthogonal])
    assert models.concentration(both, scored).item() == pytest.approx((1 + 1 / 4) / 2)


def rank_after(name, **fields):
    *_, snapshot = train(joint(intervene=name, **fields))
    batch = tasks.sample("sort", 2, 100, tasks.seeded("cpu", "rank"))
    first = tasks.level_and_place(batch.tokens)[1] == 0
    states = snapshot.model.hidden_states(batch.tokens)[-1][first]
    gram = states @ states.T
    return (gram.square().sum() / gram.trace().square()).item()


def test_rank_up_holds_the_rank_up_and_rank_down_holds_it_down():
    up, none, down = (rank_after(name, strength=3.0) for name in ("rank-up", "", "rank-down"))
    assert up < 0.9 * none < none < down


def test_the_placebos_gradient_is_as_large_as_that_of_rank_up():
    norms = {}
    for name in ("rank-up", "placebo"):
        config = joint(intervene=name)
        intervention = models.new_intervention(config)
        model, data = models.new_model(config, intervention), models.TrainingData(config)
        tokens, targets = data(0)
        states, _ = models.packed_forward(model, tokens, data.layout, data.positions)
        scored = models.Scored(targets, *data.layout.at(data.positions))
        intervention.penalty(states, scored, 0).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norms[name] = torch.stack([g.norm() for g in grads]).norm().item()
    assert norms["placebo"] == pytest.approx(norms["rank-up"], rel=1e-3)


@pytest.mark.parametrize("name", list(models.INTERVENTIONS))
def test_every_intervention_trains_and_resumes_to_the_same_bits(name):
    config = dataclasses.replace(joint(intervene=name), steps=8)
    state = saved_and_loaded(snapshot_at(config, 0).state())
    weights = final_weights(config)
    assert torch.isfinite(weights).all()
    assert torch.equal(weights, final_weights(config, resume=state))
    assert not torch.equal(weights[:1000], final_weights(dataclasses.replace(config, intervene=""))
                           [:1000])


def test_text_fills_the_batch_and_each_line_counts_once():
    data = models.TrainingData(joint(filler=3))
    tokens, targets = data(0)
    text = targets >= tasks.VOCAB_SIZE
    assert int(text.sum()) == 4 * 6 * 3 * (tasks.TEXT_LINE - 1)
    assert data.weights.sum().item() == pytest.approx(1)
    assert data.weights[text].sum().item() == pytest.approx(3 / 4)
    level, place = data.layout.at(data.positions)
    assert (place[text] == -1).all() and (place[~text] >= 0).all()
    snapshot = next(iter(train(joint(filler=3))))
    assert snapshot.model.config.vocab_size == tasks.VOCAB_SIZE + len(tasks.text()[1])


def test_no_text_leaves_the_lines_of_tasks_as_they_are_and_its_vocabulary_in_place():
    without, none = models.TrainingData(joint()), models.TrainingData(joint(filler=0))
    assert all(torch.equal(a, b) for a, b in zip(without(0), none(0)))
    assert models.gpt_config(joint(filler=0)) == models.gpt_config(joint(filler=10))
    task_lines = {tuple(row.tolist()) for row in joint_tokens(joint())}
    assert task_lines <= {tuple(row.tolist()) for row in joint_tokens(joint(filler=3))}


def joint_tokens(config):
    return [row for batch in models.TrainingData(config).lines(2, 0) for row in batch.tokens]


def test_an_unknown_intervention_names_the_known_ones(named):
    named(SmallStates)
    with pytest.raises(ValueError, match="'nothing'.*SmallStates"):
        next(train(dataclasses.replace(TINY, intervene="nothing")))


# --------------------------------------------------------------------------------------------------
# Packing

def test_lines_in_a_row_do_not_see_each_other(generator):
    model, batches = tiny_model(), joint_batches(generator)
    packed = models.lay_out(batches)
    slots = packed.layout.slots
    alone = torch.cat([model(b.tokens).flatten(0, 1) for b in batches])
    together = models.packed_logits(model, packed.tokens, packed.layout, slots)
    assert (together - alone).abs().max() < 1e-5
    tokens = torch.cat([b.tokens.flatten() for b in batches])
    assert torch.equal(packed.tokens.flatten()[slots], tokens)

    targets = torch.cat([b.targets.flatten() for b in batches])
    scored = targets != IGNORE
    assert torch.equal(packed.targets, targets[scored])
    only = models.packed_logits(model, packed.tokens, packed.layout, packed.positions)
    assert (only - alone[scored]).abs().max() < 1e-5
    counts = [int((row != IGNORE).sum()) for b in batches for row in b.targets]
    assert packed.owner.bincount().tolist() == counts


def test_packed_states_are_the_hidden_states(generator):
    model, batches = tiny_model(), joint_batches(generator)
    packed = models.lay_out(batches)
    states, last = models.walk(model, packed.tokens, packed.layout, None)
    whole = [*states, last]
    states, last = models.walk(model, packed.tokens, packed.layout, packed.layout.slots)
    picked = [*(x.flatten(0, 1)[packed.layout.slots] for x in states), last]
    plain = [model.hidden_states(b.tokens) for b in batches]
    assert len(whole) == len(picked) == 3
    for layer, states in enumerate(picked):
        alone = torch.cat([states[layer].flatten(0, 1) for states in plain])
        assert (states - alone).abs().max() < 1e-5
        grid = whole[layer].flatten(0, 1)[packed.layout.slots]
        assert (grid - states).abs().max() < 1e-6
        assert torch.isfinite(whole[layer]).all(), "places without a line must not become NaN"


@pytest.mark.parametrize("lengths, width", [([5, 3, 7, 7, 1, 2], 8), ([4] * 9, 12), ([1], 1)])
def test_packing_places_every_token_once(lengths, width):
    layout = models.pack(lengths, width)
    assert len(layout.slots) == sum(lengths) == len(layout.slots.unique())
    start = 0
    for n in lengths:
        slots = layout.slots[start:start + n]
        assert (slots.diff() == 1).all(), "a line is scattered"
        assert slots[0] // width == slots[-1] // width, "a line is cut"
        assert layout.offsets.flatten()[slots].tolist() == list(range(n))
        start += n
    seen = (layout.mask[:, 0] == 0).sum(-1).flatten()[layout.slots]
    expected = [t + 1 for n in lengths for t in range(n)]
    assert seen.tolist() == expected, "each place sees its own line up to itself"


def test_spread_puts_values_where_their_lines_stand():
    layout = models.pack([2, 3, 1], 4)
    flat = torch.arange(12).view(2, 6)
    grid = layout.spread(flat, -7)
    assert grid.shape == (2, *layout.offsets.shape)
    assert torch.equal(grid.flatten(1)[:, layout.slots], flat)
    assert (grid == -7).sum() == 2 * (layout.offsets.numel() - 6)


def test_a_line_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="does not fit"):
        models.pack([9], 8)


def test_packed_loss_is_example_loss(generator):
    """Of lines of different lengths, padded to one."""
    model, batches = tiny_model(), joint_batches(generator)
    longest = max(b.tokens.shape[1] for b in batches)
    tokens, targets = [], []
    for batch in batches:
        missing = (0, longest - batch.tokens.shape[1])
        tokens.append(F.pad(batch.tokens, missing, value=tasks.PAD))
        targets.append(F.pad(batch.targets, missing, value=IGNORE))
    batch = (torch.cat(tokens), torch.cat(targets))
    found, expected = models.packed_loss(model, batch), models.example_loss(model, batch)
    assert torch.allclose(found, expected, atol=1e-6)


def test_attention_mask_of_one_line_is_causal():
    mask = models.attention_mask(torch.zeros(1, 5, dtype=torch.long))
    assert mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).tolist() == [[s <= t for s in range(5)] for t in range(5)]
    assert set(mask.unique().tolist()) == {0.0, -math.inf}


def test_attention_mask_of_several_lines_and_of_empty_places():
    line = torch.tensor([[3, 3, 7, 7, 7], [0, 1, 1, -1, -1]])
    mask = models.attention_mask(line)
    seen = (mask[:, 0] == 0).sum(-1)                  # how many places each one may look at
    assert seen.tolist() == [[1, 2, 1, 2, 3], [1, 1, 2, 1, 2]]
    assert mask[0, 0, 3].tolist() == [-math.inf, -math.inf, 0, 0, -math.inf]
    assert not mask.softmax(-1).isnan().any(), "a place that may look nowhere: its softmax is NaN"


def test_examples_in_the_docstrings():
    assert doctest.testmod(models).failed == 0
