"""MFU by formula against the figures MaxText publishes for TPUs, and from 4 to 6,144 chips for three presets.

    python benchmarks/weak_scaling.py [--json]

Published: MaxText's MaxText/configs/v5p/README.md, MaxText/configs/v5e/README.md and README.md as of January 2025, with
the batch, remat policy and tensor parallelism of the scripts beside them (for the 1160B model of README.md no shape is
published: the 1024B one stands in); the Llamas are of docs/reference/models/tiering.md and its recipes. MaxText counted
causal attention whole then, and so does the prediction here. Its "minimal" policy saves every product with a matrix;
slices are replicas. Nothing is compiled: it takes a second.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from pretrain.core import config as gin_config
from pretrain.core.errors import exit_code
from pretrain.experiment import Experiment
from pretrain.models.config import REMAT_NAMES, TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.plan.chips import Pod, parse_pod
from pretrain.plan.estimate import Setting, estimate
from pretrain.plan.shapes import count_parameters

LENGTH = 2048
ROOT = Path(__file__).resolve().parents[1]
CLOSE = 0.15


@dataclasses.dataclass(frozen=True)
class Published:
    """Runs of one model on slices of one kind.

    Attributes:
        billions: MaxText's `global_parameter_scale`.
        topology: of one slice.
        batch: sequences of 2,048 a chip.
        remat: "full" or "minimal".
        tensor: ways of tensor parallelism; the rest of a slice is fsdp.
        mfu: published, per cent, on 1, 2, 4 ... slices.
    """

    billions: int
    topology: str
    batch: int
    remat: str
    tensor: int
    mfu: tuple[float, ...]


PUBLISHED = [
    Published(32, "v5p:4x4x4", 6, "minimal", 4, (71.47, 69.43)),
    Published(64, "v5p:4x4x4", 3, "minimal", 4, (70.31, 67.26)),
    Published(128, "v5p:4x4x8", 1, "minimal", 8, (68.68, 66.34)),
    Published(128, "v5p:4x8x8", 1, "minimal", 8, (68.83, 59.66)),
    Published(256, "v5p:8x8x8", 1, "minimal", 8, (67.09, 62.99)),
    Published(512, "v5p:8x8x8", 2, "full", 8, (63.99, 61.45)),
    Published(1024, "v5p:8x8x16", 2, "full", 16, (55.35, 51.55)),
    Published(1024, "v5p:8x16x16", 2, "full", 16, (64.80, 60.83)),
    Published(1024, "v5p:16x16x24", 2, "full", 16, (66.23,)),
    Published(16, "v5e:16x16", 6, "full", 1, (61.10, 59.37, 59.14, 58.27, 56.56, 54.65)),
    Published(32, "v5e:16x16", 4, "full", 1, (66.86, 64.81, 64.10, 63.67, 62.26, 60.40)),
    Published(64, "v5e:16x16", 2, "full", 1, (59.90, 56.66, 55.85, 54.96, 53.29, 50.18)),
    Published(128, "v5e:16x16", 1, "minimal", 16, (56.06, 55.82, 54.93, 52.93, 50.86, 46.25)),
]
# Preset, topology, sequences a chip, their length, what remat saves, tensor parallelism, MFU.
LLAMAS = [
    ("llama2_70b", "v5p:4x4x8", 4, 4096, ("query", "key", "value", "attention", "attention_out"), 1, 65.4),
    ("llama3_8b", "v6e:16x16", 4, 8192, ("query", "key", "value", "attention_out"), 1, 45.46),
    ("llama3_70b", "v6e:16x16", 5, 8192, ("query", "key", "value"), 1, 50.33),
    ("llama3_405b", "v6e:16x16", 1, 8192, ("query", "key", "value", "attention_out"), 4, 38.55),
]
# Preset, topologies from 4 chips to 6,144, sequences a chip.
PRESETS = {"llama3_8b": 2, "llama3_70b": 2, "gpt3_175b": 2}
SIZES = ["2x2x1", "2x2x4", "4x4x4", "4x8x8", "8x8x16", "16x16x24"]


def maxtext_model(billions: int, remat: str) -> TransformerConfig:
    """The shape of MaxText's `global_parameter_scale`: heads and MLP, width, depth doubled in turns from 1B."""
    thirds, rest = divmod(int(math.log2(billions)), 3)
    wide = thirds + (rest > 0)
    names = REMAT_NAMES if remat == "minimal" else ()
    return TransformerConfig(
        vocab_size=32000, num_layers=16 << thirds, embed_dim=2048 << (thirds + (rest > 1)), num_heads=16 << wide,
        head_dim=128, mlp_dim=7168 << wide, max_length=LENGTH, tie_embeddings=False,
        remat="named" if names else "full", remat_names=names,
    )  # fmt: skip


