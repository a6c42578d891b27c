"""The documentation of widelinears as tests, sentence by sentence, in its order, and the defects of its code.

Every test of a sentence runs on linnet's class ("native") and on that of linnet.compat.widelinears ("compat").
"""

import copy
import importlib.metadata
import inspect
import io
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linnet
import linnet.compat.widelinears as wl
from linnet import per_being

KINDS = {"native": linnet, "compat": wl}
both = pytest.mark.parametrize("kind", KINDS)


def wide_linear(kind: str, beings: int = 4, input_size: int = 5, output_size: int = 3):
    return KINDS[kind].WideLinear(beings, input_size, output_size)


def wide_deep(kind: str, *args, **kwargs):
    return KINDS[kind].WideDeep(*args, **kwargs)


def by_hand(layer, i: int, x: torch.Tensor) -> torch.Tensor:
    """Being i applied to rows x in float64, from the stored numbers."""
    w, b = layer.weight[i].detach().double(), layer.bias[i].detach().double()
    return (x.double().unsqueeze(-2) * w).sum(-1) + b


def net_by_hand(nets, i: int, x: torch.Tensor) -> torch.Tensor:
    for place, layer in enumerate(nets.linears):
        x = by_hand(layer, i, x)
        x = x.clamp(min=0) if place < len(nets.linears) - 1 else 1 / (1 + (-x).exp())
    return x


# ---------------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("WideLinear", "beings, input_size, output_size"),
        ("LinearWidePointer", "hive, being"),
        ("WideDeep", "beings, input_size, hidden_size, depth, output_size, non_linear=None, final_nl=None"),
    ],
)
def test_the_signatures_are_those_of_widelinears(name, parameters):
    signature = inspect.signature(getattr(wl, name))
    shown = [p.name + ("" if p.default is p.empty else f"={p.default}") for p in signature.parameters.values()]
    assert ", ".join(shown) == parameters


# ---------------------------------------------------------------------- WideLinear


@both
def test_a_family_of_parallel_linear_layers_that_share_the_same_input_and_output_sizes(kind):
    layer = wide_linear(kind, 7, 5, 3)
    assert layer.beings == 7
    assert [(m.in_features, m.out_features) for m in layer.to_linears()] == [(5, 3)] * 7


@both
def test_input_size_will_clone_this_input_and_give_it_to_each_linear_outputs_beings_output_size(kind):
    layer, x = wide_linear(kind), torch.randn(5)
    y = layer(x)
    assert y.shape == (4, 3)
    for i in range(4):
        torch.testing.assert_close(y[i].double(), by_hand(layer, i, x), atol=1e-6, rtol=1e-6)


@both
def test_beings_input_size_will_give_each_linear_its_own_input_vector(kind):
    layer, x = wide_linear(kind), torch.randn(4, 5)
    y = layer(x)
    assert y.shape == (4, 3)
    for i in range(4):
        torch.testing.assert_close(y[i].double(), by_hand(layer, i, x[i]), atol=1e-6, rtol=1e-6)


@both
def test_batch_beings_input_size_will_give_each_linear_its_own_batch_of_inputs(kind):
    layer, x = wide_linear(kind), torch.randn(6, 4, 5)
    y = layer(x)
    assert y.shape == (6, 4, 3)
    for i in range(4):
        torch.testing.assert_close(y[:, i].double(), by_hand(layer, i, x[:, i]), atol=1e-6, rtol=1e-6)


@both
def test_clone_being_clones_linear_layer_from_one_position_to_other_overriding_what_was_there(kind):
    layer = wide_linear(kind)
    before = layer.weight.detach().clone()
    layer.clone_being(1, 3)
    assert torch.equal(layer.weight[3], before[1]) and torch.equal(layer.bias[3], layer.bias[1])
    assert torch.equal(layer.weight[:3], before[:3])


