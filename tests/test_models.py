"""The model and its training: counts, causality, layouts, losses, sampling, bits."""
import dataclasses
import doctest
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

import models
import tasks
from models import GPT, SIZES, GPTConfig, TrainConfig, train
from tasks import IGNORE, Batch

TINY = TrainConfig(levels=("parity-1", "modadd-1", "copy-2"), steps=12, per_level=4, snapshots=7, warmup=3)

exercise = pytest.mark.exercise


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(2, 2, 16))


def joint_batches(generator, n=3):
    return [tasks.sample(t, k, n, generator) for t in tasks.TASKS for k in tasks.LEVELS]


@pytest.mark.parametrize("name, millions", [("nano", 0.405), ("micro", 1.34), ("small", 6.0), ("medium", 22.2), ("large", 85), ("xl", 151)])
def test_sizes_have_their_parameters(name, millions):
    with torch.device("meta"):
        built = sum(p.numel() for p in GPT(SIZES[name]).parameters())
    assert built == models.parameter_count(SIZES[name])
    assert built / 1e6 == pytest.approx(millions, rel=0.01)


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


def test_lines_in_a_row_do_not_see_each_other(generator):
    model, batches = tiny_model(), joint_batches(generator)
    ragged = models.lay_out(batches)
    packed = ragged.layout.gather(model(ragged.tokens, ragged.layout))
    alone = torch.cat([model(b.tokens).flatten(0, 1) for b in batches])
    assert (packed - alone).abs().max() < 1e-5
    assert torch.equal(ragged.layout.gather(ragged.tokens), torch.cat([b.tokens.flatten() for b in batches]))
    scored = torch.cat([b.targets.flatten() for b in batches])
    assert torch.equal(ragged.targets, scored[scored != IGNORE])
    only = model(ragged.tokens, ragged.layout, ragged.at)
    assert (only - alone[scored != IGNORE]).abs().max() < 1e-5
    assert ragged.owner.bincount().tolist() == [int((row != IGNORE).sum()) for b in batches for row in b.targets]
    for mine, other in zip(model.hidden_states(ragged.tokens, ragged.layout)[1:], [2, 3]):
        assert torch.isfinite(mine).all(), "places without a line must not become NaN"


@pytest.mark.parametrize("lengths, width", [([5, 3, 7, 7, 1, 2], 8), ([4] * 9, 12), ([1], 1)])
def test_packing_places_every_token_once(lengths, width):
    layout = models.pack(lengths, width)
    assert len(layout.slots) == sum(lengths) == len(layout.slots.unique())
    start = 0
    for n in lengths:
        slots = layout.slots[start:start + n]
        assert (slots.diff() == 1).all() and slots[0] // width == slots[-1] // width, "a line is cut"
        assert layout.positions.flatten()[slots].tolist() == list(range(n))
        start += n
    seen = (layout.mask[:, 0] == 0).sum(-1).flatten()[layout.slots]
    assert seen.tolist() == [t + 1 for n in lengths for t in range(n)], "each place sees its own line up to itself"


@exercise(name="models.attention_mask")
def test_attention_mask_of_one_line_is_causal():
    mask = models.attention_mask(torch.zeros(1, 5, dtype=torch.long))
    assert mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).tolist() == [[s <= t for s in range(5)] for t in range(5)]
    assert set(mask.unique().tolist()) == {0.0, -math.inf}


@exercise(name="models.attention_mask")
def test_attention_mask_of_several_lines_and_of_empty_places():
    line = torch.tensor([[3, 3, 7, 7, 7], [0, 1, 1, -1, -1]])
    seen = (models.attention_mask(line)[:, 0] == 0).sum(-1)                     # by how many places each is let look at
    assert seen.tolist() == [[1, 2, 1, 2, 3], [1, 1, 2, 1, 2]]
    assert models.attention_mask(line)[0, 0, 3].tolist() == [-math.inf, -math.inf, 0, 0, -math.inf]
    assert not models.attention_mask(line).softmax(-1).isnan().any(), "a place that may look nowhere: its softmax is NaN"


