"""What checkpoints cost: the time a save holds training up, restore, and verification.

    PYTHONPATH=. python benchmarks/checkpointing.py [--folder DIR]

A model of 100 million parameters trains on CPU (batch 8, 128 tokens), and some steps are followed by a save. `stall`
is how long `save` keeps the loop, `next_step` the time of the steps beside which the rest is written. Restored is the
whole state (1.2 GB), verified first: once from the page cache and once from the disk. Verification is timed on one
core. Prints one JSON object.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

from pretrain.core.errors import exit_code
from pretrain.core.memory import keep_freed_memory
from pretrain.core.storage import Path
from pretrain.core.trees import size
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.models.parametrization import learning_rate_scales
from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.placement import place_batch
from pretrain.train.checkpoint import Checkpointer, Checkpointing
from pretrain.train.loop import Data, Trainer, Training
from pretrain.train.manifest import verify
from pretrain.train.step import StepBuilder

BATCH, LENGTH = 8, 128
STEPS = 24  # the first two are warm-up; every third is followed by a save, of which there are eight


def trainer(workdir: str) -> Trainer:
    """A model of 100 million parameters, 16k words, as a run trains it."""
    config = TransformerConfig(
        vocab_size=16384, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=2048, max_length=LENGTH
    )
    objective = Causal()
    model = build_model(config, objective.model_needs)
    axes = model.logical_axes()
    optimizer, rate = build_optimizer(Optimizer(), Schedule(), 1000, axes, learning_rate_scales(config, axes))
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH)
    packed = {
        "tokens": rng.integers(4, config.vocab_size, shape).astype(np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "first_inputs": np.zeros(shape, np.int32),
        "source_ids": np.zeros(shape, np.int32),
    }
    batch = objective.finish(packed, rng)
    return Trainer(
        Training(steps=1000, batch_size=BATCH, sequence_length=LENGTH),
        StepBuilder(model, objective, optimizer, rate),
        make_mesh(MeshConfig()),
        Data(lambda start: iter(lambda: batch, None), lambda step: {"step": step}),
        workdir,
        Checkpointing(every=10**9),
        1,
    )


def saves(run: Trainer, checkpointer: Checkpointer) -> dict:
    """Seconds of steps that no save disturbs, of the calls of `save`, and of the steps that follow each."""
    state, batch = run.initial_state(), place_batch(next(run.data.batches(0)), run.shardings)
    plain, stalls, after = [], [], []
    for step in range(1, STEPS + 1):
        started = time.perf_counter()
        state, scalars = run.train_step(state, batch)
        jax.block_until_ready((state, scalars))
        seconds = time.perf_counter() - started
        if step > 2:
            (after if step % 3 == 0 else plain).append(seconds)
        if step > 1 and step % 3 == 2:
            started = time.perf_counter()
            checkpointer.save(step, state, {"step": step}, {"loss": float(scalars["loss"])})
            stalls.append(time.perf_counter() - started)
        if step % 3 == 0:
            checkpointer.wait()
    checkpointer.wait()
    quiet = statistics.median(plain)
    return {
        "step_seconds": quiet,
        "stall_seconds": stalls,
        "stall_percent_of_a_step": 100 * statistics.median(stalls) / quiet,
        "next_step_seconds": after,
        "parameters": size(state.params),
    }


def restores(run: Trainer, folder: str) -> dict:
    """Seconds to find, verify and restore the newest checkpoint, and what one core verifies in a second."""
    shapes = jax.eval_shape(run.initial_state)
    seconds = []
    for cold in (False, True):
        if cold:
            drop_pages(folder)
        started = time.perf_counter()
        with Checkpointer(folder, read_only=True) as checkpointer:
            state, _ = checkpointer.restore(shapes, run.state_shardings)
            jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
        del state
    newest = max((path for path in pathlib.Path(folder).iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    started = time.perf_counter()
    manifest = verify(Path(newest))
    verified = time.perf_counter() - started
    os.sched_setaffinity(0, cores)
    arrays = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    return {
        "array_gb": arrays / 1e9,
        "file_gb": manifest.bytes / 1e9,
        "restore_seconds": seconds[0],
        "restore_seconds_from_disk": seconds[1],
        "restore_seconds_per_gb_from_disk": seconds[1] / (arrays / 1e9),
        "verify_gb_per_second_and_core": manifest.bytes / 1e9 / verified,
    }


def drop_pages(folder: str) -> None:
    """Asks the kernel to forget the pages of files, so that they are read from the disk."""
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where checkpoints are written; default: a temporary folder")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as workdir:
        run, folder = trainer(workdir), os.path.join(workdir, "checkpoints")
        with Checkpointer(folder, Checkpointing(keep=1)) as checkpointer:
            result = saves(run, checkpointer)
        print(json.dumps({**result, **restores(run, folder)}, indent=1))


if __name__ == "__main__":
    sys.exit(exit_code(main, "checkpointing"))
