"""One thread for each process: the suite runs in two, and most tensors are tiny."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import torch

torch.set_num_threads(1)
