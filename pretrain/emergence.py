"""Evaluates a finished sweep on generated tasks: joins the runs' experiments, the questions, the metrics and the plot.

Wei et al. 2022 (arXiv:2206.07682); Schaeffer et al. 2023 (arXiv:2304.15004). See docs/emergence.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pretrain.core.console import Progress, say
from pretrain.core.errors import UserError, check
from pretrain.core.storage import Path, write_bytes, write_json, write_text
from pretrain.core.trees import size
from pretrain.data import tokenizers
from pretrain.evaluate.answer_metrics import METRICS, PAIRS, summarise
from pretrain.evaluate.answers import answer_questions
from pretrain.evaluate.tasks import Question, Task, find_tasks
from pretrain.experiment import Experiment
from pretrain.models.functional import Params
from pretrain.plan.emergence import scores_csv, sharpness
from pretrain.plan.emergence_plot import draw_emergence
from pretrain.plan.laws import FLOPS_PER_PARAMETER_TOKEN
from pretrain.sharding.placement import tree_shardings
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.metrics import read_metrics

Cells = dict[tuple[str, int], list[Question]]


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that reached its last step.

    Attributes:
        name: of its folder.
        experiment: the run, with its model made.
        steps: of the checkpoints to evaluate, ascending; the last is the newest there is.
        validation_loss: at the end, nats a token; None where it was not measured.
    """

    name: str
    experiment: Experiment
    steps: tuple[int, ...]
    validation_loss: float | None

    def checkpoints(self) -> list[dict[str, Any]]:
        """Parameters, tokens and compute of each checkpoint."""
        training, params = self.experiment.training, size(self.experiment.model.shapes)
        rows = []
        for step in self.steps:
            tokens, final = step * training.batch_size * training.sequence_length, step == training.steps
            flops = FLOPS_PER_PARAMETER_TOKEN * params * tokens
            rows.append({"run": self.name, "step": step, "params": params, "tokens": tokens, "flops": flops,
                         "validation_loss": self.validation_loss if final else None, "final": final})  # fmt: skip
        return rows

    def restore(self, step: int) -> Params:
        """The parameters of a checkpoint, laid out on the run's mesh."""
        model = self.experiment.model
        shardings = tree_shardings(model.logical_axes(), model.shapes, self.experiment.mesh)
        with Checkpointer(self.experiment.workdir / "checkpoints", read_only=True) as checkpointer:
            return checkpointer.restore_params(model.shapes, shardings, step)


