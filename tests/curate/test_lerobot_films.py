"""LeRobot's cameras that are kept as MP4 files: a file an episode, many in one, and what is broken of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reels import encoded, light
from test_lerobot import LENGTHS, data_set, read

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import UserError
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.readers import Fields

CAMERA = "observation.images.top"
FIELDS = Fields(arrays={"frames": CAMERA, "actions": "action"})
FIRST = {0: 0, 1: 3, 2: 0}  # of version 3's episodes in their files; the last lies in a second one


def filmed(folder, version):
    """A data set whose camera's films stand beside the steps; frames of version 3 have a file's numbers."""
    data_set(folder, version)
    path = folder / "meta" / "info.json"
    told = json.loads(path.read_text())
    told["features"][CAMERA] = {"dtype": "video", "shape": [3, 48, 64]}
    path.write_text(json.dumps(told | {"fps": 10, "chunks_size": 2}))
    if version.startswith("v2"):
        for number, length in enumerate(LENGTHS):
            film = folder / "videos" / f"chunk-{number // 2:03d}" / CAMERA / f"episode_{number:06d}.mp4"
            film.parent.mkdir(parents=True, exist_ok=True)
            film.write_bytes(encoded(length))
        return
    place = folder / "videos" / CAMERA / "chunk-000"
    place.mkdir(parents=True)
    (place / "file-000.mp4").write_bytes(encoded(sum(LENGTHS[:2])))
    (place / "file-001.mp4").write_bytes(encoded(LENGTHS[2]))
    rows = [
        {"episode_index": number, f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": number // 2,
         f"videos/{CAMERA}/from_timestamp": FIRST[number] / 10}
        for number in range(3)
    ]  # fmt: skip
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_are_those_of_the_episode(version, tmp_path):
    filmed(tmp_path / "set", version)
    for number, record in enumerate(read(tmp_path / "set", FIELDS)):
        frames = from_bytes(record.arrays["frames"])
        first = FIRST[number] if version == "v3.0" else 0
        assert frames.shape == (LENGTHS[number], 48, 64, 3) and frames.dtype == np.uint8
        assert light(frames) == list(range(first, first + LENGTHS[number]))


def test_a_missing_or_damaged_film_costs_its_episode_alone(tmp_path):
    filmed(tmp_path / "set", "v2.1")
    folder = tmp_path / "set" / "videos"
    (folder / "chunk-000" / CAMERA / "episode_000000.mp4").unlink()
    (folder / "chunk-001" / CAMERA / "episode_000002.mp4").write_bytes(encoded(LENGTHS[2] - 1))
    first, second, third = read(tmp_path / "set", FIELDS)
    assert isinstance(second, Record)
    assert isinstance(first, Unreadable) and first.rule == "broken_frames" and "episode_000000" in first.problem
    assert isinstance(third, Unreadable) and "ends after 3 of 4 frames" in third.problem
    small = read(tmp_path / "set", Fields(arrays=FIELDS.arrays, max_record_bytes=20_000))
    assert [getattr(item, "rule", None) for item in small] == ["large_episode", None, "large_episode"]


def test_an_early_end_in_a_shared_film_leaves_the_others(tmp_path):
    filmed(tmp_path / "set", "v3.0")
    (tmp_path / "set" / "videos" / CAMERA / "chunk-000" / "file-000.mp4").write_bytes(encoded(2))
    first, second, third = read(tmp_path / "set", FIELDS)
    assert first.rule == second.rule == "broken_frames" and isinstance(third, Record)


def test_a_place_that_is_not_told(tmp_path):
    filmed(tmp_path / "set", "v3.0")
    path = tmp_path / "set" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 2), path)
    assert [isinstance(item, Record) for item in read(tmp_path / "set", FIELDS)] == [True, True, False]
    nobody_knows = pa.array([None, 0.3, 0.0], pa.float64())
    name = f"videos/{CAMERA}/from_timestamp"
    pq.write_table(table.set_column(table.column_names.index(name), name, nobody_knows), path)
    first, *others = read(tmp_path / "set", FIELDS)
    assert "does not say where episode 0 lies" in first.problem and all(isinstance(item, Record) for item in others)
    pq.write_table(table.drop_columns([f"videos/{CAMERA}/file_index"]), path)
    with pytest.raises(UserError, match="no column videos/"):
        read(tmp_path / "set", FIELDS)
