"""The forward of a population: each part of the member runs by a batched kernel, under torch.vmap or in a loop.

A kernel computes a leaf for all beings at once. A module without a kernel runs under torch.vmap, which its parts with a
kernel leave again (:class:`_LeaveVmap`). A module that vmap cannot run is called once for each being.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map

from linnet.core.linear import Linear
from linnet.wide import axes
from linnet.wide.axes import Dims
from linnet.wide.kernels.leaves import KERNELS, LEAVING, STOCHASTIC, Kernel, customized, is_known, shared
from linnet.wide.kernels.measured import loop_is_cheaper
from linnet.wide.random import Noise

STREAMS = "dropout_streams"
STRATEGIES = ("auto", "vmap", "loop")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, each once, non-persistent buffers too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class _NoKernel(Exception):
    """No kernel takes these arguments: the module's own forward must run."""


class _LeaveVmap(torch.autograd.Function):
    """Leave vmap: ``call`` gets the tensors of all beings; ``marker`` is batched, so that vmap uses this rule."""

    @staticmethod
    def forward(call: Callable[..., Any], marker: Tensor, *tensors: Tensor) -> Any:
        raise NotImplementedError("A module that computes gradients in its forward needs strategy='vmap'")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Callable[..., Any], marker: Tensor, *tensors: Tensor) -> Any:
        beings = info.batch_size
        batched = [
            x.unsqueeze(0).expand(beings, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims[2:], strict=True)
        ]
        out = call(*batched)
        return out, (0,) * len(out)


