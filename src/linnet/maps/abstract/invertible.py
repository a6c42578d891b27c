"""What maps with a cheap inverse have in common: ``inverse`` and ``logabsdet``."""

from abc import abstractmethod

import torch
from torch import Tensor

from linnet.core.affine import affine
from linnet.core.autograd import autocast_off
from linnet.core.checks import check_input
from linnet.core.linear_map import LinearMap


class Invertible(LinearMap, catalogue=False):
    """A map whose inverse, where it is square, is made like W: from raw tensors, at little cost."""

    @abstractmethod
    def _invert(self, raw: dict[str, Tensor]) -> Tensor:
        """Raw tensors in at least float32 -> W⁻¹."""

    def _solve(self, y: Tensor, raw: dict[str, Tensor]) -> Tensor:
        """y A⁻¹ for the y that :func:`linnet.core.affine.affine` takes; here through W⁻¹."""
        return affine(y, self._invert(raw).to(y.dtype))

    @abstractmethod
    def _logabsdet(self, raw: dict[str, Tensor]) -> Tensor:
        """Raw tensors in at least float32 -> log |det W|."""

    def inverse(self, output: Tensor) -> Tensor:
        """The input that gives ``output``: (output − b) A⁻¹.

        Shape:
            - output: (*, out_features); with beings (out_features,) or (*, beings or 1, out_features)
            - returns: (*, in_features); with beings (*, beings, in_features)

        Raises:
            ValueError: A is not square or cannot be inverted for its structure.
            torch.linalg.LinAlgError: a block or factor of A is singular. A circulant A that is singular gives numbers
                that are not finite.
        """
        self._check_invertible()
        check_input(output, self.out_features, self.beings)
        raw = self._wide_raw()
        with autocast_off(output.device.type):
            y = output.to(self._anchor.dtype) if self.bias is None else output.to(self._anchor.dtype) - self.bias
            return self._solve(y, raw)

    def logabsdet(self) -> Tensor:
        """log |det A|, () or (beings,), differentiable; −inf if A is singular.

        Raises:
            ValueError: A is not square or cannot be inverted for its structure.
        """
        self._check_invertible()
        return self._logabsdet(self._wide_raw()).to(self._anchor.dtype)

    def _check_invertible(self) -> None:
        if self.in_features != self.out_features:
            raise ValueError(
                "An inverse and a determinant need in_features == out_features, "
                f"got {self.in_features} and {self.out_features}"
            )

    def _wide_raw(self) -> dict[str, Tensor]:
        wide = torch.promote_types(self._anchor.dtype, torch.float32)
        return {name: tensor.to(wide) for name, tensor in self.raw_tensors().items()}
