"""The processes of one run: how they find each other, take turns, and stop together when one of them fails.

A run on several hosts is the same program in each of them (docs/processes.md). They meet at a coordinator, a service of
jax inside process 0 that keeps small strings by name. Each process leaves a sign of life there. One that fails says
why; the others read it at once, print it as the cause and end. One that is silent for `SILENCE` seconds is taken for
dead. When the coordinator itself is gone, jax ends the processes that are left. A process without memory may wait for a
thread that never begins, and ends by itself.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from pretrain.core import lifeline
from pretrain.core.errors import RunError, UserError

PULSE = 2.0  # seconds between signs of life
SILENCE = 20.0  # seconds without one after which a process is dead
DOUBT = 6.0  # the same once this process has lost a connection, which is how a neighbour's death first shows
EXIT_OTHER_FAILED = 75  # this process was well: another one failed, or could not be met (EX_TEMPFAIL of sysexits.h)
# jax's own sign of life comes every half of this, and it aborts whoever is left, without a cause: after we have ended.
_JAX_PATIENCE = int(6 * SILENCE)
_LOOKS = 5  # at threads, one every `PULSE` seconds, after which one that has not begun never will
_FOREVER = 2**31 - 1  # milliseconds, 24 days: as long as a stage may take
_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Socket closed", "Connection")  # what a broken connection says


class OtherFailed(RunError):
    """The run cannot go on without a process that failed; the message has the first cause."""

    exit_code = EXIT_OTHER_FAILED


class _Processes:
    """What this process knows of the run's others."""

    def __init__(self, index: int = 0, count: int = 1, client: Any = None):
        self.index, self.count, self.client = index, count, client
        self.heard: dict[int, tuple[Any, float]] = {}  # process -> its newest sign, and when that came
        self.turns = 0
        self.doubt = False  # a connection broke
        self.over = False  # this process ends by itself

    def watch(self) -> None:
        """Waits until the run ends, well or not, and gives signs of life; a failure ends this process."""
        contact = time.monotonic()
        for beat in itertools.count():
            with contextlib.suppress(Exception):  # jaxlib's own: no end yet, or no contact
                return self.leave_because(
                    json.loads(self.client.blocking_key_value_get("pretrain/end", int(PULSE * 1000)))
                )
            limit = DOUBT if self.doubt else SILENCE
            try:
                self.client.key_value_set(f"pretrain/alive/{self.index}", str(beat), allow_overwrite=True)
                if self.index == 0 or self.doubt:
                    self.listen(limit)
                contact = time.monotonic()
            except Exception:
                if time.monotonic() - contact > limit:
                    return self.leave_because({"why": f"process 0 cannot be reached for {limit:.0f} s", "exit_code": 1})
                time.sleep(PULSE / 4)

    def listen(self, limit: float) -> None:
        """Declares the end of the run where a process gave no sign for `limit` seconds."""
        now, signs = time.monotonic(), values("alive")
        for index in range(self.count):
            sign, since = self.heard.setdefault(index, (signs.get(index), now))
            if signs.get(index) != sign:
                self.heard[index] = signs[index], now
            elif now - since > limit:
                self.tell(f"process {index} was killed, stopped or cut off: no sign of life for {limit:.0f} s")

    def tell(self, why: str, exit_code: int = EXIT_OTHER_FAILED) -> None:
        """Leaves the cause of the run's end for all to read; the first one stays."""
        with contextlib.suppress(Exception):
            self.client.key_value_set("pretrain/end", json.dumps({"why": why, "exit_code": exit_code}))

    def leave_because(self, cause: dict[str, Any]) -> None:
        """Ends this process, whatever its other threads wait for."""
        if cause["exit_code"] and not self.over:
            print(f"pretrain: process {self.index} ends: {cause['why']}", file=sys.stderr)
            # A request that cannot be met, and an interrupt, end all alike; after a failure the others may start again.
            _leave(cause["exit_code"] if cause["exit_code"] in (2, 130) else EXIT_OTHER_FAILED)


_run = _Processes()


