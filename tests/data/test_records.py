"""Records: what was written is what is read, or an error."""

import pathlib
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from toy_data import Plain, write_cache

from pretrain.core.errors import RunError
from pretrain.data.loader import make_loader
from pretrain.data.records import INDEX_SUFFIX, Feature, Index, Shards, token_feature, write_shard


def write(folder, records: list[list[bytes]]) -> list[dict]:
    entries = []
    for number, shard in enumerate(records):
        lengths = np.array([[len(record)] for record in shard]).reshape(-1, 1)
        count = np.arange(len(shard))
        entries.append(write_shard(pathlib.Path(folder) / f"s{number}.array_record", shard, lengths, count, count))
    return entries


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=300), max_size=30), min_size=1, max_size=3), st.data())
def test_records_come_back_whatever_they_are(tmp_path_factory, records, data):
    folder = tmp_path_factory.mktemp("shards")
    shards = Shards(folder, write(folder, records))
    flat = [record for shard in records for record in shard]
    assert len(shards) == len(flat)
    if flat:
        chosen = np.array(sorted(set(data.draw(st.lists(st.integers(0, len(flat) - 1), min_size=1)))))
        assert shards.read(chosen) == [flat[number] for number in chosen]
        assert pickle.loads(pickle.dumps(shards)).read(chosen) == [flat[number] for number in chosen]
    assert shards.index.lengths[:, 0].tolist() == [len(record) for record in flat]


def test_features():
    assert token_feature(65_536).dtype == "uint16" and token_feature(65_537).dtype == "uint32"
    video = Feature("video", "uint8", (4, 6, 3))
    assert video.item_bytes == 72 and Feature.from_json(video.to_json()) == video


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"), {"a": [list(range(1, 40)), list(range(1, 40))]})


def shard_files(cache) -> list[pathlib.Path]:
    return sorted(pathlib.Path(cache).glob("a/train/*.array_record"))


def read_everything(cache) -> list[np.ndarray]:
    loader = make_loader(cache, split="train", objective=Plain(), batch_size=4, sequence_length=32, seed=0, epochs=1)
    return [loader.batch(step)["tokens"] for step in range(loader.num_batches)]


def test_no_flipped_bit_gives_a_wrong_batch(cache):
    """A flip anywhere is an error or changes nothing (padding); in a record's own bytes it is always an error."""
    expected = read_everything(cache)
    file, rng = shard_files(cache)[0], np.random.default_rng(0)
    whole = file.read_bytes()
    longest = whole.index(np.arange(741, 780, dtype="<u4").tobytes())  # the last record, 39 tokens
    payload = {longest, longest + 80, longest + 39 * 4 - 1}
    anywhere = {*rng.integers(0, len(whole.rstrip(b"\0")), 40).tolist(), 0, 8, 30, len(whole) - 1, len(whole) - 65_536}
    for place in sorted(payload | anywhere):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            found = read_everything(cache)
        except RunError as error:
            assert file.name in str(error)
        else:
            assert place not in payload
            for batch, again in zip(expected, found, strict=True):
                np.testing.assert_array_equal(batch, again, err_msg=f"byte {place}")
    file.write_bytes(whole)


@pytest.mark.parametrize("size", [0, 100, -1, -70_000])
def test_a_truncated_shard_is_an_error(cache, size):
    file = shard_files(cache)[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    with pytest.raises(RunError, match=rf"{file.name} is \d+ bytes where \d+ were written"):
        read_everything(cache)
    file.write_bytes(whole)


def test_a_missing_shard_or_index_is_an_error(cache):
    for file in (shard_files(cache)[0], pathlib.Path(f"{shard_files(cache)[1]}{INDEX_SUFFIX}")):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(RunError, match=rf"{file.name} is missing; delete the cache"):
            read_everything(cache)
        file.write_bytes(whole)


def test_a_damaged_index_is_an_error(cache):
    file = pathlib.Path(f"{shard_files(cache)[0]}{INDEX_SUFFIX}")
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(RunError, match=r"index\.npz is damaged"):
        read_everything(cache)
    file.write_bytes(whole)


def test_exchanged_shards_are_an_error(tmp_path):
    """Two shards of one size: only the checksums of the records can tell them apart."""
    cache = write_cache(tmp_path, {"a": [[20] * 9, [20] * 9]})
    first, second = shard_files(cache)
    contents = first.read_bytes(), second.read_bytes()
    assert len(contents[0]) == len(contents[1]) and contents[0] != contents[1]
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(RunError, match="record 0 is damaged"):
        read_everything(cache)


def test_an_index_keeps_its_columns():
    index = Index(*(np.arange(3, dtype=np.uint32) for _ in range(4)))
    both = Index.concatenate([index, Index.from_bytes(index.to_bytes())])
    np.testing.assert_array_equal(both.documents, [0, 1, 2, 0, 1, 2])


def test_several_features_of_any_shape(tmp_path):
    """Images, sensor readings and tokens in one record; each comes out as it went in, packed along its first axis."""
    features = [Feature("video", "uint8", (2, 3)), Feature("sensors", "float32", (5,)), Feature("tokens", "uint16")]
    cache = write_cache(tmp_path, {"robots": [[[n, n, n] for n in (3, 1, 4, 1, 5)]]}, features=features)

    class Telemetry(Plain):
        features = ("video", "sensors")

    loader = make_loader(cache, split="train", objective=Telemetry(), batch_size=2, sequence_length=4, seed=0, epochs=1)
    videos, sensors = [], []
    for step in range(loader.num_batches):
        batch = loader.batch(step)
        assert batch["video"].shape == (2, 4, 2, 3) and batch["video"].dtype == np.uint8
        assert batch["sensors"].shape == (2, 4, 5) and batch["sensors"].dtype == np.float32
        used = batch["video_segment_ids"] > 0
        np.testing.assert_array_equal(used, batch["sensors_segment_ids"] > 0)
        videos.append(batch["video"][used])
        sensors.append(batch["sensors"][used])
    assert sum(map(len, videos)) == 14
    starts = np.cumsum([0, 3, 1, 4, 1])
    expected = [
        (start + np.arange(n * 5)).reshape(n, 5) % 251 for start, n in zip(starts, (3, 1, 4, 1, 5), strict=True)
    ]
    found = np.concatenate(sensors)
    np.testing.assert_array_equal(
        found[np.lexsort(found.T[::-1])], np.concatenate(expected)[np.lexsort(np.concatenate(expected).T[::-1])]
    )
