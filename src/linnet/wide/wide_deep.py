"""WideDeep: a population of deep networks with the name and the constructor of the widelinears package."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.core.being import copy_beings, indices
from linnet.core.checks import check_input, check_positive
from linnet.core.parameters import draw_one
from linnet.wide.kernels.leaves import ELEMENTWISE
from linnet.wide.wide_linear import WideLinear
from linnet.wide.widen import Wide, widen

Activation = Callable[[Tensor], Tensor]
# Functions that act on each number alone cannot mix beings and need no vmap.
_ELEMENTWISE_FUNCTIONS = (torch.relu, torch.tanh, torch.sigmoid, F.relu, F.tanh, F.sigmoid, F.gelu, F.silu, F.elu)


class EachBeing(nn.Module):
    """Apply a function or module to each being alone: the function sees no axis of beings.

    A module with parameters or buffers (PReLU, batch norm) becomes ``beings`` copies; its state_dict keys are those of
    the module, each tensor with a leading axis of beings.

    Args:
        function: the function of the tensor of one being, (*, features) -> (*, features).
        beings: number of beings.

    Shape:
        - input: (*, beings, features)
        - output: as the input

    Example:
        >>> norm = EachBeing(nn.Softmax(dim=1), beings=4)
        >>> norm(torch.randn(7, 4, 3)).sum(-1).shape
        torch.Size([7, 4])
    """

    def __init__(self, function: Activation, beings: int) -> None:
        super().__init__()
        self.beings = beings
        self.elementwise = type(function) in ELEMENTWISE or any(function is f for f in _ELEMENTWISE_FUNCTIONS)
        self.function = function
        if isinstance(function, nn.Module):
            self.function = widen(function, beings, in_dims=-2, out_dims=-2)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(self.function, Wide):
            return self.function.alike(input) if self.elementwise else self.function(input)
        if self.elementwise:
            return self.function(input)
        return torch.vmap(self.function, in_dims=-2, out_dims=-2, randomness="different")(input)

    def one(self, index: int, input: Tensor) -> Tensor:
        """Apply the function of one being, (*, features) -> (*, features); its buffers are updated in place."""
        function = self.function.get_single(index) if isinstance(self.function, Wide) else self.function
        return function(input)

    def single(self, index: int) -> nn.Module:
        """The function of one being as an independent module."""
        return self.function.single(index) if isinstance(self.function, Wide) else Apply(self.function)

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front; none for a plain function."""
        return self.function.rows() if isinstance(self.function, Wide) else []


class Apply(nn.Module):
    """A function as a module, for use in nn.Sequential.

    Shape:
        - input, output: the shapes of the function

    Example:
        >>> Apply(torch.relu)
        Apply(relu)
    """

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class DeepBeing(nn.Module):
    """One network of a :class:`WideDeep` as a single network: a live view that owns nothing.

    Backward through the view fills row ``index`` of the population's gradients and no other. ``parameters()`` of the
    view is empty, and the view can be registered in any module. To train one network alone use :meth:`to_module`.

    Args:
        population: the population of networks.
        index: the number of the network.

    Shape:
        - input: (*, input_size)
        - output: (*, output_size)
    """

    def __init__(self, population: "WideDeep", index: int) -> None:
        super().__init__()
        self._source = (population,)  # a tuple, so that torch does not register the population as a child
        self.index = index

    def forward(self, input: Tensor) -> Tensor:
        population = self._source[0]
        check_input(input, population.input_size, None)
        for layer, activation in population.stages():
            input = activation.one(self.index, layer.get_single(self.index)(input))
        return input

    def to_module(self) -> nn.Sequential:
        """This network as an independent stack of nn.Linear and activations."""
        parts: list[nn.Module] = []
        for layer, activation in self._source[0].stages():
            parts += [layer.get_single(self.index).to_linear(), activation.single(self.index)]
        return nn.Sequential(*parts).train(self._source[0].training)

    def extra_repr(self) -> str:
        return f"index={self.index}, beings={self._source[0].beings}"


