"""Populations around one network, for evolution strategies: being t is θ + σ ε_t, and ε_t is drawn on demand.

Beings 2j and 2j + 1 are a pair with ε_2j = ε_j and ε_2j+1 = −ε_j (antithetic sampling). ε_j is a function of (seed,
generation, j, number of the parameter) alone: another process, a chunk or a restart draws the same numbers again.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from linnet.core.being import indices
from linnet.core.checks import check_positive
from linnet.core.linear import Linear
from linnet.wide.axes import Dims, checked_dims, checked_range
from linnet.wide.forward import STREAMS, evaluate, tensors_of
from linnet.wide.kernels.leaves import KERNELS, Kernel, is_known, may_draw, shared
from linnet.wide.random import Noise, at_once, normal, streams
from linnet.wide.widen import widen

LINEAR = (nn.Linear, Linear)


class Perturbed(nn.Module, ABC):
    """Base class of the populations around one network.

    Args:
        module: the network at the center, θ; it is not copied, and an optimizer trains its parameters.
        beings: number of beings, even: they come in pairs.
        first: number of the first being, even, if this is a part of a larger population.
        in_dims, out_dims: the axis of beings in inputs and outputs, see :class:`linnet.Wide`.

    Raises:
        ValueError: beings or first is odd, or no parameter of the module has ``requires_grad``.
    """

    def __init__(self, module: nn.Module, beings: int, *, first: int, in_dims: Dims, out_dims: int) -> None:
        super().__init__()
        self.beings = check_positive(beings=beings)[0]
        for name, value in (("beings", self.beings), ("first", first)):
            if value % 2 or value < 0:
                raise ValueError(f"{name} must be even and at least 0 (beings come in pairs), got {value}")
        self.center = module
        self.first, self.in_dims, self.out_dims = first, checked_dims(in_dims), out_dims
        self.seed, self.generation, self.sigma = 0, 0, 0.0
        self.places = {name: i for i, (name, p) in enumerate(module.named_parameters()) if p.requires_grad}
        if not self.places:
            raise ValueError(f"module must have parameters with requires_grad, got {module}")

    def perturb(self, seed: int, generation: int, sigma: float) -> None:
        """Set being t to θ + σ ε_t, with the noise of this seed and generation."""
        self.seed, self.generation, self.sigma = seed, generation, float(sigma)

    def noise(self, name: str, pairs: Tensor, count: int) -> Tensor:
        """``count`` standard normal numbers of each pair for a parameter, (pairs,) -> (pairs, count)."""
        parameter = self.center.get_parameter(name)
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return normal(streams(pairs, self.seed, self.generation, self.places[name]), count, dtype).to(parameter.dtype)

    def estimate(self, fitness: Tensor) -> None:
        """Set the gradients of the center to −1/(nσ) Σ_t f_t ε_t, so that gradient descent raises the fitness.

        Args:
            fitness: (n,), shaped, of *all* beings of the population, even if this module holds only a part of them.
        """
        if fitness.dim() != 1 or len(fitness) % 2:
            raise ValueError(f"fitness must have shape (beings,) with beings even, got {tuple(fitness.shape)}")
        if self.sigma == 0:
            raise ValueError("estimate() needs sigma > 0; call perturb(seed, generation, sigma) first")
        # ∇_θ E[f(θ + σ ε)] = E[f(θ + σ ε) ε] / σ for ε ~ N(0, I) (Salimans et al., 2017). In pairs with ε_2j+1 = −ε_2j
        # the sum is Σ_j (f_2j − f_2j+1) ε_j.
        differences = fitness[0::2] - fitness[1::2]  # (pairs,)
        with torch.no_grad():
            for name in self.places:
                parameter = self.center.get_parameter(name)
                d = differences.to(parameter)
                parameter.grad = self._weighted_noise(name, parameter, d).mul_(-1 / (len(fitness) * self.sigma))

    def _weighted_noise(self, name: str, parameter: Tensor, differences: Tensor) -> Tensor:
        """Σ_j d_j ε_j, in pieces that bound the memory."""
        total = torch.zeros_like(parameter).flatten()
        for pairs in torch.arange(len(differences), device=parameter.device).split(at_once(parameter.numel())):
            total += differences[pairs] @ self.noise(name, pairs, parameter.numel())
        return total.view_as(parameter)

    def single(self, index: int) -> nn.Module:
        """Being ``index`` as an independent ordinary module."""
        i = int(indices(index, self.beings))
        alone = copy.deepcopy(self.center)
        alone.zero_grad()
        with torch.no_grad():
            for name in self.places:
                parameter = alone.get_parameter(name)
                pair = torch.tensor([(self.first + i) // 2], device=parameter.device)
                own = self._perturbation(name, parameter, pair)
                parameter.add_(own, alpha=-self.sigma if i % 2 else self.sigma)
        return alone

    def _perturbation(self, name: str, parameter: Tensor, pair: Tensor) -> Tensor:
        """ε_j of one pair, in the shape of the parameter."""
        return self.noise(name, pair, parameter.numel()).view_as(parameter)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of all beings: inputs have them at ``in_dims``, results at ``out_dims``."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Callable[..., Any]:
        """The forward of beings start to stop − 1 alone, as a function of their inputs."""

    def extra_repr(self) -> str:
        return f"beings={self.beings}, sigma={self.sigma:g}"


class FullRank(Perturbed):
    """ε_t ~ N(0, I): independent noise for every parameter; the parameters of all beings are held in memory.

    Args:
        module, beings, first, in_dims, out_dims: see :class:`Perturbed`.
        options: ``strategy`` and ``chunk_size`` of :class:`linnet.Wide`.

    Shape:
        - input, output: the shapes of ``linnet.widen(module, beings)``

    Example:
        >>> population = FullRank(nn.Linear(3, 2), beings=8)
        >>> population.perturb(seed=0, generation=0, sigma=0.1)
        >>> population(torch.randn(5, 1, 3)).shape
        torch.Size([5, 8, 2])

    Reference:
        T. Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning, 2017,
        arXiv:1703.03864.
    """

    def __init__(
        self,
        module: nn.Module,
        beings: int,
        *,
        first: int = 0,
        in_dims: Dims = 1,
        out_dims: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(module, beings, first=first, in_dims=in_dims, out_dims=out_dims)
        self.members = widen(module, beings, in_dims=in_dims, out_dims=out_dims, **options).requires_grad_(False)

    def perturb(self, seed: int, generation: int, sigma: float) -> None:
        super().perturb(seed, generation, sigma)
        with torch.no_grad():
            for name in self.places:
                parameter, rows = self.center.get_parameter(name), self.members.get_parameter(name)
                first, count = self.first // 2, parameter.numel()
                pairs = torch.arange(first, first + self.beings // 2, device=rows.device)
                each = zip(pairs.split(at_once(count)), rows.view(-1, 2, count).split(at_once(count)), strict=True)
                for some, part in each:
                    noise = self.noise(name, some, count).mul_(self.sigma)
                    torch.add(parameter.view(-1), noise, out=part[:, 0])
                    torch.sub(parameter.view(-1), noise, out=part[:, 1])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.members(*args, **kwargs)

    def part(self, start: int, stop: int) -> Callable[..., Any]:
        return self.members.part(start, stop)


def _low_rank(leaf: nn.Module, tensors: Mapping[str, Tensor], noise: Noise, input: Tensor) -> Tensor:
    """x (W + AᵀB)ᵀ + b = x Wᵀ + (x Bᵀ) A + b, with A (beings, r, out) and B (beings, r, in), scaled by ± σ/√r.

    All beings share the product with W, batch · beings rows at once; each being adds two products of width r.
    """
    if "A" not in tensors:  # the weight is tied to another parameter, and its noise has full rank
        return KERNELS[nn.Linear](leaf, tensors, noise, input)
    weight, a, b, bias = tensors["weight"], tensors["A"], tensors["B"], tensors.get("bias")
    if input.dim() < 2 or input.shape[-1] != weight.shape[1]:
        return NotImplemented
    beings, *lead = input.shape[:-1]
    if shared(input):
        x = input[0].reshape(-1, weight.shape[1])  # (batch, in)
        u = (x @ b.flatten(0, 1).T).unflatten(1, b.shape[:2]).transpose(0, 1)  # (beings, batch, r)
        y = F.linear(x, weight).expand(beings, -1, -1).clone()
    else:
        x = input.reshape(beings, -1, weight.shape[1])  # (beings, batch, in)
        in_memory = x.transpose(0, 1)
        if in_memory.is_contiguous():  # stored batch first, as users pass it: needs no copy
            y = F.linear(in_memory, weight).transpose(0, 1)
        else:
            y = F.linear(x, weight)
        u = torch.bmm(b, x.mT).mT  # (B xᵀ)ᵀ takes a third of the time of x Bᵀ
    y = y.addcmul_(u, a) if a.shape[1] == 1 else y.baddbmm_(u, a)  # for r = 1 an outer product
    if bias is not None:
        y = y.add_(bias.unsqueeze(1))
    return y.reshape(beings, *lead, weight.shape[0])


class LowRank(Perturbed):
    """Each linear layer of being t has W ± σ/√r · A_jᵀ B_j, which is never formed: all beings share one product with W.

    The factors take (in + out) · r numbers for a pair of beings instead of in · out. With ``chunk_size`` every forward
    draws the factors of each chunk again, and the memory does not depend on the number of beings; without it the
    factors are kept for the generation. Every other parameter (biases, norms, convolutions) has noise of full rank.

    Args:
        module, beings, first, in_dims, out_dims: see :class:`Perturbed`.
        rank: rank r of the noise.
        chunk_size: number of beings evaluated at a time, even; None evaluates all at once.

    Shape:
        - input, output: the shapes of ``linnet.widen(module, beings)``

    Raises:
        ValueError: no weight of a linear layer has ``requires_grad``, or chunk_size is odd. In ``forward``: a batch
            norm is in training mode and would update statistics that all beings share, or the forward reads the weight
            of a linear layer.

    Example:
        >>> population = LowRank(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)), beings=1000)
        >>> population.perturb(seed=0, generation=0, sigma=0.1)
        >>> population(torch.randn(5, 1, 64)).shape
        torch.Size([5, 1000, 2])

    Reference:
        B. Sarkar et al., Evolution strategies at the hyperscale, 2025, arXiv:2511.16652.
    """

    kernels: ClassVar[Mapping[type[nn.Module], Kernel]] = MappingProxyType(
        {**KERNELS, **dict.fromkeys(LINEAR, _low_rank)}
    )

    def __init__(
        self,
        module: nn.Module,
        beings: int,
        *,
        rank: int = 1,
        first: int = 0,
        in_dims: Dims = 1,
        out_dims: int = 1,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(module, beings, first=first, in_dims=in_dims, out_dims=out_dims)
        self.rank = check_positive(rank=rank)[0]
        self.chunk_size = None if chunk_size is None else check_positive(chunk_size=chunk_size)[0]
        if self.chunk_size is not None and self.chunk_size % 2:
            raise ValueError(f"chunk_size must be even (beings come in pairs), got {chunk_size}")
        self.strategy = {"": "auto"}
        self.proven: set[Any] = set()
        self.looped: set[Any] | None = None
        """None: a loop over the beings would have to form their weights."""
        self._path = {part: f"{name}." if name else "" for name, part in module.named_modules()}
        first_name = {p: name for name, p in module.named_parameters()}
        every = dict(module.named_parameters(remove_duplicate=False))
        self._noise_name = {name: first_name[p] for name, p in every.items()}
        """From each name of a parameter, tied names included, to the first one, which selects the noise."""
        tied = [p for p in first_name if sum(p is other for other in every.values()) > 1]
        # The weights with noise of low rank: those of linear layers that are not tied. W + AᵀB is never formed, and a
        # module that ties W elsewhere would need it.
        self._low_rank_leaves = {
            f"{self._path[leaf]}weight": leaf
            for leaf in self._path
            if type(leaf) in LINEAR and is_known(leaf) and leaf.weight.requires_grad
            if not any(leaf.weight is p for p in tied)
        }
        if not self._low_rank_leaves:
            raise ValueError(f"LowRank needs linear layers with requires_grad, got {module}")
        self._cache: dict[Any, Any] = {}
        if may_draw(module):
            self.register_buffer(STREAMS, Noise.states(first + torch.arange(beings)))

    def perturb(self, seed: int, generation: int, sigma: float) -> None:
        super().perturb(seed, generation, sigma)
        self._cache.clear()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(0, self.beings)(*args, **kwargs)

    def part(self, start: int, stop: int) -> Callable[..., Any]:
        rows = slice(*checked_range(start, stop, self.beings))
        if start % 2 or stop % 2:
            raise ValueError(f"A part must have an even start and stop (beings come in pairs), got {start=}, {stop=}")
        for part in self.center.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.training and part.track_running_stats:
                raise ValueError(f"All beings of LowRank share their buffers; call eval() on {part} to keep them fixed")

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = evaluate(self, self.center, args, kwargs, rows)
            if any(isinstance(y, Tensor) and y.is_meta for y in tree_flatten(out)[0]):
                raise ValueError(
                    f"The forward of {type(self.center).__name__} reads the weight of a linear layer, which LowRank "
                    "never forms; call the layer instead, or use FullRank"
                )
            return out

        return forward

    def own(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """The tensors of a leaf for some beings; for a linear layer the shared W, and A and B scaled by σ/√r."""
        own = {}
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                full = self._path[module] + name
                if full not in self._low_rank_leaves:
                    own[name] = self._full_rank_rows(full, tensor, rows)
                elif name == "weight":
                    own["weight"] = tensor
                    own["A"], own["B"] = self._factors(full, rows)
        return own

    def state(self, module: nn.Module, rows: slice) -> dict[str, Tensor]:
        """All tensors in a module for some beings; weights with noise of low rank are on the meta device.

        A forward that reads such a weight gives a result on the meta device, which :meth:`part` refuses.
        """
        found = {}
        for name, tensor in tensors_of(module).items():
            full = self._path[module] + name
            if full in self._low_rank_leaves:
                found[name] = torch.empty_like(tensor, device="meta").expand(rows.stop - rows.start, *tensor.shape)
            else:
                found[name] = self._full_rank_rows(full, tensor, rows)
        return found

    def _pairs(self, rows: slice, device: torch.device) -> Tensor:
        return torch.arange((self.first + rows.start) // 2, (self.first + rows.stop) // 2, device=device)

    def _full_rank_rows(self, name: str, tensor: Tensor, rows: slice) -> Tensor:
        """A parameter with noise of full rank, or a buffer without noise, for some beings, (beings, ...)."""
        noise_name = self._noise_name.get(name)
        if noise_name not in self.places:
            return tensor.expand(rows.stop - rows.start, *tensor.shape)

        def draw() -> Tensor:
            noise = self.noise(noise_name, self._pairs(rows, tensor.device), tensor.numel()).mul_(self.sigma)
            return torch.stack([noise, -noise], 1).view(-1, *tensor.shape)

        return tensor + self._cached(noise_name, rows, draw)

    def _factors(self, name: str, rows: slice) -> tuple[Tensor, Tensor]:
        """± σ/√r · A, (beings, r, out), and B, (beings, r, in).

        The entries of A and B are N(0, 1); an entry of AᵀB is a sum of r products and has variance r, which 1/√r
        scales to 1. A sum over many beings has full rank although each AᵀB has rank r (Sarkar et al., 2025).
        """

        def draw() -> tuple[Tensor, Tensor]:
            a, b = self._drawn_factors(name, self._pairs(rows, self._low_rank_leaves[name].weight.device))
            a = a * (self.sigma / math.sqrt(self.rank))
            return torch.stack([a, -a], 1).flatten(0, 1), b.repeat_interleave(2, 0)

        return self._cached(name, rows, draw)

    def _drawn_factors(self, name: str, pairs: Tensor) -> tuple[Tensor, Tensor]:
        out_features, in_features = self._low_rank_leaves[name].weight.shape
        drawn = self.noise(name, pairs, (out_features + in_features) * self.rank)
        a, b = drawn.split([out_features * self.rank, in_features * self.rank], 1)
        return a.reshape(-1, self.rank, out_features), b.reshape(-1, self.rank, in_features)

    def _cached(self, name: str, rows: slice, draw: Callable[[], Any]) -> Any:
        """The result of ``draw()``; without ``chunk_size`` it is kept for the generation."""
        if self.chunk_size is not None:
            return draw()
        key = name, rows.start, rows.stop
        if key not in self._cache:
            self._cache[key] = draw()
        return self._cache[key]

    def _weighted_noise(self, name: str, parameter: Tensor, differences: Tensor) -> Tensor:
        if name not in self._low_rank_leaves:
            return super()._weighted_noise(name, parameter, differences)
        total = torch.zeros_like(parameter)
        for pairs in torch.arange(len(differences), device=parameter.device).split(at_once(sum(parameter.shape))):
            a, b = self._drawn_factors(name, pairs)
            a = a * differences[pairs, None, None]
            total.addmm_(a.flatten(0, 1).T, b.flatten(0, 1))  # Σ_j d_j A_jᵀ B_j as one product over j and r
        return total.mul_(1 / math.sqrt(self.rank))

    def _perturbation(self, name: str, parameter: Tensor, pair: Tensor) -> Tensor:
        if name not in self._low_rank_leaves:
            return super()._perturbation(name, parameter, pair)
        a, b = self._drawn_factors(name, pair)
        return (a[0].T @ b[0]).mul_(1 / math.sqrt(self.rank))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._cache.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}
