"""tpu_scripts/gke.sh and slurm.sh against commands made up here, which write down what they are told and read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "tpu_scripts"
COMMAND = """#!/usr/bin/env python3
import json, os, sys
read = sys.stdin.read() if sys.argv[0].endswith("sbatch") or "-" in sys.argv else ""
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], read]) + "\\n")
"""
SRUN = """#!/usr/bin/env python3
import json, os, sys
open(os.environ["SAID"], "w").write(json.dumps(sys.argv[1:]))
"""
NAMES = ("kubectl", "xpk", "sbatch", "squeue", "scancel")
JOB = ("--image=eu.example/p/pretrain:1", "--gin_file=a.gin", "--workdir=gs://b/run")
SLICES = ("--accelerator=tpu-v5p-slice", "--topology=4x4x8")
GKE = ("gke.sh", "launch", "--name=demo", *JOB, *SLICES)
SLURM = ("slurm.sh", "launch", "--name=demo", "--gin_file=a.gin", "--workdir=/shared/run")
WORDS = ["--gin.INPUT='a  \"b\" $HOME `date` * & \\ {{name}}'", "--prompt=it's; exit 9", "two\nlines"]


class Cluster:
    """Made-up commands on PATH."""

    def __init__(self, folder: Path):
        self.folder, self._calls = folder, folder / "calls"
        for name in NAMES:
            (folder / name).write_text(COMMAND)
        (folder / "srun").write_text(SRUN)
        for name in (*NAMES, "srun"):
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "CALLS": str(self._calls), "SAID": str(folder / "said")}

    def __call__(self, script: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [FOLDER / script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=300)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


def value(manifest: str, name: str) -> str:
    """What stands after `name:` in a manifest, once."""
    (found,) = [line.partition(":")[2].strip() for line in manifest.splitlines() if line.strip().startswith(f"{name}:")]
    return found


@pytest.mark.parametrize(("script", "least"), [("gke.sh", 17), ("slurm.sh", 14)])
def test_help_lists_every_command_and_flag(cluster, script, least):
    done = cluster(script, "--help")
    text = (FOLDER / script).read_text()
    flags = text[text.index("declare -A flags=(") : text.index("passed=()\n")]
    names = [part.split("]")[0] for part in flags.split("[")[1:]]
    assert done.returncode == 0 and len(names) >= least
    for name in names:
        assert f"--{name}" in done.stdout, name


def test_a_job_on_gke_has_a_pod_for_each_host(cluster):
    done = cluster(*GKE, "--slices=2", "--namespace=mine", "--", *WORDS)
    assert done.returncode == 0, done.stderr
    ((*call, manifest),) = cluster.calls
    assert call == ["kubectl", "--namespace=mine", "apply", "-f", "-"]
    assert "{{" not in manifest.replace("{{name}}'", "")
    expected = {"replicas": "2", "parallelism": "32", "completions": "32", "google.com/tpu": "4", "maxRestarts": "10"}
    expected |= {"cloud.google.com/gke-tpu-topology": "4x4x8", "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice"}
    assert {name: value(manifest, name) for name in expected} == expected
    assert json.loads(value(manifest, "command")) == ["pretrain", "train", *JOB[1:], *WORDS]


def test_the_same_run_through_xpk(cluster):
    assert (
        cluster("gke.sh", "xpk", "--name=demo", *JOB, "--tpu_type=v5p-256", "--cluster=c", "--", *WORDS).returncode == 0
    )
    ((*call, _),) = cluster.calls
    assert call[:4] == ["xpk", "workload", "create", "--cluster=c"] and "--tpu-type=v5p-256" in call
    words = subprocess.run(["bash", "-c", "printf '%s\\0' " + call[-1].removeprefix("--command=")], capture_output=True)
    assert words.stdout.decode().split("\0")[:-1] == ["pretrain", "train", *JOB[1:], *WORDS]


def test_resume_clears_what_is_left_first(cluster):
    assert cluster("gke.sh", "resume", *GKE[2:]).returncode == 0
    assert [call[1:3] for call in cluster.calls] == [["delete", "jobset"], ["apply", "-f"]]


def test_a_job_of_slurm_has_a_task_for_each_gpu_and_says_every_word(cluster, tmp_path):
    done = cluster(*SLURM, "--nodes=4", "--gpus=2", "--partition=long", "--jobs=2", "--", *WORDS)
    assert done.returncode == 0, done.stderr
    first, second = cluster.calls
    assert first == second and first[0] == "sbatch"
    options = [line.removeprefix("#SBATCH ") for line in first[-1].splitlines() if line.startswith("#SBATCH ")]
    for option in (
        "nodes=4",
        "ntasks-per-node=2",
        "gpus-per-node=2",
        "partition=long",
        "dependency=singleton",
        "requeue",
    ):
        assert f"--{option}" in options, option
    assert subprocess.run(["bash", "-c", first[-1]], env=cluster.environment).returncode == 0
    said = json.loads((tmp_path / "said").read_text())
    assert said == ["--kill-on-bad-exit=1", "pretrain", "train", *SLURM[3:], "--max_restarts=10", *WORDS]


def test_on_cpus_a_node_is_a_process(cluster, tmp_path):
    shown = cluster("slurm.sh", "manifest", *SLURM[2:], "--gpus=0").stdout
    (tmp_path / "job.sh").write_text(shown)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    checked = subprocess.run(
        [shutil.which("shellcheck", path=path), tmp_path / "job.sh"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    assert "--ntasks-per-node=1\n" in shown and "gpus-per-node" not in shown


def test_logs_status_and_stop(cluster, tmp_path):
    (tmp_path / "demo.log").write_text("one\ntwo\n")
    assert cluster("slurm.sh", "logs", "--name=demo", f"--workdir={tmp_path}", "--lines=1").stdout == "two\n"
    for script in ("slurm.sh", "gke.sh"):
        assert (
            cluster(script, "status", "--name=demo").returncode
            == cluster(script, "stop", "--name=demo").returncode
            == 0
        )
    assert cluster("gke.sh", "logs", "--name=demo", "--worker=3", "--follow").returncode == 0
    said = [" ".join(call) for call in cluster.calls]
    assert said[0].startswith("squeue --me --name=demo") and "--signal=TERM" in said[2]
    assert said[3].startswith("kubectl get jobset demo") and "delete jobset demo" in said[5]
    assert "-f" in said[6] and "job-completion-index=3" in said[6]


@pytest.mark.parametrize("arguments", [GKE, SLURM, ("gke.sh", "resume", *GKE[2:]), ("slurm.sh", "stop", "--name=demo")])
def test_dry_run_prints_what_would_be_done_and_does_nothing(cluster, arguments):
    shown = cluster(*arguments, "--dry_run")
    assert shown.returncode == 0 and cluster.calls == []
    subprocess.run(["bash", "-c", shown.stdout], env=cluster.environment, check=True)
    printed = cluster.calls
    assert cluster(*arguments).returncode == 0
    assert cluster.calls == printed * 2 and printed  # what it prints is what it does


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gke.sh", "lunch", "--name=demo"), "no such command: lunch"),
        (("gke.sh", "launch", "--name=Demo", *JOB, *SLICES), "--name must be small letters"),
        (("gke.sh", "launch", "--name=demo", *SLICES), "needs --image=..."),
        (("gke.sh", "launch", "--name=demo", *JOB, "--accelerator=tpu-v5p-slice"), "needs --topology=..."),
        (("gke.sh", "launch", "--name=demo", *JOB, *SLICES, "--topology=3x3"), "9 chips, no multiple of"),
        (("gke.sh", "launch", "--name=demo", *JOB, *SLICES, "--topology=4 x 4"), "--topology must be chips"),
        (("gke.sh", "launch", "--name=demo", *JOB, *SLICES, "--workdir=/tmp/run"), "the hosts share no disk"),
        (("gke.sh", "launch", "--name=demo", *JOB, *SLICES, "--image=a: {b}"), "--image must be"),
        (("gke.sh", "xpk", "--name=demo", *JOB, "--cluster=c"), "xpk needs --tpu_type=..."),
        (("slurm.sh", "launch", "--name=demo", "--gin_file=a.gin"), "launch needs --workdir=..."),
        (("slurm.sh", "launch", "--gin_file=a.gin"), "launch needs --name=..."),
        ((*SLURM, "--nodes=0"), "--nodes must be a number"),
        ((*SLURM, "--name=a b"), "--name must be letters"),
        ((*SLURM, "--time=soon"), "--time must be hours"),
        ((*SLURM, "--workdir=/a\n#SBATCH --exclusive"), "--workdir must be a path"),
        ((*SLURM, "--gpu=8"), "unknown flag --gpu=8"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(cluster, arguments, said):
    done = cluster(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr, done
    assert cluster.calls == []
