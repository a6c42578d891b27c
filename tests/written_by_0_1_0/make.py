"""How the files in this folder were made, once, by linnet 0.1.0 (commit d3082ed): python make.py.

Later versions must not run it: what it writes must come from 0.1.0. ``expected.json`` holds the SHA-256 of every state
dict as 0.1.0 had it in memory, and the output of each network at one input.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import linnet

HERE = Path(__file__).parent


def digest(state):
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def train(model, optimizer, inputs, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, inputs)).square().mean().backward()
        optimizer.step()


def mixed():
    """Every family in one network that a file can rebuild."""
    torch.manual_seed(0)
    return nn.Sequential(
        linnet.OrthogonalLinear(8, 8),
        linnet.SparseLinear(8, 12, sparsity=0.5, dynamic=linnet.RigL(every=2, until=100)),
        linnet.KWinners(12),
        linnet.Residual(linnet.SVDLinear(12, 12)),
        linnet.Spread(),
        linnet.MLP(12, 6, 3, depth=3, beings=2, layer="symmetric"),
    )


def decoupled():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return linnet.DNI(net, gradient=linnet.Synthetic(context=3))


def population():
    torch.manual_seed(0)
    return linnet.WideDeep(3, 5, 4, 2, 2)


def sharded(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), linnet.OrthogonalLinear(7, 7))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    train(net, optimizer, 5)
    linnet.save_sharded(net, HERE / "sharded", optimizer=optimizer, step=3)
    whole = {
        key: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for key, tensor in net.state_dict().items()
    }
    if rank == 0:
        Path(folder, "digest").write_text(digest(whole))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def command(*arguments, stop=None):
    """Run the command line; with ``stop`` until that file is there, then kill -9."""
    process = subprocess.Popen([sys.executable, "-m", "linnet", *arguments], cwd=HERE)
    if stop is not None:
        while process.poll() is None and not stop():
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    process.wait()


def main():
    if linnet.__version__ != "0.1.0":
        sys.exit(f"these files must come from linnet 0.1.0, this is {linnet.__version__}")
    torch.set_num_threads(1)
    expected = {}

    model = mixed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 8)
    linnet.save(model, HERE / "mixed.safetensors", optimizer=optimizer, step=3)
    model.eval()
    x = torch.linspace(-1, 1, 8)
    expected["mixed"] = {"state": digest(model.state_dict()), "output": model(x).tolist()}

    sparse = nn.Sequential(linnet.SparseLinear(8, 12, sparsity=0.5), nn.ReLU(), linnet.SparseLinear(12, 3))
    sparse.eval()
    dim = torch.export.Dim("batch", min=2)
    program = torch.export.export(sparse, (torch.randn(4, 8),), dynamic_shapes=({0: dim},))
    torch.export.save(program, HERE / "sparse.pt2")
    two = torch.linspace(-1, 1, 16).view(2, 8)
    expected["sparse"] = {"state": digest(sparse.state_dict()), "output": sparse(two).tolist()}

    net = decoupled()
    optimizer = torch.optim.SGD(net.network.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(3):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        optimizer.zero_grad()
        with net.context(y):
            output = net(x)
        nn.functional.cross_entropy(output, y).backward()
        optimizer.step()
    linnet.save(net, HERE / "dni.safetensors", optimizer=optimizer, step=3)
    expected["dni"] = {"state": digest(net.state_dict())}

    beings = population()
    optimizer = linnet.WideAdam(beings.parameters(), 3, lr=torch.tensor([1e-3, 1e-2, 1e-1]))
    train(nn.Sequential(linnet.Spread(), beings), optimizer, 5)
    linnet.save(beings, HERE / "wide.safetensors", optimizer=optimizer, step=3)
    expected["wide"] = {"state": digest(beings.state_dict()), "output": beings(torch.linspace(-1, 1, 5)[None]).tolist()}

    mp.start_processes(sharded, (str(HERE),), nprocs=2, start_method="spawn")
    expected["sharded"] = {"state": (HERE / "digest").read_text()}
    for name in ("meet", "digest"):
        (HERE / name).unlink(missing_ok=True)

    small = ["--hidden", "8", "--depth", "3", "--seeds", "1", "--layer", "linear", "--layer", "orthogonal"]
    command("train", *small, "--epochs", "1", "--out", "train")
    nets = HERE / "train_killed" / "nets"
    command(
        *("train", *small, "--epochs", "60", "--out", "train_killed"),
        stop=lambda: len(list(nets.glob("01-*.safetensors"))) == 1,
    )
    command(*"evolve --beings 8 --elites 2 --block 8 --generations 2 --hidden 4 --episodes 1 --out evolve".split())
    command(*"task copy --hidden 4 --steps 20 --window 3 --decouple dni --out task".split())
    for folder in ("train", "train_killed", "evolve", "task"):
        for path in (HERE / folder).rglob("*"):
            if path.suffix in (".png", ".html") or path.suffix == ".tmp":
                path.unlink()

    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(HERE / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
