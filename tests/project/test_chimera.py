"""All families in one net: it leaves through every door, and a killed training ends as one that was left alone."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import linnet
from linnet.cli.data.data_sets import load_data
from support.paths import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def chimera(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import chimera

    return chimera


def test_it_learns_and_leaves_through_every_door(chimera, tmp_path):
    data = load_data("digits")
    net = chimera.train("linnet", data, 0, 2e-3, epochs=3).eval()
    assert chimera.accuracy(net, data.val) > 60  # chance is 10
    assert linnet.violation(net) < linnet.tolerance(torch.float32)
    x = data.val.inputs[:7]
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(program(data.val.inputs[:3]), net(data.val.inputs[:3]))
    with pytest.raises(ValueError, match="is a population of 3"):
        linnet.bake(net)
    linnet.save(net, tmp_path / "net.safetensors")
    other = chimera.network("linnet", data.features, data.classes)
    linnet.load(tmp_path / "net.safetensors", into=other)
    assert torch.equal(other.eval()(x), net(x))
    onnxruntime = pytest.importorskip("onnxruntime")
    linnet.to_onnx(net, x, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: data.val.inputs[:5].numpy()})
    torch.testing.assert_close(torch.from_numpy(y), net(data.val.inputs[:5]), rtol=1e-4, atol=1e-4)


def test_one_being_of_it_bakes(chimera):
    data = load_data("digits")
    net = chimera.train("linnet", data, 0, 2e-3, epochs=1).eval()
    x = data.val.inputs[:7]
    for being in range(net[-1].beings):
        baked = linnet.bake(linnet.single(net, being))
        assert not any(isinstance(module, linnet.LinearMap) for module in baked.modules())
        torch.testing.assert_close(baked.eval()(x), net(x)[:, being], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_killed_training_ends_as_one_that_was_left_alone(chimera, tmp_path):
    def start(folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, EXAMPLES / "chimera.py", "train", folder], env=environment)

    assert start(tmp_path / "a").wait(timeout=200) == 0
    kills, child = 0, start(tmp_path / "b")
    while (code := child.poll()) is None or code == -signal.SIGKILL:
        if code is not None:
            child = start(tmp_path / "b")
        time.sleep(1.5 + kills)
        if kills < 4 and child.poll() is None and (tmp_path / "b" / "chimera.safetensors").exists():
            child.kill()
            child.wait()
            kills += 1
    assert kills >= 2 and child.returncode == 0
    a, b = (load_file(tmp_path / name / "chimera.safetensors") for name in "ab")
    for state in (a, b):
        state.pop("rng.numpy.state.key")  # NumPy's generator was not seeded, and not used
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
