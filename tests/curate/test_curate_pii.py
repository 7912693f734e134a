# ruff: noqa: RUF001
"""Personal data: floors by kind on planted data, what is left alone, spans that fit, any text at all."""

import pathlib
import re
import sys
from collections import Counter

import pytest
from corpora import SENTENCE, batch, documents
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate.pii import KINDS, Pii
from pretrain.curate.pii_numbers import luhn
from pretrain.curate.pii_secrets import entropy, is_random
from pretrain.curate.stages import apply

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from planted_pii import plant

EMAILS = ["jane.doe@debian.org", "x_y+z@mail.uni-koeln.de", "o'neil@company.co.uk", "KIM@NAVER.COM", "a@b.io"]


def mask(text: str, **options) -> str:
    """The text as the stage leaves it."""
    table = documents([text])
    kept, rejected, edits = apply(table, Pii(**options).decide(table.to_batches()[0]), "pii")
    assert rejected.num_rows == 0
    assert (edits.num_rows == 0) == (kept["text"][0].as_py() == text)
    return kept["text"][0].as_py()


def test_floors_on_planted_data():
    planted = plant(["\n\n".join([SENTENCE * 2] * 12)] * 150, EMAILS, seed=7)
    decisions = Pii().decide(batch([p.text for p in planted])).to_pylist()
    found = Counter()
    for row in decisions:
        kind = {"private_key": "secret"}.get(row["rule"], row["rule"])
        spans = planted[int(row["id"][2:])].spans
        is_right = any(kind == k and row["start"] < end and start < row["end"] for k, start, end in spans)
        is_whole = any(kind == k and row["start"] <= start and end <= row["end"] for k, start, end in spans)
        found[kind, "given"] += 1
        found[kind, "right"] += is_right
        found[kind, "whole"] += is_whole
    for kind in ("email", "ip", "phone", "card", "secret"):
        truth = sum(span[0] == kind for p in planted for span in p.spans)
        assert truth > 100
        assert found[kind, "whole"] >= 0.95 * truth, f"{kind}: recall"
        assert found[kind, "right"] >= 0.9 * found[kind, "given"], f"{kind}: precision"


@pytest.mark.parametrize(
    "text, masked",
    [
        ("mail jane.doe@debian.org.", "mail <EMAIL_ADDRESS>."),
        ("<a@b.io>,c@d.de", "<<EMAIL_ADDRESS>>,<EMAIL_ADDRESS>"),
        ("é ü 漢字 a@b.io 漢字", "é ü 漢字 <EMAIL_ADDRESS> 漢字"),
        ("at 8.8.4.4, or 8.8.4.4:53", "at <IP_ADDRESS>, or <IP_ADDRESS>:53"),
        ("2a00:1450:4001:81b::200e up", "<IP_ADDRESS> up"),
        ("Call (212) 555-2368.", "Call <PHONE_NUMBER>."),
        ("Tel: +49 30 901820", "Tel: <PHONE_NUMBER>"),
        ("paid 4111 1111 1111 1111 ok", "paid <CARD_NUMBER> ok"),
        ("paid 371449635398431", "paid <CARD_NUMBER>"),
        ("AKIAIOSFODNN7EXAMPLA", "<SECRET>"),
        ("https://me:hunter2x@host.org/", "https://me:<SECRET>@host.org/"),
        ("token = 'a8Fk20skQ9vLw3nX'", "token = '<SECRET>'"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb", "a\n<PRIVATE_KEY>\nb"),
    ],
)
def test_masks(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "x @ self.weight, @property, y@w.T",
        "git@github.com:owner/name.git",
        "user@example.com root@localhost me@host.invalid",
        "version 4.18.1.2 and v1.2.3.4, pkg-1.2.3.4.tar.gz, (>= 5.6.7.8)",
        "127.0.0.1 192.168.3.4 10.0.0.1 fe80::1 ::1 300.1.2.3",
        "std::dead::beef 12:30:45 a0:b1:c2:d3:e4:f5",
        "2021-03-14 15:09:26 14.03.2021 ISBN 978-3-16-148410-0",
        "d670460b4b4aece5915caf5c68d12f560a9fe3e4",
        "order 4111111111111112 0.4111111111111111 41111111111111111111111",
        "password = os.environ['PASSWORD'] token: <your-token-here> api_key=changeme-please-1",
        "key points: understanding tokenization, secret ingredients",
        "pages 100-2000, 555-1234, 1234567890, 3.14159265",
    ],
)
def test_leaves_alone(text):
    assert mask(text) == text


