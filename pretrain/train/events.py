"""What happened to a run and what was done about it: `events.jsonl` in the workdir, one JSON object a line.

Every object has `event` (its number, from 1 and without gaps), `kind`, `step` (steps done when it happened; None where
no step is meant), `time` (Unix seconds) and the evidence of its kind. The format is documented in docs/stability.md.
"""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from pretrain.core.console import say
from pretrain.core.errors import UserError
from pretrain.core.storage import Path, is_remote, write_bytes

FILE = "events.jsonl"


class EventLog:
    """Writes the events of one run. Several processes on one machine may write at once; all lines stay whole.

    An event is on disk when `write` returns. On a local disk it is appended, under a lock; an object store has no
    append, so there the file is written whole, and writers on several machines must take turns.

    Args:
        workdir: folder that holds, or will hold, `events.jsonl`.
    """

    def __init__(self, workdir: Path | str):
        self._path = Path(workdir) / FILE

    def write(self, kind: str, step: int | None, *, once: bool = False, **evidence: Any) -> int:
        """Adds an event and returns its number; where storage refuses it, it is said on the console, and is 0.

        Args:
            kind: what happened, e.g. "spike".
            step: steps done when it happened.
            once: for events that a run killed and started again would meet again. Where an event of the same kind, step
                and evidence is there already, nothing is written and the number is that one's.
            **evidence: JSON values and numpy scalars; numbers that are not finite are kept as "nan", "inf", "-inf".
        """
        event = {"kind": kind, "step": step, **_plain(evidence)}
        try:
            return self._write(event, once)
        except OSError as error:
            say(f"ALARM: {self._path} cannot be written ({error}): {json.dumps(event, ensure_ascii=False)[:1000]}")
            return 0

    def _write(self, event: dict[str, Any], once: bool) -> int:
        if not is_remote(self._path):
            with self._locked() as file:
                return _append(file, event, once)
        events = read_events(self._path.parent)
        number, line = _next(events, event, once)
        if line:
            write_bytes(self._path, b"".join(map(_line, events)) + line)
        return number

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.fspath(self._path), "a+b") as file:  # closing it gives the lock back, and so does a kill
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def read_events(workdir: Path | str) -> list[dict[str, Any]]:
    """The events of a run, in order; a last line cut off by a crash is left out."""
    path = Path(workdir) / FILE
    return _parse(path.read_bytes()) if path.exists() else []


def find_event(workdir: Path | str, number: int) -> dict[str, Any]:
    """The event of a number.

    Raises:
        UserError: there is none.
    """
    events = read_events(workdir)
    for event in events:
        if event["event"] == number:
            return event
    known = f"it holds events 1 to {len(events)}" if events else "nothing has happened yet"
    raise UserError(f"no event {number} in {Path(workdir) / FILE}: {known}")


def _append(file: BinaryIO, event: dict[str, Any], once: bool) -> int:
    file.seek(0)
    events = _parse(file.read())
    number, line = _next(events, event, once)
    if line:
        file.truncate(sum(len(_line(each)) for each in events))  # what a killed writer left of a line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return number


def _next(events: list[dict[str, Any]], event: dict[str, Any], once: bool) -> tuple[int, bytes]:
    """The event's number, and its line where it is new."""
    if once:
        for each in events:
            if {name: value for name, value in each.items() if name not in ("event", "time")} == event:
                return each["event"], b""
    number = len(events) + 1
    return number, _line({"event": number, "time": round(time.time(), 3), **event})


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


def _parse(data: bytes) -> list[dict[str, Any]]:
    events = []
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, so that events can be compared."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
