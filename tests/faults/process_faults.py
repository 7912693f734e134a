"""A supervised run of several gloo processes, one of which is killed, stopped, cut off, or out of memory or disk.

    python tests/faults/process_faults.py CACHED FOLDER [--count=2] [--faults=kill,stop,partition,memory,disk]
        [--steps=60] [--every=10] [FLAGS OF pretrain train ...]

CACHED is a workdir with a finished cache. First the run without faults, then the same with one after each `every`
steps. With a partition every process runs in a network namespace of its own, on a bridge; this and a full disk (the
workdir on a small tmpfs) need root. Prints, for each fault, the seconds until a step beyond the last one before it is
trained, beside those of a start; at the end what was lost, the goodput, and whether both runs ended with the same bits.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from finished_runs import assert_same_end
from tiny import ROOT, TINY_GIN
from together import free_port

FAULTS = ("kill", "stop", "partition", "memory", "disk")
CUT, FULL = 30.0, 20.0  # seconds that a partition and a full disk last
FLAGS = ["--gin.Training.log_every=1", "--gin.Training.eval_every=0", "--gin.Checkpointing.every=5"]


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[None]:
    """Network namespaces pretrain0, pretrain1 ... with addresses 10.77.0.1, 10.77.0.2 ... on one bridge.

    In each the host's name is its address there, as gloo wants it; `ip netns exec` puts such a file over /etc/hosts.
    """
    shell("ip link add pretrain type bridge && ip link set pretrain up")
    try:
        for index in range(count):
            name = f"pretrain{index}"
            hosts = pathlib.Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n10.77.0.{index + 1} {socket.gethostname()}\n")
            shell(
                f"ip netns add {name} && ip link add {name} type veth peer name eth0 netns {name} && "
                f"ip link set {name} master pretrain up && ip -n {name} addr add 10.77.0.{index + 1}/24 dev eth0 && "
                f"ip -n {name} link set eth0 up && ip -n {name} link set lo up"
            )
        yield
    finally:
        for index in range(count):
            subprocess.run(["ip", "netns", "del", f"pretrain{index}"], check=False)
            shutil.rmtree(f"/etc/netns/pretrain{index}", ignore_errors=True)
        subprocess.run(["ip", "link", "del", "pretrain"], check=False)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    shell(f"mount -t tmpfs -o size=256m tmpfs {folder}")
    try:
        yield
    finally:
        shell(f"umount -l {folder}")


@dataclasses.dataclass
class Cluster:
    """The supervisors of one run."""

    workdir: pathlib.Path
    count: int
    flags: list[str]
    separate: bool

    def __post_init__(self):
        coordinator = f"{'10.77.0.1' if self.separate else 'localhost'}:{free_port()}"
        self.log = open(self.workdir.with_suffix(".log"), "w")  # noqa: SIM115
        self.supervisors = []
        for index in range(self.count):
            inside = ["ip", "netns", "exec", f"pretrain{index}"] if self.separate else []
            command = [
                *inside, sys.executable, "-m", "pretrain", "train", f"--workdir={self.workdir}", "--max_restarts=8",
                f"--coordinator={coordinator}", f"--num_processes={self.count}", f"--process_id={index}", *self.flags,
            ]  # fmt: skip
            self.supervisors.append(subprocess.Popen(command, cwd=ROOT, stderr=self.log))

    def trainer(self, index: int) -> int | None:
        """The process that trains, under its supervisor (`ip netns exec` becomes the supervisor)."""
        children = pathlib.Path(f"/proc/{self.supervisors[index].pid}/task/{self.supervisors[index].pid}/children")
        found = children.read_text().split()
        return int(found[0]) if found else None

    def step(self) -> int:
        """Steps in the metrics."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(lines[-1])["step"]
        return 0

    def wait_for(self, step: int, timeout: float = 600) -> float:
        """Waits until so many steps are done; the seconds it took."""
        return self._wait(lambda: self.step() >= step, timeout, f"step {step}")

    def wait_for_restart(self, restarts: int, timeout: float = 600) -> float:
        """Waits until training has begun again that often; the seconds it took."""
        return self._wait(lambda: self.restarts() >= restarts, timeout, f"restart {restarts}")

    def _wait(self, done: Callable[[], bool], timeout: float, what: str) -> float:
        began = time.monotonic()
        while not done():
            assert time.monotonic() - began < timeout, f"{what} did not come"
            codes = [supervisor.poll() for supervisor in self.supervisors]
            assert None in codes, f"the supervisors ended with {codes} before {what}"
            time.sleep(0.05)
        return time.monotonic() - began

    def goodput(self) -> dict:
        """What `goodput.json` says; it may not be there yet."""
        path = self.workdir / "goodput.json"
        return json.loads(path.read_text()) if path.exists() else {"incarnations": [], "lost_steps": 0}

    def restarts(self) -> int:
        """How often training has begun again."""
        return len(self.goodput()["incarnations"]) - 1

    def finish(self) -> None:
        for supervisor in self.supervisors:
            assert supervisor.wait(3600) == 0
        self.log.close()

    def kill(self) -> None:
        for supervisor in self.supervisors:
            supervisor.kill()


