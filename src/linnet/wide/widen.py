"""Any module as a population: its forward is written for one being and runs for all of them at once."""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from linnet.core.being import copy_beings, indices
from linnet.core.checks import check_positive
from linnet.core.linear_map import LinearMap
from linnet.core.measures import penalty, violation
from linnet.wide.axes import Dims, checked_dims, checked_range, dropped, lifted
from linnet.wide.forward import STREAMS, Pass, checked_strategy, evaluate, tensors_of
from linnet.wide.kernels.leaves import KERNELS, Kernel, may_draw
from linnet.wide.random import Noise

__all__ = ["Wide", "WideBeing", "stack", "widen"]


class Wide(nn.Module):
    """A population of copies of one module; made by :func:`widen` and :func:`stack`.

    The member's forward sees the member's shapes: inside it there is no axis of beings. Parameters, buffers and
    sub-modules have the member's names, each tensor with an axis of beings in front. Dropout draws from a stream of
    each being by itself, which the buffer ``dropout_streams`` holds. What a forward keeps from one call to the next
    must be a buffer: a plain attribute is one for all beings.

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

    judges_members: ClassVar[bool] = True
    """:func:`linnet.penalty` and :func:`linnet.violation` ask this module, not the maps inside it."""
    kernels: ClassVar[Mapping[type[nn.Module], Kernel]] = KERNELS

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
        self.in_dims, self.out_dims = checked_dims(in_dims), operator.index(out_dims)
        self.strategy = checked_strategy(strategy, member)
        self.chunk_size = None if chunk_size is None else check_positive(chunk_size=chunk_size)[0]
        self._member = (member,)  # inside a tuple it is not registered: its tensors and children are this module's own
        self._parameters, self._buffers, self._modules = member._parameters, member._buffers, member._modules
        self._non_persistent_buffers_set = member._non_persistent_buffers_set
        self.training = member.training
        self.proven: set[Any] = set()
        self.looped: set[Any] | None = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return evaluate(self, self._member[0], args, kwargs, slice(0, self.beings))

    def part(self, start: int, stop: int) -> Callable[..., Any]:
        """The forward of beings start to stop − 1 alone: a function of what those are given."""
        rows = slice(*checked_range(start, stop, self.beings))
        return lambda *args, **kwargs: evaluate(self, self._member[0], args, kwargs, rows)

    def own(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """The tensors of a leaf for some beings."""
        own = {**module._parameters, **module._buffers}
        return {name: self._some(tensor, rows) for name, tensor in own.items() if tensor is not None}

    def state(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """All tensors in a module for some beings, each once."""
        return {name: self._some(tensor, rows) for name, tensor in tensors_of(module).items() if name != STREAMS}

    def _some(self, tensor: Tensor, rows: slice) -> Tensor:
        return tensor if rows == slice(0, self.beings) else tensor[rows]

    def train(self, mode: bool = True) -> Self:
        self._member[0].train(mode)
        self.training = self._member[0].training
        return self

    def clone_being(self, source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor) -> None:
        """Overwrite being ``destination`` with being ``source``; lists of indices are copied all at once."""
        copy_beings(self.rows(), source, destination, self.beings)

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front: all of them."""
        return list(tensors_of(self).values())

    def rows_moved(self) -> None:
        """Nothing follows from :meth:`rows`."""

    def single(self, index: int) -> nn.Module:
        """Being ``index`` as an independent module, of the member's class."""
        i = int(indices(index, self.beings))
        alone = renewed(self._member[0], lambda _, tensor: tensor[i])
        alone._buffers.pop(STREAMS, None)
        return alone

    def penalty(self) -> Tensor:
        """The penalties of the maps of all members, summed over the beings: what :func:`linnet.penalty` adds."""
        member, state = self._member[0], self.state(self._member[0], slice(0, self.beings))

        def of_one(rows: dict[str, Tensor]) -> Tensor:
            with torch.nn.utils.stateless._reparametrize_module(member, rows):
                return penalty(member)

        if not any(isinstance(part, LinearMap) for part in member.modules()):
            return torch.zeros(())
        return torch.vmap(of_one, randomness="different")(state).sum()

    def violation(self) -> Tensor:
        """How far the maps of each member are from their promises, the largest of each, (beings,) float64."""
        return torch.stack([violation(self.single(i)) for i in range(self.beings)])

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
    it can be attached anywhere. To train one being alone use :func:`single`, then ``assign_being``. It has no mode of
    its own: whether dropout and batch norm train is what the population is set to, whatever ``train()`` and ``eval()``
    of the view say.

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
        return dropped(Pass(population, rows).loop(population._member[0], *lifted((args, kwargs))))

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
            raise ValueError("seeds are for a factory, such as lambda: Net(), got a module is copied as it is")
        _refuse(module)
        member = renewed(module, lambda _, tensor: tensor.expand(count, *tensor.shape))
        return _populated(member, count, None, options)
    if not callable(module):
        raise TypeError(f"widen needs a module or a function that builds one, got {module!r}")
    if seeds is not None and len(seeds) != count:
        raise ValueError(f"seeds must hold one int for each being ({count}), got {len(seeds)}")
    return stack(_drawn(module, count, seeds), seeds=seeds, **options)


