"""What users hold on to: public names and signatures, state_dict keys, operators, options of the command line.

``interface.json`` is what was there before. A name that goes is a failure; a new one is added by
``python tests/guards/test_interface.py``, which writes the file anew.
"""

import functools
import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch
import typer
from torch import nn

import linnet

FILE = Path(__file__).with_name("interface.json")
PARTS = ("names", "signatures", "layers", "modules", "operators", "options")
PACKAGES = (
    "linnet",
    "linnet.maps",
    "linnet.sparse",
    "linnet.wide",
    "linnet.evolve",
    "linnet.decoupled",
    "linnet.testing",
    "linnet.checkpoint",
    "linnet.compat.dni",
    "linnet.compat.slim",
    "linnet.compat.sparselinear",
    "linnet.compat.widelinears",
)
MODULES = {
    "RNN": lambda: linnet.RNN(3, 4),
    "RNNCell": lambda: linnet.RNNCell(3, 4, hidden_map="orthogonal"),
    "KWinners": lambda: linnet.KWinners(8),
    "ActivationSparsity": lambda: linnet.ActivationSparsity(),
    "SparseLinear, RigL": lambda: linnet.SparseLinear(8, 8, dynamic=True),
    "SparseLinear, GSE": lambda: linnet.SparseLinear(8, 8, dynamic=linnet.GSE(every=2, until=10)),
    "SparseLinear, population": lambda: linnet.SparseLinear(8, 8, beings=2),
    "WideLinear": lambda: linnet.WideLinear(2, 3, 4),
    "WideDeep": lambda: linnet.WideDeep(2, 3, 4, 2, 1),
    "widen": lambda: linnet.widen(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 2),
    "MLP": lambda: linnet.MLP(3, 4, 2, depth=3, layer="orthogonal"),
    "Residual": lambda: linnet.Residual(linnet.SVDLinear(4, 4)),
    "Parallel": lambda: linnet.Parallel(linnet.Linear(3, 4), nn.Linear(3, 4)),
    "Repeat": lambda: linnet.Repeat(linnet.Linear(3, 3), 2),
    "FixedRandom": lambda: linnet.FixedRandom(3, 3),
    "Pointwise": lambda: linnet.Pointwise(linnet.Linear(3, 4)),
    "constrain": lambda: linnet.constrain(nn.LSTM(3, 4), "weight_hh_l0", linnet.OrthogonalLinear, blocks=4),
    "LinearSynthesizer": lambda: linnet.LinearSynthesizer(5, None, 3),
    "LeastSquaresSynthesizer": lambda: linnet.LeastSquaresSynthesizer(5, None, 3),
    "LowRankSynthesizer": lambda: linnet.LowRankSynthesizer(5, 2, 3),
    "SigmoidSynthesizer": lambda: linnet.SigmoidSynthesizer(5, None, 3),
    "MLPSynthesizer": lambda: linnet.MLPSynthesizer(5, 4, 3),
    "BatchNormSynthesizer": lambda: linnet.BatchNormSynthesizer(5, 4, 3),
    "RecurrentSynthesizer": lambda: linnet.RecurrentSynthesizer(5, 4, 3),
    "ConvSynthesizer": lambda: linnet.ConvSynthesizer(5, 4, 3),
    "DNI, Synthetic": lambda: _decoupled(linnet.Synthetic(context=2)),
    "DNI, LocalLoss": lambda: _decoupled(linnet.LocalLoss(nn.CrossEntropyLoss(), 2)),
    "DNI, DirectFeedback": lambda: _decoupled(linnet.DirectFeedback()),
    "DNI, Delayed": lambda: _decoupled(linnet.Delayed(2)),
    "TruncatedBPTT": lambda: linnet.TruncatedBPTT(nn.LSTM(3, 4, batch_first=True), 3),
    "Unlocked": lambda: _unlocked(),
}


def _network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def _decoupled(source):
    return linnet.DNI(_network(), gradient=source, example=torch.zeros(2, 3))


