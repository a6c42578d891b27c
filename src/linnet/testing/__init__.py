"""The contract of :class:`linnet.LinearMap` as executable checks, for the layers of this library and your own.

>>> from linnet import SymmetricLinear
>>> from linnet.testing import Case, check_forward, check_layer
>>> names = check_layer(SymmetricLinear, checks=[check_forward])
>>> check_forward(Case(SymmetricLinear, 8, 8, beings=2))
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from linnet.core.linear_map import LinearMap
from linnet.testing.case import Case as Case
from linnet.testing.case import Check, cases
from linnet.testing.case import ContractError as ContractError
from linnet.testing.construct import check_constructor as check_constructor
from linnet.testing.construct import check_factory as check_factory
from linnet.testing.construct import check_meta as check_meta
from linnet.testing.construct import check_seeds as check_seeds
from linnet.testing.construct import check_sizes as check_sizes
from linnet.testing.conversion import check_linear_doors as check_linear_doors
from linnet.testing.conversion import check_spectra as check_spectra
from linnet.testing.distributed import check_ddp as check_ddp
from linnet.testing.graphs import check_compile as check_compile
from linnet.testing.graphs import check_export as check_export
from linnet.testing.graphs import check_onnx as check_onnx
from linnet.testing.population import check_clone_being as check_clone_being
from linnet.testing.population import check_get_single as check_get_single
from linnet.testing.population import check_population as check_population
from linnet.testing.promises import check_assign as check_assign
from linnet.testing.promises import check_guarantee as check_guarantee
from linnet.testing.promises import check_penalty as check_penalty
from linnet.testing.promises import check_violation as check_violation
from linnet.testing.promises import stressed as stressed
from linnet.testing.state import check_copy as check_copy
from linnet.testing.state import check_functional_call as check_functional_call
from linnet.testing.state import check_safetensors as check_safetensors
from linnet.testing.state import check_state_dict as check_state_dict
from linnet.testing.state import check_vmap as check_vmap
from linnet.testing.values import check_backward as check_backward
from linnet.testing.values import check_forward as check_forward
from linnet.testing.values import check_gradcheck as check_gradcheck
from linnet.testing.values import check_input_shapes as check_input_shapes
from linnet.testing.values import check_precision as check_precision
from linnet.testing.values import check_weight as check_weight

CHECKS: tuple[Check, ...] = (
    check_constructor,
    check_sizes,
    check_factory,
    check_meta,
    check_seeds,
    check_forward,
    check_input_shapes,
    check_weight,
    check_backward,
    check_gradcheck,
    check_precision,
    check_population,
    check_get_single,
    check_clone_being,
    check_copy,
    check_state_dict,
    check_safetensors,
    check_functional_call,
    check_vmap,
    check_guarantee,
    check_violation,
    check_assign,
    check_penalty,
    check_linear_doors,
    check_spectra,
    check_compile,
    check_export,
    check_onnx,
)
"""Every check of one layer in this process. :func:`check_ddp` starts processes and is called by itself."""

__all__ = [
    "CHECKS",
    "Case",
    "ContractError",
    "cases",
    "check_assign",
    "check_backward",
    "check_clone_being",
    "check_compile",
    "check_constructor",
    "check_copy",
    "check_ddp",
    "check_export",
    "check_factory",
    "check_forward",
    "check_functional_call",
    "check_get_single",
    "check_gradcheck",
    "check_guarantee",
    "check_input_shapes",
    "check_layer",
    "check_linear_doors",
    "check_meta",
    "check_onnx",
    "check_penalty",
    "check_population",
    "check_precision",
    "check_safetensors",
    "check_seeds",
    "check_sizes",
    "check_spectra",
    "check_state_dict",
    "check_violation",
    "check_vmap",
    "check_weight",
    "stressed",
]


def check_layer(
    cls: type[LinearMap],
    options: Mapping[str, Any] | None = None,
    *,
    in_features: int | None = None,
    out_features: int | None = None,
    beings: Iterable[int | None] = (None, 3),
    device: str = "cpu",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    checks: Iterable[Check] | None = None,
) -> list[str]:
    """The contract of :class:`linnet.LinearMap`, run on one class; it returns if the class keeps it.

    Args:
        cls: the layer class.
        options: the class's own options; None takes every dict of ``cls.examples()``.
        in_features, out_features: sizes; by default small ones, see :func:`cases`.
        beings: numbers of beings to run with, None for one map.
        device: where the layers are built.
        dtypes: the precisions in which numbers are compared.
        checks: the checks to run; None runs :data:`CHECKS`, without ``check_onnx`` where onnxruntime or onnxscript is
            not installed.

    Returns:
        The names of the checks that ran.

    Raises:
        ContractError: the first broken check; the message names the check, the layer and the numbers.

    Example:
        >>> from linnet import IdentityLinear
        >>> check_layer(IdentityLinear, in_features=3, out_features=4, checks=[check_forward, check_backward])
        ['check_forward', 'check_backward']
    """
    if checks is None:
        can_export = all(find_spec(name) for name in ("onnxruntime", "onnxscript"))
        checks = [check for check in CHECKS if can_export or check is not check_onnx]
    chosen = list(checks)
    for case in cases(
        cls, options, in_features=in_features, out_features=out_features, beings=beings, device=device, dtypes=dtypes
    ):
        for check in chosen:
            check(case)
    return [check.__name__ for check in chosen]
