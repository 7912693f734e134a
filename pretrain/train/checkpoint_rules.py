"""When a run saves, where to, and which of its checkpoints are kept."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """How checkpoints are made and kept. A checkpoint is kept as long as one of the rules wants it.

    Attributes:
        every: steps between checkpoints in the workdir; the last step is always kept.
        continuous: also save whenever the last save is done, so that a crash costs as little as can be.
        keep: how many of the newest to keep.
        keep_every: keep every step that is a multiple of this; 0 keeps none for that.
        keep_best: how many of the best to keep, by `best_metric`.
        best_metric: name of a metric in metrics.jsonl; where a checkpoint's step has none, it is not among the best.
        best_mode: "min" where less is better, else "max".
        pin: steps to save and keep for ever, such as the last before the learning rate anneals.
        local_tier: folder on a disk of this machine for frequent saves besides those in the workdir; None: none.
        local_every: steps between saves to the local tier.
        local_keep: how many of the newest to keep there.
        patience: seconds that training waits for a save that is not done when the next is due; after that the next is
            left out with an alarm. A save that failed is tried again after this time.
        deadline: seconds from a request to stop (SIGTERM, SIGINT, `notice_file`) until it leaves, saved or not.
        notice_file: a file that asks the run to stop by coming into being, as schedulers give notice of preemption.
    """

    every: int = 1000
    continuous: bool = False
    keep: int = 3
    keep_every: int = 0
    keep_best: int = 0
    best_metric: str = "validation_loss"
    best_mode: Literal["min", "max"] = "min"
    pin: tuple[int, ...] = ()
    local_tier: str | None = None
    local_every: int = 100
    local_keep: int = 2
    patience: float = 60.0
    deadline: float = 60.0
    notice_file: str | None = None

    def __post_init__(self):
        check_fields(self)
        check(self.every >= 1, f"CHECKPOINT_EVERY must be >= 1 step, got {self.every}")
        for name, least in (("keep", 1), ("local_every", 1), ("local_keep", 1), ("keep_every", 0), ("keep_best", 0)):
            check(getattr(self, name) >= least, f"Checkpointing.{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("patience", "deadline"):
            check(getattr(self, name) > 0, f"Checkpointing.{name} must be > 0 seconds, got {getattr(self, name)}")


def kept_steps(
    metrics: Mapping[int, Mapping[str, float]],
    rules: Checkpointing,
    *,
    pinned: Iterable[int] = (),
    wanted: Iterable[int] = (),
) -> dict[int, list[str]]:
    """Why each step that is kept is kept: `{300: ["newest"], 100: ["best", "pinned"]}`.

    Args:
        metrics: step -> its metrics, of every checkpoint there is.
        rules: what to keep.
        pinned: steps that a person, or `rules.pin`, asked to keep.
        wanted: steps that the run itself may need again, to rewind to.
    """
    name, sign = rules.best_metric, 1 if rules.best_mode == "min" else -1
    scored = [step for step in metrics if isinstance(metrics[step].get(name), int | float)]
    best = sorted(scored, key=lambda step: (sign * metrics[step][name], step))[: rules.keep_best]
    multiples = [step for step in metrics if rules.keep_every and step % rules.keep_every == 0]
    reasons = {
        "newest": sorted(metrics)[-rules.keep :],
        f"multiple of {rules.keep_every}": multiples,
        "best": best,
        "pinned": [*pinned, *rules.pin],
        "to rewind to": wanted,
    }
    found = {step: [reason for reason, steps in reasons.items() if step in set(steps)] for step in sorted(metrics)}
    return {step: why for step, why in found.items() if why}
