"""Every class, at every size, with and without a bias, in every state that training or misuse brings about."""

import numpy as np
import pytest
import torch
from torch import nn

from linnet import catalogue, tolerance
from linnet.core.dense import dense
from support.promises import PROMISES, matrices

LAYERS = {name: cls for name, cls in catalogue().items() if cls.__module__.startswith("linnet.")}
SIZES = [(8, 8), (3, 5), (8, 3), (1, 1), (7, 7), (64, 64)]
SMALL = [(8, 8), (3, 5), (1, 1), (7, 7)]
REFUSED = {
    # by class: the sizes that it refuses besides those that are not square
    "HamiltonianLinear": lambda n, m: n % 2 == 1,
    "SparseLinear": lambda n, m: n * m == 1,  # of one connection, a sparsity of 0.9 leaves none
    "SymplecticLinear": lambda n, m: n % 2 == 1,
    "TrivialNullSpaceLinear": lambda n, m: n > m,
}


def admits(cls, n, m):
    return not (cls.square and n != m) and not REFUSED.get(cls.__name__, lambda n, m: False)(n, m)


def trained(layer, optimizer, steps):
    """A small regression; the target is nothing that the layer can be."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, *layer.leading, layer.in_features, generator=generator)
    y = torch.randn(16, *layer.leading, layer.out_features, generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        (nn.functional.mse_loss(layer(x), y) + layer.penalty()).backward()
        optimizer.step()


def drawn(layer):
    pass


def sgd(layer):
    trained(layer, torch.optim.SGD(layer.parameters(), lr=0.05), 50)


def adamw(layer, steps=200):
    trained(layer, torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1, fused=True), steps)


def adamw_shortly(layer):
    adamw(layer, 20)


def hundredfold(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(100)


def far(layer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            sign = torch.randint(0, 2, parameter.shape, generator=generator)
            parameter.copy_(50.0 * (2 * sign - 1))


def examine(cls, n, m, bias, beings, state):
    if not admits(cls, n, m):
        with pytest.raises(ValueError, match="got "):
            cls(n, m, bias, beings=beings)
        return
    torch.manual_seed(n + m)
    layer = cls(n, m, bias, beings=beings)
    if state is not drawn and not list(layer.parameters()):
        return
    state(layer)
    layer.eval()
    x = torch.randn(3, *layer.leading, n)
    assert layer(x).isfinite().all(), "the output"
    for a in matrices(layer.weight):
        assert a.shape == (n, m) and np.isfinite(a).all()
        if cls.promise != "none" and cls.hard:
            residual = PROMISES[cls.__name__](a, layer)
            assert residual <= tolerance(torch.float32), f"{residual:.2e} of {cls.promise}"
    for parameter in layer.parameters():
        assert parameter.isfinite().all()


@pytest.mark.parametrize("size", SMALL, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_promise_on_a_part_of_the_grid(name, size):
    for state in (drawn, hundredfold, far):
        for beings in (None, 3):
            examine(LAYERS[name], *size, True, beings, state)
    examine(LAYERS[name], *size, False, None, adamw_shortly)
    if size == (8, 8):
        examine(LAYERS[name], *size, False, 3, sgd)


@pytest.mark.slow
@pytest.mark.parametrize("beings", [None, 3], ids=["one", "population"])
@pytest.mark.parametrize("state", [drawn, sgd, adamw, hundredfold, far], ids=lambda state: state.__name__)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_promise_on_the_whole_grid(name, size, state, beings):
    for bias in (True, False):
        examine(LAYERS[name], *size, bias, beings, state)


SCALES = {  # of fresh outputs, in those of nn.Linear, where docs/maps/README.md states another than 1
    **dict.fromkeys(["orthogonal", "stiefel", "identity", "identity-init"], 3**0.5),
    **dict.fromkeys(["symplectic", "schur-stable", "power-bound", "hurwitz"], 2.0),
    **dict.fromkeys(["right-stochastic", "left-stochastic", "doubly-stochastic", "perron-frobenius", "l0"], 0.5),
    "stable-split": 0.25,
}


@pytest.mark.parametrize("name", LAYERS)
def test_fresh_outputs_have_the_scale_that_is_stated(name):
    torch.manual_seed(0)
    x = torch.randn(400, 64)
    with torch.no_grad():
        spread = torch.stack([LAYERS[name](64, 64, bias=False).eval()(x).var() for _ in range(12)]).mean().sqrt()
    ratio = spread / x.std() * 3**0.5  # nn.Linear's entries have the variance 1/(3n)
    assert ratio / SCALES.get(name, 1.0) == pytest.approx(1, abs=0.22)


PADDED = {"BlockDiagonalLinear", "ButterflyLinear"}  # what fills up blocks or sizes is unused, as they document


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_receives_a_gradient_somewhere(name):
    cls = LAYERS[name]
    for options in cls.examples():
        sizes = {"in_features": 6, "out_features": 6 if cls.square else 8, **options}
        reached: dict[str, torch.Tensor] = {}
        for seed in range(4):
            torch.manual_seed(seed)
            layer = cls(**sizes)
            with torch.no_grad():  # beside what was drawn: a reflection along an axis has no gradient on that axis
                for parameter in layer.parameters():
                    parameter.add_(0.1 * seed * torch.randn_like(parameter))
            x, y = torch.randn(16, layer.in_features), torch.randn(16, layer.out_features)
            (nn.functional.mse_loss(layer(x), y) + layer.penalty()).backward()
            for key, parameter in layer.named_parameters():
                moved = parameter.grad != 0
                reached[key] = reached.get(key, torch.zeros_like(moved)) | moved
        enough = torch.any if cls.__name__ in PADDED else torch.all
        dead = {key: int((~found).sum()) for key, found in reached.items() if not enough(found)}
        assert not dead, f"{dead} entries never get a gradient, {sizes}"


RECOVERED = [  # what the tests of the families leave out; IdentityLinear has nothing to learn
    "l0",
    "lasso",
    "lasso-relu",
    "linear",
    "orthogonal",
    "right-stochastic",
    "soft-power-bound",
    "sparse",
    "symmetric",
]


@pytest.mark.parametrize("name", RECOVERED)
def test_optimization_recovers_a_random_member(name):
    cls = LAYERS[name]
    torch.manual_seed(1)
    goal, layer = (cls(6, 6, False, dtype=torch.float64).eval() for _ in range(2))
    for key, buffer in goal.named_buffers():  # the same signs and the same wiring: the same connected component
        layer.get_buffer(key).copy_(buffer)
    target = dense(goal.weight.detach()).clone()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=0)

    def loss():
        optimizer.zero_grad()
        value = (dense(layer.weight) - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert (dense(layer.weight.detach()) - target).norm() / target.norm() < 1e-3
