"""Checkpoints: exact, atomic, checked before anything changes, and nothing in them is ever executed."""

import copy
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

import linnet
from linnet import Linear, OrthogonalLinear
from linnet.checkpoint import info, load, replacing, save
from support.signing import parts, signed, signed_text, text_of


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), OrthogonalLinear(8, 8), nn.Tanh(), Linear(8, 3))


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def sign(path, description, tensors=None):
    path.write_bytes(signed(description, tensors or {}))


def description_of(path):
    return parts(path.read_bytes())


# ---------------------------------------------------------------------- what comes back


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd-plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3, max_iter=2),
}
SCHEDULERS = {
    "none": lambda o: None,
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=20),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [3]
    ),
}


def train(model, optimizer, scheduler, steps):
    """Steps that use all three random generators."""
    for _ in range(steps):
        x = torch.randn(6, 5) + random.random() + torch.from_numpy(np.random.rand(5).astype(np.float32))
        target = torch.randint(3, (6,))

        def closure(x=x, target=target):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.item())
        elif scheduler is not None:
            scheduler.step()


PAIRS = [(o, "none") for o in OPTIMIZERS] + [("sgd", s) for s in SCHEDULERS if s != "none"]
PAIRS += [("adam-tensor-lr", "cosine")]


@pytest.mark.parametrize(("optimizer", "scheduler"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")
def test_a_resumed_training_is_the_undisturbed_one_bit_for_bit(tmp_path, optimizer, scheduler):
    path = tmp_path / "c.safetensors"

    def begin(seed):
        model = net(seed)
        opt = OPTIMIZERS[optimizer](model.parameters())
        np.random.seed(seed)
        random.seed(seed)
        return model, opt, SCHEDULERS[scheduler](opt)

    whole = begin(1)
    train(*whole, 7)

    first = begin(1)
    train(*first, 3)
    save(first[0], path, optimizer=first[1], step=3, extra=first[2] and first[2].state_dict())
    train(*first, 2)  # what happens after a save does not matter

    second = begin(2)
    train(*second, 1)
    found = load(path, into=second[0], optimizer=second[1])
    if second[2] is not None:
        second[2].load_state_dict(found.extra)
    assert found.step == 3
    train(*second, 4)
    assert same_state(whole[0].state_dict(), second[0].state_dict())
    assert str(whole[1].state_dict()) == str(second[1].state_dict())
    assert torch.equal(torch.rand(3), torch.rand(3)) is False  # generators are alive


def test_generators_are_set_or_left(tmp_path):
    model, path = net(), tmp_path / "c"
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    random.gauss(0, 1)  # leaves half a pair behind
    np.random.randn()
    save(model, path)
    wanted = [torch.rand(4).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), random.random()]
    load(path, into=model)
    assert [torch.rand(4).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), random.random()] == wanted
    torch.manual_seed(9)
    save(model, path, rng=False)
    expected = torch.rand(2)
    torch.manual_seed(9)
    assert load(path, into=model).rng is False
    assert torch.equal(torch.rand(2), expected)
    save(model, path)
    torch.manual_seed(9)
    load(path, into=model, rng=False)
    assert torch.equal(torch.rand(2), expected)


leaves = (
    st.sampled_from([None, "\ud800", "\0", '"}', -0.0])
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text()
    | st.sampled_from([torch.zeros(0), torch.tensor(3), torch.arange(6).view(2, 3).t(), torch.tensor([1j, 2])])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["$tensor", "$x", ""]), inner, max_size=3)
        | st.dictionaries(st.integers() | st.none() | st.booleans(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), st.integers(), max_size=2).map(Counter)
    ),
    max_leaves=12,
)


def equal(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return a == b


@settings(max_examples=80, deadline=None)
@given(tree=trees)
def test_extra_comes_back_as_it_was(tree, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "tree"
    save(nn.Linear(1, 1), path, rng=False, extra=tree)
    assert equal(load(path, into=nn.Linear(1, 1)).extra, tree)
    described = info(path).extra
    assert type(described) is type(tree)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.bool, torch.uint16]
)
def test_every_dtype_empty_scalar_and_strided(tmp_path, dtype):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in {"a": torch.ones(3, 4).t(), "b": torch.tensor(1.0), "c": torch.ones(0, 5)}.items():
                self.register_buffer(name, value.to(dtype))

    saved, loaded = Holder(), Holder()
    loaded.a.zero_()
    save(saved, tmp_path / "c")
    load(tmp_path / "c", into=loaded)
    assert same_state(saved.state_dict(), loaded.state_dict())


