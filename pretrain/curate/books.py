"""Books: e-texts of any charset, with what publishers and transcribers put around the work taken out.

`read_book` reads a file as one document, with title, author and language from a Project Gutenberg header. `BookMatter`
takes out, as recorded edits, the header and licence around the work (by Project Gutenberg's and similar markers),
transcriber's notes, production credits, and tables of contents. What stands in the text of the work is never touched.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import gin
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import TEXT_UNITS, Fields
from pretrain.curate.source_code import decode_source
from pretrain.curate.stages import DECISIONS, replacements

FORMAT = "books"
HEADER_FIELD = re.compile(r"^(Title|Author|Language|Release Date|Editor|Translator):[ \t]*(\S.*?)\s*$", re.MULTILINE)
HEADER_CHARACTERS = 4_000
FLAGS = re.IGNORECASE | re.MULTILINE
PROJECT = r"(?:th(?:e|is) )?project gutenberg(?:'s)?(?: e-?(?:book|text))?"
START = re.compile(
    rf"^[ \t]*\*{{2,3}} ?start of {PROJECT}.*?(?:\n.*?)?\*{{2,3}}[ \t]*$"
    r"|^[ \t]*\*{1,3} ?END\*? ?THE SMALL PRINT!.*$"
    r"|^[ \t]*\*+ ?start of the project gutenberg.*$",
    FLAGS,
)
END = re.compile(
    rf"^[ \t]*\*{{2,3}} ?end of {PROJECT}.*$|^[ \t]*end of (?:the |this )?project gutenberg(?:'s|tm)?\b.*$"
    r"|^[ \t]*\*{1,3} ?START: FULL LICENSE \*{1,3}[ \t]*$",
    FLAGS,
)
CREDIT = re.compile(
    r"(?:e-?text |this e-?book was |text |html version )?"
    r"(?:produced|prepared|transcribed|scanned|digiti[sz]ed|proofread) (?:and \w+ )?(?:by|from)\b.*"
    r"|.*\bdistributed proofread(?:ers|ing)\b.*|.*\bpgdp\.net\b.*",
    re.IGNORECASE | re.DOTALL,
)
NOTE = re.compile(
    r"^[ \t]*[\[{(*]*[ \t]*(?:transcriber(?:['\u2019]?s|s['\u2019])?[ \t]+(?:end)?notes?\b"
    r"|note: project gutenberg (?:also )?has\b|errata noted by (?:the )?transcriber)",
    re.IGNORECASE,
)
ILLUSTRATIONS = re.compile(r"(?:list of )?illustrations\.?", re.IGNORECASE)
CONTENTS = re.compile(
    rf"(?:table of )?contents(?: of (?:the )?(?:\w+ )?(?:volume|vol\.|part)(?: \w+)?| and illustrations)?\.?"
    rf"|{ILLUSTRATIONS.pattern}",
    re.IGNORECASE,
)
ENTRY = re.compile(
    r"^(?:.*(?:\.{2,}|(?:\. ){2,}|[ \t]{2,})[ \t]*(?:\d+|[ivxlc]+)\.?"
    r"|(?:chapter|book|part|act|scene|section|letter|canto)\b.*"
    r"|\* +[^\s*].*|(?:[ivxlc]+|\d+)[.):][ \t—-]*.*|(?:[ivxlc]+|\d+)[ \t]+\S.*|(?:page|chap)\.?|.*[ \t]\d{1,3})$",
    re.IGNORECASE,
)
TITLED = re.compile(
    r"(?:introduction|preface|prologue|epilogue|appendix|index|notes|foreword|conclusion|glossary)\b.*", re.I
)
CREDIT_PARAGRAPHS = 6  # from the work's beginning in which production credits may stand
CONTENTS_SHARE = 0.2  # of a work in which its table of contents must begin
NOTE_CHARACTERS = 3_000  # of the longest transcriber's note
LAST_NOTES_SHARE = 0.05  # of a work at its end: a heading of notes there is about all that follows
SECTION_BREAK = "\n\n\n\n"  # three blank lines, between the parts of a book
TITLE_LINES, TITLE_CHARACTERS = 3, 75  # of a heading within a table of contents, or of a caption


class Span(NamedTuple):
    """Characters [start, end) of a book that are none of the work."""

    start: int
    end: int
    rule: str


def read_book(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One document a file; UTF-8, or Windows-1252 where it is no UTF-8."""
    for piece in TEXT_UNITS["file"](file, fields.max_record_bytes):
        if piece.problem:
            yield Unreadable(f"{file.path}:{piece.offset}", piece.problem, piece.content, piece.size)
            continue
        text, charset = decode_source(piece.content)
        if (
            text is None and charset == "windows-1252"
        ):  # every byte is a character of Latin-1, accents as often as may be
            text, charset = piece.content.decode("latin-1"), "latin-1"
        if text is None:
            yield Unreadable(file.path, f"no text in {charset}", piece.content[:1024], piece.size)
            continue
        header = {name.lower(): value for name, value in HEADER_FIELD.findall(text[:HEADER_CHARACTERS])}
        metadata = {"charset": charset, **{name.replace(" ", "_"): value for name, value in header.items()}}
        yield Record(text.replace("\r\n", "\n"), file.path, metadata=json.dumps(metadata, sort_keys=True))


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class BookMatter:
    """Map stage that takes out what stands around the work; each rule can be turned off.

    Attributes:
        front_matter: up to the start marker, and the publisher's header where there is no marker.
        back_matter: from the end marker on.
        transcriber_notes: notes and production credits of those who made the e-text.
        contents: tables of contents and lists of illustrations.
        min_entries: lines that a table of contents must have.
    """

    front_matter: bool = True
    back_matter: bool = True
    transcriber_notes: bool = True
    contents: bool = True
    min_entries: int = 3
    name: str = "book_matter"

    def __post_init__(self):
        check_fields(self)
        check(self.min_entries >= 1, f"BookMatter.min_entries must be at least 1, not {self.min_entries}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Edits by the rules `front_matter`, `back_matter`, `transcriber_notes` and `contents`."""
        rows = [
            (id_, span)
            for id_, text in zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True)
            for span in self.find(text)
        ]
        tables = [DECISIONS.empty_table()]
        for rule in sorted({span.rule for _, span in rows}):
            ids, spans = zip(*((id_, span) for id_, span in rows if span.rule == rule), strict=True)
            starts, ends = ([getattr(span, name) for span in spans] for name in ("start", "end"))
            tables.append(replacements(pa.array(ids, pa.string()), rule, pa.array(starts), pa.array(ends)))
        return pa.concat_tables(tables)

    def find(self, text: str) -> list[Span]:
        """The spans to take out, in order, none of them overlapping."""
        start, end = work_of(text)
        spans = [Span(0, start, "front_matter")] if start else []
        paragraphs = list(_paragraphs(text, start, end))
        spans += _notes(text, paragraphs)
        spans += _contents(text, paragraphs, start, end, self.min_entries)
        spans += [Span(end, len(text), "back_matter")] if end < len(text) else []
        kept: list[Span] = []
        for span in sorted(spans):
            if getattr(self, span.rule) and (not kept or span.start >= kept[-1].end):
                kept.append(span)
        return kept