class WideDeep(nn.Module):
    """A population of deep networks: ``depth`` wide linear layers with a non-linearity after each.

    Depth 1 is a single map from input to output, depth 3 is input-hidden-hidden-output, as the documentation of the
    widelinears package says (its code builds one layer more). Each being has the initialization of an ordinary stack of
    nn.Linear.

    Args:
        beings: number of networks; a being is a member of the population.
        input_size: size of the input of each.
        hidden_size: size of every hidden layer of each.
        depth: number of linear layers, at least 1.
        output_size: size of the output of each.
        non_linear: a function or module applied to each being after every layer but the last; None is ReLU, and
            ``nn.Identity()`` applies none. A module with parameters or buffers is copied for each layer and being.
        final_nl: the function or module applied to each being after the last layer; None is the sigmoid.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - input: (input_size,) or (*, 1, input_size), shared by all beings; (*, beings, input_size)
        - output: (*, beings, output_size)

    Raises:
        ValueError: a size or the depth is not a positive integer, or the input has any other shape.

    Example:
        >>> nets = WideDeep(4, 5, 3, 3, 2)
        >>> nets(torch.randn(5)).shape, len(nets.linears)
        (torch.Size([4, 2]), 3)

    Reference:
        J. Figueira, widelinears, 2021 (the interface).
    """

    layer_class: ClassVar[type[WideLinear]] = WideLinear

    def __init__(
        self,
        beings: int,
        input_size: int,
        hidden_size: int,
        depth: int,
        output_size: int,
        non_linear: Activation | None = None,
        final_nl: Activation | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.beings, self.input_size, self.hidden_size, self.depth, self.output_size = check_positive(
            beings=beings, input_size=input_size, hidden_size=hidden_size, depth=depth, output_size=output_size
        )
        sizes = [self.input_size] + [self.hidden_size] * (self.depth - 1) + [self.output_size]
        self.linears = nn.ModuleList(
            self.layer_class._empty(i, o, True, beings=self.beings, device=device, dtype=dtype)
            for i, o in itertools.pairwise(sizes)
        )
        for name, function in (("non_linear", non_linear), ("final_nl", final_nl)):
            if function is not None and (isinstance(function, type) or not callable(function)):
                raise TypeError(f"{name} must be a function or a module, such as nn.ReLU(), got {function!r}")
        hidden = F.relu if non_linear is None else non_linear
        final = torch.sigmoid if final_nl is None else final_nl
        functions = [hidden] * (self.depth - 1) + [final]
        self.activations = nn.ModuleList(EachBeing(f, self.beings).to(device, dtype) for f in functions)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input, self.input_size, self.beings)
        for layer, activation in self.stages():
            input = activation(layer(input))
        return input

    def stages(self) -> list[tuple[WideLinear, EachBeing]]:
        """Each wide layer with its activation, from input to output."""
        return list(zip(self.linears, self.activations, strict=True))  # type: ignore[arg-type]

    def reset_parameters(self, *, seeds: Sequence[int] | None = None) -> None:
        """Redraw every layer in place; the activations keep their parameters.

        Args:
            seeds: None draws from torch's default generator. With one int for each being, being i is drawn like an
                ordinary stack of nn.Linear after ``torch.manual_seed(seeds[i])``.
        """
        if seeds is None:
            for layer in self.linears:
                layer.reset_parameters()  # type: ignore[operator]
            return
        if len(seeds) != self.beings:
            raise ValueError(f"seeds must hold one int for each being ({self.beings}), got {len(seeds)}")
        if self.stages()[0][0].weight.is_meta:
            return
        for i, seed in enumerate(seeds):
            generator = torch.Generator(self.stages()[0][0].weight.device).manual_seed(seed)
            for layer, _ in self.stages():
                draw_one(layer, i, generator)

    def clone_being(self, source: int | Sequence[int] | Tensor, destination: int | Sequence[int] | Tensor) -> None:
        """Overwrite network ``destination`` with network ``source``; lists of indices are copied simultaneously.

        Autograd registers the writes in place, as with :meth:`linnet.LinearMap.clone_being`.
        """
        copy_beings(self.rows(), source, destination, self.beings)

    def rows(self) -> list[Tensor]:
        """Every tensor with the axis of beings in front: all tensors of the population."""
        return [tensor for stage in self.stages() for part in stage for tensor in part.rows()]

    def rows_moved(self) -> None:
        """Do nothing: no tensor is derived from :meth:`rows`."""

    def get_single(self, index: int) -> DeepBeing:
        """Network ``index`` as a single network: a live view, see :class:`DeepBeing`."""
        return DeepBeing(self, int(indices(index, self.beings)))

    def to_modules(self) -> list[nn.Sequential]:
        """One independent nn.Sequential of nn.Linear and activations for each being."""
        return [self.single(i) for i in range(self.beings)]

    def single(self, index: int) -> nn.Sequential:
        """Network ``index`` as an independent nn.Sequential of nn.Linear and activations."""
        return self.get_single(index).to_module()

    def assign_being(self, index: int, module: nn.Sequential) -> None:
        """Overwrite network ``index`` atomically with an ordinary network, as :meth:`to_modules` returns it.

        Raises:
            ValueError: the layers of the module differ from those of this population.
        """
        being = int(indices(index, self.beings))
        parts = list(module)
        wanted = [(layer.out_features, layer.in_features) for layer in self.linears]
        given = [tuple(part.weight.shape) if isinstance(part, nn.Linear) else None for part in parts[::2]]
        if len(parts) != 2 * self.depth or given != wanted or any(part.bias is None for part in parts[::2]):
            raise ValueError(
                f"The module must be {self.depth} nn.Linear with bias and weight shapes {wanted}, each followed by its "
                f"activation, got {module}"
            )
        functions = [activation.function for activation in self.activations]
        for function, part in zip(functions, parts[1::2], strict=True):
            if isinstance(function, Wide):
                function.check_being(part)
        with torch.no_grad():
            for layer, function, line, part in zip(self.linears, functions, parts[::2], parts[1::2], strict=True):
                for own_rows, its_row in zip((layer.weight, layer.bias), line.parameters(), strict=True):
                    own_rows[being].copy_(its_row)  # type: ignore[index]
                if isinstance(function, Wide):
                    function.assign_being(being, part)

    def extra_repr(self) -> str:
        return (
            f"beings={self.beings}, input_size={self.input_size}, hidden_size={self.hidden_size}, depth={self.depth}, "
            f"output_size={self.output_size}"
        )
