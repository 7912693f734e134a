"""Robots' recordings in LeRobot's layout, as they lie on disk after a download: each episode a document.

    lerobot:FOLDER     meta/info.json says which features there are; data/**/*.parquet hold a row a step: versions 2.0
                       and 2.1 (an episode a file) and 3.0 (many); `lerobot_writer` writes the last

`Fields.arrays` names what is taken, e.g. {'frames': 'observation.image', 'states': 'observation.state', 'actions':
'action'}. Pictures are decoded; the text is the task's. Where there are `actions`, `action_targets` are the same and
`action_weights` 1 unless they are named: what was done is what is to be learned. Features kept as MP4 files are decoded
as well (`lerobot_films.py`), with the extra [video].

Layout: https://huggingface.co/docs/lerobot (LeRobotDataset v3.0), 2025.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.core.arrays import to_bytes
from pretrain.core.errors import UserError, check
from pretrain.core.images import decode
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile, find_files, open_stream
from pretrain.curate.lerobot_films import Camera
from pretrain.curate.readers import DAMAGE, Fields, one_line
from pretrain.curate.rlds import taught

FORMAT = "lerobot"
VERSIONS = ("v2.", "v3.")
EPISODE, TASK = "episode_index", "task_index"


def find_recordings(folder: str, source: str) -> tuple[list[InputFile], Counter]:
    """The Parquet files of a data set, and none that are ignored.

    Raises:
        UserError: no such data set, or one of a version that is not known.
    """
    version = str(_information(folder).get("codebase_version"))
    check(
        version.startswith(VERSIONS),
        f"--input={FORMAT}:{folder}: written by version {version} of LeRobot's layout; versions 2 and 3 are read",
    )
    files, _ = find_files(f"{folder.rstrip('/')}/data/**/*.parquet", source, FORMAT)
    return files, Counter()


def read_episodes(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """The episodes of a Parquet file, in its order; the origin's offset is the number of the episode."""
    folder = file.path.rpartition("/data/")[0]
    information = _information(folder)
    check(bool(fields.arrays), f"{FORMAT}: say what to take, e.g. Fields.arrays = {{'frames': 'observation.image'}}")
    features = information["features"]
    for name in fields.arrays.values():
        check(name in features, f"{folder}: no feature {name!r}; there are {', '.join(features)}")
    tasks, kept_apart = _tasks(folder), [n for n in fields.arrays.values() if features[n].get("dtype") == "video"]
    cameras = {name: Camera(folder, information, name) for name in kept_apart}
    columns = {EPISODE, *fields.arrays.values()} - set(kept_apart)
    channels = {name: 1 if 1 in features[name].get("shape", ()) else 3 for name in fields.arrays.values()}
    with open_stream(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        there = set(parquet.schema_arrow.names)
        missing = columns - there
        if missing:
            yield Unreadable(file.path, f"no column {', '.join(sorted(missing))}", rule="no_column")
            return
        table = parquet.read(columns=sorted((columns | {TASK}) & there))
    numbers = table[EPISODE].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for start, end in itertools.pairwise(bounds):
        if start < end:
            yield _episode(
                file.path, int(numbers[start]), table.slice(start, end - start), fields, tasks, channels, cameras
            )


def _episode(
    path: str, number: int, rows: pa.Table, fields: Fields, tasks: dict[int, str], channels: dict[str, int],
    cameras: dict[str, Camera],
) -> Record | Unreadable:  # fmt: skip
    origin = f"{path}:{number}"
    size = rows.nbytes + sum(camera.frame_bytes * len(rows) for camera in cameras.values())
    if size > fields.max_record_bytes:
        problem = f"an episode of {size:,} bytes; Fields.max_record_bytes is {fields.max_record_bytes:,}"
        return Unreadable(origin, problem, rule="large_episode")
    arrays = {}
    for name, feature in fields.arrays.items():
        try:
            if feature in cameras:
                arrays[name] = cameras[feature].frames(number, len(rows))
            else:
                arrays[name] = np.stack([_value(each, channels[feature]) for each in rows[feature].to_pylist()])
        except DAMAGE as error:  # of pictures, and of numbers in different numbers
            return Unreadable(origin, f"{feature}: {one_line(error)}", rule=f"broken_{name}")
    arrays = taught(arrays, [False] * len(rows))
    task = tasks.get(rows[TASK][0].as_py(), "") if TASK in rows.column_names else ""
    kept = {name: to_bytes(array) for name, array in arrays.items()}
    return Record(task, origin, group=origin, metadata=json.dumps({"episode": number, "steps": len(rows)}), arrays=kept)


def _value(value: Any, channels: int) -> np.ndarray:
    """A step's numbers, or its picture.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, dict):  # {"bytes", "path"}, as Hugging Face's data sets keep pictures
        if not value.get("bytes"):
            raise ValueError("a picture without its bytes")
        return decode(value["bytes"], channels)
    array = np.atleast_1d(np.asarray(value))  # a single number is kept as such
    if array.dtype.kind not in "biuf":
        raise ValueError("no numbers")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _information(folder: str) -> dict:
    path = os.path.join(folder, "meta", "info.json")
    try:
        with fsspec.open(path, "rb") as stream:
            found = json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise UserError(f"--input={FORMAT}:{folder}: cannot read {path}: {one_line(error)}") from error
    check(isinstance(found, dict) and isinstance(found.get("features"), dict), f"{path} names no features")
    return found


def _tasks(folder: str) -> dict[int, str]:
    """What the robot was to do, by number: a line each in versions 2, a row each in 3; none where neither is there."""
    lines, table = (os.path.join(folder, "meta", name) for name in ("tasks.jsonl", "tasks.parquet"))
    filesystem, _ = fsspec.core.url_to_fs(folder)
    if filesystem.exists(lines):
        with fsspec.open(lines, "rb") as stream:
            found = [json.loads(line) for line in stream if line.strip()]
        return {each[TASK]: str(each.get("task", "")) for each in found if TASK in each}
    if filesystem.exists(table):
        with open_stream(table) as stream:
            rows = pq.read_table(stream)
        words = [name for name in rows.column_names if name != TASK]  # the index that pandas wrote, or "task"
        if words and TASK in rows.column_names:
            return dict(zip(rows[TASK].to_pylist(), rows[words[0]].to_pylist(), strict=True))
    return {}
