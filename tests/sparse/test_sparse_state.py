"""What a sparse layer saves, loads, casts and keeps, and the contract with given connections."""

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from linnet.sparse import SparseLinear, csr
from linnet.sparse.connectivity import STRUCTURE
from linnet.testing import (
    Case,
    check_assign,
    check_constructor,
    check_copy,
    check_forward,
    check_linear_doors,
    check_meta,
    check_safetensors,
    check_seeds,
    check_state_dict,
)
from support.sparse_layers import PAIRS, check_gradients, matrix

# ---------------------------------------------------------------------- state


def test_loading_another_topology() -> None:
    first, second = (SparseLinear(20, 30, sparsity=0.8, dtype=torch.float64) for _ in range(2))
    assert sorted(first.state_dict()) == ["bias", "col", "crow", "values"]
    identity = {name: id(tensor) for name, tensor in (*second.named_parameters(), *second.named_buffers())}
    second.load_state_dict(first.state_dict())
    assert identity == {name: id(tensor) for name, tensor in (*second.named_parameters(), *second.named_buffers())}
    np.testing.assert_array_equal(matrix(second), matrix(first))
    check_gradients(second, 4)
    third = SparseLinear(20, 30, sparsity=0.8, device="meta", dtype=torch.float64)
    third.load_state_dict(first.state_dict(), assign=True)
    check_gradients(third, 4)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    layer = SparseLinear(20, 30, sparsity=0.8)
    state, before = layer.state_dict(), copy.deepcopy(layer.state_dict())
    fewer = SparseLinear(20, 30, sparsity=0.9).state_dict()
    swapped = state["col"].clone()
    swapped[:2] = swapped[:2].flip(0)
    wrong = {
        "as many connections": fewer,
        "col must rise within each row": {**state, "col": swapped},
        r"col must lie in 0\.\.19": {**state, "col": state["col"] + 1},
        "crow must rise from 0 to nnz=120": {**state, "crow": state["crow"] // 2},
        "crow must rise from 0": {**state, "crow": state["crow"].flip(0)},
        "both int32 or both int64": {**state, "col": state["col"].float()},
    }
    for message, other in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            nn.Sequential(nn.ReLU(), layer).load_state_dict({f"1.{name}": t for name, t in other.items()})
    with pytest.raises(RuntimeError, match="crow and col must be loaded together"):
        layer.load_state_dict({"col": state["col"]}, strict=False)
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())
    layer.load_state_dict({"bias": torch.ones(30)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(30))


def test_seeds() -> None:
    torch.manual_seed(11)
    single = SparseLinear(20, 30)
    layer = SparseLinear(20, 30)
    assert not torch.equal(layer.col, single.col)
    layer.reset_parameters(seeds=11)
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in single.state_dict().items())
    check_gradients(copy.deepcopy(layer).double(), 3)
    population = SparseLinear(20, 30, beings=3)
    population.reset_parameters(seeds=[11, 12, 13])
    assert torch.equal(population.col, single.col) and torch.equal(population.values[0], single.values)
    other = SparseLinear(20, 30, beings=3)
    other.reset_parameters(seeds=[11, 5, 13])
    assert torch.equal(other.values[[0, 2]], population.values[[0, 2]])
    assert not torch.equal(other.values[1], population.values[1])


def test_meta_device() -> None:
    layer = SparseLinear(20, 30, sparsity=0.8, device="meta")
    layer._apply(lambda tensor: torch.full_like(tensor, 10**9, device="cpu"))  # to_empty, at its worst
    y = layer(torch.ones(2, 20))  # not drawn yet: any numbers, but no memory beyond the tensors is touched
    assert y.shape == (2, 30) and not layer.crow.any()
    layer.reset_parameters()
    check_gradients(layer.double(), 3)
    made = SparseLinear(7, 5, connectivity=PAIRS)
    with torch.device("meta"):
        lost = SparseLinear(7, 5, connectivity=PAIRS)
    assert lost.values.is_meta and lost.nnz == 8
    lost.to_empty(device="cpu")
    with pytest.raises(ValueError, match="load_state_dict"):
        lost.reset_parameters()
    lost.load_state_dict(made.state_dict())
    lost.reset_parameters()
    assert torch.equal(lost.indices, made.indices)
    check_gradients(lost.double(), 3)


def test_indices_stay_integers() -> None:
    layer = SparseLinear(20, 30)
    for cast in (layer.double, layer.half, lambda: layer.to(torch.bfloat16), lambda: layer.type(torch.float64)):
        cast()
        assert {layer.get_buffer(name).dtype for name in STRUCTURE} == {torch.int32}
    check_gradients(layer, 3)


def test_bytes_per_connection() -> None:
    layer = SparseLinear(500, 500, bias=False)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 500)).sum().backward()
    optimizer.step()
    tensors = [layer.values, layer.values.grad, *layer.buffers(), *optimizer.state[layer.values].values()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert total == 28 * layer.nnz + 2 * 4 * 501 + 4  # crow and ccol, and Adam's step
    given_pairs = SparseLinear(500, 500, connectivity=layer.indices)
    assert not any(isinstance(value, Tensor) for value in vars(given_pairs).values())  # no third copy
    assert len(pickle.dumps(given_pairs)) < 28 * layer.nnz
    assert len(repr(given_pairs)) < 120 and "sparsity=0.9, nnz=25000, connectivity=given" in repr(given_pairs)


def test_no_warning_and_no_filter_left_behind() -> None:
    code = """if True:
        import warnings, torch
        from linnet.sparse import SparseLinear
        SparseLinear(9, 9)(torch.randn(4, 9)).sum().backward()
        assert not [one for one in warnings.filters if "Sparse" in str(one)]
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_threads_share_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csr, "_warned", False)
    layer, x, found = SparseLinear(50, 50), torch.randn(4, 50), []
    threads = [threading.Thread(target=lambda: found.append(layer(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(y, found[0]) for y in found)


@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize(
    "check",
    [
        check_assign,
        check_constructor,
        check_copy,
        check_forward,
        check_linear_doors,
        check_meta,
        check_safetensors,
        check_seeds,
        check_state_dict,
    ],
)
def test_contract_with_given_connections(check: Callable[[Case], None], beings: int | None) -> None:
    check(Case(SparseLinear, 7, 5, {"connectivity": PAIRS}, beings))
