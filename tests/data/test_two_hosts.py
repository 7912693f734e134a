"""Two real processes under `jax.distributed` feed one global batch: the one that a single process makes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
from toy_data import log_normal, write_cache
from two_hosts import OPTIONS, START, STEPS, digest

from pretrain.data.loader import make_loader

HERE = pathlib.Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_feed_one_global_batch(tmp_path):
    lengths = {"books": [log_normal(60, 90, 1), log_normal(50, 90, 2)], "web": [log_normal(150, 20, 3)]}
    cache, port = write_cache(tmp_path, lengths), free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE))),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "two_hosts.py", cache, str(port), str(index)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    hosts = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    whole = make_loader(cache, **OPTIONS)
    batches = [whole.batch(step) for step in range(START, START + STEPS)]
    names = ("tokens", "segment_ids", "positions", "mask")
    for index, host in enumerate(hosts):
        rows = slice(4 * index, 4 * index + 4)
        assert host["digests"] == [digest({name: batch[name][rows] for name in names}) for batch in batches]
        assert host["sums"] == [int(batch["tokens"].sum(dtype=np.int32)) for batch in batches]
        assert host["devices"] == [2, 4, 2]  # processes, devices, devices of this process
        assert host["position"] == json.loads(json.dumps(whole.state(START + STEPS)))
    assert len({*hosts[0]["digests"], *hosts[1]["digests"]}) == 2 * STEPS
