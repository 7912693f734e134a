"""One process of a run that only adds numbers: meets the others, takes turns, sums over all, then does as it is told.

    python member.py FOLDER WHAT --coordinator=... --num_processes=... --process_id=...

WHAT is what the last process does in the middle of it: "nothing", "raise", "user_error", "die", "stop" or "unborn" (it
starts a thread that does not begin).
"""

import os
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from pretrain.core import processes
from pretrain.core.errors import UserError


class Unborn(threading.Thread):
    """Ends before it says that it runs, as where it finds no memory."""

    def _bootstrap(self) -> None:
        pass


def add_forever(folder: pathlib.Path, what: str) -> None:
    with processes.first_before_others():  # the others find what the first one did, and have not done it
        done = folder / "done"
        assert done.exists() != processes.is_first()
        time.sleep(0.2)
        done.touch()
    for step in range(10_000):
        total = multihost_utils.process_allgather(np.ones(1)).sum()
        assert total == processes.count()
        if step == 3 and what == "nothing":
            return
        if step == 3 and processes.index() == processes.count() - 1:
            if what == "raise":
                raise ZeroDivisionError("a planted error")
            if what == "user_error":
                raise UserError("a planted mistake")
            if what == "unborn":
                Unborn().start()
            os.kill(os.getpid(), {"die": signal.SIGKILL, "stop": signal.SIGSTOP}[what])


def main(folder: str, what: str, *flags: str) -> None:
    coordinator, count, index = (flag.partition("=")[2] for flag in flags)
    with processes.joined(coordinator, int(count), int(index)):
        add_forever(pathlib.Path(folder), what)
        assert jax.process_index() == processes.index()
        processes.put("mine", processes.index() + 10)
        processes.wait()
        if processes.first_alone(pathlib.Path.touch, pathlib.Path(folder) / f"values-{processes.values('mine')}"):
            raise AssertionError
    print(f"process {processes.index()} is done", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