@contextlib.contextmanager
def joined(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Iterator[None]:
    """The work of a run that other processes may share: they meet, and end together, well or not; see `join`."""
    join(coordinator, count, index)
    done = threading.Event()
    threading.Thread(target=_watch_threads, args=[done], name="threads", daemon=True).start()
    try:
        yield
    except BaseException as error:
        lifeline.last_words(error)
        if _run.count > 1 and not getattr(error, "everywhere", False):
            _fail(error)
        _part()
        raise
    finally:
        done.set()
    _part()


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Meets the other processes of the run; call it before anything touches a device.

    Without arguments jax finds out on a TPU pod, Slurm, GKE or Open MPI how many there are; elsewhere there is one.

    Args:
        coordinator: "host:port" of process 0.
        count: processes of the run; 1 looks for no others.
        index: of this one, from 0.

    Raises:
        UserError: the arguments contradict each other, or the cluster's description is incomplete.
        OtherFailed: the others did not come in time.
    """
    global _run
    if count == 1 or (coordinator is None and os.environ.get("SLURM_NTASKS") == "1"):
        return
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise UserError("give --coordinator=HOST:PORT, --num_processes and --process_id together, or none of them")
    if all(given) and not 0 <= index < count:
        raise UserError(f"--process_id={index} must be 0 to {count - 1}: there are --num_processes={count}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT of process 0, e.g. 10.0.0.1:1234")
    import jax
    from jax._src import distributed  # jax has no public way to its coordinator's strings

    patience = int(os.environ.get("PRETRAIN_JOIN_SECONDS", "300"))
    try:
        jax.distributed.initialize(
            coordinator, count, index, initialization_timeout=patience, heartbeat_timeout_seconds=_JAX_PATIENCE,
            shutdown_timeout_seconds=60,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        if not any(given) and ("should be defined" in first_line or "must be called before" in first_line):
            return  # no cluster, or a program that uses jax already
        if isinstance(error, ValueError):
            raise UserError(f"the processes of this cluster could not be counted: {first_line}") from error
        raise OtherFailed(f"the processes did not meet at {coordinator or 'the coordinator'}: {first_line}") from error
    _run = _Processes(jax.process_index(), jax.process_count(), distributed.global_state.client)
    if _run.count > 1:
        _run.watcher = threading.Thread(target=_run.watch, name="processes", daemon=True)
        _run.watcher.start()


def index() -> int:
    """The number of this process, from 0."""
    return _run.index


def count() -> int:
    """How many processes the run has."""
    return _run.count


def is_first() -> bool:
    """Whether this is the process that writes and prints for all."""
    return _run.index == 0


def first_alone(work: Callable, *arguments: Any) -> Any:
    """Calls `work` in process 0 and returns its result; the others do nothing and get None."""
    return work(*arguments) if is_first() else None


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Process 0 goes through the block while the others wait; then they go through it and find the work done."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def wait() -> None:
    """Waits until all processes are here; all call it equally often. A failure elsewhere ends the wait."""
    if _run.count > 1:
        _run.turns += 1
        _run.client.wait_at_barrier(f"pretrain/turn/{_run.turns}", _FOREVER)


def put(name: str, value: Any) -> None:
    """Leaves a JSON value for the others; it takes the place of what this process left by that name."""
    _run.client.key_value_set(f"pretrain/{name}/{_run.index}", json.dumps(value), allow_overwrite=True)


def values(name: str) -> dict[int, Any]:
    """What processes have left by a name so far: process -> value. Waits for nobody."""
    found = _run.client.key_value_dir_get(f"pretrain/{name}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def _part() -> None:
    """The orderly end: nobody leaves before all are here."""
    if _run.count > 1:
        import jax

        wait()
        _run.tell("done", 0)
        _run.watcher.join()
        jax.distributed.shutdown()


def _has_begun(thread: threading.Thread) -> bool:
    try:
        return thread.is_alive()
    except (RuntimeError, AssertionError):  # a library's own, which Python only met, and which has ended
        return True


def _watch_threads(done: threading.Event) -> None:
    """Ends this process where a thread that was started does not begin: `Thread.start` would wait for it for ever.

    That happens where the new thread finds no memory before it can say that it runs (`threading`, `_bootstrap_inner`).
    """
    looks: dict[threading.Thread, int] = {}
    with contextlib.suppress(MemoryError):
        while max(looks.values(), default=0) < _LOOKS:
            if done.wait(PULSE):
                return
            looks = {thread: looks.get(thread, 0) + 1 for thread in threading.enumerate() if not _has_begun(thread)}
    try:
        error = RunError("a thread could not begin: this process gets no more memory")
        lifeline.last_words(error)
        _fail(error)
    finally:
        os._exit(1)


def _fail(error: BaseException) -> NoReturn:
    """Tells the others why this process ends, prints it, and exits.

    A broken connection is not taken for the cause: what broke it has the time to show first.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    foreseen = isinstance(error, UserError | RunError | KeyboardInterrupt)
    if not foreseen and any(word in text for word in _LOST):
        _run.doubt = True
        time.sleep(DOUBT + 3 * PULSE)  # by then the watch has ended this process
        error, foreseen = OtherFailed(f"the connection to another process broke: {text}"), True
    _run.over = True
    exit_code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    _run.tell(f"process {_run.index} failed: {text}", exit_code)
    try:
        print(f"pretrain: {text}" if foreseen else "".join(traceback.format_exception(error)), file=sys.stderr)
    finally:
        _leave(exit_code)


def _leave(exit_code: int) -> NoReturn:
    """Exits at once: jax's own farewell would wait for processes that are gone."""
    with contextlib.suppress(OSError, MemoryError):
        sys.stdout.flush()
        sys.stderr.flush()
    if is_first() and _run.count > 1:
        time.sleep(1)  # the coordinator lives here; jax aborts who loses it while reading why, the one that failed too
    os._exit(exit_code)
