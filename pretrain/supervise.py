"""A parent process that keeps a trainer going: `pretrain train --max_restarts=N`.

It imports neither jax nor anything else that can fail with the trainer. A trainer that crashes, is killed or gives no
sign of life in time is started again, after a pause that doubles while no new step is trained; one that was asked to
stop or cannot be run as asked is not. In a run of several processes each has its supervisor; they need not talk to each
other: a process that ends makes the others end (`pretrain.core.processes`), and all meet again at the coordinator.
Every failure goes to `events.jsonl`, by the supervisor of the process that failed.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from pretrain.core import lifeline

FINAL = (0, 2, 130)  # exit codes after which nothing is tried again: done, a request that cannot be met, interrupted
OTHERS = 75  # this process was well: it was asked to stop, or another process failed (docs/processes.md)
LONGEST_PAUSE = 60.0  # seconds
OTHERS_PATIENCE = 3600.0  # seconds without a new step that a run of several processes waits for the missing ones
STOPPED = 30.0  # seconds that a trainer may be stopped (SIGSTOP), whatever it had been given time for
_TICK = 0.2


@dataclasses.dataclass(frozen=True)
class End:
    """How a trainer ended.

    Attributes:
        code: as the system gives it: an exit code, or -N for signal N.
        step: steps done, as far as is known.
        kind: "crash", "hang" or "device_error".
        why: for people.
        evidence: for `events.jsonl`.
    """

    code: int
    step: int | None
    kind: str
    why: str
    evidence: dict[str, Any]


class Supervisor:
    """Starts a trainer again and again.

    Args:
        arguments: of the command line, as the trainer gets them.
        max_restarts: restarts in a row that train no new step, after which it gives up.
        workdir: of the run, for the events and the stacks.
        command: what to start, before `arguments`.
    """

    def __init__(self, arguments: Sequence[str], max_restarts: int, workdir: str, command: Sequence[str] | None = None):
        self._command = [*(command or (sys.executable, "-m", "pretrain")), *arguments]
        self._max_restarts, self._workdir = max_restarts, workdir
        self._child: subprocess.Popen | None = None
        self._news: dict[str, Any] = {}
        self._stopping: int | None = None

    def run(self) -> int:
        """Runs the trainer to its end and returns the exit code."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        best, restarts, progress = -1, 0, time.monotonic()
        while True:
            end = self._one()
            if end.code in FINAL or self._stopping is not None:
                return end.code if end.code >= 0 else 128 - end.code
            if end.step is not None and end.step > best:
                best, restarts, progress = end.step, 0, time.monotonic()
            if end.code == OTHERS:
                if time.monotonic() - progress > OTHERS_PATIENCE:
                    _say(f"no new step in {OTHERS_PATIENCE:.0f} s; giving up")
                    return OTHERS
                pause, what = 1.0, "the processes meet again"
            else:
                restarts += 1
                if restarts > self._max_restarts:
                    self._record(end, action="gave up")
                    _say(f"{end.why}; {self._max_restarts} restarts in a row trained no new step: giving up")
                    return end.code if end.code >= 0 else 128 - end.code
                pause = min(LONGEST_PAUSE, 2.0 ** (restarts - 1))
                what = f"restart {restarts} of {self._max_restarts} without a new step"
                self._record(end, action="restart", restart=restarts, pause=pause)
            _say(f"{end.why}; {what}, in {pause:.0f} s")
            self._sleep(pause)
            if self._stopping is not None:
                return 128 + self._stopping

    def _one(self) -> End:
        """Starts the trainer and follows it to its end."""
        self._news = {}
        reader, writer = os.pipe()
        with tempfile.TemporaryDirectory(prefix="pretrain-") as folder, open(reader, "rb", buffering=0) as signs:
            stacks = os.path.join(folder, "stacks")
            environment = {**os.environ, lifeline.VARIABLE: f"{writer}:{stacks}"}
            child = subprocess.Popen(self._command, env=environment, pass_fds=[writer], process_group=0)
            self._child, asked = child, self._stopping  # no signal is handled between the two
            if asked is not None:  # while it was being started, when there was nobody to pass it on to
                child.send_signal(asked)
            os.close(writer)
            try:
                hang = self._follow(signs, stacks)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)  # with the processes that it started
                self._child.wait()
        return self._end(self._child.returncode, hang)

    def _follow(self, signs: Any, stacks: str) -> dict[str, Any] | None:
        """Waits until the trainer ends, or is overdue; returns the evidence of a hang."""
        rest, due, limit, heard, stopped = b"", float("inf"), None, time.monotonic(), None
        while self._child.poll() is None:
            stopped = (stopped or time.monotonic()) if _is_stopped(self._child.pid) else None
            if stopped and time.monotonic() - stopped > STOPPED:
                limit, due = STOPPED, stopped
            if select.select([signs], [], [], _TICK)[0]:
                data = signs.read(1 << 16)
                if not data:  # the end of the line: it closes as the process ends
                    time.sleep(_TICK)
                    continue
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._news |= json.loads(line)
                limit, heard = self._news["limit"], time.monotonic()
                due = heard + limit if limit is not None else float("inf")
            elif time.monotonic() > due:
                silent = time.monotonic() - heard
                path = self._write_stacks(_stacks(self._child.pid, stacks))
                return {"seconds": round(silent, 1), "limit": round(limit, 1), "stacks": path}
        while select.select([signs], [], [], 0)[0] and (data := signs.read(1 << 16)):  # its last words
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._news |= json.loads(line)
        return None

    def _end(self, code: int, hang: dict[str, Any] | None) -> End:
        step, name = self._news.get("step"), f"process {self._news.get('process', 0)}"
        after = "before its first step" if step is None else f"after step {step}"
        evidence: dict[str, Any] = {"process": self._news.get("process", 0), "exit_code": code}
        if hang is not None:
            why = f"{name} gave no sign of life for {hang['seconds']:.0f} s {after}; its stacks are in {hang['stacks']}"
            return End(code, step, "hang", why, {**evidence, **hang})
        if code < 0:
            why, evidence["signal"] = f"{name} was killed by {signal.Signals(-code).name} {after}", -code
        else:
            why = f"{name} ended with exit code {code} {after}"
        error = self._news.get("error")
        kind = "device_error" if error and error["device"] else "crash"
        return End(code, step, kind, why, {**evidence, **({"error": error["text"]} if error else {})})

    def _record(self, end: End, **more: Any) -> None:
        from pretrain.train.events import EventLog  # numpy and paths: only now, and only where something happened

        EventLog(self._workdir).write(end.kind, end.step, **end.evidence, **more)

    def _write_stacks(self, text: str) -> str:
        from pretrain.core.storage import Path, write_text

        path = Path(self._workdir) / "stacks" / f"process-{self._news.get('process', 0)}-{int(time.time())}.txt"
        try:
            write_text(path, text)
        except OSError as error:
            _say(f"{path} could not be written ({error}):\n{text}")
        return os.fspath(path)

    def _pass_on(self, number: int, _frame: Any) -> None:
        """Hands a request to stop to the trainer, which saves and ends; there is no restart after it."""
        self._stopping = number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._stopping is None:
            time.sleep(_TICK)


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal; False where the system does not say."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
    return False


def _stacks(pid: int, file: str, patience: float = 5.0) -> str:
    """What each thread of the trainer is doing, and what the processes that it started wait for."""
    parts, until = [], time.monotonic() + patience
    os.kill(pid, lifeline.REQUEST)
    size = -1
    while time.monotonic() < until:  # until the file is there and no longer grows
        time.sleep(2 * _TICK)
        now = os.path.getsize(file) if os.path.exists(file) else 0
        if now and now == size:
            break
        size = now
    with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as dumped:
        parts.append(dumped.read() or "the trainer did not answer: it is stopped, or in the kernel\n")
    for entry in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{entry}/stat") as file_:
                name, _, fields = file_.read().partition("(")[2].rpartition(")")
            state, _parent, group = fields.split()[:3]
            if int(group) == pid:
                with open(f"/proc/{entry}/wchan") as file_:
                    parts.append(f"process {entry} ({name}): state {state}, waits in {file_.read() or 'user code'}")
    return "\n".join(parts) + "\n"


def _say(message: str) -> None:
    print(f"pretrain: supervisor: {message}", file=sys.stderr, flush=True)
