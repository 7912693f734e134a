"""What a workdir holds, as far as its run has come: the stages write it, the report shows it."""

import dataclasses
import json
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from pretrain.core.environment import Environment
from pretrain.core.errors import RunError
from pretrain.core.storage import Path, read_json, typed
from pretrain.train import timekeeper
from pretrain.train.events import read_events
from pretrain.train.metrics import read_metrics

Number = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Row(TypedDict):
    """What the report shows of a row of metrics; None where it was not a finite number."""

    step: Count
    tokens: Annotated[float, msgspec.Meta(ge=0, le=1e30)]
    tokens_per_second: Annotated[float, msgspec.Meta(gt=0, le=1e30)]
    loss: NotRequired[Number | None]
    validation_loss: NotRequired[Number | None]
    learning_rate: NotRequired[Number | None]
    grad_norm: NotRequired[Number | None]
    mfu: NotRequired[Number | None]


class TextEvaluation(TypedDict):
    """Of objectives that write text; `baselines` are bits per byte too."""

    step: Count
    bits_per_byte: Number
    perplexity: float
    tokens: Count
    bytes: Count
    baselines: Annotated[dict[str, Number], msgspec.Meta(min_length=1)]


class OwnEvaluation(TypedDict):
    """Of the others; they have more numbers of their own."""

    step: Count
    objective: str
    loss: float


class Sample(TypedDict):
    """What the model wrote."""

    prompt: str
    text: str


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
    metrics: list[Row] = dataclasses.field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    samples: list[Sample] = dataclasses.field(default_factory=list)
    environment: Environment | None = None
    goodput: timekeeper.Goodput | None = None
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
        metrics=_metrics(workdir / "metrics.jsonl"),
        evaluation=_evaluation(workdir / "evaluation.json"),
        samples=_samples(workdir / "samples.jsonl"),
        environment=_optional(workdir / "environment.json", Environment),
        goodput=_optional(workdir / timekeeper.FILE, timekeeper.Goodput),
        events=read_events(workdir),
        config=config_text,
        scaling=scaling,
        pictures={path.name: path.read_bytes() for path in workdir.glob("*.png")} if scaling else {},
    )


def _optional(path: Path, kind: Any = dict[str, Any]) -> dict[str, Any] | None:
    return read_json(path, kind) if path.exists() else None


def _metrics(path: Path) -> list[Row]:
    return typed(read_metrics(path), list[Row], path)


def _evaluation(path: Path) -> dict[str, Any] | None:
    found = _optional(path)
    return None if found is None else read_json(path, TextEvaluation if "baselines" in found else OwnEvaluation)


def _samples(path: Path) -> list[Sample]:
    if not path.exists():
        return []
    try:
        return typed([json.loads(line) for line in path.read_text().splitlines()], list[Sample], path)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); run `pretrain generate` again") from error