def evaluate_sweep(
    workdir: str,
    bindings: Sequence[str] = (),
    *,
    tasks: Sequence[str] | None = None,
    all_checkpoints: bool = False,
    questions: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Every finished run on every task and size; writes emergence.json, .csv and .png into the sweep's folder.

    Args:
        workdir: the sweep's folder, with `runs/` and `cache/tokenizer/`.
        bindings: "NAME=VALUE" of gin for all runs, e.g. `MeshConfig.tensor=2`.
        tasks: names; None for all.
        all_checkpoints: those kept on the way too, not the newest alone.
        questions: of each task and size.
        seed: of the questions.

    Returns:
        what emergence.json holds: checkpoints, scores, sharpness, left_out, and how to read the metrics.

    Raises:
        UserError: no sweep there, no finished run, an unknown task, or no model with enough context.
    """
    chosen = find_tasks(tasks)
    runs, left_out = find_runs(workdir, bindings, all_checkpoints=all_checkpoints)
    tokenizer = tokenizers.load(Path(workdir) / "cache" / "tokenizer")
    cells = {(task.name, n): task.questions(n, questions, tokenizer, seed) for task in chosen for n in task.sizes}
    fitting = {run.name: _fitting(run, cells, left_out) for run in runs}
    work = [(run, step) for run in runs for step in run.steps]
    total = sum(len(cell) for run, _ in work for cell in fitting[run.name].values())
    check(total > 0, f"no question of these tasks fits the models' context: {left_out[-1]['why'] if left_out else ''}")
    scores = []
    with Progress(total, "emergence", "question") as progress:
        for run, step in work:
            update = lambda count, note=run.name: progress.update(count, note)  # noqa: E731
            scores += evaluate_checkpoint(run, step, fitting[run.name], tokenizer.vocab_size, update)
    result = {
        "seed": seed, "questions": questions, "pairs": PAIRS, "left_out": left_out, "scores": scores,
        "checkpoints": [row for run in runs for row in run.checkpoints()],
        "metrics": {name: dataclasses.asdict(metric) for name, metric in METRICS.items()},
        "tasks": {task.name: _about(task) for task in chosen},
    }  # fmt: skip
    result["sharpness"] = sharpness(result)
    folder = Path(workdir)
    write_bytes(folder / "emergence.png", draw_emergence(result))
    write_text(folder / "emergence.csv", scores_csv(result))
    write_json(folder / "emergence.json", result)
    return result


def find_runs(
    workdir: str, bindings: Sequence[str] = (), *, all_checkpoints: bool = False
) -> tuple[list[FinishedRun], list[dict[str, Any]]]:
    """The finished runs of a sweep by rising compute, and what was left out with the reason.

    Raises:
        UserError: no sweep there, or none of its runs is finished.
    """
    folder = Path(workdir) / "runs"
    check(folder.exists(), f"{workdir} holds no sweep (there is no {folder}): `pretrain scaling sweep` makes one")
    runs, left_out = [], []
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        try:
            runs.append(_open_run(workdir, path, bindings, all_checkpoints))
        except _NotFinished as error:
            left_out.append({"run": path.name, "task": None, "size": None, "why": str(error)})
            say(f"emergence: left out {path.name}: {error}")
    check(bool(runs), f"no run of {folder} is finished: `pretrain scaling sweep` goes on where it stopped")
    return sorted(runs, key=lambda run: run.checkpoints()[-1]["flops"]), left_out


class _NotFinished(Exception):
    """Why a run is left out."""


def _open_run(workdir: str, path: Path, bindings: Sequence[str], all_checkpoints: bool) -> FinishedRun:
    if not (path / "config.gin").exists():
        raise _NotFinished("it has not begun")
    experiment = Experiment.from_gin((), bindings, workdir=str(path))
    experiment.data = Path(workdir)  # also where the sweep's folder has moved
    rows, wanted = read_metrics(path / "metrics.jsonl"), experiment.training.steps
    step = rows[-1]["step"] if rows else 0
    if step < wanted:
        raise _NotFinished(f"it is at step {step:,} of {wanted:,}")
    if not experiment.objective.generates:
        raise UserError(f"{path.name} does not continue text: emergence needs runs of a causal language model")
    steps = ()
    if (path / "checkpoints").exists():
        with Checkpointer(path / "checkpoints", read_only=True) as checkpointer:
            steps = checkpointer.steps()
    if not steps:
        raise _NotFinished("it has no checkpoint any more")
    _ = experiment.model  # made now, while gin holds this run's configuration
    return FinishedRun(path.name, experiment, tuple(steps if all_checkpoints else steps[-1:]),
                       rows[-1].get("validation_loss"))  # fmt: skip


def _fitting(run: FinishedRun, cells: Cells, left_out: list[dict[str, Any]]) -> Cells:
    """The cells whose questions all fit the run's context; the others are named in `left_out` and on the terminal."""
    context, found = run.experiment.training.sequence_length, {}
    for (task, number), questions in cells.items():
        longest = max(question.length for question in questions)
        if longest <= context:
            found[task, number] = questions
            continue
        why = f"{longest} tokens do not fit a context of {context}"
        if not any((row["task"], row["size"], row["why"]) == (task, number, why) for row in left_out):
            say(f"emergence: left out {task} of size {number}: {why}")
        left_out.append({"run": run.name, "task": task, "size": number, "why": why})
    return found


def evaluate_checkpoint(run: FinishedRun, step: int, cells: Cells, vocab_size: int, on_batch) -> list[dict[str, Any]]:
    """Scores of one checkpoint, a row for each task and size; see `summarise` for the keys."""
    flat = [question for questions in cells.values() for question in questions]
    answers = iter(
        answer_questions(
            flat, run.experiment.model, run.restore(step), vocab_size=vocab_size, mesh=run.experiment.mesh,
            on_batch=on_batch,
        )
    )  # fmt: skip
    rows = []
    for (task, number), questions in cells.items():
        about = {"run": run.name, "step": step, "task": task, "size": number}
        rows.append(about | summarise(questions, [next(answers) for _ in questions]))
    return rows


def _about(task: Task) -> dict[str, Any]:
    return {"title": task.title, "sizes": list(task.sizes)}
