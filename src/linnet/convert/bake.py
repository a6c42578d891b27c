"""Any layer -> plain nn.Linear."""

from torch import nn

from linnet.convert.maps_replaced import with_maps_replaced
from linnet.convert.replace import children
from linnet.core.being import Being
from linnet.core.dense import LARGEST_DENSE
from linnet.core.linear_map import LinearMap
from linnet.modules.blocks import MLP
from linnet.modules.pointwise import Pointwise
from linnet.sparse.linear import SparseLinear

__all__ = ["bake"]


def bake(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain torch modules with equal outputs: x Wᵀ + b with W computed once and for all.

    Each map is an ``nn.Linear``, each :class:`linnet.Pointwise` the convolution it came from, each constrained tensor
    a plain parameter; layers that share their tensors share them still. A :class:`linnet.MLP` is an ``nn.Sequential``.
    Of :class:`linnet.DNI`, :class:`linnet.Unlocked` and :class:`linnet.TruncatedBPTT` the network alone remains, which
    is what they are in eval mode: the names in ``state_dict`` lose their ``network.``. What is no linear map stays:
    :class:`linnet.RNN` and :class:`linnet.RNNCell`, whose two maps in each cell are nn.Linears, and
    :class:`linnet.KWinners`. A map with noise becomes the matrix of its eval mode.

    Args:
        model: the model; it is left as it was.

    Returns:
        The copy. What learned goes on learning, without the structure.

    Raises:
        ValueError: by name: a population (``to_linears()`` gives its nets, ``get_single(i)`` one of them), a sparse
            layer that would have more than 10⁸ entries (keep the layer, or export it with :func:`linnet.to_onnx`), a
            lazy layer (run one batch first), a widened module (``unstack`` gives its nets).

    Example:
        >>> from linnet import OrthogonalLinear
        >>> bake(nn.Sequential(OrthogonalLinear(3, 3), nn.ReLU()))
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): ReLU()
        )
    """

    def plain(name: str, module: nn.Module) -> nn.Module:
        place = f"{name!r} is" if name else "it is"
        if isinstance(module, LinearMap) and module.beings is not None:
            raise ValueError(
                f"bake needs single maps, got {place} a population of {module.beings} "
                "(to_linears() gives its nn.Linears, get_single(i) one of them)"
            )
        source = module._source[0] if isinstance(module, Being) else module
        if isinstance(source, SparseLinear) and (entries := source.in_features * source.out_features) > LARGEST_DENSE:
            raise ValueError(
                f"bake makes dense matrices of at most {LARGEST_DENSE:,} entries, got {place} a sparse layer of "
                f"{source.in_features} x {source.out_features}, {entries:,} (bake the parts of the model around it and "
                "keep the layer; to_onnx exports it by its connections, to_csr() gives its matrix)"
            )
        return module.to_linear().train(module.training)  # type: ignore[operator]

    return _without_shells(with_maps_replaced(model, plain))


def _without_shells(model: nn.Module) -> nn.Module:
    """Convolutions for :class:`Pointwise`, nn.Sequential for :class:`MLP`, in place where there is a place."""
    new: dict[nn.Module, nn.Module] = {}
    weights: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, Pointwise) and isinstance(module.layer, nn.Linear):
            new[module] = convolution = module.to_convolution()
            for key in ("weight", "bias"):  # those of tied layers stay tied
                if (own := getattr(module.layer, key)) is not None:
                    setattr(convolution, key, weights.setdefault(own, getattr(convolution, key)))
        elif type(module) is MLP:
            module.__class__ = nn.Sequential  # type: ignore[assignment]
            del module.carriers
    for parent, child, old in list(children(model)):
        if old in new:
            setattr(parent, child, new[old])
    return new.get(model, model)
