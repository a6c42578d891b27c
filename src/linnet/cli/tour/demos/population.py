"""Demo: hundreds of networks trained at once, each as it would be alone."""

import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from linnet.cli.data.data_sets import Data
from linnet.cli.tour.demos.demo import Demo, Progress, accuracy
from linnet.core.being import Spread
from linnet.core.linear import Linear
from linnet.core.palette import BLUE, GREY
from linnet.wide.losses import per_being

NETS, HIDDEN, BATCH, EPOCHS, ROUNDS, RATE = 500, 32, 32, 15, 8, 0.05


def build(features: int, classes: int) -> tuple[list[nn.Sequential], tuple[Linear, Linear]]:
    """NETS ordinary nets, net i drawn from seed i, and the two populations of layers made of them."""
    firsts, lasts = [], []
    for seed in range(NETS):
        torch.manual_seed(seed)
        firsts.append(nn.Linear(features, HIDDEN))
        lasts.append(nn.Linear(HIDDEN, classes))
    nets = [nn.Sequential(first, nn.ReLU(), last) for first, last in zip(firsts, lasts, strict=True)]
    return nets, (Linear.from_linears(firsts), Linear.from_linears(lasts))


def run(data: Data, progress: Progress) -> Demo:
    """Holds if a step of the population is at least 5 times as fast as a loop over the nets, and the nets are the same.

    Both take the same steps in turn, so that neither is favoured by what else the machine does; the same means that
    after these steps no weight differs by more than 1e-4.
    """
    nets, (first, last) = build(data.features, data.classes)
    wide = nn.Sequential(Spread(), first, nn.ReLU(), last)
    optimizers = [torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9) for net in nets]
    optimizer = torch.optim.SGD(wide.parameters(), lr=RATE, momentum=0.9)
    loss = per_being(F.cross_entropy)
    inputs, targets = data.train.inputs, data.train.targets

    def together(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss(wide(inputs[batch]), targets[batch]).sum().backward()
        optimizer.step()

    def one_by_one(batch: torch.Tensor) -> None:
        for net, own in zip(nets, optimizers, strict=True):
            own.zero_grad()
            F.cross_entropy(net(inputs[batch]), targets[batch]).backward()
            own.step()

    torch.manual_seed(0)
    times: dict[str, list[float]] = {"together": [], "one by one": []}
    for done in range(ROUNDS):
        batch = torch.randperm(len(inputs))[:BATCH]
        for name, step in (("together", together), ("one by one", one_by_one)):
            start = time.perf_counter()
            step(batch)
            times[name].append(time.perf_counter() - start)
        progress(0.5 * (done + 1) / ROUNDS)
    loop, at_once = median(times["one by one"][1:]), median(times["together"][1:])
    with torch.no_grad():
        joint = (first.weight, first.bias, last.weight, last.bias)
        apart = max(
            float((together[i] - alone).abs().max())
            for i, net in enumerate(nets)
            for together, alone in zip(joint, net.parameters(), strict=True)
            if together is not None
        )
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            together(batch)
        progress(0.5 + 0.5 * (epoch + 1) / EPOCHS)
    with torch.no_grad():
        outputs = wide(data.test.inputs)
        each = accuracy(outputs, data.test.targets)
        committee = accuracy(outputs.softmax(-1).mean(1), data.test.targets)

    def draw(axes: Any) -> None:
        axes.barh(["at once\n(linnet)", "one by one\n(nn.Linear)"], [1e3 * at_once, 1e3 * loop], color=[BLUE, GREY])
        axes.set_ylim(-0.5, 2.9)
        axes.set(title=f"One training step of {NETS} nets", xlabel="milliseconds")
        inset = axes.inset_axes((0.30, 0.66, 0.66, 0.22))
        shares, nets_at = (100 * each).unique(return_counts=True)
        inset.bar(shares.tolist(), nets_at.tolist(), width=80 / len(data.test.targets), color=BLUE)
        inset.axvline(100 * float(committee), color="black", linewidth=1, linestyle="--")
        inset.set_title(f"test accuracy of the {NETS}, %\n(line: their committee)", fontsize=8)
        inset.tick_params(labelsize=7)
        inset.set_yticks([])

    return Demo(
        claim=f"{NETS} nets train at once, each as it would alone",
        plain=f"{1e3 * loop:.0f} ms a step, one by one",
        linnet=f"{1e3 * at_once:.1f} ms a step, {loop / at_once:.0f} x as fast",
        holds=loop / at_once >= 5 and apart <= 1e-4,
        note=(
            f"largest difference of a weight from its net trained alone: {apart:.0e}; test accuracy "
            f"{100 * each.mean():.1f} ± {100 * each.std():.1f} %, their committee {100 * float(committee):.1f} %"
        ),
        draw=draw,
        numbers={
            "nets": NETS,
            "milliseconds_one_by_one": 1e3 * loop,
            "milliseconds_at_once": 1e3 * at_once,
            "largest_weight_difference": apart,
            "test_accuracy": each.tolist(),
            "committee_test_accuracy": float(committee),
        },
    )
