"""One thread for each process: the suite runs in two, and most tensors are tiny."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def threads_back():
    """A command sets the number of torch's threads for the process: give it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_rounds(monkeypatch, threads_back):
    """`linnet train` times few steps."""
    from linnet.tasks import measure

    monkeypatch.setattr(measure, "_ROUNDS", (2, 2))


@pytest.fixture
def undrawn(monkeypatch):
    """`linnet train` draws nothing: what is drawn has its own test."""
    from linnet.tasks import pictures

    monkeypatch.setattr(pictures, "draw", lambda run, fits: [])
