"""Requests to stop: SIGTERM, SIGINT and notices of preemption. The step is finished, the state saved, and the run ends.

The first request is answered after the step that is going on; the second ends the process at once. When the deadline
passes before the state is saved, the process leaves all the same: a machine that is taken away does not wait. Signals
are read by a thread, since Python runs handlers only between the main thread's own instructions, and a step may keep
that thread for long.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from pretrain.core.console import say
from pretrain.core.errors import RunError
from pretrain.core.storage import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL = 1.0  # seconds between looks for the notice file


class Stopped(RunError):
    """The run was asked to stop and has saved its state: the same command goes on. Exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75
    everywhere = True


class StopRequests:
    """Whether somebody wants the run to stop. Made by `stop_requests`."""

    def __init__(self, deadline: float):
        self.reason: str | None = None
        self._deadline = deadline
        self._settled = threading.Event()

    def requested(self, step: int) -> bool:
        """True where the run must stop after this step; the same answer in all processes of the run."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.reason = self.reason or "SIGTERM"
        return self.reason is not None

    def ask(self, reason: str, code: int) -> None:
        """Takes a request; the second one, or the deadline, ends the process with `code`."""
        if self.reason is not None:
            _leave(f"{reason} again: leaving at once, what was not saved is lost", code)
        self.reason = reason
        say(f"train: {reason}: saving after this step, within {self._deadline:g} s; a second request leaves at once")
        threading.Thread(target=self._watch_deadline, args=(code,), daemon=True).start()

    def settled(self) -> None:
        """The state is saved, or nothing is left to save: the deadline is met."""
        self._settled.set()

    def _watch_deadline(self, code: int) -> None:
        if not self._settled.wait(self._deadline):
            _leave(f"{self.reason}: the state could not be saved in {self._deadline:g} s", code)


@contextlib.contextmanager
def stop_requests(deadline: float, notice_file: str | None = None) -> Iterator[StopRequests]:
    """Listens for requests to stop while the block runs; only in the main thread of a program can signals be heard.

    In a run of several processes JAX itself hears SIGTERM and lets all of them agree on a step.

    Args:
        deadline: seconds from a request until the process leaves.
        notice_file: a file that is such a request when it comes into being.
    """
    requests, over = StopRequests(deadline), threading.Event()
    if notice_file is not None:
        threading.Thread(target=_watch_notice, args=(requests, Path(notice_file), over), daemon=True).start()
    listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    try:
        with _signals_to(requests) if listens else contextlib.nullcontext():
            yield requests
    finally:
        requests.settled()
        over.set()


@contextlib.contextmanager
def _signals_to(requests: StopRequests) -> Iterator[None]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen() -> None:
        while numbers := ours.recv(1):
            if numbers[0] in SIGNALS:
                requests.ask(signal.Signals(numbers[0]).name, 128 + numbers[0])

    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()  # the listener reads the end of the stream
        listener.join()
        ours.close()


def _watch_notice(requests: StopRequests, notice: Path, over: threading.Event) -> None:
    stale = notice.exists()  # of a request that was answered before
    while not over.wait(_POLL):
        stale = stale and notice.exists()
        if not stale and notice.exists():
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX hears it, and tells the others
            else:
                requests.ask(f"notice of preemption ({notice})", 128 + signal.SIGTERM)
            return


def _leave(message: str, code: int) -> None:
    """Ends the process from any thread, without waiting for the others."""
    say(f"train: {message}")
    os._exit(code)
