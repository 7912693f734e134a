"""What looking inside a run costs: steps with and without sums of squares by group, and the look every 100 steps.

    PYTHONPATH=. python benchmarks/statistics_cost.py [--rounds=12]

A model of the shape of GPT-2 (6 layers x 384, 14 million parameters) trains on CPU, batch 8 x 256. Both programs are
compiled, then take turns, two steps each. Printed as one JSON object: the least seconds of each program (on a machine
that does other things as well, the least say most), the rounds' ratios, and one tree's sums of squares alone: what is
added, since those of parameters and updates take the place of norms that are there anyway.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time

import jax
import numpy as np

from pretrain.core.errors import exit_code
from pretrain.core.memory import keep_freed_memory
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.state import init_state
from pretrain.train.statistics import Statistics, histograms, probe
from pretrain.train.step import StepBuilder

BATCH, LENGTH, STEPS = 8, 256, 2


def builder() -> StepBuilder:
    config = TransformerConfig(
        vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, mlp_dim=1024, max_length=LENGTH
    )
    model = build_model(config, Causal().model_needs)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(), 1000, model.logical_axes())
    return StepBuilder(model, Causal(), optimizer, rate, head_chunks=8)


def made_up_batch() -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (BATCH, LENGTH)
    packed = {
        "tokens": rng.integers(4, 8192, shape).astype(np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "first_inputs": np.zeros(shape, np.int32),
        "source_ids": np.zeros(shape, np.int32),
    }
    return Causal().finish(packed, rng)


def seconds(function, *arguments) -> float:
    """Of one call, to the end of its work on the device."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    plain = builder()
    batch = jax.device_put(made_up_batch())
    programs = {
        "plain": jax.jit(plain.train, donate_argnums=0),
        "measuring": jax.jit(dataclasses.replace(plain, measures=True).train, donate_argnums=0),
    }
    looks = {
        "look": jax.jit(lambda state, batch: probe(plain, state, batch)),
        "histograms": jax.jit(lambda state, batch: histograms(plain, state, batch)),
    }
    squares = jax.jit(plain._squares)
    state = init_state(plain.model, plain.optimizer, 0)
    taken = {name: [] for name in (*programs, *looks)}
    for number in range(rounds + 1):  # the first compiles
        for name, program in programs.items() if number % 2 else reversed(programs.items()):
            started = time.perf_counter()
            for _ in range(STEPS):
                state, scalars = program(state, batch)
            jax.block_until_ready((state, scalars))
            taken[name].append((time.perf_counter() - started) / STEPS)
        if number < 4:
            for name, look in looks.items():
                taken[name].append(seconds(look, state, batch))
    taken["squares"] = [seconds(squares, state.params) for _ in range(50)]
    least = {name: min(values[1:]) for name, values in taken.items()}
    ratios = sorted(m / alone for alone, m in zip(taken["plain"][1:], taken["measuring"][1:], strict=True))
    every = Statistics().every
    result = {
        "seconds": least,
        "percent_in_each_step": 100 * (least["measuring"] / least["plain"] - 1),
        "percent_of_squares_alone": 100 * least["squares"] / least["plain"],
        "percent_by_rounds": [100 * (ratio - 1) for ratio in (ratios[0], statistics.median(ratios), ratios[-1])],
        f"percent_of_a_look_every_{every}_steps": 100 * least["look"] / least["plain"] / every,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(exit_code(main, "statistics_cost"))