def test_lazy_conjugated_and_extra_state(tmp_path):
    class Stateful(nn.Module):
        def __init__(self, note):
            super().__init__()
            self.note = note

        def get_extra_state(self):
            return {"note": self.note}

        def set_extra_state(self, state):
            self.note = state["note"]

    saved = nn.Sequential(nn.Linear(4, 3), Stateful("hello"))
    save(saved, tmp_path / "c", extra=torch.tensor([1 + 2j]).conj())
    loaded = nn.Sequential(nn.LazyLinear(3), Stateful("?"))
    assert load(tmp_path / "c", into=loaded).extra.tolist() == [1 - 2j]
    assert torch.equal(loaded[0].weight, saved[0].weight)
    assert loaded[1].note == "hello"


def test_tied_tensors_are_stored_once_and_views_stay_apart(tmp_path):
    tied = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False))
    tied[1].weight = tied[0].weight
    save(tied, tmp_path / "tied", rng=False)
    assert (tmp_path / "tied").stat().st_size < 1.1 * 300 * 300 * 4
    fresh = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False))
    load(tmp_path / "tied", into=fresh)
    assert torch.equal(fresh[0].weight, tied[0].weight)
    assert torch.equal(fresh[1].weight, tied[0].weight)

    base = torch.arange(10.0)
    found = {"whole": base, "part": base[2:5], "again": base[2:5]}
    save(tied, tmp_path / "views", extra=found)
    assert equal(load(tmp_path / "views", into=fresh).extra, found)


def test_info_describes_without_loading(tmp_path):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    save(model, tmp_path / "c", optimizer=optimizer, step=4, extra={"best": torch.ones(2, 3, dtype=torch.int8), "n": 2})
    found = info(tmp_path / "c")
    assert found.shapes == {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert (found.model, found.step, found.rng) == ("torch.nn.modules.container.Sequential", 4, True)
    assert found.optimizer == "torch.optim.adam.Adam"
    assert found.extra["best"].is_meta
    assert (tuple(found.extra["best"].shape), found.extra["best"].dtype) == ((2, 3), torch.int8)
    assert found.extra["n"] == 2
    assert found.torch_version == torch.__version__


def test_the_file_is_plain_safetensors_and_the_same_state_gives_the_same_bytes(tmp_path):
    model = net()
    for name in ("a", "b"):
        save(model, tmp_path / name, rng=False, extra={"x": 1.5})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tensors = safetensors.torch.load_file(tmp_path / "a")
    assert torch.equal(tensors["model.0.weight"], model[0].weight)


def test_what_a_load_returns_is_not_a_view_of_the_file(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "c", extra=torch.zeros(3))
    model = nn.Linear(2, 2)
    first = load(tmp_path / "c", into=model).extra
    first += 1
    model.weight.data += 1
    assert load(tmp_path / "c", into=nn.Linear(2, 2)).extra.tolist() == [0, 0, 0]


# ---------------------------------------------------------------------- what is refused


def refused(path, model, match, optimizer=None):
    """load raises one clear line and has changed nothing: neither model, optimizer nor generators."""
    before = snapshot(model)
    state = optimizer and copy.deepcopy(optimizer.state_dict())
    generators = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with pytest.raises(ValueError, match=match) as error:
        load(path, into=model, optimizer=optimizer)
    assert "\n" not in str(error.value)
    assert same_state(before, model.state_dict())
    assert str(state) == str(optimizer and optimizer.state_dict())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (random.getstate(), str(np.random.get_state()))


def test_every_single_altered_byte_is_found(tmp_path):
    path, model = tmp_path / "c", nn.Linear(3, 2)
    save(nn.Linear(3, 2), path, rng=False, step=1, extra={"a": [1, 2]})
    data = path.read_bytes()
    before = snapshot(model)
    rng = random.Random(0)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a valid linnet checkpoint"):
            load(path, into=model)
        if position % 8 == 0:
            with pytest.raises(ValueError, match="is not a valid linnet checkpoint"):
                info(path)
    assert same_state(before, model.state_dict())
    path.write_bytes(data)
    load(path, into=model)


def test_altered_regions_of_a_full_checkpoint(tmp_path):
    path, model = tmp_path / "c", net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, None, 1)
    save(net(1), path, optimizer=optimizer, extra={"x": torch.ones(3)})
    data = path.read_bytes()
    rng = random.Random(1)
    for position in [*range(0, 400, 29), *(rng.randrange(len(data)) for _ in range(40)), len(data) - 1]:
        broken = bytearray(data)
        broken[position] = (broken[position] + rng.randrange(1, 256)) % 256
        path.write_bytes(broken)
        refused(path, model, "is not a valid linnet checkpoint", optimizer)
    a, b = len(data) - 40, len(data) - 80  # two stretches of the tensors swapped
    assert data[a : a + 8] != data[b : b + 8]
    path.write_bytes(data[:b] + data[a : a + 8] + data[b + 8 : a] + data[b : b + 8] + data[a + 8 :])
    refused(path, model, "SHA-256", optimizer)


