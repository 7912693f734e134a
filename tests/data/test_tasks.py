"""seqio: our tasks give what the cache holds, and anyone's tasks become a cache."""

import dataclasses
import sys

import numpy as np
import pytest
import seqio
from toy_data import Pair, Plain, corpus_rows, write_corpus

from pretrain.core.errors import RunError, UserError
from pretrain.data import tasks, tokenizers
from pretrain.data.cache import CacheConfig, build_cache
from pretrain.data.documents import stored_tokens, texts
from pretrain.data.inspect import describe_batch
from pretrain.data.loader import make_loader
from pretrain.data.mixing import MixtureConfig
from pretrain.data.records import Shards
from pretrain.data.tokenizer_training import TokenizerConfig


class Robots(Plain):
    features = ("frames", "sensors")


def build(mixture: str, folder, **settings) -> dict:
    return build_cache(
        CacheConfig(mixture=mixture, modules=("their_tasks",), **settings), folder / "none", folder / "cache"
    )


def test_our_tasks_give_what_the_cache_holds(tmp_path):
    """The cache tokenizes in bulk; seqio's own path through the registered tasks gives the same token records."""
    corpus = write_corpus(tmp_path / "corpus")
    config = CacheConfig(tokenizer=TokenizerConfig(vocab_size=400, extra_ids=2))
    info = build_cache(config, corpus, tmp_path / "cache", workers=1)
    tokenizer = tokenizers.load(tmp_path / "cache" / "tokenizer")
    assert tasks.register_corpus("ours", corpus, tokenizer) == "ours"
    for source in ("books", "web"):
        task = seqio.get_mixture_or_task(f"ours.{source}")
        for split in ("train", "validation"):
            dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
            theirs = sorted(tuple(example["tokens"].tolist()) for example in dataset.as_numpy_iterator())
            shards = Shards(tmp_path / "cache" / source / split, info["sources"][source][split]["shards"])
            ours = [tuple(np.frombuffer(r, "<u2").tolist()) for r in shards.read(np.arange(len(shards)))]
            assert theirs == sorted(ours) and theirs
            assert task.num_input_examples(split) == len(ours)


