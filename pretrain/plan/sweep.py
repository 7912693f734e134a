"""Measures one's own scaling law: a grid of small runs of equal compute, one after another, resumable.

For each budget C, models of several sizes N around the expected best are trained on D = C / (6 N) tokens (IsoFLOP
profiles, Hoffmann et al. 2022, section 3.2); a last, larger run that no fit sees tests the prediction. Each run is an
ordinary `pretrain train` in a folder of its own on the sweep's corpus and cache, so a cluster can run them too.
"""

import dataclasses
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

import gin

from pretrain.core.console import say
from pretrain.core.errors import RunError, check
from pretrain.core.fields import check_fields
from pretrain.core.storage import Path, write_text
from pretrain.models.config import TransformerConfig
from pretrain.plan.laws import FLOPS_PER_PARAMETER_TOKEN
from pretrain.plan.shapes import count_parameters, shape_for
from pretrain.train.metrics import read_metrics

HEADER = "name,params,tokens,flops,loss,held_out"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Sweep:
    """The grid.

    Attributes:
        budgets: FLOPs of each IsoFLOP curve; at least 2 for exponents, 4 for a law worth trusting.
        sizes: models on each curve.
        spread: largest over smallest size on a curve.
        tokens_per_param: expected best D / N, the middle of each curve.
        held_out: budget of the last run over the largest of `budgets`; 0 for none.
        head_dim: size of an attention head in all models.
    """

    budgets: Sequence[float] = (1e15, 2e15, 4e15, 8e15)
    sizes: int = 5
    spread: float = 16.0
    tokens_per_param: float = 20.0
    held_out: float = 4.0
    head_dim: int = 64

    def __post_init__(self):
        check_fields(self)
        check(len(self.budgets) >= 1 and min(self.budgets) > 0, "Sweep.budgets must be positive numbers of FLOPs")
        check(self.sizes >= 3, f"Sweep.sizes must be at least 3 for a parabola, got {self.sizes}")
        check(self.spread > 1 and self.tokens_per_param > 0 and self.held_out >= 0 and self.head_dim > 0,
              "Sweep: spread must be > 1, tokens_per_param and head_dim > 0, held_out >= 0")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        shape: the model.
        params: its parameters.
        steps: training steps.
        tokens: steps * batch * length.
        held_out: kept from the fit.
    """

    name: str
    shape: TransformerConfig
    params: int
    steps: int
    tokens: int
    held_out: bool = False

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_PER_PARAMETER_TOKEN * self.params * self.tokens

    def bindings(self) -> list[str]:
        """What differs from the sweep's gin file."""
        fields = ("num_layers", "embed_dim", "num_heads", "kv_heads", "mlp_dim", "head_dim")
        shape = [f"TransformerConfig.{name}={getattr(self.shape, name)!r}" for name in fields]
        return [*shape, f"TRAIN_STEPS={self.steps}"]


def grid(sweep: Sweep, model: TransformerConfig, tokens_per_step: int) -> list[Run]:
    """All runs, the cheapest first and the held-out one last.

    Args:
        sweep: the grid.
        model: kind of model, with its vocabulary.
        tokens_per_step: batch size * sequence length.
    """
    runs: dict[str, Run] = {}
    for budget in sorted(sweep.budgets):
        middle = math.sqrt(budget / (FLOPS_PER_PARAMETER_TOKEN * sweep.tokens_per_param))
        for index in range(sweep.sizes):
            factor = sweep.spread ** (index / (sweep.sizes - 1) - 0.5)
            run = _make_run(middle * factor, budget, model, sweep, tokens_per_step)
            runs[run.name] = run
    check(len(runs) == len(sweep.budgets) * sweep.sizes, "Sweep: budgets are too small or too close for this many "
          "different sizes; raise the budgets or Sweep.spread, or lower Sweep.sizes or Sweep.head_dim")  # fmt: skip
    if sweep.held_out:
        budget = max(sweep.budgets) * sweep.held_out
        middle = math.sqrt(budget / (FLOPS_PER_PARAMETER_TOKEN * sweep.tokens_per_param))
        run = _make_run(middle, budget, model, sweep, tokens_per_step)
        runs["held_out"] = dataclasses.replace(run, name=f"held_out_{run.name}", held_out=True)
    return list(runs.values())


def _make_run(params: float, budget: float, model: TransformerConfig, sweep: Sweep, tokens_per_step: int) -> Run:
    shape = shape_for(params, model, sweep.head_dim)
    count = count_parameters(shape).total
    steps = max(1, round(budget / (FLOPS_PER_PARAMETER_TOKEN * count * tokens_per_step)))
    name = f"c{budget:.3g}_{shape.num_layers}x{shape.embed_dim}".replace("+", "")
    return Run(name, shape, count, steps, steps * tokens_per_step)


def launch_lines(runs: Sequence[Run], workdir: str, gin_files: Sequence[str], extra: Sequence[str] = ()) -> list[str]:
    """A command line for each run, for a cluster's queue."""
    return [shlex.join(["pretrain", *_arguments(run, workdir, gin_files, extra)]) for run in runs]


def _arguments(run: Run, workdir: str, gin_files: Sequence[str], extra: Sequence[str]) -> list[str]:
    bindings = [*extra, *run.bindings(), f"Experiment.data='{workdir}'"]
    folder = os.path.join(workdir, "runs", run.name)
    files = [f"--gin_file={path}" for path in gin_files]
    return ["train", *files, f"--workdir={folder}", *(f"--gin.{binding}" for binding in bindings)]


def run_sweep(runs: Sequence[Run], workdir: str, gin_files: Sequence[str], extra: Sequence[str] = ()) -> Path:
    """Trains the runs that are not finished yet, one at a time, and returns the CSV file of all results.

    Raises:
        RunError: a run failed; those before it are kept.
    """
    cost, done = sum(run.flops for run in runs), 0.0
    for number, run in enumerate(runs, 1):
        done += run.flops
        if final_loss(workdir, run) is not None:
            continue
        say(f"sweep: run {number} of {len(runs)}, {run.name}: {run.params:,} parameters, {run.tokens:,} tokens "
            f"({100 * (done - run.flops) / cost:.0f} % of the compute is behind)")  # fmt: skip
        command = [sys.executable, "-m", "pretrain", *_arguments(run, workdir, gin_files, extra)]
        if subprocess.run(command, check=False).returncode:
            raise RunError(f"sweep: {run.name} failed, see above; the same command goes on from there")
        write_points(workdir, runs)
    return write_points(workdir, runs)


def final_loss(workdir: str, run: Run) -> float | None:
    """Held-out loss of a finished run, nats a token; None before that."""
    rows = read_metrics(Path(workdir) / "runs" / run.name / "metrics.jsonl")
    return rows[-1].get("validation_loss") if rows and rows[-1]["step"] >= run.steps else None


def write_points(workdir: str, runs: Sequence[Run]) -> Path:
    """`points.csv` of the runs finished so far, as `read_points` takes it."""
    lines = [HEADER]
    for run in runs:
        loss = final_loss(workdir, run)
        if loss is not None:
            lines.append(f"{run.name},{run.params},{run.tokens},{run.flops:.6g},{loss:.6f},{int(run.held_out)}")
    path = Path(workdir) / "points.csv"
    write_text(path, "\n".join(lines) + "\n")
    return path
