"""A run killed by SIGKILL, then asked to stop, and started again ends bit for bit where an undisturbed one ends."""

import re
import shutil
import signal
import subprocess
import sys
import time

from finished_runs import assert_same_end, metrics
from tiny import ROOT, run_cli

FLAGS = ["--gin.Training.log_every=1", "--gin.Training.eval_every=10", "--gin.Checkpointing.every=4"]


def end_after_checkpoint(workdir, step: int, how: signal.Signals) -> tuple[int, str]:
    """Starts training and signals it once a checkpoint at or after `step` is complete; its exit code and stderr."""
    command = [sys.executable, "-m", "pretrain", "train", f"--workdir={workdir}", *FLAGS]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(p.parent.name) for p in (workdir / "checkpoints").glob("*/manifest.json")]
        if max(steps, default=0) >= step:
            break
        time.sleep(0.002)
    assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[1][-2000:]}"
    process.send_signal(how)
    told = process.communicate(timeout=120)[1]
    return process.returncode, told


def test_killed_and_resumed_equals_undisturbed(tiny_cache, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir in (whole, killed):
        shutil.copytree(tiny_cache, workdir)
    done = run_cli("train", f"--workdir={whole}", *FLAGS)
    assert done.returncode == 0, done.stderr
    code, _ = end_after_checkpoint(killed, 8, signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, told = end_after_checkpoint(killed, 20, signal.SIGTERM)
    stopped = re.search(r"pretrain: SIGTERM: step (\d+) is saved; run the same command again", told)
    assert code == 75 and stopped and "Traceback" not in told, told
    done = run_cli("train", f"--workdir={killed}", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert f"resumed from step {stopped[1]}\n" in done.stderr
    assert 20 <= int(stopped[1]) < 40

    assert_same_end(killed, whole)
    assert [row["step"] for row in metrics(whole)] == list(range(1, 41))