class Population(Protocol):
    """The attributes of a population that its forward uses."""

    beings: int
    in_dims: Dims
    out_dims: int
    chunk_size: int | None
    strategy: dict[str, str]
    proven: set[Any]
    """The modules, by path and mode, that have run under vmap."""
    looped: set[Any] | None
    """The modules, by path and mode, that vmap cannot run; None if the population cannot fall back on a loop."""

    kernels: ClassVar[Mapping[type[nn.Module], Kernel]]
    _buffers: dict[str, Tensor | None]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def own(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """The tensors of a leaf for some beings, as the leaf's kernel takes them."""

    def state(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """All tensors in a module for some beings, (beings, ...)."""


def evaluate(wide: Population, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: slice) -> Any:
    """The forward of some beings, ``chunk_size`` of them at a time."""
    beings = rows.stop - rows.start
    args, kwargs = axes.beings_first(args, kwargs, wide.in_dims, beings)
    if wide.chunk_size is None or wide.chunk_size >= beings:
        return axes.beings_at(Pass(wide, rows).run(member, "", args, kwargs), wide.out_dims)
    parts = []
    for first in range(0, beings, wide.chunk_size):
        some = slice(first, min(beings, first + wide.chunk_size))
        own = tree_map(lambda x, some=some: x[some] if isinstance(x, Tensor) else x, (args, kwargs))
        parts.append(Pass(wide, slice(rows.start + some.start, rows.start + some.stop)).run(member, "", *own))
    return axes.beings_at(axes.join_results(parts, torch.cat), wide.out_dims)


def checked_strategy(strategy: Any, member: nn.Module) -> dict[str, str]:
    """A strategy -> a dict from names of sub-modules to strategies, ``""`` for all other modules."""
    by_name = {"": strategy} if isinstance(strategy, str) else {"": "auto", **strategy}
    names = dict(member.named_modules())
    if any(kind not in STRATEGIES or name not in names for name, kind in by_name.items()):
        raise ValueError(
            f"strategy must be one of {', '.join(STRATEGIES)}, or a dict from names of sub-modules to one of these, "
            f"got {strategy!r}"
        )
    return by_name


_NO_NOISE = Noise(torch.zeros(0, dtype=torch.int64))
"""The noise of a population without random modules."""


class Pass:
    """One forward of a population, or of some of its beings.

    Args:
        wide: the population.
        rows: the beings, a contiguous slice.
    """

    def __init__(self, wide: Population, rows: slice) -> None:
        self.wide, self.rows = wide, rows
        self.beings = rows.stop - rows.start
        streams = wide._buffers.get(STREAMS)
        self.noise = _NO_NOISE if streams is None else Noise(streams[rows])
        self.held: dict[nn.Module, dict[str, Tensor]] = {}
        """Under vmap: the tensors of all beings of each leaf that leaves it."""

    def _own(self, module: nn.Module) -> dict[str, Tensor]:
        return self.held[module] if module in self.held else self.wide.own(module, self.rows)

    def run(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        strategy = self.wide.strategy.get(path, self.wide.strategy[""])
        if strategy == "loop":
            return self.loop(module, args, kwargs)
        checked = module in self.held
        if strategy == "auto" and (type(module) in self.wide.kernels if checked else is_known(module)):
            out = self.wide.kernels[type(module)](module, self._own(module), self.noise, *args, **kwargs)
            if out is not NotImplemented:
                return out
        elif strategy == "auto" and (checked or _is_sequential(module)) and len(args) == 1 and not kwargs:
            out = args[0]
            for name, child in module._modules.items():  # named_children() would skip a module's second occurrence
                if child is not None:
                    out = self.run(child, f"{path}.{name}" if path else name, (out,), {})
            return out
        if self.held:
            raise _NoKernel
        return self._vmap_or_loop(module, path, args, kwargs, strategy)

    def _vmap_or_loop(
        self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], strategy: str
    ) -> Any:
        if strategy == "vmap" or self.wide.looped is None:
            return self.vmap(module, path, args, kwargs)
        parts = list(module.modules())
        if any(_wrong_under_vmap(part) for part in parts):
            return self.loop(module, args, kwargs)
        plain = [x for x in tree_flatten((args, kwargs))[0] if not isinstance(x, Tensor)]  # may select a branch
        mode = (path, module.training, torch.is_grad_enabled(), repr(plain))
        if mode in self.wide.looped or loop_is_cheaper(self.beings, sum(not part._modules for part in parts)):
            return self.loop(module, args, kwargs)
        if mode in self.wide.proven:
            return self.vmap(module, path, args, kwargs)
        before = [(buffer, buffer.clone()) for _, buffer in self.wide.named_buffers()]
        generator = torch.get_rng_state()
        given = tree_map(_copy, (args, kwargs))  # the attempt may change the arguments in place
        try:
            out = self.vmap(module, path, args, kwargs)
        except Exception as error:  # vmap raises errors of several types where it has no rule
            with torch.no_grad():
                for buffer, saved in before:
                    buffer.copy_(saved)
            torch.set_rng_state(generator)
            out = self.loop(module, *given)  # for wrong arguments this raises the member's own error
            self.wide.looped.add(mode)
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"torch.vmap cannot run {type(module).__name__}; its beings run one after another "
                f"(set strategy='loop' to avoid this warning): {reason}",
                stacklevel=2,
            )
            return out
        self.wide.proven.add(mode)
        return out

    def vmap(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own forward under torch.vmap; leaves that have a kernel run by that kernel."""
        state = self.wide.state(module, self.rows)
        inputs, rebuilt = axes.split_tensors((args, kwargs))
        dims = [None if shared(x) else 0 for x in inputs]
        inputs = [x if dim == 0 else x[0] for x, dim in zip(inputs, dims, strict=True)]
        outer: dict[str, Any] = {}

        def member(marker: Tensor, rows: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Any, ...]:
            given = dict(rows)
            args, kwargs = rebuilt(inputs)
            with self._leaving_vmap(module, path, marker):
                out = functional_call(module, given, args, kwargs)
            tensors, outer["rebuilt"] = axes.split_tensors(axes.checked_results(out))
            outer["changed"] = [name for name, tensor in given.items() if tensor is not rows[name]]
            return (*tensors, *(given[name] for name in outer["changed"]))

        marker = next(iter(state.values()), torch.empty(0)).new_empty(self.beings, 0)
        with _without_fused_attention() if _may_use_attention(module) else nullcontext():
            out = torch.vmap(member, in_dims=(0, 0, dims), randomness="different")(marker, state, inputs)
        with torch.no_grad():
            for name in reversed(outer["changed"]):
                state[name].copy_(out[-1])
                out = out[:-1]
        return outer["rebuilt"](out)

    def loop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own forward for one being after another; dropout draws from the stream of each being."""
        slots = _slots_of(module, {name: rows.unbind() for name, rows in self.wide.state(module, self.rows).items()})
        inputs, rebuilt = axes.split_tensors((args, kwargs))
        each = [x.unbind() for x in inputs]
        draws, outs = any(_draws(leaf) for leaf in module.modules()), []
        for i in range(self.beings):
            # copies, since a member may change its arguments in place
            own_args, own_kwargs = rebuilt(rows[i].clone() for rows in each)
            number = self.rows.start + i
            one = Pass(self.wide, slice(number, number + 1))._with_own_streams(module) if draws else nullcontext()
            with one, _with_tensors(slots, i):
                outs.append(module(*own_args, **own_kwargs))
        return axes.join_results(outs, torch.stack)

    @contextmanager
    def _leaving_vmap(self, module: nn.Module, path: str, marker: Tensor) -> Iterator[None]:
        """Make the parts that have a kernel leave vmap, each for its own product, while the module's forward runs."""
        parts = self._outermost(module, path)

        def forward(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
            inputs, rebuilt = axes.split_tensors((args, kwargs))
            outer: dict[str, Any] = {}

            def call(*tensors: Tensor) -> tuple[Tensor, ...]:
                args, kwargs = rebuilt(tensors)
                found, outer["rebuilt"] = axes.split_tensors(self.run(part, parts[part], args, kwargs))
                return tuple(found)

            try:
                out = _LeaveVmap.apply(call, marker, *inputs)
            except _NoKernel:
                return type(part).forward(part, *args, **kwargs)
            return outer["rebuilt"](out)

        leaves = [leaf for part in parts for leaf in part.modules()]
        self.held = {leaf: self._own(leaf) for leaf in leaves}  # before functional_call replaces these tensors
        try:
            with _with_forward(list(parts), forward):
                yield
        finally:
            self.held = {}

    def _outermost(self, module: nn.Module, path: str) -> dict[nn.Module, str]:
        """The outermost parts inside a module that leave vmap, with their paths."""
        found: dict[nn.Module, str] = {}
        for name, child in module._modules.items():
            if child is not None:
                below = f"{path}.{name}" if path else name
                if self._can_leave_vmap(child, below) and any(self._gains(leaf) for leaf in child.modules()):
                    found[child] = below
                else:
                    found |= self._outermost(child, below)
        return found

    def _can_leave_vmap(self, module: nn.Module, path: str) -> bool:
        if self.wide.strategy.get(path, self.wide.strategy[""]) != "auto":
            return False
        if _is_sequential(module):
            children = [(name, child) for name, child in module._modules.items() if child is not None]
            return all(self._can_leave_vmap(child, f"{path}.{name}") for name, child in children)
        return is_known(module)

    def _gains(self, leaf: nn.Module) -> bool:
        """Whether a leaf must or should run outside vmap; leaving vmap costs more than a small product."""
        if isinstance(leaf, nn.Linear | Linear):  # vmap's gradient of the weight makes a transposed copy
            return torch.is_grad_enabled() or self.wide.kernels is not KERNELS
        if isinstance(leaf, nn.modules.dropout._DropoutNd):
            return _draws(leaf)
        if isinstance(leaf, nn.Embedding):  # vmap's gradient ignores padding_idx
            return leaf.padding_idx is not None
        return type(leaf) in LEAVING

    @contextmanager
    def _with_own_streams(self, module: nn.Module) -> Iterator[None]:
        """In a loop: make the leaves that draw random numbers use the stream of the being."""

        def forward(leaf: nn.Module, *args: Any, **kwargs: Any) -> Any:
            own_args, own_kwargs = axes.unsqueezed((args, kwargs))
            named = {**leaf._parameters, **leaf._buffers}.items()
            own = {name: tensor.unsqueeze(0) for name, tensor in named if tensor is not None}
            out = KERNELS[type(leaf)](leaf, own, self.noise, *own_args, **own_kwargs)
            if out is NotImplemented:
                return type(leaf).forward(leaf, *args, **kwargs)
            return axes.squeezed(out)

        with _with_forward([leaf for leaf in module.modules() if _draws(leaf) and is_known(leaf)], forward):
            yield


def _draws(leaf: nn.Module) -> bool:
    return leaf.training and isinstance(leaf, STOCHASTIC) and bool(getattr(leaf, "p", 0) or getattr(leaf, "dropout", 0))


Slot = tuple[nn.Module, str, str, tuple[Tensor, ...]]
"""A module, "_parameters" or "_buffers", the name in that dict, and the tensor of each being for that slot."""


def _slots_of(module: nn.Module, state: dict[str, tuple[Tensor, ...]]) -> list[Slot]:
    """Every slot of a tensor in a module; tied slots have the same rows."""
    rows = {id(tensor): state[name] for name, tensor in tensors_of(module).items() if name in state}
    return [
        (part, kind, name, rows[id(tensor)])
        for part in module.modules()
        for kind in ("_parameters", "_buffers")
        for name, tensor in getattr(part, kind).items()
        if id(tensor) in rows
    ]


@contextmanager
def _with_tensors(slots: list[Slot], being: int) -> Iterator[None]:
    """Put the tensors of one being into the module; afterwards write changed buffers back to the row of that being."""
    before = [getattr(part, kind)[name] for part, kind, name, _ in slots]
    # Buffers are copied and written back: the rows share one version counter, so that an update of the next being's row
    # in place would make backward refuse the row that this being saved.
    given = [rows[being].clone() if kind == "_buffers" else rows[being] for _, kind, _, rows in slots]
    recurrent = {part for part, *_ in slots if isinstance(part, nn.RNNBase)}
    try:
        for (part, kind, name, _), tensor in zip(slots, given, strict=True):
            getattr(part, kind)[name] = tensor
        for part in recurrent:
            part._flat_weights = [part._parameters[name] for name in part._flat_weights_names]
        yield
        with torch.no_grad():
            for part, kind, name, rows in slots:
                found = getattr(part, kind)[name]
                if kind == "_buffers" and not torch.equal(found, rows[being]):
                    rows[being].copy_(found)
    finally:
        for (part, kind, name, _), tensor in zip(slots, before, strict=True):
            getattr(part, kind)[name] = tensor
        for part in recurrent:
            part._flat_weights = [part._parameters[name] for name in part._flat_weights_names]


@contextmanager
def _with_forward(leaves: list[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    for leaf in leaves:
        leaf.__dict__["forward"] = partial(forward, leaf)
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.__dict__.pop("forward", None)


def _may_use_attention(module: nn.Module) -> bool:
    """Whether attention may run in a module: False for the leaves of torch.nn alone."""
    return bool(module._modules) or not type(module).__module__.startswith("torch.nn.modules")


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Disable torch's fused transformer layer and fused attention, for which vmap has no rule."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _is_sequential(module: nn.Module) -> bool:
    """Whether the module only calls its children in order."""
    return type(module).forward is nn.Sequential.forward and not customized(module)


def _copy(x: Any) -> Any:
    """A copy of a tensor; a tensor that all beings share stays shared."""
    if not isinstance(x, Tensor):
        return x
    return x[0].clone().expand(x.shape) if shared(x) else x.clone()


def _wrong_under_vmap(leaf: nn.Module) -> bool:
    """Whether vmap would silently compute wrong results: embeddings with ``max_norm``, bags with ``padding_idx``."""
    if isinstance(leaf, nn.EmbeddingBag) and leaf.padding_idx is not None:
        return True
    return isinstance(leaf, nn.Embedding | nn.EmbeddingBag) and leaf.max_norm is not None