def test_truncated_and_lengthened_files(tmp_path):
    path, model = tmp_path / "c", net()
    save(net(1), path)
    data = path.read_bytes()
    for length in [*range(0, 300, 11), *range(300, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path, model, "is not a valid linnet checkpoint")
    for tail in (b"\0", data):
        path.write_bytes(data + tail)
        refused(path, model, "is not a valid linnet checkpoint")


def test_files_of_others(tmp_path):
    model = nn.Linear(2, 2)
    texts = {"text": b"hello", "zeros": bytes(1000), "huge": b"\xff" * 100, "huger": b"\0\0\0\0\0\0\0\1" + b"{" * 100}
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, model, "is not a valid linnet checkpoint")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "plain", metadata={"format": "pt"})
    refused(tmp_path / "plain", model, "is not a valid linnet checkpoint")
    torch.save(model.state_dict(), tmp_path / "torch")
    refused(tmp_path / "torch", model, "is not a valid linnet checkpoint")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", into=model)


def test_a_newer_format_says_so(tmp_path):
    path, model = tmp_path / "c", nn.Linear(2, 2)
    save(model, path)
    description, tensors = description_of(path)
    sign(path, description, tensors)
    load(path, into=model)  # the signature of this test is right
    for version, match in (
        (2, "format 2 is newer than 1"),
        (10**30, "newer"),
        ("1", "incomplete"),
        (0, "incomplete"),
    ):
        sign(path, {**description, "format_version": version}, tensors)
        refused(path, model, match)
    # A newer format may sign in another way: its version is told before its digest is checked.
    path.write_bytes(path.read_bytes().replace(b'format_version\\":0', b'format_version\\":9'))
    refused(path, model, "format 9 is newer")


HOSTILE = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep-extra": None,
    "list": "[]",
    "string": '"x"',
    "null": "null",
    "number": "9" * 5000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_with_a_right_digest(tmp_path, name):
    path, model = tmp_path / "c", nn.Linear(2, 2)
    text = HOSTILE[name]
    if text is None:
        save(model, path, rng=False)
        description, tensors = description_of(path)
        depth = 800
        tree = "X"
        whole = text_of(description | {"extra": tree})
        whole = whole.replace('"X"', '{"a":' * depth + "1" + "}" * depth)
        path.write_bytes(signed_text(whole, tensors))
    else:
        path.write_bytes(signed_text('{"sha256":"' + "0" * 64 + '","x":' + text + "}", {}))
    if name == "deep-extra":  # loads exactly, or is refused; never a crash
        try:
            load(path, into=model)
        except ValueError:
            refused(path, model, "is not a valid linnet checkpoint")
    else:
        refused(path, model, "is not a valid linnet checkpoint")


