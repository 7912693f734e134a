"""What a run does about a spike: nothing but write it down, leave out the update, or go back and around the data.

To rewind is to restore the newest whole checkpoint at a multiple of a fixed grid that lies well before the spike, and
to go on behind the batches that led to it (PaLM: Chowdhery et al. 2022, section 5.1). Every decision is a pure function
of what a checkpoint holds (the detector's state and the course through the data, kept beside the data position) and of
the losses since. So a run that is killed at any moment, in a rewind too, comes to the same decisions again when it goes
on, and to the same bits. See docs/stability.md.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import gin
import numpy as np

from pretrain.core.console import say
from pretrain.core.errors import RunError, check
from pretrain.core.fields import check_fields
from pretrain.train.events import EventLog
from pretrain.train.spikes import NOTHING, RECENT, SIGNALS, Detector, State, fresh, observe


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Recovery:
    """What to do about a spike. Every policy writes it to events.jsonl.

    Attributes:
        policy: "none"; "skip_update", which leaves out updates whose gradient is not finite or too large; "rewind".
        update_limit: of "skip_update": gradient norm, over its running mean, from which on an update is left out.
        back: steps that the checkpoint has to lie before the beginning of the spike.
        skip: batches to leave out from the checkpoint's position on; never fewer than up to the spike. Where it comes
            back, the data is bad further on: two times as many after the spike, then four times, ...
        grid: a rewind goes to multiples of this step only; None for `Checkpointing.every`.
        tries: rewinds in a row, with fewer than `back` good steps between, before the run stops with a diagnosis.
        lower_rate: factor on the learning rate after a rewind, once more with each further try; 1 leaves it.
        for_steps: steps that the learning rate is lowered for.
    """

    policy: Literal["none", "skip_update", "rewind"] = "none"
    update_limit: float = 10.0
    back: int = 100
    skip: int = 200
    grid: int | None = None
    tries: int = 3
    lower_rate: float = 1.0
    for_steps: int = 500

    def __post_init__(self):
        check_fields(self)
        for name, least in (("back", 1), ("skip", 0), ("tries", 1), ("for_steps", 1), ("update_limit", 1)):
            check(getattr(self, name) >= least, f"Recovery.{name} must be >= {least}, got {getattr(self, name)}")
        check(self.grid is None or self.grid >= 1, f"Recovery.grid must be >= 1, got {self.grid}")
        check(0 < self.lower_rate <= 1, f"Recovery.lower_rate must be in (0, 1], got {self.lower_rate}")


class Rewind(Exception):
    """The run has to go back. Caught by the loop, never seen by a person.

    Attributes:
        step: at which the spike was found.
        began: at which it began.
        at_most: the last step that may be gone back to.
        evidence: for the event.
    """

    def __init__(self, step: int, began: int, at_most: int, evidence: dict[str, Any]):
        super().__init__(f"a spike at step {step}")
        self.step, self.began, self.at_most, self.evidence = step, began, at_most, evidence


@dataclasses.dataclass(frozen=True)
class Course:
    """How a run goes through its data.

    Attributes:
        skips: ranges [first, stop) of batches that are left out, in order and apart from each other.
        tries: rewinds in a row.
        spike: step of the last spike that was rewound from.
        target: step that was rewound to.
    """

    skips: tuple[tuple[int, int], ...] = ()
    tries: int = 0
    spike: int = 0
    target: int = 0

    def batch(self, step: int) -> int:
        """The batch that comes after `step` steps."""
        for first, stop in self.skips:
            if step >= first:
                step += stop - first
        return step

    def batches(self, open_at: Callable[[int], Iterator[Any]], step: int) -> Iterator[Any]:
        """The batches after `step` steps, from a function that gives those from a batch on."""
        here = self.batch(step)
        for first, stop in self.skips:
            if first > here:
                yield from itertools.islice(open_at(here), first - here)
                here = stop
        yield from open_at(here)

    def around(self, first: int, stop: int) -> tuple[tuple[int, int], ...]:
        """The skips with one more."""
        joined: list[tuple[int, int]] = []
        for low, high in sorted([*self.skips, (first, stop)]):
            if joined and low <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(high, joined[-1][1])
            else:
                joined.append((low, high))
        return tuple(joined)


class Watch:
    """Looks at every step of a run and decides what to do.

    Args:
        recovery, detector: configuration.
        grid: steps that a rewind may go to are multiples of this.
        events: where to write what happened; None in processes that do not write.
        documents: batch -> what is in it, for the events.

    Attributes:
        course: through the data, as it is now.
    """

    def __init__(
        self,
        recovery: Recovery,
        detector: Detector,
        grid: int,
        events: EventLog | None,
        documents: Callable[[int], Any] | None = None,
    ):
        self.recovery, self.detector, self.grid = recovery, detector, grid
        self._events, self._documents = events, documents
        self.course, self._state = Course(), fresh(detector)

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        course, policy = dataclasses.asdict(self.course), dataclasses.asdict(self.recovery)
        return {"detector": self._state.to_json(), "course": course, "policy": policy}

    def resume(self, kept: Mapping[str, Any] | None, course: Course | None = None) -> None:
        """Goes on from what a checkpoint kept; None for the beginning of a run. Under another policy, tries begin anew.

        Args:
            kept: what `kept` gave.
            course: in place of the one that was kept.
        """
        kept = kept or {}
        self._state = State.from_json(kept["detector"], self.detector) if kept else fresh(self.detector)
        old = {**kept.get("course", {})}
        skips = tuple((first, stop) for first, stop in old.pop("skips", ()))
        if kept.get("policy") != dataclasses.asdict(self.recovery):
            old["tries"] = 0
        self.course = course or Course(skips, **old)

    def wanted(self, steps: Iterable[int]) -> list[int]:
        """Of the steps with a checkpoint, those that a spike now could make the run go back to, and one before."""
        multiples = [step for step in sorted(steps) if step % self.grid == 0]
        if self.recovery.policy != "rewind" or not multiples:
            return []
        surely = max(multiples) - self.recovery.back - RECENT
        before = [step for step in multiples if step <= surely]
        return [*before[-2:], *(step for step in multiples if step > surely)]

    def due(self, step: int) -> bool:
        """Whether a rewind may have to come back to this step."""
        return self.recovery.policy == "rewind" and step % self.grid == 0

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at the metrics of a step.

        Raises:
            Rewind: it is part of a spike, and the policy is to go back.
        """
        if values.get("update_skipped"):
            batches = self._batches(step, step)
            about = {"loss": values["loss"], "grad_norm": values["grad_norm"], "batches": batches}
            self._write("skipped_update", step, **about, documents=self._contents(batches))
        overflow = "loss_scale" in values and not np.isfinite(values["grad_norm"])
        norm = None if overflow else values["grad_norm"]
        told = self._state.quiet_R < self.detector.least  # a loss that is lost stays so, step after step
        self._state, finding = observe(self.detector, self._state, values["loss"], norm)
        if finding.signal_R == NOTHING or (told and self.recovery.policy != "rewind"):
            return
        began = max(step - int(finding.began_R), 1)
        batches = self._batches(began - 1, step)  # the step before too: its update may have done it
        evidence = {
            "signal": SIGNALS[finding.signal_R],
            "began": began,
            **{name: values[name] for name in ("loss", "grad_norm", "learning_rate") if name in values},
            **dict(zip(("loss_median", "grad_norm_median"), finding.median_RS.tolist(), strict=True)),
            **dict(zip(("loss_z", "grad_norm_z"), np.round(finding.z_RS, 3).tolist(), strict=True)),
            "batches": batches,
            "documents": self._contents(batches),
        }
        if self.recovery.policy == "rewind":
            raise Rewind(step, began, self._at_most(began), evidence)
        number = self._write("spike", step, **evidence, action=self.recovery.policy)
        say(f"train: {_told(step, evidence)}; see pretrain inspect --event={number}")

    def decide(self, spike: Rewind, target: int | None) -> Course:
        """Decides on a rewind to `target` and writes it down.

        Args:
            spike: what was found.
            target: the newest whole checkpoint at or before `spike.at_most` on the grid, 0 for the beginning of the
                run; None where there is none.

        Returns:
            The course after the rewind; its `tries` is 1 for the first.

        Raises:
            RunError: there is nothing to go back to, or it was tried often enough.
        """
        recovery, course = self.recovery, self.course
        tries = course.tries + 1 if self._is_back(spike.began) else 1
        if target is None or tries > recovery.tries:
            number = self._write("spike", spike.step, **spike.evidence, action="stop", tries=tries - 1)
            raise RunError(_diagnosis(spike, number, tries - 1, target))
        first = course.batch(target)
        more = recovery.skip * 2 ** (tries - 1) if tries > 1 else 0
        stop = max(first + recovery.skip, course.batch(spike.step - 1) + 1 + more)
        number = self._write(
            "spike", spike.step, **spike.evidence, action="rewind",
            to=target, skipped=[first, stop], rate=recovery.lower_rate**tries, **{"try": tries},
        )  # fmt: skip
        say(
            f"train: {_told(spike.step, spike.evidence)}; back to step {target}, without batches {first} to {stop - 1} "
            f"(try {tries} of {recovery.tries}; event {number})"
        )
        return Course(course.around(first, stop), tries, spike.step, target)

    def _is_back(self, began: int) -> bool:
        """Whether a spike that began at a step is the one that was just rewound from."""
        return self.course.tries > 0 and began <= self.course.spike + self.recovery.back

    def _at_most(self, began: int) -> int:
        """The last step to go back to. A second try may take the same checkpoint: first the data is suspected."""
        before = began - self.recovery.back
        return max(before, self.course.target) if self._is_back(began) and self.course.tries == 1 else before

    def _batches(self, first_step: int, last_step: int) -> list[int]:
        """The batches that these steps were made with."""
        return [self.course.batch(step - 1) for step in range(max(first_step, 1), last_step + 1)]

    def _contents(self, batches: list[int]) -> dict[str, Any] | None:
        writes = self._documents is not None and self._events is not None
        return {str(batch): self._documents(batch) for batch in batches} if writes else None

    def _write(self, kind: str, step: int, **evidence: Any) -> int:
        return 0 if self._events is None else self._events.write(kind, step, once=True, **evidence)


def _told(step: int, evidence: Mapping[str, Any]) -> str:
    seen = ", ".join(
        f"{title} {evidence[name]:.4g} (median {evidence[f'{name}_median']:.4g})"
        for name, title in (("loss", "loss"), ("grad_norm", "gradient norm"))
    )
    return f"spike at step {step}, {evidence['signal']}, begun at step {evidence['began']}: {seen}"


def _diagnosis(spike: Rewind, number: int, tries: int, target: int | None) -> str:
    tried = f"rewound {tries} times in a row and it came back" if tries else "not rewound"
    if target is None:
        tried += f"; no whole checkpoint is left at or before step {spike.at_most}"
    advice = {
        "not finite": "a value overflows: lower the learning rate, or compute in float32 or bfloat16",
        "slow divergence": "the learning rate is too high for this stage: lower it, or set Recovery.lower_rate = 0.5",
    }.get(
        spike.evidence["signal"],
        "if its documents look sound, lower the learning rate or set Recovery.lower_rate = 0.5; "
        "if they do not, set Recovery.skip higher or curate them out",
    )
    return (
        f"{_told(spike.step, spike.evidence)}; {tried}. See what is in the batches with "
        f"`pretrain inspect --event={number}`; {advice}"
    )
