"""What a run's time goes to, over all its restarts (`goodput.json`), and the signs of life its supervisor waits for.

Every moment of a process belongs to one phase. What compiles is taken out of the phase it happens in. Time between a
process's last word and the start of the next one is `restart`, as is its start-up; steps that were trained and then
trained again, since no checkpoint had kept them, are `lost`. Goodput is the share of steps that count in all this time.
The name, and counting what is done twice as loss, follow "ML Productivity Goodput" (Google Cloud, 2024).
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import gin
import jax
import msgspec

from pretrain.core import lifeline, processes
from pretrain.core.console import say
from pretrain.core.errors import RunError, check
from pretrain.core.fields import check_fields
from pretrain.core.storage import Path, is_remote, read_json, write_json

FILE = "goodput.json"
PHASES = ("productive", "compile", "data_wait", "checkpoint", "evaluation", "restart", "lost")
Time = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]  # seconds; below 0 where a clock was set back
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Seconds = TypedDict("Seconds", dict.fromkeys(PHASES[:-1], Time))
Sums = TypedDict("Sums", dict.fromkeys(PHASES, Time))
_COMPILING = "/jax/core/compile/"  # what jax calls the durations of tracing, lowering and compiling
_REMEMBERED = 64  # steps whose median is the usual one


class Incarnation(TypedDict):
    """What one process did, or what it did up to a rewind: Unix seconds; steps done, None before the first; phases."""

    began: Time
    ended: Time
    first_step: Count | None
    last_step: Count | None
    finished: bool
    seconds: Seconds


class Goodput(TypedDict):
    """What `goodput.json` holds: sums over all incarnations, and these."""

    goodput: float | None  # a share
    seconds: Sums
    lost_steps: Count
    incarnations: list[Incarnation]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Supervision:
    """When a run is in trouble, though it has not failed.

    Attributes:
        hang_factor, hang_floor: a step that takes over `hang_factor` median steps and `hang_floor` seconds hangs.
        patience: seconds that anything else may take without a step: compiling, validation, restoring.
        recompute_every: steps between those that are computed twice and compared bit for bit; 0 for none.
        compare_every: steps between comparisons of the speeds of hosts; 0 for none.
        slow_factor: a host that needs so many times the median is slow.
    """

    hang_factor: float = 20.0
    hang_floor: float = 30.0
    patience: float = 3600.0
    recompute_every: int = 0
    compare_every: int = 200
    slow_factor: float = 1.5

    def __post_init__(self):
        check_fields(self)
        for name, least in (("hang_factor", 2), ("hang_floor", 1), ("patience", 1), ("slow_factor", 1)):
            check(getattr(self, name) >= least, f"Supervision.{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("recompute_every", "compare_every"):
            check(getattr(self, name) >= 0, f"Supervision.{name} must be >= 0, got {getattr(self, name)}")


class Timekeeper:
    """Accounts for the time of one process, and says that it lives. Use as a context manager around all of training.

    Leaving it without an error means that the last step is done. The first process writes the file, for all.

    Args:
        workdir: holds `goodput.json`.
        config: limits; gin's by default.

    Attributes:
        seconds: of this incarnation, by phase.
    """

    def __init__(self, workdir: Path | str, config: Supervision | None = None):
        self.config, self._path = config or Supervision(), Path(workdir) / FILE
        self._pause = 60.0 if is_remote(self._path) else 1.0  # seconds between writes
        self._began = self._since = _process_start()
        self._phase, self.seconds = "restart", dict.fromkeys(PHASES[:-1], 0.0)
        self._compiled: collections.deque[tuple[float, float]] = collections.deque(maxlen=_REMEMBERED)  # from, to
        self._steps: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._first: int | None = None  # steps done when training began; None before that
        self._last: int | None = None
        self._written, self._alarmed = 0.0, False
        self._stepped: float | None = None  # when the last step was done; None where something else came between
        self._past: list[Incarnation] = []

    def __enter__(self) -> "Timekeeper":
        self._past = _read_past(self._path) if processes.is_first() else []
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        self._sign()
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        if self._first is not None:
            self.write(finished=error is None)
        lifeline.sign(None)  # what comes now takes its time

    def start(self, step: int) -> None:
        """Training begins, or begins again after a rewind, with `step` steps done."""
        if self._first is not None:  # a rewind: what was trained beyond `step` is lost
            self._switch(self._phase)
            self._past.append(self._entry())
            self._began, self.seconds = self._since, dict.fromkeys(PHASES[:-1], 0.0)
        self._first = self._last = step
        self._stepped = None
        self._switch("productive")
        self.write()
        self._sign()

    @contextlib.contextmanager
    def spending(self, phase: str) -> Iterator[None]:
        """The time of the block goes to a phase of `PHASES`."""
        outer = self._switch(phase)
        if phase != "data_wait":
            self._stepped = None
            self._sign()
        try:
            yield
        finally:
            self._switch(outer)

    def step_done(self, step: int) -> None:
        """The device has finished a step."""
        now = time.time()
        if self._stepped is not None:
            self._steps.append(now - self._stepped)
        self._stepped, self._last = now, step
        self._sign()
        if now - self._written > self._pause:
            self.write()

    def write(self, *, finished: bool = False) -> None:
        """Brings `goodput.json` up to date.

        Args:
            finished: the last step is done; time until the run is made longer, if ever, does not count.
        """
        self._switch(self._phase)
        if processes.is_first():
            entries = [*self._past, {**self._entry(), "finished": finished}]
            try:
                write_json(self._path, {**account(entries), "incarnations": entries})
                self._alarmed = False
            except OSError as error:
                if not self._alarmed:
                    say(f"train: {self._path} could not be written: {error}")
                self._alarmed = True
        self._written = time.time()

    def step_seconds(self) -> float | None:
        """The median of the newest steps; None before there are three."""
        return statistics.median(self._steps) if len(self._steps) >= 3 else None

    def _sign(self) -> None:
        usual, config = self.step_seconds(), self.config
        steady = self._phase in ("productive", "data_wait") and self._stepped is not None and usual is not None
        limit = max(config.hang_floor, config.hang_factor * usual) if steady else config.patience
        lifeline.sign(limit, step=self._last, process=processes.index(), phase=self._phase)

    def _switch(self, phase: str) -> str:
        now, outer = time.time(), self._phase
        self.seconds[outer] += now - self._since
        self._since, self._phase = now, phase
        return outer

    def _on_duration(self, event: str, seconds: float, **_: Any) -> None:
        """Moves the time of a compilation out of the phase that it happened in; compilations hold others."""
        if not event.startswith(_COMPILING):
            return
        end = time.time()
        start, counted = end - seconds, 0.0
        while self._compiled and self._compiled[-1][0] >= start:
            inner = self._compiled.pop()
            counted += inner[1] - inner[0]
        self._compiled.append((start, end))
        if self._phase != "compile":
            self.seconds["compile"] += seconds - counted
            self.seconds[self._phase] -= seconds - counted

    def _entry(self) -> Incarnation:
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        return {
            "began": round(self._began, 3), "ended": round(self._since, 3), "first_step": self._first,
            "last_step": self._last, "finished": False, "seconds": seconds,
        }  # fmt: skip


def account(entries: list[Incarnation]) -> dict[str, Any]:
    """The sums over all incarnations of a run: {"goodput": share, "seconds": by phase, "lost_steps": ...}.

    An incarnation's steps beyond the first one of a later incarnation were done again: that share of its productive
    time is lost.
    """
    seconds, lost_steps, after = dict.fromkeys(PHASES, 0.0), 0, float("inf")
    for entry in reversed(entries):
        for phase in PHASES[:-1]:
            seconds[phase] += entry["seconds"][phase]
        if entry["first_step"] is None or entry["last_step"] is None:
            continue
        steps = entry["last_step"] - entry["first_step"]
        lost = min(steps, max(0, entry["last_step"] - after))
        after = min(after, entry["first_step"])
        lost_steps += lost
        wasted = entry["seconds"]["productive"] * lost / steps if lost else 0.0
        seconds["productive"] -= wasted
        seconds["lost"] += wasted
    for before, entry in itertools.pairwise(entries):
        if not before["finished"]:
            seconds["restart"] += max(0.0, entry["began"] - before["ended"])
    total = sum(seconds.values())
    return {
        "goodput": round(seconds["productive"] / total, 4) if total else None,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "lost_steps": int(lost_steps),
    }


def _read_past(path: Path) -> list[Incarnation]:
    try:
        return read_json(path, Goodput)["incarnations"] if path.exists() else []
    except RunError as error:
        say(f"train: {path} is damaged and begins anew ({error})")
        return []


def _process_start() -> float:
    """When this process began, in Unix seconds; now where the system does not tell."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError):
        return time.time()
