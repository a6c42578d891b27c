"""Operators of evolution against loops over ordinary modules with their own optimizers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import linnet
from linnet import Linear, SparseLinear, WideAdam, WideDeep, catalogue, per_being
from linnet.evolve import (
    Blend,
    ByLayer,
    Gaussian,
    SparseGaussian,
    Tournament,
    Truncation,
    UniformCrossover,
    UniformMutation,
    beings_of,
    mutate,
    ranking,
    reproduce,
)
from linnet.wide.random import bits, normal, streams, uniform

# ---------------------------------------------------------------------- selection


@given(st.lists(st.sampled_from([0.0, 1.0, -2.0, math.nan, math.inf, -math.inf]), min_size=1, max_size=12))
def test_the_ranking_is_python_s_stable_sort(values):
    expected = sorted(
        range(len(values)), key=lambda i: (math.isnan(values[i]), 0 if math.isnan(values[i]) else -values[i])
    )
    assert ranking(torch.tensor(values)).tolist() == expected


def test_truncation_draws_evenly_from_the_fittest():
    fitness = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()
    parents = Truncation(share=0.1, elites=3)(fitness, torch.Generator().manual_seed(1))
    assert fitness[parents[:3]].tolist() == [999, 998, 997]
    assert fitness[parents].min() >= 900
    counts = torch.bincount((fitness[parents[3:]] - 900).long(), minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_tournament_prefers_the_fittest_as_the_formula_says():
    beings, size = 10, 3
    fitness = torch.arange(float(beings))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([Tournament(size=size)(fitness, generator) for _ in range(2000)])
    counts = torch.bincount(drawn, minlength=beings)
    worse = torch.arange(beings + 1, dtype=torch.float64) / beings  # P(all of the tournament are among the i worst)
    expected = (worse[1:] ** size - worse[:-1] ** size) * len(drawn)
    assert stats.chisquare(counts.double(), expected).pvalue > 1e-4


@pytest.mark.parametrize("selection", [Truncation(elites=2), Tournament(elites=2)])
def test_selection_repeats_with_the_generator_and_never_chooses_nan(selection):
    fitness = torch.tensor([math.nan, 3.0, 1.0, 2.0, math.nan])
    first, second = (selection(fitness, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second) and first[:2].tolist() == [1, 3]
    assert not set(Truncation(0.6)(fitness).tolist()) & {0, 4}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Truncation(share=0.0), "share must lie in"),
        (lambda: Truncation(elites=-1), "elites must be at least 0"),
        (lambda: Tournament(size=0), "size must be at least 1"),
        (lambda: Tournament(elites=4)(torch.ones(3)), "elites must be at most the number of beings, 3"),
        (lambda: ranking(torch.ones(2, 2)), r"fitness must have shape \(beings,\)"),
        (lambda: ranking(torch.ones(0)), r"fitness must have shape \(beings,\)"),
        (lambda: Gaussian(-1.0), "sigma must be a finite number"),
        (lambda: UniformMutation(math.inf), "width must be a finite number"),
        (lambda: SparseGaussian(rate=1.5), "rate must lie in"),
        (lambda: UniformCrossover(math.nan), "rate must lie in"),
        (lambda: Blend(-0.1), "alpha must be at least 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------- reproduction

PARENTS = [2, 0, 0, 3]


def trained(optimizer_class, **options):
    activation = nn.Sequential(nn.Tanh(), nn.BatchNorm1d(6))  # in this order every gradient is more than rounding
    nets = WideDeep(4, 5, 6, 3, 2, activation, nn.Identity(), dtype=torch.float64)
    optimizer = optimizer_class(nets.parameters(), **options)
    step(nets, optimizer, 0)
    return nets, optimizer


def step(nets, optimizer, seed: int) -> None:
    x = torch.randn(8, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    per_being(F.mse_loss)(nets(x), torch.ones(8, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "optimizer_class, options",
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True, "fused": True}),
        (WideAdam, {"beings": 4, "lr": torch.tensor([0.1, 0.2, 0.3, 0.4])}),
    ],
)
def test_children_go_on_exactly_as_their_parents_would(optimizer_class, options):
    nets, optimizer = trained(optimizer_class, **options)
    others = copy.deepcopy(nets)
    optimizer_of_others = optimizer_class(others.parameters(), **options)
    optimizer_of_others.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    reproduce(nets, PARENTS, optimizer)
    for seed in (1, 2, 3):  # wrong moments, steps, rates or batch statistics would show
        step(nets, optimizer, seed)
        step(others, optimizer_of_others, seed)
    for (name, mine), theirs in zip(nets.state_dict().items(), others.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs[PARENTS], atol=1e-12, rtol=1e-12, msg=name)  # a product rounds by place


def test_without_the_optimizer_the_comparison_fails():
    nets, optimizer = trained(torch.optim.Adam, lr=0.01)
    others = copy.deepcopy(nets)
    optimizer_of_others = torch.optim.Adam(others.parameters(), lr=0.01)
    optimizer_of_others.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    reproduce(nets, PARENTS)
    step(nets, optimizer, 1), step(others, optimizer_of_others, 1)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(nets.linears[0].weight, others.linears[0].weight[PARENTS], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name, kind", [(n, k) for n, k in catalogue().items() if k.__module__.startswith("linnet.")])
def test_every_map_with_beings_reproduces(name, kind):
    options = kind.examples()[0]
    sizes = {"in_features": 8, "out_features": 8} | {k: v for k, v in options.items() if k.endswith("_features")}
    layer = kind(**{**sizes, **options, "beings": 4}).eval()
    with torch.no_grad():
        x = torch.randn(3, 1, sizes["in_features"])
        before = layer(x)
        reproduce(nn.Sequential(layer, nn.ReLU()), PARENTS)
        assert torch.equal(layer(x), before[:, PARENTS])
        assert beings_of(layer) == 4


def test_connections_that_move_belong_to_their_being():
    layer = SparseLinear(10, 8, sparsity=0.7, beings=4, dynamic=linnet.RigL(every=2, until=20))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(6, 1, 10)).square().sum().backward()
        optimizer.step()
    indices, values = layer.indices.clone(), layer.values.detach().clone()
    moments = optimizer.state[layer.values]["exp_avg"].clone()
    reproduce(layer, PARENTS, optimizer)
    assert torch.equal(layer.indices, indices[PARENTS]) and torch.equal(layer.values, values[PARENTS])
    assert torch.equal(optimizer.state[layer.values]["exp_avg"], moments[PARENTS])
    with pytest.raises(ValueError, match="one connectivity for all beings"):
        reproduce(layer, PARENTS, mates=PARENTS, crossover=Blend())


@pytest.mark.parametrize(
    "parents, options, message",
    [
        ([0, 1], {}, "one index for each being"),
        ([0, 1, 2, 4], {}, "must lie in 0..3"),
        (PARENTS, {"mates": PARENTS}, "given together"),
        (PARENTS, {"crossover": Blend()}, "given together"),
        (PARENTS, {"mates": [0], "crossover": Blend()}, "mates must hold one index"),
    ],
)
def test_a_refused_generation_changes_nothing(parents, options, message):
    nets, optimizer = trained(torch.optim.Adam, lr=0.01)
    before, state = copy.deepcopy(nets.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match=message):
        reproduce(nets, parents, optimizer, **options)
    assert all(torch.equal(tensor, before[key]) for key, tensor in nets.state_dict().items())
    for key, tensors in optimizer.state_dict()["state"].items():
        assert all(torch.equal(tensor, state[key][name]) for name, tensor in tensors.items())


def test_a_model_that_is_no_population_is_refused():
    with pytest.raises(ValueError, match="A population must have beings, got Linear without any"):
        reproduce(nn.Linear(3, 2), [0])
    with pytest.raises(ValueError, match=r"got \[2, 3\]"):
        beings_of(nn.Sequential(Linear(3, 3, beings=2), Linear(3, 3, beings=3)))


def test_a_layer_used_twice_reproduces_once():
    layer = Linear(3, 3, beings=4)
    before = layer.weight.detach().clone()
    reproduce(nn.Sequential(layer, nn.Tanh(), layer), [1, 0, 3, 2])
    assert torch.equal(layer.weight, before[[1, 0, 3, 2]])


# ---------------------------------------------------------------------- crossover and mutation


@pytest.mark.parametrize("crossover", [UniformCrossover(0.3), ByLayer(0.5)])
def test_a_child_has_every_gene_from_one_of_its_parents(crossover):
    layer = Linear(20, 30, beings=50)
    old = layer.weight.detach().clone()
    parents, mates = torch.arange(50), torch.arange(50).flip(0)
    reproduce(layer, parents, mates=mates, crossover=crossover, generator=torch.Generator().manual_seed(0))
    first, second = layer.weight == old, layer.weight == old[mates]
    assert bool((first | second).all())
    share = second.double().mean((1, 2))
    if isinstance(crossover, ByLayer):
        assert set(share.tolist()) == {0.0, 1.0}
    else:
        assert stats.binomtest(int(second.sum()), second.numel(), 0.3).pvalue > 1e-4


def test_blend_lies_between_and_a_little_beyond():
    a, b = torch.zeros(100, 50), torch.ones(100, 50)
    child = Blend(0.5)(a, b, torch.Generator().manual_seed(0))
    assert stats.kstest(child.flatten().numpy(), stats.uniform(-0.5, 2.0).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    "mutation, law",
    [
        (Gaussian(0.1), stats.norm(0, 0.1)),
        (UniformMutation(0.2), stats.uniform(-0.2, 0.4)),
    ],
)
def test_mutations_have_their_distribution(mutation, law):
    noise = mutation(streams(torch.arange(40), 3, 1), 501, torch.float64)
    assert noise.shape == (40, 501)
    assert stats.kstest(noise.flatten().numpy(), law.cdf).pvalue > 1e-4


def test_a_sparse_mutation_changes_the_stated_share():
    noise = SparseGaussian(0.1, rate=0.2)(streams(torch.arange(40), 3, 1), 500, torch.float64)
    chosen = noise != 0
    assert stats.binomtest(int(chosen.sum()), chosen.numel(), 0.2).pvalue > 1e-4
    assert stats.kstest(noise[chosen].numpy(), stats.norm(0, 0.1).cdf).pvalue > 1e-4


def test_the_elites_stay_and_the_noise_of_a_being_depends_on_its_place_alone():
    small, large = (WideDeep(n, 5, 6, 2, 2) for n in (3, 7))
    before = {i: [p.detach().clone() for p in nets.parameters()] for i, nets in enumerate((small, large))}
    for nets in (small, large):
        mutate(nets, Gaussian(0.1), seed=5, generation=2, keep=1)
    for p, q, old_p, old_q in zip(small.parameters(), large.parameters(), *before.values(), strict=True):
        assert torch.equal(p[0], old_p[0]) and torch.equal(q[0], old_q[0])
        torch.testing.assert_close(p[1:] - old_p[1:], q[1:3] - old_q[1:3], atol=1e-6, rtol=0)
        assert (p[1] - old_p[1] != p[2] - old_p[2]).all()
    with pytest.raises(ValueError, match=r"keep must lie in 0..3"):
        mutate(small, Gaussian(), seed=0, generation=0, keep=4)


def test_seed_generation_and_parameter_change_the_noise():
    def noise(seed: int, generation: int) -> torch.Tensor:
        layer = Linear(4, 4, bias=False, beings=2)
        with torch.no_grad():
            layer.weight.zero_()
        mutate(nn.Sequential(layer), Gaussian(1.0), seed=seed, generation=generation)
        return layer.weight.detach()

    assert torch.equal(noise(0, 1), noise(0, 1))
    drawn = [noise(0, 1), noise(1, 0), noise(0, 0), noise(1, 1)]
    for i, a in enumerate(drawn):
        assert all((a != b).all() for b in drawn[:i])


def test_frozen_parameters_do_not_mutate():
    layer = Linear(4, 4, beings=2)
    layer.bias.requires_grad_(False)
    before = layer.bias.clone()
    mutate(layer, Gaussian(1.0), seed=0, generation=0)
    assert torch.equal(layer.bias, before)


# ---------------------------------------------------------------------- random numbers by counter


def splitmix64(state: int, count: int) -> list[int]:
    """The generator of the paper, in Python's integers."""
    mask, words = 2**64 - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    return words


