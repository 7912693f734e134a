"""WARC and WET: every page with its URL, every kind of damage with its place, and the rest goes on."""

import gzip
import json
import random
import time
import tracemalloc
import zlib

import brotli
import pytest
from corpora import SENTENCE, read
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.html_text import MAX_DEPTH, decode, nesting, read_page
from pretrain.curate.inputs import zstd
from pretrain.curate.warc import decode_body

MENU = b"<nav><ul>" + b"<li><a href=/x>Menu entry</a></li>" * 20 + b"</ul></nav>"


def page(number: int) -> bytes:
    text = f"<p>{number}: {SENTENCE * 3}</p>".encode()
    return b"<html><head><title>Page %d</title></head><body>%s<main>%s</main></body></html>" % (number, MENU, text)


def http(
    body: bytes, headers: bytes = b"", content_type: bytes = b"text/html; charset=utf-8", status: int = 200
) -> bytes:
    return b"HTTP/1.1 %d OK\r\nContent-Type: %s\r\n%s\r\n%s" % (status, content_type, headers, body)


def record(number: int, block: bytes, type_: bytes = b"response", content_type: bytes = b"application/http") -> bytes:
    head = (
        b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Record-ID: <urn:uuid:%d>\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        b"WARC-Target-URI: http://host/%d\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    )
    return head % (type_, number, number, content_type, len(block)) + block + b"\r\n\r\n"


def good(items: list) -> list[str]:
    return [(item.id or "?").removeprefix("urn:uuid:") for item in items if isinstance(item, Record)]


def bad(items: list) -> list[Unreadable]:
    return [item for item in items if isinstance(item, Unreadable)]


def write(tmp_path, members: list[bytes], suffix: str = "warc"):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(members))
    return path


RECORDS = [record(number, http(page(number))) for number in range(5)]
COMPRESSIONS = {"warc": bytes, "warc.gz": gzip.compress, "warc.zst": zstd.compress}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_pages_with_url_date_type_and_offset(tmp_path, suffix):
    members = [COMPRESSIONS[suffix](member) for member in RECORDS]
    path = write(tmp_path, members, suffix)
    items = read(path)
    assert good(items) == list("01234")
    assert not bad(items)
    assert items[1].text == f"1: {SENTENCE * 3}".strip()
    assert items[1].origin == f"{path}:{len(members[0])}"
    assert items[1].group == "host"
    expected = {"url": "http://host/1", "date": "2020-01-01T00:00:00Z", "content_type": "text/html"}
    assert json.loads(items[1].metadata) == {**expected, "charset": "utf-8", "title": "Page 1"}


def test_all_text_where_it_is_asked_for(tmp_path):
    (item,) = read(write(tmp_path, RECORDS[:1]), main_text=False)
    assert item.text.count("Menu entry") == 20


def test_wet_text_is_taken_as_it_is(tmp_path):
    text = "Ein Satz über alles.\n<p>kein Markup"
    blocks = [record(0, b"software: x", b"warcinfo"), record(1, text.encode(), b"conversion", b"text/plain")]
    (item,) = read(write(tmp_path, [gzip.compress(block) for block in blocks], "warc.wet.gz"))
    assert (item.text, item.id) == (text, "urn:uuid:1")


def test_what_is_no_document_is_told_by_its_rule(tmp_path):
    blocks = [
        record(0, b"GET / HTTP/1.1\r\n\r\n", b"request"),
        record(1, http(b"not here", status=404)),
        record(2, http(b"\x89PNG", content_type=b"image/png")),
        record(3, http(b"<html><body><script>x</script></body></html>")),
        record(4, page(4), b"resource", b"text/html"),
        record(5, b"x", b"revisit"),
        record(6, http(b"plain words", content_type=b"text/plain")),
    ]
    items = read(write(tmp_path, blocks))
    assert good(items) == ["4", "6"]
    assert [item.rule for item in bad(items)] == ["http_status", "content_type", "no_text"]


def broken(kind: str, member: bytes) -> bytes:
    """Record 2, damaged."""
    plain = RECORDS[2]
    return {
        "magic": plain.replace(b"WARC/1.0", b"WXRC/1.0"),
        "too long": plain.replace(b"Content-Length: ", b"Content-Length: 9"),
        "no length": plain.replace(b"Content-Length", b"Content-Lxxxxx"),
        "no number": plain.replace(b"Content-Length: ", b"Content-Length: x"),
        "garbage": random.Random(0).randbytes(700),
        "no http": plain.replace(b"HTTP/1.1", b"\0\0\0\0\0\0\0\0"),
    }[kind]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["magic", "too long", "no length", "no number", "garbage", "no http"])
