"""Demo: sunspots forecast for sixty years, and for ten thousand, by nets trained on six years at a time."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from linnet.cli.data.data_sets import Data, load_sunspots
from linnet.cli.tour.demos.demo import Demo, Progress
from linnet.core.linear import Linear
from linnet.core.linear_map import LinearMap
from linnet.core.palette import BLUE, GREY, ORANGE
from linnet.maps.svd import SVDLinear

LAGS, HIDDEN, LATENT, SEEDS, STEPS = 22, 32, 32, 5, 300  # 22 years: two cycles of the sun
TRAINED, FAR, FOREVER = 6, 60, 10_000  # years ahead: in training, in validation and test, and for the bound
TEST_FROM, VAL_FROM = 1930, 1850
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
DECAY = 1.0
RUNAWAY = 10  # times the largest number ever seen


class Forecaster(nn.Module):
    """z = encoder(the last LAGS years), k years on: z Aᵏ c + b; a population of SEEDS models."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            Linear(LAGS, HIDDEN, beings=SEEDS), nn.Tanh(), Linear(HIDDEN, LATENT, beings=SEEDS)
        )
        self.readout = Linear(LATENT, 1, beings=SEEDS)
        self.transition: LinearMap = (
            SVDLinear(LATENT, LATENT, bias=False, sigma_max=1.0, beings=SEEDS)
            if kind == "stable"
            else Linear(LATENT, LATENT, bias=False, beings=SEEDS)
        )

    def forward(self, past: Tensor, years: int) -> Tensor:
        """(batch, LAGS) -> (batch, beings, years)."""
        a, column = self.transition.weight.mT, self.readout.weight.mT  # (beings, n, n), (beings, n, 1)
        columns = []
        for _ in range(years):
            column = a @ column
            columns.append(column)  # Aᵏ c
        z = self.encoder(past[:, None]).transpose(0, 1)  # (beings, batch, n)
        return torch.baddbmm(self.readout.bias.unsqueeze(1), z, torch.cat(columns, -1)).transpose(0, 1)  # type: ignore[union-attr]


def windows(series: Tensor, start: int, stop: int, years: int) -> tuple[Tensor, Tensor]:
    """Every LAGS years and the years after them, these within start..stop: (batch, LAGS), (batch, years)."""
    cut = series[max(start - LAGS, 0) : stop].unfold(0, LAGS + years, 1)
    return cut[:, :LAGS], cut[:, LAGS:]


def errors(net: Forecaster, past: Tensor, future: Tensor) -> Tensor:
    """Mean squared error of each being, (beings)."""
    return (net(past, future.shape[1]) - future[:, None]).square().mean((0, 2))


def train(kind: str, rate: float, past: Tensor, future: Tensor) -> Forecaster:
    """Train a forecaster for each seed at one learning rate."""
    torch.manual_seed(0)  # encoder and readout, drawn first, start the same for every kind
    net = Forecaster(kind)
    decay = DECAY if kind == "weight decay" else 0.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        errors(net, past, future).sum().backward()
        optimizer.step()
    return net.requires_grad_(False)


def scaled(net: Forecaster) -> Forecaster:
    """A copy whose A is divided by its spectral radius where that is above 1."""
    net = deepcopy(net)
    radius = net.transition.eigvals().abs().amax(-1).clamp_min(1)
    net.transition.assign(net.transition.weight / radius[:, None, None])
    return net


