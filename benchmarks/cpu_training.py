"""Training speed on CPU beside `transformers` GPT-2 under torch.compile: same shape, same parameter count, one run.

    python benchmarks/cpu_training.py --peer_python=PEER_VENV/bin/python [--rounds=8] [--steps=3]

PEER_VENV holds torch and transformers (`pip install torch transformers`), apart from ours. Both sides stay loaded and
take turns, a few steps each, so that a change in the machine's speed touches both; the ratio is taken round by round.
Shape: 6 layers x 384, 6 heads, sequence 256, batch 8, vocabulary 8,192, AdamW, clipping at 1.0, float32.
`loop` is our training loop with real data loading, metrics and logging; `step` is its compiled step alone.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS, EMBED, HEADS, LENGTH, BATCH, VOCAB = 6, 384, 6, 256, 8, 8192


def serve(kinds: dict[str, Callable[[int], None]], parameters: int) -> None:
    """Answers "KIND N" lines on stdin with the seconds that N steps of a kind take."""
    for run in kinds.values():
        run(2)
    print(json.dumps({"parameters": parameters}), flush=True)
    for line in sys.stdin:
        kind, steps = line.split()
        start = time.perf_counter()
        kinds[kind](int(steps))
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def torch_worker() -> None:
    """GPT-2 of transformers, torch.compile, fused AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=EMBED, n_layer=LAYERS, n_head=HEADS,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))

    def step(count: int) -> None:
        for _ in range(count):
            loss = compiled(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    serve({"torch": step}, sum(p.numel() for p in model.parameters()))


def our_trainer(workdir: str, steps: int):
    """A `Trainer` of the same shape on random documents of the loader's kind."""
    import numpy as np

    from pretrain.core.memory import keep_freed_memory
    from pretrain.models.build import build_model
    from pretrain.models.config import TransformerConfig
    from pretrain.models.flops import count_flops
    from pretrain.objectives.causal import Causal
    from pretrain.optim.optimizers import Optimizer, build_optimizer
    from pretrain.optim.schedules import Schedule
    from pretrain.sharding.mesh import MeshConfig, make_mesh
    from pretrain.train.checkpoint import Checkpointing
    from pretrain.train.loop import Data, Trainer, Training
    from pretrain.train.step import StepBuilder

    keep_freed_memory()  # as every Experiment does
    config = TransformerConfig(
        vocab_size=VOCAB, num_layers=LAYERS, embed_dim=EMBED, num_heads=HEADS, mlp_dim=4 * EMBED, max_length=LENGTH,
        norm="layernorm", positions="learned", activation="gelu", use_bias=True, scan_unroll=-1,
    )  # fmt: skip
    model = build_model(config)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(peak=3e-4), steps, model.logical_axes())
    objective = Causal()
    rng = np.random.default_rng(0)
    packed = {
        "tokens": rng.integers(0, VOCAB, (BATCH, LENGTH), dtype=np.int32),
        "segment_ids": np.ones((BATCH, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "first_inputs": np.zeros((BATCH, LENGTH), np.int32),
    }

    def batches(start: int):
        while True:
            yield objective.finish(packed, rng)

    return Trainer(
        Training(steps=steps, batch_size=BATCH, sequence_length=LENGTH, log_every=1),
        StepBuilder(model, objective, optimizer, rate), make_mesh(MeshConfig()),
        Data(batches, lambda step: {"step": step}), workdir, Checkpointing(every=10**9),
        count_flops(config, LENGTH).training,
    )  # fmt: skip


class NoCheckpoints:
    """Stands in for a `Checkpointer`: the loop is timed, not the disk."""

    def due(self, step: int) -> bool:
        return False

    def save(self, *_, **__) -> None:
        pass


def our_worker() -> None:
    """Both kinds of ours in one process, so that they differ in nothing but the loop.

    `step` is the compiled step called from a bare Python loop on one batch; `loop` is the training loop: batches made
    anew, placement, a row of metrics every step, progress.
    """
    import jax

    from pretrain.core.trees import size
    from pretrain.sharding.placement import place_batch
    from pretrain.train.metrics import MetricsLog
    from pretrain.train.stopping import StopRequests

    workdir = tempfile.mkdtemp()
    trainer = our_trainer(workdir, 100_000)
    state, done, log = trainer.initial_state(), 0, MetricsLog(workdir)
    batch = place_batch(next(trainer.data.batches(0)), trainer.shardings)

    def step(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, scalars = trainer.train_step(state, batch)
            jax.block_until_ready(scalars)

    def loop(count: int) -> None:
        nonlocal state, done
        trainer.config = dataclasses.replace(trainer.config, steps=done + count)
        state = trainer.steps(state, done, NoCheckpoints(), log, StopRequests(60.0))
        done += count

    serve({"step": step, "loop": loop}, size(trainer.builder.model.shapes))


WORKERS = {"ours": our_worker, "torch": torch_worker}


class Worker:
    """A side of the comparison in a process of its own."""

    def __init__(self, name: str, python: str):
        self.name = name
        command = [python, __file__, "--worker", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                                         env=None)  # fmt: skip
        self.parameters = json.loads(self._process.stdout.readline())["parameters"]

    def run(self, kind: str, steps: int) -> float:
        """Seconds of `steps` steps of a kind."""
        print(kind, steps, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())["seconds"]

    def close(self) -> None:
        self._process.kill()


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):,.3g} ({min(values):,.3g} to {max(values):,.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", help="python of an environment with torch and transformers")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        sys.path.insert(0, str(ROOT))
        WORKERS[arguments.worker]()
        return
    workers = {"step": Worker("ours", sys.executable)}
    workers["loop"] = workers["step"]
    if arguments.peer_python:
        workers["torch"] = Worker("torch", arguments.peer_python)
    seconds = {kind: [] for kind in workers}
    for number in range(arguments.rounds):
        for kind in sorted(workers, reverse=number % 2 == 1):
            seconds[kind].append(workers[kind].run(kind, arguments.steps))
    for kind, worker in workers.items():
        speeds = [arguments.steps * BATCH * LENGTH / value for value in seconds[kind]]
        print(f"{kind:6s} {worker.parameters:,} parameters, tokens/s {spread(speeds)}")
    print(f"loop's time over bare step's: {spread(ratios(seconds['loop'], seconds['step']))}")
    if "torch" in seconds:
        print(f"our loop's speed over torch.compile's: {spread(ratios(seconds['torch'], seconds['loop']))}")
        print(f"our step's speed over torch.compile's: {spread(ratios(seconds['torch'], seconds['step']))}")
    for worker in workers.values():
        worker.close()


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


if __name__ == "__main__":
    main()
