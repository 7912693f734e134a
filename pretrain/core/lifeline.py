"""The line between a trainer and the supervisor that started it: signs of life one way, requests for stacks the other.

The supervisor (`pretrain.supervise`) hands its child a pipe. Each sign is one line of JSON with `limit`, the seconds
until the next one is due. SIGUSR1 makes the child write what each of its threads is doing to a file.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
from typing import Any

VARIABLE = "PRETRAIN_SUPERVISED"  # in the child's environment: "DESCRIPTOR:STACKS_FILE"
REQUEST = signal.SIGUSR1
_PR_SET_PDEATHSIG = 1
_FAREWELL = 120.0  # seconds from an error to the end of the process

_pipe: int | None = None


def attach() -> bool:
    """Takes up the line in a process that a supervisor started; returns False in any other."""
    global _pipe
    given = os.environ.pop(VARIABLE, None)  # not for the processes that this one starts
    if given is None:
        return False
    descriptor, _, stacks = given.partition(":")
    _pipe = int(descriptor)
    os.set_blocking(_pipe, False)
    faulthandler.register(REQUEST, file=open(stacks, "a"), all_threads=True)  # noqa: SIM115 (open as long as we live)
    if hasattr(ctypes.CDLL(None), "prctl"):  # Linux: without its supervisor the trainer saves and ends
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return True


def sign(limit: float | None = None, **news: Any) -> None:
    """A sign of life.

    Args:
        limit: seconds until the next sign is due; None sets no time.
        **news: JSON values for the supervisor: `step` (steps done), `process` (index), `phase` (what it is doing),
            `error` (why this process ends).
    """
    if _pipe is not None:
        line = json.dumps({"limit": limit, **news}).encode() + b"\n"
        with contextlib.suppress(OSError):  # the supervisor is stopped, or gone: training goes on either way
            os.write(_pipe, line)


def last_words(error: BaseException) -> None:
    """Tells the supervisor why this process ends."""
    device = type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError")
    text = " ".join(str(error).split()) or type(error).__name__
    sign(_FAREWELL, error={"text": text[:1000], "device": device})
