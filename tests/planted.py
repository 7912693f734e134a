"""Runs with faults planted in them, and processes that are killed at chosen moments of a rewind.

    python tests/planted.py WORKDIR CACHED FAULT [MOMENT]     # trains on CACHED's data; dies at the MOMENT, once

Faults stand at batches, so that a run that leaves these out does not meet them.
"""

import dataclasses
import os
import signal
import subprocess
import sys

import jax
import numpy as np
from tiny import TINY_GIN

from pretrain.experiment import Experiment
from pretrain.optim.schedules import Schedule
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.events import read_events
from pretrain.train.loop import Trainer
from pretrain.train.metrics import MetricsLog, read_metrics
from pretrain.train.step import StepBuilder

STEPS, AT = 130, 90
FAULTS = {
    "poisoned": range(AT, AT + 2),
    "shard": range(AT, AT + 25),
    "rate": range(AT, AT + 1),
    "inf": range(AT, AT + 1),
}
BINDINGS = (
    f"TRAIN_STEPS={STEPS}",
    "Training.log_every=1",
    "Training.eval_every=130",
    "Training.eval_batches=0",
    "Checkpointing.every=20",
    "Checkpointing.keep=2",
    "Recovery.policy='rewind'",
    "Recovery.back=10",
    "Recovery.skip=20",  # twice as far as it goes back, as by default
    "Recovery.grid=20",
    "Detector.window=64",  # 128 steps would reach back to where so short a run's loss fell most
)
MOMENTS = {  # of a rewind: the call that it lies around, and whether after it
    "before": (Trainer, "_rewind", False),
    "decided": (Checkpointer, "remove_newer_than", False),
    "removing": (Checkpointer, "_remove", True),
    "removed": (Checkpointer, "remove_newer_than", True),
    "restored": (Trainer, "_rewind", True),
    "rows": (MetricsLog, "rewind", True),
}


class InfiniteGradient(StepBuilder):
    """A step with one infinity in one gradient."""

    def gradients(self, params, batch, scale=1.0):
        grads, totals = super().gradients(params, batch, scale)
        embedding = grads["embedding"]
        return {**grads, "embedding": embedding.at[3, 3].set(np.inf)}, totals


def fields(builder: StepBuilder) -> dict:
    """The builder's fields, as arguments."""
    return {field.name: getattr(builder, field.name) for field in dataclasses.fields(builder)}


def plant(trainer: Trainer, fault: str) -> Trainer:
    """Puts a fault into the run."""
    where, builder, sound, data = FAULTS[fault], trainer.builder, trainer.train_step, trainer.data
    if fault in ("poisoned", "shard"):
        batches = data.batches

        def spoiled(start):
            for number, batch in enumerate(batches(start), start):
                if number in where:
                    rng = np.random.default_rng(number)
                    batch = {**batch, "targets": rng.integers(3, 259, batch["targets"].shape, np.int32)}
                yield batch

        data.batches = spoiled
        return trainer
    if fault == "inf":
        faulty = InfiniteGradient(**fields(builder))
    else:
        rate = dataclasses.replace(Schedule(), peak=100 * Schedule().peak).build(STEPS)
        ratio = lambda updates, state, params=None: (jax.tree.map(lambda u: 100 * u, updates), state)  # noqa: E731
        optimizer = type(builder.optimizer)(
            builder.optimizer.init,
            lambda grads, state, params=None: ratio(*builder.optimizer.update(grads, state, params)),
        )
        faulty = dataclasses.replace(builder, optimizer=optimizer, learning_rate=rate)
    spoiled_step = trainer.compiled(faulty.train)

    def step(state, batch):
        number = trainer.watch.course.batch(int(state.step))
        return (spoiled_step if number in where else sound)(state, batch)

    trainer.train_step = step
    return trainer


def trainer(workdir, cached, fault: str | None, bindings: tuple[str, ...] = ()) -> Trainer:
    """The trainer of a run with a fault, None for a sound one, on the data of the workdir `cached`."""
    bindings = (*BINDINGS, f"Experiment.data='{cached}'", *bindings)
    experiment = Experiment.from_gin([str(TINY_GIN)], bindings, workdir=str(workdir))
    experiment._keep_config()  # as `train` does
    return experiment.trainer() if fault is None else plant(experiment.trainer(), fault)


def die_at(moment: str, mark: str) -> None:
    """Kills this process, without warning, at a moment of its first rewind; `mark` is the file that says it has."""

    def killed(*_, **__):
        if not os.path.exists(mark):
            with open(mark, "w", encoding="utf-8"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, name: str, after: bool) -> None:
        original = getattr(owner, name)

        def call(*arguments, **options):
            if not after:
                killed()
            result = original(*arguments, **options)
            if after:
                killed()
            return result

        setattr(owner, name, call)

    if moment == "removing":  # `_remove` also works for the retention of every save
        original = Checkpointer.remove_newer_than

        def remove_newer_than(self, step):
            around(Checkpointer, "_remove", True)
            return original(self, step)

        Checkpointer.remove_newer_than = remove_newer_than
    else:
        around(*MOMENTS[moment])


def in_a_process(workdir, cached, fault: str, killed: str | None = None) -> None:
    """A run in a process of its own; with `killed`, killed at that moment of its rewind, and started again."""
    command = [sys.executable, __file__, str(workdir), str(cached), fault, *([killed] if killed else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for code in (-signal.SIGKILL, 0) if killed else (0,):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr


def overcome(workdir, fault: str) -> dict:
    """Checks that a run found its fault in time and came to its end; the first event."""
    events, rows = read_events(workdir), read_metrics(workdir / "metrics.jsonl")
    first = events[0]
    assert {event["action"] for event in events} == {"rewind"}, events
    assert AT + 1 <= first["step"] <= AT + 3, first  # batch AT is that of step AT + 1
    assert AT in first["batches"] and first["documents"][str(AT)]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return first


if __name__ == "__main__":
    folder, cache, planted, *when = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    if when:
        die_at(when[0], os.path.join(folder, "died"))
    trainer(folder, cache, None if planted == "none" else planted).run()
