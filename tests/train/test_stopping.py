"""Requests to stop, in real processes whose main thread is busy outside Python."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny import ROOT

from pretrain.train.stopping import stop_requests

# The main thread waits in C, for a lock that it holds itself, as in a long step: no Python handler runs there.
BUSY = """
import ctypes, sys, time
from pretrain.train.stopping import stop_requests
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
with stop_requests(deadline=float(sys.argv[1])) as stop:
    print("ready", flush=True)
    libc.pthread_mutex_timedlock(mutex, (ctypes.c_long * 2)(int(time.time()) + int(sys.argv[2]), 0))
    print("after the step:", stop.requested(1), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes():
    """name -> (exit code, what it said): the processes run side by side."""
    cases = {
        "one": ("60", "4", [signal.SIGTERM]),
        "none": ("60", "1", []),
        "twice": ("60", "60", [signal.SIGINT, signal.SIGINT]),
        "too late": ("0.5", "60", [signal.SIGTERM]),
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", BUSY, deadline, busy], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name, (deadline, busy, _) in cases.items()
    }  # fmt: skip
    found = {}
    for name, (_, _, signals) in cases.items():
        process = started[name]
        assert process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.5)
        said = process.stdout.read()  # to its end
        found[name] = process.wait(), said
    return found


def test_the_first_request_is_answered_after_the_step(outcomes):
    code, said = outcomes["one"]
    assert code == 0
    assert said.index("train: SIGTERM: saving after this step, within 60 s") < said.index("after the step: True")
    assert outcomes["none"] == (0, "after the step: False\n")


def test_the_second_request_ends_the_process_at_once(outcomes):
    code, said = outcomes["twice"]
    assert code == 128 + signal.SIGINT
    assert "SIGINT again: leaving at once, what was not saved is lost" in said and "after the step" not in said


def test_the_deadline_ends_a_process_that_cannot_save(outcomes):
    code, said = outcomes["too late"]
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM: the state could not be saved in 0.5 s" in said


def test_a_notice_file_is_a_request_once_it_comes_into_being(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.train.stopping._POLL", 0.01)
    notice = tmp_path / "notice"
    notice.touch()  # of a request that was answered before
    with stop_requests(60.0, str(notice)) as stop:
        time.sleep(0.1)
        assert not stop.requested(1)
        notice.unlink()
        time.sleep(0.1)
        notice.touch()
        deadline = time.monotonic() + 10
        while not stop.requested(2) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.reason == f"notice of preemption ({notice})"


def test_signals_are_as_before_when_the_block_is_left():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_requests(60.0):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_outside_of_the_main_thread_nothing_is_listened_to():
    asked = []
    thread = threading.Thread(target=lambda: asked.append(_enter()))
    thread.start()
    thread.join()
    assert asked == [False]


def _enter() -> bool:
    with stop_requests(60.0) as stop:
        return stop.requested(1)
