"""The beings axis: one being looked at or taken out, one batch spread to all, rows of beings copied."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from linnet.core.affine import affine
from linnet.core.checks import check_input
from linnet.core.dense import dense, plain_linear
from linnet.core.protocols import Map

M = TypeVar("M", bound=Map)


class Being(nn.Module):
    """One being of a population as a single map: a live view with the surface of nn.Linear.

    ``weight`` and ``bias`` are differentiable slices of the population's tensors: backward through them fills row
    ``index`` of the population's gradient and no other. The view owns nothing: ``parameters()`` is empty, ``.to()``
    does nothing, and it can be attached anywhere. To train one being alone use ``to_linear()``.

    Args:
        population: the map to look into; it must have ``beings``.
        index: which being.

    Shape:
        - input: (*, in_features)
        - output: (*, out_features)

    Example:
        >>> from linnet import Linear
        >>> being = Linear(3, 2, beings=5).get_single(4)
        >>> being(torch.randn(7, 3)).shape, len(list(being.parameters()))
        (torch.Size([7, 2]), 0)
    """

    def __init__(self, population: Map, index: int) -> None:
        super().__init__()
        self._source = (population,)  # inside a tuple the population is not registered as a child
        self.index = index

    @property
    def in_features(self) -> int:
        return self._source[0].in_features

    @property
    def out_features(self) -> int:
        return self._source[0].out_features

    @property
    def weight(self) -> Tensor:
        population = self._source[0]
        return population._build({name: tensor[self.index] for name, tensor in population.raw_tensors().items()})

    @property
    def bias(self) -> Tensor | None:
        bias = self._source[0].bias
        return None if bias is None else bias[self.index]

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, self.in_features, None)
        return affine(input, self.weight, self.bias)

    @torch.enable_grad()
    def to_linear(self) -> nn.Linear:
        """This being as an independent nn.Linear."""
        return plain_linear(dense(self.weight), self.bias)

    def extra_repr(self) -> str:
        return f"index={self.index}, population={self._source[0]}"


class Spread(nn.Module):
    """(*, in) -> (*, 1, in): give one batch to all beings of the population that follows.

    Shape:
        - input: (*, in_features)
        - output: (*, 1, in_features)

    Example:
        >>> from linnet import Linear
        >>> net = nn.Sequential(Spread(), Linear(20, 30, beings=4))
        >>> net(torch.randn(128, 20)).shape
        torch.Size([128, 4, 30])
    """

    def forward(self, input: Tensor) -> Tensor:
        return input.unsqueeze(-2)


def indices(index: int | Sequence[int] | Tensor, beings: int) -> Tensor:
    """Indices of beings as a LongTensor in 0..beings-1; a ValueError for one that is out of range."""
    found = torch.as_tensor(index).cpu().reshape(-1)
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise ValueError(f"Indices of beings must be integers, got {found.tolist()}")
    found = found.long()
    if bool(((found < -beings) | (found >= beings)).any()):
        raise ValueError(f"Indices of beings must lie in 0..{beings - 1}, got {found.tolist()}")
    return found % beings


def copy_beings(
    rows: Iterable[Tensor], source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor, beings: int
) -> None:
    """Overwrite beings with others in every tensor (beings, ...), all at once.

    Raises:
        ValueError: an index is out of range, the numbers of sources and destinations differ, or a destination repeats.
    """
    src, dst = (indices(index, beings) for index in (source, destination))
    if src.shape != dst.shape or dst.unique().numel() != dst.numel():
        raise ValueError(
            "clone_being needs as many destinations as sources, and each destination once, "
            f"got {src.tolist()} -> {dst.tolist()}"
        )
    with torch.no_grad():
        for tensor in rows:
            tensor.index_copy_(0, dst.to(tensor.device), tensor.index_select(0, src.to(tensor.device)))


def extract(population: M, index: int) -> M:
    """One being as an independent map of the same class: a deep copy with one row of each tensor."""
    i = int(indices(index, population._population()))
    memo: dict[int, Any] = {}
    for name, tensor in (*population._parameters.items(), *population._buffers.items()):
        if tensor is not None and (name in population._parameters or population._leads(name)):
            row = tensor.detach()[i].clone()
            learned = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(row, tensor.requires_grad) if learned else row
    alone = copy.deepcopy(population, memo)
    alone.beings = None
    return alone
