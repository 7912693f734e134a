"""Whether the learning rate found at width 128 is the best at width 512: under muP it should be, without it not.

    python benchmarks/learning_rate_transfer.py --data=runs/scaling --workdir=runs/transfer [--seeds=0]

Trains decoders of 2 layers on the cache of a sweep (`pretrain scaling sweep --gin_file=gin_configs/runs/scaling.gin`,
which may be stopped once its cache is there). For each width the rate goes in factors of 2 until worse ones lie on both
sides; the best is the lowest point of a parabola in the logarithm of the rate through the three about it (Yang et al.
2022, "Tensor Programs V", figure 1). Writes `losses.json`, which a second call goes on from, and
`learning_rate_transfer.png`. Exit code 1 unless muP's best at 512 lies within a factor 1.5 of that at 128, and
standard's does not.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import gin
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.core.console import say
from pretrain.core.errors import exit_code
from pretrain.experiment import Experiment
from pretrain.train.metrics import read_metrics

GIN_FILE = "gin_configs/runs/scaling.gin"
BASE, LARGEST, WIDTHS = 128, 512, (128, 512, 256)  # the last is only drawn
FALLS = {"mup": 0, "standard": 1}  # where to look first: the best rate falls as width to this power
HEAD_DIM, START, CLOSE = 64, 2.0**-7, 1.5
FIXED = (
    "BATCH_SIZE=8", "SEQUENCE_LENGTH=64", "TRAIN_STEPS=64", "TransformerConfig.num_layers=2",
    "Training.eval_batches=64", "TransformerConfig.max_length=64", f"TransformerConfig.base_embed_dim={BASE}",
    "Schedule.warmup_steps=8",
)  # fmt: skip


class Losses:
    """Held-out losses of runs by parametrization, width, seed and rate, kept in a file."""

    def __init__(self, data: str, path: Path):
        self.data, self.path = data, path
        self.known = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, parametrization: str, width: int, seed: int, rate: float) -> float:
        if width == BASE:
            parametrization = "standard"  # which muP is, at its base
        key = f"{parametrization} {width} {seed} {rate:.6g}"
        if key not in self.known:
            self.known[key] = self._train(parametrization, width, seed, rate)
            self.path.write_text(json.dumps(self.known, indent=1) + "\n")
            say(f"{key}: {self.known[key]:.4f}")
        return self.known[key]

    def _train(self, parametrization: str, width: int, seed: int, rate: float) -> float:
        bindings = [
            *FIXED, f"Experiment.data='{self.data}'", f"LEARNING_RATE={rate}", f"SEED={seed}", "CacheConfig.seed=0",
            f"TransformerConfig.parametrization='{parametrization}'", f"TransformerConfig.embed_dim={width}",
            f"TransformerConfig.num_heads={width // HEAD_DIM}", f"TransformerConfig.mlp_dim={width * 11 // 4}",
        ]  # fmt: skip
        gin.clear_config()
        with tempfile.TemporaryDirectory() as folder:
            Experiment.from_gin([GIN_FILE], bindings, workdir=folder).train()
            loss = read_metrics(Path(folder) / "metrics.jsonl")[-1]["validation_loss"]
        return float(loss) if np.isfinite(loss) else 1e3


def search(loss_of, start: float) -> tuple[np.ndarray, np.ndarray]:
    """Rising rates with a worse one on either side of the best, and their losses."""
    rates = {start * factor: loss_of(start * factor) for factor in (0.5, 1.0, 2.0)}
    while True:
        best = min(rates, key=rates.get)
        missing = [rate for rate in (best / 2, best * 2) if rate not in rates]
        if not missing:
            break
        rates.update((rate, loss_of(rate)) for rate in missing)
    ordered = sorted(rates)
    return np.array(ordered), np.array([rates[rate] for rate in ordered])


def lowest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The parabola's lowest point about the best rate."""
    middle = int(np.argmin(losses))
    near = slice(middle - 1, middle + 2)
    a, b, _ = np.polyfit(np.log(rates[near]), losses[near], 2)
    return float(np.exp(-b / (2 * a)))


def draw(curves: dict, best: dict, path: Path) -> None:
    """One panel a parametrization, one curve a width."""
    figure = Figure((8.4, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True, sharex=True), FALLS, strict=True):
        for index, width in enumerate(sorted(WIDTHS)):
            colour = matplotlib.colormaps["viridis"](0.1 + 0.38 * index)
            rates, losses = curves[kind, width]
            axes.plot(rates, losses, "o-", color=colour, linewidth=1.4, markersize=4, label=f"width {width}")
            axes.axvline(best[kind, width], color=colour, linestyle=":", linewidth=1.2)
        axes.set(xscale="log", xlabel="peak learning rate", title={"mup": "muP"}.get(kind, kind))
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    low = min(losses.min() for _, losses in curves.values())
    figure.axes[0].set(ylabel="held-out loss (nats a token)", ylim=(low - 0.03, low + 0.7))
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with corpus/ and cache/")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    folder = Path(arguments.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    losses, curves, best = Losses(arguments.data, folder / "losses.json"), {}, {}
    for kind in FALLS:
        for width in WIDTHS:
            rates, found = curves.get((kind, BASE), ((START,), (0.0,)))
            start = rates[np.argmin(found)] * (BASE / width) ** FALLS[kind]
            mean = lambda rate, kind=kind, width=width: np.mean([losses(kind, width, s, rate) for s in arguments.seeds])  # noqa: E731
            curves[kind, width] = search(mean, start)
            best[kind, width] = lowest(*curves[kind, width])
            loss = min(curves[kind, width][1])
            print(f"{kind:9s} width {width:4d}: best rate {best[kind, width]:.5f}, loss {loss:.4f}", flush=True)
    draw(curves, best, folder / "learning_rate_transfer.png")
    moved = {kind: best[kind, LARGEST] / best[kind, BASE] for kind in FALLS}
    print(", ".join(f"{kind}: best at {LARGEST} over best at {BASE} = {value:.3f}" for kind, value in moved.items()))
    transfers = {kind: 1 / CLOSE <= value <= CLOSE for kind, value in moved.items()}
    return int(not transfers["mup"] or transfers["standard"])


if __name__ == "__main__":
    sys.exit(exit_code(main, "learning_rate_transfer"))
