"""Pictures with captions: WebDataset and img2dataset shards, rules, scores, near duplicates; every reason counted."""

import dataclasses
import io
import itertools
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import output_table, read

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import UserError
from pretrain.core.images import encode, resize
from pretrain.core.rng import host_rng
from pretrain.curate.documents import DOCUMENTS, Record, Unreadable
from pretrain.curate.glyphs import find_faces, read_face
from pretrain.curate.image_dedup import EVIDENCE, ImageDedup, difference_hash
from pretrain.curate.pair_rules import CaptionRules, ImageRules, PairScore
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate


def pixels(number: int, height: int = 80, width: int = 100) -> np.ndarray:
    """A smooth picture, different for each number."""
    rough = host_rng(0, "smooth", number).integers(0, 256, (6, 6, 3), np.uint8)
    return resize(rough, height, width)


def jpeg(number: int, *size: int) -> bytes:
    return encode(pixels(number, *size), "JPEG")


def write_tar(path, members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_webdataset_shards(tmp_path):
    state = io.BytesIO()
    np.save(state, np.arange(3.0))
    whole = write_tar(
        tmp_path / "0.tar",
        [
            ("a/1.jpg", jpeg(1)), ("a/1.txt", b"a hill"), ("a/1.json", b'{"url": "x", "key": 7}'),
            ("a/2.png", encode(pixels(2))), ("a/2.json", b'{"caption": "a lake"}'),
            ("a/3.jpg", jpeg(3)), ("a/3.txt", b"\xff\xfe"),
            ("a/4.jpg", jpeg(4)), ("a/4.json", b"[]"),
            ("a/5.state.npy", state.getvalue()), ("a/5.cls", b"12"),
            ("b/1.txt", b"no picture"),
        ],
    )  # fmt: skip
    one, two, three, four, five, six = read(tmp_path / "0.tar", id="key")
    assert (one.text, one.id, json.loads(one.metadata)) == ("a hill", "7", {"url": "x"}) and one.arrays == {
        "image": jpeg(1)
    }
    assert two.text == "a lake" and list(two.arrays) == ["image"]
    assert [type(item) for item in (three, four)] == [Unreadable] * 2 and three.rule == four.rule == "broken_member"
    assert (five.text, list(five.arrays), json.loads(five.metadata)) == ("", ["state"], {"class": "12"})
    assert six == Record("no picture", f"{tmp_path / '0.tar'}:b/1", metadata="{}", arrays=None)
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3])
    *_, last = read(tmp_path / "cut.tar")
    assert isinstance(last, Unreadable) and "damaged behind" in last.problem
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    assert [type(item) for item in read(tmp_path / "none.tar")] == [Unreadable]


def test_an_example_with_a_large_member_is_one_unreadable_record(tmp_path):
    """Not one of its own for the member and another of the rest, which would pass for a caption without a picture."""
    members = [("1.txt", b"a hill"), ("1.jpg", bytes(600)), ("1.json", b"{}"), ("2.txt", b"a lake"), ("2.png", b"ok")]
    write_tar(tmp_path / "0.tar", members)
    large, good = read(tmp_path / "0.tar", max_record_bytes=500)
    assert isinstance(large, Unreadable) and large.origin == f"{tmp_path / '0.tar'}:1" and large.rule == "large_member"
    assert ".jpg is larger than Fields.max_record_bytes, 500" in large.problem
    assert (good.text, good.arrays) == ("a lake", {"image": b"ok"})


def test_metadata_of_shards_has_the_roles_of_its_fields(tmp_path):
    about = b'{"key": 7, "album": "alps", "text": "a hill", "place": "x"}'
    write_tar(tmp_path / "0.tar", [("1.json", about), ("1.jpg", b"ok"), ("2.json", b"[" * 100_000), ("2.jpg", b"ok")])
    record, deep = read(tmp_path / "0.tar", id="key", group="album")
    assert (record.id, record.group, record.text) == ("7", "alps", "a hill")
    assert json.loads(record.metadata) == {"album": "alps", "place": "x"}
    assert isinstance(deep, Unreadable) and deep.rule == "broken_member"


@dataclasses.dataclass(frozen=True)
class Brightness:
    """A scorer for the test: how bright a picture is, if its caption has an "i"."""

    def score(self, pictures, captions):
        from pretrain.core.images import decode

        return np.array([decode(p).mean() if "i" in c else np.nan for p, c in zip(pictures, captions, strict=True)])


STAGES = (
    CaptionRules(min_characters=3, max_words=4),
    ImageRules(min_side=40, max_side=400, max_aspect=2.0),
    ImageDedup(),
    PairScore(least=0.25, required=True),
    PairScore(name="unsafe", score="punsafe", most=0.5, action="tag"),
)


