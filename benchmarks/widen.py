"""``linnet.widen`` beside the ways to do it by hand: a loop over modules, torch.func.vmap, stacked layers.

python benchmarks/widen.py --out benchmarks/widen.md
"""

import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import linnet
from interleaved import Case, deliver, machine, measure, number, table, training, without_gradient

TARGET = 1.05
"""How much slower than the best of the others widen may be."""


class Custom(nn.Module):
    """A forward that is written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, x + self.body(x)], dim=1))


class Sequence1(nn.Module):
    """A recurrent net and a head on its last output."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.memory = kind(16, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0][:, -1])


class Text(nn.Module):
    """The mean of embedded words, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


def mlp(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        parts += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def normed(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), norm(128), nn.ReLU(), nn.Linear(128, 10))


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@dataclass(frozen=True)
class Model:
    """A member, and the shape of what one member is given."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: bool = False


MODELS = {
    "policy, one sample": Model(lambda: mlp(8, 32, 32, 4), (1, 8)),
    "policy, batch 32": Model(lambda: mlp(8, 32, 32, 4), (32, 8)),
    "MLP 64-256-256-10, batch 32": Model(lambda: mlp(64, 256, 256, 10), (32, 64)),
    "linear 256, batch 8": Model(lambda: nn.Linear(256, 256), (8, 256)),
    "forward by hand, batch 32": Model(Custom, (32, 64)),
    "batch norm, batch 32": Model(lambda: normed(nn.BatchNorm1d), (32, 64)),
    "layer norm, batch 32": Model(lambda: normed(nn.LayerNorm), (32, 64)),
    "convnet, batch 8": Model(convnet, (8, 3, 14, 14)),
    "LSTM, 20 steps, batch 8": Model(lambda: Sequence1(nn.LSTM), (8, 20, 16)),
    "GRU, 20 steps, batch 8": Model(lambda: Sequence1(nn.GRU), (8, 20, 16)),
    "embedding, batch 32": Model(Text, (32, 12), words=True),
    "transformer layer, batch 4": Model(
        lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), (4, 10, 32)
    ),
}


class Loop(nn.Module):
    """What people write first."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(member) for member in members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(own) for member, own in zip(self.members, x.unbind(1), strict=True)], 1)


class Vmap(nn.Module):
    """The recipe of torch's documentation."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = torch.func.stack_module_state(list(members))
        self.names, self.stacked = list(parameters), nn.ParameterList(parameters.values())
        self.state = buffers
        self.base = [copy.deepcopy(members[0]).to("meta")]  # inside a list it is not registered

    def forward(self, x: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> Tensor:
            return torch.func.functional_call(self.base[0], (parameters, buffers), (own,))

        parameters = dict(zip(self.names, self.stacked, strict=True))
        return torch.vmap(one, in_dims=(0, 0, 1), out_dims=1)(parameters, self.state, x)


class Stacked(nn.Module):
    """Linear layers as baddbmm with weights (beings, in, out): what a careful user writes for an MLP."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.plan: list[Callable[[Tensor], Tensor] | int] = []
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        chain = members[0] if isinstance(members[0], nn.Sequential) else [members[0]]
        for place, layer in enumerate(chain):
            if isinstance(layer, nn.Linear):
                own = [member[place] if isinstance(member, nn.Sequential) else member for member in members]
                self.plan.append(len(self.weights))
                self.weights.append(torch.stack([each.weight.detach().T for each in own]))
                self.biases.append(torch.stack([each.bias.detach() for each in own]).unsqueeze(1))
            elif isinstance(layer, nn.Tanh | nn.ReLU):
                self.plan.append(layer.forward)
            else:
                raise ValueError(f"no stacked {type(layer).__name__}")

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for step in self.plan:
            x = torch.baddbmm(self.biases[step], x, self.weights[step]) if isinstance(step, int) else step(x)
        return x.transpose(0, 1)


OTHERS = {"a loop": Loop, "vmap": Vmap, "stacked": Stacked}


def cases_of(name: str, model: Model, beings: int) -> Iterator[Case]:
    """widen beside each of the others that can do it and gives the same: forward, and a step of training."""
    torch.manual_seed(0)
    members = [model.build() for _ in range(beings)]
    ours = linnet.stack(members)
    shape = (model.shape[0], beings, *model.shape[1:])
    x = torch.randint(1000, shape) if model.words else torch.randn(shape)
    expected = ours(x).detach()
    grad = torch.randn_like(expected)
    for other, kind in OTHERS.items():
        try:
            theirs = kind(members)
            if not torch.allclose(theirs(x), expected, atol=1e-3):
                raise ValueError("another result")
        except Exception as error:
            print(f"{name}, {beings}: no {other} ({str(error).splitlines()[0][:80]})", file=sys.stderr)
            continue
        yield Case("forward", f"{name}|{other}", beings, *(without_gradient(lambda m=m: m(x)) for m in (ours, theirs)))
        yield Case("training", f"{name}|{other}", beings, training(ours, x, grad), training(theirs, x, grad))


def page(cases: Sequence[Case], where: str) -> str:
    """How many times as fast as the best of the others widen is."""
    lines = [
        "# widen\n",
        "How many times as fast `linnet.widen` is as the best of a loop over modules, torch.func.vmap and stacked",
        "layers written by hand (baddbmm; linear layers only): its fastest step over ours in the same rounds, by turns",
        "in one process, on one thread. In brackets which was the best. Made by `widen.py`.\n",
    ]
    sizes = sorted({case.size for case in cases})
    header = ("model", *(f"{section}, {n} beings" for section in ("forward", "training") for n in sizes))
    found: dict[tuple[str, str, int], tuple[float, str]] = {}
    for case in cases:
        name, other = case.name.split("|")
        key = case.section, name, case.size
        times = 1 / case.ratio
        found[key] = min(found.get(key, (float("inf"), "")), (times, other))
    rows = []
    for name in dict.fromkeys(case.name.split("|")[0] for case in cases):
        cells = [found.get((section, name, n)) for section in ("forward", "training") for n in sizes]
        rows.append((name, *("–" if cell is None else f"{number(cell[0])} ({cell[1]})" for cell in cells)))
    lines.append(table(header, rows))
    slower = [key for key, (times, _) in found.items() if times < 1 / TARGET]
    lines.append(f"At most {TARGET - 1:.0%} slower than the best in {len(found) - len(slower)} of {len(found)} cells.")
    return "\n".join([*lines, "", where]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beings", type=int, nargs="+", default=[2, 16, 256])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each row (default: 20)")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for a row (default: 1)")
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.beings) < 1:
        parser.error("rounds and beings must be positive")
    torch.set_num_threads(1)
    cases: list[Case] = []
    for name in options.models:
        for beings in options.beings:
            found = list(cases_of(name, MODELS[name], beings))
            measure(found, options.rounds, options.budget)
            cases += found
        print(f"{name}: done", file=sys.stderr, flush=True)
    text = page(cases, machine())
    deliver(text, options.out)


if __name__ == "__main__":
    main()