def test_private_addresses_on_request():
    assert mask("at 192.168.3.4", private_ips=True) == "at <IP_ADDRESS>"


def test_only_the_kinds_asked_for_and_the_countries_named():
    text = "a@b.io 8.8.4.4"
    assert mask(text, kinds=["ip"]) == "a@b.io <IP_ADDRESS>"
    assert mask(text, kinds=[]) == text
    number = "Tel. 030 901820"
    assert mask(number) == number
    assert mask(number, phone_regions=["DE"]) == "Tel. <PHONE_NUMBER>"


def test_overlaps_go_to_the_first_kind():
    assert mask("https://me:a8Fk20skQ9@host.org") == "https://me:<SECRET>@host.org"


@pytest.mark.parametrize("settings_, words", [({"kinds": ["name"]}, "name"), ({"phone_regions": ["XX"]}, "XX")])
def test_unknown_kinds_and_countries_are_refused(settings_, words):
    with pytest.raises(UserError, match=words):
        Pii(**settings_)


def test_spans_are_recorded_as_edits():
    table = documents(["one a@b.io two", "none", "\n\nx a@b.io"])
    _, _, edits = apply(table, Pii().decide(table.to_batches()[0]), "pii")
    assert [(row["id"], row["rule"], row["span"]["start"], row["span"]["end"]) for row in edits.to_pylist()] == [
        ("id000", "email", 4, 10),
        ("id002", "email", 4, 10),
    ]


PIECES = st.sampled_from(
    [
        "a@b.io",
        "8.8.4.4",
        "+49 30 901820",
        "4111111111111111",
        "ghp_" + "a1B2" * 9,
        "\n",
        " ",
        "\r\n",
        "\0",
        "é",
        "𝒳",
        "@",
        "://u:p4ssw0rd@",
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.lists(PIECES, max_size=12).map("".join)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXTS, max_size=5), st.integers(0, 5))
def test_any_text_in_any_batches(texts, cut):
    stage, ids = Pii(), [f"id{index}" for index in range(len(texts))]
    whole = stage.decide(batch(texts, ids))
    parts = [stage.decide(batch(texts[part], ids[part])) for part in (slice(0, cut), slice(cut, None))]
    key = lambda row: (row["id"], row["start"])  # noqa: E731
    assert sorted((row for part in parts for row in part.to_pylist()), key=key) == sorted(whole.to_pylist(), key=key)
    kept, _, edits = apply(documents(texts, ids), whole, "pii")
    assert kept.num_rows == len(texts)
    left = sum(len(text.encode()) for text in kept["text"].to_pylist()) + sum(edits["bytes"].to_pylist())
    assert left == sum(len(text.encode()) for text in texts)


@settings(deadline=None, max_examples=60)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_every_find_passes_its_prefilter(text):
    import pyarrow as pa
    import pyarrow.compute as pc

    for kind in KINDS.values():
        for line in [text] if kind.is_block else text.split("\n"):
            if list(kind.find(line)):
                assert pc.match_substring_regex(pa.array([line]), kind.prefilter)[0].as_py()


def test_a_slice_of_a_batch():
    whole = batch(["a@b.io", "x\ny c@d.de", "e@f.fr"])
    rows = Pii().decide(whole.slice(1, 1)).to_pylist()
    assert [(row["id"], row["start"], row["end"]) for row in rows] == [("id001", 4, 10)]


def test_huge_lines_take_linear_time():
    for line in (
        "a" * 3_000_000,
        "1" * 2_000_000,
        "1." * 1_000_000,
        "token " * 100_000,
        "-----BEGIN PRIVATE KEY-----" * 10_000,
    ):
        assert Pii().decide(batch([line])).num_rows == 0


def test_luhn_and_entropy():
    assert luhn("79927398713") and not luhn("79927398710")
    assert entropy("aaaa") == 0 and entropy("abcd") == 2
    assert is_random("a8Fk20skQ9vLw3nX") and not is_random("understanding_2_words")
    assert not re.search(KINDS["email"].prefilter, SENTENCE)