def work_of(text: str) -> tuple[int, int]:
    """Where the work begins and ends, by the markers; 0 and the length where there are none.

    Where the end marker stands before the start marker, or nothing stands between, the markers are part of the text.
    """
    starts = [match.end() for match in START.finditer(text, 0, min(len(text), 60_000))]
    start = starts[-1] if starts else 0
    ending = END.search(text, start)
    end = ending.start() if ending else len(text)
    if not text[start:end].strip():
        return 0, len(text)
    start += len(text[start:end]) - len(text[start:end].lstrip("\r\n"))
    return start, end


def _paragraphs(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches between blank lines, as [start, end)."""
    begin, position = None, start
    while position < end:
        line_end = text.find("\n", position, end)
        following = end if line_end < 0 else line_end + 1
        if text[position:following].isspace():
            if begin is not None:
                yield begin, position
            begin = None
        elif begin is None:
            begin = position
        position = following
    if begin is not None:
        yield begin, end


def _notes(text: str, paragraphs: list[tuple[int, int]]) -> list[Span]:
    """Transcriber's notes (to the closing bracket where they open one, or over indented paragraphs) and credits."""
    spans = []
    for index, (start, end) in enumerate(paragraphs):
        paragraph = text[start:end]
        if NOTE.match(paragraph):
            opening = paragraph.lstrip()[0]
            closing = {"[": "]", "{": "}"}.get(opening)
            if closing and closing not in paragraph:
                at = text.find(closing, end, end + NOTE_CHARACTERS)
                end = at + 1 if at >= 0 else end
            elif not closing and len(paragraph) < 60 and index + 1 < len(paragraphs):  # a heading, and what it is about
                is_last = start > paragraphs[-1][1] - LAST_NOTES_SHARE * (paragraphs[-1][1] - paragraphs[0][0])
                end = paragraphs[-1 if is_last else index + 1][1]
            spans.append(Span(start, end, "transcriber_notes"))
            if end == paragraphs[-1][1]:
                break
        elif index < CREDIT_PARAGRAPHS and len(paragraph) < 600 and CREDIT.fullmatch(paragraph.strip()):
            spans.append(Span(start, end, "transcriber_notes"))
    return spans


def _contents(text: str, paragraphs: list[tuple[int, int]], start: int, end: int, min_entries: int) -> list[Span]:
    """Headings like "CONTENTS" near the work's beginning, with the lines below that look like entries."""
    spans = []
    last = start + CONTENTS_SHARE * (end - start)
    for index, (begin, stop) in enumerate(paragraphs):
        lines = text[begin:stop].split("\n")
        if begin > last or not CONTENTS.fullmatch(lines[0].strip(" \t_*=-")):
            continue
        if spans and begin < spans[-1].end:
            continue
        entries = sum(_is_entry(line) for line in lines[1:] if line.strip())
        following = index + 1
        if ILLUSTRATIONS.fullmatch(lines[0].strip(" \t_*=-")) and following < len(paragraphs):
            entries, stop, following = _captions(text, paragraphs, following)
        while number := _to_entries(text, paragraphs, following):
            following += number
            entries += _entries(text, paragraphs[following - 1], paragraphs, following - 1)
            stop = paragraphs[following - 1][1]
        if entries >= min_entries:
            spans.append(Span(begin, stop, "contents"))
    return spans


def _captions(text: str, paragraphs: list[tuple[int, int]], first: int) -> tuple[int, int, int]:
    """How many captions a list of illustrations has, where the last ends, and the paragraph behind it.

    They look like anything short; the list ends where a part of the book does.
    """
    following, stop = first, paragraphs[first][0]
    while following < len(paragraphs) and _is_title(text, paragraphs[following]):
        if following > first and SECTION_BREAK in text[stop : paragraphs[following][0] + 1]:
            break
        stop = paragraphs[following][1]
        following += 1
    return following - first, stop, following


def _to_entries(text: str, paragraphs: list[tuple[int, int]], first: int) -> int:
    """How many paragraphs it takes from the first to one of entries: more than one past headings, 0 if none follows."""

    def count_at(index: int) -> int:
        return _entries(text, paragraphs[index], paragraphs, index) if index < len(paragraphs) else 0

    for index in range(first, min(first + TITLE_LINES, len(paragraphs))):
        count = count_at(index)
        if count and (index == first or count > 1 or count_at(index + 1)):
            return index + 1 - first
        if not _is_title(text, paragraphs[index]):
            break
    return 0


def _is_title(text: str, span: tuple[int, int]) -> bool:
    lines = text[slice(*span)].strip().split("\n")
    return len(lines) <= TITLE_LINES and max(map(len, lines)) <= TITLE_CHARACTERS


def _entries(text: str, span: tuple[int, int], paragraphs: list[tuple[int, int]], index: int) -> int:
    """How many entries of a table of contents a paragraph holds; 0 where it is none of it."""
    lines = [line for line in text[slice(*span)].split("\n") if line.strip()]
    if len(lines) == 1 and _begins_chapter(text, paragraphs[index + 1 : index + 3]):
        return 0
    entries = sum(_is_entry(line) for line in lines)
    return entries if entries >= 0.6 * len(lines) else 0


def _begins_chapter(text: str, following: list[tuple[int, int]]) -> bool:
    """Whether prose follows a heading, at once or behind one more line: the work has begun."""
    for start, end in following:
        if end - start > 200:
            return True
        if _is_entry(text[start:end].split("\n")[0]):
            return False
    return False


def _is_entry(line: str) -> bool:
    line = line.strip()
    return 0 < len(line) <= 90 and bool(ENTRY.fullmatch(line) or TITLED.fullmatch(line))
