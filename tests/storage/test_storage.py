"""Paths, local and in an object store: whole files, fresh views of what others wrote, local copies that follow."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from gcs_server import BUCKET, object_server
from hypothesis import given

from pretrain.core import storage
from pretrain.core.errors import RunError, UserError


@pytest.fixture(scope="module")
def store():
    with object_server() as running:
        yield running


@pytest.fixture(scope="module")
def ask(store, tmp_path_factory):
    """Asks one long-lived process with the object store in its environment; see `reader.py`."""
    here = Path(__file__)
    environment = os.environ | store.environment() | {
        "PYTHONPATH": str(here.parents[2]),
        "TMPDIR": str(tmp_path_factory.mktemp("copies")),
    }  # fmt: skip
    command = [sys.executable, str(here.with_name("reader.py"))]
    with subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:

        def ask(command: str, name: str):
            reader.stdin.write(f"{command} gs://{BUCKET}/{name}\n")
            reader.stdin.flush()
            return json.loads(reader.stdout.readline())

        yield ask
        reader.stdin.close()


def test_what_another_host_writes_is_seen_at_once(store, ask):
    store.put("shared/a", b"1")
    assert ask("list", "shared") == ["a"]
    assert not ask("exists", "shared/complete.json")
    store.put("shared/complete.json", b"{}")
    assert ask("exists", "shared/complete.json")
    assert ask("list", "shared") == ["a", "complete.json"]


def test_a_local_copy_follows_the_object(store, ask):
    store.put("copied/model", b"one")
    first, text = ask("copy", "copied/model")
    assert text == "one" and Path(first).name == "model"
    assert ask("copy", "copied/model") == [first, "one"]
    store.put("copied/model", b"two")  # as long as the first, and in the same second
    assert ask("copy", "copied/model")[1] == "two"


def test_objects_are_written_whole_under_their_final_name(store, ask):
    assert ask("write", "deep/down/info.json") == {"a": "ä", "b": 1}
    assert store.names("deep/") == ["deep/down/info.json"]
    assert store.get("deep/down/info.json") == '{\n  "a": "ä",\n  "b": 1\n}\n'.encode()
    assert store.refused == []


def test_a_missing_object_is_a_line_for_people(ask):
    assert ask("read", "nowhere.json") == f"no such file: gs://{BUCKET}/nowhere.json"


def test_which_paths_are_remote(tmp_path):
    assert storage.is_remote("gs://bucket/x") and storage.is_remote(storage.Path("s3://bucket/x"))
    assert not storage.is_remote(tmp_path) and not storage.is_remote("runs/quickstart")
    assert storage.local_copy(tmp_path / "x") == str(tmp_path / "x")


def test_local_files_are_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    storage.write_text(path, "one")
    with path.open() as reader:
        storage.write_text(path, "two")
        assert reader.read() == "one"  # who reads the old file is not disturbed
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["file.txt"]


def test_local_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    storage.write_json(path, value)
    assert storage.read_json(path) == value


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=2, max_size=6))
def test_fingerprints_depend_on_values_and_not_on_their_order(value):
    turned = dict(reversed(value.items()))
    assert storage.fingerprint(turned) == storage.fingerprint(value)
    key = next(iter(value))
    assert storage.fingerprint(value | {key: value[key] + 1}) != storage.fingerprint(value)
    assert len(storage.fingerprint(value)) == 16


def test_damaged_json_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        storage.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RunError, match=r"bad\.json is not valid JSON .*; delete it"):
        storage.read_json(tmp_path / "bad.json")
