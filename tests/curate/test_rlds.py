"""Robots' episodes in RLDS's form: data sets built here by TFDS itself, what is broken in them, what we write."""

import json

import numpy as np
import pytest

from pretrain.core.arrays import from_bytes, to_bytes
from pretrain.core.errors import UserError
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields
from pretrain.curate.rlds import write_rlds
from pretrain.main import main

ARRAYS = {"frames": "observation/image", "states": "observation/arm/joints", "actions": "action"}
FIELDS = Fields(text="language_instruction", arrays=ARRAYS)
LENGTHS = (3, 1, 0, 4)  # steps of the episodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set as others build it, its frames by episode, with nested observations and a reward beside."""
    import tensorflow_datasets as tfds

    f, rng = tfds.features, np.random.default_rng(0)
    frames = [rng.integers(0, 256, (length, 6, 8, 3)).astype(np.uint8) for length in LENGTHS]
    step = {
        "observation": {"image": f.Image(shape=(6, 8, 3)), "arm": {"joints": f.Tensor(shape=(2,), dtype=np.float64)}},
        "action": f.Scalar(np.float32), "reward": f.Scalar(np.float32), "language_instruction": f.Text(),
        "is_first": f.Scalar(np.bool_), "is_last": f.Scalar(np.bool_), "is_terminal": f.Scalar(np.bool_),
    }  # fmt: skip

    def episode(number):
        last = LENGTHS[number] - 1
        return {"steps": [{
            "observation": {"image": frame, "arm": {"joints": np.array([number, at], np.float64)}},
            "action": at + 0.5, "reward": 1.0, "language_instruction": f"task {number}", "is_first": at == 0,
            "is_last": at == last, "is_terminal": False,
        } for at, frame in enumerate(frames[number])], "episode_metadata": {"file": f"run {number}"}}  # fmt: skip

    root = tmp_path_factory.mktemp("rlds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="arms", version="1.0.0", data_dir=str(root), disable_shuffling=True,
        features=f.FeaturesDict({"steps": f.Dataset(step), "episode_metadata": {"file": f.Text()}}),
        split_datasets={"train": ((number, episode(number)) for number in range(len(LENGTHS)))},
    )  # fmt: skip
    return f"tfds:{root}/arms/1.0.0:train", frames


def read(given, fields=FIELDS):
    files, _ = find_inputs(given, "robots")
    return [item for file in files for item in read_file(file, fields)]


def test_episodes_become_documents(folder):
    given, frames = folder
    first, single, empty, last = read(given)
    for number, record in ((0, first), (1, single), (3, last)):
        arrays = {name: from_bytes(value) for name, value in record.arrays.items()}
        np.testing.assert_array_equal(arrays["frames"], frames[number])
        steps = np.arange(LENGTHS[number], dtype=np.float32)
        np.testing.assert_array_equal(arrays["states"], np.stack([np.full_like(steps, number), steps], -1))
        np.testing.assert_array_equal(arrays["actions"], steps[:, None] + 0.5)
        np.testing.assert_array_equal(arrays["action_targets"], arrays["actions"])
        assert arrays["action_weights"].tolist() == [1.0] * (len(steps) - 1) + [0.0], "nothing follows the last step"
        assert {array.dtype for name, array in arrays.items() if name != "frames"} == {np.dtype("float32")}
        told = {"episode_metadata": {"file": f"run {number}"}, "steps": LENGTHS[number]}
        assert record.text == f"task {number}" and json.loads(record.metadata) == told
    assert isinstance(empty, Unreadable) and empty.rule == "no_steps"
    assert len({item.origin for item in (first, single, empty, last)}) == 4


def test_what_cannot_be_used_costs_its_episode_and_is_told(folder):
    given, _ = folder
    missing = read(given, Fields(arrays={"frames": "observation/camera"}))
    assert [item.rule for item in missing] == ["no_frames", "no_frames", "no_steps", "no_frames"]
    assert "observation/arm/joints" in missing[0].problem, "what there is"
    words = read(given, Fields(arrays={"actions": "language_instruction"}))
    assert words[0].rule == "broken_actions"
    large = read(given, Fields(arrays=ARRAYS, max_record_bytes=200))
    assert [getattr(item, "rule", None) for item in large] == ["large_episode", None, "no_steps", "large_episode"]
    with pytest.raises(UserError, match="say what to take"):
        read(given, Fields())


def test_what_is_written_is_read_again_and_by_tfds(tmp_path):
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(1)
    made = [
        {"frames": rng.integers(0, 256, (n, 6, 8, 3)).astype(np.uint8), "states": rng.normal(size=(n, 2)).astype("f4"),
         "actions": rng.normal(size=(n, 2)).astype("f4")}
        for n in (3, 2)
    ]  # fmt: skip
    records = [Record("push", f"e/{n}", arrays={k: to_bytes(x) for k, x in e.items()}) for n, e in enumerate(made)]
    assert write_rlds(str(tmp_path / "out"), records) == {"episodes": 2, "steps": 5}
    place = tmp_path / "out" / "episodes" / "1.0.0"
    arrays = {"frames": "observation/image", "states": "observation/state", "actions": "action"}
    found = read(f"tfds:{place}:train", Fields(text="language_instruction", arrays=arrays))
    for record, episode in zip(found, made, strict=True):
        assert record.text == "push"
        for name, array in episode.items():
            np.testing.assert_array_equal(from_bytes(record.arrays[name]), array)
    first = next(iter(tfds.as_numpy(tfds.builder_from_directory(str(place)).as_dataset(split="train"))))
    flags = [(step["is_first"], step["is_last"], step["is_terminal"]) for step in first["steps"]]
    assert flags == [(True, False, False), (False, False, False), (False, True, False)]


def test_what_cannot_be_written(tmp_path):
    frames = lambda n, size: to_bytes(np.zeros((n, size, 8, 3), np.uint8))  # noqa: E731
    one, other = (Record("", str(size), arrays={"frames": frames(2, size)}) for size in (6, 7))
    with pytest.raises(UserError, match="7: its arrays are not like the first episode's"):
        write_rlds(str(tmp_path / "a"), [one, other])
    with pytest.raises(UserError, match="no episodes"):
        write_rlds(str(tmp_path / "b"), [])
    with pytest.raises(UserError, match="no recording"):
        write_rlds(str(tmp_path / "c"), [Record("text", "d")])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        write_rlds(str(tmp_path / "d"), [one])


def test_the_command_writes_what_the_command_reads(folder, tmp_path, capsys):
    given, _ = folder
    gin = tmp_path / "fields.gin"
    gin.write_text(f"Fields.arrays = {ARRAYS!r}\nFields.text = 'language_instruction'\n")
    code = main(["record", f"--input={given}", f"--output={tmp_path}/out", "--layout=rlds", f"--gin_file={gin}"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told == {"episodes": 3, "steps": 8, "left_out": 1, "output": f"{tmp_path}/out"}
