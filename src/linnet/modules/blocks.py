"""Building blocks of networks for any layer: MLP, Residual, Parallel, Repeat and FixedRandom."""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from linnet.core.catalogue import find_layer
from linnet.core.checks import check_positive
from linnet.core.linear import Linear
from linnet.wide.wide_deep import EachBeing


class MLP(nn.Sequential):
    """``depth`` linear layers with an activation between them: input → hidden → ⋯ → hidden → output.

    All layers are of the class ``layer``. A class of square layers is used from hidden to hidden only, with
    :class:`Linear` at both ends. ``carriers`` is the number of layers of the class ``layer``.

    Args:
        input_size: size of each input sample.
        hidden_size: size of each hidden layer.
        output_size: size of each output sample.
        depth: number of linear layers, at least 1; the default 2 is hidden and output.
        layer: a layer class, a factory called as ``layer(in_features, out_features, bias, **options)``, or a name of
            the catalogue.
        activation: called without arguments for each place between two layers.
        bias: whether the layers learn an additive bias.
        beings: None for one network, n for a population of n networks.
        device: device of the parameters.
        dtype: dtype of the parameters.
        **options: options of every layer of the class ``layer``.

    Shape:
        - input: (*, input_size); a population takes (input_size,) or (*, beings or 1, input_size)
        - output: (*, output_size); a population returns (*, beings, output_size)

    Raises:
        ValueError: a size or the depth is not a positive integer, the layer is unknown, or the layer is square and
            depth < 3 leaves no layer from hidden to hidden.
        TypeError: the layer does not have an option.

    Example:
        >>> net = MLP(20, 64, 10, depth=3, layer="orthogonal")
        >>> net(torch.randn(2, 20)).shape, net.carriers
        (torch.Size([2, 10]), 1)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        depth: int = 2,
        layer: str | Callable[..., nn.Module] = Linear,
        activation: Callable[[], nn.Module] = nn.ReLU,
        bias: bool = True,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_positive(input_size=input_size, hidden_size=hidden_size, output_size=output_size, depth=depth)
        kind = find_layer(layer) if isinstance(layer, str) else layer
        if isinstance(activation, nn.Module):
            raise TypeError(f"activation must be a class or factory, such as nn.ReLU, got the module {activation}")
        square = getattr(getattr(kind, "func", kind), "square", False)  # functools.partial keeps the class in func
        if square and depth < 3:
            name = getattr(kind, "__name__", kind)
            raise ValueError(
                f"depth must be at least 3 for the square layer {name}, which maps hidden to hidden, got {depth}"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        population: dict[str, Any] = {} if beings is None else {"beings": beings}
        sizes = [input_size] + [hidden_size] * (depth - 1) + [output_size]
        modules: list[nn.Module] = []
        carriers = 0
        for place, (i, o) in enumerate(itertools.pairwise(sizes)):
            if square and place in (0, depth - 1):
                modules.append(Linear(i, o, bias, beings=beings, **factory))
            else:
                modules.append(kind(i, o, bias, **population, **factory, **options))
                carriers += 1
            if place < depth - 1:
                between = activation().to(device, dtype)
                modules.append(between if beings is None else EachBeing(between, beings))
        super().__init__(*modules)
        self.carriers = carriers

    def __getitem__(self, index: Any) -> Any:
        """A module, or for a slice an ``nn.Sequential`` of the same modules."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


