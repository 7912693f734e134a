"""A mixture of experts against the dense model of equal active FLOPs, on the same text: loss, and how even the load is.

    python benchmarks/experts.py DATA OUTPUT [--steps=500] [--seeds=3]

DATA is the folder of a run whose corpus and cache are used (`pretrain cache`). The dense model is 4 layers x 128; the
other has 8 experts of half its MLP each, of which a token goes through 2. Both train on the same batches. Prints the
held-out loss of each seed, and the least and greatest load of an expert over its even share, averaged over the last
50 steps of training.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from pretrain.experiment import Experiment
from pretrain.train.metrics import read_metrics

RUN = Path(__file__).parents[1] / "gin_configs" / "runs" / "scaling.gin"
SHAPE = {"num_layers": 4, "embed_dim": 128, "num_heads": 4, "mlp_dim": 384}
EXPERTS = {"num_experts": 8, "top_k": 2, "mlp_dim": 192, "balance": 0.01, "bias_rate": 0.003}


def train(data: str, workdir: Path, seed: int, steps: int, routed: bool) -> dict[str, float]:
    """The last row of metrics with the held-out loss, and mean loads."""
    bindings = [f"TransformerConfig.{name} = {value}" for name, value in SHAPE.items()]
    bindings += [f"Experiment.data = '{data}'", f"SEED = {seed}", f"TRAIN_STEPS = {steps}", "LOG_EVERY = 1",
                 "TransformerConfig.parametrization = 'standard'", "LEARNING_RATE = 3e-3",
                 "TransformerConfig.scan_unroll = -1"]  # fmt: skip
    if routed:
        bindings += ["TransformerConfig.experts = @Experts()", *(f"Experts.{k} = {v}" for k, v in EXPERTS.items())]
    shutil.rmtree(workdir, ignore_errors=True)
    Experiment.from_gin([str(RUN)], bindings, workdir=str(workdir)).train()
    rows = read_metrics(workdir / "metrics.jsonl")
    names = ("expert_load_min", "expert_load_max") if routed else ()
    loads = {name: float(np.mean([row[name] for row in rows[-50:]])) for name in names}
    return {"loss": rows[-1].get("validation_cross_entropy", rows[-1]["validation_loss"]), **loads}


def main() -> None:
    """Trains both models with every seed and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    differences = []
    for seed in range(flags.seeds):
        dense = train(flags.data, flags.output / f"dense-{seed}", seed, flags.steps, routed=False)
        routed = train(flags.data, flags.output / f"experts-{seed}", seed, flags.steps, routed=True)
        differences.append(routed["loss"] - dense["loss"])
        print(f"seed {seed}: dense {dense['loss']:.4f}, experts {routed['loss']:.4f} nats a token; load "
              f"{routed['expert_load_min']:.3f} to {routed['expert_load_max']:.3f} of even", flush=True)  # fmt: skip
    print(f"experts less dense, by seed: {[round(difference, 4) for difference in differences]}")


if __name__ == "__main__":
    main()
