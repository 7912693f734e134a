"""Where a run's time goes: phases of one process, sums over its restarts, signs for the supervisor."""

import json
import os
import time

import jax
import jax.numpy as jnp
import pytest

from pretrain.core import lifeline
from pretrain.core.errors import UserError
from pretrain.train import timekeeper
from pretrain.train.timekeeper import FILE, PHASES, Supervision, Timekeeper, account


def incarnation(began, ended, first, last, finished=False, **seconds):
    seconds = dict.fromkeys(PHASES[:-1], 0.0) | seconds
    return {
        "began": began, "ended": ended, "first_step": first, "last_step": last, "finished": finished, "seconds": seconds
    }  # fmt: skip


@pytest.fixture
def signs(monkeypatch):
    """What a supervisor hears, line by line."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    monkeypatch.setattr(lifeline, "_pipe", writer)

    def heard() -> list[dict]:
        try:
            return [json.loads(line) for line in os.read(reader, 1 << 16).splitlines()]
        except BlockingIOError:
            return []

    yield heard
    os.close(reader)
    os.close(writer)


def test_an_incarnation_of_which_only_the_beginning_is_known_lost_nothing():
    assert account([incarnation(0, 10, 4, None, productive=10)])["lost_steps"] == 0


def test_steps_done_again_are_lost_and_gaps_are_restarts():
    entries = [
        incarnation(0, 100, 0, 80, productive=80, compile=20),
        incarnation(110, 150, 60, 90, productive=30, restart=10),  # 61 to 80 again: a quarter of the first one's steps
        incarnation(155, 158, None, None, restart=3),  # died before training began
        incarnation(160, 200, 40, 100, True, productive=40),  # 41 to 60 again, and all of the second one's
    ]
    found = account(entries)
    assert found["lost_steps"] == 40 + 30  # 41 to 80 of the first, 61 to 90 of the second
    assert found["seconds"]["lost"] == pytest.approx(80 * 40 / 80 + 30)
    assert found["seconds"]["productive"] == pytest.approx(40 + 40)
    assert found["seconds"]["restart"] == pytest.approx(10 + 3 + 10 + 5 + 2)
    assert sum(found["seconds"].values()) == pytest.approx(200)
    assert found["goodput"] == pytest.approx(80 / 200)


def test_time_after_the_last_step_does_not_count():
    entries = [incarnation(0, 10, 0, 5, True, productive=10), incarnation(1000, 1010, 5, 9, True, productive=10)]
    assert account(entries)["goodput"] == 1
    assert account([])["goodput"] is None


def test_each_moment_has_one_phase(tmp_path):
    with Timekeeper(tmp_path, Supervision()) as keeper:
        keeper.start(0)
        before = dict(keeper.seconds)
        with keeper.spending("data_wait"):
            time.sleep(0.1)
        for step in (1, 2, 3):
            time.sleep(0.05)
            keeper.step_done(step)
        with keeper.spending("checkpoint"):
            time.sleep(0.02)
            with keeper.spending("evaluation"):
                time.sleep(0.1)
        jax.jit(lambda x: jax.jit(jnp.sin)(x) * 3.25)(1.0)
    kept = json.loads((tmp_path / FILE).read_text())
    (entry,) = kept["incarnations"]
    seconds = {name: entry["seconds"][name] - before[name] for name in before}
    assert 0.1 <= seconds["data_wait"] < 1 and 0.15 <= seconds["productive"] < 2 and seconds["compile"] > 0
    assert 0.02 <= seconds["checkpoint"] < 1 and 0.1 <= seconds["evaluation"] < 1
    assert sum(entry["seconds"].values()) == pytest.approx(entry["ended"] - entry["began"], abs=0.02)
    assert entry["finished"] and (entry["first_step"], entry["last_step"]) == (0, 3)
    assert entry["began"] < time.time() - 1  # before anything was imported


def test_a_restart_and_a_rewind_go_on_in_the_same_file(tmp_path):
    with pytest.raises(ZeroDivisionError), Timekeeper(tmp_path, Supervision()) as keeper:
        keeper.start(0)
        keeper.step_done(10)
        keeper.start(5)  # a rewind
        keeper.step_done(8)
        raise ZeroDivisionError
    with Timekeeper(tmp_path, Supervision()) as keeper:
        keeper.start(8)
        keeper.step_done(9)
    entries = json.loads((tmp_path / FILE).read_text())["incarnations"]
    assert [(e["first_step"], e["last_step"], e["finished"]) for e in entries] == [
        (0, 10, False), (5, 8, False), (8, 9, True)
    ]  # fmt: skip
    assert entries[1]["began"] == pytest.approx(entries[0]["ended"], abs=0.01)
    assert account(entries)["lost_steps"] == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: text.replace('"seconds"', '"second"'),
        lambda text: text.replace('"finished": true', '"finished": "yes"'),
        lambda text: text.replace('"incarnations": [', '"incarnations": [7, '),
        lambda text: text.replace('"last_step": 2', '"last_step": ' + "9" * 400),
        lambda text: text.replace('"restart": ', '"restart": 1e999, "was": '),
        lambda text: text.replace('"productive": ', '"productivity": '),
    ],
)
def test_a_damaged_file_is_said_and_begun_anew(tmp_path, capsys, damage):
    with Timekeeper(tmp_path, Supervision()) as keeper:
        keeper.start(0)
        keeper.step_done(2)
    sound = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(damage(sound))
    assert (tmp_path / FILE).read_text() != sound
    with Timekeeper(tmp_path, Supervision()) as keeper:
        keeper.start(3)
    assert "damaged and begins anew" in capsys.readouterr().err
    assert len(json.loads((tmp_path / FILE).read_text())["incarnations"]) == 1


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timekeeper, "write_json", full)
    with Timekeeper(tmp_path, Supervision()) as keeper:
        keeper.start(0)
        keeper.write()
    assert capsys.readouterr().err.count("No space left") == 1


def test_signs_say_when_the_next_one_is_due(tmp_path, signs):
    config = Supervision(hang_factor=10, hang_floor=1, patience=500)
    with Timekeeper(tmp_path, config) as keeper:
        keeper.start(20)
        assert {sign["limit"] for sign in signs()} == {500}  # compiling takes its time
        for step in range(21, 26):
            time.sleep(0.15)
            keeper.step_done(step)
        last = signs()[-1]
        assert last["step"] == 25 and last["process"] == 0
        assert 1.4 < last["limit"] < 6  # ten median steps
        with keeper.spending("evaluation"):
            assert signs()[-1]["limit"] == 500
        keeper.step_done(26)
        assert signs()[-1]["limit"] < 6
    assert signs()[-1]["limit"] is None  # trained; what comes now is no step


def test_wrong_limits_are_refused():
    for wrong in ({"hang_factor": 1}, {"hang_floor": 0}, {"recompute_every": -1}, {"slow_factor": 0.5}):
        with pytest.raises(UserError, match="Supervision"):
            Supervision(**wrong)
