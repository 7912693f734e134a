"""Readers: every kind of good input is read whole, every kind of bad input is reported with its place."""

import gzip
import json
import random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import SENTENCE, read, records, write_jsonl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate import inputs
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile, batch_files, divide, find_files, format_of, zstd
from pretrain.curate.readers import Fields, is_divisible, split_lines, split_paragraphs

UTF8_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | UTF8_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(UTF8_TEXT, inner),
)


def good(items: list) -> list[Record]:
    return [item for item in items if isinstance(item, Record)]


def bad(items: list) -> list[Unreadable]:
    return [item for item in items if isinstance(item, Unreadable)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "ndjson"])
def test_jsonl_text_id_origin_and_metadata(tmp_path, suffix):
    rows = [
        {"text": "first", "id": "a", "url": "http://x", "n": [1, {"k": None}]},
        {"text": "zweiter → 二", "id": 7},
        {"text": ""},
    ]
    items = read(write_jsonl(tmp_path / f"a.{suffix}", rows))
    assert [item.text for item in items] == ["first", "zweiter → 二", ""]
    assert [item.id for item in items] == ["a", "7", None]
    assert json.loads(items[0].metadata) == {"url": "http://x", "n": [1, {"k": None}]}
    first_line = len(json.dumps(rows[0])) + 1
    assert items[1].origin == f"{tmp_path}/a.{suffix}:{first_line}"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(UTF8_TEXT, st.dictionaries(UTF8_TEXT, JSON_VALUES, max_size=2)), max_size=5))
def test_jsonl_round_trip(tmp_path_factory, rows):
    rows = [{**extra, "text": text, "id": "fixed"} for text, extra in rows]
    items = read(write_jsonl(tmp_path_factory.mktemp("jsonl") / "a.jsonl", rows))
    if not rows:
        assert "empty" in items[0].problem
        return
    assert [item.text for item in items] == [row["text"] for row in rows]
    expected = [{key: value for key, value in row.items() if key not in ("text", "id")} for row in rows]
    assert [json.loads(item.metadata) for item in items] == expected


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from(["jsonl", "jsonl.gz", "txt", "txt.zst", "parquet"]))
@example(b'{"text": "\\ud800"}', "jsonl")
@example(b'{"text": "a", "id": "\\udfff"}', "jsonl")
@example(b"[" * 100_000, "jsonl")
@example(b'{"text": "x", "n": ' + b"[" * 900 + b"]" * 900 + b"}", "jsonl")
@example(b'{"text": ' + b"9" * 10_000 + b"}", "jsonl")
@example(b"PAR1\x00\x00PAR1", "parquet")
def test_no_bytes_whatsoever_raise(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"a.{suffix}"
    path.write_bytes(content)
    for item in read(path):
        assert item.origin.startswith(str(path))
        if isinstance(item, Record):
            item.text.encode("utf-8")
            assert isinstance(json.loads(item.metadata), dict)


@pytest.mark.parametrize(
    "line, problem",
    [
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "not a JSON object"),
        (b'{"body": "no text"}', "no field 'text'"),
        (b'{"text": null}', "no field 'text'"),
        (b'{"text": 5}', "int, not text, in field 'text'"),
        (b'{"text": "\xff\xfe"}', "invalid UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "raw NUL \x00"}', "not JSON"),
        (b'{"text": "x" * 2000}' + b"y" * 2000, "a record of 2,020 bytes"),
    ],
)
def test_a_bad_line_is_reported_and_the_rest_goes_on(tmp_path, line, problem):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "before"}, line, {"text": "after"}])
    items = read(path, max_record_bytes=1_500)
    assert [item.text for item in good(items)] == ["before", "after"]
    (found,) = bad(items)
    assert problem in found.problem
    assert found.origin == f"{path}:{len(json.dumps({'text': 'before'})) + 1}"
    assert found.size == len(line)


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
    assert [item.text for item in read(path)] == ["one", "two"]


