"""Any module as a population: its forward is written for one being and runs for all of them at once."""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._pytree import tree_flatten, tree_map

from linnet.beings import check_positive, indices
from linnet.wide.leaves import DRAWING
from linnet.wide.noise import Noise
from linnet.wide.passing import STREAMS, Pass, joined, tensors_of

__all__ = ["Wide", "WideBeing", "stack", "widen"]

STRATEGIES = ("auto", "vmap", "loop")

Dims = int | None | tuple[Any, ...]


class Wide(nn.Module):
    """A population of copies of one module; made by :func:`widen` and :func:`stack`.

    The member's forward sees the member's shapes: inside it there is no axis of beings. Parameters, buffers and
    sub-modules have the member's names, each tensor with an axis of beings in front. Dropout draws from a stream of
    each being by itself, which the buffer ``dropout_streams`` holds.

    Args:
        member: the module, its tensors already (beings, ...).
        beings: how many.
        in_dims: where the tensors that are given to ``forward`` have the axis of beings: one place for all, None if
            every being is given the same, or a tuple with an entry for each positional argument.
        out_dims: where the results have it.
        strategy: ``"auto"`` runs batched kernels where they are known and torch.vmap elsewhere, or a loop over the
            beings where vmap cannot; ``"vmap"`` and ``"loop"`` do that alone. A dict by the names of sub-modules says
            it for those, ``""`` for the rest.
        chunk_size: evaluate so many beings at a time, to need less memory; None all at once.

    Shape:
        - input: as the member's, with beings, or 1 for one that is given to all, at ``in_dims``
        - output: as the member's, with beings at ``out_dims``

    Raises:
        ValueError: an input has no axis of beings where it should.
    """

    def __init__(
        self,
        member: nn.Module,
        beings: int,
        *,
        in_dims: Dims = 1,
        out_dims: int = 1,
        strategy: str | Mapping[str, str] = "auto",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.beings = check_positive(beings=beings)[0]
        self.in_dims, self.out_dims = _checked_dims(in_dims), operator.index(out_dims)
        self.strategy = {"": strategy} if isinstance(strategy, str) else {"": "auto", **strategy}
        names = dict(member.named_modules())
        for name, kind in self.strategy.items():
            if kind not in STRATEGIES or name not in names:
                raise ValueError(
                    f"strategy must give one of {', '.join(STRATEGIES)} for the whole or for sub-modules by name, "
                    f"however: {strategy!r}"
                )
        self.chunk_size = None if chunk_size is None else check_positive(chunk_size=chunk_size)[0]
        self._member = (member,)  # inside a tuple it is not registered: its tensors and children are this module's own
        self._parameters, self._buffers, self._modules = member._parameters, member._buffers, member._modules
        self._non_persistent_buffers_set = member._non_persistent_buffers_set
        self.training = member.training
        self.proven: set[tuple[Any, ...]] = set()
        self.looped: set[tuple[Any, ...]] = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and not isinstance(self.in_dims, tuple):
            args = (self._in_front(args[0], self.in_dims),)  # what mostly comes, without a walk through trees
        else:
            args, kwargs = self._moved(args, kwargs)
        if self.chunk_size is None or self.chunk_size >= self.beings:
            out = Pass(self, None).run(self._member[0], "", args, kwargs)
        else:
            parts = []
            for start in range(0, self.beings, self.chunk_size):
                rows = slice(start, start + self.chunk_size)
                some = tree_map(lambda x, rows=rows: x[rows] if isinstance(x, Tensor) else x, (args, kwargs))
                parts.append(Pass(self, rows).run(self._member[0], "", *some))
            out = joined(parts, torch.cat)
        return self._placed(out) if isinstance(out, Tensor) else tree_map(self._placed, out)

    def _moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Every tensor with the axis of beings in front; one that all share is expanded."""
        dims = self.in_dims
        if isinstance(dims, tuple):
            if len(dims) != len(args) or any(isinstance(x, Tensor) for x in tree_flatten(kwargs)[0]):
                raise ValueError(
                    f"in_dims={dims} has one entry for each positional argument, and no tensor may come by name, "
                    f"however: {len(args)} positional and {sorted(kwargs)} by name"
                )
            moved = tuple(tree_map(partial(self._in_front, dim=dim), x) for dim, x in zip(dims, args, strict=True))
            return moved, kwargs
        return tree_map(partial(self._in_front, dim=dims), (args, kwargs))

    def _in_front(self, x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        if dim is None:
            return x.unsqueeze(0).expand(self.beings, *x.shape)
        if not -x.dim() <= dim < x.dim() or x.shape[dim] not in (1, self.beings):
            raise ValueError(
                f"An input of the population must have the axis of beings={self.beings} (or 1 for one given to all) "
                f"at dim {dim}, however: {tuple(x.shape)} (in_dims= says where, x.unsqueeze({dim}) gives x to all)"
            )
        x = x.movedim(dim, 0)
        return x if len(x) == self.beings else x.expand(self.beings, *x.shape[1:])

    def _placed(self, y: Any) -> Any:
        if not isinstance(y, Tensor) or self.out_dims == 0:
            return y
        if not -y.dim() <= self.out_dims < y.dim():
            raise ValueError(
                f"An output of the population must have an axis {self.out_dims} for the beings, however: each being "
                f"gives {tuple(y.shape[1:])} (out_dims= says where the beings come)"
            )
        return y.movedim(0, self.out_dims)

    def train(self, mode: bool = True) -> Self:
        self._member[0].train(mode)
        self.training = self._member[0].training
        return self

    def clone_being(self, source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor) -> None:
        """Overwrite being ``destination`` with being ``source``; lists of indices are copied all at once."""
        src, dst = (indices(index, self.beings) for index in (source, destination))
        if src.shape != dst.shape or dst.unique().numel() != dst.numel():
            raise ValueError(
                "clone_being needs as many sources as destinations, and each destination once, "
                f"however: {src.tolist()} -> {dst.tolist()}"
            )
        with torch.no_grad():
            for tensor in tensors_of(self).values():
                tensor.index_copy_(0, dst.to(tensor.device), tensor.index_select(0, src.to(tensor.device)))

    def single(self, index: int) -> nn.Module:
        """Being ``index`` as an independent module, of the member's class."""
        i = int(indices(index, self.beings))
        alone = renewed(self._member[0], lambda _, tensor: tensor[i])
        alone._buffers.pop(STREAMS, None)
        return alone

    def get_single(self, index: int) -> "WideBeing":
        """Being ``index`` as a live view, see :class:`WideBeing`."""
        return WideBeing(self, int(indices(index, self.beings)))

    def assign_being(self, index: int, module: nn.Module) -> None:
        """Overwrite being ``index`` with an ordinary module of the member's structure: all of it or nothing.

        Raises:
            ValueError: the module has other tensors.
        """
        i = int(indices(index, self.beings))
        self.check_being(module)
        own = tensors_of(self)
        with torch.no_grad():
            for name, tensor in tensors_of(module).items():
                own[name][i].copy_(tensor)

    def check_being(self, module: nn.Module) -> None:
        """Raise a ValueError unless the module has the tensors of one being."""
        wanted = {name: tuple(tensor.shape[1:]) for name, tensor in tensors_of(self).items() if name != STREAMS}
        given = {name: tuple(tensor.shape) for name, tensor in tensors_of(module).items()}
        if wanted != given:
            raise ValueError(f"A being must have the tensors of the others, {_difference(wanted, given)}")

    def alike(self, input: Tensor) -> Tensor:
        """The member's forward on the tensor of all beings as it is: for members that look at one number at a time."""
        return self._member[0](input)

    def extra_repr(self) -> str:
        member = self._member[0]
        what = type(member).__name__ if self._modules else repr(member)
        return f"{what}, beings={self.beings}"


class WideBeing(nn.Module):
    """One being of a :class:`Wide` as a single module: a live view that owns nothing.

    Backward through it fills row ``index`` of the population's gradients and no other; ``parameters()`` is empty, and
    it can be attached anywhere. To train one being alone use :func:`single`, then ``assign_being``.

    Args:
        population: the population to look into.
        index: which being.

    Shape:
        - input, output: as the member's
    """

    def __init__(self, population: Wide, index: int) -> None:
        super().__init__()
        self._source = (population,)
        self.index = index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        population = self._source[0]
        rows = slice(self.index, self.index + 1)
        args, kwargs = tree_map(lambda x: x.unsqueeze(0) if isinstance(x, Tensor) else x, (args, kwargs))
        out = Pass(population, rows).loop(population._member[0], args, kwargs)
        return tree_map(lambda y: y.squeeze(0) if isinstance(y, Tensor) else y, out)

    def extra_repr(self) -> str:
        return f"index={self.index}, beings={self._source[0].beings}"


# ---------------------------------------------------------------------- how they are made


def renewed(module: nn.Module, change: Callable[[str, Tensor], Tensor]) -> Any:
    """A deep copy with a copy of ``change(name, tensor)`` in the place of every tensor; what is shared stays shared."""
    memo: dict[int, Any] = {}
    for name, tensor in tensors_of(module).items():
        new = change(name, tensor.detach()).clone()
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(module, memo)


def widen(
    module: nn.Module | Callable[[], nn.Module],
    beings: int,
    *,
    seeds: Sequence[int] | None = None,
    in_dims: Dims = 1,
    out_dims: int = 1,
    strategy: str | Mapping[str, str] = "auto",
    chunk_size: int | None = None,
) -> Wide:
    """A population of ``beings`` nets from one: exact copies of a module, or fresh draws from a factory.

    Args:
        module: a module, of which every being is a copy, or a function that builds one, called for each being.
        beings: how many.
        seeds: for a factory: being i is what ``torch.manual_seed(seeds[i]); factory()`` gives, to the bit. None draws
            from torch's default generator.
        in_dims, out_dims, strategy, chunk_size: see :class:`Wide`.

    Raises:
        ValueError: a module already has beings, or seeds are given for a module or not one for each being.

    Example:
        >>> nets = widen(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), 5, seeds=range(5))
        >>> nets(torch.randn(32, 5, 3)).shape, nets(torch.randn(32, 1, 3)).shape
        (torch.Size([32, 5, 2]), torch.Size([32, 5, 2]))
        >>> {name: tuple(tensor.shape) for name, tensor in nets.state_dict().items()}
        {'0.weight': (5, 8, 3), '0.bias': (5, 8), '2.weight': (5, 2, 8), '2.bias': (5, 2)}
    """
    count = check_positive(beings=beings)[0]
    options: dict[str, Any] = {
        "in_dims": in_dims,
        "out_dims": out_dims,
        "strategy": strategy,
        "chunk_size": chunk_size,
    }
    if isinstance(module, nn.Module):
        if seeds is not None:
            raise ValueError("seeds are for a factory, such as lambda: Net(), however: a module is copied as it is")
        _refuse(module)
        member = renewed(module, lambda _, tensor: tensor.expand(count, *tensor.shape))
        return _populated(member, count, None, options)
    if not callable(module):
        raise TypeError(f"widen needs a module or a function that builds one, however: {module!r}")
    if seeds is not None and len(seeds) != count:
        raise ValueError(f"seeds must hold one int for each being ({count}), however: {len(seeds)}")
    return stack(_drawn(module, count, seeds), seeds=seeds, **options)


def _drawn(factory: Callable[[], nn.Module], count: int, seeds: Sequence[int] | None) -> list[nn.Module]:
    if seeds is None:
        return [factory() for _ in range(count)]
    members = []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(operator.index(seed))
            members.append(factory())
    return members


def stack(
    modules: Sequence[nn.Module],
    *,
    seeds: Sequence[int] | None = None,
    in_dims: Dims = 1,
    out_dims: int = 1,
    strategy: str | Mapping[str, str] = "auto",
    chunk_size: int | None = None,
) -> Wide:
    """A list of modules of one structure -> the population of them; :func:`unstack` gives them back.

    Args:
        modules: at least one; they are copied.
        seeds: of the streams that dropout draws from, one for each; None draws them.
        in_dims, out_dims, strategy, chunk_size: see :class:`Wide`.

    Raises:
        ValueError: there is none, or two differ in structure, in shapes or in what learns.

    Example:
        >>> nets = stack([nn.Linear(3, 2) for _ in range(5)])
        >>> nets(torch.randn(32, 5, 3)).shape
        torch.Size([32, 5, 2])
    """
    members = list(modules)
    if not members or not all(isinstance(member, nn.Module) for member in members):
        raise ValueError(f"stack needs at least one module, and nothing else, however: {members!r:.200}")
    first = _described(members[0])
    _refuse(members[0])
    for i, member in enumerate(members[1:], 1):
        if (other := _described(member)) != first:
            raise ValueError(
                f"All members must have one structure, however: member {i} has {_difference(first, other)}"
            )
    every = [tensors_of(member) for member in members]
    member = renewed(members[0], lambda name, _: torch.stack([tensors[name].detach() for tensors in every]))
    options: dict[str, Any] = {
        "in_dims": in_dims,
        "out_dims": out_dims,
        "strategy": strategy,
        "chunk_size": chunk_size,
    }
    return _populated(member, len(members), seeds, options)


def _populated(member: nn.Module, beings: int, seeds: Sequence[int] | None, options: dict[str, Any]) -> Wide:
    if any(isinstance(part, DRAWING) and getattr(part, "dropout", True) for part in member.modules()):
        drawn = torch.randint(2**62, (beings,)) if seeds is None else torch.tensor([operator.index(s) for s in seeds])
        device = next((tensor.device for tensor in tensors_of(member).values()), None)
        member.register_buffer(STREAMS, Noise.states(drawn).to(device))
    return Wide(member, beings, **options)


def _refuse(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if getattr(part, "beings", None) is not None:
            raise ValueError(f"Only modules without beings can be widened, however: {name or 'it'} is {part}")
        if getattr(part, "rule", None) is not None:
            raise ValueError(
                "Connections that move belong to one layer of all beings, SparseLinear(..., beings=n, dynamic=...), "
                f"however: {name or 'it'} is {part}"
            )


def _described(module: nn.Module) -> dict[str, Any]:
    """What two members must have in common."""
    parts = {
        name: (type_before_parametrizations(part).__name__, part.extra_repr(), part.training)
        for name, part in module.named_modules(remove_duplicate=False)
    }
    tensors = {name: (tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors_of(module).items()}
    return {**parts, **{f"{name} (tensor)": what for name, what in tensors.items()}}


def _difference(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    first = names[0]
    return f"{first or 'itself'} {wanted.get(first, 'nothing')}, however: {given.get(first, 'nothing')}"


def _checked_dims(in_dims: Any) -> Dims:
    for dim in in_dims if isinstance(in_dims, tuple) else (in_dims,):
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise TypeError(f"in_dims must be an int, None, or a tuple of them, however: {in_dims!r}")
    return in_dims
