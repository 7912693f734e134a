"""Documents with pictures and readings, from Parquet through curation and cache to batches."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_data import Plain

from pretrain.core.arrays import from_bytes, to_bytes
from pretrain.core.batch import ArraySpec
from pretrain.core.errors import RunError
from pretrain.core.images import BrokenImage, decode, encode
from pretrain.core.objective import ModelNeeds
from pretrain.core.rng import host_rng
from pretrain.curate.array_rules import ArrayRules
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate
from pretrain.data import loader as loader_module
from pretrain.data.cache import CacheConfig, build_cache
from pretrain.data.corpus import array_features
from pretrain.data.loader import make_loader
from pretrain.data.records import Feature
from pretrain.data.tokenizer_training import TokenizerConfig
from pretrain.objectives.examples import Examples

FIELDS = Fields(text="caption", arrays={"image": "jpg", "state": "state"})
RULES = ArrayRules(arrays={"image": ("uint8", (None,)), "state": ("float64", (None, 2))}, most=1000)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few batches, so that tests cross their borders."""
    monkeypatch.setattr(loader_module, "BLOCK_BYTES", 5 * 4 * 132)


def picture(number: int) -> np.ndarray:
    return host_rng(0, "pictures", number).integers(0, 256, (6, 5 + number % 3, 3), np.uint8)


def rows(count: int) -> list[dict]:
    """Good pairs; the picture, the state and the caption of each say its number."""
    return [
        {
            "id": f"{n:03d}",
            "caption": f"number {n}",
            "jpg": encode(picture(n)),
            "state": [[n, t] for t in range(1 + n % 4)],
        }
        for n in range(count)
    ]


def write(folder, given: list[dict]) -> str:
    schema = pa.schema({"id": pa.string(), "caption": pa.string(), "jpg": pa.binary()})
    schema = schema.append(pa.field("state", pa.list_(pa.list_(pa.float64()))))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(given, schema), folder / "pairs.parquet")
    return str(folder)


def write_documents(corpus, given: list[dict[str, bytes]]) -> None:
    """A corpus of documents without text, as `curate` leaves it."""
    rows = [
        {"id": f"{n}", "source": "s", "split": "train", "text": "", "origin": "", "metadata": "{}",
         "arrays": list(arrays.items())}
        for n, arrays in enumerate(given)
    ]  # fmt: skip
    (corpus / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, DOCUMENTS), corpus / "documents/0.parquet")


def build(folder, given: list[dict], **recipe) -> dict:
    source = write(folder / "raw", given)
    options = {"stages": (RULES,), "fields": FIELDS, "validation_fraction": 0.2, **recipe}
    sheet = curate(Recipe(input=source, **options), folder / "corpus", workers=1)
    build_cache(CacheConfig(tokenizer=TokenizerConfig(kind="bytes")), folder / "corpus", folder / "cache", workers=1)
    return sheet


@dataclasses.dataclass(frozen=True)
class Pairs(Examples):
    """Pixels of the middle, a random number, the caption's bytes, and the first state."""

    features = ("image", "tokens", "state")
    model_needs = ModelNeeds(architectures=("encoder",))

    def example(self, record, rng):
        image = decode(record["image"])
        tokens = np.zeros(16, np.int32)
        tokens[: len(record["tokens"])] = record["tokens"]
        return {
            "image": image[1:5, :4],
            "tokens": tokens,
            "state": record["state"][0],
            "drawn": rng.random((), np.float32),
        }

    def example_spec(self):
        return {
            "image": ArraySpec((4, 4, 3), "uint8", (None, None, None)),
            "tokens": ArraySpec((16,), "int32", (None,)),
            "state": ArraySpec((2,), "float64", (None,)),
            "drawn": ArraySpec((), "float32", ()),
        }

    def forward(self, model, batch):
        raise NotImplementedError

    def loss(self, outputs, batch):
        raise NotImplementedError


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    broken = [
        {"id": "broken", "caption": "number 7", "jpg": encode(picture(7))[:60], "state": [[7, 0]]},
        {"id": "no picture", "caption": "number 8", "jpg": None, "state": [[8, 0]]},
        {"id": "no state", "caption": "number 8", "jpg": encode(picture(8)), "state": None},
        {"id": "three states", "caption": "number 8", "jpg": encode(picture(8)), "state": [[8, 0, 0]]},
        {"id": "uneven", "caption": "number 8", "jpg": encode(picture(8)), "state": [[8, 0], [0]]},
        {"id": "none", "caption": "number 8", "jpg": encode(picture(8)), "state": []},
        {"id": "large", "caption": "number 8", "jpg": bytes(1001), "state": [[8, 0]]},
        {"id": "no caption", "caption": None, "jpg": encode(picture(9)), "state": [[9, 0]]},
    ]
    return folder, build(folder, rows(40) + broken)


