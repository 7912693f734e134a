"""The pure functions of a shard: order of arrival, batches and partitions change nothing."""

import random

import numpy as np
import pyarrow as pa
import pytest
import toy_stages
from corpora import SENTENCE, documents
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.curate import shards
from pretrain.curate.documents import EDITS, REJECTED, shard_of
from pretrain.curate.exact_dedup import ExactDedup
from pretrain.curate.rules import TextRules
from pretrain.curate.stages import DECISIONS, rejections, replacements

KEYS = st.sampled_from([b"a" * 16, b"a" * 15 + b"b", b"\0" * 16, b"\xff" * 16])
ROWS = st.lists(st.tuples(KEYS, st.text(max_size=2)))


@settings(deadline=None)
@given(ROWS)
def test_evidence_is_sorted_by_key_and_id_and_keeps_the_order_within(rows):
    table = pa.table(
        {
            "key": pa.array([key for key, _ in rows], pa.binary(16)),
            "id": pa.array([id_.encode("utf-8", "replace").decode() for _, id_ in rows], pa.string()),
        }
    )
    found = shards._key_order(table)
    ids = table["id"].to_pylist()
    expected = sorted(range(len(rows)), key=lambda row: (rows[row][0], ids[row].encode(), row))
    np.testing.assert_array_equal(found, expected)


def test_keys_of_slices_and_chunks():
    keys = [bytes([number]) * 16 for number in range(5)]
    chunked = pa.chunked_array([pa.array(keys, pa.binary(16)).slice(1, 2), pa.array(keys[3:], pa.binary(16))])
    np.testing.assert_array_equal(shards._keys(chunked)[:, 0], [int.from_bytes(key[:8], "big") for key in keys[1:]])


def test_what_is_read_is_settled_in_any_order():
    ids = [f"{number % 40:02d}" for number in range(50)]  # ten of them twice
    texts = [f"text {number}" for number in range(50)]
    found = []
    for seed in range(4):
        order = list(range(50))
        random.Random(seed).shuffle(order)
        table = documents(texts, ids).take(order)
        shard, summary = shards.settle(table, REJECTED.empty_table())
        found.append((shard.documents.to_pylist(), shard.rejected.sort_by("origin").to_pylist(), summary))
    assert found.count(found[0]) == 4
    kept, rejected, summary = found[0]
    assert [row["id"] for row in kept] == sorted(set(ids))
    assert {row["rule"] for row in rejected} == {"duplicate_id"} and len(rejected) == 10
    assert summary["stages"]["read"]["in"]["corpus"]["documents"] == 50


@pytest.mark.parametrize("number, size", [(1, 3), (7, 30), (1_000, 1 << 30)])
def test_batches_change_nothing(monkeypatch, number, size):
    texts = [f"{index} mail{index}@x.org {SENTENCE * (index % 3)}" for index in range(40)]
    shard = shards.Shard(documents(texts), REJECTED.empty_table(), EDITS.empty_table())
    stages = (toy_stages.MaskMail(), toy_stages.TagLength(), TextRules(min_characters=100))
    whole = shards.run_stages(shard, stages)
    monkeypatch.setattr(shards, "BATCH_DOCUMENTS", number)
    monkeypatch.setattr(shards, "BATCH_BYTES", size)
    parts = shards.run_stages(shard, stages)
    assert parts[1] == whole[1]
    for one, other in zip(parts[0], whole[0], strict=True):
        assert one.sort_by("id").equals(other.sort_by("id"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 5), st.integers(1, 40))
def test_batches_are_bounded_and_complete(lengths, most, size):
    table = documents(["x" * length for length in lengths])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_DOCUMENTS", most)
        patch.setattr(shards, "BATCH_BYTES", size)
        batches = list(shards._batches(table))
    assert pa.concat_tables(batch for _, batch in batches).equals(table)
    assert [start for start, _ in batches] == list(np.cumsum([0, *(b.num_rows for _, b in batches[:-1])]))
    for _, batch in batches:
        assert batch.num_rows <= most
        assert batch.num_rows <= 1 or sum(len(text) for text in batch["text"].to_pylist()) <= size


def test_keyed_decisions_reach_their_documents_in_any_batch(monkeypatch):
    monkeypatch.setattr(shards, "BATCH_DOCUMENTS", 3)
    shard = shards.Shard(
        documents([f"text {index}" for index in range(10)]), REJECTED.empty_table(), EDITS.empty_table()
    )
    ids = pa.array(["id009", "id002", "id000"])
    decided = pa.concat_tables(
        [rejections(ids, "bad", 1.0), replacements(pa.array(["id005"]), "cut", pa.array([0]), pa.array([5]))]
    )
    after, counted = shards.run_stages(shard, (), "keyed", decided)
    assert after.rejected["id"].to_pylist() == ["id000", "id002", "id009"]
    assert after.documents["text"].to_pylist()[2:4] == ["text 4", "5"]
    assert counted["keyed"]["out"]["corpus"]["documents"] == 7
    with pytest.raises(ValueError, match="nobody"):
        shards.run_stages(shard, (), "keyed", rejections(pa.array(["nobody"]), "bad"))
    same, counted = shards.run_stages(shard, (), "keyed", DECISIONS.empty_table())
    assert same.documents.equals(shard.documents) and counted["keyed"]["rejected"] == {}


def test_equal_keys_meet_in_one_partition_from_any_shard():
    table = documents([f"text {index % 5}" for index in range(20)])
    stage = ExactDedup()
    rows = [shards.evidence(stage, part, 3) for part in (table.slice(0, 10), table.slice(10))]
    by_key: dict[bytes, set[int]] = {}
    for evidence, partitions in rows:
        for key, partition in zip(evidence["key"].to_pylist(), partitions, strict=True):
            by_key.setdefault(key, set()).add(int(partition))
    assert len(by_key) == 5 and all(len(found) == 1 and max(found) < 3 for found in by_key.values())
    orders = [[evidence for evidence, _ in rows], [evidence for evidence, _ in reversed(rows)]]
    groups = [shards.group(stage, order) for order in orders]
    assert groups[0].equals(groups[1]) and groups[0].num_rows == 15
    decisions, where, reports = shards.decide(stage, [groups[0]], 4)
    assert where.tolist() == [shard_of(id_, 4) for id_ in decisions["id"].to_pylist()] and reports == {}


def test_an_empty_shard_has_output_too():
    shard, summary = shards.settle(documents([]), REJECTED.empty_table())
    shard, _ = shards.run_stages(shard, (TextRules(),))
    files, finished = shards.finish(shard)
    assert set(files) == {"documents", "rejected", "edits"} and summary["documents"] == 0
    assert finished["kept"] == {} and finished["examples_kept"] == []
