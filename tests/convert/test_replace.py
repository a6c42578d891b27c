import copy

import pytest
import torch
from torch import nn

from linnet import (
    Linear,
    LowRankLinear,
    OrthogonalLinear,
    Pointwise,
    RigL,
    SymmetricLinear,
    bake,
    replace,
    sparsify,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.again = self.encoder[0]

    def forward(self, x):
        return self.head(self.again(self.encoder(x)))


def test_replace_takes_a_pattern_and_keeps_the_rest():
    model = Model()
    head = model.head
    swaps = replace(model, SymmetricLinear, where="encoder.*")
    assert [swap.name for swap in swaps] == ["encoder.0", "encoder.2"]
    assert type(model.encoder[2]) is SymmetricLinear
    assert model.head is head
    assert model.again is model.encoder[0]
    assert model(torch.randn(2, 6)).shape == (2, 3)


def test_replace_reports_how_far_each_matrix_moved():
    model = Model()
    w = model.encoder[0].weight.detach().clone().double()
    swaps = replace(model, "symmetric", where="encoder.0")
    assert swaps[0].moved == pytest.approx(float(((w + w.T) / 2 - w).norm() / w.norm()), rel=1e-6)


def test_replace_keeps_weight_bias_mode_dtype_and_requires_grad():
    model = Model().double().eval()
    model.encoder[2].requires_grad_(False)
    x = torch.randn(4, 6, dtype=torch.float64)
    before = model(x)
    state = torch.get_rng_state()
    swaps = replace(model, Linear)
    assert torch.equal(model(x), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad for p in model.encoder[2].parameters())
    assert not model.head.training
    assert all(swap.moved == 0 for swap in swaps)


def test_replace_can_draw_afresh():
    model = Model()
    swaps = replace(model, "orthogonal", where="encoder.*", from_weights=False, reflectors=3)
    assert all(swap.moved is None for swap in swaps)
    assert model.encoder[0].reflectors == 3


def test_replace_takes_a_function():
    model = Model()
    replace(model, "orthogonal", where=lambda name, module: module.in_features == module.out_features)
    assert type(model.encoder[0]) is OrthogonalLinear and type(model.head) is nn.Linear


def test_a_failed_replace_leaves_the_model_as_it_was():
    model = Model()
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"head .* cannot become OrthogonalLinear: .* must equal out_features"):
        replace(model, "orthogonal")
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_replace_refuses_what_it_cannot_do_well():
    model = Model()
    with pytest.raises(ValueError, match=r"where must match at least one nn.Linear of the model, got 'decoder\.\*'"):
        replace(model, "symmetric", where="decoder.*")
    with pytest.raises(ValueError, match="unknown layer 'symetric'; did you mean 'symmetric'"):
        replace(model, "symetric")
    with pytest.raises(TypeError, match="must be a LinearMap class"):
        replace(model, nn.Bilinear)
    with pytest.raises(TypeError, match=r"encoder\.0 .*foo"):
        replace(model, "symmetric", where="encoder.*", foo=1)
    with pytest.raises(ValueError, match="The model is itself the layer to replace; use the from_linear"):
        replace(nn.Linear(3, 3), "symmetric")


def test_replace_refuses_what_would_be_lost():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match=r"Doubled has its own forward; only x Wᵀ \+ b can be converted"):
        replace(nn.Sequential(Doubled(3, 3)), "orthogonal")
    with pytest.raises(ValueError, match=r"it is parametrized; call .*remove_parametrizations first"):
        replace(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), "orthogonal")
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="it has hooks, which would be lost; remove them first"):
        replace(hooked, "orthogonal")


def test_attention_takes_dense_maps_and_refuses_sparse_ones():
    def encoder():
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    dense = encoder()
    replace(dense, "symmetric", where="*out_proj")
    assert dense(torch.randn(2, 3, 8)).shape == (2, 3, 8)
    with pytest.raises(ValueError, match=r"nn\.MultiheadAttention reads its weight"):
        replace(encoder(), "sparse", sparsity=0.5)
    sparse = encoder()
    replace(sparse, "sparse", where="linear*", sparsity=0.5)
    assert sparse(torch.randn(2, 3, 8)).shape == (2, 3, 8)


def test_replace_refuses_to_untie_a_shared_tensor():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 5)
            self.decoder = nn.Linear(5, 5)
            self.decoder.weight = self.embedding.weight

    model = Tied()
    with pytest.raises(
        ValueError, match=r"embedding\.weight and decoder\.weight are one tensor \(exclude the layer with where="
    ):
        replace(model, "symmetric")
    model.decoder.weight = nn.Parameter(model.decoder.weight.detach().clone())  # what the message says
    assert [swap.name for swap in replace(model, "symmetric")] == ["decoder"]


