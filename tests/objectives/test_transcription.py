"""Transcription: what a row holds, what is left out, and recordings all the way from curation to a batch."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.core.objective import Vocabulary
from pretrain.core.rng import host_rng
from pretrain.core.sound import SoundShape, encode
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.recordings import SoundRules
from pretrain.data.cache import CacheConfig, build_cache
from pretrain.data.loader import make_loader
from pretrain.data.tokenizer_training import TokenizerConfig
from pretrain.objectives.transcription import Transcription

TASK = Transcription(sound=SoundShape(seconds=0.1), text_length=5).bind(Vocabulary(64, bos_id=3, eos_id=1))


def record(samples: int = 900, tokens=(7, 8, 1)) -> dict[str, np.ndarray]:
    sound = encode(np.arange(1, samples + 1, dtype=np.int16))
    return {"sound": np.frombuffer(sound, np.uint8), "tokens": np.array(tokens, np.int32)}


def test_a_row():
    found = TASK.example(record(), host_rng(0, "x"))
    assert found["decoder_inputs"].tolist() == [3, 7, 8, 0, 0]
    assert found["targets"].tolist() == [7, 8, 1, 0, 0]
    assert found["segment_ids"].tolist() == [1, 1, 1, 0, 0]
    assert found["samples"].tolist() == [*range(1, 901), *[0] * 700]


@pytest.mark.parametrize(
    "given",
    [record(0), record(1601), record(tokens=(1,)), record(tokens=(5, 6, 7, 8, 9, 1)),
     record() | {"sound": np.zeros(0, np.uint8)}, record() | {"sound": record()["sound"][:-7]}],
    ids=["zero length", "too long", "no text", "long text", "no sound", "damaged"],
)  # fmt: skip
def test_what_cannot_be_used_is_counted(given):
    rows = [TASK.prepare(each, host_rng(0, "x"))["row"] for each in (record(), given)]
    batch = TASK.finish({"row": np.stack(rows), "segment_ids": np.ones((2, 1), np.int32)}, host_rng(0, "y"))
    assert batch["loss_weights"].tolist() == [1, 0] and batch["unusable"].tolist() == [0, 1]
    assert not batch["samples"][1].any() and not batch["segment_ids"][1].any()
    terms, metrics = TASK.loss(jnp.zeros((2, 5, 64)), batch)
    assert float(terms["cross_entropy"].weight) == 3
    assert float(terms["cross_entropy"].sum) == pytest.approx(3 * math.log(64), rel=1e-6)
    assert [float(x) for x in metrics["unusable"]] == [1, 2]


def test_from_recordings_to_batches(tmp_path):
    recipe = Recipe(input="tones:12", stages=(SoundRules(max_seconds=8.0),), validation_fraction=0.0)
    curate(recipe, tmp_path / "corpus", workers=1)
    build_cache(
        CacheConfig(tokenizer=TokenizerConfig(kind="bytes")), tmp_path / "corpus", tmp_path / "cache", workers=1
    )
    task = Transcription(sound=SoundShape(seconds=8.0), text_length=40).bind(Vocabulary(260))
    options = {"split": "train", "batch_size": 6, "sequence_length": task.packed_length(40), "seed": 0, "epochs": 1}
    loader = make_loader(tmp_path / "cache", objective=task, **options)
    texts = []
    for _, batch in loader.iterate():
        assert (batch["loss_weights"] == 1).all()
        for samples, tokens in zip(batch["samples"], batch["targets"], strict=True):
            texts.append(bytes((tokens[tokens > 3] - 4).astype(np.uint8)).decode())
            seconds = (np.flatnonzero(samples)[-1] + 1) / 16_000
            assert 0.2 < seconds / len(texts[-1].split()) < 0.7, "a word takes about 0.4 s"
    assert len(texts) == 12 and all(1 <= len(text.split()) <= 6 for text in texts)