@both
def test_get_single_behaves_as_a_normal_single_linear(kind):
    layer = wide_linear(kind)
    single = layer.get_single(2)
    assert (single.in_features, single.out_features) == (5, 3)
    assert single.weight.shape == (3, 5) and single.bias.shape == (3,)
    for shape in ((5,), (6, 5), (2, 6, 5), (2, 2, 6, 5), (0, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(single(x).double(), by_hand(layer, 2, x), atol=1e-6, rtol=1e-6)


@both
def test_get_single_is_a_pointer_to_this_module(kind):
    layer = wide_linear(kind)
    single, x = layer.get_single(2), torch.randn(6, 5)
    with torch.no_grad():
        layer.weight[2].mul_(-1)
    torch.testing.assert_close(single(x).double(), by_hand(layer, 2, x), atol=1e-6, rtol=1e-6)
    single(x).sum().backward()
    assert layer.weight.grad[2].abs().sum() > 0
    assert layer.weight.grad[[0, 1, 3]].abs().sum() == 0


@both
def test_to_linears_returns_list_of_linears_with_the_same_parameters(kind):
    layer = wide_linear(kind)
    linears = layer.to_linears()
    assert len(linears) == 4 and all(type(linear) is nn.Linear for linear in linears)
    for i, linear in enumerate(linears):
        assert torch.equal(linear.weight, layer.weight[i]) and torch.equal(linear.bias, layer.bias[i])


# ---------------------------------------------------------------------- WideDeep


@both
def test_depth_1_is_a_single_linear_layer_from_input_to_output(kind):
    nets, x = wide_deep(kind, 4, 5, 7, 1, 3), torch.randn(6, 4, 5)
    assert [(layer.in_features, layer.out_features) for layer in nets.linears] == [(5, 3)]
    torch.testing.assert_close(
        nets(x)[:, 1].double(), torch.sigmoid(by_hand(nets.linears[0], 1, x[:, 1])), atol=1e-6, rtol=1e-6
    )


@both
def test_example_architecture_beings_4_input_5_hidden_3_depth_3_output_4(kind):
    nets = wide_deep(kind, beings=4, input_size=5, hidden_size=3, depth=3, output_size=4)
    assert [(layer.in_features, layer.out_features) for layer in nets.linears] == [(5, 3), (3, 3), (3, 4)]
    assert nets(torch.randn(4, 5)).shape == (4, 4)


@both
@pytest.mark.parametrize("shape", [(5,), (4, 5), (6, 4, 5), (2, 6, 4, 5)])
def test_behaves_as_a_group_of_separate_deep_networks(kind, shape):
    nets, x = wide_deep(kind, 4, 5, 7, 3, 2), torch.randn(shape)
    y = nets(x)
    assert y.shape == ((4, 2) if len(shape) == 1 else (*shape[:-1], 2))
    for i in range(4):
        own = x if len(shape) == 1 else x[..., i, :]
        torch.testing.assert_close(y[..., i, :].double(), net_by_hand(nets, i, own), atol=1e-6, rtol=1e-6)


@both
def test_non_linear_defaults_to_relu_and_final_nl_to_sigmoid_and_both_are_functions(kind):
    nets, x = wide_deep(kind, 4, 5, 7, 2, 2, torch.tanh, torch.exp), torch.randn(6, 4, 5)
    first, last = nets.linears
    torch.testing.assert_close(nets(x), last(first(x).tanh()).exp())


@both
def test_clone_being_clones_deep_nn_from_one_position_to_other(kind):
    nets = wide_deep(kind, 4, 5, 7, 3, 2)
    nets.clone_being(0, 2)
    y = nets(torch.randn(6, 1, 5))
    assert torch.equal(y[:, 0], y[:, 2]) and not torch.equal(y[:, 0], y[:, 1])


# ---------------------------------------------------------------------- the defects, by their numbers in wide.md


@both
def test_b1_weights_are_bounded_by_the_fan_in_of_one_being(kind):
    largest = wide_linear(kind, 50, 64, 256).weight.abs().max().item()
    assert 0.124 < largest <= 0.125  # 1/√64


@both
def test_b1_a_being_drawn_from_a_seed_is_the_ordinary_layer(kind):
    layer = wide_linear(kind, 3, 6, 4)
    layer.reset_parameters(seeds=[11, 12, 13])
    for i, seed in enumerate((11, 12, 13)):
        torch.manual_seed(seed)
        plain = nn.Linear(6, 4)
        assert torch.equal(layer.weight[i], plain.weight) and torch.equal(layer.bias[i], plain.bias)


@both
def test_b1_a_network_drawn_from_a_seed_is_the_ordinary_stack(kind):
    nets = wide_deep(kind, 3, 6, 5, 3, 4)
    nets.reset_parameters(seeds=[11, 12, 13])
    for i, seed in enumerate((11, 12, 13)):
        torch.manual_seed(seed)
        plain = [nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)]
        for layer, own in zip(nets.linears, plain, strict=True):
            assert torch.equal(layer.weight[i], own.weight) and torch.equal(layer.bias[i], own.bias)
    with pytest.raises(ValueError, match="one int for each being"):
        nets.reset_parameters(seeds=[1])


@both
def test_b2_biases_are_bounded_by_the_fan_in(kind):
    largest = wide_linear(kind, 50, 64, 256).bias.abs().max().item()
    assert 0.124 < largest <= 0.125


@both
@pytest.mark.parametrize("depth", [0, -2])
def test_b3_depth_below_1_is_refused(kind, depth):
    with pytest.raises(ValueError, match="depth must be a positive integer"):
        wide_deep(kind, 4, 5, 3, depth, 2)


@both
@pytest.mark.parametrize("shape", [(), (2, 2, 3, 5), (3, 5), (4, 6)])
def test_b4_no_input_comes_back_as_it_is(kind, shape):
    with pytest.raises(ValueError, match="The input of a population"):
        wide_deep(kind, 4, 5, 7, 2, 5)(torch.zeros(shape))


@both
def test_b5_a_pointer_owns_nothing_of_the_hive(kind):
    single = wide_linear(kind, 100).get_single(3)
    assert list(single.parameters()) == [] and single.state_dict() == {}
    assert list(wide_deep(kind, 4, 5, 7, 2, 3).get_single(3).parameters()) == []


@both
def test_b6_what_is_done_to_a_pointer_is_done_to_no_other_being(kind):
    layer = wide_linear(kind)
    before = copy.deepcopy(layer.state_dict())
    single = layer.get_single(0).double()
    single.apply(lambda module: [nn.init.zeros_(p) for p in module.parameters()])
    assert layer.weight.dtype == torch.float32
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())
    for index in (4, -5):
        with pytest.raises(ValueError, match="Indices of beings"):
            layer.get_single(index)


