"""Recordings in LeRobot's layout: versions, what is broken or missing, what is written. The data sets are made here."""

import dataclasses
import io
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pretrain.core.arrays import from_bytes, to_bytes
from pretrain.core.errors import UserError
from pretrain.curate import lerobot_writer
from pretrain.curate.documents import Record, Unreadable, arrays_of
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.lerobot_writer import write_recordings
from pretrain.curate.readers import Fields
from pretrain.curate.reading import read_batches
from pretrain.main import main

FIELDS = Fields(arrays={"frames": "observation.image", "states": "observation.state", "actions": "action"})
LENGTHS = (3, 1, 4)  # steps of the episodes


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows(number, length):
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (length, 6, 8, 3)).astype(np.uint8)
    return frames, [
        {
            "observation.image": png(frame), "observation.state": rng.normal(size=2).astype(np.float32).tolist(),
            "action": [float(number), step], "episode_index": number, "frame_index": step, "task_index": number % 2,
            "timestamp": step / 10,
        }
        for step, frame in enumerate(frames)
    ]  # fmt: skip


def data_set(folder, version):
    """A data set of three episodes, and their frames."""
    frames, steps = zip(*(rows(number, length) for number, length in enumerate(LENGTHS)), strict=True)
    features = {name: {"dtype": "float32", "shape": [2]} for name in ("observation.state", "action")}
    features |= {
        "observation.image": {"dtype": "image", "shape": [6, 8, 3]},
        "cam": {"dtype": "video", "shape": [48, 64, 3]},
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps({"codebase_version": version, "features": features}))
    tasks = [{"task_index": 0, "task": "push"}, {"task_index": 1, "task": "pull"}]
    if version.startswith("v2"):
        (folder / "meta" / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
        for number, episode in enumerate(steps):
            path = folder / "data" / "chunk-000" / f"episode_{number:06d}.parquet"
            pq.write_table(pa.Table.from_pylist(episode), path)
    else:
        table = pa.table({"task_index": [0, 1], "__index_level_0__": ["push", "pull"]})
        pq.write_table(table, folder / "meta" / "tasks.parquet")
        together = [step for episode in steps for step in episode]
        pq.write_table(pa.Table.from_pylist(together), folder / "data" / "chunk-000" / "file-000.parquet")
    return frames


def read(folder, fields=FIELDS):
    files, ignored = find_inputs(f"lerobot:{folder}", "robots")
    assert ignored == Counter()
    return [item for file in files for item in read_file(file, fields)]


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_each_episode_is_a_document(version, tmp_path):
    frames = data_set(tmp_path / "set", version)
    found = read(tmp_path / "set")
    assert [type(each) for each in found] == [Record] * 3
    assert [each.text for each in found] == ["push", "pull", "push"]
    for number, (record, seen) in enumerate(zip(found, frames, strict=True)):
        arrays = {name: from_bytes(value) for name, value in record.arrays.items()}
        np.testing.assert_array_equal(arrays["frames"], seen)
        assert arrays["states"].shape == arrays["actions"].shape == (LENGTHS[number], 2)
        assert arrays["states"].dtype == arrays["actions"].dtype == np.float32
        assert arrays["actions"][:, 0].tolist() == [number] * LENGTHS[number]
        np.testing.assert_array_equal(arrays["action_targets"], arrays["actions"])
        assert arrays["action_weights"].tolist() == [1.0] * LENGTHS[number]
        assert json.loads(record.metadata) == {"episode": number, "steps": LENGTHS[number]}
    assert len({each.origin for each in found}) == 3


def test_a_broken_picture_or_a_changing_shape_costs_its_episode_alone(tmp_path):
    data_set(tmp_path / "set", "v2.1")
    path = tmp_path / "set" / "data" / "chunk-000" / "episode_000000.parquet"
    steps = pq.read_table(path).to_pylist()
    steps[1]["observation.image"]["bytes"] = steps[1]["observation.image"]["bytes"][:40]
    pq.write_table(pa.Table.from_pylist(steps), path)
    path = path.with_name("episode_000002.parquet")
    steps = pq.read_table(path).to_pylist()
    steps[2]["observation.state"] = [1.0]
    pq.write_table(pa.Table.from_pylist(steps), path)
    first, second, third = read(tmp_path / "set")
    assert isinstance(first, Unreadable) and first.rule == "broken_frames"
    assert isinstance(second, Record)
    assert isinstance(third, Unreadable) and third.rule == "broken_states" and "shape" in third.problem


def test_without_tasks_there_is_no_text_and_without_a_column_no_episode(tmp_path):
    data_set(tmp_path / "set", "v2.1")
    (tmp_path / "set" / "meta" / "tasks.jsonl").unlink()
    path = tmp_path / "set" / "data" / "chunk-000" / "episode_000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["task_index"]), path)
    path = path.with_name("episode_000002.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    first, second, third = read(tmp_path / "set")
    assert first.text == second.text == ""
    assert isinstance(third, Unreadable) and third.rule == "no_column" and "action" in third.problem


def test_a_damaged_file_and_a_long_episode_are_counted(tmp_path):
    data_set(tmp_path / "set", "v2.1")
    path = tmp_path / "set" / "data" / "chunk-000" / "episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    first, second, third = read(tmp_path / "set", Fields(arrays=FIELDS.arrays, max_record_bytes=600))
    assert isinstance(second, Unreadable) and "cannot open" in second.problem
    assert {first.rule, third.rule} == {"large_episode"}


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        find_inputs(f"lerobot:{tmp_path}", "robots")
    data_set(tmp_path / "old", "v1.6")
    with pytest.raises(UserError, match=r"version v1\.6 of LeRobot's layout"):
        find_inputs(f"lerobot:{tmp_path / 'old'}", "robots")
    data_set(tmp_path / "set", "v3.0")
    for fields, words in (
        (Fields(), "say what to take"),
        (Fields(arrays={"frames": "camera"}), "no feature 'camera'; there are"),
        (Fields(arrays={"frames": "cam"}), "says no fps"),
    ):
        with pytest.raises(UserError, match=words):
            read(tmp_path / "set", fields)


def recordings():
    rng = np.random.default_rng(7)
    found = []
    for number, length in enumerate(LENGTHS):
        arrays = {
            "frames": rng.integers(0, 256, (length, 6, 8, 3)).astype(np.uint8),
            "states": rng.normal(size=(length, 2)).astype(np.float32),
            "actions": rng.normal(size=(length, 2)).astype(np.float32),
            "action_targets": rng.normal(size=(length, 2)).astype(np.float32),
            "action_weights": np.ones(length, np.float32) * number,
        }
        kept = {name: to_bytes(array) for name, array in arrays.items()}
        found.append((Record(("push", "pull")[number % 2], f"here/{number}", arrays=kept), arrays))
    return found


@pytest.mark.parametrize("file_bytes", [1, 1 << 20], ids=["many files", "one file"])
def test_what_is_written_is_read_again(file_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "FILE_BYTES", file_bytes)
    written = recordings()
    result = write_recordings(str(tmp_path / "set"), (record for record, _ in written), fps=10)
    assert result == {"episodes": 3, "steps": sum(LENGTHS)}
    own = {name: name for name in ("action_targets", "action_weights")}
    found = read(tmp_path / "set", Fields(arrays={**FIELDS.arrays, **own}))
    assert [each.text for each in found] == ["push", "pull", "push"]
    for record, (_, arrays) in zip(found, written, strict=True):
        assert record.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            again = from_bytes(record.arrays[name])
            assert again.dtype == array.dtype
            np.testing.assert_array_equal(again, array)
    paths = sorted((tmp_path / "set" / "data" / "chunk-000").iterdir())
    assert len(paths) == (3 if file_bytes == 1 else 1)
    episodes = pq.read_table(tmp_path / "set" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [each["length"] for each in episodes] == list(LENGTHS)
    for each in episodes:  # where an episode is said to lie, it lies
        rows = pq.read_table(paths[each["data/file_index"]]).to_pylist()
        own_rows = [row for row in rows if row["episode_index"] == each["episode_index"]]
        assert [row["index"] for row in own_rows] == list(range(each["dataset_from_index"], each["dataset_to_index"]))
        assert [row["frame_index"] for row in own_rows] == list(range(each["length"]))


def test_grey_films_stay_grey(tmp_path):
    frames = np.arange(2 * 6 * 8, dtype=np.uint8).reshape(2, 6, 8, 1)
    write_recordings(str(tmp_path / "set"), [Record("", "film", arrays={"frames": to_bytes(frames)})], fps=10)
    (film,) = read(tmp_path / "set", Fields(arrays={"frames": "observation.image"}))
    np.testing.assert_array_equal(from_bytes(film.arrays["frames"]), frames)


def test_statistics_are_those_of_all_steps(tmp_path):
    written = recordings()
    write_recordings(str(tmp_path / "set"), (record for record, _ in written), fps=10)
    found = json.loads((tmp_path / "set" / "meta" / "stats.json").read_text())
    states = np.concatenate([arrays["states"] for _, arrays in written]).astype(np.float64)
    for name, way in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        np.testing.assert_allclose(found["observation.state"][name], way(states, axis=0), rtol=1e-6)
    frames = np.concatenate([arrays["frames"] for _, arrays in written]) / 255
    np.testing.assert_allclose(np.ravel(found["observation.image"]["mean"]), frames.mean((0, 1, 2)), rtol=1e-9)
    assert np.shape(found["observation.image"]["std"]) == (3, 1, 1) and found["action"]["count"] == [sum(LENGTHS)]


def test_recordings_that_differ_and_folders_in_use_are_refused(tmp_path):
    (first, _), (second, _), _ = recordings()
    other = second._replace(arrays={**second.arrays, "states": to_bytes(np.zeros((1, 3), np.float32))})
    with pytest.raises(UserError, match="not like the first episode's"):
        write_recordings(str(tmp_path / "set"), [first, other], fps=10)
    with pytest.raises(UserError, match="holds something already"):
        write_recordings(str(tmp_path / "set"), [first], fps=10)
    with pytest.raises(UserError, match="no episodes"):
        write_recordings(str(tmp_path / "none"), [], fps=10)


def test_the_command_turns_an_old_data_set_into_a_new_one(tmp_path, capsys):
    frames = data_set(tmp_path / "old", "v2.1")
    path = tmp_path / "old" / "data" / "chunk-000" / "episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    given = [f"--input=lerobot:{tmp_path / 'old'}", f"--output={tmp_path / 'new'}", "--fps=4"]
    assert main(["record", *given, f"--gin.Fields.arrays={dict(FIELDS.arrays)}"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert (result["episodes"], result["steps"], result["left_out"]) == (2, 7, 1)
    assert "left out" in printed.err and "episode_000001" in printed.err
    found = read(tmp_path / "new")
    for record, seen in zip(found, (frames[0], frames[2]), strict=True):
        np.testing.assert_array_equal(from_bytes(record.arrays["frames"]), seen)
    assert main(["record", given[0]]) == 2


def test_an_instruction_stands_at_each_step(tmp_path):
    data_set(tmp_path / "data_set", "v3.0")
    files, _ = find_inputs(f"lerobot:{tmp_path / 'data_set'}", "robot")
    fields = dataclasses.replace(FIELDS, instruction_bytes=6)
    ((documents, unreadable),) = read_batches(files, fields, 0.0)
    assert not unreadable
    for text, arrays in zip(documents["text"].to_pylist(), arrays_of(documents), strict=True):
        told, frames = from_bytes(arrays["instructions"]), from_bytes(arrays["frames"])
        assert told.dtype == np.uint8 and told.shape == (len(frames), 6)
        assert {bytes(row).rstrip(b"\0").decode() for row in told} == {text} <= {"push", "pull"}
    ((documents, unreadable),) = read_batches(files, dataclasses.replace(fields, instruction_bytes=3), 0.0)
    assert not documents.num_rows and {item.rule for item in unreadable} == {"long_instruction"}
    no_frames = dataclasses.replace(fields, arrays={"states": "observation.state"})
    ((documents, unreadable),) = read_batches(files, no_frames, 0.0)
    assert not documents.num_rows and [item.rule for item in unreadable] == ["no_frames"] * 3