@pytest.mark.parametrize("state", [0, 1, 1234567, -1, 2**63 - 1, -(2**63)])
def test_the_bits_are_those_of_splitmix64(state):
    ours = [word % 2**64 for word in bits(torch.tensor([state]), 8)[0].tolist()]
    assert ours == splitmix64(state % 2**64, 8)
    if state == 1234567:  # the published first numbers of this seed
        assert ours[:2] == [6457827717110365317, 3203168211198807973]


def test_numbers_have_their_distribution_and_streams_are_independent():
    own = streams(torch.arange(64), 0, 5, 2)
    u, n = uniform(own, 2001, torch.float64), normal(own, 2001, torch.float64)
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(n.flatten().numpy(), "norm").pvalue > 1e-4
    bound = 6 / math.sqrt(2001)
    for numbers in (u, n):
        assert (torch.corrcoef(numbers) - torch.eye(64)).abs().max() < bound  # between streams
        flat = numbers.flatten() - numbers.mean()
        assert abs(float((flat[1:] * flat[:-1]).mean() / flat.square().mean())) < 6 / math.sqrt(len(flat))


def test_a_part_of_the_numbers_is_the_same_numbers():
    everything = normal(streams(torch.arange(10), 1, 2), 101)
    assert torch.equal(normal(streams(torch.arange(4, 7), 1, 2), 101), everything[4:7])
    assert normal(streams(torch.arange(2), 0), 10**5).isfinite().all()


def test_a_population_evolves_to_the_solution():
    torch.manual_seed(0)
    nets = WideDeep(60, 2, 8, 2, 1, torch.tanh, nn.Identity())
    x = torch.rand(64, 2) * 2 - 1
    target = x.prod(1, keepdim=True)
    generator, losses = torch.Generator().manual_seed(0), []
    for generation in range(60):
        with torch.no_grad():
            losses.append(per_being(F.mse_loss)(nets(x[:, None]), target))
        reproduce(nets, Truncation(share=0.2, elites=1)(-losses[-1], generator))
        mutate(nets, Gaussian(0.05), seed=0, generation=generation, keep=1)
    best = torch.stack(losses).amin(1)
    assert bool((best.diff() <= 1e-6).all())  # the elite is never lost
    assert best[-1] < 0.5 * best[0]
