"""Linear, LinearMap and Being, as far as it is not the same for every layer."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

from linnet import (
    Being,
    IdentityLinear,
    Linear,
    LinearMap,
    OrthogonalLinear,
    RightStochasticLinear,
    Spread,
    SymmetricLinear,
    catalogue,
    penalty,
    tolerance,
    violation,
)
from linnet.core.affine import affine
from linnet.core.checks import check_positive
from linnet.testing import (
    check_assign,
    check_constructor,
    check_copy,
    check_factory,
    check_forward,
    check_layer,
    check_meta,
    check_seeds,
    check_state_dict,
)

# ----------------------------------------------------------------------------------------- Linear is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_seed_draws_what_nn_linear_draws(bias, dtype):
    for size in ((1, 1), (7, 3), (64, 128)):
        torch.manual_seed(3)
        theirs = nn.Linear(*size, bias, dtype=dtype)
        after = torch.get_rng_state()
        torch.manual_seed(3)
        ours = Linear(*size, bias, dtype=dtype)
        assert torch.equal(torch.get_rng_state(), after)
        ours.reset_parameters(seeds=3)
        for name, parameter in theirs.named_parameters():
            assert torch.equal(parameter, ours.get_parameter(name))


def test_each_being_is_the_nn_linear_of_its_seed():
    seeds = [5, 0, 2**63 - 1, 5]
    population = Linear(6, 4, beings=4)
    population.reset_parameters(seeds=seeds)
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        single = nn.Linear(6, 4)
        assert torch.equal(population.weight[i], single.weight)
        assert torch.equal(population.bias[i], single.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_go_both_ways(bias):
    theirs, ours, x = nn.Linear(5, 3, bias), Linear(5, 3, bias), torch.randn(4, 5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x), theirs(x))
    ours.weight = torch.ones(3, 5)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))


def test_an_optimizer_state_saved_with_nn_linear_goes_on_with_linear():
    torch.manual_seed(0)
    theirs, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(16, 5)
    first = torch.optim.Adam(theirs.parameters(), lr=0.1)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step(theirs, first)
    ours = nn.Sequential(Linear(5, 8), nn.Tanh(), Linear(8, 2))
    ours.load_state_dict(theirs.state_dict())
    second = torch.optim.Adam(ours.parameters(), lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        step(theirs, first)
        step(ours, second)
    assert torch.equal(ours(x), theirs(x))


def test_a_weight_can_be_tied():
    encoder, decoder = Linear(6, 4, bias=False), Linear(6, 4, bias=False)
    decoder.weight = encoder.weight
    assert decoder.weight is encoder.weight
    (encoder(torch.ones(6)).sum() + decoder(torch.ones(6)).sum()).backward()
    assert torch.equal(encoder.weight.grad, torch.full((4, 6), 2.0))
    assert len(list(nn.ModuleList([encoder, decoder]).parameters())) == 1
    embedding, head = nn.Embedding(10, 4), Linear(4, 10)
    head.weight = embedding.weight
    assert head.weight is embedding.weight
    theirs = nn.Linear(4, 10)
    theirs.weight = head.weight
    assert theirs.weight is embedding.weight
    assert list(head.state_dict()) == ["weight", "bias"]


def test_setting_a_tensor_assigns_in_place():
    layer = Linear(3, 2)
    parameter = layer.weight
    layer.weight = torch.ones(2, 3, dtype=torch.float64)
    assert layer.weight is parameter and torch.equal(parameter, torch.ones(2, 3))
    symmetric = SymmetricLinear(2, 2)
    symmetric.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [4.0, 1.0]]))
    assert torch.equal(symmetric.weight, torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
    assert [name for name, _ in symmetric.named_parameters()] == ["bias", "upper"]
    for bad, error in ((None, TypeError), (3.0, TypeError), (torch.ones(3, 3), ValueError)):
        for target in (layer, symmetric):
            with pytest.raises(error, match="weight must"):
                target.weight = bad


def test_torch_init_functions_reach_the_weight():
    layer = Linear(3, 2)
    nn.init.constant_(layer.weight, 0.5)
    assert torch.equal(layer.weight, torch.full((2, 3), 0.5))


class Triangular(nn.Module):
    def forward(self, x):
        return x.tril()

    def right_inverse(self, x):
        return x.tril()


def test_parametrizations_of_torch_work_on_linear_and_on_raw_parameters():
    known = dict(catalogue())
    layer, x = Linear(4, 4, beings=2), torch.randn(3, 2, 4)
    parametrize.register_parametrization(layer, "weight", Triangular())
    assert torch.equal(layer.weight, layer.weight.tril())
    torch.testing.assert_close(layer(x), torch.einsum("kbi,boi->kbo", x, layer.weight) + layer.bias)
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad is not None
    layer.weight = torch.ones(2, 4, 4)
    assert torch.equal(layer.weight, torch.ones(2, 4, 4).tril())
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is Linear and torch.equal(layer.weight, torch.ones(2, 4, 4).tril())
    symmetric = SymmetricLinear(4, 4)
    parametrize.register_parametrization(symmetric, "upper", nn.Tanh())
    assert symmetric.weight.abs().max() < 1 and violation(symmetric) == 0
    normed = nn.utils.parametrizations.weight_norm(Linear(4, 3), dim=0)
    assert torch.equal(normed(x), normed(x)) and len(list(normed.parameters())) == 3
    assert dict(catalogue()) == known, "classes made at run time are no catalogue entries"


def test_pruning_of_torch_works_on_linear():
    layer, x = Linear(6, 4), torch.randn(2, 6)
    prune.random_unstructured(layer, "weight", amount=0.5)
    y = layer(x)
    y.sum().backward()
    assert (layer.weight == 0).sum() == 12 and layer.weight_orig.grad is not None
    prune.remove(layer, "weight")
    assert torch.equal(layer(x), y) and isinstance(layer.weight, nn.Parameter)
    del layer.weight
    with pytest.raises(AttributeError, match="weight"):
        layer.weight  # noqa: B018


# ----------------------------------------------------------------------------------------- the frame of a map


def test_the_frame_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        LinearMap(3, 2)


@pytest.mark.parametrize("bad", [1, 0, None, "yes", 0.5])
def test_bias_must_be_a_bool(bad):
    with pytest.raises(TypeError, match="bias must be True or False"):
        SymmetricLinear(3, 3, bad)


def test_numpy_sizes_become_ints():
    layer = Linear(np.int64(3), np.int32(2), beings=np.int8(4))
    assert [type(size) for size in (layer.in_features, layer.out_features, layer.beings)] == [int, int, int]
    layer.reset_parameters(seeds=np.arange(4))
    layer.reset_parameters(seeds=torch.arange(4))


@pytest.mark.parametrize("seeds", ["3", [1.5, 2], [None, 1], 2.0])
def test_seeds_must_be_integers(seeds):
    with pytest.raises(TypeError):
        Linear(3, 2, beings=2).reset_parameters(seeds=seeds)


def test_an_attribute_error_inside_the_weight_is_told_as_it_is():
    class Typo(LinearMap, catalogue=False):
        def __init__(self):
            super().__init__(2, 2)
            self.raw = nn.Parameter(torch.zeros(2, 2))

        def _weight(self, raw):
            return raw * self.gain

        def _assign(self, weight):
            return {"raw": weight}

    with pytest.raises(RuntimeError, match=r"weight could not be computed.*gain") as caught:
        Typo().weight  # noqa: B018
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(RuntimeError, match="gain"):
        Typo()(torch.ones(2))


class Scaled(LinearMap, catalogue=False):
    """A = s a, with a free and the sign s drawn: shapes and no constructor."""

    fixed = ("sign",)

    def _shapes(self):
        return {"entries": (self.out_features, self.in_features), "sign": (1,)}

    def _weight(self, entries, sign):
        return entries * sign.unsqueeze(-1)

    def _assign(self, weight):
        return {"entries": weight, "sign": torch.ones_like(weight[..., 0, :1])}

    def _draw(self, raw, generator):
        raw["entries"].normal_(generator=generator)
        raw["sign"].bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


class ByHand(Scaled, catalogue=False):
    """The same with a constructor that makes the tensors and draws them."""

    def __init__(self, in_features, out_features, bias=True, *, beings=None, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        shape = (*self.leading, out_features, in_features)
        self.entries = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("sign", torch.empty(*self.leading, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def _shapes(self):
        return {}


@pytest.mark.parametrize("beings", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_take_the_place_of_a_constructor(beings, bias):
    drawn = []
    for cls in (Scaled, ByHand):
        torch.manual_seed(0)
        drawn.append(cls(4, 3, bias, beings=beings, dtype=torch.float64))
    ours, theirs = drawn
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["bias"] * bias + ["entries", "sign"]
    assert [name for name, _ in ours.named_parameters()] == ["bias"] * bias + ["entries"]
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert inspect.signature(Scaled) == inspect.signature(LinearMap)


@pytest.mark.parametrize("cls", [Scaled, ByHand])
def test_both_kinds_of_layer_keep_the_contract(cls):
    construction = [check_constructor, check_factory, check_meta, check_seeds]
    check_layer(cls, checks=[*construction, check_forward, check_copy, check_state_dict, check_assign])


def test_repr_shows_options_that_differ_from_the_default_also_after_pickling():
    assert repr(OrthogonalLinear(4, 4)) == "OrthogonalLinear(in_features=4, out_features=4, bias=True)"
    layer = OrthogonalLinear(4, 4, False, reflectors=2, beings=3)
    assert repr(layer) == "OrthogonalLinear(in_features=4, out_features=4, bias=False, reflectors=2, beings=3)"
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(layer)
    rebuilt = eval(repr(layer), {"OrthogonalLinear": OrthogonalLinear})
    assert rebuilt.state_dict().keys() == layer.state_dict().keys()
    assert layer.options() == {"reflectors": 2}


def test_violation_of_a_model_is_the_largest():
    good, bad = SymmetricLinear(3, 3), RightStochasticLinear(3, 3, beings=2)
    model = nn.Sequential(Spread(), good, nn.ReLU(), nn.ModuleDict({"deep": bad}))
    assert violation(model) <= tolerance(torch.float32)
    with torch.no_grad():
        bad.logits[1, 0, 0] = torch.nan
    assert violation(model) == torch.inf
    assert violation(model).dtype == torch.float64
    assert violation(nn.Sequential(nn.Linear(2, 2))) == 0


class Shrinking(Linear, catalogue=False):
    hard = False

    def penalty(self):
        return self.weight.square().sum()


def test_penalty_of_a_model_counts_each_layer_once_and_every_being():
    layer, population = Shrinking(3, 2), Shrinking(3, 2, beings=4, dtype=torch.float64)
    model = nn.ModuleList([layer, nn.Sequential(layer, nn.ReLU()), population, nn.Linear(2, 2), Linear(2, 2)])
    total = penalty(model)
    expected = layer.weight.double().square().sum() + population.weight.square().sum()
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    total.backward()
    torch.testing.assert_close(layer.weight.grad, 2 * layer.weight)
    torch.testing.assert_close(population.weight.grad, 2 * population.weight)
    assert penalty(nn.ReLU()) == 0 and penalty(nn.ReLU()).dim() == 0


def test_tolerance_is_a_small_multiple_of_eps():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.finfo(dtype).eps < tolerance(dtype) <= 1000 * torch.finfo(dtype).eps


def test_an_export_under_no_grad_goes_on_learning():
    with torch.no_grad():
        assert SymmetricLinear(3, 3).to_linear().weight.requires_grad
        assert all(linear.weight.requires_grad for linear in SymmetricLinear(3, 3, beings=2).to_linears())
        assert SymmetricLinear(3, 3, beings=2).get_single(0).to_linear().weight.requires_grad


def test_from_linears_refuses_a_mixture():
    for other in (
        nn.Linear(3, 3),
        nn.Linear(3, 2, False),
        nn.Linear(3, 2).double(),
        nn.Linear(3, 2).requires_grad_(False),
    ):
        with pytest.raises(ValueError, match="from_linears needs maps of one kind"):
            Linear.from_linears([nn.Linear(3, 2), other])
    with pytest.raises(ValueError, match=r"at least one nn\.Linear, got none"):
        Linear.from_linears([])


def test_autocast_leaves_float64_alone_as_in_nn_linear():
    x = torch.randn(2, 4, dtype=torch.float64)
    for layer in (OrthogonalLinear(4, 4), IdentityLinear(4, 4), Linear(4, 4), SymmetricLinear(4, 4)):
        layer = layer.double()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), layer(x).double())


# ----------------------------------------------------------------------------------------- the beings


@settings(deadline=None, max_examples=60)
@given(
    beings=st.none() | st.integers(1, 4),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    lead=st.lists(st.integers(0, 4), max_size=3),
    shared=st.booleans(),
    flat=st.booleans(),
)
def test_affine_equals_einsum_for_any_size(beings, sizes, lead, shared, flat):
    n, m = sizes
    leading = () if beings is None else (beings,)
    w, b = torch.randn(*leading, m, n, dtype=torch.float64), torch.randn(*leading, m, dtype=torch.float64)
    own = () if beings is None else (1,) if shared else (beings,)
    x = torch.randn(n, dtype=torch.float64) if flat else torch.randn(*lead, *own, n, dtype=torch.float64)
    y = affine(x, w, b)
    if beings is None:
        expected = torch.einsum("...i,oi->...o", x, w) + b
    else:
        expected = (
            torch.einsum("...bi,boi->...bo", (x[None] if flat else x).expand(*lead * (not flat), beings, n), w) + b
        )
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(affine(x, w), expected - b)


def test_shape_errors_name_both_shapes_and_the_way_out():
    with pytest.raises(ValueError, match=r"shape \(\*, in_features=3\), got \(2, 4\)"):
        Linear(3, 2)(torch.ones(2, 4))
    with pytest.raises(
        ValueError,
        match=r"beings=5 or 1, in_features=3\), got \(8, 3\); .*pass x\[:, None\] or put linnet.Spread\(\) in front",
    ):
        Linear(3, 2, beings=5)(torch.ones(8, 3))
    with pytest.raises(ValueError, match="never_zero must be a positive integer, got 0"):
        check_positive(fine=1, never_zero=0)


def test_spread_gives_one_batch_to_all():
    x, population = torch.randn(8, 3), Linear(3, 2, beings=5)
    y = nn.Sequential(Spread(), population)(x)
    assert y.shape == (8, 5, 2)
    for i in range(5):
        torch.testing.assert_close(y[:, i], population.get_single(i)(x))
    torch.testing.assert_close(y[0], population(x[0]))


@pytest.mark.parametrize("cls", [Linear, SymmetricLinear, OrthogonalLinear, IdentityLinear])
def test_a_view_is_live_owns_nothing_and_goes_anywhere(cls):
    torch.manual_seed(0)
    population = cls(3, 3, beings=4)
    model = nn.Sequential(population.get_single(2), nn.ReLU(), population.get_single(-1))
    assert isinstance(model[0], Being) and model[2].index == 3
    assert not list(model.parameters()) and not model.state_dict()
    x = torch.randn(5, 3)
    before = model(x)
    population.to(torch.float64)
    assert model(x.double()).dtype == torch.float64
    torch.testing.assert_close(model(x.double()).float(), before)
    before = model[0](x.double())
    population.bias.data[2] += 1
    torch.testing.assert_close(model[0](x.double()), before + 1)
    model.to(torch.float32)
    assert population.bias.dtype == torch.float64, "a view must not convert its population"
    assert model[0].in_features == model[0].out_features == 3 and "index=2" in repr(model[0])
    torch.testing.assert_close(model[0].to_linear()(x.double()), model[0](x.double()))
    with pytest.raises(ValueError, match="in_features=3"):
        model[0](torch.ones(2, 4))


def test_a_copy_of_a_view_looks_into_a_copy_of_the_population():
    population = Linear(3, 2, beings=4)
    for order in ((0, 1), (1, 0)):
        pair = [population, population.get_single(1)]
        for copied in (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))):
            model = copied(nn.ModuleList([pair[i] for i in order]))
            other, view = (model[order.index(i)] for i in (0, 1))
            other.weight.data.zero_()
            assert not view.weight.any() and population.weight.any()
    alone = copy.deepcopy(population.get_single(1))
    population.weight.data.zero_()
    assert alone.weight.any()


def test_backward_through_a_view_fills_one_row():
    population = OrthogonalLinear(3, 3, beings=4)
    population.get_single(2)(torch.randn(5, 3)).square().sum().backward()
    for parameter in population.parameters():
        assert not parameter.grad[[0, 1, 3]].any()
    assert population.bias.grad[2].any()


def test_clone_being_between_forward_and_backward_is_an_error():
    population = Linear(3, 2, beings=4)
    loss = population(torch.randn(5, 1, 3, requires_grad=True)).square().sum()
    population.clone_being(0, 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_clone_being_takes_numbers_lists_and_tensors_all_at_once():
    population = Linear(3, 2, beings=5)
    before = population.weight.detach().clone()
    population.clone_being([0, 1, 2], torch.tensor([1, 2, 0]))
    assert torch.equal(population.weight, before[[2, 0, 1, 3, 4]])
    population.clone_being(4, -2)
    assert torch.equal(population.weight[3], before[4])
    population.clone_being([], [])
    assert population.weight.requires_grad and population.weight.is_leaf


@pytest.mark.parametrize("bad", [1.5, True, [0.0], torch.tensor([True, False]), 5, -6, [0, 5]])
def test_indices_must_be_integers_in_range(bad):
    population = Linear(3, 2, beings=5)
    with pytest.raises(ValueError, match="Indices of beings must"):
        population.get_single(bad)
    with pytest.raises(ValueError, match="Indices of beings must"):
        population.clone_being(bad, bad)


def test_what_needs_a_population_says_so():
    for call in (lambda m: m.get_single(0), lambda m: m.clone_being(0, 0), lambda m: m.to_linears()):
        with pytest.raises(ValueError, match=r"must be a population \(beings=n\), got Linear"):
            call(Linear(3, 2))
    with pytest.raises(ValueError, match="to_linears"):
        Linear(3, 2, beings=2).to_linear()
