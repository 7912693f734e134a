"""Every format that curation reads: how its inputs are found and what reads them. A new reader is one line here.

An input is a path, a glob or a folder, whose files are read by their extension, or one of these:

    python                 the text that ships with Python (`python_library.py`)
    glyphs[:FACES]         pictures and names of the characters in matplotlib's fonts (`glyphs.py`)
    letters[:FACES]        capital letters of these, with classes
    code:PATH              folders and archives, each a repository (`source_code.py`)
    books:PATH             e-texts of any charset, each a book (`books.py`)
    tfds:NAME:SPLIT        a prepared TensorFlow data set (`registered.py`)
    seqio:TASK:SPLIT       the source of a registered seqio task or mixture
    pusht:EPISODES         episodes of a simulated robot, made as they are read (`pusht.py`)
    lerobot:FOLDER         robots' recordings in LeRobot's layout (`lerobot.py`)
    audio:PATH             folders of WAV files, with transcripts (`recordings.py`)
    video:PATH             folders of MP4 and other films, with what is said of them
    tones:RECORDINGS       made-up words of gliding tones, no speech (`spoken.py`)
    espeak:RECORDINGS      spoken numbers by espeak-ng, where it is installed (`spoken.py`)
    digits:pictures        handwritten digits with classes; digits:FILMS in motion (`digits.py`)
    FORMAT:PATH            files of any extension, read as FORMAT: "text:notes/*.log", "jsonl:dump/part-*"
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pretrain.curate import (
    books,
    digits,
    glyphs,
    lerobot,
    pusht,
    python_library,
    readers,
    recordings,
    registered,
    source_code,
    spoken,
    webdataset,
)
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile, find_files
from pretrain.curate.readers import DAMAGE, Fields, one_line

Items = Iterator[Record | Unreadable]


def _read_warc(file: InputFile, fields: Fields) -> Items:
    """Its libraries come with the extra [data], which training does without."""
    from pretrain.curate.warc import read_warc

    return read_warc(file, fields)


PYTHON = python_library.FORMAT
READERS: dict[str, Callable[[InputFile, Fields], Items]] = {
    "jsonl": readers.read_jsonl,
    "text": readers.read_text,
    "parquet": readers.read_parquet,
    "warc": _read_warc,
    books.FORMAT: books.read_book,
    source_code.FORMAT: source_code.read_repository,
    registered.TFDS: registered.read_split,
    registered.SEQIO: registered.read_split,
    pusht.FORMAT: pusht.read_episodes,
    digits.FORMAT: digits.read_part,
    lerobot.FORMAT: lerobot.read_episodes,
    PYTHON: lambda file, fields: python_library.read_module(file),
    glyphs.FORMAT: lambda file, fields: glyphs.read_face(file),
    glyphs.LETTERS: lambda file, fields: glyphs.read_face(file),
    webdataset.FORMAT: webdataset.read_shard,
    recordings.AUDIO: recordings.read_recording,
    recordings.VIDEO: recordings.read_recording,
    spoken.TONES: spoken.read_part,
    spoken.ESPEAK: spoken.read_part,
}
NOT_PATHS = {
    PYTHON, glyphs.FORMAT, glyphs.LETTERS, registered.TFDS, registered.SEQIO, pusht.FORMAT, digits.FORMAT, spoken.TONES,
    spoken.ESPEAK,
}  # fmt: skip


def split_format(given: str) -> tuple[str | None, str]:
    """ "books:e/*.txt" → ("books", "e/*.txt"); the format is None where none is named ("gs://x", "e/*.txt")."""
    if given in (PYTHON, glyphs.FORMAT, glyphs.LETTERS):
        return given, ""
    prefix = re.match(r"([a-z]+):(?!//)", given)
    if prefix and prefix[1] in READERS:
        return prefix[1], given[prefix.end() :]
    return None, given


def find_inputs(given: str, source: str, modules: Sequence[str] = ()) -> tuple[list[InputFile], Counter]:
    """The units of work that an input names, sorted, and how many of a folder's files no reader knows, by extension.

    Args:
        given: as above.
        source: the source its documents belong to.
        modules: Python modules that register seqio tasks.

    Raises:
        UserError: nothing is there to read, or no reader for it.
    """
    format_, pattern = split_format(given)
    if format_ == PYTHON:
        return python_library.find_modules(), Counter()
    if format_ in (glyphs.FORMAT, glyphs.LETTERS):
        return glyphs.find_faces(format_, pattern, source), Counter()
    if format_ in (registered.TFDS, registered.SEQIO):
        return registered.find_splits(format_, pattern, source, modules), Counter()
    if format_ == digits.FORMAT:
        return digits.find_parts(pattern, source), Counter()
    if format_ == pusht.FORMAT:
        return pusht.find_episodes(pattern, source), Counter()
    if format_ in (spoken.TONES, spoken.ESPEAK):
        return spoken.find_parts(format_, pattern, source), Counter()
    if format_ == lerobot.FORMAT:
        return lerobot.find_recordings(pattern, source)
    if format_ in recordings.EXTENSIONS:
        return recordings.find_recordings(format_, pattern, source)
    if format_ == source_code.FORMAT:
        return source_code.find_repositories(pattern, source), Counter()
    return find_files(pattern, source, format_)


def read_file(file: InputFile, fields: Fields) -> Items:
    """Every document of a file, and everything in it that none was made of, in the file's order."""
    is_empty = True
    try:
        for item in READERS[file.format](file, fields) if file.size else ():
            is_empty = False
            yield item
    except DAMAGE as error:
        yield Unreadable(file.path, f"cannot open: {one_line(error)}")
        return
    if is_empty and file.format != PYTHON and file.end is None:
        yield Unreadable(file.path, "no records: the file is empty")


def records(given: str, fields: Fields, unread: list[Unreadable]) -> Iterator[Record]:
    """Every document of an input, one after the other; what none could be made of is put into `unread`.

    Args:
        given, fields: as `find_inputs` and `read_file` take them.
        unread: filled as the documents are read.

    Raises:
        UserError: nothing is there to read, or no reader for it.
    """
    files, _ = find_inputs(given, "input")
    for file in files:
        for item in read_file(file, fields):
            if isinstance(item, Unreadable):
                unread.append(item)
            else:
                yield item