CHANGES = {
    "unknown tensor": {"model": {"weight": {"$tensor": "nothing"}, "bias": {"$tensor": "model.bias"}}},
    "unknown kind": {"extra": {"$code": "print(1)"}},
    "two kinds": {"extra": {"$tensor": "model.bias", "$float": "1"}},
    "tensor name a list": {"extra": {"$tensor": []}},
    "unhashable key": {"extra": {"$dict": [[[], 1]]}},
    "float": {"extra": {"$float": "one"}},
    "counter": {"extra": {"$counter": [1]}},
    "model null": {"model": None},
    "model list": {"model": []},
    "step": {"step": "three"},
    "class": {"model_class": 3},
    "rng empty": {"rng": {}},
    "rng short": {"rng": {"torch": {"$tensor": "model.bias"}, "numpy": {}, "python": 1, "cuda": []}},
    "python": {"rng.python": {"$tuple": [3, {"$tuple": [1, 2]}, None]}},
    "numpy": {"rng.numpy": {"bit_generator": "MT19937", "state": {"key": {"$tensor": "model.bias"}, "pos": 1}}},
    "numpy position": {"rng.numpy.state.pos": 10**6},
    "numpy kind": {"rng.numpy.bit_generator": "Nothing"},
    "cuda": {"rng.cuda": [3]},
    "torch": {"rng.torch": {"$tensor": "model.weight"}},
    "optimizer state": {"optimizer": {"state": 3, "param_groups": []}},
    "optimizer groups": {"optimizer": {"state": {}}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_descriptions_with_a_right_digest(tmp_path, name):
    path, model = tmp_path / "c", nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    save(nn.Linear(2, 2), path, optimizer=optimizer)
    description, tensors = description_of(path)
    for key, value in CHANGES[name].items():
        *places, last = key.split(".")
        inner = description
        for place in places:
            inner = inner[place]
        inner[last] = value
    sign(path, description, tensors)
    refused(path, model, "checkpoint", optimizer)


def test_a_missing_or_strange_member(tmp_path):
    path, model = tmp_path / "c", nn.Linear(2, 2)
    save(model, path)
    description, tensors = description_of(path)
    for name in description:
        if name not in ("sha256", "extra", "architecture"):
            sign(path, {key: value for key, value in description.items() if key != name}, tensors)
            refused(path, model, "is not a valid linnet checkpoint")
    del description["architecture"]  # as in files from before there was one: they load into a model, and build none
    sign(path, description, tensors)
    assert same_state(load(path, into=nn.Linear(2, 2)).network.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"does not describe its .* pass it as into="):
        load(path)


def test_a_model_that_does_not_fit_names_what_is_wrong(tmp_path):
    path = tmp_path / "c"
    save(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), path)
    refused(path, nn.Sequential(nn.Linear(3, 4)), r"not in the model: 1\.weight, 1\.bias")
    refused(path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)), r"missing in the file: 2\.weight")
    refused(path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), r"1\.weight \(\(2, 4\) in the file, \(5, 4\)")
    refused(path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), r"0\.bias \(torch\.float32 in the file")
    refused(path, nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))), r"and 9 more")
    with torch.device("meta"):
        on_meta = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="meta device"):
        load(path, into=on_meta)


def test_batch_norm_is_not_forgiven_what_is_missing(tmp_path):
    path, model = tmp_path / "c", nn.BatchNorm1d(3)
    save(model, path)
    description, tensors = description_of(path)
    del description["model"]["num_batches_tracked"]
    sign(path, description, tensors)
    refused(path, model, "missing in the file: num_batches_tracked")


def test_an_optimizer_that_does_not_fit(tmp_path):
    path, model = tmp_path / "c", nn.Linear(2, 2)
    save(model, path)
    adam = torch.optim.Adam(model.parameters())
    refused(path, model, "the file holds no optimizer", adam)
    save(nn.Linear(2, 2), path, optimizer=adam)
    refused(path, model, "the file holds a .*Adam, got a .*SGD", torch.optim.SGD(model.parameters(), lr=0.1))
    refused(path, model, "differ in number or in the shapes", torch.optim.Adam([model.weight]))
    refused(
        path,
        model,
        "differ in number or in the shapes",
        torch.optim.Adam([{"params": [model.weight]}, {"params": [model.bias]}]),
    )
    load(path, into=model)  # an optimizer in the file need not be read


class Late(nn.Linear):
    """Refuses only when its turn comes, after other modules have been filled."""

    def _load_from_state_dict(self, state, prefix, *rest):
        if not state[f"{prefix}bias"].eq(0).all():
            raise RuntimeError("bias must be zero")
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_failure_in_the_middle_leaves_nothing_half_loaded(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), path)
    model = nn.Sequential(nn.Linear(2, 2), Late(2, 2))
    nn.init.zeros_(model[1].bias)
    refused(path, model, "bias must be zero")

    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    save(nn.Linear(2, 2), path, optimizer=optimizer)
    optimizer.step()
    real = torch.optim.Adam.load_state_dict

    def fails(self, state):
        real(self, state)
        raise RuntimeError("too late")

    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", fails)
    refused(path, model, "too late", optimizer)


