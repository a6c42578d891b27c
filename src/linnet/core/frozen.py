"""The matrix of a map cached: W is computed once, and again only after a parameter has changed.

A recurrent net multiplies by the same W at every step; computing W each time can cost a hundred times the product.
:class:`Materialized` holds W for one layer, :func:`frozen` does the same for all layers of a model.

When W is out of date. Most changes raise a tensor's version counter: optimizer steps, ``load_state_dict``, ``assign``,
any in-place operation. ``.to()``, ``load_state_dict(assign=True)`` and a new Parameter change the tensor or its memory.
Optimizers with ``fused=True`` do neither, so every step of any optimizer counts too, through torch's global hook.
Nothing reveals an edit through ``.data`` (``p.data.mul_(2)``, ``vector_to_parameters``): inside :func:`frozen` such
edits are not supported.

How W is differentiated. W hangs in autograd's graph as one node that keeps the graph of its own computation, so two
forwards can be followed by two backwards, each of which passes through that computation once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from linnet.core.affine import affine
from linnet.core.autograd import eager
from linnet.core.checks import check_input
from linnet.core.protocols import Map

_FROZEN: ContextVar[tuple[dict[int, "Materialized"], ...]] = ContextVar("frozen", default=())
_STEPS = [0]  # optimizer steps of this process, counted from the first Materialized on
_HOOKS: list[Any] = []


class _Once(torch.autograd.Function):
    """W as a function of the raw tensors whose backward can run any number of times."""

    @staticmethod
    def forward(ctx: Any, build: Callable[..., Tensor], *raw: Tensor) -> Tensor:
        ctx.build, ctx.raw, ctx.versions = build, raw, [tensor._version for tensor in raw]
        # The empty hooks keep what activation checkpointing does to saved tensors away from a graph that outlives it.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            ctx.weight, ctx.aliases = _graph(build, raw)
        return ctx.weight.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, aliases = ctx.weight, ctx.aliases
        higher = torch.is_grad_enabled()  # gradients of gradients free what they pass through: they get their own graph
        if higher:
            if ctx.versions != [tensor._version for tensor in ctx.raw]:
                raise RuntimeError(
                    "a parameter was modified in place between forward and backward; call backward before the change"
                )
            weight, aliases = _graph(ctx.build, ctx.raw)
        if not weight.requires_grad:
            return None, *[None] * len(aliases)
        wanted = [alias for alias in aliases if alias.requires_grad]
        found = iter(
            torch.autograd.grad(weight, wanted, grad, retain_graph=True, create_graph=higher, allow_unused=True)
        )
        return None, *[next(found) if alias.requires_grad else None for alias in aliases]


def _graph(build: Callable[..., Tensor], raw: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """W with its graph, and the aliases of the raw tensors it hangs on: hooks on a tensor must not run twice."""
    with torch.enable_grad():
        aliases = [tensor.view_as(tensor) for tensor in raw]
        return build(*aliases), aliases


class _Kept:
    """W, and what tells whether it is up to date: the identity, memory and version of each raw tensor."""

    def __init__(self, layer: Map, weight: Tensor) -> None:
        if not _HOOKS:
            _HOOKS.append(register_optimizer_step_post_hook(_count_step))
        self.weight = weight
        self.noise = layer.noisy and layer.training
        raw = layer.raw_tensors()
        # inference tensors have no version counter: nothing would tell of a change
        self.traceless = any(tensor.is_inference() for tensor in raw.values())
        self.steps = _STEPS[0]
        self.seen = []
        if not self.traceless:
            # the alias keeps the memory from being used again, so that an address tells one tensor from another
            self.seen = [(name, t, t.detach(), t._version, t.dtype, t.requires_grad) for name, t in raw.items()]
        self.version = None if weight.is_inference() else weight._version

    def fresh(self, layer: Map) -> bool:
        if self.traceless or self.steps != _STEPS[0] or self.noise != (layer.noisy and layer.training):
            return False
        if self.version is not None and self.weight._version != self.version:  # W itself was written to
            return False
        parameters, buffers = layer._parameters, layer._buffers
        for name, tensor, alias, version, dtype, requires_grad in self.seen:
            now: Tensor | None = parameters.get(name)
            if now is None:
                now = buffers.get(name)
            if now is None:
                now = getattr(layer, name)
            if (
                now is not tensor
                or now._version != version
                or now.dtype != dtype
                or now.data_ptr() != alias.data_ptr()
                or now.requires_grad != requires_grad
            ):
                return False
        return True


class Materialized:
    """A layer with its matrix computed: call it like the layer, as often as you like.

    W is computed at the first call and again when a parameter has changed since. Layers whose forward is cheaper than
    the dense product (a large circulant, say), and those whose noise is drawn for each sample, are simply called.

    Args:
        layer: the layer; its parameters are used, not copied.

    Shape:
        - input: as that of the layer
        - output: as that of the layer

    Example:
        >>> from linnet import OrthogonalLinear
        >>> layer = OrthogonalLinear(8, 8)
        >>> step, h = layer.materialize(), torch.randn(2, 8)
        >>> for _ in range(50):
        ...     h = step(h)
        >>> h.shape
        torch.Size([2, 8])
    """

    def __init__(self, layer: Map) -> None:
        self.layer = layer
        self._kept: dict[tuple[bool, bool], _Kept] = {}

    @property
    def weight(self) -> Tensor:
        """W, ([beings,] out, in), as :attr:`LinearMap.weight`; for a noisy layer in training mode one sample of it."""
        if not eager():
            # their tensors must not outlive the transform
            return self.layer._realized(self.layer._sampled(self.layer.raw_tensors()))
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        kept = self._kept.get(mode)
        if kept is None or not kept.fresh(self.layer):
            kept = self._kept[mode] = _Kept(self.layer, self._computed())
        return kept.weight

    def __call__(self, input: Tensor) -> Tensor:
        return self.product(input) if self.layer._pays_dense() else self.layer(input)

    def product(self, input: Tensor) -> Tensor:
        """x Wᵀ + b with the W computed once, for any layer."""
        check_input(input, self.layer.in_features, self.layer.beings)
        return affine(input, self.weight, self.layer.bias)

    def _computed(self) -> Tensor:
        raw = self.layer._sampled(self.layer.raw_tensors())
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in raw.values())):
            return _laid_out(self.layer._realized(raw))
        names, realized = tuple(raw), self.layer._realized  # not self: W would hold what holds W
        return _Once.apply(lambda *tensors: realized(dict(zip(names, tensors, strict=True))), *raw.values())

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "_kept": {}}  # copies and pickles compute W again

    def __repr__(self) -> str:
        return f"Materialized({self.layer})"


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within this context every map of ``model`` computes its matrix once, and again only after a parameter changed.

    For loops that call the same layers many times between two optimizer steps: recurrent nets, rollouts, evaluation.
    ``linnet.cached`` is the same function under another name: nothing is frozen in the sense of ``requires_grad``.
    Training inside the context is fine: a step of any optimizer (``fused=True`` too), ``.to()``, ``load_state_dict``
    and ``assign`` recompute W, and two forwards may be followed by two backwards. Edits through ``.data``, in-place
    collectives of ``torch.distributed`` and fused functional optimizers leave no trace and are not supported. A
    region under activation checkpointing must be run forward and backward inside the context, or both outside. Under
    ``torch.compile`` and the transforms of ``torch.func`` nothing is kept. The memory of W, and with gradients that of
    its graph, is held until the context ends.

    Args:
        model: a map, or a module that contains maps; those added later are not frozen.

    Example:
        >>> from linnet import SVDLinear
        >>> layer, x = SVDLinear(8, 8), torch.randn(2, 8)
        >>> with frozen(layer):
        ...     for _ in range(50):
        ...         x = layer(x)
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "materialize")]
    mine = {id(layer): layer.materialize() for layer in layers}
    _FROZEN.set((mine, *_FROZEN.get()))
    try:
        yield
    finally:  # in generators contexts may end in any order
        _FROZEN.set(tuple(other for other in _FROZEN.get() if other is not mine))


cached = frozen


def held(layer: Map) -> Materialized | None:
    """The matrix that :func:`frozen` keeps for ``layer`` in this context."""
    if torch.compiler.is_compiling():
        return None
    for layers in _FROZEN.get():
        if (found := layers.get(id(layer))) is not None:
            return found
    return None


def sequence_matrix(layer: Map) -> Materialized:
    """The matrix for the steps of one sequence: the one that :func:`frozen` keeps, or a new one; noise is redrawn."""
    kept = None if layer.noisy else held(layer)
    return Materialized(layer) if kept is None else kept


def _laid_out(weight: Tensor) -> Tensor:
    """W stored column by column where x Wᵀ is then faster: measured on CPUs, up to 512 x 512."""
    if weight.layout != torch.strided:
        return weight
    if weight.device.type != "cpu" or weight.shape[-2] * weight.shape[-1] > 512 * 512:
        return weight.contiguous()
    return weight.mT.contiguous().mT


def _count_step(*_: Any) -> None:
    _STEPS[0] += 1
