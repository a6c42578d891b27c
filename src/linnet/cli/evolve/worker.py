"""One of the processes of ``linnet evolve --nproc``: torchrun runs this file, with the folder and the settings."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from linnet.cli.evolve.evolution import EvolveSettings, found
from linnet.cli.evolve.report import watching
from linnet.cli.run_folder import clear_left_overs
from linnet.cli.torchrun import joined, stoppable
from linnet.evolve import Shards


def main(out: str, settings: EvolveSettings) -> None:
    if joined().first:
        clear_left_overs(Path(out))  # of an attempt that died in its first generation
    begun = (Path(out) / "state.safetensors").exists()
    dist.barrier()  # nobody saves while somebody still looks
    evolution = found(settings, out, resume=begun, shards=Shards(settings.beings, settings.block))
    with watching(evolution) as watch:
        evolution.run(watch)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with stoppable():
        main(sys.argv[1], EvolveSettings(**json.loads(sys.argv[2])))