@both
def test_b7_a_pointer_may_hang_on_its_own_hive(kind):
    layer, nets = wide_linear(kind), wide_deep(kind, 4, 5, 7, 2, 3)
    for population in (layer, nets):
        keys = list(population.state_dict())
        population.first = population.get_single(0)
        population.train()
        assert list(population.state_dict()) == keys
        assert len(list(population.parameters())) == len(keys)


@both
def test_b8_what_is_exported_is_independent(kind):
    layer = wide_linear(kind)
    before = layer.weight.detach().clone()
    for linear in layer.to_linears():
        assert linear.weight.is_contiguous()
        nn.init.zeros_(linear.weight)
    assert torch.equal(layer.weight, before)


@both
def test_b9_a_saved_export_has_the_size_of_one_layer(kind):
    buffer, plain = io.BytesIO(), io.BytesIO()
    torch.save(wide_linear(kind, 1000, 32, 32).to_linears()[5], buffer)
    torch.save(nn.Linear(32, 32), plain)
    assert buffer.tell() < 1.05 * plain.tell()
    nets, one = io.BytesIO(), io.BytesIO()
    torch.save(wide_deep(kind, 500, 32, 32, 1, 32).get_single(5).to_module().state_dict(), nets)
    torch.save(nn.Linear(32, 32).state_dict(), one)
    assert nets.tell() < 1.1 * one.tell()


@both
def test_b10_exporting_draws_nothing_and_keeps_what_is_frozen(kind):
    layer = wide_linear(kind)
    layer.weight.requires_grad_(False)
    state = torch.get_rng_state()
    linears = layer.to_linears()
    assert torch.equal(torch.get_rng_state(), state)
    assert not linears[0].weight.requires_grad and linears[0].bias.requires_grad


@both
def test_b11_cloning_between_forward_and_backward_is_an_error(kind):
    nets = wide_deep(kind, 4, 5, 7, 3, 2)
    y = nets(torch.randn(6, 4, 5))
    nets.clone_being(0, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@both
def test_b13_a_generation_is_cloned_all_at_once(kind):
    nets = wide_deep(kind, 4, 5, 7, 3, 2)
    before = nets(torch.ones(5)).detach()
    parents = [3, 0, 0, 2]
    nets.clone_being(parents, [0, 1, 2, 3])  # one after the other, 0 would be lost before 1 and 2 take it
    assert torch.equal(nets(torch.ones(5)), before[parents])


def test_b14_the_usual_arguments_exist():
    layer = linnet.WideLinear(4, 5, 3, bias=False, device="cpu", dtype=torch.float64)
    assert layer.bias is None and layer.weight.dtype == torch.float64
    assert (layer.in_features, layer.out_features) == (5, 3)
    assert (wl.WideLinear(4, 5, 3).input_size, wl.WideLinear(4, 5, 3).output_size) == (5, 3)
    assert wl.WideLinear.from_linears([nn.Linear(5, 3) for _ in range(2)]).beings == 2
    with pytest.raises(ValueError, match="always has a bias, got bias=False"):
        wl.WideLinear.from_linears([nn.Linear(5, 3, bias=False)])


@both
def test_b15_nn_identity_is_how_to_have_no_final_activation(kind):
    nets, x = wide_deep(kind, 4, 5, 7, 1, 2, final_nl=nn.Identity()), torch.randn(6, 4, 5)
    assert torch.equal(nets(x), nets.linears[0](x))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_b16_networks_leave_and_come_back(kind, dtype):
    nets, others = (wide_deep(kind, 3, 5, 7, 3, 2, nn.PReLU(7)).to(dtype) for _ in range(2))
    x = torch.randn(6, 3, 5, dtype=dtype)
    nets(x).square().sum().backward()
    torch.optim.SGD(nets.parameters(), lr=0.1).step()
    members = nets.to_modules()
    for i, member in enumerate(members):
        torch.testing.assert_close(member(x[:, i]), nets(x)[:, i])
        torch.testing.assert_close(nets.get_single(i)(x[:, i]), nets(x)[:, i])
        others.assign_being(i, member)
    assert all(torch.equal(a, b) for a, b in zip(nets.parameters(), others.parameters(), strict=True))


@both
def test_b16_a_network_that_does_not_fit_changes_nothing(kind):
    nets = wide_deep(kind, 3, 5, 7, 2, 2, nn.PReLU(7))
    before = copy.deepcopy(nets.state_dict())
    activation = wide_deep(kind, 1, 5, 7, 2, 2, nn.PReLU(1)).to_modules()[0]
    for wrong in (nn.Sequential(nn.Linear(5, 2), nn.Sigmoid()), activation):
        with pytest.raises(ValueError, match=r"The module must (be 2 nn\.Linear|have the tensors of one being)"):
            nets.assign_being(0, wrong)
    assert all(torch.equal(tensor, before[key]) for key, tensor in nets.state_dict().items())


@both
def test_b16_a_single_network_is_a_live_view(kind):
    nets, x = wide_deep(kind, 3, 5, 7, 3, 2, nn.BatchNorm1d(7)), torch.randn(6, 5)
    single = nets.get_single(1)
    single(x).square().sum().backward()
    for parameter in nets.parameters():
        assert parameter.grad[[0, 2]].abs().sum() == 0
    assert nets.linears[0].weight.grad[1].abs().sum() > 0
    norm = nets.activations[0].function
    assert norm.num_batches_tracked.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="must have shape"):
        single(torch.randn(6, 4))


