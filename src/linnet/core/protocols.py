"""What the modules below :class:`linnet.LinearMap` need of a map, so that none of them imports it.

``linear_map.py`` is built from ``frozen.py``, ``being.py`` and others of this folder. They are handed maps all the
same; this protocol is the part of the contract that they rely on, and :class:`linnet.LinearMap` fulfils it.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor, nn

__all__ = ["Map"]


class Map(Protocol):
    """y = x Wᵀ + b with W a function of raw tensors: see :class:`linnet.LinearMap` for each member."""

    noisy: ClassVar[bool]
    in_features: int
    out_features: int
    beings: int | None
    bias: nn.Parameter | None
    training: bool
    _parameters: dict[str, nn.Parameter | None]
    _buffers: dict[str, Tensor | None]

    def raw_tensors(self) -> dict[str, Tensor]:
        """The raw tensors from which W is computed, by name."""

    def _build(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Raw tensors -> W."""

    def _sampled(self, raw: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The raw tensors with the noise of one forward among them."""

    def _realized(self, raw: Mapping[str, Tensor]) -> Tensor:
        """What :meth:`_sampled` gave -> the matrix that this forward uses."""

    def _pays_dense(self) -> bool:
        """Whether x Wᵀ with W at hand is at least as fast as forward."""

    def __call__(self, input: Tensor) -> Tensor:
        """y = x Wᵀ + b."""
