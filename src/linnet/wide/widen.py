"""widen and stack: a population of any module, whose forward is written for one being and runs for all at once."""

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
from linnet.wide.axes import Dims, checked_dims, checked_range, squeezed, unsqueezed
from linnet.wide.forward import STREAMS, Pass, checked_strategy, evaluate, tensors_of
from linnet.wide.kernels.leaves import KERNELS, Kernel, may_draw
from linnet.wide.random import Noise


class Wide(nn.Module):
    """A population of copies of one module; made by :func:`widen` and :func:`stack`.

    A being is a member of a population. The member's forward sees the member's shapes, without an axis of beings.
    Parameters, buffers and sub-modules have the member's names, each tensor with an axis of beings in front. Dropout
    draws from a separate stream for each being; the buffer ``dropout_streams`` holds the states of these streams. A
    forward may keep state from one call to the next in buffers only: all beings share a plain attribute.

    Args:
        member: the module, its tensors already (beings, ...).
        beings: number of members.
        in_dims: axis of beings in the tensors that ``forward`` takes: one int for all, None if all beings share every
            input, or a tuple with an entry for each positional argument.
        out_dims: axis of beings in the results.
        strategy: ``"auto"`` runs batched kernels where linnet has them, torch.vmap elsewhere, and a loop over the
            beings where vmap cannot run the module; ``"vmap"`` and ``"loop"`` use one of these only. A dict from names
            of sub-modules sets the strategy of each, ``""`` that of all others.
        chunk_size: number of beings evaluated at a time, to bound the memory; None evaluates all at once.

    Shape:
        - input: the member's shape with beings, or 1 for an input that all beings share, at ``in_dims``
        - output: the member's shape with beings at ``out_dims``

    Raises:
        ValueError: an input has no axis of beings at ``in_dims``.
    """

    judges_members: ClassVar[bool] = True
    """:func:`linnet.penalty` and :func:`linnet.violation` call this module's methods, not those of the maps inside."""
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
        self._member = (member,)  # a tuple, so that torch does not register it: its tensors and children are shared
        self._parameters, self._buffers, self._modules = member._parameters, member._buffers, member._modules
        self._non_persistent_buffers_set = member._non_persistent_buffers_set
        self.training = member.training
        self.proven: set[Any] = set()
        self.looped: set[Any] | None = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return evaluate(self, self._member[0], args, kwargs, slice(0, self.beings))

    def part(self, start: int, stop: int) -> Callable[..., Any]:
        """The forward of beings start to stop − 1 alone, as a function of their inputs."""
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
        """Overwrite being ``destination`` with being ``source``; lists of indices are copied simultaneously."""
        copy_beings(self.rows(), source, destination, self.beings)

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front: all tensors of the population."""
        return list(tensors_of(self).values())

    def rows_moved(self) -> None:
        """Do nothing: no tensor is derived from :meth:`rows`."""

    def single(self, index: int) -> nn.Module:
        """Being ``index`` as an independent module, of the member's class."""
        i = int(indices(index, self.beings))
        alone = renewed(self._member[0], lambda _, tensor: tensor[i])
        alone._buffers.pop(STREAMS, None)
        return alone

    def penalty(self) -> Tensor:
        """The penalties of the maps of all members, summed over the beings; :func:`linnet.penalty` adds it."""
        member, state = self._member[0], self.state(self._member[0], slice(0, self.beings))

        def of_one(rows: dict[str, Tensor]) -> Tensor:
            with torch.nn.utils.stateless._reparametrize_module(member, rows):
                return penalty(member)

        if not any(isinstance(part, LinearMap) for part in member.modules()):
            return torch.zeros(())
        return torch.vmap(of_one, randomness="different")(state).sum()

    def violation(self) -> Tensor:
        """The largest violation of a promise among the maps of each member, (beings,) float64."""
        return torch.stack([violation(self.single(i)) for i in range(self.beings)])

    def get_single(self, index: int) -> "WideBeing":
        """Being ``index`` as a live view, see :class:`WideBeing`."""
        return WideBeing(self, int(indices(index, self.beings)))

    def assign_being(self, index: int, module: nn.Module) -> None:
        """Overwrite being ``index`` atomically with an ordinary module of the member's structure.

        Raises:
            ValueError: the tensors of the module differ from those of a being in name or shape.
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
            raise ValueError(f"The module must have the tensors of one being; {_difference(wanted, given)}")

    def alike(self, input: Tensor) -> Tensor:
        """The member's forward on the tensor of all beings, for members that act on each number alone."""
        return self._member[0](input)

    def extra_repr(self) -> str:
        member = self._member[0]
        what = type(member).__name__ if self._modules else repr(member)
        return f"{what}, beings={self.beings}"


class WideBeing(nn.Module):
    """One being of a :class:`Wide` as a single module: a live view that owns nothing.

    Backward through the view fills row ``index`` of the population's gradients and no other. ``parameters()`` of the
    view is empty, and the view can be registered in any module. To train one being alone use :func:`single`, then
    ``assign_being``. Dropout and batch norm follow the mode of the population; ``train()`` and ``eval()`` of the view
    have no effect on them.

    Args:
        population: the population.
        index: the number of the being.

    Shape:
        - input, output: the shapes of the member
    """

    def __init__(self, population: Wide, index: int) -> None:
        super().__init__()
        self._source = (population,)
        self.index = index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        population = self._source[0]
        rows = slice(self.index, self.index + 1)
        return squeezed(Pass(population, rows).loop(population._member[0], *unsqueezed((args, kwargs))))

    def extra_repr(self) -> str:
        return f"index={self.index}, beings={self._source[0].beings}"


