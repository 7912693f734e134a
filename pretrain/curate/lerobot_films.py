"""Cameras of LeRobot's layout that are kept as MP4 files: which frames of which file are an episode's.

    versions 2    videos/chunk-000/CAMERA/episode_000000.mp4, a file an episode
    version 3     videos/CAMERA/chunk-000/file-000.mp4, many; meta/episodes says from which second on

Decoded with PyAV (`core/films.py`): a file whose episodes are read in order is decoded once. Places are the layout's
own, whatever meta/info.json says of them.
Layout: https://huggingface.co/docs/lerobot (LeRobotDataset v3.0), 2025.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pretrain.core import films
from pretrain.core.errors import check
from pretrain.curate.inputs import find_files, open_stream

PATHS = {
    "v2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


class Camera:
    """One camera of a data set.

    Args:
        folder: of the data set.
        information: what meta/info.json says.
        feature: the camera's name.

    Raises:
        UserError: meta/episodes does not say where its films lie, or info.json not how many frames a second they have.
    """

    def __init__(self, folder: str, information: dict, feature: str):
        self.folder, self.feature, self.path = folder, feature, ""
        self.height, self.width, self.channels = _sizes(information["features"][feature])
        self.version = str(information["codebase_version"])[:2]
        self.rate, self.chunk = information.get("fps"), int(information.get("chunks_size") or 1000)
        check(bool(self.rate), f"{folder}: meta/info.json says no fps, and {feature} is kept as films")
        self.places = self._read_places() if self.version == "v3" else {}

    @property
    def frame_bytes(self) -> int:
        """Of a decoded frame."""
        return self.height * self.width * self.channels

    def frames(self, episode: int, steps: int) -> np.ndarray:
        """The frames of an episode, uint8 [steps, height, width, channels].

        Raises:
            BrokenFilm: a damaged film, or one that ends too early.
            OSError: a file that is not there.
        """
        path, first = self._place(episode)
        if path != self.path or first < self.at:
            self.at, self.reel = 0, self._open(path)
        self.path = ""  # a reel that breaks is not gone on with
        found = [frame() for frame in itertools.islice(self.reel, first - self.at, first - self.at + steps)]
        if len(found) < steps:
            raise films.BrokenFilm(f"{path} ends after {len(found)} of {steps} frames")
        self.path, self.at = path, first + steps
        return np.stack(found)

    def _open(self, path: str) -> Iterator[Any]:
        with open_stream(os.path.join(self.folder, path)) as stream:
            data = stream.read()
        return films.frames_of(data, self.height, self.width, self.channels)

    def _place(self, episode: int) -> tuple[str, int]:
        """File, and number of the first frame in it."""
        if self.version == "v2":
            numbers = {"episode_chunk": episode // self.chunk, "episode_index": episode}
            return PATHS[self.version].format(video_key=self.feature, **numbers), 0
        if episode not in self.places:
            raise films.BrokenFilm(f"meta/episodes does not say where episode {episode} lies")
        chunk, file, second = self.places[episode]
        path = PATHS[self.version].format(video_key=self.feature, chunk_index=chunk, file_index=file)
        return path, round(second * self.rate)

    def _read_places(self) -> dict[int, tuple[int, int, float]]:
        columns = [f"videos/{self.feature}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        files, _ = find_files(f"{self.folder}/meta/episodes/**/*.parquet", "", "parquet")
        found = {}
        for file in files:
            with open_stream(file.path) as stream:
                table = pq.read_table(stream)
            missing = {"episode_index", *columns} - set(table.column_names)
            check(not missing, f"{file.path}: no column {', '.join(sorted(missing))}")
            places = zip(*(table[name].to_pylist() for name in columns), strict=True)
            told = zip(table["episode_index"].to_pylist(), places, strict=True)
            found |= {episode: place for episode, place in told if None not in place}
        return found


def _sizes(feature: dict) -> tuple[int, int, int]:
    """Height, width and channels, whichever of them comes first."""
    sizes = [int(size) for size in feature.get("shape") or ()]
    check(len(sizes) == 3, f"a camera whose shape is {feature.get('shape')}, not height, width and channels")
    return (*sizes[1:], sizes[0]) if sizes[0] in films.PIXELS and sizes[-1] not in films.PIXELS else tuple(sizes)
