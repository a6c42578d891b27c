"""Lasso and L0 maps: penalties, exact zeros and random gates, against formulas and sampling."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch

from linnet import penalty
from linnet.maps.l0 import L0Linear, hard_concrete, open_probability
from linnet.maps.lasso import LassoLinear, LassoLinearRELU

F64 = torch.float64


def regression(n=12, samples=400):
    torch.manual_seed(0)
    truth = torch.zeros(n, 3)
    truth[:3] = torch.tensor([2.0, -1.5, 1.0]).unsqueeze(-1)
    x = torch.randn(samples, n)
    return x, x @ truth + 0.01 * torch.randn(samples, 3), truth


@pytest.mark.parametrize("cls", [LassoLinear, LassoLinearRELU])
def test_proximal_descent_finds_the_exact_zeros(cls):
    x, y, truth = regression()
    layer = cls(12, 3, bias=False, gamma=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        ((layer(x) - y).square().sum(-1) / 2).mean().backward()
        optimizer.step()
        layer.prox(0.1)
    a = layer.weight.detach().mT
    assert torch.equal(a == 0, truth == 0)
    # the optimum of the lasso: the slope is −γ sign(a) where a ≠ 0 and at most γ elsewhere
    slope = (x.mT @ (x @ a - y) / len(x)).numpy()
    sign = a.sign().numpy()
    np.testing.assert_allclose(slope[sign != 0], -0.1 * sign[sign != 0], atol=2e-3)
    assert np.abs(slope[sign == 0]).max() <= 0.1


def test_the_penalty_alone_gives_exact_zeros_to_the_relu_form():
    x, y, truth = regression()
    layer = LassoLinearRELU(12, 3, bias=False, gamma=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        (((layer(x) - y).square().sum(-1) / 2).mean() + penalty(layer)).backward()
        optimizer.step()
    a = layer.weight.detach().mT
    assert ((a == 0) == (truth == 0)).float().mean() > 0.9 and (a - truth).abs().max() < 0.2


def test_zeros_of_the_relu_form_come_back_after_prox():
    layer = LassoLinearRELU(2, 1, bias=False, gamma=0.0)
    layer.weight = torch.zeros(1, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    goal = torch.tensor([[1.0, -1.0]])
    for _ in range(200):
        optimizer.zero_grad()
        (layer.weight - goal).square().sum().backward()
        optimizer.step()
        layer.prox(0.1)
    torch.testing.assert_close(layer.weight.detach(), goal, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", [LassoLinear, LassoLinearRELU])
def test_the_lasso_penalty(cls):
    layer = cls(4, 3, gamma=0.7, beings=2)
    w = torch.randn(2, 3, 4)
    layer.assign(w)
    assert layer.penalty().item() == pytest.approx(0.7 * w.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_gates_have_the_distribution_of_the_paper(log_alpha):
    torch.manual_seed(0)
    noise = torch.rand(200_000, dtype=F64).logit(eps=1e-9)
    z = hard_concrete(torch.tensor(log_alpha, dtype=F64), noise, 2 / 3)
    expected = open_probability(torch.tensor(log_alpha, dtype=F64), 2 / 3).item()
    assert (z != 0).double().mean().item() == pytest.approx(expected, abs=4e-3)
    gate = lambda u: min(1, max(0, 1.2 / (1 + math.exp(-1.5 * (math.log(u / (1 - u)) + log_alpha))) - 0.1))  # noqa: E731
    mean = scipy.integrate.quad(gate, 1e-9, 1 - 1e-9, limit=200)[0]
    assert z.mean().item() == pytest.approx(mean, abs=4e-3)


@pytest.mark.parametrize("group", ["input", "weight", "output"])
def test_the_l0_penalty_in_closed_form(group):
    layer = L0Linear(5, 3, group=group, lamda=0.4, weight_decay=0.3, beings=2, dtype=F64)
    with torch.no_grad():
        layer.log_alpha.normal_()
    total = 0.0
    for being in range(2):
        for o in range(3):
            for i in range(5):
                place = {"input": (i,), "output": (o,), "weight": (o, i)}[group]
                alpha = layer.log_alpha[(being, *place)].item()
                p = 1 / (1 + math.exp(-(alpha - 2 / 3 * math.log(0.1 / 1.1))))
                total += p * (0.4 + 0.3 / 2 * layer.entries[being, o, i].item() ** 2)
    assert layer.penalty().item() == pytest.approx(total, rel=1e-12)


def test_descent_on_the_l0_penalty_closes_the_gates():
    torch.manual_seed(0)
    layer = L0Linear(6, 4)
    before = layer.penalty().item()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        layer.penalty().backward()
        optimizer.step()
    assert 0 <= layer.penalty().item() < before and layer.weight.count_nonzero() == 0
    assert layer.entries.abs().max() < 1


@pytest.mark.parametrize("beings", [None, 2])
@pytest.mark.parametrize("group", ["input", "weight", "output"])
@pytest.mark.parametrize("noise", ["batch", "sample", "held"])
def test_noise_is_shared_as_it_says(group, noise, beings):
    torch.manual_seed(0)
    layer = L0Linear(6, 5, bias=False, group=group, noise=noise, beings=beings)
    x = torch.randn(*(() if beings is None else (beings,)), 6).expand(4, *layer.leading, 6)
    first, second = layer(x), layer(x)
    same_rows = all(torch.allclose(first[0], first[i], rtol=1e-5, atol=1e-6) for i in (1, 3))  # the product rounds
    assert same_rows == (noise != "sample")
    assert torch.equal(first, second) == (noise == "held")
    if noise == "held":
        layer.resample()
        assert not torch.equal(layer(x), first)
    layer.eval()
    wide = torch.einsum("...i,...oi->...o", x, layer.weight)
    torch.testing.assert_close(layer(x), wide)


@pytest.mark.parametrize("group", ["input", "weight", "output"])
@pytest.mark.parametrize("noise", ["batch", "sample"])
def test_the_random_forward_has_the_mean_of_its_gates(group, noise):
    torch.manual_seed(0)
    layer = L0Linear(3, 2, bias=False, group=group, noise=noise, dtype=F64)
    x = torch.randn(3, dtype=F64)
    if noise == "sample":
        mean = layer(x.expand(20_000, 3)).mean(0)
    else:
        mean = torch.stack([layer(x) for _ in range(4_000)]).mean(0)
    gate = hard_concrete(layer.log_alpha, torch.rand(20_000, *layer.log_alpha.shape, dtype=F64).logit(), 2 / 3).mean(0)
    expected = (layer.entries * (gate if group == "weight" else gate[None] if group == "input" else gate[:, None])) @ x
    torch.testing.assert_close(mean, expected, atol=0.04, rtol=0)


def test_training_is_repeated_by_the_same_seed_and_weight_is_the_eval_matrix():
    layer, x = L0Linear(6, 5, bias=False), torch.randn(3, 6)
    weight = layer.weight.clone()
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), y)
    assert torch.equal(layer.weight, weight)
    torch.testing.assert_close(layer.eval()(x), x @ weight.mT)


def test_l0_learns_which_inputs_count():
    x, y, _ = regression()
    layer = L0Linear(12, 3, bias=False, lamda=0.01, weight_decay=0.0, noise="sample")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        ((layer(x) - y).square().sum(-1).mean() + layer.penalty()).backward()
        optimizer.step()
    used = (layer.eval().weight != 0).any(0)
    assert used.tolist() == [True] * 3 + [False] * 9
    assert (layer(x) - y).square().mean() < 0.05


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LassoLinear(2, 2, gamma=-1.0), "gamma"),
        (lambda: LassoLinearRELU(2, 2, gamma=math.nan), "gamma"),
        (lambda: LassoLinear(2, 2).prox(-1.0), "step_size"),
        (lambda: L0Linear(2, 2, droprate_init=1.0), "droprate_init"),
        (lambda: L0Linear(2, 2, droprate_init=0.0), "droprate_init"),
        (lambda: L0Linear(2, 2, temperature=0.0), "temperature"),
        (lambda: L0Linear(2, 2, lamda=-0.1), "lamda"),
        (lambda: L0Linear(2, 2, weight_decay=math.inf), "weight_decay"),
        (lambda: L0Linear(2, 2, group="rows"), "group"),
        (lambda: L0Linear(2, 2, noise="none"), "noise"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()
