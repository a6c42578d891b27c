"""WideLinear, WideDeep and per_being against loops over ordinary modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from linnet import Linear, WideDeep, WideLinear, catalogue, per_being
from linnet.core import affine


def test_wide_linear_is_the_loop_over_its_linears():
    wide = WideLinear(4, 5, 3)
    members = wide.to_linears()
    x = torch.randn(7, 4, 5)
    expected = torch.stack([member(x[:, i]) for i, member in enumerate(members)], 1)
    torch.testing.assert_close(wide(x), expected)
    torch.testing.assert_close(wide(x[0, 0]), torch.stack([member(x[0, 0]) for member in members]))
    torch.testing.assert_close(wide(x[0]), expected[0])


def test_wide_linear_is_no_catalogue_entry_and_has_the_arguments_of_widelinears():
    assert WideLinear not in catalogue().values()
    wide = WideLinear(beings=4, input_size=5, output_size=3)
    assert wide.weight.shape == (4, 3, 5)
    assert "beings=4, input_size=5, output_size=3" in repr(wide)
    assert "catalogue" not in repr(wide)


def test_wide_linear_comes_from_linears():
    members = [nn.Linear(5, 3) for _ in range(4)]
    wide = WideLinear.from_linears(members)
    assert type(wide) is WideLinear
    for i, member in enumerate(members):
        assert torch.equal(wide.weight[i], member.weight)
    assert WideLinear.from_linear(members[0]).beings == 1


def test_being_is_drawn_as_nn_linear_is():
    wide = WideLinear(3, 6, 4)
    wide.reset_parameters(seeds=[11, 12, 13])
    torch.manual_seed(12)
    assert torch.equal(wide.weight[1], nn.Linear(6, 4).weight)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_depth_counts_linear_layers(depth):
    nets = WideDeep(2, 5, 7, depth, 3)
    sizes = [(layer.in_features, layer.out_features) for layer in nets.linears]
    assert len(sizes) == depth
    assert sizes[0][0] == 5 and sizes[-1][1] == 3
    assert nets(torch.randn(4, 2, 5)).shape == (4, 2, 3)


@pytest.mark.parametrize("depth", [0, -2, 1.5, True])
def test_depth_below_one_is_refused(depth):
    with pytest.raises(ValueError, match="depth must be a positive integer"):
        WideDeep(2, 5, 7, depth, 3)


@pytest.mark.parametrize("shape", [(), (4,), (3, 5), (2, 4), (6, 3, 5), (5, 2)])
def test_every_other_shape_is_refused(shape):
    with pytest.raises(ValueError, match="The input of a population"):
        WideDeep(2, 5, 7, 2, 3)(torch.zeros(shape))


def test_defaults_are_relu_and_sigmoid():
    nets = WideDeep(2, 5, 7, 2, 3)
    x = torch.randn(4, 2, 5)
    first, last = nets.linears
    torch.testing.assert_close(nets(x), torch.sigmoid(last(torch.relu(first(x)))))
    plain = WideDeep(2, 5, 7, 2, 3, final_nl=nn.Identity())
    assert (plain(x) < 0).any()


def ordinary(nets: WideDeep, i: int, activation: nn.Module | None, final: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place, layer in enumerate(nets.linears):
        layers += [layer.to_linears()[i], copy.deepcopy(final if place == len(nets.linears) - 1 else activation)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "activation",
    [
        nn.PReLU(init=0.3),
        nn.PReLU(7, init=0.3),
        nn.BatchNorm1d(7),
        nn.LayerNorm(7),
        nn.Softmax(dim=1),
        nn.Softmax(dim=-1),
        nn.Sequential(nn.LayerNorm(7), nn.Tanh()),
    ],
    ids=str,
)
def test_activations_do_not_mix_beings(activation):
    torch.manual_seed(0)
    nets = WideDeep(3, 5, 7, 3, 2, non_linear=activation, final_nl=nn.Identity())
    members = [ordinary(nets, i, activation, nn.Identity()) for i in range(3)]
    x = torch.randn(6, 3, 5)
    outputs = nets(x)
    expected = torch.stack([member(x[:, i]) for i, member in enumerate(members)], 1)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for i, member in enumerate(members):
        torch.testing.assert_close(nets.linears[0].weight.grad[i], member[0].weight.grad, atol=1e-4, rtol=1e-4)


def test_a_stateful_activation_is_learned_by_each_being_and_layer():
    nets = WideDeep(3, 5, 7, 3, 2, non_linear=nn.PReLU(7))
    assert [tuple(p.shape) for p in nets.activations.parameters()] == [(3, 7), (3, 7)]
    nets(torch.randn(4, 3, 5))[:, 1].sum().backward()
    for parameter in nets.activations.parameters():
        assert parameter.grad[1].abs().sum() > 0
        assert parameter.grad[[0, 2]].abs().sum() == 0


def test_a_plain_function_sees_one_being_at_a_time():
    nets = WideDeep(3, 5, 7, 2, 2, non_linear=lambda h: h - h.mean(0), final_nl=nn.Identity())
    x = torch.randn(6, 3, 5)
    hidden = nets.linears[0](x)
    torch.testing.assert_close(nets(x), nets.linears[1](hidden - hidden.mean(0)))


def test_clone_being_copies_the_whole_network():
    nets = WideDeep(4, 5, 7, 3, 2, non_linear=nn.BatchNorm1d(7))
    nets(torch.randn(6, 4, 5))
    nets.clone_being(1, 3)
    nets.eval()
    y = nets(torch.randn(6, 1, 5))
    assert all(torch.equal(tensor[1], tensor[3]) for tensor in nets.state_dict().values() if tensor.dim() > 0)
    torch.testing.assert_close(y[:, 1], y[:, 3])  # the last of a row may be computed another way than the first
    assert not torch.allclose(y[:, 1], y[:, 2])


def test_clone_being_swaps_at_once():
    nets = WideDeep(2, 5, 7, 2, 2)
    before = nets(torch.ones(5)).detach()
    nets.clone_being([0, 1], [1, 0])
    torch.testing.assert_close(nets(torch.ones(5)), before.flip(0))


def test_losses_are_those_of_each_net_alone():
    wide = Linear(5, 3, beings=4)
    x, target = torch.randn(8, 1, 5), torch.randint(3, (8,))
    losses = per_being(F.cross_entropy)(wide(x), target)
    assert losses.shape == (4,)
    losses.sum().backward()
    for i, member in enumerate(wide.to_linears()):
        loss = F.cross_entropy(member(x[:, 0]), target)
        loss.backward()
        torch.testing.assert_close(losses[i], loss)
        torch.testing.assert_close(wide.weight.grad[i], member.weight.grad)


def test_each_being_can_have_its_own_target():
    outputs, targets = torch.randn(8, 4, 3), torch.randn(8, 4, 3)
    losses = per_being(F.mse_loss, shared_target=False)(outputs, targets)
    torch.testing.assert_close(losses, (outputs - targets).square().mean((0, 2)))
    with pytest.raises(ValueError, match=r"A target that is not shared must have \(batch, beings\) = "):
        per_being(F.mse_loss, shared_target=False)(outputs, targets[:, 0])


def test_a_broken_being_does_not_touch_its_neighbours():
    nets = WideDeep(3, 5, 7, 2, 2)
    with torch.no_grad():
        nets.linears[0].weight[1] = float("nan")
    per_being(F.mse_loss)(nets(torch.randn(6, 3, 5)), torch.zeros(6, 2)).sum().backward()
    for layer in nets.linears:
        assert torch.isfinite(layer.weight.grad[[0, 2]]).all()
        assert not torch.isfinite(layer.weight.grad[1]).all()


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_product_by_hand_is_the_reference_and_has_its_gradients(batch, bias):
    """Also the gradients of gradients, and gradients of some of the inputs alone."""
    x, weight, b = torch.randn(3, batch, 60), torch.randn(3, 50, 60), torch.randn(3, 50) if bias else None
    assert weight.numel() >= affine.LARGE
    for wanted in ((True, True, True), (False, True, False), (True, False, True)):
        inputs = [
            None if tensor is None else tensor.double().requires_grad_(wants)
            for tensor, wants in zip((x, weight, b), wanted, strict=True)
        ]
        y, expected = affine.product(*inputs), affine.product_reference(*inputs)
        torch.testing.assert_close(y, expected)
        learned = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        found, right = (
            torch.autograd.grad((out.sin() * out).sum(), learned, create_graph=True) for out in (y, expected)
        )
        torch.testing.assert_close(found, right)
        twice = [
            torch.autograd.grad(sum(g.square().sum() for g in first), learned, allow_unused=True)
            for first in (found, right)
        ]
        torch.testing.assert_close(*twice)
