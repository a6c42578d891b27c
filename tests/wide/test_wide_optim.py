"""Optimizers of populations against one torch optimizer for each being, given the same gradients."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

import linnet
from linnet import Linear, WideAdam, WideAdamW, WideSGD, clip_beings_

BEINGS = 5
LRS = [0.3, 0.01, 0.003, 0.1, 0.02]
DECAYS = [0.0, 0.1, 0.01, 0.5, 0.3]
B1, B2 = [0.9, 0.8, 0.0, 0.95, 0.5], [0.999, 0.9, 0.99, 0.95, 0.5]
MOMENTA = [0.0, 0.9, 0.5, 0.99, 0.1]
rows = partial(torch.tensor, dtype=torch.float64)

PAIRS = {
    "sgd": (
        lambda p: WideSGD(p, BEINGS, rows(LRS), rows(MOMENTA), rows(DECAYS)),
        lambda p, i: torch.optim.SGD(p, LRS[i], momentum=MOMENTA[i], weight_decay=DECAYS[i]),
    ),
    "plain sgd": (lambda p: WideSGD(p, BEINGS, rows(LRS)), lambda p, i: torch.optim.SGD(p, LRS[i])),
    "nesterov": (
        lambda p: WideSGD(p, BEINGS, rows(LRS), 0.9, nesterov=True),
        lambda p, i: torch.optim.SGD(p, LRS[i], momentum=0.9, nesterov=True),
    ),
    "adam": (
        lambda p: WideAdam(p, BEINGS, rows(LRS), rows(B1), rows(B2), 1e-8, rows(DECAYS)),
        lambda p, i: torch.optim.Adam(p, LRS[i], (B1[i], B2[i]), weight_decay=DECAYS[i]),
    ),
    "adamw": (
        lambda p: WideAdamW(p, BEINGS, rows(LRS), rows(B1), rows(B2), 1e-6, rows(DECAYS)),
        lambda p, i: torch.optim.AdamW(p, LRS[i], (B1[i], B2[i]), 1e-6, weight_decay=DECAYS[i]),
    ),
}
BUDGET = [0.1, 1.0, 10.0, math.inf, 0.5]


def population(dtype=torch.float64):
    wide = nn.ModuleList([Linear(4, 3, beings=BEINGS, dtype=dtype), Linear(3, 2, beings=BEINGS, dtype=dtype)])
    members = [nn.ModuleList([layer.to_linears()[i] for layer in wide]) for i in range(BEINGS)]
    return wide, members


def give(wide, members, generator) -> None:
    for p, *own in zip(wide.parameters(), *(m.parameters() for m in members), strict=True):
        p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)
        for i, q in enumerate(own):
            q.grad = p.grad[i].clone()


def same(wide, members, tolerance) -> None:
    for p, *own in zip(wide.parameters(), *(m.parameters() for m in members), strict=True):
        torch.testing.assert_close(p.detach(), torch.stack([q.detach() for q in own]), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", PAIRS)
def test_a_population_is_trained_as_by_separate_optimizers(name, dtype, tolerance, clipped):
    ours, theirs = PAIRS[name]
    wide, members = population(dtype)
    optimizer = ours(wide.parameters())
    if clipped:
        optimizer.param_groups[0]["max_norm"] = rows(BUDGET)
    separate = [theirs(member.parameters(), i) for i, member in enumerate(members)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        give(wide, members, generator)
        if clipped:
            for member, most in zip(members, BUDGET, strict=True):
                torch.nn.utils.clip_grad_norm_(member.parameters(), most)
        optimizer.step()
        for each in separate:
            each.step()
    same(wide, members, tolerance)


def test_the_comparison_would_see_one_wrong_learning_rate():
    wide, members = population()
    optimizer = WideAdam(wide.parameters(), BEINGS, rows(LRS))
    wrong = [torch.optim.Adam(m.parameters(), LRS[i] * (1 + 1e-4 * (i == 3))) for i, m in enumerate(members)]
    give(wide, members, torch.Generator().manual_seed(0))
    for each in (optimizer, *wrong):
        each.step()
    with pytest.raises(AssertionError):
        same(wide, members, 1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_a_state_dict_resumes_bit_for_bit(name):
    ours, _ = PAIRS[name]
    wide, members = population(torch.float32)
    optimizer, generator = ours(wide.parameters()), torch.Generator().manual_seed(0)
    for _ in range(3):
        give(wide, members, generator)
        optimizer.step()
    again = copy.deepcopy(wide)
    resumed = type(optimizer)(again.parameters(), BEINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        give(wide, members, generator)
        for p, q in zip(wide.parameters(), again.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step(), resumed.step()
    assert all(torch.equal(p, q) for p, q in zip(wide.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_file_resumes_bit_for_bit(tmp_path):
    wide, members = population(torch.float32)
    optimizer, generator = WideAdam(wide.parameters(), BEINGS, rows(LRS)), torch.Generator().manual_seed(0)
    give(wide, members, generator)
    optimizer.step()
    linnet.save(wide, tmp_path / "a.safetensors", optimizer=optimizer)
    again = copy.deepcopy(wide)
    resumed = WideAdam(again.parameters(), BEINGS)
    linnet.load(tmp_path / "a.safetensors", into=again, optimizer=resumed)
    give(wide, members, generator)
    for p, q in zip(wide.parameters(), again.parameters(), strict=True):
        q.grad = p.grad.clone()
    optimizer.step(), resumed.step()
    assert torch.equal(resumed.param_groups[0]["lr"], optimizer.param_groups[0]["lr"])
    assert all(torch.equal(p, q) for p, q in zip(wide.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("quarantine", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", PAIRS)
def test_a_broken_being_never_touches_its_neighbours(name, bad, quarantine):
    ours, theirs = PAIRS[name]
    wide, members = population()
    optimizer = ours(wide.parameters())
    optimizer.param_groups[0]["quarantine"] = quarantine
    optimizer.param_groups[0]["max_norm"] = torch.full((BEINGS,), 1.0)
    separate = [theirs(member.parameters(), i) for i, member in enumerate(members)]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        give(wide, members, generator)
        for member in members:
            torch.nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        if step == 2:
            wide[0].weight.grad[1, 0, 0] = bad
        optimizer.step()
        for i, each in enumerate(separate):
            if i != 1 or step < 2:
                each.step()
    if quarantine:
        same(wide, members, 1e-10)  # being 1 stands where it was before the bad gradient
        assert optimizer.alive.tolist() == [True, False, True, True, True]
        assert all(torch.isfinite(v).all() for state in optimizer.state.values() for v in state.values())
    else:
        assert not torch.isfinite(wide[0].weight[1]).all()
        for p, *own in zip(wide.parameters(), *(m.parameters() for m in members), strict=True):
            for i in (0, 2, 3, 4):
                torch.testing.assert_close(p[i], own[i], atol=1e-10, rtol=1e-10)


def test_quarantine_outlives_a_state_dict_and_ends_with_release():
    wide, members = population()
    optimizer, generator = WideAdam(wide.parameters(), BEINGS, quarantine=True), torch.Generator().manual_seed(0)
    give(wide, members, generator)
    wide[0].weight.grad[1] = math.nan
    optimizer.step()
    resumed = WideAdam(wide.parameters(), BEINGS)
    resumed.load_state_dict(optimizer.state_dict())
    give(wide, members, generator)
    before = wide[0].weight.detach().clone()
    resumed.step()
    assert torch.equal(wide[0].weight[1], before[1]) and not torch.equal(wide[0].weight[0], before[0])
    resumed.release(1)
    resumed.step()
    assert not torch.equal(wide[0].weight[1], before[1])


def test_a_schedule_is_arithmetic_on_the_rates():
    wide, members = population()
    optimizer = WideSGD(wide.parameters(), BEINGS, rows(LRS))
    separate = [torch.optim.SGD(member.parameters(), LRS[i]) for i, member in enumerate(members)]
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        give(wide, members, generator)
        for each in (optimizer, *separate):
            each.step()
            each.param_groups[0]["lr"] *= 0.5**step
    same(wide, members, 1e-12)


def test_clipping_looks_at_one_being_at_a_time():
    wide, members = population()
    give(wide, members, torch.Generator().manual_seed(0))
    wide[0].weight.grad[2] = math.nan
    norms = clip_beings_(wide.parameters(), rows(BUDGET))
    for i in (0, 1, 3, 4):
        expected = torch.nn.utils.clip_grad_norm_(members[i].parameters(), BUDGET[i])
        torch.testing.assert_close(norms[i], expected)
        for p, q in zip(wide.parameters(), members[i].parameters(), strict=True):
            torch.testing.assert_close(p.grad[i], q.grad)
    assert norms[2].isnan()


def test_closure_groups_and_parameters_without_gradient():
    wide, _ = population()
    groups = [{"params": [wide[0].weight], "lr": 0.5}, {"params": [*wide[1].parameters()]}]
    optimizer = WideSGD(groups, BEINGS, lr=0.0)
    before = copy.deepcopy(wide.state_dict())

    def closure():
        optimizer.zero_grad()
        loss = wide[1](wide[0](torch.ones(4, dtype=torch.float64))).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).shape == ()
    assert not torch.equal(wide[0].weight, before["0.weight"])
    assert torch.equal(wide[1].weight, before["1.weight"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -1.0}, r"lr must lie in \[0, inf\)"),
        ({"lr": torch.ones(3)}, r"lr must be a number or have shape \(5,\), got \(3,\)"),
        ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\)"),
        ({"lr": math.nan}, "lr must lie"),
        ({"max_norm": -1.0}, "max_norm must lie"),
    ],
)
def test_wrong_hyper_parameters_are_refused(options, message):
    wide, _ = population()
    with pytest.raises(ValueError, match=message):
        WideAdam(wide.parameters(), BEINGS, **options)


def test_a_parameter_without_the_axis_of_beings_is_refused():
    with pytest.raises(ValueError, match=r"axis of beings=5 in front, got \(3, 4\)"):
        WideSGD(nn.Linear(4, 3).parameters(), BEINGS)
    with pytest.raises(TypeError, match="quarantine must be True or False"):
        WideSGD(population()[0].parameters(), BEINGS, quarantine=1)
