"""The supervisor starts a trainer again after a crash, a kill or a hang, and knows when not to."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from tiny import ROOT

from pretrain.supervise import Supervisor
from pretrain.train.events import read_events

TOY = pathlib.Path(__file__).with_name("toy_trainer.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
SUPERVISE = """
import json, sys
from pretrain import supervise
from pretrain.supervise import Supervisor
supervise.STOPPED = 1.0
folder, restarts, *ends = sys.argv[1:]
code = Supervisor([folder, *ends], int(restarts), folder, (sys.executable, {toy!r})).run()
print(json.dumps([code, sorted({{"jax", "numpy", "tensorflow"}} & set(sys.modules))]))
"""


def start(folder, restarts: int, *ends: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SUPERVISE.format(toy=str(TOY)), folder, str(restarts), *ends]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def supervise(folder, restarts: int, *ends: str) -> tuple[int, list[str], str]:
    """(exit code, heavy modules that the supervisor imported, what it said)"""
    output, told = start(folder, restarts, *ends).communicate(timeout=120)
    return *json.loads(output.splitlines()[-1]), told


def test_a_trainer_that_ends_well_ends_the_supervisor(tmp_path):
    assert supervise(tmp_path, 3, "done:2") == (0, [], "")
    assert not read_events(tmp_path)


def test_it_starts_again_after_each_kind_of_end(tmp_path):
    code, _, told = supervise(tmp_path, 1, "raise:3", "kill:5", "device:6", "again:6", "done:9")
    assert code == 0, told
    events = read_events(tmp_path)
    assert [(event["kind"], event["step"], event["exit_code"]) for event in events] == [
        ("crash", 3, 1), ("crash", 5, -signal.SIGKILL), ("device_error", 6, 1)
    ]  # fmt: skip
    assert all(event["action"] == "restart" and event["process"] == 0 for event in events)
    assert [event.get("error") for event in events] == ["a planted error", None, "a planted error"]
    assert "process 0 was killed by SIGKILL after step 5; restart 1 of 1 without a new step, in 1 s" in told


def test_a_hang_is_seen_written_down_and_ended(tmp_path):
    code, _, told = supervise(tmp_path, 1, "hang:4", "stop:5", "done:6")
    assert code == 0, told
    hang, stop = read_events(tmp_path)
    assert hang["kind"] == stop["kind"] == "hang"
    assert hang["seconds"] >= 1 and hang["step"] == 4
    stacks = pathlib.Path(hang["stacks"]).read_text()
    assert "in sleeper" in stacks and "in main" in stacks  # every thread
    assert "waits in" in stacks
    assert "the trainer did not answer" in pathlib.Path(stop["stacks"]).read_text()


def test_a_stopped_trainer_is_not_given_the_time_of_what_it_was_doing(tmp_path):
    code, _, told = supervise(tmp_path, 1, "freeze:4", "done:6")
    assert code == 0, told
    (event,) = read_events(tmp_path)
    assert event["kind"] == "hang" and event["step"] == 4 and event["limit"] == 1.0


@pytest.mark.parametrize(("end", "code"), [("mistake", 2), ("kill", 137)])
def test_it_gives_up(tmp_path, end, code):
    """At once when the request is wrong; otherwise when restarts train no new step, with longer and longer pauses."""
    began = time.monotonic()
    found, _, told = supervise(tmp_path, 2, f"{end}:3", f"{end}:3", f"{end}:3")
    assert found == code, told
    if end == "kill":
        assert [event["action"] for event in read_events(tmp_path)] == ["restart", "restart", "gave up"]
        assert time.monotonic() - began > 1 + 2
        assert "giving up" in told
    else:
        assert not read_events(tmp_path)


def test_a_request_to_stop_is_passed_on_and_nothing_starts_again(tmp_path):
    process = start(tmp_path, 3, "wait:2", "done:3")
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output, told = process.communicate(timeout=60)
    assert json.loads(output.splitlines()[-1])[0] == 75, told
    assert (tmp_path / "started").read_text() == "x"


def test_a_request_that_comes_while_the_trainer_is_being_started_is_passed_on(tmp_path, monkeypatch):
    real = subprocess.Popen

    def asked_meanwhile(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", asked_meanwhile)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    code = Supervisor([str(tmp_path), "wait:2"], 3, str(tmp_path), (sys.executable, str(TOY))).run()
    assert code in (75, 128 + signal.SIGTERM)  # not killed for the sign of life that it owes a second later


def test_the_trainer_does_not_outlive_its_supervisor(tmp_path):
    process = start(tmp_path, 3, "wait:2")
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    (child,) = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    process.kill()
    process.communicate()
    for _ in range(100):
        if not pathlib.Path(f"/proc/{child}").exists():
            return
        time.sleep(0.1)
    os.kill(int(child), signal.SIGKILL)
    raise AssertionError("it lives on")