def open_loader(folder, objective=None, **options):
    objective = objective or Pairs()
    settings = {"split": "train", "batch_size": 4, "sequence_length": objective.packed_length(16), "seed": 3, **options}
    return make_loader(folder / "cache", objective=objective, **settings)


def test_books_balance_and_reasons_are_counted(cached):
    folder, sheet = cached
    assert sheet["total"]["read"]["documents"] == 48
    assert sheet["total"]["kept"]["documents"] == 42  # a broken picture is found when it is decoded
    table = pa.concat_tables(pq.read_table(file) for file in sorted((folder / "corpus/rejected").iterdir()))
    found = {row["id"]: (row["rule"], row["value"], row["threshold"]) for row in table.to_pylist()}
    uneven = next(key for key, reason in found.items() if reason[0] == "no_numbers")
    del found[uneven]
    assert found == {
        "no picture": ("no_image", None, None),
        "no state": ("no_state", None, None),
        "three states": ("shape_state", None, None),
        "none": ("shape_state", None, None),
        "large": ("long_image", 1001, 1000),
    }


def test_batches_hold_what_was_read(cached):
    loader = open_loader(cached[0], epochs=1)
    seen, unusable, empty = {}, 0, 0
    for _, batch in loader.iterate():
        spec = Pairs().batch_spec(4, 16)
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {n: (s.shape, s.dtype) for n, s in spec.items()}
        for row in range(4):
            unusable += batch["unusable"][row]
            if not batch["loss_weights"][row]:
                empty += not batch["unusable"][row]
                assert all(not np.any(a[row]) for name, a in batch.items() if name != "unusable")
                continue
            number = int(batch["state"][row, 0])
            np.testing.assert_array_equal(batch["image"][row], picture(number)[1:5, :4])
            tokens = batch["tokens"][row]
            text = bytes((tokens[tokens > 3] - 4).astype(np.uint8)).decode()
            seen[number] = seen.get(number, 0) + 1
            assert text in (f"number {number}", "")
    documents = pa.concat_tables(pq.read_table(f) for f in sorted((cached[0] / "corpus/documents").iterdir()))
    train = [row["id"] for row in documents.to_pylist() if row["split"] == "train"]
    assert sum(seen.values()) + unusable == len(train) == loader.info["rows_per_epoch"]
    assert unusable == ("broken" in train)
    assert empty == -len(train) % 4
    assert set(seen.values()) <= {1, 2}  # number 9 came twice, once without a caption


def test_one_sequence_of_batches(cached):
    """On any number of hosts, from any step, in another process's hands."""
    whole = open_loader(cached[0])
    parts = [open_loader(cached[0], process_index=host, process_count=2) for host in range(2)]
    for step in (0, 9, 31):
        batch = whole.batch(step)
        found = [part.batch(step) for part in parts]
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in found]), err_msg=name)
    step, batch = next(whole.iterate(31))
    assert step == 31 and all(np.array_equal(batch[name], whole.batch(31)[name]) for name in batch)
    other = open_loader(cached[0], seed=4).batch(0)
    assert not np.array_equal(other["drawn"], whole.batch(0)["drawn"])
    assert len(np.unique(np.concatenate([whole.batch(s)["drawn"] for s in range(8)]))) == 32


