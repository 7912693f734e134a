"""A mixture of experts against the dense model of equal active FLOPs, on the same text: loss, and how even the load is.

    python benchmarks/experts.py DATA OUTPUT [--steps=500] [--seeds=3]

DATA is the folder of a run whose corpus and cache are used (`pretrain cache`). The dense model is 4 layers x 128; the
other has experts of half its MLP each, of which a token goes through 2. Both train on the same batches. Prints the
held-out loss of each seed, and the least and greatest load of an expert, in any layer, over its even share: of the next
50 batches, and of held-out text.
"""

import argparse
import itertools
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from pretrain.core.errors import exit_code
from pretrain.experiment import Experiment
from pretrain.sharding.placement import place_batch
from pretrain.train.metrics import read_metrics
from pretrain.train.step import summarize

RUN = Path(__file__).parents[1] / "gin_configs" / "runs" / "scaling.gin"
SHAPE = {"num_layers": 4, "embed_dim": 128, "num_heads": 4, "mlp_dim": 384}
# The weights of a token's two experts add up to the scale: 2, as if both halves of a dense MLP were added.
EXPERTS = {"num_experts": 8, "top_k": 2, "mlp_dim": 192, "scale": 2.0, "balance": 0.01, "bias_rate": 0.001}


def train(data: str, workdir: Path, seed: int, steps: int, routed: bool) -> dict[str, float]:
    """The last row of metrics with the held-out loss, and mean loads."""
    bindings = [f"TransformerConfig.{name} = {value}" for name, value in SHAPE.items()]
    bindings += ["SEQUENCE_LENGTH = 128", "TransformerConfig.max_length = 128"]
    bindings += [f"Experiment.data = '{data}'", f"SEED = {seed}", f"TRAIN_STEPS = {steps}", "LOG_EVERY = 1",
                 "TransformerConfig.parametrization = 'standard'", "LEARNING_RATE = 3e-3",
                 "TransformerConfig.scan_unroll = -1"]  # fmt: skip
    if routed:
        bindings += ["TransformerConfig.experts = @Experts()", *(f"Experts.{k} = {v}" for k, v in EXPERTS.items())]
    shutil.rmtree(workdir, ignore_errors=True)
    experiment = Experiment.from_gin([str(RUN)], bindings, workdir=str(workdir))
    params = experiment.train().params
    row = read_metrics(workdir / "metrics.jsonl")[-1]
    found = {"loss": row.get("validation_cross_entropy", row["validation_loss"])}
    if routed:
        found |= {f"held_out_{end}": row[f"validation_expert_load_{end}"] for end in ("min", "max")}
        found |= {end: next_loads(experiment, params, steps)[f"expert_load_{end}"] for end in ("min", "max")}
    return found


def next_loads(experiment: Experiment, params, steps: int) -> dict[str, float]:
    """Metrics over the 50 batches after the last step."""
    trainer, totals = experiment.trainer(), None
    for batch in itertools.islice(trainer.data.batches(steps), 50):
        new = trainer.eval_step(params, place_batch(batch, trainer.shardings))
        totals = new if totals is None else jax.tree.map(jnp.add, totals, new)
    return {name: float(value) for name, value in summarize(*totals).items()}


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
              f"{routed['min']:.3f} to {routed['max']:.3f} of even, {routed['held_out_min']:.3f} to "
              f"{routed['held_out_max']:.3f} on held-out text", flush=True)  # fmt: skip
    print(f"experts less dense, by seed: {[round(difference, 4) for difference in differences]}")


if __name__ == "__main__":
    sys.exit(exit_code(main, "experts"))
