"""A run of your own, from model to report: python tests/own_run.py, then see runs/grokking.

Addition mod 13, with a third of all pairs held back.  A small network knows the others by heart
after some 50 steps, and those that it never saw after some 200.  Nothing of it is known to `sweep`.
"""
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss, one_hot

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # where the toolkit lies
import measures
import models
import sweep

P = 13
PAIRS = torch.cartesian_prod(torch.arange(P), torch.arange(P))              # (N, 2)
INPUTS, SUMS = one_hot(PAIRS, P).flatten(1).float(), PAIRS.sum(1) % P       # (N, 2 P), (N,)
TARGETS = one_hot(SUMS, P).float()                                          # (N, P)
SEEN = torch.rand(len(PAIRS), generator=torch.Generator().manual_seed(0)) < 0.67


class Network(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.inner = nn.Linear(2 * P, width, bias=False)
        self.outer = nn.Linear(width, P, bias=False)

    def hidden(self, x):
        return self.inner(x).square()

    def forward(self, x):
        return self.outer(self.hidden(x))


def snapshots(seed, state, steps=400):
    """The training loop.  It yields what it has every 20 steps; state: where to go on, or None."""
    torch.manual_seed(seed)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1.0)
    first, loss = 0, None
    if state:
        first = state["step"] + 1
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(first, steps + 1):
        if step:
            loss = mse_loss(model(INPUTS[SEEN]), TARGETS[SEEN])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 20 == 0:
            yield models.Snapshot(step, model, loss, lambda step=step: {
                "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()})


def losses(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)                    # one per example: (B,)


def measure(snapshot):
    """{level: {quantity: number}}.  Accuracy would be enough; whatever else is here is dated."""
    model = snapshot.model
    with torch.no_grad():
        right = (model(INPUTS).argmax(1) == SUMS).double()
        rank = measures.rankme(model.hidden(INPUTS))
    top = measures.hessian_top(model, losses, (INPUTS[SEEN], TARGETS[SEEN]), tol=0.1)
    norm = torch.cat([p.flatten() for p in model.parameters()]).norm()
    return {"levels": {"add mod 13": {
        "accuracy_train": right[SEEN].mean(), "accuracy_test": right[~SEEN].mean(),
        "rankme": rank, "hessian_top": top.eigenvalue, "weight norm": norm}}}


def main(folder="runs/grokking", seeds=3):
    for seed in range(seeds):
        config = {"seed": seed, "chance": 1 / P, "examples": int((~SEEN).sum())}
        sweep.record(Path(folder) / f"mine-s{seed}", config,
                     lambda state, seed=seed: snapshots(seed, state), measure)
    print(f"next: python run.py analyse {folder}")


if __name__ == "__main__":
    main()
