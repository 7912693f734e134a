"""A run killed by SIGKILL, then asked to stop, and started again ends bit for bit where an undisturbed one ends."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from tiny import ROOT, run_cli

from pretrain.experiment import Experiment
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.metrics import read_metrics

TIMES = {"seconds", "tokens_per_second", "data_wait", "mfu"}
FLAGS = ["--gin.Training.log_every=1", "--gin.Training.eval_every=10", "--gin.Checkpointing.every=4"]


def final_state(workdir):
    """The last checkpoint's arrays by name, and its data position."""
    experiment = Experiment.open(str(workdir))
    trainer = experiment.trainer()
    shapes = jax.eval_shape(trainer.initial_state)
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpointer:
        state, position = checkpointer.restore(shapes, trainer.state_shardings)
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)
    }, position


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

    (expected, position), (found, position_found) = final_state(whole), final_state(killed)
    assert position_found == position
    assert position["step"] == 40
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(w / "metrics.jsonl")]
        for w in (whole, killed)
    ]
    assert json.dumps(rows[1]) == json.dumps(rows[0])
    assert [row["step"] for row in rows[0]] == list(range(1, 41))
