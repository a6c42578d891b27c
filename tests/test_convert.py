import copy

import pytest
import torch
from torch import nn

from linnet import Linear, LinearMap, OrthogonalLinear, Spread, SymmetricLinear, bake, catalogue, replace


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
    with pytest.raises(ValueError, match="matches none"):
        replace(model, "symmetric", where="decoder.*")
    with pytest.raises(ValueError, match="did you mean symmetric"):
        replace(model, "symetric")
    with pytest.raises(TypeError, match="must be a LinearMap class"):
        replace(model, nn.Bilinear)
    with pytest.raises(TypeError, match=r"encoder\.0 .*foo"):
        replace(model, "symmetric", where="encoder.*", foo=1)
    with pytest.raises(ValueError, match="the model is itself the layer"):
        replace(nn.Linear(3, 3), "symmetric")
    with pytest.raises(ValueError, match="lazy"):
        replace(nn.Sequential(nn.LazyLinear(3)), "symmetric")


def test_replace_refuses_what_would_be_lost():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        replace(nn.Sequential(Doubled(3, 3)), "orthogonal")
    with pytest.raises(ValueError, match="they are parametrized"):
        replace(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), "orthogonal")
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="it has some, which would be lost"):
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

    with pytest.raises(ValueError, match=r"embedding\.weight and decoder\.weight are one tensor"):
        replace(Tied(), "symmetric")


@pytest.mark.parametrize("layer", list(catalogue()))
@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_bake_gives_plain_linears_with_equal_outputs(layer, dtype, close):
    model = nn.Sequential(catalogue()[layer](6, 6, dtype=dtype), nn.Tanh(), nn.Linear(6, 2, dtype=dtype)).eval()
    baked = bake(model)
    x = torch.randn(4, 6, dtype=dtype)
    torch.testing.assert_close(baked(x), model(x), atol=close, rtol=close)
    assert type(baked[0]) is nn.Linear
    assert not any(isinstance(m, LinearMap) for m in baked.modules())


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


def test_an_encoder_with_sparse_layers_leaves_torchs_fused_path():
    """In eval mode without gradient the encoder hands the weights of its layers to one fused, dense operation."""
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
