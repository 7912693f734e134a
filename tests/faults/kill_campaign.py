"""One run killed and stopped many times at random moments, beside the same run left alone.

    python tests/faults/kill_campaign.py CACHED FOLDER [--kills=100] [--terms=20] [--steps=700] [--seed=0]

CACHED is a workdir with a finished cache; FOLDER takes the two runs. Each incarnation is forked from this process,
which has imported everything and touched no device, so that it starts in a second. Its signs of life say what it is
doing, and the signal comes a random while after it began to do that: starting (restoring, compiling, opening the
loader), training, saving or rewinding; the random while reaches into the writing and the commit of a save in the
background. Poisoned batches make the run rewind now and then. Prints a line for each fault and, at the end, what was
hit.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import select
import signal
import sys
import time

import jax
import numpy as np
from finished_runs import assert_same_end
from tiny import TINY_GIN

from pretrain.core import lifeline
from pretrain.experiment import Experiment

POISONED = [range(start, start + 2) for start in range(90, 100_000, 150)]  # batches
MOMENTS = {"start": 20, "productive": 45, "checkpoint": 25, "rewind": 10}
WHILE = {"productive": 0.05, "checkpoint": 0.15, "rewind": 0.5}  # seconds after which a signal comes, at most
BINDINGS = (
    "Training.log_every=1", "Training.eval_every=50", "Checkpointing.every=5", "Checkpointing.keep=3",
    "Recovery.policy='rewind'", "Recovery.back=5", "Recovery.skip=10", "Recovery.grid=10",
)  # fmt: skip


def train(workdir: pathlib.Path, cached: pathlib.Path, steps: int) -> None:
    """What an incarnation does."""
    bindings = (*BINDINGS, f"TRAIN_STEPS={steps}", f"Experiment.data='{cached}'")
    experiment = Experiment.from_gin([str(TINY_GIN)], bindings, workdir=str(workdir))
    experiment._keep_config()  # as `train` does
    trainer = experiment.trainer()
    batches = trainer.data.batches

    def spoiled(start):
        for number, batch in enumerate(batches(start), start):
            if any(number in where for where in POISONED):
                noise = np.random.default_rng(number).integers(3, 259, batch["targets"].shape, np.int32)
                batch = {**batch, "targets": noise}
            yield batch

    trainer.data.batches = spoiled
    trainer.run()


class Incarnation:
    """A forked process that trains, and what it says of itself."""

    def __init__(self, workdir: pathlib.Path, cached: pathlib.Path, steps: int):
        reader, writer = os.pipe()
        self.began, self.signs, self.code = time.monotonic(), open(reader, "rb", buffering=0), None  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                log = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1), os.dup2(log, 2)
                os.environ[lifeline.VARIABLE] = f"{writer}:{os.devnull}"
                lifeline.attach()
                train(workdir, cached, steps)
                code = 0
            except BaseException as error:
                code = getattr(error, "exit_code", 1)
                print(f"pretrain: {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(writer)

    def news(self, timeout: float) -> list[dict]:
        """What it has said since; waits for the first word. At its end `code` is set."""
        if select.select([self.signs], [], [], timeout)[0]:
            if data := self.signs.read(1 << 16):
                return [json.loads(line) for line in data.splitlines() if line.endswith(b"}")]
            self.end()
        return []

    def end(self, number: int | None = None) -> None:
        if number is not None:
            os.kill(self.pid, number)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.signs.close()


def disturb(child: Incarnation, number: int, rng: random.Random, start_seconds: float) -> tuple[str, int | None, float]:
    """Sends a signal at a random moment: (what was hit, step, seconds to the first step); "" if it ended before."""
    aim = rng.choices([*MOMENTS], [*MOMENTS.values()])[0] if number == signal.SIGKILL else "productive"
    wanted = {"productive": rng.randint(1, 15), "checkpoint": rng.randint(1, 3), "rewind": 1}.get(aim)
    due = time.monotonic() + rng.uniform(0, start_seconds) if aim == "start" else float("inf")
    step, phase, first, seen = None, "start", 0.0, collections.Counter()
    while child.code is None:
        for sign in child.news(max(0.0, min(1.0, due - time.monotonic()))):
            if sign.get("step") is not None:
                phase = "rewind" if sign.get("phase") == "restart" else sign.get("phase", phase)
                first = first or time.monotonic() - child.began
            step = sign.get("step", step)
            seen[phase] += 1
            if wanted and (seen[aim] >= wanted or seen["productive"] >= 60):  # there is not always a rewind ahead
                due = min(due, time.monotonic() + rng.uniform(0, WHILE[aim]))
        if time.monotonic() >= due and child.code is None:
            child.end(number)
            return phase, step, first
    return "", step, first


def campaign(cached: pathlib.Path, folder: pathlib.Path, kills: int, terms: int, steps: int, seed: int) -> None:
    whole, disturbed = folder / "whole", folder / "disturbed"
    began = time.monotonic()
    child = Incarnation(whole, cached, steps)
    while child.code is None:
        child.news(1.0)
    assert child.code == 0, whole.with_suffix(".log").read_text()[-3000:]
    print(f"undisturbed: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)

    rng = random.Random(seed)
    faults = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(faults)
    hit, start_seconds = collections.Counter(), 4.0
    for index, number in enumerate(faults, start=1):
        child = Incarnation(disturbed, cached, steps)
        phase, step, first = disturb(child, number, rng, start_seconds)
        log = disturbed.with_suffix(".log").read_text()
        assert phase, f"the run ended with {child.code} before all faults: {log[-2000:]}"
        assert child.code in (-signal.SIGKILL, 75, -signal.SIGTERM), (child.code, log[-3000:])
        start_seconds = first or start_seconds
        hit[f"{number.name} in {phase}"] += 1
        minutes = (time.monotonic() - began) / 60
        print(f"{index}/{len(faults)} {number.name} in {phase}, step {step}, {minutes:.1f} min", flush=True)
    child = Incarnation(disturbed, cached, steps)
    while child.code is None:
        child.news(1.0)
    assert child.code == 0, disturbed.with_suffix(".log").read_text()[-3000:]
    assert_same_end(disturbed, whole)
    print(f"the same bits, metrics and position after {dict(sorted(hit.items()))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cached", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    for name, default in (("kills", 100), ("terms", 20), ("steps", 700), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(options.folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    campaign(options.cached, options.folder, options.kills, options.terms, options.steps, options.seed)


if __name__ == "__main__":
    main()
