"""What the environment holds, such as a store's keys, is in no file of a run and in none of its messages."""

import shutil

from pretrain.main import main

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-not-to-be-told-6f1c",
    "HF_TOKEN": "hf-not-to-be-told-93ab",
    "GOOGLE_APPLICATION_CREDENTIALS": "/keys/not-to-be-told-77.json",
    "DATABASE_URL": "postgres://user:not-to-be-told-51@host/db",
}


def test_a_run_writes_down_no_environment_variable(tiny_cache, tmp_path, monkeypatch, capfd):
    workdir = shutil.copytree(tiny_cache, tmp_path / "run")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert main(["train", f"--workdir={workdir}"]) == 0
    assert main(["report", f"--workdir={workdir}"]) == 0
    assert main(["evaluate", f"--workdir={workdir}", "--checkpoint_step=7"]) == 2
    told = capfd.readouterr()
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert len(files) > 20 and (workdir / "environment.json") in files
    for value in SECRETS.values():
        secret = value.partition("not-to-be-told-")[2][:4].encode()
        assert secret and not [path for path in files if b"not-to-be-told-" + secret in path.read_bytes()]
        assert "not-to-be-told" not in told.out + told.err


def test_a_rewritten_file_keeps_its_permissions_and_a_new_one_has_the_users(tmp_path):
    from pretrain.core.storage import write_text

    write_text(tmp_path / "new", "1")
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert (tmp_path / "new").stat().st_mode == ordinary.stat().st_mode
    (tmp_path / "new").chmod(0o600)
    write_text(tmp_path / "new", "2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600 and (tmp_path / "new").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "ordinary"]