def test_escaped_nul_is_text(tmp_path):
    assert read(write_jsonl(tmp_path / "a.jsonl", [{"text": "a\0b"}]))[0].text == "a\0b"


@pytest.mark.parametrize("own_id", [1.5, True, None, "", "  ", ["x"]])
def test_what_is_no_id_stays_in_the_metadata(tmp_path, own_id):
    item = read(write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "id": own_id}]))[0]
    if own_id is True:
        assert item.id == "True"
    else:
        assert item.id is None
        assert json.loads(item.metadata) == {"id": own_id}


@pytest.mark.parametrize("compress, suffix", [(gzip.compress, "gz"), (zstd.compress, "zst")])
def test_truncated_compression_keeps_what_stands_before(tmp_path, compress, suffix):
    generator = random.Random(0)
    rows = [{"text": generator.randbytes(500).hex()} for _ in range(2_000)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path = tmp_path / f"a.jsonl.{suffix}"
    whole = compress(b"".join(lines))
    path.write_bytes(whole[: len(whole) // 2])
    items = read(path)
    (problem,) = bad(items)
    assert items[-1] is problem
    assert "damaged" in problem.problem
    found = good(items)
    assert len(found) > 700  # nearly half
    assert [item.text for item in found] == [row["text"] for row in rows[: len(found)]]
    assert problem.origin == f"{path}:{sum(map(len, lines[: len(found)]))}"


@pytest.mark.parametrize("compress, suffix", [(gzip.compress, "gz"), (zstd.compress, "zst")])
def test_concatenated_compression_is_read_through(tmp_path, compress, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(compress(b'{"text": "one"}\n') + compress(b'{"text": "two"}\n'))
    assert [item.text for item in read(path)] == ["one", "two"]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "txt.zst", "parquet"])
def test_files_that_are_not_what_their_name_says(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"plain text, and more of it" * 10)
    (item,) = read(path)
    assert isinstance(item, Unreadable)
    assert item.origin.startswith(str(path))


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "parquet", "jsonl.gz"])
def test_an_empty_file_is_reported(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"")
    (item,) = read(path)
    assert "empty" in item.problem


def test_a_compressed_file_of_nothing_is_reported(tmp_path):
    (item,) = read(write_jsonl(tmp_path / "a.jsonl.gz", []))
    assert "empty" in item.problem


def test_a_huge_line_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", 4_096)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "before"}, b"x" * 3_000_000, {"text": "after"}])
    file = InputFile(str(path), path.stat().st_size, "corpus", "jsonl")
    pieces = list(split_lines(file, 10_000))
    assert [piece.size for piece in pieces] == [18, 3_000_000, 17]
    assert max(len(piece.content) for piece in pieces) <= 1_024 + 4_096
    assert [piece.offset for piece in pieces] == [0, 19, 3_000_020]
    assert [bool(piece.problem) for piece in pieces] == [False, True, False]


def test_a_decompression_bomb_is_defused(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "EXPANSION_ALLOWANCE", 1 << 20)
    monkeypatch.setattr(inputs, "MAX_EXPANSION", 10)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "first"}\n' + b"\0" * 50_000_000))
    items = read(path)
    assert items[0].text == "first"
    assert "expand" in items[-1].problem
    assert len(items) == 2


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(1, 40), st.integers(1, 50))
def test_lines_add_up_to_the_file(tmp_path_factory, content, chunk, max_bytes):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "CHUNK", chunk)
        pieces = list(split_lines(InputFile(str(path), len(content), "corpus", "text"), max_bytes))
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert [piece.size for piece in pieces] == [len(line) for line in expected]
    assert [content[piece.offset : piece.offset + piece.size] for piece in pieces] == expected
    for piece, line in zip(pieces, expected, strict=True):
        assert bool(piece.problem) == (len(line) > max_bytes)
        assert piece.problem or piece.content == line


