"""Writes one checkpoint at a time in the background. A save that fails is told of; it never ends the run."""

import concurrent.futures
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pretrain.train.checkpoint_folder import CheckpointFolder
from pretrain.train.manifest import STATE, seal

# Orbax logs the traceback of a failed save; here it becomes one line and an event.
logging.getLogger("absl").addFilter(lambda record: "Handler Commit operations" not in str(record.msg))


@dataclasses.dataclass(frozen=True)
class Save:
    """A checkpoint to be written.

    Attributes:
        folder: where to.
        step: steps done.
        position: JSON object of the host's own state.
        metrics: of this step.
        pin: why it is to be pinned from the start, or None.
        before: called first, to make durable what must be so when the checkpoint is; may raise OSError.
    """

    folder: CheckpointFolder
    step: int
    position: dict[str, Any]
    metrics: dict[str, float]
    pin: str | None = None
    before: Callable[[], None] = lambda: None


class Saver:
    """Copies arrays to host memory at once; writes, checks and completes the checkpoint in a thread of its own.

    Args:
        completed: called in that thread, in the first process, when a checkpoint is complete.
        failed: called in the caller's thread with the step of a save that failed, and why.

    Attributes:
        error: why the last save failed, or None; known after `wait`.
    """

    def __init__(self, completed: Callable[[Save], None], failed: Callable[[int, str], None]):
        self._completed, self._failed = completed, failed
        # Folders made at once: where that fails in the background, Orbax waits minutes for them.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[Save, concurrent.futures.Future] | None = None
        self.error: str | None = None

    @property
    def idle(self) -> bool:
        """True where no save is going on."""
        return self._pending is None

    @property
    def done(self) -> bool:
        """True where a save has ended whose outcome nobody has asked for."""
        return self._pending is not None and self._pending[1].done()

    def start(self, save: Save, arrays: dict[str, Any]) -> None:
        """Begins a save; returns once the arrays are in host memory. The last one must have been waited for."""
        self.error = None
        problem = _anywhere(attempt(save.before))
        if problem:
            return self._give_up(save, problem)
        try:
            if jax.process_index() == 0 and save.folder[save.step].exists():
                save.folder.remove(save.step)
            self._orbax.save(save.folder[save.step] / STATE, args=ocp.args.PyTreeSave(arrays))
        except Exception as error:  # whatever the storage says: the run is worth more than this save
            self._give_up(save, one_line(error))
        else:
            self._pending = save, self._thread.submit(self._finish, save)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the save that is going on; False where it takes longer than `seconds`."""
        if self._pending is None:
            return True
        save, future = self._pending
        if not concurrent.futures.wait([future], seconds).done:
            return False
        self._pending = None
        if future.exception() is not None:
            self._give_up(save, one_line(future.exception()))
        return True

    def close(self) -> None:
        """Waits, and ends the thread."""
        self.wait()
        self._thread.shutdown()
        self._orbax.close()

    def _finish(self, save: Save) -> None:
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            seal(save.folder[save.step], save.step, save.position, save.metrics)
            if save.pin is not None:
                save.folder.pin(save.step, save.pin)
            self._completed(save)

    def _give_up(self, save: Save, problem: str) -> None:
        if jax.process_index() == 0:
            attempt(lambda: save.folder.remove(save.step))
        self.error = problem
        self._failed(save.step, problem)


def _anywhere(problem: str | None) -> str | None:
    """The problem that this process has, or that another one has: a save is made by all of them or by none."""
    if jax.process_count() == 1:
        return problem
    well = multihost_utils.process_allgather(np.array([problem is None])).all()
    return problem or (None if well else "another process cannot save")


def one_line(error: BaseException) -> str:
    """What an exception says, or its name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def attempt(action: Callable[[], Any]) -> str | None:
    """Does what storage may refuse; the refusal as one line."""
    try:
        action()
    except OSError as error:
        return one_line(error)
    return None
