import copy

import pytest
import torch
from torch import nn

from linnet import (
    DNI,
    MLP,
    RNN,
    KWinners,
    Linear,
    LinearMap,
    OrthogonalLinear,
    SparseLinear,
    Spread,
    TruncatedBPTT,
    Unlocked,
    bake,
    catalogue,
)


def test_bake_keeps_an_embedding_tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "decoder": Linear(4, 5)})
    model["decoder"].weight = model["embedding"].weight
    baked = bake(model)
    assert baked["decoder"].weight is baked["embedding"].weight is not model["embedding"].weight
    two = bake(nn.Sequential(catalogue()["identity"](3, 3), catalogue()["identity"](3, 3)))
    assert two[0].weight is not two[1].weight  # equal, but never one tensor


@pytest.mark.parametrize("layer", list(catalogue()))
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_bake_gives_plain_linears_with_equal_outputs(layer, dtype, close):
    model = nn.Sequential(catalogue()[layer](6, 6, dtype=dtype), nn.Tanh(), nn.Linear(6, 2, dtype=dtype)).eval()
    baked = bake(model)
    x = torch.randn(4, 6, dtype=dtype)
    torch.testing.assert_close(baked(x), model(x), atol=close, rtol=close)
    assert type(baked[0]) is nn.Linear
    assert not any(isinstance(m, LinearMap) for m in baked.modules())


def test_bake_names_a_population():
    model = nn.Sequential(Spread(), Linear(3, 2, beings=4))
    with pytest.raises(ValueError, match=r"'1' is a population of 4 .*to_linears"):
        bake(model)
    assert type(bake(nn.Sequential(model[1].get_single(2)))[0]) is nn.Linear


def test_bake_then_load_into_an_ordinary_model():
    model = nn.Sequential(OrthogonalLinear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain.load_state_dict(bake(copy.deepcopy(model)).state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(plain(x), model(x))


def test_bake_names_a_huge_sparse_layer(monkeypatch):
    model = nn.Sequential(SparseLinear(20_000, 20_000, sparsity=1 - 1e-6), nn.ReLU())
    with pytest.raises(ValueError, match=r"'0' is a sparse layer of 20000 x 20000, 400,000,000 .*; to_onnx"):
        bake(model)
    monkeypatch.setattr("linnet.convert.bake.LARGEST_DENSE", 11)
    with pytest.raises(ValueError, match="the model is a sparse layer of 3 x 4, 12 "):
        bake(SparseLinear(3, 4, sparsity=0.5))
    monkeypatch.setattr("linnet.convert.bake.LARGEST_DENSE", 12)
    assert type(bake(SparseLinear(3, 4, sparsity=0.5))) is nn.Linear


def modules_of_ours(model):
    return [type(module).__name__ for module in model.modules() if type(module).__module__.startswith("linnet")]


@pytest.mark.parametrize("decouple", [DNI, Unlocked])
def test_bake_of_a_decoupled_network_is_the_network_alone(decouple):
    network = MLP(6, 8, 3, depth=4, layer="symmetric")
    model = nn.Sequential(nn.Linear(6, 6), decouple(network, at=["1", "3"]))
    model(torch.randn(4, 6)).sum().backward()  # the sources are there
    before = [name for name, _ in model.named_parameters()]
    baked = bake(model.eval())
    assert modules_of_ours(baked) == [] and type(baked[1]) is nn.Sequential
    x = torch.randn(5, 6)
    torch.testing.assert_close(baked(x), model(x))
    assert [name for name, _ in model.named_parameters()] == before
    assert type(bake(model[1])) is nn.Sequential and type(network) is MLP
    assert not baked.training and baked[1][0].weight is not network[0].weight


def test_bake_of_a_recurrent_network_has_linears_in_its_cells():
    net = RNN(3, 8, num_layers=2, hidden_map="orthogonal")
    windows = TruncatedBPTT(net, window=4)
    x = torch.randn(12, 2, 3)
    windows(x)[0].sum().backward()
    baked = bake(windows.eval())
    torch.testing.assert_close(baked(x)[0], net(x)[0])
    assert set(modules_of_ours(baked)) == {"RNN", "RNNCell"}
    assert sum(type(module) is nn.Linear for module in baked.modules()) == 4


def test_bake_leaves_what_is_no_map():
    model = MLP(6, 10, 3, depth=3, layer="low-rank", activation=lambda: KWinners(10, act_sparsity=0.5), rank=2).eval()
    baked = bake(model)
    assert type(baked) is nn.Sequential and modules_of_ours(baked) == ["KWinners", "KWinners"]
    x = torch.randn(4, 6)
    torch.testing.assert_close(baked(x), model(x))
    assert type(model) is MLP and model.carriers == 3