@both
def test_b17_a_stateful_activation_belongs_to_one_being_and_layer(kind):
    nets = wide_deep(kind, 7, 5, 7, 3, 2, nn.BatchNorm1d(7), nn.Softmax(dim=1))
    x = torch.randn(6, 7, 5)
    members = nets.to_modules()
    expected = torch.stack([member(x[:, i]) for i, member in enumerate(members)], 1)
    torch.testing.assert_close(nets(x), expected, atol=1e-5, rtol=1e-5)


@both
def test_b18_a_batch_for_all_is_never_taken_for_one_input_each(kind):
    layer = wide_linear(kind, 4, 5, 3)
    with pytest.raises(ValueError, match=r"x\[:, None\]"):
        layer(torch.randn(6, 5))
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x[:, None])[:, 2].double(), by_hand(layer, 2, x), atol=1e-6, rtol=1e-6)


@both
def test_b19_autocast_gives_bfloat16_as_nn_linear_does(kind):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert wide_linear(kind)(torch.randn(6, 4, 5)).dtype == torch.bfloat16


@both
@pytest.mark.parametrize("shape", [(5,), (6, 4, 5)])
def test_b20_neither_bias_nor_input_is_repeated(kind, shape):
    layer, x = wide_linear(kind), torch.randn(shape)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        layer(x)
    assert not {event.name for event in profile.events()} & {"aten::repeat", "aten::expand_copy"}


@both
def test_b21_a_population_of_one_is_nn_linear(kind):
    torch.manual_seed(3)
    layer = wide_linear(kind, 1, 6, 4)
    torch.manual_seed(3)
    plain = nn.Linear(6, 4)
    state = plain.state_dict()
    assert list(layer.state_dict()) == list(state)
    assert all(torch.equal(tensor[0], state[key]) for key, tensor in layer.state_dict().items())


@both
def test_b23_each_being_gets_the_gradient_that_it_would_get_alone(kind):
    nets, x, target = wide_deep(kind, 3, 5, 7, 2, 2), torch.randn(6, 1, 5), torch.rand(6, 2)
    members = nets.to_modules()
    per_being(F.mse_loss)(nets(x), target).sum().backward()
    for i, member in enumerate(members):
        F.mse_loss(member(x[:, 0]), target).backward()
        for layer, own in zip(nets.linears, itertools.islice(member, 0, None, 2), strict=True):
            torch.testing.assert_close(layer.weight.grad[i], own.weight.grad)


def test_b22_the_package_says_what_it_is_and_imports_nothing_that_python_dropped():
    about = importlib.metadata.metadata("linnet")
    assert about["License-Expression"] == "MIT" and about["Summary"] not in ("", "UNKNOWN")
    assert "linear layer" in about.get_payload()  # the description is the README
    sources = Path(linnet.__file__).parent.rglob("*.py")
    assert not [path for path in sources if "distutils" in path.read_text()]