class Shared(nn.Module):
    """Three linear layers of one weight, the last without a bias of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.b.weight = self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize(
    "layer, options", [("symmetric", {}), ("low-rank", {"rank": 2}), ("sparse", {"sparsity": 0.5})]
)
@pytest.mark.parametrize("from_weights", [True, False])
def test_layers_of_one_weight_stay_tied(layer, options, from_weights):
    model = Shared().double()
    biases = [model.a.bias.detach().clone(), model.b.bias.detach().clone()]
    swaps = replace(model, layer, from_weights=from_weights, **options)
    assert [swap.name for swap in swaps] == ["a", "b", "c"]
    assert len({swap.moved for swap in swaps}) == 1 and (swaps[0].moved is None) is not from_weights
    raw = list(model.a.raw_tensors())
    assert set(dict(model.named_parameters())) == {f"a.{name}" for name in raw} | {"a.bias", "b.bias"}
    if from_weights:
        assert torch.equal(model.a.bias, biases[0]) and torch.equal(model.b.bias, biases[1])
    x = torch.randn(7, 5, dtype=torch.float64)
    for _ in range(3):  # they are tied after steps too, and the gradient is that of all three uses
        w = model.a.weight.to_dense() if layer == "sparse" else model.a.weight
        expected = ((x @ w.mT + model.a.bias) @ w.mT + model.b.bias) @ w.mT
        torch.testing.assert_close(model(x), expected)
        wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        torch.testing.assert_close(found, wanted)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), found, strict=True):
                parameter -= 1e-3 * gradient
    baked = bake(model)
    assert baked.a.weight is baked.b.weight is baked.c.weight and baked.a.bias is not baked.b.bias
    torch.testing.assert_close(baked(x), model(x))


def test_a_tie_is_kept_whole_or_refused():
    model = Shared()
    with pytest.raises(ValueError, match=r"a\.weight and b\.weight and c\.weight are one tensor"):
        replace(model, "symmetric", where="[ab]")
    model.b.bias = model.a.bias
    with pytest.raises(ValueError, match="under dynamic sparse training cannot share its weight; untie"):
        replace(model, "sparse", dynamic=RigL(every=2, until=8))
    assert all(type(layer) is nn.Linear for layer in model.children())
    with pytest.raises(ValueError, match=r"sparsify cannot share a tensor between layers, got b\.weight and c\.weight"):
        sparsify(Shared(), 0.5)
    replace(model, "symmetric")
    assert model.a.bias is model.b.bias  # and a tied bias too
    baked = bake(model)
    assert baked.a.bias is baked.b.bias


def test_a_lazy_layer_becomes_the_map_at_its_first_input():
    model = nn.Sequential(nn.LazyLinear(3, dtype=torch.float64), nn.ReLU(), nn.LazyLinear(3, bias=False)).eval()
    (first, _) = swaps = replace(model, "low-rank", rank=2)
    assert first.moved is None and str(swaps).splitlines()[1].split("  ")[0] == "0"
    lazy = model[0]
    seen = []
    handle = lazy.register_forward_hook(lambda module, args, output: seen.append(output))
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"0 is lazy .*; run one batch first"):
        bake(model)
    with pytest.raises(ValueError, match=r"0 is lazy and must see an input before it loads a state"):
        model.load_state_dict(nn.Sequential(LowRankLinear(7, 3, rank=2)).state_dict(), strict=False)
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.manual_seed(3)
    y = lazy(x)
    torch.manual_seed(3)
    expected = LowRankLinear(7, 3, rank=2, dtype=torch.float64)
    assert model[0] is lazy and type(lazy) is LowRankLinear and not lazy.training
    assert torch.equal(y, expected(x)) and torch.equal(seen[0], y)
    assert list(lazy.state_dict()) == list(expected.state_dict()) and not lazy._forward_pre_hooks
    handle.remove()
    assert torch.equal(lazy(x), y) and len(seen) == 1
    torch.optim.SGD(lazy.parameters(), lr=0.1).step()
    assert type(copied[0]) is not LowRankLinear and copied[0](x).shape == (4, 3) and type(copied[0]) is LowRankLinear
    assert model[2](torch.randn(2, 5)).shape == (2, 3) and model[2].bias is None
    torch.testing.assert_close(bake(lazy)(x), lazy(x))


def test_a_lazy_layer_says_what_it_cannot_be():
    with pytest.raises(TypeError, match=r"0 .* cannot become SymmetricLinear: SymmetricLinear has no option rank"):
        replace(nn.Sequential(nn.LazyLinear(3)), "symmetric", rank=2)
    model = nn.Sequential(nn.LazyLinear(3))
    replace(model, "symmetric")
    with pytest.raises(ValueError, match="must equal out_features"):
        model(torch.randn(2, 4))
    assert model(torch.randn(2, 3)).shape == (2, 3)  # a wrong input does not decide
    hooked = nn.Sequential(nn.LazyLinear(3))
    hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="it has hooks, which would be lost; remove them first"):
        replace(hooked, "symmetric")
    with pytest.raises(ValueError, match="it is lazy and its size is not known yet; run one batch first"):
        replace(nn.Sequential(nn.LazyConv2d(3, 1)), "symmetric", convolutions=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolutions_become_maps_and_are_baked_to_convolutions(dims, bias):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    others = kind(4, 4, 3, padding=1), kind(4, 4, 1, stride=2), kind(4, 4, 1, groups=2), kind(4, 4, 1, padding=1)
    model = nn.Sequential(kind(4, 4, 1, bias=bias), nn.ReLU(), *others).double()
    w = model[0].weight.detach().reshape(4, 4)
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64)
    with pytest.raises(ValueError, match="convolutions=True"):
        replace(model, "symmetric")
    (swap,) = swaps = replace(model, "symmetric", convolutions=True)
    assert (
        swap.name == "0"
        and type(model[0]) is Pointwise
        and f"Conv{dims}d(4, 4)  Pointwise(SymmetricLinear)" in str(swaps)
    )
    assert swap.moved == pytest.approx(float(((w + w.mT) / 2 - w).norm() / w.norm()))
    reference = getattr(nn.functional, f"conv{dims}d")
    kernel = ((w + w.mT) / 2).reshape(4, 4, *[1] * dims)
    torch.testing.assert_close(model[0](x), reference(x, kernel, model[0].layer.bias))
    torch.testing.assert_close(model[0](x[0]), reference(x[0], kernel, model[0].layer.bias))
    baked = bake(model)
    assert type(baked[0]) is kind and next(iter(baked.state_dict())) == "0.weight"
    torch.testing.assert_close(baked(x), model(x), rtol=1e-10, atol=1e-10)
    again = nn.Sequential(Pointwise(SymmetricLinear(4, 4, bias, dtype=torch.float64), dims))
    again.load_state_dict(nn.Sequential(model[0]).state_dict())
    assert torch.equal(again(x), model[0](x))
    assert type(bake(model[0])) is kind


def test_pointwise_keeps_the_memory_format_and_reads_like_a_convolution():
    layer = Pointwise(OrthogonalLinear(3, 3))
    x = torch.randn(2, 3, 4, 5)
    assert layer(x).is_contiguous()
    assert layer(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert "dims=2" in repr(layer) and "OrthogonalLinear" in repr(layer)
    with pytest.raises(ValueError, match=r"must have 3 or 4 axes, .* channels, \*places\), got shape \(3, 4\)"):
        layer(torch.randn(3, 4))
    with pytest.raises(ValueError, match="dims must be"):
        Pointwise(OrthogonalLinear(3, 3), 4)
    with pytest.raises(ValueError, match="must be a single map, got a population of 2"):
        Pointwise(OrthogonalLinear(3, 3, beings=2))
    with pytest.raises(TypeError, match="must be a linear map"):
        Pointwise(nn.Linear(3, 3))


def test_tied_convolutions_stay_tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    replace(model, "symmetric", convolutions=True)
    assert len(list(model.parameters())) == 3
    baked = bake(model)
    assert baked[0].weight is baked[1].weight and baked[0].bias is not baked[1].bias
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(baked(x), model(x))


def test_the_report_prints_as_a_table():
    model = Model()
    swaps = replace(model, "low-rank", rank=1)
    assert isinstance(swaps, list) and len(swaps) == 3
    head, *rows = str(swaps).splitlines()
    assert head.split() == ["name", "from", "to", "moved"]
    assert rows[2].split("  ")[0] == "head" and "Linear(6, 3)" in rows[2] and "LowRankLinear" in rows[2]
    assert float(rows[0].split()[-1]) == pytest.approx(swaps[0].moved, rel=1e-2)


def test_bake_copies_and_keeps_sharing():
    model = Model()
    replace(model, "symmetric", where="encoder.*")
    baked = bake(model)
    assert baked.again is baked.encoder[0]
    with torch.no_grad():
        for parameter in baked.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in model.parameters())
    assert type(bake(SymmetricLinear(3, 3))) is nn.Linear


def test_an_encoder_with_sparse_layers_leaves_torchs_fused_path():
    """In eval mode without gradients the encoder passes the weights of its layers to one fused, dense operation."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    replace(encoder, "sparse", where="*linear*", sparsity=0.5)
    x, padding = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    expected, masked = encoder(x), encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), expected)
        found = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], masked[~padding])
