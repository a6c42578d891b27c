"""Two processes, a stage in each, beside one process with the same cut: test error, staleness, time spent waiting.

    torchrun --nproc-per-node 2 examples/pipeline.py fashion-mnist --data-dir FOLDER --results pipeline.jsonl

Four hidden layers of 256 units with batch norm, two in each stage, batches of 256, 1500 steps of Adam, a linear
synthesizer by least squares that knows the label; gradients come back for every batch, for one in ten, or (the control)
the same network is trained in one process (linnet.DNI). What came out is in pipeline.md.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from linnet import DNI, LeastSquaresSynthesizer, Pipeline, Synthetic
from linnet.cli.data.data_sets import Data, load_data

WIDTH, BATCH, STEPS = 256, 256, 1500
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


def source(data: Data) -> Synthetic:
    return Synthetic(LeastSquaresSynthesizer, context=data.classes)


def stages(features: int, classes: int, seed: int) -> list[nn.Module]:
    torch.manual_seed(seed)

    def block(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]

    return [
        nn.Sequential(*block(features), *block(WIDTH)),
        nn.Sequential(*block(WIDTH), *block(WIDTH), nn.Linear(WIDTH, classes)),
    ]


def batches(data: Data, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(len(data.train.targets), (BATCH,), generator=order)
        yield data.train.inputs[rows], data.train.targets[rows]


@torch.no_grad()
def error(net: nn.Module, data: Data) -> float:
    """On the test images, in percent."""
    net.eval()
    return 100 * float((net(data.test.inputs).argmax(1) != data.test.targets).double().mean())


def alone(data: Data, seed: int) -> float:
    """One process, one cut."""
    net = nn.Sequential(*stages(data.features, data.classes, seed))
    optimizer = ADAM(net.parameters())
    model = DNI(net, optimizer, at=["0"], gradient=source(data))
    for x, y in batches(data, seed):
        optimizer.zero_grad()
        with model.context(y):
            output = model(x)
        F.cross_entropy(output, y).backward()
        optimizer.step()
    return error(net, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist", "fashion-mnist"])
    parser.add_argument("--data-dir", help="folder with the IDX files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--feedback", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--results", type=Path, default=Path("pipeline.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    data = load_data(options.data, options.data_dir)

    def tell(**line: object) -> None:
        if dist.get_rank() == 0:
            print(json.dumps(line), flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(line) + "\n")

    for seed in options.seeds:
        for feedback in options.feedback:
            parts = stages(data.features, data.classes, seed)
            pipe = Pipeline(
                parts,
                ADAM,
                F.cross_entropy,
                gradient=source(data),
                queue=4,
                feedback=feedback,
                timeout=120,
            )
            found = pipe.train(batches(data, seed) if pipe.first else None)
            tell(
                data=data.name,
                seed=seed,
                feedback=feedback,
                error=error(pipe.gather(), data),
                staleness=found["staleness"].tolist(),
                waited_for_room=float(found["waited_for_room"]),
            )
        if dist.get_rank() == 0:
            tell(data=data.name, seed=seed, feedback=None, error=alone(data, seed))
        dist.monitored_barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
