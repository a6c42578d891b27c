"""The forward of a population: batched kernels, torch.vmap or a loop, part by part of the member."""

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
from linnet.wide.axes import Dims, dropped, joined, lifted, moved, placed, results, split
from linnet.wide.kernels.leaves import DRAWING, ESCAPES, KERNELS, Kernel, is_known, shared, watched
from linnet.wide.kernels.measured import few_calls
from linnet.wide.random import Noise

__all__ = ["STREAMS", "Pass", "checked_strategy", "evaluate", "tensors_of"]

STREAMS = "dropout_streams"
STRATEGIES = ("auto", "vmap", "loop")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, each once, those that are not saved too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class _Unknown(Exception):
    """A kernel does not know these arguments: the module itself shall run."""


class _Escape(torch.autograd.Function):
    """Leave vmap: ``call`` gets the tensors of all beings, axis in front, and autograd sees what it does."""

    @staticmethod
    def forward(call: Callable[..., Any], marker: Tensor, *tensors: Tensor) -> Any:
        raise NotImplementedError("A module that differentiates inside its forward needs strategy='vmap'")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Callable[..., Any], marker: Tensor, *tensors: Tensor) -> Any:
        beings = info.batch_size
        moved = [
            x.unsqueeze(0).expand(beings, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims[2:], strict=True)
        ]
        out = call(*moved)
        return out, (0,) * len(out)