def test_pairs_from_parquet_are_curated_and_counted(tmp_path):
    """As img2dataset writes them: picture, caption, key and scores in columns."""
    good = [(f"good-{n}", f"picture {n}", jpeg(n), 0.3, 0.1 * n) for n in range(8)]
    copies = [("z-smaller", "copy of one", encode(resize(pixels(1), 60, 75), "JPEG"), 0.3, 0.0),
              ("z-brighter", "copy of two", encode(np.minimum(pixels(2), 245) + 9, "PNG"), 0.3, 0.0)]  # fmt: skip
    bad = [
        ("broken", "picture", jpeg(20)[:400], 0.3, 0.0), ("missing", "picture", None, 0.3, 0.0),
        ("silent", None, jpeg(21), 0.3, 0.0), ("short", "ab", jpeg(22), 0.3, 0.0),
        ("wordy", "a b c d e", jpeg(23), 0.3, 0.0), ("small", "picture", jpeg(24, 30, 50), 0.3, 0.0),
        ("large", "picture", jpeg(25, 300, 500), 0.3, 0.0), ("flat", "picture", jpeg(26, 50, 120), 0.3, 0.0),
        ("unlike", "picture", jpeg(27), 0.2, 0.0), ("unjudged", "picture", jpeg(28), None, 0.0),
    ]  # fmt: skip
    names = ("key", "caption", "jpg", "similarity", "punsafe")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in good + copies + bad])
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "00000.parquet")
    fields = Fields(text="caption", id="key", arrays={"image": "jpg"})
    recipe = Recipe(input=str(tmp_path / "in"), stages=STAGES, fields=fields, validation_fraction=0.0)
    sheet = curate(recipe, tmp_path / "out", workers=1)
    assert sheet["total"]["read"]["documents"] == 20 and sheet["total"]["kept"]["documents"] == 8
    found = {row["id"]: row for row in output_table(tmp_path / "out", "rejected")}
    assert {id_: row["rule"] for id_, row in found.items()} == {
        "broken": "broken_image", "missing": "no_image", "silent": "no_caption", "short": "min_characters",
        "wordy": "max_words", "small": "min_side", "large": "max_side", "flat": "max_aspect",
        "unlike": "low_similarity", "unjudged": "no_similarity",
        "z-smaller": "like_picture", "z-brighter": "like_picture",
    }  # fmt: skip
    assert [found[id_]["duplicate_of"] for id_ in ("z-smaller", "z-brighter")] == ["good-1", "good-2"]
    assert (found["flat"]["value"], found["flat"]["threshold"]) == (2.4, 2.0)
    kept = {row["id"]: json.loads(row["metadata"]) for row in output_table(tmp_path / "out", "documents")}
    assert {id_ for id_, about in kept.items() if "flagged_punsafe" in about} == {"good-6", "good-7"}
    assert kept["good-3"]["height"] == 80 and kept["good-3"]["width"] == 100


def documents(pairs: list[tuple[str, bytes | None]]) -> pa.RecordBatch:
    rows = [
        {"id": f"{n}", "source": "s", "split": "train", "text": text, "origin": "", "metadata": "{}",
         "arrays": None if data is None else [("image", data)]}
        for n, (text, data) in enumerate(pairs)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)


def test_a_scorer_of_one_s_own():
    dark, bright = (encode(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200))
    stage = PairScore(score="brightness", scorer=Brightness(), least=100.0)
    found = stage.decide(documents([("night", dark), ("light", bright), ("no", bright), ("missing", None)])).to_pylist()
    assert {(row["id"], row["tag"] or row["rule"], row["value"]) for row in found} == {
        ("0", "brightness", 10.0), ("1", "brightness", 200.0), ("0", "low_brightness", 10.0),
    }  # fmt: skip
    assert not stage.decide(documents([])).num_rows
    with pytest.raises(UserError, match=r"PairScore.scorer must be @PairScorer\(\)"):
        PairScore(scorer=object())


def test_hashes_tell_pictures_apart():
    hashes = [difference_hash(jpeg(number)) for number in range(40)]
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 3
    shown_again = [difference_hash(encode(resize(pixels(number), 50, 60), "JPEG")) for number in range(40)]
    assert np.mean([(a ^ b).bit_count() <= 3 for a, b in zip(hashes, shown_again, strict=True)]) > 0.9
    blank = documents([("x", encode(np.zeros((9, 9, 1), np.uint8))), ("y", b"broken"), ("z", None)])
    assert not ImageDedup().key(blank).num_rows


def test_likeness_is_carried_on_whatever_stands_between():
    """Two are alike only through a third, which shares no band's nearest neighbour with both."""
    a, b, c, far = 0b0111 << 60, 0b0110 << 60, 0b0011 << 60, (0b0111 << 60) | 0xFFFF
    stage = ImageDedup(distance=1)

    def decisions(hashes: dict[str, int]) -> dict[str, tuple[str, float]]:
        rows = sorted((key, id_, hash_) for id_, hash_ in hashes.items() for key in stage._bands(hash_))
        columns = [
            pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), EVIDENCE, strict=True)
        ]
        found = stage.decide_all(stage.group(pa.table(columns, schema=EVIDENCE))).to_pylist()
        return {row["id"]: (row["duplicate_of"], row["value"]) for row in found}

    expected = {"1": ("0", 1.0), "2": ("0", 1.0)}
    for order in itertools.permutations((a, b, c)):
        assert decisions({f"{n}": hash_ for n, hash_ in enumerate(order)} | {"3": far}) == expected
    assert decisions({"x": a, "y": far, "z": a, "w": a}) == {"x": ("w", 0.0), "z": ("w", 0.0)}


def test_glyphs_have_names_and_ink():
    [face] = find_faces("glyphs", "DejaVuSerifDisplay", "fonts")
    items = list(read_face(face))
    assert len(items) > 15 and all(isinstance(item, Record) for item in items)
    assert all(item.group == item.origin.split(":")[1] and item.arrays["image"][:4] == b"\x89PNG" for item in items)
    with pytest.raises(UserError, match="no face of that name; there are DejaVu"):
        find_faces("glyphs", "Comic*", "fonts")


def test_letters_have_classes_whatever_their_accents_and_style():
    [face] = find_faces("letters", "STIXGeneralBol", "fonts")
    items = list(read_face(face))
    classes = {item.text: int(from_bytes(item.arrays["label"])[0]) for item in items}
    assert classes["latin capital letter a"] == classes["latin capital letter a with ring above"] == 0
    assert classes["mathematical bold capital z"] == 25 and set(classes.values()) == set(range(26))
    assert "latin small letter a" not in classes and "latin capital letter ae" not in classes
