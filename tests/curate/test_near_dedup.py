"""Near deduplication: simplified text, hashes of spans, signatures, and which documents stay."""

import itertools
import json
import pickle
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from corpora import batch, documents, output_table, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed import applied, decide, groups_of

from pretrain.core.errors import UserError
from pretrain.curate import hashing, minhash
from pretrain.curate.hashing import SpanHashes, from_binary, row_keys, to_binary
from pretrain.curate.minhash import EMPTY, shingles, signatures
from pretrain.curate.near_dedup import NearDedup, best_of_components
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.simplify import simplify
from pretrain.curate.stages import DECISIONS, KeyedStage

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BYTES = st.binary(max_size=80)


def words(text: str, **options) -> list[str]:
    return simplify([text], **options)[0].decode().split()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Cat, sat: on-the (mat)!", ["the", "cat", "sat", "onthe", "mat"]),
        ("Crème brûlée", ["creme", "brulee"]),
        ("Cre\u0300me", ["creme"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("x\u00a0y\u2003z\x85w", ["x", "y", "z", "w"]),
        ("\u201cquoted\u201d \u2014 dash\u2026", ["quoted", "dash"]),
        ("\u0663\u0664 \uff11\uff12 12", ["34", "12", "12"]),
        ("漢字かな", ["漢", "字", "か", "な"]),
        ("Привет, Мир", ["привет", "мир"]),
        ("ﬁne ½", ["fine", "12"]),
        ("tab\tline\nfeed\0nul\x7f", ["tab", "line", "feednul"]),
        ("😀 a+b=c $5", ["abc", "5"]),
        (" \n", []),
    ],
)
def test_simplify(text, expected):
    assert words(text) == expected
    assert words(text, digits=False) == ["".join("0" if c.isdigit() else c for c in word) for word in expected]


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT)
def test_simplified_text_is_plain_and_simplifying_it_again_changes_nothing(text):
    (once,) = simplify([text])
    assert simplify([once.decode()])[0].split() == once.split()
    for character in once.decode():
        assert character == " " or character.isalnum()
        assert character.isascii() or unicodedata.category(character)[0] in "LN"
    assert once.lower() == once


@settings(deadline=None, max_examples=100)
@given(BYTES, st.data())
def test_equal_spans_have_equal_hashes_and_others_do_not(text, data):
    hashes = SpanHashes(text)
    edges = st.integers(0, len(text))
    spans = [sorted(data.draw(st.tuples(edges, edges))) for _ in range(6)]
    start, end = np.array(spans, np.int64).T
    found = hashes(start, end)
    content = [text[a:b] for a, b in spans]
    for (one, first), (other, second) in itertools.combinations(zip(found.tolist(), content, strict=True), 2):
        assert (one == other) == (first == second)
    moved = SpanHashes(b"before" + text)(start + 6, end + 6)
    np.testing.assert_array_equal(found, moved)
    for length in (1, 3, 100):
        windows = hashes.windows(length)
        assert len(windows) == max(0, len(text) - length + 1)
        assert len(np.unique(windows)) == len({text[at : at + length] for at in range(len(windows))})


def test_powers_mixing_and_row_keys():
    assert hashing.powers(7, 100).tolist() == [pow(7, exponent, 1 << 64) for exponent in range(100)]
    assert len(np.unique(hashing.mix(np.arange(10_000, dtype=np.uint64)))) == 10_000
    bits = np.unpackbits(hashing.mix(np.arange(10_000, dtype=np.uint64)).view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.01
    rows = np.random.default_rng(0).integers(0, 3, (500, 3), dtype=np.uint64)
    keys = row_keys(rows, 1)
    assert keys.shape == (500, 16)
    assert len({bytes(key) for key in keys}) == len({tuple(row) for row in rows.tolist()})
    assert not set(map(bytes, keys)) & set(map(bytes, row_keys(rows, 2)))


def test_binary_columns_survive_slices():
    rows = np.random.default_rng(0).integers(0, 256, (10, 16), dtype=np.uint8)
    column = to_binary(rows)
    assert column.to_pylist() == [row.tobytes() for row in rows]
    np.testing.assert_array_equal(from_binary(column.slice(3, 4)), rows[3:7])
    np.testing.assert_array_equal(from_binary(pa.chunked_array([column.slice(2, 2), column.slice(9)])), rows[[2, 3, 9]])
    assert from_binary(pa.chunked_array([column.slice(0, 0)])).shape == (0, 16)


TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "cc", "ddd", "e"]), max_size=12).map(" ".join), max_size=6)


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(1, 6))
def test_shingles_are_the_word_ngrams_of_each_text(texts, ngram):
    hashes, offsets = shingles([text.encode() for text in texts], ngram)
    known: dict[bytes, int] = {}
    for number, text in enumerate(texts):
        parts = text.split()
        size = min(ngram, len(parts))
        expected = ["".join(parts[at : at + size]) for at in range(len(parts) - size + 1)] if parts else []
        own = hashes[offsets[number] : offsets[number + 1]].tolist()
        assert len(own) == len(expected)
        for content, found in zip(expected, own, strict=True):
            assert known.setdefault(content, found) == found
    assert len(set(known.values())) == len(known)


