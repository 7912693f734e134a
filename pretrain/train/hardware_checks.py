"""Checks of the hardware while it trains: sampled steps computed twice, and the hosts' speeds compared.

A chip that computes wrongly without an error (silent data corruption; Hochschild et al. 2021, "Cores that don't count")
ruins a run unseen. The same program on the same devices must give the same bits, so any difference is the hardware's.
A slow host holds up all others and cannot be told apart by the time of a step, which is the same for all; therefore
each host times the same small computation on its own devices, and its own wait for data.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.core import processes
from pretrain.core.console import say
from pretrain.core.errors import RunError
from pretrain.core.trees import named_leaves
from pretrain.train.events import EventLog
from pretrain.train.timekeeper import Supervision

_PROBE = 512  # rows and columns of the matrices multiplied to time a device
_ROUNDS = 2  # comparisons in a row that a host must lose to be called slow


class HardwareChecks:
    """Makes the checks that `Supervision` asks for.

    Args:
        events: where what is found is written.
        config: how often; gin's by default.
    """

    def __init__(self, events: EventLog, config: Supervision | None = None):
        self._config, self._events = config or Supervision(), events
        self._slow_rounds: dict[int, int] = {}
        self._probe = jax.jit(lambda x: jnp.sum(x @ x))

    def twice(self, train_step: Callable, step: int, state: Any, batch: Any) -> tuple[Any, Any]:
        """`train_step(state, batch)`, which makes step number `step`; a sampled one is computed twice and compared.

        That takes the time of a second step and the memory of a second state.

        Raises:
            RunError: the results differ.
        """
        every = self._config.recompute_every
        if not every or step % every:
            return train_step(state, batch)
        # The step takes the memory of its state. Each copy lies where its array does: moments may wait on the host.
        copy = jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), state)
        result, again = train_step(state, batch), train_step(copy, batch)
        differing = [
            name for name, differs in named_leaves(jax.device_get(_different(result, again))).items() if differs
        ]
        if differing:
            self._write("wrong_result", step, arrays=len(differing), first=differing[0])
            error = RunError(
                f"step {step} computed twice gave two results ({len(differing)} arrays differ, the first is "
                f"{differing[0]}): a device computes wrongly, and what was trained since the last check is in doubt; "
                "test the machine, and start again from a checkpoint before that"
            )
            error.everywhere = True
            raise error
        return result

    def compare_hosts(self, step: int, data_wait: float) -> None:
        """Now and then: leaves this host's speed for the first one, which looks at those of the round before.

        Args:
            step: steps done.
            data_wait: seconds that this host has waited for data so far.
        """
        every = self._config.compare_every
        if processes.count() == 1 or not every or step % every:
            return
        seconds = statistics.median(self._time(device) for _ in range(3) for device in jax.local_devices())
        if processes.is_first():
            self._judge(step, processes.values("speed"))
        processes.put("speed", {"compute": seconds, "data": data_wait})

    def _judge(self, step: int, speeds: dict[int, dict[str, float]]) -> None:
        if len(speeds) < processes.count():
            return
        usual = statistics.median_low([speed["compute"] for speed in speeds.values()])
        for process, speed in speeds.items():
            ratio = speed["compute"] / usual
            lost = self._slow_rounds.get(process, 0) + 1 if ratio > self._config.slow_factor else 0
            self._slow_rounds[process] = lost
            if lost == _ROUNDS:
                waits = {f"data_wait_of_{index}": round(each["data"], 3) for index, each in speeds.items()}
                self._write("slow_host", step, process=process, ratio=round(ratio, 2), **waits)
                say(f"train: process {process} computes {ratio:.1f} times slower than the others: its host may be ill")

    def _time(self, device: jax.Device) -> float:
        x = jax.device_put(jnp.ones((_PROBE, _PROBE)), device)
        self._probe(x).block_until_ready()
        start = time.perf_counter()
        self._probe(x).block_until_ready()
        return time.perf_counter() - start

    def _write(self, kind: str, step: int, **evidence: Any) -> None:
        if processes.is_first():
            self._events.write(kind, step, **evidence)


@jax.jit
def _different(some: Any, other: Any) -> Any:
    """For each array whether any bit differs; not-a-numbers are equal where their bits are."""

    def bits(x: jax.Array) -> jax.Array:
        x = jax.device_put(x, jax.memory.Space.Device)
        whole = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
        return x if jnp.issubdtype(x.dtype, jnp.bool_) else jax.lax.bitcast_convert_type(x, whole)

    return jax.tree.map(lambda x, y: jnp.any(bits(x) != bits(y)), some, other)
