"""Layers of other packages with a structure that linnet has too; each package is optional."""

import contextlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

__all__ = ["Row", "built", "peers", "versions"]


@dataclass(frozen=True)
class Row:
    """A kind of layer: how to build it of size n, without bias. ``beside`` is linnet's class of the same structure."""

    name: str
    build: Callable[[int], nn.Module]
    beside: str = ""
    note: str = ""
    package: str = ""


def peers() -> list[Row]:
    """The layers of other packages with a structure that linnet has too."""

    def plain(n: int) -> nn.Linear:
        return nn.Linear(n, n, bias=False)

    def slim(name: str, beside: str, note: str = "", bias: bool = False) -> Row:
        def build(n: int) -> nn.Module:
            return getattr(load("neuromancer.slim"), name)(n, n, bias=bias)

        return Row(f"neuromancer {name}", build, beside, note, "neuromancer")

    def torch_orthogonal(kind: str, note: str = "") -> Row:
        def build(n: int) -> nn.Module:
            return parametrizations.orthogonal(plain(n), orthogonal_map=kind)

        return Row(f"torch parametrizations.orthogonal, {kind}", build, "OrthogonalLinear", note, "torch")

    def geotorch_orthogonal(kind: str) -> Row:
        def build(n: int) -> nn.Module:
            layer = plain(n)
            load("geotorch").orthogonal(layer, "weight", triv=kind)
            return layer

        return Row(f"geotorch.orthogonal, {kind}", build, "OrthogonalLinear", package="geotorch")

    def structured(kind: str, beside: str, note: str = "", **options: Callable[[int], Any]) -> Row:
        def build(n: int) -> nn.Module:
            given = {name: option(n) for name, option in options.items()}
            return load("torch_structured").make_linear(kind, n, n, bias=False, **given)

        return Row(f"torch_structured {kind}", build, beside, note, "torch-structured")

    return [
        slim("OrthogonalLinear", "OrthogonalLinear", "with a bias: without one it raises a TypeError", bias=True),
        geotorch_orthogonal("cayley"),
        geotorch_orthogonal("expm"),
        torch_orthogonal("matrix_exp"),
        torch_orthogonal("cayley"),
        torch_orthogonal("householder", "one step of AdamW makes it the zero matrix"),
        Row(
            "deel-torchlip SpectralLinear",
            lambda n: load("deel.torchlip").SpectralLinear(n, n, bias=False),
            "OrthogonalLinear",
            "approximate: iterates until a tolerance",
            "deel-torchlip",
        ),
        Row(
            "orthogonium OrthoLinear",
            lambda n: load("orthogonium.layers.linear").OrthoLinear(n, n, bias=False),
            "OrthogonalLinear",
            "approximate: a fixed number of iterations",
            "orthogonium",
        ),
        slim("SVDLinear", "SVDLinear", "soft: training leaves the interval"),
        slim("SpectralLinear", "SpectralLinear"),
        Row(
            "torch parametrizations.spectral_norm",
            lambda n: parametrizations.spectral_norm(plain(n)),
            "ContractiveLinear",
            "an estimate from below: the norm can exceed 1",
            "torch",
        ),
        slim("ButterflyLinear", "ButterflyLinear"),
        structured("butterfly", "ButterflyLinear"),
        structured("monarch", "MonarchLinear", "√n blocks, as linnet's (its default is 4)", nblocks=math.isqrt),
        structured("circulant", "CirculantLinear", "sizes that are powers of two"),
    ]


def load(module: str) -> Any:
    """Import a peer; what it prints goes to stderr, what it warns of at import is its own affair."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def built(row: Row, n: int) -> nn.Module | str:
    """The layer, or for a peer one line that says why there is none."""
    if not row.package:
        return row.build(n)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = row.build(n)
            layer(torch.randn(2, n, requires_grad=True)).sum().backward()
            return layer
    except ImportError as error:
        return f"not installed: {error}".replace("\n", " ")
    except Exception as error:  # whatever somebody else's code may raise
        return f"failed: {type(error).__name__}: {error}".replace("\n", " ")


def versions(rows: Iterable[Row]) -> dict[str, str]:
    found = {}
    for package in dict.fromkeys(row.package for row in rows):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