class Growing(nn.Module):
    """Has tensors after its first use only, and knows how to load them before."""

    def _load_from_state_dict(self, state, prefix, *rest):
        if f"{prefix}late" in state and not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros_like(state[f"{prefix}late"]))
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_module_with_a_loader_of_its_own_decides_what_fits(tmp_path):
    path = tmp_path / "c"
    used = nn.Sequential(Growing(), nn.Linear(2, 2))
    used[0].register_buffer("late", torch.ones(3))
    save(used, path)
    fresh = nn.Sequential(Growing(), nn.Linear(2, 2))
    load(path, into=fresh)
    assert same_state(fresh.state_dict(), used.state_dict())
    refused(path, nn.Sequential(nn.Identity(), nn.Linear(2, 2)), r"not in the model: 0\.late")
    fresh[0].late = torch.zeros(4)
    refused(path, fresh, r"size mismatch for late|0\.late")
    batch_norm = nn.Sequential(nn.BatchNorm1d(3))
    save(batch_norm, path)
    refused(path, nn.Sequential(nn.BatchNorm1d(4)), r"different: 0\.weight")
    refused(path, nn.Sequential(nn.BatchNorm1d(3)).double(), "float32 in the file")


# ---------------------------------------------------------------------- writing


class Thing:
    def __reduce__(self):
        return (os.abort, ())


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"a": [Thing()]}, r"extra\.a\.0 must be .* got a Thing"),
        ({"s": {1, 2}}, r"extra\.s must be .* got a set"),
        ({1: b"bytes"}, r"extra\.1 must be .* got a bytes"),
        (np.zeros(2), "extra must be .* got a ndarray"),
        (torch.zeros(2, device="meta"), "meta device"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
    ],
    ids=["object", "set", "bytes", "array", "meta", "sparse", "complex128"],
)
def test_what_would_need_pickle_is_refused_and_the_old_file_stays(tmp_path, extra, match):
    path = tmp_path / "c"
    save(nn.Linear(1, 1), path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=match):
        save(nn.Linear(1, 1), path, extra=extra)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_pickle_is_never_called(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("pickle was called")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, never)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, never)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, None, 1)
    save(model, tmp_path / "c", optimizer=optimizer)
    load(tmp_path / "c", into=model, optimizer=optimizer)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failed_save_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, function, error):
    path = tmp_path / "c"
    old = net(1)
    save(old, path)

    def fails(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fails)
        with pytest.raises(type(error)):
            save(net(2), path)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    model = net(3)
    load(path, into=model)
    assert same_state(model.state_dict(), old.state_dict())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_order_of_writing(tmp_path, monkeypatch):
    """Data to the disk, then the name, then the name to the disk."""
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        real_fsync(descriptor)

    def replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target) == str(tmp_path)
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(nn.Linear(1, 1), tmp_path / "c")
    assert events == ["sync file", "rename", "sync folder"]


def test_links_are_followed_and_modes_are_the_umask(tmp_path):
    (tmp_path / "real").mkdir()
    save(nn.Linear(1, 1), tmp_path / "real" / "c")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "c")
    save(nn.Linear(2, 2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert info(tmp_path / "real" / "c").shapes["bias"] == (2,)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "real" / "c").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.slow
def test_kill_9_in_the_middle_of_saving(tmp_path):
    script = textwrap.dedent(
        """
        import itertools, sys, torch
        from linnet.checkpoint import save
        model = torch.nn.Linear(1000, 1000)
        for i in itertools.count():
            torch.nn.init.constant_(model.weight, i)
            save(model, sys.argv[1], step=i)
            print(i, flush=True)
        """
    )
    path = tmp_path / "c"
    halves = 0
    for delay in (0, 0.001, 0.005, 0.02):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            while not list(tmp_path.glob(".*.tmp")):  # left by nobody: a save is under way
                time.sleep(0.0005)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            done = [int(line) for line in process.stdout.read().split()]
        for half in tmp_path.glob(".*.tmp"):
            halves += 1
            half.unlink()
        model = nn.Linear(1000, 1000)
        step = load(path, into=model).step
        assert step >= (done[-1] if done else 0)
        assert model.weight.eq(step).all()
    assert halves  # some kill came in the middle of writing


def test_the_class_of_an_optimizer_is_saved_under_its_public_name(tmp_path):
    population = linnet.WideDeep(2, 3, 4, 2, 1)
    optimizer = linnet.WideAdam(population.parameters(), 2, lr=1e-3)
    save(population, tmp_path / "c", optimizer=optimizer)
    assert (info(tmp_path / "c").model, info(tmp_path / "c").optimizer) == ("linnet.WideDeep", "linnet.WideAdam")
    other = linnet.WideSGD(population.parameters(), 2, lr=1e-3)
    with pytest.raises(ValueError, match=r"the file holds a linnet\.WideAdam, got a linnet\.WideSGD"):
        load(tmp_path / "c", into=population, optimizer=other)
