"""The beings axis: what shapes a population takes, its product, and one being looked at alone."""

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.autograd import eager, through_reference

if TYPE_CHECKING:
    from linnet.core.linear_map import LinearMap

__all__ = [
    "Being",
    "Spread",
    "affine",
    "check_input",
    "check_positive",
    "copy_beings",
    "dense",
    "indices",
    "plain_linear",
    "product",
    "product_reference",
    "product_rows",
]

LARGEST_DENSE = 10**8
COLUMNS_FROM, CACHED, LARGE = 16, 2**22, 2**13
"""Samples from which columns are faster than rows, weights that stay in a cache, and those from which a backward by
hand is worth its call: measured in float32 on a CPU."""


def affine(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b for one map, W (out, in), or for a population of maps, W (beings, out, in).

    Shape:
        - input: (*, in); for a population (in,), (*, 1, in) or (*, beings, in)
        - output: (*, out); for a population (*, beings, out)
    """
    if weight.dim() == 2:
        return F.linear(input, weight, bias)
    beings, out_features, in_features = weight.shape
    if input.dim() == 1 or (input.shape[-2] == 1 and beings > 1):  # one input for all: a single wide product
        x = input if input.dim() == 1 else input.squeeze(-2)  # (*, in)
        wide_bias = None if bias is None else bias.reshape(beings * out_features)
        y = F.linear(x, weight.reshape(beings * out_features, in_features), wide_bias)  # (*, beings * out)
        return y.unflatten(-1, (beings, out_features))
    if input.dim() == 2:
        return product(input.unsqueeze(1), weight, bias).squeeze(1)
    x = input.reshape(-1, beings, in_features).transpose(0, 1)  # (beings, batch, in)
    return product(x, weight, bias).transpose(0, 1).reshape(*input.shape[:-1], out_features)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(beings, batch, in), (beings, out, in), (beings, out) -> (beings, batch, out).

    Samples stand as columns, y = W x, unless they are few: those are faster as rows, as long as the weights stay in a
    cache. The gradient dL/dW = dyᵀ x of either needs no transposed copy.
    """
    if not eager() or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return product_reference(x, weight, bias)
    if x.shape[1] < COLUMNS_FROM and torch.is_grad_enabled() and weight.requires_grad and weight.numel() >= LARGE:
        return _Product.apply(x, weight, bias)
    return _rows_or_columns(x, weight, bias)


def product_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`product` in one way for all sizes."""
    y = torch.bmm(weight, x.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, x.mT)
    return y.mT


def _rows_or_columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.shape[1] >= COLUMNS_FROM or weight.numel() > CACHED:
        return product_reference(x, weight, bias)
    return product_rows(x, weight, bias)


def product_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`product` with samples as rows, y = x Wᵀ, whatever their number."""
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _padded(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    return product_reference(x, weight, bias[0] if bias else None)


class _Product(torch.autograd.Function):
    """The product of rows, whose own gradient of W would be made transposed, and copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, *([] if bias is None else [bias]))
        return _rows_or_columns(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *rest = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager():
            inputs, wanted = (x, weight, *rest), ctx.needs_input_grad
            found = through_reference(_padded, inputs, wanted[: len(inputs)], grad)
            return (*found, *[None] * (3 - len(found)))
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if for_x else None,
            torch.bmm(grad.mT, x) if for_weight else None,
            grad.sum(1) if for_bias else None,
        )


def check_input(input: Tensor, in_features: int, beings: int | None) -> None:
    """Refuse every shape that the contract does not name; nothing is guessed."""
    shape = tuple(input.shape)
    if beings is None:
        if input.dim() < 1 or shape[-1] != in_features:
            raise ValueError(f"The input must have shape (*, in_features={in_features}), however: {shape}")
    elif input.dim() < 1 or shape[-1] != in_features or (input.dim() > 1 and shape[-2] != 1 and shape[-2] != beings):
        raise ValueError(
            f"The input of a population must have shape (in_features={in_features},) or "
            f"(*, beings={beings} or 1, in_features={in_features}), however: {shape} "
            "(to give one batch to all beings: x[:, None], or linnet.Spread() in front)"
        )


def check_positive(**sizes: Any) -> list[int]:
    """The given sizes as ints, or a ValueError that names the first that is not a positive integer."""
    checked = []
    for name, value in sizes.items():
        try:
            size = operator.index(value)
        except TypeError:
            size = 0
        if isinstance(value, bool) or size < 1:
            raise ValueError(f"{name} must be a positive integer, however: {value!r}")
        checked.append(size)
    return checked


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

    def __init__(self, population: "LinearMap", index: int) -> None:
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


def dense(weight: Tensor) -> Tensor:
    """``weight`` as it is, or, if it is sparse, as a dense tensor; gradients pass.

    Raises:
        ValueError: it is sparse and would have more than 10⁸ entries.
    """
    if weight.layout == torch.strided:
        return weight
    if weight.numel() > LARGEST_DENSE:
        raise ValueError(
            f"A sparse matrix must have at most {LARGEST_DENSE:,} entries to be made dense, "
            f"however: {tuple(weight.shape)} has {weight.numel():,}"
        )
    return weight.to_dense()


def indices(index: int | Sequence[int] | Tensor, beings: int) -> Tensor:
    """Indices of beings as a LongTensor in 0..beings-1; a ValueError for one that is out of range."""
    found = torch.as_tensor(index).cpu().reshape(-1)
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise ValueError(f"Indices of beings must be integers, however: {found.tolist()}")
    found = found.long()
    if bool(((found < -beings) | (found >= beings)).any()):
        raise ValueError(f"Indices of beings must lie in 0..{beings - 1}, however: {found.tolist()}")
    return found % beings


def copy_beings(
    rows: Iterable[Tensor], source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor, beings: int
) -> None:
    """Overwrite beings with others in every tensor (beings, ...), all at once.

    Raises:
        ValueError: an index is out of range, or the destinations are not as many as the sources and each another.
    """
    src, dst = (indices(index, beings) for index in (source, destination))
    if src.shape != dst.shape or dst.unique().numel() != dst.numel():
        raise ValueError(
            "clone_being needs as many sources as destinations, and each destination once, "
            f"however: {src.tolist()} -> {dst.tolist()}"
        )
    with torch.no_grad():
        for tensor in rows:
            tensor.index_copy_(0, dst.to(tensor.device), tensor.index_select(0, src.to(tensor.device)))


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An nn.Linear that owns copies of the given tensors."""
    out_features, in_features = weight.shape
    plain = nn.utils.skip_init(
        nn.Linear, in_features, out_features, bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                getattr(plain, name).copy_(tensor)
                getattr(plain, name).requires_grad_(tensor.requires_grad)
    return plain
