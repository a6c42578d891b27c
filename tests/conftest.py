"""One thread for each process: the suite runs in two, and most tensors are tiny."""

import importlib.util
import os
import warnings

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)

collect_ignore = ["support", "written_by_0_1_0"]  # no tests; as doctests they would be imported under a second name


@pytest.fixture
def threads_back():
    """A command sets the number of torch's threads for the process: give it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_rounds(monkeypatch, threads_back):
    """`linnet train` times few steps."""
    from linnet.cli.train import cost as measure

    monkeypatch.setattr(measure, "_ROUNDS", (2, 2))


@pytest.fixture
def undrawn(monkeypatch):
    """`linnet train` draws nothing: what is drawn has its own test."""
    from linnet.cli.train import pictures

    monkeypatch.setattr(pictures, "draw", lambda run, fits: [])


@pytest.fixture(scope="session")
def torchvision():
    """PyPI's torchvision is built for torch with CUDA: beside torch for CPUs its Python half works, which will do."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    library = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            importlib.import_module("torchvision")
    return library  # which takes the operators along when it goes
