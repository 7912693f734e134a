"""Processes meet, take turns and end together: an error, a kill or a stop of one ends all, with the cause on top."""

import _thread
import json
import pathlib
import shutil
import signal
import threading
import time

import pytest
from finished_runs import assert_same_end
from tiny import run_cli
from together import ends, start

from pretrain.core import processes
from pretrain.core.errors import UserError
from pretrain.main import main

MEMBER = pathlib.Path(__file__).with_name("member.py")
FLAGS = ["--gin.Training.log_every=1", "--gin.Training.eval_every=20", "--gin.Checkpointing.every=5"]


def last_lines(error: str) -> list[str]:
    return [line for line in error.splitlines() if line.startswith("pretrain:")]


def test_three_processes_take_turns_and_end_well(tmp_path):
    for code, error in ends(start([MEMBER, tmp_path, "nothing"], 3)):
        assert code == 0 and "is done" in error, error
    assert (tmp_path / "values-{0: 10, 1: 11, 2: 12}").exists()


@pytest.mark.parametrize(
    ("what", "first", "last", "message"),
    [
        ("raise", 75, 1, "process 0 ends: process 1 failed: a planted error"),
        ("user_error", 2, 2, "process 0 ends: process 1 failed: a planted mistake"),
        ("unborn", 75, 1, "process 0 ends: process 1 failed: a thread could not begin: this process gets"),
        ("die", 75, -signal.SIGKILL, "process 0 ends: process 1 was killed, stopped or cut off: no sign of life"),
    ],
)
def test_one_ends_all_with_its_cause(tmp_path, what, first, last, message):
    started = time.monotonic()
    (code, error), (code_last, error_last) = ends(start([MEMBER, tmp_path, what]))
    assert (code, code_last) == (first, last), error + error_last
    assert time.monotonic() - started < 60, error
    assert message in last_lines(error)[0]
    assert "Traceback" not in error  # the broken connection that it led to is not shown as the cause
    if what == "user_error":
        assert last_lines(error_last) == ["pretrain: a planted mistake"]


def test_a_single_process_ends_as_well_where_a_thread_cannot_begin(tmp_path):
    [(code, error)] = ends(start([MEMBER, tmp_path, "unborn"], 1))
    assert code == 1 and last_lines(error) == ["pretrain: a thread could not begin: this process gets no more memory"]


def test_a_stopped_process_ends_the_others(tmp_path):
    first, last = start([MEMBER, tmp_path, "stop"])
    started = time.monotonic()
    [(code, error)] = ends([first])
    last.kill()
    last.communicate()
    assert code == 75 and time.monotonic() - started < 60, error
    assert "process 1 was killed, stopped or cut off: no sign of life for 20 s" in error


def test_two_processes_killed_and_resumed_equal_one(tiny_cache, tmp_path):
    """The same mesh of two devices in one process and in two gives the same bits, through a kill as well."""
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir in (one, two):
        shutil.copytree(tiny_cache, workdir)
    done = run_cli("train", f"--workdir={one}", *FLAGS, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert done.returncode == 0, done.stderr

    command = ["-m", "pretrain", "train", f"--workdir={two}", *FLAGS]
    pair = start(command)
    while not (two / "checkpoints" / "10").exists():
        assert pair[1].poll() is None, pair[1].communicate()
        time.sleep(0.02)
    killed = time.monotonic()
    pair[1].kill()
    (code, error), _ = ends(pair)
    assert code == 75 and time.monotonic() - killed < 60, error
    assert "process 1 was killed" in last_lines(error)[0]
    for code, error in ends(start(command)):
        assert code == 0, error
        assert "resumed from step" in error or "train:" not in error  # the first one speaks for both

    assert_same_end(two, one)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=localhost:1"], "together"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
        (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "0 to 1"),
    ],
)
def test_wrong_flags_are_one_line(capsys, flags, message):
    assert main(["train", "--workdir=nowhere", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_single_process_needs_nobody():
    processes.join(count=1)
    assert processes.is_first() and processes.count() == 1
    with processes.joined(), processes.first_before_others():
        assert processes.first_alone(max, 1, 2) == 2
    with pytest.raises(UserError), processes.joined():
        raise UserError("goes through")


def test_a_librarys_thread_that_has_ended_is_none_that_cannot_begin():
    """Python keeps a dummy for a thread that it did not start, for as long as somebody holds it."""
    held = []
    _thread.start_new_thread(lambda: held.append(threading.current_thread()), ())
    while not held:
        time.sleep(0.01)
    time.sleep(0.05)
    assert processes._has_begun(held[0])
