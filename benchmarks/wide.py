"""Populations beside a loop over ordinary modules, torch.func.vmap and other packages: speed on one thread.

python benchmarks/wide.py --out benchmarks/wide.md
"""

import argparse
import copy
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linnet
from interleaved import Case, Step, deliver, machine, measure, number, table, training, without_gradient


@dataclass(frozen=True)
class Setting:
    """A population: how many nets, their layers, and how many samples each sees."""

    beings: int
    sizes: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        return f"{self.beings} nets {'-'.join(map(str, self.sizes))}, batch {self.batch}"


SETTINGS = {
    "one sample": Setting(1000, (8, 32, 32, 4), 1),
    "batch": Setting(100, (64, 256, 256, 10), 32),
    "generation": Setting(1000, (8, 32, 32, 4), 32),
}
TARGETS = {  # (section, peer): how many times as fast linnet must be
    ("forward, one sample", "widelinears"): 1.7,
    ("forward, batch", "widelinears"): 1.15,
    ("forward and backward, batch", "widelinears"): 1.05,
    ("forward and backward, batch", "vmap"): 1.35,
    ("Adam step, generation", "a loop of modules and optimizers"): 25.0,
    ("select, clone, mutate, generation", "a loop of clone_being"): 30.0,
}
WHY = {  # the reasons for those that are missed
    ("forward, one sample", "widelinears"): (
        "1.82 in a quieter hour; where the machine's memory is slower, as here, both wait for the weights, and the "
        "three batched products alone are 1.6"
    ),
    (
        "forward, batch",
        "widelinears",
    ): "within the noise of the target: 1.12 to 1.16 on this core, MKL is the limit of both",
    ("select, clone, mutate, generation", "a loop of clone_being"): (
        "drawing 1.5 million normal numbers is nine tenths of a generation, torch.randn alone would be half; "
        "cloning alone is a row of its own"
    ),
}


class Plain(nn.Sequential):
    """Layers with a ReLU between them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        parts: list[nn.Module] = []
        for layer in layers:
            parts += [layer, nn.ReLU()]
        super().__init__(*parts[:-1])


def ordinary(setting: Setting) -> list[nn.Module]:
    return [Plain([nn.Linear(i, o) for i, o in itertools.pairwise(setting.sizes)]) for _ in range(setting.beings)]


def population(setting: Setting) -> Plain:
    return Plain([linnet.Linear(i, o, beings=setting.beings) for i, o in itertools.pairwise(setting.sizes)])


class Loop(nn.Module):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.members = nn.ModuleList(ordinary(setting))

    def forward(self, input: Tensor) -> Tensor:
        return torch.stack([member(x) for member, x in zip(self.members, input.unbind(1), strict=True)], 1)


class Vmap(nn.Module):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        members = ordinary(setting)
        parameters, _ = torch.func.stack_module_state(members)
        self.names, self.stacked = list(parameters), nn.ParameterList(parameters.values())
        self.base = [copy.deepcopy(members[0]).to("meta")]  # inside a list it is not registered

    def forward(self, input: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.base[0], parameters, (x,))

        state = dict(zip(self.names, self.stacked, strict=True))
        return torch.vmap(one, in_dims=(0, 1), out_dims=1)(state, input)


class EvoTorch(nn.Module):
    """EvoTorch's networks: one flat vector of parameters for each, under vmap."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        from evotorch.neuroevolution.net.functional import make_functional_module

        members = ordinary(setting)
        self.function = [make_functional_module(members[0])]
        flat = torch.stack([nn.utils.parameters_to_vector(member.parameters()) for member in members])
        self.flat = nn.Parameter(flat.detach())

    def forward(self, input: Tensor) -> Tensor:
        return torch.vmap(self.function[0], in_dims=(0, 1), out_dims=1)(self.flat, input)


