"""A small network in stages, its data, every gradient source, and one step of it."""

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from linnet import Backprop, Delayed, DirectFeedback, LocalLoss, Synthetic


def network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    ).double()


def batches(count, seed=1, size=7):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        yield x, torch.randint(0, 3, (size,), generator=generator)


def adam(net, lr=1e-2):
    return torch.optim.Adam(net.parameters(), lr=lr)


def output_of(dni, x, y, model=None):
    """What the network gives; its sources are told the labels if they need them. ``model``: what it is wrapped in."""
    with dni.context(y) if dni.conditioned else nullcontext():
        return (model or dni)(x)


def step(dni, opt, x, y, criterion=F.cross_entropy):
    opt.zero_grad()
    loss = criterion(output_of(dni, x, y), y)
    loss.backward()
    opt.step()
    return loss.detach()


def train(dni, opt, data):
    for x, y in data:
        step(dni, opt, x, y)


def grads(module):
    return [p.grad.clone() for p in module.parameters()]


def close(first, second, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(first, second, strict=True))


def same_state(first, second):
    a, b = first.state_dict(), second.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def true_gradients(net, x, y):
    plain = copy.deepcopy(net)
    plain.zero_grad()
    F.cross_entropy(plain(x), y).backward()
    return grads(plain)


SOURCES = {
    "synthetic": Synthetic(),
    "conditioned": Synthetic(context=3),
    "mixed": Synthetic(context=3, mix=0.5),
    "observed": Synthetic(mix=1.0),
    "true targets": Synthetic(targets="true"),
    "local": LocalLoss(F.cross_entropy, 3),
    "feedback": DirectFeedback(),
    "delayed": Delayed(2),
    "backprop": Backprop(),
}
