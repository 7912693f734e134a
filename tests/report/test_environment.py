"""What is recorded of the machine and the code."""

import json
import subprocess

import jax

from pretrain.core.environment import PACKAGES, environment, git_state


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_it_says_versions_and_devices_and_survives_json():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found["packages"]) == set(PACKAGES) and found["packages"]["jax"] == jax.__version__
    assert found["backend"] == jax.default_backend()
    assert sum(found["devices"].values()) == jax.device_count()
    assert found["processes"] == 1


def test_commit_of_a_checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["modified"] is False
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path) == {"commit": clean["commit"], "modified": True}


def test_code_installed_inside_someone_elses_repository_has_no_commit(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None


def test_no_commit_yet_or_no_git(tmp_path, monkeypatch):
    git(tmp_path, "init")
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
