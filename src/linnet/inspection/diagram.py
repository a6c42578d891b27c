"""diagram: draw the tree of a model."""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from linnet.core.palette import COLOURS, GREY
from linnet.decoupled import DNI, Pipeline
from linnet.inspection.describe import Part, class_label, part_labels, parts
from linnet.modules.blocks import FixedRandom, Parallel
from linnet.wide.widen import Wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WIDTH, _HEIGHT, _GAP, _HEAD = 3.4, 0.52, 0.12, 0.34


def diagram(model: nn.Module, *, ax: "Axes | None" = None, depth: int | None = None) -> "Axes":
    """Draw the tree of a model: each module is a box inside that of its parent, with the input at the top.

    The modules of a :class:`Parallel` are side by side. Colours distinguish maps with a promise, sparse layers,
    populations, decoupled parts, fixed parts, and everything else.

    Args:
        model: any module.
        ax: matplotlib axes to draw on; None makes a figure of the right size.
        depth: number of levels to draw; deeper modules are part of one box. None draws all levels.

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
    def side_by_side(self) -> bool:
        return isinstance(self.part.module, Parallel)


def _nested(found: list[Part], depth: int | None) -> _Box:
    """Parts in the order of the tree -> the tree of boxes."""
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
    if box.side_by_side:
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
    labels = part_labels(box.part)
    label = f"{box.part.name.rpartition('.')[2]}: " if box.part.name else ""
    beings = f"{labels['beings']} ×" if labels["beings"] else ""
    words = [label + class_label(box.part.module), beings, labels["sizes"], labels["promise"], labels["density"]]
    if box.part.parameters or box.part.fixed or box.part.again:
        words.append(labels["parameters"])
    first, *rest = [word for word in words if word]
    if box.inside:
        text = textwrap.shorten(" · ".join([first, *rest]), int(15 * width), placeholder=" …")
        ax.text(x + 0.08, y + _HEAD / 2, text, fontsize=7, va="center")
        down = y + _HEAD
        across = x + _GAP
        for one in box.inside:
            wide, high = _extent(one)
            if box.side_by_side:
                _draw(ax, one, across, down, wide, kinds)
                across += wide + _GAP
            else:
                _draw(ax, one, across, down, width - 2 * _GAP, kinds)
                down += high + _GAP
    else:
        below = textwrap.shorten(" · ".join(rest), int(15 * width), placeholder=" …") if rest else ""
        text = f"{first}\n{below}" if below else first
        ax.text(x + width / 2, y + height / 2, text, fontsize=7, va="center", ha="center")
