"""A device that computes wrongly and a slow host are found; sound ones raise no alarm."""

import jax
import jax.numpy as jnp
import pytest

from pretrain.core import processes
from pretrain.core.errors import RunError
from pretrain.train.events import EventLog, read_events
from pretrain.train.hardware_checks import HardwareChecks
from pretrain.train.timekeeper import Supervision


class Step:
    """A training step on a device that flips a bit in its `wrong_call`-th computation."""

    def __init__(self, wrong_call: int | None = None):
        self.calls, self.wrong_call = 0, wrong_call
        self._step = jax.jit(self._compute, donate_argnums=0)

    @staticmethod
    def _compute(state, batch):
        return {"step": state["step"] + 1, "w": state["w"] * 0.5 + batch}, {"loss": jnp.sum(state["w"]) / 0.0 * 0.0}

    def __call__(self, state, batch):
        self.calls += 1
        state, scalars = self._step(state, batch)
        if self.calls == self.wrong_call:
            bits = jax.lax.bitcast_convert_type(state["w"], jnp.uint32).at[1].set(state["w"].view(jnp.uint32)[1] ^ 1)
            state = {**state, "w": jax.lax.bitcast_convert_type(bits, jnp.float32)}
        return state, scalars


def train(checks: HardwareChecks, step: Step, steps: int) -> dict:
    state = {"step": jnp.int32(0), "w": jnp.ones(4)}
    for number in range(1, steps + 1):
        state, _ = checks.twice(step, number, state, jnp.ones(4))
    return state


def test_sampled_steps_are_computed_twice_and_change_nothing(tmp_path):
    step = Step()
    state = train(HardwareChecks(EventLog(tmp_path), Supervision(recompute_every=5)), step, 10)
    assert step.calls == 12  # the loss is not a number, twice the same
    plain = train(HardwareChecks(EventLog(tmp_path), Supervision()), Step(), 10)
    assert state["w"].tolist() == plain["w"].tolist() and int(state["step"]) == 10
    assert not read_events(tmp_path)


@pytest.mark.parametrize("wrong_call", [5, 6])
def test_one_flipped_bit_is_found(tmp_path, wrong_call):
    checks = HardwareChecks(EventLog(tmp_path), Supervision(recompute_every=5))
    with pytest.raises(RunError, match=r"step 5 computed twice gave two results .*first is 0/w") as raised:
        train(checks, Step(wrong_call), 10)
    assert raised.value.everywhere
    (event,) = read_events(tmp_path)
    assert (event["kind"], event["step"], event["arrays"]) == ("wrong_result", 5, 1)


def test_moments_that_wait_on_the_host_are_copied_and_compared_there(tmp_path):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    host = device.with_memory_kind("pinned_host")

    def compute(state, batch):
        moment = jax.device_put(state["moment"], jax.memory.Space.Device) * 0.5 + batch
        return {"moment": moment, "w": state["w"] - moment}, {"loss": jnp.sum(batch)}

    layout = {"moment": host, "w": device}
    step = jax.jit(compute, donate_argnums=0, in_shardings=(layout, device), out_shardings=(layout, device))
    state = {"moment": jax.device_put(jnp.ones(4), host), "w": jnp.ones(4)}
    after, _ = HardwareChecks(EventLog(tmp_path), Supervision(recompute_every=1)).twice(step, 1, state, jnp.ones(4))
    assert after["moment"].sharding.memory_kind == "pinned_host" and after["w"].tolist() == [-0.5] * 4


@pytest.fixture
def three_hosts(monkeypatch):
    """This is the first of three processes; the speeds of the others are what the test says."""
    board = {1: {"compute": 1e-9, "data": 0.0}, 2: {"compute": 1e-9, "data": 0.0}}
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "values", lambda name: dict(board))
    monkeypatch.setattr(processes, "put", lambda name, value: board.__setitem__(0, value))
    return board


def test_a_slow_host_is_named_once_and_only_when_it_stays_slow(tmp_path, three_hosts, capsys):
    checks = HardwareChecks(EventLog(tmp_path), Supervision(compare_every=10, slow_factor=2.0))
    checks.compare_hosts(5, 0.0)
    assert 0 not in three_hosts  # not a step to compare at
    checks.compare_hosts(10, 0.5)
    assert three_hosts[0]["compute"] > 0 and three_hosts[0]["data"] == 0.5
    usual = three_hosts[0]["compute"] = three_hosts[1]["compute"] = 0.01

    def compare(step: int, slowness: float) -> None:
        three_hosts[0]["compute"], three_hosts[2]["compute"] = usual, slowness * usual
        checks.compare_hosts(step, 0.5)

    for step, slowness in ((20, 3.0), (30, 1.1), (40, 3.0), (50, 3.0), (60, 3.0)):
        compare(step, slowness)
    (event,) = read_events(tmp_path)
    assert (event["kind"], event["step"], event["process"], event["ratio"]) == ("slow_host", 50, 2, 3.0)
    assert event["data_wait_of_0"] == 0.5
    assert capsys.readouterr().err.count("process 2 computes 3.0 times slower") == 1


def test_a_single_host_is_not_compared(tmp_path):
    checks = HardwareChecks(EventLog(tmp_path), Supervision(compare_every=1))
    checks.compare_hosts(1, 0.0)  # would fail to reach other processes