def strike(cluster: Cluster, fault: str, index: int) -> None:
    """Does something bad to a process."""
    pid = cluster.trainer(index)
    if fault == "kill":
        os.kill(pid, signal.SIGKILL)
    elif fault == "stop":
        os.kill(pid, signal.SIGSTOP)
    elif fault == "memory":  # nothing more can be had than is mapped now
        used = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (used, used))
    elif fault == "partition":
        shell(f"ip link set pretrain{index} down")
        subprocess.Popen(f"sleep {CUT}; ip link set pretrain{index} up", shell=True)
    elif fault == "disk":
        waste = cluster.workdir / "waste"
        subprocess.run(["dd", "if=/dev/zero", f"of={waste}", "bs=64k"], check=False, capture_output=True)
        subprocess.Popen(f"sleep {FULL}; rm {waste}", shell=True)


def campaign(options: argparse.Namespace, flags: list[str]) -> None:
    faults, rng = options.faults.split(","), random.Random(options.seed)
    data = f"--gin.Experiment.data='{options.cached}'"
    flags = [f"--gin_file={TINY_GIN}", data, *FLAGS, f"--gin.TRAIN_STEPS={options.steps}", *flags]
    whole, disturbed = options.folder / "whole", options.folder / "disk" / "disturbed"
    separate = "partition" in faults
    with contextlib.ExitStack() as stack:
        stack.enter_context(namespaces(options.count) if separate else contextlib.nullcontext())
        if "disk" in faults:
            stack.enter_context(small_disk(options.folder / "disk"))
        disturbed.parent.mkdir(exist_ok=True)
        began = time.monotonic()
        cluster = Cluster(whole, options.count, flags, separate)
        stack.callback(cluster.kill)
        cluster.finish()
        print(f"undisturbed: {options.steps} steps in {time.monotonic() - began:.0f} s", flush=True)

        cluster = Cluster(disturbed, options.count, flags, separate)
        stack.callback(cluster.kill)
        start = cluster.wait_for(1)
        print(f"a start from a warm cache takes {start:.1f} s to the first step", flush=True)
        at = options.every
        for fault in faults:
            cluster.wait_for(at)
            index, restarts = rng.randrange(options.count), cluster.restarts()
            strike(cluster, fault, index)
            before = cluster.step() + 1  # one more may be on its way
            seconds = 0.0 if fault == "disk" else cluster.wait_for_restart(restarts + 1)  # it may do without one
            seconds += cluster.wait_for(before + 1)
            print(
                f"{fault} of process {index} at step {before}: recovered in {seconds:.1f} s, {seconds - start:.1f} s "
                f"beyond a start; {cluster.restarts()} restarts, {cluster.goodput()['lost_steps']} steps lost so far",
                flush=True,
            )
            at = max(at + options.every, before + 3)
        cluster.finish()
        kept = cluster.goodput()
        print(json.dumps({name: kept[name] for name in ("goodput", "lost_steps", "seconds")}))
        assert_same_end(disturbed, whole)
        print("the same bits, metrics and position")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cached", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--faults", default=",".join(FAULTS))
    for name, default in (("count", 2), ("steps", 60), ("every", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options, flags = parser.parse_known_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    campaign(options, flags)


if __name__ == "__main__":
    main()
