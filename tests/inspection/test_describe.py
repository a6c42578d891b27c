import io

import matplotlib
import pytest
import torch
from torch import nn

import linnet
from linnet.inspection.describe import parts

matplotlib.use("agg")


def net():
    shared = linnet.OrthogonalLinear(8, 8)
    model = nn.Sequential(
        linnet.SparseLinear(8, 8, sparsity=0.75),
        linnet.Parallel(linnet.Residual(shared), linnet.FixedRandom(8, 4)),
        linnet.Repeat(linnet.SymmetricLinear(12, 12), 3),
        nn.Linear(12, 8),
        shared,
        linnet.KWinners(8, act_sparsity=0.5),
    )
    model[3].bias.requires_grad_(False)
    return model


def described(model):
    out = io.StringIO()
    linnet.describe(model, file=out)
    return out.getvalue()


def test_every_part_with_what_it_is():
    found = {part.name: part for part in parts(net())}
    assert found["0"].density == 0.25 and found["0"].parameters == 16 + 8
    assert found["1.0.module"].promise == "AᵀA = I" and found["4"].again == "1.0.module"
    assert found["1.1"].fixed == 32 and found["1.1"].parameters == 0
    assert found["3"].parameters == 96 and found["3"].fixed == 8
    assert found["5"].density == 0.5
    model = net()
    assert found[""].parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [part.name for part in parts(model) if part.again is None] == [name for name, _ in model.named_modules()]


def test_the_table():
    text = described(net())
    lines = {
        line.split()[1] if line.strip().startswith("(") else line.split()[0]: line for line in text.splitlines()[3:]
    }
    assert "25 %" in lines["SparseLinear"] and "8 → 8" in lines["SparseLinear"]
    assert "= 1.0.module" in text and "Repeat × 3" in text and "Parallel (cat)" in text
    assert "96 + 8 fixed" in text and "32 fixed" in text
    assert "beings" not in text
    population = described(nn.Sequential(linnet.Spread(), linnet.MLP(8, 6, 3, beings=5)))
    assert "beings" in population and "density" not in population


@pytest.mark.parametrize("layer", list(linnet.catalogue()))
def test_every_layer_is_told_and_drawn(layer):
    model = linnet.MLP(6, 8, 8, depth=3, layer=layer, beings=2)
    assert linnet.catalogue()[layer].__name__ in described(model)
    ax = linnet.diagram(model)
    matplotlib.pyplot.close(ax.figure)
    assert any(linnet.catalogue()[layer].__name__ in text.get_text() for text in ax.texts)


@pytest.mark.parametrize(
    "model",
    [
        nn.LazyLinear(3),
        nn.Sequential(),
        linnet.DNI(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))),
        linnet.widen(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 3),
        nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        linnet.RNN(3, 4, 2, hidden_map="orthogonal"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_any_model_is_told_and_drawn(model):
    assert type(model).__name__ in described(model)
    ax = linnet.diagram(model)
    matplotlib.pyplot.close(ax.figure)
    assert len(ax.texts) == len(parts(model))


def test_boxes_lie_inside_their_parents_and_not_on_each_other():
    ax = linnet.diagram(net())
    matplotlib.pyplot.close(ax.figure)
    boxes = [patch.get_bbox() for patch in ax.patches if not patch.fill]
    assert len(boxes) == len(parts(net()))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            inside = a.x0 < b.x0 and b.x1 < a.x1 + 1e-9 and a.y0 < b.y0 and b.y1 < a.y1 + 1e-9
            apart = a.x1 <= b.x0 + 1e-9 or a.y1 <= b.y0 + 1e-9 or b.x1 <= a.x0 + 1e-9 or b.y1 <= a.y0 + 1e-9
            assert inside or apart


def test_depth_is_how_deep_it_draws():
    ax = linnet.diagram(net(), depth=1)
    matplotlib.pyplot.close(ax.figure)
    assert len(ax.texts) == 1 + len(net())
    mine = matplotlib.pyplot.figure().add_subplot()
    assert linnet.diagram(nn.Linear(2, 2), ax=mine) is mine
    matplotlib.pyplot.close(mine.figure)


def test_names_with_brackets_are_told_as_they_are():
    class Bracket(nn.Module):
        pass

    Bracket.__name__ = "A[bold]B"
    assert "A[bold]B" in described(Bracket())
    assert torch.is_grad_enabled()