def qkv_of(q, k, v):
    """Lists of B x T x D numbers -> (B, T, 3 D)."""
    return torch.cat([torch.tensor(x, dtype=torch.float64) for x in (q, k, v)], -1)


CAUSAL = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)


@exercise(name="models.attention")
def test_attention_with_equal_keys_is_a_mean():
    flat, v = [[[0.0, 0]] * 3], [[[1.0, 10], [2, 20], [6, 60]]]
    assert torch.allclose(models.attention(qkv_of(flat, flat, v), CAUSAL, 1), torch.tensor([[[1.0, 10], [1.5, 15], [3, 30]]]).double())


@exercise(name="models.attention")
@pytest.mark.parametrize("d", [1, 4, 16])
def test_attention_divides_by_the_root_of_a_heads_width(d):
    """q . k = sqrt(d) ln 3 for the second key and 0 for the first: weights 1/4 and 3/4."""
    q = [[[1.0] + [0] * (d - 1)] * 2]
    k = [[[0.0] * d, [math.sqrt(d) * math.log(3)] + [0] * (d - 1)]]
    v = [[[4.0] * d, [8.0] * d]]
    found = models.attention(qkv_of(q, k, v), torch.zeros(2, 2), 1)
    assert torch.allclose(found, torch.full((1, 2, d), 7.0).double()), f"{float(found[0, 0, 0]):.4f} instead of 7"


@exercise(name="models.attention")
def test_attention_heads_are_apart(generator):
    qkv = torch.randn(2, 3, 3 * 8, generator=generator)
    mask = CAUSAL.expand(2, 1, 3, 3)
    whole = models.attention(qkv, mask, 4)
    assert whole.shape == (2, 3, 8)
    for head in range(4):
        columns = [part * 8 + head * 2 + i for part in range(3) for i in range(2)]
        alone = models.attention(qkv[:, :, columns], mask, 1)
        assert torch.allclose(whole[:, :, 2 * head:2 * head + 2], alone, atol=1e-6), f"head {head} is not what it is by itself"


def test_a_line_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="does not fit"):
        models.pack([9], 8)
    with pytest.raises(ValueError, match="block_size"):
        tiny_model()(torch.zeros(1, 40, dtype=torch.long))


def test_example_loss_is_the_mean_over_each_answer(generator):
    model = tiny_model()
    tokens, targets = tasks.sample("add", 2, 5, generator)
    targets[3, (targets[3] != IGNORE).nonzero()[0]] = IGNORE           # answers may differ in length
    expected, total = [], []
    for n in range(5):
        scored = targets[n] != IGNORE
        log_p = model(tokens[n:n + 1])[0].log_softmax(-1)[scored].gather(1, targets[n][scored][:, None])
        expected.append(-log_p.mean())
        total.append(-log_p.sum())
    assert torch.allclose(models.example_loss(model, (tokens, targets)), torch.stack(expected), atol=1e-6)
    assert torch.allclose(models.example_loss_sum(model, (tokens, targets)), torch.stack(total), atol=1e-5)


def test_packed_loss_is_example_loss(generator):
    """Of lines of different lengths, padded to one."""
    model, parts = tiny_model(), joint_batches(generator)
    longest = max(b.tokens.shape[1] for b in parts)
    batch = tuple(torch.cat([F.pad(x, (0, longest - x.shape[1]), value=fill) for x in side])
                  for side, fill in zip(zip(*parts), (tasks.PAD, IGNORE)))
    assert torch.allclose(models.packed_loss(model, batch), models.example_loss(model, batch), atol=1e-6)


def test_hidden_states_end_before_the_final_norm(generator):
    model = tiny_model()
    tokens = tasks.sample("copy", 1, 3, generator).tokens
    states = model.hidden_states(tokens)
    assert [s.shape for s in states] == [(3, 8, 16)] * 3
    assert torch.allclose(F.linear(model.ln_f(states[-1]), model.token_embedding.weight), model(tokens), atol=1e-6)
    assert torch.allclose(states[0], model.token_embedding(tokens) + model.position_embedding.weight[:8])