def test_our_mixture_is_a_seqio_mixture(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    tasks.register_corpus("ours", corpus, tokenizers.Bytes(), {"books": 3, "web": 1})
    mixture = seqio.get_mixture_or_task("ours")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {"ours.books": 3, "ours.web": 1}
    packed = mixture.get_dataset(sequence_length={"tokens": 64}, split="train", shuffle=False)
    assert len(next(packed.as_numpy_iterator())["tokens"]) <= 64
    tasks.register_corpus("ours", corpus, tokenizers.Bytes())  # again, with other rates
    counts = {s: sum(bool(r["text"]) for r in corpus_rows(corpus) if r["source"] == s) for s in ("books", "web")}
    mixture = seqio.get_mixture_or_task("ours")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {f"ours.{s}": n for s, n in counts.items()}


def test_a_vocabulary_keeps_its_meaning():
    ours = tasks.vocabulary(tokenizers.Bytes(extra_ids=5))
    assert (ours.vocab_size, ours.extra_ids, ours.eos_id, ours.pad_id, ours.unk_id, ours.bos_id) == (265, 5, 1, 0, 2, 3)
    assert ours.decode(ours.encode("déjà\nvu")) == "déjà\nvu"
    np.testing.assert_array_equal(ours.encode_tf("déjà").numpy(), ours.encode("déjà"))
    assert ours.decode_tf(ours.encode_tf("déjà")).numpy().decode() == "déjà"
    assert ours == tasks.vocabulary(tokenizers.Bytes(extra_ids=5)) != tasks.vocabulary(tokenizers.Bytes())


def test_their_vocabularies_become_our_tokenizers(tmp_path):
    text = "some déjà text"
    theirs = seqio.ByteVocabulary(extra_ids=7)
    ours = tasks.tokenizer_of(theirs)
    np.testing.assert_array_equal(ours.encode([text])[0], theirs.encode(text))
    assert (ours.vocab_size, ours.eos_id, ours.pad_id) == (theirs.vocab_size, theirs.eos_id, theirs.pad_id)
    from pretrain.data.tokenizer_training import train_or_load

    train_or_load(TokenizerConfig(vocab_size=400), ["some text, some more"] * 50, tmp_path)
    theirs = seqio.SentencePieceVocabulary(str(tmp_path / "sentencepiece.model"), extra_ids=4)
    ours = tasks.tokenizer_of(theirs)
    np.testing.assert_array_equal(ours.encode([text])[0], theirs.encode(text))
    assert ours.vocab_size == theirs.vocab_size and ours.decode([ours.vocab_size - 1]) == "<extra_id_0>"
    assert tasks.tokenizer_of(seqio.PassThroughVocabulary(size=3)) is None

    class Odd(seqio.ByteVocabulary.__mro__[1]):
        eos_id = unk_id = 1
        _base_vocab_size = 2
        _encode = _decode = _encode_tf = _decode_tf = None

    with pytest.raises(UserError, match="vocabulary Odd has no counterpart"):
        tasks.tokenizer_of(Odd())


def test_their_mixture_becomes_a_cache(tmp_path):
    info = build("their_mixture", tmp_path)
    assert info["rates"] == {"their_text": 3.0, "their_other": 1.5}
    assert info["features"] == [{"name": "tokens", "dtype": "uint16", "shape": []}]
    train, held_out = (info["sources"]["their_text"][split] for split in ("train", "validation"))
    import their_tasks

    assert (train["documents"], train["bytes"]) == (40, sum(map(len, their_tasks.TEXTS["train"])))
    assert (held_out["documents"], held_out["tokens"]) == (2, len("held out") + 2)  # an empty text still has its EOS
    tokenizer = tokenizers.load(tmp_path / "cache" / "tokenizer")
    found = sorted(tokenizer.decode(tokens) for tokens in stored_tokens(tmp_path / "cache", "train"))
    assert found == sorted(their_tasks.TEXTS["train"] + their_tasks.OTHERS["train"])


def test_their_rates_are_the_default(tmp_path):
    build("their_mixture", tmp_path)
    options = {"split": "train", "objective": Plain(), "batch_size": 8, "sequence_length": 64, "seed": 0}
    loader = make_loader(tmp_path / "cache", **options)
    assert loader.info["phases"][0]["by"] == "examples"
    assert loader.info["phases"][0]["shares"] == pytest.approx({"their_text": 2 / 3, "their_other": 1 / 3})
    assert loader.batch(0)["tokens"].shape == (8, 64)
    for mixture in (MixtureConfig(), None):
        assert make_loader(tmp_path / "cache", mixture=mixture, **options).fingerprint == loader.fingerprint
    by_size = make_loader(tmp_path / "cache", mixture=MixtureConfig(temperature=1.0), **options)
    assert by_size.info["phases"][0]["by"] == "tokens" and by_size.fingerprint != loader.fingerprint
    one = make_loader(tmp_path / "cache", mixture=MixtureConfig(weights={"their_other": 1}), **options)
    assert one.info["sources"] == ["their_other"]


def test_pairs_are_packed_side_by_side(tmp_path):
    info = build("their_pairs", tmp_path)
    assert [feature["name"] for feature in info["features"]] == ["inputs", "targets"]
    loader = make_loader(
        tmp_path / "cache", split="train", objective=Two(), batch_size=4, sequence_length=64, seed=0, epochs=1
    )
    tokenizer, found = tokenizers.load(tmp_path / "cache" / "tokenizer"), {}
    for step in range(loader.num_batches):
        batch = loader.batch(step)
        for row in range(4):
            for segment in range(1, batch["inputs_segment_ids"][row].max() + 1):
                pair = [
                    batch[name][row][batch[f"{name}_segment_ids"][row] == segment] for name in ("inputs", "targets")
                ]
                inputs, targets = map(tokenizer.decode, pair)
                found[inputs] = targets
    assert found == {f"question {n}": f"answer {n}" * (n % 3) for n in range(20)}


class Two(Pair):
    """The pair as it is."""


def test_pictures_and_readings(tmp_path):
    info = build("their_robots", tmp_path)
    assert info["tokenizer"] is None
    assert info["features"] == [
        {"name": "frames", "dtype": "uint8", "shape": [2, 2, 3]},
        {"name": "sensors", "dtype": "float32", "shape": [4]},
    ]
    loader = make_loader(
        tmp_path / "cache", split="train", objective=Robots(), batch_size=2, sequence_length=8, seed=0, epochs=1
    )
    readings = []
    for step in range(loader.num_batches):
        batch = loader.batch(step)
        assert batch["frames"].shape == (2, 8, 2, 2, 3)
        readings += batch["sensors"][batch["sensors_segment_ids"] > 0][:, 0].tolist()
    assert sorted(readings) == sorted(n + 0.5 for n in range(1, 9) for _ in range(n))


@dataclasses.dataclass(frozen=True)
class Recordings(Pair):
    features = ("number", "video", "depth", "joints", "grip", "force", "clock")


def test_every_kind_of_number_comes_back(tmp_path):
    """Images, video, telemetry: dtype, shape, values and lengths of their own, from the task to the packed batch."""
    import their_tasks

    info = build("their_recordings", tmp_path)
    stored = {feature["name"]: (feature["dtype"], feature["shape"]) for feature in info["features"]}
    assert stored == {
        "number": ("int32", []), "video": ("uint8", [2, 3, 3]), "depth": ("uint16", [2, 2]), "joints": ("float32", [5]),
        "grip": ("bool", []), "force": ("float16", []), "clock": ("int32", []),
    }  # fmt: skip
    originals = {int(each["number"][0]): each for each in their_tasks.recordings("train").as_numpy_iterator()}
    options = {"split": "train", "objective": Recordings(), "batch_size": 2, "sequence_length": 48, "seed": 0}
    loader, seen = make_loader(tmp_path / "cache", epochs=1, **options), []
    for step in range(loader.num_batches):
        batch = loader.batch(step)
        assert batch["video"].shape == (2, 48, 2, 3, 3) and batch["depth"].shape == (2, 48, 2, 2)
        for row in range(2):
            for segment in range(1, batch["number_segment_ids"][row].max() + 1):
                found = {name: batch[name][row][batch[f"{name}_segment_ids"][row] == segment] for name in stored}
                seen.append(int(found["number"][0]))
                for name, array in originals[seen[-1]].items():
                    np.testing.assert_array_equal(found[name], array, err_msg=name)
                    wide = np.dtype(stored[name][0]).kind in "iu" and found[name].itemsize > 1
                    assert found[name].dtype == ("int32" if wide else stored[name][0])
    assert sorted(seen) == list(range(1, 13))
    shown = describe_batch(loader, 0, rows=2)
    assert "video: [" in shown and "joints: [" in shown


def test_text_that_came_as_tokens_is_counted_in_bytes(tmp_path):
    info = build("untokenized", tmp_path)
    entry = info["sources"]["untokenized"]["train"]
    assert (entry["tokens"], entry["bytes"]) == (6, len("ab") + len("é".encode()))
    assert sorted(texts(tmp_path / "cache", tmp_path / "none", "train")) == ["ab", "é"]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A TFDS data set on disk, made here: texts, pictures of any height, paths of any length."""
    import tensorflow_datasets as tfds

    def example(n):
        picture, path = np.full((n % 3 + 1, 4, 3), n, np.uint8), np.full((n, 2), n / 2, np.float32)
        return {"text": f"document {n} " + "é" * n, "picture": picture, "path": path}

    folder = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_scenes", version="1.0.0", data_dir=folder, disable_shuffling=True,
        features=tfds.features.FeaturesDict({
            "text": tfds.features.Text(), "picture": tfds.features.Image(shape=(None, 4, 3)),
            "path": tfds.features.Tensor(shape=(None, 2), dtype=np.float32),
        }),
        split_datasets={"train": [(n, example(n)) for n in range(20)], "validation": [(0, example(30))]},
    )  # fmt: skip
    return folder


def add_tfds_task(name: str, folder, steps, features) -> None:
    seqio.TaskRegistry.remove(name)
    source = seqio.TfdsDataSource("tiny_scenes:1.0.0", tfds_data_dir=str(folder))
    seqio.TaskRegistry.add(name, source, preprocessors=steps, output_features=features)


def test_tfds_texts_become_a_cache(tmp_path, tfds_dir):
    import their_tasks

    add_tfds_task("scenes_text", tfds_dir, their_tasks.TEXT_STEPS, {"targets": their_tasks.BYTES})
    info = build("scenes_text", tmp_path)
    expected = [f"document {n} " + "é" * n for n in range(20)]
    assert sorted(texts(tmp_path / "cache", tmp_path, "train")) == sorted(expected)
    assert list(texts(tmp_path / "cache", tmp_path, "validation")) == ["document 30 " + "é" * 30]
    entry = info["sources"]["scenes_text"]["train"]
    assert (entry["documents"], entry["bytes"]) == (20, sum(len(text.encode()) for text in expected))


@dataclasses.dataclass(frozen=True)
class Scenes(Pair):
    features = ("picture", "path")


def test_tfds_pictures_and_paths_become_a_cache(tmp_path, tfds_dir):
    import their_tasks

    features = {"picture": their_tasks.numbers(np.uint8, 3), "path": their_tasks.numbers(np.float32, 2)}
    add_tfds_task("scenes", tfds_dir, [], features)
    info = build("scenes", tmp_path)
    assert info["features"] == [
        {"name": "path", "dtype": "float32", "shape": [2]}, {"name": "picture", "dtype": "uint8", "shape": [4, 3]},
    ]  # fmt: skip
    options = {"split": "train", "objective": Scenes(), "batch_size": 2, "sequence_length": 24, "seed": 0}
    loader, seen = make_loader(tmp_path / "cache", epochs=1, **options), {}
    for step in range(loader.num_batches):
        batch = loader.batch(step)
        for row in range(2):
            for segment in range(1, batch["picture_segment_ids"][row].max() + 1):
                picture, path = (
                    batch[name][row][batch[f"{name}_segment_ids"][row] == segment] for name in ("picture", "path")
                )
                n = int(picture[0, 0, 0])
                seen[n] = picture.shape, path.shape
                assert (picture == n).all() and (path == n / 2).all()
    assert seen == {n: ((n % 3 + 1, 4, 3), (n, 2)) for n in range(20)}


@pytest.mark.parametrize(
    ("mixture", "error", "message"),
    [
        ("their_mixtur", UserError, "no seqio task or mixture is named 'their_mixtur'; registered are"),
        ("two_vocabularies", UserError, "uses 2 different vocabularies"),
        ("text_and_numbers", UserError, "must agree"),
        ("their_broken", RunError, "seqio task their_broken, split train: OSError: the disk is gone"),
    ],
)
def test_mixtures_that_cannot_be_cached(tmp_path, mixture, error, message):
    with pytest.raises(error, match=message):
        build(mixture, tmp_path)


def test_splits_and_modules_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="has none of the splits test"):
        build("their_pairs", tmp_path, splits=("test",))
    with pytest.raises(UserError, match="--module_import=their_typo: No module named"):
        build_cache(CacheConfig(mixture="x", modules=("their_typo",)), tmp_path, tmp_path / "other")


def test_examples_that_cannot_be_stored():
    features = [tasks.Feature("tokens", "uint16"), tasks.Feature("frames", "uint8", (2,))]
    tokenizer = tokenizers.Bytes()
    good = {"tokens": np.array([5, 6]), "frames": np.zeros((1, 2), np.uint8)}
    examples = tasks._records("t", "train", 10, [good, {"tokens": [], "frames": np.zeros((0, 2))}], features, tokenizer)
    assert (examples.numbers.tolist(), examples.lengths.tolist(), examples.empty) == ([10], [[2, 1]], 1)
    for wrong, message in (
        ({"frames": good["frames"]}, "lacks the feature tokens"),
        ({**good, "tokens": np.array([260])}, "values from 260 to 260; 0 to 259 can be stored"),
        ({**good, "tokens": np.array([-1])}, "values from -1"),
        ({**good, "frames": np.zeros((1, 3))}, r"has shape \(1, 3\)"),
    ):
        with pytest.raises(RunError, match=message):
            tasks._records("t", "train", 0, [wrong], features, tokenizer)


def test_without_seqio_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(UserError, match=r"pip install 'pretrain\[data\]'"):
        tasks.TaskInput("x").units()
