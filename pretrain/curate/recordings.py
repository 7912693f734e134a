"""Folders of audio, and which recordings are worth training on.

    audio:FOLDER     each WAV file in it, and below it, is a document: its array `sound` is the file as it is, its
                     text what stands in the .txt file of the same name; without one there is no text

A path or a glob is read in the same way. `SoundRules` rejects what is missing, damaged, empty or too long.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator

import fsspec
import gin
import numpy as np
import pyarrow as pa

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.sound import RATE, decode
from pretrain.curate.checks import Checks
from pretrain.curate.documents import Record, Unreadable, arrays_of
from pretrain.curate.inputs import InputFile, find_files, read_chunks
from pretrain.curate.readers import BEGINNING, DAMAGE, Fields, one_line
from pretrain.curate.stages import DECISIONS, tags

FORMAT = "audio"
EXTENSION, TRANSCRIPT = ".wav", ".txt"
UNREADABLE, MISSING = -1.0, -2.0  # in place of a recording's seconds


def find_recordings(pattern: str, source: str) -> tuple[list[InputFile], Counter]:
    """WAV files by path, glob or folder, and how many of its other files are neither these nor transcripts of these.

    Raises:
        UserError: there is no WAV file.
    """
    files, _ = find_files(pattern, source, FORMAT)
    stems = {True: [], False: []}
    for file in files:
        stem, extension = os.path.splitext(file.path)
        stems[extension.lower() == EXTENSION].append((stem, extension, file))
    found = {stem for stem, _, _ in stems[True]}
    check(bool(found), f"--input={FORMAT}:{pattern}: no {EXTENSION} file there; other formats of sound are not read")
    others = (extension or "no extension" for stem, extension, _ in stems[False]
              if extension != TRANSCRIPT or stem not in found)  # fmt: skip
    return [file for _, _, file in stems[True]], Counter(others)


def read_recording(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One recording, as it is, with its transcript."""
    limit = fields.max_record_bytes
    if file.size > limit:
        yield Unreadable(file.path, f"{file.size:,} bytes; Fields.max_record_bytes is {limit:,}", rule="large_sound")
        return
    sound = b"".join(read_chunks(file))
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
    yield Record(words, file.path, arrays={"sound": sound})


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
        checks = Checks(documents["id"])
        checks.broken("no_sound", seconds == MISSING, np.zeros_like(seconds), 0)
        checks.broken("broken_sound", seconds == UNREADABLE, np.zeros_like(seconds), 0)
        checks.at_least(self, "min_seconds", seconds)
        checks.at_most(self, "max_seconds", seconds)
        if self.transcripts:
            checks.broken("no_transcript", characters == 0, characters, 1)
        kept = np.flatnonzero(~checks.is_broken)
        found = tags(documents["id"].take(pa.array(kept)), "seconds", np.round(seconds[kept], 3))
        return pa.concat_tables([DECISIONS.empty_table(), checks.rejected(), found])

    def _seconds(self, arrays: dict[str, bytes]) -> float:
        if self.array not in arrays:
            return MISSING
        try:
            return len(decode(from_bytes(arrays[self.array]))) / RATE
        except ValueError:  # a broken sound, or a damaged .npy file
            return UNREADABLE
