"""TFDS data sets and seqio tasks as input: built here, read whole, shard by shard, without anything downloaded."""

import io
import json
import shutil
import sys
import textwrap

import numpy as np
import pytest

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import UserError
from pretrain.core.images import decode
from pretrain.curate.datasheet import funnel
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.pair_rules import ImageRules
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate

TEXTS = [
    f"Example {index}: Grüße from a data set that was made for this test, and for nothing else." for index in range(40)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set of three shards, with a text feature of another name, a label and one damaged text."""
    import tensorflow_datasets as tfds

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "body": tfds.features.Text(),
                "label": tfds.features.Scalar(np.int64),
                "tags": tfds.features.Sequence(tfds.features.Text()),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for index, text in enumerate(TEXTS):
                body = b"\xff broken" if index == 7 else text
                yield index, {"body": body, "label": index, "tags": ["a", "b"]}

    data_dir = tmp_path_factory.mktemp("tfds")
    builder = TinyTexts(data_dir=data_dir)
    config = tfds.download.DownloadConfig(num_shards=3)
    builder.download_and_prepare(download_config=config)
    return data_dir / "tiny_texts" / "1.0.0"


def read(given: str, **fields) -> list:
    found = Fields(**fields)
    files, ignored = find_inputs(given, "corpus", found.modules)
    assert not ignored
    return [item for file in files for item in read_file(file, found)]


def test_every_example_of_every_shard_once(folder):
    files, _ = find_inputs(f"tfds:{folder}:train", "mine")
    assert len(files) == 3
    assert {file.source for file in files} == {"mine"}
    assert all(file.size > 0 for file in files)
    items = [item for file in files for item in read_file(file, Fields(text="body"))]
    records = [item for item in items if isinstance(item, Record)]
    assert sorted(item.text for item in records) == sorted(TEXTS[:7] + TEXTS[8:])
    about = json.loads(records[0].metadata)
    assert TEXTS[about["label"]] == records[0].text
    assert about["tags"] == ["a", "b"]
    assert len({item.origin for item in items}) == len(TEXTS)
    (broken,) = [item for item in items if isinstance(item, Unreadable)]
    assert "invalid UTF-8 at byte 0" in broken.problem


def test_a_part_of_a_split(folder):
    assert len(read(f"tfds:{folder}:test[:10]", text="body")) == 10


def test_origins_do_not_change(folder):
    first, second = (read(f"tfds:{folder}:train", text="body") for _ in range(2))
    assert first == second
    assert first[0].origin.startswith(f"tfds:{folder}:train:tiny_texts-train.tfrecord-0000")


def test_another_field_is_the_users_to_name(folder):
    items = read(f"tfds:{folder}:train")
    assert all("no field 'text'" in item.problem for item in items)


def test_a_damaged_shard_is_told_about(folder, tmp_path):
    copy = tmp_path / "1.0.0"
    shutil.copytree(folder, copy)
    shard = sorted(copy.glob("*train*00001-of*"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    items = read(f"tfds:{copy}:train", text="body")
    assert any("damaged" in item.problem for item in items if isinstance(item, Unreadable))
    assert sum(isinstance(item, Record) for item in items) > 25


@pytest.mark.parametrize(
    "given, message",
    [
        ("tfds:no_such_data_set:train", "no_such_data_set"),
        ("tfds:nothing", "write tfds:NAME:SPLIT"),
        ("seqio:no_such_task:train", "Fields.modules"),
        ("seqio:nothing", "write seqio:NAME:SPLIT"),
    ],
)
def test_what_is_not_there_is_the_users_error(given, message):
    with pytest.raises(UserError, match=message):
        find_inputs(given, "corpus")


def test_an_unknown_split_names_the_known_ones(folder):
    with pytest.raises(UserError, match="its splits are"):
        find_inputs(f"tfds:{folder}:dev", "corpus")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A module that registers a task over four text files, and a mixture of it."""
    folder = tmp_path_factory.mktemp("seqio")
    for index in range(4):
        (folder / f"part-{index}.txt").write_text("".join(f"{text}\n" for text in TEXTS[index::4]))
    (folder / "tiny_tasks.py").write_text(
        textwrap.dedent(f"""
        import seqio

        if "tiny_task" not in seqio.TaskRegistry.names():
            seqio.TaskRegistry.add(
                "tiny_task",
                source=seqio.TextLineDataSource({{"train": "{folder}/part-*.txt"}}),
                preprocessors=[],
                output_features={{"targets": seqio.Feature(seqio.ByteVocabulary())}},
            )
            seqio.MixtureRegistry.add("tiny_mixture", [("tiny_task", 1.0)])
        """)
    )
    sys.path.insert(0, str(folder))
    yield "tiny_tasks"
    sys.path.remove(str(folder))


@pytest.mark.parametrize("name", ["tiny_task", "tiny_mixture"])
def test_the_source_of_a_seqio_task(tasks, name):
    files, _ = find_inputs(f"seqio:{name}:train", "corpus", (tasks,))
    assert len(files) == 4
    items = read(f"seqio:{name}:train", modules=(tasks,))
    assert sorted(item.text for item in items) == sorted(TEXTS)
    assert len({item.origin for item in items}) == len(TEXTS)
    with pytest.raises(UserError, match="its splits are train"):
        find_inputs(f"seqio:{name}:dev", "corpus", (tasks,))
    with pytest.raises(UserError, match="no_such_module"):
        find_inputs(f"seqio:{name}:train", "corpus", ("no_such_module",))


def test_a_whole_recipe_over_both(folder, tasks, tmp_path):
    recipe = Recipe(
        input={"tfds": f"tfds:{folder}:train"},
        fields=Fields(text="body", modules=(tasks,)),
        shards=1,
        max_unreadable=0.1,
    )
    sheet = curate(recipe, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "complete.json").exists()
    assert "tfds" in json.dumps(sheet)


def test_pictures_stay_files_and_numbers_their_type(tmp_path):
    """Of TFDS: pictures as they are stored, a broken one among them, to ImageRules; sound and depths as numbers."""
    import tensorflow_datasets as tfds

    f, rng = tfds.features, np.random.default_rng(0)
    shown = rng.integers(0, 256, (4, 40, 30, 3)).astype(np.uint8)
    pictures = [*shown, io.BytesIO(b"\x89PNG\r\n\x1a\n and no more")]
    rows = [
        {"image": picture, "depth": np.full((4, 4, 1), row / 2, np.float32), "name": f"thing {row}",
         "sound": np.arange(row + 1, dtype=np.int16)} for row, picture in enumerate(pictures)
    ]  # fmt: skip
    tfds.dataset_builders.store_as_tfds_dataset(
        name="things", version="1.0.0", data_dir=str(tmp_path), disable_shuffling=True,
        features=f.FeaturesDict({
            "image": f.Image(shape=(None, None, 3)), "depth": f.Image(shape=(4, 4, 1), dtype=np.float32),
            "name": f.Text(), "sound": f.Tensor(shape=(None,), dtype=np.int16),
        }),
        split_datasets={"train": enumerate(rows)},
    )  # fmt: skip
    given = f"tfds:{tmp_path}/things/1.0.0:train"
    arrays = {"image": "image", "depth": "depth", "samples": "sound"}
    records = read(given, text="name", arrays=arrays)
    assert [record.text for record in records] == [f"thing {row}" for row in range(5)]
    for row, record in enumerate(records):
        depth, sound = (from_bytes(record.arrays[name]) for name in ("depth", "samples"))
        assert depth.dtype == np.float32 and (depth == row / 2).all()
        assert sound.dtype == np.int16 and sound.tolist() == list(range(row + 1))
    for picture, record in zip(shown, records, strict=False):
        np.testing.assert_array_equal(decode(record.arrays["image"]), picture)
    fields = Fields(text="name", arrays={"image": "image"})
    recipe = Recipe(input={"things": given}, fields=fields, stages=[ImageRules(min_side=8)], shards=1)
    sheet = curate(recipe, tmp_path / "out", workers=1)
    rows = {what: count for _, what, count, _ in funnel(sheet)}
    assert rows["kept"] == 4 and rows["less image_rules: broken_image"] == 1
