"""Evolution strategies, low-rank populations, population-based training, flat vectors: against their formulas."""

import copy
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import linnet
from linnet import Linear, WideAdam, WideDeep, WideSGD, evolve, unstack, widen
from linnet.evolve import (
    FlatVector,
    FullRank,
    GeneticAlgorithm,
    LowRank,
    OpenAIES,
    PopulationBasedTraining,
    centered_ranks,
    standardized,
)


class Custom(nn.Module):
    """Linear layers inside a forward, beside other parameters, one tied and one used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.body = nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7), nn.Tanh())
        self.out = nn.Linear(7, 3, bias=False)
        self.gain = nn.Parameter(torch.ones(3))
        self.inward, self.outward = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.outward.weight = self.inward.weight

    def forward(self, x):
        y = self.out(self.body(self.body(self.first(x).relu()))) * self.gain
        return y + self.outward(self.inward(y))


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), Linear(7, 3))


def convnet():
    return nn.Sequential(nn.Unflatten(-1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3))


KINDS = {
    "full": FullRank,
    "rank 1": lambda net, beings, **k: LowRank(net, beings, rank=1, **k),
    "rank 3": lambda net, beings, **k: LowRank(net, beings, rank=3, **k),
    "rank 2 in chunks": lambda net, beings, **k: LowRank(net, beings, rank=2, chunk_size=2, **k),
}
NETS = {"mlp": mlp, "custom": Custom, "convnet": convnet}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
def test_beings_are_those_that_single_forms(kind, net):
    torch.manual_seed(0)
    population = KINDS[kind](NETS[net](), 6)
    population.perturb(seed=3, generation=5, sigma=0.1)
    each = [population.single(i) for i in range(6)]
    with torch.no_grad():
        for axis in (6, 1):
            x = torch.randn(4, axis, 5)
            expected = torch.stack([alone(x[:, i % axis]) for i, alone in enumerate(each)], 1)
            torch.testing.assert_close(population(x), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
def test_estimate_is_the_formula_on_formed_beings(kind, net):
    torch.manual_seed(0)
    center = NETS[net]().double()
    population = KINDS[kind](center, 10)
    population.perturb(seed=3, generation=5, sigma=0.1)
    fitness = torch.randn(10, dtype=torch.float64)
    population.estimate(fitness)
    each = [dict(population.single(t).named_parameters()) for t in range(10)]
    for name, parameter in center.named_parameters():
        noise = torch.stack([(own[name] - parameter).detach() / 0.1 for own in each])  # ε_t
        expected = -torch.einsum("t,t...->...", fitness, noise) / (10 * 0.1)
        torch.testing.assert_close(parameter.grad, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_the_right_size_and_comes_in_pairs(kind):
    center = nn.Linear(40, 30)
    population = KINDS[kind](center, 200)
    population.perturb(seed=0, generation=0, sigma=0.5)
    noise = torch.stack([population.single(t).weight.detach() - center.weight.detach() for t in range(200)]) / 0.5
    torch.testing.assert_close(noise[0::2], -noise[1::2], atol=1e-5, rtol=0)
    assert abs(noise[0::2].mean().item()) < 0.02
    assert abs(noise.square().mean().item() - 1) < 0.1  # E[(A Bᵀ / √r)²] = 1 too
    if kind == "full":
        assert stats.kstest(noise[0::2].flatten()[:5000].numpy(), "norm").pvalue > 1e-3
    else:
        rank = {"rank 1": 1, "rank 3": 3}.get(kind, 2)
        assert torch.linalg.matrix_rank(noise[0], rtol=1e-4) == rank


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_a_function_of_its_numbers_alone(kind):
    center, x = mlp(), torch.randn(4, 12, 5)
    whole = KINDS[kind](center, 12)
    with torch.no_grad():
        whole.perturb(seed=1, generation=7, sigma=0.1)
        expected = whole(x)
        whole.perturb(seed=1, generation=8, sigma=0.1)
        assert not torch.equal(whole(x), expected)
        whole.perturb(seed=1, generation=7, sigma=0.1)
        assert torch.equal(whole(x), expected)
        part = KINDS[kind](copy.deepcopy(center), 4, first=6)
        part.perturb(seed=1, generation=7, sigma=0.1)
        torch.testing.assert_close(part(x[:, 6:10]), expected[:, 6:10])
    fitness = torch.randn(12)
    whole.estimate(fitness)
    part.estimate(fitness)
    for a, b in zip(whole.center.parameters(), part.center.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_weight_that_is_read_by_hand_is_refused_in_a_low_rank_population():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return F.linear(self.layer(x), self.layer.weight)

    with pytest.raises(ValueError, match="ByHand reads the weight of a linear layer, which LowRank never forms"):
        LowRank(ByHand(), 4)(torch.randn(2, 4, 3))


def test_what_cannot_be_perturbed():
    with pytest.raises(ValueError, match=r"beings must be even .*, got 3"):
        FullRank(nn.Linear(3, 2), 3)
    with pytest.raises(ValueError, match=r"first must be even .*, got 1"):
        LowRank(nn.Linear(3, 2), 4, first=1)
    with pytest.raises(ValueError, match=r"chunk_size must be even .*, got 3"):
        LowRank(nn.Linear(3, 2), 4, chunk_size=3)
    with pytest.raises(ValueError, match="must have parameters with requires_grad"):
        FullRank(nn.ReLU(), 4)
    with pytest.raises(ValueError, match="LowRank needs linear layers with requires_grad"):
        LowRank(nn.Conv1d(1, 1, 1), 4)
    with pytest.raises(ValueError, match="needs sigma > 0; call perturb"):
        FullRank(nn.Linear(3, 2), 4).estimate(torch.zeros(4))
    normed = LowRank(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), 4)
    with pytest.raises(ValueError, match="All beings of LowRank share their buffers; call eval"):
        normed(torch.randn(5, 4, 3))
    assert normed.eval()(torch.randn(5, 4, 3)).shape == (5, 4, 3)
    with pytest.raises(TypeError, match="FullRank or LowRank"):
        OpenAIES(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="sigma must be"):
        OpenAIES(FullRank(nn.Linear(3, 2), 4), sigma=0)


# ---------------------------------------------------------------------- shaping


@given(st.lists(st.sampled_from([-1.0, 0.0, 2.0, 5.0, math.inf, -math.inf]), min_size=2, max_size=12))
@settings(max_examples=50, deadline=None)
def test_centered_ranks_are_scipys_average_ranks(values):
    found = centered_ranks(torch.tensor(values, dtype=torch.float64))
    expected = (stats.rankdata(values, method="average") - 1) / (len(values) - 1) - 0.5
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_equal_fitness_says_nothing_and_nan_is_worst():
    assert not centered_ranks(torch.full((8,), 500.0)).any()
    assert not standardized(torch.full((8,), 500.0)).any()
    assert centered_ranks(torch.tensor([1.0, math.nan, -5.0]))[1] == -0.5
    assert torch.equal(standardized(torch.tensor([1.0, math.nan, 3.0])), standardized(torch.tensor([1.0, 1.0, 3.0])))


# ---------------------------------------------------------------------- searching

X = torch.linspace(-1, 1, 32).unsqueeze(1).expand(32, 5)
TARGET = torch.stack([X[:, 0], X[:, 0] ** 2, -X[:, 0]], 1)


def fitness_of(population):
    with torch.no_grad():
        return -(population(X[:, None]) - TARGET[:, None]).square().mean((0, 2))


def searchers():
    torch.manual_seed(0)
    return {
        "full": OpenAIES(FullRank(mlp(), 64), sigma=0.1, seed=1),
        "low": OpenAIES(LowRank(mlp(), 64), sigma=0.1, shaping=standardized, seed=1),
        "ga": GeneticAlgorithm(widen(mlp, 64), mutation=evolve.Gaussian(0.05), seed=1),
        "ga, no elites": GeneticAlgorithm(
            WideDeep(64, 5, 7, 2, 3, final_nl=nn.Identity()),
            selection=evolve.Tournament(3),
            mutation=evolve.SparseGaussian(0.2, 0.2),
            crossover=evolve.ByLayer(),
            seed=1,
        ),
    }


@pytest.mark.parametrize("name", ["full", "low", "ga", "ga, no elites"])
def test_searchers_find(name):
    search = searchers()[name]
    first = fitness_of(search.ask()).mean()
    for _ in range(60):
        search.tell(fitness_of(search.ask()))
    with torch.no_grad():
        best = -(search.best()(X) - TARGET).square().mean()
    assert best > 0.2 * first  # both are negative
    assert search.generation == 60


@pytest.mark.parametrize("name", ["full", "low", "ga", "ga, no elites"])
def test_searchers_resume_bit_for_bit(name, tmp_path):
    search, again = searchers()[name], searchers()[name]
    for _ in range(3):
        search.tell(fitness_of(search.ask()))
    linnet.save(nn.Identity(), tmp_path / "search.safetensors", extra=search.state_dict())
    expected = []
    for _ in range(3):
        expected.append(fitness_of(search.ask()))
        search.tell(expected[-1])
    torch.rand(7)
    again.load_state_dict(linnet.load(tmp_path / "search.safetensors", into=nn.Identity()).extra)
    for fitness in expected:
        assert torch.equal(fitness_of(again.ask()), fitness)
        again.tell(fitness)


def test_one_step_is_the_optimizers_step_along_the_estimate():
    net = mlp()
    search = OpenAIES(FullRank(net, 16), sigma=0.1, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), seed=4)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    population = search.ask()
    fitness = fitness_of(population)
    search.tell(fitness)
    population.estimate(centered_ranks(fitness))
    for old, parameter in zip(before, net.parameters(), strict=True):
        torch.testing.assert_close(parameter, old - 0.5 * parameter.grad)
    alone = search.best()
    with torch.no_grad():
        alone[0].weight.zero_()
    assert net[0].weight.any()


def test_the_best_of_a_generation_stays_the_best():
    search = searchers()["ga"]
    for _ in range(10):
        fitness = fitness_of(search.ask())
        search.tell(fitness)
        torch.testing.assert_close(fitness_of(search.ask())[0], fitness.max())
    with pytest.raises(ValueError, match=r"fitness must have shape \(64,\)"):
        search.tell(torch.zeros(3))


# ---------------------------------------------------------------------- population-based training


def test_worst_take_weights_state_and_rates_of_the_best():
    torch.manual_seed(0)
    nets = widen(mlp, 10)
    optimizer = WideAdam(nets.parameters(), beings=10, lr=torch.logspace(-3, -1, 10))
    F.mse_loss(nets(X[:, None]), TARGET[:, None].expand(-1, 10, -1)).backward()
    optimizer.step()
    before, rates = unstack(nets), optimizer.param_groups[0]["lr"].clone()
    moments = [optimizer.state[p]["exp_avg"].clone() for p in nets.parameters()]
    parents = PopulationBasedTraining(nets, optimizer, factors=(0.5, 2.0), seed=3).step(torch.arange(10.0))
    assert parents.tolist()[2:] == list(range(2, 10)) and set(parents.tolist()[:2]) <= {8, 9}
    for i, (alone, parent) in enumerate(zip(unstack(nets), parents.tolist(), strict=True)):
        for a, b in zip(alone.parameters(), before[parent].parameters(), strict=True):
            assert torch.equal(a, b)
        factor = optimizer.param_groups[0]["lr"][i] / rates[parent]
        assert factor.item() == 1 if i >= 2 else factor.item() in (0.5, 2.0)
    for parameter, old in zip(nets.parameters(), moments, strict=True):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], old[parents])


def test_population_based_training_stays_in_the_intervals_and_is_repeatable():
    def run():
        torch.manual_seed(0)
        nets = widen(mlp, 6)
        optimizer = WideAdam(nets.parameters(), beings=6, beta1=0.95)
        pbt = PopulationBasedTraining(nets, optimizer, hyper=("lr", "beta1"), share=0.5, factors=(1.5,))
        for _ in range(4):
            pbt.step(torch.randn(6, generator=torch.Generator().manual_seed(1)))
        assert pbt.state_dict() == {"steps": 4}
        return optimizer.param_groups[0]

    group = run()
    assert (group["beta1"] < 1).all() and group["beta1"].max() > 0.99 and group["lr"].max() > 1e-3
    assert torch.equal(group["lr"], run()["lr"])


def test_what_population_based_training_refuses():
    nets = widen(mlp, 6)
    optimizer = WideSGD(nets.parameters(), beings=6)
    with pytest.raises(TypeError, match="optimizer must be a WideOptimizer, such as WideAdam"):
        PopulationBasedTraining(nets, torch.optim.SGD(nets.parameters()))
    with pytest.raises(ValueError, match="hyper must be among"):
        PopulationBasedTraining(nets, optimizer, hyper=("beta1",))
    with pytest.raises(ValueError, match="share must lie"):
        PopulationBasedTraining(nets, optimizer, share=0.6)
    with pytest.raises(ValueError, match="factors must be"):
        PopulationBasedTraining(nets, optimizer, factors=(0.0,))
    with pytest.raises(ValueError, match="fitness must have shape"):
        PopulationBasedTraining(nets, optimizer).step(torch.zeros(5))


# ---------------------------------------------------------------------- flat vectors


def test_flat_vectors_are_the_parameters_of_each_being():
    nets = widen(mlp, 4)
    flat = FlatVector(nets)
    vectors = flat.read()
    for row, alone in zip(vectors, unstack(nets), strict=True):
        assert torch.equal(row, torch.nn.utils.parameters_to_vector(alone.parameters()))
    flat.write(vectors[[2, 1, 0, 3]])
    assert torch.equal(flat.read(), vectors[[2, 1, 0, 3]])
    for wrong in (vectors[0], vectors[:, 1:], vectors.repeat(2, 1)):
        with pytest.raises(ValueError, match="vectors must have shape"):
            flat.write(wrong)
    with pytest.raises(ValueError, match="FlatVector needs parameters with requires_grad"):
        FlatVector(widen(nn.ReLU(), 4))


def test_any_number_of_vectors_is_evaluated():
    flat = FlatVector(widen(mlp, 4))
    vectors = torch.randn(11, flat.size)
    found = flat.evaluate(fitness_of, vectors)
    for vector, fitness in zip(vectors, found, strict=True):
        alone = mlp()
        torch.nn.utils.vector_to_parameters(vector, alone.parameters())
        torch.testing.assert_close(fitness, -(alone(X) - TARGET).square().mean().detach())


def test_evotorch_is_given_a_problem_in_its_own_terms(monkeypatch):
    class Problem:
        def __init__(self, objective_sense, *, solution_length, initial_bounds, dtype, seed):
            self.given = objective_sense, solution_length, initial_bounds, dtype, seed

    class Batch:
        values = torch.zeros(3, 66)

        def set_evals(self, evals):
            self.evals = evals

    monkeypatch.setitem(sys.modules, "evotorch", types.SimpleNamespace(Problem=Problem))
    flat = FlatVector(widen(mlp, 4))
    problem, batch = flat.problem(fitness_of, seed=3), Batch()
    assert problem.given[0] == "max" and problem.given[1] == 66 and problem.given[4] == 3
    assert problem.given[2][0] < 0 < problem.given[2][1]
    problem._evaluate_batch(batch)
    torch.testing.assert_close(batch.evals, (-TARGET.square().mean()).expand(3))


@pytest.mark.filterwarnings("default")  # of evotorch and what it imports
def test_evotorchs_own_searchers_drive_a_population():
    algorithms = pytest.importorskip("evotorch.algorithms")
    flat = FlatVector(widen(mlp, 50))
    for make in (algorithms.SNES, algorithms.PGPE, algorithms.CMAES):
        options = {"popsize": 50, "stdev_init": 0.3}
        if make is algorithms.PGPE:
            options |= {"center_learning_rate": 0.2, "stdev_learning_rate": 0.1}
        search = make(flat.problem(fitness_of, seed=1), **options)
        search.run(40)
        assert search.status["best_eval"] > -0.05


def test_fitness_of_integers_infinite_fitness_and_lists():
    assert centered_ranks(torch.tensor([3, 1, 2])).tolist() == [0.5, -0.5, 0.0]
    assert torch.equal(standardized(torch.tensor([1, 2, 3])), standardized(torch.tensor([1.0, 2.0, 3.0])))
    found = standardized(torch.tensor([1.0, 2.0, -math.inf, 3.0, math.inf]))
    assert torch.equal(found, standardized(torch.tensor([1.0, 2.0, 1.0, 3.0, 3.0])))
    with pytest.raises(TypeError, match="fitness must be a tensor, got list"):
        OpenAIES(FullRank(nn.Linear(3, 2), 4)).tell([1.0] * 4)
    assert isinstance(linnet.single(LowRank(nn.Linear(3, 2), 4), 1), nn.Linear)
