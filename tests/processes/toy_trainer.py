"""A trainer without training: each incarnation counts steps to a number, and ends as it is told.

python toy_trainer.py FOLDER raise:3 kill:5 hang:6 ... done:9
"""

import os
import pathlib
import signal
import sys
import threading
import time

from pretrain.core import lifeline
from pretrain.core.errors import UserError


class JaxRuntimeError(RuntimeError):
    """Has the name of what jax raises when a device fails."""


def sleeper() -> None:
    time.sleep(60)


def end(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "freeze":  # in a phase that may take an hour
        lifeline.sign(3600.0, process=0)
    if how in ("stop", "freeze"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "hang":
        threading.Thread(target=sleeper, daemon=True).start()
        time.sleep(60)
    if how in ("raise", "device"):
        error = (JaxRuntimeError if how == "device" else ValueError)("a planted error")
        lifeline.last_words(error)
        raise error
    if how == "mistake":
        raise SystemExit(UserError.exit_code)
    if how == "again":
        raise SystemExit(75)
    if how == "wait":  # for a signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        time.sleep(60)


def main(folder: str, *ends: str) -> None:
    assert lifeline.attach() and lifeline.VARIABLE not in os.environ
    started = pathlib.Path(folder) / "started"
    incarnation = len(started.read_text()) if started.exists() else 0
    started.write_text("x" * (incarnation + 1))
    how, _, steps = ends[incarnation].partition(":")
    for step in range(1, int(steps) + 1):
        lifeline.sign(1.0, step=step, process=0)
    end(how)


if __name__ == "__main__":
    main(*sys.argv[1:])
