"""LazyMap: a map whose in_features is not known before its first input."""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy

from linnet.core.linear_map import LinearMap


class LazyMap(LazyModuleMixin, nn.Module):
    """The replacement of an nn.LazyLinear by :func:`linnet.replace`: it becomes the map at its first input.

    As with torch's lazy modules the object changes its class. The map is then drawn from torch's default generator.
    Before, the module has one parameter without a shape: move it to its device before the first input, build the
    optimizer and load a state after it.

    Args:
        kind: class of the map.
        out_features: size of each output sample.
        bias: whether the map learns an additive bias.
        options: options of the map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        - input: (*, in_features)
        - output: (*, out_features)

    Raises:
        TypeError: the class does not have an option.
        ValueError: at the first input, the map cannot have this size; in load_state_dict, there was no input yet.

    Example:
        >>> import torch
        >>> from linnet import LowRankLinear
        >>> layer = LazyMap(LowRankLinear, 3, options={"rank": 2})
        >>> layer(torch.randn(5, 7)).shape, type(layer).__name__
        (torch.Size([5, 3]), 'LowRankLinear')
    """

    def __init__(
        self,
        kind: type[LinearMap],
        out_features: int,
        bias: bool = True,
        *,
        options: dict[str, Any] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        known = inspect.signature(kind.__init__).parameters
        self.kind, self.out_features, self.biased, self.options = kind, out_features, bias, dict(options or {})
        if unknown := [name for name in self.options if name not in known]:
            raise TypeError(f"{kind.__name__} has no option {', '.join(unknown)}")
        self.weight = UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]

    def _infer_parameters(self: Any, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        """Before the first forward: become the map, and keep the hooks of this module."""
        input: Tensor = args[0] if args else kwargs["input"]
        factory = {"device": self.weight.device, "dtype": self.weight.dtype}
        layer = self.kind._empty(input.shape[-1], self.out_features, self.biased, **factory, **self.options)
        if not self.weight.requires_grad:
            layer.requires_grad_(False)
        layer.train(self.training)
        self._initialize_hook.remove()
        self._load_hook.remove()
        hooks = {name: value for name, value in vars(self).items() if "hook" in name and name in vars(layer)}
        vars(self).clear()
        vars(self).update(vars(layer) | hooks)
        self.__class__ = type(layer)

    def forward(self, input: Tensor) -> Tensor:
        return type(self).forward(self, input)  # _infer_parameters has changed the class to that of the map

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (saved := state_dict.get(prefix + "weight")) is None or not is_lazy(saved):
            raise ValueError(
                f"{prefix.removesuffix('.') or 'The model'} is lazy and must see an input before it loads a state; "
                "run one batch first"
            )

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{self.kind.__name__}, out_features={self.out_features}, bias={self.biased}{options}"
