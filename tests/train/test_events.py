"""events.jsonl: numbered without gaps, whole under kills and concurrent writers, nothing twice on a replay."""

import json
import subprocess
import sys

import numpy as np
import pytest
from full_disk import OnFullDisk
from tiny import ROOT

from pretrain.core.errors import UserError
from pretrain.train.events import EventLog, find_event, read_events


def test_events_are_numbered_and_keep_their_evidence(tmp_path):
    log = EventLog(tmp_path / "run")
    assert log.write("spike", 7, loss=np.float32(2.5), positions=np.array([6, 7]), grad_norm=float("inf")) == 1
    assert log.write("restart", None, reason="exit 1") == 2
    first, second = read_events(tmp_path / "run")
    assert {k: v for k, v in first.items() if k != "time"} == {
        "event": 1, "kind": "spike", "step": 7, "loss": 2.5, "positions": [6, 7], "grad_norm": "inf",
    }  # fmt: skip
    assert second["event"] == 2 and second["step"] is None and second["time"] >= first["time"] > 1e9
    assert find_event(tmp_path / "run", 2) == second
    with pytest.raises(UserError, match=r"no event 3 .* events 1 to 2"):
        find_event(tmp_path / "run", 3)


def test_a_replayed_event_is_written_once(tmp_path):
    log = EventLog(tmp_path)
    log.write("spike", 7, once=True, loss=float("nan"), step_range=(3, 4))
    log.write("restart", 7)
    log.write("restart", 7)
    assert log.write("spike", 7, once=True, loss=float("nan"), step_range=(3, 4)) == 1
    assert log.write("spike", 7, once=True, loss=1.0, step_range=(3, 4)) == 4
    assert [event["kind"] for event in read_events(tmp_path)] == ["spike", "restart", "restart", "spike"]


def test_what_a_full_disk_refuses_is_said(tmp_path, capsys):
    log = EventLog(tmp_path)
    with OnFullDisk():
        assert log.write("spike", 7, documents=["a" * 2000]) == 0
    assert log.write("spike", 8) == 1
    assert "ALARM: " in (said := capsys.readouterr().err) and '"kind": "spike", "step": 7' in said
    assert [event["step"] for event in read_events(tmp_path)] == [8]


@pytest.mark.parametrize("left", [b'{"event": 2, "ki', b'{"event": 2, "kind": "spike"}', b"\xff\xfe"])
def test_a_line_cut_off_by_a_kill_is_replaced(tmp_path, left):
    EventLog(tmp_path).write("spike", 7, text="über")
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(left)
    assert len(read_events(tmp_path)) == 1
    assert EventLog(tmp_path).write("rewind", 4) == 2
    assert [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [1, 2]


def test_processes_write_at_once(tmp_path):
    code = (
        "from pretrain.train.events import EventLog\n"
        f"for step in range(20): EventLog({str(tmp_path)!r}).write('restart', step, text='x' * 5000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert [event["event"] for event in read_events(tmp_path)] == list(range(1, 61))
