"""One of the processes of ``linnet train --nproc``: torchrun runs this file, with the folder of the run."""

import sys
from contextlib import nullcontext

import torch.distributed as dist

from linnet.cli.torchrun import joined, stoppable
from linnet.cli.train.settings import seeds_of
from linnet.cli.train.training import fit, prepare, resumed_settings
from linnet.cli.train.watcher import Watcher


def main(out: str) -> None:
    replicas = joined()
    run = prepare(resumed_settings(out), out, resume=True)
    dist.barrier()  # nobody saves while somebody still clears what a killed save has left
    with Watcher(run.settings) if replicas.first else nullcontext() as watcher:
        for spec in run.specs:
            for seed in seeds_of(run.settings):
                fit(run, spec, seed, watcher, replicas)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with stoppable():
        main(sys.argv[1])