def test_long_records_are_never_cut(cached):
    @dataclasses.dataclass(frozen=True)
    class Sizes(Pairs):
        features = ("image",)

        def example(self, record, rng):
            return {"bytes": np.int32(len(record["image"]))}

        def example_spec(self):
            return {"bytes": ArraySpec((), "int32", ())}

    batch = open_loader(cached[0], Sizes(), batch_size=32).batch(0)
    assert batch["bytes"].min() >= 60


def test_blocks_are_bounded_by_the_size_of_examples(cached):
    assert Pairs().row_bytes == 48 + 64 + 16 + 4
    assert open_loader(cached[0])._span == 5


@dataclasses.dataclass(frozen=True)
class Recordings(Plain):
    """States packed along time, as text is."""

    features = ("state",)

    def packed_length(self, length):
        return 3


def test_recordings_are_packed_and_cut_along_time(cached):
    loader, found = open_loader(cached[0], Recordings(), epochs=1), []
    for _, batch in loader.iterate():
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                inside = batch["segment_ids"][row] == segment
                found.append(batch["state"][row, inside])
    assert loader.info["split_records"] > 0
    assert {tuple(np.diff(piece[:, 1])) for piece in found} <= {(), (1.0,), (1.0, 1.0)}
    assert {float(piece[0, 1]) for piece in found} == {0.0, 3.0}


def test_arrays_that_differ_are_refused_with_a_hint(tmp_path):
    given = rows(8)
    given[5]["state"] = [[1, 2, 3]]
    with pytest.raises(RunError, match=r"array 'state' is float64 \[1, 3\], others are float64 .*ArrayRules"):
        build(tmp_path, given, stages=(), validation_fraction=0.0)


@pytest.mark.parametrize("reverse", [False, True])
def test_arrays_that_only_later_documents_hold_are_kept(tmp_path, reverse):
    names = [("image",), ("state",), ("state", "image")][:: -1 if reverse else 1]
    given = [{name: to_bytes(np.full((2, 3), n + 1.0)) for name in each} for n, each in enumerate(names)]
    write_documents(tmp_path / "corpus", given)
    features = array_features(tmp_path / "corpus")
    assert features == [Feature(name, "float64", (3,)) for name in ("image", "state")]


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a", "b"]), np.array(["2020"], "M8[D]")])
def test_arrays_that_no_cache_holds_are_refused_by_name(tmp_path, array):
    write_documents(tmp_path, [{"odd": to_bytes(array)}])
    with pytest.raises(RunError, match=r"array 'odd' is of type .*, which no cache holds"):
        array_features(tmp_path)


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.float16(2), np.zeros((0, 4), "?"), np.ones((2, 2), ">f4").T]
)
def test_arrays_survive_as_bytes(array):
    found = from_bytes(to_bytes(array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.asarray(array).dtype.newbyteorder("<")


def test_damaged_and_hostile_arrays_are_refused():
    good = to_bytes(np.arange(5))
    objects = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
        + b"x" * 8
    )
    for bad in (good[:-1], good[:40], good[:9], objects, good.replace(b"(5,)", b"(6,)")):
        with pytest.raises(ValueError):
            from_bytes(bad)
    with pytest.raises(ValueError):
        to_bytes(np.array([{}, None], object))
    np.testing.assert_array_equal(from_bytes(b"GIF89a"), np.frombuffer(b"GIF89a", np.uint8))


def test_damaged_pictures_are_refused():
    good = encode(picture(0))
    np.testing.assert_array_equal(decode(good), picture(0))
    assert decode(np.frombuffer(good, np.uint8), channels=1).shape == (6, 5, 1)
    for bad in (b"", b"no picture", good[:30], good[:-30], good[:50] + bytes(20) + good[70:]):
        with pytest.raises(BrokenImage):
            decode(bad)


def test_a_transparent_picture_lies_on_white():
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (decode(encode(clear)) == 255).all()
    assert json.dumps(decode(encode(clear), channels=4).tolist()) == json.dumps(clear.tolist())
