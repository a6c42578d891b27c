"""The d2l chapter on model construction, unchanged, and with every nn.Linear replaced by every layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from linnet import catalogue, replace, violation


class MLP(nn.Module):
    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.hidden = nn.Linear(input_size, hidden_size)
        self.out = nn.Linear(hidden_size, output_size)

    def forward(self, X):
        return self.out(F.relu(self.hidden(X)))


class FixedHiddenMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.rand_weight = torch.rand((20, 20), requires_grad=False)
        self.linear = nn.Linear(20, 20)

    def forward(self, X):
        X = self.linear(X)
        X = F.relu(torch.mm(X, self.rand_weight) + 1)
        X = self.linear(X)
        while X.abs().sum() > 1:
            X /= 2
        return X.sum()


class NestMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.linear = nn.Linear(32, 16)

    def forward(self, X):
        return self.linear(self.net(X))


MODELS = {
    "sequential": lambda: nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 10)),
    "mlp": lambda: MLP(input_size=20, hidden_size=256, output_size=10),
    "fixed hidden": FixedHiddenMLP,
    "nest": NestMLP,
    "chimera": lambda: nn.Sequential(NestMLP(), nn.Linear(16, 20), FixedHiddenMLP()),
}
SHAPES = {"sequential": (2, 10), "mlp": (2, 10), "fixed hidden": (), "nest": (2, 16), "chimera": ()}


@pytest.mark.parametrize("name", MODELS)
def test_the_chapter_runs_with_nn_linear(name):
    assert MODELS[name]()(torch.rand(2, 20)).shape == SHAPES[name]


def fits(cls, linear):
    """Whether the class admits this size."""
    try:
        cls(linear.in_features, linear.out_features, device="meta")
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("layer", list(catalogue()))
@pytest.mark.parametrize("name", MODELS)
def test_the_chapter_runs_with_every_layer(name, layer):
    torch.manual_seed(0)
    cls = catalogue()[layer]
    model = MODELS[name]()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    fitting = [n for n, m in linears.items() if fits(cls, m)]
    if len(fitting) < len(linears):
        with pytest.raises(ValueError, match=f"cannot become {cls.__name__}"):
            replace(model, cls)
    if not fitting:
        return
    swaps = replace(model, cls, where=lambda n, m: n in fitting)
    assert [swap.name for swap in swaps] == fitting
    assert all(type(model.get_submodule(n)) is cls for n in fitting)
    optimizer = torch.optim.SGD([p for p in model.parameters()], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(torch.rand(2, 20))
        assert output.shape == SHAPES[name]
        output.square().sum().backward()
        optimizer.step()
    own = [p for swap in swaps for p in swap.layer.parameters()]
    assert all(p.grad is not None for p in own)
    assert not cls.hard or violation(model) < 1e-4


@pytest.mark.parametrize("layer", [name for name, cls in catalogue().items()])
def test_a_layer_used_twice_gets_the_sum_of_both_gradients(layer):
    cls = catalogue()[layer]
    torch.manual_seed(0)
    shared = cls(6, 6, dtype=torch.float64).eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    nn.Sequential(shared, nn.Tanh(), shared)(x).square().sum().backward()
    first, second = (cls(6, 6, dtype=torch.float64).eval() for _ in range(2))
    first.load_state_dict(shared.state_dict())
    second.load_state_dict(shared.state_dict())
    nn.Sequential(first, nn.Tanh(), second)(x).square().sum().backward()
    for name, parameter in shared.named_parameters():
        total = first.get_parameter(name).grad + second.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, total)
