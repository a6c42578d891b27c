"""What a model is made of, to read (``describe``) and to look at (``diagram``)."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from torch import Tensor, nn

from linnet.core.linear_map import LinearMap
from linnet.core.palette import COLOURS, GREY
from linnet.decoupled import DNI, Pipeline
from linnet.modules.blocks import FixedRandom, Parallel, Repeat
from linnet.sparse import KWinners, SparseLinear
from linnet.wide.widen import Wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Part", "describe", "diagram", "parts"]


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


def _class(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, Repeat):
        return f"{name} × {module.times}"
    return f"{name} ({module.merge})" if isinstance(module, Parallel) else name


def _told(part: Part) -> dict[str, str]:
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
    told = [_told(part) for part in found]
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
        table.add_row("  " * part.depth + label + _class(part.module), *(cell.replace("[", "\\[") for cell in cells))
    console = Console(file=file, soft_wrap=False, highlight=False)
    console.print(_summary(model, found), highlight=False, markup=False)
    console.print(table)


def _summary(model: nn.Module, found: list[Part]) -> str:
    total, fixed = _grouped(found[0].parameters), _grouped(found[0].fixed)
    return f"{type(model).__name__}, {total} trained parameters" + (f", {fixed} fixed" if found[0].fixed else "")


# ---------------------------------------------------------------------- the picture

_WIDTH, _HEIGHT, _GAP, _HEAD = 3.4, 0.52, 0.12, 0.34


def diagram(model: nn.Module, *, ax: "Axes | None" = None, depth: int | None = None) -> "Axes":
    """Draw the tree of a model: each module a box inside that of its parent, from input above to output below.

    The modules of a :class:`Parallel` stand side by side. Colours tell the kinds apart: maps with a promise, sparse
    layers, populations, decoupled parts, fixed ones, and everything else.

    Args:
        model: any module.
        ax: matplotlib axes to draw on; None makes a figure of the right size.
        depth: how deep to draw; what lies deeper is one box. None draws all of it.

    Returns:
        The axes.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> ax = diagram(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> [text.get_text().split()[-1] for text in ax.texts[1:]]
        ['40', 'ReLU']
    """
    import matplotlib.pyplot as plt

    tree = _nested(parts(model), depth)
    width, height = _extent(tree)
    if ax is None:
        _, ax = plt.subplots(figsize=(max(3.5, 1.1 * width + 0.3), max(1.2, 1.1 * height + 0.3)), layout="tight")
    kinds: dict[str, str] = {}
    _draw(ax, tree, 0.0, 0.0, width, kinds)
    ax.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1), aspect="equal")
    ax.axis("off")
    marks = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, alpha=0.35) for colour in kinds.values()]
    if kinds:
        ax.legend(marks, kinds, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False, fontsize=7)
    return ax


@dataclass(frozen=True)
class _Box:
    part: Part
    inside: list["_Box"]

    @property
    def beside(self) -> bool:
        return isinstance(self.part.module, Parallel)


def _nested(found: list[Part], depth: int | None) -> _Box:
    """The tree of the parts, which come in its order."""
    root = _Box(found[0], [])
    line = [root]
    for part in found[1:]:
        del line[part.depth :]
        if depth is not None and part.depth > depth:
            line.append(line[-1])
            continue
        box = _Box(part, [])
        line[-1].inside.append(box)
        line.append(box)
    return root


def _extent(box: _Box) -> tuple[float, float]:
    if not box.inside:
        return _WIDTH, _HEIGHT
    sizes = [_extent(one) for one in box.inside]
    widths, heights = zip(*sizes, strict=True)
    if box.beside:
        return sum(widths) + _GAP * (len(sizes) + 1), max(heights) + _HEAD + _GAP
    return max(widths) + 2 * _GAP, sum(heights) + _GAP * len(sizes) + _HEAD


def _kind(part: Part) -> tuple[str, str]:
    module = part.module
    if isinstance(module, DNI | Pipeline):
        return "decoupled", COLOURS[3]
    if isinstance(module, FixedRandom):
        return "fixed", GREY
    if part.density is not None:
        return "sparse", COLOURS[5]
    if part.promise:
        return "a promise", COLOURS[0]
    if part.beings is not None or isinstance(module, Wide):
        return "a population", COLOURS[2]
    return "", "#B0B0B0"


def _draw(ax: Any, box: _Box, x: float, y: float, width: float, kinds: dict[str, str]) -> None:
    import matplotlib.pyplot as plt

    _, height = _extent(box)
    kind, colour = _kind(box.part)
    if kind:
        kinds[kind] = colour
    alpha = 0.12 if box.inside else 0.35 if kind else 0.18
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, alpha=alpha, edgecolor="none"))
    ax.add_patch(plt.Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1))
    told = _told(box.part)
    label = f"{box.part.name.rpartition('.')[2]}: " if box.part.name else ""
    beings = f"{told['beings']} ×" if told["beings"] else ""
    words = [label + _class(box.part.module), beings, told["sizes"], told["promise"], told["density"]]
    if box.part.parameters or box.part.fixed or box.part.again:
        words.append(told["parameters"])
    first, *rest = [word for word in words if word]
    if box.inside:
        text = textwrap.shorten(" · ".join([first, *rest]), int(15 * width), placeholder=" …")
        ax.text(x + 0.08, y + _HEAD / 2, text, fontsize=7, va="center")
        down = y + _HEAD
        across = x + _GAP
        for one in box.inside:
            wide, high = _extent(one)
            if box.beside:
                _draw(ax, one, across, down, wide, kinds)
                across += wide + _GAP
            else:
                _draw(ax, one, across, down, width - 2 * _GAP, kinds)
                down += high + _GAP
    else:
        below = textwrap.shorten(" · ".join(rest), int(15 * width), placeholder=" …") if rest else ""
        text = f"{first}\n{below}" if below else first
        ax.text(x + width / 2, y + height / 2, text, fontsize=7, va="center", ha="center")
