"""Dynamic sparse training, a penalty and synthetic gradients, under a bare loop and under Lightning: one net, no glue.

    python examples/trainers.py loop
    python examples/trainers.py lightning        # needs the extra `trainers`

Rewiring follows the optimizer by itself, the penalty is one term of the loss, and DNI is a module like any other.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import linnet
from linnet.cli.data.data_sets import Data, load_data

EPOCHS, BATCH, LR, GAMMA = 12, 64, 3e-3, 1e-5


def network(data: Data) -> linnet.DNI:
    """Sparse and moving, then orthogonal, then with exact zeros; every layer but the first behind a cut."""
    net = nn.Sequential(
        linnet.SparseLinear(data.features, 128, sparsity=0.8, dynamic=linnet.RigL(every=20, until=200)),
        nn.BatchNorm1d(128),  # without it, synthesizers at this learning rate do not keep up: 24 % are right
        nn.ReLU(),
        linnet.OrthogonalLinear(128, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        linnet.LassoLinear(128, data.classes, gamma=GAMMA),
    )
    return linnet.DNI(net, gradient=linnet.Synthetic(context=data.classes))


def loss_of(model: linnet.DNI, x: Tensor, y: Tensor) -> Tensor:
    with model.context(y):
        return F.cross_entropy(model(x), y) + linnet.penalty(model)


def batches(data: Data, epoch: int) -> DataLoader[tuple[Tensor, ...]]:
    order = torch.randperm(len(data.train.targets), generator=torch.Generator().manual_seed(epoch))
    return DataLoader(TensorDataset(*data.train), BATCH, sampler=order.tolist())


def loop(data: Data, epochs: int = EPOCHS) -> linnet.DNI:
    model = network(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for epoch in range(epochs):
        for x, y in batches(data, epoch):
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def lightning(data: Data, epochs: int = EPOCHS) -> linnet.DNI:
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(data)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return loss_of(self.model, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), lr=LR)

        def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
            return batches(data, self.current_epoch)

    classifier = Classifier()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(classifier)
    return classifier.model


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    inputs, targets = data.val
    return float((model.eval()(inputs).argmax(1) == targets).float().mean())


TRAINERS: dict[str, Callable[..., linnet.DNI]] = {"loop": loop, "lightning": lightning}


def main(name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data("digits")
    model = TRAINERS[name](data)
    sparse = model.network[0]
    print(
        f"{name}: {100 * accuracy(model, data):.1f} % of the validation split right, "
        f"{sparse.steps} steps counted, violation {float(linnet.violation(model)):.0e}"
    )


if __name__ == "__main__":
    if sys.argv[1:] not in (["loop"], ["lightning"]):
        sys.exit(__doc__)
    main(sys.argv[1])
