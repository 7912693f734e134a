"""Folders of audio and of video, and which recordings are worth training on.

    audio:FOLDER     each WAV file in it, and below it, is a document: its array `sound` is the file as it is, its
                     text what stands in the .txt file of the same name; without one there is no text
    video:FOLDER     so each .mp4, .m4v, .mov, .webm, .mkv and .avi file, as `frames`; a window is decoded as it is used

A path or a glob is read in the same way. `SoundRules` and `FilmRules` reject what is missing, damaged, empty, too short
or too long.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import gin
import numpy as np
import pyarrow as pa

from pretrain.core import films
from pretrain.core.arrays import from_bytes
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.sound import RATE, decode
from pretrain.curate.checks import Checks
from pretrain.curate.documents import Record, Unreadable, arrays_of
from pretrain.curate.inputs import InputFile, find_files, read_chunks
from pretrain.curate.readers import BEGINNING, DAMAGE, Fields, one_line
from pretrain.curate.stages import DECISIONS, tags

AUDIO, VIDEO = "audio", "video"
ARRAYS = {AUDIO: "sound", VIDEO: "frames"}
EXTENSIONS = {AUDIO: (".wav",), VIDEO: (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")}
TRANSCRIPT = ".txt"
UNREADABLE, MISSING = -1.0, -2.0  # in place of a recording's seconds or frames


def find_recordings(format_: str, pattern: str, source: str) -> tuple[list[InputFile], Counter]:
    """Recordings by path, glob or folder, and how many of its other files are neither these nor transcripts of these.

    Raises:
        UserError: there is none.
    """
    files, _ = find_files(pattern, source, format_)
    stems = {True: [], False: []}
    for file in files:
        stem, extension = os.path.splitext(file.path)
        stems[extension.lower() in EXTENSIONS[format_]].append((stem, extension, file))
    found = {stem for stem, _, _ in stems[True]}
    known = ", ".join(EXTENSIONS[format_])
    check(bool(found), f"--input={format_}:{pattern}: no {known} file there; other formats of {format_} are not read")
    others = (extension or "no extension" for stem, extension, _ in stems[False]
              if extension != TRANSCRIPT or stem not in found)  # fmt: skip
    return [file for _, _, file in stems[True]], Counter(others)


def read_recording(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One recording, as it is, with its transcript."""
    limit = fields.max_record_bytes
    if file.size > limit:
        yield Unreadable(
            file.path, f"{file.size:,} bytes; Fields.max_record_bytes is {limit:,}", rule=f"large_{ARRAYS[file.format]}"
        )
        return
    recording = b"".join(read_chunks(file))
    path = os.path.splitext(file.path)[0] + TRANSCRIPT
    try:
        with fsspec.open(path, "rb") as stream:
            text = stream.read(limit)
    except FileNotFoundError:
        text = b""
    except DAMAGE as error:
        yield Unreadable(path, f"cannot open: {one_line(error)}", rule="broken_transcript")
        return
    try:
        words = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        yield Unreadable(path, one_line(error), text[:BEGINNING], len(text), rule="broken_transcript")
        return
    yield Record(words, file.path, arrays={ARRAYS[file.format]: recording})


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class SoundRules:
    """Map stage that rejects documents by their recordings and transcripts.

    Rules: "no_sound", "broken_sound", "min_seconds" (of zero length too), "max_seconds", "no_transcript". Kept ones are
    tagged `seconds`.

    Attributes:
        min_seconds, max_seconds: length of a recording.
        transcripts: recordings without one are rejected.
        array: the name of the recording.
    """

    min_seconds: float = 0.1
    max_seconds: float = 30.0
    transcripts: bool = True
    array: str = "sound"
    name: str = "sound_rules"

    def __post_init__(self):
        check_fields(self)
        check(0 < self.min_seconds <= self.max_seconds, f"SoundRules: 0 < min_seconds <= max_seconds, got {self}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Rejects by the first rule that is broken; the value is the length in seconds."""
        seconds = np.array([self._seconds(arrays) for arrays in arrays_of(documents)], np.float64)
        characters = np.array([len(text.strip()) for text in documents["text"].to_pylist()], np.float64)
        checks = _checked(self, documents, "sound", "seconds", seconds)
        if self.transcripts:
            checks.broken("no_transcript", characters == 0, characters, 1)
        return _decided(checks, documents, "seconds", np.round(seconds, 3))

    def _seconds(self, arrays: dict[str, bytes]) -> float:
        if self.array not in arrays:
            return MISSING
        try:
            return len(decode(from_bytes(arrays[self.array]))) / RATE
        except ValueError:  # a broken sound, or a damaged .npy file
            return UNREADABLE


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class FilmRules:
    """Map stage that rejects documents by their films, encoded or as frames. Needs the extra [video] for the first.

    Rules: "no_film", "broken_film", "min_frames", "max_frames", "min_side". Kept ones are tagged `film_frames`.

    Attributes:
        min_frames, max_frames: length of a film.
        min_side: pixels of the shorter side.
        array: the name of the film.
    """

    min_frames: int = 2
    max_frames: int = 10_000
    min_side: int = 16
    array: str = "frames"
    name: str = "film_rules"

    def __post_init__(self):
        check_fields(self)
        check(0 < self.min_frames <= self.max_frames, f"FilmRules: 0 < min_frames <= max_frames, got {self}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Rejects by the first rule that is broken; the value is the number of frames, or the side."""
        sizes = np.array([self._size(arrays) for arrays in arrays_of(documents)], np.float64).reshape(-1, 2)
        frames, sides = sizes[:, 0], sizes[:, 1]
        checks = _checked(self, documents, "film", "frames", frames)
        checks.at_least(self, "min_side", sides)
        return _decided(checks, documents, "film_frames", frames)

    def _size(self, arrays: dict[str, bytes]) -> tuple[float, float]:
        """Frames and the shorter side."""
        if self.array not in arrays:
            return MISSING, 0.0
        try:
            stored = from_bytes(arrays[self.array])
            if stored.ndim == 1:
                size = films.measure(stored)
                return size.frames, min(size.height, size.width)
            return (len(stored), min(stored.shape[1:3])) if stored.ndim == 4 else (UNREADABLE, 0.0)
        except ValueError:  # a broken film, or a damaged .npy file
            return UNREADABLE, 0.0


def _checked(rules: Any, documents: pa.RecordBatch, kind: str, unit: str, lengths: np.ndarray) -> Checks:
    """What is asked of every recording: that it is there, sound, and neither too short nor too long."""
    checks = Checks(documents["id"])
    checks.broken(f"no_{kind}", lengths == MISSING, np.zeros_like(lengths), 0)
    checks.broken(f"broken_{kind}", lengths == UNREADABLE, np.zeros_like(lengths), 0)
    checks.at_least(rules, f"min_{unit}", lengths)
    checks.at_most(rules, f"max_{unit}", lengths)
    return checks


def _decided(checks: Checks, documents: pa.RecordBatch, tag: str, lengths: np.ndarray) -> pa.Table:
    """The rejected, and the lengths of those that are kept."""
    kept = np.flatnonzero(~checks.is_broken)
    found = tags(documents["id"].take(pa.array(kept)), tag, lengths[kept])
    return pa.concat_tables([DECISIONS.empty_table(), checks.rejected(), found])
