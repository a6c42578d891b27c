"""Models of timm and transformers, built from a configuration without downloads, and the tools that look for nn.Linear.

Needs the extra ``models``, which ``make test-all`` installs.
"""

import copy
import tempfile
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from linnet import LinearMap, Pointwise, bake, replace

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def package(name):
    """The package, or a skip; deprecation warnings of the package itself are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def vision_transformer():
    timm = package("timm")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )


def bert():
    transformers = package("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config)


def output(model, x):
    found = model(x)
    return found if isinstance(found, torch.Tensor) else found.last_hidden_state


CASES = {
    "vit": (vision_transformer, lambda dtype: torch.randn(2, 3, 16, 16, dtype=dtype)),
    "bert": (bert, lambda dtype: torch.randint(50, (2, 7))),
}
KINDS = {
    "vit": [("orthogonal", "*attn.proj", {}), ("low-rank", "*mlp.fc1", {"rank": 4}), ("sparse", "*mlp.fc2", {})],
    "bert": [
        ("orthogonal", "*attention.output.dense", {}),
        ("low-rank", "*intermediate.dense", {"rank": 4}),
        ("sparse", "encoder.layer.?.output.dense", {}),
    ],
}


def replaced(name, dtype=torch.float32):
    """A model with layers of three classes after one training step, its input, and the number of replaced layers."""
    make, draw = CASES[name]
    torch.manual_seed(0)
    model, x = make().to(dtype), draw(dtype)
    swaps = [swap for kind, where, options in KINDS[name] for swap in replace(model, kind, where, **options)]
    assert len(swaps) == 6 and all(isinstance(swap.layer, LinearMap) for swap in swaps)
    raw = [parameter.detach().clone() for swap in swaps for parameter in swap.layer.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    output(model, x).square().mean().backward()
    optimizer.step()
    after = [parameter for swap in swaps for parameter in swap.layer.parameters()]
    assert sum(bool((old != new).any()) for old, new in zip(raw, after, strict=True)) > len(raw) / 2
    return model.eval(), x


@pytest.fixture(autouse=True)
def quiet(torchvision):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(CASES))
def test_bake_of_a_real_model_has_equal_outputs(name, dtype):
    model, x = replaced(name, dtype)
    baked = bake(model)
    expected = output(model, x)
    torch.testing.assert_close(output(baked, x), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert not any(type(module).__module__.startswith("linnet") for module in baked.modules())
    fresh = CASES[name][0]().to(dtype).eval()  # its state fits the model as it is without linnet
    fresh.load_state_dict(baked.state_dict())
    torch.testing.assert_close(output(fresh, x), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", list(CASES))
def test_torchao_quantizes_a_baked_model(name):
    quantization = package("torchao.quantization")
    model, x = replaced(name)
    baked = bake(model)
    quantization.quantize_(baked, quantization.Int8WeightOnlyConfig())
    plain = [module for module in baked.modules() if isinstance(module, nn.Linear)]
    assert len(plain) >= 9 and all(type(module.weight) is not nn.Parameter for module in plain)
    expected = output(model, x)
    with torch.no_grad():
        error = (output(baked, x) - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("name, targets", [("vit", ["proj", "fc1", "fc2"]), ("bert", ["query", "dense"])])
def test_peft_adapts_a_baked_model(name, targets):
    peft = package("peft")
    model, x = replaced(name)
    before = output(model, x).detach()
    targets = {n for n, m in bake(model).named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] in targets}
    adapted = peft.get_peft_model(bake(model), peft.LoraConfig(r=2, target_modules=sorted(targets)))
    found = [n for n, m in adapted.named_modules() if hasattr(m, "lora_A")]
    assert len(found) == len(targets) >= 6
    torch.testing.assert_close(output(adapted.base_model.model, x), before, atol=1e-5, rtol=1e-5)  # B starts at 0
    learning = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1.0)
    output(adapted.base_model.model, x)[0].square().mean().backward()
    optimizer.step()
    assert not torch.equal(output(adapted.base_model.model, x), before)


@contextmanager
def one_process():
    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        try:
            yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        finally:
            torch.distributed.destroy_process_group()


def test_tensor_parallel_plans_take_a_baked_model():
    parallel = package("torch.distributed.tensor.parallel")
    model, x = replaced("vit")
    baked = bake(model)
    plan = {
        f"blocks.{i}.mlp.{layer}": style()
        for i in range(2)
        for layer, style in (("fc1", parallel.ColwiseParallel), ("fc2", parallel.RowwiseParallel))
    }
    with one_process() as mesh:
        sharded = parallel.parallelize_module(baked, mesh, plan)
        torch.testing.assert_close(sharded(x), model(x), atol=1e-5, rtol=1e-5)
        placed = torch.distributed.tensor.DTensor
        assert all(isinstance(sharded.get_submodule(name).weight, placed) for name in plan)


def test_the_decoder_that_is_tied_to_the_embedding_is_named():
    transformers = package("transformers")
    config = copy.deepcopy(bert().config)
    model = transformers.BertForMaskedLM(config).eval()
    with pytest.raises(ValueError, match=r"embeddings\.weight and cls\.predictions\.decoder\.weight .*where="):
        replace(model, "low-rank", rank=2)
    swaps = replace(model, "low-rank", where=lambda name, module: "decoder" not in name, rank=2)
    assert len(swaps) == 13 and type(model.cls.predictions.decoder) is nn.Linear
    x = torch.randint(50, (2, 7))
    baked = bake(model)
    assert baked.cls.predictions.decoder.weight is baked.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(baked(x).logits, model(x).logits, atol=1e-5, rtol=1e-5)


def test_the_pointwise_convolutions_of_a_real_network():
    timm = package("timm")
    torch.manual_seed(0)
    model = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=3, channels=(4, 4, 8, 8))
    model = model.double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    swaps = replace(model, "low-rank", where="layer*", convolutions=True, rank=2)
    assert len(swaps) >= 8 and all(isinstance(swap.layer, Pointwise) for swap in swaps)
    baked = bake(model)
    torch.testing.assert_close(baked(x), model(x), atol=1e-10, rtol=1e-10)
    assert not any(isinstance(module, Pointwise) for module in baked.modules())
