"""Training speed on CPU beside `transformers` under torch.compile: same shape, same parameter count, one run.

    python benchmarks/cpu_training.py --peer_python=PEER_VENV/bin/python [--family=gpt2] [--rounds=8] [--steps=3]

PEER_VENV holds torch and transformers (`pip install torch transformers`), apart from ours. Both sides stay loaded and
take turns, a few steps each, so that a change in the machine's speed touches both; the ratio is taken round by round.
All: AdamW, clipping at 1.0, float32, no dropout, no padding. `loop` is our training loop with real data loading,
metrics and logging; `step` is its compiled step alone. Families:

gpt2: 6 layers x 384, 6 heads, batch 8 x 256, vocabulary 8,192.
bert: BERT-small (Turc et al. 2019), 4 layers x 512, 8 heads, batch 16 x 128, vocabulary 30,522; 15 % of tokens hidden.
t5: T5-small (Raffel et al. 2019), 6 + 6 layers x 512, 8 heads, vocabulary 32,128; batch 8, 256 inputs, 58 targets.
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
BATCH = {"gpt2": 8, "bert": 16, "t5": 8}
LENGTH = {"gpt2": 256, "bert": 128, "t5": 256}
TARGETS = 58  # that T5's noise makes of a text with 256 inputs


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


def torch_model(family: str):
    """Their model, and a batch."""
    import torch
    import transformers as hf

    def tokens(high: int, length: int = LENGTH[family]):
        return torch.randint(2, high, (BATCH[family], length))

    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if family == "gpt2":
        config = hf.GPT2Config(vocab_size=8192, n_positions=256, n_embd=384, n_layer=6, n_head=6, resid_pdrop=0.0,
                               embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)  # fmt: skip
        ids = tokens(8192)
        return hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}
    if family == "bert":
        config = hf.BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048,
                               **no_dropout)  # fmt: skip
        ids = tokens(30522)
        return hf.BertForMaskedLM(config), {"input_ids": ids, "labels": ids.where(torch.rand(ids.shape) < 0.15, -100)}
    config = hf.T5Config(dropout_rate=0.0, use_cache=False, decoder_start_token_id=0)  # the rest is T5-small's
    return hf.T5ForConditionalGeneration(config), {"input_ids": tokens(32000), "labels": tokens(32000, TARGETS)}


def torch_worker(family: str) -> None:
    """torch.compile, fused AdamW."""
    import torch

    torch.manual_seed(0)
    model, batch = torch_model(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model)

    def step(count: int) -> None:
        for _ in range(count):
            loss = compiled(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    serve({"torch": step}, sum(p.numel() for p in model.parameters()))


def our_objective(family: str):
    """The objective, and the configuration of its model."""
    from pretrain.core.objective import Vocabulary
    from pretrain.models.config import TransformerConfig
    from pretrain.objectives.causal import Causal
    from pretrain.objectives.denoising import SpanCorruption
    from pretrain.objectives.masked import Masked

    unrolled = {"max_length": max(512, LENGTH[family]), "scan_unroll": -1}
    if family == "gpt2":
        return Causal(), TransformerConfig(
            vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, mlp_dim=1536, max_length=256, scan_unroll=-1,
            norm="layernorm", positions="learned", activation="gelu", use_bias=True,
        )  # fmt: skip
    if family == "bert":
        return Masked().bind(Vocabulary(30522, num_sentinels=1)), TransformerConfig(
            architecture="encoder", vocab_size=30522, num_layers=4, embed_dim=512, num_heads=8, mlp_dim=2048,
            token_types=2, norm="layernorm", norm_position="post", embedding_norm=True, positions="learned",
            activation="gelu_erf", use_bias=True, **unrolled,
        )  # fmt: skip
    return SpanCorruption().bind(Vocabulary(32128, num_sentinels=100)), TransformerConfig(
        architecture="encoder_decoder", vocab_size=32128, num_layers=6, embed_dim=512, num_heads=8, head_dim=64,
        mlp_dim=2048, positions="relative", activation="relu", attention_scale=1.0, logit_multiplier=512**-0.5,
        **unrolled,
    )  # fmt: skip


def our_trainer(family: str, workdir: str, steps: int):
    """A `Trainer` of the same shape on random documents of the loader's kind."""
    import numpy as np

    from pretrain.core.memory import keep_freed_memory
    from pretrain.models.build import build_model
    from pretrain.models.flops import count_flops
    from pretrain.optim.optimizers import Optimizer, build_optimizer
    from pretrain.optim.schedules import Schedule
    from pretrain.sharding.mesh import MeshConfig, make_mesh
    from pretrain.train.checkpoint import Checkpointing
    from pretrain.train.loop import Data, Trainer, Training
    from pretrain.train.step import StepBuilder

    keep_freed_memory()  # as every Experiment does
    objective, config = our_objective(family)
    model = build_model(config, objective.model_needs)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(peak=3e-4), steps, model.logical_axes())
    rng, rows = np.random.default_rng(0), (BATCH[family], objective.packed_length(LENGTH[family]))
    packed = {
        "tokens": rng.integers(4, 8000, rows, dtype=np.int32),
        "segment_ids": np.ones(rows, np.int32),
        "positions": np.tile(np.arange(rows[1], dtype=np.int32), (rows[0], 1)),
        "first_inputs": np.zeros(rows, np.int32),
    }

    def batches(start: int):
        while True:
            yield objective.finish(packed, rng)

    return Trainer(
        Training(steps=steps, batch_size=rows[0], sequence_length=LENGTH[family], log_every=1),
        StepBuilder(model, objective, optimizer, rate), make_mesh(MeshConfig()),
        Data(batches, lambda step: {"step": step}), workdir, Checkpointing(every=10**9),
        count_flops(config, LENGTH[family]).training,
    )  # fmt: skip


class NoCheckpoints:
    """Stands in for a `Checkpointer`: the loop is timed, not the disk."""

    def due(self, step: int) -> bool:
        return False

    def save(self, *_, **__) -> None:
        pass


def our_worker(family: str) -> None:
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
    trainer = our_trainer(family, workdir, 100_000)
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
    """A side of a comparison in a process of its own.

    Args:
        name: of the side, for messages.
        command: starts it; it answers "KIND N" lines of its stdin as `serve` does.
    """

    def __init__(self, name: str, command: list[str]):
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.parameters = self._answer()["parameters"]

    def run(self, kind: str, steps: int | str) -> float:
        """Seconds of `steps` steps of a kind."""
        print(kind, steps, file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the side of {self.name} ended; what it printed stands above")
        return json.loads(line)

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
    parser.add_argument("--family", choices=BATCH, default="gpt2")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        sys.path.insert(0, str(ROOT))
        WORKERS[arguments.worker](arguments.family)
        return
    given = [__file__, "--family", arguments.family, "--worker"]
    workers = {"step": Worker("ours", [sys.executable, *given, "ours"])}
    workers["loop"] = workers["step"]
    if arguments.peer_python:
        workers["torch"] = Worker("torch", [arguments.peer_python, *given, "torch"])
    family, seconds = arguments.family, {kind: [] for kind in workers}
    for number in range(arguments.rounds):
        for kind in sorted(workers, reverse=number % 2 == 1):
            seconds[kind].append(workers[kind].run(kind, arguments.steps))
    for kind, worker in workers.items():
        speeds = [arguments.steps * BATCH[family] * LENGTH[family] / value for value in seconds[kind]]
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