@settings(deadline=None, max_examples=100)
@given(st.text("ab\n", max_size=80), st.integers(1, 90), st.integers(1, 40), st.integers(1, 50))
def test_parts_of_a_file_have_its_lines_once(tmp_path_factory, text, part, chunk, max_bytes):
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    path.write_text(text)
    whole = InputFile(str(path), len(text), "corpus", "jsonl")
    parts = divide(whole, part)
    assert all(file.size <= part for file in parts) and sum(file.size for file in parts) == len(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "CHUNK", chunk)
        assert [piece for file in parts for piece in split_lines(file, max_bytes)] == list(
            split_lines(whole, max_bytes)
        )


@pytest.mark.parametrize(
    "name, unit, expected",
    [
        *(("a.jsonl", "file", True), ("a.ndjson", "file", True), ("a.jsonl.gz", "file", False)),
        *(("a.txt", "line", True), ("a.txt", "paragraph", False), ("a.txt", "file", False)),
        *(("a.txt.zst", "line", False), ("a.parquet", "line", False)),
    ],
)
def test_only_plain_files_of_lines_are_divided(name, unit, expected):
    assert is_divisible(InputFile(name, 1, "corpus", format_of(name)), Fields(text_unit=unit)) == expected


@settings(deadline=None, max_examples=100)
@given(st.text("ab \n", max_size=60), st.integers(3, 30))
def test_paragraphs_hold_every_filled_line_once(tmp_path_factory, text, max_bytes):
    path = tmp_path_factory.mktemp("paragraphs") / "a.txt"
    path.write_text(text)
    pieces = list(split_paragraphs(InputFile(str(path), len(text), "corpus", "text"), max_bytes))
    found = [line for piece in pieces if not piece.problem for line in piece.content.decode().split("\n")]
    assert found == [line for line in text.split("\n") if line.strip() and len(line) <= max_bytes]
    for piece in pieces:
        if not piece.problem:
            assert text.encode()[piece.offset : piece.offset + piece.size] == piece.content
            assert piece.size <= max_bytes


def test_text_units(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    assert [(item.text, item.origin) for item in read(path)] == [("one\ntwo\n\n\nthree\n", str(path))]
    paragraphs = read(path, text_unit="paragraph")
    assert [(item.text, item.origin) for item in paragraphs] == [("one\ntwo", f"{path}:0"), ("three", f"{path}:10")]
    assert [item.text for item in read(path, text_unit="line")] == ["one", "two", "three"]


def test_text_problems(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\n\xff broken\n\nlong " + b"x" * 50)
    (whole,) = read(path)
    assert "invalid UTF-8 at byte 6" in whole.problem
    (whole,) = read(path, max_record_bytes=20)
    assert "text_unit" in whole.problem
    items = read(path, text_unit="paragraph", max_record_bytes=20)
    assert [item.text for item in good(items)] == ["fine"]
    assert [item.origin for item in bad(items)] == [f"{path}:6", f"{path}:16"]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": ["x", None], "text": ["one", None], "url": ["u", "v"], "n": [[1], []], "g": ["a", "b"]})
    pq.write_table(table, path)
    first, second = read(path, group="g")
    assert (first.id, first.text, first.group, first.origin) == ("x", "one", "a", f"{path}:0")
    assert json.loads(first.metadata) == {"url": "u", "n": [1], "g": "a"}
    assert second.problem == "no field 'text'"
    assert second.origin == f"{path}:1"


def test_parquet_with_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    column = pa.array([b"good", b"\xff bad", b"good too"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column, "other": column}), path)
    items = read(path)
    assert [item.text for item in good(items)] == ["good", "good too"]
    assert bad(items)[0].origin == f"{path}:1"


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), path)
    (item,) = read(path)
    assert "body, title" in item.problem
    assert read(path, text="body")[0].text == "a"


