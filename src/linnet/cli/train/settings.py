"""What a run of ``linnet train`` is asked to do."""

from dataclasses import dataclass

import torch

from linnet.cli.data.data_sets import check_data
from linnet.cli.setting import check_settings, option
from linnet.cli.train.layer_spec import LayerSpec, parse_layer

TRAINING = {
    "none": "backpropagation",
    "dni": "synthetic gradients (--decouple dni)",
    "cdni": "synthetic gradients conditioned on the label (--decouple cdni)",
    "local": "local losses (--decouple local)",
    "dfa": "direct feedback alignment (--decouple dfa)",
}
"""The values of ``--decouple``, and what each is called."""
SEEDS = 2**32
"""NumPy takes seeds below this."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run, bit for bit. The defaults are those of the command line.

    One thread is the fastest for networks as small as these, and gives the same bits on every number of cores.

    Raises:
        ValueError: a setting is not what it must be.
    """

    data: str = option(
        "digits",
        "Data set: digits, fashion-mnist or mnist, or a file of your own: .npz with arrays X and y (and optionally "
        "X_test and y_test), or .csv.",
        metavar="NAME|FILE",
    )
    data_dir: str | None = option(
        None, "Folder with the four IDX files of fashion-mnist or mnist, plain or .gz.", metavar="FOLDER"
    )
    target: str | None = option(
        None, "Column of a .csv file that holds the classes.", metavar="COLUMN", shown="the last one"
    )
    layers: tuple[str, ...] = option(
        ("linear", "symmetric", "orthogonal", "sparse:sparsity=0.9", "wide:beings=8"),
        "Layer to train with: a name shown by linnet layers or package.module:Class, with options appended as "
        ":option=value,option=value. May be repeated.",
        name="--layer",
        metavar="LAYER",
    )
    epochs: int = option(20, "Number of epochs.")
    seed: int = option(0, "First random seed.", low=0, high=SEEDS - 1)
    seeds: int = option(3, "Number of random seeds; each trains a network of its own.")
    hidden: int = option(128, "Width of the hidden layers.", high=2**20)
    depth: int = option(4, "Number of linear layers.", high=2**20)
    batch_size: int = option(64, "Batch size.")
    lr: float = option(2e-3, "Learning rate of Adam.")
    device: str = option("cpu", "Device: cpu, cuda or cuda:N.", metavar="DEVICE")
    threads: int = option(1, "Number of CPU threads.", high=1024)
    decouple: str = option(
        "none",
        "Training without a backward pass through the whole network: synthetic gradients (dni), synthetic gradients "
        "conditioned on the label (cdni), local losses (local) or direct feedback alignment (dfa).",
        choices=TRAINING,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"`seed` and `seeds` must add up to at most 2**32, got {self.seed} and {self.seeds}")
        check_data(self.data, self.data_dir, self.target)
        self.torch_device()
        if isinstance(self.layers, str) or not all(isinstance(text, str) for text in self.layers):
            raise ValueError(f"layers must be a tuple of strings, got {self.layers!r}")
        texts = [spec.text for spec in self.specs()]
        if not texts:
            raise ValueError("layers must name at least one layer, got none")
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"layers must not repeat a layer, got {text} twice")
        object.__setattr__(self, "layers", tuple(texts))

    def specs(self) -> list[LayerSpec]:
        """The kinds of layer."""
        return [parse_layer(text) for text in self.layers]

    def torch_device(self) -> torch.device:
        """The device, once it is known to be there."""
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = torch.device("meta")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
            known = ["cpu"] + [f"cuda:{i}" for i in range(count)]
            raise ValueError(f"device must be one of {', '.join(known)} on this machine, got {self.device!r}")
        return device
