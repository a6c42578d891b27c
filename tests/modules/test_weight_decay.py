"""param_groups and matrix_decay: the effect of weight decay on the matrices of maps."""

import copy

import pytest
import torch
from torch import nn

import linnet
from linnet import NonNegativeLinear, OrthogonalLinear, matrix_decay, param_groups
from linnet.testing import cases

LAYERS = {name: cls for name, cls in linnet.catalogue().items() if cls.__module__.startswith("linnet.")}


@pytest.mark.parametrize("name", LAYERS)
def test_decay_of_what_may_decay_shrinks_the_matrix_and_of_the_rest_is_none(name):
    for case in cases(LAYERS[name]):
        layer = case.layer(dtype=torch.float64)
        groups = param_groups(layer, 0.5)
        listed = [p for group in groups for p in group["params"]]
        assert {id(p) for p in listed} == {id(p) for p in layer.parameters()} and len(listed) == len(set(listed))
        assert layer.bias is None or any(layer.bias is p for p in groups[1]["params"])
        before = layer.weight.to_dense().detach().clone()
        state = copy.deepcopy(layer.state_dict())
        groups = [group for group in groups if group["params"]]
        if not groups:
            continue
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        for p in layer.parameters():
            p.grad = torch.zeros_like(p)  # decay alone acts
        optimizer.step()
        after = layer.weight.to_dense().detach()
        if layer.decays:
            assert after.norm() < 0.9 * before.norm()
            if layer.hard and layer.promise != "none":
                assert layer.violation().max() <= linnet.tolerance(torch.float64)
        else:
            assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


def test_in_other_modules_matrices_decay_and_vectors_do_not():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.LayerNorm(4), shared, nn.Conv1d(1, 2, 3), OrthogonalLinear(4, 4))
    decaying, rest = param_groups(model, 0.1)
    assert decaying["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert [id(p) for p in decaying["params"]] == [id(shared.weight), id(model[3].weight)]
    assert {id(p) for p in rest["params"]} == {id(p) for p in model.parameters()} - {id(p) for p in decaying["params"]}
    torch.optim.AdamW(param_groups(model, 0.1), lr=1e-3, fused=True)


def test_a_tied_parameter_that_may_decay_in_one_place_is_listed_once():
    tied = nn.Linear(3, 3, bias=False)
    other = nn.Linear(3, 3, bias=False)
    other.weight = tied.weight
    decaying, rest = param_groups(nn.ModuleList([tied, other]), 0.1)
    assert len(decaying["params"]) == 1 and not rest["params"]


def test_matrix_decay_is_decay_of_the_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 3), linnet.Linear(3, 3), NonNegativeLinear(3, 2, beings=4), OrthogonalLinear(3, 3)
    )
    expected = (model[2].weight.detach().numpy() ** 2).sum() / 2 + 1.5
    torch.testing.assert_close(matrix_decay(model).item(), float(expected))
    layer = model[2]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    start = layer.weight.detach().norm()
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * matrix_decay(layer)).backward()
        optimizer.step()
    assert layer.weight.norm() < start / 2 and layer.weight.min() >= 0
    assert float(matrix_decay(nn.Linear(2, 2))) == 0.0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "0.1", True])
def test_a_bad_number_is_named(bad):
    with pytest.raises(ValueError, match="weight_decay must be a finite number >= 0, got"):
        param_groups(nn.Linear(2, 2), bad)
