"""describe: print the tree of a model with sizes, parameters and promises of its modules."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.modules.blocks import FixedRandom, Parallel, Repeat
from linnet.sparse import KWinners, SparseLinear


@dataclass(frozen=True)
class Part:
    """One module of a model.

    Attributes:
        name: qualified name of the module; empty for the model.
        depth: depth in the tree.
        module: the module.
        parameters: number of trained numbers in the module and below, each tensor counted once.
        fixed: number of fixed numbers: parameters without ``requires_grad``, and those of FixedRandom.
        promise: the promise of its matrix A; empty without one.
        density: the share of entries that are connections; None if the module is not sparse.
        beings: number of beings (members of a population); None for a single module.
        again: the first name of the same module, if it occurs again; else None.
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
    """The modules of a model in the order of its tree; a shared module occurs at each of its places.

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
    """A number with a space between groups of three digits."""
    return f"{number:,}".replace(",", " ")


def _sizes(module: nn.Module) -> str:
    for names in (("in_features", "out_features"), ("input_size", "output_size"), ("input_size", "hidden_size")):
        sizes = [getattr(module, name, None) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return f"{_grouped(sizes[0])} → {_grouped(sizes[1])}"
    return ""


def class_label(module: nn.Module) -> str:
    """The name of a module's class, with the option that distinguishes modules of this class."""
    name = type(module).__name__
    if isinstance(module, Repeat):
        return f"{name} × {module.times}"
    return f"{name} ({module.merge})" if isinstance(module, Parallel) else name


def part_labels(part: Part) -> dict[str, str]:
    """The texts of a part that describe prints and diagram draws."""
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
        file: the output; None is the standard output.

    Example:
        >>> describe(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))  # doctest: +ELLIPSIS
        Sequential, 40 trained parameters
        ...
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = parts(model)
    labels = [part_labels(part) for part in found]
    columns = [name for name in labels[0] if any(line[name] for line in labels)]
    right = ("parameters", "density", "beings")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("module", no_wrap=True)
    for name in columns:
        heading = {"promise": "promise on A"}.get(name, name)
        align: Any = "right" if name in right else "left"
        table.add_column(heading, justify=align, overflow="fold", no_wrap=name != "promise")
    for part, line in zip(found, labels, strict=True):
        label = f"({part.name.rpartition('.')[2]}) " if part.name else ""
        cells = (line[name] for name in columns)
        name = "  " * part.depth + label + class_label(part.module)
        table.add_row(name, *(cell.replace("[", "\\[") for cell in cells))
    console = Console(file=file, soft_wrap=False, highlight=False)
    console.print(_summary(model, found), highlight=False, markup=False)
    console.print(table)


def _summary(model: nn.Module, found: list[Part]) -> str:
    total, fixed = _grouped(found[0].parameters), _grouped(found[0].fixed)
    return f"{type(model).__name__}, {total} trained parameters" + (f", {fixed} fixed" if found[0].fixed else "")
