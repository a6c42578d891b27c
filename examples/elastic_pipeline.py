"""A network of two stages in two processes, none of which waits for a gradient, on digits; killed ones start again.

    torchrun --nproc-per-node 2 --max-restarts 5 examples/elastic_pipeline.py FOLDER

Each epoch ends with a checkpoint in the folder. When a process dies torchrun ends the others and starts all of them
again, and they go on from there: try ``kill -9``.
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import linnet
from linnet.cli.data.data_sets import load_data
from linnet.cli.torchrun import join

EPOCHS, BATCH, LR = 20, 64, 2e-3


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    join()
    torch.manual_seed(0)
    data = load_data("digits")
    stages = [
        nn.Sequential(nn.Linear(data.features, 128), nn.BatchNorm1d(128), nn.ReLU()),
        nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, data.classes)),
    ]
    source = linnet.Synthetic(context=data.classes)
    pipe = linnet.Pipeline(stages, partial(torch.optim.Adam, lr=LR), F.cross_entropy, gradient=source)
    if (folder / "checkpoint.safetensors").exists():
        pipe.load(folder)
    steps = -(-len(data.train.targets) // BATCH)  # of an epoch
    for epoch in range(pipe.steps // steps, EPOCHS):
        order = torch.randperm(len(data.train.targets), generator=torch.Generator().manual_seed(epoch))
        batches = ((data.train.inputs[rows], data.train.targets[rows]) for rows in order.split(BATCH))
        statistics = pipe.train(batches if pipe.first else None)
        pipe.save(folder)
        if pipe.last:
            print(f"epoch {epoch + 1}: loss {float(statistics['loss']):.4f}", flush=True)
    network = pipe.gather().eval()
    if pipe.first:
        with torch.no_grad():
            right = network(data.test.inputs).argmax(-1) == data.test.targets
        print(f"{pipe.steps} steps, {100 * float(right.double().mean()):.1f} % of the test split", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
