"""The API of sparselinear, name for name: change ``import sparselinear`` to ``import linnet.compat.sparselinear``.

Where the code and the documentation of sparselinear disagree, linnet follows the documentation
(docs/compat-sparselinear.md).
"""

from typing import Any, Self

import torch
from torch import nn

import linnet.sparse.activations
import linnet.sparse.linear
from linnet.sparse.linear import SCHEDULE

__all__ = ["ActivationSparsity", "SparseLinear"]


class SparseLinear(linnet.sparse.linear.SparseLinear):
    """y = x A + b with a sparse A: the layer of sparselinear, on :class:`linnet.SparseLinear`.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether an additive bias is learned.
        sparsity: the share of absent connections.
        connectivity: (2, nnz) LongTensor of (output, input) pairs, where repeated pairs are one connection; or any
            connectivity of :class:`linnet.SparseLinear`.
        small_world: whether the connections depend on distance.
        dynamic: whether the connections are rewired by RigL (dynamic sparse training).
        deltaT: number of steps between two updates of the connectivity.
        Tend: the step from which on the connectivity is fixed.
        alpha: the share of connections that the first update rewires.
        max_size: the largest number of entries of dL/dW in memory at a time.

    Shape:
        - input: (*, in_features)
        - output: (*, out_features)
        - weights: (nnz,), the Parameter; ``weight`` is the sparse matrix (out_features, in_features)
        - indices: (2, nnz), rows (outputs) and columns (inputs)

    Raises:
        ValueError: see :class:`linnet.SparseLinear`.

    Example:
        >>> import torch
        >>> m = SparseLinear(20, 30)
        >>> m(torch.randn(128, 20)).size()
        torch.Size([128, 30])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        sparsity: float = 0.9,
        connectivity: Any = None,
        small_world: bool = False,
        dynamic: bool = False,
        deltaT: int = 6000,
        Tend: int = 150000,
        alpha: float = 0.1,
        max_size: float = 1e8,
    ) -> None:
        rewired = dynamic is True  # sparselinear accepts a schedule for a static layer and ignores it
        super().__init__(
            in_features,
            out_features,
            bias,
            sparsity=sparsity,
            connectivity=_unique_pairs(connectivity),
            small_world=small_world,
            dynamic=dynamic,
            deltaT=deltaT if rewired else SCHEDULE["deltaT"],
            Tend=Tend if rewired else SCHEDULE["Tend"],
            alpha=alpha if rewired else SCHEDULE["alpha"],
            max_size=max_size,
        )
        self.deltaT, self.Tend, self.alpha = deltaT, Tend, alpha

    @property
    def weights(self) -> nn.Parameter:
        """The Parameter with the weights of the connections, (nnz,)."""
        return self.values

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"sparsity={self.sparsity:.6g}, connectivity={'given' if self._wiring is None else None}, "
            f"small_world={self.small_world}"
        )

    @classmethod
    def _empty(cls, in_features: int, out_features: int, bias: bool, **options: Any) -> Self:
        placed = {name: options.pop(name) for name in ("device", "dtype") if name in options}
        return cls(in_features, out_features, bias, **options).to(**placed)


class ActivationSparsity(linnet.sparse.activations.ActivationSparsity):
    """Keep the largest boosted activations of each sample and set the rest to 0: the module of sparselinear.

    Args:
        alpha: the rate at which the duty cycle follows the batches. An integer above 1, as in the example of
            sparselinear, is the number of units.
        beta: the strength of boosting for units that are rarely active.
        act_sparsity: the share of units that are set to 0.

    Shape:
        - input: (*, units)
        - output: (*, units)

    Raises:
        ValueError: see :class:`linnet.ActivationSparsity`.

    Example:
        >>> import torch
        >>> x = ActivationSparsity(10)
        >>> x(torch.randn(3, 10)).count_nonzero(-1)
        tensor([3, 3, 3])
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.5, act_sparsity: float = 0.65) -> None:
        units = alpha if type(alpha) is int and alpha > 1 else None
        super().__init__(0.1 if units else alpha, beta, act_sparsity)
        if units:
            self.size_for(units)


def _unique_pairs(connectivity: Any) -> Any:
    """Remove repeated pairs, which occur where programs draw pairs at random."""
    if isinstance(connectivity, torch.Tensor) and connectivity.dtype == torch.int64 and connectivity.shape[:1] == (2,):
        if connectivity.layout == torch.strided and connectivity.dim() == 2:
            return torch.unique(connectivity, dim=1)
    return connectivity
