"""Checks that a layer can be traced: torch.compile, torch.export, ONNX."""

import tempfile
from pathlib import Path

import torch

from linnet.testing.case import BATCH, Case, check, close, expect, gradient, train


@check
def check_compile(case: Case) -> None:
    """torch.compile(fullgraph=True) gives the values and gradients of eager mode."""
    layer, x = train(case, case.layer()), case.input().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    eager = {name: gradient(name, parameter) for name, parameter in [*layer.named_parameters(), ("the input", x)]}
    layer.zero_grad()
    x.grad = None
    torch.compiler.reset()
    try:
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        close("compiled forward", compiled, y)
        compiled.square().sum().backward()
    finally:
        torch.compiler.reset()
    for name, tensor in [*layer.named_parameters(), ("the input", x)]:
        close(f"compiled gradient of {name}", gradient(name, tensor), eager[name])


@check
def check_export(case: Case) -> None:
    """torch.export with a dynamic batch gives the same function at other batch sizes."""
    layer, x = train(case, case.layer()), case.input()
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
    for size in (2, BATCH, 3 * BATCH + 1):
        x = case.randn(size, *case.leading, case.in_features, seed=size)
        close(f"exported forward of batch {size}", program(x), layer(x))


@check
def check_onnx(case: Case) -> None:
    """``linnet.to_onnx`` writes a file that onnxruntime runs at several batch sizes; needs the ``export`` extra."""
    import onnxruntime

    from linnet.convert.onnx import to_onnx

    layer = train(case, case.layer())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        to_onnx(layer, case.input(), path)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (name,) = [node.name for node in session.get_inputs()]
    for size in (1, BATCH, 3 * BATCH + 1):
        x = case.randn(size, *case.leading, case.in_features, seed=size)
        (y,) = session.run(None, {name: x.cpu().numpy()})
        expect(y.dtype == x.cpu().numpy().dtype, f"onnxruntime gives {y.dtype}")
        close(f"onnxruntime's output for batch {size}", torch.from_numpy(y), layer(x), rtol=1e-4)
