"""What linnet 0.1.0 wrote, in ``tests/written_by_0_1_0``, loads bit for bit; its make.py says how it was made."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import linnet
from linnet.cli import main

FILES = Path(__file__).parents[1] / "written_by_0_1_0"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


def digest(state):
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names: as in make.py."""
    found = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def saved_moments(path):
    """The tensors of the optimizer as they stand in the file."""
    return {key: tensor for key, tensor in load_file(path).items() if not key.startswith(("model.", "rng."))}


def run(*arguments):
    """The exit status of the command line."""
    return main([str(argument) for argument in arguments])


def test_the_digest_notices_one_bit():
    state = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.int32)}
    before = digest(state)
    state["a"][1] = -0.0
    assert digest(state) != before


def test_a_network_of_every_family_is_rebuilt_with_its_optimizer():
    network = linnet.load(FILES / "mixed.safetensors").network.eval()
    assert digest(network.state_dict()) == EXPECTED["mixed"]["state"]
    output = network(torch.linspace(-1, 1, 8))
    torch.testing.assert_close(output, torch.tensor(EXPECTED["mixed"]["output"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    linnet.load(FILES / "mixed.safetensors", into=network, optimizer=optimizer)
    moments = [value for state in optimizer.state.values() for value in state.values()]
    saved = saved_moments(FILES / "mixed.safetensors")
    for value in moments:
        assert any(value.shape == other.shape and torch.equal(value, other) for other in saved.values())
    assert sum(value.numel() for value in moments) == sum(value.numel() for value in saved.values())


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch 2.10 reading its own file
def test_an_exported_sparse_program_runs():
    program = torch.export.load(FILES / "sparse.pt2").module()
    state = {key: tensor for key, tensor in program.state_dict().items() if "." in key}
    assert digest(state) == EXPECTED["sparse"]["state"]
    output = program(torch.linspace(-1, 1, 16).view(2, 8))
    torch.testing.assert_close(output, torch.tensor(EXPECTED["sparse"]["output"]))


def test_a_dni_loads_with_its_synthesizers():
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net = linnet.DNI(network, gradient=linnet.Synthetic(context=3))
    linnet.load(FILES / "dni.safetensors", into=net, optimizer=torch.optim.SGD(network.parameters(), lr=0.1))
    assert digest(net.state_dict()) == EXPECTED["dni"]["state"]


def test_an_optimizer_of_populations_loads_although_its_module_moved():
    population = linnet.WideDeep(3, 5, 4, 2, 2)
    optimizer = linnet.WideAdam(population.parameters(), 3, lr=1.0)
    found = linnet.load(FILES / "wide.safetensors", into=population, optimizer=optimizer)
    assert digest(population.state_dict()) == EXPECTED["wide"]["state"] and found.step == 3
    output = population(torch.linspace(-1, 1, 5)[None])
    torch.testing.assert_close(output, torch.tensor(EXPECTED["wide"]["output"]))
    torch.testing.assert_close(
        optimizer.param_groups[0]["lr"].flatten(), torch.tensor([1e-3, 1e-2, 1e-1]), check_dtype=False
    )
    assert optimizer.state[next(population.parameters())]


def test_a_sharded_checkpoint_of_two_processes_loads_in_one():
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), linnet.OrthogonalLinear(7, 7))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    found = linnet.load_sharded(FILES / "sharded", into=net, optimizer=optimizer, rng=False)
    assert digest(net.state_dict()) == EXPECTED["sharded"]["state"] and found.step == 3
    assert len(optimizer.state) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["train", "train_killed"])
def test_a_training_goes_on(tmp_path, name, threads_back, few_rounds, undrawn):
    out = tmp_path / name
    shutil.copytree(FILES / name, out)
    before = load_file(out / "nets" / "00-linear-seed0.safetensors")
    assert run("train", "--resume", "--out", out) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [layer["layer"] for layer in results["layers"]] == ["linear", "orthogonal"]
    after = load_file(out / "nets" / "00-linear-seed0.safetensors")  # it had ended, and stays as it was
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    if name == "train":
        former = json.loads((FILES / name / "results.json").read_text(encoding="utf-8"))
        for old, new in zip(former["layers"], results["layers"], strict=True):
            assert old["test_accuracy"] == new["test_accuracy"]


def test_an_evolution_goes_on(tmp_path, threads_back):
    out = tmp_path / "evolve"
    shutil.copytree(FILES / "evolve", out)
    before = (out / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert run("evolve", "--resume", "--out", out, "--generations", 3) == 0
    after = (out / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert after[: len(before) - 1] == before[:-1] and len(after) == len(before) + 1
    with safe_open(FILES / "evolve" / "best.safetensors", "pt") as file:
        policy = linnet.load(FILES / "evolve" / "best.safetensors").network
        for key, value in policy.state_dict().items():
            assert torch.equal(value, file.get_tensor(f"model.{key}"))


def test_a_task_goes_on(tmp_path, threads_back):
    out = tmp_path / "task"
    shutil.copytree(FILES / "task", out)
    before = load_file(out / "seed0.safetensors")
    assert run("task", "--resume", "--out", out) == 0  # it had ended
    after = load_file(out / "seed0.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert run("task", "--resume", "--out", out, "--steps", 22) == 0
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["seeds"][0]["step"] == 22