def numbered(numbers) -> bytes:
    return " ".join(f"w{number}x" for number in numbers).encode()


@pytest.mark.parametrize("size", [1, 2, 20, 200, 3_000])
@pytest.mark.parametrize("jaccard", [0.0, 0.5, 0.9, 1.0])
def test_the_estimate_is_unbiased_at_any_length(size, jaccard):
    """Over 40 pairs, within 4 standard errors of MinHash with as many positions."""
    shared = round(jaccard * size)
    own = (size - shared) // 2
    exact = shared / (shared + 2 * own) if shared + own else 1.0
    found = []
    for trial in range(40):
        base = 10_000_000 * trial
        common = range(base, base + shared)
        texts = [numbered([*common, *range(base + start, base + start + own)]) for start in (4_000_000, 6_000_000)]
        one, other = signatures(texts, 1, 128, trial) if shared + own else np.zeros((2, 128))
        found.append((one == other).mean())
    assert abs(np.mean(found) - exact) <= 4 * np.sqrt(exact * (1 - exact) / (128 * 40)) + 1e-12


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.integers(1, 4), st.sampled_from([16, 24, 1 << 19]))
def test_signatures_depend_on_the_set_of_ngrams_alone(texts, ngram, piece):
    simplified = [text.encode() for text in texts]
    whole = signatures(simplified, ngram, 24, 1)
    before = minhash.PIECE_BYTES
    try:
        minhash.PIECE_BYTES = piece  # long texts in pieces, and others together with other texts
        np.testing.assert_array_equal(signatures(simplified, ngram, 24, 1), whole)
    finally:
        minhash.PIECE_BYTES = before
    for text, signature in zip(texts, whole, strict=True):
        np.testing.assert_array_equal(signatures([text.encode()], ngram, 24, 1)[0], signature)
        assert (signature == EMPTY).all() == (not text.split())
        assert (signature == EMPTY).any() == (signature == EMPTY).all()
    assert not whole.size or (signatures(simplified, ngram, 24, 2) != whole).any() or (whole == EMPTY).all()


def test_a_text_without_spaces_is_cut_into_bounded_pieces():
    long = b"x" * (3 * minhash.PIECE_BYTES)
    pieces = list(minhash._pieces(long, 5))
    assert max(map(len, pieces)) <= 2 * minhash.PIECE_BYTES
    assert signatures([long, b"other words"], 5, 16, 1).shape == (2, 16)


def prose(seed: int, number: int = 300) -> list[str]:
    rng = np.random.default_rng(seed)
    return [word(value) for value in rng.integers(0, 50_000, number)]