def _unlocked():
    net = linnet.Unlocked(_network())
    net(torch.zeros(2, 3))  # the first input gives the synthesizers their sizes
    return net


def _shapes(module):
    """Keys and shapes in order: an optimizer's state goes by the order of the parameters."""
    return ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in module.state_dict().items())


def _layer(cls):
    options = dict(cls.examples()[0])
    sizes = (options.pop("in_features", 8), options.pop("out_features", 8))
    return cls(*sizes, beings=2, **options)


def _options():
    from linnet.cli import main  # noqa: F401  the entry point of the console script

    commands = typer.main.get_command(_app())
    return {
        name: sorted(opt for parameter in command.params for opt in parameter.opts)
        for name, command in sorted(commands.commands.items())
    }


def _app():
    from linnet.cli.commands import app

    return app


def _signature(thing):
    """Names, kinds and defaults of the parameters; annotations, and where a default is defined, may change."""

    def shown(parameter):
        default = parameter.default
        named = getattr(default, "__name__", None)
        if isinstance(default, functools.partial):
            named = f"{default.func.__name__}{default.keywords}"
        bare = str(parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty))
        return bare if default is inspect.Parameter.empty else f"{bare}={named or repr(default)}"

    return " | ".join(map(shown, inspect.signature(thing).parameters.values()))


def _signatures():
    things = {name: getattr(linnet, name) for name in linnet.__all__}
    found = {name: _signature(thing) for name, thing in things.items() if callable(thing)}
    for name in ("LinearMap", "SparseLinear", "DNI"):
        own = [key for key in dir(things[name]) if not key.startswith("_") and not hasattr(nn.Module, key)]
        members = ((key, getattr(things[name], key)) for key in ["forward", *own])
        found |= {f"{name}.{key}": _signature(member) if callable(member) else "" for key, member in members}
    return found


def found():
    layers = {name: cls for name, cls in linnet.catalogue().items() if cls.__module__.startswith("linnet.")}
    return {
        "names": {package: sorted(importlib.import_module(package).__all__) for package in PACKAGES},
        "signatures": _signatures(),
        "layers": {name: _shapes(_layer(cls)) for name, cls in layers.items()},
        "modules": {name: _shapes(make()) for name, make in MODULES.items()},
        "operators": sorted(
            str(schema) for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("linnet::")
        ),
        "options": _options(),
    }


def missing(before, now):
    """What of ``before`` is not in ``now`` any more, or has changed: paths into the tree."""
    if isinstance(before, dict):
        return [
            f"{key}: {rest}" if rest else str(key)
            for key, value in before.items()
            for rest in ([""] if key not in now else missing(value, now[key]))
        ]
    if isinstance(before, list) and all(isinstance(item, str) for item in before):
        return [item for item in before if item not in now]
    return [] if before == now else [f"{before} is now {now}"]


@pytest.fixture(scope="module")
def now():
    return found()


@pytest.mark.parametrize("part", PARTS)
def test_nothing_public_is_lost(part, now):
    before = json.loads(FILE.read_text(encoding="utf-8"))
    assert not missing(before[part], now[part])


@pytest.mark.parametrize("part", PARTS)
def test_what_is_new_is_written_down(part, now):
    before = json.loads(FILE.read_text(encoding="utf-8"))
    assert not missing(now[part], before[part]), "run python tests/guards/test_interface.py"


def test_a_planted_loss_is_noticed(now):
    before = json.loads(FILE.read_text(encoding="utf-8"))
    before["names"]["linnet"].append("Lost")
    before["layers"]["linear"] = "weight [2, 8, 8], bias [2, 9]"
    before["options"]["train"].append("--lost")
    assert set(missing(before, now)) == {
        "names: linnet: Lost",
        "layers: linear: weight [2, 8, 8], bias [2, 9] is now weight [2, 8, 8], bias [2, 8]",
        "options: train: --lost",
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(found(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