def test_a_broken_record_is_reported_and_the_rest_goes_on(tmp_path, suffix, kind):
    compress = COMPRESSIONS[suffix]
    members = [compress(member) for member in RECORDS]
    members[2] = compress(broken(kind, RECORDS[2]))
    path = write(tmp_path, members, suffix)
    items = read(path)
    assert good(items) == list("0134")
    (problem,) = bad(items)
    assert problem.rule == "unreadable"
    assert problem.origin == f"{path}:{sum(map(len, members[:2]))}"
    assert problem.size > 100


@pytest.mark.parametrize("suffix", ["warc.gz", "warc.zst"])
@pytest.mark.parametrize("damage", ["cut", "bytes"])
def test_a_broken_member_is_reported_and_the_rest_goes_on(tmp_path, suffix, damage):
    members = [COMPRESSIONS[suffix](member) for member in RECORDS]
    whole = members[2]
    members[2] = whole[: len(whole) // 2] if damage == "cut" else whole[:80] + b"\xff" * 40 + whole[120:]
    path = write(tmp_path, members, suffix)
    items = read(path)
    assert good(items) == list("0134")
    (problem,) = bad(items)
    assert problem.origin == f"{path}:{sum(map(len, members[:2]))}"
    assert problem.size > 0


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_file_that_ends_early(tmp_path, suffix):
    members = [COMPRESSIONS[suffix](member) for member in RECORDS]
    members[4] = members[4][: len(members[4]) // 2]
    items = read(write(tmp_path, members, suffix))
    assert good(items) == list("0123")
    assert [item.rule for item in bad(items)] == ["unreadable"]


def test_a_record_that_is_too_long_is_passed_over(tmp_path):
    long = record(2, http(b"<p>" + b"long words " * 200_000))
    for suffix, compress in COMPRESSIONS.items():
        members = [compress(member) for member in [*RECORDS[:2], long, *RECORDS[3:]]]
        items = read(write(tmp_path, members, suffix), max_record_bytes=100_000)
        assert good(items) == list("0134")
        (problem,) = bad(items)
        assert "max_record_bytes" in problem.problem
        assert len(problem.content) <= 1_024


def test_memory_is_bounded_by_the_longest_record_allowed(tmp_path):
    long = record(2, http(b"\0" * 100_000_000))
    path = write(tmp_path, [gzip.compress(member, 1) for member in [*RECORDS[:2], long, *RECORDS[3:]]], "warc.gz")
    tracemalloc.start()
    items = read(path, max_record_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good(items) == list("0134")
    assert peak < 8 << 20


def test_content_that_expands_beyond_the_limit_is_reported(tmp_path):
    body = gzip.compress(bytes(50_000_000))
    members = [RECORDS[0], record(1, http(body, b"Content-Encoding: gzip\r\n")), RECORDS[2]]
    items = read(write(tmp_path, members), max_record_bytes=1 << 20)
    assert good(items) == ["0", "2"]
    assert "expands" in bad(items)[0].problem


def test_a_file_compressed_as_a_whole(tmp_path):
    items = read(write(tmp_path, [gzip.compress(b"".join(RECORDS))], "warc.gz"))
    assert good(items) == list("01234")
    assert len({item.origin for item in items}) == 5


def chunked(body: bytes) -> bytes:
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def deflated(body: bytes) -> bytes:
    bare = zlib.compressobj(wbits=-15)
    return bare.compress(body) + bare.flush()


CODINGS = [
    ("", bytes),
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", deflated),
    ("br", brotli.compress),
    ("identity", bytes),
    ("gzip", bytes),  # decoded by the crawler, which left the header
]


@pytest.mark.parametrize("coding, encode", CODINGS)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_encodings_of_http(coding, encode, is_chunked):
    body = page(1)
    headers = {"content-encoding": coding, **({"transfer-encoding": "chunked"} if is_chunked else {})}
    sent = chunked(encode(body)) if is_chunked else encode(body)
    assert decode_body(sent, headers, 10_000) == body


@pytest.mark.parametrize(
    "coding, encode", [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", brotli.compress)]
)
def test_encodings_that_end_early_are_damage(tmp_path, coding, encode):
    body = encode(random.Random(0).randbytes(2_000).hex().encode())[:-400]
    block = http(body, b"Content-Encoding: %s\r\n" % coding.encode())
    items = read(write(tmp_path, [RECORDS[0], record(1, block), RECORDS[2]]))
    assert good(items) == ["0", "2"]
    assert bad(items)[0].rule == "unreadable"


def test_a_chunked_transfer_that_ends_early_is_damage():
    with pytest.raises(ValueError, match="ends early"):
        decode_body(chunked(page(1))[:150], {"transfer-encoding": "chunked"}, 10_000)


def test_a_member_whose_header_swallows_the_rest_is_damage(tmp_path):
    """Flag 4 of a gzip header announces a field of its own, whose length is then read from compressed data."""
    first, second, third = (gzip.compress(member, mtime=0) for member in RECORDS[:3])
    path = tmp_path / "a.warc.gz"
    path.write_bytes(first + second[:3] + b"\x04" + second[4:10] + b"\xff\xff" + second[12:] + third)
    items = read(path)
    assert good(items) == ["0", "2"]
    assert [item.origin for item in bad(items)] == [f"{path}:{len(first)}"]


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(sorted(COMPRESSIONS)))
def test_damage_anywhere_never_raises_and_leaves_the_other_records(tmp_path_factory, data, suffix):
    members = [COMPRESSIONS[suffix](member) for member in RECORDS]
    content = bytearray(b"".join(members))
    start = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=60))
    content[start : start + len(patch)] = patch
    path = tmp_path_factory.mktemp("damage") / f"a.{suffix}"
    path.write_bytes(bytes(content))
    items = read(path)
    ends = [sum(map(len, members[: index + 1])) for index in range(5)]
    untouched = {str(i) for i in range(5) if ends[i] <= start or ends[i] - len(members[i]) >= start + len(patch)}
    swallowed = int(suffix != "warc.gz")  # without checksums a wrong length that fits takes the next record with it
    assert len(untouched - set(good(items))) <= swallowed
    for item in items:
        assert item.origin.startswith(str(path))
        if suffix == "warc.gz" and isinstance(item, Record):  # which has checksums
            assert item.text == f"{item.id[-1]}: {SENTENCE * 3}".strip()


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=400), st.sampled_from(["warc", "warc.gz", "wet"]))
@example(b"WARC/1.0\r\n\r\n", "warc")
@example(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999999999999999\r\n\r\nx", "warc")
@example(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: -5\r\n\r\nx", "warc")
@example(gzip.compress(b"WARC/1.0\r\n"), "warc.gz")
@example(b"\r\n" * 50, "warc")
def test_no_bytes_whatsoever_raise(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"a.{suffix}"
    path.write_bytes(content)
    for item in read(path):
        assert item.origin.startswith(str(path))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=500) | st.text("<>/divpabre =\"'!-", max_size=300).map(str.encode))
@example(b"<table><svg><title></table><p>x")
@example(b"<!--" * 50)
@example(b"\xff\xfe<\0p\0>\0")
def test_no_page_whatsoever_raises(content):
    text, title, _ = read_page(content)
    (text + title).encode("utf-8")


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_page_that_nests_without_end_is_refused_at_once(is_closed):
    html = "<div>" * 100_000 + "x" + "</div>" * 100_000 * is_closed
    started = time.monotonic()
    with pytest.raises(ValueError, match="nested deeper"):
        read_page(html.encode())
    assert time.monotonic() - started < 5


@given(st.integers(0, 400), st.integers(0, 50), st.integers(0, 50))
def test_nesting_is_never_underestimated(depth, lists, rules):
    html = "<div>" * depth + "<ul>" + "<li>x<br>" * lists + "</ul>" + "<hr>" * rules + "</div>" * depth
    assert depth <= nesting(html) <= depth + 2 + lists * 2 + rules
    assert nesting("<p>line<br>" * 5_000) <= MAX_DEPTH


@pytest.mark.parametrize(
    "content, charset, expected",
    [
        ("größer".encode(), None, "größer"),
        ("größer".encode("latin-1"), "iso-8859-1", "größer"),
        ("größer".encode("utf-16"), None, "größer"),
        (b"\xef\xbb\xbfgr\xc3\xb6\xc3\x9fer", "iso-8859-1", "größer"),
        ("<meta charset=koi8-r>Привет".encode("koi8-r"), None, "<meta charset=koi8-r>Привет"),
        (b"gr\xc3\xb6\xff\xc3\x9fer", "utf-8", "grö\ufffdßer"),
        ("größer".encode(), "no-such-charset", "größer"),
    ],
)
def test_charsets(content, charset, expected):
    assert decode(content, charset, is_html=True)[0] == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_utf8_is_decoded_as_it_is(text):
    assert decode(text.encode(), "utf-8")[0] == text.removeprefix("\ufeff")


def test_a_page_without_main_content_gives_all_its_text():
    assert "Menu entry" in read_page(b"<body>" + MENU + b"</body>").text
    assert "Menu entry" not in read_page(page(1)).text
