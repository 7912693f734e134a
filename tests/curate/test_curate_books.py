"""Books: the work stays to the letter, what stands around it goes, as recorded edits."""

import gzip
import json

import pyarrow as pa
import pytest
from corpora import batch, documents
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate.books import BookMatter, work_of
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields
from pretrain.curate.stages import apply

PROSE = "It was a bright cold day, and the clocks of the town were striking thirteen when she came home. " * 4
HEADER = """\ufeffThe Project Gutenberg EBook of A Tale, by A. Writer

This eBook is for the use of anyone anywhere at no cost.

Title: A Tale

Author: A. Writer

Release Date: May 1, 2001 [EBook #1]

Language: English

*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***
"""
CREDITS = "Produced by Somebody and the Online Distributed\nProofreading Team at https://www.pgdp.net"
CONTENTS = "CONTENTS\n\nI.    The Road . . . . 1\nII.   The House . . . . 20\nIII.  The End . . . . 40"
NOTE = "[Transcriber's Note: Spelling has been kept.\n\nEven that of names.]"
WORK = f"CHAPTER I\n\nThe Road\n\n{PROSE}\n\nCHAPTER II\n\n{PROSE}\n\nIt was produced by nobody. CONTENTS: none.\n"
FOOTER = """*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***

***** This file should be named 1.txt *****
Updated editions will replace the previous one.
"""


def cut(text: str, **settings_) -> str:
    kept, _, _ = apply(documents([text]), BookMatter(**settings_).decide(batch([text])), "book_matter")
    return kept["text"][0].as_py()


def test_all_that_stands_around_the_work_goes():
    text = "\n\n".join([HEADER, CREDITS, NOTE, CONTENTS, WORK, FOOTER])
    assert cut(text).strip() == WORK.strip()
    rules = [(span.rule, text[span.start : span.end].strip()[:12]) for span in BookMatter().find(text)]
    assert rules == [
        ("front_matter", HEADER[:12]),
        ("transcriber_notes", CREDITS[:12]),
        ("transcriber_notes", NOTE[:12]),
        ("contents", CONTENTS[:12]),
        ("back_matter", FOOTER[:12]),
    ]


def test_every_byte_taken_out_is_recorded():
    text = "\n\n".join([HEADER, CREDITS, CONTENTS, WORK, FOOTER])
    table = documents([text])
    kept, rejected, edits = apply(table, BookMatter().decide(batch([text])), "book_matter")
    assert rejected.num_rows == 0
    assert len(kept["text"][0].as_py().encode()) + sum(edits["bytes"].to_pylist()) == len(text.encode())


@pytest.mark.parametrize("rule, part", [("front_matter", HEADER), ("back_matter", FOOTER), ("contents", CONTENTS)])
def test_each_rule_can_be_turned_off(rule, part):
    text = "\n\n".join([HEADER, CONTENTS, WORK, FOOTER])
    assert part.strip() in cut(text, **{rule: False})
    assert part.strip() not in cut(text)
    with pytest.raises(UserError, match="min_entries"):
        BookMatter(min_entries=0)


@pytest.mark.parametrize(
    "text",
    [
        WORK,
        PROSE,
        "CONTENTS\n\n" + PROSE,
        "She wrote: transcriber's note follows.\n\n" + PROSE,
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n",
        PROSE + "\n\n" + PROSE.replace("town", "end of project"),
        f"{PROSE}\n\n" * 10 + CONTENTS,  # far into the work it is part of it
    ],
)
def test_a_work_without_any_is_left_as_it_is(text):
    assert cut(text) == text


def test_older_markers():
    old = "**The Project Gutenberg Etext of X**\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
    text = f"{old}{PROSE}\n\nEnd of Project Gutenberg's X, by Y\n"
    start, end = work_of(text)
    assert text[start:end].strip() == PROSE.strip()


LINES = st.sampled_from(
    [*HEADER.split("\n"), *CONTENTS.split("\n"), *FOOTER.split("\n"), NOTE, CREDITS, PROSE, "", "\r"]
)


@settings(deadline=None, max_examples=200)
@given(st.lists(LINES | st.text(max_size=30), max_size=30))
@example(["[Transcriber's Note: never closed"])
@example(["CONTENTS"])
def test_spans_never_overlap_and_the_rest_stays_in_order(lines):
    text = "\n".join(lines)
    spans = BookMatter().find(text)
    position = 0
    for span in spans:
        assert position <= span.start < span.end <= len(text)
        position = span.end
    rest = "".join(text[a.end : b.start] for a, b in zip([None, *spans], [*spans, None], strict=True) if a and b)
    assert len(rest) <= len(text)


def read(path) -> list:
    (file,), _ = find_inputs(f"books:{path}", "books")
    return list(read_file(file, Fields()))


@pytest.mark.parametrize("charset, shown", [("utf-8", "utf-8"), ("latin-1", "windows-1252"), ("utf-16", "utf-16")])
def test_books_of_any_charset(tmp_path, charset, shown):
    path = tmp_path / "tale.book"
    text = HEADER.lstrip("\ufeff") + "Größe\n" + WORK
    path.write_bytes(text.replace("\n", "\r\n").encode(charset))
    (item,) = read(path)
    assert item.text == text
    assert json.loads(item.metadata) == {
        "title": "A Tale",
        "author": "A. Writer",
        "language": "English",
        "release_date": "May 1, 2001 [EBook #1]",
        "charset": shown,
    }


def test_bad_books_are_told_about(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text " * 1000)[:-20])
    (item,) = read(path)
    assert "damaged" in item.problem
    path = tmp_path / "b.txt"
    path.write_bytes(b"a\0b")
    (item,) = read(path)
    assert isinstance(item, Unreadable)


@given(st.binary(min_size=1, max_size=200))
def test_no_book_whatsoever_raises(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("book") / "a.txt"
    path.write_bytes(content)
    for item in read(path):
        if isinstance(item, Record):
            item.text.encode("utf-8")


def test_stage_on_an_empty_batch():
    assert BookMatter().decide(batch([])).num_rows == 0
    assert BookMatter().decide(batch(["x"])).schema.field("start").type == pa.int64()
