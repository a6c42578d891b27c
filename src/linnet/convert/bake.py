"""bake: turn the maps of a model into plain nn.Linear layers."""

from torch import nn

from linnet.convert.maps_replaced import with_maps_replaced
from linnet.convert.replace import children
from linnet.core.being import Being
from linnet.core.dense import LARGEST_DENSE
from linnet.core.linear_map import LinearMap
from linnet.modules.blocks import MLP
from linnet.modules.pointwise import Pointwise
from linnet.sparse.linear import SparseLinear


def bake(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain torch modules with equal outputs: each map is x Wᵀ + b with a fixed W.

    Each map becomes an ``nn.Linear``, each :class:`linnet.Pointwise` a convolution, each constrained tensor a plain
    parameter, and each :class:`linnet.MLP` an ``nn.Sequential``. Shared tensors stay shared. :class:`linnet.DNI`,
    :class:`linnet.Unlocked` and :class:`linnet.TruncatedBPTT` become their network, as in eval mode: the names in
    ``state_dict`` lose the prefix ``network.``. Modules that are not linear maps stay: :class:`linnet.KWinners`, and
    :class:`linnet.RNN` and :class:`linnet.RNNCell` with nn.Linear maps inside. A map with noise becomes the matrix of
    its eval mode.

    Args:
        model: the model; it is not changed.

    Returns:
        The copy. Its parameters have the ``requires_grad`` of the maps; training no longer keeps the structure.

    Raises:
        ValueError: the model contains a population (use ``to_linears()`` or ``get_single(i)``), a sparse layer of more
            than 10⁸ entries (keep the layer, or export it with :func:`linnet.to_onnx`), a lazy layer (run one batch
            first), or a widened module (use ``unstack``).

    Example:
        >>> from linnet import OrthogonalLinear
        >>> bake(nn.Sequential(OrthogonalLinear(3, 3), nn.ReLU()))
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): ReLU()
        )
    """

    def plain(name: str, module: nn.Module) -> nn.Module:
        place = f"{name!r} is" if name else "the model is"
        if isinstance(module, LinearMap) and module.beings is not None:
            raise ValueError(
                f"bake needs single maps; {place} a population of {module.beings} "
                "(to_linears() returns its nn.Linears, get_single(i) one of them)"
            )
        source = module._source[0] if isinstance(module, Being) else module
        if isinstance(source, SparseLinear) and (entries := source.in_features * source.out_features) > LARGEST_DENSE:
            raise ValueError(
                f"bake makes dense matrices of at most {LARGEST_DENSE:,} entries; {place} a sparse layer of "
                f"{source.in_features} x {source.out_features}, {entries:,} (keep the layer and bake the rest of the "
                "model; to_onnx exports the layer by its connections, to_csr() returns its matrix)"
            )
        return module.to_linear().train(module.training)  # type: ignore[operator]

    return _unwrap(with_maps_replaced(model, plain))


def _unwrap(model: nn.Module) -> nn.Module:
    """Replace :class:`Pointwise` by convolutions and :class:`MLP` by nn.Sequential, in place inside the model."""
    new: dict[nn.Module, nn.Module] = {}
    weights: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, Pointwise) and isinstance(module.layer, nn.Linear):
            new[module] = convolution = module.to_convolution()
            for key in ("weight", "bias"):  # tied layers stay tied
                if (own := getattr(module.layer, key)) is not None:
                    setattr(convolution, key, weights.setdefault(own, getattr(convolution, key)))
        elif type(module) is MLP:
            module.__class__ = nn.Sequential  # type: ignore[assignment]
            del module.carriers
    for parent, child, old in list(children(model)):
        if old in new:
            setattr(parent, child, new[old])
    return new.get(model, model)