# ---------------------------------------------------------------------- construction


def renewed(module: nn.Module, change: Callable[[str, Tensor], Tensor]) -> Any:
    """A deep copy in which a copy of ``change(name, tensor)`` replaces every tensor; shared tensors stay shared."""
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
    """A population of ``beings`` networks (a being is a member): copies of a module, or fresh draws from a factory.

    Args:
        module: a module, of which every being is a copy, or a function that builds a module, called for each being.
        beings: number of networks.
        seeds: for a factory: being i equals ``torch.manual_seed(seeds[i]); factory()`` bit for bit. None draws from
            torch's default generator.
        in_dims, out_dims, strategy, chunk_size: see :class:`Wide`.

    Raises:
        ValueError: the module already has beings, seeds are given for a module, or their number is not ``beings``.

    Example:
        >>> nets = widen(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), 5, seeds=range(5))
        >>> nets(torch.randn(32, 5, 3)).shape, nets(torch.randn(32, 1, 3)).shape
        (torch.Size([32, 5, 2]), torch.Size([32, 5, 2]))
        >>> {name: tuple(tensor.shape) for name, tensor in nets.state_dict().items()}
        {'0.weight': (5, 8, 3), '0.bias': (5, 8), '2.weight': (5, 2, 8), '2.bias': (5, 2)}
    """
    count = check_positive(beings=beings)[0]
    options: dict[str, Any] = dict(in_dims=in_dims, out_dims=out_dims, strategy=strategy, chunk_size=chunk_size)
    if isinstance(module, nn.Module):
        if seeds is not None:
            raise ValueError("seeds= needs a factory such as lambda: Net(); a module is copied as it is")
        _check_widenable(module)
        member = renewed(module, lambda _, tensor: tensor.expand(count, *tensor.shape))
        return _population(member, count, None, options)
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
    """torch.manual_seed for the available devices alone: torch's function records a stack trace for each other one."""
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
    """Modules of one structure -> their population; :func:`unstack` is the inverse.

    Args:
        modules: at least one module; all are copied.
        seeds: the seed of the dropout stream of each being; None draws the seeds.
        in_dims, out_dims, strategy, chunk_size: see :class:`Wide`.

    Raises:
        ValueError: the list is empty, or two modules differ in structure, shapes or ``requires_grad``.

    Example:
        >>> nets = stack([nn.Linear(3, 2) for _ in range(5)])
        >>> nets(torch.randn(32, 5, 3)).shape
        torch.Size([32, 5, 2])
    """
    members = list(modules)
    if not members or not all(isinstance(member, nn.Module) for member in members):
        raise ValueError(f"stack needs a list of at least one module, got {members!r:.200}")
    first = _structure(members[0])
    _check_widenable(members[0])
    for i, member in enumerate(members[1:], 1):
        if (other := _structure(member)) != first:
            raise ValueError(f"All modules must have the same structure; in module {i} {_difference(first, other)}")
    every = [tensors_of(member) for member in members]
    member = renewed(members[0], lambda name, _: torch.stack([tensors[name].detach() for tensors in every]))
    options: dict[str, Any] = dict(in_dims=in_dims, out_dims=out_dims, strategy=strategy, chunk_size=chunk_size)
    return _population(member, len(members), seeds, options)


def _population(member: nn.Module, beings: int, seeds: Sequence[int] | None, options: dict[str, Any]) -> Wide:
    if may_draw(member):
        drawn = torch.randint(2**62, (beings,)) if seeds is None else torch.tensor([operator.index(s) for s in seeds])
        device = next((tensor.device for tensor in tensors_of(member).values()), None)
        member.register_buffer(STREAMS, Noise.states(drawn).to(device))
    return Wide(member, beings, **options)


def _check_widenable(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if getattr(part, "beings", None) is not None:
            raise ValueError(f"widen and stack need a module without beings, got {part}{_at(name)}")
        if getattr(part, "rule", None) is not None:
            raise ValueError(
                "Dynamic sparse training cannot be widened; build one layer of all beings, "
                f"SparseLinear(..., beings=n, dynamic=...), got {part}{_at(name)}"
            )


def _at(name: str) -> str:
    return f" at {name!r}" if name else ""


def _structure(module: nn.Module) -> dict[str, Any]:
    """The properties that all members of a population must have in common, by name."""
    parts = {
        name: (type_before_parametrizations(part).__name__, part.extra_repr(), part.training)
        for name, part in module.named_modules(remove_duplicate=False)
    }
    tensors = {name: (tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors_of(module).items()}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_") and key != "training" and (text := _setting(value)) is not None:
                parts[f"{name}.{key}" if name else key] = text  # type: ignore[assignment]
    return {**parts, **{f"{name} (tensor)": what for name, what in tensors.items()}}


def _setting(value: Any) -> str | None:
    """A setting of a module as text, for comparison; None if the value is not a setting."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        return repr([_setting(item) for item in value])
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.detach().flatten().tolist()!r:.200}"
    return getattr(value, "__qualname__", None) if callable(value) and not isinstance(value, nn.Module) else None


def _difference(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    first = names[0]
    return f"{first or 'the module'} must be {wanted.get(first, 'absent')}, got {given.get(first, 'nothing')}"