def word(number: int) -> str:
    """A word of its own in letters, since all digits count as 0."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def changed(parts: list[str], positions: list[int]) -> list[str]:
    return [f"new{word(at)}" if at in positions else part for at, part in enumerate(parts)]


def test_near_duplicates_go_and_the_longest_stays():
    base = prose(1)
    texts = [
        " ".join(base),
        " ".join(base).upper().replace(" ", ", ") + " and a little more",
        " ".join(changed(base, [100])),
        " ".join(prose(2)),
        " ".join(changed(base, list(range(0, 300, 6)))),  # shares hardly a 5-gram
    ]
    rows = decide(NearDedup(), documents(texts))
    assert [(row["id"], row["rule"], row["duplicate_of"]) for row in rows] == [
        ("id000", "near_duplicate", "id001"),
        ("id002", "near_duplicate", "id001"),
    ]
    exact = (296 - 5) / (296 + 4 + 5)
    assert abs(rows[1]["value"] - exact) < 0.1
    assert all(row["threshold"] == NearDedup().accepted_similarity <= row["value"] <= 1 for row in rows)


def test_the_best_by_score_stays_and_of_equals_the_smallest_id():
    text = " ".join(prose(1))
    table = documents([text] * 5 + [text + " longer"], ["f", "b", "a", "d", "e", "c"])
    metadata = [{"quality": 1}, {"quality": 2.5}, {"quality": "high"}, {"quality": 2.5}, {"quality": None}, {}]
    column = pa.array([json.dumps(row) for row in metadata])
    table = table.set_column(table.schema.get_field_index("metadata"), "metadata", column)
    assert {row["duplicate_of"] for row in decide(NearDedup(score="quality"), table)} == {"b"}
    assert {row["duplicate_of"] for row in decide(NearDedup(), table)} == {"c"}
    assert {row["duplicate_of"] for row in decide(NearDedup(), table.slice(0, 5))} == {"a"}
    assert {row["duplicate_of"] for row in decide(NearDedup(score="nothing"), table)} == {"a"}


def test_a_chain_is_one_cluster_and_values_are_similarities_to_the_kept_one():
    """Each is near the next, the ends are not near each other: connected components."""
    base = prose(3, 400)
    table = documents([" ".join(changed(base, list(range(0, 24 * step, 6)))) for step in range(5)])
    rows = decide(NearDedup(), table)
    assert [row["duplicate_of"] for row in rows] == ["id004"] * 4  # the longest
    for row in rows:
        step = int(row["id"][-1])
        differing = 5 * 4 * (4 - step)
        assert abs(row["value"] - (396 - differing) / (396 + differing)) < 0.12
    assert rows[0]["value"] < rows[0]["threshold"] < rows[3]["value"]
    assert decide(NearDedup(), table.take([0, 4])) == []


def test_without_chains_a_document_goes_only_for_one_like_it_that_stays():
    base = prose(3, 400)
    table = documents([" ".join(changed(base, list(range(0, 24 * step, 6)))) for step in range(5)])
    rows = decide(NearDedup(chains=False), table)
    assert 1 <= len(rows) <= 3
    kept = set(table["id"].to_pylist()) - {row["id"] for row in rows}
    assert all(row["duplicate_of"] in kept and row["value"] >= row["threshold"] for row in rows)


def test_texts_without_words_are_never_duplicates():
    assert decide(NearDedup(), documents(["", " ", "...", "!?", "\u2014"])) == []
    assert len(decide(NearDedup(), documents(["one word", "One, word!"]))) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15), st.permutations(range(10)))
def test_components_equal_a_plain_search(links, order):
    one, other = (
        (np.array(column, np.int64) for column in zip(*links, strict=True)) if links else (np.zeros(0, int),) * 2
    )
    found = best_of_components(one, other, np.array(order))
    groups = [{node} for node in range(10)]
    for a, b in links:
        merged = groups[a] | groups[b]
        for node in merged:
            groups[node] = merged
    assert found.tolist() == [min(groups[node], key=order.index) for node in range(10)]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 59), max_size=3)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_clusters_do_not_depend_on_order_batches_or_partitions(drawn, random, batch_size, partitions):
    texts = [" ".join(changed(prose(seed, 60), list(positions))) for seed, positions in drawn]
    table = documents(texts)
    expected = decide(NearDedup(), table, batch_size=100, partitions=1)
    order = list(range(len(texts)))
    random.shuffle(order)
    assert decide(NearDedup(), table.take(order), batch_size=batch_size, partitions=partitions) == expected
    kept, rejected, _ = applied(NearDedup(), table)
    assert kept.num_rows + rejected.num_rows == len(texts)
    assert set(rejected["duplicate_of"].to_pylist()) <= set(kept["id"].to_pylist())
    seeds = {row["id"]: seed for row, (seed, _) in zip(table.to_pylist(), drawn, strict=True)}
    assert all(seeds[row["id"]] == seeds[row["duplicate_of"]] for row in rejected.to_pylist())


def test_a_whole_run_gives_the_same_documents_for_any_shards_and_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"d{number:03d}", "text": " ".join(changed(prose(number % 40, 80), rng.integers(0, 900, 5).tolist()))}
        for number in range(120)
    ]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    found = []
    for shards, workers in ((1, 1), (4, 2), (7, 1)):
        output = tmp_path / f"out{shards}"
        curate(Recipe(input="corpus.jsonl", stages=(NearDedup(),), shards=shards), output, workers=workers)
        found.append(
            [sorted(output_table(output, name), key=lambda row: row["id"]) for name in ("documents", "rejected")]
        )
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) + len(found[0][1]) == 120
    assert 40 <= len(found[0][0]) < 60


@pytest.mark.parametrize(
    "wrong",
    [{"ngram": 0}, {"bands": 0}, {"rows": 0}, {"min_similarity": 1.0}, {"verify_bits": 100}, {"verify_bits": 0}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match="NearDedup"):
        NearDedup(**wrong)


def test_the_contract():
    stage = NearDedup()
    assert isinstance(stage, KeyedStage)
    assert pickle.loads(pickle.dumps(stage)) == stage
    empty, full = stage.key(batch([])), stage.key(batch(["a b c", "A, b c.", ""]))
    assert empty.schema == full.schema
    assert full.num_rows == 2 * stage.bands
    groups = [stage.group(empty), groups_of(stage, documents(["a b c", "A, b c.", ""]))]
    assert groups[0].schema == groups[1].schema
    assert stage.decide_all(groups[0]).schema == stage.decide_all(groups[1]).schema == DECISIONS
    bytes_a_document = full.drop_columns(["id"]).nbytes / 2
    assert bytes_a_document <= 14 * (16 + 8 + 48)