def counting_model(tokens):
    """Certain that the next token is the last one plus the number of tokens so far, modulo 10."""
    T = tokens.shape[1]
    logits = torch.full((*tokens.shape, 10), -1e9)
    return logits.scatter(2, ((tokens + torch.arange(1, T + 1)) % 10)[:, :, None], 0.0)


@exercise(name="models.resample_answers")
def test_resampled_answers_are_read_by_the_model_that_goes_on(generator):
    tokens = torch.tensor([[1, 2, 0, 0, 0], [5, 5, 5, 0, 0], [7, 7, 7, 7, 7]])
    targets = torch.tensor([[IGNORE, 0, 0, IGNORE, IGNORE], [IGNORE, IGNORE, 0, 0, IGNORE], [IGNORE] * 5])
    kept = tokens.clone(), targets.clone()
    drawn = models.resample_answers(counting_model, (tokens, targets), generator)
    assert drawn.tokens.tolist() == [[1, 2, 4, 7, 0], [5, 5, 5, 8, 2], [7] * 5]
    assert drawn.targets.tolist() == [[IGNORE, 4, 7, IGNORE, IGNORE], [IGNORE, IGNORE, 8, 2, IGNORE], [IGNORE] * 5]
    assert torch.equal(tokens, kept[0]) and torch.equal(targets, kept[1]), "the batch given must stay as it is"


@exercise(name="models.resample_answers")
def test_resampled_answers_are_drawn_not_chosen(generator):
    """The first token is 1 with probability 1/4; then 2 surely after 0, and 3 surely after 1."""
    def model(tokens):
        logits = torch.full((*tokens.shape, 4), -1e9)
        logits[..., :2] = torch.tensor([0.75, 0.25]).log()
        after = tokens[..., None] == torch.arange(4)
        seen = (torch.arange(tokens.shape[1]) >= 1)[None, :, None]
        logits = torch.where(seen & after[..., :1], torch.tensor([-1e9, -1e9, 0, -1e9]), logits)
        return torch.where(seen & after[..., 1:2], torch.tensor([-1e9, -1e9, -1e9, 0]), logits)
    tokens = torch.tensor([[3, 0, 0]]).expand(4000, -1)
    targets = torch.tensor([[0, 0, IGNORE]]).expand(4000, -1)
    drawn = models.resample_answers(model, (tokens, targets), generator)
    ones = drawn.tokens[:, 1] == 1
    assert float(ones.float().mean()) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5)
    assert torch.equal(drawn.tokens[:, 2], 2 + ones.long()) and torch.equal(drawn.targets[:, :2], drawn.tokens[:, 1:])