class Population(Protocol):
    """What a forward needs to know of a population."""

    beings: int
    in_dims: Dims
    out_dims: int
    chunk_size: int | None
    strategy: dict[str, str]
    proven: set[Any]
    """The modules, by name and mode, that vmap has run."""
    looped: set[Any] | None
    """Those that it could not; None if this population has no loop to fall back on."""

    kernels: ClassVar[Mapping[type[nn.Module], Kernel]]
    _buffers: dict[str, Tensor | None]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def own(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """The tensors of a leaf for some beings, as its kernel takes them."""

    def state(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """All tensors in a module for some beings, (beings, ...)."""


def evaluate(wide: Population, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: slice) -> Any:
    """The forward of some beings, ``chunk_size`` of them at a time."""
    beings = rows.stop - rows.start
    args, kwargs = moved(args, kwargs, wide.in_dims, beings)
    if wide.chunk_size is None or wide.chunk_size >= beings:
        return placed(Pass(wide, rows).run(member, "", args, kwargs), wide.out_dims)
    parts = []
    for first in range(0, beings, wide.chunk_size):
        some = slice(first, min(beings, first + wide.chunk_size))
        own = tree_map(lambda x, some=some: x[some] if isinstance(x, Tensor) else x, (args, kwargs))
        parts.append(Pass(wide, slice(rows.start + some.start, rows.start + some.stop)).run(member, "", *own))
    return placed(joined(parts, torch.cat), wide.out_dims)


def checked_strategy(strategy: Any, member: nn.Module) -> dict[str, str]:
    """A strategy for the whole or by names of sub-modules -> by names, ``""`` for the rest."""
    by_name = {"": strategy} if isinstance(strategy, str) else {"": "auto", **strategy}
    names = dict(member.named_modules())
    if any(kind not in STRATEGIES or name not in names for name, kind in by_name.items()):
        raise ValueError(
            f"strategy must give one of {', '.join(STRATEGIES)} for the whole or for sub-modules by name, "
            f"got {strategy!r}"
        )
    return by_name


_SILENCE = Noise(torch.zeros(0, dtype=torch.int64))
"""Of a population in which nothing draws."""


class Pass:
    """One forward of a population, or of some of its beings.

    Args:
        wide: the population.
        rows: which beings, from a start to a stop.
    """

    def __init__(self, wide: Population, rows: slice) -> None:
        self.wide, self.rows = wide, rows
        self.beings = rows.stop - rows.start
        streams = wide._buffers.get(STREAMS)
        self.noise = _SILENCE if streams is None else Noise(streams[rows])
        self.held: dict[nn.Module, dict[str, Tensor]] = {}

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
        elif strategy == "auto" and (checked or _is_chain(module)) and len(args) == 1 and not kwargs:
            out = args[0]
            for name, child in module._modules.items():  # one that stands there twice runs twice
                if child is not None:
                    out = self.run(child, f"{path}.{name}" if path else name, (out,), {})
            return out
        if self.held:
            raise _Unknown
        return self._vmap_or_loop(module, path, args, kwargs, strategy)

    def _vmap_or_loop(
        self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], strategy: str
    ) -> Any:
        if strategy == "vmap" or self.wide.looped is None:
            return self.vmap(module, path, args, kwargs)
        parts = list(module.modules())
        if any(_renormalizes(part) for part in parts):
            return self.loop(module, args, kwargs)
        plain = [x for x in tree_flatten((args, kwargs))[0] if not isinstance(x, Tensor)]  # may choose another way
        mode = (path, module.training, torch.is_grad_enabled(), repr(plain))
        if mode in self.wide.looped or few_calls(self.beings, sum(not part._modules for part in parts)):
            return self.loop(module, args, kwargs)
        if mode in self.wide.proven:
            return self.vmap(module, path, args, kwargs)
        before = [(buffer, buffer.clone()) for _, buffer in self.wide.named_buffers()]
        generator = torch.get_rng_state()
        given = tree_map(_copied, (args, kwargs))  # the attempt may change them in place
        try:
            out = self.vmap(module, path, args, kwargs)
        except Exception as error:  # whatever vmap raises where it has no rule
            with torch.no_grad():
                for buffer, saved in before:
                    buffer.copy_(saved)
            torch.set_rng_state(generator)
            out = self.loop(module, *given)  # a mistake in the arguments is raised here, in the member's words
            self.wide.looped.add(mode)
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"torch.vmap cannot run {type(module).__name__}, its beings run one after another "
                f"(strategy='loop' says so beforehand): {reason}",
                stacklevel=2,
            )
            return out
        self.wide.proven.add(mode)
        return out

    def vmap(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own forward under torch.vmap, with kernels in the place of the leaves that have one."""
        state = self.wide.state(module, self.rows)
        inputs, rebuilt = split((args, kwargs))
        dims = [None if shared(x) else 0 for x in inputs]
        inputs = [x if dim == 0 else x[0] for x, dim in zip(inputs, dims, strict=True)]
        outer: dict[str, Any] = {}

        def member(marker: Tensor, rows: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Any, ...]:
            given = dict(rows)
            args, kwargs = rebuilt(inputs)
            with self._escaping(module, path, marker):
                out = functional_call(module, given, args, kwargs)
            tensors, outer["rebuilt"] = split(results(out))
            outer["changed"] = [name for name, tensor in given.items() if tensor is not rows[name]]
            return (*tensors, *(given[name] for name in outer["changed"]))

        marker = next(iter(state.values()), torch.empty(0)).new_empty(self.beings, 0)
        with _without_fused_attention() if _attends(module) else nullcontext():
            out = torch.vmap(member, in_dims=(0, 0, dims), randomness="different")(marker, state, inputs)
        with torch.no_grad():
            for name in reversed(outer["changed"]):
                state[name].copy_(out[-1])
                out = out[:-1]
        return outer["rebuilt"](out)

    def loop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own forward for one being after another; dropout draws from the being's own stream."""
        owners = _owners(module, {name: rows.unbind() for name, rows in self.wide.state(module, self.rows).items()})
        inputs, rebuilt = split((args, kwargs))
        each = [x.unbind() for x in inputs]
        draws, outs = any(_draws(leaf) for leaf in module.modules()), []
        for i in range(self.beings):
            # copies: what a member does to them in place is its own affair
            own_args, own_kwargs = rebuilt(rows[i].clone() for rows in each)
            number = self.rows.start + i
            one = Pass(self.wide, slice(number, number + 1))._drawing(module) if draws else nullcontext()
            with one, _in_place(owners, i):
                outs.append(module(*own_args, **own_kwargs))
        return joined(outs, torch.stack)

    @contextmanager
    def _escaping(self, module: nn.Module, path: str, marker: Tensor) -> Iterator[None]:
        """Under vmap: the parts that have a kernel leave it, each for its own product."""
        parts = self._outermost(module, path)

        def forward(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
            inputs, rebuilt = split((args, kwargs))
            outer: dict[str, Any] = {}

            def call(*tensors: Tensor) -> tuple[Tensor, ...]:
                args, kwargs = rebuilt(tensors)
                found, outer["rebuilt"] = split(self.run(part, parts[part], args, kwargs))
                return tuple(found)

            try:
                out = _Escape.apply(call, marker, *inputs)
            except _Unknown:
                return type(part).forward(part, *args, **kwargs)
            return outer["rebuilt"](out)

        leaves = [leaf for part in parts for leaf in part.modules()]
        self.held = {leaf: self._own(leaf) for leaf in leaves}  # before functional_call puts others in their place
        try:
            with _with_forward(list(parts), forward):
                yield
        finally:
            self.held = {}

    def _outermost(self, module: nn.Module, path: str) -> dict[nn.Module, str]:
        """The outermost parts inside a module that leave vmap, with their names."""
        found: dict[nn.Module, str] = {}
        for name, child in module._modules.items():
            if child is not None:
                below = f"{path}.{name}" if path else name
                if self._leaves(child, below) and any(self._gains(leaf) for leaf in child.modules()):
                    found[child] = below
                else:
                    found |= self._outermost(child, below)
        return found

    def _leaves(self, module: nn.Module, path: str) -> bool:
        if self.wide.strategy.get(path, self.wide.strategy[""]) != "auto":
            return False
        if _is_chain(module):
            children = [(name, child) for name, child in module._modules.items() if child is not None]
            return all(self._leaves(child, f"{path}.{name}") for name, child in children)
        return is_known(module)

    def _gains(self, leaf: nn.Module) -> bool:
        """Whether a leaf is better off outside vmap: leaving it costs more than a small product."""
        if isinstance(leaf, nn.Linear | Linear):  # vmap's own gradient of the weight takes a transposed copy
            return torch.is_grad_enabled() or self.wide.kernels is not KERNELS
        if isinstance(leaf, nn.modules.dropout._DropoutNd):
            return _draws(leaf)
        if isinstance(leaf, nn.Embedding):  # the gradient of vmap's own rule does not know of padding
            return leaf.padding_idx is not None
        return type(leaf) in ESCAPES

    @contextmanager
    def _drawing(self, module: nn.Module) -> Iterator[None]:
        """In a loop: what draws random numbers draws them from the stream of the being."""

        def forward(leaf: nn.Module, *args: Any, **kwargs: Any) -> Any:
            own_args, own_kwargs = lifted((args, kwargs))
            named = {**leaf._parameters, **leaf._buffers}.items()
            own = {name: tensor.unsqueeze(0) for name, tensor in named if tensor is not None}
            out = KERNELS[type(leaf)](leaf, own, self.noise, *own_args, **own_kwargs)
            if out is NotImplemented:
                return type(leaf).forward(leaf, *args, **kwargs)
            return dropped(out)

        with _with_forward([leaf for leaf in module.modules() if _draws(leaf) and is_known(leaf)], forward):
            yield


def _draws(leaf: nn.Module) -> bool:
    return leaf.training and isinstance(leaf, DRAWING) and bool(getattr(leaf, "p", 0) or getattr(leaf, "dropout", 0))


Owner = tuple[nn.Module, str, str, tuple[Tensor, ...]]
"""A module, "_parameters" or "_buffers", the name there, and what belongs there for each being."""


def _owners(module: nn.Module, state: dict[str, tuple[Tensor, ...]]) -> list[Owner]:
    """Every place in a module where a tensor stands; tied places have the same rows."""
    rows = {id(tensor): state[name] for name, tensor in tensors_of(module).items() if name in state}
    return [
        (part, kind, name, rows[id(tensor)])
        for part in module.modules()
        for kind in ("_parameters", "_buffers")
        for name, tensor in getattr(part, kind).items()
        if id(tensor) in rows
    ]


@contextmanager
def _in_place(owners: list[Owner], being: int) -> Iterator[None]:
    """Put the tensors of one being into the module; a buffer that the forward replaces goes to the being's row."""
    before = [getattr(part, kind)[name] for part, kind, name, _ in owners]
    # a buffer is a copy, written back: its rows are one tensor for autograd, and the next being would change this one's
    given = [rows[being].clone() if kind == "_buffers" else rows[being] for _, kind, _, rows in owners]
    recurrent = {part for part, *_ in owners if isinstance(part, nn.RNNBase)}
    try:
        for (part, kind, name, _), tensor in zip(owners, given, strict=True):
            getattr(part, kind)[name] = tensor
        for part in recurrent:
            part._flat_weights = [part._parameters[name] for name in part._flat_weights_names]
        yield
        with torch.no_grad():
            for part, kind, name, rows in owners:
                found = getattr(part, kind)[name]
                if kind == "_buffers" and not torch.equal(found, rows[being]):
                    rows[being].copy_(found)
    finally:
        for (part, kind, name, _), tensor in zip(owners, before, strict=True):
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


def _attends(module: nn.Module) -> bool:
    """Whether attention may run inside: everywhere but in a leaf of torch.nn."""
    return bool(module._modules) or not type(module).__module__.startswith("torch.nn.modules")


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """torch's fused transformer layer and attention have no rule for vmap."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _is_chain(module: nn.Module) -> bool:
    """Whether the module does nothing but call its children in order."""
    return type(module).forward is nn.Sequential.forward and not watched(module)


def _copied(x: Any) -> Any:
    """A copy of a tensor; one that all beings share stays shared."""
    if not isinstance(x, Tensor):
        return x
    return x[0].clone().expand(x.shape) if shared(x) else x.clone()


def _renormalizes(leaf: nn.Module) -> bool:
    """Whether vmap would be silently wrong: tables that change while they are read, bags that skip a row."""
    if isinstance(leaf, nn.EmbeddingBag) and leaf.padding_idx is not None:
        return True
    return isinstance(leaf, nn.Embedding | nn.EmbeddingBag) and leaf.max_norm is not None