class Residual(nn.Module):
    """y = x + f(x), or y = s(x) + f(x) with a shortcut s.

    Args:
        module: f, any module whose output has the shape of x, or of s(x).
        shortcut: s, any module; None is the identity.

    Shape:
        - input: the input of ``module``
        - output: the output of ``module``

    Raises:
        ValueError: in forward, the shapes of the two terms differ; they are never broadcast.

    Example:
        >>> block = Residual(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
        >>> block(torch.randn(2, 8)).shape
        torch.Size([2, 8])

    Reference:
        K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, 2016, arXiv 1512.03385.
    """

    shortcut: nn.Module | None

    def __init__(self, module: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.module = _module("module", module)
        self.register_module("shortcut", None if shortcut is None else _module("shortcut", shortcut))

    def forward(self, input: Tensor) -> Tensor:
        added, kept = self.module(input), input if self.shortcut is None else self.shortcut(input)
        if added.shape != kept.shape:
            other = "input" if self.shortcut is None else "shortcut"
            raise ValueError(
                f"The module of a Residual must return the shape of its {other}, {tuple(kept.shape)}, "
                f"got {tuple(added.shape)}"
            )
        return kept + added


class Parallel(nn.ModuleList):
    """y = [f₁(x), …, fₙ(x)], concatenated, or y = f₁(x) + ⋯ + fₙ(x).

    Args:
        *modules: f₁ to fₙ, at least one; each gets the same input.
        merge: ``"cat"`` concatenates the outputs along the last axis, ``"sum"`` and ``"mean"`` add them and need equal
            shapes.

    Shape:
        - input: the input of the modules
        - output: (*, sum of the last sizes) for ``"cat"``, the output shape of each module for the others

    Raises:
        ValueError: no module is given, merge is unknown, or, in forward, the shapes cannot be merged.

    Example:
        >>> Parallel(nn.Linear(4, 3), nn.Linear(4, 5))(torch.randn(2, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(self, *modules: nn.Module, merge: str = "cat") -> None:
        if not modules:
            raise ValueError("Parallel needs at least one module, got none")
        if merge not in ("cat", "sum", "mean"):
            raise ValueError(f"merge must be 'cat', 'sum' or 'mean', got {merge!r}")
        super().__init__([_module("each of the modules", module) for module in modules])
        self.merge = merge

    def forward(self, input: Tensor) -> Tensor:
        outputs = [module(input) for module in self]
        shapes = [tuple(output.shape) for output in outputs]
        compared = {shape[:-1] for shape in shapes} if self.merge == "cat" else set(shapes)
        if len(compared) > 1:
            rule = "shapes that differ in the last size only" if self.merge == "cat" else "equal shapes"
            raise ValueError(f"The modules of Parallel with merge={self.merge!r} must return {rule}, got {shapes}")
        if self.merge == "cat":
            return torch.cat(outputs, -1)
        total = functools.reduce(operator.add, outputs)
        return total if self.merge == "sum" else total / len(outputs)

    def extra_repr(self) -> str:
        return f"merge={self.merge!r}"


class Repeat(nn.Module):
    """y = f(f(⋯f(x))): one module, and one set of weights, applied ``times`` times.

    Args:
        module: f, any module that can be applied to its own output.
        times: number of applications, at least 1.

    Shape:
        - input, output: the shapes of ``module``

    Raises:
        ValueError: ``times`` is not a positive integer.

    Example:
        >>> block = Repeat(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), times=3)
        >>> block(torch.randn(2, 8)).shape, sum(p.numel() for p in block.parameters())
        (torch.Size([2, 8]), 72)

    Reference:
        M. Dehghani et al., Universal transformers, 2019, arXiv 1807.03819.
    """

    def __init__(self, module: nn.Module, times: int) -> None:
        super().__init__()
        self.module = _module("module", module)
        (self.times,) = check_positive(times=times)

    def forward(self, input: Tensor) -> Tensor:
        output = input
        for _ in range(self.times):
            output = self.module(output)
        return output

    def extra_repr(self) -> str:
        return f"times={self.times}"


class FixedRandom(nn.Module):
    """y = x R + c with a fixed random R: its tensors are buffers, saved and moved with the model, never trained.

    Without ``layer`` the entries of R are drawn from U[0, 1). With ``layer``, R is the initial matrix of such a layer,
    for example a random rotation for ``"orthogonal"``, a random sparse matrix for ``"sparse"``. Gradients reach the
    input through R.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether there is a constant c, the initial bias of the layer; c = 0 without ``layer``.
        layer: a layer class, a factory called as ``layer(in_features, out_features, bias, **options)``, or a name of
            the catalogue.
        beings: None for one map, n for a population of n maps.
        device, dtype: see :class:`LinearMap`.
        **options: options of the layer.

    Shape:
        - input: (*, in_features); with beings (*, beings, in_features)
        - output: (*, out_features); with beings (*, beings, out_features)

    Raises:
        ValueError: the layer raises it.

    Example:
        >>> fixed = FixedRandom(20, 20)
        >>> len(list(fixed.parameters())), list(fixed.state_dict())
        (0, ['layer.weight'])
        >>> FixedRandom(8, 8, layer="orthogonal")(torch.eye(8)).det().abs().round()
        tensor(1.)

    Reference:
        G.-B. Huang, Q.-Y. Zhu, C.-K. Siew, Extreme learning machine: theory and applications, Neurocomputing 70, 2006.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        layer: str | Callable[..., nn.Module] | None = None,
        beings: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.uniform = layer is None
        kind = find_layer(layer) if isinstance(layer, str) else layer or Linear
        population: dict[str, Any] = {} if beings is None else {"beings": beings}
        self.layer = kind(in_features, out_features, bias, **population, device=device, dtype=dtype, **options)
        fixed(self.layer)
        if self.uniform:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Redraw R."""
        if not self.uniform:
            self.layer.reset_parameters()  # type: ignore[operator]
            return
        nn.init.uniform_(self.layer.weight)  # type: ignore[arg-type]
        if self.layer.bias is not None:
            nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layer(input)
        return output


def fixed(module: nn.Module) -> None:
    """Turn every parameter of a module into a buffer of the same name."""
    for part in module.modules():
        parameters, part._parameters = part._parameters, {}
        for name, parameter in parameters.items():
            part._buffers[name] = None if parameter is None else parameter.detach()


def _module(name: str, module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a module, got {module!r}")
    return module