def test_resampled_answers_follow_the_model(generator):
    """The frequencies of all answers of a two-token answer against the product of the model's conditional probabilities."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(1, 1, 8, vocab_size=tasks.VOCAB_SIZE))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)                                                  # far from uniform
    one = tasks.sample("modadd", 2, 1, generator)
    batch = Batch(one.tokens.expand(20_000, -1), one.targets.expand(20_000, -1))
    drawn = models.resample_answers(model, batch, generator)
    first = int((one.targets[0] != IGNORE).nonzero()[0])
    assert torch.equal(drawn.tokens[:, :first + 1], batch.tokens[:, :first + 1]), "the prompt stays"
    assert torch.equal(drawn.tokens[:, first + 1:], drawn.targets[:, first:-1]), "tokens and targets agree"
    pairs = drawn.tokens[:, -2] * tasks.VOCAB_SIZE + drawn.tokens[:, -1]
    counts = pairs.bincount(minlength=tasks.VOCAB_SIZE ** 2) / 20_000
    p1 = model(one.tokens[:, :first + 1])[0, -1].softmax(-1)
    lines = one.tokens[:, :first + 2].repeat(tasks.VOCAB_SIZE, 1)
    lines[:, -1] = torch.arange(tasks.VOCAB_SIZE)
    exact = (p1[:, None] * model(lines)[:, -1].softmax(-1)).flatten().detach()
    assert (counts - exact).abs().max() < 5 * math.sqrt(0.25 / 20_000)
    assert exact.max() < 0.9


def test_schedule_is_dense_early_and_even_later():
    for steps in (600, 4000, 10_000):
        schedule = models.snapshot_steps(steps)
        assert len(schedule) >= 200 and schedule[0] == 0 and schedule[-1] == steps and schedule == sorted(set(schedule))
        assert sum(s <= steps / 10 for s in schedule) > len(schedule) / 4, "a quarter in the first tenth"
        assert max(b - a for a, b in zip(schedule, schedule[1:])) <= steps / 70
    assert models.snapshot_steps(1) == [0, 1]


def test_learning_rate_warms_up_and_comes_down():
    config = dataclasses.replace(TINY, steps=100, warmup=10, lr=1.0, final_lr=0.1)
    rates = [models.learning_rate(config, s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert max(rates) == 1.0 and rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.1, abs=1e-2)
    assert models.learning_rate(dataclasses.replace(config, warmup=0), 0) == 1.0


def test_loss_counts_each_example_once():
    """The gradient of one step on the packed batch is that of the mean of example_loss over all task-levels."""
    data, model = models.TrainingData(TINY), models.new_model(TINY)
    tokens, targets = data(0)
    packed = F.cross_entropy(model(tokens, data.layout, data.at), targets, reduction="none") @ data.weights
    batches = []
    for name in TINY.levels:
        batch = tasks.sample(*tasks.split_name(name), 64 * 4, tasks.seeded("cpu", "train", 0, name, 0), "train")
        batches.append(Batch(batch.tokens[:4], batch.targets[:4]))
    plain = torch.cat([models.example_loss(model, b) for b in batches]).mean()
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)


def final_weights(config, **kwargs):
    for snapshot in train(config, **kwargs):
        pass
    return torch.cat([p.flatten() for p in snapshot.model.parameters()]).detach()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_config_gives_the_same_bits_and_another_seed_does_not(dtype):
    config = dataclasses.replace(TINY, dtype=dtype)
    assert torch.equal(final_weights(config), final_weights(config))
    assert not torch.equal(final_weights(config), final_weights(dataclasses.replace(config, seed=1)))


def test_resuming_gives_the_same_bits():
    straight = [s.loss for s in train(TINY)]
    for stop in (0, 3, 12):
        for snapshot in train(TINY):
            if snapshot.step >= stop:
                break
        state = torch.load(_saved(snapshot.state()), weights_only=True)
        assert torch.equal(final_weights(TINY), final_weights(TINY, resume=state)) if snapshot.step < 12 else True
        losses = [s.loss for s in train(TINY, resume=state)]
        assert losses == straight[len(straight) - len(losses):]


def _saved(state):
    import io
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_training_learns_and_leaves_the_callers_random_state_alone():
    config = dataclasses.replace(TINY, levels=("parity-1",), steps=150, per_level=16, warmup=10)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    losses = [s.loss for s in train(config)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert losses[1] > 2 and losses[-1] < 0.75, losses                 # from ln 29 = 3.4 to ln 2 = 0.69 or below


def test_a_loss_that_is_not_finite_stops_with_its_step():
    with pytest.raises(FloatingPointError, match=r"step \d+"):
        for _ in train(dataclasses.replace(TINY, lr=1e30, clip=1e30, warmup=0)):
            pass


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same_training():
    losses = [[s.loss for s in train(dataclasses.replace(TINY, compile=k))][1:] for k in (0, 1)]
    assert len(losses[0]) > 2 and losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_trains_and_agrees_with_the_cpu():
    config = dataclasses.replace(TINY, levels=("parity-1",), steps=100, per_level=16, warmup=10)
    assert [s.loss for s in train(dataclasses.replace(config, device="cuda"))][-1] < 0.75


def test_examples_in_the_docstrings():
    assert doctest.testmod(models).failed == 0
