"""One worker of a run on several processes: torchrun runs this file, with a module and the folder of the run."""

import importlib
import sys

import torch.distributed as dist

from linnet.cli.torchrun import exit_quietly, join


def main(module: str, out: str) -> None:
    """Join the process group and do this worker's part of the run in ``out``."""
    workers = join()
    importlib.import_module(module).work(out, workers)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with exit_quietly():
        main(*sys.argv[1:])
