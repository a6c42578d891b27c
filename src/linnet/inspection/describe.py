"""What a model is made of, to read: its modules, sizes, promises."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.modules.blocks import FixedRandom, Parallel, Repeat
from linnet.sparse import KWinners, SparseLinear

__all__ = ["Part", "class_shown", "describe", "in_words", "parts"]


@dataclass(frozen=True)
class Part:
    """One module of a model.

    Attributes:
        name: its qualified name; empty for the model.
        depth: how deep it lies in the tree.
        module: itself.
        parameters: how many numbers are trained in it and below, each tensor once.
        fixed: how many are not: frozen parameters, and what FixedRandom drew.
        promise: what its matrix keeps, on A; empty without one.
        density: the share of its connections that are there; None if it is not sparse.
        beings: how many; None for a single one.
        again: the name under which the same module was met before; None at the first time.
    """

    name: str
    depth: int
    module: nn.Module
    parameters: int
    fixed: int
    promise: str
    density: float | None
    beings: int | None
    again: str | None


def parts(model: nn.Module) -> list[Part]:
    """The modules of a model in the order of its tree, a shared one in each of its places.

    Example:
        >>> from linnet import OrthogonalLinear
        >>> [(part.name, part.parameters, part.promise) for part in parts(nn.Sequential(OrthogonalLinear(3, 3)))]
        [('', 12, ''), ('0', 12, 'AᵀA = I')]
    """
    return list(_walk(model, "", 0, {}))


def _walk(module: nn.Module, name: str, depth: int, seen: dict[nn.Module, str]) -> Iterator[Part]:
    again = seen.get(module)
    seen.setdefault(module, name or "the model")
    tensors = list(module.parameters())
    promise = module.promise if isinstance(module, LinearMap) else ""
    beings = getattr(module, "beings", None)
    yield Part(
        name=name,
        depth=depth,
        module=module,
        parameters=sum(_numbers(tensor) for tensor in tensors if tensor.requires_grad),
        fixed=sum(_numbers(tensor) for tensor in [*tensors, *_constants(module)] if not tensor.requires_grad),
        promise="" if promise == "none" else promise,
        density=_density(module),
        beings=beings if isinstance(beings, int) else None,
        again=again,
    )
    if again is None:
        for key, child in module._modules.items():
            if child is not None:
                yield from _walk(child, f"{name}.{key}" if name else key, depth + 1, seen)


def _constants(module: nn.Module) -> list[Tensor]:
    drawn = [tensor for one in module.modules() if isinstance(one, FixedRandom) for tensor in one.buffers()]
    return [tensor for tensor in drawn if tensor.is_floating_point()]


def _numbers(tensor: Tensor) -> int:
    return 0 if nn.parameter.is_lazy(tensor) else tensor.numel()


def _density(module: nn.Module) -> float | None:
    if isinstance(module, SparseLinear):
        return module.nnz / (module.in_features * module.out_features)
    if isinstance(module, KWinners):
        return 1 - module.act_sparsity
    return None


def _grouped(number: Any) -> str:
    """Three digits at a time."""
    return f"{number:,}".replace(",", " ")


def _sizes(module: nn.Module) -> str:
    for names in (("in_features", "out_features"), ("input_size", "output_size"), ("input_size", "hidden_size")):
        sizes = [getattr(module, name, None) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return f"{_grouped(sizes[0])} → {_grouped(sizes[1])}"
    return ""


def class_shown(module: nn.Module) -> str:
    """The name of a module's class, and what the class alone does not say."""
    name = type(module).__name__
    if isinstance(module, Repeat):
        return f"{name} × {module.times}"
    return f"{name} ({module.merge})" if isinstance(module, Parallel) else name


def in_words(part: Part) -> dict[str, str]:
    """A part in words: what describe writes and diagram draws."""
    numbers = [_grouped(part.parameters)] if part.parameters or not part.fixed else []
    numbers += [f"{_grouped(part.fixed)} fixed"] if part.fixed else []
    return {
        "sizes": _sizes(part.module),
        "parameters": f"= {part.again}" if part.again else " + ".join(numbers),
        "density": "" if part.density is None else f"{100 * part.density:.3g} %",
        "beings": "" if part.beings is None else _grouped(part.beings),
        "promise": part.promise,
    }


def describe(model: nn.Module, *, file: IO[str] | None = None) -> None:
    """Print the tree of a model: sizes, parameters, promises, density and beings of each of its parts.

    Needs ``rich``, which comes with the ``cli`` extra.

    Args:
        model: any module.
        file: where to; None is the standard output.

    Example:
        >>> describe(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))  # doctest: +ELLIPSIS
        Sequential, 40 trained parameters
        ...
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = parts(model)
    told = [in_words(part) for part in found]
    columns = [name for name in told[0] if any(line[name] for line in told)]
    right = ("parameters", "density", "beings")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("module", no_wrap=True)
    for name in columns:
        heading = {"promise": "promise on A"}.get(name, name)
        align: Any = "right" if name in right else "left"
        table.add_column(heading, justify=align, overflow="fold", no_wrap=name != "promise")
    for part, line in zip(found, told, strict=True):
        label = f"({part.name.rpartition('.')[2]}) " if part.name else ""
        cells = (line[name] for name in columns)
        name = "  " * part.depth + label + class_shown(part.module)
        table.add_row(name, *(cell.replace("[", "\\[") for cell in cells))
    console = Console(file=file, soft_wrap=False, highlight=False)
    console.print(_summary(model, found), highlight=False, markup=False)
    console.print(table)


def _summary(model: nn.Module, found: list[Part]) -> str:
    total, fixed = _grouped(found[0].parameters), _grouped(found[0].fixed)
    return f"{type(model).__name__}, {total} trained parameters" + (f", {fixed} fixed" if found[0].fixed else "")