def _drawn(factory: Callable[[], nn.Module], count: int, seeds: Sequence[int] | None) -> list[nn.Module]:
    if seeds is None:
        return [factory() for _ in range(count)]
    members = []
    with torch.random.fork_rng():
        for seed in seeds:
            _seed_defaults(operator.index(seed))
            members.append(factory())
    return members


def _seed_defaults(seed: int) -> None:
    """torch.manual_seed for the devices that are there: it would write down a stack trace for each that is not."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


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
        raise ValueError(f"stack needs at least one module, and nothing else, got {members!r:.200}")
    first = _described(members[0])
    _refuse(members[0])
    for i, member in enumerate(members[1:], 1):
        if (other := _described(member)) != first:
            raise ValueError(f"All members must have one structure, got member {i} has {_difference(first, other)}")
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
    if may_draw(member):
        drawn = torch.randint(2**62, (beings,)) if seeds is None else torch.tensor([operator.index(s) for s in seeds])
        device = next((tensor.device for tensor in tensors_of(member).values()), None)
        member.register_buffer(STREAMS, Noise.states(drawn).to(device))
    return Wide(member, beings, **options)


def _refuse(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if getattr(part, "beings", None) is not None:
            raise ValueError(f"Only modules without beings can be widened, got {name or 'it'} is {part}")
        if getattr(part, "rule", None) is not None:
            raise ValueError(
                "Connections that move belong to one layer of all beings, SparseLinear(..., beings=n, dynamic=...), "
                f"got {name or 'it'} is {part}"
            )


def _described(module: nn.Module) -> dict[str, Any]:
    """What two members must have in common."""
    parts = {
        name: (type_before_parametrizations(part).__name__, part.extra_repr(), part.training)
        for name, part in module.named_modules(remove_duplicate=False)
    }
    tensors = {name: (tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors_of(module).items()}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_") and key != "training" and (text := _told(value)) is not None:
                parts[f"{name}.{key}" if name else key] = text  # type: ignore[assignment]
    return {**parts, **{f"{name} (tensor)": what for name, what in tensors.items()}}


def _told(value: Any) -> str | None:
    """A setting of a module as text, so that two can be compared; None for what is none."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        return repr([_told(item) for item in value])
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.detach().flatten().tolist()!r:.200}"
    return getattr(value, "__qualname__", None) if callable(value) and not isinstance(value, nn.Module) else None


def _difference(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    first = names[0]
    return f"{first or 'itself'} {wanted.get(first, 'nothing')}, got {given.get(first, 'nothing')}"
