"""What a workdir holds, as far as its run has come: the stages write it, the report shows it."""

import dataclasses
import json
from typing import Any

from pretrain.core.environment import Environment
from pretrain.core.errors import RunError
from pretrain.core.storage import Path, read_json
from pretrain.train import timekeeper
from pretrain.train.events import read_events
from pretrain.train.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a run; what is not there yet is None or empty.

    Attributes:
        name: of the run.
        datasheet: of curation.
        cache: description of the token cache.
        metrics: rows of training metrics in order of steps.
        evaluation: of held-out documents.
        samples: `{"prompt": ..., "text": ...}` each.
        environment: what training ran on; see `pretrain.core.environment`.
        goodput: what the run's time went to; see `pretrain.train.timekeeper`.
        events: what happened to it; see `pretrain.train.events`.
        config: the gin configuration.
        scaling: of `pretrain scaling fit`, when this is the folder of a sweep.
        pictures: PNG files of that fit by name.
    """

    name: str
    datasheet: dict[str, Any] | None = None
    cache: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    samples: list[dict[str, str]] = dataclasses.field(default_factory=list)
    environment: dict[str, Any] | None = None
    goodput: dict[str, Any] | None = None
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: str = ""
    scaling: dict[str, Any] | None = None
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)


def read_results(workdir: Path, config_text: str) -> Results:
    """The results in `workdir`.

    Raises:
        RunError: a file is damaged.
    """
    scaling = _optional(workdir / "fit.json")
    return Results(
        name=workdir.name or "run",
        datasheet=_optional(workdir / "corpus" / "datasheet.json"),
        cache=_optional(workdir / "cache" / "complete.json"),
        metrics=read_metrics(workdir / "metrics.jsonl"),
        evaluation=_optional(workdir / "evaluation.json"),
        samples=_samples(workdir / "samples.jsonl"),
        environment=_optional(workdir / "environment.json", Environment),
        goodput=_optional(workdir / timekeeper.FILE),
        events=read_events(workdir),
        config=config_text,
        scaling=scaling,
        pictures={path.name: path.read_bytes() for path in workdir.glob("*.png")} if scaling else {},
    )


def _optional(path: Path, kind: Any = dict[str, Any]) -> dict[str, Any] | None:
    return read_json(path, kind) if path.exists() else None


def _samples(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); run `pretrain generate` again") from error
