"""Runs tasks in worker processes, skips those that an earlier run finished, and shows how far the work is.

Each task writes its result file last; the file's presence is what makes the task done. Workers are spawned, so they
share nothing with the parent, and they end when the parent dies, however it dies.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import pyarrow as pa

from pretrain.core import storage
from pretrain.core.console import Progress, say
from pretrain.core.errors import RunError, check

TASKS_AHEAD = 2  # so that a worker never waits while this process is at a task of its own


class Task(NamedTuple):
    """One unit of work: `function(shared, *arguments)` returns a JSON-serialisable summary, kept at `result`.

    The summary's "documents", if there, are what progress counts.
    """

    function: Callable[..., dict]
    arguments: tuple[Any, ...]
    result: str


def available_cores() -> int:
    """Cores that this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """This process and others beside it, which are started when there is first something for them to do.

    Args:
        count: processes, this one included; None for one a core.
        shared: the first argument of every task; sent to each worker once.
    """

    def __init__(self, count: int | None = None, shared: Any = None):
        check(count is None or count >= 1, f"--workers must be at least 1, not {count}")
        self.count = count or available_cores()
        self._shared = shared
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        self._cpu_count = pa.cpu_count()
        if self.count > 1:
            pa.set_cpu_count(1)  # the other cores have workers of their own
        return self

    def __exit__(self, *exception) -> None:
        pa.set_cpu_count(self._cpu_count)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, label: str, tasks: Sequence[Task]) -> list[dict]:
        """The summaries of all tasks, in their order, running those that have none yet.

        Raises:
            RunError: a worker process died.
        """
        pending = [task for task in tasks if not os.path.exists(task.result)]
        with Progress(len(tasks), label, "task", initial=len(tasks) - len(pending)) as progress:
            tally = Tally(progress)
            if self.count == 1 or len(pending) <= 1:
                for task in pending:
                    tally.add(_run_task(self._shared, task))
            else:
                self._run_in_pool(pending, tally)
        say(f"{label}: {len(tasks)}/{len(tasks)} tasks, {tally.rate()}")
        return [storage.read_json(task.result) for task in tasks]

    def _run_in_pool(self, pending: list[Task], tally: "Tally") -> None:
        """Keeps `TASKS_AHEAD` tasks waiting for each other process, and does what is left here meanwhile."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count - 1, context, _start_worker, (self._shared,))
        waiting, given = deque(pending), set()
        try:
            while waiting or given:
                while waiting and len(given) < TASKS_AHEAD * (self.count - 1):
                    given.add(self._pool.submit(_run_in_worker, waiting.popleft()))
                if waiting:
                    tally.add(_run_task(self._shared, waiting.pop()))
                done, given = wait(given, timeout=0 if waiting else None, return_when=FIRST_COMPLETED)
                for future in done:
                    tally.add(future.result())
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died, most often for want of memory; run the same command again to go on "
                "where it stopped, with fewer --workers or more Recipe.shards"
            ) from error


def _run_task(shared: Any, task: Task) -> dict:
    summary = task.function(shared, *task.arguments)
    storage.write_json(task.result, summary)
    return summary


_worker_shared: list[Any] = []  # in a worker process, the pool's `shared`


def _run_in_worker(task: Task) -> dict:
    return _run_task(_worker_shared[0], task)


def _start_worker(shared: Any) -> None:
    """Keeps `shared`, and makes this worker exit when its parent is gone: it would wait for work forever."""
    _worker_shared.append(shared)
    pa.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Tally:
    """Counts finished tasks and their documents on a progress display."""

    def __init__(self, progress: Progress):
        self._progress, self._documents, self._started = progress, 0, time.monotonic()

    def add(self, summary: dict) -> None:
        """Counts one finished task."""
        self._documents += summary.get("documents", 0)
        self._progress.update(1, self.rate())

    def rate(self) -> str:
        """Documents so far and a second."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        return f"{self._documents:,} documents, {self._documents / seconds:,.0f} documents/s"
