"""What a run ran on: versions, devices and the commit of the code. No times, no names of machines or people."""

import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import TypedDict

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "numpy", "pyarrow")


class Commit(TypedDict):
    """The checkout, and whether files differ from it."""

    commit: str
    modified: bool


class Environment(TypedDict):
    """A JSON object; "devices" counts all devices of the run by kind, "git" is None without a checkout of its own."""

    python: str
    platform: str
    processors: int | None
    packages: dict[str, str | None]
    backend: str
    devices: dict[str, int]
    processes: int
    git: Commit | None


def environment() -> Environment:
    """What this process runs on. Environment variables are left out: they hold secrets."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": dict(sorted(Counter(device.device_kind for device in jax.devices()).items())),
        "processes": jax.process_count(),
        "git": git_state(Path(__file__).resolve().parents[2]),
    }


def git_state(folder: Path) -> Commit | None:
    """The commit of the checkout at `folder` and whether files differ from it; None where there is none."""
    if not (folder / ".git").exists():  # not a repository that merely holds this folder, such as a user's home
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", os.fspath(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
