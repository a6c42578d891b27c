"""What the pictures of sparse layers show is what the layers are."""

import matplotlib
import numpy as np
import pytest
import torch

from linnet import Rewiring, RigL, SparseLinear
from linnet.sparse import Snapshots, plot_connectivity, plot_degrees, plot_growth

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def test_a_small_matrix_is_drawn_exactly():
    layer = SparseLinear(40, 30)
    axes = plot_connectivity(layer)
    np.testing.assert_array_equal(axes.images[0].get_array(), (layer.to_dense() != 0).numpy())
    assert "120 of 30 x 40" in axes.get_title()
    given = matplotlib.pyplot.subplots()[1]
    assert plot_connectivity(layer, given) is given


def test_a_large_matrix_is_drawn_as_a_density():
    layer = SparseLinear(2000, 1000, sparsity=0.99)
    axes = plot_connectivity(layer)
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn.shape == (256, 512) and drawn.mean() == pytest.approx(0.01, rel=1e-3)
    row, col = layer.indices.numpy()
    first = ((row * 256 // 1000 == 7) & (col * 512 // 2000 == 9)).sum()
    assert drawn[7, 9] == pytest.approx(first / (2e6 / (256 * 512)))
    huge = SparseLinear(100_000, 100_000, sparsity=0.9999)
    assert np.asarray(plot_connectivity(huge).images[0].get_array()).shape == (512, 512)


def test_degrees_are_counted():
    layer = SparseLinear(40, 30)
    axes = plot_degrees(layer)
    rows, cols = layer.indices.tolist()
    for container, units, size in zip(axes.containers, (rows, cols), (30, 40), strict=True):
        counts = np.bincount(np.bincount(units, minlength=size))
        for bar in container:
            degree = round(bar.get_x() + bar.get_width() / 2)
            assert bar.get_height() == pytest.approx((counts[degree] if degree < len(counts) else 0) / size)
        assert sum(bar.get_height() for bar in container) == pytest.approx(1)


def test_growth_is_a_strip_of_images():
    layer = SparseLinear(16, 8, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    snapshots = Snapshots(every=2)
    snapshots.take(layer, 0)
    Rewiring(layer, optimizer, RigL(every=1), on_move=snapshots)
    for _ in range(8):
        layer(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert snapshots.steps == [0, 2, 4, 6, 8]
    assert torch.equal(snapshots.images[-1], torch.bincount(layer.col, minlength=16).float())
    figure = plot_growth(snapshots, (4, 4), columns=3)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["step 0", "step 4", "step 8"]
    np.testing.assert_array_equal(shown[-1].images[0].get_array(), snapshots.images[-1].view(4, 4))
    weighted = Snapshots(weighted=True)
    weighted.take(layer, 9)
    torch.testing.assert_close(weighted.images[0], layer.to_dense().detach().abs().sum(0))
    population = SparseLinear(16, 8, beings=3, shared=False)
    snapshots.take(population, 10)
    assert float(snapshots.images[-1].sum()) == pytest.approx(population.nnz)


def test_mistakes_are_told():
    population = SparseLinear(16, 8, beings=2, shared=False)
    for call, message in (
        (lambda: plot_connectivity(population), r"being must lie in 0\.\.1"),
        (lambda: plot_degrees(population, being=2), r"being must lie in 0\.\.1"),
        (lambda: plot_connectivity(SparseLinear(16, 8), being=0), "being is for a population"),
        (lambda: plot_growth(Snapshots()), "needs a snapshot, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    snapshots = Snapshots()
    snapshots.take(population, 0)
    with pytest.raises(ValueError, match="as many pixels as there are inputs, 16"):
        plot_growth(snapshots, (3, 5))
    np.testing.assert_array_equal(
        plot_connectivity(population, being=1).images[0].get_array(), (population.to_dense()[1] != 0).numpy()
    )
