"""Recordings written in LeRobot's layout, version 3.0, so that others can train on them: `pretrain record`.

    data/chunk-000/file-000.parquet        a row a step: features, time, numbers of episode, step and task
    meta/info.json, stats.json             which features there are, and their range, mean and deviation
    meta/tasks.parquet, episodes/...       what was to be done, and where each episode lies

`frames` become `observation.image` (PNG), `states` `observation.state`, `actions` `action`; other arrays keep their
names. Layout: https://huggingface.co/docs/lerobot (LeRobotDataset v3.0), 2025.
"""

import contextlib
import io
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import check
from pretrain.core.images import encode
from pretrain.core.storage import Path, write_bytes, write_json
from pretrain.curate.documents import Record

NAMES = {"frames": "observation.image", "states": "observation.state", "actions": "action"}
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FILE_BYTES = 100 << 20  # after which a new file begins
COUNTERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
            "task_index": "int64"}  # fmt: skip
CHUNK = "chunk-000"


class Statistics:
    """Range, mean and deviation of a feature; of pictures by channel, from 0 to 1."""

    def __init__(self):
        self.count, self.low, self.high, self.sum, self.squares = 0, np.inf, -np.inf, 0.0, 0.0

    def add(self, values: np.ndarray, is_picture: bool) -> None:
        """Takes in the values of an episode, [steps, ...]."""
        x = values.reshape(-1, values.shape[-1]).astype(np.float64) / (255 if is_picture else 1)
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))
        self.count, self.sum, self.squares = self.count + len(x), self.sum + x.sum(0), self.squares + (x**2).sum(0)

    def as_json(self, is_picture: bool, steps: int) -> dict:
        """As stats.json has it; a picture's are [channels, 1, 1]."""
        mean = self.sum / self.count
        found = {"min": self.low, "max": self.high, "mean": mean,
                 "std": np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))}  # fmt: skip
        shaped = {name: (x[:, None, None] if is_picture else x).tolist() for name, x in found.items()}
        return shaped | {"count": [steps]}


def write_recordings(folder: str, episodes: Iterable[Record], *, fps: float) -> dict[str, int]:
    """Writes episodes, and returns how many there are, and how many steps.

    Args:
        folder: a new one.
        episodes: documents whose arrays all have one element a step.
        fps: steps a second.

    Raises:
        UserError: the folder holds something, there are no episodes, or they do not all have the same arrays.
    """
    root = Path(folder)
    check(not (root.exists() and any(root.iterdir())), f"--output={folder} holds something already; name a new folder")
    features, statistics, tasks, rows, steps = {}, {}, {}, [], 0
    with contextlib.closing(_Files(root)) as writer:
        for number, episode in enumerate(episodes):
            arrays = {
                NAMES.get(name, name): _steps(from_bytes(value)) for name, value in (episode.arrays or {}).items()
            }
            check(bool(arrays), f"{episode.origin} holds no arrays: it is no recording")
            length = len(next(iter(arrays.values())))
            described = {name: _feature(array) for name, array in arrays.items()}
            features = features or described
            check(
                described == features and all(len(array) == length for array in arrays.values()),
                f"{episode.origin}: its arrays are not like the first episode's, or not all equally long",
            )
            for name, array in arrays.items():
                statistics.setdefault(name, Statistics()).add(array, _is_picture(array))
            task = tasks.setdefault(episode.text, len(tasks))
            place = writer.write(arrays, number, steps, task, fps)
            rows.append({
                "episode_index": number, "tasks": [episode.text], "length": length, **place,
                "dataset_from_index": steps, "dataset_to_index": steps + length,
                "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            })  # fmt: skip
            steps += length
    check(bool(rows), f"no episodes: nothing was written to {folder}")
    _write_meta(root, features, statistics, tasks, rows, steps, fps)
    return {"episodes": len(rows), "steps": steps}


class _Files:
    """The Parquet files of the steps, one after another."""

    def __init__(self, root: Path):
        self.root, self.number, self.bytes, self.file = root, 0, 0, None

    def write(self, arrays: dict[str, np.ndarray], episode: int, first: int, task: int, fps: float) -> dict[str, int]:
        """Appends an episode and says where it lies."""
        length = len(next(iter(arrays.values())))
        columns = {name: _column(array) for name, array in arrays.items()}
        counted = {
            "timestamp": np.arange(length) / fps, "frame_index": np.arange(length),
            "episode_index": np.full(length, episode), "index": np.arange(first, first + length),
            "task_index": np.full(length, task),
        }  # fmt: skip
        table = pa.table(columns | {name: pa.array(x.astype(COUNTERS[name])) for name, x in counted.items()})
        if self.bytes > FILE_BYTES:
            self.close()
            self.number, self.bytes = self.number + 1, 0
        if self.file is None:
            path = self.root / "data" / CHUNK / f"file-{self.number:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = path.open("wb")
            self.file = pq.ParquetWriter(self.stream, table.schema)
        self.file.write_table(table)
        self.bytes += table.nbytes
        return {"data/chunk_index": 0, "data/file_index": self.number}

    def close(self) -> None:
        """Finishes the file at hand."""
        if self.file is not None:
            self.file.close()
            self.stream.close()
        self.file = None


def _write_meta(
    root: Path, features: dict, statistics: dict, tasks: dict[str, int], rows: list, steps: int, fps: float
):
    counters = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in COUNTERS.items()}
    write_json(root / "meta" / "info.json", {
        "codebase_version": "v3.0", "robot_type": None, "total_episodes": len(rows), "total_frames": steps,
        "total_tasks": len(tasks), "chunks_size": 1000, "data_files_size_in_mb": FILE_BYTES >> 20,
        "video_files_size_in_mb": 200, "fps": fps, "splits": {"train": f"0:{len(rows)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": None,
        "features": features | counters,
    })  # fmt: skip
    is_picture = {name: feature["dtype"] == "image" for name, feature in features.items()}
    write_json(root / "meta" / "stats.json", {n: s.as_json(is_picture[n], steps) for n, s in statistics.items()})
    _write_table(root / "meta" / "episodes" / CHUNK / "file-000.parquet", pa.Table.from_pylist(rows))
    index = "__index_level_0__"  # where pandas looks for an index that has no name
    named = pa.table({"task_index": list(tasks.values()), index: list(tasks)})
    columns = [{"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
               for name, field, kind, numpy in (("task_index", "task_index", "int64", "int64"),
                                                (None, index, "unicode", "object"))]  # fmt: skip
    about = {"index_columns": [index], "column_indexes": [], "columns": columns}
    _write_table(root / "meta" / "tasks.parquet", named.replace_schema_metadata({"pandas": json.dumps(about)}))


def _write_table(path: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(path, buffer.getvalue())


def _steps(array: np.ndarray) -> np.ndarray:
    """An array with at least one number a step: [steps, ...]."""
    return array[:, None] if array.ndim == 1 else array


def _is_picture(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4


def _feature(array: np.ndarray) -> dict:
    """As info.json describes it."""
    names = ["height", "width", "channels"] if _is_picture(array) else None
    return {"dtype": "image" if names else array.dtype.name, "shape": list(array.shape[1:]), "names": names}


def _column(array: np.ndarray) -> pa.Array:
    if _is_picture(array):
        return pa.array([{"bytes": encode(frame), "path": None} for frame in array], PICTURE)
    if array.shape[1:] == (1,):
        return pa.array(array[:, 0])
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), int(np.prod(array.shape[1:])))
