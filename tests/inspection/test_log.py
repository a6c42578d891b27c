import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import linnet


class Writer:
    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_histogram(self, tag, values, step):
        self.histograms[tag, step] = values


def test_maps_say_their_penalty_violation_and_spectrum():
    torch.manual_seed(0)
    model = nn.Sequential(
        linnet.SVDLinear(6, 5), linnet.LassoLinear(5, 5, gamma=0.5), linnet.SoftPowerBoundLinear(5, 5)
    )
    writer = Writer()
    found = linnet.log(model, writer, 3)
    assert found == {tag: value for (tag, step), value in writer.scalars.items() if step == 3}
    lasso = model[1].weight.detach().double().numpy()
    assert found["penalty"] > 0.5 * np.abs(lasso).sum() * 0.999
    assert found["violation/0"] < 1e-5
    for i, layer in enumerate(model):
        singular = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
        np.testing.assert_allclose(writer.histograms[f"spectrum/{i}", 3], singular, rtol=1e-4, atol=1e-6)


def test_sparse_layers_say_their_density_and_how_much_they_moved():
    torch.manual_seed(0)
    model = nn.Sequential(
        linnet.SparseLinear(20, 20, sparsity=0.8, dynamic=linnet.SET(every=1, zeta=0.3)), linnet.KWinners(20)
    )
    writer, optimizer = Writer(), torch.optim.SGD(model.parameters(), lr=0.1)
    assert "moved/0" not in linnet.log(model, writer, 0)
    assert "moved/0" in (still := linnet.log(model, writer, 1)) and still["moved/0"] == 0
    before = {tuple(pair) for pair in model[0].indices.T.tolist()}
    model(torch.randn(8, 20)).square().sum().backward()
    optimizer.step()
    after = {tuple(pair) for pair in model[0].indices.T.tolist()}
    found = linnet.log(model, writer, 2)
    assert found["moved/0"] == pytest.approx(len(after - before) / len(after)) and after != before
    assert found["density/0"] == pytest.approx(80 / 400)
    p = model[1].duty_cycle.double().numpy()
    k = model[1]._k(20) / 20
    entropy = -sum(q * math.log2(q) + (1 - q) * math.log2(1 - q) for q in p if 0 < q < 1)
    assert found["entropy/1"] == pytest.approx(
        entropy / (-20 * (k * math.log2(k) + (1 - k) * math.log2(1 - k))), rel=1e-4
    )
    np.testing.assert_array_equal(writer.histograms["duty_cycle/1", 2], model[1].duty_cycle.numpy())
    other = Writer()
    assert "moved/0" not in linnet.log(model, other, 2)  # each writer compares with what it has seen


def test_synthetic_gradients_say_how_well_they_predict():
    model = nn.Sequential(linnet.DNI(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))))
    for _ in range(3):
        F.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()
    found = linnet.log(model, Writer(), 0)
    expected = {f"0/{tag}": float(value) for tag, value in model[0].diagnostics().items()}
    assert expected and expected.items() <= found.items()


def test_populations_say_their_fitness():
    model = linnet.widen(nn.Sequential(linnet.OrthogonalLinear(4, 4)), 3)
    writer = Writer()
    found = linnet.log(model, writer, 0, fitness=torch.tensor([1.0, 5.0, 0.0]))
    assert (found["fitness/best"], found["fitness/mean"], found["fitness/worst"]) == (5, 2, 0)
    assert len(writer.histograms["fitness", 0]) == 3
    assert not any(tag.startswith("violation/") for tag in found)  # a leaf of a widened net cannot judge itself
    with pytest.raises(ValueError, match=r"fitness must have shape \(beings,\)"):
        linnet.log(model, writer, 0, fitness=torch.ones(2, 2))


@pytest.mark.parametrize("layer", list(linnet.catalogue()))
@pytest.mark.parametrize("beings", [None, 2])
def test_every_layer_and_a_writer_of_scalars_only(layer, beings):
    class Scalars:
        def add_scalar(self, tag, value, step):
            assert isinstance(value, float) and math.isfinite(value), tag

    model = linnet.MLP(6, 8, 8, depth=3, layer=layer, beings=beings)
    state = torch.get_rng_state()
    found = linnet.log(model, Scalars(), 0)
    assert ("violation/2" in found) == (linnet.catalogue()[layer].promise != "none")
    assert torch.equal(state, torch.get_rng_state()), "logging must not disturb the training"


def test_what_is_no_writer():
    with pytest.raises(TypeError, match=r"must have add_scalar"):
        linnet.log(nn.Linear(2, 2), print, 0)


def test_the_summary_writer_of_torch(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        linnet.log(nn.Sequential(linnet.OrthogonalLinear(4, 4)), writer, 1, fitness=torch.randn(5))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("violation/0")[0].step == 1
    assert events.Histograms("spectrum/0")[0].histogram_value.num == 4