def test_damaged_parquet_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [random.Random(0).randbytes(300).hex() for _ in range(600)]})
    pq.write_table(table, path, row_group_size=300, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    items = read(path)
    assert [item.text for item in good(items)] == table["text"].to_pylist()[: len(good(items))]
    assert "damaged" in bad(items)[0].problem


def test_fields_are_checked():
    with pytest.raises(UserError, match="text_unit must be one of"):
        Fields(text_unit="word")
    with pytest.raises(UserError, match="max_record_bytes"):
        Fields(max_record_bytes=0)


def test_format_by_extension():
    names = {"a.jsonl": "jsonl", "a.JSONL.GZ": "jsonl", "b.txt.zst": "text", "c.parquet": "parquet", "d.md": "text"}
    assert {name: format_of(name) for name in names} == names
    assert format_of("a.png") is None
    assert format_of("a.gz") is None


def test_find_files_by_path_glob_and_folder(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in" / "b.jsonl", records(1))
    write_jsonl(tmp_path / "in" / "a.jsonl.gz", records(1))
    write_jsonl(tmp_path / "in" / "deep" / "c.txt", records(1))
    (tmp_path / "in" / "picture.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    files, ignored = find_files("in", "corpus")
    assert [file.path for file in files] == ["in/a.jsonl.gz", "in/b.jsonl", "in/deep/c.txt"]
    assert dict(ignored) == {".png": 1}
    assert [file.path for file in find_files("in/*.jsonl*", "corpus")[0]] == ["in/a.jsonl.gz", "in/b.jsonl"]
    assert [file.path for file in find_files("in/**/*.txt", "corpus")[0]] == ["in/deep/c.txt"]
    (one,), _ = find_files(str(tmp_path / "in" / "b.jsonl"), "mine")
    assert one == InputFile(
        str(tmp_path / "in" / "b.jsonl"), (tmp_path / "in" / "b.jsonl").stat().st_size, "mine", "jsonl"
    )


def test_a_link_to_a_file_is_a_file_and_a_dangling_one_is_none(tmp_path):
    target = write_jsonl(tmp_path / "elsewhere" / "a.jsonl", records(3))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(target)
    (folder / "b.jsonl").symlink_to(tmp_path / "nothing")
    (found,), _ = find_files(str(folder), "corpus")
    assert found.path == str(folder / "a.jsonl") and found.size == target.stat().st_size


def test_a_name_with_brackets_is_a_path_if_it_is_there(tmp_path):
    path = write_jsonl(tmp_path / "a[1].jsonl", records(1))
    assert [file.path for file in find_files(str(path), "corpus")[0]] == [str(path)]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("nothing-here", "no input files match"),
        ("*.jsonl", "no input files match"),
        ("*.png", "no reader for"),
        ("nosuch://x", "cannot open"),
    ],
)
def test_nothing_to_read_is_the_users_error(tmp_path, monkeypatch, pattern, message):
    (tmp_path / "picture.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_files(pattern, "corpus")


def test_remote_files():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/bucket/a.jsonl.gz", gzip.compress(b'{"text": "remote"}\n'))
    filesystem.pipe("/bucket/b.txt", SENTENCE.encode())
    try:
        files, _ = find_files("memory://bucket/*", "corpus")
        assert [file.path for file in files] == ["memory://bucket/a.jsonl.gz", "memory://bucket/b.txt"]
        from pretrain.curate.formats import read_file

        items = [item for file in files for item in read_file(file, Fields())]
        assert [item.text for item in items] == ["remote", SENTENCE]
        assert items[0].origin == "memory://bucket/a.jsonl.gz:0"
    finally:
        filesystem.rm("/bucket", recursive=True)


def test_compressed_files_are_expected_to_hold_more_text():
    names = ["a.jsonl", "a.jsonl.gz", "a.txt.ZST", "a.parquet", "a.txt"]
    found = [InputFile(name, 100, "corpus", format_of(name)).expected_bytes for name in names]
    assert found == [100, 400, 400, 400, 100]


def test_files_are_batched_in_order():
    files = [InputFile(str(index), size, "corpus", "jsonl") for index, size in enumerate([50, 10, 10, 200, 1, 1, 1])]
    groups = batch_files(files, max_bytes=60, max_files=2)
    assert [[file.size for file in group] for group in groups] == [[50, 10], [10], [200], [1, 1], [1]]
    assert [file for group in groups for file in group] == files
