"""A checkpoint from a stranger, with a manifest that fits: it is refused or read as numbers; it never runs code."""

import json
import os
import pickle
import shutil
import struct

import google_crc32c
import numpy as np
import pytest
import tensorstore
from checkpoint_damage import layout, same, state_at, write_checkpoints

from pretrain.core.errors import RunError, UserError
from pretrain.core.storage import Path, inside
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.manifest import Damaged, seal, verify
from pretrain.train.stored_arrays import read_arrays


class Bomb:
    """Unpickled, it makes a file: what a stranger's code would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoints(tmp_path / "run" / "checkpoints", steps=(10,)) / "10"


def reseal(checkpoint) -> None:
    (checkpoint / "manifest.json").unlink()
    seal(Path(checkpoint), 10, {"step": 10, "seen": [10, 0.5]}, {})


def restore(checkpoint):
    with Checkpointer(checkpoint.parent, read_only=True) as checkpointer:
        return checkpointer.restore(*layout(state_at(0)))[0]


def test_planted_pickles_are_never_loaded(checkpoint, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    objects = np.array([Bomb(tmp_path / "ran")], dtype=object)
    for name in ("params", "_strings.json", "d/checkpoint.pkl", "manifest.pickle"):
        (checkpoint / "state" / name).parent.mkdir(exist_ok=True)
        (checkpoint / "state" / name).write_bytes(bomb)
    np.save(checkpoint / "state" / "params.npy", objects, allow_pickle=True)
    with pytest.raises(Damaged, match="is not in the manifest"):
        verify(Path(checkpoint))
    reseal(checkpoint)
    assert same(restore(checkpoint), 10), "what nobody asks for is not read"
    for name in ("_METADATA", "_sharding", "array_metadatas/process_0", "manifest.ocdbt", "checkpoint"):
        file = checkpoint / "state" / name  # the last is where Orbax looks for a msgpack of old
        kept = file.read_bytes() if file.exists() else None
        file.write_bytes(bomb)
        reseal(checkpoint)
        try:
            assert same(restore(checkpoint), 10), name
        except RunError as error:
            assert "cannot be" in str(error), name
        if kept is not None:
            file.write_bytes(kept)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb)
    assert (tmp_path / "ran").exists(), "the bomb would have worked"


@pytest.mark.parametrize("kind", ["jax.Array", "os.system", "np.ndarray", "scalar", "string", "None", 5, {"a": 1}])
def test_types_named_in_the_metadata_are_names_and_nothing_more(checkpoint, kind, tmp_path):
    file = checkpoint / "state" / "_METADATA"
    value = json.loads(file.read_text())
    for entry in value["tree_metadata"].values():
        entry["value_metadata"]["value_type"] = kind
        entry["value_metadata"]["module"] = "os"
    value["custom_metadata"] = {"__reduce__": ["os.mkdir", [str(tmp_path / "ran")]]}
    file.write_text(json.dumps(value))
    reseal(checkpoint)
    try:
        assert same(restore(checkpoint), 10)
    except (RunError, UserError) as error:
        assert len(str(error).splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_arrays_of_python_objects_are_refused(checkpoint):
    """A Zarr array of dtype "|O" is where other readers unpickle."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{checkpoint}/state/"}).result()
    about = json.loads(store["params.embedding/.zarray"])
    store["params.embedding/.zarray"] = json.dumps({**about, "dtype": "|O", "filters": [{"id": "pickle"}]}).encode()
    reseal(checkpoint)
    with pytest.raises(RunError, match="cannot be used: its arrays cannot be read"):
        restore(checkpoint)


def test_an_index_that_names_files_outside_is_refused(tmp_path):
    """The paths in an OCDBT index are patched, its checksum made anew; TensorStore does not follow them."""
    store = {"driver": "ocdbt", "base": f"file://{tmp_path}/in/", "config": {"compression": None}}
    prefixes = dict.fromkeys(("value_data_prefix", "btree_node_data_prefix", "version_tree_node_data_prefix"), "xx/d/")
    tensorstore.KvStore.open({**store, **prefixes}).result()["a"] = b"b"
    shutil.move(tmp_path / "in" / "xx" / "d", tmp_path / "d")
    file = tmp_path / "in" / "manifest.ocdbt"
    data = file.read_bytes()
    assert data.count(b"xx/d/") == 1 and struct.unpack("<I", data[-4:])[0] == google_crc32c.value(data[:-4])
    data = data[:-4].replace(b"xx/d/", b"../d/")
    file.write_bytes(data + struct.pack("<I", google_crc32c.value(data)))
    with pytest.raises(ValueError, match="Invalid key"):
        _ = tensorstore.KvStore.open(store).result()["a"]


def test_links_out_of_a_checkpoint_are_damage(checkpoint, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (checkpoint / "state" / "d" / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(Damaged, match="d/more is not a plain file"):
        verify(Path(checkpoint))
    (checkpoint / "state" / "d" / "more").unlink()
    verify(Path(checkpoint))
    checkpoint.rename(tmp_path / "elsewhere")
    checkpoint.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match="a link, not a folder"):
        verify(Path(checkpoint))


def test_arrays_larger_than_the_machine_are_not_begun(checkpoint):
    file = checkpoint / "state" / "_METADATA"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{checkpoint}/state/"}).result()
    about = json.loads(store["params.embedding/.zarray"])
    store["params.embedding/.zarray"] = json.dumps({**about, "shape": [10**12, 8], "chunks": [10**12, 8]}).encode()
    assert file.exists()
    with pytest.raises((RunError, Damaged)):
        read_arrays(Path(checkpoint))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "gs://x", "a\0b", 5])
def test_names_in_descriptions_stay_inside(name, tmp_path):
    with pytest.raises(RunError, match="leads elsewhere"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b.c") == Path(tmp_path) / "a" / "b.c"
