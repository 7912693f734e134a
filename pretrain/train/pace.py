"""Batches on the devices before they are needed, and how fast the steps go."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jax.sharding import Mesh

from pretrain.core.batch import Batch
from pretrain.core.errors import RunError
from pretrain.train.hardware import peak_flops
from pretrain.train.timekeeper import Timekeeper


def placed_ahead(batches: Iterable[Batch], place: Callable[[Batch], Any], ahead: int) -> Iterator[Any]:
    """Batches on the devices, in order: when one is handed out, the next `ahead` have been sent after it.

    Sending does not wait for the transfer. Positions count steps, not batches sent, so nothing is lost at a restart.
    """
    waiting: collections.deque = collections.deque()
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


class Clock:
    """Speeds since the last row of metrics: tokens/s, MFU, and the share of time spent waiting for data.

    Args:
        step: steps done.
        tokens_per_step, flops_per_token: to count in.
        mesh: devices, for MFU.
        keeper: learns of waiting for data.
    """

    def __init__(self, step: int, tokens_per_step: int, flops_per_token: int, mesh: Mesh, keeper: Timekeeper):
        self._tokens_per_step, self._keeper = tokens_per_step, keeper
        peak = peak_flops(mesh.devices.flat[0])
        self._peak_tokens = peak and peak * mesh.size / flops_per_token
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts a new interval after `step`; what came before (validation, saving) does not count."""
        self._step, self._since, self._waited = step, time.perf_counter(), 0.0

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time it takes is data wait."""
        start = time.perf_counter()
        with self._keeper.spending("data_wait"):
            batch = next(batches, None)
        if batch is None:
            raise RunError(
                "the data ends before the training does, with batches left out after loss spikes: read more epochs"
            )
        self._waited += time.perf_counter() - start
        return batch

    def rates(self, step: int) -> dict[str, float]:
        """The interval's speeds; begins the next interval."""
        now = time.perf_counter()
        seconds, steps = max(now - self._since, 1e-9), step - self._step
        speed = steps * self._tokens_per_step / seconds
        values = {
            "tokens": step * self._tokens_per_step,
            "seconds": seconds,
            "tokens_per_second": speed,
            "data_wait": self._waited / seconds,
        }
        if self._peak_tokens:
            values["mfu"] = speed / self._peak_tokens
        self.restart(step)
        return values
