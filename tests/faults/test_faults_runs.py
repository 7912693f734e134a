"""Whole runs under faults: killed and stopped 120 times; of several processes, one hit after another; goodput."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
SEED = os.environ.get("FAULT_SEED", "0")
TESTS = HERE.parent
PATHS = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "processes")))
ALL = "kill,stop,partition,memory,disk" if os.geteuid() == 0 else "kill,stop,memory"
# A step of 1 to 2 seconds on two cores.
BIG = [
    "--gin.BATCH_SIZE=32", "--gin.SEQUENCE_LENGTH=256", "--gin.TransformerConfig.num_layers=4",
    "--gin.TransformerConfig.embed_dim=128", "--gin.TransformerConfig.mlp_dim=512",
]  # fmt: skip


def campaign(script: str, *arguments) -> list[str]:
    """Runs a campaign; its lines are shown as they come."""
    command = [sys.executable, "-u", HERE / script, *arguments, f"--seed={SEED}"]
    environment = {**os.environ, "PYTHONPATH": PATHS, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    lines = []
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    assert process.returncode == 0, "".join(lines[-5:])
    return lines


def test_killed_a_hundred_times_it_ends_the_same(tiny_cache, tmp_path):
    lines = campaign("kill_campaign.py", tiny_cache, tmp_path / "kills")
    assert lines[-1].startswith("the same bits, metrics and position")


@pytest.mark.parametrize("count", [2, 4])
def test_processes_are_hit_and_recover(tiny_cache, tmp_path, count):
    lines = campaign("process_faults.py", tiny_cache, tmp_path / "faults", f"--count={count}", f"--faults={ALL}")
    beyond = [float(line.partition(" s beyond")[0].rpartition(" ")[2]) for line in lines if " s beyond a start" in line]
    assert len(beyond) == len(ALL.split(",")) and max(beyond) <= 60


def test_goodput_with_a_fault_every_200_steps(tiny_cache, tmp_path):
    faults = ["--faults=kill,stop,memory", "--every=200", "--steps=800"]
    lines = campaign("process_faults.py", tiny_cache, tmp_path / "goodput", *faults, *BIG)
    assert json.loads(lines[-2])["goodput"] >= 0.9