def packages(setting: Setting) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    pairs = list(itertools.pairwise(setting.sizes))
    yield "a loop of modules", lambda: Loop(setting)
    yield "vmap", lambda: Vmap(setting)

    def layers(module: str, name: str, make: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
        return lambda: Plain([make(getattr(importlib.import_module(module), name), i, o) for i, o in pairs])

    n = setting.beings
    yield "widelinears", layers("widelinears", "WideLinear", lambda kind, i, o: kind(n, i, o))
    yield "stacked-linear", layers("stacked_linear", "StackedLinearLayer", lambda kind, i, o: kind(n, i, o))
    yield "EvoTorch", lambda: EvoTorch(setting)
    yield "tabm", layers("tabm", "LinearEnsemble", lambda kind, i, o: kind(i, o, k=n))


def network_cases(label: str, setting: Setting, reasons: dict[str, str], *, peers: bool) -> list[Case]:
    """Forward, and forward with backward, of linnet beside each peer."""
    ours, x = population(setting), torch.randn(setting.batch, setting.beings, setting.sizes[0])
    grad = torch.randn(setting.batch, setting.beings, setting.sizes[-1])
    given = x[0] if setting.batch == 1 else x
    cases = []
    for name, make in packages(setting):
        if not peers and name not in ("a loop of modules", "vmap"):
            continue
        try:
            theirs = make()
            with torch.no_grad():
                if theirs(x).shape != grad.shape:
                    raise ValueError(f"its output has shape {tuple(theirs(x).shape)}")
        except Exception as error:
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        own = x if isinstance(theirs, (Loop, Vmap, EvoTorch)) else given
        steps = [without_gradient(lambda m=m, x=i: m(x)) for m, i in ((ours, given), (theirs, own))]
        cases.append(Case(f"forward, {label}", name, setting.beings, *steps))
        if setting.batch > 1:
            both = training(ours, x, grad), training(theirs, x, grad)
            cases.append(Case(f"forward and backward, {label}", name, setting.beings, *both))
    return cases


def adam_case(setting: Setting) -> Case:
    """A whole training step with learning rates by being, beside one module and one optimizer for each."""
    ours, members = population(setting), ordinary(setting)
    x, target = torch.randn(setting.batch, setting.beings, setting.sizes[0]), torch.randn(setting.batch, 4)
    rates = torch.logspace(-4, -2, setting.beings)
    optimizer = linnet.WideAdam(ours.parameters(), setting.beings, rates)
    optimizers = [torch.optim.Adam(m.parameters(), float(r)) for m, r in zip(members, rates, strict=True)]
    loss = linnet.per_being(F.mse_loss)

    def together() -> None:
        optimizer.zero_grad()
        loss(ours(x), target).sum().backward()
        optimizer.step()

    def one_by_one() -> None:
        for i, (member, each) in enumerate(zip(members, optimizers, strict=True)):
            each.zero_grad()
            F.mse_loss(member(x[:, i]), target).backward()
            each.step()

    name = "a loop of modules and optimizers"
    return Case("Adam step, generation", name, setting.beings, Step(together), Step(one_by_one))


def clone(layer: nn.Module, parents: list[int]) -> None:
    """The way of widelinears: one being after the other."""
    for destination, source in enumerate(parents):
        layer.weight.data[destination] = layer.weight.data[source]
        layer.bias.data[destination] = layer.bias.data[source]


def generation_cases(setting: Setting) -> list[Case]:
    """Cloning of everybody, and a whole generation, beside one clone_being after the other."""
    ours, theirs = population(setting), population(setting)
    fitness = torch.randn(setting.beings)
    selection, generator = linnet.evolve.Truncation(0.2, elites=1), torch.Generator().manual_seed(0)
    chosen = selection(fitness, generator)
    layers = [layer for layer in theirs if isinstance(layer, linnet.Linear)]

    def clone_all() -> None:
        for layer in layers:
            clone(layer, chosen.tolist())

    def at_once() -> None:
        linnet.evolve.reproduce(ours, selection(fitness, generator))
        linnet.evolve.mutate(ours, linnet.evolve.Gaussian(0.01), seed=0, generation=0, keep=1)

    def one_by_one() -> None:
        parents = selection(fitness, generator).tolist()
        with torch.no_grad():
            for layer in layers:
                clone(layer, parents)
                for being in range(1, setting.beings):
                    for tensor in (layer.weight, layer.bias):
                        tensor[being] += 0.01 * torch.randn(tensor.shape[1:])

    name = "a loop of clone_being"
    return [
        Case(
            "clone, generation",
            name,
            setting.beings,
            Step(lambda: linnet.evolve.reproduce(ours, chosen)),
            Step(clone_all),
        ),
        Case("select, clone, mutate, generation", name, setting.beings, Step(at_once), Step(one_by_one)),
    ]


def page(cases: Sequence[Case], settings: dict[str, Setting], reasons: dict[str, str], where: str) -> str:
    """The page: how many times as fast as each peer linnet is, and which targets are met."""
    lines = [
        "# Populations\n",
        "How many times as fast linnet is: the fastest step of the peer over linnet's fastest in the same rounds, by",
        "turns in one process, on one thread; in brackets the median over the rounds. Made by `wide.py`.\n",
        *(f"* {label}: {setting}" for label, setting in settings.items()),
        "",
    ]
    rows = []
    for case in cases:
        target = TARGETS.get((case.section, case.name))
        verdict = "" if target is None else f"{target:g}: " + ("met" if 1 / case.ratio >= target else "**missed**")
        times = f"{number(1e3 * min(case.seconds))} ms", f"{number(1e3 * min(case.base_seconds))} ms"
        rows.append((case.section, case.name, *times, f"{number(1 / case.ratio)} ({number(1 / case.median)})", verdict))
    lines.append(table(("what", "beside", "linnet", "peer", "times as fast", ""), rows))
    missed = [(case.section, case.name) for case in cases if 1 / case.ratio < TARGETS.get((case.section, case.name), 0)]
    lines += [
        f"* {section}, beside {name}: {WHY.get((section, name), 'not yet looked into')}." for section, name in missed
    ]
    lines += [f"* {name} is missing: {reason}" for name, reason in reasons.items()]
    return "\n".join([*lines, "", where]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-peers", action="store_true", help="without other packages")
    parser.add_argument("--beings", type=int, help="as many nets everywhere, for a trial")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each row (default: 40)")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for a row (default: 4)")
    parser.add_argument("--out", type=Path, help="write the page there instead of to stdout")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.beings is not None and options.beings < 1):
        parser.error("rounds and beings must be positive")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settings = {
        label: Setting(options.beings or setting.beings, setting.sizes, setting.batch)
        for label, setting in SETTINGS.items()
    }
    reasons: dict[str, str] = {}
    cases: list[Case] = []
    for label in ("one sample", "batch"):
        found = network_cases(label, settings[label], reasons, peers=not options.no_peers)
        measure(found, options.rounds, options.budget)
        cases += found
        print(f"{label}: done", file=sys.stderr, flush=True)
    for found in ([adam_case(settings["generation"])], generation_cases(settings["generation"])):
        measure(found, options.rounds, options.budget)
        cases += found
    text = page(cases, settings, reasons, machine())
    deliver(text, options.out)


if __name__ == "__main__":
    main()