def setting(model: TransformerConfig, pod: Pod, batch: int, length: int, tensor: int = 1) -> Setting:
    """Replicas on slices, fully sharded inside, `batch` sequences a chip."""
    ways = {"data": pod.slices, "fsdp": pod.slice_chips // tensor, "stage": 1, "context": 1, "expert": 1}
    parameters = count_parameters(model).total
    return Setting(model, batch * pod.chips, length, 1, {**ways, "tensor": tensor}, parameters)


def prediction(name: str, model: TransformerConfig, pod: Pod, batch: int, length: int, tensor: int, mfu: float) -> dict:
    """One point: published and predicted MFU in per cent, causal attention counted whole."""
    guess = estimate(setting(model, pod, batch, length, tensor), pod)
    flops = count_flops(model, length)
    counted = (flops.training + 3 * flops.attention_scores) * batch * length
    predicted = 100 * counted / (guess.step_seconds * pod.peak_flops)
    row = {"model": name, "pod": str(pod), "chips": pod.chips, "published": mfu}
    return {**row, "predicted": predicted, "error": predicted / mfu - 1}


def against_published() -> list[dict]:
    """Published and predicted MFU at every point."""
    rows = []
    for run in PUBLISHED:
        model = maxtext_model(run.billions, run.remat)
        for index, mfu in enumerate(run.mfu):
            pod = parse_pod(run.topology, 2**index)
            rows.append(prediction(f"{run.billions}B", model, pod, run.batch, LENGTH, run.tensor, mfu))
    for preset, topology, batch, length, names, tensor, mfu in LLAMAS:
        gin_config.load([str(ROOT / "gin_configs" / "models" / f"{preset}.gin")])
        model = dataclasses.replace(TransformerConfig(), remat="named", remat_names=names)
        rows.append(prediction(preset, model, parse_pod(topology), batch, length, tensor, mfu))
    return rows


def presets() -> list[dict]:
    """Predicted MFU of the presets with a constant batch a chip, causal attention counted half."""
    rows = []
    for name, batch in PRESETS.items():
        gin_config.load([str(ROOT / "gin_configs" / "runs" / f"{name}.gin")])
        model, length = TransformerConfig(), Experiment("").training.sequence_length
        for size in SIZES:
            pod = parse_pod(f"v5p:{size}")
            guess = estimate(setting(model, pod, batch, length), pod)
            mfu = 100 * guess.model_flops / (guess.step_seconds * pod.chips * pod.peak_flops)
            row = {"preset": name, "chips": pod.chips, "mfu": mfu, "seconds": guess.step_seconds}
            rows.append({**row, "gib": guess.peak / 2**30, "fits": guess.peak <= pod.chip.memory})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    points, curves = against_published(), presets()
    close = sum(abs(row["error"]) <= CLOSE for row in points) / len(points)
    if parser.parse_args().json:
        return print(json.dumps({"points": points, "presets": curves, "within_15_percent": close}))
    for row in points:
        print(f"{row['model']:>11} {row['pod']:<18} {row['chips']:>5} chips  published {row['published']:.1f} %  "
              f"predicted {row['predicted']:.1f} %  {row['error']:+.0%}")  # fmt: skip
    for chip in ("v5p", "v5e", "v6e"):
        errors = [abs(row["error"]) for row in points if chip in row["pod"]]
        print(f"{chip}: {len(errors)} points, {sum(e <= CLOSE for e in errors)} within {CLOSE:.0%}")
    print(f"{len(points)} points, {close:.0%} within {CLOSE:.0%}")
    for row in curves:
        fits = "" if row["fits"] else "  (does not fit)"
        print(f"{row['preset']:<12} {row['chips']:>5} chips  MFU {row['mfu']:.1f} %  step {row['seconds']:.2f} s  "
              f"{row['gib']:.1f} GiB a chip{fits}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_code(main, "weak_scaling"))
