"""Starts the processes of one run, as a cluster would."""

import os
import socket
import subprocess
import sys
import time

from tiny import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(command: list, count: int = 2, **environment: str) -> list[subprocess.Popen]:
    """`python COMMAND --coordinator=... --num_processes=... --process_id=...`, `count` times."""
    where = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "processes")))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, **environment}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command), *where, f"--process_id={index}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )
        for index in range(count)
    ]  # fmt: skip


def ends(processes: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str]]:
    """(exit code, standard error) of each; whoever does not end in time is killed and fails the test."""
    deadline = time.monotonic() + timeout
    try:
        errors = [process.communicate(timeout=max(1, deadline - time.monotonic()))[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]