def run(_: Data, progress: Progress) -> Demo:
    """Holds if, of the nets of every learning rate and seed, some of nn.Linear and none of the stable map diverge
    within FOREVER years, and the stable map, at the rate chosen on the validation years, is closer on the test years
    than the mean of the training years.

    To diverge is to forecast more than RUNAWAY times the largest number of sunspots ever seen. Rates are chosen by
    the error over FAR years in the validation years, the mean over the seeds. Two nn.Linear that a careful user would
    try, with weight decay and scaled after training, are measured too, and are no part of the rule.
    """
    years, numbers = load_sunspots()
    val_from, test_from = (int((years < year).sum()) for year in (VAL_FROM, TEST_FROM))
    mean, std = numbers[:val_from].mean(), numbers[:val_from].std()
    series = (numbers - mean) / std
    training = windows(series, 0, val_from, TRAINED)
    validation = windows(series, val_from, test_from, FAR)
    test = windows(series, test_from, len(series), FAR)

    nets: dict[str, dict[float, Forecaster]] = {"nn.Linear": {}, "weight decay": {}, "stable": {}, "scaled": {}}
    for i, kind in enumerate(("nn.Linear", "weight decay", "stable")):
        for j, rate in enumerate(RATES):
            nets[kind][rate] = train(kind, rate, *training)
            progress(0.8 * (i * len(RATES) + j + 1) / (3 * len(RATES)))
    nets["scaled"] = {rate: scaled(net) for rate, net in nets["nn.Linear"].items()}

    limit = RUNAWAY * numbers.max()
    off: dict[str, Tensor] = {}  # root of the mean squared error on the test years, in sunspots: (rates, beings)
    chosen: dict[str, int] = {}
    measured: dict[str, dict[str, Any]] = {}
    for kind, by_rate in nets.items():
        off[kind] = torch.stack([std * errors(net, *test).sqrt() for net in by_rate.values()])
        chosen[kind] = int(torch.stack([errors(net, *validation).mean() for net in by_rate.values()]).argmin())
        reach = torch.stack([(mean + std * net(test[0], FOREVER)).abs().amax((0, 2)) for net in by_rate.values()])
        measured[kind] = {
            "learning_rate": RATES[chosen[kind]],
            "test_rms_error_of_every_rate_and_seed": off[kind].tolist(),
            "spectral_radius": [net.transition.eigvals().abs().amax(-1).tolist() for net in by_rate.values()],
            "runs_away": (~(reach <= limit)).tolist(),  # NaN, from an overflow, counts
        }
        progress(0.8 + 0.2 * len(measured) / len(nets))
    count = len(RATES) * SEEDS
    runs_away = {kind: int(torch.tensor(measured[kind]["runs_away"]).sum()) for kind in nets}
    mean_off = float(std * test[1].square().mean().sqrt())

    def draw(axes: Any) -> None:
        shown = slice(test_from - 2 * LAGS, None)
        past, ahead = series[None, test_from - LAGS : test_from], years[test_from:]
        inset = axes.inset_axes((0.57, 0.5, 0.42, 0.42))
        stray = torch.tensor(measured["nn.Linear"]["runs_away"]).flatten()  # (rates * beings)
        for kind, color in (("nn.Linear", GREY), ("stable", BLUE)):
            lines = mean + std * torch.cat([net(past, len(ahead))[0] for net in nets[kind].values()])
            colors = [ORANGE if kind == "nn.Linear" and far else color for far in stray]
            for line, own in zip(lines, colors, strict=True):  # (years)
                axes.plot(ahead, line, color=own, linewidth=0.8, alpha=0.8)
            points = torch.cat([net.transition.eigvals().flatten() for net in nets[kind].values()])
            outside = points.abs() > 1
            inset.scatter(points.real, points.imag, s=3, color=color, linewidths=0)
            inset.scatter(points[outside].real, points[outside].imag, s=9, color=ORANGE, linewidths=0, zorder=3)
        axes.plot(years[shown], numbers[shown], color="black", linewidth=1.3)
        axes.axvspan(TEST_FROM, TEST_FROM + TRAINED, color="0.85", linewidth=0, zorder=0)
        for color, label in (
            ("black", "sunspots"),
            (BLUE, "SVDLinear, ‖A‖₂ ≤ 1"),
            (GREY, "nn.Linear"),
            (ORANGE, "nn.Linear that diverges"),
            ("0.85", "as far as it was trained"),
        ):
            axes.plot([], [], color=color, linewidth=2, label=label)
        axes.set(title=f"Sunspots forecast from {TEST_FROM}, {count} nets each", xlabel="year", ylabel="sunspots")
        axes.set_ylim(-100, 560)
        axes.legend(fontsize=8, loc="upper left")
        turn = torch.linspace(0, 2 * torch.pi, 200)
        inset.plot(turn.cos(), turn.sin(), color="black", linewidth=0.8)
        inset.set_title("eigenvalues of A, unit disc", fontsize=8)
        inset.set_aspect("equal")
        inset.patch.set_alpha(0.85)
        inset.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[], yticks=[])

    def at_best(kind: str) -> str:
        return f"{off[kind][chosen[kind]].mean():.0f} ± {off[kind][chosen[kind]].std():.0f}"

    def at_chosen(kind: str) -> int:
        return sum(measured[kind]["runs_away"][chosen[kind]])

    return Demo(
        claim=f"Nets trained {TRAINED} years ahead forecast sunspots for {FOREVER:,} years without diverging",
        plain=f"{runs_away['nn.Linear']} of {count} diverge; error up to {off['nn.Linear'].max():.0f} in {FAR} years",
        linnet=f"{runs_away['stable']} of {count} diverge; error up to {off['stable'].max():.0f} in {FAR} years",
        holds=bool(
            runs_away["stable"] == 0 < runs_away["nn.Linear"] and off["stable"][chosen["stable"]].mean() < mean_off
        ),
        note=(
            f"the {count} are {len(RATES)} learning rates x {SEEDS} seeds; at the rate that is best on {VAL_FROM} to "
            f"{TEST_FROM - 1}, the error over {FAR} years is {at_best('stable')} sunspots, that of nn.Linear "
            f"{at_best('nn.Linear')} ({at_chosen('nn.Linear')} of {SEEDS} diverge there), with weight decay "
            f"{at_best('weight decay')} ({runs_away['weight decay']} of {count} diverge), scaled after training to "
            f"ρ(A) <= 1 {at_best('scaled')} ({runs_away['scaled']} of {count} diverge), that of the mean of "
            f"the training years {mean_off:.0f}; every stable forecast fades to a constant"
        ),
        draw=draw,
        numbers={"test_rms_error_of_the_mean": mean_off, "runs_away": runs_away, "kinds": measured},
    )
