"""One of the processes of ``linnet train --nproc``: torchrun runs this file, with the folder of the run."""

import os
import sys
from contextlib import nullcontext

import torch.distributed as dist

from linnet.tasks.replicas import Replicas
from linnet.tasks.specs import seeds_of
from linnet.tasks.train import fit, prepare, resumed_settings
from linnet.tasks.watcher import Watcher


def joined() -> Replicas:
    """Meet the other processes, under a name of this attempt's own.

    The store of torchrun outlives an attempt, and in torch 2.13 the addresses of those that died stay in it under the
    names that the new ones look for: who comes first would wait for a dead process.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    replicas = Replicas(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    store = dist.TCPStore(address, port, is_master=False)
    own = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo", store=own, rank=replicas.rank, world_size=replicas.size)
    return replicas


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
    main(sys.argv[1])
